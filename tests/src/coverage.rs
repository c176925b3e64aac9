//! What a set of Services shows of kube-proxy's rules about them, counted from the objects alone.
//!
//! Every row is one rule, or one outcome of a rule, of kube-proxy.md 2.1 to 2.7. A Service counts
//! once for a row, on a node, however many of its ports show it; a row's count is the smallest
//! over all nodes, since each node judges for itself.

mod endpoints;
mod port;
mod rows;
mod spec;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail};
use serde_json::Value;

pub use rows::ROWS;
pub(crate) use spec::within;

use crate::generate::Place;
use endpoints::slice_rows;
use port::port_rows;
use spec::spec_rows;

/// How often each row has to be shown.
pub const ENOUGH: usize = 5;

/// Rows with how many Services show each.
#[derive(Debug, Clone)]
pub struct Coverage {
    counts: BTreeMap<&'static str, usize>,
}

impl Coverage {
    /// Counts, on each of `places`, what `services` and `slices` (as the API server has them) show.
    pub fn count(services: &[Value], slices: &[Value], places: &[Place]) -> Coverage {
        let mut by_service: BTreeMap<(&str, &str), Vec<&Value>> = BTreeMap::new();
        for slice in slices {
            if let Some(name) = slice["metadata"]["labels"]["kubernetes.io/service-name"].as_str() {
                by_service
                    .entry((text(&slice["metadata"]["namespace"]), name))
                    .or_default()
                    .push(slice);
            }
        }
        let mut names: BTreeMap<&str, usize> = BTreeMap::new();
        for service in services {
            *names.entry(text(&service["metadata"]["name"])).or_default() += 1;
        }
        let mut counts: BTreeMap<&'static str, usize> = BTreeMap::new();
        for (row, _) in ROWS {
            let _ = counts.insert(row, usize::MAX);
        }
        for place in places {
            let mut here: BTreeMap<&'static str, usize> = BTreeMap::new();
            for service in services {
                let key = (
                    text(&service["metadata"]["namespace"]),
                    text(&service["metadata"]["name"]),
                );
                let none = Vec::new();
                let mut rows = rows_of(service, by_service.get(&key).unwrap_or(&none), place);
                if names.get(key.1).is_some_and(|count| *count > 1) {
                    rows.insert("2.3 namespace");
                }
                for row in rows {
                    *here.entry(row).or_default() += 1;
                }
            }
            for (row, count) in &mut counts {
                *count = (*count).min(here.get(row).copied().unwrap_or(0));
            }
        }
        Coverage { counts }
    }

    /// The table, for printing.
    pub fn table(&self) -> String {
        let mut out =
            String::from("coverage (kube-proxy.md), Services on the node that shows fewest\n");
        for (row, text) in ROWS {
            let count = self.counts.get(row).copied().unwrap_or(0);
            out.push_str(&format!("{count:>5}  {row:<32} {text}\n"));
        }
        out
    }

    /// An error that names the rows shown fewer than [`ENOUGH`] times.
    pub fn enough(&self) -> Result<()> {
        let few: Vec<String> = self
            .counts
            .iter()
            .filter(|(_, count)| **count < ENOUGH)
            .map(|(row, count)| format!("{row} ({count})"))
            .collect();
        if !few.is_empty() {
            bail!("shown fewer than {ENOUGH} times: {}", few.join(", "));
        }
        Ok(())
    }
}
fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("")
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or(&[])
}

fn has_label(object: &Value, label: &str) -> bool {
    object["metadata"]["labels"].get(label).is_some()
}

fn of_family(address: &str, family: &str) -> bool {
    address.contains(':') == (family == "IPv6")
}

/// The rows that a Service shows on a node.
fn rows_of(service: &Value, slices: &[&Value], place: &Place) -> BTreeSet<&'static str> {
    let mut rows = BTreeSet::new();
    let spec = &service["spec"];
    if has_label(service, "service.kubernetes.io/service-proxy-name") {
        rows.insert("2.1 service-proxy-name");
        return rows;
    }
    if text(&spec["type"]) == "ExternalName" {
        rows.insert("2.2 ExternalName");
        return rows;
    }
    let selector = spec["selector"]
        .as_object()
        .is_some_and(|map| !map.is_empty());
    if text(&spec["clusterIP"]) == "None" {
        rows.insert(if selector {
            "2.2 headless"
        } else {
            "2.2 headless selectorless"
        });
        return rows;
    }
    if has_label(service, "service.kubernetes.io/headless") {
        rows.insert("2.1 headless label");
        return rows;
    }
    rows.insert(if selector {
        "2.2 selector"
    } else {
        "2.2 selectorless"
    });
    spec_rows(service, place, &mut rows);
    for family in items(&spec["ipFamilies"]) {
        slice_rows(text(family), slices, &mut rows);
        for port in items(&spec["ports"]) {
            port_rows(service, slices, place, text(family), port, &mut rows);
        }
    }
    if slices.is_empty() {
        rows.insert("2.3 no slices");
    } else if slices
        .iter()
        .all(|slice| items(&slice["endpoints"]).is_empty())
    {
        rows.insert("2.3 empty slice");
    }
    let families = items(&spec["ipFamilies"]);
    if slices.iter().any(|slice| {
        let kind = text(&slice["addressType"]);
        kind != "FQDN" && !families.iter().any(|family| text(family) == kind)
    }) {
        rows.insert("2.3 other family");
    }
    if slices
        .iter()
        .any(|slice| text(&slice["addressType"]) == "FQDN")
    {
        rows.insert("2.3 FQDN");
    }
    rows
}
#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::{SEED, generate};

    /// Objects as generated lack the API server's defaults; those that rows look at are filled in.
    #[test]
    fn generated_services_show_every_row_often_enough() {
        let places: Vec<Place> = (0..6)
            .map(|index: u8| Place {
                name: format!("node-{index}"),
                zone: ["a", "b", "c"][usize::from(index) % 3].to_owned(),
                index,
                v4: format!("10.77.0.{}", 11 + index),
                v6: format!("fd77::{:x}", 11 + index),
            })
            .collect();
        let mut generated = generate(SEED, 500, &places);
        for service in &mut generated.services {
            if service["spec"]["sessionAffinity"] == "ClientIP"
                && service["spec"]["sessionAffinityConfig"].is_null()
            {
                service["spec"]["sessionAffinityConfig"] =
                    serde_json::json!({"clientIP": {"timeoutSeconds": 10_800}});
            }
            let (name, namespace) = (
                text(&service["metadata"]["name"]).to_owned(),
                text(&service["metadata"]["namespace"]).to_owned(),
            );
            let path = format!("/api/v1/namespaces/{namespace}/services/{name}/status");
            if let Some((_, patch)) = generated.statuses.iter().find(|(of, _)| *of == path) {
                service["status"] = patch["status"].clone();
            }
        }
        let coverage = Coverage::count(&generated.services, &generated.slices, &places);
        println!("seed {SEED}\n{}", coverage.table());
        coverage.enough().unwrap();
    }
}
