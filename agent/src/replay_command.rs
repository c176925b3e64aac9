//! `replay`: a verdict from files alone, a bundle's or those that others collected.

use crate::check::{print_report, print_table};
use crate::config::{CollectedFlags, ReplayFlags};
use crate::proxy::{self, Sources};
use crate::world::Usage;
use agent::bundle::Limits;
use agent::replay::collected::{Collected, addresses};
use agent::replay::{Judge, Seen, play};
use cluster::manifests;
use model::capture::{Gap, Reading};
use model::name::NodeName;
use model::report::{Report, exit_code};
use model::time::{Millis, Mono, Now};
use model::view::{ClusterView, LocalAddress, Node};
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// Longest text that is read, bytes.
const LONGEST: u64 = 1 << 30;
/// Between the two looks at the same files, milliseconds: a difference counts when a second look
/// confirms it.
const APART: u64 = 1_000;

/// Runs `replay`; gives its exit code.
pub fn replay(flags: &ReplayFlags) -> anyhow::Result<u8> {
    let report = match &flags.bundle {
        Some(path) => bundled(path)?,
        None => collected(&flags.collected)?,
    };
    match flags.table {
        Some(side) => print_table(flags.output, side, &report)?,
        None => print_report(flags.output, &report)?,
    }
    Ok(exit_code(&report))
}

fn bundled(path: &Path) -> Result<Report, Usage> {
    let shown = path.display();
    let played = if path == Path::new("-") {
        play(io::stdin().lock(), Limits::default())
    } else {
        let file = File::open(path).map_err(|e| Usage(format!("{shown}: {e}")))?;
        play(BufReader::new(file), Limits::default())
    };
    let (about, report) = played.map_err(|e| Usage(format!("{shown}: {e}")))?;
    tracing::info!(?about, "replayed");
    Ok(report)
}

fn collected(flags: &CollectedFlags) -> Result<Report, Usage> {
    let wrong =
        |path: &Path, why: &dyn std::fmt::Display| Usage(format!("{}: {why}", path.display()));
    let mut rules = Collected::default();
    let mut newest = Millis(0);
    for path in flags.iptables_save.iter().chain(&flags.nft_json) {
        let (text, at) = text(path)?;
        newest = newest.max(at);
        if flags.nft_json.as_ref() == Some(path) {
            rules.nft_json(&text).map_err(|e| wrong(path, &e))?;
        } else {
            rules.iptables_save(&text).map_err(|e| wrong(path, &e))?;
        }
    }
    let (ruleset, mut gaps) = rules.finish(flags.nothing_else);
    let reading = Reading::Read(ruleset);

    let mut sources = Sources {
        version: flags.proxy_version,
        ..Sources::default()
    };
    if let Some(path) = &flags.kube_proxy_config {
        let parsed = proxy::config::parse(&text(path)?.0).map_err(|e| wrong(path, &e))?;
        sources.file = Some(parsed);
    }
    let mut objects = manifests::read(&flags.manifests);
    if !objects.errors.is_empty() {
        let all: Vec<String> = objects.errors.iter().map(ToString::to_string).collect();
        return Err(Usage(all.join("\n")));
    }
    if let Some(text) = objects.proxy_config.take() {
        match proxy::config::parse(&text) {
            Ok(parsed) => sources.config_map = Some(parsed),
            Err(why) => tracing::warn!(why = ?why, "ConfigMap kube-system/kube-proxy"),
        }
    }
    let at = |ms: u64| Now {
        mono: Mono(ms),
        wall: Millis(newest.0 + ms),
    };
    let mut view = ClusterView {
        settled_facts: true,
        ..ClusterView::default()
    };
    for change in objects.into_changes() {
        view.apply(change, at(0));
    }
    let Some(node) = flags.node.clone() else {
        return Err(Usage("--node says which node the files are of".into()));
    };
    let own = view.nodes.get(&node);
    let profile = sources.profile(&node, own);
    let local = match &flags.addresses {
        Some(path) => addresses(&text(path)?.0).map_err(|e| wrong(path, &e))?,
        None => {
            gaps.push(Gap {
                what: "links".into(),
                why: "no output of ip -j address was given: node ports are judged on the Node object's addresses only (--addresses)".into(),
            });
            of_object(own.ok_or_else(|| no_node(&node, &flags.manifests))?)
        }
    };
    let local = Ok(local);
    let mut judge = Judge::new(node);
    let mut look = |ms| {
        let seen = Seen {
            at: at(ms),
            reading: &reading,
            addresses: &local,
            view: &view,
            profile: &profile,
            proxy: None,
            gaps: &gaps,
            refreshed: &[],
            partial: !flags.nothing_else,
        };
        judge.pass(seen).report
    };
    look(0);
    Ok(look(APART))
}

fn no_node(node: &NodeName, manifests: &[PathBuf]) -> Usage {
    let all: Vec<String> = manifests.iter().map(|p| p.display().to_string()).collect();
    Usage(format!(
        "neither --addresses nor a Node {node} in {} says which addresses are the node's",
        all.join(", ")
    ))
}

/// The addresses that a Node object names, and loopback.
fn of_object(node: &Node) -> Vec<LocalAddress> {
    let loopback = [
        (IpAddr::from(Ipv4Addr::LOCALHOST), "lo"),
        (IpAddr::from(Ipv6Addr::LOCALHOST), "lo"),
    ];
    let own = node.internal_ips.iter().chain(&node.external_ips);
    let mut all: Vec<LocalAddress> = own
        .map(|address| (*address, "?"))
        .chain(loopback)
        .map(|(address, link)| LocalAddress {
            address,
            link: link.into(),
        })
        .collect();
    all.sort();
    all.dedup();
    all
}

/// A file's text, and when it was last written.
fn text(path: &Path) -> Result<(String, Millis), Usage> {
    let wrong = |e: &dyn std::fmt::Display| Usage(format!("{}: {e}", path.display()));
    let file = File::open(path).map_err(|e| wrong(&e))?;
    let written = file.metadata().and_then(|m| m.modified()).ok();
    let written = written.and_then(|t| t.duration_since(UNIX_EPOCH).ok());
    let mut text = String::new();
    let read = file.take(LONGEST + 1).read_to_string(&mut text);
    if read.map_err(|e| wrong(&e))? as u64 > LONGEST {
        return Err(wrong(&"longer than 1 GiB"));
    }
    let ms = written.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX));
    Ok((text, Millis(ms)))
}
