//! A small set of Services that shows each kind of rule once: what recordings are made from.
//!
//! The Services follow the worked examples of kube-proxy's rules (one per shape of rule), plus dual
//! stack, IPv6 only, SCTP, external addresses and a headless one, for which nothing is programmed.
//! Slices are written by hand, so every node of the laboratory sees the same and none needs Pods.

use serde_json::{Value, json};

use crate::topology::Node;

/// The namespace of all of them.
pub const NAMESPACE: &str = "shop";

/// A node that exists in no laboratory, for endpoints that are remote everywhere.
const ELSEWHERE: &str = "elsewhere";

/// The Services and EndpointSlices, for these nodes. What is local has one endpoint on each of them.
pub fn small(nodes: &[&Node]) -> Vec<Value> {
    let mut objects = Vec::new();
    let far = |v4: &[u8]| -> Vec<Value> {
        v4.iter()
            .map(|number| ready(&format!("10.244.100.{number}"), ELSEWHERE))
            .collect()
    };

    objects.push(service(
        "web",
        json!({
            "clusterIP": "10.96.10.10", "selector": {"app": "web"},
            "ports": [{"name": "http", "port": 80, "targetPort": 8080}],
        }),
    ));
    objects.push(slice(
        "web",
        "IPv4",
        &[("http", 8080, "TCP")],
        far(&[10, 20]),
    ));

    objects.push(service(
        "np",
        json!({
            "type": "NodePort", "clusterIP": "10.96.10.11",
            "ports": [{"port": 80, "targetPort": 8080, "nodePort": 30080}],
        }),
    ));
    objects.push(slice(
        "np",
        "IPv4",
        &[("", 8080, "TCP")],
        far(&[11, 12, 13]),
    ));

    objects.push(service(
        "lb",
        json!({
            "type": "LoadBalancer", "clusterIP": "10.96.10.12",
            "loadBalancerSourceRanges": ["198.51.100.0/24", "10.88.0.0/16"],
            "ports": [{"name": "https", "port": 443, "targetPort": 8443, "nodePort": 30443}],
        }),
    ));
    objects.push(slice("lb", "IPv4", &[("https", 8443, "TCP")], far(&[14])));

    objects.push(service("local", json!({
        "type": "LoadBalancer", "clusterIP": "10.96.10.13", "externalTrafficPolicy": "Local", "healthCheckNodePort": 31000,
        "ports": [{"name": "http", "port": 80, "targetPort": 8080, "nodePort": 30081}],
    })));
    let mut everywhere = far(&[15]);
    everywhere.extend(
        nodes
            .iter()
            .map(|node| ready(&node.pod_v4(15).to_string(), node.name())),
    );
    objects.push(slice("local", "IPv4", &[("http", 8080, "TCP")], everywhere));

    objects.push(service(
        "nolocal",
        json!({
            "type": "NodePort", "clusterIP": "10.96.10.14", "externalTrafficPolicy": "Local",
            "ports": [{"name": "http", "port": 80, "targetPort": 8080, "nodePort": 30082}],
        }),
    ));
    objects.push(slice(
        "nolocal",
        "IPv4",
        &[("http", 8080, "TCP")],
        far(&[16]),
    ));

    objects.push(service(
        "sticky",
        json!({
            "clusterIP": "10.96.10.15", "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10800}},
            "ports": [{"name": "http", "port": 80, "targetPort": 8080}],
        }),
    ));
    objects.push(slice(
        "sticky",
        "IPv4",
        &[("http", 8080, "TCP")],
        far(&[17, 18]),
    ));

    objects.push(service(
        "empty",
        json!({
            "type": "NodePort", "clusterIP": "10.96.10.16",
            "ports": [{"name": "http", "port": 80, "targetPort": 8080, "nodePort": 30083}],
        }),
    ));

    objects.push(service(
        "itp",
        json!({
            "clusterIP": "10.96.10.17", "internalTrafficPolicy": "Local",
            "ports": [{"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 5353}],
        }),
    ));
    objects.push(slice("itp", "IPv4", &[("dns", 5353, "UDP")], far(&[19])));

    objects.push(service("dual", json!({
        "type": "NodePort", "ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv4", "IPv6"],
        "clusterIP": "10.96.10.18", "clusterIPs": ["10.96.10.18", "fd00:96::1018"],
        "ports": [
            {"name": "http", "port": 80, "targetPort": 8080, "nodePort": 30084},
            {"name": "metrics", "port": 9090, "targetPort": 9090, "nodePort": 30085},
        ],
    })));
    let ports = [("http", 8080, "TCP"), ("metrics", 9090, "TCP")];
    objects.push(slice("dual", "IPv4", &ports, far(&[21, 22])));
    let far6 = vec![
        ready("fd00:244::100:21", ELSEWHERE),
        ready("fd00:244::100:22", ELSEWHERE),
    ];
    objects.push(slice("dual", "IPv6", &ports, far6));

    objects.push(service("six", json!({
        "ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv6"], "clusterIP": "fd00:96::1019", "clusterIPs": ["fd00:96::1019"],
        "ports": [{"name": "http", "port": 80, "targetPort": 8080}],
    })));
    objects.push(slice(
        "six",
        "IPv6",
        &[("http", 8080, "TCP")],
        vec![ready("fd00:244::100:23", ELSEWHERE)],
    ));

    objects.push(service(
        "external",
        json!({
            "clusterIP": "10.96.10.20", "externalIPs": ["192.0.2.20"],
            "ports": [
                {"name": "http", "port": 80, "targetPort": 8080},
                {"name": "sig", "port": 3868, "protocol": "SCTP", "targetPort": 3868},
            ],
        }),
    ));
    objects.push(slice(
        "external",
        "IPv4",
        &[("http", 8080, "TCP"), ("sig", 3868, "SCTP")],
        far(&[24, 25]),
    ));

    objects.push(service(
        "going",
        json!({
            "clusterIP": "10.96.10.21", "ports": [{"name": "http", "port": 80, "targetPort": 8080}],
        }),
    ));
    objects.push(slice(
        "going",
        "IPv4",
        &[("http", 8080, "TCP")],
        vec![json!({
            "addresses": ["10.244.100.26"], "nodeName": ELSEWHERE,
            "conditions": {"ready": false, "serving": true, "terminating": true},
        })],
    ));

    objects.push(service(
        "headless",
        json!({
            "clusterIP": "None", "ports": [{"name": "http", "port": 80, "targetPort": 8080}],
        }),
    ));
    objects.push(slice(
        "headless",
        "IPv4",
        &[("http", 8080, "TCP")],
        far(&[27]),
    ));
    objects
}

/// What the load balancer's controller would write: paths of status subresources with their merge
/// patches, to be sent after the objects of [`small`] exist.
pub fn small_statuses() -> Vec<(String, Value)> {
    [("lb", "203.0.113.12"), ("local", "203.0.113.13")]
        .map(|(name, address)| {
            let path = format!("/api/v1/namespaces/{NAMESPACE}/services/{name}/status");
            (
                path,
                json!({"status": {"loadBalancer": {"ingress": [{"ip": address}]}}}),
            )
        })
        .into()
}

/// Words that the rules of every node hold once all of [`small`] is programmed.
pub fn small_words() -> Vec<String> {
    [
        "shop/web",
        "shop/np",
        "203.0.113.12",
        "203.0.113.13",
        "shop/nolocal",
        "shop/sticky",
        "shop/empty",
        "shop/itp",
        "fd00:96::1018",
        "fd00:96::1019",
        "192.0.2.20",
        "10.244.100.26",
    ]
    .map(str::to_owned)
    .into()
}

/// A Service in [`NAMESPACE`].
fn service(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec})
}

/// An EndpointSlice of a Service.
fn slice(service: &str, family: &str, ports: &[(&str, u16, &str)], endpoints: Vec<Value>) -> Value {
    let ports: Vec<Value> = ports
        .iter()
        .map(|(name, port, protocol)| json!({"name": name, "port": port, "protocol": protocol}))
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{service}-{}", family.to_lowercase()),
            "namespace": NAMESPACE,
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": family,
        "ports": ports,
        "endpoints": endpoints,
    })
}

fn ready(address: &str, node: &str) -> Value {
    json!({"addresses": [address], "nodeName": node, "conditions": {"ready": true, "serving": true, "terminating": false}})
}
