//! When the table will be full, as far as that can be said.
//!
//! A window of readings is cut into blocks, each represented by its median, and the slope of every pair
//! of blocks is taken (Theil 1950, Sen 1968): the median of the slopes is the growth. Its uncertainty is
//! the span of the middle 80 % of the slopes, which assumes nothing of how readings are distributed or
//! depend on each other. There is a lasting rise only if all of that span rises, and each quarter of the
//! window by about as much as the others: a step, or a rise that takes up half of the window, leaves a
//! quarter flat. A burst is no trend, however high it is.
//!
//! A trend is drawn out at most five times as long as it was seen. So a short window answers soon for a
//! table that will be full soon, and has no say about the next hours; for those there are longer ones.

use crate::time::Mono;
use serde::{Deserialize, Serialize};

/// How long trends are looked at.
const WINDOWS_MS: [u64; 4] = [120_000, 600_000, 3_600_000, LONGEST_MS];
/// The longest of them.
pub(super) const LONGEST_MS: u64 = 14_400_000;
/// A trend is drawn out this many times as long as it was seen.
const DRAWN_OUT: u64 = 5;
/// Blocks of a window: few enough that each holds several readings in all windows but the first, enough
/// that tenths of their pairs mean something.
const BLOCKS: usize = 12;
/// Blocks that may lack a reading.
const MISSING: usize = 2;
/// Share of the slopes that is left out at each end.
const LEFT_OUT: f64 = 0.1;
/// From quarter to quarter it rises at least by this share of the most that it does: a growth that speeds
/// up by a quarter from each to the next still does. With 0.4, one in a hundred steps that took 50 s
/// under noise was taken for a trend (`bursts_and_steps_do_not_fool`); with this, none of a thousand.
const EVEN: f64 = 0.6;

/// When the table will be full.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum Forecast {
    /// The kernel has no limit (`nf_conntrack_max` is 0).
    NoLimit,
    /// There are as many entries as may be.
    Full,
    /// Not seen for long enough to say.
    TooShort,
    /// Nothing that lasts points at a full table.
    Steady {
        /// The longest window that says so, seconds.
        seen_seconds: u64,
    },
    /// It grows, and will not be full within this time.
    Distant {
        /// As far as the trend may be drawn out, seconds.
        beyond_seconds: u64,
    },
    /// It will be full if the trend goes on.
    Filling(Filling),
}

/// A trend that ends in a full table.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Filling {
    /// Until it is full: by the median of the slopes. Seconds.
    pub seconds: f64,
    /// By the ninth tenth of the slopes.
    pub earliest: f64,
    /// By the first tenth of the slopes.
    pub latest: f64,
    /// Growth, entries per second: the median.
    pub per_second: f64,
    /// How long the trend was seen, seconds.
    pub seen_seconds: u64,
}

impl Forecast {
    /// Seconds until the table is full, where that can be said.
    pub fn seconds(&self) -> Option<f64> {
        match self {
            Forecast::Full => Some(0.0),
            Forecast::Filling(f) => Some(f.seconds),
            _ => None,
        }
    }

    /// The earliest that it may be, seconds.
    pub fn earliest(&self) -> Option<f64> {
        match self {
            Forecast::Full => Some(0.0),
            Forecast::Filling(f) => Some(f.earliest),
            _ => None,
        }
    }
}

/// From entries over time, oldest first.
pub(super) fn forecast(history: &[(Mono, u32)], now: Mono, entries: u32, limit: u32) -> Forecast {
    if limit == 0 {
        return Forecast::NoLimit;
    }
    if entries >= limit {
        return Forecast::Full;
    }
    let (mut seen, mut beyond, mut soonest) = (None, None, None::<Filling>);
    for window in WINDOWS_MS {
        let Some(trend) = trend(history, now, window) else {
            continue;
        };
        seen = Some(window / 1_000);
        if trend.low <= 0.0 || !trend.even {
            continue;
        }
        let room = (f64::from(limit) - trend.level).max(0.0);
        let filling = Filling {
            seconds: room / trend.median,
            earliest: room / trend.high,
            latest: room / trend.low,
            per_second: trend.median,
            seen_seconds: window / 1_000,
        };
        let horizon = DRAWN_OUT * window / 1_000;
        if filling.seconds > horizon as f64 {
            beyond = Some(horizon);
        } else if soonest.is_none_or(|s| filling.seconds < s.seconds) {
            soonest = Some(filling);
        }
    }
    match (soonest, beyond, seen) {
        (Some(filling), ..) => Forecast::Filling(filling),
        (None, Some(beyond_seconds), _) => Forecast::Distant { beyond_seconds },
        (None, None, Some(seen_seconds)) => Forecast::Steady { seen_seconds },
        (None, None, None) => Forecast::TooShort,
    }
}

/// Slopes of a window, entries per second, and where the trend stands now.
struct Trend {
    low: f64,
    median: f64,
    high: f64,
    level: f64,
    /// Each quarter rises.
    even: bool,
}

/// `None`: there are too few readings of that window.
fn trend(history: &[(Mono, u32)], now: Mono, window: u64) -> Option<Trend> {
    let mut blocks: [Vec<(f64, f64)>; BLOCKS] = Default::default();
    for (at, entries) in history {
        let ago = now.since(*at);
        if ago < window {
            let block = (window - 1 - ago) as usize * BLOCKS / window as usize;
            blocks[block].push((-(ago as f64) / 1_000.0, f64::from(*entries)));
        }
    }
    // The window reaches back to its beginning.
    if blocks[0].is_empty() && blocks[1].is_empty() {
        return None;
    }
    let mut quarters = blocks.chunks(BLOCKS / 4).map(|blocks| {
        let entries = blocks.iter().flatten().map(|(_, entries)| *entries);
        median(&mut entries.collect::<Vec<f64>>())
    });
    let mut before = quarters.next()?;
    let (mut least, mut most) = (f64::INFINITY, f64::NEG_INFINITY);
    for quarter in quarters {
        let rise = quarter - before;
        (least, most) = (least.min(rise), most.max(rise));
        before = quarter;
    }
    let points: Vec<(f64, f64)> = blocks
        .iter()
        .filter(|b| !b.is_empty())
        .map(|block| {
            let time = block.iter().map(|(t, _)| t).sum::<f64>() / block.len() as f64;
            let mut entries: Vec<f64> = block.iter().map(|(_, e)| *e).collect();
            (time, median(&mut entries))
        })
        .collect();
    if points.len() < BLOCKS - MISSING {
        return None;
    }
    let mut slopes = Vec::with_capacity(BLOCKS * BLOCKS / 2);
    for (i, (t, e)) in points.iter().enumerate() {
        for (later, more) in &points[i + 1..] {
            slopes.push((more - e) / (later - t));
        }
    }
    let median_slope = median(&mut slopes);
    let out = (slopes.len() as f64 * LEFT_OUT) as usize;
    let mut levels: Vec<f64> = points.iter().map(|(t, e)| e - t * median_slope).collect();
    Some(Trend {
        low: slopes[out],
        median: median_slope,
        high: slopes[slopes.len() - 1 - out],
        level: median(&mut levels),
        even: least > 0.0 && least >= EVEN * most,
    })
}

/// Sorts, and gives the middle; NaN of nothing, which is above and below no other number.
fn median(numbers: &mut [f64]) -> f64 {
    numbers.sort_by(f64::total_cmp);
    let n = numbers.len();
    let middle = |at: usize| numbers.get(at).copied().unwrap_or(f64::NAN);
    (middle(n.saturating_sub(1) / 2) + middle(n / 2)) / 2.0
}
