//! When each request of an open loop is due. Pure: the time since the start comes in as an argument.
//!
//! The schedule never waits for the server. A request that could not be sent when it was due, since
//! every connection still waited for an answer, keeps its due time, and its latency counts from
//! there. So a server that stops for a second shows as a second of late answers and not as one.

/// Nanoseconds in a second.
const SECOND_NS: f64 = 1e9;

/// The due times of evenly spaced requests.
#[derive(Clone, Debug)]
pub struct Schedule {
    interval_ns: f64,
    /// Where in its first interval this schedule starts, so that several make one even stream.
    phase_ns: f64,
    next: u64,
    end_ns: u64,
}

impl Schedule {
    /// `rate_per_s` requests a second from 0 to `end_ns`, which is not included. It is part `part`
    /// of `parts` that run side by side and make `rate_per_s * parts` in all.
    pub fn new(rate_per_s: f64, end_ns: u64, part: u32, parts: u32) -> Self {
        assert!(rate_per_s > 0.0, "a rate is above zero");
        assert!(part < parts, "a part is one of the parts");
        let interval_ns = SECOND_NS / rate_per_s;
        let phase_ns = interval_ns * f64::from(part) / f64::from(parts);
        Self { interval_ns, phase_ns, next: 0, end_ns }
    }

    /// When the next request is due; `None` when there is none before the end.
    pub fn next_due_ns(&self) -> Option<u64> {
        let due = self.due_ns(self.next);
        (due < self.end_ns).then_some(due)
    }

    /// Takes the next request if it is due at `now_ns`, and says when it was due.
    pub fn take(&mut self, now_ns: u64) -> Option<u64> {
        let due = self.next_due_ns().filter(|due| *due <= now_ns)?;
        self.next += 1;
        Some(due)
    }

    /// Takes the next request before it is due, for a sender that waits until then itself.
    pub fn reserve(&mut self) -> Option<u64> {
        let due = self.next_due_ns()?;
        self.next += 1;
        Some(due)
    }

    // Each due time comes from its index, not from the one before, so that rounding does not add up.
    fn due_ns(&self, index: u64) -> u64 {
        (self.phase_ns + index as f64 * self.interval_ns) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::latency::Latency;

    const MS: u64 = 1_000_000;
    const S: u64 = 1_000 * MS;

    #[test]
    fn requests_are_evenly_spaced_and_end_before_the_end() {
        let mut schedule = Schedule::new(4.0, S, 0, 1);
        let mut due = Vec::new();
        while let Some(ns) = schedule.take(u64::MAX) {
            due.push(ns);
        }
        assert_eq!(due, [0, 250 * MS, 500 * MS, 750 * MS]);
    }

    #[test]
    fn nothing_is_due_before_its_time() {
        let mut schedule = Schedule::new(1000.0, S, 0, 1);
        assert_eq!(schedule.take(0), Some(0));
        assert_eq!(schedule.take(MS - 1), None);
        assert_eq!(schedule.take(MS), Some(MS));
    }

    #[test]
    fn a_rate_that_divides_no_second_does_not_drift() {
        let mut schedule = Schedule::new(333_333.0, 100 * S, 0, 1);
        let mut count = 0_u64;
        while schedule.reserve().is_some() {
            count += 1;
        }
        assert_eq!(count, 33_333_300);
    }

    #[test]
    fn parts_side_by_side_make_one_even_stream() {
        let mut due: Vec<u64> = Vec::new();
        for part in 0..4 {
            let mut schedule = Schedule::new(250.0, S, part, 4);
            while let Some(ns) = schedule.reserve() {
                due.push(ns);
            }
        }
        due.sort_unstable();
        assert_eq!(due.len(), 1000);
        assert!(due.windows(2).all(|pair| pair[1] - pair[0] == MS));
    }

    /// A server that answers in 1 ms but stops from 1 s to 2 s, one connection, 500 requests a
    /// second: what a closed loop would call one slow answer in thousands.
    fn latencies_with_a_stall() -> Latency {
        let mut schedule = Schedule::new(500.0, 4 * S, 0, 1);
        let mut latency = Latency::new();
        let mut now = 0;
        while let Some(due) = schedule.next_due_ns() {
            now = now.max(due);
            let due = schedule.take(now).unwrap();
            let answered = if (S..2 * S).contains(&now) { 2 * S } else { now + MS };
            latency.record_ns(answered - due);
            now = answered;
        }
        latency
    }

    #[test]
    fn a_stall_of_the_server_is_seen_by_every_request_that_was_due_in_it() {
        let latency = latencies_with_a_stall();
        assert_eq!(latency.count(), 2000);
        // Due in the stalled second: 500 requests; and the backlog takes another second to clear.
        // So half of all requests are late, and the median of those about half a second.
        let summary = latency.summary().unwrap();
        assert!(summary.p50_us <= 1_100.0, "{summary:?}");
        assert!(summary.p75_us > 400_000.0, "{summary:?}");
        assert!((990_000.0..=1_002_000.0).contains(&summary.max_us), "{summary:?}");
    }
}
