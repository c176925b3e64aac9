//! Flags.

use clap::{Args, Parser, Subcommand, ValueEnum};
use model::name::{NodeName, ServicePortName};
use model::profile::Version;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// An independent witness of every Kubernetes Service address on this node.
#[derive(Debug, Parser)]
#[command(name = "vipwitness-agent", version, about)]
pub struct Flags {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Look again and again, and report to the aggregator.
    Run(RunFlags),
    /// Look until nothing is converging, say what differs, and exit: 0 agrees, 1 finding, 2 not known, 64 usage.
    Check(CheckFlags),
    /// Print what each destination gets.
    Table(TableFlags),
    /// Look as `check` does, and write everything that is needed to repeat the verdict into one file.
    Bundle(BundleFlags),
    /// Repeat the verdict of a bundle: exit codes of `check`, 64 for a file that is none.
    Replay(ReplayFlags),
    /// Ask the agent that runs on this node: 0 answered, 64 wrong question, 2 nobody answers.
    Ask(AskFlags),
}

/// Where API objects come from, and what is known of kube-proxy.
#[derive(Args, Clone, Debug)]
pub struct SourceFlags {
    /// Name of this node's Node object.
    #[arg(long, env = "NODE_NAME", value_parser = node_name)]
    pub node: NodeName,
    /// How to reach the API server; else KUBECONFIG, else in-cluster.
    #[arg(long, value_name = "FILE", conflicts_with = "manifests")]
    pub kubeconfig: Option<PathBuf>,
    /// Address of the API server instead of the one in the configuration.
    #[arg(long, value_name = "URL", conflicts_with = "manifests")]
    pub api_server: Option<String>,
    /// Files or directories with API objects instead of an API server (repeatable).
    #[arg(long, value_name = "DIR|FILE")]
    pub manifests: Vec<PathBuf>,
    /// kube-proxy's configuration: KubeProxyConfiguration, or what /configz gives.
    #[arg(long, value_name = "FILE")]
    pub kube_proxy_config: Option<PathBuf>,
    /// kube-proxy's version, where it does not say it itself.
    #[arg(long, value_name = "X.Y")]
    pub proxy_version: Option<Version>,
    /// kube-proxy's metricsBindAddress.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:10249")]
    pub proxy_metrics: SocketAddr,
    /// kube-proxy's healthzBindAddress.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:10256")]
    pub proxy_healthz: SocketAddr,
    /// With manifests: expect a running kube-proxy all the same.
    #[arg(long)]
    pub expect_proxy: bool,
    /// Directory for the addresses of API server and aggregator, for restarts on a broken node.
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
}

/// Flags of `run`.
#[derive(Args, Debug)]
pub struct RunFlags {
    /// Where from.
    #[command(flatten)]
    pub source: SourceFlags,
    /// Where to report to (repeatable: each gets every report).
    #[arg(long, value_name = "HOST:PORT")]
    pub aggregator: Vec<String>,
    /// Service of the aggregator: every replica that its EndpointSlices name gets every report.
    #[arg(long, value_name = "NAMESPACE/NAME[:PORTNAME]", value_parser = service_port)]
    pub aggregator_service: Option<ServicePortName>,
    /// Authorities (PEM) that may sign the aggregator's certificate, which must be for NAME.NAMESPACE.svc
    /// of the Service, or for the HOST. Without it reports go in plain text.
    #[arg(long, value_name = "FILE")]
    pub aggregator_ca: Option<PathBuf>,
    /// Show the token in plain text to whoever answers.
    #[arg(long, conflicts_with = "aggregator_ca")]
    pub insecure_aggregator: bool,
    /// ServiceAccount token with the aggregator's audience.
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Unix socket on which questions about this node are answered, to root only.
    #[arg(long, value_name = "PATH", default_value = agent::local::PATH)]
    pub socket: PathBuf,
    /// Shortest time between two looks. One that finds nothing changed costs next to nothing.
    #[arg(long, value_name = "DURATION", default_value = "250ms", value_parser = duration)]
    pub interval: Duration,
    /// Percent of one core that looking may take in the long run.
    #[arg(long, value_name = "PERCENT", default_value_t = 2.0, value_parser = percent)]
    pub cpu_budget: f64,
}

/// Flags of `check`.
#[derive(Args, Debug)]
pub struct CheckFlags {
    /// Where from.
    #[command(flatten)]
    pub source: SourceFlags,
    /// How long something may go on converging.
    #[arg(long, value_name = "DURATION", default_value = "90s", value_parser = duration)]
    pub wait: Duration,
    /// Form of the answer.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

/// Flags of `table`.
#[derive(Args, Debug)]
pub struct TableFlags {
    /// Where from.
    #[command(flatten)]
    pub source: SourceFlags,
    /// What the kernel does, or what the API asks for.
    #[arg(long, value_enum, default_value_t = Side::Observed)]
    pub side: Side,
    /// Form of the answer.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

/// Flags of `bundle`.
#[derive(Args, Debug)]
pub struct BundleFlags {
    /// Where from.
    #[command(flatten)]
    pub source: SourceFlags,
    /// The file to write; `-` is standard output.
    #[arg(long, value_name = "FILE")]
    pub output: PathBuf,
    /// Replace names of namespaces, Services, slices, nodes, Pods and zones.
    #[arg(long)]
    pub pseudonyms: bool,
    /// How long something may go on converging.
    #[arg(long, value_name = "DURATION", default_value = "90s", value_parser = duration)]
    pub wait: Duration,
    /// Print the answer as well, as `check` does.
    #[arg(long, value_enum)]
    pub report: Option<Output>,
}

/// Flags of `replay`.
#[derive(Args, Debug)]
pub struct ReplayFlags {
    /// The bundle; `-` is standard input.
    #[arg(value_name = "FILE", required_unless_present_any = ["iptables_save", "nft_json"])]
    pub bundle: Option<PathBuf>,
    /// Instead of a bundle: what others collected of a node.
    #[command(flatten)]
    pub collected: CollectedFlags,
    /// Print what each destination gets instead of the verdict.
    #[arg(long, value_enum, value_name = "SIDE")]
    pub table: Option<Side>,
    /// Form of the answer.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

/// What others collected of a node.
#[derive(Args, Debug)]
pub struct CollectedFlags {
    /// Text of iptables-save or ip6tables-save, of either backend (repeatable).
    #[arg(long, value_name = "FILE", conflicts_with = "bundle", requires_all = ["manifests", "node"])]
    pub iptables_save: Vec<PathBuf>,
    /// Output of `nft -j list ruleset`.
    #[arg(long, value_name = "FILE", conflicts_with = "bundle", requires_all = ["manifests", "node"])]
    pub nft_json: Option<PathBuf>,
    /// Output of `ip -j address`; else only the Node object's addresses are the node's.
    #[arg(long, value_name = "FILE", conflicts_with = "bundle")]
    pub addresses: Option<PathBuf>,
    /// Output of `kubectl get nodes,svc,endpointslices -A -o yaml` (repeatable, directories too).
    #[arg(long, value_name = "DIR|FILE", conflicts_with = "bundle")]
    pub manifests: Vec<PathBuf>,
    /// Name of the node's Node object.
    #[arg(long, value_parser = node_name, conflicts_with = "bundle")]
    pub node: Option<NodeName>,
    /// kube-proxy's configuration: KubeProxyConfiguration, or what /configz gives.
    #[arg(long, value_name = "FILE", conflicts_with = "bundle")]
    pub kube_proxy_config: Option<PathBuf>,
    /// kube-proxy's version.
    #[arg(long, value_name = "X.Y", conflicts_with = "bundle")]
    pub proxy_version: Option<Version>,
    /// The node has no other tables than those in the files.
    #[arg(long, conflicts_with = "bundle")]
    pub nothing_else: bool,
}

/// Flags of `ask`.
#[derive(Args, Debug)]
pub struct AskFlags {
    /// svc/NAME, svc/NAMESPACE/NAME, node, findings, conntrack or healthz.
    #[arg(value_name = "QUESTION")]
    pub question: String,
    /// Where the agent answers.
    #[arg(long, value_name = "PATH", default_value = agent::local::PATH)]
    pub socket: PathBuf,
    /// Look again first, instead of answering from the last look.
    #[arg(long)]
    pub fresh: bool,
    /// Form of the answer.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

/// Form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Text,
    /// For programs (the contract).
    Json,
}

/// Side of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Side {
    /// What the kernel does.
    Observed,
    /// What the API asks for.
    Desired,
}

fn node_name(text: &str) -> Result<NodeName, String> {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    if text.is_empty() || text.len() > 253 || !text.chars().all(good) {
        return Err("not the name of a Node".into());
    }
    Ok(text.into())
}

fn service_port(text: &str) -> Result<ServicePortName, String> {
    let parsed: ServicePortName = text.parse()?;
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let service = &parsed.service;
    for name in [&service.namespace, &service.name] {
        if name.is_empty() || !name.chars().all(good) {
            return Err(format!("{name:?} is no name"));
        }
    }
    if !parsed.port.chars().all(good) {
        return Err(format!("{:?} is no name of a port", parsed.port));
    }
    Ok(parsed)
}

fn duration(text: &str) -> Result<Duration, String> {
    crate::proxy::config::go_duration(text)
        .map(Duration::from_millis)
        .ok_or_else(|| "not a duration (90s, 1m30s, 500ms)".into())
}

fn percent(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(p) if p > 0.0 && p <= 100.0 => Ok(p),
        _ => Err("not a percentage above 0".into()),
    }
}
