//! The uplink's Prometheus metrics. Labels are the configured upstreams and constants, never
//! anything that a client or an upstream can choose, so their number is bounded.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// An upstream.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Upstream {
    upstream: String,
}

/// A lane of an upstream.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Lane {
    upstream: String,
    kind: &'static str,
}

/// How a token request ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TokenOutcome {
    upstream: String,
    outcome: &'static str,
}

/// How a fetch ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    upstream: String,
    kind: &'static str,
    outcome: &'static str,
}

/// All of them. Cheap to clone; every clone is the same metrics.
#[derive(Clone, Debug)]
pub struct UplinkMetrics {
    requests: Family<Outcome, Counter>,
    tokens: Family<TokenOutcome, Counter>,
    received_bytes: Family<Upstream, Counter>,
    in_flight: Family<Lane, Gauge>,
    breaker: Family<Lane, Gauge>,
    first_byte: Family<Lane, Histogram, fn() -> Histogram>,
}

/// From 1 ms to 16 s.
fn latency_buckets() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 15))
}

impl Default for UplinkMetrics {
    fn default() -> Self {
        Self {
            requests: Family::default(),
            tokens: Family::default(),
            received_bytes: Family::default(),
            in_flight: Family::default(),
            breaker: Family::default(),
            first_byte: Family::new_with_constructor(latency_buckets),
        }
    }
}

/// The lanes' names in labels.
pub(crate) const MANIFEST: &str = "manifest";
pub(crate) const BLOB: &str = "blob";
pub(crate) const KEEP: &str = "keep";

impl UplinkMetrics {
    /// Adds them to a registry, under `uplink_…`.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("uplink");
        registry.register(
            "fetches",
            "Fetches from upstreams by how they ended",
            self.requests.clone(),
        );
        registry.register(
            "token_requests",
            "Requests to token services by how they ended",
            self.tokens.clone(),
        );
        registry.register_with_unit(
            "received",
            "Bytes of bodies received from upstreams",
            Unit::Bytes,
            self.received_bytes.clone(),
        );
        registry.register(
            "fetches_in_flight",
            "Fetches from upstreams that are under way, waiting ones included",
            self.in_flight.clone(),
        );
        registry.register(
            "breaker_state",
            "Circuit breaker of an upstream: 0 closed, 1 half-open, 2 open",
            self.breaker.clone(),
        );
        registry.register_with_unit(
            "first_byte",
            "Time from a fetch's start to the head of its answer, tokens and redirects included",
            Unit::Seconds,
            self.first_byte.clone(),
        );
    }

    /// A fetch is over.
    pub(crate) fn finished(&self, upstream: &str, kind: &'static str, outcome: &'static str) {
        let label = Outcome { upstream: upstream.to_owned(), kind, outcome };
        self.requests.get_or_create(&label).inc();
    }

    /// Time to the head of an answer.
    pub(crate) fn first_byte(&self, upstream: &str, kind: &'static str, time: Duration) {
        let label = Lane { upstream: upstream.to_owned(), kind };
        self.first_byte.get_or_create(&label).observe(time.as_secs_f64());
    }

    /// A token request is over.
    pub(crate) fn token(&self, upstream: &str, outcome: &'static str) {
        let label = TokenOutcome { upstream: upstream.to_owned(), outcome };
        self.tokens.get_or_create(&label).inc();
    }

    /// The counter of received bytes of an upstream.
    pub(crate) fn received(&self, upstream: &str) -> Counter {
        self.received_bytes.get_or_create_owned(&Upstream { upstream: upstream.to_owned() })
    }

    /// The state of a lane's breaker.
    pub(crate) fn breaker(&self, upstream: &str, kind: &'static str) -> Gauge {
        self.breaker.get_or_create_owned(&Lane { upstream: upstream.to_owned(), kind })
    }

    /// How many fetches of a lane are under way.
    pub(crate) fn in_flight(&self, upstream: &str, kind: &'static str) -> Gauge {
        self.in_flight.get_or_create_owned(&Lane { upstream: upstream.to_owned(), kind })
    }
}
