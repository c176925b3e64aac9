//! Tables of iptables-legacy (x_tables), read by `getsockopt`.
//!
//! Asking for a table makes the kernel create it, hooks included. So the names of those that exist
//! come first, from `/proc`, and only they are asked for.

use crate::netfilter::ruleset::TableFamily;
use crate::netfilter::xtables::legacy::capture::{INFO, TableCapture};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// `IPT_SO_GET_INFO`, `IP6T_SO_GET_INFO` (linux/netfilter_ipv4/ip_tables.h).
const GET_INFO: libc::c_int = 64;
/// `IPT_SO_GET_ENTRIES`, `IP6T_SO_GET_ENTRIES`.
const GET_ENTRIES: libc::c_int = 65;
/// `XT_TABLE_MAXNAMELEN`, with the NUL.
const NAME: usize = 32;
/// `struct ipt_get_entries` before its entries: name, size, padding to 8.
const HEADER: usize = 40;
/// Where `struct ipt_getinfo` has the size of the entries.
const SIZE_AT: usize = 80;
/// Attempts to read one table without a change of its size in between.
const TRIES: u32 = 5;
/// No more than this is believed to be a table, bytes: 5,000 Services of ten endpoints are 97 MB.
const LARGEST: usize = 1 << 30;

/// Why there is no reading.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The kernel has no iptables-legacy, for neither family, or its modules are not loaded.
    #[error("the kernel has no iptables-legacy")]
    Absent,
    /// Refused: the list of tables or their content.
    #[error("reading tables of iptables-legacy needs CAP_NET_ADMIN and user 0: {what}")]
    Permission {
        /// What was refused.
        what: String,
    },
    /// A table's size changed between the question for its size and that for its content, each time.
    #[error("torn: {table} of iptables-legacy changed during each of {tries} readings")]
    Torn {
        /// `ip nat`, `ip6 filter`.
        table: String,
        /// Attempts made.
        tries: u32,
    },
    /// Anything else.
    #[error("iptables-legacy: {what}: {} (errno {errno})", io::Error::from_raw_os_error(*errno))]
    Failed {
        /// What was asked.
        what: String,
        /// From errno.h.
        errno: i32,
    },
}

/// A table's name, and which packets it sees.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TableName {
    /// [`TableFamily::Ip`] or [`TableFamily::Ip6`].
    pub family: TableFamily,
    /// `nat`, `filter`, `mangle`, `raw`, `security`.
    pub name: String,
}

impl TableName {
    fn text(&self) -> String {
        format!("{} {}", self.family.word(), self.name)
    }
}

/// The tables that exist in this thread's network namespace, sorted. Creates none.
///
/// # Errors
/// [`ReadError::Absent`] where neither family's list is there: that is not an empty list.
pub fn names() -> Result<Vec<TableName>, ReadError> {
    let mut lists = 0;
    let mut found = Vec::new();
    for (family, path) in [
        (TableFamily::Ip, "/proc/thread-self/net/ip_tables_names"),
        (TableFamily::Ip6, "/proc/thread-self/net/ip6_tables_names"),
    ] {
        match std::fs::read_to_string(path) {
            Ok(text) => {
                lists += 1;
                found.extend(text.lines().map(|name| TableName {
                    family,
                    name: name.to_owned(),
                }));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Err(ReadError::Permission { what: path.into() });
            }
            Err(error) => {
                return Err(ReadError::Failed {
                    what: path.into(),
                    errno: error.raw_os_error().unwrap_or(0),
                });
            }
        }
    }
    if lists == 0 {
        return Err(ReadError::Absent);
    }
    found.sort();
    found.dedup();
    Ok(found)
}

/// Reads each of the tables whole and hands it over; its buffer (up to 100 MB in one piece) is
/// released before the next one is read. Blocks while the kernel copies, under the table's lock.
///
/// Each table is of one moment; two tables need not be of the same one, and are not written at the
/// same moment either: `iptables-legacy-restore` commits table by table. A table that the kernel
/// does not have any more is left out.
///
/// # Errors
/// As [`ReadError`] says. Tables that were handed over before are of no use then.
pub fn read(names: &[TableName], mut each: impl FnMut(TableCapture)) -> Result<(), ReadError> {
    for table in names {
        if let Some(capture) = read_table(table)? {
            each(capture);
        }
    }
    Ok(())
}

fn read_table(table: &TableName) -> Result<Option<TableCapture>, ReadError> {
    let (domain, level) = match table.family {
        TableFamily::Ip => (libc::AF_INET, libc::SOL_IP),
        _ => (libc::AF_INET6, libc::SOL_IPV6),
    };
    if table.name.len() >= NAME {
        return Err(failed(table, "a name that long", libc::ENAMETOOLONG));
    }
    // Any socket of the family will do; a raw one would need another capability.
    // SAFETY: plain system call without pointers.
    let fd = unsafe { libc::socket(domain, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return match errno() {
            libc::EAFNOSUPPORT => Ok(None),
            other => Err(failed(table, "socket", other)),
        };
    }
    // SAFETY: the descriptor was just opened and belongs to nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    for attempt in 1..=TRIES {
        let mut info = vec![0u8; INFO];
        info[..table.name.len()].copy_from_slice(table.name.as_bytes());
        match get(&socket, level, GET_INFO, &mut info) {
            Ok(length) if length == INFO => {}
            Ok(_) => return Err(failed(table, "IPT_SO_GET_INFO of another length", 0)),
            Err(libc::ENOENT | libc::ENOPROTOOPT) => return Ok(None),
            Err(number) => return Err(refused(table, "IPT_SO_GET_INFO", number)),
        }
        let size = &info[SIZE_AT..SIZE_AT + 4];
        let size = size.first_chunk().map_or(0, |b| u32::from_ne_bytes(*b)) as usize;
        if size > LARGEST {
            return Err(failed(table, "a table of more than 1 GiB", libc::EFBIG));
        }
        // Zeroed memory of this size is fresh from the system, and goes back to it when dropped.
        let mut entries = vec![0u8; HEADER + size];
        entries[..table.name.len()].copy_from_slice(table.name.as_bytes());
        entries[NAME..NAME + 4].copy_from_slice(&info[SIZE_AT..SIZE_AT + 4]);
        match get(&socket, level, GET_ENTRIES, &mut entries) {
            Ok(length) if length == entries.len() => {
                return Ok(Some(TableCapture::new(
                    table.family,
                    table.name.clone(),
                    info,
                    entries,
                    HEADER,
                )));
            }
            Ok(_) => return Err(failed(table, "IPT_SO_GET_ENTRIES of another length", 0)),
            Err(libc::EAGAIN) => {
                std::thread::sleep(Duration::from_millis(u64::from(attempt) * 20));
            }
            Err(libc::ENOENT | libc::ENOPROTOOPT) => return Ok(None),
            Err(number) => return Err(refused(table, "IPT_SO_GET_ENTRIES", number)),
        }
    }
    Err(ReadError::Torn {
        table: table.text(),
        tries: TRIES,
    })
}

/// One question; gives the length of the answer.
fn get(
    socket: &OwnedFd,
    level: libc::c_int,
    option: libc::c_int,
    buffer: &mut [u8],
) -> Result<usize, i32> {
    let Ok(mut length) = libc::socklen_t::try_from(buffer.len()) else {
        return Err(libc::EFBIG);
    };
    // SAFETY: the kernel writes at most `length` bytes into the buffer, and the length it wrote.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            option,
            buffer.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(length as usize)
    } else {
        Err(errno())
    }
}

fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

fn refused(table: &TableName, what: &str, errno: i32) -> ReadError {
    match errno {
        libc::EPERM | libc::EACCES => ReadError::Permission { what: table.text() },
        _ => failed(table, what, errno),
    }
}

fn failed(table: &TableName, what: &str, errno: i32) -> ReadError {
    ReadError::Failed {
        what: format!("{}: {what}", table.text()),
        errno,
    }
}
