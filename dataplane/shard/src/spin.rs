//! Whether spinning is worth it. Pure: durations come in as arguments.
//!
//! A sleep and a wake cost more than a short wait does, so a shard that is asked again within
//! microseconds is better off looking than sleeping. How long it will have to wait is not known; how
//! long it had to wait lately is.

use std::time::Duration;

/// The most that any configuration may ask for: beyond it a sleep is always cheaper.
pub(crate) const SPIN_MAX: Duration = Duration::from_micros(50);

/// How much of the running mean the newest gap makes up: one eighth.
const WEIGHT_SHIFT: u32 = 3;

/// A gap counts as at most this, so that one quiet second is forgotten after some dozen short gaps.
const GAP_MAX: Duration = Duration::from_millis(1);

/// Decides by the mean of the latest gaps.
#[derive(Debug)]
pub(crate) struct Spin {
    budget: Duration,
    gap_mean_ns: u64,
}

impl Spin {
    /// Spins for at most `budget` (clamped to [`SPIN_MAX`]); never if that is zero.
    pub(crate) fn new(budget: Duration) -> Self {
        Self { budget: budget.min(SPIN_MAX), gap_mean_ns: nanos(GAP_MAX) }
    }

    /// For how long to spin before sleeping.
    pub(crate) fn budget(&self) -> Duration {
        // Worth it when most gaps end within the budget: the mean is then well below it.
        if self.gap_mean_ns < nanos(self.budget) * 3 / 5 { self.budget } else { Duration::ZERO }
    }

    /// Notes how long the shard was without work.
    pub(crate) fn note_gap(&mut self, gap: Duration) {
        let gap_ns = nanos(gap.min(GAP_MAX));
        self.gap_mean_ns =
            self.gap_mean_ns - (self.gap_mean_ns >> WEIGHT_SHIFT) + (gap_ns >> WEIGHT_SHIFT);
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_spins_only_after_short_gaps_and_stops_after_long_ones() {
        let mut spin = Spin::new(Duration::from_micros(50));
        assert_eq!(spin.budget(), Duration::ZERO);
        for _ in 0..64 {
            spin.note_gap(Duration::from_micros(8));
        }
        assert_eq!(spin.budget(), Duration::from_micros(50));
        spin.note_gap(Duration::from_secs(1));
        assert_eq!(spin.budget(), Duration::ZERO);
        for _ in 0..64 {
            spin.note_gap(Duration::from_micros(8));
        }
        assert_eq!(spin.budget(), Duration::from_micros(50));
    }

    #[test]
    fn without_a_budget_it_never_spins_and_a_large_one_is_clamped() {
        let mut never = Spin::new(Duration::ZERO);
        let mut large = Spin::new(Duration::from_secs(1));
        for _ in 0..64 {
            never.note_gap(Duration::ZERO);
            large.note_gap(Duration::ZERO);
        }
        assert_eq!(never.budget(), Duration::ZERO);
        assert_eq!(large.budget(), SPIN_MAX);
    }
}
