//! Memory of a real agent process, as it is released.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::report::{Report, Target};
use super::state::{Backend, NODE, PROXY_VERSION, State};
use crate::agents::PRIVILEGES;
use crate::cleanup::Folder;
use crate::command;
use crate::process::Process;

/// A first pass of a large node.
const LIMIT: Duration = Duration::from_secs(120);
/// Passes over the same rules until memory counts as steady.
const STEADY: u64 = 5;

struct Agent<'a> {
    process: Process,
    program: &'a Path,
    socket: String,
    state: &'a State,
}

/// Starts an agent, and reports its memory after the first passes and after a change.
pub(super) fn measure(
    program: &Path,
    state: &State,
    manifests: &Path,
    folder: &Folder,
    report: &mut Report,
) -> Result<()> {
    let name = state.backend.name();
    let socket = folder.join(format!("{name}.sock")).display().to_string();
    let mut arguments: Vec<String> = PRIVILEGES.map(str::to_owned).into();
    arguments.extend(
        [
            &program.display().to_string(),
            "run",
            "--node",
            NODE,
            "--manifests",
            &manifests.display().to_string(),
            "--kube-proxy-config",
            &state.config.display().to_string(),
            "--proxy-version",
            PROXY_VERSION,
            "--socket",
            &socket,
            "--cpu-budget",
            "100",
        ]
        .map(str::to_owned),
    );
    let mut agent = Agent {
        process: Process::start(
            "vipwitness-agent",
            state.netns.command("setpriv", arguments),
            &folder.join(format!("{name}.log")),
        )?,
        program,
        socket,
        state,
    };
    let first = agent.wait("the first verdict", &|json| judged(json) > 0)?;
    let first_peak = agent.memory("VmHWM")?;
    let until = pass(&first) + STEADY;
    let settled = agent.wait("a steady state", &|json| pass(json) >= until)?;
    let steady = agent.memory("VmRSS")?;
    if settled["findings"].as_array().is_none_or(|f| !f.is_empty()) {
        bail!("{name}: the agent finds something wrong: {settled}");
    }
    // The peak counts anew from here.
    let id = agent.process.id();
    std::fs::write(format!("/proc/{id}/clear_refs"), "5").context("resetting the peak")?;
    state.change()?;
    agent.wait("the change is seen", &|json| {
        json["converging"].as_array().is_some_and(|c| !c.is_empty())
            || json["findings"].as_array().is_some_and(|f| !f.is_empty())
    })?;
    state.restore()?;
    agent.wait("the healing is seen", &|json| {
        json["converging"].as_array().is_some_and(Vec::is_empty)
            && json["findings"].as_array().is_some_and(Vec::is_empty)
    })?;
    let second_peak = agent.memory("VmHWM")?;
    agent.process.stop()?;

    report.line(
        &format!("{name}: memory of the agent, steady"),
        steady,
        "MiB",
        Target::AtMost(45.0),
        &format!("{} pairs judged", judged(&settled)),
    );
    let most = match state.backend {
        Backend::Legacy => 165.0,
        Backend::IptablesNft => 100.0,
        Backend::Nftables => 60.0,
    };
    for (what, peak) in [
        ("first reading (manifests included)", first_peak),
        ("one Service changed twice", second_peak),
    ] {
        report.line(
            &format!("{name}: peak, {what}"),
            peak,
            "MiB",
            Target::AtMost(most),
            "",
        );
    }
    Ok(())
}

fn judged(json: &Value) -> u64 {
    json["judged"]["pairs"].as_u64().unwrap_or_default()
}

fn pass(json: &Value) -> u64 {
    json["data"]["pass"].as_u64().unwrap_or_default()
}

impl Agent<'_> {
    /// Asks until the answer is as wanted.
    fn wait(&mut self, what: &str, wanted: &dyn Fn(&Value) -> bool) -> Result<Value> {
        let Agent {
            process,
            program,
            socket,
            state,
        } = self;
        let mut last = Value::Null;
        let answer = process.until(what, LIMIT, || {
            let program = program.to_string_lossy();
            let mut command = state.netns.command(
                &program,
                ["ask", "node", "--socket", socket, "--output", "json"],
            );
            let output = command::attempt(&mut command)?;
            let Ok(json) = serde_json::from_slice::<Value>(&output.stdout) else {
                return Ok(None);
            };
            last = json.clone();
            Ok(wanted(&json).then_some(json))
        });
        answer.with_context(|| format!("the last answer: {last}"))
    }

    /// A line of `/proc/PID/status`, MiB.
    fn memory(&self, line: &str) -> Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let kib = status
            .lines()
            .find_map(|l| l.strip_prefix(line)?.strip_prefix(':'))
            .and_then(|l| l.split_whitespace().next()?.parse::<f64>().ok())
            .with_context(|| format!("{line} of the agent"))?;
        Ok(kib / 1024.0)
    }
}
