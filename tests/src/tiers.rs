//! `cargo lab test`: every tier of tests, and one line that says what ran.
//!
//! A test belongs to a tier by its name, so that none is forgotten: targets called `cases*`,
//! `order*`, `wire*` or `kernel*`, and library tests in modules called `cases`, `order`, `wire` or
//! `golden`; whatever is called otherwise is of the tier unit. [`checks`] add what needs the
//! laboratory.

use std::io::{BufRead as _, BufReader, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Stdio;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::checks::{self, Check, Run};
use crate::laboratory::Laboratory;
use crate::{cache, cleanup, command, packages};

/// A tier, in the order in which they run: cheap ones first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Tier {
    /// Tests beside the code.
    Unit,
    /// API objects and captures in, tables and findings out.
    Cases,
    /// The same answer whatever the order of the input.
    Order,
    /// The agents' wire, with golden messages.
    Wire,
    /// Network namespaces on this kernel.
    Kernel,
    /// A real API server and real kube-proxies.
    Cluster,
}

impl Tier {
    const ALL: [Tier; 6] = [
        Tier::Unit,
        Tier::Cases,
        Tier::Order,
        Tier::Wire,
        Tier::Kernel,
        Tier::Cluster,
    ];

    fn name(self) -> &'static str {
        match self {
            Tier::Unit => "unit",
            Tier::Cases => "cases",
            Tier::Order => "order",
            Tier::Wire => "wire",
            Tier::Kernel => "kernel",
            Tier::Cluster => "cluster",
        }
    }

    /// What library tests of this tier have in their path.
    fn filters(self) -> &'static [&'static str] {
        match self {
            Tier::Cases => &["cases::"],
            Tier::Order => &["order::"],
            Tier::Wire => &["wire::", "golden::"],
            Tier::Unit | Tier::Kernel | Tier::Cluster => &[],
        }
    }

    /// The tier of a test target.
    fn of_target(name: &str) -> Tier {
        [
            Tier::Cases,
            Tier::Order,
            Tier::Wire,
            Tier::Kernel,
            Tier::Cluster,
        ]
        .into_iter()
        .find(|tier| name.starts_with(tier.name()))
        .unwrap_or(Tier::Unit)
    }

    /// Why this tier cannot run here.
    fn obstacle(self) -> Option<String> {
        if !matches!(self, Tier::Kernel | Tier::Cluster) {
            return None;
        }
        if !packages::is_root() {
            return Some("network namespaces need root".to_owned());
        }
        if let Err(error) = packages::ensure(packages::KERNEL) {
            return Some(format!("{error:#}"));
        }
        if self == Tier::Cluster {
            if let Err(error) = packages::ensure(packages::CLUSTER) {
                return Some(format!("{error:#}"));
            }
            return cache::obstacle();
        }
        None
    }
}

/// What to run.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// These tiers; all when empty.
    pub tiers: Vec<Tier>,
    /// Of the [`checks`], only that of this name.
    pub only: Option<String>,
    /// A tier that cannot run is a failure.
    pub require_all: bool,
}

#[derive(Debug, Clone, Copy, Default)]
struct Count {
    passed: u64,
    failed: u64,
    skipped: u64,
}

impl std::ops::AddAssign for Count {
    fn add_assign(&mut self, other: Count) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// Runs the tiers wanted, prints what ran and the closing count, and says whether all is well.
pub fn run(wanted: &Wanted) -> Result<bool> {
    let targets = targets()?;
    let mut total = Count::default();
    let (mut ran, mut not_run) = (Vec::new(), Vec::new());
    for tier in Tier::ALL
        .into_iter()
        .filter(|tier| wanted.tiers.is_empty() || wanted.tiers.contains(tier))
    {
        println!("\n== tier {}", tier.name());
        let (count, obstacle) = match tier.obstacle() {
            Some(reason) => (Count::default(), Some(reason)),
            None => {
                let start = Instant::now();
                let count = run_tier(tier, &targets, wanted.only.as_deref())?;
                if count.passed + count.failed == 0 {
                    (count, Some("it holds no test".to_owned()))
                } else {
                    ran.push(format!(
                        "{} {} in {} s",
                        tier.name(),
                        count.passed + count.failed,
                        start.elapsed().as_secs()
                    ));
                    (count, None)
                }
            }
        };
        total += count;
        if let Some(reason) = obstacle {
            not_run.push(format!("{} ({reason})", tier.name()));
            if wanted.require_all {
                total.failed += 1
            } else {
                total.skipped += 1
            }
        }
    }
    let not_run = if not_run.is_empty() {
        "nothing".to_owned()
    } else {
        not_run.join(", ")
    };
    println!("\nran: {}; could not run: {not_run}", ran.join(", "));
    println!(
        "{} passed, {} failed, {} skipped",
        total.passed, total.failed, total.skipped
    );
    Ok(total.failed == 0)
}

fn run_tier(tier: Tier, targets: &[String], only: Option<&str>) -> Result<Count> {
    let mut count = Count::default();
    if only.is_none() {
        let named: Vec<&str> = targets
            .iter()
            .map(String::as_str)
            .filter(|name| Tier::of_target(name) == tier)
            .collect();
        let library = tier == Tier::Unit || !tier.filters().is_empty();
        if library {
            let mut arguments = vec!["--lib", "--bins", "--"];
            if tier == Tier::Unit {
                let others = Tier::ALL.iter().flat_map(|tier| tier.filters());
                arguments.extend(others.flat_map(|filter| ["--skip", *filter]));
            } else {
                arguments.extend(tier.filters());
            }
            count += cargo_test(&arguments)?;
        }
        if !named.is_empty() {
            let arguments: Vec<&str> = named.iter().flat_map(|name| ["--test", *name]).collect();
            count += cargo_test(&arguments)?;
        }
    }
    let of_tier = |check: &&Check| match check.run {
        Run::Kernel(_) => tier == Tier::Kernel,
        Run::Cluster(_) | Run::Small(_) | Run::Alone(_) => tier == Tier::Cluster,
    };
    let unproven = checks::UNPROVEN.iter().filter(|_| only.is_some());
    let chosen: Vec<&Check> = checks::ALL
        .iter()
        .chain(unproven)
        .filter(of_tier)
        .filter(|check| only.is_none_or(|only| check.name == only))
        .collect();
    if !chosen.is_empty() {
        if tier == Tier::Cluster {
            cache::all()?;
        }
        count += run_checks(&chosen);
    }
    Ok(count)
}

/// Runs checks one after the other; those of the cluster share one laboratory.
fn run_checks(chosen: &[&Check]) -> Count {
    let mut count = Count::default();
    let mut laboratory: Option<Laboratory> = None;
    let mut is_small = false;
    for check in chosen {
        print!("check {} ... ", check.name);
        let _ = std::io::stdout().flush();
        let start = Instant::now();
        let _watchdog = Watchdog::start(check.name);
        // A check that panics has failed like one that gives an error; the next one still runs.
        let result = catch_unwind(AssertUnwindSafe(|| match check.run {
            Run::Kernel(run) | Run::Alone(run) => run(),
            Run::Cluster(run) => run(started(
                &mut laboratory,
                &mut is_small,
                false,
                Laboratory::start,
            )?),
            Run::Small(run) => run(started(
                &mut laboratory,
                &mut is_small,
                true,
                Laboratory::start_small,
            )?),
        }));
        let seconds = start.elapsed().as_secs_f32();
        match result {
            Ok(Ok(says)) => {
                count.passed += 1;
                println!("ok ({seconds:.1} s): {says}");
            }
            Ok(Err(error)) => {
                count.failed += 1;
                println!("FAILED ({seconds:.1} s): {error:#}");
            }
            Err(_) => {
                count.failed += 1;
                println!("FAILED ({seconds:.1} s): it panicked");
            }
        }
    }
    count
}

/// The laboratory, started if it does not run yet. Only one runs at a time.
fn started<'a>(
    laboratory: &'a mut Option<Laboratory>,
    is_small: &mut bool,
    small: bool,
    start: fn() -> Result<Laboratory>,
) -> Result<&'a mut Laboratory> {
    if *is_small != small {
        *laboratory = None;
        *is_small = small;
    }
    Ok(match laboratory {
        Some(running) => running,
        None => laboratory.insert(start().context("starting the laboratory")?),
    })
}

/// The longest that a check may take, with the building of agent and aggregator.
const CHECK_LIMIT: Duration = Duration::from_secs(30 * 60);

/// Ends everything when a check hangs: whoever waits for the result gets one that names the check.
struct Watchdog {
    // Dropping it tells the thread that the check has ended.
    _ended: mpsc::Sender<()>,
}

impl Watchdog {
    fn start(check: &'static str) -> Watchdog {
        let (sender, ended) = mpsc::channel();
        std::thread::spawn(move || {
            if ended.recv_timeout(CHECK_LIMIT) == Err(RecvTimeoutError::Timeout) {
                println!("FAILED: {check} did not end within {CHECK_LIMIT:?}");
                cleanup::everything();
                std::process::exit(1);
            }
        });
        Watchdog { _ended: sender }
    }
}

/// A cold build is silent on stdout for as long as it takes.
const SILENCE_LIMIT: Duration = Duration::from_secs(30 * 60);
/// How long the output may stay open after `cargo test` has ended.
const AFTERWARDS: Duration = Duration::from_secs(5);

/// Runs `cargo test` over the workspace, shows its output, and counts.
fn cargo_test(arguments: &[&str]) -> Result<Count> {
    let mut child = command::cargo()
        .args(["test", "--workspace", "--no-fail-fast"])
        .args(arguments)
        .stdout(Stdio::piped())
        .spawn()
        .context("starting cargo test")?;
    let stdout = child.stdout.take().context("stdout was piped")?;
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines() {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    let mut count = Count::default();
    let mut heard = Instant::now();
    loop {
        let line = match lines.recv_timeout(Duration::from_secs(1)) {
            Ok(line) => line?,
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) if heard.elapsed() > SILENCE_LIMIT => {
                println!("cargo test said nothing for {SILENCE_LIMIT:?}: ended");
                let _ = child.kill();
                count.failed += 1;
                break;
            }
            Err(RecvTimeoutError::Timeout) => {
                if child.try_wait()?.is_some() && heard.elapsed() > AFTERWARDS {
                    println!("cargo test ended, but a program that a test started still runs");
                    count.failed += 1;
                    break;
                }
                continue;
            }
        };
        heard = Instant::now();
        // Binaries without a test of this tier would fill the screen.
        if !line.is_empty()
            && line != "running 0 tests"
            && !line.starts_with("test result: ok. 0 passed; 0 failed; 0 ignored")
        {
            println!("{line}");
        }
        if let Some(result) = result_line(&line) {
            count += result;
        }
    }
    let status = child.wait()?;
    if !status.success() && count.failed == 0 {
        // It did not build, or a test process died before it could count.
        println!("cargo test: {status}");
        count.failed = 1;
    }
    Ok(count)
}

/// Reads `test result: ok. 3 passed; 0 failed; 1 ignored; …`.
fn result_line(line: &str) -> Option<Count> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let number = |word: &str| {
        counts
            .split("; ")
            .find_map(|part| part.strip_suffix(word))
            .and_then(|number| number.trim().parse().ok())
    };
    Some(Count {
        passed: number("passed")?,
        failed: number("failed")?,
        skipped: number("ignored")?,
    })
}

/// Names of the workspace's test targets.
fn targets() -> Result<Vec<String>> {
    let text =
        command::output(command::cargo().args(["metadata", "--no-deps", "--format-version", "1"]))?;
    let metadata: Value = serde_json::from_str(&text)?;
    let mut names: Vec<String> = metadata["packages"]
        .as_array()
        .context("cargo metadata lists packages")?
        .iter()
        .flat_map(|package| package["targets"].as_array().into_iter().flatten())
        .filter(|target| target["kind"][0] == "test")
        .filter_map(|target| target["name"].as_str().map(str::to_owned))
        .collect();
    names.sort();
    names.dedup();
    if names.iter().any(|name| name.starts_with('-')) {
        bail!("a test target has a name that cargo would take for a flag");
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libtest_counts_are_read() {
        let line = "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 7 filtered out; finished in 0.02s";
        let count = result_line(line).unwrap();
        assert_eq!((count.passed, count.failed, count.skipped), (12, 3, 1));
        assert!(result_line("test tiers::tests::x ... ok").is_none());
    }

    #[test]
    fn targets_belong_to_a_tier_by_name() {
        assert_eq!(Tier::of_target("cases_nftables"), Tier::Cases);
        assert_eq!(Tier::of_target("kernel"), Tier::Kernel);
        assert_eq!(Tier::of_target("tidy"), Tier::Unit);
    }
}
