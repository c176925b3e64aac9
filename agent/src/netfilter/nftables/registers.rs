//! What the registers hold while a rule runs, told in packet fields and not in bytes.

use super::values::Order;
use crate::netfilter::ruleset::{Field, Lookup, Op};
use std::sync::Arc;

/// Bytes of one field in a register: `from` tells which byte of the field is the first.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Part {
    pub field: Field,
    pub order: Order,
    /// Bytes loaded.
    pub size: usize,
    /// Bytes that the field has.
    pub whole: usize,
}

impl Part {
    pub fn whole(field: Field, order: Order, size: usize) -> Part {
        Part {
            field,
            order,
            size,
            whole: size,
        }
    }
}

/// `numgen`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Numgen {
    pub modulus: u32,
    pub offset: u32,
    pub incremental: bool,
    pub order: Order,
}

/// Where a map's value came from.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum MapValue {
    Numgen(Numgen, Arc<str>),
    Lookup(Lookup),
}

/// What one load left behind.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Held {
    /// Fields side by side, then `& mask ^ xor` over all of it.
    Parts {
        parts: Vec<Part>,
        masked: Option<(Vec<u8>, Vec<u8>)>,
    },
    /// A number from `numgen`.
    Numgen(Numgen),
    /// A constant.
    Data(Vec<u8>),
    /// A map's value; the rule ended if the map had none.
    Map(MapValue),
    /// Something not followed further; the text says what.
    Opaque(Arc<str>),
}

/// One load with its length in bytes.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Load {
    pub held: Held,
    pub length: usize,
}

/// The register file: 16 words of 4 bytes, addressed as `NFT_REG32_00` to `_15` or, four words at a
/// time, as `NFT_REG_1` to `_4` (linux/netfilter/nf_tables.h).
#[derive(Default)]
pub(super) struct Registers {
    loads: Vec<Load>,
    /// For each word the load, and which word of it.
    words: [Option<(usize, usize)>; 16],
    /// Room for the ops of the rule that is read.
    pub ops: Vec<Op>,
}

fn first_word(register: u32) -> Option<usize> {
    match register {
        1..=4 => Some((register as usize - 1) * 4),
        8..=23 => Some(register as usize - 8),
        _ => None,
    }
}

impl Registers {
    pub fn clear(&mut self) {
        self.loads.clear();
        self.words = [None; 16];
    }

    /// False if the register does not exist or the load does not fit.
    pub fn store(&mut self, register: u32, length: usize, held: Held) -> bool {
        let Some(first) = first_word(register) else {
            return false;
        };
        let count = length.div_ceil(4);
        if count == 0 || first + count > self.words.len() {
            return false;
        }
        let load = self.loads.len();
        self.loads.push(Load { held, length });
        for word in 0..count {
            self.words[first + word] = Some((load, word));
        }
        true
    }

    /// The load that begins in this register and is still whole.
    pub fn get(&self, register: u32) -> Option<&Load> {
        self.at(first_word(register)?)
    }

    fn at(&self, first: usize) -> Option<&Load> {
        let (load, 0) = (*self.words.get(first)?)? else {
            return None;
        };
        let found = self.loads.get(load)?;
        let whole = (0..found.length.div_ceil(4))
            .all(|word| self.words.get(first + word) == Some(&Some((load, word))));
        whole.then_some(found)
    }

    /// The loads that lie side by side from this register on and make up `length` bytes, each
    /// padded to four.
    pub fn run(&self, register: u32, length: usize) -> Option<Vec<&Load>> {
        let mut word = first_word(register)?;
        let end = word + length.div_ceil(4);
        let mut found = Vec::new();
        while word < end {
            let load = self.at(word)?;
            word += load.length.div_ceil(4);
            found.push(load);
        }
        (word == end).then_some(found)
    }

    /// Is the register the part of the load in `base` that begins `offset` bytes in?
    pub fn is_inside(&self, register: u32, base: u32, offset: usize) -> bool {
        let (Some(inner), Some(outer)) = (first_word(register), first_word(base)) else {
            return false;
        };
        match (self.words.get(inner), self.words.get(outer)) {
            (Some(Some((a, word))), Some(Some((b, 0)))) => a == b && *word == offset / 4,
            _ => false,
        }
    }
}
