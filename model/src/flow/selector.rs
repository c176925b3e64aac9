//! Step 1: does the selector match Pods, and which would it match otherwise?

use super::objects::{Labels, Pod, label, selector_text};
use super::{Answer, Check, Evidence, Finding, Ground, Part, Weight, count, kubectl, limits};
use crate::service::ServiceType;
use std::collections::BTreeMap;

pub(super) fn answer(g: &Ground) -> Part {
    let Some(known) = g.service else {
        return Part::plain(Answer::NotApplicable, "there is no such Service");
    };
    let object = &known.object;
    if object.service.kind == ServiceType::ExternalName {
        return Part::plain(Answer::NotApplicable, "an ExternalName selects no Pods");
    }
    if object.selector.is_empty() {
        let says = "no selector: its slices are made by hand or by a controller of its own";
        return Part::plain(Answer::NotApplicable, says);
    }
    let selector = selector_text(&object.selector);
    let namespace = &*g.name.namespace;
    let all = || g.objects.pods(namespace).map(|k| &k.pod);
    let matching: Vec<&Pod> = g.selected.iter().map(|k| &k.pod).collect();
    if !matching.is_empty() {
        let says = format!(
            "{selector} matches {}",
            count(matching.len(), "Pod", "Pods")
        );
        return Part::plain(Answer::Pass, says).evidence(matching.iter().map(|p| {
            let node = p.node.as_deref().unwrap_or("no node");
            Evidence::new(p.object(), format!("{} on {node}", p.phase.word()))
        }));
    }
    let there = all().count();
    let says = match there {
        0 => format!("{selector} matches nothing: namespace {namespace} has no Pods"),
        1 => format!("{selector} does not match the only Pod in {namespace}"),
        n => format!("{selector} matches none of the {n} Pods in {namespace}"),
    };
    let nearest = nearest(&object.selector, all());
    let mut evidence: Vec<Evidence> = nearest
        .iter()
        .map(|(labels, pods)| Evidence::new(count(pods.len(), "Pod", "Pods"), near(labels, pods)))
        .collect();
    evidence.extend(elsewhere(g, &object.selector));
    let says = match nearest.first() {
        Some((labels, pods)) => format!(
            "{says}; {} {labels}",
            count(pods.len(), "Pod has", "Pods have")
        ),
        None => says,
    };
    let finding =
        Finding::new(Check::SelectorMatchesNothing, Weight::Fault, says.clone()).with(evidence);
    Part::judged(Answer::Pass, says, vec![finding]).run(kubectl(
        &[namespace, &g.name.name, &selector],
        &[
            format!(
                "-n {namespace} get svc {} -o jsonpath='{{.spec.selector}}'",
                g.name.name
            ),
            format!("-n {namespace} get pods --show-labels"),
        ],
    ))
}

fn near(labels: &str, pods: &[&Pod]) -> String {
    let names: Vec<String> = pods.iter().map(|p| p.name.to_string()).collect();
    let verb = if pods.len() == 1 { "has" } else { "have" };
    format!(
        "{verb} {labels}: {}",
        crate::report::words::few(&names, limits::SHOWN)
    )
}

/// How near: pairs that are equal, keys with another value, values under another key.
type Rank = (usize, usize, usize);

/// Pods that come nearest, in groups by the labels that differ: those that agree in the most pairs,
/// then those that have the most of the keys with another value, then those that have one of the
/// values under another key. Pods that have ended are not meant.
fn nearest<'a>(
    selector: &Labels,
    pods: impl Iterator<Item = &'a Pod>,
) -> Vec<(String, Vec<&'a Pod>)> {
    let mut groups: BTreeMap<(Rank, String), Vec<&Pod>> = BTreeMap::new();
    for pod in pods.filter(|p| !p.ended()) {
        let (mut equal, mut keys, mut values) = (0, 0, 0);
        let mut differs = Vec::new();
        for (key, value) in selector.iter() {
            match label(&pod.labels, key) {
                Some(have) if have == value => equal += 1,
                Some(have) => {
                    keys += 1;
                    differs.push(format!("{key}={have}"));
                }
                None => match pod.labels.iter().find(|(_, v)| v == value) {
                    Some((other, _)) => {
                        values += 1;
                        differs.push(format!("{other}={value}"));
                    }
                    None => differs.push(format!("no label {key}")),
                },
            }
        }
        if equal + keys + values > 0 {
            let rank = (equal, keys, values);
            let group = groups.entry((rank, differs.join(","))).or_default();
            group.push(pod);
        }
    }
    let mut all: Vec<_> = groups.into_iter().collect();
    // The best rank first, then the largest group.
    all.sort_by(|((a, s), p), ((b, t), q)| b.cmp(a).then(q.len().cmp(&p.len())).then(s.cmp(t)));
    let best = all.first().map(|((rank, _), _)| *rank);
    all.into_iter()
        .filter(|((rank, _), _)| Some(*rank) == best)
        .take(limits::NEAREST)
        .map(|((_, labels), pods)| (labels, pods))
        .collect()
}

/// Pods of other namespaces that the selector would match: only those of its own count.
fn elsewhere(g: &Ground, selector: &Labels) -> Option<Evidence> {
    let mut found: Vec<(usize, String)> = g
        .objects
        .namespaces()
        .filter(|ns| **ns != g.name.namespace)
        .filter_map(|ns| {
            let pods = g.objects.pods(ns).map(|k| &k.pod);
            let n = pods.filter(|p| !p.ended() && p.matches(selector)).count();
            (n > 0).then(|| (n, ns.to_string()))
        })
        .collect();
    found.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
    let (_, first) = found.first()?;
    let pods: usize = found.iter().map(|(n, _)| n).sum();
    let more = match found.len() {
        1 => String::new(),
        n => format!(" and {} more", n - 1),
    };
    Some(Evidence::new(
        count(pods, "Pod", "Pods"),
        format!(
            "of other namespaces would match ({first}{more}); a selector only looks in its own"
        ),
    ))
}
