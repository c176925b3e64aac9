//! Step 7, and addresses that two Services claim.

use super::super::limits::LOAD_BALANCER_MS;
use super::super::store::Change;
use super::*;
use crate::service::Ingress;

const FAULT: Weight = Weight::Fault;

fn balanced(address: Option<&str>) -> ServiceObject {
    let mut service = web();
    service.service.kind = ServiceType::LoadBalancer;
    service.service.ports[0].node_port = Some(30080);
    service.service.ingress = address
        .map(|a| Ingress {
            address: a.parse().unwrap(),
            proxy_mode: false,
        })
        .into_iter()
        .collect();
    service
}

fn found_of(service: ServiceObject) -> Vec<(u8, Check, Weight)> {
    World::right(service, &[pod(1)]).later(600_000).found()
}

#[test]
fn a_load_balancer_without_an_address() {
    let check = Check::LoadBalancerWithoutAddress;
    let world = World::right(balanced(None), &[pod(1)]);
    assert_eq!(world.found(), [(7, check, Weight::Converging)]);
    let world = world.later(LOAD_BALANCER_MS);
    assert_eq!(world.found(), [(7, check, FAULT)]);
    assert_eq!(
        world.flow().verdict,
        "shop/web: step 7 fails: the load balancer has no address (for 5 min 0 s at least): \
         there may be no controller that answers for it"
    );
    assert_eq!(found_of(balanced(Some("203.0.113.1"))), []);
    let mut named = balanced(None);
    named.service.ingress_hostnames = 1;
    assert_eq!(found_of(named), []);
    // A file that a person wrote has no status: nothing is known.
    let mut written = balanced(None);
    written.has_status = false;
    assert_eq!(found_of(written), [(7, check, Weight::Converging)]);
    let mut node_port = balanced(None);
    node_port.service.kind = ServiceType::NodePort;
    assert_eq!(found_of(node_port), []);
}

#[test]
fn source_ranges_that_let_nobody_in() {
    let ranges = |all: &[&str]| {
        let mut service = balanced(Some("203.0.113.1"));
        service.service.source_ranges = all.iter().map(|r| r.parse().unwrap()).collect();
        found_of(service)
    };
    let nobody = [(7, Check::SourceRangesExcludeEverybody, FAULT)];
    assert_eq!(ranges(&["127.0.0.0/8", "0.0.0.0/32"]), nobody);
    assert_eq!(ranges(&["127.0.0.0/8", "198.51.100.0/24"]), []);
    assert_eq!(ranges(&["0.0.0.0/0"]), []);
    assert_eq!(ranges(&["0.0.0.0/1"]), []);
    assert_eq!(
        ranges(&["2001:db8::/32"]),
        [(7, Check::SourceRangesOfOtherFamily, Weight::Hint)]
    );
}

#[test]
fn local_policy_and_nodes_that_clients_are_led_to() {
    let local = |address: &str| {
        let mut service = balanced(Some(address));
        service.service.external_local = true;
        service.service.health_check_node_port = Some(31000);
        service
    };
    // The Pod is on n1, 192.168.0.1.
    assert_eq!(
        found_of(local("192.168.0.2")),
        [(7, Check::AnnouncedWithoutLocalEndpoint, FAULT)]
    );
    let hint = [(7, Check::LocalPolicy, Weight::Hint)];
    assert_eq!(found_of(local("192.168.0.1")), hint);
    assert_eq!(found_of(local("203.0.113.1")), hint);
    let mut everywhere: Vec<Pod> = (1..=3).map(pod).collect();
    for (pod, n) in everywhere.iter_mut().zip(1..) {
        pod.node = Some(format!("n{n}").into());
    }
    let world = World::right(local("192.168.0.2"), &everywhere).later(600_000);
    assert_eq!(world.found(), []);
    let mut cluster = local("192.168.0.2");
    cluster.service.external_local = false;
    assert_eq!(found_of(cluster), []);
    let text = World::right(local("203.0.113.1"), &[pod(1)]).flow();
    assert_eq!(
        text.steps[6].found[0].says,
        "externalTrafficPolicy Local: 2 nodes have no endpoint and drop what reaches them; \
         a load balancer must ask health check node port 31000"
    );
}

fn with_other(mine: ServiceObject, change: fn(&mut ServiceObject)) -> Vec<(u8, Check, Weight)> {
    let mut other = web();
    other.service.name = ServiceName::new("shop", "other");
    other.service.cluster_ips = vec!["10.96.0.11".parse().unwrap()];
    other.service.cluster_ip = "10.96.0.11".into();
    change(&mut other);
    World::right(mine, &[pod(1)])
        .then(Change::Service(other))
        .later(600_000)
        .found()
}

#[test]
fn two_services_that_claim_one_address_and_port() {
    let check = Check::AddressClaimedTwice;
    let mine = || {
        let mut service = web();
        service.service.external_ips = vec!["192.0.2.1".parse().unwrap()];
        service
    };
    let external = |s: &mut ServiceObject| {
        s.service.external_ips = vec!["192.0.2.1".parse().unwrap()];
    };
    assert_eq!(with_other(mine(), |_| {}), []);
    assert_eq!(with_other(mine(), external), [(7, check, FAULT)]);
    // Another port, another protocol, and one that nobody programs.
    assert_eq!(
        with_other(mine(), |s| {
            s.service.external_ips = vec!["192.0.2.1".parse().unwrap()];
            s.service.ports[0].port = 81;
        }),
        []
    );
    assert_eq!(
        with_other(mine(), |s| {
            s.service.external_ips = vec!["192.0.2.1".parse().unwrap()];
            s.service.ports[0].protocol = Protocol::Udp;
        }),
        []
    );
    assert_eq!(
        with_other(mine(), |s| {
            s.service.external_ips = vec!["192.0.2.1".parse().unwrap()];
            s.service.proxy_name_label = true;
        }),
        []
    );
    assert_eq!(
        with_other(web(), |s| {
            s.service.external_ips = vec!["10.96.0.10".parse().unwrap()];
        }),
        [(4, check, FAULT)]
    );
}

#[test]
fn an_address_that_is_given_back_is_claimed_no_more() {
    let mut first = web();
    first.service.external_ips = vec!["192.0.2.1".parse().unwrap()];
    let mut other = first.clone();
    other.service.name = ServiceName::new("shop", "other");
    other.service.cluster_ips = vec!["10.96.0.11".parse().unwrap()];
    let claimed = [(7, Check::AddressClaimedTwice, FAULT)];
    let world = World::right(first, &[pod(1)])
        .then(Change::Service(other.clone()))
        .later(600_000);
    assert_eq!(world.found(), claimed);
    let gone = Change::ServiceGone(other.service.name.clone());
    assert_eq!(world.then(gone).found(), []);
    let mut moved = other.clone();
    moved.service.external_ips.clear();
    let mut first = web();
    first.service.external_ips = vec!["192.0.2.1".parse().unwrap()];
    let world = World::right(first, &[pod(1)])
        .then(Change::Service(other))
        .then(Change::Service(moved))
        .later(600_000);
    assert_eq!(world.found(), []);
}

#[test]
fn an_external_name_that_is_an_address() {
    let named = |name: &str| {
        let mut service = web();
        service.service.kind = ServiceType::ExternalName;
        service.service.cluster_ips.clear();
        service.service.cluster_ip = "".into();
        (service.selector, service.external_name) = (labels(""), Some(name.into()));
        World::of(vec![Change::Service(service)]).later(600_000)
    };
    let world = named("192.0.2.7");
    assert_eq!(world.found(), [(4, Check::ExternalNameIsAddress, FAULT)]);
    let flow = named("db.example.com").flow();
    assert_eq!(found(&flow), []);
    assert!(flow.steps.iter().all(|s| s.answer != Answer::Fail));
    assert_eq!(flow.verdict, "shop/web: no step fails; not known: 6");
}

#[test]
fn a_headless_service_has_nothing_on_nodes() {
    let mut service = web();
    service.service.cluster_ips.clear();
    service.service.cluster_ip = "None".into();
    let flow = World::right(service, &[pod(1)]).later(600_000).flow();
    assert_eq!(found(&flow), []);
    for i in [3, 6, 7] {
        assert_eq!(flow.steps[i].answer, Answer::NotApplicable, "{}", i + 1);
    }
}
