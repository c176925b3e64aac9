//! Matches.

use super::Blob;
use crate::netfilter::nftables::attributes::text;
use crate::netfilter::ruleset::{Field, Match, Op, TableFamily, Value, Values};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// Adds the ops of one match (`-m NAME`), and gives its text if it is a comment. A match that is not understood,
/// or whose blob is too short, is one unknown condition with its name.
pub fn decode_match(
    family: TableFamily,
    name: &str,
    revision: u32,
    blob: &[u8],
    ops: &mut Vec<Op>,
) -> Option<Arc<str>> {
    let b = Blob(blob);
    let found = match (name, revision) {
        ("comment", 0) => return Some(text(blob).into()),
        // Counts only.
        ("nfacct", _) => Some(Vec::new()),
        ("tcp", 0) => tcp(&b),
        ("udp" | "udplite", 0) => udp(&b),
        ("sctp", 0) => sctp(&b),
        ("multiport", 1) => multiport(&b),
        ("conntrack", 1..=3) => conntrack(&b, family, revision),
        ("state", 0) => state(&b),
        ("statistic", 0) => statistic(&b),
        ("recent", 0 | 1) => recent(&b, family, revision),
        ("addrtype", 0 | 1) => addrtype(&b, revision),
        ("mark", 1) => mark(&b),
        ("iprange", 1) => iprange(&b, family),
        ("pkttype", 0) => pkttype(&b),
        ("set", 1..=4) => set(&b, revision),
        ("ipvs", 0) => ipvs(&b, family),
        ("physdev", 0) => physdev(&b),
        _ => None,
    };
    match found {
        Some(found) => ops.extend(found),
        None => ops.push(unknown(&format!("xt match {name}.{revision}"))),
    }
    None
}

fn unknown(what: &str) -> Op {
    Op::UnknownMatch(what.into())
}

fn is(field: Field, mask: Option<u64>, any_of: impl Into<Values>, negated: bool) -> Op {
    Op::Match(Match {
        field,
        mask,
        any_of: any_of.into(),
        negated,
    })
}

fn between(first: u16, last: u16) -> Value {
    Value::Number(first.into(), last.into())
}

/// No op for "any port".
fn ports(ops: &mut Vec<Op>, field: Field, first: u16, last: u16, negated: bool) {
    if (first, last) != (0, u16::MAX) || negated {
        ops.push(is(field, None, between(first, last), negated));
    }
}

/// `struct xt_tcp`
fn tcp(b: &Blob<'_>) -> Option<Vec<Op>> {
    let invert = b.u8(11)?;
    let mut ops = Vec::new();
    ports(
        &mut ops,
        Field::Sport,
        b.u16(0)?,
        b.u16(2)?,
        invert & 1 != 0,
    );
    ports(
        &mut ops,
        Field::Dport,
        b.u16(4)?,
        b.u16(6)?,
        invert & 2 != 0,
    );
    if b.u8(9)? != 0 || invert & 4 != 0 {
        ops.push(unknown("tcp flags"));
    }
    if b.u8(8)? != 0 || invert & 8 != 0 {
        ops.push(unknown("tcp option"));
    }
    Some(ops)
}

/// `struct xt_udp`
fn udp(b: &Blob<'_>) -> Option<Vec<Op>> {
    let invert = b.u8(8)?;
    let mut ops = Vec::new();
    ports(
        &mut ops,
        Field::Sport,
        b.u16(0)?,
        b.u16(2)?,
        invert & 1 != 0,
    );
    ports(
        &mut ops,
        Field::Dport,
        b.u16(4)?,
        b.u16(6)?,
        invert & 2 != 0,
    );
    Some(ops)
}

/// `struct xt_sctp_info`: its `chunkmap` is 64 words, one for each four of 256 chunk types.
fn sctp(b: &Blob<'_>) -> Option<Vec<Op>> {
    let (flags, invert) = (b.u32(284)?, b.u32(288)?);
    let mut ops = Vec::new();
    if flags & 1 != 0 {
        let field = Field::Sport;
        ops.push(is(
            field,
            None,
            between(b.u16(4)?, b.u16(6)?),
            invert & 1 != 0,
        ));
    }
    if flags & 2 != 0 {
        let field = Field::Dport;
        ops.push(is(
            field,
            None,
            between(b.u16(0)?, b.u16(2)?),
            invert & 2 != 0,
        ));
    }
    if flags & 4 != 0 {
        ops.push(unknown("sctp chunk types"));
    }
    Some(ops)
}

/// `struct xt_multiport_v1`
fn multiport(b: &Blob<'_>) -> Option<Vec<Op>> {
    let count = usize::from(b.u8(1)?);
    if count > 15 {
        return None;
    }
    let mut values = Vec::new();
    let mut i = 0;
    while i < count {
        let first = b.u16(2 + 2 * i)?;
        if b.u8(32 + i)? != 0 && i + 1 < count {
            values.push(between(first, b.u16(2 + 2 * (i + 1))?));
            i += 2;
        } else {
            values.push(between(first, first));
            i += 1;
        }
    }
    let field = match b.u8(0)? {
        0 => Field::Sport,
        1 => Field::Dport,
        _ => return Some(vec![unknown("multiport, either port")]),
    };
    Some(vec![is(field, None, values, b.u8(47)? != 0)])
}

/// `struct xt_conntrack_mtinfo1` to `3`
fn conntrack(b: &Blob<'_>, family: TableFamily, revision: u32) -> Option<Vec<Op>> {
    let (flags, invert) = (b.u16(146)?, b.u16(148)?);
    let (state, status) = if revision == 1 {
        (u16::from(b.u8(150)?), u16::from(b.u8(151)?))
    } else {
        (b.u16(150)?, b.u16(152)?)
    };
    let mut ops = Vec::new();
    if flags & 0x1 != 0 {
        // IP_CT_NUMBER is 5: SNAT bit 6, DNAT bit 7, UNTRACKED bit 8; below as in NF_CT_STATE_*.
        let virtual_bits = state & 0xc0;
        let real = u64::from(state & 0x0f) | if state & 0x100 != 0 { 64 } else { 0 };
        let negated = invert & 0x1 == 0;
        let zero = Value::Number(0, 0);
        let of_state = |negated| is(Field::CtState, Some(real), zero.clone(), negated);
        // IPS_SRC_NAT 0x10, IPS_DST_NAT 0x20
        let status_bits = u64::from(virtual_bits >> 2);
        let of_status = |negated| is(Field::CtStatus, Some(status_bits), zero.clone(), negated);
        match (real, virtual_bits) {
            (0, 0) => return None,
            (_, 0) => ops.push(of_state(negated)),
            (0, _) => ops.push(of_status(negated)),
            // `! --ctstate RELATED,ESTABLISHED,DNAT` of KUBE-FIREWALL: none of the bits of either.
            _ if !negated => ops.extend([of_state(false), of_status(false)]),
            _ => ops.push(unknown("conntrack state or nat")),
        }
    }
    if flags & 0x2 != 0 {
        let protocol = u64::from(b.u16(136)?);
        let value = Value::Number(protocol, protocol);
        ops.push(is(Field::L4proto, None, value, invert & 0x2 != 0));
    }
    if flags & 0x8 != 0 {
        ops.push(match prefix(family, b.bytes(32, 16)?, b.bytes(48, 16)?) {
            Some(net) => is(
                Field::CtOriginalDaddr,
                None,
                Value::Prefix(net),
                invert & 0x8 != 0,
            ),
            None => unknown("conntrack original destination by mask"),
        });
    }
    if flags & 0x40 != 0 {
        let mask = Some(u64::from(status));
        let negated = invert & 0x40 == 0;
        ops.push(is(Field::CtStatus, mask, Value::Number(0, 0), negated));
    }
    // Everything else: original source, reply addresses, expiry, ports, direction.
    for (bit, what) in [
        (0x4, "conntrack original source"),
        (0x10, "conntrack reply source"),
        (0x20, "conntrack reply destination"),
        (0x80, "conntrack expiry"),
        (0xf00, "conntrack ports"),
        (0x1000, "conntrack direction"),
        (0xc000 & !0x2000, "conntrack"),
    ] {
        if flags & bit != 0 {
            ops.push(unknown(what));
        }
    }
    Some(ops)
}

fn prefix(family: TableFamily, address: &[u8], mask: &[u8]) -> Option<IpNet> {
    match family {
        TableFamily::Ip => {
            let address = Ipv4Addr::from(*address.first_chunk::<4>()?);
            let mask = Ipv4Addr::from(*mask.first_chunk::<4>()?);
            Ipv4Net::with_netmask(address, mask)
                .ok()
                .map(|n| n.trunc().into())
        }
        TableFamily::Ip6 => {
            let address = Ipv6Addr::from(*address.first_chunk::<16>()?);
            let mask = Ipv6Addr::from(*mask.first_chunk::<16>()?);
            Ipv6Net::with_netmask(address, mask)
                .ok()
                .map(|n| n.trunc().into())
        }
        _ => None,
    }
}

/// `struct xt_state_info`: UNTRACKED is bit 6 here.
fn state(b: &Blob<'_>) -> Option<Vec<Op>> {
    let mask = Some(u64::from(b.u32(0)?) & 0x4f);
    Some(vec![is(Field::CtState, mask, Value::Number(0, 0), true)])
}

/// `struct xt_statistic_info`
fn statistic(b: &Blob<'_>) -> Option<Vec<Op>> {
    let (mode, flags) = (b.u16(0)?, b.u16(2)?);
    let inverted = flags & 1 != 0;
    match mode {
        0 => {
            let numerator = b.u32(4)?.min(1 << 31);
            let numerator = if inverted {
                (1 << 31) - numerator
            } else {
                numerator
            };
            Some(vec![Op::Probability { numerator }])
        }
        1 if !inverted => {
            // The kernel counts from 0 up to this number.
            let every = b.u32(4)?.saturating_add(1);
            Some(vec![Op::Nth { every }])
        }
        1 => Some(vec![unknown("statistic nth, inverted")]),
        _ => None,
    }
}

/// `struct xt_recent_mtinfo`, `_v1`
fn recent(b: &Blob<'_>, family: TableFamily, revision: u32) -> Option<Vec<Op>> {
    let (seconds, hits) = (b.u32(0)?, b.u32(4)?);
    let (check, invert) = (b.u8(8)?, b.u8(9)?);
    let list: Arc<str> = text(b.bytes(10, 200)?).into();
    let destination = b.u8(210)? != 0;
    let width = if family == TableFamily::Ip6 { 16 } else { 4 };
    let masked = revision == 1 && b.bytes(212, width)?.iter().any(|byte| *byte != 0xff);
    if invert != 0 || destination || masked || hits != 0 {
        return Some(vec![unknown(&format!("recent {list}"))]);
    }
    let seconds = if seconds == 0 { None } else { Some(seconds) };
    // XT_RECENT_*: CHECK 1, SET 2, UPDATE 4; REAP 32 only tidies up
    match check & !32 {
        1 => Some(vec![Op::AffinityCheck { list, seconds }]),
        2 => Some(vec![Op::AffinityUpdate { list }]),
        4 => Some(vec![
            Op::AffinityCheck {
                list: list.clone(),
                seconds,
            },
            Op::AffinityUpdate { list },
        ]),
        _ => Some(vec![unknown(&format!("recent {list}"))]),
    }
}

/// `struct xt_addrtype_info`, `_v1`
fn addrtype(b: &Blob<'_>, revision: u32) -> Option<Vec<Op>> {
    let (source, destination) = (b.u16(0)?, b.u16(2)?);
    let (invert_source, invert_destination, by_link) = if revision == 0 {
        (b.u32(4)? != 0, b.u32(8)? != 0, false)
    } else {
        let flags = b.u32(4)?;
        (flags & 1 != 0, flags & 2 != 0, flags & 0xc != 0)
    };
    if by_link {
        return Some(vec![unknown("addrtype limited to a link")]);
    }
    let mut ops = Vec::new();
    for (mask, field, negated) in [
        (source, Field::SaddrType, invert_source),
        (destination, Field::DaddrType, invert_destination),
    ] {
        if mask != 0 {
            let types = (0..16).filter(|bit| mask & (1 << bit) != 0);
            let values: Values = types.map(|t| Value::Number(t, t)).collect();
            ops.push(is(field, None, values, negated));
        }
    }
    Some(ops)
}

/// `struct xt_mark_mtinfo1`
fn mark(b: &Blob<'_>) -> Option<Vec<Op>> {
    let (mark, mask) = (u64::from(b.u32(0)?), u64::from(b.u32(4)?));
    Some(vec![is(
        Field::Mark,
        Some(mask),
        Value::Number(mark, mark),
        b.u8(8)? != 0,
    )])
}

/// `struct xt_iprange_mtinfo`
fn iprange(b: &Blob<'_>, family: TableFamily) -> Option<Vec<Op>> {
    let flags = b.u8(64)?;
    let address = |at: usize| -> Option<IpAddr> {
        let bytes = b.bytes(at, 16)?;
        match family {
            TableFamily::Ip => Some(Ipv4Addr::from(*bytes.first_chunk::<4>()?).into()),
            TableFamily::Ip6 => Some(Ipv6Addr::from(*bytes.first_chunk::<16>()?).into()),
            _ => None,
        }
    };
    let mut ops = Vec::new();
    if flags & 0x01 != 0 {
        let range = Value::addresses(address(0)?, address(16)?);
        ops.push(is(Field::Saddr, None, range, flags & 0x10 != 0));
    }
    if flags & 0x02 != 0 {
        let range = Value::addresses(address(32)?, address(48)?);
        ops.push(is(Field::Daddr, None, range, flags & 0x20 != 0));
    }
    Some(ops)
}

/// `struct xt_pkttype_info`
fn pkttype(b: &Blob<'_>) -> Option<Vec<Op>> {
    let kind = u64::from(b.u32(0)?);
    Some(vec![is(
        Field::PacketType,
        None,
        Value::Number(kind, kind),
        b.u32(4)? != 0,
    )])
}

/// `struct xt_set_info`, the beginning of `xt_set_info_match_v1`, `_v3` and `_v4`.
fn set(b: &Blob<'_>, revision: u32) -> Option<Vec<Op>> {
    let (index, dimensions, flags) = (b.u16(0)?, b.u8(2)?, b.u8(3)?);
    // IPSET_INV_MATCH, and IPSET_DIM_ONE_SRC and its followers, by dimension
    let sources: Vec<bool> = (1..=u32::from(dimensions.min(6)))
        .map(|dimension| flags & (1u8 << dimension) != 0)
        .collect();
    // IPSET_RETURN_NOMATCH, and conditions on an element's counters
    let odd = dimensions > 6 || flags & 0x80 != 0 || (revision >= 3 && counts(b, revision)?);
    if odd {
        return Some(vec![unknown(&format!("ipset number {index}"))]);
    }
    Some(vec![crate::ipvs::rules::lookup(
        index,
        &sources,
        flags & 1 != 0,
    )])
}

/// Does a match of `struct xt_set_info_match_v3` or `_v4` look at counters? Either has two comparisons
/// (`struct ip_set_counter_match0`: operator, then value; `struct ip_set_counter_match`: value, then
/// operator), and flags behind.
fn counts(b: &Blob<'_>, revision: u32) -> Option<bool> {
    let operators: [usize; 2] = if revision == 3 { [8, 24] } else { [16, 32] };
    let mut any = false;
    for at in operators {
        any |= b.u8(at)? != 0;
    }
    Some(any)
}

/// `struct xt_physdev_info`: only whether the packet came in by a port of a bridge
/// (`XT_PHYSDEV_OP_ISIN`), which nothing that is read tells.
fn physdev(b: &Blob<'_>) -> Option<Vec<Op>> {
    let (invert, fields) = (b.u8(64)?, b.u8(65)?);
    if fields != 0x08 {
        return None;
    }
    let field = Field::Other("whether the packet comes in by a port of a bridge".into());
    let yes = Value::Number(1, 1);
    Some(vec![is(field, None, yes, invert & 0x08 != 0)])
}

/// `struct xt_ipvs_mtinfo`: only what kube-proxy writes, address, protocol and port of the virtual server.
fn ipvs(b: &Blob<'_>, family: TableFamily) -> Option<Vec<Op>> {
    let (protocol, invert, fields) = (b.u8(34)?, b.u8(38)?, b.u8(39)?);
    if invert != 0 || fields != 0x0f {
        return None;
    }
    let port = u64::from(u16::from_be_bytes(*b.bytes(32, 2)?.first_chunk()?));
    let net = prefix(family, b.bytes(0, 16)?, b.bytes(16, 16)?)?;
    let protocol = u64::from(protocol);
    Some(vec![
        is(Field::VirtualPort, None, Value::Number(port, port), false),
        is(Field::CtOriginalDaddr, None, Value::Prefix(net), false),
        is(
            Field::L4proto,
            None,
            Value::Number(protocol, protocol),
            false,
        ),
    ])
}
