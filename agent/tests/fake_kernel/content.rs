//! What nf_tables holds: recorded messages, object by object.

use agent::host::netlink::Question;
use agent::netfilter::nftables::attributes::{Attributes, c_string};
use agent::netfilter::nftables::capture::Capture;
use std::collections::BTreeMap;
use std::sync::Arc;

pub(super) type Message = Arc<[u8]>;
/// How many rules of a chain are not shown: by family, table and chain.
pub(super) type Hidden = BTreeMap<(u8, Vec<u8>, Vec<u8>), usize>;

#[derive(Clone)]
pub(super) struct Chain {
    pub(super) name: Vec<u8>,
    pub(super) message: Message,
    pub(super) rules: Vec<Message>,
}

#[derive(Clone)]
pub(super) struct Set {
    pub(super) name: Vec<u8>,
    pub(super) message: Message,
    /// One `NFTA_LIST_ELEM` each, header and all.
    pub(super) elements: Vec<Message>,
}

#[derive(Clone)]
pub(super) struct Table {
    pub(super) family: u8,
    pub(super) name: Vec<u8>,
    pub(super) message: Message,
    pub(super) chains: Vec<Chain>,
    pub(super) sets: Vec<Set>,
}

/// Everything that nf_tables holds.
#[derive(Clone, Default)]
pub struct Content {
    pub(super) tables: Vec<Arc<Table>>,
}

/// Family, table and chain of a rule.
pub(super) fn chain_of(rule: &[u8]) -> (u8, Vec<u8>, Vec<u8>) {
    (rule[0], named(rule, 1), named(rule, 2))
}

/// The first attribute of a kind.
fn find(message: &[u8], wanted: u16) -> &[u8] {
    Attributes::new(message.get(4..).unwrap_or_default())
        .find(|(kind, _)| *kind == wanted)
        .map_or(&[], |(_, value)| value)
}

fn named(message: &[u8], wanted: u16) -> Vec<u8> {
    c_string(find(message, wanted)).to_vec()
}

pub(super) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut out = (4 + value.len() as u16).to_ne_bytes().to_vec();
    out.extend(kind.to_ne_bytes());
    out.extend(value);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

/// The message with another value of the same length in an outermost attribute, if it has it.
pub(super) fn with(message: &[u8], wanted: u16, value: &[u8]) -> Message {
    let mut out = message.to_vec();
    let mut at = 4;
    while let Some(head) = out.get(at..).and_then(|m| m.first_chunk::<4>()) {
        let size = usize::from(u16::from_ne_bytes([head[0], head[1]])).max(4);
        let kind = u16::from_ne_bytes([head[2], head[3]]) & 0x3fff;
        if kind == wanted && size == 4 + value.len() {
            out[at + 4..at + size].copy_from_slice(value);
        }
        at += size.next_multiple_of(4);
    }
    out.into()
}

impl Content {
    /// From a recording.
    pub fn of(capture: &Capture) -> Content {
        let mut tables: Vec<Table> = capture
            .tables
            .iter()
            .map(|message| Table {
                family: message[0],
                name: named(message, 1),
                message: message.into(),
                chains: Vec::new(),
                sets: Vec::new(),
            })
            .collect();
        let owner = |tables: &[Table], message: &[u8]| {
            let name = named(message, 1);
            let found = tables
                .iter()
                .position(|t| t.family == message[0] && t.name == name);
            found.expect("a whole recording")
        };
        for message in capture.chains.iter() {
            let at = owner(&tables, message);
            tables[at].chains.push(Chain {
                name: named(message, 3),
                message: message.into(),
                rules: Vec::new(),
            });
        }
        for message in capture.rules.iter() {
            let at = owner(&tables, message);
            let name = named(message, 2);
            let mut chains = tables[at].chains.iter_mut();
            let chain = chains.find(|c| c.name == name).expect("a whole recording");
            chain.rules.push(message.into());
        }
        for message in capture.sets.iter() {
            let at = owner(&tables, message);
            tables[at].sets.push(Set {
                name: named(message, 2),
                message: message.into(),
                elements: Vec::new(),
            });
        }
        for message in capture.elements.iter() {
            let at = owner(&tables, message);
            let name = named(message, 2);
            let mut sets = tables[at].sets.iter_mut();
            let set = sets.find(|s| s.name == name).expect("a whole recording");
            let all = Attributes::new(find(message, 3));
            set.elements
                .extend(all.map(|(kind, value)| Message::from(attribute(kind | 0x8000, value))));
        }
        Content {
            tables: tables.into_iter().map(Arc::new).collect(),
        }
    }

    /// As a reading of it would be recorded.
    #[allow(dead_code, reason = "each test file uses a part")]
    pub fn capture(&self, generation: u32) -> Capture {
        let mut capture = Capture {
            generation: Some(generation),
            ..Capture::default()
        };
        for table in &self.tables {
            capture.tables.push(&table.message);
            for chain in &table.chains {
                capture.chains.push(&chain.message);
                chain.rules.iter().for_each(|r| capture.rules.push(r));
            }
            for set in &table.sets {
                capture.sets.push(&set.message);
                for elements in set.elements.chunks(7) {
                    capture.elements.push(&element_list(table, set, elements));
                }
            }
        }
        capture
    }

    pub(super) fn table(&self, family: u8, name: &[u8]) -> Option<&Table> {
        let mut all = self.tables.iter();
        all.find(|t| t.family == family && t.name == name)
            .map(|t| &**t)
    }

    /// What a dump gives at a position; nothing for a rule that is not shown, but has its place
    /// (`__nf_tables_dump_rules`).
    pub(super) fn dumped(
        &self,
        question: &Question<'_>,
        from: usize,
        hidden: &Hidden,
    ) -> Option<Option<Message>> {
        if let Question::Rules {
            family,
            table,
            chain,
        } = *question
        {
            let found = self.table(family, table)?;
            let wanted = found
                .chains
                .iter()
                .filter(|c| chain.is_none_or(|name| c.name == name));
            let mut all = wanted.flat_map(|c| {
                let key = (family, table.to_vec(), c.name.clone());
                let unseen = hidden.get(&key).copied().unwrap_or(0);
                std::iter::repeat_n(None, unseen).chain(c.rules.iter().cloned().map(Some))
            });
            return all.nth(from);
        }
        self.shown(question, from).map(Some)
    }

    fn shown(&self, question: &Question<'_>, from: usize) -> Option<Message> {
        let tables = self.tables.iter();
        match *question {
            Question::Tables => tables.map(|t| &t.message).nth(from).cloned(),
            Question::Chains => {
                let mut all = tables.flat_map(|t| &t.chains).map(|c| &c.message);
                all.nth(from).cloned()
            }
            Question::Sets => {
                let mut all = tables.flat_map(|t| &t.sets).map(|s| &s.message);
                all.nth(from).cloned()
            }
            Question::Elements { family, table, set } => {
                let table = self.table(family, table)?;
                let set = table.sets.iter().find(|s| s.name == set)?;
                // One message for each, so that anything may happen between any two.
                let one = set.elements.get(from..from + 1)?;
                Some(element_list(table, set, one).into())
            }
            _ => None,
        }
    }
}

pub(super) fn element_list(table: &Table, set: &Set, elements: &[Message]) -> Vec<u8> {
    let mut out = vec![table.family, 0, 0, 0];
    let name = |name: &[u8]| [name, &[0]].concat();
    out.extend(attribute(1, &name(&table.name)));
    out.extend(attribute(2, &name(&set.name)));
    out.extend(attribute(3 | 0x8000, &elements.concat()));
    out
}
