//! Connection tracking for people and programs, the same on the node and at the aggregator.

use super::{Conntrack, Forecast, Hint, hints};
use crate::report::words::{ago, thousands};
use serde::Serialize;
use std::collections::BTreeMap;

/// One sentence, without the node's name.
pub fn verdict(c: &Conntrack) -> String {
    let use_ = match c.fill() {
        None => format!("{} entries, no limit", thousands(c.entries.into())),
        Some(fill) => format!(
            "{} full ({} of {})",
            percent(fill),
            thousands(c.entries.into()),
            thousands(c.limit.into())
        ),
    };
    let when = match &c.forecast {
        Forecast::NoLimit | Forecast::Full | Forecast::Steady { .. } => String::new(),
        Forecast::TooShort => "; not seen for long enough to forecast".into(),
        Forecast::Distant { beyond_seconds } => {
            format!("; growing, not full within {}", ago(*beyond_seconds as f64))
        }
        Forecast::Filling(f) => format!(
            "; full in about {} (between {} and {}) if the last {} go on",
            ago(f.seconds),
            ago(f.earliest),
            ago(f.latest),
            ago(f.seen_seconds as f64)
        ),
    };
    let worst = hints(c).into_iter().find(|h| h.loses_packets);
    let loses = worst.map_or(String::new(), |h| format!("; {}", h.says));
    format!("{use_}{when}{loses}")
}

/// `81 %`, `0.4 %`, `99.9 %`: what is not full does not round up to it.
pub(super) fn percent(share: f64) -> String {
    let p = share * 100.0;
    if p == 0.0 || (10.0..=99.0).contains(&p) || p >= 100.0 {
        format!("{p:.0} %")
    } else {
        format!("{:.1} %", p.min(99.9))
    }
}

/// As JSON.
#[derive(Clone, Debug, Serialize)]
pub struct ConntrackJson {
    /// Entries of the node's network namespace.
    pub entries: u32,
    /// Limit; null: there is none.
    pub limit: Option<u32>,
    /// Percent of the limit.
    pub full_percent: Option<f64>,
    /// Buckets of the hash table.
    pub buckets: Option<u32>,
    /// When the table will be full.
    pub forecast: Forecast,
    /// What the counters point at, worst first.
    pub hints: Vec<Hint>,
    /// How long `lately` is, seconds; null: read once only.
    pub lately_seconds: Option<f64>,
    /// The kernel's counters, summed over CPUs.
    pub counters: Vec<CounterJson>,
    /// Timeouts by the sysctl's name after `nf_conntrack_`, seconds.
    pub timeouts_seconds: BTreeMap<&'static str, u32>,
}

/// One counter.
#[derive(Clone, Debug, Serialize)]
pub struct CounterJson {
    /// Its word.
    pub name: &'static str,
    /// In all.
    pub total: u64,
    /// Lately.
    pub lately: Option<u64>,
    /// Rate of that.
    pub per_second: Option<f64>,
}

/// As JSON, and as the text is made from.
pub fn conntrack_json(c: &Conntrack) -> ConntrackJson {
    ConntrackJson {
        entries: c.entries,
        limit: (c.limit > 0).then_some(c.limit),
        full_percent: c.fill().map(|f| f * 100.0),
        buckets: c.buckets,
        forecast: c.forecast,
        hints: hints(c),
        lately_seconds: c.recent.map(|r| r.ms as f64 / 1_000.0),
        counters: c
            .totals
            .iter()
            .map(|(counter, total)| CounterJson {
                name: counter.word(),
                total,
                lately: c.recent.and_then(|r| r.increases.get(counter)),
                per_second: c.recent.and_then(|r| r.per_second(counter)),
            })
            .collect(),
        timeouts_seconds: c.timeouts.iter().map(|(t, s)| (t.word(), *s)).collect(),
    }
}

/// As text, several lines.
pub fn conntrack_text(c: &Conntrack) -> String {
    let mut out = String::new();
    let trend = match &c.forecast {
        Forecast::NoLimit => "the kernel has no limit".into(),
        Forecast::Full => "full now".into(),
        Forecast::TooShort => "not forecast: seen for less than 2 min".into(),
        Forecast::Steady { seen_seconds } => {
            format!("no lasting rise in the last {}", ago(*seen_seconds as f64))
        }
        Forecast::Distant { beyond_seconds } => format!(
            "growing; not full within {}, and farther the trend does not say",
            ago(*beyond_seconds as f64)
        ),
        Forecast::Filling(f) => format!(
            "full in about {}, between {} and {}: {:.1} entries/s over the last {}",
            ago(f.seconds),
            ago(f.earliest),
            ago(f.latest),
            f.per_second,
            ago(f.seen_seconds as f64)
        ),
    };
    out += &format!("forecast  {trend}\n");
    if let Some(buckets) = c.buckets {
        out += &format!("buckets   {}\n", thousands(buckets.into()));
    }
    for hint in hints(c) {
        let kind = if hint.loses_packets { "LOSS" } else { "note" };
        out += &format!("{kind}      {}: {}\n", hint.hint, hint.says);
        out += &format!("          by {}\n", hint.source);
    }
    let lately = c.recent.map_or("-".into(), |r| ago(r.ms as f64 / 1_000.0));
    out += &format!(
        "\n{:<16}{:>20}{:>20}\n",
        "counter",
        "total",
        format!("last {lately}")
    );
    for (counter, total) in c.totals.iter() {
        let grown = c.recent.and_then(|r| r.increases.get(counter));
        out += &format!(
            "{:<16}{:>20}{:>20}\n",
            counter.word(),
            thousands(total),
            grown.map_or("-".into(), thousands)
        );
    }
    if !c.timeouts.is_empty() {
        out += "\ntimeouts\n";
    }
    for (timeout, seconds) in &c.timeouts {
        out += &format!("{:<26}{:>10} s\n", timeout.word(), seconds);
    }
    out
}
