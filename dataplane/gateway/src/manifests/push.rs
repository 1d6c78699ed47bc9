//! Manifests that are put and deleted: what is stored and named, and what goes with it.

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use http::{HeaderMap, HeaderValue, StatusCode};
use outrider_artifact::event::{UploadEvent, UploadKind};
use outrider_artifact::{Digest, Reference, RepositoryName, Tag};
use outrider_cache::UploadId;
use outrider_transport::RequestBody;

use super::unknown;
use crate::access::asker::Asker;
use crate::gateway::{Answer, Gateway, bare, value};
use crate::mesh::Unanswered;
use crate::names::{Names, PutManifest, Referrer, Removed, Repository, SharedTags};
use crate::protocol::manifest::{self, DescriptorKind, MANIFEST_BYTES_MAX, too_large};
use crate::protocol::route::manifest_path;
use crate::protocol::{ApiError, Code, Manifest, header};
use crate::single::to_the_end;
use crate::uploads;

impl<N: Names> Gateway<N> {
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
