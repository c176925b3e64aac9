//! Hash maps for keys of a few words. The walk looks up a point in every chain that it enters; the
//! standard library's hasher, made for keys of any length, would be a good part of its time.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::LazyLock;

pub(super) type Map<K, V> = HashMap<K, V, Seed>;
pub(super) type Set<K> = HashSet<K, Seed>;

/// Two secrets of this process: which keys collide cannot be known from outside.
static SECRETS: LazyLock<(u64, u64)> = LazyLock::new(|| {
    let state = RandomState::new();
    (state.hash_one(1_u8), state.hash_one(2_u8) | 1)
});

/// Makes [`Words`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Seed(u64, u64);

impl Default for Seed {
    fn default() -> Self {
        Seed(SECRETS.0, SECRETS.1)
    }
}

impl BuildHasher for Seed {
    type Hasher = Words;

    fn build_hasher(&self) -> Words {
        Words {
            state: self.0,
            secret: self.1,
        }
    }
}

/// Folds word after word by a multiplication of twice the width.
pub(super) struct Words {
    state: u64,
    secret: u64,
}

impl Words {
    fn fold(&mut self, word: u64) {
        let wide = u128::from(self.state ^ word) * u128::from(self.secret);
        self.state = (wide as u64) ^ ((wide >> 64) as u64).rotate_left(17);
    }
}

impl Hasher for Words {
    fn finish(&self) -> u64 {
        self.state ^ (self.state >> 29)
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.fold(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, n: u8) {
        self.fold(n.into());
    }

    fn write_u16(&mut self, n: u16) {
        self.fold(n.into());
    }

    fn write_u32(&mut self, n: u32) {
        self.fold(n.into());
    }

    fn write_u64(&mut self, n: u64) {
        self.fold(n);
    }

    fn write_usize(&mut self, n: usize) {
        self.fold(n as u64);
    }
}
