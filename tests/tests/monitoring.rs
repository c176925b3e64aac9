//! Rules, runbooks and dashboards: complete, and about series that the aggregator exports.

use std::collections::BTreeSet;
use std::sync::Arc;

use aggregator::api_drift::ApiDrift;
use aggregator::fleet::{Event, Fleet};
use model::capture::{Gap, Reading};
use model::conntrack::{Conntrack, ConntrackReading, Counter, Filling, Forecast};
use model::finding::{Finding, FindingKind, Severity, WATCH_DEAD};
use model::flow::{ApiFinding, Check, Weight};
use model::name::{NodeName, ServiceName, ServicePortName};
use model::report::{Judged, NodeState, NotJudged, Report};
use model::time::{Millis, Mono, Now};
use serde_yaml_ng::Value;
use tests::monitoring::{Rules, Series, folder};

const RUNBOOKS: &str = "https://github.com/vipwitness/vipwitness/blob/main/dashboards/runbooks/";

/// A table that fills, of a kernel that tells every counter.
fn conntrack() -> Conntrack {
    Conntrack {
        entries: 900,
        limit: 1_000,
        buckets: Some(250),
        timeouts: Default::default(),
        totals: Counter::ALL.into_iter().map(|c| (c, 1)).collect(),
        recent: None,
        forecast: Forecast::Filling(Filling {
            seconds: 100.0,
            earliest: 80.0,
            latest: 150.0,
            per_second: 1.0,
            seen_seconds: 300,
        }),
    }
}

/// What the API alone says is wrong.
fn api_finding() -> ApiFinding {
    ApiFinding {
        service: ServiceName::new("shop", "web"),
        step: 2,
        finding: model::flow::Finding {
            check: Check::TargetPortUnknown,
            weight: Weight::Fault,
            follows_from: None,
            says: "no Pod has it".into(),
            evidence: Vec::new(),
            evidence_total: 0,
        },
    }
}

/// Every series that the aggregator can export.
fn metrics() -> String {
    let finding = |kind: FindingKind, service: Option<ServicePortName>, proof: &str| Finding {
        kind,
        severity: Severity::Warning,
        service,
        frontend: None,
        sources: Vec::new(),
        backend: None,
        since: Millis(1_000),
        evidence: vec![model::finding::Evidence {
            family: "".into(),
            table: "".into(),
            chain: "".into(),
            handle: None,
            element: None,
            says: proof.into(),
        }],
        says: String::new(),
        absorbs: 0,
        recurring: false,
        because: String::new(),
    };
    let mut judged = Judged {
        pairs: 10,
        ..Judged::default()
    };
    judged.not(NotJudged::Unreadable, 1);
    judged.not(NotJudged::NodeState, 1);
    let web = ServicePortName::new("shop", "web", "http");
    let report = Report {
        node: NodeName::from("n1"),
        pass: 1,
        at: Millis(2_000),
        took_ms: 5,
        api_as_of: Some(Millis(1_900)),
        state: NodeState::Ready,
        verdict: String::new(),
        datapaths: Vec::new(),
        judged,
        gaps: vec![Gap {
            what: "links".into(),
            why: "EPERM".into(),
        }],
        findings: vec![
            finding(FindingKind::StaleBackend, Some(web), ""),
            finding(FindingKind::ProxyStuck, None, WATCH_DEAD),
        ],
        converging: Vec::new(),
        rows: Vec::new().into(),
        conntrack: Some(Arc::new(ConntrackReading {
            at: Millis(2_000),
            reading: Reading::Read(conntrack()),
        })),
        flows: None,
    };
    let mut fleet = Fleet::default();
    let now = Now {
        mono: Mono(0),
        wall: Millis(2_000),
    };
    let connected = Event::Connected {
        connection: 1,
        agent_version: "0.1.0".into(),
    };
    let told = Event::Report {
        connection: 1,
        report: Arc::new(report),
        sent_at: Millis(2_000),
    };
    for event in [connected, told] {
        fleet.apply(&NodeName::from("n1"), event, now).unwrap();
    }
    let api = ApiDrift::not_yet().next(Ok(vec![api_finding()]), now);
    aggregator::metrics::metrics(&fleet, &api, now).unwrap()
}

#[test]
fn every_alert_says_how_bad_it_is_why_it_waits_and_what_to_do() {
    let rules = Rules::read().unwrap();
    let text = std::fs::read_to_string(tests::monitoring::rules_file()).unwrap();
    let mut names = BTreeSet::new();
    for (name, alert) in rules.alerts() {
        assert!(names.insert(name.to_owned()), "two alerts {name}");
        let severity = alert.labels.get("severity").map(String::as_str);
        assert!(
            matches!(
                severity,
                Some("critical" | "warning" | "info" | "{{ $labels.severity }}")
            ) || severity.is_some_and(|s| s.ends_with("}}info{{ else }}warning{{ end }}")),
            "{name}: severity {severity:?}"
        );
        for text in ["summary", "description"] {
            assert!(
                alert.annotations.get(text).is_some_and(|t| t.len() > 20),
                "{name}: no {text}"
            );
        }
        assert_eq!(
            alert.annotations.get("runbook_url"),
            Some(&format!("{RUNBOOKS}{name}.md"))
        );
        assert!(alert.r#for.is_some(), "{name} waits for nothing");
        let runbook = folder().join("runbooks").join(format!("{name}.md"));
        let runbook = std::fs::read_to_string(&runbook).unwrap_or_default();
        for part in [
            "**What it says.**",
            "**What users see.**",
            "**Look.**",
            "**Do.**",
            "**It clears**",
            "**When it is silent.**",
        ] {
            assert!(runbook.contains(part), "the runbook of {name} lacks {part}");
        }
        assert!(runbook.contains('`'), "the runbook of {name} runs nothing");
    }
    assert!(names.len() >= 12, "{} alerts", names.len());
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    for (n, line) in lines.iter().enumerate() {
        if line.starts_with("for: ") {
            let reason = lines[n - 1];
            assert!(reason.starts_with("# `for`: "), "line {}: no reason", n + 1);
        }
    }
    for file in std::fs::read_dir(folder().join("runbooks")).unwrap() {
        let name = file.unwrap().file_name().into_string().unwrap();
        let name = name.trim_end_matches(".md");
        assert!(names.contains(name), "a runbook without an alert: {name}");
    }
}

#[test]
fn every_kind_of_finding_has_an_alert() {
    let rules = Rules::read().unwrap();
    for kind in FindingKind::ALL {
        assert!(
            rules.alerts().any(|(_, a)| a.expr.contains(kind.word())),
            "no alert for {kind}"
        );
    }
}

#[test]
fn every_alert_has_a_case_in_which_it_fires_and_a_near_miss() {
    let path = folder().join("vipwitness.rules.test.yml");
    let text = std::fs::read_to_string(path).unwrap();
    let cases: Value = serde_yaml_ng::from_str(&text).unwrap();
    let (mut fires, mut silent) = (BTreeSet::new(), BTreeSet::new());
    for case in cases["tests"].as_sequence().unwrap() {
        for check in case["alert_rule_test"].as_sequence().unwrap() {
            let name = check["alertname"].as_str().unwrap().to_owned();
            if !check["exp_alerts"].as_sequence().unwrap().is_empty() {
                fires.insert(name);
            } else if case["name"].as_str().unwrap().contains("near miss") {
                silent.insert(name);
            }
        }
    }
    for (name, _) in Rules::read().unwrap().alerts() {
        assert!(fires.contains(name), "{name} never fires");
        assert!(silent.contains(name), "{name} has no near miss");
    }
}

#[test]
fn rules_ask_for_series_and_labels_that_the_aggregator_exports() {
    let rules = Rules::read().unwrap();
    let series = Series::exposed(&metrics()).unwrap();
    let series = series.recorded_by(&rules).unwrap();
    for (name, alert) in rules.alerts() {
        let labels = series.check(&alert.expr).expect(name);
        for text in alert.annotations.values().chain(alert.labels.values()) {
            for used in text.split("$labels.").skip(1) {
                let end = used.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
                let label = &used[..end.unwrap_or(used.len())];
                assert!(
                    labels.contains(label) || tests::monitoring::TARGET_LABELS.contains(&label),
                    "{name}: its texts name the label {label}, which it has not"
                );
            }
            for query in text.split("printf \"").skip(1) {
                let query = query.split('"').next().unwrap_or_default();
                // A number's format is no query.
                if query.starts_with('%') {
                    continue;
                }
                series.check(&query.replace("%q", "\"\"")).expect(name);
            }
        }
    }
    // This test can fail.
    for wrong in [
        "vipwitness_nothing",
        "vipwitness_node_findings{service=\"x\"}",
        "sum by (namespace) (vipwitness_node_findings)",
    ] {
        assert!(series.check(wrong).is_err(), "{wrong}");
    }
}

/// The values of a key, wherever it stands.
fn all<'a>(value: &'a serde_json::Value, key: &str, into: &mut Vec<&'a serde_json::Value>) {
    match value {
        serde_json::Value::Object(object) => {
            for (name, inner) in object {
                if name == key {
                    into.push(inner);
                }
                all(inner, key, into);
            }
        }
        serde_json::Value::Array(list) => list.iter().for_each(|inner| all(inner, key, into)),
        _ => {}
    }
}

#[test]
fn committed_dashboards_are_what_the_code_makes() {
    let mut files = BTreeSet::new();
    for (path, dashboard) in tests::monitoring::dashboards::all() {
        let committed = std::fs::read_to_string(&path).unwrap_or_default();
        let committed: serde_json::Value = serde_json::from_str(&committed).unwrap_or_default();
        assert!(
            committed == dashboard,
            "{}: write it anew with `cargo lab dashboards`",
            path.display()
        );
        files.insert(path);
    }
    for file in std::fs::read_dir(folder()).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|end| end == "json") {
            assert!(
                files.contains(&path),
                "{}: no code makes it",
                path.display()
            );
        }
    }
}

#[test]
fn dashboards_ask_for_what_exists_and_their_links_lead_somewhere() {
    let rules = Rules::read().unwrap();
    let series = Series::exposed(&metrics()).unwrap();
    let series = series.recorded_by(&rules).unwrap();
    let dashboards = tests::monitoring::dashboards::all();
    let uids: BTreeSet<&str> = dashboards
        .iter()
        .map(|(_, d)| d["uid"].as_str().unwrap())
        .collect();
    assert_eq!(uids.len(), dashboards.len());
    for (_, dashboard) in &dashboards {
        let title = dashboard["title"].as_str().unwrap();
        let variables: Vec<&str> = dashboard["templating"]["list"]
            .as_array()
            .unwrap()
            .iter()
            .map(|v| v["name"].as_str().unwrap())
            .collect();
        assert_eq!(variables[..2], ["datasource", "cluster"]);
        for variable in &dashboard["templating"]["list"].as_array().unwrap()[1..] {
            let query = variable["query"]["query"].as_str().unwrap();
            let inside = query.strip_prefix("label_values(").expect(query);
            let (selector, label) = inside.rsplit_once(", ").expect(query);
            let labels = series.check(selector).expect(query);
            let label = label.trim_end_matches(')');
            assert!(label == "cluster" || labels.contains(label), "{query}");
        }
        let mut named = BTreeSet::new();
        for panel in dashboard["panels"].as_array().unwrap() {
            let name = panel["title"].as_str().unwrap();
            let place = format!("{title}: {name}");
            assert!(
                named.insert((name, panel["type"].as_str())),
                "twice: {place}"
            );
            assert_ne!(panel["description"], "", "{place} is not described");
            assert!(panel["fieldConfig"]["defaults"]["unit"].is_string());
            for target in panel["targets"].as_array().unwrap() {
                let query = target["expr"].as_str().unwrap();
                assert!(query.contains("cluster=~\"$cluster\""), "{place}");
                let labels = series.check(query).expect(&place);
                for used in target["legendFormat"].as_str().unwrap().split("{{").skip(1) {
                    let label = used.split("}}").next().unwrap();
                    assert!(
                        labels.contains(label) || label == "instance",
                        "{place}: no label {label} for the legend"
                    );
                }
                for used in query.split('$').skip(1) {
                    let name: String = used
                        .chars()
                        .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
                        .collect();
                    assert!(variables.contains(&&*name), "{place}: no variable {name}");
                }
                if panel["type"] == "table" {
                    let columns = &panel["transformations"][0]["options"]["renameByName"];
                    for label in columns.as_object().unwrap().keys() {
                        let known =
                            labels.contains(label) || ["Value", "cluster"].contains(&&**label);
                        assert!(known, "{place}: no column {label}");
                    }
                }
            }
        }
        let mut urls = Vec::new();
        all(dashboard, "url", &mut urls);
        for url in urls {
            let url = url.as_str().unwrap();
            let rest = url.strip_prefix("/d/").expect(url);
            let uid = rest.split('?').next().unwrap();
            assert!(uids.contains(uid), "{title}: a link to {uid}");
            let (_, target) = dashboards.iter().find(|(_, d)| d["uid"] == uid).unwrap();
            for variable in url.split("var-").skip(1) {
                let name = variable.split('=').next().unwrap();
                let list = target["templating"]["list"].as_array().unwrap();
                assert!(list.iter().any(|v| v["name"] == name), "{url}: {name}");
            }
        }
    }
}
