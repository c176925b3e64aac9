//! Step 2: are the selected Pods ready, and do they have the port?

use super::objects::{
    Container, ContainerState, Found, Pod, ServiceObject, TargetPort, selector_text,
};
use super::{Answer, Check, Evidence, Finding, Ground, Part, Weight, count, kubectl};
use crate::service::ServicePort;
use std::collections::BTreeMap;

pub(super) fn answer(g: &Ground) -> Part {
    let Some(known) = g.selecting() else {
        let says = match g.service {
            None => "there is no such Service",
            Some(_) => "no Pods are selected: it has no selector",
        };
        return Part::plain(Answer::NotApplicable, says);
    };
    let object = &known.object;
    let selected: Vec<&Pod> = g.selected.iter().map(|k| &k.pod).collect();
    let (ended, live): (Vec<&Pod>, Vec<&Pod>) = selected.iter().partition(|p| p.ended());
    if selected.is_empty() {
        return Part::plain(Answer::NotApplicable, "no Pod is selected");
    }
    let (ready, not_ready): (Vec<&Pod>, Vec<&Pod>) =
        live.iter().partition(|p| p.ready && !p.deleted);
    let mut found = Vec::new();
    let why = |p: &&Pod| Evidence::new(p.object(), why_not(p));
    if ready.is_empty() {
        let says = if live.is_empty() {
            format!(
                "{} ended, and no other is there",
                count(ended.len(), "Pod has", "Pods have")
            )
        } else {
            let first = live.first().map(|p| why_not(p)).unwrap_or_default();
            match live.len() {
                1 => format!("the only Pod is not ready: {first}"),
                n => format!("none of {n} Pods is ready: {first}"),
            }
        };
        // They are published all the same.
        let weight = match object.publish_not_ready && !live.is_empty() {
            true => Weight::Hint,
            false => Weight::Fault,
        };
        let all = not_ready.iter().chain(&ended);
        found.push(Finding::new(Check::NoReadyPod, weight, says).with(all.map(why)));
    } else if !not_ready.is_empty() {
        let says = format!("{} not ready", count(not_ready.len(), "Pod is", "Pods are"));
        found.push(
            Finding::new(Check::PodNotReady, Weight::Hint, says).with(not_ready.iter().map(why)),
        );
    }
    // Which Pods a port is looked for in: those that can get traffic, else those that may.
    let asked: &[&Pod] = match (ready.is_empty(), live.is_empty()) {
        (false, _) => &ready,
        (true, false) => &live,
        (true, true) => &[],
    };
    for (port, target) in object.service.ports.iter().zip(&object.target_ports) {
        found.extend(port_findings(port, target, asked));
    }
    let says = format!(
        "{} of {} ready{}",
        ready.len(),
        count(live.len(), "Pod is", "Pods are"),
        ports_text(object)
    );
    Part::judged(Answer::Pass, says, found)
        .evidence(ended.iter().map(why))
        .run(commands(g, object, &live))
}

fn commands(g: &Ground, object: &ServiceObject, live: &[&Pod]) -> Vec<String> {
    let namespace = &*g.name.namespace;
    let selector = selector_text(&object.selector);
    let mut lines = vec![format!("-n {namespace} get pods -l {selector} -o wide")];
    let mut words = vec![namespace, &*selector];
    if let Some(pod) = live.iter().find(|p| !p.ready) {
        lines.push(format!("-n {namespace} describe pod {}", pod.name));
        words.push(&pod.name);
    }
    kubectl(&words, &lines)
}

fn ports_text(object: &ServiceObject) -> String {
    if object.service.ports.is_empty() {
        return String::new();
    }
    let all: Vec<String> = object
        .service
        .ports
        .iter()
        .zip(&object.target_ports)
        .take(super::limits::SHOWN)
        .map(|(p, t)| format!("{}/{} to {t}", p.port, p.protocol))
        .collect();
    format!("; {}", all.join(", "))
}

/// What a target port means in these Pods.
fn port_findings(port: &ServicePort, target: &TargetPort, pods: &[&Pod]) -> Vec<Finding> {
    let mut found = Vec::new();
    if pods.is_empty() {
        return found;
    }
    let of = format!("port {}/{}", port.port, port.protocol);
    match target {
        TargetPort::Number(number) => {
            let declares = |p: &&Pod| {
                p.ports
                    .iter()
                    .any(|c| c.number == *number && c.protocol == port.protocol)
            };
            if !pods.iter().any(declares) {
                let says = format!(
                    "no container declares {number}/{}, where {of} is sent; that is only \
                     information, and it may listen there all the same",
                    port.protocol
                );
                let evidence = pods.iter().map(|p| Evidence::new(p.object(), declared(p)));
                found.push(
                    Finding::new(Check::TargetPortNotDeclared, Weight::Hint, says).with(evidence),
                );
            }
        }
        TargetPort::Name(name) => {
            let mut numbers: BTreeMap<u16, Vec<&Pod>> = BTreeMap::new();
            let mut without = Vec::new();
            for pod in pods {
                match pod.find_port(target, port.protocol) {
                    Found::Number(n) | Found::InSidecar(n) => {
                        numbers.entry(n).or_default().push(pod);
                    }
                    Found::Nothing => without.push(*pod),
                }
            }
            let evidence = |pods: &[&Pod]| -> Vec<Evidence> {
                pods.iter()
                    .map(|p| Evidence::new(p.object(), declared(p)))
                    .collect()
            };
            if numbers.is_empty() {
                let says = format!(
                    "{of} is sent to the port named {name}, which no Pod has as {}{}",
                    port.protocol,
                    names_there(pods)
                );
                found.push(
                    Finding::new(Check::TargetPortUnknown, Weight::Fault, says)
                        .with(evidence(&without)),
                );
            } else if !without.is_empty() {
                let says = format!(
                    "{} no port named {name} ({}), and nothing of {of}",
                    count(without.len(), "Pod has", "Pods have"),
                    port.protocol
                );
                found.push(
                    Finding::new(Check::TargetPortMissingInSome, Weight::Hint, says)
                        .with(evidence(&without)),
                );
            }
            if numbers.len() > 1 {
                let all: Vec<String> = numbers
                    .iter()
                    .map(|(n, pods)| format!("{n} in {}", count(pods.len(), "Pod", "Pods")))
                    .collect();
                let says = format!("the port named {name} is {}", all.join(", "));
                let evidence = numbers.iter().filter_map(|(n, pods)| {
                    Some(Evidence::new(
                        pods.first()?.object(),
                        format!("{name} is {n}"),
                    ))
                });
                found.push(
                    Finding::new(Check::TargetPortDiffers, Weight::Hint, says).with(evidence),
                );
            }
        }
    }
    found
}

/// The names that Pods do have.
fn names_there(pods: &[&Pod]) -> String {
    let mut all: Vec<String> = pods
        .iter()
        .flat_map(|p| p.ports.iter())
        .filter(|p| !p.name.is_empty())
        .map(|p| format!("{} ({}/{})", p.name, p.number, p.protocol))
        .collect();
    all.sort();
    all.dedup();
    match all.is_empty() {
        true => "; they have no named port".into(),
        false => format!(
            "; they have {}",
            crate::report::words::few(&all, super::limits::SHOWN)
        ),
    }
}

fn declared(pod: &Pod) -> String {
    let all: Vec<String> = pod
        .ports
        .iter()
        .map(|p| match p.name.is_empty() {
            true => format!("{}/{}", p.number, p.protocol),
            false => format!("{}={}/{}", p.name, p.number, p.protocol),
        })
        .collect();
    match all.is_empty() {
        true => "declares no port".into(),
        false => format!(
            "declares {}",
            crate::report::words::few(&all, super::limits::SHOWN)
        ),
    }
}

/// Why a Pod is not ready, one clause: what its containers do, else its conditions.
pub(super) fn why_not(pod: &Pod) -> String {
    if pod.ended() {
        return format!("ended ({})", pod.phase.word());
    }
    if pod.deleted {
        return "is being deleted".into();
    }
    let Some(why) = &pod.not_ready else {
        return match pod.ready {
            true => "ready".into(),
            false => format!("not ready ({})", pod.phase.word()),
        };
    };
    let condition = |kind: &str| why.conditions.iter().find(|c| &*c.kind == kind);
    if let Some(c) = condition("PodScheduled") {
        return clause("not scheduled", &c.reason, &c.message);
    }
    // A container that does not run says more than one that waits for it.
    let worst = why.containers.iter().min_by_key(|c| match c.state {
        ContainerState::Waiting(_) | ContainerState::Terminated(..) => (0, !c.init),
        ContainerState::Running { .. } => (1, c.init),
        ContainerState::Unknown => (2, c.init),
    });
    if let Some(container) = worst {
        return container_says(container);
    }
    // All containers are ready: a readiness gate, or the node.
    let other = why
        .conditions
        .iter()
        .find(|c| !matches!(&*c.kind, "Ready" | "ContainersReady" | "Initialized"))
        .or_else(|| condition("Ready"))
        .or_else(|| why.conditions.first());
    match other {
        Some(c) => clause(
            &format!("condition {} is not True", c.kind),
            &c.reason,
            &c.message,
        ),
        None => format!(
            "not ready ({}), and no condition says why",
            pod.phase.word()
        ),
    }
}

fn clause(what: &str, reason: &str, message: &str) -> String {
    match (reason.is_empty(), message.is_empty()) {
        (true, true) => what.into(),
        (false, true) => format!("{what}: {reason}"),
        (true, false) => format!("{what}: {message}"),
        (false, false) => format!("{what}: {reason}, {message}"),
    }
}

fn container_says(c: &Container) -> String {
    let what = match c.init {
        true => "init container",
        false => "container",
    };
    let restarts = match c.restarts {
        0 => String::new(),
        n => format!(" ({})", count(n as usize, "restart", "restarts")),
    };
    match &c.state {
        ContainerState::Waiting(why) => format!("{what} {} waits: {why}{restarts}", c.name),
        ContainerState::Terminated(why, code) => {
            format!("{what} {} ended: {why}, exit code {code}{restarts}", c.name)
        }
        ContainerState::Running { started: false } => {
            format!(
                "{what} {} runs, its startup probe has not succeeded{restarts}",
                c.name
            )
        }
        ContainerState::Running { started: true } => {
            format!(
                "{what} {} runs, its readiness probe does not succeed{restarts}",
                c.name
            )
        }
        ContainerState::Unknown => format!("{what} {} has no state yet", c.name),
    }
}
