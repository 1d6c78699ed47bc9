//! `[admin]`: who may use the API, and what it shows.

use std::net::SocketAddr;
use std::path::PathBuf;

use outrider_settings::Invalid;
use outrider_settings::units::Span;
use serde::{Deserialize, Serialize};

/// The longest name of an issuer or an audience.
const NAME_BYTES_MAX: usize = 255;

/// Who may use the API. Without `auth` everybody who reaches it, so that it must be a loopback address.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdminSection {
    /// Bearer tokens are wanted.
    pub auth: Option<AuthSection>,
    /// TLS with a certificate of its own. Default: where `listen.admin` is no loopback address that of the node or
    /// edge, else no TLS.
    pub tls: Option<TlsSection>,
}

/// Whose tokens are believed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuthSection {
    /// The claim `iss`.
    pub issuer: String,
    /// What must be in the claim `aud`. Default `outrider-admin`.
    #[serde(default = "audience")]
    pub audience: String,
    /// Its public keys, PEM. Read again when the file changes.
    #[serde(default)]
    pub key_file: Option<PathBuf>,
    /// The same as JWKS.
    #[serde(default)]
    pub jwks_file: Option<PathBuf>,
    /// What clocks may differ by. Default 30s.
    #[serde(default = "leeway")]
    pub leeway: Span,
}

fn audience() -> String {
    "outrider-admin".to_owned()
}

fn leeway() -> Span {
    Span::s(30)
}

/// A certificate for the API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsSection {
    /// The certificate, and those of its issuers behind it, PEM.
    pub certificate: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
}

impl AdminSection {
    /// Whether it can be used, on this address.
    ///
    /// # Errors
    /// [`Invalid`]
    pub fn check(&self, listen: Option<SocketAddr>) -> Result<(), Invalid> {
        if let Some(listen) = listen
            && !listen.ip().is_loopback()
            && self.auth.is_none()
        {
            return Err(Invalid::new(
                "listen.admin",
                listen,
                "without admin.auth everybody may use the API, and this is not a loopback address",
                format!("write \"127.0.0.1:{}\", or say who may in [admin.auth]", listen.port()),
            ));
        }
        let Some(auth) = &self.auth else { return Ok(()) };
        for (key, name) in [("issuer", &auth.issuer), ("audience", &auth.audience)] {
            if name.is_empty() || name.len() > NAME_BYTES_MAX {
                return Err(Invalid::new(
                    "admin.auth",
                    key,
                    format!("it has {} bytes", name.len()),
                    format!("write 1 to {NAME_BYTES_MAX} bytes"),
                ));
            }
        }
        if auth.key_file.is_some() == auth.jwks_file.is_some() {
            return Err(Invalid::new(
                "admin.auth",
                "key_file, jwks_file",
                "one of the two says whose tokens are believed",
                "name a file with public keys: key_file (PEM) or jwks_file (JWKS)",
            ));
        }
        if auth.leeway > Span::s(300) {
            return Err(Invalid::new(
                "admin.auth",
                auth.leeway,
                "clocks should not differ by more than 5m",
                "write a leeway of at most 5m",
            ));
        }
        Ok(())
    }
}
