//! What the transport counts, for Prometheus.

use std::sync::{Arc, Mutex, PoisonError};

use outrider_metrics::Counter;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::Registry;

use crate::peer::Protocol;
use crate::pins::PinBudget;
use crate::quic::{QuicMetrics, WatchedMemory};

/// Why a connection was ended from this side, or was never served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// Nothing was asked for [`Limits::idle_time`](crate::Limits::idle_time).
    Idle,
    /// A request's head took too long.
    HeaderTime,
    /// A TLS handshake took too long.
    HandshakeTime,
    /// A TLS handshake failed, or something else than TLS was spoken.
    Handshake,
    /// The client took nothing for too long.
    Stalled,
    /// The client took too little while the pin budget was under pressure.
    SlowReader,
    /// The handler could not finish the answer.
    Fault,
    /// The client broke the protocol, or the connection.
    Protocol,
    /// There were too many connections.
    TooMany,
    /// The client gave up too many of its requests.
    Resets,
    /// The client came from too many addresses.
    Migrations,
    /// Connections hold as much memory as they may.
    Memory,
}

impl Reason {
    const ALL: [Self; 12] = [
        Self::Idle,
        Self::HeaderTime,
        Self::HandshakeTime,
        Self::Handshake,
        Self::Stalled,
        Self::SlowReader,
        Self::Fault,
        Self::Protocol,
        Self::TooMany,
        Self::Resets,
        Self::Migrations,
        Self::Memory,
    ];

    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::HeaderTime => "header_time",
            Self::HandshakeTime => "handshake_time",
            Self::Handshake => "handshake",
            Self::Stalled => "stalled",
            Self::SlowReader => "slow_reader",
            Self::Fault => "fault",
            Self::Protocol => "protocol",
            Self::TooMany => "too_many",
            Self::Resets => "resets",
            Self::Migrations => "migrations",
            Self::Memory => "memory",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProtocolLabel {
    protocol: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SchemeLabel {
    scheme: &'static str,
}

/// What the transport counts. Clones share their values; one is enough for all shards.
#[derive(Clone, Debug)]
pub struct TransportMetrics {
    accepted: Family<SchemeLabel, Counter>,
    open: Family<SchemeLabel, Gauge>,
    accept_errors: Counter,
    closed: Family<ReasonLabel, Counter>,
    closed_by_reason: [Counter; Reason::ALL.len()],
    requests: Family<ProtocolLabel, Counter>,
    requests_http1: Counter,
    requests_http2: Counter,
    requests_http3: Counter,
    requests_native: Counter,
    pub(crate) quic: QuicMetrics,
    pub(crate) received_bytes: Counter,
    pub(crate) sent_bytes: Counter,
    budgets: Arc<Mutex<Vec<PinBudget>>>,
    memories: Arc<Mutex<Vec<WatchedMemory>>>,
}

impl Default for TransportMetrics {
    fn default() -> Self {
        let closed: Family<ReasonLabel, Counter> = Family::default();
        let closed_by_reason = Reason::ALL
            .map(|reason| closed.get_or_create_owned(&ReasonLabel { reason: reason.label() }));
        let requests: Family<ProtocolLabel, Counter> = Family::default();
        let of = |protocol| requests.get_or_create_owned(&ProtocolLabel { protocol });
        Self {
            accepted: Family::default(),
            open: Family::default(),
            accept_errors: Counter::default(),
            closed_by_reason,
            closed,
            requests_http1: of("http1"),
            requests_http2: of("http2"),
            requests_http3: of("http3"),
            requests_native: of("native"),
            quic: QuicMetrics::default(),
            requests,
            received_bytes: Counter::default(),
            sent_bytes: Counter::default(),
            budgets: Arc::default(),
            memories: Arc::default(),
        }
    }
}

impl TransportMetrics {
    /// Adds every metric to `registry`, named `transport_…`. Once for each set of clones.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("transport");
        registry.register("connections", "Connections accepted", self.accepted.clone());
        registry.register("connections_open", "Connections open", self.open.clone());
        registry.register(
            "accept_errors",
            "Connections that could not be accepted, for want of descriptors or memory",
            self.accept_errors.clone(),
        );
        registry.register(
            "connections_closed",
            "Connections that were ended from this side, by reason",
            self.closed.clone(),
        );
        registry.register("requests", "Requests", self.requests.clone());
        registry.register(
            "received_bytes",
            "Bytes taken from sockets, TLS included",
            self.received_bytes.clone(),
        );
        registry.register(
            "sent_bytes",
            "Bytes given to sockets, before TLS",
            self.sent_bytes.clone(),
        );
        self.quic.register(registry.sub_registry_with_prefix("quic"));
        let (budgets, memories) = (self.budgets.clone(), self.memories.clone());
        registry.register_collector(Box::new(Held { budgets, memories }));
    }

    /// Includes what a shard's connections over QUIC hold in what is shown.
    pub(crate) fn watch_memory(&self, memory: WatchedMemory) {
        self.memories.lock().unwrap_or_else(PoisonError::into_inner).push(memory);
    }

    /// Includes `budget` in what is shown.
    pub(crate) fn watch_pins(&self, budget: &PinBudget) {
        let mut budgets = self.budgets.lock().unwrap_or_else(PoisonError::into_inner);
        if !budgets.iter().any(|known| known.is_same(budget)) {
            budgets.push(budget.clone());
        }
    }

    pub(crate) fn count_accept_error(&self) {
        self.accept_errors.inc();
    }

    pub(crate) fn count_closed(&self, reason: Reason) {
        self.closed_by_reason[reason as usize].inc();
    }

    /// Connections accepted and open over QUIC.
    pub(crate) fn of_quic(&self) -> (Counter, Gauge) {
        let label = SchemeLabel { scheme: "quic" };
        (self.accepted.get_or_create_owned(&label), self.open.get_or_create_owned(&label))
    }

    pub(crate) fn of_listener(&self, secure: bool) -> (Counter, Gauge) {
        let label = SchemeLabel { scheme: if secure { "https" } else { "http" } };
        (self.accepted.get_or_create_owned(&label), self.open.get_or_create_owned(&label))
    }

    pub(crate) fn requests_of(&self, protocol: Protocol) -> &Counter {
        match protocol {
            Protocol::Http1 => &self.requests_http1,
            Protocol::Http2 => &self.requests_http2,
            Protocol::Http3 => &self.requests_http3,
            Protocol::Native => &self.requests_native,
        }
    }
}

/// Reads the pin budgets, and what connections over QUIC hold, when the metrics are read.
#[derive(Debug)]
struct Held {
    budgets: Arc<Mutex<Vec<PinBudget>>>,
    memories: Arc<Mutex<Vec<WatchedMemory>>>,
}

fn gauge(bytes: usize) -> ConstGauge<i64> {
    ConstGauge::new(i64::try_from(bytes).unwrap_or(i64::MAX))
}

impl Collector for Held {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let budgets = self.budgets.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let memories = self.memories.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let shown: [(&str, &str, usize); 4] = [
            (
                "pinned_bytes",
                "Bytes of the cache that are held by clients which have not taken them yet",
                budgets.iter().map(PinBudget::pinned_bytes).sum(),
            ),
            (
                "pinned_bytes_max",
                "The bound of pinned_bytes",
                budgets.iter().map(PinBudget::total_bytes_max).sum(),
            ),
            (
                "quic_memory_bytes",
                "Bytes beside the cache that connections over QUIC hold, as they are counted",
                memories.iter().map(WatchedMemory::bytes).sum(),
            ),
            (
                "quic_memory_bytes_max",
                "The bound of quic_memory_bytes",
                memories.iter().map(|memory| memory.bytes_max).sum(),
            ),
        ];
        for (name, help, bytes) in shown {
            let gauge = gauge(bytes);
            let encoded = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            gauge.encode(encoded)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_counter_of_its_own() {
        let metrics = TransportMetrics::default();
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        metrics.watch_pins(&PinBudget::new(1 << 20, 1 << 20));
        for (count, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, count);
            for _ in 0..count {
                metrics.count_closed(reason);
            }
        }
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for (count, reason) in Reason::ALL.into_iter().enumerate() {
            let line = format!(
                "transport_connections_closed_total{{reason=\"{}\"}} {count}\n",
                reason.label()
            );
            assert!(text.contains(&line), "{line} not in:\n{text}");
        }
        assert!(text.contains("transport_pinned_bytes 0\n"), "{text}");
        assert!(text.contains("transport_pinned_bytes_max 1048576\n"), "{text}");
    }
}
