//! What a client connects to, and from where.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

/// IP family. kube-proxy runs one proxier for each; they fail separately.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Family {
    /// IPv4.
    #[serde(rename = "IPv4")]
    V4,
    /// IPv6.
    #[serde(rename = "IPv6")]
    V6,
}

impl Family {
    /// Both, in the order that outputs use.
    pub const ALL: [Family; 2] = [Family::V4, Family::V6];

    /// The family of an address.
    pub fn of(address: IpAddr) -> Family {
        if address.is_ipv4() {
            Family::V4
        } else {
            Family::V6
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        })
    }
}

/// Transport protocol of a service port (`core/v1` Protocol).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// 6.
    Tcp,
    /// 17.
    Udp,
    /// 132.
    Sctp,
}

impl Protocol {
    /// The IANA protocol number.
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }

    /// From the IANA protocol number; `None` for those no Service can have.
    pub fn from_number(n: u8) -> Option<Protocol> {
        match n {
            6 => Some(Protocol::Tcp),
            17 => Some(Protocol::Udp),
            132 => Some(Protocol::Sctp),
            _ => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::Sctp => "SCTP",
        })
    }
}

impl FromStr for Protocol {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "TCP" | "tcp" => Ok(Protocol::Tcp),
            "UDP" | "udp" => Ok(Protocol::Udp),
            "SCTP" | "sctp" => Ok(Protocol::Sctp),
            _ => Err(format!("{s:?} is not TCP, UDP or SCTP")),
        }
    }
}

/// What a client connects to.
///
/// Text (contract of `table`): `10.96.0.10:80/TCP`, `[fd00::1]:80/TCP`; wildcards
/// `10.96.0.10:*/*` (the address's other ports) and `10.96.0.0/16:*/*` (other addresses of a range);
/// IPv6 wildcards `[fd00::1]:*/*` and `[fd00::/112]:*/*`. Addresses as in RFC 5952.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Frontend {
    /// One address, protocol and port.
    Port {
        /// Destination address.
        address: IpAddr,
        /// Transport protocol.
        protocol: Protocol,
        /// Destination port.
        port: u16,
    },
    /// Every other port of an address.
    Address(IpAddr),
    /// Every other address of a range.
    Prefix(IpNet),
}

impl Frontend {
    /// One address, protocol and port.
    pub fn port(address: IpAddr, protocol: Protocol, port: u16) -> Frontend {
        Frontend::Port {
            address,
            protocol,
            port,
        }
    }

    /// The family of its address.
    pub fn family(&self) -> Family {
        Family::of(self.address())
    }

    /// The address, or the first address of the range.
    pub fn address(&self) -> IpAddr {
        match self {
            Frontend::Port { address, .. } | Frontend::Address(address) => *address,
            Frontend::Prefix(p) => p.network(),
        }
    }

    /// Is it `address:*/*` or `prefix:*/*`?
    pub fn is_wildcard(&self) -> bool {
        !matches!(self, Frontend::Port { .. })
    }

    fn order(&self) -> (Family, IpAddr, u8, Option<Protocol>, u16) {
        match *self {
            Frontend::Port {
                address,
                protocol,
                port,
            } => (Family::of(address), address, 0, Some(protocol), port),
            Frontend::Address(address) => (Family::of(address), address, 1, None, 0),
            Frontend::Prefix(p) => (
                Family::of(p.network()),
                p.network(),
                2,
                None,
                u16::from(p.prefix_len()),
            ),
        }
    }
}

impl PartialOrd for Frontend {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Frontend {
    /// Family, address, protocol, port; an address's wildcard after its ports.
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.order().cmp(&other.order())
    }
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Frontend::Port {
                address,
                protocol,
                port,
            } => {
                write!(f, "{}/{protocol}", SocketAddr::new(*address, *port))
            }
            Frontend::Address(IpAddr::V4(a)) => write!(f, "{a}:*/*"),
            Frontend::Address(IpAddr::V6(a)) => write!(f, "[{a}]:*/*"),
            Frontend::Prefix(IpNet::V4(p)) => write!(f, "{p}:*/*"),
            Frontend::Prefix(IpNet::V6(p)) => write!(f, "[{p}]:*/*"),
        }
    }
}

impl FromStr for Frontend {
    type Err = String;

    /// Reads the text form.
    fn from_str(s: &str) -> Result<Self, String> {
        let bad = || format!("{s:?} is not a frontend (10.96.0.10:80/TCP)");
        if let Some(host) = s.strip_suffix(":*/*") {
            let host = host.trim_start_matches('[').trim_end_matches(']');
            return if host.contains('/') {
                host.parse().map(Frontend::Prefix).map_err(|_| bad())
            } else {
                host.parse().map(Frontend::Address).map_err(|_| bad())
            };
        }
        let (socket, protocol) = s.rsplit_once('/').ok_or_else(bad)?;
        let socket: SocketAddr = socket.parse().map_err(|_| bad())?;
        Ok(Frontend::port(
            socket.ip(),
            protocol.parse()?,
            socket.port(),
        ))
    }
}

impl From<Frontend> for String {
    fn from(f: Frontend) -> String {
        f.to_string()
    }
}

impl TryFrom<String> for Frontend {
    type Error = String;

    fn try_from(s: String) -> Result<Self, String> {
        s.parse()
    }
}

/// Where a client stands. What it gets depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceClass {
    /// What kube-proxy's local detector calls local: a Pod (kube-proxy.md 1.5). Without a detector
    /// such a packet is treated as one from outside.
    Pod,
    /// Sent by the node itself: any process in its network namespace.
    Node,
    /// Everything else that reaches the node over a link.
    Outside,
}

impl SourceClass {
    /// All, in the order that outputs use.
    pub const ALL: [SourceClass; 3] = [SourceClass::Pod, SourceClass::Node, SourceClass::Outside];
}

impl fmt::Display for SourceClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SourceClass::Pod => "pod",
            SourceClass::Node => "node",
            SourceClass::Outside => "outside",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frontend_text_goes_both_ways() {
        for text in [
            "10.96.0.10:80/TCP",
            "[fd00::1]:53/UDP",
            "10.96.0.10:*/*",
            "[fd00::1]:*/*",
            "10.96.0.0/16:*/*",
            "[fd00::/112]:*/*",
        ] {
            assert_eq!(text.parse::<Frontend>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "10.96.0.10",
            "10.96.0.10:80",
            "10.96.0.10:80/ICMP",
            "x:*/*",
        ] {
            assert!(text.parse::<Frontend>().is_err(), "{text}");
        }
    }
}
