//! The debugging flow as somebody in an incident reads it: ten situations, each with its text in
//! `flow/*.txt`. `GOLDEN=write` writes them anew; the difference is what is reviewed.

mod reports;

use aggregator::fleet::{Event, Fleet};
use aggregator::view::View;
use aggregator::view::everywhere::everywhere;
use aggregator::view::words;
use cluster::trim::objects as trim;
use model::flow::store::{Change, Kind};
use model::flow::{Answer, Api, Objects};
use model::name::{NodeName, ServiceName};
use model::report::Report;
use model::time::{Millis, Mono, Now};
use reports::{AT, agrees, drifted, whole_node};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;

fn at(seconds: u64) -> Now {
    Now {
        mono: Mono(seconds * 1000),
        wall: Millis(AT + seconds * 1000),
    }
}

/// When the answers are asked for: everything was listed 1,000 s before.
const ASKED: u64 = 1_000;

struct Situation {
    fleet: Fleet,
    objects: Objects,
}

impl Situation {
    /// Service `shop/web` on nodes `n1` to `n3`, Pods and slices as they should be.
    fn new(service: Value, pods: &[Value], slices: &[Value]) -> Situation {
        let mut situation = Situation {
            fleet: Fleet::default(),
            objects: Objects::default(),
        };
        situation.say(&service);
        pods.iter()
            .chain(slices)
            .for_each(|object| situation.say(object));
        for n in 1..=3 {
            situation.say(
                &json!({"kind": "Node", "metadata": {"name": format!("n{n}")},
                "status": {"addresses": [
                    {"type": "InternalIP", "address": format!("192.168.0.{n}")}]}}),
            );
        }
        situation.alive(0);
        situation.alive(ASKED - 1);
        situation
    }

    fn say(&mut self, object: &Value) {
        let change = match object["kind"].as_str() {
            Some("Service") => Change::Service(trim::service_object(object).unwrap()),
            Some("EndpointSlice") => Change::Slice(trim::slice_object(object).unwrap()),
            Some("Pod") => Change::Pod(trim::pod(object).unwrap()),
            Some("Node") => Change::Node(trim::node_object(object).unwrap()),
            other => panic!("{other:?}"),
        };
        self.objects.apply(change, at(0));
    }

    fn alive(&mut self, seconds: u64) {
        for kind in Kind::ALL {
            self.objects.apply(Change::Alive(kind), at(seconds));
        }
    }

    fn nodes(mut self, reports: Vec<Report>) -> Situation {
        for (number, report) in reports.into_iter().enumerate() {
            let node: NodeName = report.node.clone();
            let connection = number as u64 + 1;
            let hello = Event::Connected {
                connection,
                agent_version: "0.1.0".into(),
            };
            self.fleet.apply(&node, hello, at(ASKED - 1)).unwrap();
            let event = Event::Report {
                connection,
                report: Arc::new(report),
                sent_at: Millis(AT + 500),
            };
            self.fleet.apply(&node, event, at(ASKED - 1)).unwrap();
        }
        self
    }

    fn all_agree(self) -> Situation {
        self.nodes(["n1", "n2", "n3"].map(agrees).into())
    }

    /// Compares the text with the file of that name.
    #[track_caller]
    fn reads(&self, name: &str) -> Vec<Answer> {
        let web = ServiceName::new("shop", "web");
        let view = everywhere(&self.fleet, Api::Known(&self.objects), &web, at(ASKED)).unwrap();
        let text = view.text();
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/flow/{name}.txt"));
        if std::env::var_os("GOLDEN").is_some_and(|v| v == "write") {
            std::fs::write(&file, &text).unwrap();
        }
        let expected = std::fs::read_to_string(&file).unwrap_or_default();
        assert_eq!(text, expected, "{}", file.display());
        for line in text.lines().filter(|l| !l.trim_start().starts_with("$ ")) {
            assert!(line.chars().count() <= 80, "{line}");
        }
        view.steps.iter().map(|s| s.answer).collect()
    }
}

fn service(spec: Value) -> Value {
    let mut all = json!({"clusterIP": "10.96.0.10", "selector": {"app": "web"},
        "ports": [{"name": "http", "port": 80, "targetPort": "http"}]});
    for (key, value) in spec.as_object().unwrap() {
        all[key] = value.clone();
    }
    json!({"kind": "Service", "metadata": {"namespace": "shop", "name": "web", "uid": "u1"},
           "spec": all, "status": {"loadBalancer": {}}})
}

fn pod(name: &str, node: &str, address: &str, status: Value) -> Value {
    let mut all = json!({"phase": "Running", "podIPs": [{"ip": address}],
        "conditions": [{"type": "Ready", "status": "True"}]});
    for (key, value) in status.as_object().unwrap() {
        all[key] = value.clone();
    }
    json!({"kind": "Pod", "metadata": {"namespace": "shop", "name": name, "labels": {"app": "web"}},
           "spec": {"nodeName": node, "containers": [
               {"name": "web", "ports": [{"name": "http", "containerPort": 8080}]}]},
           "status": all})
}

fn pods() -> [Value; 2] {
    [
        pod("web-7d4b9c6f5-2xk8p", "n1", "10.244.1.5", json!({})),
        pod("web-7d4b9c6f5-q9zvt", "n2", "10.244.2.6", json!({})),
    ]
}

fn crashing() -> [Value; 2] {
    pods().map(|mut pod| {
        pod["status"]["conditions"] =
            json!([{"type": "Ready", "status": "False", "reason": "ContainersNotReady"}]);
        pod["status"]["containerStatuses"] = json!([{"name": "web", "ready": false,
            "restartCount": 7, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]);
        pod
    })
}

fn slice(endpoints: &[(&str, &str, &str, bool)]) -> Value {
    let ports = match endpoints.is_empty() {
        true => json!([]),
        false => json!([{"name": "http", "port": 8080}]),
    };
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|(pod, node, address, ready)| {
            json!({"addresses": [address], "nodeName": node,
                   "conditions": {"ready": ready, "serving": ready, "terminating": false},
                   "targetRef": {"kind": "Pod", "name": pod}})
        })
        .collect();
    json!({"kind": "EndpointSlice", "addressType": "IPv4", "ports": ports, "endpoints": endpoints,
           "metadata": {"namespace": "shop", "name": "web-8k2ns", "labels": {
               "kubernetes.io/service-name": "web",
               "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"},
               "ownerReferences": [{"kind": "Service", "uid": "u1"}]}})
}

fn right_slice(ready: bool) -> Value {
    slice(&[
        ("web-7d4b9c6f5-2xk8p", "n1", "10.244.1.5", ready),
        ("web-7d4b9c6f5-q9zvt", "n2", "10.244.2.6", ready),
    ])
}

use Answer::{Fail, NotApplicable, Pass, Unknown};

#[test]
fn everything_is_right() {
    let s = Situation::new(service(json!({})), &pods(), &[right_slice(true)]).all_agree();
    assert_eq!(
        s.reads("right"),
        [Pass, Pass, Pass, Pass, Unknown, Pass, NotApplicable, Pass]
    );
}

#[test]
fn the_selector_says_frontend_and_the_pods_say_web() {
    let wrong = service(json!({"selector": {"app": "frontend"}}));
    let s = Situation::new(wrong, &pods(), &[slice(&[])]).all_agree();
    assert_eq!(s.reads("selector")[..4], [Fail, NotApplicable, Fail, Pass]);
}

#[test]
fn the_pods_crash() {
    let s = Situation::new(service(json!({})), &crashing(), &[right_slice(false)]).all_agree();
    assert_eq!(s.reads("crashing")[..4], [Pass, Fail, Fail, Pass]);
}

#[test]
fn the_port_has_another_name_in_the_pods() {
    let wrong = service(json!({"ports": [{"name": "http", "port": 80, "targetPort": "web"}]}));
    let mut portless = right_slice(true);
    portless["ports"] = json!([]);
    let s = Situation::new(wrong, &pods(), &[portless]).all_agree();
    assert_eq!(s.reads("port-name")[..4], [Pass, Fail, Fail, Pass]);
}

#[test]
fn the_slice_controller_stands_still() {
    let old = slice(&[
        ("web-7d4b9c6f5-2xk8p", "n1", "10.244.1.5", true),
        ("web-5f6d8-gone1", "n3", "10.244.3.9", true),
    ]);
    let s = Situation::new(service(json!({})), &pods(), &[old]).all_agree();
    assert_eq!(s.reads("slices-behind")[..4], [Pass, Pass, Fail, Pass]);
}

#[test]
fn one_node_sends_to_a_backend_that_left() {
    let s = Situation::new(service(json!({})), &pods(), &[right_slice(true)]).nodes(vec![
        agrees("n1"),
        drifted("n2"),
        agrees("n3"),
    ]);
    assert_eq!(
        s.reads("drift")[3..],
        [Fail, Unknown, Pass, NotApplicable, Fail]
    );
}

#[test]
fn one_node_has_lost_its_hooks() {
    let s = Situation::new(service(json!({})), &pods(), &[right_slice(true)]).nodes(vec![
        agrees("n1"),
        agrees("n2"),
        whole_node("n3"),
    ]);
    assert_eq!(
        s.reads("hooks")[3..],
        [Fail, Unknown, Fail, NotApplicable, Fail]
    );
}

#[test]
fn a_load_balancer_without_an_address_whose_ranges_let_nobody_in() {
    let balanced = service(
        json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local",
        "healthCheckNodePort": 31000, "loadBalancerSourceRanges": ["127.0.0.0/8"],
        "ports": [{"name": "http", "port": 80, "targetPort": "http", "nodePort": 30080}]}),
    );
    let s = Situation::new(balanced, &pods(), &[right_slice(true)]).all_agree();
    assert_eq!(s.reads("load-balancer")[6], Fail);
}

#[test]
fn an_external_name_that_is_an_address() {
    let mut named = service(json!({"type": "ExternalName", "externalName": "192.0.2.7"}));
    named["spec"].as_object_mut().unwrap().remove("clusterIP");
    named["spec"].as_object_mut().unwrap().remove("selector");
    let s = Situation::new(named, &pods(), &[]);
    assert_eq!(
        s.reads("external-name")[..5],
        [
            NotApplicable,
            NotApplicable,
            NotApplicable,
            Fail,
            NotApplicable
        ]
    );
}

#[test]
fn slices_outlived_their_service_and_nodes_still_answer() {
    let mut s = Situation::new(service(json!({})), &pods(), &[right_slice(true)])
        .nodes(vec![agrees("n1"), drifted("n2")]);
    let gone = Change::ServiceGone(ServiceName::new("shop", "web"));
    s.objects.apply(gone, at(0));
    assert_eq!(s.reads("service-gone")[2], Fail);
}

#[test]
fn two_families_and_pods_of_one() {
    let dual = service(json!({"ipFamilies": ["IPv4", "IPv6"],
        "clusterIPs": ["10.96.0.10", "fd00:96::10"]}));
    let mut six = slice(&[]);
    six["addressType"] = json!("IPv6");
    six["metadata"]["name"] = json!("web-ip6");
    let s = Situation::new(dual, &pods(), &[right_slice(true), six]).all_agree();
    assert_eq!(s.reads("family")[2], Fail);
}

#[test]
fn without_the_api_the_nodes_answer_as_before_and_the_rest_says_why() {
    let s = Situation::new(service(json!({})), &pods(), &[]).all_agree();
    let web = ServiceName::new("shop", "web");
    let off = Api::NotKnown("it is off");
    let view = everywhere(&s.fleet, off, &web, at(ASKED)).unwrap();
    assert_eq!(view.verdict, "shop/web: 3 nodes agree with the API");
    assert_eq!(view.api_age_seconds, None);
    for i in [0, 1, 2, 6] {
        assert_eq!(
            (view.steps[i].answer, &*view.steps[i].says),
            (Unknown, "it is off")
        );
    }
    assert_eq!(view.steps[3].answer, Pass);
}

#[test]
fn a_service_that_only_the_api_knows_is_answered_and_others_are_proposed() {
    let s = Situation::new(service(json!({})), &pods(), &[right_slice(true)]);
    let ask = |name: &str| {
        everywhere(
            &s.fleet,
            Api::Known(&s.objects),
            &ServiceName::new("shop", name),
            at(ASKED),
        )
    };
    assert!(ask("web").unwrap().verdict.contains("no step fails"));
    let missing = ask("wbe").unwrap_err();
    assert_eq!(missing.exists, ["/svc/shop/web"]);
    assert!(
        missing.detail.starts_with("the API has no Service"),
        "{missing:?}"
    );
}

#[test]
fn the_json_of_a_step_is_what_a_script_needs() {
    let wrong = service(json!({"selector": {"app": "frontend"}}));
    let s = Situation::new(wrong, &pods(), &[slice(&[])]).all_agree();
    let web = ServiceName::new("shop", "web");
    let view = everywhere(&s.fleet, Api::Known(&s.objects), &web, at(ASKED)).unwrap();
    let json: Value = serde_json::from_str(&words::json(&view).unwrap()).unwrap();
    let step = &json["steps"][0];
    assert_eq!(step["number"], 1);
    assert_eq!(step["answer"], "fail");
    assert_eq!(step["found"][0]["check"], "selector_matches_nothing");
    assert_eq!(step["found"][0]["weight"], "fault");
    assert_eq!(json["steps"][2]["found"][0]["follows_from"], 1);
    assert_eq!(json["steps"][1]["answer"], "not_applicable");
    assert_eq!(json["steps"].as_array().unwrap().len(), 8);
    assert_eq!(json["groups"][0]["state"], "agrees");
}
