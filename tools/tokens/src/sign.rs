//! Tokens of one's own: Ed25519, with a key that is known by its id.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use serde_json::json;

use crate::key::{KeyError, KeySet, id_of};
use crate::scope::Scope;

/// Signs tokens.
pub struct SigningKey {
    key: EncodingKey,
    id: String,
    public: [u8; 32],
    keys: KeySet,
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SigningKey").field("id", &self.id).finish_non_exhaustive()
    }
}

/// What a token of one's own says.
#[derive(Clone, Debug)]
pub struct Grant<'a> {
    /// The issuer, as [`crate::Issuer::name`] has it.
    pub issuer: &'a str,
    /// The service, as [`crate::Issuer::audience`] has it.
    pub audience: &'a str,
    /// Whose it is, or nobody's.
    pub customer: Option<&'a str>,
    /// What it grants; nothing said means what the rules grant to the customer.
    pub access: Option<&'a [Scope]>,
    /// When it is given, in seconds since 1970.
    pub now_unix_s: u64,
    /// For how long, in seconds.
    pub life_s: u64,
    /// Its number, so that two of them can be told apart.
    pub id: &'a str,
}

impl SigningKey {
    /// From PKCS#8 in PEM, as rcgen and `openssl genpkey -algorithm ed25519` write it.
    ///
    /// # Errors
    /// [`KeyError`]
    pub fn from_pem(pem: &[u8]) -> Result<Self, KeyError> {
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem).map_err(|_| KeyError::Pem)?;
        let secret = der.secret_pkcs8_der().to_vec();
        let signing = rustls::crypto::aws_lc_rs::sign::any_eddsa_type(&der)
            .map_err(|_| KeyError::Unsupported("not Ed25519"))?;
        let info = signing.public_key().ok_or(KeyError::Damaged)?;
        // The last 32 bytes of the SubjectPublicKeyInfo of Ed25519 are the key (RFC 8410).
        let public = *info.last_chunk::<32>().ok_or(KeyError::Damaged)?;
        let keys = KeySet::of_signers([&public]);
        Ok(Self { key: EncodingKey::from_ed_der(&secret), id: id_of(&public), public, keys })
    }

    /// The key that its tokens are verified with.
    pub fn public(&self) -> &KeySet {
        &self.keys
    }

    /// The same, as others are told.
    pub fn public_bytes(&self) -> [u8; 32] {
        self.public
    }

    /// A token.
    ///
    /// # Errors
    /// [`KeyError::Damaged`] where the key cannot sign.
    pub fn sign(&self, grant: &Grant<'_>) -> Result<String, KeyError> {
        let head = json!({ "typ": "JWT", "alg": "EdDSA", "kid": self.id });
        let mut claims = json!({
            "iss": grant.issuer,
            "aud": grant.audience,
            "sub": grant.customer.unwrap_or_default(),
            "iat": grant.now_unix_s,
            "nbf": grant.now_unix_s,
            "exp": grant.now_unix_s.saturating_add(grant.life_s),
            "jti": grant.id,
        });
        if let Some(access) = grant.access {
            let entry = |scope: &Scope| {
                let (kind, name, actions) = scope.parts();
                json!({ "type": kind, "name": name, "actions": actions })
            };
            claims["access"] = access.iter().map(entry).collect();
        }
        let encode = |json: &serde_json::Value| URL_SAFE_NO_PAD.encode(json.to_string());
        let message = format!("{}.{}", encode(&head), encode(&claims));
        let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &self.key, Algorithm::EdDSA)
            .map_err(|_| KeyError::Damaged)?;
        Ok(format!("{message}.{signature}"))
    }
}
