//! A ruleset made ready to be walked: rules found by the point that a packet goes to.

use super::Owner;
use super::hash::{Map, Set};
use super::place::Place;
use super::set::{Keys, WalkSet};
use super::source::is_host;
use crate::netfilter::changes::{At, Changes};
use crate::netfilter::ruleset::{
    self, Chain, Field, HookPoint, Match, Op, Rule, Ruleset, Table, TableFamily, Value,
};
use model::address::Family;
use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

/// A chain with its rules sorted by the destination they demand.
pub(super) struct WalkChain<'p> {
    pub table: usize,
    pub chain: &'p Chain,
    /// Belongs to the datapath.
    pub own: bool,
    /// Lets in by source ranges.
    pub ranges: bool,
    /// `None`: no rule demands a destination, so all may match; there are up to [`PLAIN`] of them.
    index: Option<Arc<Index>>,
}

/// Rules by the destination that they demand.
#[derive(Debug, Default)]
struct Index {
    generic: Vec<u32>,
    by_address: Map<IpAddr, Vec<u32>>,
    by_port: Map<(u8, u16), Vec<u32>>,
    by_point: Map<(IpAddr, u8, u16), Vec<u32>>,
}

impl Index {
    fn of(chain: &Chain) -> Option<Index> {
        let demands = |rule| {
            let d = Demand::of(rule);
            (d.address, d.protocol.zip(d.port))
        };
        if chain.rules.len() <= PLAIN && chain.rules.iter().all(|r| demands(r) == (None, None)) {
            return None;
        }
        let mut index = Index::default();
        for (i, rule) in chain.rules.iter().enumerate() {
            let i = i as u32;
            match demands(rule) {
                (Some(a), Some((proto, port))) => {
                    index.by_point.entry((a, proto, port)).or_default().push(i);
                }
                (Some(a), None) => index.by_address.entry(a).or_default().push(i),
                (None, Some(key)) => index.by_port.entry(key).or_default().push(i),
                (None, None) => index.generic.push(i),
            }
        }
        Some(index)
    }
}

/// A chain or set with more than this is worth having its index kept from walk to walk.
const LARGE: usize = 64;

/// Indexes of large chains and sets, kept from walk to walk while these stay as they are.
#[derive(Debug, Default)]
pub(super) struct Known {
    chains: RefCell<HashMap<At, Arc<Index>>>,
    sets: RefCell<HashMap<At, Arc<Keys>>>,
}

impl Known {
    /// Forgets what is another now.
    pub fn forget(&mut self, changes: &Changes) {
        if changes.all {
            *self = Known::default();
            return;
        }
        let (chains, sets) = (self.chains.get_mut(), self.sets.get_mut());
        chains.retain(|at, _| !changes.chains.contains_key(at));
        sets.retain(|at, _| !changes.sets.contains_key(at));
    }

    fn index(&self, chain: &Chain, at: At) -> Option<Arc<Index>> {
        if chain.rules.len() <= LARGE {
            return Index::of(chain).map(Arc::new);
        }
        let mut known = self.chains.borrow_mut();
        if let Some(index) = known.get(&at) {
            return Some(index.clone());
        }
        let index = Arc::new(Index::of(chain)?);
        known.insert(at, index.clone());
        Some(index)
    }

    fn keys(&self, set: &ruleset::Set, at: At) -> Arc<Keys> {
        if set.elements.len() <= LARGE {
            return Arc::new(Keys::of(set));
        }
        let mut known = self.sets.borrow_mut();
        let keys = known.entry(at).or_insert_with(|| Arc::new(Keys::of(set)));
        keys.clone()
    }
}

/// Most chains belong to one endpoint: a few rules, none of which demands a destination.
const PLAIN: usize = 32;
const ALL: [u32; PLAIN] = {
    let mut all = [0; PLAIN];
    let mut i = 0;
    while i < PLAIN {
        all[i] = i as u32;
        i += 1;
    }
    all
};
static ALL_RULES: [u32; PLAIN] = ALL;

/// The rules of a chain that may match a packet to one point, in order.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidates<'p> {
    lists: [&'p [u32]; 4],
}

impl Candidates<'_> {
    /// The very same rules?
    pub fn same(&self, other: &Candidates<'_>) -> bool {
        let both = self.lists.iter().zip(&other.lists);
        both.clone().all(|(a, b)| a.len() == b.len())
            && both
                .clone()
                .all(|(a, b)| a.is_empty() || std::ptr::eq(*a, *b))
    }

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
    fn new(table: usize, chain: &'p Chain, own: bool, ranges: bool, known: &Known, at: At) -> Self {
        WalkChain {
            table,
            chain,
            own,
            ranges,
            index: known.index(chain, at),
        }
    }

    /// Are its candidates the same for every point?
    pub fn is_plain(&self) -> bool {
        self.index.is_none()
    }

    /// The rules that may match a packet to this point.
    pub fn candidates(&self, address: IpAddr, protocol: u8, port: u16) -> Candidates<'_> {
        fn list<K: std::hash::Hash + Eq>(map: &Map<K, Vec<u32>>, key: K) -> &[u32] {
            if map.is_empty() {
                &[]
            } else {
                map.get(&key).map_or(&[], |v| v)
            }
        }
        let Some(index) = &self.index else {
            let all = &ALL_RULES[..self.chain.rules.len().min(PLAIN)];
            return Candidates {
                lists: [all, &[], &[], &[]],
            };
        };
        Candidates {
            lists: [
                &index.generic,
                list(&index.by_address, address),
                list(&index.by_port, (protocol, port)),
                list(&index.by_point, (address, protocol, port)),
            ],
        }
    }
}

/// The exact destination without which a rule cannot match.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
/// All that packets of one family may meet. What a chain or set needs to be walked is made when a
/// packet first meets it: after a small change few do.
pub(super) struct Program<'p> {
    pub tables: Vec<&'p Table>,
    owner: &'p dyn Owner,
    known: &'p Known,
    chains: Vec<Lazy<'p, Chain, WalkChain<'p>>>,
    /// First chain of each table in `chains`.
    first: Vec<usize>,
    sets: Vec<Lazy<'p, ruleset::Set, WalkSet<'p>>>,
    /// Sets of each table by name.
    named: Vec<Map<&'p str, usize>>,
    /// Base chains by hook, earliest first.
    base: Map<HookPoint, Vec<usize>>,
}

/// A chain or set of a table, and what the walk makes of it.
struct Lazy<'p, T, W> {
    table: usize,
    of: &'p T,
    made: OnceCell<Box<W>>,
}

/// Which base chains come first where hook and priority are the same. In the kernel it is the one
/// that was registered last (`nf_hook_entries_grow`), which nothing tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ties {
    /// As they were read.
    AsRead,
    /// The other way round: with both, each of two chains comes first once.
    Reversed,
}

impl<'p> Program<'p> {
    /// The ruleset in the orders in which the kernel may go through it: one, or two where several
    /// base chains have rules at the same hook and priority.
    pub fn orders(
        ruleset: &'p Ruleset,
        family: Family,
        owner: &'p dyn Owner,
        known: &'p Known,
    ) -> Vec<Program<'p>> {
        let first = Program::new(ruleset, family, owner, known, Ties::AsRead);
        let tied = first.tied();
        let mut all = vec![first];
        if tied {
            all.push(Program::new(ruleset, family, owner, known, Ties::Reversed));
        }
        all
    }

    fn tied(&self) -> bool {
        let says = |c: &&Chain| {
            let policy = c.hook.is_some_and(|h| h.policy_drop);
            policy || !c.rules.is_empty()
        };
        self.base.values().any(|list| {
            let mut seen = Set::default();
            list.iter()
                .map(|&c| self.chains[c].of)
                .filter(says)
                .filter_map(|c| Some(c.hook?.priority))
                .any(|priority| !seen.insert(priority))
        })
    }

    fn new(
        ruleset: &'p Ruleset,
        family: Family,
        owner: &'p dyn Owner,
        known: &'p Known,
        ties: Ties,
    ) -> Program<'p> {
        let mut p = Program {
            tables: Vec::new(),
            owner,
            known,
            chains: Vec::new(),
            first: Vec::new(),
            sets: Vec::new(),
            named: Vec::new(),
            base: Map::default(),
        };
        for table in ruleset.tables.iter().filter(|t| sees(t, family)) {
            let t = p.tables.len();
            p.tables.push(table);
            p.first.push(p.chains.len());
            for chain in &table.chains {
                if let (Some(hook), false) = (chain.hook, table.dormant) {
                    p.base.entry(hook.point).or_default().push(p.chains.len());
                }
                p.chains.push(Lazy {
                    table: t,
                    of: chain,
                    made: OnceCell::new(),
                });
            }
            let sets = p.sets.len()..;
            let names = table.sets.keys().map(|n| &**n);
            p.named.push(names.zip(sets).collect());
            p.sets.extend(table.sets.values().map(|set| Lazy {
                table: t,
                of: set,
                made: OnceCell::new(),
            }));
        }
        let chains = &p.chains;
        for list in p.base.values_mut() {
            if ties == Ties::Reversed {
                list.reverse();
            }
            list.sort_by_key(|&c| chains[c].of.hook.map_or(0, |h| h.priority));
        }
        p
    }

    /// How many chains there are.
    pub fn chains(&self) -> usize {
        self.chains.len()
    }

    /// How many sets there are.
    pub fn sets(&self) -> usize {
        self.sets.len()
    }

    /// A chain, with its rules sorted.
    pub fn chain(&self, chain: usize) -> &WalkChain<'p> {
        let lazy = &self.chains[chain];
        lazy.made.get_or_init(|| {
            let table = self.tables[lazy.table];
            let own = self.owner.owns(table, lazy.of);
            let ranges = own && self.owner.filters_sources(&lazy.of.name);
            let at = self.chain_at(chain);
            let chain = WalkChain::new(lazy.table, lazy.of, own, ranges, self.known, at);
            Box::new(chain)
        })
    }

    /// How a chain is named among all.
    pub fn chain_at(&self, chain: usize) -> At {
        let lazy = &self.chains[chain];
        At::of(self.tables[lazy.table], &lazy.of.name)
    }

    /// How a set is named among all.
    pub fn set_at(&self, set: usize) -> At {
        let lazy = &self.sets[set];
        At::of(self.tables[lazy.table], &lazy.of.name)
    }

    /// How a chain or set would be named that is not in the table of this chain.
    pub fn missing_at(&self, chain: usize, name: &str) -> At {
        At::of(self.tables[self.chains[chain].table], &name.into())
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
    pub fn set_named(&self, chain: usize, name: &str) -> Option<usize> {
        self.named[self.chains[chain].table].get(name).copied()
    }

    /// A set, with its elements by key.
    pub fn set(&self, set: usize) -> &WalkSet<'p> {
        let lazy = &self.sets[set];
        lazy.made.get_or_init(|| {
            let keys = self.known.keys(lazy.of, self.set_at(set));
            Box::new(WalkSet::new(lazy.of, keys))
        })
    }

    /// A rule of a chain, or its policy.
    pub fn place(&self, chain: usize, rule: Option<u32>) -> Place<'p> {
        let c = self.chain(chain);
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
pub(super) fn sees(table: &Table, family: Family) -> bool {
    match table.family {
        TableFamily::Inet => true,
        TableFamily::Ip => family == Family::V4,
        TableFamily::Ip6 => family == Family::V6,
        TableFamily::Other(_) => false,
    }
}
