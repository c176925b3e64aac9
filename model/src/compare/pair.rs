//! One pair of frontend and source: what of one answer is contradicted.

use super::words;
use crate::address::{Family, Frontend};
use crate::finding::{Difference, Evidence, Fact, FindingKind, Severity};
use crate::name::ServicePortName;
use crate::table::{Action, Backend, Forwarding, Masquerade, Observed, SourceRanges};
use crate::view::ClusterView;
use ipnet::IpNet;
use std::net::SocketAddr;

/// Two shares closer than this are the same: kube-proxy's iptables rules carry probabilities in
/// 2^-31 steps, multiplied along the chain (kube-proxy.md 3.4).
pub(super) const SHARE_TOLERANCE: f64 = 1e-6;

/// What is contradicted, and by which backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Contradiction {
    pub kind: FindingKind,
    pub backend: Option<SocketAddr>,
}

/// What of the answer `d` the observed `o` contradicts. `o.action` is not unknown.
pub(super) fn contradictions(
    frontend: Frontend,
    d: &Forwarding,
    o: &Forwarding,
) -> Vec<Contradiction> {
    let mut found = Vec::new();
    if (&d.action, &d.backends, &d.affinity, &d.source_ranges)
        == (&o.action, &o.backends, &o.affinity, &o.source_ranges)
    {
        return found;
    }
    let mut add = |kind, backend| found.push(Contradiction { kind, backend });
    if d.action != o.action {
        let kind = match (&d.action, &o.action) {
            (Action::Forward, Action::None) => FindingKind::MissingFrontend,
            _ => FindingKind::WrongAction,
        };
        add(kind, None);
        return found;
    }
    if ranges(frontend, d) != ranges(frontend, o) {
        add(FindingKind::WrongSourceRanges, None);
    }
    if d.action != Action::Forward {
        return found;
    }
    let missing: Vec<_> = d.backends.iter().filter(|b| twin(o, b).is_none()).collect();
    let stale: Vec<_> = o.backends.iter().filter(|b| twin(d, b).is_none()).collect();
    for b in &missing {
        add(FindingKind::MissingBackend, Some(b.address));
    }
    for b in &stale {
        add(FindingKind::StaleBackend, Some(b.address));
    }
    let common = || d.backends.iter().filter_map(|b| twin(o, b).map(|t| (b, t)));
    if missing.is_empty()
        && stale.is_empty()
        && common().any(|(b, t)| (b.share - t.share).abs() > SHARE_TOLERANCE)
    {
        add(FindingKind::WrongShare, None);
    }
    if d.affinity != o.affinity {
        add(FindingKind::WrongAffinity, None);
    }
    if common().any(|(b, t)| wrong_masquerade(b, t)) {
        add(FindingKind::WrongMasquerade, None);
    }
    found
}

/// The backend of `f` at the same address.
pub(super) fn twin<'a>(f: &'a Forwarding, b: &Backend) -> Option<&'a Backend> {
    f.backends.iter().find(|t| t.address == b.address)
}

pub(super) fn wrong_masquerade(d: &Backend, o: &Backend) -> bool {
    d.masquerade != o.masquerade
        && d.masquerade != Masquerade::Unknown
        && o.masquerade != Masquerade::Unknown
}

/// Does the answer ask for a masquerade that could not be read?
pub(super) fn masquerade_unknown(d: &Forwarding, o: &Forwarding) -> bool {
    o.action == Action::Forward
        && o.backends.iter().any(|b| {
            b.masquerade == Masquerade::Unknown
                && twin(d, b).is_some_and(|t| t.masquerade != Masquerade::Unknown)
        })
}

/// Source ranges in one form: only those that can match, merged and sorted; `None` where they
/// restrict nobody, because one of them is everything or those outside get the same.
fn ranges(frontend: Frontend, f: &Forwarding) -> Option<SourceRanges> {
    let ranges = f.source_ranges.as_ref()?;
    if ranges.otherwise == f.action && f.action != Action::Forward {
        return None;
    }
    let own: Vec<IpNet> = ranges
        .ranges
        .iter()
        .filter(|r| Family::of(r.network()) == frontend.family())
        .map(IpNet::trunc)
        .collect();
    if own.iter().any(|r| r.prefix_len() == 0) {
        return None;
    }
    let mut merged = IpNet::aggregate(&own);
    merged.sort();
    Some(SourceRanges {
        ranges: merged,
        otherwise: ranges.otherwise.clone(),
    })
}

pub(super) fn fact(
    c: Contradiction,
    service: Option<&ServicePortName>,
    frontend: Frontend,
) -> Fact {
    Fact {
        kind: c.kind,
        service: service.cloned(),
        frontend: Some(frontend),
        backend: c.backend,
        family: None,
        detail: None,
    }
}

/// How bad a contradiction is.
fn severity(kind: FindingKind, d: &Forwarding, o: &Forwarding) -> Severity {
    match kind {
        FindingKind::MissingFrontend
        | FindingKind::StaleBackend
        | FindingKind::WrongSourceRanges => Severity::Critical,
        // Either traffic that must get through does not, or traffic that must not does.
        FindingKind::WrongAction if d.action == Action::Forward || o.action == Action::Forward => {
            Severity::Critical
        }
        // Replies to a client whose address was kept go around the node.
        FindingKind::WrongMasquerade
            if d.backends.iter().any(|b| {
                b.masquerade != Masquerade::Never
                    && twin(o, b).is_some_and(|t| t.masquerade == Masquerade::Never)
            }) =>
        {
            Severity::Critical
        }
        _ => Severity::Warning,
    }
}

/// The difference for a contradicted fact, with its proof.
pub(super) fn difference(
    view: &ClusterView,
    fact: Fact,
    d: &Forwarding,
    observed: &Observed,
) -> Difference {
    let o = &observed.forwarding;
    let mut evidence: Vec<Evidence> = Vec::new();
    let of_backend = |wanted: &dyn Fn(&Backend) -> bool| {
        let both = o.backends.iter().zip(observed.backend_evidence.iter());
        both.filter(|(b, _)| wanted(b))
            .map(|(_, e)| e.clone())
            .collect::<Vec<_>>()
    };
    match fact.kind {
        FindingKind::StaleBackend => {
            evidence.extend(of_backend(&|b| Some(b.address) == fact.backend));
        }
        FindingKind::WrongShare => {
            evidence.extend(of_backend(&|b| {
                twin(d, b).is_none_or(|t| (t.share - b.share).abs() > SHARE_TOLERANCE)
            }));
        }
        FindingKind::WrongMasquerade => {
            evidence.extend(of_backend(&|b| {
                twin(d, b).is_some_and(|t| wrong_masquerade(t, b))
            }));
        }
        _ => {}
    }
    evidence.extend(observed.evidence.iter().cloned());
    // The last place is the API's.
    evidence.truncate(crate::limits::EVIDENCE_PER_ROW - 1);
    evidence.push(words::api_says(view, &fact, d));
    Difference {
        severity: severity(fact.kind, d, o),
        sources: Vec::new(),
        says: words::says(view, &fact, d, o),
        evidence,
        beyond_the_api: false,
        absorbs: 0,
        fact,
    }
}
