//! When to stop asking an upstream that fails, and when to try again. Pure; time is an argument.
//!
//! Closed, everything may pass. After so many failures in a row it opens, and nothing passes for a
//! while. Then it is half-open: one probe at a time passes. A probe whose head comes in closes it
//! on probation: until one fetch has succeeded to its last byte, a single failure opens it again,
//! for twice as long, so that an upstream that sends heads and stalls in bodies is found out too.

use std::time::{Duration, Instant};

use crate::config::BreakerConfig;

/// For how long a request is told to stay away while a probe is under way.
const PROBE_WAIT: Duration = Duration::from_secs(1);

/// The permission to ask. It is given back by exactly one of [`Breaker::succeeded`],
/// [`Breaker::failed`] and [`Breaker::abandoned`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// One of many.
    Free,
    /// The one that finds out whether the upstream is back. Its number tells it from older ones.
    Probe(u64),
}

/// What a breaker is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerState {
    /// Everything passes.
    Closed,
    /// A probe is under way, or will be the next to pass.
    HalfOpen,
    /// Nothing passes.
    Open {
        /// For so much longer.
        remaining: Duration,
    },
}

#[derive(Debug)]
enum State {
    Closed,
    Open { until: Instant },
    HalfOpen { probe: u64 },
}

/// A circuit breaker.
#[derive(Debug)]
pub struct Breaker {
    config: BreakerConfig,
    state: State,
    /// Failures since the last success.
    failures: u32,
    /// How often it opened since the last success: the exponent of the time that it stays open.
    openings: u32,
    /// The number of the last probe.
    probes: u64,
}

impl Breaker {
    /// A closed breaker.
    pub fn new(config: BreakerConfig) -> Self {
        Self { config, state: State::Closed, failures: 0, openings: 0, probes: 0 }
    }

    /// Asks to pass.
    ///
    /// # Errors
    /// After how long to ask again.
    pub fn admit(&mut self, now: Instant) -> Result<Pass, Duration> {
        match self.state {
            State::Closed => Ok(Pass::Free),
            State::HalfOpen { .. } => Err(PROBE_WAIT),
            State::Open { until } if now < until => Err(until - now),
            State::Open { .. } => {
                self.probes += 1;
                self.state = State::HalfOpen { probe: self.probes };
                Ok(Pass::Probe(self.probes))
            }
        }
    }

    /// What it is doing.
    pub fn state(&self, now: Instant) -> BreakerState {
        match self.state {
            State::Closed => BreakerState::Closed,
            State::HalfOpen { .. } => BreakerState::HalfOpen,
            State::Open { until } if now < until => BreakerState::Open { remaining: until - now },
            State::Open { .. } => BreakerState::HalfOpen,
        }
    }

    /// The head of an answer is in. The pass is still held.
    pub fn answered(&mut self, pass: Pass) {
        if self.is_current_probe(pass) {
            self.state = State::Closed;
            self.failures = self.config.failures_max.saturating_sub(1);
        }
    }

    /// A fetch came to its right end, or to an answer that shows an upstream in good health.
    pub fn succeeded(&mut self, pass: Pass) {
        self.answered(pass);
        // Success of what passed before it opened says nothing about now.
        if matches!(self.state, State::Closed) {
            self.failures = 0;
            self.openings = 0;
        }
    }

    /// A fetch failed. With `retry_after` the upstream said how long it wants to be left alone.
    pub fn failed(&mut self, pass: Pass, now: Instant, retry_after: Option<Duration>) {
        let probe_failed = self.is_current_probe(pass);
        if let Some(hold) = retry_after.filter(|hold| !hold.is_zero()) {
            let until = now + hold.min(self.config.retry_after_max);
            // What another answer asked for is not shortened.
            let until = match self.state {
                State::Open { until: other } => until.max(other),
                State::Closed | State::HalfOpen { .. } => until,
            };
            self.failures = self.failures.saturating_add(1);
            self.state = State::Open { until };
            return;
        }
        match self.state {
            State::Closed => {
                self.failures = self.failures.saturating_add(1);
                if self.failures >= self.config.failures_max {
                    self.open(now);
                }
            }
            State::HalfOpen { .. } if probe_failed => self.open(now),
            // Failures of what passed before it opened were to be expected.
            State::HalfOpen { .. } | State::Open { .. } => {}
        }
    }

    /// A fetch was given up by its asker: nothing was learned.
    pub fn abandoned(&mut self, pass: Pass, now: Instant) {
        if self.is_current_probe(pass) {
            self.state = State::Open { until: now };
        }
    }

    fn open(&mut self, now: Instant) {
        let factor = 1u32.checked_shl(self.openings).unwrap_or(u32::MAX);
        let open = self.config.open_min.saturating_mul(factor).min(self.config.open_max);
        self.openings = self.openings.saturating_add(1);
        self.state = State::Open { until: now + open };
    }

    fn is_current_probe(&self, pass: Pass) -> bool {
        matches!((pass, &self.state), (Pass::Probe(mine), State::HalfOpen { probe }) if mine == *probe)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const S: Duration = Duration::from_secs(1);

    fn breaker() -> (Breaker, Instant) {
        (Breaker::new(BreakerConfig::default()), Instant::now())
    }

    fn fail(breaker: &mut Breaker, now: Instant, times: u32) {
        for _ in 0..times {
            let pass = breaker.admit(now).unwrap();
            breaker.failed(pass, now, None);
        }
    }

    #[test]
    fn it_opens_after_five_failures_in_a_row_and_not_before() {
        let (mut breaker, now) = breaker();
        fail(&mut breaker, now, 4);
        let pass = breaker.admit(now).unwrap();
        breaker.succeeded(pass);
        fail(&mut breaker, now, 4);
        assert_eq!(breaker.state(now), BreakerState::Closed);
        fail(&mut breaker, now, 1);
        assert_eq!(breaker.state(now), BreakerState::Open { remaining: S });
        assert_eq!(breaker.admit(now), Err(S));
    }

    #[test]
    fn it_stays_open_twice_as_long_each_time_up_to_a_minute() {
        let (mut breaker, mut now) = breaker();
        fail(&mut breaker, now, 5);
        for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
            assert_eq!(breaker.state(now), BreakerState::Open { remaining: seconds * S });
            now += seconds * S;
            fail(&mut breaker, now, 1);
        }
    }

    #[test]
    fn one_probe_at_a_time_passes_when_it_is_half_open() {
        let (mut breaker, now) = breaker();
        fail(&mut breaker, now, 5);
        let later = now + S;
        let probe = breaker.admit(later).unwrap();
        assert!(breaker.admit(later).is_err());
        breaker.abandoned(probe, later);
        let second = breaker.admit(later).unwrap();
        assert_ne!(probe, second);
        breaker.failed(probe, later, None);
        assert_eq!(breaker.state(later), BreakerState::HalfOpen, "the first probe is history");
        breaker.answered(second);
        assert_eq!(breaker.admit(later), Ok(Pass::Free));
    }

    #[test]
    fn an_upstream_that_stalls_after_its_heads_is_found_out() {
        let (mut breaker, mut now) = breaker();
        for _ in 0..5 {
            let pass = breaker.admit(now).unwrap();
            breaker.answered(pass);
            breaker.failed(pass, now, None);
        }
        for seconds in [1, 2, 4] {
            assert_eq!(breaker.state(now), BreakerState::Open { remaining: seconds * S });
            now += seconds * S;
            let probe = breaker.admit(now).unwrap();
            breaker.answered(probe);
            assert_eq!(breaker.state(now), BreakerState::Closed);
            breaker.failed(probe, now, None);
        }
        now += 8 * S;
        let probe = breaker.admit(now).unwrap();
        breaker.answered(probe);
        breaker.succeeded(probe);
        fail(&mut breaker, now, 4);
        assert_eq!(breaker.state(now), BreakerState::Closed, "all is forgiven after a success");
    }

    #[test]
    fn retry_after_opens_it_at_once_and_five_minutes_are_the_most() {
        let (mut breaker, now) = breaker();
        let pass = breaker.admit(now).unwrap();
        breaker.failed(pass, now, Some(30 * S));
        assert_eq!(breaker.admit(now), Err(30 * S));
        breaker.failed(Pass::Free, now, Some(10 * S));
        assert_eq!(breaker.admit(now), Err(30 * S), "it is not shortened");
        breaker.failed(Pass::Free, now, Some(Duration::MAX));
        assert_eq!(breaker.admit(now), Err(300 * S));
        let probe = breaker.admit(now + 300 * S).unwrap();
        breaker.succeeded(probe);
        assert_eq!(breaker.state(now), BreakerState::Closed);
    }

    #[test]
    fn a_retry_after_of_nothing_is_a_failure_like_others() {
        let (mut breaker, now) = breaker();
        breaker.failed(Pass::Free, now, Some(Duration::ZERO));
        assert_eq!(breaker.state(now), BreakerState::Closed);
    }

    proptest! {
        /// Whatever happens in whatever order: at most one probe is out, it never stays open for
        /// longer than its bounds, and it always lets somebody pass in the end.
        #[test]
        fn it_never_locks_up(steps in proptest::collection::vec((0u8..6, 0u64..90), 0..200)) {
            let (mut breaker, mut now) = breaker();
            let mut held: Vec<Pass> = Vec::new();
            for (action, seconds) in steps {
                match action {
                    0 | 1 => if let Ok(pass) = breaker.admit(now) {
                        if let Pass::Probe(_) = pass {
                            prop_assert_eq!(breaker.state(now), BreakerState::HalfOpen);
                        }
                        held.push(pass);
                    },
                    2 => if let Some(pass) = held.pop() { breaker.succeeded(pass) },
                    3 => if let Some(pass) = held.pop() { breaker.failed(pass, now, None) },
                    4 => if let Some(pass) = held.pop() {
                        breaker.failed(pass, now, Some(Duration::from_secs(seconds * 10)));
                    },
                    _ => if let Some(pass) = held.pop() { breaker.abandoned(pass, now) },
                }
                now += Duration::from_secs(seconds);
                if let BreakerState::Open { remaining } = breaker.state(now) {
                    prop_assert!(remaining <= 300 * S);
                }
            }
            for pass in held {
                breaker.abandoned(pass, now);
            }
            prop_assert!(breaker.admit(now + 300 * S).is_ok());
        }
    }
}
