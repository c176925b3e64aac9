//! What is measured inside a namespace, by the agent's own library: each job prints lines of JSON.

use std::io::{BufRead as _, Write as _};
use std::path::PathBuf;
use std::sync::Arc;

use agent::datapath;
use agent::host::links::{self, Links};
use agent::kernel::Kernel;
use anyhow::{Context, Result, bail};
use cluster::manifests;
use model::address::Family;
use model::capture::{Reading, Snapshot};
use model::compare::Comparison;
use model::desired::{DesiredState, Touched, Updated, desired};
use model::examine::{Examined, Pass, examine};
use model::profile::{
    Learnt, LearntFrom, LocalDetector, ProxyConfig, ProxyMode, ProxyProfile, Version,
};
use model::settle::Ledger;
use model::time::{Millis, Mono, Now};
use model::view::{Change, ClusterView, NodeView};
use serde::{Deserialize, Serialize};

use super::state;

/// One job.
#[derive(clap::Parser, Debug)]
pub struct Job {
    /// What is measured.
    #[arg(value_enum)]
    what: What,
    /// kube-proxy's mode that the rules stand for.
    #[arg(long)]
    mode: Mode,
    /// API objects that match the rules.
    #[arg(long)]
    manifests: PathBuf,
    /// Repeats, where the job repeats something.
    #[arg(long, default_value_t = 1)]
    repeats: usize,
}

/// What is measured.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    /// The first reading, and everything up to the verdict.
    First,
    /// Passes after the first: unchanged ones at once, then one for each line on stdin.
    Later,
    /// The desired state alone; needs no rules.
    Desired,
}

/// kube-proxy's mode.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// iptables, over either backend.
    Iptables,
    /// nftables.
    Nftables,
}

/// CPU time of one pass by its parts, milliseconds, and what it gave.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Cost {
    /// Reading and decoding.
    pub read: f64,
    /// What the API asks for.
    pub desired: f64,
    /// Walking.
    pub walk: f64,
    /// Comparing and saying.
    pub compare: f64,
    /// Something had changed.
    pub changed: bool,
    /// Pairs that were judged.
    pub pairs: u64,
    /// What differs.
    pub differences: usize,
    /// In one sentence.
    pub verdict: String,
    /// The first difference.
    pub first: String,
}

impl Cost {
    /// The pass as a whole.
    pub fn whole(&self) -> f64 {
        self.read + self.desired + self.walk + self.compare
    }
}

/// What [`What::Later`] says first: the median of unchanged passes.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Unchanged {
    /// Microseconds of CPU.
    pub micros: f64,
    /// The part of it that asks the kernel.
    pub kernel_micros: f64,
}

/// What [`What::Desired`] says.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct DesiredCost {
    /// Services.
    pub services: usize,
    /// Their endpoints.
    pub endpoints: usize,
    /// Rows of the table.
    pub rows: usize,
    /// The whole, milliseconds of CPU.
    pub whole: f64,
    /// Brought up to date after one slice changed, milliseconds of CPU.
    pub change: f64,
}

/// CPU time of this process, milliseconds: with every thread that helped.
fn cpu() -> f64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a valid place for the kernel to write to, and nothing else.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    time.tv_sec as f64 * 1e3 + time.tv_nsec as f64 / 1e6
}

fn now() -> Now {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a valid place for the kernel to write to, and nothing else.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    let millis = time.tv_sec as u64 * 1_000 + time.tv_nsec as u64 / 1_000_000;
    Now {
        mono: Mono(millis),
        wall: Millis(millis),
    }
}

/// The middle one.
pub(super) fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or_default()
}

fn say(value: &impl Serialize) -> Result<()> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, value)?;
    writeln!(out)?;
    Ok(out.flush()?)
}

/// Does one job.
pub fn run(job: &Job) -> Result<()> {
    let found = manifests::read(std::slice::from_ref(&job.manifests));
    if let Some(error) = found.errors.first() {
        bail!("{error}");
    }
    let mut view = ClusterView {
        settled_facts: true,
        ..ClusterView::default()
    };
    for change in found.into_changes() {
        view.apply(change, now());
    }
    let from = LearntFrom::Flag;
    let profile = ProxyProfile {
        mode: Some(Learnt {
            value: match job.mode {
                Mode::Iptables => ProxyMode::Iptables,
                Mode::Nftables => ProxyMode::Nftables,
            },
            from,
        }),
        version: Some(Learnt {
            value: state::PROXY_VERSION
                .parse::<Version>()
                .map_err(anyhow::Error::msg)?,
            from,
        }),
        config: Learnt {
            value: ProxyConfig {
                node_name: Some(state::NODE.into()),
                detector: LocalDetector::Cidr(vec![state::POD_CIDR.parse()?]),
                ..ProxyConfig::default()
            },
            from,
        },
    };
    let mut looker = Looker {
        view,
        profile,
        ledger: Ledger::default(),
        passes: 0,
        kernel: None,
        links: Links::default(),
        desired: DesiredState::default(),
        walked: datapath::Kept::default(),
        last: None,
    };
    match job.what {
        What::First => say(&looker.pass(None)?),
        What::Later => {
            looker.pass(None)?;
            looker.pass(None)?;
            let (mut whole, mut kernel) = (Vec::new(), Vec::new());
            for _ in 0..job.repeats {
                let cost = looker.pass(None)?;
                if !cost.changed {
                    whole.push(cost.whole() * 1e3);
                    kernel.push(cost.read * 1e3);
                }
            }
            if whole.is_empty() {
                bail!("the ruleset changed in every pass");
            }
            say(&Unchanged {
                micros: median(whole),
                kernel_micros: median(kernel),
            })?;
            for line in std::io::stdin().lock().lines() {
                line?;
                say(&looker.pass(None)?)?;
            }
            Ok(())
        }
        What::Desired => desired_cost(looker, job.repeats),
    }
}

fn desired_cost(looker: Looker, repeats: usize) -> Result<()> {
    let Looker {
        mut view, profile, ..
    } = looker;
    let node = NodeView {
        name: state::NODE.into(),
        addresses: links::addresses()?,
    };
    let mut whole = Vec::new();
    for _ in 0..repeats {
        let mut state = DesiredState::default();
        let start = cpu();
        state.update(&view, &node, &profile, &Touched::anything());
        whole.push(cpu() - start);
    }
    let slices: Vec<_> = view.slices.values().take(repeats).cloned().collect();
    let mut state = DesiredState::default();
    state.update(&view, &node, &profile, &Touched::anything());
    let mut change = Vec::new();
    for mut slice in slices {
        slice.endpoints.pop();
        let start = cpu();
        let said = Change::Slice(slice);
        let mut touched = Touched::nothing();
        touched.note(&said, &view);
        view.apply(said, now());
        let updated = state.update(&view, &node, &profile, &touched);
        change.push(cpu() - start);
        if updated == Updated::Whole || *state.table() != desired(&view, &node, &profile) {
            bail!("one change did not make the table that belongs to it");
        }
    }
    say(&DesiredCost {
        services: view.services.len(),
        endpoints: view.slices.values().map(|s| s.endpoints.len()).sum(),
        rows: state.table().len(),
        whole: median(whole),
        change: median(change),
    })
}

/// What a pass leaves for the next one.
struct Last {
    node: NodeView,
    snapshot: Snapshot,
    compared: Arc<Comparison>,
}

/// Passes as the agent makes them, with a clock at each part.
struct Looker {
    view: ClusterView,
    profile: ProxyProfile,
    ledger: Ledger,
    passes: u64,
    kernel: Option<Kernel>,
    links: Links,
    desired: DesiredState,
    walked: datapath::Kept,
    last: Option<Last>,
}

impl Looker {
    fn pass(&mut self, change: Option<Change>) -> Result<Cost> {
        let mut cost = Cost::default();
        self.passes += 1;
        let api_changed = change.is_some();
        let start = cpu();
        let (kernel, changed) = Kernel::read(self.kernel.take(), now());
        let node = NodeView {
            name: state::NODE.into(),
            addresses: self.links.addresses()?.to_vec(),
        };
        let mut touched = Touched::nothing();
        if let Some(change) = change {
            touched.note(&change, &self.view);
            self.view.apply(change, now());
        }
        let read = cpu();
        cost.read = read - start;
        cost.changed = changed;
        let same = !changed && !api_changed && self.last.as_ref().is_some_and(|l| l.node == node);
        let mut walked = read;
        let mut rows = None;
        let (snapshot, compared) = match self.last.take() {
            Some(last) if same => (last.snapshot, Some(last.compared)),
            last => {
                let (view, profile) = (&self.view, &self.profile);
                let updated = self.desired.update(view, &node, profile, &touched);
                let desired_at = cpu();
                cost.desired = desired_at - read;
                let (snapshot, compared) = last.map(|l| (l.snapshot, l.compared)).unzip();
                let again = agent::datapath::again(updated, compared.as_deref());
                let (snapshot, walk) = self.walked.snapshot(
                    snapshot,
                    (&kernel.ruleset, &kernel.changes),
                    (self.desired.frontends(), again.as_ref()),
                    &node,
                    profile,
                );
                rows = agent::datapath::touched(walk, again);
                walked = cpu();
                cost.walk = walked - desired_at;
                (snapshot, compared)
            }
        };
        if let Some(Reading::Failed(gap)) = snapshot.tables.get(&Family::V4) {
            bail!("{}: {}", gap.what, gap.why);
        }
        let examined: Examined = examine(
            &Pass {
                now: kernel.at,
                number: self.passes,
                view: &self.view,
                node: &node,
                profile: &self.profile,
                proxy: None,
                desired: self.desired.table(),
                snapshot: &snapshot,
                refreshed: &[],
                gaps: &[],
                compared: compared.as_ref(),
                unchanged: same && compared.is_some(),
                touched: rows.as_ref(),
            },
            &mut self.ledger,
        );
        let end = cpu();
        cost.compare = end - walked;
        cost.pairs = examined.report.judged.pairs;
        cost.differences = examined.compared.differences.len();
        if let Some(first) = examined.compared.differences.first() {
            cost.first.clone_from(&first.says);
        }
        cost.verdict = examined.report.verdict.clone();
        self.kernel = Some(kernel);
        self.last = Some(Last {
            node,
            snapshot,
            compared: examined.compared,
        });
        Ok(cost)
    }
}

/// Reads what a job said.
pub(super) fn parse<T: serde::de::DeserializeOwned>(line: &str) -> Result<T> {
    serde_json::from_str(line).with_context(|| format!("reading what was measured: {line}"))
}
