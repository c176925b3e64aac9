//! One whole pass as one pure function. Read this first.

use crate::address::Frontend;
use crate::capture::{Gap, Reading, Snapshot};
use crate::compare::{self, Comparison, clause, compare, compare_again};
use crate::desired::configuration_problems;
use crate::finding::{Difference, Fact, Finding, FindingKind, Severity};
use crate::limits;
use crate::name::ServiceName;
use crate::profile::{LearntFrom, ProxyHealth, ProxyProfile};
use crate::report::{Judged, NodeState, NotJudged, Report, thousands};
use crate::settle::{Context, Ledger, Settled};
use crate::table::{DesiredTable, Key};
use crate::time::{Mono, Now};
use crate::view::{ClusterView, Node, NodeView};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Everything one pass looks at.
#[derive(Clone, Copy, Debug)]
pub struct Pass<'a> {
    /// When the kernel was read.
    pub now: Now,
    /// Counts passes.
    pub number: u64,
    /// What the API said, as it was known *after* the kernel was read.
    pub view: &'a ClusterView,
    /// What the node itself said.
    pub node: &'a NodeView,
    /// Who programs the node.
    pub profile: &'a ProxyProfile,
    /// What kube-proxy's endpoints said; `None`: no running kube-proxy is expected (manifests).
    pub proxy: Option<&'a ProxyHealth>,
    /// What should be: [`crate::desired::desired`] of `view`, `node` and `profile`.
    pub desired: &'a DesiredTable,
    /// What is.
    pub snapshot: &'a Snapshot,
    /// Services whose objects were fetched again from the API since the last pass, on
    /// [`Examined::refresh`]: their view is now as fresh as the API server.
    pub refreshed: &'a [ServiceName],
    /// What could not be read, besides what `snapshot` says.
    pub gaps: &'a [Gap],
    /// The comparison that the last pass made.
    pub compared: Option<&'a Arc<Comparison>>,
    /// It was made of the very same `view`, `node`, `profile`, `desired` and `snapshot`.
    pub unchanged: bool,
    /// The frontends of which a row, desired or observed, may be another than in `compared`; `None`:
    /// any.
    pub touched: Option<&'a BTreeSet<Frontend>>,
}

/// What a pass gives.
#[derive(Clone, Debug)]
pub struct Examined {
    /// For the aggregator, the socket and the command line.
    pub report: Report,
    /// Services that should be fetched from the API once before the next pass, since the kernel
    /// had fulfilled a fact and no longer does (design 6 c).
    pub refresh: Vec<ServiceName>,
    /// For the next pass, should it look at the same.
    pub compared: Arc<Comparison>,
}

/// A node that is draining or gone explains differences for this long, milliseconds.
const LEAVING_MS: u64 = 600_000;

/// One pass: compare, settle, say.
pub fn examine(pass: &Pass, ledger: &mut Ledger) -> Examined {
    let state = state_of(pass, ledger);
    let mut gaps = pass.snapshot.gaps.clone();
    gaps.extend_from_slice(pass.gaps);
    let Pass {
        desired,
        snapshot,
        node,
        profile,
        view,
        ..
    } = *pass;
    let programmed = ledger.node.programmed;
    let compared = match pass.compared {
        Some(earlier) if pass.unchanged && earlier.programmed_before == programmed => {
            earlier.clone()
        }
        Some(earlier) => Arc::new(compare_again(
            desired,
            snapshot,
            node,
            profile,
            view,
            programmed,
            (earlier, pass.touched),
        )),
        None => {
            let compared = compare(desired, snapshot, node, profile, view, programmed, &[]);
            Arc::new(compared)
        }
    };
    let total = total(&compared.judged);

    let mut judged;
    let mut settled = Settled::default();
    if let Some((why, gap)) = cannot_judge(pass, state, ledger) {
        // History stands still meanwhile: nothing was confirmed, and nothing healed.
        judged = Judged::default();
        judged.not(why, total);
        gaps.extend(gap.filter(|gap| !pass.snapshot.gaps.contains(gap)));
    } else {
        let mut differences = compared.differences.clone();
        differences.extend(wrong_configuration(pass));
        let read: BTreeSet<_> = pass
            .snapshot
            .tables
            .iter()
            .filter(|(_, r)| !matches!(r, Reading::Failed(_)))
            .map(|(f, _)| *f)
            .collect();
        let context = Context {
            pass: pass.number,
            view: pass.view,
            desired: pass.desired,
            profile: pass.profile,
            proxy: pass.proxy,
            refreshed: pass.refreshed,
            unsettled: &compared.unsettled,
            read: &read,
            same: ledger
                .settled
                .as_ref()
                .is_some_and(|s| Arc::ptr_eq(s, &compared)),
            since: pass.compared.zip(pass.touched).and_then(|(last, touched)| {
                let settled = ledger.settled.as_ref()?;
                Arc::ptr_eq(settled, last).then_some((&**last, touched))
            }),
        };
        settled = ledger.settle(pass.now, &differences, context);
        ledger.settled = Some(compared.clone());
        if compare::is_covered(snapshot, profile, programmed) && state != NodeState::Draining {
            let proxy = ledger.proxy(pass.now, context);
            settled.findings.extend(proxy.findings);
            settled.converging.extend(proxy.converging);
        }
        judged = count(&compared, &settled);
    }

    let Settled {
        findings,
        converging,
        refresh,
        ..
    } = settled;
    let findings = worst_first(findings, &mut gaps);
    let converging = worst_first(converging, &mut gaps);
    let mut report = Report {
        node: pass.node.name.clone(),
        pass: pass.number,
        at: pass.now.wall,
        took_ms: 0,
        api_as_of: pass.view.as_of.map(|t| t.wall),
        state,
        verdict: String::new(),
        datapaths: pass.snapshot.datapaths.clone(),
        judged,
        gaps,
        findings,
        converging,
        rows: compared.rows.clone(),
        conntrack: None,
        flows: None,
    };
    report.verdict = verdict(&report);
    Examined {
        report,
        refresh,
        compared,
    }
}

fn total(judged: &Judged) -> u64 {
    judged.pairs + judged.unknown + judged.not_comparable
}

/// The node's own state. Each but ready expires.
fn state_of(pass: &Pass, ledger: &mut Ledger) -> NodeState {
    let deadline = ledger.deadline_ms(pass.profile);
    let history = &mut ledger.node;
    let began = *history.began.get_or_insert(pass.now.mono);
    history.programmed |= compare::is_programmed(pass.snapshot);
    let node = own_node(pass);
    let seen_before = history.registered;
    history.registered |= node.is_some();

    let leaving = match node {
        Some(n) if n.going => Some(NodeState::Draining),
        None if seen_before && pass.view.complete => Some(NodeState::Gone),
        _ => None,
    };
    match leaving {
        Some(state) => {
            let since: Mono = *history.leaving.get_or_insert(pass.now.mono);
            if pass.now.mono.since(since) < LEAVING_MS {
                return state;
            }
        }
        None => history.leaving = None,
    }
    // Manifests describe a node that has had its time.
    let young = pass.now.mono.since(began) < deadline && !pass.view.settled_facts;
    // And a kube-proxy that has synced and runs for longer has had it as well.
    let settled = pass.proxy.is_some_and(|p| {
        p.unreachable.is_none()
            && p.started
                .is_some_and(|t| pass.now.wall.0.saturating_sub(t) > deadline)
            && p.families.values().any(|f| f.last_sync_end.is_some())
    });
    if young && !settled && !history.programmed {
        NodeState::Starting
    } else {
        NodeState::Ready
    }
}

fn own_node<'a>(pass: &Pass<'a>) -> Option<&'a Node> {
    pass.view.nodes.get(&pass.node.name)
}

/// Why nothing at all can be judged, if so.
fn cannot_judge(
    pass: &Pass,
    state: NodeState,
    ledger: &Ledger,
) -> Option<(NotJudged, Option<Gap>)> {
    let gap = |what: &str, why: String| {
        Some(Gap {
            what: what.into(),
            why: why.into(),
        })
    };
    if !pass.view.complete {
        let why = "Services and EndpointSlices have not been read whole yet".to_string();
        return Some((NotJudged::ApiView, gap("API", why)));
    }
    if let Some(gap) = elsewhere(pass.view, pass.node) {
        return Some((NotJudged::Unreadable, Some(gap)));
    }
    match state {
        NodeState::Starting => {
            let waits = format!(
                "no datapath has programmed this node yet; it is given {} s",
                ledger.deadline_ms(pass.profile) / 1_000
            );
            let unread = pass
                .snapshot
                .tables
                .values()
                .any(|t| matches!(t, Reading::Failed(_)));
            (!unread).then(|| (NotJudged::NodeState, gap("datapath", waits)))
        }
        NodeState::Gone => Some((NotJudged::NodeState, None)),
        NodeState::Ready | NodeState::Draining => None,
    }
}

/// None of the Node's addresses is on a link here: what can be read here is not the node's.
pub fn elsewhere(view: &ClusterView, node: &NodeView) -> Option<Gap> {
    let own = view.nodes.get(&node.name)?;
    let all = || own.internal_ips.iter().chain(&own.external_ips);
    if own.internal_ips.is_empty() || all().any(|ip| node.is_local(*ip)) {
        return None;
    }
    let all: Vec<String> = all().map(ToString::to_string).collect();
    Some(Gap {
        what: "network namespace".into(),
        why: format!(
            "none of the addresses of Node {} ({}) is on a link here: this is not the node's network namespace (hostNetwork is missing, or --node names another node)",
            node.name,
            all.join(", ")
        )
        .into(),
    })
}

/// kube-proxy thinks that it is on another node: then it takes other endpoints for local. A hint
/// (its ConfigMap) is not enough to say so.
fn wrong_configuration(pass: &Pass) -> Option<Difference> {
    let config = &pass.profile.config;
    let name = config.value.node_name.clone()?;
    if config.from < LearntFrom::Flag || own_node(pass).is_none() {
        return None;
    }
    let problems = configuration_problems(pass.view, pass.node, pass.profile);
    let says = problems.first()?.clone();
    Some(Difference {
        fact: Fact {
            kind: FindingKind::WrongConfiguration,
            service: None,
            frontend: None,
            backend: None,
            family: None,
            detail: Some(name.clone()),
        },
        severity: Severity::Warning,
        sources: Vec::new(),
        evidence: vec![clause(format!(
            "kube-proxy's node name is {name}, the Node is {}",
            pass.node.name
        ))],
        says,
        beyond_the_api: true,
        absorbs: 0,
    })
}

/// The comparison's numbers, after the ledger has spoken.
fn count(compared: &Comparison, settled: &Settled) -> Judged {
    let pairs = |facts: &mut dyn Iterator<Item = &Fact>| -> BTreeSet<Key> {
        facts
            .filter(|f| f.kind != FindingKind::ApiConflict)
            .filter_map(|f| compared.pairs.get(f))
            .flatten()
            .copied()
            .collect()
    };
    let found = pairs(&mut settled.findings.iter().filter_map(|(f, _)| f.as_ref()));
    let converging = pairs(&mut settled.converging.iter().filter_map(|(f, _)| f.as_ref()));
    let untold = pairs(&mut settled.untold.iter());
    let mut judged = compared.judged.clone();
    judged.converging = converging.difference(&found).count() as u64;
    let untold = untold
        .difference(&found)
        .filter(|k| !converging.contains(*k))
        .count() as u64;
    judged.pairs = judged.pairs.saturating_sub(untold);
    judged.not(NotJudged::ApiView, untold);
    judged
}

fn worst_first(list: Vec<(Option<Fact>, Finding)>, gaps: &mut Vec<Gap>) -> Vec<Finding> {
    let mut all: Vec<Finding> = list.into_iter().map(|(_, f)| f).collect();
    all.sort_by(|a, b| {
        b.severity
            .cmp(&a.severity)
            .then_with(|| (a.kind, &a.service, a.frontend).cmp(&(b.kind, &b.service, b.frontend)))
            .then_with(|| (a.backend, &a.says).cmp(&(b.backend, &b.says)))
    });
    if all.len() > limits::FINDINGS_PER_REPORT {
        let more = all.len() - limits::FINDINGS_PER_REPORT;
        all.truncate(limits::FINDINGS_PER_REPORT);
        gaps.push(Gap {
            what: "report".into(),
            why: format!("{more} more findings do not fit into one report").into(),
        });
    }
    all
}

/// The report in one sentence or two.
fn verdict(report: &Report) -> String {
    let j = &report.judged;
    let untold = match j.unknown {
        0 => String::new(),
        n => format!(" {} pairs could not be told.", thousands(n)),
    };
    let serious: Vec<&Finding> = report
        .findings
        .iter()
        .filter(|f| f.severity >= Severity::Warning)
        .collect();
    if let Some(first) = serious.first() {
        let more = match serious.len() {
            1 => "1 finding".to_string(),
            n => format!("{} findings, the worst", thousands(n as u64)),
        };
        return format!("{more}: {}.{untold}", first.says.trim_end_matches('.'));
    }
    if let Some(f) = report
        .findings
        .iter()
        .find(|f| f.kind == FindingKind::Unreadable)
    {
        return format!("{}.{untold}", f.says.trim_end_matches('.'));
    }
    if j.pairs == 0 {
        let why = j
            .unknown_reasons
            .keys()
            .chain(j.not_comparable_reasons.keys())
            .next();
        return match (why, report.gaps.first()) {
            (Some(_), Some(gap)) => format!("Nothing could be judged: {}: {}.", gap.what, gap.why),
            (Some(why), None) => format!("Nothing could be judged: {}.", why.sentence()),
            (None, Some(gap)) => format!("There is nothing to judge; {}: {}.", gap.what, gap.why),
            (None, None) => {
                "There is nothing to judge: the API asks for nothing on this node.".into()
            }
        };
    }
    if j.converging > 0 || !report.converging.is_empty() {
        let what = match j.converging {
            0 => format!("{} facts are", thousands(report.converging.len() as u64)),
            n => format!(
                "{} of {} judged pairs differ and are",
                thousands(n),
                thousands(j.pairs)
            ),
        };
        return format!("{what} still converging.{untold}");
    }
    format!(
        "All {} judged pairs agree with the API.{untold}",
        thousands(j.pairs)
    )
}

#[cfg(test)]
pub(crate) mod kit;
#[cfg(test)]
mod tests;
