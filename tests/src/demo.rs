//! `cargo lab`: the product on three nodes that real kube-proxies once programmed, with drift
//! that comes and goes while one watches. Needs neither Go nor a cluster.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::agents::{AGGREGATOR_HTTP, Agent, Aggregator, Programs, Source, Spec};
use crate::cache::Version;
use crate::netns::{Netns, move_this_thread};
use crate::proxy::Mode;
use crate::recording::{Recording, canonical};
use crate::topology::{Hub, Node};
use crate::{packages, wait};

/// The nodes shown: both modes, and both layouts of nftables mode.
const SHOWN: [(Version, Mode); 3] = [
    (Version::V1_37, Mode::Nftables),
    (Version::V1_34, Mode::Nftables),
    (Version::V1_36, Mode::IptablesNft),
];

/// The port on the user's loopback where the aggregator answers, if it is free.
const PORT: u16 = 8440;

/// External damage is a finding within 10 s; a loaded machine gets a little more.
const SEEN_LIMIT: Duration = Duration::from_secs(20);

/// How the demonstration ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// With Ctrl-C.
    Interrupt,
    /// After every drift was planted, seen, healed and seen to be gone, once. An error if one was not.
    Once,
    /// After this time.
    After(Duration),
}

/// A damage that the demonstration does to a node's rules.
struct Drift {
    /// Which node of [`SHOWN`].
    node: usize,
    /// What happens, for people.
    says: &'static str,
    /// A shell line that does it, in the node's namespace.
    plant: &'static str,
}

/// One for each node. Healing is the same for all: the recording is loaded again.
const DRIFTS: [Drift; 3] = [
    Drift {
        node: 0,
        says: "deletes the map element of shop/web: its ClusterIP is no longer served",
        plant: "nft delete element ip kube-proxy service-ips '{ 10.96.10.10 . tcp . 80 }'",
    },
    Drift {
        node: 2,
        says: "empties the chain of shop/web: its ClusterIP leads to no endpoint",
        plant: "iptables-nft -t nat -F KUBE-SVC-67NZLRHBNDSAWJRO",
    },
    Drift {
        node: 1,
        says: "adds a foreign DNAT in front of kube-proxy that steals 10.96.10.10:80",
        plant: "nft 'add table ip intruder; add chain ip intruder pre { type nat hook prerouting priority -150; }; \
                add rule ip intruder pre ip daddr 10.96.10.10 tcp dport 80 dnat to 10.244.66.6:6666'",
    },
];

/// Runs the demonstration.
pub fn run(end: End) -> Result<()> {
    packages::ensure(packages::KERNEL)?;
    println!("building agent and aggregator");
    let programs = Programs::build()?;
    let start = Instant::now();
    let hub = Hub::create()?;
    let aggregator = Aggregator::start(
        &programs,
        &hub,
        &["--insecure-agents", "--insecure-readers"],
    )?;
    let mut nodes = Vec::new();
    for (version, mode) in SHOWN {
        let recording = Recording::of(version, mode);
        let place = recording.place()?;
        let node = hub.add_node_at(&place.name, place.index)?;
        recording.load(node.netns())?;
        let mut spec = Spec::new(Source::Manifests(recording.manifests()));
        spec.kube_proxy_config = Some(recording.configuration());
        spec.proxy_version = Some(version.minor().to_owned());
        let agent = Agent::start(&programs, &node, &spec)?;
        println!(
            "node {}: rules of a real kube-proxy {} ({})",
            node.name(),
            version.full(),
            mode.name()
        );
        nodes.push((recording, node, agent));
    }
    let address = publish(hub.netns())?;
    wait::until("a report from every node", Duration::from_secs(60), || {
        let text = aggregator.get(&hub, "/nodes")?.body;
        Ok(nodes
            .iter()
            .all(|(_, node, _)| text.contains(node.name()))
            .then_some(()))
    })?;
    let names: Vec<&str> = nodes.iter().map(|(_, node, _)| node.name()).collect();
    introduce(address, &names);
    let deadline = match end {
        End::After(time) => Some(start + time),
        _ => None,
    };
    loop {
        for drift in &DRIFTS {
            let (recording, node, _) = &nodes[drift.node];
            if end != End::Once && pause(Duration::from_secs(8), deadline) {
                return Ok(());
            }
            plant(drift, node)?;
            let seen = seen(&aggregator, &hub, node, true);
            report(&seen, end)?;
            if end != End::Once && pause(Duration::from_secs(12), deadline) {
                return Ok(());
            }
            heal(recording, node)?;
            report(&self::seen(&aggregator, &hub, node, false), end)?;
        }
        if end == End::Once {
            return Ok(());
        }
    }
}

/// Every planted drift changes its node's rules, and healing brings back what was recorded.
pub fn drifts_heal() -> Result<String> {
    let hub = Hub::create()?;
    for drift in &DRIFTS {
        let (version, mode) = SHOWN[drift.node];
        let recording = Recording::of(version, mode);
        let place = recording.place()?;
        let node = hub.add_node_at(&place.name, place.index)?;
        recording.load(node.netns())?;
        let recorded = canonical(node.netns(), mode)?;
        plant(drift, &node)?;
        ensure!(
            canonical(node.netns(), mode)? != recorded,
            "{}: nothing changed",
            node.name()
        );
        heal(&recording, &node)?;
        ensure!(
            canonical(node.netns(), mode)? == recorded,
            "{}: other rules than recorded",
            node.name()
        );
    }
    Ok(format!("{} drifts planted and healed", DRIFTS.len()))
}

fn introduce(address: SocketAddr, names: &[&str]) {
    println!("\nThe aggregator answers on http://{address}. In another terminal, try:\n");
    for path in [
        "nodes",
        &format!("nodes/{}/svc/web", names[0]),
        "svc/shop/web",
        "drift",
        "metrics",
    ] {
        println!("  curl -s http://{address}/{path}");
    }
    println!("  curl -s 'http://{address}/svc/shop/web?output=text'");
    println!("\nDrift now comes and goes; Ctrl-C ends.\n");
}

fn plant(drift: &Drift, node: &Node) -> Result<()> {
    println!("{}: somebody {}", node.name(), drift.says);
    println!(
        "  $ {}",
        drift.plant.split_whitespace().collect::<Vec<_>>().join(" ")
    );
    node.netns().run("sh", ["-c", drift.plant])?;
    Ok(())
}

fn heal(recording: &Recording, node: &Node) -> Result<()> {
    println!("{}: healed (the rules are loaded again)", node.name());
    node.netns().run("nft", ["flush", "ruleset"])?;
    recording.load(node.netns())
}

/// Waits until the aggregator's list of findings names the node, or no longer does, and gives its
/// one-line verdict, with the time it took.
fn seen(aggregator: &Aggregator, hub: &Hub, node: &Node, drifted: bool) -> Result<String> {
    let start = Instant::now();
    let path = format!("/drift?node={}", node.name());
    let what = if drifted {
        "the drift to be found"
    } else {
        "the finding to clear"
    };
    let verdict = wait::until(what, SEEN_LIMIT, || {
        let answer = aggregator.json(hub, &path)?;
        let findings = answer["findings"]
            .as_array()
            .context("the answer has no findings")?;
        let verdict = answer["verdict"].as_str().unwrap_or_default().to_owned();
        Ok((findings.is_empty() != drifted).then_some(verdict))
    })?;
    Ok(format!(
        "  after {:.1} s: {verdict}",
        start.elapsed().as_secs_f32()
    ))
}

/// Prints what was seen; that nothing was is an error only where somebody counts on it.
fn report(seen: &Result<String>, end: End) -> Result<()> {
    match seen {
        Ok(text) => println!("{text}"),
        Err(error) if end == End::Once => anyhow::bail!("{error:#}"),
        Err(error) => println!("  {error:#}"),
    }
    Ok(())
}

/// Waits, and says whether the demonstration's time is over.
fn pause(time: Duration, deadline: Option<Instant>) -> bool {
    let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    std::thread::sleep(left.map_or(time, |left| left.min(time)));
    left.is_some_and(|left| left <= time)
}

/// Connections forwarded at once; a person with curl needs one.
const FORWARDED_MAX: usize = 32;

/// Makes the aggregator answer on the user's loopback, by forwarding connections into the hub.
fn publish(hub: &Netns) -> Result<SocketAddr> {
    let listener =
        TcpListener::bind(("127.0.0.1", PORT)).or_else(|_| TcpListener::bind(("127.0.0.1", 0)))?;
    let address = listener.local_addr()?;
    let name = hub.name().to_owned();
    let open = Arc::new(AtomicUsize::new(0));
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            if open.fetch_add(1, Ordering::SeqCst) >= FORWARDED_MAX {
                open.fetch_sub(1, Ordering::SeqCst);
                continue;
            }
            let (name, open) = (name.clone(), open.clone());
            std::thread::spawn(move || {
                let _ = forward(client, &name);
                open.fetch_sub(1, Ordering::SeqCst);
            });
        }
    });
    Ok(address)
}

fn forward(client: TcpStream, hub: &str) -> Result<()> {
    // This thread stays in the hub; the client's socket stays where it was accepted.
    move_this_thread(hub)?;
    let server = TcpStream::connect(AGGREGATOR_HTTP)?;
    let (from, to) = (client.try_clone()?, server.try_clone()?);
    let up = std::thread::spawn(move || copy(from, to));
    copy(server, client)?;
    let _ = up.join();
    Ok(())
}

fn copy(mut from: TcpStream, mut to: TcpStream) -> Result<()> {
    let mut buffer = [0; 16 * 1024];
    loop {
        let count = from.read(&mut buffer)?;
        if count == 0 {
            let _ = to.shutdown(Shutdown::Write);
            return Ok(());
        }
        to.write_all(&buffer[..count])?;
    }
}
