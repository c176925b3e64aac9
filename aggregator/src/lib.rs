//! The aggregator of vipwitness: remembers what each node said, and shows it.
//!
//! `ingest` takes agents' streams in, `fleet` remembers (pure), `view` says (pure), `http` and
//! `metrics` show. Reading order: [`fleet`], [`view`], [`ingest`], [`inspect`] (asks a
//! node to look now), [`objects`] (what the API server says) and [`api_drift`] (what of it is wrong),
//! [`http`].

pub mod api_drift;
pub mod auth;
pub mod fleet;
pub mod http;
pub mod ingest;
pub mod inspect;
pub mod metrics;
pub mod objects;
pub mod tls;
pub mod view;

use model::time::{Millis, Mono, Now};
use std::sync::{Arc, OnceLock, RwLock};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// The fleet as all tasks share it. Held for short, never across an await.
pub type SharedFleet = Arc<RwLock<fleet::Fleet>>;

/// This instant, on both clocks.
pub fn now() -> Now {
    static START: OnceLock<Instant> = OnceLock::new();
    let wall = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Now {
        mono: Mono(START.get_or_init(Instant::now).elapsed().as_millis() as u64),
        wall: Millis(wall.as_millis() as u64),
    }
}
