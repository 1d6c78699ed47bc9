//! What the operator said about who may do what, with the keys and secrets as they are now. Shared by all shards,
//! replaced as a whole when a file or a key set changes.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use outrider_tokens::rules::Pattern;
use outrider_tokens::{Rule, Secrets, SigningKey, Verifier};

use super::audit::AuditSender;
use super::keys::KeyLooks;

/// What an edge calls itself in its own tokens, before the service.
pub const OWN_ISSUER: &str = "outrider:";

/// Where a client gets its tokens.
#[derive(Clone, Debug)]
pub enum Realm {
    /// Here, at `/token` of the address that it asked.
    Own(Arc<SigningKey>),
    /// There: the address of another server.
    Other(String),
}

/// Everything that decisions are made from.
#[derive(Clone, Debug)]
pub struct AccessTables {
    /// What the edge is called in tokens.
    pub service: String,
    /// Where tokens are to be had.
    pub realm: Realm,
    /// Whose tokens are believed; those of one's own are among them.
    pub verifier: Verifier,
    /// What anybody may do.
    pub anonymous: Arc<[Rule]>,
    /// What customers may do whose tokens do not say it.
    pub customers: HashMap<Box<str>, Arc<[Rule]>>,
    /// Whose repositories are, for requests without a token; the first that fits.
    pub owners: Vec<(Pattern, Box<str>)>,
    /// What customers log in with.
    pub secrets: Secrets,
    /// Whether requests of this machine are not asked who they are.
    pub loopback_is_open: bool,
    /// How long a token of one's own lasts, in seconds.
    pub token_life_s: u64,
}

impl AccessTables {
    /// Whose a repository is.
    pub(crate) fn owner(&self, repository: &str) -> Option<&str> {
        let owner = self.owners.iter().find(|(pattern, _)| pattern.matches(repository));
        owner.map(|(_, customer)| &**customer)
    }

    /// What a customer may do beside what everybody may.
    pub(crate) fn rules(&self, customer: &str) -> Option<Arc<[Rule]>> {
        self.customers.get(customer).cloned()
    }
}

/// The tables of an edge, and where its decisions are told.
#[derive(Debug)]
pub struct AccessShared {
    tables: RwLock<Arc<AccessTables>>,
    generation: AtomicU64,
    pub(crate) audit: AuditSender,
    /// Keys that are looked for.
    pub keys: KeyLooks,
}

impl AccessShared {
    /// With the tables of the start. `keys` are those of the issuers of their verifier.
    pub fn new(tables: AccessTables, audit: AuditSender, keys: KeyLooks) -> Arc<Self> {
        Arc::new(Self {
            tables: RwLock::new(Arc::new(tables)),
            generation: AtomicU64::new(1),
            audit,
            keys,
        })
    }

    /// From now on these are used; what was believed of tokens is looked at again.
    pub fn replace(&self, tables: AccessTables) {
        *self.tables.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(tables);
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// What is used now. Takes a lock.
    pub fn tables(&self) -> Arc<AccessTables> {
        self.tables.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Grows with every replacement.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }
}
