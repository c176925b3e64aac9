//! Seeded: counters that wrap and begin anew, tables that fill, and tables that only look so.

use super::*;
use crate::time::Mono;

/// splitmix64; the seed of a test that fails is printed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    /// About normal, of deviation 1: twelve uniform numbers.
    fn normal(&mut self) -> f64 {
        let sum: f64 = (0..12).map(|_| self.below(1 << 32) as f64).sum();
        sum / f64::from(u32::MAX) - 6.0
    }
}

/// Runs with many seeds; the seed of one that fails is printed.
#[expect(clippy::disallowed_macros, reason = "a failing test shows its seed")]
fn with_seeds(seeds: u64, mut test: impl FnMut(&mut Random)) {
    for seed in 0..seeds {
        let run = std::panic::AssertUnwindSafe(|| test(&mut Random(seed)));
        if let Err(panic) = std::panic::catch_unwind(run) {
            println!("seed {seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

fn counters(value: u32) -> Counters<u32> {
    Counter::ALL.into_iter().map(|c| (c, value)).collect()
}

fn sample(entries: u32, limit: u32, cpus: &[u32]) -> Sample {
    Sample {
        entries,
        limit,
        cpus: (cpus.iter().enumerate())
            .map(|(n, value)| CpuCounters {
                cpu: n as u16,
                counters: counters(*value),
            })
            .collect(),
        ..Sample::default()
    }
}

fn total(c: &Conntrack) -> u64 {
    c.totals.get(Counter::Drop).unwrap()
}

/// Whatever CPUs count, however often they wrap: the total grows by what was counted.
#[test]
fn totals_do_not_wrap() {
    with_seeds(200, |random| {
        let mut truth: Vec<u64> = (0..1 + random.below(8))
            .map(|_| u64::from(u32::MAX) - random.below(100_000_000))
            .collect();
        let start: u64 = truth.iter().sum();
        let (mut meter, mut now, mut last) = (Meter::default(), Mono(1), 0);
        for step in 0..400 {
            let kernel: Vec<u32> = truth.iter().map(|t| *t as u32).collect();
            let seen = meter.take(now, sample(0, 10, &kernel));
            let counted = truth.iter().sum::<u64>() - start;
            assert_eq!(total(&seen), start + counted, "step {step}");
            assert!(total(&seen) >= last, "step {step}");
            last = total(&seen);
            let ms = 1_000 + random.below(14_000);
            now.0 += ms;
            for t in &mut truth {
                // Up to what a CPU can count.
                *t += random.below(ms * 10_000);
            }
        }
    });
}

/// A counter that begins anew (the namespace is another one, the module was loaded again) does not
/// lower the total, and does not look like four thousand million.
#[test]
fn a_counter_that_begins_anew_counts_from_nothing() {
    with_seeds(200, |random| {
        let mut meter = Meter::default();
        let before = random.below(3_000_000_000) as u32;
        meter.take(Mono(0), sample(0, 10, &[before, 7]));
        let after = random.below(u64::from(before).min(50_000)) as u32;
        let seen = meter.take(Mono(5_000), sample(0, 10, &[after, 7]));
        assert_eq!(total(&seen), u64::from(before) + 7 + u64::from(after));
        assert_eq!(seen.lately(Counter::Drop), u64::from(after));
    });
    // Far apart, a wrap is not told from it: the smaller answer.
    let mut meter = Meter::default();
    meter.take(Mono(0), sample(0, 10, &[u32::MAX]));
    let seen = meter.take(Mono(3_600_000), sample(0, 10, &[9]));
    assert_eq!(total(&seen), u64::from(u32::MAX) + 9);
    // What was counted meanwhile was not counted lately.
    assert_eq!(seen.recent, None);
}

#[test]
fn cpus_may_leave_and_come_back() {
    let mut meter = Meter::default();
    meter.take(Mono(0), sample(0, 10, &[100, 50]));
    // The second is gone: its share stays.
    let seen = meter.take(Mono(5_000), sample(0, 10, &[110]));
    assert_eq!((total(&seen), seen.lately(Counter::Drop)), (160, 10));
    // It is back and had counted meanwhile; a third is new.
    let seen = meter.take(Mono(10_000), sample(0, 10, &[110, 53, 4]));
    assert_eq!((total(&seen), seen.lately(Counter::Drop)), (167, 17));
}

#[test]
fn what_a_kernel_does_not_tell_is_not_made_up() {
    let mut meter = Meter::default();
    let mut old = sample(5, 10, &[3]);
    let known: Counters<u32> = counters(3)
        .iter()
        .filter(|(c, _)| !matches!(c, Counter::ClashResolve | Counter::ChainTooLong))
        .collect();
    old.cpus[0].counters = known;
    let first = meter.take(Mono(0), old.clone());
    assert_eq!(first.recent, None);
    let seen = meter.take(Mono(5_000), old);
    assert_eq!(seen.totals.get(Counter::ClashResolve), None);
    let recent = seen.recent.unwrap();
    assert_eq!(recent.increases.get(Counter::ChainTooLong), None);
    assert_eq!(recent.per_second(Counter::ChainTooLong), None);
    assert_eq!(recent.per_second(Counter::Drop), Some(0.0));
}

#[test]
fn lately_is_the_last_five_minutes() {
    let mut meter = Meter::default();
    let mut seen = None;
    for step in 0..200u32 {
        let at = Mono(u64::from(step) * 5_000);
        seen = Some(meter.take(at, sample(0, 10, &[step * 10])));
    }
    let recent = seen.unwrap().recent.unwrap();
    assert_eq!(recent.ms, 300_000);
    assert_eq!(recent.increases.get(Counter::Drop), Some(600));
    assert_eq!(recent.per_second(Counter::Drop), Some(2.0));
}

/// Readings every 5 s of a table whose entries are `entries(seconds)`; gives the last answer, and each.
fn watch(seconds: u64, limit: u32, mut entries: impl FnMut(f64) -> f64) -> Vec<Forecast> {
    let mut meter = Meter::default();
    (0..=seconds / 5)
        .map(|n| {
            let is = entries((n * 5) as f64).clamp(0.0, f64::from(limit)) as u32;
            let at = Mono(77_000 + n * 5_000);
            meter.take(at, sample(is, limit, &[0])).forecast
        })
        .collect()
}

/// A table that fills at a steady rate under noise is told in time, and the truth is within the bounds
/// nearly always.
#[test]
fn a_table_that_fills_is_told_with_the_truth_within_bounds() {
    let (mut told, mut within, mut close) = (0, 0, 0);
    with_seeds(300, |random| {
        let limit = 100_000 + random.below(900_000) as u32;
        let start = f64::from(limit) * (0.1 + 0.4 * random.below(100) as f64 / 100.0);
        // Full within 5 to 25 minutes.
        let full_at = 300.0 + random.below(1_200) as f64;
        let rate = (f64::from(limit) - start) / full_at;
        // Noise of up to what grows in ten seconds.
        let noise = rate * random.below(10) as f64;
        let until = (full_at * 0.8) as u64;
        let answers = watch(until, limit, |t| start + rate * t + noise * random.normal());
        let last_at = (until / 5 * 5) as f64;
        if let Some(Forecast::Filling(f)) = answers.last() {
            told += 1;
            let truth = full_at - last_at;
            within += u32::from(f.earliest <= truth && truth <= f.latest);
            close += u32::from((f.seconds - truth).abs() < 0.25 * truth);
            assert!(f.earliest <= f.seconds && f.seconds <= f.latest, "{f:?}");
        }
    });
    assert!(
        told >= 285 && within * 100 >= told * 95 && close * 100 >= told * 95,
        "of 300: told {told}, truth within bounds {within}, within a quarter {close}"
    );
}

/// Bursts that end within a minute, steps that stay, and plain noise: never a forecast, however high.
#[test]
fn bursts_and_steps_do_not_fool() {
    with_seeds(300, |random| {
        let limit = 262_144u32;
        let base = f64::from(limit) * (0.05 + 0.4 * random.below(100) as f64 / 100.0);
        let noise = base * 0.1 * random.below(100) as f64 / 100.0;
        let room = f64::from(limit) - base;
        let at = 200.0 + random.below(600) as f64;
        let rise = 5.0 + random.below(50) as f64;
        let high = room * (0.2 + 0.75 * random.below(100) as f64 / 100.0);
        let stays = random.below(2) == 0;
        let entries = |t: f64, random: &mut Random| {
            let burst = if t < at {
                0.0
            } else if t < at + rise {
                high * (t - at) / rise
            } else if stays {
                high
            } else {
                // Entries go when their time is up.
                high * (1.0 - (t - at - rise) / 120.0).max(0.0)
            };
            base + burst + noise * random.normal()
        };
        for (n, answer) in watch(1_500, limit, |t| entries(t, random))
            .iter()
            .enumerate()
        {
            assert!(
                !matches!(answer, Forecast::Filling(_)),
                "after {} s (burst at {at}, {rise} s, stays {stays}): {answer:?}",
                n * 5
            );
        }
    });
}

#[test]
fn a_fast_rise_is_told_soon_and_a_slow_one_from_far() {
    // Full after 240 s.
    let fast = watch(235, 240_000, |t| t * 1_000.0);
    let first = fast
        .iter()
        .position(|f| matches!(f, Forecast::Filling(_)))
        .unwrap();
    assert!(first * 5 <= 120, "told after {} s", first * 5);
    assert_eq!(fast[2], Forecast::TooShort);
    // Full after three hours: told by the window of an hour.
    let slow = watch(3_700, 10_800, |t| t);
    let Some(Forecast::Filling(f)) = slow.last() else {
        panic!("{:?}", slow.last())
    };
    assert_eq!(f.seen_seconds, 3_600);
    assert!((f.seconds - 7_100.0).abs() < 60.0, "{f:?}");
    // Before, the short windows said that it grows, and no more.
    assert_eq!(
        slow[140],
        Forecast::Distant {
            beyond_seconds: 3_000
        }
    );
}

#[test]
fn what_cannot_be_forecast_says_so() {
    assert_eq!(
        watch(600, 1_000, |_| 7.0).last(),
        Some(&Forecast::Steady { seen_seconds: 600 })
    );
    assert_eq!(
        watch(600, 1_000, |t| 900.0 - t).last().unwrap().seconds(),
        None
    );
    let mut meter = Meter::default();
    let unlimited = meter.take(Mono(0), sample(5, 0, &[0]));
    assert_eq!(unlimited.forecast, Forecast::NoLimit);
    assert_eq!(unlimited.fill(), None);
    let full = meter.take(Mono(5_000), sample(10, 10, &[0]));
    assert_eq!(full.forecast, Forecast::Full);
    assert_eq!(full.forecast.seconds(), Some(0.0));
    // Readings that are too far apart.
    let mut meter = Meter::default();
    let mut last = None;
    for n in 0..10u32 {
        let at = Mono(u64::from(n) * 30_000);
        last = Some(meter.take(at, sample(n * 10, 1_000, &[0])).forecast);
    }
    assert_eq!(last, Some(Forecast::TooShort));
}

/// Memory is bounded, whatever the times are.
#[test]
fn history_is_bounded() {
    let mut meter = Meter::default();
    for n in 0..10_000u64 {
        meter.take(Mono(n), sample(1, 10, &[0]));
    }
    assert!(
        format!("{meter:?}").matches("Mono").count() <= 2 * crate::limits::CONNTRACK_READINGS + 1
    );
}

fn counted(grown: &[(Counter, u64)], entries: u32) -> Conntrack {
    let mut increases: Counters<u64> = Counter::ALL.into_iter().map(|c| (c, 0)).collect();
    for (counter, n) in grown {
        increases.set(*counter, *n);
    }
    Conntrack {
        entries,
        limit: 1_000,
        buckets: Some(1_024),
        timeouts: [(Timeout::TcpEstablished, 432_000)].into(),
        totals: increases,
        recent: Some(Recent {
            ms: 300_000,
            increases,
        }),
        forecast: if entries >= 1_000 {
            Forecast::Full
        } else {
            Forecast::Steady { seen_seconds: 600 }
        },
    }
}

fn words(grown: &[(Counter, u64)], entries: u32) -> Vec<&'static str> {
    let all = hints(&counted(grown, entries));
    assert!(all.iter().all(|h| h.source.contains("conntrack")));
    all.into_iter().map(|h| h.hint).collect()
}

#[test]
fn counters_point_at_their_causes() {
    use Counter::*;
    assert_eq!(words(&[], 10), [""; 0]);
    // What is no trouble by itself.
    assert_eq!(
        words(
            &[(Found, 9), (Insert, 9), (SearchRestart, 9), (Invalid, 9)],
            10
        ),
        [""; 0]
    );
    assert_eq!(words(&[], 1_000), ["table_full", "long_timeout"]);
    assert_eq!(
        words(&[(Drop, 5), (EarlyDrop, 9)], 990),
        ["drop", "early_drop", "long_timeout"]
    );
    let says = |grown: &[(Counter, u64)], entries| hints(&counted(grown, entries))[0].says.clone();
    assert!(says(&[(Drop, 5)], 990).contains("is or was full"));
    assert!(says(&[(Drop, 5)], 10).contains("not seen full"));
    // Every unresolved clash counts as drop and insert_failed: it is not counted twice here.
    assert_eq!(
        words(&[(Drop, 5), (InsertFailed, 5), (ClashResolve, 2)], 10),
        ["insert_race"]
    );
    assert_eq!(
        words(&[(Drop, 7), (InsertFailed, 5), (ClashResolve, 2)], 10),
        ["drop", "insert_race"]
    );
    assert!(says(&[(Drop, 7), (InsertFailed, 5), (ClashResolve, 2)], 10).starts_with("2 packets"));
    assert_eq!(
        words(&[(Drop, 5), (InsertFailed, 5)], 10),
        ["insert_failed"]
    );
    assert_eq!(words(&[(ClashResolve, 2)], 10), ["race_resolved"]);
    // A long chain is insert_failed, too, but no drop.
    assert_eq!(
        words(&[(InsertFailed, 5), (ChainTooLong, 5)], 10),
        ["chain_toolong"]
    );
    // ctnetlink's own long chains are no insert_failed.
    assert_eq!(words(&[(ChainTooLong, 5)], 10), ["chain_toolong"]);
}

#[test]
fn it_reads_well() {
    let c = counted(&[(Counter::Drop, 1_203), (Counter::EarlyDrop, 40)], 970);
    assert_eq!(
        verdict(&c),
        "97 % full (970 of 1,000); 1,203 packets dropped in the last 5 min 0 s that no lost race \
         explains; the table is or was full"
    );
    let mut filling = counted(&[], 810);
    filling.forecast = Forecast::Filling(Filling {
        seconds: 700.0,
        earliest: 540.0,
        latest: 1_200.0,
        per_second: 0.27,
        seen_seconds: 600,
    });
    assert_eq!(
        verdict(&filling),
        "81 % full (810 of 1,000); full in about 11 min 40 s (between 9 min 0 s and 20 min 0 s) if the \
         last 10 min 0 s go on"
    );
    let shares = [0.0, 0.004, 0.5, 0.9956, 0.9999, 1.0].map(super::say::percent);
    assert_eq!(
        shares,
        ["0 %", "0.4 %", "50 %", "99.6 %", "99.9 %", "100 %"]
    );
    let text = conntrack_text(&c);
    assert!(text.contains("LOSS      drop: 1,203 packets"), "{text}");
    assert!(
        text.contains("drop                           1,203               1,203"),
        "{text}"
    );
    let json = conntrack_json(&c);
    assert_eq!(json.full_percent, Some(97.0));
    assert_eq!(json.counters[4].per_second, Some(4.01));
}
