//! The desired table kept, and brought up to date by the Services that were touched.
//!
//! What a row depends on besides its Service: who else claims the frontend (`owners`), and in
//! nftables mode of 1.36+ whether any Service calls an endpoint local (`hairpins`). Everything else
//! is the node's, and another node makes another table.

use super::rows::Rows;
use super::rules::{Rules, Wildcard};
use super::{Ground, Hairpin, Hairpins, PortPlan, desired, ports, rows};
use crate::address::{Frontend, SourceClass};
use crate::endpoint::EndpointSlice;
use crate::limits::TOUCHED_SERVICES;
use crate::name::{NodeName, ServiceName, ServicePortName};
use crate::profile::{ProxyMode, ProxyProfile};
use crate::table::{DesiredTable, Forwarding, OneOf};
use crate::view::{Change, ClusterView, Node, NodeView};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// [`desired`] of the last view, and what is needed to change it by parts.
#[derive(Debug, Default, PartialEq)]
pub struct DesiredState {
    table: DesiredTable,
    frontends: BTreeMap<Frontend, Option<ServicePortName>>,
    basis: Option<Basis>,
    /// Who claims a frontend.
    owners: BTreeSet<(Frontend, ServiceName)>,
    /// What a Service claims, and which of its endpoints it calls local. None that has neither.
    asks: BTreeMap<ServiceName, Asks>,
    hairpins: Hairpins,
}

/// What every row depends on.
#[derive(Debug, PartialEq)]
struct Basis {
    node: NodeView,
    profile: ProxyProfile,
    nodes: BTreeMap<NodeName, Node>,
    service_cidrs: Option<Vec<IpNet>>,
}

/// Sorted, each once.
#[derive(Debug, Default, PartialEq)]
struct Asks {
    frontends: Vec<Frontend>,
    /// Empty where it does not matter to others.
    local: Vec<Hairpin>,
}

/// What an update changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Updated {
    /// Everything may be another.
    Whole,
    /// At most the rows of these.
    Frontends(BTreeSet<Frontend>),
}

/// The Services that something was said about, or their slices, since some moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Touched(Option<BTreeSet<ServiceName>>);

impl Touched {
    /// Nothing was said.
    pub fn nothing() -> Touched {
        Touched(Some(BTreeSet::new()))
    }

    /// Anything may have been said.
    pub fn anything() -> Touched {
        Touched(None)
    }

    /// Takes note of a change *before* `view` takes it in: a slice may change hands.
    pub fn note(&mut self, change: &Change, view: &ClusterView) {
        let Some(names) = &mut self.0 else { return };
        match change {
            Change::Service(service) => {
                names.insert(service.name.clone());
            }
            Change::ServiceGone(name) => {
                names.insert(name.clone());
            }
            Change::Slice(slice) => {
                names.extend(view.slices.get(&slice.name).and_then(owner));
                names.extend(owner(slice));
            }
            Change::SliceGone(name) => names.extend(view.slices.get(name).and_then(owner)),
            // What every row depends on is compared anyway.
            Change::Node(_) | Change::NodeGone(_) | Change::ServiceCidrs(_) | Change::Complete => {}
            Change::Replace { .. } => self.0 = None,
        }
        if self.0.as_ref().is_some_and(|n| n.len() > TOUCHED_SERVICES) {
            self.0 = None;
        }
    }

    /// Their names; `None`: any.
    pub fn services(&self) -> Option<&BTreeSet<ServiceName>> {
        self.0.as_ref()
    }
}

impl DesiredState {
    /// The table as of the last update.
    pub fn table(&self) -> &DesiredTable {
        &self.table
    }

    /// The table's frontends, each with the first service port that its rows name.
    pub fn frontends(&self) -> &BTreeMap<Frontend, Option<ServicePortName>> {
        &self.frontends
    }

    /// Makes the table that of `view`, `node` and `profile`. `touched`: what was said since the last
    /// update.
    pub fn update(
        &mut self,
        view: &ClusterView,
        node: &NodeView,
        profile: &ProxyProfile,
        touched: &Touched,
    ) -> Updated {
        let same = self.basis.as_ref().is_some_and(|b| {
            b.node == *node
                && b.profile == *profile
                && b.nodes == view.nodes
                && b.service_cidrs == view.service_cidrs
        });
        match (&touched.0, only_rules(profile)) {
            (Some(names), _) if same && names.is_empty() => Updated::Frontends(BTreeSet::new()),
            (Some(names), Some(rules)) if same => {
                let ground = Ground::new(view, node, profile, rules);
                Updated::Frontends(self.change(&ground, names))
            }
            (_, rules) => {
                // First the old one goes: both at once would be twice the memory.
                *self = DesiredState::default();
                *self = match rules {
                    Some(rules) => DesiredState::known(&Ground::new(view, node, profile, rules)),
                    None => DesiredState {
                        table: desired(view, node, profile),
                        ..DesiredState::default()
                    },
                };
                self.frontends = frontends(&self.table);
                self.basis = Some(Basis {
                    node: node.clone(),
                    profile: profile.clone(),
                    nodes: view.nodes.clone(),
                    service_cidrs: view.service_cidrs.clone(),
                });
                Updated::Whole
            }
        }
    }

    /// The whole table, and who claims what in it.
    fn known(ground: &Ground<'_>) -> DesiredState {
        // The plans of one Service come one after the other, in the order of the Services' names.
        let mut asks: Vec<(ServiceName, Asks)> = Vec::new();
        let table = ground.table(|plan, rows| {
            let name = &plan.service.name;
            if asks.last().is_none_or(|(last, _)| last != name) {
                asks.push((name.clone(), Asks::default()));
            }
            if let Some((_, asks)) = asks.last_mut() {
                asks.add(ground, plan, rows);
            }
        });
        let mut hairpins = Hairpins::new();
        let mut owners = Vec::new();
        for (name, asks) in &mut asks {
            asks.close();
            owners.extend(asks.frontends.iter().map(|f| (*f, name.clone())));
            for endpoint in &asks.local {
                *hairpins.entry(*endpoint).or_default() += 1;
            }
        }
        DesiredState {
            table,
            owners: owners.into_iter().collect(),
            asks: asks.into_iter().collect(),
            hairpins,
            ..DesiredState::default()
        }
    }

    fn claim(&mut self, name: &ServiceName, asks: &Asks) {
        for frontend in &asks.frontends {
            self.owners.insert((*frontend, name.clone()));
        }
        for endpoint in &asks.local {
            *self.hairpins.entry(*endpoint).or_default() += 1;
        }
    }

    fn disclaim(&mut self, name: &ServiceName, asks: &Asks) {
        for frontend in &asks.frontends {
            self.owners.remove(&(*frontend, name.clone()));
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
        let mut local: BTreeSet<Hairpin> = BTreeSet::new();
        for name in touched {
            let after = Asks::of(ground, &plans(ground, name));
            let before = self.asks.remove(name).unwrap_or_default();
            frontends.extend(before.frontends.iter().chain(&after.frontends));
            // Nearly always both are the same.
            let other = |a: &Asks, b: &Asks| -> Vec<Hairpin> {
                let missing = |e: &&Hairpin| b.local.binary_search(e).is_err();
                a.local.iter().filter(missing).copied().collect()
            };
            local.extend(other(&before, &after));
            local.extend(other(&after, &before));
            self.disclaim(name, &before);
            self.claim(name, &after);
            if after != Asks::default() {
                self.asks.insert(name.clone(), after);
            }
        }
        if !local.is_empty() {
            frontends.extend(self.users(ground, &local));
        }
        let owners: BTreeSet<&ServiceName> =
            frontends.iter().flat_map(|f| self.owners_of(f)).collect();
        let mut fresh = DesiredTable::new();
        // In the order of the whole: who comes first may matter.
        for name in owners {
            for plan in plans(ground, name) {
                for (key, row) in rows::of_plan(ground, &plan, &self.hairpins) {
                    if frontends.contains(&key.0) {
                        ground.claim(&mut fresh, key, row);
                    }
                }
                if frontends.contains(&Frontend::Address(plan.cluster_ip)) {
                    ground.add_wildcard(&mut fresh, &plan);
                }
            }
        }
        for frontend in &frontends {
            self.frontends.remove(frontend);
            for source in SourceClass::ALL {
                let key = (*frontend, source);
                match fresh.remove(&key) {
                    Some(row) => {
                        let service = service_of(&row);
                        self.frontends.entry(*frontend).or_insert(service);
                        self.table.insert(key, row);
                    }
                    None => {
                        self.table.remove(&key);
                    }
                }
            }
        }
        frontends
    }

    fn owners_of(&self, frontend: &Frontend) -> impl Iterator<Item = &ServiceName> {
        let nobody = ServiceName::new("", "");
        self.owners
            .range((*frontend, nobody)..)
            .take_while(move |(f, _)| f == frontend)
            .map(|(_, name)| name)
    }

    /// The frontends of all Services that send to one of these endpoints. Rare: a local endpoint
    /// came or went.
    fn users(&self, ground: &Ground<'_>, endpoints: &BTreeSet<Hairpin>) -> BTreeSet<Frontend> {
        let addresses: BTreeSet<IpAddr> = endpoints.iter().map(|(ip, ..)| *ip).collect();
        let slices = ground.view.slices.values();
        let using = slices.filter(|slice| {
            let mut all = slice.endpoints.iter().filter_map(|e| e.address);
            all.any(|ip| addresses.contains(&ip))
        });
        using
            .filter_map(owner)
            .filter_map(|name| self.asks.get(&name))
            .flat_map(|asks| asks.frontends.iter().copied())
            .collect()
    }
}

/// A table's frontends, each with the first service port that its rows name.
pub fn frontends(table: &DesiredTable) -> BTreeMap<Frontend, Option<ServicePortName>> {
    let mut all = Vec::with_capacity(table.len() / SourceClass::ALL.len());
    for ((frontend, _), row) in table {
        if all.last().is_none_or(|(last, _)| last != frontend) {
            all.push((*frontend, service_of(row)));
        }
    }
    all.into_iter().collect()
}

fn service_of(row: &OneOf<Forwarding>) -> Option<ServicePortName> {
    row.any_of.iter().find_map(|f| f.service.clone())
}

fn owner(slice: &EndpointSlice) -> Option<ServiceName> {
    let name = slice.service.clone()?;
    Some(ServiceName {
        namespace: slice.name.namespace.clone(),
        name,
    })
}

/// The one set of rules that can be running. Several are merged as whole tables.
fn only_rules(profile: &ProxyProfile) -> Option<Rules> {
    let mode = profile.mode.as_ref()?.value;
    if mode == ProxyMode::Ipvs {
        // Made whole: which addresses it binds is not noted by Service.
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

impl Asks {
    fn of(ground: &Ground<'_>, plans: &[PortPlan<'_>]) -> Asks {
        let (mut asks, none) = (Asks::default(), Hairpins::new());
        for plan in plans {
            asks.add(ground, plan, &rows::of_plan(ground, plan, &none));
        }
        asks.close();
        asks
    }

    fn add(&mut self, ground: &Ground<'_>, plan: &PortPlan<'_>, rows: &Rows) {
        for ((frontend, _), _) in rows {
            if self.frontends.last() != Some(frontend) {
                self.frontends.push(*frontend);
            }
        }
        if ground.rules.wildcard != Wildcard::Never {
            self.frontends.push(Frontend::Address(plan.cluster_ip));
        }
        self.local
            .extend(ground.calls_local(std::slice::from_ref(plan)));
    }

    fn close(&mut self) {
        self.frontends.sort_unstable();
        self.frontends.dedup();
        self.frontends.shrink_to_fit();
        self.local.sort_unstable();
        self.local.dedup();
    }
}
