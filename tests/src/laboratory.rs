//! Everything at once: one cluster, and for each version and mode of kube-proxy a node that runs
//! it beside an agent, all reporting to one aggregator. What the checks of the cluster tier share.

use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result};
use hyper::Method;
use serde_json::Value;

use crate::agents::{Agent, Aggregator, Asked, Installation, Programs};
use crate::cache::Version;
use crate::cluster::{Cluster, User};
use crate::proxy::{self, Mode, Proxy};
use crate::topology::{Hub, Node};
use crate::{api, packages};

/// A first sync takes seconds; nine of them on two cores take more.
const START_LIMIT: Duration = Duration::from_secs(180);

/// One node with what runs on it.
#[derive(Debug)]
pub struct Station {
    // Dropped in this order: programs before their namespace.
    /// The agent, once [`Laboratory::start_agents`] was called.
    pub agent: Option<Agent>,
    /// Its kube-proxy.
    pub proxy: Proxy,
    /// The node.
    pub node: Node,
}

/// The whole laboratory. Stops when dropped.
#[derive(Debug)]
pub struct Laboratory {
    /// The aggregator, once [`Laboratory::start_agents`] was called.
    pub aggregator: Option<Aggregator>,
    /// Its second replica.
    pub second: Option<Aggregator>,
    /// What of `deploy/` was applied.
    pub installation: Option<Installation>,
    /// One node for each version and mode.
    pub stations: Vec<Station>,
    /// The cluster.
    pub cluster: Cluster,
    /// The hub.
    pub hub: Hub,
    programs: OnceLock<Programs>,
}

impl Laboratory {
    /// Starts a cluster and a kube-proxy of each version in each mode, and waits until each has
    /// synced. Nodes stand in zones a, b and c in turn.
    pub fn start() -> Result<Laboratory> {
        // Those of iptables-legacy last: so no mode has all its nodes in one zone.
        let modes: [&[Mode]; 2] = [&Mode::ALL, &[Mode::IptablesLegacy]];
        let all = modes.into_iter().flat_map(|modes| {
            let of = move |version| modes.iter().map(move |&mode| (version, mode));
            Version::ALL.into_iter().flat_map(of)
        });
        Laboratory::start_with(all)
    }

    /// The same with one node for each mode, each of another version: what two cores can keep changing
    /// without a pause.
    pub fn start_small() -> Result<Laboratory> {
        Laboratory::start_with([
            (Version::V1_34, Mode::IptablesNft),
            (Version::V1_37, Mode::Nftables),
            (Version::V1_36, Mode::IptablesLegacy),
        ])
    }

    fn start_with(all: impl IntoIterator<Item = (Version, Mode)>) -> Result<Laboratory> {
        packages::ensure(packages::KERNEL)?;
        packages::ensure(packages::CLUSTER)?;
        let hub = Hub::create()?;
        let cluster = Cluster::start(&hub)?;
        let mut stations = Vec::new();
        for (version, mode) in all {
            let spec = proxy::Spec::new(version, mode);
            let node = hub.add_node(&spec.name())?;
            let zone = ["a", "b", "c"][stations.len() % 3];
            cluster.create_node(&node, &[("topology.kubernetes.io/zone", zone)])?;
            let proxy = Proxy::start(&cluster, &node, spec)?;
            stations.push(Station {
                agent: None,
                proxy,
                node,
            });
        }
        for station in &mut stations {
            let Station { proxy, node, .. } = station;
            proxy
                .wait_synced(node, START_LIMIT)
                .with_context(|| format!("on {}", node.name()))?;
        }
        Ok(Laboratory {
            aggregator: None,
            second: None,
            installation: None,
            stations,
            cluster,
            hub,
            programs: OnceLock::new(),
        })
    }

    /// The product's programs, built on first use.
    pub fn programs(&self) -> Result<&Programs> {
        if self.programs.get().is_none() {
            // Nobody else can have set it meanwhile but with the same paths.
            let _ = self.programs.set(Programs::build()?);
        }
        self.programs.get().context("the programs were just built")
    }

    /// Applies `deploy/`, starts two replicas of the aggregator that verify tokens, and on every node
    /// an agent with the credentials of its own Pod.
    pub fn start_agents(&mut self) -> Result<()> {
        let installation = Installation::apply(&self.cluster)?;
        let programs = self.programs()?.clone();
        let url = self.cluster.url();
        let replica = |number| {
            let node = &self.stations[0].node;
            let flags = installation.aggregator(&self.cluster, node, number, &url)?;
            Aggregator::start_replica(&programs, &self.hub, number, &flags)
        };
        let (first, second) = (replica(0)?, replica(1)?);
        (self.aggregator, self.second) = (Some(first), Some(second));
        for station in &mut self.stations {
            let mut spec = installation.agent(&self.cluster, station.node.name(), &url)?;
            // Hundreds of Services are damaged or changed without a pause, which no node lives
            // through, and the programs are not optimised as those that ship are.
            spec.flags = vec!["--cpu-budget".to_owned(), "20".to_owned()];
            station.agent = Some(Agent::start(&programs, &station.node, &spec)?);
        }
        self.installation = Some(installation);
        Ok(())
    }

    /// The nodes.
    pub fn nodes(&self) -> Vec<&Node> {
        self.stations.iter().map(|station| &station.node).collect()
    }

    /// Waits until the rules of every node hold all of `words`.
    pub fn wait_programmed(&mut self, words: &[String], limit: Duration) -> Result<()> {
        for Station { proxy, node, .. } in &mut self.stations {
            proxy
                .wait_programmed(node, words, limit)
                .with_context(|| format!("on {}", node.name()))?;
        }
        Ok(())
    }

    /// `check` on a node, against the API server, with what the kube-proxy there says about itself.
    pub fn check(&self, station: &Station) -> Result<Asked> {
        self.ask(station, &["check"])
    }

    /// Any command of the agent on a node, against the API server.
    pub fn ask(&self, station: &Station, arguments: &[&str]) -> Result<Asked> {
        let kubeconfig = self.cluster.kubeconfig(User::Admin)?;
        let kubeconfig = kubeconfig.to_string_lossy();
        let mut all = arguments.to_vec();
        all.extend(["--node", station.node.name(), "--kubeconfig", &kubeconfig]);
        self.programs()?.ask(station.node.netns(), &all)
    }

    /// What the aggregator answers to `GET path`.
    pub fn aggregated(&self, path: &str) -> Result<Value> {
        self.aggregator
            .as_ref()
            .context("no aggregator was started")?
            .json(&self.hub, path)
    }

    /// Deletes a namespace's Services and EndpointSlices, so that the next check starts empty.
    pub fn empty_namespace(&self, namespace: &str) -> Result<()> {
        let lists = [
            format!("/api/v1/namespaces/{namespace}/services"),
            format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"),
        ];
        for list in lists {
            let names: Vec<String> = self.cluster.api.get(&list)?["items"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|object| object["metadata"]["name"].as_str())
                .map(|name| format!("{list}/{name}"))
                .collect();
            self.cluster.api.delete_all(&names)?;
        }
        Ok(())
    }
}

/// Sends the status patches that a load balancer's controller would: pairs of path and merge patch.
pub fn patch_all(api: &api::Api, patches: Vec<(String, Value)>) -> Result<()> {
    let calls = patches
        .into_iter()
        .map(|(path, patch)| api::Call {
            method: Method::PATCH,
            path,
            body: Some(patch),
        })
        .collect();
    for answer in api.call_all(calls) {
        answer?;
    }
    Ok(())
}
