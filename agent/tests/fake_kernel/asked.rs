//! The rules of a recorded bundle, and what its API asks of them.

use super::Content;
use crate::seeded::bundle;
use agent::bundle::Recorded;
use model::address::Frontend;
use model::desired::{desired, frontends};
use model::name::ServicePortName;
use model::view::{ClusterView, NodeView};
use std::collections::BTreeMap;

/// What is asked of the rules of a bundle.
pub struct Asked {
    pub content: Content,
    pub node: NodeView,
    pub frontends: BTreeMap<Frontend, Option<ServicePortName>>,
    pub pass: Recorded,
}

impl Asked {
    pub fn of(name: &str) -> Asked {
        let (captures, pass) = bundle(name);
        let mut view = ClusterView::default();
        pass.view.clone().apply(&mut view);
        let addresses = pass.addresses.clone().expect("they could be read");
        let here = |ip| addresses.iter().any(|a| a.address == ip);
        let mut nodes = view.nodes.values();
        let own = nodes.find(|n| n.internal_ips.iter().all(|ip| here(*ip)));
        let node = NodeView {
            name: own.expect("its own Node").name.clone(),
            addresses,
        };
        let desired = desired(&view, &node, &pass.profile);
        Asked {
            content: Content::of(&captures.nf_tables.expect("nf_tables were read")),
            frontends: frontends(&desired),
            node,
            pass,
        }
    }
}
