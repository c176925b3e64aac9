//! `cargo lab`: the laboratory.

use std::time::{Duration, Instant};

use anyhow::Result;
use clap::{Parser, Subcommand};
use tests::cache::Version;
use tests::cluster::Cluster;
use tests::proxy::{Mode, Proxy, Spec};
use tests::topology::Hub;
use tests::{cleanup, objects, packages};

/// The laboratory of vipwitness.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// A cluster with a kube-proxy of every version and mode, each on a node of its own, until Ctrl-C
    Up {
        /// End after this many seconds
        #[arg(long)]
        r#for: Option<u64>,
    },
    /// Run real kube-proxies and save what they wrote to tests/recordings
    Record,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    cleanup::on_signals()?;
    cleanup::of_the_dead()?;
    match arguments.command {
        Some(Command::Up { r#for }) => up(r#for),
        Some(Command::Record) => tests::recording::record(),
        None => Ok(()),
    }
}

fn up(seconds: Option<u64>) -> Result<()> {
    packages::ensure(packages::KERNEL)?;
    packages::ensure(packages::CLUSTER)?;
    let start = Instant::now();
    let hub = Hub::create()?;
    let cluster = Cluster::start(&hub)?;
    println!(
        "{:>5.1} s  API server {} in namespace {}",
        start.elapsed().as_secs_f32(),
        cluster.url(),
        hub.netns().name()
    );
    println!(
        "         KUBECONFIG={}",
        cluster.kubeconfig(tests::cluster::User::Admin)?.display()
    );
    let mut nodes = Vec::new();
    for version in Version::ALL {
        for mode in Mode::ALL {
            let spec = Spec::new(version, mode);
            let node = hub.add_node(&spec.name())?;
            cluster.create_node(&node, &[])?;
            let proxy = Proxy::start(&cluster, &node, spec)?;
            nodes.push((node, proxy));
        }
    }
    let limit = Duration::from_secs(120);
    for (node, proxy) in &mut nodes {
        proxy.wait_synced(node, limit)?;
        println!(
            "{:>5.1} s  {} runs in namespace {}",
            start.elapsed().as_secs_f32(),
            node.name(),
            node.netns().name()
        );
    }
    cluster.create_namespace(objects::NAMESPACE)?;
    let all: Vec<_> = nodes.iter().map(|(node, _)| node).collect();
    cluster.api.create_all(&objects::small(&all))?;
    for (path, patch) in objects::small_statuses() {
        cluster.api.patch(&path, &patch)?;
    }
    println!("{:>5.1} s  Services posted", start.elapsed().as_secs_f32());
    for (node, proxy) in &mut nodes {
        proxy.wait_programmed(node, &objects::small_words(), limit)?;
        println!(
            "{:>5.1} s  {} has programmed all",
            start.elapsed().as_secs_f32(),
            node.name()
        );
    }
    println!("press Ctrl-C to end");
    std::thread::sleep(Duration::from_secs(seconds.unwrap_or(u64::MAX)));
    Ok(())
}
