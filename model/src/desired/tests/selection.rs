//! Which endpoints are used: kube-proxy.md 2.2 to 2.5.

use super::*;

const CIP: &str = "10.96.0.10:80/TCP";

/// Backends that a Pod gets through the cluster IP; the masquerade words are left out.
fn backends(world: &World) -> String {
    plain(&world.row(CIP, Pod))
}

fn plain(row: &str) -> String {
    row.replace("/hairpin", "")
        .replace("/never", "")
        .replace("/always", "")
        .replace(":8080", "")
}

#[test]
fn conditions_and_the_terminating_fallback() {
    for (endpoints, expected) in [
        (
            &["10.244.1.10@n1", "10.244.2.20@n2"][..],
            "forward 10.244.1.10 10.244.2.20",
        ),
        (
            &["10.244.1.10@n1", "10.244.2.20@n2 unready"],
            "forward 10.244.1.10",
        ),
        // One ready endpoint anywhere hides all that are leaving.
        (
            &["10.244.1.10@n1 leaving", "10.244.2.20@n2"],
            "forward 10.244.2.20",
        ),
        (
            &["10.244.1.10@n1 leaving", "10.244.2.20@n2 leaving"],
            "forward 10.244.1.10 10.244.2.20",
        ),
        (
            &["10.244.1.10@n1 leaving", "10.244.2.20@n2 dead"],
            "forward 10.244.1.10",
        ),
        (
            &["10.244.1.10@n1 leaving", "10.244.2.20@n2 unready"],
            "forward 10.244.1.10",
        ),
        (&["10.244.1.10@n1 dead", "10.244.2.20@n2 unready"], "reject"),
        (&[], "reject"),
    ] {
        for mode in [IPTABLES, NFTABLES] {
            let world = world(mode, 34).with(web(|_| ()), endpoints);
            assert_eq!(backends(&world), expected, "{endpoints:?}");
        }
    }
}

#[test]
fn internal_traffic_policy_local() {
    for (endpoints, expected) in [
        (
            &["10.244.1.10@n1", "10.244.2.20@n2"][..],
            "forward 10.244.1.10",
        ),
        // A local endpoint that is leaving is used although a ready one exists elsewhere.
        (
            &["10.244.1.10@n1 leaving", "10.244.2.20@n2"],
            "forward 10.244.1.10",
        ),
        (
            &["10.244.1.10@n1 leaving", "10.244.1.11@n1"],
            "forward 10.244.1.11",
        ),
        (&["10.244.2.20@n2"], "drop"),
        (&["10.244.2.20@n2 leaving"], "drop"),
        (&["10.244.2.20@n2 unready"], "reject"),
        (&["10.244.2.20"], "drop"),
        // Local ignores hints.
        (
            &["10.244.1.10@n1 zones=b", "10.244.2.20@n2 zones=a"],
            "forward 10.244.1.10",
        ),
    ] {
        let world = world(NFTABLES, 34).with(web(|s| s.internal_local = true), endpoints);
        assert_eq!(backends(&world), expected, "{endpoints:?}");
    }
}

#[test]
fn zone_hints_are_all_or_nothing() {
    for (endpoints, expected) in [
        (
            &["10.244.1.10 zones=a", "10.244.2.20 zones=b"][..],
            "forward 10.244.1.10",
        ),
        (
            &["10.244.1.10 zones=a", "10.244.2.20 zones=a,b"],
            "forward 10.244.1.10 10.244.2.20",
        ),
        (
            &["10.244.1.10 zones=a", "10.244.2.20"],
            "forward 10.244.1.10 10.244.2.20",
        ),
        (
            &["10.244.1.10 zones=c", "10.244.2.20 zones=b"],
            "forward 10.244.1.10 10.244.2.20",
        ),
        // Those not ready neither break the rule nor count for it.
        (
            &["10.244.1.10 zones=a", "10.244.2.20 unready"],
            "forward 10.244.1.10",
        ),
        (
            &[
                "10.244.1.10 zones=a unready",
                "10.244.2.20 zones=b",
                "10.244.3.30 zones=c",
            ],
            "forward 10.244.2.20 10.244.3.30",
        ),
        (
            &["10.244.1.10 zones=a leaving", "10.244.2.20 zones=b leaving"],
            "forward 10.244.1.10 10.244.2.20",
        ),
    ] {
        let world = world(IPTABLES, 34).with(web(|_| ()), endpoints);
        assert_eq!(backends(&world), expected, "{endpoints:?}");
    }
    let hinted = ["10.244.1.10 zones=a", "10.244.2.20 zones=b"];
    let mut no_label = world(IPTABLES, 34).with(web(|_| ()), &hinted);
    no_label
        .view
        .nodes
        .get_mut(&NodeName::from("n1"))
        .unwrap()
        .zone = None;
    assert_eq!(backends(&no_label), "forward 10.244.1.10 10.244.2.20");
    let mut no_node = world(IPTABLES, 34).with(web(|_| ()), &hinted);
    no_node.view.nodes.clear();
    assert_eq!(
        backends(&no_node),
        "forward 10.244.1.10 10.244.2.20 | forward 10.244.1.10 | forward 10.244.2.20 \
         UnknownConfiguration"
    );
}

#[test]
fn node_hints_come_first_where_they_count() {
    let endpoints = [
        "10.244.1.10 nodes=n1 zones=a",
        "10.244.1.11 nodes=n2 zones=a",
    ];
    for (minor, gate, expected) in [
        (32, Some(true), "forward 10.244.1.10 10.244.1.11"),
        (33, None, "forward 10.244.1.10 10.244.1.11"),
        (33, Some(true), "forward 10.244.1.10"),
        (34, None, "forward 10.244.1.10"),
        (34, Some(false), "forward 10.244.1.10 10.244.1.11"),
        (35, Some(false), "forward 10.244.1.10"),
        (37, None, "forward 10.244.1.10"),
    ] {
        let world = world(IPTABLES, minor)
            .config(|c| c.prefer_same_traffic_distribution = gate)
            .with(web(|_| ()), &endpoints);
        assert_eq!(backends(&world), expected, "1.{minor} {gate:?}");
    }
    for (endpoints, expected) in [
        // No endpoint for this node: zones decide.
        (
            [
                "10.244.1.10 nodes=n3 zones=a",
                "10.244.1.11 nodes=n2 zones=b",
            ],
            "forward 10.244.1.10",
        ),
        // One without a node hint: zones decide.
        (
            ["10.244.1.10 nodes=n1 zones=b", "10.244.1.11 zones=a"],
            "forward 10.244.1.11",
        ),
    ] {
        let world = world(IPTABLES, 36).with(web(|_| ()), &endpoints);
        assert_eq!(backends(&world), expected, "{endpoints:?}");
    }
}

#[test]
fn annotation_is_needed_to_1_30() {
    let endpoints = ["10.244.1.10 zones=a", "10.244.2.20 zones=b"];
    for (minor, annotation, expected) in [
        (30, None, "forward 10.244.1.10 10.244.2.20"),
        (30, Some("Disabled"), "forward 10.244.1.10 10.244.2.20"),
        (30, Some(""), "forward 10.244.1.10 10.244.2.20"),
        (30, Some("Auto"), "forward 10.244.1.10"),
        (29, Some("anything"), "forward 10.244.1.10"),
        (31, None, "forward 10.244.1.10"),
    ] {
        let service = web(|s| s.topology_annotation = annotation.map(Into::into));
        let world = world(IPTABLES, minor).with(service, &endpoints);
        assert_eq!(backends(&world), expected, "1.{minor} {annotation:?}");
    }
}

#[test]
fn names_and_protocols_join_ports_and_numbers_may_differ() {
    let other = |suffix: &str, change: fn(&mut SlicePort)| {
        let mut slice = slice("web", suffix, &["10.244.9.9"]);
        change(&mut slice.ports[0]);
        slice
    };
    let world = world(IPTABLES, 36)
        .with(web(|_| ()), &["10.244.1.10"])
        .slice(other("other-name", |p| p.name = Some("https".into())))
        .slice(other("unnamed", |p| p.name = Some("".into())))
        .slice(other("nil-name", |p| p.name = None))
        .slice(other("protocol", |p| p.protocol = Protocol::Udp))
        .slice(other("nil-port", |p| p.port = None));
    assert_eq!(world.row(CIP, Pod), "forward 10.244.1.10:8080/hairpin");
    let world = world.slice(other("named-container-port", |p| p.port = Some(9090)));
    assert_eq!(
        world.row(CIP, Pod),
        "forward 10.244.1.10:8080/hairpin 10.244.9.9:9090/hairpin"
    );
    let unnamed = web(|s| s.ports[0].name = "".into());
    let world = world.with(unnamed, &["10.244.1.10"]);
    assert_eq!(world.row(CIP, Pod), "forward 10.244.9.9:8080/hairpin");
}

#[test]
fn slices_of_others_and_of_other_families_are_ignored() {
    let mut fqdn = slice("web", "fqdn", &["10.244.9.1"]);
    fqdn.family = None;
    let mut nobodys = slice("web", "nobodys", &["10.244.9.2"]);
    nobodys.service = None;
    let mut elsewhere = slice("web", "elsewhere", &["10.244.9.3"]);
    elsewhere.name.namespace = "mall".into();
    let mut headless = slice("web", "headless", &["10.244.9.4"]);
    headless.headless_label = true;
    let mut wrong_address = slice("web", "wrong-address", &["10.244.9.5"]);
    wrong_address.family = Some(Family::V6);
    let mut no_address = slice("web", "no-address", &["10.244.9.6"]);
    no_address.endpoints[0].address = None;
    let mut world = world(NFTABLES, 37).with(web(|_| ()), &["10.244.1.10"]);
    for slice in [
        fqdn,
        nobodys,
        elsewhere,
        headless,
        wrong_address,
        no_address,
    ] {
        world = world.slice(slice);
    }
    assert_eq!(backends(&world), "forward 10.244.1.10");
}

#[test]
fn some_services_get_nothing() {
    for service in [
        web(|s| s.cluster_ip = "None".into()),
        web(|s| s.cluster_ip = "".into()),
        web(|s| s.kind = ServiceType::ExternalName),
        web(|s| s.proxy_name_label = true),
        web(|s| s.ports.clear()),
        web(|s| s.ip_families = vec![Family::V6]),
    ] {
        for (mode, minor) in [(IPTABLES, 36), (NFTABLES, 36), (IPTABLES, 34)] {
            let world = world(mode, minor).with(service.clone(), &["10.244.1.10"]);
            assert_eq!(world.table(), DesiredTable::new(), "{service:?}");
        }
    }
}

#[test]
fn both_families_by_their_place() {
    let dual = web(|s| {
        s.ip_families = vec![Family::V6, Family::V4];
        s.cluster_ip = "fd00:96::10".into();
        s.cluster_ips = vec![
            "fd00:96::10".parse().unwrap(),
            "10.96.0.10".parse().unwrap(),
        ];
    });
    let world = world(IPTABLES, 34)
        .with(dual, &["10.244.1.10@n1"])
        .slice(slice("web", "v6", &["fd00:244::10@n1"]));
    world.expect(
        CIP,
        "forward 10.244.1.10:8080/hairpin",
        "forward 10.244.1.10:8080/always",
        "forward 10.244.1.10:8080/always",
    );
    world.expect(
        "[fd00:96::10]:80/TCP",
        "forward [fd00:244::10]:8080/hairpin",
        "forward [fd00:244::10]:8080/always",
        "forward [fd00:244::10]:8080/always",
    );
    assert_eq!(world.table().len(), 6);
}

#[test]
fn families_default_to_that_of_the_cluster_ip() {
    let world = world(IPTABLES, 34).with(web(|s| s.ip_families = vec![]), &["10.244.1.10@n1"]);
    assert_eq!(backends(&world), "forward 10.244.1.10");
}

#[test]
fn every_protocol() {
    for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
        let mut slice = slice("web", "1", &["10.244.1.10@n1"]);
        slice.ports[0].protocol = protocol;
        let world = world(NFTABLES, 36)
            .with(web(|s| s.ports[0].protocol = protocol), &[])
            .slice(slice);
        let row = world.row(&format!("10.96.0.10:80/{protocol}"), Outside);
        assert_eq!(row, "forward 10.244.1.10:8080/always");
    }
}

#[test]
fn duplicates_by_version() {
    let twice = |minor: u16, internal_local: bool, first: &[&str], second: &[&str]| {
        let world = world(IPTABLES, minor)
            .with(web(|s| s.internal_local = internal_local), first)
            .slice(slice("web", "2", second));
        backends(&world)
    };
    let (ready, leaving) = (&["10.244.1.10@n1"][..], &["10.244.1.10@n1 leaving"][..]);
    let other = "10.244.2.20@n2";
    // Equal conditions: no doubt, and one share.
    assert_eq!(twice(34, false, ready, ready), "forward 10.244.1.10");
    // To 1.35 the order of slices decides; alone, both ways give the same backends.
    assert_eq!(twice(34, false, ready, leaving), "forward 10.244.1.10");
    assert_eq!(
        twice(34, false, &["10.244.1.10@n1", other], leaving),
        "forward 10.244.1.10 10.244.2.20 | forward 10.244.2.20 DuplicateEndpoint"
    );
    // From 1.36 the one that is not terminating wins.
    assert_eq!(
        twice(36, false, &["10.244.1.10@n1", other], leaving),
        "forward 10.244.1.10 10.244.2.20"
    );
    assert_eq!(
        twice(36, false, leaving, &["10.244.1.10@n1", other]),
        "forward 10.244.1.10 10.244.2.20"
    );
    // To 1.35 a local one replaces, whatever its conditions; from 1.36 the order decides.
    let (here, there) = (&["10.244.1.10@n1"][..], &["10.244.1.10@n2"][..]);
    assert_eq!(twice(34, true, here, there), "forward 10.244.1.10");
    assert_eq!(
        twice(36, true, here, there),
        "forward 10.244.1.10 | drop DuplicateEndpoint"
    );
    assert_eq!(
        twice(
            34,
            false,
            &["10.244.1.10@n1 unready"],
            &["10.244.1.10@n2", other]
        ),
        "forward 10.244.2.20"
    );
    // Inside one slice the order is that of the slice.
    let inside = |minor: u16| {
        let endpoints = [other, "10.244.1.10@n2", "10.244.1.10@n2 unready"];
        backends(&world(IPTABLES, minor).with(web(|_| ()), &endpoints))
    };
    assert_eq!(inside(34), "forward 10.244.1.10 10.244.2.20");
    assert_eq!(inside(36), "forward 10.244.2.20");
}

#[test]
fn many_contradicting_slices_stay_bounded() {
    let mut world = world(IPTABLES, 34).with(web(|_| ()), &["10.244.1.10@n2", "10.244.2.20@n2"]);
    for n in 2..9 {
        let state = if n % 2 == 0 {
            "10.244.1.10@n2 unready"
        } else {
            "10.244.1.10@n2"
        };
        world = world.slice(slice("web", &n.to_string(), &[state]));
    }
    assert_eq!(
        backends(&world),
        "forward 10.244.1.10 10.244.2.20 | forward 10.244.2.20 DuplicateEndpoint"
    );
}
