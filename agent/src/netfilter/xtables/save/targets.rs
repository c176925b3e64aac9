//! Targets, from their options.

use super::{Word, address, number};
use crate::netfilter::ruleset::{NatTarget, Op, TableFamily, Verdict};

/// The op of a target. A name that is none of the targets' is a jump to a chain.
pub(super) fn decode(family: TableFamily, name: &str, options: &[Word]) -> Op {
    let has = |option: &str| options.iter().any(|w| w.is(option));
    let after = |option: &str| {
        let at = options.iter().position(|w| w.is(option))?;
        options.get(at + 1).map(|w| w.text.as_str())
    };
    let unknown = || Op::UnknownStatement(format!("xt target {name}").into());
    match name {
        "ACCEPT" => Op::Verdict(Verdict::Accept),
        "DROP" => Op::Verdict(Verdict::Drop),
        "RETURN" => Op::Verdict(Verdict::Return),
        "QUEUE" | "NFQUEUE" => Op::Verdict(Verdict::Queue),
        "DNAT" => Op::Dnat(nat(family, after("--to-destination"))),
        "SNAT" => Op::Snat(nat(family, after("--to-source"))),
        "MASQUERADE" => Op::Masquerade,
        "REDIRECT" => match after("--to-ports").map(str::parse) {
            None => Op::Redirect { port: None },
            Some(Ok(port)) => Op::Redirect { port: Some(port) },
            Some(Err(_)) => unknown(),
        },
        "MARK" => mark(options).unwrap_or_else(unknown),
        "REJECT" => Op::Reject,
        "NOTRACK" => Op::NoTrack,
        "CT" if has("--notrack") => Op::NoTrack,
        "CT" if options.is_empty() => Op::Nothing,
        "CT" => Op::UnknownStatement("conntrack zone".into()),
        "CONNMARK" if has("--restore-mark") => {
            Op::UnknownStatement("mark restored from the flow's".into())
        }
        // None of these changes where a packet goes.
        "CONNMARK" | "CLASSIFY" | "TCPMSS" | "LOG" | "NFLOG" | "TRACE" | "DSCP" | "TOS"
        | "CHECKSUM" | "AUDIT" | "CONNSECMARK" | "SECMARK" | "TCPOPTSTRIP" | "LED"
        | "IDLETIMER" => Op::Nothing,
        _ if options.is_empty() => Op::Verdict(Verdict::Jump(name.into())),
        _ => unknown(),
    }
}

/// mark = (mark & ~mask) ^ value, as `--set-xmark` says and the others are short for.
fn mark(options: &[Word]) -> Option<Op> {
    let [option, value] = options else {
        return None;
    };
    let (value, mask) = match value.text.split_once('/') {
        Some((value, mask)) => (number(value)?, Some(number(mask)?)),
        None => (number(&value.text)?, None),
    };
    let (and, xor) = match (option.text.as_str(), mask) {
        ("--set-xmark", mask) => (!mask.unwrap_or(u32::MAX), value),
        ("--set-mark", mask) => (!(mask.unwrap_or(u32::MAX) | value), value),
        ("--or-mark", None) => (!value, value),
        ("--and-mark", None) => (value, 0),
        ("--xor-mark", None) => (u32::MAX, value),
        _ => return None,
    };
    Some(Op::SetMark { and, xor })
}

/// `10.0.0.1`, `10.0.0.1:80`, `:80`, `[fd00::1]:80`.
fn nat(family: TableFamily, text: Option<&str>) -> NatTarget {
    let unknown = || NatTarget::Unknown("nat to a range".into());
    let Some(text) = text else {
        return NatTarget::Fixed {
            address: None,
            port: None,
        };
    };
    let (host, port) = match (family, text.strip_prefix('[')) {
        (_, Some(rest)) => match rest.split_once(']') {
            Some((host, "")) => (host, None),
            Some((host, port)) => (host, port.strip_prefix(':')),
            None => return unknown(),
        },
        (TableFamily::Ip, None) => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
        (_, None) => match text.strip_prefix(':') {
            Some(port) if port.bytes().all(|b| b.is_ascii_digit()) => ("", Some(port)),
            _ => (text, None),
        },
    };
    let address = match host {
        "" => None,
        host => match address(family, host) {
            Some(found) => Some(found),
            None => return unknown(),
        },
    };
    let port = match port.map(str::parse) {
        None => None,
        Some(Ok(port)) => Some(port),
        Some(Err(_)) => return unknown(),
    };
    NatTarget::Fixed { address, port }
}
