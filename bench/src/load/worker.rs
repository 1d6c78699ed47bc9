//! One thread's part of a load.

use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;

use super::quic::QuicOptions;
use super::schedule::Schedule;
use super::source::Source;
use super::target::Server;
use super::window::Clock;
use crate::arguments::Protocol;

/// What one thread is to do.
#[derive(Debug)]
pub struct Worker {
    /// Whom to ask.
    pub server: Server,
    /// What for.
    pub source: Source,
    /// How TLS is spoken; `None` for plain HTTP.
    pub tls: Option<Arc<ClientConfig>>,
    /// By which protocol; the lean client knows HTTP/1.1 only.
    pub protocol: Protocol,
    /// Headers of every request; the lean client has them in its source.
    pub headers: Vec<(String, String)>,
    /// How many connections.
    pub connections: u32,
    /// How many requests at a time on each; 1 with HTTP/1.1.
    pub streams: u32,
    /// When requests are due; `None` for a closed loop.
    pub schedule: Option<Schedule>,
    /// When counting begins and ends.
    pub clock: Clock,
    /// Ends the load after so many answers.
    pub requests: Option<u64>,
    /// The longest wait for anything.
    pub timeout: Duration,
    /// How the lean client reads.
    pub reading: Reading,
    /// How QUIC is spoken.
    pub quic: QuicOptions,
    /// A buffer for the request that is being made.
    pub request: Vec<u8>,
}

/// How the lean client reads and waits. It decides what a byte costs the server: see the manual.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reading {
    /// The most that it reads at once; unless given, a TLS record, or 32 KiB of plain HTTP.
    pub read_bytes: Option<usize>,
    /// The kernel's receive buffer; unless given, the kernel adapts it.
    pub receive_buffer_bytes: Option<usize>,
    /// It asks for events without end instead of sleeping, so that the server is not charged for
    /// waking it.
    pub spin: bool,
}
