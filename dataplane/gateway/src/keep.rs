//! What another edge wants kept here: a manifest that was pushed there, with all that it names, as if it had been
//! pushed here by its digest. What is lacking is had from the edge that asks, which holds it.
//!
//! Only an edge of the fleet may ask, as its certificate proves. It is the one that says what belongs to the
//! repository: it has let the push in. Manifests of an index come along as far as it has them there.

use std::collections::HashSet;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::{HeaderValue, StatusCode};
use outrider_artifact::{Digest, Reference, RepositoryName};
use outrider_shard::time;
use outrider_transport::Peer;
use outrider_uplink::{FetchError, Target};

use crate::faults;
use crate::gateway::{Answer, Gateway, bare, value};
use crate::manifests::{NamedManifest, media_type_of, unknown};
use crate::mesh::Unanswered;
use crate::metrics::OutcomeLabels;
use crate::names::Names;
use crate::protocol::manifest::{self, DescriptorKind};
use crate::protocol::{ApiError, Code, Manifest, Operation};
use crate::upstreams::{Place, place_at_edge};

/// Manifests that a shard brings in at a time for other edges.
const KEEPS_MAX: usize = 8;
/// After so long the other edge is told that it is under way; it asks again.
const ANSWER_WAIT: Duration = Duration::from_secs(1);
/// When it may ask again where too many are brought in.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Manifests of one index, its indexes' ones too, and how deep they may lie.
const MANIFESTS_MAX: usize = 1024;
const DEPTH_MAX: usize = 4;

/// What is to be kept, and who has it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Wish {
    name: RepositoryName,
    digest: Digest,
    from: u64,
}

/// What came of it: the manifest's length.
pub(crate) type Kept = Result<u64, ApiError>;

impl<N: Names> Gateway<N> {
    /// 200 with the manifest's length once all of it is on the disk here, 202 while it is under way.
    ///
    /// # Errors
    /// `DENIED` for who is not another edge; what a push by digest answers; `UNAVAILABLE` where too much is under
    /// way, or the other edge cannot be asked.
    pub(crate) async fn keep_for(&self, operation: Operation, peer: Peer) -> Answer {
        let member = self.if_member(peer).member;
        let from = member.ok_or_else(|| {
            ApiError::new(Code::Denied, "only an edge of the fleet has anything kept here")
        })?;
        let Operation::ManifestPut { name, reference: Reference::Digest(digest), .. } = operation
        else {
            return Err(ApiError::new(Code::Unsupported, "only manifests are kept, by digest"));
        };
        // One shard, so that it is brought in once, however often it is asked for.
        let at = self.hub.placement().home(&digest);
        let wish = Wish { name, digest, from };
        let kept = match at == self.shard {
            true => self.keep_here(wish).await?,
            false => self.on(at, move |other| async move { other.keep_here(wish).await }).await??,
        };
        let Some(size_bytes) = kept else { return Ok(bare(StatusCode::ACCEPTED)) };
        let mut response = bare(StatusCode::OK);
        response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(size_bytes));
        Ok(response)
    }

    /// The manifest's length; nothing while it is under way.
    async fn keep_here(&self, wish: Wish) -> Result<Option<u64>, ApiError> {
        if !self.keeps.is_running(&wish) && self.keeps.len() >= KEEPS_MAX {
            let text = format!("{KEEPS_MAX} manifests are brought in for other edges already");
            return Err(ApiError::new(Code::Unavailable, text).with_retry_after(RETRY_AFTER));
        }
        let gateway = self.me.upgrade().ok_or(Unanswered::Ended)?;
        let digest = wish.digest;
        let keeping = Keeping {
            place: place_at_edge(wish.from, &wish.name),
            name: wish.name.clone(),
            from: wish.from,
            gateway,
            seen: HashSet::new(),
        };
        let run = self.keeps.run(wish, || keeping.run(digest));
        time::timeout(ANSWER_WAIT, run).await.map_or(Ok(None), |kept| kept.map(Some))
    }
}

/// One manifest that is being kept, with what it is made of.
struct Keeping<N> {
    gateway: Rc<Gateway<N>>,
    name: RepositoryName,
    from: u64,
    place: Place,
    seen: HashSet<Digest>,
}

/// A manifest whose own ones come before it.
struct Step {
    digest: Digest,
    bytes: Bytes,
    manifest: Manifest,
    /// It is the repository's here.
    is_linked: bool,
    /// Manifests that it names and that were not looked at yet.
    left: Vec<Digest>,
}

impl<N: Names> Keeping<N> {
    async fn run(mut self, digest: Digest) -> Kept {
        let kept = self.keep_all(digest).await;
        let outcome = if kept.is_ok() { "done" } else { "failed" };
        self.gateway.metrics.keeps.get_or_create(&OutcomeLabels { outcome }).inc();
        if let Err(error) = &kept {
            let Self { name, from, .. } = &self;
            tracing::warn!(repository = %name, %digest, edge = from, "not kept for an edge: {error}");
        }
        kept
    }

    /// The manifests that it names first, so that one that is here has all that belongs to it.
    async fn keep_all(&mut self, digest: Digest) -> Kept {
        self.gateway.must_be_pushable(&self.name).await?;
        let missing = || unknown(&self.name, &Reference::Digest(digest));
        let first = self.find(&digest).await?.ok_or_else(missing)?;
        let size_bytes = first.bytes.len() as u64;
        self.seen.insert(digest);
        let mut path = vec![first];
        while let Some(mut step) = path.pop() {
            let Some(next) = step.left.pop() else {
                self.keep(step).await?;
                continue;
            };
            path.push(step);
            if !self.seen.insert(next) {
                continue;
            }
            if self.seen.len() > MANIFESTS_MAX || path.len() >= DEPTH_MAX {
                return Err(ApiError::new(
                    Code::SizeInvalid,
                    format!("{digest} names more than {MANIFESTS_MAX} manifests, or too deep ones"),
                ));
            }
            path.extend(self.find(&next).await?);
        }
        Ok(size_bytes)
    }

    /// A manifest that is the repository's here or at the edge that asks.
    async fn find(&self, digest: &Digest) -> Result<Option<Step>, ApiError> {
        let Self { gateway, name, place, .. } = self;
        let reference = Reference::Digest(*digest);
        let link = gateway.names.link(name, digest).await?.manifest;
        let stored = gateway.at_hand(digest).await?;
        let failed = |error: &FetchError| Err(faults::of_fetch(error, Code::ManifestUnknown));
        let is_linked = link.is_some();
        let (bytes, media_type) = match (link, stored) {
            (Some(link), Some(stored)) => (stored.bytes, Rc::from(&*link.media_type)),
            (None, Some(stored)) => {
                // It may be here for another repository: that it is this one's too, the other edge says.
                let target = Target::Manifest(reference);
                match gateway.ask_whether(place, &target).await {
                    Ok(()) => (stored.bytes.clone(), media_type_of(&stored)?),
                    Err(FetchError::NotFound) => return Ok(None),
                    Err(error) => return failed(&error),
                }
            }
            (_, None) => match gateway.fetch_at(place, &reference).await? {
                Ok((media_type, bytes)) => (bytes, media_type),
                Err(FetchError::NotFound) => return Ok(None),
                Err(error) => return failed(&error),
            },
        };
        let manifest = manifest::parse(&bytes, Some(&value(&*media_type)))?;
        let of_index = manifest.required().filter(|d| d.kind == DescriptorKind::Manifest);
        let left = of_index.map(|descriptor| descriptor.digest).collect();
        Ok(Some(Step { digest: *digest, bytes, manifest, is_linked, left }))
    }

    /// The blobs, then the manifest itself.
    async fn keep(&self, step: Step) -> Result<(), ApiError> {
        let Self { gateway, name, .. } = self;
        let Step { digest, bytes, manifest, is_linked, left: _ } = step;
        for blob in manifest.required().filter(|d| d.kind != DescriptorKind::Manifest) {
            self.keep_blob(&blob.digest).await?;
        }
        if is_linked && !gateway.is_lost(&digest).await? {
            return Ok(());
        }
        let named =
            NamedManifest { name: name.clone(), digest, manifest, bytes, events: Vec::new() };
        let at = gateway.upload_shard(gateway.hub.placement().home(&digest)).await?;
        match at == gateway.shard {
            true => gateway.keep_manifest(named, Vec::new()).await,
            false => {
                let keep = move |other: Rc<Gateway<N>>| async move {
                    other.keep_manifest(named, Vec::new()).await
                };
                gateway.on(at, keep).await?
            }
        }
    }

    async fn keep_blob(&self, digest: &Digest) -> Result<(), ApiError> {
        let Self { gateway, name, from, .. } = self;
        if gateway.is_lost(digest).await? {
            let text = format!("the disk here has lost {digest}: push it to this edge");
            return Err(ApiError::new(Code::Unknown, text));
        }
        if gateway.names.link(name, digest).await?.blob.is_some()
            || gateway.take_in(name, digest, None).await?
            || gateway.bring_in(name, digest, None, &[*from], false).await?
        {
            return Ok(());
        }
        let text = format!("the edge that asks has not the blob {digest} of the manifest");
        Err(ApiError::new(Code::ManifestBlobUnknown, text))
    }
}
