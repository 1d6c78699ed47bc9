//! Whether a token is to be believed: its algorithm, its key, its issuer, its audience, its time. In this order: what is
//! cheap and bounded comes before what costs.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::claims::{Claims, Head, is_customer};
use crate::key::{KeySet, of_name};
use crate::scope::Scope;

/// The longest token, in bytes.
pub const TOKEN_BYTES_MAX: usize = 8 << 10;

/// The longest head of one, encoded, in bytes.
const HEAD_BYTES_MAX: usize = 1 << 10;

/// Why a token is not believed. The texts say nothing of what is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum TokenError {
    /// It is too long.
    #[error("the token has more than {TOKEN_BYTES_MAX} bytes")]
    TooLarge,
    /// It is no JWT, or a claim is not what it should be, or stands twice.
    #[error("the token is malformed")]
    Malformed,
    /// Signed in a way that is not taken, or not signed.
    #[error("the token is signed in a way that is not taken: EdDSA, ES256 and RS256 are")]
    Algorithm,
    /// Nobody who is known made it.
    #[error("the token's issuer is not known here")]
    Issuer,
    /// None of its issuer's keys is the one.
    #[error("the token's key is not known here")]
    Key,
    /// The signature is wrong.
    #[error("the token's signature is wrong")]
    Signature,
    /// It is for somebody else.
    #[error("the token is for another service")]
    Audience,
    /// It is over.
    #[error("the token has expired")]
    Expired,
    /// Its time has not come.
    #[error("the token is not valid yet")]
    NotYet,
    /// It does not say whose it is, or not in a way that can be used.
    #[error("the token does not say whose it is")]
    Customer,
}

impl TokenError {
    /// For metrics and audit.
    pub fn name(self) -> &'static str {
        match self {
            Self::TooLarge => "too_large",
            Self::Malformed => "malformed",
            Self::Algorithm => "algorithm",
            Self::Issuer => "issuer",
            Self::Key => "key",
            Self::Signature => "signature",
            Self::Audience => "audience",
            Self::Expired => "expired",
            Self::NotYet => "not_yet",
            Self::Customer => "customer",
        }
    }
}

/// Whose tokens are believed.
#[derive(Clone, Debug)]
pub struct Issuer {
    /// The claim `iss`.
    pub name: String,
    /// What must be in `aud`.
    pub audience: String,
    /// Its keys.
    pub keys: KeySet,
    /// Whether a token may say that it is nobody's: those of one's own are for who logs in without a name.
    pub nobody_too: bool,
}

/// What a token proves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proven {
    /// Whose it is; nobody's where it was given without a name.
    pub customer: Option<String>,
    /// What it grants and nothing else; nothing said means what the rules grant to the customer.
    pub access: Option<Vec<Scope>>,
    /// Until when, in seconds since 1970; the leeway is in it.
    pub until_unix_s: u64,
    /// Which of the issuers, by its place.
    pub issuer: usize,
}

/// All issuers.
#[derive(Clone, Debug, Default)]
pub struct Verifier {
    /// They are told apart by their names.
    pub issuers: Vec<Issuer>,
    /// What clocks may differ by, in seconds.
    pub leeway_s: u64,
}

impl Verifier {
    /// What the token proves now. Allocates; some 30 to 150 µs for the signature.
    ///
    /// # Errors
    /// [`TokenError`]
    pub fn verify(&self, token: &str, now_unix_s: u64) -> Result<Proven, TokenError> {
        let (claims, place) = self.signed(token)?;
        self.believe(claims, place, now_unix_s)
    }

    /// The same, with the claim `scope`, which is empty where it is missing.
    ///
    /// # Errors
    /// [`TokenError`]
    pub fn verify_scope(
        &self,
        token: &str,
        now_unix_s: u64,
    ) -> Result<(Proven, String), TokenError> {
        let (mut claims, place) = self.signed(token)?;
        let scope = claims.scope.take().unwrap_or_default();
        Ok((self.believe(claims, place, now_unix_s)?, scope))
    }

    /// The place of the issuer of whom the token names a key, by its id, that is not among those that are known. Says
    /// nothing of whether the token is one of its: nothing is verified.
    pub fn unknown_key_of(&self, token: &str) -> Option<usize> {
        if token.len() > TOKEN_BYTES_MAX {
            return None;
        }
        let (head, rest) = token.split_once('.')?;
        let (body, _) = rest.split_once('.')?;
        let id = part::<Head>(head).ok()?.kid?;
        let name = part::<Claims>(body).ok()?.iss?;
        let place = self.issuers.iter().position(|issuer| issuer.name == name)?;
        (!self.issuers[place].keys.has(&id)).then_some(place)
    }

    /// The claims of a token whose signature is right, and whose it is.
    fn signed(&self, token: &str) -> Result<(Claims, usize), TokenError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::TooLarge);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (head, body) = signed.split_once('.').ok_or(TokenError::Malformed)?;
        if body.contains('.') {
            return Err(TokenError::Malformed);
        }
        if head.len() > HEAD_BYTES_MAX {
            return Err(TokenError::TooLarge);
        }
        let head: Head = part(head)?;
        let algorithm = of_name(&head.alg).ok_or(TokenError::Algorithm)?;
        if head.crit.is_some() || head.b64.is_some() {
            return Err(TokenError::Algorithm);
        }
        // Not believed yet: they only say whose keys to try.
        let claims: Claims = part(body)?;
        let name = claims.iss.as_deref().ok_or(TokenError::Issuer)?;
        let place = self.issuers.iter().position(|issuer| issuer.name == name);
        let place = place.ok_or(TokenError::Issuer)?;
        let issuer = &self.issuers[place];

        let mut failure = TokenError::Key;
        let mut keys = issuer.keys.candidates(algorithm, head.kid.as_deref());
        let is_signed = keys.any(|key| {
            failure = TokenError::Signature;
            let message = signed.as_bytes();
            jsonwebtoken::crypto::verify(signature, message, &key.key, key.algorithm)
                .unwrap_or(false)
        });
        if !is_signed {
            return Err(failure);
        }
        Ok((claims, place))
    }

    /// What the claims of a token say whose signature is right.
    fn believe(&self, claims: Claims, place: usize, now: u64) -> Result<Proven, TokenError> {
        let issuer = &self.issuers[place];
        if !claims.aud.0.contains(&issuer.audience) {
            return Err(TokenError::Audience);
        }
        let expires = claims.exp.ok_or(TokenError::Malformed)?.0;
        let until_unix_s = expires.saturating_add(self.leeway_s);
        if now >= until_unix_s {
            return Err(TokenError::Expired);
        }
        if claims.nbf.is_some_and(|from| now.saturating_add(self.leeway_s) < from.0) {
            return Err(TokenError::NotYet);
        }
        let customer = claims.customer.or(claims.sub).filter(|name| !name.is_empty());
        match &customer {
            Some(name) if !is_customer(name) => return Err(TokenError::Customer),
            None if !issuer.nobody_too => return Err(TokenError::Customer),
            _ => {}
        }
        let access = claims.access.map(|access| access.0);
        Ok(Proven { customer, access, until_unix_s, issuer: place })
    }
}

/// A part of a token. The encoding is bounded by the token's length.
fn part<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, TokenError> {
    let json = URL_SAFE_NO_PAD.decode(text).map_err(|_| TokenError::Malformed)?;
    serde_json::from_slice(&json).map_err(|_| TokenError::Malformed)
}

#[cfg(test)]
mod tests;
