//! Virtual servers and ipsets among the rules.

use super::Ipvs;
use super::decode::{Connections, Front, Method, VirtualServer, name};
use super::ipset::{Ipset, Part};
use crate::netfilter::ruleset::{
    Backend, Chain, ChainType, Field, Hook, HookPoint, Lookup, Match, NatTarget, Op, Rule, Ruleset,
    Set, Table, TableFamily, Value, Verdict,
};
use ipnet::IpNet;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

/// The name of the table that stands for virtual servers.
pub const TABLE: &str = "ip_vs";
/// Its base chains, with the priorities of `ip_vs_remote_request4` (`NF_IP_PRI_NAT_SRC - 1`) and
/// `ip_vs_local_request4` (`NF_IP_PRI_NAT_DST + 2`); IPv6 has the same.
pub const BASE: [(&str, HookPoint, i32); 2] = [
    ("LOCAL_IN", HookPoint::Input, 99),
    ("LOCAL_OUT", HookPoint::Output, -98),
];

/// What xtables' decoder calls a set that a rule names by its number.
const SET: &str = "ipset ";

/// The look-up of a rule in the ipset of this number, before the set is known: which part of the packet
/// each dimension is, source or destination.
pub fn lookup(index: u16, sources: &[bool], negated: bool) -> Op {
    let key = sources.iter().map(|source| {
        let what = if *source { SOURCE } else { DESTINATION };
        Field::Other(what.into())
    });
    Op::Lookup(Lookup {
        key: key.collect(),
        set: format!("{SET}{index}").into(),
        negated,
    })
}

const SOURCE: &str = "a dimension of an ipset, source";
const DESTINATION: &str = "a dimension of an ipset, destination";

fn set_number(set: &str) -> Option<u16> {
    set.strip_prefix(SET)?.parse().ok()
}

/// What rules have to do with IPVS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traces {
    /// Some rule names an ipset.
    pub sets: bool,
    /// There are chains of kube-proxy's IPVS mode.
    pub mode: bool,
}

impl Traces {
    /// Of these rules.
    pub fn of(ruleset: &Ruleset) -> Traces {
        let chains = || ruleset.tables.iter().flat_map(|t| &t.chains);
        let mut ops = chains().flat_map(|c| &c.rules).flat_map(|r| &r.ops);
        Traces {
            sets: ops.any(|op| matches!(op, Op::Lookup(l) if set_number(&l.set).is_some())),
            mode: chains().any(|c| &*c.name == "KUBE-IPVS-FILTER"),
        }
    }
}

impl Ipvs {
    /// Does the other give the same rules? Connections do not count.
    pub fn is_like(&self, other: &Ipvs) -> bool {
        let bare = |s: &VirtualServer| {
            let mut bare = s.clone();
            for real in &mut bare.real {
                real.connections = Connections::default();
            }
            bare
        };
        let servers = self.servers.iter().map(bare);
        self.sets == other.sets && servers.eq(other.servers.iter().map(bare))
    }

    /// The rules together with what belongs to them.
    pub fn among(&self, ruleset: &Ruleset) -> Ruleset {
        let mut all = ruleset.clone();
        for table in &mut all.tables {
            self.give_sets(table);
        }
        for family in [TableFamily::Ip, TableFamily::Ip6] {
            let of_family = |s: &&VirtualServer| is_v6(&s.front) == (family == TableFamily::Ip6);
            let servers: Vec<&VirtualServer> = self.servers.iter().filter(of_family).collect();
            if !servers.is_empty() {
                all.tables.push(table(family, &servers));
            }
        }
        all
    }

    /// Puts the sets that a table's rules name into the table, and says in the rules what they look up.
    fn give_sets(&self, table: &mut Table) {
        let mut used: HashMap<Arc<str>, &Ipset> = HashMap::new();
        for rule in table.chains.iter_mut().flat_map(|c| &mut c.rules) {
            for op in &mut rule.ops {
                let Op::Lookup(lookup) = op else { continue };
                let Some(number) = set_number(&lookup.set) else {
                    continue;
                };
                let Some(set) = self.sets.0.get(&number) else {
                    *op = Op::UnknownMatch(
                        format!("ipset number {number}, which is not listed").into(),
                    );
                    continue;
                };
                match key(&set.parts, &lookup.key) {
                    Some(key) => {
                        lookup.key = key;
                        lookup.set = set.name.clone();
                        used.insert(set.name.clone(), set);
                    }
                    None => {
                        *op = Op::UnknownMatch(format!("ipset {}", set.name).into());
                    }
                }
            }
        }
        for (name, set) in used {
            // A set of nf_tables' own of the same name would be another one.
            table
                .sets
                .entry(name)
                .or_insert_with(|| Set::clone(&set.set));
        }
    }
}

/// Which fields a look-up compares. `None`: it has fewer dimensions than the set, or the set is of no
/// type that is understood.
fn key(parts: &[Part], dimensions: &[Field]) -> Option<Vec<Field>> {
    if parts.is_empty() || dimensions.len() < parts.len() {
        return None;
    }
    let mut key = Vec::with_capacity(4);
    for (part, dimension) in parts.iter().zip(dimensions) {
        let source = matches!(dimension, Field::Other(what) if **what == *SOURCE);
        let (address, port) = match source {
            true => (Field::Saddr, Field::Sport),
            false => (Field::Daddr, Field::Dport),
        };
        match part {
            Part::Address => key.push(address),
            Part::ProtocolPort => key.extend([Field::L4proto, port]),
            Part::Port => key.push(port),
        }
    }
    Some(key)
}

fn is_v6(front: &Front) -> bool {
    match front {
        Front::Mark { v6, .. } => *v6,
        Front::Point { address, .. } => address.is_ipv6(),
    }
}

fn is(field: Field, value: Value) -> Op {
    Op::Match(Match {
        field,
        mask: None,
        any_of: value.into(),
        negated: false,
    })
}

fn number(n: impl Into<u64>) -> Value {
    let n = n.into();
    Value::Number(n, n)
}

/// One family's virtual servers.
fn table(family: TableFamily, servers: &[&VirtualServer]) -> Table {
    // ip_vs_service_find: by mark, then by address, protocol and port, then by address and protocol.
    let mut ordered: Vec<(u8, &VirtualServer)> = servers
        .iter()
        .map(|s| {
            let place = match s.front {
                Front::Mark { .. } => 0,
                Front::Point { port: 0, .. } => 2,
                Front::Point { .. } => 1,
            };
            (place, *s)
        })
        .collect();
    ordered.sort_by_key(|(place, _)| *place);
    let mut chains = Vec::with_capacity(BASE.len() + servers.len());
    for (base, point, priority) in BASE {
        let rules = ordered.iter().zip(1..).map(|((_, server), i)| {
            let mut ops = conditions(&server.front);
            ops.push(Op::Verdict(Verdict::Jump(name(&server.front).into())));
            Rule::of(i, &mut ops, None)
        });
        chains.push(Chain {
            name: base.into(),
            handle: 0,
            hook: Some(Hook {
                point,
                priority,
                kind: ChainType::VirtualServer,
                policy_drop: false,
            }),
            rules: rules.collect(),
        });
    }
    chains.extend(ordered.iter().map(|(_, server)| chain(server)));
    let names = chains.iter().enumerate();
    Table {
        family,
        name: TABLE.into(),
        backend: Backend::Ipvs,
        dormant: false,
        chain_index: names.map(|(i, c)| (c.name.clone(), i)).collect(),
        chains,
        sets: HashMap::new(),
    }
}

fn conditions(front: &Front) -> Vec<Op> {
    match *front {
        Front::Mark { mark, .. } => vec![is(Field::Mark, number(mark))],
        Front::Point {
            address,
            protocol,
            port,
        } => {
            let mut ops = vec![
                is(Field::Daddr, Value::Prefix(IpNet::from(address))),
                is(Field::L4proto, number(protocol)),
            ];
            if port != 0 {
                ops.push(is(Field::Dport, number(port)));
            }
            ops
        }
    }
}

/// What a scheduler gives each real server in the long run.
enum Shares {
    /// The same to each whose weight is not 0.
    Even,
    /// By weight.
    Weighted,
    /// Not to be said.
    Unknown,
}

/// net/netfilter/ipvs/ip_vs_*.c. Those that go by the number of connections give shares only in the long
/// run; those that go by the destination's address send all connections of a virtual server to one.
fn shares(server: &VirtualServer) -> Shares {
    let drained = server.real.iter().any(|r| r.weight == 0);
    match &*server.scheduler {
        "rr" | "lc" => Shares::Even,
        "wrr" | "wlc" | "sed" | "nq" | "mh" => Shares::Weighted,
        // A hash that finds a drained server refuses the connection (ip_vs_sh_get).
        "sh" if !drained => Shares::Weighted,
        _ => Shares::Unknown,
    }
}

/// One virtual server: what its scheduler does with a new connection.
fn chain(server: &VirtualServer) -> Chain {
    let mut rules = Vec::new();
    let mut add = |mut ops: Vec<Op>, handle: usize| {
        rules.push(Rule::of(handle as u64, &mut ops, None));
    };
    let unknown = |what: String| vec![Op::UnknownStatement(what.into())];
    // Real servers that get new connections, by their place among all in order of addresses.
    let active: Vec<_> = server
        .real
        .iter()
        .zip(1usize..)
        .filter(|(real, _)| real.weight > 0)
        .collect();
    let odd = active
        .iter()
        .find(|(real, _)| real.method != Method::Masquerade || real.upper_threshold != 0);
    let shares = shares(server);
    if let (Front::Point { port: 0, .. } | Front::Mark { .. }, _) | (_, true) =
        (server.front, server.one_packet)
    {
        add(
            unknown("a virtual server by mark, for any port, or for single packets".into()),
            0,
        );
    } else if server.persistence.is_some_and(|p| !p.whole_address) {
        add(
            unknown("persistence by network instead of client".into()),
            0,
        );
    } else if let Some((real, i)) = odd {
        let what = match real.method {
            Method::Masquerade => format!("real server {} with a threshold", real.address),
            Method::Other(n) => format!("real server {} by forwarding method {n}", real.address),
        };
        add(unknown(what), *i);
    } else if matches!(shares, Shares::Unknown) && active.len() > 1 {
        add(unknown(format!("scheduler {}", server.scheduler)), 0);
    } else {
        if let Some(persistence) = server.persistence {
            for (real, i) in &active {
                let remembered = Op::AffinityCheck {
                    list: real.address.to_string().into(),
                    seconds: Some(persistence.seconds),
                };
                add(
                    vec![remembered, to(real.address.ip(), real.address.port())],
                    *i,
                );
            }
        }
        let weight = |w: u32| match shares {
            Shares::Weighted => u64::from(w),
            Shares::Even | Shares::Unknown => 1,
        };
        let mut left: u64 = active.iter().map(|(real, _)| weight(real.weight)).sum();
        for (real, i) in &active {
            let own = weight(real.weight);
            let mut ops = Vec::new();
            if own < left {
                let numerator = (1u64 << 31) as f64 * own as f64 / left as f64;
                ops.push(Op::Probability {
                    numerator: numerator as u32,
                });
            }
            left -= own;
            if server.persistence.is_some() {
                let list = real.address.to_string().into();
                ops.push(Op::AffinityUpdate { list });
            }
            ops.push(to(real.address.ip(), real.address.port()));
            add(ops, *i);
        }
        if active.is_empty() {
            // ip_vs_leave: no real server takes it, so the client is told that the port is unreachable.
            add(vec![Op::Reject], 0);
        }
    }
    Chain {
        name: name(&server.front).into(),
        handle: 0,
        hook: None,
        rules,
    }
}

fn to(address: IpAddr, port: u16) -> Op {
    Op::Dnat(NatTarget::Fixed {
        address: Some(address),
        port: Some(port),
    })
}
