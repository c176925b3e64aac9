//! The one place that reads clocks.

use model::time::{Millis, Mono, Now};
use std::time::{SystemTime, UNIX_EPOCH};

/// Both clocks, now. `CLOCK_BOOTTIME` also counts while the node sleeps.
pub fn now() -> Now {
    let wall = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let wall = u64::try_from(wall.as_millis()).unwrap_or(u64::MAX);
    Now {
        mono: Mono(milliseconds(libc::CLOCK_BOOTTIME)),
        wall: Millis(wall),
    }
}

/// CPU time that this thread has used, milliseconds.
pub fn thread_cpu() -> u64 {
    milliseconds(libc::CLOCK_THREAD_CPUTIME_ID)
}

fn milliseconds(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a valid place for the kernel to write to, and nothing else.
    let result = unsafe { libc::clock_gettime(clock, &raw mut time) };
    if result != 0 {
        return 0;
    }
    time.tv_sec as u64 * 1_000 + time.tv_nsec as u64 / 1_000_000
}
