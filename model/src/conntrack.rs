//! Connection tracking of one node: what the kernel counts, how fast, when the table will be full, and
//! what that points at.
//!
//! Read [`Sample`] first (what is read), then [`Meter`] (what history makes of it), [`Conntrack`] (what
//! is reported), [`hints`].
//!
//! Facts of the kernel that this rests on (linux 6.x; `core` is net/netfilter/nf_conntrack_core.c,
//! `netlink` is net/netfilter/nf_conntrack_netlink.c):
//! - Entries, counters and timeouts belong to the network namespace (`struct nf_conntrack_net`,
//!   `net->ct.stat`, `nf_ct_pernet`); the hash table and its size belong to the machine
//!   (`nf_conntrack_hash`, `nf_conntrack_htable_size`).
//! - The limit is compared with the entries of each namespace by itself (`__nf_conntrack_alloc`, core).
//!   It belongs to the machine and cannot be written from another namespace than the first. Kernels that
//!   give a namespace one of its own tell the smaller of both as `CTA_STATS_GLOBAL_MAX_ENTRIES`
//!   (`nf_conntrack_max(net)`).
//! - Counters are `unsigned int` of each CPU (`struct ip_conntrack_stat`): they wrap at 2^32, and nothing
//!   resets them. A dump lists every *possible* CPU (`ctnetlink_ct_stat_cpu_dump`, netlink): one that is
//!   taken offline stays in it.

mod forecast;
mod hints;
mod meter;
mod say;

pub use forecast::{Filling, Forecast};
pub use hints::{Hint, hints};
pub use meter::Meter;
pub use say::{ConntrackJson, CounterJson, conntrack_json, conntrack_text, verdict};

use crate::capture::Reading;
use crate::time::Millis;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A counter of the kernel's: `enum ctattr_stats_cpu`, linux/netfilter/nfnetlink_conntrack.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Counter {
    /// Translations that would have clashed with another flow, and got another port
    /// (`nf_conntrack_tuple_taken`, core). Very old kernels: look-ups that found an entry.
    Found,
    /// Packets that fit no flow, or a flow's state (`nf_conntrack_in`, core).
    Invalid,
    /// Entries that were inserted by ctnetlink and the like (`nf_conntrack_hash_check_insert`, core).
    /// Those that packets make are not counted, but by very old kernels: this is not the rate of new
    /// flows.
    Insert,
    /// New flows whose entry could not be inserted: another packet of the flow was first and the clash
    /// was not resolved, or the hash chain was too long (`__nf_conntrack_confirm`, core).
    InsertFailed,
    /// Packets dropped: the table was full or memory short (`nf_conntrack_in`), or a clash could not be
    /// resolved (`nf_ct_resolve_clash`, both core). Those of [`Counter::ChainTooLong`] are not in it.
    Drop,
    /// Entries that were evicted to make room in a full table (`early_drop`, core).
    EarlyDrop,
    /// ICMP errors that were not accepted (`nf_conntrack_handle_icmp`, core).
    Error,
    /// Look-ups that began again since an entry was moved meanwhile (core).
    SearchRestart,
    /// Clashes of two packets of one flow that were resolved without loss (`nf_ct_resolve_clash`, core).
    /// Older kernels do not tell it.
    ClashResolve,
    /// Entries not inserted since the hash chain was too long (core). Older kernels do not tell it.
    ChainTooLong,
}

impl Counter {
    /// Every counter, in the order of the kernel's numbers.
    pub const ALL: [Counter; 10] = [
        Counter::Found,
        Counter::Invalid,
        Counter::Insert,
        Counter::InsertFailed,
        Counter::Drop,
        Counter::EarlyDrop,
        Counter::Error,
        Counter::SearchRestart,
        Counter::ClashResolve,
        Counter::ChainTooLong,
    ];

    /// The counter's word in JSON and metrics: as `conntrack -S` prints it, but for `chain_toolong`.
    pub fn word(self) -> &'static str {
        match self {
            Counter::Found => "found",
            Counter::Invalid => "invalid",
            Counter::Insert => "insert",
            Counter::InsertFailed => "insert_failed",
            Counter::Drop => "drop",
            Counter::EarlyDrop => "early_drop",
            Counter::Error => "error",
            Counter::SearchRestart => "search_restart",
            Counter::ClashResolve => "clash_resolve",
            Counter::ChainTooLong => "chain_toolong",
        }
    }
}

/// A number for each counter; `None`: the kernel does not tell that one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters<T>([Option<T>; 10]);

impl<T> Default for Counters<T> {
    fn default() -> Self {
        Counters([const { None }; 10])
    }
}

impl<T: Copy> Counters<T> {
    /// The number of one counter.
    pub fn get(&self, counter: Counter) -> Option<T> {
        self.0[counter as usize]
    }

    /// Sets the number of one counter.
    pub fn set(&mut self, counter: Counter, value: T) {
        self.0[counter as usize] = Some(value);
    }

    /// Those that are told, in the order of [`Counter::ALL`].
    pub fn iter(&self) -> impl Iterator<Item = (Counter, T)> + '_ {
        Counter::ALL
            .into_iter()
            .filter_map(|c| self.get(c).map(|v| (c, v)))
    }
}

impl<T: Copy> FromIterator<(Counter, T)> for Counters<T> {
    fn from_iter<I: IntoIterator<Item = (Counter, T)>>(all: I) -> Self {
        let mut out = Counters::default();
        for (counter, value) in all {
            out.set(counter, value);
        }
        out
    }
}

/// How long an entry lives after its last packet: those sysctls of `net.netfilter.nf_conntrack_…` that
/// decide how full a table gets (Documentation/networking/nf_conntrack-sysctl.rst).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Timeout {
    /// SYN seen, no answer.
    TcpSynSent,
    /// Answered, not yet confirmed.
    TcpSynRecv,
    /// Established.
    TcpEstablished,
    /// One side has closed.
    TcpFinWait,
    /// The other side has not closed yet.
    TcpCloseWait,
    /// Both have closed.
    TcpTimeWait,
    /// UDP in one direction.
    Udp,
    /// UDP in both directions, for a while.
    UdpStream,
    /// ICMP.
    Icmp,
    /// Any other protocol.
    Generic,
}

impl Timeout {
    /// Every timeout.
    pub const ALL: [Timeout; 10] = [
        Timeout::TcpSynSent,
        Timeout::TcpSynRecv,
        Timeout::TcpEstablished,
        Timeout::TcpFinWait,
        Timeout::TcpCloseWait,
        Timeout::TcpTimeWait,
        Timeout::Udp,
        Timeout::UdpStream,
        Timeout::Icmp,
        Timeout::Generic,
    ];

    /// The sysctl's name after `nf_conntrack_`.
    pub fn word(self) -> &'static str {
        match self {
            Timeout::TcpSynSent => "tcp_timeout_syn_sent",
            Timeout::TcpSynRecv => "tcp_timeout_syn_recv",
            Timeout::TcpEstablished => "tcp_timeout_established",
            Timeout::TcpFinWait => "tcp_timeout_fin_wait",
            Timeout::TcpCloseWait => "tcp_timeout_close_wait",
            Timeout::TcpTimeWait => "tcp_timeout_time_wait",
            Timeout::Udp => "udp_timeout",
            Timeout::UdpStream => "udp_timeout_stream",
            Timeout::Icmp => "icmp_timeout",
            Timeout::Generic => "generic_timeout",
        }
    }
}

/// The counters of one CPU, as the kernel has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuCounters {
    /// The CPU's number.
    pub cpu: u16,
    /// Its counters, which wrap at 2^32.
    pub counters: Counters<u32>,
}

/// What one reading of a network namespace gave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Entries of the namespace, unconfirmed ones included: what the limit is compared with.
    pub entries: u32,
    /// Limit of entries; 0: there is none.
    pub limit: u32,
    /// Buckets of the machine's hash table, where that could be read.
    pub buckets: Option<u32>,
    /// Timeouts in seconds, those that could be read.
    pub timeouts: BTreeMap<Timeout, u32>,
    /// Each possible CPU, once.
    pub cpus: Vec<CpuCounters>,
}

/// How much counters grew lately.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recent {
    /// In how many milliseconds; more than 0, at most a few minutes.
    pub ms: u64,
    /// By how much.
    pub increases: Counters<u64>,
}

impl Recent {
    /// The rate of one counter.
    pub fn per_second(&self, counter: Counter) -> Option<f64> {
        let increase = self.increases.get(counter)? as f64;
        Some(increase * 1_000.0 / self.ms.max(1) as f64)
    }
}

/// Connection tracking of one node, as its agent reports it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Conntrack {
    /// Entries, as in [`Sample::entries`].
    pub entries: u32,
    /// Limit of entries; 0: there is none.
    pub limit: u32,
    /// Buckets of the hash table.
    pub buckets: Option<u32>,
    /// Timeouts in seconds.
    pub timeouts: BTreeMap<Timeout, u32>,
    /// Sums over all CPUs that do not wrap: the kernel's own sums when the agent started, and what was
    /// counted since.
    pub totals: Counters<u64>,
    /// What was counted lately; `None`: this is the first reading.
    pub recent: Option<Recent>,
    /// When the table will be full.
    pub forecast: Forecast,
}

impl Conntrack {
    /// Share of the limit that is used, 0 to 1 and a little above; `None`: there is no limit.
    pub fn fill(&self) -> Option<f64> {
        (self.limit > 0).then(|| f64::from(self.entries) / f64::from(self.limit))
    }

    /// What was counted lately; 0 where that is not known.
    pub fn lately(&self, counter: Counter) -> u64 {
        let recent = self.recent.as_ref();
        recent.and_then(|r| r.increases.get(counter)).unwrap_or(0)
    }
}

/// A reading of connection tracking, and when it was made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConntrackReading {
    /// When, by the node's clock.
    pub at: Millis,
    /// What.
    pub reading: Reading<Conntrack>,
}

#[cfg(test)]
mod tests;
