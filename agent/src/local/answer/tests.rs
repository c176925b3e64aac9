//! Questions in, answers out.

use super::*;
use model::address::{Frontend, Protocol, SourceClass};
use model::finding::{FindingKind, Severity};
use model::name::ServicePortName;
use model::report::{Judged, NodeState, Row};
use model::table::{Action, Affinity, Backend, Forwarding, Masquerade, OneOf};
use std::sync::Arc;

const AT: u64 = 1_700_000_000_000;

fn forward(service: &ServicePortName, backend: &str) -> Forwarding {
    Forwarding {
        service: Some(service.clone()),
        action: Action::Forward,
        backends: [Backend {
            address: backend.parse().unwrap(),
            share: 1.0,
            masquerade: Masquerade::Never,
        }]
        .into(),
        affinity: Affinity::None,
        source_ranges: None,
    }
}

/// `shop/web` differs and is converging; `test/web` and `shop/cart` agree.
fn report() -> Report {
    let port = |namespace, name| ServicePortName::new(namespace, name, "http");
    let row = |service: ServicePortName, does: &str| Row {
        frontend: Frontend::port("10.96.0.10".parse().unwrap(), Protocol::Tcp, 80),
        source: SourceClass::Pod,
        desired: Some(OneOf::certain(forward(&service, "10.244.1.5:8080"))),
        observed: Some(forward(&service, does)),
        service: Some(service),
    };
    Report {
        node: "n1".into(),
        pass: 7,
        at: Millis(AT),
        took_ms: 3,
        api_as_of: Some(Millis(AT - 500)),
        state: NodeState::Ready,
        verdict: "1 Service converges".into(),
        datapaths: Vec::new(),
        judged: Judged::default(),
        gaps: Vec::new(),
        findings: Vec::new(),
        converging: vec![Finding {
            kind: FindingKind::StaleBackend,
            severity: Severity::Critical,
            service: Some(port("shop", "web")),
            frontend: None,
            sources: Vec::new(),
            backend: Some("10.244.9.9:8080".parse().unwrap()),
            since: Millis(AT),
            evidence: Vec::new(),
            says: "sends to 10.244.9.9:8080\u{1b}[2J, which the API does not offer".into(),
            absorbs: 0,
            recurring: false,
            because: "seen once".into(),
        }],
        rows: [
            row(port("shop", "web"), "10.244.9.9:8080"),
            row(port("test", "web"), "10.244.1.5:8080"),
            row(port("shop", "cart"), "10.244.1.5:8080"),
        ]
        .map(Arc::new)
        .into(),
        conntrack: None,
        flows: None,
    }
}

fn look(fresh: bool) -> Look {
    Look {
        report: Some(Arc::new(report())),
        fresh,
    }
}

fn ask_with(target: &str, look: &Look) -> Answer {
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    match Asked::parse(path, query, false) {
        Ok(asked) => answer(&asked, look, Millis(AT + 1_500)),
        Err(answer) => *answer,
    }
}

fn ask(target: &str) -> Answer {
    ask_with(target, &look(false))
}

fn json(answer: &Answer) -> serde_json::Value {
    serde_json::from_str(&answer.body).unwrap_or_else(|e| panic!("{e}: {}", answer.body))
}

#[test]
fn a_service_is_found_by_each_way_of_naming_it() {
    for target in [
        "/svc/shop/web",
        "/svc/shop%2Fweb",
        "/svc/web?namespace=shop",
        "/svc/web?output=json&namespace=shop",
    ] {
        let answer = ask(target);
        assert_eq!(answer.status, 200, "{target}: {}", answer.body);
        let all = json(&answer);
        assert!(
            answer
                .body
                .starts_with("{\n  \"verdict\": \"shop/web on n1: converging: sends to")
        );
        assert_eq!(all["converging"][0]["kind"], "stale_backend");
        assert_eq!(all["rows"].as_array().unwrap().len(), 1);
        assert_eq!(all["rows"][0]["state"], "converging");
        assert_eq!(all["data"]["age_seconds"], 1.5);
        assert_eq!(all["data"]["api_view_age_seconds"], 2.0);
    }
    assert_eq!(json(&ask("/svc/cart"))["service"], "shop/cart");
    let text = ask("/svc/shop/web?output=text").body;
    assert!(
        text.contains("difference   sends to 10.244.9.9:8080, which the API does not offer"),
        "{text}"
    );
    assert!(text.contains("kernel read 1.5 s ago, against"), "{text}");
}

#[test]
fn what_a_name_does_not_mean_is_said_with_what_exists() {
    let several = ask("/svc/web");
    assert_eq!(several.status, 300);
    assert_eq!(
        json(&several)["choices"],
        serde_json::json!(["/svc/shop/web", "/svc/test/web"])
    );
    for (target, first) in [
        ("/svc/prod/web", "/svc/shop/web"),
        ("/svc/test/cart", "/svc/shop/cart"),
        ("/svc/test/nothing", "/svc/test/web"),
        ("/svc/nothing", "/svc/shop/cart"),
    ] {
        let answer = ask(target);
        assert_eq!(
            (answer.status, answer.kind),
            (404, "application/problem+json"),
            "{target}"
        );
        assert_eq!(json(&answer)["exists"][0], first, "{target}");
    }
    assert!(
        ask("/svc/nothing?output=text")
            .body
            .contains("\n  /svc/shop/web\n")
    );
}

#[test]
fn wrong_questions_are_400_or_404_and_named() {
    for target in ["/svc", "/svc/", "/svc/a/b/c", "/nodes", "/node/", "//", ""] {
        let answer = ask(target);
        assert_eq!(answer.status, 404, "{target:?}");
        assert_eq!(json(&answer)["exists"][0], "/svc/{name}");
    }
    for target in [
        "/node?output=xml",
        "/node?fresh",
        "/node?fresh=no",
        "/node?colour=red",
        "/svc/%",
        "/svc/%zz",
        "/svc/%ff",
        "/svc/web?namespace=%c3",
    ] {
        assert_eq!(ask(target).status, 400, "{target}");
    }
}

#[test]
fn an_answer_says_whether_it_is_fresh() {
    let fresh = json(&ask_with("/svc/cart?fresh=wait", &look(true)));
    assert_eq!(fresh["data"]["fresh"], true);
    assert!(fresh["data"]["not_fresh"].is_null());
    let late = ask_with("/svc/cart?fresh=wait", &look(false));
    assert_eq!(late.status, 200, "the last known, not an error");
    assert_eq!(json(&late)["data"]["fresh"], false);
    assert!(late.body.contains("last known"));
    let text = ask_with("/findings?output=text&fresh=wait", &look(true)).body;
    assert!(
        text.contains("1.5 s ago, after the question, against"),
        "{text}"
    );
    let text = ask_with("/findings?output=text&fresh=wait", &look(false)).body;
    assert!(text.contains("last known"), "{text}");
}

#[test]
fn before_the_first_pass_nothing_is_said_of_the_node() {
    let none = Look {
        report: None,
        fresh: false,
    };
    for target in ["/svc/web", "/node", "/findings", "/healthz"] {
        assert_eq!(ask_with(target, &none).status, 503, "{target}");
    }
    assert_eq!(ask_with("/", &none).status, 200);
}

#[test]
fn an_agent_that_does_not_look_any_more_is_ill() {
    let (asked, _) = (Asked::parse("/healthz", None, false).unwrap(), ());
    assert_eq!(
        answer(&asked, &look(false), Millis(AT + 120_000)).status,
        200
    );
    let ill = answer(&asked, &look(false), Millis(AT + 120_001));
    assert_eq!(ill.status, 503);
    assert!(ill.body.contains("2 min 0 s ago"), "{}", ill.body);
}

#[test]
fn node_and_findings_have_the_fields_of_check() {
    let node = json(&ask("/node"));
    for field in [
        "verdict",
        "node",
        "judged",
        "findings",
        "converging",
        "data",
    ] {
        assert!(!node[field].is_null(), "{field}");
    }
    let findings = json(&ask("/findings"));
    assert_eq!(findings["converging"][0]["service"], "shop/web:http");
}

#[test]
fn connection_tracking_has_its_own_age() {
    use model::capture::{Gap, Reading};
    use model::conntrack::{ConntrackReading, Counter, Counters, Meter, Sample};
    let asked = |reading: Option<Reading<model::conntrack::Conntrack>>, target: &str| {
        let at = Millis(AT - 2_000);
        let conntrack = reading.map(|reading| Arc::new(ConntrackReading { at, reading }));
        let report = Report {
            conntrack,
            ..report()
        };
        let look = Look {
            report: Some(Arc::new(report)),
            fresh: false,
        };
        ask_with(target, &look)
    };
    let mut sample = Sample {
        entries: 900,
        limit: 1_000,
        ..Sample::default()
    };
    sample.cpus.push(model::conntrack::CpuCounters {
        cpu: 0,
        counters: [(Counter::Drop, 7)].into_iter().collect::<Counters<u32>>(),
    });
    let table = Meter::default().take(model::time::Mono(0), sample);
    let answer = json(&asked(Some(Reading::Read(table.clone())), "/conntrack"));
    assert_eq!(answer["entries"], 900);
    assert_eq!(answer["counters"][0]["total"], 7);
    let age = answer["age_seconds"].as_f64().unwrap();
    let node = json(&asked(Some(Reading::Read(table.clone())), "/node"));
    let report_age = node["data"]["age_seconds"].as_f64().unwrap();
    assert!((age - report_age - 2.0).abs() < 1e-6, "{age} {report_age}");
    let text = asked(Some(Reading::Read(table)), "/conntrack?output=text").body;
    assert!(text.starts_with("n1: 90 % full (900 of 1,000)"), "{text}");
    let failed = Reading::Failed(Gap {
        what: "conntrack".into(),
        why: "needs CAP_NET_ADMIN".into(),
    });
    for (reading, says) in [
        (Some(failed), "CAP_NET_ADMIN"),
        (Some(Reading::Absent), "has no connection tracking"),
        (None, "not looked at"),
    ] {
        let answer = asked(reading, "/conntrack?output=text");
        assert_eq!(answer.status, 503);
        assert!(answer.body.contains(says), "{}", answer.body);
    }
}

#[test]
fn no_answer_steers_a_terminal() {
    for target in [
        "/svc/shop/web",
        "/svc/shop/web?output=text",
        "/node?output=text",
        "/findings?output=text",
        "/svc/%1b%5b2J",
        "/svc/%1b%5b2J?output=text",
        "/%1b%5b2J?output=text",
    ] {
        let body = ask(target).body;
        assert!(!body.contains('\u{1b}'), "{target}: {body:?}");
    }
}
