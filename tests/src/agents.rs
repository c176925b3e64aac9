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

/// Both listeners of a replica; number 0 has [`AGGREGATOR_HTTP`] and [`AGGREGATOR_GRPC`].
pub(crate) fn listeners(number: u16) -> (SocketAddr, SocketAddr) {
    let shifted = |at: SocketAddr| SocketAddr::new(at.ip(), at.port() + number);
    (shifted(AGGREGATOR_HTTP), shifted(AGGREGATOR_GRPC))
}

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

    /// Where the agent is.
    pub fn agent(&self) -> &Path {
        &self.agent
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
    /// How it finds and knows the aggregator; usually in plain text at [`AGGREGATOR_GRPC`].
    pub aggregator: Vec<String>,
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
            aggregator: vec!["--aggregator".into(), AGGREGATOR_GRPC.to_string()],
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
        arguments.extend(self.aggregator.iter().cloned());
        arguments.extend(self.flags.iter().cloned());
        arguments
    }
}

/// A running agent (`vipwitness-agent run`). Killed when dropped.
#[derive(Debug)]
pub struct Agent {
    process: Process,
    spec: Spec,
    state: Folder,
}

impl Agent {
    /// Starts an agent on a node.
    pub fn start(programs: &Programs, node: &Node, spec: &Spec) -> Result<Agent> {
        Agent::start_as(programs, node, node.name(), spec)
    }

    /// The same, but it claims to be on the node `name`.
    pub fn start_as(programs: &Programs, node: &Node, name: &str, spec: &Spec) -> Result<Agent> {
        let state = Folder::create(&format!("agent-{name}"))?;
        Agent::with_state(programs, node, name, spec, state)
    }

    /// Kills it, and starts one with the same state directory, this time with these flags besides.
    pub fn restart(self, programs: &Programs, node: &Node, flags: &[&str]) -> Result<Agent> {
        let Agent {
            mut process,
            spec,
            state,
        } = self;
        process.kill()?;
        let mut with_flags = spec.clone();
        let flags = flags.iter().map(|flag| (*flag).to_owned());
        with_flags.flags.extend(flags);
        let mut agent = Agent::with_state(programs, node, node.name(), &with_flags, state)?;
        agent.spec = spec;
        Ok(agent)
    }

    fn with_state(
        programs: &Programs,
        node: &Node,
        name: &str,
        spec: &Spec,
        state: Folder,
    ) -> Result<Agent> {
        let mut arguments: Vec<String> = PRIVILEGES.map(str::to_owned).into();
        arguments.extend([
            programs.agent.display().to_string(),
            "run".into(),
            "--node".into(),
            name.to_owned(),
        ]);
        arguments.extend(spec.arguments());
        arguments.extend(["--state-dir".into(), state.path().display().to_string()]);
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
        Ok(Agent {
            process,
            spec: spec.clone(),
            state,
        })
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
    http: SocketAddr,
    _folder: Folder,
}

impl Aggregator {
    /// Starts an aggregator in the hub and waits until it answers. `flags` follow its addresses:
    /// `--insecure-agents` and `--insecure-readers` where there is no cluster to ask.
    pub fn start(programs: &Programs, hub: &Hub, flags: &[&str]) -> Result<Aggregator> {
        let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        Aggregator::start_replica(programs, hub, 0, &flags)
    }

    /// The same for one of several replicas, each with ports of its own.
    pub fn start_replica(
        programs: &Programs,
        hub: &Hub,
        number: u16,
        flags: &[String],
    ) -> Result<Aggregator> {
        let folder = Folder::create("aggregator")?;
        let (http, grpc) = listeners(number);
        let mut arguments = vec![
            "--listen".to_owned(),
            http.to_string(),
            "--grpc".into(),
            grpc.to_string(),
        ];
        arguments.extend_from_slice(flags);
        let command = hub
            .netns()
            .command(&programs.aggregator.to_string_lossy(), arguments);
        let mut process = Process::start(
            "vipwitness-aggregator",
            command,
            &folder.join("aggregator.log"),
        )?;
        process.until("the aggregator answers", Duration::from_secs(20), || {
            let answer = crate::http::get_in(hub.netns(), http, "/healthz")?;
            Ok((answer.status == 200).then_some(()))
        })?;
        Ok(Aggregator {
            process,
            http,
            _folder: folder,
        })
    }

    /// Its process, for signals and its log.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// What it answers to `GET path`.
    pub fn get(&self, hub: &Hub, path: &str) -> Result<Answer> {
        http::get_in(hub.netns(), self.http, path)
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
    agent: Workload,
    aggregator: Workload,
}

/// What a DaemonSet or Deployment runs.
#[derive(Debug)]
struct Workload {
    namespace: String,
    service_account: String,
    pod_labels: Value,
    /// Of its only container.
    arguments: Vec<String>,
}

impl Workload {
    fn of_kind(objects: &[Value], kind: &str) -> Result<Workload> {
        let object = objects
            .iter()
            .find(|object| object["kind"] == kind)
            .with_context(|| format!("deploy/ holds no {kind}"))?;
        let template = &object["spec"]["template"];
        let text = |value: &Value, what: &str| {
            let text = value.as_str();
            let text = text.with_context(|| format!("the {kind} has no {what}"));
            Ok::<_, anyhow::Error>(text?.to_owned())
        };
        let arguments = template["spec"]["containers"][0]["args"].as_array();
        Ok(Workload {
            namespace: text(&object["metadata"]["namespace"], "namespace")?,
            service_account: text(
                &template["spec"]["serviceAccountName"],
                "serviceAccountName",
            )?,
            pod_labels: template["metadata"]["labels"].clone(),
            arguments: arguments
                .into_iter()
                .flatten()
                .map(|argument| text(argument, "text in args"))
                .collect::<Result<_>>()?,
        })
    }

    /// The value of `--name=value` among its arguments.
    fn flag(&self, name: &str) -> Result<&str> {
        self.arguments
            .iter()
            .find_map(|argument| argument.strip_prefix(name)?.strip_prefix('='))
            .with_context(|| format!("deploy/ gives no {name}"))
    }

    /// Creates a Pod (nothing runs it), with what `status` says about it.
    fn create_pod(&self, cluster: &Cluster, name: &str, spec: Value, status: Value) -> Result<()> {
        let mut pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": self.namespace, "labels": self.pod_labels},
            "spec": spec,
        });
        pod["spec"]["serviceAccountName"] = json!(self.service_account);
        cluster.api.create(&pod)?;
        if !status.is_null() {
            let path = format!("/api/v1/namespaces/{}/pods/{name}/status", self.namespace);
            let patch = json!({"status": status});
            cluster.api.call(hyper::Method::PATCH, &path, Some(patch))?;
        }
        Ok(())
    }

    fn token(&self, cluster: &Cluster, audiences: &[&str], pod: &str) -> Result<String> {
        cluster.token(&self.namespace, &self.service_account, audiences, Some(pod))
    }
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
        let agent = Workload::of_kind(&rest, "DaemonSet")?;
        // Elsewhere the laboratory's slice controller may write no slices (there they are written by
        // hand); here it has the rights that it has in every cluster.
        cluster.api.put_all(&[json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": {"name": "slice-controller", "namespace": agent.namespace},
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole",
                "name": "system:controller:endpointslice-controller",
            },
            "subjects": [{
                "apiGroup": "rbac.authorization.k8s.io", "kind": "User",
                "name": "system:kube-controller-manager",
            }],
        })])?;
        cluster.api.put_all(&rest)?;
        Ok(Installation {
            agent,
            aggregator: Workload::of_kind(&rest, "Deployment")?,
        })
    }

    /// The namespace of all of it.
    pub fn namespace(&self) -> &str {
        &self.agent.namespace
    }

    /// The audience that agents' tokens must have.
    pub fn audience(&self) -> Result<&str> {
        self.aggregator.flag("--audience")
    }

    /// Flags for a replica of the aggregator, as the Deployment has them: it asks the API server at `url` as the
    /// Deployment's ServiceAccount, with the rights of `deploy/`. Its Pod (which nothing runs) is said to be on
    /// `node`, and has the hub's address, so that the Service's EndpointSlices lead to the replica.
    pub fn aggregator(
        &self,
        cluster: &Cluster,
        node: &Node,
        number: u16,
        url: &str,
    ) -> Result<Vec<String>> {
        let pod = format!("vipwitness-aggregator-{number}");
        let (_, grpc) = listeners(number);
        let port = |name: &str, port: u16| json!({"name": name, "containerPort": port});
        self.aggregator.create_pod(
            cluster,
            &pod,
            json!({
                "nodeName": node.name(),
                "containers": [{
                    "name": "aggregator", "image": "vipwitness-aggregator",
                    // Ports differ, since both replicas have the hub's address.
                    "ports": [port("grpc", grpc.port()), port("scrape", 19090 + number)],
                }],
            }),
            json!({
                "phase": "Running",
                "podIP": grpc.ip(), "podIPs": [{"ip": grpc.ip()}],
                "conditions": [{"type": "Ready", "status": "True"}],
            }),
        )?;
        let token = self.aggregator.token(cluster, &[], &pod)?;
        let kubeconfig = cluster.kubeconfig_with(url, &token)?;
        let service = format!("DNS:vipwitness-aggregator.{}.svc", self.namespace());
        let address = format!("IP:{}", grpc.ip());
        let pair = cluster.authority().issue(&pod, &[&service, &address])?;
        let mut flags: Vec<String> = ["--audience", "--agent-account"]
            .into_iter()
            .map(|name| Ok(format!("{name}={}", self.aggregator.flag(name)?)))
            .collect::<Result<_>>()?;
        flags.extend([
            format!("--kubeconfig={}", kubeconfig.display()),
            "--watch-objects".into(),
            format!("--tls-cert={}", pair.certificate.display()),
            format!("--tls-key={}", pair.key.display()),
            // Readers stand outside the aggregator's Pod.
            "--insecure-readers".into(),
        ]);
        Ok(flags)
    }

    /// Creates the agent's Pod for a node (nothing runs it) and gives a spec whose credentials are
    /// that Pod's: a kubeconfig with a token for the API server at `url`, and a token file with the aggregator's audience.
    /// It finds the aggregator as the DaemonSet's does.
    pub fn agent(&self, cluster: &Cluster, node: &str, url: &str) -> Result<Spec> {
        let pod = self.agent_pod(cluster, node)?;
        let kubeconfig = cluster.kubeconfig_with(url, &self.agent.token(cluster, &[], &pod)?)?;
        let mut spec = Spec::new(Source::Kubeconfig(kubeconfig));
        spec.token_file = Some(self.agent_token(cluster, &pod, &[self.audience()?])?);
        spec.aggregator = vec![
            format!(
                "--aggregator-service={}",
                self.agent.flag("--aggregator-service")?
            ),
            authority(cluster),
        ];
        Ok(spec)
    }

    /// Creates the agent's Pod for a node, and gives its name.
    pub fn agent_pod(&self, cluster: &Cluster, node: &str) -> Result<String> {
        let pod = format!("vipwitness-agent-{node}");
        let spec = json!({
            "nodeName": node,
            "hostNetwork": true,
            "containers": [{"name": "agent", "image": "vipwitness-agent"}],
        });
        self.agent.create_pod(cluster, &pod, spec, Value::Null)?;
        Ok(pod)
    }

    /// A file with a token of the agents' ServiceAccount, bound to a Pod.
    pub fn agent_token(&self, cluster: &Cluster, pod: &str, audiences: &[&str]) -> Result<PathBuf> {
        let token = self.agent.token(cluster, audiences, pod)?;
        write_token(cluster, &token)
    }
}

/// The flag with which agents know the laboratory's aggregators.
pub fn authority(cluster: &Cluster) -> String {
    let file = cluster.authority().certificate();
    format!("--aggregator-ca={}", file.display())
}

/// A file with a token, gone with the cluster.
pub fn write_token(cluster: &Cluster, token: &str) -> Result<PathBuf> {
    let number = crate::cleanup::number();
    let file = cluster.folder().join(format!("{number}.token"));
    std::fs::write(&file, token)?;
    Ok(file)
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
            // A chart's templates are no manifests yet.
            if !path.join("Chart.yaml").exists() {
                objects.extend(manifests(&path)?);
            }
        } else if path.extension().is_some_and(|end| end == "yaml") {
            let text = std::fs::read_to_string(&path)?;
            let all = documents(&text).with_context(|| format!("in {}", path.display()))?;
            objects.extend(all);
        }
    }
    Ok(objects)
}

/// Every object of a text of YAML documents.
pub(crate) fn documents(text: &str) -> Result<Vec<Value>> {
    let all = serde_yaml_ng::Deserializer::from_str(text);
    let all = all.map(<Value as serde::Deserialize>::deserialize);
    let mut objects = all.collect::<Result<Vec<Value>, _>>()?;
    objects.retain(|object| !object.is_null());
    Ok(objects)
}
