//! The slices of generated Services: one way to fill them for each rule about endpoints.

use rand::Rng as _;
use rand::seq::IndexedRandom as _;
use serde_json::{Value, json};

use crate::generate::{Families, Generator, Port, zone};

/// How the slices of a Service are filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(
    missing_docs,
    reason = "each is explained where it is made, in `endpoints` and `slices`"
)]
pub enum Filling {
    Far,
    Everywhere,
    SomeNodes,
    NotReady,
    TerminatingFar,
    TerminatingEverywhere,
    FarAndTerminatingEverywhere,
    EverywhereAndTerminating,
    TerminatingNotServing,
    AnyConditions,
    NoConditions,
    NoSlices,
    EmptySlice,
    NoNodeName,
    Many,
    ZoneHints,
    ZoneHintsIncomplete,
    ZoneHintsElsewhere,
    ZoneHintsSeveral,
    ZoneHintsNotReadyWithout,
    NodeHints,
    NodeHintsIncomplete,
    NodeHintsElsewhere,
    DuplicateAcrossSlices,
    DuplicateInSlice,
    DuplicateConflicting,
    NilPort,
    NilPorts,
    MissingName,
    WrongProtocol,
    TwoNumbers,
    SeveralAddresses,
    FqdnSlice,
    HeadlessSlice,
    ProxyNameSlice,
    UnlabelledSlice,
    OtherFamilySlice,
    HostNetwork,
    HairpinClient,
    FarMany,
    LocalNotReady,
}

const FILLINGS: [Filling; 41] = [
    Filling::Far,
    Filling::Everywhere,
    Filling::SomeNodes,
    Filling::NotReady,
    Filling::TerminatingFar,
    Filling::TerminatingEverywhere,
    Filling::FarAndTerminatingEverywhere,
    Filling::EverywhereAndTerminating,
    Filling::TerminatingNotServing,
    Filling::AnyConditions,
    Filling::NoConditions,
    Filling::NoSlices,
    Filling::EmptySlice,
    Filling::NoNodeName,
    Filling::Many,
    Filling::ZoneHints,
    Filling::ZoneHintsIncomplete,
    Filling::ZoneHintsElsewhere,
    Filling::ZoneHintsSeveral,
    Filling::ZoneHintsNotReadyWithout,
    Filling::NodeHints,
    Filling::NodeHintsIncomplete,
    Filling::NodeHintsElsewhere,
    Filling::DuplicateAcrossSlices,
    Filling::DuplicateInSlice,
    Filling::DuplicateConflicting,
    Filling::NilPort,
    Filling::NilPorts,
    Filling::MissingName,
    Filling::WrongProtocol,
    Filling::TwoNumbers,
    Filling::SeveralAddresses,
    Filling::FqdnSlice,
    Filling::HeadlessSlice,
    Filling::ProxyNameSlice,
    Filling::UnlabelledSlice,
    Filling::OtherFamilySlice,
    Filling::HostNetwork,
    Filling::HairpinClient,
    Filling::FarMany,
    Filling::LocalNotReady,
];

impl Filling {
    /// The filling of the `index`th Service. Conflicting duplicates, which have several legitimate
    /// answers, come in every other round only.
    pub fn nth(index: usize) -> Filling {
        match FILLINGS[index % FILLINGS.len()] {
            Filling::DuplicateConflicting if (index / FILLINGS.len()) % 2 == 1 => Filling::Far,
            filling => filling,
        }
    }
}

/// Where an endpoint's address is taken from.
#[derive(Debug, Clone, Copy)]
enum At {
    /// A Pod on a node that the laboratory does not have.
    Far(u16),
    /// A Pod on the node of this index in the list of places.
    Near(usize, u16),
    /// That node itself.
    Host(usize),
    /// The client Pod behind that node.
    Client(usize),
}

#[derive(Debug, Clone)]
struct Endpoint {
    at: At,
    named: bool,
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
    zones: Vec<String>,
    nodes: Vec<String>,
}

impl Endpoint {
    fn ready(at: At) -> Endpoint {
        Endpoint {
            at,
            named: true,
            ready: Some(true),
            serving: Some(true),
            terminating: Some(false),
            zones: Vec::new(),
            nodes: Vec::new(),
        }
    }

    fn terminating(at: At) -> Endpoint {
        Endpoint::ready(at).with(false, true, true)
    }

    fn with(mut self, ready: bool, serving: bool, terminating: bool) -> Endpoint {
        self.ready = Some(ready);
        self.serving = Some(serving);
        self.terminating = Some(terminating);
        self
    }
}

/// The slices of the Service `of` (name, namespace).
pub(crate) fn slices(
    generator: &mut Generator<'_>,
    of: (&str, &str),
    families: Families,
    ports: &[Port],
    filling: Filling,
) -> Vec<Value> {
    let mut made = Vec::new();
    if filling == Filling::NoSlices {
        return made;
    }
    let list = endpoints(generator, filling);
    for family in families.list() {
        let mut number = 0;
        let mut slice = |ports: Value,
                         family: &str,
                         list: &[Endpoint],
                         places: &[crate::generate::Place]| {
            number += 1;
            let rendered: Vec<Value> = list
                .iter()
                .map(|endpoint| render(endpoint, family, places))
                .collect();
            json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {
                    "name": format!("{}-{}-{number}", of.0, family.to_lowercase()), "namespace": of.1,
                    "labels": {"kubernetes.io/service-name": of.0},
                },
                "addressType": family, "ports": ports, "endpoints": rendered,
            })
        };
        let usual = slice_ports(ports);
        let places = generator.places;
        // A slice that some rule makes kube-proxy leave out, beside one that it uses.
        let far = |generator: &mut Generator<'_>| {
            let at = generator.far();
            vec![Endpoint::ready(at)]
        };
        match filling {
            Filling::DuplicateAcrossSlices => {
                made.push(slice(usual.clone(), family, &list, places));
                made.push(slice(
                    usual.clone(),
                    family,
                    &list[..list.len() / 2 + 1],
                    places,
                ));
            }
            Filling::DuplicateInSlice => {
                let mut twice = list.clone();
                twice.extend_from_slice(&list[..1]);
                made.push(slice(usual.clone(), family, &twice, places));
            }
            Filling::DuplicateConflicting => {
                // The same address once ready and once terminating, as when a Pod's address was given out again.
                made.push(slice(usual.clone(), family, &list, places));
                let again: Vec<Endpoint> = list[..1]
                    .iter()
                    .map(|endpoint| endpoint.clone().with(false, true, true))
                    .collect();
                made.push(slice(usual.clone(), family, &again, places));
            }
            Filling::NilPort => {
                let ports: Vec<Value> = ports
                    .iter()
                    .map(|port| json!({"name": port.name, "protocol": port.protocol}))
                    .collect();
                made.push(slice(json!(ports), family, &list, places));
            }
            Filling::NilPorts => made.push(slice(Value::Null, family, &list, places)),
            Filling::MissingName => {
                let named: Vec<Value> = ports
                    .iter()
                    .enumerate()
                    .map(|(index, port)| {
                        let name = if index == 0 { "other" } else { port.name };
                        json!({"name": name, "protocol": port.protocol, "port": port.target})
                    })
                    .collect();
                made.push(slice(json!(named), family, &list, places));
            }
            Filling::WrongProtocol => {
                let wrong: Vec<Value> = ports
                    .iter()
                    .enumerate()
                    .map(|(index, port)| {
                        let protocol = if index == 0 { "UDP" } else { port.protocol };
                        json!({"name": port.name, "protocol": protocol, "port": port.target})
                    })
                    .collect();
                made.push(slice(json!(wrong), family, &list, places));
            }
            Filling::TwoNumbers => {
                let half = list.len() / 2;
                let other: Vec<Value> = ports
                    .iter()
                    .map(|port| json!({"name": port.name, "protocol": port.protocol, "port": if port.target == 8081 { 8080 } else { 8081 }}))
                    .collect();
                made.push(slice(usual.clone(), family, &list[..half], places));
                made.push(slice(json!(other), family, &list[half..], places));
            }
            Filling::FqdnSlice => {
                made.push(slice(usual.clone(), family, &list, places));
                if *family == families.list()[0] {
                    made.push(json!({
                        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                        "metadata": {"name": format!("{}-fqdn", of.0), "namespace": of.1, "labels": {"kubernetes.io/service-name": of.0}},
                        "addressType": "FQDN", "ports": usual, "endpoints": [{"addresses": ["pod.example.com"]}],
                    }));
                }
            }
            Filling::HeadlessSlice | Filling::ProxyNameSlice => {
                made.push(slice(usual.clone(), family, &list, places));
                let label = if filling == Filling::HeadlessSlice {
                    "service.kubernetes.io/headless"
                } else {
                    "service.kubernetes.io/service-proxy-name"
                };
                let mut labelled = slice(usual.clone(), family, &far(generator), places);
                labelled["metadata"]["labels"][label] = json!("");
                made.push(labelled);
            }
            Filling::UnlabelledSlice => {
                made.push(slice(usual.clone(), family, &list, places));
                let mut unlabelled = slice(usual.clone(), family, &far(generator), places);
                unlabelled["metadata"]["labels"] = json!({});
                made.push(unlabelled);
            }
            Filling::OtherFamilySlice => {
                made.push(slice(usual.clone(), family, &list, places));
                if families.list().len() == 1 {
                    let other = if *family == "IPv4" { "IPv6" } else { "IPv4" };
                    made.push(slice(usual.clone(), other, &far(generator), places));
                }
            }
            _ if list.len() > 1 && generator.random.random_bool(0.3) => {
                let cut = generator.random.random_range(1..list.len());
                made.push(slice(usual.clone(), family, &list[..cut], places));
                made.push(slice(usual.clone(), family, &list[cut..], places));
            }
            _ => made.push(slice(usual.clone(), family, &list, places)),
        }
        if filling == Filling::SeveralAddresses {
            // Only the first of an endpoint's addresses counts.
            for slice in &mut made {
                for (index, endpoint) in slice["endpoints"]
                    .as_array_mut()
                    .into_iter()
                    .flatten()
                    .enumerate()
                {
                    let own = slice_family_address(endpoint, index);
                    if let Some(addresses) = endpoint["addresses"].as_array_mut()
                        && addresses.len() == 1
                    {
                        addresses.push(json!(own));
                    }
                }
            }
        }
    }
    made
}

fn slice_family_address(endpoint: &Value, index: usize) -> String {
    match endpoint["addresses"][0].as_str() {
        Some(first) if first.contains(':') => format!("fd00:244::2000:{:x}", index + 1),
        _ => format!("10.244.255.{}", index + 1),
    }
}

fn slice_ports(ports: &[Port]) -> Value {
    ports
        .iter()
        .map(|port| json!({"name": port.name, "protocol": port.protocol, "port": port.target}))
        .collect()
}

fn endpoints(generator: &mut Generator<'_>, filling: Filling) -> Vec<Endpoint> {
    let mut list = Vec::new();
    let count = generator.random.random_range(1..=5);
    let all = generator.places.len();
    match filling {
        Filling::NoSlices | Filling::EmptySlice => (),
        Filling::Far
        | Filling::NilPort
        | Filling::NilPorts
        | Filling::FqdnSlice
        | Filling::OtherFamilySlice => {
            list = generator.far_ready(count);
        }
        Filling::FarMany => list = generator.far_ready(6),
        Filling::Everywhere
        | Filling::MissingName
        | Filling::WrongProtocol
        | Filling::TwoNumbers
        | Filling::SeveralAddresses
        | Filling::HeadlessSlice
        | Filling::ProxyNameSlice
        | Filling::UnlabelledSlice
        | Filling::DuplicateAcrossSlices
        | Filling::DuplicateInSlice
        | Filling::DuplicateConflicting => {
            list = generator.far_ready(count);
            list.extend((0..all).map(|place| Endpoint::ready(generator.near(place))));
        }
        Filling::SomeNodes => {
            list = generator.far_ready(1);
            for place in 0..all {
                if generator.random.random_bool(0.4) {
                    list.push(Endpoint::ready(generator.near(place)));
                }
            }
        }
        // Not ready and not terminating: never used, serving or not.
        Filling::NotReady => {
            for _ in 0..count {
                let serving = generator.random.random_bool(0.5);
                list.push(Endpoint::ready(generator.far()).with(false, serving, false));
            }
            list.extend(
                (0..all)
                    .map(|place| Endpoint::ready(generator.near(place)).with(false, true, false)),
            );
        }
        Filling::TerminatingFar => {
            list.extend((0..count).map(|_| Endpoint::terminating(generator.far())));
        }
        Filling::TerminatingEverywhere => {
            list.extend((0..all).map(|place| Endpoint::terminating(generator.near(place))));
            list.push(Endpoint::ready(generator.far()).with(false, false, false));
        }
        Filling::FarAndTerminatingEverywhere => {
            list = generator.far_ready(count);
            list.extend((0..all).map(|place| Endpoint::terminating(generator.near(place))));
        }
        Filling::EverywhereAndTerminating => {
            list.extend((0..all).map(|place| Endpoint::ready(generator.near(place))));
            list.extend((0..all).map(|place| Endpoint::terminating(generator.near(place))));
        }
        Filling::TerminatingNotServing => {
            for _ in 0..count {
                list.push(Endpoint::ready(generator.far()).with(false, false, true));
            }
        }
        Filling::AnyConditions => {
            for place in 0..all {
                for _ in 0..2 {
                    let mut endpoint = Endpoint::ready(generator.near(place));
                    let any = |generator: &mut Generator<'_>| {
                        *[None, Some(true), Some(false)]
                            .choose(&mut generator.random)
                            .unwrap_or(&None)
                    };
                    endpoint.serving = any(generator);
                    endpoint.terminating = any(generator);
                    endpoint.ready = any(generator);
                    list.push(endpoint);
                }
            }
        }
        Filling::NoConditions => {
            list = generator.far_ready(count);
            for endpoint in &mut list {
                (endpoint.ready, endpoint.serving, endpoint.terminating) = (None, None, None);
            }
            // `serving` not given counts as true.
            let mut last = Endpoint::terminating(generator.far());
            last.serving = None;
            list.push(last);
        }
        Filling::NoNodeName => {
            list = generator.far_ready(count + 1);
            for endpoint in &mut list {
                endpoint.named = false;
            }
        }
        Filling::Many => {
            let many = generator.random.random_range(20..60);
            list = generator.far_ready(many);
            list.extend((0..all).map(|place| Endpoint::ready(generator.near(place))));
        }
        Filling::ZoneHints | Filling::ZoneHintsIncomplete | Filling::ZoneHintsNotReadyWithout => {
            list = zoned(generator);
            match filling {
                Filling::ZoneHintsIncomplete => list[0].zones.clear(),
                Filling::ZoneHintsNotReadyWithout => {
                    list.push(Endpoint::ready(generator.far()).with(false, false, false));
                    list.push(Endpoint::terminating(generator.far()));
                }
                _ => (),
            }
        }
        Filling::ZoneHintsElsewhere => {
            list = zoned(generator);
            for endpoint in &mut list {
                endpoint.zones = vec!["elsewhere".to_owned()];
            }
        }
        Filling::ZoneHintsSeveral => {
            list = zoned(generator);
            for (index, endpoint) in list.iter_mut().enumerate() {
                endpoint.zones = vec![zone(index), zone(index + 1)];
            }
        }
        Filling::NodeHints | Filling::NodeHintsIncomplete | Filling::NodeHintsElsewhere => {
            list = zoned(generator);
            for place in 0..all {
                let mut endpoint = Endpoint::ready(generator.near(place));
                endpoint.zones = vec![generator.places[place].zone.clone()];
                list.push(endpoint);
            }
            let names: Vec<String> = generator
                .places
                .iter()
                .map(|place| place.name.clone())
                .collect();
            for (index, endpoint) in list.iter_mut().enumerate() {
                endpoint.nodes = match filling {
                    Filling::NodeHintsElsewhere => vec!["elsewhere-1".to_owned()],
                    _ => vec![names[index % all].clone(), names[(index + 1) % all].clone()],
                };
            }
            if filling == Filling::NodeHintsIncomplete {
                list[1].nodes.clear();
            }
        }
        Filling::HostNetwork => {
            list.extend((0..all).map(|place| Endpoint::ready(At::Host(place))));
        }
        Filling::HairpinClient => {
            list.extend((0..all).map(|place| Endpoint::ready(At::Client(place))));
            list.push(Endpoint::ready(generator.far()));
        }
        Filling::LocalNotReady => {
            list = generator.far_ready(2);
            list.extend(
                (0..all)
                    .map(|place| Endpoint::ready(generator.near(place)).with(false, false, false)),
            );
        }
    }
    list
}

/// Six ready endpoints with hints for the three zones in turn.
fn zoned(generator: &mut Generator<'_>) -> Vec<Endpoint> {
    let mut list = generator.far_ready(6);
    for (index, endpoint) in list.iter_mut().enumerate() {
        endpoint.zones = vec![zone(index)];
    }
    list
}

impl Generator<'_> {
    fn far(&mut self) -> At {
        self.next_far += 1;
        At::Far(self.next_far)
    }

    fn near(&mut self, place: usize) -> At {
        self.next_near += 1;
        At::Near(place, self.next_near % 180)
    }

    fn far_ready(&mut self, count: usize) -> Vec<Endpoint> {
        (0..count).map(|_| Endpoint::ready(self.far())).collect()
    }
}

fn render(endpoint: &Endpoint, family: &str, places: &[crate::generate::Place]) -> Value {
    let four = family == "IPv4";
    let range = |place: usize| u16::from(places[place].index) + 1;
    let (address, node) = match endpoint.at {
        At::Far(number) => (
            if four {
                format!("10.244.{}.{}", 64 + number / 240, 1 + number % 240)
            } else {
                format!("fd00:244::1000:{number:x}")
            },
            format!("elsewhere-{}", number % 7),
        ),
        At::Near(place, number) => (
            if four {
                format!("10.244.{}.{}", range(place), 1 + number)
            } else {
                format!("fd00:244::{:x}:{:x}", range(place), 1 + number)
            },
            places[place].name.clone(),
        ),
        At::Host(place) => (
            if four {
                places[place].v4.clone()
            } else {
                places[place].v6.clone()
            },
            places[place].name.clone(),
        ),
        At::Client(place) => (
            if four {
                format!("10.244.{}.200", range(place))
            } else {
                format!("fd00:244::{:x}:c8", range(place))
            },
            places[place].name.clone(),
        ),
    };
    let mut conditions = json!({});
    for (key, value) in [
        ("ready", endpoint.ready),
        ("serving", endpoint.serving),
        ("terminating", endpoint.terminating),
    ] {
        if let Some(value) = value {
            conditions[key] = json!(value);
        }
    }
    let mut out = json!({"addresses": [address], "conditions": conditions});
    if endpoint.named {
        out["nodeName"] = json!(node);
    }
    if !endpoint.zones.is_empty() || !endpoint.nodes.is_empty() {
        let named = |names: &[String]| -> Vec<Value> {
            names.iter().map(|name| json!({"name": name})).collect()
        };
        out["hints"] = json!({});
        if !endpoint.zones.is_empty() {
            out["hints"]["forZones"] = json!(named(&endpoint.zones));
        }
        if !endpoint.nodes.is_empty() {
            out["hints"]["forNodes"] = json!(named(&endpoint.nodes));
        }
    }
    out
}
