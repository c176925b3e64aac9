//! ipsets from their messages (linux/netfilter/ipset/ip_set.h). Every function takes any bytes and never
//! panics.

use super::capture::SetCapture;
use crate::netfilter::nftables::attributes::{Attributes, be16, be32, text};
use crate::netfilter::ruleset::{Element, Set, Value};
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// `struct nfgenmsg`.
const HEADER: usize = 4;

/// All sets, by number.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ipsets(pub BTreeMap<u16, Ipset>);

/// One set.
#[derive(Clone, Debug, PartialEq)]
pub struct Ipset {
    /// Its name.
    pub name: Arc<str>,
    /// What its elements consist of.
    pub parts: Arc<[Part]>,
    /// As the rules' sets are. `unread` where its elements were not asked for or not understood.
    pub set: Set,
}

/// One part of an element: addresses and ports each count as a dimension for rules, the protocol comes
/// with the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// An address, or a range of some.
    Address,
    /// Protocol and port.
    ProtocolPort,
    /// A port of any protocol.
    Port,
}

/// Are the elements of a set with this name worth reading? kube-proxy's are `KUBE-…` (kube-proxy.md 4.5);
/// other people's may have millions.
pub fn is_kube_proxys(name: &str) -> bool {
    name.starts_with("KUBE-")
}

/// The set's name. `None`: not understood.
pub fn name(message: &[u8]) -> Option<String> {
    let mut attributes = Attributes::new(message.get(HEADER..)?);
    let found = attributes.find(|(kind, _)| *kind == 2);
    found.map(|(_, value)| text(value).into_owned())
}

/// Do the messages of one set hold as many elements as their header says?
pub fn is_whole(messages: &[Vec<u8>]) -> bool {
    let raw = Raw::of(messages);
    raw.elements_said
        .is_none_or(|said| said as usize == raw.elements.len())
}

/// What the messages of one set say, elements undecoded.
#[derive(Debug, Default)]
struct Raw<'m> {
    name: Option<Arc<str>>,
    kind: Option<Arc<str>>,
    index: Option<u16>,
    elements_said: Option<u32>,
    elements: Vec<&'m [u8]>,
    broken: bool,
}

impl<'m> Raw<'m> {
    fn of(messages: &'m [Vec<u8>]) -> Raw<'m> {
        let mut raw = Raw::default();
        for message in messages {
            let mut attributes = Attributes::new(message.get(HEADER..).unwrap_or_default());
            for (kind, value) in &mut attributes {
                match kind {
                    2 => raw.name = Some(Arc::from(text(value))),
                    3 => raw.kind = Some(Arc::from(text(value))),
                    // IPSET_ATTR_INDEX
                    11 => raw.index = value.first_chunk().map(|b| u16::from_be_bytes(*b)),
                    // IPSET_ATTR_DATA: how it was created; IPSET_ATTR_ELEMENTS
                    7 => {
                        let mut created = Attributes::new(value);
                        for (kind, value) in &mut created {
                            if kind == 24 {
                                raw.elements_said = be32(value);
                            }
                        }
                        raw.broken |= created.broken();
                    }
                    // IPSET_ATTR_ADT
                    8 => {
                        let mut elements = Attributes::new(value);
                        for (kind, value) in &mut elements {
                            match kind {
                                7 => raw.elements.push(value),
                                _ => raw.broken = true,
                            }
                        }
                        raw.broken |= elements.broken();
                    }
                    _ => {}
                }
            }
            raw.broken |= attributes.broken();
        }
        raw
    }
}

impl Ipsets {
    /// Decoded. A set whose number is not known (kernels before 4.20 do not tell it) is left out: a
    /// rule that refers to it refers to an unknown set.
    pub fn of(captures: &[SetCapture]) -> Ipsets {
        let mut all = BTreeMap::new();
        for capture in captures {
            if let Some((index, set)) = one(capture) {
                all.insert(index, set);
            }
        }
        Ipsets(all)
    }
}

fn one(capture: &SetCapture) -> Option<(u16, Ipset)> {
    let raw = Raw::of(&capture.messages);
    let (name, index) = (raw.name?, raw.index?);
    let parts: Option<&[Part]> = match raw.kind.as_deref() {
        Some("hash:ip" | "hash:net") => Some(&[Part::Address]),
        Some("hash:ip,port") => Some(&[Part::Address, Part::ProtocolPort]),
        Some("hash:ip,port,ip" | "hash:ip,port,net") => {
            Some(&[Part::Address, Part::ProtocolPort, Part::Address])
        }
        Some("bitmap:port") => Some(&[Part::Port]),
        _ => None,
    };
    let mut elements = Vec::with_capacity(raw.elements.len());
    let mut unread = None;
    if !capture.listed {
        unread = Some("the elements of sets of others than kube-proxy are not read");
    } else if raw.broken {
        unread = Some("a message was not understood");
    } else if raw
        .elements_said
        .is_some_and(|said| said as usize != raw.elements.len())
    {
        unread = Some("it changed during every reading");
    } else if let Some(parts) = parts {
        for bytes in &raw.elements {
            match element(parts, bytes) {
                Some(element) => elements.push(element),
                None => {
                    unread = Some("an element was not understood");
                    break;
                }
            }
        }
    } else {
        unread = Some("a type of set that is not understood");
    }
    if unread.is_some() {
        elements.clear();
    }
    elements.sort_by(|a, b| format!("{:?}", a.key).cmp(&format!("{:?}", b.key)));
    let set = Set {
        name: name.clone(),
        handle: 0,
        map: false,
        dynamic: false,
        anonymous: false,
        timeout_ms: None,
        key_bytes: Vec::new(),
        key_type: 0,
        elements,
        unread: unread.map(Arc::from),
    };
    let parts = parts.unwrap_or_default().into();
    Some((index, Ipset { name, parts, set }))
}

/// The address of one family in a nest of its own (`IPSET_ATTR_IPADDR_*`).
fn address(value: &[u8]) -> Option<IpAddr> {
    let (kind, bytes) = Attributes::new(value).next()?;
    match kind {
        1 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into()),
        2 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into()),
        _ => None,
    }
}

/// One element; `None`: it has something that is not understood, or lacks something.
fn element(parts: &[Part], bytes: &[u8]) -> Option<Element> {
    let (mut first, mut last, mut cidr, mut second, mut cidr2) = (None, None, None, None, None);
    let (mut port, mut protocol) = (None, None);
    let mut attributes = Attributes::new(bytes);
    for (kind, value) in &mut attributes {
        match kind {
            1 => first = Some(address(value)?),
            2 => last = Some(address(value)?),
            3 => cidr = Some(*value.first()?),
            4 => port = Some((value.len() >= 2).then(|| be16(value))?),
            7 => protocol = Some(*value.first()?),
            20 => second = Some(address(value)?),
            21 => cidr2 = Some(*value.first()?),
            // IPSET_ATTR_COMMENT, _BYTES, _PACKETS, _PAD: count and tell only
            24 | 25 | 26 | 30 => {}
            // IPSET_ATTR_TIMEOUT, flags (`nomatch`), ranges of ports, links, marks
            _ => return None,
        }
    }
    if attributes.broken() {
        return None;
    }
    let prefix = |address: Option<IpAddr>, length: Option<u8>| {
        let address = address?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let net = IpNet::new(address, length.unwrap_or(most)).ok()?;
        Some(Value::Prefix(net.trunc()))
    };
    let mut key = Vec::with_capacity(4);
    let mut addresses = 0;
    for part in parts {
        match part {
            Part::Address if addresses == 0 => {
                addresses = 1;
                key.push(match last {
                    Some(last) => Value::addresses(first?, last),
                    None => prefix(first, cidr)?,
                });
            }
            Part::Address => key.push(prefix(second, cidr2)?),
            Part::ProtocolPort => {
                let (protocol, port) = (u64::from(protocol?), u64::from(port?));
                key.extend([Value::Number(protocol, protocol), Value::Number(port, port)]);
            }
            Part::Port => {
                let port = u64::from(port?);
                key.push(Value::Number(port, port));
            }
        }
    }
    Some(Element {
        key,
        data: None,
        comment: None,
        catch_all: false,
    })
}
