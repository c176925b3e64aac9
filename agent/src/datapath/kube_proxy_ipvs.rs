//! kube-proxy in IPVS mode (kube-proxy.md 4).
//!
//! Three things have to fit together: the address on `kube-ipvs0`, by which packets to it are the
//! node's own; the virtual server that translates them; and the ipsets that decide about masquerade,
//! source ranges, and what the input hook lets through. The first is a matter of the node's addresses,
//! the others are followed as rules (`crate::ipvs`).

use super::{Datapath, Place, Signature, jump_hook};
use crate::ipvs::rules::{BASE, TABLE};
use crate::netfilter::ruleset::{Backend, Chain, Ruleset, Table, TableFamily};
use crate::netfilter::walk::{Names, Owner};
use model::address::{Family, Frontend};
use model::capture::Hook;
use model::finding::Evidence;
use model::name::ServicePortName;
use model::profile::ProxyMode;
use model::table::{Action, DecidedBy, Forwarding, Observed};
use model::view::NodeView;
use std::net::IpAddr;
use std::sync::Arc;

/// kube-proxy in IPVS mode.
#[derive(Clone, Copy, Debug)]
pub struct Ipvs;

/// The link that holds the addresses of Services (4.1).
const DUMMY: &str = "kube-ipvs0";

/// Chains that only IPVS mode writes (1.4).
const PROOF: [&str; 5] = [
    "KUBE-LOAD-BALANCER",
    "KUBE-NODE-PORT",
    "KUBE-IPVS-FILTER",
    "KUBE-IPVS-OUT-FILTER",
    "KUBE-SOURCE-RANGES-FIREWALL",
];

/// Chains that it shares with iptables mode.
const SHARED: [&str; 5] = [
    "KUBE-SERVICES",
    "KUBE-POSTROUTING",
    "KUBE-MARK-MASQ",
    "KUBE-FORWARD",
    "KUBE-PROXY-FIREWALL",
];

/// The chain with the source ranges of load balancers (4.5).
const RANGES: &str = "KUBE-SOURCE-RANGES-FIREWALL";

/// Table, base chain, target, essential (4.5). Without the first three, packets that must be
/// masqueraded are not.
const JUMPS: [(&str, &str, &str, bool); 9] = [
    ("nat", "OUTPUT", "KUBE-SERVICES", true),
    ("nat", "PREROUTING", "KUBE-SERVICES", true),
    ("nat", "POSTROUTING", "KUBE-POSTROUTING", true),
    ("filter", "FORWARD", "KUBE-FORWARD", false),
    ("filter", "INPUT", "KUBE-NODE-PORT", false),
    ("filter", "INPUT", "KUBE-PROXY-FIREWALL", false),
    ("filter", "FORWARD", "KUBE-PROXY-FIREWALL", false),
    ("filter", "INPUT", "KUBE-IPVS-FILTER", false),
    ("filter", "OUTPUT", "KUBE-IPVS-OUT-FILTER", false),
];

impl Owner for Ipvs {
    fn name(&self) -> &'static str {
        "kube-proxy/ipvs"
    }

    fn owns(&self, table: &Table, chain: &Chain) -> bool {
        if table.backend == Backend::Ipvs {
            return true;
        }
        matches!(&*table.name, "nat" | "filter")
            && matches!(table.family, TableFamily::Ip | TableFamily::Ip6)
            && chain.hook.is_none()
            && (PROOF.contains(&&*chain.name) || SHARED.contains(&&*chain.name))
    }

    fn filters_sources(&self, chain: &str) -> bool {
        chain == RANGES
    }

    /// Nothing of this mode says whose it is.
    fn service_of(&self, _: &Names<'_>) -> Option<ServicePortName> {
        None
    }
}

fn fits(table: &Table, family: Family) -> bool {
    match table.family {
        TableFamily::Ip => family == Family::V4,
        TableFamily::Ip6 => family == Family::V6,
        TableFamily::Inet | TableFamily::Other(_) => false,
    }
}

fn word(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

fn proves(table: &Table) -> bool {
    matches!(&*table.name, "nat" | "filter")
        && table.backend != Backend::Ipvs
        && PROOF.iter().any(|name| table.chain(name).is_some())
}

/// How many virtual servers a family has.
fn servers(ruleset: &Ruleset, family: Family) -> usize {
    let all = ruleset.tables.iter();
    let tables = all.filter(|t| t.backend == Backend::Ipvs && fits(t, family));
    let chains = tables.flat_map(|t| &t.chains);
    chains.filter(|c| c.hook.is_none()).count()
}

impl Datapath for Ipvs {
    fn mode(&self) -> ProxyMode {
        ProxyMode::Ipvs
    }

    /// Virtual servers alone may be anybody's; kube-proxy's have its chains beside them.
    fn detect(&self, ruleset: &Ruleset) -> Vec<Signature> {
        let chains = ruleset.tables.iter().any(proves);
        let count: usize = Family::ALL.into_iter().map(|f| servers(ruleset, f)).sum();
        if !chains {
            return Vec::new();
        }
        vec![Signature {
            name: "kube-proxy/ipvs".into(),
            why: format!(
                "the chains of kube-proxy's IPVS mode are there, with {count} virtual servers"
            ),
            hooked: count > 0,
        }]
    }

    fn hooks(&self, ruleset: &Ruleset, family: Family) -> Vec<Hook> {
        let of = |name: &str| {
            let all = ruleset.tables.iter();
            let ours = |t: &&Table| t.chains.iter().filter(|c| Ipvs.owns(t, c)).count();
            all.filter(|t| t.backend != Backend::Ipvs && fits(t, family) && *t.name == *name)
                .max_by_key(ours)
        };
        JUMPS
            .into_iter()
            .map(|(name, from, to, essential)| {
                jump_hook(family, of(name), (word(family), name), from, to, essential)
            })
            .collect()
    }

    fn places(&self, _: bool) -> &'static [Place] {
        const PLACES: [Place; 2] = [
            Place {
                table: TABLE,
                chain: BASE[0].0,
                map: None,
            },
            Place {
                table: TABLE,
                chain: BASE[1].0,
                map: None,
            },
        ];
        &PLACES
    }

    /// No virtual server, or one that no packet from elsewhere gets to.
    fn absence(&self, ruleset: &Ruleset, node: &NodeView, frontend: &Frontend) -> Option<Evidence> {
        let Frontend::Port {
            address,
            protocol,
            port,
        } = *frontend
        else {
            return None;
        };
        let front = crate::ipvs::decode::Front::Point {
            address,
            protocol: protocol.number(),
            port,
        };
        let name = crate::ipvs::decode::name(&front);
        let mut tables = ruleset.tables.iter();
        let there = tables.any(|t| t.backend == Backend::Ipvs && t.chain(&name).is_some());
        let says = match there {
            false => "there is no such virtual server".into(),
            true if node.is_local(address) => return None,
            true => {
                format!("{address} is on no link of the node ({DUMMY}), so packets pass it by")
            }
        };
        Some(Evidence {
            family: "ipvs".into(),
            table: TABLE.into(),
            chain: name.into(),
            handle: None,
            element: None,
            says: says.into(),
        })
    }

    /// An address that is left on `kube-ipvs0` (I 78421) ends at the node whatever the port, also where
    /// somebody else in the network has it. What a client gets is what the node's own kernel says to a
    /// port that nobody listens on.
    fn others(&self, node: &NodeView) -> Vec<(Frontend, Observed)> {
        let bound = node.addresses.iter().filter(|a| &*a.link == DUMMY);
        // Every link has a link-local one of IPv6, when it is up.
        let bound =
            bound.filter(|a| !matches!(a.address, IpAddr::V6(a) if a.is_unicast_link_local()));
        bound
            .map(|a| {
                let evidence = Evidence {
                    family: "link".into(),
                    table: DUMMY.into(),
                    chain: a.address.to_string().into(),
                    handle: None,
                    element: None,
                    says: "is held, so packets to it end at this node".into(),
                };
                let row = Observed {
                    forwarding: Forwarding::without_backends(None, Action::Reject),
                    decided_by: DecidedBy::Datapath,
                    evidence: Arc::new([evidence]),
                    backend_evidence: Arc::default(),
                };
                (Frontend::Address(a.address), row)
            })
            .collect()
    }

    fn has_family(&self, ruleset: &Ruleset, family: Family) -> bool {
        servers(ruleset, family) > 0 || ruleset.tables.iter().any(|t| fits(t, family) && proves(t))
    }

    fn owner(&self) -> &dyn Owner {
        self
    }
}
