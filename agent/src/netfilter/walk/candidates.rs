//! The destinations that the datapath's own rules name.

use super::Owner;
use super::program::{Demand, sees};
use super::source::is_host;
use crate::netfilter::changes::At;
use crate::netfilter::ruleset::{
    Element, Field, Match, NatTarget, Op, Rule, Ruleset, Table, Value,
};
use ipnet::IpNet;
use model::address::{Family, Frontend, Protocol};
use model::view::NodeView;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

/// How often each of something is named; what is named by nobody is not there.
#[derive(Debug)]
struct Counts<K>(BTreeMap<K, u32>);

impl<K> Default for Counts<K> {
    fn default() -> Self {
        Counts(BTreeMap::new())
    }
}

impl<K: Ord + Copy> Counts<K> {
    /// One more, or one less. True where that makes a difference.
    fn count(&mut self, key: K, more: bool) -> bool {
        if more {
            let n = self.0.entry(key).or_default();
            *n += 1;
            return *n == 1;
        }
        let Some(n) = self.0.get_mut(&key) else {
            return false;
        };
        *n -= 1;
        if *n == 0 {
            self.0.remove(&key);
            return true;
        }
        false
    }

    fn has(&self, key: &K) -> bool {
        self.0.contains_key(key)
    }

    fn keys(&self) -> impl Iterator<Item = K> {
        self.0.keys().copied()
    }
}

/// A way in which rules look something up in a set.
#[derive(Debug)]
struct Use {
    fields: Vec<Field>,
    own: bool,
    rules: u32,
}

/// Everything that rules name as a destination.
#[derive(Debug, Default)]
pub(super) struct Named {
    /// Address, protocol and port together, in own rules.
    points: Counts<(IpAddr, Protocol, u16)>,
    /// Protocol and port without an address, in own rules: node ports.
    ports: Counts<(Protocol, u16)>,
    /// Addresses without a port, in own rules.
    addresses: Counts<IpAddr>,
    /// Ranges of addresses without a port, in own rules.
    prefixes: Counts<IpNet>,
    /// Every destination address and port that any rule mentions.
    any_address: Counts<IpAddr>,
    any_prefix: Counts<IpNet>,
    any_port: Counts<u16>,
    /// How rules use each set.
    uses: HashMap<At, Vec<Use>>,
    family: Option<Family>,
    moved: Moved,
}

/// What came to be named, or is named no more.
#[derive(Debug, Default)]
pub(super) struct Moved {
    /// Frontends but those of node ports.
    pub frontends: BTreeSet<Frontend>,
    /// Node ports.
    pub ports: BTreeSet<(Protocol, u16)>,
    /// Something that decides which point stands for a wildcard.
    pub mentioned: bool,
}

impl Named {
    pub fn of(ruleset: &Ruleset, owner: &dyn Owner, family: Family) -> Named {
        let mut named = Named {
            family: Some(family),
            ..Named::default()
        };
        let tables = || ruleset.tables.iter().filter(|t| sees(t, family));
        for table in tables() {
            for chain in &table.chains {
                let own = owner.owns(table, chain);
                for rule in &chain.rules {
                    named.rule(table, own, rule, true, |_| Vec::new());
                }
            }
        }
        for table in tables() {
            for set in table.sets.values() {
                named.elements(&At::of(table, &set.name), set.elements.iter(), true);
            }
        }
        named.moved = Moved::default();
        named
    }

    /// What moved since this was asked last.
    pub fn take_moved(&mut self) -> Moved {
        std::mem::take(&mut self.moved)
    }

    /// The keys with which rules look something up in a set.
    pub fn keys(&self, set: &At) -> impl Iterator<Item = &[Field]> {
        let uses = self.uses.get(set).into_iter().flatten();
        uses.map(|u| &*u.fields)
    }

    /// A rule came, or went. `content`: a set as it is counted now; of those that are not counted,
    /// nothing.
    pub fn rule<'r>(
        &mut self,
        table: &Table,
        own: bool,
        rule: &Rule,
        comes: bool,
        content: impl Fn(&At) -> Vec<&'r Element>,
    ) {
        for op in &rule.ops {
            if let Op::Match(m) = op {
                self.mention(m, comes);
            }
        }
        if own && leads_somewhere(&rule.ops) {
            self.destination(&Demand::of(rule), &rule.ops, comes);
        }
        for (set, fields, negated) in used_sets(rule) {
            let at = At::of(table, set);
            let own = own && !negated;
            if self.uses(&at, fields, own, comes) {
                for e in content(&at) {
                    self.element(fields, &e.key, own, comes);
                }
            }
        }
    }

    /// True where a way of using the set came, or went.
    fn uses(&mut self, at: &At, fields: &[Field], own: bool, comes: bool) -> bool {
        let uses = self.uses.entry(at.clone()).or_default();
        let known = uses.iter().position(|u| u.own == own && u.fields == fields);
        match (known, comes) {
            (Some(i), true) => {
                uses[i].rules += 1;
                false
            }
            (None, true) => {
                uses.push(Use {
                    fields: fields.to_vec(),
                    own,
                    rules: 1,
                });
                true
            }
            (Some(i), false) => {
                uses[i].rules -= 1;
                let last = uses[i].rules == 0;
                if last {
                    uses.swap_remove(i);
                    if uses.is_empty() {
                        self.uses.remove(at);
                    }
                }
                last
            }
            (None, false) => false,
        }
    }

    /// Elements came, or went.
    pub fn elements<'r>(
        &mut self,
        set: &At,
        elements: impl Iterator<Item = &'r Element> + Clone,
        come: bool,
    ) {
        let Some(uses) = self.uses.remove(set) else {
            return;
        };
        for u in &uses {
            for e in elements.clone() {
                self.element(&u.fields, &e.key, u.own, come);
            }
        }
        self.uses.insert(set.clone(), uses);
    }

    fn mention(&mut self, m: &Match, comes: bool) {
        for v in m.any_of.iter() {
            match (&m.field, v) {
                (Field::Daddr, Value::Prefix(p)) => self.mention_addresses(p, comes),
                (Field::Dport, Value::Number(a, b)) if a == b => {
                    if let Ok(port) = u16::try_from(*a) {
                        self.moved.mentioned |= self.any_port.count(port, comes);
                    }
                }
                _ => {}
            }
        }
    }

    fn mention_addresses(&mut self, p: &IpNet, comes: bool) {
        self.moved.mentioned |= if is_host(p) {
            self.any_address.count(p.addr(), comes)
        } else {
            self.any_prefix.count(*p, comes)
        };
    }

    fn point_of(&mut self, (address, protocol, port): (IpAddr, Protocol, u16), comes: bool) {
        if self.points.count((address, protocol, port), comes) {
            let frontend = Frontend::port(address, protocol, port);
            self.moved.frontends.insert(frontend);
        }
    }

    fn port_of(&mut self, port: (Protocol, u16), comes: bool) {
        if self.ports.count(port, comes) {
            self.moved.ports.insert(port);
        }
    }

    fn destination(&mut self, d: &Demand, ops: &[Op], comes: bool) {
        let protocol = d.protocol.and_then(Protocol::from_number);
        match (d.address, protocol, d.port) {
            (Some(a), Some(protocol), Some(port)) => self.point_of((a, protocol, port), comes),
            (None, Some(protocol), Some(port)) => self.port_of((protocol, port), comes),
            (Some(a), None, None) => self.range(&IpNet::from(a), comes),
            (None, None, None) => {
                for op in ops {
                    if let Op::Match(Match {
                        field: Field::Daddr,
                        any_of,
                        negated: false,
                        ..
                    }) = op
                    {
                        for v in any_of.iter() {
                            if let Value::Prefix(p) = v {
                                self.range(p, comes);
                            }
                        }
                    }
                }
            }
            _ => {}
        }
    }

    fn range(&mut self, p: &IpNet, comes: bool) {
        let (moved, frontend) = if is_host(p) {
            let a = p.addr();
            (self.addresses.count(a, comes), Frontend::Address(a))
        } else if p.prefix_len() > 0 && !p.network().is_loopback() {
            let p = p.trunc();
            (self.prefixes.count(p, comes), Frontend::Prefix(p))
        } else {
            return;
        };
        if moved {
            self.moved.frontends.insert(frontend);
        }
    }

    fn element(&mut self, fields: &[Field], key: &[Value], own: bool, comes: bool) {
        let at = |f: Field| fields.iter().position(|x| *x == f).and_then(|i| key.get(i));
        let address = at(Field::Daddr);
        let number = |v: Option<&Value>| match v {
            Some(Value::Number(a, b)) if a == b => Some(*a),
            _ => None,
        };
        let port = number(at(Field::Dport)).and_then(|p| u16::try_from(p).ok());
        if let Some(Value::Prefix(p)) = address {
            self.mention_addresses(p, comes);
        }
        if let Some(port) = port {
            self.moved.mentioned |= self.any_port.count(port, comes);
        }
        // A look-up with the source in its key comes after translation.
        if !own || fields.contains(&Field::Saddr) {
            return;
        }
        let protocol = number(at(Field::L4proto))
            .and_then(|n| u8::try_from(n).ok())
            .and_then(Protocol::from_number);
        match (address, protocol, port) {
            (Some(Value::Prefix(p)), Some(protocol), Some(port)) if is_host(p) => {
                self.point_of((p.addr(), protocol, port), comes);
            }
            (None, Some(protocol), Some(port)) => self.port_of((protocol, port), comes),
            (Some(Value::Prefix(p)), None, None) => self.range(p, comes),
            (Some(Value::AddressRange(range)), None, None) => {
                for p in super::source::range_prefixes(range.0, range.1) {
                    self.range(&p, comes);
                }
            }
            _ => {}
        }
    }

    /// Is it one of [`Named::frontends`]?
    pub fn names(&self, frontend: &Frontend, node: &NodeView) -> bool {
        if Some(frontend.family()) != self.family {
            return false;
        }
        match *frontend {
            Frontend::Port {
                address,
                protocol,
                port,
            } => {
                let mut served = node_port_addresses(node).filter(|a| *a == address);
                self.points.has(&(address, protocol, port))
                    || (self.ports.has(&(protocol, port)) && served.next().is_some())
            }
            Frontend::Address(a) => self.addresses.has(&a),
            Frontend::Prefix(p) => self.prefixes.has(&p),
        }
    }

    /// The frontends; node ports on every address of the node's links but those of `kube-ipvs0`.
    pub fn frontends(&self, node: &NodeView) -> BTreeSet<Frontend> {
        let mut all: BTreeSet<Frontend> = self
            .points
            .keys()
            .map(|(a, protocol, port)| Frontend::port(a, protocol, port))
            .collect();
        for a in node_port_addresses(node) {
            if Some(Family::of(a)) != self.family {
                continue;
            }
            let ports = self.ports.keys();
            all.extend(ports.map(|(protocol, port)| Frontend::port(a, protocol, port)));
        }
        all.extend(self.addresses.keys().map(Frontend::Address));
        all.extend(self.prefixes.keys().map(Frontend::Prefix));
        all.retain(|f| Some(f.family()) == self.family);
        all
    }

    /// Those that stand for more than one port.
    pub fn frontends_without_port(&self) -> impl Iterator<Item = Frontend> {
        let addresses = self.addresses.keys().map(Frontend::Address);
        addresses.chain(self.prefixes.keys().map(Frontend::Prefix))
    }

    /// The point to walk for a frontend: for a wildcard one that no rule names.
    pub fn point(
        &self,
        frontend: Frontend,
        local: &dyn Fn(IpAddr) -> bool,
    ) -> Option<(IpAddr, Protocol, u16)> {
        match frontend {
            Frontend::Port {
                address,
                protocol,
                port,
            } => Some((address, protocol, port)),
            Frontend::Address(a) => Some((a, Protocol::Tcp, self.free_port())),
            Frontend::Prefix(p) => {
                let free = |a: &IpAddr| {
                    !self.any_address.has(a)
                        && !local(*a)
                        && !self.any_prefix.keys().any(|q| {
                            q.prefix_len() > p.prefix_len() && p.contains(&q) && q.contains(a)
                        })
                };
                // Addresses are given out from both ends of the range; try its middle.
                let middle = p.subnets(p.prefix_len() + 1).ok()?.nth(1)?;
                [middle, p]
                    .iter()
                    .find_map(|half| half.hosts().take(100_000).find(|a| free(a)))
                    .map(|a| (a, Protocol::Tcp, self.free_port()))
            }
        }
    }

    /// A port that no rule names.
    pub fn free_port(&self) -> u16 {
        (2..=u16::MAX)
            .rev()
            .find(|p| !self.any_port.has(p))
            .unwrap_or(1)
    }
}

/// The addresses on which node ports are looked for.
fn node_port_addresses(node: &NodeView) -> impl Iterator<Item = IpAddr> {
    let links = node.addresses.iter().filter(|a| &*a.link != "kube-ipvs0");
    links.map(|a| a.address)
}

/// The sets that a rule looks something up in, with the key, and whether a miss is what matches. A map
/// from a number drawn by chance has no key.
fn used_sets(rule: &Rule) -> impl Iterator<Item = (&Arc<str>, &[Field], bool)> {
    rule.ops.iter().filter_map(|op| match op {
        Op::Lookup(l) | Op::VerdictMap(l) | Op::Dnat(NatTarget::Map(l)) => {
            Some((&l.set, &*l.key, l.negated))
        }
        Op::NumgenVerdictMap { map, .. } | Op::Dnat(NatTarget::NumgenMap { map, .. }) => {
            Some((map, &[][..], false))
        }
        Op::AffinityCheck { list, .. } | Op::AffinityUpdate { list } => {
            Some((list, &[][..], false))
        }
        _ => None,
    })
}

/// A rule that lets its packets pass names no frontend: the health check ports (kube-proxy.md 3.3).
fn leads_somewhere(ops: &[Op]) -> bool {
    use crate::netfilter::ruleset::Verdict::{Accept, Continue, Return};
    !matches!(ops.last(), Some(Op::Verdict(Accept | Continue | Return)))
}
