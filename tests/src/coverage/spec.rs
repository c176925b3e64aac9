//! 2.2: what the Service itself says.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{items, of_family, text};
use crate::generate::Place;

/// 2.2: what the Service itself says.
pub(super) fn spec_rows(service: &Value, place: &Place, rows: &mut BTreeSet<&'static str>) {
    let spec = &service["spec"];
    let ports = items(&spec["ports"]);
    let families: Vec<&str> = items(&spec["ipFamilies"]).iter().map(text).collect();
    match text(&spec["type"]) {
        "NodePort" => rows.insert("2.2 NodePort"),
        "LoadBalancer" => rows.insert("2.2 LoadBalancer"),
        _ => rows.insert("2.2 ClusterIP"),
    };
    match families.as_slice() {
        ["IPv4"] => rows.insert("2.2 IPv4"),
        ["IPv6"] => rows.insert("2.2 IPv6"),
        ["IPv4", _] => rows.insert("2.2 IPv4, IPv6"),
        _ => rows.insert("2.2 IPv6, IPv4"),
    };
    if ports.len() == 1 && text(&ports[0]["name"]).is_empty() {
        rows.insert("2.2 one unnamed port");
    }
    if ports.len() > 1 {
        rows.insert("2.2 ports");
    }
    let twice = |field: &str| {
        let numbers: Vec<u64> = ports
            .iter()
            .filter_map(|port| port[field].as_u64())
            .collect();
        numbers.iter().collect::<BTreeSet<_>>().len() < numbers.len()
    };
    if twice("port") {
        rows.insert("2.2 number twice");
    }
    if twice("nodePort") {
        rows.insert("2.2 nodePort twice");
    }
    for port in ports {
        match text(&port["protocol"]) {
            "UDP" => rows.insert("2.2 UDP"),
            "SCTP" => rows.insert("2.2 SCTP"),
            _ => rows.insert("2.2 TCP"),
        };
        if port["nodePort"].as_u64().is_some() {
            rows.insert("2.2 nodePort");
        } else if text(&spec["type"]) == "LoadBalancer" {
            rows.insert("2.2 no nodePort");
        }
    }
    let external = items(&spec["externalIPs"]);
    let own = |address: &str| families.iter().any(|family| of_family(address, family));
    if external.iter().any(|ip| own(text(ip))) {
        rows.insert("2.2 externalIPs");
    }
    if external.iter().any(|ip| !own(text(ip))) {
        rows.insert("2.2 externalIPs other family");
    }
    for family in &families {
        if external
            .iter()
            .filter(|ip| of_family(text(ip), family))
            .count()
            > 1
        {
            rows.insert("2.2 externalIPs several");
        }
    }
    range_rows(spec, &families, place, rows);
    ingress_rows(service, &families, rows);
    let outside = is_outside(service);
    let etp = text(&spec["externalTrafficPolicy"]) == "Local";
    let itp = text(&spec["internalTrafficPolicy"]) == "Local";
    if etp {
        match text(&spec["type"]) {
            "NodePort" => rows.insert("2.2 eTP Local NodePort"),
            "LoadBalancer" => rows.insert("2.2 eTP Local LoadBalancer"),
            _ => rows.insert("2.2 eTP Local ClusterIP"),
        };
    }
    if itp {
        rows.insert(if outside {
            "2.2 iTP Local outside"
        } else {
            "2.2 iTP Local inside"
        });
    }
    if etp && itp {
        rows.insert("2.2 both Local");
    }
    if text(&spec["sessionAffinity"]) == "ClientIP" {
        let seconds = spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"].as_u64();
        rows.insert(if seconds == Some(10_800) {
            "2.2 affinity default"
        } else {
            "2.2 affinity other"
        });
    }
}

fn range_rows(spec: &Value, families: &[&str], place: &Place, rows: &mut BTreeSet<&'static str>) {
    let ranges: Vec<&str> = items(&spec["loadBalancerSourceRanges"])
        .iter()
        .map(text)
        .collect();
    if ranges.is_empty() {
        return;
    }
    let both = ["IPv4", "IPv6"]
        .iter()
        .all(|family| ranges.iter().any(|range| of_family(range, family)));
    if both {
        rows.insert("2.2 ranges both families");
    }
    if ranges.iter().any(|range| range.trim() != *range) {
        rows.insert("2.2 ranges padded");
    }
    for family in families {
        let own: Vec<&str> = ranges
            .iter()
            .map(|range| range.trim())
            .filter(|range| of_family(range, family))
            .collect();
        if own.is_empty() {
            rows.insert("2.2 ranges other family");
        } else if own.iter().any(|range| range.ends_with("/0")) {
            rows.insert("2.2 ranges zero");
        } else {
            rows.insert("2.2 ranges");
            let address = if *family == "IPv4" {
                &place.v4
            } else {
                &place.v6
            };
            if own.iter().any(|range| within(address, range)) {
                rows.insert("2.2 ranges with node");
            }
            if own.iter().any(|inner| {
                let base = inner.split('/').next().unwrap_or_default();
                own.iter()
                    .any(|outer| outer != inner && within(base, outer))
            }) {
                rows.insert("2.2 ranges overlapping");
            }
        }
    }
}

/// Whether an address is inside a range.
pub(crate) fn within(address: &str, range: &str) -> bool {
    let bits = |address: &str| -> Option<(u128, u32)> {
        match address.parse().ok()? {
            std::net::IpAddr::V4(v4) => Some((u128::from(u32::from(v4)) << 96, 32)),
            std::net::IpAddr::V6(v6) => Some((u128::from(v6), 128)),
        }
    };
    let Some((base, length)) = range.split_once('/') else {
        return false;
    };
    match (bits(address), bits(base), length.parse::<u32>()) {
        (Some((a, wa)), Some((b, wb)), Ok(length)) if wa == wb => {
            length == 0 || (a ^ b) >> (128 - length) == 0
        }
        _ => false,
    }
}

fn ingress_rows(service: &Value, families: &[&str], rows: &mut BTreeSet<&'static str>) {
    if text(&service["spec"]["type"]) != "LoadBalancer" {
        return;
    }
    let ingress = items(&service["status"]["loadBalancer"]["ingress"]);
    if ingress.is_empty() {
        rows.insert("2.2 pending");
        return;
    }
    if ingress.iter().all(|entry| entry.get("ip").is_none()) {
        rows.insert("2.2 hostname");
    }
    for entry in ingress {
        let ip = text(&entry["ip"]);
        if ip.is_empty() {
            continue;
        }
        if text(&entry["ipMode"]) == "Proxy" {
            rows.insert("2.2 Proxy");
        } else if families.iter().any(|family| of_family(ip, family)) {
            rows.insert("2.2 VIP");
        } else {
            rows.insert("2.2 VIP other family");
        }
    }
    for family in families {
        if vips(service, family) > 1 {
            rows.insert("2.2 VIPs");
        }
    }
}

pub(super) fn vips(service: &Value, family: &str) -> usize {
    items(&service["status"]["loadBalancer"]["ingress"])
        .iter()
        .filter(|entry| {
            let ip = text(&entry["ip"]);
            !ip.is_empty() && of_family(ip, family) && text(&entry["ipMode"]) != "Proxy"
        })
        .count()
}

pub(super) fn is_outside(service: &Value) -> bool {
    let spec = &service["spec"];
    items(&spec["ports"])
        .iter()
        .any(|port| port["nodePort"].as_u64().is_some())
        || !items(&spec["externalIPs"]).is_empty()
        || vips(service, "IPv4") + vips(service, "IPv6") > 0
}
