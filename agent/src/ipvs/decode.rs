//! Virtual and real servers from their messages (linux/ip_vs.h). Every function takes any bytes and
//! never panics.

use super::capture::Capture;
use crate::netfilter::nftables::attributes::{Attributes, align4, be16, be32, text};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

/// `struct genlmsghdr`.
const HEADER: usize = 4;
/// `IP_VS_SVC_F_PERSISTENT`.
const PERSISTENT: u32 = 0x1;
/// `IP_VS_SVC_F_ONEPACKET`.
const ONE_PACKET: u32 = 0x4;
/// `IP_VS_CONN_F_FWD_MASK`.
const FORWARDING: u32 = 0x7;

/// What packets a virtual server is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Front {
    /// Packets with this mark, of either family as the flag says.
    Mark {
        /// IPv6.
        v6: bool,
        /// The mark.
        mark: u32,
    },
    /// Packets to this point; port 0: any port.
    Point {
        /// Address.
        address: IpAddr,
        /// Transport protocol number.
        protocol: u8,
        /// Port.
        port: u16,
    },
}

/// How a client stays with a real server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Persistence {
    /// Seconds.
    pub seconds: u32,
    /// Clients are told apart by their whole address.
    pub whole_address: bool,
}

/// What becomes of a packet that a real server gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Method {
    /// `IP_VS_CONN_F_MASQ`: the destination is translated.
    Masquerade,
    /// Local node, tunnel, direct routing or bypass, by its number.
    Other(u32),
}

/// A real server.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RealServer {
    /// Address and port.
    pub address: SocketAddr,
    /// 0: no new connections.
    pub weight: u32,
    /// How it gets them.
    pub method: Method,
    /// It stops getting connections above this many; 0: never.
    pub upper_threshold: u32,
    /// Active, inactive and persistent connections. They change with every packet.
    pub connections: Connections,
}

/// Connections that a real server has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Connections {
    /// Active.
    pub active: u32,
    /// Inactive.
    pub inactive: u32,
    /// Templates of persistent clients.
    pub persistent: u32,
}

/// A virtual server.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct VirtualServer {
    /// What it is for.
    pub front: Front,
    /// The scheduler's name.
    pub scheduler: Arc<str>,
    /// `None`: each connection is scheduled anew.
    pub persistence: Option<Persistence>,
    /// Each packet is scheduled anew (`IP_VS_SVC_F_ONEPACKET`).
    pub one_packet: bool,
    /// Real servers, sorted by address.
    pub real: Vec<RealServer>,
}

/// The family's number in the answer to `CTRL_CMD_GETFAMILY` (linux/genetlink.h, `CTRL_ATTR_FAMILY_ID`).
pub fn family(message: &[u8]) -> Option<u16> {
    let id = find(message.get(HEADER..)?, 1)?;
    id.first_chunk::<2>().map(|b| u16::from_ne_bytes(*b))
}

/// The attributes that name a service, to ask for its real servers: `IPVS_SVC_ATTR_AF`, `_PROTOCOL`,
/// `_ADDR`, `_PORT`, `_FWMARK`. `None`: not understood.
pub fn key(service: &[u8]) -> Option<Vec<u8>> {
    let nest = find(service.get(HEADER..)?, 1)?;
    let mut key = Vec::new();
    for (kind, value) in Attributes::new(nest) {
        if (1..=5).contains(&kind) {
            key.extend_from_slice(&u16::try_from(4 + value.len()).ok()?.to_ne_bytes());
            key.extend_from_slice(&kind.to_ne_bytes());
            key.extend_from_slice(value);
            key.resize(align4(key.len()), 0);
        }
    }
    (!key.is_empty()).then_some(key)
}

/// Do two lists of services hold the same ones, set up the same? Statistics apart, in any order.
pub fn same_services<'m>(
    one: impl Iterator<Item = &'m [u8]>,
    other: impl Iterator<Item = &'m [u8]>,
) -> bool {
    fn all<'m>(list: impl Iterator<Item = &'m [u8]>) -> Option<Vec<VirtualServer>> {
        let mut all: Vec<VirtualServer> = list.map(server).collect::<Option<_>>()?;
        all.sort();
        Some(all)
    }
    match (all(one), all(other)) {
        (Some(one), Some(other)) => one == other && one.windows(2).all(|w| w[0] != w[1]),
        // Not understood: the decoder will say so.
        _ => true,
    }
}

/// Do two lists of real servers hold the same ones, set up the same? Connections and statistics apart.
pub fn same_destinations(one: &[Vec<u8>], other: &[Vec<u8>]) -> bool {
    let all = |list: &[Vec<u8>]| -> Option<BTreeSet<RealServer>> {
        let each = list.iter().map(|m| {
            destination(m, 0).map(|d| RealServer {
                connections: Connections::default(),
                ..d
            })
        });
        each.collect()
    };
    let (one, other) = (
        all(one).map(|a| (a.len(), a)),
        all(other).map(|a| (a.len(), a)),
    );
    one == other
}

/// All of them.
///
/// # Errors
/// The first that is not understood, in words.
pub fn servers(capture: &Capture) -> Result<Vec<VirtualServer>, String> {
    let mut all = Vec::with_capacity(capture.servers.len());
    for one in &capture.servers {
        let Some(mut server) = server(&one.service) else {
            return Err("a virtual server was not understood".into());
        };
        let family = match server.front {
            Front::Mark { v6: false, .. }
            | Front::Point {
                address: IpAddr::V4(_),
                ..
            } => AF_INET,
            _ => AF_INET6,
        };
        for message in &one.destinations {
            match destination(message, family) {
                Some(real) => server.real.push(real),
                None => {
                    return Err(format!(
                        "a real server of {} was not understood",
                        name(&server.front)
                    ));
                }
            }
        }
        server.real.sort();
        all.push(server);
    }
    all.sort();
    Ok(all)
}

/// A virtual server as evidence names it: `tcp 10.96.0.10:80`.
pub fn name(front: &Front) -> String {
    match front {
        Front::Mark { v6, mark } => format!("mark {mark}{}", if *v6 { " (IPv6)" } else { "" }),
        Front::Point {
            address,
            protocol,
            port,
        } => {
            let protocol: Arc<str> = match protocol {
                6 => "tcp".into(),
                17 => "udp".into(),
                132 => "sctp".into(),
                n => format!("protocol {n}").into(),
            };
            format!("{protocol} {}", SocketAddr::new(*address, *port))
        }
    }
}

const AF_INET: u16 = libc::AF_INET as u16;
const AF_INET6: u16 = libc::AF_INET6 as u16;

fn find(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    let mut attributes = Attributes::new(bytes);
    let found = attributes.by_ref().find(|(kind, _)| *kind == wanted);
    found.map(|(_, value)| value)
}

fn native16(value: &[u8]) -> Option<u16> {
    value.first_chunk::<2>().map(|b| u16::from_ne_bytes(*b))
}

fn native32(value: &[u8]) -> Option<u32> {
    value.first_chunk::<4>().map(|b| u32::from_ne_bytes(*b))
}

/// `union nf_inet_addr`, of which a family uses the beginning.
fn address(family: u16, value: &[u8]) -> Option<IpAddr> {
    match family {
        AF_INET => Some(Ipv4Addr::from(*value.first_chunk::<4>()?).into()),
        AF_INET6 => Some(Ipv6Addr::from(*value.first_chunk::<16>()?).into()),
        _ => None,
    }
}

/// A virtual server without its real ones.
fn server(message: &[u8]) -> Option<VirtualServer> {
    let nest = find(message.get(HEADER..)?, 1)?;
    let (mut family, mut protocol, mut raw, mut port, mut mark) = (None, None, None, None, None);
    let (mut scheduler, mut flags, mut timeout, mut netmask) = (None, None, None, None);
    let mut attributes = Attributes::new(nest);
    for (kind, value) in &mut attributes {
        match kind {
            1 => family = Some(native16(value)?),
            2 => protocol = Some(native16(value)?),
            3 => raw = Some(value),
            4 => port = (value.len() >= 2).then(|| be16(value)),
            5 => mark = Some(native32(value)?),
            6 => scheduler = Some(Arc::from(text(value))),
            // struct ip_vs_flags: flags, mask
            7 => flags = Some(native32(value)?),
            8 => timeout = Some(native32(value)?),
            // IPv4: a mask, in network order; IPv6: the length of a prefix, as a number
            9 => netmask = Some((native32(value)?, be32(value)?)),
            _ => {}
        }
    }
    if attributes.broken() {
        return None;
    }
    let family = family?;
    let front = match mark {
        Some(mark) => Front::Mark {
            v6: match family {
                AF_INET => false,
                AF_INET6 => true,
                _ => return None,
            },
            mark,
        },
        None => Front::Point {
            address: address(family, raw?)?,
            protocol: u8::try_from(protocol?).ok()?,
            port: port?,
        },
    };
    let flags = flags?;
    let persistence = if flags & PERSISTENT != 0 {
        let (length, mask) = netmask?;
        Some(Persistence {
            seconds: timeout?,
            whole_address: match family {
                AF_INET => mask == u32::MAX,
                _ => length == 128,
            },
        })
    } else {
        None
    };
    Some(VirtualServer {
        front,
        scheduler: scheduler?,
        persistence,
        one_packet: flags & ONE_PACKET != 0,
        real: Vec::new(),
    })
}

/// A real server. `family` is its service's; kernels from 3.18 say the real server's own.
fn destination(message: &[u8], family: u16) -> Option<RealServer> {
    let nest = find(message.get(HEADER..)?, 2)?;
    let (mut own, mut raw, mut port, mut method, mut weight) = (None, None, None, None, None);
    let (mut upper, mut connections) = (0, Connections::default());
    let mut attributes = Attributes::new(nest);
    for (kind, value) in &mut attributes {
        match kind {
            1 => raw = Some(value),
            2 => port = (value.len() >= 2).then(|| be16(value)),
            3 => method = Some(native32(value)?),
            4 => weight = Some(native32(value)?),
            5 => upper = native32(value)?,
            7 => connections.active = native32(value)?,
            8 => connections.inactive = native32(value)?,
            9 => connections.persistent = native32(value)?,
            11 => own = Some(native16(value)?),
            _ => {}
        }
    }
    if attributes.broken() {
        return None;
    }
    Some(RealServer {
        address: SocketAddr::new(address(own.unwrap_or(family), raw?)?, port?),
        weight: weight?,
        method: match method? & FORWARDING {
            0 => Method::Masquerade,
            other => Method::Other(other),
        },
        upper_threshold: upper,
        connections,
    })
}
