//! Which endpoints of a service port are used (kube-proxy.md 2.4, 2.5).

use super::slices::{Candidate, Candidates};
use super::{Ground, Zone};
use crate::service::Service;
use crate::table::{Because, OneOf};
use std::net::SocketAddr;
use std::sync::Arc;

/// One endpoint that is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub address: SocketAddr,
    /// On this node, as kube-proxy sees it.
    pub local: bool,
}

/// The endpoints used, sorted by address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Selection {
    /// For traffic policy Cluster.
    pub cluster: Vec<Target>,
    /// For traffic policy Local.
    pub local: Vec<Target>,
    /// Some endpoint is usable somewhere.
    pub any: bool,
}

/// Which of the two lists a service port uses.
#[derive(Clone, Copy)]
pub(super) struct Use {
    pub cluster: bool,
    pub local: bool,
}

/// Chooses. Several answers where duplicates contradict each other or the node's zone is unknown.
pub(super) fn select(
    ground: &Ground,
    service: &Service,
    candidates: &Candidates,
    use_of: Use,
) -> OneOf<Selection> {
    let zone_hints_count = !ground.rules.zone_hints_need_annotation || asks_for_hints(service);
    let mut answers: Option<OneOf<Selection>> = None;
    for list in &candidates.lists {
        let zones = if zone_hints_count {
            possible_zones(ground, list)
        } else {
            vec![None]
        };
        for (n, zone) in zones.iter().enumerate() {
            let answer = select_one(ground, list, zone.as_ref(), use_of);
            match &mut answers {
                None => answers = Some(OneOf::certain(answer)),
                Some(all) => {
                    let zone = n > 0;
                    let why = if zone {
                        Because::UnknownConfiguration
                    } else {
                        Because::DuplicateEndpoint
                    };
                    all.or(answer, why);
                }
            }
        }
    }
    let nothing = || Selection {
        cluster: Vec::new(),
        local: Vec::new(),
        any: false,
    };
    answers.unwrap_or_else(|| OneOf::certain(nothing()))
}

/// To 1.30: the annotation, any value but empty and disabled (1.27+).
fn asks_for_hints(service: &Service) -> bool {
    service
        .topology_annotation
        .as_deref()
        .is_some_and(|value| !matches!(value, "" | "disabled" | "Disabled"))
}

/// The zone; where kube-proxy's Node is not known, none and each zone that is hinted for.
fn possible_zones(ground: &Ground, list: &[Candidate]) -> Vec<Option<Arc<str>>> {
    match &ground.zone {
        Zone::Known(zone) => vec![zone.clone()],
        Zone::Unknown => {
            let mut zones: Vec<Option<Arc<str>>> = list
                .iter()
                .flat_map(|c| &c.endpoint.zone_hints)
                .cloned()
                .map(Some)
                .collect();
            zones.push(None);
            zones.sort();
            zones.dedup();
            zones
        }
    }
}

fn select_one(
    ground: &Ground,
    list: &[Candidate],
    zone: Option<&Arc<str>>,
    use_of: Use,
) -> Selection {
    let leaving = |c: &Candidate| c.endpoint.serving && c.endpoint.terminating;
    let pick = |wanted: &dyn Fn(&Candidate) -> bool| -> Vec<Target> {
        list.iter()
            .filter(|c| wanted(c))
            .map(|c| Target {
                address: c.address,
                local: c.local,
            })
            .collect()
    };
    let mut selection = Selection {
        cluster: Vec::new(),
        local: Vec::new(),
        any: false,
    };
    if use_of.cluster {
        let hints = Hints::of(ground, list, zone);
        selection.cluster = pick(&|c| c.endpoint.ready && hints.allow(ground, zone, c));
        if selection.cluster.is_empty() {
            selection.cluster = pick(&leaving);
        }
    }
    if use_of.local {
        selection.local = pick(&|c| c.local && c.endpoint.ready);
        if selection.local.is_empty() {
            selection.local = pick(&|c| c.local && leaving(c));
        }
    }
    selection.any = !selection.cluster.is_empty()
        || (use_of.local && list.iter().any(|c| c.endpoint.ready || leaving(c)));
    selection
}

/// Which hints are followed: all ready endpoints must have them, and one must name this node or zone.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hints {
    Ignored,
    Zone,
    Node,
}

impl Hints {
    fn of(ground: &Ground, list: &[Candidate], zone: Option<&Arc<str>>) -> Hints {
        let mut ready = list.iter().filter(|c| c.endpoint.ready).peekable();
        if ready.peek().is_none() {
            return Hints::Ignored;
        }
        let (mut all_node, mut this_node, mut all_zone, mut this_zone) = (true, false, true, false);
        for c in ready {
            all_node &= !c.endpoint.node_hints.is_empty();
            this_node |= c.endpoint.node_hints.contains(&ground.own_name);
            all_zone &= !c.endpoint.zone_hints.is_empty();
            this_zone |= zone.is_some_and(|z| c.endpoint.zone_hints.contains(z));
        }
        if ground.rules.node_hints && all_node && this_node {
            Hints::Node
        } else if all_zone && this_zone {
            Hints::Zone
        } else {
            Hints::Ignored
        }
    }

    fn allow(self, ground: &Ground, zone: Option<&Arc<str>>, c: &Candidate) -> bool {
        match self {
            Hints::Ignored => true,
            Hints::Zone => zone.is_some_and(|z| c.endpoint.zone_hints.contains(z)),
            Hints::Node => c.endpoint.node_hints.contains(&ground.own_name),
        }
    }
}
