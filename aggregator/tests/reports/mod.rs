//! Reports made by hand. Each target of tests uses some of them.
#![allow(dead_code)]

use model::address::{Frontend, Protocol, SourceClass};
use model::finding::{Evidence, Finding, FindingKind, Severity};
use model::name::{NodeName, ServicePortName};
use model::report::{Judged, NodeState, Report, Row};
use model::table::{Action, Affinity, Backend, Forwarding, Masquerade, OneOf};
use model::time::Millis;
use std::sync::Arc;

/// When the kernel was read.
pub const AT: u64 = 1_700_000_000_000;

fn forward(service: &ServicePortName, backends: &[&str]) -> Forwarding {
    let share = 1.0 / backends.len() as f64;
    let backend = |b: &&str| Backend {
        address: b.parse().unwrap(),
        share,
        masquerade: Masquerade::Never,
    };
    Forwarding {
        service: Some(service.clone()),
        action: Action::Forward,
        backends: backends.iter().map(backend).collect(),
        affinity: Affinity::None,
        source_ranges: None,
    }
}

fn rows(service: &ServicePortName) -> Vec<Row> {
    let want = forward(service, &["10.244.1.5:8080", "10.244.2.6:8080"]);
    SourceClass::ALL
        .into_iter()
        .map(|source| Row {
            frontend: Frontend::port("10.96.0.10".parse().unwrap(), Protocol::Tcp, 80),
            source,
            service: Some(service.clone()),
            desired: Some(OneOf::certain(want.clone())),
            observed: Some(want.clone()),
        })
        .collect()
}

/// A node that reports these Services, in order.
pub fn named(node: &str, services: &[(&str, &str)]) -> Report {
    let ports = services
        .iter()
        .map(|(ns, name)| ServicePortName::new(ns, name, "http"));
    Report {
        node: NodeName::from(node),
        pass: 7,
        at: Millis(AT),
        took_ms: 12,
        api_as_of: Some(Millis(AT - 200)),
        state: NodeState::Ready,
        verdict: "agrees".into(),
        datapaths: vec![],
        judged: Judged {
            pairs: 3 * services.len() as u64,
            ..Judged::default()
        },
        gaps: vec![],
        findings: vec![],
        converging: vec![],
        rows: ports.flat_map(|p| rows(&p)).map(Arc::new).collect(),
        conntrack: None,
        flows: None,
    }
}

/// A node that does what the API wants.
pub fn agrees(node: &str) -> Report {
    named(node, &[("shop", "web")])
}

fn row_mut(r: &mut Report, at: usize) -> &mut Row {
    Arc::make_mut(&mut Arc::make_mut(&mut r.rows)[at])
}

/// A node that sends Pods to a backend that is not offered.
pub fn drifted(node: &str) -> Report {
    let mut r = agrees(node);
    let service = ServicePortName::new("shop", "web", "http");
    row_mut(&mut r, 0).observed = Some(forward(&service, &["10.244.1.5:8080", "10.244.9.9:8080"]));
    r.findings.push(Finding {
        kind: FindingKind::StaleBackend,
        severity: Severity::Critical,
        service: Some(service),
        frontend: Some(r.rows[0].frontend),
        sources: vec![SourceClass::Pod],
        backend: Some("10.244.9.9:8080".parse().unwrap()),
        since: Millis(AT - 12_000),
        evidence: vec![Evidence {
            family: "ip".into(),
            table: "kube-proxy".into(),
            chain: "service-ips".into(),
            handle: Some(42),
            element: Some("10.96.0.10 . tcp . 80".into()),
            says: "leads to the chain".into(),
        }],
        says: "sends to 10.244.9.9:8080, which the API does not offer".into(),
        absorbs: 0,
        recurring: false,
        because: "seen whole before".into(),
    });
    r
}

/// A node without hooks: one finding that takes its Services along.
pub fn whole_node(node: &str) -> Report {
    let mut r = drifted(node);
    let f = &mut r.findings[0];
    f.kind = FindingKind::HooksMissing;
    f.service = None;
    f.frontend = None;
    f.backend = None;
    f.sources.clear();
    f.says = "no hook leads to the datapath's rules".into();
    f.absorbs = 1;
    for row in Arc::make_mut(&mut r.rows) {
        Arc::make_mut(row).observed = Some(Forwarding::without_backends(None, Action::None));
    }
    r
}

/// Every text that a stranger can choose is an attack.
pub fn evil() -> Report {
    const BAD: &str = "x\u{1b}[2J\nFAKE\u{9b}31m\u{202e}\"<script>";
    let mut r = drifted(BAD);
    let service = ServicePortName::new(BAD, BAD, BAD);
    r.verdict = BAD.into();
    r.gaps.push(model::capture::Gap {
        what: BAD.into(),
        why: BAD.into(),
    });
    r.datapaths.push(model::capture::DatapathFound {
        name: BAD.into(),
        version: Some(BAD.into()),
        state: model::capture::DatapathState::InCharge,
        why: BAD.into(),
    });
    for row in Arc::make_mut(&mut r.rows) {
        Arc::make_mut(row).service = Some(service.clone());
    }
    row_mut(&mut r, 1).observed = Some(Forwarding::without_backends(
        None,
        Action::Unknown(BAD.into()),
    ));
    let f = &mut r.findings[0];
    f.service = Some(service);
    f.says = BAD.into();
    f.because = BAD.into();
    f.evidence[0].chain = BAD.into();
    f.evidence[0].says = BAD.into();
    r
}
