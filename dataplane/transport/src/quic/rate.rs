//! How often a client does what is allowed now and then. Pure: the time comes in as an argument.
//!
//! One that opens streams and rate them at once keeps below every limit of streams and costs as much as
//! one that waits for its answers (CVE-2023-44487, there for HTTP/2). One that comes from another address
//! with every packet has a path validated for each.

use std::time::{Duration, Instant};

/// Over how long the rate is averaged, so that a client which drops a page of requests goes on.
const WINDOW: Duration = Duration::from_secs(5);

/// Counts in windows.
#[derive(Debug)]
pub(crate) struct Rate {
    window_since: Instant,
    count: u32,
}

impl Rate {
    pub(crate) fn new(now: Instant) -> Self {
        Self { window_since: now, count: 0 }
    }

    /// Counts one; true when there were more than `per_second_max` in the window.
    pub(crate) fn note(&mut self, now: Instant, per_second_max: u32) -> bool {
        if now.saturating_duration_since(self.window_since) >= WINDOW {
            *self = Self::new(now);
        }
        self.count += 1;
        self.count > per_second_max.saturating_mul(WINDOW.as_secs() as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_forgiven_and_a_stream_of_them_is_not() {
        let start = Instant::now();
        let mut rate = Rate::new(start);
        assert!(!(0..500).any(|_| rate.note(start, 100)));
        assert!(rate.note(start, 100));
        let later = start + WINDOW;
        assert!(!(0..500).any(|_| rate.note(later, 100)));
    }
}
