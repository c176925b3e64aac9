//! The rest of a packet's way once it is translated, walked once for all backends that the rules
//! treat alike.
//!
//! What follows a translation rarely looks at the new destination: it masquerades or not, and lets
//! the packet pass. While the first such way is walked, every question whose answer the destination
//! decides is written down; another packet that gives the same answers, in the same state, ends the
//! same way. A way that splits, ends early or depends on the source is not kept.

use super::{Stage, State, Walker};
use crate::netfilter::ruleset::{Field, Lookup, Match};
use crate::netfilter::walk::program::Candidates;
use crate::netfilter::walk::source::Truth;

/// Ways kept for one source: more only means that rules treat many backends each in its own way.
const KEPT: usize = 32;
/// Questions of one way.
const QUESTIONS: usize = 64;

/// What, besides the destination, decides the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Start {
    stage: Stage,
    next_base: usize,
    by_ipvs: bool,
    protocol: u8,
    mark: u32,
    source_done: bool,
    untracked: bool,
    masquerade: bool,
    remembered: bool,
}

/// A question that the destination answers, with its answer.
#[derive(Clone, Copy, Debug)]
enum Asked<'a, 'p> {
    /// Is it an address of the node?
    Local(bool),
    /// Which rules of a chain may match?
    Rules(usize, Candidates<'a>),
    /// Does a condition on it hold?
    Holds(&'p Match, bool),
    /// Is it in the set of this name in the chain's table? Also: does the map have an element?
    In(usize, &'p Lookup, bool),
}

/// One way that was walked.
#[derive(Clone, Debug)]
struct Tail<'a, 'p> {
    start: Start,
    asked: Vec<Asked<'a, 'p>>,
    /// The chains and sets on it, as [`Walker::meets`] numbers them.
    met: Vec<usize>,
    masquerade: bool,
}

/// The ways of one source, and the one that is being walked.
#[derive(Debug, Default)]
pub(in crate::netfilter::walk) struct Tails<'a, 'p> {
    kept: Vec<Tail<'a, 'p>>,
    recording: Option<Tail<'a, 'p>>,
}

impl<'a, 'p> Walker<'a, 'p> {
    fn start(&self, st: &State<'a, 'p>) -> Option<Start> {
        let plain = st.translated.is_some()
            && st.destination_done
            && st.frames.is_empty()
            && st.links.is_empty()
            && self.passed.is_none();
        plain.then_some(Start {
            stage: st.stage,
            next_base: st.next_base,
            by_ipvs: st.by_ipvs,
            protocol: st.protocol,
            mark: st.mark,
            source_done: st.source_done,
            untracked: st.untracked,
            masquerade: st.masquerade,
            remembered: st.remembered,
        })
    }

    /// True where the rest of the way is known: the state is then that at its end. Otherwise
    /// begins to write it down, if it can be.
    pub(super) fn known_tail(&mut self, st: &mut State<'a, 'p>) -> bool {
        let Some(tails) = self.tails else {
            return false;
        };
        if tails.borrow().recording.is_some() || st.stage == Stage::Through {
            return false;
        }
        let Some(start) = self.start(st) else {
            return false;
        };
        let found = {
            let tails = tails.borrow();
            let mut kept = tails.kept.iter();
            let found =
                kept.find(|t| t.start == start && t.asked.iter().all(|q| self.same_answer(st, q)));
            found.map(|t| {
                if let Some(met) = self.met {
                    let mut met = met.borrow_mut();
                    t.met.iter().for_each(|thing| met.add(*thing));
                }
                t.masquerade
            })
        };
        if let Some(masquerade) = found {
            st.masquerade = masquerade;
            st.stage = Stage::Through;
            return true;
        }
        let mut tails = tails.borrow_mut();
        if tails.kept.len() < KEPT {
            tails.recording = Some(Tail {
                start,
                asked: Vec::new(),
                met: Vec::new(),
                masquerade: false,
            });
        }
        false
    }

    fn same_answer(&self, st: &State<'a, 'p>, asked: &Asked<'a, 'p>) -> bool {
        match asked {
            Asked::Local(is) => (self.local)(st.daddr) == *is,
            Asked::Rules(chain, rules) => {
                let own = self.program.chain(*chain);
                own.candidates(st.daddr, st.protocol, st.dport).same(rules)
            }
            Asked::Holds(m, is) => self.any_of(st, m) == Truth::of(*is),
            Asked::In(chain, lookup, is) => self.is_in(st, *chain, lookup) == Some(*is),
        }
    }

    /// The way is at its end: keeps it.
    pub(super) fn tail_ended(&self, st: &State<'a, 'p>) {
        let Some(tails) = self.tails else { return };
        let mut tails = tails.borrow_mut();
        if let Some(mut tail) = tails.recording.take() {
            tail.masquerade = st.masquerade;
            tails.kept.push(tail);
        }
    }

    /// The way is not one that another packet can be said to share.
    pub(super) fn forget_tail(&self) {
        if let Some(tails) = self.tails {
            tails.borrow_mut().recording = None;
        }
    }

    /// A chain or set on the way, written down.
    pub(super) fn tail_meets(&self, thing: usize) {
        let (Some(tails), Some(_)) = (self.tails, self.met) else {
            return;
        };
        if let Ok(mut tails) = tails.try_borrow_mut()
            && let Some(tail) = &mut tails.recording
        {
            tail.met.push(thing);
        }
    }

    fn ask(&self, asked: Asked<'a, 'p>) {
        let Some(tails) = self.tails else { return };
        let mut tails = tails.borrow_mut();
        if let Some(tail) = &mut tails.recording {
            if tail.asked.len() < QUESTIONS {
                tail.asked.push(asked);
            } else {
                tails.recording = None;
            }
        }
    }

    fn recording(&self) -> bool {
        self.tails.is_some_and(|t| t.borrow().recording.is_some())
    }

    /// [`Walker::local`], written down.
    pub(super) fn is_local(&self, st: &State<'a, 'p>) -> bool {
        let local = (self.local)(st.daddr);
        self.ask(Asked::Local(local));
        local
    }

    /// The candidates of a chain, written down.
    pub(super) fn asks_rules(&self, chain: usize, rules: Candidates<'a>) {
        if !self.program.chain(chain).is_plain() {
            self.ask(Asked::Rules(chain, rules));
        }
    }

    /// A condition that was decided, written down.
    pub(super) fn asks_match(&self, st: &State<'a, 'p>, m: &'p Match, truth: &Truth) {
        if !self.recording() {
            return;
        }
        let holds = match truth {
            Truth::Yes => true,
            Truth::No => false,
            _ => return self.forget_tail(),
        };
        match &m.field {
            Field::Daddr | Field::Dport | Field::CtOriginalDaddr | Field::VirtualPort => {
                self.ask(Asked::Holds(m, holds));
            }
            Field::DaddrType | Field::Oifname => self.ask(Asked::Local((self.local)(st.daddr))),
            // What earlier conditions said about the source is not part of the state that is kept.
            Field::Saddr => self.forget_tail(),
            // Part of that state, or the same for all packets of the source.
            Field::L4proto
            | Field::Sport
            | Field::Nfproto
            | Field::EtherType
            | Field::Mark
            | Field::Iifname
            | Field::CtState
            | Field::CtStatus
            | Field::SaddrType
            | Field::PacketType
            | Field::Other(_) => {}
        }
    }

    /// A look-up that was decided, written down.
    pub(super) fn asks_lookup(&self, st: &State<'a, 'p>, chain: usize, lookup: &'p Lookup) {
        if !self.recording() {
            return;
        }
        match self.is_in(st, chain, lookup) {
            Some(is) => self.ask(Asked::In(chain, lookup, is)),
            None => self.forget_tail(),
        }
    }

    /// Is there an element? `None`: that cannot be said, or depends on more than the destination.
    fn is_in(&self, st: &State<'a, 'p>, chain: usize, lookup: &Lookup) -> Option<bool> {
        use crate::netfilter::walk::set::Found;
        let by_destination = lookup.key.iter().all(|f| {
            matches!(
                f,
                Field::Daddr
                    | Field::Dport
                    | Field::CtOriginalDaddr
                    | Field::VirtualPort
                    | Field::L4proto
                    | Field::Nfproto
                    | Field::EtherType
            )
        });
        if !by_destination {
            return None;
        }
        let set = self.set(chain, &lookup.set)?;
        let (key, _) = self.key(st, &lookup.key).ok()?;
        match set.find(&key, None) {
            Found::Missing => Some(false),
            Found::Element(_) => Some(true),
            Found::BySource(_) | Found::Unknown(_) => None,
        }
    }
}
