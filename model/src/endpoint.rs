//! EndpointSlices and their Endpoints, trimmed to what a datapath can know of them.

use crate::address::{Family, Protocol};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::sync::Arc;

/// A slice's namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SliceName {
    /// `metadata.namespace`.
    pub namespace: Arc<str>,
    /// `metadata.name`.
    pub name: Arc<str>,
}

/// discovery/v1 EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointSlice {
    /// Namespace and name.
    pub name: SliceName,
    /// `metadata.resourceVersion`; empty from manifests that have none.
    pub resource_version: Arc<str>,
    /// Label `kubernetes.io/service-name`: the Service in the same namespace. `None`: nobody's.
    pub service: Option<Arc<str>>,
    /// `addressType`; `None` for `FQDN`.
    pub family: Option<Family>,
    /// `ports`; a null list means that every port is open, which no proxy uses: empty here.
    pub ports: Vec<SlicePort>,
    /// `endpoints`, in order.
    pub endpoints: Vec<Endpoint>,
    /// Has the label `service.kubernetes.io/headless`.
    pub headless_label: bool,
    /// Has the label `service.kubernetes.io/service-proxy-name`.
    pub proxy_name_label: bool,
}

/// One entry of a slice's `ports`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlicePort {
    /// `name`; `None` when null (then ignored), `Some("")` for the unnamed port.
    pub name: Option<Arc<str>>,
    /// `protocol`, default TCP.
    pub protocol: Protocol,
    /// `port`; `None` when null or 0 (then ignored).
    pub port: Option<u16>,
}

/// One entry of a slice's `endpoints`, with the defaults of the conditions filled in
/// (`ready` and `serving` nil mean true, `terminating` nil means false).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// `addresses[0]`; only the first counts. `None` where it is no address (`FQDN`, garbage).
    pub address: Option<IpAddr>,
    /// `conditions.ready`.
    pub ready: bool,
    /// `conditions.serving`.
    pub serving: bool,
    /// `conditions.terminating`.
    pub terminating: bool,
    /// `nodeName`.
    pub node: Option<Arc<str>>,
    /// `hints.forZones[].name`.
    pub zone_hints: Vec<Arc<str>>,
    /// `hints.forNodes[].name`.
    pub node_hints: Vec<Arc<str>>,
    /// `targetRef.name` where it is a Pod; for people.
    pub pod: Option<Arc<str>>,
}
