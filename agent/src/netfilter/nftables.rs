//! nf_tables' messages into the one representation of rules.
//!
//! Decoding never fails: what is not understood becomes an unknown op, an unread set, or an entry
//! of [`Decoded::unknown`].

pub mod attributes;
pub mod capture;
mod compare;
mod expressions;
pub mod json;
pub mod mirror;
mod registers;
mod sets;
#[cfg(test)]
mod tests;
mod values;

use super::ruleset::{
    Backend, Chain, ChainType, Hook, HookPoint, Op, Rule, Ruleset, Table, TableFamily,
};
use attributes::{Attributes, be32, be64, c_string, table, text};
use capture::Capture;
use registers::Registers;
use sets::{Described, RawElement, Uses};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Elements by table and set, and whether some could not be read.
type RawSets = HashMap<(usize, Arc<str>), (Vec<RawElement>, bool)>;

/// A decoded capture.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decoded {
    /// The rules.
    pub ruleset: Ruleset,
    /// Everything in it that was not understood.
    pub unknown: Vec<Unknown>,
}

/// Something that was not understood, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unknown {
    /// The table's family.
    pub family: TableFamily,
    /// The table's name; empty if even that is not known.
    pub table: Arc<str>,
    /// The chain's or set's name; empty if even that is not known.
    pub name: Arc<str>,
    /// The rule's handle, 0 if it is about something else.
    pub handle: u64,
    /// What.
    pub what: Arc<str>,
}

impl Unknown {
    /// Is it something that a whole reading never has? What is missing in one would look deleted.
    pub fn is_torn(&self) -> bool {
        match &*self.what {
            "table not understood"
            | "chain not understood"
            | "set not understood"
            | "rule not understood"
            | "set without a name"
            | "a table twice"
            | "a chain twice" => true,
            // Of a set that is known they make the set unread, and no more.
            "elements not understood" => self.table.is_empty(),
            what => what.contains(" of no "),
        }
    }
}

/// Names, each kept once.
#[derive(Default)]
pub(crate) struct Names {
    known: HashSet<Arc<str>>,
}

impl Names {
    fn get(&mut self, bytes: &[u8]) -> Arc<str> {
        let name = text(bytes);
        if let Some(known) = self.known.get(name.as_ref()) {
            return known.clone();
        }
        let name: Arc<str> = name.into();
        self.known.insert(name.clone());
        name
    }
}

fn family(message: &[u8]) -> TableFamily {
    match message.first() {
        Some(1) => TableFamily::Inet,
        Some(2) => TableFamily::Ip,
        Some(10) => TableFamily::Ip6,
        Some(other) => TableFamily::Other(*other),
        None => TableFamily::Other(0),
    }
}

#[derive(Default)]
struct Decoder {
    names: Names,
    tables: Vec<Table>,
    by_name: HashMap<(TableFamily, Arc<str>), usize>,
    described: Vec<HashMap<Arc<str>, Described>>,
    uses: Vec<Uses>,
    unknown: Vec<Unknown>,
}

/// Decodes one reading. Never panics, whatever the bytes.
pub fn decode(capture: &Capture) -> Decoded {
    let mut decoder = Decoder::default();
    for message in capture.tables.iter() {
        decoder.table(message);
    }
    for message in capture.chains.iter() {
        decoder.chain(message);
    }
    for message in capture.sets.iter() {
        decoder.describe(message);
    }
    let mut registers = Registers::default();
    for message in capture.rules.iter() {
        decoder.rule(message, &mut registers);
    }
    decoder.elements(capture);
    Decoded {
        ruleset: Ruleset {
            tables: decoder.tables,
            generation: capture.generation,
            last_writer: capture.last_writer.as_deref().map(Arc::from),
        },
        unknown: decoder.unknown,
    }
}

/// The attributes of a message; the numbers of those above 15 are not needed, except a set's handle.
fn attributes_of(message: &[u8]) -> Option<[&[u8]; 16]> {
    table(message.get(4..)?)
}

impl Decoder {
    fn note(
        &mut self,
        family: TableFamily,
        table: &Arc<str>,
        name: &Arc<str>,
        handle: u64,
        what: &str,
    ) {
        self.unknown.push(Unknown {
            family,
            table: table.clone(),
            name: name.clone(),
            handle,
            what: what.into(),
        });
    }

    fn nowhere(&mut self, message: &[u8], what: &str) {
        let none: Arc<str> = "".into();
        self.note(family(message), &none, &none, 0, what);
    }

    fn table(&mut self, message: &[u8]) {
        let Some(a) = attributes_of(message) else {
            return self.nowhere(message, "table not understood");
        };
        let family = family(message);
        let name = self.names.get(a[1]);
        if self.by_name.contains_key(&(family, name.clone())) {
            return self.note(family, &name, &name, 0, "a table twice");
        }
        self.by_name
            .insert((family, name.clone()), self.tables.len());
        self.described.push(HashMap::new());
        self.uses.push(Uses::default());
        self.tables.push(Table {
            family,
            name,
            backend: Backend::NfTables,
            dormant: be32(a[2]).unwrap_or(0) & 1 != 0,
            chains: Vec::new(),
            chain_index: HashMap::new(),
            sets: HashMap::new(),
        });
    }

    /// The table that a message's first attribute names.
    fn owner(&mut self, message: &[u8], name: &[u8], what: &str) -> Option<usize> {
        let name = self.names.get(name);
        let found = self.by_name.get(&(family(message), name.clone())).copied();
        if found.is_none() {
            self.note(family(message), &name, &"".into(), 0, what);
        }
        found
    }

    fn chain(&mut self, message: &[u8]) {
        let Some(a) = attributes_of(message) else {
            return self.nowhere(message, "chain not understood");
        };
        let Some(owner) = self.owner(message, a[1], "chain of no table") else {
            return;
        };
        let name = self.names.get(a[3]);
        let hook = if a[4].is_empty() {
            None
        } else {
            let hook = base(&a);
            if hook.is_none() && !matches!(family(message), TableFamily::Other(_)) {
                let table = self.tables[owner].name.clone();
                self.note(family(message), &table, &name, 0, "hook not understood");
            }
            hook
        };
        let table = &mut self.tables[owner];
        if table.chain_index.contains_key(&name) {
            let table = table.name.clone();
            return self.note(family(message), &table, &name, 0, "a chain twice");
        }
        table.chain_index.insert(name.clone(), table.chains.len());
        table.chains.push(Chain {
            name,
            handle: be64(a[2]).unwrap_or(0),
            hook,
            rules: Vec::new(),
        });
    }

    fn describe(&mut self, message: &[u8]) {
        let Some(a) = attributes_of(message) else {
            return self.nowhere(message, "set not understood");
        };
        let Some(owner) = self.owner(message, a[1], "set of no table") else {
            return;
        };
        // NFTA_SET_HANDLE 16
        let handle = Attributes::new(message.get(4..).unwrap_or_default())
            .find(|(kind, _)| *kind == 16)
            .and_then(|(_, value)| be64(value));
        match Described::read(&a, handle, &mut self.names) {
            Some(set) => {
                self.described[owner].insert(set.name.clone(), set);
            }
            None => self.nowhere(message, "set without a name"),
        }
    }

    fn rule(&mut self, message: &[u8], registers: &mut Registers) {
        let Some(a) = attributes_of(message) else {
            return self.broken_rule(message);
        };
        let Some(owner) = self.owner(message, a[1], "rule of no table") else {
            return;
        };
        let chain_name = self.names.get(a[2]);
        let handle = be64(a[3]).unwrap_or(0);
        let Some(&chain) = self.tables[owner].chain_index.get(&chain_name) else {
            let table = self.tables[owner].name.clone();
            return self.note(
                family(message),
                &table,
                &chain_name,
                handle,
                "rule of no chain",
            );
        };
        registers.clear();
        let mut reader = expressions::RuleReader {
            family: family(message),
            sets: &self.described[owner],
            uses: &mut self.uses[owner],
            names: &mut self.names,
            ops: std::mem::take(&mut registers.ops),
            registers,
            comment: None,
            version: None,
        };
        reader.expressions(a[4]);
        let (mut ops, xt_comment) = (reader.ops, reader.comment);
        let comment = sets::comment(a[7]).or(xt_comment);
        let table = self.tables[owner].name.clone();
        for op in &ops {
            let what = match op {
                Op::UnknownMatch(what) | Op::UnknownStatement(what) => what.clone(),
                Op::Dnat(super::ruleset::NatTarget::Unknown(what))
                | Op::Snat(super::ruleset::NatTarget::Unknown(what)) => what.clone(),
                _ => continue,
            };
            self.unknown.push(Unknown {
                family: family(message),
                table: table.clone(),
                name: chain_name.clone(),
                handle,
                what,
            });
        }
        let rule = Rule::of(handle, &mut ops, comment);
        registers.ops = ops;
        self.tables[owner].chains[chain].rules.push(rule);
    }

    /// A rule whose message is damaged: where it belongs is kept if that can still be read.
    fn broken_rule(&mut self, message: &[u8]) {
        self.nowhere(message, "rule not understood");
        let find = |wanted: u16| {
            Attributes::new(message.get(4..).unwrap_or_default())
                .find(|(kind, _)| *kind == wanted)
                .map_or(&[][..], |(_, value)| value)
        };
        let key = (family(message), self.names.get(find(1)));
        let chain = self.names.get(c_string(find(2)));
        let Some(&owner) = self.by_name.get(&key) else {
            return;
        };
        let table = &mut self.tables[owner];
        if let Some(&at) = table.chain_index.get(&chain) {
            table.chains[at].rules.push(Rule {
                handle: be64(find(3)).unwrap_or(0),
                ops: [Op::UnknownStatement("rule not understood".into())].into(),
                comment: None,
            });
        }
    }

    fn elements(&mut self, capture: &Capture) {
        let mut raw = RawSets::new();
        for message in capture.elements.iter() {
            self.collect(message, &mut raw);
        }
        for owner in 0..self.tables.len() {
            let names: Vec<Arc<str>> = self.described[owner].keys().cloned().collect();
            for name in names {
                let found = raw.remove(&(owner, name.clone()));
                self.finish(owner, &name, found);
            }
        }
    }

    /// Elements of one message, as they came.
    fn collect(&mut self, message: &[u8], raw: &mut RawSets) {
        let Some(a) = attributes_of(message) else {
            return self.damaged_elements(message, raw);
        };
        let Some(owner) = self.owner(message, a[1], "elements of no table") else {
            return;
        };
        let name = self.names.get(a[2]);
        let Some(set) = self.described[owner].get(&name) else {
            let table = self.tables[owner].name.clone();
            return self.note(family(message), &table, &name, 0, "elements of no set");
        };
        let entry = raw.entry((owner, name)).or_insert((Vec::new(), true));
        entry.1 &= sets::read_elements(set, a[3], &mut self.names, &mut entry.0);
    }

    /// The set with its elements, as the rules that use it say what they are.
    fn finish(&mut self, owner: usize, name: &Arc<str>, found: Option<(Vec<RawElement>, bool)>) {
        let table = self.tables[owner].name.clone();
        let family = self.tables[owner].family;
        let Some(described) = self.described[owner].get(name) else {
            return;
        };
        let (mut set, types) = described.set(self.uses[owner].get(name));
        let (elements, whole) = found.unwrap_or((Vec::new(), true));
        if !whole {
            set.unread = Some("elements not understood".into());
        }
        if matches!(family, TableFamily::Other(_)) {
            set.unread = Some("family not read".into());
        } else if let Some(types) = types {
            let problem;
            (set.elements, problem) = sets::elements(described, &types, elements);
            if let Some(problem) = problem {
                set.unread = Some(problem.into());
            }
        }
        if let Some(what) = &set.unread
            && !set.dynamic
            && !matches!(family, TableFamily::Other(_))
        {
            let what = what.clone();
            self.note(family, &table, name, 0, &what);
        }
        self.tables[owner].sets.insert(name.clone(), set);
    }

    fn damaged_elements(&mut self, message: &[u8], raw: &mut RawSets) {
        self.nowhere(message, "elements not understood");
        let find = |wanted: u16| {
            Attributes::new(message.get(4..).unwrap_or_default())
                .find(|(kind, _)| *kind == wanted)
                .map_or(&[][..], |(_, value)| value)
        };
        let key = (family(message), self.names.get(find(1)));
        let name = self.names.get(find(2));
        if let Some(&owner) = self.by_name.get(&key) {
            raw.entry((owner, name)).or_insert((Vec::new(), true)).1 = false;
        }
    }
}

/// `NFTA_CHAIN_HOOK`, `_TYPE`, `_POLICY`.
fn base(a: &[&[u8]; 16]) -> Option<Hook> {
    let hook = table(a[4])?;
    let point = match be32(hook[1])? {
        0 => HookPoint::Prerouting,
        1 => HookPoint::Input,
        2 => HookPoint::Forward,
        3 => HookPoint::Output,
        4 => HookPoint::Postrouting,
        5 => HookPoint::Ingress,
        _ => return None,
    };
    let kind = match c_string(a[7]) {
        b"filter" => ChainType::Filter,
        b"nat" => ChainType::Nat,
        b"route" => ChainType::Route,
        _ => return None,
    };
    Some(Hook {
        point,
        priority: be32(hook[2])?.cast_signed(),
        kind,
        policy_drop: be32(a[5]) == Some(0),
    })
}
