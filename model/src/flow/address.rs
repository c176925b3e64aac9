//! Step 4: the Service's name and ClusterIP. Names in DNS are not looked up.

use super::nodes::{self, NodeAnswer, Where};
use super::objects::ServiceObject;
use super::store::claims;
use super::{Answer, Check, Evidence, Finding, Ground, Part, Weight, kubectl};
use crate::address::Frontend;
use crate::name::ServiceName;
use crate::service::{Service, ServiceType};
use std::net::IpAddr;

pub(super) fn answer(g: &Ground, nodes: &[NodeAnswer]) -> Part {
    let Some(known) = g.service else {
        // Whatever nodes do with its addresses, nobody asks them to.
        let part = nodes::at_addresses(None, nodes, Where::All);
        return match part.answer {
            Answer::Fail | Answer::Unknown if nodes.iter().any(|n| n.reports) => part,
            _ => Part::plain(Answer::NotApplicable, "there is no such Service"),
        };
    };
    let service = &known.object.service;
    if service.kind == ServiceType::ExternalName {
        return external_name(&known.object);
    }
    if service.proxy_name_label {
        let says = "labelled service.kubernetes.io/service-proxy-name: kube-proxy leaves it alone";
        return Part::plain(Answer::NotApplicable, says);
    }
    if &*service.cluster_ip == "None" {
        let says = "headless: clients connect to the Pods, nothing is programmed on nodes; \
                    its name in DNS is not looked up";
        return Part::plain(Answer::NotApplicable, says);
    }
    if service.cluster_ips.is_empty() {
        return Part::plain(
            Answer::Unknown,
            "the object has no ClusterIP; the API server gives one",
        );
    }
    let mut part = nodes::at_addresses(Some(service), nodes, Where::ClusterIp);
    if let Some(claimed) = claimed_twice(g, service, true) {
        let mut found = std::mem::take(&mut part.found);
        found.insert(0, claimed);
        part = Part::judged(part.answer, part.says, found).evidence(part.evidence);
    }
    let namespace = &*g.name.namespace;
    part.run(kubectl(
        &[namespace, &g.name.name],
        &[format!("-n {namespace} get svc {} -o wide", g.name.name)],
    ))
}

/// An alias in DNS. An address is taken for a name made of digits, which no DNS server resolves
/// ("ExternalName" in the Services chapter of Kubernetes' documentation).
fn external_name(object: &ServiceObject) -> Part {
    let name = object.external_name.as_deref().unwrap_or_default();
    if name.parse::<IpAddr>().is_ok() {
        let says = format!(
            "externalName {name} is an address: DNS answers with an alias of that name, which \
             resolves to nothing; a Service without a selector and a slice would do"
        );
        let finding = Finding::new(Check::ExternalNameIsAddress, Weight::Fault, says.clone());
        return Part::judged(Answer::Pass, says, vec![finding]);
    }
    Part::plain(
        Answer::NotApplicable,
        format!("an alias for {name}: nothing is programmed on nodes; DNS is not looked at"),
    )
}

/// Other Services that claim the same: at the ClusterIP, or elsewhere.
pub(super) fn claimed_twice(g: &Ground, service: &Service, cluster: bool) -> Option<Finding> {
    let mut evidence: Vec<(String, &ServiceName)> = Vec::new();
    for (claim, _) in claims(service).into_iter().filter(|(_, c)| *c == cluster) {
        let (address, protocol, port) = claim;
        for name in g.objects.claimants(&claim).filter(|n| *n != g.name) {
            let what = match address {
                Some(address) => Frontend::port(address, protocol, port).to_string(),
                None => format!("node port {port}/{protocol}"),
            };
            evidence.push((what, name));
        }
    }
    let (what, other) = evidence.first()?;
    let says =
        format!("{what} is claimed by Service {other} too: only one of them gets its traffic");
    let all = evidence
        .iter()
        .map(|(what, name)| Evidence::new(format!("Service {name}"), format!("claims {what}")));
    Some(Finding::new(Check::AddressClaimedTwice, Weight::Fault, says).with(all))
}
