//! The API's objects as the debugging flow needs them: Services with their selectors, slices with
//! their owners, Pods trimmed to what makes an endpoint, Nodes.

use crate::address::Protocol;
use crate::endpoint::EndpointSlice;
use crate::service::Service;
use crate::view::Node;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// Value of a slice's label `endpointslice.kubernetes.io/managed-by` where the controller for
/// Services with a selector made it (`controllerQualifiedName`,
/// `pkg/controller/endpointslice/endpointslice_controller.go`).
pub const SLICE_CONTROLLER: &str = "endpointslice-controller.k8s.io";
/// The same of the controller that copies hand-made Endpoints (`controllerName`,
/// `pkg/controller/endpointslicemirroring/endpointslicemirroring_controller.go`).
pub const MIRROR_CONTROLLER: &str = "endpointslicemirroring-controller.k8s.io";

/// Labels or a selector, sorted by key.
pub type Labels = Arc<[(Arc<str>, Arc<str>)]>;

/// The value of a label.
pub fn label<'a>(labels: &'a Labels, key: &str) -> Option<&'a Arc<str>> {
    labels
        .binary_search_by(|(k, _)| (**k).cmp(key))
        .ok()
        .map(|i| &labels[i].1)
}

/// `app=web,tier=front`, as `kubectl -l` takes it.
pub fn selector_text(selector: &Labels) -> String {
    let pairs: Vec<String> = selector.iter().map(|(k, v)| format!("{k}={v}")).collect();
    pairs.join(",")
}

/// `spec.ports[].targetPort`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPort {
    /// A number; the API server's default is the port itself.
    Number(u16),
    /// The name of a container port.
    Name(Arc<str>),
}

impl fmt::Display for TargetPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TargetPort::Number(n) => write!(f, "{n}"),
            TargetPort::Name(n) => f.write_str(n),
        }
    }
}

/// A Service with what only the slice controller and people look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceObject {
    /// What a datapath can know of it.
    pub service: Service,
    /// `spec.selector`; empty where there is none.
    pub selector: Labels,
    /// `spec.ports[].targetPort`, one for each of `service.ports`.
    pub target_ports: Vec<TargetPort>,
    /// `spec.publishNotReadyAddresses`.
    pub publish_not_ready: bool,
    /// `spec.externalName`.
    pub external_name: Option<Arc<str>>,
    /// `spec.loadBalancerClass`.
    pub load_balancer_class: Option<Arc<str>>,
    /// The object has a `status`. Manifests that a person wrote have none, and say nothing of a load
    /// balancer's address.
    pub has_status: bool,
}

/// An EndpointSlice with who made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceObject {
    /// What a datapath can know of it.
    pub slice: EndpointSlice,
    /// Label `endpointslice.kubernetes.io/managed-by`.
    pub managed_by: Option<Arc<str>>,
    /// `uid` of the owner reference of kind Service.
    pub owner: Option<Arc<str>>,
    /// Has a deletion timestamp.
    pub deleted: bool,
}

/// `status.phase`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Accepted, not all containers started.
    Pending,
    /// Bound, at least one container runs.
    Running,
    /// Ended well: gets no endpoint.
    Succeeded,
    /// Ended badly: gets no endpoint.
    Failed,
    /// Not known.
    Unknown,
}

impl Phase {
    /// The API's word.
    pub fn word(self) -> &'static str {
        match self {
            Phase::Pending => "Pending",
            Phase::Running => "Running",
            Phase::Succeeded => "Succeeded",
            Phase::Failed => "Failed",
            Phase::Unknown => "Unknown",
        }
    }
}

/// One `ports` entry of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerPort {
    /// `name`; empty where there is none.
    pub name: Arc<str>,
    /// `containerPort`.
    pub number: u16,
    /// `protocol`, default TCP.
    pub protocol: Protocol,
    /// Of an init container with `restartPolicy: Always`: `FindPort` looks there since 1.33, after all
    /// containers (`staging/src/k8s.io/endpointslice/utils.go`).
    pub sidecar: bool,
}

/// A condition of a Pod that is not `True`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// `type`.
    pub kind: Arc<str>,
    /// `reason`; empty where there is none.
    pub reason: Arc<str>,
    /// `message`, cut; empty where there is none.
    pub message: Arc<str>,
}

/// A container that is not ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// `name`.
    pub name: Arc<str>,
    /// An init container.
    pub init: bool,
    /// What it does.
    pub state: ContainerState,
    /// `restartCount`.
    pub restarts: u32,
}

/// `state` of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContainerState {
    /// `waiting`, with its reason (`CrashLoopBackOff`, `ImagePullBackOff`, `ContainerCreating`).
    Waiting(Arc<str>),
    /// `terminated`, with its reason (`OOMKilled`, `Error`) and exit code.
    Terminated(Arc<str>, i32),
    /// `running`, and `started` (its startup probe succeeded, or it has none).
    Running {
        /// `started`.
        started: bool,
    },
    /// Nothing was said of it.
    Unknown,
}

/// Why a Pod is not ready.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NotReady {
    /// Conditions that are not `True`, at most [`super::limits::CONDITIONS`].
    pub conditions: Vec<Condition>,
    /// Containers that are not ready, at most [`super::limits::CONTAINERS`].
    pub containers: Vec<Container>,
}

/// core/v1 Pod, trimmed to what makes an endpoint, and why it makes none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// `metadata.namespace`.
    pub namespace: Arc<str>,
    /// `metadata.name`.
    pub name: Arc<str>,
    /// `metadata.labels`.
    pub labels: Labels,
    /// `spec.nodeName`.
    pub node: Option<Arc<str>>,
    /// `status.podIPs`, else `status.podIP`.
    pub addresses: Vec<IpAddr>,
    /// `status.phase`.
    pub phase: Phase,
    /// Has a deletion timestamp.
    pub deleted: bool,
    /// Condition `Ready` is `True` (`IsPodReady`, `staging/src/k8s.io/endpointslice/util`).
    pub ready: bool,
    /// Why it is not; `None` where it is.
    pub not_ready: Option<Box<NotReady>>,
    /// Ports of its containers, in order; those of sidecars after them.
    pub ports: Arc<[ContainerPort]>,
}

impl Pod {
    /// `Pod shop/web-1`.
    pub fn object(&self) -> String {
        format!("Pod {}/{}", self.namespace, self.name)
    }

    /// Does the selector choose it?
    pub fn matches(&self, selector: &Labels) -> bool {
        !selector.is_empty()
            && selector
                .iter()
                .all(|(k, v)| label(&self.labels, k).is_some_and(|have| have == v))
    }

    /// It has ended (`isPodTerminal`): no endpoint, whatever its labels.
    pub fn ended(&self) -> bool {
        matches!(self.phase, Phase::Succeeded | Phase::Failed)
    }

    /// The number that a target port means for this Pod (`FindPort`).
    pub fn find_port(&self, target: &TargetPort, protocol: Protocol) -> Found {
        match target {
            TargetPort::Number(n) => Found::Number(*n),
            TargetPort::Name(name) => {
                match self
                    .ports
                    .iter()
                    .find(|p| p.name == *name && p.protocol == protocol)
                {
                    None => Found::Nothing,
                    Some(p) if p.sidecar => Found::InSidecar(p.number),
                    Some(p) => Found::Number(p.number),
                }
            }
        }
    }
}

/// What a target port means for one Pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// This port.
    Number(u16),
    /// This port, by the name in a sidecar, where older controllers do not look.
    InSidecar(u16),
    /// The Pod has no port of that name and protocol.
    Nothing,
}

/// A Node, with its readiness.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeObject {
    /// What the rest of the model knows of it.
    pub node: Node,
    /// Condition `Ready` is `True`; `None`: it has no such condition.
    pub ready: Option<bool>,
}
