//! Numbers that follow from a seed, tests that run for many of them, and what was recorded.

#![allow(dead_code, reason = "each test file uses a part")]

use agent::bundle::{Captures, Limits, Recorded, Step, read};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;

/// splitmix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators").
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `end`, 0 for 0.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    /// Never for 0.
    pub fn one_in(&mut self, n: usize) -> bool {
        n > 0 && self.below(n) == 0
    }
}

/// How many seeds: as many as `SEEDS` says.
pub fn seeds(usual: u64) -> u64 {
    let asked = std::env::var("SEEDS").ok();
    asked.and_then(|n| n.parse().ok()).unwrap_or(usual)
}

/// Runs `test` for each seed, or for the one that `SEED` says; the seed of one that fails is told.
pub fn with_seeds(usual: u64, test: impl FnMut(&mut Random, u64)) {
    with_seeds_and(&[], usual, test);
}

/// As [`with_seeds`], after some that once failed.
pub fn with_seeds_and(known: &[u64], usual: u64, mut test: impl FnMut(&mut Random, u64)) {
    let only: Option<u64> = std::env::var("SEED").ok().and_then(|s| s.parse().ok());
    let known = if only.is_some() { &[] } else { known };
    let all = only.map_or(0..seeds(usual), |one| one..one + 1);
    for seed in known.iter().copied().chain(all) {
        let run = AssertUnwindSafe(|| test(&mut Random(seed), seed));
        if let Err(panic) = catch_unwind(run) {
            println!("seed {seed}");
            resume_unwind(panic);
        }
    }
}

/// A file of `tests/corpus`.
pub fn corpus(name: &str) -> Vec<u8> {
    file("corpus", name)
}

/// A file of a folder beside the tests.
pub fn file(folder: &str, name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests");
    let path = path.join(folder).join(name);
    std::fs::read(path).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// What a bundle of the corpus holds: its only reading, and its first pass.
pub fn bundle(name: &str) -> (Captures, Recorded) {
    let mut found = None;
    read(corpus(name).as_slice(), Limits::default(), |step| {
        if let Step::Pass(pass, Some(captures)) = step {
            found.get_or_insert((captures.clone(), *pass));
        }
    })
    .unwrap();
    found.unwrap()
}
