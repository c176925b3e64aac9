//! What is wrong with the node as a whole, and absorbs what follows from it.

use super::{Collected, Input, clause, has_rules, is_conflict, pair, words};
use crate::address::Family;
use crate::capture::{Gap, Hook};
use crate::finding::{Difference, Evidence, Fact, FindingKind, Severity};
use crate::limits::EVIDENCE_PER_ROW;
use crate::profile::ProxyMode;
use crate::report::NotJudged;
use crate::table::{Forwarding, ForwardingTable, Key, Observed, OneOf};
use std::collections::BTreeSet;

fn node_fact(kind: FindingKind, family: Option<Family>) -> Fact {
    Fact {
        kind,
        service: None,
        frontend: None,
        backend: None,
        family,
        detail: None,
    }
}

/// Nothing of the wanted rows can be judged.
pub(super) fn not_judged(
    wanted: &[(&Key, &OneOf<Forwarding>)],
    why: NotJudged,
    out: &mut Collected<'_>,
) {
    for (key, w) in wanted {
        let service = w.any_of.first().and_then(|f| f.service.as_ref());
        out.not(why, service);
        out.row(**key, service, Some(w), None);
    }
}

/// The family's kernel state could not be read.
pub(super) fn unreadable(
    wanted: &[(&Key, &OneOf<Forwarding>)],
    family: Family,
    gap: Option<&Gap>,
    out: &mut Collected<'_>,
) {
    if wanted.is_empty() {
        return;
    }
    not_judged(wanted, NotJudged::Unreadable, out);
    let why = match gap {
        Some(gap) => format!("{}: {}", gap.what, gap.why),
        None => "it was not read".to_string(),
    };
    out.add(
        Difference {
            fact: node_fact(FindingKind::Unreadable, Some(family)),
            // Nobody's traffic is known to suffer; the exit code says that something is unknown.
            severity: Severity::Info,
            sources: Vec::new(),
            evidence: vec![clause(why.clone())],
            says: format!("The node's {family} rules could not be read: {why}"),
            beyond_the_api: true,
            absorbs: 0,
        },
        None,
    );
}

/// Detail of the fact that [`unknown_own_rules`] states.
pub(super) const OWN_RULES: &str = "own rules";

/// Expressions in the datapath's own rules that were not understood.
pub(super) fn unknown_own_rules(input: Input, out: &mut Collected<'_>) {
    let unknown = &input.snapshot.coverage.unknown_in_own_rules;
    let Some(first) = unknown.first() else { return };
    let mut fact = node_fact(FindingKind::Unreadable, None);
    fact.detail = Some(OWN_RULES.into());
    out.add(
        Difference {
            fact,
            severity: Severity::Info,
            sources: Vec::new(),
            evidence: unknown.iter().take(EVIDENCE_PER_ROW).cloned().collect(),
            says: format!(
                "{} expressions in the datapath's own rules were not understood, the first in {first}",
                unknown.len()
            ),
            beyond_the_api: true,
            absorbs: 0,
        },
        None,
    );
}

/// A rule that is not the datapath's decided, and not as the API asks: one difference for each
/// such rule, whatever number of Services it hits.
pub(super) fn foreign_rule(
    key: Key,
    observed: &Observed,
    answer: &Forwarding,
    facts: BTreeSet<Fact>,
    out: &mut Collected<'_>,
) {
    let rule = deciding(observed, answer);
    let mut fact = node_fact(FindingKind::ForeignRule, None);
    fact.detail = Some(rule.to_string().into());
    let name = match answer.service.as_ref() {
        Some(s) => format!("{s} on {}", key.0),
        None => key.0.to_string(),
    };
    let mut evidence = vec![rule.clone()];
    evidence.extend(observed.evidence.iter().filter(|e| **e != rule).cloned());
    let entry = out.add(
        Difference {
            fact,
            severity: Severity::Critical,
            sources: Vec::new(),
            evidence,
            says: format!(
                "A rule that is not the datapath's decides over Service traffic ({rule}): it {}, for example connections to {name}",
                words::does(&observed.forwarding)
            ),
            beyond_the_api: true,
            absorbs: 0,
        },
        Some(key),
    );
    entry.absorbed.extend(facts);
}

/// The rule that decided: the one that translates to a backend nobody asked for, else the last one
/// on the packet's way.
fn deciding(observed: &Observed, answer: &Forwarding) -> Evidence {
    let o = &observed.forwarding;
    let translated = o
        .backends
        .iter()
        .zip(observed.backend_evidence.iter())
        .find(|(b, _)| pair::twin(answer, b).is_none())
        .map(|(_, e)| e);
    translated
        .or(observed.evidence.last())
        .cloned()
        .unwrap_or_else(|| clause("a rule that is not the datapath's"))
}

/// Two Services claim one frontend: worth knowing, and no difference.
pub(super) fn api_conflict(key: Key, wanted: &OneOf<Forwarding>, out: &mut Collected<'_>) {
    if !is_conflict(wanted) {
        return;
    }
    let claims: BTreeSet<_> = wanted
        .any_of
        .iter()
        .filter_map(|f| f.service.clone())
        .collect();
    let mut names = claims.iter();
    let (Some(first), Some(second)) = (names.next(), names.next()) else {
        return;
    };
    out.add(
        Difference {
            fact: Fact {
                kind: FindingKind::ApiConflict,
                service: Some(first.clone()),
                frontend: Some(key.0),
                backend: None,
                family: None,
                detail: Some(second.to_string().into()),
            },
            severity: Severity::Info,
            sources: Vec::new(),
            evidence: claims
                .iter()
                .map(|s| clause(format!("Service {} asks for {}", s.service, key.0)))
                .take(EVIDENCE_PER_ROW)
                .collect(),
            says: format!(
                "{first} and {second} both ask for {}; which of them the node serves can change at any sync of kube-proxy",
                key.0
            ),
            beyond_the_api: true,
            absorbs: 0,
        },
        // No pair differs by it; the source is listed all the same.
        Some(key),
    );
}

/// Kinds that follow from a hook that is not there. Without an essential one packets do not reach
/// the rules that translate; without another one they are not refused, filtered or masqueraded.
fn follows(kind: FindingKind, essential: bool) -> bool {
    match kind {
        FindingKind::WrongAction
        | FindingKind::WrongSourceRanges
        | FindingKind::WrongMasquerade => true,
        FindingKind::MissingFrontend => essential,
        _ => false,
    }
}

/// Hooks of the datapath in charge that are not there.
pub(super) fn hooks(
    input: Input,
    family: Family,
    table: &ForwardingTable,
    before: &BTreeSet<Fact>,
    out: &mut Collected<'_>,
) {
    let all: Vec<&Hook> = input
        .snapshot
        .hooks
        .iter()
        .filter(|h| h.family == family)
        .collect();
    let missing: Vec<&Hook> = all.iter().copied().filter(|h| !h.present).collect();
    let no_rules = !has_rules(table);
    // No hook was even looked for, because nothing of the datapath is there.
    let nothing_at_all = all.is_empty() && no_rules;
    if missing.is_empty() && !nothing_at_all {
        return;
    }
    let gone = no_rules && missing.len() == all.len();
    let essential = gone || missing.iter().any(|h| h.essential);

    let mut evidence: Vec<Evidence> = missing
        .iter()
        .map(|h| h.evidence.clone())
        .take(EVIDENCE_PER_ROW - 1)
        .collect();
    let mut names: Vec<&str> = missing.iter().map(|h| &*h.name).collect();
    names.sort();
    names.dedup();
    let what = if gone {
        evidence.push(clause(format!(
            "the node has no {family} rules of the datapath in charge"
        )));
        format!("The {family} tables of the datapath in charge are gone")
    } else {
        format!(
            "{family} packets do not reach the datapath's rules from {}",
            names.join(", ")
        )
    };
    let effect = match (essential, gone) {
        (_, true) => "no Service address of this family works",
        (true, _) => "connections that come that way are not translated",
        (false, _) => "what it must refuse, filter or masquerade that way is not",
    };
    let mut fact = node_fact(FindingKind::HooksMissing, Some(family));
    // Another hook that is lost is another fact, with an age of its own.
    fact.detail = Some(if gone {
        "all".into()
    } else {
        names.join(", ").into()
    });
    let absorbed: Vec<Fact> = out
        .facts
        .keys()
        .filter(|f| {
            !before.contains(*f)
                && f.frontend.is_some_and(|x| x.family() == family)
                && follows(f.kind, essential)
        })
        .cloned()
        .collect();
    let mut sources = BTreeSet::new();
    let mut keys = BTreeSet::new();
    for fact in &absorbed {
        if let Some(c) = out.facts.remove(fact) {
            sources.extend(c.difference.sources);
            keys.extend(c.keys);
        }
    }
    let entry = out.add(
        Difference {
            fact,
            severity: if essential {
                Severity::Critical
            } else {
                Severity::Warning
            },
            sources: Vec::new(),
            evidence,
            says: format!("{what}: {effect}. {}", repair(input, gone)),
            beyond_the_api: true,
            absorbs: 0,
        },
        None,
    );
    entry.absorbed.extend(absorbed);
    entry.keys.extend(keys);
    entry.difference.sources = sources.into_iter().collect();
}

/// When the datapath will mend it by itself (kube-proxy.md 3.6, 5.8).
fn repair(input: Input, gone: bool) -> &'static str {
    let hourly = *input.profile.minors().start() >= 34;
    match (input.profile.mode.as_ref().map(|m| m.value), gone) {
        (Some(ProxyMode::Nftables), true) => {
            "kube-proxy writes it anew some 30 s after the next change of a Service or endpoint, else after up to two hours"
        }
        (Some(ProxyMode::Iptables), true) => {
            "kube-proxy writes it anew within its sync period where its canary chain is gone too, else at its next full sync"
        }
        _ if hourly => "kube-proxy mends it at its next full sync, after up to two hours",
        _ => "kube-proxy mends it at its next full sync, or when it is restarted",
    }
}
