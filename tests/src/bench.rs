//! `cargo lab bench`: what a pass costs on a large node, as a ratio to what the kernel alone costs
//! for the same state (`tests/baseline`), in one run on one machine. A report, not a test: how long
//! something takes says something about the machine, too.

pub mod inside;
mod memory;
mod report;
mod state;
mod sync;

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};
use data_encoding::HEXLOWER;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::cleanup::Folder;
use crate::{cache, command, packages};
use inside::{Cost, DesiredCost, Unchanged, median, parse};
use report::{Report, Target};
use state::{Backend, State};

/// How large, how often, and what.
#[derive(clap::Args, Clone, Debug)]
pub struct Size {
    /// Services in the generated rulesets; the desired state is measured with twice as many
    #[arg(long, default_value_t = 5_000)]
    pub services: usize,
    /// Endpoints of each
    #[arg(long, default_value_t = 10)]
    pub endpoints: usize,
    /// Repeats of each first reading, alternated with the kernel's own
    #[arg(long, default_value_t = 5)]
    pub repeats: usize,
    /// Programs as they are developed, not as they are released: quicker to build, and slower
    #[arg(long)]
    pub dev: bool,
    /// Only this part (repeatable): iptables-legacy, iptables-nft, nftables, desired, sync
    #[arg(long, value_name = "PART")]
    pub only: Vec<String>,
}

/// The programs that are measured, built for release.
struct Programs {
    agent: PathBuf,
    inside: PathBuf,
    rawdump: PathBuf,
}

/// Measures everything and prints it as it comes.
pub fn run(size: &Size) -> Result<()> {
    if !packages::is_root() {
        bail!("network namespaces need root: run it as root");
    }
    let parts = Backend::ALL.map(Backend::name);
    if let Some(part) = size
        .only
        .iter()
        .find(|p| *p != "desired" && *p != "sync" && !parts.contains(&p.as_str()))
    {
        bail!("there is no part {part:?}");
    }
    packages::ensure(packages::KERNEL)?;
    let programs = Programs::build(size.dev)?;
    let folder = Folder::create("bench")?;
    let wanted = |name: &str| size.only.is_empty() || size.only.iter().any(|o| o == name);
    println!(
        "{} Services of {} endpoints; CPU time, one thread on each side; median of {} alternated repeats\n",
        size.services, size.endpoints, size.repeats
    );
    let mut report = Report::default();
    if Backend::ALL.iter().any(|b| wanted(b.name())) {
        let manifests = state::manifests(size, &folder.join("manifests"))?;
        for backend in Backend::ALL.into_iter().filter(|b| wanted(b.name())) {
            let state = State::make(&programs.rawdump, size, backend, &folder)
                .with_context(|| format!("making rules for {}", backend.name()))?;
            first(&programs, size, &state, &manifests, &mut report)?;
            later(&programs, &state, &manifests, &mut report)?;
            memory::measure(&programs.agent, &state, &manifests, &folder, &mut report)?;
        }
    }
    if wanted("desired") {
        let twice = Size {
            services: size.services * 2,
            ..size.clone()
        };
        let manifests = state::manifests(&twice, &folder.join("twice"))?;
        for mode in ["iptables", "nftables"] {
            desired(&programs, size, mode, &manifests, &mut report)?;
        }
    }
    // Last: it starts a cluster, and what it measures is kube-proxy.
    if wanted("sync") {
        sync::measure(&programs.agent, size, &mut report)?;
    }
    report.close();
    Ok(())
}

impl Programs {
    fn build(dev: bool) -> Result<Programs> {
        let profile = if dev { "dev" } else { "release" };
        println!("building, profile {profile} (minutes, the first time)");
        let output = command::cargo()
            .args(["build", "--workspace", "--profile", profile])
            .args(["--bin", "vipwitness-agent", "--bin", "bench-inside"])
            .args(["--message-format", "json-render-diagnostics"])
            .stderr(Stdio::inherit())
            .output()
            .context("starting cargo")?;
        if !output.status.success() {
            bail!("building: {}", output.status);
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let find = |name: &str| {
            text.lines()
                .filter_map(|line| serde_json::from_str::<Value>(line).ok())
                .filter(|message| message["target"]["name"] == name)
                .find_map(|message| message["executable"].as_str().map(PathBuf::from))
                .with_context(|| format!("cargo built no program {name}"))
        };
        Ok(Programs {
            agent: find("vipwitness-agent")?,
            inside: find("bench-inside")?,
            rawdump: rawdump()?,
        })
    }
}

/// The baseline's program, built into the cache under a name that holds the hash of its sources.
fn rawdump() -> Result<PathBuf> {
    let source = cache::workspace().join("tests/baseline");
    let mut files = vec![source.join("Cargo.toml"), source.join("Cargo.lock")];
    for entry in std::fs::read_dir(source.join("src"))? {
        files.push(entry?.path());
    }
    files.sort();
    let mut hash = Sha256::new();
    for file in &files {
        hash.update(std::fs::read(file).with_context(|| format!("reading {}", file.display()))?);
    }
    let folder = cache::folder()?;
    let path = folder.join(format!(
        "rawdump-{}",
        HEXLOWER.encode(&hash.finalize()[..6])
    ));
    if path.exists() {
        return Ok(path);
    }
    std::fs::create_dir_all(&folder)?;
    let target = Folder::create("rawdump")?;
    let mut cargo = command::cargo();
    cargo
        .args([
            "build",
            "--quiet",
            "--release",
            "--locked",
            "--manifest-path",
        ])
        .arg(source.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(target.path());
    command::output(&mut cargo).context("building the baseline")?;
    // To another name first: an interrupted copy must not look like a finished one.
    let unfinished = path.with_extension(format!("unfinished-{}", std::process::id()));
    std::fs::copy(target.join("release/rawdump"), &unfinished)?;
    std::fs::rename(&unfinished, &path)?;
    Ok(path)
}

/// CPU time of one raw dump of all that the agent reads, milliseconds.
fn raw(programs: &Programs, state: &State) -> Result<f64> {
    let rawdump = programs.rawdump.to_string_lossy();
    let jobs: Vec<Vec<String>> = match state.backend {
        Backend::Legacy => state
            .netns
            .run("cat", ["/proc/net/ip_tables_names"])?
            .lines()
            .map(|table| vec!["xt".into(), format!("--table={table}")])
            .collect(),
        Backend::IptablesNft | Backend::Nftables => {
            vec![vec!["nft-all".into(), "--per-chain".into()]]
        }
    };
    let mut sum = 0.0;
    for job in &jobs {
        let said = state.netns.run(&rawdump, job)?;
        // `… user 12.3 sys 45.6 | …`
        let words: Vec<&str> = said.split_whitespace().collect();
        for word in ["user", "sys"] {
            let at = words.iter().position(|w| *w == word);
            let value = at.and_then(|at| words.get(at + 1)?.parse::<f64>().ok());
            sum += value.with_context(|| format!("what rawdump said: {said}"))?;
        }
    }
    Ok(sum)
}

fn job(what: &str, mode: &str, manifests: &Path, repeats: usize) -> Vec<String> {
    vec![
        what.into(),
        "--mode".into(),
        mode.into(),
        "--manifests".into(),
        manifests.display().to_string(),
        "--repeats".into(),
        repeats.to_string(),
    ]
}

/// The first reading against the kernel's own cost, each in a fresh process.
fn first(
    programs: &Programs,
    size: &Size,
    state: &State,
    manifests: &Path,
    report: &mut Report,
) -> Result<()> {
    let inside = programs.inside.to_string_lossy();
    let (mut raws, mut ours, mut reads) = (Vec::new(), Vec::new(), Vec::new());
    let mut last = Cost::default();
    for _ in 0..size.repeats {
        raws.push(raw(programs, state)?);
        let said = state
            .netns
            .run(&inside, job("first", state.backend.mode(), manifests, 1))?;
        last = parse(said.trim())?;
        reads.push(last.read);
        ours.push(last.read + last.walk);
    }
    let (raw, ours, read) = (median(raws), median(ours), median(reads));
    let name = state.backend.name();
    let target = match state.backend {
        Backend::Legacy => 1.4,
        Backend::IptablesNft | Backend::Nftables => 1.3,
    };
    report.line(
        &format!("{name}: first read + decode + walk"),
        ours / raw,
        "x the raw dump",
        Target::AtMost(target),
        &format!(
            "{ours:.0} ms (read + decode {read:.0}, walk {:.0}) against {raw:.0} ms",
            ours - read
        ),
    );
    report.note(&format!(
        "{name}: {} pairs judged, {} differences; desired {:.0} ms, compare {:.0} ms",
        last.pairs, last.differences, last.desired, last.compare
    ));
    if last.differences > 0 || last.pairs == 0 {
        bail!("{name}: rules and objects do not match: {last:?}");
    }
    Ok(())
}

/// A job that answers line by line. Killed when dropped.
struct Talk {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Talk {
    fn start(mut command: Command) -> Result<Talk> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}", command::words(&command)))?;
        let to = child.stdin.take().context("stdin was piped")?;
        let from = BufReader::new(child.stdout.take().context("stdout was piped")?);
        Ok(Talk { child, to, from })
    }

    fn hear(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.from.read_line(&mut line)? == 0 {
            bail!("it ended before it had said everything");
        }
        Ok(line)
    }

    fn ask(&mut self) -> Result<Cost> {
        self.to.write_all(b"\n")?;
        self.to.flush()?;
        parse(&self.hear()?)
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Passes over an unchanged ruleset, then over one in which one Service changed.
fn later(programs: &Programs, state: &State, manifests: &Path, report: &mut Report) -> Result<()> {
    const UNCHANGED: usize = 200;
    const CHANGES: usize = 10;
    let (name, mode) = (state.backend.name(), state.backend.mode());
    let repeats = if state.backend == Backend::Legacy {
        UNCHANGED / 20
    } else {
        UNCHANGED
    };
    let mut talk = Talk::start(state.netns.command(
        &programs.inside.to_string_lossy(),
        job("later", mode, manifests, repeats),
    ))?;
    let same: Unchanged = parse(&talk.hear()?)?;
    let target = match state.backend {
        Backend::Legacy => Target::None,
        Backend::IptablesNft | Backend::Nftables => Target::AtMost(100.0),
    };
    report.line(
        &format!("{name}: pass over an unchanged ruleset"),
        same.micros,
        "us",
        target,
        &format!("of them {:.0} us asking the kernel", same.kernel_micros),
    );
    let (mut whole, mut parts) = (Vec::new(), Vec::new());
    for n in 0..CHANGES {
        if n % 2 == 0 {
            state.change()?;
        } else {
            state.restore()?;
        }
        let cost = talk.ask()?;
        let found = cost.differences > 0;
        if !cost.changed || found != (n % 2 == 0) {
            bail!("{name}: change {n} was not seen as it is: {cost:?}");
        }
        whole.push(cost.whole());
        parts.push(cost);
    }
    let part = |of: fn(&Cost) -> f64| median(parts.iter().map(of).collect());
    let target = match state.backend {
        Backend::Legacy => Target::None,
        Backend::IptablesNft => Target::AtMost(80.0),
        Backend::Nftables => Target::AtMost(2.0),
    };
    report.line(
        &format!("{name}: one Service changed, kernel to verdict"),
        median(whole),
        "ms",
        target,
        &format!(
            "read {:.1}, desired {:.1}, walk {:.1}, compare {:.1}",
            part(|c| c.read),
            part(|c| c.desired),
            part(|c| c.walk),
            part(|c| c.compare)
        ),
    );
    Ok(())
}

/// The desired state alone.
fn desired(
    programs: &Programs,
    size: &Size,
    mode: &str,
    manifests: &Path,
    report: &mut Report,
) -> Result<()> {
    let inside = programs.inside.to_string_lossy();
    let said = command::run(&inside, job("desired", mode, manifests, size.repeats))?;
    let cost: DesiredCost = parse(said.trim())?;
    report.line(
        &format!("{mode}: desired state, whole"),
        cost.whole,
        "ms",
        Target::AtMost(150.0),
        &format!(
            "{} Services, {} endpoints, {} rows",
            cost.services, cost.endpoints, cost.rows
        ),
    );
    report.line(
        &format!("{mode}: desired state, one slice changed"),
        cost.change * 1e3,
        "us",
        Target::AtMost(200.0),
        "",
    );
    Ok(())
}
