//! `[quic]`: HTTP/3.

use outrider_transport::quic::QuicSettings;
use serde::{Deserialize, Serialize};

use super::{Invalid, bounded};
use crate::units::Size;

/// HTTP/3, on the UDP port of `listen.https`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QuicSection {
    /// Whether it is served, and advertised by answers over HTTPS (`Alt-Svc`). Default true.
    pub enabled: bool,
    /// The largest UDP payload: each path gets what it takes, up to this. Default 1452; up to 8952 (or
    /// more) where the network has jumbo frames.
    pub mtu_max: u16,
    /// The buffers of each UDP socket, as far as the system allows. Default 4MiB.
    pub socket_buffer: Size,
    /// Handshakes under way on a shard above which a client first has to show that its address is its
    /// own. Default 256.
    pub retry_above: usize,
    /// Requests that one client may give up a second, averaged over five, before its connection is
    /// closed. Default 100.
    pub resets_per_second_max: u32,
    /// Memory of a shard for request bodies that come in. Default 64MiB.
    pub upload_memory: Size,
    /// Memory of all shards together, in equal parts, that connections may hold beside the RAM arena.
    /// Default 512MiB; 48KiB for each of `limits.connections` is a good measure.
    pub memory: Size,
    /// Whether a client that was here before may send its first request at once (0-RTT). Only reads by
    /// digest are answered then. Default true.
    pub early_data: bool,
    /// Clients that are remembered for that. Default 16384.
    pub sessions_max: usize,
}

impl Default for QuicSection {
    fn default() -> Self {
        let settings = QuicSettings::default();
        QuicSection {
            enabled: true,
            mtu_max: settings.mtu_max,
            socket_buffer: Size::mib(4),
            retry_above: settings.retry_above,
            resets_per_second_max: settings.resets_per_second_max,
            upload_memory: Size(settings.upload_bytes_max as u64),
            memory: Size(settings.memory_bytes_max as u64),
            early_data: settings.early_data,
            sessions_max: settings.sessions_max,
        }
    }
}

impl QuicSection {
    pub(super) fn check(&self) -> Result<(), Invalid> {
        bounded("quic.mtu_max", self.mtu_max, 1200, 65_000)?;
        bounded("quic.socket_buffer", self.socket_buffer, Size(64 << 10), Size::mib(1024))?;
        bounded("quic.retry_above", self.retry_above, 0, 1_000_000)?;
        bounded("quic.resets_per_second_max", self.resets_per_second_max, 1, 1_000_000)?;
        bounded("quic.upload_memory", self.upload_memory, Size(0), Size::gib(64))?;
        bounded("quic.memory", self.memory, Size::mib(1), Size::gib(1024))?;
        bounded("quic.sessions_max", self.sessions_max, 1, 10_000_000)
    }

    /// As the transport takes it, for one of so many shards.
    pub(crate) fn settings(&self, shards: usize) -> QuicSettings {
        let memory_bytes = usize::try_from(self.memory.0).unwrap_or(usize::MAX);
        QuicSettings {
            memory_bytes_max: memory_bytes.div_ceil(shards),
            mtu_max: self.mtu_max,
            retry_above: self.retry_above,
            resets_per_second_max: self.resets_per_second_max,
            upload_bytes_max: usize::try_from(self.upload_memory.0).unwrap_or(usize::MAX),
            early_data: self.early_data,
            sessions_max: self.sessions_max,
        }
    }
}
