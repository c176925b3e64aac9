//! What differs by mode and version (kube-proxy.md 0.5, 2 and 5.3), as one value.

use crate::profile::{ProxyConfig, ProxyMode, ProxyProfile};

/// One version's rules in one mode. Versions with equal rules give the same table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rules {
    pub mode: ProxyMode,
    /// To 1.35 the label `headless` hides a Service (2.1).
    pub headless_label_hides: bool,
    /// To 1.35 the label `service-proxy-name` hides a slice (2.1).
    pub slice_label_hides: bool,
    /// 1.36+: of two entries for one `ip:port` the last that is not terminating wins; before, the
    /// first, or the last local one (2.3).
    pub last_not_terminating_wins: bool,
    /// To 1.30 zone hints count only with the annotation (2.5).
    pub zone_hints_need_annotation: bool,
    /// Node hints count (2.5).
    pub node_hints: bool,
    /// To 1.29 eTP Local of a ClusterIP Service with external IPs is ignored (2.2).
    pub cluster_ip_type_is_never_external_local: bool,
    /// 1.29 with its gate off serves ingress addresses of every `ipMode` (2.2).
    pub ip_mode_ignored: bool,
    /// External IPs get rules; false with the gate `AllowServiceExternalIPs` off (2.2).
    pub external_ips: bool,
    /// nftables 1.36+ and IPVS: only local endpoints have a hairpin rule (0.5, 4.5).
    pub hairpin_local_only: bool,
    /// nftables to 1.33: refusals of the output hook come before translation (5.3).
    pub check_before_nat: bool,
    /// Whether other ports of cluster IPs are refused.
    pub wildcard: Wildcard,
    /// What an unset `nodePortAddresses` means (2.8).
    pub unset_node_ports: UnsetNodePorts,
    /// nftables 1.30: a family without a CIDR takes the primary address instead of all (2.8).
    pub no_cidr_is_primary: bool,
    /// nftables 1.37 with its gate: nodePorts on loopback are refused or served by kube-proxy (5.11).
    pub loopback_node_ports_gate: bool,
}

/// Whether other ports of cluster IPs are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wildcard {
    Never,
    /// nftables mode of 1.29 and 1.30, which was not compared.
    Perhaps,
    Always,
    /// IPVS: on every address that kube-proxy binds, external ones included (4.1, 4.5).
    Bound,
}

/// What an unset `nodePortAddresses` means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UnsetNodePorts {
    All,
    Primary,
}

impl Rules {
    /// The rules of one minor version.
    pub fn of(mode: ProxyMode, minor: u16, config: &ProxyConfig) -> Rules {
        let nftables = mode == ProxyMode::Nftables;
        let node_hints = match minor {
            ..=32 => false,
            33 => config.prefer_same_traffic_distribution.unwrap_or(false),
            34 => config.prefer_same_traffic_distribution.unwrap_or(true),
            _ => true,
        };
        Rules {
            mode,
            headless_label_hides: minor <= 35,
            slice_label_hides: minor <= 35,
            last_not_terminating_wins: minor >= 36,
            zone_hints_need_annotation: minor <= 30,
            node_hints,
            cluster_ip_type_is_never_external_local: minor <= 29,
            ip_mode_ignored: false,
            external_ips: minor <= 35 || config.allow_external_ips,
            hairpin_local_only: mode == ProxyMode::Ipvs || (nftables && minor >= 36),
            check_before_nat: nftables && minor <= 33,
            wildcard: match (mode, minor) {
                (ProxyMode::Iptables, _) => Wildcard::Never,
                (ProxyMode::Nftables, ..=30) => Wildcard::Perhaps,
                (ProxyMode::Nftables, _) => Wildcard::Always,
                (ProxyMode::Ipvs, _) => Wildcard::Bound,
            },
            unset_node_ports: if nftables {
                UnsetNodePorts::Primary
            } else {
                UnsetNodePorts::All
            },
            no_cidr_is_primary: nftables && minor == 30,
            loopback_node_ports_gate: nftables
                && minor >= 37
                && config.nftables_localhost_node_ports,
        }
    }

    /// Every distinct set of rules that may be running in this mode.
    pub fn possible(mode: ProxyMode, profile: &ProxyProfile) -> Vec<Rules> {
        let mut all: Vec<Rules> = Vec::new();
        let mut add = |rules: Rules| {
            if !all.contains(&rules) {
                all.push(rules);
            }
        };
        for minor in profile.minors() {
            let rules = Rules::of(mode, minor, &profile.config.value);
            add(rules);
            if minor == 29 {
                add(Rules {
                    ip_mode_ignored: true,
                    ..rules
                });
            }
        }
        all
    }

    /// IPVS mode.
    pub fn ipvs(&self) -> bool {
        self.mode == ProxyMode::Ipvs
    }

    /// iptables mode.
    pub fn iptables(&self) -> bool {
        self.mode == ProxyMode::Iptables
    }
}
