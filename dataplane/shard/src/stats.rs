//! What a driver counts. Any thread may read it; only the shard's own thread writes.

use std::sync::atomic::{AtomicU64, Ordering};

/// The counters of one driver, since its start. Reading is racy by a turn, and free of charge.
#[derive(Debug, Default)]
pub struct ShardStats {
    turns: AtomicU64,
    parks: AtomicU64,
    spins_won: AtomicU64,
    spins_lost: AtomicU64,
    stalls: AtomicU64,
}

/// Adds one without a locked instruction: there is one writer.
fn count(counter: &AtomicU64) {
    counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

impl ShardStats {
    /// How often the driver went round.
    pub fn turns(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }

    /// How often the thread slept.
    pub fn parks(&self) -> u64 {
        self.parks.load(Ordering::Relaxed)
    }

    /// How often spinning found work, so that the thread did not have to sleep.
    pub fn spins_won(&self) -> u64 {
        self.spins_won.load(Ordering::Relaxed)
    }

    /// How often spinning found nothing.
    pub fn spins_lost(&self) -> u64 {
        self.spins_lost.load(Ordering::Relaxed)
    }

    /// How often the driver did not come to its turn for longer than its guard timer: a task that
    /// ran for too long, a thread that got no CPU, or an executor that slept with work to do and was
    /// woken by the guard.
    pub fn stalls(&self) -> u64 {
        self.stalls.load(Ordering::Relaxed)
    }

    pub(crate) fn count_turn(&self) {
        count(&self.turns);
    }

    pub(crate) fn count_park(&self) {
        count(&self.parks);
    }

    pub(crate) fn count_spin(&self, won: bool) {
        count(if won { &self.spins_won } else { &self.spins_lost });
    }

    pub(crate) fn count_stall(&self) {
        count(&self.stalls);
    }
}
