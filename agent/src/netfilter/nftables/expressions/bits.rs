//! Registers computed and compared: masks, byte order, comparisons with constants.

use super::{RuleReader, data};
use crate::netfilter::nftables::attributes::be32;
use crate::netfilter::nftables::compare::{Comparison, compare};
use crate::netfilter::nftables::registers::{Held, Numgen};
use crate::netfilter::nftables::values::Order;
use crate::netfilter::ruleset::{Field, Match, Op, Value};

impl RuleReader<'_> {
    pub(super) fn bitwise(&mut self, a: &[&[u8]; 16]) {
        let n = |i: usize| be32(a[i]).unwrap_or(0);
        let (source, target, length) = (n(1), n(2), n(3) as usize);
        let (mask, xor) = (data(a[4]), data(a[5]));
        let held = match self.registers.get(source) {
            Some(load)
                if n(6) == 0
                    && load.length == length
                    && mask.len() == length
                    && xor.len() == length =>
            {
                match &load.held {
                    Held::Parts { parts, masked } => {
                        // ((x & m1) ^ x1) & m2 ^ x2 = x & (m1 & m2) ^ ((x1 & m2) ^ x2)
                        let and = |a: &[u8], b: &[u8]| -> Vec<u8> {
                            a.iter().zip(b).map(|(a, b)| a & b).collect()
                        };
                        let masked = match masked {
                            None => (mask.to_vec(), xor.to_vec()),
                            Some((m, x)) => (
                                and(m, mask),
                                and(x, mask).iter().zip(xor).map(|(a, b)| a ^ b).collect(),
                            ),
                        };
                        Held::Parts {
                            parts: parts.clone(),
                            masked: Some(masked),
                        }
                    }
                    Held::Map(_) => {
                        self.condition("bits of a map's value");
                        Held::Opaque("bits of a map's value".into())
                    }
                    _ => Held::Opaque("bits of something that is no field".into()),
                }
            }
            _ => Held::Opaque("bitwise".into()),
        };
        self.store(target, length.clamp(1, 64), held);
    }

    pub(super) fn byteorder(&mut self, source: u32, target: u32, length: usize, size: usize) {
        let turn = |order: Order| {
            if order == Order::Host {
                Order::Big
            } else {
                Order::Host
            }
        };
        let held = match self.registers.get(source) {
            Some(load) if load.length == length && size == length => match &load.held {
                Held::Parts { parts, masked } => match parts.as_slice() {
                    [part] if part.size == part.whole => {
                        let mut part = part.clone();
                        part.order = turn(part.order);
                        let reversed = |b: &Vec<u8>| b.iter().rev().copied().collect();
                        let masked = masked.as_ref().map(|(m, x)| (reversed(m), reversed(x)));
                        Held::Parts {
                            parts: vec![part],
                            masked,
                        }
                    }
                    _ => Held::Opaque("byte order of several fields".into()),
                },
                Held::Numgen(numgen) => Held::Numgen(Numgen {
                    order: turn(numgen.order),
                    ..*numgen
                }),
                Held::Map(_) => {
                    self.condition("byte order of a map's value");
                    Held::Opaque("byte order of a map's value".into())
                }
                _ => Held::Opaque("byteorder".into()),
            },
            _ => Held::Opaque("byteorder".into()),
        };
        self.store(target, length.clamp(1, 64), held);
    }

    pub(super) fn cmp(&mut self, a: &[&[u8]; 16]) {
        let n = |i: usize| be32(a[i]).unwrap_or(0);
        let (Some(load), Some(comparison)) =
            (self.registers.get(n(1)), Comparison::from_kernel(n(2)))
        else {
            return self.condition("comparison of an empty register");
        };
        let mut ops = compare(load, comparison, data(a[3]));
        for op in &mut ops {
            let Op::Match(found) = op else { continue };
            // Index 1 is the loopback link in every network namespace.
            if *found.any_of == [Value::Number(1, 1)] && found.mask.is_none() {
                let link = match &found.field {
                    Field::Other(what) if &**what == "iif" => Field::Iifname,
                    Field::Other(what) if &**what == "oif" => Field::Oifname,
                    _ => continue,
                };
                found.field = link;
                found.any_of = Value::Name("lo".into(), false).into();
            }
        }
        for op in &ops {
            if let Op::Match(Match {
                field,
                mask: None,
                any_of,
                negated: false,
            }) = op
            {
                match (field, &any_of[..]) {
                    (Field::Nfproto, [Value::Number(2, 2)])
                    | (Field::EtherType, [Value::Number(0x0800, 0x0800)]) => self.version = Some(4),
                    (Field::Nfproto, [Value::Number(10, 10)])
                    | (Field::EtherType, [Value::Number(0x86dd, 0x86dd)]) => self.version = Some(6),
                    _ => {}
                }
            }
        }
        self.ops.extend(ops);
    }
}
