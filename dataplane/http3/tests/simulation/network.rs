//! A network of two hosts, its time, and what both sides need of QUIC.

use std::collections::BTreeMap;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use quinn_proto::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn_proto::{
    ClientConfig, Connection, ConnectionHandle, Endpoint, EndpointConfig, Event, ServerConfig,
    StreamId, TransportConfig, VarInt,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// What the network does to packets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Conditions {
    /// Of a thousand.
    pub(crate) loss: u32,
    /// Of a thousand.
    pub(crate) doubled: u32,
    pub(crate) delay_us: u64,
    pub(crate) jitter_us: u64,
}

pub(crate) struct Network {
    random: fastrand::Rng,
    conditions: Conditions,
    start: Instant,
    now: Instant,
    last_packet: Instant,
    /// By time of arrival, and number.
    on_the_way: BTreeMap<(Instant, u64), (BytesMut, bool)>,
    packets: u64,
    pub(crate) lost: u64,
    pub(crate) doubled: u64,
}

pub(crate) const SERVER: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V6(Ipv6Addr::LOCALHOST), 443);
pub(crate) const CLIENT: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V6(Ipv6Addr::LOCALHOST), 5_000);

impl Network {
    pub(crate) fn new(seed: u64, conditions: Conditions) -> Self {
        // One for all runs: QUIC compares its times only with each other.
        static START: OnceLock<Instant> = OnceLock::new();
        let start = *START.get_or_init(Instant::now);
        Self {
            random: fastrand::Rng::with_seed(seed),
            conditions,
            start,
            now: start,
            last_packet: start,
            on_the_way: BTreeMap::new(),
            packets: 0,
            lost: 0,
            doubled: 0,
        }
    }

    pub(crate) fn now(&self) -> Instant {
        self.now
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.now - self.start
    }

    /// When no packet will have been sent for so long, if none is sent any more.
    pub(crate) fn rests_at(&self, time: Duration) -> Instant {
        self.last_packet + time
    }

    pub(crate) fn next(&self) -> Option<Instant> {
        self.on_the_way.keys().next().map(|(time, _)| *time)
    }

    pub(crate) fn wait_until(&mut self, time: Instant) {
        self.now = self.now.max(time);
    }

    pub(crate) fn send(&mut self, packet: &[u8], to_server: bool) {
        self.last_packet = self.now;
        let mut copies = 1;
        if self.random.u32(..1000) < self.conditions.loss {
            self.lost += 1;
            copies = 0;
        } else if self.random.u32(..1000) < self.conditions.doubled {
            self.doubled += 1;
            copies = 2;
        }
        for _ in 0..copies {
            let jitter = self.random.u64(..=self.conditions.jitter_us);
            let time = self.now + Duration::from_micros(self.conditions.delay_us + jitter);
            self.packets += 1;
            self.on_the_way.insert((time, self.packets), (packet.into(), to_server));
        }
    }

    /// What has arrived by now.
    pub(crate) fn arrived(&mut self) -> Vec<(BytesMut, bool)> {
        let later = self.on_the_way.split_off(&(self.now, u64::MAX));
        std::mem::replace(&mut self.on_the_way, later).into_values().collect()
    }
}

/// One host: an endpoint, and its one connection as soon as there is one.
pub(crate) struct Host {
    endpoint: Endpoint,
    pub(crate) connection: Option<(ConnectionHandle, Connection)>,
    is_server: bool,
    was_drained: bool,
}

impl Host {
    pub(crate) fn server(seed: u64) -> Self {
        Self::new(seed, Some(Arc::new(server_config())))
    }

    /// A client that asks for this protocol.
    pub(crate) fn client(seed: u64, now: Instant, alpn: &[u8]) -> Self {
        let mut host = Self::new(seed, None);
        let connection = host.endpoint.connect(now, client_config(alpn), SERVER, "localhost");
        host.connection = Some(connection.unwrap());
        host
    }

    fn new(seed: u64, server: Option<Arc<ServerConfig>>) -> Self {
        let mut bytes = [0; 32];
        fastrand::Rng::with_seed(seed).fill(&mut bytes);
        let is_server = server.is_some();
        let config = Arc::new(EndpointConfig::default());
        let endpoint = Endpoint::new(config, server, true, Some(bytes));
        Self { endpoint, connection: None, is_server, was_drained: false }
    }

    pub(crate) fn connection(&mut self) -> Option<&mut Connection> {
        self.connection.as_mut().map(|(_, connection)| connection)
    }

    pub(crate) fn is_drained(&self) -> bool {
        self.was_drained
    }

    pub(crate) fn next(&mut self) -> Option<Instant> {
        self.connection()?.poll_timeout()
    }

    pub(crate) fn receive(&mut self, network: &Network, datagram: BytesMut) {
        use quinn_proto::DatagramEvent;
        let from = if self.is_server { CLIENT } else { SERVER };
        let mut buffer = Vec::new();
        let event = self.endpoint.handle(network.now, from, None, None, datagram, &mut buffer);
        match event {
            Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                if let Some((own, connection)) = &mut self.connection
                    && *own == handle
                {
                    connection.handle_event(event);
                }
            }
            Some(DatagramEvent::NewConnection(incoming)) => {
                // A first packet that came twice, or late, begins another connection: not here.
                if self.connection.is_some() || self.was_drained {
                    self.endpoint.ignore(incoming);
                    return;
                }
                let accepted = self.endpoint.accept(incoming, network.now, &mut buffer, None);
                self.connection = accepted.ok();
            }
            // Resets and the like, for connections that are gone.
            Some(DatagramEvent::Response(_)) | None => {}
        }
    }

    /// Timers, and what the connection and its endpoint say to each other.
    pub(crate) fn turn(&mut self, now: Instant) {
        let Some((handle, connection)) = &mut self.connection else { return };
        if connection.poll_timeout().is_some_and(|time| time <= now) {
            connection.handle_timeout(now);
        }
        while let Some(event) = connection.poll_endpoint_events() {
            if let Some(event) = self.endpoint.handle_event(*handle, event) {
                connection.handle_event(event);
            }
        }
        if connection.is_drained() {
            self.was_drained = true;
            self.connection = None;
        }
    }

    pub(crate) fn poll(&mut self) -> Option<Event> {
        self.connection()?.poll()
    }

    /// Sends what there is to send; gives whether there was anything.
    pub(crate) fn transmit(&mut self, network: &mut Network) -> bool {
        let mut sent = false;
        let Some((_, connection)) = &mut self.connection else { return false };
        let mut buffer = Vec::new();
        while let Some(transmit) = connection.poll_transmit(network.now, 10, &mut buffer) {
            let size = transmit.segment_size.unwrap_or(transmit.size);
            for packet in buffer[..transmit.size].chunks(size) {
                network.send(packet, !self.is_server);
            }
            buffer.clear();
            sent = true;
        }
        sent
    }
}

pub(crate) fn raw(stream: StreamId) -> u64 {
    VarInt::from(stream).into_inner()
}

pub(crate) fn code(code: outrider_http3::Code) -> VarInt {
    VarInt::from_u64(code.0).unwrap()
}

/// A certificate whose signatures have one length, so that runs are alike to the byte.
fn identity() -> &'static (CertificateDer<'static>, Vec<u8>) {
    static IDENTITY: OnceLock<(CertificateDer<'static>, Vec<u8>)> = OnceLock::new();
    IDENTITY.get_or_init(|| {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let parameters = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        (parameters.self_signed(&key).unwrap().der().clone(), key.serialize_der())
    })
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Small windows, so that both sides wait for each other often.
fn transport() -> Arc<TransportConfig> {
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(8_u32.into())
        .max_concurrent_uni_streams(8_u32.into())
        .stream_receive_window(40_000_u32.into())
        .receive_window(150_000_u32.into())
        .send_window(100_000);
    Arc::new(transport)
}

/// TLS of the server, for HTTP/3.
pub(crate) fn server_tls() -> rustls::ServerConfig {
    let (certificate, key) = identity();
    let mut tls = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], PrivateKeyDer::Pkcs8(key.clone().into()))
        .unwrap();
    tls.alpn_protocols = vec![b"h3".to_vec()];
    tls
}

fn server_config() -> ServerConfig {
    let crypto = QuicServerConfig::try_from(server_tls()).unwrap();
    let mut config = ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(transport());
    config
}

fn client_config(alpn: &[u8]) -> ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(identity().0.clone()).unwrap();
    let mut tls = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![alpn.to_vec()];
    let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    config.transport_config(transport());
    config
}
