//! The rows of the last walk, walked again only where what they depend on is another now.
//!
//! Each frontend remembers which chains its packets entered, which sets something was looked up in and
//! where they were translated to. A change of the rules concerns those that met what changed, and of
//! them those that go where the changed rules or elements demand ([`Effect`]). What came to be named, or
//! is named no more, is walked or forgotten. Everything else every row depends on (tables, base chains,
//! the node's addresses, whose chains they are) makes everything be walked.
//!
//! Of a row that stays, the proof may give numbers of rules that were written anew since, with the same
//! content. Proofs are shown of rows that differ; whoever compares lets those be walked again.

use super::candidates::Named;
use super::effect::{ChainDiff, Effect, SetDiff};
use super::met::Met;
use super::program::{Known, Program, sees};
use super::{Ask, Locals, Sides, frontends, is_absent};
use crate::netfilter::changes::{At, Changes};
use crate::netfilter::ruleset::{Chain, Element, Ruleset, Set, Table};
use model::address::{Family, Frontend, Protocol, SourceClass};
use model::capture::Reading;
use model::profile::LocalDetector;
use model::table::{ForwardingTable, Observed};
use model::view::LocalAddress;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

/// Which rows may be others than before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rewalked {
    /// All.
    Whole,
    /// Those of these.
    Frontends(BTreeSet<Frontend>),
}

/// What earlier walks leave for the next one.
#[derive(Debug, Default)]
pub struct Kept {
    basis: Option<Basis>,
    known: Known,
    numbers: Numbers,
    families: BTreeMap<Family, Side>,
}

/// What every row depends on.
#[derive(Debug, PartialEq)]
struct Basis {
    addresses: Vec<LocalAddress>,
    detector: LocalDetector,
    owner: &'static str,
}

/// Chains and sets by small numbers that stay.
#[derive(Debug, Default)]
struct Numbers {
    chains: HashMap<At, u32>,
    sets: HashMap<At, u32>,
}

impl Numbers {
    fn next(&self) -> u32 {
        (self.chains.len() + self.sets.len()) as u32
    }

    fn of_chain(&mut self, at: At) -> u32 {
        let next = self.next();
        *self.chains.entry(at).or_insert(next)
    }

    fn of_set(&mut self, at: At) -> u32 {
        let next = self.next();
        *self.sets.entry(at).or_insert(next)
    }
}

/// One family.
#[derive(Debug, Default)]
struct Side {
    absent: bool,
    /// In how many orders the kernel may go through the rules.
    orders: usize,
    named: Named,
    walked: BTreeMap<Frontend, Walked>,
}

/// What the rows of a frontend depend on.
#[derive(Debug)]
struct Walked {
    point: (IpAddr, Protocol, u16),
    /// Chains and sets, sorted.
    met: Box<[u32]>,
    /// Destinations after a translation that are no backends of the rows.
    others: Box<[SocketAddr]>,
}

/// What is asked for now and was not before, the other way round, or for another Service; and whatever
/// else is to be walked again.
pub type Again = BTreeSet<Frontend>;

impl Kept {
    /// Brings `tables` up to date, which [`Kept::walk`] left or [`super::walk`] would give: the same as
    /// that gives now, in the families that are `judged`. `again`: what is to be walked whatever
    /// changed; `None`: everything.
    pub fn walk(
        &mut self,
        tables: &mut BTreeMap<Family, Reading<ForwardingTable>>,
        (ruleset, changes): (&Ruleset, &Changes),
        ask: &Ask<'_>,
        judged: &dyn Fn(Family) -> bool,
        again: Option<&Again>,
    ) -> Rewalked {
        let basis = Basis {
            addresses: ask.node.addresses.clone(),
            detector: ask.detector.clone(),
            owner: ask.owner.name(),
        };
        let same = !changes.all && self.basis.as_ref() == Some(&basis);
        if let Some(again) = again.filter(|_| same)
            && let Some(these) = self.parts(tables, (ruleset, changes), ask, judged, again)
        {
            return Rewalked::Frontends(these);
        }
        self.whole(tables, ruleset, ask, judged, basis)
    }

    /// `None`: that will not do.
    fn parts(
        &mut self,
        tables: &mut BTreeMap<Family, Reading<ForwardingTable>>,
        (ruleset, changes): (&Ruleset, &Changes),
        ask: &Ask<'_>,
        judged: &dyn Fn(Family) -> bool,
        again: &Again,
    ) -> Option<BTreeSet<Frontend>> {
        self.known.forget(changes);
        let difference = Difference::of(ruleset, changes);
        let mut walked = BTreeSet::new();
        for family in Family::ALL {
            let side = self.families.get_mut(&family)?;
            let programs = Program::orders(ruleset, family, ask.owner, &self.known);
            let absent = !judged(family) || is_absent(&programs, ask, family);
            if programs.len() != side.orders || absent != side.absent {
                return None;
            }
            let table = match tables.get_mut(&family)? {
                Reading::Read(table) if !absent => table,
                Reading::Absent if absent => continue,
                _ => return None,
            };
            let again = again.iter().filter(|f| f.family() == family);
            let mut pass = Pass {
                family,
                ask,
                programs: &programs,
                numbers: &mut self.numbers,
                side,
            };
            let these = pass.concerned(&difference, table, again.copied().collect());
            pass.walk(these.iter().copied(), table);
            walked.extend(these);
        }
        Some(walked)
    }

    fn whole(
        &mut self,
        tables: &mut BTreeMap<Family, Reading<ForwardingTable>>,
        ruleset: &Ruleset,
        ask: &Ask<'_>,
        judged: &dyn Fn(Family) -> bool,
        basis: Basis,
    ) -> Rewalked {
        tables.clear();
        *self = Kept::default();
        for family in Family::ALL {
            let programs = Program::orders(ruleset, family, ask.owner, &self.known);
            let mut side = Side {
                absent: !judged(family) || is_absent(&programs, ask, family),
                orders: programs.len(),
                ..Side::default()
            };
            let mut reading = Reading::Absent;
            if !side.absent {
                side.named = Named::of(ruleset, ask.owner, family);
                let mut table = ForwardingTable::default();
                let all = frontends(&side.named, ask, family);
                let mut pass = Pass {
                    family,
                    ask,
                    programs: &programs,
                    numbers: &mut self.numbers,
                    side: &mut side,
                };
                pass.walk(all.into_iter(), &mut table);
                reading = Reading::Read(table);
            }
            tables.insert(family, reading);
            self.families.insert(family, side);
        }
        self.basis = Some(basis);
        Rewalked::Whole
    }
}

/// What became of each chain and set that was replaced.
struct Difference<'r> {
    chains: Vec<(&'r At, &'r Table, &'r Chain, ChainDiff<'r>)>,
    sets: HashMap<&'r At, (&'r Table, SetDiff<'r>)>,
}

impl<'r> Difference<'r> {
    fn of(ruleset: &'r Ruleset, changes: &'r Changes) -> Difference<'r> {
        let holder = |at: &At| {
            let mut tables = ruleset.tables.iter();
            tables.find(|t| t.backend == at.backend && t.family == at.family && t.name == at.table)
        };
        let chains = changes.chains.iter().filter_map(|(at, was)| {
            let table = holder(at)?;
            let (was, is) = (was.as_ref(), table.chain(&at.name));
            Some((at, table, is.or(was)?, ChainDiff::of(was, is)))
        });
        let sets = changes.sets.iter().filter_map(|(at, was)| {
            let table = holder(at)?;
            let is: Option<&Set> = table.sets.get(&at.name);
            Some((at, (table, SetDiff::of(was.as_ref(), is))))
        });
        Difference {
            chains: chains.collect(),
            sets: sets.collect(),
        }
    }
}

/// One family's walk.
struct Pass<'a, 'p> {
    family: Family,
    ask: &'a Ask<'a>,
    programs: &'a [Program<'p>],
    numbers: &'a mut Numbers,
    side: &'a mut Side,
}

impl Pass<'_, '_> {
    /// The frontends whose rows may be others now.
    fn concerned(
        &mut self,
        difference: &Difference<'_>,
        table: &ForwardingTable,
        again: BTreeSet<Frontend>,
    ) -> BTreeSet<Frontend> {
        let mut these = again;
        let effects = self.take_in(difference);
        let moved = self.side.named.take_moved();
        let family = self.family;
        these.extend(moved.frontends.into_iter().filter(|f| f.family() == family));
        for (protocol, port) in moved.ports {
            let addresses = self.ask.node.addresses.iter().map(|a| a.address);
            let own = addresses.filter(|a| Family::of(*a) == self.family);
            these.extend(own.map(|a| Frontend::port(a, protocol, port)));
        }
        if moved.mentioned {
            these.extend(self.other_points());
        }
        if effects.iter().all(|(_, e)| *e == Effect::Nothing) {
            return these;
        }
        let size = effects.iter().map(|(n, _)| *n as usize + 1).max();
        let mut by_number = vec![None; size.unwrap_or(0)];
        for (number, effect) in &effects {
            by_number[*number as usize] = Some(effect);
        }
        for (frontend, walked) in &self.side.walked {
            let mut met = walked.met.iter();
            let concerned = met.any(|n| {
                let effect = by_number.get(*n as usize).copied().flatten();
                effect.is_some_and(|e| walked.is_concerned(*frontend, e, table))
            });
            if concerned {
                these.insert(*frontend);
            }
        }
        these
    }

    /// Wildcards for which another point stands now.
    fn other_points(&self) -> Vec<Frontend> {
        let locals = Locals::of(self.ask.node);
        let local = |a: IpAddr| locals.has(a);
        let (named, free) = (&self.side.named, self.side.named.free_port());
        let walked = self.side.walked.iter();
        let moved = walked.filter(|(frontend, walked)| match frontend {
            Frontend::Port { .. } => false,
            Frontend::Address(_) => walked.point.2 != free,
            Frontend::Prefix(_) => named.point(**frontend, &local) != Some(walked.point),
        });
        let mut all: Vec<Frontend> = moved.map(|(f, _)| *f).collect();
        // One that had no point may have one now.
        let asked = self.ask.desired.keys().copied();
        let asked =
            asked.filter(|f| !matches!(f, Frontend::Port { .. }) && f.family() == self.family);
        let without = self.side.named.frontends_without_port().chain(asked);
        all.extend(without.filter(|f| !self.side.walked.contains_key(f)));
        all
    }

    /// What changed, by the numbers of chains and sets; what rules name is brought up to date.
    fn take_in(&mut self, difference: &Difference<'_>) -> Vec<(u32, Effect)> {
        let (family, owner) = (self.family, self.ask.owner);
        let named = &mut self.side.named;
        let sets = || {
            let all = difference.sets.iter();
            all.filter(move |(_, (table, _))| sees(table, family))
        };
        let chains = || {
            let all = difference.chains.iter();
            all.filter(move |(_, table, ..)| sees(table, family))
        };
        let mut effects = Vec::new();
        for (at, (_, diff)) in sets() {
            named.elements(at, diff.gone.iter().copied(), false);
        }
        // Of a set that changed, what stayed is counted and what came is not yet.
        for (at, table, chain, diff) in chains() {
            let own = owner.owns(table, chain);
            let content = |set: &At| -> Vec<_> {
                let all = table.sets.get(&set.name).map_or(&[][..], |s| &s.elements);
                match difference.sets.get(set) {
                    Some((_, diff)) => {
                        let came = diff.came.iter().map(|e| std::ptr::from_ref(*e));
                        let came: HashSet<*const Element> = came.collect();
                        let stayed = |e: &&Element| !came.contains(&std::ptr::from_ref(*e));
                        all.iter().filter(stayed).collect()
                    }
                    None => all.iter().collect(),
                }
            };
            for rule in &diff.gone {
                named.rule(table, own, rule, false, content);
            }
            for rule in &diff.came {
                named.rule(table, own, rule, true, content);
            }
            let number = self.numbers.of_chain((*at).clone());
            effects.push((number, diff.effect.clone()));
        }
        for (at, (_, diff)) in sets() {
            named.elements(at, diff.came.iter().copied(), true);
            let mut effect = Effect::Nothing;
            if diff.another {
                effect = Effect::All;
            }
            for fields in named.keys(at) {
                diff.effect(fields, &mut effect);
            }
            effects.push((self.numbers.of_set((**at).clone()), effect));
        }
        effects
    }

    /// Walks these, and forgets those of them that nobody names or asks for.
    fn walk(&mut self, these: impl Iterator<Item = Frontend>, table: &mut ForwardingTable) {
        let locals = Locals::of(self.ask.node);
        let local = |a: IpAddr| locals.has(a);
        let things = self.programs[0].chains() + self.programs[0].sets();
        let met = RefCell::new(Met::new(things));
        let mut numbered: Vec<Option<u32>> = vec![None; things];
        let sides = Sides::new(self.programs, self.ask, self.family, &local, true);
        for frontend in these {
            for source in SourceClass::ALL {
                table.rows.remove(&(frontend, source));
            }
            self.side.walked.remove(&frontend);
            let wanted = self.ask.desired.contains_key(&frontend);
            if !wanted && !self.side.named.names(&frontend, self.ask.node) {
                continue;
            }
            let Some(point) = self.side.named.point(frontend, &local) else {
                continue;
            };
            met.borrow_mut().clear();
            let rows = sides.rows(frontend, point, Some(&met));
            let walked = self.walked(point, &rows, &mut met.borrow_mut(), &mut numbered);
            self.side.walked.insert(frontend, walked);
            table.rows.extend(rows);
        }
    }

    fn walked(
        &mut self,
        point: (IpAddr, Protocol, u16),
        rows: &[((Frontend, SourceClass), Observed)],
        met: &mut Met,
        numbered: &mut [Option<u32>],
    ) -> Walked {
        let program = &self.programs[0];
        let mut all = Vec::with_capacity(met.things.len());
        for &thing in &met.things {
            let number =
                numbered[thing].get_or_insert_with(|| match thing.checked_sub(program.chains()) {
                    Some(set) => self.numbers.of_set(program.set_at(set)),
                    None => self.numbers.of_chain(program.chain_at(thing)),
                });
            all.push(*number);
        }
        for at in met.missing.drain(..) {
            all.push(self.numbers.of_chain(at.clone()));
            all.push(self.numbers.of_set(at));
        }
        all.sort_unstable();
        all.dedup();
        let others = &mut met.targets;
        others.sort_unstable();
        others.dedup();
        let backends = |to: &SocketAddr| {
            let mut rows = rows.iter();
            rows.any(|(_, r)| r.forwarding.backends.iter().any(|b| b.address == *to))
        };
        others.retain(|to| !backends(to));
        Walked {
            point,
            met: all.into(),
            others: others.as_slice().into(),
        }
    }
}

impl Walked {
    /// May its packets fare otherwise, before or after they are translated?
    fn is_concerned(&self, frontend: Frontend, effect: &Effect, table: &ForwardingTable) -> bool {
        let (address, protocol, port) = self.point;
        let number = protocol.number();
        let concerns = |to: &SocketAddr| effect.concerns(to.ip(), number, to.port());
        effect.concerns(address, number, port)
            || self.others.iter().any(concerns)
            || SourceClass::ALL.into_iter().any(|source| {
                let row = table.rows.get(&(frontend, source));
                let backends = row.map_or(&[][..], |r| &r.forwarding.backends);
                backends.iter().any(|b| concerns(&b.address))
            })
    }
}

#[cfg(test)]
mod tests;
