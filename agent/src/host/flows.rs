//! Entries of connection tracking whose destination was translated, over ctnetlink. Only what
//! [`model::flows`] needs of them.

use super::netlink::{Family, Netlink, NetlinkError, Question};
use super::nf_tables::Answers;
use crate::host::conntrack::{ReadError, absent, refused};
use crate::netfilter::nftables::attributes::{Attributes, be16, be32, table};
use model::address::Protocol;
use model::flows::Entry;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// `struct nfgenmsg`.
const HEADER: usize = 4;
/// Messages of one walk: older kernels give all entries, not those alone that are asked for.
const MESSAGES: usize = 2_000_000;
/// `IPS_SEEN_REPLY`, `IPS_DST_NAT` (linux/netfilter/nf_conntrack_common.h).
const SEEN_REPLY: u32 = 1 << 1;
/// Asked for, and checked again: kernels before 5.14 do not filter by status.
pub(super) const DST_NAT: u32 = 1 << 5;

/// Keeps a socket open.
#[derive(Debug, Default)]
pub struct Reader {
    netlink: Option<Netlink>,
}

/// How a walk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The kernel gave all.
    Whole,
    /// There were more than are taken.
    TooMany,
}

impl Reader {
    /// Gives each translated flow of this thread's network namespace to `each`, until that returns
    /// false. Needs CAP_NET_ADMIN. Where the kernel has no connection tracking it is not asked, as in
    /// [`super::conntrack`].
    ///
    /// # Errors
    /// [`ReadError`]. What was given before is then not all.
    pub fn walk(&mut self, each: impl FnMut(&Entry) -> bool) -> Result<End, ReadError> {
        if absent() {
            return Err(ReadError::Absent);
        }
        let netlink = match &mut self.netlink {
            Some(netlink) => netlink,
            None => {
                let netlink = Netlink::open(Family::Netfilter).map_err(refused)?;
                self.netlink.insert(netlink)
            }
        };
        walk(netlink, each)
    }
}

/// As [`Reader::walk`], from whatever answers.
///
/// # Errors
/// As there; a message that is not whole is one.
pub fn walk(
    answers: &mut dyn Answers,
    mut each: impl FnMut(&Entry) -> bool,
) -> Result<End, ReadError> {
    let (mut messages, mut broken, mut more) = (0, false, false);
    let asked = answers.ask(&Question::ConntrackTranslated, &mut |message| {
        messages += 1;
        match entry(message) {
            Err(Broken) => broken = true,
            Ok(None) => more = messages >= MESSAGES,
            Ok(Some(entry)) => more = !each(&entry) || messages >= MESSAGES,
        }
        !broken && !more
    });
    if broken {
        return Err(ReadError::Failed(NetlinkError::Protocol(
            "an entry of connection tracking that is not whole",
        )));
    }
    match asked {
        Err(NetlinkError::Interrupted) if more => Ok(End::TooMany),
        Err(error) => Err(refused(error)),
        Ok(()) => Ok(End::Whole),
    }
}

/// A message that is not whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

/// An entry; `None` where it is none of a Service: not translated, or of another protocol. Attributes
/// by number are those of linux/netfilter/nfnetlink_conntrack.h.
///
/// # Errors
/// [`Broken`].
pub fn entry(message: &[u8]) -> Result<Option<Entry>, Broken> {
    let mut found: [&[u8]; 13] = [&[]; 13];
    let mut attributes = Attributes::new(message.get(HEADER..).ok_or(Broken)?);
    for (kind, value) in &mut attributes {
        if let Some(slot) = found.get_mut(usize::from(kind)) {
            *slot = value;
        }
    }
    if attributes.broken() {
        return Err(Broken);
    }
    // CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, CTA_STATUS, CTA_PROTOINFO, CTA_TIMEOUT, CTA_ID
    let [
        _,
        original,
        reply,
        status,
        info,
        _,
        _,
        timeout,
        _,
        _,
        _,
        _,
        id,
    ] = found;
    let status = be32(status).ok_or(Broken)?;
    if status & DST_NAT == 0 {
        return Ok(None);
    }
    let (number, client, frontend) = tuple(original)?;
    let (back, backend, _) = tuple(reply)?;
    if number != back {
        return Err(Broken);
    }
    let Some(protocol) = Protocol::from_number(number) else {
        return Ok(None);
    };
    let (Some(client), Some(frontend), Some(backend)) = (client, frontend, backend) else {
        return Err(Broken);
    };
    let tcp_state = match (protocol, info.is_empty()) {
        (Protocol::Tcp, false) => {
            let [_, tcp, ..] = table(info).ok_or(Broken)?;
            let [_, state, ..] = table(tcp).ok_or(Broken)?;
            Some(*state.first().ok_or(Broken)?)
        }
        _ => None,
    };
    Ok(Some(Entry {
        id: be32(id).ok_or(Broken)?,
        protocol,
        client,
        frontend,
        backend,
        answered: status & SEEN_REPLY != 0,
        tcp_state,
        left: be32(timeout),
    }))
}

/// Protocol, source and destination of `CTA_TUPLE_…`; without ports, no sockets.
type Tuple = (u8, Option<SocketAddr>, Option<SocketAddr>);

fn tuple(bytes: &[u8]) -> Result<Tuple, Broken> {
    let [_, ip, protocol, ..] = table(bytes).ok_or(Broken)?;
    let [_, from4, to4, from6, to6, ..] = table(ip).ok_or(Broken)?;
    let [_, number, from_port, to_port, ..] = table(protocol).ok_or(Broken)?;
    let socket = |four: &[u8], six: &[u8], port: &[u8]| {
        let address = match (four.first_chunk::<4>(), six.first_chunk::<16>()) {
            (Some(four), None) => IpAddr::V4(Ipv4Addr::from(*four)),
            (None, Some(six)) => IpAddr::V6(Ipv6Addr::from(*six)),
            _ => return None,
        };
        (port.len() >= 2).then(|| SocketAddr::new(address, be16(port)))
    };
    Ok((
        *number.first().ok_or(Broken)?,
        socket(from4, from6, from_port),
        socket(to4, to6, to_port),
    ))
}

#[cfg(test)]
mod tests;
