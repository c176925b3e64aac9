//! nf_tables as it was read last, kept so that only what changed is read and decoded again.
//!
//! Each object (the list of tables, a chain, its rules, a set, its elements) is replaced as a whole
//! by what was read anew. What the result is worth is the reader's business: see `kernel::steady`.

use super::attributes::{Attributes, be32, be64, c_string};
use super::{Decoder, RawSets, Unknown, attributes_of, family};
use crate::netfilter::changes::Changes;
use crate::netfilter::nftables::registers::Registers;
use crate::netfilter::ruleset::{Chain, Ruleset, Table, TableFamily};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Names a chain or a set: `nfgen_family`, table, name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// `nfgen_family`.
    pub family: u8,
    /// Table's name.
    pub table: Vec<u8>,
    /// Chain's or set's name.
    pub name: Vec<u8>,
}

/// What tells a table from another of the same name that came later.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Identity {
    handle: Option<u64>,
    owner: Option<u32>,
}

/// The rules of nf_tables, object by object.
#[derive(Default)]
pub struct Mirror {
    decoder: Decoder,
    identities: Vec<Identity>,
    lent: bool,
    /// What was replaced since it was lent last; `None`: it was not lent yet.
    changes: Option<Changes>,
}

impl Mirror {
    /// The list of tables, whole. Tables that are not in it are forgotten; of one that was made anew
    /// under its old name, so is the content.
    pub fn tables<'a>(&mut self, list: impl Iterator<Item = &'a [u8]>) -> bool {
        let changed = self.take_tables(list);
        if changed {
            self.changes = None;
        }
        changed
    }

    fn take_tables<'a>(&mut self, list: impl Iterator<Item = &'a [u8]>) -> bool {
        let mut changed = false;
        // Which it is, and its message, by `nfgen_family` and name.
        type Named<'m> = BTreeMap<(u8, Vec<u8>), (Identity, &'m [u8])>;
        let mut named = Named::new();
        for message in list {
            let (mut name, mut identity) = (Vec::new(), Identity::default());
            for (kind, value) in Attributes::new(message.get(4..).unwrap_or_default()) {
                match kind {
                    // NFTA_TABLE_NAME, _HANDLE, _OWNER
                    1 => name = c_string(value).to_vec(),
                    4 => identity.handle = be64(value),
                    7 => identity.owner = be32(value),
                    _ => {}
                }
            }
            let family = message.first().copied().unwrap_or(0);
            named.insert((family, name), (identity, message));
        }
        for at in (0..self.decoder.tables.len()).rev() {
            let table = &self.decoder.tables[at];
            let key = (number(table.family), table.name.as_bytes().to_vec());
            if named
                .get(&key)
                .is_none_or(|(now, _)| *now != self.identities[at])
            {
                self.forget(at);
                changed = true;
            }
        }
        for (identity, message) in named.into_values() {
            let dormant = Attributes::new(message.get(4..).unwrap_or_default())
                .find(|(kind, _)| *kind == 2)
                .and_then(|(_, value)| be32(value))
                .unwrap_or(0)
                & 1
                != 0;
            if let Some(at) = self.find(message, 1) {
                if attributes_of(message).is_none() {
                    self.decoder.nowhere(message, "table not understood");
                }
                changed |= self.decoder.tables[at].dormant != dormant;
                self.decoder.tables[at].dormant = dormant;
                continue;
            }
            let before = self.decoder.tables.len();
            self.decoder.table(message);
            if self.decoder.tables.len() > before {
                self.identities.push(identity);
                changed = true;
                // What came before the table is told of by events that it shares with the table.
                let (family, name) = (
                    self.decoder.tables[before].family,
                    &self.decoder.tables[before].name,
                );
                self.decoder.unknown.retain(|u| {
                    (u.family, &u.table) != (family, name) || !u.what.ends_with(" of no table")
                });
            }
        }
        changed
    }

    fn forget(&mut self, at: usize) {
        let gone = self.decoder.tables.remove(at);
        self.decoder
            .unknown
            .retain(|u| (u.family, &u.table) != (gone.family, &gone.name));
        self.decoder.described.remove(at);
        self.decoder.uses.remove(at);
        self.identities.remove(at);
        let tables = self.decoder.tables.iter().enumerate();
        self.decoder.by_name = tables
            .map(|(i, t)| ((t.family, t.name.clone()), i))
            .collect();
    }

    /// The table that an attribute of a message names.
    fn find(&mut self, message: &[u8], attribute: u16) -> Option<usize> {
        let name = Attributes::new(message.get(4..).unwrap_or_default())
            .find(|(kind, _)| *kind == attribute)
            .map_or(&[][..], |(_, value)| value);
        let key = (family(message), self.decoder.names.get(name));
        self.decoder.by_name.get(&key).copied()
    }

    fn owner(&mut self, place: &Place) -> Option<usize> {
        let family = family(&[place.family]);
        let key = (family, self.decoder.names.get(&place.table));
        self.decoder.by_name.get(&key).copied()
    }

    /// `NFT_MSG_NEWCHAIN`, read anew: its rules stay as they were.
    pub fn chain(&mut self, message: &[u8]) {
        let Some(a) = attributes_of(message) else {
            return self.decoder.chain(message);
        };
        let owner = self.find(message, 1);
        let name = self.decoder.names.get(a[3]);
        let handle = be64(a[2]).unwrap_or(0);
        let Some(owner) = owner else {
            return self.decoder.chain(message);
        };
        let table = &mut self.decoder.tables[owner];
        let mut old = table
            .chain_index
            .get(&name)
            .copied()
            .map(|at| remove_chain(table, at));
        let rules = match &mut old {
            // Another chain of the same name has none of its rules.
            Some(old) if old.handle == handle => Some(std::mem::take(&mut old.rules)),
            _ => None,
        };
        self.decoder.chain(message);
        let table = &mut self.decoder.tables[owner];
        let new = table
            .chain_index
            .get(&name)
            .map(|&at| &mut table.chains[at]);
        let hook = new.as_ref().and_then(|c| c.hook);
        let moved = old.as_ref().map(|c| c.hook) != new.as_ref().map(|c| c.hook)
            && (hook.is_some() || old.as_ref().is_some_and(|c| c.hook.is_some()));
        match (rules, new) {
            // The same chain: its rules are told of by themselves.
            (Some(rules), Some(new)) => new.rules = rules,
            (Some(_), None) => self.changes = None,
            (None, _) => note(&mut self.changes, table, old, &name),
        }
        if moved {
            self.changes = None;
        }
    }

    /// What was noted about an object when it was read earlier says nothing of it as it is read now.
    fn forget_notes_of(&mut self, place: &Place, about: fn(&Unknown) -> bool) {
        // Notes about messages of which not even the table could be read belong to no object.
        if place.table.is_empty() {
            return;
        }
        let family = family(&[place.family]);
        let (table, name) = (
            self.decoder.names.get(&place.table),
            self.decoder.names.get(&place.name),
        );
        self.decoder
            .unknown
            .retain(|u| (u.family, &u.table, &u.name) != (family, &table, &name) || !about(u));
    }

    /// A chain that is gone.
    pub fn without_chain(&mut self, place: &Place) {
        self.forget_notes_of(place, is_of_rules);
        let name = self.decoder.names.get(&place.name);
        if let Some(owner) = self.owner(place) {
            let table = &mut self.decoder.tables[owner];
            if let Some(&at) = table.chain_index.get(&name) {
                let gone = remove_chain(table, at);
                if gone.hook.is_some() {
                    self.changes = None;
                }
                note(&mut self.changes, table, Some(gone), &name);
            }
        }
    }

    /// Is one of these chains (`NFT_MSG_NEWCHAIN`, not taken in yet) known under another name? One
    /// that is renamed keeps its handle, and every rule and element that leads to it gives its new
    /// name from now on, whenever it was written.
    pub fn renames<'a>(&self, chains: impl Iterator<Item = &'a [u8]>) -> bool {
        // New names by handle, by table.
        type Named<'m> = HashMap<(TableFamily, &'m [u8]), HashMap<u64, &'m [u8]>>;
        let mut named = Named::new();
        for message in chains {
            if let Some(a) = attributes_of(message) {
                named
                    .entry((family(message), c_string(a[1])))
                    .or_default()
                    .insert(be64(a[2]).unwrap_or(0), c_string(a[3]));
            }
        }
        self.decoder.tables.iter().any(|table| {
            let named = named.get(&(table.family, table.name.as_bytes()));
            named.is_some_and(|named| {
                table.chains.iter().any(|c| {
                    named
                        .get(&c.handle)
                        .is_some_and(|name| *name != c.name.as_bytes())
                })
            })
        })
    }

    /// `NFT_MSG_NEWSET`, read anew. True when its elements, as far as they are known, are those of
    /// another set.
    pub fn set(&mut self, message: &[u8]) -> bool {
        let owner = self.find(message, 1);
        let name = attributes_of(message).map(|a| self.decoder.names.get(c_string(a[2])));
        let (Some(owner), Some(name)) = (owner, name) else {
            self.decoder.describe(message);
            return false;
        };
        let before = self.decoder.described[owner].remove(&name);
        self.decoder.describe(message);
        let now = self.decoder.described[owner].get(&name);
        let same = match (&before, now) {
            (Some(before), Some(now)) => before.is_same_for_rules(now),
            _ => false,
        };
        if !same {
            self.forget_set(owner, &name);
        }
        !same
    }

    /// A set that is gone.
    pub fn without_set(&mut self, place: &Place) {
        self.forget_notes_of(place, is_of_elements);
        let name = self.decoder.names.get(&place.name);
        if let Some(owner) = self.owner(place) {
            self.decoder.described[owner].remove(&name);
            self.forget_set(owner, &name);
        }
    }

    fn forget_set(&mut self, owner: usize, name: &Arc<str>) {
        self.decoder.uses[owner].forget(name);
        self.replace_set(owner, name);
    }

    /// The set makes room for what is read anew.
    fn replace_set(&mut self, owner: usize, name: &Arc<str>) {
        let table = &mut self.decoder.tables[owner];
        let was = table.sets.remove(name);
        if let Some(changes) = &mut self.changes {
            changes.set(table, was, name);
        }
    }

    /// All rules of a chain, each a `NFT_MSG_NEWRULE`.
    ///
    /// A set whose key is now known by its use and was not before has to be read again: those are
    /// told to `learnt`.
    pub fn rules<'a>(
        &mut self,
        place: &Place,
        messages: impl Iterator<Item = &'a [u8]>,
        learnt: &mut Vec<Place>,
    ) {
        self.forget_notes_of(place, is_of_rules);
        let Some(owner) = self.owner(place) else {
            return;
        };
        let name = self.decoder.names.get(&place.name);
        let table = &mut self.decoder.tables[owner];
        if let Some(&at) = table.chain_index.get(&name) {
            let was = Chain {
                rules: std::mem::take(&mut table.chains[at].rules),
                ..table.chains[at].clone()
            };
            note(&mut self.changes, table, Some(was), &name);
        }
        self.decoder.uses[owner].fresh.clear();
        let mut registers = Registers::default();
        for message in messages {
            self.decoder.rule(message, &mut registers);
        }
        let fresh = std::mem::take(&mut self.decoder.uses[owner].fresh);
        learnt.extend(fresh.iter().map(|set| Place {
            family: place.family,
            table: place.table.clone(),
            name: set.as_bytes().to_vec(),
        }));
    }

    /// One `NFT_MSG_NEWRULE` of a table that is read whole, behind the rules that its chain has.
    pub fn rule(&mut self, message: &[u8], registers: &mut RuleState) {
        self.decoder.rule(message, &mut registers.0);
    }

    /// Are a set's elements configuration, as far as its description was read?
    pub fn has_elements(&mut self, place: &Place) -> bool {
        let name = self.decoder.names.get(&place.name);
        self.owner(place)
            .and_then(|owner| self.decoder.described[owner].get(&name))
            .is_some_and(|set| !set.dynamic())
    }

    /// All elements of a set.
    pub fn elements<'a>(&mut self, place: &Place, messages: impl Iterator<Item = &'a [u8]>) {
        self.forget_notes_of(place, is_of_elements);
        let Some(owner) = self.owner(place) else {
            return;
        };
        let name = self.decoder.names.get(&place.name);
        let mut raw = RawSets::new();
        for message in messages {
            self.decoder.collect(message, &mut raw);
        }
        let found = raw.remove(&(owner, name.clone()));
        self.replace_set(owner, &name);
        self.decoder.finish(owner, &name, found);
    }

    /// What was not understood is found in the rules themselves; notes about it must not pile up.
    pub fn forget_notes(&mut self) {
        self.decoder.unknown.clear();
    }

    /// Did something that was read since the notes were forgotten not fit together?
    pub fn is_torn(&self) -> bool {
        self.decoder.unknown.iter().any(|u| u.is_torn())
    }

    /// Lends the tables, and says what was replaced since they were lent last.
    pub fn lend(&mut self) -> (Ruleset, Changes) {
        self.lent = true;
        let changes = self.changes.replace(Changes::default());
        let ruleset = Ruleset {
            tables: std::mem::take(&mut self.decoder.tables),
            ..Ruleset::default()
        };
        (ruleset, changes.unwrap_or_else(Changes::all))
    }

    /// Takes back what [`Mirror::lend`] gave.
    pub fn take_back(&mut self, ruleset: Ruleset) {
        self.decoder.tables = ruleset.tables;
        self.lent = false;
    }

    /// The tables are elsewhere: nothing can be read into them.
    pub fn is_lent(&self) -> bool {
        self.lent
    }
}

/// What is carried from expression to expression while rules are decoded.
#[derive(Default)]
pub struct RuleState(Registers);

/// Is it noted about a rule? Those of a chain are read together.
fn is_of_rules(note: &Unknown) -> bool {
    note.handle != 0 || &*note.what == "rule of no chain"
}

/// Is it noted about the elements of a set?
fn is_of_elements(note: &Unknown) -> bool {
    !is_of_rules(note) && &*note.what != "hook not understood"
}

/// A chain was replaced, or taken away.
fn note(changes: &mut Option<Changes>, table: &Table, was: Option<Chain>, name: &Arc<str>) {
    if let Some(changes) = changes {
        changes.chain(table, was, name);
    }
}

fn remove_chain(table: &mut Table, at: usize) -> Chain {
    let gone = table.chains.swap_remove(at);
    table.chain_index.remove(&gone.name);
    if let Some(moved) = table.chains.get(at) {
        table.chain_index.insert(moved.name.clone(), at);
    }
    gone
}

/// `NFPROTO_*`.
fn number(family: TableFamily) -> u8 {
    match family {
        TableFamily::Inet => 1,
        TableFamily::Ip => 2,
        TableFamily::Ip6 => 10,
        TableFamily::Other(n) => n,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `NFTA_TABLE_NAME`, `_HANDLE`, `_FLAGS`: the list is read in every reading, and a table that
    /// is known already may be damaged in it behind what tells which table it is.
    #[test]
    fn a_known_table_that_is_damaged_is_torn() {
        let table = [
            &[2, 0, 0, 0][..],
            &[6, 0, 1, 0, b't', 0, 0, 0],
            &[12, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 1],
            &[8, 0, 2, 0, 0, 0, 0, 1],
        ]
        .concat();
        let mut mirror = Mirror::default();
        assert!(mirror.tables([&table[..]].into_iter()));
        assert!(mirror.decoder.tables[0].dormant && !mirror.is_torn());
        assert!(!mirror.tables([&table[..]].into_iter()));
        assert!(!mirror.is_torn());
        mirror.tables([&table[..table.len() - 3]].into_iter());
        assert!(mirror.is_torn());
    }
}
