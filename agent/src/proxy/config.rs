//! kube-proxy's configuration, in whichever form it comes: `KubeProxyConfiguration` (v1alpha1) as
//! YAML or JSON, or what `/configz` gives, whose keys are Go's field names up to 1.35 and those of
//! v1alpha1 from 1.36 on (kube-proxy.md 1.1).

mod fields;

pub use fields::go_duration;

use fields::{boolean, duration, text, words};
use ipnet::IpNet;
use model::profile::{LocalDetector, NodePortAddress, ProxyConfig, ProxyMode};
use model::view::Node;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

/// A configuration as it was read, before mode and Node are known.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parsed {
    /// `mode`; `None` when empty.
    pub mode: Option<ProxyMode>,
    /// `featureGates`.
    pub gates: BTreeMap<String, bool>,
    hostname_override: Option<Arc<str>>,
    bind_address: Option<IpAddr>,
    detect: Detect,
    node_port_addresses: Option<Vec<NodePortAddress>>,
    localhost_node_ports: Option<bool>,
    /// At the top of the old layout.
    top: Section,
    iptables: Section,
    nftables: Section,
    ipvs: Section,
}

#[derive(Clone, Debug, Default, PartialEq)]
enum Detect {
    /// `ClusterCIDR`, the default.
    Cluster(Vec<IpNet>),
    NodeCidr,
    Bridge(Arc<str>),
    Prefix(Arc<str>),
    #[default]
    Nothing,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Section {
    masquerade_all: Option<bool>,
    masquerade_bit: Option<u8>,
    sync_period_ms: Option<u64>,
    min_sync_period_ms: Option<u64>,
}

/// The word of `/proxyMode` and of `mode`.
pub fn mode(word: &str) -> Option<ProxyMode> {
    match word {
        "iptables" => Some(ProxyMode::Iptables),
        "nftables" => Some(ProxyMode::Nftables),
        "ipvs" => Some(ProxyMode::Ipvs),
        _ => None,
    }
}

/// Reads any of the forms.
pub fn parse(text: &str) -> Result<Parsed, String> {
    let value: Value = match serde_json::from_str(text) {
        Ok(value) => value,
        Err(json) if text.trim_start().starts_with('{') => return Err(format!("not JSON: {json}")),
        // The first document; kube-proxy reads no other.
        // Depth is bounded first: the parser's time grows with its square.
        Err(_) if let Err((_, why)) = cluster::yaml::shallow(text) => return Err(why),
        Err(_) => match serde_yaml_ng::Deserializer::from_str(text).next() {
            Some(document) => Value::deserialize(document).map_err(|e| format!("not YAML: {e}"))?,
            None => Value::Null,
        },
    };
    let Value::Object(mut top) = value else {
        return Err("not an object with fields".into());
    };
    if let Some(inner) = top.remove("kubeproxy.config.k8s.io") {
        match inner {
            Value::Object(inner) => top = inner,
            _ => return Err("kubeproxy.config.k8s.io is not an object".into()),
        }
    }
    // A ConfigMap as `kubectl get -o yaml` gives it.
    if let Some(Value::String(text)) = top.get("data").and_then(|d| d.get("config.conf")) {
        let text = text.clone();
        return parse(&text);
    }
    if let Some(kind) = top.get("kind").and_then(Value::as_str)
        && kind != "KubeProxyConfiguration"
    {
        return Err(format!("a {kind:?} is not a KubeProxyConfiguration"));
    }
    read(&lower(top))
}

/// Both layouts have the same words, but for the case of their letters.
fn lower(map: Map<String, Value>) -> Map<String, Value> {
    map.into_iter()
        .map(|(key, value)| {
            let key = key.to_lowercase();
            let value = match value {
                Value::Object(inner) if key != "featuregates" => Value::Object(lower(inner)),
                other => other,
            };
            (key, value)
        })
        .collect()
}

fn read(top: &Map<String, Value>) -> Result<Parsed, String> {
    let empty = Map::new();
    let section = |name: &str| match top.get(name) {
        Some(Value::Object(map)) => map,
        _ => &empty,
    };
    let word = text(top, "mode")?.unwrap_or_default();
    let found = mode(word);
    if found.is_none() && !word.is_empty() {
        return Err(format!("mode: {word:?} is no mode of kube-proxy on Linux"));
    }
    let mut gates = BTreeMap::new();
    match top.get("featuregates") {
        None | Some(Value::Null) => {}
        Some(Value::Object(map)) => {
            for (name, on) in map {
                let on = on
                    .as_bool()
                    .ok_or_else(|| format!("featureGates.{name}: {on} is not true or false"))?;
                gates.insert(name.clone(), on);
            }
        }
        Some(_) => return Err("featureGates is not a map".into()),
    }
    let mut top_section = read_section(top)?;
    top_section.masquerade_all = boolean(section("linux"), "masqueradeall")?;
    Ok(Parsed {
        mode: found,
        gates,
        hostname_override: text(top, "hostnameoverride")?
            .map(|h| h.trim().to_lowercase())
            .filter(|h| !h.is_empty())
            .map(Arc::from),
        bind_address: match text(top, "bindaddress")? {
            None | Some("") => None,
            Some(address) => {
                let ip: IpAddr = address
                    .parse()
                    .map_err(|_| format!("bindAddress: {address:?} is no address"))?;
                (!ip.is_unspecified()).then_some(ip)
            }
        },
        detect: read_detect(top, section("detectlocal"))?,
        node_port_addresses: read_node_port_addresses(top)?,
        localhost_node_ports: boolean(section("iptables"), "localhostnodeports")?,
        top: top_section,
        iptables: read_section(section("iptables"))?,
        nftables: read_section(section("nftables"))?,
        ipvs: read_section(section("ipvs"))?,
    })
}

fn read_detect(top: &Map<String, Value>, detect: &Map<String, Value>) -> Result<Detect, String> {
    let named = |key: &str| -> Result<Option<Arc<str>>, String> {
        Ok(text(detect, key)?.filter(|s| !s.is_empty()).map(Arc::from))
    };
    match text(top, "detectlocalmode")?.unwrap_or("ClusterCIDR") {
        "" | "ClusterCIDR" => {
            let mut words = words(detect, "clustercidrs")?;
            if words.is_empty() {
                words = text(top, "clustercidr")?
                    .unwrap_or_default()
                    .split(',')
                    .collect();
            }
            let mut cidrs = Vec::new();
            for word in words.into_iter().map(str::trim).filter(|w| !w.is_empty()) {
                let cidr = cluster::field::cidr(word);
                cidrs.push(cidr.ok_or_else(|| format!("clusterCIDR: {word:?} is no CIDR"))?);
            }
            Ok(if cidrs.is_empty() {
                Detect::Nothing
            } else {
                Detect::Cluster(cidrs)
            })
        }
        "NodeCIDR" => Ok(Detect::NodeCidr),
        "BridgeInterface" => Ok(named("bridgeinterface")?.map_or(Detect::Nothing, Detect::Bridge)),
        "InterfaceNamePrefix" => {
            Ok(named("interfacenameprefix")?.map_or(Detect::Nothing, Detect::Prefix))
        }
        other => Err(format!("detectLocalMode: {other:?} is not known")),
    }
}

fn read_node_port_addresses(
    top: &Map<String, Value>,
) -> Result<Option<Vec<NodePortAddress>>, String> {
    let mut all = Vec::new();
    for word in words(top, "nodeportaddresses")? {
        all.push(match word {
            "primary" => NodePortAddress::Primary,
            "localhost" => NodePortAddress::Localhost,
            "all" => NodePortAddress::All,
            other => match cluster::field::cidr(other) {
                Some(cidr) => NodePortAddress::Cidr(cidr),
                None => return Err(format!("nodePortAddresses: {other:?} is no CIDR")),
            },
        });
    }
    Ok((!all.is_empty()).then_some(all))
}

fn read_section(map: &Map<String, Value>) -> Result<Section, String> {
    let bit = match map.get("masqueradebit") {
        None | Some(Value::Null) => None,
        Some(bit) => Some(
            bit.as_u64()
                .filter(|b| *b < 32)
                .ok_or_else(|| format!("masqueradeBit: {bit} is not a number from 0 to 31"))?
                as u8,
        ),
    };
    Ok(Section {
        masquerade_all: boolean(map, "masqueradeall")?,
        masquerade_bit: bit,
        sync_period_ms: duration(map, "syncperiod")?,
        min_sync_period_ms: duration(map, "minsyncperiod")?,
    })
}

impl Parsed {
    /// What it means for a mode (the one in use, else its own, else iptables as kube-proxy takes an
    /// empty one) and for this Node, whose Pod CIDRs `NodeCIDR` needs.
    pub fn resolve(&self, in_use: Option<ProxyMode>, own: Option<&Node>) -> ProxyConfig {
        let defaults = ProxyConfig::default();
        let mode = in_use.or(self.mode).unwrap_or(ProxyMode::Iptables);
        // ipvs mode reads mask and masquerade-all of iptables.
        let rules = if mode == ProxyMode::Nftables {
            &self.nftables
        } else {
            &self.iptables
        };
        let timing = match mode {
            ProxyMode::Iptables => &self.iptables,
            ProxyMode::Nftables => &self.nftables,
            ProxyMode::Ipvs => &self.ipvs,
        };
        let mut config = ProxyConfig {
            hostname_override: self.hostname_override.clone(),
            node_name: None,
            bind_address: self.bind_address,
            detector: match &self.detect {
                Detect::Cluster(cidrs) => LocalDetector::Cidr(cidrs.clone()),
                Detect::NodeCidr => match own.map(|n| &n.pod_cidrs) {
                    Some(cidrs) if !cidrs.is_empty() => LocalDetector::Cidr(cidrs.clone()),
                    _ => LocalDetector::None,
                },
                Detect::Bridge(name) => LocalDetector::Bridge(name.clone()),
                Detect::Prefix(prefix) => LocalDetector::InterfacePrefix(prefix.clone()),
                Detect::Nothing => LocalDetector::None,
            },
            node_port_addresses: self.node_port_addresses.clone(),
            masquerade_all: rules
                .masquerade_all
                .or(self.top.masquerade_all)
                .unwrap_or(false),
            masquerade_bit: rules.masquerade_bit.unwrap_or(defaults.masquerade_bit),
            localhost_node_ports: self.localhost_node_ports.unwrap_or(true),
            // 0 means the default, as in kube-proxy's own defaulting.
            sync_period_ms: timing
                .sync_period_ms
                .filter(|ms| *ms > 0)
                .or(self.top.sync_period_ms.filter(|ms| *ms > 0))
                .unwrap_or(defaults.sync_period_ms),
            min_sync_period_ms: timing
                .min_sync_period_ms
                .filter(|ms| *ms > 0)
                .or(self.top.min_sync_period_ms.filter(|ms| *ms > 0))
                .unwrap_or(defaults.min_sync_period_ms),
            allow_external_ips: defaults.allow_external_ips,
            prefer_same_traffic_distribution: None,
            nftables_localhost_node_ports: false,
        };
        apply_gates(&mut config, &self.gates);
        config
    }
}

/// The gates that change rules (kube-proxy.md 1.1).
pub fn apply_gates(config: &mut ProxyConfig, gates: &BTreeMap<String, bool>) {
    if let Some(on) = gates.get("AllowServiceExternalIPs") {
        config.allow_external_ips = *on;
    }
    if let Some(on) = gates.get("PreferSameTrafficDistribution") {
        config.prefer_same_traffic_distribution = Some(*on);
    }
    if let Some(on) = gates.get("KubeProxyNFTablesLocalhostNodePorts") {
        config.nftables_localhost_node_ports = *on;
    }
}
#[cfg(test)]
mod tests {
    use super::*;

    /// Layout up to 1.35: Go's field names, one pair of periods, `Linux.MasqueradeAll`.
    const OLD: &str = r#"{"kubeproxy.config.k8s.io": {"FeatureGates": {"NFTablesProxyMode": true},
        "BindAddress": "0.0.0.0", "HostnameOverride": "Node-1 ", "Mode": "nftables",
        "SyncPeriod": "1m0s", "MinSyncPeriod": "2s", "NodePortAddresses": ["192.0.2.11/32"],
        "DetectLocalMode": "ClusterCIDR",
        "DetectLocal": {"BridgeInterface": "", "ClusterCIDRs": ["10.244.0.0/16", "fd00::/48"], "InterfaceNamePrefix": ""},
        "Linux": {"MasqueradeAll": true, "Conntrack": {"Min": 131072}},
        "IPTables": {"MasqueradeBit": 14, "LocalhostNodePorts": true}, "NFTables": {"MasqueradeBit": 12},
        "IPVS": {"Scheduler": ""}}}"#;

    /// Layout from 1.36: v1alpha1, periods only in the section of the mode in use.
    const NEW: &str = r#"{"kubeproxy.config.k8s.io": {"kind": "KubeProxyConfiguration",
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "featureGates": {"AllowServiceExternalIPs": false},
        "bindAddress": "::", "hostnameOverride": "", "mode": "nftables",
        "clusterCIDR": "10.244.0.0/16,fd00::/48", "detectLocalMode": "ClusterCIDR", "nodePortAddresses": ["primary"],
        "iptables": {"masqueradeBit": 14, "masqueradeAll": false, "localhostNodePorts": true, "syncPeriod": "0s", "minSyncPeriod": "0s"},
        "nftables": {"masqueradeBit": 14, "masqueradeAll": true, "syncPeriod": "45s", "minSyncPeriod": "500ms"}}}"#;

    #[test]
    fn configz_up_to_1_35() {
        let parsed = parse(OLD).unwrap();
        assert_eq!(parsed.mode, Some(ProxyMode::Nftables));
        let config = parsed.resolve(None, None);
        assert_eq!(config.hostname_override.as_deref(), Some("node-1"));
        assert_eq!(
            (config.sync_period_ms, config.min_sync_period_ms),
            (60_000, 2_000)
        );
        assert_eq!((config.masquerade_all, config.masquerade_bit), (true, 12));
        assert_eq!(config.bind_address, None);
        let LocalDetector::Cidr(cidrs) = &config.detector else {
            panic!("{config:?}")
        };
        assert_eq!(cidrs.len(), 2);
        assert_eq!(
            config.node_port_addresses,
            Some(vec![NodePortAddress::Cidr(
                "192.0.2.11/32".parse().unwrap()
            )])
        );
    }

    #[test]
    fn configz_from_1_36() {
        let config = parse(NEW).unwrap().resolve(None, None);
        assert_eq!(
            (config.sync_period_ms, config.min_sync_period_ms),
            (45_000, 500)
        );
        assert_eq!((config.masquerade_all, config.masquerade_bit), (true, 14));
        assert_eq!(config.hostname_override, None);
        assert_eq!(
            config.node_port_addresses,
            Some(vec![NodePortAddress::Primary])
        );
        assert!(!config.allow_external_ips);
        let LocalDetector::Cidr(cidrs) = &config.detector else {
            panic!("{config:?}")
        };
        assert_eq!(cidrs.len(), 2);
    }

    #[test]
    fn a_file_with_defaults_and_a_config_map() {
        let file = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: \"\"\niptables:\n  syncPeriod: 0s\n  masqueradeBit: null\nnodePortAddresses: null\n";
        let parsed = parse(file).unwrap();
        assert_eq!(parsed.mode, None);
        assert_eq!(parsed.resolve(None, None), ProxyConfig::default());
        let map = format!(
            "kind: ConfigMap\ndata:\n  config.conf: |\n    {}",
            file.replace('\n', "\n    ")
        );
        assert_eq!(parse(&map).unwrap(), parsed);
    }

    #[test]
    fn local_detectors() {
        let of = |text: &str, own: Option<&Node>| parse(text).unwrap().resolve(None, own).detector;
        let bridge = "detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: br0}\n";
        assert_eq!(of(bridge, None), LocalDetector::Bridge("br0".into()));
        let prefix =
            "detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: veth}\n";
        assert_eq!(
            of(prefix, None),
            LocalDetector::InterfacePrefix("veth".into())
        );
        let node = Node {
            name: "n1".into(),
            internal_ips: vec![],
            external_ips: vec![],
            zone: None,
            pod_cidrs: vec!["10.244.1.0/24".parse().unwrap()],
            going: false,
            created: None,
        };
        let cidr = LocalDetector::Cidr(node.pod_cidrs.clone());
        assert_eq!(of("detectLocalMode: NodeCIDR", Some(&node)), cidr);
        assert_eq!(of("detectLocalMode: NodeCIDR", None), LocalDetector::None);
    }

    #[test]
    fn nonsense_is_named() {
        assert!(parse("mode: [").unwrap_err().starts_with("not YAML"));
        assert!(parse("{").unwrap_err().starts_with("not JSON"));
        assert!(parse("just text").is_err());
        assert!(parse("mode: userspace").unwrap_err().contains("userspace"));
        assert!(
            parse("kind: Deployment")
                .unwrap_err()
                .contains("Deployment")
        );
        assert!(
            parse("clusterCIDR: 10.0.0.0")
                .unwrap_err()
                .contains("clusterCIDR")
        );
        assert!(
            parse("iptables: {masqueradeBit: 99}")
                .unwrap_err()
                .contains("masqueradeBit")
        );
        assert!(
            parse("iptables: {syncPeriod: soon}")
                .unwrap_err()
                .contains("soon")
        );
    }
}
