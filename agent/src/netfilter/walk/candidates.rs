//! The destinations that the datapath's own rules name.

use super::Owner;
use super::program::{Demand, Program, lookups};
use super::source::is_host;
use crate::netfilter::ruleset::{Field, Match, NatTarget, Op, Ruleset, TableFamily, Value};
use ipnet::IpNet;
use model::address::{Family, Frontend, Protocol};
use model::finding::Evidence;
use model::view::NodeView;
use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;

/// Everything that rules name as a destination.
#[derive(Debug, Default)]
pub(super) struct Named {
    /// Address, protocol and port together, in own rules.
    points: BTreeSet<(IpAddr, Protocol, u16)>,
    /// Protocol and port without an address, in own rules: node ports.
    ports: BTreeSet<(Protocol, u16)>,
    /// Addresses without a port, in own rules.
    addresses: BTreeSet<IpAddr>,
    /// Ranges of addresses without a port, in own rules.
    prefixes: BTreeSet<IpNet>,
    /// Every destination address and port that any rule mentions.
    any_address: HashSet<IpAddr>,
    any_prefix: Vec<IpNet>,
    any_port: HashSet<u16>,
    family: Option<Family>,
}

impl Named {
    pub fn of(program: &Program<'_>, family: Family) -> Named {
        let mut named = Named {
            family: Some(family),
            ..Named::default()
        };
        for (c, chain) in program.chains.iter().enumerate() {
            for rule in &chain.chain.rules {
                for op in &rule.ops {
                    if let Op::Match(m) = op {
                        named.mention(m);
                    }
                }
                if chain.own && leads_somewhere(&rule.ops) {
                    named.rule(&Demand::of(rule), &rule.ops);
                }
                for lookup in lookups(rule) {
                    if let Some(set) = program.set(c, &lookup.set) {
                        for e in &set.set.elements {
                            named.element(&lookup.key, &e.key, chain.own && !lookup.negated);
                        }
                    }
                }
            }
        }
        named
    }

    fn mention(&mut self, m: &Match) {
        for v in m.any_of.iter() {
            match (&m.field, v) {
                (Field::Daddr, Value::Prefix(p)) if is_host(p) => {
                    self.any_address.insert(p.addr());
                }
                (Field::Daddr, Value::Prefix(p)) => self.any_prefix.push(*p),
                (Field::Dport, Value::Number(a, b)) if a == b => {
                    self.any_port.extend(u16::try_from(*a));
                }
                _ => {}
            }
        }
    }

    fn rule(&mut self, d: &Demand, ops: &[Op]) {
        let protocol = d.protocol.and_then(Protocol::from_number);
        match (d.address, protocol, d.port) {
            (Some(a), Some(protocol), Some(port)) => {
                self.points.insert((a, protocol, port));
            }
            (None, Some(protocol), Some(port)) => {
                self.ports.insert((protocol, port));
            }
            (Some(a), None, None) => {
                self.addresses.insert(a);
            }
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
                                self.range(p);
                            }
                        }
                    }
                }
            }
            _ => {}
        }
    }

    fn range(&mut self, p: &IpNet) {
        if is_host(p) {
            self.addresses.insert(p.addr());
        } else if p.prefix_len() > 0 && !p.network().is_loopback() {
            self.prefixes.insert(p.trunc());
        }
    }

    fn element(&mut self, fields: &[Field], key: &[Value], own: bool) {
        let at = |f: Field| fields.iter().position(|x| *x == f).and_then(|i| key.get(i));
        let address = at(Field::Daddr);
        let number = |v: Option<&Value>| match v {
            Some(Value::Number(a, b)) if a == b => Some(*a),
            _ => None,
        };
        let port = number(at(Field::Dport)).and_then(|p| u16::try_from(p).ok());
        if let Some(Value::Prefix(p)) = address {
            if is_host(p) {
                self.any_address.insert(p.addr());
            } else {
                self.any_prefix.push(*p);
            }
        }
        self.any_port.extend(port);
        // A look-up with the source in its key comes after translation.
        if !own || fields.contains(&Field::Saddr) {
            return;
        }
        let protocol = number(at(Field::L4proto))
            .and_then(|n| u8::try_from(n).ok())
            .and_then(Protocol::from_number);
        match (address, protocol, port) {
            (Some(Value::Prefix(p)), Some(protocol), Some(port)) if is_host(p) => {
                self.points.insert((p.addr(), protocol, port));
            }
            (None, Some(protocol), Some(port)) => {
                self.ports.insert((protocol, port));
            }
            (Some(Value::Prefix(p)), None, None) => self.range(p),
            (Some(Value::AddressRange(range)), None, None) => {
                for p in super::source::range_prefixes(range.0, range.1) {
                    self.range(&p);
                }
            }
            _ => {}
        }
    }

    /// The frontends; node ports on every address of the node's links but those of `kube-ipvs0`.
    pub fn frontends(&self, node: &NodeView) -> BTreeSet<Frontend> {
        let mut all: BTreeSet<Frontend> = self
            .points
            .iter()
            .map(|&(a, protocol, port)| Frontend::port(a, protocol, port))
            .collect();
        for a in node.addresses.iter().filter(|a| &*a.link != "kube-ipvs0") {
            if Some(Family::of(a.address)) != self.family {
                continue;
            }
            all.extend(
                self.ports
                    .iter()
                    .map(|&(protocol, port)| Frontend::port(a.address, protocol, port)),
            );
        }
        all.extend(self.addresses.iter().map(|&a| Frontend::Address(a)));
        all.extend(self.prefixes.iter().map(|&p| Frontend::Prefix(p)));
        all.retain(|f| Some(f.family()) == self.family);
        all
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
                    !self.any_address.contains(a)
                        && !local(*a)
                        && !self.any_prefix.iter().any(|q| {
                            q.prefix_len() > p.prefix_len() && p.contains(q) && q.contains(a)
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

    fn free_port(&self) -> u16 {
        (2..=u16::MAX)
            .rev()
            .find(|p| !self.any_port.contains(p))
            .unwrap_or(1)
    }
}

/// A rule that lets its packets pass names no frontend: the health check ports (kube-proxy.md 3.3).
fn leads_somewhere(ops: &[Op]) -> bool {
    use crate::netfilter::ruleset::Verdict::{Accept, Continue, Return};
    !matches!(ops.last(), Some(Op::Verdict(Accept | Continue | Return)))
}

/// See [`super::not_understood`].
pub(super) fn not_understood(ruleset: &Ruleset, owner: &dyn Owner) -> (Vec<Evidence>, u64) {
    let mut own = Vec::new();
    let mut foreign = 0;
    for table in &ruleset.tables {
        if matches!(table.family, TableFamily::Other(_)) {
            continue;
        }
        for chain in &table.chains {
            let owned = owner.owns(table, chain);
            for rule in &chain.rules {
                for op in &rule.ops {
                    let what = match op {
                        Op::UnknownMatch(what)
                        | Op::UnknownStatement(what)
                        | Op::Dnat(NatTarget::Unknown(what)) => what,
                        _ => continue,
                    };
                    if !owned {
                        foreign += 1;
                        continue;
                    }
                    own.push(Evidence {
                        family: table.word().into(),
                        table: table.name.clone(),
                        chain: chain.name.clone(),
                        handle: Some(rule.handle),
                        element: None,
                        says: format!("not understood: {what}").into(),
                    });
                }
            }
        }
    }
    (own, foreign)
}
