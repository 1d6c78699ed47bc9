//! Who is who. Every member has a certificate of the cluster's own authority with one name of the form
//! `node-7.outrider.internal`; who calls node 7 accepts no other, and who is called knows who calls. A
//! newcomer has none yet: it knows the hash of the authority's key, and may only join.

use std::sync::Arc;

use outrider_certificate::Shown;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, ServerConfig,
    SignatureScheme,
};
use sha2::{Digest as _, Sha256};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

pub use outrider_state::members::Role;

/// What the names of members end with.
pub const DOMAIN: &str = "outrider.internal";
/// The protocol of the frames.
const ALPN: &[u8] = b"outrider-control/1";

/// Why no TLS configuration can be made, or a certificate is not one of a member.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// What rustls says.
    #[error("the certificates cannot be used: {0}")]
    Rustls(#[from] Error),
    /// A certificate that cannot be read.
    #[error("the certificate cannot be read: {0}")]
    Certificate(String),
}

/// A member's certificate and key.
#[derive(Debug)]
pub struct Identity {
    /// The member's certificate, behind which its authority's stands.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its key.
    pub key: PrivateKeyDer<'static>,
    /// The authority.
    pub authority: CertificateDer<'static>,
}

/// Who called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// A member, by its certificate.
    Member {
        /// What it is.
        role: Role,
        /// Its number.
        number: u64,
    },
    /// Somebody without a certificate.
    Stranger,
}

/// The configurations of both sides.
#[derive(Clone, Debug)]
pub struct TlsContext {
    pub(crate) server: Arc<ServerConfig>,
    pub(crate) client: Arc<ClientConfig>,
    shown: Arc<Shown>,
}

impl TlsContext {
    /// Of a member.
    ///
    /// # Errors
    /// When the identity is none that rustls takes.
    pub fn new(identity: &Identity) -> Result<Self, TlsError> {
        let provider = provider();
        let shown = Shown::new(identity.chain.clone(), identity.key.clone_key())
            .map_err(|error| TlsError::Certificate(error.to_string()))?;
        let mut roots = RootCertStore::empty();
        roots.add(identity.authority.clone())?;
        let roots = Arc::new(roots);
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
                .allow_unauthenticated()
                .build()
                .map_err(|error| TlsError::Certificate(error.to_string()))?;
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::<Shown>::clone(&shown));
        server.time_provider = shown.time_provider();
        server.alpn_protocols = vec![ALPN.to_vec()];
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_client_cert_resolver(Arc::<Shown>::clone(&shown));
        client.time_provider = shown.time_provider();
        client.alpn_protocols = vec![ALPN.to_vec()];
        // Each connection shows who is who anew.
        client.resumption = rustls::client::Resumption::disabled();
        Ok(Self { server: Arc::new(server), client: Arc::new(client), shown })
    }

    /// What both sides show. It may be changed while they run.
    pub fn shown(&self) -> &Arc<Shown> {
        &self.shown
    }
}

/// For a newcomer: trusts the authority whose public key has this SHA-256, whatever else is shown.
///
/// # Errors
/// None that is known.
pub fn newcomer(authority_sha256: [u8; 32]) -> Result<Arc<ClientConfig>, TlsError> {
    let provider = provider();
    let algorithms = provider.signature_verification_algorithms;
    let verifier = Pinned { authority_sha256, provider: Arc::clone(&provider), algorithms };
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    client.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(client))
}

/// The name that every node's certificate carries beside its own, for newcomers who do not know numbers.
pub fn any_node_name() -> String {
    format!("node.{DOMAIN}")
}

/// The name in a member's certificate.
pub fn member_name(role: Role, number: u64) -> String {
    format!("{}-{number}.{DOMAIN}", role.as_str())
}

/// SHA-256 of a certificate's public key (its SubjectPublicKeyInfo).
///
/// # Errors
/// [`TlsError::Certificate`]
pub fn public_key_sha256(certificate: &[u8]) -> Result<[u8; 32], TlsError> {
    let certificate = parse(certificate)?;
    Ok(Sha256::digest(certificate.public_key().raw).into())
}

/// Whose certificate this is; verified it must be already.
///
/// # Errors
/// [`TlsError::Certificate`] when it is none of a member.
pub fn caller_of(certificate: &[u8]) -> Result<Caller, TlsError> {
    let certificate = parse(certificate)?;
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names.iter().flat_map(|extension| &extension.value.general_names);
    for name in names {
        if let GeneralName::DNSName(name) = name
            && let Some(caller) = caller_from(name)
        {
            return Ok(caller);
        }
    }
    Err(TlsError::Certificate("it has no name of a member".to_owned()))
}

fn caller_from(name: &str) -> Option<Caller> {
    let label = name.strip_suffix(DOMAIN)?.strip_suffix('.')?;
    let (role, number) = label.split_once('-')?;
    let role = match role {
        "node" => Role::Node,
        "edge" => Role::Edge,
        _ => return None,
    };
    Some(Caller::Member { role, number: number.parse().ok()? })
}

fn parse(certificate: &[u8]) -> Result<X509Certificate<'_>, TlsError> {
    match X509Certificate::from_der(certificate) {
        Ok((_, certificate)) => Ok(certificate),
        Err(error) => Err(TlsError::Certificate(error.to_string())),
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Takes the chain's authority for the root when its key is the one that the token names.
#[derive(Debug)]
struct Pinned {
    authority_sha256: [u8; 32],
    provider: Arc<CryptoProvider>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let unknown = || Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let is_pinned = |certificate: &&CertificateDer<'_>| {
            public_key_sha256(certificate).is_ok_and(|hash| hash == self.authority_sha256)
        };
        let authority = intermediates.iter().find(is_pinned).ok_or_else(unknown)?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider))
            .build()
            .map_err(|_| unknown())?
            .verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::PeerIncompatible(rustls::PeerIncompatible::Tls12NotOffered))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_known_by_the_name_in_its_certificate_and_by_no_other() {
        let member = |role, number| Some(Caller::Member { role, number });
        assert_eq!(caller_from(&member_name(Role::Node, 7)), member(Role::Node, 7));
        assert_eq!(caller_from(&member_name(Role::Edge, 70)), member(Role::Edge, 70));
        for name in [
            "node-7",
            "node-7.outrider.internal.x",
            "node.outrider.internal",
            "x-7.outrider.internal",
            "node-7x.outrider.internal",
            "a.node-7.outrider.internal",
            "node--7.outrider.internal",
        ] {
            assert_eq!(caller_from(name), None, "{name}");
        }
    }
}
