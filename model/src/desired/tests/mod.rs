//! Tables of cases: objects in, rows as text out.

mod destinations;
mod incremental;
mod ipvs;
mod node_ports;
mod order;
mod selection;
mod versions;

use super::desired;
use crate::address::{Family, Protocol, SourceClass};
use crate::endpoint::{Endpoint, EndpointSlice, SliceName, SlicePort};
use crate::name::{NodeName, ServiceName};
use crate::profile::{
    Learnt, LearntFrom, LocalDetector, ProxyConfig, ProxyMode, ProxyProfile, Version,
};
use crate::service::{Ingress, Service, ServicePort, ServiceType};
use crate::table::{Affinity, Because, DesiredTable, Forwarding, Masquerade, OneOf};
use crate::time::Now;
use crate::view::{Change, ClusterView, LocalAddress, Node, NodeView};
use SourceClass::{Node as FromNode, Outside, Pod};

const IPTABLES: ProxyMode = ProxyMode::Iptables;
const NFTABLES: ProxyMode = ProxyMode::Nftables;

/// A node `n1` in zone `a` with the addresses 192.168.0.2 and fd00:1::2, the Pod CIDR 10.244.0.0/16,
/// one kube-proxy and whatever the API is made to say.
#[derive(Clone)]
struct World {
    view: ClusterView,
    node: NodeView,
    profile: ProxyProfile,
}

fn learnt<T>(value: T) -> Learnt<T> {
    Learnt {
        value,
        from: LearntFrom::Flag,
    }
}

fn world(mode: ProxyMode, minor: u16) -> World {
    let address = |address: &str, link: &str| LocalAddress {
        address: address.parse().unwrap(),
        link: link.into(),
    };
    let config = ProxyConfig {
        node_name: Some("n1".into()),
        detector: LocalDetector::Cidr(vec![
            "10.244.0.0/16".parse().unwrap(),
            "fd00:244::/64".parse().unwrap(),
        ]),
        ..ProxyConfig::default()
    };
    let mut world = World {
        view: ClusterView::default(),
        node: NodeView {
            name: NodeName::from("n1"),
            addresses: vec![
                address("10.244.1.1", "cni0"),
                address("127.0.0.1", "lo"),
                address("192.168.0.2", "eth0"),
                address("::1", "lo"),
                address("fd00:1::2", "eth0"),
            ],
        },
        profile: ProxyProfile {
            mode: Some(learnt(mode)),
            version: Some(learnt(Version {
                major: 1,
                minor,
                patch: None,
            })),
            config: learnt(config),
        },
    };
    world.say(Change::Node(Node {
        name: NodeName::from("n1"),
        internal_ips: vec!["192.168.0.2".parse().unwrap(), "fd00:1::2".parse().unwrap()],
        external_ips: vec![],
        zone: Some("a".into()),
        pod_cidrs: vec![],
        going: false,
        created: None,
    }));
    world
}

impl World {
    fn say(&mut self, change: Change) {
        self.view.apply(change, Now::default());
    }

    fn with(mut self, service: Service, endpoints: &[&str]) -> World {
        let slice = slice(&service.name.name.clone(), "1", endpoints);
        self.say(Change::Service(service));
        self.say(Change::Slice(slice));
        self
    }

    fn slice(mut self, slice: EndpointSlice) -> World {
        self.say(Change::Slice(slice));
        self
    }

    fn config(mut self, change: impl FnOnce(&mut ProxyConfig)) -> World {
        change(&mut self.profile.config.value);
        self
    }

    fn table(&self) -> DesiredTable {
        desired(&self.view, &self.node, &self.profile)
    }

    fn row(&self, frontend: &str, source: SourceClass) -> String {
        show(self.table().get(&(frontend.parse().unwrap(), source)))
    }

    /// The three rows of a frontend, in the order pod, node, outside.
    #[track_caller]
    fn expect(&self, frontend: &str, pod: &str, node: &str, outside: &str) {
        let rows = [Pod, FromNode, Outside].map(|source| self.row(frontend, source));
        assert_eq!(rows, [pod, node, outside], "{frontend}");
    }
}

/// A ClusterIP Service `shop/web` with the port `http` 80/TCP and the cluster IP 10.96.0.10.
fn web(change: impl FnOnce(&mut Service)) -> Service {
    let mut service = Service {
        name: ServiceName::new("shop", "web"),
        uid: "".into(),
        resource_version: "".into(),
        kind: ServiceType::ClusterIP,
        cluster_ip: "10.96.0.10".into(),
        cluster_ips: vec!["10.96.0.10".parse().unwrap()],
        ip_families: vec![Family::V4],
        external_ips: vec![],
        ingress: vec![],
        ingress_hostnames: 0,
        source_ranges: vec![],
        internal_local: false,
        external_local: false,
        affinity_seconds: None,
        health_check_node_port: None,
        ports: vec![ServicePort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: None,
        }],
        proxy_name_label: false,
        headless_label: false,
        topology_annotation: None,
        selectorless: false,
    };
    change(&mut service);
    service
}

/// The same as a load balancer: VIP 203.0.113.5, nodePort 30080.
fn balanced(change: impl FnOnce(&mut Service)) -> Service {
    web(|s| {
        s.kind = ServiceType::LoadBalancer;
        s.ingress = vec![Ingress {
            address: "203.0.113.5".parse().unwrap(),
            proxy_mode: false,
        }];
        s.ports[0].node_port = Some(30080);
        change(s);
    })
}

/// A slice of `shop/SERVICE` for the port `http`, number 8080.
fn slice(service: &str, suffix: &str, endpoints: &[&str]) -> EndpointSlice {
    let endpoints: Vec<Endpoint> = endpoints.iter().map(|e| endpoint(e)).collect();
    let v6 = endpoints
        .first()
        .and_then(|e| e.address)
        .is_some_and(|a| a.is_ipv6());
    EndpointSlice {
        name: SliceName {
            namespace: "shop".into(),
            name: format!("{service}-{suffix}").into(),
        },
        resource_version: "".into(),
        service: Some(service.into()),
        family: Some(if v6 { Family::V6 } else { Family::V4 }),
        ports: vec![SlicePort {
            name: Some("http".into()),
            protocol: Protocol::Tcp,
            port: Some(8080),
        }],
        endpoints,
        headless_label: false,
        proxy_name_label: false,
    }
}

/// `ADDRESS[@NODE] [unready|leaving|dead] [zones=a,b] [nodes=n1]`; `leaving` is terminating but
/// serving, `dead` terminating and not serving.
fn endpoint(text: &str) -> Endpoint {
    let mut words = text.split(' ');
    let (address, node) = match words.next().unwrap().split_once('@') {
        Some((address, node)) => (address, Some(node)),
        None => (text.split(' ').next().unwrap(), None),
    };
    let mut endpoint = Endpoint {
        address: Some(address.parse().unwrap()),
        ready: true,
        serving: true,
        terminating: false,
        node: node.map(Into::into),
        zone_hints: vec![],
        node_hints: vec![],
        pod: None,
    };
    for word in words {
        match word.split_once('=') {
            Some(("zones", all)) => {
                endpoint.zone_hints = all.split(',').map(Into::into).collect();
            }
            Some(("nodes", all)) => {
                endpoint.node_hints = all.split(',').map(Into::into).collect();
            }
            _ => {
                (endpoint.ready, endpoint.serving, endpoint.terminating) = match word {
                    "unready" => (false, false, false),
                    "leaving" => (false, true, true),
                    "dead" => (false, false, true),
                    _ => panic!("{word}"),
                }
            }
        }
    }
    endpoint
}

/// `forward 10.244.1.10:8080/always`, `reject`; several answers joined by ` | ` with the reason
/// behind; `-` for no row.
fn show(row: Option<&OneOf<Forwarding>>) -> String {
    let Some(row) = row else { return "-".into() };
    let answers: Vec<String> = row.any_of.iter().map(show_one).collect();
    let mut text = answers.join(" | ");
    if row.because != Because::Certain {
        text += &format!(" {:?}", row.because);
    }
    assert_eq!(
        row.because == Because::Certain,
        row.any_of.len() == 1,
        "{text}"
    );
    text
}

fn show_one(forwarding: &Forwarding) -> String {
    let mut text = forwarding.action.word().to_string();
    for backend in forwarding.backends.iter() {
        let masquerade = match backend.masquerade {
            Masquerade::Never => "never",
            Masquerade::Always => "always",
            Masquerade::Hairpin => "hairpin",
            Masquerade::Unknown => "unknown",
        };
        text += &format!(" {}/{masquerade}", backend.address);
        assert!((backend.share * forwarding.backends.len() as f64 - 1.0).abs() < 1e-9);
    }
    assert!(
        forwarding
            .backends
            .is_sorted_by(|a, b| a.address < b.address),
        "{text}"
    );
    if let Affinity::ClientIp(seconds) = forwarding.affinity {
        text += &format!(" sticky {seconds}");
    }
    if let Some(ranges) = &forwarding.source_ranges {
        let all: Vec<String> = ranges.ranges.iter().map(|r| r.to_string()).collect();
        text += &format!(" from {} else {}", all.join(","), ranges.otherwise.word());
    }
    text
}
