//! The wire's promises: what goes in comes out, golden messages of released versions decode for ever,
//! and a stranger's message is refused with the name of the field.

#[path = "../examples/generate.rs"]
mod generate;

use model::address::{Frontend, Protocol, SourceClass};
use model::capture::{DatapathFound, DatapathState, Gap, Reading};
use model::conntrack::{
    Conntrack, ConntrackReading, Counter, Counters, Filling, Forecast, Recent, Timeout,
};
use model::finding::{Evidence, Finding, FindingKind, Severity};
use model::name::{NodeName, ServicePortName};
use model::report::{Judged, NodeState, NotJudged, Report, Row};
use model::table::{
    Action, Affinity, Backend, Because, Forwarding, Masquerade, OneOf, SourceRanges,
};
use model::time::Millis;
use prost::Message;
use proto::decode::WireError;
use proto::v1;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

fn forwarding() -> Forwarding {
    Forwarding {
        service: Some(ServicePortName::new("shop", "web", "http")),
        action: Action::Forward,
        backends: [
            Backend {
                address: "10.244.1.5:8080".parse().unwrap(),
                share: 0.5,
                masquerade: Masquerade::Hairpin,
            },
            Backend {
                address: "[fd00:244::5]:8080".parse().unwrap(),
                share: 0.5,
                masquerade: Masquerade::Never,
            },
        ]
        .into(),
        affinity: Affinity::ClientIp(10800),
        source_ranges: Some(SourceRanges {
            ranges: vec![
                "192.0.2.0/24".parse().unwrap(),
                "2001:db8::/32".parse().unwrap(),
            ],
            otherwise: Action::Drop,
        }),
    }
}

/// A report that uses every field and every kind of frontend.
fn full() -> Report {
    let frontend = Frontend::port("10.96.0.10".parse().unwrap(), Protocol::Tcp, 80);
    let service = Some(ServicePortName::new("shop", "web", "http"));
    let stale = Finding {
        kind: FindingKind::StaleBackend,
        severity: Severity::Critical,
        service: service.clone(),
        frontend: Some(frontend),
        sources: SourceClass::ALL.to_vec(),
        backend: Some("10.244.9.9:8080".parse().unwrap()),
        since: Millis(1_700_000_000_000),
        evidence: vec![Evidence {
            family: "ip".into(),
            table: "kube-proxy".into(),
            chain: "service-ips".into(),
            handle: Some(42),
            element: Some("10.96.0.10 . tcp . 80".into()),
            says: "sends to 10.244.9.9:8080".into(),
        }],
        says: "sends to 10.244.9.9:8080, which the API does not offer".into(),
        absorbs: 3,
        recurring: true,
        because: "seen whole before".into(),
    };
    let mut other = forwarding();
    other.affinity = Affinity::Broken("two timeouts".into());
    other.source_ranges = None;
    let row = |frontend, source, desired, observed| Row {
        frontend,
        source,
        service: service.clone(),
        desired,
        observed,
    };
    Report {
        node: NodeName::from("node-a"),
        pass: 7,
        at: Millis(1_700_000_001_000),
        took_ms: 12,
        api_as_of: Some(Millis(1_700_000_000_500)),
        state: NodeState::Draining,
        verdict: "1 Service differs".into(),
        datapaths: vec![DatapathFound {
            name: "kube-proxy/nftables".into(),
            version: Some("v1.36.3".into()),
            state: DatapathState::InCharge,
            why: "its table is there".into(),
        }],
        judged: Judged {
            pairs: 4,
            multi_answer: 1,
            converging: 1,
            unknown: 1,
            unknown_reasons: [(NotJudged::UnknownExpression, 1)].into(),
            not_comparable: 1,
            not_comparable_reasons: [(NotJudged::ServiceCidrUnknown, 1)].into(),
        },
        gaps: vec![Gap {
            what: "nf_tables ip6".into(),
            why: "no permission".into(),
        }],
        findings: vec![stale.clone()],
        converging: vec![Finding {
            kind: FindingKind::HooksMissing,
            severity: Severity::Warning,
            service: None,
            frontend: None,
            sources: vec![],
            backend: None,
            evidence: vec![],
            ..stale
        }],
        rows: vec![
            row(
                frontend,
                SourceClass::Pod,
                Some(OneOf {
                    any_of: vec![other.clone(), forwarding()],
                    because: Because::DuplicateEndpoint,
                }),
                Some(forwarding()),
            ),
            row(
                Frontend::port("fd00::1".parse().unwrap(), Protocol::Sctp, 53),
                SourceClass::Node,
                Some(OneOf::certain(forwarding())),
                Some(other),
            ),
            row(
                Frontend::Address("10.96.0.10".parse().unwrap()),
                SourceClass::Outside,
                None,
                Some(Forwarding::without_backends(
                    None,
                    Action::Unknown("a new match".into()),
                )),
            ),
            row(
                Frontend::Prefix("10.96.0.0/16".parse().unwrap()),
                SourceClass::Pod,
                None,
                None,
            ),
        ]
        .into_iter()
        .map(Arc::new)
        .collect(),
        conntrack: None,
        flows: None,
    }
}

fn conntrack() -> ConntrackReading {
    let totals: Counters<u64> = Counter::ALL
        .into_iter()
        .map(|c| (c, 5_000_000_000 + c as u64))
        .collect();
    let increases: Counters<u64> = Counter::ALL
        .into_iter()
        .filter(|c| *c != Counter::ClashResolve)
        .map(|c| (c, c as u64))
        .collect();
    ConntrackReading {
        at: Millis(1_700_000_000_900),
        reading: Reading::Read(Conntrack {
            entries: 210_000,
            limit: 262_144,
            buckets: Some(65_536),
            timeouts: Timeout::ALL.into_iter().zip(60..).collect(),
            totals,
            recent: Some(Recent {
                ms: 300_000,
                increases,
            }),
            forecast: Forecast::Filling(Filling {
                seconds: 700.5,
                earliest: 540.0,
                latest: 1_200.25,
                per_second: 74.5,
                seen_seconds: 600,
            }),
        }),
    }
}

/// A report as of the version that told of connection tracking first.
fn with_conntrack() -> Report {
    Report {
        conntrack: Some(Arc::new(conntrack())),
        ..full()
    }
}

/// A report of some of 40 rows, each in one of three states, as the numbers say.
fn some(pass: u64, mut next: impl FnMut(u64) -> u64) -> Report {
    let mut rows: Vec<Row> = Vec::new();
    for n in 0..40 {
        if next(4) == 0 {
            continue;
        }
        let address = match n % 2 {
            0 => format!("10.96.0.{n}"),
            _ => format!("fd00::{n}"),
        };
        let address = address.parse().unwrap();
        rows.push(Row {
            frontend: match n % 5 {
                0 => Frontend::Address(address),
                _ => Frontend::port(address, Protocol::Tcp, 80),
            },
            source: SourceClass::ALL[n % 3],
            service: Some(ServicePortName::new("shop", "web", "http")),
            desired: Some(OneOf::certain(forwarding())),
            observed: match next(8) {
                0 => None,
                1 => Some(Forwarding::without_backends(None, Action::Drop)),
                _ => Some(forwarding()),
            },
        });
    }
    rows.sort_by_key(Row::place);
    Report {
        pass,
        rows: rows.into_iter().map(Arc::new).collect(),
        ..with_conntrack()
    }
}

/// Whatever changes from report to report, what is different makes the new one of the old one, and
/// goes for a whole report only where it is smaller.
#[test]
fn a_delta_makes_the_new_report_of_the_old_one() {
    let seed = std::env::var("SEED").ok().and_then(|s| s.parse().ok());
    let mut state: u64 = seed.unwrap_or(20_251_125);
    println!("seed {state}");
    let mut next = move |n: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % n
    };
    let (mut deltas, mut wholes) = (0, 0);
    for _ in 0..2_000 {
        let old = some(7, &mut next);
        let mut new = some(8, &mut next);
        // Mostly the same rows.
        if next(4) > 0 {
            let mut rows = old.rows.to_vec();
            for _ in 0..next(6) {
                let at = next(rows.len() as u64) as usize;
                match next(2) {
                    0 => drop(rows.remove(at)),
                    _ => Arc::make_mut(&mut rows[at]).observed = None,
                }
            }
            rows.extend(new.rows.iter().take(2).cloned());
            rows.sort_by_key(|r| r.place());
            rows.dedup_by_key(|r| r.place());
            new.rows = rows.into();
        }
        let Some(message) = proto::encode::delta(&old, &new, Millis(1)) else {
            wholes += 1;
            continue;
        };
        let whole = proto::encode::message(&new, Millis(1)).encoded_len();
        assert!(message.encoded_len() < whole + 40 * old.rows.len());
        let bytes = message.encode_to_vec();
        let message = v1::AgentMessage::decode(&*bytes).unwrap();
        let Some(v1::agent_message::Message::ReportDelta(delta)) = message.message else {
            panic!("no delta")
        };
        assert_eq!(proto::decode::delta(&old, delta.clone()).unwrap(), new);
        // Of another report it makes nothing.
        let other = Report { pass: 6, ..old };
        assert!(matches!(
            proto::decode::delta(&other, delta),
            Err(WireError::Wrong {
                field: "base_pass",
                ..
            })
        ));
        deltas += 1;
    }
    println!("{deltas} deltas, {wholes} whole reports");
    assert!(deltas > 500 && wholes > 100);
}

fn message(report: &Report) -> v1::AgentMessage {
    v1::AgentMessage {
        message: Some(v1::agent_message::Message::Report(proto::encode::report(
            report,
        ))),
        sent_at_ms: 1_700_000_002_000,
    }
}

fn decode(bytes: &[u8]) -> Result<Report, WireError> {
    match v1::AgentMessage::decode(bytes).unwrap().message.unwrap() {
        v1::agent_message::Message::Report(r) => r.try_into(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_report_comes_out_as_it_went_in() {
    for report in [full(), with_conntrack()] {
        assert_eq!(decode(&message(&report).encode_to_vec()).unwrap(), report);
    }
    // Every answer about connection tracking.
    let Reading::Read(table) = conntrack().reading else {
        panic!("a table")
    };
    let mut all = vec![
        Reading::Absent,
        Reading::Failed(Gap {
            what: "conntrack".into(),
            why: "no permission".into(),
        }),
        Reading::Read(Conntrack {
            buckets: None,
            timeouts: BTreeMap::new(),
            totals: Counters::default(),
            recent: None,
            ..table.clone()
        }),
    ];
    for forecast in [
        Forecast::NoLimit,
        Forecast::Full,
        Forecast::TooShort,
        Forecast::Steady { seen_seconds: 600 },
        Forecast::Distant {
            beyond_seconds: 3_000,
        },
    ] {
        all.push(Reading::Read(Conntrack {
            forecast,
            ..table.clone()
        }));
    }
    for reading in all {
        let at = Millis(7);
        let said = ConntrackReading { at, reading };
        let bytes = proto::encode::conntrack(&said).encode_to_vec();
        let back = v1::Conntrack::decode(&*bytes).unwrap();
        assert_eq!(proto::decode::conntrack(back).unwrap(), said);
    }
}

/// Bytes written once, by the first version; a later version must read them all the same. To add one:
/// `GOLDEN=write cargo test -p proto golden`.
#[test]
fn golden_messages_decode_to_what_they_meant() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/report-0.1.0.bin");
    if std::env::var_os("GOLDEN").is_some() {
        std::fs::write(&path, message(&full()).encode_to_vec()).unwrap();
    }
    assert_eq!(decode(&std::fs::read(&path).unwrap()).unwrap(), full());
    let path = path.with_file_name("report-0.1.0-conntrack.bin");
    if std::env::var_os("GOLDEN").is_some() {
        std::fs::write(&path, message(&with_conntrack()).encode_to_vec()).unwrap();
    }
    assert_eq!(
        decode(&std::fs::read(&path).unwrap()).unwrap(),
        with_conntrack()
    );
    // A heartbeat that tells that the kernel has no connection tracking.
    let heartbeat = [26, 12, 8, 7, 16, 9, 24, 1, 42, 4, 8, 3, 16, 1, 120, 5];
    let Some(v1::agent_message::Message::Heartbeat(beat)) =
        v1::AgentMessage::decode(&heartbeat[..]).unwrap().message
    else {
        panic!("no heartbeat")
    };
    assert_eq!((beat.pass, beat.at_ms, beat.took_ms), (7, 9, 1));
    assert_eq!(
        proto::decode::conntrack(beat.conntrack.unwrap()).unwrap(),
        ConntrackReading {
            at: Millis(3),
            reading: Reading::Absent,
        }
    );
    let hello = [
        10, 15, 10, 6, b'n', b'o', b'd', b'e', b'-', b'a', 18, 3, b'0', b'.', b'1', 24, 1, 120, 5,
    ];
    assert_eq!(
        v1::AgentMessage::decode(&hello[..]).unwrap(),
        v1::AgentMessage {
            message: Some(v1::agent_message::Message::Hello(v1::Hello {
                node: "node-a".into(),
                agent_version: "0.1".into(),
                wire_version: 1,
            })),
            sent_at_ms: 5,
        }
    );
    let inspect = [
        26, 13, 8, 7, 18, 4, b's', b'h', b'o', b'p', 26, 3, b'w', b'e', b'b',
    ];
    assert_eq!(
        v1::AggregatorMessage::decode(&inspect[..]).unwrap(),
        v1::AggregatorMessage {
            message: Some(v1::aggregator_message::Message::Inspect(v1::Inspect {
                id: 7,
                namespace: "shop".into(),
                name: "web".into(),
            })),
        }
    );
    let answer = [42, 6, 8, 7, 40, 9, 48, 1, 120, 5];
    assert_eq!(
        v1::AgentMessage::decode(&answer[..]).unwrap(),
        v1::AgentMessage {
            message: Some(v1::agent_message::Message::InspectAnswer(
                v1::InspectAnswer {
                    id: 7,
                    pass: 9,
                    fresh: true,
                }
            )),
            sent_at_ms: 5,
        }
    );
}

#[test]
fn the_committed_code_is_what_the_proto_gives() {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("generated");
    std::fs::create_dir_all(&out).unwrap();
    generate::generate(&out).unwrap();
    let fresh = std::fs::read_to_string(out.join("vipwitness.v1.rs")).unwrap();
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/generated/vipwitness.v1.rs");
    assert!(
        fresh == std::fs::read_to_string(committed).unwrap(),
        "run: cargo run -p proto --example generate"
    );
}

/// One way of being wrong: what it does to the message, and the field that the error must name.
type Spoiled = (&'static str, Box<dyn Fn(&mut v1::Report)>);

#[test]
fn a_wrong_message_is_refused_by_the_name_of_the_field() {
    fn wrong(field: &'static str, f: impl Fn(&mut v1::Report) + 'static) -> Spoiled {
        (field, Box::new(f))
    }
    fn port(r: &mut v1::Report) -> &mut v1::PortOf {
        match r.rows[0].frontend.as_mut().unwrap().kind.as_mut().unwrap() {
            v1::frontend::Kind::Port(p) => p,
            other => panic!("{other:?}"),
        }
    }
    fn table(r: &mut v1::Report) -> &mut v1::ConntrackTable {
        match r.conntrack.as_mut().unwrap().reading.as_mut().unwrap() {
            v1::conntrack::Reading::Table(t) => t,
            other => panic!("{other:?}"),
        }
    }
    fn filling(r: &mut v1::Report) -> &mut v1::ConntrackFilling {
        let forecast = table(r).forecast.as_mut().unwrap();
        match forecast.state.as_mut().unwrap() {
            v1::conntrack_forecast::State::Filling(f) => f,
            other => panic!("{other:?}"),
        }
    }
    fn backend(r: &mut v1::Report) -> &mut v1::Backend {
        &mut r.rows[0].desired.as_mut().unwrap().any_of[0].backends[0]
    }
    let cases = [
        wrong("node", |r| r.node.clear()),
        wrong("node", |r| r.node = "n".repeat(254)),
        wrong("state", |r| r.state = 0),
        wrong("verdict", |r| {
            r.verdict = "x".repeat(proto::limits::TEXT_BYTES + 1)
        }),
        wrong("judged", |r| r.judged = None),
        wrong("judged.unknown_reasons", |r| {
            r.judged.as_mut().unwrap().unknown_reasons[0].why = 99
        }),
        wrong("findings.kind", |r| r.findings[0].kind = 99),
        wrong("findings.severity", |r| r.findings[0].severity = -1),
        wrong("findings.sources", |r| r.findings[0].sources = vec![1; 4]),
        wrong("findings.backend", |r| {
            r.findings[0].backend.as_mut().unwrap().address = vec![1, 2, 3]
        }),
        wrong("findings.evidence", |r| {
            let e = r.findings[0].evidence[0].clone();
            r.findings[0].evidence = vec![e; proto::limits::EVIDENCE + 1];
        }),
        wrong("rows.source", |r| r.rows[0].source = 9),
        wrong("rows.frontend", |r| r.rows[0].frontend = None),
        wrong("frontend.kind", |r| {
            r.rows[0].frontend.as_mut().unwrap().kind = None
        }),
        wrong("frontend.port", |r| port(r).port = 65536),
        wrong("frontend.port.protocol", |r| port(r).protocol = 0),
        wrong("rows.desired.any_of", |r| {
            r.rows[0].desired.as_mut().unwrap().any_of.clear()
        }),
        wrong("rows.as_desired", |r| {
            r.rows[0].observed = Some(v1::row::Observed::AsDesired(2))
        }),
        wrong("rows.backends.share", |r| backend(r).share = f64::NAN),
        wrong("rows.backends.share", |r| backend(r).share = 1.5),
        wrong("rows.backends.masquerade", |r| backend(r).masquerade = 0),
        wrong("rows.backends.address", |r| backend(r).address = None),
        wrong("service", |r| {
            r.rows[0].service.as_mut().unwrap().name = "s".repeat(300)
        }),
        wrong("rows", |r| {
            r.rows = vec![v1::Row::default(); proto::limits::ROWS + 1]
        }),
        wrong("conntrack.reading", |r| {
            r.conntrack.as_mut().unwrap().reading = None
        }),
        wrong("conntrack.failed", |r| {
            let long = "x".repeat(proto::limits::TEXT_BYTES + 1);
            let gap = v1::Gap {
                what: long.clone(),
                why: long,
            };
            r.conntrack.as_mut().unwrap().reading = Some(v1::conntrack::Reading::Failed(gap));
        }),
        wrong("conntrack.counts", |r| table(r).counts[0].counter = 0),
        wrong("conntrack.counts", |r| table(r).counts[0].counter = 99),
        wrong("conntrack.counts", |r| {
            table(r).counts = vec![table(r).counts[0]; 1_000_000]
        }),
        wrong("conntrack.timeouts", |r| table(r).timeouts[0].kind = 0),
        wrong("conntrack.timeouts", |r| {
            table(r).timeouts = vec![table(r).timeouts[0]; 1_000_000]
        }),
        wrong("conntrack.forecast", |r| table(r).forecast = None),
        wrong("conntrack.forecast.filling", |r| {
            filling(r).latest = f64::NAN
        }),
        wrong("conntrack.forecast.filling", |r| {
            filling(r).seconds = f64::INFINITY
        }),
        wrong("conntrack.forecast.filling", |r| filling(r).earliest = -1.0),
        wrong("conntrack.forecast.filling", |r| {
            filling(r).earliest = 701.0
        }),
    ];
    for (field, spoil) in cases {
        let mut r = proto::encode::report(&with_conntrack());
        spoil(&mut r);
        let error = Report::try_from(r).expect_err(field);
        assert!(
            error.to_string().starts_with(&format!("{field} ")),
            "{field}: {error}"
        );
    }
}

#[test]
fn what_is_too_long_is_cut_by_the_sender_and_then_taken() {
    let mut r = full();
    r.verdict = "é".repeat(proto::limits::TEXT_BYTES);
    r.gaps = vec![
        Gap {
            what: "x".into(),
            why: "y".into()
        };
        proto::limits::GAPS + 5
    ];
    let wire = proto::encode::report(&r);
    let back = Report::try_from(wire.clone()).unwrap();
    assert!(back.verdict.ends_with('…'));
    let thin = Report::try_from(proto::encode::without_rows(wire, "too large")).unwrap();
    assert!(thin.rows.is_empty());
    assert_eq!(&*thin.gaps.last().unwrap().why, "too large");
}

/// Truncated, flipped and random bytes never panic.
#[test]
fn broken_bytes_give_errors() {
    let good = message(&with_conntrack()).encode_to_vec();
    for i in 0..good.len() {
        let mut bad = good.clone();
        for bit in [1u8, 0x80, 0xff] {
            bad[i] ^= bit;
            if let Ok(v1::AgentMessage {
                message: Some(v1::agent_message::Message::Report(r)),
                ..
            }) = v1::AgentMessage::decode(&bad[..])
            {
                let _ = Report::try_from(r);
            }
        }
        let _ = v1::AgentMessage::decode(&good[..i]);
    }
}
