//! What the rules of everybody do with each destination: from the hooks down, never by chain
//! names alone.
//!
//! A row is one walk: the destination is a point (address, protocol, port), the source is known by
//! its class, chance and conditions on the source split the walk, and the branches' answers become
//! one again at the end. Points are taken from what is asked for and from what the datapath's own
//! rules name; rules and elements are found by hash, so 5,000 rules in a chain cost a row nothing.
//! Chain names and comments only name the Service and say which rules are the datapath's.

mod answer;
mod candidates;
mod effect;
mod eval;
mod hash;
mod kept;
mod met;
mod place;
mod program;
mod row;
mod set;
mod source;
mod understood;

use crate::netfilter::ruleset::{Chain, Ruleset, Table};
use eval::{Tails, Walker};
pub use kept::{Again, Kept, Rewalked};
use met::Met;
use model::address::{Family, Frontend, Protocol, SourceClass};
use model::capture::Reading;
use model::finding::Evidence;
use model::limits::EVIDENCE_PER_ROW;
use model::name::ServicePortName;
use model::profile::LocalDetector;
use model::table::{Action, DecidedBy, Forwarding, ForwardingTable, Key, Observed};
use model::view::NodeView;
use place::Proofs;
use program::{Known, Program};
use source::Source;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
pub use understood::NotUnderstood;

/// What a datapath says about names: which chains are its own, and whose they are.
pub trait Owner {
    /// Tells it from others.
    fn name(&self) -> &'static str;

    /// Is the chain the datapath's?
    fn owns(&self, table: &Table, chain: &Chain) -> bool;

    /// Does a chain of that name, one of the datapath's own, let clients in by source ranges?
    fn filters_sources(&self, chain: &str) -> bool;

    /// The service port that the names at a place tell.
    fn service_of(&self, names: &Names<'_>) -> Option<ServicePortName>;
}

/// The names at one of the datapath's own rules or elements.
#[derive(Clone, Copy, Debug)]
pub struct Names<'a> {
    /// The chain that holds the rule.
    pub chain: &'a str,
    /// The chain that the rule or element leads to.
    pub target: Option<&'a str>,
    /// The comment of the rule or the element. From strangers.
    pub comment: Option<&'a str>,
}

/// What is asked of the walk.
pub struct Ask<'a> {
    /// Frontends that must have rows, and whose they are.
    pub desired: &'a BTreeMap<Frontend, Option<ServicePortName>>,
    /// The node's addresses.
    pub node: &'a NodeView,
    /// How the datapath tells a Pod's packet.
    pub detector: &'a LocalDetector,
    /// The datapath whose frontends are looked for.
    pub owner: &'a dyn Owner,
}

/// What the rules do with every frontend that is asked for or that the datapath's rules name.
///
/// [`Reading::Absent`]: no table sees the family's packets and nothing of it is asked for.
pub fn walk(ruleset: &Ruleset, ask: &Ask<'_>) -> BTreeMap<Family, Reading<ForwardingTable>> {
    walk_all(ruleset, ask, true)
}

/// `by_tails`: what follows a translation is walked once for all backends that the rules treat alike.
fn walk_all(
    ruleset: &Ruleset,
    ask: &Ask<'_>,
    by_tails: bool,
) -> BTreeMap<Family, Reading<ForwardingTable>> {
    Family::ALL
        .into_iter()
        .map(|family| (family, walk_family(ruleset, ask, family, by_tails)))
        .collect()
}

fn walk_family(
    ruleset: &Ruleset,
    ask: &Ask<'_>,
    family: Family,
    by_tails: bool,
) -> Reading<ForwardingTable> {
    let known = Known::default();
    let programs = Program::orders(ruleset, family, ask.owner, &known);
    if is_absent(&programs, ask, family) {
        return Reading::Absent;
    }
    let named = candidates::Named::of(ruleset, ask.owner, family);
    let locals = Locals::of(ask.node);
    let local = |a: IpAddr| locals.has(a);
    let sides = Sides::new(&programs, ask, family, &local, by_tails);
    let mut table = ForwardingTable::default();
    for frontend in frontends(&named, ask, family) {
        let Some(point) = named.point(frontend, &local) else {
            continue;
        };
        table.rows.extend(sides.rows(frontend, point, None));
    }
    Reading::Read(table)
}

fn is_absent(programs: &[Program<'_>], ask: &Ask<'_>, family: Family) -> bool {
    programs[0].tables.is_empty() && !ask.desired.keys().any(|f| f.family() == family)
}

/// Those that rules name, and those that are asked for.
fn frontends(named: &candidates::Named, ask: &Ask<'_>, family: Family) -> BTreeSet<Frontend> {
    let mut all = named.frontends(ask.node);
    let desired = ask.desired.keys().filter(|f| f.family() == family);
    all.extend(desired.copied());
    all
}

/// The node's own addresses.
struct Locals(hash::Set<IpAddr>);

impl Locals {
    fn of(node: &NodeView) -> Locals {
        Locals(node.addresses.iter().map(|a| a.address).collect())
    }

    fn has(&self, address: IpAddr) -> bool {
        address.is_loopback() || self.0.contains(&address)
    }
}

/// Walks the rules from every side from which packets come.
struct Sides<'a, 'p> {
    programs: &'a [Program<'p>],
    ask: &'a Ask<'a>,
    local: &'a dyn Fn(IpAddr) -> bool,
    sources: Vec<(SourceClass, Rc<Source>)>,
    /// Addresses of `kube-ipvs0`.
    dummies: hash::Set<IpAddr>,
    /// By source and order; none where each packet is walked to its end.
    tails: Vec<Vec<RefCell<Tails<'a, 'p>>>>,
    proofs: Proofs,
}

impl<'a, 'p> Sides<'a, 'p> {
    fn new(
        programs: &'a [Program<'p>],
        ask: &'a Ask<'a>,
        family: Family,
        local: &'a dyn Fn(IpAddr) -> bool,
        by_tails: bool,
    ) -> Sides<'a, 'p> {
        let source = |c| Source::of_class(c, family, ask.detector, ask.node);
        let sources = SourceClass::ALL.map(|c| (c, Rc::new(source(c))));
        let tails = || programs.iter().map(|_| RefCell::default()).collect();
        Sides {
            programs,
            ask,
            local,
            tails: match by_tails {
                true => sources.iter().map(|_| tails()).collect(),
                false => Vec::new(),
            },
            sources: sources.into(),
            dummies: {
                let all = ask.node.addresses.iter();
                let dummies = all.filter(|a| &*a.link == "kube-ipvs0");
                dummies.map(|a| a.address).collect()
            },
            proofs: Proofs::default(),
        }
    }

    /// The rows of a frontend for which a packet to this point stands; none where nothing is asked for
    /// and the rules leave it alone. `met`: filled with what they depend on.
    fn rows(
        &'a self,
        frontend: Frontend,
        (address, protocol, port): (IpAddr, Protocol, u16),
        met: Option<&'a RefCell<Met>>,
    ) -> Vec<(Key, Observed)> {
        let wanted = self.ask.desired.get(&frontend);
        let mut rows = Vec::with_capacity(self.sources.len());
        for (i, (class, source)) in self.sources.iter().enumerate() {
            let (mut source, mut tails) = (source.clone(), self.tails.get(i));
            if address.is_loopback() {
                // Another source, with ways of its own.
                source = Rc::new(source.to_loopback(address));
                tails = None;
            } else if *class == SourceClass::Node && self.dummies.contains(&address) {
                source = Rc::new(source.to_dummy(address));
                tails = None;
            }
            let service = wanted.and_then(|w| w.as_ref());
            let row = in_any_order(self.programs, |program, order| {
                let mut walker = Walker::new(program, source.clone(), self.local);
                walker.tails = tails.map(|t| &t[order]);
                walker.met = met;
                let answer = walker.walk(address, protocol.number(), port);
                let affinity = &walker.affinity;
                let owner = self.ask.owner;
                row::observed(answer, affinity, owner, frontend, service, &self.proofs)
            });
            rows.push(((frontend, *class), row));
        }
        share(&mut rows);
        if wanted.is_none() && !rows.iter().any(|(_, r)| row::says_something(r)) {
            rows.clear();
        }
        rows
    }
}

/// Lists that the rows of one frontend have in common become one in memory.
fn share(rows: &mut [(Key, Observed)]) {
    fn same<T: PartialEq>(own: &mut Arc<[T]>, other: &Arc<[T]>) {
        if own == other {
            *own = other.clone();
        }
    }
    for i in 1..rows.len() {
        let (before, rest) = rows.split_at_mut(i);
        let row = &mut rest[0].1;
        for (_, other) in before {
            same(&mut row.forwarding.backends, &other.forwarding.backends);
            same(&mut row.evidence, &other.evidence);
            same(&mut row.backend_evidence, &other.backend_evidence);
        }
    }
}

/// What each order gives, if that is the same.
fn in_any_order<'a, 'p>(
    programs: &'a [Program<'p>],
    mut walk: impl FnMut(&'a Program<'p>, usize) -> Observed,
) -> Observed {
    let mut row = walk(&programs[0], 0);
    for (order, other) in programs.iter().enumerate().skip(1) {
        let other = walk(other, order);
        if (&other.forwarding, other.decided_by) != (&row.forwarding, row.decided_by) {
            let why = "several base chains have rules at the same hook and priority, and which of \
                       them comes first decides";
            let both = row.evidence.iter().chain(other.evidence.iter());
            let evidence = both.take(EVIDENCE_PER_ROW).cloned().collect();
            row = Observed {
                forwarding: Forwarding::without_backends(
                    row.forwarding.service,
                    Action::Unknown(why.into()),
                ),
                decided_by: DecidedBy::Nobody,
                evidence,
                backend_evidence: Arc::default(),
            };
        }
    }
    row
}

/// A concrete packet's way, place by place.
pub(crate) struct Way {
    /// The hook, the place, and the share of connections that chance sends there.
    pub places: Vec<(
        Option<crate::netfilter::ruleset::HookPoint>,
        Evidence,
        Option<f64>,
    )>,
    /// What becomes of it.
    pub end: Observed,
}

/// Walks a concrete packet. `link` is where it came in; `None`: the node itself sends it.
pub(crate) fn way(
    ruleset: &Ruleset,
    ask: &Ask<'_>,
    source: (IpAddr, Option<u16>, Option<std::sync::Arc<str>>),
    destination: (IpAddr, Protocol, u16),
) -> Way {
    let (address, protocol, port) = destination;
    let known = Known::default();
    let programs = Program::orders(ruleset, Family::of(address), ask.owner, &known);
    let local = |a: IpAddr| ask.node.is_local(a);
    let from = Rc::new(Source::exact(source.0, source.1, source.2, ask.node));
    let frontend = Frontend::port(address, protocol, port);
    let service = ask.desired.get(&frontend).and_then(|s| s.as_ref());
    let mut places = Vec::new();
    let proofs = Proofs::default();
    let end = in_any_order(&programs, |program, _| {
        let mut walker = Walker::new(program, from.clone(), &local);
        walker.passed = Some(Vec::new());
        let answer = walker.walk(address, protocol.number(), port);
        let passed = walker.passed.take().unwrap_or_default();
        // The places of one order; the end says whether the order matters.
        if places.is_empty() {
            places = passed
                .iter()
                .map(|p| (p.hook, p.place.evidence(), p.chance))
                .collect();
        }
        let affinity = &walker.affinity;
        row::observed(answer, affinity, ask.owner, frontend, service, &proofs)
    });
    Way { places, end }
}

#[cfg(test)]
pub(crate) mod tests;
