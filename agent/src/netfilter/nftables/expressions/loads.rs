//! Loads: what of the packet, its connection or the routing table a register holds; and what
//! is written back.

use super::RuleReader;
use crate::netfilter::nftables::attributes::be32;
use crate::netfilter::nftables::registers::{Held, Part};
use crate::netfilter::nftables::values::Order;
use crate::netfilter::ruleset::{Field, Op, TableFamily};

impl RuleReader<'_> {
    /// A load whose width may not be known: what other registers held may be gone, too.
    pub(super) fn opaque(&mut self, what: &str, register: u32, length: usize) {
        // The load itself may end the rule (header not there, no socket).
        self.condition(what);
        self.registers.clear();
        self.store(register, length.clamp(1, 16), Held::Opaque(what.into()));
    }

    pub(super) fn payload(&mut self, a: &[&[u8]; 16]) {
        let n = |i: usize| be32(a[i]).unwrap_or(0);
        let (base, offset, length) = (n(2), n(3) as usize, n(4) as usize);
        if !a[5].is_empty() {
            return self.statement("payload write");
        }
        if length == 0 || length > 64 {
            return self.statement("payload of no length");
        }
        let version = match self.family {
            TableFamily::Ip => Some(4),
            TableFamily::Ip6 => Some(6),
            _ => self.version,
        };
        let layout: &[(usize, usize, Field)] = match (base, version) {
            (1, Some(4)) => &[
                (9, 1, Field::L4proto),
                (12, 4, Field::Saddr),
                (16, 4, Field::Daddr),
            ],
            (1, Some(6)) => &[
                (6, 1, Field::L4proto),
                (8, 16, Field::Saddr),
                (24, 16, Field::Daddr),
            ],
            (2, _) => &[(0, 2, Field::Sport), (2, 2, Field::Dport)],
            _ => &[],
        };
        let mut parts = Vec::new();
        let end = offset.saturating_add(length);
        let mut at = offset;
        while at < end {
            let known = layout.iter().find(|(start, size, field)| {
                *start == at && (at + size <= end || matches!(field, Field::Saddr | Field::Daddr))
            });
            let part = match known {
                Some((_, size, field)) => Part {
                    field: field.clone(),
                    order: Order::Big,
                    size: (*size).min(end - at),
                    whole: *size,
                },
                None => {
                    // Up to the next field that is known.
                    let next = layout.iter().map(|l| l.0).filter(|s| *s > at).min();
                    let size = next.unwrap_or(end).min(end) - at;
                    let header = ["link", "network", "transport", "inner"]
                        .get(base as usize)
                        .unwrap_or(&"unknown");
                    let field = Field::Other(format!("{header} header bytes {at}+{size}").into());
                    Part::whole(field, Order::Big, size)
                }
            };
            at += part.size;
            parts.push(part);
        }
        self.store(
            n(1),
            length,
            Held::Parts {
                parts,
                masked: None,
            },
        );
    }

    pub(super) fn meta(&mut self, a: &[&[u8]; 16]) {
        let n = |i: usize| be32(a[i]).unwrap_or(0);
        let key = n(2);
        if !a[3].is_empty() {
            return self.set_meta(key, n(3));
        }
        let (field, order, size) = match key {
            1 => (Field::EtherType, Order::Big, 2),
            3 => (Field::Mark, Order::Host, 4),
            4 => (Field::Other("iif".into()), Order::Host, 4),
            5 => (Field::Other("oif".into()), Order::Host, 4),
            6 => (Field::Iifname, Order::Big, 16),
            7 => (Field::Oifname, Order::Big, 16),
            15 => (Field::Nfproto, Order::Big, 1),
            16 => (Field::L4proto, Order::Big, 1),
            19 => (Field::PacketType, Order::Big, 1),
            8 | 9 => (Field::Other(format!("meta {key}").into()), Order::Host, 2),
            25 => (Field::Other("meta ipsec".into()), Order::Big, 1),
            0 | 2 | 10..=14 | 20..=24 => {
                (Field::Other(format!("meta {key}").into()), Order::Host, 4)
            }
            _ => {
                let what = format!("meta {key}");
                return self.opaque(&what, n(1), 16);
            }
        };
        self.store_field(n(1), field, order, size);
    }

    fn set_meta(&mut self, key: u32, register: u32) {
        let held = self.registers.get(register).map(|load| &load.held);
        let op = match (key, held) {
            (3, Some(Held::Data(bytes))) => match bytes.first_chunk::<4>() {
                Some(b) => Op::SetMark {
                    and: 0,
                    xor: u32::from_ne_bytes(*b),
                },
                None => Op::UnknownStatement("mark set to a shorter constant".into()),
            },
            (3, Some(Held::Parts { parts, masked })) => match parts.as_slice() {
                [
                    Part {
                        field: Field::Mark,
                        order: Order::Host,
                        size: 4,
                        ..
                    },
                ] => match masked {
                    None => Op::Nothing,
                    Some((mask, xor)) => match (mask.first_chunk::<4>(), xor.first_chunk::<4>()) {
                        (Some(mask), Some(xor)) => Op::SetMark {
                            and: u32::from_ne_bytes(*mask),
                            xor: u32::from_ne_bytes(*xor),
                        },
                        _ => Op::UnknownStatement("mark set with a shorter mask".into()),
                    },
                },
                _ => Op::UnknownStatement("mark set from another field".into()),
            },
            (3, _) => Op::UnknownStatement("mark set from something unknown".into()),
            // A map without the key ends the rule.
            (_, Some(Held::Map(_))) => Op::UnknownMatch("map for a meta value".into()),
            // priority, nftrace, rtclassid, secmark: no influence on where the packet goes
            (2 | 12 | 14, _) => Op::Nothing,
            _ => Op::UnknownStatement(format!("meta {key} set").into()),
        };
        self.ops.push(op);
    }

    pub(super) fn ct(&mut self, a: &[&[u8]; 16]) {
        let n = |i: usize| be32(a[i]).unwrap_or(0);
        let key = n(2);
        if !a[4].is_empty() {
            let from_map = matches!(
                self.registers.get(n(4)).map(|l| &l.held),
                Some(Held::Map(_))
            );
            let op = match key {
                _ if from_map => Op::UnknownMatch("map for a ct value".into()),
                // mark, secmark, labels, eventmask: kept with the flow
                3 | 4 | 13 | 18 => Op::Nothing,
                _ => Op::UnknownStatement(format!("ct {key} set").into()),
            };
            return self.ops.push(op);
        }
        let original = a[3].first() == Some(&0);
        let v6 = match self.family {
            TableFamily::Ip6 => true,
            TableFamily::Ip => false,
            _ => self.version == Some(6),
        };
        let other = |what: &str| Field::Other(format!("ct {what}").into());
        let (field, order, size) = match key {
            0 => (Field::CtState, Order::Host, 4),
            2 => (Field::CtStatus, Order::Host, 4),
            9 if original => (Field::CtOriginalDaddr, Order::Big, if v6 { 16 } else { 4 }),
            20 if original => (Field::CtOriginalDaddr, Order::Big, 4),
            22 if original => (Field::CtOriginalDaddr, Order::Big, 16),
            1 => (other("direction"), Order::Big, 1),
            3 => (other("mark"), Order::Host, 4),
            7 => (other("l3proto"), Order::Big, 1),
            10 => (other("protocol"), Order::Big, 1),
            11 => (other("proto-src"), Order::Big, 2),
            12 => (other("proto-dst"), Order::Big, 2),
            17 => (other("zone"), Order::Host, 2),
            _ => {
                let what = format!("ct {key}");
                return self.opaque(&what, n(1), 16);
            }
        };
        self.store_field(n(1), field, order, size);
    }

    pub(super) fn fib(&mut self, register: u32, result: u32, flags: u32) {
        // NFT_FIB_RESULT_*: 1 oif, 2 oifname, 3 addrtype; NFTA_FIB_F_SADDR 1, DADDR 2
        let other = || Field::Other(format!("fib {result} {flags:#x}").into());
        match (result, flags) {
            (3, 1) => self.store_field(register, Field::SaddrType, Order::Host, 4),
            (3, 2) => self.store_field(register, Field::DaddrType, Order::Host, 4),
            // With F_PRESENT (0x20) any of them is a number, 0 or 1.
            (2, _) if flags & 0x20 == 0 => self.store_field(register, other(), Order::Big, 16),
            (1..=3, _) => self.store_field(register, other(), Order::Host, 4),
            _ => self.opaque("fib", register, 4),
        }
    }
}
