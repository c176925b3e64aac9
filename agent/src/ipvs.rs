//! IPVS and the ipsets that kube-proxy's IPVS mode works with: decoded, and put among the rules.
//!
//! IPVS hangs on the same hooks as netfilter's tables (`ip_vs_ops4`, `ip_vs_ops6` in
//! net/netfilter/ipvs/ip_vs_core.c): on packets to the node itself in the input hook, after the filter,
//! and on the node's own in the output hook, between translation and filter. So virtual servers become
//! two base chains of a table of their own, with one chain for each, and the walk through the rules
//! follows packets through it like through any other ([`rules`]). ipsets become sets of the tables whose
//! rules look something up in them.

pub mod capture;
pub mod decode;
pub mod ipset;
pub mod rules;

use crate::host::netlink::NetlinkError;
use crate::host::{self, ipvs::ReadError};
use capture::Captured;
use ipset::Ipsets;
use model::capture::Gap;
use rules::Traces;

/// What belongs to the rules of a node that has virtual servers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ipvs {
    /// Virtual servers, sorted.
    pub servers: Vec<decode::VirtualServer>,
    /// ipsets, by the number with which rules name them.
    pub sets: Ipsets,
}

/// Reads it, undecoded. `None`: the kernel has no IPVS, or has it loaded with nothing in it and no rules
/// that go with it. `traces`: what the rules have of it; asked only where it matters.
///
/// # Errors
/// What could not be read: rules without it show something else than packets meet.
pub fn read(traces: impl FnOnce() -> Traces) -> Result<Option<Captured>, Gap> {
    let gap = |what: &str, why: String| Gap {
        what: what.into(),
        why: why.into(),
    };
    let servers = match host::ipvs::read() {
        Ok(servers) => servers,
        Err(ReadError::Absent) => return Ok(None),
        Err(error) => return Err(gap("IPVS", error.to_string())),
    };
    let traces = traces();
    if servers.servers.is_empty() && !traces.mode {
        return Ok(None);
    }
    let sets = if traces.sets {
        match host::ipset::read(ipset::is_kube_proxys) {
            Ok(sets) => sets,
            // Rules refer to sets, so the kernel has them.
            Err(NetlinkError::Permission) => {
                return Err(gap("ipset", "reading ipsets needs CAP_NET_ADMIN".into()));
            }
            Err(error) => return Err(gap("ipset", error.to_string())),
        }
    } else {
        Vec::new()
    };
    Ok(Some(Captured { servers, sets }))
}

impl Captured {
    /// Decoded.
    ///
    /// # Errors
    /// Where a virtual server is not understood at all: what it answers for would look missing.
    pub fn decode(&self) -> Result<Ipvs, Gap> {
        let servers = decode::servers(&self.servers).map_err(|why| Gap {
            what: "IPVS".into(),
            why: why.into(),
        })?;
        Ok(Ipvs {
            servers,
            sets: Ipsets::of(&self.sets),
        })
    }
}

#[cfg(test)]
mod tests;
