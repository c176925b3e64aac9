//! Addresses on the node's links.

use super::events::{Events, Heard};
use super::netlink::{Family, Netlink, NetlinkError, Question};
use crate::netfilter::nftables::attributes::{Attributes, text};
use model::view::LocalAddress;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// Attempts to list without a change in between.
const TRIES: u32 = 5;

/// The addresses on the node's links, listed again only when the kernel tells of a change.
#[derive(Debug, Default)]
pub struct Links {
    events: Option<Events>,
    known: Option<Vec<LocalAddress>>,
}

impl Links {
    /// As [`addresses`].
    ///
    /// # Errors
    /// As there; what was known is then forgotten.
    pub fn addresses(&mut self) -> Result<&[LocalAddress], NetlinkError> {
        let events = match &mut self.events {
            Some(events) => events,
            None => {
                self.known = None;
                self.events.insert(Events::of_addresses()?)
            }
        };
        let mut changed = false;
        // Heard before it is listed: what changes during the listing is heard the next time.
        match events.hear(|_, _| changed = true) {
            Ok(Heard::All) => {}
            Ok(Heard::Lost) => changed = true,
            Err(error) => {
                *self = Links::default();
                return Err(error);
            }
        }
        if changed {
            self.known = None;
        }
        match &mut self.known {
            Some(known) => Ok(known),
            none => Ok(none.insert(addresses()?)),
        }
    }
}

/// All addresses of all links of this thread's network namespace, sorted. Needs no right.
pub fn addresses() -> Result<Vec<LocalAddress>, NetlinkError> {
    let mut netlink = Netlink::open(Family::Route)?;
    let mut last = NetlinkError::Interrupted;
    for _ in 0..TRIES {
        match addresses_once(&mut netlink) {
            Err(NetlinkError::Interrupted) => last = NetlinkError::Interrupted,
            other => return other,
        }
    }
    Err(last)
}

fn addresses_once(netlink: &mut Netlink) -> Result<Vec<LocalAddress>, NetlinkError> {
    let mut names: HashMap<u32, Arc<str>> = HashMap::new();
    netlink.ask(&Question::Links, |message| {
        // struct ifinfomsg: index at 4, 16 bytes; IFLA_IFNAME 3
        if let (Some(index), Some(rest)) = (native(message, 4), message.get(16..)) {
            for (kind, value) in Attributes::new(rest) {
                if kind == 3 {
                    names.insert(index, text(value).into());
                }
            }
        }
        true
    })?;
    let mut found = Vec::new();
    netlink.ask(&Question::Addresses, |message| {
        // struct ifaddrmsg: family at 0, index at 4, 8 bytes; IFA_ADDRESS 1, IFA_LOCAL 2
        let (Some(index), Some(rest)) = (native(message, 4), message.get(8..)) else {
            return true;
        };
        let (mut address, mut local) = (None, None);
        for (kind, value) in Attributes::new(rest) {
            match kind {
                1 => address = ip(value),
                2 => local = ip(value),
                _ => {}
            }
        }
        // On a point-to-point link IFA_ADDRESS is the other end's.
        if let Some(address) = local.or(address) {
            let link = names
                .get(&index)
                .cloned()
                .unwrap_or_else(|| format!("if{index}").into());
            found.push(LocalAddress { address, link });
        }
        true
    })?;
    found.sort();
    found.dedup();
    Ok(found)
}

fn native(message: &[u8], at: usize) -> Option<u32> {
    message
        .get(at..at + 4)?
        .first_chunk::<4>()
        .map(|b| u32::from_ne_bytes(*b))
}

fn ip(value: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(value) {
        return Some(Ipv4Addr::from(v4).into());
    }
    <[u8; 16]>::try_from(value)
        .ok()
        .map(|v6| Ipv6Addr::from(v6).into())
}
