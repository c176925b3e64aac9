//! A ruleset made ready to be walked: rules and elements found by the point that a packet goes to.

use super::Owner;
use super::source::is_host;
use crate::netfilter::ruleset::{
    Chain, Data, Element, Field, HookPoint, Lookup, Match, NatTarget, Op, Rule, Ruleset, Set,
    Table, TableFamily, Value, Verdict,
};
use model::address::Family;
use model::finding::Evidence;
use std::cell::RefCell;
use std::collections::HashMap;
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

/// A place that a packet passed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'p> {
    pub table: &'p Table,
    pub chain: &'p Chain,
    /// `None`: the chain's policy.
    pub rule: Option<&'p Rule>,
    pub element: Option<(&'p Set, usize)>,
    /// The fields of the element's key.
    pub fields: &'p [Field],
    pub own: bool,
}

impl PartialEq for Place<'_> {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self.chain, other.chain)
            && self.rule.map(std::ptr::from_ref) == other.rule.map(std::ptr::from_ref)
            && self.element.map(|(s, i)| (std::ptr::from_ref(s), i))
                == other.element.map(|(s, i)| (std::ptr::from_ref(s), i))
    }
}

impl<'p> Place<'p> {
    /// The element, where it is one.
    pub fn element(&self) -> Option<&'p Element> {
        self.element.and_then(|(s, i)| s.elements.get(i))
    }

    /// As the proof that a report shows.
    pub fn evidence(&self) -> Evidence {
        let text = self
            .element()
            .map(|e| Arc::from(element_text(e, self.fields)));
        // A named map is where the element stands; an anonymous one stands in its rule.
        let named = self.element.map(|(s, _)| s).filter(|s| !s.anonymous);
        Evidence {
            family: self.table.family.word().into(),
            table: self.table.name.clone(),
            chain: named.map_or_else(|| self.chain.name.clone(), |s| s.name.clone()),
            handle: match named {
                Some(_) => None,
                None => self.rule.map(|r| r.handle),
            },
            element: text,
            says: self.says().into(),
        }
    }

    fn says(&self) -> String {
        if let Some(data) = self.element().and_then(|e| e.data.as_ref()) {
            return match data {
                Data::Verdict(v) => verdict_says(v),
                Data::Endpoint(a, p) => translates(Some(*a), *p),
                _ => "maps to something else".to_string(),
            };
        }
        let Some(rule) = self.rule else {
            return "policy drop".to_string();
        };
        for op in rule.ops.iter().rev() {
            match op {
                Op::Verdict(v) => return verdict_says(v),
                Op::Reject => return "refuses the packet".to_string(),
                Op::Dnat(NatTarget::Fixed { address, port }) => return translates(*address, *port),
                Op::Dnat(_) => return "translates the destination".to_string(),
                Op::Redirect { .. } => return "redirects to the node itself".to_string(),
                Op::Masquerade | Op::Snat(_) => return "rewrites the source".to_string(),
                Op::NoTrack => return "takes the packet out of connection tracking".to_string(),
                Op::UnknownStatement(what) => return format!("not understood: {what}"),
                Op::VerdictMap(l) => return format!("looks up a verdict in {}", l.set),
                Op::NumgenVerdictMap { .. } => return "picks one of several by chance".to_string(),
                _ => {}
            }
        }
        "passes".to_string()
    }
}

fn verdict_says(v: &Verdict) -> String {
    match v {
        Verdict::Accept => "lets the packet pass; later rules of this chain do not see it".into(),
        Verdict::Drop => "drops the packet".into(),
        Verdict::Return => "returns".into(),
        Verdict::Jump(to) | Verdict::Goto(to) => format!("leads to {to}"),
        Verdict::Queue => "hands the packet to a program".into(),
        Verdict::Continue => "goes on".into(),
    }
}

fn translates(address: Option<IpAddr>, port: Option<u16>) -> String {
    match (address, port) {
        (Some(a), Some(p)) => format!("translates to {}", std::net::SocketAddr::new(a, p)),
        (Some(a), None) => format!("translates to {a}"),
        (None, Some(p)) => format!("translates to port {p}"),
        (None, None) => "translates the destination".into(),
    }
}

/// An element as `nft` shows it: `10.96.0.10 . tcp . 80 : goto service-…`.
pub(super) fn element_text(e: &Element, fields: &[Field]) -> String {
    let part = |i: usize, v: &Value| match v {
        Value::Prefix(p) if is_host(p) => p.addr().to_string(),
        Value::Prefix(p) => p.to_string(),
        Value::AddressRange(a, b) => format!("{a}-{b}"),
        Value::Number(a, b) if a == b => match (fields.get(i), a) {
            (Some(Field::L4proto), 6) => "tcp".to_string(),
            (Some(Field::L4proto), 17) => "udp".to_string(),
            (Some(Field::L4proto), 132) => "sctp".to_string(),
            _ => a.to_string(),
        },
        Value::Number(a, b) => format!("{a}-{b}"),
        Value::Name(n, prefix) => format!("\"{n}{}\"", if *prefix { "*" } else { "" }),
        Value::Bytes(b) => b.iter().map(|b| format!("{b:02x}")).collect(),
    };
    let mut text = if e.catch_all {
        "*".to_string()
    } else {
        e.key
            .iter()
            .enumerate()
            .map(|(i, v)| part(i, v))
            .collect::<Vec<_>>()
            .join(" . ")
    };
    if let Some(c) = &e.comment {
        text.push_str(&format!(" comment \"{}\"", c.escape_debug()));
    }
    match &e.data {
        Some(Data::Verdict(v)) => text.push_str(&match v {
            Verdict::Accept => " : accept".to_string(),
            Verdict::Drop => " : drop".to_string(),
            Verdict::Return => " : return".to_string(),
            Verdict::Jump(to) => format!(" : jump {to}"),
            Verdict::Goto(to) => format!(" : goto {to}"),
            Verdict::Queue => " : queue".to_string(),
            Verdict::Continue => " : continue".to_string(),
        }),
        Some(Data::Endpoint(a, Some(p))) => text.push_str(&format!(" : {a} . {p}")),
        Some(Data::Endpoint(a, None)) => text.push_str(&format!(" : {a}")),
        Some(Data::Number(n)) => text.push_str(&format!(" : {n}")),
        Some(Data::Bytes(_)) | None => {}
    }
    text
}

/// A chain with its rules sorted by the destination they demand.
pub(super) struct WalkChain<'p> {
    pub table: usize,
    pub chain: &'p Chain,
    /// Belongs to the datapath.
    pub own: bool,
    /// Lets in by source ranges.
    pub ranges: bool,
    generic: Vec<u32>,
    by_address: HashMap<IpAddr, Vec<u32>>,
    by_port: HashMap<(u8, u16), Vec<u32>>,
    by_point: HashMap<(IpAddr, u8, u16), Vec<u32>>,
}

/// The rules of a chain that may match a packet to one point, in order.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidates<'p> {
    lists: [&'p [u32]; 4],
}

impl Candidates<'_> {
    /// The next rule.
    pub fn next(&mut self) -> Option<u32> {
        let mut best: Option<(usize, u32)> = None;
        for (i, list) in self.lists.iter().enumerate() {
            if let Some(&rule) = list.first()
                && best.is_none_or(|(_, b)| rule < b)
            {
                best = Some((i, rule));
            }
        }
        let (i, rule) = best?;
        self.lists[i] = &self.lists[i][1..];
        Some(rule)
    }
}

impl<'p> WalkChain<'p> {
    fn new(table: usize, chain: &'p Chain, own: bool, ranges: bool) -> Self {
        let mut c = WalkChain {
            table,
            chain,
            own,
            ranges,
            generic: Vec::new(),
            by_address: HashMap::new(),
            by_port: HashMap::new(),
            by_point: HashMap::new(),
        };
        for (i, rule) in chain.rules.iter().enumerate() {
            let i = i as u32;
            let demand = Demand::of(rule);
            match (demand.address, demand.protocol.zip(demand.port)) {
                (Some(a), Some((proto, port))) => {
                    c.by_point.entry((a, proto, port)).or_default().push(i);
                }
                (Some(a), None) => c.by_address.entry(a).or_default().push(i),
                (None, Some(key)) => c.by_port.entry(key).or_default().push(i),
                (None, None) => c.generic.push(i),
            }
        }
        c
    }

    /// The rules that may match a packet to this point.
    pub fn candidates(&self, address: IpAddr, protocol: u8, port: u16) -> Candidates<'_> {
        fn list<K: std::hash::Hash + Eq>(map: &HashMap<K, Vec<u32>>, key: K) -> &[u32] {
            if map.is_empty() {
                &[]
            } else {
                map.get(&key).map_or(&[], |v| v)
            }
        }
        Candidates {
            lists: [
                &self.generic,
                list(&self.by_address, address),
                list(&self.by_port, (protocol, port)),
                list(&self.by_point, (address, protocol, port)),
            ],
        }
    }
}

/// The exact destination without which a rule cannot match.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Demand {
    pub address: Option<IpAddr>,
    pub protocol: Option<u8>,
    pub port: Option<u16>,
}

impl Demand {
    pub fn of(rule: &Rule) -> Demand {
        let mut d = Demand::default();
        for op in &rule.ops {
            match op {
                Op::Match(Match {
                    field,
                    mask: None,
                    any_of,
                    negated: false,
                }) => match (field, &any_of[..]) {
                    (Field::Daddr, [Value::Prefix(p)]) if is_host(p) => {
                        d.address.get_or_insert(p.addr());
                    }
                    (Field::L4proto, [Value::Number(a, b)]) if a == b => {
                        d.protocol = d.protocol.or(u8::try_from(*a).ok());
                    }
                    (Field::Dport, [Value::Number(a, b)]) if a == b => {
                        d.port = d.port.or(u16::try_from(*a).ok());
                    }
                    _ => {}
                },
                Op::Match(_)
                | Op::Lookup(_)
                | Op::Probability { .. }
                | Op::AffinityCheck { .. }
                | Op::UnknownMatch(_)
                | Op::Nothing => {}
                // It does something before a later condition could end the rule.
                _ => break,
            }
        }
        d
    }
}

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
    exact: HashMap<Key, usize>,
    others: Vec<usize>,
    catch_all: Option<usize>,
    /// Elements by the rest of the key, the source's position left out.
    by_rest: RefCell<HashMap<usize, SourceIndex>>,
}

type SourceIndex = HashMap<Key, Rc<Vec<(ipnet::IpNet, usize)>>>;

impl<'p> WalkSet<'p> {
    fn new(set: &'p Set) -> Self {
        let mut s = WalkSet {
            set,
            exact: HashMap::new(),
            others: Vec::new(),
            catch_all: None,
            by_rest: RefCell::default(),
        };
        for (i, e) in set.elements.iter().enumerate() {
            if e.catch_all {
                s.catch_all = Some(i);
            } else if let Some(key) = exact_key(&e.key, None) {
                s.exact.entry(key).or_insert(i);
            } else {
                s.others.push(i);
            }
        }
        s
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
            if let Some(&i) = self.exact.get(key) {
                return Found::Element(i);
            }
            for &i in &self.others {
                match fits(&self.set.elements[i], key) {
                    Some(true) => return Found::Element(i),
                    Some(false) => {}
                    None => return Found::Unknown("an element of the set was not understood"),
                }
            }
            return self.catch_all.map_or(Found::Missing, Found::Element);
        };
        if self.catch_all.is_some() {
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
        let mut index: HashMap<Key, Vec<(ipnet::IpNet, usize)>> = HashMap::new();
        for (i, e) in self.set.elements.iter().enumerate() {
            let prefixes = match e.key.get(position) {
                Some(Value::Prefix(p)) => vec![*p],
                Some(Value::AddressRange(a, b)) => super::source::range_prefixes(*a, *b),
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
        (Value::AddressRange(a, b), Part::Address(x)) => Some(a <= x && x <= b),
        (Value::Number(a, b), Part::Number(n)) => Some(a <= n && n <= b),
        (Value::Name(n, false), Part::Name(x)) => Some(n == x),
        (Value::Name(n, true), Part::Name(x)) => Some(x.starts_with(&**n)),
        _ => None,
    }
}

/// All that packets of one family may meet.
pub(super) struct Program<'p> {
    pub tables: Vec<&'p Table>,
    pub chains: Vec<WalkChain<'p>>,
    /// First chain of each table in `chains`.
    first: Vec<usize>,
    sets: Vec<HashMap<&'p str, WalkSet<'p>>>,
    /// Base chains by hook, earliest first.
    base: HashMap<HookPoint, Vec<usize>>,
}

impl<'p> Program<'p> {
    pub fn new(ruleset: &'p Ruleset, family: Family, owner: &dyn Owner) -> Program<'p> {
        let mut p = Program {
            tables: Vec::new(),
            chains: Vec::new(),
            first: Vec::new(),
            sets: Vec::new(),
            base: HashMap::new(),
        };
        for table in ruleset.tables.iter().filter(|t| sees(t, family)) {
            let t = p.tables.len();
            p.tables.push(table);
            p.first.push(p.chains.len());
            for chain in &table.chains {
                let own = owner.owns(table, chain);
                if let (Some(hook), false) = (chain.hook, table.dormant) {
                    p.base.entry(hook.point).or_default().push(p.chains.len());
                }
                let ranges = own && owner.filters_sources(&chain.name);
                p.chains.push(WalkChain::new(t, chain, own, ranges));
            }
            p.sets.push(
                table
                    .sets
                    .iter()
                    .map(|(n, s)| (&**n, WalkSet::new(s)))
                    .collect(),
            );
        }
        let chains = &p.chains;
        for list in p.base.values_mut() {
            list.sort_by_key(|&c| chains[c].chain.hook.map_or(0, |h| h.priority));
        }
        p
    }

    /// The base chains of a hook, earliest first.
    pub fn base(&self, point: HookPoint) -> &[usize] {
        self.base.get(&point).map_or(&[], |v| v)
    }

    /// The chain of that name in the same table.
    pub fn target(&self, from: usize, name: &str) -> Option<usize> {
        let t = self.chains[from].table;
        self.tables[t]
            .chain_index
            .get(name)
            .map(|i| self.first[t] + i)
    }

    /// The set of that name in the chain's table.
    pub fn set(&self, chain: usize, name: &str) -> Option<&WalkSet<'p>> {
        self.sets[self.chains[chain].table].get(name)
    }

    /// A rule of a chain, or its policy.
    pub fn place(&self, chain: usize, rule: Option<u32>) -> Place<'p> {
        let c = &self.chains[chain];
        Place {
            table: self.tables[c.table],
            chain: c.chain,
            rule: rule.and_then(|r| c.chain.rules.get(r as usize)),
            element: None,
            fields: &[],
            own: c.own,
        }
    }
}

/// Does the table see packets of the family?
fn sees(table: &Table, family: Family) -> bool {
    match table.family {
        TableFamily::Inet => true,
        TableFamily::Ip => family == Family::V4,
        TableFamily::Ip6 => family == Family::V6,
        TableFamily::Other(_) => false,
    }
}

/// The look-ups of a rule.
pub(super) fn lookups(rule: &Rule) -> impl Iterator<Item = &Lookup> {
    rule.ops.iter().filter_map(|op| match op {
        Op::Lookup(l) | Op::VerdictMap(l) | Op::Dnat(NatTarget::Map(l)) => Some(l),
        _ => None,
    })
}
