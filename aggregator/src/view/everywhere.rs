//! `GET /svc/{namespace}/{name}`: one Service on all nodes, grouped by what they do, outliers first.

use super::service::{State, concerns, rows, standing};
use super::words::{ago, clean, count, few, path, thousands};
use super::{NotFound, View, similar};
use crate::fleet::Fleet;
use model::address::Frontend;
use model::finding::{Finding, FindingKind};
use model::name::ServiceName;
use model::time::Now;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Nodes named per group; the number counts all.
const NODES_SHOWN: usize = 50;
/// Clauses of one group.
const CLAUSES: usize = 5;

/// Nodes that do the same.
#[derive(Clone, Debug, Serialize)]
pub struct Group {
    /// How they stand.
    pub state: State,
    /// What they do, one clause.
    pub does: String,
    /// How many.
    pub count: u64,
    /// Their names, the first of them where there are many.
    pub nodes: Vec<String>,
    /// For how long the first of them has, at least.
    pub longest_seconds: Option<f64>,
}

/// The answer.
#[derive(Clone, Debug, Serialize)]
pub struct EverywhereView {
    /// One sentence.
    pub verdict: String,
    /// Which Service.
    pub service: String,
    /// Age of the oldest reading that this rests on.
    pub oldest_data_seconds: Option<f64>,
    /// Nodes whose agents are silent: they are in no group.
    pub silent_nodes: Vec<String>,
    /// Outliers first.
    pub groups: Vec<Group>,
}

/// One Service on all nodes.
pub fn everywhere(
    fleet: &Fleet,
    service: &ServiceName,
    now: Now,
) -> Result<EverywhereView, NotFound> {
    let known = fleet.services();
    if !known.contains(service) {
        return Err(NotFound {
            detail: format!("no node reports a Service {:?}", service.to_string()),
            exists: similar(known.iter().copied(), service)
                .into_iter()
                .map(|s| format!("/svc/{}/{}", path(&s.namespace), path(&s.name)))
                .collect(),
        });
    }
    // Frontends that several nodes have can be named; a node port's address is each node's own.
    let mut shared: HashMap<Frontend, u32> = HashMap::new();
    let live = || {
        fleet
            .nodes
            .iter()
            .filter(|(_, m)| m.connected(now))
            .map(|(n, m)| (n, m.said.as_ref()))
    };
    let alone = u32::from(live().count() < 2);
    for said in live().filter_map(|(_, s)| s) {
        let frontends: BTreeSet<Frontend> = rows(said, service).map(|r| r.frontend).collect();
        for f in frontends {
            *shared.entry(f).or_default() += 1 + alone;
        }
    }
    let mut groups: BTreeMap<(State, String), (Vec<String>, Option<u64>)> = BTreeMap::new();
    let mut oldest: Option<u64> = None;
    for (name, said) in live() {
        let mut since = None;
        let (state, does) = match said {
            None => (State::Unknown, "have not reported yet".to_string()),
            Some(said) => {
                oldest = oldest.max(Some(said.age_ms(now)));
                let state = standing(said, service);
                let list = match state {
                    State::Differs => said.report.findings.as_slice(),
                    State::Converging => said.report.converging.as_slice(),
                    _ => &[],
                };
                let mine: Vec<&Finding> = list.iter().filter(|f| concerns(f, service)).collect();
                since = mine.iter().map(|f| said.since_ms(f.since, now)).max();
                (
                    state,
                    does(state, &mine, &shared, said.services.contains_key(service)),
                )
            }
        };
        let group = groups.entry((state, does)).or_default();
        group.0.push(name.to_string());
        group.1 = group.1.max(since);
    }
    let mut groups: Vec<Group> = groups
        .into_iter()
        .map(|((state, does), (nodes, since))| Group {
            state,
            does,
            count: nodes.len() as u64,
            nodes,
            longest_seconds: since.map(|ms| ms as f64 / 1000.0),
        })
        .collect();
    // Outliers first: differing before the rest, small groups before large ones.
    groups.sort_by(|a, b| (a.state, a.count, &a.does).cmp(&(b.state, b.count, &b.does)));
    let silent_nodes: Vec<String> = fleet
        .nodes
        .iter()
        .filter(|(_, m)| !m.connected(now))
        .map(|(n, _)| n.to_string())
        .take(NODES_SHOWN)
        .collect();
    let mut parts: Vec<String> = groups.iter().take(4).map(Group::sentence).collect();
    if groups.len() > 4 {
        parts.push(count(groups.len() as u64 - 4, "more group", "more groups"));
    }
    if !silent_nodes.is_empty() {
        parts.push(format!("silent: {}", few(&silent_nodes, 5)));
    }
    for g in &mut groups {
        g.nodes.truncate(NODES_SHOWN);
    }
    Ok(EverywhereView {
        verdict: format!("{service}: {}", parts.join("; ")),
        service: service.to_string(),
        oldest_data_seconds: oldest.map(|ms| ms as f64 / 1000.0),
        silent_nodes,
        groups,
    })
}

impl Group {
    /// `3 nodes send to 10.2.3.4:8080 …: n17, n22`; agreement names nobody.
    fn sentence(&self) -> String {
        match (self.state, self.count) {
            (State::Agrees, 1) => "1 node agrees with the API".into(),
            (State::Agrees, n) => format!("{} nodes agree with the API", thousands(n)),
            (_, n) => format!(
                "{} {}: {}",
                count(n, "node:", "nodes"),
                self.does,
                few(&self.nodes, 5)
            ),
        }
    }
}

/// What a group of nodes does, from its findings.
fn does(
    state: State,
    findings: &[&Finding],
    shared: &HashMap<Frontend, u32>,
    reported: bool,
) -> String {
    match state {
        State::Agrees => return "agree with the API".into(),
        State::NotJudged => return "were not judged in all of it".into(),
        State::Unknown if !reported => return "do not report it".into(),
        State::Unknown => return "could not be read in all of it".into(),
        State::Differs | State::Converging => {}
    }
    let clauses: BTreeSet<String> = findings.iter().map(|f| clause(f, shared)).collect();
    let all: Vec<String> = clauses.into_iter().collect();
    let mut out = all
        .iter()
        .take(CLAUSES)
        .cloned()
        .collect::<Vec<_>>()
        .join("; ");
    if all.len() > CLAUSES {
        out += &format!("; and {} more", all.len() - CLAUSES);
    }
    if state == State::Converging {
        format!("still converge: {out}")
    } else {
        out
    }
}

fn clause(f: &Finding, shared: &HashMap<Frontend, u32>) -> String {
    let at = match f.frontend {
        None => String::new(),
        Some(at) => match at {
            Frontend::Port { protocol, port, .. } if shared.get(&at).is_none_or(|n| *n < 2) => {
                format!(" (port {port}/{protocol} of an address of their own)")
            }
            _ => format!(" ({at})"),
        },
    };
    let backend = f
        .backend
        .map(|b| b.to_string())
        .unwrap_or_else(|| "a backend".into());
    let what = match f.kind {
        FindingKind::StaleBackend => format!("send to {backend}, which the API does not offer"),
        FindingKind::MissingBackend => format!("send nothing to {backend}"),
        FindingKind::MissingFrontend => "do not answer".into(),
        FindingKind::StaleFrontend => "answer for a frontend that no Service has".into(),
        FindingKind::WrongShare => "balance in other proportions".into(),
        FindingKind::WrongAction => "forward, reject or drop otherwise".into(),
        FindingKind::WrongAffinity => "keep other session affinity".into(),
        FindingKind::WrongSourceRanges => "let other sources in".into(),
        FindingKind::WrongMasquerade => "masquerade otherwise".into(),
        FindingKind::HooksMissing => "do not lead packets to the datapath's rules".into(),
        FindingKind::ForeignRule => "have a foreign rule that decides first".into(),
        FindingKind::ApiConflict => "choose one of two Services that claim one address".into(),
        FindingKind::ProxyNotRunning
        | FindingKind::ProxyStuck
        | FindingKind::Unreadable
        | FindingKind::WrongConfiguration => format!("have {}", f.kind),
    };
    format!("{what}{at}")
}

impl View for EverywhereView {
    fn text(&self) -> String {
        let mut out = format!("{}\n", clean(&self.verdict));
        if let Some(age) = self.oldest_data_seconds {
            out += &format!("oldest reading {} ago\n", ago(age));
        }
        for g in &self.groups {
            out += &format!("\n{}: {}", count(g.count, "node", "nodes"), clean(&g.does));
            if let Some(s) = g.longest_seconds {
                out += &format!(" (for up to {})", ago(s));
            }
            out += &format!("\n  {}\n", few(&g.nodes, NODES_SHOWN));
        }
        if !self.silent_nodes.is_empty() {
            out += &format!(
                "\nsilent, not counted above\n  {}\n",
                few(&self.silent_nodes, NODES_SHOWN)
            );
        }
        out
    }
}
