//! The walk of one packet through the hooks: a known destination, a source known by its class.

use super::answer::{Answer, End, Leaf, Trail};
use super::program::{Candidates, Found, Key, NO_KEY, Part, Place, Program, value_fits};
use super::source::{Constraints, Prefixes, Source, Truth, decide, unknown_link};
use crate::netfilter::ruleset::{
    ChainType, Data, Field, HookPoint, Lookup, Match, NatTarget, Op, Rule, Value, Verdict,
};
use ipnet::IpNet;
use model::limits::{FORKS_PER_ROW, JUMP_DEPTH};
use model::table::{DecidedBy, Masquerade};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

/// conntrack state bits (`NF_CT_STATE_*`).
const CT_NEW: u64 = 8;
const CT_UNTRACKED: u64 = 64;
/// conntrack status bits (`IPS_SRC_NAT`, `IPS_DST_NAT`).
const IPS_SRC_NAT: u64 = 0x10;
const IPS_DST_NAT: u64 = 0x20;
/// Address types (`RTN_UNICAST`, `RTN_LOCAL`).
const RTN_UNICAST: u64 = 1;
const RTN_LOCAL: u64 = 2;

/// Where in the hooks a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    At(HookPoint),
    /// Sent by the node to itself: it comes in again by `lo`.
    Again(HookPoint),
    /// Translated to the node itself. Such a packet is not rewritten, but what its marks ask for is
    /// what the table shows (`model::desired` says the same): only nat chains of postrouting.
    Delivered,
    Through,
}

/// A chain being walked.
#[derive(Clone, Debug)]
struct Frame<'a, 'p> {
    chain: usize,
    rules: Candidates<'a>,
    /// What was there before the jump: a chain that did nothing leaves no trace.
    trail: Option<Rc<Trail<'p>>>,
    mark: u32,
}

/// A packet on its way.
#[derive(Clone, Debug)]
struct State<'a, 'p> {
    daddr: IpAddr,
    dport: u16,
    protocol: u8,
    original: IpAddr,
    mark: u32,
    destination_done: bool,
    source_done: bool,
    untracked: bool,
    masquerade: bool,
    stage: Stage,
    next_base: usize,
    base: usize,
    frames: Vec<Frame<'a, 'p>>,
    constraints: Constraints,
    in_ranges: Constraints,
    links: Vec<(Field, Value, bool)>,
    updates: Vec<Arc<str>>,
    trail: Option<Rc<Trail<'p>>>,
    translated: Option<Place<'p>>,
    /// Somebody else's rule that took the packet away before the datapath's rules saw it.
    caught: Option<Place<'p>>,
    remembered: bool,
}

/// A branch that was walked already and waits for the rest.
enum Pending<'p> {
    Chance(f64, Answer<'p>),
    Source {
        prefixes: Prefixes,
        negated: bool,
        yes: Answer<'p>,
    },
    Unknown(Arc<str>, Answer<'p>),
}

/// How a rule ended.
enum Flow<'p> {
    /// Next rule, or the next chain: the state says.
    On,
    End(Answer<'p>),
}

/// A rule that sends a remembered client to its backend again.
#[derive(Clone, Debug)]
pub(super) struct AffinityRule {
    pub list: Arc<str>,
    pub seconds: Option<u32>,
    pub backends: BTreeSet<SocketAddr>,
}

/// One place of a concrete packet's way.
pub(super) struct Passed<'p> {
    pub hook: Option<HookPoint>,
    pub place: Place<'p>,
    pub chance: Option<f64>,
}

/// Walks packets; one for each row.
pub(super) struct Walker<'a, 'p> {
    pub program: &'a Program<'p>,
    pub source: &'a Source,
    pub local: &'a dyn Fn(IpAddr) -> bool,
    pub forks: usize,
    pub affinity: Vec<AffinityRule>,
    /// Filled for a trace only.
    pub passed: Option<Vec<Passed<'p>>>,
}

impl<'a, 'p> Walker<'a, 'p> {
    pub fn new(
        program: &'a Program<'p>,
        source: &'a Source,
        local: &'a dyn Fn(IpAddr) -> bool,
    ) -> Self {
        Walker {
            program,
            source,
            local,
            forks: 0,
            affinity: Vec::new(),
            passed: None,
        }
    }

    /// What a new connection to this point gets.
    pub fn walk(&mut self, daddr: IpAddr, protocol: u8, dport: u16) -> Answer<'p> {
        let start = if self.source.from_node {
            HookPoint::Output
        } else {
            HookPoint::Prerouting
        };
        let state = State {
            daddr,
            dport,
            protocol,
            original: daddr,
            mark: 0,
            destination_done: false,
            source_done: false,
            untracked: false,
            masquerade: false,
            stage: Stage::At(start),
            next_base: 0,
            base: 0,
            frames: Vec::new(),
            constraints: Constraints::default(),
            in_ranges: Constraints::default(),
            links: Vec::new(),
            updates: Vec::new(),
            trail: None,
            translated: None,
            caught: None,
            remembered: false,
        };
        self.go(state, None)
    }

    /// Walks on from a state, from within a rule if one is given.
    fn go(&mut self, mut st: State<'a, 'p>, within: Option<(u32, usize)>) -> Answer<'p> {
        let mut pending: Vec<Pending<'p>> = Vec::new();
        let mut within = within;
        let end = loop {
            let Some(frame) = st.frames.last_mut() else {
                match self.next_base(&mut st) {
                    Some(answer) => break answer,
                    None => continue,
                }
            };
            let (rule, op) = match within.take() {
                Some(at) => at,
                None => match frame.rules.next() {
                    Some(rule) => (rule, 0),
                    None => match self.leave(&mut st) {
                        Some(answer) => break answer,
                        None => continue,
                    },
                },
            };
            match self.rule(&mut st, rule, op, &mut pending) {
                Flow::On => {}
                Flow::End(answer) => break answer,
            }
        };
        fold(pending, end)
    }

    /// Into the next base chain, or to the end of all hooks.
    fn next_base(&mut self, st: &mut State<'a, 'p>) -> Option<Answer<'p>> {
        let point = match st.stage {
            Stage::At(point) | Stage::Again(point) => point,
            Stage::Delivered => HookPoint::Postrouting,
            Stage::Through => return Some(self.through(st)),
        };
        let list = self.program.base(point);
        while let Some(&chain) = list.get(st.next_base) {
            st.next_base += 1;
            let Some(hook) = self.program.chains[chain].chain.hook else {
                continue;
            };
            if st.stage == Stage::Delivered && hook.kind != ChainType::Nat {
                continue;
            }
            if hook.kind == ChainType::Nat {
                let destination = matches!(point, HookPoint::Prerouting | HookPoint::Output);
                let done = if destination {
                    st.destination_done
                } else {
                    st.source_done
                };
                if done || st.untracked {
                    continue;
                }
            }
            st.base = chain;
            self.enter(st, chain);
            return None;
        }
        // A packet that no rule translated counts as decided: conntrack binds it as it is.
        match point {
            HookPoint::Prerouting | HookPoint::Output => st.destination_done = true,
            HookPoint::Postrouting => st.source_done = true,
            HookPoint::Input | HookPoint::Forward | HookPoint::Ingress => {}
        }
        let local = (self.local)(st.daddr);
        st.next_base = 0;
        st.stage = match st.stage {
            Stage::At(HookPoint::Prerouting) if local => Stage::At(HookPoint::Input),
            Stage::At(HookPoint::Prerouting) => Stage::At(HookPoint::Forward),
            Stage::At(HookPoint::Forward | HookPoint::Output) => Stage::At(HookPoint::Postrouting),
            Stage::At(HookPoint::Postrouting) if self.source.from_node && local => {
                Stage::Again(HookPoint::Prerouting)
            }
            Stage::Again(HookPoint::Prerouting) => Stage::Again(HookPoint::Input),
            Stage::At(HookPoint::Input) if st.translated.is_some() => Stage::Delivered,
            _ => Stage::Through,
        };
        None
    }

    fn enter(&self, st: &mut State<'a, 'p>, chain: usize) {
        let program = self.program;
        st.frames.push(Frame {
            chain,
            rules: program.chains[chain].candidates(st.daddr, st.protocol, st.dport),
            trail: st.trail.clone(),
            mark: st.mark,
        });
    }

    /// The end of a chain: back to the caller, or the base chain's policy.
    fn leave(&mut self, st: &mut State<'a, 'p>) -> Option<Answer<'p>> {
        let frame = st.frames.pop()?;
        if !st.frames.is_empty() {
            if st.mark == frame.mark {
                st.trail = frame.trail;
            }
            return None;
        }
        let base = self.program.chains[st.base].chain;
        if base.hook.is_some_and(|h| h.policy_drop) {
            let place = self.program.place(st.base, None);
            return Some(self.ended(st, End::Drop, place));
        }
        None
    }

    /// The packet went through all hooks.
    fn through(&mut self, st: &State<'a, 'p>) -> Answer<'p> {
        let (end, by) = match st.translated {
            Some(place) => (
                End::Forward(SocketAddr::new(st.daddr, st.dport)),
                if place.own {
                    DecidedBy::Datapath
                } else {
                    DecidedBy::Foreign
                },
            ),
            None if st.caught.is_some() => (End::None, DecidedBy::Foreign),
            None => (End::None, DecidedBy::Nobody),
        };
        let trail = match (st.translated, st.caught) {
            (None, Some(place)) => Some(Rc::new(Trail {
                place,
                before: None,
            })),
            _ => st.trail.clone(),
        };
        self.leaf(st, end, by, trail)
    }

    /// A rule or a policy ended the packet's way.
    fn ended(&mut self, st: &State<'a, 'p>, end: End, place: Place<'p>) -> Answer<'p> {
        self.note(st, place, None);
        let by = if place.own {
            DecidedBy::Datapath
        } else {
            DecidedBy::Foreign
        };
        let trail = Some(Rc::new(Trail {
            place,
            before: st.trail.clone(),
        }));
        self.leaf(st, end, by, trail)
    }

    fn leaf(
        &self,
        st: &State<'a, 'p>,
        end: End,
        by: DecidedBy,
        trail: Option<Rc<Trail<'p>>>,
    ) -> Answer<'p> {
        Answer::Plain(vec![Leaf {
            end,
            weight: 1.0,
            masquerade: if st.masquerade {
                Masquerade::Always
            } else {
                Masquerade::Never
            },
            by,
            trail,
            translated: st.translated,
            updates: st.updates.clone(),
        }])
    }

    /// Runs one rule from an op on.
    fn rule(
        &mut self,
        st: &mut State<'a, 'p>,
        index: u32,
        from: usize,
        pending: &mut Vec<Pending<'p>>,
    ) -> Flow<'p> {
        let Some(chain) = st.frames.last().map(|f| f.chain) else {
            return Flow::On;
        };
        let program = self.program;
        let Some(rule) = program.chains[chain].chain.rules.get(index as usize) else {
            return Flow::On;
        };
        let place = program.place(chain, Some(index));
        for (k, op) in rule.ops.iter().enumerate().skip(from) {
            match op {
                Op::Nothing => {}
                Op::Match(m) => match self.matches(st, chain, m) {
                    Truth::Yes => {}
                    Truth::No => return Flow::On,
                    truth => {
                        let link = matches!(m.field, Field::Iifname | Field::Oifname)
                            .then(|| m.any_of.first().map(|v| (m.field.clone(), v.clone())))
                            .flatten();
                        return self.fork(st, rule, (index, k), truth, m.negated, link, pending);
                    }
                },
                Op::Lookup(l) => match self.looks_up(st, chain, l) {
                    Truth::Yes => {}
                    Truth::No => return Flow::On,
                    truth => {
                        return self.fork(st, rule, (index, k), truth, l.negated, None, pending);
                    }
                },
                Op::VerdictMap(l) => return self.verdict_map(st, chain, index, l, pending),
                Op::NumgenVerdictMap {
                    modulus,
                    offset,
                    map,
                    ..
                } => {
                    return self.numgen(st, chain, index, (*modulus, *offset), map, pending, false);
                }
                Op::Probability { numerator } => {
                    let p = f64::from(*numerator) / 2_147_483_648.0;
                    return self.chance(st, (index, k), p, pending);
                }
                Op::Nth { every } => {
                    return self.chance(st, (index, k), 1.0 / f64::from((*every).max(1)), pending);
                }
                Op::SetMark { and, xor } => st.mark = (st.mark & and) ^ xor,
                Op::AffinityCheck { list, seconds } => {
                    self.remembered(st, chain, (index, k), list, *seconds);
                    return Flow::On;
                }
                Op::AffinityUpdate { list } => st.updates.push(list.clone()),
                Op::Dnat(target) => {
                    return self.translate(st, chain, index, place, target, pending);
                }
                Op::Redirect { port } => {
                    if self.source.from_node {
                        let to = if st.daddr.is_ipv4() {
                            IpAddr::from([127, 0, 0, 1])
                        } else {
                            IpAddr::from(std::net::Ipv6Addr::LOCALHOST)
                        };
                        self.translated(st, place, Some(to), *port);
                        return Flow::On;
                    }
                    return Flow::End(Answer::unknown(format!(
                        "redirected to an address of the link: {}",
                        place.evidence()
                    )));
                }
                Op::Snat(_) | Op::Masquerade => {
                    self.note(st, place, None);
                    st.masquerade = true;
                    st.source_done = true;
                    st.frames.clear();
                    return Flow::On;
                }
                Op::Reject => return Flow::End(self.ended(st, End::Reject, place)),
                Op::Verdict(v) => return self.verdict(st, chain, place, v),
                Op::NoTrack => {
                    if !st.destination_done {
                        st.untracked = true;
                        if !place.own {
                            st.caught.get_or_insert(place);
                        }
                    }
                }
                Op::UnknownMatch(what) => {
                    let why = format!("not understood: {what} ({})", place.evidence());
                    let truth = Truth::Unknown(why.into());
                    return self.fork(st, rule, (index, k), truth, false, None, pending);
                }
                Op::UnknownStatement(what) => {
                    return Flow::End(Answer::unknown(format!(
                        "not understood: {what} ({})",
                        place.evidence()
                    )));
                }
            }
        }
        Flow::On
    }

    /// Goes both ways; the state goes on as the one that did not match.
    #[allow(clippy::too_many_arguments)]
    fn fork(
        &mut self,
        st: &mut State<'a, 'p>,
        rule: &Rule,
        (index, op): (u32, usize),
        truth: Truth,
        negated: bool,
        link: Option<(Field, Value)>,
        pending: &mut Vec<Pending<'p>>,
    ) -> Flow<'p> {
        // A rule that only counts is the same either way.
        if rule.ops[op + 1..].iter().all(harmless) {
            return Flow::On;
        }
        self.forks += 1;
        if self.forks > FORKS_PER_ROW {
            return Flow::End(Answer::unknown(
                "too many forks: the rules depend on too much",
            ));
        }
        let mut yes = st.clone();
        match truth {
            Truth::Source(prefixes) => {
                let ranges = self.ranges(st);
                for (state, inside) in [(&mut yes, !negated), (&mut *st, negated)] {
                    let known = if ranges {
                        &mut state.in_ranges
                    } else {
                        &mut state.constraints
                    };
                    known.add(prefixes.clone(), inside);
                }
                let yes = self.go(yes, Some((index, op + 1)));
                pending.push(Pending::Source {
                    prefixes,
                    negated,
                    yes,
                });
            }
            Truth::Unknown(why) => {
                if let Some((field, value)) = link {
                    yes.links.push((field.clone(), value.clone(), !negated));
                    st.links.push((field, value, negated));
                }
                let yes = self.go(yes, Some((index, op + 1)));
                pending.push(Pending::Unknown(why, yes));
            }
            Truth::Yes | Truth::No => {}
        }
        Flow::On
    }

    fn chance(
        &mut self,
        st: &mut State<'a, 'p>,
        (index, op): (u32, usize),
        p: f64,
        pending: &mut Vec<Pending<'p>>,
    ) -> Flow<'p> {
        if p <= 0.0 {
            return Flow::On;
        }
        if let Some(chain) = st.frames.last().map(|f| f.chain) {
            let place = self.program.place(chain, Some(index));
            self.note(st, place, Some(p));
        }
        let yes = self.go(st.clone(), Some((index, op + 1)));
        pending.push(Pending::Chance(p, yes));
        Flow::On
    }

    /// Learns where the rule leads a remembered client; the walk goes on as one that is not.
    fn remembered(
        &mut self,
        st: &State<'a, 'p>,
        chain: usize,
        (index, op): (u32, usize),
        list: &Arc<str>,
        seconds: Option<u32>,
    ) {
        if st.remembered || self.affinity.iter().any(|a| a.list == *list) {
            return;
        }
        let seconds = seconds.or_else(|| {
            let ms = self.program.set(chain, list)?.set.timeout_ms?;
            u32::try_from(ms / 1000).ok()
        });
        let mut hit = st.clone();
        hit.remembered = true;
        let passed = self.passed.take();
        let answer = self.go(hit, Some((index, op + 1)));
        self.passed = passed;
        let mut backends = BTreeSet::new();
        if let Answer::Plain(leaves) | Answer::Ranged { inside: leaves, .. } = answer {
            backends.extend(leaves.iter().filter_map(|l| match l.end {
                End::Forward(to) => Some(to),
                _ => None,
            }));
        }
        self.affinity.push(AffinityRule {
            list: list.clone(),
            seconds,
            backends,
        });
    }

    fn verdict(
        &mut self,
        st: &mut State<'a, 'p>,
        chain: usize,
        place: Place<'p>,
        verdict: &Verdict,
    ) -> Flow<'p> {
        match verdict {
            Verdict::Continue => {}
            Verdict::Accept => {
                self.note(st, place, None);
                let nat = self.program.chains[st.base]
                    .chain
                    .hook
                    .is_some_and(|h| h.kind == ChainType::Nat);
                if nat && !place.own && !st.destination_done {
                    st.caught.get_or_insert(place);
                }
                st.frames.clear();
            }
            Verdict::Drop => return Flow::End(self.ended(st, End::Drop, place)),
            Verdict::Queue => {
                return Flow::End(Answer::unknown(format!(
                    "handed to a program in user space: {}",
                    place.evidence()
                )));
            }
            Verdict::Return => {
                if let Some(answer) = self.leave(st) {
                    return Flow::End(answer);
                }
            }
            Verdict::Jump(to) | Verdict::Goto(to) => {
                let Some(target) = self.program.target(chain, to) else {
                    return Flow::End(Answer::unknown(format!(
                        "leads to a chain that was not read: {}",
                        place.evidence()
                    )));
                };
                if st.frames.len() >= JUMP_DEPTH {
                    return Flow::End(Answer::unknown("chains are nested too deeply"));
                }
                self.note(st, place, None);
                let (trail, mark) = match verdict {
                    Verdict::Goto(_) => match st.frames.pop() {
                        Some(f) => (f.trail, f.mark),
                        None => (st.trail.clone(), st.mark),
                    },
                    _ => (st.trail.clone(), st.mark),
                };
                if st.translated.is_none() {
                    st.trail = Some(Rc::new(Trail {
                        place,
                        before: st.trail.take(),
                    }));
                }
                self.enter(st, target);
                if let Some(frame) = st.frames.last_mut() {
                    frame.trail = trail;
                    frame.mark = mark;
                }
            }
        }
        Flow::On
    }

    fn verdict_map(
        &mut self,
        st: &mut State<'a, 'p>,
        chain: usize,
        index: u32,
        lookup: &'p Lookup,
        pending: &mut Vec<Pending<'p>>,
    ) -> Flow<'p> {
        let place = self.program.place(chain, Some(index));
        let Some(set) = self.program.set(chain, &lookup.set) else {
            return Flow::End(Answer::unknown(format!(
                "a map that was not read: {}",
                lookup.set
            )));
        };
        let at = |i: usize| Place {
            element: Some((set.set, i)),
            fields: &lookup.key,
            ..place
        };
        let found = match self.key(st, &lookup.key) {
            Ok((key, source)) => set.find(&key, source),
            Err(why) => {
                return Flow::End(Answer::unknown(format!("{why} ({})", place.evidence())));
            }
        };
        match found {
            Found::Missing => Flow::On,
            Found::Element(i) => match &set.set.elements[i].data {
                Some(Data::Verdict(v)) => self.verdict(st, chain, at(i), v),
                _ => Flow::End(Answer::unknown(format!(
                    "not a verdict: {}",
                    at(i).evidence()
                ))),
            },
            Found::BySource(all) => {
                for (prefix, i) in all.iter() {
                    let Some(Data::Verdict(v)) = &set.set.elements[*i].data else {
                        continue;
                    };
                    let prefixes: Prefixes = Rc::from([*prefix]);
                    match self.source_in(st, &prefixes) {
                        Truth::No => {}
                        Truth::Yes => return self.verdict(st, chain, at(*i), v),
                        _ => {
                            self.forks += 1;
                            if self.forks > FORKS_PER_ROW {
                                return Flow::End(Answer::unknown("too many forks"));
                            }
                            let mut yes = st.clone();
                            yes.constraints.add(prefixes.clone(), true);
                            st.constraints.add(prefixes.clone(), false);
                            let yes = match self.verdict(&mut yes, chain, at(*i), v) {
                                Flow::End(answer) => answer,
                                Flow::On => self.go(yes, None),
                            };
                            pending.push(Pending::Source {
                                prefixes,
                                negated: false,
                                yes,
                            });
                        }
                    }
                }
                Flow::On
            }
            Found::Unknown(why) => {
                Flow::End(Answer::unknown(format!("{why} ({})", place.evidence())))
            }
        }
    }

    /// One of a map's elements by chance: a verdict, or with `nat` a new destination.
    #[allow(clippy::too_many_arguments)]
    fn numgen(
        &mut self,
        st: &mut State<'a, 'p>,
        chain: usize,
        index: u32,
        (modulus, offset): (u32, u32),
        map: &str,
        pending: &mut Vec<Pending<'p>>,
        nat: bool,
    ) -> Flow<'p> {
        let place = self.program.place(chain, Some(index));
        let Some(set) = self.program.set(chain, map) else {
            return Flow::End(Answer::unknown(format!("a map that was not read: {map}")));
        };
        // A range of numbers is one element with its share.
        let mut shares: Vec<(usize, u32)> = Vec::new();
        for i in 0..modulus.min(65_536) {
            let mut key = NO_KEY;
            key[0] = Part::Number(u64::from(i) + u64::from(offset));
            match set.find(&key, None) {
                Found::Element(e) => match shares.last_mut() {
                    Some((last, n)) if *last == e => *n += 1,
                    _ => shares.push((e, 1)),
                },
                Found::Missing | Found::BySource(_) => {}
                Found::Unknown(why) => {
                    return Flow::End(Answer::unknown(format!("{why} ({})", place.evidence())));
                }
            }
        }
        let mut left = f64::from(modulus);
        for (e, n) in shares {
            let p = f64::from(n) / left;
            left -= f64::from(n);
            let at = Place {
                element: Some((set.set, e)),
                ..place
            };
            let mut branch = st.clone();
            self.note(&branch, at, Some(f64::from(n) / f64::from(modulus)));
            let answer = match (&set.set.elements[e].data, nat) {
                (Some(Data::Verdict(v)), false) => match self.verdict(&mut branch, chain, at, v) {
                    Flow::End(answer) => answer,
                    Flow::On => self.go(branch, None),
                },
                (Some(Data::Endpoint(a, port)), true) => {
                    self.translated(&mut branch, at, Some(*a), *port);
                    self.go(branch, None)
                }
                _ => Answer::unknown(format!("not understood: {}", at.evidence())),
            };
            pending.push(Pending::Chance(p.min(1.0), answer));
        }
        // An index without an element ends the rule; the next one sees the packet.
        Flow::On
    }

    fn translate(
        &mut self,
        st: &mut State<'a, 'p>,
        chain: usize,
        index: u32,
        place: Place<'p>,
        target: &'p NatTarget,
        pending: &mut Vec<Pending<'p>>,
    ) -> Flow<'p> {
        match target {
            NatTarget::Fixed { address, port } => {
                self.translated(st, place, *address, *port);
                Flow::On
            }
            NatTarget::NumgenMap {
                modulus,
                offset,
                map,
                ..
            } => self.numgen(st, chain, index, (*modulus, *offset), map, pending, true),
            NatTarget::Map(lookup) => {
                let Some(set) = self.program.set(chain, &lookup.set) else {
                    return Flow::End(Answer::unknown(format!(
                        "a map that was not read: {}",
                        lookup.set
                    )));
                };
                let found = match self.key(st, &lookup.key) {
                    Ok((key, None)) => set.find(&key, None),
                    Ok(_) => Found::Unknown("a destination that depends on the source"),
                    Err(why) => {
                        return Flow::End(Answer::unknown(format!("{why} ({})", place.evidence())));
                    }
                };
                match found {
                    Found::Missing => Flow::On,
                    Found::Element(i) => {
                        let at = Place {
                            element: Some((set.set, i)),
                            fields: &lookup.key,
                            ..place
                        };
                        match &set.set.elements[i].data {
                            Some(Data::Endpoint(a, port)) => {
                                self.translated(st, at, Some(*a), *port);
                                Flow::On
                            }
                            _ => Flow::End(Answer::unknown(format!(
                                "not understood: {}",
                                at.evidence()
                            ))),
                        }
                    }
                    Found::BySource(_) => Flow::On,
                    Found::Unknown(why) => {
                        Flow::End(Answer::unknown(format!("{why} ({})", place.evidence())))
                    }
                }
            }
            NatTarget::Unknown(what) => Flow::End(Answer::unknown(format!(
                "translated in a way not understood: {what} ({})",
                place.evidence()
            ))),
        }
    }

    fn translated(
        &mut self,
        st: &mut State<'a, 'p>,
        place: Place<'p>,
        address: Option<IpAddr>,
        port: Option<u16>,
    ) {
        self.note(st, place, None);
        st.daddr = address.unwrap_or(st.daddr);
        st.dport = port.unwrap_or(st.dport);
        st.translated = Some(place);
        st.destination_done = true;
        st.trail = Some(Rc::new(Trail {
            place,
            before: st.trail.take(),
        }));
        st.frames.clear();
    }

    fn ranges(&self, st: &State<'a, 'p>) -> bool {
        st.frames
            .last()
            .is_some_and(|f| self.program.chains[f.chain].ranges)
    }

    fn source_in(&self, st: &State<'a, 'p>, prefixes: &Prefixes) -> Truth {
        decide(
            self.source,
            &st.constraints,
            &st.in_ranges,
            self.ranges(st),
            prefixes,
        )
    }

    /// Decides a condition.
    fn matches(&self, st: &State<'a, 'p>, _chain: usize, m: &Match) -> Truth {
        let truth = self.any_of(st, m);
        match (truth, m.negated) {
            (Truth::Yes, true) => Truth::No,
            (Truth::No, true) => Truth::Yes,
            (t, _) => t,
        }
    }

    fn any_of(&self, st: &State<'a, 'p>, m: &Match) -> Truth {
        match m.field {
            Field::Saddr => {
                let mut prefixes: Vec<IpNet> = Vec::with_capacity(m.any_of.len());
                for v in &m.any_of {
                    match v {
                        Value::Prefix(p) => prefixes.push(*p),
                        Value::AddressRange(a, b) => {
                            prefixes.extend(super::source::range_prefixes(*a, *b));
                        }
                        _ => return Truth::Unknown("a source address not understood".into()),
                    }
                }
                self.source_in(st, &prefixes.into())
            }
            Field::Iifname | Field::Oifname => self.link(st, m),
            Field::Sport if self.source.port.is_none() => {
                if m.any_of
                    .iter()
                    .any(|v| matches!(v, Value::Number(0, b) if *b >= 65_535))
                {
                    Truth::Yes
                } else {
                    Truth::Unknown("depends on the source port".into())
                }
            }
            _ => {
                let part = match self.field(st, &m.field) {
                    Ok(part) => part,
                    Err(why) => return Truth::Unknown(why),
                };
                let part = match (part, m.mask) {
                    (Part::Number(n), Some(mask)) => Part::Number(n & mask),
                    (part, None) => part,
                    _ => return Truth::Unknown("a masked field not understood".into()),
                };
                let mut unknown = false;
                for v in &m.any_of {
                    match value_fits(v, &part) {
                        Some(true) => return Truth::Yes,
                        Some(false) => {}
                        None => unknown = true,
                    }
                }
                if unknown {
                    Truth::Unknown(format!("{:?} compared with bytes", m.field).into())
                } else {
                    Truth::No
                }
            }
        }
    }

    fn link(&self, st: &State<'a, 'p>, m: &Match) -> Truth {
        let mut unknown = None;
        for v in &m.any_of {
            let Value::Name(name, prefix) = v else {
                return Truth::Unknown("a link's name not understood".into());
            };
            let known = st.links.iter().find(|(f, k, _)| *f == m.field && k == v);
            let truth = match known {
                Some((_, _, is)) => Truth::of(*is),
                None if m.field == Field::Iifname => {
                    let looped = matches!(st.stage, Stage::Again(_));
                    self.source.came_in_on(name, *prefix, looped)
                }
                None => self.leaves_by(st, name, *prefix),
            };
            match truth {
                Truth::Yes => return Truth::Yes,
                Truth::No => {}
                t => unknown = Some(t),
            }
        }
        unknown.unwrap_or(Truth::No)
    }

    fn leaves_by(&self, st: &State<'a, 'p>, name: &str, prefix: bool) -> Truth {
        let fits = |link: &str| {
            if prefix {
                link.starts_with(name)
            } else {
                link == name
            }
        };
        match st.stage {
            Stage::At(HookPoint::Output | HookPoint::Postrouting) if (self.local)(st.daddr) => {
                Truth::of(fits("lo"))
            }
            Stage::Delivered
            | Stage::At(HookPoint::Output | HookPoint::Postrouting | HookPoint::Forward) => {
                if !prefix && name == "lo" {
                    Truth::No
                } else {
                    unknown_link(name)
                }
            }
            _ => Truth::of(fits("")),
        }
    }

    /// The value of a field that is not the source's.
    fn field(&self, st: &State<'a, 'p>, field: &Field) -> Result<Part, Arc<str>> {
        let number = |n: u64| Ok(Part::Number(n));
        match field {
            Field::Daddr => Ok(Part::Address(st.daddr)),
            Field::CtOriginalDaddr => Ok(Part::Address(st.original)),
            Field::L4proto => number(st.protocol.into()),
            Field::Dport => number(st.dport.into()),
            Field::Sport => match self.source.port {
                Some(p) => number(p.into()),
                None => Err("depends on the source port".into()),
            },
            Field::Nfproto => number(if st.daddr.is_ipv4() { 2 } else { 10 }),
            Field::EtherType => number(if st.daddr.is_ipv4() { 0x0800 } else { 0x86dd }),
            Field::Mark => number(st.mark.into()),
            Field::CtState => number(if st.untracked { CT_UNTRACKED } else { CT_NEW }),
            Field::CtStatus => {
                let dnat = if st.translated.is_some() {
                    IPS_DST_NAT
                } else {
                    0
                };
                let snat = if st.masquerade { IPS_SRC_NAT } else { 0 };
                number(dnat | snat)
            }
            Field::SaddrType => number(if self.source.from_node {
                RTN_LOCAL
            } else {
                RTN_UNICAST
            }),
            Field::DaddrType => number(if (self.local)(st.daddr) {
                RTN_LOCAL
            } else {
                RTN_UNICAST
            }),
            Field::PacketType => number(0),
            Field::Iifname if matches!(st.stage, Stage::Again(_)) => Ok(Part::Name("lo".into())),
            Field::Iifname if self.source.from_node => Ok(Part::Name("".into())),
            Field::Saddr | Field::Iifname | Field::Oifname => {
                Err(format!("depends on {field:?}").into())
            }
            Field::Other(what) => Err(format!("depends on {what}").into()),
        }
    }

    /// A look-up's key, and at which position the source address stands.
    fn key(&self, st: &State<'a, 'p>, fields: &[Field]) -> Result<(Key, Option<usize>), Arc<str>> {
        if fields.len() > NO_KEY.len() {
            return Err("a key of too many fields".into());
        }
        let mut key = NO_KEY;
        let mut source = None;
        for (i, f) in fields.iter().enumerate() {
            if *f == Field::Saddr {
                if source.replace(i).is_some() {
                    return Err("a key with the source twice".into());
                }
            } else {
                key[i] = self.field(st, f)?;
            }
        }
        Ok((key, source))
    }

    fn looks_up(&self, st: &State<'a, 'p>, chain: usize, l: &Lookup) -> Truth {
        let Some(set) = self.program.set(chain, &l.set) else {
            return Truth::Unknown(format!("a set that was not read: {}", l.set).into());
        };
        let found = match self.key(st, &l.key) {
            Ok((key, source)) => set.find(&key, source),
            Err(why) => return Truth::Unknown(why),
        };
        let truth = match found {
            Found::Element(_) => Truth::Yes,
            Found::Missing => Truth::No,
            Found::BySource(all) => {
                let prefixes: Prefixes = all.iter().map(|(p, _)| *p).collect();
                self.source_in(st, &prefixes)
            }
            Found::Unknown(why) => Truth::Unknown(format!("{why}: {}", l.set).into()),
        };
        match (truth, l.negated) {
            (Truth::Yes, true) => Truth::No,
            (Truth::No, true) => Truth::Yes,
            (t, _) => t,
        }
    }

    fn note(&mut self, st: &State<'a, 'p>, place: Place<'p>, chance: Option<f64>) {
        if let Some(passed) = &mut self.passed {
            let hook = match st.stage {
                Stage::At(h) | Stage::Again(h) => Some(h),
                Stage::Delivered | Stage::Through => None,
            };
            passed.push(Passed {
                hook,
                place,
                chance,
            });
        }
    }
}

/// Does the op leave the packet's way alone?
fn harmless(op: &Op) -> bool {
    matches!(
        op,
        Op::Match(_)
            | Op::Lookup(_)
            | Op::Nothing
            | Op::UnknownMatch(_)
            | Op::Probability { .. }
            | Op::Nth { .. }
            | Op::Verdict(Verdict::Continue)
    )
}

/// The answer of all branches.
fn fold<'p>(mut pending: Vec<Pending<'p>>, end: Answer<'p>) -> Answer<'p> {
    let mut end = end;
    while let Some(last) = pending.pop() {
        end = match last {
            Pending::Source {
                prefixes,
                negated: false,
                yes,
            } => Answer::by_source(&prefixes, yes, end),
            Pending::Source {
                prefixes,
                negated: true,
                yes,
            } => Answer::by_source(&prefixes, end, yes),
            Pending::Unknown(why, yes) => Answer::either(why, yes, end),
            Pending::Chance(p, yes) => {
                // All splits in a row at once: the first decides over the rest.
                let mut splits = vec![(p, yes)];
                while let Some(Pending::Chance(..)) = pending.last() {
                    if let Some(Pending::Chance(p, yes)) = pending.pop() {
                        splits.push((p, yes));
                    }
                }
                let mut left = 1.0;
                let mut parts = Vec::with_capacity(splits.len() + 1);
                for (p, yes) in splits.into_iter().rev() {
                    parts.push((left * p, yes));
                    left *= 1.0 - p;
                }
                parts.push((left, end));
                Answer::mix(parts)
            }
        };
    }
    end
}
