//! `GET /nodes/{node}/svc/{namespace}/{name}`: what the API wants of one Service on one node, what
//! that node's kernel does, how they differ, since when, the proof, and whether other nodes agree.

use super::words::{clean, count, few, path, thousands};
use super::{Data, NotFound, Shown, View, member, similar};
use crate::fleet::{Fleet, Said};
use crate::inspect::Freshness;
use model::finding::Finding;
use model::name::{NodeName, ServiceName};
pub use model::report::service::{RowView, State, concerns};
use model::report::service::{row_view, rows_text, says};
use model::report::{self, Row};
use model::time::Now;
use serde::Serialize;

/// Nodes named in text and JSON; the numbers count all.
const NODES_SHOWN: usize = 20;

/// A bare name means several Services.
#[derive(Clone, Debug, Serialize)]
pub struct Choices {
    /// One sentence.
    pub verdict: String,
    /// Where each is.
    pub choices: Vec<String>,
}

/// Why there is no answer.
#[derive(Clone, Debug)]
pub enum NoService {
    /// Several have this name.
    Ambiguous(Choices),
    /// None has.
    NotFound(NotFound),
}

/// Which Service a name means on a node: `name`, `namespace/name`, or a name with a namespace.
pub fn resolve(
    fleet: &Fleet,
    node: &str,
    name: &str,
    namespace: Option<&str>,
) -> Result<ServiceName, NoService> {
    let (node, member) = member(fleet, node).map_err(NoService::NotFound)?;
    let (namespace, name) = match name.split_once('/') {
        Some((ns, name)) => (Some(ns), name),
        None => (namespace, name),
    };
    if let Some(ns) = namespace {
        return Ok(ServiceName::new(ns, name));
    }
    let known = || member.said.iter().flat_map(|s| s.services.keys());
    let mut found = known().filter(|s| *s.name == *name);
    let at = |s: &ServiceName| svc_path(node, s);
    match (found.next(), found.next()) {
        (Some(one), None) => Ok(one.clone()),
        (None, _) => Err(NoService::NotFound(NotFound {
            detail: format!(
                "node {:?} reports no Service named {name:?} in any namespace",
                &*node.0
            ),
            exists: known().take(super::CHOICES).map(at).collect(),
        })),
        (Some(_), Some(_)) => {
            let all: Vec<String> = known().filter(|s| *s.name == *name).map(at).collect();
            Err(NoService::Ambiguous(Choices {
                verdict: format!(
                    "{} are named {name:?}: say which",
                    count(all.len() as u64, "Service", "Services")
                ),
                choices: all,
            }))
        }
    }
}

fn svc_path(node: &NodeName, s: &ServiceName) -> String {
    format!(
        "/nodes/{}/svc/{}/{}",
        path(&node.0),
        path(&s.namespace),
        path(&s.name)
    )
}

/// Whether other nodes agree with the API about the Service.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Others {
    /// Nodes without a finding about it that judged it.
    pub agree: u64,
    /// Nodes with one.
    pub differ: u64,
    /// The first of them.
    pub differing: Vec<String>,
    /// Nodes on which it is converging.
    pub converging: u64,
    /// Nodes whose kernel could not be told, or who do not report it.
    pub unknown: u64,
    /// Nodes whose agents are silent: not counted above.
    pub silent: u64,
}

impl Others {
    fn text(&self) -> String {
        let mut parts = vec![format!(
            "{} with the API",
            count(self.agree, "other node agrees", "other nodes agree")
        )];
        if self.differ > 0 {
            parts.push(format!(
                "{} ({})",
                count(self.differ, "differs", "differ"),
                few(&self.differing, NODES_SHOWN)
            ));
        }
        for (n, word) in [
            (self.converging, "converging"),
            (self.unknown, "unknown"),
            (self.silent, "silent"),
        ] {
            if n > 0 {
                parts.push(format!("{} {word}", thousands(n)));
            }
        }
        parts.join(", ")
    }
}

/// The answer.
#[derive(Clone, Debug, Serialize)]
pub struct ServiceView {
    /// One sentence.
    pub verdict: String,
    /// Which node.
    pub node: String,
    /// Which Service.
    pub service: String,
    /// How old all this is.
    pub data: Data,
    /// Whether the node was asked to look first; null: it was not.
    pub freshness: Option<Freshness>,
    /// What differs, and the proof; findings about the whole node that concern it included.
    pub findings: Vec<Shown>,
    /// What differs and is still given time.
    pub converging: Vec<Shown>,
    /// Per frontend and source.
    pub rows: Vec<RowView>,
    /// Other nodes.
    pub other_nodes: Others,
}

/// The rows of a Service.
pub fn rows<'a>(said: &'a Said, service: &ServiceName) -> impl Iterator<Item = &'a Row> {
    let positions = said
        .services
        .get(service)
        .map(Vec::as_slice)
        .unwrap_or_default();
    positions
        .iter()
        .filter_map(|i| said.report.rows.get(*i).map(|row| &**row))
        .collect::<Vec<_>>()
        .into_iter()
}

/// How a Service stands on one node.
pub fn standing(said: &Said, service: &ServiceName) -> State {
    report::service::standing(rows(said, service), &said.report, service)
}

/// One Service on one node.
pub fn service(
    fleet: &Fleet,
    node: &str,
    service: &ServiceName,
    now: Now,
) -> Result<ServiceView, NotFound> {
    let (name, member) = member(fleet, node)?;
    let said = member
        .said
        .as_ref()
        .filter(|s| s.services.contains_key(service))
        .ok_or_else(|| {
            let known = member.said.iter().flat_map(|s| s.services.keys());
            let known: Vec<&ServiceName> = known.collect();
            NotFound {
                detail: match &member.said {
                    None => format!("node {:?} has not reported yet", &*name.0),
                    Some(_) => format!(
                        "node {:?} reports no Service {:?}",
                        &*name.0,
                        service.to_string()
                    ),
                },
                exists: similar(known.iter().copied(), service)
                    .into_iter()
                    .map(|s| svc_path(name, s))
                    .collect(),
            }
        })?;
    let report = &*said.report;
    let shown = |list: &[Finding]| -> Vec<Shown> {
        list.iter()
            .filter(|f| concerns(f, service))
            .map(|f| Shown::of(name, said, f, now))
            .collect()
    };
    let rows: Vec<RowView> = rows(said, service)
        .map(|r| row_view(r, report, service))
        .collect();
    let findings = shown(&report.findings);
    let converging = shown(&report.converging);
    let standing = standing(said, service);
    let what = says(
        standing,
        findings.first().map(|f| (&*f.says, f.age_seconds)),
        findings.len(),
        converging.first().map(|f| &*f.says),
    );
    let silent = if member.connected(now) {
        ""
    } else {
        " (last known: the agent is silent)"
    };
    Ok(ServiceView {
        verdict: format!("{service} on {name}: {what}{silent}"),
        node: name.to_string(),
        service: service.to_string(),
        data: Data::of(member, now),
        freshness: None,
        findings,
        converging,
        rows,
        other_nodes: others(fleet, name, service, now),
    })
}

fn others(fleet: &Fleet, node: &NodeName, service: &ServiceName, now: Now) -> Others {
    let mut out = Others::default();
    for (name, member) in fleet.nodes.iter().filter(|(n, _)| *n != node) {
        if !member.connected(now) {
            out.silent += 1;
            continue;
        }
        match member.said.as_ref().map(|s| standing(s, service)) {
            Some(State::Agrees) => out.agree += 1,
            Some(State::Differs) => {
                out.differ += 1;
                if out.differing.len() < NODES_SHOWN {
                    out.differing.push(name.to_string());
                }
            }
            Some(State::Converging) => out.converging += 1,
            Some(State::Unknown | State::NotJudged) | None => out.unknown += 1,
        }
    }
    out
}

impl View for ServiceView {
    fn text(&self) -> String {
        let mut out = format!("{}\n{}", clean(&self.verdict), self.data.text());
        if let Some(freshness) = &self.freshness {
            out += &format!("; {}", freshness.says);
        }
        out.push('\n');
        out += &rows_text(&self.rows);
        for (title, list) in [
            ("Findings", &self.findings),
            (
                "Converging: differs, and is still given time",
                &self.converging,
            ),
        ] {
            if !list.is_empty() {
                out += &format!("\n{title}\n");
                for f in list {
                    out += &f.text();
                }
            }
        }
        out += &format!("\nOther nodes: {}\n", self.other_nodes.text());
        out
    }
}
