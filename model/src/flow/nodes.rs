//! What the nodes say: their part of steps 4, 6, 7 and 8.

use super::{Answer, Check, Evidence, Finding, Ground, Part, Weight, count, limits};
use crate::capture::Reading;
use crate::finding::{self, FindingKind, Severity};
use crate::flows::Flows;
use crate::name::NodeName;
use crate::report::service::State;
use crate::report::words::{ago, few};
use crate::service::Service;
use std::collections::BTreeMap;

/// One node's answer about one Service.
#[derive(Clone, Debug)]
pub struct NodeAnswer<'a> {
    /// Which.
    pub node: &'a NodeName,
    /// How the Service stands there; `None`: its agent is silent, or has not reported yet.
    pub state: Option<State>,
    /// Its report names the Service.
    pub reports: bool,
    /// What it does, one clause; nodes with the same clause do the same.
    pub does: String,
    /// Findings about the Service and about the whole node, with their age in milliseconds.
    pub findings: Vec<(&'a finding::Finding, u64)>,
    /// Differences about them that are still given time.
    pub converging: Vec<&'a finding::Finding>,
    /// Which backends answer; `None`: it says nothing of it.
    pub flows: Option<NodeFlows<'a>>,
}

/// What a node says of the backends that answer.
#[derive(Clone, Copy, Debug)]
pub struct NodeFlows<'a> {
    /// The reading that stands.
    pub reading: &'a Reading<Flows>,
    /// This instant by the node's clock, milliseconds since the epoch.
    pub clock: u64,
}

/// Which of a Service's addresses.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Where {
    /// All: which is which is not known.
    All,
    /// The ClusterIPs.
    ClusterIp,
    /// Node ports, external addresses, load balancers.
    Outside,
}

/// About kube-proxy and the way to its rules, not about one address.
fn is_proxy(kind: FindingKind) -> bool {
    matches!(
        kind,
        FindingKind::ProxyNotRunning
            | FindingKind::ProxyStuck
            | FindingKind::WrongConfiguration
            | FindingKind::HooksMissing
            | FindingKind::Unreadable
    )
}

/// Is a finding about addresses of this kind? One about the whole node is about all of them, where it
/// takes Services along.
fn is_at(f: &finding::Finding, service: Option<&Service>, at: Where) -> bool {
    if f.severity < Severity::Warning {
        return false;
    }
    let Some(frontend) = f.frontend else {
        return f.service.is_some() || f.absorbs > 0 || f.kind == FindingKind::ForeignRule;
    };
    match (at, service) {
        (Where::All, _) | (_, None) => true,
        (Where::ClusterIp, Some(s)) => s.cluster_ips.contains(&frontend.address()),
        (Where::Outside, Some(s)) => !s.cluster_ips.contains(&frontend.address()),
    }
}

fn names(nodes: &[&NodeAnswer]) -> String {
    let all: Vec<String> = nodes.iter().map(|n| n.node.to_string()).collect();
    few(&all, limits::SHOWN)
}

/// What was found on a node, and the place in its kernel that proves it.
fn proof(node: &NodeAnswer, f: &finding::Finding, age: Option<u64>) -> Evidence {
    let mut says = match &f.frontend {
        Some(at) => format!("{at}: {}", f.says),
        None => f.says.clone(),
    };
    if let Some(age) = age {
        says += &format!(" (for {})", ago(age as f64 / 1000.0));
    }
    if let Some(place) = f.evidence.first() {
        says += &format!("; {place}");
    }
    Evidence::new(format!("node {}", node.node), says)
}

/// What the nodes' kernels do with some of the Service's addresses.
pub(super) fn at_addresses(service: Option<&Service>, nodes: &[NodeAnswer], at: Where) -> Part {
    let known: Vec<&NodeAnswer> = nodes.iter().filter(|n| n.state.is_some()).collect();
    let here = |n: &&&NodeAnswer| n.findings.iter().any(|(f, _)| is_at(f, service, at));
    let differ: Vec<&NodeAnswer> = known.iter().filter(here).copied().collect();
    let converge: Vec<&NodeAnswer> = known
        .iter()
        .filter(|n| !here(n) && n.converging.iter().any(|f| is_at(f, service, at)))
        .copied()
        .collect();
    let agree = known
        .iter()
        .filter(|n| !here(n) && !converge.iter().any(|c| c.node == n.node))
        // One that differs elsewhere only has nothing against it here.
        .filter(|n| matches!(n.state, Some(State::Agrees | State::Differs)))
        .count();
    let mut found = Vec::new();
    if !differ.is_empty() {
        let first = differ[0]
            .findings
            .iter()
            .find(|(f, _)| is_at(f, service, at));
        let what = first.map_or(String::new(), |(f, _)| format!(": {}", f.says));
        let says = format!(
            "{} of {} otherwise ({}){what}",
            differ.len(),
            count(known.len(), "node does", "nodes do"),
            names(&differ)
        );
        let all = differ.iter().flat_map(|n| {
            let here = n.findings.iter().filter(|(f, _)| is_at(f, service, at));
            here.map(|(f, age)| proof(n, f, Some(*age)))
        });
        // A node that does not lead packets to its rules, or whose kube-proxy does nothing.
        let by_proxy = differ.iter().all(|n| {
            let mut here = n.findings.iter().filter(|(f, _)| is_at(f, service, at));
            here.all(|(f, _)| is_proxy(f.kind))
        });
        found.push(
            Finding::new(Check::NodesDiffer, Weight::Fault, says)
                .with(all)
                .follows(by_proxy.then_some(6)),
        );
    }
    if !converge.is_empty() {
        let says = format!(
            "{} of {} still given time ({})",
            converge.len(),
            count(known.len(), "node is", "nodes are"),
            names(&converge)
        );
        let all = converge.iter().flat_map(|n| {
            let here = n.converging.iter().filter(|f| is_at(f, service, at));
            here.map(|f| proof(n, f, None))
        });
        found.push(Finding::new(Check::NodesConverge, Weight::Converging, says).with(all));
    }
    let silent = nodes.len() - known.len();
    let mut says = match (known.len(), agree) {
        (0, _) => "no node reports".to_string(),
        (_, 0) => "no node could be judged on it".to_string(),
        (all, n) => format!(
            "{n} of {} what the API asks",
            count(all, "node does", "nodes do")
        ),
    };
    let unjudged: Vec<&NodeAnswer> = known
        .iter()
        .filter(|n| matches!(n.state, Some(State::Unknown | State::NotJudged)))
        .copied()
        .collect();
    if agree > 0 && !unjudged.is_empty() {
        says += &format!(
            ", {} judged in all of it ({})",
            count(unjudged.len(), "was not", "were not"),
            names(&unjudged)
        );
    }
    if silent > 0 {
        says += &format!(", {}", count(silent, "is silent", "are silent"));
    }
    let answer = match agree {
        0 => Answer::Unknown,
        _ => Answer::Pass,
    };
    let mut part = Part::judged(answer, says, found);
    if at != Where::Outside && part.answer == answer && part.found.is_empty() {
        part.says += "; its name in DNS is not looked up";
    }
    part
}

/// Step 6: kube-proxy, and the way from the kernel's hooks to its rules.
pub(super) fn proxies(nodes: &[NodeAnswer]) -> Part {
    let known: Vec<&NodeAnswer> = nodes.iter().filter(|n| n.state.is_some()).collect();
    if known.is_empty() {
        return Part::plain(Answer::Unknown, "no node reports");
    }
    let mut found = Vec::new();
    let bad = |f: &finding::Finding| is_proxy(f.kind) && f.severity >= Severity::Warning;
    let ill: Vec<&NodeAnswer> = known
        .iter()
        .filter(|n| n.findings.iter().any(|(f, _)| bad(f)))
        .copied()
        .collect();
    if let Some(first) = ill.first() {
        let what = first.findings.iter().find(|(f, _)| bad(f));
        let says = format!(
            "{} of {} it ({}): {}",
            ill.len(),
            count(
                known.len(),
                "node has a finding about",
                "nodes have a finding about"
            ),
            names(&ill),
            what.map_or("", |(f, _)| f.says.as_str())
        );
        let all = ill.iter().flat_map(|n| {
            let here = n.findings.iter().filter(|(f, _)| bad(f));
            here.map(|(f, age)| proof(n, f, Some(*age)))
        });
        found.push(Finding::new(Check::ProxyUnhealthy, Weight::Fault, says).with(all));
    }
    let soon: Vec<&NodeAnswer> = known
        .iter()
        .filter(|n| n.converging.iter().any(|f| bad(f)))
        .copied()
        .collect();
    if !soon.is_empty() {
        let says = format!(
            "{} still given time ({})",
            count(soon.len(), "node is", "nodes are"),
            names(&soon)
        );
        let all = soon.iter().flat_map(|n| {
            let here = n.converging.iter().filter(|f| bad(f));
            here.map(|f| proof(n, f, None))
        });
        found.push(Finding::new(Check::NodesConverge, Weight::Converging, says).with(all));
    }
    let judged = known
        .iter()
        .filter(|n| !matches!(n.state, Some(State::Unknown)))
        .count();
    let says = format!(
        "no finding about kube-proxy on {}",
        count(known.len(), "node", "nodes")
    );
    if judged == 0 && found.is_empty() {
        return Part::plain(Answer::Unknown, "no node could be judged on this Service");
    }
    Part::judged(Answer::Pass, says, found)
}

/// Step 8: do the nodes do the same?
pub(super) fn against_each_other(g: Option<&Ground>, nodes: &[NodeAnswer]) -> Part {
    let nothing_to_do = g.and_then(|g| g.service).is_some_and(|known| {
        let s = &known.object.service;
        s.kind == crate::service::ServiceType::ExternalName || &*s.cluster_ip == "None"
    });
    if nothing_to_do {
        let says = "nothing is programmed for it on nodes";
        return Part::plain(Answer::NotApplicable, says);
    }
    // Nodes that could not be judged say nothing about the others.
    let mut groups: BTreeMap<&str, Vec<&NodeAnswer>> = BTreeMap::new();
    let mut converging = Vec::new();
    for node in nodes {
        match node.state {
            Some(State::Agrees | State::Differs) => {
                groups.entry(&node.does).or_default().push(node);
            }
            Some(State::Converging) => converging.push(node),
            _ => {}
        }
    }
    let judged: usize = groups.values().map(Vec::len).sum();
    let mut found = Vec::new();
    if groups.len() > 1 {
        let mut outliers: Vec<(&str, Vec<&NodeAnswer>)> = groups.clone().into_iter().collect();
        // The nodes that agree with the API are not the outliers, however few; else the largest group.
        outliers.sort_by_key(|(_, n)| (n[0].state == Some(State::Agrees), n.len()));
        outliers.pop();
        let apart: usize = outliers.iter().map(|(_, n)| n.len()).sum();
        let says = format!(
            "{apart} of {} not what the others do",
            count(judged, "node does", "nodes do")
        );
        let all = outliers
            .iter()
            .map(|(does, n)| Evidence::new(names(n), (*does).to_string()));
        found.push(Finding::new(Check::NodesDiffer, Weight::Fault, says).with(all));
    }
    if !converging.is_empty() {
        let says = format!(
            "{} still given time ({})",
            count(converging.len(), "node is", "nodes are"),
            names(&converging)
        );
        found.push(Finding::new(Check::NodesConverge, Weight::Converging, says));
    }
    let without_agent = g.map(|g| without_agent(g, nodes)).unwrap_or_default();
    let evidence = (!without_agent.is_empty()).then(|| {
        Evidence::new(
            count(without_agent.len(), "Node", "Nodes"),
            format!("without an agent: {}", few(&without_agent, limits::SHOWN)),
        )
    });
    let part = match (judged, found.is_empty()) {
        (0, true) => Part::plain(Answer::Unknown, "no node could be judged on it"),
        (1, true) => Part::plain(Answer::Unknown, "only one node was judged"),
        _ => {
            let does = groups.keys().next().copied().unwrap_or_default();
            let says = format!("{judged} nodes do the same: they {does}");
            Part::judged(Answer::Pass, says, found)
        }
    };
    part.evidence(evidence)
}

fn without_agent(g: &Ground, nodes: &[NodeAnswer]) -> Vec<String> {
    let agents: std::collections::BTreeSet<&NodeName> = nodes.iter().map(|n| n.node).collect();
    g.objects
        .nodes()
        .filter(|n| !agents.contains(&n.node.name))
        .map(|n| n.node.name.to_string())
        .collect()
}
