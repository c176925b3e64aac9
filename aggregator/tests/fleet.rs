//! A fleet of hand-made reports, asked every question.

mod reports;

use aggregator::api_drift::ApiDrift;
use aggregator::fleet::{Event, Fleet, Refused};
use aggregator::view::drift::{Filter, drift};
use aggregator::view::everywhere::everywhere;
use aggregator::view::nodes::{Page, nodes};
use aggregator::view::service::{NoService, resolve, service};
use aggregator::view::{View, node, words};
use model::flow::Api;
use model::name::{NodeName, ServiceName};
use model::time::{Millis, Mono, Now};
use reports::{AT, agrees, drifted, evil, named, whole_node};
use std::sync::Arc;

const OFF: Api<'static> = Api::NotKnown("it is off");
const PAGE: Page = Page {
    from: 0,
    limit: 500,
};

fn at(seconds: u64) -> Now {
    Now {
        mono: Mono(seconds * 1000),
        wall: Millis(AT + seconds * 1000),
    }
}

fn connect(fleet: &mut Fleet, node: &str, connection: u64) {
    let event = Event::Connected {
        connection,
        agent_version: "0.1.0".into(),
    };
    fleet.apply(&NodeName::from(node), event, at(0)).unwrap();
}

fn tell(fleet: &mut Fleet, report: model::report::Report, connection: u64) {
    let node = report.node.clone();
    connect(fleet, &node.0, connection);
    let event = Event::Report {
        connection,
        report: Arc::new(report),
        sent_at: Millis(AT + 500),
    };
    fleet.apply(&node, event, at(0)).unwrap();
}

fn fleet() -> Fleet {
    let mut fleet = Fleet::default();
    tell(&mut fleet, drifted("n17"), 1);
    tell(&mut fleet, drifted("n22"), 2);
    for i in 0..5 {
        tell(&mut fleet, agrees(&format!("ok{i}")), 10 + i);
    }
    fleet
}

#[test]
fn an_incident_reads_what_is_wanted_done_and_proven() {
    let web = ServiceName::new("shop", "web");
    let text = service(&fleet(), "n17", &web, at(1)).unwrap().text();
    let expected = "\
shop/web on n17: sends to 10.244.9.9:8080, which the API does not offer (for 13 s)
kernel read 1.5 s ago, against the API as of 1.7 s ago; agent connected

10.96.0.10:80/TCP  shop/web:http  from pod: DIFFERS
  API wants    forward to 10.244.1.5:8080 50 %, 10.244.2.6:8080 50 %
  kernel does  forward to 10.244.1.5:8080 50 %, 10.244.9.9:8080 50 %
  difference   sends nothing to 10.244.2.6:8080
  difference   sends to 10.244.9.9:8080, which the API does not offer

10.96.0.10:80/TCP  shop/web:http  from node, outside: agrees
  API wants    forward to 10.244.1.5:8080 50 %, 10.244.2.6:8080 50 %
  kernel does  forward to 10.244.1.5:8080 50 %, 10.244.2.6:8080 50 %

Findings
  critical stale_backend  shop/web:http  10.96.0.10:80/TCP  from pod
    sends to 10.244.9.9:8080, which the API does not offer
    since  2023-11-14T22:13:08.000Z (13 s ago); seen whole before
    proof  ip kube-proxy service-ips handle 42 { 10.96.0.10 . tcp . 80 }: leads to the chain

Other nodes: 5 other nodes agree with the API, 1 differs (n22)
";
    assert_eq!(text, expected);
}

#[test]
fn nodes_are_grouped_by_what_they_do_outliers_first() {
    let view = everywhere(&fleet(), OFF, &ServiceName::new("shop", "web"), at(1)).unwrap();
    assert_eq!(
        view.verdict,
        "shop/web: 2 nodes send to 10.244.9.9:8080, which the API does not offer \
         (10.96.0.10:80/TCP): n17, n22; 5 nodes agree with the API"
    );
    assert_eq!(view.groups.len(), 2);
    assert!(view.text().contains("oldest reading 1.5 s ago"));
    let missing = everywhere(&fleet(), OFF, &ServiceName::new("other", "web"), at(1)).unwrap_err();
    assert_eq!(missing.exists[0], "/svc/shop/web");
}

#[test]
fn the_worst_node_is_first_and_the_silent_one_is_not_last() {
    let mut f = fleet();
    let left = Event::Disconnected { connection: 12 };
    f.apply(&NodeName::from("ok2"), left, at(1)).unwrap();
    let view = nodes(&f, PAGE, at(1));
    let order: Vec<&str> = view.nodes.iter().map(|n| n.node.as_str()).collect();
    assert_eq!(order[..3], ["n17", "n22", "ok2"]);
    assert_eq!(view.verdict, "2 of 7 nodes with findings; 1 silent");
    assert!(view.text().contains("SILENT"), "{}", view.text());
    let part = nodes(&f, Page { from: 2, limit: 2 }, at(1));
    assert_eq!(
        (part.page.next, part.page.total, part.nodes.len()),
        (Some(4), 7, 2)
    );
    assert!(
        part.text()
            .contains("2 of 7 shown, from 2; the next with from=4")
    );
}

#[test]
fn a_bare_name_that_several_services_have_is_refused_with_the_choices() {
    let mut f = fleet();
    tell(
        &mut f,
        named("two", &[("shop", "web"), ("test", "web"), ("test", "db")]),
        50,
    );
    let Err(NoService::Ambiguous(choices)) = resolve(&f, "two", "web", None) else {
        panic!()
    };
    assert_eq!(
        choices.choices,
        ["/nodes/two/svc/shop/web", "/nodes/two/svc/test/web"]
    );
    let db = ServiceName::new("test", "db");
    assert_eq!(resolve(&f, "two", "db", None).unwrap(), db);
    assert_eq!(resolve(&f, "two", "test/db", None).unwrap(), db);
    assert_eq!(resolve(&f, "two", "db", Some("test")).unwrap(), db);
    let Err(NoService::NotFound(n)) = resolve(&f, "two", "wbe", None) else {
        panic!()
    };
    assert!(n.detail.contains("wbe") && n.exists.len() == 3, "{n:?}");
}

#[test]
fn a_finding_about_the_whole_node_reaches_its_services_and_nothing_is_invented() {
    let mut f = Fleet::default();
    tell(&mut f, whole_node("n1"), 1);
    let web = service(&f, "n1", &ServiceName::new("shop", "web"), at(1)).unwrap();
    assert_eq!(web.findings.len(), 1);
    assert!(web.verdict.contains("no hook leads"), "{}", web.verdict);
    // Not equal, and in no finding: not judged, never different.
    let mut unjudged = drifted("n2");
    unjudged.findings.clear();
    tell(&mut f, unjudged, 2);
    let text = service(&f, "n2", &ServiceName::new("shop", "web"), at(1))
        .unwrap()
        .text();
    assert!(
        text.contains("not judged") && !text.contains("DIFFERS"),
        "{text}"
    );
}

#[test]
fn strangers_names_reach_nobodys_terminal_label_or_table() {
    let mut f = Fleet::default();
    let report = evil();
    let node = report.node.clone();
    tell(&mut f, report, 1);
    let web = f.nodes[&node]
        .said
        .as_ref()
        .unwrap()
        .services
        .keys()
        .next()
        .unwrap()
        .clone();
    let now = at(1);
    let mut all = vec![
        nodes(&f, PAGE, now).text(),
        node::node(&f, &node.0, now).unwrap().text(),
        service(&f, &node.0, &web, now).unwrap().text(),
        everywhere(&f, OFF, &web, now).unwrap().text(),
        drift(&f, &ApiDrift::default(), &Filter::default(), PAGE, now).text(),
        aggregator::metrics::metrics(&f, &ApiDrift::default(), now).unwrap(),
    ];
    all.push(words::json(&service(&f, &node.0, &web, now).unwrap()).unwrap());
    all.push(
        words::json(&drift(
            &f,
            &ApiDrift::default(),
            &Filter::default(),
            PAGE,
            now,
        ))
        .unwrap(),
    );
    for text in all {
        let bad = text
            .chars()
            .find(|c| (c.is_control() && *c != '\n') || *c == '\u{202e}');
        assert_eq!(bad, None, "{text}");
        assert!(!text.lines().any(|l| l.starts_with("FAKE")), "{text}");
    }
}

#[test]
fn order_of_nodes_does_not_matter_and_old_connections_have_no_say() {
    let reports =
        || ["n17", "a", "b", "c"].map(|n| if n == "n17" { drifted(n) } else { agrees(n) });
    let mut one = Fleet::default();
    for (i, r) in reports().into_iter().enumerate() {
        tell(&mut one, r, i as u64 + 1);
    }
    let mut other = Fleet::default();
    for (i, r) in reports().into_iter().enumerate().rev() {
        tell(&mut other, r.clone(), i as u64 + 1);
        let node = r.node.clone();
        let again = Event::Report {
            connection: i as u64 + 1,
            report: Arc::new(r),
            sent_at: Millis(AT + 500),
        };
        other.apply(&node, again, at(0)).unwrap();
    }
    let shown = |f: &Fleet| words::json(&nodes(f, PAGE, at(3))).unwrap();
    assert_eq!(shown(&one), shown(&other));

    let a = NodeName::from("a");
    connect(&mut one, "a", 90);
    let late = Event::Disconnected { connection: 2 };
    assert_eq!(one.apply(&a, late, at(4)), Err(Refused::Superseded));
    assert!(one.nodes[&a].connected(at(4)));
}

#[test]
fn silence_ages_and_heartbeats_refresh() {
    let mut f = fleet();
    let n = NodeName::from("n17");
    assert!(f.nodes[&n].connected(at(14)) && !f.nodes[&n].connected(at(15)));
    let beat = Event::Heartbeat {
        connection: 1,
        pass: 9,
        at: Millis(AT + 20_000),
        took_ms: 3,
        api_as_of: Some(Millis(AT + 19_000)),
        conntrack: None,
        flows: None,
        sent_at: Millis(AT + 20_100),
    };
    f.apply(&n, beat, at(20)).unwrap();
    let said = f.nodes[&n].said.as_ref().unwrap();
    assert_eq!((said.age_ms(at(20)), said.pass), (100, 9));
    assert!(f.nodes[&n].connected(at(21)));
    // Metrics of silent nodes are those that say so, and no others.
    let text = aggregator::metrics::metrics(&f, &ApiDrift::default(), at(21)).unwrap();
    assert!(
        text.contains("vipwitness_agent_connected{node=\"n17\"} 1"),
        "{text}"
    );
    assert!(text.contains("vipwitness_agent_connected{node=\"n22\"} 0"));
    assert!(text.contains("vipwitness_service_finding{kind=\"stale_backend\",namespace=\"shop\",node=\"n17\",service=\"web\",severity=\"critical\"} 1"));
    assert!(text.contains("vipwitness_agents{state=\"connected\"} 1"));
    assert!(text.contains("vipwitness_agents{state=\"silent\"} 6"));
    assert!(text.contains("vipwitness_node_state{node=\"n22\",state=\"ready\"} 1"));
    assert!(text.contains("vipwitness_pass_duration_seconds{node=\"n17\"} 0.003"));
    assert!(!text.contains(
        "vipwitness_service_finding{kind=\"stale_backend\",namespace=\"shop\",node=\"n22\""
    ));
    f.apply(&n, Event::Disconnected { connection: 1 }, at(22))
        .unwrap();
    f.forget(at(22 + 24 * 3600));
    assert!(!f.nodes.contains_key(&n));
}

#[test]
fn a_replica_that_hears_nobody_says_so_and_a_dead_watch_is_told_from_a_sync_that_hangs() {
    let metrics = |f: &Fleet| aggregator::metrics::metrics(f, &ApiDrift::default(), at(1)).unwrap();
    let text = metrics(&Fleet::default());
    assert!(
        text.contains("vipwitness_agents{state=\"connected\"} 0"),
        "{text}"
    );
    let mut f = Fleet::default();
    for (node, proof, connection) in [
        ("watch", model::finding::WATCH_DEAD, 1),
        (
            "sync",
            "sync_proxy_rules_last_queued_timestamp_seconds is later",
            2,
        ),
    ] {
        let mut report = whole_node(node);
        report.findings[0].kind = model::finding::FindingKind::ProxyStuck;
        report.findings[0].evidence[0].says = proof.into();
        tell(&mut f, report, connection);
    }
    // The proof alone is not enough.
    let mut report = whole_node("hooks");
    report.findings[0].evidence[0].says = model::finding::WATCH_DEAD.into();
    tell(&mut f, report, 3);
    let text = metrics(&f);
    let stuck: Vec<&str> = text
        .lines()
        .filter(|l| l.starts_with("vipwitness_proxy_stuck{"))
        .collect();
    assert_eq!(
        stuck,
        [
            "vipwitness_proxy_stuck{node=\"sync\",reason=\"sync\"} 1",
            "vipwitness_proxy_stuck{node=\"watch\",reason=\"watch\"} 1",
        ]
    );
}

#[test]
fn drift_filters_and_pages() {
    let f = fleet();
    let count = |filter: Filter| {
        drift(&f, &ApiDrift::default(), &filter, PAGE, at(1))
            .findings
            .len()
    };
    assert_eq!(count(Filter::default()), 2);
    assert_eq!(
        count(Filter {
            node: Some("n22".into()),
            ..Filter::default()
        }),
        1
    );
    assert_eq!(
        count(Filter {
            namespace: Some("other".into()),
            ..Filter::default()
        }),
        0
    );
    assert_eq!(
        count(Filter {
            age_ms: 60_000,
            ..Filter::default()
        }),
        0
    );
    assert_eq!(
        count(Filter {
            severity: Some(model::finding::Severity::Critical),
            ..Filter::default()
        }),
        2
    );
    let page = drift(
        &f,
        &ApiDrift::default(),
        &Filter::default(),
        Page { from: 0, limit: 1 },
        at(1),
    );
    assert_eq!((page.page.next, page.findings.len()), (Some(1), 1));
    assert!(page.text().contains("1 of 2 shown"));
}
