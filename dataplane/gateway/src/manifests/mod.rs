//! Manifests: read from what is hosted or mirrored; [`push`]: put and deleted; [`errand`]: asked of upstreams.
//!
//! A tag of an upstream is answered from here while it is fresh, compared with the upstream by a
//! HEAD when it is not (Docker Hub counts GETs), and answered stale and marked so while the upstream
//! cannot be asked. Manifests are content like blobs, and lie in the same cache.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use outrider_artifact::{Digest, Reference, RepositoryName, Tag};
use outrider_uplink::{FetchError, Target};

use crate::blobs::Whence;
use crate::body::GatewayBody;
use crate::contents::Stored;
use crate::faults;
use crate::gateway::{Answer, Gateway, bare, describe, unix_ms};
use crate::mesh::Unanswered;
use crate::names::{Names, TagOrigin, TagRecord};
use crate::protocol::cache_status::{CacheStatus, Detail, Forward};
use crate::protocol::manifest::{self};
use crate::protocol::route::Read;
use crate::protocol::{ApiError, Code, conditional, header};
use crate::upstreams::Place;

mod errand;
mod push;

use errand::Errand;
pub(crate) use push::NamedManifest;

/// How long a client waits for a tag to be compared while there is an answer that would do.
const CHECK_WAIT: Duration = Duration::from_secs(1);

/// What is fetched once, however many ask.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Wanted {
    /// The repository's key, which says the upstream too.
    key: RepositoryName,
    reference: Reference,
}

/// What came of it.
pub(crate) type Found = Result<Fetched, FetchError>;

/// The media type of a manifest that is here. One that came in as a blob says it itself.
pub(crate) fn media_type_of(stored: &Stored) -> Result<Rc<str>, ApiError> {
    if !stored.stat.media_type.is_empty() {
        return Ok((&*stored.stat.media_type).into());
    }
    Ok(manifest::parse(&stored.bytes, None)?.media_type.into())
}

/// A manifest of an upstream.
#[derive(Clone, Debug)]
pub(crate) struct Fetched {
    digest: Digest,
    media_type: Rc<str>,
    /// None when the upstream says that what is here is still right.
    bytes: Option<Bytes>,
}

impl<N: Names> Gateway<N> {
    /// `GET, HEAD /v2/NAME/manifests/REFERENCE`
    pub(crate) async fn read_manifest(
        &self,
        name: &RepositoryName,
        ns: Option<&str>,
        reference: &Reference,
        method: Read,
        headers: &HeaderMap,
    ) -> Answer {
        match self.whence(name, ns).await? {
            Whence::Hosted(key) => self.read_hosted(&key, reference, method, headers).await,
            Whence::Mirrored(place) => {
                let fetches = match reference {
                    Reference::Digest(digest) => {
                        if let Some(stored) = self.at_hand(digest).await? {
                            let media_type = media_type_of(&stored)?;
                            return Ok(self.serve_whole(
                                digest,
                                &media_type,
                                stored.bytes,
                                method,
                                headers,
                            ));
                        }
                        self.owner(digest)
                    }
                    Reference::Tag(tag) => {
                        if let Some(known) = self.fresh_tag(&place, tag).await? {
                            return Ok(self.serve_fresh(&known, method, headers));
                        }
                        self.minder(&place.key)
                    }
                };
                if conditional::only_if_cached(headers) {
                    return Err(faults::not_held());
                }
                if fetches == self.shard {
                    return self.fetch_manifest(place, reference, method, headers).await;
                }
                let (name, ns) = (name.clone(), ns.map(str::to_owned));
                let (reference, headers) = (reference.clone(), conditional::selecting(headers));
                self.answer_on(fetches, move |other| async move {
                    // It may have been pushed to meanwhile, and the names say so there too.
                    match other.whence(&name, ns.as_deref()).await? {
                        Whence::Mirrored(place) => {
                            other.fetch_manifest(place, &reference, method, &headers).await
                        }
                        Whence::Hosted(key) => {
                            other.read_hosted(&key, &reference, method, &headers).await
                        }
                        Whence::Nobody(key) => Err(unknown(&key, &reference)),
                    }
                })
                .await
            }
            Whence::Nobody(key) => Err(unknown(&key, reference)),
        }
    }

    /// The shard that compares the tags of a repository with its upstream, so that one comparison runs
    /// however many shards are asked.
    fn minder(&self, key: &RepositoryName) -> u16 {
        let home = Digest::sha256(key.as_bytes());
        self.hub.placement().home(&home)
    }

    /// On the shard that fetches it.
    async fn fetch_manifest(
        &self,
        place: Place,
        reference: &Reference,
        method: Read,
        headers: &HeaderMap,
    ) -> Answer {
        match reference {
            Reference::Digest(digest) => self.read_pinned(place, digest, method, headers).await,
            Reference::Tag(tag) => self.read_tag(place, tag, method, headers).await,
        }
    }

    /// What a tag is remembered to point to, if its content is here.
    async fn known_tag(&self, place: &Place, tag: &Tag) -> Result<Option<KnownTag>, ApiError> {
        let Some(record) = self.names.tag(&place.key, tag).await? else { return Ok(None) };
        let stored = self.at_hand(&record.digest).await?;
        Ok(stored.map(|stored| (stored, record)))
    }

    /// The same, if it need not be compared yet.
    async fn fresh_tag(&self, place: &Place, tag: &Tag) -> Result<Option<KnownTag>, ApiError> {
        let known = self.known_tag(place, tag).await?;
        Ok(known.filter(|(_, record)| self.is_fresh(record)))
    }

    /// Whether what an upstream said of a tag is believed without asking.
    fn is_fresh(&self, record: &TagRecord) -> bool {
        let overtaken = matches!(record.origin, TagOrigin::Mirrored { overtaken, .. } if overtaken);
        !overtaken && age_ms(record).is_some_and(|age| age < millis(self.tag_ttl(record)))
    }

    /// How long it is: what its upstream has, or else all.
    fn tag_ttl(&self, record: &TagRecord) -> Duration {
        let own = match &record.origin {
            TagOrigin::Hosted => None,
            TagOrigin::Mirrored { upstream, .. } => self.upstreams.tag_ttl(upstream),
        };
        own.unwrap_or(self.settings.tag_ttl)
    }

    fn serve_fresh(
        &self,
        (stored, record): &KnownTag,
        method: Read,
        headers: &HeaderMap,
    ) -> Response<GatewayBody> {
        let age_ms = age_ms(record).unwrap_or(0);
        let left_s = millis(self.tag_ttl(record)).saturating_sub(age_ms) / 1000;
        self.serve_tag(record, stored, left_s as i64, method, headers)
    }

    async fn read_hosted(
        &self,
        key: &RepositoryName,
        reference: &Reference,
        method: Read,
        headers: &HeaderMap,
    ) -> Answer {
        let (digest, media_type) = match reference {
            Reference::Tag(tag) => {
                let record =
                    self.names.tag(key, tag).await?.ok_or_else(|| unknown(key, reference))?;
                (record.digest, record.media_type.clone())
            }
            Reference::Digest(digest) => match self.names.link(key, digest).await?.manifest {
                Some(link) => (*digest, link.media_type),
                None => return self.read_held(key, digest, method, headers).await,
            },
        };
        if let Some(stored) = self.at_hand(&digest).await? {
            return Ok(self.serve_whole(&digest, &media_type, stored.bytes, method, headers));
        }
        if !self.names.holders(key).is_empty() {
            return self.read_held(key, &digest, method, headers).await;
        }
        tracing::error!(%digest, repository = %key, "a hosted manifest cannot be read from its disk");
        let text = format!("{digest} is hosted here, and cannot be read from its disk");
        Err(ApiError::new(Code::Unknown, text))
    }

    /// A manifest of a repository that other edges hold.
    async fn read_held(
        &self,
        key: &RepositoryName,
        digest: &Digest,
        method: Read,
        headers: &HeaderMap,
    ) -> Answer {
        let missing = || unknown(key, &Reference::Digest(*digest));
        if self.names.holders(key).is_empty() {
            return Err(missing());
        }
        let held_only = conditional::only_if_cached(headers);
        if let Some(stored) = self.at_hand(digest).await? {
            // What was pushed here to another repository is not this one's because somebody knows its digest.
            let target = Target::Manifest(Reference::Digest(*digest));
            if stored.stat.hosted && (held_only || self.held(key, &target).await?.is_none()) {
                return Err(missing());
            }
            let media_type = media_type_of(&stored)?;
            return Ok(self.serve_whole(digest, &media_type, stored.bytes, method, headers));
        }
        if held_only {
            return Err(faults::not_held());
        }
        let fetches = self.owner(digest);
        if fetches == self.shard {
            return self.fetch_held(key, digest, method, headers).await;
        }
        let (key, digest, headers) = (key.clone(), *digest, conditional::selecting(headers));
        self.answer_on(fetches, move |other| async move {
            other.fetch_held(&key, &digest, method, &headers).await
        })
        .await
    }

    /// On the shard that fetches it: from one edge after the other.
    async fn fetch_held(
        &self,
        key: &RepositoryName,
        digest: &Digest,
        method: Read,
        headers: &HeaderMap,
    ) -> Answer {
        let mut last = unknown(key, &Reference::Digest(*digest));
        for place in self.places_of(key) {
            match self.read_pinned(place, digest, method, headers).await {
                Ok(response) => return Ok(response),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// A manifest of an upstream by its digest: for good once it is here.
    async fn read_pinned(
        &self,
        place: Place,
        digest: &Digest,
        method: Read,
        headers: &HeaderMap,
    ) -> Answer {
        if let Some(stored) = self.at_hand(digest).await? {
            let media_type = media_type_of(&stored)?;
            return Ok(self.serve_whole(digest, &media_type, stored.bytes, method, headers));
        }
        let wanted = Wanted { key: place.key.clone(), reference: Reference::Digest(*digest) };
        let errand = self.errand(&place)?;
        let reference = wanted.reference.clone();
        let fetch = || async move {
            let found = errand.get(&reference).await;
            errand.tell(&found, None);
            found
        };
        let found = self.manifests.run(wanted, fetch).await;
        let fetched = found.map_err(|error| faults::of_fetch(&error, Code::ManifestUnknown))?;
        Ok(self.serve_fetched(&fetched, Forward::UriMiss, method, headers))
    }

    async fn read_tag(&self, place: Place, tag: &Tag, method: Read, headers: &HeaderMap) -> Answer {
        // What is remembered only counts while its content is here.
        let known = self.known_tag(&place, tag).await?;
        if let Some(known) = &known
            && self.is_fresh(&known.1)
        {
            return Ok(self.serve_fresh(known, method, headers));
        }
        let wanted = Wanted { key: place.key.clone(), reference: Reference::Tag(tag.clone()) };
        let errand = self.errand(&place)?;
        let remembered = known.as_ref().map(|(_, record)| record.clone());
        let checked = tag.clone();
        let check = self
            .manifests
            .run(wanted, || async move { errand.check_tag(&checked, remembered).await });
        let Some((stored, record)) = known else {
            let fetched =
                check.await.map_err(|error| faults::of_fetch(&error, Code::ManifestUnknown))?;
            if fetched.bytes.is_none() {
                // Somebody else's comparison, made while the content was still here.
                return self.read_pinned(place, &fetched.digest, method, headers).await;
            }
            return Ok(self.serve_fetched(&fetched, Forward::UriMiss, method, headers));
        };
        let ttl_ms = millis(self.tag_ttl(&record));
        let stale_ms = age_ms(&record).map_or(0, |age| age.saturating_sub(ttl_ms));
        let may_be_stale = stale_ms < millis(self.settings.tag_stale);
        let serve_stale = || {
            self.metrics.stale_tags.inc();
            let late_s = (stale_ms / 1000) as i64;
            self.serve_tag(&record, &stored, -late_s.max(1), method, headers)
        };
        let checked = if may_be_stale {
            match outrider_shard::time::timeout(CHECK_WAIT, check).await {
                Ok(checked) => checked,
                // The comparison goes on; who asks next has its result.
                Err(_) => return Ok(serve_stale()),
            }
        } else {
            check.await
        };
        match checked {
            Ok(Fetched { bytes: None, .. }) => {
                let ttl_s = (millis(self.tag_ttl(&record)) / 1000) as i64;
                Ok(self.serve_tag(&record, &stored, ttl_s, method, headers))
            }
            Ok(fetched) => Ok(self.serve_fetched(&fetched, Forward::Stale, method, headers)),
            Err(error) if error.is_upstream_down() && may_be_stale => Ok(serve_stale()),
            Err(error) => Err(faults::of_fetch(&error, Code::ManifestUnknown)),
        }
    }

    /// An answer from what a tag is remembered to point to. A `ttl_s` below zero is stale.
    fn serve_tag(
        &self,
        record: &TagRecord,
        stored: &Stored,
        ttl_s: i64,
        method: Read,
        headers: &HeaderMap,
    ) -> Response<GatewayBody> {
        let mut response = self.serve_whole(
            &record.digest,
            &record.media_type,
            stored.bytes.clone(),
            method,
            headers,
        );
        let detail = if ttl_s < 0 { Detail::Stale } else { Detail::Ram };
        let status = CacheStatus::hit().ttl_s(ttl_s).detail(detail).verified(true);
        response.headers_mut().insert(header::CACHE_STATUS, status.to_header());
        response
    }

    /// An answer from what has just come in.
    fn serve_fetched(
        &self,
        fetched: &Fetched,
        forward: Forward,
        method: Read,
        headers: &HeaderMap,
    ) -> Response<GatewayBody> {
        self.touch_anywhere(&fetched.digest, self.customers.behalf());
        let bytes = fetched.bytes.clone().unwrap_or_default();
        let not_modified = conditional::if_none_match(headers, &fetched.digest);
        let mut response =
            bare(if not_modified { StatusCode::NOT_MODIFIED } else { StatusCode::OK });
        describe(&mut response, &fetched.digest, &fetched.media_type);
        let status = CacheStatus::forwarded(forward).status(200).stored().verified(true);
        response.headers_mut().insert(header::CACHE_STATUS, status.to_header());
        if !not_modified {
            response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(bytes.len()));
            if method == Read::Get {
                *response.body_mut() = GatewayBody::whole(bytes);
            }
        }
        response
    }

    /// Fetches a manifest from there, and keeps it in the cache: its media type and bytes.
    ///
    /// # Errors
    /// The inner one is of the fetch.
    pub(crate) async fn fetch_at(
        &self,
        place: &Place,
        reference: &Reference,
    ) -> Result<Result<(Rc<str>, Bytes), FetchError>, ApiError> {
        let fetched = self.errand(place)?.get(reference).await;
        Ok(fetched.map(|fetched| (fetched.media_type, fetched.bytes.unwrap_or_default())))
    }

    fn errand(&self, place: &Place) -> Result<Errand<N>, ApiError> {
        Ok(Errand {
            source: place.source.clone(),
            upstream_name: place.upstream_name.clone(),
            key: place.key.clone(),
            gateway: self.me.upgrade().ok_or(Unanswered::Ended)?,
        })
    }
}

/// What a tag is remembered to point to, with its content.
type KnownTag = (Stored, Arc<TagRecord>);

/// How long ago the upstream said what the record says: not known where the clock was set back since, and such a record is
/// as good as one that has just grown old. A hosted tag is never old.
fn age_ms(record: &TagRecord) -> Option<u64> {
    match &record.origin {
        TagOrigin::Hosted => Some(0),
        TagOrigin::Mirrored { checked_unix_ms, .. } => unix_ms().checked_sub(*checked_unix_ms),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

pub(crate) fn unknown(name: &RepositoryName, reference: &Reference) -> ApiError {
    ApiError::new(Code::ManifestUnknown, format!("{name} has no manifest {reference}")).with_detail(
        serde_json::json!({ "name": name.to_string(), "reference": reference.to_string() }),
    )
}
