//! What an answer depends on: the chains that a packet entered, the sets that something was looked up
//! in, and the places that it was translated to.

use crate::netfilter::changes::At;
use std::net::SocketAddr;

/// What the walks of one frontend met.
#[derive(Debug, Default)]
pub(super) struct Met {
    /// Chains and sets, as the program numbers them; each once.
    pub things: Vec<usize>,
    /// Chains and sets that were not there.
    pub missing: Vec<At>,
    /// Destinations after a translation.
    pub targets: Vec<SocketAddr>,
    /// The round in which a thing was met last.
    seen: Vec<u32>,
    round: u32,
}

impl Met {
    /// Nothing was met yet, of so many chains and sets.
    pub fn new(things: usize) -> Met {
        Met {
            seen: vec![0; things],
            round: 1,
            ..Met::default()
        }
    }

    /// A chain or set was met.
    pub fn add(&mut self, thing: usize) {
        if let Some(seen) = self.seen.get_mut(thing)
            && *seen != self.round
        {
            *seen = self.round;
            self.things.push(thing);
        }
    }

    /// Begins anew.
    pub fn clear(&mut self) {
        self.things.clear();
        self.missing.clear();
        self.targets.clear();
        self.round += 1;
    }
}
