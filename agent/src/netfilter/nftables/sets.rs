//! Sets and maps: their descriptions, then their elements.

use super::Names;
use super::attributes::{Attributes, be32, be64, table, text};
use super::compare::{highest, step};
use super::expressions::{Code, data, verdict};
use super::values::{
    Kind, Order, TYPE_INTEGER, Type, address, datatype, datatypes, number, range, type_of_field,
    value,
};
use crate::netfilter::ruleset::{Data, Element, Field, Set, Value, Verdict};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

// NFT_SET_*
const ANONYMOUS: u32 = 0x1;
const INTERVAL: u32 = 0x4;
const MAP: u32 = 0x8;
const EVAL: u32 = 0x20;
// NFT_SET_ELEM_*
const INTERVAL_END: u32 = 0x1;
const CATCH_ALL: u32 = 0x2;
/// `NFT_DATA_VERDICT`
const DATA_VERDICT: u32 = 0xffff_ff00;

/// One field that a rule looks up in a set.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Use {
    Field(Field, usize),
    Numgen,
}

/// What rules look up in each set, for sets that do not say their type.
#[derive(Default)]
pub(super) struct Uses {
    of: HashMap<Arc<str>, Vec<Use>>,
    /// Sets of which this was learnt, until somebody takes note.
    pub fresh: Vec<Arc<str>>,
}

impl Uses {
    pub fn get(&self, set: &Arc<str>) -> Option<&Vec<Use>> {
        self.of.get(set)
    }

    /// The first use says it.
    pub fn learn(&mut self, set: &Arc<str>, used: Vec<Use>) {
        if let Entry::Vacant(entry) = self.of.entry(set.clone()) {
            entry.insert(used);
            self.fresh.push(set.clone());
        }
    }

    pub fn forget(&mut self, set: &Arc<str>) {
        self.of.remove(set);
    }
}

/// `NFT_MSG_NEWSET`.
#[derive(Clone, Debug)]
pub(super) struct Described {
    pub name: Arc<str>,
    handle: u64,
    flags: u32,
    key_type: u32,
    key_length: usize,
    data_type: u32,
    data_length: usize,
    timeout_ms: Option<u64>,
    /// From the concatenation's description, if there is one.
    widths: Vec<usize>,
    key_order: Option<Order>,
    data_order: Option<Order>,
}

impl Described {
    /// From the attributes of the message; `None` without a name.
    pub fn read(a: &[&[u8]; 16], handle: Option<u64>, names: &mut Names) -> Option<Described> {
        let n = |i: usize| be32(a[i]).unwrap_or(0);
        let name = super::attributes::c_string(a[2]);
        if name.is_empty() {
            return None;
        }
        let mut widths = Vec::new();
        for (kind, concat) in Attributes::new(a[9]) {
            if kind != 2 {
                continue;
            }
            for (_, field) in Attributes::new(concat) {
                let width = table(field).and_then(|f| be32(f[1])).unwrap_or(0);
                widths.push(width as usize);
            }
        }
        let (mut key_order, mut data_order) = (None, None);
        for (kind, value) in Userdata(a[13]) {
            // nft: enum byteorder 1 host, 2 big endian, in host order
            let order = match value.first_chunk::<4>().map(|b| u32::from_ne_bytes(*b)) {
                Some(1) => Some(Order::Host),
                Some(2) => Some(Order::Big),
                _ => None,
            };
            match kind {
                0 => key_order = order,
                1 => data_order = order,
                _ => {}
            }
        }
        Some(Described {
            name: names.get(name),
            handle: handle.unwrap_or(0),
            flags: n(3),
            key_type: n(4),
            key_length: n(5) as usize,
            data_type: n(6),
            data_length: n(7) as usize,
            timeout_ms: be64(a[11]),
            widths,
            key_order,
            data_order,
        })
    }

    /// The same set, as far as a rule that looks something up in it can tell.
    pub fn is_same_for_rules(&self, other: &Described) -> bool {
        let of = |d: &Described| {
            (
                (d.handle, d.flags, d.key_type, d.key_length),
                (d.data_type, d.data_length, d.timeout_ms),
                (d.widths.clone(), d.key_order, d.data_order),
            )
        };
        of(self) == of(other)
    }

    pub fn dynamic(&self) -> bool {
        self.flags & EVAL != 0
    }

    pub fn timeout_seconds(&self) -> Option<u32> {
        self.timeout_ms.and_then(|ms| u32::try_from(ms / 1000).ok())
    }

    pub fn key_length(&self) -> usize {
        self.key_length
    }

    pub fn data_length(&self) -> usize {
        self.data_length.clamp(1, 64)
    }

    /// Fields in the key, 0 if it does not say.
    pub fn field_count(&self) -> usize {
        datatypes(self.key_type).len()
    }

    /// Types of the key's fields: as the set says, else as the rules use it.
    fn key_types(&self, uses: Option<&Vec<Use>>) -> Option<Vec<Type>> {
        let fits = |types: &Vec<Type>| {
            types
                .iter()
                .map(|t| t.width.next_multiple_of(4))
                .sum::<usize>()
                == self.key_length.next_multiple_of(4)
        };
        let said: Option<Vec<Type>> = datatypes(self.key_type)
            .into_iter()
            .enumerate()
            .map(|(i, number)| {
                let mut found = datatype(number)?;
                if number == TYPE_INTEGER {
                    found.kind = Kind::Number(self.key_order.unwrap_or(Order::Host));
                    found.width = match self.widths.get(i) {
                        Some(width) => *width,
                        None if self.field_count() == 1 => self.key_length,
                        None => 4,
                    };
                }
                Some(found)
            })
            .collect();
        let mut types = match said {
            Some(types) if !types.is_empty() && fits(&types) => types,
            _ => {
                let used: Vec<Type> = uses?
                    .iter()
                    .map(|used| match used {
                        Use::Field(field, width) => type_of_field(field, *width),
                        Use::Numgen => Some(Type {
                            kind: Kind::Number(Order::Host),
                            width: 4,
                        }),
                    })
                    .collect::<Option<_>>()?;
                if !fits(&used) {
                    return None;
                }
                used
            }
        };
        if uses.is_some_and(|uses| *uses == [Use::Numgen]) {
            // The kernel's number, never turned.
            types = vec![Type {
                kind: Kind::Number(Order::Host),
                width: 4,
            }];
        }
        if self.flags & INTERVAL != 0 {
            // Intervals are ordered by memcmp, so numbers are turned to network order for them;
            // names would be, too, and are not read.
            for found in &mut types {
                match found.kind {
                    Kind::Number(_) => found.kind = Kind::Number(Order::Big),
                    Kind::Name => return None,
                    _ => {}
                }
            }
        }
        Some(types)
    }

    /// The set without its elements.
    pub fn set(&self, uses: Option<&Vec<Use>>) -> (Set, Option<Vec<Type>>) {
        let types = self.key_types(uses);
        let narrow = |n: usize| u8::try_from(n).unwrap_or(u8::MAX);
        let key_bytes = match &types {
            Some(types) => types
                .iter()
                .map(|t| narrow(t.width.next_multiple_of(4)))
                .collect(),
            None => vec![narrow(self.key_length)],
        };
        let unread = if self.dynamic() {
            Some("packets fill it".into())
        } else if types.is_none() {
            Some("type of its key not understood".into())
        } else {
            None
        };
        let set = Set {
            name: self.name.clone(),
            handle: self.handle,
            map: self.flags & MAP != 0,
            dynamic: self.dynamic(),
            anonymous: self.flags & ANONYMOUS != 0,
            timeout_ms: self.timeout_ms,
            key_bytes,
            key_type: self.key_type,
            elements: Vec::new(),
            unread,
        };
        (set, types)
    }

    fn data(&self, nest: &[u8], names: &mut Names) -> Option<Data> {
        if nest.is_empty() {
            return None;
        }
        if self.data_type == DATA_VERDICT {
            return Some(match verdict(nest, names) {
                Some(Code::Verdict(verdict)) => Data::Verdict(verdict),
                Some(Code::Continue | Code::Break) => Data::Verdict(Verdict::Continue),
                None => Data::Bytes(nest.into()),
            });
        }
        let bytes = data(nest);
        let types = datatypes(self.data_type);
        let found = match types.as_slice() {
            [7 | 8] => address(bytes).map(|address| Data::Endpoint(address, None)),
            [kind @ (7 | 8), 13] => {
                let width = if *kind == 7 { 4 } else { 16 };
                match (
                    bytes.get(..width).and_then(address),
                    bytes.get(width..width + 2),
                ) {
                    (Some(address), Some(port)) => {
                        Some(Data::Endpoint(address, Some(super::attributes::be16(port))))
                    }
                    _ => None,
                }
            }
            [kind] => {
                let order = match datatype(*kind).map(|t| t.kind) {
                    _ if *kind == TYPE_INTEGER => self.data_order,
                    Some(Kind::Number(order)) => Some(order),
                    _ => None,
                };
                order
                    .and_then(|order| number(bytes, order))
                    .map(Data::Number)
            }
            _ => None,
        };
        Some(found.unwrap_or_else(|| Data::Bytes(bytes.into())))
    }
}

/// One element as it came.
pub(super) struct RawElement {
    key: Vec<u8>,
    key_end: Option<Vec<u8>>,
    end: bool,
    catch_all: bool,
    data: Option<Data>,
    comment: Option<Arc<str>>,
}

/// `NFTA_SET_ELEM_LIST_ELEMENTS` of one message. False if something in it was broken.
pub(super) fn read_elements(
    set: &Described,
    list: &[u8],
    names: &mut Names,
    out: &mut Vec<RawElement>,
) -> bool {
    let mut elements = Attributes::new(list);
    let mut whole = true;
    for (_, element) in &mut elements {
        let Some(a) = table(element) else {
            whole = false;
            continue;
        };
        let flags = be32(a[3]).unwrap_or(0);
        let key = data(a[1]).to_vec();
        let catch_all = flags & CATCH_ALL != 0;
        if key.len() != set.key_length && !catch_all {
            whole = false;
            continue;
        }
        let key_end = if a[10].is_empty() {
            None
        } else {
            Some(data(a[10]).to_vec())
        };
        out.push(RawElement {
            key,
            key_end,
            end: flags & INTERVAL_END != 0,
            catch_all,
            data: set.data(a[2], names),
            comment: comment(a[6]),
        });
    }
    whole && !elements.broken()
}

/// The comment in nft's userdata of a rule or an element (type 0 in both).
pub(super) fn comment(userdata: &[u8]) -> Option<Arc<str>> {
    Userdata(userdata)
        .find(|(kind, value)| *kind == 0 && !value.is_empty())
        .map(|(_, value)| text(value).into())
}

/// nft's own type, length, value: one byte each for type and length. Unknown types are passed on.
struct Userdata<'a>(&'a [u8]);

impl<'a> Iterator for Userdata<'a> {
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (head, tail) = self.0.split_first_chunk::<2>()?;
        let (value, rest) = tail.split_at_checked(usize::from(head[1]))?;
        self.0 = rest;
        Some((head[0], value))
    }
}

/// Elements with values: fields split, interval ends joined with their starts. The second result
/// tells what does not hold together.
pub(super) fn elements(
    set: &Described,
    types: &[Type],
    raw: Vec<RawElement>,
) -> (Vec<Element>, Option<&'static str>) {
    let mut out = Vec::with_capacity(raw.len());
    let make = |key: Vec<Value>, from: RawElement| Element {
        key,
        data: from.data,
        comment: from.comment,
        catch_all: from.catch_all,
    };
    let mut ordered: Vec<RawElement> = Vec::new();
    let mut problem = None;
    let single_interval = set.flags & INTERVAL != 0 && types.len() == 1;
    for element in raw {
        if element.catch_all {
            out.push(make(Vec::new(), element));
        } else if single_interval && element.key_end.is_none() {
            ordered.push(element);
        } else {
            match split(types, &element) {
                Some(key) => out.push(make(key, element)),
                None => problem = Some("an element of another length"),
            }
        }
    }
    if let [kind] = types {
        // An end comes before a start of the same key; an end is the first key outside.
        ordered.sort_by(|a, b| a.key.cmp(&b.key).then(b.end.cmp(&a.end)));
        let width = kind.width;
        let mut open: Option<RawElement> = None;
        for element in ordered {
            if let Some(start) = open.take() {
                match element.key.get(..width).and_then(|key| step(key, false)) {
                    Some(last) => {
                        let first = start.key.get(..width).unwrap_or_default().to_vec();
                        out.push(make(vec![range(*kind, &first, &last)], start));
                    }
                    None => problem = Some("an interval that ends before it begins"),
                }
            }
            if !element.end {
                open = Some(element);
            }
        }
        if let Some(start) = open {
            let first = start.key.get(..width).unwrap_or_default().to_vec();
            out.push(make(vec![range(*kind, &first, &highest(*kind))], start));
        }
    }
    (out, problem)
}

/// The key's fields, each padded to four bytes.
fn split(types: &[Type], element: &RawElement) -> Option<Vec<Value>> {
    let mut at = 0;
    let mut key = Vec::with_capacity(types.len());
    for kind in types {
        let first = element.key.get(at..at + kind.width)?;
        key.push(match &element.key_end {
            None => value(*kind, first),
            Some(end) => range(*kind, first, end.get(at..at + kind.width)?),
        });
        at += kind.width.next_multiple_of(4);
    }
    Some(key)
}
