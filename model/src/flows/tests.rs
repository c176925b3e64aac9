use super::*;
use crate::address::SourceClass;
use crate::time::Mono;

const STEP: u64 = 30_000;

fn at(walk: u64) -> Now {
    Now {
        mono: Mono(1_000_000 + walk * STEP),
        wall: Millis(walk * STEP),
    }
}

fn timeouts() -> BTreeMap<Timeout, u32> {
    [(Timeout::TcpSynSent, 120), (Timeout::Udp, 30)].into()
}

fn row(frontend: &str, source: SourceClass) -> Arc<Row> {
    Arc::new(Row {
        frontend: frontend.parse().unwrap(),
        source,
        service: Some(ServicePortName::new("shop", "web", "http")),
        desired: None,
        observed: None,
    })
}

fn rows() -> Vec<Arc<Row>> {
    let mut rows = Vec::new();
    for frontend in ["10.96.0.9:80/TCP", "10.96.0.10:80/TCP", "10.96.0.10:53/UDP"] {
        for source in SourceClass::ALL {
            rows.push(row(frontend, source));
        }
    }
    rows.sort_by_key(|r| r.place());
    rows
}

/// A connection that is open and answered, to the backend whose address ends in `to`.
fn open(id: u32, to: u8) -> Entry {
    Entry {
        id,
        protocol: Protocol::Tcp,
        client: SocketAddr::new([10, 1, 0, 1].into(), 1_024 + id as u16),
        frontend: "10.96.0.10:80".parse().unwrap(),
        backend: SocketAddr::new([10, 244, 1, to].into(), 8080),
        answered: true,
        tcp_state: Some(3),
        left: Some(86_400),
    }
}

/// One whose last SYN was so many seconds ago, and nothing came back.
fn waits(id: u32, to: u8, seconds: u32) -> Entry {
    Entry {
        answered: false,
        tcp_state: Some(SYN_SENT),
        left: Some(120 - seconds),
        ..open(id, to)
    }
}

fn walk(meter: &mut Meter, number: u64, entries: &[Entry]) {
    let timeouts = timeouts();
    let mut walk = meter.begin(&timeouts);
    assert!(entries.iter().all(|e| walk.add(e)));
    let walked = walk.done();
    meter.take(at(number), walked);
}

/// Backends by the end of their address, each with unanswered flows and sources; `None`: it answered.
fn said(meter: &Meter) -> Vec<(u8, Option<(u32, u32)>)> {
    let end = |a: IpAddr| match a {
        IpAddr::V4(a) => a.octets()[3],
        IpAddr::V6(a) => a.octets()[15],
    };
    let flows = meter.flows(&rows());
    let each = flows.backends.iter().map(|b| {
        let answer = match b.answer {
            BackendAnswer::Some => None,
            BackendAnswer::None { flows, sources, .. } => Some((flows, sources)),
        };
        (end(b.backend.ip()), answer)
    });
    each.collect()
}

#[test]
fn only_flows_that_began_since_the_walk_before_count() {
    let mut meter = Meter::default();
    walk(&mut meter, 0, &[open(1, 2), waits(2, 3, 50)]);
    assert_eq!(said(&meter), [], "nobody knows when those began");
    walk(&mut meter, 1, &[open(1, 2), waits(2, 3, 80)]);
    assert_eq!(said(&meter), [], "the same flows");
    let now = [open(1, 2), open(3, 4), waits(4, 3, 3), waits(5, 3, 9)];
    walk(&mut meter, 2, &now);
    assert_eq!(said(&meter), [(3, Some((2, 1))), (4, None)]);
    // Counted once.
    walk(&mut meter, 3, &now);
    assert_eq!(said(&meter), [(3, Some((2, 1))), (4, None)]);
    // One answer is enough.
    walk(&mut meter, 4, &[open(9, 3)]);
    assert_eq!(said(&meter), [(3, None), (4, None)]);
}

#[test]
fn a_young_flow_is_not_unanswered_yet() {
    let mut meter = Meter::default();
    walk(&mut meter, 0, &[]);
    walk(&mut meter, 1, &[waits(1, 3, 2), waits(2, 3, 0)]);
    assert_eq!(said(&meter), []);
    // Answered meanwhile, or waiting still: its SYN was sent again just now.
    let answered = Entry {
        client: waits(1, 3, 0).client,
        ..open(1, 3)
    };
    let mut other = Meter::default();
    walk(&mut other, 0, &[]);
    walk(&mut other, 1, &[waits(1, 3, 2)]);
    walk(&mut other, 2, &[answered]);
    assert_eq!(said(&other), [(3, None)]);
    walk(&mut meter, 2, &[waits(1, 3, 0)]);
    assert_eq!(said(&meter), [(3, Some((1, 1)))]);
    let flows = meter.flows(&rows());
    let BackendAnswer::None { since, .. } = flows.backends[0].answer else {
        panic!("{flows:?}");
    };
    assert_eq!(
        since,
        at(0).wall,
        "it began before the walk that saw it first"
    );
}

#[test]
fn a_time_that_cannot_be_told_is_no_time() {
    let mut meter = Meter::default();
    let unknown = Entry {
        left: None,
        ..waits(1, 3, 50)
    };
    walk(&mut meter, 0, &[]);
    walk(&mut meter, 1, &[unknown]);
    assert_eq!(said(&meter), []);
    let mut meter = Meter::default();
    walk(&mut meter, 0, &[]);
    let none = BTreeMap::new();
    let mut without = meter.begin(&none);
    assert!(without.add(&waits(1, 3, 50)));
    let walked = without.done();
    meter.take(at(1), walked);
    assert_eq!(said(&meter), []);
}

#[test]
fn what_a_dump_missed_once_is_not_new() {
    let mut meter = Meter::default();
    walk(&mut meter, 0, &[open(1, 2)]);
    walk(&mut meter, 1, &[]);
    walk(&mut meter, 2, &[open(1, 2)]);
    assert_eq!(said(&meter), []);
    // The same number, and another flow: numbers come again.
    let again = Entry {
        client: "10.1.0.9:999".parse().unwrap(),
        ..open(1, 2)
    };
    walk(&mut meter, 3, &[open(1, 2), again]);
    assert_eq!(said(&meter), [(2, None)]);
}

#[test]
fn the_window_ends_and_a_long_gap_begins_anew() {
    let mut meter = Meter::default();
    walk(&mut meter, 0, &[]);
    walk(&mut meter, 1, &[open(1, 2), waits(2, 3, 9)]);
    walk(&mut meter, 10, &[]);
    assert_eq!(said(&meter), [(3, Some((1, 1))), (2, None)]);
    walk(&mut meter, 11, &[]);
    assert_eq!(said(&meter), []);
    walk(
        &mut meter,
        40,
        &[open(7, 2), waits(8, 3, 9), waits(9, 3, 1)],
    );
    assert_eq!(said(&meter), []);
    walk(
        &mut meter,
        41,
        &[open(7, 2), waits(8, 3, 39), waits(9, 3, 31)],
    );
    assert_eq!(said(&meter), []);
}

#[test]
fn protocols_and_states_that_say_nothing_are_not_counted() {
    let mut meter = Meter::default();
    walk(&mut meter, 0, &[]);
    let udp = Entry {
        protocol: Protocol::Udp,
        frontend: "10.96.0.10:53".parse().unwrap(),
        tcp_state: None,
        left: Some(20),
        ..waits(1, 5, 0)
    };
    let sctp = Entry {
        protocol: Protocol::Sctp,
        ..open(2, 6)
    };
    // Picked up in the middle, or given up by the client.
    let middle = [3, 8].map(|state| Entry {
        tcp_state: Some(state),
        ..waits(u32::from(state) + 10, 7, 50)
    });
    // Of nobody's frontend.
    let foreign = Entry {
        frontend: "10.96.0.10:81".parse().unwrap(),
        ..open(4, 8)
    };
    walk(&mut meter, 1, &[udp, sctp, middle[0], middle[1], foreign]);
    assert_eq!(said(&meter), [(5, Some((1, 1)))]);
}

#[test]
fn what_is_kept_is_bounded_and_silent_backends_come_first() {
    let mut meter = Meter::default();
    walk(&mut meter, 0, &[]);
    let backends = limits::FLOW_BACKENDS as u32 + 7;
    let mut all: Vec<Entry> = (0..backends)
        .map(|n| Entry {
            backend: SocketAddr::new([10, 245, (n >> 8) as u8, n as u8].into(), 8080),
            ..open(n, 0)
        })
        .collect();
    all.extend((0..40).map(|n| Entry {
        client: SocketAddr::new([10, 2, 0, n].into(), 5),
        ..waits(u32::from(n), 3, 9)
    }));
    walk(&mut meter, 1, &all);
    let flows = meter.flows(&rows());
    assert_eq!(
        (flows.backends.len(), flows.left_out),
        (limits::FLOW_BACKENDS, 8)
    );
    assert!(matches!(
        flows.backends[0].answer,
        BackendAnswer::None {
            flows: 40,
            sources: 16,
            ..
        }
    ));
    let timeouts = timeouts();
    let mut walk = meter.begin(&timeouts);
    let one = open(1, 2);
    let other = |n: u32| Entry {
        backend: SocketAddr::new([10, 246, (n >> 8) as u8, n as u8].into(), 8080),
        client: SocketAddr::new([10, 3, (n >> 8) as u8, n as u8].into(), 5),
        ..one
    };
    let taken = (0..=limits::FLOW_KEYS as u32).take_while(|n| walk.add(&other(*n)));
    assert_eq!(taken.count(), limits::FLOW_KEYS);
    assert!(walk.full());
}
