//! Real kube-proxies, of any version and mode, in the namespaces of nodes.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cache::{self, Version};
use crate::cleanup::Folder;
use crate::cluster::{Cluster, User};
use crate::netns::Netns;
use crate::packages;
use crate::process::Process;
use crate::topology::{CLUSTER_CIDR, Node};
use crate::{http, wait};

/// How a kube-proxy programs its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// iptables mode, over the nf_tables backend of iptables.
    IptablesNft,
    /// nftables mode.
    Nftables,
    /// iptables mode, over the legacy backend of iptables (x_tables).
    IptablesLegacy,
}

impl Mode {
    /// The two modes of which there are recordings.
    pub const ALL: [Mode; 2] = [Mode::IptablesNft, Mode::Nftables];

    /// `iptables-nft`, `iptables-legacy` or `nftables`, for names of nodes and folders.
    pub fn name(self) -> &'static str {
        match self {
            Mode::IptablesNft => "iptables-nft",
            Mode::IptablesLegacy => "iptables-legacy",
            Mode::Nftables => "nftables",
        }
    }

    /// What `--proxy-mode` and `/proxyMode` call it.
    pub fn proxy_mode(self) -> &'static str {
        match self {
            Mode::IptablesNft | Mode::IptablesLegacy => "iptables",
            Mode::Nftables => "nftables",
        }
    }

    /// The backend that the folder of links in front of PATH chooses, where iptables is used.
    pub fn iptables_backend(self) -> Option<&'static str> {
        match self {
            Mode::IptablesNft => Some("nft"),
            Mode::IptablesLegacy => Some("legacy"),
            Mode::Nftables => None,
        }
    }
}

/// What to run. `Spec::new` gives the laboratory's usual; the other fields are for the tests that need them.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Version of kube-proxy.
    pub version: Version,
    /// Mode.
    pub mode: Mode,
    /// Further flags, after the usual ones, so they win.
    pub flags: Vec<String>,
    /// A folder to search for programs first: recordings put a wrapper of nft there.
    pub path_first: Option<PathBuf>,
}

impl Spec {
    /// The usual kube-proxy of a version and mode.
    pub fn new(version: Version, mode: Mode) -> Spec {
        Spec {
            version,
            mode,
            flags: Vec::new(),
            path_first: None,
        }
    }

    /// `nftables-1.37`: a name for its node.
    pub fn name(&self) -> String {
        format!("{}-{}", self.mode.name(), self.version.minor())
    }
}

/// The listener for `/metrics`, `/configz` and `/proxyMode`, in the node's namespace.
pub const METRICS: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 10249);
/// The listener for `/healthz`, in the node's namespace.
pub const HEALTHZ: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 10256);

/// A running kube-proxy. Killed when dropped; its rules stay, as real ones do.
#[derive(Debug)]
pub struct Proxy {
    process: Process,
    spec: Spec,
    program: PathBuf,
    arguments: Vec<String>,
    path: String,
    netns: String,
    log: PathBuf,
    _links: Option<Folder>,
}

impl Proxy {
    /// Starts a kube-proxy in the node's namespace. It serves and programs a moment later: see
    /// [`Proxy::wait_synced`].
    pub fn start(cluster: &Cluster, node: &Node, spec: Spec) -> Result<Proxy> {
        let program = cache::kubernetes("kube-proxy", spec.version)?;
        let kubeconfig = cluster.kubeconfig(User::KubeProxy)?;
        let links = match spec.mode.iptables_backend() {
            Some(backend) => Some(iptables_links(backend)?),
            None => None,
        };
        let mut arguments = vec![
            format!("--kubeconfig={}", kubeconfig.display()),
            format!("--proxy-mode={}", spec.mode.proxy_mode()),
            format!("--hostname-override={}", node.name()),
            format!("--cluster-cidr={CLUSTER_CIDR}"),
            // At 0 it leaves the sysctls alone that belong to the machine and not to a namespace.
            "--conntrack-max-per-core=0".into(),
            "--conntrack-tcp-timeout-established=0".into(),
            "--conntrack-tcp-timeout-close-wait=0".into(),
            format!("--metrics-bind-address={METRICS}"),
            format!("--healthz-bind-address={HEALTHZ}"),
        ];
        arguments.extend(spec.flags.iter().cloned());
        let mut folders: Vec<PathBuf> = Vec::new();
        folders.extend(spec.path_first.clone());
        folders.extend(links.as_ref().map(|links| links.path().to_owned()));
        folders.extend(std::env::split_paths(
            &std::env::var_os("PATH").unwrap_or_default(),
        ));
        folders.push("/usr/sbin".into());
        let path = std::env::join_paths(folders)?
            .to_string_lossy()
            .into_owned();
        let log = cluster
            .folder()
            .join(format!("kube-proxy-{}.log", node.name()));
        let process = launch(node.netns().name(), &program, &arguments, &path, &log)?;
        Ok(Proxy {
            process,
            spec,
            program,
            arguments,
            path,
            netns: node.netns().name().to_owned(),
            log,
            _links: links,
        })
    }

    /// What is running.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Its process, for signals and its log.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Waits until both address families completed a first sync, and checks the mode in use. Objects
    /// posted since may still be on their way: see [`Proxy::wait_programmed`].
    pub fn wait_synced(&mut self, node: &Node, limit: Duration) -> Result<()> {
        let mode = self.spec.mode.proxy_mode();
        self.process
            .until("kube-proxy has programmed its node", limit, || {
                let answer = http::get_in(node.netns(), METRICS, "/metrics")?;
                if answer.status != 200 {
                    bail!("/metrics answers {}", answer.status);
                }
                Ok(synced(&answer.body).then_some(()))
            })?;
        let in_use = http::get_in(node.netns(), METRICS, "/proxyMode")?.body;
        if in_use != mode {
            bail!("kube-proxy runs in mode {in_use} instead of {mode}");
        }
        Ok(())
    }

    /// Waits until the ruleset's text (see [`ruleset`]) holds every one of `words`: Service
    /// addresses, names or ports that were posted last.
    pub fn wait_programmed(
        &mut self,
        node: &Node,
        words: &[String],
        limit: Duration,
    ) -> Result<()> {
        let mode = self.spec.mode;
        self.process
            .until("its rules hold what was posted", limit, || {
                let text = ruleset(node.netns(), mode)?;
                match words.iter().find(|word| !text.contains(word.as_str())) {
                    None => Ok(Some(())),
                    Some(word) => bail!("{word} is not in the rules"),
                }
            })
    }

    /// SIGTERM; its rules stay.
    pub fn stop(&mut self) -> Result<()> {
        self.process.stop()
    }

    /// SIGKILL; its rules stay.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// SIGSTOP: alive, and doing nothing.
    pub fn freeze(&self) -> Result<()> {
        self.process.signal(libc::SIGSTOP)
    }

    /// SIGCONT.
    pub fn thaw(&self) -> Result<()> {
        self.process.signal(libc::SIGCONT)
    }

    /// Starts it again, as it was, after it was stopped or killed (or instead of the one running).
    pub fn restart(&mut self) -> Result<()> {
        self.process.stop()?;
        self.process = launch(
            &self.netns,
            &self.program,
            &self.arguments,
            &self.path,
            &self.log,
        )?;
        Ok(())
    }
}

/// The ruleset of a namespace as the mode's own tools print it: for people, and to look for words in.
pub fn ruleset(netns: &Netns, mode: Mode) -> Result<String> {
    let Some(backend) = mode.iptables_backend() else {
        return netns.run("nft", ["list", "ruleset"]);
    };
    let mut text = netns.run(&format!("iptables-{backend}-save"), [""; 0])?;
    text.push_str(&netns.run(&format!("ip6tables-{backend}-save"), [""; 0])?);
    Ok(text)
}

/// Whether, by kube-proxy's metrics, each family has completed a sync. From 1.33 on each has its
/// own series (kube-proxy.md 6.4). What is queued is no use here: in iptables mode the timestamp
/// of the very first request stays newer than its sync until the next periodic one.
fn synced(metrics: &str) -> bool {
    let done: Vec<&str> = metrics
        .lines()
        .filter_map(|line| line.strip_prefix("kubeproxy_sync_proxy_rules_last_timestamp_seconds"))
        .collect();
    let families = if done.iter().any(|line| line.contains("ip_family")) {
        2
    } else {
        1
    };
    done.len() >= families
        && done.iter().all(|line| {
            line.rsplit_once(' ')
                .and_then(|(_, value)| value.parse::<f64>().ok())
                .is_some_and(|at| at > 0.0)
        })
}

fn launch(
    netns: &str,
    program: &Path,
    arguments: &[String],
    path: &str,
    log: &Path,
) -> Result<Process> {
    let mut command = Command::new("ip");
    command
        .args(["netns", "exec", netns])
        .arg(program)
        .args(arguments)
        .env("PATH", path);
    Process::start("kube-proxy", command, log)
}

/// A folder of links named as kube-proxy calls them, to the programs of one iptables backend.
fn iptables_links(backend: &str) -> Result<Folder> {
    let links = Folder::create("iptables")?;
    for family in ["iptables", "ip6tables"] {
        for end in ["", "-save", "-restore"] {
            let target = format!("{family}-{backend}{end}");
            let target = packages::find(&target)
                .with_context(|| format!("{target} is not installed (package iptables)"))?;
            std::os::unix::fs::symlink(target, links.join(format!("{family}{end}")))?;
        }
    }
    Ok(links)
}

/// Waits until nothing in `proxies` has work left. For many side by side.
pub fn wait_all_synced(proxies: &mut [(&Node, &mut Proxy)], limit: Duration) -> Result<()> {
    for (node, proxy) in proxies.iter_mut() {
        proxy
            .wait_synced(node, limit)
            .with_context(|| format!("on {}", node.name()))?;
    }
    Ok(())
}

/// The configuration of the kube-proxy on `node`, as `/configz` gives it.
pub fn configz(node: &Node) -> Result<String> {
    wait::until("/configz", Duration::from_secs(10), || {
        let answer = http::get_in(node.netns(), METRICS, "/configz")?;
        Ok((answer.status == 200).then_some(answer.body))
    })
}

#[cfg(test)]
mod tests {
    use super::synced;

    #[test]
    fn both_families_must_have_synced() {
        let name = "kubeproxy_sync_proxy_rules_last_timestamp_seconds";
        let line = |family: &str, at: &str| format!("{name}{{ip_family=\"{family}\"}} {at}\n");
        assert!(synced(
            &(line("IPv4", "1.8e+09") + &line("IPv6", "1.8e+09"))
        ));
        assert!(!synced(&(line("IPv4", "1.8e+09") + &line("IPv6", "0"))));
        assert!(!synced(&line("IPv4", "1.8e+09")));
        assert!(!synced(""));
        // To 1.32: one series for both.
        assert!(synced(&format!("{name} 1.8e+09\n")));
    }
}
