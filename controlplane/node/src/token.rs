//! What an operator carries from the cluster to a newcomer: where the cluster is, by what its authority is
//! known, and a secret that lets one newcomer in. Good for a short time, and only once.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use outrider_state::members::Role;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// What every token begins with: its kind and version.
const PREFIX: &str = "outrider1.";
/// The longest token.
const TOKEN_BYTES_MAX: usize = 8 << 10;
/// The most addresses in a token.
const ADDRESSES_MAX: usize = 16;

/// A join token.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    /// `HOST:PORT` of nodes.
    #[serde(rename = "a")]
    pub addresses: Vec<String>,
    /// SHA-256 of the authority's public key.
    #[serde(rename = "k")]
    pub authority_sha256: [u8; 32],
    /// `node` or `edge`.
    #[serde(rename = "r")]
    pub role: String,
    /// The secret.
    #[serde(rename = "s")]
    pub secret: [u8; 32],
}

/// Why a text is not a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this is not a join token: it begins with \"{PREFIX}\" and is all of one line of `outrider cluster token`"
)]
pub struct TokenError;

impl Token {
    /// One with a new secret.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn new(
        addresses: Vec<String>,
        authority_sha256: [u8; 32],
        role: Role,
    ) -> std::io::Result<Self> {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret).map_err(std::io::Error::other)?;
        let role = role.as_str().to_owned();
        Ok(Self { addresses, authority_sha256, role, secret })
    }

    /// By what the cluster knows it.
    pub fn secret_sha256(&self) -> [u8; 32] {
        Sha256::digest(self.secret).into()
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let json = serde_json::to_vec(self).map_err(|_| fmt::Error)?;
        write!(f, "{PREFIX}{}", URL_SAFE_NO_PAD.encode(json))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token for {:?}", self.addresses)
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        if text.len() > TOKEN_BYTES_MAX {
            return Err(TokenError);
        }
        let rest = text.strip_prefix(PREFIX).ok_or(TokenError)?;
        let json = URL_SAFE_NO_PAD.decode(rest).map_err(|_| TokenError)?;
        let token: Self = serde_json::from_slice(&json).map_err(|_| TokenError)?;
        if (1..=ADDRESSES_MAX).contains(&token.addresses.len()) {
            Ok(token)
        } else {
            Err(TokenError)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_as_it_was_printed_and_does_not_show_its_secret() {
        let token = Token::new(vec!["c1:9191".to_owned()], [7; 32], Role::Node).unwrap();
        let text = token.to_string();
        assert_eq!(format!(" {text}\n").parse::<Token>().unwrap(), token);
        assert!(!format!("{token:?}").contains(&format!("{}", token.secret[0])));
        for wrong in ["", "outrider1.", "outrider2.x", &text[..text.len() - 1], &format!("{text}A")]
        {
            assert_eq!(wrong.parse::<Token>(), Err(TokenError), "{wrong}");
        }
    }
}
