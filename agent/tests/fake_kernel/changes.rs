//! What a transaction does: rules, chains, sets, elements and tables go, and come back from what was
//! recorded.

use super::content::{Chain, Content, Set, Table, element_list, with};
use super::{Event, Fake};
use std::sync::Arc;

/// `NFT_MSG_*` of linux/netfilter/nf_tables.h.
pub(super) mod told {
    pub const NEW_TABLE: u16 = 0;
    pub const GONE_TABLE: u16 = 2;
    pub const NEW_CHAIN: u16 = 3;
    pub const GONE_CHAIN: u16 = 5;
    pub const NEW_RULE: u16 = 6;
    pub const GONE_RULE: u16 = 8;
    pub const NEW_SET: u16 = 9;
    pub const GONE_SET: u16 = 11;
    pub const NEW_ELEMENTS: u16 = 12;
    pub const GONE_ELEMENTS: u16 = 14;
    pub const NEW_GENERATION: u16 = 15;
}

impl Fake {
    fn handle(&mut self) -> [u8; 8] {
        self.handles += 1;
        self.handles.to_be_bytes()
    }

    /// One command of a transaction.
    pub(super) fn change(&mut self, content: &mut Content, events: &mut Vec<Event>) {
        let known = self.recorded.tables.len();
        let recorded = self.recorded.tables[self.random.below(known)].clone();
        let at = content
            .tables
            .iter()
            .position(|t| t.family == recorded.family && t.name == recorded.name);
        let Some(at) = at else {
            // A table that comes again is another one.
            let mut table = (*recorded).clone();
            table.message = with(&table.message, 4, &self.handle());
            events.push((told::NEW_TABLE, table.message.to_vec()));
            for set in &mut table.sets {
                set.message = with(&set.message, 16, &self.handle());
                events.push((told::NEW_SET, set.message.to_vec()));
            }
            for chain in &mut table.chains {
                chain.message = with(&chain.message, 2, &self.handle());
                events.push((told::NEW_CHAIN, chain.message.to_vec()));
            }
            for rule in table.chains.iter_mut().flat_map(|c| &mut c.rules) {
                *rule = with(rule, 3, &self.handle());
                events.push((told::NEW_RULE, rule.to_vec()));
            }
            for set in table.sets.iter().filter(|s| !s.elements.is_empty()) {
                let list = element_list(&table, set, &set.elements);
                events.push((told::NEW_ELEMENTS, list));
            }
            content.tables.push(Arc::new(table));
            return;
        };
        if self.random.one_in(24) {
            let table = content.tables.remove(at);
            for chain in &table.chains {
                let rules = chain.rules.iter();
                events.extend(rules.map(|r| (told::GONE_RULE, r.to_vec())));
                events.push((told::GONE_CHAIN, chain.message.to_vec()));
            }
            let sets = table.sets.iter();
            events.extend(sets.map(|s| (told::GONE_SET, s.message.to_vec())));
            events.push((told::GONE_TABLE, table.message.to_vec()));
            return;
        }
        let table = Arc::make_mut(&mut content.tables[at]);
        match self.random.below(10) {
            0..3 => self.rule_goes(table, events),
            3..6 => self.rule_comes(&recorded, table, events),
            6 => self.chain_changes(&recorded, table, events),
            7 => self.set_changes(&recorded, table, events),
            _ => self.elements_change(&recorded, table, events),
        }
    }

    fn rule_goes(&mut self, table: &mut Table, events: &mut Vec<Event>) {
        let at = self.random.below(table.chains.len());
        let Some(chain) = table.chains.get_mut(at) else {
            return;
        };
        if !chain.rules.is_empty() {
            let gone = chain.rules.remove(self.random.below(chain.rules.len()));
            events.push((told::GONE_RULE, gone.to_vec()));
        }
    }

    fn rule_comes(&mut self, recorded: &Table, table: &mut Table, events: &mut Vec<Event>) {
        let at = self.random.below(recorded.chains.len());
        let Some(from) = recorded.chains.get(at) else {
            return;
        };
        let Some(rule) = from.rules.get(self.random.below(from.rules.len())) else {
            return;
        };
        if !has_all_it_uses(recorded, table, rule) {
            return;
        }
        let rule = with(rule, 3, &self.handle());
        let Some(chain) = table.chains.iter_mut().find(|c| c.name == from.name) else {
            return;
        };
        events.push((told::NEW_RULE, rule.to_vec()));
        let place = self.random.below(chain.rules.len() + 1);
        chain.rules.insert(place, rule);
    }

    /// A chain goes, with what leads to it; or comes; or both.
    fn chain_changes(&mut self, recorded: &Table, table: &mut Table, events: &mut Vec<Event>) {
        let at = self.random.below(recorded.chains.len());
        let Some(chain) = recorded.chains.get(at) else {
            return;
        };
        if let Some(place) = table.chains.iter().position(|c| c.name == chain.name) {
            drop_users(table, &chain.name, events);
            let gone = table.chains.remove(place);
            let rules = gone.rules.iter();
            events.extend(rules.map(|r| (told::GONE_RULE, r.to_vec())));
            events.push((told::GONE_CHAIN, gone.message.to_vec()));
            if self.random.one_in(2) {
                return;
            }
        }
        self.add_chain(table, chain.clone(), events);
    }

    fn add_chain(&mut self, table: &mut Table, mut chain: Chain, events: &mut Vec<Event>) {
        let recorded = self.recorded.clone();
        let all = recorded.table(table.family, &table.name);
        chain.message = with(&chain.message, 2, &self.handle());
        events.push((told::NEW_CHAIN, chain.message.to_vec()));
        let rules = std::mem::take(&mut chain.rules);
        table.chains.push(chain);
        for rule in rules {
            if all.is_some_and(|all| has_all_it_uses(all, table, &rule)) {
                let rule = with(&rule, 3, &self.handle());
                events.push((told::NEW_RULE, rule.to_vec()));
                table
                    .chains
                    .last_mut()
                    .expect("just added")
                    .rules
                    .push(rule);
            }
        }
    }

    fn set_changes(&mut self, recorded: &Table, table: &mut Table, events: &mut Vec<Event>) {
        let at = self.random.below(recorded.sets.len());
        let Some(set) = recorded.sets.get(at) else {
            return;
        };
        if let Some(place) = table.sets.iter().position(|s| s.name == set.name) {
            drop_users(table, &set.name, events);
            let gone = table.sets.remove(place);
            events.push((told::GONE_SET, gone.message.to_vec()));
            if self.random.one_in(2) {
                return;
            }
        }
        self.add_set(table, set.clone(), events);
    }

    fn add_set(&mut self, table: &mut Table, mut set: Set, events: &mut Vec<Event>) {
        let recorded = self.recorded.clone();
        let all = recorded.table(table.family, &table.name);
        set.message = with(&set.message, 16, &self.handle());
        events.push((told::NEW_SET, set.message.to_vec()));
        set.elements
            .retain(|e| all.is_some_and(|all| has_all_it_uses(all, table, e)));
        if !set.elements.is_empty() {
            let list = element_list(table, &set, &set.elements);
            events.push((told::NEW_ELEMENTS, list));
        }
        table.sets.push(set);
    }

    fn elements_change(&mut self, recorded: &Table, table: &mut Table, events: &mut Vec<Event>) {
        let at = self.random.below(recorded.sets.len());
        let Some(from) = recorded.sets.get(at) else {
            return;
        };
        let Some(place) = table.sets.iter().position(|s| s.name == from.name) else {
            return;
        };
        let some = 1 + self.random.below(3);
        for _ in 0..some {
            let element = from.elements.get(self.random.below(from.elements.len()));
            let Some(element) = element else { return };
            let there = table.sets[place].elements.iter().position(|e| e == element);
            let list = element_list(table, from, std::slice::from_ref(element));
            match there {
                Some(there) => {
                    table.sets[place].elements.remove(there);
                    events.push((told::GONE_ELEMENTS, list));
                }
                None if has_all_it_uses(recorded, table, element) => {
                    table.sets[place].elements.push(element.clone());
                    events.push((told::NEW_ELEMENTS, list));
                }
                None => {}
            }
        }
    }
}

/// Does a message name this chain or set?
fn names(message: &[u8], name: &[u8]) -> bool {
    let wanted = [name, &[0]].concat();
    message.windows(wanted.len()).any(|w| w == wanted)
}

/// Are the chains and sets there that a rule or an element names?
fn has_all_it_uses(recorded: &Table, table: &Table, message: &[u8]) -> bool {
    let chains = recorded.chains.iter().map(|c| &c.name);
    let missing = chains.filter(|name| !table.chains.iter().any(|c| c.name == **name));
    let sets = recorded.sets.iter().map(|s| &s.name);
    let unset = sets.filter(|name| !table.sets.iter().any(|s| s.name == **name));
    !missing.chain(unset).any(|name| names(message, name))
}

/// Deletes the rules and elements that name a chain or set.
fn drop_users(table: &mut Table, name: &[u8], events: &mut Vec<Event>) {
    for chain in table.chains.iter_mut().filter(|c| c.name != name) {
        chain.rules.retain(|rule| {
            let uses = names(rule, name);
            if uses {
                events.push((told::GONE_RULE, rule.to_vec()));
            }
            !uses
        });
    }
    let like = table.clone();
    for set in &mut table.sets {
        let (uses, rest): (Vec<_>, Vec<_>) = set.elements.drain(..).partition(|e| names(e, name));
        if !uses.is_empty() {
            events.push((told::GONE_ELEMENTS, element_list(&like, set, &uses)));
        }
        set.elements = rest;
    }
}
