//! `GET /metrics`, computed from the fleet at each scrape.
//!
//! Two replicas export the same node's series, so rules and dashboards start with
//! `max without (instance, pod)`. A replica therefore exports what a node said only while that node's
//! agent is connected to it: the last words of a silent node must not outlive what another replica
//! knows better. Labels take values from closed sets, but for `node`, and `namespace` and `service`
//! while that Service has a finding.

mod conntrack;

use crate::fleet::Fleet;
use crate::view::severity;
use crate::view::words::clean;
use model::report::NotJudged;
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

/// Prometheus' text format.
pub fn metrics(fleet: &Fleet, now: Now) -> Result<String, prometheus::Error> {
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
        &["node", "namespace", "service", "kind"],
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
    for (name, member) in &fleet.nodes {
        let node = clean(&name.0);
        let node = node.as_str();
        let live = member.connected(now);
        connected
            .with_label_values(&[node])
            .set(f64::from(u8::from(live)));
        let Some(said) = &member.said else { continue };
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
                    .with_label_values(&[node, &namespace, &name, f.kind.word()])
                    .inc();
            }
        }
        converging
            .with_label_values(&[node])
            .set(report.converging.len() as f64);
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
    let mut out = Vec::new();
    TextEncoder::new().encode(&registry.gather(), &mut out)?;
    String::from_utf8(out).map_err(|e| prometheus::Error::Msg(e.to_string()))
}
