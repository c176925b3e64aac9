//! Connection tracking to the wire and back; [`crate::encode::conntrack`] and
//! [`crate::decode::conntrack`].

use crate::decode::{Result, WireError, gap, unknown};
use crate::{encode, v1};
use model::capture::Reading;
use model::conntrack::{
    Conntrack, ConntrackReading, Counter, Counters, Filling, Forecast, Recent, Timeout,
};
use model::time::Millis;
use std::collections::BTreeMap;

pub(crate) fn to_wire(c: &ConntrackReading) -> v1::Conntrack {
    use v1::conntrack::Reading as Wire;
    v1::Conntrack {
        at_ms: c.at.0,
        reading: Some(match &c.reading {
            Reading::Absent => Wire::Absent(true),
            Reading::Failed(gap) => Wire::Failed(encode::gap(gap)),
            Reading::Read(c) => Wire::Table(table(c)),
        }),
    }
}

fn table(c: &Conntrack) -> v1::ConntrackTable {
    let lately = |counter| c.recent.and_then(|r| r.increases.get(counter));
    v1::ConntrackTable {
        entries: c.entries,
        limit: c.limit,
        buckets: c.buckets,
        timeouts: c
            .timeouts
            .iter()
            .map(|(timeout, seconds)| v1::ConntrackTimeout {
                kind: timeout_kind(*timeout) as i32,
                seconds: *seconds,
            })
            .collect(),
        counts: c
            .totals
            .iter()
            .map(|(counter, total)| v1::ConntrackCount {
                counter: counter_kind(counter) as i32,
                total,
                lately: lately(counter),
            })
            .collect(),
        lately_ms: c.recent.map_or(0, |r| r.ms),
        forecast: Some(v1::ConntrackForecast {
            state: Some(forecast(&c.forecast)),
        }),
    }
}

fn forecast(f: &Forecast) -> v1::conntrack_forecast::State {
    use v1::conntrack_forecast::State;
    match f {
        Forecast::NoLimit => State::NoLimit(true),
        Forecast::Full => State::Full(true),
        Forecast::TooShort => State::TooShort(true),
        Forecast::Steady { seen_seconds } => State::SteadySeenSeconds(*seen_seconds),
        Forecast::Distant { beyond_seconds } => State::DistantBeyondSeconds(*beyond_seconds),
        Forecast::Filling(f) => State::Filling(v1::ConntrackFilling {
            seconds: f.seconds,
            earliest: f.earliest,
            latest: f.latest,
            per_second: f.per_second,
            seen_seconds: f.seen_seconds,
        }),
    }
}

fn timeout_kind(t: Timeout) -> v1::ConntrackTimeoutKind {
    match t {
        Timeout::TcpSynSent => v1::ConntrackTimeoutKind::TcpSynSent,
        Timeout::TcpSynRecv => v1::ConntrackTimeoutKind::TcpSynRecv,
        Timeout::TcpEstablished => v1::ConntrackTimeoutKind::TcpEstablished,
        Timeout::TcpFinWait => v1::ConntrackTimeoutKind::TcpFinWait,
        Timeout::TcpCloseWait => v1::ConntrackTimeoutKind::TcpCloseWait,
        Timeout::TcpTimeWait => v1::ConntrackTimeoutKind::TcpTimeWait,
        Timeout::Udp => v1::ConntrackTimeoutKind::Udp,
        Timeout::UdpStream => v1::ConntrackTimeoutKind::UdpStream,
        Timeout::Icmp => v1::ConntrackTimeoutKind::Icmp,
        Timeout::Generic => v1::ConntrackTimeoutKind::Generic,
    }
}

fn counter_kind(c: Counter) -> v1::ConntrackCounter {
    match c {
        Counter::Found => v1::ConntrackCounter::Found,
        Counter::Invalid => v1::ConntrackCounter::Invalid,
        Counter::Insert => v1::ConntrackCounter::Insert,
        Counter::InsertFailed => v1::ConntrackCounter::InsertFailed,
        Counter::Drop => v1::ConntrackCounter::Drop,
        Counter::EarlyDrop => v1::ConntrackCounter::EarlyDrop,
        Counter::Error => v1::ConntrackCounter::Error,
        Counter::SearchRestart => v1::ConntrackCounter::SearchRestart,
        Counter::ClashResolve => v1::ConntrackCounter::ClashResolve,
        Counter::ChainTooLong => v1::ConntrackCounter::ChainToolong,
    }
}

pub(crate) fn from_wire(c: v1::Conntrack) -> Result<ConntrackReading> {
    use v1::conntrack::Reading as Wire;
    Ok(ConntrackReading {
        at: Millis(c.at_ms),
        reading: match c.reading.ok_or(WireError::Missing("conntrack.reading"))? {
            Wire::Absent(_) => Reading::Absent,
            Wire::Failed(g) => Reading::Failed(gap("conntrack.failed", g)?),
            Wire::Table(t) => Reading::Read(read(t)?),
        },
    })
}

fn read(t: v1::ConntrackTable) -> Result<Conntrack> {
    let (mut totals, mut increases) = (Counters::default(), Counters::default());
    for count in t.counts {
        let field = "conntrack.counts";
        let counter = Counter::ALL
            .into_iter()
            .find(|c| counter_kind(*c) as i32 == count.counter);
        let Some(counter) = counter else {
            return unknown(field, count.counter);
        };
        if totals.get(counter).is_some() {
            return twice(field);
        }
        totals.set(counter, count.total);
        if let Some(lately) = count.lately {
            increases.set(counter, lately);
        }
    }
    let mut timeouts = BTreeMap::new();
    for timeout in t.timeouts {
        let field = "conntrack.timeouts";
        let kind = Timeout::ALL
            .into_iter()
            .find(|t| timeout_kind(*t) as i32 == timeout.kind);
        let Some(kind) = kind else {
            return unknown(field, timeout.kind);
        };
        if timeouts.insert(kind, timeout.seconds).is_some() {
            return twice(field);
        }
    }
    let state = t.forecast.and_then(|f| f.state);
    Ok(Conntrack {
        entries: t.entries,
        limit: t.limit,
        buckets: t.buckets,
        timeouts,
        totals,
        recent: (t.lately_ms > 0).then_some(Recent {
            ms: t.lately_ms,
            increases,
        }),
        forecast: forecast_from(state.ok_or(WireError::Missing("conntrack.forecast"))?)?,
    })
}

fn twice<T>(field: &'static str) -> Result<T> {
    Err(WireError::Wrong {
        field,
        why: "one stands there twice",
    })
}

fn forecast_from(state: v1::conntrack_forecast::State) -> Result<Forecast> {
    use v1::conntrack_forecast::State;
    Ok(match state {
        State::NoLimit(_) => Forecast::NoLimit,
        State::Full(_) => Forecast::Full,
        State::TooShort(_) => Forecast::TooShort,
        State::SteadySeenSeconds(seen_seconds) => Forecast::Steady { seen_seconds },
        State::DistantBeyondSeconds(beyond_seconds) => Forecast::Distant { beyond_seconds },
        State::Filling(f) => {
            let numbers = [f.earliest, f.seconds, f.latest, f.per_second];
            if !numbers.iter().all(|n| n.is_finite() && *n >= 0.0)
                || f.earliest > f.seconds
                || f.seconds > f.latest
            {
                return Err(WireError::Wrong {
                    field: "conntrack.forecast.filling",
                    why: "not times in order, 0 or more",
                });
            }
            Forecast::Filling(Filling {
                seconds: f.seconds,
                earliest: f.earliest,
                latest: f.latest,
                per_second: f.per_second,
                seen_seconds: f.seen_seconds,
            })
        }
    })
}
