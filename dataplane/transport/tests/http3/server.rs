//! A server over QUIC on a shard of its own, and what a client needs to reach it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use bytes::Bytes;
use outrider_shard::{ShardConfig, ShardThread, start};
use outrider_transport::quic::{QuicParts, QuicServer, QuicSettings, QuicSocket, serve};
use outrider_transport::{Drain, Limits, PinBudget, TransportMetrics, tls};
use prometheus_client::registry::Registry;
use quinn::crypto::rustls::QuicClientConfig;
use rustls::pki_types::pem::PemObject;

use crate::common::{Scripted, pattern};

/// How long a drain may take before the test calls it hung.
const DRAIN_TIME: Duration = Duration::from_secs(30);

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) drain: Drain,
    pub(crate) pins: PinBudget,
    pub(crate) handled: Arc<AtomicUsize>,
    pub(crate) registry: Registry,
    ca_pem: PathBuf,
    shard: ShardThread,
    _dir: tempfile::TempDir,
}

/// What a server is made with.
pub(crate) struct Options {
    pub(crate) limits: Limits,
    pub(crate) settings: QuicSettings,
    pub(crate) pins: PinBudget,
    /// How long the drain may take before connections are cut off.
    pub(crate) drain_time: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            settings: QuicSettings::default(),
            pins: PinBudget::new(64 << 20, PinBudget::CONNECTION_BYTES_MAX),
            drain_time: DRAIN_TIME,
        }
    }
}

impl Server {
    pub(crate) fn start() -> Self {
        Self::with(Options::default())
    }

    pub(crate) fn with(options: Options) -> Self {
        let Options { limits, settings, pins, drain_time } = options;
        let dir = tempfile::tempdir().unwrap();
        let files = tls::load_or_create(dir.path(), &[]).unwrap();
        let config = tls::server_config(dir.path()).unwrap();
        let server = QuicServer::new(&config, settings, limits).unwrap();
        let mut sockets =
            QuicSocket::bind_shards("127.0.0.1:0".parse().unwrap(), 1, 4 << 20).unwrap();
        let socket = sockets.remove(0);
        let address = socket.local_address();
        let metrics = TransportMetrics::default();
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let drain = Drain::new();
        let handled = Arc::new(AtomicUsize::new(0));
        let shard = {
            let (pins, drain, handled) = (pins.clone(), drain.clone(), handled.clone());
            start(ShardConfig::new(0), move |context| async move {
                let bytes = Bytes::from(pattern(16 << 20));
                let handler = Rc::new(Scripted { bytes, pins: pins.clone(), handled });
                let drained = drain.clone();
                let parts =
                    QuicParts { socket, server, handler, pins, drain, metrics, forward: None };
                serve(&context, parts).unwrap();
                started(&drained).await;
                drained.wait(drain_time).await;
            })
            .unwrap()
        };
        let ca_pem = files.ca_pem;
        Self { address, drain, pins, handled, registry, ca_pem, shard, _dir: dir }
    }

    /// Drains, and checks that nothing is left behind.
    pub(crate) fn stop(self) {
        self.drain.start();
        self.shard.join().unwrap();
        assert_eq!(self.drain.connections(), 0, "connections are left");
        assert_eq!(self.pins.pinned_bytes(), 0, "something is still pinned");
    }

    pub(crate) fn metric(&self, line: &str) -> u64 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        let value = text
            .lines()
            .find_map(|found| found.strip_prefix(line))
            .unwrap_or_else(|| panic!("{line} not in:\n{text}"));
        value.trim().parse().unwrap()
    }

    pub(crate) fn quic_metric(&self, name: &str) -> u64 {
        self.metric(&format!("transport_quic_{name}_total"))
    }

    pub(crate) fn open(&self) -> u64 {
        self.metric("transport_connections_open{scheme=\"quic\"}")
    }

    pub(crate) fn closed(&self, reason: &str) -> u64 {
        self.metric(&format!("transport_connections_closed_total{{reason=\"{reason}\"}}"))
    }

    /// TLS as a client has it that trusts this server; shared between connections it remembers them.
    pub(crate) fn tls(&self) -> Arc<QuicClientConfig> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(rustls::pki_types::CertificateDer::from_pem_file(&self.ca_pem).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h3".to_vec()];
        config.enable_early_data = true;
        Arc::new(QuicClientConfig::try_from(config).unwrap())
    }
}

/// Waits for the drain. There is no other way for a test to wait for it on a shard.
async fn started(drain: &Drain) {
    while !drain.is_started() {
        outrider_shard::time::sleep(Duration::from_millis(5)).await;
    }
}
