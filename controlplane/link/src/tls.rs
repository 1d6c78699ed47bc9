//! Who may open the stream, and who answers: both sides show a certificate of the cluster's own authority.
//! Which edge it is, and whether it is still let in, the node's [`Gate`](crate::Gate) says.

use std::sync::Arc;
use std::time::Duration;

use outrider_certificate::Shown;
use quinn::crypto::rustls::{NoInitialCipherSuite, QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, IdleTimeout, ServerConfig, TransportConfig, VarInt};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};

use crate::ALPN;
use crate::serve::ASKS_MAX;

/// The name that the certificate of every node has. An edge takes any node of its cluster for the others:
/// whoever was a node has the authority's key anyway.
pub const NODE_NAME: &str = "node.outrider.internal";
/// A connection that is silent for so long is over; a node says something every second.
const IDLE_TIME_MAX_MS: u32 = 10_000;
/// The round trip before one was measured: a first packet that is lost is sent again after three of these.
const RTT_GUESS: Duration = Duration::from_millis(50);
/// What an edge may send before it is read: its messages are small.
const FROM_EDGE_WINDOW: u32 = 1 << 20;
/// What a node may send before it is read.
const TO_EDGE_WINDOW: u32 = 8 << 20;

/// A member's certificate and key.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The certificate, which may be changed, and the authority's behind it.
    pub shown: Arc<Shown>,
    /// The authority.
    pub authority: CertificateDer<'static>,
}

/// Why the certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// What rustls says.
    #[error("the certificates cannot be used: {0}")]
    Rustls(#[from] rustls::Error),
    /// The authority.
    #[error("the authority cannot be used: {0}")]
    Authority(#[from] VerifierBuilderError),
    /// QUIC.
    #[error("TLS has no cipher for QUIC: {0}")]
    Cipher(#[from] NoInitialCipherSuite),
}

/// A node's side. Who has no certificate of the authority is not let in.
///
/// # Errors
/// [`TlsError`]
pub fn server(identity: Identity) -> Result<ServerConfig, TlsError> {
    let Identity { shown, authority } = identity;
    let (roots, provider) = (roots(authority)?, provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider)).build()?;
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::<Shown>::clone(&shown));
    tls.time_provider = shown.time_provider();
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let mut config = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    let mut transport = transport(FROM_EDGE_WINDOW);
    // The push stream, wishes, and events on one stream while another one ends.
    transport.max_concurrent_bidi_streams(VarInt::from_u32(3 + ASKS_MAX));
    // A queue that takes no events must not hold up what the edge has applied.
    transport.receive_window(VarInt::from_u32(2 * FROM_EDGE_WINDOW));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

/// An edge's side.
///
/// # Errors
/// [`TlsError`]
pub fn client(identity: Identity) -> Result<ClientConfig, TlsError> {
    let Identity { shown, authority } = identity;
    let mut tls = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots(authority)?)
        .with_client_cert_resolver(Arc::<Shown>::clone(&shown));
    tls.time_provider = shown.time_provider();
    tls.alpn_protocols = vec![ALPN.to_vec()];
    // Each connection shows who is who anew.
    tls.resumption = rustls::client::Resumption::disabled();
    let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    let mut transport = transport(TO_EDGE_WINDOW);
    transport.max_concurrent_bidi_streams(VarInt::from_u32(0));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

fn transport(window: u32) -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_TIME_MAX_MS))))
        .initial_rtt(RTT_GUESS)
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(window))
        .receive_window(VarInt::from_u32(window))
        .datagram_receive_buffer_size(None);
    transport
}

fn roots(authority: CertificateDer<'static>) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    roots.add(authority)?;
    Ok(Arc::new(roots))
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}
