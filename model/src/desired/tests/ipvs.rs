//! IPVS mode (kube-proxy.md 4).

use super::*;

const IPVS: ProxyMode = ProxyMode::Ipvs;
const CIP: &str = "10.96.0.10:80/TCP";
const VIP: &str = "203.0.113.5:80/TCP";
const HERE: &str = "10.244.1.10@n1";
const THERE: &str = "10.244.2.20@n2";

#[test]
fn a_cluster_ip() {
    let world = world(IPVS, 37).with(web(|_| ()), &[HERE, THERE]);
    // Only local endpoints are in the set for hairpins. What the node sends has the cluster IP as
    // source, which is no Pod's.
    let pod = "forward 10.244.1.10:8080/hairpin 10.244.2.20:8080/never";
    let always = "forward 10.244.1.10:8080/always 10.244.2.20:8080/always";
    world.expect(CIP, pod, always, always);
    // Without a detector only the node's own packets, which come from a cluster IP, are marked.
    let world = world.config(|c| c.detector = LocalDetector::None);
    world.expect(CIP, pod, always, pod);
}

/// No endpoint: a virtual server without a real one, which refuses. It never drops.
#[test]
fn without_endpoints_clients_are_refused() {
    for local in [false, true] {
        let world = world(IPVS, 37).with(balanced(|s| s.external_local = local), &[]);
        for frontend in [CIP, VIP, "192.168.0.2:30080/TCP"] {
            world.expect(frontend, "reject", "reject", "reject");
        }
    }
}

#[test]
fn local_policies_fall_back_to_all_endpoints() {
    let far = "forward 10.244.2.20:8080/never";
    let external = world(IPVS, 37).with(balanced(|s| s.external_local = true), &[THERE]);
    external.expect(VIP, far, far, far);
    external.expect("192.168.0.2:30080/TCP", far, far, far);
    let near = external.clone().slice(slice("web", "2", &[HERE]));
    // Nobody is masqueraded, the node itself no more than others.
    let here = "forward 10.244.1.10:8080/hairpin";
    let plain = "forward 10.244.1.10:8080/never";
    near.expect(VIP, here, plain, plain);
    let internal = |service| world(IPVS, 37).with(service, &[THERE]);
    // There is something to fall back to only where cluster endpoints are counted at all (2.4).
    internal(web(|s| s.internal_local = true)).expect(CIP, "reject", "reject", "reject");
    internal(balanced(|s| s.internal_local = true)).expect(
        CIP,
        far,
        "forward 10.244.2.20:8080/always",
        "forward 10.244.2.20:8080/always",
    );
}

#[test]
fn other_ports_of_bound_addresses_are_refused() {
    let mut world = world(IPVS, 37).with(balanced(|_| ()), &[HERE]);
    for address in ["10.96.0.10:*/*", "203.0.113.5:*/*"] {
        world.expect(address, "reject", "reject", "reject");
    }
    // An external address that the node has anyway is not bound.
    world.node.addresses.push(LocalAddress {
        address: "203.0.113.5".parse().unwrap(),
        link: "eth0".into(),
    });
    world.expect("203.0.113.5:*/*", "-", "-", "-");
    world.expect("10.96.0.10:*/*", "reject", "reject", "reject");
}

#[test]
fn source_ranges() {
    let ranged = |range: &str, endpoints: &[&str]| {
        let ranges = vec![range.parse().unwrap()];
        world(IPVS, 37).with(balanced(|s| s.source_ranges = ranges), endpoints)
    };
    let all = "forward 10.244.1.10:8080/always";
    // The node is left out: what it sends is dropped behind the virtual server.
    let from = format!("{all} from 198.51.100.0/24 else drop");
    ranged("198.51.100.0/24", &[HERE]).expect(VIP, &from, "drop", &from);
    // The node is let in, and with it the address itself.
    let from = format!("{all} from 192.168.0.0/24,203.0.113.5/32 else drop");
    ranged("192.168.0.0/24", &[HERE]).expect(VIP, &from, all, &from);
    // The ranges are in the input hook, so they hold without endpoints, too.
    let from = "reject from 198.51.100.0/24 else drop";
    ranged("198.51.100.0/24", &[]).expect(VIP, from, "reject", from);
}

#[test]
fn node_ports_are_on_no_loopback() {
    let mut world = world(IPVS, 37).with(balanced(|_| ()), &[HERE]);
    let all = "forward 10.244.1.10:8080/always";
    world.expect("192.168.0.2:30080/TCP", all, all, all);
    world.expect("127.0.0.1:30080/TCP", "-", "-", "-");
    world.node.addresses.push(LocalAddress {
        address: "10.96.0.10".parse().unwrap(),
        link: "kube-ipvs0".into(),
    });
    world.expect("10.96.0.10:30080/TCP", "-", "-", "-");
}
