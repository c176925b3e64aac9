//! `check` and `table`: one answer, and an exit code that a pipeline can trust.

use crate::config::{CheckFlags, Output, Side, TableFlags};
use crate::pass::{Looker, Passed};
use crate::world::World;
use model::finding::Severity;
use model::flow::{ApiFinding, api_findings, finding_text};
use model::report::words::harmless;
use model::report::{self, Report, check_json, check_text, exit_code, table_json, table_text};
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Between two readings.
pub const APART: Duration = Duration::from_secs(1);
/// The API server, or the files, must have been read by then.
pub const LISTED: Duration = Duration::from_secs(30);
/// Readings that a verdict needs at least: a difference counts when a second one confirms it.
const READINGS: u64 = 2;
/// Readings that fail in a row until that is the answer.
const UNREAD: u64 = 3;

/// Runs `check`; gives its exit code.
pub async fn check(flags: CheckFlags) -> anyhow::Result<u8> {
    let mut patience = Patience::new(flags.wait);
    let world = World::start(&flags.source).await?;
    let ready = world
        .ready(LISTED.min(flags.wait.max(Duration::from_secs(5))))
        .await;
    let mut looker = Looker::new(flags.source.node.clone());
    let report = loop {
        let (passed, back) = look(&world, looker).await;
        looker = back;
        let report = passed.examined.report;
        if patience.ends(&report, passed.unread) || !ready {
            break report;
        }
        let refresh = passed.examined.refresh;
        if !refresh.is_empty() {
            let done = world.refresh(refresh).await;
            looker.refreshed(done);
        }
        tokio::time::sleep(APART).await;
    };
    let api = match world.has_pods {
        true => flow_of(&flags.source.manifests).await?,
        false => None,
    };
    print_report_and(flags.output, &report, api.as_deref())?;
    Ok(exit_code(&report))
}

/// When a verdict stands, or time is up.
pub struct Patience {
    began: Instant,
    wait: Duration,
    readings: u64,
    unread: u64,
}

impl Patience {
    /// From now on, something may go on converging for so long.
    pub fn new(wait: Duration) -> Patience {
        Patience {
            began: Instant::now(),
            wait,
            readings: 0,
            unread: 0,
        }
    }

    /// Is this report the answer?
    pub fn ends(&mut self, report: &Report, unread: bool) -> bool {
        self.readings += 1;
        self.unread = if unread { self.unread + 1 } else { 0 };
        let over = self.began.elapsed() >= self.wait;
        let converging = report
            .converging
            .iter()
            .any(|f| f.severity >= Severity::Warning);
        // What cannot be read now may be in a moment (a torn reading). What cannot be read several
        // times stays so.
        let done = if unread {
            self.unread >= UNREAD || over
        } else {
            !converging || over
        };
        done && self.readings >= READINGS
    }
}

/// What the debugging flow finds in the manifests alone, where Pods are among them. It says nothing of
/// this node, and is not counted in the exit code.
async fn flow_of(manifests: &[PathBuf]) -> anyhow::Result<Option<Vec<ApiFinding>>> {
    let paths = manifests.to_vec();
    let found = tokio::task::spawn_blocking(move || {
        let objects = cluster::manifests::read_objects(&paths)?;
        api_findings(&objects, model::time::Now::default()).ok()
    });
    Ok(found.await?)
}

/// Prints a report as `check` does.
pub fn print_report(output: Output, report: &Report) -> anyhow::Result<()> {
    print_report_and(output, report, None)
}

fn print_report_and(
    output: Output,
    report: &Report,
    api: Option<&[ApiFinding]>,
) -> anyhow::Result<()> {
    let mut json = check_json(report);
    json.api_findings = api;
    print(output, &json, || {
        let mut text = check_text(report);
        match api {
            None => {}
            Some([]) => text += "API side: no finding\n",
            Some(all) => {
                text += "API side (not of this node, and not in the exit code):\n";
                text.extend(all.iter().map(finding_text));
            }
        }
        text
    })?;
    if output == Output::Json {
        explain(report);
    }
    Ok(())
}

/// Prints a side of a report's rows as `table` does.
pub fn print_table(output: Output, side: Side, report: &Report) -> anyhow::Result<()> {
    let side = match side {
        Side::Observed => report::Side::Observed,
        Side::Desired => report::Side::Desired,
    };
    print(output, &table_json(&report.rows, side), || {
        table_text(&report.rows, side)
    })?;
    explain(report);
    Ok(())
}

/// Runs `table`; gives its exit code.
pub async fn table(flags: TableFlags) -> anyhow::Result<u8> {
    let world = World::start(&flags.source).await?;
    let listed = world.ready(LISTED).await;
    let mut looker = Looker::new(flags.source.node.clone());
    let mut tries = 0;
    let passed = loop {
        let (passed, back) = look(&world, looker).await;
        looker = back;
        tries += 1;
        if !passed.unread || tries >= UNREAD {
            break passed;
        }
        tokio::time::sleep(APART).await;
    };
    let report = passed.examined.report;
    print_table(flags.output, flags.side, &report)?;
    let known = match flags.side {
        Side::Observed => listed && !passed.unread && report.gaps.is_empty(),
        Side::Desired => listed,
    };
    Ok(if known { 0 } else { 2 })
}

/// One pass, on a thread that may block.
async fn look(world: &Arc<World>, mut looker: Looker) -> (Passed, Looker) {
    let world = world.clone();
    let passed = tokio::task::spawn_blocking(move || {
        let passed = looker.pass(|| world.moment());
        (passed, looker)
    });
    match passed.await {
        Ok(passed) => passed,
        // A panic in a pass is a fault of this program, not an answer.
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

fn print(
    output: Output,
    value: &impl serde::Serialize,
    text: impl FnOnce() -> String,
) -> anyhow::Result<()> {
    let mut all = match output {
        Output::Json => harmless(&serde_json::to_string_pretty(value)?),
        Output::Text => text(),
    };
    if !all.ends_with('\n') {
        all.push('\n');
    }
    match std::io::stdout().lock().write_all(all.as_bytes()) {
        // Whoever read has read enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

/// What could not be read, for the person at the terminal.
fn explain(report: &Report) {
    for gap in &report.gaps {
        eprintln!(
            "vipwitness-agent: {}: {}",
            gap.what.escape_debug(),
            gap.why.escape_debug()
        );
    }
}
