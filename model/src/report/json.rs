//! The JSON of `check` and `table`, as the contract fixes it. Callers serialise.

use super::{NotJudged, Report, Row};
use crate::address::{Frontend, SourceClass};
use crate::capture::DatapathFound;
use crate::finding::{Evidence, Finding, FindingKind, Severity};
use crate::name::ServicePortName;
use crate::table::{Action, Affinity, Because, Forwarding, Masquerade};
use crate::time::Millis;
use ipnet::IpNet;
use serde::Serialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

/// `2026-11-25T12:43:48.120Z` (RFC 3339, UTC). Milliseconds are left out where they are 0.
pub fn rfc3339(at: Millis) -> String {
    let (days, in_day) = (at.0 / 86_400_000, at.0 % 86_400_000);
    // Days to year, month, day: the era of 400 years starts on 1 March 0000 (Howard Hinnant,
    // "chrono-compatible low-level date algorithms", civil_from_days).
    let z = days + 719_468;
    let (era, doe) = (z / 146_097, z % 146_097);
    let yoe = (doe - doe / 1_460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + u64::from(month <= 2);
    let milli = in_day % 1_000;
    let fraction = if milli == 0 {
        String::new()
    } else {
        format!(".{milli:03}")
    };
    format!("{year:04}-{month:02}-{day:02}T{}{fraction}Z", clock(at))
}

/// `12:43:48` (UTC).
pub(crate) fn clock(at: Millis) -> String {
    let s = at.0 / 1_000 % 86_400;
    format!("{:02}:{:02}:{:02}", s / 3_600, s / 60 % 60, s % 60)
}

/// What `check --output json` prints.
#[derive(Clone, Debug, Serialize)]
pub struct CheckJson<'a> {
    /// One sentence.
    pub verdict: &'a str,
    /// Which node.
    pub node: &'a str,
    /// When the kernel was read, RFC 3339.
    pub at: String,
    /// Until when the view of the API is known to be current, RFC 3339.
    pub api_as_of: Option<String>,
    /// The node's own state.
    pub state: super::NodeState,
    /// Datapaths found.
    pub datapaths: &'a [DatapathFound],
    /// How much was judged.
    pub judged: JudgedJson<'a>,
    /// What could not be read.
    pub gaps: &'a [crate::capture::Gap],
    /// What lasted.
    pub findings: Vec<FindingJson<'a>>,
    /// What is still given time.
    pub converging: Vec<FindingJson<'a>>,
    /// What the debugging flow finds in the API's objects alone; null where it was not asked: only
    /// `check --manifests` with Pods among them does.
    pub api_findings: Option<&'a [crate::flow::ApiFinding]>,
}

/// `judged` of [`CheckJson`]: numbers of pairs of frontend and source. `pairs`, `unknown` and
/// `not_comparable` add up to all of them.
#[derive(Clone, Debug, Serialize)]
pub struct JudgedJson<'a> {
    /// Compared, converging ones included.
    pub pairs: u64,
    /// Of them, compared against more than one legitimate answer.
    pub multi_answer: u64,
    /// Of them, converging.
    pub converging: u64,
    /// Could not be told.
    pub unknown: u64,
    /// Why not, from the closed list, with the number of pairs.
    pub unknown_reasons: &'a BTreeMap<NotJudged, u64>,
    /// Not to be compared.
    pub not_comparable: u64,
    /// Why not, from the closed list, with the number of pairs.
    pub not_comparable_reasons: &'a BTreeMap<NotJudged, u64>,
}

/// One entry of `findings` and `converging`.
#[derive(Clone, Debug, Serialize)]
pub struct FindingJson<'a> {
    /// What differs.
    pub kind: FindingKind,
    /// How bad.
    pub severity: Severity,
    /// `shop/web:http`; null for the node as a whole.
    pub service: Option<&'a ServicePortName>,
    /// Where; null for the node as a whole.
    pub frontend: Option<Frontend>,
    /// Sources for which it is so.
    pub sources: &'a [SourceClass],
    /// Which backend.
    pub backend: Option<SocketAddr>,
    /// Since when, RFC 3339.
    pub since: String,
    /// The proof.
    pub evidence: &'a [Evidence],
    /// One sentence.
    pub says: &'a str,
    /// Per-Service findings that follow from this one.
    pub absorbs: u64,
    /// Comes and goes.
    pub recurring: bool,
    /// Why it counts already, or what it is still given time for.
    pub because: &'a str,
}

impl<'a> From<&'a Finding> for FindingJson<'a> {
    fn from(f: &'a Finding) -> Self {
        FindingJson {
            kind: f.kind,
            severity: f.severity,
            service: f.service.as_ref(),
            frontend: f.frontend,
            sources: &f.sources,
            backend: f.backend,
            since: rfc3339(f.since),
            evidence: &f.evidence,
            says: &f.says,
            absorbs: f.absorbs,
            recurring: f.recurring,
            because: &f.because,
        }
    }
}

/// The JSON of `check`.
pub fn check_json(report: &Report) -> CheckJson<'_> {
    let judged = &report.judged;
    CheckJson {
        verdict: &report.verdict,
        node: &report.node.0,
        at: rfc3339(report.at),
        api_as_of: report.api_as_of.map(rfc3339),
        state: report.state,
        datapaths: &report.datapaths,
        judged: JudgedJson {
            pairs: judged.pairs,
            multi_answer: judged.multi_answer,
            converging: judged.converging,
            unknown: judged.unknown,
            unknown_reasons: &judged.unknown_reasons,
            not_comparable: judged.not_comparable,
            not_comparable_reasons: &judged.not_comparable_reasons,
        },
        gaps: &report.gaps,
        findings: report.findings.iter().map(FindingJson::from).collect(),
        converging: report.converging.iter().map(FindingJson::from).collect(),
        api_findings: None,
    }
}

/// Which of the two tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// What the kernel does.
    Observed,
    /// What the API asks for.
    Desired,
}

/// What `table --output json` prints.
#[derive(Clone, Debug, Serialize)]
pub struct TableJson<'a> {
    /// Ordered by family, address, protocol, port, source; three rows a frontend.
    pub rows: Vec<RowJson<'a>>,
}

/// One entry of `rows`.
#[derive(Clone, Debug, Serialize)]
pub struct RowJson<'a> {
    /// Where.
    pub frontend: Frontend,
    /// From where.
    pub source: SourceClass,
    /// Whose; null for wildcards.
    pub service: Option<&'a ServicePortName>,
    /// What it gets; on the desired side the first legitimate answer.
    #[serde(flatten)]
    pub answer: AnswerJson<'a>,
    /// Desired side: every legitimate answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub any_of: Option<Vec<AnswerJson<'a>>>,
    /// Desired side: why there are several, `certain` where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub because: Option<Because>,
}

/// What one (frontend, source) gets.
#[derive(Clone, Debug, Serialize)]
pub struct AnswerJson<'a> {
    /// forward, reject, drop, none, unknown.
    pub action: &'static str,
    /// Why it is unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<&'a str>,
    /// Sorted; shares sum to 1.
    pub backends: Vec<BackendJson>,
    /// never, always, hairpin, unknown.
    pub masquerade: Masquerade,
    /// Null: none.
    pub affinity_seconds: Option<u32>,
    /// Parts of an affinity are there; why it does not work as one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity_broken: Option<&'a str>,
    /// Null: everybody.
    pub source_ranges: Option<&'a [IpNet]>,
    /// What clients outside `source_ranges` get; null without them.
    pub otherwise: Option<&'static str>,
}

/// One entry of `backends`.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct BackendJson {
    /// `10.244.1.5:8080`.
    pub address: SocketAddr,
    /// Of new connections, 0 to 1.
    pub share: f64,
}

impl<'a> AnswerJson<'a> {
    const NONE: AnswerJson<'static> = AnswerJson {
        action: "none",
        why: None,
        backends: Vec::new(),
        masquerade: Masquerade::Never,
        affinity_seconds: None,
        affinity_broken: None,
        source_ranges: None,
        otherwise: None,
    };

    fn of(f: &'a Forwarding) -> AnswerJson<'a> {
        let unknown = matches!(f.action, Action::Unknown(_));
        AnswerJson {
            action: f.action.word(),
            why: match &f.action {
                Action::Unknown(why) => Some(why),
                _ => None,
            },
            backends: if unknown {
                Vec::new()
            } else {
                let all = f.backends.iter();
                all.map(|b| BackendJson {
                    address: b.address,
                    share: b.share,
                })
                .collect()
            },
            masquerade: if unknown {
                Masquerade::Unknown
            } else {
                f.masquerade()
            },
            affinity_seconds: match f.affinity {
                Affinity::ClientIp(seconds) => Some(seconds),
                _ => None,
            },
            affinity_broken: match &f.affinity {
                Affinity::Broken(why) => Some(why),
                _ => None,
            },
            source_ranges: f.source_ranges.as_ref().map(|s| s.ranges.as_slice()),
            otherwise: f.source_ranges.as_ref().map(|s| s.otherwise.word()),
        }
    }
}

/// The JSON of `table`. A frontend that nothing happens to from any source has no row.
pub fn table_json(rows: &[Arc<Row>], side: Side) -> TableJson<'_> {
    let mut frontends: BTreeMap<Frontend, BTreeMap<SourceClass, &Row>> = BTreeMap::new();
    for row in rows {
        let says_something = match side {
            Side::Observed => row
                .observed
                .as_ref()
                .is_some_and(|o| o.action != Action::None),
            Side::Desired => row.desired.is_some(),
        };
        if says_something {
            frontends.entry(row.frontend).or_default();
        }
    }
    for row in rows {
        if let Some(sources) = frontends.get_mut(&row.frontend) {
            sources.insert(row.source, row);
        }
    }
    let mut out = Vec::with_capacity(frontends.len() * 3);
    for (frontend, sources) in frontends {
        for source in SourceClass::ALL {
            out.push(row_json(
                frontend,
                source,
                sources.get(&source).copied(),
                side,
            ));
        }
    }
    TableJson { rows: out }
}

fn row_json(frontend: Frontend, source: SourceClass, row: Option<&Row>, side: Side) -> RowJson<'_> {
    let service = match side {
        Side::Observed => row
            .and_then(|r| r.observed.as_ref())
            .and_then(|o| o.service.as_ref()),
        Side::Desired => None,
    }
    .or_else(|| row.and_then(|r| r.service.as_ref()))
    .filter(|_| !frontend.is_wildcard());
    let (answer, any_of, because) = match side {
        Side::Observed => (
            row.and_then(|r| r.observed.as_ref()).map(AnswerJson::of),
            None,
            None,
        ),
        Side::Desired => match row.and_then(|r| r.desired.as_ref()) {
            Some(d) => {
                let all: Vec<AnswerJson> = d.any_of.iter().map(AnswerJson::of).collect();
                (all.first().cloned(), Some(all), Some(d.because))
            }
            None => (None, Some(vec![AnswerJson::NONE]), Some(Because::Certain)),
        },
    };
    let answer = answer.unwrap_or(AnswerJson::NONE);
    RowJson {
        frontend,
        source,
        service,
        answer,
        any_of,
        because,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc_3339() {
        for (at, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400_000, "2000-02-29T00:00:00Z"),
            (1_795_610_628_120, "2026-11-25T12:43:48.120Z"),
            (4_102_444_799_000, "2099-12-31T23:59:59Z"),
        ] {
            assert_eq!(rfc3339(Millis(at)), text);
        }
    }
}
