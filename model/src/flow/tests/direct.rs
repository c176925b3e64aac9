//! Step 5: which backends answer.

use super::*;
use crate::capture::{Gap, Reading};
use crate::flow::NodeFlows;
use crate::flows::{BackendAnswer, BackendFlows, Flows};
use crate::name::ServicePortName;

/// The nodes' clock when they are asked, and for how long the world has been as it is.
const CLOCK: u64 = 5_000_000;
const SETTLED: u64 = 600_000;

fn backend(pod: u8, answer: BackendAnswer) -> BackendFlows {
    BackendFlows {
        service: ServicePortName::new("shop", "web", "http"),
        protocol: Protocol::Tcp,
        backend: format!("10.244.1.{pod}:8080").parse().unwrap(),
        answer,
    }
}

/// Not answered: flows and sources, all within two minutes.
fn none(pod: u8, flows: u32, sources: u32) -> BackendFlows {
    let since = Millis(CLOCK - 120_000);
    backend(
        pod,
        BackendAnswer::None {
            flows,
            sources,
            since,
        },
    )
}

fn some(pod: u8) -> BackendFlows {
    backend(pod, BackendAnswer::Some)
}

fn seen(backends: &[BackendFlows]) -> Reading<Flows> {
    Reading::Read(Flows {
        backends: backends.to_vec(),
        left_out: 0,
    })
}

fn ask_in(world: &World, readings: &[Reading<Flows>]) -> crate::flow::Step {
    let names = nodes::names(readings.len());
    let answers: Vec<NodeAnswer> = names
        .iter()
        .zip(readings)
        .map(|(name, reading)| NodeAnswer {
            flows: Some(NodeFlows {
                reading,
                clock: CLOCK,
            }),
            ..nodes::agrees(name)
        })
        .collect();
    world.ask(&answers).unwrap().steps.remove(4)
}

fn ask(readings: &[Reading<Flows>]) -> crate::flow::Step {
    let world = World::right(web(), &[pod(1), pod(2), pod(3)]).later(SETTLED);
    ask_in(&world, readings)
}

fn found(step: &crate::flow::Step) -> Vec<(Check, Weight)> {
    step.found.iter().map(|f| (f.check, f.weight)).collect()
}

use Answer::{Fail, Pass, Unknown};
use Check::{EndpointSilent, EndpointSilentForSome};

#[test]
fn backends_that_answer_pass_and_the_others_are_named_as_not_seen() {
    let step = ask(&[seen(&[some(1), some(2)]), seen(&[some(1)])]);
    assert_eq!((step.answer, found(&step)), (Pass, vec![]));
    assert_eq!(
        step.says,
        "new flows to 2 of 3 usable endpoints were answered; none was seen to the other 1"
    );
}

#[test]
fn a_silent_backend_beside_others_that_answer_is_a_fault() {
    let step = ask(&[seen(&[none(3, 3, 1), some(1)])]);
    assert_eq!(
        (step.answer, found(&step)),
        (Fail, vec![(EndpointSilent, Weight::Fault)])
    );
    assert_eq!(
        step.says,
        "1 of 3 usable endpoints answered none of the new flows (seen on n1)"
    );
    let proof = &step.found[0].evidence[0];
    assert_eq!(proof.object, "Pod shop/web-3");
    assert_eq!(
        proof.says,
        "10.244.1.3:8080/TCP: 3 new flows from 1 address on node n1 within 2 min 0 s, none answered; \
         others are"
    );
    assert!(
        step.run.iter().any(|r| r.contains("get pod web-3")),
        "{:?}",
        step.run
    );
    assert!(
        step.run
            .iter()
            .any(|r| r.starts_with("conntrack -L --reply-src 10.244.1.3"))
    );
    // Two are chance.
    let few = ask(&[seen(&[none(3, 2, 1), some(1)])]);
    assert_eq!((few.answer, found(&few)), (Unknown, vec![]));
}

#[test]
fn a_single_client_that_nobody_answers_is_no_fault_of_the_endpoint() {
    let one = ask(&[seen(&[none(3, 9, 1)])]);
    assert_eq!(
        (one.answer, found(&one)),
        (Unknown, vec![(EndpointSilent, Weight::Hint)])
    );
    let two = ask(&[seen(&[none(3, 9, 2)])]);
    assert_eq!(
        (two.answer, found(&two)),
        (Fail, vec![(EndpointSilent, Weight::Fault)])
    );
}

/// A slice made by hand names no Pod: nothing tells since when somebody else has the address.
#[test]
fn an_endpoint_whose_pod_is_not_known_is_no_fault() {
    let pods = [pod(1), pod(2), pod(3)];
    let mut all = slice("web-1", &pods);
    all.slice.endpoints[2].pod = None;
    let world = World::right(web(), &pods)
        .then(Change::Slice(all))
        .later(SETTLED);
    let step = ask_in(&world, &[seen(&[none(3, 9, 4), some(1)])]);
    assert_eq!(
        (step.answer, found(&step)),
        (Unknown, vec![(EndpointSilent, Weight::Hint)])
    );
}

#[test]
fn what_answers_on_another_node_is_a_hint_about_the_way() {
    let step = ask(&[seen(&[none(3, 9, 4), some(1)]), seen(&[some(3)])]);
    assert_eq!(
        (step.answer, found(&step)),
        (Pass, vec![(EndpointSilentForSome, Weight::Hint)])
    );
    assert!(step.found[0].says.contains("no new flow from n1"));
}

#[test]
fn udp_counts_only_beside_others_that_answer() {
    let udp = |mut b: BackendFlows| {
        b.protocol = Protocol::Udp;
        b
    };
    let mut service = web();
    service.service.ports[0].protocol = Protocol::Udp;
    let pods = [pod(1), pod(3)];
    let mut listed = slice("web-1", &pods);
    listed.slice.ports[0].protocol = Protocol::Udp;
    let mut all = vec![Change::Service(service), Change::Slice(listed)];
    all.extend(pods.into_iter().map(Change::Pod));
    let world = World::of(all).later(SETTLED);
    let alone = ask_in(&world, &[seen(&[udp(none(3, 9, 4))])]);
    assert_eq!((alone.answer, found(&alone)), (Unknown, vec![]));
    let beside = ask_in(&world, &[seen(&[udp(none(3, 9, 4)), udp(some(1))])]);
    assert_eq!(
        (beside.answer, found(&beside)),
        (Fail, vec![(EndpointSilent, Weight::Fault)])
    );
}

#[test]
fn flows_to_who_left_or_had_the_address_before_do_not_count() {
    // No endpoint any more.
    let step = ask(&[seen(&[none(9, 9, 4), some(1)])]);
    assert_eq!((step.answer, found(&step)), (Pass, vec![]));
    // Not ready any more.
    let mut ill = pod(3);
    ill.ready = false;
    let world = World::right(web(), &[pod(1), ill]).later(SETTLED);
    let step = ask_in(&world, &[seen(&[none(3, 9, 4), some(1)])]);
    assert_eq!((step.answer, found(&step)), (Pass, vec![]));
    // The Pod is younger than the flows, or as old.
    for (age, answer) in [(119_999, Unknown), (120_000, Fail)] {
        let world = World::right(web(), &[pod(1), pod(3)]).later(age);
        let step = ask_in(&world, &[seen(&[none(3, 9, 4), some(1)])]);
        assert_eq!(step.answer, answer, "{age}");
    }
    // Through another Service, whose clients may be forbidden.
    let mut other = none(3, 9, 4);
    other.service = ServicePortName::new("shop", "web-admin", "http");
    let step = ask(&[seen(&[other, some(1)])]);
    assert_eq!((step.answer, found(&step)), (Pass, vec![]));
}

#[test]
fn without_flows_it_is_unknown_with_the_reason() {
    let says = |readings: &[Reading<Flows>]| {
        let step = ask(readings);
        assert_eq!(step.answer, Unknown);
        step.says
    };
    assert_eq!(
        says(&[seen(&[])]),
        "no new flow to its endpoints was seen in the last 5 min; one that a Pod refuses leaves no trace"
    );
    let failed = Reading::Failed(Gap {
        what: "conntrack".into(),
        why: "no right".into(),
    });
    assert_eq!(says(&[failed]), "flows were not read on n1: no right");
    assert_eq!(
        says(&[Reading::Absent]),
        "the nodes' kernels have no connection tracking"
    );
    assert_eq!(says(&[]), "nothing is sent to Pods, and no node reports");
}
