//! Public keys of issuers: PEM (`PUBLIC KEY`, one or several in a file) or JWKS (RFC 7517, RFC 8037).

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey};
use rustls::pki_types::pem::{PemObject, SectionKind};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

/// Keys of one issuer.
pub const KEYS_MAX: usize = 64;

/// Keys of one algorithm and without an id that are tried on a token, and as many of those that it may mean by an id.
pub const KEYS_TRIED_MAX: usize = 4;

/// The longest file of keys, in bytes.
pub const KEY_FILE_BYTES_MAX: usize = 256 << 10;

/// Of RSA, in bits: what is shorter is not safe, and what is longer costs too much.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

const OID_ED25519: &str = "1.3.101.112";
const OID_EC: &str = "1.2.840.10045.2.1";
const OID_P256: &str = "1.2.840.10045.3.1.7";
const OID_RSA: &str = "1.2.840.113549.1.1.1";

/// Why there are no keys in something.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// It is too long, or there are too many.
    #[error("more than {KEYS_MAX} keys, or more than {KEY_FILE_BYTES_MAX} bytes")]
    TooLarge,
    /// It has none that can be used.
    #[error(
        "there is no public key in it for EdDSA (Ed25519), ES256 (P-256) or RS256 (RSA of 2048 to 8192 bits)"
    )]
    NoKey,
    /// It is no PEM.
    #[error("it is not PEM")]
    Pem,
    /// A secret is where only public keys belong.
    #[error("there is a private key in it; here stand public keys alone (openssl pkey -pubout)")]
    Private,
    /// It is no key set.
    #[error("it is no JWKS: {0}")]
    Jwks(String),
    /// It is of another kind.
    #[error("a key in it is {0}; Ed25519, P-256 and RSA of 2048 to 8192 bits are taken")]
    Unsupported(&'static str),
    /// A token could not say by which of them it is signed, and not all would be tried.
    #[error(
        "more than {KEYS_TRIED_MAX} keys of one algorithm have no id, and not all would be tried: remove old ones, or \
         write a JWKS in which each has its own kid"
    )]
    Unnamed,
    /// Its bytes are wrong.
    #[error("a key in it is damaged")]
    Damaged,
}

/// One public key, for one algorithm.
#[derive(Clone)]
pub(crate) struct Key {
    pub(crate) id: Option<Box<str>>,
    pub(crate) algorithm: Algorithm,
    pub(crate) key: DecodingKey,
    /// Of its bytes, so that it is seen when keys change.
    print: [u8; 32],
}

/// The keys of one issuer.
#[derive(Clone, Default)]
pub struct KeySet {
    keys: Vec<Key>,
    /// What was in it and cannot be used.
    passed_over: Vec<String>,
}

impl std::fmt::Debug for KeySet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ids = self.keys.iter().map(|key| (key.algorithm, key.id.as_deref()));
        f.debug_list().entries(ids).finish()
    }
}

/// The same keys by the same ids.
impl PartialEq for KeySet {
    fn eq(&self, other: &Self) -> bool {
        let same = |(one, two): (&Key, &Key)| one.id == two.id && one.print == two.print;
        self.keys.len() == other.keys.len() && self.keys.iter().zip(&other.keys).all(same)
    }
}

impl KeySet {
    /// All public keys of a PEM file.
    ///
    /// # Errors
    /// [`KeyError`]; a key of another kind is one, since somebody wanted it used.
    pub fn from_pem(bytes: &[u8]) -> Result<Self, KeyError> {
        if bytes.len() > KEY_FILE_BYTES_MAX {
            return Err(KeyError::TooLarge);
        }
        let mut keys = Vec::new();
        for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(bytes) {
            let (kind, der) = section.map_err(|_| KeyError::Pem)?;
            match kind {
                SectionKind::PublicKey => {
                    let key = from_spki(&der)?;
                    if is_one_too_many(&keys, &key) {
                        return Err(KeyError::Unnamed);
                    }
                    keys.push(key);
                }
                SectionKind::PrivateKey
                | SectionKind::RsaPrivateKey
                | SectionKind::EcPrivateKey => {
                    return Err(KeyError::Private);
                }
                _ => {}
            }
            if keys.len() > KEYS_MAX {
                return Err(KeyError::TooLarge);
            }
        }
        if keys.is_empty() {
            Err(KeyError::NoKey)
        } else {
            Ok(Self { keys, passed_over: Vec::new() })
        }
    }

    /// A set of keys, or a single one, in JSON. Keys of other kinds and uses are passed over (RFC 7517, section 5), and so
    /// are those that are too short, damaged, or without a `kid` and one too many to be tried, which
    /// [`KeySet::passed_over`] says, as long as another one can be used.
    ///
    /// # Errors
    /// [`KeyError`]; a private key is always one.
    pub fn from_jwks(bytes: &[u8]) -> Result<Self, KeyError> {
        if bytes.len() > KEY_FILE_BYTES_MAX {
            return Err(KeyError::TooLarge);
        }
        let document: Document =
            serde_json::from_slice(bytes).map_err(|error| KeyError::Jwks(error.to_string()))?;
        let all = match document {
            Document { keys: Some(keys), .. } => keys,
            Document { keys: None, single } => vec![single],
        };
        if all.len() > KEYS_MAX {
            return Err(KeyError::TooLarge);
        }
        if all.iter().any(|jwk| jwk.d.is_some()) {
            return Err(KeyError::Private);
        }
        let (mut keys, mut passed_over, mut failure) = (Vec::new(), Vec::new(), KeyError::NoKey);
        for (index, jwk) in all.iter().enumerate() {
            let key = match jwk.key() {
                Ok(Some(key)) if is_one_too_many(&keys, &key) => Err(KeyError::Unnamed),
                other => other,
            };
            match key {
                Ok(key) => keys.extend(key),
                Err(error) => {
                    let kid =
                        jwk.kid.as_ref().map_or_else(String::new, |kid| format!(" ({kid:?})"));
                    passed_over.push(format!("number {}{kid}: {error}", index + 1));
                    failure = error;
                }
            }
        }
        if keys.is_empty() { Err(failure) } else { Ok(Self { keys, passed_over }) }
    }

    /// The public keys (Ed25519) of signers. Their ids are made of them, so that none can take another one's.
    pub fn of_signers<'a>(keys: impl IntoIterator<Item = &'a [u8; 32]>) -> Self {
        let key = |public: &[u8; 32]| Key {
            id: Some(id_of(public).into()),
            algorithm: Algorithm::EdDSA,
            key: DecodingKey::from_ed_der(public),
            print: Sha256::digest(public).into(),
        };
        Self { keys: keys.into_iter().map(key).collect(), passed_over: Vec::new() }
    }

    /// Whether one has this id.
    pub(crate) fn has(&self, id: &str) -> bool {
        self.keys.iter().any(|key| key.id.as_deref() == Some(id))
    }

    /// Takes the keys of another one too, but for those that are here by the same id.
    pub fn add(&mut self, other: &Self) {
        for key in &other.keys {
            if key.id.as_deref().is_none_or(|id| !self.has(id)) {
                self.keys.push(key.clone());
            }
        }
    }

    /// Which keys were in it and cannot be used, and why.
    pub fn passed_over(&self) -> &[String] {
        &self.passed_over
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Those that a token with this algorithm and `kid` may be signed with, and that are tried: that of the id; without
    /// an id all, and beside any id those that have none.
    pub(crate) fn candidates<'a>(
        &'a self,
        algorithm: Algorithm,
        id: Option<&'a str>,
    ) -> impl Iterator<Item = &'a Key> {
        let own = self.keys.iter().filter(move |key| key.algorithm == algorithm);
        let named = own.clone().filter(move |key| {
            key.id.as_deref().is_some_and(|known| id.is_none_or(|wanted| wanted == known))
        });
        let unnamed = own.filter(|key| key.id.is_none());
        // Those that have none are this many at most, so that they are all tried.
        unnamed.chain(named.take(KEYS_TRIED_MAX))
    }
}

/// By what the key of a signer is known.
pub(crate) fn id_of(public: &[u8; 32]) -> String {
    URL_SAFE_NO_PAD.encode(&Sha256::digest(public)[..12])
}

/// Whether a token that names no key would not be tried with this one.
fn is_one_too_many(keys: &[Key], key: &Key) -> bool {
    let same = |other: &&Key| other.id.is_none() && other.algorithm == key.algorithm;
    key.id.is_none() && keys.iter().filter(same).count() >= KEYS_TRIED_MAX
}

/// The key of a `SubjectPublicKeyInfo`.
fn from_spki(der: &[u8]) -> Result<Key, KeyError> {
    let (_, info) = SubjectPublicKeyInfo::from_der(der).map_err(|_| KeyError::Damaged)?;
    let bytes = &*info.subject_public_key.data;
    let (algorithm, key) = match info.algorithm.algorithm.to_id_string().as_str() {
        OID_ED25519 if bytes.len() == 32 => (Algorithm::EdDSA, DecodingKey::from_ed_der(bytes)),
        OID_EC => {
            let curve = info.algorithm.parameters.as_ref().and_then(|any| any.as_oid().ok());
            if curve.is_none_or(|curve| curve.to_id_string() != OID_P256) {
                return Err(KeyError::Unsupported("of another curve"));
            }
            if bytes.len() != 65 || bytes[0] != 4 {
                return Err(KeyError::Damaged);
            }
            (Algorithm::ES256, DecodingKey::from_ec_der(bytes))
        }
        OID_RSA => match info.parsed() {
            Ok(PublicKey::RSA(rsa)) => {
                let modulus = without_zeros(rsa.modulus);
                check_rsa(modulus, rsa.exponent)?;
                (Algorithm::RS256, DecodingKey::from_rsa_raw_components(modulus, rsa.exponent))
            }
            _ => return Err(KeyError::Damaged),
        },
        OID_ED25519 => return Err(KeyError::Damaged),
        _ => return Err(KeyError::Unsupported("of another algorithm")),
    };
    Ok(Key { id: None, algorithm, key, print: Sha256::digest(der).into() })
}

fn without_zeros(bytes: &[u8]) -> &[u8] {
    &bytes[bytes.iter().take_while(|byte| **byte == 0).count()..]
}

fn check_rsa(modulus: &[u8], exponent: &[u8]) -> Result<(), KeyError> {
    let bits = (modulus.len() * 8)
        .saturating_sub(modulus.first().map_or(0, |first| first.leading_zeros() as usize));
    if !RSA_BITS.contains(&bits) {
        return Err(KeyError::Unsupported("RSA that is too short or too long"));
    }
    if !(1..=8).contains(&without_zeros(exponent).len()) {
        return Err(KeyError::Damaged);
    }
    Ok(())
}

#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    keys: Option<Vec<Jwk>>,
    #[serde(flatten)]
    single: Jwk,
}

#[derive(Default, Deserialize)]
struct Jwk {
    #[serde(default)]
    kty: Option<String>,
    #[serde(default)]
    crv: Option<String>,
    #[serde(default, rename = "use")]
    usage: Option<String>,
    #[serde(default)]
    alg: Option<String>,
    #[serde(default)]
    kid: Option<String>,
    #[serde(default)]
    x: Option<String>,
    #[serde(default)]
    y: Option<String>,
    #[serde(default)]
    n: Option<String>,
    #[serde(default)]
    e: Option<String>,
    /// Of private keys alone. Of symmetric ones nothing is read.
    #[serde(default)]
    d: Option<serde::de::IgnoredAny>,
}

impl Jwk {
    /// Nothing for a key that is for something else.
    fn key(&self) -> Result<Option<Key>, KeyError> {
        if self.usage.as_deref().is_some_and(|usage| usage != "sig") {
            return Ok(None);
        }
        let curve = self.crv.as_deref().unwrap_or_default();
        let (algorithm, bytes) = match (self.kty.as_deref().unwrap_or_default(), curve) {
            ("OKP", "Ed25519") => (Algorithm::EdDSA, part(&self.x, 32..=32)?),
            ("EC", "P-256") => {
                let mut point = vec![4];
                point.extend(part(&self.x, 32..=32)?);
                point.extend(part(&self.y, 32..=32)?);
                (Algorithm::ES256, point)
            }
            ("RSA", _) => (Algorithm::RS256, part(&self.n, 1..=1025)?),
            _ => return Ok(None),
        };
        // What is meant for another algorithm with the same key (PS256 say) is not taken for this one.
        if self.alg.as_deref().is_some_and(|named| !is_called(algorithm, named)) {
            return Ok(None);
        }
        let (key, mut hash) = (&bytes[..], Sha256::new_with_prefix(&bytes));
        let key = match algorithm {
            Algorithm::EdDSA => DecodingKey::from_ed_der(key),
            Algorithm::ES256 => DecodingKey::from_ec_der(key),
            _ => {
                let (modulus, exponent) = (without_zeros(key), part(&self.e, 1..=8)?);
                check_rsa(modulus, &exponent)?;
                hash.update(&exponent);
                DecodingKey::from_rsa_raw_components(modulus, &exponent)
            }
        };
        let id = self.kid.as_deref().map(Into::into);
        Ok(Some(Key { id, algorithm, key, print: hash.finalize().into() }))
    }
}

/// Whether the name is the one of this algorithm.
pub(crate) fn is_called(algorithm: Algorithm, name: &str) -> bool {
    of_name(name) == Some(algorithm)
}

/// The algorithms that there are.
pub(crate) fn of_name(name: &str) -> Option<Algorithm> {
    match name {
        // RFC 9864 has a name for the one curve.
        "EdDSA" | "Ed25519" => Some(Algorithm::EdDSA),
        "ES256" => Some(Algorithm::ES256),
        "RS256" => Some(Algorithm::RS256),
        _ => None,
    }
}

fn part(
    text: &Option<String>,
    lengths: std::ops::RangeInclusive<usize>,
) -> Result<Vec<u8>, KeyError> {
    let text = text.as_deref().ok_or(KeyError::Damaged)?;
    let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| KeyError::Damaged)?;
    if lengths.contains(&bytes.len()) { Ok(bytes) } else { Err(KeyError::Damaged) }
}
