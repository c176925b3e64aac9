//! Constants and sets.

use super::{flags, handle, text_of, unread};
use crate::netfilter::ruleset::{Data, Element, Field, Set, Value, Verdict};
use ipnet::IpNet;
use serde_json::Value as Json;
use std::net::IpAddr;
use std::sync::Arc;

/// What the constants of a field, or of a part of a set's key, are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Address,
    Protocol,
    Port,
    Mark,
    Link,
    CtState,
    CtStatus,
    AddressType,
    PacketType,
    Nfproto,
    EtherType,
    Index,
}

impl Kind {
    /// By a set's type (nft's datatypes).
    pub fn of_type(name: &str) -> Option<Kind> {
        Some(match name {
            "ipv4_addr" | "ipv6_addr" => Kind::Address,
            "inet_proto" => Kind::Protocol,
            "inet_service" => Kind::Port,
            "mark" => Kind::Mark,
            "ifname" => Kind::Link,
            "ct_state" => Kind::CtState,
            "ct_status" => Kind::CtStatus,
            "fib_addrtype" => Kind::AddressType,
            "pkt_type" => Kind::PacketType,
            "nf_proto" => Kind::Nfproto,
            _ => return None,
        })
    }

    /// By a field.
    pub fn of(field: &Field) -> Option<Kind> {
        Some(match field {
            Field::Saddr | Field::Daddr | Field::CtOriginalDaddr => Kind::Address,
            Field::L4proto => Kind::Protocol,
            Field::Sport | Field::Dport => Kind::Port,
            Field::Mark => Kind::Mark,
            Field::Iifname | Field::Oifname => Kind::Link,
            Field::CtState => Kind::CtState,
            Field::CtStatus => Kind::CtStatus,
            Field::SaddrType | Field::DaddrType => Kind::AddressType,
            Field::PacketType => Kind::PacketType,
            Field::Nfproto => Kind::Nfproto,
            Field::EtherType => Kind::EtherType,
            Field::VirtualPort | Field::Other(_) => return None,
        })
    }

    fn word(self, word: &str) -> Option<u64> {
        Some(match (self, word) {
            (Kind::Protocol, "tcp") => 6,
            (Kind::Protocol, "udp") => 17,
            (Kind::Protocol, "sctp") => 132,
            (Kind::Protocol, "icmp") => 1,
            (Kind::Protocol, "ipv6-icmp" | "icmpv6") => 58,
            (Kind::Protocol, "igmp") => 2,
            (Kind::Protocol, "esp") => 50,
            (Kind::Protocol, "ah") => 51,
            (Kind::Protocol, "gre") => 47,
            (Kind::Protocol, "dccp") => 33,
            (Kind::Protocol, "udplite") => 136,
            (Kind::Protocol, "vrrp") => 112,
            (Kind::CtState, "invalid") => 1,
            (Kind::CtState, "established") => 2,
            (Kind::CtState, "related") => 4,
            (Kind::CtState, "new") => 8,
            (Kind::CtState, "untracked") => 64,
            (Kind::CtStatus, "expected") => 1,
            (Kind::CtStatus, "seen-reply") => 2,
            (Kind::CtStatus, "assured") => 4,
            (Kind::CtStatus, "confirmed") => 8,
            (Kind::CtStatus, "snat") => 0x10,
            (Kind::CtStatus, "dnat") => 0x20,
            (Kind::CtStatus, "dying") => 0x200,
            (Kind::AddressType, "unspec") => 0,
            (Kind::AddressType, "unicast") => 1,
            (Kind::AddressType, "local") => 2,
            (Kind::AddressType, "broadcast") => 3,
            (Kind::AddressType, "anycast") => 4,
            (Kind::AddressType, "multicast") => 5,
            (Kind::AddressType, "blackhole") => 6,
            (Kind::AddressType, "unreachable") => 7,
            (Kind::AddressType, "prohibit") => 8,
            (Kind::PacketType, "host" | "unicast") => 0,
            (Kind::PacketType, "broadcast") => 1,
            (Kind::PacketType, "multicast") => 2,
            (Kind::PacketType, "other") => 3,
            (Kind::Nfproto, "ipv4") => 2,
            (Kind::Nfproto, "ipv6") => 10,
            (Kind::EtherType, "ip") => 0x0800,
            (Kind::EtherType, "ip6") => 0x86dd,
            _ => return None,
        })
    }

    /// A constant as one number; bits of several words.
    pub fn bits(self, json: &Json) -> Option<u64> {
        match json {
            Json::Number(n) => n.as_u64(),
            Json::String(word) => self.word(word),
            Json::Array(all) => all
                .iter()
                .try_fold(0, |sum, one| Some(sum | self.bits(one)?)),
            Json::Object(o) => o
                .get("|")?
                .as_array()?
                .iter()
                .try_fold(0, |sum, one| Some(sum | self.bits(one)?)),
            _ => None,
        }
    }

    /// One value: a constant, a prefix or a range.
    pub fn value(self, json: &Json) -> Option<Value> {
        if let Some(range) = json.get("range") {
            let [first, last] = range.as_array()?.as_slice() else {
                return None;
            };
            return Some(match self {
                Kind::Address => Value::addresses(address(first)?, address(last)?),
                Kind::Link => return None,
                _ => Value::Number(self.bits(first)?, self.bits(last)?),
            });
        }
        if let Some(prefix) = json.get("prefix") {
            let length = u8::try_from(prefix["len"].as_u64()?).ok()?;
            let net = IpNet::new(address(&prefix["addr"])?, length).ok()?;
            return (self == Kind::Address).then(|| Value::Prefix(net.trunc()));
        }
        Some(match self {
            Kind::Address => Value::Prefix(address(json)?.into()),
            Kind::Link => {
                let name = json.as_str()?;
                match name.strip_suffix('*') {
                    // A star that is a part of the name.
                    Some(name) if name.ends_with('\\') => return None,
                    Some(prefix) => Value::Name(prefix.into(), true),
                    None => Value::Name(name.into(), false),
                }
            }
            _ => {
                let n = self.bits(json)?;
                Value::Number(n, n)
            }
        })
    }
}

/// An address that is written as one.
pub(super) fn address(json: &Json) -> Option<IpAddr> {
    json.as_str()?.parse().ok()
}

/// `{"jump": {"target": "chain"}}` and its like.
pub(super) fn verdict(json: &Json) -> Option<Verdict> {
    let (name, content) = json.as_object()?.iter().next()?;
    let target = || text_of(content, "target").map(Arc::from);
    Some(match name.as_str() {
        "accept" => Verdict::Accept,
        "drop" => Verdict::Drop,
        "return" => Verdict::Return,
        "continue" => Verdict::Continue,
        "jump" => Verdict::Jump(target()?),
        "goto" => Verdict::Goto(target()?),
        "queue" => Verdict::Queue,
        _ => return None,
    })
}

/// A named set or map.
pub(super) fn set(json: &Json, name: &str, map: bool) -> Set {
    let kinds = types(&json["type"]);
    let data = json.get("map");
    let none = Vec::new();
    let list = json["elem"].as_array().unwrap_or(&none);
    let mut set = match &kinds {
        Some(kinds) => filled(name, kinds, map, list),
        None => unread(name, map, "a set whose type is not understood"),
    };
    if map && data.is_none() {
        set.unread = Some("a map of nothing".into());
    }
    set.handle = handle(json);
    set.dynamic = flags(json).any(|f| f == "dynamic");
    set.timeout_ms = json["timeout"].as_u64().map(|s| s.saturating_mul(1_000));
    set
}

/// `"ipv4_addr"` or a list of such words.
fn types(json: &Json) -> Option<Vec<Kind>> {
    match json {
        Json::String(one) => Some(vec![Kind::of_type(one)?]),
        Json::Array(all) => all.iter().map(|one| Kind::of_type(one.as_str()?)).collect(),
        _ => None,
    }
}

/// A set of these elements, with this kind of key.
pub(super) fn filled(name: &str, kinds: &[Kind], map: bool, list: &[Json]) -> Set {
    let mut set = unread(name, map, "");
    set.unread = None;
    for one in list {
        match element(one, kinds, map) {
            Some(element) => set.elements.push(element),
            None => set.unread = Some("elements not understood".into()),
        }
    }
    set
}

fn element(json: &Json, kinds: &[Kind], map: bool) -> Option<Element> {
    let (key, data) = if map {
        match json.as_array()?.as_slice() {
            [key, data] => (key, Some(data)),
            _ => return None,
        }
    } else {
        (json, None)
    };
    // With a comment or a time the key stands deeper.
    let (key, comment) = match key.get("elem") {
        Some(inner) => (inner.get("val")?, text_of(inner, "comment")),
        None => (key, None),
    };
    let catch_all = key.as_str() == Some("*");
    let values = if catch_all {
        Vec::new()
    } else if let Some(parts) = key.get("concat").and_then(Json::as_array) {
        if parts.len() != kinds.len() {
            return None;
        }
        let all = parts.iter().zip(kinds).map(|(part, kind)| kind.value(part));
        all.collect::<Option<_>>()?
    } else {
        let [kind] = kinds else { return None };
        vec![kind.value(key)?]
    };
    Some(Element {
        key: values,
        data: match data {
            Some(json) => Some(target(json)?),
            None => None,
        },
        comment: comment.map(Arc::from),
        catch_all,
    })
}

/// What a map's element maps to.
fn target(json: &Json) -> Option<Data> {
    if let Some(found) = verdict(json) {
        return Some(Data::Verdict(found));
    }
    if let Some([host, port]) = json
        .get("concat")
        .and_then(Json::as_array)
        .map(Vec::as_slice)
    {
        let port = u16::try_from(port.as_u64()?).ok()?;
        return Some(Data::Endpoint(address(host)?, Some(port)));
    }
    match json {
        Json::Number(n) => n.as_u64().map(Data::Number),
        _ => address(json).map(|a| Data::Endpoint(a, None)),
    }
}
