//! `GET /drift`: every finding of every node, and what the API alone says is wrong.

use super::nodes::{Page, Paged};
use super::words::{ago, clean, count, few, stamp};
use super::{Shown, View, severity};
use crate::api_drift::{ApiDrift, Lasting};
use crate::fleet::{Fleet, Said};
use model::finding::{Finding, FindingKind, Severity};
use model::flow::{Check, Evidence, Weight, evidence_lines, wrapped};
use model::name::NodeName;
use model::time::Now;
use serde::Serialize;
use std::collections::BTreeSet;

/// Which findings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only this kind; the nodes' only.
    pub kind: Option<FindingKind>,
    /// Only what this check finds; the API's only.
    pub check: Option<Check>,
    /// At least this bad.
    pub severity: Option<Severity>,
    /// Only Services of this namespace.
    pub namespace: Option<String>,
    /// Only this node; nothing of the API.
    pub node: Option<String>,
    /// At least this old, milliseconds.
    pub age_ms: u64,
}

/// The answer.
#[derive(Clone, Debug, Serialize)]
pub struct DriftView {
    /// One sentence.
    pub verdict: String,
    /// Where this page stands.
    pub page: Paged,
    /// Nodes whose agents are silent: their findings are the last known.
    pub silent_nodes: Vec<String>,
    /// Age of the oldest reading that this answer rests on.
    pub oldest_data_seconds: Option<f64>,
    /// The nodes': worst first, then oldest first.
    pub findings: Vec<Shown>,
    /// The API's, which come after the nodes' in the pages.
    pub api: ApiPart,
}

/// What the API alone says is wrong.
#[derive(Clone, Debug, Serialize)]
pub struct ApiPart {
    /// How long ago all Services were looked at; null: never yet.
    pub age_seconds: Option<f64>,
    /// Why there is nothing, or nothing newer; null: there is.
    pub unknown: Option<String>,
    /// What more was found than is kept.
    pub more: u64,
    /// Faults first, those that follow from others after them; then oldest first.
    pub findings: Vec<ApiShown>,
}

/// One finding of the API's.
#[derive(Clone, Debug, Serialize)]
pub struct ApiShown {
    /// `shop/web`.
    pub service: String,
    /// The step of the debugging flow that it belongs to.
    pub step: u8,
    /// What was found.
    pub check: &'static str,
    /// `warning` is a fault, `info` a hint.
    pub severity: Severity,
    /// The step whose fault it follows from.
    pub follows_from: Option<u8>,
    /// Since when, RFC 3339, by the aggregator's clock; not earlier than its start.
    pub since: String,
    /// How long ago that was.
    pub age_seconds: f64,
    /// One sentence.
    pub says: String,
    /// The first objects that prove it.
    pub evidence: Vec<Evidence>,
    /// How many there are.
    pub evidence_total: usize,
    #[serde(skip)]
    lines: String,
}

/// How bad something is that the API alone gives.
fn weighs(lasting: &Lasting) -> Severity {
    match lasting.finding.finding.weight {
        Weight::Fault => Severity::Warning,
        Weight::Converging | Weight::Hint => Severity::Info,
    }
}

impl ApiShown {
    fn of(lasting: &Lasting, now: Now) -> ApiShown {
        let (api, f) = (&lasting.finding, &lasting.finding.finding);
        ApiShown {
            service: api.service.to_string(),
            step: api.step,
            check: f.check.word(),
            severity: weighs(lasting),
            follows_from: f.follows_from,
            since: stamp(lasting.since.wall),
            age_seconds: now.mono.since(lasting.since.mono) as f64 / 1000.0,
            says: f.says.clone(),
            evidence: f.evidence.clone(),
            evidence_total: f.evidence_total,
            lines: evidence_lines(f),
        }
    }

    fn text(&self) -> String {
        let head = format!(
            "  {} {}  {}  step {}\n",
            severity(self.severity),
            self.check,
            clean(&self.service),
            self.step
        );
        let mut out = head + &wrapped("    ", 4, &self.says);
        let follows = self.follows_from;
        let follows = follows.map_or(String::new(), |step| format!("; follows from step {step}"));
        let age = ago(self.age_seconds);
        out += &format!("    since  {} ({age} ago){follows}\n", self.since);
        out + &self.lines
    }
}

/// One of either, as pages count them.
enum Entry<'a> {
    Node(&'a NodeName, &'a Said, &'a Finding),
    Api(&'a Lasting),
}

/// What of the API's passes the filter.
fn of_api<'a>(api: &'a ApiDrift, filter: &Filter, now: Now) -> Vec<&'a Lasting> {
    if filter.node.is_some() || filter.kind.is_some() {
        return Vec::new();
    }
    let age = |l: &Lasting| now.mono.since(l.since.mono);
    let passes = |l: &&Lasting| {
        let namespace = &*l.finding.service.namespace;
        filter.check.is_none_or(|c| c == l.finding.finding.check)
            && filter.severity.is_none_or(|s| weighs(l) >= s)
            && filter.namespace.as_deref().is_none_or(|n| n == namespace)
            && age(l) >= filter.age_ms
    };
    let mut found: Vec<&Lasting> = api.found.iter().filter(passes).collect();
    found.sort_by_key(|l| {
        let follows = l.finding.finding.follows_from.is_some();
        (
            std::cmp::Reverse(weighs(l)),
            follows,
            std::cmp::Reverse(age(l)),
        )
    });
    found
}

/// Every finding that passes the filter.
pub fn drift(fleet: &Fleet, api: &ApiDrift, filter: &Filter, page: Page, now: Now) -> DriftView {
    let mut found = Vec::new();
    let mut silent_nodes = Vec::new();
    let mut oldest: Option<u64> = None;
    let mut looked_at = 0u64;
    let mut without_report = 0u64;
    for (name, member) in &fleet.nodes {
        if filter.node.as_deref().is_some_and(|n| *n != *name.0) {
            continue;
        }
        looked_at += 1;
        if !member.connected(now) {
            silent_nodes.push(name.to_string());
        }
        let Some(said) = &member.said else {
            without_report += 1;
            continue;
        };
        oldest = oldest.max(Some(said.age_ms(now)));
        for f in &said.report.findings {
            let passes = filter.check.is_none()
                && filter.kind.is_none_or(|k| k == f.kind)
                && filter.severity.is_none_or(|s| f.severity >= s)
                && filter.namespace.as_deref().is_none_or(|n| {
                    f.service
                        .as_ref()
                        .is_some_and(|s| *s.service.namespace == *n)
                })
                && said.since_ms(f.since, now) >= filter.age_ms;
            if passes {
                found.push((name, said, f));
            }
        }
    }
    found.sort_by(|(an, sa, a), (bn, sb, b)| {
        let age = |s: &Said, f: &Finding| s.since_ms(f.since, now);
        b.severity
            .cmp(&a.severity)
            .then(age(sb, b).cmp(&age(sa, a)))
            .then(an.cmp(bn))
    });
    let nodes: BTreeSet<_> = found.iter().map(|(n, ..)| *n).collect();
    let mut verdict = match (looked_at, found.len() as u64) {
        (0, _) => match &filter.node {
            Some(n) => format!("no agent has reported from a node {n:?}"),
            None => "no agent has reported yet".into(),
        },
        (all, 0) => format!("no such finding on {}", count(all, "node", "nodes")),
        (_, n) => {
            let names: Vec<String> = nodes.iter().map(|n| n.to_string()).collect();
            let worst = found[0].2;
            format!(
                "{} on {}: {}",
                count(n, "finding", "findings"),
                few(&names, 5),
                worst.says
            )
        }
    };
    if !silent_nodes.is_empty() {
        verdict += &format!(
            "; {} silent",
            count(silent_nodes.len() as u64, "node is", "nodes are")
        );
    }
    if without_report > 0 {
        verdict += &format!(
            "; {} reported nothing yet",
            count(without_report, "node has", "nodes have")
        );
    }
    let of_api = of_api(api, filter, now);
    if let Some(first) = of_api.first() {
        let first = &first.finding;
        verdict += &format!(
            "; {} of the API: {}: {}",
            count(of_api.len() as u64, "finding", "findings"),
            first.service,
            first.finding.says
        );
    }
    let all = found.into_iter().map(|(n, s, f)| Entry::Node(n, s, f));
    let all = all.chain(of_api.into_iter().map(Entry::Api)).collect();
    let (part, page) = Paged::cut(all, page);
    let (mut findings, mut api_findings) = (Vec::new(), Vec::new());
    for entry in part {
        match entry {
            Entry::Node(n, s, f) => findings.push(Shown::of(n, s, f, now)),
            Entry::Api(lasting) => api_findings.push(ApiShown::of(lasting, now)),
        }
    }
    silent_nodes.truncate(Page::LIMIT);
    DriftView {
        verdict,
        page,
        silent_nodes,
        oldest_data_seconds: oldest.map(|ms| ms as f64 / 1000.0),
        findings,
        api: ApiPart {
            age_seconds: api.at.map(|at| now.mono.since(at.mono) as f64 / 1000.0),
            unknown: api.unknown.clone(),
            more: api.more as u64,
            findings: api_findings,
        },
    }
}

impl View for DriftView {
    fn text(&self) -> String {
        let mut out = format!("{}\n", clean(&self.verdict));
        if let Some(age) = self.oldest_data_seconds {
            out += &format!("oldest reading {} ago\n", ago(age));
        }
        if !self.silent_nodes.is_empty() {
            out += &format!(
                "silent, last words shown: {}\n",
                few(&self.silent_nodes, 10)
            );
        }
        let mut node = None;
        for f in &self.findings {
            if node != Some(&f.node) {
                out += &format!("\n{}\n", clean(&f.node));
                node = Some(&f.node);
            }
            out += &f.text();
        }
        if !self.api.findings.is_empty() {
            let age = self.api.age_seconds.map(ago).unwrap_or_default();
            out += &format!("\nthe API's objects, looked at {age} ago\n");
            for f in &self.api.findings {
                out += &f.text();
            }
        }
        if let Some(why) = &self.api.unknown {
            out += "\n";
            out += &wrapped("", 2, &format!("the API's objects: not known: {why}"));
        }
        let paged = self.page.text();
        if !paged.is_empty() {
            out += &format!("\n{paged}");
        }
        out
    }
}
