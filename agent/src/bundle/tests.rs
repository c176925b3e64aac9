//! Bundles without a kernel: what goes in comes out, and what is damaged is refused.

use super::*;
use crate::netfilter::nftables::capture::Capture;
use crate::replay::play;
use model::endpoint::{Endpoint, EndpointSlice, SliceName, SlicePort};
use model::name::NodeName;
use model::profile::{Learnt, LearntFrom, ProxyConfig};
use model::service::{Service, ServicePort, ServiceType};
use model::time::Mono;
use model::view::{Change, ClusterView};
use std::sync::Arc;

fn at(ms: u64) -> Now {
    Now {
        mono: Mono(ms),
        wall: Millis(1_700_000_000_000 + ms),
    }
}

fn service(namespace: &str, name: &str, last: u8) -> Service {
    let address = std::net::IpAddr::from([10, 96, 0, last]);
    Service {
        name: ServiceName::new(namespace, name),
        uid: format!("uid-{name}").into(),
        resource_version: "7".into(),
        kind: ServiceType::ClusterIP,
        cluster_ip: address.to_string().into(),
        cluster_ips: vec![address],
        ip_families: Vec::new(),
        external_ips: Vec::new(),
        ingress: Vec::new(),
        ingress_hostnames: 0,
        source_ranges: Vec::new(),
        internal_local: false,
        external_local: false,
        affinity_seconds: None,
        health_check_node_port: None,
        ports: vec![ServicePort {
            name: "http".into(),
            protocol: model::address::Protocol::Tcp,
            port: 80,
            node_port: None,
        }],
        proxy_name_label: false,
        headless_label: false,
        topology_annotation: None,
        selectorless: false,
    }
}

fn slice(namespace: &str, name: &str, owner: &str) -> EndpointSlice {
    EndpointSlice {
        name: SliceName {
            namespace: namespace.into(),
            name: name.into(),
        },
        resource_version: "8".into(),
        service: Some(owner.into()),
        family: Some(model::address::Family::V4),
        ports: vec![SlicePort {
            name: Some("http".into()),
            protocol: model::address::Protocol::Tcp,
            port: Some(8080),
        }],
        endpoints: vec![Endpoint {
            address: Some([10, 244, 0, 9].into()),
            ready: true,
            serving: true,
            terminating: false,
            node: Some("worker-1.example".into()),
            zone_hints: vec!["zone-a".into()],
            node_hints: Vec::new(),
            pod: Some(format!("{owner}-abc").into()),
        }],
        headless_label: false,
        proxy_name_label: false,
    }
}

fn view() -> ClusterView {
    let mut view = ClusterView::default();
    view.apply(Change::Service(service("shop", "web", 10)), at(1));
    view.apply(Change::Service(service("default", "kubernetes", 1)), at(1));
    view.apply(Change::Slice(slice("shop", "web-x1", "web")), at(2));
    view.apply(Change::Complete, at(3));
    view
}

fn looked(ms: u64, view: &ClusterView) -> Looked {
    let mut capture = Capture {
        generation: Some(5),
        ..Capture::default()
    };
    capture.tables.push(&[2, 0, 0, 5]);
    Looked {
        at: at(ms),
        kernel: Ok(Captures {
            nf_tables: Some(capture),
            legacy: Vec::new(),
            ipvs: None,
        }),
        addresses: Ok(Vec::new()),
        view: Arc::new(view.clone()),
        profile: ProxyProfile {
            mode: None,
            version: None,
            config: Learnt {
                value: ProxyConfig {
                    node_name: Some("worker-1.example".into()),
                    ..ProxyConfig::default()
                },
                from: LearntFrom::Default,
            },
        },
        proxy: None,
        gaps: vec![Gap {
            what: "API object".into(),
            why: "Service shop/web: bad".into(),
        }],
        refreshed: vec![ServiceName::new("shop", "web")],
    }
}

fn bundle(pseudonyms: bool) -> Vec<u8> {
    let about = About {
        format: FORMAT,
        agent: "test".into(),
        node: NodeName::from("worker-1.example"),
        made: at(0).wall,
        pseudonyms: false,
    };
    let names = pseudonyms.then(pseudonyms::Pseudonyms::new);
    let mut recorder = Recorder::new(Vec::new(), about, names).unwrap();
    let mut view = view();
    recorder.pass(looked(10, &view)).unwrap();
    view.apply(Change::ServiceGone(ServiceName::new("shop", "web")), at(11));
    recorder.pass(looked(12, &view)).unwrap();
    recorder.finish().unwrap().0
}

#[test]
fn a_change_leads_from_one_view_to_the_other() {
    let first = view();
    let mut second = first.clone();
    second.apply(Change::Service(service("shop", "api", 11)), at(5));
    second.apply(Change::SliceGone(slice("shop", "web-x1", "").name), at(6));
    second.apply(
        Change::ServiceGone(ServiceName::new("default", "kubernetes")),
        at(7),
    );
    second.apply(Change::Slice(slice("shop", "api-1", "api")), at(8));
    for (old, new) in [
        (&ClusterView::default(), &first),
        (&first, &second),
        (&second, &first),
    ] {
        let change = ViewChange::between(old, new);
        let text = serde_json::to_vec(&change).unwrap();
        let mut view = old.clone();
        serde_json::from_slice::<ViewChange>(&text)
            .unwrap()
            .apply(&mut view);
        assert_eq!(&view, new);
    }
}

#[test]
fn what_did_not_change_is_there_once_and_used_again() {
    let bytes = bundle(false);
    let mut passes = Vec::new();
    let about = read(bytes.as_slice(), Limits::default(), |step| {
        if let Step::Pass(pass, captures) = step {
            passes.push((pass.kernel.clone(), captures.is_some()));
        }
    })
    .unwrap();
    assert_eq!(&*about.node.0, "worker-1.example");
    let kernel = KernelRead::Read {
        nf_tables: Some("1-nf_tables.capture".into()),
        legacy: Vec::new(),
        ipvs: None,
    };
    assert_eq!(passes, [(kernel.clone(), true), (kernel, false)]);
}

#[test]
fn pseudonyms_are_consistent_and_tell_nothing() {
    let bytes = bundle(true);
    let mut text = String::new();
    let mut seen = Vec::new();
    let about = read(bytes.as_slice(), Limits::default(), |step| {
        if let Step::Pass(pass, _) = step {
            text += &serde_json::to_string(&pass).unwrap();
            seen.push(*pass);
        }
    })
    .unwrap();
    assert!(about.pseudonyms);
    for word in ["shop", "web", "worker-1", "zone-a", "uid-web"] {
        assert!(!text.contains(word), "{word} in {text}");
    }
    // What every cluster has stays.
    assert!(text.contains("kubernetes"));
    let services = &seen[0].view.services;
    let web = services.iter().find(|s| &*s.name.namespace != "default");
    let web = &web.unwrap().name;
    assert_eq!(seen[0].refreshed, std::slice::from_ref(web));
    assert_eq!(seen[1].view.services_gone, std::slice::from_ref(web));
    assert_eq!(&*seen[0].gaps[0].why, format!("Service {web}: bad"));
    let slice = &seen[0].view.slices[0];
    assert_eq!(slice.service.as_ref(), Some(&web.name));
    assert_eq!(slice.name.namespace, web.namespace);
    assert_eq!(slice.endpoints[0].node.as_ref(), Some(&about.node.0));
    let config = &seen[0].profile.config.value;
    assert_eq!(config.node_name.as_ref(), Some(&about.node.0));
}

#[test]
fn a_damaged_or_greedy_bundle_is_refused() {
    let bytes = bundle(false);
    assert!(play(bytes.as_slice(), Limits::default()).is_ok());
    for end in 0..bytes.len() {
        let error = play(&bytes[..end], Limits::default()).unwrap_err();
        let right = if end < 4 {
            matches!(error, LoadError::NotABundle)
        } else {
            matches!(error, LoadError::CutOff)
        };
        assert!(right, "{end}: {error:?}");
    }
    // Some bits of a compressed block mean nothing: then all is as it was.
    let (_, report) = play(bytes.as_slice(), Limits::default()).unwrap();
    let mut refused = 0;
    for at in 0..bytes.len() {
        for bit in [0x01, 0x80] {
            let mut bytes = bytes.clone();
            bytes[at] ^= bit;
            match play(bytes.as_slice(), Limits::default()) {
                Ok((_, other)) => assert_eq!(other, report, "{at}"),
                Err(_) => refused += 1,
            }
        }
    }
    assert!(refused > bytes.len(), "{refused} refused");
    let refused = |limits| match play(bytes.as_slice(), limits) {
        Err(LoadError::TooLarge(why)) => why,
        other => panic!("{other:?}"),
    };
    let limits = Limits::default();
    assert!(
        refused(Limits {
            entry: 20,
            ..limits
        })
        .contains("about.json")
    );
    assert!(
        refused(Limits {
            total: 900,
            ..limits
        })
        .contains("900 bytes")
    );
    assert!(
        refused(Limits {
            passes: 1,
            ..limits
        })
        .contains("passes")
    );
}
