//! Statistics of connection tracking: counters and entries over ctnetlink, sizes and timeouts from
//! sysctls. Entries themselves are read in [`super::flows`].
//!
//! All of it is of this thread's network namespace, but for the hash table's size; see
//! [`model::conntrack`] for what belongs to whom.

use super::netlink::{Family, Netlink, NetlinkError, Question};
use super::nf_tables::Answers;
use crate::netfilter::nftables::attributes::Attributes;
use model::conntrack::{Counter, Counters, CpuCounters, Sample, Timeout};
use std::collections::BTreeMap;
use std::io;

/// Sysctls of the namespace that the reading thread is in (`net_ctl_header_lookup`, net/sysctl_net.c).
const SYSCTLS: &str = "/proc/sys/net/netfilter/nf_conntrack_";
/// CPUs that a kernel can have at most (`NR_CPUS_RANGE_END` of x86 and arm64 is 8,192).
const CPUS: usize = 8_192;
/// `struct nfgenmsg` (linux/netfilter/nfnetlink.h): family, version, and the CPU in network order.
const HEADER: usize = 4;
/// `CTA_STATS_GLOBAL_ENTRIES`, `CTA_STATS_GLOBAL_MAX_ENTRIES` (linux/netfilter/nfnetlink_conntrack.h).
const ENTRIES: u16 = 1;
const MAX_ENTRIES: u16 = 2;

/// Why there is no reading.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The kernel has no connection tracking (the module is not loaded).
    #[error("the kernel has no connection tracking")]
    Absent,
    /// Refused.
    #[error("reading statistics of connection tracking needs CAP_NET_ADMIN")]
    Permission,
    /// It has connection tracking, and no `nf_conntrack_netlink` to ask about it.
    #[error("the kernel has connection tracking, but not its netlink (nf_conntrack_netlink)")]
    NoNetlink,
    /// Anything else.
    #[error("conntrack: {0}")]
    Failed(NetlinkError),
}

/// Keeps a socket open.
#[derive(Debug, Default)]
pub struct Reader {
    netlink: Option<Netlink>,
}

impl Reader {
    /// Reads the statistics of this thread's network namespace. Needs CAP_NET_ADMIN.
    ///
    /// Where the kernel has no sysctl of connection tracking it is not asked at all: a question to
    /// ctnetlink would have it load the module.
    ///
    /// # Errors
    /// [`ReadError`]; an answer that is not whole is one, and never a reading with gaps.
    pub fn read(&mut self) -> Result<Sample, ReadError> {
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
        let mut sample = statistics(netlink, || sysctl("max"))?;
        sample.buckets = sysctl("buckets");
        sample.timeouts = Timeout::ALL
            .into_iter()
            .filter_map(|t| Some((t, sysctl(t.word())?)))
            .collect();
        Ok(sample)
    }
}

/// Has the kernel no connection tracking?
pub(super) fn absent() -> bool {
    let found = std::fs::metadata(format!("{SYSCTLS}max"));
    found.is_err_and(|e| e.kind() == io::ErrorKind::NotFound)
}

/// What a sysctl says; `None` where it is not there, cannot be read or is no number.
fn sysctl(name: &str) -> Option<u32> {
    let text = std::fs::read_to_string(format!("{SYSCTLS}{name}")).ok()?;
    text.trim().parse().ok()
}

pub(super) fn refused(error: NetlinkError) -> ReadError {
    match error {
        NetlinkError::Permission => ReadError::Permission,
        NetlinkError::Absent => ReadError::NoNetlink,
        // No such subsystem (`nfnetlink_rcv_msg`, net/netfilter/nfnetlink.c).
        NetlinkError::System { errno, .. } if errno == libc::EINVAL => ReadError::NoNetlink,
        other => ReadError::Failed(other),
    }
}

/// Entries, limit and counters, from whatever answers. `limit`: another source for the limit, which
/// older kernels do not tell.
///
/// # Errors
/// As [`Reader::read`].
pub fn statistics(
    answers: &mut dyn Answers,
    limit: impl FnOnce() -> Option<u32>,
) -> Result<Sample, ReadError> {
    let broken = |what| ReadError::Failed(NetlinkError::Protocol(what));
    let mut tables = Vec::new();
    answers
        .ask(&Question::ConntrackTable, &mut |message| {
            tables.push(table(message));
            true
        })
        .map_err(refused)?;
    let [told] = tables[..] else {
        return Err(broken("not one answer about conntrack's table"));
    };
    let (entries, max) = told.ok_or(broken("conntrack's table without its entries"))?;
    let limit = max
        .or_else(limit)
        .ok_or(broken("conntrack's limit is not told"))?;
    let mut cpus: BTreeMap<u16, Option<Counters<u32>>> = BTreeMap::new();
    let mut twice = false;
    answers
        .ask(&Question::ConntrackCpus, &mut |message| {
            let (number, counters) = cpu(message);
            twice |= cpus.insert(number, counters).is_some();
            cpus.len() <= CPUS
        })
        .map_err(refused)?;
    if twice || cpus.is_empty() {
        return Err(broken("not one answer for each CPU"));
    }
    let cpus = cpus
        .into_iter()
        .map(|(cpu, counters)| {
            Some(CpuCounters {
                cpu,
                counters: counters?,
            })
        })
        .collect::<Option<_>>()
        .ok_or(broken("counters of a CPU that are not whole"))?;
    Ok(Sample {
        entries,
        limit,
        cpus,
        ..Sample::default()
    })
}

/// Entries, and the limit where it is told; `None` if the message is not whole.
fn table(message: &[u8]) -> Option<(u32, Option<u32>)> {
    let (mut entries, mut limit) = (None, None);
    let mut attributes = Attributes::new(message.get(HEADER..)?);
    for (kind, value) in &mut attributes {
        match kind {
            ENTRIES => entries = Some(number(value)?),
            MAX_ENTRIES => limit = Some(number(value)?),
            _ => {}
        }
    }
    (!attributes.broken()).then_some((entries?, limit))
}

/// A CPU's number, and its counters if the message is whole.
fn cpu(message: &[u8]) -> (u16, Option<Counters<u32>>) {
    let number = message.get(2..HEADER).and_then(|b| b.first_chunk());
    let number = number.map_or(0, |b| u16::from_be_bytes(*b));
    (number, counters(message))
}

fn counters(message: &[u8]) -> Option<Counters<u32>> {
    let mut found = Counters::default();
    let mut attributes = Attributes::new(message.get(HEADER..)?);
    for (kind, value) in &mut attributes {
        if let Some(counter) = Counter::ALL.into_iter().find(|c| attribute(*c) == kind) {
            found.set(counter, number(value)?);
        }
    }
    // What every kernel tells that has this message.
    let whole = Counter::ALL
        .into_iter()
        .all(|c| found.get(c).is_some() || attribute(c) > SEARCH_RESTART);
    (whole && !attributes.broken()).then_some(found)
}

/// The last of those that have been there from the beginning.
const SEARCH_RESTART: u16 = 13;

/// The kernel's number of a counter, `CTA_STATS_…`.
fn attribute(counter: Counter) -> u16 {
    match counter {
        Counter::Found => 2,
        Counter::Invalid => 4,
        Counter::Insert => 8,
        Counter::InsertFailed => 9,
        Counter::Drop => 10,
        Counter::EarlyDrop => 11,
        Counter::Error => 12,
        Counter::SearchRestart => SEARCH_RESTART,
        Counter::ClashResolve => 14,
        Counter::ChainTooLong => 15,
    }
}

/// 32 bits in network order, and nothing else.
fn number(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers in the kernel's place.
    #[derive(Clone, Default)]
    struct Said {
        table: Vec<Vec<u8>>,
        cpus: Vec<Vec<u8>>,
        refuses: Option<NetlinkError>,
    }

    impl Answers for Said {
        fn ask(
            &mut self,
            question: &Question<'_>,
            each: &mut dyn FnMut(&[u8]) -> bool,
        ) -> Result<(), NetlinkError> {
            let messages = match question {
                Question::ConntrackTable => &self.table,
                Question::ConntrackCpus => &self.cpus,
                other => panic!("{other:?}"),
            };
            if let Some(error) = &self.refuses {
                return Err(error.clone());
            }
            if messages.iter().all(|m| each(m)) {
                Ok(())
            } else {
                Err(NetlinkError::Interrupted)
            }
        }
    }

    fn message(cpu: u16, attributes: &[(u16, u32)]) -> Vec<u8> {
        let mut out = vec![0, 0];
        out.extend(cpu.to_be_bytes());
        for (kind, value) in attributes {
            out.extend(8u16.to_ne_bytes());
            out.extend(kind.to_ne_bytes());
            out.extend(value.to_be_bytes());
        }
        out
    }

    fn whole() -> Said {
        let all = |base: u32| -> Vec<(u16, u32)> {
            let numbers = [2, 4, 8, 9, 10, 11, 12, 13, 14, 15];
            numbers.map(|n| (n, base + u32::from(n))).into()
        };
        Said {
            table: vec![message(0, &[(1, 70), (2, 1_000)])],
            cpus: vec![message(0, &all(100)), message(1, &all(200))],
            refuses: None,
        }
    }

    fn read(said: &Said) -> Result<Sample, ReadError> {
        statistics(&mut said.clone(), || None)
    }

    #[test]
    fn numbers_are_those_of_the_kernels_header() {
        let sample = read(&whole()).unwrap();
        assert_eq!((sample.entries, sample.limit), (70, 1_000));
        assert_eq!(sample.cpus.len(), 2);
        assert_eq!(sample.cpus[1].cpu, 1);
        let second = &sample.cpus[1].counters;
        assert_eq!(second.get(Counter::Found), Some(202));
        assert_eq!(second.get(Counter::Drop), Some(210));
        assert_eq!(second.get(Counter::ChainTooLong), Some(215));
    }

    #[test]
    fn an_older_kernel_tells_less_and_nothing_is_made_up() {
        let mut said = whole();
        said.table = vec![message(0, &[(1, 70)])];
        for cpu in &mut said.cpus {
            // Without the last two attributes.
            cpu.truncate(4 + 8 * 8);
        }
        assert!(read(&said).is_err());
        let sample = statistics(&mut said, || Some(9)).unwrap();
        assert_eq!(sample.limit, 9);
        assert_eq!(sample.cpus[0].counters.get(Counter::ClashResolve), None);
        assert_eq!(
            sample.cpus[0].counters.get(Counter::SearchRestart),
            Some(113)
        );
    }

    #[test]
    fn answers_that_are_not_whole_are_errors() {
        type Spoil = fn(&mut Said);
        let cases: [(&str, Spoil); 9] = [
            ("no table", |s| s.table.clear()),
            ("two tables", |s| s.table.push(s.table[0].clone())),
            ("no entries", |s| s.table = vec![message(0, &[(2, 9)])]),
            ("no CPU", |s| s.cpus.clear()),
            ("a CPU twice", |s| s.cpus.push(s.cpus[0].clone())),
            ("a counter missing", |s| s.cpus[1] = message(1, &[(2, 1)])),
            ("a short value", |s| s.cpus[0][4] = 6),
            ("an empty message", |s| s.cpus[0].clear()),
            ("too many CPUs", |s| {
                let one = s.cpus[0].clone();
                s.cpus = (0..=CPUS as u16)
                    .map(|n| [&one[..2], &n.to_be_bytes(), &one[4..]].concat())
                    .collect();
            }),
        ];
        for (what, spoil) in cases {
            let mut said = whole();
            spoil(&mut said);
            assert!(matches!(read(&said), Err(ReadError::Failed(_))), "{what}");
        }
        // Cut anywhere: an error, or without what a kernel need not tell.
        for at in 0..whole().cpus[0].len() {
            let mut said = whole();
            said.cpus[0].truncate(at);
            match read(&said) {
                Ok(_) => assert!(at == 4 + 8 * 8 || at == 4 + 8 * 9, "cut at {at}"),
                Err(error) => assert!(matches!(error, ReadError::Failed(_))),
            }
        }
    }

    /// Any bytes: no panic, and no reading in which a counter is missing that every kernel tells.
    #[test]
    fn damaged_answers_are_errors_or_whole() {
        let mut read_all = 0;
        for seed in 0..20_000u64 {
            let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            let mut below = |end: usize| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state % end.max(1) as u64) as usize
            };
            let mut said = whole();
            for _ in 0..=below(3) {
                let message = match below(3) {
                    0 => &mut said.table[0],
                    n => &mut said.cpus[n - 1],
                };
                let at = below(message.len());
                match below(3) {
                    0 => message.truncate(at),
                    1 => message.iter_mut().skip(at).take(1).for_each(|b| *b = !*b),
                    _ => message
                        .iter_mut()
                        .skip(at & !3)
                        .take(2)
                        .for_each(|b| *b = 0xff),
                }
            }
            if let Ok(sample) = read(&said) {
                read_all += 1;
                let known = |c: &CpuCounters| c.counters.iter().count() >= 8;
                assert!(sample.cpus.iter().all(known), "seed {seed}: {sample:?}");
            }
        }
        assert!(read_all > 100, "damage that changes only numbers is read");
    }

    #[test]
    fn refused_and_absent_are_different() {
        let refuse = |error| {
            read(&Said {
                refuses: Some(error),
                ..whole()
            })
        };
        assert_eq!(refuse(NetlinkError::Permission), Err(ReadError::Permission));
        let no_subsystem = NetlinkError::System {
            doing: "request",
            errno: libc::EINVAL,
            extended: String::new(),
        };
        assert_eq!(refuse(no_subsystem), Err(ReadError::NoNetlink));
        assert_eq!(
            refuse(NetlinkError::Interrupted),
            Err(ReadError::Failed(NetlinkError::Interrupted))
        );
    }
}
