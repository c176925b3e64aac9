//! The walk of one packet through the hooks: a known destination, a source known by its class.
//!
//! Here is the way from hook to hook and chain to chain; `rule` runs one rule, `condition` decides
//! its conditions, `maps` follows what it looks up.

mod condition;
mod maps;
mod rule;
mod tail;

use super::answer::{Answer, End, Leaf, Trail};
use super::met::Met;
use super::place::Place;
use super::program::{Candidates, Program};
use super::set::WalkSet;
use super::source::{Constraints, Prefixes, Source};
use crate::netfilter::ruleset::{ChainType, Field, HookPoint, Value};
use model::table::{DecidedBy, Masquerade};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

pub(super) use tail::Tails;

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
    original_port: u16,
    /// A virtual server took it.
    by_ipvs: bool,
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
    pub source: Rc<Source>,
    pub local: &'a dyn Fn(IpAddr) -> bool,
    pub forks: usize,
    pub affinity: Vec<AffinityRule>,
    /// Filled for a trace only.
    pub passed: Option<Vec<Passed<'p>>>,
    /// What became of earlier packets of this source after their translation.
    pub tails: Option<&'a RefCell<Tails<'a, 'p>>>,
    /// Filled where somebody wants to know what the answer depends on.
    pub met: Option<&'a RefCell<Met>>,
}

impl<'a, 'p> Walker<'a, 'p> {
    pub fn new(
        program: &'a Program<'p>,
        source: Rc<Source>,
        local: &'a dyn Fn(IpAddr) -> bool,
    ) -> Self {
        Walker {
            program,
            source,
            local,
            forks: 0,
            affinity: Vec::new(),
            passed: None,
            tails: None,
            met: None,
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
            original_port: dport,
            by_ipvs: false,
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
        // A branch: what was being written down is the way of another one.
        self.forget_tail();
        let end = loop {
            let Some(frame) = st.frames.last_mut() else {
                if self.known_tail(&mut st) {
                    break self.through(&st);
                }
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
        self.forget_tail();
        fold(pending, end)
    }

    /// Into the next base chain, or to the end of all hooks.
    fn next_base(&mut self, st: &mut State<'a, 'p>) -> Option<Answer<'p>> {
        let point = match st.stage {
            Stage::At(point) | Stage::Again(point) => point,
            Stage::Delivered => HookPoint::Postrouting,
            Stage::Through => {
                self.tail_ended(st);
                return Some(self.through(st));
            }
        };
        let list = self.program.base(point);
        while let Some(&chain) = list.get(st.next_base) {
            st.next_base += 1;
            let Some(hook) = self.program.chain(chain).chain.hook else {
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
            if hook.kind == ChainType::VirtualServer && st.by_ipvs {
                continue;
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
        let local = self.is_local(st);
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
        let rules = program
            .chain(chain)
            .candidates(st.daddr, st.protocol, st.dport);
        self.meets(chain);
        self.asks_rules(chain, rules);
        st.frames.push(Frame {
            chain,
            rules,
            trail: st.trail.clone(),
            mark: st.mark,
        });
    }

    /// A chain, or a set behind all chains, has a part in the answer.
    fn meets(&self, thing: usize) {
        self.tail_meets(thing);
        if let Some(met) = self.met {
            met.borrow_mut().add(thing);
        }
    }

    /// That there is no chain or set of that name has.
    fn lacks(&self, chain: usize, name: &str) {
        if let Some(met) = self.met {
            let at = self.program.missing_at(chain, name);
            met.borrow_mut().missing.push(at);
        }
    }

    /// The set of that name in the chain's table.
    fn set(&self, chain: usize, name: &str) -> Option<&'a WalkSet<'p>> {
        let Some(set) = self.program.set_named(chain, name) else {
            self.lacks(chain, name);
            return None;
        };
        self.meets(self.program.chains() + set);
        Some(self.program.set(set))
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
        let base = self.program.chain(st.base).chain;
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
