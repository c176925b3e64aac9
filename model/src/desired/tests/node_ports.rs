//! nodePort addresses: kube-proxy.md 2.8, 5.11.

use super::*;
use crate::profile::NodePortAddress;
use std::collections::BTreeSet;

const HERE: &str = "10.244.1.10@n1";

fn node_port(families: &[Family]) -> Service {
    web(|s| {
        s.kind = ServiceType::NodePort;
        s.ports[0].node_port = Some(30080);
        s.ip_families = families.to_vec();
        s.cluster_ips = families
            .iter()
            .map(|f| {
                if *f == Family::V4 {
                    "10.96.0.10"
                } else {
                    "fd00:96::10"
                }
                .parse()
                .unwrap()
            })
            .collect();
        s.cluster_ip = s.cluster_ips[0].to_string().into();
    })
}

fn cidr(text: &str) -> NodePortAddress {
    NodePortAddress::Cidr(text.parse().unwrap())
}

/// Addresses with a nodePort row from outside, each with its action unless it is forward.
fn addresses(world: &World) -> String {
    let mut all = Vec::new();
    for ((frontend, source), row) in world.table() {
        let port = frontend.to_string().contains(":30080/");
        if port && source == Outside {
            let words: BTreeSet<&str> = row.any_of.iter().map(|f| f.action.word()).collect();
            let words: Vec<&str> = words.into_iter().filter(|w| *w != "forward").collect();
            let mark = if words.is_empty() {
                String::new()
            } else {
                format!("={}", words.join("|"))
            };
            all.push(format!("{}{mark}", frontend.address()));
        }
    }
    all.join(" ")
}

fn dual(mode: ProxyMode, minor: u16, endpoints: bool) -> World {
    let (v4, v6) = if endpoints {
        (&[HERE][..], &["fd00:244::10@n1"][..])
    } else {
        (&[][..], &[][..])
    };
    world(mode, minor)
        .with(node_port(&[Family::V4, Family::V6]), v4)
        .slice(slice("web", "v6", v6))
}

#[test]
fn settings_by_mode_and_version() {
    use NodePortAddress::{All, Localhost, Primary};
    let every = "10.244.1.1 127.0.0.1 192.168.0.2 fd00:1::2";
    let not_loopback = "10.244.1.1 192.168.0.2 fd00:1::2";
    for (mode, minor, setting, expected) in [
        (IPTABLES, 34, None, every),
        (IPTABLES, 34, Some(vec![]), every),
        (NFTABLES, 34, None, "192.168.0.2 fd00:1::2"),
        (NFTABLES, 31, None, "192.168.0.2 fd00:1::2"),
        (NFTABLES, 30, None, "192.168.0.2 fd00:1::2"),
        (IPTABLES, 34, Some(vec![Primary]), "192.168.0.2 fd00:1::2"),
        (
            IPTABLES,
            34,
            Some(vec![cidr("10.244.0.0/16")]),
            "10.244.1.1 fd00:1::2",
        ),
        (
            NFTABLES,
            34,
            Some(vec![cidr("10.244.0.0/16")]),
            "10.244.1.1 fd00:1::2",
        ),
        (
            IPTABLES,
            34,
            Some(vec![cidr("127.0.0.0/8")]),
            "127.0.0.1 fd00:1::2",
        ),
        (NFTABLES, 34, Some(vec![cidr("127.0.0.0/8")]), "fd00:1::2"),
        (IPTABLES, 34, Some(vec![cidr("172.16.0.0/12")]), "fd00:1::2"),
        (
            IPTABLES,
            34,
            Some(vec![cidr("10.244.0.0/16"), cidr("0.0.0.0/0")]),
            every,
        ),
        (
            NFTABLES,
            34,
            Some(vec![cidr("0.0.0.0/0"), cidr("::/0")]),
            not_loopback,
        ),
        (IPTABLES, 37, Some(vec![Localhost]), "127.0.0.1"),
        (NFTABLES, 37, Some(vec![Localhost]), ""),
        (NFTABLES, 37, Some(vec![All]), not_loopback),
        (IPTABLES, 37, Some(vec![All]), every),
        (
            IPTABLES,
            37,
            Some(vec![Primary, cidr("10.244.1.0/24")]),
            "10.244.1.1 192.168.0.2 fd00:1::2",
        ),
    ] {
        let world = dual(mode, minor, true).config(|c| c.node_port_addresses = setting.clone());
        assert_eq!(addresses(&world), expected, "{mode} 1.{minor} {setting:?}");
    }
}

#[test]
fn localhost_node_ports_can_be_off() {
    let off = dual(IPTABLES, 34, true).config(|c| c.localhost_node_ports = false);
    assert_eq!(addresses(&off), "10.244.1.1 192.168.0.2 fd00:1::2");
}

#[test]
fn an_address_of_the_ipvs_device_takes_none() {
    let mut world = dual(IPTABLES, 34, true);
    world.node.addresses.push(LocalAddress {
        address: "10.96.0.77".parse().unwrap(),
        link: "kube-ipvs0".into(),
    });
    assert_eq!(
        addresses(&world),
        "10.244.1.1 127.0.0.1 192.168.0.2 fd00:1::2"
    );
}

#[test]
fn primary_follows_the_node() {
    let primary = |change: fn(&mut Node)| {
        let mut world = dual(NFTABLES, 36, true);
        change(world.view.nodes.get_mut(&NodeName::from("n1")).unwrap());
        addresses(&world)
    };
    // A family without a node IP has no CIDR, so every address matches.
    assert_eq!(
        primary(|n| n.internal_ips = vec!["fd00:1::2".parse().unwrap()]),
        "10.244.1.1 192.168.0.2 fd00:1::2"
    );
    assert_eq!(
        primary(|n| {
            n.internal_ips = vec!["fd00:1::2".parse().unwrap()];
            n.external_ips = vec!["10.244.1.1".parse().unwrap()];
        }),
        "10.244.1.1 fd00:1::2"
    );
    // On none of the node's links: nothing is served.
    assert_eq!(
        primary(
            |n| n.internal_ips = vec!["172.16.0.1".parse().unwrap(), "fd00:1::2".parse().unwrap()]
        ),
        "fd00:1::2"
    );
    let bound =
        dual(NFTABLES, 36, true).config(|c| c.bind_address = Some("10.244.1.1".parse().unwrap()));
    assert_eq!(addresses(&bound), "10.244.1.1 fd00:1::2");
    // kube-proxy calls itself something that is no Node: it finds no address, so all match.
    let stray = dual(NFTABLES, 36, true).config(|c| c.node_name = Some("nobody".into()));
    assert_eq!(addresses(&stray), "10.244.1.1 192.168.0.2 fd00:1::2");
    // The Node is not known: any address may be the one.
    let mut unknown = dual(NFTABLES, 36, true);
    unknown.view.nodes.clear();
    assert_eq!(
        addresses(&unknown),
        "10.244.1.1=none 192.168.0.2=none fd00:1::2=none"
    );
}

#[test]
fn iptables_refuses_node_ports_on_every_local_address() {
    for setting in [
        None,
        Some(vec![cidr("192.168.0.0/24"), cidr("fd00:1::/64")]),
    ] {
        let world = dual(IPTABLES, 34, false).config(|c| c.node_port_addresses = setting.clone());
        for address in ["10.244.1.1", "192.168.0.2", "[::1]", "[fd00:1::2]"] {
            world.expect(
                &format!("{address}:30080/TCP"),
                "reject",
                "reject",
                "reject",
            );
        }
    }
    let localhost = "127.0.0.1:30080/TCP";
    dual(IPTABLES, 34, false).expect(localhost, "drop", "reject", "drop");
    // Without kube-proxy's own rule kubelet's may be there.
    let perhaps = "reject | drop UnknownConfiguration";
    let off = dual(IPTABLES, 34, false).config(|c| c.localhost_node_ports = false);
    off.expect(localhost, perhaps, "reject", perhaps);
    // nftables refuses only where it serves.
    let nftables = dual(NFTABLES, 34, false);
    assert_eq!(addresses(&nftables), "192.168.0.2=reject fd00:1::2=reject");
}

#[test]
fn iptables_drops_external_local_where_it_does_not_serve_too() {
    let service = || {
        let mut service = node_port(&[Family::V4]);
        service.external_local = true;
        service
    };
    let world =
        world(IPTABLES, 34).config(|c| c.node_port_addresses = Some(vec![cidr("192.168.0.0/24")]));
    let remote = world.clone().with(service(), &["10.244.2.20@n2"]);
    remote.expect("10.244.1.1:30080/TCP", "drop", "drop", "drop");
    remote.expect(
        "192.168.0.2:30080/TCP",
        "forward 10.244.2.20:8080/hairpin",
        "forward 10.244.2.20:8080/always",
        "drop",
    );
    let local = world.with(service(), &[HERE]);
    local.expect("10.244.1.1:30080/TCP", "-", "-", "-");
}

#[test]
fn the_gate_of_1_37_refuses_on_loopback() {
    let gated = |setting: Option<Vec<NodePortAddress>>, protocol: Protocol| {
        let mut service = node_port(&[Family::V4]);
        service.ports[0].protocol = protocol;
        let world = world(NFTABLES, 37).with(service, &[]).config(|c| {
            c.nftables_localhost_node_ports = true;
            c.node_port_addresses = setting;
        });
        world.row(&format!("127.0.0.1:30080/{protocol}"), FromNode)
    };
    let localhost = || Some(vec![NodePortAddress::Localhost]);
    assert_eq!(gated(None, Protocol::Tcp), "reject");
    assert_eq!(
        gated(Some(vec![NodePortAddress::All]), Protocol::Tcp),
        "reject"
    );
    assert_eq!(gated(localhost(), Protocol::Tcp), "-");
    assert_eq!(gated(localhost(), Protocol::Udp), "reject");
}
