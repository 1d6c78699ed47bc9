//! A certificate authority of this machine's own, and the server certificate that it signs.
//!
//! `ca.pem` is what clients are told to trust; it lasts ten years and stays as it is. The server's
//! certificate is made anew at start when it is about to expire or does not carry the right names. A
//! `server.pem` that another authority has signed was put there by the operator, and is left alone.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, date_time_ymd,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::TransportError;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// How long the authority lasts.
const CA_TIME: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// How long a server certificate lasts: some clients take none that lasts longer than 398 days.
const SERVER_TIME: Duration = Duration::from_secs(397 * 24 * 60 * 60);

/// A server certificate is made anew when it has less left than this.
const RENEW_TIME: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// By how much a client's clock may be behind.
const CLOCK_SKEW: Duration = Duration::from_secs(60 * 60);

/// How the names of these authorities begin.
const CA_NAME: &str = "Outrider local CA";

/// The files of the TLS folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate that clients have to trust.
    pub ca_pem: PathBuf,
    /// The server's certificate.
    pub certificate_pem: PathBuf,
    /// The server's key, readable by its owner only.
    pub key_pem: PathBuf,
}

impl TlsFiles {
    pub(super) fn in_dir(dir: &Path) -> Self {
        Self {
            ca_pem: dir.join("ca.pem"),
            certificate_pem: dir.join("server.pem"),
            key_pem: dir.join("server-key.pem"),
        }
    }
}

/// Makes the folder's authority and server certificate, or renews what has to be. The certificate
/// carries `localhost`, `127.0.0.1`, `::1`, this machine's name, and `names`. Only one process may
/// do this at a time.
///
/// # Errors
/// [`TransportError::Name`] for a name that no certificate can carry, [`TransportError::File`] and
/// [`TransportError::Certificate`] for what the folder holds.
pub fn load_or_create(dir: &Path, names: &[String]) -> Result<TlsFiles, TransportError> {
    load_or_create_at(dir, names, &machine_name(), SystemTime::now())
}

fn load_or_create_at(
    dir: &Path,
    names: &[String],
    machine: &str,
    now: SystemTime,
) -> Result<TlsFiles, TransportError> {
    let names = wanted_names(names, machine)?;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|source| file_error("cannot make", dir, source))?;
    let files = TlsFiles::in_dir(dir);
    let authority = Authority::load_or_create(dir, &files, now)?;
    if !is_server_certificate_good(&files, &authority, &names, now)? {
        authority.sign_server_certificate(&files, &names, now)?;
    }
    Ok(files)
}

/// What the certificate has to carry.
fn wanted_names(names: &[String], machine: &str) -> Result<BTreeSet<String>, TransportError> {
    let mut wanted = BTreeSet::from(["localhost".to_owned()]);
    wanted.insert(IpAddr::V4(Ipv4Addr::LOCALHOST).to_string());
    wanted.insert(IpAddr::V6(Ipv6Addr::LOCALHOST).to_string());
    // A machine may have a name that no certificate can carry: it was not asked for.
    wanted.extend(canonical_name(machine));
    for name in names {
        let canonical =
            canonical_name(name).ok_or_else(|| TransportError::Name { name: name.clone() })?;
        wanted.insert(canonical);
    }
    Ok(wanted)
}

/// An IP address or a DNS name (RFC 1035 §2.3.4, with `*` for the first label) in one spelling.
fn canonical_name(name: &str) -> Option<String> {
    if let Ok(address) = name.parse::<IpAddr>() {
        return Some(address.to_string());
    }
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let rest = name.strip_prefix("*.").unwrap_or(name);
    let is_name = name.len() <= 253 && rest.split('.').all(is_label);
    is_name.then(|| name.to_ascii_lowercase())
}

fn machine_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

struct Authority {
    key: KeyPair,
    der: CertificateDer<'static>,
}

impl Authority {
    fn load_or_create(
        dir: &Path,
        files: &TlsFiles,
        now: SystemTime,
    ) -> Result<Self, TransportError> {
        let key_pem = dir.join("ca-key.pem");
        let present = exists(&files.ca_pem)?;
        if present && !exists(&key_pem)? {
            // Making both anew would silently break every client that trusts this one.
            return Err(unusable(
                &files.ca_pem,
                "its key ca-key.pem is missing: put it back, or remove ca.pem to have a new \
                 authority, which clients then have to trust",
            ));
        }
        if present {
            let authority = Self::load(files, &key_pem)?;
            if authority.is_valid_at(now, &files.ca_pem)? {
                return Ok(authority);
            }
            tracing::warn!(path = %files.ca_pem.display(), "the local authority has expired, a new one is made: clients have to trust it anew");
        }
        Self::create(files, &key_pem, now)
    }

    fn load(files: &TlsFiles, key_pem: &Path) -> Result<Self, TransportError> {
        let der = CertificateDer::from_pem_file(&files.ca_pem)
            .map_err(|error| unusable(&files.ca_pem, error))?;
        let text = fs::read_to_string(key_pem)
            .map_err(|source| file_error("cannot read", key_pem, source))?;
        let key = KeyPair::from_pem(&text).map_err(|error| unusable(key_pem, error))?;
        Ok(Self { key, der })
    }

    fn is_valid_at(&self, now: SystemTime, path: &Path) -> Result<bool, TransportError> {
        let certificate = parse(&self.der, path)?;
        if certificate.public_key().raw != self.key.subject_public_key_info() {
            return Err(unusable(path, "ca-key.pem is the key of another certificate"));
        }
        Ok(is_valid(&certificate, now, Duration::ZERO))
    }

    fn create(files: &TlsFiles, key_pem: &Path, now: SystemTime) -> Result<Self, TransportError> {
        let key = KeyPair::generate().map_err(|error| unusable(&files.ca_pem, error))?;
        let mut params = CertificateParams::default();
        set_validity(&mut params, now, CA_TIME);
        // Two authorities of one name could not be told apart by clients that trust both.
        let mark: String =
            params.key_identifier(&key).iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        params.distinguished_name = named(&format!("{CA_NAME} {mark}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate =
            params.self_signed(&key).map_err(|error| unusable(&files.ca_pem, error))?;
        // The key first: without it the certificate would be of no use.
        write_file(key_pem, &key.serialize_pem(), 0o600)?;
        write_file(&files.ca_pem, &certificate.pem(), 0o644)?;
        Ok(Self { key, der: certificate.der().clone() })
    }

    fn sign_server_certificate(
        &self,
        files: &TlsFiles,
        names: &BTreeSet<String>,
        now: SystemTime,
    ) -> Result<(), TransportError> {
        let failed = |error: rcgen::Error| unusable(&files.certificate_pem, error);
        let key = KeyPair::generate().map_err(failed)?;
        let mut params =
            CertificateParams::new(names.iter().cloned().collect::<Vec<_>>()).map_err(failed)?;
        set_validity(&mut params, now, SERVER_TIME);
        params.distinguished_name = named("Outrider");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let issuer = Issuer::from_ca_cert_der(&self.der, &self.key).map_err(failed)?;
        let certificate = params.signed_by(&key, &issuer).map_err(failed)?;
        write_file(&files.key_pem, &key.serialize_pem(), 0o600)?;
        write_file(&files.certificate_pem, &certificate.pem(), 0o644)
    }
}

/// Whether there is a server certificate that can stay. One of another authority stays, whatever it
/// is: the operator put it there.
fn is_server_certificate_good(
    files: &TlsFiles,
    authority: &Authority,
    names: &BTreeSet<String>,
    now: SystemTime,
) -> Result<bool, TransportError> {
    if !exists(&files.certificate_pem)? || !exists(&files.key_pem)? {
        return Ok(false);
    }
    // Whatever cannot be read or parsed is made anew: only a crash half-way leaves such files.
    let Ok(der) = CertificateDer::from_pem_file(&files.certificate_pem) else { return Ok(false) };
    let Ok(certificate) = parse(&der, &files.certificate_pem) else { return Ok(false) };
    let is_local = certificate
        .issuer()
        .iter_common_name()
        .any(|name| name.as_str().is_ok_and(|name| name.starts_with(CA_NAME)));
    if !is_local {
        if !is_valid(&certificate, now, RENEW_TIME) {
            tracing::warn!(path = %files.certificate_pem.display(), "the certificate expires within 30 days, and is not one that can be renewed here");
        }
        return Ok(true);
    }
    let authority = parse(&authority.der, &files.ca_pem)?;
    let key =
        fs::read_to_string(&files.key_pem).ok().and_then(|text| KeyPair::from_pem(&text).ok());
    Ok(certificate.issuer().as_raw() == authority.subject().as_raw()
        && is_valid(&certificate, now, RENEW_TIME)
        && names_of(&certificate) == *names
        && key.is_some_and(|key| key.subject_public_key_info() == certificate.public_key().raw))
}

fn names_of(certificate: &X509Certificate<'_>) -> BTreeSet<String> {
    let Ok(Some(extension)) = certificate.subject_alternative_name() else {
        return BTreeSet::new();
    };
    extension
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(bytes) => match bytes.len() {
                4 => <[u8; 4]>::try_from(*bytes).ok().map(|v4| IpAddr::from(v4).to_string()),
                _ => <[u8; 16]>::try_from(*bytes).ok().map(|v6| IpAddr::from(v6).to_string()),
            },
            _ => None,
        })
        .collect()
}

fn is_valid(certificate: &X509Certificate<'_>, now: SystemTime, left_min: Duration) -> bool {
    let seconds = |time: SystemTime| {
        time.duration_since(UNIX_EPOCH)
            .ok()
            .and_then(|since| i64::try_from(since.as_secs()).ok())
            .unwrap_or(i64::MAX)
    };
    let validity = certificate.validity();
    validity.not_before.timestamp() <= seconds(now)
        && seconds(now + left_min) < validity.not_after.timestamp()
}

fn set_validity(params: &mut CertificateParams, now: SystemTime, time: Duration) {
    // A clock that stands before 1970 gives a certificate of that time, which is renewed once it is set.
    let since = now.duration_since(UNIX_EPOCH).unwrap_or(DAY);
    let now = date_time_ymd(1970, 1, 1) + since;
    params.not_before = now - CLOCK_SKEW;
    params.not_after = now + time;
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn parse<'a>(der: &'a [u8], path: &Path) -> Result<X509Certificate<'a>, TransportError> {
    match X509Certificate::from_der(der) {
        Ok((_, certificate)) => Ok(certificate),
        Err(error) => Err(unusable(path, error)),
    }
}

fn exists(path: &Path) -> Result<bool, TransportError> {
    path.try_exists().map_err(|source| file_error("cannot look for", path, source))
}

/// Writes all of it or nothing: a crash leaves the old file, or none.
fn write_file(path: &Path, text: &str, mode: u32) -> Result<(), TransportError> {
    let new = path.with_extension("new");
    let write = || -> io::Result<()> {
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        path.parent().map_or(Ok(()), |dir| fs::File::open(dir)?.sync_all())
    };
    write().map_err(|source| file_error("cannot write", path, source))
}

fn file_error(what: &'static str, path: &Path, source: io::Error) -> TransportError {
    TransportError::File { what, path: path.to_owned(), source }
}

fn unusable(path: &Path, reason: impl std::fmt::Display) -> TransportError {
    TransportError::Certificate {
        what: format!("cannot use {}", path.display()),
        reason: reason.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn at(days: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(NOW) + DAY * u32::try_from(days).unwrap()
    }

    fn make(dir: &Path, names: &[&str], days: u64) -> (Vec<u8>, Vec<u8>) {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let files = load_or_create_at(dir, &names, "box-7", at(days)).unwrap();
        (fs::read(files.ca_pem).unwrap(), fs::read(files.certificate_pem).unwrap())
    }

    fn names_in(pem: &[u8]) -> BTreeSet<String> {
        let der = CertificateDer::from_pem_slice(pem).unwrap();
        names_of(&parse(&der, Path::new("test")).unwrap())
    }

    #[test]
    fn what_was_made_stays_until_it_expires_or_its_names_change() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let first = make(dir, &[], 0);
        assert_eq!(make(dir, &[], 300), first);
        let renewed = make(dir, &[], 368);
        assert_eq!(renewed.0, first.0, "clients go on trusting the same authority");
        assert_ne!(renewed.1, first.1, "29 days before its end the certificate is renewed");
        let named = make(dir, &["Edge.Example.org", "10.0.0.7", "fd00::0:7"], 369);
        assert_eq!(named.0, first.0);
        assert_eq!(
            names_in(&named.1),
            ["localhost", "127.0.0.1", "::1", "box-7", "edge.example.org", "10.0.0.7", "fd00::7"]
                .map(str::to_owned)
                .into()
        );
        assert_eq!(make(dir, &["10.0.0.7", "edge.example.org", "fd00::7"], 370), named);
    }

    #[test]
    fn after_ten_years_there_is_a_new_authority() {
        let dir = tempfile::tempdir().unwrap();
        let first = make(dir.path(), &[], 0);
        let next = make(dir.path(), &[], 3651);
        assert_ne!(next.0, first.0);
        assert_ne!(next.1, first.1);
    }

    #[test]
    fn keys_are_for_their_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("tls");
        make(&folder, &[], 0);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&folder), 0o700);
        assert_eq!(mode(&folder.join("ca-key.pem")), 0o600);
        assert_eq!(mode(&folder.join("server-key.pem")), 0o600);
    }

    #[test]
    fn a_certificate_of_the_operators_own_is_left_alone() {
        let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        make(ours.path(), &[], 0);
        let key = KeyPair::generate().unwrap();
        let certificate =
            CertificateParams::new(vec!["x.org".to_owned()]).unwrap().self_signed(&key).unwrap();
        fs::write(ours.path().join("server.pem"), certificate.pem()).unwrap();
        fs::write(ours.path().join("server-key.pem"), key.serialize_pem()).unwrap();
        let (_, kept) = make(ours.path(), &["y.org"], 0);
        assert_eq!(kept, certificate.pem().into_bytes());
        drop(theirs);
    }

    #[test]
    fn a_certificate_of_a_lost_authority_or_with_a_foreign_key_is_made_anew() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let first = make(one.path(), &[], 0);
        make(two.path(), &[], 0);
        for file in ["server.pem", "server-key.pem"] {
            fs::copy(two.path().join(file), one.path().join(file)).unwrap();
        }
        let foreign = fs::read(one.path().join("server.pem")).unwrap();
        let again = make(one.path(), &[], 0);
        assert_eq!(again.0, first.0);
        assert_ne!(again.1, foreign);
        fs::copy(two.path().join("server-key.pem"), one.path().join("server-key.pem")).unwrap();
        assert_ne!(make(one.path(), &[], 0).1, again.1);
        fs::write(one.path().join("server.pem"), "half of a certif").unwrap();
        super::super::server_config(one.path()).unwrap_err();
        make(one.path(), &[], 0);
        super::super::server_config(one.path()).unwrap();
    }

    #[test]
    fn an_authority_without_its_key_is_an_error_that_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path(), &[], 0);
        fs::remove_file(dir.path().join("ca-key.pem")).unwrap();
        let error = load_or_create_at(dir.path(), &[], "box", at(0)).unwrap_err().to_string();
        assert!(error.contains("ca-key.pem is missing: put it back"), "{error}");
    }

    #[test]
    fn a_name_that_no_certificate_can_carry_is_refused_but_the_machines_own_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let long = "x".repeat(64);
        for name in ["", "a b", "-a", "a-", "a..b", "*", "a.*", "ü.de", long.as_str()] {
            let error = load_or_create_at(dir.path(), &[name.to_owned()], "box", at(0));
            assert!(matches!(error, Err(TransportError::Name { .. })), "{name:?}");
        }
        let files =
            load_or_create_at(dir.path(), &["*.x.org".to_owned()], "(none)", at(0)).unwrap();
        let names = names_in(&fs::read(files.certificate_pem).unwrap());
        assert!(names.contains("*.x.org") && names.len() == 4, "{names:?}");
    }
}
