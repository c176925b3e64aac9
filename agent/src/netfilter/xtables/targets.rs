//! Targets.

use super::Blob;
use crate::netfilter::ruleset::{NatTarget, Op, TableFamily, Verdict};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What one target does (`-j NAME`). What is not understood is one unknown statement with its name.
pub fn decode_target(family: TableFamily, name: &str, revision: u32, blob: &[u8]) -> Op {
    let b = Blob(blob);
    let op = match (name, revision) {
        ("DNAT", 0) => range_v4(&b).map(Op::Dnat),
        ("DNAT", 1 | 2) => range(&b, family).map(Op::Dnat),
        ("SNAT", 0) => range_v4(&b).map(Op::Snat),
        ("SNAT", 1 | 2) => range(&b, family).map(Op::Snat),
        ("MASQUERADE", 0) => Some(Op::Masquerade),
        ("REDIRECT", 0) => redirect(&b, family),
        ("MARK", 2) => mark(&b),
        ("REJECT", 0) => Some(Op::Reject),
        ("CT", 0..=2) => ct(&b),
        ("NOTRACK", _) => Some(Op::NoTrack),
        ("CONNMARK", 1 | 2) => connmark(&b),
        // None of these changes where a packet goes.
        ("CLASSIFY" | "TCPMSS" | "LOG" | "NFLOG" | "TRACE" | "DSCP" | "TOS" | "CHECKSUM", _)
        | ("AUDIT" | "CONNSECMARK" | "SECMARK" | "TCPOPTSTRIP" | "LED" | "IDLETIMER", _) => {
            Some(Op::Nothing)
        }
        ("NFQUEUE", _) => Some(Op::Verdict(Verdict::Queue)),
        _ => None,
    };
    op.unwrap_or_else(|| Op::UnknownStatement(format!("xt target {name}.{revision}").into()))
}

// NF_NAT_RANGE_*
const MAP_IPS: u32 = 0x01;
const PROTO_SPECIFIED: u32 = 0x02;
const PROTO_OFFSET: u32 = 0x20;
const NETMAP: u32 = 0x40;

fn target(flags: u32, addresses: (IpAddr, IpAddr), ports: (u16, u16)) -> NatTarget {
    if flags & (PROTO_OFFSET | NETMAP) != 0 {
        return NatTarget::Unknown("nat by offset or netmap".into());
    }
    let by_address = flags & MAP_IPS != 0;
    let by_port = flags & PROTO_SPECIFIED != 0;
    if by_address && addresses.0 != addresses.1 || by_port && ports.0 != ports.1 {
        return NatTarget::Unknown("nat to a range".into());
    }
    NatTarget::Fixed {
        address: by_address.then_some(addresses.0),
        port: by_port.then_some(ports.0),
    }
}

/// `struct nf_nat_ipv4_multi_range_compat`
fn range_v4(b: &Blob<'_>) -> Option<NatTarget> {
    if b.u32(0)? != 1 {
        return None;
    }
    let address = |at: usize| -> Option<IpAddr> {
        Some(Ipv4Addr::from(*b.bytes(at, 4)?.first_chunk::<4>()?).into())
    };
    Some(target(
        b.u32(4)?,
        (address(8)?, address(12)?),
        (b.be16(16)?, b.be16(18)?),
    ))
}

/// `struct nf_nat_range` and `nf_nat_range2`
fn range(b: &Blob<'_>, family: TableFamily) -> Option<NatTarget> {
    let address = |at: usize| -> Option<IpAddr> {
        let bytes = b.bytes(at, 16)?;
        match family {
            TableFamily::Ip => Some(Ipv4Addr::from(*bytes.first_chunk::<4>()?).into()),
            TableFamily::Ip6 => Some(Ipv6Addr::from(*bytes.first_chunk::<16>()?).into()),
            _ => None,
        }
    };
    Some(target(
        b.u32(0)?,
        (address(4)?, address(20)?),
        (b.be16(36)?, b.be16(38)?),
    ))
}

fn redirect(b: &Blob<'_>, family: TableFamily) -> Option<Op> {
    let found = match family {
        TableFamily::Ip => range_v4(b)?,
        _ => range(b, family)?,
    };
    match found {
        NatTarget::Fixed { port, .. } => Some(Op::Redirect { port }),
        _ => None,
    }
}

/// `struct xt_mark_tginfo2`: mark = (mark & ~mask) ^ value
fn mark(b: &Blob<'_>) -> Option<Op> {
    Some(Op::SetMark {
        and: !b.u32(4)?,
        xor: b.u32(0)?,
    })
}

/// `struct xt_ct_target_info`, `_v1`
fn ct(b: &Blob<'_>) -> Option<Op> {
    let (flags, zone) = (b.u16(0)?, b.u16(2)?);
    if flags & 0x3 != 0 {
        Some(Op::NoTrack)
    } else if zone != 0 || flags & !0x3 != 0 {
        // Another zone: the flow's translations are others.
        Some(Op::UnknownStatement("conntrack zone".into()))
    } else {
        Some(Op::Nothing)
    }
}

/// `struct xt_connmark_tginfo1`: mode 0 set, 1 save, 2 restore. Restoring changes the packet's mark.
fn connmark(b: &Blob<'_>) -> Option<Op> {
    match b.u8(12)? {
        0 | 1 => Some(Op::Nothing),
        _ => Some(Op::UnknownStatement("mark restored from the flow's".into())),
    }
}
