//! `/token`: the edge's own tokens, as the distribution's token specification has them. GET with `Basic`, as docker asks,
//! and POST with a form, as containerd does. A name and its secret, or a token of an issuer, give a short token for those
//! of the wanted scopes that the customer has; without a name, for those that anybody has.

use bytes::BytesMut;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use outrider_tokens::rules::granted;
use outrider_tokens::sign::Grant;
use outrider_tokens::{Actions, Scope, TokenError};
use outrider_transport::{Peer, RequestBody};

use super::asker::Rightful;
use super::audit::Line;
use super::gate::{Credential, Gate, Refusal, protocol_name};
use super::tables::{AccessTables, OWN_ISSUER, Realm};
use crate::gateway::{Answer, Gateway, json, unix_ms, value};
use crate::names::Names;
use crate::protocol::{ApiError, Code};
use crate::uploads::ANONYMOUS;

/// The longest form, in bytes.
const FORM_BYTES_MAX: usize = 24 << 10;

/// The most scopes of one token.
const SCOPES_MAX: usize = 32;

/// What a client asks for.
#[derive(Debug, Default)]
struct Wanted {
    scopes: Vec<Scope>,
    service: Option<String>,
    login: Option<(String, String)>,
}

impl Wanted {
    /// One `scope`, which may have several in it with spaces between. What means nothing here is not granted.
    fn add_scopes(&mut self, text: &str) {
        for scope in text.split_ascii_whitespace() {
            if let Ok(scope) = scope.parse()
                && self.scopes.len() < SCOPES_MAX
                && !self.scopes.contains(&scope)
            {
                self.scopes.push(scope);
            }
        }
    }

    /// OAuth 2 by the form of a POST.
    fn of_form(form: &[u8]) -> Result<Self, ApiError> {
        let mut wanted = Self::default();
        let (mut grant, mut name, mut secret) = (String::new(), None, None);
        for (key, text) in form_urlencoded::parse(form) {
            match &*key {
                "grant_type" => grant = text.into_owned(),
                "username" => name = Some(text.into_owned()),
                "password" => secret = Some(text.into_owned()),
                "service" => wanted.service = Some(text.into_owned()),
                "scope" => wanted.add_scopes(&text),
                _ => {}
            }
        }
        match (&*grant, name, secret) {
            ("password", Some(name), Some(secret)) => wanted.login = Some((name, secret)),
            ("password", _, _) => return Err(bad("username and password are missing")),
            // It has clients go on with GET.
            _ => {
                return Err(bad("only the grant_type password is known here")
                    .with_status(StatusCode::METHOD_NOT_ALLOWED));
            }
        }
        Ok(wanted)
    }
}

impl<N: Names> Gateway<N> {
    pub(crate) async fn give_token(
        &self,
        method: &Method,
        scopes: Vec<String>,
        service: Option<String>,
        headers: &HeaderMap,
        body: RequestBody,
        peer: Peer,
    ) -> Answer {
        let Some(gate) = &self.gate else { return Err(crate::protocol::route::unknown_path()) };
        let mut wanted = if *method == Method::POST {
            Wanted::of_form(&read_form(body).await?)?
        } else {
            let mut wanted = Wanted { service, ..Wanted::default() };
            scopes.iter().for_each(|scope| wanted.add_scopes(scope));
            wanted
        };
        // Not before all of the request is here, which may take its time: what was revoked meanwhile gives nothing.
        let mut tables = gate.tables();
        if wanted.service.as_ref().is_some_and(|service| *service != tables.service) {
            return Err(bad(&format!("tokens are given for the service {}", tables.service)));
        }
        let credential = match wanted.login.take() {
            Some((name, secret)) => Ok(Some(Credential::Basic { name, secret })),
            None => Credential::of(headers),
        };
        // A key that is not known yet is looked for first.
        if let Ok(Some(credential)) = &credential
            && let Err(Refusal::Token(TokenError::Key)) = gate.believe(credential, unix_ms() / 1000)
        {
            gate.await_keys(credential).await;
            tables = gate.tables();
        }
        let now_unix_s = unix_ms() / 1000;
        let proven = credential.and_then(|credential| {
            let Some(credential) = credential else { return Ok((None, tables.token_life_s)) };
            let proven = gate.believe(&credential, now_unix_s)?;
            let life_s = life_s(&tables, &proven, now_unix_s).map_err(Refusal::Token)?;
            Ok((Some(proven), life_s))
        });
        match proven {
            Ok((proven, life_s)) => {
                let life = Life { now_unix_s, life_s };
                give(gate, &tables, proven.as_deref(), &wanted, life, peer)
            }
            Err(why) => {
                gate.count_refused(why);
                gate.audit(&line("refused", why.name(), ANONYMOUS, None, 401, peer));
                let realm = value(format!("Basic realm=\"{}\"", tables.service));
                let error = gate_error(why);
                Err(error.with_header(WWW_AUTHENTICATE, realm))
            }
        }
    }
}

fn gate_error(why: Refusal) -> ApiError {
    let text = match why {
        Refusal::Token(error) => error.to_string(),
        _ => "the name or its secret is wrong".to_owned(),
    };
    ApiError::new(Code::Unauthorized, text)
}

fn line<'a>(
    outcome: &'static str,
    reason: &'static str,
    customer: &'a str,
    scopes: Option<String>,
    status: u16,
    peer: Peer,
) -> Line<'a> {
    Line {
        unix_ms: unix_ms(),
        outcome,
        reason,
        action: "token",
        customer,
        repository: None,
        digest: None,
        reference: None,
        scopes,
        status,
        remote: peer.address,
        protocol: protocol_name(peer.protocol),
    }
}

/// From when on, and for how long, in seconds.
#[derive(Clone, Copy)]
struct Life {
    now_unix_s: u64,
    life_s: u64,
}

/// How long a token lasts that is given for this: it does not outlive it. The leeway is for the clocks of others and no
/// time to live; with it, a token could be exchanged for a later one for ever.
///
/// # Errors
/// [`TokenError::Expired`] where nothing is left but the leeway.
fn life_s(tables: &AccessTables, proven: &Rightful, now_unix_s: u64) -> Result<u64, TokenError> {
    let expires_unix_s = proven.until_unix_s.saturating_sub(tables.verifier.leeway_s);
    match tables.token_life_s.min(expires_unix_s.saturating_sub(now_unix_s)) {
        0 => Err(TokenError::Expired),
        life_s => Ok(life_s),
    }
}

fn give(
    gate: &Gate,
    tables: &AccessTables,
    proven: Option<&Rightful>,
    wanted: &Wanted,
    Life { now_unix_s, life_s }: Life,
    peer: Peer,
) -> Answer {
    let Realm::Own(key) = &tables.realm else {
        let Realm::Other(address) = &tables.realm else { unreachable!("there are two of them") };
        return Err(
            bad(&format!("tokens are given at {address}")).with_status(StatusCode::NOT_FOUND)
        );
    };
    let access: Vec<Scope> =
        wanted.scopes.iter().filter_map(|scope| part_of(tables, proven, scope)).collect();
    let mut random = [0; 12];
    getrandom::fill(&mut random).map_err(|error| {
        ApiError::new(Code::Unknown, format!("the system has no random numbers: {error}"))
    })?;
    let id: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let customer = proven.and_then(|proven| proven.customer.as_deref());
    let token = key.sign(&Grant {
        issuer: &format!("{OWN_ISSUER}{}", tables.service),
        audience: &tables.service,
        customer,
        access: Some(&access),
        now_unix_s,
        life_s,
        id: &id,
    });
    let token = token.map_err(|error| {
        ApiError::new(Code::Unknown, format!("no token can be signed: {error}"))
    })?;
    let given = access.iter().map(Scope::to_string).collect::<Vec<_>>().join(" ");
    gate.audit(&line("granted", "ok", customer.unwrap_or(ANONYMOUS), Some(given), 200, peer));
    let body = serde_json::json!({
        "token": token,
        "access_token": token,
        "expires_in": life_s,
        "issued_at": issued_at(now_unix_s),
    });
    let mut response = json(StatusCode::OK, body.to_string());
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

/// What of a scope somebody has.
fn part_of(tables: &AccessTables, proven: Option<&Rightful>, scope: &Scope) -> Option<Scope> {
    let everybodys = granted(&tables.anonymous, scope);
    let theirs = proven.and_then(|proven| match &proven.scopes {
        None => granted(&proven.rules, scope),
        Some(scopes) => within(scopes, scope),
    });
    match (everybodys, theirs) {
        (
            Some(Scope::Repository { name, actions: one }),
            Some(Scope::Repository { actions: two, .. }),
        ) => Some(Scope::Repository { name, actions: one.and(two) }),
        (one, two) => one.or(two),
    }
}

/// What of a scope is in others.
fn within(scopes: &[Scope], asked: &Scope) -> Option<Scope> {
    match asked {
        Scope::Catalog => scopes.contains(asked).then_some(Scope::Catalog),
        Scope::Repository { name, actions } => {
            let all = scopes.iter().fold(Actions::NONE, |all, scope| match scope {
                Scope::Repository { name: of, actions } if of == name => all.and(*actions),
                _ => all,
            });
            let common = all.common(*actions);
            (!common.is_empty()).then(|| Scope::repository(name, common))
        }
    }
}

async fn read_form(mut body: RequestBody) -> Result<BytesMut, ApiError> {
    let mut bytes = BytesMut::new();
    while let Some(piece) = body.next().await {
        let piece = piece.map_err(|error| bad(&error.to_string()))?;
        if bytes.len() + piece.len() > FORM_BYTES_MAX {
            return Err(bad("the form is too long").with_status(StatusCode::PAYLOAD_TOO_LARGE));
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

fn bad(text: &str) -> ApiError {
    ApiError::new(Code::Unsupported, text.to_owned()).with_status(StatusCode::BAD_REQUEST)
}

/// RFC 3339, in UTC, of seconds since 1970 (the days by Howard Hinnant's `civil_from_days`).
fn issued_at(unix_s: u64) -> String {
    let (days, second) = (unix_s / 86_400, unix_s % 86_400);
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (date, month) = (day - (153 * month + 2) / 5 + 1, month % 12);
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{date:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_rfc_3339_has_them() {
        for (unix_s, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_800_000_000, "2027-01-15T08:00:00Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(issued_at(unix_s), text);
        }
    }

    #[test]
    fn a_form_says_who_and_what() {
        let form = b"grant_type=password&username=acme&password=a%2Bb&service=edge&client_id=x\
            &scope=repository%3Aa%3Apull+repository%3Ab%3Apush+nothing";
        let wanted = Wanted::of_form(form).unwrap();
        assert_eq!(wanted.login, Some(("acme".into(), "a+b".into())));
        assert_eq!(wanted.service.as_deref(), Some("edge"));
        let scopes: Vec<String> = wanted.scopes.iter().map(Scope::to_string).collect();
        assert_eq!(scopes, ["repository:a:pull", "repository:b:push"]);
        for form in [&b"grant_type=refresh_token&refresh_token=x"[..], b"", b"\xff\xfe=%zz"] {
            assert_eq!(Wanted::of_form(form).unwrap_err().status(), 405);
        }
        assert_eq!(Wanted::of_form(b"grant_type=password").unwrap_err().status(), 400);
    }

    #[test]
    fn a_token_does_not_outlive_what_it_is_given_for() {
        let tables = AccessTables {
            service: "edge".into(),
            realm: Realm::Other(String::new()),
            verifier: outrider_tokens::Verifier { issuers: Vec::new(), leeway_s: 60 },
            anonymous: [].into(),
            customers: std::collections::HashMap::new(),
            owners: Vec::new(),
            secrets: outrider_tokens::Secrets::default(),
            loopback_is_open: false,
            token_life_s: 300,
        };
        let life = |until_unix_s: u64| {
            let proven = Rightful { customer: None, scopes: None, rules: [].into(), until_unix_s };
            life_s(&tables, &proven, 1_000)
        };
        // The end of a secret, and of a token, in which the leeway is.
        assert_eq!(life(u64::MAX), Ok(300));
        assert_eq!(life(1_000 + 1_000), Ok(300));
        assert_eq!(life(1_000 + 60 + 20), Ok(20));
        assert_eq!(life(1_000 + 60), Err(TokenError::Expired));
        assert_eq!(life(1_000 + 30), Err(TokenError::Expired));
    }

    #[test]
    fn what_is_wanted_is_bounded() {
        let mut wanted = Wanted::default();
        for number in 0..100 {
            wanted.add_scopes(&format!("repository:a{number}:pull repository:a{number}:pull"));
        }
        assert_eq!(wanted.scopes.len(), SCOPES_MAX);
    }
}
