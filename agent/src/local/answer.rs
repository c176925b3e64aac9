//! What is answered on the socket. Pure: a question and the last report go in, an answer comes out.

mod conntrack;

use crate::fresh::Look;
use model::finding::Finding;
use model::name::ServiceName;
use model::report::service::{RowView, concerns, row_view, rows_text, says, standing};
use model::report::words::{ago, clean, harmless};
use model::report::{
    CheckJson, FindingJson, Report, check_json, check_text, finding_text, rfc3339,
};
use model::time::Millis;
use serde::Serialize;
use std::collections::BTreeSet;

/// What can be asked, for errors and `/`.
pub const PATHS: [&str; 6] = [
    "/svc/{name}",
    "/svc/{namespace}/{name}",
    "/node",
    "/findings",
    "/conntrack",
    "/healthz",
];
/// Choices named in an error.
const CHOICES: usize = 20;
/// A last pass that is older makes the agent ill: the longest pause is 15 s, and a reading of the
/// largest node takes seconds.
const ILL_AFTER_MS: u64 = 120_000;

/// A question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// One Service; without a namespace it must be the only one of its name.
    Service {
        /// Its namespace.
        namespace: Option<String>,
        /// Its name.
        name: String,
    },
    /// The node as a whole.
    Node,
    /// What differs.
    Findings,
    /// How full the table of connections is.
    Conntrack,
    /// Does the agent look?
    Health,
    /// What can be asked.
    Root,
}

/// A question, and how it is to be answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// What.
    pub question: Question,
    /// As text, not as JSON.
    pub text: bool,
    /// By a pass that begins now.
    pub wait: bool,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Content type.
    pub kind: &'static str,
    /// Body.
    pub body: String,
}

impl Asked {
    /// Reads a request's path and query. `text`: its headers ask for text.
    ///
    /// # Errors
    /// The answer that says what is wrong.
    pub fn parse(path: &str, query: Option<&str>, text: bool) -> Result<Asked, Box<Answer>> {
        let mut asked = Asked {
            question: Question::Root,
            text,
            wait: false,
        };
        let mut wanted_namespace = None;
        for pair in query.unwrap_or_default().split('&') {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            match (key, value) {
                ("", "") => {}
                ("output", "text") => asked.text = true,
                ("output", "json") => asked.text = false,
                ("fresh", "wait") => asked.wait = true,
                ("namespace", value) if !value.is_empty() => {
                    wanted_namespace = Some(decoded(value, asked.text)?);
                }
                _ => {
                    let known = ["output=text|json", "fresh=wait", "namespace=NAME"];
                    return Err(Box::new(Answer::problem(
                        400,
                        &format!("the parameter {pair:?} is not known"),
                        known.map(String::from).into(),
                        asked.text,
                    )));
                }
            }
        }
        // `shop%2Fweb` is two segments, as for the aggregator.
        let path = decoded(path, asked.text)?;
        let segments: Vec<&str> = path.split('/').skip(1).collect();
        asked.question = match segments.as_slice() {
            [""] => Question::Root,
            ["node"] => Question::Node,
            ["findings"] => Question::Findings,
            ["conntrack"] => Question::Conntrack,
            ["healthz"] => Question::Health,
            ["svc", name] if !name.is_empty() => Question::Service {
                namespace: wanted_namespace,
                name: (*name).into(),
            },
            ["svc", namespace, name] if !name.is_empty() => Question::Service {
                namespace: Some((*namespace).into()),
                name: (*name).into(),
            },
            _ => {
                let exists = PATHS.map(String::from).into();
                let detail = format!("there is no path {path:?}");
                return Err(Box::new(Answer::problem(404, &detail, exists, asked.text)));
            }
        };
        Ok(asked)
    }
}

/// Percent-decoding (RFC 3986, 2.1).
fn decoded(text: &str, as_text: bool) -> Result<String, Box<Answer>> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    let hex = |b: Option<u8>| b.and_then(|b| char::from(b).to_digit(16));
    while let Some(b) = bytes.next() {
        let byte = if b == b'%' {
            match (hex(bytes.next()), hex(bytes.next())) {
                (Some(high), Some(low)) => (high * 16 + low) as u8,
                _ => 0xff,
            }
        } else {
            b
        };
        out.push(byte);
    }
    // 0xff is in no UTF-8 text.
    String::from_utf8(out).map_err(|_| {
        let detail = format!("{text:?} is not percent-encoded UTF-8");
        Box::new(Answer::problem(400, &detail, Vec::new(), as_text))
    })
}

/// An error, as problem details (RFC 9457).
#[derive(Serialize)]
struct Problem<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'static str,
    status: u16,
    detail: &'a str,
    exists: Vec<String>,
}

impl Answer {
    /// What was wrong, and what exists instead.
    pub fn problem(status: u16, detail: &str, exists: Vec<String>, text: bool) -> Answer {
        if text {
            return Answer::text(status, list(detail, &exists));
        }
        let problem = Problem {
            kind: "about:blank",
            title: match status {
                400 => "Bad Request",
                404 => "Not Found",
                405 => "Method Not Allowed",
                503 => "Service Unavailable",
                _ => "Error",
            },
            status,
            detail,
            exists,
        };
        Answer {
            kind: "application/problem+json",
            ..Answer::json(status, &problem)
        }
    }

    fn text(status: u16, body: String) -> Answer {
        Answer {
            status,
            kind: "text/plain; charset=utf-8",
            body,
        }
    }

    fn json(status: u16, value: &impl Serialize) -> Answer {
        match serde_json::to_string_pretty(value) {
            Ok(json) => Answer {
                status,
                kind: "application/json",
                body: harmless(&json) + "\n",
            },
            Err(why) => Answer::text(500, format!("{why}\n")),
        }
    }
}

fn list(title: &str, entries: &[String]) -> String {
    let mut out = clean(title) + "\n";
    for entry in entries {
        out += &format!("  {}\n", clean(entry));
    }
    out
}

/// How old an answer is.
#[derive(Clone, Debug, Serialize)]
struct Data {
    /// When the kernel was read, RFC 3339.
    read_at: String,
    /// How long ago that was.
    age_seconds: f64,
    /// Age of the view of the API; null: it was never read.
    api_view_age_seconds: Option<f64>,
    /// Number of the pass since the agent started.
    pass: u64,
    /// The pass began after the question was asked.
    fresh: bool,
    /// A fresh look was asked for: why this is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    not_fresh: Option<&'static str>,
}

impl Data {
    fn of(report: &Report, asked: &Asked, fresh: bool, now: Millis) -> Data {
        let age = |at: Millis| now.0.saturating_sub(at.0) as f64 / 1_000.0;
        Data {
            read_at: rfc3339(report.at),
            age_seconds: age(report.at),
            api_view_age_seconds: report.api_as_of.map(age),
            pass: report.pass,
            fresh,
            not_fresh: (asked.wait && !fresh)
                .then_some("no pass that began after the question ended in time: last known"),
        }
    }

    fn text(&self) -> String {
        let api = match self.api_view_age_seconds {
            Some(age) => format!("against the API as of {} ago", ago(age)),
            None => "the API was never read".into(),
        };
        let fresh = match (self.fresh, self.not_fresh) {
            (true, _) => ", after the question",
            (false, Some(why)) => return format!("kernel read {} ago, {api}; {why}", self.ago()),
            (false, None) => "",
        };
        format!("kernel read {} ago{fresh}, {api}", self.ago())
    }

    fn ago(&self) -> String {
        ago(self.age_seconds)
    }
}

/// The answer to a question, from what is known.
pub fn answer(asked: &Asked, look: &Look, now: Millis) -> Answer {
    if asked.question == Question::Root {
        return root(asked.text);
    }
    let Some(report) = look.report.as_deref() else {
        let detail = "the agent has not finished its first pass";
        return Answer::problem(503, detail, Vec::new(), asked.text);
    };
    let data = Data::of(report, asked, look.fresh, now);
    match &asked.question {
        Question::Root => root(asked.text),
        Question::Health if now.0.saturating_sub(report.at.0) > ILL_AFTER_MS => {
            let detail = format!("the last look at the kernel was {} ago", data.ago());
            Answer::problem(503, &detail, Vec::new(), asked.text)
        }
        Question::Health => Answer::text(200, "ok\n".into()),
        Question::Node => node(report, data, asked.text),
        Question::Findings => findings(report, data, asked.text),
        Question::Conntrack => conntrack::answer(report, asked.text, now),
        Question::Service { namespace, name } => {
            match resolve(report, namespace.as_deref(), name) {
                Ok(service) => one(report, data, &service, asked.text, now),
                Err(choice) => choice.answer(asked.text),
            }
        }
    }
}

#[derive(Serialize)]
struct RootJson {
    verdict: &'static str,
    version: &'static str,
    paths: [&'static str; 6],
}

fn root(text: bool) -> Answer {
    let root = RootJson {
        verdict: "the agent answers on this node's unix socket",
        version: env!("CARGO_PKG_VERSION"),
        paths: PATHS,
    };
    if text {
        return Answer::text(200, list(root.verdict, &PATHS.map(String::from)));
    }
    Answer::json(200, &root)
}

#[derive(Serialize)]
struct NodeJson<'a> {
    #[serde(flatten)]
    check: CheckJson<'a>,
    data: Data,
}

fn node(report: &Report, data: Data, text: bool) -> Answer {
    if text {
        return Answer::text(200, format!("{}{}\n", check_text(report), data.text()));
    }
    let check = check_json(report);
    Answer::json(200, &NodeJson { check, data })
}

#[derive(Serialize)]
struct FindingsJson<'a> {
    verdict: &'a str,
    node: &'a str,
    data: Data,
    findings: Vec<FindingJson<'a>>,
    converging: Vec<FindingJson<'a>>,
}

fn findings(report: &Report, data: Data, text: bool) -> Answer {
    if text {
        let mut out = format!("{}\n{}\n", clean(&report.verdict), data.text());
        out += &differing(report.findings.iter(), report.converging.iter());
        return Answer::text(200, out);
    }
    Answer::json(
        200,
        &FindingsJson {
            verdict: &report.verdict,
            node: &report.node.0,
            data,
            findings: report.findings.iter().map(FindingJson::from).collect(),
            converging: report.converging.iter().map(FindingJson::from).collect(),
        },
    )
}

fn differing<'a>(
    findings: impl Iterator<Item = &'a Finding>,
    converging: impl Iterator<Item = &'a Finding>,
) -> String {
    let titled = |title: &str, all: String| match all.is_empty() {
        true => all,
        false => format!("\n{title}\n{all}"),
    };
    titled("Findings", findings.map(finding_text).collect())
        + &titled(
            "Converging: differs, and is still given time",
            converging.map(finding_text).collect(),
        )
}

#[derive(Serialize)]
struct ServiceJson<'a> {
    verdict: String,
    node: &'a str,
    service: String,
    data: Data,
    findings: Vec<FindingJson<'a>>,
    converging: Vec<FindingJson<'a>>,
    rows: Vec<RowView>,
}

fn concerning<'a>(list: &'a [Finding], service: &ServiceName) -> Vec<&'a Finding> {
    list.iter().filter(|f| concerns(f, service)).collect()
}

fn one(report: &Report, data: Data, service: &ServiceName, text: bool, now: Millis) -> Answer {
    let mine = || {
        let own =
            |r: &&model::report::Row| r.service.as_ref().is_some_and(|s| s.service == *service);
        report.rows.iter().map(|row| &**row).filter(own)
    };
    let findings = concerning(&report.findings, service);
    let converging = concerning(&report.converging, service);
    let rows: Vec<RowView> = mine().map(|r| row_view(r, report, service)).collect();
    let age = |f: &&Finding| now.0.saturating_sub(f.since.0) as f64 / 1_000.0;
    let what = says(
        standing(mine(), report, service),
        findings.first().map(|f| (&*f.says, age(f))),
        findings.len(),
        converging.first().map(|f| &*f.says),
    );
    let verdict = format!("{service} on {}: {what}", report.node);
    if text {
        let mut out = format!("{}\n{}\n", clean(&verdict), data.text());
        out += &rows_text(&rows);
        out += &differing(findings.into_iter(), converging.into_iter());
        return Answer::text(200, out);
    }
    Answer::json(
        200,
        &ServiceJson {
            verdict,
            node: &report.node.0,
            service: service.to_string(),
            data,
            findings: findings.into_iter().map(FindingJson::from).collect(),
            converging: converging.into_iter().map(FindingJson::from).collect(),
            rows,
        },
    )
}

/// Why a name means no Service.
enum Choice {
    /// It means several.
    Several(String, Vec<ServiceName>),
    /// It means none; these exist.
    Nothing(String, Vec<ServiceName>),
}

#[derive(Serialize)]
struct ChoicesJson<'a> {
    verdict: &'a str,
    choices: &'a [String],
}

impl Choice {
    fn answer(self, text: bool) -> Answer {
        let paths = |all: Vec<ServiceName>| -> Vec<String> {
            all.iter()
                .map(|s| format!("/svc/{}/{}", s.namespace, s.name))
                .collect()
        };
        match self {
            Choice::Nothing(detail, exists) => Answer::problem(404, &detail, paths(exists), text),
            Choice::Several(verdict, all) => {
                let choices = &paths(all);
                if text {
                    return Answer::text(300, list(&verdict, choices));
                }
                let verdict = &verdict;
                Answer::json(300, &ChoicesJson { verdict, choices })
            }
        }
    }
}

/// Which Service of a report is meant.
fn resolve(report: &Report, namespace: Option<&str>, name: &str) -> Result<ServiceName, Choice> {
    let findings = report.findings.iter().chain(&report.converging);
    let known: BTreeSet<&ServiceName> = report
        .rows
        .iter()
        .filter_map(|r| r.service.as_ref())
        .chain(findings.filter_map(|f| f.service.as_ref()))
        .map(|s| &s.service)
        .collect();
    let same_name = || known.iter().copied().filter(|s| *s.name == *name);
    let unread = match report.api_as_of {
        Some(_) => "",
        None => "; the API was never read",
    };
    if let Some(namespace) = namespace {
        let wanted = ServiceName::new(namespace, name);
        if known.contains(&wanted) {
            return Ok(wanted);
        }
        // Those of its name, then those of its namespace, then whatever there is.
        let close = same_name()
            .chain(known.iter().copied().filter(|s| *s.namespace == *namespace))
            .chain(known.iter().copied());
        let detail = format!("this node has no Service {:?}{unread}", wanted.to_string());
        return Err(Choice::Nothing(detail, first(close)));
    }
    let mut found = same_name();
    match (found.next(), found.next()) {
        (Some(one), None) => Ok(one.clone()),
        (None, _) => {
            let detail = format!("this node has no Service named {name:?}{unread}");
            Err(Choice::Nothing(detail, first(known.iter().copied())))
        }
        (Some(_), Some(_)) => {
            let all: Vec<ServiceName> = same_name().cloned().collect();
            let verdict = format!("{} Services are named {name:?}: say which", all.len());
            Err(Choice::Several(verdict, all))
        }
    }
}

fn first<'a>(all: impl Iterator<Item = &'a ServiceName>) -> Vec<ServiceName> {
    let mut seen = BTreeSet::new();
    all.filter(|s| seen.insert(*s))
        .take(CHOICES)
        .cloned()
        .collect()
}

#[cfg(test)]
mod tests;
