//! Secrets: what a customer logs in with that has no token of an issuer. Each is 32 random bytes, which nobody can guess,
//! so that its SHA-256 may be kept: a slow hash is for passwords that people choose, and those are not taken.
//!
//! A file has one on each line, `CUSTOMER sha256:HEX`, and after `#` whatever is worth knowing. A customer may have
//! several, so that a new one is in use before the old one is gone.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

use crate::claims::is_customer;

/// What secrets begin with, so that they are found where they should not be.
pub const PREFIX: &str = "outrider_";

/// Random bytes of a secret.
pub const RANDOM_BYTES: usize = 32;

/// The length of a secret, in bytes: the prefix, and the random bytes in base64.
const SECRET_BYTES: usize = PREFIX.len() + 43;

/// The longest file of secrets, in bytes.
pub const SECRETS_FILE_BYTES_MAX: usize = 4 << 20;

/// The secrets that are taken.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secrets {
    /// By hash, then customer.
    entries: Vec<([u8; 32], Box<str>)>,
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} secrets", self.entries.len())
    }
}

/// What is wrong with a line of the file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: it is not CUSTOMER sha256:HEX, as `outrider secret CUSTOMER` writes it")]
pub struct SecretsError {
    /// Which, from 1.
    pub line: usize,
}

impl Secrets {
    /// Reads a file. Lines that are empty or begin with `#` say nothing.
    ///
    /// # Errors
    /// [`SecretsError`]
    pub fn parse(text: &str) -> Result<Self, SecretsError> {
        let mut entries = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let wrong = || SecretsError { line: index + 1 };
            let mut words = line.split_whitespace();
            let (Some(customer), Some(hash), None) = (words.next(), words.next(), words.next())
            else {
                return Err(wrong());
            };
            let hash = hash.strip_prefix("sha256:").and_then(unhex).ok_or_else(wrong)?;
            if !is_customer(customer) {
                return Err(wrong());
            }
            entries.push((hash, customer.into()));
        }
        entries.sort_unstable();
        Ok(Self { entries })
    }

    /// Whether the customer has this secret. What is not of the form of one is never taken. The time that it takes
    /// tells of hashes alone, which nobody can choose.
    pub fn is_of(&self, customer: &str, secret: &str) -> bool {
        if secret.len() != SECRET_BYTES || !secret.starts_with(PREFIX) {
            return false;
        }
        let hash: [u8; 32] = Sha256::digest(secret.as_bytes()).into();
        self.entries.binary_search_by(|(known, of)| (known, &**of).cmp(&(&hash, customer))).is_ok()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// A secret of these random bytes.
pub fn secret(random: &[u8; RANDOM_BYTES]) -> String {
    format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(random))
}

/// The line of a customer's secret.
pub fn line(customer: &str, secret: &str) -> String {
    let hash = Sha256::digest(secret.as_bytes());
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{customer} sha256:{hex}")
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        // It is ASCII.
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_its_customers_and_nobody_elses() {
        let (one, two) = (secret(&[1; 32]), secret(&[2; 32]));
        let text = format!(
            "# made today\n\n{}  # CI\n{}\n{}\n",
            line("acme", &one),
            line("acme", &two),
            line("other", &two),
        );
        let secrets = Secrets::parse(&text).unwrap();
        assert_eq!(secrets.len(), 3);
        for (customer, secret, is_right) in [
            ("acme", &*one, true),
            ("acme", &two, true),
            ("other", &two, true),
            ("other", &one, false),
            ("nobody", &one, false),
            ("acme", "password", false),
            ("acme", "", false),
        ] {
            assert_eq!(secrets.is_of(customer, secret), is_right, "{customer}");
        }
        assert!(!format!("{secrets:?}").contains("acme"));
    }

    #[test]
    fn what_is_no_line_is_said_with_its_number() {
        let good = line("acme", &secret(&[1; 32]));
        for bad in ["acme", "acme sha256:00", "acme password", &format!("{good} x")] {
            assert_eq!(Secrets::parse(&format!("{good}\n{bad}")), Err(SecretsError { line: 2 }));
        }
    }
}
