//! The part of an entry that looks at the packet's own header: `struct ipt_ip` and
//! `struct ip6t_ip6`. Here it is fields of a structure; iptables-nft writes expressions for it.

use super::super::Blob;
use crate::netfilter::nftables::attributes::text;
use crate::netfilter::ruleset::{Field, Match, Op, TableFamily, Value};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::net::{Ipv4Addr, Ipv6Addr};

// IPT_INV_*, IP6T_INV_*
const INV_IN: u8 = 0x01;
const INV_OUT: u8 = 0x02;
const INV_SOURCE: u8 = 0x08;
const INV_DESTINATION: u8 = 0x10;
const INV_PROTOCOL: u8 = 0x40;

/// Size of a link's name (`IFNAMSIZ`).
const LINK: usize = 16;

/// Reads its conditions into `ops`. True for `IPT_F_GOTO`: a jump does not come back. `None` where
/// the entry is too short.
pub(super) fn read(family: TableFamily, entry: &[u8], ops: &mut Vec<Op>) -> Option<bool> {
    let b = Blob(entry);
    let v6 = family == TableFamily::Ip6;
    let width = if v6 { 16 } else { 4 };
    let links = 4 * width;
    let protocol = links + 4 * LINK;
    let (flags, inverted) = if v6 {
        (b.u8(protocol + 3)?, b.u8(protocol + 4)?)
    } else {
        (b.u8(protocol + 2)?, b.u8(protocol + 3)?)
    };
    for (field, at, inversion, what) in [
        (Field::Saddr, 0, INV_SOURCE, "source address by a mask"),
        (
            Field::Daddr,
            width,
            INV_DESTINATION,
            "destination address by a mask",
        ),
    ] {
        let (address, mask) = (b.bytes(at, width)?, b.bytes(at + 2 * width, width)?);
        let negated = inverted & inversion != 0;
        if mask.iter().all(|m| *m == 0) && !negated {
            continue;
        }
        ops.push(match prefix(address, mask) {
            Some(net) => is(field, Value::Prefix(net), negated),
            None => Op::UnknownMatch(what.into()),
        });
    }
    for (field, at, inversion) in [
        (Field::Iifname, links, INV_IN),
        (Field::Oifname, links + LINK, INV_OUT),
    ] {
        let (name, mask) = (b.bytes(at, LINK)?, b.bytes(at + 2 * LINK, LINK)?);
        let negated = inverted & inversion != 0;
        if mask.iter().all(|m| *m == 0) && !negated {
            continue;
        }
        ops.push(match link(name, mask) {
            Some(value) => is(field, value, negated),
            None => Op::UnknownMatch("link name by a mask".into()),
        });
    }
    let number = u64::from(b.u16(protocol)?);
    // For IPv6 the number counts only with IP6T_F_PROTO.
    if number != 0 && (!v6 || flags & 0x01 != 0) {
        let negated = inverted & INV_PROTOCOL != 0;
        ops.push(is(Field::L4proto, Value::Number(number, number), negated));
    }
    let goto = if v6 { 0x04 } else { 0x02 };
    if !v6 && flags & 0x01 != 0 {
        ops.push(Op::UnknownMatch("fragments".into()));
    }
    // IP6T_F_TOS is set with IP6T_F_PROTO's kind of flags, and the kernel does not look at it.
    let known = if v6 { 0x07 } else { 0x03 };
    if flags & !known != 0 {
        ops.push(Op::UnknownMatch(format!("flags {flags:#x}").into()));
    }
    Some(flags & goto != 0)
}

fn is(field: Field, value: Value, negated: bool) -> Op {
    Op::Match(Match {
        field,
        mask: None,
        any_of: value.into(),
        negated,
    })
}

/// `None` for a mask with holes, and for bits outside the mask (for IPv4 such an address fits none).
fn prefix(address: &[u8], mask: &[u8]) -> Option<IpNet> {
    if address.iter().zip(mask).any(|(a, m)| a & !m != 0) {
        return None;
    }
    if let (Some(address), Some(mask)) = (address.first_chunk::<16>(), mask.first_chunk::<16>()) {
        let net = Ipv6Net::with_netmask(Ipv6Addr::from(*address), Ipv6Addr::from(*mask));
        return net.ok().map(Into::into);
    }
    let (address, mask) = (address.first_chunk::<4>()?, mask.first_chunk::<4>()?);
    let net = Ipv4Net::with_netmask(Ipv4Addr::from(*address), Ipv4Addr::from(*mask));
    net.ok().map(Into::into)
}

/// The mask covers the name and its NUL, or without the NUL every name that begins with it (`eth+`).
fn link(name: &[u8], mask: &[u8]) -> Option<Value> {
    let covered = mask.iter().take_while(|m| **m == 0xff).count();
    if mask[covered..].iter().any(|m| *m != 0) {
        return None;
    }
    let name = &name[..covered];
    let value = |bytes: &[u8], prefix: bool| {
        // What is no UTF-8 is no name that the kernel would show either.
        (bytes.is_ascii()).then(|| Value::Name(text(bytes).into(), prefix))
    };
    match name.iter().position(|b| *b == 0) {
        Some(end) if name[end..].iter().all(|b| *b == 0) => value(&name[..end], false),
        Some(_) => None,
        None if covered < LINK => value(name, true),
        None => None,
    }
}
