//! What is measured: a namespace with a ruleset as kube-proxy writes it, API objects that ask for
//! exactly that, and a change of one Service.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::Size;
use crate::cleanup::Folder;
use crate::command;
use crate::netns::Netns;

/// The node's name.
pub(super) const NODE: &str = "bench";
/// Its address, as the generated rules have it for node ports.
const NODE_IP: &str = "192.168.0.2";
/// Where Pods have their addresses, as the generated rules have it.
pub(super) const POD_CIDR: &str = "10.128.0.0/14";
/// The range of cluster IPs.
const SERVICE_CIDR: &str = "10.96.0.0/14";
/// The version whose layout the generated rules have.
pub(super) const PROXY_VERSION: &str = "1.34";
/// Objects in one file.
const PER_FILE: usize = 500;

/// Where the rules stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Backend {
    Legacy,
    IptablesNft,
    Nftables,
}

impl Backend {
    pub const ALL: [Backend; 3] = [Backend::Legacy, Backend::IptablesNft, Backend::Nftables];

    pub fn name(self) -> &'static str {
        match self {
            Backend::Legacy => "iptables-legacy",
            Backend::IptablesNft => "iptables-nft",
            Backend::Nftables => "nftables",
        }
    }

    pub fn mode(self) -> &'static str {
        match self {
            Backend::Legacy | Backend::IptablesNft => "iptables",
            Backend::Nftables => "nftables",
        }
    }
}

/// Addresses as `rawdump` gives them (its `generate.rs`).
fn service_ip(service: usize) -> String {
    address(u32::from_be_bytes([10, 96, 0, 10]), service)
}

fn endpoint_ip(number: usize) -> String {
    address(u32::from_be_bytes([10, 128, 0, 2]), number)
}

fn address(first: u32, number: usize) -> String {
    std::net::Ipv4Addr::from(first.wrapping_add(number as u32)).to_string()
}

/// Writes the objects that ask for what `rawdump gen-*` generates.
pub(super) fn manifests(size: &Size, folder: &Path) -> Result<PathBuf> {
    let (services, endpoints) = (size.services, size.endpoints);
    std::fs::create_dir_all(folder)?;
    let mut objects = vec![
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE},
               "status": {"addresses": [{"type": "InternalIP", "address": NODE_IP}]}}),
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
               "metadata": {"name": "kubernetes"}, "spec": {"cidrs": [SERVICE_CIDR]}}),
    ];
    let mut files = 0;
    let mut flush = |objects: &mut Vec<Value>| -> Result<()> {
        let path = folder.join(format!("{files:05}.json"));
        files += 1;
        let file = File::create(&path).with_context(|| format!("making {}", path.display()))?;
        let items = std::mem::take(objects);
        serde_json::to_writer(
            BufWriter::new(file),
            &json!({"apiVersion": "v1", "kind": "List", "items": items}),
        )?;
        Ok(())
    };
    for s in 0..services {
        let (namespace, name) = (format!("ns{}", s % 50), format!("service-{s}"));
        let mut port = json!({"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080});
        let mut spec = json!({
            "type": "ClusterIP", "clusterIP": service_ip(s), "clusterIPs": [service_ip(s)],
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack", "selector": {"app": name},
            "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
        });
        if s % 10 == 0 {
            port["nodePort"] = json!(30_000 + s / 10);
            spec["type"] = json!("NodePort");
            spec["externalTrafficPolicy"] = json!("Cluster");
        }
        if s % 100 == 7 {
            spec["sessionAffinity"] = json!("ClientIP");
            spec["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": 10_800}});
        }
        spec["ports"] = json!([port]);
        objects.push(json!({
            "apiVersion": "v1", "kind": "Service", "spec": spec,
            "metadata": {"name": name, "namespace": namespace, "uid": format!("uid-{s}"),
                         "resourceVersion": "1", "labels": {"app": name}},
        }));
        let all: Vec<Value> = (0..endpoints)
            .map(|e| {
                let number = s * endpoints + e;
                json!({
                    "addresses": [endpoint_ip(number)],
                    "conditions": {"ready": true, "serving": true, "terminating": false},
                    "nodeName": format!("node-{}", number % 100),
                    "targetRef": {"kind": "Pod", "namespace": namespace,
                                  "name": format!("{name}-7d4b9c-{e}")},
                })
            })
            .collect();
        objects.push(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": format!("{name}-x"), "namespace": namespace, "resourceVersion": "1",
                         "labels": {"kubernetes.io/service-name": name}},
            "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
            "endpoints": all,
        }));
        // Refused by a rule in iptables mode; in nftables mode by what refuses other ports.
        if s < services / 100 {
            objects.push(json!({
                "apiVersion": "v1", "kind": "Service",
                "metadata": {"name": format!("empty-{s}"), "namespace": namespace},
                "spec": {"type": "ClusterIP", "clusterIP": service_ip(s), "clusterIPs": [service_ip(s)],
                         "ipFamilies": ["IPv4"], "ports": [{"name": "http", "port": 81}]},
            }));
        }
        if objects.len() >= PER_FILE {
            flush(&mut objects)?;
        }
    }
    flush(&mut objects)?;
    Ok(folder.to_owned())
}

/// A namespace with a ruleset, and the change of one Service.
pub(super) struct State {
    pub netns: Netns,
    pub backend: Backend,
    /// kube-proxy's configuration, for the agent.
    pub config: PathBuf,
    change: String,
    restore: String,
}

impl State {
    pub fn make(rawdump: &Path, size: &Size, backend: Backend, folder: &Folder) -> Result<State> {
        let netns = Netns::create(&format!("bench-{}", backend.name()))?;
        // On loopback: not every kernel has dummy links, and only the address matters.
        netns.run(
            "ip",
            ["address", "add", &format!("{NODE_IP}/32"), "dev", "lo"],
        )?;
        let generate = match backend {
            Backend::Nftables => "gen-nft",
            Backend::Legacy | Backend::IptablesNft => "gen-iptables",
        };
        let rules = command::run(
            &rawdump.to_string_lossy(),
            [
                generate.to_owned(),
                format!("--svcs={}", size.services),
                format!("--eps={}", size.endpoints),
            ],
        )?;
        let (change, restore) = match backend {
            Backend::Nftables => nft_change(&rules)?,
            Backend::Legacy | Backend::IptablesNft => iptables_change(&rules)?,
        };
        let config = folder.join(format!("kube-proxy-{}.yaml", backend.name()));
        std::fs::write(
            &config,
            format!(
                "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n\
                 mode: {}\nclusterCIDR: {POD_CIDR}\nhostnameOverride: {NODE}\n",
                backend.mode()
            ),
        )?;
        let state = State {
            netns,
            backend,
            config,
            change,
            restore,
        };
        state.load(&rules, false)?;
        Ok(state)
    }

    /// One Service loses an endpoint.
    pub fn change(&self) -> Result<()> {
        self.load(&self.change, true)
    }

    /// It has it again.
    pub fn restore(&self) -> Result<()> {
        self.load(&self.restore, true)
    }

    fn load(&self, rules: &str, part: bool) -> Result<()> {
        let (program, arguments): (&str, &[&str]) = match (self.backend, part) {
            (Backend::Nftables, _) => ("nft", &["-f", "-"]),
            (Backend::Legacy, false) => ("iptables-legacy-restore", &[]),
            (Backend::Legacy, true) => ("iptables-legacy-restore", &["--noflush"]),
            (Backend::IptablesNft, false) => ("iptables-nft-restore", &[]),
            (Backend::IptablesNft, true) => ("iptables-nft-restore", &["--noflush"]),
        };
        self.netns.run_with_input(program, arguments, rules)?;
        Ok(())
    }
}

/// The second Service's chain without its first endpoint, as kube-proxy writes it after a scale-down,
/// and as it was.
fn nft_change(rules: &str) -> Result<(String, String)> {
    let chain = rules
        .lines()
        .filter_map(|l| l.strip_prefix("add chain ip kube-proxy service-"))
        // Its first lines are base chains and helpers with other names, or a bare verb.
        .find(|l| l.contains("/service-1/"))
        .context("the generated rules have no second Service")?;
    let chain = format!("service-{chain}");
    let start = format!("add rule ip kube-proxy {chain} ");
    let own: Vec<&str> = rules.lines().filter(|l| l.starts_with(&start)).collect();
    let flush = format!("flush chain ip kube-proxy {chain}\n");
    let restore = format!("{flush}{}\n", own.join("\n"));
    let mut change = flush;
    for line in own {
        let Some((_, map)) = line.split_once("numgen random mod ") else {
            change.push_str(line);
            change.push('\n');
            continue;
        };
        let targets: Vec<&str> = map
            .split("goto ")
            .skip(1)
            .map(|t| t.trim_end_matches([' ', ',', '}', '\n']))
            .filter_map(|t| t.split_whitespace().next())
            .skip(1)
            .collect();
        if targets.is_empty() {
            bail!("the second Service has one endpoint: use more");
        }
        let elements: Vec<String> = targets
            .iter()
            .enumerate()
            .map(|(n, t)| format!("{n} : goto {t}"))
            .collect();
        change.push_str(&format!(
            "{start}numgen random mod {} vmap {{ {} }}\n",
            targets.len(),
            elements.join(", ")
        ));
    }
    Ok((change, restore))
}

/// The same for iptables: the shares of the rules that remain are those of fewer endpoints.
fn iptables_change(rules: &str) -> Result<(String, String)> {
    let first = rules
        .lines()
        .find(|l| l.starts_with("-A KUBE-SVC-") && l.contains("/service-1:http -> "))
        .context("the generated rules have no second Service")?;
    let chain = first.split_whitespace().nth(1).context("a chain")?;
    let start = format!("-A {chain} ");
    let own: Vec<&str> = rules.lines().filter(|l| l.starts_with(&start)).collect();
    let load = |rules: &[&str]| format!("*nat\n:{chain} - [0:0]\n{}\nCOMMIT\n", rules.join("\n"));
    let less: Vec<&str> = own.iter().copied().filter(|l| *l != first).collect();
    if !first.contains("--probability") {
        bail!("the second Service has one endpoint: use more");
    }
    Ok((load(&less), load(&own)))
}
