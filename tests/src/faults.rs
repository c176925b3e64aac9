//! Faults, each planted on all nodes at once: found in time, with the right kind, and nothing
//! else; cleared in time after healing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::faults_plant::{Snapshot, plant};
use crate::laboratory::{Laboratory, Station, patch_all};
use crate::oracle::brief;
use crate::proxy::Mode;
use crate::{oracle, wait};

/// The namespace of the Services that are damaged.
pub(crate) const NAMESPACE: &str = "faults";
/// External damage is a finding within 10 s.
const FOUND_LIMIT: Duration = Duration::from_secs(10);
/// Staleness of a dead or frozen kube-proxy is one after its own deadline (twice its sync period and some).
const STALE_LIMIT: Duration = Duration::from_secs(100);
/// Cleared within 10 s of healing.
const CLEAR_LIMIT: Duration = Duration::from_secs(10);
/// Waiting goes on for so long after a limit, so that "late" can be told from "never".
const PATIENCE: Duration = Duration::from_secs(30);
/// The first pass of nine agents on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(180);

/// What is done to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "FAULTS names each")]
pub(crate) enum Damage {
    BackendDeleted,
    EndpointEmptied,
    BackendAdded,
    FrontendDeleted,
    FrontendAdded,
    ShareChanged,
    AffinityRemoved,
    RangeWidened,
    MasqueradeDeleted,
    RejectRemoved,
    DropRemoved,
    PreroutingJumpRemoved,
    OutputJumpRemoved,
    TableDeleted,
    ForeignDnat,
    KilledEndpointRemoved,
    KilledServiceDeleted,
    FrozenEndpointsChanged,
}

/// One line of the fault table.
pub(crate) struct Fault {
    pub(crate) name: &'static str,
    pub(crate) damage: Damage,
    /// Kinds of which one has to be there; no other may be.
    kinds: &'static [&'static str],
    /// The only Service that findings may name; none: findings about the whole node.
    service: Option<&'static str>,
    /// Words of which one has to stand in the evidence or the sentence.
    evidence: &'static [&'static str],
}

/// Those that a kube-proxy which goes on syncing leaves as they are, at least in one mode.
pub(crate) const DURING_CHURN: [Damage; 4] = [
    Damage::ForeignDnat,
    Damage::PreroutingJumpRemoved,
    Damage::FrontendDeleted,
    Damage::OutputJumpRemoved,
];

const FAULTS: &[Fault] = &[
    Fault {
        name: "backend rule deleted",
        damage: Damage::BackendDeleted,
        kinds: &["missing_backend"],
        service: Some("faults/web"),
        evidence: &["KUBE-SVC-", "service-"],
    },
    Fault {
        name: "endpoint chain emptied",
        damage: Damage::EndpointEmptied,
        kinds: &["missing_backend", "wrong_action"],
        service: Some("faults/sticky"),
        evidence: &["KUBE-SEP-", "endpoint-", "KUBE-SVC-", "service-"],
    },
    Fault {
        name: "backend added",
        damage: Damage::BackendAdded,
        kinds: &["stale_backend"],
        service: Some("faults/web"),
        evidence: &["KUBE-SVC-", "service-"],
    },
    Fault {
        name: "frontend deleted",
        damage: Damage::FrontendDeleted,
        kinds: &["missing_frontend", "wrong_action"],
        service: Some("faults/web"),
        evidence: &["KUBE-SERVICES", "service-ips", "cluster-ips"],
    },
    Fault {
        name: "frontend added",
        damage: Damage::FrontendAdded,
        kinds: &["stale_frontend"],
        service: Some("faults/web"),
        evidence: &["KUBE-SERVICES", "service-ips"],
    },
    Fault {
        name: "share changed",
        damage: Damage::ShareChanged,
        kinds: &["wrong_share"],
        service: Some("faults/web"),
        evidence: &["KUBE-SVC-", "service-"],
    },
    Fault {
        name: "affinity removed",
        damage: Damage::AffinityRemoved,
        kinds: &["wrong_affinity"],
        service: Some("faults/sticky"),
        evidence: &["KUBE-SVC-", "service-", "KUBE-SEP-", "endpoint-"],
    },
    Fault {
        name: "source range widened",
        damage: Damage::RangeWidened,
        kinds: &["wrong_source_ranges"],
        service: Some("faults/ranges"),
        evidence: &["KUBE-FW-", "KUBE-PROXY-FIREWALL", "firewall-"],
    },
    Fault {
        name: "masquerade rule deleted",
        damage: Damage::MasqueradeDeleted,
        kinds: &["wrong_masquerade"],
        service: Some("faults/node"),
        evidence: &["KUBE-EXT-", "external-", "KUBE-POSTROUTING", "masquerading"],
    },
    Fault {
        name: "reject removed",
        damage: Damage::RejectRemoved,
        kinds: &["wrong_action", "missing_frontend"],
        service: Some("faults/empty"),
        evidence: &["KUBE-EXTERNAL-SERVICES", "no-endpoint-nodeports"],
    },
    Fault {
        name: "drop removed",
        damage: Damage::DropRemoved,
        kinds: &["wrong_action", "missing_frontend"],
        service: Some("faults/local"),
        evidence: &["KUBE-EXTERNAL-SERVICES", "no-endpoint-nodeports"],
    },
    Fault {
        name: "PREROUTING jump removed",
        damage: Damage::PreroutingJumpRemoved,
        kinds: &["hooks_missing"],
        service: None,
        evidence: &["PREROUTING", "nat-prerouting", "prerouting"],
    },
    Fault {
        name: "OUTPUT jump removed",
        damage: Damage::OutputJumpRemoved,
        kinds: &["hooks_missing"],
        service: None,
        evidence: &["OUTPUT", "nat-output", "output"],
    },
    Fault {
        name: "table deleted",
        damage: Damage::TableDeleted,
        kinds: &["hooks_missing"],
        service: None,
        evidence: &["nat", "kube-proxy"],
    },
    Fault {
        name: "foreign DNAT in front",
        damage: Damage::ForeignDnat,
        kinds: &["foreign_rule"],
        service: None,
        evidence: &["intruder", "iptables-legacy"],
    },
    Fault {
        name: "kube-proxy killed, endpoint removed",
        damage: Damage::KilledEndpointRemoved,
        kinds: &["proxy_not_running", "proxy_stuck", "stale_backend"],
        service: Some("faults/web"),
        evidence: &[""],
    },
    Fault {
        name: "kube-proxy killed, Service deleted",
        damage: Damage::KilledServiceDeleted,
        kinds: &["proxy_not_running", "proxy_stuck", "stale_frontend"],
        service: Some("faults/gone"),
        evidence: &[""],
    },
    Fault {
        name: "kube-proxy frozen, endpoints changed",
        damage: Damage::FrozenEndpointsChanged,
        kinds: &[
            "proxy_not_running",
            "proxy_stuck",
            "stale_backend",
            "missing_backend",
        ],
        service: Some("faults/web"),
        evidence: &[""],
    },
];

impl Fault {
    /// The line of the table.
    pub(crate) fn of(damage: Damage) -> Option<&'static Fault> {
        FAULTS.iter().find(|fault| fault.damage == damage)
    }

    /// Is the finding what the damage should give?
    pub(crate) fn expects(&self, finding: &Value) -> bool {
        let kind = finding["kind"].as_str().unwrap_or_default();
        let service = finding["service"].as_str();
        let text = finding.to_string();
        self.kinds.contains(&kind)
            && (service.is_none() || service == self.service)
            && self.evidence.iter().any(|word| text.contains(word))
    }
}

impl Damage {
    /// Done through kube-proxy and the API instead of to the rules.
    fn is_staleness(self) -> bool {
        matches!(
            self,
            Damage::KilledEndpointRemoved
                | Damage::KilledServiceDeleted
                | Damage::FrozenEndpointsChanged
        )
    }
}

/// The Services that are damaged, with their slices. Addresses and node ports are those that
/// [`crate::faults_plant`] names.
pub(crate) fn objects() -> Vec<Value> {
    let service = |name: &str, address: u8, mut spec: Value, node_port: Option<u16>| {
        spec["clusterIP"] = json!(format!("10.96.200.{address}"));
        spec["ports"] = json!([{"port": 80, "targetPort": 8080, "protocol": "TCP"}]);
        if let Some(node_port) = node_port {
            spec["ports"][0]["nodePort"] = json!(node_port);
        }
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec})
    };
    vec![
        service("web", 1, json!({}), None),
        slice("web", &[1, 2, 3]),
        service(
            "sticky",
            2,
            json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 600}}}),
            None,
        ),
        slice("sticky", &[11, 12]),
        service(
            "ranges",
            3,
            json!({"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false, "loadBalancerSourceRanges": ["203.0.113.0/24"]}),
            None,
        ),
        slice("ranges", &[21]),
        service("empty", 4, json!({"type": "NodePort"}), Some(32_104)),
        service(
            "local",
            5,
            json!({"type": "NodePort", "externalTrafficPolicy": "Local"}),
            Some(32_105),
        ),
        slice("local", &[31]),
        service("node", 6, json!({"type": "NodePort"}), Some(32_106)),
        slice("node", &[41, 42]),
        service("gone", 7, json!({}), None),
        slice("gone", &[51, 52]),
    ]
}

fn slice(service: &str, numbers: &[u8]) -> Value {
    let endpoints: Vec<Value> = numbers
        .iter()
        .map(|number| {
            json!({
                "addresses": [format!("10.244.230.{number}")], "nodeName": "elsewhere",
                "conditions": {"ready": true, "serving": true, "terminating": false},
            })
        })
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": service, "namespace": NAMESPACE, "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4", "ports": [{"name": "", "port": 8080, "protocol": "TCP"}], "endpoints": endpoints,
    })
}

/// Starts aggregator and agents unless an earlier check did, and waits until every agent reports
/// that its node agrees.
pub(crate) fn agents(laboratory: &mut Laboratory) -> Result<()> {
    if laboratory.aggregator.is_none() {
        laboratory.start_agents()?;
    }
    let names: Vec<String> = laboratory
        .nodes()
        .iter()
        .map(|node| node.name().to_owned())
        .collect();
    for name in names {
        wait::until(&format!("{name} to agree"), START_LIMIT, || {
            let findings = findings(laboratory, &name)?;
            // It must have judged: what was never seen right is given time.
            let judged = laboratory.aggregated(&format!("/nodes/{name}"))?["verdict"]
                .as_str()
                .is_some_and(|verdict| verdict.starts_with("All "));
            match findings.first() {
                None => Ok(judged.then_some(())),
                Some(finding) => {
                    bail!("{} findings, the first: {}", findings.len(), brief(finding))
                }
            }
        })?;
    }
    Ok(())
}

/// A node's findings of severity warning or above, as the aggregator tells them.
pub(crate) fn findings(laboratory: &Laboratory, node: &str) -> Result<Vec<Value>> {
    let answer = laboratory.aggregated(&format!("/nodes/{node}"))?;
    let findings = answer["findings"]
        .as_array()
        .with_context(|| format!("/nodes/{node} has no findings: {answer}"))?;
    Ok(findings
        .iter()
        .filter(|finding| finding["severity"] != "info")
        .cloned()
        .collect())
}

/// The Services to damage, programmed on every node.
pub(crate) fn prepare(laboratory: &mut Laboratory) -> Result<()> {
    laboratory.cluster.create_namespace(NAMESPACE)?;
    laboratory.cluster.api.create_all(&objects())?;
    patch_all(
        &laboratory.cluster.api,
        vec![(
            format!("/api/v1/namespaces/{NAMESPACE}/services/ranges/status"),
            json!({"status": {"loadBalancer": {"ingress": [{"ip": "198.18.200.3"}]}}}),
        )],
    )?;
    let words = ["faults/gone", "10.244.230.52", "198.18.200.3"].map(str::to_owned);
    laboratory.wait_programmed(&words, START_LIMIT)
}

pub(crate) fn clear(laboratory: &Laboratory) -> Result<()> {
    laboratory.empty_namespace(NAMESPACE)?;
    laboratory
        .cluster
        .api
        .delete(&format!("/api/v1/namespaces/{NAMESPACE}"))
}

/// The table of faults does what it says: each damage to rules changes them, in all modes and
/// versions, and healing puts them back.
pub fn faults_are_real(laboratory: &mut Laboratory) -> Result<String> {
    prepare(laboratory)?;
    let mut count = 0;
    for fault in FAULTS.iter().filter(|fault| !fault.damage.is_staleness()) {
        let differ = on_all(laboratory, |station| {
            let rules = || {
                let netns = station.node.netns();
                let mut text = netns.run("nft", ["list", "ruleset", "ip"])?;
                if station.proxy.spec().mode == Mode::IptablesLegacy {
                    text += &netns.run("iptables-legacy-save", [""; 0])?;
                }
                // A set of clients comes and goes by itself; dates and counters of chains change.
                let own = |line: &&str| !line.contains("expires") && !line.starts_with(['#', ':']);
                Ok::<_, anyhow::Error>(text.lines().filter(own).collect::<Vec<_>>().join("\n"))
            };
            let before = rules()?;
            let snapshot = Snapshot::take(station)?;
            plant(station, fault.damage)?;
            let damaged = rules()? != before;
            snapshot.restore(station)?;
            Ok((station.node.name().to_owned(), damaged))
        })
        .with_context(|| format!("fault {:?}", fault.name))?;
        for (node, damaged) in differ {
            count += 1;
            if !damaged {
                bail!("fault {:?} changes nothing on {node}", fault.name);
            }
        }
    }
    clear(laboratory)?;
    Ok(format!("{count} damages to rules"))
}

/// The check.
pub fn faults_are_found(laboratory: &mut Laboratory) -> Result<String> {
    prepare(laboratory)?;
    agents(laboratory)?;
    let only = std::env::var("LAB_FAULT").unwrap_or_default();
    let mut wrong = Vec::new();
    let mut count = 0;
    for fault in FAULTS.iter().filter(|fault| fault.name.contains(&only)) {
        let lines = one(laboratory, fault).with_context(|| format!("fault {:?}", fault.name))?;
        for line in lines {
            count += 1;
            println!(
                "{:<38} {:<18} found {:>6} cleared {:>6}  {}",
                fault.name,
                line.node,
                seconds(line.found),
                seconds(line.cleared),
                line.kinds.iter().cloned().collect::<Vec<_>>().join(", ")
            );
            wrong.extend(
                line.wrong
                    .into_iter()
                    .map(|reason| format!("{}, {}: {reason}", fault.name, line.node)),
            );
        }
    }
    clear(laboratory)?;
    if !wrong.is_empty() {
        bail!("{} of {count} faults:\n{}", wrong.len(), wrong.join("\n"));
    }
    Ok(format!("{count} faults found and cleared"))
}

fn seconds(time: Option<Duration>) -> String {
    time.map_or("never".to_owned(), |time| {
        format!("{:.1} s", time.as_secs_f32())
    })
}

/// How a fault went on one node.
#[derive(Default)]
struct Line {
    node: String,
    found: Option<Duration>,
    cleared: Option<Duration>,
    kinds: BTreeSet<String>,
    wrong: Vec<String>,
}

fn one(laboratory: &mut Laboratory, fault: &Fault) -> Result<Vec<Line>> {
    let mut lines: BTreeMap<String, Line> = laboratory
        .stations
        .iter()
        .map(|station| {
            let node = station.node.name().to_owned();
            (
                node.clone(),
                Line {
                    node,
                    ..Line::default()
                },
            )
        })
        .collect();
    let snapshots = on_all(laboratory, |station| {
        if fault.damage.is_staleness() {
            return Ok(None);
        }
        let snapshot = Snapshot::take(station)?;
        plant(station, fault.damage)?;
        Ok(Some(snapshot))
    })?;
    stale(laboratory, fault.damage)?;
    let limit = if fault.damage.is_staleness() {
        STALE_LIMIT
    } else {
        FOUND_LIMIT
    };
    let start = Instant::now();
    // Some seconds more than until it is found on all nodes: what else is reported may come later.
    let mut settled = None;
    while start.elapsed() < limit + PATIENCE
        && settled.is_none_or(|at: Instant| at.elapsed() < Duration::from_secs(4))
    {
        for line in lines.values_mut() {
            for finding in findings(laboratory, &line.node)? {
                take(fault, &finding, line, start);
            }
        }
        if settled.is_none() && lines.values().all(|line| line.found.is_some()) {
            settled = Some(Instant::now());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    heal(laboratory, fault.damage, snapshots)?;
    let start = Instant::now();
    while start.elapsed() < CLEAR_LIMIT + PATIENCE
        && lines.values().any(|line| line.cleared.is_none())
    {
        for line in lines.values_mut().filter(|line| line.cleared.is_none()) {
            if findings(laboratory, &line.node)?.is_empty() {
                line.cleared = Some(start.elapsed());
            }
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    for line in lines.values_mut() {
        match line.found {
            None => line.wrong.push("not found".to_owned()),
            Some(time) if time > limit => line.wrong.push(format!("found after {time:?}")),
            Some(_) => (),
        }
        match line.cleared {
            None => {
                let left = findings(laboratory, &line.node)?;
                line.wrong.push(format!(
                    "not cleared: {}",
                    left.first().map(brief).unwrap_or_default()
                ));
            }
            Some(time) if time > CLEAR_LIMIT => line.wrong.push(format!("cleared after {time:?}")),
            Some(_) => (),
        }
    }
    Ok(lines.into_values().collect())
}

/// Notes a finding: the one expected, or one too many.
fn take(fault: &Fault, finding: &Value, line: &mut Line, start: Instant) {
    let kind = finding["kind"].as_str().unwrap_or_default();
    let service = finding["service"].as_str();
    let known = fault.kinds.contains(&kind) && (service.is_none() || service == fault.service);
    if !known {
        let reason = format!("also reported: {}", brief(finding));
        if !line.wrong.contains(&reason) && line.wrong.len() < 5 {
            line.wrong.push(reason);
        }
        return;
    }
    let evidence = finding.to_string();
    if !fault.evidence.iter().any(|word| evidence.contains(word)) {
        let reason = format!(
            "evidence names none of {:?}: {}",
            fault.evidence, finding["evidence"]
        );
        if !line.wrong.contains(&reason) && line.wrong.len() < 5 {
            line.wrong.push(reason);
        }
    }
    line.kinds.insert(kind.to_owned());
    // That kube-proxy does not answer is said first, and is not yet what it left undone.
    if !fault.damage.is_staleness() || !kind.starts_with("proxy_") {
        line.found.get_or_insert(start.elapsed());
    }
}

pub(crate) fn on_all<T: Send>(
    laboratory: &Laboratory,
    work: impl Fn(&Station) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = laboratory
            .stations
            .iter()
            .map(|station| {
                let work = &work;
                scope.spawn(move || {
                    work(station).with_context(|| format!("on {}", station.node.name()))
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            })
            .collect()
    })
}

const WEB_SLICE: &str = "/apis/discovery.k8s.io/v1/namespaces/faults/endpointslices/web";

/// Makes kube-proxy miss a change.
fn stale(laboratory: &mut Laboratory, damage: Damage) -> Result<()> {
    match damage {
        Damage::KilledEndpointRemoved | Damage::KilledServiceDeleted => {
            for station in &mut laboratory.stations {
                station.proxy.kill()?;
            }
        }
        Damage::FrozenEndpointsChanged => {
            for station in &laboratory.stations {
                station.proxy.freeze()?;
            }
        }
        _ => return Ok(()),
    }
    let api = &laboratory.cluster.api;
    match damage {
        Damage::KilledEndpointRemoved => {
            api.patch(
                WEB_SLICE,
                &json!({"endpoints": slice("web", &[1, 2])["endpoints"]}),
            )?;
        }
        Damage::FrozenEndpointsChanged => {
            api.patch(
                WEB_SLICE,
                &json!({"endpoints": slice("web", &[1, 2, 4])["endpoints"]}),
            )?;
        }
        _ => {
            api.delete("/api/v1/namespaces/faults/services/gone")?;
        }
    }
    Ok(())
}

fn heal(
    laboratory: &mut Laboratory,
    damage: Damage,
    snapshots: Vec<Option<Snapshot>>,
) -> Result<()> {
    let snapshots: BTreeMap<String, Mutex<Option<Snapshot>>> = laboratory
        .stations
        .iter()
        .map(|station| station.node.name().to_owned())
        .zip(snapshots.into_iter().map(Mutex::new))
        .collect();
    on_all(laboratory, |station| {
        let taken = snapshots[station.node.name()].lock().map(|mut s| s.take());
        match taken {
            Ok(Some(snapshot)) => snapshot.restore(station),
            _ => Ok(()),
        }
    })?;
    match damage {
        Damage::KilledEndpointRemoved | Damage::KilledServiceDeleted => {
            for station in &mut laboratory.stations {
                station.proxy.restart()?;
            }
        }
        Damage::FrozenEndpointsChanged => {
            for station in &laboratory.stations {
                station.proxy.thaw()?;
            }
        }
        _ => return Ok(()),
    }
    for Station { proxy, node, .. } in &mut laboratory.stations {
        proxy.wait_synced(node, START_LIMIT)?;
    }
    // The next fault finds web as it was.
    let endpoints = slice("web", &[1, 2, 3])["endpoints"].clone();
    laboratory
        .cluster
        .api
        .patch(WEB_SLICE, &json!({"endpoints": endpoints}))?;
    Ok(())
}

/// The same with the generated Services in the background.
pub fn faults_are_found_among_many(laboratory: &mut Laboratory) -> Result<String> {
    oracle::prepare(laboratory)?;
    faults_are_found(laboratory)
}
