//! The cluster's own authority. It is made once, by `outrider cluster init`; each node of the control plane
//! has its key, so that any of them lets newcomers in. Edges only have the certificate.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use outrider_certificate::BEGINS_BEFORE;
use outrider_raft::rpc::tls::{Role, any_node_name, member_name, public_key_sha256};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData,
    SubjectPublicKeyInfo, date_time_ymd,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use sha2::{Digest as _, Sha256};

/// How long the authority lasts.
const AUTHORITY_TIME: Duration = Duration::from_secs(20 * 365 * 24 * 3_600);
/// How long a member's certificate lasts, if nobody says otherwise.
pub const MEMBER_TIME: Duration = Duration::from_secs(397 * 24 * 3_600);

/// What is wrong with a key, a certificate or a request for one.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {reason}")]
pub struct PkiError {
    what: &'static str,
    reason: String,
}

fn failed<E: std::fmt::Display>(what: &'static str) -> impl FnOnce(E) -> PkiError {
    move |error| PkiError { what, reason: error.to_string() }
}

/// The authority with its key.
#[derive(Debug)]
pub struct Authority {
    key: KeyPair,
    der: CertificateDer<'static>,
    pem: String,
}

impl Authority {
    /// A new one.
    ///
    /// # Errors
    /// [`PkiError`]
    pub fn create(now: SystemTime) -> Result<Self, PkiError> {
        let what = "cannot make the cluster's authority";
        let key = KeyPair::generate().map_err(failed(what))?;
        let mut params = CertificateParams::default();
        set_validity(&mut params, now, AUTHORITY_TIME);
        let mark: String =
            params.key_identifier(&key).iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        params.distinguished_name = named(&format!("Outrider cluster {mark}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).map_err(failed(what))?;
        Ok(Self { key, der: certificate.der().clone(), pem: certificate.pem() })
    }

    /// From its two files.
    ///
    /// # Errors
    /// [`PkiError`], also when the key is another's.
    pub fn load(pem: &str, key_pem: &str) -> Result<Self, PkiError> {
        let what = "cannot read the cluster's authority";
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(failed(what))?;
        let key = KeyPair::from_pem(key_pem).map_err(failed(what))?;
        let own: [u8; 32] = Sha256::digest(key.subject_public_key_info()).into();
        if public_key_sha256(&der).map_err(failed(what))? != own {
            return Err(failed(what)("the key is that of another certificate"));
        }
        Ok(Self { key, der, pem: pem.to_owned() })
    }

    /// The certificate.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// The key.
    pub fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }

    /// By what newcomers know it.
    ///
    /// # Errors
    /// [`PkiError`]
    pub fn key_sha256(&self) -> Result<[u8; 32], PkiError> {
        public_key_sha256(&self.der).map_err(failed("cannot read the cluster's authority"))
    }

    /// A member's certificate, as PEM. Of the request only the public key counts: names and times are given
    /// here.
    ///
    /// # Errors
    /// [`PkiError`]
    pub fn sign(
        &self,
        request: &SigningRequest,
        (role, member): (Role, u64),
        (now, lifetime): (SystemTime, Duration),
    ) -> Result<String, PkiError> {
        self.sign_key(&request.0.public_key, (role, member), (now, lifetime))
    }

    /// The same for a public key (SubjectPublicKeyInfo, DER) of which somebody has shown that it is theirs.
    ///
    /// # Errors
    /// [`PkiError`]
    pub fn sign_again(
        &self,
        public_key: &[u8],
        (role, member): (Role, u64),
        (now, lifetime): (SystemTime, Duration),
    ) -> Result<String, PkiError> {
        let key = SubjectPublicKeyInfo::from_der(public_key);
        let key = key.map_err(failed("cannot read the public key"))?;
        self.sign_key(&key, (role, member), (now, lifetime))
    }

    fn sign_key(
        &self,
        key: &impl PublicKeyData,
        (role, member): (Role, u64),
        (now, lifetime): (SystemTime, Duration),
    ) -> Result<String, PkiError> {
        let what = "cannot sign the certificate";
        let mut names = vec![member_name(role, member)];
        if role == Role::Node {
            names.push(any_node_name());
        }
        let mut params = CertificateParams::new(names).map_err(failed(what))?;
        set_validity(&mut params, now, lifetime);
        params.distinguished_name = named(&format!("{} {member}", role.as_str()));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let issuer = Issuer::from_ca_cert_der(&self.der, &self.key).map_err(failed(what))?;
        let certificate = params.signed_by(key, &issuer).map_err(failed(what))?;
        Ok(certificate.pem())
    }
}

/// A request for a certificate whose signature was checked: who sends it has the key.
#[derive(Debug)]
pub struct SigningRequest(CertificateSigningRequestParams);

impl SigningRequest {
    /// Reads one.
    ///
    /// # Errors
    /// [`PkiError`], also when its signature is not that of its key.
    pub fn from_pem(pem: &str) -> Result<Self, PkiError> {
        CertificateSigningRequestParams::from_pem(pem)
            .map(Self)
            .map_err(failed("the signing request cannot be used"))
    }

    /// SHA-256 of the public key.
    pub fn key_sha256(&self) -> [u8; 32] {
        Sha256::digest(self.0.public_key.subject_public_key_info()).into()
    }
}

/// A new key and a request for its certificate, both as PEM.
///
/// # Errors
/// [`PkiError`]
pub fn new_key() -> Result<(String, String), PkiError> {
    let key = KeyPair::generate().map_err(failed("cannot make a key"))?;
    Ok((key.serialize_pem(), request_of(&key)?))
}

/// A request for a certificate of this key.
///
/// # Errors
/// [`PkiError`]
pub fn request_for(key_pem: &str) -> Result<String, PkiError> {
    request_of(&KeyPair::from_pem(key_pem).map_err(failed("cannot read the key"))?)
}

fn request_of(key: &KeyPair) -> Result<String, PkiError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = named("Outrider");
    let what = "cannot make a signing request";
    params.serialize_request(key).and_then(|request| request.pem()).map_err(failed(what))
}

fn set_validity(params: &mut CertificateParams, now: SystemTime, time: Duration) {
    let now = date_time_ymd(1970, 1, 1) + now.duration_since(UNIX_EPOCH).unwrap_or(BEGINS_BEFORE);
    params.not_before = now - BEGINS_BEFORE;
    params.not_after = now + time;
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

#[cfg(test)]
mod tests {
    use super::*;
    use outrider_certificate::Validity;
    use outrider_raft::rpc::Caller;
    use outrider_raft::rpc::tls::caller_of;

    fn at(days: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_800_000_000 + days * 24 * 3_600)
    }

    #[test]
    fn a_certificate_says_who_was_let_in_whatever_was_asked_for() {
        let authority = Authority::create(at(0)).unwrap();
        let key = KeyPair::generate().unwrap();
        let names = vec![member_name(Role::Node, 1)];
        let wish = CertificateParams::new(names).unwrap().serialize_request(&key).unwrap();
        let request = SigningRequest::from_pem(&wish.pem().unwrap()).unwrap();
        let pem = authority.sign(&request, (Role::Edge, 9), (at(0), MEMBER_TIME)).unwrap();
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        assert_eq!(caller_of(&der).unwrap(), Caller::Member { role: Role::Edge, number: 9 });
        assert_eq!(public_key_sha256(&der).unwrap(), request.key_sha256());
        let again = (at(5), Duration::from_secs(60));
        let spki = outrider_certificate::public_key(&der).unwrap();
        let pem = authority.sign_again(&spki, (Role::Edge, 9), again).unwrap();
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        assert_eq!(caller_of(&der).unwrap(), Caller::Member { role: Role::Edge, number: 9 });
        assert_eq!(public_key_sha256(&der).unwrap(), request.key_sha256());
        let validity = Validity::of(&der).unwrap();
        assert_eq!((validity.from, validity.lifetime()), (at(5), Duration::from_secs(60)));
        assert!(authority.sign_again(&spki[1..], (Role::Edge, 9), again).is_err());
    }

    #[test]
    fn a_request_with_a_wrong_signature_is_refused() {
        let (_, request) = new_key().unwrap();
        let mut lines: Vec<String> = request.lines().map(str::to_owned).collect();
        let last = lines.len() - 2;
        let first = lines[last].remove(3);
        lines[last].insert(3, if first == 'A' { 'B' } else { 'A' });
        SigningRequest::from_pem(&lines.join("\n")).unwrap_err();
    }

    #[test]
    fn the_key_of_another_authority_is_refused() {
        let (one, two) = (Authority::create(at(0)).unwrap(), Authority::create(at(0)).unwrap());
        Authority::load(one.pem(), &one.key_pem()).unwrap();
        let error = Authority::load(one.pem(), &two.key_pem()).unwrap_err().to_string();
        assert!(error.contains("the key is that of another certificate"), "{error}");
    }
}
