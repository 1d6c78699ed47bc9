//! Bounded waits on a condition, instead of sleeps.

use std::time::{Duration, Instant};

/// The longest any condition is waited for. Generous, since a shared machine can be slow: a test that
/// gets here has failed.
pub const WAIT_MAX: Duration = Duration::from_secs(60);

/// How often a condition is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Waits until `condition` holds, and panics with `what` after [`WAIT_MAX`].
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < WAIT_MAX, "waited {WAIT_MAX:?} in vain until {what}");
        std::thread::sleep(POLL_INTERVAL);
    }
}
