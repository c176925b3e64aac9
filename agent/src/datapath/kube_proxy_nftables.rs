//! kube-proxy in nftables mode (kube-proxy.md 5).

use super::{Datapath, Place, Signature, hangs_on, jump_hook};
use crate::netfilter::ruleset::{Chain, HookPoint, Ruleset, Table, TableFamily};
use crate::netfilter::walk::{Names, Owner};
use model::address::Family;
use model::capture::Hook;
use model::name::ServicePortName;
use model::profile::ProxyMode;

/// kube-proxy in nftables mode.
#[derive(Clone, Copy, Debug)]
pub struct Nftables;

/// The table's name in both families (5.1).
const TABLE: &str = "kube-proxy";

/// Base chain, target, essential: in every layout.
const COMMON: [(&str, &str, bool); 8] = [
    ("nat-prerouting", "services", true),
    ("nat-output", "services", true),
    ("nat-postrouting", "masquerading", true),
    ("filter-input", "nodeport-endpoints-check", false),
    ("filter-input", "service-endpoints-check", false),
    ("filter-forward", "service-endpoints-check", false),
    ("filter-forward", "cluster-ips-check", false),
    ("filter-output", "service-endpoints-check", false),
];

/// Since 1.34 (PR 132456).
const NEWER: [(&str, &str, bool); 3] = [
    ("filter-output", "cluster-ips-check", false),
    ("filter-prerouting-pre-dnat", "firewall-check", false),
    ("filter-output-pre-dnat", "firewall-check", false),
];

/// 1.30 to 1.33.
const OLDER: [(&str, &str, bool); 3] = [
    ("filter-output-post-dnat", "cluster-ips-check", false),
    ("filter-prerouting", "firewall-check", false),
    ("filter-output", "firewall-check", false),
];

fn table_of(ruleset: &Ruleset, family: Family) -> Option<&Table> {
    ruleset.tables.iter().find(|t| {
        let fits = match t.family {
            TableFamily::Ip => family == Family::V4,
            TableFamily::Ip6 => family == Family::V6,
            TableFamily::Inet | TableFamily::Other(_) => false,
        };
        fits && &*t.name == TABLE
    })
}

impl Owner for Nftables {
    fn name(&self) -> &'static str {
        "kube-proxy/nftables"
    }

    fn owns(&self, table: &Table, _: &Chain) -> bool {
        &*table.name == TABLE && matches!(table.family, TableFamily::Ip | TableFamily::Ip6)
    }

    fn filters_sources(&self, chain: &str) -> bool {
        chain.starts_with("firewall-") && chain.contains('/')
    }

    /// Chain names carry it (5.2), and comments of elements (5.4).
    fn service_of(&self, names: &Names<'_>) -> Option<ServicePortName> {
        names
            .target
            .and_then(of_chain)
            .or_else(|| names.comment.and_then(of_comment))
            .or_else(|| of_chain(names.chain))
    }
}

/// `service-HASH-ns/name/proto/port`, the other prefixes, and `…__IP/PORT` behind.
fn of_chain(chain: &str) -> Option<ServicePortName> {
    let rest = ["service-", "local-", "external-", "firewall-", "endpoint-"]
        .iter()
        .find_map(|p| chain.strip_prefix(p))?;
    let (hash, base) = rest.split_once('-')?;
    if hash.len() != 8 {
        return None;
    }
    let base = base.split("__").next()?;
    let mut parts = base.split('/');
    let (namespace, name, _protocol) = (parts.next()?, parts.next()?, parts.next()?);
    let port = parts.next().unwrap_or("").trim_end_matches("...");
    Some(ServicePortName::new(namespace, name, port))
}

fn of_comment(comment: &str) -> Option<ServicePortName> {
    if comment.contains(char::is_whitespace) {
        return None;
    }
    comment.parse().ok()
}

impl Datapath for Nftables {
    fn mode(&self) -> ProxyMode {
        ProxyMode::Nftables
    }

    fn detect(&self, ruleset: &Ruleset) -> Vec<Signature> {
        let tables: Vec<(Family, &Table)> = Family::ALL
            .into_iter()
            .filter_map(|f| table_of(ruleset, f).map(|t| (f, t)))
            .collect();
        if tables.is_empty() {
            return Vec::new();
        }
        let hooked = tables.iter().any(|(f, _)| {
            self.hooks(ruleset, *f)
                .iter()
                .any(|h| h.essential && h.present)
        });
        let words: Vec<String> = tables
            .iter()
            .map(|(_, t)| format!("{} {TABLE}", t.family.word()))
            .collect();
        vec![Signature {
            name: "kube-proxy/nftables".into(),
            why: format!(
                "nftables holds table {}{}",
                words.join(" and table "),
                if hooked {
                    ""
                } else {
                    ", and no hook leads to its rules"
                }
            ),
            hooked,
        }]
    }

    fn hooks(&self, ruleset: &Ruleset, family: Family) -> Vec<Hook> {
        let word = match family {
            Family::V4 => "ip",
            Family::V6 => "ip6",
        };
        let Some(table) = table_of(ruleset, family) else {
            // One hook for all: the table itself.
            let mut hook = jump_hook(family, None, (word, TABLE), "", "", true);
            hook.name = format!("table {word} {TABLE}").into();
            return vec![hook];
        };
        // The newer layout where any of its base chains is there: an upgrade in place leaves the
        // older one's beside it (0.5). A downgrade leaves the newer one's; then the older one's
        // chains are there too and the check runs in both.
        let newer = ["filter-prerouting-pre-dnat", "filter-output-pre-dnat"]
            .iter()
            .any(|c| table.chain(c).is_some())
            || ["filter-prerouting", "filter-output-post-dnat"]
                .iter()
                .all(|c| table.chain(c).is_none());
        let layout = if newer { NEWER } else { OLDER };
        COMMON
            .into_iter()
            .chain(layout)
            .map(|(from, to, essential)| {
                let mut hook = jump_hook(family, Some(table), (word, TABLE), from, to, essential);
                hook.name = format!("{from} -> {to}").into();
                // A base chain at another hook than its name says does not do its work.
                let right = table
                    .chain(from)
                    .is_none_or(|c| c.hook.is_none() || hangs_on(c, hook_of(from)));
                if !right {
                    hook.present = false;
                    hook.evidence.says = "the base chain hangs on another hook".into();
                }
                hook
            })
            .collect()
    }

    fn places(&self, own: bool) -> &'static [Place] {
        const fn place(chain: &'static str, map: &'static str) -> Place {
            Place {
                table: TABLE,
                chain,
                map: Some(map),
            }
        }
        if own {
            &const {
                [
                    place("services", "service-nodeports"),
                    place("nodeport-endpoints-check", "no-endpoint-nodeports"),
                ]
            }
        } else {
            &const {
                [
                    place("services", "service-ips"),
                    place("service-endpoints-check", "no-endpoint-services"),
                ]
            }
        }
    }

    fn has_family(&self, ruleset: &Ruleset, family: Family) -> bool {
        table_of(ruleset, family).is_some()
    }

    fn owner(&self) -> &dyn Owner {
        self
    }
}

/// Where a base chain of that name hangs (5.3).
fn hook_of(chain: &str) -> HookPoint {
    if chain.contains("postrouting") {
        HookPoint::Postrouting
    } else if chain.contains("prerouting") {
        HookPoint::Prerouting
    } else if chain.contains("input") {
        HookPoint::Input
    } else if chain.contains("forward") {
        HookPoint::Forward
    } else {
        HookPoint::Output
    }
}
