//! One rule: its expressions in order, into ops.

use super::Names;
use super::attributes::{Attributes, be16, be32, c_string, table, text};
use super::compare::{Comparison, compare, range};
use super::registers::{Held, MapValue, Numgen, Part, Registers};
use super::sets::{Described, Use};
use super::values::{Order, address};
use crate::netfilter::ruleset::{Field, Lookup, Match, NatTarget, Op, TableFamily, Value, Verdict};
use crate::netfilter::xtables;
use std::collections::HashMap;
use std::sync::Arc;

/// Runs one rule's expressions symbolically.
pub(super) struct RuleReader<'a> {
    pub family: TableFamily,
    pub sets: &'a HashMap<Arc<str>, Described>,
    /// What rules look up in each set, for sets that do not say their type.
    pub uses: &'a mut HashMap<Arc<str>, Vec<Use>>,
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
                let (ops, comment) = xtables::decode_match(self.family, &name, n(2), a[3]);
                self.ops.extend(ops);
                if comment.is_some() {
                    self.comment = comment;
                }
            }
            "target" => {
                let name = text(a[1]);
                self.ops
                    .extend(xtables::decode_target(self.family, &name, n(2), a[3]));
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

    /// A load whose width may not be known: what other registers held may be gone, too.
    fn opaque(&mut self, what: &str, register: u32, length: usize) {
        // The load itself may end the rule (header not there, no socket).
        self.condition(what);
        self.registers.clear();
        self.store(register, length.clamp(1, 16), Held::Opaque(what.into()));
    }

    fn payload(&mut self, a: &[&[u8]; 16]) {
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

    fn meta(&mut self, a: &[&[u8]; 16]) {
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

    fn ct(&mut self, a: &[&[u8]; 16]) {
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

    fn fib(&mut self, register: u32, result: u32, flags: u32) {
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

    fn bitwise(&mut self, a: &[&[u8]; 16]) {
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

    fn byteorder(&mut self, source: u32, target: u32, length: usize, size: usize) {
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

    fn cmp(&mut self, a: &[&[u8]; 16]) {
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
            if found.any_of == [Value::Number(1, 1)] && found.mask.is_none() {
                let link = match &found.field {
                    Field::Other(what) if &**what == "iif" => Field::Iifname,
                    Field::Other(what) if &**what == "oif" => Field::Oifname,
                    _ => continue,
                };
                found.field = link;
                found.any_of = vec![Value::Name("lo".into(), false)];
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
                match (field, any_of.as_slice()) {
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

    fn lookup(&mut self, a: &[&[u8]; 16]) {
        let n = |i: usize| be32(a[i]).unwrap_or(0);
        let set_name = self.names.get(c_string(a[1]));
        let (source, negated) = (n(2), n(5) & 1 != 0);
        let target = if a[3].is_empty() { None } else { Some(n(3)) };
        let Some(set) = self.sets.get(&set_name) else {
            return self.condition(format!("look-up in a set that is not there: {set_name}"));
        };
        let key = self.key(source, set);
        let used = match &key {
            Some(Key::Fields(_, uses)) => Some(uses.clone()),
            Some(Key::Numgen(_)) => Some(vec![Use::Numgen]),
            None => None,
        };
        if let Some(used) = used {
            self.uses.entry(set_name.clone()).or_insert(used);
        }
        match (key, target) {
            (Some(Key::Fields(fields, _)), None) if set.dynamic() => {
                if fields == [Field::Saddr] && !negated {
                    let seconds = set.timeout_seconds();
                    self.ops.push(Op::AffinityCheck {
                        list: set_name,
                        seconds,
                    });
                } else {
                    self.condition(format!("look-up in a set that packets fill: {set_name}"));
                }
            }
            (Some(_), Some(_)) if set.dynamic() => {
                self.condition(format!("look-up in a map that packets fill: {set_name}"));
                self.forget(target, set);
            }
            (Some(Key::Fields(key, _)), None) => {
                self.ops.push(Op::Lookup(Lookup {
                    key,
                    set: set_name,
                    negated,
                }));
            }
            (Some(Key::Fields(key, _)), Some(0)) => {
                self.ops.push(Op::VerdictMap(Lookup {
                    key,
                    set: set_name,
                    negated,
                }));
            }
            (Some(Key::Numgen(numgen)), Some(0)) => self.ops.push(Op::NumgenVerdictMap {
                modulus: numgen.modulus,
                offset: numgen.offset,
                map: set_name,
                incremental: numgen.incremental,
            }),
            (Some(Key::Fields(key, _)), Some(register)) => {
                let lookup = Lookup {
                    key,
                    set: set_name,
                    negated: false,
                };
                let length = set.data_length();
                self.store(register, length, Held::Map(MapValue::Lookup(lookup)));
            }
            (Some(Key::Numgen(numgen)), Some(register)) => {
                let length = set.data_length();
                self.store(
                    register,
                    length,
                    Held::Map(MapValue::Numgen(numgen, set_name)),
                );
            }
            (Some(Key::Numgen(_)), None) => {
                self.condition(format!("numgen in a set: {set_name}"));
            }
            (None, target) => {
                if target == Some(0) {
                    self.statement(format!("verdict map with a key not understood: {set_name}"));
                } else {
                    self.condition(format!("look-up with a key not understood: {set_name}"));
                    self.forget(target, set);
                }
            }
        }
    }

    fn forget(&mut self, target: Option<u32>, set: &Described) {
        match target {
            Some(0) => self.statement("verdict from a map not understood"),
            Some(register) => {
                self.store(
                    register,
                    set.data_length(),
                    Held::Opaque("a map's value".into()),
                );
            }
            None => {}
        }
    }

    /// The fields in the registers from `source` on, as far as the set's key reaches.
    fn key(&self, source: u32, set: &Described) -> Option<Key> {
        let loads = self.registers.run(source, set.key_length())?;
        if let [load] = loads.as_slice()
            && let Held::Numgen(numgen) = load.held
        {
            return Some(Key::Numgen(numgen));
        }
        let mut fields = Vec::new();
        let mut uses = Vec::new();
        for load in loads {
            let Held::Parts {
                parts,
                masked: None,
            } = &load.held
            else {
                return None;
            };
            for part in parts {
                if part.size != part.whole {
                    return None;
                }
                fields.push(part.field.clone());
                uses.push(Use::Field(part.field.clone(), part.whole));
            }
        }
        // A set that says its fields must have as many.
        let said = set.field_count();
        (said == 0 || said == fields.len()).then_some(Key::Fields(fields, uses))
    }

    fn dynset(&mut self, a: &[&[u8]; 16]) {
        let n = |i: usize| be32(a[i]).unwrap_or(0);
        let set_name = self.names.get(c_string(a[1]));
        let key = self.sets.get(&set_name).and_then(|set| self.key(n(4), set));
        // NFT_DYNSET_OP_ADD 0, UPDATE 1; an expression (limit, connlimit) may end the rule.
        let plain = n(3) <= 1 && a[7].is_empty() && a[10].is_empty() && n(9) == 0;
        match key {
            Some(Key::Fields(fields, _)) if plain && fields == [Field::Saddr] => {
                self.ops.push(Op::AffinityUpdate { list: set_name });
            }
            _ => self.condition(format!("dynset {set_name}")),
        }
    }

    fn nat(&mut self, a: &[&[u8]; 16]) {
        let n = |i: usize| be32(a[i]).unwrap_or(0);
        let target = self.nat_target(a).unwrap_or_else(NatTarget::Unknown);
        self.ops.push(match n(1) {
            0 => Op::Snat(target),
            1 => Op::Dnat(target),
            _ => Op::UnknownStatement("nat of unknown type".into()),
        });
    }

    fn nat_target(&self, a: &[&[u8]; 16]) -> Result<NatTarget, Arc<str>> {
        let register = |i: usize| if a[i].is_empty() { None } else { be32(a[i]) };
        let (address_min, address_max) = (register(3), register(4));
        let (port_min, port_max) = (register(5), register(6));
        // NF_NAT_RANGE_PROTO_OFFSET 0x20, NF_NAT_RANGE_NETMAP 0x40
        if register(7).unwrap_or(0) & 0x60 != 0 {
            return Err("nat by offset or netmap".into());
        }
        let held = |r: u32| self.registers.get(r).map(|load| &load.held);
        let same = |min: Option<u32>, max: Option<u32>| match (min, max) {
            (_, None) => true,
            (None, Some(_)) => false,
            (Some(min), Some(max)) => {
                min == max
                    || matches!((held(min), held(max)), (Some(Held::Data(a)), Some(Held::Data(b))) if a == b)
            }
        };
        if !same(address_min, address_max) || !same(port_min, port_max) {
            return Err("nat to a range".into());
        }
        let width = match register(2) {
            Some(2) => 4,
            Some(10) => 16,
            _ => return Err("nat of unknown family".into()),
        };
        if let Some(from) = address_min
            && let Some(Held::Map(map)) = held(from)
        {
            if port_min.is_some_and(|port| !self.registers.is_inside(port, from, width)) {
                return Err("nat to a map's address and another port".into());
            }
            return Ok(match map {
                MapValue::Lookup(lookup) => NatTarget::Map(lookup.clone()),
                MapValue::Numgen(numgen, map) => NatTarget::NumgenMap {
                    modulus: numgen.modulus,
                    offset: numgen.offset,
                    map: map.clone(),
                    incremental: numgen.incremental,
                },
            });
        }
        let new_address = match address_min.map(held) {
            None => None,
            Some(Some(Held::Data(bytes))) => {
                let bytes = bytes.get(..width).ok_or("nat to a shorter address")?;
                Some(address(bytes).ok_or("nat to no address")?)
            }
            Some(_) => return Err("nat to an address not understood".into()),
        };
        let port = match port_min.map(held) {
            None => None,
            Some(Some(Held::Data(bytes))) if bytes.len() >= 2 => Some(be16(bytes)),
            Some(_) => return Err("nat to a port not understood".into()),
        };
        Ok(NatTarget::Fixed {
            address: new_address,
            port,
        })
    }

    fn redir(&mut self, a: &[&[u8]; 16]) {
        let port = |i: usize| match be32(a[i]).and_then(|r| self.registers.get(r)) {
            Some(load) => match &load.held {
                Held::Data(bytes) if bytes.len() >= 2 => Some(be16(bytes)),
                _ => None,
            },
            None => None,
        };
        let op = match (a[1].is_empty(), port(1), a[2].is_empty(), port(2)) {
            (true, ..) => Op::Redirect { port: None },
            (false, Some(min), true, _) => Op::Redirect { port: Some(min) },
            (false, Some(min), false, Some(max)) if min == max => Op::Redirect { port: Some(min) },
            _ => Op::UnknownStatement("redirect to a port not understood".into()),
        };
        self.ops.push(op);
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

enum Key {
    Fields(Vec<Field>, Vec<Use>),
    Numgen(Numgen),
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
