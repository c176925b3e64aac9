//! What the counters point at, each with the place in the kernel that says so.

use super::{Conntrack, Counter, Forecast, Timeout};
use crate::report::words::thousands;
use serde::Serialize;

/// From this share of the limit a full table is the likely reason of what was dropped lately: the kernel
/// evicts down to it once the table was full (`gc_worker`, `nf_conntrack_max95`, core).
const NEARLY_FULL: f64 = 0.95;
/// A table that is fuller is worth a look at what fills it.
const FILLING: f64 = 0.75;

/// A cause that the counters point at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Hint {
    /// Which (closed list: the words of [`hints`]).
    pub hint: &'static str,
    /// Packets are lost, as far as the counters tell.
    pub loses_packets: bool,
    /// One sentence.
    pub says: String,
    /// Where that is known from.
    pub source: &'static str,
}

/// What the counters of the last minutes point at, worst first. Words: `table_full`, `drop`,
/// `chain_toolong`, `insert_race`, `insert_failed`, `early_drop`, `race_resolved`, `long_timeout`.
pub fn hints(c: &Conntrack) -> Vec<Hint> {
    let mut all = Vec::new();
    let n = |counter| c.lately(counter);
    let minutes = c.recent.map_or(String::new(), |r| {
        format!(
            "in the last {}",
            crate::report::words::ago(r.ms as f64 / 1e3)
        )
    });
    let fill = c.fill().unwrap_or(0.0);
    if c.forecast == Forecast::Full {
        all.push(Hint {
            hint: "table_full",
            loses_packets: true,
            says: format!(
                "{} entries, {} may be: the first packet of a new flow is dropped unless an entry can be \
                 evicted that never saw traffic in both directions for long",
                thousands(c.entries.into()),
                thousands(c.limit.into()),
            ),
            source: "__nf_conntrack_alloc() and early_drop_list(), net/netfilter/nf_conntrack_core.c",
        });
    }
    // A chain that is too long counts as insert_failed as well (but for ctnetlink's), a clash that is
    // not resolved as insert_failed and drop.
    let (failed, long) = (n(Counter::InsertFailed), n(Counter::ChainTooLong));
    let clashed = failed.saturating_sub(long);
    let others = n(Counter::Drop).saturating_sub(clashed);
    if others > 0 {
        let full = n(Counter::EarlyDrop) > 0 || fill >= NEARLY_FULL;
        let why = if full {
            "the table is or was full"
        } else if c.limit > 0 {
            "the table was not seen full: it was so between two readings, memory was short, or a \
             protocol's tracker refused the packet"
        } else {
            "there is no limit: memory was short, or a protocol's tracker refused the packet"
        };
        all.push(Hint {
            hint: "drop",
            loses_packets: true,
            says: format!(
                "{} packets dropped {minutes} that no lost race explains; {why}",
                thousands(others)
            ),
            source: "nf_conntrack_in(), net/netfilter/nf_conntrack_core.c: drop counts where no entry \
                     could be allocated",
        });
    }
    if long > 0 {
        let buckets = c.buckets.map_or(String::new(), |b| {
            format!(
                " ({} entries here, {} buckets for all namespaces)",
                thousands(c.entries.into()),
                thousands(b.into())
            )
        });
        all.push(Hint {
            hint: "chain_toolong",
            loses_packets: true,
            says: format!(
                "{} new flows refused {minutes} since their hash chain was too long: too few buckets for \
                 the entries{buckets}, or many flows of the same addresses and ports after translation",
                thousands(long)
            ),
            source: "__nf_conntrack_confirm(), net/netfilter/nf_conntrack_core.c; every entry is in the \
                     table twice (nf_conntrack_buckets, Documentation/networking/nf_conntrack-sysctl.rst)",
        });
    }
    let resolved = n(Counter::ClashResolve);
    if clashed > 0 && resolved > 0 {
        all.push(Hint {
            hint: "insert_race",
            loses_packets: true,
            says: format!(
                "{} new flows lost the race against another packet of their own {minutes}, and {} more \
                 were resolved without loss: packets of one flow sent at the same time on several CPUs, \
                 as UDP clients do (DNS: A and AAAA from one socket)",
                thousands(clashed),
                thousands(resolved)
            ),
            source: "nf_ct_resolve_clash(), net/netfilter/nf_conntrack_core.c; UDP may clash \
                     (allow_clash, nf_conntrack_proto_udp.c)",
        });
    } else if clashed > 0 {
        let told = if c.totals.get(Counter::ClashResolve).is_some() {
            ""
        } else {
            " (this kernel does not tell those that it resolved)"
        };
        all.push(Hint {
            hint: "insert_failed",
            loses_packets: true,
            says: format!(
                "{} new flows could not be inserted {minutes}{told}: another entry had their addresses \
                 and ports already, or they were deleted before they were confirmed",
                thousands(clashed)
            ),
            source: "__nf_conntrack_confirm(), net/netfilter/nf_conntrack_core.c",
        });
    }
    if n(Counter::EarlyDrop) > 0 {
        all.push(Hint {
            hint: "early_drop",
            loses_packets: false,
            says: format!(
                "{} entries evicted {minutes} to make room: the table was full (its limit is {})",
                thousands(n(Counter::EarlyDrop)),
                thousands(c.limit.into())
            ),
            source: "early_drop(), net/netfilter/nf_conntrack_core.c: called only above the limit, takes \
                     entries that are not ASSURED",
        });
    }
    if clashed == 0 && resolved > 0 {
        all.push(Hint {
            hint: "race_resolved",
            loses_packets: false,
            says: format!(
                "{} races of packets of one flow {minutes}, all resolved: nothing was lost",
                thousands(resolved)
            ),
            source: "nf_ct_resolve_clash(), net/netfilter/nf_conntrack_core.c",
        });
    }
    let fills = fill >= FILLING || matches!(c.forecast, Forecast::Full | Forecast::Filling(_));
    if let Some(seconds) = c.timeouts.get(&Timeout::TcpEstablished)
        && fills
        && *seconds >= KERNEL_ESTABLISHED
    {
        all.push(Hint {
            hint: "long_timeout",
            loses_packets: false,
            says: format!(
                "a TCP connection whose end was not seen keeps its entry for {}",
                crate::report::words::ago(f64::from(*seconds))
            ),
            source: "nf_conntrack_tcp_timeout_established, \
                     Documentation/networking/nf_conntrack-sysctl.rst: the kernel's default is 5 days",
        });
    }
    all
}

/// The kernel's own default, seconds; kube-proxy sets a day unless told otherwise.
const KERNEL_ESTABLISHED: u32 = 432_000;
