//! A way to an upstream for one repository: manifests are fetched and compared, once for all who ask.

use std::rc::Rc;
use std::sync::Arc;

use bytes::BytesMut;
use http::HeaderValue;
use outrider_artifact::event::UploadKind;
use outrider_artifact::{Algorithm, ContentHasher, Reference, RepositoryName, Tag};
use outrider_uplink::{FetchError, FetchMethod, FetchRequest, Target, Whom};

use super::{Fetched, Found};
use crate::flight::Source;
use crate::gateway::{Gateway, unix_ms};
use crate::names::{MirroredTag, Names, NamesError, TagRecord};
use crate::protocol::header;
use crate::protocol::manifest::{self, MANIFEST_BYTES_MAX};
use crate::uploads;

/// A way to an upstream for one repository, which outlives the request that began it.
pub(super) struct Errand<N> {
    pub(super) source: Source,
    pub(super) upstream_name: Rc<str>,
    pub(super) key: RepositoryName,
    pub(super) gateway: Rc<Gateway<N>>,
}

impl<N: Names> Errand<N> {
    /// Fetches a manifest and keeps it.
    pub(super) async fn get(&self, reference: &Reference) -> Found {
        let mut fetch =
            self.gateway.uplink.fetch(self.request(reference, FetchMethod::Get)).await?;
        let too_long =
            || FetchError::Protocol(format!("a manifest of more than {MANIFEST_BYTES_MAX} bytes"));
        let mut bytes = BytesMut::new();
        while let Some(piece) = fetch.body.next().await {
            bytes.extend_from_slice(&piece?);
            if bytes.len() > MANIFEST_BYTES_MAX {
                return Err(too_long());
            }
        }
        let bytes = bytes.freeze();
        let claimed = match reference {
            Reference::Digest(digest) => Some(*digest),
            Reference::Tag(_) => fetch.head.digest,
        };
        let algorithm = claimed.map_or(Algorithm::Sha256, |digest| digest.algorithm());
        let mut hasher = ContentHasher::new(algorithm);
        hasher.update(&bytes);
        let digest = hasher.finish();
        if claimed.is_some_and(|claimed| claimed != digest) {
            self.gateway.metrics.mismatches.inc();
            return Err(FetchError::Protocol(format!(
                "the manifest {reference} of {} has the digest {digest}, not the one that was claimed",
                self.key
            )));
        }
        let content_type =
            fetch.head.media_type.as_deref().and_then(|text| HeaderValue::try_from(text).ok());
        let parsed =
            manifest::parse(&bytes, content_type.as_ref()).or_else(|error| match reference {
                // Its digest says that this is what was asked for, whatever it is.
                Reference::Digest(_) => manifest::parse(&bytes, None).map_err(|_| error),
                Reference::Tag(_) => Err(error),
            });
        let media_type: Rc<str> = match (parsed, fetch.head.media_type) {
            (Ok(manifest), _) => manifest.media_type.into(),
            (Err(_), Some(media_type)) if matches!(reference, Reference::Digest(_)) => {
                media_type.into()
            }
            (Err(error), _) => {
                return Err(FetchError::Protocol(format!("no manifest: {}", error.message())));
            }
        };
        self.gateway.put_whole(&digest, &media_type, &bytes, self.source.origin).await;
        Ok(Fetched { digest, media_type, bytes: Some(bytes) })
    }

    /// Compares a tag with its upstream, and fetches what is new.
    pub(super) async fn check_tag(&self, tag: &Tag, known: Option<Arc<TagRecord>>) -> Found {
        let names = &self.gateway.names;
        self.gateway.metrics.tag_checks.inc();
        let by_tag = Reference::Tag(tag.clone());
        let found = match &known {
            None => self.get(&by_tag).await,
            Some(record) => self.compare(&by_tag, record).await,
        };
        self.tell(&found, Some(tag));
        let checked_unix_ms = unix_ms();
        match &found {
            Ok(Fetched { bytes: Some(bytes), digest, media_type }) => {
                let mirrored = MirroredTag {
                    repository: self.key.clone(),
                    tag: tag.clone(),
                    upstream: self.upstream_name.to_string(),
                    digest: *digest,
                    size_bytes: bytes.len() as u64,
                    media_type: media_type.to_string(),
                    checked_unix_ms,
                    etag: None,
                };
                note(names.remember_mirrored_tag(mirrored).await);
            }
            Ok(Fetched { digest, .. }) => {
                note(names.touch_mirrored_tag(&self.key, tag, digest, checked_unix_ms).await);
            }
            Err(FetchError::NotFound) if known.is_some() => {
                note(names.forget_mirrored_tag(&self.key, tag).await);
            }
            Err(_) => {}
        }
        found
    }

    /// Notes for the control plane that a manifest has come from an upstream. Nobody waits for it. What comes from
    /// another edge was noted there.
    pub(super) fn tell(&self, found: &Found, tag: Option<&Tag>) {
        let (Ok(Fetched { digest, media_type, bytes: Some(bytes) }), Whom::Upstream(_)) =
            (found, &self.source.from)
        else {
            return;
        };
        let gateway = Rc::clone(&self.gateway);
        if gateway.accesses().is_none() {
            return;
        }
        let (kind, tag, length) = (UploadKind::Mirrored, tag.map(|tag| &**tag), bytes.len() as u64);
        let mut event =
            gateway.upload_event(kind, &self.key, tag, digest, length, uploads::ANONYMOUS);
        event.media_type = media_type.to_string();
        outrider_shard::task::spawn(async move {
            if let Err(error) = gateway.names.note_event(event).await {
                tracing::warn!("a manifest of an upstream is not told of: {error}");
            }
        });
    }

    async fn compare(&self, by_tag: &Reference, known: &TagRecord) -> Found {
        let fetch = self.gateway.uplink.fetch(self.request(by_tag, FetchMethod::Head)).await?;
        match fetch.head.digest {
            Some(digest) if digest == known.digest => {
                Ok(Fetched { digest, media_type: (&*known.media_type).into(), bytes: None })
            }
            Some(digest) => self.get(&Reference::Digest(digest)).await,
            None => self.get(by_tag).await,
        }
    }

    fn request(&self, reference: &Reference, method: FetchMethod) -> FetchRequest {
        FetchRequest {
            from: self.source.from,
            repository: self.source.repository.to_string(),
            target: Target::Manifest(reference.clone()),
            method,
            range: None,
            accept: header::MANIFEST_ACCEPT.map(str::to_owned).to_vec(),
        }
    }
}

/// A tag that cannot be remembered is asked for again next time; that is all it costs.
fn note<T>(outcome: Result<T, NamesError>) {
    if let Err(error) = outcome {
        tracing::warn!("a tag is not remembered: {error}");
    }
}
