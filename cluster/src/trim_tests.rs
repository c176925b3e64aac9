use super::*;
use serde_json::json;

#[test]
fn a_service_as_people_write_it_gets_the_api_servers_defaults() {
    let s = service(&json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "web"},
        "spec": {"clusterIP": "10.96.0.10", "selector": {"app": "web"},
                 "ports": [{"port": 80, "targetPort": "http"}],
                 "sessionAffinity": "ClientIP"}
    }))
    .unwrap();
    assert_eq!(s.name, ServiceName::new("default", "web"));
    assert_eq!(s.kind, ServiceType::ClusterIP);
    assert_eq!(s.cluster_ips, vec!["10.96.0.10".parse::<IpAddr>().unwrap()]);
    assert_eq!(s.ip_families, vec![Family::V4]);
    assert_eq!(s.affinity_seconds, Some(10_800));
    assert_eq!(s.ports[0].protocol, Protocol::Tcp);
    assert_eq!(s.ports[0].node_port, None);
    assert!(!s.internal_local && !s.external_local && !s.selectorless);
}

#[test]
fn cluster_ip_comes_from_cluster_ips_and_families_from_addresses() {
    let s = service(&json!({
        "metadata": {"namespace": "shop", "name": "web"},
        "spec": {"clusterIPs": ["fd00::10", "10.96.0.10"], "ports": [{"port": 53, "protocol": "UDP"}]}
    }))
    .unwrap();
    assert_eq!(&*s.cluster_ip, "fd00::10");
    assert_eq!(s.ip_families, vec![Family::V6, Family::V4]);
    assert!(s.selectorless);
}

#[test]
fn headless_and_external_name_have_no_address() {
    let s = service(&json!({"metadata": {"name": "h"}, "spec": {"clusterIP": "None"}})).unwrap();
    assert_eq!(&*s.cluster_ip, "None");
    assert!(s.cluster_ips.is_empty());
    let s = service(&json!({"metadata": {"name": "e"}, "spec": {"type": "ExternalName", "externalName": "x.y"}}))
        .unwrap();
    assert_eq!(s.kind, ServiceType::ExternalName);
}

#[test]
fn load_balancer_ingress_and_ranges() {
    let s = service(&json!({
        "metadata": {"namespace": "shop", "name": "web", "labels": {HEADLESS: ""},
                     "annotations": {"service.kubernetes.io/topology-mode": "Auto"}},
        "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.10",
                 "externalTrafficPolicy": "Local", "healthCheckNodePort": 31000,
                 "externalIPs": ["192.0.2.1", "garbage"],
                 "loadBalancerSourceRanges": [" 10.0.0.1/8", "nonsense", "fd00::/8"],
                 "ports": [{"name": "http", "port": 80, "nodePort": 30080}]},
        "status": {"loadBalancer": {"ingress": [
            {"ip": "203.0.113.1"}, {"ip": "203.0.113.2", "ipMode": "Proxy"}, {"hostname": "lb.example"}]}}
    }))
    .unwrap();
    assert!(s.external_local && s.headless_label);
    assert_eq!(s.external_ips.len(), 1);
    assert_eq!(
        s.source_ranges,
        vec![
            "10.0.0.0/8".parse::<IpNet>().unwrap(),
            "fd00::/8".parse().unwrap()
        ]
    );
    assert_eq!(
        s.ingress.iter().map(|i| i.proxy_mode).collect::<Vec<_>>(),
        [false, true]
    );
    assert_eq!(s.ingress_hostnames, 1);
    assert_eq!(s.health_check_node_port, Some(31000));
    assert_eq!(s.topology_annotation.as_deref(), Some("Auto"));
}

#[test]
fn a_bad_field_is_named_with_its_object() {
    let e = service(&json!({"metadata": {"namespace": "shop", "name": "web"},
                            "spec": {"ports": [{"port": 80}, {"port": "http"}]}}))
    .unwrap_err();
    assert_eq!(
        e.to_string(),
        "Service shop/web: spec.ports[1].port: \"http\" is not a number from 0 to 65535"
    );
    let e = service(&json!({"metadata": {"name": "web"}, "spec": {"ports": [{"port": 99999}]}}))
        .unwrap_err();
    assert_eq!(e.field, "spec.ports[0].port");
    let e = service(&json!({"metadata": {"name": "web"}, "spec": {"ports": [{}]}})).unwrap_err();
    assert_eq!(e.why, "is missing");
    let e = service(&json!({"metadata": {}, "spec": []})).unwrap_err();
    assert_eq!(e.object, "Service without a name");
    let e = slice(&json!({"metadata": {"name": "s"}})).unwrap_err();
    assert_eq!(e.to_string(), "EndpointSlice s: addressType: is missing");
}

#[test]
fn slices_with_their_defaults() {
    let s = slice(&json!({
        "metadata": {"namespace": "shop", "name": "web-1", "labels": {SERVICE_NAME: "web"}},
        "addressType": "IPv4",
        "ports": [{"port": 8080}, {"name": "x", "port": null, "protocol": "SCTP"}],
        "endpoints": [
            {"addresses": ["010.244.001.005"], "nodeName": "n1", "targetRef": {"kind": "Pod", "name": "web-0"}},
            {"addresses": ["10.244.1.6"], "conditions": {"ready": false, "serving": true, "terminating": true},
             "hints": {"forZones": [{"name": "a"}], "forNodes": [{"name": "n1"}]}},
            {"addresses": ["not an address"]}]
    }))
    .unwrap();
    assert_eq!(s.service.as_deref(), Some("web"));
    assert_eq!(
        s.ports[0],
        SlicePort {
            name: Some("".into()),
            protocol: Protocol::Tcp,
            port: Some(8080)
        }
    );
    assert_eq!(s.ports[1].port, None);
    let e = &s.endpoints[0];
    assert_eq!(e.address, Some("10.244.1.5".parse().unwrap()));
    assert!(e.ready && e.serving && !e.terminating);
    assert_eq!(e.pod.as_deref(), Some("web-0"));
    let e = &s.endpoints[1];
    assert!(!e.ready && e.serving && e.terminating);
    assert_eq!((e.zone_hints.len(), e.node_hints.len()), (1, 1));
    assert_eq!(s.endpoints[2].address, None);
    let fqdn = slice(
        &json!({"metadata": {"name": "f"}, "addressType": "FQDN", "ports": null,
                             "endpoints": [{"addresses": ["x.example"]}]}),
    )
    .unwrap();
    assert_eq!(fqdn.family, None);
}

#[test]
fn nodes() {
    let n = node(&json!({
        "metadata": {"name": "n1", "labels": {ZONE: "a"}, "creationTimestamp": "2025-01-01T00:00:00Z"},
        "spec": {"podCIDR": "10.244.1.0/24", "taints": [{"key": GOING, "effect": "NoSchedule"}]},
        "status": {"addresses": [{"type": "Hostname", "address": "n1"},
                                  {"type": "InternalIP", "address": "192.0.2.11"},
                                  {"type": "InternalIP", "address": "fd00::11"},
                                  {"type": "ExternalIP", "address": "203.0.113.11"}]}
    }))
    .unwrap();
    assert_eq!(
        (
            n.internal_ips.len(),
            n.external_ips.len(),
            n.pod_cidrs.len()
        ),
        (2, 1, 1)
    );
    assert!(n.going);
    assert_eq!(n.created, Some(Millis(1_735_689_600_000)));
    assert_eq!(n.zone.as_deref(), Some("a"));
}

#[test]
fn other_kinds_are_none_of_our_business() {
    assert_eq!(
        object(&json!({"apiVersion": "apps/v1", "kind": "Deployment"})),
        Ok(None)
    );
    // A Knative Service is not a Service.
    assert_eq!(
        object(&json!({"apiVersion": "serving.knative.dev/v1", "kind": "Service"})),
        Ok(None)
    );
    assert!(object(&json!({"apiVersion": "v1"})).is_err());
    assert!(object(&json!("hello")).is_err());
}
