//! Rules: statements and what they look at.

use super::values::{self, Kind, address, verdict};
use super::{text_of, unread};
use crate::netfilter::ruleset::{
    Field, Lookup, Match, NatTarget, Op, Set, Table, TableFamily, Value,
};
use serde_json::Value as Json;
use std::sync::Arc;

/// What is looked up by.
enum Key {
    Fields(Vec<Field>),
    Numgen {
        modulus: u32,
        offset: u32,
        incremental: bool,
    },
}

/// Reads one rule.
pub(super) struct Reader<'t> {
    table: &'t Table,
    /// Rules of the table before this one: names of anonymous sets are made from it.
    number: usize,
    ops: Vec<Op>,
    sets: Vec<Set>,
    fills: Vec<Arc<str>>,
}

impl<'t> Reader<'t> {
    pub fn new(table: &'t Table) -> Reader<'t> {
        Reader {
            table,
            number: table.chains.iter().map(|c| c.rules.len()).sum(),
            ops: Vec::new(),
            sets: Vec::new(),
            fills: Vec::new(),
        }
    }

    /// Its ops, its anonymous sets, and the sets that it fills.
    pub fn finish(self) -> (Vec<Op>, Vec<Set>, Vec<Arc<str>>) {
        (self.ops, self.sets, self.fills)
    }

    fn condition(&mut self, what: &str) {
        self.ops.push(Op::UnknownMatch(what.into()));
    }

    fn unknown(&mut self, what: &str) {
        self.ops.push(Op::UnknownStatement(what.into()));
    }

    pub fn statement(&mut self, json: &Json) {
        let Some((name, content)) = json.as_object().and_then(|o| o.iter().next()) else {
            // `"notrack"` and the like, as older versions write them.
            return match json.as_str() {
                Some("notrack") => self.ops.push(Op::NoTrack),
                _ => self.unknown("a statement not understood"),
            };
        };
        if let Some(found) = verdict(json) {
            return self.ops.push(Op::Verdict(found));
        }
        match name.as_str() {
            "match" => self.matches(content),
            "vmap" => self.verdict_map(content),
            "counter" | "log" => self.ops.push(Op::Nothing),
            "dnat" => {
                let target = self.nat(content);
                self.ops.push(Op::Dnat(target));
            }
            "snat" => {
                let target = self.nat(content);
                self.ops.push(Op::Snat(target));
            }
            "masquerade" => self.ops.push(Op::Masquerade),
            "redirect" => match content.get("port") {
                None => self.ops.push(Op::Redirect { port: None }),
                Some(port) => match port.as_u64().and_then(|p| u16::try_from(p).ok()) {
                    Some(port) => self.ops.push(Op::Redirect { port: Some(port) }),
                    None => self.unknown("redirect to a port not understood"),
                },
            },
            "reject" => self.ops.push(Op::Reject),
            "notrack" => self.ops.push(Op::NoTrack),
            "mangle" => self.mangle(content),
            "set" => self.fill(content),
            "xt" => match (text_of(content, "type"), text_of(content, "name")) {
                (Some("match"), Some("comment" | "nfacct")) => self.ops.push(Op::Nothing),
                (Some("match"), Some(name)) => self.condition(&format!("xt match {name}")),
                (_, name) => self.unknown(&format!("xt target {}", name.unwrap_or("?"))),
            },
            "limit" | "quota" | "ct count" => self.condition(name),
            other => self.unknown(other),
        }
    }

    /// Puts in the conditions that nft leaves out because another one implies them.
    fn implied(&mut self, protocol: &str) {
        let is = |field, n| {
            Op::Match(Match {
                field,
                mask: None,
                any_of: Value::Number(n, n).into(),
                negated: false,
            })
        };
        let inet = !matches!(self.table.family, TableFamily::Ip | TableFamily::Ip6);
        let op = match protocol {
            "ip" if inet => is(Field::Nfproto, 2),
            "ip6" if inet => is(Field::Nfproto, 10),
            "tcp" => is(Field::L4proto, 6),
            "udp" => is(Field::L4proto, 17),
            "sctp" => is(Field::L4proto, 132),
            "udplite" => is(Field::L4proto, 136),
            _ => return,
        };
        if !self.ops.contains(&op) {
            self.ops.push(op);
        }
    }

    /// A field; what it implies becomes a condition before.
    fn field(&mut self, json: &Json) -> Option<Field> {
        if let Some(payload) = json.get("payload") {
            let protocol = text_of(payload, "protocol")?;
            let field = match (protocol, text_of(payload, "field")?) {
                ("ip" | "ip6", "saddr") => Field::Saddr,
                ("ip" | "ip6", "daddr") => Field::Daddr,
                ("ip", "protocol") | ("ip6", "nexthdr") => Field::L4proto,
                ("th" | "tcp" | "udp" | "sctp" | "udplite", "sport") => Field::Sport,
                ("th" | "tcp" | "udp" | "sctp" | "udplite", "dport") => Field::Dport,
                (protocol, field) => Field::Other(format!("{protocol} {field}").into()),
            };
            self.implied(protocol);
            return Some(field);
        }
        if let Some(meta) = json.get("meta") {
            return Some(match text_of(meta, "key")? {
                "l4proto" => Field::L4proto,
                "nfproto" => Field::Nfproto,
                "protocol" => Field::EtherType,
                "mark" => Field::Mark,
                "iifname" => Field::Iifname,
                "oifname" => Field::Oifname,
                "pkttype" => Field::PacketType,
                other => Field::Other(format!("meta {other}").into()),
            });
        }
        if let Some(ct) = json.get("ct") {
            return Some(match (text_of(ct, "key")?, text_of(ct, "dir")) {
                ("state", None) => Field::CtState,
                ("status", None) => Field::CtStatus,
                ("ip daddr" | "ip6 daddr", Some("original")) => Field::CtOriginalDaddr,
                (other, _) => Field::Other(format!("ct {other}").into()),
            });
        }
        let fib = json.get("fib")?;
        let flags: Vec<&str> = super::flags(fib).collect();
        Some(match (text_of(fib, "result")?, flags.as_slice()) {
            ("type", ["saddr"]) => Field::SaddrType,
            ("type", ["daddr"]) => Field::DaddrType,
            (other, _) => Field::Other(format!("fib {other}").into()),
        })
    }

    fn key(&mut self, json: &Json) -> Option<Key> {
        if let Some(numgen) = json.get("numgen") {
            let number = |name: &str| u32::try_from(numgen[name].as_u64().unwrap_or(0)).ok();
            return Some(Key::Numgen {
                modulus: number("mod").filter(|m| *m > 0)?,
                offset: number("offset")?,
                incremental: text_of(numgen, "mode") == Some("inc"),
            });
        }
        if let Some(parts) = json.get("concat").and_then(Json::as_array) {
            let fields = parts.iter().map(|part| self.field(part));
            return Some(Key::Fields(fields.collect::<Option<_>>()?));
        }
        Some(Key::Fields(vec![self.field(json)?]))
    }

    /// A set that a rule names or brings along; its name.
    fn set(&mut self, json: &Json, key: &Key, map: bool) -> Option<Arc<str>> {
        if let Some(name) = json.as_str() {
            let name = name.strip_prefix('@')?;
            return self.table.sets.contains_key(name).then(|| name.into());
        }
        let list = json.get("set")?.as_array()?;
        let kinds: Option<Vec<Kind>> = match key {
            Key::Numgen { .. } => Some(vec![Kind::Index]),
            Key::Fields(fields) => fields.iter().map(Kind::of).collect(),
        };
        let name = format!("__json{}_{}", self.number, self.sets.len());
        let mut set = match kinds {
            Some(kinds) => values::filled(&name, &kinds, map, list),
            None => unread(&name, map, "a key not understood"),
        };
        set.anonymous = true;
        self.sets.push(set);
        Some(name.into())
    }

    fn matches(&mut self, json: &Json) {
        if self.try_match(json).is_none() {
            self.condition("a condition not understood");
        }
    }

    fn try_match(&mut self, json: &Json) -> Option<()> {
        let (op, left, right) = (text_of(json, "op")?, &json["left"], &json["right"]);
        if let Some(parts) = left.get("&").and_then(Json::as_array) {
            let [field, mask] = parts.as_slice() else {
                return None;
            };
            let field = self.field(field)?;
            let kind = Kind::of(&field)?;
            let (mask, value) = (kind.bits(mask)?, kind.bits(right)?);
            return self.compare(field, Some(mask), vec![Value::Number(value, value)], op);
        }
        let key = self.key(left)?;
        if let Key::Numgen {
            modulus,
            offset: 0,
            incremental: false,
        } = key
        {
            let below = u32::try_from(right.as_u64()?).ok()?.min(modulus);
            let share = (u64::from(below) << 31) / u64::from(modulus);
            let numerator = u32::try_from(share).ok()?;
            return (op == "<").then(|| self.ops.push(Op::Probability { numerator }));
        }
        let named = right.as_str().is_some_and(|name| name.starts_with('@'));
        let several = matches!(&key, Key::Fields(fields) if fields.len() > 1);
        let listed = right.get("set").is_some();
        if named || several {
            let negated = match op {
                "==" => false,
                "!=" => true,
                _ => return None,
            };
            let set = self.set(right, &key, false)?;
            let Key::Fields(key) = key else { return None };
            self.ops.push(Op::Lookup(Lookup { key, set, negated }));
            return Some(());
        }
        let Key::Fields(fields) = key else {
            return None;
        };
        let [field] = fields.as_slice() else {
            return None;
        };
        let kind = Kind::of(field)?;
        if op == "in" {
            // One of these bits.
            let bits = kind.bits(right)?;
            self.ops.push(Op::Match(Match {
                field: field.clone(),
                mask: Some(bits),
                any_of: Value::Number(0, 0).into(),
                negated: true,
            }));
            return Some(());
        }
        let values = if listed {
            let list = right["set"].as_array()?;
            list.iter()
                .map(|one| kind.value(one.get("elem").map_or(one, |e| &e["val"])))
                .collect::<Option<_>>()?
        } else {
            vec![kind.value(right)?]
        };
        self.compare(field.clone(), None, values, op)
    }

    fn compare(
        &mut self,
        field: Field,
        mask: Option<u64>,
        values: Vec<Value>,
        op: &str,
    ) -> Option<()> {
        let number = || match values.as_slice() {
            [Value::Number(n, m)] if n == m => Some(*n),
            _ => None,
        };
        let (any_of, negated) = match op {
            "==" => (values, false),
            "!=" => (values, true),
            "<=" => (vec![Value::Number(0, number()?)], false),
            "<" => (vec![Value::Number(0, number()?.checked_sub(1)?)], false),
            ">=" => (vec![Value::Number(number()?, u64::MAX)], false),
            ">" => (
                vec![Value::Number(number()?.checked_add(1)?, u64::MAX)],
                false,
            ),
            _ => return None,
        };
        self.ops.push(Op::Match(Match {
            field,
            mask,
            any_of: any_of.into(),
            negated,
        }));
        Some(())
    }

    fn verdict_map(&mut self, json: &Json) {
        let key = self.key(&json["key"]);
        let set = key
            .as_ref()
            .and_then(|key| self.set(&json["data"], key, true));
        match (key, set) {
            (Some(Key::Fields(key)), Some(set)) => self.ops.push(Op::VerdictMap(Lookup {
                key,
                set,
                negated: false,
            })),
            (
                Some(Key::Numgen {
                    modulus,
                    offset,
                    incremental,
                }),
                Some(map),
            ) => self.ops.push(Op::NumgenVerdictMap {
                modulus,
                offset,
                map,
                incremental,
            }),
            _ => self.unknown("verdict map not understood"),
        }
    }

    fn nat(&mut self, json: &Json) -> NatTarget {
        self.try_nat(json)
            .unwrap_or_else(|| NatTarget::Unknown("nat not understood".into()))
    }

    fn try_nat(&mut self, json: &Json) -> Option<NatTarget> {
        // `prefix` and its like: not one address for one.
        if json.get("type_flags").is_some() {
            return None;
        }
        let port = match json.get("port") {
            Some(port) => Some(u16::try_from(port.as_u64()?).ok()?),
            None => None,
        };
        let Some(host) = json.get("addr") else {
            return Some(NatTarget::Fixed {
                address: None,
                port,
            });
        };
        let Some(map) = host.get("map") else {
            return Some(NatTarget::Fixed {
                address: Some(address(host)?),
                port,
            });
        };
        if port.is_some() {
            return None;
        }
        let key = self.key(&map["key"])?;
        let set = self.set(&map["data"], &key, true)?;
        Some(match key {
            Key::Fields(key) => NatTarget::Map(Lookup {
                key,
                set,
                negated: false,
            }),
            Key::Numgen {
                modulus,
                offset,
                incremental,
            } => NatTarget::NumgenMap {
                modulus,
                offset,
                map: set,
                incremental,
            },
        })
    }

    /// The packet's mark; the flow's mark and what else does not change where a packet goes.
    fn mangle(&mut self, json: &Json) {
        let (key, value) = (&json["key"], &json["value"]);
        let of_meta = key.get("meta").and_then(|m| text_of(m, "key"));
        let of_flow = key.get("ct").and_then(|c| text_of(c, "key"));
        match (of_meta, of_flow) {
            (Some("mark"), _) => match mark(value) {
                Some((and, xor)) => self.ops.push(Op::SetMark { and, xor }),
                None => self.unknown("mark set to something not understood"),
            },
            (Some("priority" | "nftrace"), _) => self.ops.push(Op::Nothing),
            (_, Some("mark" | "label" | "event")) => self.ops.push(Op::Nothing),
            _ if key.get("tcp option").is_some() => self.ops.push(Op::Nothing),
            _ => {
                let field = key.get("payload").and_then(|p| text_of(p, "field"));
                match field {
                    Some("dscp" | "ecn" | "ttl" | "hoplimit") => self.ops.push(Op::Nothing),
                    _ => self.unknown("a part of the packet is changed"),
                }
            }
        }
    }

    /// `update @set { ip saddr }`.
    fn fill(&mut self, json: &Json) {
        let name = text_of(json, "set").and_then(|n| n.strip_prefix('@'));
        let known = name.filter(|name| self.table.sets.contains_key(*name));
        let plain = matches!(text_of(json, "op"), Some("add" | "update"))
            && json.get("stmt").is_none()
            && json["elem"].get("elem").is_none();
        let field = self.field(&json["elem"]);
        let Some(name) = known else {
            return self.condition("a set that is not there");
        };
        self.fills.push(name.into());
        if plain && field == Some(Field::Saddr) {
            self.ops.push(Op::AffinityUpdate { list: name.into() });
        } else {
            self.condition(&format!("dynset {name}"));
        }
    }
}

/// mark = (mark & and) ^ xor
fn mark(json: &Json) -> Option<(u32, u32)> {
    if let Some(n) = json.as_u64() {
        return Some((0, u32::try_from(n).ok()?));
    }
    if json.get("meta").and_then(|m| text_of(m, "key")) == Some("mark") {
        return Some((u32::MAX, 0));
    }
    let (op, parts) = json.as_object()?.iter().next()?;
    let [inner, constant] = parts.as_array()?.as_slice() else {
        return None;
    };
    let (and, xor) = mark(inner)?;
    let n = u32::try_from(constant.as_u64()?).ok()?;
    Some(match op.as_str() {
        "&" => (and & n, xor & n),
        "|" => (and & !n, xor & !n | n),
        "^" => (and, xor ^ n),
        _ => return None,
    })
}

/// Look-ups of the source in a set that packets fill ask whether this client was here before; of
/// anything else they are unknown.
pub(super) fn remembered(table: &mut Table, name: &str, timeout_ms: Option<u64>) {
    let rules = table.chains.iter_mut().flat_map(|c| &mut c.rules);
    for op in rules.flat_map(|r| r.ops.iter_mut()) {
        let new = match op {
            Op::Lookup(l) if *l.set == *name && l.key == [Field::Saddr] && !l.negated => {
                Op::AffinityCheck {
                    list: name.into(),
                    seconds: timeout_ms.and_then(|ms| u32::try_from(ms / 1_000).ok()),
                }
            }
            Op::Lookup(l) if *l.set == *name => {
                Op::UnknownMatch(format!("look-up in a set that packets fill: {name}").into())
            }
            Op::VerdictMap(l) if *l.set == *name => {
                Op::UnknownStatement(format!("a map that packets fill: {name}").into())
            }
            _ => continue,
        };
        *op = new;
    }
}
