//! Which backends answer, looked at every half minute.

use crate::conntrack::failed;
use crate::host::flows::{End, Reader};
use model::capture::{Gap, Reading};
use model::conntrack::{ConntrackReading, Timeout};
use model::flows::{Flows, FlowsReading, Meter};
use model::report::Row;
use model::time::{Mono, Now};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Between two walks, at least.
pub const EVERY_MS: u64 = 30_000;
/// A walk is followed by so many times the CPU time that it took: a hundredth of one CPU at most.
const REST_FOR_WORK: u64 = 100;

/// Walks, and remembers what walks gave.
#[derive(Debug, Default)]
pub struct Watch {
    reader: Reader,
    meter: Meter,
    next: Option<Mono>,
    last: Option<Arc<FlowsReading>>,
}

impl Watch {
    /// What the last walk gave, made anew when one is due. `cpu`: CPU time of this thread,
    /// milliseconds. `rows`: of the newest report. A reading that says the same as the one before is
    /// the very same.
    pub fn look(
        &mut self,
        now: Now,
        cpu: impl Fn() -> u64,
        conntrack: &ConntrackReading,
        rows: &[Arc<Row>],
    ) -> Arc<FlowsReading> {
        if let Some(last) = &self.last
            && self.next.is_none_or(|next| now.mono < next)
        {
            return last.clone();
        }
        let before = cpu();
        let none = BTreeMap::new();
        let timeouts = conntrack.reading.read().map_or(&none, |c| &c.timeouts);
        let reading = self.walk(now, timeouts, rows);
        self.next = Some(rest(now.mono, cpu().saturating_sub(before)));
        if let Some(last) = &self.last
            && last.reading == reading
        {
            return last.clone();
        }
        let reading = Arc::new(FlowsReading {
            at: now.wall,
            reading,
        });
        self.last = Some(reading.clone());
        reading
    }

    fn walk(
        &mut self,
        now: Now,
        timeouts: &BTreeMap<Timeout, u32>,
        rows: &[Arc<Row>],
    ) -> Reading<Flows> {
        let mut walk = self.meter.begin(timeouts);
        match self.reader.walk(|entry| walk.add(entry)) {
            Ok(End::Whole) => {
                let walked = walk.done();
                self.meter.take(now, walked);
                Reading::Read(self.meter.flows(rows))
            }
            Ok(End::TooMany) => Reading::Failed(Gap {
                what: "conntrack".into(),
                why: "it holds more flows than are looked at".into(),
            }),
            Err(error) => failed(&error),
        }
    }
}

/// When the next walk is due.
fn rest(now: Mono, cpu: u64) -> Mono {
    Mono(now.0 + EVERY_MS.max(cpu.saturating_mul(REST_FOR_WORK)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn walks_are_spaced_out_by_what_they_cost() {
        assert_eq!(rest(Mono(5), 0), Mono(30_005));
        assert_eq!(rest(Mono(5), 300), Mono(30_005));
        assert_eq!(rest(Mono(5), 1_000), Mono(100_005));
    }
}
