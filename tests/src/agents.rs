//! The product itself in the laboratory: agents in the nodes' namespaces, an aggregator in the hub.
//!
//! An agent runs as the DaemonSet's container does: user 0 with every capability dropped but
//! CAP_NET_ADMIN, and no new privileges. The container runtime's own seccomp profile is missing
//! here (there is no container runtime); the agent's own filter is its own doing.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::cleanup::Folder;
use crate::cluster::Cluster;
use crate::http::{self, Answer};
use crate::netns::Netns;
use crate::process::Process;
use crate::topology::{HUB_V4, Hub, Node};
use crate::{cache, command};

/// The aggregator's listener for readers. Not 8080: there the hub answers for Pods.
pub const AGGREGATOR_HTTP: SocketAddr = SocketAddr::new(IpAddr::V4(HUB_V4), 18080);
/// The aggregator's listener for agents.
pub const AGGREGATOR_GRPC: SocketAddr = SocketAddr::new(IpAddr::V4(HUB_V4), 18443);

/// The same for every program of the product that reads a kernel.
pub(crate) const PRIVILEGES: [&str; 4] = [
    "--bounding-set=-all,+net_admin",
    "--inh-caps=-all",
    "--ambient-caps=-all",
    "--no-new-privs",
];

/// The product's programs, as cargo built them.
#[derive(Debug, Clone)]
pub struct Programs {
    /// `vipwitness-agent`.
    pub agent: PathBuf,
    /// `vipwitness-aggregator`.
    pub aggregator: PathBuf,
}

impl Programs {
    /// Builds both with cargo (which does nothing when they are current) and finds them.
    pub fn build() -> Result<Programs> {
        let output = command::cargo()
            // Of the whole workspace: with the features that `cargo lab` and `cargo test` have.
            .args(["build", "--workspace", "--bins"])
            .args(["--message-format", "json-render-diagnostics"])
            .stderr(Stdio::inherit())
            .output()
            .context("starting cargo")?;
        if !output.status.success() {
            bail!("building agent and aggregator: {}", output.status);
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
            aggregator: find("vipwitness-aggregator")?,
        })
    }

    /// Runs a command of the agent that ends by itself (`check`, `table`) inside `netns`. `arguments` start with the
    /// command; `--output json` is added.
    pub fn ask(&self, netns: &Netns, arguments: &[&str]) -> Result<Asked> {
        let mut all: Vec<&str> = PRIVILEGES.to_vec();
        let agent = self.agent.to_string_lossy();
        all.push(&agent);
        all.extend(arguments);
        all.extend(["--output", "json"]);
        let output = command::attempt(&mut netns.command("setpriv", all))?;
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        let code = output
            .status
            .code()
            .with_context(|| format!("the agent died: {}\n{stderr}", output.status))?;
        let json = match code {
            0..=2 => serde_json::from_slice(&output.stdout)
                .with_context(|| format!("reading its JSON\n{stderr}"))?,
            _ => Value::Null,
        };
        Ok(Asked { code, json, stderr })
    }
}

/// What `check` or `table` gave.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Exit code, by the contract: 0, 1, 2 or 64.
    pub code: i32,
    /// stdout; null for code 64.
    pub json: Value,
    /// stderr.
    pub stderr: String,
}

/// Where an agent learns what the API asks.
#[derive(Debug, Clone)]
pub enum Source {
    /// From an API server.
    Kubeconfig(PathBuf),
    /// From a folder of manifests.
    Manifests(PathBuf),
}

/// How to run an agent. `Spec::new` gives the usual.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Where it learns what the API asks.
    pub source: Source,
    /// `--kube-proxy-config`.
    pub kube_proxy_config: Option<PathBuf>,
    /// `--proxy-version`.
    pub proxy_version: Option<String>,
    /// `--token-file`: what it shows to the aggregator.
    pub token_file: Option<PathBuf>,
    /// Further flags.
    pub flags: Vec<String>,
}

impl Spec {
    /// An agent that learns from `source` and finds out the rest by itself.
    pub fn new(source: Source) -> Spec {
        Spec {
            source,
            kube_proxy_config: None,
            proxy_version: None,
            token_file: None,
            flags: Vec::new(),
        }
    }

    fn arguments(&self) -> Vec<String> {
        let mut arguments = Vec::new();
        match &self.source {
            Source::Kubeconfig(path) => {
                arguments.extend(["--kubeconfig".into(), path.display().to_string()])
            }
            Source::Manifests(path) => {
                arguments.extend(["--manifests".into(), path.display().to_string()])
            }
        }
        if let Some(path) = &self.kube_proxy_config {
            arguments.extend(["--kube-proxy-config".into(), path.display().to_string()]);
        }
        if let Some(version) = &self.proxy_version {
            arguments.extend(["--proxy-version".into(), version.clone()]);
        }
        if let Some(path) = &self.token_file {
            arguments.extend(["--token-file".into(), path.display().to_string()]);
        }
        arguments.extend(self.flags.iter().cloned());
        arguments
    }
}

/// A running agent (`vipwitness-agent run`). Killed when dropped.
#[derive(Debug)]
pub struct Agent {
    process: Process,
    state: Folder,
}

impl Agent {
    /// Starts an agent on a node; it reports to the hub's aggregator.
    pub fn start(programs: &Programs, node: &Node, spec: &Spec) -> Result<Agent> {
        let state = Folder::create(&format!("agent-{}", node.name()))?;
        let mut arguments: Vec<String> = PRIVILEGES.map(str::to_owned).into();
        arguments.extend([
            programs.agent.display().to_string(),
            "run".into(),
            "--node".into(),
            node.name().to_owned(),
        ]);
        arguments.extend(spec.arguments());
        arguments.extend([
            "--aggregator".into(),
            AGGREGATOR_GRPC.to_string(),
            "--state-dir".into(),
            state.path().display().to_string(),
        ]);
        // All nodes of the laboratory share one file system.
        if !spec.flags.iter().any(|flag| flag == "--socket") {
            let socket = state.join("agent.sock").display().to_string();
            arguments.extend(["--socket".into(), socket]);
        }
        let process = Process::start(
            "vipwitness-agent",
            node.netns().command("setpriv", arguments),
            &state.join("agent.log"),
        )?;
        Ok(Agent { process, state })
    }

    /// Its process, for signals and its log.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Its `--state-dir`, which also holds its log.
    pub fn state(&self) -> &Path {
        self.state.path()
    }
}

/// A running aggregator. Killed when dropped.
#[derive(Debug)]
pub struct Aggregator {
    process: Process,
    _folder: Folder,
}

impl Aggregator {
    /// Starts an aggregator in the hub and waits until it answers. `flags` follow its addresses:
    /// `--insecure-agents` and `--insecure-readers` where there is no cluster to ask.
    pub fn start(programs: &Programs, hub: &Hub, flags: &[&str]) -> Result<Aggregator> {
        let folder = Folder::create("aggregator")?;
        let mut arguments = vec![
            "--listen".to_owned(),
            AGGREGATOR_HTTP.to_string(),
            "--grpc".into(),
            AGGREGATOR_GRPC.to_string(),
        ];
        arguments.extend(flags.iter().map(|flag| (*flag).to_owned()));
        let command = hub
            .netns()
            .command(&programs.aggregator.to_string_lossy(), arguments);
        let mut process = Process::start(
            "vipwitness-aggregator",
            command,
            &folder.join("aggregator.log"),
        )?;
        process.until("the aggregator answers", Duration::from_secs(20), || {
            let answer = http::get_in(hub.netns(), AGGREGATOR_HTTP, "/healthz")?;
            Ok((answer.status == 200).then_some(()))
        })?;
        Ok(Aggregator {
            process,
            _folder: folder,
        })
    }

    /// Its process, for signals and its log.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// What it answers to `GET path`.
    pub fn get(&self, hub: &Hub, path: &str) -> Result<Answer> {
        http::get_in(hub.netns(), AGGREGATOR_HTTP, path)
    }

    /// The same as JSON; an error for another status than 200.
    pub fn json(&self, hub: &Hub, path: &str) -> Result<Value> {
        let answer = self.get(hub, path)?;
        if answer.status != 200 {
            bail!("GET {path}: {}\n{}", answer.status, answer.body);
        }
        Ok(serde_json::from_str(&answer.body)?)
    }
}

/// The manifests of `deploy/`, applied to a cluster.
#[derive(Debug)]
pub struct Installation {
    namespace: String,
    service_account: String,
    pod_labels: Value,
}

impl Installation {
    /// Applies every manifest of `deploy/`, namespaces first.
    pub fn apply(cluster: &Cluster) -> Result<Installation> {
        let mut objects = manifests(&cache::workspace().join("deploy"))?;
        objects.sort_by_key(|object| object["kind"] != "Namespace");
        let (namespaces, rest): (Vec<Value>, Vec<Value>) = objects
            .into_iter()
            .partition(|object| object["kind"] == "Namespace");
        cluster.api.put_all(&namespaces)?;
        cluster.api.put_all(&rest)?;
        let agents = rest
            .iter()
            .find(|object| object["kind"] == "DaemonSet")
            .context("deploy/ holds no DaemonSet")?;
        let template = &agents["spec"]["template"];
        let text = |value: &Value, what: &str| {
            Ok::<_, anyhow::Error>(
                value
                    .as_str()
                    .with_context(|| format!("the DaemonSet has no {what}"))?
                    .to_owned(),
            )
        };
        Ok(Installation {
            namespace: text(&agents["metadata"]["namespace"], "namespace")?,
            service_account: text(
                &template["spec"]["serviceAccountName"],
                "serviceAccountName",
            )?,
            pod_labels: template["metadata"]["labels"].clone(),
        })
    }

    /// Creates the agent's Pod for a node (nothing runs it) and gives a spec whose credentials are
    /// that Pod's: a kubeconfig with a token for the API server at `url`, and a token file with the aggregator's audience.
    pub fn agent(&self, cluster: &Cluster, node: &Node, url: &str) -> Result<Spec> {
        let pod = format!("vipwitness-agent-{}", node.name());
        cluster.api.create(&json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": pod, "namespace": self.namespace, "labels": self.pod_labels},
            "spec": {
                "nodeName": node.name(),
                "serviceAccountName": self.service_account,
                "hostNetwork": true,
                "containers": [{"name": "agent", "image": "vipwitness-agent"}],
            },
        }))?;
        let token = |audiences: &[&str]| {
            cluster.token(
                &self.namespace,
                &self.service_account,
                audiences,
                Some(&pod),
            )
        };
        let kubeconfig = cluster.kubeconfig_with(url, &token(&[])?)?;
        let token_file = cluster.folder().join(format!("{pod}.token"));
        std::fs::write(&token_file, token(&["vipwitness"])?)?;
        let mut spec = Spec::new(Source::Kubeconfig(kubeconfig));
        spec.token_file = Some(token_file);
        Ok(spec)
    }
}

/// Every document of every `.yaml` file of a folder and its folders.
fn manifests(folder: &Path) -> Result<Vec<Value>> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder)
        .with_context(|| format!("reading {}", folder.display()))?
        .flatten()
        .map(|entry| entry.path())
        .collect();
    paths.sort();
    let mut objects = Vec::new();
    for path in paths {
        if path.is_dir() {
            objects.extend(manifests(&path)?);
        } else if path.extension().is_some_and(|end| end == "yaml") {
            let text = std::fs::read_to_string(&path)?;
            for document in serde_yaml_ng::Deserializer::from_str(&text) {
                let object: Value = serde::Deserialize::deserialize(document)
                    .with_context(|| format!("in {}", path.display()))?;
                if !object.is_null() {
                    objects.push(object);
                }
            }
        }
    }
    Ok(objects)
}
