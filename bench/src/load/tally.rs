//! What a load counted: answers, bytes, latencies, and every kind of failure with its first example.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::latency::Latency;

/// Why a request did not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// No connection.
    Connect,
    /// TLS failed.
    Tls,
    /// The connection ended or broke before the answer began.
    Closed,
    /// The body was cut off.
    ShortBody,
    /// The answer was not HTTP, or of a kind that the client does not read.
    Protocol,
    /// No answer in time.
    Timeout,
    /// Another status than was asked for.
    Status,
    /// Another length than was expected.
    Length,
    /// The body has another digest.
    Digest,
}

/// A failed request, or a failed attempt to connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Its kind.
    pub kind: FailureKind,
    /// What happened, for a human.
    pub text: String,
}

impl Failure {
    /// A failure of this kind.
    pub fn new(kind: FailureKind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into() }
    }
}

impl From<rustls::Error> for Failure {
    fn from(error: rustls::Error) -> Self {
        Self::new(FailureKind::Tls, error.to_string())
    }
}

/// How often something failed, and how it said so the first time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FailureCount {
    /// How often.
    pub count: u64,
    /// The first one's text.
    pub first: String,
}

/// What one load counted within its window.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Good answers: right status, length and, where it was asked for, digest.
    pub responses: u64,
    /// Bytes of bodies, counted as they came in.
    pub body_bytes: u64,
    /// From when a request was sent (closed loop) or should have been (open loop) to the last byte.
    pub latency: Latency,
    /// Open loop: how much later than due a request was sent although a connection was free. This
    /// is the client's own doing; it should be small beside the latency.
    pub send_lag: Latency,
    /// How many answers had each status.
    pub statuses: BTreeMap<u16, u64>,
    /// Failures by kind, those of the warm-up too.
    pub failures: BTreeMap<FailureKind, FailureCount>,
    /// Open loop: requests that were due, and never sent or never answered. They stand in the
    /// latencies with the time that they had waited until the end.
    pub unanswered: u64,
    /// Connections that were opened again during the load.
    pub reconnects: u64,
    /// The TLS cipher suite that was agreed on.
    pub cipher: Option<String>,
    /// Length of the window.
    pub window: Duration,
    /// CPU time of the client's thread in it.
    pub client_cpu: Duration,
    /// Time in which the lean client waited for events and none came; it is CPU time if it spins.
    pub client_idle: Duration,
}

impl Tally {
    /// Begins the window: forgets what was counted, but not what failed.
    pub fn begin(&mut self) {
        let failures = std::mem::take(&mut self.failures);
        let cipher = self.cipher.take();
        *self = Self { failures, cipher, reconnects: self.reconnects, ..Self::default() };
    }

    /// Counts a failure.
    pub fn fail(&mut self, failure: Failure) {
        self.failures
            .entry(failure.kind)
            .or_insert(FailureCount { count: 0, first: failure.text })
            .count += 1;
    }

    /// How many failures there were.
    pub fn failed(&self) -> u64 {
        self.failures.values().map(|failure| failure.count).sum()
    }

    /// Adds what another thread of the same load counted.
    pub fn add(&mut self, other: &Self) {
        self.responses += other.responses;
        self.body_bytes += other.body_bytes;
        self.latency.add(&other.latency);
        self.send_lag.add(&other.send_lag);
        for (status, count) in &other.statuses {
            *self.statuses.entry(*status).or_default() += count;
        }
        for (kind, failure) in &other.failures {
            let entry = self
                .failures
                .entry(*kind)
                .or_insert_with(|| FailureCount { count: 0, first: failure.first.clone() });
            entry.count += failure.count;
        }
        self.unanswered += other.unanswered;
        self.reconnects += other.reconnects;
        if self.cipher.is_none() {
            self.cipher.clone_from(&other.cipher);
        }
        self.window = self.window.max(other.window);
        self.client_cpu += other.client_cpu;
        self.client_idle += other.client_idle;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_failure_of_a_kind_is_kept_and_all_are_counted() {
        let mut tally = Tally::default();
        tally.fail(Failure::new(FailureKind::Status, "503"));
        tally.fail(Failure::new(FailureKind::Status, "404"));
        assert_eq!(tally.failures[&FailureKind::Status].first, "503");
        assert_eq!(tally.failed(), 2);
    }

    #[test]
    fn the_window_forgets_the_warm_up_but_not_its_failures() {
        let mut tally = Tally { responses: 5, body_bytes: 7, ..Tally::default() };
        tally.latency.record_ns(1_000_000);
        tally.fail(Failure::new(FailureKind::Tls, "x"));
        tally.begin();
        assert_eq!((tally.responses, tally.body_bytes, tally.latency.count()), (0, 0, 0));
        assert_eq!(tally.failed(), 1);
    }

    #[test]
    fn threads_add_up() {
        let mut a = Tally { responses: 1, ..Tally::default() };
        let mut b = Tally { responses: 2, ..Tally::default() };
        b.fail(Failure::new(FailureKind::Closed, "x"));
        b.statuses.insert(200, 2);
        a.add(&b);
        a.add(&b);
        assert_eq!((a.responses, a.failed(), a.statuses[&200]), (5, 2, 4));
    }
}
