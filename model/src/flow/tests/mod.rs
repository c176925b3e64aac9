//! Cases: each check is provoked, and a near miss stays silent.

mod direct;
mod nodes;
mod outside;
mod pods;
mod selector;
mod slices;
mod store;
mod texts;

use super::objects::{
    ContainerPort, Labels, NodeObject, NotReady, Phase, Pod, SLICE_CONTROLLER, ServiceObject,
    SliceObject, TargetPort,
};
use super::store::{Change, Kind, Objects};
use super::{Answer, Api, Check, Flow, NodeAnswer, Question, Weight, flow};
use crate::address::{Family, Protocol};
use crate::endpoint::{Endpoint, EndpointSlice, SliceName, SlicePort};
use crate::name::{NodeName, ServiceName};
use crate::service::{Service, ServicePort, ServiceType};
use crate::time::{Millis, Mono, Now};
use crate::view::Node;
use std::sync::Arc;

/// When everything was listed.
pub(super) const START: u64 = 1_000_000;

pub(super) fn at(ms: u64) -> Now {
    Now {
        mono: Mono(ms),
        wall: Millis(1_700_000_000_000 + ms),
    }
}

pub(super) fn labels(text: &str) -> Labels {
    let mut all: Vec<(Arc<str>, Arc<str>)> = text
        .split(',')
        .filter(|t| !t.is_empty())
        .map(|t| t.split_once('=').unwrap())
        .map(|(k, v)| (k.into(), v.into()))
        .collect();
    all.sort();
    all.into()
}

/// Namespace `shop` with Nodes `n1` to `n3`, and whatever the API is made to say.
pub(super) struct World {
    pub objects: Objects,
    pub service: ServiceName,
    pub clock: u64,
}

/// A Service `web` that selects `app=web`, port 80 to the port named `http`.
pub(super) fn web() -> ServiceObject {
    ServiceObject {
        service: Service {
            name: ServiceName::new("shop", "web"),
            uid: "u-web".into(),
            resource_version: "1".into(),
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
        },
        selector: labels("app=web"),
        target_ports: vec![TargetPort::Name("http".into())],
        publish_not_ready: false,
        external_name: None,
        load_balancer_class: None,
        has_status: true,
    }
}

/// A Pod of `app=web` on `n1`, ready, with a port `http` 8080; its address ends in `number`.
pub(super) fn pod(number: u8) -> Pod {
    Pod {
        namespace: "shop".into(),
        name: format!("web-{number}").into(),
        labels: labels("app=web"),
        node: Some("n1".into()),
        addresses: vec![format!("10.244.1.{number}").parse().unwrap()],
        phase: Phase::Running,
        deleted: false,
        ready: true,
        not_ready: None,
        ports: [ContainerPort {
            name: "http".into(),
            number: 8080,
            protocol: Protocol::Tcp,
            sidecar: false,
        }]
        .into(),
    }
}

pub(super) fn not_ready(mut pod: Pod, why: NotReady) -> Pod {
    pod.ready = false;
    pod.not_ready = Some(Box::new(why));
    pod
}

pub(super) fn node(name: &str, address: &str) -> NodeObject {
    NodeObject {
        node: Node {
            name: NodeName::from(name),
            internal_ips: vec![address.parse().unwrap()],
            external_ips: vec![],
            zone: None,
            pod_cidrs: vec![],
            going: false,
            created: None,
        },
        ready: Some(true),
    }
}

/// A slice of the controller's for `web`, with an endpoint for each Pod as it is.
pub(super) fn slice(name: &str, pods: &[Pod]) -> SliceObject {
    SliceObject {
        slice: EndpointSlice {
            name: SliceName {
                namespace: "shop".into(),
                name: name.into(),
            },
            resource_version: "1".into(),
            service: Some("web".into()),
            family: Some(Family::V4),
            ports: vec![SlicePort {
                name: Some("http".into()),
                protocol: Protocol::Tcp,
                port: Some(8080),
            }],
            endpoints: pods
                .iter()
                .map(|p| Endpoint {
                    address: p.addresses.iter().find(|a| a.is_ipv4()).copied(),
                    ready: p.ready && !p.deleted,
                    serving: p.ready,
                    terminating: p.deleted,
                    node: p.node.clone(),
                    zone_hints: vec![],
                    node_hints: vec![],
                    pod: Some(p.name.clone()),
                })
                .collect(),
            headless_label: false,
            proxy_name_label: false,
        },
        managed_by: Some(SLICE_CONTROLLER.into()),
        owner: Some("u-web".into()),
        deleted: false,
    }
}

impl World {
    /// Everything listed at [`START`], with these objects; asked at `later` milliseconds after.
    pub fn of(changes: Vec<Change>) -> World {
        let mut world = World {
            objects: Objects::default(),
            service: ServiceName::new("shop", "web"),
            clock: START,
        };
        for n in 1..=3 {
            world.say(Change::Node(node(
                &format!("n{n}"),
                &format!("192.168.0.{n}"),
            )));
        }
        changes.into_iter().for_each(|c| world.say(c));
        world.alive();
        world
    }

    /// A Service `web`, its Pods, and a slice as the controller makes it.
    pub fn right(service: ServiceObject, pods: &[Pod]) -> World {
        let mut all = vec![Change::Service(service)];
        all.extend(pods.iter().cloned().map(Change::Pod));
        all.push(Change::Slice(slice("web-1", pods)));
        World::of(all)
    }

    pub fn say(&mut self, change: Change) {
        self.objects.apply(change, at(self.clock));
    }

    pub fn alive(&mut self) {
        Kind::ALL
            .into_iter()
            .for_each(|k| self.say(Change::Alive(k)));
    }

    /// Time passes, and every watch says something at its end.
    pub fn later(mut self, ms: u64) -> World {
        self.clock += ms;
        self.alive();
        self
    }

    pub fn then(mut self, change: Change) -> World {
        self.say(change);
        self
    }

    pub fn ask(&self, nodes: &[NodeAnswer]) -> Option<Flow> {
        flow(&Question {
            service: &self.service,
            api: Api::Known(&self.objects),
            nodes,
            now: at(self.clock),
        })
    }

    pub fn flow(&self) -> Flow {
        self.ask(&[]).expect("a known Service")
    }

    /// What was found, as (step, check, weight).
    pub fn found(&self) -> Vec<(u8, Check, Weight)> {
        found(&self.flow())
    }

    /// The answers of steps 1, 2, 3.
    pub fn first_three(&self) -> [Answer; 3] {
        let flow = self.flow();
        [0, 1, 2].map(|i| flow.steps[i].answer)
    }
}

pub(super) fn found(flow: &Flow) -> Vec<(u8, Check, Weight)> {
    flow.steps
        .iter()
        .flat_map(|s| s.found.iter().map(|f| (s.number, f.check, f.weight)))
        .collect()
}

#[test]
fn a_service_that_is_right_passes_and_what_cannot_be_told_is_unknown() {
    let pods = [pod(1), pod(2)];
    let world = World::right(web(), &pods).later(600_000);
    assert_eq!(world.found(), []);
    let flow = world.flow();
    let answers: Vec<Answer> = flow.steps.iter().map(|s| s.answer).collect();
    use Answer::{NotApplicable, Pass, Unknown};
    assert_eq!(
        answers,
        [
            Pass,
            Pass,
            Pass,
            Unknown,
            Unknown,
            Unknown,
            NotApplicable,
            Unknown
        ]
    );
    assert_eq!(
        flow.verdict,
        "shop/web: no step fails; not known: 4, 5, 6, 8"
    );
}

#[test]
fn a_service_that_nobody_knows_has_no_flow() {
    let world = World::of(vec![]);
    assert!(world.ask(&[]).is_none());
}

#[test]
fn an_api_that_is_not_known_makes_its_steps_unknown_with_the_reason() {
    let name = ServiceName::new("shop", "web");
    let node = NodeName::from("n1");
    let nodes = [nodes::agrees(&node)];
    fn ask_of(name: &ServiceName, nodes: &[NodeAnswer], api: Api) -> Flow {
        flow(&Question {
            service: name,
            api,
            nodes,
            now: at(START),
        })
        .unwrap()
    }
    let off = ask_of(&name, &nodes, Api::NotKnown("it was turned off"));
    for i in [0, 1, 2, 6] {
        assert_eq!(off.steps[i].answer, Answer::Unknown);
        assert_eq!(off.steps[i].says, "it was turned off");
    }
    assert_eq!(off.steps[3].answer, Answer::Pass);
    // Not listed whole: nothing is missing yet.
    let mut objects = Objects::default();
    objects.apply(Change::Service(web()), at(START));
    objects.apply(Change::Alive(Kind::Services), at(START));
    let listing = ask_of(&name, &nodes, Api::Known(&objects));
    assert_eq!(listing.steps[0].answer, Answer::Unknown);
    assert!(listing.steps[0].says.contains("not all been listed yet"));
    objects.apply(Change::Lost(Kind::Pods, "no (403)".into()), at(START));
    let lost = ask_of(&name, &nodes, Api::Known(&objects));
    assert_eq!(lost.steps[0].says, "Pods cannot be read: no (403)");
}

#[test]
fn an_api_server_that_has_been_silent_for_long_is_no_answer_any_more() {
    let mut world = World::right(web(), &[]);
    assert_eq!(world.first_three()[0], Answer::Fail);
    world.clock += super::limits::API_SILENT_MS - 1;
    assert_eq!(world.first_three()[0], Answer::Fail);
    world.clock += 1;
    assert!(world.ask(&[]).is_none(), "no node knows it either");
    let node = NodeName::from("n1");
    let flow = world.ask(&[nodes::agrees(&node)]).unwrap();
    assert_eq!(flow.steps[0].answer, Answer::Unknown);
    assert_eq!(
        flow.steps[0].says,
        "nothing new from the API server for 2 min 0 s"
    );
}
