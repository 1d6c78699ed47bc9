//! When a connection has to be ended. Pure: the time and what the connection is doing come in as
//! arguments.

use std::time::{Duration, Instant};

use crate::limits::Limits;
use crate::metrics::Reason;

/// How long a client is watched before it is called slow.
const PRESSED_WINDOW: Duration = Duration::from_secs(2);

/// What a connection is doing right now.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Observation {
    /// Requests that came in so far.
    pub(crate) requests: u64,
    /// Some of them are being answered.
    pub(crate) in_flight: bool,
    /// Something came in after them.
    pub(crate) head_started: bool,
    /// Something waits for the client to take it: in the socket, or in a stream's window.
    pub(crate) output_waits: bool,
    /// Bytes that the socket took so far.
    pub(crate) sent_bytes: u64,
    /// The connection waits for the client to close its side.
    pub(crate) closing: bool,
    /// The pin budget is under pressure.
    pub(crate) pressed: bool,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing until this time, if nothing changes.
    Keep(Option<Instant>),
    /// It is to be shut down in good order.
    Retire,
    /// It is to be dropped.
    Close(Reason),
    /// It has lingered long enough.
    Leave,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Between requests.
    Idle,
    /// A head is coming in.
    Head,
    /// Answering.
    Busy,
    /// Shut down in good order for having been idle, and not ended yet.
    Retiring,
    /// Waiting for the other side to close.
    Closing,
}

/// The clocks of one connection.
#[derive(Debug)]
pub(crate) struct Watch {
    phase: Phase,
    phase_since: Instant,
    requests: u64,
    /// When the client last took something, or nothing waited for it.
    progress_at: Instant,
    sent_bytes: u64,
    /// Since when, and from which byte on, its speed is being measured.
    window_since: Instant,
    window_sent_bytes: u64,
}

impl Watch {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            phase: Phase::Head,
            phase_since: now,
            requests: 0,
            progress_at: now,
            sent_bytes: 0,
            window_since: now,
            window_sent_bytes: 0,
        }
    }

    /// To be called whenever the connection has done something, and at the time that the last call
    /// asked for.
    pub(crate) fn check(&mut self, now: Instant, limits: &Limits, seen: Observation) -> Verdict {
        self.follow(now, seen);
        match self.phase {
            Phase::Closing => due(now, self.phase_since + limits.linger_time, Verdict::Leave),
            Phase::Retiring => {
                due(now, self.phase_since + limits.linger_time, Verdict::Close(Reason::Idle))
            }
            Phase::Head => {
                due(now, self.phase_since + limits.header_time, Verdict::Close(Reason::HeaderTime))
            }
            Phase::Idle => {
                let deadline = self.phase_since + limits.idle_time;
                if now >= deadline {
                    self.enter(Phase::Retiring, now);
                    return Verdict::Retire;
                }
                Verdict::Keep(Some(deadline))
            }
            Phase::Busy if !seen.output_waits => Verdict::Keep(None),
            Phase::Busy => self.check_output(now, limits, seen),
        }
    }

    fn follow(&mut self, now: Instant, seen: Observation) {
        let phase = if seen.closing {
            Phase::Closing
        } else if seen.in_flight || seen.output_waits {
            Phase::Busy
        } else if seen.head_started {
            Phase::Head
        } else {
            Phase::Idle
        };
        let stays_retiring = self.phase == Phase::Retiring && phase == Phase::Idle;
        // A request that came and went since the last look is a new beginning as well.
        if (phase != self.phase && !stays_retiring) || seen.requests != self.requests {
            self.enter(phase, now);
        }
        self.requests = seen.requests;
        if !seen.output_waits {
            self.window_since = now;
            self.window_sent_bytes = seen.sent_bytes;
        }
        if !seen.output_waits || seen.sent_bytes != self.sent_bytes {
            self.progress_at = now;
        }
        self.sent_bytes = seen.sent_bytes;
    }

    fn enter(&mut self, phase: Phase, now: Instant) {
        self.phase = phase;
        self.phase_since = now;
    }

    fn check_output(&mut self, now: Instant, limits: &Limits, seen: Observation) -> Verdict {
        let stalled_at = self.progress_at + limits.stall_time;
        if now >= stalled_at {
            return Verdict::Close(Reason::Stalled);
        }
        let watched = now.saturating_duration_since(self.window_since);
        if watched >= PRESSED_WINDOW {
            let taken = u128::from(seen.sent_bytes - self.window_sent_bytes) * 1000;
            let owed = u128::from(limits.pressed_bytes_per_second_min) * watched.as_millis();
            if seen.pressed && taken < owed {
                return Verdict::Close(Reason::SlowReader);
            }
            self.window_since = now;
            self.window_sent_bytes = seen.sent_bytes;
        }
        Verdict::Keep(Some(stalled_at.min(self.window_since + PRESSED_WINDOW)))
    }
}

fn due(now: Instant, deadline: Instant, verdict: Verdict) -> Verdict {
    if now >= deadline { verdict } else { Verdict::Keep(Some(deadline)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Clock {
        start: Instant,
        watch: Watch,
        limits: Limits,
    }

    impl Clock {
        fn new() -> Self {
            let start = Instant::now();
            Self { start, watch: Watch::new(start), limits: Limits::default() }
        }

        fn at(&self, seconds: f64) -> Instant {
            self.start + Duration::from_secs_f64(seconds)
        }

        fn check(&mut self, seconds: f64, seen: Observation) -> Verdict {
            let now = self.at(seconds);
            self.watch.check(now, &self.limits, seen)
        }
    }

    const IDLE: Observation = Observation {
        requests: 1,
        in_flight: false,
        head_started: false,
        output_waits: false,
        sent_bytes: 0,
        closing: false,
        pressed: false,
    };

    #[test]
    fn the_first_request_has_to_come_within_the_header_time() {
        let mut clock = Clock::new();
        let silent = Observation { requests: 0, head_started: true, ..IDLE };
        assert_eq!(clock.check(9.9, silent), Verdict::Keep(Some(clock.at(10.0))));
        assert_eq!(clock.check(10.0, silent), Verdict::Close(Reason::HeaderTime));
    }

    #[test]
    fn a_head_that_dribbles_in_is_not_kept_alive_by_each_byte() {
        let mut clock = Clock::new();
        let answered = Observation { requests: 1, ..IDLE };
        assert_eq!(clock.check(1.0, answered), Verdict::Keep(Some(clock.at(76.0))));
        let head = Observation { head_started: true, ..answered };
        for second in 5..15 {
            assert_eq!(clock.check(f64::from(second), head), Verdict::Keep(Some(clock.at(15.0))));
        }
        assert_eq!(clock.check(15.0, head), Verdict::Close(Reason::HeaderTime));
    }

    #[test]
    fn an_idle_connection_is_retired_and_then_dropped_if_that_did_not_help() {
        let mut clock = Clock::new();
        assert_eq!(clock.check(1.0, IDLE), Verdict::Keep(Some(clock.at(76.0))));
        assert_eq!(clock.check(76.0, IDLE), Verdict::Retire);
        assert_eq!(clock.check(77.0, IDLE), Verdict::Keep(Some(clock.at(79.0))));
        assert_eq!(clock.check(79.0, IDLE), Verdict::Close(Reason::Idle));
    }

    #[test]
    fn each_request_starts_the_idle_time_anew_though_it_was_never_seen_in_flight() {
        let mut clock = Clock::new();
        clock.check(1.0, IDLE);
        let next = Observation { requests: 2, ..IDLE };
        assert_eq!(clock.check(70.0, next), Verdict::Keep(Some(clock.at(145.0))));
    }

    #[test]
    fn a_handler_may_take_as_long_as_it_likes() {
        let mut clock = Clock::new();
        let busy = Observation { in_flight: true, pressed: true, ..IDLE };
        assert_eq!(clock.check(1.0, busy), Verdict::Keep(None));
        assert_eq!(clock.check(10_000.0, busy), Verdict::Keep(None));
    }

    #[test]
    fn a_client_that_takes_nothing_is_stalled_and_one_that_takes_a_little_is_not() {
        let mut clock = Clock::new();
        let mut seen = Observation { in_flight: true, output_waits: true, ..IDLE };
        for minute in 1..100 {
            seen.sent_bytes += 1;
            assert!(matches!(clock.check(f64::from(minute) * 60.0, seen), Verdict::Keep(Some(_))));
        }
        assert!(matches!(clock.check(99.0 * 60.0 + 119.0, seen), Verdict::Keep(Some(_))));
        assert_eq!(clock.check(99.0 * 60.0 + 120.0, seen), Verdict::Close(Reason::Stalled));
    }

    #[test]
    fn under_pressure_a_slow_reader_goes_within_seconds_and_a_fast_one_stays() {
        for (bytes_per_second, stays) in [(8 * 1024, true), (8 * 1024 - 1, false), (0, false)] {
            let mut clock = Clock::new();
            let mut seen =
                Observation { in_flight: true, output_waits: true, pressed: true, ..IDLE };
            clock.check(0.0, seen);
            let mut verdict = Verdict::Keep(None);
            for second in 1..=4 {
                seen.sent_bytes += bytes_per_second;
                verdict = clock.check(f64::from(second), seen);
                if !matches!(verdict, Verdict::Keep(_)) {
                    break;
                }
            }
            let kept = matches!(verdict, Verdict::Keep(_));
            assert_eq!(kept, stays, "{bytes_per_second} bytes a second: {verdict:?}");
        }
    }

    #[test]
    fn without_pressure_a_slow_reader_stays_and_is_looked_at_every_two_seconds() {
        let mut clock = Clock::new();
        let seen = Observation { in_flight: true, output_waits: true, ..IDLE };
        assert_eq!(clock.check(0.0, seen), Verdict::Keep(Some(clock.at(2.0))));
        assert_eq!(clock.check(2.0, seen), Verdict::Keep(Some(clock.at(4.0))));
        let pressed = Observation { pressed: true, ..seen };
        assert_eq!(clock.check(4.0, pressed), Verdict::Close(Reason::SlowReader));
    }

    #[test]
    fn a_closed_connection_lingers_and_is_left() {
        let mut clock = Clock::new();
        let closing = Observation { closing: true, ..IDLE };
        assert_eq!(clock.check(1.0, closing), Verdict::Keep(Some(clock.at(4.0))));
        assert_eq!(clock.check(4.0, closing), Verdict::Leave);
    }
}
