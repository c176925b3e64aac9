//! Sets of ipset, over nfnetlink (linux/netfilter/ipset/ip_set.h).
//!
//! Ask only where a rule refers to a set: asking a kernel that has no sets could load the module.
//! There is no generation number. A set tells how many elements it has with its header, so what came or
//! went while it was listed shows as another number; such a set is read again, and marked as not read
//! when it never agrees.

use super::netlink::{Family, Netlink, NetlinkError, Question};
use crate::ipvs::capture::SetCapture;
use crate::ipvs::ipset;

/// Attempts to read a set that changes meanwhile.
const TRIES: u32 = 5;

/// Reads the headers of all sets of this thread's network namespace, and the elements of those that
/// `wanted` says yes to by name.
///
/// # Errors
/// [`NetlinkError::Permission`], and whatever else the kernel answers.
pub fn read(wanted: impl Fn(&str) -> bool) -> Result<Vec<SetCapture>, NetlinkError> {
    let mut netlink = Netlink::open(Family::Netfilter)?;
    let mut headers: Vec<Vec<u8>> = Vec::new();
    netlink.ask(&Question::IpsetHeaders, |message| {
        headers.push(message.to_vec());
        true
    })?;
    let mut all = Vec::with_capacity(headers.len());
    for header in headers {
        let Some(name) = ipset::name(&header).filter(|name| wanted(name)) else {
            all.push(SetCapture {
                messages: vec![header],
                listed: false,
            });
            continue;
        };
        let mut messages = Vec::new();
        for _ in 0..TRIES {
            messages.clear();
            let question = Question::Ipset {
                name: name.as_bytes(),
            };
            let asked = netlink.ask(&question, |message| {
                messages.push(message.to_vec());
                true
            });
            match asked {
                Ok(()) => {}
                // Destroyed since it was listed: no rule refers to it then.
                Err(NetlinkError::Gone) => break,
                Err(NetlinkError::Interrupted) => continue,
                Err(error) => return Err(error),
            }
            if ipset::is_whole(&messages) {
                break;
            }
        }
        if !messages.is_empty() {
            all.push(SetCapture {
                messages,
                listed: true,
            });
        }
    }
    Ok(all)
}
