//! Objects as the debugging flow needs them (`model::flow`): Services with their selectors, slices with
//! who made them, Pods, Nodes.

use super::{bad, read_node, read_service, read_slice};
use crate::field::{BadObject, Field, Wrong, address};
use model::flow::limits;
use model::flow::objects::{
    Condition, Container, ContainerPort, ContainerState, Labels, NodeObject, NotReady, Phase, Pod,
    ServiceObject, SliceObject, TargetPort,
};
use serde_json::Value;
use std::sync::Arc;

/// Label of a slice: who made it.
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";

/// A core/v1 Service.
///
/// # Errors
/// Names the object and the field that cannot be understood.
pub fn service_object(value: &Value) -> Result<ServiceObject, BadObject> {
    let read = || -> Result<_, Wrong> {
        let root = Field::root(value);
        let spec = root.at("spec").map()?;
        let service = read_service(root.clone())?;
        let mut target_ports = Vec::new();
        // `SetDefaults_Service`: a target port that is 0 or empty is the port itself.
        for (port, of) in spec.at("ports").list()?.iter().zip(&service.ports) {
            let target = port.at("targetPort");
            target_ports.push(match target.text() {
                Ok(Some(name)) if !name.is_empty() => TargetPort::Name(name.into()),
                Ok(_) => TargetPort::Number(of.port),
                Err(_) => TargetPort::Number(target.port()?.unwrap_or(of.port)),
            });
        }
        let text = |key: &str| -> Result<Option<Arc<str>>, Wrong> {
            Ok(spec
                .at(key)
                .text()?
                .filter(|t| !t.is_empty())
                .map(Arc::from))
        };
        Ok(ServiceObject {
            selector: labels(&spec.at("selector"))?,
            target_ports,
            publish_not_ready: spec
                .at("publishNotReadyAddresses")
                .boolean()?
                .unwrap_or(false),
            external_name: text("externalName")?,
            load_balancer_class: text("loadBalancerClass")?,
            has_status: !root.at("status").is_null(),
            service,
        })
    };
    read().map_err(|w| bad("Service", value, w))
}

/// A discovery.k8s.io/v1 EndpointSlice.
///
/// # Errors
/// Names the object and the field that cannot be understood.
pub fn slice_object(value: &Value) -> Result<SliceObject, BadObject> {
    let read = || -> Result<_, Wrong> {
        let root = Field::root(value);
        let meta = root.at("metadata").map()?;
        let mut owner = None;
        for reference in meta.at("ownerReferences").list()? {
            if reference.at("kind").text()? == Some("Service") {
                owner = reference.at("uid").text()?.map(Arc::from);
            }
        }
        Ok(SliceObject {
            slice: read_slice(root.clone())?,
            managed_by: meta.at("labels").at(MANAGED_BY).text()?.map(Arc::from),
            owner,
            deleted: !meta.at("deletionTimestamp").is_null(),
        })
    };
    read().map_err(|w| bad("EndpointSlice", value, w))
}

/// A core/v1 Node.
///
/// # Errors
/// Names the object and the field that cannot be understood.
pub fn node_object(value: &Value) -> Result<NodeObject, BadObject> {
    let read = || -> Result<_, Wrong> {
        let root = Field::root(value);
        let mut ready = None;
        for condition in root.at("status").at("conditions").list()? {
            if condition.at("type").text()? == Some("Ready") {
                ready = Some(condition.at("status").text()? == Some("True"));
            }
        }
        Ok(NodeObject {
            node: read_node(root)?,
            ready,
        })
    };
    read().map_err(|w| bad("Node", value, w))
}

/// A core/v1 Pod.
///
/// # Errors
/// Names the object and the field that cannot be understood.
pub fn pod(value: &Value) -> Result<Pod, BadObject> {
    read_pod(Field::root(value)).map_err(|w| bad("Pod", value, w))
}

fn read_pod(root: Field<'_>) -> Result<Pod, Wrong> {
    let meta = root.at("metadata").map()?;
    let spec = root.at("spec").map()?;
    let status = root.at("status").map()?;
    let mut addresses = Vec::new();
    for entry in status.at("podIPs").list()? {
        addresses.extend(entry.at("ip").text()?.and_then(address));
    }
    if addresses.is_empty() {
        addresses.extend(status.at("podIP").text()?.and_then(address));
    }
    let phase = match status.at("phase").text()? {
        Some("Pending") => Phase::Pending,
        Some("Running") => Phase::Running,
        Some("Succeeded") => Phase::Succeeded,
        Some("Failed") => Phase::Failed,
        _ => Phase::Unknown,
    };
    let mut ready = false;
    let mut conditions = Vec::new();
    for condition in status.at("conditions").list()? {
        let kind = condition.at("type").text()?.unwrap_or_default();
        if condition.at("status").text()? == Some("True") {
            ready |= kind == "Ready";
        } else if conditions.len() < limits::CONDITIONS {
            let text = |key: &str| -> Result<Arc<str>, Wrong> {
                let text = condition.at(key).text()?.unwrap_or_default();
                Ok(text
                    .chars()
                    .take(limits::MESSAGE)
                    .collect::<String>()
                    .into())
            };
            conditions.push(Condition {
                kind: kind.into(),
                reason: text("reason")?,
                message: text("message")?,
            });
        }
    }
    Ok(Pod {
        namespace: meta.at("namespace").text()?.unwrap_or("default").into(),
        name: meta.at("name").some_text()?.into(),
        labels: labels(&meta.at("labels"))?,
        node: spec
            .at("nodeName")
            .text()?
            .filter(|n| !n.is_empty())
            .map(Arc::from),
        addresses,
        phase,
        deleted: !meta.at("deletionTimestamp").is_null(),
        ready,
        not_ready: match ready {
            true => None,
            false => Some(Box::new(NotReady {
                conditions,
                containers: containers(&status)?,
            })),
        },
        ports: ports(&spec)?.into(),
    })
}

/// Containers that are not ready. An init container that has done its work is not among them.
fn containers(status: &Field<'_>) -> Result<Vec<Container>, Wrong> {
    let mut all = Vec::new();
    for (list, init) in [
        ("initContainerStatuses", true),
        ("containerStatuses", false),
    ] {
        for container in status.at(list).list()? {
            let state = container.at("state").map()?;
            let (waiting, ended) = (state.at("waiting"), state.at("terminated"));
            let code = exit_code(&ended)?;
            let done = init && code == Some(0);
            if container.at("ready").boolean()?.unwrap_or(false)
                || done
                || all.len() >= limits::CONTAINERS
            {
                continue;
            }
            let reason = |of: &Field<'_>, none: &str| -> Result<Arc<str>, Wrong> {
                let text = of.at("reason").text()?.unwrap_or(none);
                Ok(text
                    .chars()
                    .take(limits::MESSAGE)
                    .collect::<String>()
                    .into())
            };
            all.push(Container {
                name: container.at("name").some_text()?.into(),
                init,
                state: if !waiting.is_null() {
                    ContainerState::Waiting(reason(&waiting, "no reason given")?)
                } else if let Some(code) = code {
                    ContainerState::Terminated(reason(&ended, "no reason given")?, code)
                } else if !state.at("running").is_null() {
                    ContainerState::Running {
                        started: container.at("started").boolean()?.unwrap_or(false),
                    }
                } else {
                    ContainerState::Unknown
                },
                restarts: container
                    .at("restartCount")
                    .number(u64::from(u32::MAX))?
                    .unwrap_or(0) as u32,
            });
        }
    }
    Ok(all)
}

/// `exitCode` of a container that has ended; `None`: it has not.
fn exit_code(ended: &Field<'_>) -> Result<Option<i32>, Wrong> {
    if ended.is_null() {
        return Ok(None);
    }
    // An int32 that the kubelet fills with 0 to 255; -1 and what else there is, is "not 0".
    Ok(Some(
        ended
            .at("exitCode")
            .number(i32::MAX as u64)
            .map_or(-1, |n| n.unwrap_or(0) as i32),
    ))
}

fn ports(spec: &Field<'_>) -> Result<Vec<ContainerPort>, Wrong> {
    let mut all = Vec::new();
    for (list, init) in [("containers", false), ("initContainers", true)] {
        for container in spec.at(list).list()? {
            if init && container.at("restartPolicy").text()? != Some("Always") {
                continue;
            }
            for port in container.at("ports").list()? {
                let Some(number) = port.at("containerPort").port()? else {
                    continue;
                };
                if all.len() < limits::PORTS {
                    all.push(ContainerPort {
                        name: port.at("name").text()?.unwrap_or_default().into(),
                        number,
                        protocol: super::protocol(&port.at("protocol"))?,
                        sidecar: init,
                    });
                }
            }
        }
    }
    Ok(all)
}

/// A map of texts, sorted by key.
fn labels(map: &Field<'_>) -> Result<Labels, Wrong> {
    let mut all: Vec<(Arc<str>, Arc<str>)> = Vec::new();
    for key in map.keys()? {
        all.push((key.into(), map.at(key).text()?.unwrap_or_default().into()));
    }
    all.sort();
    Ok(all.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pod_that_is_ready_keeps_what_makes_an_endpoint() {
        let found = pod(&json!({
            "metadata": {"namespace": "shop", "name": "web-1", "labels": {"b": "2", "app": "web"}},
            "spec": {"nodeName": "n1", "containers": [
                {"name": "web", "ports": [{"name": "http", "containerPort": 8080}]}],
                "initContainers": [
                    {"name": "once", "ports": [{"name": "no", "containerPort": 1}]},
                    {"name": "mesh", "restartPolicy": "Always",
                     "ports": [{"name": "mesh", "containerPort": 15000, "protocol": "UDP"}]}]},
            "status": {"phase": "Running", "podIP": "10.244.1.5",
                "podIPs": [{"ip": "10.244.1.5"}, {"ip": "fd00::5"}],
                "conditions": [{"type": "Ready", "status": "True"}],
                "containerStatuses": [{"name": "web", "ready": true, "state": {"running": {}}}]},
        }))
        .unwrap();
        assert!(found.ready && found.not_ready.is_none() && !found.deleted);
        assert_eq!(&*found.labels[0].0, "app");
        assert_eq!(found.addresses.len(), 2);
        let ports: Vec<_> = found.ports.iter().map(|p| (&*p.name, p.sidecar)).collect();
        assert_eq!(ports, [("http", false), ("mesh", true)]);
    }

    #[test]
    fn a_pod_that_is_not_ready_says_why() {
        let found = pod(&json!({
            "metadata": {"name": "web-1", "deletionTimestamp": "2026-01-01T00:00:00Z"},
            "status": {"phase": "Pending", "podIP": "10.244.1.5",
                "conditions": [
                    {"type": "PodScheduled", "status": "True"},
                    {"type": "Ready", "status": "False", "reason": "ContainersNotReady",
                     "message": "é".repeat(500)}],
                "initContainerStatuses": [
                    {"name": "done", "ready": false, "state": {"terminated": {"exitCode": 0}}}],
                "containerStatuses": [
                    {"name": "web", "restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff"}}},
                    {"name": "odd", "state": {"terminated": {"reason": "Error", "exitCode": -1}}},
                    {"name": "slow", "started": false, "state": {"running": {}}}]},
        }))
        .unwrap();
        assert!(!found.ready && found.deleted);
        let why = found.not_ready.unwrap();
        assert_eq!(why.conditions.len(), 1);
        assert_eq!(why.conditions[0].message.chars().count(), limits::MESSAGE);
        let states: Vec<_> = why
            .containers
            .iter()
            .map(|c| (&*c.name, &c.state))
            .collect();
        assert_eq!(
            states,
            [
                ("web", &ContainerState::Waiting("CrashLoopBackOff".into())),
                ("odd", &ContainerState::Terminated("Error".into(), -1)),
                ("slow", &ContainerState::Running { started: false }),
            ]
        );
    }

    #[test]
    fn target_ports_are_names_numbers_or_the_port_itself() {
        let found = service_object(&json!({
            "metadata": {"name": "web"},
            "spec": {"selector": {"app": "web"}, "ports": [
                {"port": 80, "targetPort": "http"}, {"port": 81, "targetPort": 8081},
                {"port": 82}, {"port": 83, "targetPort": 0}, {"port": 84, "targetPort": ""}]},
        }))
        .unwrap();
        let all: Vec<String> = found.target_ports.iter().map(ToString::to_string).collect();
        assert_eq!(all, ["http", "8081", "82", "83", "84"]);
        assert!(!found.has_status);
        let wrong = service_object(&json!({
            "metadata": {"name": "web"}, "spec": {"ports": [{"port": 80, "targetPort": true}]},
        }));
        assert!(wrong.unwrap_err().to_string().contains("targetPort"));
    }

    #[test]
    fn slices_and_nodes_keep_who_made_them_and_whether_they_are_ready() {
        let found = slice_object(&json!({
            "metadata": {"name": "web-1", "labels": {MANAGED_BY: "me"}, "ownerReferences": [
                {"kind": "Service", "uid": "u1"}, {"kind": "Other", "uid": "u2"}]},
            "addressType": "IPv4", "endpoints": [],
        }))
        .unwrap();
        assert_eq!(found.managed_by.as_deref(), Some("me"));
        assert_eq!(found.owner.as_deref(), Some("u1"));
        let node = |status: Value| {
            node_object(&json!({"metadata": {"name": "n1"}, "status": status}))
                .unwrap()
                .ready
        };
        assert_eq!(node(json!({})), None);
        let unknown = json!({"conditions": [{"type": "Ready", "status": "Unknown"}]});
        assert_eq!(node(unknown), Some(false));
    }
}
