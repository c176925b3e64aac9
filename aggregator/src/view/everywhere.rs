//! `GET /svc/{namespace}/{name}`: the debugging flow for one Service, and what all nodes do with it,
//! grouped, outliers first.

use super::service::{State, concerns, rows, standing};
use super::words::{ago, count, few, path, thousands};
use super::{NotFound, View, similar};
use crate::fleet::{Fleet, Said};
use model::address::Frontend;
use model::finding::{Finding, FindingKind};
use model::flow::{Api, NodeAnswer, NodeFlows, Question, Step, flow, wrapped};
use model::name::ServiceName;
use model::time::{Millis, Now};
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
    /// The debugging flow, in order.
    pub steps: Vec<Step>,
    /// How old what the API server said is; null where it is not followed, or not listed yet.
    pub api_age_seconds: Option<f64>,
    #[serde(skip)]
    steps_text: String,
}

/// One Service on all nodes, and in the API where it is followed.
pub fn everywhere(
    fleet: &Fleet,
    api: Api,
    service: &ServiceName,
    now: Now,
) -> Result<EverywhereView, NotFound> {
    let nodes = answers(fleet, service, now);
    let question = Question {
        service,
        api,
        nodes: &nodes,
        now,
    };
    let Some(flow) = flow(&question) else {
        return Err(unknown(fleet, api, service));
    };
    let mut oldest: Option<u64> = None;
    // Nodes, and since when, by what they do and what is said of it.
    type Groups<'a> = BTreeMap<(State, &'a str), (Vec<String>, Option<u64>)>;
    let mut groups = Groups::new();
    for answer in &nodes {
        let member = &fleet.nodes[answer.node];
        if !member.connected(now) {
            continue;
        }
        if let Some(said) = &member.said {
            oldest = oldest.max(Some(said.age_ms(now)));
        }
        let state = answer.state.unwrap_or(State::Unknown);
        let group = groups.entry((state, answer.does.as_str())).or_default();
        group.0.push(answer.node.to_string());
        group.1 = group
            .1
            .max(since(answer, service, member.said.as_ref(), now));
    }
    let mut groups: Vec<Group> = groups
        .into_iter()
        .map(|((state, does), (nodes, since))| Group {
            state,
            does: does.to_string(),
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
    let verdict = match (flow.api, nodes.iter().any(|n| n.reports)) {
        (false, _) => format!("{service}: {}", parts.join("; ")),
        (true, true) => format!("{}; {}", flow.verdict, parts.join("; ")),
        // Nothing of it is on nodes: that they do not report it is no news.
        (true, false) => flow.verdict.clone(),
    };
    let api_age_seconds = match api {
        Api::Known(objects) => objects.as_of(),
        Api::NotKnown(_) => None,
    };
    Ok(EverywhereView {
        verdict,
        service: service.to_string(),
        oldest_data_seconds: oldest.map(|ms| ms as f64 / 1000.0),
        silent_nodes,
        groups,
        steps_text: flow.steps_text(),
        steps: flow.steps,
        api_age_seconds: api_age_seconds.map(|at| now.mono.since(at.mono) as f64 / 1000.0),
    })
}

/// Nobody knows of it: what there is instead.
fn unknown(fleet: &Fleet, api: Api, service: &ServiceName) -> NotFound {
    let mut known = fleet.services();
    let detail = match api {
        Api::Known(objects) if objects.complete().is_some() => {
            known.extend(objects.services().map(|(name, _)| name));
            format!(
                "the API has no Service {:?}, no slice names it, and no node reports it",
                service.to_string()
            )
        }
        _ => format!("no node reports a Service {:?}", service.to_string()),
    };
    NotFound {
        detail,
        exists: similar(known.iter().copied(), service)
            .into_iter()
            .map(|s| format!("/svc/{}/{}", path(&s.namespace), path(&s.name)))
            .collect(),
    }
}

/// What each node says, in order of their names.
fn answers<'a>(fleet: &'a Fleet, service: &ServiceName, now: Now) -> Vec<NodeAnswer<'a>> {
    // Frontends that several nodes have can be named; a node port's address is each node's own.
    let mut shared: HashMap<Frontend, u32> = HashMap::new();
    let live = || fleet.nodes.values().filter(|m| m.connected(now));
    let alone = u32::from(live().count() < 2);
    for said in live().filter_map(|m| m.said.as_ref()) {
        let frontends: BTreeSet<Frontend> = rows(said, service).map(|r| r.frontend).collect();
        for f in frontends {
            *shared.entry(f).or_default() += 1 + alone;
        }
    }
    let about = |f: &&Finding| f.service.as_ref().is_none_or(|s| s.service == *service);
    let mut all = Vec::new();
    for (node, member) in &fleet.nodes {
        let said = member.said.as_ref().filter(|_| member.connected(now));
        let Some(said) = said else {
            all.push(NodeAnswer {
                node,
                state: None,
                reports: false,
                does: "have not reported yet".into(),
                findings: Vec::new(),
                converging: Vec::new(),
                flows: None,
            });
            continue;
        };
        let state = standing(said, service);
        let list = match state {
            State::Differs => said.report.findings.as_slice(),
            State::Converging => said.report.converging.as_slice(),
            _ => &[],
        };
        let mine: Vec<&Finding> = list.iter().filter(|f| concerns(f, service)).collect();
        let reports = said.services.contains_key(service);
        let findings = said.report.findings.iter().filter(about);
        all.push(NodeAnswer {
            node,
            state: Some(state),
            reports,
            does: does(state, &mine, &shared, reports),
            findings: findings.map(|f| (f, said.since_ms(f.since, now))).collect(),
            converging: said.report.converging.iter().filter(about).collect(),
            flows: said.flows.as_deref().map(|f| NodeFlows {
                reading: &f.reading,
                clock: said.since_ms(Millis(0), now),
            }),
        });
    }
    all
}

/// For how long a node has done what it does, milliseconds.
fn since(answer: &NodeAnswer, service: &ServiceName, said: Option<&Said>, now: Now) -> Option<u64> {
    let mine = |f: &&Finding| concerns(f, service);
    match answer.state {
        Some(State::Differs) => answer
            .findings
            .iter()
            .filter(|(f, _)| mine(f))
            .map(|(_, age)| *age)
            .max(),
        Some(State::Converging) => answer
            .converging
            .iter()
            .copied()
            .filter(mine)
            .filter_map(|f| Some(said?.since_ms(f.since, now)))
            .max(),
        _ => None,
    }
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
        let mut out = wrapped("", 2, &self.verdict);
        let api = self
            .api_age_seconds
            .map(|age| format!("API as of {} ago", ago(age)));
        let kernel = self
            .oldest_data_seconds
            .map(|age| format!("oldest reading {} ago", ago(age)));
        let times: Vec<String> = api.into_iter().chain(kernel).collect();
        if !times.is_empty() {
            out += &format!("{}\n", times.join(", "));
        }
        out += &format!("\n{}", self.steps_text);
        for g in &self.groups {
            let mut line = format!("{}: {}", count(g.count, "node", "nodes"), g.does);
            if let Some(s) = g.longest_seconds {
                line += &format!(" (for up to {})", ago(s));
            }
            out += &format!("\n{}", wrapped("", 2, &line));
            out += &wrapped("  ", 2, &few(&g.nodes, NODES_SHOWN));
        }
        if !self.silent_nodes.is_empty() {
            out += &format!(
                "\nsilent, not counted above\n{}",
                wrapped("  ", 2, &few(&self.silent_nodes, NODES_SHOWN))
            );
        }
        out
    }
}
