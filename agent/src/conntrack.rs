//! Connection tracking of the node, looked at every few seconds.

use crate::host::conntrack::{ReadError, Reader};
use model::capture::{Gap, Reading};
use model::conntrack::{ConntrackReading, Meter};
use model::time::{Mono, Now};
use std::sync::Arc;

/// Between two readings. Each is two questions and a dozen small files.
pub const EVERY_MS: u64 = 5_000;

/// Reads, and remembers what readings gave.
#[derive(Debug, Default)]
pub struct Watch {
    reader: Reader,
    meter: Meter,
    read_at: Option<Mono>,
    last: Option<Arc<ConntrackReading>>,
}

impl Watch {
    /// The last reading, made anew if it is older than [`EVERY_MS`]. Of this thread's network namespace;
    /// blocks for as long as the kernel takes.
    pub fn look(&mut self, now: Now) -> Arc<ConntrackReading> {
        let due = |at: Mono| now.mono.since(at) >= EVERY_MS;
        if let Some(last) = &self.last
            && !self.read_at.is_none_or(due)
        {
            return last.clone();
        }
        let reading = match self.reader.read() {
            Ok(sample) => Reading::Read(self.meter.take(now.mono, sample)),
            Err(error) => failed(&error),
        };
        self.read_at = Some(now.mono);
        let reading = Arc::new(ConntrackReading {
            at: now.wall,
            reading,
        });
        self.last = Some(reading.clone());
        reading
    }
}

pub(crate) fn failed<T>(error: &ReadError) -> Reading<T> {
    match error {
        ReadError::Absent => Reading::Absent,
        other => Reading::Failed(Gap {
            what: "conntrack".into(),
            why: other.to_string().into(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::time::Millis;

    #[test]
    fn looks_are_seconds_apart_however_often_it_is_asked() {
        let mut watch = Watch::default();
        let at = |ms: u64| Now {
            mono: Mono(ms),
            wall: Millis(1_000_000 + ms),
        };
        let first = watch.look(at(0));
        for ms in [1, 250, 4_999] {
            assert!(Arc::ptr_eq(&first, &watch.look(at(ms))), "{ms}");
        }
        let second = watch.look(at(EVERY_MS));
        assert_eq!(
            (first.at, second.at),
            (Millis(1_000_000), Millis(1_005_000))
        );
    }

    #[test]
    fn absent_is_not_failed() {
        assert_eq!(failed::<()>(&ReadError::Absent), Reading::Absent);
        for error in [ReadError::Permission, ReadError::NoNetlink] {
            assert!(matches!(failed::<()>(&error), Reading::Failed(_)));
        }
    }
}
