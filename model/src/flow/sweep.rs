//! What the API alone answers, for every Service.

use super::objects::Labels;
use super::store::KnownPod;
use super::{Finding, Ground, Objects, Weight, answers, usable};
use crate::name::ServiceName;
use crate::time::Now;
use serde::{Serialize, Serializer};
use std::collections::HashMap;

/// A finding that the API alone gives, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ApiFinding {
    /// `shop/web`.
    #[serde(serialize_with = "as_text")]
    pub service: ServiceName,
    /// The step that it belongs to.
    pub step: u8,
    /// What was found.
    #[serde(flatten)]
    pub finding: Finding,
}

fn as_text<S: Serializer>(service: &ServiceName, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(service)
}

impl ApiFinding {
    /// A fault that does not only follow from another one of the same Service.
    pub fn is_by_itself(&self) -> bool {
        self.finding.weight == Weight::Fault && self.finding.follows_from.is_none()
    }
}

/// A walk through every Service that can be taken in parts, so that whoever holds the objects for it
/// lets others at them in between. What came meanwhile is in it or not; each Service is judged by what
/// was known at one time.
#[derive(Clone, Debug, Default)]
pub struct Sweep {
    /// Still to be looked at, the last first.
    names: Vec<ServiceName>,
    found: Vec<ApiFinding>,
}

impl Sweep {
    /// From the first Service, or name of one that slices have, in the order of names.
    pub fn begin(objects: &Objects) -> Sweep {
        let mut names: Vec<ServiceName> = objects.services().map(|(n, _)| n.clone()).collect();
        names.extend(objects.orphans().cloned());
        names.sort_by(|a, b| b.cmp(a));
        names.dedup();
        Sweep {
            names,
            found: Vec::new(),
        }
    }

    /// Looks at the next so many. True: there are more.
    ///
    /// # Errors
    /// What the API said is no answer, for this reason.
    pub fn step(&mut self, objects: &Objects, now: Now, many: usize) -> Result<bool, String> {
        let as_of = usable(objects, now)?;
        let rest = self.names.len().saturating_sub(many);
        let mut pods = ByLabel::of(objects, "");
        for name in self.names.drain(rest..).rev() {
            if *name.namespace != *pods.namespace {
                pods = ByLabel::of(objects, &name.namespace);
            }
            let mut ground = Ground::of(&name, objects, as_of);
            if let Some(known) = ground.selecting() {
                ground.selected = pods.selected(&known.object.selector);
            }
            for (part, step) in answers(Some(&ground), "", &[]).into_iter().zip(1u8..) {
                self.found
                    .extend(part.found.into_iter().map(|finding| ApiFinding {
                        service: name.clone(),
                        step,
                        finding,
                    }));
            }
        }
        Ok(!self.names.is_empty())
    }

    /// What was found, in the order of the Services' names.
    pub fn found(self) -> Vec<ApiFinding> {
        self.found
    }
}

/// A namespace's Pods by each of their labels: with it, what Services select there costs what is
/// selected, and not all Pods for each Service.
struct ByLabel<'a> {
    namespace: String,
    pods: HashMap<(&'a str, &'a str), Vec<&'a KnownPod>>,
}

impl<'a> ByLabel<'a> {
    fn of(objects: &'a Objects, namespace: &str) -> ByLabel<'a> {
        let mut pods: HashMap<_, Vec<_>> = HashMap::new();
        for known in objects.pods(namespace) {
            for (key, value) in known.pod.labels.iter() {
                pods.entry((&**key, &**value)).or_default().push(known);
            }
        }
        ByLabel {
            namespace: namespace.to_string(),
            pods,
        }
    }

    /// Those that the selector chooses, in the order of their names.
    fn selected(&self, selector: &Labels) -> Vec<&'a KnownPod> {
        let lists = selector.iter().map(|(key, value)| {
            let list = self.pods.get(&(&**key, &**value));
            list.map_or(&[][..], |l| l.as_slice())
        });
        let shortest = lists.min_by_key(|l| l.len()).unwrap_or_default().iter();
        shortest
            .filter(|k| k.pod.matches(selector))
            .copied()
            .collect()
    }
}

/// What the API alone gives for every Service, in order of their names: steps 1, 2, 3, 4 and 7 without
/// the nodes.
///
/// # Errors
/// What the API said is no answer, for this reason.
pub fn api_findings(objects: &Objects, now: Now) -> Result<Vec<ApiFinding>, String> {
    let mut sweep = Sweep::begin(objects);
    let all = sweep.names.len();
    sweep.step(objects, now, all)?;
    Ok(sweep.found())
}
