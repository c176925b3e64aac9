//! What others collected of a node, put together as one reading: texts of `iptables-save` of both
//! backends and families, `nft -j list ruleset`, `ip -j address`.
//!
//! What was not collected is not known: it becomes a gap, and a family of which nothing shows the
//! datapath's rules is not judged at all. [`Collected::finish`] takes the caller's word that there is
//! nothing else.

use crate::datapath::in_charge;
use crate::netfilter::nftables::json::{self, JsonError};
use crate::netfilter::ruleset::{Backend, Ruleset, Table, TableFamily};
use crate::netfilter::xtables::save::{self, SaveError};
use model::address::{Family, Frontend};
use model::capture::{Gap, Reading, Snapshot};
use model::profile::{ProxyMode, ProxyProfile};
use model::view::LocalAddress;
use serde_json::Value as Json;
use std::net::IpAddr;

/// Collected rules.
#[derive(Debug, Default)]
pub struct Collected {
    saved: Vec<Table>,
    hidden: Vec<String>,
    listed: Option<Ruleset>,
}

impl Collected {
    /// Adds a text of `iptables-save` or `ip6tables-save`.
    ///
    /// # Errors
    /// It is something else, was cut off, or repeats a table of a text before it.
    pub fn iptables_save(&mut self, text: &str) -> Result<(), SaveError> {
        let found = save::parse(text)?;
        for table in found.tables {
            if self.saved.iter().any(|t| same(t, &table)) {
                let why = format!("table {} {} was in a file before", table.word(), table.name);
                return Err(SaveError { line: 0, why });
            }
            self.saved.push(table);
        }
        self.hidden.extend(found.hidden);
        Ok(())
    }

    /// Adds what `nft -j list ruleset` printed.
    ///
    /// # Errors
    /// It is something else or was cut off.
    pub fn nft_json(&mut self, text: &str) -> Result<(), JsonError> {
        self.listed = Some(json::parse(text)?);
        Ok(())
    }

    /// The rules, and what is not known of the node. `nothing_else`: there are no other tables than
    /// these.
    pub fn finish(self, nothing_else: bool) -> (Ruleset, Vec<Gap>) {
        let gap = |what: &str, why: &str| Gap {
            what: what.into(),
            why: why.into(),
        };
        let mut gaps = Vec::new();
        let has_legacy = self.saved.iter().any(|t| t.backend == Backend::Legacy);
        if !nothing_else && !has_legacy {
            gaps.push(gap(
                "iptables-legacy",
                "no text of iptables-legacy-save was given: its tables, if there are any, are not known (--iptables-save, or --nothing-else)",
            ));
        }
        if !nothing_else && self.listed.is_none() {
            gaps.push(gap(
                "nftables",
                "no output of nft -j list ruleset was given: tables that iptables-save does not print, if there are any, are not known (--nft-json, or --nothing-else)",
            ));
        }
        for text in self.hidden {
            let shown = if text.contains("legacy") {
                has_legacy
            } else {
                self.listed.is_some()
            };
            if !shown {
                gaps.push(gap("iptables-save", &text));
            }
        }
        // Of a table that both show, iptables-save shows more.
        let mut ruleset = self.listed.unwrap_or_default();
        let better = |t: &Table| self.saved.iter().any(|s| same(s, t));
        ruleset.tables.retain(|t| !better(t));
        let (legacy, nf): (Vec<Table>, Vec<Table>) = self
            .saved
            .into_iter()
            .partition(|t| t.backend == Backend::Legacy);
        ruleset.tables.extend(nf);
        ruleset.tables.extend(legacy);
        gaps.sort();
        (ruleset, gaps)
    }
}

fn same(one: &Table, other: &Table) -> bool {
    (one.family, one.backend, &one.name) == (other.family, other.backend, &other.name)
}

/// Makes families unread of which the datapath's rules were not collected: that they are not in the
/// texts does not mean that they are not in the kernel.
pub(super) fn not_collected<'f>(
    snapshot: &mut Snapshot,
    reading: &Reading<Ruleset>,
    desired: impl Iterator<Item = &'f Frontend> + Clone,
    profile: &ProxyProfile,
) {
    let Reading::Read(ruleset) = reading else {
        return;
    };
    let datapath = in_charge(ruleset, profile);
    for family in Family::ALL {
        if !desired.clone().any(|f| f.family() == family) {
            continue;
        }
        let of = match family {
            Family::V4 => TableFamily::Ip,
            Family::V6 => TableFamily::Ip6,
        };
        let has = |name: &str| {
            let all = ruleset.tables.iter();
            all.filter(|t| t.family == of).any(|t| &*t.name == name)
        };
        let there = datapath.is_some_and(|d| {
            let whole = d.mode() != ProxyMode::Iptables || has("nat") && has("filter");
            whole && d.has_family(ruleset, family)
        });
        if there {
            continue;
        }
        let gap = Gap {
            what: format!("{family} rules").into(),
            why: "nothing that was collected shows the datapath's tables of this family".into(),
        };
        snapshot.hooks.retain(|h| h.family != family);
        snapshot.coverage.families.retain(|f| *f != family);
        snapshot.gaps.push(gap.clone());
        snapshot.tables.insert(family, Reading::Failed(gap));
    }
}

/// The addresses that `ip -j address` prints, sorted.
///
/// # Errors
/// It is something else.
pub fn addresses(text: &str) -> Result<Vec<LocalAddress>, String> {
    let all: Json = serde_json::from_str(text).map_err(|e| e.to_string())?;
    let links = all.as_array().ok_or("not the output of ip -j address")?;
    let mut found = Vec::new();
    for link in links {
        // An entry that is left empty is a link of another family.
        let Some(name) = link["ifname"].as_str() else {
            continue;
        };
        for info in link["addr_info"].as_array().into_iter().flatten() {
            let text = info["local"]
                .as_str()
                .ok_or("an address without \"local\"")?;
            let address: IpAddr = text
                .parse()
                .map_err(|_| format!("{text:?} is no address"))?;
            found.push(LocalAddress {
                address,
                link: name.into(),
            });
        }
    }
    if found.is_empty() {
        return Err("there is no address in it".into());
    }
    found.sort();
    found.dedup();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_those_on_links() {
        let text = r#"[{"ifname":"lo","addr_info":[{"family":"inet","local":"127.0.0.1","prefixlen":8}]},{},
            {"ifname":"eth0","addr_info":[{"family":"inet6","local":"fd00::1","address":"fd00::2","prefixlen":64}]}]"#;
        let found = addresses(text).unwrap();
        assert_eq!(found.len(), 2);
        assert!(
            found
                .iter()
                .any(|a| a.address.to_string() == "fd00::1" && &*a.link == "eth0")
        );
        for bad in [
            "",
            "{}",
            "[]",
            "[{\"ifname\":\"x\",\"addr_info\":[{\"local\":\"y\"}]}]",
        ] {
            assert!(addresses(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_was_not_collected_is_a_gap() {
        let nat = "# Generated by iptables-save v1.8.9 (nf_tables) on x\n*nat\n:PREROUTING ACCEPT [0:0]\nCOMMIT\n# Warning: iptables-legacy tables present, use iptables-legacy-save to see them\n";
        let with = |texts: &[&str], listed: Option<&str>, nothing_else| {
            let mut all = Collected::default();
            for text in texts {
                all.iptables_save(text).unwrap();
            }
            if let Some(listed) = listed {
                all.nft_json(listed).unwrap();
            }
            let (ruleset, gaps) = all.finish(nothing_else);
            let gaps: Vec<String> = gaps.iter().map(|g| g.what.to_string()).collect();
            (ruleset.tables.len(), gaps.join(" "))
        };
        assert_eq!(
            with(&[nat], None, false),
            (1, "iptables-legacy iptables-save nftables".into())
        );
        assert_eq!(with(&[nat], None, true), (1, "iptables-save".into()));
        let legacy =
            "# Generated by iptables-save v1.8.9 on x\n*nat\n:PREROUTING ACCEPT [0:0]\nCOMMIT\n";
        assert_eq!(with(&[nat, legacy], None, true), (2, String::new()));
        // The table that both show is there once.
        let listed = r#"{"nftables": [{"table": {"family": "ip", "name": "nat"}}, {"table": {"family": "inet", "name": "x"}}]}"#;
        assert_eq!(
            with(&[nat, legacy], Some(listed), false),
            (3, String::new())
        );
        let mut twice = Collected::default();
        twice.iptables_save(nat).unwrap();
        assert!(twice.iptables_save(nat).is_err());
    }
}
