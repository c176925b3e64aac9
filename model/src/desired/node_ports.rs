//! On which addresses nodePorts are served (kube-proxy.md 2.8, 3.2, 5.5, 5.11).

use super::rules::{Rules, UnsetNodePorts};
use crate::address::{Family, Protocol};
use crate::profile::{NodePortAddress, ProxyConfig};
use crate::view::{Node, NodeView};
use ipnet::IpNet;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The node's primary addresses as kube-proxy takes them: `bindAddress` for its family, else the
/// first InternalIP, else the first ExternalIP.
#[derive(Clone, Copy, Debug)]
pub(super) enum NodeIps {
    /// At most one a family; `None`: kube-proxy works with a loopback address.
    Known {
        v4: Option<IpAddr>,
        v6: Option<IpAddr>,
    },
    /// Its Node is not in the view: any address of the node is possible.
    Unknown,
}

impl NodeIps {
    /// `finds_none`: it is known that kube-proxy finds no Node of its name.
    pub fn of(own: Option<&Node>, finds_none: bool, bind_address: Option<IpAddr>) -> NodeIps {
        let bound = |family| bind_address.filter(|a| Family::of(*a) == family && !a.is_loopback());
        if own.is_none() && !finds_none {
            return NodeIps::Unknown;
        }
        let first = |family| {
            let all = own
                .into_iter()
                .flat_map(|n| n.internal_ips.iter().chain(&n.external_ips));
            bound(family).or(all.copied().find(|a| Family::of(*a) == family))
        };
        NodeIps::Known {
            v4: first(Family::V4),
            v6: first(Family::V6),
        }
    }

    /// The address of a family; `None` where there is none or it is not known.
    pub fn get(&self, family: Family) -> Option<IpAddr> {
        match (self, family) {
            (NodeIps::Known { v4, .. }, Family::V4) => *v4,
            (NodeIps::Known { v6, .. }, Family::V6) => *v6,
            (NodeIps::Unknown, _) => None,
        }
    }
}

/// One address of the node, as a nodePort may be asked for there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NodePortAddr {
    pub address: IpAddr,
    pub served: Served,
}

/// Does kube-proxy serve nodePorts there?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Served {
    Yes,
    /// Its configuration is not known well enough.
    Perhaps,
    No,
    /// nftables 1.37 with the gate: refused on loopback; TCP too unless kube-proxy listens itself.
    Refused {
        tcp: bool,
    },
}

impl Served {
    /// Is this protocol refused here, with or without endpoints?
    pub fn refuses(self, protocol: Protocol) -> bool {
        match self {
            Served::Refused { tcp } => tcp || protocol != Protocol::Tcp,
            _ => false,
        }
    }
}

/// The addresses of one family.
#[derive(Clone, Debug)]
pub(super) struct NodePorts {
    /// Every address on the node's links but those of `kube-ipvs0`, each once.
    pub addresses: Vec<NodePortAddr>,
    /// iptables mode, IPv4: nodePorts work on 127/8, so packets to it from elsewhere that were not
    /// translated are dropped (`KUBE-FIREWALL`).
    pub localhost: bool,
}

enum Setting {
    All,
    Cidrs(Vec<IpNet>),
    Unknown,
}

impl NodePorts {
    /// Reads the configuration.
    pub fn of(
        family: Family,
        node: &NodeView,
        rules: &Rules,
        config: &ProxyConfig,
        node_ips: &NodeIps,
    ) -> NodePorts {
        let words = match config.node_port_addresses.as_deref() {
            Some(words) if !words.is_empty() => words.to_vec(),
            _ => match rules.unset_node_ports {
                UnsetNodePorts::All => vec![NodePortAddress::All],
                UnsetNodePorts::Primary => vec![NodePortAddress::Primary],
            },
        };
        let setting = setting(family, &words, rules, node_ips);
        let covers_loopback = match &setting {
            Setting::All => true,
            Setting::Cidrs(cidrs) => cidrs.iter().any(|c| {
                let start = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0));
                c.network().is_loopback() || c.contains(&start)
            }),
            Setting::Unknown => false,
        };
        let localhost = rules.iptables()
            && family == Family::V4
            && config.localhost_node_ports
            && covers_loopback;
        let on_links: BTreeSet<IpAddr> = node
            .addresses
            .iter()
            .filter(|a| &*a.link != "kube-ipvs0" && Family::of(a.address) == family)
            .map(|a| a.address)
            .collect();
        let starts_in_loopback = || match &setting {
            Setting::Cidrs(cidrs) => cidrs.iter().any(|c| c.network().is_loopback()),
            _ => false,
        };
        let served = |address: &IpAddr| {
            if address.is_loopback() && rules.loopback_node_ports_gate {
                // `localhost` beside `all` still counts.
                let listens = starts_in_loopback()
                    || words.contains(&NodePortAddress::Localhost)
                    || words.iter().any(|w| match w {
                        NodePortAddress::Cidr(c) => {
                            Family::of(c.network()) == family && c.network().is_loopback()
                        }
                        _ => false,
                    });
                return Served::Refused { tcp: !listens };
            }
            if address.is_loopback() && !localhost {
                return Served::No;
            }
            if rules.ipvs() && is_v6_link_local(*address) && matches!(setting, Setting::All) {
                // `GetAllLocalAddresses` leaves them out (4.2).
                return Served::No;
            }
            match &setting {
                Setting::All => Served::Yes,
                Setting::Cidrs(cidrs) if cidrs.iter().any(|c| c.contains(address)) => Served::Yes,
                Setting::Cidrs(_) => Served::No,
                Setting::Unknown => Served::Perhaps,
            }
        };
        let addresses = on_links
            .into_iter()
            .map(|address| NodePortAddr {
                address,
                served: served(&address),
            })
            .collect();
        NodePorts {
            addresses,
            localhost,
        }
    }
}

/// `NewNodePortAddresses` after `expandNodePortAddressKeywords`: the CIDRs of the family; none of
/// them means all addresses.
fn setting(
    family: Family,
    words: &[NodePortAddress],
    rules: &Rules,
    node_ips: &NodeIps,
) -> Setting {
    let mut cidrs = Vec::new();
    for word in words {
        match word {
            NodePortAddress::Cidr(cidr) if Family::of(cidr.network()) == family => {
                cidrs.push(*cidr);
            }
            NodePortAddress::Cidr(_) => {}
            NodePortAddress::Primary => {
                if matches!(node_ips, NodeIps::Unknown) {
                    return Setting::Unknown;
                }
                cidrs.extend(node_ips.get(family).map(IpNet::from));
            }
            NodePortAddress::Localhost => cidrs.push(match family {
                Family::V4 => IpNet::new_assert(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), 8),
                Family::V6 => IpNet::new_assert(IpAddr::V6(Ipv6Addr::LOCALHOST), 128),
            }),
            NodePortAddress::All => return Setting::All,
        }
    }
    if cidrs.iter().any(|c| c.prefix_len() == 0) {
        return Setting::All;
    }
    if cidrs.is_empty() {
        if rules.no_cidr_is_primary {
            return match (node_ips, node_ips.get(family)) {
                (NodeIps::Unknown, _) => Setting::Unknown,
                (_, Some(ip)) => Setting::Cidrs(vec![IpNet::from(ip)]),
                // 1.30 then works with its loopback address, which never serves.
                (_, None) => Setting::Cidrs(Vec::new()),
            };
        }
        return Setting::All;
    }
    Setting::Cidrs(cidrs)
}

fn is_v6_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(a) if a.segments()[0] & 0xffc0 == 0xfe80)
}
