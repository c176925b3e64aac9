//! The desired table kept, and brought up to date by the Services that were touched.
//!
//! What a row depends on besides its Service: who else claims the frontend (`owners`), and in
//! nftables mode of 1.36+ whether any Service calls an endpoint local (`hairpins`). Everything else
//! is the node's, and another node makes another table.

use super::rules::{Rules, Wildcard};
use super::{Ground, Hairpins, PortPlan, desired, ports, rows};
use crate::address::{Frontend, Protocol, SourceClass};
use crate::endpoint::EndpointSlice;
use crate::name::{NodeName, ServiceName};
use crate::profile::{ProxyMode, ProxyProfile};
use crate::table::DesiredTable;
use crate::view::{Change, ClusterView, Node, NodeView};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

/// [`desired`] of the last view, and what is needed to change it by parts.
#[derive(Debug, Default)]
pub struct DesiredState {
    table: DesiredTable,
    basis: Option<Basis>,
    /// Who claims a frontend.
    owners: BTreeMap<Frontend, BTreeSet<ServiceName>>,
    /// What a Service claims, and which of its endpoints it calls local.
    asks: BTreeMap<ServiceName, Asks>,
    /// How many Services call an endpoint local; empty where that does not matter.
    hairpins: HashMap<Endpoint, usize>,
}

type Endpoint = (IpAddr, u16, Protocol);

/// What every row depends on.
#[derive(Debug, PartialEq)]
struct Basis {
    node: NodeView,
    profile: ProxyProfile,
    nodes: BTreeMap<NodeName, Node>,
    service_cidrs: Option<Vec<IpNet>>,
}

#[derive(Debug, Default, PartialEq)]
struct Asks {
    frontends: BTreeSet<Frontend>,
    local: BTreeSet<Endpoint>,
}

/// What an update changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Updated {
    /// Everything may be another.
    Whole,
    /// At most the rows of these.
    Frontends(BTreeSet<Frontend>),
}

/// The Services whose rows a change may touch: call it *before* the view takes the change in.
/// `None`: all.
pub fn touched(change: &Change, view: &ClusterView) -> Option<Vec<ServiceName>> {
    let owner = |slice: &EndpointSlice| {
        slice.service.as_ref().map(|name| ServiceName {
            namespace: slice.name.namespace.clone(),
            name: name.clone(),
        })
    };
    Some(match change {
        Change::Service(service) => vec![service.name.clone()],
        Change::ServiceGone(name) => vec![name.clone()],
        Change::Slice(slice) => {
            let before = view.slices.get(&slice.name).and_then(owner);
            before.into_iter().chain(owner(slice)).collect()
        }
        Change::SliceGone(name) => view.slices.get(name).and_then(owner).into_iter().collect(),
        // What every row depends on is compared anyway.
        Change::Node(_) | Change::NodeGone(_) | Change::ServiceCidrs(_) | Change::Complete => {
            Vec::new()
        }
        Change::Replace { .. } => return None,
    })
}

impl DesiredState {
    /// The table as of the last update.
    pub fn table(&self) -> &DesiredTable {
        &self.table
    }

    /// Makes the table that of `view`, `node` and `profile`. `touched`: every Service that something
    /// was said about since the last update, as [`touched`] tells; `None`: any.
    pub fn update(
        &mut self,
        view: &ClusterView,
        node: &NodeView,
        profile: &ProxyProfile,
        touched: Option<&BTreeSet<ServiceName>>,
    ) -> Updated {
        let same = self.basis.as_ref().is_some_and(|b| {
            b.node == *node
                && b.profile == *profile
                && b.nodes == view.nodes
                && b.service_cidrs == view.service_cidrs
        });
        match (touched, only_rules(profile)) {
            (Some(touched), Some(rules)) if same => {
                let ground = Ground::new(view, node, profile, rules);
                Updated::Frontends(self.change(&ground, touched))
            }
            (_, rules) => {
                *self = DesiredState {
                    table: desired(view, node, profile),
                    basis: Some(Basis {
                        node: node.clone(),
                        profile: profile.clone(),
                        nodes: view.nodes.clone(),
                        service_cidrs: view.service_cidrs.clone(),
                    }),
                    ..DesiredState::default()
                };
                if let Some(rules) = rules {
                    self.know(&Ground::new(view, node, profile, rules));
                }
                Updated::Whole
            }
        }
    }

    /// Who claims what, from the start.
    fn know(&mut self, ground: &Ground<'_>) {
        for name in ground.view.services.keys() {
            let asks = asks(ground, &plans(ground, name));
            self.claim(name, &asks);
            self.asks.insert(name.clone(), asks);
        }
    }

    fn claim(&mut self, name: &ServiceName, asks: &Asks) {
        for frontend in &asks.frontends {
            let owners = self.owners.entry(*frontend).or_default();
            owners.insert(name.clone());
        }
        for endpoint in &asks.local {
            *self.hairpins.entry(*endpoint).or_default() += 1;
        }
    }

    fn disclaim(&mut self, name: &ServiceName, asks: &Asks) {
        for frontend in &asks.frontends {
            if let Some(owners) = self.owners.get_mut(frontend) {
                owners.remove(name);
                if owners.is_empty() {
                    self.owners.remove(frontend);
                }
            }
        }
        for endpoint in &asks.local {
            if let Some(n) = self.hairpins.get_mut(endpoint) {
                *n -= 1;
                if *n == 0 {
                    self.hairpins.remove(endpoint);
                }
            }
        }
    }

    /// Makes the rows of the touched Services anew, and those that depend on them.
    fn change(
        &mut self,
        ground: &Ground<'_>,
        touched: &BTreeSet<ServiceName>,
    ) -> BTreeSet<Frontend> {
        let mut frontends: BTreeSet<Frontend> = BTreeSet::new();
        let mut local: BTreeSet<Endpoint> = BTreeSet::new();
        for name in touched {
            let after = asks(ground, &plans(ground, name));
            let before = self.asks.remove(name).unwrap_or_default();
            frontends.extend(before.frontends.iter().chain(&after.frontends));
            local.extend(before.local.symmetric_difference(&after.local));
            self.disclaim(name, &before);
            self.claim(name, &after);
            if after != Asks::default() {
                self.asks.insert(name.clone(), after);
            }
        }
        if !local.is_empty() {
            frontends.extend(self.users(ground, &local));
        }
        let owners: BTreeSet<&ServiceName> = frontends
            .iter()
            .filter_map(|f| self.owners.get(f))
            .flatten()
            .collect();
        let hairpins: Hairpins = self.hairpins.keys().copied().collect();
        let mut fresh = DesiredTable::new();
        let mut all: Vec<PortPlan<'_>> = Vec::new();
        // In the order of the whole: who comes first may matter.
        for name in owners {
            all.extend(plans(ground, name));
        }
        for plan in &all {
            for (key, row) in rows::of_plan(ground, plan, &hairpins) {
                if frontends.contains(&key.0) {
                    ground.claim(&mut fresh, key, row);
                }
            }
        }
        all.retain(|plan| frontends.contains(&Frontend::Address(plan.cluster_ip)));
        ground.add_wildcards(&mut fresh, &all);
        for frontend in &frontends {
            for source in SourceClass::ALL {
                let key = (*frontend, source);
                match fresh.remove(&key) {
                    Some(row) => self.table.insert(key, row),
                    None => self.table.remove(&key),
                };
            }
        }
        frontends
    }

    /// The frontends of all Services that send to one of these endpoints. Rare: a local endpoint
    /// came or went.
    fn users(&self, ground: &Ground<'_>, endpoints: &BTreeSet<Endpoint>) -> BTreeSet<Frontend> {
        let addresses: BTreeSet<IpAddr> = endpoints.iter().map(|(ip, ..)| *ip).collect();
        let slices = ground.view.slices.values();
        let using = slices.filter(|slice| {
            let mut all = slice.endpoints.iter().filter_map(|e| e.address);
            all.any(|ip| addresses.contains(&ip))
        });
        let names = using.filter_map(|slice| {
            Some(ServiceName {
                namespace: slice.name.namespace.clone(),
                name: slice.service.clone()?,
            })
        });
        names
            .filter_map(|name| self.asks.get(&name))
            .flat_map(|asks| asks.frontends.iter().copied())
            .collect()
    }
}

/// The one set of rules that can be running. Several are merged as whole tables.
fn only_rules(profile: &ProxyProfile) -> Option<Rules> {
    let mode = profile.mode.as_ref()?.value;
    if mode == ProxyMode::Ipvs {
        return None;
    }
    match Rules::possible(mode, profile).as_slice() {
        [rules] => Some(*rules),
        _ => None,
    }
}

fn plans<'a>(ground: &Ground<'a>, name: &ServiceName) -> Vec<PortPlan<'a>> {
    let view: &'a ClusterView = ground.view;
    view.services
        .get(name)
        .map(|service| ports::plans(ground, service))
        .unwrap_or_default()
}

fn asks(ground: &Ground<'_>, plans: &[PortPlan<'_>]) -> Asks {
    let none = Hairpins::new();
    let mut frontends: BTreeSet<Frontend> = plans
        .iter()
        .flat_map(|plan| rows::of_plan(ground, plan, &none))
        .map(|((frontend, _), _)| frontend)
        .collect();
    if ground.rules.wildcard != Wildcard::Never {
        frontends.extend(plans.iter().map(|p| Frontend::Address(p.cluster_ip)));
    }
    Asks {
        frontends,
        local: ground.hairpins(plans).into_iter().collect(),
    }
}
