//! Clients of QUIC that do what they should not: for the end-to-end tests, which ask whether others are
//! still answered, and for the benchmark, which asks how fast.
//!
//! - [`Client`]: a connection over quinn-proto whose every frame and datagram is its owner's decision.
//! - [`Attack`], [`Attacker`]: what can be done with it, a strike at a time.
//! - [`packets`]: first packets without a connection.
//!
//! Nothing here waits for long: who strikes decides how often.

#![forbid(unsafe_code)]

mod attack;
mod client;
pub mod packets;

pub use attack::{Attack, Attacker, Target};
pub use client::{Client, Closed, Settings};

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

/// The TLS of a client that trusts `ca_pem` alone and speaks HTTP/3.
///
/// # Panics
/// When there is no certificate in that file.
pub fn trusting(ca_pem: &Path) -> Arc<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    let ca = CertificateDer::from_pem_file(ca_pem).expect("a PEM file");
    roots.add(ca).expect("a certificate");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has TLS 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"h3".to_vec()];
    tls.resumption = rustls::client::Resumption::disabled();
    Arc::new(tls)
}
