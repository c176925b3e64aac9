//! What could be read of a node, and what that reading can show.

use crate::address::Family;
use crate::finding::Evidence;
use crate::table::ForwardingTable;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A reading that failed never looks like an empty table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Reading<T> {
    /// The kernel does not have such a thing (no module, no table).
    Absent,
    /// It could not be read.
    Failed(Gap),
    /// It was read.
    Read(T),
}

impl<T> Reading<T> {
    /// What was read, if it was.
    pub fn read(&self) -> Option<&T> {
        match self {
            Reading::Read(t) => Some(t),
            _ => None,
        }
    }
}

/// Something that could not be read, or not understood.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Gap {
    /// What (`nf_tables ip`, `links`, `kube-proxy /metrics`).
    pub what: Arc<str>,
    /// Why, with the remedy where there is one.
    pub why: Arc<str>,
}

/// Is the datapath the one in charge?
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum DatapathState {
    /// It decides over Service traffic.
    #[serde(rename = "in charge")]
    InCharge,
    /// Left over from an earlier mode.
    #[serde(rename = "residue")]
    Residue,
}

/// A datapath found on the node, and how it could be told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatapathFound {
    /// `kube-proxy/iptables-nft`, `kube-proxy/nftables`, …
    pub name: Arc<str>,
    /// Version of who programs it, as text; `None`: not known.
    pub version: Option<String>,
    /// In charge or residue.
    pub state: DatapathState,
    /// How it could be told, one sentence.
    pub why: String,
}

/// One hook that must lead to the datapath's rules, and whether it does.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Hook {
    /// Family whose packets it concerns.
    pub family: Family,
    /// `nat PREROUTING -> KUBE-SERVICES`, `nat-prerouting -> services`.
    pub name: Arc<str>,
    /// It is there.
    pub present: bool,
    /// Without it Service addresses are not translated at all (against: only refused ones differ).
    pub essential: bool,
    /// Where it is, or where it should be.
    pub evidence: Evidence,
}

/// What one reading of a datapath can show. `compare` accuses of nothing beyond it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Coverage {
    /// Families that were read whole.
    pub families: Vec<Family>,
    /// Expressions in the datapath's own rules that were not understood; must be empty.
    pub unknown_in_own_rules: Vec<Evidence>,
    /// Expressions in other rules that were not understood.
    pub unknown_in_foreign_rules: u64,
}

/// One datapath of one node as it was read and understood in one pass.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// All datapaths found, the one in charge first.
    pub datapaths: Vec<DatapathFound>,
    /// What the kernel does with each destination, by the rules of everybody.
    /// `Failed` per family: nothing of that family may be judged.
    pub tables: BTreeMap<Family, Reading<ForwardingTable>>,
    /// The hooks of the datapath in charge.
    pub hooks: Vec<Hook>,
    /// What the reading can show.
    pub coverage: Coverage,
    /// What could not be read or understood.
    pub gaps: Vec<Gap>,
    /// Tells readings apart: the ruleset's generation, where the kernel has one.
    pub generation: Option<u64>,
    /// Last writer as the kernel names it (`NFTA_GEN_PROC_NAME`): a command, not a culprit.
    pub last_writer: Option<Arc<str>>,
}
