//! Who may have sent the packet: what is known of the source address.
//!
//! A walk follows a packet whose destination is a point and whose source is only known by its
//! class. A condition on the source is decided by the class, by what earlier conditions said, or
//! splits the walk.

use ipnet::IpNet;
use model::address::{Family, SourceClass};
use model::profile::LocalDetector;
use model::view::NodeView;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

/// Prefixes shared between states of the walk.
pub(super) type Prefixes = Rc<[IpNet]>;

/// The addresses that the source may have.
#[derive(Clone, Debug)]
enum Addresses {
    /// One of these.
    OneOf(Vec<IpAddr>),
    /// Inside the prefix.
    Within(IpNet),
    /// Outside the prefix, where there is one.
    AllBut(Option<IpNet>),
}

/// How the link that a packet came in on is known.
#[derive(Clone, Debug)]
enum Link {
    /// Exactly.
    Named(Arc<str>),
    /// It is, or is not, one that the detector means: a name, or with `true` a prefix of one.
    Detector {
        name: Arc<str>,
        prefix: bool,
        is: bool,
    },
    /// Not at all; not the loopback link.
    Some,
    /// There is none: sent by the node itself.
    None,
}

/// What is known of a packet's source from its class, or from a concrete packet.
#[derive(Clone, Debug)]
pub(super) struct Source {
    addresses: Addresses,
    /// The node's own addresses: nobody else sends with them.
    own: Vec<IpAddr>,
    link: Link,
    /// Sent by the node itself.
    pub from_node: bool,
    /// A concrete packet: nothing about the source is open.
    pub exact: bool,
    /// Its port, where it is concrete.
    pub port: Option<u16>,
}

/// An answer to a condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Truth {
    Yes,
    No,
    /// Depends on whether the source address is in these.
    Source(Prefixes),
    /// Depends on something unknown; the text says what.
    Unknown(Arc<str>),
}

impl Truth {
    pub fn of(b: bool) -> Truth {
        if b { Truth::Yes } else { Truth::No }
    }
}

impl Source {
    /// What the class says in a family.
    pub fn of_class(
        class: SourceClass,
        family: Family,
        detector: &LocalDetector,
        node: &NodeView,
    ) -> Source {
        let own: Vec<IpAddr> = node
            .addresses
            .iter()
            .filter(|a| Family::of(a.address) == family)
            .map(|a| a.address)
            .collect();
        let cidr = detector.cidr(family);
        let detect = |is: bool| match detector {
            LocalDetector::Bridge(name) => Link::Detector {
                name: name.clone(),
                prefix: false,
                is,
            },
            LocalDetector::InterfacePrefix(name) => Link::Detector {
                name: name.clone(),
                prefix: true,
                is,
            },
            _ => Link::Some,
        };
        let (addresses, link) = match class {
            SourceClass::Pod => (
                cidr.map_or(Addresses::AllBut(None), Addresses::Within),
                detect(true),
            ),
            SourceClass::Outside => (Addresses::AllBut(cidr), detect(false)),
            SourceClass::Node => (
                Addresses::OneOf(node_sources(node, family, cidr)),
                Link::None,
            ),
        };
        Source {
            addresses,
            own,
            link,
            from_node: class == SourceClass::Node,
            exact: false,
            port: None,
        }
    }

    /// A concrete packet; without a link it is sent by the node itself.
    pub fn exact(
        address: IpAddr,
        port: Option<u16>,
        link: Option<Arc<str>>,
        node: &NodeView,
    ) -> Source {
        Source {
            addresses: Addresses::OneOf(vec![address]),
            own: node.addresses.iter().map(|a| a.address).collect(),
            from_node: link.is_none(),
            link: link.map_or(Link::None, Link::Named),
            exact: true,
            port,
        }
    }

    /// A packet that the node sends to its own loopback address has that as source.
    pub fn to_loopback(&self, daddr: IpAddr) -> Source {
        let mut source = self.clone();
        if !self.exact && self.from_node && daddr.is_loopback() {
            source.addresses = Addresses::OneOf(vec![daddr]);
        }
        source
    }

    /// So has one that the node sends to an address of `kube-ipvs0`: the kernel's local route to it
    /// names itself as source. Nobody else's packets have it.
    pub fn to_dummy(&self, daddr: IpAddr) -> Source {
        Source {
            addresses: Addresses::OneOf(vec![daddr]),
            exact: true,
            ..self.clone()
        }
    }

    /// Is the source address in one of the prefixes, as far as the class says?
    fn class_decides(&self, prefixes: &[IpNet]) -> Option<bool> {
        match &self.addresses {
            Addresses::OneOf(all) => {
                let inside = all
                    .iter()
                    .filter(|a| prefixes.iter().any(|p| p.contains(*a)))
                    .count();
                match inside {
                    0 if !all.is_empty() => Some(false),
                    // Lists of single addresses split the walk even so: what they mean is a client
                    // that is itself the backend.
                    n if n == all.len()
                        && n > 0
                        && (self.exact || !prefixes.iter().all(is_host)) =>
                    {
                        Some(true)
                    }
                    _ => None,
                }
            }
            Addresses::Within(cidr) => {
                if prefixes.iter().any(|p| p.contains(cidr)) {
                    Some(true)
                } else if prefixes
                    .iter()
                    .all(|p| !overlap(p, cidr) || self.nobodys(p))
                {
                    Some(false)
                } else {
                    None
                }
            }
            Addresses::AllBut(cidr) => {
                if prefixes.iter().any(|p| p.prefix_len() == 0) {
                    Some(true)
                } else if prefixes
                    .iter()
                    .all(|p| cidr.is_some_and(|c| c.contains(p)) || self.nobodys(p))
                {
                    Some(false)
                } else {
                    None
                }
            }
        }
    }

    /// A prefix that no packet over a link has as source: loopback, or one of the node's addresses.
    fn nobodys(&self, prefix: &IpNet) -> bool {
        let loopback = match prefix {
            IpNet::V4(p) => p.prefix_len() >= 8 && p.network().is_loopback(),
            IpNet::V6(p) => p.prefix_len() == 128 && p.network().is_loopback(),
        };
        loopback || (is_host(prefix) && self.own.contains(&prefix.addr()))
    }

    /// Did the packet come in on a link of this name, or with `prefix` one that starts so?
    /// `looped`: it has left the node by `lo` and comes in again.
    pub fn came_in_on(&self, name: &str, prefix: bool, looped: bool) -> Truth {
        let fits = |link: &str| {
            if prefix {
                link.starts_with(name)
            } else {
                link == name
            }
        };
        match &self.link {
            _ if looped => Truth::of(fits("lo")),
            Link::None => Truth::of(fits("")),
            Link::Named(link) => Truth::of(fits(link)),
            _ if !prefix && name == "lo" => Truth::No,
            Link::Detector {
                name: link,
                prefix: p,
                is,
            } if **link == *name && *p == prefix => Truth::of(*is),
            Link::Detector {
                name: link,
                prefix: p,
                is: true,
            } => {
                let known = match (*p, prefix) {
                    // One link, known by name.
                    (false, _) => Some(fits(link)),
                    (true, true) if link.starts_with(name) => Some(true),
                    (true, true) if !name.starts_with(&**link) => Some(false),
                    (true, false) if !name.starts_with(&**link) => Some(false),
                    _ => None,
                };
                known.map_or_else(|| unknown_link(name), Truth::of)
            }
            _ => unknown_link(name),
        }
    }
}

/// The answer of somebody who does not know the link.
pub(super) fn unknown_link(name: &str) -> Truth {
    Truth::Unknown(
        format!("depends on the link that the packet comes in on or leaves by ({name})").into(),
    )
}

/// The addresses a process of the node may send from: not those of `kube-ipvs0`, which routing
/// never chooses, and not those that the detector takes for a Pod's (the node's end of the Pod
/// network), unless there is no other.
fn node_sources(node: &NodeView, family: Family, cidr: Option<IpNet>) -> Vec<IpAddr> {
    let all: Vec<IpAddr> = node
        .addresses
        .iter()
        .filter(|a| Family::of(a.address) == family && &*a.link != "kube-ipvs0")
        .map(|a| a.address)
        .collect();
    let routed = |a: &IpAddr| !a.is_loopback() && !is_link_local(*a);
    let outside = |a: &IpAddr| cidr.is_none_or(|c| !c.contains(a));
    for wanted in [
        all.iter()
            .copied()
            .filter(|a| routed(a) && outside(a))
            .collect::<Vec<_>>(),
        all.iter().copied().filter(routed).collect(),
    ] {
        if !wanted.is_empty() {
            return wanted;
        }
    }
    all
}

fn is_link_local(a: IpAddr) -> bool {
    match a {
        IpAddr::V4(a) => a.is_link_local(),
        IpAddr::V6(a) => (a.segments()[0] & 0xffc0) == 0xfe80,
    }
}

/// What conditions on the source have said so far on one way of the walk.
#[derive(Clone, Debug, Default)]
pub(super) struct Constraints {
    inside: Vec<Prefixes>,
    outside: Vec<Prefixes>,
}

impl Constraints {
    pub fn add(&mut self, prefixes: Prefixes, inside: bool) {
        if inside {
            self.inside.push(prefixes)
        } else {
            self.outside.push(prefixes)
        }
    }

    /// What they say about a further condition.
    fn decide(&self, prefixes: &[IpNet]) -> Option<bool> {
        for known in &self.inside {
            if known.iter().all(|k| prefixes.iter().any(|p| p.contains(k))) {
                return Some(true);
            }
            if known
                .iter()
                .all(|k| prefixes.iter().all(|p| !overlap(p, k)))
            {
                return Some(false);
            }
        }
        for known in &self.outside {
            if prefixes.iter().all(|p| known.iter().any(|k| k.contains(p))) {
                return Some(false);
            }
        }
        None
    }
}

/// Decides whether the source is in one of the prefixes.
///
/// In a chain that filters sources (`ranges`) the class does not count: the ranges are shown as
/// the rules say them, for every class.
pub(super) fn decide(
    source: &Source,
    constraints: &Constraints,
    in_ranges: &Constraints,
    ranges: bool,
    prefixes: &Prefixes,
) -> Truth {
    let known = if ranges && !source.exact {
        in_ranges.decide(prefixes)
    } else {
        source
            .class_decides(prefixes)
            .or_else(|| constraints.decide(prefixes))
    };
    known.map_or_else(|| Truth::Source(prefixes.clone()), Truth::of)
}

/// Do two prefixes have an address in common?
pub(super) fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// Is it one address?
pub(super) fn is_host(p: &IpNet) -> bool {
    p.prefix_len() == p.max_prefix_len()
}

/// The prefixes of a range of addresses, both ends included.
pub(super) fn range_prefixes(first: IpAddr, last: IpAddr) -> Vec<IpNet> {
    match (first, last) {
        (IpAddr::V4(a), IpAddr::V4(b)) if a <= b => {
            ipnet::Ipv4Subnets::new(a, b, 0).map(IpNet::V4).collect()
        }
        (IpAddr::V6(a), IpAddr::V6(b)) if a <= b => {
            ipnet::Ipv6Subnets::new(a, b, 0).map(IpNet::V6).collect()
        }
        _ => Vec::new(),
    }
}
