//! Step 5: do the Pods answer? Nothing is sent to them: connection tracking says which of the flows that
//! clients began lately were answered ([`crate::flows`]).
//!
//! What could make it lie, and what is done about it: flows to an earlier Pod of the same address
//! (those count only that began after the Pod and its endpoint last changed); a client that a
//! NetworkPolicy forbids (no fault where the endpoint answers anybody else, or where one client alone
//! asked and nothing else is answered either); UDP that nobody answers by design (counts only where
//! another endpoint answers on the same node).

use super::store::KnownPod;
use super::{
    Answer, Check, Evidence, Finding, Ground, NodeAnswer, Part, Weight, count, kubectl, limits,
};
use crate::address::Protocol;
use crate::capture::Reading;
use crate::flows::{BackendAnswer, Flows};
use crate::report::words::{ago, few};
use crate::service::ServiceType::ExternalName;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

/// Unanswered flows from one node that are more than chance.
const FLOWS: u32 = 3;

/// An endpoint that can be used now.
struct Target<'a> {
    protocol: Protocol,
    /// Name of the Service's port.
    port: &'a Arc<str>,
    pod: Option<&'a KnownPod>,
    answered_on: BTreeSet<&'a str>,
    silent_on: Vec<Silent<'a>>,
    /// Flows that may be an earlier Pod's.
    too_old: bool,
}

/// Unanswered flows of one node.
struct Silent<'a> {
    node: &'a str,
    flows: u32,
    sources: u32,
    age: u64,
    /// Others of the same port answered there.
    siblings: bool,
}

type Targets<'a> = BTreeMap<(Protocol, SocketAddr), Target<'a>>;

pub(super) fn answer(g: &Ground, nodes: &[NodeAnswer]) -> Part {
    let Some(known) = g.service else {
        return Part::plain(
            Answer::Unknown,
            "there is no Service whose endpoints could be looked at",
        );
    };
    let service = &known.object.service;
    if service.kind == ExternalName {
        return Part::plain(Answer::NotApplicable, "an ExternalName has no Pods");
    }
    if &*service.cluster_ip == "None" {
        let says = "nothing is sent to Pods, and flows to a headless Service are not translated";
        return Part::plain(Answer::Unknown, says);
    }
    if nodes.is_empty() {
        // Asked of every Service at once, it must cost nothing.
        return Part::plain(Answer::Unknown, unread(nodes));
    }
    let mut targets = targets(g);
    if targets.is_empty() {
        return Part::plain(Answer::Unknown, "no endpoint is ready");
    }
    let readers = readers(nodes);
    if readers.is_empty() {
        return Part::plain(Answer::Unknown, unread(nodes));
    }
    for (node, flows, clock) in &readers {
        take(g, &mut targets, node, flows, *clock);
    }
    judge(g, &targets, &readers)
}

/// Usable endpoints by where they are. Ports of a slice belong to the Service's ports by name.
fn targets<'a>(g: &'a Ground) -> Targets<'a> {
    let mut all = Targets::new();
    for slice in g.objects.slices_of(g.name) {
        for port in &slice.slice.ports {
            let (Some(name), Some(number)) = (&port.name, port.port) else {
                continue;
            };
            for endpoint in slice.slice.endpoints.iter().filter(|e| e.ready) {
                let Some(address) = endpoint.address else {
                    continue;
                };
                let pod = endpoint.pod.as_ref();
                all.insert(
                    (port.protocol, SocketAddr::new(address, number)),
                    Target {
                        protocol: port.protocol,
                        port: name,
                        pod: pod.and_then(|p| g.objects.pod(&g.name.namespace, p)),
                        answered_on: BTreeSet::new(),
                        silent_on: Vec::new(),
                        too_old: false,
                    },
                );
            }
        }
    }
    all
}

type Reader<'a> = (&'a str, &'a Flows, u64);

fn readers<'a>(nodes: &'a [NodeAnswer]) -> Vec<Reader<'a>> {
    let said = nodes.iter().filter_map(|n| Some((n, n.flows?)));
    said.filter_map(|(n, f)| Some((&*n.node.0, f.reading.read()?, f.clock)))
        .collect()
}

/// Why no node says anything of flows.
fn unread(nodes: &[NodeAnswer]) -> String {
    let failed = nodes.iter().find_map(|n| match n.flows?.reading {
        Reading::Failed(gap) => Some(format!("flows were not read on {}: {}", n.node, gap.why)),
        _ => None,
    });
    let absent = || nodes.iter().any(|n| n.flows.is_some());
    match failed {
        Some(why) => why,
        None if absent() => "the nodes' kernels have no connection tracking".into(),
        None if nodes.iter().any(|n| n.state.is_some()) => {
            "nothing is sent to Pods, and no agent reports flows yet".into()
        }
        None => "nothing is sent to Pods, and no node reports".into(),
    }
}

/// Takes in what one node saw.
fn take<'a>(g: &Ground, targets: &mut Targets<'a>, node: &'a str, flows: &Flows, clock: u64) {
    let answered: BTreeSet<(Protocol, SocketAddr)> = flows
        .backends
        .iter()
        .filter(|b| b.answer == BackendAnswer::Some)
        .map(|b| (b.protocol, b.backend))
        .collect();
    // Ports of which an endpoint answered here.
    let ports: BTreeSet<(Protocol, Arc<str>)> = targets
        .iter()
        .filter(|(at, _)| answered.contains(at))
        .map(|(_, t)| (t.protocol, t.port.clone()))
        .collect();
    for (at, target) in targets.iter_mut() {
        if answered.contains(at) {
            target.answered_on.insert(node);
            continue;
        }
        // One Pod can stand behind several Services: flows through this one count.
        let mine = flows.backends.iter().filter(|b| {
            (b.protocol, b.backend) == *at
                && b.service.service == *g.name
                && b.service.port == *target.port
        });
        for backend in mine {
            let BackendAnswer::None {
                flows,
                sources,
                since,
            } = backend.answer
            else {
                continue;
            };
            let age = clock.saturating_sub(since.0);
            if target
                .pod
                .is_some_and(|p| g.age(p.changed.max(p.entry)) < age)
            {
                target.too_old = true;
                continue;
            }
            target.silent_on.push(Silent {
                node,
                flows,
                sources,
                age,
                siblings: ports.contains(&(target.protocol, target.port.clone())),
            });
        }
    }
}

fn named(at: SocketAddr, target: &Target) -> String {
    match target.pod {
        Some(p) => format!("Pod {}/{}", p.pod.namespace, p.pod.name),
        None => format!("endpoint {at}/{}", target.protocol),
    }
}

fn evidence(at: SocketAddr, target: &Target) -> Vec<Evidence> {
    let each = target.silent_on.iter().map(|s| {
        Evidence::new(
            named(at, target),
            format!(
                "{at}/{}: {} from {} on node {} within {}, none answered{}",
                target.protocol,
                count(s.flows as usize, "new flow", "new flows"),
                count(s.sources as usize, "address", "addresses"),
                s.node,
                ago(s.age as f64 / 1000.0),
                if s.siblings { "; others are" } else { "" }
            ),
        )
    });
    each.collect()
}

fn judge(g: &Ground, targets: &Targets, readers: &[Reader]) -> Part {
    let mut found = Vec::new();
    let (mut silent, mut some, mut single) = (Vec::new(), Vec::new(), Vec::new());
    let (mut answered, mut unsure) = (0, 0);
    for ((protocol, at), target) in targets {
        // Of UDP, silence says something only where others speak.
        let counts = |s: &&Silent| s.flows >= FLOWS && (s.siblings || *protocol == Protocol::Tcp);
        let bad: Vec<&Silent> = target.silent_on.iter().filter(counts).collect();
        if !target.answered_on.is_empty() {
            answered += 1;
            if !bad.is_empty() {
                some.push((*at, target));
            }
            continue;
        }
        // Addresses on different nodes may be the same one, and are not added up.
        let several = bad.iter().any(|s| s.siblings || s.sources > 1);
        match (bad.is_empty(), several && target.pod.is_some()) {
            (false, true) => silent.push((*at, target)),
            (false, false) => single.push((*at, target)),
            (true, _) => unsure += usize::from(!target.silent_on.is_empty() || target.too_old),
        }
    }
    let nodes = |list: &[(SocketAddr, &Target)]| {
        let all: BTreeSet<&str> = list
            .iter()
            .flat_map(|(_, t)| t.silent_on.iter().map(|s| s.node))
            .collect();
        let all: Vec<String> = all.into_iter().map(String::from).collect();
        few(&all, limits::SHOWN)
    };
    let of = |list: &[(SocketAddr, &Target)]| {
        format!(
            "{} of {}",
            list.len(),
            count(targets.len(), "usable endpoint", "usable endpoints")
        )
    };
    let proof = |list: &[(SocketAddr, &Target)]| -> Vec<Evidence> {
        list.iter().flat_map(|(at, t)| evidence(*at, t)).collect()
    };
    if !silent.is_empty() {
        let says = format!(
            "{} answered none of the new flows (seen on {})",
            of(&silent),
            nodes(&silent)
        );
        found.push(Finding::new(Check::EndpointSilent, Weight::Fault, says).with(proof(&silent)));
    }
    if !single.is_empty() {
        let says = format!(
            "{} answered none of the new flows of one client (seen on {}): a NetworkPolicy that \
             forbids it looks the same",
            of(&single),
            nodes(&single)
        );
        found.push(Finding::new(Check::EndpointSilent, Weight::Hint, says).with(proof(&single)));
    }
    if !some.is_empty() {
        let says = format!(
            "{} answered others, but no new flow from {}: a NetworkPolicy, or the way from there",
            of(&some),
            nodes(&some)
        );
        found.push(
            Finding::new(Check::EndpointSilentForSome, Weight::Hint, says).with(proof(&some)),
        );
    }
    let open = single.len() + unsure;
    let mut says = match (answered, open) {
        (0, 0) => "no new flow to its endpoints was seen in the last 5 min; one that a Pod refuses leaves no trace"
            .to_string(),
        (0, _) => "no new flow to its endpoints was answered, too few to tell why".into(),
        (n, _) => format!(
            "new flows to {n} of {} were answered",
            count(targets.len(), "usable endpoint", "usable endpoints")
        ),
    };
    let unseen = targets.len() - answered - silent.len() - open;
    if answered > 0 && open > 0 {
        says += &format!(", to {open} none yet, too few to tell");
    }
    if answered > 0 && unseen > 0 {
        says += &format!("; none was seen to the other {unseen}");
    }
    if readers.iter().any(|(_, f, _)| f.left_out > 0) {
        says += "; a node saw more backends than it reports";
    }
    let answer = match (answered, open) {
        (0, _) | (_, 1..) => Answer::Unknown,
        _ => Answer::Pass,
    };
    let namespace = &*g.name.namespace;
    let mut run = kubectl(
        &[namespace],
        &[format!("-n {namespace} get networkpolicies")],
    );
    for (at, target) in silent.iter().take(2) {
        if let Some(p) = target.pod {
            let name = &*p.pod.name;
            let lines = [format!("-n {namespace} get pod {name} -o wide")];
            run.extend(kubectl(&[namespace, name], &lines));
        }
        let ip = at.ip();
        run.push(format!(
            "conntrack -L --reply-src {ip}   # on {}",
            target.silent_on.first().map_or("the node", |s| s.node)
        ));
    }
    Part::judged(answer, says, found).run(run)
}
