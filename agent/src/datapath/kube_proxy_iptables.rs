//! kube-proxy in iptables mode, over either backend (kube-proxy.md 3).

use super::{Datapath, Place, Signature, backend_word, jump_hook};
use crate::netfilter::ruleset::{Backend, Chain, Ruleset, Table, TableFamily};
use crate::netfilter::walk::{Names, Owner};
use model::address::Family;
use model::capture::Hook;
use model::name::ServicePortName;
use model::profile::ProxyMode;

/// kube-proxy in iptables mode.
#[derive(Clone, Copy, Debug)]
pub struct Iptables;

/// Prefixes of the chains of single service ports (3.1).
const PER_SERVICE: [&str; 5] = [
    "KUBE-SVC-",
    "KUBE-SVL-",
    "KUBE-EXT-",
    "KUBE-FW-",
    "KUBE-SEP-",
];

/// The chains that always exist (3.2). `KUBE-FIREWALL` is here although the kubelet may have made
/// it: kube-proxy rewrites its content at every sync.
const STATIC: [&str; 8] = [
    "KUBE-SERVICES",
    "KUBE-NODEPORTS",
    "KUBE-POSTROUTING",
    "KUBE-MARK-MASQ",
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-FORWARD",
    "KUBE-PROXY-FIREWALL",
    "KUBE-FIREWALL",
];

/// Jumps from the built-in chains (3.2): table, from, to, and whether no Service works without it.
const JUMPS: [(&str, &str, &str, bool); 12] = [
    ("filter", "INPUT", "KUBE-EXTERNAL-SERVICES", false),
    ("filter", "FORWARD", "KUBE-EXTERNAL-SERVICES", false),
    ("filter", "INPUT", "KUBE-NODEPORTS", false),
    ("filter", "FORWARD", "KUBE-SERVICES", false),
    ("filter", "OUTPUT", "KUBE-SERVICES", false),
    ("filter", "FORWARD", "KUBE-FORWARD", false),
    ("filter", "INPUT", "KUBE-PROXY-FIREWALL", false),
    ("filter", "OUTPUT", "KUBE-PROXY-FIREWALL", false),
    ("filter", "FORWARD", "KUBE-PROXY-FIREWALL", false),
    ("nat", "OUTPUT", "KUBE-SERVICES", true),
    ("nat", "PREROUTING", "KUBE-SERVICES", true),
    ("nat", "POSTROUTING", "KUBE-POSTROUTING", true),
];

impl Owner for Iptables {
    fn name(&self) -> &'static str {
        "kube-proxy/iptables"
    }

    fn owns(&self, table: &Table, chain: &Chain) -> bool {
        let ours = matches!(&*table.name, "nat" | "filter" | "mangle")
            && matches!(table.family, TableFamily::Ip | TableFamily::Ip6);
        ours && chain.hook.is_none()
            && (STATIC.contains(&&*chain.name)
                || PER_SERVICE.iter().any(|p| chain.name.starts_with(p)))
    }

    fn filters_sources(&self, chain: &str) -> bool {
        chain.starts_with("KUBE-FW-")
    }

    /// Comments start or end with the service port (3.3): `shop/web:http cluster IP`,
    /// `masquerade traffic for shop/web:http external destinations`, `shop/web:http -> 10.0.0.1:80`.
    fn service_of(&self, names: &Names<'_>) -> Option<ServicePortName> {
        names.comment?.split_whitespace().find_map(service_port)
    }
}

/// A word that is a service port: `namespace/name` or `namespace/name:port`.
fn service_port(word: &str) -> Option<ServicePortName> {
    let (namespace, rest) = word.split_once('/')?;
    let (name, port) = rest.split_once(':').unwrap_or((rest, ""));
    let label = |s: &str| {
        !s.is_empty()
            && s.bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    let port_fits = port.is_empty() || label(port);
    (label(namespace) && label(name) && port_fits)
        .then(|| ServicePortName::new(namespace, name, port))
}

fn family_of(table: &Table) -> Option<Family> {
    match table.family {
        TableFamily::Ip => Some(Family::V4),
        TableFamily::Ip6 => Some(Family::V6),
        TableFamily::Inet | TableFamily::Other(_) => None,
    }
}

fn word(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

/// Chains that only iptables mode writes (1.4).
fn proves(chain: &Chain) -> bool {
    PER_SERVICE.iter().any(|p| chain.name.starts_with(p))
        || &*chain.name == "KUBE-EXTERNAL-SERVICES"
}

/// The canary is made with the rest and never used: proof of iptables mode where no Service has an
/// endpoint.
fn canary(chain: &Chain) -> bool {
    &*chain.name == "KUBE-PROXY-CANARY"
}

/// The tables of a family and backend that hold any of kube-proxy's chains.
fn tables<'r>(
    ruleset: &'r Ruleset,
    family: Family,
    name: &'r str,
) -> impl Iterator<Item = &'r Table> {
    ruleset
        .tables
        .iter()
        .filter(move |t| family_of(t) == Some(family) && &*t.name == name)
}

/// Of the two backends' tables of a name, the one with kube-proxy's chains.
fn table<'r>(ruleset: &'r Ruleset, family: Family, name: &'r str) -> Option<&'r Table> {
    let ours = |t: &&Table| t.chains.iter().filter(|c| Iptables.owns(t, c)).count();
    tables(ruleset, family, name).max_by_key(ours)
}

impl Datapath for Iptables {
    fn mode(&self) -> ProxyMode {
        ProxyMode::Iptables
    }

    fn detect(&self, ruleset: &Ruleset) -> Vec<Signature> {
        let mut found = Vec::new();
        for backend in [Backend::Legacy, Backend::NfTables] {
            let of_backend = || {
                ruleset
                    .tables
                    .iter()
                    .filter(|t| t.backend == backend && family_of(t).is_some())
            };
            let count = of_backend()
                .flat_map(|t| t.chains.iter())
                .filter(|c| proves(c) || canary(c))
                .count();
            if count == 0 {
                continue;
            }
            let services = of_backend()
                .filter(|t| &*t.name == "nat")
                .flat_map(|t| t.chains.iter())
                .filter(|c| c.name.starts_with("KUBE-SVC-") || c.name.starts_with("KUBE-SVL-"))
                .count();
            let hooked = of_backend().filter(|t| &*t.name == "nat").any(|t| {
                ["PREROUTING", "OUTPUT"].iter().any(|from| {
                    let family = family_of(t).unwrap_or(Family::V4);
                    jump_hook(family, Some(t), ("", ""), from, "KUBE-SERVICES", true).present
                })
            });
            let word = backend_word(backend);
            found.push(Signature {
                name: format!("kube-proxy/iptables-{word}").into(),
                why: format!(
                    "iptables-{word} holds the chains of kube-proxy's iptables mode, {services} of \
                     service ports{}",
                    if hooked {
                        ""
                    } else {
                        ", and no hook leads to them"
                    }
                ),
                hooked,
            });
        }
        if found.iter().filter(|s| s.hooked).count() > 1 {
            for signature in &mut found {
                signature.why += "; packets meet those of the other backend as well";
            }
        }
        found
    }

    fn hooks(&self, ruleset: &Ruleset, family: Family) -> Vec<Hook> {
        JUMPS
            .into_iter()
            .map(|(name, from, to, essential)| {
                // Either backend's jump counts: packets meet both.
                let table = tables(ruleset, family, name)
                    .find(|t| {
                        t.chain(to).is_some()
                            && jump_hook(family, Some(t), (word(family), name), from, to, essential)
                                .present
                    })
                    .or_else(|| table(ruleset, family, name));
                jump_hook(family, table, (word(family), name), from, to, essential)
            })
            .collect()
    }

    fn places(&self, own: bool) -> &'static [Place] {
        const fn place(table: &'static str, chain: &'static str) -> Place {
            Place {
                table,
                chain,
                map: None,
            }
        }
        if own {
            &const {
                [
                    place("nat", "KUBE-NODEPORTS"),
                    place("filter", "KUBE-EXTERNAL-SERVICES"),
                ]
            }
        } else {
            &const {
                [
                    place("nat", "KUBE-SERVICES"),
                    place("filter", "KUBE-SERVICES"),
                    place("filter", "KUBE-EXTERNAL-SERVICES"),
                ]
            }
        }
    }

    fn has_family(&self, ruleset: &Ruleset, family: Family) -> bool {
        ruleset
            .tables
            .iter()
            .filter(|t| family_of(t) == Some(family))
            .any(|t| t.chains.iter().any(|c| proves(c) || canary(c)))
    }

    fn owner(&self) -> &dyn Owner {
        self
    }
}
