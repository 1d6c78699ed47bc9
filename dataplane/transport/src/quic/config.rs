//! What an operator can set, and what all shards of a process share: the server's identity, its keys
//! and its sessions.

use std::sync::Arc;

use quinn_proto::congestion::CubicConfig;
use quinn_proto::crypto::rustls::QuicServerConfig;
use quinn_proto::{
    EndpointConfig, IdleTimeout, MtuDiscoveryConfig, ServerConfig, TransportConfig, VarInt,
};
use rustls::server::{NoServerSessionStorage, ServerSessionMemoryCache};

use super::cid::{CidKey, ForRetry, ShardCids};
use crate::{Limits, TransportError};

/// HTTP/3.
pub(crate) const ALPN_H3: &[u8] = b"h3";

/// The native protocol.
pub(crate) const ALPN_NATIVE: &[u8] = outrider_artifact::native::ALPN;

/// The largest UDP payload that is sent or received with an MTU of 1,500: what everybody has.
const MTU_USUAL: u16 = 1452;

/// What a client may send ahead of who reads it: heads of requests, on a connection without uploads.
const CONNECTION_WINDOW_BYTES: u32 = 64 * 1024;

/// The same for one stream.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;

/// Unidirectional streams of a client: control, two of QPACK, and one that is reserved or unknown.
pub(crate) const UNI_STREAMS_MAX: u32 = 8;

/// The bounds of QUIC, with defaults; what they have in common with TCP's is in [`Limits`].
#[derive(Clone, Debug)]
pub struct QuicSettings {
    /// The largest UDP payload (1,452): it is what the path takes, up to this. Between 1,200 and
    /// 65,000; above 1,472 for networks with jumbo frames.
    pub mtu_max: u16,
    /// Handshakes under way on a shard (256) above which a client first has to show that it receives
    /// what is sent to its address (Retry).
    pub retry_above: usize,
    /// Requests that a client may give up a second (100), averaged over five: beyond it the
    /// connection is closed.
    pub resets_per_second_max: u32,
    /// Bytes of request bodies that may wait on a shard for their handlers (64 MiB). Beyond it an
    /// upload goes on at 64 KiB for every round trip.
    pub upload_bytes_max: usize,
    /// Bytes that all connections of a shard may hold (512 MiB), beside the slots of the cache. A connection
    /// counts as 48 KiB, while it does nothing.
    pub memory_bytes_max: usize,
    /// Whether a client that was here before may send its first request before the handshake is over
    /// (true).
    pub early_data: bool,
    /// Sessions that are remembered for that, of all shards together (16,384).
    pub sessions_max: usize,
}

impl Default for QuicSettings {
    fn default() -> Self {
        Self {
            mtu_max: MTU_USUAL,
            retry_above: 256,
            resets_per_second_max: 100,
            upload_bytes_max: 64 << 20,
            memory_bytes_max: 512 << 20,
            early_data: true,
            sessions_max: 16_384,
        }
    }
}

/// What the shards of one process share. Clones are the same.
#[derive(Clone)]
pub struct QuicServer {
    pub(crate) settings: QuicSettings,
    pub(crate) limits: Limits,
    pub(crate) server: Arc<ServerConfig>,
    endpoint: EndpointConfig,
    cid_key: CidKey,
    pub(crate) member_of: Option<fn(&str) -> Option<u64>>,
}

impl QuicServer {
    /// With the identity of `tls` (see [`crate::tls::server_config`]). The keys of Retry and of resets
    /// are made here, and the sessions are kept here: an Initial may come to any shard.
    ///
    /// # Errors
    /// [`TransportError::Certificate`] when that identity cannot be used with QUIC.
    pub fn new(
        tls: &rustls::ServerConfig,
        settings: QuicSettings,
        limits: Limits,
    ) -> Result<Self, TransportError> {
        let crypto = QuicServerConfig::try_from(crypto(tls, &settings)).map_err(|error| {
            TransportError::Certificate {
                what: "cannot use the certificate with QUIC".into(),
                reason: error.to_string(),
            }
        })?;
        let mut server = ServerConfig::with_crypto(Arc::new(crypto));
        server.transport_config(Arc::new(transport(&settings, &limits)));
        server.migration(true);
        // Each is taken, or not, in the turn in which it comes.
        server.max_incoming(16).incoming_buffer_size(64 << 10).incoming_buffer_size_total(1 << 20);
        let mut endpoint = EndpointConfig::default();
        endpoint
            .max_udp_payload_size(settings.mtu_max.max(1472))
            .expect("it is above the least that QUIC asks for");
        Ok(Self {
            settings,
            limits,
            server: Arc::new(server),
            endpoint,
            cid_key: CidKey::default(),
            member_of: None,
        })
    }

    /// Has the certificates of clients looked at: which member of the fleet a name is. The identity that it was made
    /// with asks for them ([`crate::tls::asking_members`]).
    #[must_use]
    pub fn with_members(mut self, member_of: fn(&str) -> Option<u64>) -> Self {
        self.member_of = Some(member_of);
        self
    }

    /// The configuration of one shard's endpoint.
    pub(crate) fn endpoint(&self, shard: u8, for_retry: &ForRetry) -> Arc<EndpointConfig> {
        let mut endpoint = self.endpoint.clone();
        let (key, for_retry) = (self.cid_key.clone(), for_retry.clone());
        endpoint.cid_generator(move || {
            let (key, for_retry) = (key.clone(), for_retry.clone());
            Box::new(ShardCids { shard, key, for_retry })
        });
        Arc::new(endpoint)
    }

    pub(crate) fn cid_key(&self) -> &CidKey {
        &self.cid_key
    }
}

impl std::fmt::Debug for QuicServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QuicServer").field("settings", &self.settings).finish_non_exhaustive()
    }
}

fn crypto(tls: &rustls::ServerConfig, settings: &QuicSettings) -> rustls::ServerConfig {
    let mut tls = tls.clone();
    tls.alpn_protocols = vec![ALPN_H3.to_vec(), ALPN_NATIVE.to_vec()];
    if settings.early_data {
        // Tickets would let a first flight be replayed: rustls takes it only from a session that it
        // forgets with its use.
        tls.ticketer = Arc::new(NoTickets);
        tls.session_storage = ServerSessionMemoryCache::new(settings.sessions_max);
        tls.max_early_data_size = u32::MAX;
    } else {
        tls.session_storage = Arc::new(NoServerSessionStorage {});
        tls.max_early_data_size = 0;
    }
    tls
}

/// No session is put into a ticket.
#[derive(Debug)]
struct NoTickets;

impl rustls::server::ProducesTickets for NoTickets {
    fn enabled(&self) -> bool {
        false
    }

    fn lifetime(&self) -> u32 {
        0
    }

    fn encrypt(&self, _plain: &[u8]) -> Option<Vec<u8>> {
        None
    }

    fn decrypt(&self, _cipher: &[u8]) -> Option<Vec<u8>> {
        None
    }
}

fn transport(settings: &QuicSettings, limits: &Limits) -> TransportConfig {
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(settings.mtu_max);
    let mut transport = TransportConfig::default();
    let idle = VarInt::try_from(limits.idle_time.as_millis().min(1 << 40) as u64)
        .unwrap_or(VarInt::from_u32(u32::MAX));
    transport
        .max_concurrent_bidi_streams(limits.streams_max.into())
        .max_concurrent_uni_streams(UNI_STREAMS_MAX.into())
        .receive_window(CONNECTION_WINDOW_BYTES.into())
        .stream_receive_window(STREAM_WINDOW_BYTES.into())
        .send_window(SEND_WINDOW_BYTES)
        .max_idle_timeout(Some(IdleTimeout::from(idle)))
        .mtu_discovery_config(Some(mtu))
        .datagram_receive_buffer_size(None)
        .congestion_controller_factory(Arc::new(CubicConfig::default()));
    transport
}

/// What may be on its way to one client: at 40 ms, three Gbit/s. What counts is in the pins.
const SEND_WINDOW_BYTES: u64 = 16 << 20;

/// What the window of a connection is, in bytes.
pub(crate) const fn window_bytes(uploads: bool) -> usize {
    (if uploads { UPLOAD_WINDOW_BYTES } else { CONNECTION_WINDOW_BYTES }) as usize
}

/// The connection's window for a client that sends bodies.
pub(crate) const UPLOAD_WINDOW_BYTES: u32 = 1 << 20;

/// The one for a client that does not.
pub(crate) fn usual_window() -> VarInt {
    CONNECTION_WINDOW_BYTES.into()
}
