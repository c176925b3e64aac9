//! 2.3: slices as a whole, and the endpoints that they give a Service port.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{has_label, items, text};
use crate::generate::Place;

/// An endpoint of one Service port, as this node sees it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Endpoint {
    pub key: String,
    number: u64,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    pub local: bool,
    pub zones: Vec<String>,
    pub nodes: Vec<String>,
}

impl Endpoint {
    pub fn fallback(&self) -> bool {
        self.serving && self.terminating
    }
}

/// 2.3: slices as a whole.
pub(super) fn slice_rows(family: &str, slices: &[&Value], rows: &mut BTreeSet<&'static str>) {
    let mut with_endpoints = 0;
    for slice in slices
        .iter()
        .filter(|slice| text(&slice["addressType"]) == family)
    {
        if has_label(slice, "service.kubernetes.io/headless") {
            rows.insert("2.1 headless slice");
            continue;
        }
        if has_label(slice, "service.kubernetes.io/service-proxy-name") {
            rows.insert("2.1 service-proxy-name slice");
            continue;
        }
        let endpoints = items(&slice["endpoints"]);
        if endpoints.is_empty() {
            continue;
        }
        with_endpoints += 1;
        if items(&slice["ports"]).is_empty() {
            rows.insert("2.3 no ports");
        }
        for port in items(&slice["ports"]) {
            if port["port"].as_u64().unwrap_or(0) == 0 {
                rows.insert("2.3 nil port");
            }
        }
        for endpoint in endpoints {
            if items(&endpoint["addresses"]).len() > 1 {
                rows.insert("2.3 several addresses");
            }
            if endpoint["nodeName"].as_str().is_none() {
                rows.insert("2.3 no node");
            }
            for (condition, row) in [
                ("ready", "2.3 ready nil"),
                ("serving", "2.3 serving nil"),
                ("terminating", "2.3 terminating nil"),
            ] {
                if endpoint["conditions"][condition].as_bool().is_none() {
                    rows.insert(row);
                }
            }
        }
    }
    if with_endpoints > 1 {
        rows.insert("2.3 slices");
    }
}

/// The endpoints of a Service port, with what duplicates show.
pub(super) fn endpoints_of(
    slices: &[&Value],
    place: &Place,
    family: &str,
    port: &Value,
    rows: &mut BTreeSet<&'static str>,
) -> Vec<Endpoint> {
    let mut list: Vec<(usize, Endpoint)> = Vec::new();
    let mut numbers = BTreeSet::new();
    let (mut name_seen, mut protocol_seen, mut port_seen) = (false, false, false);
    for (index, slice) in slices.iter().enumerate() {
        if text(&slice["addressType"]) != family
            || has_label(slice, "service.kubernetes.io/headless")
            || has_label(slice, "service.kubernetes.io/service-proxy-name")
        {
            continue;
        }
        for slice_port in items(&slice["ports"]) {
            let Some(number) = slice_port["port"].as_u64().filter(|number| *number > 0) else {
                continue;
            };
            port_seen = true;
            let name = text(&slice_port["name"]) == text(&port["name"]);
            name_seen |= name;
            if !name {
                continue;
            }
            if text(&slice_port["protocol"]) != text(&port["protocol"]) {
                protocol_seen = true;
                continue;
            }
            for endpoint in items(&slice["endpoints"]) {
                let conditions = &endpoint["conditions"];
                let hints = |kind: &str| -> Vec<String> {
                    items(&endpoint["hints"][kind])
                        .iter()
                        .map(|hint| text(&hint["name"]).to_owned())
                        .collect()
                };
                numbers.insert(number);
                let address = text(&endpoint["addresses"][0]);
                list.push((
                    index,
                    Endpoint {
                        key: if family == "IPv6" {
                            format!("[{address}]:{number}")
                        } else {
                            format!("{address}:{number}")
                        },
                        number: ip_number(address),
                        ready: conditions["ready"].as_bool().unwrap_or(true),
                        serving: conditions["serving"].as_bool().unwrap_or(true),
                        terminating: conditions["terminating"].as_bool().unwrap_or(false),
                        local: endpoint["nodeName"].as_str() == Some(place.name.as_str()),
                        zones: hints("forZones"),
                        nodes: hints("forNodes"),
                    },
                ));
            }
        }
    }
    if port_seen && !name_seen {
        rows.insert("2.3 name");
    }
    if name_seen && protocol_seen && list.is_empty() {
        rows.insert("2.3 protocol");
    }
    if numbers.len() > 1 {
        rows.insert("2.3 two numbers");
    }
    list.sort_by(|a, b| a.1.key.cmp(&b.1.key));
    for pair in list.windows(2) {
        let [(slice, a), (other, b)] = pair else {
            continue;
        };
        if a.key != b.key {
            continue;
        }
        rows.insert(if a != b {
            "2.3 duplicate conflicting"
        } else if slice == other {
            "2.3 duplicate inside"
        } else {
            "2.3 duplicate across"
        });
    }
    let mut list: Vec<Endpoint> = list.into_iter().map(|(_, endpoint)| endpoint).collect();
    list.dedup_by(|a, b| a.key == b.key);
    if list.windows(2).any(|pair| pair[0].number > pair[1].number) {
        rows.insert("2.3 text order");
    }
    list
}

fn ip_number(address: &str) -> u64 {
    match address.parse() {
        Ok(std::net::IpAddr::V4(v4)) => u64::from(u32::from(v4)),
        Ok(std::net::IpAddr::V6(v6)) => u128::from(v6) as u64,
        Err(_) => 0,
    }
}
