//! Which packets a change of a chain or set can concern.
//!
//! A rule does nothing to a packet that does not go where the rule demands ([`Demand`]), and an element
//! of a set nothing to one with another key. So what came and what went concerns only packets that go
//! there, while they go there; everything else in the chain or set is as it was, in the same order.

use super::hash::Map;
use super::program::Demand;
use super::source::is_host;
use crate::netfilter::ruleset::{Chain, Element, Field, Rule, Set, Value};
use std::collections::HashMap;
use std::net::IpAddr;

/// Which packets that meet a chain or set may fare otherwise than before.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) enum Effect {
    /// None.
    #[default]
    Nothing,
    /// Those that go to one of these.
    Points(Vec<Demand>),
    /// Any.
    All,
}

impl Effect {
    fn add(&mut self, demand: Demand) {
        if demand == Demand::default() {
            *self = Effect::All;
            return;
        }
        match self {
            Effect::Nothing => *self = Effect::Points(vec![demand]),
            Effect::Points(all) if all.last() == Some(&demand) => {}
            Effect::Points(all) => all.push(demand),
            Effect::All => {}
        }
    }

    /// May a packet to this point fare otherwise?
    pub fn concerns(&self, address: IpAddr, protocol: u8, port: u16) -> bool {
        match self {
            Effect::Nothing => false,
            Effect::All => true,
            Effect::Points(all) => all.iter().any(|d| {
                d.address.is_none_or(|a| a == address)
                    && d.protocol.is_none_or(|p| p == protocol)
                    && d.port.is_none_or(|p| p == port)
            }),
        }
    }
}

/// What became of a chain.
#[derive(Debug, Default)]
pub(super) struct ChainDiff<'r> {
    pub effect: Effect,
    /// Rules that are not there any more, or elsewhere.
    pub gone: Vec<&'r Rule>,
    /// Rules that were not there before, or elsewhere.
    pub came: Vec<&'r Rule>,
}

/// More rules than this between the first and the last that changed are told apart by what they
/// demand: kube-proxy's iptables mode writes its largest chain anew in another order at each sync.
const FEW: usize = 32;

impl<'r> ChainDiff<'r> {
    /// Between what a chain was and what it is; `None`: it was, or is, not there. Handles are not
    /// compared: they prove a row, and decide nothing.
    pub fn of(was: Option<&'r Chain>, is: Option<&'r Chain>) -> ChainDiff<'r> {
        let all = |chain: Option<&'r Chain>| chain.map_or(&[][..], |c| &c.rules);
        let (mut old, mut new) = (all(was), all(is));
        let (Some(_), Some(_)) = (was, is) else {
            return ChainDiff {
                effect: Effect::All,
                gone: old.iter().collect(),
                came: new.iter().collect(),
            };
        };
        while let ([a, old_rest @ ..], [b, new_rest @ ..]) = (old, new)
            && same(a, b)
        {
            (old, new) = (old_rest, new_rest);
        }
        while let ([old_rest @ .., a], [new_rest @ .., b]) = (old, new)
            && same(a, b)
        {
            (old, new) = (old_rest, new_rest);
        }
        let mut diff = ChainDiff::default();
        if old.len() + new.len() <= FEW {
            for rule in old.iter().chain(new) {
                diff.effect.add(Demand::of(rule));
            }
            diff.gone.extend(old);
            diff.came.extend(new);
            return diff;
        }
        let (old, new) = (Sorted::of(old), Sorted::of(new));
        let same_rest = old.rest.len() == new.rest.len()
            && old.rest.iter().zip(&new.rest).all(|(a, b)| same(a, b));
        if !same_rest {
            for rule in old.rest.iter().chain(&new.rest) {
                diff.effect.add(Demand::of(rule));
            }
            diff.gone.extend(&old.rest);
            diff.came.extend(&new.rest);
        }
        let none = Vec::new();
        for (point, rules) in &old.points {
            let now = new.points.get(point).unwrap_or(&none);
            let as_before = rules.len() == now.len()
                && rules
                    .iter()
                    .zip(now)
                    .all(|((i, a), (k, b))| i == k && same(a, b));
            if !as_before {
                diff.effect.add(demand(*point));
                diff.gone.extend(rules.iter().map(|(_, r)| *r));
                diff.came.extend(now.iter().map(|(_, r)| *r));
            }
        }
        for (point, rules) in &new.points {
            if !old.points.contains_key(point) {
                diff.effect.add(demand(*point));
                diff.came.extend(rules.iter().map(|(_, r)| *r));
            }
        }
        diff
    }
}

type Point = (IpAddr, u8, u16);

fn demand((address, protocol, port): Point) -> Demand {
    Demand {
        address: Some(address),
        protocol: Some(protocol),
        port: Some(port),
    }
}

/// Rules by the point that they demand, each with how many rules without one come before it: a packet
/// meets those of its point and the rest, in this order.
struct Sorted<'r> {
    points: Map<Point, Vec<(usize, &'r Rule)>>,
    rest: Vec<&'r Rule>,
}

impl<'r> Sorted<'r> {
    fn of(rules: &'r [Rule]) -> Sorted<'r> {
        let mut sorted = Sorted {
            points: Map::default(),
            rest: Vec::new(),
        };
        for rule in rules {
            match Demand::of(rule) {
                Demand {
                    address: Some(address),
                    protocol: Some(protocol),
                    port: Some(port),
                } => {
                    let at = sorted.points.entry((address, protocol, port)).or_default();
                    at.push((sorted.rest.len(), rule));
                }
                _ => sorted.rest.push(rule),
            }
        }
        sorted
    }
}

fn same(a: &Rule, b: &Rule) -> bool {
    a.ops == b.ops && a.comment == b.comment
}

/// What became of a set.
#[derive(Debug, Default)]
pub(super) struct SetDiff<'s> {
    /// Not only its elements: whoever looks something up in it may fare otherwise.
    pub another: bool,
    /// Elements that are not there any more, or say something else.
    pub gone: Vec<&'s Element>,
    /// Elements that were not there before, or said something else.
    pub came: Vec<&'s Element>,
}

impl<'s> SetDiff<'s> {
    /// Between what a set was and what it is; `None`: it was, or is, not there.
    pub fn of(was: Option<&'s Set>, is: Option<&'s Set>) -> SetDiff<'s> {
        let all = |set: Option<&'s Set>| set.map_or(&[][..], |s| &s.elements);
        let (old, new) = (all(was), all(is));
        let another = match (was, is) {
            (Some(was), Some(is)) => !same_set(was, is),
            _ => true,
        };
        if another {
            return SetDiff {
                another,
                gone: old.iter().collect(),
                came: new.iter().collect(),
            };
        }
        let mut diff = SetDiff::default();
        let mut before: HashMap<&[Value], &Element> = HashMap::with_capacity(old.len());
        let mut inexact = Vec::new();
        for e in old {
            let twice = before.insert(&e.key, e).is_some();
            if twice || !exact(e) {
                inexact.push(e);
            }
            diff.another |= twice;
        }
        let mut inexact = inexact.into_iter();
        for e in new {
            // Of ranges the first that fits counts.
            if !exact(e) && inexact.next().is_none_or(|was| was != e) {
                diff.another = true;
            }
            match before.remove(&*e.key) {
                Some(was) if was == e => {}
                Some(was) => {
                    diff.gone.push(was);
                    diff.came.push(e);
                }
                None => diff.came.push(e),
            }
        }
        diff.another |= inexact.next().is_some();
        diff.gone.extend(before.into_values());
        diff
    }

    /// Which packets a look-up with these fields as key concerns.
    pub fn effect(&self, fields: &[Field], effect: &mut Effect) {
        if self.another {
            effect.add(Demand::default());
            return;
        }
        for e in self.gone.iter().chain(&self.came) {
            effect.add(key_demand(fields, e));
        }
    }
}

/// All but the elements.
fn same_set(a: &Set, b: &Set) -> bool {
    // Named, so that a new field cannot be forgotten here. The handle decides nothing.
    let Set {
        name,
        handle: _,
        map,
        dynamic,
        anonymous,
        timeout_ms,
        key_bytes,
        key_type,
        elements: _,
        unread,
    } = a;
    *name == b.name
        && *map == b.map
        && *dynamic == b.dynamic
        && *anonymous == b.anonymous
        && *timeout_ms == b.timeout_ms
        && *key_bytes == b.key_bytes
        && *key_type == b.key_type
        && *unread == b.unread
}

fn exact(e: &Element) -> bool {
    !e.catch_all
        && e.key.iter().all(|v| match v {
            Value::Prefix(p) => is_host(p),
            Value::Number(a, b) => a == b,
            Value::Name(_, prefix) => !prefix,
            Value::AddressRange(..) | Value::Bytes(_) => false,
        })
}

fn key_demand(fields: &[Field], e: &Element) -> Demand {
    let mut demand = Demand::default();
    for (field, value) in fields.iter().zip(&e.key) {
        match (field, value) {
            (Field::Daddr, Value::Prefix(p)) if is_host(p) => demand.address = Some(p.addr()),
            (Field::L4proto, Value::Number(a, b)) if a == b => {
                demand.protocol = u8::try_from(*a).ok();
            }
            (Field::Dport, Value::Number(a, b)) if a == b => {
                demand.port = u16::try_from(*a).ok();
            }
            _ => {}
        }
    }
    demand
}

#[cfg(test)]
mod tests;
