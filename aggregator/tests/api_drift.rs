//! What the API alone says is wrong, in `/drift` and in the metrics: each since when, as long as it
//! lasts, and nothing where the API is not known.

use aggregator::api_drift::ApiDrift;
use aggregator::fleet::Fleet;
use aggregator::metrics::metrics;
use aggregator::view::View;
use aggregator::view::drift::{DriftView, Filter, drift};
use aggregator::view::nodes::Page;
use cluster::trim::objects as trim;
use model::finding::{FindingKind, Severity};
use model::flow::store::{Change, Kind};
use model::flow::{Check, Objects, Sweep, api_findings};
use model::time::{Millis, Mono, Now};
use serde_json::json;

const PAGE: Page = Page {
    from: 0,
    limit: 100,
};

fn at(seconds: u64) -> Now {
    Now {
        mono: Mono(seconds * 1000),
        wall: Millis(1_700_000_000_000 + seconds * 1000),
    }
}

fn alive(objects: &mut Objects, seconds: u64) {
    for kind in Kind::ALL {
        objects.apply(Change::Alive(kind), at(seconds));
    }
}

fn service(objects: &mut Objects, namespace: &str, name: &str, target: &str, seconds: u64) {
    // An address of its own.
    let n: u32 = format!("{namespace}/{name}")
        .bytes()
        .fold(0, |n, b| (n * 31 + u32::from(b)) % 0xff_ffff);
    let [_, a, b, c] = n.to_be_bytes();
    let address = format!("10.{a}.{b}.{c}");
    let service = json!({"metadata": {"namespace": namespace, "name": name, "uid": "u1"},
        "spec": {"clusterIP": address, "selector": {"app": name},
                 "ports": [{"name": "http", "port": 80, "targetPort": target}]},
        "status": {"loadBalancer": {}}});
    let change = Change::Service(trim::service_object(&service).unwrap());
    objects.apply(change, at(seconds));
}

/// `shop/web` with a ready Pod and its slice; `shop/none` and `other/none` whose selectors match nothing.
fn objects() -> Objects {
    let mut objects = Objects::default();
    service(&mut objects, "shop", "web", "http", 0);
    service(&mut objects, "shop", "none", "http", 0);
    service(&mut objects, "other", "none", "http", 0);
    let node = json!({"metadata": {"name": "n1"}});
    objects.apply(Change::Node(trim::node_object(&node).unwrap()), at(0));
    let pod = json!({"metadata": {"namespace": "shop", "name": "web-1", "labels": {"app": "web"}},
        "spec": {"nodeName": "n1", "containers": [
            {"name": "web", "ports": [{"name": "http", "containerPort": 8080}]}]},
        "status": {"phase": "Running", "podIPs": [{"ip": "10.244.1.5"}],
            "conditions": [{"type": "Ready", "status": "True"}]}});
    objects.apply(Change::Pod(trim::pod(&pod).unwrap()), at(0));
    let slice = json!({"metadata": {"namespace": "shop", "name": "web-x",
            "labels": {"kubernetes.io/service-name": "web",
                       "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"}},
        "addressType": "IPv4", "ports": [{"name": "http", "port": 8080}],
        "endpoints": [{"addresses": ["10.244.1.5"], "nodeName": "n1",
            "conditions": {"ready": true, "serving": true, "terminating": false},
            "targetRef": {"kind": "Pod", "name": "web-1"}}]});
    objects.apply(Change::Slice(trim::slice_object(&slice).unwrap()), at(0));
    alive(&mut objects, 0);
    alive(&mut objects, 999);
    objects
}

fn walked(last: &ApiDrift, objects: &Objects, seconds: u64) -> ApiDrift {
    last.next(api_findings(objects, at(seconds)), at(seconds))
}

fn asked(api: &ApiDrift, filter: Filter, seconds: u64) -> DriftView {
    drift(&Fleet::default(), api, &filter, PAGE, at(seconds))
}

fn found(view: &DriftView) -> Vec<(&str, &str, f64)> {
    let all = view.api.findings.iter();
    all.map(|f| (f.service.as_str(), f.check, f.age_seconds))
        .collect()
}

#[test]
fn a_finding_lasts_from_the_first_walk_that_had_it_and_is_gone_with_the_next_that_has_not() {
    let mut objects = objects();
    let first = walked(&ApiDrift::not_yet(), &objects, 1_000);
    // What follows from the selector comes after it, whoever's it is.
    let none = "selector_matches_nothing";
    let view = asked(&first, Filter::default(), 1_010);
    let all = found(&view);
    assert_eq!(
        all[..2],
        [("other/none", none, 10.0), ("shop/none", none, 10.0)]
    );
    assert!(
        all[2..].iter().all(|f| f.1 != none && f.0 != "shop/web"),
        "{all:?}"
    );
    assert!(all.len() > 2);
    let says = "of the API: other/none: app=none matches nothing: namespace other has";
    assert!(view.verdict.contains(says), "{}", view.verdict);

    // A port that no Pod has, from the second walk on; the others are as old as they are.
    service(&mut objects, "shop", "web", "https", 1_015);
    alive(&mut objects, 1_015);
    let second = walked(&first, &objects, 1_020);
    let view = asked(&second, Filter::default(), 1_030);
    let all = found(&view);
    assert!(all.contains(&("shop/none", none, 30.0)), "{all:?}");
    assert!(
        all.contains(&("shop/web", "target_port_unknown", 10.0)),
        "{all:?}"
    );

    service(&mut objects, "shop", "web", "http", 1_035);
    alive(&mut objects, 1_035);
    let third = walked(&second, &objects, 1_040);
    let view = asked(&third, Filter::default(), 1_040);
    assert!(
        !found(&view).iter().any(|f| f.0 == "shop/web"),
        "{:?}",
        found(&view)
    );
}

#[test]
fn filters_ask_for_one_side() {
    let api = walked(&ApiDrift::not_yet(), &objects(), 1_000);
    let count = |filter: Filter| asked(&api, filter, 1_010).api.findings.len();
    let all = count(Filter::default());
    let namespace = |n: &str| Filter {
        namespace: Some(n.into()),
        ..Filter::default()
    };
    assert_eq!(count(namespace("shop")) + count(namespace("other")), all);
    assert_eq!(count(namespace("none")), 0);
    let check = Filter {
        check: Some(Check::SelectorMatchesNothing),
        ..Filter::default()
    };
    assert_eq!(count(check), 2);
    for filter in [
        Filter {
            kind: Some(FindingKind::StaleBackend),
            ..Filter::default()
        },
        Filter {
            node: Some("n1".into()),
            ..Filter::default()
        },
        Filter {
            severity: Some(Severity::Critical),
            ..Filter::default()
        },
        Filter {
            age_ms: 11_000,
            ..Filter::default()
        },
    ] {
        assert_eq!(count(filter.clone()), 0, "{filter:?}");
    }
}

#[test]
fn pages_go_on_from_the_nodes_findings_into_the_apis() {
    let api = walked(&ApiDrift::not_yet(), &objects(), 1_000);
    let all = asked(&api, Filter::default(), 1_010).api.findings.len();
    let mut seen = Vec::new();
    for from in 0..all {
        let page = Page { from, limit: 1 };
        let view = drift(&Fleet::default(), &api, &Filter::default(), page, at(1_010));
        assert_eq!((view.page.total, view.api.findings.len()), (all, 1));
        seen.extend(found(&view).iter().map(|f| format!("{f:?}")));
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), all);
}

#[test]
fn what_the_api_said_last_is_shown_as_such_and_is_in_no_metric() {
    let objects = objects();
    let known = walked(&ApiDrift::not_yet(), &objects, 1_000);
    let silent = walked(&known, &objects, 5_000);
    let why = silent.unknown.clone().unwrap();
    assert!(
        why.starts_with("nothing new from the API server for 1 h"),
        "{why}"
    );
    let view = asked(&silent, Filter::default(), 5_000);
    assert_eq!(view.api.age_seconds, Some(4_000.0));
    assert!(!view.api.findings.is_empty());
    let text = view.text();
    assert!(
        text.contains("the API's objects, looked at 1 h 6 min ago"),
        "{text}"
    );
    assert!(
        text.contains(&format!("not known: {}", &why[..20])),
        "{text}"
    );

    let exported = |api: &ApiDrift| metrics(&Fleet::default(), api, at(5_000)).unwrap();
    let text = exported(&known);
    for line in [
        "vipwitness_api_objects_known 1",
        "vipwitness_api_findings{check=\"selector_matches_nothing\",weight=\"fault\"} 2",
        "vipwitness_api_service_finding{check=\"selector_matches_nothing\",namespace=\"shop\",service=\"none\"} 1",
    ] {
        assert!(text.contains(line), "{text}");
    }
    // What only follows is counted, and names nobody.
    let names = text
        .lines()
        .filter(|l| l.starts_with("vipwitness_api_service_finding{"));
    assert_eq!(names.count(), 2, "{text}");
    let text = exported(&silent);
    assert!(text.contains("vipwitness_api_objects_known 0"), "{text}");
    assert!(!text.contains("vipwitness_api_findings{"), "{text}");
    // Not followed: no series at all.
    assert!(!exported(&ApiDrift::default()).contains("vipwitness_api_objects_known "));
}

#[test]
fn series_by_name_are_bounded_and_the_count_is_not() {
    let mut objects = Objects::default();
    for n in 0..700 {
        service(&mut objects, "shop", &format!("none-{n}"), "http", 0);
    }
    alive(&mut objects, 0);
    alive(&mut objects, 999);
    let api = walked(&ApiDrift::not_yet(), &objects, 1_000);
    let text = metrics(&Fleet::default(), &api, at(1_000)).unwrap();
    let names = text
        .lines()
        .filter(|l| l.starts_with("vipwitness_api_service_finding{"));
    assert_eq!(names.count(), 500);
    let all = "vipwitness_api_findings{check=\"selector_matches_nothing\",weight=\"fault\"} 700";
    assert!(text.contains(all), "{text}");
}

/// In parts, however small, a walk finds what it finds at once.
#[test]
fn a_walk_in_parts_finds_the_same() {
    let objects = objects();
    let whole = api_findings(&objects, at(1_000)).unwrap();
    for many in 1..5 {
        let mut sweep = Sweep::begin(&objects);
        while sweep.step(&objects, at(1_000), many).unwrap() {}
        assert_eq!(sweep.found(), whole, "{many} at once");
    }
}
