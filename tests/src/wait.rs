//! Waiting for a condition with a deadline; nothing in the laboratory sleeps and hopes.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Calls `look` every 50 ms until it gives something. An error after `limit` that says what was
/// waited for and, when `look` failed last, why.
pub fn until<T>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        let reason = match look() {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        if start.elapsed() >= limit {
            match reason {
                Some(error) => return Err(error.context(format!("waited {limit:?} for {what}"))),
                None => bail!("waited {limit:?} for {what}"),
            }
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
