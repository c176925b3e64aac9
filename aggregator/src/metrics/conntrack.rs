//! Series of connection tracking. Counters are the kernel's own sums, so they stay counters here.

use crate::fleet::Said;
use model::capture::Reading;
use model::conntrack::{Conntrack, Counter};
use prometheus::core::Collector;
use prometheus::{GaugeVec, IntCounterVec, Opts, Registry};

/// The series of all nodes.
pub(super) struct Series {
    readable: GaugeVec,
    entries: GaugeVec,
    limit: GaugeVec,
    buckets: GaugeVec,
    full: GaugeVec,
    earliest: GaugeVec,
    counters: Vec<(Counter, IntCounterVec)>,
}

impl Series {
    pub(super) fn new(registry: &Registry) -> Result<Series, prometheus::Error> {
        let gauge = |name: &str, help: &str| -> Result<GaugeVec, prometheus::Error> {
            let g = GaugeVec::new(Opts::new(name, help), &["node"])?;
            register(registry, g.clone())?;
            Ok(g)
        };
        let counters = Counter::ALL.into_iter().map(|counter| {
            let name = format!("vipwitness_conntrack_{}_total", counter.word());
            let c = IntCounterVec::new(Opts::new(name, help(counter)), &["node"])?;
            register(registry, c.clone())?;
            Ok((counter, c))
        });
        Ok(Series {
            readable: gauge(
                "vipwitness_conntrack_readable",
                "1 while the node's connection tracking is read, 0 where it could not be; absent where the kernel has none. While the agent is connected.",
            )?,
            entries: gauge(
                "vipwitness_conntrack_entries",
                "Entries in the node's connection tracking table. While the agent is connected.",
            )?,
            limit: gauge(
                "vipwitness_conntrack_entries_limit",
                "Entries that may be in the table (nf_conntrack_max); absent where there is no limit. While the agent is connected.",
            )?,
            buckets: gauge(
                "vipwitness_conntrack_buckets",
                "Buckets of the machine's hash table of connections. While the agent is connected.",
            )?,
            full: gauge(
                "vipwitness_conntrack_full_seconds",
                "Until the table is full if its lasting trend goes on, 0 when it is; absent where there is no such trend. While the agent is connected.",
            )?,
            earliest: gauge(
                "vipwitness_conntrack_full_seconds_earliest",
                "The earliest that the table may be full, by the spread of the trend; absent where there is none. While the agent is connected.",
            )?,
            counters: counters.collect::<Result<_, prometheus::Error>>()?,
        })
    }

    /// What a node said, whose agent is connected.
    pub(super) fn set(&self, node: &str, said: &Said) {
        let Some(conntrack) = &said.conntrack else {
            return;
        };
        match &conntrack.reading {
            Reading::Absent => {}
            Reading::Failed(_) => self.readable.with_label_values(&[node]).set(0.0),
            Reading::Read(table) => {
                self.readable.with_label_values(&[node]).set(1.0);
                self.set_table(node, table);
            }
        }
    }

    fn set_table(&self, node: &str, table: &Conntrack) {
        let set = |series: &GaugeVec, value: Option<f64>| {
            if let Some(value) = value {
                series.with_label_values(&[node]).set(value);
            }
        };
        let limit = (table.limit > 0).then_some(table.limit);
        set(&self.entries, Some(table.entries.into()));
        set(&self.limit, limit.map(f64::from));
        set(&self.buckets, table.buckets.map(f64::from));
        set(&self.full, table.forecast.seconds());
        set(&self.earliest, table.forecast.earliest());
        for (counter, series) in &self.counters {
            if let Some(total) = table.totals.get(*counter) {
                series.with_label_values(&[node]).inc_by(total);
            }
        }
    }
}

fn register(
    registry: &Registry,
    series: impl Collector + 'static,
) -> Result<(), prometheus::Error> {
    registry.register(Box::new(series))
}

fn help(counter: Counter) -> &'static str {
    match counter {
        Counter::Found => {
            "Translations that would have clashed with another flow and got another port."
        }
        Counter::Invalid => "Packets that fit no flow, or not the state of theirs.",
        Counter::Insert => {
            "Entries inserted by ctnetlink and the like; the kernel does not count those that packets make."
        }
        Counter::InsertFailed => {
            "New flows that could not be inserted: a lost race that was not resolved, or a hash chain too long."
        }
        Counter::Drop => {
            "Packets dropped: the table was full or memory short, or a race was not resolved."
        }
        Counter::EarlyDrop => "Entries evicted to make room in a full table.",
        Counter::Error => "ICMP errors that were not accepted.",
        Counter::SearchRestart => "Look-ups that began again since an entry was moved meanwhile.",
        Counter::ClashResolve => "Races of packets of one flow that were resolved without loss.",
        Counter::ChainTooLong => "New flows refused since their hash chain was too long.",
    }
}
