//! What differs, with its proof. One variant: one doc line, one case that provokes it, one near miss.

use crate::address::{Family, Frontend, SourceClass};
use crate::name::ServicePortName;
use crate::time::Millis;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

/// A place in the kernel's state that proves something.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Evidence {
    /// `ip`, `ip6`, `inet`, or what else holds the object; `iptables-legacy` and `ip6tables-legacy`
    /// for tables of x_tables; empty where it does not apply.
    pub family: Arc<str>,
    /// Table.
    pub table: Arc<str>,
    /// Chain, set or map.
    pub chain: Arc<str>,
    /// The rule's handle, as `nft --handle` shows it. Rules of iptables-legacy have none: there it is
    /// the position in the chain, from 1, as `iptables-legacy -L --line-numbers` shows it. Of a virtual
    /// server: the place of its real server in order of addresses, from 1.
    pub handle: Option<u64>,
    /// The element of a set or map, as `nft` shows it.
    pub element: Option<Arc<str>>,
    /// One clause: what the object does, or that it is not there.
    pub says: Arc<str>,
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.table.is_empty() {
            write!(f, "{} {} {}", self.family, self.table, self.chain)?;
            if let Some(h) = self.handle {
                let what = match &*self.family {
                    "ipvs" => "entry",
                    family if family.ends_with("tables-legacy") => "rule",
                    _ => "handle",
                };
                write!(f, " {what} {h}")?;
            }
            if let Some(e) = &self.element {
                write!(f, " {{ {e} }}")?;
            }
            write!(f, ": ")?;
        }
        f.write_str(&self.says)
    }
}

/// How bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing; nobody's traffic is known to suffer. What the witness cannot see is of this kind:
    /// it counts as unknown, not as wrong.
    Info,
    /// Some traffic may go wrong.
    Warning,
    /// Traffic of at least one Service goes wrong on this node.
    Critical,
}

/// What differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingKind {
    /// The API asks for this frontend and the node's kernel leaves its packets alone.
    MissingFrontend,
    /// The node's datapath answers for a frontend that no Service has (any more).
    StaleFrontend,
    /// A usable endpoint gets no traffic through this frontend.
    MissingBackend,
    /// Traffic goes to a backend that the API does not offer (any more).
    StaleBackend,
    /// The right backends in wrong proportions.
    WrongShare,
    /// Forwards where it must reject or drop, or the reverse.
    WrongAction,
    /// Session affinity differs: absent, unasked for, another timeout, or half there.
    WrongAffinity,
    /// Other clients are let in than `loadBalancerSourceRanges` says.
    WrongSourceRanges,
    /// The source address is rewritten where it must not be, or the reverse.
    WrongMasquerade,
    /// Nothing leads from the kernel's hooks to the datapath's rules, or its tables are gone.
    HooksMissing,
    /// A rule that is not the datapath's decides over Service traffic.
    ForeignRule,
    /// kube-proxy should run here and does not answer.
    ProxyNotRunning,
    /// kube-proxy runs, was told of changes, and does not finish a sync; or its watch is dead.
    ProxyStuck,
    /// The kernel's state could not be read, or not understood where it matters.
    Unreadable,
    /// kube-proxy's configuration contradicts the cluster (its node name is no Node's).
    WrongConfiguration,
    /// Two Services claim one address, port and protocol; what the node does is one of the answers.
    ApiConflict,
}

impl FindingKind {
    /// The kind's word on the wire, in JSON and in metrics.
    pub fn word(self) -> &'static str {
        match self {
            FindingKind::MissingFrontend => "missing_frontend",
            FindingKind::StaleFrontend => "stale_frontend",
            FindingKind::MissingBackend => "missing_backend",
            FindingKind::StaleBackend => "stale_backend",
            FindingKind::WrongShare => "wrong_share",
            FindingKind::WrongAction => "wrong_action",
            FindingKind::WrongAffinity => "wrong_affinity",
            FindingKind::WrongSourceRanges => "wrong_source_ranges",
            FindingKind::WrongMasquerade => "wrong_masquerade",
            FindingKind::HooksMissing => "hooks_missing",
            FindingKind::ForeignRule => "foreign_rule",
            FindingKind::ProxyNotRunning => "proxy_not_running",
            FindingKind::ProxyStuck => "proxy_stuck",
            FindingKind::Unreadable => "unreadable",
            FindingKind::WrongConfiguration => "wrong_configuration",
            FindingKind::ApiConflict => "api_conflict",
        }
    }

    /// Every kind, in the order of declaration.
    pub const ALL: [FindingKind; 16] = [
        FindingKind::MissingFrontend,
        FindingKind::StaleFrontend,
        FindingKind::MissingBackend,
        FindingKind::StaleBackend,
        FindingKind::WrongShare,
        FindingKind::WrongAction,
        FindingKind::WrongAffinity,
        FindingKind::WrongSourceRanges,
        FindingKind::WrongMasquerade,
        FindingKind::HooksMissing,
        FindingKind::ForeignRule,
        FindingKind::ProxyNotRunning,
        FindingKind::ProxyStuck,
        FindingKind::Unreadable,
        FindingKind::WrongConfiguration,
        FindingKind::ApiConflict,
    ];
}

impl fmt::Display for FindingKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// One contradicted fact, now. Age runs per fact: this is the fact's key plus its proof.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// The fact that is contradicted.
    pub fact: Fact,
    /// How bad.
    pub severity: Severity,
    /// Sources for which it is so, sorted.
    pub sources: Vec<SourceClass>,
    /// What should be and what is, and where that stands; datapath objects first.
    pub evidence: Vec<Evidence>,
    /// One sentence for a person.
    pub says: String,
    /// No object that the API could still be about to send explains it (hooks, foreign rules).
    pub beyond_the_api: bool,
    /// Differences of single Services that follow from this one.
    pub absorbs: u64,
}

/// A contradicted fact: the key under which its age runs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Fact {
    /// What differs.
    pub kind: FindingKind,
    /// Whose; `None` for the node as a whole.
    pub service: Option<ServicePortName>,
    /// Where; `None` for the node as a whole.
    pub frontend: Option<Frontend>,
    /// Which backend, where one is at fault.
    pub backend: Option<SocketAddr>,
    /// Which family, for findings about a whole family.
    pub family: Option<Family>,
    /// Tells apart facts that are equal in the rest: the foreign rule, the hook.
    pub detail: Option<Arc<str>>,
}

/// A difference with its history: converging, or lasted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// What differs.
    pub kind: FindingKind,
    /// How bad.
    pub severity: Severity,
    /// Whose; null for the node as a whole.
    pub service: Option<ServicePortName>,
    /// Where; null for the node as a whole.
    pub frontend: Option<Frontend>,
    /// Sources for which it is so.
    pub sources: Vec<SourceClass>,
    /// Which backend, where one is at fault.
    pub backend: Option<SocketAddr>,
    /// Since when the fact has been contradicted, as this agent saw it.
    pub since: Millis,
    /// The proof.
    pub evidence: Vec<Evidence>,
    /// One sentence for a person.
    pub says: String,
    /// Findings of single Services that follow from this one.
    pub absorbs: u64,
    /// Wrong more than 5 % of the last ten minutes, with gaps (design 6).
    pub recurring: bool,
    /// Why it counts as a finding already, or what it is still given time for.
    pub because: String,
}

impl Finding {
    /// What stands still when this is [`FindingKind::ProxyStuck`]: kube-proxy's watch of the API (true),
    /// or a sync that it does not finish (false). They have one kind, and are told apart by the proof.
    pub fn watch_is_dead(&self) -> bool {
        self.kind == FindingKind::ProxyStuck && self.evidence.iter().any(|e| &*e.says == WATCH_DEAD)
    }
}

/// The proof of a dead watch: kube-proxy's counters of what it was told
/// (`pkg/proxy/metrics/metrics.go` of Kubernetes).
pub const WATCH_DEAD: &str = "sync_proxy_rules_endpoint_changes_total and sync_proxy_rules_service_changes_total stand still";
