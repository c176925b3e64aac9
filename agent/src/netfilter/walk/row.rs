//! A table row from the answer of a walk.

use super::answer::{Answer, End, Leaf, Plain, Trail, tidy};
use super::eval::AffinityRule;
use super::place::{Place, Proofs};
use super::{Names, Owner};
use crate::netfilter::ruleset::{Data, Op, Verdict};
use model::address::Frontend;
use model::finding::Evidence;
use model::limits::EVIDENCE_PER_ROW;
use model::name::ServicePortName;
use model::table::{Action, Affinity, Backend, DecidedBy, Forwarding, Observed, SourceRanges};
use std::rc::Rc;
use std::sync::Arc;

/// Anything but a packet left alone?
pub(super) fn says_something(row: &Observed) -> bool {
    row.forwarding.action != Action::None || row.forwarding.source_ranges.is_some()
}

/// The row of a frontend.
pub(super) fn observed(
    answer: Answer<'_>,
    affinity: &[AffinityRule],
    owner: &dyn Owner,
    frontend: Frontend,
    wanted: Option<&ServicePortName>,
    proofs: &Proofs,
) -> Observed {
    let (inside, ranges) = match answer {
        Answer::Unknown(why) => {
            return Observed {
                forwarding: Forwarding::without_backends(wanted.cloned(), Action::Unknown(why)),
                decided_by: DecidedBy::Nobody,
                evidence: Arc::default(),
                backend_evidence: Arc::default(),
            };
        }
        Answer::Plain(leaves) => (leaves, None),
        Answer::Ranged {
            ranges,
            inside,
            outside,
        } => (inside, Some((ranges, outside))),
    };
    let mut row = plain(inside, affinity, owner, proofs);
    if let Some((ranges, outside)) = ranges {
        let other = plain(outside, affinity, owner, proofs);
        // A wildcard row shows its ranges like any other.
        row.forwarding.source_ranges = Some(SourceRanges {
            ranges,
            otherwise: other.forwarding.action,
        });
        if other.decided_by == DecidedBy::Foreign {
            row.decided_by = DecidedBy::Foreign;
        }
        let mut all = row.evidence.to_vec();
        for e in other.evidence.iter() {
            if !all.contains(e) {
                all.push(e.clone());
            }
        }
        all.truncate(EVIDENCE_PER_ROW);
        row.evidence = all.into();
    }
    if frontend.is_wildcard() {
        row.forwarding.service = None;
    } else if row.forwarding.service.is_none() || row.forwarding.service.as_ref() == wanted {
        // The same name is one name in memory.
        row.forwarding.service = wanted.cloned();
    }
    row
}

fn plain(
    leaves: Plain<'_>,
    affinity: &[AffinityRule],
    owner: &dyn Owner,
    proofs: &Proofs,
) -> Observed {
    let leaves = tidy(leaves);
    let service = leaves.iter().find_map(|l| service(l, owner));
    let decided_by = if leaves.iter().any(|l| l.by == DecidedBy::Foreign) {
        DecidedBy::Foreign
    } else if leaves.iter().any(|l| l.by == DecidedBy::Datapath) {
        DecidedBy::Datapath
    } else {
        DecidedBy::Nobody
    };
    let (forward, rest): (Vec<&Leaf>, Vec<&Leaf>) = leaves
        .iter()
        .partition(|l| matches!(l.end, End::Forward(_)));
    let mut evidence = common(&leaves, proofs);
    if forward.is_empty() {
        let action = match &rest[..] {
            [one] => match one.end {
                End::Reject => Action::Reject,
                End::Drop => Action::Drop,
                _ => Action::None,
            },
            [] => Action::Unknown("no way through the rules was found".into()),
            _ => Action::Unknown("chance decides between refusing, dropping and neither".into()),
        };
        return Observed {
            forwarding: Forwarding::without_backends(service, action),
            decided_by,
            evidence: evidence.into(),
            backend_evidence: Arc::default(),
        };
    }
    // Connections that get no backend although others do: the row shows the backends that there
    // are, with the rest as evidence in front.
    let sum: f64 = forward.iter().map(|l| l.weight).sum();
    for lost in &rest {
        let what = match lost.end {
            End::Reject => "refused",
            End::Drop => "dropped",
            _ => "left alone",
        };
        let mut e = lost.trail.as_ref().map_or_else(
            || Evidence {
                family: "".into(),
                table: "".into(),
                chain: "".into(),
                handle: None,
                element: None,
                says: "".into(),
            },
            |t| proofs.of(&t.place),
        );
        e.says = format!(
            "{:.1} % of new connections are {what}: {}",
            lost.weight * 100.0,
            e.says
        )
        .trim_end_matches([':', ' '])
        .into();
        evidence.insert(0, e);
    }
    evidence.truncate(EVIDENCE_PER_ROW);
    let mut backends = Vec::with_capacity(forward.len());
    let mut backend_evidence = Vec::with_capacity(forward.len());
    for leaf in &forward {
        let End::Forward(address) = leaf.end else {
            continue;
        };
        backends.push(Backend {
            address,
            share: leaf.weight / sum,
            masquerade: leaf.masquerade,
        });
        backend_evidence.push(leaf.translated.map_or_else(
            || Evidence {
                family: "".into(),
                table: "".into(),
                chain: "".into(),
                handle: None,
                element: None,
                says: format!("translated to {address}").into(),
            },
            |p| proofs.of(&p),
        ));
    }
    Observed {
        forwarding: Forwarding {
            service,
            action: Action::Forward,
            backends: backends.into(),
            affinity: kept(&forward, affinity),
            source_ranges: None,
        },
        decided_by,
        evidence: evidence.into(),
        backend_evidence: backend_evidence.into(),
    }
}

/// The affinity that the rules really give: every backend remembers its clients in a list, and a
/// rule leads the list's clients to that backend and no other.
fn kept(forward: &[&Leaf<'_>], rules: &[AffinityRule]) -> Affinity {
    if rules.is_empty() && forward.iter().all(|l| l.updates.is_empty()) {
        return Affinity::None;
    }
    let broken = |why: String| Affinity::Broken(why.into());
    let mut seconds = None;
    for leaf in forward {
        let End::Forward(to) = leaf.end else { continue };
        let rule = rules.iter().find(|r| leaf.updates.contains(&r.list));
        let Some(rule) = rule else {
            return broken(if leaf.updates.is_empty() {
                format!("clients of {to} are not remembered")
            } else {
                format!("clients of {to} are remembered and never looked up")
            });
        };
        if rule.backends.len() != 1 || !rule.backends.contains(&to) {
            return broken(format!("clients of {to} are not led back to it"));
        }
        match (rule.seconds, seconds) {
            (None, _) => {
                return broken(format!("clients of {to} are remembered without a timeout"));
            }
            (Some(t), None) => seconds = Some(t),
            (Some(t), Some(s)) if t != s => {
                return broken(format!("two timeouts: {s} s and {t} s"));
            }
            _ => {}
        }
    }
    for rule in rules {
        for to in &rule.backends {
            if !forward.iter().any(|l| l.end == End::Forward(*to)) {
                return broken(format!(
                    "remembered clients are led to {to}, new ones are not"
                ));
            }
        }
    }
    seconds.map_or_else(|| broken("no timeout".into()), Affinity::ClientIp)
}

/// The places that all ends have in common, in the packet's order.
fn common(leaves: &Plain<'_>, proofs: &Proofs) -> Vec<Evidence> {
    let Some((first, rest)) = leaves.split_first() else {
        return Vec::new();
    };
    let all = rest.iter().fold(first.trail.as_ref(), |shared, leaf| {
        beginning(shared, leaf.trail.as_ref())
    });
    let mut evidence: Vec<Evidence> = trail(all)
        .skip(depth(all).saturating_sub(EVIDENCE_PER_ROW))
        .map(|t| proofs.of(&t.place))
        .collect();
    evidence.reverse();
    evidence
}

type Last<'a, 'p> = Option<&'a Rc<Trail<'p>>>;

/// From the last place to the first.
fn trail<'a, 'p>(last: Last<'a, 'p>) -> impl Iterator<Item = &'a Rc<Trail<'p>>> {
    std::iter::successors(last, |t| t.before.as_ref())
}

fn depth(last: Last<'_, '_>) -> usize {
    trail(last).count()
}

/// The last place of what two trails have in common from their first place on.
fn beginning<'a, 'p>(a: Last<'a, 'p>, b: Last<'a, 'p>) -> Last<'a, 'p> {
    let (a_depth, b_depth) = (depth(a), depth(b));
    let mut a = trail(a).skip(a_depth.saturating_sub(b_depth)).peekable();
    let mut b = trail(b).skip(b_depth.saturating_sub(a_depth));
    let mut shared = a.peek().copied();
    while let (Some(x), Some(y)) = (a.next(), b.next()) {
        if Rc::ptr_eq(x, y) {
            break;
        }
        if x.place != y.place {
            shared = x.before.as_ref();
        }
    }
    shared
}

fn places<'p>(leaf: &Leaf<'p>) -> Vec<Place<'p>> {
    let mut all = Vec::new();
    let mut at: Option<&Rc<Trail<'p>>> = leaf.trail.as_ref();
    while let Some(t) = at {
        all.push(t.place);
        at = t.before.as_ref();
    }
    all.reverse();
    all
}

/// Whose the way is, by the names at the datapath's own places.
fn service(leaf: &Leaf<'_>, owner: &dyn Owner) -> Option<ServicePortName> {
    places(leaf).iter().filter(|p| p.own).find_map(|p| {
        let verdict = match p.element().and_then(|e| e.data.as_ref()) {
            Some(Data::Verdict(v)) => Some(v),
            _ => p.rule.and_then(|r| {
                r.ops.iter().rev().find_map(|op| match op {
                    Op::Verdict(v) => Some(v),
                    _ => None,
                })
            }),
        };
        let target = match verdict {
            Some(Verdict::Jump(to) | Verdict::Goto(to)) => Some(&**to),
            _ => None,
        };
        let comment = match p.element() {
            Some(e) => e.comment.as_deref(),
            None => p.rule.and_then(|r| r.comment.as_deref()),
        };
        owner.service_of(&Names {
            chain: &p.chain.name,
            target,
            comment,
        })
    })
}
