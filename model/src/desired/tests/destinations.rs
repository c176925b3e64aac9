//! What each destination gets: kube-proxy.md 2.6, 3.2, 3.3, 5.3 to 5.6.

use super::*;

const CIP: &str = "10.96.0.10:80/TCP";
const VIP: &str = "203.0.113.5:80/TCP";
const EIP: &str = "198.51.100.7:80/TCP";
const NODE_PORT: &str = "192.168.0.2:30080/TCP";
const HERE: &str = "10.244.1.10@n1";
const THERE: &str = "10.244.2.20@n2";

fn external(change: impl FnOnce(&mut Service)) -> Service {
    balanced(|s| {
        s.external_ips = vec!["198.51.100.7".parse().unwrap()];
        change(s);
    })
}

#[test]
fn cluster_policy_forwards_and_masquerades() {
    for (mode, minor) in [(IPTABLES, 34), (NFTABLES, 33), (NFTABLES, 34)] {
        let world = world(mode, minor).with(external(|_| ()), &[HERE, THERE]);
        let always = "forward 10.244.1.10:8080/always 10.244.2.20:8080/always";
        let pod = "forward 10.244.1.10:8080/hairpin 10.244.2.20:8080/hairpin";
        world.expect(CIP, pod, always, always);
        for frontend in [VIP, EIP, NODE_PORT] {
            world.expect(frontend, always, always, always);
        }
    }
}

#[test]
fn from_1_36_nftables_has_hairpin_rules_for_local_endpoints_only() {
    for minor in [36, 37] {
        let world = world(NFTABLES, minor).with(web(|_| ()), &[HERE, THERE]);
        let pod = "forward 10.244.1.10:8080/hairpin 10.244.2.20:8080/never";
        assert_eq!(world.row(CIP, Pod), pod);
        // One set serves all Services, so another one's local endpoint counts.
        let by_hand = web(|s| {
            s.name = ServiceName::new("shop", "by-hand");
            s.cluster_ip = "10.96.0.11".into();
            s.cluster_ips = vec!["10.96.0.11".parse().unwrap()];
        });
        let name = by_hand.name.clone();
        let world = world.with(by_hand, &["10.244.1.10", "10.244.2.20"]);
        assert_eq!(world.row("10.96.0.11:80/TCP", Pod), pod);
        let alone = super::super::desired_service(&world.view, &world.node, &world.profile, &name);
        assert_eq!(
            show(alone.get(&("10.96.0.11:80/TCP".parse().unwrap(), Pod))),
            pod
        );
    }
}

#[test]
fn external_local_short_circuits_pods_and_the_node() {
    for (mode, minor) in [(IPTABLES, 34), (NFTABLES, 33), (NFTABLES, 35)] {
        let world = world(mode, minor).with(external(|s| s.external_local = true), &[HERE, THERE]);
        for frontend in [VIP, EIP, NODE_PORT] {
            world.expect(
                frontend,
                "forward 10.244.1.10:8080/hairpin 10.244.2.20:8080/hairpin",
                "forward 10.244.1.10:8080/always 10.244.2.20:8080/always",
                "forward 10.244.1.10:8080/never",
            );
        }
    }
}

#[test]
fn external_local_without_local_endpoints_drops_for_outside() {
    let service = external(|s| s.external_local = true);
    for (mode, minor) in [
        (IPTABLES, 34),
        (IPTABLES, 31),
        (NFTABLES, 34),
        (NFTABLES, 37),
    ] {
        let world = world(mode, minor).with(service.clone(), &[THERE]);
        let hairpin = if (mode, minor) == (NFTABLES, 37) {
            "never"
        } else {
            "hairpin"
        };
        for frontend in [VIP, EIP, NODE_PORT] {
            world.expect(
                frontend,
                &format!("forward 10.244.2.20:8080/{hairpin}"),
                "forward 10.244.2.20:8080/always",
                "drop",
            );
        }
    }
    // To 1.33 nftables refuses in the output hook before it translates; nodePorts only in input.
    let world = world(NFTABLES, 33).with(service, &[THERE]);
    for frontend in [VIP, EIP] {
        world.expect(frontend, "forward 10.244.2.20:8080/hairpin", "drop", "drop");
    }
    world.expect(
        NODE_PORT,
        "forward 10.244.2.20:8080/hairpin",
        "forward 10.244.2.20:8080/always",
        "drop",
    );
}

#[test]
fn external_local_fallback_to_those_leaving() {
    let service = external(|s| s.external_local = true);
    let world = world(IPTABLES, 34).with(service, &["10.244.1.10@n1 leaving", THERE]);
    world.expect(
        VIP,
        "forward 10.244.2.20:8080/hairpin",
        "forward 10.244.2.20:8080/always",
        "forward 10.244.1.10:8080/never",
    );
}

#[test]
fn without_a_detector_pods_count_as_outside() {
    for (mode, minor) in [(IPTABLES, 34), (NFTABLES, 36)] {
        let world = world(mode, minor)
            .config(|c| c.detector = LocalDetector::None)
            .with(external(|s| s.external_local = true), &[HERE, THERE]);
        let there = if mode == IPTABLES { "hairpin" } else { "never" };
        let through = format!("forward 10.244.1.10:8080/hairpin 10.244.2.20:8080/{there}");
        world.expect(
            CIP,
            &through,
            "forward 10.244.1.10:8080/never 10.244.2.20:8080/never",
            &through,
        );
        let local = "forward 10.244.1.10:8080/hairpin";
        let all = "forward 10.244.1.10:8080/always 10.244.2.20:8080/always";
        world.expect(VIP, local, all, local);
    }
}

#[test]
fn a_detector_without_a_cidr_of_the_family_is_none() {
    let world = world(IPTABLES, 34)
        .config(|c| c.detector = LocalDetector::Cidr(vec!["fd00:244::/64".parse().unwrap()]))
        .with(external(|s| s.external_local = true), &[THERE]);
    world.expect(VIP, "drop", "forward 10.244.2.20:8080/always", "drop");
}

#[test]
fn detectors_by_link_say_nothing_about_addresses() {
    let world = world(IPTABLES, 34)
        .config(|c| c.detector = LocalDetector::InterfacePrefix("veth".into()))
        .with(
            external(|s| s.external_local = true),
            &[HERE, "192.168.0.2@n1"],
        );
    world.expect(
        VIP,
        "forward 10.244.1.10:8080/hairpin 192.168.0.2:8080/never",
        "forward 10.244.1.10:8080/always 192.168.0.2:8080/always",
        "forward 10.244.1.10:8080/hairpin 192.168.0.2:8080/never",
    );
}

#[test]
fn hairpin_needs_a_source_that_can_be_the_backend() {
    let endpoints = [HERE, "172.16.0.9@n3", "192.168.0.2@n1"];
    let world = world(IPTABLES, 34)
        .with(external(|s| s.external_local = true), &endpoints)
        .with(
            web(|s| {
                s.name = ServiceName::new("shop", "b");
                s.cluster_ip = "10.96.0.11".into();
                s.cluster_ips = vec!["10.96.0.11".parse().unwrap()];
            }),
            &endpoints,
        );
    assert_eq!(
        world.row(VIP, Pod),
        "forward 10.244.1.10:8080/hairpin 172.16.0.9:8080/never 192.168.0.2:8080/never"
    );
    let mut bare = world.clone().config(|c| c.detector = LocalDetector::None);
    bare.view.services.remove(&ServiceName::new("shop", "web"));
    assert_eq!(
        bare.row("10.96.0.11:80/TCP", FromNode),
        "forward 10.244.1.10:8080/never 172.16.0.9:8080/never 192.168.0.2:8080/hairpin"
    );
}

#[test]
fn masquerade_all_is_for_cluster_ips() {
    for mode in [IPTABLES, NFTABLES] {
        let world = world(mode, 34)
            .config(|c| c.masquerade_all = true)
            .with(external(|s| s.external_local = true), &[HERE]);
        let always = "forward 10.244.1.10:8080/always";
        world.expect(CIP, always, always, always);
        assert_eq!(world.row(VIP, Pod), "forward 10.244.1.10:8080/hairpin");
        assert_eq!(world.row(VIP, Outside), "forward 10.244.1.10:8080/never");
    }
}

#[test]
fn without_endpoints_everything_is_rejected() {
    for minor in [33, 34, 37] {
        let world = world(NFTABLES, minor).with(external(|_| ()), &[]);
        for frontend in [CIP, VIP, EIP, NODE_PORT] {
            world.expect(frontend, "reject", "reject", "reject");
        }
    }
    // iptables has no rule in OUTPUT for external addresses, which only the node's own packets pass.
    let mut world = world(IPTABLES, 34).with(external(|_| ()), &[]);
    world.expect(CIP, "reject", "reject", "reject");
    world.expect(VIP, "reject", "none", "reject");
    world.expect(EIP, "reject", "none", "reject");
    world.expect(NODE_PORT, "reject", "reject", "reject");
    // An external address that is the node's own is refused in INPUT.
    world.node.addresses.push(LocalAddress {
        address: "203.0.113.5".parse().unwrap(),
        link: "eth0".into(),
    });
    world.expect(VIP, "reject", "reject", "reject");
}

#[test]
fn internal_local_without_local_endpoints_drops() {
    for (mode, minor) in [(IPTABLES, 34), (NFTABLES, 33), (NFTABLES, 36)] {
        let world = world(mode, minor).with(external(|s| s.internal_local = true), &[THERE]);
        world.expect(CIP, "drop", "drop", "drop");
        assert_eq!(world.row(VIP, Outside), "forward 10.244.2.20:8080/always");
    }
}

#[test]
fn other_ports_of_cluster_ips_in_nftables_mode() {
    for (minor, expected) in [
        (29, "reject | none UnknownVersion"),
        (30, "reject | none UnknownVersion"),
        (31, "reject"),
        (37, "reject"),
    ] {
        for endpoints in [&[HERE][..], &[]] {
            let world = world(NFTABLES, minor).with(web(|_| ()), endpoints);
            world.expect("10.96.0.10:*/*", expected, expected, expected);
        }
    }
    world(IPTABLES, 36)
        .with(web(|_| ()), &[HERE])
        .expect("10.96.0.10:*/*", "-", "-", "-");
    // Addresses that IPVS mode left on the node are asked in the input hook, where nothing refuses.
    let mut world = world(NFTABLES, 36).with(web(|_| ()), &[]);
    world.node.addresses.push(LocalAddress {
        address: "10.96.0.10".parse().unwrap(),
        link: "kube-ipvs0".into(),
    });
    world.expect("10.96.0.10:*/*", "-", "reject", "-");
    world.expect(CIP, "reject", "reject", "reject");
    world.profile.mode = Some(learnt(IPTABLES));
    world.expect(CIP, "none", "reject", "none");
}

#[test]
fn unallocated_cluster_ips_in_nftables_mode() {
    let mut world = world(NFTABLES, 36).with(web(|_| ()), &[HERE]);
    world.say(Change::ServiceCidrs(vec!["10.96.0.0/16".parse().unwrap()]));
    let either = "drop | none FullSyncOnly";
    world.expect("10.96.0.0/16:*/*", either, either, either);
    world.profile.mode = Some(learnt(IPTABLES));
    world.expect("10.96.0.0/16:*/*", "-", "-", "-");
}

#[test]
fn source_ranges() {
    let ranged = |ranges: &[&str]| {
        let ranges = ranges
            .iter()
            .map(|r| r.parse().unwrap())
            .collect::<Vec<_>>();
        external(|s| s.source_ranges = ranges)
    };
    let outside = |mode, minor, ranges: &[&str], endpoints: &[&str]| {
        world(mode, minor)
            .with(ranged(ranges), endpoints)
            .row(VIP, Outside)
    };
    for (mode, minor) in [
        (IPTABLES, 33),
        (IPTABLES, 37),
        (NFTABLES, 33),
        (NFTABLES, 37),
    ] {
        for (ranges, expected) in [
            (&["198.51.100.0/24"][..], " from 198.51.100.0/24 else drop"),
            // Sorted, and none contains another.
            (
                &["198.51.100.0/24", "10.0.0.0/8", "198.51.100.128/25"],
                " from 10.0.0.0/8,198.51.100.0/24 else drop",
            ),
            // The node's own address lies in a range: the addresses themselves are let in.
            (
                &["192.168.0.0/24"],
                " from 192.168.0.0/24,203.0.113.5/32 else drop",
            ),
            (&["198.51.100.0/24", "0.0.0.0/0"], ""),
            (&["2001:db8::/32"], ""),
            (&[], ""),
        ] {
            let row = outside(mode, minor, ranges, &[HERE]);
            assert_eq!(row, format!("forward 10.244.1.10:8080/always{expected}"));
        }
        // Never for other addresses.
        let world = world(mode, minor).with(ranged(&["198.51.100.0/24"]), &[HERE]);
        for frontend in [EIP, NODE_PORT] {
            let row = "forward 10.244.1.10:8080/always";
            world.expect(frontend, row, row, row);
        }
    }
    // Without endpoints only nftables still has the firewall.
    let ranges = ["198.51.100.0/24"];
    assert_eq!(outside(IPTABLES, 34, &ranges, &[]), "reject");
    let refused = "reject from 198.51.100.0/24 else drop";
    for (minor, node) in [(34, refused), (33, "reject")] {
        world(NFTABLES, minor)
            .with(ranged(&ranges), &[])
            .expect(VIP, refused, node, refused);
    }
    // Dropped inside as outside: no restriction is left.
    for mode in [IPTABLES, NFTABLES] {
        let mut service = ranged(&ranges);
        service.external_local = true;
        assert_eq!(
            world(mode, 34).with(service, &[THERE]).row(VIP, Outside),
            "drop"
        );
    }
    // The node's address is not known: both are accepted.
    let mut unknown = world(IPTABLES, 34).with(ranged(&["192.168.0.0/24"]), &[HERE]);
    unknown.view.nodes.clear();
    assert_eq!(
        unknown.row(VIP, Outside),
        "forward 10.244.1.10:8080/always from 192.168.0.0/24 else drop | forward \
         10.244.1.10:8080/always from 192.168.0.0/24,203.0.113.5/32 else drop \
         UnknownConfiguration"
    );
}

#[test]
fn an_external_ip_that_is_also_a_load_balancer_address() {
    let service = balanced(|s| {
        s.external_ips = vec!["203.0.113.5".parse().unwrap()];
        s.source_ranges = vec!["198.51.100.0/24".parse().unwrap()];
    });
    let forward = "forward 10.244.1.10:8080/always";
    let iptables = world(IPTABLES, 34).with(service.clone(), &[HERE]);
    assert_eq!(iptables.row(VIP, Outside), forward);
    let nftables = world(NFTABLES, 34).with(service, &[HERE]);
    assert_eq!(
        nftables.row(VIP, Outside),
        format!("{forward} from 198.51.100.0/24 else drop")
    );
}

#[test]
fn load_balancer_ip_modes() {
    let service = balanced(|s| s.ingress[0].proxy_mode = true);
    for mode in [IPTABLES, NFTABLES] {
        let world = world(mode, 34).with(service.clone(), &[HERE]);
        world.expect(VIP, "-", "-", "-");
        assert_eq!(
            world.row(NODE_PORT, Outside),
            "forward 10.244.1.10:8080/always"
        );
    }
    // The gate of 1.29 is off by default and cannot be seen.
    let row = world(IPTABLES, 29).with(service, &[HERE]).row(VIP, Outside);
    assert_eq!(row, "forward 10.244.1.10:8080/always | none UnknownVersion");
}

#[test]
fn affinity_is_on_forwarding_rows() {
    let service = external(|s| s.affinity_seconds = Some(600));
    let forwards = world(NFTABLES, 34).with(service.clone(), &[HERE]);
    for frontend in [CIP, VIP, EIP, NODE_PORT] {
        let row = forwards.row(frontend, Outside);
        assert_eq!(row, "forward 10.244.1.10:8080/always sticky 600");
    }
    assert_eq!(
        world(NFTABLES, 34).with(service, &[]).row(CIP, Outside),
        "reject"
    );
}

#[test]
fn two_services_claim_one_address() {
    let external = |name: &str, cluster_ip: &str| {
        web(|s| {
            s.name = ServiceName::new("shop", name);
            s.cluster_ip = cluster_ip.into();
            s.cluster_ips = vec![cluster_ip.parse().unwrap()];
            s.external_ips = vec!["198.51.100.7".parse().unwrap()];
        })
    };
    let (a, b) = (external("a", "10.96.0.1"), external("b", "10.96.0.2"));
    for (mode, minor) in [(IPTABLES, 34), (NFTABLES, 34), (NFTABLES, 33)] {
        let both = world(mode, minor)
            .with(a.clone(), &[HERE])
            .with(b.clone(), &[THERE]);
        let either = "forward 10.244.1.10:8080/always | forward 10.244.2.20:8080/always Conflict";
        both.expect(EIP, either, either, either);
        // The one without endpoints only refuses what was not translated.
        for (of_a, of_b) in [(&[HERE][..], &[][..]), (&[], &[HERE])] {
            let one = world(mode, minor)
                .with(a.clone(), of_a)
                .with(b.clone(), of_b);
            let forward = "forward 10.244.1.10:8080/always";
            assert_eq!(one.row(EIP, Pod), forward);
            assert_eq!(one.row(EIP, Outside), forward);
            let node = one.row(EIP, FromNode);
            if minor == 33 {
                assert!(
                    node.contains("Conflict") && node.contains("reject"),
                    "{node}"
                );
            } else {
                assert_eq!(node, forward);
            }
        }
    }
    // Each alone.
    let both = world(IPTABLES, 34)
        .with(a.clone(), &[HERE])
        .with(b, &[THERE]);
    let alone = super::super::desired_service(&both.view, &both.node, &both.profile, &a.name);
    assert_eq!(
        show(alone.get(&(EIP.parse().unwrap(), Pod))),
        "forward 10.244.1.10:8080/always"
    );
    assert_eq!(alone.len(), 6);
}
