//! `GET /metrics`, computed from the fleet at each scrape.
//!
//! Two replicas export the same node's series, so rules and dashboards start with
//! `max without (instance, pod)`. A replica therefore exports what a node said only while that node's
//! agent is connected to it: the last words of a silent node must not outlive what another replica
//! knows better. Labels take values from closed sets, but for `node`, and `namespace` and `service`
//! while that Service has a finding.

mod conntrack;

use crate::api_drift::ApiDrift;
use crate::fleet::Fleet;
use crate::view::severity;
use crate::view::words::clean;
use model::finding::FindingKind;
use model::flow::Weight;
use model::report::{NodeState, NotJudged};
use model::time::Now;
use prometheus::core::Collector;
use prometheus::{Encoder, GaugeVec, Opts, Registry, TextEncoder};
use std::collections::BTreeMap;

/// The word for a reason.
pub fn reason(n: NotJudged) -> &'static str {
    match n {
        NotJudged::Unreadable => "unreadable",
        NotJudged::UnknownExpression => "unknown_expression",
        NotJudged::TooManyForks => "too_many_forks",
        NotJudged::ApiView => "api_view",
        NotJudged::NoDatapath => "no_datapath",
        NotJudged::DatapathNotCovered => "datapath_not_covered",
        NotJudged::ServiceCidrUnknown => "service_cidr_unknown",
        NotJudged::SourceImpossible => "source_impossible",
        NotJudged::UserSpaceProxy => "user_space_proxy",
        NotJudged::ProxyNotExpected => "proxy_not_expected",
        NotJudged::ConfigurationUnknown => "configuration_unknown",
        NotJudged::NodeState => "node_state",
    }
}

/// The word for a node's own state.
fn node_state(s: NodeState) -> &'static str {
    match s {
        NodeState::Ready => "ready",
        NodeState::Starting => "starting",
        NodeState::Draining => "draining",
        NodeState::Gone => "gone",
    }
}

/// Services of which what the API alone says is wrong is exported by name; the count has all of them.
const API_SERVICES: usize = 500;

/// What the API alone says is wrong: nothing where it is not known now, and never more than the agents'
/// part costs. Both replicas say the same, each a little later than it is so.
fn api_findings(registry: &Registry, api: &ApiDrift) -> Result<(), prometheus::Error> {
    let gauge = |name: &str, help: &str, labels: &[&str]| -> Result<GaugeVec, prometheus::Error> {
        let g = GaugeVec::new(Opts::new(name, help), labels)?;
        registry.register(Box::new(g.clone()))?;
        Ok(g)
    };
    let readable = gauge(
        "vipwitness_api_objects_known",
        "1 while this replica knows what the API server says of Services, EndpointSlices, Pods and Nodes; 0: it follows them, and does not.",
        &[],
    )?;
    let total = gauge(
        "vipwitness_api_findings",
        "Findings of a check that needs nothing but the API's objects; absent where there are none.",
        &["check", "weight"],
    )?;
    let service = gauge(
        "vipwitness_api_service_finding",
        "1 while a check finds a fault in the Service's objects that follows from no other; at most 500 of them.",
        &["namespace", "service", "check"],
    )?;
    if api.followed {
        let known = f64::from(u8::from(api.unknown.is_none()));
        readable.with_label_values(&[] as &[&str]).set(known);
    }
    if api.unknown.is_some() {
        return Ok(());
    }
    for lasting in &api.found {
        let f = &lasting.finding.finding;
        let weight = match f.weight {
            Weight::Fault => "fault",
            Weight::Converging => continue,
            Weight::Hint => "hint",
        };
        total.with_label_values(&[f.check.word(), weight]).inc();
    }
    let faults = api.found.iter().filter(|l| l.finding.is_by_itself());
    for lasting in faults.take(API_SERVICES) {
        let name = &lasting.finding.service;
        let (namespace, name) = (clean(&name.namespace), clean(&name.name));
        let check = lasting.finding.finding.check.word();
        service
            .with_label_values(&[&*namespace, &*name, check])
            .set(1.0);
    }
    Ok(())
}

/// Prometheus' text format.
pub fn metrics(fleet: &Fleet, api: &ApiDrift, now: Now) -> Result<String, prometheus::Error> {
    let registry = Registry::new();
    let gauge = |name: &str, help: &str, labels: &[&str]| -> Result<GaugeVec, prometheus::Error> {
        let g = GaugeVec::new(Opts::new(name, help), labels)?;
        let boxed: Box<dyn Collector> = Box::new(g.clone());
        registry.register(boxed)?;
        Ok(g)
    };
    let build = gauge(
        "vipwitness_build_info",
        "1, with the aggregator's version.",
        &["version"],
    )?;
    let connected = gauge(
        "vipwitness_agent_connected",
        "1 while the node's agent is connected to this replica and was heard of within 15 s.",
        &["node"],
    )?;
    let report_age = gauge(
        "vipwitness_report_age_seconds",
        "Age of the newest kernel reading of the node that this replica knows.",
        &["node"],
    )?;
    let api_age = gauge(
        "vipwitness_api_view_age_seconds",
        "Age of the agent's view of the API; absent if it never had one.",
        &["node"],
    )?;
    let findings = gauge(
        "vipwitness_node_findings",
        "Findings on the node; absent where there are none. While its agent is connected.",
        &["node", "kind", "severity"],
    )?;
    let service = gauge(
        "vipwitness_service_finding",
        "Findings about the Service on the node, only while there are any and the agent is connected.",
        &["node", "namespace", "service", "kind", "severity"],
    )?;
    let stuck = gauge(
        "vipwitness_proxy_stuck",
        "Findings of kind proxy_stuck, by what stands still: its syncs, or its watch of the API. While the agent is connected.",
        &["node", "reason"],
    )?;
    let state = gauge(
        "vipwitness_node_state",
        "1 for the state in which the node was by its agent's last words; also of silent agents.",
        &["node", "state"],
    )?;
    let pass = gauge(
        "vipwitness_pass_duration_seconds",
        "How long the newest pass took: reading, decoding, judging. While the agent is connected.",
        &["node"],
    )?;
    let agents = gauge(
        "vipwitness_agents",
        "Nodes that this replica knows, by whether their agent is connected to it.",
        &["state"],
    )?;
    let converging = gauge(
        "vipwitness_node_converging",
        "Differences on the node that are still given time. While its agent is connected.",
        &["node"],
    )?;
    let judged = gauge(
        "vipwitness_pairs_judged",
        "Pairs of frontend and source that the newest pass compared. While the agent is connected.",
        &["node"],
    )?;
    let unknown = gauge(
        "vipwitness_pairs_unknown",
        "Pairs of frontend and source that could not be told. While the agent is connected.",
        &["node", "reason"],
    )?;
    let not_comparable = gauge(
        "vipwitness_pairs_not_comparable",
        "Pairs of frontend and source that are not to be compared. While the agent is connected.",
        &["node", "reason"],
    )?;
    let gaps = gauge(
        "vipwitness_gaps",
        "Things on the node that could not be read. While the agent is connected.",
        &["node"],
    )?;
    let conntrack = conntrack::Series::new(&registry)?;
    build
        .with_label_values(&[env!("CARGO_PKG_VERSION")])
        .set(1.0);
    // Also where there are none: a replica that hears nobody must be seen.
    for word in ["connected", "silent"] {
        agents.with_label_values(&[word]).set(0.0);
    }
    for (name, member) in &fleet.nodes {
        let node = clean(&name.0);
        let node = node.as_str();
        let live = member.connected(now);
        connected
            .with_label_values(&[node])
            .set(f64::from(u8::from(live)));
        let word = if live { "connected" } else { "silent" };
        agents.with_label_values(&[word]).inc();
        let Some(said) = &member.said else { continue };
        state
            .with_label_values(&[node, node_state(said.report.state)])
            .set(1.0);
        report_age
            .with_label_values(&[node])
            .set(said.age_ms(now) as f64 / 1000.0);
        if let Some(age) = said.api_age_ms(now) {
            api_age.with_label_values(&[node]).set(age as f64 / 1000.0);
        }
        if !live {
            continue;
        }
        conntrack.set(node, said);
        let report = &said.report;
        for f in &report.findings {
            findings
                .with_label_values(&[node, f.kind.word(), severity(f.severity)])
                .inc();
            if let Some(s) = &f.service {
                let (namespace, name) = (clean(&s.service.namespace), clean(&s.service.name));
                service
                    .with_label_values(&[
                        node,
                        &namespace,
                        &name,
                        f.kind.word(),
                        severity(f.severity),
                    ])
                    .inc();
            }
            if f.kind == FindingKind::ProxyStuck {
                let reason = if f.watch_is_dead() { "watch" } else { "sync" };
                stuck.with_label_values(&[node, reason]).inc();
            }
        }
        converging
            .with_label_values(&[node])
            .set(report.converging.len() as f64);
        pass.with_label_values(&[node])
            .set(said.took_ms as f64 / 1000.0);
        judged
            .with_label_values(&[node])
            .set(report.judged.pairs as f64);
        gaps.with_label_values(&[node])
            .set(report.gaps.len() as f64);
        let count = |into: &GaugeVec, reasons: &BTreeMap<NotJudged, u64>| {
            for (why, n) in reasons {
                into.with_label_values(&[node, reason(*why)]).set(*n as f64);
            }
        };
        count(&unknown, &report.judged.unknown_reasons);
        count(&not_comparable, &report.judged.not_comparable_reasons);
    }
    api_findings(&registry, api)?;
    let mut out = Vec::new();
    TextEncoder::new().encode(&registry.gather(), &mut out)?;
    String::from_utf8(out).map_err(|e| prometheus::Error::Msg(e.to_string()))
}
