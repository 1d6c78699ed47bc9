//! What a token says: a head, which is only used to find a key, and claims.

use serde::{Deserialize, Deserializer, de};

use crate::json::{OneOrMany, Seconds};
use crate::scope::Scope;

/// The longest customer, in bytes.
pub const CUSTOMER_BYTES_MAX: usize = 128;

/// Entries of the claim `access`.
pub const ACCESS_MAX: usize = 64;

/// Whether it is what a customer may be called: 1 to [`CUSTOMER_BYTES_MAX`] bytes without control characters and spaces.
pub fn is_customer(text: &str) -> bool {
    (1..=CUSTOMER_BYTES_MAX).contains(&text.len())
        && !text.chars().any(|c| c.is_control() || c.is_whitespace())
}

/// The head. What is not named here is not looked at, but for `crit`, which says that it must be.
#[derive(Debug, Deserialize)]
pub(crate) struct Head {
    pub(crate) alg: String,
    #[serde(default)]
    pub(crate) kid: Option<String>,
    #[serde(default)]
    pub(crate) crit: Option<de::IgnoredAny>,
    #[serde(default)]
    pub(crate) b64: Option<bool>,
}

/// The claims that are looked at.
#[derive(Clone, Debug, Deserialize)]
pub struct Claims {
    /// Who made the token.
    #[serde(default)]
    pub(crate) iss: Option<String>,
    /// Whom it is about.
    #[serde(default)]
    pub(crate) sub: Option<String>,
    /// Who it is for.
    #[serde(default)]
    pub(crate) aud: OneOrMany,
    #[serde(default)]
    pub(crate) exp: Option<Seconds>,
    #[serde(default)]
    pub(crate) nbf: Option<Seconds>,
    /// A customer that is not called as the subject is.
    #[serde(default)]
    pub(crate) customer: Option<String>,
    /// Given: it grants this and nothing else; `null` grants nothing.
    #[serde(default, deserialize_with = "given")]
    pub(crate) access: Option<Access>,
    /// What else it is good for, with spaces between (RFC 8693, section 4.2).
    #[serde(default)]
    pub(crate) scope: Option<String>,
}

/// The claim `access`: the scopes that mean something here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Access(pub(crate) Vec<Scope>);

#[derive(Deserialize)]
struct AccessEntry {
    #[serde(rename = "type")]
    kind: String,
    name: String,
    #[serde(default)]
    actions: Vec<String>,
}

/// What stands there, also where that is `null`: an `Option` by itself would take it for what is missing.
fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Access>, D::Error> {
    Access::deserialize(deserializer).map(Some)
}

impl<'de> Deserialize<'de> for Access {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // The token server of the distribution writes `null` where nothing is granted.
        let entries = Option::<Vec<AccessEntry>>::deserialize(deserializer)?.unwrap_or_default();
        if entries.len() > ACCESS_MAX {
            return Err(de::Error::custom("the list of scopes is too long"));
        }
        let scope = |entry: &AccessEntry| {
            Scope::from_parts(&entry.kind, &entry.name, entry.actions.iter().map(String::as_str))
        };
        Ok(Self(entries.iter().filter_map(scope).collect()))
    }
}
