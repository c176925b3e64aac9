//! Services, trimmed to what a datapath can know of them.

use crate::address::Protocol;
use crate::name::ServiceName;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::sync::Arc;

/// `spec.type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ServiceType {
    /// The default.
    ClusterIP,
    /// With a port on the nodes.
    NodePort,
    /// With an address from outside.
    LoadBalancer,
    /// Only a DNS name; nothing is programmed.
    ExternalName,
}

/// A Service with the API server's defaults filled in (core/v1 Service).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Namespace and name.
    pub name: ServiceName,
    /// `metadata.uid`; empty from manifests that have none.
    pub uid: Arc<str>,
    /// `metadata.resourceVersion`; empty from manifests that have none.
    pub resource_version: Arc<str>,
    /// `spec.type`.
    pub kind: ServiceType,
    /// `spec.clusterIP` as text: an address, `None` or empty.
    pub cluster_ip: Arc<str>,
    /// `spec.clusterIPs` that are addresses, with their order kept; from `clusterIP` where absent.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.ipFamilies`, in order; empty where the API has none.
    pub ip_families: Vec<crate::address::Family>,
    /// `spec.externalIPs` that are addresses.
    pub external_ips: Vec<IpAddr>,
    /// `status.loadBalancer.ingress[]` that have an `ip`.
    pub ingress: Vec<Ingress>,
    /// `status.loadBalancer.ingress[].hostname` count; nothing is programmed for those.
    pub ingress_hostnames: u32,
    /// `spec.loadBalancerSourceRanges` that are valid, in order, spaces trimmed.
    pub source_ranges: Vec<IpNet>,
    /// `spec.internalTrafficPolicy` is `Local`.
    pub internal_local: bool,
    /// `spec.externalTrafficPolicy` is `Local`.
    pub external_local: bool,
    /// `spec.sessionAffinity: ClientIP` with its timeout in seconds (default 10800).
    pub affinity_seconds: Option<u32>,
    /// `spec.healthCheckNodePort`; 0 is absent.
    pub health_check_node_port: Option<u16>,
    /// `spec.ports`.
    pub ports: Vec<ServicePort>,
    /// Has the label `service.kubernetes.io/service-proxy-name`, with any value.
    pub proxy_name_label: bool,
    /// Has the label `service.kubernetes.io/headless`, with any value.
    pub headless_label: bool,
    /// Annotation `service.kubernetes.io/topology-aware-hints`, else `topology-mode` (to 1.30).
    pub topology_annotation: Option<Arc<str>>,
    /// `spec.selector` is absent or empty: its slices are made by hand.
    pub selectorless: bool,
}

/// One entry of `spec.ports`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePort {
    /// `name`; empty when unnamed.
    pub name: Arc<str>,
    /// `protocol`, default TCP.
    pub protocol: Protocol,
    /// `port`.
    pub port: u16,
    /// `nodePort`; 0 is absent.
    pub node_port: Option<u16>,
}

/// One entry of `status.loadBalancer.ingress` that has an address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ingress {
    /// `ip`.
    pub address: IpAddr,
    /// `ipMode` is `Proxy`: the datapath does nothing with it. Absent means `VIP`.
    pub proxy_mode: bool,
}
