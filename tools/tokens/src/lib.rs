//! Who may do what: bearer tokens as the registry's token flow has them, and rules for who has none.
//!
//! Without I/O: the time, keys and secrets are arguments. A token is a JWT in compact form, signed with EdDSA (Ed25519),
//! ES256 or RS256. There are no symmetric algorithms here, so that no public key can be taken for a secret.
//!
//! - [`scope`]: what is asked for and granted, `repository:NAME:pull,push`.
//! - [`rules`]: what is granted to whom without a token that says it, `pull:library/**`.
//! - [`key`]: public keys of issuers, from PEM or JWKS.
//! - [`claims`]: what a token says.
//! - [`verify`]: whether it is to be believed.
//! - [`sign`]: tokens of one's own.
//! - [`secret`]: what customers log in with where they have no token of an issuer.
//! - [`challenge`]: what a client is told that lacks a token.

#![forbid(unsafe_code)]

pub mod challenge;
pub mod claims;
mod json;
pub mod key;
pub mod rules;
pub mod scope;
pub mod secret;
pub mod sign;
pub mod verify;

pub use claims::{Claims, is_customer};
pub use key::{KeyError, KeySet};
pub use rules::{Rule, RuleError};
pub use scope::{Actions, Scope, ScopeError, Target};
pub use secret::Secrets;
pub use sign::SigningKey;
pub use verify::{Issuer, Proven, TokenError, Verifier};
