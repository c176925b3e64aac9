//! The only door to the kernel's netlink: dumps and one-answer requests, read only.
//!
//! Plain blocking sockets: the kernel does the work of a dump inside `recv`, so nothing here ever
//! waits for an event. Use it on a thread of its own.

use crate::netfilter::nftables::attributes::{Attributes, align4, text};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

// linux/netlink.h
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSG_NOOP: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSG_OVERRUN: u16 = 4;
const NLMSGERR_ATTR_MSG: u16 = 1;
const HEADER: usize = 16;
/// The attribute `IPSET_ATTR_PROTOCOL` with `IPSET_PROTOCOL`.
const IPSET_PROTOCOL: [u8; 8] = {
    let (length, kind) = (5u16.to_ne_bytes(), 1u16.to_ne_bytes());
    [length[0], length[1], kind[0], kind[1], 7, 0, 0, 0]
};
/// A dump's datagram never exceeds 32 KiB, whatever the buffer (`netlink_recvmsg`).
const BUFFER: usize = 64 * 1024;

/// What can be asked. There is no variant that writes.
#[derive(Clone, Debug)]
pub enum Question<'a> {
    /// `NFT_MSG_GETGEN`: one answer.
    Generation,
    /// `NFT_MSG_GETTABLE`, all families.
    Tables,
    /// `NFT_MSG_GETCHAIN`, all families.
    Chains,
    /// `NFT_MSG_GETSET`, all families.
    Sets,
    /// `NFT_MSG_GETCHAIN` of one chain: one answer.
    Chain {
        /// `nfgen_family`.
        family: u8,
        /// Table's name.
        table: &'a [u8],
        /// Chain's name.
        chain: &'a [u8],
    },
    /// `NFT_MSG_GETSET` of one set: one answer.
    Set {
        /// `nfgen_family`.
        family: u8,
        /// Table's name.
        table: &'a [u8],
        /// Set's name.
        set: &'a [u8],
    },
    /// `NFT_MSG_GETRULE` of one table, or of one chain of it.
    Rules {
        /// `nfgen_family`.
        family: u8,
        /// Table's name.
        table: &'a [u8],
        /// Chain's name.
        chain: Option<&'a [u8]>,
    },
    /// `NFT_MSG_GETSETELEM` of one set.
    Elements {
        /// `nfgen_family`.
        family: u8,
        /// Table's name.
        table: &'a [u8],
        /// Set's name.
        set: &'a [u8],
    },
    /// `RTM_GETLINK`.
    Links,
    /// `RTM_GETADDR`, both families.
    Addresses,
    /// `IPCTNL_MSG_CT_GET_STATS_CPU`: one answer for each possible CPU.
    ConntrackCpus,
    /// `IPCTNL_MSG_CT_GET_STATS`: one answer.
    ConntrackTable,
    /// `IPCTNL_MSG_CT_GET`: entries of both families whose destination was translated; all of them on
    /// kernels that do not filter by status.
    ConntrackTranslated,
    /// `CTRL_CMD_GETFAMILY` of generic netlink: one answer.
    GenericFamily {
        /// The family's name.
        name: &'a [u8],
    },
    /// `IPVS_CMD_GET_SERVICE`.
    VirtualServers {
        /// The number of IPVS's generic netlink family.
        family: u16,
    },
    /// `IPVS_CMD_GET_DEST` of one virtual server.
    RealServers {
        /// The number of IPVS's generic netlink family.
        family: u16,
        /// The attributes that name the virtual server, as the kernel gave them.
        service: &'a [u8],
    },
    /// `IPSET_CMD_LIST` of all sets, without their elements.
    IpsetHeaders,
    /// `IPSET_CMD_LIST` of one set.
    Ipset {
        /// The set's name.
        name: &'a [u8],
    },
}

impl Question<'_> {
    fn message(&self) -> (u16, u16, Vec<u8>) {
        // linux/netfilter/nf_tables.h, NFNL_SUBSYS_NFTABLES = 10
        const NFT: u16 = 10 << 8;
        const CT: u16 = 1 << 8;
        let nfgen = |family: u8| vec![family, 0, 0, 0];
        match self {
            Question::Generation => (NFT | 16, 0, nfgen(0)),
            Question::Tables => (NFT | 1, NLM_F_DUMP, nfgen(0)),
            Question::Chains => (NFT | 4, NLM_F_DUMP, nfgen(0)),
            Question::Sets => (NFT | 10, NLM_F_DUMP, nfgen(0)),
            Question::Chain {
                family,
                table,
                chain,
            } => {
                let mut body = nfgen(*family);
                put(&mut body, 1, table);
                put(&mut body, 3, chain);
                (NFT | 4, 0, body)
            }
            Question::Set { family, table, set } => {
                let mut body = nfgen(*family);
                put(&mut body, 1, table);
                put(&mut body, 2, set);
                (NFT | 10, 0, body)
            }
            Question::Rules {
                family,
                table,
                chain,
            } => {
                let mut body = nfgen(*family);
                put(&mut body, 1, table);
                if let Some(chain) = chain {
                    put(&mut body, 2, chain);
                }
                (NFT | 7, NLM_F_DUMP, body)
            }
            Question::Elements { family, table, set } => {
                let mut body = nfgen(*family);
                put(&mut body, 1, table);
                put(&mut body, 2, set);
                (NFT | 13, NLM_F_DUMP, body)
            }
            // linux/rtnetlink.h: struct ifinfomsg, struct ifaddrmsg, all zero
            Question::Links => (18, NLM_F_DUMP, vec![0; 16]),
            Question::Addresses => (22, NLM_F_DUMP, vec![0; 8]),
            // linux/netfilter/nfnetlink_conntrack.h, NFNL_SUBSYS_CTNETLINK = 1
            Question::ConntrackCpus => (CT | 4, NLM_F_DUMP, nfgen(0)),
            Question::ConntrackTable => (CT | 5, 0, nfgen(0)),
            Question::ConntrackTranslated => {
                // CTA_STATUS, CTA_STATUS_MASK
                let mut body = nfgen(0);
                for kind in [3u16, 26] {
                    body.extend_from_slice(&8u16.to_ne_bytes());
                    body.extend_from_slice(&kind.to_ne_bytes());
                    body.extend_from_slice(&super::flows::DST_NAT.to_be_bytes());
                }
                (CT | 1, NLM_F_DUMP, body)
            }
            // linux/genetlink.h: GENL_ID_CTRL, struct genlmsghdr (command, version);
            // CTRL_ATTR_FAMILY_NAME
            Question::GenericFamily { name } => {
                let mut body = vec![3, 1, 0, 0];
                put(&mut body, 2, name);
                (16, 0, body)
            }
            // linux/ip_vs.h: IPVS_GENL_VERSION 1
            Question::VirtualServers { family } => (*family, NLM_F_DUMP, vec![4, 1, 0, 0]),
            Question::RealServers { family, service } => {
                let mut body = vec![8, 1, 0, 0];
                let length = u16::try_from(4 + service.len()).unwrap_or(u16::MAX);
                body.extend_from_slice(&length.to_ne_bytes());
                // IPVS_CMD_ATTR_SERVICE, NLA_F_NESTED
                body.extend_from_slice(&(1u16 | 0x8000).to_ne_bytes());
                body.extend_from_slice(service);
                body.resize(align4(body.len()), 0);
                (*family, NLM_F_DUMP, body)
            }
            // NFNL_SUBSYS_IPSET = 6, IPSET_CMD_LIST = 7; IPSET_ATTR_PROTOCOL = 7 gives the sets'
            // numbers, by which rules name them
            Question::IpsetHeaders => {
                let mut body = nfgen(2);
                body.extend_from_slice(&IPSET_PROTOCOL);
                // IPSET_ATTR_FLAGS, IPSET_FLAG_LIST_HEADER, in network order
                body.extend_from_slice(&8u16.to_ne_bytes());
                body.extend_from_slice(&(6u16 | 0x4000).to_ne_bytes());
                body.extend_from_slice(&4u32.to_be_bytes());
                ((6 << 8) | 7, NLM_F_DUMP, body)
            }
            Question::Ipset { name } => {
                let mut body = nfgen(2);
                body.extend_from_slice(&IPSET_PROTOCOL);
                put(&mut body, 2, name);
                ((6 << 8) | 7, NLM_F_DUMP, body)
            }
        }
    }
}

/// One attribute holding a C string.
fn put(out: &mut Vec<u8>, kind: u16, name: &[u8]) {
    let length = u16::try_from(4 + name.len() + 1).unwrap_or(u16::MAX);
    out.extend_from_slice(&length.to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(name);
    out.push(0);
    out.resize(align4(out.len()), 0);
}

/// Why the kernel did not answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetlinkError {
    /// `EPERM`, `EACCES`.
    #[error("no permission: needs CAP_NET_ADMIN")]
    Permission,
    /// The kernel has no such netlink family or subsystem.
    #[error("the kernel does not have it")]
    Absent,
    /// `ENOENT`: the named object is not there (any more).
    #[error("the object asked for is gone")]
    Gone,
    /// What was dumped changed meanwhile (`NLM_F_DUMP_INTR`, `EINTR` in the message, or the caller
    /// stopped it).
    #[error("the dump was interrupted by a change")]
    Interrupted,
    /// Any other error of the system.
    #[error("{doing}: {} (errno {errno}){}{extended}", io::Error::from_raw_os_error(*errno), if extended.is_empty() { "" } else { ": " })]
    System {
        /// The call or the request.
        doing: &'static str,
        /// From errno.h.
        errno: i32,
        /// `NLMSGERR_ATTR_MSG`, the kernel's own words; may be empty.
        extended: String,
    },
    /// The answer does not follow the protocol.
    #[error("answer not understood: {0}")]
    Protocol(&'static str),
}

/// Which netlink family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `NETLINK_NETFILTER`.
    Netfilter,
    /// `NETLINK_ROUTE`.
    Route,
    /// `NETLINK_GENERIC`.
    Generic,
}

/// A blocking netlink socket that asks and listens to the answers.
#[derive(Debug)]
pub struct Netlink {
    family: Family,
    socket: OwnedFd,
    port: u32,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    /// Opens a socket in this thread's network namespace.
    pub fn open(family: Family) -> Result<Netlink, NetlinkError> {
        let (socket, port) = socket(family)?;
        Ok(Netlink {
            family,
            socket,
            port,
            sequence: 0,
            buffer: vec![0; BUFFER],
        })
    }

    /// Asks, and gives each answer (type's low byte is not passed: there is one type for each
    /// question) without its netlink header to `each`, until the kernel says it is done. When
    /// `each` returns false the rest is thrown away and the result is `Interrupted`.
    pub fn ask(
        &mut self,
        question: &Question<'_>,
        mut each: impl FnMut(&[u8]) -> bool,
    ) -> Result<(), NetlinkError> {
        let result = self.exchange(question, &mut each);
        if result.is_err() {
            // Answers of the old question may still be queued: a fresh socket has none.
            (self.socket, self.port) = socket(self.family)?;
        }
        result
    }

    fn exchange(
        &mut self,
        question: &Question<'_>,
        each: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Result<(), NetlinkError> {
        let (kind, flags, body) = question.message();
        let dump = flags & NLM_F_DUMP == NLM_F_DUMP;
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = Vec::with_capacity(HEADER + body.len());
        message.extend_from_slice(&((HEADER + body.len()) as u32).to_ne_bytes());
        message.extend_from_slice(&kind.to_ne_bytes());
        message.extend_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        message.extend_from_slice(&self.sequence.to_ne_bytes());
        message.extend_from_slice(&0u32.to_ne_bytes());
        message.extend_from_slice(&body);
        self.send(&message)?;
        let mut interrupted = false;
        loop {
            let length = self.receive()?;
            let datagram = self.buffer.get(..length).unwrap_or_default();
            let mut at = 0;
            while at + HEADER <= datagram.len() {
                let word = |i: usize| {
                    let mut b = [0; 4];
                    b.copy_from_slice(&datagram[at + i..at + i + 4]);
                    u32::from_ne_bytes(b)
                };
                let size = word(0) as usize;
                let kind_flags = word(4).to_ne_bytes();
                let kind = u16::from_ne_bytes([kind_flags[0], kind_flags[1]]);
                let flags = u16::from_ne_bytes([kind_flags[2], kind_flags[3]]);
                if size < HEADER || at + size > datagram.len() {
                    return Err(NetlinkError::Protocol("message longer than its datagram"));
                }
                if word(8) != self.sequence || word(12) != self.port {
                    return Err(NetlinkError::Protocol("answer to another question"));
                }
                let payload = &datagram[at + HEADER..at + size];
                interrupted |= flags & NLM_F_DUMP_INTR != 0;
                match kind {
                    NLMSG_NOOP => {}
                    NLMSG_OVERRUN => return Err(NetlinkError::Protocol("overrun")),
                    NLMSG_ERROR | NLMSG_DONE => {
                        // DONE may carry an error code, too.
                        let code = payload
                            .first_chunk::<4>()
                            .map_or(0, |b| i32::from_ne_bytes(*b));
                        if code < 0 {
                            return Err(error(-code, kind, flags, payload));
                        }
                        return if interrupted {
                            Err(NetlinkError::Interrupted)
                        } else {
                            Ok(())
                        };
                    }
                    _ => {
                        if !each(payload) {
                            return Err(NetlinkError::Interrupted);
                        }
                    }
                }
                at += align4(size);
            }
            if !dump {
                return Ok(());
            }
        }
    }

    fn send(&self, message: &[u8]) -> Result<(), NetlinkError> {
        loop {
            // SAFETY: the pointer and length are those of a live slice.
            let n = unsafe {
                libc::send(
                    self.socket.as_raw_fd(),
                    message.as_ptr().cast(),
                    message.len(),
                    0,
                )
            };
            if n >= 0 {
                return Ok(());
            }
            let errno = last_errno();
            if errno != libc::EINTR {
                return Err(system("send", errno));
            }
        }
    }

    fn receive(&mut self) -> Result<usize, NetlinkError> {
        loop {
            // SAFETY: the pointer and length are those of a live buffer. With MSG_TRUNC the result
            // is the datagram's true length, which is compared with the buffer's below.
            let n = unsafe {
                libc::recv(
                    self.socket.as_raw_fd(),
                    self.buffer.as_mut_ptr().cast(),
                    self.buffer.len(),
                    libc::MSG_TRUNC,
                )
            };
            if n < 0 {
                let errno = last_errno();
                if errno == libc::EINTR {
                    continue;
                }
                return Err(system("recv", errno));
            }
            let n = n.unsigned_abs();
            if n > self.buffer.len() {
                return Err(NetlinkError::Protocol("datagram longer than 64 KiB"));
            }
            if n == 0 {
                return Err(NetlinkError::Protocol("empty datagram"));
            }
            return Ok(n);
        }
    }
}

pub(super) fn last_errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

pub(super) fn system(doing: &'static str, errno: i32) -> NetlinkError {
    match errno {
        libc::EPERM | libc::EACCES => NetlinkError::Permission,
        libc::EAFNOSUPPORT | libc::EPROTONOSUPPORT => NetlinkError::Absent,
        libc::ENOENT => NetlinkError::Gone,
        _ => NetlinkError::System {
            doing,
            errno,
            extended: String::new(),
        },
    }
}

/// `struct nlmsgerr`: the code, the request's header (and the request unless capped), attributes.
fn error(errno: i32, kind: u16, flags: u16, payload: &[u8]) -> NetlinkError {
    let mut extended = String::new();
    if flags & NLM_F_ACK_TLVS != 0 {
        let skip = if kind == NLMSG_DONE {
            4
        } else if flags & NLM_F_CAPPED != 0 {
            4 + HEADER
        } else {
            let request = payload
                .get(4..8)
                .and_then(|b| b.first_chunk::<4>())
                .map_or(HEADER, |b| u32::from_ne_bytes(*b) as usize);
            4 + align4(request.min(BUFFER))
        };
        for (kind, value) in Attributes::new(payload.get(skip..).unwrap_or_default()) {
            if kind == NLMSGERR_ATTR_MSG {
                extended = text(value).into_owned();
            }
        }
    }
    match errno {
        libc::EINTR | libc::EAGAIN => NetlinkError::Interrupted,
        _ => match system("request", errno) {
            NetlinkError::System { doing, errno, .. } => NetlinkError::System {
                doing,
                errno,
                extended,
            },
            other => other,
        },
    }
}

fn socket(family: Family) -> Result<(OwnedFd, u32), NetlinkError> {
    bound(family, 0)
}

/// A socket that hears the multicast groups of the mask, the first group in the lowest bit.
pub(super) fn bound(family: Family, groups: u32) -> Result<(OwnedFd, u32), NetlinkError> {
    let protocol = match family {
        Family::Netfilter => libc::NETLINK_NETFILTER,
        Family::Route => libc::NETLINK_ROUTE,
        Family::Generic => libc::NETLINK_GENERIC,
    };
    // SAFETY: a plain system call.
    let fd = unsafe {
        libc::socket(
            libc::AF_NETLINK,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC,
            protocol,
        )
    };
    if fd < 0 {
        return Err(system("socket", last_errno()));
    }
    // SAFETY: the descriptor was just opened and has no other owner.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let on: libc::c_int = 1;
    let mut options = vec![libc::NETLINK_EXT_ACK];
    if family == Family::Route {
        options.push(libc::NETLINK_GET_STRICT_CHK);
    }
    for option in options {
        // SAFETY: the value is a live c_int of the length given. Older kernels refuse the option;
        // the answers are then only less talkative.
        unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_NETLINK,
                option,
                std::ptr::from_ref(&on).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            );
        }
    }
    // SAFETY: all-zero is a valid sockaddr_nl.
    let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
    address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
    address.nl_groups = groups;
    let mut length = size_of::<libc::sockaddr_nl>() as libc::socklen_t;
    // SAFETY: address and length describe a live sockaddr_nl.
    let bound = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            std::ptr::from_ref(&address).cast(),
            length,
        ) == 0
            && libc::getsockname(
                socket.as_raw_fd(),
                std::ptr::from_mut(&mut address).cast(),
                &mut length,
            ) == 0
    };
    if !bound {
        return Err(system("bind", last_errno()));
    }
    Ok((socket, address.nl_pid))
}
