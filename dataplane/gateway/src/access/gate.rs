//! The tables on one shard, with what was believed there: a token or secret is looked at once, and known by its hash
//! until it ends or the tables change.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hashbrown::HashMap;
use http::header::{AUTHORIZATION, HOST, WWW_AUTHENTICATE};
use http::{HeaderMap, StatusCode, Uri};
use outrider_metrics::Counter;
use outrider_tokens::challenge::{Why, challenge};
use outrider_tokens::verify::TOKEN_BYTES_MAX;
use outrider_tokens::{Actions, Scope, Target, TokenError};
use outrider_transport::{Peer, Protocol};
use prometheus_client::encoding::EncodeLabelSet;
use sha2::{Digest as _, Sha256};

use super::asker::{Asker, Rightful, Rights};
use super::audit::Line;
use super::keys::{GLANCE, WAIT_MAX, WAITING_MAX};
use super::links::Links;
use super::tables::{AccessShared, AccessTables, Realm};
use crate::gateway::{unix_ms, value};
use crate::metrics::GatewayMetrics;
use crate::protocol::{ApiError, Code};
use crate::uploads::ANONYMOUS;

/// Tokens and secrets that are known; some 300 bytes each. Beyond that all are forgotten.
const PROVEN_MAX: usize = 4096;

/// What stands behind `Basic`: a name, a colon and a token.
const BASIC_BYTES_MAX: usize = (TOKEN_BYTES_MAX + 256) / 3 * 4 + 4;

/// How a decision went.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct DecisionLabels {
    /// `granted` or `refused`.
    pub outcome: &'static str,
    /// `ok`, or why not.
    pub reason: &'static str,
}

/// Why somebody is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Nothing was shown.
    Missing,
    /// The token is not believed.
    Token(TokenError),
    /// The name and secret are not.
    Secret,
    /// The header has not the form of any.
    Header,
    /// They may not do that.
    Scope,
    /// They speak for another customer.
    Customer,
    /// The repository is not named.
    DigestAlone,
    /// The repository does not have the content.
    NotLinked,
}

impl Refusal {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Token(error) => error.name(),
            Self::Secret => "secret",
            Self::Header => "header",
            Self::Scope => "scope",
            Self::Customer => "other_customer",
            Self::DigestAlone => "digest_alone",
            Self::NotLinked => "not_linked",
        }
    }
}

/// What somebody showed.
pub(crate) enum Credential<'a> {
    Bearer(&'a str),
    Basic { name: String, secret: String },
}

impl<'a> Credential<'a> {
    /// From the headers of a request.
    pub(crate) fn of(headers: &'a HeaderMap) -> Result<Option<Self>, Refusal> {
        let mut all = headers.get_all(AUTHORIZATION).iter();
        let Some(text) = all.next() else { return Ok(None) };
        // Two readers of one request could take one each.
        if all.next().is_some() {
            return Err(Refusal::Header);
        }
        let text = text.to_str().map_err(|_| Refusal::Header)?;
        let (scheme, rest) = text.split_once(' ').ok_or(Refusal::Header)?;
        let rest = rest.trim();
        if scheme.eq_ignore_ascii_case("bearer") {
            return Ok(Some(Self::Bearer(rest)));
        }
        if !scheme.eq_ignore_ascii_case("basic") || rest.len() > BASIC_BYTES_MAX {
            return Err(Refusal::Header);
        }
        let bytes = STANDARD.decode(rest).map_err(|_| Refusal::Header)?;
        let text = String::from_utf8(bytes).map_err(|_| Refusal::Header)?;
        let (name, secret) = text.split_once(':').ok_or(Refusal::Header)?;
        Ok(Some(Self::Basic { name: name.to_owned(), secret: secret.to_owned() }))
    }

    fn key(&self) -> [u8; 32] {
        match self {
            Self::Bearer(token) => Sha256::digest(token).into(),
            // No token has a line break in it, so that none is a name and a secret.
            Self::Basic { name, secret } => Sha256::new_with_prefix(name)
                .chain_update("\n")
                .chain_update(secret)
                .finalize()
                .into(),
        }
    }
}

/// What a shard knows of who may do what.
pub(crate) struct Gate {
    shared: Arc<AccessShared>,
    generation: Cell<u64>,
    tables: RefCell<Arc<AccessTables>>,
    proven: RefCell<HashMap<[u8; 32], Rc<Rightful>>>,
    owners: RefCell<HashMap<Box<str>, Rc<str>>>,
    pub(crate) links: RefCell<Links>,
    /// Who waits for keys.
    waiting: Cell<usize>,
    metrics: GatewayMetrics,
    granted: Counter,
    verified: Counter,
}

impl Gate {
    pub(crate) fn new(shared: Arc<AccessShared>, metrics: &GatewayMetrics) -> Self {
        let granted = DecisionLabels { outcome: "granted", reason: "ok" };
        Self {
            generation: Cell::new(shared.generation()),
            tables: RefCell::new(shared.tables()),
            shared,
            proven: RefCell::default(),
            owners: RefCell::default(),
            links: RefCell::default(),
            waiting: Cell::new(0),
            granted: metrics.access_decisions.get_or_create_owned(&granted),
            verified: metrics.access_verified.clone(),
            metrics: metrics.clone(),
        }
    }

    /// The tables as they are now. What was believed by other ones is forgotten.
    pub(crate) fn tables(&self) -> Arc<AccessTables> {
        let generation = self.shared.generation();
        if self.generation.replace(generation) != generation {
            *self.tables.borrow_mut() = self.shared.tables();
            self.proven.borrow_mut().clear();
            self.owners.borrow_mut().clear();
        }
        self.tables.borrow().clone()
    }

    /// Who asks. A token is verified if it is not known.
    ///
    /// # Errors
    /// [`Refusal`] for what was shown and is not believed. Nothing shown is nobody.
    pub(crate) fn who(&self, headers: &HeaderMap, peer: Peer) -> Result<Asker, Refusal> {
        let tables = self.tables();
        if peer.member.is_some() {
            return Ok(Asker { customer: None, rights: Rights::Member });
        }
        let Some(credential) = Credential::of(headers)? else {
            if peer.is_loopback() && tables.loopback_is_open {
                return Ok(Asker::open());
            }
            let rights = Rights::Anonymous(tables.anonymous.clone());
            return Ok(Asker { customer: None, rights });
        };
        let proven = self.believe(&credential, unix_ms() / 1000)?;
        let customer = proven.customer.clone();
        let rights = Rights::Proven { proven, anonymous: tables.anonymous.clone() };
        Ok(Asker { customer, rights })
    }

    /// After a token was refused since its key is not known: waits while its issuer's keys are looked for. False where
    /// they will not be.
    pub(crate) async fn await_keys(&self, credential: &Credential<'_>) -> bool {
        let token = match credential {
            Credential::Bearer(token) => token,
            Credential::Basic { secret, .. } => secret.as_str(),
        };
        let Some(issuer) = self.tables().verifier.unknown_key_of(token) else { return false };
        if self.waiting.get() >= WAITING_MAX || !self.shared.keys.want(issuer, Instant::now()) {
            return false;
        }
        let _place = Waiting::of(&self.waiting);
        let until = Instant::now() + WAIT_MAX;
        while self.shared.keys.is_wanted(issuer) {
            if Instant::now() >= until {
                return false;
            }
            outrider_shard::time::sleep(GLANCE).await;
        }
        true
    }

    /// The same without verifying anything: nothing where it would have to be.
    pub(crate) fn who_known(&self, headers: &HeaderMap, peer: Peer) -> Option<Asker> {
        let Ok(Some(credential)) = Credential::of(headers) else {
            return self.who(headers, peer).ok();
        };
        let now = unix_ms() / 1000;
        let anonymous = self.tables().anonymous.clone();
        let proven = self.proven.borrow().get(&credential.key()).cloned()?;
        let customer = proven.customer.clone();
        (now < proven.until_unix_s)
            .then_some(Asker { customer, rights: Rights::Proven { proven, anonymous } })
    }

    /// Whose this is, by the tables as they are now: what is remembered must not be what other ones said.
    ///
    /// # Errors
    /// [`Refusal`] for what is not believed.
    pub(crate) fn believe(
        &self,
        credential: &Credential<'_>,
        now_unix_s: u64,
    ) -> Result<Rc<Rightful>, Refusal> {
        let tables = self.tables();
        let key = credential.key();
        if let Some(proven) = self.proven.borrow().get(&key) {
            if now_unix_s < proven.until_unix_s {
                return Ok(proven.clone());
            }
            return Err(Refusal::Token(TokenError::Expired));
        }
        self.verified.inc();
        let rightful = match credential {
            Credential::Bearer(token) => by_token(&tables, token, now_unix_s)?,
            Credential::Basic { name, secret } if tables.secrets.is_of(name, secret) => Rightful {
                customer: Some(name.as_str().into()),
                scopes: None,
                rules: tables.rules(name).unwrap_or_default(),
                until_unix_s: u64::MAX,
            },
            Credential::Basic { name, secret } if secret.contains('.') => {
                let rightful = by_token(&tables, secret, now_unix_s)?;
                if rightful.customer.as_deref() != Some(name) {
                    return Err(Refusal::Secret);
                }
                rightful
            }
            Credential::Basic { .. } => return Err(Refusal::Secret),
        };
        let rightful = Rc::new(rightful);
        let mut proven = self.proven.borrow_mut();
        if proven.len() >= PROVEN_MAX {
            proven.clear();
        }
        proven.insert(key, rightful.clone());
        Ok(rightful)
    }

    /// Counts what nobody's token comes with for whose the repository is. What another edge asks is its own.
    pub(crate) fn count_for_owner(&self, asker: &mut Asker, repository: &str) {
        if asker.customer.is_none() && !matches!(asker.rights, Rights::Member) {
            asker.customer = self.owner(repository);
        }
    }

    /// Whose requests to a repository are that nobody's token comes with.
    fn owner(&self, repository: &str) -> Option<Rc<str>> {
        let tables = self.tables.borrow();
        let owner = tables.owner(repository)?;
        let mut owners = self.owners.borrow_mut();
        if let Some(known) = owners.get(owner) {
            return Some(known.clone());
        }
        let shared: Rc<str> = owner.into();
        owners.insert(owner.into(), shared.clone());
        Some(shared)
    }

    /// Whether somebody may do that. Counts it if so.
    pub(crate) fn allows(&self, asker: &Asker, target: Target<'_>, actions: Actions) -> bool {
        let may = asker.may(target, actions);
        if may {
            self.granted.inc();
        }
        may
    }

    pub(crate) fn count_refused(&self, why: Refusal) {
        let labels = DecisionLabels { outcome: "refused", reason: why.name() };
        self.metrics.access_decisions.get_or_create(&labels).inc();
    }

    pub(crate) fn audit(&self, line: &Line<'_>) {
        self.shared.audit.tell(line);
    }

    /// The error for who is refused.
    pub(crate) fn error(
        &self,
        why: Refusal,
        asker: Option<&Asker>,
        scopes: &[Scope],
        asked: &AskedAt<'_>,
    ) -> ApiError {
        let (code, status, kind) = match (why, asker.map(|asker| &asker.rights)) {
            // What a customer may without a token that says it, no other token will change.
            (Refusal::Scope, Some(Rights::Proven { proven, .. })) if proven.scopes.is_none() => {
                (Code::Denied, StatusCode::FORBIDDEN, Why::Insufficient)
            }
            (Refusal::Scope, Some(Rights::Proven { .. })) => {
                (Code::Denied, StatusCode::UNAUTHORIZED, Why::Insufficient)
            }
            (Refusal::Scope, Some(Rights::Member))
            | (Refusal::Customer | Refusal::DigestAlone, _) => {
                (Code::Denied, StatusCode::FORBIDDEN, Why::Insufficient)
            }
            (Refusal::Missing | Refusal::Scope, _) => {
                (Code::Unauthorized, StatusCode::UNAUTHORIZED, Why::Missing)
            }
            _ => (Code::Unauthorized, StatusCode::UNAUTHORIZED, Why::Invalid),
        };
        let wanted = scopes.first().map_or_else(String::new, |scope| format!(" for {scope}"));
        let message = match why {
            Refusal::Missing => format!("a token is needed{wanted}"),
            Refusal::Token(error) => error.to_string(),
            Refusal::Secret => "the name or its secret is wrong".to_owned(),
            Refusal::Header => "the Authorization is neither Bearer nor Basic".to_owned(),
            Refusal::Scope => match asker {
                Some(asker) if asker.is_proven() => {
                    format!("{} has no right{wanted}", asker.name())
                }
                _ => format!("a token is needed{wanted}"),
            },
            Refusal::Customer => "these are another customer's credentials".to_owned(),
            Refusal::DigestAlone => {
                "a digest alone gives no right to its content: name the repository".to_owned()
            }
            Refusal::NotLinked => "the repository does not have it".to_owned(),
        };
        let error = ApiError::new(code, message).with_status(status);
        if status != StatusCode::UNAUTHORIZED {
            return error;
        }
        let tables = self.tables.borrow();
        let own;
        let realm = match &tables.realm {
            Realm::Other(address) => address,
            Realm::Own(_) => {
                own = asked.realm(&tables.service);
                &own
            }
        };
        let text = challenge(realm, &tables.service, scopes, kind);
        error.with_header(WWW_AUTHENTICATE, value(text))
    }
}

/// One who waits.
struct Waiting<'a>(&'a Cell<usize>);

impl<'a> Waiting<'a> {
    fn of(count: &'a Cell<usize>) -> Self {
        count.set(count.get() + 1);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// Whose a token is.
fn by_token(tables: &AccessTables, token: &str, now_unix_s: u64) -> Result<Rightful, Refusal> {
    let proven = tables.verifier.verify(token, now_unix_s).map_err(Refusal::Token)?;
    let rules = proven.customer.as_deref().and_then(|customer| tables.rules(customer));
    Ok(Rightful {
        customer: proven.customer.as_deref().map(Rc::from),
        scopes: proven.access,
        rules: rules.unwrap_or_default(),
        until_unix_s: proven.until_unix_s,
    })
}

/// By what address the edge was asked.
pub(crate) struct AskedAt<'a> {
    pub(crate) uri: &'a Uri,
    pub(crate) headers: &'a HeaderMap,
    pub(crate) secure: bool,
}

impl AskedAt<'_> {
    /// Where tokens are given: at the address that the client knows the edge by.
    fn realm(&self, service: &str) -> String {
        let host = || self.headers.get(HOST).and_then(|host| host.to_str().ok());
        let authority = self.uri.authority().map(|authority| authority.as_str()).or_else(host);
        let is_plain = |text: &&str| {
            let fits = |b: u8| b.is_ascii_alphanumeric() || b".-_:[]".contains(&b);
            (1..=255).contains(&text.len()) && text.bytes().all(fits)
        };
        let authority = authority.filter(is_plain).unwrap_or(service);
        format!("{}://{authority}/token", if self.secure { "https" } else { "http" })
    }
}

/// For audit.
pub(crate) fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Http1 => "h1",
        Protocol::Http2 => "h2",
        Protocol::Http3 => "h3",
        Protocol::Native => "native",
    }
}

/// For audit, where nobody is known.
pub(crate) fn name_of(asker: Option<&Asker>) -> &str {
    asker.map_or(ANONYMOUS, Asker::name)
}
