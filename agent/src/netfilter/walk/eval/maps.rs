//! Maps and translations: verdicts and new destinations that are looked up, or picked by chance.

use super::{Flow, Pending, Stage, State, Walker};
use crate::netfilter::ruleset::{ChainType, Data, HookPoint, Lookup, NatTarget};
use crate::netfilter::walk::answer::{Answer, Trail};
use crate::netfilter::walk::place::Place;
use crate::netfilter::walk::set::{Found, NO_KEY, Part};
use crate::netfilter::walk::source::{Prefixes, Truth};
use model::limits::FORKS_PER_ROW;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

impl<'a, 'p> Walker<'a, 'p> {
    pub(super) fn verdict_map(
        &mut self,
        st: &mut State<'a, 'p>,
        chain: usize,
        index: u32,
        lookup: &'p Lookup,
        pending: &mut Vec<Pending<'p>>,
    ) -> Flow<'p> {
        let place = self.program.place(chain, Some(index));
        let Some(set) = self.set(chain, &lookup.set) else {
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
            Found::Missing => self.asks_lookup(st, chain, lookup),
            // Which element it is decides the way.
            _ => self.forget_tail(),
        }
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
    pub(super) fn numgen(
        &mut self,
        st: &mut State<'a, 'p>,
        (chain, index): (usize, u32),
        (modulus, offset): (u32, u32),
        map: &str,
        pending: &mut Vec<Pending<'p>>,
        nat: bool,
    ) -> Flow<'p> {
        self.forget_tail();
        let place = self.program.place(chain, Some(index));
        let Some(set) = self.set(chain, map) else {
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

    pub(super) fn translate(
        &mut self,
        st: &mut State<'a, 'p>,
        chain: usize,
        index: u32,
        place: Place<'p>,
        target: &'p NatTarget,
        pending: &mut Vec<Pending<'p>>,
    ) -> Flow<'p> {
        self.forget_tail();
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
            } => self.numgen(st, (chain, index), (*modulus, *offset), map, pending, true),
            NatTarget::Map(lookup) => {
                let Some(set) = self.set(chain, &lookup.set) else {
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

    pub(super) fn translated(
        &mut self,
        st: &mut State<'a, 'p>,
        place: Place<'p>,
        address: Option<IpAddr>,
        port: Option<u16>,
    ) {
        self.forget_tail();
        self.note(st, place, None);
        st.daddr = address.unwrap_or(st.daddr);
        st.dport = port.unwrap_or(st.dport);
        if let Some(met) = self.met {
            let to = SocketAddr::new(st.daddr, st.dport);
            met.borrow_mut().targets.push(to);
        }
        st.translated = Some(place);
        st.destination_done = true;
        st.trail = Some(Rc::new(Trail {
            place,
            before: st.trail.take(),
        }));
        st.frames.clear();
        let base = self.program.chain(st.base).chain.hook;
        if base.is_some_and(|h| h.kind == ChainType::VirtualServer) {
            st.by_ipvs = true;
            if !(self.local)(st.daddr) {
                (st.stage, st.next_base) = (Stage::At(HookPoint::Output), 0);
            }
        }
    }
}
