//! What is counted of QUIC.

use outrider_metrics::Counter;
use prometheus_client::registry::Registry;

macro_rules! counters {
    ($($(#[doc = $help:literal])+ $name:ident,)+) => {
        /// What is counted of QUIC. Clones share their values.
        #[derive(Clone, Debug, Default)]
        pub(crate) struct QuicMetrics {
            $($(#[doc = $help])+ pub(crate) $name: Counter,)+
        }

        impl QuicMetrics {
            /// Adds every counter to `registry`.
            pub(crate) fn register(&self, registry: &mut Registry) {
                $(registry.register(stringify!($name), concat!($($help,)+), self.$name.clone());)+
            }
        }
    };
}

counters! {
    /// Handshakes that came to their end
    handshakes,
    /// Connections whose client was first asked to show its address
    retries,
    /// Connections whose client sent its first request before the handshake was over
    early_data_accepted,
    /// Datagrams received
    received_datagrams,
    /// Bytes of datagrams received
    received_bytes,
    /// Datagrams sent
    sent_datagrams,
    /// Bytes of datagrams sent
    sent_bytes,
    /// System calls that sent datagrams
    sends,
    /// Times that the socket did not take a datagram at once
    sends_blocked,
    /// Packets sent and lost, of connections that have ended
    lost_packets,
    /// Requests that clients gave up
    requests_reset,
    /// Connections that went on from another address of their client
    migrations,
    /// Datagrams that came to a shard and belong to another one
    misrouted_datagrams,
    /// Answers that went out from memory without waiting for anything
    immediate_answers,
    /// Digests that requests of the native protocol asked for
    native_wants,
    /// Requests of the native protocol that were refused
    native_refusals,
    /// Datagrams of clients without a connection that were dropped, since too many waited
    strangers_dropped,
    /// Requests that were answered 503, since connections hold as much memory as they may
    requests_refused,
}
