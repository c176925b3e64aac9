//! From the model to the wire. Never fails: text beyond its bound is cut, lists beyond theirs are cut
//! where that only loses detail.

use crate::limits;
use crate::v1;
use model::address::{Frontend, Protocol, SourceClass};
use model::capture::{DatapathState, Gap};
use model::conntrack::ConntrackReading;
use model::finding::{Evidence, Finding, FindingKind, Severity};
use model::flows::FlowsReading;
use model::name::ServicePortName;
use model::report::{Judged, NodeState, NotJudged, Report, Row};
use model::table::{Action, Affinity, Because, Forwarding, Masquerade, OneOf, SourceRanges};
use model::time::Millis;
use prost::Message;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// A report as it goes over the wire.
pub fn report(r: &Report) -> v1::Report {
    v1::Report {
        rows: r.rows.iter().map(|r| row(r)).collect(),
        ..head(r)
    }
}

/// A report without its rows.
fn head(r: &Report) -> v1::Report {
    v1::Report {
        node: cut(&r.node.0, limits::NAME_BYTES),
        pass: r.pass,
        at_ms: r.at.0,
        took_ms: r.took_ms,
        api_as_of_ms: r.api_as_of.map(|m| m.0),
        state: node_state(r.state) as i32,
        verdict: text(&r.verdict),
        datapaths: r
            .datapaths
            .iter()
            .take(limits::DATAPATHS)
            .map(|d| v1::Datapath {
                name: text(&d.name),
                version: d.version.as_deref().map(text),
                state: match d.state {
                    DatapathState::InCharge => v1::DatapathState::InCharge,
                    DatapathState::Residue => v1::DatapathState::Residue,
                } as i32,
                why: text(&d.why),
            })
            .collect(),
        judged: Some(judged(&r.judged)),
        gaps: r.gaps.iter().take(limits::GAPS).map(gap).collect(),
        findings: r
            .findings
            .iter()
            .take(limits::FINDINGS)
            .map(finding)
            .collect(),
        converging: r
            .converging
            .iter()
            .take(limits::FINDINGS)
            .map(finding)
            .collect(),
        rows: Vec::new(),
        conntrack: r.conntrack.as_deref().map(conntrack),
        flows: r.flows.as_deref().map(flows),
    }
}

/// A reading of connection tracking as it goes over the wire.
pub fn conntrack(c: &ConntrackReading) -> v1::Conntrack {
    crate::conntrack::to_wire(c)
}

/// Which backends answer, as it goes over the wire.
pub fn flows(f: &FlowsReading) -> v1::Flows {
    crate::flows::to_wire(f)
}

pub(crate) fn gap(g: &Gap) -> v1::Gap {
    v1::Gap {
        what: text(&g.what),
        why: text(&g.why),
    }
}

/// The message that carries what is different from `base`, the report that was sent last. `None`
/// where a whole report costs about as much, or does not fit either.
pub fn delta(base: &Report, r: &Report, sent_at: Millis) -> Option<v1::AgentMessage> {
    if r.rows.len() > limits::ROWS || base.rows.len() > limits::ROWS {
        return None;
    }
    let most = r.rows.len() / 2;
    let mut before = base.rows.iter().peekable();
    let (mut changed, mut gone) = (Vec::new(), Vec::new());
    let mut lost = |r: &Row| {
        gone.push(v1::RowKey {
            frontend: Some(frontend(&r.frontend)),
            source: source(r.source) as i32,
        });
    };
    for new in r.rows.iter() {
        let place = new.place();
        while let Some(old) = before.next_if(|old| old.place() < place) {
            lost(old);
        }
        let old = before.next_if(|old| old.place() == place);
        if !old.is_some_and(|old| Arc::ptr_eq(old, new) || old == new) {
            changed.push(new);
            if changed.len() > most {
                return None;
            }
        }
    }
    before.for_each(|old| lost(old));
    if gone.len() > most {
        return None;
    }
    let delta = v1::ReportDelta {
        base_pass: base.pass,
        report: Some(v1::Report {
            rows: changed.into_iter().map(|r| row(r)).collect(),
            ..head(r)
        }),
        gone,
    };
    if delta.encoded_len() > limits::MESSAGE_BYTES - 1024 {
        return None;
    }
    Some(v1::AgentMessage {
        message: Some(v1::agent_message::Message::ReportDelta(delta)),
        sent_at_ms: sent_at.0,
    })
}

/// The report without its rows, and with a gap that says so: for one that is too large for the wire.
pub fn without_rows(mut r: v1::Report, why: &str) -> v1::Report {
    r.rows = Vec::new();
    r.gaps.truncate(limits::GAPS - 1);
    r.gaps.push(v1::Gap {
        what: "report".into(),
        why: text(why),
    });
    r
}

/// A finding as it goes over the wire.
pub fn finding(f: &Finding) -> v1::Finding {
    v1::Finding {
        kind: finding_kind(f.kind) as i32,
        severity: match f.severity {
            Severity::Info => v1::Severity::Info,
            Severity::Warning => v1::Severity::Warning,
            Severity::Critical => v1::Severity::Critical,
        } as i32,
        service: f.service.as_ref().map(service_port),
        frontend: f.frontend.as_ref().map(frontend),
        sources: f.sources.iter().map(|s| source(*s) as i32).collect(),
        backend: f.backend.map(socket),
        since_ms: f.since.0,
        evidence: f
            .evidence
            .iter()
            .take(limits::EVIDENCE)
            .map(evidence)
            .collect(),
        says: text(&f.says),
        absorbs: f.absorbs,
        recurring: f.recurring,
        because: text(&f.because),
    }
}

/// A row as it goes over the wire.
pub fn row(r: &Row) -> v1::Row {
    let as_desired = match (&r.desired, &r.observed) {
        (Some(d), Some(o)) => d.any_of.iter().position(|f| f == o),
        _ => None,
    };
    v1::Row {
        frontend: Some(frontend(&r.frontend)),
        source: source(r.source) as i32,
        service: r.service.as_ref().map(service_port),
        desired: r.desired.as_ref().map(desired),
        observed: match (as_desired, &r.observed) {
            (Some(i), _) => Some(v1::row::Observed::AsDesired(i as u32)),
            (None, Some(o)) => Some(v1::row::Observed::Other(forwarding(o))),
            (None, None) => None,
        },
    }
}

fn desired(d: &OneOf<Forwarding>) -> v1::Desired {
    v1::Desired {
        any_of: d.any_of.iter().map(forwarding).collect(),
        because: match d.because {
            Because::Certain => v1::Because::Certain,
            Because::Conflict => v1::Because::Conflict,
            Because::DuplicateEndpoint => v1::Because::DuplicateEndpoint,
            Because::UnknownVersion => v1::Because::UnknownVersion,
            Because::UnknownConfiguration => v1::Because::UnknownConfiguration,
            Because::FullSyncOnly => v1::Because::FullSyncOnly,
            Because::ReadAtStart => v1::Because::ReadAtStart,
        } as i32,
    }
}

fn forwarding(f: &Forwarding) -> v1::Forwarding {
    v1::Forwarding {
        service: f.service.as_ref().map(service_port),
        action: Some(action(&f.action)),
        backends: f
            .backends
            .iter()
            .map(|b| v1::Backend {
                address: Some(socket(b.address)),
                share: b.share,
                masquerade: match b.masquerade {
                    Masquerade::Never => v1::Masquerade::Never,
                    Masquerade::Always => v1::Masquerade::Always,
                    Masquerade::Hairpin => v1::Masquerade::Hairpin,
                    Masquerade::Unknown => v1::Masquerade::Unknown,
                } as i32,
            })
            .collect(),
        affinity: match &f.affinity {
            Affinity::None => None,
            Affinity::ClientIp(s) => Some(v1::Affinity {
                kind: Some(v1::affinity::Kind::ClientIpSeconds(*s)),
            }),
            Affinity::Broken(why) => Some(v1::Affinity {
                kind: Some(v1::affinity::Kind::Broken(text(why))),
            }),
        },
        source_ranges: f.source_ranges.as_ref().map(source_ranges),
    }
}

fn source_ranges(s: &SourceRanges) -> v1::SourceRanges {
    v1::SourceRanges {
        ranges: s
            .ranges
            .iter()
            .map(|p| v1::Prefix {
                address: bytes(p.addr()),
                length: u32::from(p.prefix_len()),
            })
            .collect(),
        otherwise: Some(action(&s.otherwise)),
    }
}

fn action(a: &Action) -> v1::Action {
    let (kind, why) = match a {
        Action::Forward => (v1::ActionKind::Forward, String::new()),
        Action::Reject => (v1::ActionKind::Reject, String::new()),
        Action::Drop => (v1::ActionKind::Drop, String::new()),
        Action::None => (v1::ActionKind::None, String::new()),
        Action::Unknown(why) => (v1::ActionKind::Unknown, text(why)),
    };
    v1::Action {
        kind: kind as i32,
        why,
    }
}

fn evidence(e: &Evidence) -> v1::Evidence {
    v1::Evidence {
        family: text(&e.family),
        table: text(&e.table),
        chain: text(&e.chain),
        handle: e.handle,
        element: e.element.as_deref().map(text),
        says: text(&e.says),
    }
}

fn judged(j: &Judged) -> v1::Judged {
    v1::Judged {
        pairs: j.pairs,
        multi_answer: j.multi_answer,
        converging: j.converging,
        unknown: j.unknown,
        unknown_reasons: reasons(&j.unknown_reasons),
        not_comparable: j.not_comparable,
        not_comparable_reasons: reasons(&j.not_comparable_reasons),
    }
}

fn reasons(r: &BTreeMap<NotJudged, u64>) -> Vec<v1::Reason> {
    r.iter()
        .map(|(why, pairs)| v1::Reason {
            why: not_judged(*why) as i32,
            pairs: *pairs,
        })
        .collect()
}

fn not_judged(n: NotJudged) -> v1::NotJudged {
    match n {
        NotJudged::Unreadable => v1::NotJudged::Unreadable,
        NotJudged::UnknownExpression => v1::NotJudged::UnknownExpression,
        NotJudged::TooManyForks => v1::NotJudged::TooManyForks,
        NotJudged::ApiView => v1::NotJudged::ApiView,
        NotJudged::NoDatapath => v1::NotJudged::NoDatapath,
        NotJudged::DatapathNotCovered => v1::NotJudged::DatapathNotCovered,
        NotJudged::ServiceCidrUnknown => v1::NotJudged::ServiceCidrUnknown,
        NotJudged::SourceImpossible => v1::NotJudged::SourceImpossible,
        NotJudged::UserSpaceProxy => v1::NotJudged::UserSpaceProxy,
        NotJudged::ProxyNotExpected => v1::NotJudged::ProxyNotExpected,
        NotJudged::ConfigurationUnknown => v1::NotJudged::ConfigurationUnknown,
        NotJudged::NodeState => v1::NotJudged::NodeState,
    }
}

fn finding_kind(k: FindingKind) -> v1::FindingKind {
    match k {
        FindingKind::MissingFrontend => v1::FindingKind::MissingFrontend,
        FindingKind::StaleFrontend => v1::FindingKind::StaleFrontend,
        FindingKind::MissingBackend => v1::FindingKind::MissingBackend,
        FindingKind::StaleBackend => v1::FindingKind::StaleBackend,
        FindingKind::WrongShare => v1::FindingKind::WrongShare,
        FindingKind::WrongAction => v1::FindingKind::WrongAction,
        FindingKind::WrongAffinity => v1::FindingKind::WrongAffinity,
        FindingKind::WrongSourceRanges => v1::FindingKind::WrongSourceRanges,
        FindingKind::WrongMasquerade => v1::FindingKind::WrongMasquerade,
        FindingKind::HooksMissing => v1::FindingKind::HooksMissing,
        FindingKind::ForeignRule => v1::FindingKind::ForeignRule,
        FindingKind::ProxyNotRunning => v1::FindingKind::ProxyNotRunning,
        FindingKind::ProxyStuck => v1::FindingKind::ProxyStuck,
        FindingKind::Unreadable => v1::FindingKind::Unreadable,
        FindingKind::WrongConfiguration => v1::FindingKind::WrongConfiguration,
        FindingKind::ApiConflict => v1::FindingKind::ApiConflict,
    }
}

fn node_state(s: NodeState) -> v1::NodeState {
    match s {
        NodeState::Ready => v1::NodeState::Ready,
        NodeState::Starting => v1::NodeState::Starting,
        NodeState::Draining => v1::NodeState::Draining,
        NodeState::Gone => v1::NodeState::Gone,
    }
}

fn source(s: SourceClass) -> v1::Source {
    match s {
        SourceClass::Pod => v1::Source::Pod,
        SourceClass::Node => v1::Source::Node,
        SourceClass::Outside => v1::Source::Outside,
    }
}

fn frontend(f: &Frontend) -> v1::Frontend {
    let kind = match f {
        Frontend::Port { protocol, port, .. } => v1::frontend::Kind::Port(v1::PortOf {
            protocol: match protocol {
                Protocol::Tcp => v1::Protocol::Tcp,
                Protocol::Udp => v1::Protocol::Udp,
                Protocol::Sctp => v1::Protocol::Sctp,
            } as i32,
            port: u32::from(*port),
        }),
        Frontend::Address(_) => v1::frontend::Kind::AnyPort(true),
        Frontend::Prefix(p) => v1::frontend::Kind::Prefix(u32::from(p.prefix_len())),
    };
    v1::Frontend {
        address: bytes(f.address()),
        kind: Some(kind),
    }
}

pub(crate) fn socket(s: SocketAddr) -> v1::Socket {
    v1::Socket {
        address: bytes(s.ip()),
        port: u32::from(s.port()),
    }
}

pub(crate) fn service_port(s: &ServicePortName) -> v1::ServicePort {
    v1::ServicePort {
        namespace: cut(&s.service.namespace, limits::NAME_BYTES),
        name: cut(&s.service.name, limits::NAME_BYTES),
        port: cut(&s.port, limits::NAME_BYTES),
    }
}

fn bytes(a: IpAddr) -> Vec<u8> {
    match a {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

fn text(s: &str) -> String {
    cut(s, limits::TEXT_BYTES)
}

fn cut(s: &str, bytes: usize) -> String {
    if s.len() <= bytes {
        return s.to_string();
    }
    let mut end = bytes - '…'.len_utf8();
    while !s.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &s[..end])
}

/// The message that carries a report. One that is larger than [`limits::MESSAGE_BYTES`] or has more
/// rows than [`limits::ROWS`] goes without its rows, and says so in a gap.
pub fn message(r: &Report, sent_at: Millis) -> v1::AgentMessage {
    let mut wire = report(r);
    if wire.rows.len() > limits::ROWS || wire.encoded_len() > limits::MESSAGE_BYTES - 1024 {
        let why = format!(
            "{} rows are too many to send; the findings are whole",
            wire.rows.len()
        );
        wire = without_rows(wire, &why);
    }
    v1::AgentMessage {
        message: Some(v1::agent_message::Message::Report(wire)),
        sent_at_ms: sent_at.0,
    }
}
