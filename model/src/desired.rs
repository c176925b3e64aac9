//! What the API asks of this node, as a table.
//!
//! Reading order: [`rules`] (what differs by mode and version), [`ports`] (which Services and ports
//! count), [`slices`] (which endpoints belong to a port), [`usable`] (which of them are used),
//! [`node_ports`] (on which addresses), [`masquerade`], [`rows`] (what each destination gets), [`state`]
//! (the same by parts).
//! Facts: kube-proxy.md 2; what a rule does to a packet that another rule has rewritten: 3.2, 3.3,
//! 5.3 to 5.6.
//!
//! IPVS mode is not computed: its table is empty, and nothing may be judged against it.

mod masquerade;
mod node_ports;
mod ports;
mod rows;
mod rules;
mod slices;
mod state;
mod usable;

#[cfg(test)]
mod tests;

use crate::address::{Family, Frontend, Protocol, SourceClass};
use crate::name::ServiceName;
use crate::profile::{LocalDetector, ProxyMode, ProxyProfile};
use crate::service::Service;
use crate::table::{Action, Because, DesiredTable, Forwarding, Key, OneOf};
use crate::view::{ClusterView, NodeView};
use node_ports::{NodeIps, NodePorts};
use ports::PortPlan;
use rows::Rows;
use rules::{Rules, Wildcard};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

pub use state::{DesiredState, Touched, Updated, frontends};

/// What every Service address should do on this node.
///
/// Where the mode or the version is not known, every possible one's answer is accepted.
pub fn desired(view: &ClusterView, node: &NodeView, profile: &ProxyProfile) -> DesiredTable {
    over_all_rules(profile, |rules| {
        Ground::new(view, node, profile, rules).table(|_, _| ())
    })
}

/// The rows that one Service asks for, as if no other Service claimed one of its addresses.
/// Empty when there is no such Service.
pub fn desired_service(
    view: &ClusterView,
    node: &NodeView,
    profile: &ProxyProfile,
    service: &ServiceName,
) -> DesiredTable {
    let Some(service) = view.services.get(service) else {
        return DesiredTable::new();
    };
    over_all_rules(profile, |rules| {
        Ground::new(view, node, profile, rules).table_of(service)
    })
}

/// What the health check port of a Service should count: the distinct addresses of its ready
/// endpoints on this node, by family, since each family has its own server (kube-proxy.md 2.7).
/// A family that the Service does not have is absent.
pub fn health_check_ports(
    view: &ClusterView,
    node: &NodeView,
    profile: &ProxyProfile,
) -> BTreeMap<(ServiceName, u16), BTreeMap<Family, usize>> {
    let minor = *profile.minors().end();
    let mode = profile
        .mode
        .as_ref()
        .map_or(ProxyMode::Iptables, |m| m.value);
    let ground = Ground::new(
        view,
        node,
        profile,
        Rules::of(mode, minor, &profile.config.value),
    );
    let mut all = BTreeMap::new();
    for service in view.services.values() {
        let Some(port) = ports::health_check_port(service) else {
            continue;
        };
        let mut counts = BTreeMap::new();
        for plan in ports::plans(&ground, service) {
            let ready: &mut BTreeSet<IpAddr> = counts.entry(plan.family).or_default();
            ready.extend(plan.local_ready.iter().copied());
        }
        if !counts.is_empty() {
            let counts = counts
                .into_iter()
                .map(|(family, ips)| (family, ips.len()))
                .collect();
            all.insert((service.name.clone(), port), counts);
        }
    }
    all
}

/// What in kube-proxy's configuration contradicts the cluster, one sentence each: its node name is
/// no Node's, or another one's, so that it takes no endpoint, or the wrong ones, for local (2.3).
pub fn configuration_problems(
    view: &ClusterView,
    node: &NodeView,
    profile: &ProxyProfile,
) -> Vec<String> {
    let Some(name) = profile.config.value.node_name.as_deref() else {
        return Vec::new();
    };
    if name == &*node.name.0 || view.nodes.is_empty() {
        return Vec::new();
    }
    let known = view.nodes.keys().any(|n| &*n.0 == name);
    let problem = if known {
        format!(
            "kube-proxy calls this node {name:?}, which is another Node; this one is {:?}",
            &*node.name.0
        )
    } else {
        format!(
            "kube-proxy calls this node {name:?}, which names no known Node; this one is {:?}, so \
             kube-proxy takes none of its endpoints for local",
            &*node.name.0
        )
    };
    vec![problem]
}

/// Merges the tables of every mode and version that may be running.
fn over_all_rules(profile: &ProxyProfile, table: impl Fn(Rules) -> DesiredTable) -> DesiredTable {
    let modes = match &profile.mode {
        Some(mode) => vec![mode.value],
        None => vec![ProxyMode::Iptables, ProxyMode::Nftables],
    };
    let mut merged: Option<DesiredTable> = None;
    for mode in modes {
        let mut of_mode: Option<DesiredTable> = None;
        for rules in Rules::possible(mode, profile) {
            of_mode = Some(either(of_mode, table(rules), Because::UnknownVersion));
        }
        if let Some(of_mode) = of_mode {
            merged = Some(either(merged, of_mode, Because::UnknownConfiguration));
        }
    }
    merged.unwrap_or_default()
}

/// A table that accepts what either accepts. A key that one of them lacks is left alone there.
fn either(first: Option<DesiredTable>, second: DesiredTable, why: Because) -> DesiredTable {
    let Some(mut table) = first else {
        return second;
    };
    let left_alone = || Forwarding::without_backends(None, Action::None);
    for (key, one_of) in table.iter_mut() {
        if !second.contains_key(key) {
            one_of.or(left_alone(), why);
        }
    }
    for (key, other) in second {
        match table.entry(key) {
            Entry::Vacant(place) => {
                let mut other = other;
                other.or(left_alone(), why);
                place.insert(other);
            }
            Entry::Occupied(mut place) => {
                for answer in other.any_of {
                    let why = if other.because == Because::Certain {
                        why
                    } else {
                        other.because
                    };
                    place.get_mut().or(answer, why);
                }
            }
        }
    }
    table
}

/// What the rows of all Services have in common, under one version's rules.
struct Ground<'a> {
    view: &'a ClusterView,
    profile: &'a ProxyProfile,
    rules: Rules,
    /// kube-proxy's own name of the node.
    own_name: Arc<str>,
    /// The zone, where kube-proxy's Node is known; else every zone is possible.
    zone: Zone,
    /// Addresses on the node's links.
    addresses: HashSet<IpAddr>,
    /// Those of links but `kube-ipvs0`.
    elsewhere: HashSet<IpAddr>,
    node_ips: NodeIps,
    node_ports: BTreeMap<Family, NodePorts>,
}

/// What is known of the zone that kube-proxy works with.
enum Zone {
    Known(Option<Arc<str>>),
    /// Its Node is not in the view.
    Unknown,
}

/// One endpoint, as a hairpin rule names it.
type Hairpin = (IpAddr, u16, Protocol);

/// Endpoints that have a hairpin rule although a Service does not call them local: in the nftables
/// mode of 1.36+ one set serves all Services (kube-proxy.md 5.4). With the number of Services that
/// call them local, never 0. Empty where it does not matter.
type Hairpins = HashMap<Hairpin, usize>;

impl<'a> Ground<'a> {
    fn new(
        view: &'a ClusterView,
        node: &'a NodeView,
        profile: &'a ProxyProfile,
        rules: Rules,
    ) -> Ground<'a> {
        let own_name = profile
            .config
            .value
            .node_name
            .clone()
            .unwrap_or_else(|| node.name.0.clone());
        let own = view
            .nodes
            .iter()
            .find(|(n, _)| n.0 == own_name)
            .map(|(_, node)| node);
        // The agent's own Node is known and kube-proxy's is another name's: kube-proxy finds none.
        let finds_none = own.is_none() && view.nodes.contains_key(&node.name);
        let zone = match own {
            Some(own) => Zone::Known(own.zone.clone()),
            None if finds_none => Zone::Known(None),
            None => Zone::Unknown,
        };
        let node_ips = NodeIps::of(own, finds_none, profile.config.value.bind_address);
        let node_ports = Family::ALL
            .into_iter()
            .map(|f| {
                (
                    f,
                    NodePorts::of(f, node, &rules, &profile.config.value, &node_ips),
                )
            })
            .collect();
        Ground {
            view,
            profile,
            rules,
            own_name,
            zone,
            addresses: node.addresses.iter().map(|a| a.address).collect(),
            elsewhere: {
                let others = node.addresses.iter().filter(|a| &*a.link != "kube-ipvs0");
                others.map(|a| a.address).collect()
            },
            node_ips,
            node_ports,
        }
    }

    /// Is it an address of the node?
    fn on_node(&self, address: IpAddr) -> bool {
        address.is_loopback() || self.addresses.contains(&address)
    }

    /// Can kube-proxy tell a Pod's packet in this family?
    fn has_detector(&self, family: Family) -> bool {
        match &self.profile.config.value.detector {
            LocalDetector::None => false,
            LocalDetector::Bridge(_) | LocalDetector::InterfacePrefix(_) => true,
            detector @ LocalDetector::Cidr(_) => detector.cidr(family).is_some(),
        }
    }

    /// The table of all Services. `note` is given each service port with its rows.
    fn table(&self, mut note: impl FnMut(&PortPlan, &Rows)) -> DesiredTable {
        let mut table = DesiredTable::new();
        let mut add = |plan: &PortPlan, hairpins: &Hairpins| {
            let rows = rows::of_plan(self, plan, hairpins);
            note(plan, &rows);
            for (key, row) in rows {
                self.claim(&mut table, key, row);
            }
            self.add_wildcard(&mut table, plan);
        };
        if self.rules.hairpin_local_only {
            // What one Service calls local matters to the rows of all.
            let plans: Vec<PortPlan> = self.plans().collect();
            let hairpins = self.hairpins(&plans);
            plans.iter().for_each(|plan| add(plan, &hairpins));
        } else {
            let none = Hairpins::new();
            self.plans().for_each(|plan| add(&plan, &none));
        }
        self.add_unallocated(&mut table);
        table
    }

    /// Those of all Services, in order of their names.
    fn plans(&self) -> impl Iterator<Item = PortPlan<'a>> {
        let services = self.view.services.values();
        services.flat_map(|s| ports::plans(self, s))
    }

    fn table_of(&self, service: &'a Service) -> DesiredTable {
        let plans = ports::plans(self, service);
        let remote = |p: &PortPlan| {
            p.selections
                .any_of
                .iter()
                .any(|s| s.cluster.iter().any(|target| !target.local))
        };
        // Other Services matter only for an endpoint that this one does not call local.
        let hairpins = if self.rules.hairpin_local_only && plans.iter().any(remote) {
            self.hairpins(&self.plans().collect::<Vec<_>>())
        } else {
            Hairpins::new()
        };
        let mut table = DesiredTable::new();
        for plan in &plans {
            for (key, row) in rows::of_plan(self, plan, &hairpins) {
                self.claim(&mut table, key, row);
            }
            self.add_wildcard(&mut table, plan);
        }
        table
    }

    /// The endpoints that all these plans call local, where that matters to others.
    fn hairpins(&self, plans: &[PortPlan]) -> Hairpins {
        let mut all = Hairpins::new();
        for of_service in plans.chunk_by(|a, b| a.service.name == b.service.name) {
            for endpoint in self.calls_local(of_service) {
                *all.entry(endpoint).or_default() += 1;
            }
        }
        all
    }

    /// The endpoints that the plans of one Service call local, where that matters to others.
    fn calls_local(&self, plans: &[PortPlan]) -> BTreeSet<Hairpin> {
        let mut all = BTreeSet::new();
        if !self.rules.hairpin_local_only {
            return all;
        }
        for plan in plans {
            for selection in &plan.selections.any_of {
                let targets = selection.cluster.iter().chain(&selection.local);
                all.extend(targets.filter(|t| t.local).map(|target| {
                    let (ip, port) = (target.address.ip(), target.address.port());
                    (ip, port, plan.port.protocol)
                }));
            }
        }
        all
    }

    /// Adds a row. Where another one claims the key, which wins follows the order of a map (3.9,
    /// 5.8), with one exception: the rule that forwards comes before the rule that refuses, since a
    /// packet that was translated no longer has the address that is refused.
    fn claim(&self, table: &mut DesiredTable, key: Key, mut row: OneOf<Forwarding>) {
        let mut place = match table.entry(key) {
            Entry::Vacant(place) => {
                place.insert(row);
                return;
            }
            Entry::Occupied(place) => place,
        };
        let strength = |row: &OneOf<Forwarding>| {
            row.any_of
                .iter()
                .map(|f| match f.action {
                    Action::Forward => 2,
                    Action::None => 0,
                    _ => 1,
                })
                .fold((2, 0), |(low, high), s| (low.min(s), high.max(s)))
        };
        // In IPVS mode both Services write the real servers of one virtual server.
        let translated_last = (self.rules.check_before_nat && key.1 == SourceClass::Node)
            || (self.rules.ipvs() && !key.0.is_wildcard());
        let refuses_all = |row: &OneOf<Forwarding>| {
            row.any_of
                .iter()
                .all(|f| matches!(f.action, Action::Reject | Action::None))
        };
        let old = place.get_mut();
        if !translated_last {
            if strength(old).0 == 2 && refuses_all(&row) {
                return;
            }
            if strength(&row).0 == 2 && refuses_all(old) {
                *old = row;
                return;
            }
        }
        if strength(&row).1 == 0 {
            return;
        }
        if strength(old).1 == 0 {
            std::mem::swap(old, &mut row);
            return;
        }
        for answer in row.any_of {
            old.or(answer, Because::Conflict);
        }
    }

    /// Other ports of cluster IPs are refused in nftables mode (5.5, `cluster-ips-check`), by rules
    /// in the forward and output hooks, so not for a cluster IP that sits on a link of the node
    /// (left over from IPVS mode) and is asked from elsewhere. In IPVS mode those of every address that
    /// kube-proxy binds are, in the input hook (`KUBE-IPVS-FILTER`). No other row is for a whole address.
    fn add_wildcard(&self, table: &mut DesiredTable, plan: &PortPlan) {
        match self.rules.wildcard {
            Wildcard::Never => return,
            Wildcard::Bound => return self.add_bound(table, plan),
            Wildcard::Always | Wildcard::Perhaps => {}
        }
        for source in SourceClass::ALL {
            let key = (Frontend::Address(plan.cluster_ip), source);
            if source != SourceClass::Node && self.on_node(plan.cluster_ip) {
                continue;
            }
            table.entry(key).or_insert_with(|| {
                let mut row = OneOf::certain(Forwarding::without_backends(None, Action::Reject));
                if self.rules.wildcard == Wildcard::Perhaps {
                    let none = Forwarding::without_backends(None, Action::None);
                    row.or(none, Because::UnknownVersion);
                }
                row
            });
        }
    }

    /// External addresses are bound unless they are on another link of the node.
    fn add_bound(&self, table: &mut DesiredTable, plan: &PortPlan) {
        let external = plan.external_ips.iter().chain(&plan.vips);
        let bound = external.filter(|ip| !self.elsewhere.contains(ip));
        for ip in std::iter::once(&plan.cluster_ip).chain(bound) {
            for source in SourceClass::ALL {
                let refused = Forwarding::without_backends(None, Action::Reject);
                let key = (Frontend::Address(*ip), source);
                table.entry(key).or_insert_with(|| OneOf::certain(refused));
            }
        }
    }

    /// Unallocated cluster IPs are dropped in nftables mode if the ServiceCIDRs were known at the
    /// last full sync.
    fn add_unallocated(&self, table: &mut DesiredTable) {
        if matches!(self.rules.wildcard, Wildcard::Never | Wildcard::Bound) {
            return;
        }
        for cidr in self.view.service_cidrs.iter().flatten() {
            for source in SourceClass::ALL {
                let mut row = OneOf::certain(Forwarding::without_backends(None, Action::Drop));
                let none = Forwarding::without_backends(None, Action::None);
                row.or(none, Because::FullSyncOnly);
                table.insert((Frontend::Prefix(cidr.trunc()), source), row);
            }
        }
    }
}
