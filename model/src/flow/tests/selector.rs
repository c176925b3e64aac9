//! Step 1.

use super::super::objects::Phase;
use super::super::store::Change;
use super::*;

fn labelled(number: u8, text: &str) -> Pod {
    Pod {
        labels: labels(text),
        ..pod(number)
    }
}

#[test]
fn the_example_of_the_user_a_selector_says_frontend_and_the_pods_say_web() {
    let mut service = web();
    service.selector = labels("app=frontend");
    let pods = [pod(1), pod(2), pod(3)];
    let mut all = vec![Change::Service(service)];
    all.extend(pods.iter().cloned().map(Change::Pod));
    // What the controller writes where nothing is selected: a slice without endpoints or ports.
    let mut empty = slice("web-1", &[]);
    empty.slice.ports.clear();
    all.push(Change::Slice(empty));
    let world = World::of(all).later(600_000);
    let flow = world.flow();
    assert_eq!(
        flow.verdict,
        "shop/web: step 1 fails: app=frontend matches none of the 3 Pods in shop; \
         3 Pods have app=web"
    );
    use Answer::{Fail, NotApplicable};
    assert_eq!(world.first_three(), [Fail, NotApplicable, Fail]);
    assert_eq!(
        world.found(),
        [
            (1, Check::SelectorMatchesNothing, Weight::Fault),
            (3, Check::NoUsableEndpoint, Weight::Fault)
        ]
    );
    assert_eq!(flow.steps[2].follows_from(), Some(1));
    assert_eq!(
        flow.steps[0].found[0].evidence[0].says,
        "have app=web: web-1, web-2, web-3"
    );
    assert_eq!(flow.steps[0].run.len(), 2);
}

#[test]
fn one_pod_that_matches_is_enough() {
    let mut stray = labelled(2, "app=other");
    stray.name = "other-2".into();
    let world = World::right(web(), &[pod(1)])
        .then(Change::Pod(stray))
        .later(600_000);
    assert_eq!(world.found(), []);
}

fn nearest(selector: &str, pods: Vec<Pod>) -> String {
    let mut service = web();
    service.selector = labels(selector);
    let mut all = vec![Change::Service(service)];
    all.extend(pods.into_iter().map(Change::Pod));
    World::of(all).flow().steps[0].says.clone()
}

#[test]
fn the_nearest_labels_are_those_that_agree_in_most() {
    assert_eq!(
        nearest(
            "app=web,tier=front",
            vec![
                labelled(1, "app=web,tier=back"),
                labelled(2, "app=db,tier=back"),
                labelled(3, "k8s-app=web"),
            ]
        ),
        "app=web,tier=front matches none of the 3 Pods in shop; 1 Pod has tier=back"
    );
    assert_eq!(
        nearest("app=web", vec![labelled(1, "k8s-app=web")]),
        "app=web does not match the only Pod in shop; 1 Pod has k8s-app=web"
    );
    // Nothing in common: nothing is proposed. Pods that have ended are not meant.
    let mut job = labelled(1, "app=web2");
    job.phase = Phase::Succeeded;
    assert_eq!(
        nearest("app=web", vec![job, labelled(2, "x=y")]),
        "app=web matches none of the 2 Pods in shop"
    );
    assert_eq!(
        nearest("app=web", vec![]),
        "app=web matches nothing: namespace shop has no Pods"
    );
}

#[test]
fn pods_of_another_namespace_are_named() {
    let mut elsewhere = pod(1);
    elsewhere.namespace = "staging".into();
    let world = World::of(vec![Change::Service(web()), Change::Pod(elsewhere)]);
    let step = &world.flow().steps[0];
    assert_eq!(
        step.found[0].evidence[0].says,
        "of other namespaces would match (staging); a selector only looks in its own"
    );
}

#[test]
fn without_a_selector_there_is_nothing_to_match() {
    let mut service = web();
    service.selector = labels("");
    let world = World::of(vec![Change::Service(service)]);
    assert_eq!(world.flow().steps[0].answer, Answer::NotApplicable);
}

#[test]
fn a_name_that_needs_quotes_is_in_no_command() {
    let mut service = web();
    service.selector = labels("app=$(reboot)");
    let world = World::of(vec![Change::Service(service)]);
    let step = &world.flow().steps[0];
    assert_eq!(step.answer, Answer::Fail);
    assert!(step.run.is_empty(), "{:?}", step.run);
}
