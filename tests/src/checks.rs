//! What the kernel and cluster tiers prove besides the tests that `cargo test` runs: each check is
//! a function that returns what it measured, or an error that says what does not hold.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::json;

use crate::agents::{Asked, Programs};
use crate::cache::Version;
use crate::chart;
use crate::churn;
use crate::demo;
use crate::faults;
use crate::flow;
use crate::ipvs;
use crate::laboratory::{Laboratory, patch_all};
use crate::lifeline;
use crate::netns::Netns;
use crate::objects;
use crate::oracle;
use crate::packets;
use crate::prometheus;
use crate::proxy::Mode;
use crate::recording::Recording;
use crate::topology::Hub;

/// One check.
#[derive(Debug, Clone, Copy)]
pub struct Check {
    /// Its name: what `cargo lab test --only` takes.
    pub name: &'static str,
    /// What it does.
    pub run: Run,
}

/// What a check needs, and with that its tier.
#[derive(Debug, Clone, Copy)]
pub enum Run {
    /// Namespaces only.
    Kernel(fn() -> Result<String>),
    /// The shared laboratory; each leaves it as it found it.
    Cluster(fn(&mut Laboratory) -> Result<String>),
    /// A laboratory with one node for each mode. Those that need it come last.
    Small(fn(&mut Laboratory) -> Result<String>),
    /// A cluster that it makes itself.
    Alone(fn() -> Result<String>),
}

/// Every check, in the order in which they run.
pub const ALL: &[Check] = &[
    kernel("drifts_heal", demo::drifts_heal),
    kernel("recordings_agree", recordings_agree),
    kernel("legacy_recordings_agree", legacy_recordings_agree),
    kernel("demonstration", demonstration),
    kernel("alerts_are_tested", prometheus::alerts_are_tested),
    kernel("alerts_fire", prometheus::alerts_fire),
    // Before agents are started.
    cluster("restarts_with_empty_nat", lifeline::restarts_with_empty_nat),
    cluster("tokens_name_their_node", tokens_name_their_node),
    cluster("real_proxies_agree", real_proxies_agree),
    cluster("faults_are_found", faults::faults_are_found),
    cluster("proxies_are_the_oracle", oracle::proxies_are_the_oracle),
    cluster("packets_are_the_oracle", packets::packets_are_the_oracle),
    cluster("tokens_are_verified", crate::tokens::tokens_are_verified),
    cluster("chart_is_the_manifests", chart::chart_is_the_manifests),
    cluster("deploy_is_accepted", deploy_is_accepted),
    small("the_flow_names_the_step", flow::the_flow_names_the_step),
    small("churn_is_not_drift", churn::churn_is_not_drift),
];

/// Checks that run only by name, with `cargo lab test --only NAME`: most are written and have not
/// been seen to pass whole yet, and `faults_are_real` is for whoever changes the table of faults.
pub const UNPROVEN: &[Check] = &[
    cluster("faults_are_real", faults::faults_are_real),
    alone("ipvs_is_judged", ipvs::ipvs_is_judged),
    cluster(
        "faults_are_found_among_many",
        faults::faults_are_found_among_many,
    ),
];

const fn kernel(name: &'static str, run: fn() -> Result<String>) -> Check {
    let run = Run::Kernel(run);
    Check { name, run }
}

const fn alone(name: &'static str, run: fn() -> Result<String>) -> Check {
    let run = Run::Alone(run);
    Check { name, run }
}

const fn cluster(name: &'static str, run: fn(&mut Laboratory) -> Result<String>) -> Check {
    let run = Run::Cluster(run);
    Check { name, run }
}

const fn small(name: &'static str, run: fn(&mut Laboratory) -> Result<String>) -> Check {
    let run = Run::Small(run);
    Check { name, run }
}

/// `check --manifests` finds nothing wrong with what real kube-proxies wrote, in any recording.
fn recordings_agree() -> Result<String> {
    recordings_agree_in(&Mode::ALL)
}

/// The same for what they would have written with iptables-legacy.
fn legacy_recordings_agree() -> Result<String> {
    recordings_agree_in(&[Mode::IptablesLegacy])
}

fn recordings_agree_in(modes: &[Mode]) -> Result<String> {
    let programs = Programs::build()?;
    let hub = Hub::create()?;
    let mut pairs = 0;
    for version in Version::ALL {
        for &mode in modes {
            let recording = Recording::of(version, mode);
            let place = recording.place()?;
            let node = hub.add_node_at(&place.name, place.index)?;
            recording.load(node.netns())?;
            let asked = check_recording(&programs, &recording, node.netns(), &place.name)?;
            pairs += agrees(&place.name, &asked)?;
        }
    }
    let recordings = Version::ALL.len() * modes.len();
    Ok(format!(
        "{pairs} pairs of frontend and source judged over {recordings} recordings, no finding"
    ))
}

fn check_recording(
    programs: &Programs,
    recording: &Recording,
    netns: &Netns,
    name: &str,
) -> Result<Asked> {
    let manifests = recording.manifests();
    let configuration = recording.configuration();
    programs.ask(
        netns,
        &[
            "check",
            "--node",
            name,
            "--manifests",
            &manifests.to_string_lossy(),
            "--kube-proxy-config",
            &configuration.to_string_lossy(),
            "--proxy-version",
            recording.version.minor(),
        ],
    )
}

/// An error unless `check` found nothing and judged something; how many pairs it judged.
fn agrees(node: &str, asked: &Asked) -> Result<u64> {
    let pairs = asked.json["judged"]["pairs"].as_u64().unwrap_or_default();
    if asked.code != 0 {
        bail!(
            "{node}: check gives {}: {}\n{:#}\n{}",
            asked.code,
            asked.json["verdict"],
            asked.json["findings"],
            asked.stderr
        );
    }
    if pairs == 0 {
        bail!("{node}: check judged nothing:\n{:#}", asked.json["judged"]);
    }
    Ok(pairs)
}

/// Everything that `cargo lab` shows happens, once.
fn demonstration() -> Result<String> {
    demo::run(demo::End::Once)?;
    Ok("each drift was found and cleared".to_owned())
}

/// A token bound to a Pod, with the aggregator's audience, proves the node to a TokenReview; the API
/// server itself does not take it.
fn tokens_name_their_node(laboratory: &mut Laboratory) -> Result<String> {
    let cluster = &laboratory.cluster;
    let node = laboratory.stations[0].node.name();
    cluster.create_namespace("tokens")?;
    cluster.api.create(&json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "agent", "namespace": "tokens"},
        "spec": {"nodeName": node, "serviceAccountName": "default", "containers": [{"name": "agent", "image": "agent"}]},
    }))?;
    let token = cluster.token("tokens", "default", &["vipwitness"], Some("agent"))?;
    let review = |audiences: &[&str]| {
        cluster.api.create(&json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "metadata": {},
            "spec": {"token": token, "audiences": audiences},
        }))
    };
    let status = review(&["vipwitness"])?["status"].clone();
    let claimed = &status["user"]["extra"]["authentication.kubernetes.io/node-name"][0];
    if status["authenticated"] != true || claimed != node {
        bail!("the token does not name {node}: {status:#}");
    }
    if review(&[])?["status"]["authenticated"] == true {
        bail!("the API server takes a token that is meant for the aggregator");
    }
    cluster.api.delete("/api/v1/namespaces/tokens")?;
    Ok(format!("{} names {claimed}", status["user"]["username"]))
}

/// The small set of Services, programmed by real kube-proxies, settles to no finding.
fn real_proxies_agree(laboratory: &mut Laboratory) -> Result<String> {
    laboratory.cluster.create_namespace(objects::NAMESPACE)?;
    laboratory
        .cluster
        .api
        .create_all(&objects::small(&laboratory.nodes()))?;
    patch_all(&laboratory.cluster.api, objects::small_statuses())?;
    laboratory.wait_programmed(&objects::small_words(), Duration::from_secs(60))?;
    let mut pairs = 0;
    for station in &laboratory.stations {
        pairs += agrees(station.node.name(), &laboratory.check(station)?)?;
    }
    laboratory.empty_namespace(objects::NAMESPACE)?;
    let nodes = laboratory.stations.len();
    Ok(format!("{pairs} pairs judged on {nodes} nodes, no finding"))
}

/// The API server takes the manifests of deploy/, and the agents that run with them find both replicas
/// of the aggregator by the EndpointSlices, and report to both. One that is started again where it does
/// not reach the API server still does.
fn deploy_is_accepted(laboratory: &mut Laboratory) -> Result<String> {
    if laboratory.installation.is_none() {
        laboratory.start_agents()?;
    }
    let names: Vec<String> = laboratory
        .nodes()
        .iter()
        .map(|node| node.name().to_owned())
        .collect();
    let limit = Duration::from_secs(60);
    let both = [&laboratory.aggregator, &laboratory.second];
    let both: Vec<_> = both.into_iter().flatten().collect();
    for (number, replica) in both.iter().enumerate() {
        let what = format!("a report from every node at replica {number}");
        let all = crate::wait::until(&what, limit, || {
            for name in &names {
                let path = format!("/nodes/{name}");
                if replica.json(&laboratory.hub, &path)?["data"]["connected"] != true {
                    return Ok(None);
                }
            }
            Ok(Some(()))
        });
        if let Err(error) = all {
            let path = "/apis/discovery.k8s.io/v1/namespaces/vipwitness/endpointslices";
            let slices = laboratory.cluster.api.get(path)?;
            let agent = laboratory.stations[0].agent.as_mut();
            let log = agent.map(|agent| agent.process().log_tail());
            bail!(
                "{error:#}\n{}\n{}",
                slices["items"],
                log.unwrap_or_default()
            );
        }
    }

    // The log goes on in the same file.
    let programs = laboratory.programs()?.clone();
    let station = &mut laboratory.stations[0];
    let mut agent = station.agent.take().context("its agent was started")?;
    let log = agent.process().log().to_owned();
    let connected = || -> Result<usize> {
        let text = std::fs::read_to_string(&log)?;
        Ok(text.matches("uplink: connected aggregator=").count())
    };
    let before = connected()?;
    let flags = ["--api-server", "https://10.77.0.254:6443"];
    let mut agent = agent.restart(&programs, &station.node, &flags)?;
    agent
        .process()
        .until("both replicas again, without the API", limit, || {
            Ok((connected()? >= before + both.len()).then_some(()))
        })?;
    // Later checks need one that hears of the API.
    station.agent = Some(agent.restart(&programs, &station.node, &[])?);
    Ok(format!(
        "{} agents report to {} replicas with their own tokens; one did again without the API server",
        names.len(),
        both.len()
    ))
}
