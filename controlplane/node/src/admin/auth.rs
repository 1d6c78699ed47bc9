//! Operators' bearer tokens. A token says in its claim `scope` what it is good for: `outrider:read`,
//! `outrider:write`, which may read too, or `outrider:admin`, which may do everything.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::header::{AUTHORIZATION, HOST, HeaderMap, HeaderValue, ORIGIN, WWW_AUTHENTICATE};
use http::uri::Authority;
use http::{Method, Request, StatusCode};
use outrider_tokens::key::KEY_FILE_BYTES_MAX;
use outrider_tokens::{Issuer, KeySet, Verifier};

use super::answer::{Answer, failure};
use super::is_read;
use super::route::Place;
use crate::config::AuthSection;

/// How often it is looked whether the file of keys is another one.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);

/// What a request needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Needs {
    /// Nothing: supervisors ask.
    Nothing,
    /// To read.
    Read,
    /// To change what the state is.
    Write,
    /// To change the cluster.
    Admin,
}

impl Needs {
    pub(crate) fn of(place: Place, method: &Method) -> Self {
        match place {
            Place::Health | Place::Ready => Self::Nothing,
            Place::ClusterToken | Place::ClusterLeave | Place::ClusterRemove => Self::Admin,
            _ if is_read(method) => Self::Read,
            _ => Self::Write,
        }
    }

    fn of_scope(scope: &str) -> Option<Self> {
        match scope {
            "outrider:read" => Some(Self::Read),
            "outrider:write" => Some(Self::Write),
            "outrider:admin" => Some(Self::Admin),
            _ => None,
        }
    }
}

/// Why a request may come from a page in a browser, which anybody may have made, and not from an operator. Asked where
/// no token says who it is.
pub(crate) fn why_a_page<B>(request: &Request<B>) -> Option<&'static str> {
    if request.headers().contains_key(ORIGIN) {
        return Some("a request of a page in a browser needs admin.auth");
    }
    let named = request.headers().get(HOST).map(|host| host.to_str().unwrap_or(""));
    let authority = named.and_then(|host| host.parse::<Authority>().ok());
    let host = match (named, &authority) {
        (None, _) => request.uri().host()?,
        (Some(_), None) => "",
        (Some(_), Some(authority)) => authority.host(),
    };
    let is_address = host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    let is_local = host == "localhost" || host.ends_with(".localhost");
    // Any name may be made to mean this machine by whoever owns it.
    (!is_address && !is_local).then_some("without admin.auth, ask by an address, or as localhost")
}

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
#[error("admin.auth: {path}: {reason}")]
pub struct AuthError {
    path: String,
    reason: String,
}

/// Whose tokens are believed.
#[derive(Debug)]
pub(crate) struct Auth {
    section: AuthSection,
    verifier: RwLock<Arc<Verifier>>,
}

/// Who asks, as the token says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Operator(pub(crate) String);

impl Auth {
    /// Reads the keys.
    ///
    /// # Errors
    /// [`AuthError`]
    pub(crate) fn open(section: &AuthSection) -> Result<Self, AuthError> {
        let verifier = RwLock::new(Arc::new(verifier(section)?));
        Ok(Self { section: section.clone(), verifier })
    }

    /// Takes other keys as they are written, until it is dropped. What cannot be read leaves those that there are.
    pub(crate) async fn watch(self: Arc<Self>) {
        let mut last = None;
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            let this = Arc::clone(&self);
            let read = tokio::task::spawn_blocking(move || verifier(&this.section)).await;
            let failure = match read {
                Ok(Ok(verifier)) => {
                    *self.verifier.write().unwrap_or_else(PoisonError::into_inner) =
                        Arc::new(verifier);
                    None
                }
                Ok(Err(error)) => Some(error.to_string()),
                Err(error) => Some(error.to_string()),
            };
            if let Some(why) = failure.as_ref().filter(|_| failure != last) {
                tracing::warn!(why, "the keys of operators' tokens cannot be read");
            }
            last = failure;
        }
    }

    /// Who asks, if that is enough for what is asked.
    pub(crate) fn check(&self, headers: &HeaderMap, needs: Needs) -> Result<Operator, Box<Answer>> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let verifier = Arc::clone(&self.verifier.read().unwrap_or_else(PoisonError::into_inner));
        check(&verifier, headers, needs, now)
    }
}

fn check(
    verifier: &Verifier,
    headers: &HeaderMap,
    needs: Needs,
    now_unix_s: u64,
) -> Result<Operator, Box<Answer>> {
    let mut given = headers.get_all(AUTHORIZATION).iter();
    let token = match (given.next(), given.next()) {
        (Some(value), None) => value.to_str().ok().and_then(bearer),
        _ => None,
    };
    let Some(token) = token else {
        let why = "a bearer token is wanted";
        return Err(challenged(StatusCode::UNAUTHORIZED, why, "Bearer realm=\"outrider\""));
    };
    let (proven, scope) = verifier.verify_scope(token, now_unix_s).map_err(|error| {
        let challenge = "Bearer realm=\"outrider\", error=\"invalid_token\"";
        challenged(StatusCode::UNAUTHORIZED, error, challenge)
    })?;
    let may = scope.split(' ').filter_map(Needs::of_scope).max();
    if may.is_none_or(|may| may < needs) {
        let challenge = "Bearer realm=\"outrider\", error=\"insufficient_scope\"";
        let why = "the token is not good for this: its scope is too small";
        return Err(challenged(StatusCode::FORBIDDEN, why, challenge));
    }
    Ok(Operator(proven.customer.unwrap_or_default()))
}

/// The scheme is written in any case (RFC 9110, section 11.1).
fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim_start())
}

fn challenged(
    status: StatusCode,
    why: impl std::fmt::Display,
    challenge: &'static str,
) -> Box<Answer> {
    let mut answer = failure(status, why);
    answer.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
    Box::new(answer)
}

fn verifier(section: &AuthSection) -> Result<Verifier, AuthError> {
    let AuthSection { issuer, audience, key_file, jwks_file, leeway } = section;
    let none = PathBuf::new();
    let path = key_file.as_ref().or(jwks_file.as_ref()).unwrap_or(&none);
    let wrong = |reason: String| AuthError { path: path.display().to_string(), reason };
    let bytes = read(path).map_err(|error| wrong(error.to_string()))?;
    let keys = match key_file {
        Some(_) => KeySet::from_pem(&bytes),
        None => KeySet::from_jwks(&bytes),
    };
    let keys = keys.map_err(|error| wrong(error.to_string()))?;
    let issuer = Issuer {
        name: issuer.clone(),
        audience: audience.clone(),
        keys,
        // Whoever changes something has a name.
        nobody_too: false,
    };
    Ok(Verifier { issuers: vec![issuer], leeway_s: leeway.0.as_secs() })
}

/// No more of a file than keys may have, and one byte, which is too much.
fn read(path: &std::path::Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path)?;
    file.take(KEY_FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use outrider_tokens::SigningKey;
    use rcgen::{KeyPair, PKCS_ED25519};

    use super::*;

    const NOW: u64 = 1_800_000_000;

    /// A token with this scope, signed by what is signed here: `SigningKey` gives none with a scope.
    fn token(key: &KeyPair, scope: &str) -> String {
        let claims = serde_json::json!({
            "iss": "ops", "aud": "outrider-admin", "sub": "ann", "exp": NOW + 60, "scope": scope,
        });
        let part = |text: String| URL_SAFE_NO_PAD.encode(text);
        let message =
            format!("{}.{}", part("{\"alg\":\"EdDSA\"}".to_owned()), part(claims.to_string()));
        let signature = rcgen::SigningKey::sign(key, message.as_bytes()).unwrap();
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    #[test]
    fn a_token_is_good_for_its_scope_and_what_is_less() {
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let public = SigningKey::from_pem(key.serialize_pem().as_bytes()).unwrap();
        let issuer = Issuer {
            name: "ops".to_owned(),
            audience: "outrider-admin".to_owned(),
            keys: public.public().clone(),
            nobody_too: false,
        };
        let verifier = Verifier { issuers: vec![issuer], leeway_s: 0 };
        let ask = |authorization: Option<&str>, needs, now| {
            let mut headers = HeaderMap::new();
            headers.extend(authorization.map(|text| (AUTHORIZATION, text.parse().unwrap())));
            check(&verifier, &headers, needs, now).map_err(|answer| answer.status().as_u16())
        };
        let ann = || Ok(Operator("ann".to_owned()));
        let write = format!("bearer {}", token(&key, "openid outrider:write"));
        assert_eq!(ask(Some(&write), Needs::Read, NOW), ann());
        assert_eq!(ask(Some(&write), Needs::Write, NOW), ann());
        assert_eq!(ask(Some(&write), Needs::Admin, NOW), Err(403));
        assert_eq!(ask(Some(&write), Needs::Read, NOW + 61), Err(401));
        let none = format!("Bearer {}", token(&key, "openid"));
        assert_eq!(ask(Some(&none), Needs::Read, NOW), Err(403));
        let other = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let forged = format!("Bearer {}", token(&other, "outrider:admin"));
        for bad in [None, Some(&*forged), Some("Bearer x"), Some("Basic YTpi"), Some("Bearer")] {
            assert_eq!(ask(bad, Needs::Read, NOW), Err(401), "{bad:?}");
        }
    }

    #[test]
    fn what_changes_the_cluster_needs_more_than_what_changes_the_state() {
        assert_eq!(Needs::of(Place::Health, &Method::GET), Needs::Nothing);
        assert_eq!(Needs::of(Place::Fragment, &Method::HEAD), Needs::Read);
        assert_eq!(Needs::of(Place::Fragment, &Method::PUT), Needs::Write);
        assert_eq!(Needs::of(Place::Batch, &Method::POST), Needs::Write);
        assert_eq!(Needs::of(Place::ClusterToken, &Method::POST), Needs::Admin);
    }

    #[test]
    fn without_tokens_a_page_in_a_browser_may_ask_nothing() {
        let asked = |headers: &[(&str, &str)]| {
            let mut request = Request::post("/v1/batch");
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            why_a_page(&request.body(()).unwrap()).is_none()
        };
        for host in ["127.0.0.1:9190", "localhost:9190", "[::1]:9180", "10.0.0.1", "a.localhost"] {
            assert!(asked(&[("host", host)]), "{host}");
        }
        assert!(asked(&[]));
        for host in ["evil.example:9190", "localhost.evil.example", "", "127.0.0.1.evil.example"] {
            assert!(!asked(&[("host", host)]), "{host}");
        }
        assert!(!asked(&[("host", "localhost"), ("origin", "https://evil.example")]));
        assert!(!asked(&[("host", "localhost"), ("origin", "null")]));
    }
}
