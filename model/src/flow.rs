//! The debugging flow for one Service: eight questions, each answered with evidence (design 8).
//!
//! Input: what the API said ([`Objects`], where it can be asked), and what each node says it does
//! ([`NodeAnswer`]). Output: [`Flow`]. Nothing here is sent, looked up or waited for.
//!
//! Reading order: [`objects`] and [`store`] (what is known), this file (what is answered), then one file
//! for each question: `selector` (1), `pods` (2), `slices` (3), `address` (4), `direct` (5), `nodes` (the
//! nodes' part of 4, 6, 7 and 8), `outside` (7). `sweep` asks of all Services what the API alone answers.
//!
//! A step fails by what is found in it. A fault that only follows from an earlier step's says so, and
//! the verdict names the first step that fails by itself.

mod address;
mod direct;
pub mod limits;
mod nodes;
pub mod objects;
mod outside;
mod pods;
mod selector;
mod slices;
pub mod store;
mod sweep;
mod text;

#[cfg(test)]
mod tests;

pub use nodes::{NodeAnswer, NodeFlows};
pub use store::Objects;
pub use sweep::{ApiFinding, Sweep, api_findings};
pub use text::{evidence_lines, finding_text, wrapped};

use crate::name::ServiceName;
use crate::report::words::ago;
use crate::time::{Mono, Now};
use serde::Serialize;
use store::{KnownPod, KnownService};

/// The answer to one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// As it should be.
    Pass,
    /// It is not; what was found says how.
    Fail,
    /// It could not be told, or is still given time.
    Unknown,
    /// The question makes no sense for this Service.
    NotApplicable,
}

impl Answer {
    /// As it stands in the text.
    pub fn word(self) -> &'static str {
        match self {
            Answer::Pass => "pass",
            Answer::Fail => "FAIL",
            Answer::Unknown => "unknown",
            Answer::NotApplicable => "-",
        }
    }
}

/// What can be found. Each has a case that provokes it, and a near miss that stays silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// The selector matches no Pod of the namespace.
    SelectorMatchesNothing,
    /// No Pod that is selected is ready.
    NoReadyPod,
    /// Some of the Pods that are selected are not ready.
    PodNotReady,
    /// No Pod has a port of the name and protocol that the Service's port is sent to.
    TargetPortUnknown,
    /// Some of the Pods have no port of that name.
    TargetPortMissingInSome,
    /// No container says that it has this port, which is only information.
    TargetPortNotDeclared,
    /// The port's name means different numbers in different Pods.
    TargetPortDiffers,
    /// Slices name a Service that does not exist.
    SlicesWithoutService,
    /// A slice of a Service with a selector that the controller did not make.
    HandMadeSlice,
    /// A slice of the controller that belongs to another Service object, an earlier one of this name.
    SliceOfAnotherService,
    /// An endpoint of a Pod that does not exist.
    EndpointOfGonePod,
    /// The slices do not say what the Pods are.
    SlicesBehindPods,
    /// A Pod on a Node that does not exist: the controller leaves it out.
    PodOfUnknownNode,
    /// No endpoint can be used.
    NoUsableEndpoint,
    /// One of the Service's address families has no endpoint that can be used, the other has.
    FamilyWithoutEndpoint,
    /// No selector, and no slice that somebody made by hand.
    SelectorlessWithoutSlices,
    /// The external name is an address: DNS would answer with an alias that is no name.
    ExternalNameIsAddress,
    /// Another Service claims the same address, protocol and port.
    AddressClaimedTwice,
    /// An endpoint that can be used answered none of the new flows that were sent to it.
    EndpointSilent,
    /// It answered others, but none from one node.
    EndpointSilentForSome,
    /// Nodes do not do with the address what the API asks for.
    NodesDiffer,
    /// Nodes are still given time.
    NodesConverge,
    /// kube-proxy or the way to its rules is at fault on a node.
    ProxyUnhealthy,
    /// A load balancer that has no address.
    LoadBalancerWithoutAddress,
    /// A node that clients are led to has no endpoint, and the policy is Local.
    AnnouncedWithoutLocalEndpoint,
    /// Nodes without an endpoint drop what reaches them, by the policy Local.
    LocalPolicy,
    /// No client can have an address in any of the source ranges.
    SourceRangesExcludeEverybody,
    /// The source ranges hold none of this address family, and restrict nothing.
    SourceRangesOfOtherFamily,
}

impl Check {
    /// Every check.
    pub const ALL: [Check; 28] = [
        Check::SelectorMatchesNothing,
        Check::NoReadyPod,
        Check::PodNotReady,
        Check::TargetPortUnknown,
        Check::TargetPortMissingInSome,
        Check::TargetPortNotDeclared,
        Check::TargetPortDiffers,
        Check::SlicesWithoutService,
        Check::HandMadeSlice,
        Check::SliceOfAnotherService,
        Check::EndpointOfGonePod,
        Check::SlicesBehindPods,
        Check::PodOfUnknownNode,
        Check::NoUsableEndpoint,
        Check::FamilyWithoutEndpoint,
        Check::SelectorlessWithoutSlices,
        Check::ExternalNameIsAddress,
        Check::AddressClaimedTwice,
        Check::EndpointSilent,
        Check::EndpointSilentForSome,
        Check::NodesDiffer,
        Check::NodesConverge,
        Check::ProxyUnhealthy,
        Check::LoadBalancerWithoutAddress,
        Check::AnnouncedWithoutLocalEndpoint,
        Check::LocalPolicy,
        Check::SourceRangesExcludeEverybody,
        Check::SourceRangesOfOtherFamily,
    ];

    /// Its word in JSON, parameters and metrics.
    pub fn word(self) -> &'static str {
        match self {
            Check::SelectorMatchesNothing => "selector_matches_nothing",
            Check::NoReadyPod => "no_ready_pod",
            Check::PodNotReady => "pod_not_ready",
            Check::TargetPortUnknown => "target_port_unknown",
            Check::TargetPortMissingInSome => "target_port_missing_in_some",
            Check::TargetPortNotDeclared => "target_port_not_declared",
            Check::TargetPortDiffers => "target_port_differs",
            Check::SlicesWithoutService => "slices_without_service",
            Check::HandMadeSlice => "hand_made_slice",
            Check::SliceOfAnotherService => "slice_of_another_service",
            Check::EndpointOfGonePod => "endpoint_of_gone_pod",
            Check::SlicesBehindPods => "slices_behind_pods",
            Check::PodOfUnknownNode => "pod_of_unknown_node",
            Check::NoUsableEndpoint => "no_usable_endpoint",
            Check::FamilyWithoutEndpoint => "family_without_endpoint",
            Check::SelectorlessWithoutSlices => "selectorless_without_slices",
            Check::ExternalNameIsAddress => "external_name_is_address",
            Check::AddressClaimedTwice => "address_claimed_twice",
            Check::EndpointSilent => "endpoint_silent",
            Check::EndpointSilentForSome => "endpoint_silent_for_some",
            Check::NodesDiffer => "nodes_differ",
            Check::NodesConverge => "nodes_converge",
            Check::ProxyUnhealthy => "proxy_unhealthy",
            Check::LoadBalancerWithoutAddress => "load_balancer_without_address",
            Check::AnnouncedWithoutLocalEndpoint => "announced_without_local_endpoint",
            Check::LocalPolicy => "local_policy",
            Check::SourceRangesExcludeEverybody => "source_ranges_exclude_everybody",
            Check::SourceRangesOfOtherFamily => "source_ranges_of_other_family",
        }
    }
}

/// What a finding means for its step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Weight {
    /// The step fails.
    Fault,
    /// It is still given time: the step is unknown.
    Converging,
    /// Worth knowing; nobody's traffic is known to suffer.
    Hint,
}

/// An object, node or rule, and what it says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Evidence {
    /// `Pod shop/web-1`, `EndpointSlice shop/web-abc`, `node n17`.
    pub object: String,
    /// One clause.
    pub says: String,
}

impl Evidence {
    fn new(object: impl Into<String>, says: impl Into<String>) -> Evidence {
        Evidence {
            object: object.into(),
            says: says.into(),
        }
    }
}

/// Something that was found in a step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What.
    pub check: Check,
    /// What it means for the step.
    pub weight: Weight,
    /// It follows from a fault of this step.
    pub follows_from: Option<u8>,
    /// One sentence.
    pub says: String,
    /// The first objects that prove it.
    pub evidence: Vec<Evidence>,
    /// How many there are.
    pub evidence_total: usize,
}

impl Finding {
    fn new(check: Check, weight: Weight, says: impl Into<String>) -> Finding {
        Finding {
            check,
            weight,
            follows_from: None,
            says: says.into(),
            evidence: Vec::new(),
            evidence_total: 0,
        }
    }

    fn with(mut self, evidence: impl IntoIterator<Item = Evidence>) -> Finding {
        for one in evidence {
            self.evidence_total += 1;
            if self.evidence.len() < limits::SHOWN {
                self.evidence.push(one);
            }
        }
        self
    }

    fn follows(mut self, step: Option<u8>) -> Finding {
        self.follows_from = step;
        self
    }
}

/// One of the eight.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// From 1 to 8.
    pub number: u8,
    /// What is asked.
    pub asks: &'static str,
    /// The answer.
    pub answer: Answer,
    /// One sentence.
    pub says: String,
    /// What was found, faults first.
    pub found: Vec<Finding>,
    /// What else the answer rests on, the first of it.
    pub evidence: Vec<Evidence>,
    /// What to run next, where it fails.
    pub run: Vec<String>,
}

impl Step {
    /// Everything found in it follows from another step's fault: that step's number.
    pub fn follows_from(&self) -> Option<u8> {
        let mut faults = self.found.iter().filter(|f| f.weight == Weight::Fault);
        let first = faults.next()?.follows_from?;
        faults.all(|f| f.follows_from.is_some()).then_some(first)
    }
}

/// All eight.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Flow {
    /// One sentence: the first step that fails by itself.
    pub verdict: String,
    /// In order.
    pub steps: Vec<Step>,
    /// The API's part was answered.
    pub api: bool,
}

/// Whether the API can be asked.
#[derive(Clone, Copy)]
pub enum Api<'a> {
    /// What it said.
    Known(&'a Objects),
    /// It cannot, for this reason.
    NotKnown(&'a str),
}

/// What is asked.
#[derive(Clone, Copy)]
pub struct Question<'a> {
    /// Which Service.
    pub service: &'a ServiceName,
    /// What the API said.
    pub api: Api<'a>,
    /// What each node says, in order of their names; silent ones too.
    pub nodes: &'a [NodeAnswer<'a>],
    /// This instant.
    pub now: Now,
}

const ASKS: [&str; 8] = [
    "Selector matches the intended Pods",
    "Pods ready, with the port",
    "EndpointSlices and their conditions",
    "Service name and ClusterIP, as each node's kernel has it",
    "Direct Pod address",
    "kube-proxy on the nodes",
    "Load balancer, node ports, external addresses",
    "Nodes against each other",
];

/// Everything that a step may look at.
struct Ground<'a> {
    name: &'a ServiceName,
    objects: &'a Objects,
    /// `None`: there is no such Service.
    service: Option<&'a KnownService>,
    /// Until when what the API said is known to be current.
    as_of: Mono,
    /// The Pods that its selector matches, those that have ended too.
    selected: Vec<&'a KnownPod>,
}

impl<'a> Ground<'a> {
    /// Without what is selected.
    fn of(name: &'a ServiceName, objects: &'a Objects, as_of: Mono) -> Ground<'a> {
        Ground {
            name,
            objects,
            service: objects.service(name),
            as_of,
            selected: Vec::new(),
        }
    }

    fn new(name: &'a ServiceName, objects: &'a Objects, as_of: Mono) -> Ground<'a> {
        let mut ground = Ground::of(name, objects, as_of);
        if let Some(known) = ground.selecting() {
            ground.selected = objects
                .pods(&name.namespace)
                .filter(|k| k.pod.matches(&known.object.selector))
                .collect();
        }
        ground
    }

    /// How old a fact is that began then: what the API said is current, and has been since.
    fn age(&self, began: Mono) -> u64 {
        if self.objects.settled_facts {
            u64::MAX
        } else {
            self.as_of
                .since(began.max(self.objects.complete().unwrap_or_default()))
        }
    }

    /// A fault once it is older than what is allowed, before that converging.
    fn weight(&self, age: u64, allowed: u64) -> Weight {
        if age >= allowed {
            Weight::Fault
        } else {
            Weight::Converging
        }
    }

    /// The Service with a selector, whose slices the controller makes.
    fn selecting(&self) -> Option<&'a KnownService> {
        use crate::service::ServiceType::ExternalName;
        self.service
            .filter(|s| s.object.service.kind != ExternalName && !s.object.selector.is_empty())
    }
}

/// What one step's file gives; [`Step`] without its number.
struct Part {
    answer: Answer,
    says: String,
    found: Vec<Finding>,
    evidence: Vec<Evidence>,
    run: Vec<String>,
}

impl Part {
    fn plain(answer: Answer, says: impl Into<String>) -> Part {
        Part {
            answer,
            says: says.into(),
            found: Vec::new(),
            evidence: Vec::new(),
            run: Vec::new(),
        }
    }

    /// The answer by what was found: a fault fails, what converges is unknown, else `answer`. The
    /// sentence is that of the first fault.
    fn judged(answer: Answer, says: impl Into<String>, mut found: Vec<Finding>) -> Part {
        // What follows from another step comes after what does not.
        found.sort_by_key(|f| (f.weight, f.follows_from.is_some()));
        let mut part = Part::plain(answer, says);
        if let Some(first) = found.first() {
            match first.weight {
                Weight::Fault => (part.answer, part.says) = (Answer::Fail, first.says.clone()),
                Weight::Converging => {
                    (part.answer, part.says) = (Answer::Unknown, first.says.clone());
                }
                Weight::Hint => {}
            }
        }
        part.found = found;
        part
    }

    fn evidence(mut self, all: impl IntoIterator<Item = Evidence>) -> Part {
        self.evidence.extend(all.into_iter().take(limits::SHOWN));
        self
    }

    fn run(mut self, all: Vec<String>) -> Part {
        if self.answer == Answer::Fail {
            self.run = all;
        }
        self
    }
}

/// Answers all eight. `None`: nobody knows of such a Service, neither the API nor a node.
pub fn flow(question: &Question) -> Option<Flow> {
    let name = question.service;
    let reported = question.nodes.iter().any(|n| n.reports);
    let (ground, why) = match question.api {
        Api::NotKnown(why) => (None, why.to_string()),
        Api::Known(objects) => match usable(objects, question.now) {
            Err(why) => (None, why),
            Ok(as_of) => (Some(Ground::new(name, objects, as_of)), String::new()),
        },
    };
    let known = ground
        .as_ref()
        .is_some_and(|g| g.service.is_some() || g.objects.slices_of(name).next().is_some());
    if !known && !reported {
        return None;
    }
    let parts = answers(ground.as_ref(), &why, question.nodes);
    let steps: Vec<Step> = parts
        .into_iter()
        .zip(1u8..)
        .zip(ASKS)
        .map(|((part, number), asks)| Step {
            number,
            asks,
            answer: part.answer,
            says: part.says,
            found: part.found,
            evidence: part.evidence,
            run: part.run,
        })
        .collect();
    Some(Flow {
        verdict: verdict(name, &steps),
        steps,
        api: ground.is_some(),
    })
}

/// Until when what the API said is current, or why it is no answer.
fn usable(objects: &Objects, now: Now) -> Result<Mono, String> {
    let lost: Vec<String> = objects
        .lost()
        .map(|(kind, why)| format!("{} cannot be read: {why}", kind.word()))
        .collect();
    let Some(as_of) = objects.as_of() else {
        return Err(match lost.first() {
            Some(why) => why.clone(),
            None => "the API server's objects have not all been listed yet".into(),
        });
    };
    let silent = now.mono.since(as_of.mono);
    if silent < limits::API_SILENT_MS {
        return Ok(as_of.mono);
    }
    let silent = ago(silent as f64 / 1000.0);
    Err(match lost.first() {
        Some(why) => format!("nothing new from the API server for {silent}: {why}"),
        None => format!("nothing new from the API server for {silent}"),
    })
}

fn answers(ground: Option<&Ground>, why: &str, nodes: &[NodeAnswer]) -> [Part; 8] {
    let unknown = || Part::plain(Answer::Unknown, why);
    let Some(g) = ground else {
        return [
            unknown(),
            unknown(),
            unknown(),
            nodes::at_addresses(None, nodes, nodes::Where::All),
            unknown(),
            nodes::proxies(nodes),
            unknown(),
            nodes::against_each_other(None, nodes),
        ];
    };
    let selector = selector::answer(g);
    let pods = pods::answer(g);
    let cause = [(1, &selector), (2, &pods)]
        .into_iter()
        .find(|(_, part)| part.answer == Answer::Fail)
        .map(|(number, _)| number);
    let slices = slices::answer(g, cause);
    [
        selector,
        pods,
        slices,
        address::answer(g, nodes),
        direct::answer(g, nodes),
        nodes::proxies(nodes),
        outside::answer(g, nodes),
        nodes::against_each_other(Some(g), nodes),
    ]
}

fn verdict(name: &ServiceName, steps: &[Step]) -> String {
    let failing: Vec<&Step> = steps.iter().filter(|s| s.answer == Answer::Fail).collect();
    let by_itself: Vec<&&Step> = failing
        .iter()
        .filter(|s| s.follows_from().is_none())
        .collect();
    if let Some(first) = by_itself.first().copied().or_else(|| failing.first()) {
        let others: Vec<String> = by_itself
            .iter()
            .filter(|s| s.number != first.number)
            .map(|s| s.number.to_string())
            .collect();
        let more = match others.len() {
            0 => String::new(),
            1 => format!("; step {} fails too", others[0]),
            _ => format!("; steps {} fail too", others.join(", ")),
        };
        return format!("{name}: step {} fails: {}{more}", first.number, first.says);
    }
    let converging = steps.iter().find(|s| {
        s.answer == Answer::Unknown && s.found.iter().any(|f| f.weight == Weight::Converging)
    });
    if let Some(step) = converging {
        return format!(
            "{name}: no step fails, step {} is still converging: {}",
            step.number, step.says
        );
    }
    let unknown: Vec<String> = steps
        .iter()
        .filter(|s| s.answer == Answer::Unknown)
        .map(|s| s.number.to_string())
        .collect();
    if unknown.is_empty() {
        return format!("{name}: no step fails");
    }
    format!("{name}: no step fails; not known: {}", unknown.join(", "))
}

/// A name that needs no quotes in a shell: what the API server accepts for names and labels.
fn plain(word: &str) -> bool {
    !word.is_empty()
        && word
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-._/=,".contains(&b))
        && !word.starts_with('-')
}

/// `kubectl` lines, those left out in which a stranger's text would need quotes.
fn kubectl(words: &[&str], lines: &[String]) -> Vec<String> {
    if words.iter().all(|w| plain(w)) {
        lines.iter().map(|l| format!("kubectl {l}")).collect()
    } else {
        Vec::new()
    }
}

/// `1 Pod`, `3 Pods`.
fn count(n: usize, one: &str, many: &str) -> String {
    let number = crate::report::words::thousands(n as u64);
    format!("{number} {}", if n == 1 { one } else { many })
}
