//! Step 3: do the slices say what the Pods are, and can an endpoint be used?
//!
//! What the controller writes: `podToEndpoint`, `getEndpointPorts` (`staging/src/k8s.io/endpointslice/
//! utils.go`) and `reconcileByAddressType` (`reconciler.go`): every Pod that the selector chooses, that
//! has not ended, has an address of the family and is on a Node that exists.

use super::objects::{Found, MIRROR_CONTROLLER, Pod, SLICE_CONTROLLER, ServiceObject, SliceObject};
use super::store::{Kind, KnownPod, KnownService};
use super::{Answer, Check, Evidence, Finding, Ground, Part, Weight, count, kubectl, limits};
use crate::address::{Family, Protocol};
use crate::endpoint::{Endpoint, EndpointSlice};
use crate::report::words::ago;
use crate::service::ServiceType;
use crate::time::Mono;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub(super) fn answer(g: &Ground, cause: Option<u8>) -> Part {
    if g.objects.not_given.contains(&Kind::Slices) {
        return Part::plain(
            Answer::Unknown,
            "there is no EndpointSlice among the manifests",
        );
    }
    let slices: Vec<&SliceObject> = g.objects.slices_of(g.name).collect();
    let part = match g.service {
        None => without_service(g, &slices),
        Some(known) if known.object.service.kind == ServiceType::ExternalName => {
            return Part::plain(
                Answer::NotApplicable,
                "an ExternalName has no endpoints, and the controller makes none",
            );
        }
        Some(known) => of_service(g, known, &slices, cause),
    };
    let namespace = &*g.name.namespace;
    part.run(kubectl(
        &[namespace, &g.name.name],
        &[format!(
            "-n {namespace} get endpointslices -l kubernetes.io/service-name={} -o wide",
            g.name.name
        )],
    ))
}

fn object(slice: &EndpointSlice) -> String {
    format!("EndpointSlice {}/{}", slice.name.namespace, slice.name.name)
}

fn without_service(g: &Ground, slices: &[&SliceObject]) -> Part {
    if slices.is_empty() {
        return Part::plain(
            Answer::NotApplicable,
            "there is no such Service, and no slice names it",
        );
    }
    let age = g.age(g.objects.orphaned_since(g.name).unwrap_or_default());
    let says = format!(
        "{} a Service that does not exist",
        count(slices.len(), "slice names", "slices name")
    );
    let finding = Finding::new(
        Check::SlicesWithoutService,
        g.weight(age, limits::LAG_MS),
        says.clone(),
    )
    .with(slices.iter().map(|s| listed(s)));
    Part::judged(Answer::Pass, says, vec![finding])
}

/// A slice, with what it holds and who made it.
fn listed(s: &SliceObject) -> Evidence {
    let ready = s.slice.endpoints.iter().filter(|e| e.ready).count();
    let by = match s.managed_by.as_deref() {
        Some(SLICE_CONTROLLER) => String::new(),
        Some(MIRROR_CONTROLLER) => ", copied from Endpoints".into(),
        Some(other) => format!(", made by {other}"),
        None => ", made by hand".into(),
    };
    Evidence::new(
        object(&s.slice),
        format!(
            "{}, {ready} ready{by}",
            count(s.slice.endpoints.len(), "endpoint", "endpoints")
        ),
    )
}

fn of_service(
    g: &Ground,
    known: &KnownService,
    slices: &[&SliceObject],
    cause: Option<u8>,
) -> Part {
    let service = &known.object;
    let selecting = !service.selector.is_empty();
    let mut found = Vec::new();
    if selecting {
        found.extend(strangers(g, known, slices));
        found.extend(behind(g, known, slices));
        found.extend(unknown_nodes(g, service));
    }
    found.extend(gone_pods(g, slices));
    let converging = found.iter().any(|f| f.weight == Weight::Converging);
    let usable = Usable::of(service, slices);
    if !selecting && slices.is_empty() {
        let says = "it has no selector, and nobody made a slice for it";
        let age = g.age(known.changed);
        let weight = g.weight(age, limits::LAG_MS);
        found.push(Finding::new(Check::SelectorlessWithoutSlices, weight, says));
    } else {
        let weight = match converging {
            true => Weight::Converging,
            false => Weight::Fault,
        };
        found.extend(usable.findings(g, weight, cause));
    }
    let endpoints: usize = slices.iter().map(|s| s.slice.endpoints.len()).sum();
    let mut says = format!(
        "{} {}, {} ready",
        count(slices.len(), "slice lists", "slices list"),
        count(endpoints, "endpoint", "endpoints"),
        usable.ready
    );
    if usable.ready == 0 && usable.leaving > 0 {
        says += &format!(
            "; the datapath falls back on {} terminating",
            count(usable.leaving, "that is", "that are")
        );
    }
    if selecting {
        says += ", as the Pods are";
    }
    Part::judged(Answer::Pass, says, found).evidence(slices.iter().map(|s| listed(s)))
}

/// Slices that the controller did not make for this Service object.
fn strangers(g: &Ground, known: &KnownService, slices: &[&SliceObject]) -> Vec<Finding> {
    let mut found = Vec::new();
    let ours = |s: &&&SliceObject| s.managed_by.as_deref() == Some(SLICE_CONTROLLER);
    let by_hand: Vec<&&SliceObject> = slices.iter().filter(|s| !ours(s)).collect();
    if !by_hand.is_empty() {
        let says = format!(
            "{} by the controller; the datapath uses what is in it as well",
            count(by_hand.len(), "slice was not made", "slices were not made")
        );
        found.push(
            Finding::new(Check::HandMadeSlice, Weight::Hint, says)
                .with(by_hand.iter().map(|s| listed(s))),
        );
    }
    let uid = &known.object.service.uid;
    let other: Vec<&&SliceObject> = slices
        .iter()
        .filter(ours)
        .filter(|s| !uid.is_empty() && s.owner.as_ref().is_some_and(|o| o != uid))
        .collect();
    if !other.is_empty() {
        let age = g.age(known.changed);
        let says = format!(
            "{} to an earlier Service of this name, and should be gone",
            count(other.len(), "slice belongs", "slices belong")
        );
        found.push(
            Finding::new(
                Check::SliceOfAnotherService,
                g.weight(age, limits::LAG_MS),
                says,
            )
            .with(other.iter().map(|s| listed(s))),
        );
    }
    found
}

/// Address families of a Service (`getAddressTypesForService`).
fn families(service: &ServiceObject) -> Vec<Family> {
    let s = &service.service;
    if !s.ip_families.is_empty() {
        s.ip_families.clone()
    } else if s.cluster_ip.is_empty() || &*s.cluster_ip == "None" {
        Family::ALL.to_vec()
    } else {
        Vec::new()
    }
}

/// The Node of a Pod exists, as far as Nodes are known.
fn on_a_node(g: &Ground, pod: &Pod) -> Option<Mono> {
    let nodes_known = g
        .objects
        .counts()
        .iter()
        .any(|(kind, n)| *kind == Kind::Nodes && *n > 0);
    if !nodes_known {
        return Some(Mono(0));
    }
    g.objects.node(pod.node.as_deref()?).map(|(_, seen)| *seen)
}

/// Pods that the controller leaves out because their Node is not there.
fn unknown_nodes(g: &Ground, service: &ServiceObject) -> Option<Finding> {
    if service.publish_not_ready {
        return None;
    }
    let pods: Vec<&Pod> = g
        .selected
        .iter()
        .map(|k| &k.pod)
        .filter(|p| !p.ended() && !p.addresses.is_empty() && on_a_node(g, p).is_none())
        .collect();
    if pods.is_empty() {
        return None;
    }
    let says = format!(
        "{} on a Node that does not exist: the controller leaves it out",
        count(pods.len(), "Pod is", "Pods are")
    );
    Some(
        Finding::new(Check::PodOfUnknownNode, Weight::Hint, says).with(pods.iter().map(|p| {
            let node = p.node.as_deref().unwrap_or("none");
            Evidence::new(p.object(), format!("node {node}"))
        })),
    )
}

/// Something that slices say of a Pod and that is not so.
struct Contradiction {
    evidence: Evidence,
    age: u64,
}

/// An endpoint, and the slice that it stands in.
type Entry<'a> = (&'a EndpointSlice, &'a Endpoint);

/// Where the controller's slices do not say what the Pods are.
fn behind(g: &Ground, known: &KnownService, slices: &[&SliceObject]) -> Option<Finding> {
    let service = &known.object;
    let mut all: Vec<Contradiction> = Vec::new();
    let mut contradicts = |pod: &KnownPod, node: Mono, says: String| {
        let began = pod.changed.max(pod.entry).max(known.changed).max(node);
        all.push(Contradiction {
            evidence: Evidence::new(pod.pod.object(), says),
            age: g.age(began),
        });
    };
    let families = families(service);
    let managed: Vec<&EndpointSlice> = slices
        .iter()
        .filter(|s| s.managed_by.as_deref() == Some(SLICE_CONTROLLER))
        .map(|s| &s.slice)
        .collect();
    let mut listed: BTreeMap<(Family, &str), Vec<Entry>> = BTreeMap::new();
    for slice in &managed {
        for entry in &slice.endpoints {
            if let (Some(family), Some(pod)) = (slice.family, &entry.pod) {
                listed
                    .entry((family, pod))
                    .or_default()
                    .push((slice, entry));
            }
        }
    }
    for pod in &g.selected {
        let node = on_a_node(g, &pod.pod);
        for family in &families {
            let address = pod
                .pod
                .addresses
                .iter()
                .find(|a| Family::of(**a) == *family);
            let wanted = address
                .filter(|_| !pod.pod.ended() && (node.is_some() || service.publish_not_ready));
            // The controller is told of no Node that goes: such a Pod may be in or out.
            if node.is_none() && !service.publish_not_ready && !pod.pod.ended() {
                continue;
            }
            let entries = listed
                .get(&(*family, &*pod.pod.name))
                .map_or(&[][..], Vec::as_slice);
            let node = node.unwrap_or_default();
            match (wanted, entries.first()) {
                (None, None) => {}
                (None, Some((slice, _))) if pod.pod.ended() => {
                    contradicts(pod, node, format!("has ended and is in {}", object(slice)));
                }
                (None, Some((slice, _))) => {
                    let says = format!("makes no {family} endpoint and is in {}", object(slice));
                    contradicts(pod, node, says);
                }
                (Some(address), None) => {
                    contradicts(
                        pod,
                        node,
                        format!("{address} is in no slice of the controller"),
                    );
                }
                (Some(address), Some(_)) => {
                    for (slice, entry) in entries {
                        if let Some(says) = differs(service, &pod.pod, address, slice, entry) {
                            contradicts(pod, node, format!("{says} in {}", object(slice)));
                        }
                    }
                }
            }
        }
    }
    // Pods that are listed and not selected (any more).
    let mut seen: BTreeSet<&Arc<str>> = BTreeSet::new();
    for slice in &managed {
        for name in slice.endpoints.iter().filter_map(|e| e.pod.as_ref()) {
            let Some(pod) = g.objects.pod(&g.name.namespace, name) else {
                continue;
            };
            if !pod.pod.matches(&service.selector) && seen.insert(name) {
                let says = format!("is not selected and is in {}", object(slice));
                contradicts(pod, Mono(0), says);
            }
        }
    }
    let oldest = all.iter().map(|c| c.age).max()?;
    all.sort_by_key(|c| std::cmp::Reverse(c.age));
    let weight = g.weight(oldest, limits::LAG_MS);
    let pods: BTreeSet<&str> = all.iter().map(|c| c.evidence.object.as_str()).collect();
    let how_long = match (g.objects.settled_facts, weight) {
        (true, _) => String::new(),
        (false, Weight::Converging) => format!(
            " (for {}; the controller is given {} s)",
            ago(oldest as f64 / 1000.0),
            limits::LAG_MS / 1000
        ),
        (false, _) => format!(" (for {} at least)", ago(oldest as f64 / 1000.0)),
    };
    let says = format!(
        "the slices do not say what {}{how_long}",
        count(pods.len(), "Pod is", "Pods are")
    );
    Some(
        Finding::new(Check::SlicesBehindPods, weight, says)
            .with(all.into_iter().map(|c| c.evidence)),
    )
}

/// How an entry differs from what the Pod is.
fn differs(
    service: &ServiceObject,
    pod: &Pod,
    address: &std::net::IpAddr,
    slice: &EndpointSlice,
    entry: &Endpoint,
) -> Option<String> {
    if entry.address != Some(*address) {
        let listed = entry.address.map_or("no address".into(), |a| a.to_string());
        return Some(format!("has {address}, and stands as {listed}"));
    }
    let ready = service.publish_not_ready || (pod.ready && !pod.deleted);
    for (what, is, listed) in [
        ("ready", ready, entry.ready),
        ("serving", pod.ready, entry.serving),
        ("terminating", pod.deleted, entry.terminating),
    ] {
        if is != listed {
            let (is, listed) = match is {
                true => ("is", "not "),
                false => ("is not", ""),
            };
            return Some(format!("{is} {what}, and stands as {listed}{what}"));
        }
    }
    let mut wanted: BTreeSet<Port> = BTreeSet::new();
    for (port, target) in service.service.ports.iter().zip(&service.target_ports) {
        match pod.find_port(target, port.protocol) {
            Found::Number(n) => {
                wanted.insert((port.name.clone(), port.protocol, n));
            }
            Found::Nothing => {}
            // Controllers before 1.33 do not find it.
            Found::InSidecar(_) => return None,
        }
    }
    let stands: BTreeSet<Port> = slice
        .ports
        .iter()
        .filter_map(|p| Some((p.name.clone()?, p.protocol, p.port?)))
        .collect();
    (wanted != stands).then(|| {
        format!(
            "has {}, and stands with {}",
            ports_text(&wanted),
            ports_text(&stands)
        )
    })
}

fn ports_text(ports: &BTreeSet<Port>) -> String {
    let all: Vec<String> = ports.iter().map(|(_, p, n)| format!("{n}/{p}")).collect();
    match all.is_empty() {
        true => "no port".into(),
        false => format!("port {}", all.join(", ")),
    }
}

/// Endpoints of Pods that do not exist.
fn gone_pods(g: &Ground, slices: &[&SliceObject]) -> Option<Finding> {
    let namespace = &g.name.namespace;
    let mut found: Vec<(u64, Evidence)> = Vec::new();
    for slice in slices {
        for endpoint in &slice.slice.endpoints {
            let Some(name) = &endpoint.pod else { continue };
            if g.objects.pod(namespace, name).is_some() {
                continue;
            }
            let began = g.objects.absent_since(namespace, name).unwrap_or_default();
            let address = endpoint
                .address
                .map_or("no address".into(), |a| a.to_string());
            let how = if endpoint.ready { ", as ready" } else { "" };
            found.push((
                g.age(began),
                Evidence::new(
                    object(&slice.slice),
                    format!("lists {address} of Pod {name}, which does not exist{how}"),
                ),
            ));
        }
    }
    let oldest = found.iter().map(|(age, _)| *age).max()?;
    found.sort_by_key(|(age, _)| std::cmp::Reverse(*age));
    let weight = g.weight(oldest, limits::LAG_MS);
    let says = format!(
        "{} of Pods that do not exist",
        count(found.len(), "endpoint is", "endpoints are")
    );
    Some(
        Finding::new(Check::EndpointOfGonePod, weight, says)
            .with(found.into_iter().map(|(_, e)| e)),
    )
}

/// A port's name, protocol and number.
type Port = (Arc<str>, Protocol, u16);

/// What a datapath can use, by family and port.
struct Usable {
    ready: usize,
    leaving: usize,
    /// Family, port (`None` for a Service without ports), endpoints that can be used.
    by: Vec<(Family, Option<Port>, usize)>,
}

impl Usable {
    fn of(service: &ServiceObject, slices: &[&SliceObject]) -> Usable {
        let leaves = |e: &&Endpoint| !e.ready && e.serving && e.terminating;
        let all = || slices.iter().flat_map(|s| &s.slice.endpoints);
        let mut by = Vec::new();
        let families = families(service);
        // A headless Service without families of its own has what there is.
        let guessed = service.service.ip_families.is_empty();
        for family in families {
            let of_family = || {
                slices
                    .iter()
                    .filter(move |s| s.slice.family == Some(family))
            };
            if guessed && of_family().next().is_none() {
                continue;
            }
            let usable = |s: &SliceObject| {
                let ready = s.slice.endpoints.iter().filter(|e| e.ready).count();
                let leaving = s.slice.endpoints.iter().filter(leaves).count();
                ready + leaving
            };
            if service.service.ports.is_empty() {
                by.push((family, None, of_family().map(|s| usable(s)).sum()));
            }
            for port in &service.service.ports {
                let has = |s: &&&SliceObject| {
                    s.slice.ports.iter().any(|p| {
                        p.name.as_ref() == Some(&port.name)
                            && p.protocol == port.protocol
                            && p.port.is_some()
                    })
                };
                let n = of_family().filter(has).map(|s| usable(s)).sum();
                let key = (port.name.clone(), port.protocol, port.port);
                by.push((family, Some(key), n));
            }
        }
        Usable {
            ready: all().filter(|e| e.ready).count(),
            leaving: all().filter(leaves).count(),
            by,
        }
    }

    fn findings(&self, g: &Ground, weight: Weight, cause: Option<u8>) -> Vec<Finding> {
        let mut found = Vec::new();
        if self.by.iter().all(|(.., n)| *n == 0) {
            let says = match cause {
                Some(step) => format!("no endpoint can be used, as step {step} explains"),
                None => "no endpoint can be used".into(),
            };
            found.push(Finding::new(Check::NoUsableEndpoint, weight, says).follows(cause));
            return found;
        }
        let mut families: Vec<Family> = self.by.iter().map(|(f, ..)| *f).collect();
        families.dedup();
        for family in families {
            let of_family = || self.by.iter().filter(move |(f, ..)| *f == family);
            if of_family().all(|(.., n)| *n == 0) {
                let pods: Vec<&Pod> = g
                    .selected
                    .iter()
                    .map(|k| &k.pod)
                    .filter(|p| p.ready && !p.ended())
                    .filter(|p| p.addresses.iter().all(|a| Family::of(*a) != family))
                    .collect();
                let why = match pods.len() {
                    0 => String::new(),
                    n => format!(
                        "; {} {family} address",
                        count(n, "Pod has no", "Pods have no")
                    ),
                };
                let says = format!("no endpoint can be used over {family}{why}");
                let evidence = pods.iter().map(|p| {
                    let all: Vec<String> = p.addresses.iter().map(ToString::to_string).collect();
                    Evidence::new(p.object(), format!("has {}", all.join(", ")))
                });
                found.push(Finding::new(Check::FamilyWithoutEndpoint, weight, says).with(evidence));
                continue;
            }
            for (_, port, n) in of_family() {
                if let Some((_, protocol, number)) = port
                    && *n == 0
                {
                    let says = format!(
                        "no {family} endpoint can be used for port {number}/{protocol}{}",
                        match cause {
                            Some(step) => format!(", as step {step} explains"),
                            None => String::new(),
                        }
                    );
                    found.push(Finding::new(Check::NoUsableEndpoint, weight, says).follows(cause));
                }
            }
        }
        found
    }
}
