//! Who may do what, as the operator says it: the files of keys and secrets, read again when they change, keys from
//! addresses, and the file of the audit. The decisions are the gateway's.
//!
//! - [`fleet`]: the keys of other edges.
//! - [`files`]: a file, and whether it has changed. [`issuers`]: the keys of issuers. [`writer`]: the audit.

mod files;
mod fleet;
mod issuers;
mod writer;

use std::collections::HashMap;
use std::future::poll_fn;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use outrider_gateway::access::{
    AccessShared, AccessTables, AuditSender, KeyLooks, OWN_ISSUER, Realm,
};
use outrider_metrics::Counter;
use outrider_settings::files::{FileError, PrivateFolder};
use outrider_tokens::secret::SECRETS_FILE_BYTES_MAX;
use outrider_tokens::{Issuer, KeyError, Secrets, SigningKey, Verifier};

use tokio::sync::Notify;

use self::files::Watched;
pub(crate) use self::fleet::FleetKeys;
use self::issuers::Source;
use crate::config::AuthSection;

/// The edge's own key, in the folder of its certificate.
const TOKEN_KEY: &str = "token-key.pem";

/// The place of the first issuer that is not an edge.
const FIRST_SOURCE: usize = 1;

/// Why nobody can be asked who they are.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file has no keys in it.
    #[error("{}: {source}", .path.display())]
    Keys {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        source: KeyError,
    },
    /// A file has no secrets in it.
    #[error("{}: {why}", .path.display())]
    Secrets {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The edge's own key.
    #[error("{}: {source}; restore it from a backup, or remove it to have a new one made", .path.display())]
    OwnKey {
        /// Where it is.
        path: PathBuf,
        /// What is wrong.
        source: KeyError,
    },
}

/// What decisions are made from, and where it comes from.
pub(crate) struct Auth {
    section: AuthSection,
    service: String,
    own: Option<Arc<SigningKey>>,
    sources: Vec<Source>,
    secrets: Option<(Watched, Secrets)>,
    shared: Option<Arc<AccessShared>>,
    /// That keys are wanted, or other edges' are other ones.
    wanted: Arc<Notify>,
    /// Whose tokens are as good as one's own.
    fleet: Arc<FleetKeys>,
}

impl Auth {
    /// Reads everything; nothing where nobody is to be asked. `tls_dir` is where the edge's own key is, or is made.
    ///
    /// # Errors
    /// [`AuthError`]
    pub(crate) fn load(section: &AuthSection, tls_dir: &Path) -> Result<Option<Self>, AuthError> {
        let Some(service) = section.service.clone() else { return Ok(None) };
        let own = match section.realm {
            None => Some(Arc::new(own_key(tls_dir)?)),
            Some(_) => None,
        };
        let sources = section.issuer.iter().map(|issuer| Source::open(issuer, tls_dir));
        let sources = sources.collect::<Result<_, _>>()?;
        let secrets = match &section.secrets_file {
            Some(path) => {
                let mut file = Watched::new(path.clone(), SECRETS_FILE_BYTES_MAX);
                let bytes = file.read()?;
                Some((file, parse_secrets(path, &bytes)?))
            }
            None => None,
        };
        let section = section.clone();
        let wanted = Arc::<Notify>::default();
        let fleet = FleetKeys::new(Arc::clone(&wanted));
        Ok(Some(Self { section, service, own, sources, secrets, shared: None, wanted, fleet }))
    }

    /// Begins to write down decisions, and gives what the shards share.
    ///
    /// # Errors
    /// [`AuthError::File`] where the file of the audit cannot be written.
    pub(crate) fn share(&mut self, dropped: Counter) -> Result<Arc<AccessShared>, AuthError> {
        let (audit, lines) = AuditSender::new(dropped.clone());
        writer::start(&self.section, lines, dropped)?;
        let wanted = Arc::clone(&self.wanted);
        let mut fetched = vec![true; FIRST_SOURCE + self.sources.len()];
        // Those of edges come from nowhere else.
        fetched[..FIRST_SOURCE].fill(false);
        let keys = KeyLooks::new(&fetched, Box::new(move || wanted.notify_one()));
        let shared = AccessShared::new(self.tables(), audit, keys);
        self.shared = Some(Arc::clone(&shared));
        Ok(shared)
    }

    /// Looks for changes until the runtime ends. Runs on tokio.
    pub(crate) async fn watch(mut self) {
        let Some(shared) = self.shared.clone() else { return };
        loop {
            let places = FIRST_SOURCE..FIRST_SOURCE + self.sources.len();
            let wanted: Vec<bool> = places.map(|place| shared.keys.is_wanted(place)).collect();
            let (auth, has_changed) = self.look(&wanted).await;
            self = auth;
            if has_changed {
                shared.replace(self.tables());
            }
            // Those who wait find the new keys in the tables.
            for ((source, place), _) in
                self.sources.iter().zip(FIRST_SOURCE..).zip(wanted).filter(|(_, wanted)| *wanted)
            {
                shared.keys.looked(place, Instant::now() + source.pause());
            }
            let wanted = Arc::clone(&self.wanted);
            // Whatever comes first.
            let _ = tokio::time::timeout(self.section.reload.0, wanted.notified()).await;
        }
    }

    /// The public key of the tokens that this edge gives, if it gives any.
    pub(crate) fn token_key(&self) -> Option<[u8; 32]> {
        self.own.as_ref().map(|own| own.public_bytes())
    }

    /// Whose tokens are as good as one's own: told by who follows the control plane.
    pub(crate) fn fleet(&self) -> Arc<FleetKeys> {
        Arc::clone(&self.fleet)
    }

    /// Reads what has changed, and the keys of issuers that are wanted. What cannot be used leaves what was there. What
    /// lies here is used at once: an address that is dead takes its time, in which a secret that was revoked would still
    /// be good.
    async fn look(mut self, wanted: &[bool]) -> (Self, bool) {
        let now = Instant::now();
        let mut has_changed = self.fleet.have_changed();
        has_changed |= self.look_at_secrets();
        has_changed |= self.look_at_keys(now, false, wanted).await;
        if has_changed && let Some(shared) = &self.shared {
            shared.replace(self.tables());
        }
        has_changed |= self.look_at_keys(now, true, wanted).await;
        if has_changed {
            tracing::info!("keys or secrets have changed");
        }
        (self, has_changed)
    }

    fn look_at_secrets(&mut self) -> bool {
        let Some((file, secrets)) = &mut self.secrets else { return false };
        let Some(bytes) = file.read_if_changed() else { return false };
        match parse_secrets(file.path(), &bytes) {
            Ok(new) => {
                let has_changed = new != *secrets;
                *secrets = new;
                has_changed
            }
            Err(error) => {
                tracing::warn!(%error, "the secrets stay as they were");
                false
            }
        }
    }

    /// Looks at all addresses, or at all files, at the same time.
    async fn look_at_keys(&mut self, now: Instant, addresses: bool, wanted: &[bool]) -> bool {
        let refresh = self.section.jwks_refresh.0;
        let sources = self.sources.iter_mut().zip(wanted);
        let mut looks: Vec<_> = sources
            .filter(|(source, _)| source.is_fetched() == addresses)
            .map(|(source, is_wanted)| Box::pin(source.look(refresh, now, *is_wanted)))
            .collect();
        let mut has_changed = false;
        poll_fn(|cx| {
            looks.retain_mut(|look| match look.as_mut().poll(cx) {
                Poll::Ready(changed) => {
                    has_changed |= changed;
                    false
                }
                Poll::Pending => true,
            });
            if looks.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        has_changed
    }

    fn tables(&self) -> AccessTables {
        let section = &self.section;
        let mut keys = self.own.as_ref().map(|own| own.public().clone()).unwrap_or_default();
        keys.add(&self.fleet.key_set());
        // Of this edge, and of those of the fleet that are called the same.
        let mut issuers = vec![Issuer {
            name: format!("{OWN_ISSUER}{}", self.service),
            audience: self.service.clone(),
            keys,
            nobody_too: true,
        }];
        issuers.extend(section.issuer.iter().zip(&self.sources).map(|(issuer, source)| Issuer {
            name: issuer.name.clone(),
            audience: issuer.audience.clone().unwrap_or_else(|| self.service.clone()),
            keys: source.keys.clone(),
            nobody_too: false,
        }));
        let realm = match (&section.realm, &self.own) {
            (None, Some(own)) => Realm::Own(Arc::clone(own)),
            (realm, _) => Realm::Other(realm.clone().unwrap_or_default()),
        };
        let customers: HashMap<_, _> = section
            .customer
            .iter()
            .map(|one| (one.name.as_str().into(), AuthSection::rules(&one.allow).into()))
            .collect();
        let owners = section.customer.iter().flat_map(|one| {
            let patterns = one.repositories.iter().filter_map(|pattern| pattern.parse().ok());
            patterns.map(|pattern| (pattern, one.name.as_str().into()))
        });
        AccessTables {
            service: self.service.clone(),
            realm,
            verifier: Verifier { issuers, leeway_s: section.leeway.0.as_secs() },
            anonymous: AuthSection::rules(&section.anonymous).into(),
            customers,
            owners: owners.collect(),
            secrets: self.secrets.as_ref().map(|(_, all)| all.clone()).unwrap_or_default(),
            loopback_is_open: section.loopback,
            token_life_s: section.token_life.0.as_secs(),
        }
    }
}

/// The key of the edge's own tokens, made at the first start. Only its owner may read it.
fn own_key(dir: &Path) -> Result<SigningKey, AuthError> {
    let folder = PrivateFolder::new(dir.to_owned());
    let path = folder.file(TOKEN_KEY);
    let pem = match folder.read_if_there(TOKEN_KEY)? {
        Some(pem) => pem,
        None => {
            let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519)
                .map_err(|_| AuthError::OwnKey { path: path.clone(), source: KeyError::Damaged })?;
            let pem = pair.serialize_pem();
            folder.write(TOKEN_KEY, &pem, 0o600)?;
            pem
        }
    };
    SigningKey::from_pem(pem.as_bytes()).map_err(|source| AuthError::OwnKey { path, source })
}

fn parse_secrets(path: &Path, bytes: &[u8]) -> Result<Secrets, AuthError> {
    let wrong = |why: String| AuthError::Secrets { path: path.to_owned(), why };
    let text = std::str::from_utf8(bytes).map_err(|_| wrong("it is not UTF-8".to_owned()))?;
    Secrets::parse(text).map_err(|error| wrong(error.to_string()))
}

#[cfg(test)]
mod tests;
