//! Step 2.

use super::super::objects::{Condition, Container, ContainerState, NotReady};
use super::super::pods::why_not;
use super::super::store::Change;
use super::*;

fn waits(reason: &str, restarts: u32) -> NotReady {
    NotReady {
        conditions: vec![Condition {
            kind: "Ready".into(),
            reason: "ContainersNotReady".into(),
            message: "".into(),
        }],
        containers: vec![Container {
            name: "web".into(),
            init: false,
            state: ContainerState::Waiting(reason.into()),
            restarts,
        }],
    }
}

fn named(number: u8, name: &str, port: u16) -> Pod {
    let mut pod = pod(number);
    let mut port_of = pod.ports[0].clone();
    (port_of.name, port_of.number) = (name.into(), port);
    pod.ports = [port_of].into();
    pod
}

#[test]
fn no_ready_pod_fails_and_says_why() {
    let pods = [
        not_ready(pod(1), waits("CrashLoopBackOff", 7)),
        not_ready(pod(2), waits("CrashLoopBackOff", 6)),
    ];
    let world = World::right(web(), &pods).later(600_000);
    let flow = world.flow();
    assert_eq!(
        flow.verdict,
        "shop/web: step 2 fails: none of 2 Pods is ready: container web waits: \
         CrashLoopBackOff (7 restarts)"
    );
    assert_eq!(
        world.found(),
        [
            (2, Check::NoReadyPod, Weight::Fault),
            (3, Check::NoUsableEndpoint, Weight::Fault)
        ]
    );
    assert_eq!(flow.steps[2].follows_from(), Some(2));
}

#[test]
fn one_ready_pod_is_enough_and_the_others_are_told_of() {
    let pods = [pod(1), not_ready(pod(2), waits("ContainerCreating", 0))];
    let world = World::right(web(), &pods).later(600_000);
    assert_eq!(world.found(), [(2, Check::PodNotReady, Weight::Hint)]);
    assert_eq!(world.first_three()[1], Answer::Pass);
    assert_eq!(
        world.flow().steps[1].says,
        "1 of 2 Pods are ready; 80/TCP to http"
    );
}

#[test]
fn pods_that_are_published_not_ready_get_traffic() {
    let pods = [not_ready(pod(1), waits("ContainerCreating", 0))];
    let mut service = web();
    service.publish_not_ready = true;
    let mut published = slice("web-1", &pods);
    published.slice.endpoints[0].ready = true;
    let world = World::of(vec![
        Change::Service(service),
        Change::Pod(pods[0].clone()),
        Change::Slice(published),
    ])
    .later(600_000);
    assert_eq!(world.found(), [(2, Check::NoReadyPod, Weight::Hint)]);
}

#[test]
fn a_port_name_that_no_pod_has_fails() {
    let pods = [named(1, "web", 8080), named(2, "web", 8080)];
    let mut portless = slice("web-1", &pods);
    portless.slice.ports.clear();
    let all = |pods: &[Pod], slice| {
        let mut all = vec![Change::Service(web())];
        all.extend(pods.iter().cloned().map(Change::Pod));
        all.push(Change::Slice(slice));
        World::of(all).later(600_000)
    };
    let world = all(&pods, portless.clone());
    assert_eq!(
        world.flow().verdict,
        "shop/web: step 2 fails: port 80/TCP is sent to the port named http, which no Pod has \
         as TCP; they have web (8080/TCP)"
    );
    assert_eq!(world.flow().steps[2].follows_from(), Some(2));
    // The name is there, of another protocol (`FindPort` wants both).
    let mut udp = pod(1);
    udp.ports = [ContainerPort {
        protocol: Protocol::Udp,
        ..udp.ports[0].clone()
    }]
    .into();
    let mut portless = slice("web-1", std::slice::from_ref(&udp));
    portless.slice.ports.clear();
    let world = all(&[udp], portless);
    assert!(
        world
            .found()
            .contains(&(2, Check::TargetPortUnknown, Weight::Fault))
    );
    // A sidecar has it.
    let mut sidecar = pod(1);
    sidecar.ports = [ContainerPort {
        sidecar: true,
        ..sidecar.ports[0].clone()
    }]
    .into();
    let one = slice("web-1", std::slice::from_ref(&sidecar));
    assert_eq!(all(&[sidecar], one).found(), []);
}

#[test]
fn a_port_name_that_some_pods_lack_is_a_hint() {
    let pods = [pod(1), named(2, "web", 8080)];
    let mut all = vec![Change::Service(web())];
    all.extend(pods.iter().cloned().map(Change::Pod));
    let mut portless = slice("web-2", &pods[1..]);
    portless.slice.ports.clear();
    all.push(Change::Slice(slice("web-1", &pods[..1])));
    all.push(Change::Slice(portless));
    let world = World::of(all).later(600_000);
    assert_eq!(
        world.found(),
        [(2, Check::TargetPortMissingInSome, Weight::Hint)]
    );
}

#[test]
fn a_name_that_means_two_numbers_is_a_hint() {
    let pods = [pod(1), named(2, "http", 9090)];
    let mut all = vec![Change::Service(web())];
    all.extend(pods.iter().cloned().map(Change::Pod));
    let mut other = slice("web-2", &pods[1..]);
    other.slice.ports[0].port = Some(9090);
    all.push(Change::Slice(slice("web-1", &pods[..1])));
    all.push(Change::Slice(other));
    let world = World::of(all).later(600_000);
    assert_eq!(world.found(), [(2, Check::TargetPortDiffers, Weight::Hint)]);
    assert_eq!(
        world.flow().steps[1].found[0].says,
        "the port named http is 8080 in 1 Pod, 9090 in 1 Pod"
    );
}

#[test]
fn a_number_that_no_container_declares_is_only_a_hint() {
    let numbered = |port: u16| {
        let mut service = web();
        service.target_ports = vec![TargetPort::Number(port)];
        let pods = [pod(1)];
        let mut one = slice("web-1", &pods);
        one.slice.ports[0].port = Some(port);
        World::of(vec![
            Change::Service(service),
            Change::Pod(pods[0].clone()),
            Change::Slice(one),
        ])
        .later(600_000)
    };
    let world = numbered(9000);
    assert_eq!(
        world.found(),
        [(2, Check::TargetPortNotDeclared, Weight::Hint)]
    );
    assert_eq!(world.first_three()[1], Answer::Pass);
    assert_eq!(numbered(8080).found(), []);
}

#[test]
fn pods_that_have_ended_do_not_count() {
    let mut ended = pod(2);
    (ended.phase, ended.ready) = (Phase::Succeeded, false);
    let world = World::right(web(), &[pod(1)])
        .then(Change::Pod(ended.clone()))
        .later(600_000);
    assert_eq!(world.found(), []);
    let only = World::of(vec![Change::Service(web()), Change::Pod(ended)]).later(600_000);
    assert_eq!(
        only.flow().steps[1].says,
        "1 Pod has ended, and no other is there"
    );
}

#[test]
fn why_a_pod_is_not_ready() {
    let condition = |kind: &str, reason: &str, message: &str| Condition {
        kind: kind.into(),
        reason: reason.into(),
        message: message.into(),
    };
    let container = |state| Container {
        name: "web".into(),
        init: false,
        state,
        restarts: 0,
    };
    let says = |conditions, containers| {
        let why = NotReady {
            conditions,
            containers,
        };
        why_not(&not_ready(pod(1), why))
    };
    let ready = || condition("Ready", "ContainersNotReady", "");
    assert_eq!(
        says(
            vec![
                condition("PodScheduled", "Unschedulable", "0/3 nodes are available"),
                ready()
            ],
            vec![container(ContainerState::Unknown)]
        ),
        "not scheduled: Unschedulable, 0/3 nodes are available"
    );
    assert_eq!(
        says(
            vec![ready()],
            vec![container(ContainerState::Running { started: true })]
        ),
        "container web runs, its readiness probe does not succeed"
    );
    assert_eq!(
        says(
            vec![ready()],
            vec![container(ContainerState::Running { started: false })]
        ),
        "container web runs, its startup probe has not succeeded"
    );
    assert_eq!(
        says(
            vec![ready()],
            vec![container(ContainerState::Terminated(
                "OOMKilled".into(),
                137
            ))]
        ),
        "container web ended: OOMKilled, exit code 137"
    );
    // An init container that waits holds the others up.
    let mut init = container(ContainerState::Waiting("ImagePullBackOff".into()));
    (init.init, init.name) = (true, "migrate".into());
    assert_eq!(
        says(
            vec![ready()],
            vec![
                container(ContainerState::Waiting("PodInitializing".into())),
                init
            ]
        ),
        "init container migrate waits: ImagePullBackOff"
    );
    assert_eq!(
        says(vec![ready(), condition("example.com/gate", "", "")], vec![]),
        "condition example.com/gate is not True"
    );
    assert_eq!(
        says(vec![condition("Ready", "NodeNotReady", "")], vec![]),
        "condition Ready is not True: NodeNotReady"
    );
    let mut deleted = pod(1);
    deleted.deleted = true;
    assert_eq!(why_not(&deleted), "is being deleted");
}
