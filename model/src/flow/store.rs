//! Everything the API said that the debugging flow needs, with stamps of when it began to matter.
//!
//! Age runs per fact: a Pod carries when it last changed in a way that its endpoints follow, and when
//! its endpoints last changed in any slice, so that a Service that changes every second does not hide
//! one Pod that has been missing for an hour.

use super::limits;
use super::objects::{NodeObject, Pod, ServiceObject, SliceObject};
use crate::address::Protocol;
use crate::endpoint::{EndpointSlice, SliceName};
use crate::name::{NodeName, ServiceName};
use crate::service::{Service, ServiceType};
use crate::time::{Mono, Now};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::ops::Bound;
use std::sync::Arc;

/// A kind of object that is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Services.
    Services,
    /// EndpointSlices.
    Slices,
    /// Pods.
    Pods,
    /// Nodes.
    Nodes,
}

impl Kind {
    /// All of them: without one, nothing is judged.
    pub const ALL: [Kind; 4] = [Kind::Services, Kind::Slices, Kind::Pods, Kind::Nodes];

    /// The API's word.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Services => "Services",
            Kind::Slices => "EndpointSlices",
            Kind::Pods => "Pods",
            Kind::Nodes => "Nodes",
        }
    }
}

/// One thing the API said.
#[derive(Clone, Debug)]
pub enum Change {
    /// A Service exists with this content.
    Service(ServiceObject),
    /// A Service is gone.
    ServiceGone(ServiceName),
    /// A slice exists with this content.
    Slice(SliceObject),
    /// A slice is gone.
    SliceGone(SliceName),
    /// A Pod exists with this content.
    Pod(Pod),
    /// A Pod is gone: namespace and name.
    PodGone(Arc<str>, Arc<str>),
    /// A Node exists with this content.
    Node(NodeObject),
    /// A Node is gone.
    NodeGone(NodeName),
    /// The list of this kind is whole, or its watch has just said something.
    Alive(Kind),
    /// This kind cannot be followed at present, with the reason.
    Lost(Kind, String),
}

/// An address, protocol and port that a datapath programs; no address: a node port, on every node.
pub type Claim = (Option<IpAddr>, Protocol, u16);

/// What a Service claims, and whether it is at its ClusterIP. What nobody programs claims nothing.
pub fn claims(service: &Service) -> Vec<(Claim, bool)> {
    let headless = &*service.cluster_ip == "None" || service.headless_label;
    if service.kind == ServiceType::ExternalName || headless || service.proxy_name_label {
        return Vec::new();
    }
    let ingress = service.ingress.iter().filter(|i| !i.proxy_mode);
    let outside = service
        .external_ips
        .iter()
        .copied()
        .chain(ingress.map(|i| i.address));
    let addresses: Vec<(IpAddr, bool)> = service
        .cluster_ips
        .iter()
        .map(|a| (*a, true))
        .chain(outside.map(|a| (a, false)))
        .collect();
    let mut all = Vec::new();
    for port in &service.ports {
        for (address, cluster) in &addresses {
            all.push(((Some(*address), port.protocol, port.port), *cluster));
        }
        if let Some(node_port) = port.node_port {
            all.push(((None, port.protocol, node_port), false));
        }
    }
    all
}

/// A Pod and its stamps.
#[derive(Clone, Debug)]
pub struct KnownPod {
    /// The Pod.
    pub pod: Pod,
    /// When it last changed in a way that its endpoints follow, as it was learnt.
    pub changed: Mono,
    /// When its endpoints last changed in any slice; the beginning where they never did.
    pub entry: Mono,
}

/// A Service and its stamp.
#[derive(Clone, Debug)]
pub struct KnownService {
    /// The Service.
    pub object: ServiceObject,
    /// When it was first learnt, or last changed.
    pub changed: Mono,
}

/// Everything the API said.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    services: BTreeMap<ServiceName, KnownService>,
    claims: BTreeMap<Claim, BTreeSet<ServiceName>>,
    slices: BTreeMap<SliceName, SliceObject>,
    slices_of: BTreeMap<ServiceName, BTreeSet<SliceName>>,
    pods: BTreeMap<Arc<str>, BTreeMap<Arc<str>, KnownPod>>,
    nodes: BTreeMap<NodeName, (NodeObject, Mono)>,
    absent: BTreeMap<(Arc<str>, Arc<str>), Mono>,
    absent_order: VecDeque<(Arc<str>, Arc<str>)>,
    orphaned: BTreeMap<ServiceName, Mono>,
    alive: BTreeMap<Kind, Now>,
    lost: BTreeMap<Kind, String>,
    /// When every kind had been listed.
    complete: Option<Mono>,
    /// Facts are old by definition (manifests): no lateness has to be waited for.
    pub settled_facts: bool,
    /// Kinds of which the manifests hold no object: of them nothing is known.
    pub not_given: BTreeSet<Kind>,
}

impl Objects {
    /// Takes in one change, learnt at `now`.
    pub fn apply(&mut self, change: Change, now: Now) {
        let at = now.mono;
        match change {
            Change::Service(object) => {
                let name = object.service.name.clone();
                let old = self.services.get(&name);
                let changed = match old {
                    Some(old) if same_to_the_controller(&old.object, &object) => old.changed,
                    _ => at,
                };
                self.orphaned.remove(&name);
                for (claim, _) in claims(&object.service) {
                    self.claims.entry(claim).or_default().insert(name.clone());
                }
                let known = KnownService { object, changed };
                if let Some(old) = self.services.insert(name.clone(), known) {
                    self.unclaim(&name, &old.object.service);
                }
            }
            Change::ServiceGone(name) => {
                if let Some(old) = self.services.remove(&name) {
                    self.unclaim(&name, &old.object.service);
                    if self.slices_of.contains_key(&name) {
                        self.orphaned.insert(name, at);
                    }
                }
            }
            Change::Slice(object) => self.put_slice(object, at),
            Change::SliceGone(name) => self.drop_slice(&name, at),
            Change::Pod(pod) => self.put_pod(pod, at),
            Change::PodGone(namespace, name) => self.drop_pod(namespace, name, at),
            Change::Node(object) => {
                let name = object.node.name.clone();
                let seen = self.nodes.get(&name).map_or(at, |(_, seen)| *seen);
                self.nodes.insert(name, (object, seen));
            }
            Change::NodeGone(name) => {
                self.nodes.remove(&name);
            }
            Change::Alive(kind) => {
                self.alive.insert(kind, now);
                self.lost.remove(&kind);
                if self.complete.is_none() && self.alive.len() == Kind::ALL.len() {
                    self.complete = Some(at);
                }
            }
            Change::Lost(kind, why) => {
                self.lost.insert(kind, why);
            }
        }
    }

    /// When every kind had been listed for the first time; `None`: not yet.
    pub fn complete(&self) -> Option<Mono> {
        self.complete
    }

    /// Until when everything said is known to be current: the kind that was heard of longest ago.
    pub fn as_of(&self) -> Option<Now> {
        self.complete?;
        self.alive.values().min_by_key(|n| n.mono).copied()
    }

    /// Kinds that cannot be followed at present, with the reason.
    pub fn lost(&self) -> impl Iterator<Item = (Kind, &str)> {
        self.lost.iter().map(|(k, why)| (*k, why.as_str()))
    }

    /// A Service.
    pub fn service(&self, name: &ServiceName) -> Option<&KnownService> {
        self.services.get(name)
    }

    /// All Services, in order of their names.
    pub fn services(&self) -> impl Iterator<Item = (&ServiceName, &KnownService)> + Clone {
        self.services.iter()
    }

    /// Services that claim the same.
    pub fn claimants(&self, claim: &Claim) -> impl Iterator<Item = &ServiceName> {
        self.claims.get(claim).into_iter().flatten()
    }

    /// Services that slices name and that do not exist.
    pub fn orphans(&self) -> impl Iterator<Item = &ServiceName> {
        self.orphaned.keys()
    }

    /// The slices that the label gives to a Service, those that are being deleted left out.
    pub fn slices_of<'a>(
        &'a self,
        service: &ServiceName,
    ) -> impl Iterator<Item = &'a SliceObject> + use<'a> {
        self.slices_of
            .get(service)
            .into_iter()
            .flatten()
            .filter_map(|n| self.slices.get(n))
            .filter(|s| !s.deleted)
    }

    /// All Pods of a namespace, in order of their names.
    pub fn pods(&self, namespace: &str) -> impl Iterator<Item = &KnownPod> + Clone {
        self.pods
            .get(namespace)
            .into_iter()
            .flat_map(|p| p.values())
    }

    /// One Pod.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<&KnownPod> {
        self.pods.get(namespace)?.get(name)
    }

    /// Namespaces that have Pods.
    pub fn namespaces(&self) -> impl Iterator<Item = &Arc<str>> {
        self.pods.keys()
    }

    /// Since when a Pod that is not there has been known not to be: it went, or a slice named it. `None`
    /// where that was too long ago to be remembered.
    pub fn absent_since(&self, namespace: &Arc<str>, name: &Arc<str>) -> Option<Mono> {
        self.absent.get(&(namespace.clone(), name.clone())).copied()
    }

    /// Since when slices have named a Service that does not exist.
    pub fn orphaned_since(&self, service: &ServiceName) -> Option<Mono> {
        self.orphaned.get(service).copied()
    }

    /// A Node, and since when it has been known.
    pub fn node(&self, name: &str) -> Option<&(NodeObject, Mono)> {
        self.nodes.get(&NodeName::from(name))
    }

    /// All Nodes, in order of their names.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeObject> {
        self.nodes.values().map(|(n, _)| n)
    }

    /// How many Services, slices, Pods and Nodes are known.
    pub fn counts(&self) -> [(Kind, usize); 4] {
        [
            (Kind::Services, self.services.len()),
            (Kind::Slices, self.slices.len()),
            (Kind::Pods, self.pods.values().map(BTreeMap::len).sum()),
            (Kind::Nodes, self.nodes.len()),
        ]
    }

    /// Takes back what a Service claimed and does not (any more).
    fn unclaim(&mut self, name: &ServiceName, old: &Service) {
        let still: Vec<Claim> = self
            .services
            .get(name)
            .map(|s| claims(&s.object.service))
            .unwrap_or_default()
            .into_iter()
            .map(|(claim, _)| claim)
            .collect();
        for (claim, _) in claims(old) {
            if still.contains(&claim) {
                continue;
            }
            if let Some(all) = self.claims.get_mut(&claim) {
                all.remove(name);
                if all.is_empty() {
                    self.claims.remove(&claim);
                }
            }
        }
    }

    fn put_pod(&mut self, mut pod: Pod, at: Mono) {
        let (namespace, name) = (pod.namespace.clone(), pod.name.clone());
        let key = (namespace.clone(), name.clone());
        if self.absent.remove(&key).is_some() {
            self.absent_order.retain(|k| *k != key);
        }
        let all = self.pods.entry(namespace).or_default();
        share(&mut pod, all);
        let old = all.get(&name);
        let changed = match old {
            Some(old) if same_endpoint(&old.pod, &pod) => old.changed,
            _ => at,
        };
        let entry = old.map_or(Mono(0), |o| o.entry);
        all.insert(
            name,
            KnownPod {
                pod,
                changed,
                entry,
            },
        );
    }

    fn drop_pod(&mut self, namespace: Arc<str>, name: Arc<str>, at: Mono) {
        let Some(all) = self.pods.get_mut(&namespace) else {
            return;
        };
        if all.remove(&name).is_none() {
            return;
        }
        if all.is_empty() {
            self.pods.remove(&namespace);
        }
        self.is_absent(namespace, name, at);
    }

    fn is_absent(&mut self, namespace: Arc<str>, name: Arc<str>, at: Mono) {
        let key = (namespace, name);
        if self.absent.contains_key(&key) {
            return;
        }
        self.absent.insert(key.clone(), at);
        self.absent_order.push_back(key);
        if self.absent_order.len() > limits::GONE_PODS
            && let Some(oldest) = self.absent_order.pop_front()
        {
            self.absent.remove(&oldest);
        }
    }

    fn put_slice(&mut self, object: SliceObject, at: Mono) {
        let name = object.slice.name.clone();
        let old = self.remove_slice(&name);
        self.stamp(old.as_ref().map(|o| &o.slice), Some(&object.slice), at);
        for endpoint in &object.slice.endpoints {
            if let Some(pod) = &endpoint.pod
                && self.pod(&name.namespace, pod).is_none()
            {
                self.is_absent(name.namespace.clone(), pod.clone(), at);
            }
        }
        if let Some(owner) = owner_of(&object.slice) {
            if !self.services.contains_key(&owner) {
                self.orphaned.entry(owner.clone()).or_insert(at);
            }
            self.slices_of
                .entry(owner)
                .or_default()
                .insert(name.clone());
        }
        self.slices.insert(name, object);
    }

    fn drop_slice(&mut self, name: &SliceName, at: Mono) {
        let old = self.remove_slice(name);
        self.stamp(old.as_ref().map(|o| &o.slice), None, at);
    }

    fn remove_slice(&mut self, name: &SliceName) -> Option<SliceObject> {
        let old = self.slices.remove(name)?;
        if let Some(owner) = owner_of(&old.slice)
            && let Some(names) = self.slices_of.get_mut(&owner)
        {
            names.remove(name);
            if names.is_empty() {
                self.slices_of.remove(&owner);
                self.orphaned.remove(&owner);
            }
        }
        Some(old)
    }

    /// Stamps the Pods whose endpoints are not the same in both.
    fn stamp(&mut self, old: Option<&EndpointSlice>, new: Option<&EndpointSlice>, at: Mono) {
        let Some(any) = old.or(new) else { return };
        let Some(pods) = self.pods.get_mut(&any.name.namespace) else {
            return;
        };
        let entries = |slice: Option<&EndpointSlice>| {
            let mut all: BTreeMap<Arc<str>, Vec<_>> = BTreeMap::new();
            for e in slice.into_iter().flat_map(|s| &s.endpoints) {
                if let Some(pod) = &e.pod {
                    let what = (e.address, e.ready, e.serving, e.terminating);
                    all.entry(pod.clone()).or_default().push(what);
                }
            }
            all
        };
        let same_ports = old.map(|s| (&s.ports, &s.service)) == new.map(|s| (&s.ports, &s.service));
        let (old, new) = (entries(old), entries(new));
        let names: BTreeSet<&Arc<str>> = old.keys().chain(new.keys()).collect();
        for name in names {
            if (!same_ports || old.get(name) != new.get(name))
                && let Some(known) = pods.get_mut(name)
            {
                known.entry = at;
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

/// Pods of one owner are neighbours by name: equal labels and ports are kept once.
fn share(pod: &mut Pod, all: &BTreeMap<Arc<str>, KnownPod>) {
    let after = (Bound::Included(pod.name.clone()), Bound::Unbounded);
    let neighbours = all
        .range(after)
        .next()
        .into_iter()
        .chain(all.range(..pod.name.clone()).next_back());
    for (_, known) in neighbours {
        let other = &known.pod;
        if other.labels == pod.labels {
            pod.labels = other.labels.clone();
        }
        if other.ports == pod.ports {
            pod.ports = other.ports.clone();
        }
    }
}

/// Would the slice controller do the same for both?
fn same_to_the_controller(a: &ServiceObject, b: &ServiceObject) -> bool {
    let (s, t) = (&a.service, &b.service);
    a.selector == b.selector
        && a.target_ports == b.target_ports
        && a.publish_not_ready == b.publish_not_ready
        && s.uid == t.uid
        && s.kind == t.kind
        && s.ports == t.ports
        && s.ip_families == t.ip_families
        && s.ingress == t.ingress
        && s.ingress_hostnames == t.ingress_hostnames
}

/// Does it make the same endpoints?
fn same_endpoint(a: &Pod, b: &Pod) -> bool {
    a.labels == b.labels
        && a.node == b.node
        && a.addresses == b.addresses
        && a.ended() == b.ended()
        && a.deleted == b.deleted
        && a.ready == b.ready
        && a.ports == b.ports
}
