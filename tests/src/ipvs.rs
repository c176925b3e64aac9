//! kube-proxy in IPVS mode, in a kernel that has IPVS: the oracle, and a table of faults.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::agents::{Asked, Programs};
use crate::cache::{self, Version};
use crate::cluster::{Cluster, User};
use crate::generate::{self, NAMESPACES, Place};
use crate::ipvs_faults::{self, Fault};
use crate::laboratory::patch_all;
use crate::oracle::{self, brief, serious, setting};
use crate::packages;
use crate::topology::{CLUSTER_CIDR, Hub, Node};
use crate::uml::Guest;

/// How long the guest, one slow core, may take for one thing.
const LIMIT: Duration = Duration::from_secs(600);
/// Of all pairs of frontend and source, so many have to be judged.
const JUDGED_SHARE: f64 = 0.99;
/// Findings that are printed before the rest is only counted.
const SHOWN: usize = 20;
/// Endpoints of the Service that is posted last.
const MARKERS: [&str; 2] = ["10.244.254.254", "fd00:244::fefe:fefe"];
/// The version of kube-proxy, by its minor.
const VERSION: &str = "LAB_IPVS_VERSION";

/// A real kube-proxy in IPVS mode, hundreds of Services and not one finding; then twenty and more
/// faults at once, each found as what it is, and near misses that stay silent.
pub fn ipvs_is_judged() -> Result<String> {
    let programs = Programs::build()?;
    packages::ensure(packages::CLUSTER)?;
    let version = setting(VERSION, 37);
    let all = Version::ALL.into_iter();
    let version = all
        .into_iter()
        .find(|v| v.minor() == format!("1.{version}"))
        .with_context(|| format!("{VERSION}: no kube-proxy 1.{version}"))?;
    let hub = Hub::create()?;
    let cluster = Cluster::start(&hub)?;
    cluster.freeze_controllers(true)?;
    let node = hub.add_node("ipvs")?;
    let other = hub.add_node("other")?;
    for node in [&node, &other] {
        let zone = generate::zone(usize::from(node.index()));
        cluster.create_node(node, &[("topology.kubernetes.io/zone", &zone)])?;
    }
    let start = Instant::now();
    let mut guest = Guest::boot(&hub, &node)?;
    println!("\nbooted in {:.1} s", start.elapsed().as_secs_f32());
    start_proxy(&mut guest, &cluster, &node, version)?;

    let says = judge_generated(&mut guest, &cluster, &programs, [&node, &other])?;
    let faults = judge_faults(&mut guest, &cluster, &programs, &node, version)?;
    Ok(format!("kube-proxy {}: {says}; {faults}", version.full()))
}

/// Starts kube-proxy in the guest.
fn start_proxy(guest: &mut Guest, cluster: &Cluster, node: &Node, version: Version) -> Result<()> {
    let program = cache::kubernetes("kube-proxy", version)?;
    let kubeconfig = cluster.kubeconfig(User::KubeProxy)?;
    let mut links = String::new();
    for family in ["iptables", "ip6tables"] {
        for end in ["", "-save", "-restore"] {
            let target = packages::find(&format!("{family}-legacy{end}"))
                .context("iptables is not installed")?;
            links += &format!("ln -s {} bin/{family}{end}\n", target.display());
        }
    }
    // It looks for modules by modprobe, in places that the guest has not.
    links += "ln -s /bin/true bin/modprobe\n";
    guest.must(
        &format!(
            "set -e\nmkdir bin\n{links}export PATH=$PWD/bin:$PATH\n\
             nohup {} --kubeconfig={} --proxy-mode=ipvs --hostname-override={} \
             --cluster-cidr={CLUSTER_CIDR} --conntrack-max-per-core=0 \
             --conntrack-tcp-timeout-established=0 --conntrack-tcp-timeout-close-wait=0 \
             --metrics-bind-address=127.0.0.1:10249 --healthz-bind-address=127.0.0.1:10256 \
             >kube-proxy.log 2>&1 </dev/null &\necho $! >kube-proxy.pid\n",
            program.display(),
            kubeconfig.display(),
            node.name(),
        ),
        LIMIT,
    )?;
    Ok(())
}

/// Waits in the guest until there are real servers with these addresses, some of each family, and then
/// until the syncs that wrote them have ended: sets and rules are written last, a program started for
/// each member of a set.
fn wait_programmed(guest: &mut Guest, real: &[&str]) -> Result<()> {
    let servers: Vec<String> = real
        .iter()
        .map(|address| format!("grep -qF '{address}' servers"))
        .collect();
    let script = format!(
        "wait_for() {{ for i in $(seq 1000); do if \"$@\"; then return; fi; sleep 0.5; done\n\
           tail -20 servers kube-proxy.log; exit 1; }}\n\
         programmed() {{ ipvsadm -Ln >servers; {}; }}\n\
         ended() {{ curl -fsS http://127.0.0.1:10249/metrics |\n\
           grep '^kubeproxy_sync_proxy_rules_last_timestamp_seconds' | sort >$1; }}\n\
         later() {{ ended now; join -a2 -e0 -o 0,1.2,2.2 before now |\n\
           awk '$3 + 0 > $2 + 0 {{ n++ }} END {{ exit n != 2 }}'; }}\n\
         wait_for programmed\n\
         ended before\n\
         wait_for later\n",
        servers.join(" && ")
    );
    guest
        .must(&script, LIMIT)
        .context("waiting for kube-proxy's rules")?;
    Ok(())
}

/// Posts generated Services and holds the verdict against the real kube-proxy's servers and sets.
fn judge_generated(
    guest: &mut Guest,
    cluster: &Cluster,
    programs: &Programs,
    nodes: [&Node; 2],
) -> Result<String> {
    let seed = setting("LAB_SEED", generate::SEED);
    let count = usize::try_from(setting("LAB_SERVICES", 300))?;
    let places = nodes.map(Place::of);
    let generated = generate::generate(seed, count, &places);
    println!(
        "seed {seed}: {count} Services, {} slices",
        generated.slices.len()
    );
    let start = Instant::now();
    for namespace in NAMESPACES {
        // Its ServiceAccount is not waited for: the controllers are frozen, and no Pod is made.
        cluster.api.create(
            &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}),
        )?;
    }
    oracle::post_to(&cluster.api, &generated.services)?;
    patch_all(&cluster.api, generated.statuses.clone())?;
    oracle::post_to(&cluster.api, &generated.slices)?;
    oracle::post_to(&cluster.api, &oracle::marker())?;
    wait_programmed(guest, &MARKERS)?;
    println!("programmed after {:.1} s", start.elapsed().as_secs_f32());

    let kubeconfig = cluster.kubeconfig(User::Admin)?;
    let source = format!("--kubeconfig {}", kubeconfig.display());
    let start = Instant::now();
    let asked = ask(guest, programs, nodes[0], &source)?;
    let seconds = start.elapsed().as_secs_f32();
    let judged = &asked.json["judged"];
    let number = |name: &str| judged[name].as_u64().unwrap_or_default();
    let (pairs, unknown, aside) = (number("pairs"), number("unknown"), number("not_comparable"));
    let share = pairs as f64 / (pairs + unknown).max(1) as f64;
    println!(
        "{pairs} pairs judged, {unknown} unknown, {aside} not comparable, {:.2} % judged, {} against \
         several answers, {seconds:.1} s",
        share * 100.0,
        number("multi_answer"),
    );
    for reasons in ["unknown_reasons", "not_comparable_reasons"] {
        println!("    {reasons}: {}", judged[reasons]);
    }
    println!("    datapaths: {}", asked.json["datapaths"]);
    let wrong: Vec<String> = ["findings", "converging"]
        .iter()
        .flat_map(|list| serious(&asked, list))
        .map(|finding| brief(&finding))
        .collect();
    if asked.code != 0 || !wrong.is_empty() || pairs == 0 || share < JUDGED_SHARE {
        bail!(
            "check gives {}: {}; {} findings, {:.2} % judged\n{}\n{}",
            asked.code,
            asked.json["verdict"],
            wrong.len(),
            share * 100.0,
            wrong[..wrong.len().min(SHOWN)].join("\n"),
            asked.stderr
        );
    }
    Ok(format!(
        "{pairs} pairs of {count} Services, {:.2} % judged, no finding",
        share * 100.0
    ))
}

/// `check` in the guest.
fn ask(guest: &mut Guest, programs: &Programs, node: &Node, source: &str) -> Result<Asked> {
    let script = format!(
        "{} check --node {} {source} --wait 120s --output json\n",
        programs.agent().display(),
        node.name()
    );
    let done = guest.run(&script, LIMIT)?;
    let json = serde_json::from_str(&done.stdout)
        .with_context(|| format!("reading its JSON: {}\n{}", done.code, done.stderr))?;
    Ok(Asked {
        code: done.code,
        json,
        stderr: done.stderr,
    })
}

/// Plants every fault at once behind the back of a kube-proxy that is stopped, and compares what is found
/// with what has to be.
fn judge_faults(
    guest: &mut Guest,
    cluster: &Cluster,
    programs: &Programs,
    node: &Node,
    version: Version,
) -> Result<String> {
    let faults = ipvs_faults::all();
    let objects = ipvs_faults::objects(node.name());
    oracle::post_to(&cluster.api, &objects)?;
    patch_all(&cluster.api, ipvs_faults::statuses())?;
    wait_programmed(guest, &ipvs_faults::LAST)?;
    let configuration = guest.must(
        "curl -fsS http://127.0.0.1:10249/configz\nkill $(cat kube-proxy.pid)\n",
        LIMIT,
    )?;
    let at = |name: &str| guest.folder().join(name);
    let (config, manifests) = (at("configz.json"), at("objects.json"));
    std::fs::write(&config, configuration)?;
    let items = oracle::objects_of(&cluster.api)?;
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
    std::fs::write(&manifests, serde_json::to_vec(&list)?)?;
    let source = format!(
        "--manifests {} --kube-proxy-config {} --proxy-version {}",
        manifests.display(),
        config.display(),
        version.minor()
    );
    // Nothing is wrong before: what is found later is what was planted.
    let before = ask(guest, programs, node, &source)?;
    let found = serious(&before, "findings");
    if before.code != 0 {
        let all: Vec<String> = found.iter().map(brief).collect();
        bail!(
            "before any fault, check gives {}:\n{}",
            before.code,
            all.join("\n")
        );
    }
    for fault in &faults {
        let script = format!("set -e\n{}\n", fault.plant);
        guest
            .must(&script, LIMIT)
            .with_context(|| format!("planting {}", fault.name))?;
    }
    let after = ask(guest, programs, node, &source)?;
    let mut found = serious(&after, "findings");
    let mut wrong = Vec::new();
    for fault in &faults {
        if let Err(error) = take(fault, &mut found) {
            wrong.push(format!("{error:#}"));
        }
    }
    wrong.extend(found.iter().map(|f| format!("not planted: {}", brief(f))));
    let planted = faults.iter().filter(|f| !f.expected.is_empty()).count();
    let misses = faults.len() - planted;
    if !wrong.is_empty() {
        bail!("check gives {}:\n{}", after.code, wrong.join("\n"));
    }
    Ok(format!(
        "{planted} faults found with kind and evidence, {misses} near misses silent"
    ))
}

/// Takes the findings of a fault out of `found`; an error where one is missing or without its evidence.
fn take(fault: &Fault, found: &mut Vec<Value>) -> Result<()> {
    for (kind, frontend, evidence) in fault.expected {
        let same = |f: &Value| match *frontend {
            "" => f["frontend"].is_null(),
            frontend => f["frontend"] == frontend,
        };
        let about = |f: &Value| f["kind"] == *kind && same(f);
        let fits = |f: &Value| about(f) && f.to_string().contains(evidence);
        if !found.iter().any(fits) {
            let others: Vec<String> = found
                .iter()
                .filter(|f| about(f))
                .map(Value::to_string)
                .collect();
            bail!(
                "{}: no {kind} of {frontend:?} with {evidence:?}, but {others:?}",
                fault.name
            );
        }
        // Each source may have one of its own.
        found.retain(|f| !fits(f));
    }
    Ok(())
}
