//! One whole pass as one pure function. Read this first.

use crate::capture::Snapshot;
use crate::name::ServiceName;
use crate::profile::{ProxyHealth, ProxyProfile};
use crate::report::Report;
use crate::table::DesiredTable;
use crate::time::Now;
use crate::view::{ClusterView, NodeView};

/// Everything one pass looks at.
#[derive(Clone, Copy, Debug)]
pub struct Pass<'a> {
    /// When the kernel was read.
    pub now: Now,
    /// Counts passes.
    pub number: u64,
    /// What the API said, as it was known *after* the kernel was read.
    pub view: &'a ClusterView,
    /// What the node itself said.
    pub node: &'a NodeView,
    /// Who programs the node.
    pub profile: &'a ProxyProfile,
    /// What kube-proxy's endpoints said; `None`: no running kube-proxy is expected (manifests).
    pub proxy: Option<&'a ProxyHealth>,
    /// What should be: [`crate::desired::desired`] of `view`, `node` and `profile`.
    pub desired: &'a DesiredTable,
    /// What is.
    pub snapshot: &'a Snapshot,
    /// Services whose objects were fetched again from the API since the last pass, on
    /// [`Examined::refresh`]: their view is now as fresh as the API server.
    pub refreshed: &'a [ServiceName],
}

/// What a pass gives.
#[derive(Clone, Debug)]
pub struct Examined {
    /// For the aggregator, the socket and the command line.
    pub report: Report,
    /// Services that should be fetched from the API once before the next pass, since the kernel
    /// had fulfilled a fact and no longer does (design 6 c).
    pub refresh: Vec<ServiceName>,
}
