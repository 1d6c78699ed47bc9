//! Manifests: read from what is hosted or mirrored, put, deleted.
//!
//! A tag of an upstream is answered from here while it is fresh, compared with the upstream by a
//! HEAD when it is not (Docker Hub counts GETs), and answered stale and marked so while the upstream
//! cannot be asked. Manifests are content like blobs, and lie in the same cache.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use outrider_artifact::event::{UploadEvent, UploadKind};
use outrider_artifact::{Algorithm, ContentHasher, Digest, Reference, RepositoryName, Tag};
use outrider_cache::UploadId;
use outrider_transport::RequestBody;
use outrider_uplink::{FetchError, FetchMethod, FetchRequest, Target, Whom};

use crate::access::asker::Asker;
use crate::blobs::Whence;
use crate::body::GatewayBody;
use crate::contents::Stored;
use crate::faults;
use crate::flight::Source;
use crate::gateway::{Answer, Gateway, bare, describe, unix_ms, value};
use crate::mesh::Unanswered;
use crate::names::{
    MirroredTag, Names, NamesError, PutManifest, Referrer, Removed, Repository, SharedTags,
    TagOrigin, TagRecord,
};
use crate::protocol::cache_status::{CacheStatus, Detail, Forward};
use crate::protocol::manifest::{self, DescriptorKind, MANIFEST_BYTES_MAX, too_large};
use crate::protocol::route::{Read, manifest_path};
use crate::protocol::{ApiError, Code, Manifest, conditional, header};
use crate::single::to_the_end;
use crate::uploads;
use crate::upstreams::Place;

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

    /// `PUT /v2/NAME/manifests/REFERENCE`
    pub(crate) async fn put_manifest(
        &self,
        name: RepositoryName,
        reference: Reference,
        tags: Vec<Tag>,
        headers: &HeaderMap,
        mut body: RequestBody,
        asker: &Asker,
    ) -> Answer {
        self.must_be_pushable(&name).await?;
        let bytes = read_body(&mut body).await?;
        let manifest = manifest::parse(&bytes, headers.get(CONTENT_TYPE))?;
        let digest = match &reference {
            Reference::Digest(digest) => *digest,
            Reference::Tag(_) => Digest::sha256(&bytes),
        };
        let (by, linked_only) = (asker.name().to_owned(), asker.is_asked());
        let put = Pushed { name, reference, tags, digest, manifest, bytes, by, linked_only };
        // Known before it is stored, so that it can lie at home, where everybody looks first.
        let at = self.upload_shard(self.hub.placement().home(&digest)).await?;
        if at == self.shard {
            return self.store_manifest(put).await;
        }
        self.answer_on(at, move |other| async move { other.store_manifest(put).await }).await
    }

    async fn store_manifest(&self, pushed: Pushed) -> Answer {
        let Pushed { name, reference, mut tags, digest, manifest, bytes, by, linked_only } = pushed;
        let name = &name;
        let asked_tags = tags.clone();
        if let Reference::Tag(tag) = reference
            && !tags.contains(&tag)
        {
            // What it is called by in the graph.
            tags.insert(0, tag);
        }
        self.take_in_references(name, &manifest, &by, linked_only).await?;
        let size_bytes = bytes.len() as u64;
        let event = |tag: Option<&Tag>| {
            let (kind, tag) = (UploadKind::Manifest, tag.map(|tag| &**tag));
            let mut event = self.upload_event(kind, name, tag, &digest, size_bytes, &by);
            event.media_type.clone_from(&manifest.media_type);
            event
        };
        let events = match &*tags {
            [] => vec![event(None)],
            tags => tags.iter().map(|tag| event(Some(tag))).collect(),
        };
        let subject = manifest.subject;
        let named = NamedManifest { name: name.clone(), digest, manifest, bytes, events };
        self.keep_manifest(named, tags).await?;
        let mut response = bare(StatusCode::CREATED);
        let answer = response.headers_mut();
        answer.insert(LOCATION, value(manifest_path(name, &Reference::Digest(digest))));
        answer.insert(header::DOCKER_CONTENT_DIGEST, value(digest.to_string()));
        answer.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        if let Some(subject) = subject {
            answer.insert(header::OCI_SUBJECT, value(subject.to_string()));
        }
        for tag in asked_tags {
            answer.append(header::OCI_TAG, value(&*tag));
        }
        Ok(response)
    }

    /// Stores and names a manifest on this shard, whose blobs are the repository's. One that was pushed here gets to
    /// other edges where the placement says so, and then its tags. Comes to its end also when who asked leaves.
    pub(crate) async fn keep_manifest(
        &self,
        named: NamedManifest,
        tags: Vec<Tag>,
    ) -> Result<(), ApiError> {
        let NamedManifest { name, digest, manifest, bytes, events } = named;
        let was_pushed = !events.is_empty();
        // What another edge wants kept is nobody's.
        let by = events.first().map_or("", |event| &*event.customer);
        let (_, mut open) = self.open_upload(digest.algorithm(), by)?;
        uploads::take_bytes(&mut open, &bytes).await?;
        let stored = uploads::close(open, &digest).await?;
        let size_bytes = bytes.len() as u64;
        // In a fleet tags are set for all, once the content that they point to is here.
        let (tags, shared_tags) = match self.names.tags_are_shared() {
            true => (Vec::new(), tags),
            false => (tags, Vec::new()),
        };
        let put = PutManifest {
            repository: name.clone(),
            tags,
            digest,
            size_bytes,
            media_type: manifest.media_type.clone(),
            upload_id: stored.id().0,
            previous_is_lost: self.is_lost(&digest).await?,
            references: manifest.required().map(|descriptor| descriptor.digest).collect(),
            references_required: false,
            referrer: manifest.subject.map(|subject| Referrer {
                subject,
                artifact_type: manifest.artifact_type.clone(),
                descriptor: manifest.referrer_descriptor(&digest, size_bytes),
            }),
            events,
        };
        let gateway = self.me.upgrade().ok_or(Unanswered::Ended)?;
        to_the_end(async move {
            if !gateway.names.put_manifest(put).await?.superfluous {
                gateway.host(stored, &digest, &manifest.media_type).await;
                gateway.metrics.uploads_stored.inc();
            }
            let others = match was_pushed {
                true => gateway.replicate(&name, &digest).await?,
                false => Vec::new(),
            };
            if !shared_tags.is_empty() {
                let shared = SharedTags {
                    repository: name,
                    tags: shared_tags,
                    digest,
                    size_bytes,
                    media_type: manifest.media_type,
                    others,
                };
                gateway.names.share_tags(shared).await?;
            }
            Ok(())
        })
        .await
    }

    /// Sees to it that the blobs of a manifest are hosted in its repository. What is only cached is
    /// copied: the cache may forget it. Manifests of an index may come later. With `linked_only` a digest alone is
    /// no right to what is cached: it must have been pushed or mounted, or be held for this repository elsewhere.
    async fn take_in_references(
        &self,
        name: &RepositoryName,
        manifest: &Manifest,
        by: &str,
        linked_only: bool,
    ) -> Result<(), ApiError> {
        let mut missing = Vec::new();
        for descriptor in manifest.required() {
            if descriptor.kind == DescriptorKind::Manifest {
                continue;
            }
            let linked = self.names.link(name, &descriptor.digest).await?.blob.is_some();
            if !linked
                && (linked_only || !self.take_in(name, &descriptor.digest, Some(by)).await?)
                && !self
                    .bring_in(
                        name,
                        &descriptor.digest,
                        Some(by),
                        &self.names.holders(name),
                        linked_only,
                    )
                    .await?
            {
                missing.push(descriptor.digest.to_string());
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let message =
            format!("{name} has {} of the manifest's blobs not: push them first", missing.len());
        missing.truncate(16);
        Err(ApiError::new(Code::ManifestBlobUnknown, message)
            .with_detail(serde_json::json!({ "digests": missing })))
    }

    /// `DELETE /v2/NAME/manifests/REFERENCE`
    pub(crate) async fn delete_manifest(
        &self,
        name: &RepositoryName,
        reference: &Reference,
    ) -> Answer {
        self.must_be_deletable(name).await?;
        let found = match reference {
            Reference::Tag(tag) => self.names.delete_tag(name, tag).await?,
            Reference::Digest(digest) => match self.names.delete_manifest(name, digest).await? {
                Some(removed) => {
                    self.give_back(digest, removed).await?;
                    true
                }
                None => false,
            },
        };
        if found { Ok(bare(StatusCode::ACCEPTED)) } else { Err(unknown(name, reference)) }
    }

    /// `DELETE /v2/NAME/blobs/DIGEST`
    pub(crate) async fn delete_blob(&self, name: &RepositoryName, digest: &Digest) -> Answer {
        self.must_be_deletable(name).await?;
        let removed = self.names.delete_blob(name, digest).await?.ok_or_else(|| {
            ApiError::new(Code::BlobUnknown, format!("{name} has no blob {digest}"))
        })?;
        self.give_back(digest, removed).await?;
        Ok(bare(StatusCode::ACCEPTED))
    }

    /// Gives the space of a content back that no repository has any more. To its end, also when the
    /// client leaves.
    async fn give_back(&self, digest: &Digest, removed: Removed) -> Result<(), ApiError> {
        let Some(upload) = removed.unreferenced else { return Ok(()) };
        let gateway = self.me.upgrade().ok_or(Unanswered::Ended)?;
        let digest = *digest;
        to_the_end(async move { gateway.unhost(&digest, UploadId(upload)).await }).await;
        Ok(())
    }

    async fn must_be_deletable(&self, name: &RepositoryName) -> Result<(), ApiError> {
        match self.names.repository(name).await? {
            Repository::Mirrored { upstream } => Err(ApiError::new(
                Code::Unsupported,
                format!("{name} is mirrored from {upstream}: delete it there"),
            )),
            _ => Ok(()),
        }
    }
}

/// A way to an upstream for one repository, which outlives the request that began it.
struct Errand<N> {
    source: Source,
    upstream_name: Rc<str>,
    key: RepositoryName,
    gateway: Rc<Gateway<N>>,
}

/// What a tag is remembered to point to, with its content.
type KnownTag = (Stored, Arc<TagRecord>);

/// A manifest that is to be stored and named.
pub(crate) struct NamedManifest {
    pub(crate) name: RepositoryName,
    pub(crate) digest: Digest,
    pub(crate) manifest: Manifest,
    pub(crate) bytes: Bytes,
    /// What is told of it, where it was pushed here: once for each tag.
    pub(crate) events: Vec<UploadEvent>,
}

/// A manifest that was pushed and is not stored yet.
struct Pushed {
    name: RepositoryName,
    reference: Reference,
    tags: Vec<Tag>,
    digest: Digest,
    manifest: Manifest,
    bytes: Bytes,
    /// Whose it is.
    by: String,
    /// Its blobs must be the repository's already.
    linked_only: bool,
}

impl<N: Names> Errand<N> {
    /// Fetches a manifest and keeps it.
    async fn get(&self, reference: &Reference) -> Found {
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
    async fn check_tag(&self, tag: &Tag, known: Option<Arc<TagRecord>>) -> Found {
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
    fn tell(&self, found: &Found, tag: Option<&Tag>) {
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

async fn read_body(body: &mut RequestBody) -> Result<Bytes, ApiError> {
    if let Some(length) = body.size_hint()
        && length > MANIFEST_BYTES_MAX as u64
    {
        return Err(too_large(length));
    }
    let mut bytes = BytesMut::new();
    while let Some(piece) = body.next().await {
        let piece = piece.map_err(|error| {
            ApiError::new(Code::ManifestInvalid, format!("{error}; nothing was stored"))
        })?;
        bytes.extend_from_slice(&piece);
        if bytes.len() > MANIFEST_BYTES_MAX {
            return Err(too_large(bytes.len() as u64));
        }
    }
    Ok(bytes.freeze())
}

pub(crate) fn unknown(name: &RepositoryName, reference: &Reference) -> ApiError {
    ApiError::new(Code::ManifestUnknown, format!("{name} has no manifest {reference}")).with_detail(
        serde_json::json!({ "name": name.to_string(), "reference": reference.to_string() }),
    )
}
