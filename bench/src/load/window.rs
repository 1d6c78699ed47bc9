//! When counting begins and ends. No I/O; the time comes in as an argument.

use std::time::{Duration, Instant};

use super::tally::Tally;

/// So many failures one after another, and no good answer between them, end a load: for each
/// connection of it, and at least [`FAILURES_IN_A_ROW_MIN`].
const FAILURES_IN_A_ROW_PER_CONNECTION: u64 = 4;
/// See [`FAILURES_IN_A_ROW_PER_CONNECTION`].
const FAILURES_IN_A_ROW_MIN: u64 = 20;

/// The times of a load, the same for all its threads.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// When the load starts; nanoseconds count from here.
    pub start: Instant,
    /// When counting begins.
    pub begin: Instant,
    /// When counting ends, unless a number of requests ends it.
    pub end: Option<Instant>,
}

/// Where a load is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nothing counts yet.
    WarmUp,
    /// What happens is counted.
    Counting,
    /// Open loop: nothing new is due, and answers are awaited.
    Draining,
    /// Nothing more to do.
    Over,
}

/// The window of one thread.
#[derive(Debug)]
pub struct Window {
    clock: Clock,
    phase: Phase,
    requests: Option<u64>,
    completed: u64,
    failures_in_a_row: u64,
    failures_in_a_row_max: u64,
    began_at: Instant,
    ended_at: Instant,
    cpu_at_begin: Duration,
}

impl Window {
    /// A window that ends with its clock, after `requests` answers, or when nothing works.
    pub fn new(clock: Clock, requests: Option<u64>, connections: u32) -> Self {
        let per_connection = u64::from(connections) * FAILURES_IN_A_ROW_PER_CONNECTION;
        Self {
            clock,
            phase: Phase::WarmUp,
            requests,
            completed: 0,
            failures_in_a_row: 0,
            failures_in_a_row_max: per_connection.max(FAILURES_IN_A_ROW_MIN),
            began_at: clock.begin,
            ended_at: clock.begin,
            cpu_at_begin: Duration::ZERO,
        }
    }

    /// Moves on to the phase of `now`.
    pub fn turn(&mut self, now: Instant, tally: &mut Tally) -> Phase {
        if self.phase == Phase::WarmUp && now >= self.clock.begin {
            self.phase = Phase::Counting;
            self.began_at = now;
            self.cpu_at_begin = thread_cpu();
            self.completed = 0;
            tally.begin();
        }
        let gave_up = self.failures_in_a_row >= self.failures_in_a_row_max;
        if self.phase == Phase::Counting && (self.at_end(now) || gave_up) {
            self.phase = Phase::Draining;
            self.ended_at = now;
            tally.window = now.duration_since(self.began_at);
            tally.client_cpu = thread_cpu().saturating_sub(self.cpu_at_begin);
        }
        if gave_up {
            self.phase = Phase::Over;
        }
        self.phase
    }

    fn at_end(&self, now: Instant) -> bool {
        self.clock.end.is_some_and(|end| now >= end)
            || self.requests.is_some_and(|requests| self.completed >= requests)
    }

    /// An answer or a failure.
    pub fn completed(&mut self, good: bool) {
        self.completed += 1;
        self.failures_in_a_row = if good { 0 } else { self.failures_in_a_row + 1 };
    }

    /// Whether bytes count now.
    pub fn counts(&self) -> bool {
        self.phase == Phase::Counting
    }

    /// Whether nothing new is to be sent.
    pub fn draining(&self) -> bool {
        matches!(self.phase, Phase::Draining | Phase::Over)
    }

    /// Whether a load by number has all its answers, or the window has ended.
    pub fn over_for_closed_loop(&self) -> bool {
        self.draining()
            || (self.phase == Phase::Counting
                && self.requests.is_some_and(|requests| self.completed >= requests))
    }

    /// When the window ended.
    pub fn ended_at(&self) -> Instant {
        self.ended_at
    }

    /// The next moment at which the phase changes by time.
    pub fn next_boundary(&self, now: Instant) -> Option<Instant> {
        [Some(self.clock.begin), self.clock.end].into_iter().flatten().find(|time| *time > now)
    }

    /// Nanoseconds from the start of the load to `now`.
    pub fn ns(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.clock.start).as_nanos())
            .unwrap_or(u64::MAX)
    }

    /// When counting begins, in the same nanoseconds.
    pub fn begin_ns(&self) -> u64 {
        self.ns(self.clock.begin)
    }
}

/// CPU time of the calling thread.
pub fn thread_cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock(end: Option<u64>) -> Clock {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        Clock { start, begin: at(100), end: end.map(at) }
    }

    #[test]
    fn counting_begins_after_the_warm_up_and_ends_on_time() {
        let clock = clock(Some(300));
        let (mut window, mut tally) = (Window::new(clock, None, 1), Tally::default());
        let at = |ms| clock.start + Duration::from_millis(ms);
        assert_eq!(window.turn(at(99), &mut tally), Phase::WarmUp);
        tally.responses = 7;
        assert_eq!(window.turn(at(101), &mut tally), Phase::Counting);
        assert_eq!(tally.responses, 0);
        tally.responses = 3;
        assert_eq!(window.turn(at(303), &mut tally), Phase::Draining);
        assert_eq!((tally.responses, tally.window), (3, Duration::from_millis(202)));
    }

    #[test]
    fn a_number_of_answers_counts_from_the_end_of_the_warm_up() {
        let clock = clock(None);
        let (mut window, mut tally) = (Window::new(clock, Some(2), 1), Tally::default());
        let at = |ms| clock.start + Duration::from_millis(ms);
        for _ in 0..5 {
            window.completed(true);
        }
        assert_eq!(window.turn(at(100), &mut tally), Phase::Counting);
        window.completed(true);
        assert!(!window.over_for_closed_loop());
        window.completed(true);
        assert!(window.over_for_closed_loop());
        assert_eq!(window.turn(at(150), &mut tally), Phase::Draining);
    }

    #[test]
    fn a_server_that_only_fails_ends_the_load() {
        let clock = clock(None);
        let (mut window, mut tally) = (Window::new(clock, Some(1_000_000), 1), Tally::default());
        for _ in 0..FAILURES_IN_A_ROW_MIN - 1 {
            window.completed(false);
        }
        window.completed(true);
        assert_eq!(window.turn(clock.start, &mut tally), Phase::WarmUp);
        for _ in 0..FAILURES_IN_A_ROW_MIN {
            window.completed(false);
        }
        assert_eq!(window.turn(clock.start, &mut tally), Phase::Over);
    }
}
