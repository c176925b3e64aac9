//! How what is differs from what should be, now. History is [`crate::settle`]'s business.
//!
//! Per pair of frontend and source: the observed row is held against the closest legitimate answer.
//! Equal facts of several sources become one [`Difference`]; those that follow from something wrong
//! with the whole node (hooks, a foreign rule) are absorbed by it.

mod collected;
mod node;
mod pair;
mod parts;
mod words;

use crate::address::{Family, Frontend, SourceClass};
use crate::capture::{DatapathState, Reading, Snapshot};
use crate::finding::{Difference, Evidence, Fact, FindingKind};
use crate::name::ServiceName;
use crate::profile::{LearntFrom, ProxyMode, ProxyProfile};
use crate::report::{Judged, NotJudged, Row};
use crate::table::{
    Action, Because, DecidedBy, DesiredTable, Forwarding, ForwardingTable, Key, Observed, OneOf,
};
use crate::view::{ClusterView, NodeView};
use collected::Collected;
use parts::Parts;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What one comparison gives.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    /// What differs, sorted by fact; absorbed ones are inside those that absorb them.
    pub differences: Vec<Difference>,
    /// How much was judged; `converging` is filled in by [`crate::examine`].
    pub judged: Judged,
    /// Every row that was looked at, in [`Row::place`]'s order.
    pub rows: Arc<[Arc<Row>]>,
    /// Rules of a datapath had been seen on this node before.
    pub programmed_before: bool,
    /// The pairs that each difference accounts for, absorbed ones included.
    pub pairs: BTreeMap<Fact, Vec<Key>>,
    /// Services of which something differs or could not be told: all others agree with the API.
    pub unsettled: BTreeSet<ServiceName>,
    parts: Parts,
}

impl Comparison {
    /// The rows of one frontend.
    pub(crate) fn rows_of(&self, frontend: Frontend) -> &[Arc<Row>] {
        let place = (frontend.family(), frontend);
        let at = |row: &Arc<Row>| (row.frontend.family(), row.frontend);
        let from = self.rows.partition_point(|r| at(r) < place);
        let rest = &self.rows[from..];
        &rest[..rest.partition_point(|r| at(r) <= place)]
    }
}

/// Names of the datapaths whose rows can be judged; without a backend's name: none of its rules is
/// there.
const COVERED: [&str; 5] = [
    "kube-proxy/nftables",
    "kube-proxy/iptables-nft",
    "kube-proxy/iptables-legacy",
    "kube-proxy/iptables",
    "kube-proxy/ipvs",
];

/// Is somebody in charge whose rows can be judged?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Charge {
    Covered,
    NotCovered,
    Nobody,
}

fn charge(snapshot: &Snapshot, profile: &ProxyProfile, programmed_before: bool) -> Charge {
    let named = snapshot
        .datapaths
        .iter()
        .find(|d| d.state == DatapathState::InCharge);
    if is_programmed(snapshot) {
        return match named {
            Some(d) if COVERED.contains(&&*d.name) => Charge::Covered,
            Some(_) => Charge::NotCovered,
            None => Charge::Nobody,
        };
    }
    // Nothing of it is in the kernel: everything is missing, or kube-proxy does not run here at all.
    // A hint (a ConfigMap that an earlier kube-proxy left) cannot tell; what was seen before can,
    // and so can kube-proxy itself.
    let mode = profile.mode.as_ref();
    let told = mode.is_some_and(|m| m.from >= LearntFrom::Flag);
    match mode.map(|m| m.value) {
        Some(ProxyMode::Nftables | ProxyMode::Iptables | ProxyMode::Ipvs)
            if told || (programmed_before && named.is_some()) =>
        {
            Charge::Covered
        }
        _ => Charge::Nobody,
    }
}

/// Is anything of a datapath in the kernel?
pub(crate) fn is_programmed(snapshot: &Snapshot) -> bool {
    snapshot.hooks.iter().any(|h| h.present)
        || snapshot
            .tables
            .values()
            .any(|t| t.read().is_some_and(has_rules))
}

/// Is a datapath in charge whose rows can be judged?
pub(crate) fn is_covered(
    snapshot: &Snapshot,
    profile: &ProxyProfile,
    programmed_before: bool,
) -> bool {
    charge(snapshot, profile, programmed_before) == Charge::Covered
}

/// Everything that a comparison looks at.
#[derive(Clone, Copy)]
struct Input<'a> {
    desired: &'a DesiredTable,
    snapshot: &'a Snapshot,
    node: &'a NodeView,
    profile: &'a ProxyProfile,
    view: &'a ClusterView,
    programmed_before: bool,
}

/// Compares what should be with what was read. The snapshot must be older than the view and the
/// view complete; `desired` is what [`crate::desired`] makes of `view`, `node` and `profile`.
/// `programmed_before`: rules of a datapath have been seen on this node. `earlier`: rows of an earlier
/// comparison; those that came out the same are used again.
pub fn compare(
    desired: &DesiredTable,
    snapshot: &Snapshot,
    node: &NodeView,
    profile: &ProxyProfile,
    view: &ClusterView,
    programmed_before: bool,
    earlier: &[Arc<Row>],
) -> Comparison {
    let input = Input {
        desired,
        snapshot,
        node,
        profile,
        view,
        programmed_before,
    };
    whole(input, earlier)
}

fn whole(input: Input<'_>, earlier: &[Arc<Row>]) -> Comparison {
    let mut out = Collected {
        earlier,
        ..Collected::default()
    };
    for family in Family::ALL {
        one_family(input, family, &mut out);
    }
    node::unknown_own_rules(input, &mut out);
    let parts = Parts::of(input, &mut out);
    Comparison {
        programmed_before: input.programmed_before,
        parts,
        ..out.finish()
    }
}

/// [`compare`], of which `earlier` is known: the comparison of another moment. `touched`: the frontends
/// of which a row, desired or observed, may be another than it was then; `None`: any.
pub fn compare_again(
    desired: &DesiredTable,
    snapshot: &Snapshot,
    node: &NodeView,
    profile: &ProxyProfile,
    view: &ClusterView,
    programmed_before: bool,
    (earlier, touched): (&Comparison, Option<&BTreeSet<Frontend>>),
) -> Comparison {
    let input = Input {
        desired,
        snapshot,
        node,
        profile,
        view,
        programmed_before,
    };
    let whole = || whole(input, &earlier.rows);
    let carried = touched.and_then(|touched| parts::carry_on(input, earlier, touched));
    assert!(
        !cfg!(test) || carried.as_ref().is_none_or(|c| c.says_the_same(&whole())),
        "carried on ({touched:?}), the comparison says something else than made whole"
    );
    carried.unwrap_or_else(whole)
}

impl Comparison {
    /// Is it the same in all that it says, and that the next comparison may be carried on from?
    pub fn says_the_same(&self, other: &Comparison) -> bool {
        self.differences == other.differences
            && self.judged == other.judged
            && self.rows == other.rows
            && self.programmed_before == other.programmed_before
            && self.pairs == other.pairs
            && self.unsettled == other.unsettled
            && self.parts.is_like(&other.parts)
    }
}

fn one_family(input: Input, family: Family, out: &mut Collected<'_>) {
    let wanted: Vec<(&Key, &OneOf<Forwarding>)> = input
        .desired
        .iter()
        .filter(|((f, _), _)| f.family() == family)
        .collect();
    let empty = ForwardingTable::default();
    let table = match input.snapshot.tables.get(&family) {
        Some(Reading::Read(table)) => table,
        Some(Reading::Absent) => &empty,
        Some(Reading::Failed(gap)) => return node::unreadable(&wanted, family, Some(gap), out),
        None => return node::unreadable(&wanted, family, None, out),
    };
    match charge(input.snapshot, input.profile, input.programmed_before) {
        Charge::Covered => {}
        Charge::NotCovered => {
            return node::not_judged(&wanted, NotJudged::DatapathNotCovered, out);
        }
        Charge::Nobody => return node::not_judged(&wanted, NotJudged::NoDatapath, out),
    }

    // kube-proxy leaves IPv6 out on a node without it (kube-proxy.md 1.3): then not even ::1 is there.
    let without = !input
        .node
        .addresses
        .iter()
        .any(|a| Family::of(a.address) == family);
    if family == Family::V6 && without && !has_rules(table) {
        return node::not_judged(&wanted, NotJudged::SourceImpossible, out);
    }

    let wildcards = Wildcards::of(input.desired, table, family);
    let rows = Rows {
        family,
        table,
        wildcards: &wildcards,
    };
    let observed_only = table
        .rows
        .keys()
        .filter(|k| k.0.family() == family && !input.desired.contains_key(k));
    let mut keys: Vec<Key> = wanted
        .iter()
        .map(|(k, _)| **k)
        .chain(observed_only.copied())
        .collect();
    keys.sort();
    let before: BTreeSet<Fact> = out.facts.keys().cloned().collect();
    for keys in keys.chunk_by(|a, b| a.0 == b.0) {
        let done = out.rows.len();
        for key in keys {
            one_pair(input, &rows, *key, out);
        }
        out.frontend_done(keys[0].0, done);
    }
    out.wildcards.insert(family, wildcards);
    if !wanted.is_empty() {
        node::hooks(input, family, table, &before, out);
    }
}

/// Does any rule of the datapath decide anything?
fn has_rules(table: &ForwardingTable) -> bool {
    table
        .rows
        .values()
        .any(|o| o.decided_by == DecidedBy::Datapath)
}

/// Wildcard rows by prefix, so that a look-up does not walk the whole table.
#[derive(Clone, Debug, PartialEq)]
struct Wildcards {
    desired: Vec<(ipnet::IpNet, SourceClass)>,
    observed: Vec<(ipnet::IpNet, SourceClass)>,
}

impl Wildcards {
    fn of(desired: &DesiredTable, table: &ForwardingTable, family: Family) -> Wildcards {
        fn prefixes<'a>(
            keys: impl Iterator<Item = &'a Key>,
            family: Family,
        ) -> Vec<(ipnet::IpNet, SourceClass)> {
            let mut all: Vec<_> = keys
                .filter_map(|(f, s)| match f {
                    Frontend::Prefix(p) if f.family() == family => Some((*p, *s)),
                    _ => None,
                })
                .collect();
            all.sort_by_key(|(p, _)| std::cmp::Reverse(p.prefix_len()));
            all
        }
        Wildcards {
            desired: prefixes(desired.keys(), family),
            observed: prefixes(table.rows.keys(), family),
        }
    }
}

struct Rows<'a> {
    family: Family,
    table: &'a ForwardingTable,
    wildcards: &'a Wildcards,
}

/// The wildcards that cover a frontend, closest first.
fn covering(
    frontend: Frontend,
    source: SourceClass,
    prefixes: &[(ipnet::IpNet, SourceClass)],
) -> Vec<Key> {
    let mut keys = Vec::new();
    if matches!(frontend, Frontend::Port { .. }) {
        keys.push((Frontend::Address(frontend.address()), source));
    }
    if !matches!(frontend, Frontend::Prefix(_)) {
        let inside = prefixes
            .iter()
            .filter(|(p, s)| *s == source && p.contains(&frontend.address()));
        keys.extend(inside.map(|(p, s)| (Frontend::Prefix(*p), *s)));
    }
    keys
}

fn one_pair(input: Input, rows: &Rows, key: Key, out: &mut Collected<'_>) {
    let (frontend, source) = key;
    let exact = rows.table.rows.get(&key);
    let wanted = input.desired.get(&key);
    let nothing;
    let observed: &Observed = match exact.or_else(|| {
        covering(frontend, source, &rows.wildcards.observed)
            .iter()
            .find_map(|k| rows.table.rows.get(k))
    }) {
        Some(o) => o,
        None => {
            nothing = Observed {
                forwarding: Forwarding::without_backends(None, Action::None),
                decided_by: DecidedBy::Nobody,
                evidence: Arc::new([words::absent(rows.family, frontend)]),
                backend_evidence: Arc::default(),
            };
            &nothing
        }
    };
    let unknown = matches!(observed.forwarding.action, Action::Unknown(_));
    if wanted.is_none()
        && (observed.decided_by == DecidedBy::Foreign
            || (unknown && observed.decided_by == DecidedBy::Nobody))
    {
        // Somebody else's destination that no Service asks for: not this program's business.
        return;
    }
    let service = wanted
        .and_then(|w| w.any_of.first())
        .and_then(|f| f.service.as_ref())
        .or(observed.forwarding.service.as_ref());
    out.row(key, service, wanted, Some(&observed.forwarding));
    if let Some(w) = wanted {
        node::api_conflict(key, w, out);
    }

    let user_space = input.profile.config.value.nftables_localhost_node_ports
        && frontend.address().is_loopback()
        && *input.profile.minors().end() >= 37;
    if user_space {
        return out.not(NotJudged::UserSpaceProxy, service);
    }
    if let Action::Unknown(why) = &observed.forwarding.action {
        return out.not(words::why_unknown(why), service);
    }
    match wanted {
        Some(wanted) => hold_against(input, key, wanted, observed, out),
        None => unasked(input, rows, key, observed, out),
    }
}

/// Something that the API asks for.
fn hold_against(
    input: Input,
    key: Key,
    wanted: &OneOf<Forwarding>,
    observed: &Observed,
    out: &mut Collected<'_>,
) {
    let o = &observed.forwarding;
    let closest = wanted
        .any_of
        .iter()
        .map(|d| (d, pair::contradictions(key.0, d, o)))
        .min_by_key(|(_, facts)| facts.len());
    let Some((answer, contradictions)) = closest else {
        return;
    };
    if contradictions.is_empty() && pair::masquerade_unknown(answer, o) {
        return out.not(NotJudged::UnknownExpression, answer.service.as_ref());
    }
    out.tally.judged.pairs += 1;
    out.tally.judged.multi_answer += u64::from(wanted.any_of.len() > 1);
    if contradictions.is_empty() {
        return;
    }
    let service = answer.service.as_ref().or(o.service.as_ref());
    if let Some(s) = service {
        out.tally.unsettled.insert(s.service.clone());
    }
    let facts = contradictions.into_iter().map(|c| {
        let fact = pair::fact(c, service, key.0);
        pair::difference(input.view, fact, answer, observed)
    });
    if observed.decided_by == DecidedBy::Foreign {
        let facts: BTreeSet<Fact> = facts.map(|d| d.fact).collect();
        return node::foreign_rule(key, observed, answer, facts, out);
    }
    for difference in facts.collect::<Vec<_>>() {
        out.add(difference, Some(key));
    }
}

/// Something that the rules name and the API does not ask for.
fn unasked(input: Input, rows: &Rows, key: Key, observed: &Observed, out: &mut Collected<'_>) {
    let o = &observed.forwarding;
    // Held against the wildcard that would answer otherwise: the same answer is no difference.
    let wildcard = covering(key.0, key.1, &rows.wildcards.desired)
        .iter()
        .find_map(|k| input.desired.get(k));
    if let Some(w) = wildcard {
        if w.any_of.iter().any(|d| d.action == o.action) {
            out.tally.judged.pairs += 1;
            return;
        }
        if o.action == Action::None {
            return hold_against(input, key, w, observed, out);
        }
    }
    if o.action == Action::None {
        out.tally.judged.pairs += 1;
        return;
    }
    // Which ranges kube-proxy refuses follows ServiceCIDRs, as old as its last full sync
    // (kube-proxy.md 5.8, 9): an unasked range shows nothing.
    if matches!(key.0, Frontend::Prefix(_)) {
        return out.not(NotJudged::ServiceCidrUnknown, None);
    }
    out.tally.judged.pairs += 1;
    if let Some(s) = &o.service {
        out.tally.unsettled.insert(s.service.clone());
    }
    let fact = Fact {
        kind: FindingKind::StaleFrontend,
        service: o.service.clone(),
        frontend: Some(key.0),
        backend: None,
        family: None,
        detail: None,
    };
    let nothing = Forwarding::without_backends(o.service.clone(), Action::None);
    out.add(
        pair::difference(input.view, fact, &nothing, observed),
        Some(key),
    );
}

/// A piece of evidence that names no object.
pub(crate) fn clause(says: impl Into<std::sync::Arc<str>>) -> Evidence {
    let none: std::sync::Arc<str> = "".into();
    Evidence {
        family: none.clone(),
        table: none.clone(),
        chain: none,
        handle: None,
        element: None,
        says: says.into(),
    }
}

fn is_conflict(wanted: &OneOf<Forwarding>) -> bool {
    wanted.because == Because::Conflict
}

#[cfg(test)]
mod cases;
