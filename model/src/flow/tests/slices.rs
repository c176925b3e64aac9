//! Step 3.

use super::super::limits::LAG_MS;
use super::super::objects::MIRROR_CONTROLLER;
use super::super::store::Change;
use super::*;

const FAULT: Weight = Weight::Fault;
const WAITS: Weight = Weight::Converging;

#[test]
fn slices_that_name_no_service_fail_once_the_collector_had_its_time() {
    let world = World::right(web(), &[pod(1)])
        .later(600_000)
        .then(Change::ServiceGone(ServiceName::new("shop", "web")));
    assert_eq!(world.found(), [(3, Check::SlicesWithoutService, WAITS)]);
    let world = world.later(LAG_MS);
    assert_eq!(world.found(), [(3, Check::SlicesWithoutService, FAULT)]);
    assert_eq!(
        world.flow().verdict,
        "shop/web: step 3 fails: 1 slice names a Service that does not exist"
    );
    // A Service that comes back, and slices that go, are no fault.
    let back = world.then(Change::Service(web()));
    assert_eq!(back.found(), []);
    let name = slice("web-1", &[]).slice.name;
    let gone = back
        .then(Change::ServiceGone(ServiceName::new("shop", "web")))
        .then(Change::SliceGone(name));
    assert!(gone.ask(&[]).is_none());
}

#[test]
fn a_pod_that_is_in_no_slice_is_given_time_and_then_a_fault() {
    let world = World::right(web(), &[pod(1)])
        .later(600_000)
        .then(Change::Pod(pod(2)));
    assert_eq!(world.found(), [(3, Check::SlicesBehindPods, WAITS)]);
    let world = world.later(LAG_MS - 1);
    assert_eq!(world.found(), [(3, Check::SlicesBehindPods, WAITS)]);
    assert_eq!(world.first_three()[2], Answer::Unknown);
    let world = world.later(1);
    assert_eq!(world.found(), [(3, Check::SlicesBehindPods, FAULT)]);
    assert_eq!(
        world.flow().verdict,
        "shop/web: step 3 fails: the slices do not say what 1 Pod is (for 1 min 0 s at least)"
    );
    // The controller catches up.
    let all = [pod(1), pod(2)];
    assert_eq!(world.then(Change::Slice(slice("web-1", &all))).found(), []);
}

#[test]
fn a_service_that_changes_every_second_does_not_hide_a_pod_that_is_missing() {
    let mut world = World::right(web(), &[pod(1)])
        .later(600_000)
        .then(Change::Pod(pod(2)));
    // Another Pod comes and goes, and its endpoint with it, while web-2 stays out.
    for second in 0..=LAG_MS / 1000 {
        world = world.later(1000);
        let others = match second % 2 {
            0 => vec![pod(1), pod(3)],
            _ => vec![pod(1)],
        };
        if second % 2 == 0 {
            world.say(Change::Pod(pod(3)));
        } else {
            world.say(Change::PodGone("shop".into(), "web-3".into()));
        }
        world.say(Change::Slice(slice("web-1", &others)));
    }
    assert!(world.found().contains(&(3, Check::SlicesBehindPods, FAULT)));
}

#[test]
fn a_watch_that_says_nothing_lets_no_fact_grow_old() {
    let mut world = World::right(web(), &[pod(1)]).later(600_000);
    world.say(Change::Pod(pod(2)));
    world.clock += LAG_MS;
    for kind in [Kind::Services, Kind::Pods, Kind::Nodes] {
        world.say(Change::Alive(kind));
    }
    // The slices were last heard of before the Pod came: they may have it long since.
    assert_eq!(world.found(), [(3, Check::SlicesBehindPods, WAITS)]);
}

#[test]
fn a_rolling_update_and_a_drain_give_no_finding() {
    let mut world = World::right(web(), &[pod(1), pod(2)]).later(600_000);
    let mut pods = vec![pod(1), pod(2)];
    let silent = |world: &World, when: &str| {
        let faults: Vec<_> = world
            .found()
            .into_iter()
            .filter(|(_, _, w)| *w == FAULT)
            .collect();
        assert_eq!(faults, [], "{when}");
    };
    for n in 3..=52u8 {
        let mut fresh = not_ready(pod(n), NotReady::default());
        fresh.node = Some(format!("n{}", n % 3 + 1).into());
        for step in 0..4 {
            match step {
                0 => pods.push(fresh.clone()),
                1 => {
                    *pods.last_mut().unwrap() = Pod {
                        ready: true,
                        not_ready: None,
                        ..fresh.clone()
                    }
                }
                2 => pods[0].deleted = true,
                _ => {
                    let gone = pods.remove(0);
                    world.say(Change::PodGone("shop".into(), gone.name));
                }
            }
            for p in &pods {
                world.say(Change::Pod(p.clone()));
            }
            silent(&world, "before the controller");
            world = world.later(2_000);
            silent(&world, "while it works");
            world.say(Change::Slice(slice("web-1", &pods)));
            silent(&world, "after it");
        }
    }
}

#[test]
fn each_thing_that_a_slice_says_of_a_pod_is_compared() {
    let behind = |what: fn(&mut SliceObject)| {
        let mut wrong = slice("web-1", &[pod(1), pod(2)]);
        what(&mut wrong);
        let world = World::right(web(), &[pod(1), pod(2)])
            .then(Change::Slice(wrong))
            .later(600_000);
        let flow = world.flow();
        let first = &flow.steps[2].found;
        first.first().map(|f| f.evidence[0].says.clone())
    };
    let said = |what| behind(what).unwrap();
    assert_eq!(behind(|_| {}), None);
    assert_eq!(
        said(|s| s.slice.endpoints[0].address = Some("10.244.9.9".parse().unwrap())),
        "has 10.244.1.1, and stands as 10.244.9.9 in EndpointSlice shop/web-1"
    );
    assert_eq!(
        said(|s| (s.slice.endpoints[0].ready, s.slice.endpoints[0].serving) = (false, false)),
        "is ready, and stands as not ready in EndpointSlice shop/web-1"
    );
    assert_eq!(
        said(|s| s.slice.endpoints[0].terminating = true),
        "is not terminating, and stands as terminating in EndpointSlice shop/web-1"
    );
    assert_eq!(
        said(|s| s.slice.ports[0].port = Some(9090)),
        "has port 8080/TCP, and stands with port 9090/TCP in EndpointSlice shop/web-1"
    );
    // Somebody else's slice says what it wants.
    assert_eq!(
        behind(|s| {
            s.managed_by = None;
            s.slice.endpoints.clear();
        }),
        Some("10.244.1.1 is in no slice of the controller".into())
    );
}

#[test]
fn a_pod_that_is_not_selected_any_more_or_has_ended_must_leave() {
    let mut other = pod(2);
    other.labels = labels("app=other");
    let world = World::right(web(), &[pod(1), pod(2)])
        .later(600_000)
        .then(Change::Pod(other));
    assert_eq!(world.found(), [(3, Check::SlicesBehindPods, WAITS)]);
    let flow = world.later(LAG_MS).flow();
    assert_eq!(
        flow.steps[2].found[0].evidence[0].says,
        "is not selected and is in EndpointSlice shop/web-1"
    );
    let mut ended = pod(2);
    (ended.phase, ended.ready) = (Phase::Failed, false);
    let flow = World::right(web(), &[pod(1), pod(2)])
        .then(Change::Pod(ended))
        .later(600_000)
        .flow();
    assert_eq!(
        flow.steps[2].found[0].evidence[0].says,
        "has ended and is in EndpointSlice shop/web-1"
    );
}

#[test]
fn endpoints_of_pods_that_are_gone() {
    let gone = Change::PodGone("shop".into(), "web-2".into());
    let world = World::right(web(), &[pod(1), pod(2)])
        .later(600_000)
        .then(gone);
    assert_eq!(world.found(), [(3, Check::EndpointOfGonePod, WAITS)]);
    let world = world.later(LAG_MS);
    assert_eq!(world.found(), [(3, Check::EndpointOfGonePod, FAULT)]);
    assert_eq!(
        world.flow().steps[2].found[0].evidence[0].says,
        "lists 10.244.1.2 of Pod web-2, which does not exist, as ready"
    );
    // A slice that is heard of before its Pod is no fault, however old everything else is.
    let early = World::right(web(), &[pod(1)])
        .later(600_000)
        .then(Change::Slice(slice("web-1", &[pod(1), pod(2)])));
    assert_eq!(early.found(), [(3, Check::EndpointOfGonePod, WAITS)]);
    assert_eq!(early.then(Change::Pod(pod(2))).found(), []);
    // An endpoint of no Pod is nobody's.
    let mut by_hand = slice("web-2", &[pod(1)]);
    (by_hand.managed_by, by_hand.slice.endpoints[0].pod) = (None, None);
    let world = World::right(web(), &[pod(1)])
        .then(Change::Slice(by_hand))
        .later(600_000);
    assert_eq!(world.found(), [(3, Check::HandMadeSlice, Weight::Hint)]);
}

#[test]
fn a_slice_that_another_service_object_owned() {
    let mut old = slice("web-0", &[]);
    old.owner = Some("u-earlier".into());
    let world = World::right(web(), &[pod(1)]).then(Change::Slice(old));
    assert_eq!(world.found(), [(3, Check::SliceOfAnotherService, WAITS)]);
    assert_eq!(
        world.later(LAG_MS).found(),
        [(3, Check::SliceOfAnotherService, FAULT)]
    );
}

#[test]
fn a_pod_on_a_node_that_does_not_exist_is_left_out_by_the_controller() {
    let mut lost = pod(2);
    lost.node = Some("n9".into());
    let world = World::right(web(), &[pod(1)])
        .then(Change::Pod(lost))
        .later(600_000);
    assert_eq!(world.found(), [(3, Check::PodOfUnknownNode, Weight::Hint)]);
    // Its Node comes: now the controller has to take it in.
    let world = world.then(Change::Node(node("n9", "192.168.0.9")));
    assert_eq!(world.found(), [(3, Check::SlicesBehindPods, WAITS)]);
}

#[test]
fn a_node_that_goes_takes_no_endpoint_along_until_its_pods_go() {
    let world = World::right(web(), &[pod(1)])
        .then(Change::NodeGone(NodeName::from("n1")))
        .later(600_000);
    assert_eq!(world.found(), [(3, Check::PodOfUnknownNode, Weight::Hint)]);
}

#[test]
fn two_families_of_which_one_has_no_endpoint() {
    let dual = || {
        let mut service = web();
        service.service.ip_families = vec![Family::V4, Family::V6];
        service
            .service
            .cluster_ips
            .push("fd00:96::10".parse().unwrap());
        service
    };
    let mut empty = slice("web-6", &[]);
    empty.slice.family = Some(Family::V6);
    empty.slice.ports.clear();
    let world = World::right(dual(), &[pod(1)])
        .then(Change::Slice(empty.clone()))
        .later(600_000);
    assert_eq!(world.found(), [(3, Check::FamilyWithoutEndpoint, FAULT)]);
    assert_eq!(
        world.flow().steps[2].says,
        "no endpoint can be used over IPv6; 1 Pod has no IPv6 address"
    );
    // With an address of both families, and an endpoint in both.
    let mut both = pod(1);
    both.addresses.push("fd00:244::1".parse().unwrap());
    let mut six = slice("web-6", std::slice::from_ref(&both));
    (six.slice.family, six.slice.endpoints[0].address) =
        (Some(Family::V6), Some("fd00:244::1".parse().unwrap()));
    let world = World::right(dual(), std::slice::from_ref(&both))
        .then(Change::Slice(six))
        .later(600_000);
    assert_eq!(world.found(), []);
}

#[test]
fn a_service_without_a_selector_needs_slices() {
    let mut service = web();
    service.selector = labels("");
    let world = World::of(vec![Change::Service(service.clone())]).later(600_000);
    assert_eq!(
        world.found(),
        [(3, Check::SelectorlessWithoutSlices, FAULT)]
    );
    let mut by_hand = slice("web-1", &[pod(1)]);
    (by_hand.managed_by, by_hand.slice.endpoints[0].pod) = (Some(MIRROR_CONTROLLER.into()), None);
    let world = world.then(Change::Slice(by_hand));
    assert_eq!(world.found(), []);
}

#[test]
fn endpoints_that_terminate_are_fallen_back_on() {
    let mut leaving = pod(1);
    leaving.deleted = true;
    let world = World::right(web(), &[leaving]).later(600_000);
    assert_eq!(world.found(), [(2, Check::NoReadyPod, FAULT)]);
    assert_eq!(
        world.flow().steps[2].says,
        "1 slice lists 1 endpoint, 0 ready; the datapath falls back on 1 that is terminating, \
         as the Pods are"
    );
}

#[test]
fn manifests_tell_old_facts() {
    let mut world = World::right(web(), &[pod(1)]).then(Change::Pod(pod(2)));
    world.objects.settled_facts = true;
    assert_eq!(world.found(), [(3, Check::SlicesBehindPods, FAULT)]);
    assert_eq!(
        world.flow().steps[2].says,
        "the slices do not say what 1 Pod is"
    );
}
