//! Comparisons of register contents with constants, into matches.

use super::registers::{Held, Load, Numgen, Part};
use super::values::{Order, Type, address, address_range, mask_length, name, number, prefix};
use crate::netfilter::ruleset::{Field, Match, Op, Value};
use std::sync::Arc;

/// `NFT_CMP_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Comparison {
    pub fn from_kernel(code: u32) -> Option<Comparison> {
        Some(match code {
            0 => Comparison::Equal,
            1 => Comparison::NotEqual,
            2 => Comparison::Less,
            3 => Comparison::LessOrEqual,
            4 => Comparison::Greater,
            5 => Comparison::GreaterOrEqual,
            _ => return None,
        })
    }
}

fn unknown(what: impl Into<Arc<str>>) -> Vec<Op> {
    vec![Op::UnknownMatch(what.into())]
}

/// `cmp`.
pub(super) fn compare(load: &Load, comparison: Comparison, data: &[u8]) -> Vec<Op> {
    match &load.held {
        Held::Parts { parts, masked } => {
            if data.is_empty() || data.len() > load.length {
                return unknown("comparison of another length");
            }
            match comparison {
                Comparison::Equal => equal(parts, masked.as_ref(), data, false),
                Comparison::NotEqual => equal(parts, masked.as_ref(), data, true),
                _ if masked.is_some() => unknown("order of masked bits"),
                _ => ordered(parts, comparison, data),
            }
        }
        Held::Numgen(numgen) => chance(*numgen, comparison, data),
        Held::Data(_) => unknown("comparison of constants"),
        Held::Map(_) => unknown("comparison of a map's value"),
        Held::Opaque(what) => unknown(format!("comparison of {what}")),
    }
}

fn equal(
    parts: &[Part],
    masked: Option<&(Vec<u8>, Vec<u8>)>,
    data: &[u8],
    negated: bool,
) -> Vec<Op> {
    // Nearly every comparison is one of a whole field.
    if let ([part], None) = (parts, masked)
        && let Some(value) = whole(part, data)
    {
        return vec![Op::Match(Match {
            field: part.field.clone(),
            mask: None,
            any_of: value.into(),
            negated,
        })];
    }
    let mut ops = Vec::new();
    let mut at = 0;
    for part in parts {
        if at >= data.len() {
            break;
        }
        let end = (at + part.size).min(data.len());
        let bytes = &data[at..end];
        let here = at..end;
        at = end;
        let slice = |all: &[u8]| -> Vec<u8> {
            here.clone()
                .map(|i| all.get(i).copied().unwrap_or(0))
                .collect()
        };
        let mask = masked.map(|(mask, _)| slice(mask));
        let bytes: Vec<u8> = match masked {
            Some((_, xor)) => bytes.iter().zip(slice(xor)).map(|(b, x)| b ^ x).collect(),
            None => bytes.to_vec(),
        };
        let nothing_left = mask.as_ref().is_some_and(|m| m.iter().all(|b| *b == 0));
        if parts.len() > 1 && nothing_left && bytes.iter().all(|b| *b == 0) {
            // Masked away: always equal.
            continue;
        }
        ops.push(equal_part(part, mask.as_deref(), &bytes, negated));
    }
    if negated && ops.len() > 1 {
        return unknown("several fields at once are not equal");
    }
    ops
}

/// The value of a whole field; `None`: it is a part of one, or has no value of its own type.
fn whole(part: &Part, bytes: &[u8]) -> Option<Value> {
    if bytes.len() != part.whole || part.size != part.whole {
        return None;
    }
    if is_address(&part.field) {
        let length = u8::try_from(bytes.len() * 8).ok()?;
        return prefix(address(bytes)?, length).map(Value::Prefix);
    }
    if is_name(&part.field) {
        return Some(name(bytes));
    }
    number(bytes, part.order).map(|n| Value::Number(n, n))
}

fn is_address(field: &Field) -> bool {
    matches!(field, Field::Saddr | Field::Daddr | Field::CtOriginalDaddr)
}

fn is_name(field: &Field) -> bool {
    matches!(field, Field::Iifname | Field::Oifname)
}

fn equal_part(part: &Part, mask: Option<&[u8]>, bytes: &[u8], negated: bool) -> Op {
    let matched = |mask, value: Value| {
        Op::Match(Match {
            field: part.field.clone(),
            mask,
            any_of: value.into(),
            negated,
        })
    };
    if is_address(&part.field) {
        // A shorter load is a prefix of whole bytes.
        let mut full_mask = mask.map_or_else(|| vec![0xff; bytes.len()], <[u8]>::to_vec);
        full_mask.resize(part.whole, 0);
        let mut full = bytes.to_vec();
        full.resize(part.whole, 0);
        let stray = full.iter().zip(&full_mask).any(|(b, m)| b & !m != 0);
        let found = mask_length(&full_mask)
            .and_then(|length| address(&full).and_then(|address| prefix(address, length)));
        return match found {
            Some(prefix) if !stray => matched(None, Value::Prefix(prefix)),
            _ => Op::UnknownMatch("address mask that is no prefix".into()),
        };
    }
    if is_name(&part.field) {
        return match mask {
            None => matched(None, name(bytes)),
            Some(_) => Op::UnknownMatch("masked link name".into()),
        };
    }
    if bytes.len() == part.whole && bytes.len() <= 8 {
        let value = number(bytes, part.order).unwrap_or(0);
        let mask = mask.and_then(|m| number(m, part.order));
        return matched(mask, Value::Number(value, value));
    }
    match mask {
        None if bytes.len() == part.whole => matched(None, Value::Bytes(bytes.into())),
        _ => Op::UnknownMatch(format!("part of {:?}", part.field).into()),
    }
}

fn ordered(parts: &[Part], comparison: Comparison, data: &[u8]) -> Vec<Op> {
    let [part] = parts else {
        return unknown("order of several fields at once");
    };
    if data.len() != part.whole || data.len() != part.size {
        return unknown("order of a part of a field");
    }
    let low = vec![0; data.len()];
    let high = vec![0xff; data.len()];
    let (first, last) = match comparison {
        Comparison::Less => match step(data, false) {
            Some(below) => (low, below),
            None => return unknown("less than nothing"),
        },
        Comparison::LessOrEqual => (low, data.to_vec()),
        Comparison::Greater => match step(data, true) {
            Some(above) => (above, high),
            None => return unknown("more than everything"),
        },
        _ => (data.to_vec(), high),
    };
    between(part, &first, &last, false)
}

/// The next or previous number of that many bytes in network order.
pub(super) fn step(bytes: &[u8], up: bool) -> Option<Vec<u8>> {
    let mut out = bytes.to_vec();
    for byte in out.iter_mut().rev() {
        let (next, carry) = if up {
            byte.overflowing_add(1)
        } else {
            byte.overflowing_sub(1)
        };
        *byte = next;
        if !carry {
            return Some(out);
        }
    }
    None
}

/// `range`, and what an ordered comparison amounts to. Bytes compare as the kernel's memcmp does.
pub(super) fn range(load: &Load, first: &[u8], last: &[u8], negated: bool) -> Vec<Op> {
    match &load.held {
        Held::Parts {
            parts,
            masked: None,
        } => match parts.as_slice() {
            [part] if first.len() == part.whole && last.len() == part.whole => {
                between(part, first, last, negated)
            }
            _ => unknown("range of several fields or a part of one"),
        },
        _ => unknown("range of something other than a field"),
    }
}

fn between(part: &Part, first: &[u8], last: &[u8], negated: bool) -> Vec<Op> {
    let value = if is_address(&part.field) {
        address(first)
            .zip(address(last))
            .and_then(|(a, b)| address_range(a, b))
    } else if part.order == Order::Host && part.whole > 1 {
        // memcmp of a number in host order says nothing about its size.
        None
    } else {
        match (number(first, Order::Big), number(last, Order::Big)) {
            (Some(a), Some(b)) if a <= b => Some(Value::Number(a, b)),
            _ => None,
        }
    };
    match value {
        Some(value) => vec![Op::Match(Match {
            field: part.field.clone(),
            mask: None,
            any_of: value.into(),
            negated,
        })],
        None => unknown(format!("range of {:?}", part.field)),
    }
}

/// `numgen … < k` and the like, as a probability.
fn chance(numgen: Numgen, comparison: Comparison, data: &[u8]) -> Vec<Op> {
    const ONE: u64 = 1 << 31;
    let modulus = u64::from(numgen.modulus.max(1));
    let offset = u64::from(numgen.offset);
    let Some(value) = number(data, numgen.order) else {
        return unknown("comparison of numgen");
    };
    let hit = u64::from((offset..offset + modulus).contains(&value));
    let below = value.saturating_sub(offset).min(modulus);
    if numgen.incremental {
        return match comparison {
            Comparison::Equal if hit == 1 => vec![Op::Nth {
                every: numgen.modulus.max(1),
            }],
            _ => unknown("comparison of numgen inc"),
        };
    }
    let ordered = !matches!(comparison, Comparison::Equal | Comparison::NotEqual);
    if ordered && numgen.order == Order::Host {
        return unknown("order of numgen in host order");
    }
    let cases = match comparison {
        Comparison::Equal => hit,
        Comparison::NotEqual => modulus - hit,
        Comparison::Less => below,
        Comparison::LessOrEqual => (below + hit).min(modulus),
        Comparison::Greater => modulus - (below + hit).min(modulus),
        Comparison::GreaterOrEqual => modulus - below,
    };
    let numerator = (cases * ONE + modulus / 2) / modulus;
    vec![Op::Probability {
        numerator: u32::try_from(numerator.min(ONE)).unwrap_or(u32::MAX),
    }]
}

/// Highest value of a type, for an interval without an end.
pub(super) fn highest(kind: Type) -> Vec<u8> {
    vec![0xff; kind.width]
}
