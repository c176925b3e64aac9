//! What differs by version, unknown versions and modes, and what stands beside the table.

use super::super::{configuration_problems, health_check_ports};
use super::*;

const CIP: &str = "10.96.0.10:80/TCP";
const HERE: &str = "10.244.1.10@n1";

#[test]
fn labels() {
    let served = "forward 10.244.1.10:8080/hairpin";
    for (minor, headless, by_slice) in [(35, "-", "reject"), (36, served, served)] {
        let world = world(IPTABLES, minor);
        let labelled = world
            .clone()
            .with(web(|s| s.headless_label = true), &[HERE]);
        assert_eq!(labelled.row(CIP, Pod), headless);
        let mut by_other = slice("web", "1", &[HERE]);
        by_other.proxy_name_label = true;
        let labelled = world.with(web(|_| ()), &[]).slice(by_other);
        assert_eq!(labelled.row(CIP, Pod), by_slice);
    }
}

#[test]
fn external_ips_can_be_switched_off_from_1_36() {
    let service = || {
        web(|s| {
            s.external_ips = vec!["198.51.100.7".parse().unwrap()];
            s.internal_local = true;
        })
    };
    for (minor, allowed, expected) in [
        (35, false, "forward 10.244.1.10:8080/always"),
        (36, true, "forward 10.244.1.10:8080/always"),
        (36, false, "-"),
    ] {
        let world = world(IPTABLES, minor)
            .config(|c| c.allow_external_ips = allowed)
            .with(service(), &[HERE]);
        assert_eq!(
            world.row("198.51.100.7:80/TCP", Outside),
            expected,
            "1.{minor} {allowed}"
        );
    }
}

#[test]
fn external_local_of_a_cluster_ip_service() {
    let service = || {
        web(|s| {
            s.external_ips = vec!["198.51.100.7".parse().unwrap()];
            s.external_local = true;
        })
    };
    for (minor, expected) in [(29, "forward 10.244.2.20:8080/always"), (30, "drop")] {
        let world = world(IPTABLES, minor).with(service(), &["10.244.2.20@n2"]);
        assert_eq!(
            world.row("198.51.100.7:80/TCP", Outside),
            expected,
            "1.{minor}"
        );
    }
}

#[test]
fn an_unknown_version_accepts_every_answer() {
    let mut world = world(NFTABLES, 34).with(web(|_| ()), &[HERE, "10.244.2.20@n2"]);
    world.profile.version = None;
    assert_eq!(
        world.row(CIP, Pod),
        "forward 10.244.1.10:8080/hairpin 10.244.2.20:8080/hairpin | forward \
         10.244.1.10:8080/hairpin 10.244.2.20:8080/never UnknownVersion"
    );
    // What no version does otherwise stays certain.
    assert_eq!(
        world.row(CIP, Outside),
        "forward 10.244.1.10:8080/always 10.244.2.20:8080/always"
    );
    let mut labelled = world
        .clone()
        .with(web(|s| s.headless_label = true), &[HERE]);
    labelled.profile.mode = Some(learnt(IPTABLES));
    assert_eq!(
        labelled.row(CIP, Outside),
        "forward 10.244.1.10:8080/always | none UnknownVersion"
    );
}

#[test]
fn an_unknown_mode_accepts_both() {
    let mut world = world(NFTABLES, 34).with(web(|_| ()), &[HERE]);
    world.profile.mode = None;
    assert_eq!(world.row(CIP, Pod), "forward 10.244.1.10:8080/hairpin");
    let wildcard = world.row("10.96.0.10:*/*", Pod);
    assert_eq!(wildcard, "reject | none UnknownConfiguration");
}

#[test]
fn health_check_ports_count_ready_local_addresses() {
    let service = |change: fn(&mut Service)| {
        balanced(|s| {
            s.external_local = true;
            s.health_check_node_port = Some(32000);
            change(s);
        })
    };
    let endpoints = [
        HERE,
        "10.244.1.11@n1 leaving",
        "10.244.1.12@n1 unready",
        "10.244.2.20@n2",
        "10.244.1.13@n1",
    ];
    let counts = |service: Service| {
        let w = world(IPTABLES, 34).with(service, &endpoints);
        let all = health_check_ports(&w.view, &w.node, &w.profile);
        all.into_iter()
            .map(|((_, port), n)| (port, n[&Family::V4]))
            .collect::<Vec<_>>()
    };
    assert_eq!(counts(service(|_| ())), [(32000, 2)]);
    // Several ports, still the same addresses.
    assert_eq!(
        counts(service(|s| s.ports.push(s.ports[0].clone()))),
        [(32000, 2)]
    );
    assert_eq!(counts(service(|s| s.external_local = false)), []);
    assert_eq!(counts(service(|s| s.kind = ServiceType::NodePort)), []);
    assert_eq!(counts(service(|s| s.health_check_node_port = None)), []);
    let w = world(IPTABLES, 34).with(service(|_| ()), &["10.244.2.20@n2"]);
    let none = health_check_ports(&w.view, &w.node, &w.profile);
    assert_eq!(
        none.into_values()
            .map(|n| n[&Family::V4])
            .collect::<Vec<_>>(),
        [0]
    );
}

#[test]
fn a_node_name_that_is_no_nodes() {
    let problems = |name: Option<&str>| {
        let w = world(IPTABLES, 34).config(|c| c.node_name = name.map(Into::into));
        configuration_problems(&w.view, &w.node, &w.profile)
    };
    assert!(problems(None).is_empty());
    assert!(problems(Some("n1")).is_empty());
    assert_eq!(problems(Some("n1.example")).len(), 1);
    // No Node is known at all: nothing can be said.
    let mut w = world(IPTABLES, 34).config(|c| c.node_name = Some("n1.example".into()));
    w.view.nodes.clear();
    assert!(configuration_problems(&w.view, &w.node, &w.profile).is_empty());
    // Its endpoints count as remote.
    let w = world(IPTABLES, 34)
        .config(|c| c.node_name = Some("n1.example".into()))
        .with(web(|s| s.internal_local = true), &[HERE]);
    assert_eq!(w.row(CIP, Pod), "drop");
}
