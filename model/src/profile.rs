//! Who programs this node, which version, configured how, and where that was learnt.

use crate::address::Family;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// Which of kube-proxy's modes, or which other datapath, is in charge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProxyMode {
    /// `iptables`, over either backend.
    Iptables,
    /// `nftables`.
    Nftables,
    /// `ipvs`.
    Ipvs,
}

impl fmt::Display for ProxyMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ProxyMode::Iptables => "iptables",
            ProxyMode::Nftables => "nftables",
            ProxyMode::Ipvs => "ipvs",
        })
    }
}

/// A Kubernetes minor version with its patch release where known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Version {
    /// Always 1 so far.
    pub major: u16,
    /// 29 to 37 are known.
    pub minor: u16,
    /// Patch release; `None`: not said.
    pub patch: Option<u16>,
}

impl Version {
    /// The oldest minor whose rules are known (kube-proxy.md 0.1).
    pub const OLDEST: u16 = 29;
    /// The newest minor whose rules are known.
    pub const NEWEST: u16 = 37;

    /// Are this version's rules known?
    pub fn is_known(&self) -> bool {
        self.major == 1 && (Self::OLDEST..=Self::NEWEST).contains(&self.minor)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.patch {
            Some(p) => write!(f, "v{}.{}.{p}", self.major, self.minor),
            None => write!(f, "v{}.{}", self.major, self.minor),
        }
    }
}

impl std::str::FromStr for Version {
    type Err = String;

    /// Reads `1.34`, `v1.34.4`, `v1.34.4-gke.100`; anything behind the patch number is ignored.
    fn from_str(s: &str) -> Result<Self, String> {
        let bad = || format!("{s:?} is not a version (1.34)");
        let mut parts = s.strip_prefix('v').unwrap_or(s).splitn(3, '.');
        let number = |part: Option<&str>| -> Option<u16> {
            let digits: String = part?.chars().take_while(char::is_ascii_digit).collect();
            digits.parse().ok()
        };
        Ok(Version {
            major: number(parts.next()).ok_or_else(bad)?,
            minor: number(parts.next()).ok_or_else(bad)?,
            patch: number(parts.next()),
        })
    }
}

/// A value with the place it was learnt from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Learnt<T> {
    /// The value.
    pub value: T,
    /// Where from.
    pub from: LearntFrom,
}

/// Where a fact about kube-proxy was learnt. Ordered from the weakest to the strongest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LearntFrom {
    /// Nobody said; kube-proxy's own default.
    Default,
    /// ConfigMap `kube-system/kube-proxy`: a hint (kube-proxy.md 1.2).
    ConfigMap,
    /// What the kernel holds.
    Kernel,
    /// A flag or a file given to the agent.
    Flag,
    /// kube-proxy itself: `/proxyMode`, `/configz`, `/metrics`.
    Proxy,
}

/// How kube-proxy tells a Pod's packet (kube-proxy.md 1.5).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LocalDetector {
    /// By source address: one CIDR per family (`ClusterCIDR`, `NodeCIDR`).
    Cidr(Vec<IpNet>),
    /// By the link it came in on.
    Bridge(Arc<str>),
    /// By the prefix of the link's name.
    InterfacePrefix(Arc<str>),
    /// Not at all: every packet counts as from outside.
    None,
}

impl LocalDetector {
    /// The CIDR used for a family: the first of that family, as `getLocalDetectors` takes it.
    pub fn cidr(&self, family: Family) -> Option<IpNet> {
        match self {
            LocalDetector::Cidr(all) => all
                .iter()
                .copied()
                .find(|p| Family::of(p.network()) == family),
            _ => None,
        }
    }
}

/// One word of `nodePortAddresses`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodePortAddress {
    /// A CIDR.
    Cidr(IpNet),
    /// `primary`.
    Primary,
    /// `localhost` (1.37).
    Localhost,
    /// `all` (1.37).
    All,
}

/// What kube-proxy was configured with, as far as it matters to forwarding.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProxyConfig {
    /// `hostnameOverride`, lower-cased and trimmed; `None`: the host's name.
    pub hostname_override: Option<Arc<str>>,
    /// The node's name as kube-proxy sees it: `hostnameOverride`, else the host name; lower-cased.
    /// Decides which endpoints are local.
    pub node_name: Option<Arc<str>>,
    /// `bindAddress`; `None` for 0.0.0.0 and ::.
    pub bind_address: Option<IpAddr>,
    /// The local detector.
    pub detector: LocalDetector,
    /// `nodePortAddresses`; `None`: not set, so the mode's default (kube-proxy.md 2.8).
    pub node_port_addresses: Option<Vec<NodePortAddress>>,
    /// `masqueradeAll` of the mode in use.
    pub masquerade_all: bool,
    /// `masqueradeBit` of the mode in use, default 14.
    pub masquerade_bit: u8,
    /// `iptables.localhostNodePorts`, default true.
    pub localhost_node_ports: bool,
    /// `syncPeriod` of the mode in use, milliseconds, default 30,000.
    pub sync_period_ms: u64,
    /// `minSyncPeriod` of the mode in use, milliseconds, default 1,000.
    pub min_sync_period_ms: u64,
    /// Gate `AllowServiceExternalIPs` (1.36+, on by default).
    pub allow_external_ips: bool,
    /// Gate `PreferSameTrafficDistribution` where it can still be chosen (1.33, 1.34); `None`: default.
    pub prefer_same_traffic_distribution: Option<bool>,
    /// Gate `KubeProxyNFTablesLocalhostNodePorts` (1.37, off by default).
    pub nftables_localhost_node_ports: bool,
}

impl Default for ProxyConfig {
    /// kube-proxy's own defaults (kube-proxy.md 1.2).
    fn default() -> Self {
        ProxyConfig {
            hostname_override: None,
            node_name: None,
            bind_address: None,
            detector: LocalDetector::None,
            node_port_addresses: None,
            masquerade_all: false,
            masquerade_bit: 14,
            localhost_node_ports: true,
            sync_period_ms: 30_000,
            min_sync_period_ms: 1_000,
            allow_external_ips: true,
            prefer_same_traffic_distribution: None,
            nftables_localhost_node_ports: false,
        }
    }
}

/// Who programs this node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProxyProfile {
    /// The mode in charge; `None`: nobody said and the kernel does not show it.
    pub mode: Option<Learnt<ProxyMode>>,
    /// The version; `None`: not known, every version's answer is accepted.
    pub version: Option<Learnt<Version>>,
    /// The configuration.
    pub config: Learnt<ProxyConfig>,
}

impl ProxyProfile {
    /// The minor versions whose answers must be accepted.
    pub fn minors(&self) -> std::ops::RangeInclusive<u16> {
        match &self.version {
            Some(v) if v.value.is_known() => v.value.minor..=v.value.minor,
            // Newer than what is known: the newest known rules are the best guess, and the report
            // says so; older likewise.
            Some(v) if v.value.minor > Version::NEWEST => Version::NEWEST..=Version::NEWEST,
            _ => Version::OLDEST..=Version::NEWEST,
        }
    }
}

/// What kube-proxy's own endpoints said in one scrape (kube-proxy.md 1.8, 6.4). Times are the
/// node's wall clock, milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProxyHealth {
    /// Why neither `/metrics` nor `/healthz` answered; `None` when one did.
    pub unreachable: Option<Arc<str>>,
    /// By family where the version tells them apart (1.33+); else both entries are the same and
    /// `per_family` is false.
    pub families: std::collections::BTreeMap<Family, SyncTimes>,
    /// The metrics carry `ip_family`.
    pub per_family: bool,
    /// `/healthz` status, if it answered.
    pub healthz: Option<u16>,
    /// Sum of `endpoint_changes_total` and `service_changes_total`.
    pub changes_total: Option<u64>,
    /// `process_start_time_seconds`, milliseconds.
    pub started: Option<u64>,
}

/// One family's sync metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SyncTimes {
    /// `sync_proxy_rules_last_timestamp_seconds`: end of the last successful sync, milliseconds.
    pub last_sync_end: Option<u64>,
    /// `sync_proxy_rules_last_queued_timestamp_seconds`, milliseconds.
    pub last_queued: Option<u64>,
    /// `sync_proxy_rules_duration_seconds_sum`, milliseconds.
    pub duration_sum_ms: Option<f64>,
    /// `sync_proxy_rules_duration_seconds_count`.
    pub duration_count: Option<u64>,
    /// Sum of the failure counters of the mode.
    pub failures: Option<u64>,
}
