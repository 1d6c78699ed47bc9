//! The bounds of a connection.

use std::time::Duration;

/// The bounds of a connection, with defaults.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections of one listener at a time; more are closed at once.
    pub connections_max: usize,
    /// Bytes of a request's head.
    pub header_bytes_max: usize,
    /// Time for a request's head, from its first byte on.
    pub header_time: Duration,
    /// Time for a TLS handshake.
    pub handshake_time: Duration,
    /// Time for which a connection without a request is kept.
    pub idle_time: Duration,
    /// Concurrent requests of one h2 connection.
    pub streams_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 10_000,
            header_bytes_max: 32 * 1024,
            header_time: Duration::from_secs(10),
            handshake_time: Duration::from_secs(10),
            idle_time: Duration::from_secs(75),
            streams_max: 64,
        }
    }
}
