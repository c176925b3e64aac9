//! A set made ready for look-ups: elements by key, also where the source address is not known.

use super::hash::Map;
use super::source::{is_host, range_prefixes};
use crate::netfilter::ruleset::{Element, Set, Value};
use std::cell::RefCell;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

/// One part of a look-up's key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Part {
    /// Not known, or not there.
    None,
    Address(IpAddr),
    Number(u64),
    Name(Arc<str>),
}

/// A look-up's key. No set of the kernel's users has more fields.
pub(super) type Key = [Part; 5];

pub(super) const NO_KEY: Key = [Part::None, Part::None, Part::None, Part::None, Part::None];

/// What a look-up finds.
pub(super) enum Found<'p> {
    Element(usize),
    Missing,
    /// One of these elements if the source is in its prefixes, by the order of elements.
    BySource(Rc<Vec<(ipnet::IpNet, usize)>>),
    Unknown(&'p str),
}

/// A set with its elements by key.
pub(super) struct WalkSet<'p> {
    pub set: &'p Set,
    keys: Arc<Keys>,
    /// Elements by the rest of the key, the source's position left out.
    by_rest: RefCell<Map<usize, SourceIndex>>,
}

/// Where a set's elements are.
#[derive(Debug, Default)]
pub(super) struct Keys {
    /// Empty in a small set, where looking at each element is quicker.
    exact: Map<Key, usize>,
    others: Vec<usize>,
    catch_all: Option<usize>,
}

impl Keys {
    pub fn of(set: &Set) -> Keys {
        let mut keys = Keys::default();
        for (i, e) in set.elements.iter().enumerate() {
            if e.catch_all {
                keys.catch_all = Some(i);
            } else if set.elements.len() <= SMALL {
                if !is_exact(&e.key) {
                    keys.others.push(i);
                }
            } else if let Some(key) = exact_key(&e.key, None) {
                keys.exact.entry(key).or_insert(i);
            } else {
                keys.others.push(i);
            }
        }
        keys
    }
}

type SourceIndex = Map<Key, Rc<Vec<(ipnet::IpNet, usize)>>>;

/// Elements of a small set: the map of one Service's endpoints.
const SMALL: usize = 16;

impl<'p> WalkSet<'p> {
    pub fn new(set: &'p Set, keys: Arc<Keys>) -> Self {
        WalkSet {
            set,
            keys,
            by_rest: RefCell::default(),
        }
    }

    /// Looks up a key; `source` is the position of the source address, which is not known.
    pub fn find(&self, key: &Key, source: Option<usize>) -> Found<'p> {
        if self.set.unread.is_some() {
            return Found::Unknown("the set was not read");
        }
        if self.set.dynamic {
            return Found::Unknown("the set is filled by traffic");
        }
        let Some(position) = source else {
            let exact = if self.set.elements.len() <= SMALL {
                let mut all = self.set.elements.iter();
                all.position(|e| !e.catch_all && is_exactly(&e.key, key))
            } else {
                self.keys.exact.get(key).copied()
            };
            if let Some(i) = exact {
                return Found::Element(i);
            }
            for &i in &self.keys.others {
                match fits(&self.set.elements[i], key) {
                    Some(true) => return Found::Element(i),
                    Some(false) => {}
                    None => return Found::Unknown("an element of the set was not understood"),
                }
            }
            return self.keys.catch_all.map_or(Found::Missing, Found::Element);
        };
        if self.keys.catch_all.is_some() {
            return Found::Unknown("a look-up by source with a catch-all element");
        }
        let mut index = self.by_rest.borrow_mut();
        let index = index
            .entry(position)
            .or_insert_with(|| self.index_by_rest(position));
        // A key that no index can hold: an element not understood, or ranges in other fields.
        if index.contains_key(&NO_KEY) && self.set.elements.iter().any(|e| e.key.len() > 1) {
            return Found::Unknown("elements of the set are ranges in several fields");
        }
        let mut rest = key.clone();
        rest[position] = Part::None;
        index
            .get(&rest)
            .map_or(Found::Missing, |all| Found::BySource(all.clone()))
    }

    fn index_by_rest(&self, position: usize) -> SourceIndex {
        let mut index: Map<Key, Vec<(ipnet::IpNet, usize)>> = Map::default();
        for (i, e) in self.set.elements.iter().enumerate() {
            let prefixes = match e.key.get(position) {
                Some(Value::Prefix(p)) => vec![*p],
                Some(Value::AddressRange(range)) => range_prefixes(range.0, range.1),
                _ => continue,
            };
            let rest = exact_key(&e.key, Some(position)).unwrap_or(NO_KEY);
            index
                .entry(rest)
                .or_default()
                .extend(prefixes.into_iter().map(|p| (p, i)));
        }
        index.into_iter().map(|(k, v)| (k, Rc::new(v))).collect()
    }
}

/// Does each value stand for one key only?
fn is_exact(values: &[Value]) -> bool {
    values.len() <= NO_KEY.len()
        && values.iter().all(|v| match v {
            Value::Prefix(p) => is_host(p),
            Value::Number(a, b) => a == b,
            Value::Name(_, prefix) => !prefix,
            Value::AddressRange(..) | Value::Bytes(_) => false,
        })
}

/// Are the values exact, and exactly this key?
fn is_exactly(values: &[Value], key: &Key) -> bool {
    is_exact(values)
        && key[values.len()..].iter().all(|part| *part == Part::None)
        && values.iter().zip(key).all(|(v, part)| match (v, part) {
            (Value::Prefix(p), Part::Address(a)) => p.addr() == *a,
            (Value::Number(n, _), Part::Number(m)) => n == m,
            (Value::Name(n, _), Part::Name(m)) => n == m,
            _ => false,
        })
}

fn exact_key(values: &[Value], without: Option<usize>) -> Option<Key> {
    if values.len() > 5 {
        return None;
    }
    let mut key = NO_KEY;
    for (i, v) in values.iter().enumerate() {
        if Some(i) == without {
            continue;
        }
        key[i] = match v {
            Value::Prefix(p) if is_host(p) => Part::Address(p.addr()),
            Value::Number(a, b) if a == b => Part::Number(*a),
            Value::Name(n, false) => Part::Name(n.clone()),
            _ => return None,
        };
    }
    Some(key)
}

/// Does the key fit the element? `None`: not to be said.
fn fits(e: &Element, key: &Key) -> Option<bool> {
    for (v, part) in e.key.iter().zip(key) {
        if !value_fits(v, part)? {
            return Some(false);
        }
    }
    Some(true)
}

/// Does a part of the key fit a value? `None`: not comparable.
pub(super) fn value_fits(v: &Value, part: &Part) -> Option<bool> {
    match (v, part) {
        (Value::Prefix(p), Part::Address(a)) => Some(p.contains(a)),
        (Value::AddressRange(range), Part::Address(x)) => Some(range.0 <= *x && *x <= range.1),
        (Value::Number(a, b), Part::Number(n)) => Some(a <= n && n <= b),
        (Value::Name(n, false), Part::Name(x)) => Some(n == x),
        (Value::Name(n, true), Part::Name(x)) => Some(x.starts_with(&**n)),
        _ => None,
    }
}
