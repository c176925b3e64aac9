//! Whole passes: kube-proxy's own faults, the node's states, and what is said of it all.

use super::kit::{
    A, B, WEB, World, converging, evidence, forward, frontend, kinds, own_node, plain, web,
};
use super::*;
use crate::address::Family;
use crate::report::{Side, check_json, check_text, exit_code, table_json, table_text};
use crate::table::Action;
use crate::view::Change;

#[test]
fn kube_proxy_that_does_not_answer() {
    let mut w = World::new();
    w.pass();
    w.proxy.as_mut().unwrap().unreachable = Some("connection refused".into());
    let mut lasted = 0;
    for _ in 0..8 {
        let report = w.pass();
        if kinds(&report) == [FindingKind::ProxyNotRunning] {
            break;
        }
        assert_eq!(converging(&report), [FindingKind::ProxyNotRunning]);
        lasted += 1;
    }
    assert_eq!(lasted, 6, "10 s must be over");
    // Near misses: it answers again; nothing is expected of it.
    w.proxy.as_mut().unwrap().unreachable = None;
    assert_eq!(kinds(&w.pass()), []);
    w.proxy = None;
    for _ in 0..10 {
        assert_eq!(kinds(&w.pass()), []);
    }
}

#[test]
fn kube_proxy_that_does_not_finish_a_sync() {
    let mut w = World::new();
    w.pass();
    let queued = w.now.wall.0;
    let set = |w: &mut World, at: u64| {
        for t in w.proxy.as_mut().unwrap().families.values_mut() {
            t.last_queued = Some(at);
        }
    };
    set(&mut w, queued);
    for _ in 0..31 {
        assert_eq!(kinds(&w.pass()), []);
    }
    let report = w.pass();
    assert_eq!(
        kinds(&report),
        [FindingKind::ProxyStuck, FindingKind::ProxyStuck]
    );
    assert!(!report.findings.iter().any(Finding::watch_is_dead));
    w.synced(10);
    assert_eq!(kinds(&w.pass()), []);
    // Near miss: busy, always something queued, and it keeps finishing.
    for _ in 0..60 {
        w.synced(1_500);
        let at = w.now.wall.0 + 1;
        set(&mut w, at);
        assert_eq!(kinds(&w.pass()), []);
    }
}

#[test]
fn a_dead_watch() {
    let mut w = World::new();
    for _ in 0..10 {
        w.pass();
    }
    // The API moves, the kernel even follows (somebody else's doing), and the counters stand still.
    w.touch();
    w.proxy.as_mut().unwrap().changes_total = Some(100);
    w.both(WEB, forward(web(), &[A]));
    for _ in 0..37 {
        w.pass();
    }
    let report = w.pass();
    assert_eq!(kinds(&report), [FindingKind::ProxyStuck]);
    assert!(report.findings.iter().all(Finding::watch_is_dead));
    w.counters(1);
    assert_eq!(kinds(&w.pass()), []);
    // Near misses: quiet; counted before this program saw it; counted a little later.
    let mut w = World::new();
    for _ in 0..100 {
        assert_eq!(kinds(&w.pass()), []);
    }
    w.counters(1);
    w.pass();
    w.touch();
    w.proxy.as_mut().unwrap().changes_total = Some(101);
    w.both(WEB, forward(web(), &[A]));
    for _ in 0..100 {
        assert_eq!(kinds(&w.pass()), []);
    }
    w.touch();
    w.proxy.as_mut().unwrap().changes_total = Some(101);
    w.both(WEB, forward(web(), &[A, B]));
    w.pass();
    w.pass();
    w.counters(1);
    for _ in 0..100 {
        assert_eq!(kinds(&w.pass()), []);
    }
}

#[test]
fn a_name_that_is_no_node() {
    let mut w = World::new();
    w.profile.config.value.node_name = Some("node-x".into());
    w.pass();
    let report = w.pass();
    assert_eq!(kinds(&report), [FindingKind::WrongConfiguration]);
    // Near misses: the right name; only a hint.
    w.profile.config.value.node_name = Some("node-a".into());
    assert_eq!(kinds(&w.pass()), []);
    w.profile.config.value.node_name = Some("node-x".into());
    w.profile.config.from = LearntFrom::ConfigMap;
    w.pass();
    assert_eq!(kinds(&w.pass()), []);
}

#[test]
fn a_view_that_is_not_whole_judges_nothing() {
    let mut w = World::new();
    w.view.complete = false;
    w.forget(WEB);
    for _ in 0..50 {
        let report = w.pass();
        assert_eq!(report.judged.unknown_reasons[&NotJudged::ApiView], 3);
        assert_eq!((kinds(&report), report.judged.pairs), (vec![], 0));
        assert_eq!(exit_code(&report), 2);
    }
}

#[test]
fn another_network_namespace_judges_nothing() {
    let mut w = World::new();
    w.node.addresses.retain(|a| a.address.is_loopback());
    w.forget(WEB);
    for _ in 0..50 {
        let report = w.pass();
        assert_eq!((kinds(&report), report.judged.unknown), (vec![], 3));
        assert_eq!(&*report.gaps[0].what, "network namespace");
        assert!(
            report.verdict.contains("network namespace"),
            "{}",
            report.verdict
        );
    }
    // Where the reading was refused for that, it is said once all the same.
    let gap = elsewhere(&w.view, &w.node).unwrap();
    w.snapshot
        .tables
        .insert(Family::V4, Reading::Failed(gap.clone()));
    w.snapshot.gaps.push(gap.clone());
    assert_eq!(w.pass().gaps, [gap]);
}

#[test]
fn a_node_that_starts() {
    let mut w = World::new();
    w.snapshot.hooks.clear();
    w.snapshot.datapaths.clear();
    w.snapshot.tables.insert(Family::V4, Reading::Absent);
    // A kube-proxy that has been running for an hour has had its time.
    w.pass();
    assert_eq!(kinds(&w.pass()), [FindingKind::HooksMissing]);
    w.ledger = Ledger::default();
    w.proxy.as_mut().unwrap().started = Some(w.now.wall.0);
    for _ in 0..35 {
        let report = w.pass();
        assert_eq!(
            (report.state, kinds(&report)),
            (NodeState::Starting, vec![])
        );
        assert_eq!(
            report.judged.not_comparable_reasons[&NotJudged::NodeState],
            3
        );
        assert_eq!(exit_code(&report), 2);
    }
    // It expires: kube-proxy says that it is in charge, and nothing is there.
    w.pass();
    let report = w.pass();
    assert_eq!(
        (report.state, kinds(&report)),
        (NodeState::Ready, vec![FindingKind::HooksMissing])
    );
}

#[test]
fn a_node_that_is_gone() {
    let mut w = World::new();
    w.pass();
    w.view.apply(Change::NodeGone("node-a".into()), w.now);
    w.forget(WEB);
    let report = w.pass();
    assert_eq!((report.state, kinds(&report)), (NodeState::Gone, vec![]));
    w.wait(LEAVING_MS);
    assert_eq!(w.look().report.state, NodeState::Ready, "it expires");
    w.view.apply(
        Change::Node(Node {
            going: true,
            ..own_node()
        }),
        w.now,
    );
    assert_eq!(
        w.pass().state,
        NodeState::Ready,
        "of a state that expired the next is no new one"
    );
    w.view.apply(Change::Node(own_node()), w.now);
    w.pass();
    w.view.apply(
        Change::Node(Node {
            going: true,
            ..own_node()
        }),
        w.now,
    );
    assert_eq!(w.pass().state, NodeState::Draining);
}

#[test]
fn unreadable_is_unknown_and_not_wrong() {
    let mut w = World::new();
    let gap = Gap {
        what: "nf_tables ip".into(),
        why: "EPERM".into(),
    };
    w.snapshot
        .tables
        .insert(Family::V4, Reading::Failed(gap.clone()));
    w.snapshot.gaps.push(gap);
    w.pass();
    let report = w.pass();
    assert_eq!(kinds(&report), [FindingKind::Unreadable]);
    assert_eq!(exit_code(&report), 2);
    assert!(report.verdict.contains("EPERM"), "{}", report.verdict);
}

#[test]
fn exit_codes() {
    let mut w = World::new();
    assert_eq!(exit_code(&w.pass()), 0);
    // An API conflict is worth knowing, and no more.
    let other = crate::name::ServicePortName::new("shop", "twin", "");
    for one_of in w.desired.values_mut() {
        one_of.or(
            forward(other.clone(), &[B]),
            crate::table::Because::Conflict,
        );
    }
    w.pass();
    let report = w.pass();
    assert_eq!(
        (kinds(&report), exit_code(&report)),
        (vec![FindingKind::ApiConflict], 0)
    );
    assert_eq!(report.verdict, "All 3 judged pairs agree with the API.");
}

#[test]
fn the_text_names_what_where_and_why() {
    let mut w = World::new();
    w.pass();
    w.kernel(WEB, forward(web(), &[A, B, "10.244.3.9:8080"]));
    w.pass();
    let report = w.pass();
    let text = check_text(&report);
    let first = text.lines().next().unwrap_or_default();
    assert!(
        first.starts_with("1 finding: shop/web:http on 10.96.0.10:80/TCP still sends 1/3"),
        "{text}"
    );
    assert!(
        text.contains("    ip kube-proxy endpoint handle 7: dnat to 10.244.3.9:8080\n"),
        "{text}"
    );
    let json = check_json(&report);
    assert_eq!(
        json.findings[0].since,
        crate::report::rfc3339(report.findings[0].since)
    );
    assert_eq!(
        json.judged.pairs + json.judged.unknown + json.judged.not_comparable,
        3
    );
}

#[test]
fn the_table_has_three_rows_a_frontend() {
    let mut w = World::new();
    w.rows(Family::V4)
        .remove(&(frontend(WEB), crate::address::SourceClass::Pod));
    w.both(
        "10.96.0.10:*/*",
        crate::table::Forwarding::without_backends(None, Action::Reject),
    );
    w.kernel("10.96.0.50:80/TCP", plain(Action::Unknown("xyz".into())));
    let rows = w.pass().rows;
    let table = table_json(&rows, Side::Observed);
    let lines: Vec<String> = table
        .rows
        .iter()
        .map(|r| format!("{} {} {}", r.frontend, r.source, r.answer.action))
        .collect();
    assert_eq!(
        lines,
        [
            "10.96.0.10:80/TCP pod reject",
            "10.96.0.10:80/TCP node forward",
            "10.96.0.10:80/TCP outside forward",
            "10.96.0.10:*/* pod reject",
            "10.96.0.10:*/* node reject",
            "10.96.0.10:*/* outside reject",
            "10.96.0.50:80/TCP pod unknown",
            "10.96.0.50:80/TCP node unknown",
            "10.96.0.50:80/TCP outside unknown",
        ]
    );
    assert!(table.rows[6].answer.backends.is_empty() && table.rows[6].answer.why == Some("xyz"));
    let desired = table_json(&rows, Side::Desired);
    assert_eq!(desired.rows.len(), 6);
    assert!(
        desired
            .rows
            .iter()
            .all(|r| r.any_of.as_ref().is_some_and(|a| a.len() == 1))
    );
    let text = table_text(&rows, Side::Observed);
    assert!(
        text.starts_with("FRONTEND           SOURCE   SERVICE        ACTION"),
        "{text}"
    );
    assert_eq!(text.lines().count(), 10);
}

#[test]
fn own_rules_that_are_not_understood_are_a_finding() {
    let mut w = World::new();
    w.snapshot.coverage.unknown_in_own_rules = vec![evidence("services", "xyz")];
    w.pass();
    let report = w.pass();
    assert_eq!(
        (kinds(&report), exit_code(&report)),
        (vec![FindingKind::Unreadable], 2)
    );
}
