//! What the debugging flow's objects cost at 10,000 Services and 100,000 Pods. Alone in its binary: it
//! measures the process.

mod reports;

use aggregator::fleet::{Event, Fleet};
use aggregator::http;
use aggregator::inspect::Inspector;
use aggregator::objects::SharedObjects;
use cluster::trim::objects as trim;
use model::flow::Objects;
use model::flow::store::{Change, Kind};
use model::time::{Millis, Mono, Now};
use reports::AT;
use serde_json::{Value, json};
use std::sync::{Arc, RwLock};
use std::time::Instant;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const SERVICES: usize = 10_000;
const PODS_EACH: usize = 10;
const NODES: usize = 1_000;
/// What all of it may take, bytes.
const BUDGET: usize = 250 << 20;

fn at(seconds: u64) -> Now {
    Now {
        mono: Mono(seconds * 1000),
        wall: Millis(seconds * 1000),
    }
}

/// Resident memory of this process, bytes.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    let kib: usize = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib << 10
}

fn name(n: usize) -> String {
    format!("service-{n:05}")
}

fn service(n: usize) -> Value {
    json!({"metadata": {"namespace": format!("team-{}", n % 50), "name": name(n),
                        "uid": format!("5e1f0000-0000-4000-8000-{n:012}")},
           "spec": {"clusterIP": format!("10.{}.{}.{}", 96 + n / 62_500, n / 250 % 250, n % 250),
                    "selector": {"app.kubernetes.io/name": name(n)},
                    "ports": [{"name": "http", "port": 80, "targetPort": "http"}]},
           "status": {"loadBalancer": {}}})
}

fn pod_name(n: usize, i: usize) -> String {
    format!("{}-7d4b9c6f5-{i:05}", name(n))
}

fn pod(n: usize, i: usize) -> Value {
    let all = n * PODS_EACH + i;
    json!({"metadata": {"namespace": format!("team-{}", n % 50), "name": pod_name(n, i),
                        "labels": {"app.kubernetes.io/name": name(n), "pod-template-hash": "7d4b9c6f5",
                                   "app.kubernetes.io/part-of": "shop", "team": format!("team-{}", n % 50)}},
           "spec": {"nodeName": format!("node-{:04}", all % NODES), "containers": [
               {"name": "web", "ports": [{"name": "http", "containerPort": 8080},
                                         {"name": "metrics", "containerPort": 9090}]}]},
           "status": {"phase": "Running",
                      "podIPs": [{"ip": format!("10.{}.{}.{}", 128 + all / 62_500, all / 250 % 250, all % 250)}],
                      "conditions": [{"type": "Ready", "status": "True"}]}})
}

fn slice(n: usize) -> Value {
    let endpoints: Vec<Value> = (0..PODS_EACH)
        .map(|i| {
            let pod = pod(n, i);
            json!({"addresses": [pod["status"]["podIPs"][0]["ip"]], "nodeName": pod["spec"]["nodeName"],
                   "conditions": {"ready": true, "serving": true, "terminating": false},
                   "targetRef": {"kind": "Pod", "name": pod_name(n, i)}})
        })
        .collect();
    json!({"metadata": {"namespace": format!("team-{}", n % 50), "name": format!("{}-x7k2p", name(n)),
                        "labels": {"kubernetes.io/service-name": name(n),
                                   "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"}},
           "addressType": "IPv4", "ports": [{"name": "http", "port": 8080}], "endpoints": endpoints})
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_services_and_a_hundred_thousand_pods_fit() {
    let before = resident();
    let mut objects = Objects::default();
    for n in 0..NODES {
        let node = json!({"metadata": {"name": format!("node-{n:04}")}});
        objects.apply(Change::Node(trim::node_object(&node).unwrap()), at(0));
    }
    for n in 0..SERVICES {
        let service = trim::service_object(&service(n)).unwrap();
        objects.apply(Change::Service(service), at(0));
        for i in 0..PODS_EACH {
            objects.apply(Change::Pod(trim::pod(&pod(n, i)).unwrap()), at(0));
        }
        objects.apply(Change::Slice(trim::slice_object(&slice(n)).unwrap()), at(0));
    }
    for seconds in [0, 600] {
        for kind in Kind::ALL {
            objects.apply(Change::Alive(kind), at(seconds));
        }
    }
    let memory = resident() - before;
    let mut fleet = Fleet::default();
    for n in 0..NODES {
        let report = reports::agrees(&format!("node-{n:04}"));
        let (node, connection) = (report.node.clone(), n as u64 + 1);
        let hello = Event::Connected {
            connection,
            agent_version: "0.1.0".into(),
        };
        let said = Event::Report {
            connection,
            report: Arc::new(report),
            sent_at: Millis(AT),
        };
        for event in [hello, said] {
            fleet.apply(&node, event, aggregator::now()).unwrap();
        }
    }
    let objects = SharedObjects::of(objects);
    let start = Instant::now();
    objects.walk();
    let (walked, drift) = (start.elapsed(), objects.drift());
    assert!(
        drift.found.is_empty() && drift.unknown.is_none(),
        "{drift:?}"
    );

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = http::router(Arc::new(RwLock::new(fleet)), Inspector::default(), objects);
    tokio::spawn(async move { axum::serve(listener, router).await });
    let mut took = Vec::new();
    for n in 0..1_000 {
        let n = n * 7 % SERVICES;
        let path = format!("/svc/team-{}/{}?output=text", n % 50, name(n));
        let start = Instant::now();
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        took.push(start.elapsed());
        assert!(
            text.contains("\n1  pass") && text.contains("\n3  pass"),
            "{text}"
        );
    }
    took.sort();
    println!(
        "{} MiB for {SERVICES} Services and {} Pods; an answer over loopback, with {NODES} nodes, takes {:?} (median), \
         {:?} (p99); a walk through all Services {walked:?}; the process has {} MiB",
        memory >> 20,
        SERVICES * PODS_EACH,
        took[500],
        took[990],
        resident() >> 20,
    );
    assert!(memory < BUDGET, "{} MiB", memory >> 20);
}
