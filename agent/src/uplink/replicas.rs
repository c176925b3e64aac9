//! Which replicas of the aggregator to report to. Pure.
//!
//! Their addresses come from the EndpointSlices of the aggregator's Service: neither its address nor
//! cluster DNS, which is a Service itself, stands between a broken node and who must hear of it.

use model::address::Protocol;
use model::endpoint::EndpointSlice;
use model::limits::{REPLICA_ADDRESSES, REPLICAS};
use model::name::ServicePortName;
use model::view::ClusterView;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

/// One replica of the aggregator.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Replica {
    /// Name of its Pod; its address where no Pod is named.
    pub name: String,
    /// Where it listens: one address of each family. Never empty.
    pub addresses: Vec<SocketAddr>,
}

/// The replicas that the slices of a Service name, those that are ready first. A port without name
/// means the only TCP port. `fixed` are reported to already: two streams of one node to one replica
/// would push each other out.
///
/// Endpoints that are not ready are replicas as well: an aggregator that starts wants its fleet.
pub fn named(view: &ClusterView, of: &ServicePortName, fixed: &[SocketAddr]) -> Vec<Replica> {
    // A Pod of a Service with two address families is in two slices.
    let mut found: BTreeMap<String, (bool, BTreeSet<SocketAddr>)> = BTreeMap::new();
    for slice in view.slices_of(&of.service) {
        let Some(port) = port(slice, &of.port) else {
            continue;
        };
        for endpoint in &slice.endpoints {
            let Some(ip) = endpoint.address else { continue };
            let at = SocketAddr::new(ip, port);
            let pod = endpoint.pod.as_deref().filter(|p| is_word(p));
            let name = pod.map_or_else(|| at.to_string(), str::to_string);
            let (ready, addresses) = found.entry(name).or_default();
            *ready |= endpoint.ready;
            addresses.insert(at);
        }
    }
    found.retain(|_, (_, addresses)| !fixed.iter().any(|f| addresses.contains(f)));
    let mut all: Vec<(bool, Replica)> = found
        .into_iter()
        .map(|(name, (ready, addresses))| {
            let addresses = addresses.into_iter().take(REPLICA_ADDRESSES).collect();
            (!ready, Replica { name, addresses })
        })
        .collect();
    all.sort();
    all.into_iter().map(|(_, replica)| replica).collect()
}

fn port(slice: &EndpointSlice, name: &Arc<str>) -> Option<u16> {
    let tcp: Vec<_> = slice
        .ports
        .iter()
        .filter(|p| p.protocol == Protocol::Tcp && p.port.is_some())
        .collect();
    match tcp[..] {
        [only] if name.is_empty() => only.port,
        _ => tcp.iter().find(|p| p.name.as_ref() == Some(name))?.port,
    }
}

/// What to hold next: what is held and still named, then what is new, up to [`REPLICAS`]. As long as
/// nothing is named, what is held stays: no aggregator at all is a cluster in trouble, and the last
/// known addresses are better than none.
pub fn hold(held: &[Replica], named: &[Replica]) -> Vec<Replica> {
    if named.is_empty() {
        return held.to_vec();
    }
    let stay = held.iter().filter(|h| named.contains(h));
    let new = named.iter().filter(|n| !held.contains(n));
    stay.chain(new).take(REPLICAS).cloned().collect()
}

/// The kept file: whose replicas they are, then one a line with its addresses.
pub fn to_text(of: &ServicePortName, held: &[Replica]) -> String {
    let mut text = format!("{of}\n");
    for replica in held {
        text.push_str(&replica.name);
        for address in &replica.addresses {
            text.push_str(&format!(" {address}"));
        }
        text.push('\n');
    }
    text
}

/// Reads what [`to_text`] wrote; nothing of what was kept for another Service, or makes no sense.
pub fn from_text(of: &ServicePortName, text: &str) -> Vec<Replica> {
    let mut lines = text.lines();
    if lines.next() != Some(of.to_string().as_str()) {
        return Vec::new();
    }
    let replica = |line: &str| {
        let mut words = line.split(' ');
        let name = words.next().filter(|n| is_word(n))?.to_string();
        let addresses: Vec<SocketAddr> = words
            .filter_map(|w| w.parse().ok())
            .take(REPLICA_ADDRESSES)
            .collect();
        (!addresses.is_empty()).then_some(Replica { name, addresses })
    };
    lines.filter_map(replica).take(REPLICAS).collect()
}

/// The API server lets no other names of Pods through; manifests may.
fn is_word(name: &str) -> bool {
    !name.is_empty() && name.len() <= 253 && name.chars().all(|c| c.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::address::Family;
    use model::endpoint::{Endpoint, SliceName, SlicePort};
    use model::time::{Millis, Mono, Now};
    use model::view::Change;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn replica(name: &str, addresses: &[&str]) -> Replica {
        let addresses = addresses.iter().map(|a| at(a)).collect();
        Replica {
            name: name.into(),
            addresses,
        }
    }

    fn slice(name: &str, ports: &[(&str, u16)], endpoints: &[(&str, &str, bool)]) -> Change {
        let endpoints = endpoints.iter().map(|(pod, address, ready)| Endpoint {
            address: address.parse().ok(),
            ready: *ready,
            serving: *ready,
            terminating: false,
            node: None,
            zone_hints: Vec::new(),
            node_hints: Vec::new(),
            pod: (!pod.is_empty()).then(|| (*pod).into()),
        });
        let ports = ports.iter().map(|(name, port)| SlicePort {
            name: Some((*name).into()),
            protocol: Protocol::Tcp,
            port: Some(*port),
        });
        Change::Slice(EndpointSlice {
            name: SliceName {
                namespace: "vipwitness".into(),
                name: name.into(),
            },
            resource_version: "".into(),
            service: Some("aggregator".into()),
            family: Some(Family::V4),
            ports: ports.collect(),
            endpoints: endpoints.collect(),
            headless_label: true,
            proxy_name_label: false,
        })
    }

    fn view(changes: Vec<Change>) -> ClusterView {
        let now = Now {
            mono: Mono(0),
            wall: Millis(0),
        };
        let mut view = ClusterView::default();
        for change in changes {
            view.apply(change, now);
        }
        view
    }

    const BOTH: &[(&str, u16)] = &[("grpc", 8443), ("scrape", 9090)];

    #[test]
    fn every_pod_is_one_replica_with_all_its_addresses() {
        let view = view(vec![
            slice(
                "v6",
                BOTH,
                &[("a", "fd00::1", true), ("b", "fd00::2", false)],
            ),
            slice(
                "v4",
                BOTH,
                &[
                    ("a", "10.0.0.1", true),
                    ("b", "10.0.0.2", false),
                    ("c", "10.0.0.3", true),
                ],
            ),
            slice(
                "hand",
                &[("grpc", 1)],
                &[("", "10.0.0.9", true), ("", "no address", true)],
            ),
            slice("other", &[("web", 80)], &[("z", "10.0.0.8", true)]),
        ]);
        let of: ServicePortName = "vipwitness/aggregator:grpc".parse().unwrap();
        let (a, b) = (
            replica("a", &["10.0.0.1:8443", "[fd00::1]:8443"]),
            replica("b", &["10.0.0.2:8443", "[fd00::2]:8443"]),
        );
        let c = replica("c", &["10.0.0.3:8443"]);
        let hand = replica("10.0.0.9:1", &["10.0.0.9:1"]);
        // Ready ones first.
        assert_eq!(
            named(&view, &of, &[]),
            [hand.clone(), a.clone(), c.clone(), b.clone()]
        );
        assert_eq!(named(&view, &of, &[at("[fd00::1]:8443")]), [hand, c, b]);
        let no_port: ServicePortName = "vipwitness/aggregator".parse().unwrap();
        let only: Vec<String> = named(&view, &no_port, &[])
            .into_iter()
            .map(|r| r.name)
            .collect();
        assert_eq!(only, ["10.0.0.9:1", "z"]);
        let nobody: ServicePortName = "shop/aggregator:grpc".parse().unwrap();
        assert_eq!(named(&view, &nobody, &[]), []);
    }

    #[test]
    fn what_is_held_stays_until_others_are_named() {
        let of = |n: usize| replica(&format!("r{n:02}"), &[&format!("10.0.0.{n}:8443")]);
        let (a, b, c) = (of(1), of(2), of(3));
        let held = [a.clone(), b.clone()];
        assert_eq!(hold(&held, &[]), held);
        assert_eq!(hold(&held, &[c.clone(), b.clone()]), [b, c]);
        // A new address is another replica.
        let moved = replica("r01", &["10.0.9.1:8443"]);
        assert_eq!(hold(&held, std::slice::from_ref(&moved)), [moved]);
        // More than the bound: nobody who is held is pushed out.
        let many: Vec<Replica> = (1..=40).map(of).collect();
        let held = hold(&[of(39)], &many);
        assert_eq!(held.len(), REPLICAS);
        assert!(held.contains(&of(39)));
        assert_eq!(hold(&held, &many), held);
    }

    #[test]
    fn what_is_kept_is_read_again_and_nothing_else() {
        let of: ServicePortName = "vipwitness/aggregator:grpc".parse().unwrap();
        let held = [
            replica("a", &["10.0.0.1:8443", "[fd00::1]:8443"]),
            replica("b", &["10.0.0.2:8443"]),
        ];
        let text = to_text(&of, &held);
        assert_eq!(from_text(&of, &text), held);
        let other = "vipwitness/aggregator:web".parse().unwrap();
        assert_eq!(from_text(&other, &text), []);
        let torn = format!("{of}\n\n \na\nb nonsense 10.0.0.2:8443\n\u{0} 1.1.1.1:1");
        assert_eq!(from_text(&of, &torn), [replica("b", &["10.0.0.2:8443"])]);
        assert_eq!(from_text(&of, ""), []);
    }
}
