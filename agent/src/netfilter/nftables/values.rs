//! Bytes of registers and elements into values, by nft's datatype table (nft `include/datatype.h`).

use crate::netfilter::ruleset::{Field, Value};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// Byte order of a number in a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Big,
    Host,
}

/// What the bytes of one key field or data field are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Ipv4,
    Ipv6,
    Number(Order),
    Name,
    Raw,
}

/// A datatype: its kind and its width in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Type {
    pub kind: Kind,
    pub width: usize,
}

/// nft's number for `integer`, whose byte order is said elsewhere.
pub(super) const TYPE_INTEGER: u32 = 4;

/// The datatype of that number; `None` for those without a fixed width.
pub(super) fn datatype(number: u32) -> Option<Type> {
    let of = |kind, width| Some(Type { kind, width });
    match number {
        TYPE_INTEGER => of(Kind::Number(Order::Big), 4),
        7 => of(Kind::Ipv4, 4),
        8 => of(Kind::Ipv6, 16),
        6 | 9 => of(Kind::Raw, 6),
        10 | 11 | 13 => of(Kind::Number(Order::Big), 2),
        // nf_proto, inet_protocol, icmp_type, tcp_flag, dccp_pkttype, mh_type, ct_dir, icmpv6_type,
        // pkttype, icmp codes, dscp, ecn, boolean, igmp_type, day
        2 | 12 | 14..=17 | 27 | 29 | 31..=34 | 36 | 37 | 39 | 42 | 45 => {
            of(Kind::Number(Order::Big), 1)
        }
        // arphrd
        21 => of(Kind::Number(Order::Host), 2),
        // mark, ifindex, realm, classid, uid, gid, ct_state, ct_status, devgroup, fib_addrtype,
        // ct_event
        19 | 20 | 22..=26 | 28 | 35 | 38 | 40 => of(Kind::Number(Order::Host), 4),
        30 => of(Kind::Raw, 16),
        41 => of(Kind::Name, 16),
        _ => None,
    }
}

/// The datatypes in a `NFTA_SET_KEY_TYPE` or `NFTA_SET_DATA_TYPE`, six bits each, first field in
/// the highest bits.
pub(super) fn datatypes(packed: u32) -> Vec<u32> {
    (0..6)
        .rev()
        .map(|i| (packed >> (6 * i)) & 0x3f)
        .skip_while(|n| *n == 0)
        .collect()
}

/// The type in which a packet's field is kept in a set without a known key type.
pub(super) fn type_of_field(field: &Field, width: usize) -> Option<Type> {
    let kind = match field {
        Field::Saddr | Field::Daddr | Field::CtOriginalDaddr => match width {
            4 => Kind::Ipv4,
            16 => Kind::Ipv6,
            _ => return None,
        },
        Field::L4proto
        | Field::Sport
        | Field::Dport
        | Field::Nfproto
        | Field::EtherType
        | Field::PacketType => Kind::Number(Order::Big),
        Field::Mark | Field::CtState | Field::CtStatus | Field::SaddrType | Field::DaddrType => {
            Kind::Number(Order::Host)
        }
        Field::Iifname | Field::Oifname => Kind::Name,
        Field::VirtualPort | Field::Other(_) => return None,
    };
    Some(Type { kind, width })
}

/// At most 8 bytes as a number.
pub(super) fn number(bytes: &[u8], order: Order) -> Option<u64> {
    let mut wide = [0; 8];
    if bytes.is_empty() || bytes.len() > 8 {
        return None;
    }
    wide[8 - bytes.len()..].copy_from_slice(bytes);
    if order == Order::Host && cfg!(target_endian = "little") {
        wide[8 - bytes.len()..].reverse();
    }
    Some(u64::from_be_bytes(wide))
}

/// 4 or 16 bytes as an address.
pub(super) fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(v4).into());
    }
    <[u8; 16]>::try_from(bytes)
        .ok()
        .map(|v6| Ipv6Addr::from(v6).into())
}

/// One value of that type; `Bytes` where they do not fit it.
pub(super) fn value(kind: Type, bytes: &[u8]) -> Value {
    range(kind, bytes, bytes)
}

/// The values from first to last, both included.
pub(super) fn range(kind: Type, first: &[u8], last: &[u8]) -> Value {
    let found = match kind.kind {
        Kind::Ipv4 | Kind::Ipv6 => match (address(first), address(last)) {
            (Some(first), Some(last)) => address_range(first, last),
            _ => None,
        },
        Kind::Number(order) => match (number(first, order), number(last, order)) {
            (Some(first), Some(last)) if first <= last => Some(Value::Number(first, last)),
            _ => None,
        },
        Kind::Name if first == last => Some(name(first)),
        Kind::Name | Kind::Raw => None,
    };
    found.unwrap_or_else(|| raw(first, last))
}

fn raw(first: &[u8], last: &[u8]) -> Value {
    let mut bytes = first.to_vec();
    if first != last {
        bytes.extend_from_slice(last);
    }
    Value::Bytes(bytes.into())
}

/// A link's name: with a NUL the whole name, without one the beginning of names (`eth*`): the
/// kernel compares as many bytes as are given.
pub(super) fn name(bytes: &[u8]) -> Value {
    let text: Arc<str> = super::attributes::text(bytes).into();
    Value::Name(text, !bytes.contains(&0))
}

/// As a prefix where one says it.
pub(super) fn address_range(first: IpAddr, last: IpAddr) -> Option<Value> {
    let (low, high, width) = match (first, last) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (u128::from(a.to_bits()), u128::from(b.to_bits()), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits(), b.to_bits(), 128),
        _ => return None,
    };
    if low > high {
        return None;
    }
    // A prefix: the bits that differ are the lowest ones, all 0 in the first and all 1 in the last.
    let differ = low ^ high;
    let host_bits = 128 - differ.leading_zeros();
    let aligned = differ.count_ones() == host_bits && low & differ == 0;
    let length = u8::try_from(width - host_bits.min(width)).ok()?;
    if aligned && let Some(prefix) = prefix(first, length) {
        return Some(Value::Prefix(prefix));
    }
    Some(Value::addresses(first, last))
}

/// The prefix of that length that holds the address.
pub(super) fn prefix(address: IpAddr, length: u8) -> Option<IpNet> {
    match address {
        IpAddr::V4(a) => Ipv4Net::new(a, length).ok().map(|n| n.trunc().into()),
        IpAddr::V6(a) => Ipv6Net::new(a, length).ok().map(|n| n.trunc().into()),
    }
}

/// Length of the mask's run of ones from the left; `None` if there are ones behind it.
pub(super) fn mask_length(mask: &[u8]) -> Option<u8> {
    let mut length = 0u8;
    let mut ended = false;
    for byte in mask {
        let ones = byte.leading_ones();
        if ended && *byte != 0 || ones != byte.count_ones() {
            return None;
        }
        ended |= ones < 8;
        length = length.checked_add(u8::try_from(ones).ok()?)?;
    }
    Some(length)
}
