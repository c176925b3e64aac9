//! Connection tracking of a fleet: who is worst, one node explained, and the series of it.

mod reports;

use aggregator::api_drift::ApiDrift;
use aggregator::fleet::{Event, Fleet};
use aggregator::metrics::metrics;
use aggregator::view::nodes::Page;
use aggregator::view::{View, conntrack, words};
use model::capture::{Gap, Reading};
use model::conntrack::{
    Conntrack, ConntrackReading, Counter, Counters, Filling, Forecast, Recent, Timeout,
};
use model::name::NodeName;
use model::time::{Millis, Mono, Now};
use reports::{AT, agrees};
use std::sync::Arc;

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

fn tell(fleet: &mut Fleet, node: &str, reading: Option<Reading<Conntrack>>) {
    let name = NodeName::from(node);
    let connection = 1 + fleet.nodes.len() as u64;
    let connected = Event::Connected {
        connection,
        agent_version: "0.1.0".into(),
    };
    fleet.apply(&name, connected, at(0)).unwrap();
    let mut report = agrees(node);
    report.conntrack = reading.map(|reading| {
        let at = Millis(AT - 1_000);
        Arc::new(ConntrackReading { at, reading })
    });
    let event = Event::Report {
        connection,
        report: Arc::new(report),
        sent_at: Millis(AT + 500),
    };
    fleet.apply(&name, event, at(0)).unwrap();
}

fn table(entries: u32, grown: &[(Counter, u64)], forecast: Forecast) -> Reading<Conntrack> {
    let mut increases: Counters<u64> = Counter::ALL.into_iter().map(|c| (c, 0)).collect();
    let mut totals: Counters<u64> = Counter::ALL.into_iter().map(|c| (c, 7)).collect();
    for (counter, n) in grown {
        increases.set(*counter, *n);
        // More than the kernel's counters hold.
        totals.set(*counter, 5_000_000_000 + n);
    }
    Reading::Read(Conntrack {
        entries,
        limit: 262_144,
        buckets: Some(65_536),
        timeouts: [(Timeout::TcpEstablished, 86_400)].into(),
        totals,
        recent: Some(Recent {
            ms: 300_000,
            increases,
        }),
        forecast,
    })
}

const STEADY: Forecast = Forecast::Steady { seen_seconds: 600 };

fn filling(seconds: f64) -> Forecast {
    Forecast::Filling(Filling {
        seconds,
        earliest: seconds * 0.75,
        latest: seconds * 1.5,
        per_second: 74.5,
        seen_seconds: 600,
    })
}

fn fleet() -> Fleet {
    let mut fleet = Fleet::default();
    tell(&mut fleet, "calm", Some(table(2_000, &[], STEADY)));
    tell(&mut fleet, "half", Some(table(131_072, &[], STEADY)));
    tell(
        &mut fleet,
        "later",
        Some(table(180_000, &[], filling(3_000.0))),
    );
    tell(
        &mut fleet,
        "soon",
        Some(table(210_000, &[], filling(700.0))),
    );
    let dropping = [(Counter::Drop, 1_203), (Counter::EarlyDrop, 88)];
    tell(&mut fleet, "lossy", Some(table(261_000, &dropping, STEADY)));
    let refused = Gap {
        what: "conntrack".into(),
        why: "needs CAP_NET_ADMIN\u{1b}[2J".into(),
    };
    tell(&mut fleet, "refused", Some(Reading::Failed(refused)));
    tell(&mut fleet, "none", Some(Reading::Absent));
    tell(&mut fleet, "old", None);
    fleet
}

#[test]
fn the_worst_comes_first() {
    let view = conntrack::fleet(&fleet(), PAGE, at(1));
    let order: Vec<&str> = view.nodes.iter().map(|l| l.node.as_str()).collect();
    assert_eq!(
        order,
        [
            "lossy", "soon", "later", "half", "calm", "none", "old", "refused"
        ]
    );
    assert_eq!(
        view.text(),
        "\
losing packets: lossy; filling up: soon, later; 3 nodes not read

NODE     FULL    ENTRIES  LIMIT    FULL IN      DROPS  AGE    POINTS AT
lossy    99.6 %  261,000  262,144  -            1,203  2.5 s  drop, early_drop
soon     80.1 %  210,000  262,144  11 min 40 s  0      2.5 s  -
later    68.7 %  180,000  262,144  50 min 0 s   0      2.5 s  -
half     50.0 %  131,072  262,144  -            0      2.5 s  -
calm     0.8 %   2,000    262,144  -            0      2.5 s  -
none     -       -        -        -            -      2.5 s  the kernel has no connection tracking
old      -       -        -        -            -      -      its agent says nothing of it
refused  -       -        -        -            -      2.5 s  not read: needs CAP_NET_ADMIN\\u{1b}[2J
"
    );
    let page = conntrack::fleet(&fleet(), Page { from: 1, limit: 2 }, at(1));
    assert_eq!((page.page.next, &*page.nodes[0].node), (Some(3), "soon"));
    assert!(page.verdict.starts_with("losing packets: lossy"));
}

#[test]
fn a_calm_fleet_says_so() {
    let mut calm = Fleet::default();
    let verdict = |f: &Fleet, now| conntrack::fleet(f, PAGE, now).verdict;
    assert_eq!(verdict(&calm, at(1)), "no agent has reported yet");
    tell(&mut calm, "a", Some(table(2_622, &[], STEADY)));
    assert_eq!(
        verdict(&calm, at(1)),
        "no pressure on 1 node; the fullest is a, 1.0 % full (2,622 of 262,144)"
    );
    // A burst was no trend, but it is nearly full.
    tell(&mut calm, "b", Some(table(250_000, &[], STEADY)));
    assert_eq!(verdict(&calm, at(1)), "nearly full: b");
    assert_eq!(verdict(&calm, at(60)), "nearly full: b; 2 silent");
}

#[test]
fn one_node_is_explained() {
    let f = fleet();
    let lossy = conntrack::node(&f, "lossy", at(1)).unwrap();
    let text = lossy.text();
    assert!(
        text.starts_with(
            "lossy: 99.6 % full (261,000 of 262,144); 1,203 packets dropped in the last 5 min 0 s that \
             no lost race explains; the table is or was full\nread 2.5 s ago; agent connected\n"
        ),
        "{text}"
    );
    assert!(
        text.contains("LOSS      drop: 1,203 packets dropped"),
        "{text}"
    );
    assert!(text.contains("by nf_conntrack_in()"), "{text}");
    assert!(text.contains("tcp_timeout_established"), "{text}");
    let json: serde_json::Value = serde_json::from_str(&words::json(&lossy).unwrap()).unwrap();
    assert_eq!(json["counters"][4]["name"], "drop");
    assert_eq!(json["counters"][4]["total"], 5_000_001_203_u64);
    assert_eq!(json["counters"][4]["per_second"], 4.01);
    assert_eq!(json["forecast"]["state"], "steady");
    assert_eq!(json["timeouts_seconds"]["tcp_timeout_established"], 86_400);
    let soon = conntrack::node(&f, "soon", at(60)).unwrap();
    assert!(
        soon.verdict.ends_with(
            "full in about 11 min 40 s (between 8 min 45 s and 17 min 30 s) if the last 10 min 0 s go on"
        ),
        "{}",
        soon.verdict
    );
    assert!(soon.text().contains("AGENT SILENT"));
    for (node, says) in [
        ("refused", "not read: needs CAP_NET_ADMIN\\u{1b}[2J"),
        ("none", "no connection tracking"),
        ("old", "says nothing"),
    ] {
        let view = conntrack::node(&f, node, at(1)).unwrap();
        assert!(view.text().contains(says), "{}", view.text());
        let json: serde_json::Value = serde_json::from_str(&words::json(&view).unwrap()).unwrap();
        assert!(json["entries"].is_null());
    }
    assert!(conntrack::node(&f, "nowhere", at(1)).is_err());
}

/// A heartbeat brings what is new of it, and one without leaves what was known.
#[test]
fn heartbeats_carry_it() {
    let mut f = fleet();
    let calm = NodeName::from("calm");
    let beat = |f: &mut Fleet, seconds: u64, conntrack| {
        let event = Event::Heartbeat {
            connection: 1,
            pass: 9,
            at: Millis(AT + seconds * 1_000),
            took_ms: 3,
            api_as_of: None,
            conntrack,
            flows: None,
            sent_at: Millis(AT + seconds * 1_000 + 100),
        };
        f.apply(&calm, event, at(seconds)).unwrap();
    };
    let newer = Arc::new(ConntrackReading {
        at: Millis(AT + 4_000),
        reading: table(3_000, &[], STEADY),
    });
    beat(&mut f, 5, Some(newer));
    beat(&mut f, 6, None);
    let line = conntrack::fleet(&f, PAGE, at(7));
    let line = line.nodes.iter().find(|l| l.node == "calm").unwrap();
    assert_eq!(line.entries, Some(3_000));
    assert_eq!(line.age_seconds, Some(3.1));
}

#[test]
fn series_have_the_kernels_types() {
    let f = fleet();
    let text = metrics(&f, &ApiDrift::default(), at(1)).unwrap();
    for line in [
        "# TYPE vipwitness_conntrack_drop_total counter",
        "vipwitness_conntrack_drop_total{node=\"lossy\"} 5000001203",
        "vipwitness_conntrack_drop_total{node=\"calm\"} 7",
        "# TYPE vipwitness_conntrack_entries gauge",
        "vipwitness_conntrack_entries{node=\"half\"} 131072",
        "vipwitness_conntrack_entries_limit{node=\"half\"} 262144",
        "vipwitness_conntrack_buckets{node=\"half\"} 65536",
        "vipwitness_conntrack_full_seconds{node=\"soon\"} 700",
        "vipwitness_conntrack_full_seconds_earliest{node=\"soon\"} 525",
        "vipwitness_conntrack_readable{node=\"half\"} 1",
        "vipwitness_conntrack_readable{node=\"refused\"} 0",
    ] {
        assert!(text.lines().any(|l| l == line), "{line}\n{text}");
    }
    for counter in Counter::ALL {
        let name = format!("vipwitness_conntrack_{}_total{{", counter.word());
        assert_eq!(text.matches(&name).count(), 5, "{name}");
    }
    // No forecast is no number; nothing read is nothing counted; a node that is silent says nothing.
    assert!(!text.contains("vipwitness_conntrack_full_seconds{node=\"calm\"}"));
    assert!(!text.contains("vipwitness_conntrack_entries{node=\"refused\"}"));
    assert!(!text.contains("vipwitness_conntrack_readable{node=\"none\"}"));
    assert!(!text.contains("vipwitness_conntrack_readable{node=\"old\"}"));
    assert!(
        !metrics(&f, &ApiDrift::default(), at(60))
            .unwrap()
            .contains("vipwitness_conntrack")
    );
    // Without a limit there is none to show.
    let mut unlimited = Fleet::default();
    let Reading::Read(mut none) = table(5, &[], Forecast::NoLimit) else {
        panic!("a table")
    };
    none.limit = 0;
    tell(&mut unlimited, "n", Some(Reading::Read(none)));
    let text = metrics(&unlimited, &ApiDrift::default(), at(1)).unwrap();
    assert!(text.contains("vipwitness_conntrack_entries{node=\"n\"} 5"));
    assert!(!text.contains("vipwitness_conntrack_entries_limit"));
}

/// Which backends answer: a heartbeat or report without it leaves what was known, a new connection, which
/// may be an older agent's, does not.
#[test]
fn which_backends_answer_is_kept_for_as_long_as_the_connection() {
    use model::flows::{Flows, FlowsReading};
    let mut f = fleet();
    let calm = NodeName::from("calm");
    let flows = Arc::new(FlowsReading {
        at: Millis(AT),
        reading: Reading::Read(Flows::default()),
    });
    let beat = |f: &mut Fleet, flows| {
        let event = Event::Heartbeat {
            connection: 1,
            pass: 9,
            at: Millis(AT + 1_000),
            took_ms: 3,
            api_as_of: None,
            conntrack: None,
            flows,
            sent_at: Millis(AT + 1_100),
        };
        f.apply(&calm, event, at(1)).unwrap();
    };
    let known = |f: &Fleet| f.nodes[&calm].said.as_ref().unwrap().flows.clone();
    beat(&mut f, Some(flows.clone()));
    assert_eq!(known(&f), Some(flows.clone()));
    beat(&mut f, None);
    assert_eq!(known(&f), Some(flows.clone()));
    let report = f.nodes[&calm].said.as_ref().unwrap().report.clone();
    assert_eq!(report.flows, None);
    let event = Event::Report {
        connection: 1,
        report,
        sent_at: Millis(AT + 2_000),
    };
    f.apply(&calm, event, at(2)).unwrap();
    assert_eq!(known(&f), Some(flows));
    let event = Event::Connected {
        connection: 2,
        agent_version: "0".into(),
    };
    f.apply(&calm, event, at(3)).unwrap();
    assert_eq!(known(&f), None);
}
