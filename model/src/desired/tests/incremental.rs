//! A table that is kept up to date is the table that is made anew.

use super::order::Random;
use super::*;
use crate::desired::{DesiredState, Touched, Updated};
use crate::profile::{NodePortAddress, ProxyConfig};
use std::collections::BTreeSet;

/// Few of everything, so that Services collide and endpoints are shared.
const NAMESPACES: [&str; 2] = ["alpha", "shop"];
const SERVICES: usize = 12;
const PORTS: [(&str, Protocol, u16); 3] = [
    ("http", Protocol::Tcp, 80),
    ("https", Protocol::Tcp, 443),
    ("dns", Protocol::Udp, 53),
];

fn pick<T: Copy>(r: &mut Random, all: &[T]) -> T {
    all[r.below(all.len())]
}

fn name(r: &mut Random) -> ServiceName {
    let namespace = pick(r, &NAMESPACES);
    ServiceName::new(namespace, &format!("s{}", r.below(SERVICES)))
}

/// A Service of any type, in one or both families, that may claim what another one claims.
fn any_service(r: &mut Random) -> Service {
    let families = match r.below(4) {
        0 => vec![Family::V6],
        1 => vec![Family::V6, Family::V4],
        _ => vec![Family::V4],
    };
    let mut cluster_ips: Vec<std::net::IpAddr> = Vec::new();
    for family in &families {
        // Two Services with one cluster IP are not to be had from an API server, but from
        // manifests; and from a watch while one address changes hands.
        let hosts = if r.one_in(6) { 4 } else { 200 };
        let host = 1 + r.below(hosts);
        cluster_ips.push(match family {
            Family::V4 => format!("10.96.0.{host}").parse().unwrap(),
            Family::V6 => format!("fd00:96::{host:x}").parse().unwrap(),
        });
    }
    let kinds = [
        ServiceType::ClusterIP,
        ServiceType::ClusterIP,
        ServiceType::NodePort,
        ServiceType::LoadBalancer,
        ServiceType::LoadBalancer,
        ServiceType::ExternalName,
    ];
    let kind = pick(r, &kinds);
    web(|s| {
        s.name = name(r);
        s.kind = kind;
        s.cluster_ip = match r.below(12) {
            0 => "None".into(),
            _ => cluster_ips[0].to_string().into(),
        };
        s.cluster_ips = cluster_ips;
        s.ip_families = families;
        s.internal_local = r.one_in(4);
        s.external_local = r.one_in(3);
        s.affinity_seconds = r.one_in(5).then_some(600);
        s.headless_label = r.one_in(12);
        s.proxy_name_label = r.one_in(16);
        if kind == ServiceType::LoadBalancer {
            for host in 0..1 + r.below(2) {
                let host = host + r.below(5);
                let address = pick(r, &["203.0.113.", "2001:db8::"]);
                s.ingress.push(Ingress {
                    address: format!("{address}{host}").parse().unwrap(),
                    proxy_mode: r.one_in(6),
                });
            }
            if r.one_in(3) {
                s.source_ranges = vec![
                    "192.168.0.0/24".parse().unwrap(),
                    "10.0.0.0/8".parse().unwrap(),
                ];
            }
        }
        if r.one_in(4) {
            s.external_ips = vec![format!("203.0.113.{}", r.below(5)).parse().unwrap()];
        }
        s.ports.clear();
        let first = r.below(PORTS.len());
        for (port_name, protocol, port) in PORTS.iter().skip(first) {
            let node_ports = matches!(kind, ServiceType::NodePort | ServiceType::LoadBalancer);
            s.ports.push(ServicePort {
                name: (*port_name).into(),
                protocol: *protocol,
                port: *port,
                node_port: node_ports.then(|| 30_000 + r.below(20) as u16),
            });
        }
    })
}

/// An endpoint. Which node has it is said by each slice, and they need not agree: only then does it
/// matter to one Service what another one calls local.
fn any_endpoint(r: &mut Random, family: Family) -> Endpoint {
    let host = r.below(8);
    let net = r.below(3);
    let node = ["@n1", "@n1", "@n2", ""][r.below(4)];
    let state = ["", "", "", "", " unready", " leaving", " dead"][r.below(7)];
    let zones = ["", " zones=a", " zones=b", " zones=a,b"][r.below(4)];
    let nodes = ["", "", " nodes=n1", " nodes=n2"][r.below(4)];
    let address = match family {
        Family::V4 => format!("10.244.{net}.{host}"),
        Family::V6 => format!("fd00:244::{net}:{host}"),
    };
    endpoint(&format!("{address}{node}{state}{zones}{nodes}"))
}

fn any_slice(r: &mut Random) -> EndpointSlice {
    let owner = name(r);
    let family = pick(r, &[Family::V4, Family::V4, Family::V6]);
    let endpoints = (0..r.below(4)).map(|_| any_endpoint(r, family)).collect();
    let some = 1 + r.below(2);
    let mut ports = Vec::new();
    for (port_name, protocol, _) in (0..some).map(|_| pick(r, &PORTS)) {
        ports.push(SlicePort {
            name: Some(port_name.into()),
            protocol,
            port: Some(8080),
        });
    }
    EndpointSlice {
        name: SliceName {
            namespace: owner.namespace.clone(),
            name: format!("e{}", r.below(40)).into(),
        },
        resource_version: "".into(),
        ports,
        service: (!r.one_in(10)).then_some(owner.name),
        family: Some(family),
        endpoints,
        headless_label: r.one_in(20),
        proxy_name_label: r.one_in(20),
    }
}

fn any_node(r: &mut Random, name: &str) -> Node {
    let internal = ["192.168.0.2", "192.168.0.3", "fd00:1::2", "10.244.1.1"];
    Node {
        name: NodeName::from(name),
        internal_ips: vec![pick(r, &internal).parse().unwrap()],
        external_ips: vec![],
        zone: [None, Some("a".into()), Some("b".into())][r.below(3)].clone(),
        pod_cidrs: vec![],
        going: false,
        created: None,
    }
}

/// One thing the API may say next.
fn any_change(r: &mut Random, world: &World) -> Change {
    let services: Vec<_> = world.view.services.values().cloned().collect();
    let slices: Vec<_> = world.view.slices.values().cloned().collect();
    match r.below(40) {
        0..8 => Change::Service(any_service(r)),
        8..11 if !services.is_empty() => {
            // What is there, of another type or with another's addresses.
            let mut service = services[r.below(services.len())].clone();
            let other = any_service(r);
            match r.below(4) {
                0 => service.kind = other.kind,
                1 => {
                    service.cluster_ip = other.cluster_ip;
                    service.cluster_ips = other.cluster_ips;
                    service.ip_families = other.ip_families;
                }
                2 => service.ports = other.ports,
                _ => service.ingress = other.ingress,
            }
            Change::Service(service)
        }
        11..13 if !services.is_empty() => {
            Change::ServiceGone(services[r.below(services.len())].name.clone())
        }
        13..16 if !slices.is_empty() => {
            Change::SliceGone(slices[r.below(slices.len())].name.clone())
        }
        16..19 if !slices.is_empty() => {
            // A slice that changes hands.
            let mut slice = slices[r.below(slices.len())].clone();
            slice.service = Some(name(r).name);
            Change::Slice(slice)
        }
        19..23 if !slices.is_empty() => {
            // An endpoint comes to this node, or leaves it.
            let mut slice = slices[r.below(slices.len())].clone();
            for endpoint in &mut slice.endpoints {
                endpoint.node = Some(pick(r, &["n1", "n2"]).into());
            }
            Change::Slice(slice)
        }
        23 if r.one_in(3) => Change::ServiceCidrs(vec![
            pick(r, &["10.96.0.0/16", "10.96.0.0/24", "fd00:96::/112"])
                .parse()
                .unwrap(),
        ]),
        24 if r.one_in(2) => Change::Node(any_node(r, "n1")),
        25 if r.one_in(6) => Change::Node(any_node(r, "n2")),
        26 if r.one_in(6) => Change::NodeGone(NodeName::from("n1")),
        27 => Change::Complete,
        28 if r.one_in(4) => Change::Replace {
            services: services.into_iter().filter(|_| !r.one_in(8)).collect(),
            slices: slices.into_iter().filter(|_| !r.one_in(8)).collect(),
        },
        _ => Change::Slice(any_slice(r)),
    }
}

/// Something of the node, or of its kube-proxy, that is another now.
fn other_ground(r: &mut Random, world: &mut World) {
    let config: &mut ProxyConfig = &mut world.profile.config.value;
    match r.below(6) {
        0 => config.masquerade_all = !config.masquerade_all,
        1 => config.detector = LocalDetector::None,
        2 => config.detector = LocalDetector::Cidr(vec!["10.244.1.0/24".parse().unwrap()]),
        3 => config.node_port_addresses = Some(vec![NodePortAddress::All]),
        4 => config.node_port_addresses = None,
        _ => {
            // One more address of the node: a Pod's, a cluster IP, one more for nodePorts.
            world.node.addresses.retain(|a| &*a.link != "eth1");
            let address = ["10.244.1.3", "10.96.0.2", "192.168.7.7", "203.0.113.1"];
            world.node.addresses.push(LocalAddress {
                address: pick(r, &address).parse().unwrap(),
                link: "eth1".into(),
            });
        }
    }
}

/// Random things said and done to the node; after each step the table kept, and all that is noted
/// beside it, is what is made anew from the same.
#[test]
fn a_table_kept_up_to_date_is_the_table_made_anew() {
    let (mut by_others, mut conflicts) = (0, 0);
    for seed in [1, 2, 3, 0x6465_7369_7265] {
        #[expect(clippy::disallowed_macros, reason = "a failing test shows its seed")]
        {
            println!("seed {seed}");
        }
        for (mode, minor) in [
            (IPTABLES, 34),
            (NFTABLES, 33),
            (NFTABLES, 34),
            (NFTABLES, 37),
        ] {
            let mut r = Random(seed);
            let mut world = world(mode, minor);
            let mut state = DesiredState::default();
            state.update(
                &world.view,
                &world.node,
                &world.profile,
                &Touched::anything(),
            );
            let mut parts = 0;
            for step in 0..250 {
                let at = format!("seed {seed} {mode} 1.{minor} step {step}");
                // Several changes may be said between two updates.
                let mut touched = Touched::nothing();
                let mut said = Vec::new();
                for _ in 0..r.below(4) {
                    let change = any_change(&mut r, &world);
                    touched.note(&change, &world.view);
                    said.push(format!("{change:?}"));
                    world.say(change);
                }
                if r.one_in(25) {
                    other_ground(&mut r, &mut world);
                }
                let World {
                    view,
                    node,
                    profile,
                } = &world;
                let before = state.table().clone();
                let updated = state.update(view, node, profile, &touched);
                let mut anew = DesiredState::default();
                anew.update(view, node, profile, &Touched::anything());
                assert_eq!(state, anew, "{at}: {said:#?}");
                let whole = state.table();
                if step % 10 == 0 {
                    assert_eq!(*whole, world.table(), "{at}: {said:#?}");
                }
                conflicts += whole
                    .values()
                    .filter(|row| row.because == Because::Conflict)
                    .count();
                if let Updated::Frontends(frontends) = updated {
                    parts += 1;
                    // Whoever uses the rows of these only must not miss one.
                    let keys: BTreeSet<_> = before.keys().chain(whole.keys()).collect();
                    for key in keys {
                        let same = before.get(key) == whole.get(key);
                        assert!(
                            frontends.contains(&key.0) || same,
                            "{at}: {key:?} changed untold"
                        );
                        let others = |row: &Forwarding| {
                            let name = row.service.as_ref().map(|s| &s.service);
                            !name.is_some_and(|n| touched.services().is_some_and(|t| t.contains(n)))
                        };
                        let row = whole.get(key);
                        by_others +=
                            usize::from(!same && row.is_some_and(|r| r.any_of.iter().all(others)));
                    }
                }
            }
            assert!(parts > 120, "{parts} updates by parts");
        }
    }
    // What the test is about happened: rows of Services of which nothing was said became others, and
    // Services claimed the same.
    assert!(
        by_others > 300,
        "{by_others} rows changed by other Services"
    );
    assert!(conflicts > 3_000, "{conflicts} contested rows");
}

/// What one Service calls local is a hairpin rule for another one that does not (nftables, 1.36+).
#[test]
fn an_endpoint_that_becomes_local_is_a_hairpin_of_others() {
    let other = |s: &mut Service| {
        s.name = ServiceName::new("shop", "other");
        s.cluster_ip = "10.96.0.20".into();
        s.cluster_ips = vec!["10.96.0.20".parse().unwrap()];
    };
    let mut world = world(NFTABLES, 37)
        .with(web(|_| ()), &["10.244.1.5@n2"])
        .with(web(other), &["10.244.1.5@n2"]);
    let mut state = DesiredState::default();
    let row = |state: &DesiredState| {
        let key = ("10.96.0.10:80/TCP".parse().unwrap(), Pod);
        show(state.table().get(&key))
    };
    state.update(
        &world.view,
        &world.node,
        &world.profile,
        &Touched::anything(),
    );
    assert_eq!(row(&state), "forward 10.244.1.5:8080/never");
    for (node, masquerade) in [("n1", "hairpin"), ("n2", "never")] {
        let change = Change::Slice(slice("other", "1", &[&format!("10.244.1.5@{node}")]));
        let mut touched = Touched::nothing();
        touched.note(&change, &world.view);
        let other = BTreeSet::from([ServiceName::new("shop", "other")]);
        assert_eq!(touched.services(), Some(&other));
        world.say(change);
        state.update(&world.view, &world.node, &world.profile, &touched);
        assert_eq!(row(&state), format!("forward 10.244.1.5:8080/{masquerade}"));
    }
}

#[test]
fn rules_that_are_not_known_are_merged_as_a_whole() {
    let mut world = world(NFTABLES, 34).with(web(|_| ()), &["10.244.2.1"]);
    world.profile.version = None;
    let mut state = DesiredState::default();
    let mut web = Touched::nothing();
    let name = ServiceName::new("shop", "web");
    web.note(&Change::ServiceGone(name), &world.view);
    let nothing = Updated::Frontends(BTreeSet::new());
    for (touched, expected) in [
        (Touched::anything(), Updated::Whole),
        (Touched::nothing(), nothing),
        (web, Updated::Whole),
    ] {
        let World {
            view,
            node,
            profile,
        } = &world;
        let updated = state.update(view, node, profile, &touched);
        assert_eq!(updated, expected);
        assert_eq!(*state.table(), world.table());
    }
}

/// More Services at once than are worth it one by one.
#[test]
fn many_touched_services_are_any() {
    let view = ClusterView::default();
    let mut touched = Touched::nothing();
    for n in 0..=crate::limits::TOUCHED_SERVICES {
        assert!(touched.services().is_some(), "{n}");
        let name = ServiceName::new("shop", &format!("s{n}"));
        touched.note(&Change::ServiceGone(name), &view);
    }
    assert_eq!(touched, Touched::anything());
}
