//! Uploads of blobs: sessions (POST, PATCH, PUT), single requests, mounts.
//!
//! A session owns the bytes that came in, on disk already, and their hash. It lives in this shard's
//! memory, so a restart ends it and its client begins again; what was answered with 201 is durable:
//! payload flushed, then the name committed, then visible, then acknowledged.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, LOCATION, RANGE};
use http::{HeaderMap, HeaderValue, StatusCode};
use outrider_artifact::event::{UploadEvent, UploadKind};
use outrider_artifact::{Algorithm, ContentHasher, Digest, RepositoryName};
use outrider_cache::{CHUNK_BYTES, CacheError, StoredUpload, Upload, UploadId};
use outrider_transport::RequestBody;

use crate::access::asker::Asker;
use crate::blobs::Whence;
use crate::faults;
use crate::gateway::{Answer, Gateway, bare, unix_ms, value};
use crate::mesh::Unanswered;
use crate::names::{Names, PutBlob, Repository, Room};
use crate::protocol::route::{Mount, UploadSession, blob_path, upload_path};
use crate::protocol::{ApiError, Code, header, range};
use crate::single::to_the_end;

/// Who uploads where nobody says.
pub(crate) const ANONYMOUS: &str = "anonymous";

/// An upload that is coming in.
pub(crate) struct Open {
    upload: Upload,
    hasher: ContentHasher,
    /// What its customer may have stored of it.
    room: Room,
}

impl Open {
    /// Refuses a body that says that it is too long, or more than its customer may have stored, before any of
    /// it is taken.
    fn must_take(&mut self, body: &RequestBody) -> Result<(), ApiError> {
        let size = self.upload.len().saturating_add(body.size_hint().unwrap_or(0));
        let limit = self.upload.len_max();
        if size > limit {
            return Err(faults::of_store(&CacheError::TooLarge { size, limit }));
        }
        Ok(self.room.grow_to(size)?)
    }

    async fn append(&mut self, bytes: &[u8]) -> Result<(), ApiError> {
        self.room.grow_to(self.upload.len() + bytes.len() as u64)?;
        self.upload.append(bytes).await.map_err(|error| faults::of_store(&error))?;
        self.hasher.update(bytes);
        Ok(())
    }
}

struct Session {
    repository: Box<str>,
    received_bytes: u64,
    touched: Instant,
    /// None while a request writes to it.
    open: Option<Open>,
}

/// The upload sessions of a shard.
#[derive(Default)]
pub(crate) struct Sessions(RefCell<HashMap<UploadSession, Session>>);

/// A session in the hands of one request. Dropping it puts the session back, unless a write was cut
/// short, after which nobody knows what is stored, or there is no room for it.
struct Taken<'a> {
    sessions: &'a Sessions,
    id: UploadSession,
    open: Option<Open>,
    /// A write was cut short, or it is more than may be.
    is_over: bool,
}

impl Sessions {
    fn len(&self) -> usize {
        self.0.borrow().len()
    }

    /// Drops sessions that nothing came for. Returns how many.
    fn expire(&self, idle_max: Duration) -> usize {
        let mut sessions = self.0.borrow_mut();
        let before = sessions.len();
        sessions
            .retain(|_, session| session.open.is_none() || session.touched.elapsed() < idle_max);
        before - sessions.len()
    }

    fn insert(&self, id: UploadSession, repository: &str, open: Open) {
        let session = Session {
            repository: repository.into(),
            received_bytes: open.upload.len(),
            touched: Instant::now(),
            open: Some(open),
        };
        self.0.borrow_mut().insert(id, session);
    }

    fn received(&self, id: UploadSession, repository: &str) -> Result<u64, ApiError> {
        let sessions = self.0.borrow();
        let session = sessions.get(&id).filter(|session| &*session.repository == repository);
        session.map(|session| session.received_bytes).ok_or_else(unknown)
    }

    fn take(&self, id: UploadSession, repository: &str) -> Result<Taken<'_>, ApiError> {
        let mut sessions = self.0.borrow_mut();
        let session = sessions.get_mut(&id).filter(|session| &*session.repository == repository);
        let open = session.ok_or_else(unknown)?.open.take().ok_or_else(|| {
            ApiError::new(Code::BlobUploadInvalid, "another request is writing to this upload")
                .with_status(StatusCode::CONFLICT)
        })?;
        Ok(Taken { sessions: self, id, open: Some(open), is_over: false })
    }

    fn remove(&self, id: UploadSession) {
        self.0.borrow_mut().remove(&id);
    }
}

impl Taken<'_> {
    fn received(&self) -> u64 {
        self.open.as_ref().map_or(0, |open| open.upload.len())
    }

    /// Takes all of a request's body.
    async fn append_body(&mut self, body: &mut RequestBody) -> Result<(), ApiError> {
        if let Some(open) = &mut self.open
            && let Err(error) = open.must_take(body)
        {
            // Nothing stays of what cannot be taken.
            self.is_over = true;
            return Err(error);
        }
        while let Some(bytes) = body.next().await {
            let bytes = bytes.map_err(|error| {
                let message = format!("{error}; what came in is kept, go on from there");
                ApiError::new(Code::BlobUploadInvalid, message)
            })?;
            let Some(open) = &mut self.open else { return Err(unknown()) };
            self.is_over = true;
            open.append(&bytes).await?;
            self.is_over = false;
            outrider_shard::task::yield_if_needed().await;
        }
        Ok(())
    }

    /// Ends the session.
    fn into_open(mut self) -> Result<Open, ApiError> {
        let open = self.open.take().ok_or_else(unknown)?;
        self.sessions.remove(self.id);
        Ok(open)
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if self.is_over {
            self.sessions.remove(self.id);
            return;
        }
        if let Some(mut open) = self.open.take()
            && let Some(session) = self.sessions.0.borrow_mut().get_mut(&self.id)
        {
            open.room.shrink_to(open.upload.len());
            session.received_bytes = open.upload.len();
            session.touched = Instant::now();
            session.open = Some(open);
        }
    }
}

impl<N: Names> Gateway<N> {
    /// `POST /v2/NAME/blobs/uploads/`
    pub(crate) async fn start_upload(
        &self,
        name: RepositoryName,
        digest: Option<Digest>,
        mount: Option<Mount>,
        algorithm: Option<Algorithm>,
        body: RequestBody,
        asker: &Asker,
    ) -> Answer {
        self.must_be_pushable(&name).await?;
        if let Some(mount) = mount
            && self.may_mount(&mount, asker).await
            && self.mount(&name, &mount, asker.name()).await?
        {
            return Ok(created(&name, &mount.digest));
        }
        let at = self.upload_shard(self.shard).await?;
        if at == self.shard {
            return self.begin_upload(&name, digest, algorithm, body, asker.name()).await;
        }
        let by = asker.name().to_owned();
        self.carry_to(at, body, move |other, body| async move {
            other.begin_upload(&name, digest, algorithm, body, &by).await
        })
        .await
    }

    /// The shard that takes an upload: the one that is wanted, or, where that has no disk or no room
    /// left, another one that has. Where nobody has, it is the one that was wanted, which says why.
    pub(crate) async fn upload_shard(&self, wanted: u16) -> Result<u16, ApiError> {
        let shards = self.hub.shards();
        for shard in (0..shards).map(|step| (wanted + step) % shards) {
            let takes = match shard == self.shard {
                true => self.cache.takes_uploads(),
                false => self.on(shard, |other| async move { other.cache.takes_uploads() }).await?,
            };
            if takes {
                return Ok(shard);
            }
        }
        Ok(wanted)
    }

    /// An upload to this shard's disk.
    async fn begin_upload(
        &self,
        name: &RepositoryName,
        digest: Option<Digest>,
        algorithm: Option<Algorithm>,
        mut body: RequestBody,
        by: &str,
    ) -> Answer {
        let algorithm = digest.map(|digest| digest.algorithm()).or(algorithm);
        let (id, open) = self.open_upload(algorithm.unwrap_or(Algorithm::Sha256), by)?;
        if let Some(digest) = digest {
            let mut open = open;
            take_body(&mut open, &mut body).await?;
            self.store_blob(name, open, &digest, Some(by)).await?;
            return Ok(created(name, &digest));
        }
        self.uploads.insert(id, name, open);
        self.count_sessions();
        Ok(accepted(StatusCode::ACCEPTED, name, id, 0))
    }

    /// `PATCH /v2/NAME/blobs/uploads/SESSION`
    pub(crate) async fn take_upload(
        &self,
        name: RepositoryName,
        id: UploadSession,
        headers: HeaderMap,
        body: RequestBody,
    ) -> Answer {
        match self.holder_of(id)? {
            None => self.take_upload_here(&name, id, &headers, body).await,
            Some(holder) => {
                self.carry_to(holder, body, move |holder, body| async move {
                    holder.take_upload_here(&name, id, &headers, body).await
                })
                .await
            }
        }
    }

    /// The shard that holds a session, if it is another one.
    fn holder_of(&self, id: UploadSession) -> Result<Option<u16>, ApiError> {
        match id.shard() {
            shard if shard == self.shard => Ok(None),
            shard if shard < self.hub.shards() => Ok(Some(shard)),
            // Of a former start, with more shards.
            _ => Err(unknown()),
        }
    }

    async fn take_upload_here(
        &self,
        name: &RepositoryName,
        id: UploadSession,
        headers: &HeaderMap,
        mut body: RequestBody,
    ) -> Answer {
        let mut taken = self.uploads.take(id, name)?;
        in_order(taken.received(), headers, &body)?;
        taken.append_body(&mut body).await?;
        Ok(accepted(StatusCode::ACCEPTED, name, id, taken.received()))
    }

    /// `PUT /v2/NAME/blobs/uploads/SESSION?digest=…`
    pub(crate) async fn finish_upload(
        &self,
        name: RepositoryName,
        id: UploadSession,
        digest: Digest,
        headers: HeaderMap,
        body: RequestBody,
        asker: &Asker,
    ) -> Answer {
        match self.holder_of(id)? {
            None => self.finish_upload_here(&name, id, &digest, &headers, body, asker.name()).await,
            Some(holder) => {
                let by = asker.name().to_owned();
                self.carry_to(holder, body, move |holder, body| async move {
                    holder.finish_upload_here(&name, id, &digest, &headers, body, &by).await
                })
                .await
            }
        }
    }

    async fn finish_upload_here(
        &self,
        name: &RepositoryName,
        id: UploadSession,
        digest: &Digest,
        headers: &HeaderMap,
        mut body: RequestBody,
        by: &str,
    ) -> Answer {
        let mut taken = self.uploads.take(id, name)?;
        in_order(taken.received(), headers, &body)?;
        taken.append_body(&mut body).await?;
        let open = taken.into_open()?;
        self.count_sessions();
        self.store_blob(name, open, digest, Some(by)).await?;
        Ok(created(name, digest))
    }

    /// `GET /v2/NAME/blobs/uploads/SESSION`
    pub(crate) async fn upload_status(&self, name: RepositoryName, id: UploadSession) -> Answer {
        let status = move |gateway: &Self| {
            let received = gateway.uploads.received(id, &name)?;
            Ok(accepted(StatusCode::NO_CONTENT, &name, id, received))
        };
        match self.holder_of(id)? {
            None => status(self),
            Some(holder) => {
                self.answer_on(holder, move |holder| async move { status(&holder) }).await
            }
        }
    }

    /// `DELETE /v2/NAME/blobs/uploads/SESSION`
    pub(crate) async fn cancel_upload(&self, name: RepositoryName, id: UploadSession) -> Answer {
        let cancel = move |gateway: &Self| {
            gateway.uploads.take(id, &name)?.into_open()?;
            gateway.count_sessions();
            Ok(bare(StatusCode::NO_CONTENT))
        };
        match self.holder_of(id)? {
            None => cancel(self),
            Some(holder) => {
                self.answer_on(holder, move |holder| async move { cancel(&holder) }).await
            }
        }
    }

    /// Drops sessions that nothing came for, and with them the room that they take.
    pub(crate) fn expire_uploads(&self) {
        let expired = self.uploads.expire(self.settings.upload_idle);
        if expired > 0 {
            self.metrics.uploads_expired.inc_by(expired as u64);
            self.count_sessions();
        }
    }

    /// The gauge is all shards'.
    fn count_sessions(&self) {
        let sessions = self.uploads.len() as i64;
        let before = self.uploads_counted.replace(sessions);
        self.metrics.upload_sessions.inc_by(sessions - before);
    }

    /// Refuses what is mirrored: a repository has one source of truth.
    pub(crate) async fn must_be_pushable(&self, name: &RepositoryName) -> Result<(), ApiError> {
        match self.names.repository(name).await? {
            Repository::Mirrored { upstream } => Err(ApiError::new(
                Code::Denied,
                format!(
                    "{name} is mirrored from {upstream}, so nothing can be pushed there: push to another name"
                ),
            )),
            _ => Ok(()),
        }
    }

    /// Space for an upload of a customer.
    pub(crate) fn open_upload(
        &self,
        algorithm: Algorithm,
        by: &str,
    ) -> Result<(UploadSession, Open), ApiError> {
        self.expire_uploads();
        if self.uploads.len() >= self.settings.upload_sessions_max {
            return Err(ApiError::new(
                Code::TooManyRequests,
                format!("{} uploads are open, which is the limit", self.uploads.len()),
            )
            .with_retry_after(Duration::from_secs(10)));
        }
        let mut random = [0; 14];
        getrandom::fill(&mut random).map_err(|error| {
            ApiError::new(Code::Unknown, format!("the system has no random numbers: {error}"))
        })?;
        let id = UploadSession::new(self.shard, random);
        let upload =
            self.cache.upload(UploadId(id.bytes())).map_err(|error| faults::of_store(&error))?;
        let room = self.customers.room(by);
        Ok((id, Open { upload, hasher: ContentHasher::new(algorithm), room }))
    }

    /// Checks, flushes, names and shows a blob, in this order. What nobody pushed here is not told of.
    async fn store_blob(
        &self,
        name: &RepositoryName,
        open: Open,
        digest: &Digest,
        by: Option<&str>,
    ) -> Result<(), ApiError> {
        let stored = close(open, digest).await?;
        let size_bytes = stored.size();
        let event =
            by.map(|by| self.upload_event(UploadKind::Blob, name, None, digest, size_bytes, by));
        self.name_blob(name, stored, digest, event).await
    }

    /// Commits the name of stored bytes, then shows them.
    pub(crate) async fn name_blob(
        &self,
        name: &RepositoryName,
        stored: StoredUpload,
        digest: &Digest,
        event: Option<UploadEvent>,
    ) -> Result<(), ApiError> {
        let put = PutBlob {
            repository: name.clone(),
            digest: *digest,
            size_bytes: stored.size(),
            media_type: String::new(),
            upload_id: stored.id().0,
            previous_is_lost: self.is_lost(digest).await?,
            event,
        };
        let gateway = self.me.upgrade().ok_or(Unanswered::Ended)?;
        let digest = *digest;
        to_the_end(async move {
            if !gateway.names.put_blob(put).await?.superfluous {
                gateway.host(stored, &digest, "").await;
                gateway.metrics.uploads_stored.inc();
            }
            Ok(())
        })
        .await
    }

    pub(crate) fn upload_event(
        &self,
        kind: UploadKind,
        repository: &str,
        version: Option<&str>,
        digest: &Digest,
        size_bytes: u64,
        by: &str,
    ) -> UploadEvent {
        UploadEvent {
            kind,
            customer: by.into(),
            region: self.settings.region.clone(),
            repository: repository.into(),
            version: version.map(Into::into),
            digest: digest.to_string(),
            size_bytes,
            media_type: String::new(),
            unix_ms: unix_ms(),
        }
    }

    /// Links a blob that is here already. False where it is not.
    async fn mount(
        &self,
        name: &RepositoryName,
        mount: &Mount,
        by: &str,
    ) -> Result<bool, ApiError> {
        if let Some(from) = &mount.from
            && let Whence::Hosted(key) = self.whence(from, None).await?
        {
            return Ok(self.names.mount(name, &mount.digest, Some(&key)).await?.is_some());
        }
        self.take_in(name, &mount.digest, Some(by)).await
    }

    /// Makes content that is here a part of a hosted repository: links what is hosted, and copies
    /// what is only cached, since the cache may forget it. False where it is not here. With `by` that is told as
    /// an upload.
    pub(crate) async fn take_in(
        &self,
        name: &RepositoryName,
        digest: &Digest,
        by: Option<&str>,
    ) -> Result<bool, ApiError> {
        let owner = self.owner(digest);
        if owner == self.shard {
            return self.take_in_here(name, digest, by).await;
        }
        let (name, digest, by) = (name.clone(), *digest, by.map(str::to_owned));
        self.on(owner, move |owner| async move {
            owner.take_in_here(&name, &digest, by.as_deref()).await
        })
        .await?
    }

    async fn take_in_here(
        &self,
        name: &RepositoryName,
        digest: &Digest,
        by: Option<&str>,
    ) -> Result<bool, ApiError> {
        let Some(stat) = self.cache.stat(digest).filter(|stat| stat.verified) else {
            return Ok(false);
        };
        if stat.hosted {
            return Ok(self.names.mount(name, digest, None).await?.is_some());
        }
        let (_, mut open) = self.open_upload(digest.algorithm(), by.unwrap_or_default())?;
        open.room.grow_to(stat.size)?;
        for chunk in 0..crate::flight::chunks_of(stat.size) {
            let Some(found) =
                self.cache.read(digest, chunk).await.map_err(|e| faults::of_store(&e))?
            else {
                return Ok(false);
            };
            open.append(&found.bytes).await?;
        }
        self.store_blob(name, open, digest, by).await?;
        Ok(true)
    }
}

/// Takes all of a request's body into an upload that nobody else knows.
pub(crate) async fn take_body(open: &mut Open, body: &mut RequestBody) -> Result<(), ApiError> {
    open.must_take(body)?;
    while let Some(bytes) = body.next().await {
        let bytes = bytes.map_err(|error| {
            ApiError::new(Code::BlobUploadInvalid, format!("{error}; nothing was stored"))
        })?;
        take_bytes(open, &bytes).await?;
    }
    Ok(())
}

/// Takes these bytes into an upload that nobody else knows.
pub(crate) async fn take_bytes(open: &mut Open, bytes: &[u8]) -> Result<(), ApiError> {
    open.append(bytes).await?;
    outrider_shard::task::yield_if_needed().await;
    Ok(())
}

/// Holds an upload against its digest and flushes it. Its room is given back: who names it counts it.
pub(crate) async fn close(open: Open, digest: &Digest) -> Result<StoredUpload, ApiError> {
    let found = if open.hasher.algorithm() == digest.algorithm() {
        open.hasher.finish()
    } else {
        hash_again(&open.upload, digest.algorithm())
            .await
            .map_err(|error| faults::of_store(&error))?
    };
    if found != *digest {
        return Err(ApiError::new(
            Code::DigestInvalid,
            format!("the content has the digest {found}, not {digest}; nothing was stored"),
        ));
    }
    open.upload.finish().await.map_err(|error| faults::of_store(&error))
}

/// Hashes and flushes an upload whose digest nobody gave.
pub(crate) async fn close_unnamed(open: Open) -> Result<(Digest, StoredUpload), ApiError> {
    let digest = open.hasher.finish();
    let stored = open.upload.finish().await.map_err(|error| faults::of_store(&error))?;
    Ok((digest, stored))
}

async fn hash_again(upload: &Upload, algorithm: Algorithm) -> Result<Digest, CacheError> {
    let mut hasher = ContentHasher::new(algorithm);
    for chunk in 0..upload.len().div_ceil(CHUNK_BYTES) {
        hasher.update(&upload.read_back(u32::try_from(chunk).unwrap_or(u32::MAX)).await?);
        outrider_shard::task::yield_if_needed().await;
    }
    Ok(hasher.finish())
}

/// Refuses a chunk that does not go on where the last one ended.
fn in_order(received: u64, headers: &HeaderMap, body: &RequestBody) -> Result<(), ApiError> {
    let Some(given) = range::parse_upload_range(headers.get(CONTENT_RANGE))? else { return Ok(()) };
    if given.first != received {
        return Err(range::out_of_order(received, given));
    }
    match body.size_hint() {
        Some(length) if length != given.len() => Err(ApiError::new(
            Code::SizeInvalid,
            format!("Content-Range names {} bytes, and the body has {length}", given.len()),
        )),
        _ => Ok(()),
    }
}

fn unknown() -> ApiError {
    ApiError::new(
        Code::BlobUploadUnknown,
        "there is no such upload here: it was finished, cancelled, or ended by a restart or by time",
    )
}

fn accepted(
    status: StatusCode,
    name: &RepositoryName,
    id: UploadSession,
    received: u64,
) -> http::Response<crate::body::GatewayBody> {
    let mut response = bare(status);
    let headers = response.headers_mut();
    headers.insert(LOCATION, value(upload_path(name, id)));
    headers.insert(RANGE, range::upload_range_answer(received));
    headers.insert(header::DOCKER_UPLOAD_UUID, value(id.to_string()));
    headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    if status == StatusCode::NO_CONTENT {
        headers.remove(CONTENT_LENGTH);
    }
    response
}

fn created(name: &RepositoryName, digest: &Digest) -> http::Response<crate::body::GatewayBody> {
    let mut response = bare(StatusCode::CREATED);
    let headers = response.headers_mut();
    headers.insert(LOCATION, value(blob_path(name, digest)));
    headers.insert(header::DOCKER_CONTENT_DIGEST, value(digest.to_string()));
    headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    response
}
