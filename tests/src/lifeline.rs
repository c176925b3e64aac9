//! An agent whose node has lost every Service address still reaches the API server, and says what is
//! wrong: it kept the API server's own addresses.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::agents::{AGGREGATOR_GRPC, Aggregator, PRIVILEGES};
use crate::cleanup::Folder;
use crate::cluster::{API_PORT, User};
use crate::laboratory::{Laboratory, Station};
use crate::process::Process;
use crate::proxy::Mode;
use crate::topology::HUB_V4;
use crate::wait;

/// The API server as Pods know it: the Service `default/kubernetes`.
const SERVICE: &str = "10.96.0.1";
const SERVICE_PORT: u16 = 443;
/// The first list, the first pass, and the first report, on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// The agent of a Pod, killed without warning on a node without nat rules, comes back: it reaches the
/// API server and the aggregator, and reports. Once for each mode of kube-proxy.
pub(crate) fn restarts_with_empty_nat(laboratory: &mut Laboratory) -> Result<String> {
    // Two agents of one node would answer for each other.
    if laboratory.aggregator.is_some() {
        bail!("this check has to run before agents are started");
    }
    let flags = ["--insecure-agents", "--insecure-readers"];
    let aggregator = Aggregator::start(laboratory.programs()?, &laboratory.hub, &flags)?;
    laboratory.aggregator = Some(aggregator);
    let took: Result<Vec<Duration>> = Mode::ALL
        .into_iter()
        .map(|mode| in_mode(laboratory, mode))
        .collect();
    laboratory.aggregator = None;
    let took = took?;
    Ok(format!(
        "reported {:.1?} and {:.1?} after a restart without any Service address",
        took[0], took[1]
    ))
}

fn in_mode(laboratory: &mut Laboratory, mode: Mode) -> Result<Duration> {
    let at = laboratory
        .stations
        .iter()
        .rposition(|station| station.proxy.spec().mode == mode)
        .context("a station of each mode")?;
    let took = on_station(laboratory, at).with_context(|| format!("in mode {}", mode.name()));
    let Station { proxy, node, .. } = &mut laboratory.stations[at];
    proxy.restart()?;
    proxy.wait_synced(node, Duration::from_secs(120))?;
    wait::until("the Service address to work again", LIMIT, || {
        Ok(reaches(&laboratory.stations[at])?.then_some(()))
    })?;
    took
}

fn on_station(laboratory: &mut Laboratory, at: usize) -> Result<Duration> {
    let state = Folder::create("lifeline")?;
    let kept = state.join("api-server");
    let api_server = SocketAddr::new(IpAddr::V4(HUB_V4), API_PORT);
    let learnt = format!("{api_server}\n");
    let name = laboratory.stations[at].node.name().to_owned();

    let mut agent = start(laboratory, &laboratory.stations[at], &state)?;
    agent.until(
        "the addresses of the API server in the state directory",
        LIMIT,
        || Ok((std::fs::read_to_string(&kept).ok().as_ref() == Some(&learnt)).then_some(())),
    )?;
    agent.until("a report", LIMIT, || report(laboratory, &name, None))?;

    let Station { proxy, node, .. } = &mut laboratory.stations[at];
    proxy.kill()?;
    let tables = match proxy.spec().mode {
        Mode::IptablesNft => [("ip", "nat"), ("ip6", "nat")],
        Mode::Nftables => [("ip", "kube-proxy"), ("ip6", "kube-proxy")],
        Mode::IptablesLegacy => bail!("a table of iptables-legacy cannot be deleted"),
    };
    for (family, table) in tables {
        node.netns()
            .run("nft", ["delete", "table", family, table])?;
    }
    if reaches(&laboratory.stations[at])? {
        bail!("{SERVICE}:{SERVICE_PORT} still works: nothing is proved");
    }

    agent.kill()?;
    let text = std::fs::read_to_string(&kept)?;
    if text != learnt
        || std::fs::read_dir(state.path())?
            .flatten()
            .any(|f| f.path().extension().is_some_and(|e| e == "new"))
    {
        bail!("after a kill the state directory holds {text:?}");
    }
    // Also an address of an API server that is gone, and a line that is none.
    std::fs::write(&kept, format!("rubbish\n10.77.0.254:{API_PORT}\n{learnt}"))?;

    let began = Instant::now();
    let mut agent = start(laboratory, &laboratory.stations[at], &state)?;
    agent.until(
        "a report, newer than the restart, against a current view of the API",
        LIMIT,
        || {
            report(
                laboratory,
                &name,
                Some((began, laboratory.stations[at].proxy.spec().mode)),
            )
        },
    )?;
    let took = began.elapsed();
    agent.stop()?;

    // Without what was kept there is no way: it was the state directory that helped.
    let empty = Folder::create("lifeline")?;
    let mut lost = start(laboratory, &laboratory.stations[at], &empty)?;
    lost.until("word that the API server cannot be reached", LIMIT, || {
        Ok(std::fs::read_to_string(empty.join("agent.log"))?
            .contains("lost")
            .then_some(()))
    })?;
    lost.stop()?;
    Ok(took)
}

/// What the aggregator knows of the node: with `restarted`, a reading since then, against the API of since
/// then, that finds the hooks missing.
fn report(
    laboratory: &Laboratory,
    node: &str,
    restarted: Option<(Instant, Mode)>,
) -> Result<Option<()>> {
    let answer = laboratory.aggregated(&format!("/nodes/{node}"))?;
    let age = |key: &str| answer["data"][key].as_f64();
    let (Some(read), Some(api)) = (age("age_seconds"), age("api_view_age_seconds")) else {
        return Ok(None);
    };
    let Some((restarted, mode)) = restarted else {
        return Ok(Some(()));
    };
    let since = restarted.elapsed().as_secs_f64();
    if read >= since || api >= since || answer["data"]["connected"] != true {
        bail!("not since the restart {since:.1} s ago: {answer}");
    }
    if mode == Mode::Nftables {
        // Nothing of kube-proxy is left in the kernel, and it does not run: to an agent that has
        // just begun this is a node that nobody has programmed yet, and it says so.
        let gaps = answer["gap_list"].to_string();
        if !gaps.contains("no datapath has programmed") || !gaps.contains("it is given ") {
            bail!("neither what is awaited nor for how long: {answer}");
        }
        return Ok(Some(()));
    }
    let findings = answer["findings"]
        .as_array()
        .context("findings are a list")?;
    if !findings
        .iter()
        .any(|finding| finding["kind"] == "hooks_missing")
    {
        bail!("no hooks_missing: {answer}");
    }
    Ok(Some(()))
}

/// Whether the node connects to the API server's Service address.
fn reaches(station: &Station) -> Result<bool> {
    let address: SocketAddr = format!("{SERVICE}:{SERVICE_PORT}").parse()?;
    station
        .node
        .netns()
        .enter(|| TcpStream::connect_timeout(&address, Duration::from_secs(3)).is_ok())
}

/// An agent that finds the API server as a Pod does: by two variables and the ServiceAccount's files,
/// which only it sees (`ip netns exec` gives it mounts of its own).
fn start(laboratory: &Laboratory, station: &Station, state: &Folder) -> Result<Process> {
    let kubeconfig = std::fs::read(laboratory.cluster.kubeconfig(User::Admin)?)?;
    let kubeconfig: serde_json::Value = serde_json::from_slice(&kubeconfig)?;
    let token = kubeconfig["users"][0]["user"]["token"]
        .as_str()
        .context("the kubeconfig has a token")?;
    let authority = laboratory.cluster.authority().certificate();
    let script = "set -e; mount -t tmpfs none /run; d=/run/secrets/kubernetes.io/serviceaccount; mkdir -p $d; \
                  cp \"$1\" $d/ca.crt; printf %s \"$2\" > $d/token; printf default > $d/namespace; shift 2; exec \"$@\"";
    let agent = laboratory.programs()?.agent.display().to_string();
    let mut arguments = vec![
        "-c".to_owned(),
        script.into(),
        "sh".into(),
        authority.display().to_string(),
        token.into(),
        "setpriv".into(),
    ];
    arguments.extend(PRIVILEGES.map(str::to_owned));
    arguments.extend([
        agent,
        "run".into(),
        "--node".into(),
        station.node.name().into(),
    ]);
    arguments.extend(["--aggregator".into(), AGGREGATOR_GRPC.to_string()]);
    arguments.extend(["--state-dir".into(), state.path().display().to_string()]);
    arguments.extend([
        "--socket".into(),
        state.join("agent.sock").display().to_string(),
    ]);
    let mut command: Command = station.node.netns().command("sh", arguments);
    command
        .env("KUBERNETES_SERVICE_HOST", SERVICE)
        .env("KUBERNETES_SERVICE_PORT", SERVICE_PORT.to_string())
        .env_remove("KUBECONFIG");
    Process::start("vipwitness-agent", command, &state.join("agent.log"))
}
