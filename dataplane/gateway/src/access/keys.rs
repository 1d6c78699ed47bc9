//! A token names a key that is not known: its issuer may have a new one. Then its keys are looked for at once instead of
//! at the next time, and who shows the token waits for that for a while. What is looked for is bounded by time and not
//! by who asks: between two looks unknown keys are refused at once, at no cost.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The most issuers: one bit each.
pub const ISSUERS_MAX: usize = 64;

/// How long who shows an unknown key waits.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(3);
/// Between two glances at whether it was looked.
pub(crate) const GLANCE: Duration = Duration::from_millis(20);
/// Who may wait on one shard; more are refused at once.
pub(crate) const WAITING_MAX: usize = 256;

/// Which issuers' keys are wanted. Shared by all shards and who looks for keys.
pub struct KeyLooks {
    started: Instant,
    /// One bit for each issuer, by its place.
    wanted: AtomicU64,
    /// Before this time keys of the issuer are not wanted again, in milliseconds since the start.
    not_before_ms: Box<[AtomicU64]>,
    wake: Box<dyn Fn() + Send + Sync>,
}

impl std::fmt::Debug for KeyLooks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyLooks").field("wanted", &self.wanted).finish_non_exhaustive()
    }
}

impl KeyLooks {
    /// For issuers by their places; those that are not `fetched` have no other keys to be had. `wake` is called when
    /// one is wanted, by any thread, and must not block.
    pub fn new(fetched: &[bool], wake: Box<dyn Fn() + Send + Sync>) -> Self {
        let first = |fetched: &bool| AtomicU64::new(if *fetched { 0 } else { u64::MAX });
        Self {
            started: Instant::now(),
            wanted: AtomicU64::new(0),
            not_before_ms: fetched.iter().take(ISSUERS_MAX).map(first).collect(),
            wake,
        }
    }

    fn ms(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.started).as_millis();
        u64::try_from(since).unwrap_or(u64::MAX - 1)
    }

    /// Wants keys of an issuer. False: they were looked for a moment ago, or cannot be.
    pub(crate) fn want(&self, issuer: usize, now: Instant) -> bool {
        let Some(not_before) = self.not_before_ms.get(issuer) else { return false };
        let bit = 1 << issuer;
        if self.wanted.load(Ordering::Acquire) & bit != 0 {
            return true;
        }
        if self.ms(now) < not_before.load(Ordering::Acquire) {
            return false;
        }
        if self.wanted.fetch_or(bit, Ordering::AcqRel) & bit == 0 {
            (self.wake)();
        }
        true
    }

    /// Whether it is still to be looked for them.
    pub fn is_wanted(&self, issuer: usize) -> bool {
        issuer < ISSUERS_MAX && self.wanted.load(Ordering::Acquire) & (1 << issuer) != 0
    }

    /// It was looked for keys of an issuer, whatever came of it; what was found is in the tables. They are not wanted
    /// again before that time.
    pub fn looked(&self, issuer: usize, not_before: Instant) {
        if let Some(time) = self.not_before_ms.get(issuer) {
            time.store(self.ms(not_before), Ordering::Release);
            self.wanted.fetch_and(!(1 << issuer), Ordering::AcqRel);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn unknown_keys_are_looked_for_once_and_then_not_for_a_while() {
        let woken = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&woken);
        let looks = KeyLooks::new(
            &[false, true, true],
            Box::new(move || {
                count.fetch_add(1, Ordering::SeqCst);
            }),
        );
        let now = looks.started;
        let at = |s: u64| now + Duration::from_secs(s);
        assert!(!looks.want(0, at(5)), "its keys come from nowhere");
        assert!(!looks.want(3, at(5)) && !looks.want(100, at(5)));
        for _ in 0..1000 {
            assert!(looks.want(1, at(5)));
        }
        assert_eq!(woken.load(Ordering::SeqCst), 1);
        assert!(looks.is_wanted(1) && !looks.is_wanted(2));
        assert!(looks.want(2, at(5)), "another issuer has nothing to do with it");
        looks.looked(1, at(15));
        assert!(!looks.is_wanted(1) && looks.is_wanted(2));
        for second in 5..15 {
            assert!(!looks.want(1, at(second)));
        }
        assert_eq!(woken.load(Ordering::SeqCst), 2);
        assert!(looks.want(1, at(15)));
        assert_eq!(woken.load(Ordering::SeqCst), 3);
    }
}
