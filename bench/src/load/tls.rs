//! TLS of the load: how certificates are judged, and a client session over the caller's own buffers.
//!
//! rustls' buffered connection reads 4 KiB at a time; here records are decrypted out of whatever was
//! read, hundreds of KiB in one system call, which is what makes the client cheaper than the server.

use std::path::Path;
use std::sync::Arc;

use rustls::client::UnbufferedClientConnection;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus};
use rustls::{CipherSuite, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::BenchError;
use crate::arguments::{Protocol, TrustArguments};

/// The only cipher suite that is offered in QUIC, since quinn-proto does not say which was agreed on.
pub const QUIC_CIPHER: &str = "TLS13_AES_128_GCM_SHA256";
/// Room for a TLS record beside its plaintext.
const RECORD_ROOM_BYTES: usize = 64;

/// The client's TLS configuration: TLS 1.2 and 1.3, AES-128-GCM first so that every server is
/// measured with the same cipher, tickets off so that a connection sends nothing but requests.
///
/// # Errors
/// When the CA file cannot be read, or there is no way to judge a certificate.
pub fn client_config(
    trust: &TrustArguments,
    protocol: Protocol,
) -> Result<Arc<ClientConfig>, BenchError> {
    let mut provider = aws_lc_rs::default_provider();
    let is_first = |suite: CipherSuite| suite == CipherSuite::TLS13_AES_128_GCM_SHA256;
    provider.cipher_suites.sort_by_key(|suite| !is_first(suite.suite()));
    if protocol.is_quic() {
        provider.cipher_suites.retain(|suite| is_first(suite.suite()));
    }
    let algorithms = provider.signature_verification_algorithms;
    let versions =
        if protocol.is_quic() { &[&rustls::version::TLS13][..] } else { rustls::DEFAULT_VERSIONS };
    let builder = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(versions)
        .map_err(|error| BenchError::Tls(error.to_string()))?;
    let mut config = match (&trust.ca, trust.insecure) {
        (Some(file), _) => builder.with_root_certificates(roots(file)?).with_no_client_auth(),
        (None, true) => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AcceptAny { algorithms }))
            .with_no_client_auth(),
        (None, false) => {
            return Err(BenchError::Argument(
                "how should the server's certificate be judged? Give --ca FILE (Outrider's is \
                 DIR/tls/ca.pem) or --insecure"
                    .to_owned(),
            ));
        }
    };
    config.alpn_protocols = match protocol {
        Protocol::H1 => vec![b"http/1.1".to_vec()],
        Protocol::H2 => vec![b"h2".to_vec()],
        Protocol::H3 => vec![b"h3".to_vec()],
        Protocol::Native => vec![outrider_artifact::native::ALPN.to_vec()],
    };
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

fn roots(file: &Path) -> Result<RootCertStore, BenchError> {
    let wrong = |error: String| BenchError::Tls(format!("{}: {error}", file.display()));
    let mut roots = RootCertStore::empty();
    for certificate in
        CertificateDer::pem_file_iter(file).map_err(|error| wrong(error.to_string()))?
    {
        let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
        roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(wrong("there is no certificate in it".to_owned()));
    }
    Ok(roots)
}

/// Accepts whatever certificate comes, for `--insecure`. Signatures are still checked.
#[derive(Debug)]
struct AcceptAny {
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for AcceptAny {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// One client session. It owns no buffer.
pub struct Session {
    connection: UnbufferedClientConnection,
    established: bool,
}

/// What reading records led to.
#[derive(Debug, Default)]
pub struct Received {
    /// How many bytes of the input are done with; the rest is the start of a record.
    pub used: usize,
    /// The server ended the session.
    pub closed: bool,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("established", &self.established).finish_non_exhaustive()
    }
}

impl Session {
    /// A session that has sent nothing yet; [`Session::receive`] of nothing begins it.
    ///
    /// # Errors
    /// When rustls refuses the configuration.
    pub fn new(
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> Result<Self, rustls::Error> {
        Ok(Self { connection: UnbufferedClientConnection::new(config, name)?, established: false })
    }

    /// Whether requests can be sent.
    pub fn established(&self) -> bool {
        self.established
    }

    /// The name of the cipher suite, once it is agreed on.
    pub fn cipher(&self) -> Option<String> {
        self.connection.negotiated_cipher_suite().map(|suite| format!("{:?}", suite.suite()))
    }

    /// Decrypts the records of `input` and hands their contents to `plaintext`, until all whole
    /// records are used or `plaintext` fails. What the session wants to send is added to `outgoing`.
    ///
    /// # Errors
    /// What TLS says, or what `plaintext` returned.
    pub fn receive<E: From<rustls::Error>>(
        &mut self,
        input: &mut [u8],
        outgoing: &mut Vec<u8>,
        mut plaintext: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<Received, E> {
        let mut received = Received::default();
        loop {
            let UnbufferedStatus { discard, state } =
                self.connection.process_tls_records(&mut input[received.used..]);
            let mut done = false;
            match state? {
                ConnectionState::ReadTraffic(mut traffic) => {
                    while let Some(record) = traffic.next_record() {
                        plaintext(record?.payload)?;
                    }
                }
                ConnectionState::EncodeTlsData(mut data) => {
                    let start = outgoing.len();
                    match data.encode(&mut []) {
                        Err(EncodeError::InsufficientSize(size)) => {
                            outgoing.resize(start + size.required_size, 0);
                            data.encode(&mut outgoing[start..])
                                .map_err(|error| rustls::Error::General(error.to_string()))?;
                        }
                        Err(error) => return Err(rustls::Error::General(error.to_string()).into()),
                        Ok(_) => {}
                    }
                }
                // The caller sends `outgoing` right after this call.
                ConnectionState::TransmitTlsData(data) => data.done(),
                ConnectionState::WriteTraffic(_) => {
                    self.established = true;
                    done = true;
                }
                ConnectionState::PeerClosed | ConnectionState::Closed => {
                    received.closed = true;
                    done = true;
                }
                _ => done = true,
            }
            received.used += discard;
            if done {
                return Ok(received);
            }
        }
    }

    /// Encrypts `plaintext` and adds it to `outgoing`.
    ///
    /// # Errors
    /// When the session cannot send: it is not established, or it is used up.
    pub fn send(&mut self, plaintext: &[u8], outgoing: &mut Vec<u8>) -> Result<(), rustls::Error> {
        let general = |text: String| rustls::Error::General(text);
        let UnbufferedStatus { state, .. } = self.connection.process_tls_records(&mut []);
        let ConnectionState::WriteTraffic(mut traffic) = state? else {
            return Err(general("the session cannot send now".to_owned()));
        };
        let start = outgoing.len();
        outgoing.resize(start + plaintext.len() + RECORD_ROOM_BYTES, 0);
        let written = match traffic.encrypt(plaintext, &mut outgoing[start..]) {
            Err(EncryptError::InsufficientSize(size)) => {
                outgoing.resize(start + size.required_size, 0);
                traffic
                    .encrypt(plaintext, &mut outgoing[start..])
                    .map_err(|error| general(error.to_string()))?
            }
            result => result.map_err(|error| general(error.to_string()))?,
        };
        outgoing.truncate(start + written);
        Ok(())
    }
}

/// What every TLS user of this program is built with.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}
