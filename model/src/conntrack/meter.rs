//! From readings to totals that do not wrap, and to what was counted lately.

use super::forecast::forecast;
use super::{Conntrack, Counter, Counters, Recent, Sample};
use crate::limits;
use crate::time::Mono;
use std::collections::{BTreeMap, VecDeque};

/// "Lately": long enough to be looked at by a person who was called.
const RECENT_MS: u64 = 300_000;
/// A CPU cannot count faster: each count is a packet or an entry, and none takes less than 100 ns. A
/// counter that went back by less than this allows has wrapped; by more, it began anew.
const MOST_PER_SECOND: u64 = 10_000_000;
/// Between two readings that are farther apart nothing tells a wrap from a new beginning; the smaller
/// answer is taken.
const TELLABLE_MS: u64 = 60_000;

/// Remembers what readings of one network namespace gave.
#[derive(Clone, Debug, Default)]
pub struct Meter {
    /// What each CPU said last, and when.
    cpus: BTreeMap<u16, (Mono, Counters<u32>)>,
    totals: Counters<u64>,
    /// Totals at each reading of [`RECENT_MS`].
    recent: VecDeque<(Mono, Counters<u64>)>,
    /// Entries at each reading of the forecast's longest window.
    history: VecDeque<(Mono, u32)>,
}

impl Meter {
    /// Takes a reading in. Times must not go back.
    ///
    /// Totals begin with the kernel's own sums, so that an agent that restarts goes on where it was, as
    /// long as no counter has wrapped. A CPU that is not in a reading keeps its share; one that is new
    /// cannot have counted before, so all of it counts.
    pub fn take(&mut self, now: Mono, sample: Sample) -> Conntrack {
        for cpu in &sample.cpus {
            let before = self.cpus.get(&cpu.cpu).copied();
            for (counter, value) in cpu.counters.iter() {
                let earlier = before.and_then(|(at, c)| Some((at, c.get(counter)?)));
                let increase = match earlier {
                    Some((at, earlier)) => increase(earlier, value, now.since(at)),
                    None => u64::from(value),
                };
                let total = self.totals.get(counter).unwrap_or(0);
                self.totals.set(counter, total.saturating_add(increase));
            }
            self.cpus.insert(cpu.cpu, (now, cpu.counters));
        }
        keep(&mut self.recent, now, RECENT_MS, self.totals);
        keep(
            &mut self.history,
            now,
            super::forecast::LONGEST_MS,
            sample.entries,
        );
        let history: Vec<(Mono, u32)> = self.history.iter().copied().collect();
        Conntrack {
            entries: sample.entries,
            limit: sample.limit,
            buckets: sample.buckets,
            timeouts: sample.timeouts,
            totals: self.totals,
            recent: self.lately(now),
            forecast: forecast(&history, now, sample.entries, sample.limit),
        }
    }

    fn lately(&self, now: Mono) -> Option<Recent> {
        let (at, then) = self.recent.front()?;
        let ms = now.since(*at);
        let grown = |counter: Counter| {
            // A counter that was not told then is not known to have grown.
            let (now, then) = (self.totals.get(counter)?, then.get(counter)?);
            Some((counter, now.saturating_sub(then)))
        };
        (ms > 0).then(|| Recent {
            ms,
            increases: Counter::ALL.into_iter().filter_map(grown).collect(),
        })
    }
}

/// Appends, and forgets what is older than `longest` or more than may be kept.
fn keep<T>(list: &mut VecDeque<(Mono, T)>, now: Mono, longest: u64, value: T) {
    list.push_back((now, value));
    while list.len() > limits::CONNTRACK_READINGS
        || list.front().is_some_and(|(at, _)| now.since(*at) > longest)
    {
        list.pop_front();
    }
}

/// By how much a counter of 32 bits grew in `ms`.
fn increase(earlier: u32, later: u32, ms: u64) -> u64 {
    if later >= earlier {
        return u64::from(later - earlier);
    }
    let wrapped = u64::from(later.wrapping_sub(earlier));
    let possible = (ms.max(1) as u128 * u128::from(MOST_PER_SECOND) / 1_000) as u64;
    if ms <= TELLABLE_MS && wrapped <= possible {
        wrapped
    } else {
        u64::from(later)
    }
}
