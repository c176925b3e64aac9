//! Everything that is needed to repeat a verdict, in one file: what was read of the kernel, undecoded,
//! and what was known of the API and of kube-proxy, for each pass until the verdict stood.
//!
//! A bundle is a tar archive in one zstd frame with a checksum, so that `tar --zstd -xf` opens it:
//!
//! ```text
//! about.json                    format, agent's version, node, when, whether names are pseudonyms
//! 1-nf_tables.capture           messages of nf_tables (`netfilter/nftables/capture.rs`)
//! 1-iptables-legacy-ip-nat.capture    a table of iptables-legacy (`netfilter/xtables/legacy/capture.rs`)
//! 1-pass.json                   the first pass: clocks, API objects, kube-proxy, and which captures
//! 2-pass.json                   the second: what changed since the first
//! ```
//!
//! A pass uses captures of its own, or those that the pass before it used: what did not change is
//! there once. Everything is bounded on reading ([`Limits`]).

mod kernel;
pub mod pseudonyms;
mod read;
mod record;
#[cfg(test)]
mod tests;
mod view;
mod write;

pub use kernel::Captures;
pub use read::{Limits, LoadError, Step, read};
pub use record::{Looked, Recorder};
pub use view::ViewChange;
pub use write::Writer;

use model::capture::Gap;
use model::name::{NodeName, ServiceName};
use model::profile::{ProxyHealth, ProxyProfile};
use model::time::{Millis, Now};
use model::view::LocalAddress;
use serde::{Deserialize, Serialize};

/// Version of the format that this program writes and reads.
pub const FORMAT: u32 = 1;

/// First entry of a bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// Version of the format.
    pub format: u32,
    /// Version of the agent that wrote it.
    pub agent: String,
    /// The node it was taken on.
    pub node: NodeName,
    /// When, by the node's clock.
    pub made: Millis,
    /// Names of namespaces, Services, nodes, Pods, slices and zones are pseudonyms.
    pub pseudonyms: bool,
}

/// What was read of the kernel in one pass.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KernelRead {
    /// Nothing; the reason.
    Failed(Gap),
    /// These captures.
    Read {
        /// Entry with the messages of nf_tables; `None`: the kernel has none.
        nf_tables: Option<String>,
        /// Entries with the tables of iptables-legacy, in order.
        legacy: Vec<String>,
        /// Entry with IPVS and its ipsets; `None`: the kernel has no IPVS.
        #[serde(default)]
        ipvs: Option<String>,
    },
}

/// One pass: everything it looked at.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recorded {
    /// When the kernel was read.
    pub at: Now,
    /// Its rules.
    pub kernel: KernelRead,
    /// Addresses on the node's links, or why they could not be read.
    pub addresses: Result<Vec<LocalAddress>, String>,
    /// What changed of the API's objects since the pass before; since nothing, for the first.
    pub view: ViewChange,
    /// Who programs the node.
    pub profile: ProxyProfile,
    /// kube-proxy's health, where one is expected.
    pub proxy: Option<ProxyHealth>,
    /// What could not be learnt.
    pub gaps: Vec<Gap>,
    /// Services fetched again since the pass before.
    pub refreshed: Vec<ServiceName>,
}
