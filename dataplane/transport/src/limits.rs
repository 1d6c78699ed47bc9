//! The bounds of a connection.

use std::time::Duration;

/// The bounds of a connection, with defaults. What exceeds one is closed, and counted with the
/// bound's name.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections of one listener at a time (10,000). More are closed at once.
    pub connections_max: usize,
    /// Bytes of a request's head (32 KiB): beyond it HTTP/1 answers 431, HTTP/2 resets the stream.
    pub header_bytes_max: usize,
    /// Time for a request's head, from its first byte on (10 s); and for the first byte of the first
    /// request.
    pub header_time: Duration,
    /// Time for a TLS handshake (10 s).
    pub handshake_time: Duration,
    /// Time for which a connection is kept without a request (75 s).
    pub idle_time: Duration,
    /// Time for which a handler waits for more of a request's body (60 s).
    pub body_idle_time: Duration,
    /// Bytes a second of a request's body, averaged over 30 s of waiting for it (128).
    pub body_bytes_per_second_min: u64,
    /// Time for which a client may take nothing of what waits for it (120 s).
    pub stall_time: Duration,
    /// Bytes a second that a client has to take while the pin budget is under pressure, over 2 s
    /// (8 KiB).
    pub pressed_bytes_per_second_min: u64,
    /// Time for which a closed connection is still listened to, so that the client gets to read its
    /// answer before a reset destroys it (3 s).
    pub linger_time: Duration,
    /// Concurrent requests of one HTTP/2 connection (64).
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
            body_idle_time: Duration::from_secs(60),
            body_bytes_per_second_min: 128,
            stall_time: Duration::from_secs(120),
            pressed_bytes_per_second_min: 8 * 1024,
            linger_time: Duration::from_secs(3),
            streams_max: 64,
        }
    }
}
