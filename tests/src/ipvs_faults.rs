//! Faults of IPVS mode, each on a Service of its own, so that all can be planted at once; and near misses,
//! which must stay silent.

use serde_json::{Value, json};

/// A fault, or a near miss.
#[derive(Debug)]
pub struct Fault {
    /// Its name.
    pub name: &'static str,
    /// Shell commands that plant it.
    pub plant: &'static str,
    /// Kind, frontend (empty: of no single one), and words of the evidence of each finding. None: a near
    /// miss.
    pub expected: &'static [(&'static str, &'static str, &'static str)],
}

/// Real servers that are there when all is programmed: of the Services that are posted last.
pub const LAST: [&str; 2] = ["10.244.100.30", "fd00:244::100:15"];

const NAMESPACE: &str = "faults";

/// Services `s1` to `s30` have the cluster IP 10.96.200.N and one endpoint on this node, 10.244.5.N, and one
/// elsewhere, 10.244.100.N, unless [`spec`] says otherwise.
const COUNT: u8 = 30;

const fn fault(
    name: &'static str,
    plant: &'static str,
    expected: &'static [(&'static str, &'static str, &'static str)],
) -> Fault {
    Fault {
        name,
        plant,
        expected,
    }
}

/// All of them.
pub fn all() -> Vec<Fault> {
    vec![
        fault(
            "virtual server gone",
            "ipvsadm -D -t 10.96.200.1:80",
            &[(
                "missing_frontend",
                "10.96.200.1:80/TCP",
                "no such virtual server",
            )],
        ),
        fault(
            "real server gone",
            "ipvsadm -d -t 10.96.200.2:80 -r 10.244.100.2:8080",
            &[(
                "missing_backend",
                "10.96.200.2:80/TCP",
                "tcp 10.96.200.2:80",
            )],
        ),
        fault(
            "real server that nobody asked for",
            "ipvsadm -a -t 10.96.200.3:80 -r 10.244.9.9:8080 -m",
            &[("stale_backend", "10.96.200.3:80/TCP", "10.244.9.9:8080")],
        ),
        fault(
            "weight 0 of a wanted real server, which kube-proxy never heals",
            "ipvsadm -e -t 10.96.200.4:80 -r 10.244.100.4:8080 -m -w 0",
            &[(
                "missing_backend",
                "10.96.200.4:80/TCP",
                "tcp 10.96.200.4:80",
            )],
        ),
        fault(
            "another weight under a scheduler that goes by it",
            "ipvsadm -E -t 10.96.200.5:80 -s wrr\n\
             ipvsadm -e -t 10.96.200.5:80 -r 10.244.100.5:8080 -m -w 3",
            &[("wrong_share", "10.96.200.5:80/TCP", "tcp 10.96.200.5:80")],
        ),
        fault(
            "no real server left: clients are refused",
            "ipvsadm -d -t 10.96.200.6:80 -r 10.244.100.6:8080\n\
             ipvsadm -d -t 10.96.200.6:80 -r 10.244.5.6:8080",
            &[("wrong_action", "10.96.200.6:80/TCP", "tcp 10.96.200.6:80")],
        ),
        fault(
            "real server at another port",
            "ipvsadm -d -t 10.96.200.7:80 -r 10.244.100.7:8080\n\
             ipvsadm -a -t 10.96.200.7:80 -r 10.244.100.7:8081 -m",
            &[
                ("stale_backend", "10.96.200.7:80/TCP", "10.244.100.7:8081"),
                ("missing_backend", "10.96.200.7:80/TCP", "10.244.100.7:8080"),
            ],
        ),
        fault(
            "persistence gone",
            "ipvsadm -E -t 10.96.200.8:80 -s rr",
            &[("wrong_affinity", "10.96.200.8:80/TCP", "tcp 10.96.200.8:80")],
        ),
        fault(
            "another timeout of persistence",
            "ipvsadm -E -t 10.96.200.9:80 -s rr -p 60",
            &[("wrong_affinity", "10.96.200.9:80/TCP", "60")],
        ),
        fault(
            "persistence that nobody asked for",
            "ipvsadm -E -t 10.96.200.10:80 -s rr -p 300",
            &[("wrong_affinity", "10.96.200.10:80/TCP", "300")],
        ),
        fault(
            "address gone from kube-ipvs0",
            "ip addr del 10.96.200.11/32 dev kube-ipvs0",
            &[
                ("missing_frontend", "10.96.200.11:80/TCP", "kube-ipvs0"),
                ("wrong_action", "10.96.200.11:*/*", ""),
            ],
        ),
        fault(
            "virtual server of no Service",
            "ipvsadm -A -t 10.96.201.1:80 -s rr\n\
             ipvsadm -a -t 10.96.201.1:80 -r 10.244.9.8:8080 -m\n\
             ip addr add 10.96.201.1/32 dev kube-ipvs0",
            &[
                ("stale_frontend", "10.96.201.1:80/TCP", "tcp 10.96.201.1:80"),
                ("stale_frontend", "10.96.201.1:*/*", "kube-ipvs0"),
            ],
        ),
        fault(
            "address of no Service left on kube-ipvs0",
            "ip addr add 10.96.201.2/32 dev kube-ipvs0",
            &[("stale_frontend", "10.96.201.2:*/*", "kube-ipvs0")],
        ),
        fault(
            "cluster IP gone from its set: refused in the input hook",
            "ipset del KUBE-CLUSTER-IP 10.96.200.12,tcp:80",
            &[
                ("wrong_action", "10.96.200.12:80/TCP", "KUBE-IPVS-FILTER"),
                ("wrong_masquerade", "10.96.200.12:80/TCP", ""),
            ],
        ),
        fault(
            "local endpoint gone from the set for hairpins",
            "ipset del KUBE-LOOP-BACK 10.244.5.13,tcp:8080,10.244.5.13",
            &[("wrong_masquerade", "10.96.200.13:80/TCP", "")],
        ),
        fault(
            "source range gone from its set",
            "ipset del KUBE-LOAD-BALANCER-SOURCE-CIDR 203.0.113.214,tcp:80,198.51.100.0/24",
            &[("wrong_source_ranges", "203.0.113.214:80/TCP", "")],
        ),
        fault(
            "load balancer gone from the set of those with ranges",
            "ipset del KUBE-LOAD-BALANCER-FW 203.0.113.215,tcp:80",
            &[("wrong_source_ranges", "203.0.113.215:80/TCP", "")],
        ),
        fault(
            "node port gone from its set",
            "ipset del KUBE-NODE-PORT-TCP 32016",
            &[("wrong_masquerade", "10.77.0.11:32016/TCP", "")],
        ),
        fault(
            "external IP gone from its set",
            "ipset del KUBE-EXTERNAL-IP 203.0.113.217,tcp:80",
            &[
                ("wrong_action", "203.0.113.217:80/TCP", "KUBE-IPVS-FILTER"),
                ("wrong_masquerade", "203.0.113.217:80/TCP", ""),
            ],
        ),
        fault(
            "virtual server of a node port gone",
            "ipvsadm -D -t 10.77.0.11:32018",
            &[(
                "missing_frontend",
                "10.77.0.11:32018/TCP",
                "no such virtual server",
            )],
        ),
        fault(
            "somebody else translates the destination first",
            "iptables-legacy -t nat -I PREROUTING -d 10.96.200.19 -p tcp --dport 80 -j DNAT \
             --to-destination 10.244.3.3:80",
            &[("foreign_rule", "", "translates to 10.244.3.3:80")],
        ),
        fault(
            "somebody else drops in the input hook",
            "iptables-legacy -I INPUT -d 10.96.200.20 -p tcp --dport 80 -j DROP",
            &[("foreign_rule", "", "faults/s20")],
        ),
        fault(
            "IPv6 real server gone",
            "ipvsadm -d -t '[fd00:96::c815]:80' -r '[fd00:244::100:15]:8080'",
            &[("missing_backend", "[fd00:96::c815]:80/TCP", "fd00:96::c815")],
        ),
        fault(
            "near miss: weight 0 of a real server that drains",
            "ipvsadm -a -t 10.96.200.22:80 -r 10.244.9.7:8080 -m -w 0",
            &[],
        ),
        fault(
            "near miss: another weight under a scheduler that does not go by it",
            "ipvsadm -e -t 10.96.200.23:80 -r 10.244.100.23:8080 -m -w 5",
            &[],
        ),
        // s24 has no endpoint: its virtual server has no real one. s25 has a Local policy and no endpoint
        // here: all of them are taken.
        fault(
            "near miss: a set of somebody else's",
            "ipset create mine hash:ip\nipset add mine 10.96.200.26",
            &[],
        ),
        fault(
            "near miss: a rule of somebody else's that lets pass",
            "iptables-legacy -I INPUT -d 10.96.200.27 -p tcp --dport 80 -j ACCEPT\n\
             iptables-legacy -I INPUT -d 10.96.200.28 -p tcp --dport 81 -j DROP",
            &[],
        ),
        fault(
            "near miss: a dummy link of somebody else's, without an address",
            "ip link add mine type dummy",
            &[],
        ),
    ]
}

fn spec(n: u8) -> Value {
    let mut spec = json!({
        "clusterIP": format!("10.96.200.{n}"),
        "ports": [{"port": 80, "targetPort": 8080, "protocol": "TCP"}],
    });
    match n {
        8 | 9 => {
            spec["sessionAffinity"] = json!("ClientIP");
        }
        14 | 15 => {
            spec["type"] = json!("LoadBalancer");
            spec["allocateLoadBalancerNodePorts"] = json!(false);
            spec["loadBalancerSourceRanges"] = json!(["198.51.100.0/24", "192.0.2.0/24"]);
        }
        16 | 18 => {
            spec["type"] = json!("NodePort");
            spec["ports"][0]["nodePort"] = json!(32_000 + u32::from(n));
        }
        17 => spec["externalIPs"] = json!([format!("203.0.113.{}", 200 + n)]),
        21 => {
            spec["clusterIP"] = json!("fd00:96::c815");
            spec["ipFamilies"] = json!(["IPv6"]);
        }
        25 => spec["internalTrafficPolicy"] = json!("Local"),
        _ => {}
    }
    spec
}

/// The Services and their EndpointSlices, with their namespace.
pub fn objects(node: &str) -> Vec<Value> {
    let mut all =
        vec![json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})];
    for n in 1..=COUNT {
        let name = format!("s{n}");
        all.push(json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec(n),
        }));
        let (family, here, there) = match n {
            21 => (
                "IPv6",
                format!("fd00:244::5:{n:x}"),
                format!("fd00:244::100:{n:x}"),
            ),
            _ => ("IPv4", format!("10.244.5.{n}"), format!("10.244.100.{n}")),
        };
        let ready = |address: &str, node: &str| {
            json!({
                "addresses": [address], "nodeName": node,
                "conditions": {"ready": true, "serving": true, "terminating": false},
            })
        };
        let endpoints = match n {
            24 => Vec::new(),
            25 => vec![ready(&there, "other")],
            _ => vec![ready(&here, node), ready(&there, "other")],
        };
        all.push(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": name, "namespace": NAMESPACE,
                "labels": {"kubernetes.io/service-name": name},
            },
            "addressType": family,
            "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
            "endpoints": endpoints,
        }));
    }
    all
}

/// What the load balancer's controller would write.
pub fn statuses() -> Vec<(String, Value)> {
    [14, 15]
        .map(|n| {
            let path = format!("/api/v1/namespaces/{NAMESPACE}/services/s{n}/status");
            let ingress = json!([{"ip": format!("203.0.113.{}", 200 + n)}]);
            (
                path,
                json!({"status": {"loadBalancer": {"ingress": ingress}}}),
            )
        })
        .into()
}
