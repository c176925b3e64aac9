//! `GET /conntrack`: nodes by how soon their table of connections is full; `GET
//! /nodes/{node}/conntrack`: one of them, explained.

use super::nodes::{Page, Paged};
use super::words::{ago, clean, count, few, stamp, table, thousands};
use super::{NotFound, View, member};
use crate::fleet::{Fleet, Member, Said};
use model::capture::Reading;
use model::conntrack::{
    Conntrack, ConntrackJson, Counter, conntrack_json, conntrack_text, hints, verdict,
};
use model::name::NodeName;
use model::time::Now;
use serde::Serialize;

/// From this share of its limit a table counts as nearly full in the verdict.
const NEARLY_FULL: f64 = 0.9;

/// The answer about all nodes.
#[derive(Clone, Debug, Serialize)]
pub struct FleetView {
    /// One sentence.
    pub verdict: String,
    /// Where this page stands.
    pub page: Paged,
    /// Those that lose packets first, then by how soon they are full, then by how full they are.
    pub nodes: Vec<Line>,
}

/// One node among others.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// Its name.
    pub node: String,
    /// One sentence.
    pub verdict: String,
    /// `read`, `failed`, `absent` (the kernel has none), `unsaid` (the agent says nothing of it).
    pub reading: &'static str,
    /// Entries.
    pub entries: Option<u32>,
    /// Limit; null: not known, or there is none.
    pub limit: Option<u32>,
    /// Percent of the limit.
    pub full_percent: Option<f64>,
    /// Until it is full; null: no forecast says so.
    pub full_in_seconds: Option<f64>,
    /// Packets dropped in the last minutes.
    pub drops_lately: Option<u64>,
    /// What the counters point at.
    pub hints: Vec<&'static str>,
    /// Any of them loses packets.
    pub loses_packets: bool,
    /// Age of the reading.
    pub age_seconds: Option<f64>,
    /// Is the agent connected, and heard of lately?
    pub connected: bool,
}

impl Line {
    fn of(name: &NodeName, member: &Member, now: Now) -> Line {
        let said = member.said.as_ref();
        let (reading, table, verdict) = reading(said);
        let hints = table.map_or(Vec::new(), hints);
        Line {
            node: name.to_string(),
            verdict,
            reading,
            entries: table.map(|t| t.entries),
            limit: table.map(|t| t.limit).filter(|l| *l > 0),
            full_percent: table.and_then(Conntrack::fill).map(|f| f * 100.0),
            full_in_seconds: table.and_then(|t| t.forecast.seconds()),
            drops_lately: table.and_then(|t| t.recent?.increases.get(Counter::Drop)),
            loses_packets: hints.iter().any(|h| h.loses_packets),
            hints: hints.into_iter().map(|h| h.hint).collect(),
            age_seconds: age(said, now),
            connected: member.connected(now),
        }
    }
}

/// What can be said: the word for the reading, the table if it was read, a sentence.
pub(super) fn reading(said: Option<&Said>) -> (&'static str, Option<&Conntrack>, String) {
    match said
        .and_then(|s| s.conntrack.as_deref())
        .map(|c| &c.reading)
    {
        None => ("unsaid", None, "its agent says nothing of it".into()),
        Some(Reading::Absent) => (
            "absent",
            None,
            "the kernel has no connection tracking".into(),
        ),
        Some(Reading::Failed(gap)) => ("failed", None, format!("not read: {}", gap.why)),
        Some(Reading::Read(table)) => ("read", Some(table), verdict(table)),
    }
}

fn age(said: Option<&Said>, now: Now) -> Option<f64> {
    let said = said?;
    let at = said.conntrack.as_ref()?.at;
    Some(said.since_ms(at, now) as f64 / 1_000.0)
}

/// Every node.
pub fn fleet(fleet: &Fleet, page: Page, now: Now) -> FleetView {
    let mut lines: Vec<Line> = fleet
        .nodes
        .iter()
        .map(|(name, m)| Line::of(name, m, now))
        .collect();
    let soon = |l: &Line| l.full_in_seconds.unwrap_or(f64::INFINITY);
    let full = |l: &Line| l.full_percent.unwrap_or(-1.0);
    lines.sort_by(|a, b| {
        b.loses_packets
            .cmp(&a.loses_packets)
            .then(soon(a).total_cmp(&soon(b)))
            .then(full(b).total_cmp(&full(a)))
            .then_with(|| a.node.cmp(&b.node))
    });
    let verdict = sentence(&lines);
    let (nodes, page) = Paged::cut(lines, page);
    FleetView {
        verdict,
        page,
        nodes,
    }
}

fn sentence(lines: &[Line]) -> String {
    if lines.is_empty() {
        return "no agent has reported yet".into();
    }
    let names = |of: &dyn Fn(&&Line) -> bool| -> Vec<String> {
        lines.iter().filter(of).map(|l| l.node.clone()).collect()
    };
    let mut parts = Vec::new();
    for (what, found) in [
        ("losing packets", names(&|l| l.loses_packets)),
        (
            "filling up",
            names(&|l| !l.loses_packets && l.full_in_seconds.is_some()),
        ),
        (
            "nearly full",
            names(&|l| {
                let nearly = l.full_percent.is_some_and(|p| p >= NEARLY_FULL * 100.0);
                !l.loses_packets && l.full_in_seconds.is_none() && nearly
            }),
        ),
    ] {
        if !found.is_empty() {
            parts.push(format!("{what}: {}", few(&found, 5)));
        }
    }
    let read = lines.iter().filter(|l| l.reading == "read").count();
    if parts.is_empty() && read > 0 {
        let nodes = count(read as u64, "node", "nodes");
        parts.push(match lines.first() {
            Some(l) if l.full_percent.is_some() => format!(
                "no pressure on {nodes}; the fullest is {}, {}",
                l.node, l.verdict
            ),
            _ => format!("no pressure on {nodes}"),
        });
    }
    let silent = lines.iter().filter(|l| !l.connected).count() as u64;
    let unread = (lines.len() - read) as u64;
    if unread > 0 {
        parts.push(format!("{} not read", count(unread, "node", "nodes")));
    }
    if silent > 0 {
        parts.push(format!("{} silent", thousands(silent)));
    }
    parts.join("; ")
}

impl View for FleetView {
    fn text(&self) -> String {
        let heading = [
            "NODE",
            "FULL",
            "ENTRIES",
            "LIMIT",
            "FULL IN",
            "DROPS",
            "AGE",
            "POINTS AT",
        ];
        let mut rows = vec![heading.map(String::from).to_vec()];
        let number = |n: Option<u64>| n.map_or("-".into(), thousands);
        for l in &self.nodes {
            let age = l.age_seconds.map_or("-".into(), ago);
            rows.push(vec![
                clean(&l.node),
                l.full_percent.map_or("-".into(), |p| {
                    // What is not full does not round up to it.
                    let shown = if p < 100.0 { p.min(99.9) } else { p };
                    format!("{shown:.1} %")
                }),
                number(l.entries.map(u64::from)),
                number(l.limit.map(u64::from)),
                l.full_in_seconds.map_or("-".into(), ago),
                number(l.drops_lately),
                if l.connected {
                    age
                } else {
                    format!("{age} SILENT")
                },
                match (l.reading, l.hints.is_empty()) {
                    ("read", true) => "-".into(),
                    ("read", false) => l.hints.join(", "),
                    _ => clean(&l.verdict),
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

/// The answer about one node.
#[derive(Clone, Debug, Serialize)]
pub struct NodeView {
    /// One sentence.
    pub verdict: String,
    /// Its name.
    pub node: String,
    /// As in [`Line`].
    pub reading: &'static str,
    /// When it was read, by the node's clock.
    pub read_at: Option<String>,
    /// How long ago that was.
    pub age_seconds: Option<f64>,
    /// Is the agent connected, and heard of lately?
    pub connected: bool,
    /// If not: since when it has been silent, by the aggregator's clock.
    pub silent_since: Option<String>,
    /// What was read.
    #[serde(flatten)]
    pub conntrack: Option<ConntrackJson>,
    #[serde(skip)]
    text: String,
}

/// One node.
///
/// # Errors
/// [`NotFound`], where no agent has reported from it.
pub fn node(fleet: &Fleet, name: &str, now: Now) -> Result<NodeView, NotFound> {
    let (name, member) = member(fleet, name)?;
    let said = member.said.as_ref();
    let (reading, table, sentence) = reading(said);
    Ok(NodeView {
        verdict: format!("{name}: {sentence}"),
        node: name.to_string(),
        reading,
        read_at: said.and_then(|s| s.conntrack.as_ref()).map(|c| stamp(c.at)),
        age_seconds: age(said, now),
        connected: member.connected(now),
        silent_since: member.silent_since(now).map(stamp),
        conntrack: table.map(conntrack_json),
        text: table.map_or(String::new(), conntrack_text),
    })
}

impl View for NodeView {
    fn text(&self) -> String {
        let age = self
            .age_seconds
            .map_or("never read".into(), |age| format!("read {} ago", ago(age)));
        let agent = match &self.silent_since {
            None => "agent connected".into(),
            Some(since) => format!("AGENT SILENT since {since}: this is what it said last"),
        };
        let mut out = format!("{}\n{age}; {agent}\n", clean(&self.verdict));
        if !self.text.is_empty() {
            out += &format!("\n{}", self.text);
        }
        out
    }
}
