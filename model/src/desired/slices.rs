//! Which endpoints belong to a service port (kube-proxy.md 2.3).

use super::Ground;
use crate::address::Family;
use crate::endpoint::{Endpoint, EndpointSlice};
use crate::service::{Service, ServicePort};
use std::net::{IpAddr, SocketAddr};

/// The slices of a Service that kube-proxy sees.
pub(super) fn visible<'a>(ground: &Ground<'a>, service: &Service) -> Vec<&'a EndpointSlice> {
    ground
        .view
        .slices_of(&service.name)
        .filter(|s| !s.headless_label)
        .filter(|s| !(ground.rules.slice_label_hides && s.proxy_name_label))
        .collect()
}

/// One entry of a slice, for one of its ports.
#[derive(Clone, Copy)]
pub(super) struct Candidate<'a> {
    pub address: SocketAddr,
    pub endpoint: &'a Endpoint,
    /// On this node, as kube-proxy sees it.
    pub local: bool,
    /// Which slice it stands in.
    slice: usize,
}

impl Candidate<'_> {
    /// Would it make no difference which of the two is used?
    fn equals(&self, other: &Candidate) -> bool {
        let (a, b) = (self.endpoint, other.endpoint);
        self.local == other.local
            && (a.ready, a.serving, a.terminating) == (b.ready, b.serving, b.terminating)
            && a.zone_hints == b.zone_hints
            && a.node_hints == b.node_hints
    }
}

/// The endpoints of a service port. Usually one list; several where one `ip:port` stands in more
/// than one slice with other conditions, since kube-proxy visits slices in the order of a map.
pub(super) struct Candidates<'a> {
    /// Never empty; each sorted by address, one entry for each address.
    pub lists: Vec<Vec<Candidate<'a>>>,
}

impl<'a> Candidates<'a> {
    /// Joins slices to a port by port name and protocol; `targetPort` plays no part.
    pub fn of(
        ground: &Ground<'a>,
        slices: &[&'a EndpointSlice],
        port: &ServicePort,
        family: Family,
    ) -> Candidates<'a> {
        let mut all: Vec<Candidate<'a>> = Vec::new();
        for (index, slice) in slices.iter().enumerate() {
            if slice.family != Some(family) {
                continue;
            }
            for slice_port in &slice.ports {
                let Some(number) = slice_port.port else {
                    continue;
                };
                if slice_port.name.as_ref() != Some(&port.name)
                    || slice_port.protocol != port.protocol
                {
                    continue;
                }
                for endpoint in &slice.endpoints {
                    let Some(ip) = endpoint.address.filter(|ip| Family::of(*ip) == family) else {
                        continue;
                    };
                    let local = !ground.own_name.is_empty()
                        && endpoint
                            .node
                            .as_ref()
                            .is_some_and(|n| *n == ground.own_name);
                    let address = SocketAddr::new(ip, number);
                    all.push(Candidate {
                        address,
                        endpoint,
                        local,
                        slice: index,
                    });
                }
            }
        }
        // Stable, so that entries of one slice keep their order.
        all.sort_by_key(|c| c.address);
        let repeats = all.windows(2).any(|w| w[0].address == w[1].address);
        if !repeats {
            return Candidates { lists: vec![all] };
        }
        let last_not_terminating = ground.rules.last_not_terminating_wins;
        let lists = orders(&contested(&all))
            .iter()
            .map(|order| {
                all.chunk_by(|a, b| a.address == b.address)
                    .map(|same| winner(same, order, last_not_terminating))
                    .collect()
            })
            .collect();
        Candidates { lists }
    }

    /// Addresses of ready endpoints on this node.
    pub fn local_ready(&self) -> Vec<IpAddr> {
        let list = self.lists.first().map_or(&[][..], Vec::as_slice);
        list.iter()
            .filter(|c| c.local && c.endpoint.ready)
            .map(|c| c.address.ip())
            .collect()
    }
}

/// Slices whose order matters: those that hold an address which another entry contradicts.
fn contested(all: &[Candidate]) -> Vec<usize> {
    let mut slices: Vec<usize> = all
        .chunk_by(|a, b| a.address == b.address)
        .filter(|same| same.iter().any(|c| !c.equals(&same[0])))
        .flat_map(|same| same.iter().map(|c| c.slice))
        .collect();
    slices.sort_unstable();
    slices.dedup();
    slices
}

/// The orders in which the slices may be visited: all of them up to four slices; above, those in
/// which each slice comes first and each comes last, which decide who wins.
fn orders(slices: &[usize]) -> Vec<Vec<usize>> {
    if slices.len() <= 4 {
        let mut all = vec![Vec::new()];
        for (n, slice) in slices.iter().enumerate() {
            all = all
                .into_iter()
                .flat_map(|order: Vec<usize>| {
                    (0..=n).map(move |place| {
                        let mut order = order.clone();
                        order.insert(place, *slice);
                        order
                    })
                })
                .collect();
        }
        return all;
    }
    let mut all = Vec::new();
    for start in 0..slices.len() {
        let mut order = slices.to_vec();
        order.rotate_left(start);
        let mut back = order.clone();
        back.reverse();
        all.push(order);
        all.push(back);
    }
    all
}

/// Whose conditions an address gets when the slices are visited in this order (2.3, rule 10).
fn winner<'a>(
    same: &[Candidate<'a>],
    order: &[usize],
    last_not_terminating: bool,
) -> Candidate<'a> {
    let place = |slice: usize| order.iter().position(|s| *s == slice);
    let mut visited: Vec<&Candidate> = same.iter().collect();
    visited.sort_by_key(|c| place(c.slice));
    let mut kept = *visited[0];
    for next in &visited[1..] {
        let replaces = if last_not_terminating {
            !next.endpoint.terminating
        } else {
            next.local
        };
        if replaces {
            kept = **next;
        }
    }
    kept
}
