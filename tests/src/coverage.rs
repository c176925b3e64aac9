//! What a set of Services shows of kube-proxy's rules about them, counted from the objects alone.
//!
//! Every row is one rule, or one outcome of a rule, of kube-proxy.md 2.1 to 2.7. A Service counts
//! once for a row, on a node, however many of its ports show it; a row's count is the smallest
//! over all nodes, since each node judges for itself.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail};
use serde_json::Value;

use crate::generate::Place;

/// How often each row has to be shown.
pub const ENOUGH: usize = 5;

/// Rows: section of kube-proxy.md and name, and what it is about.
pub const ROWS: &[(&str, &str)] = &[
    (
        "2.1 service-proxy-name",
        "Service with the label service-proxy-name: nothing",
    ),
    (
        "2.1 service-proxy-name slice",
        "slice with the label service-proxy-name: counts from 1.36 on",
    ),
    (
        "2.1 headless label",
        "Service with cluster IP and the label headless: served from 1.36 on",
    ),
    (
        "2.1 headless slice",
        "slice with the label headless: left out",
    ),
    ("2.2 ExternalName", "type ExternalName: nothing"),
    ("2.2 headless", "cluster IP None, with selector: nothing"),
    (
        "2.2 headless selectorless",
        "cluster IP None, without selector: nothing",
    ),
    ("2.2 selector", "Service with selector"),
    ("2.2 selectorless", "Service without selector"),
    ("2.2 ClusterIP", "type ClusterIP"),
    ("2.2 NodePort", "type NodePort"),
    ("2.2 LoadBalancer", "type LoadBalancer"),
    ("2.2 IPv4", "IPv4 only"),
    ("2.2 IPv6", "IPv6 only"),
    ("2.2 IPv4, IPv6", "dual stack, IPv4 first"),
    ("2.2 IPv6, IPv4", "dual stack, IPv6 first"),
    ("2.2 one unnamed port", "one unnamed port"),
    ("2.2 ports", "several ports"),
    ("2.2 TCP", "a TCP port"),
    ("2.2 UDP", "a UDP port"),
    ("2.2 SCTP", "an SCTP port"),
    ("2.2 number twice", "one number with two protocols"),
    ("2.2 nodePort twice", "one node port with two protocols"),
    ("2.2 externalIPs", "externalIPs"),
    (
        "2.2 externalIPs other family",
        "externalIPs of a family that the Service does not have: ignored",
    ),
    (
        "2.2 externalIPs several",
        "several externalIPs of one family",
    ),
    ("2.2 ranges", "source ranges of this family"),
    ("2.2 ranges zero", "source ranges with a /0: count as none"),
    (
        "2.2 ranges other family",
        "source ranges of the other family only: everybody",
    ),
    (
        "2.2 ranges both families",
        "source ranges of both families in one list",
    ),
    (
        "2.2 ranges with node",
        "source ranges that hold the node's own address",
    ),
    ("2.2 ranges padded", "source ranges with spaces"),
    (
        "2.2 ranges overlapping",
        "source ranges that hold each other",
    ),
    ("2.2 VIP", "load balancer address, ipMode VIP"),
    ("2.2 VIPs", "several load balancer addresses of one family"),
    ("2.2 Proxy", "load balancer address, ipMode Proxy: ignored"),
    ("2.2 hostname", "load balancer with host name only: ignored"),
    ("2.2 pending", "load balancer without status"),
    (
        "2.2 VIP other family",
        "load balancer address of a family that the Service does not have: ignored",
    ),
    ("2.2 nodePort", "a node port"),
    ("2.2 no nodePort", "load balancer without node ports"),
    (
        "2.2 eTP Local NodePort",
        "externalTrafficPolicy Local, NodePort",
    ),
    (
        "2.2 eTP Local LoadBalancer",
        "externalTrafficPolicy Local, LoadBalancer",
    ),
    (
        "2.2 eTP Local ClusterIP",
        "externalTrafficPolicy Local, ClusterIP with externalIPs",
    ),
    (
        "2.2 iTP Local inside",
        "internalTrafficPolicy Local, not accessible from outside",
    ),
    (
        "2.2 iTP Local outside",
        "internalTrafficPolicy Local, accessible from outside",
    ),
    ("2.2 both Local", "both traffic policies Local"),
    ("2.2 affinity default", "session affinity, 10800 s"),
    ("2.2 affinity other", "session affinity, another timeout"),
    ("2.3 namespace", "Services of one name in two namespaces"),
    ("2.3 no slices", "no slices"),
    ("2.3 empty slice", "a slice without endpoints, and no other"),
    ("2.3 slices", "endpoints from several slices"),
    ("2.3 FQDN", "a slice with address type FQDN: left out"),
    (
        "2.3 other family",
        "a slice of a family that the Service does not have: left out",
    ),
    ("2.3 nil port", "slice port without number: left out"),
    ("2.3 no ports", "slice without ports: left out"),
    ("2.3 name", "Service port whose name no slice has"),
    (
        "2.3 protocol",
        "Service port whose protocol differs from the slice's",
    ),
    ("2.3 two numbers", "one port name with two numbers"),
    (
        "2.3 several addresses",
        "endpoint with several addresses: the first counts",
    ),
    ("2.3 ready nil", "condition ready not given: true"),
    ("2.3 serving nil", "condition serving not given: true"),
    (
        "2.3 terminating nil",
        "condition terminating not given: false",
    ),
    ("2.3 no node", "endpoint without node name: not local"),
    ("2.3 duplicate across", "one ip:port in two slices, equal"),
    (
        "2.3 duplicate inside",
        "one ip:port twice in a slice, equal",
    ),
    (
        "2.3 duplicate conflicting",
        "one ip:port twice with other conditions",
    ),
    (
        "2.3 text order",
        "text order of endpoints differs from order of numbers",
    ),
    ("2.4 ready", "all endpoints ready"),
    ("2.4 some ready", "ready and unready endpoints"),
    (
        "2.4 unready",
        "serving, not ready, not terminating: never used",
    ),
    (
        "2.4 ready hides terminating",
        "a ready endpoint hides serving and terminating ones",
    ),
    (
        "2.4 cluster fallback",
        "none ready: serving and terminating ones are used",
    ),
    (
        "2.4 terminating not serving",
        "terminating and not serving only: refused",
    ),
    ("2.4 local", "Local with ready local endpoints"),
    (
        "2.4 local fallback",
        "Local, local endpoints terminating, others ready",
    ),
    (
        "2.4 local fallback alone",
        "Local, all endpoints terminating",
    ),
    ("2.4 no local", "Local without local endpoints"),
    (
        "2.4 local unready",
        "Local, local endpoints unready, others ready",
    ),
    ("2.4 many", "twenty or more endpoints"),
    ("2.5 zone", "zone hints, complete, some for this zone"),
    ("2.5 zone incomplete", "zone hints, one missing: no filter"),
    (
        "2.5 zone elsewhere",
        "zone hints, complete, none for this zone: no filter",
    ),
    ("2.5 zones", "endpoints hinted for several zones"),
    (
        "2.5 unready without hint",
        "an unready endpoint without hint breaks nothing",
    ),
    ("2.5 node", "node hints, complete, some for this node"),
    (
        "2.5 node incomplete",
        "node hints, one missing: zone hints decide",
    ),
    (
        "2.5 node elsewhere",
        "node hints, none for this node: zone hints decide",
    ),
    ("2.5 Local and hints", "Local ignores hints"),
    (
        "2.6 cluster IP, forward",
        "cluster IP, policy Cluster: forward",
    ),
    (
        "2.6 cluster IP, reject",
        "cluster IP, policy Cluster: reject",
    ),
    (
        "2.6 cluster IP Local, forward",
        "cluster IP, policy Local: forward",
    ),
    (
        "2.6 cluster IP Local, reject",
        "cluster IP, policy Local: reject",
    ),
    (
        "2.6 cluster IP Local, drop",
        "cluster IP, policy Local: drop",
    ),
    (
        "2.6 external IP, forward",
        "external IP, policy Cluster: forward",
    ),
    (
        "2.6 external IP, reject",
        "external IP, policy Cluster: reject",
    ),
    (
        "2.6 external IP Local, forward",
        "external IP, policy Local: forward",
    ),
    (
        "2.6 external IP Local, reject",
        "external IP, policy Local: reject",
    ),
    (
        "2.6 external IP Local, drop",
        "external IP, policy Local: drop from outside, forward from inside",
    ),
    (
        "2.6 VIP, forward",
        "load balancer address, policy Cluster: forward",
    ),
    (
        "2.6 VIP, reject",
        "load balancer address, policy Cluster: reject",
    ),
    (
        "2.6 VIP Local, forward",
        "load balancer address, policy Local: forward",
    ),
    (
        "2.6 VIP Local, reject",
        "load balancer address, policy Local: reject",
    ),
    (
        "2.6 VIP Local, drop",
        "load balancer address, policy Local: drop from outside, forward from inside",
    ),
    (
        "2.6 node port, forward",
        "node port, policy Cluster: forward",
    ),
    ("2.6 node port, reject", "node port, policy Cluster: reject"),
    (
        "2.6 node port Local, forward",
        "node port, policy Local: forward",
    ),
    (
        "2.6 node port Local, reject",
        "node port, policy Local: reject",
    ),
    (
        "2.6 node port Local, drop",
        "node port, policy Local: drop from outside, forward from inside",
    ),
    ("2.6 hairpin", "the client Pod is itself an endpoint"),
    (
        "2.6 host network",
        "an endpoint with the node's own address",
    ),
    (
        "2.7 health check",
        "healthCheckNodePort, local endpoints ready",
    ),
    (
        "2.7 health check none",
        "healthCheckNodePort, no local endpoint ready",
    ),
];

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

/// An endpoint of one Service port, as this node sees it.
#[derive(Debug, Clone, PartialEq)]
struct Endpoint {
    key: String,
    number: u64,
    ready: bool,
    serving: bool,
    terminating: bool,
    local: bool,
    zones: Vec<String>,
    nodes: Vec<String>,
}

impl Endpoint {
    fn fallback(&self) -> bool {
        self.serving && self.terminating
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

/// 2.2: what the Service itself says.
fn spec_rows(service: &Value, place: &Place, rows: &mut BTreeSet<&'static str>) {
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

fn vips(service: &Value, family: &str) -> usize {
    items(&service["status"]["loadBalancer"]["ingress"])
        .iter()
        .filter(|entry| {
            let ip = text(&entry["ip"]);
            !ip.is_empty() && of_family(ip, family) && text(&entry["ipMode"]) != "Proxy"
        })
        .count()
}

fn is_outside(service: &Value) -> bool {
    let spec = &service["spec"];
    items(&spec["ports"])
        .iter()
        .any(|port| port["nodePort"].as_u64().is_some())
        || !items(&spec["externalIPs"]).is_empty()
        || vips(service, "IPv4") + vips(service, "IPv6") > 0
}

/// 2.3: slices as a whole.
fn slice_rows(family: &str, slices: &[&Value], rows: &mut BTreeSet<&'static str>) {
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
fn endpoints_of(
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

/// 2.3 to 2.7: a port of a Service, in one family, on this node.
fn port_rows(
    service: &Value,
    slices: &[&Value],
    place: &Place,
    family: &str,
    port: &Value,
    rows: &mut BTreeSet<&'static str>,
) {
    let spec = &service["spec"];
    let list = endpoints_of(slices, place, family, port, rows);
    let ready: Vec<&Endpoint> = list.iter().filter(|endpoint| endpoint.ready).collect();
    let fallback = list.iter().any(Endpoint::fallback);
    let any = !ready.is_empty() || fallback;
    let itp = text(&spec["internalTrafficPolicy"]) == "Local";
    let etp = text(&spec["externalTrafficPolicy"]) == "Local";
    let outside = is_outside(service);
    if !list.is_empty() {
        if ready.len() == list.len() {
            rows.insert("2.4 ready");
        } else if !ready.is_empty() {
            rows.insert("2.4 some ready");
        }
    }
    if list
        .iter()
        .any(|endpoint| endpoint.serving && !endpoint.ready && !endpoint.terminating)
    {
        rows.insert("2.4 unready");
    }
    if !ready.is_empty()
        && list
            .iter()
            .any(|endpoint| endpoint.fallback() && !endpoint.ready)
    {
        rows.insert("2.4 ready hides terminating");
    }
    if ready.is_empty() && fallback {
        rows.insert("2.4 cluster fallback");
    }
    if !list.is_empty()
        && list
            .iter()
            .all(|endpoint| endpoint.terminating && !endpoint.serving)
    {
        rows.insert("2.4 terminating not serving");
    }
    if list.len() >= 20 {
        rows.insert("2.4 many");
    }
    let local_ready = ready.iter().any(|endpoint| endpoint.local);
    let local_fallback = list
        .iter()
        .any(|endpoint| endpoint.local && endpoint.fallback());
    if itp || (etp && outside) {
        if local_ready {
            rows.insert("2.4 local");
        } else if local_fallback {
            rows.insert(if ready.is_empty() {
                "2.4 local fallback alone"
            } else {
                "2.4 local fallback"
            });
        } else if any {
            rows.insert("2.4 no local");
            if list.iter().any(|endpoint| endpoint.local) {
                rows.insert("2.4 local unready");
            }
        }
        if local_ready && list.iter().any(|endpoint| !endpoint.zones.is_empty()) {
            rows.insert("2.5 Local and hints");
        }
    }
    if !itp || outside {
        hint_rows(&list, &ready, place, rows);
    }
    let local = local_ready || local_fallback;
    let outcome = |policy: bool| {
        if !any {
            2
        } else if policy && !local {
            3
        } else {
            1
        }
    };
    let mut destination = |names: [[&'static str; 3]; 2], policy: bool| {
        let names = names[usize::from(policy)];
        rows.insert(names[outcome(policy) - 1]);
    };
    destination(
        [
            ["2.6 cluster IP, forward", "2.6 cluster IP, reject", ""],
            [
                "2.6 cluster IP Local, forward",
                "2.6 cluster IP Local, reject",
                "2.6 cluster IP Local, drop",
            ],
        ],
        itp,
    );
    if items(&spec["externalIPs"])
        .iter()
        .any(|ip| of_family(text(ip), family))
    {
        destination(
            [
                ["2.6 external IP, forward", "2.6 external IP, reject", ""],
                [
                    "2.6 external IP Local, forward",
                    "2.6 external IP Local, reject",
                    "2.6 external IP Local, drop",
                ],
            ],
            etp,
        );
    }
    if vips(service, family) > 0 {
        destination(
            [
                ["2.6 VIP, forward", "2.6 VIP, reject", ""],
                [
                    "2.6 VIP Local, forward",
                    "2.6 VIP Local, reject",
                    "2.6 VIP Local, drop",
                ],
            ],
            etp,
        );
    }
    if port["nodePort"].as_u64().is_some() {
        destination(
            [
                ["2.6 node port, forward", "2.6 node port, reject", ""],
                [
                    "2.6 node port Local, forward",
                    "2.6 node port Local, reject",
                    "2.6 node port Local, drop",
                ],
            ],
            etp,
        );
    }
    let range = u16::from(place.index) + 1;
    let client = [
        format!("10.244.{range}.200:"),
        format!("[fd00:244::{range:x}:c8]:"),
    ];
    if ready
        .iter()
        .any(|endpoint| client.iter().any(|client| endpoint.key.starts_with(client)))
    {
        rows.insert("2.6 hairpin");
    }
    let own = [format!("{}:", place.v4), format!("[{}]:", place.v6)];
    if ready
        .iter()
        .any(|endpoint| own.iter().any(|own| endpoint.key.starts_with(own)))
    {
        rows.insert("2.6 host network");
    }
    if etp && spec["healthCheckNodePort"].as_u64().unwrap_or(0) > 0 {
        rows.insert(if local_ready {
            "2.7 health check"
        } else {
            "2.7 health check none"
        });
    }
}

/// 2.5: topology, over the ready endpoints.
fn hint_rows(
    list: &[Endpoint],
    ready: &[&Endpoint],
    place: &Place,
    rows: &mut BTreeSet<&'static str>,
) {
    let with_zone = ready
        .iter()
        .filter(|endpoint| !endpoint.zones.is_empty())
        .count();
    let with_node = ready
        .iter()
        .filter(|endpoint| !endpoint.nodes.is_empty())
        .count();
    let here = ready
        .iter()
        .any(|endpoint| endpoint.zones.contains(&place.zone));
    let mut node_mode = false;
    if with_node > 0 {
        let here = ready
            .iter()
            .any(|endpoint| endpoint.nodes.contains(&place.name));
        rows.insert(if with_node < ready.len() {
            "2.5 node incomplete"
        } else if here {
            node_mode = true;
            "2.5 node"
        } else {
            "2.5 node elsewhere"
        });
    }
    if with_zone > 0 && !node_mode {
        rows.insert(if with_zone < ready.len() {
            "2.5 zone incomplete"
        } else if here {
            "2.5 zone"
        } else {
            "2.5 zone elsewhere"
        });
        if ready.iter().any(|endpoint| endpoint.zones.len() > 1) {
            rows.insert("2.5 zones");
        }
        if with_zone == ready.len()
            && list
                .iter()
                .any(|endpoint| !endpoint.ready && endpoint.zones.is_empty())
        {
            rows.insert("2.5 unready without hint");
        }
    }
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
