//! Which backends answer, over the wire.

use model::address::Protocol;
use model::capture::{Gap, Reading};
use model::flows::{BackendAnswer, BackendFlows, Flows, FlowsReading};
use model::name::ServicePortName;
use model::time::Millis;
use prost::Message;
use proto::v1;
use std::path::Path;

fn reading() -> FlowsReading {
    let backend = |protocol, at: &str, answer| BackendFlows {
        service: ServicePortName::new("shop", "web", "http"),
        protocol,
        backend: at.parse().unwrap(),
        answer,
    };
    let none = BackendAnswer::None {
        flows: 7,
        sources: 2,
        since: Millis(1_700_000_000_000),
    };
    FlowsReading {
        at: Millis(1_700_000_060_000),
        reading: Reading::Read(Flows {
            backends: vec![
                backend(Protocol::Tcp, "10.244.1.3:8080", none),
                backend(Protocol::Udp, "[fd00::2]:53", BackendAnswer::Some),
            ],
            left_out: 3,
        }),
    }
}

#[test]
fn what_is_sent_comes_back_the_same() {
    let failed = Reading::Failed(Gap {
        what: "conntrack".into(),
        why: "no right".into(),
    });
    for reading in [reading().reading, Reading::Absent, failed] {
        let said = FlowsReading {
            at: Millis(5),
            reading,
        };
        let bytes = proto::encode::flows(&said).encode_to_vec();
        let back = v1::Flows::decode(&*bytes).unwrap();
        assert_eq!(proto::decode::flows(back).unwrap(), said);
    }
}

/// Written once; `GOLDEN=write` adds it.
#[test]
fn a_golden_message_decodes_to_what_it_meant() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/flows-0.1.0.bin");
    if std::env::var_os("GOLDEN").is_some() {
        std::fs::write(&path, proto::encode::flows(&reading()).encode_to_vec()).unwrap();
    }
    let wire = v1::Flows::decode(&*std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(proto::decode::flows(wire).unwrap(), reading());
}

#[test]
fn what_means_nothing_is_refused_with_the_name_of_the_field() {
    type Spoil = fn(&mut v1::FlowsSeen);
    let cases: [(&str, Spoil); 8] = [
        ("flows.service", |s| s.backends[0].service = None),
        ("flows.protocol", |s| s.backends[0].protocol = 0),
        ("flows.protocol", |s| s.backends[0].protocol = 3),
        ("flows.backend", |s| s.backends[0].backend = None),
        ("flows.unanswered", |s| {
            s.backends[0].unanswered.as_mut().unwrap().flows = 0
        }),
        ("flows.unanswered", |s| {
            s.backends[0].unanswered.as_mut().unwrap().sources = 0
        }),
        ("flows.unanswered", |s| {
            s.backends[0].unanswered.as_mut().unwrap().sources = 8
        }),
        ("flows.backends", |s| {
            s.backends = vec![s.backends[0].clone(); proto::limits::FLOW_BACKENDS + 1]
        }),
    ];
    for (field, spoil) in cases {
        let mut wire = proto::encode::flows(&reading());
        let Some(v1::flows::Reading::Seen(seen)) = &mut wire.reading else {
            panic!("{wire:?}");
        };
        spoil(seen);
        let error = proto::decode::flows(wire).expect_err(field);
        assert!(
            error.to_string().starts_with(&format!("{field} ")),
            "{error}"
        );
    }
    let mut wire = proto::encode::flows(&reading());
    wire.reading = None;
    let error = proto::decode::flows(wire).unwrap_err();
    assert!(error.to_string().starts_with("flows.reading "), "{error}");
}
