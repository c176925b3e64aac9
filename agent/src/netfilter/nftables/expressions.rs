//! One rule: its expressions in order, into ops.
//!
//! Here are the list, verdicts and stateful objects; `loads`, `bits`, `lookups` and `nat` hold one
//! kind of expression each.

mod bits;
mod loads;
mod lookups;
mod nat;

use super::Names;
use super::attributes::{Attributes, be32, c_string, table, text};
use super::compare::range;
use super::registers::{Held, Numgen, Part, Registers};
use super::sets::{Described, Uses};
use super::values::Order;
use crate::netfilter::ruleset::{Field, Op, TableFamily, Verdict};
use crate::netfilter::xtables;
use std::collections::HashMap;
use std::sync::Arc;

/// Runs one rule's expressions symbolically.
pub(super) struct RuleReader<'a> {
    pub family: TableFamily,
    pub sets: &'a HashMap<Arc<str>, Described>,
    /// What rules look up in each set, for sets that do not say their type.
    pub uses: &'a mut Uses,
    pub names: &'a mut Names,
    pub registers: &'a mut Registers,
    pub ops: Vec<Op>,
    pub comment: Option<Arc<str>>,
    /// The IP version that the rule has established: 4 or 6.
    pub version: Option<u8>,
}

impl RuleReader<'_> {
    /// `NFTA_RULE_EXPRESSIONS`.
    pub fn expressions(&mut self, list: &[u8]) {
        let mut elements = Attributes::new(list);
        for (_, element) in &mut elements {
            match table(element) {
                Some(a) if !a[1].is_empty() => match table(a[2]) {
                    Some(attributes) => self.expression(&text(a[1]), &attributes),
                    None => {
                        self.registers.clear();
                        self.statement(format!("{} with broken attributes", text(a[1])));
                    }
                },
                _ => {
                    self.registers.clear();
                    self.statement("expression without a name");
                }
            }
        }
        if elements.broken() {
            self.statement("broken list of expressions");
        }
    }

    fn condition(&mut self, what: impl Into<Arc<str>>) {
        self.ops.push(Op::UnknownMatch(what.into()));
    }

    fn statement(&mut self, what: impl Into<Arc<str>>) {
        self.ops.push(Op::UnknownStatement(what.into()));
    }

    fn store(&mut self, register: u32, length: usize, held: Held) {
        if !self.registers.store(register, length, held) {
            self.registers.clear();
            self.statement(format!("load of {length} bytes into register {register}"));
        }
    }

    fn store_field(&mut self, register: u32, field: Field, order: Order, size: usize) {
        let parts = vec![Part::whole(field, order, size)];
        self.store(
            register,
            size,
            Held::Parts {
                parts,
                masked: None,
            },
        );
    }

    fn expression(&mut self, name: &str, a: &[&[u8]; 16]) {
        let n = |i: usize| be32(a[i]).unwrap_or(0);
        match name {
            "payload" => self.payload(a),
            "meta" => self.meta(a),
            "ct" => self.ct(a),
            "fib" => self.fib(n(1), n(2), n(3)),
            "bitwise" => self.bitwise(a),
            "byteorder" => self.byteorder(n(1), n(2), n(4) as usize, n(5) as usize),
            "cmp" => self.cmp(a),
            "range" => match self.registers.get(n(1)) {
                Some(load) if n(2) <= 1 => {
                    let ops = range(load, data(a[3]), data(a[4]), n(2) == 1);
                    self.ops.extend(ops);
                }
                _ => self.condition("range of an empty register"),
            },
            "numgen" => {
                let numgen = Numgen {
                    modulus: n(2),
                    offset: n(4),
                    incremental: n(3) == 0,
                    order: Order::Host,
                };
                self.store(n(1), 4, Held::Numgen(numgen));
            }
            "immediate" => self.immediate(n(1), a[2]),
            "lookup" => self.lookup(a),
            "dynset" => self.dynset(a),
            "nat" => self.nat(a),
            "masq" => self.ops.push(Op::Masquerade),
            "redir" => self.redir(a),
            "reject" => self.ops.push(Op::Reject),
            "notrack" => self.ops.push(Op::NoTrack),
            "queue" => self.ops.push(Op::Verdict(Verdict::Queue)),
            "counter" | "log" | "last" => self.ops.push(Op::Nothing),
            "limit" | "quota" | "connlimit" => self.condition(name),
            "objref" => self.objref(a),
            "match" => {
                let name = text(a[1]);
                let (family, ops) = (self.family, &mut self.ops);
                let comment = xtables::decode_match(family, &name, n(2), a[3], ops);
                if comment.is_some() {
                    self.comment = comment;
                }
            }
            "target" => {
                let name = text(a[1]);
                self.ops
                    .push(xtables::decode_target(self.family, &name, n(2), a[3]));
            }
            // Loads of things that are not followed: what is compared with them is then unknown.
            "exthdr" if a[7].is_empty() => self.opaque(name, n(1), n(4) as usize),
            "rt" | "osf" | "xfrm" => self.opaque(name, n(1), 4),
            "socket" | "hash" | "tunnel" => self.opaque(name, n(2), 4),
            _ => {
                // It may have written to any register.
                self.registers.clear();
                self.statement(name);
            }
        }
    }
    fn immediate(&mut self, register: u32, nest: &[u8]) {
        if register == 0 {
            let op = match verdict(nest, self.names) {
                // The rule goes on.
                Some(Code::Continue) => Op::Nothing,
                Some(Code::Break) => Op::Verdict(Verdict::Continue),
                Some(Code::Verdict(verdict)) => Op::Verdict(verdict),
                None => Op::UnknownStatement("verdict".into()),
            };
            return self.ops.push(op);
        }
        let bytes = data(nest);
        if bytes.is_empty() {
            return self.statement("immediate without data");
        }
        self.store(register, bytes.len(), Held::Data(bytes.to_vec()));
    }
    fn objref(&mut self, a: &[&[u8]; 16]) {
        // NFT_OBJECT_*: 1 counter, 2 quota, 3 ct helper, 4 limit, 5 connlimit, 7 ct timeout,
        // 8 secmark, 9 ct expectation
        match be32(a[1]) {
            _ if !a[3].is_empty() => self.condition("objref map"),
            Some(1 | 3 | 7 | 8 | 9) => self.ops.push(Op::Nothing),
            Some(2 | 4 | 5) => self.condition("objref"),
            _ => self.statement("objref"),
        }
    }
}

/// `NFTA_DATA_VALUE` of a nest of data; empty if there is none.
pub(super) fn data(nest: &[u8]) -> &[u8] {
    Attributes::new(nest)
        .find(|(kind, _)| *kind == 1)
        .map_or(&[], |(_, value)| value)
}

/// What a verdict register is set to.
pub(super) enum Code {
    Continue,
    Break,
    Verdict(Verdict),
}

/// `NFTA_DATA_VERDICT` of a nest of data.
pub(super) fn verdict(nest: &[u8], names: &mut Names) -> Option<Code> {
    let (_, inner) = Attributes::new(nest).find(|(kind, _)| *kind == 2)?;
    let a = table(inner)?;
    let chain = |names: &mut Names| {
        let name = c_string(a[2]);
        (!name.is_empty()).then(|| names.get(name))
    };
    // NFT_* and NF_* verdicts; NF_QUEUE has the queue's number in its upper half.
    Some(Code::Verdict(match be32(a[1])?.cast_signed() {
        -1 => return Some(Code::Continue),
        -2 => return Some(Code::Break),
        -3 => Verdict::Jump(chain(names)?),
        -4 => Verdict::Goto(chain(names)?),
        -5 => Verdict::Return,
        0 => Verdict::Drop,
        1 => Verdict::Accept,
        code if code > 0 && code & 0xff == 3 => Verdict::Queue,
        _ => return None,
    }))
}
