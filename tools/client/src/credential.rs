//! Who asks: a token, or a customer's name with its secret. It goes to the edge and to nobody else.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;

/// What proves who asks.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// A token.
    Bearer(String),
    /// A name and its secret. Not over the native protocol, which takes tokens.
    Basic {
        /// The name.
        name: String,
        /// The secret.
        secret: String,
    },
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bearer(_) => f.write_str("a token"),
            Self::Basic { name, .. } => write!(f, "the secret of {name}"),
        }
    }
}

impl Credential {
    /// From the first line of a text: a token, or `NAME:SECRET`. Nothing for what is neither.
    pub fn parse(text: &str) -> Option<Self> {
        let line = text.lines().next().unwrap_or_default().trim();
        if line.is_empty() || !line.bytes().all(|byte| byte.is_ascii_graphic()) {
            return None;
        }
        Some(match line.split_once(':') {
            Some((name, secret)) => Self::Basic { name: name.into(), secret: secret.into() },
            None => Self::Bearer(line.into()),
        })
    }

    /// What `docker login` and others wrote for this host, if it stands in the file itself and not with a helper.
    pub fn of_docker(config: &[u8], host: &str) -> Option<Self> {
        let config: serde_json::Value = serde_json::from_slice(config).ok()?;
        let auth = config.get("auths")?.get(host)?.get("auth")?.as_str()?;
        let text = String::from_utf8(STANDARD.decode(auth).ok()?).ok()?;
        let (name, secret) = text.split_once(':')?;
        Some(Self::Basic { name: name.into(), secret: secret.into() })
    }

    /// As HTTP has it; nothing for what cannot stand in a header.
    pub(crate) fn header(&self) -> Option<HeaderValue> {
        let text = match self {
            Self::Bearer(token) => format!("Bearer {token}"),
            Self::Basic { name, secret } => {
                format!("Basic {}", STANDARD.encode(format!("{name}:{secret}")))
            }
        };
        let mut value = HeaderValue::try_from(text).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_token_or_a_name_and_its_secret() {
        let basic = Credential::Basic { name: "acme".into(), secret: "s3".into() };
        assert_eq!(Credential::parse("acme:s3\nmore"), Some(basic.clone()));
        assert_eq!(Credential::parse(" a.b.c \n"), Some(Credential::Bearer("a.b.c".into())));
        assert_eq!(Credential::parse("\n"), None);
        assert_eq!(Credential::parse("a b"), None);
        let config = br#"{"auths":{"edge.test:8443":{"auth":"YWNtZTpzMw=="},"other":{}}}"#;
        assert_eq!(Credential::of_docker(config, "edge.test:8443"), Some(basic));
        assert_eq!(Credential::of_docker(config, "other"), None);
        assert_eq!(Credential::of_docker(b"", "other"), None);
        assert!(!format!("{:?}", Credential::parse("acme:s3")).contains("s3"));
    }
}
