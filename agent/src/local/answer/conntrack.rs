//! How full the table of connections is. It has its own age: it is read every few seconds, whatever
//! passes do.

use super::Answer;
use model::capture::Reading;
use model::conntrack::{Conntrack, ConntrackJson, conntrack_json, conntrack_text, verdict};
use model::report::words::{ago, clean};
use model::report::{Report, rfc3339};
use model::time::Millis;
use serde::Serialize;

#[derive(Serialize)]
struct ConntrackAnswer<'a> {
    verdict: &'a str,
    node: &'a str,
    read_at: String,
    age_seconds: f64,
    #[serde(flatten)]
    conntrack: ConntrackJson,
}

pub(super) fn answer(report: &Report, text: bool, now: Millis) -> Answer {
    let why = match &report.conntrack {
        None => "connection tracking was not looked at".to_string(),
        Some(c) => match &c.reading {
            Reading::Read(table) => return of_table(report, c.at, table, text, now),
            Reading::Absent => "the kernel has no connection tracking".into(),
            Reading::Failed(gap) => format!("connection tracking was not read: {}", gap.why),
        },
    };
    Answer::problem(503, &why, Vec::new(), text)
}

fn of_table(report: &Report, at: Millis, table: &Conntrack, text: bool, now: Millis) -> Answer {
    let verdict = format!("{}: {}", report.node, verdict(table));
    let age_seconds = now.0.saturating_sub(at.0) as f64 / 1_000.0;
    if text {
        let out = format!("{}\nread {} ago\n\n", clean(&verdict), ago(age_seconds));
        return Answer::text(200, out + &conntrack_text(table));
    }
    Answer::json(
        200,
        &ConntrackAnswer {
            verdict: &verdict,
            node: &report.node.0,
            read_at: rfc3339(at),
            age_seconds,
            conntrack: conntrack_json(table),
        },
    )
}
