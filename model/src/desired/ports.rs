//! Which Services and ports count, and what is derived for each (kube-proxy.md 2.1, 2.2).

use super::Ground;
use super::slices::{self, Candidates};
use super::usable::{self, Selection};
use crate::address::Family;
use crate::name::ServicePortName;
use crate::service::{Service, ServicePort, ServiceType};
use crate::table::OneOf;
use ipnet::IpNet;
use std::net::IpAddr;

/// One service port in one family, with everything its rows need.
pub(super) struct PortPlan<'a> {
    pub service: &'a Service,
    pub port: &'a ServicePort,
    pub name: ServicePortName,
    pub family: Family,
    pub cluster_ip: IpAddr,
    /// Those that get rules.
    pub external_ips: Vec<IpAddr>,
    pub vips: Vec<IpAddr>,
    /// Aggregated; empty: everybody.
    pub source_ranges: Vec<IpNet>,
    pub external_local: bool,
    /// The endpoints used.
    pub selections: OneOf<Selection>,
    /// Addresses of ready endpoints on this node, repeated where they have several ports.
    pub local_ready: Vec<IpAddr>,
}

/// The plans of a Service; none when kube-proxy does not see it or it has no cluster IP.
pub(super) fn plans<'a>(ground: &Ground<'a>, service: &'a Service) -> Vec<PortPlan<'a>> {
    let mut plans = Vec::new();
    let hidden = service.proxy_name_label
        || (ground.rules.headless_label_hides && service.headless_label)
        || service.kind == ServiceType::ExternalName
        || service.cluster_ip.is_empty()
        || &*service.cluster_ip == "None";
    if hidden {
        return plans;
    }
    let slices = slices::visible(ground, service);
    for family in Family::ALL {
        let Some(cluster_ip) = cluster_ip(service, family) else {
            continue;
        };
        let of_family = |ip: &IpAddr| Family::of(*ip) == family;
        let asked_external: Vec<IpAddr> = service
            .external_ips
            .iter()
            .copied()
            .filter(of_family)
            .collect();
        let vips: Vec<IpAddr> = service
            .ingress
            .iter()
            .filter(|i| ground.rules.ip_mode_ignored || !i.proxy_mode)
            .map(|i| i.address)
            .filter(of_family)
            .collect();
        let source_ranges = source_ranges(service, family);
        let external_local = service.external_local
            && match service.kind {
                ServiceType::NodePort | ServiceType::LoadBalancer => true,
                ServiceType::ClusterIP => {
                    !service.external_ips.is_empty()
                        && !ground.rules.cluster_ip_type_is_never_external_local
                }
                ServiceType::ExternalName => false,
            };
        for port in &service.ports {
            let accessible =
                port.node_port.is_some() || !vips.is_empty() || !asked_external.is_empty();
            let use_of = usable::Use {
                cluster: !service.internal_local || accessible,
                local: service.internal_local || (external_local && accessible),
            };
            let candidates = Candidates::of(ground, &slices, port, family);
            plans.push(PortPlan {
                service,
                port,
                name: ServicePortName {
                    service: service.name.clone(),
                    port: port.name.clone(),
                },
                family,
                cluster_ip,
                external_ips: if ground.rules.external_ips {
                    asked_external.clone()
                } else {
                    Vec::new()
                },
                vips: vips.clone(),
                source_ranges: source_ranges.clone(),
                external_local,
                local_ready: candidates.local_ready(),
                selections: usable::select(ground, service, &candidates, use_of),
            });
        }
    }
    plans
}

/// The port of the health check server: only type LoadBalancer with eTP Local (2.2).
pub(super) fn health_check_port(service: &Service) -> Option<u16> {
    (service.kind == ServiceType::LoadBalancer && service.external_local)
        .then_some(service.health_check_node_port)
        .flatten()
}

/// `GetClusterIPByFamily`: the address at the family's place; without families the one there is.
fn cluster_ip(service: &Service, family: Family) -> Option<IpAddr> {
    if service.ip_families.is_empty() {
        return service
            .cluster_ip
            .parse()
            .ok()
            .filter(|ip| Family::of(*ip) == family);
    }
    let place = service.ip_families.iter().position(|f| *f == family)?;
    service
        .cluster_ips
        .get(place)
        .copied()
        .filter(|ip| Family::of(*ip) == family)
}

/// The ranges of a family, aggregated. One that covers everything is no restriction: 1.34+ says so
/// (2.2), and before it was a chain that let everybody in.
fn source_ranges(service: &Service, family: Family) -> Vec<IpNet> {
    let of_family: Vec<IpNet> = service
        .source_ranges
        .iter()
        .filter(|r| Family::of(r.network()) == family)
        .map(IpNet::trunc)
        .collect();
    let mut ranges = IpNet::aggregate(&of_family);
    if ranges.iter().any(|r| r.prefix_len() == 0) {
        return Vec::new();
    }
    ranges.sort();
    ranges
}
