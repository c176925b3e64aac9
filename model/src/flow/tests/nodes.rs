//! The nodes' part of steps 4, 6, 7 and 8.

use super::*;
use crate::address::Frontend;
use crate::finding::{Evidence, Finding, FindingKind, Severity};
use crate::name::ServicePortName;
use crate::report::service::State;

pub(super) fn agrees(node: &NodeName) -> NodeAnswer<'_> {
    NodeAnswer {
        node,
        state: Some(State::Agrees),
        reports: true,
        does: "agree with the API".into(),
        findings: vec![],
        converging: vec![],
        flows: None,
    }
}

pub(super) fn finding(kind: FindingKind, frontend: Option<&str>) -> Finding {
    Finding {
        kind,
        severity: Severity::Critical,
        service: frontend.map(|_| ServicePortName::new("shop", "web", "http")),
        frontend: frontend.map(|f| f.parse::<Frontend>().unwrap()),
        sources: vec![],
        backend: None,
        since: Millis(0),
        evidence: vec![Evidence {
            family: "ip".into(),
            table: "kube-proxy".into(),
            chain: "service-ips".into(),
            handle: Some(42),
            element: None,
            says: "leads to the chain".into(),
        }],
        says: format!("{kind} it is"),
        absorbs: u64::from(frontend.is_none()),
        recurring: false,
        because: "seen twice".into(),
    }
}

pub(super) fn differs<'a>(node: &'a NodeName, f: &'a Finding) -> NodeAnswer<'a> {
    NodeAnswer {
        state: Some(State::Differs),
        does: f.says.clone(),
        findings: vec![(f, 420_000)],
        ..agrees(node)
    }
}

pub(super) fn names(n: usize) -> Vec<NodeName> {
    (1..=n).map(|i| NodeName::from(&*format!("n{i}"))).collect()
}

fn ask(nodes: &[NodeAnswer]) -> Flow {
    let mut service = web();
    service.service.ports[0].node_port = Some(30080);
    let world = World::right(service, &[pod(1)]).later(600_000);
    world.ask(nodes).unwrap()
}

fn answers(flow: &Flow) -> [Answer; 4] {
    [3, 5, 6, 7].map(|i| flow.steps[i].answer)
}

use Answer::{Fail, Pass, Unknown};

#[test]
fn nodes_that_agree_pass() {
    let names = names(3);
    let flow = ask(&names.iter().map(agrees).collect::<Vec<_>>());
    assert_eq!(answers(&flow), [Pass, Pass, Pass, Pass]);
    assert_eq!(flow.verdict, "shop/web: no step fails; not known: 5");
    assert_eq!(
        flow.steps[7].says,
        "3 nodes do the same: they agree with the API"
    );
}

#[test]
fn one_node_that_differs_at_the_cluster_ip_fails_steps_4_and_8() {
    let names = names(3);
    let f = finding(FindingKind::StaleBackend, Some("10.96.0.10:80/TCP"));
    let nodes = [agrees(&names[0]), differs(&names[1], &f), agrees(&names[2])];
    let flow = ask(&nodes);
    assert_eq!(answers(&flow), [Fail, Pass, Pass, Fail]);
    assert_eq!(
        flow.verdict,
        "shop/web: step 4 fails: 1 of 3 nodes do otherwise (n2): stale_backend it is; \
         step 8 fails too"
    );
    assert_eq!(
        flow.steps[3].found[0].evidence[0].says,
        "10.96.0.10:80/TCP: stale_backend it is (for 7 min 0 s); ip kube-proxy service-ips \
         handle 42: leads to the chain"
    );
}

#[test]
fn one_that_differs_at_a_node_port_fails_steps_7_and_8() {
    let names = names(2);
    let f = finding(FindingKind::MissingFrontend, Some("192.168.0.2:30080/TCP"));
    let flow = ask(&[agrees(&names[0]), differs(&names[1], &f)]);
    assert_eq!(answers(&flow), [Pass, Pass, Fail, Fail]);
}

#[test]
fn nodes_that_all_do_the_same_wrong_thing_do_not_fail_step_8() {
    let names = names(2);
    let f = finding(FindingKind::StaleBackend, Some("10.96.0.10:80/TCP"));
    let nodes: Vec<_> = names.iter().map(|n| differs(n, &f)).collect();
    assert_eq!(answers(&ask(&nodes)), [Fail, Pass, Pass, Pass]);
}

#[test]
fn a_kube_proxy_that_is_ill_fails_step_6_and_the_addresses_follow() {
    let names = names(2);
    let f = finding(FindingKind::HooksMissing, None);
    let flow = ask(&[agrees(&names[0]), differs(&names[1], &f)]);
    assert_eq!(answers(&flow), [Fail, Fail, Fail, Fail]);
    assert_eq!(flow.steps[3].follows_from(), Some(6));
    assert_eq!(flow.steps[6].follows_from(), Some(6));
    assert!(
        flow.verdict.starts_with("shop/web: step 6 fails:"),
        "{}",
        flow.verdict
    );
    // One that only does not answer takes no Service along: its rules may be right.
    let mut f = finding(FindingKind::ProxyNotRunning, None);
    f.absorbs = 0;
    let mut ill = differs(&names[1], &f);
    (ill.state, ill.does) = (Some(State::Agrees), "agree with the API".into());
    assert_eq!(
        answers(&ask(&[agrees(&names[0]), ill])),
        [Pass, Fail, Pass, Pass]
    );
}

#[test]
fn findings_of_severity_info_fail_nothing() {
    let names = names(2);
    let mut f = finding(FindingKind::ApiConflict, Some("10.96.0.10:80/TCP"));
    f.severity = Severity::Info;
    let mut node = differs(&names[1], &f);
    node.does = "agree with the API".into();
    assert_eq!(
        answers(&ask(&[agrees(&names[0]), node])),
        [Pass, Pass, Pass, Pass]
    );
}

#[test]
fn what_is_converging_silent_or_unread_is_not_called_wrong() {
    let names = names(3);
    let f = finding(FindingKind::StaleBackend, Some("10.96.0.10:80/TCP"));
    let mut soon = agrees(&names[1]);
    (soon.state, soon.converging) = (Some(State::Converging), vec![&f]);
    let flow = ask(&[agrees(&names[0]), soon]);
    assert_eq!(answers(&flow), [Unknown, Pass, Pass, Unknown]);
    assert!(
        flow.verdict.contains("step 4 is still converging"),
        "{}",
        flow.verdict
    );
    let silent = NodeAnswer {
        state: None,
        reports: false,
        ..agrees(&names[1])
    };
    let mut unread = agrees(&names[2]);
    unread.state = Some(State::Unknown);
    let flow = ask(&[agrees(&names[0]), silent.clone(), unread.clone()]);
    assert_eq!(answers(&flow), [Pass, Pass, Pass, Unknown]);
    assert!(
        flow.steps[3]
            .says
            .starts_with("1 of 2 nodes do what the API asks, 1 was not judged")
    );
    assert_eq!(answers(&ask(&[silent, unread])), [Unknown; 4]);
}

#[test]
fn nodes_without_an_agent_are_named() {
    let names = names(2);
    let flow = ask(&[agrees(&names[0]), agrees(&names[1])]);
    assert_eq!(flow.steps[7].evidence[0].says, "without an agent: n3");
}
