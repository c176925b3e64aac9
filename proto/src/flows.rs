//! Which backends answer, to the wire and back; [`crate::encode::flows`] and [`crate::decode::flows`].

use crate::decode::{Result, WireError, each, gap, service_port, socket, unknown};
use crate::{encode, limits, v1};
use model::address::Protocol;
use model::capture::Reading;
use model::flows::{BackendAnswer, BackendFlows, Flows, FlowsReading};
use model::time::Millis;

pub(crate) fn to_wire(f: &FlowsReading) -> v1::Flows {
    use v1::flows::Reading as Wire;
    v1::Flows {
        at_ms: f.at.0,
        reading: Some(match &f.reading {
            Reading::Absent => Wire::Absent(true),
            Reading::Failed(gap) => Wire::Failed(encode::gap(gap)),
            Reading::Read(seen) => Wire::Seen(v1::FlowsSeen {
                left_out: seen.left_out
                    + seen.backends.len().saturating_sub(limits::FLOW_BACKENDS) as u64,
                backends: seen
                    .backends
                    .iter()
                    .take(limits::FLOW_BACKENDS)
                    .map(backend)
                    .collect(),
            }),
        }),
    }
}

fn backend(b: &BackendFlows) -> v1::BackendFlows {
    v1::BackendFlows {
        service: Some(encode::service_port(&b.service)),
        protocol: match b.protocol {
            Protocol::Tcp => v1::Protocol::Tcp,
            Protocol::Udp => v1::Protocol::Udp,
            Protocol::Sctp => v1::Protocol::Sctp,
        } as i32,
        backend: Some(encode::socket(b.backend)),
        unanswered: match b.answer {
            BackendAnswer::Some => None,
            BackendAnswer::None {
                flows,
                sources,
                since,
            } => Some(v1::Unanswered {
                flows,
                sources,
                since_ms: since.0,
            }),
        },
    }
}

pub(crate) fn from_wire(f: v1::Flows) -> Result<FlowsReading> {
    use v1::flows::Reading as Wire;
    Ok(FlowsReading {
        at: Millis(f.at_ms),
        reading: match f.reading.ok_or(WireError::Missing("flows.reading"))? {
            Wire::Absent(_) => Reading::Absent,
            Wire::Failed(g) => Reading::Failed(gap("flows.failed", g)?),
            Wire::Seen(seen) => Reading::Read(Flows {
                backends: each(
                    "flows.backends",
                    seen.backends,
                    limits::FLOW_BACKENDS,
                    backend_from,
                )?,
                left_out: seen.left_out,
            }),
        },
    })
}

fn backend_from(b: v1::BackendFlows) -> Result<BackendFlows> {
    Ok(BackendFlows {
        service: service_port(b.service.ok_or(WireError::Missing("flows.service"))?)?,
        protocol: match v1::Protocol::try_from(b.protocol) {
            Ok(v1::Protocol::Tcp) => Protocol::Tcp,
            Ok(v1::Protocol::Udp) => Protocol::Udp,
            _ => return unknown("flows.protocol", b.protocol),
        },
        backend: socket(
            "flows.backend",
            b.backend.ok_or(WireError::Missing("flows.backend"))?,
        )?,
        answer: match b.unanswered {
            None => BackendAnswer::Some,
            Some(u) if u.flows == 0 || u.sources == 0 || u.sources > u.flows => {
                return Err(WireError::Wrong {
                    field: "flows.unanswered",
                    why: "not flows, and sources of them",
                });
            }
            Some(u) => BackendAnswer::None {
                flows: u.flows,
                sources: u.sources,
                since: Millis(u.since_ms),
            },
        },
    })
}
