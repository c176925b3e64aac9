//! From the wire to the model. What comes in is a stranger's: every value is checked, and an error
//! names the field that is wrong.

use crate::limits;
use crate::v1;
use ipnet::IpNet;
use model::address::{Frontend, Protocol, SourceClass};
use model::capture::{DatapathFound, DatapathState, Gap};
use model::conntrack::ConntrackReading;
use model::finding::{Evidence, Finding, FindingKind, Severity};
use model::flows::FlowsReading;
use model::name::{NodeName, ServicePortName};
use model::report::{Judged, NodeState, NotJudged, Report, Row};
use model::table::{
    Action, Affinity, Backend, Because, Forwarding, Masquerade, OneOf, SourceRanges,
};
use model::time::Millis;
use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// Why a message is refused. The field is a path as in the `.proto`: `rows.frontend.address`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A field that must be there is not.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// An enum value that this version does not know: the sender is newer, or wrong.
    #[error("{field} has the value {value}, which this version does not know")]
    Unknown {
        /// The field.
        field: &'static str,
        /// Its number.
        value: i32,
    },
    /// More elements or bytes than the bound of [`crate::limits`].
    #[error("{field} has {got}, more than {bound}")]
    TooMany {
        /// The field.
        field: &'static str,
        /// How many there are.
        got: usize,
        /// How many may be there.
        bound: usize,
    },
    /// A value out of its range.
    #[error("{field} is wrong: {why}")]
    Wrong {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        why: &'static str,
    },
}

pub(crate) type Result<T> = std::result::Result<T, WireError>;

impl TryFrom<v1::Report> for Report {
    type Error = WireError;

    fn try_from(r: v1::Report) -> Result<Report> {
        few("rows", r.rows.len(), limits::ROWS)?;
        Ok(Report {
            node: node(&r.node)?,
            pass: r.pass,
            at: Millis(r.at_ms),
            took_ms: r.took_ms,
            api_as_of: r.api_as_of_ms.map(Millis),
            state: match v1::NodeState::try_from(r.state) {
                Ok(v1::NodeState::Ready) => NodeState::Ready,
                Ok(v1::NodeState::Starting) => NodeState::Starting,
                Ok(v1::NodeState::Draining) => NodeState::Draining,
                Ok(v1::NodeState::Gone) => NodeState::Gone,
                _ => return unknown("state", r.state),
            },
            verdict: text("verdict", r.verdict)?,
            datapaths: each("datapaths", r.datapaths, limits::DATAPATHS, datapath)?,
            judged: judged(r.judged.ok_or(WireError::Missing("judged"))?)?,
            gaps: each("gaps", r.gaps, limits::GAPS, |g| gap("gaps", g))?,
            findings: each("findings", r.findings, limits::FINDINGS, finding)?,
            converging: each("converging", r.converging, limits::FINDINGS, finding)?,
            rows: r
                .rows
                .into_iter()
                .map(|r| row(r).map(Arc::new))
                .collect::<Result<_>>()?,
            conntrack: r.conntrack.map(conntrack).transpose()?.map(Arc::new),
            flows: r.flows.map(flows).transpose()?.map(Arc::new),
        })
    }
}

/// A reading of connection tracking from the wire.
///
/// # Errors
/// [`WireError`].
pub fn conntrack(c: v1::Conntrack) -> Result<ConntrackReading> {
    crate::conntrack::from_wire(c)
}

/// Which backends answer, from the wire.
///
/// # Errors
/// [`WireError`].
pub fn flows(f: v1::Flows) -> Result<FlowsReading> {
    crate::flows::from_wire(f)
}

pub(crate) fn gap(field: &'static str, g: v1::Gap) -> Result<Gap> {
    Ok(Gap {
        what: text(field, g.what)?.into(),
        why: text(field, g.why)?.into(),
    })
}

/// The report that a delta makes of the one before it on the same stream.
///
/// # Errors
/// [`WireError`]; [`WireError::Wrong`] also for a delta of another report than `base`.
pub fn delta(base: &Report, d: v1::ReportDelta) -> Result<Report> {
    if d.base_pass != base.pass {
        return Err(WireError::Wrong {
            field: "base_pass",
            why: "it is not the report that came last",
        });
    }
    few("gone", d.gone.len(), limits::ROWS)?;
    let changed: Report = d.report.ok_or(WireError::Missing("report"))?.try_into()?;
    let gone: HashSet<(Frontend, SourceClass)> = d
        .gone
        .into_iter()
        .map(|key| {
            let at = frontend(key.frontend.ok_or(WireError::Missing("gone.frontend"))?)?;
            Ok((at, source("gone.source", key.source)?))
        })
        .collect::<Result<_>>()?;
    let mut new: BTreeMap<_, Arc<Row>> = changed
        .rows
        .iter()
        .map(|row| (row.place(), row.clone()))
        .collect();
    let mut rows: Vec<Arc<Row>> = Vec::with_capacity(base.rows.len() + new.len());
    for old in base.rows.iter() {
        if !gone.contains(&(old.frontend, old.source)) {
            rows.push(new.remove(&old.place()).unwrap_or_else(|| old.clone()));
        }
    }
    if !new.is_empty() {
        rows.extend(new.into_values());
        rows.sort_by_key(|row| row.place());
    }
    few("rows", rows.len(), limits::ROWS)?;
    Ok(Report {
        rows: rows.into(),
        ..changed
    })
}

/// A node's name: not empty, at most 253 bytes.
pub fn node(s: &str) -> Result<NodeName> {
    if s.is_empty() {
        return Err(WireError::Missing("node"));
    }
    few("node", s.len(), limits::NAME_BYTES)?;
    Ok(NodeName(s.into()))
}

fn datapath(d: v1::Datapath) -> Result<DatapathFound> {
    Ok(DatapathFound {
        name: text("datapaths.name", d.name)?.into(),
        version: d
            .version
            .map(|v| text("datapaths.version", v))
            .transpose()?,
        state: match v1::DatapathState::try_from(d.state) {
            Ok(v1::DatapathState::InCharge) => DatapathState::InCharge,
            Ok(v1::DatapathState::Residue) => DatapathState::Residue,
            _ => return unknown("datapaths.state", d.state),
        },
        why: text("datapaths.why", d.why)?,
    })
}

fn judged(j: v1::Judged) -> Result<Judged> {
    Ok(Judged {
        pairs: j.pairs,
        multi_answer: j.multi_answer,
        converging: j.converging,
        unknown: j.unknown,
        unknown_reasons: reasons("judged.unknown_reasons", j.unknown_reasons)?,
        not_comparable: j.not_comparable,
        not_comparable_reasons: reasons("judged.not_comparable_reasons", j.not_comparable_reasons)?,
    })
}

fn reasons(field: &'static str, list: Vec<v1::Reason>) -> Result<BTreeMap<NotJudged, u64>> {
    few(field, list.len(), 64)?;
    let mut out = BTreeMap::new();
    for r in list {
        if out.insert(not_judged(field, r.why)?, r.pairs).is_some() {
            return Err(WireError::Wrong {
                field,
                why: "a reason stands there twice",
            });
        }
    }
    Ok(out)
}

fn not_judged(field: &'static str, value: i32) -> Result<NotJudged> {
    Ok(match v1::NotJudged::try_from(value) {
        Ok(v1::NotJudged::Unreadable) => NotJudged::Unreadable,
        Ok(v1::NotJudged::UnknownExpression) => NotJudged::UnknownExpression,
        Ok(v1::NotJudged::TooManyForks) => NotJudged::TooManyForks,
        Ok(v1::NotJudged::ApiView) => NotJudged::ApiView,
        Ok(v1::NotJudged::NoDatapath) => NotJudged::NoDatapath,
        Ok(v1::NotJudged::DatapathNotCovered) => NotJudged::DatapathNotCovered,
        Ok(v1::NotJudged::ServiceCidrUnknown) => NotJudged::ServiceCidrUnknown,
        Ok(v1::NotJudged::SourceImpossible) => NotJudged::SourceImpossible,
        Ok(v1::NotJudged::UserSpaceProxy) => NotJudged::UserSpaceProxy,
        Ok(v1::NotJudged::ProxyNotExpected) => NotJudged::ProxyNotExpected,
        Ok(v1::NotJudged::ConfigurationUnknown) => NotJudged::ConfigurationUnknown,
        Ok(v1::NotJudged::NodeState) => NotJudged::NodeState,
        Ok(v1::NotJudged::Unspecified) | Err(_) => return unknown(field, value),
    })
}

fn finding(f: v1::Finding) -> Result<Finding> {
    Ok(Finding {
        kind: finding_kind(f.kind)?,
        severity: match v1::Severity::try_from(f.severity) {
            Ok(v1::Severity::Info) => Severity::Info,
            Ok(v1::Severity::Warning) => Severity::Warning,
            Ok(v1::Severity::Critical) => Severity::Critical,
            _ => return unknown("findings.severity", f.severity),
        },
        service: f.service.map(service_port).transpose()?,
        frontend: f.frontend.map(frontend).transpose()?,
        sources: each("findings.sources", f.sources, SourceClass::ALL.len(), |s| {
            source("findings.sources", s)
        })?,
        backend: f
            .backend
            .map(|s| socket("findings.backend", s))
            .transpose()?,
        since: Millis(f.since_ms),
        evidence: each("findings.evidence", f.evidence, limits::EVIDENCE, evidence)?,
        says: text("findings.says", f.says)?,
        absorbs: f.absorbs,
        recurring: f.recurring,
        because: text("findings.because", f.because)?,
    })
}

fn finding_kind(value: i32) -> Result<FindingKind> {
    Ok(match v1::FindingKind::try_from(value) {
        Ok(v1::FindingKind::MissingFrontend) => FindingKind::MissingFrontend,
        Ok(v1::FindingKind::StaleFrontend) => FindingKind::StaleFrontend,
        Ok(v1::FindingKind::MissingBackend) => FindingKind::MissingBackend,
        Ok(v1::FindingKind::StaleBackend) => FindingKind::StaleBackend,
        Ok(v1::FindingKind::WrongShare) => FindingKind::WrongShare,
        Ok(v1::FindingKind::WrongAction) => FindingKind::WrongAction,
        Ok(v1::FindingKind::WrongAffinity) => FindingKind::WrongAffinity,
        Ok(v1::FindingKind::WrongSourceRanges) => FindingKind::WrongSourceRanges,
        Ok(v1::FindingKind::WrongMasquerade) => FindingKind::WrongMasquerade,
        Ok(v1::FindingKind::HooksMissing) => FindingKind::HooksMissing,
        Ok(v1::FindingKind::ForeignRule) => FindingKind::ForeignRule,
        Ok(v1::FindingKind::ProxyNotRunning) => FindingKind::ProxyNotRunning,
        Ok(v1::FindingKind::ProxyStuck) => FindingKind::ProxyStuck,
        Ok(v1::FindingKind::Unreadable) => FindingKind::Unreadable,
        Ok(v1::FindingKind::WrongConfiguration) => FindingKind::WrongConfiguration,
        Ok(v1::FindingKind::ApiConflict) => FindingKind::ApiConflict,
        Ok(v1::FindingKind::Unspecified) | Err(_) => return unknown("findings.kind", value),
    })
}

fn evidence(e: v1::Evidence) -> Result<Evidence> {
    let field = "findings.evidence";
    Ok(Evidence {
        family: text(field, e.family)?.into(),
        table: text(field, e.table)?.into(),
        chain: text(field, e.chain)?.into(),
        handle: e.handle,
        element: e
            .element
            .map(|s| text(field, s).map(Arc::from))
            .transpose()?,
        says: text(field, e.says)?.into(),
    })
}

/// A row from the wire.
pub fn row(r: v1::Row) -> Result<Row> {
    let desired = r.desired.map(desired).transpose()?;
    let observed = match r.observed {
        None => None,
        Some(v1::row::Observed::Other(f)) => Some(forwarding(f)?),
        Some(v1::row::Observed::AsDesired(i)) => Some(
            desired
                .as_ref()
                .and_then(|d| d.any_of.get(i as usize))
                .ok_or(WireError::Wrong {
                    field: "rows.as_desired",
                    why: "there is no such answer in rows.desired",
                })?
                .clone(),
        ),
    };
    Ok(Row {
        frontend: frontend(r.frontend.ok_or(WireError::Missing("rows.frontend"))?)?,
        source: source("rows.source", r.source)?,
        service: r.service.map(service_port).transpose()?,
        desired,
        observed,
    })
}

fn desired(d: v1::Desired) -> Result<OneOf<Forwarding>> {
    if d.any_of.is_empty() {
        return Err(WireError::Missing("rows.desired.any_of"));
    }
    Ok(OneOf {
        any_of: each("rows.desired.any_of", d.any_of, limits::ANSWERS, forwarding)?,
        because: match v1::Because::try_from(d.because) {
            Ok(v1::Because::Certain) => Because::Certain,
            Ok(v1::Because::Conflict) => Because::Conflict,
            Ok(v1::Because::DuplicateEndpoint) => Because::DuplicateEndpoint,
            Ok(v1::Because::UnknownVersion) => Because::UnknownVersion,
            Ok(v1::Because::UnknownConfiguration) => Because::UnknownConfiguration,
            Ok(v1::Because::FullSyncOnly) => Because::FullSyncOnly,
            Ok(v1::Because::ReadAtStart) => Because::ReadAtStart,
            Ok(v1::Because::Unspecified) | Err(_) => {
                return unknown("rows.desired.because", d.because);
            }
        },
    })
}

fn forwarding(f: v1::Forwarding) -> Result<Forwarding> {
    Ok(Forwarding {
        service: f.service.map(service_port).transpose()?,
        action: action(
            "rows.action",
            f.action.ok_or(WireError::Missing("rows.action"))?,
        )?,
        backends: each("rows.backends", f.backends, limits::BACKENDS, backend)?.into(),
        affinity: match f.affinity {
            None => Affinity::None,
            Some(a) => match a.kind {
                Some(v1::affinity::Kind::ClientIpSeconds(s)) => Affinity::ClientIp(s),
                Some(v1::affinity::Kind::Broken(why)) => {
                    Affinity::Broken(text("rows.affinity.broken", why)?.into())
                }
                None => return Err(WireError::Missing("rows.affinity.kind")),
            },
        },
        source_ranges: f.source_ranges.map(source_ranges).transpose()?,
    })
}

fn backend(b: v1::Backend) -> Result<Backend> {
    if !(0.0..=1.000_001).contains(&b.share) {
        return Err(WireError::Wrong {
            field: "rows.backends.share",
            why: "not within 0 and 1",
        });
    }
    Ok(Backend {
        address: socket(
            "rows.backends.address",
            b.address
                .ok_or(WireError::Missing("rows.backends.address"))?,
        )?,
        share: b.share,
        masquerade: match v1::Masquerade::try_from(b.masquerade) {
            Ok(v1::Masquerade::Never) => Masquerade::Never,
            Ok(v1::Masquerade::Always) => Masquerade::Always,
            Ok(v1::Masquerade::Hairpin) => Masquerade::Hairpin,
            Ok(v1::Masquerade::Unknown) => Masquerade::Unknown,
            Ok(v1::Masquerade::Unspecified) | Err(_) => {
                return unknown("rows.backends.masquerade", b.masquerade);
            }
        },
    })
}

fn source_ranges(s: v1::SourceRanges) -> Result<SourceRanges> {
    Ok(SourceRanges {
        ranges: each("rows.source_ranges", s.ranges, limits::RANGES, |p| {
            prefix("rows.source_ranges", &p.address, p.length)
        })?,
        otherwise: action(
            "rows.source_ranges.otherwise",
            s.otherwise
                .ok_or(WireError::Missing("rows.source_ranges.otherwise"))?,
        )?,
    })
}

fn action(field: &'static str, a: v1::Action) -> Result<Action> {
    Ok(match v1::ActionKind::try_from(a.kind) {
        Ok(v1::ActionKind::Forward) => Action::Forward,
        Ok(v1::ActionKind::Reject) => Action::Reject,
        Ok(v1::ActionKind::Drop) => Action::Drop,
        Ok(v1::ActionKind::None) => Action::None,
        Ok(v1::ActionKind::Unknown) => Action::Unknown(text(field, a.why)?.into()),
        Ok(v1::ActionKind::Unspecified) | Err(_) => return unknown(field, a.kind),
    })
}

fn source(field: &'static str, value: i32) -> Result<SourceClass> {
    Ok(match v1::Source::try_from(value) {
        Ok(v1::Source::Pod) => SourceClass::Pod,
        Ok(v1::Source::Node) => SourceClass::Node,
        Ok(v1::Source::Outside) => SourceClass::Outside,
        Ok(v1::Source::Unspecified) | Err(_) => return unknown(field, value),
    })
}

fn frontend(f: v1::Frontend) -> Result<Frontend> {
    let field = "frontend.address";
    Ok(match f.kind.ok_or(WireError::Missing("frontend.kind"))? {
        v1::frontend::Kind::Port(p) => Frontend::Port {
            address: address(field, &f.address)?,
            protocol: match v1::Protocol::try_from(p.protocol) {
                Ok(v1::Protocol::Tcp) => Protocol::Tcp,
                Ok(v1::Protocol::Udp) => Protocol::Udp,
                Ok(v1::Protocol::Sctp) => Protocol::Sctp,
                Ok(v1::Protocol::Unspecified) | Err(_) => {
                    return unknown("frontend.port.protocol", p.protocol);
                }
            },
            port: port("frontend.port", p.port)?,
        },
        v1::frontend::Kind::AnyPort(_) => Frontend::Address(address(field, &f.address)?),
        v1::frontend::Kind::Prefix(length) => Frontend::Prefix(prefix(field, &f.address, length)?),
    })
}

fn prefix(field: &'static str, bytes: &[u8], length: u32) -> Result<IpNet> {
    let wrong = WireError::Wrong {
        field,
        why: "no such prefix length",
    };
    let length = u8::try_from(length).map_err(|_| wrong.clone())?;
    IpNet::new(address(field, bytes)?, length).map_err(|_| wrong)
}

pub(crate) fn socket(field: &'static str, s: v1::Socket) -> Result<SocketAddr> {
    Ok(SocketAddr::new(
        address(field, &s.address)?,
        port(field, s.port)?,
    ))
}

fn port(field: &'static str, value: u32) -> Result<u16> {
    u16::try_from(value).map_err(|_| WireError::Wrong {
        field,
        why: "a port is at most 65535",
    })
}

fn address(field: &'static str, bytes: &[u8]) -> Result<IpAddr> {
    if let Ok(b) = <[u8; 4]>::try_from(bytes) {
        return Ok(b.into());
    }
    match <[u8; 16]>::try_from(bytes) {
        Ok(b) => Ok(b.into()),
        Err(_) => Err(WireError::Wrong {
            field,
            why: "an address has 4 or 16 bytes",
        }),
    }
}

pub(crate) fn service_port(s: v1::ServicePort) -> Result<ServicePortName> {
    if s.namespace.is_empty() || s.name.is_empty() {
        return Err(WireError::Missing("service"));
    }
    for part in [&s.namespace, &s.name, &s.port] {
        few("service", part.len(), limits::NAME_BYTES)?;
    }
    Ok(ServicePortName::new(&s.namespace, &s.name, &s.port))
}

fn text(field: &'static str, s: String) -> Result<String> {
    few(field, s.len(), limits::TEXT_BYTES)?;
    Ok(s)
}

pub(crate) fn few(field: &'static str, got: usize, bound: usize) -> Result<()> {
    if got > bound {
        Err(WireError::TooMany { field, got, bound })
    } else {
        Ok(())
    }
}

pub(crate) fn each<A, B>(
    field: &'static str,
    list: Vec<A>,
    bound: usize,
    f: impl Fn(A) -> Result<B>,
) -> Result<Vec<B>> {
    few(field, list.len(), bound)?;
    list.into_iter().map(f).collect()
}

pub(crate) fn unknown<T>(field: &'static str, value: i32) -> Result<T> {
    Err(WireError::Unknown { field, value })
}
