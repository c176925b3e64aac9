//! Names: of Services, of their ports, of nodes.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// A Service's namespace and name. Ordered by namespace, then name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServiceName {
    /// `metadata.namespace`.
    pub namespace: Arc<str>,
    /// `metadata.name`.
    pub name: Arc<str>,
}

impl ServiceName {
    /// From its two parts.
    pub fn new(namespace: &str, name: &str) -> Self {
        ServiceName {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// One port of a Service. Shown as kube-proxy shows it: `shop/web:http`, an unnamed port `shop/web`.
///
/// The protocol is not part of the text (kube-proxy.md 0.3), but two ports of one name differ by it,
/// so the key of a service port in this crate is this name plus a protocol.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct ServicePortName {
    /// The Service.
    pub service: ServiceName,
    /// `spec.ports[].name`; empty for an unnamed port.
    pub port: Arc<str>,
}

impl ServicePortName {
    /// From its parts; `port` may be empty.
    pub fn new(namespace: &str, name: &str, port: &str) -> Self {
        ServicePortName {
            service: ServiceName::new(namespace, name),
            port: port.into(),
        }
    }
}

impl fmt::Display for ServicePortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.port.is_empty() {
            write!(f, "{}", self.service)
        } else {
            write!(f, "{}:{}", self.service, self.port)
        }
    }
}

impl From<ServicePortName> for String {
    fn from(n: ServicePortName) -> String {
        n.to_string()
    }
}

impl std::str::FromStr for ServicePortName {
    type Err = String;

    /// Reads the text form; the error says what is missing.
    fn from_str(s: &str) -> Result<Self, String> {
        let (ns, rest) = s
            .split_once('/')
            .ok_or_else(|| format!("{s:?} has no namespace/"))?;
        let (name, port) = rest.split_once(':').unwrap_or((rest, ""));
        Ok(ServicePortName::new(ns, name, port))
    }
}

impl TryFrom<String> for ServicePortName {
    type Error = String;

    fn try_from(s: String) -> Result<Self, String> {
        s.parse()
    }
}

/// A Node's `metadata.name`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeName(pub Arc<str>);

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for NodeName {
    fn from(s: &str) -> Self {
        NodeName(s.into())
    }
}
