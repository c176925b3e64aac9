//! Virtual servers and real servers of IPVS, over generic netlink (linux/ip_vs.h).
//!
//! IPVS has no generation number and tells nobody of changes. A dump of services goes on behind as many
//! as it gave before (`ip_vs_genl_dump_services`), so one that goes away meanwhile hides another, and the
//! kernel does not say `NLM_F_DUMP_INTR`. A list that fits one datagram is of one moment
//! (`__ip_vs_mutex`); longer ones are read until two readings in a row agree. The real servers of one
//! service are of another moment than those of the next: both moments were, and rows of one service do
//! not depend on another's.

use super::netlink::{Family, Netlink, NetlinkError, Question};
use crate::ipvs::capture::{Capture, Server};
use crate::ipvs::decode;
use std::io;

/// Attempts to read lists that change meanwhile.
const TRIES: u32 = 5;
/// A datagram of a dump has room for more than this many entries of either kind (some 360 bytes each
/// of at least 16 KiB): a shorter list was read at one moment.
const ONE_DATAGRAM: usize = 30;
/// The kernel makes this file in every network namespace while it has IPVS. Asking for the family by
/// name instead could load the module.
const PROOF: &str = "/proc/thread-self/net/ip_vs";

/// Why nothing was read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The kernel has no IPVS (loaded).
    #[error("the kernel has no IPVS")]
    Absent,
    /// `EPERM`.
    #[error("reading IPVS needs CAP_NET_ADMIN")]
    Permission,
    /// It changed during every attempt.
    #[error("it changed during each of {TRIES} readings")]
    Torn,
    /// Anything else.
    #[error(transparent)]
    Netlink(NetlinkError),
    /// Whether there is IPVS could not be told.
    #[error("{PROOF}: {0}")]
    Proof(String),
}

impl From<NetlinkError> for ReadError {
    fn from(error: NetlinkError) -> ReadError {
        match error {
            NetlinkError::Permission => ReadError::Permission,
            other => ReadError::Netlink(other),
        }
    }
}

/// Reads everything of this thread's network namespace.
///
/// # Errors
/// See [`ReadError`]; a reading that failed is no empty one.
pub fn read() -> Result<Capture, ReadError> {
    match std::fs::metadata(PROOF) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(ReadError::Absent),
        Err(error) => return Err(ReadError::Proof(error.to_string())),
    }
    let mut netlink = Netlink::open(Family::Generic)?;
    let family = family_of(&mut netlink)?.ok_or(ReadError::Absent)?;
    for _ in 0..TRIES {
        if let Some(capture) = read_once(&mut netlink, family)? {
            return Ok(capture);
        }
    }
    Err(ReadError::Torn)
}

/// `CTRL_CMD_GETFAMILY`: the number that the kernel gave to IPVS. `None`: it has none.
fn family_of(netlink: &mut Netlink) -> Result<Option<u16>, ReadError> {
    let mut found = None;
    let asked = netlink.ask(&Question::GenericFamily { name: b"IPVS" }, |message| {
        found = decode::family(message);
        true
    });
    match asked {
        Ok(()) => Ok(found),
        Err(NetlinkError::Gone) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// `None`: something changed meanwhile.
fn read_once(netlink: &mut Netlink, family: u16) -> Result<Option<Capture>, ReadError> {
    let services = list(netlink, &Question::VirtualServers { family })?;
    let mut servers = Vec::with_capacity(services.len());
    for service in services {
        let Some(key) = decode::key(&service) else {
            // What cannot be named cannot be asked about: the decoder says that it is not understood.
            servers.push(Server {
                service,
                destinations: Vec::new(),
            });
            continue;
        };
        let question = Question::RealServers {
            family,
            service: &key,
        };
        let destinations = match agreed(netlink, &question) {
            Ok(Some(destinations)) => destinations,
            Ok(None) => return Ok(None),
            // The service went away since it was listed (`ESRCH`, `ENOENT`).
            Err(NetlinkError::Gone | NetlinkError::System { errno: 3, .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        servers.push(Server {
            service,
            destinations,
        });
    }
    let again = list(netlink, &Question::VirtualServers { family })?;
    let first = servers.iter().map(|s| &s.service[..]);
    Ok(decode::same_services(first, again.iter().map(|s| &s[..])).then_some(Capture { servers }))
}

/// Real servers of one moment. `None`: two readings did not agree.
fn agreed(
    netlink: &mut Netlink,
    question: &Question<'_>,
) -> Result<Option<Vec<Vec<u8>>>, NetlinkError> {
    let first = list(netlink, question)?;
    if first.len() <= ONE_DATAGRAM {
        return Ok(Some(first));
    }
    let second = list(netlink, question)?;
    Ok(decode::same_destinations(&first, &second).then_some(second))
}

fn list(netlink: &mut Netlink, question: &Question<'_>) -> Result<Vec<Vec<u8>>, NetlinkError> {
    let mut all = Vec::new();
    netlink.ask(question, |message| {
        all.push(message.to_vec());
        true
    })?;
    Ok(all)
}
