//! 2.4 to 2.7: what becomes of a Service port, in one family, on one node.

use std::collections::BTreeSet;

use serde_json::Value;

use super::endpoints::{Endpoint, endpoints_of};
use super::spec::{is_outside, vips};
use super::{items, of_family, text};
use crate::generate::Place;

/// A port of a Service, in one family, on this node.
pub(super) fn port_rows(
    service: &Value,
    slices: &[&Value],
    place: &Place,
    family: &str,
    port: &Value,
    rows: &mut BTreeSet<&'static str>,
) {
    let spec = &service["spec"];
    let list = endpoints_of(slices, place, family, port, rows);
    let ready: Vec<&Endpoint> = list.iter().filter(|endpoint| endpoint.ready).collect();
    let fallback = list.iter().any(Endpoint::fallback);
    let any = !ready.is_empty() || fallback;
    let itp = text(&spec["internalTrafficPolicy"]) == "Local";
    let etp = text(&spec["externalTrafficPolicy"]) == "Local";
    let outside = is_outside(service);
    if !list.is_empty() {
        if ready.len() == list.len() {
            rows.insert("2.4 ready");
        } else if !ready.is_empty() {
            rows.insert("2.4 some ready");
        }
    }
    if list
        .iter()
        .any(|endpoint| endpoint.serving && !endpoint.ready && !endpoint.terminating)
    {
        rows.insert("2.4 unready");
    }
    if !ready.is_empty()
        && list
            .iter()
            .any(|endpoint| endpoint.fallback() && !endpoint.ready)
    {
        rows.insert("2.4 ready hides terminating");
    }
    if ready.is_empty() && fallback {
        rows.insert("2.4 cluster fallback");
    }
    if !list.is_empty()
        && list
            .iter()
            .all(|endpoint| endpoint.terminating && !endpoint.serving)
    {
        rows.insert("2.4 terminating not serving");
    }
    if list.len() >= 20 {
        rows.insert("2.4 many");
    }
    let local_ready = ready.iter().any(|endpoint| endpoint.local);
    let local_fallback = list
        .iter()
        .any(|endpoint| endpoint.local && endpoint.fallback());
    if itp || (etp && outside) {
        if local_ready {
            rows.insert("2.4 local");
        } else if local_fallback {
            rows.insert(if ready.is_empty() {
                "2.4 local fallback alone"
            } else {
                "2.4 local fallback"
            });
        } else if any {
            rows.insert("2.4 no local");
            if list.iter().any(|endpoint| endpoint.local) {
                rows.insert("2.4 local unready");
            }
        }
        if local_ready && list.iter().any(|endpoint| !endpoint.zones.is_empty()) {
            rows.insert("2.5 Local and hints");
        }
    }
    if !itp || outside {
        hint_rows(&list, &ready, place, rows);
    }
    let local = local_ready || local_fallback;
    let outcome = |policy: bool| {
        if !any {
            2
        } else if policy && !local {
            3
        } else {
            1
        }
    };
    let mut destination = |names: [[&'static str; 3]; 2], policy: bool| {
        let names = names[usize::from(policy)];
        rows.insert(names[outcome(policy) - 1]);
    };
    destination(
        [
            ["2.6 cluster IP, forward", "2.6 cluster IP, reject", ""],
            [
                "2.6 cluster IP Local, forward",
                "2.6 cluster IP Local, reject",
                "2.6 cluster IP Local, drop",
            ],
        ],
        itp,
    );
    if items(&spec["externalIPs"])
        .iter()
        .any(|ip| of_family(text(ip), family))
    {
        destination(
            [
                ["2.6 external IP, forward", "2.6 external IP, reject", ""],
                [
                    "2.6 external IP Local, forward",
                    "2.6 external IP Local, reject",
                    "2.6 external IP Local, drop",
                ],
            ],
            etp,
        );
    }
    if vips(service, family) > 0 {
        destination(
            [
                ["2.6 VIP, forward", "2.6 VIP, reject", ""],
                [
                    "2.6 VIP Local, forward",
                    "2.6 VIP Local, reject",
                    "2.6 VIP Local, drop",
                ],
            ],
            etp,
        );
    }
    if port["nodePort"].as_u64().is_some() {
        destination(
            [
                ["2.6 node port, forward", "2.6 node port, reject", ""],
                [
                    "2.6 node port Local, forward",
                    "2.6 node port Local, reject",
                    "2.6 node port Local, drop",
                ],
            ],
            etp,
        );
    }
    let range = u16::from(place.index) + 1;
    let client = [
        format!("10.244.{range}.200:"),
        format!("[fd00:244::{range:x}:c8]:"),
    ];
    if ready
        .iter()
        .any(|endpoint| client.iter().any(|client| endpoint.key.starts_with(client)))
    {
        rows.insert("2.6 hairpin");
    }
    let own = [format!("{}:", place.v4), format!("[{}]:", place.v6)];
    if ready
        .iter()
        .any(|endpoint| own.iter().any(|own| endpoint.key.starts_with(own)))
    {
        rows.insert("2.6 host network");
    }
    if etp && spec["healthCheckNodePort"].as_u64().unwrap_or(0) > 0 {
        rows.insert(if local_ready {
            "2.7 health check"
        } else {
            "2.7 health check none"
        });
    }
}

/// 2.5: topology, over the ready endpoints.
fn hint_rows(
    list: &[Endpoint],
    ready: &[&Endpoint],
    place: &Place,
    rows: &mut BTreeSet<&'static str>,
) {
    let with_zone = ready
        .iter()
        .filter(|endpoint| !endpoint.zones.is_empty())
        .count();
    let with_node = ready
        .iter()
        .filter(|endpoint| !endpoint.nodes.is_empty())
        .count();
    let here = ready
        .iter()
        .any(|endpoint| endpoint.zones.contains(&place.zone));
    let mut node_mode = false;
    if with_node > 0 {
        let here = ready
            .iter()
            .any(|endpoint| endpoint.nodes.contains(&place.name));
        rows.insert(if with_node < ready.len() {
            "2.5 node incomplete"
        } else if here {
            node_mode = true;
            "2.5 node"
        } else {
            "2.5 node elsewhere"
        });
    }
    if with_zone > 0 && !node_mode {
        rows.insert(if with_zone < ready.len() {
            "2.5 zone incomplete"
        } else if here {
            "2.5 zone"
        } else {
            "2.5 zone elsewhere"
        });
        if ready.iter().any(|endpoint| endpoint.zones.len() > 1) {
            rows.insert("2.5 zones");
        }
        if with_zone == ready.len()
            && list
                .iter()
                .any(|endpoint| !endpoint.ready && endpoint.zones.is_empty())
        {
            rows.insert("2.5 unready without hint");
        }
    }
}
