//! How one Service stands on one node: what the API wants, what the kernel does, how they differ.
//! Said by the agent on its own node, and by the aggregator.

use super::words::{ago, clean, few, thousands};
use super::{Report, Row};
use crate::finding::Finding;
use crate::name::ServiceName;
use crate::table::{Action, Affinity, Backend, Because, Forwarding, Masquerade};
use serde::Serialize;

/// Backends written in text; JSON has all.
const BACKENDS_SHOWN: usize = 12;
/// How a row stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// A finding says that it differs.
    Differs,
    /// It differs and is still given time.
    Converging,
    /// What the kernel does could not be told.
    Unknown,
    /// Not equal, and not judged either: not comparable, or within what is tolerated.
    NotJudged,
    /// The kernel does what the API wants.
    Agrees,
}

impl State {
    fn words(self) -> &'static str {
        match self {
            State::Differs => "DIFFERS",
            State::Converging => "converging",
            State::Unknown => "UNKNOWN",
            State::NotJudged => "not judged",
            State::Agrees => "agrees",
        }
    }
}

/// What one frontend gives one source, wanted and real.
#[derive(Clone, Debug, Serialize)]
pub struct RowView {
    /// Where.
    pub frontend: String,
    /// From where.
    pub source: String,
    /// Which port.
    pub service: String,
    /// How it stands.
    pub state: State,
    /// What the API wants: one of these; empty: nothing.
    pub api_wants: Vec<Answer>,
    /// Why several answers are legitimate; null: there is one.
    pub because: Option<Because>,
    /// What the kernel does; null: it could not be read.
    pub kernel_does: Option<Answer>,
    /// How they differ, one clause each; empty where they do not, or where it is not known.
    pub difference: Vec<String>,
}

/// What happens to new connections.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Answer {
    /// forward, reject, drop, none, unknown.
    pub action: &'static str,
    /// With unknown: why.
    pub why: Option<String>,
    /// Where they are sent.
    pub backends: Vec<BackendView>,
    /// never, always, hairpin, unknown.
    pub masquerade: Masquerade,
    /// Seconds of session affinity; null: none.
    pub affinity_seconds: Option<u32>,
    /// Affinity that is only half there: what is wrong with it.
    pub affinity_broken: Option<String>,
    /// Sources let in; null: everybody.
    pub source_ranges: Option<Vec<String>>,
    /// What the others get.
    pub otherwise: Option<&'static str>,
}

/// One backend.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BackendView {
    /// Address and port.
    pub address: String,
    /// Its share of new connections.
    pub share: f64,
}

impl Answer {
    fn of(f: &Forwarding) -> Answer {
        let backend = |b: &Backend| BackendView {
            address: b.address.to_string(),
            share: b.share,
        };
        Answer {
            action: f.action.word(),
            why: match &f.action {
                Action::Unknown(why) => Some(why.to_string()),
                _ => None,
            },
            backends: f.backends.iter().map(backend).collect(),
            masquerade: f.masquerade(),
            affinity_seconds: match f.affinity {
                Affinity::ClientIp(s) => Some(s),
                _ => None,
            },
            affinity_broken: match &f.affinity {
                Affinity::Broken(why) => Some(why.to_string()),
                _ => None,
            },
            source_ranges: f
                .source_ranges
                .as_ref()
                .map(|s| s.ranges.iter().map(ToString::to_string).collect()),
            otherwise: f.source_ranges.as_ref().map(|s| s.otherwise.word()),
        }
    }

    fn text(&self) -> String {
        let mut out = match self.action {
            "forward" => {
                let all: Vec<String> = self
                    .backends
                    .iter()
                    .map(|b| format!("{} {}", b.address, percent(b.share)))
                    .collect();
                format!("forward to {}", few(&all, BACKENDS_SHOWN))
            }
            "none" => "nothing: leaves the packet alone".into(),
            word => word.to_string(),
        };
        if let Some(why) = &self.why {
            out += &format!(" ({})", clean(why));
        }
        if self.action == "forward" {
            out += match self.masquerade {
                Masquerade::Never => "",
                Masquerade::Always => "; masquerade always",
                Masquerade::Hairpin => "; masquerade hairpin",
                Masquerade::Unknown => "; masquerade unknown",
            };
        }
        if let Some(s) = self.affinity_seconds {
            out += &format!("; client affinity {s} s");
        }
        if let Some(why) = &self.affinity_broken {
            out += &format!("; affinity broken: {}", clean(why));
        }
        if let Some(ranges) = &self.source_ranges {
            out += &format!(
                "; only from {}, others {}",
                few(ranges, 6),
                self.otherwise.unwrap_or("?")
            );
        }
        out
    }
}

fn percent(share: f64) -> String {
    let p = share * 100.0;
    if (p - p.round()).abs() < 0.05 {
        format!("{p:.0} %")
    } else {
        format!("{p:.1} %")
    }
}

/// Does a finding concern the Service? Its own, or one about the whole node that takes Services along.
pub fn concerns(f: &Finding, service: &ServiceName) -> bool {
    match &f.service {
        Some(s) => s.service == *service,
        None => f.absorbs > 0,
    }
}

/// How a row stands, by the agent's findings. This view compares nothing by itself but for equality:
/// what is not equal and in no finding is called not judged, never different.
pub fn state(row: &Row, report: &Report, service: &ServiceName) -> State {
    let names = |f: &&Finding| {
        f.service.as_ref().is_some_and(|s| s.service == *service)
            && f.frontend.is_none_or(|at| at == row.frontend)
            && (f.sources.is_empty() || f.sources.contains(&row.source))
    };
    if report.findings.iter().any(|f| names(&f)) {
        return State::Differs;
    }
    if report.converging.iter().any(|f| names(&f)) {
        return State::Converging;
    }
    let Some(observed) = &row.observed else {
        return State::Unknown;
    };
    if matches!(observed.action, Action::Unknown(_)) {
        return State::Unknown;
    }
    if equal(row, observed) {
        return State::Agrees;
    }
    // A finding about the whole node absorbs those of its Services.
    let whole = |list: &[Finding]| list.iter().any(|f| f.service.is_none() && f.absorbs > 0);
    if whole(&report.findings) {
        State::Differs
    } else if whole(&report.converging) {
        State::Converging
    } else {
        State::NotJudged
    }
}

fn equal(row: &Row, observed: &Forwarding) -> bool {
    match &row.desired {
        None => observed.action == Action::None,
        Some(d) => d
            .any_of
            .iter()
            .any(|want| differences(want, observed).is_empty()),
    }
}

/// Clauses that say how `does` differs from `want`.
fn differences(want: &Forwarding, does: &Forwarding) -> Vec<String> {
    let mut out = Vec::new();
    if want.action != does.action {
        out.push(format!(
            "{} instead of {}",
            does.action.word(),
            want.action.word()
        ));
        return out;
    }
    let find = |list: &[Backend], b: &Backend| {
        list.iter()
            .find(|o| o.address == b.address)
            .map(|o| o.share)
    };
    for b in want.backends.iter() {
        match find(&does.backends, b) {
            None => out.push(format!("sends nothing to {}", b.address)),
            // Weights of rules are multiples of 2^-31 or of one thousandth.
            Some(share) if (share - b.share).abs() > 0.005 => {
                out.push(format!(
                    "{} gets {} instead of {}",
                    b.address,
                    percent(share),
                    percent(b.share)
                ));
            }
            Some(_) => {}
        }
    }
    for b in does.backends.iter() {
        if find(&want.backends, b).is_none() {
            out.push(format!(
                "sends to {}, which the API does not offer",
                b.address
            ));
        }
    }
    if want.affinity != does.affinity {
        out.push("other session affinity".into());
    }
    if want.source_ranges != does.source_ranges {
        out.push("other source ranges".into());
    }
    if want.masquerade() != does.masquerade() {
        out.push("other masquerade".into());
    }
    out
}

/// A row as it is shown.
pub fn row_view(row: &Row, report: &Report, service: &ServiceName) -> RowView {
    let state = state(row, report, service);
    let difference = match (&row.desired, &row.observed, state) {
        (_, _, State::Agrees | State::Unknown) | (_, None, _) => Vec::new(),
        (None, Some(o), _) if o.action != Action::None => {
            vec![format!(
                "{} where the API asks for nothing",
                o.action.word()
            )]
        }
        (None, Some(_), _) => Vec::new(),
        (Some(d), Some(o), _) => {
            let all = d.any_of.iter().map(|want| differences(want, o));
            all.min_by_key(Vec::len).unwrap_or_default()
        }
    };
    RowView {
        frontend: row.frontend.to_string(),
        source: row.source.to_string(),
        service: row
            .service
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        state,
        api_wants: row
            .desired
            .iter()
            .flat_map(|d| &d.any_of)
            .map(Answer::of)
            .collect(),
        because: row
            .desired
            .as_ref()
            .map(|d| d.because)
            .filter(|b| *b != Because::Certain),
        kernel_does: row.observed.as_ref().map(Answer::of),
        difference,
    }
}

/// How a Service stands: the worst of its rows, findings included.
pub fn standing<'a>(
    rows: impl Iterator<Item = &'a Row>,
    report: &Report,
    service: &ServiceName,
) -> State {
    let own = |f: &&Finding| f.service.as_ref().is_some_and(|s| s.service == *service);
    if report.findings.iter().any(|f| own(&f)) {
        return State::Differs;
    }
    let worst = rows.map(|r| state(r, report, service)).min();
    let converging = report
        .converging
        .iter()
        .any(|f| own(&f))
        .then_some(State::Converging);
    worst
        .into_iter()
        .chain(converging)
        .min()
        .unwrap_or(State::Unknown)
}

/// The second half of the verdict. `finding`: what the first one says, and its age in seconds, of
/// `findings`; `converging`: what the first one says.
pub fn says(
    standing: State,
    finding: Option<(&str, f64)>,
    findings: usize,
    converging: Option<&str>,
) -> String {
    match (standing, finding, converging) {
        (State::Differs, Some((says, age)), _) => {
            let more = match findings.saturating_sub(1) {
                0 => String::new(),
                1 => ", and 1 more finding".into(),
                n => format!(", and {} more findings", thousands(n as u64)),
            };
            format!("{says} (for {}{more})", ago(age))
        }
        (State::Converging, _, Some(says)) => format!("converging: {says}"),
        (State::Agrees, ..) => {
            "the kernel does what the API wants, for every frontend and source".into()
        }
        (State::NotJudged, ..) => "no finding; some of it was not judged".into(),
        (State::Unknown, ..) => "what the kernel does could not be told for all of it".into(),
        (other, ..) => other.words().to_string(),
    }
}

/// The rows for a person; sources that get the same stand in one paragraph.
pub fn rows_text(rows: &[RowView]) -> String {
    let mut out = String::new();
    let mut rows = rows.iter().peekable();
    while let Some(first) = rows.next() {
        let mut sources = vec![first.source.clone()];
        let same = |r: &RowView| {
            r.frontend == first.frontend
                && r.state == first.state
                && r.api_wants == first.api_wants
                && r.kernel_does == first.kernel_does
        };
        while let Some(next) = rows.next_if(|r| same(r)) {
            sources.push(next.source.clone());
        }
        out += &format!(
            "\n{}  {}  from {}: {}\n",
            first.frontend,
            clean(&first.service),
            sources.join(", "),
            first.state.words()
        );
        match first.api_wants.as_slice() {
            [] => out += "  API wants    nothing\n",
            answers => {
                for (i, a) in answers.iter().enumerate() {
                    let word = if i == 0 { "API wants  " } else { "        or " };
                    out += &format!("  {word}  {}\n", a.text());
                }
            }
        }
        let does = first
            .kernel_does
            .as_ref()
            .map_or("could not be read".into(), Answer::text);
        out += &format!("  kernel does  {does}\n");
        for d in &first.difference {
            out += &format!("  difference   {d}\n");
        }
    }
    out
}
