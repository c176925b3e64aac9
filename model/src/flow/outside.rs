//! Step 7: how clients from outside come in: load balancer, node ports, external addresses, source
//! ranges, traffic policy.

use super::nodes::{self, NodeAnswer, Where};
use super::objects::ServiceObject;
use super::store::KnownService;
use super::{
    Answer, Check, Evidence, Finding, Ground, Part, Weight, address, count, kubectl, limits,
};
use crate::address::Family;
use crate::report::words::{ago, few};
use crate::service::{Service, ServiceType};
use ipnet::IpNet;
use std::collections::BTreeSet;
use std::net::IpAddr;

pub(super) fn answer(g: &Ground, nodes: &[NodeAnswer]) -> Part {
    let Some(known) = g.service else {
        return Part::plain(Answer::NotApplicable, "there is no such Service");
    };
    let service = &known.object.service;
    let node_ports = service.ports.iter().any(|p| p.node_port.is_some());
    let balanced = service.kind == ServiceType::LoadBalancer;
    if service.kind == ServiceType::ExternalName
        || (!balanced && !node_ports && service.external_ips.is_empty())
    {
        let says = "no load balancer, no node port, no external address";
        return Part::plain(Answer::NotApplicable, says);
    }
    let mut found = Vec::new();
    if balanced {
        found.extend(without_address(g, known));
        found.extend(source_ranges(service));
    }
    found.extend(address::claimed_twice(g, service, false));
    if service.external_local {
        found.extend(local_policy(g, service));
    }
    let programmed = node_ports || !service.external_ips.is_empty() || !service.ingress.is_empty();
    let mut says = ways_in(&known.object);
    let mut answer = Answer::Pass;
    let mut evidence = Vec::new();
    if programmed && !service.proxy_name_label {
        let part = nodes::at_addresses(Some(service), nodes, Where::Outside);
        says += &format!("; {}", part.says);
        answer = part.answer;
        evidence = part.evidence;
        found.extend(part.found);
    }
    says += "; health checks are not asked";
    let namespace = &*g.name.namespace;
    Part::judged(answer, says, found)
        .evidence(evidence)
        .run(kubectl(
            &[namespace, &g.name.name],
            &[format!("-n {namespace} describe svc {}", g.name.name)],
        ))
}

fn ways_in(object: &ServiceObject) -> String {
    let service = &object.service;
    let mut ways = Vec::new();
    let ingress: Vec<String> = service
        .ingress
        .iter()
        .map(|i| i.address.to_string())
        .collect();
    if !ingress.is_empty() {
        ways.push(format!("load balancer {}", few(&ingress, limits::SHOWN)));
    }
    if service.ingress_hostnames > 0 {
        ways.push(format!(
            "{} of a load balancer, not looked up",
            count(service.ingress_hostnames as usize, "DNS name", "DNS names")
        ));
    }
    let external: Vec<String> = service.external_ips.iter().map(IpAddr::to_string).collect();
    if !external.is_empty() {
        ways.push(format!("external {}", few(&external, limits::SHOWN)));
    }
    let ports: Vec<String> = service
        .ports
        .iter()
        .filter_map(|p| Some(format!("{}/{}", p.node_port?, p.protocol)))
        .collect();
    if !ports.is_empty() {
        ways.push(format!("node port {}", few(&ports, limits::SHOWN)));
    }
    if ways.is_empty() {
        return "no address yet".into();
    }
    ways.join(", ")
}

fn without_address(g: &Ground, known: &KnownService) -> Option<Finding> {
    let object = &known.object;
    if !object.service.ingress.is_empty() || object.service.ingress_hostnames > 0 {
        return None;
    }
    let by = match &object.load_balancer_class {
        Some(class) => format!("of class {class}"),
        None => "that answers for it".into(),
    };
    if !object.has_status {
        // A file that somebody wrote.
        let says = "the object has no status: its load balancer's address is not known here";
        return Some(Finding::new(
            Check::LoadBalancerWithoutAddress,
            Weight::Converging,
            says,
        ));
    }
    let age = g.age(known.changed);
    let weight = g.weight(age, limits::LOAD_BALANCER_MS);
    let how_long = match (g.objects.settled_facts, weight) {
        (true, _) => String::new(),
        (false, Weight::Converging) => format!(
            " (for {}; it is given {} s)",
            ago(age as f64 / 1000.0),
            limits::LOAD_BALANCER_MS / 1000
        ),
        (false, _) => format!(" (for {} at least)", ago(age as f64 / 1000.0)),
    };
    let says =
        format!("the load balancer has no address{how_long}: there may be no controller {by}");
    Some(Finding::new(
        Check::LoadBalancerWithoutAddress,
        weight,
        says,
    ))
}

/// Can no packet have a source in it? RFC 1122 3.2.1.3 (0/8, 127/8, multicast, broadcast); RFC 4291
/// 2.5.2, 2.5.3, 2.7 (unspecified, loopback, multicast).
fn is_no_source(range: &IpNet) -> bool {
    const NONE: [&str; 7] = [
        "0.0.0.0/8",
        "127.0.0.0/8",
        "224.0.0.0/4",
        "255.255.255.255/32",
        "::/128",
        "::1/128",
        "ff00::/8",
    ];
    NONE.iter()
        .filter_map(|n| n.parse::<IpNet>().ok())
        .any(|n| n.contains(range))
}

fn source_ranges(service: &Service) -> Vec<Finding> {
    let mut found = Vec::new();
    if service.source_ranges.is_empty() {
        return found;
    }
    for family in &service.ip_families {
        let of_family: Vec<&IpNet> = service
            .source_ranges
            .iter()
            .filter(|r| Family::of(r.addr()) == *family)
            .collect();
        let text = || {
            let all: Vec<String> = of_family.iter().map(ToString::to_string).collect();
            few(&all, limits::SHOWN)
        };
        // kube-proxy.md 2.2: a list without this family restricts nothing.
        if of_family.is_empty() {
            let says = format!(
                "loadBalancerSourceRanges has no {family} range: everybody is let in there"
            );
            found.push(Finding::new(
                Check::SourceRangesOfOtherFamily,
                Weight::Hint,
                says,
            ));
        } else if of_family.iter().all(|r| is_no_source(r)) {
            let says = format!(
                "loadBalancerSourceRanges ({}) lets no client in over {family}",
                text()
            );
            found.push(Finding::new(
                Check::SourceRangesExcludeEverybody,
                Weight::Fault,
                says,
            ));
        }
    }
    found
}

/// externalTrafficPolicy Local: nodes without an endpoint drop what reaches them.
fn local_policy(g: &Ground, service: &Service) -> Option<Finding> {
    let mut usable: BTreeSet<&str> = BTreeSet::new();
    let mut unplaced = 0;
    for slice in g.objects.slices_of(g.name) {
        for e in &slice.slice.endpoints {
            if e.ready || (e.serving && e.terminating) {
                match &e.node {
                    Some(node) => {
                        usable.insert(node);
                    }
                    None => unplaced += 1,
                }
            }
        }
    }
    // Nothing is usable anywhere: step 3 says so.
    if usable.is_empty() && unplaced == 0 {
        return None;
    }
    let outside: Vec<IpAddr> = service
        .external_ips
        .iter()
        .copied()
        .chain(
            service
                .ingress
                .iter()
                .filter(|i| !i.proxy_mode)
                .map(|i| i.address),
        )
        .collect();
    let mut announced = Vec::new();
    let mut without = Vec::new();
    for node in g.objects.nodes() {
        if usable.contains(&*node.node.name.0) {
            continue;
        }
        without.push(node.node.name.to_string());
        let own = node.node.internal_ips.iter().chain(&node.node.external_ips);
        for address in own.filter(|a| outside.contains(a)) {
            announced.push((node.node.name.to_string(), *address));
        }
    }
    if !announced.is_empty() {
        let says = format!(
            "externalTrafficPolicy Local, and {} that clients are led to without an endpoint of its own",
            count(announced.len(), "node is an address", "nodes are addresses")
        );
        let all = announced
            .iter()
            .map(|(node, a)| Evidence::new(format!("node {node}"), format!("has {a}, and drops")));
        return Some(
            Finding::new(Check::AnnouncedWithoutLocalEndpoint, Weight::Fault, says).with(all),
        );
    }
    if without.is_empty() {
        return None;
    }
    let told = match service.health_check_node_port {
        Some(port) => format!("a load balancer must ask health check node port {port}"),
        None => "nothing tells clients which".into(),
    };
    let says = format!(
        "externalTrafficPolicy Local: {} no endpoint and drop what reaches them; {told}",
        count(without.len(), "node has", "nodes have")
    );
    let all = [Evidence::new("nodes", few(&without, limits::SHOWN))];
    Some(Finding::new(Check::LocalPolicy, Weight::Hint, says).with(all))
}
