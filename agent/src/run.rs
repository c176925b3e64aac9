//! `run`: looks again and again, and reports.

use crate::clock;
use crate::config::RunFlags;
use crate::pass::Looker;
use crate::world::{Moment, Usage, World};
use agent::conntrack::Watch;
use agent::flows;
use agent::fresh::{Asker, soonest, wishes};
use agent::local::{self, Refused, Socket};
use agent::uplink::replicas::{self, Replica};
use agent::uplink::{AggregatorService, Trust, UplinkConfig, uplink};
use model::name::ServicePortName;
use model::report::Report;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Longest pause that the CPU budget may cause: external damage must be seen twice soon enough.
const PAUSE: Duration = Duration::from_secs(15);
/// Longest time between two times of taking in what the kernel tells of changes: what waits costs the
/// kernel memory, and what does not fit makes the next reading a whole one.
const LISTEN: Duration = Duration::from_secs(1);
/// CPU time that may be used at once before the budget counts, milliseconds: the first reading of a
/// large node, and a burst of changes.
const BURST: f64 = 10_000.0;

/// Runs until a signal comes.
pub async fn run(flags: RunFlags) -> anyhow::Result<u8> {
    let trust = trust(&flags)?;
    let (tell, reports) = watch::channel::<Option<Arc<Report>>>(None);
    let (asker, mut wishes) = wishes(reports.clone());
    let socket = answer(&flags.socket, asker.clone()).await?;
    let world = World::start(&flags.source).await?;
    let node = flags.source.node.clone();
    let (mut naming, named) = Naming::new(&flags);
    match trust {
        None => tracing::warn!("no --aggregator: findings go to the log only"),
        Some(trust) => {
            let service = flags.aggregator_service.clone();
            let config = UplinkConfig {
                aggregators: flags.aggregator.clone(),
                service: service.map(|port| AggregatorService {
                    port,
                    kept: flags
                        .source
                        .state_dir
                        .as_ref()
                        .map(|d| d.join("aggregator")),
                }),
                node: node.clone(),
                token_file: flags.token_file.clone(),
                trust,
                version: env!("CARGO_PKG_VERSION").to_string(),
            };
            tokio::spawn(uplink(config, named, asker.clone()));
        }
    }
    let (interval, budget) = (
        flags.interval.max(Duration::from_millis(50)),
        flags.cpu_budget / 100.0,
    );
    let runtime = tokio::runtime::Handle::current();
    // A thread of its own: a dump blocks for as long as the kernel takes.
    std::thread::Builder::new()
        .name("look".into())
        .spawn(move || {
            let mut looker = Looker::new(node);
            let mut conntrack = Watch::default();
            let mut flows = flows::Watch::default();
            let mut purse = Purse::new(budget);
            let mut said = String::new();
            loop {
                wishes.begin();
                let passed = looker.pass(|| {
                    let moment = world.moment();
                    naming.look(&moment);
                    moment
                });
                let mut report = passed.examined.report;
                let table = conntrack.look(clock::now());
                report.flows =
                    Some(flows.look(clock::now(), clock::thread_cpu, &table, &report.rows));
                report.conntrack = Some(table);
                if report.verdict != said {
                    tracing::info!(
                        verdict = ?report.verdict,
                        findings = report.findings.len(),
                        converging = report.converging.len(),
                        took_ms = report.took_ms,
                        "pass {}",
                        report.pass
                    );
                    for gap in &report.gaps {
                        tracing::info!(what = ?gap.what, why = ?gap.why, "not read");
                    }
                    said.clone_from(&report.verdict);
                }
                if tell.send(Some(Arc::new(report))).is_err() {
                    return;
                }
                wishes.granted();
                if !passed.examined.refresh.is_empty() {
                    let done = runtime.block_on(world.refresh(passed.examined.refresh));
                    looker.refreshed(done);
                }
                let pause = purse.pause().max(interval);
                let soonest = soonest(Duration::from_millis(purse.last), pause);
                wishes.rest(soonest, pause, LISTEN, || looker.listen());
            }
        })?;
    stopped().await?;
    // The channel's other end ends the thread at its next report; the process does not wait for it.
    drop(reports);
    if let Some(socket) = socket {
        socket.remove();
    }
    Ok(0)
}

/// Answers on the unix socket. A second agent on it is a mistake that somebody has to see; a node on
/// which there can be no socket is still worth looking at.
async fn answer(path: &Path, asker: Asker) -> anyhow::Result<Option<Arc<Socket>>> {
    match Socket::open(path).await {
        Ok(socket) => {
            let socket = Arc::new(socket);
            tokio::spawn(local::serve(socket.clone(), asker, || clock::now().wall));
            tracing::info!(path = %path.display(), "answers on the unix socket");
            Ok(Some(socket))
        }
        Err(why @ Refused::Living { .. }) => Err(Usage(why.to_string()).into()),
        Err(why) => {
            tracing::warn!(%why, "no unix socket: questions on the node are not answered");
            Ok(None)
        }
    }
}

/// How the aggregator proves itself; `None` where nothing is reported.
fn trust(flags: &RunFlags) -> anyhow::Result<Option<Trust>> {
    if flags.aggregator.is_empty() && flags.aggregator_service.is_none() {
        return Ok(None);
    }
    if let Some(file) = &flags.aggregator_ca {
        return Ok(Some(Trust::Authority(file.clone())));
    }
    if flags.token_file.is_some() && !flags.insecure_aggregator {
        return Err(Usage(
            "--token-file needs --aggregator-ca, to know the aggregator by its certificate before \
             the token is shown, or --insecure-aggregator, to show it in plain text to whoever answers"
                .into(),
        )
        .into());
    }
    tracing::warn!("no --aggregator-ca: reports go in plain text to whoever answers");
    Ok(Some(Trust::Anybody))
}

/// Tells the uplink which replicas the API names. It looks whenever a pass does, at what the pass
/// looks at.
struct Naming {
    service: Option<ServicePortName>,
    /// Those of `--aggregator` that are addresses.
    fixed: Vec<SocketAddr>,
    /// Changes of the view that were looked at.
    seen: Option<u64>,
    tell: watch::Sender<Vec<Replica>>,
}

impl Naming {
    fn new(flags: &RunFlags) -> (Naming, watch::Receiver<Vec<Replica>>) {
        let (tell, named) = watch::channel(Vec::new());
        let naming = Naming {
            service: flags.aggregator_service.clone(),
            fixed: flags
                .aggregator
                .iter()
                .filter_map(|a| a.parse().ok())
                .collect(),
            seen: None,
            tell,
        };
        (naming, named)
    }

    fn look(&mut self, moment: &Moment) {
        let Some(service) = &self.service else { return };
        // Of a list that is not whole yet, replicas would seem gone that are not.
        if !moment.view.complete || self.seen == Some(moment.changes) {
            return;
        }
        let named = replicas::named(&moment.view, service, &self.fixed);
        let first = self.seen.is_none();
        self.seen = Some(moment.changes);
        if named.is_empty() && (first || !self.tell.borrow().is_empty()) {
            tracing::warn!(%service, "the API names no replica of the aggregator");
        }
        self.tell.send_if_modified(|old| {
            let other = *old != named;
            *old = named;
            other
        });
    }
}

async fn stopped() -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut term = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = term.recv() => {}
        result = tokio::signal::ctrl_c() => result?,
    }
    Ok(())
}

/// CPU time to spend: filled by time, emptied by passes.
struct Purse {
    /// Milliseconds of CPU for each millisecond.
    rate: f64,
    left: f64,
    /// CPU time of the last pass, milliseconds.
    last: u64,
    cpu: u64,
    at: model::time::Now,
}

impl Purse {
    fn new(rate: f64) -> Purse {
        Purse {
            rate,
            left: BURST,
            last: 0,
            cpu: clock::thread_cpu(),
            at: clock::now(),
        }
    }

    /// How long to wait for what was spent since the last call.
    fn pause(&mut self) -> Duration {
        let (cpu, at) = (clock::thread_cpu(), clock::now());
        self.last = cpu.saturating_sub(self.cpu);
        self.spend(self.last as f64, at.mono.since(self.at.mono) as f64);
        (self.cpu, self.at) = (cpu, at);
        self.wait()
    }

    fn spend(&mut self, cpu: f64, passed: f64) {
        self.left = (self.left + passed * self.rate - cpu).min(BURST);
    }

    fn wait(&self) -> Duration {
        if self.left >= 0.0 {
            return Duration::ZERO;
        }
        Duration::from_secs_f64(-self.left / self.rate / 1_000.0).min(PAUSE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_free_and_then_the_budget_spaces_passes_out() {
        let mut purse = Purse::new(0.02);
        purse.spend(BURST, 0.0);
        assert_eq!(purse.wait(), Duration::ZERO);
        // 100 ms of CPU cost 5 s at 2 %.
        purse.spend(100.0, 0.0);
        assert_eq!(purse.wait(), Duration::from_secs(5));
        purse.spend(0.0, 5_000.0);
        assert_eq!(purse.wait(), Duration::ZERO);
        purse.spend(60_000.0, 0.0);
        assert_eq!(purse.wait(), PAUSE);
    }
}
