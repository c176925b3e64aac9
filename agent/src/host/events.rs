//! What the kernel tells about changes of nf_tables, and of links and their addresses, as they happen.
//! It says *that* something is another now; what it is, is read.

use super::netlink::{Family, NetlinkError, bound, last_errno, system};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

/// `NFNLGRP_NFTABLES` (linux/netfilter/nfnetlink.h), group 7.
const NF_TABLES: u32 = 1 << 6;
/// `RTMGRP_LINK`, `RTMGRP_IPV4_IFADDR`, `RTMGRP_IPV6_IFADDR` (linux/rtnetlink.h).
const ADDRESSES: u32 = 0x1 | 0x10 | 0x100;
const HEADER: usize = 16;
/// One event message is a page or so; the kernel joins those of one transaction.
const BUFFER: usize = 64 * 1024;
/// Limit of what may wait to be heard, in the kernel's reckoning (about twice the messages). A change
/// of one Service among 5,000 makes kube-proxy's iptables mode write 8 MB anew.
const WAITING: libc::c_int = 32 << 20;

/// A socket that hears the changes of this thread's network namespace.
#[derive(Debug)]
pub struct Events {
    socket: OwnedFd,
    buffer: Vec<u8>,
}

/// How a round of hearing ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Everything that was there.
    All,
    /// Some were lost: there were more than the socket holds (`ENOBUFS`), or a message was broken.
    Lost,
}

impl Events {
    /// Begins to hear of nf_tables. Needs CAP_NET_ADMIN.
    ///
    /// # Errors
    /// As [`super::netlink::Netlink::open`].
    pub fn open() -> Result<Events, NetlinkError> {
        Events::of(Family::Netfilter, NF_TABLES)
    }

    /// Begins to hear of links and addresses. Needs no right.
    ///
    /// # Errors
    /// As [`super::netlink::Netlink::open`].
    pub fn of_addresses() -> Result<Events, NetlinkError> {
        Events::of(Family::Route, ADDRESSES)
    }

    fn of(family: Family, groups: u32) -> Result<Events, NetlinkError> {
        let (socket, _) = bound(family, groups)?;
        // SAFETY: the value is a live c_int of the length given. Where it is refused, events are
        // lost sooner, which is noticed.
        unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_RCVBUFFORCE,
                std::ptr::from_ref(&WAITING).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            );
        }
        Ok(Events {
            socket,
            buffer: vec![0; BUFFER],
        })
    }

    /// Gives everything that waits to `each`: the message's type and the message without its netlink
    /// header. Does not wait.
    ///
    /// # Errors
    /// Those of `recv(2)`.
    pub fn hear(&mut self, mut each: impl FnMut(u16, &[u8])) -> Result<Heard, NetlinkError> {
        let mut heard = Heard::All;
        loop {
            // SAFETY: pointer and length are those of a live buffer; with MSG_TRUNC the result is
            // the datagram's true length, which is compared with the buffer's below.
            let n = unsafe {
                libc::recv(
                    self.socket.as_raw_fd(),
                    self.buffer.as_mut_ptr().cast(),
                    self.buffer.len(),
                    libc::MSG_TRUNC | libc::MSG_DONTWAIT,
                )
            };
            if n < 0 {
                match last_errno() {
                    libc::EINTR => continue,
                    libc::EAGAIN => return Ok(heard),
                    libc::ENOBUFS => {
                        heard = Heard::Lost;
                        continue;
                    }
                    errno => return Err(system("recv", errno)),
                }
            }
            let datagram = self.buffer.get(..n.unsigned_abs());
            if !datagram.is_some_and(|d| messages(d, &mut each)) {
                heard = Heard::Lost;
            }
        }
    }

    /// Waits until something can be heard; false when `longest` has passed without.
    pub fn wait(&self, longest: Duration) -> bool {
        let mut poll = libc::pollfd {
            fd: self.socket.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let ms = i32::try_from(longest.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: one live pollfd. An interrupted wait, or one that fails, is for `hear` to find out.
        unsafe { libc::poll(&raw mut poll, 1, ms) != 0 }
    }
}

/// The messages of one datagram; false if one does not fit.
fn messages(datagram: &[u8], each: &mut impl FnMut(u16, &[u8])) -> bool {
    let mut rest = datagram;
    while rest.len() >= HEADER {
        let size = u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
        let kind = u16::from_ne_bytes([rest[4], rest[5]]);
        let Some(message) = rest.get(HEADER..size) else {
            return false;
        };
        each(kind, message);
        let next = size.saturating_add(3) & !3;
        rest = rest.get(next..).unwrap_or_default();
    }
    rest.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(size: u32, kind: u16, body: &[u8]) -> Vec<u8> {
        let mut out = size.to_ne_bytes().to_vec();
        out.extend(kind.to_ne_bytes());
        out.extend([0; 10]);
        out.extend(body);
        out
    }

    #[test]
    fn a_broken_datagram_is_something_lost() {
        let mut got = Vec::new();
        let mut all = message(20, 10 << 8 | 6, &[2, 0, 0, 1]);
        all.extend(message(20, 1 << 8 | 6, &[9, 9, 9, 9]));
        assert!(messages(&all, &mut |kind, body: &[u8]| got
            .push((kind, body.to_vec()))));
        let expected = [(10 << 8 | 6, vec![2, 0, 0, 1]), (1 << 8 | 6, vec![9; 4])];
        assert_eq!(got, expected);
        for broken in [
            message(21, 10 << 8, &[0; 4]),
            message(15, 10 << 8, &[0; 4]),
            message(0, 10 << 8, &[0; 4]),
            all[..30].to_vec(),
        ] {
            assert!(!messages(&broken, &mut |_, _: &[u8]| {}), "{broken:?}");
        }
    }
}
