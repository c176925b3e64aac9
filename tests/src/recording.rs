//! What real kube-proxies wrote, with the API objects they saw: saved by `lab record`, loaded
//! again by the demonstration, cases and benchmarks, which then need neither Go nor a cluster.
//!
//! ```text
//! tests/recordings/1.37-nftables/
//!   node.json                  name and place of the node (its addresses follow from its place)
//!   manifests/objects.yaml     the Services, EndpointSlices and Nodes, as the API server gave them
//!   configz.json               kube-proxy's configuration, as its /configz gave it
//!   transactions.nft           nftables mode: every script that kube-proxy gave to nft, in order
//!   iptables.rules, ip6tables.rules    iptables mode: as iptables-nft-save gave them
//! ```
//!
//! In nftables mode it is the scripts that are kept, because what `nft list ruleset` prints does
//! not load into the same kernel state again.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::cache::{self, Version};
use crate::cleanup::Folder;
use crate::cluster::Cluster;
use crate::netns::Netns;
use crate::proxy::{self, Mode, Proxy, Spec};
use crate::topology::{Hub, Node};
use crate::{objects, packages, wait};

/// Between the scripts in `transactions.nft`: each is one transaction of its own.
const TRANSACTION: &str = "# -- transaction\n";

/// Where a node of a recording stood.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Place {
    /// Name of its Node object.
    pub name: String,
    /// What [`Hub::add_node_at`] takes.
    pub index: u8,
}

/// A saved node.
#[derive(Debug, Clone)]
pub struct Recording {
    /// Version of the kube-proxy that wrote the rules.
    pub version: Version,
    /// Its mode.
    pub mode: Mode,
    folder: PathBuf,
}

impl Recording {
    /// The recording of a version and mode that the repository holds. What kube-proxy gives to
    /// iptables is the same for both backends, and is kept once.
    pub fn of(version: Version, mode: Mode) -> Recording {
        let kept = match mode {
            Mode::IptablesLegacy => Mode::IptablesNft,
            other => other,
        };
        let folder = cache::workspace().join("tests/recordings").join(format!(
            "{}-{}",
            version.minor(),
            kept.name()
        ));
        Recording {
            version,
            mode,
            folder,
        }
    }

    /// The folder with the API's objects, for `--manifests`.
    pub fn manifests(&self) -> PathBuf {
        self.folder.join("manifests")
    }

    /// kube-proxy's configuration, for `--kube-proxy-config`.
    pub fn configuration(&self) -> PathBuf {
        self.folder.join("configz.json")
    }

    /// The node it was taken from.
    pub fn place(&self) -> Result<Place> {
        let path = self.folder.join("node.json");
        let text = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        Ok(serde_json::from_slice(&text)?)
    }

    /// Loads the rules into a namespace: the kernel's state is then what kube-proxy left.
    pub fn load(&self, netns: &Netns) -> Result<()> {
        let read = |name: &str| {
            let path = self.folder.join(name);
            std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
        };
        match self.mode.iptables_backend() {
            None => {
                let text = read("transactions.nft")?;
                for transaction in text
                    .split(TRANSACTION)
                    .filter(|part| !part.trim().is_empty())
                {
                    netns.run_with_input("nft", ["-f", "-"], transaction)?;
                }
            }
            Some(backend) => {
                let both = [
                    ("iptables", read("iptables.rules")?),
                    ("ip6tables", read("ip6tables.rules")?),
                ]
                .map(|(family, text)| (format!("{family}-{backend}-restore"), text));
                for counter in counters(both.iter().map(|(_, text)| text.as_str())) {
                    // A namespace that is loaded a second time has it already.
                    if netns.run("nfacct", ["get", &counter]).is_err() {
                        netns.run("nfacct", ["add", &counter])?;
                    }
                }
                for (restore, text) in &both {
                    netns.run_with_input(restore, ["-w", "60"], text)?;
                }
            }
        }
        Ok(())
    }

    fn save(&self, node: &Node, objects: &Value, transactions: Option<&Path>) -> Result<()> {
        std::fs::create_dir_all(self.manifests())?;
        let write = |name: &str, text: String| {
            std::fs::write(self.folder.join(name), text).with_context(|| format!("writing {name}"))
        };
        let place = Place {
            name: node.name().to_owned(),
            index: node.index(),
        };
        write("node.json", serde_json::to_string_pretty(&place)? + "\n")?;
        write("manifests/objects.yaml", serde_yaml_ng::to_string(objects)?)?;
        let configuration: Value = serde_json::from_str(&proxy::configz(node)?)?;
        write(
            "configz.json",
            serde_json::to_string_pretty(&configuration)? + "\n",
        )?;
        match transactions {
            Some(folder) => write("transactions.nft", joined(folder)?)?,
            None => {
                write(
                    "iptables.rules",
                    node.netns().run("iptables-nft-save", [""; 0])?,
                )?;
                write(
                    "ip6tables.rules",
                    node.netns().run("ip6tables-nft-save", [""; 0])?,
                )?;
            }
        }
        Ok(())
    }
}

/// Runs a kube-proxy of every version and mode over the small set of Services, saves what each
/// wrote into the repository, and checks that loading it again gives the same rules.
pub fn record() -> Result<()> {
    packages::ensure(packages::KERNEL)?;
    packages::ensure(packages::CLUSTER)?;
    let hub = Hub::create()?;
    let cluster = Cluster::start(&hub)?;
    let mut nodes = Vec::new();
    for version in Version::ALL {
        for mode in Mode::ALL {
            let mut spec = Spec::new(version, mode);
            let node = hub.add_node(&spec.name())?;
            cluster.create_node(&node, &[])?;
            let scripts = match mode {
                Mode::Nftables => Some(nft_wrapper()?),
                Mode::IptablesNft | Mode::IptablesLegacy => None,
            };
            spec.path_first = scripts.as_ref().map(|folder| folder.path().to_owned());
            nodes.push((Proxy::start(&cluster, &node, spec)?, node, scripts));
        }
    }
    let limit = Duration::from_secs(120);
    for (proxy, node, _) in &mut nodes {
        proxy.wait_synced(node, limit)?;
    }
    cluster.create_namespace(objects::NAMESPACE)?;
    let all: Vec<&Node> = nodes.iter().map(|(_, node, _)| node).collect();
    cluster.api.create_all(&objects::small(&all))?;
    for (path, patch) in objects::small_statuses() {
        cluster.api.patch(&path, &patch)?;
    }
    let saved = api_objects(&cluster)?;
    for (proxy, node, scripts) in &mut nodes {
        proxy.wait_programmed(node, &objects::small_words(), limit)?;
        let (version, mode) = (proxy.spec().version, proxy.spec().mode);
        settled(node.netns(), mode)?;
        let recording = Recording::of(version, mode);
        recording.save(node, &saved, scripts.as_ref().map(|folder| folder.path()))?;
        let fresh = Netns::create(&format!("check-{}", node.name()))?;
        recording.load(&fresh)?;
        let (original, loaded) = (canonical(node.netns(), mode)?, canonical(&fresh, mode)?);
        if original != loaded {
            let differs = original
                .lines()
                .zip(loaded.lines())
                .find(|(one, other)| one != other);
            bail!(
                "loading the recording of {} gives other rules: {differs:?}",
                node.name()
            );
        }
        println!(
            "recorded {}: {} lines of rules",
            node.name(),
            original.lines().count()
        );
    }
    Ok(())
}

/// A folder with an `nft` that runs the real one and keeps every script that it accepted.
fn nft_wrapper() -> Result<Folder> {
    let folder = Folder::create("nft")?;
    let real = packages::find("nft").context("nft is not installed")?;
    let (real, here) = (real.display(), folder.path().display());
    // A script that nft refuses changed nothing and is not kept. Only one of kube-proxy's threads
    // writes each table, so the time of success orders what matters.
    let script = format!(
        "#!/bin/sh\n\
         case \"$*\" in\n\
         *--check*) exec {real} \"$@\" ;;\n\
         *'-f -'*)\n\
           script={here}/$$.unfinished\n\
           cat > $script\n\
           {real} \"$@\" < $script || exit $?\n\
           mv $script {here}/$(date +%s%N).nft ;;\n\
         *) exec {real} \"$@\" ;;\n\
         esac\n"
    );
    let path = folder.join("nft");
    std::fs::write(&path, script)?;
    crate::command::run("chmod", ["755", &path.to_string_lossy()])?;
    Ok(folder)
}

/// The kept scripts in order, each after a line that separates transactions.
fn joined(folder: &Path) -> Result<String> {
    let mut paths: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == "nft") {
            paths.push(path);
        }
    }
    paths.sort();
    let mut text = String::new();
    for path in paths {
        text.push_str(TRANSACTION);
        text.push_str(&std::fs::read_to_string(path)?);
        if !text.ends_with('\n') {
            text.push('\n');
        }
    }
    Ok(text)
}

/// Waits until the rules stay the same for two seconds: kube-proxy syncs once a second at most.
fn settled(netns: &Netns, mode: Mode) -> Result<()> {
    let mut last = (canonical(netns, mode)?, std::time::Instant::now());
    wait::until(
        "the rules to stay the same",
        Duration::from_secs(60),
        || {
            let now = canonical(netns, mode)?;
            if now != last.0 {
                last = (now, std::time::Instant::now());
            }
            Ok((last.1.elapsed() > Duration::from_secs(2)).then_some(()))
        },
    )
}

/// The ruleset as text without what differs between two loads of the same rules:
/// counters' values, and comments with times.
pub(crate) fn canonical(netns: &Netns, mode: Mode) -> Result<String> {
    if mode == Mode::Nftables {
        return netns.run("nft", ["--stateless", "list", "ruleset"]);
    }
    let text = proxy::ruleset(netns, mode)?;
    Ok(text
        .lines()
        .filter(|line| !line.starts_with('#'))
        // Chains print with counters: `:KUBE-SERVICES - [0:0]`.
        .map(|line| line.split(" [").next().unwrap_or(line))
        .fold(String::new(), |all, line| all + line + "\n"))
}

/// The names of the nfacct objects that rules count with.
fn counters<'a>(rules: impl Iterator<Item = &'a str>) -> std::collections::BTreeSet<String> {
    rules
        .flat_map(str::lines)
        .filter_map(|line| line.split_once("--nfacct-name "))
        .filter_map(|(_, rest)| rest.split_whitespace().next())
        .map(str::to_owned)
        .collect()
}

/// Services, EndpointSlices and Nodes as one `List`, without what only the API server needs.
fn api_objects(cluster: &Cluster) -> Result<Value> {
    let mut items = Vec::new();
    let kinds = [
        ("v1", "Node", "/api/v1/nodes"),
        ("v1", "Service", "/api/v1/services"),
        (
            "discovery.k8s.io/v1",
            "EndpointSlice",
            "/apis/discovery.k8s.io/v1/endpointslices",
        ),
    ];
    for (version, kind, path) in kinds {
        let list = cluster.api.get(path)?;
        for item in list["items"].as_array().context("a list has items")? {
            let mut item = item.clone();
            item["apiVersion"] = json!(version);
            item["kind"] = json!(kind);
            if let Some(metadata) = item["metadata"].as_object_mut() {
                for field in ["managedFields", "uid", "resourceVersion"] {
                    metadata.remove(field);
                }
            }
            items.push(item);
        }
    }
    Ok(json!({"apiVersion": "v1", "kind": "List", "items": items}))
}
