//! What must be read again, as the kernel's events tell it.

use crate::netfilter::nftables::attributes::{Attributes, be32, c_string};
use crate::netfilter::nftables::mirror::Place;
use std::collections::BTreeMap;

/// With more objects than this to read again, reading everything is cheaper than one question each.
const MANY: usize = 10_000;

/// Which part of an object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Parts {
    /// What it is: hook, policy, type, flags; or whether it is there at all.
    pub definition: bool,
    /// A chain's rules, a set's elements.
    pub content: bool,
}

/// Everything that must be read again.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Marks {
    /// Everything.
    pub all: bool,
    /// The list of tables.
    pub tables: bool,
    pub chains: BTreeMap<Place, Parts>,
    pub sets: BTreeMap<Place, Parts>,
    /// The last generation whose events were heard. `None`: none yet, or some were lost.
    pub heard: Option<u32>,
    /// Some were lost: a transaction that has its number may still be under way.
    pub lost: bool,
}

impl Marks {
    /// Nothing has to be read again.
    pub fn is_clean(&self) -> bool {
        !self.all && !self.tables && self.chains.is_empty() && self.sets.is_empty()
    }

    /// Forgets what is to be read, not what was heard.
    pub fn clear(&mut self) {
        *self = Marks {
            heard: self.heard,
            lost: self.lost,
            ..Marks::default()
        };
    }

    /// Everything has to be read again.
    pub fn everything(&mut self) {
        self.clear();
        self.all = true;
    }

    /// Events were lost.
    pub fn lost(&mut self) {
        self.heard = None;
        self.lost = true;
        self.everything();
    }

    /// Have all events up to this generation been heard?
    pub fn has_heard(&self, generation: u32) -> bool {
        // The number wraps around.
        self.heard
            .is_some_and(|heard| heard.wrapping_sub(generation).cast_signed() >= 0)
    }

    /// Takes note of one event: the type of a netlink message, and the message.
    pub fn note(&mut self, kind: u16, message: &[u8]) {
        // NFNL_SUBSYS_NFTABLES = 10; below it `NFT_MSG_*` (linux/netfilter/nf_tables.h)
        if kind >> 8 != 10 {
            return;
        }
        let kind = kind & 0xff;
        let find = |wanted: u16| {
            Attributes::new(message.get(4..).unwrap_or_default())
                .find(|(kind, _)| *kind == wanted)
                .map_or(&[][..], |(_, value)| value)
        };
        let place = |name: u16| Place {
            family: message.first().copied().unwrap_or(0),
            table: c_string(find(1)).to_vec(),
            name: c_string(find(name)).to_vec(),
        };
        let definition = Parts {
            definition: true,
            content: true,
        };
        let content = Parts {
            definition: false,
            content: true,
        };
        match kind {
            // NEWGEN: NFTA_GEN_ID
            15 => match be32(find(1)) {
                Some(generation) => self.generation(generation),
                None => self.lost(),
            },
            // {NEW,DEL,DESTROY}TABLE
            0 | 2 | 26 => self.tables = true,
            // {NEW,DEL,DESTROY}CHAIN: NFTA_CHAIN_TABLE, _NAME. A chain may be deleted and made anew
            // within one transaction.
            3 | 5 | 27 => self.chain(place(3), definition),
            // {NEW,DEL,DESTROY}RULE and NEWRULE's replacement: NFTA_RULE_TABLE, _CHAIN
            6 | 8 | 28 => self.chain(place(2), content),
            // {NEW,DEL,DESTROY}SET: NFTA_SET_TABLE, _NAME
            9 | 11 | 29 => self.set(place(2), definition),
            // {NEW,DEL,DESTROY}SETELEM: NFTA_SET_ELEM_LIST_TABLE, _SET
            12 | 14 | 30 => self.set(place(2), content),
            // TRACE; {NEW,DEL,DESTROY}OBJ and FLOWTABLE: nothing of them is read.
            17 | 18 | 20 | 22 | 24 | 31 | 32 => {}
            _ => self.everything(),
        }
        if self.chains.len() + self.sets.len() > MANY {
            self.everything();
        }
    }

    fn generation(&mut self, now: u32) {
        match self.heard {
            // Heard before the first reading, which is newer.
            Some(heard) if heard.wrapping_sub(now).cast_signed() >= 0 => {}
            // One transaction after the other, none left out.
            Some(heard) if heard.wrapping_add(1) != now && now != 1 => {
                self.everything();
                self.heard = Some(now);
            }
            _ => {
                self.heard = Some(now);
                self.lost = false;
            }
        }
    }

    pub fn chain(&mut self, place: Place, parts: Parts) {
        if !self.all {
            let mark = self.chains.entry(place).or_default();
            mark.definition |= parts.definition;
            mark.content |= parts.content;
        }
    }

    pub fn set(&mut self, place: Place, parts: Parts) {
        if !self.all {
            let mark = self.sets.entry(place).or_default();
            mark.definition |= parts.definition;
            mark.content |= parts.content;
        }
    }
}
