//! Matches, from their options. The same conditions as `super::super::matches` reads from blobs.

use super::{Given, address, is, number, prefix, protocol};
use crate::netfilter::ruleset::{Field, Op, TableFamily, Value, Values};
use std::sync::Arc;

/// How many values an option of a match takes. `None`: not known.
pub(super) fn values(name: &str, option: &str) -> Option<usize> {
    Some(match (name, option) {
        ("comment", _) => 1,
        ("tcp", "--syn") => 0,
        ("tcp", "--tcp-flags") => 2,
        ("tcp", "--sport" | "--dport" | "--tcp-option") => 1,
        ("udp" | "udplite" | "sctp", "--sport" | "--dport") => 1,
        ("multiport", "--sports" | "--dports" | "--ports") => 1,
        ("recent", "--set" | "--rcheck" | "--update" | "--rsource" | "--rdest" | "--reap") => 0,
        ("recent", "--seconds" | "--hitcount" | "--name" | "--mask") => 1,
        ("addrtype", "--limit-iface-in" | "--limit-iface-out") => 0,
        ("addrtype", "--src-type" | "--dst-type") => 1,
        ("statistic" | "mark" | "iprange" | "pkttype" | "nfacct" | "state" | "conntrack", _) => 1,
        _ => return None,
    })
}

/// The conditions of a match; `None`: not understood.
pub(super) fn decode(family: TableFamily, name: &str, all: &[Given<'_>]) -> Option<Vec<Op>> {
    match name {
        "nfacct" => Some(vec![Op::Nothing]),
        "tcp" | "udp" | "udplite" | "sctp" => ports(all),
        "multiport" => multiport(all),
        "conntrack" => conntrack(family, all),
        "state" => match all {
            [one] if one.name == "--state" => {
                let (state, 0) = states(one.value()?)? else {
                    return None;
                };
                let zero = vec![Value::Number(0, 0)];
                Some(vec![is(Field::CtState, Some(state), zero, !one.negated)])
            }
            _ => None,
        },
        "statistic" => statistic(all),
        "recent" => recent(all),
        "addrtype" => addrtype(all),
        "mark" => match all {
            [one] if one.name == "--mark" => {
                let (mark, mask) = masked(one.value()?)?;
                let value = vec![Value::Number(mark, mark)];
                Some(vec![is(Field::Mark, Some(mask), value, one.negated)])
            }
            _ => None,
        },
        "iprange" => iprange(family, all),
        "pkttype" => match all {
            [one] if one.name == "--pkt-type" => {
                let kind = match one.value()? {
                    "unicast" => 0,
                    "broadcast" => 1,
                    "multicast" => 2,
                    _ => return None,
                };
                let value = vec![Value::Number(kind, kind)];
                Some(vec![is(Field::PacketType, None, value, one.negated)])
            }
            _ => None,
        },
        _ => None,
    }
}

/// `80` or `1000:2000`.
fn port_range(text: &str) -> Option<Value> {
    let (first, last) = text.split_once(':').unwrap_or((text, text));
    let port = |text: &str| text.parse::<u16>().ok().map(u64::from);
    Some(Value::Number(port(first)?, port(last)?))
}

fn ports(all: &[Given<'_>]) -> Option<Vec<Op>> {
    let mut ops = vec![Op::Nothing];
    for one in all {
        let field = match one.name {
            "--sport" => Field::Sport,
            "--dport" => Field::Dport,
            other => {
                ops.push(Op::UnknownMatch(other.trim_start_matches('-').into()));
                continue;
            }
        };
        let value = vec![port_range(one.value()?)?];
        ops.push(is(field, None, value, one.negated));
    }
    Some(ops)
}

fn multiport(all: &[Given<'_>]) -> Option<Vec<Op>> {
    let [one] = all else { return None };
    let field = match one.name {
        "--sports" => Field::Sport,
        "--dports" => Field::Dport,
        _ => return None,
    };
    let list = one.value()?.split(',').map(port_range);
    Some(vec![is(
        field,
        None,
        list.collect::<Option<Values>>()?,
        one.negated,
    )])
}

/// State bits as in `NF_CT_STATE_*`, and status bits (`IPS_SRC_NAT` 0x10, `IPS_DST_NAT` 0x20).
fn states(text: &str) -> Option<(u64, u64)> {
    let (mut state, mut status) = (0, 0);
    for word in text.split(',') {
        match word {
            "INVALID" => state |= 1,
            "ESTABLISHED" => state |= 2,
            "RELATED" => state |= 4,
            "NEW" => state |= 8,
            "UNTRACKED" => state |= 64,
            "SNAT" => status |= 0x10,
            "DNAT" => status |= 0x20,
            _ => return None,
        }
    }
    Some((state, status))
}

fn conntrack(family: TableFamily, all: &[Given<'_>]) -> Option<Vec<Op>> {
    let zero = || vec![Value::Number(0, 0)];
    let mut ops = Vec::new();
    for one in all {
        match one.name {
            "--ctstate" => {
                let (state, status) = states(one.value()?)?;
                let of_state = |negated| is(Field::CtState, Some(state), zero(), negated);
                let of_status = |negated| is(Field::CtStatus, Some(status), zero(), negated);
                match (state, status) {
                    (_, 0) => ops.push(of_state(!one.negated)),
                    (0, _) => ops.push(of_status(!one.negated)),
                    // None of the bits of either.
                    _ if one.negated => ops.extend([of_state(false), of_status(false)]),
                    _ => ops.push(Op::UnknownMatch("conntrack state or nat".into())),
                }
            }
            "--ctproto" => {
                let n = protocol(one.value()?)?;
                let value = vec![Value::Number(n, n)];
                ops.push(is(Field::L4proto, None, value, one.negated));
            }
            "--ctorigdst" => {
                let net = prefix(family, one.value()?)?;
                let value = vec![Value::Prefix(net)];
                ops.push(is(Field::CtOriginalDaddr, None, value, one.negated));
            }
            other => ops.push(Op::UnknownMatch(format!("conntrack {other}").into())),
        }
    }
    (!ops.is_empty()).then_some(ops)
}

fn statistic(all: &[Given<'_>]) -> Option<Vec<Op>> {
    let of = |name: &str| all.iter().find(|one| one.name == name);
    match of("--mode")?.value()? {
        "random" => {
            let one = of("--probability")?;
            let p: f64 = one.value()?.parse().ok()?;
            // Eleven digits are printed, more than the 31 bits behind them need.
            let numerator = (p.clamp(0.0, 1.0) * f64::from(1u32 << 31)).round() as u32;
            let numerator = if one.negated {
                (1 << 31) - numerator
            } else {
                numerator
            };
            Some(vec![Op::Probability { numerator }])
        }
        "nth" => {
            let one = of("--every")?;
            if one.negated {
                return None;
            }
            let every = one.value()?.parse().ok()?;
            Some(vec![Op::Nth { every }])
        }
        _ => None,
    }
}

fn recent(all: &[Given<'_>]) -> Option<Vec<Op>> {
    let of = |name: &str| all.iter().find(|one| one.name == name);
    let list: Arc<str> = of("--name").map_or(Some("DEFAULT"), Given::value)?.into();
    let every = |mask: &str| {
        matches!(
            mask,
            "255.255.255.255" | "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
        )
    };
    let masked = of("--mask").is_some_and(|one| !one.value().is_some_and(every));
    let strange = of("--rdest").is_some() || of("--hitcount").is_some() || masked;
    if strange || all.iter().any(|one| one.negated) {
        return None;
    }
    let seconds = match of("--seconds") {
        Some(one) => Some(one.value()?.parse().ok()?),
        None => None,
    };
    let (check, set) = (
        Op::AffinityCheck {
            list: list.clone(),
            seconds,
        },
        Op::AffinityUpdate { list },
    );
    match (of("--rcheck"), of("--set"), of("--update")) {
        (Some(_), None, None) => Some(vec![check]),
        (None, Some(_), None) => Some(vec![set]),
        (None, None, Some(_)) => Some(vec![check, set]),
        _ => None,
    }
}

/// `RTN_*`, by the names of `libxt_addrtype`.
const TYPES: [&str; 12] = [
    "UNSPEC",
    "UNICAST",
    "LOCAL",
    "BROADCAST",
    "ANYCAST",
    "MULTICAST",
    "BLACKHOLE",
    "UNREACHABLE",
    "PROHIBIT",
    "THROW",
    "NAT",
    "XRESOLVE",
];

fn addrtype(all: &[Given<'_>]) -> Option<Vec<Op>> {
    let mut ops = vec![Op::Nothing];
    for one in all {
        let field = match one.name {
            "--src-type" => Field::SaddrType,
            "--dst-type" => Field::DaddrType,
            _ => return None,
        };
        let types = one.value()?.split(',').map(|word| {
            let n = TYPES.iter().position(|t| *t == word)? as u64;
            Some(Value::Number(n, n))
        });
        ops.push(is(
            field,
            None,
            types.collect::<Option<Values>>()?,
            one.negated,
        ));
    }
    Some(ops)
}

/// `0x4000/0x4000`, or a number that all bits are compared with.
fn masked(text: &str) -> Option<(u64, u64)> {
    let (value, mask) = text.split_once('/').unwrap_or((text, "0xffffffff"));
    Some((number(value)?.into(), number(mask)?.into()))
}

fn iprange(family: TableFamily, all: &[Given<'_>]) -> Option<Vec<Op>> {
    let mut ops = Vec::new();
    for one in all {
        let field = match one.name {
            "--src-range" => Field::Saddr,
            "--dst-range" => Field::Daddr,
            _ => return None,
        };
        let (first, last) = one.value()?.split_once('-')?;
        let range = Value::addresses(address(family, first)?, address(family, last)?);
        ops.push(is(field, None, vec![range], one.negated));
    }
    Some(ops)
}
