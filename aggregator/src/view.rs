//! What is said about the fleet. Pure: the fleet and a time go in; a value that becomes JSON, and its
//! text, come out. One module per question.

pub mod conntrack;
pub mod drift;
pub mod everywhere;
pub mod node;
pub mod nodes;
pub mod service;
pub mod words;

use crate::fleet::{Fleet, Member};
use crate::view::words::{ago, clean, stamp};
use model::finding::{Finding, Severity};
use model::name::{NodeName, ServiceName};
use model::time::Now;
use serde::Serialize;

/// An answer in both forms.
pub trait View: Serialize {
    /// Aligned text for somebody in an incident. Contains no control characters but line feeds.
    fn text(&self) -> String;
}

/// What was asked for is not there: what was wrong, and what exists instead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NotFound {
    /// One sentence.
    pub detail: String,
    /// What exists instead, at most [`CHOICES`].
    pub exists: Vec<String>,
}

/// Choices named in an error.
pub const CHOICES: usize = 20;

/// How old the data is.
#[derive(Clone, Debug, Serialize)]
pub struct Data {
    /// When the kernel was read, by the node's clock.
    pub read_at: Option<String>,
    /// How long ago that was.
    pub age_seconds: Option<f64>,
    /// Age of the agent's view of the API; null: it never had one.
    pub api_view_age_seconds: Option<f64>,
    /// Is the agent connected, and heard of lately?
    pub connected: bool,
    /// If not: since when it has been silent, by the aggregator's clock.
    pub silent_since: Option<String>,
}

impl Data {
    /// Of one node.
    pub fn of(member: &Member, now: Now) -> Data {
        let said = member.said.as_ref();
        Data {
            read_at: said.map(|s| stamp(s.at)),
            age_seconds: said.map(|s| s.age_ms(now) as f64 / 1000.0),
            api_view_age_seconds: said
                .and_then(|s| s.api_age_ms(now))
                .map(|a| a as f64 / 1000.0),
            connected: member.connected(now),
            silent_since: member.silent_since(now).map(stamp),
        }
    }

    /// One line.
    pub fn text(&self) -> String {
        let kernel = match self.age_seconds {
            Some(age) => format!("kernel read {} ago", ago(age)),
            None => "kernel not read yet".into(),
        };
        let api = match self.api_view_age_seconds {
            Some(age) => format!("against the API as of {} ago", ago(age)),
            None => "the API was never read".into(),
        };
        let agent = match &self.silent_since {
            None => "agent connected".into(),
            Some(since) => format!("AGENT SILENT since {since}: this is what it said last"),
        };
        format!("{kernel}, {api}; {agent}")
    }
}

/// A finding as it is shown.
#[derive(Clone, Debug, Serialize)]
pub struct Shown {
    /// Which node.
    pub node: String,
    /// What differs.
    pub kind: &'static str,
    /// How bad.
    pub severity: Severity,
    /// Whose, null for the whole node.
    pub service: Option<String>,
    /// Where.
    pub frontend: Option<String>,
    /// From where.
    pub sources: Vec<String>,
    /// Which backend.
    pub backend: Option<String>,
    /// Since when, RFC 3339, by the node's clock.
    pub since: String,
    /// How long ago that was.
    pub age_seconds: f64,
    /// Wrong again and again.
    pub recurring: bool,
    /// One sentence.
    pub says: String,
    /// Why it counts already.
    pub because: String,
    /// Findings of single Services that follow from it.
    pub absorbs: u64,
    /// The proof, one object each: family, table, chain, handle or element, what it does.
    pub evidence: Vec<String>,
}

impl Shown {
    /// A finding of a node.
    pub fn of(node: &NodeName, said: &crate::fleet::Said, f: &Finding, now: Now) -> Shown {
        Shown {
            node: node.to_string(),
            kind: f.kind.word(),
            severity: f.severity,
            service: f.service.as_ref().map(ToString::to_string),
            frontend: f.frontend.as_ref().map(ToString::to_string),
            sources: f.sources.iter().map(ToString::to_string).collect(),
            backend: f.backend.map(|b| b.to_string()),
            since: stamp(f.since),
            age_seconds: said.since_ms(f.since, now) as f64 / 1000.0,
            recurring: f.recurring,
            says: f.says.clone(),
            because: f.because.clone(),
            absorbs: f.absorbs,
            evidence: f.evidence.iter().map(ToString::to_string).collect(),
        }
    }

    /// Several lines: what, since when, why it counts, the proof.
    pub fn text(&self) -> String {
        let mut out = format!("  {} {}", severity(self.severity), self.kind);
        if let Some(s) = &self.service {
            out += &format!("  {}", clean(s));
        }
        if let Some(f) = &self.frontend {
            out += &format!("  {f}");
        }
        if !self.sources.is_empty() {
            out += &format!("  from {}", self.sources.join(", "));
        }
        out += &format!("\n    {}\n", clean(&self.says));
        out += &format!("    since  {} ({} ago)", self.since, ago(self.age_seconds));
        if self.recurring {
            out += ", again and again";
        }
        if !self.because.is_empty() {
            out += &format!("; {}", clean(&self.because));
        }
        out += "\n";
        for e in &self.evidence {
            out += &format!("    proof  {}\n", clean(e));
        }
        if self.absorbs > 0 {
            out += &format!(
                "    {} findings of single Services follow from it\n",
                self.absorbs
            );
        }
        out
    }
}

/// The word for a severity.
pub fn severity(s: Severity) -> &'static str {
    match s {
        Severity::Info => "info",
        Severity::Warning => "warning",
        Severity::Critical => "critical",
    }
}

/// A node, or an error that names nodes that exist.
pub fn member<'a>(fleet: &'a Fleet, name: &str) -> Result<(&'a NodeName, &'a Member), NotFound> {
    fleet
        .nodes
        .get_key_value(&NodeName::from(name))
        .ok_or_else(|| NotFound {
            detail: format!("no agent has reported from a node {name:?}"),
            exists: fleet
                .nodes
                .keys()
                .take(CHOICES)
                .map(|n| format!("/nodes/{}", words::path(&n.0)))
                .collect(),
        })
}

/// The Services among `known` that somebody may have meant by `wanted`: those of its name first, then
/// those of its namespace.
pub fn similar<'a>(
    known: impl Iterator<Item = &'a ServiceName> + Clone,
    wanted: &ServiceName,
) -> Vec<&'a ServiceName> {
    let same_name = known.clone().filter(|s| s.name == wanted.name);
    let same_namespace = known.filter(|s| s.namespace == wanted.namespace && s.name != wanted.name);
    same_name.chain(same_namespace).take(CHOICES).collect()
}
