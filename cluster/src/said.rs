//! What a source of API objects says, besides the objects.

use model::view::Change;
use std::fmt;

/// One of the collections that a source follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Collection {
    /// core/v1 Services of all namespaces.
    Services,
    /// discovery.k8s.io/v1 EndpointSlices of all namespaces.
    Slices,
    /// The node's own core/v1 Node.
    Node,
    /// networking.k8s.io/v1 ServiceCIDRs.
    ServiceCidrs,
    /// ConfigMap `kube-system/kube-proxy`.
    ProxyConfigMap,
}

impl Collection {
    /// All of them.
    pub const ALL: [Collection; 5] = [
        Collection::Services,
        Collection::Slices,
        Collection::Node,
        Collection::ServiceCidrs,
        Collection::ProxyConfigMap,
    ];

    /// Without it nothing can be judged. The others may be missing (old server, no permission).
    pub fn is_required(self) -> bool {
        matches!(self, Collection::Services | Collection::Slices)
    }
}

impl fmt::Display for Collection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Collection::Services => "Services",
            Collection::Slices => "EndpointSlices",
            Collection::Node => "Node",
            Collection::ServiceCidrs => "ServiceCIDRs",
            Collection::ProxyConfigMap => "ConfigMap kube-system/kube-proxy",
        })
    }
}

/// One thing a source says.
#[derive(Clone, Debug, PartialEq)]
#[expect(
    clippy::large_enum_variant,
    reason = "one at a time through a channel; a box for each event would cost more"
)]
pub enum Said {
    /// An object changed, or the first list is complete.
    Change(Change),
    /// Everything the API server knew of this collection a moment ago has been said: the first
    /// list, an event, a bookmark, a watch that was resumed.
    Alive(Collection),
    /// This collection cannot be followed at present, with the reason.
    Lost(Collection, String),
    /// An object that could not be understood; what was known of it before stays.
    Bad(String),
    /// Key `config.conf` of ConfigMap `kube-system/kube-proxy`; `None`: there is no such thing.
    ProxyConfig(Option<String>),
}
