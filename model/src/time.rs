//! Time as a value. The model reads no clock: the shell passes what it read.

use serde::{Deserialize, Serialize};

/// Milliseconds since the Unix epoch, as the node's own clock says.
///
/// Used for what a person reads ("since"). Durations inside the ledger are differences of
/// [`Mono`], which a clock that jumps cannot bend.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Millis(pub u64);

/// Milliseconds of a clock that never goes back (`CLOCK_BOOTTIME`), origin unspecified.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Mono(pub u64);

impl Mono {
    /// Milliseconds from `earlier` to `self`; 0 when `earlier` is later.
    pub fn since(self, earlier: Mono) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// One instant on both clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Now {
    /// For durations.
    pub mono: Mono,
    /// For people.
    pub wall: Millis,
}
