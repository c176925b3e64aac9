//! `GET /drift`: every finding of every node.

use super::nodes::{Page, Paged};
use super::words::{ago, clean, count, few};
use super::{Shown, View};
use crate::fleet::Fleet;
use model::finding::{FindingKind, Severity};
use model::time::Now;
use serde::Serialize;
use std::collections::BTreeSet;

/// Which findings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only this kind.
    pub kind: Option<FindingKind>,
    /// At least this bad.
    pub severity: Option<Severity>,
    /// Only Services of this namespace.
    pub namespace: Option<String>,
    /// Only this node.
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
    /// Worst first, then oldest first.
    pub findings: Vec<Shown>,
}

/// Every finding that passes the filter.
pub fn drift(fleet: &Fleet, filter: &Filter, page: Page, now: Now) -> DriftView {
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
            let passes = filter.kind.is_none_or(|k| k == f.kind)
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
        let age = |s: &crate::fleet::Said, f: &model::finding::Finding| s.since_ms(f.since, now);
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
    let (part, page) = Paged::cut(found, page);
    silent_nodes.truncate(Page::LIMIT);
    DriftView {
        verdict,
        page,
        silent_nodes,
        oldest_data_seconds: oldest.map(|ms| ms as f64 / 1000.0),
        findings: part
            .into_iter()
            .map(|(n, s, f)| Shown::of(n, s, f, now))
            .collect(),
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
        let paged = self.page.text();
        if !paged.is_empty() {
            out += &format!("\n{paged}");
        }
        out
    }
}
