//! What was learnt from the API, and from the node itself.

use crate::endpoint::{EndpointSlice, SliceName};
use crate::name::{NodeName, ServiceName};
use crate::service::Service;
use crate::time::Now;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// core/v1 Node, trimmed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// `metadata.name`.
    pub name: NodeName,
    /// `status.addresses` of type InternalIP, in order.
    pub internal_ips: Vec<IpAddr>,
    /// `status.addresses` of type ExternalIP, in order.
    pub external_ips: Vec<IpAddr>,
    /// Label `topology.kubernetes.io/zone`; absent or empty is `None`.
    pub zone: Option<Arc<str>>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<IpNet>,
    /// Has a deletion timestamp, or the taint `ToBeDeletedByClusterAutoscaler`.
    pub going: bool,
    /// Creation time, milliseconds since the epoch, if known.
    pub created: Option<crate::time::Millis>,
}

/// One thing the API said.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Change {
    /// A Service exists with this content.
    Service(Service),
    /// A Service is gone.
    ServiceGone(ServiceName),
    /// An EndpointSlice exists with this content.
    Slice(EndpointSlice),
    /// An EndpointSlice is gone.
    SliceGone(SliceName),
    /// A Node exists with this content (the agent watches its own, and may learn others' names).
    Node(Node),
    /// The Node is gone.
    NodeGone(NodeName),
    /// `networking.k8s.io/v1` ServiceCIDRs: all of them, where they can be read.
    ServiceCidrs(Vec<IpNet>),
    /// Everything said so far is complete: the first list has been read.
    Complete,
    /// Replace all Services and slices by these (a new list after a gap, a re-read directory).
    Replace {
        /// All Services.
        services: Vec<Service>,
        /// All EndpointSlices.
        slices: Vec<EndpointSlice>,
    },
}

/// Everything the API said. `apply` depends on current state only: order, repetition and splitting
/// of changes do not matter to the end result, except for the stamps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClusterView {
    /// All Services.
    pub services: BTreeMap<ServiceName, Service>,
    /// All EndpointSlices.
    pub slices: BTreeMap<SliceName, EndpointSlice>,
    /// Names of the slices of each Service, by the label.
    pub slices_of: BTreeMap<ServiceName, BTreeSet<SliceName>>,
    /// Nodes learnt, by name; the agent's own among them once it is known.
    pub nodes: BTreeMap<NodeName, Node>,
    /// ServiceCIDRs, where they could be read.
    pub service_cidrs: Option<Vec<IpNet>>,
    /// The first list is complete. Before, nothing may be judged missing or stale.
    pub complete: bool,
    /// When something about this Service (itself or its slices) last changed in a way that matters.
    /// A Service that is gone keeps its stamp until [`crate::limits::GONE_STAMPS`] others followed.
    pub changed: BTreeMap<ServiceName, Now>,
    /// When anything last changed.
    pub last_change: Option<Now>,
    /// Until when the view is known to be current: last event, bookmark or re-read.
    /// Old when the API server is lost.
    pub as_of: Option<Now>,
    /// Facts are old by definition (manifests): no lateness has to be waited for.
    pub settled_facts: bool,
}

impl ClusterView {
    /// Takes in one change, learnt at `now`. An object equal to what is there changes no stamp.
    pub fn apply(&mut self, change: Change, now: Now) {
        self.as_of = Some(now);
        match change {
            Change::Service(service) => {
                if self
                    .services
                    .get(&service.name)
                    .is_none_or(|old| !same_service(old, &service))
                {
                    self.touch(&service.name, now);
                }
                self.services.insert(service.name.clone(), service);
            }
            Change::ServiceGone(name) => {
                if self.services.remove(&name).is_some() {
                    self.touch(&name, now);
                }
            }
            Change::Slice(slice) => self.put_slice(slice, now),
            Change::SliceGone(name) => self.drop_slice(&name, now),
            Change::Node(node) => {
                if self.nodes.get(&node.name) != Some(&node) {
                    self.last_change = Some(now);
                }
                self.nodes.insert(node.name.clone(), node);
            }
            Change::NodeGone(name) => {
                if self.nodes.remove(&name).is_some() {
                    self.last_change = Some(now);
                }
            }
            Change::ServiceCidrs(cidrs) => self.service_cidrs = Some(cidrs),
            Change::Complete => self.complete = true,
            Change::Replace { services, slices } => {
                let kept: BTreeSet<ServiceName> = services.iter().map(|s| s.name.clone()).collect();
                let gone: Vec<ServiceName> = self
                    .services
                    .keys()
                    .filter(|n| !kept.contains(*n))
                    .cloned()
                    .collect();
                let kept: BTreeSet<SliceName> = slices.iter().map(|s| s.name.clone()).collect();
                let gone_slices: Vec<SliceName> = self
                    .slices
                    .keys()
                    .filter(|n| !kept.contains(*n))
                    .cloned()
                    .collect();
                for name in gone {
                    self.apply(Change::ServiceGone(name), now);
                }
                for name in gone_slices {
                    self.drop_slice(&name, now);
                }
                for service in services {
                    self.apply(Change::Service(service), now);
                }
                for slice in slices {
                    self.put_slice(slice, now);
                }
            }
        }
    }

    /// The slices that the label gives to a Service, in order of their names.
    pub fn slices_of<'a>(
        &'a self,
        service: &ServiceName,
    ) -> impl Iterator<Item = &'a EndpointSlice> + use<'a> {
        self.slices_of
            .get(service)
            .into_iter()
            .flatten()
            .filter_map(|n| self.slices.get(n))
    }

    fn put_slice(&mut self, slice: EndpointSlice, now: Now) {
        let old = self.slices.get(&slice.name);
        if old.is_some_and(|old| same_slice(old, &slice)) {
            self.slices.insert(slice.name.clone(), slice);
            return;
        }
        let name = slice.name.clone();
        self.drop_slice(&name, now);
        if let Some(owner) = owner_of(&slice) {
            self.slices_of
                .entry(owner.clone())
                .or_default()
                .insert(name.clone());
            self.touch(&owner, now);
        }
        self.slices.insert(name, slice);
    }

    fn drop_slice(&mut self, name: &SliceName, now: Now) {
        let Some(old) = self.slices.remove(name) else {
            return;
        };
        let Some(owner) = owner_of(&old) else { return };
        if let Some(names) = self.slices_of.get_mut(&owner) {
            names.remove(name);
            if names.is_empty() {
                self.slices_of.remove(&owner);
            }
        }
        self.touch(&owner, now);
    }

    fn touch(&mut self, service: &ServiceName, now: Now) {
        self.last_change = Some(now);
        self.changed.insert(service.clone(), now);
        let gone: usize = self.changed.len().saturating_sub(self.services.len());
        if gone > crate::limits::GONE_STAMPS {
            let oldest = self
                .changed
                .iter()
                .filter(|(n, _)| !self.services.contains_key(*n))
                .min_by_key(|(_, t)| t.mono)
                .map(|(n, _)| n.clone());
            if let Some(name) = oldest {
                self.changed.remove(&name);
            }
        }
    }
}

fn owner_of(slice: &EndpointSlice) -> Option<ServiceName> {
    slice.service.as_ref().map(|s| ServiceName {
        namespace: slice.name.namespace.clone(),
        name: s.clone(),
    })
}

fn same_service(old: &Service, new: &Service) -> bool {
    let mut old = old.clone();
    old.resource_version = new.resource_version.clone();
    old == *new
}

fn same_slice(old: &EndpointSlice, new: &EndpointSlice) -> bool {
    let mut old = old.clone();
    old.resource_version = new.resource_version.clone();
    old == *new
}

/// An address on one of the node's links.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LocalAddress {
    /// The address.
    pub address: IpAddr,
    /// Name of the link (`eth0`).
    pub link: Arc<str>,
}

/// What the agent learnt from the node itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeView {
    /// This node.
    pub name: NodeName,
    /// Addresses on its links, loopback and `kube-ipvs0` included; sorted.
    pub addresses: Vec<LocalAddress>,
}

impl NodeView {
    /// Is it an address of one of the node's links, or in 127/8?
    pub fn is_local(&self, address: IpAddr) -> bool {
        address.is_loopback() || self.addresses.iter().any(|a| a.address == address)
    }
}
