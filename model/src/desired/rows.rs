//! What each destination of a service port gets (kube-proxy.md 2.6), by source.
//!
//! The table in 2.6 is corrected by what the rules do to packets in the hooks they pass:
//!
//! - iptables refuses cluster IPs in FORWARD and OUTPUT, external addresses in INPUT and FORWARD
//!   (3.2). What the node itself sends to an external address that is not its own passes OUTPUT only,
//!   so without endpoints it is left alone.
//! - iptables refuses nodePorts on every local address, loopback and those outside
//!   `nodePortAddresses` included, and nftables only where it serves them (3.3, 5.5).
//! - IPVS neither rejects nor drops for want of endpoints: a virtual server without real servers refuses
//!   the client, and Local without local endpoints takes all (4.3). What the node sends to an address of
//!   `kube-ipvs0` has that address as source.
//! - nftables to 1.33 refuses in the output hook before it translates (5.3), so the DROP of an eTP
//!   Local address without local endpoints hits the node itself.

use super::masquerade::{marks_cluster_ip, unless_marked};
use super::node_ports::{NodeIps, NodePortAddr, Served};
use super::ports::PortPlan;
use super::usable::{Selection, Target};
use super::{Ground, Hairpins};
use crate::address::{Family, Frontend, SourceClass};
use crate::table::{
    Action, Affinity, Backend, Because, DesiredTable, Forwarding, Key, Masquerade, OneOf,
    SourceRanges,
};
use ipnet::IpNet;
use std::cell::RefCell;
use std::net::IpAddr;
use std::sync::Arc;

/// Rows of a service port, sorted by key.
pub(super) type Rows = Vec<(Key, OneOf<Forwarding>)>;

/// All rows of a service port. No key comes twice.
pub(super) fn of_plan(ground: &Ground, plan: &PortPlan, hairpins: &Hairpins) -> Rows {
    let because = plan.selections.because;
    let mut selections = plan.selections.any_of.iter().map(|selection| {
        let maker = Maker {
            ground,
            plan,
            hairpins,
            selection,
            lists: RefCell::default(),
        };
        let mut rows = maker.rows();
        rows.sort_by_key(|row| row.0);
        // One Service may list an address twice; the rule that comes first in it stands first here.
        rows.dedup_by(|later, first| later.0 == first.0);
        rows
    });
    let first = selections.next().unwrap_or_default();
    let mut others = selections.peekable();
    if others.peek().is_none() {
        return first;
    }
    let mut merged: DesiredTable = first.into_iter().collect();
    for rows in others {
        merged = super::either(Some(merged), rows.into_iter().collect(), because);
    }
    merged.into_iter().collect()
}

struct Maker<'a> {
    ground: &'a Ground<'a>,
    plan: &'a PortPlan<'a>,
    hairpins: &'a Hairpins,
    selection: &'a Selection,
    /// Lists of backends that were made for other rows.
    lists: RefCell<Vec<Arc<[Backend]>>>,
}

impl Maker<'_> {
    fn rows(&self) -> Rows {
        let mut rows = Rows::new();
        self.cluster_ip(&mut rows);
        // In iptables the rule of the external IP comes before the load balancer's; in nftables both
        // are one map element, and the firewall applies to it.
        if self.ground.rules.iptables() {
            self.external_ips(&mut rows);
            self.vips(&mut rows);
        } else {
            self.vips(&mut rows);
            self.external_ips(&mut rows);
        }
        self.node_port(&mut rows);
        rows
    }

    fn cluster_ip(&self, rows: &mut Rows) {
        let Maker {
            ground,
            plan,
            selection,
            ..
        } = self;
        let local_only = plan.service.internal_local;
        let list = self.list(local_only);
        let on_node = ground.on_node(plan.cluster_ip);
        for source in SourceClass::ALL {
            let row = if ground.rules.ipvs() {
                // Without a detector the rule is for packets from cluster IPs, which are the node's own.
                let marked = marks_cluster_ip(ground, plan.family, source)
                    || (!ground.has_detector(plan.family) && source == SourceClass::Node);
                self.forward_from(list, source, marked, true)
            } else if selection.any && !list.is_empty() {
                self.forward(list, source, marks_cluster_ip(ground, plan.family, source))
            } else if ground.rules.iptables() && on_node && source != SourceClass::Node {
                self.without(Action::None)
            } else {
                self.without(if selection.any {
                    Action::Drop
                } else {
                    Action::Reject
                })
            };
            rows.push((
                self.key(plan.cluster_ip, plan.port.port, source),
                OneOf::certain(row),
            ));
        }
    }

    fn external_ips(&self, rows: &mut Rows) {
        for ip in &self.plan.external_ips {
            for source in SourceClass::ALL {
                let row = OneOf::certain(self.external_address(*ip, source));
                rows.push((self.key(*ip, self.plan.port.port, source), row));
            }
        }
    }

    fn vips(&self, rows: &mut Rows) {
        let Maker { plan, .. } = self;
        for vip in &plan.vips {
            for source in SourceClass::ALL {
                let row = self.external_address(*vip, source);
                let row = match self.ground.rules.ipvs() {
                    true => self.within_ipvs_ranges(row, *vip, source),
                    false => self.within_ranges(row, source),
                };
                rows.push((self.key(*vip, plan.port.port, source), row));
            }
        }
    }

    /// The endpoints: all, or with a Local policy the node's own; IPVS takes all where there are none.
    fn list(&self, local: bool) -> &[Target] {
        let Selection {
            cluster,
            local: own,
            ..
        } = self.selection;
        match local {
            true if !(self.ground.rules.ipvs() && own.is_empty()) => own,
            _ => cluster,
        }
    }

    /// An external IP or load balancer address, before source ranges.
    fn external_address(&self, ip: IpAddr, source: SourceClass) -> Forwarding {
        let Maker {
            ground, selection, ..
        } = self;
        if ground.rules.ipvs() {
            return self.virtual_server(source, true);
        }
        if source == SourceClass::Node {
            if ground.rules.iptables() && !selection.any && !ground.on_node(ip) {
                return self.without(Action::None);
            }
            if ground.rules.check_before_nat && selection.any && !self.has_external() {
                return self.without(Action::Drop);
            }
        }
        self.external(source)
    }

    /// IPVS: eTP Cluster masquerades, eTP Local nobody. `own_source`: the node's own packets have the
    /// address that they go to as source.
    fn virtual_server(&self, source: SourceClass, own_source: bool) -> Forwarding {
        let local = self.plan.external_local;
        self.forward_from(self.list(local), source, !local, own_source)
    }

    /// The external chain: eTP Cluster masquerades; eTP Local sends Pods and the node itself to all
    /// endpoints and everybody else to local ones.
    fn external(&self, source: SourceClass) -> Forwarding {
        let Maker {
            ground,
            plan,
            selection,
            ..
        } = self;
        if !selection.any {
            return self.without(Action::Reject);
        }
        if !plan.external_local {
            return self.forward(&selection.cluster, source, true);
        }
        match source {
            SourceClass::Node => self.forward(&selection.cluster, source, true),
            SourceClass::Pod if ground.has_detector(plan.family) => {
                self.forward(&selection.cluster, source, false)
            }
            _ if selection.local.is_empty() => self.without(Action::Drop),
            _ => self.forward(&selection.local, source, false),
        }
    }

    /// Is there an endpoint for clients from outside?
    fn has_external(&self) -> bool {
        self.selection.any && (!self.plan.external_local || !self.selection.local.is_empty())
    }

    fn node_port(&self, rows: &mut Rows) {
        let Some(port) = self.plan.port.node_port else {
            return;
        };
        let Some(node_ports) = self.ground.node_ports.get(&self.plan.family) else {
            return;
        };
        for at in &node_ports.addresses {
            for source in SourceClass::ALL {
                if let Some(row) = self.node_port_row(at, source, node_ports.localhost) {
                    rows.push((self.key(at.address, port, source), row));
                }
            }
        }
    }

    /// `localhost`: packets to 127/8 from elsewhere are dropped unless translated.
    fn node_port_row(
        &self,
        at: &NodePortAddr,
        source: SourceClass,
        localhost: bool,
    ) -> Option<OneOf<Forwarding>> {
        let refused = || {
            let verdict = if self.selection.any {
                Action::Drop
            } else {
                Action::Reject
            };
            self.refused_node_port(at.address, source, verdict, localhost)
        };
        if at.served.refuses(self.plan.port.protocol) {
            return Some(OneOf::certain(self.without(Action::Reject)));
        }
        // What iptables does with a nodePort on an address where it does not serve any.
        let not_served = || (self.ground.rules.iptables() && !self.has_external()).then(refused);
        let served = || {
            if self.ground.rules.ipvs() {
                return OneOf::certain(self.virtual_server(source, false));
            }
            let row = self.external(source);
            if self.ground.rules.iptables() && matches!(row.action, Action::Reject | Action::Drop) {
                return refused();
            }
            OneOf::certain(row)
        };
        match at.served {
            Served::Yes => Some(served()),
            Served::No | Served::Refused { .. } => not_served(),
            Served::Perhaps => {
                let mut row = served();
                let other = not_served().unwrap_or_else(|| {
                    OneOf::certain(Forwarding::without_backends(None, Action::None))
                });
                for answer in other.any_of {
                    row.or(answer, Because::UnknownConfiguration);
                }
                Some(row)
            }
        }
    }

    /// The filter rule of iptables mode. On 127/8 `KUBE-FIREWALL` comes before it for packets from
    /// elsewhere; kubelet may have written the same rule where kube-proxy does not.
    fn refused_node_port(
        &self,
        address: IpAddr,
        source: SourceClass,
        verdict: Action,
        localhost: bool,
    ) -> OneOf<Forwarding> {
        let v4_loopback = address.is_ipv4() && address.is_loopback();
        if !v4_loopback || source == SourceClass::Node {
            return OneOf::certain(self.without(verdict));
        }
        if localhost {
            return OneOf::certain(self.without(Action::Drop));
        }
        let mut row = OneOf::certain(self.without(verdict));
        row.or(self.without(Action::Drop), Because::UnknownConfiguration);
        row
    }

    /// Source ranges of a load balancer's address. iptables has the firewall chain only while there
    /// are endpoints; nftables always, but to 1.33 its output hook refuses before it.
    fn within_ranges(&self, row: Forwarding, source: SourceClass) -> OneOf<Forwarding> {
        let Maker {
            ground,
            plan,
            selection,
            ..
        } = self;
        let ranges = &plan.source_ranges;
        let refused_before = ground.rules.check_before_nat
            && source == SourceClass::Node
            && row.action == Action::Reject;
        if ranges.is_empty()
            || row.action == Action::Drop
            || (ground.rules.iptables() && !selection.any)
            || refused_before
        {
            return OneOf::certain(row);
        }
        let restricted = |ranges: Vec<IpNet>| Forwarding {
            source_ranges: Some(SourceRanges {
                ranges,
                otherwise: Action::Drop,
            }),
            ..row.clone()
        };
        let with_vips = || {
            let mut all = ranges.clone();
            all.extend(plan.vips.iter().map(|v| IpNet::from(*v)));
            let mut all = IpNet::aggregate(&all);
            all.sort();
            all
        };
        let inside = |ip: IpAddr| ranges.iter().any(|r| r.contains(&ip));
        match ground.node_ips {
            NodeIps::Unknown => {
                let mut one_of = OneOf::certain(restricted(ranges.clone()));
                let possible = |ip: &&IpAddr| Family::of(**ip) == plan.family && !ip.is_loopback();
                if ground
                    .addresses
                    .iter()
                    .filter(possible)
                    .any(|ip| inside(*ip))
                {
                    one_of.or(restricted(with_vips()), Because::UnknownConfiguration);
                }
                one_of
            }
            NodeIps::Known { .. } => {
                let node_is_inside = ground.node_ips.get(plan.family).is_some_and(inside);
                let ranges = if node_is_inside {
                    with_vips()
                } else {
                    ranges.clone()
                };
                OneOf::certain(restricted(ranges))
            }
        }
    }

    /// Source ranges in IPVS mode (4.5): in the input hook, so whether there are endpoints or not. The
    /// node's own packets do not pass it; where the ranges leave the node out, they are dropped behind
    /// the virtual server.
    fn within_ipvs_ranges(
        &self,
        row: Forwarding,
        vip: IpAddr,
        source: SourceClass,
    ) -> OneOf<Forwarding> {
        let Maker { ground, plan, .. } = self;
        let ranges = &plan.source_ranges;
        let node = source == SourceClass::Node;
        if ranges.is_empty() || (node && row.action != Action::Forward) {
            return OneOf::certain(row);
        }
        let with = |node_is_inside: bool| match (node, node_is_inside) {
            (true, true) => row.clone(),
            (true, false) => self.without(Action::Drop),
            (false, inside) => {
                let mut all = ranges.clone();
                all.extend(inside.then(|| IpNet::from(vip)));
                let mut ranges = IpNet::aggregate(&all);
                ranges.sort();
                Forwarding {
                    source_ranges: Some(SourceRanges {
                        ranges,
                        otherwise: Action::Drop,
                    }),
                    ..row.clone()
                }
            }
        };
        let inside = |ip: IpAddr| ranges.iter().any(|r| r.contains(&ip));
        match ground.node_ips {
            NodeIps::Unknown => {
                let mut one_of = OneOf::certain(with(false));
                one_of.or(with(true), Because::UnknownConfiguration);
                one_of
            }
            NodeIps::Known { .. } => {
                let node_ip = ground.node_ips.get(plan.family);
                OneOf::certain(with(node_ip.is_some_and(inside)))
            }
        }
    }

    fn key(&self, address: IpAddr, port: u16, source: SourceClass) -> Key {
        (
            Frontend::port(address, self.plan.port.protocol, port),
            source,
        )
    }

    fn without(&self, action: Action) -> Forwarding {
        Forwarding::without_backends(Some(self.plan.name.clone()), action)
    }

    /// Forwards to a list in equal shares; without any, there is nothing to forward to.
    fn forward(&self, list: &[Target], source: SourceClass, marked: bool) -> Forwarding {
        self.forward_from(list, source, marked, false)
    }

    /// `own_source`: what the node sends has the frontend's address as source, and so is never the
    /// chosen endpoint itself.
    fn forward_from(
        &self,
        list: &[Target],
        source: SourceClass,
        marked: bool,
        own_source: bool,
    ) -> Forwarding {
        if list.is_empty() {
            return self.without(Action::Reject);
        }
        let share = 1.0 / list.len() as f64;
        let protocol = self.plan.port.protocol;
        let backends: Arc<[Backend]> = list
            .iter()
            .map(|target| Backend {
                address: target.address,
                share,
                masquerade: if marked {
                    Masquerade::Always
                } else if own_source && source == SourceClass::Node {
                    Masquerade::Never
                } else {
                    unless_marked(self.ground, self.hairpins, source, protocol, target)
                },
            })
            .collect();
        let mut lists = self.lists.borrow_mut();
        let backends = match lists.iter().find(|known| **known == backends) {
            Some(known) => known.clone(),
            None => {
                lists.push(backends.clone());
                backends
            }
        };
        Forwarding {
            service: Some(self.plan.name.clone()),
            action: Action::Forward,
            backends,
            affinity: match self.plan.service.affinity_seconds {
                Some(seconds) => Affinity::ClientIp(seconds),
                None => Affinity::None,
            },
            source_ranges: None,
        }
    }
}
