//! Services for the oracle: many, seeded, valid for a real API server, and of every shape that
//! kube-proxy tells apart.
//!
//! Kinds of Service ([`Kind`]) and fillings of slices ([`Filling`]) are dealt out in turn, in
//! numbers without a common divisor, so that every kind meets every filling; everything else is
//! drawn. What came of it is counted by [`crate::coverage`] from the objects alone.

use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

pub use crate::generate_endpoints::Filling;
use crate::generate_endpoints::slices;
use crate::topology::Node;

/// The namespaces of the generated objects.
pub const NAMESPACES: [&str; 4] = ["gen-a", "gen-b", "gen-c", "gen-d"];
/// Every number that a generated slice has as a port: where the server that stands for all Pods
/// listens, with TCP and UDP.
pub const TARGET_PORTS: [u16; 6] = [8080, 8081, 8443, 9090, 5353, 3868];
/// The seed that is used when none is asked for.
pub const SEED: u64 = 20_251_125;
/// The first node port; one by one from here. Those of health checks follow from the end of the
/// API server's range.
const FIRST_NODE_PORT: u16 = 30_000;
const LAST_NODE_PORT: u16 = 32_767;

/// What generated objects have to know of a node.
#[derive(Debug, Clone)]
pub struct Place {
    /// Name of the Node object.
    pub name: String,
    /// Its label `topology.kubernetes.io/zone`.
    pub zone: String,
    /// The node's place in its hub, which decides its Pod range.
    pub index: u8,
    /// InternalIP.
    pub v4: String,
    /// InternalIP.
    pub v6: String,
}

impl Place {
    /// The place of a laboratory's node; its zone is that of [`crate::laboratory`], three of them in turn.
    pub fn of(node: &Node) -> Place {
        Place {
            name: node.name().to_owned(),
            zone: zone(usize::from(node.index())),
            index: node.index(),
            v4: node.v4().to_string(),
            v6: node.v6().to_string(),
        }
    }
}

/// The name of one of the three zones.
pub(crate) fn zone(number: usize) -> String {
    ["a", "b", "c"][number % 3].to_owned()
}

/// What was generated, in the order in which it has to be posted.
#[derive(Debug, Clone, Default)]
pub struct Generated {
    /// Where it came from.
    pub seed: u64,
    /// Services.
    pub services: Vec<Value>,
    /// Paths of status subresources with their merge patches (what a load balancer would write).
    pub statuses: Vec<(String, Value)>,
    /// EndpointSlices.
    pub slices: Vec<Value>,
}

/// A kind of Service, by what matters to kube-proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    ClusterIp,
    ClusterIpItpLocal,
    ExternalIps,
    ExternalIpsEtpLocal,
    NodePort,
    NodePortEtpLocal,
    NodePortItpLocal,
    LoadBalancer,
    LoadBalancerEtpLocal,
    LoadBalancerBothLocal,
    SourceRanges,
    SourceRangesEtpLocal,
    Ingress,
}

const KINDS: [Kind; 13] = [
    Kind::ClusterIp,
    Kind::ClusterIpItpLocal,
    Kind::ExternalIps,
    Kind::ExternalIpsEtpLocal,
    Kind::NodePort,
    Kind::NodePortEtpLocal,
    Kind::NodePortItpLocal,
    Kind::LoadBalancer,
    Kind::LoadBalancerEtpLocal,
    Kind::LoadBalancerBothLocal,
    Kind::SourceRanges,
    Kind::SourceRangesEtpLocal,
    Kind::Ingress,
];

impl Kind {
    fn is_load_balancer(self) -> bool {
        matches!(
            self,
            Kind::LoadBalancer
                | Kind::LoadBalancerEtpLocal
                | Kind::LoadBalancerBothLocal
                | Kind::SourceRanges
                | Kind::SourceRangesEtpLocal
                | Kind::Ingress
        )
    }

    fn etp_local(self) -> bool {
        matches!(
            self,
            Kind::ExternalIpsEtpLocal
                | Kind::NodePortEtpLocal
                | Kind::LoadBalancerEtpLocal
                | Kind::LoadBalancerBothLocal
                | Kind::SourceRangesEtpLocal
        )
    }

    fn itp_local(self) -> bool {
        matches!(
            self,
            Kind::ClusterIpItpLocal | Kind::NodePortItpLocal | Kind::LoadBalancerBothLocal
        )
    }

    fn spec_type(self) -> &'static str {
        match self {
            Kind::NodePort | Kind::NodePortEtpLocal | Kind::NodePortItpLocal => "NodePort",
            _ if self.is_load_balancer() => "LoadBalancer",
            _ => "ClusterIP",
        }
    }
}

/// The families of a Service, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Families(&'static [&'static str]);

impl Families {
    pub(crate) fn list(self) -> &'static [&'static str] {
        self.0
    }

    fn has(self, family: &str) -> bool {
        self.0.contains(&family)
    }
}

/// A port of a Service as slices know it.
#[derive(Debug, Clone)]
pub(crate) struct Port {
    pub(crate) name: &'static str,
    pub(crate) protocol: &'static str,
    pub(crate) number: u16,
    pub(crate) target: u16,
}

/// What is being generated.
pub(crate) struct Generator<'a> {
    pub(crate) random: ChaCha8Rng,
    pub(crate) places: &'a [Place],
    out: Generated,
    next_node_port: u16,
    next_check_port: u16,
    next_address: u16,
    /// Deals out the statuses of [`Kind::Ingress`].
    ingress_turn: u16,
    /// Counts endpoints on no node of the laboratory, for their addresses.
    pub(crate) next_far: u16,
    /// Counts endpoints on each of its nodes.
    pub(crate) next_near: u16,
}

/// Generates `count` Services with their slices for these nodes. The same seed gives the same.
pub fn generate(seed: u64, count: usize, places: &[Place]) -> Generated {
    let mut generator = Generator {
        random: ChaCha8Rng::seed_from_u64(seed),
        places,
        out: Generated {
            seed,
            ..Generated::default()
        },
        next_node_port: FIRST_NODE_PORT,
        next_check_port: LAST_NODE_PORT,
        next_address: 0,
        ingress_turn: 0,
        next_far: 0,
        next_near: 0,
    };
    let mut plain = 0;
    for index in 0..count {
        // One in sixteen is something kube-proxy must leave alone, or a label that says so.
        if index % 16 == 15 {
            generator.left_alone(index / 16);
        } else {
            generator.service(
                KINDS[plain % KINDS.len()],
                Filling::nth(plain),
                plain,
                json!({}),
            );
            plain += 1;
        }
    }
    generator.out
}

impl Generator<'_> {
    /// Services of which nothing, or nothing in some versions, may be programmed.
    fn left_alone(&mut self, round: usize) {
        match round % 6 {
            0 => {
                let (name, namespace) = self.name();
                self.out.services.push(json!({
                    "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace},
                    "spec": {"type": "ExternalName", "externalName": "shop.example.com", "ports": [{"port": 80}]},
                }));
            }
            1 | 2 => {
                let (name, namespace) = self.name();
                let ports = self.ports();
                let mut spec = json!({"clusterIP": "None", "ports": ports.iter().map(|port| {
                    json!({"name": port.name, "protocol": port.protocol, "port": port.number, "targetPort": port.target})
                }).collect::<Vec<_>>()});
                if round % 6 == 1 {
                    spec["selector"] = json!({"app": name});
                }
                self.out.services.push(json!({
                    "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace}, "spec": spec,
                }));
                let made = slices(
                    self,
                    (&name, &namespace),
                    Families(&["IPv4"]),
                    &ports,
                    Filling::Far,
                );
                self.out.slices.extend(made);
            }
            3 => self.service(
                Kind::LoadBalancer,
                Filling::Everywhere,
                round,
                json!({"service.kubernetes.io/service-proxy-name": "somebody-else"}),
            ),
            4 => self.service(
                Kind::NodePort,
                Filling::Far,
                round,
                json!({"service.kubernetes.io/service-proxy-name": ""}),
            ),
            _ => self.service(
                KINDS[round % KINDS.len()],
                Filling::Everywhere,
                round,
                json!({"service.kubernetes.io/headless": ""}),
            ),
        }
    }

    /// A name that is unique in its namespace; now and then the same in two namespaces.
    fn name(&mut self) -> (String, String) {
        let index = self.out.services.len();
        let namespace = NAMESPACES[index % NAMESPACES.len()].to_owned();
        // Neighbours of every other group of four share their name.
        let number = if (index / 4).is_multiple_of(2) {
            index / 4 * 4
        } else {
            index
        };
        (format!("s{number}"), namespace)
    }

    fn service(&mut self, kind: Kind, filling: Filling, round: usize, labels: Value) {
        let (name, namespace) = self.name();
        let mut families = self.families();
        if kind == Kind::Ingress && self.ingress_turn % 6 == 3 {
            // The next status has an address of each family: one of them is to be ignored.
            families = Families(&families.list()[..1]);
        }
        self.next_address += 1;
        let address = self.next_address;
        let ips: Vec<String> = families
            .list()
            .iter()
            .map(|family| match *family {
                "IPv4" => format!("10.96.{}.{}", 16 + address / 200, 1 + address % 200),
                _ => format!("fd00:96::{:x}", 0x1000 + address),
            })
            .collect();
        let ports = match filling {
            // Both need a second port to show what they are for.
            Filling::MissingName | Filling::WrongProtocol => two_ports(),
            _ => self.ports(),
        };
        let policy = if families.list().len() == 2 {
            "RequireDualStack"
        } else {
            "SingleStack"
        };
        let mut spec = json!({
            "type": kind.spec_type(),
            "clusterIP": ips[0],
            "clusterIPs": ips,
            "ipFamilies": families.list(),
            "ipFamilyPolicy": policy,
        });
        if kind.etp_local() {
            spec["externalTrafficPolicy"] = json!("Local");
        }
        if kind.itp_local() {
            spec["internalTrafficPolicy"] = json!("Local");
        }
        // With a selector the real controller adds an empty slice; one filling is about having none.
        if filling != Filling::NoSlices && self.random.random_bool(0.3) {
            spec["selector"] = json!({"app": name});
        }
        match self.random.random_range(0..8) {
            0 => spec["sessionAffinity"] = json!("ClientIP"),
            1 => {
                let seconds = *[1, 30, 600, 86_400].choose(&mut self.random).unwrap_or(&30);
                spec["sessionAffinity"] = json!("ClientIP");
                spec["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": seconds}});
            }
            _ => (),
        }
        let external = matches!(kind, Kind::ExternalIps | Kind::ExternalIpsEtpLocal);
        if external || (kind != Kind::ClusterIp && self.random.random_bool(0.1)) {
            // ClusterIP with only iTP Local stays without: that row is about not being accessible from outside.
            if kind != Kind::ClusterIpItpLocal || self.random.random_bool(0.3) {
                spec["externalIPs"] = self.external_ips(families, address, external);
            }
        }
        let node_ports = kind.spec_type() != "ClusterIP"
            && !(matches!(kind, Kind::LoadBalancer | Kind::Ingress)
                && self.random.random_bool(0.25));
        if kind.is_load_balancer() {
            spec["allocateLoadBalancerNodePorts"] = json!(node_ports);
            if kind.etp_local() {
                spec["healthCheckNodePort"] = json!(self.next_check_port);
                self.next_check_port -= 1;
            }
        }
        if matches!(kind, Kind::SourceRanges | Kind::SourceRangesEtpLocal) {
            spec["loadBalancerSourceRanges"] = json!(source_ranges(round / KINDS.len(), families));
        }
        spec["ports"] = self.spec_ports(&ports, node_ports);
        if kind.is_load_balancer() {
            let status = self.ingress(kind, families, address);
            if let Some(ingress) = status {
                let path = format!("/api/v1/namespaces/{namespace}/services/{name}/status");
                self.out.statuses.push((
                    path,
                    json!({"status": {"loadBalancer": {"ingress": ingress}}}),
                ));
            }
        }
        self.out.services.push(json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": namespace, "labels": labels}, "spec": spec,
        }));
        let made = slices(self, (&name, &namespace), families, &ports, filling);
        self.out.slices.extend(made);
    }

    fn families(&mut self) -> Families {
        Families(match self.random.random_range(0..100) {
            0..50 => &["IPv4"],
            50..65 => &["IPv6"],
            65..85 => &["IPv4", "IPv6"],
            _ => &["IPv6", "IPv4"],
        })
    }

    fn ports(&mut self) -> Vec<Port> {
        let port = |name, protocol, number, target| Port {
            name,
            protocol,
            number,
            target,
        };
        match self.random.random_range(0..100) {
            0..30 => vec![port("", "TCP", 80, 8080)],
            30..50 => vec![port("https", "TCP", 443, 8443)],
            50..65 => two_ports(),
            65..78 => vec![
                port("dns", "UDP", 53, 5353),
                port("dns-tcp", "TCP", 53, 5353),
            ],
            78..88 => vec![port("", "UDP", 5000, 8081)],
            88..94 => vec![
                port("sig", "SCTP", 3868, 3868),
                port("http", "TCP", 80, 8080),
            ],
            _ => vec![
                port("a", "TCP", 80, 8080),
                port("b", "TCP", 8080, 8081),
                port("c", "UDP", 80, 9090),
            ],
        }
    }

    fn spec_ports(&mut self, ports: &[Port], node_ports: bool) -> Value {
        let mut shared = None;
        let ports: Vec<Value> = ports
            .iter()
            .map(|port| {
                let mut spec =
                    json!({"port": port.number, "protocol": port.protocol, "targetPort": port.target});
                if !port.name.is_empty() {
                    spec["name"] = json!(port.name);
                }
                // Never read by kube-proxy: slices decide.
                match self.random.random_range(0..5) {
                    0 => spec["targetPort"] = json!("some-name"),
                    1 => spec["targetPort"] = json!(1),
                    _ => (),
                }
                if node_ports {
                    // DNS over both protocols usually has one node port for both.
                    let number = if port.name == "dns-tcp" { shared.take() } else { None };
                    let number = number.unwrap_or_else(|| {
                        self.next_node_port += 1;
                        self.next_node_port
                    });
                    if port.name == "dns" && self.random.random_bool(0.7) {
                        shared = Some(number);
                    }
                    spec["nodePort"] = json!(number);
                }
                spec
            })
            .collect();
        json!(ports)
    }

    fn external_ips(&mut self, families: Families, address: u16, both: bool) -> Value {
        let v4 = format!("198.19.{}.{}", address / 200, 1 + address % 200);
        let v6 = format!("fd56::{address:x}");
        let mut list = Vec::new();
        // Of the other family too: it has to be ignored.
        if families.has("IPv4") || (both && self.random.random_bool(0.3)) {
            list.push(v4);
            if self.random.random_bool(0.2) {
                list.push(format!(
                    "198.19.{}.{}",
                    100 + address / 200,
                    1 + address % 200
                ));
            }
        }
        if families.has("IPv6") || (both && self.random.random_bool(0.3)) {
            list.push(v6);
        }
        json!(list)
    }

    fn ingress(&mut self, kind: Kind, families: Families, address: u16) -> Option<Value> {
        let v4 = format!("198.18.{}.{}", address / 200, 1 + address % 200);
        let v6 = format!("fd55::{address:x}");
        let second = if families.list()[0] == "IPv4" {
            format!("198.18.{}.{}", 100 + address / 200, 1 + address % 200)
        } else {
            format!("fd55::1:{address:x}")
        };
        let own: Vec<&String> = families
            .list()
            .iter()
            .map(|family| if *family == "IPv4" { &v4 } else { &v6 })
            .collect();
        let mut list: Vec<Value> = own.iter().map(|ip| json!({"ip": ip})).collect();
        if kind == Kind::Ingress {
            self.ingress_turn += 1;
            return match self.ingress_turn % 6 {
                0 => Some(json!([{"hostname": "lb.example.com"}])),
                1 => Some(
                    own.iter()
                        .map(|ip| json!({"ip": ip, "ipMode": "Proxy"}))
                        .collect(),
                ),
                2 => Some(
                    json!([{"ip": own[0], "ipMode": "VIP"}, {"ip": second, "ipMode": "Proxy"}]),
                ),
                3 => None,
                4 => Some(json!([{"ip": v4}, {"ip": v6}])),
                _ => Some(
                    json!([{"ip": own[0]}, {"ip": second, "ipMode": "VIP"}, {"hostname": "lb.example.com"}]),
                ),
            };
        }
        if self.random.random_bool(0.15) {
            list.push(json!({"ip": second}));
        }
        Some(json!(list))
    }
}

fn two_ports() -> Vec<Port> {
    [("http", "TCP", 80, 8080), ("metrics", "TCP", 9090, 9090)]
        .map(|(name, protocol, number, target)| Port {
            name,
            protocol,
            number,
            target,
        })
        .into()
}

/// Lists of `loadBalancerSourceRanges`, in turn. Clients behind nodes stand in 10.88.0.0/16 and fd88::/16, Pods in
/// 10.244.0.0/16, nodes in 10.77.0.0/24.
fn source_ranges(turn: usize, families: Families) -> Vec<&'static str> {
    let four = families.list()[0] == "IPv4";
    let of = |v4: &'static str, v6: &'static str| if four { v4 } else { v6 };
    match turn % 9 {
        0 => vec![
            of("10.88.0.0/16", "fd88::/16"),
            of("203.0.113.0/24", "2001:db8::/32"),
        ],
        1 => vec![of("0.0.0.0/0", "::/0"), of("10.88.0.0/16", "fd88::/16")],
        2 => vec![of("fd88::/16", "10.88.0.0/16")],
        3 => vec!["10.88.0.0/16", "fd88::/16"],
        4 => vec![of("10.77.0.0/24", "fd77::/64")],
        5 => vec![of(" 10.88.0.0/16 ", " fd88::/16")],
        6 => vec!["10.244.0.0/16", "fd00:244::/64"],
        7 => vec![of("203.0.113.0/24", "2001:db8::/32")],
        _ => vec![
            of("10.88.0.0/16", "fd88::/16"),
            of("10.88.1.0/24", "fd88:0:0:1::/64"),
        ],
    }
}
