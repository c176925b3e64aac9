//! Packets as the second oracle: connections that are really made end where
//! `table --side observed` says they end.
//!
//! Servers stand in the hub (for every Pod address), behind each node (the client Pod, which some
//! Services have as an endpoint) and on each node. Each answers with its own address, which tells
//! which backend the kernel chose, and with its peer's, which tells whether it was masqueraded.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::runtime::Runtime;

use crate::generate::TARGET_PORTS;
use crate::laboratory::{Laboratory, Station};
use crate::netns::{Netns, move_this_thread};
use crate::oracle;
use crate::topology::Node;

/// Frontends tried on each node.
const FRONTENDS: usize = 200;
/// Connections at once from one namespace.
const PARALLEL: usize = 24;
/// After this a packet counts as dropped. Answers come within milliseconds.
const TIMEOUT: Duration = Duration::from_millis(1500);
/// Disagreements printed for each node.
const SHOWN: usize = 15;

/// What a connection attempt ended in.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    Answered {
        backend: SocketAddr,
        peer: SocketAddr,
    },
    Refused,
    Silence,
    /// No route, no such address: nothing that a rule decided.
    Failed(String),
}

/// One attempt, with the row that foretells it.
struct Attempt {
    source: &'static str,
    frontend: String,
    address: SocketAddr,
    udp: bool,
    client: [IpAddr; 2],
    own: [IpAddr; 2],
    row: Value,
}

/// The check.
pub fn packets_are_the_oracle(laboratory: &mut Laboratory) -> Result<String> {
    oracle::prepare(laboratory)?;
    let mut counts: BTreeMap<&'static str, u64> = BTreeMap::new();
    let mut wrong = Vec::new();
    for station in &laboratory.stations {
        let asked = laboratory.ask(station, &["table", "--side", "observed"])?;
        let rows = asked.json["rows"].as_array().with_context(|| {
            format!(
                "table gives no rows on {}\n{}",
                station.node.name(),
                asked.stderr
            )
        })?;
        let attempts = choose(station, rows);
        let servers = Servers::start(laboratory, &attempts)?;
        for setting in ["net/ipv4/icmp_ratelimit=0", "net/ipv6/icmp/ratelimit=0"] {
            // Refusals would be counted as silence once the limit of ICMP errors is reached.
            station.node.netns().sysctl(&[setting])?;
        }
        let mut here = Vec::new();
        for (attempt, outcome) in make(station, &attempts)? {
            match judge(attempt, &outcome) {
                Ok(verdict) => *counts.entry(verdict).or_default() += 1,
                Err(reason) => here.push(format!(
                    "{} {} from {}: {reason}",
                    station.node.name(),
                    attempt.frontend,
                    attempt.source
                )),
            }
        }
        drop(servers);
        let frontends: BTreeSet<&str> = attempts
            .iter()
            .map(|attempt| attempt.frontend.as_str())
            .collect();
        println!(
            "{:<18} {} frontends, {} connections, {} disagree",
            station.node.name(),
            frontends.len(),
            attempts.len(),
            here.len()
        );
        if frontends.len() < FRONTENDS {
            here.push(format!(
                "{}: only {} frontends to try",
                station.node.name(),
                frontends.len()
            ));
        }
        let more = here.len().saturating_sub(SHOWN);
        wrong.extend(here.into_iter().take(SHOWN));
        if more > 0 {
            wrong.push(format!("{}: and {more} more", station.node.name()));
        }
    }
    let counts: Vec<String> = counts
        .iter()
        .map(|(verdict, count)| format!("{count} {verdict}"))
        .collect();
    let counts = counts.join(", ");
    if !wrong.is_empty() {
        bail!("{counts}; but\n{}", wrong.join("\n"));
    }
    Ok(counts)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("")
}

/// Chooses [`FRONTENDS`] frontends, in turn from groups of those that behave alike, so that rare
/// behaviour is there, and gives three attempts for each.
fn choose(station: &Station, rows: &[Value]) -> Vec<Attempt> {
    let mut by_frontend: BTreeMap<&str, Vec<&Value>> = BTreeMap::new();
    for row in rows {
        by_frontend
            .entry(text(&row["frontend"]))
            .or_default()
            .push(row);
    }
    let mut groups: BTreeMap<String, Vec<(&str, Vec<&Value>)>> = BTreeMap::new();
    for (frontend, rows) in by_frontend {
        let Some((address, protocol)) = parse(frontend) else {
            continue;
        };
        // Loopback and link-local addresses are no destinations from other machines.
        let reachable = match address.ip() {
            IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
            IpAddr::V6(v6) => !v6.is_loopback() && v6.segments()[0] & 0xffc0 != 0xfe80,
        };
        // The API server does not answer in clear text.
        let own = rows
            .iter()
            .any(|row| text(&row["service"]).starts_with("default/"));
        if protocol == "SCTP" || own || !reachable {
            continue;
        }
        let mut group = format!("{protocol} {}", address.is_ipv6());
        for row in &rows {
            group.push_str(&format!(
                " {} {} {} {}",
                text(&row["action"]),
                text(&row["masquerade"]),
                row["source_ranges"].is_null(),
                row["affinity_seconds"].is_null()
            ));
        }
        groups.entry(group).or_default().push((frontend, rows));
    }
    let mut attempts = Vec::new();
    let mut frontends = 0;
    let mut round = 0;
    while frontends < FRONTENDS {
        let before = frontends;
        for group in groups.values() {
            if let Some((frontend, rows)) = group.get(round)
                && frontends < FRONTENDS
            {
                frontends += 1;
                attempts.extend(
                    rows.iter()
                        .filter_map(|row| attempt(station, frontend, row)),
                );
            }
        }
        if frontends == before {
            break;
        }
        round += 1;
    }
    attempts
}

fn attempt(station: &Station, frontend: &str, row: &Value) -> Option<Attempt> {
    let (address, protocol) = parse(frontend)?;
    let node = &station.node;
    let (source, client): (_, [IpAddr; 2]) = match text(&row["source"]) {
        "pod" => ("pod", [node.pod().v4().into(), node.pod().v6().into()]),
        "outside" => (
            "outside",
            [node.outside().v4().into(), node.outside().v6().into()],
        ),
        "node" => ("node", [node.v4().into(), node.v6().into()]),
        _ => return None,
    };
    Some(Attempt {
        source,
        frontend: frontend.to_owned(),
        address,
        udp: protocol == "UDP",
        client,
        own: [node.v4().into(), node.v6().into()],
        row: row.clone(),
    })
}

/// `10.96.0.10:80/TCP`; none for wildcards.
fn parse(frontend: &str) -> Option<(SocketAddr, &str)> {
    let (address, protocol) = frontend.rsplit_once('/')?;
    Some((address.parse().ok()?, protocol))
}

/// Makes all attempts, from the namespaces of their sources at once.
fn make<'a>(station: &Station, attempts: &'a [Attempt]) -> Result<Vec<(&'a Attempt, Outcome)>> {
    let node = &station.node;
    let mut done = Vec::new();
    let next: BTreeMap<&str, std::sync::atomic::AtomicUsize> = ["pod", "node", "outside"]
        .into_iter()
        .map(|source| (source, Default::default()))
        .collect();
    std::thread::scope(|scope| -> Result<()> {
        let mut threads = Vec::new();
        for (source, netns) in sources(node) {
            let next = &next[source];
            for _ in 0..PARALLEL {
                threads.push(scope.spawn(move || -> Result<Vec<(&'a Attempt, Outcome)>> {
                    move_this_thread(netns.name())?;
                    let own: Vec<&Attempt> = attempts
                        .iter()
                        .filter(|attempt| attempt.source == source)
                        .collect();
                    let mut done = Vec::new();
                    while let Some(attempt) =
                        own.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
                    {
                        done.push((*attempt, connect(attempt)));
                    }
                    Ok(done)
                }));
            }
        }
        for thread in threads {
            match thread.join() {
                Ok(result) => done.extend(result?),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(())
    })?;
    Ok(done)
}

fn sources(node: &Node) -> [(&'static str, &Netns); 3] {
    [
        ("pod", node.pod().netns()),
        ("node", node.netns()),
        ("outside", node.outside().netns()),
    ]
}

fn connect(attempt: &Attempt) -> Outcome {
    let answer = if attempt.udp {
        udp(attempt.address)
    } else {
        tcp(attempt.address)
    };
    match answer {
        Ok(answer) => {
            let mut words = answer.split_whitespace();
            let mut next = || words.next().and_then(|word| word.parse().ok());
            match (next(), next()) {
                (Some(backend), Some(peer)) => Outcome::Answered { backend, peer },
                _ => Outcome::Failed(format!("answered {answer:?}")),
            }
        }
        Err(error) => match error.kind() {
            ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset => Outcome::Refused,
            ErrorKind::TimedOut | ErrorKind::WouldBlock => Outcome::Silence,
            _ => Outcome::Failed(error.to_string()),
        },
    }
}

fn tcp(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn udp(address: SocketAddr) -> std::io::Result<String> {
    let socket = UdpSocket::bind(if address.is_ipv6() {
        "[::]:0"
    } else {
        "0.0.0.0:0"
    })?;
    socket.connect(address)?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    match socket.send(b"who are you") {
        // A rule in the hook output ate it; whether it was refused comes with the answer.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => (),
        other => drop(other?),
    }
    let mut buffer = [0; 256];
    let length = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

/// Whether an outcome is what the row foretells: the verdict in one word, or what differs.
fn judge(attempt: &Attempt, outcome: &Outcome) -> Result<&'static str, String> {
    let row = &attempt.row;
    let client = attempt.client[usize::from(attempt.address.is_ipv6())];
    let mut action = text(&row["action"]);
    if let Some(ranges) = row["source_ranges"].as_array() {
        let inside = ranges
            .iter()
            .any(|range| crate::coverage::within(&client.to_string(), text(range)));
        if !inside {
            action = text(&row["otherwise"]);
        }
    }
    match (action, outcome) {
        ("forward", Outcome::Answered { backend, peer }) => {
            let backends: Vec<SocketAddr> = row["backends"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|backend| text(&backend["address"]).parse().ok())
                .collect();
            if !backends.contains(backend) {
                return Err(format!("reached {backend}, which is none of {backends:?}"));
            }
            let masqueraded = peer.ip() != client;
            // The node's own address looks the same before and after.
            if attempt.source != "node" {
                let expected = match text(&row["masquerade"]) {
                    // A backend with the node's own address: the packet is delivered here and never
                    // meets the rules that masquerade what leaves.
                    "always" => !attempt.own.contains(&backend.ip()),
                    "never" => false,
                    "hairpin" => backend.ip() == client,
                    other => return Err(format!("masquerade is {other}")),
                };
                if masqueraded != expected {
                    return Err(format!(
                        "{backend} sees {peer}, client is {client}, masquerade should be {}",
                        text(&row["masquerade"])
                    ));
                }
            }
            Ok("forwarded")
        }
        ("reject", Outcome::Refused) => Ok("rejected"),
        ("drop", Outcome::Silence) => Ok("dropped"),
        // The datapath leaves the packet alone; what becomes of it is not its decision, but no backend may answer.
        ("none", Outcome::Answered { backend, .. }) => {
            Err(format!("reached {backend}, but no rule should apply"))
        }
        ("none", _) => Ok("left alone"),
        (action, outcome) => Err(format!(
            "{outcome:?} instead of {action}; backends {}",
            row["backends"]
        )),
    }
}

/// The servers of one node's attempts. Gone when dropped.
struct Servers {
    runtime: Option<Runtime>,
}

impl Servers {
    fn start(laboratory: &Laboratory, attempts: &[Attempt]) -> Result<Servers> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let hub = laboratory.hub.netns();
        // UDP answers come from the address that was asked only if the socket is bound to it.
        hub.sysctl(&["net/ipv4/ip_nonlocal_bind=1", "net/ipv6/ip_nonlocal_bind=1"])?;
        let mut addresses: BTreeSet<SocketAddr> = BTreeSet::new();
        for attempt in attempts.iter().filter(|attempt| attempt.udp) {
            for backend in attempt.row["backends"].as_array().into_iter().flatten() {
                addresses.extend(text(&backend["address"]).parse::<SocketAddr>().ok());
            }
        }
        let mut places: Vec<(&Netns, Vec<IpAddr>)> = Vec::new();
        let mut elsewhere: BTreeSet<IpAddr> = BTreeSet::new();
        for node in laboratory.nodes() {
            let pod: Vec<IpAddr> = vec![node.pod().v4().into(), node.pod().v6().into()];
            let own: Vec<IpAddr> = vec![node.v4().into(), node.v6().into()];
            elsewhere.extend(pod.iter().chain(&own));
            places.push((node.pod().netns(), pod));
            places.push((node.netns(), own));
        }
        let in_hub: Vec<SocketAddr> = addresses
            .iter()
            .filter(|address| !elsewhere.contains(&address.ip()))
            .copied()
            .collect();
        serve(&runtime, hub, &in_hub)?;
        for (netns, own) in places {
            let here: Vec<SocketAddr> = addresses
                .iter()
                .filter(|address| own.contains(&address.ip()))
                .copied()
                .collect();
            serve(&runtime, netns, &here)?;
        }
        Ok(Servers {
            runtime: Some(runtime),
        })
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
    }
}

/// TCP on every target port of a namespace, and UDP on these addresses.
fn serve(runtime: &Runtime, netns: &Netns, udp: &[SocketAddr]) -> Result<()> {
    let (listeners, sockets) = netns.enter(|| -> std::io::Result<_> {
        let mut listeners = Vec::new();
        for port in TARGET_PORTS {
            // One for both families.
            listeners.push(TcpListener::bind(("::", port))?);
        }
        let mut sockets = Vec::new();
        for address in udp {
            sockets.push(UdpSocket::bind(address)?);
        }
        Ok((listeners, sockets))
    })??;
    let _entered = runtime.enter();
    for listener in listeners {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        runtime.spawn(async move {
            while let Ok((mut stream, peer)) = listener.accept().await {
                if let Ok(own) = stream.local_addr() {
                    let answer = format!("{} {}", canonical(own), canonical(peer));
                    let _ = stream.write_all(answer.as_bytes()).await;
                    let _ = stream.shutdown().await;
                }
            }
        });
    }
    for socket in sockets {
        socket.set_nonblocking(true)?;
        let own = socket.local_addr()?;
        let socket = tokio::net::UdpSocket::from_std(socket)?;
        runtime.spawn(async move {
            let mut buffer = [0; 64];
            while let Ok((_, peer)) = socket.recv_from(&mut buffer).await {
                let _ = socket
                    .send_to(format!("{own} {peer}").as_bytes(), peer)
                    .await;
            }
        });
    }
    Ok(())
}

/// An IPv4 address as such, which a socket of both families gives as IPv6.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
