//! One rule of a chain: its ops in order, where they split the walk, and its verdict.

use super::{AffinityRule, Flow, Pending, State, Walker};
use crate::netfilter::ruleset::{ChainType, Field, Op, Rule, Value, Verdict};
use crate::netfilter::walk::answer::{Answer, End, Trail};
use crate::netfilter::walk::place::Place;
use crate::netfilter::walk::source::Truth;
use model::limits::{FORKS_PER_ROW, JUMP_DEPTH};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

/// A condition that is not decided.
struct Open {
    truth: Truth,
    negated: bool,
    /// With a condition on a link: its field and name, for later conditions on the same.
    link: Option<(Field, Value)>,
}

impl<'a, 'p> Walker<'a, 'p> {
    /// Runs one rule from an op on.
    pub(super) fn rule(
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
        let Some(rule) = program.chain(chain).chain.rules.get(index as usize) else {
            return Flow::On;
        };
        let place = program.place(chain, Some(index));
        for (k, op) in rule.ops.iter().enumerate().skip(from) {
            match op {
                Op::Nothing => {}
                Op::Match(m) => match self.matches(st, m) {
                    Truth::Yes => {}
                    Truth::No => return Flow::On,
                    truth => {
                        let link = matches!(m.field, Field::Iifname | Field::Oifname)
                            .then(|| m.any_of.first().map(|v| (m.field.clone(), v.clone())))
                            .flatten();
                        let open = Open {
                            truth,
                            negated: m.negated,
                            link,
                        };
                        return self.fork(st, rule, (index, k), open, pending);
                    }
                },
                Op::Lookup(l) => match self.looks_up(st, chain, l) {
                    Truth::Yes => {}
                    Truth::No => return Flow::On,
                    truth => {
                        let open = Open {
                            truth,
                            negated: l.negated,
                            link: None,
                        };
                        return self.fork(st, rule, (index, k), open, pending);
                    }
                },
                Op::VerdictMap(l) => return self.verdict_map(st, chain, index, l, pending),
                Op::NumgenVerdictMap {
                    modulus,
                    offset,
                    map,
                    ..
                } => {
                    return self.numgen(
                        st,
                        (chain, index),
                        (*modulus, *offset),
                        map,
                        pending,
                        false,
                    );
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
                    self.forget_tail();
                    self.remembered(st, chain, (index, k), list, *seconds);
                    return Flow::On;
                }
                Op::AffinityUpdate { list } => {
                    self.forget_tail();
                    st.updates.push(list.clone());
                }
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
                    let open = Open {
                        truth: Truth::Unknown(why.into()),
                        negated: false,
                        link: None,
                    };
                    return self.fork(st, rule, (index, k), open, pending);
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
    fn fork(
        &mut self,
        st: &mut State<'a, 'p>,
        rule: &Rule,
        (index, op): (u32, usize),
        open: Open,
        pending: &mut Vec<Pending<'p>>,
    ) -> Flow<'p> {
        let Open {
            truth,
            negated,
            link,
        } = open;
        // A rule that only counts is the same either way.
        if rule.ops[op + 1..].iter().all(harmless) {
            return Flow::On;
        }
        self.forget_tail();
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
        self.forget_tail();
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
            let ms = self.set(chain, list)?.set.timeout_ms?;
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

    pub(super) fn verdict(
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
                let nat = self
                    .program
                    .chain(st.base)
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
                    self.lacks(chain, to);
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
