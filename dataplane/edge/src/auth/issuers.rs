//! The keys of one issuer: from a file, or from an address, of which the last good answer is kept on disk, so that a
//! start without a network knows them too.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use outrider_settings::files::write_whole;
use outrider_tokens::KeySet;
use outrider_tokens::key::KEY_FILE_BYTES_MAX;
use outrider_uplink::fetch_document;
use sha2::{Digest as _, Sha256};
use url::Url;

use super::AuthError;
use super::files::Watched;
use crate::config::IssuerSection;

/// For one answer.
const FETCH_TIME_MAX: Duration = Duration::from_secs(10);
/// For one answer that requests wait for.
const WANTED_TIME_MAX: Duration = Duration::from_secs(3);
/// Keys that tokens name are fetched at most once in this time.
const FETCH_PAUSE: Duration = Duration::from_secs(10);
/// A file is looked at for them at most once in this time.
const FILE_PAUSE: Duration = Duration::from_secs(1);
/// After a failure it is tried again so soon, if that is sooner than usual.
const RETRY_AFTER: Duration = Duration::from_secs(15);

/// Where the keys of an issuer come from, and what they are now.
#[derive(Debug)]
pub(super) struct Source {
    name: String,
    from: From,
    pub(super) keys: KeySet,
}

#[derive(Debug)]
enum From {
    Pem(Watched),
    Jwks(Watched),
    Address { url: Url, ca_file: Option<PathBuf>, kept: PathBuf, next: Option<Instant> },
}

impl Source {
    /// Reads the file, or what is kept of the address.
    ///
    /// # Errors
    /// [`AuthError`] for a file.
    pub(super) fn open(issuer: &IssuerSection, tls_dir: &Path) -> Result<Self, AuthError> {
        let watched = |path: &PathBuf| Watched::new(path.clone(), KEY_FILE_BYTES_MAX);
        let mut from = match (&issuer.key_file, &issuer.jwks_file, &issuer.jwks_url) {
            (Some(path), _, _) => From::Pem(watched(path)),
            (_, Some(path), _) => From::Jwks(watched(path)),
            (_, _, url) => {
                // One of the three is there: that was checked.
                let url = url
                    .clone()
                    .unwrap_or_else(|| Url::parse("https://none.invalid").expect("an address"));
                let mark: String = Sha256::digest(url.as_str())[..8]
                    .iter()
                    .map(|byte| format!("{byte:02x}"))
                    .collect();
                let kept = tls_dir.join(format!("jwks-{mark}.json"));
                From::Address { url, ca_file: issuer.ca_file.clone(), kept, next: None }
            }
        };
        let keys = match &mut from {
            From::Pem(file) => {
                let bytes = file.read()?;
                KeySet::from_pem(&bytes).map_err(|source| wrong(file, source))?
            }
            From::Jwks(file) => {
                let bytes = file.read()?;
                KeySet::from_jwks(&bytes).map_err(|source| wrong(file, source))?
            }
            From::Address { kept, .. } => {
                let mut file = Watched::new(kept.clone(), KEY_FILE_BYTES_MAX);
                let bytes = file.read().unwrap_or_default();
                KeySet::from_jwks(&bytes).unwrap_or_default()
            }
        };
        tell_passed_over(&issuer.name, &keys);
        Ok(Self { name: issuer.name.clone(), from, keys })
    }

    /// For so long its keys are not looked for again because a token names one.
    pub(super) fn pause(&self) -> Duration {
        match self.from {
            From::Address { .. } => FETCH_PAUSE,
            From::Pem(_) | From::Jwks(_) => FILE_PAUSE,
        }
    }

    /// Whether they are fetched, which takes its time.
    pub(super) fn is_fetched(&self) -> bool {
        matches!(self.from, From::Address { .. })
    }

    /// Whether there are other keys now; a file is read when it has changed, an address when it is time or when its keys
    /// are wanted. What cannot be had or used leaves those that there are.
    pub(super) async fn look(&mut self, refresh: Duration, now: Instant, is_wanted: bool) -> bool {
        let found = match &mut self.from {
            From::Pem(file) => file.read_if_changed().map(|bytes| KeySet::from_pem(&bytes)),
            From::Jwks(file) => file.read_if_changed().map(|bytes| KeySet::from_jwks(&bytes)),
            From::Address { url, ca_file, kept, next } => {
                if !is_wanted && next.is_some_and(|next| now < next) {
                    return false;
                }
                let time_max = if is_wanted { WANTED_TIME_MAX } else { FETCH_TIME_MAX };
                let fetched = fetch_document(url, ca_file.as_deref(), KEY_FILE_BYTES_MAX, time_max);
                match fetched.await {
                    Ok(bytes) => {
                        *next = Some(now + refresh);
                        let keys = KeySet::from_jwks(&bytes);
                        if keys.as_ref().is_ok_and(|keys| *keys != self.keys)
                            && let Err(error) = write_whole(kept, &bytes, 0o600)
                        {
                            tracing::warn!(%error, path = %kept.display(), "the keys are not kept");
                        }
                        Some(keys)
                    }
                    Err(error) => {
                        *next = Some(now + refresh.min(RETRY_AFTER));
                        tracing::warn!(
                            issuer = self.name, known = self.keys.len(), %error,
                            "keys cannot be fetched; those that are known stay in use"
                        );
                        None
                    }
                }
            }
        };
        match found {
            None => false,
            Some(Ok(keys)) if keys == self.keys => false,
            Some(Ok(keys)) => {
                tracing::info!(issuer = self.name, keys = keys.len(), "the keys are other ones");
                tell_passed_over(&self.name, &keys);
                self.keys = keys;
                true
            }
            Some(Err(error)) => {
                tracing::warn!(issuer = self.name, %error, "the keys stay as they were");
                false
            }
        }
    }
}

fn tell_passed_over(issuer: &str, keys: &KeySet) {
    for key in keys.passed_over() {
        tracing::warn!(issuer, "a key is not used: {key}");
    }
}

fn wrong(file: &Watched, source: outrider_tokens::KeyError) -> AuthError {
    AuthError::Keys { path: file.path().to_owned(), source }
}
