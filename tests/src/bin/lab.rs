//! `cargo lab`: the laboratory.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::{Parser, Subcommand};
use tests::bench::{self, Size};
use tests::cache::Version;
use tests::cluster::{Cluster, User};
use tests::demo::{self, End};
use tests::proxy::{Mode, Proxy, Spec};
use tests::soak::{self, Soak};
use tests::tiers::{self, Tier, Wanted};
use tests::topology::Hub;
use tests::{cleanup, objects, packages, recording};

/// The laboratory of vipwitness. Without a command it shows the product: three nodes with rules that real
/// kube-proxies wrote, an agent on each, an aggregator, and drift that comes and goes.
#[derive(Parser)]
struct Arguments {
    /// End after this many seconds instead of with Ctrl-C
    #[arg(long, value_name = "SECONDS")]
    r#for: Option<u64>,
    /// Plant, find and heal every drift once, then end; an error if one was not found
    #[arg(long, conflicts_with = "for")]
    once: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Run the tests, tier by tier
    Test {
        /// Only this tier (repeatable)
        #[arg(long, value_enum)]
        tier: Vec<Tier>,
        /// Only the check of this name
        #[arg(long, value_name = "NAME")]
        only: Option<String>,
        /// A tier that cannot run is a failure
        #[arg(long)]
        require_all: bool,
    },
    /// Measure what a pass costs at a large node, beside what the kernel alone costs (root; builds for release first)
    Bench(Size),
    /// Change everything for a long time, damage rules meanwhile, and see that only damage is found
    Soak(Soak),
    /// A cluster with a kube-proxy of every version and mode, each on a node of its own, until Ctrl-C
    Up,
    /// Run real kube-proxies and save what they wrote to tests/recordings
    Record,
    /// Write the dashboards to dashboards/
    Dashboards,
    /// Render deploy/chart into the plain manifests of deploy/
    Chart,
    /// Build every Kubernetes program that the laboratory can run, and Helm, if it is not there yet
    Build,
}

fn main() -> ExitCode {
    let result = run(Arguments::parse());
    cleanup::wait_if_stopping();
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<bool> {
    cleanup::on_signals()?;
    if packages::is_root() && packages::find("ip").is_some() {
        cleanup::of_the_dead()?;
    }
    let end = match (arguments.once, arguments.r#for) {
        (true, _) => End::Once,
        (false, Some(seconds)) => End::After(Duration::from_secs(seconds)),
        (false, None) => End::Interrupt,
    };
    match arguments.command {
        None => {
            if !packages::is_root() {
                anyhow::bail!("network namespaces need root: run it as root");
            }
            demo::run(end)?;
        }
        Some(Command::Test {
            tier,
            only,
            require_all,
        }) => {
            return tiers::run(&Wanted {
                tiers: tier,
                only,
                require_all,
            });
        }
        Some(Command::Bench(size)) => bench::run(&size)?,
        Some(Command::Soak(how)) => println!("{}", soak::soak(how)?),
        Some(Command::Up) => up(end)?,
        Some(Command::Record) => recording::record()?,
        Some(Command::Chart) => tests::chart::write()?,
        Some(Command::Dashboards) => tests::monitoring::dashboards::write()?,
        Some(Command::Build) => {
            for version in Version::ALL {
                for program in tests::cache::programs(version) {
                    println!("{}", tests::cache::kubernetes(program, version)?.display());
                }
            }
            println!("{}", tests::cache::helm()?.display());
        }
    }
    Ok(true)
}

fn up(end: End) -> Result<()> {
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
        cluster.kubeconfig(User::Admin)?.display()
    );
    let mut nodes = Vec::new();
    for version in Version::ALL {
        for mode in Mode::ALL {
            let spec = Spec::new(version, mode);
            let node = hub.add_node(&spec.name())?;
            cluster.create_node(&node, &[])?;
            let proxy = Proxy::start(&cluster, &node, spec)?;
            nodes.push((proxy, node));
        }
    }
    let limit = Duration::from_secs(120);
    for (proxy, node) in &mut nodes {
        proxy.wait_synced(node, limit)?;
        println!(
            "{:>5.1} s  {} runs in namespace {}",
            start.elapsed().as_secs_f32(),
            node.name(),
            node.netns().name()
        );
    }
    cluster.create_namespace(objects::NAMESPACE)?;
    let all: Vec<_> = nodes.iter().map(|(_, node)| node).collect();
    cluster.api.create_all(&objects::small(&all))?;
    tests::laboratory::patch_all(&cluster.api, objects::small_statuses())?;
    for (proxy, node) in &mut nodes {
        proxy.wait_programmed(node, &objects::small_words(), limit)?;
        println!(
            "{:>5.1} s  {} has programmed every Service",
            start.elapsed().as_secs_f32(),
            node.name()
        );
    }
    println!("press Ctrl-C to end");
    match end {
        End::Once => (),
        End::After(time) => std::thread::sleep(time),
        End::Interrupt => loop {
            std::thread::park();
        },
    }
    Ok(())
}
