//! The way of one packet through every hook, rule by rule: what [`crate::netfilter::walk`] does,
//! with a packet of which everything is known.

use crate::netfilter::ruleset::{HookPoint, Ruleset};
use crate::netfilter::walk::{self, Ask};
use model::address::Protocol;
use model::finding::Evidence;
use model::table::Observed;
use std::net::IpAddr;
use std::sync::Arc;

/// The first packet of a new connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Source address.
    pub source: IpAddr,
    /// Source port; `None`: any.
    pub source_port: Option<u16>,
    /// Name of the link it came in on; `None`: the node itself sends it.
    pub link: Option<Arc<str>>,
    /// Destination address.
    pub destination: IpAddr,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Destination port.
    pub port: u16,
}

/// One rule or element that did something with the packet.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// The hook at which it was.
    pub hook: Option<HookPoint>,
    /// The rule or element, and what it did.
    pub place: Evidence,
    /// Where chance decides: the probability of this step. The steps behind it belong to this
    /// branch, up to the next step with a probability.
    pub chance: Option<f64>,
}

/// The whole way.
#[derive(Clone, Debug, PartialEq)]
pub struct Path {
    /// In the packet's order; branches that chance decides between follow each other.
    pub steps: Vec<Step>,
    /// What becomes of the packet.
    pub end: Observed,
}

/// Follows a packet.
pub fn trace(ruleset: &Ruleset, ask: &Ask<'_>, packet: &Packet) -> Path {
    let way = walk::way(
        ruleset,
        ask,
        (packet.source, packet.source_port, packet.link.clone()),
        (packet.destination, packet.protocol, packet.port),
    );
    Path {
        steps: way
            .places
            .into_iter()
            .map(|(hook, place, chance)| Step {
                hook,
                place,
                chance,
            })
            .collect(),
        end: way.end,
    }
}
