//! Latencies in a high dynamic range histogram: three significant digits from a microsecond to an
//! hour, about half a megabyte, no allocation while recording.

use hdrhistogram::Histogram;
use serde::Serialize;

const SIGNIFICANT_DIGITS: u8 = 3;
const LOWEST_NS: u64 = 1_000;
const HIGHEST_NS: u64 = 3_600_000_000_000;

/// Recorded latencies.
#[derive(Clone, Debug)]
pub struct Latency {
    histogram: Histogram<u64>,
}

/// Quantiles in microseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct LatencySummary {
    /// How many were recorded.
    pub count: u64,
    /// Arithmetic mean.
    pub mean_us: f64,
    /// The smallest.
    pub min_us: f64,
    /// Half were at most this.
    pub p50_us: f64,
    /// Three quarters were at most this.
    pub p75_us: f64,
    /// 90 %.
    pub p90_us: f64,
    /// 99 %.
    pub p99_us: f64,
    /// 99.9 %.
    pub p999_us: f64,
    /// 99.99 %.
    pub p9999_us: f64,
    /// The largest.
    pub max_us: f64,
}

impl Default for Latency {
    fn default() -> Self {
        Self::new()
    }
}

impl Latency {
    /// An empty histogram.
    pub fn new() -> Self {
        let histogram = Histogram::new_with_bounds(LOWEST_NS, HIGHEST_NS, SIGNIFICANT_DIGITS)
            .expect("the bounds and digits are constants that the histogram accepts");
        Self { histogram }
    }

    /// Records one latency; what is longer than an hour counts as an hour.
    pub fn record_ns(&mut self, ns: u64) {
        self.histogram.saturating_record(ns);
    }

    /// Records what a closed loop measured, and the requests that it did not send while it waited:
    /// had it sent one every `interval_ns`, they would have taken `ns - interval_ns`,
    /// `ns - 2 * interval_ns`, … An estimate; an open loop measures it.
    pub fn record_corrected_ns(&mut self, ns: u64, interval_ns: u64) {
        self.record_ns(ns);
        if interval_ns == 0 {
            return;
        }
        let mut missing = ns.min(HIGHEST_NS).saturating_sub(interval_ns);
        while missing >= interval_ns {
            self.record_ns(missing);
            missing -= interval_ns;
        }
    }

    /// Takes over what another histogram recorded.
    pub fn add(&mut self, other: &Self) {
        self.histogram
            .add(&other.histogram)
            .expect("both histograms have the same bounds and digits");
    }

    /// How many were recorded.
    pub fn count(&self) -> u64 {
        self.histogram.len()
    }

    /// The quantiles; `None` when nothing was recorded.
    pub fn summary(&self) -> Option<LatencySummary> {
        if self.histogram.is_empty() {
            return None;
        }
        let us = |ns: u64| ns as f64 / 1e3;
        let quantile = |q: f64| us(self.histogram.value_at_quantile(q).min(self.histogram.max()));
        Some(LatencySummary {
            count: self.histogram.len(),
            mean_us: self.histogram.mean() / 1e3,
            min_us: us(self.histogram.min()),
            p50_us: quantile(0.5),
            p75_us: quantile(0.75),
            p90_us: quantile(0.9),
            p99_us: quantile(0.99),
            p999_us: quantile(0.999),
            p9999_us: quantile(0.9999),
            max_us: us(self.histogram.max()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn quantiles_are_right_to_three_digits() {
        let mut latency = Latency::new();
        for ms in 1..=1000 {
            latency.record_ns(ms * MS);
        }
        let summary = latency.summary().unwrap();
        assert!((summary.p50_us - 500_000.0).abs() < 1_000.0);
        assert!((summary.p99_us - 990_000.0).abs() < 1_000.0);
        assert_eq!(summary.count, 1000);
    }

    #[test]
    fn nothing_recorded_has_no_quantiles() {
        assert!(Latency::new().summary().is_none());
    }

    #[test]
    fn a_wait_longer_than_the_interval_counts_for_the_requests_that_were_not_sent() {
        let mut latency = Latency::new();
        for _ in 0..900 {
            latency.record_corrected_ns(MS, MS);
        }
        // A closed loop at one request a millisecond that stops once for 100 ms.
        latency.record_corrected_ns(100 * MS, MS);
        assert_eq!(latency.count(), 900 + 100);
        let summary = latency.summary().unwrap();
        assert!(summary.p50_us < 1_100.0);
        assert!((summary.p99_us - 90_000.0).abs() < 2_000.0, "{summary:?}");
    }

    #[test]
    fn a_correction_without_an_interval_adds_nothing() {
        let mut latency = Latency::new();
        latency.record_corrected_ns(100 * MS, 0);
        assert_eq!(latency.count(), 1);
    }

    #[test]
    fn histograms_add_up() {
        let (mut a, mut b) = (Latency::new(), Latency::new());
        a.record_ns(MS);
        b.record_ns(3 * MS);
        a.add(&b);
        assert_eq!(a.count(), 2);
        assert!((a.summary().unwrap().max_us - 3_000.0).abs() < 5.0);
    }

    #[test]
    fn what_lasts_longer_than_an_hour_is_kept_as_an_hour() {
        let mut latency = Latency::new();
        latency.record_ns(u64::MAX);
        assert!(latency.summary().unwrap().max_us >= 3.59e9);
    }
}
