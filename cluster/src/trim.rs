//! Kubernetes' objects to the model's, with the API server's defaults for what manifests leave out.
//!
//! Defaults: `pkg/apis/core/v1/defaults.go`, `pkg/apis/discovery/v1/defaults.go`. The API server
//! fills them in itself, so applying them again changes nothing there.

pub mod objects;

use crate::field::{BadObject, Field, Wrong, address, cidr};
use ipnet::IpNet;
use model::address::{Family, Protocol};
use model::endpoint::{Endpoint, EndpointSlice, SliceName, SlicePort};
use model::name::{NodeName, ServiceName};
use model::service::{Ingress, Service, ServicePort, ServiceType};
use model::time::Millis;
use model::view::Node;
use serde_json::Value;
use std::net::IpAddr;
use std::sync::Arc;

/// Label of a slice: the Service it belongs to.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Label that hides a Service or slice from kube-proxy.
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// Label that says headless.
const HEADLESS: &str = "service.kubernetes.io/headless";
/// Label of a Node.
const ZONE: &str = "topology.kubernetes.io/zone";
/// Taint of a Node that an autoscaler is about to delete.
const GOING: &str = "ToBeDeletedByClusterAutoscaler";
/// Annotations of a Service, in the order kube-proxy asks for them.
const TOPOLOGY: [&str; 2] = [
    "service.kubernetes.io/topology-aware-hints",
    "service.kubernetes.io/topology-mode",
];
/// `DefaultClientIPServiceAffinitySeconds`.
const AFFINITY_SECONDS: u32 = 10_800;

/// An object that matters here.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// core/v1 Service.
    Service(Service),
    /// discovery.k8s.io/v1 EndpointSlice.
    Slice(EndpointSlice),
    /// core/v1 Node.
    Node(Node),
    /// networking.k8s.io/v1 ServiceCIDR: its name and ranges.
    ServiceCidr(Arc<str>, Vec<IpNet>),
    /// core/v1 ConfigMap `kube-system/kube-proxy`: its key `config.conf`.
    ProxyConfig(Option<String>),
}

/// One object by its own `kind`; `None` for kinds that do not matter here.
///
/// # Errors
/// The object has a kind that matters and a field that cannot be understood.
pub fn object(value: &Value) -> Result<Option<Object>, BadObject> {
    let root = Field::root(value);
    let kind = root
        .at("kind")
        .some_text()
        .map_err(|w| bad("object", value, w))?;
    let group = root
        .at("apiVersion")
        .text()
        .map_err(|w| bad(kind, value, w))?
        .unwrap_or_default()
        .split_once('/')
        .map_or("", |(group, _)| group);
    match (group, kind) {
        ("", "Service") => service(value).map(|s| Some(Object::Service(s))),
        ("discovery.k8s.io", "EndpointSlice") => slice(value).map(|s| Some(Object::Slice(s))),
        ("", "Node") => node(value).map(|n| Some(Object::Node(n))),
        ("networking.k8s.io", "ServiceCIDR") => {
            service_cidr(value).map(|(name, cidrs)| Some(Object::ServiceCidr(name, cidrs)))
        }
        ("", "ConfigMap") => proxy_config(value).map(|c| c.map(Object::ProxyConfig)),
        _ => Ok(None),
    }
}

/// Group and kind of an object; `None` where it has no kind.
pub fn kind_of(value: &Value) -> Option<(&str, &str)> {
    let text = |key: &str| value.get(key).and_then(Value::as_str);
    let group = text("apiVersion")
        .unwrap_or_default()
        .split_once('/')
        .map_or("", |(group, _)| group);
    Some((group, text("kind")?))
}

/// A core/v1 Service.
///
/// # Errors
/// Names the object and the field that cannot be understood. Addresses and ranges that are none
/// are left out instead: kube-proxy does the same.
pub fn service(value: &Value) -> Result<Service, BadObject> {
    read_service(Field::root(value)).map_err(|w| bad("Service", value, w))
}

/// A discovery.k8s.io/v1 EndpointSlice.
///
/// # Errors
/// Names the object and the field that cannot be understood.
pub fn slice(value: &Value) -> Result<EndpointSlice, BadObject> {
    read_slice(Field::root(value)).map_err(|w| bad("EndpointSlice", value, w))
}

/// A core/v1 Node.
///
/// # Errors
/// Names the object and the field that cannot be understood.
pub fn node(value: &Value) -> Result<Node, BadObject> {
    read_node(Field::root(value)).map_err(|w| bad("Node", value, w))
}

/// A networking.k8s.io/v1 ServiceCIDR: its name and ranges.
///
/// # Errors
/// Names the object and the field that cannot be understood.
pub fn service_cidr(value: &Value) -> Result<(Arc<str>, Vec<IpNet>), BadObject> {
    let root = Field::root(value);
    let read = || -> Result<_, Wrong> {
        let name = root.at("metadata").at("name").some_text()?;
        let cidrs = root.at("spec").at("cidrs").texts()?;
        Ok((name.into(), cidrs.into_iter().filter_map(cidr).collect()))
    };
    read().map_err(|w| bad("ServiceCIDR", value, w))
}

/// The configuration in ConfigMap `kube-system/kube-proxy`; `None` for any other ConfigMap.
///
/// # Errors
/// Names the object and the field that cannot be understood.
pub fn proxy_config(value: &Value) -> Result<Option<Option<String>>, BadObject> {
    let root = Field::root(value);
    let read = || -> Result<_, Wrong> {
        let meta = root.at("metadata");
        if (meta.at("namespace").text()?, meta.at("name").text()?)
            != (Some("kube-system"), Some("kube-proxy"))
        {
            return Ok(None);
        }
        Ok(Some(
            root.at("data")
                .at("config.conf")
                .text()?
                .map(str::to_string),
        ))
    };
    read().map_err(|w| bad("ConfigMap", value, w))
}

/// Namespace (`default` where absent) and name, from an object that may be a deleted one's last state.
///
/// # Errors
/// Names what is missing.
pub fn name_of(value: &Value) -> Result<(Arc<str>, Arc<str>), BadObject> {
    let meta = Field::root(value).at("metadata");
    let read = || -> Result<_, Wrong> {
        Ok((
            meta.at("namespace").text()?.unwrap_or("default").into(),
            meta.at("name").some_text()?.into(),
        ))
    };
    read().map_err(|w| bad("object", value, w))
}

fn bad(kind: &str, value: &Value, (field, why): Wrong) -> BadObject {
    let text = |key| {
        value
            .get("metadata")
            .and_then(|m| m.get(key))
            .and_then(Value::as_str)
    };
    let object = match (text("namespace"), text("name")) {
        (Some(namespace), Some(name)) => format!("{kind} {namespace}/{name}"),
        (None, Some(name)) => format!("{kind} {name}"),
        _ => format!("{kind} without a name"),
    };
    BadObject { object, field, why }
}

fn read_service(root: Field<'_>) -> Result<Service, Wrong> {
    let meta = root.at("metadata").map()?;
    let spec = root.at("spec").map()?;
    let labels = meta.at("labels").keys()?;
    let annotations = meta.at("annotations").map()?;

    let kind = match spec.at("type").text()?.unwrap_or("ClusterIP") {
        "" | "ClusterIP" => ServiceType::ClusterIP,
        "NodePort" => ServiceType::NodePort,
        "LoadBalancer" => ServiceType::LoadBalancer,
        "ExternalName" => ServiceType::ExternalName,
        other => {
            return Err((
                "spec.type".into(),
                format!("{other:?} is no type of a Service"),
            ));
        }
    };

    let ips = spec.at("clusterIPs").texts()?;
    let cluster_ip = match spec.at("clusterIP").text()? {
        Some(ip) if !ip.is_empty() => ip,
        _ => ips.first().copied().unwrap_or_default(),
    };
    let mut cluster_ips: Vec<IpAddr> = ips.iter().copied().filter_map(address).collect();
    if ips.is_empty() {
        cluster_ips.extend(address(cluster_ip));
    }
    let mut ip_families = Vec::new();
    for family in spec.at("ipFamilies").texts()? {
        ip_families.push(match family {
            "IPv4" => Family::V4,
            "IPv6" => Family::V6,
            other => {
                return Err((
                    "spec.ipFamilies".into(),
                    format!("{other:?} is not IPv4 or IPv6"),
                ));
            }
        });
    }
    if ip_families.is_empty() {
        ip_families = cluster_ips.iter().map(|ip| Family::of(*ip)).collect();
    }

    let mut ports = Vec::new();
    for port in spec.at("ports").list()? {
        ports.push(ServicePort {
            name: port.at("name").text()?.unwrap_or_default().into(),
            protocol: protocol(&port.at("protocol"))?,
            port: port.at("port").some_port()?,
            node_port: port.at("nodePort").port()?,
        });
    }

    let mut ingress = Vec::new();
    let mut ingress_hostnames = 0;
    for entry in root.at("status").at("loadBalancer").at("ingress").list()? {
        match entry.at("ip").text()?.and_then(address) {
            Some(address) => ingress.push(Ingress {
                address,
                proxy_mode: entry.at("ipMode").text()? == Some("Proxy"),
            }),
            None if !entry.at("hostname").is_null() => ingress_hostnames += 1,
            None => {}
        }
    }

    let affinity_seconds = match spec.at("sessionAffinity").text()? {
        Some("ClientIP") => {
            let seconds = spec
                .at("sessionAffinityConfig")
                .at("clientIP")
                .at("timeoutSeconds")
                .number(u64::from(u32::MAX))?;
            Some(seconds.map_or(AFFINITY_SECONDS, |s| s as u32))
        }
        _ => None,
    };

    let mut topology_annotation = None;
    for key in TOPOLOGY {
        if topology_annotation.is_none() {
            topology_annotation = annotations.at(key).text()?.map(Arc::from);
        }
    }

    Ok(Service {
        name: ServiceName::new(
            meta.at("namespace").text()?.unwrap_or("default"),
            meta.at("name").some_text()?,
        ),
        uid: meta.at("uid").text()?.unwrap_or_default().into(),
        resource_version: meta
            .at("resourceVersion")
            .text()?
            .unwrap_or_default()
            .into(),
        kind,
        cluster_ip: cluster_ip.into(),
        cluster_ips,
        ip_families,
        external_ips: spec
            .at("externalIPs")
            .texts()?
            .into_iter()
            .filter_map(address)
            .collect(),
        ingress,
        ingress_hostnames,
        source_ranges: spec
            .at("loadBalancerSourceRanges")
            .texts()?
            .into_iter()
            .filter_map(cidr)
            .collect(),
        internal_local: spec.at("internalTrafficPolicy").text()? == Some("Local"),
        external_local: spec.at("externalTrafficPolicy").text()? == Some("Local"),
        affinity_seconds,
        health_check_node_port: spec.at("healthCheckNodePort").port()?,
        ports,
        proxy_name_label: labels.contains(&PROXY_NAME),
        headless_label: labels.contains(&HEADLESS),
        topology_annotation,
        selectorless: spec.at("selector").keys()?.is_empty(),
    })
}

fn read_slice(root: Field<'_>) -> Result<EndpointSlice, Wrong> {
    let meta = root.at("metadata").map()?;
    let labels = meta.at("labels").map()?;
    let family = match root.at("addressType").some_text()? {
        "IPv4" => Some(Family::V4),
        "IPv6" => Some(Family::V6),
        "FQDN" => None,
        other => {
            return Err((
                "addressType".into(),
                format!("{other:?} is not IPv4, IPv6 or FQDN"),
            ));
        }
    };
    let mut ports = Vec::new();
    for port in root.at("ports").list()? {
        ports.push(SlicePort {
            // The API server's default of a null name is the empty one.
            name: Some(port.at("name").text()?.unwrap_or_default().into()),
            protocol: protocol(&port.at("protocol"))?,
            port: port.at("port").port()?,
        });
    }
    let mut endpoints = Vec::new();
    for endpoint in root.at("endpoints").list()? {
        let conditions = endpoint.at("conditions").map()?;
        let hints = endpoint.at("hints").map()?;
        let names = |key: &str| -> Result<Vec<Arc<str>>, Wrong> {
            hints
                .at(key)
                .list()?
                .iter()
                .map(|h| Ok(h.at("name").some_text()?.into()))
                .collect()
        };
        let target = endpoint.at("targetRef").map()?;
        endpoints.push(Endpoint {
            address: endpoint
                .at("addresses")
                .texts()?
                .first()
                .and_then(|a| address(a)),
            ready: conditions.at("ready").boolean()?.unwrap_or(true),
            serving: conditions.at("serving").boolean()?.unwrap_or(true),
            terminating: conditions.at("terminating").boolean()?.unwrap_or(false),
            node: endpoint.at("nodeName").text()?.map(Arc::from),
            zone_hints: names("forZones")?,
            node_hints: names("forNodes")?,
            pod: match target.at("kind").text()? {
                Some("Pod") => target.at("name").text()?.map(Arc::from),
                _ => None,
            },
        });
    }
    let keys = labels.keys()?;
    Ok(EndpointSlice {
        name: SliceName {
            namespace: meta.at("namespace").text()?.unwrap_or("default").into(),
            name: meta.at("name").some_text()?.into(),
        },
        resource_version: meta
            .at("resourceVersion")
            .text()?
            .unwrap_or_default()
            .into(),
        service: labels
            .at(SERVICE_NAME)
            .text()?
            .filter(|s| !s.is_empty())
            .map(Arc::from),
        family,
        ports,
        endpoints,
        headless_label: keys.contains(&HEADLESS),
        proxy_name_label: keys.contains(&PROXY_NAME),
    })
}

fn read_node(root: Field<'_>) -> Result<Node, Wrong> {
    let meta = root.at("metadata").map()?;
    let spec = root.at("spec").map()?;
    let mut internal_ips = Vec::new();
    let mut external_ips = Vec::new();
    for entry in root.at("status").at("addresses").list()? {
        let Some(ip) = entry.at("address").text()?.and_then(address) else {
            continue;
        };
        match entry.at("type").text()? {
            Some("InternalIP") => internal_ips.push(ip),
            Some("ExternalIP") => external_ips.push(ip),
            _ => {}
        }
    }
    let mut pod_cidrs: Vec<IpNet> = spec
        .at("podCIDRs")
        .texts()?
        .into_iter()
        .filter_map(cidr)
        .collect();
    if pod_cidrs.is_empty() {
        pod_cidrs.extend(spec.at("podCIDR").text()?.and_then(cidr));
    }
    let mut going = !meta.at("deletionTimestamp").is_null();
    for taint in spec.at("taints").list()? {
        going |= taint.at("key").text()? == Some(GOING);
    }
    let created = meta
        .at("creationTimestamp")
        .text()?
        .and_then(|t| t.parse::<jiff::Timestamp>().ok())
        .and_then(|t| u64::try_from(t.as_millisecond()).ok())
        .map(Millis);
    Ok(Node {
        name: NodeName(meta.at("name").some_text()?.into()),
        internal_ips,
        external_ips,
        zone: meta
            .at("labels")
            .at(ZONE)
            .text()?
            .filter(|z| !z.is_empty())
            .map(Arc::from),
        pod_cidrs,
        going,
        created,
    })
}

fn protocol(field: &Field<'_>) -> Result<Protocol, Wrong> {
    match field.text()? {
        None | Some("") => Ok(Protocol::Tcp),
        Some("TCP") => Ok(Protocol::Tcp),
        Some("UDP") => Ok(Protocol::Udp),
        Some("SCTP") => Ok(Protocol::Sctp),
        Some(other) => field.wrong(format!("{other:?} is not TCP, UDP or SCTP")),
    }
}

#[cfg(test)]
#[path = "trim_tests.rs"]
mod tests;
