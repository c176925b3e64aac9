//! Whatever needs more than one crate, a kernel, or a cluster; and the laboratory (`cargo lab`).
//!
//! In reading order:
//!
//! - [`command`], [`process`], [`wait`], [`cleanup`]: programs that are run, and what is left of them (nothing).
//! - [`packages`], [`cache`]: where the programs come from: Debian, and Kubernetes' Go modules.
//! - [`netns`], [`topology`]: network namespaces; a hub with nodes, and clients behind each node.
//! - [`certs`], [`api`], [`cluster`]: a real kube-apiserver with etcd and controllers in the hub.
//! - [`proxy`]: a real kube-proxy of any version and mode in a node's namespace.
//! - [`objects`]: a small set of Services that shows each kind of rule.
//! - [`recording`]: what real kube-proxies wrote, saved and loaded again.
//! - [`agents`]: the product itself: agents on nodes, an aggregator in the hub.
//! - [`laboratory`]: all of it at once, for the checks of the cluster tier.
//! - [`demo`], [`tiers`], [`checks`]: what `cargo lab` and `cargo lab test` do.
//! - [`generate`], [`coverage`], [`oracle`], [`packets`]: hundreds of Services, what they show, and what real
//!   kube-proxies and real packets say about them.
//! - [`faults`], [`churn`]: damage that has to be found, and changes that must not be taken for it.
//! - [`soak`]: everything changes for as long as one likes.
//! - `flow`: the debugging flow against the real slice controller.
//! - `lifeline`: an agent that restarts on a node without any Service address.
//! - [`bench`]: what a pass costs, against the kernel's own cost (`cargo lab bench`).
//! - [`chart`]: `deploy/chart`, and the plain manifests that are rendered from it.
//! - [`monitoring`]: rules and dashboards, and whether what they ask for exists.
//! - `prometheus`: rules and dashboards under a real Prometheus, and `promtool`.
//! - [`uml`], `ipvs`: a kernel in user mode, and kube-proxy's IPVS mode in it.
//! - [`http`]: the smallest HTTP client, for listeners inside namespaces.
//!
//! Nothing here listens or sends outside namespaces of its own, besides loopback, and nothing
//! outlives the laboratory: see [`cleanup`].

pub mod agents;
pub mod api;
pub mod bench;
pub mod cache;
pub mod certs;
pub mod chart;
pub mod checks;
pub mod churn;
pub mod cleanup;
pub mod cluster;
pub mod command;
pub mod coverage;
pub mod demo;
pub mod faults;
mod faults_plant;
mod flow;
pub mod generate;
mod generate_endpoints;
pub mod http;
mod ipvs;
mod ipvs_faults;
pub mod laboratory;
mod lifeline;
pub mod monitoring;
pub mod netns;
pub mod objects;
pub mod oracle;
pub mod packages;
pub mod packets;
pub mod process;
mod prometheus;
pub mod proxy;
pub mod recording;
pub mod soak;
pub mod tiers;
mod tokens;
pub mod topology;
pub mod uml;
pub mod wait;
