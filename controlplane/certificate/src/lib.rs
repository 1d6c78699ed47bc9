//! A member's certificate: how long it lasts, and how it is changed while it is shown. Without I/O and without a
//! clock.
//!
//! - [`Shown`]: what TLS shows, to who connects and to whom it connects; connections that are made after
//!   [`Shown::replace`] see the new one.
//! - [`Validity`]: from when until when, and whether it should be made anew.

#![forbid(unsafe_code)]

pub mod clock;

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::time_provider::TimeProvider;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// Certificates begin so much before they are made, twenty years: one that was made while a clock was ahead is good when it
/// is right again. Nobody is kept out by when a certificate begins; members are let in by their membership.
pub const BEGINS_BEFORE: Duration = Duration::from_secs(20 * 365 * 24 * 3_600);
/// A certificate is made anew when less than this part of its time is left.
const RENEW_PART: u32 = 3;

/// What is wrong with a certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// It cannot be read.
    #[error("the certificate cannot be read: {0}")]
    Unreadable(String),
    /// It cannot be shown.
    #[error("the certificate cannot be used: {0}")]
    Unusable(#[from] rustls::Error),
    /// There is none.
    #[error("there is no certificate")]
    None,
    /// It is of another key.
    #[error("the certificate is of another key")]
    Key,
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, CertificateError> {
    let parsed = X509Certificate::from_der(der);
    parsed.map(|(_, parsed)| parsed).map_err(|e| CertificateError::Unreadable(e.to_string()))
}

/// The public key of a certificate: its SubjectPublicKeyInfo, DER.
///
/// # Errors
/// [`CertificateError::Unreadable`]
pub fn public_key(der: &[u8]) -> Result<Vec<u8>, CertificateError> {
    Ok(parse(der)?.public_key().raw.to_vec())
}

/// From when until when a certificate is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// When it was made.
    pub from: SystemTime,
    /// When it ends.
    pub until: SystemTime,
}

impl Validity {
    /// Of a certificate that begins [`BEGINS_BEFORE`] before it was made.
    ///
    /// # Errors
    /// [`CertificateError::Unreadable`]
    pub fn of(der: &[u8]) -> Result<Self, CertificateError> {
        let parsed = parse(der)?;
        // By a clock that begins in 1970 it begins before.
        let at = |seconds: i64| {
            let away = Duration::from_secs(seconds.unsigned_abs());
            if seconds < 0 { UNIX_EPOCH - away } else { UNIX_EPOCH + away }
        };
        let validity = parsed.validity();
        let from = at(validity.not_before.timestamp()) + BEGINS_BEFORE;
        Ok(Self { from, until: at(validity.not_after.timestamp()) })
    }

    /// How long it lasts altogether.
    pub fn lifetime(&self) -> Duration {
        self.until.duration_since(self.from).unwrap_or_default()
    }

    /// How long it is still good; zero once it is not.
    pub fn left(&self, now: SystemTime) -> Duration {
        self.until.duration_since(now).unwrap_or_default()
    }

    /// Whether it holds at that time.
    pub fn holds(&self, now: SystemTime) -> bool {
        self.from <= now + BEGINS_BEFORE && now < self.until
    }

    /// Whether it should be made anew.
    pub fn is_due(&self, now: SystemTime) -> bool {
        let lifetime = self.lifetime();
        lifetime.is_zero() || self.left(now) < lifetime / RENEW_PART
    }

    /// How often it should be looked whether it is due: often enough for many attempts before it ends, and soon after
    /// a clock was set.
    pub fn look_interval(&self) -> Duration {
        const LOOK_PART: u32 = 24;
        let (least, most) = (Duration::from_millis(500), Duration::from_secs(60));
        (self.lifetime() / LOOK_PART).clamp(least, most)
    }
}

/// A certificate that TLS shows.
#[derive(Debug)]
pub struct Shown(RwLock<(Arc<CertifiedKey>, Validity)>);

fn certified(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<(Arc<CertifiedKey>, Validity), CertificateError> {
    let validity = Validity::of(chain.first().ok_or(CertificateError::None)?)?;
    let provider = aws_lc_rs::default_provider();
    Ok((Arc::new(CertifiedKey::from_der(chain, key, &provider)?), validity))
}

impl Shown {
    /// This one: the member's own, and its authority's behind it.
    ///
    /// # Errors
    /// [`CertificateError`], also when the key is another's.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Arc<Self>, CertificateError> {
        Ok(Arc::new(Self(RwLock::new(certified(chain, key)?))))
    }

    /// Whether another one may take its place: it is of the same key. Gives from when until when it is good.
    ///
    /// # Errors
    /// [`CertificateError`]
    pub fn check(&self, leaf: &CertificateDer<'static>) -> Result<Validity, CertificateError> {
        if self.public_key()? != public_key(leaf)? {
            return Err(CertificateError::Key);
        }
        Validity::of(leaf)
    }

    /// Another one of the same key from now on.
    ///
    /// # Errors
    /// [`CertificateError`]; the old one is shown then.
    pub fn replace(&self, leaf: CertificateDer<'static>) -> Result<(), CertificateError> {
        let validity = self.check(&leaf)?;
        let (old, _) = self.current();
        let mut chain = old.cert.clone();
        *chain.first_mut().ok_or(CertificateError::None)? = leaf;
        let new = Arc::new(CertifiedKey::new(chain, Arc::clone(&old.key)));
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = (new, validity);
        Ok(())
    }

    /// From when until when it is good.
    pub fn validity(&self) -> Validity {
        self.current().1
    }

    /// The time by which certificates are looked at: the earlier one of what the clock says and of what it said at the
    /// start and has gone by since, where the member's own certificate holds by it. So a clock that is set ahead while
    /// the process runs ends nothing, and one that was wrong at the start is believed when it is right.
    pub fn time(&self) -> SystemTime {
        earlier_that_holds(&self.validity(), SystemTime::now(), clock::steady())
    }

    /// Whether it should be made anew, and by which time: the later one, so that it lasts by both.
    pub fn due(&self) -> Option<SystemTime> {
        let (validity, times) = (self.validity(), [SystemTime::now(), clock::steady()]);
        times.iter().any(|time| validity.is_due(*time)).then(clock::later)
    }

    /// The same time for TLS.
    pub fn time_provider(self: &Arc<Self>) -> Arc<dyn TimeProvider> {
        Arc::new(ByShown(Arc::clone(self)))
    }

    /// Its public key: SubjectPublicKeyInfo, DER.
    ///
    /// # Errors
    /// [`CertificateError`]
    pub fn public_key(&self) -> Result<Vec<u8>, CertificateError> {
        public_key(self.current().0.end_entity_cert()?)
    }

    fn current(&self) -> (Arc<CertifiedKey>, Validity) {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn earlier_that_holds(own: &Validity, clock: SystemTime, steady: SystemTime) -> SystemTime {
    let holding = [clock, steady].into_iter().filter(|time| own.holds(*time)).min();
    holding.unwrap_or(clock)
}

/// [`Shown::time`] for TLS.
#[derive(Debug)]
struct ByShown(Arc<Shown>);

impl TimeProvider for ByShown {
    fn current_time(&self) -> Option<UnixTime> {
        let since = self.0.time().duration_since(UNIX_EPOCH).ok()?;
        Some(UnixTime::since_unix_epoch(since))
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current().0)
    }
}

impl ResolvesClientCert for Shown {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.current().0)
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3_600);

    fn at(days: u32) -> SystemTime {
        UNIX_EPOCH + days * DAY
    }

    fn certificate(key: &KeyPair, from_day: u32, days: u32) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        let from = date_time_ymd(1970, 1, 1) + from_day * DAY;
        (params.not_before, params.not_after) = (from - BEGINS_BEFORE, from + days * DAY);
        params.self_signed(key).unwrap().der().clone()
    }

    fn private(key: &KeyPair) -> PrivateKeyDer<'static> {
        PrivateKeyDer::try_from(key.serialize_der()).unwrap()
    }

    #[test]
    fn it_is_due_in_the_last_third_of_its_time() {
        let validity = Validity::of(&certificate(&KeyPair::generate().unwrap(), 100, 30)).unwrap();
        assert_eq!((validity.from, validity.until), (at(100), at(130)));
        assert!(!validity.is_due(at(119)) && validity.is_due(at(121)) && validity.is_due(at(140)));
        assert_eq!((validity.left(at(129)), validity.left(at(131))), (DAY, Duration::ZERO));
        assert!(validity.holds(at(99)) && validity.holds(at(129)) && !validity.holds(at(130)));
    }

    #[test]
    fn the_time_is_one_by_which_the_own_certificate_holds() {
        let own = Validity::of(&certificate(&KeyPair::generate().unwrap(), 9_000, 400)).unwrap();
        let by = |clock, steady| earlier_that_holds(&own, at(clock), at(steady));
        assert_eq!(by(9_100, 9_100), at(9_100));
        assert_eq!(by(12_700, 9_100), at(9_100), "set ahead by years");
        assert_eq!(by(9_300, 9_100), at(9_100), "set ahead by less than it lasts");
        assert_eq!(by(8_000, 9_100), at(8_000), "set back: others' hold too");
        assert_eq!(by(9_100, 12_700), at(9_100), "started with a clock that was ahead");
        assert_eq!(by(9_100, 0), at(9_100), "started without a battery");
        assert_eq!(by(12_700, 12_700), at(12_700), "then it is made anew");
    }

    #[test]
    fn another_of_the_same_key_takes_its_place_and_one_of_another_key_does_not() {
        let (one, two) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let shown = Shown::new(vec![certificate(&one, 100, 30)], private(&one)).unwrap();
        shown.replace(certificate(&one, 120, 30)).unwrap();
        assert_eq!(shown.validity().until, at(150));
        let error = shown.replace(certificate(&two, 140, 30));
        assert!(matches!(error, Err(CertificateError::Key)));
        assert!(shown.replace(CertificateDer::from(vec![1, 2])).is_err());
        assert_eq!(shown.validity().until, at(150));
        assert!(Shown::new(vec![certificate(&two, 1, 1)], private(&one)).is_err());
        assert!(matches!(Shown::new(Vec::new(), private(&one)), Err(CertificateError::None)));
    }
}
