//! `GET /nodes`: every node, worst first.

use super::words::{ago, clean, count, table, thousands};
use super::{Data, View};
use crate::fleet::{Fleet, Member};
use model::finding::{FindingKind, Severity};
use model::name::NodeName;
use model::report::NodeState;
use model::time::Now;
use serde::Serialize;
use std::collections::BTreeMap;

/// A part of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// Position of its first element.
    pub from: usize,
    /// At most so many elements.
    pub limit: usize,
}

impl Page {
    /// Elements of a page, unless asked otherwise; and at most.
    pub const LIMIT: usize = 500;
}

/// Where a page stands in its list.
#[derive(Clone, Debug, Serialize)]
pub struct Paged {
    /// Position of its first element.
    pub from: usize,
    /// Elements in it.
    pub shown: usize,
    /// Elements of the whole list.
    pub total: usize,
    /// `from` of the next page; null: this is the last.
    pub next: Option<usize>,
}

impl Paged {
    /// Cuts a list to a page.
    pub fn cut<T>(list: Vec<T>, page: Page) -> (Vec<T>, Paged) {
        let total = list.len();
        let part: Vec<T> = list.into_iter().skip(page.from).take(page.limit).collect();
        let end = page.from.saturating_add(part.len());
        let paged = Paged {
            from: page.from,
            shown: part.len(),
            total,
            next: (end < total && !part.is_empty()).then_some(end),
        };
        (part, paged)
    }

    /// A line, where the list does not fit.
    pub fn text(&self) -> String {
        if self.shown == self.total {
            return String::new();
        }
        let next = self
            .next
            .map(|n| format!("; the next with from={n}"))
            .unwrap_or_default();
        format!(
            "{} of {} shown, from {}{next}\n",
            self.shown,
            thousands(self.total as u64),
            self.from
        )
    }
}

/// The answer.
#[derive(Clone, Debug, Serialize)]
pub struct NodesView {
    /// One sentence.
    pub verdict: String,
    /// Where this page stands.
    pub page: Paged,
    /// Worst first.
    pub nodes: Vec<NodeLine>,
}

/// One node.
#[derive(Clone, Debug, Serialize)]
pub struct NodeLine {
    /// Its name.
    pub node: String,
    /// The agent's sentence about it.
    pub verdict: Option<String>,
    /// Its own state.
    pub state: Option<NodeState>,
    /// The datapath in charge, with its version.
    pub datapath: Option<String>,
    /// Findings by kind.
    pub findings: BTreeMap<&'static str, u64>,
    /// The worst severity among them.
    pub worst: Option<Severity>,
    /// Differences that are still given time.
    pub converging: u64,
    /// Pairs of frontend and source judged.
    pub judged: u64,
    /// Pairs that could not be told.
    pub unknown: u64,
    /// Pairs that are not to be compared.
    pub not_comparable: u64,
    /// Things that could not be read.
    pub gaps: u64,
    /// Percent of the limit of its table of connections; null: not known, or there is no limit.
    pub conntrack_full_percent: Option<f64>,
    /// How old all this is.
    pub data: Data,
    /// The agent's version.
    pub agent_version: String,
}

impl NodeLine {
    /// Of one node.
    pub fn of(name: &NodeName, member: &Member, now: Now) -> NodeLine {
        let report = member.said.as_ref().map(|s| &*s.report);
        let mut findings: BTreeMap<&'static str, u64> = BTreeMap::new();
        for f in report.iter().flat_map(|r| &r.findings) {
            *findings.entry(FindingKind::word(f.kind)).or_default() += 1;
        }
        NodeLine {
            node: name.to_string(),
            verdict: report.map(|r| r.verdict.clone()),
            state: report.map(|r| r.state),
            datapath: report
                .and_then(|r| r.datapaths.first())
                .map(|d| match &d.version {
                    Some(v) => format!("{} {v}", d.name),
                    None => d.name.to_string(),
                }),
            findings,
            worst: report.and_then(|r| r.findings.iter().map(|f| f.severity).max()),
            converging: report.map_or(0, |r| r.converging.len() as u64),
            judged: report.map_or(0, |r| r.judged.pairs),
            unknown: report.map_or(0, |r| r.judged.unknown),
            not_comparable: report.map_or(0, |r| r.judged.not_comparable),
            gaps: report.map_or(0, |r| r.gaps.len() as u64),
            conntrack_full_percent: conntrack_fill(member).map(|fill| fill * 100.0),
            data: Data::of(member, now),
            agent_version: member.agent_version.clone(),
        }
    }

    /// Order of a list: worst finding, then silence, then number, unknown, name.
    fn rank(&self) -> impl Ord + use<> {
        use std::cmp::Reverse;
        (
            Reverse(self.worst),
            self.data.connected,
            Reverse(self.findings.values().sum::<u64>()),
            Reverse(self.unknown + self.gaps),
            self.node.clone(),
        )
    }
}

fn conntrack_fill(member: &Member) -> Option<f64> {
    let conntrack = member.said.as_ref()?.conntrack.as_ref()?;
    conntrack.reading.read()?.fill()
}

/// Every node, worst first.
pub fn nodes(fleet: &Fleet, page: Page, now: Now) -> NodesView {
    let mut lines: Vec<NodeLine> = fleet
        .nodes
        .iter()
        .map(|(name, m)| NodeLine::of(name, m, now))
        .collect();
    lines.sort_by_cached_key(NodeLine::rank);
    let differ = lines
        .iter()
        .filter(|l| l.worst >= Some(Severity::Warning))
        .count() as u64;
    let silent = lines.iter().filter(|l| !l.data.connected).count() as u64;
    let blind = lines.iter().filter(|l| l.judged == 0).count() as u64;
    let mut verdict = match (lines.len() as u64, differ) {
        (0, _) => "no agent has reported yet".to_string(),
        (all, 0) => format!("no finding on {}", count(all, "node", "nodes")),
        (all, n) => {
            format!(
                "{} of {} with findings",
                thousands(n),
                count(all, "node", "nodes")
            )
        }
    };
    if silent > 0 {
        verdict += &format!("; {} silent", thousands(silent));
    }
    if blind > 0 {
        verdict += &format!("; {} judged nothing", thousands(blind));
    }
    let (nodes, page) = Paged::cut(lines, page);
    NodesView {
        verdict,
        page,
        nodes,
    }
}

impl View for NodesView {
    fn text(&self) -> String {
        let mut rows = vec![
            [
                "NODE",
                "AGENT",
                "AGE",
                "DATAPATH",
                "JUDGED",
                "UNKNOWN",
                "CONVERGING",
                "CONNTRACK",
                "FINDINGS",
            ]
            .map(String::from)
            .to_vec(),
        ];
        for n in &self.nodes {
            let findings: Vec<String> = n
                .findings
                .iter()
                .map(|(kind, number)| format!("{kind} {number}"))
                .collect();
            rows.push(vec![
                clean(&n.node),
                if n.data.connected {
                    "connected".into()
                } else {
                    "SILENT".into()
                },
                n.data.age_seconds.map_or("-".into(), ago),
                n.datapath.as_deref().map_or("-".into(), clean),
                thousands(n.judged),
                thousands(n.unknown),
                thousands(n.converging),
                n.conntrack_full_percent
                    .map_or("-".into(), |p| format!("{p:.0} %")),
                if findings.is_empty() {
                    "-".into()
                } else {
                    findings.join(", ")
                },
            ]);
        }
        format!(
            "{}\n\n{}{}",
            clean(&self.verdict),
            table(&rows),
            self.page.text()
        )
    }
}
