//! What changed of the API's objects between two passes.

use ipnet::IpNet;
use model::endpoint::{EndpointSlice, SliceName};
use model::name::{NodeName, ServiceName};
use model::service::Service;
use model::time::Now;
use model::view::{ClusterView, Node};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What leads from one view to another. Of small things the whole is kept.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ViewChange {
    /// New or other Services.
    pub services: Vec<Service>,
    /// Services that are gone.
    pub services_gone: Vec<ServiceName>,
    /// New or other EndpointSlices.
    pub slices: Vec<EndpointSlice>,
    /// EndpointSlices that are gone.
    pub slices_gone: Vec<SliceName>,
    /// New or other Nodes.
    pub nodes: Vec<Node>,
    /// Nodes that are gone.
    pub nodes_gone: Vec<NodeName>,
    /// All ServiceCIDRs, where they are known.
    pub service_cidrs: Option<Vec<IpNet>>,
    /// The first list is complete.
    pub complete: bool,
    /// Services that changed, and when.
    pub changed: Vec<(ServiceName, Now)>,
    /// Services whose time of change is not kept any more.
    pub changed_gone: Vec<ServiceName>,
    /// When anything last changed.
    pub last_change: Option<Now>,
    /// Until when the view is known to be current.
    pub as_of: Option<Now>,
    /// Facts are old by definition (manifests).
    pub settled_facts: bool,
}

impl ViewChange {
    /// What leads from `old` to `new`.
    pub fn between(old: &ClusterView, new: &ClusterView) -> ViewChange {
        let (changed, changed_gone) = differs(&old.changed, &new.changed);
        let (services, services_gone) = differs(&old.services, &new.services);
        let (slices, slices_gone) = differs(&old.slices, &new.slices);
        let (nodes, nodes_gone) = differs(&old.nodes, &new.nodes);
        ViewChange {
            services: services.into_iter().map(|(_, s)| s).collect(),
            services_gone,
            slices: slices.into_iter().map(|(_, s)| s).collect(),
            slices_gone,
            nodes: nodes.into_iter().map(|(_, n)| n).collect(),
            nodes_gone,
            service_cidrs: new.service_cidrs.clone(),
            complete: new.complete,
            changed,
            changed_gone,
            last_change: new.last_change,
            as_of: new.as_of,
            settled_facts: new.settled_facts,
        }
    }

    /// Makes `view` the later one.
    pub fn apply(self, view: &mut ClusterView) {
        for name in self.services_gone {
            view.services.remove(&name);
        }
        for service in self.services {
            view.services.insert(service.name.clone(), service);
        }
        for name in self.slices_gone {
            drop_slice(view, &name);
        }
        for slice in self.slices {
            drop_slice(view, &slice.name);
            if let Some(owner) = owner_of(&slice) {
                let names = view.slices_of.entry(owner).or_default();
                names.insert(slice.name.clone());
            }
            view.slices.insert(slice.name.clone(), slice);
        }
        for name in self.nodes_gone {
            view.nodes.remove(&name);
        }
        for node in self.nodes {
            view.nodes.insert(node.name.clone(), node);
        }
        for name in self.changed_gone {
            view.changed.remove(&name);
        }
        view.changed.extend(self.changed);
        view.service_cidrs = self.service_cidrs;
        view.complete = self.complete;
        view.last_change = self.last_change;
        view.as_of = self.as_of;
        view.settled_facts = self.settled_facts;
    }
}

fn owner_of(slice: &EndpointSlice) -> Option<ServiceName> {
    slice.service.as_ref().map(|name| ServiceName {
        namespace: slice.name.namespace.clone(),
        name: name.clone(),
    })
}

fn drop_slice(view: &mut ClusterView, name: &SliceName) {
    let Some(owner) = view.slices.remove(name).as_ref().and_then(owner_of) else {
        return;
    };
    if let Some(names) = view.slices_of.get_mut(&owner) {
        names.remove(name);
        if names.is_empty() {
            view.slices_of.remove(&owner);
        }
    }
}

/// Entries that are new or others, and keys that are gone.
fn differs<K: Ord + Clone, V: PartialEq + Clone>(
    old: &BTreeMap<K, V>,
    new: &BTreeMap<K, V>,
) -> (Vec<(K, V)>, Vec<K>) {
    let there = new
        .iter()
        .filter(|(key, value)| old.get(*key) != Some(*value))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    let gone = old.keys().filter(|key| !new.contains_key(*key));
    (there, gone.cloned().collect())
}
