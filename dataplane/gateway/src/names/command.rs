//! Each change, as a function of the tables. A change that is refused has changed nothing: checks
//! stand before the first write.

use outrider_artifact::event::UploadEvent;
use outrider_artifact::{Digest, RepositoryName, Tag};
use redb::{ReadTransaction, ReadableTable, ReadableTableMetadata};

use super::NamesError;
use super::model::{MirroredTag, Mounted, Put, PutBlob, PutManifest, Removed, UploadId};
use super::query;
use super::record::{
    ContentRow, DigestKey, ManifestRow, MirroredRepositoryRow, MirroredTagRow, ReferrerRow, TagRow,
    decode, encode,
};
use super::store::{Fault, META_OUTBOX_DROPPED, META_OUTBOX_NEXT, Tables};

/// How many missing references an error carries.
const MISSING_MAX: usize = 64;

/// One change.
pub(super) trait Command: Send + 'static {
    /// What is answered once it is on the disk.
    type Outcome: Send + 'static;

    /// What it is called in the metrics.
    const KIND: &'static str;

    /// Makes the change within a transaction.
    fn apply(&self, tables: &mut Tables<'_>) -> Result<Self::Outcome, Fault>;

    /// After a commit that failed: whether the change is there all the same. A commit can reach the
    /// disk although the disk said that it failed, and an upload that is named must not be dropped.
    fn found(&self, _: &ReadTransaction) -> Result<Found<Self::Outcome>, Fault> {
        Ok(Found::Unknown)
    }
}

/// What is found of a change after a commit that failed.
pub(super) enum Found<T> {
    /// It was made.
    There(T),
    /// It was not.
    NotThere,
    /// The tables do not tell.
    Unknown,
}

impl Tables<'_> {
    /// Refuses a push to a mirrored repository.
    fn check_pushable(&self, repository: &RepositoryName) -> Result<(), Fault> {
        let Some(row) = self.mirrored_repositories.get(&**repository)? else { return Ok(()) };
        let upstream = decode::<MirroredRepositoryRow>(row.value())
            .map_or_else(|_| "an upstream".into(), |row| row.upstream);
        Err(NamesError::Mirrored { repository: repository.clone(), upstream }.into())
    }

    fn content(&self, key: DigestKey, digest: &Digest) -> Result<Option<ContentRow>, Fault> {
        let Some(row) = self.content.get(key.as_bytes())? else { return Ok(None) };
        let row = decode(row.value()).map_err(|fault| fault.of("the content", digest))?;
        Ok(Some(row))
    }

    /// The row of a content that is put: as it is, or with the new upload. Changes nothing.
    fn content_to_put(&self, key: DigestKey, given: &Given<'_>) -> Result<ContentRow, Fault> {
        let Some(mut row) = self.content(key, given.digest)? else {
            return Ok(ContentRow {
                upload_id: given.upload_id,
                size_bytes: given.size_bytes,
                media_type: given.media_type.into(),
                links: 0,
            });
        };
        if row.size_bytes != given.size_bytes {
            return Err(Fault::Refused(NamesError::SizeConflict {
                digest: *given.digest,
                hosted: row.size_bytes,
                given: given.size_bytes,
            }));
        }
        if given.previous_is_lost {
            row.upload_id = given.upload_id;
        }
        Ok(row)
    }

    fn touch(&mut self, repository: &str) {
        self.changes.repositories.push(repository.into());
    }

    fn write_event(&mut self, archive: Option<&[u8]>) -> Result<(), Fault> {
        let Some(archive) = archive else { return Ok(()) };
        let next = self.meta.get(META_OUTBOX_NEXT)?.map_or(1, |next| next.value());
        self.outbox.insert(next, archive)?;
        self.meta.insert(META_OUTBOX_NEXT, next + 1)?;
        self.drop_oldest_events()
    }

    /// Keeps the outbox within its bound.
    pub(super) fn drop_oldest_events(&mut self) -> Result<(), Fault> {
        let mut dropped = 0;
        while self.outbox.len()? > self.limits.outbox_records_max {
            self.outbox.pop_first()?;
            dropped += 1;
        }
        if dropped > 0 {
            let before = self.meta.get(META_OUTBOX_DROPPED)?.map_or(0, |count| count.value());
            self.meta.insert(META_OUTBOX_DROPPED, before + dropped)?;
            self.changes.events_dropped += dropped;
        }
        Ok(())
    }

    /// Keeps the mirrored tags within their bound.
    pub(super) fn forget_oldest_mirrored(&mut self) -> Result<(), Fault> {
        while self.mirrored_age.len()? > self.limits.mirrored_tags_max as u64 {
            // Taken out here, so that the loop ends whatever the other tables say.
            let Some((repository, tag)) = self.mirrored_age.pop_first()?.map(|(key, _)| {
                let (_, repository, tag) = key.value();
                (repository.to_owned(), tag.to_owned())
            }) else {
                return Ok(());
            };
            self.forget_mirrored(&repository, &tag)?;
            self.changes.mirrored_forgotten += 1;
        }
        Ok(())
    }

    fn mirrored_tag(&self, repository: &str, tag: &str) -> Result<Option<MirroredTagRow>, Fault> {
        let row = self.mirrored_tags.get((repository, tag))?;
        // All were validated when the file was opened; one that is damaged since is as good as none.
        Ok(row.and_then(|row| decode(row.value()).ok()))
    }

    /// Takes a mirrored tag from all three tables. False if there is none.
    fn forget_mirrored(&mut self, repository: &str, tag: &str) -> Result<bool, Fault> {
        let Some(row) = self.mirrored_tags.remove((repository, tag))? else { return Ok(false) };
        let checked_unix_ms =
            decode::<MirroredTagRow>(row.value()).map_or(0, |row| row.checked_unix_ms);
        drop(row);
        self.mirrored_age.remove((checked_unix_ms, repository, tag))?;
        let counted = self
            .mirrored_repositories
            .get(repository)?
            .and_then(|row| decode::<MirroredRepositoryRow>(row.value()).ok());
        match counted {
            Some(mut counted) if counted.tags > 1 => {
                counted.tags -= 1;
                self.mirrored_repositories.insert(repository, &*encode(&counted))?;
            }
            _ => {
                self.mirrored_repositories.remove(repository)?;
            }
        }
        self.touch(repository);
        Ok(true)
    }

    /// Charges a content that was not here to who pushes it. Before the first write of a change.
    fn charge(&mut self, key: DigestKey, given: &Given<'_>) -> Result<(), Fault> {
        let Some(customer) = given.customer else { return Ok(()) };
        if self.content.get(key.as_bytes())?.is_some() {
            return Ok(());
        }
        let over = |error| Fault::Refused(NamesError::OverLimit(error));
        self.changes
            .stored
            .charge(&self.limits.stored, customer, given.size_bytes)
            .map_err(over)?;
        self.charged.insert(key.as_bytes(), (given.size_bytes, customer))?;
        Ok(())
    }

    /// One repository less holds the content. The upload that can be deleted, if it was the last.
    fn unlink(&mut self, key: DigestKey, digest: &Digest) -> Result<Option<UploadId>, Fault> {
        let Some(mut row) = self.content(key, digest)? else { return Ok(None) };
        if row.links > 1 {
            row.links -= 1;
            self.content.insert(key.as_bytes(), &*encode(&row))?;
            return Ok(None);
        }
        self.content.remove(key.as_bytes())?;
        if let Some(charge) = self.charged.remove(key.as_bytes())? {
            let (bytes, customer) = charge.value();
            self.changes.stored.give_back(customer, bytes);
        }
        Ok(Some(row.upload_id))
    }
}

/// What both puts give of a content.
struct Given<'a> {
    digest: &'a Digest,
    size_bytes: u64,
    media_type: &'a str,
    upload_id: UploadId,
    previous_is_lost: bool,
    /// Who pushes it; nobody where it is a copy from elsewhere.
    customer: Option<&'a str>,
}

impl Given<'_> {
    fn answer(&self, row: &ContentRow) -> Put {
        Put { upload_id: row.upload_id, superfluous: row.upload_id != self.upload_id }
    }

    /// After a commit that failed: the content is there, by this upload.
    fn found(&self, snapshot: &ReadTransaction) -> Result<Found<Put>, Fault> {
        let hosted = query::hosted(snapshot, self.digest)?;
        let is_ours = hosted.is_some_and(|hosted| hosted.upload_id == self.upload_id);
        let put = Put { upload_id: self.upload_id, superfluous: false };
        Ok(if is_ours { Found::There(put) } else { Found::NotThere })
    }
}

/// A put with its event already written out.
pub(super) struct PutBlobCommand {
    put: PutBlob,
    event: Option<Vec<u8>>,
}

impl PutBlobCommand {
    pub(super) fn new(put: PutBlob) -> Self {
        let event = put.event.as_ref().map(|event| event.to_archive());
        Self { put, event }
    }

    fn given(&self) -> Given<'_> {
        let PutBlob { digest, size_bytes, media_type, upload_id, previous_is_lost, .. } = &self.put;
        Given {
            digest,
            size_bytes: *size_bytes,
            media_type,
            upload_id: *upload_id,
            previous_is_lost: *previous_is_lost,
            customer: self.put.event.as_ref().map(|event| &*event.customer),
        }
    }
}

impl Command for PutBlobCommand {
    type Outcome = Put;
    const KIND: &'static str = "put-blob";

    fn apply(&self, tables: &mut Tables<'_>) -> Result<Put, Fault> {
        let (repository, given) = (&self.put.repository, self.given());
        let key = DigestKey::from(given.digest);
        tables.check_pushable(repository)?;
        let mut row = tables.content_to_put(key, &given)?;
        tables.charge(key, &given)?;

        tables.repositories.insert(&**repository, ())?;
        if tables.blobs.insert((&**repository, key.as_bytes()), ())?.is_none() {
            row.links += 1;
        }
        tables.content.insert(key.as_bytes(), &*encode(&row))?;
        tables.write_event(self.event.as_deref())?;
        tables.touch(repository);
        Ok(given.answer(&row))
    }

    fn found(&self, snapshot: &ReadTransaction) -> Result<Found<Put>, Fault> {
        self.given().found(snapshot)
    }
}

/// A put with its events already written out.
pub(super) struct PutManifestCommand {
    put: PutManifest,
    events: Vec<Vec<u8>>,
}

impl PutManifestCommand {
    pub(super) fn new(put: PutManifest) -> Self {
        let events = put.events.iter().map(UploadEvent::to_archive).collect();
        Self { put, events }
    }

    fn given(&self) -> Given<'_> {
        let PutManifest { digest, size_bytes, media_type, upload_id, previous_is_lost, .. } =
            &self.put;
        Given {
            digest,
            size_bytes: *size_bytes,
            media_type,
            upload_id: *upload_id,
            previous_is_lost: *previous_is_lost,
            customer: self.put.events.first().map(|event| &*event.customer),
        }
    }

    fn check_references(&self, tables: &Tables<'_>) -> Result<(), Fault> {
        let repository = &self.put.repository;
        let mut missing = Vec::new();
        for digest in &self.put.references {
            let key = DigestKey::from(digest);
            let held = tables.blobs.get((&**repository, key.as_bytes()))?.is_some()
                || tables.manifests.get((&**repository, key.as_bytes()))?.is_some();
            if !held && missing.len() < MISSING_MAX {
                missing.push(*digest);
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        Err(NamesError::ReferencesUnknown { repository: repository.clone(), missing }.into())
    }
}

impl Command for PutManifestCommand {
    type Outcome = Put;
    const KIND: &'static str = "put-manifest";

    fn apply(&self, tables: &mut Tables<'_>) -> Result<Put, Fault> {
        let (put, given) = (&self.put, self.given());
        let repository = &*put.repository;
        let key = DigestKey::from(&put.digest);
        tables.check_pushable(&put.repository)?;
        if put.references_required {
            self.check_references(tables)?;
        }
        let mut content = tables.content_to_put(key, &given)?;
        tables.charge(key, &given)?;

        tables.repositories.insert(repository, ())?;
        let row = ManifestRow {
            size_bytes: put.size_bytes,
            media_type: put.media_type.clone(),
            references: put.references.iter().map(|one| DigestKey::from(one).to_vec()).collect(),
            subject: put.referrer.as_ref().map(|one| DigestKey::from(&one.subject).to_vec()),
        };
        if tables.manifests.insert((repository, key.as_bytes()), &*encode(&row))?.is_none() {
            content.links += 1;
        }
        tables.content.insert(key.as_bytes(), &*encode(&content))?;
        if let Some(referrer) = &put.referrer {
            let subject = DigestKey::from(&referrer.subject);
            let row = ReferrerRow {
                artifact_type: referrer.artifact_type.clone(),
                descriptor: referrer.descriptor.clone(),
            };
            tables
                .referrers
                .insert((repository, subject.as_bytes(), key.as_bytes()), &*encode(&row))?;
        }
        let row = encode(&TagRow {
            digest: key.to_vec(),
            size_bytes: put.size_bytes,
            media_type: put.media_type.clone(),
        });
        for tag in &put.tags {
            tables.tags.insert((repository, &**tag), &*row)?;
        }
        for event in &self.events {
            tables.write_event(Some(event))?;
        }
        tables.touch(repository);
        Ok(given.answer(&content))
    }

    fn found(&self, snapshot: &ReadTransaction) -> Result<Found<Put>, Fault> {
        self.given().found(snapshot)
    }
}

pub(super) struct Mount {
    pub(super) repository: RepositoryName,
    pub(super) digest: Digest,
    pub(super) from: Option<RepositoryName>,
}

impl Command for Mount {
    type Outcome = Option<Mounted>;
    const KIND: &'static str = "mount";

    fn apply(&self, tables: &mut Tables<'_>) -> Result<Option<Mounted>, Fault> {
        let key = DigestKey::from(&self.digest);
        tables.check_pushable(&self.repository)?;
        if let Some(from) = &self.from
            && tables.blobs.get((&**from, key.as_bytes()))?.is_none()
        {
            return Ok(None);
        }
        let Some(mut row) = tables.content(key, &self.digest)? else { return Ok(None) };

        tables.repositories.insert(&*self.repository, ())?;
        if tables.blobs.insert((&*self.repository, key.as_bytes()), ())?.is_none() {
            row.links += 1;
            tables.content.insert(key.as_bytes(), &*encode(&row))?;
        }
        tables.touch(&self.repository);
        Ok(Some(Mounted { size_bytes: row.size_bytes }))
    }
}

impl Command for MirroredTag {
    type Outcome = ();
    const KIND: &'static str = "remember-mirrored-tag";

    fn apply(&self, tables: &mut Tables<'_>) -> Result<(), Fault> {
        let (repository, tag) = (&*self.repository, &*self.tag);
        if tables.repositories.get(repository)?.is_some() {
            return Err(NamesError::Hosted { repository: self.repository.clone() }.into());
        }
        let row = MirroredTagRow {
            digest: DigestKey::from(&self.digest).to_vec(),
            size_bytes: self.size_bytes,
            media_type: self.media_type.clone(),
            upstream: self.upstream.clone(),
            checked_unix_ms: self.checked_unix_ms,
            etag: self.etag.clone(),
        };
        let counted = tables
            .mirrored_repositories
            .get(repository)?
            .and_then(|row| decode::<MirroredRepositoryRow>(row.value()).ok());
        let mut counted =
            counted.unwrap_or_else(|| MirroredRepositoryRow { upstream: String::new(), tags: 0 });
        counted.upstream.clone_from(&self.upstream);

        match tables.mirrored_tag(repository, tag)? {
            Some(old) => {
                tables.mirrored_age.remove((old.checked_unix_ms, repository, tag))?;
            }
            None => counted.tags += 1,
        }
        tables.mirrored_tags.insert((repository, tag), &*encode(&row))?;
        tables.mirrored_age.insert((self.checked_unix_ms, repository, tag), ())?;
        tables.mirrored_repositories.insert(repository, &*encode(&counted))?;
        tables.touch(repository);
        tables.forget_oldest_mirrored()
    }
}

pub(super) struct TouchMirroredTag {
    pub(super) repository: RepositoryName,
    pub(super) tag: Tag,
    pub(super) digest: Digest,
    pub(super) checked_unix_ms: u64,
}

impl Command for TouchMirroredTag {
    type Outcome = bool;
    const KIND: &'static str = "touch-mirrored-tag";

    fn apply(&self, tables: &mut Tables<'_>) -> Result<bool, Fault> {
        let (repository, tag) = (&*self.repository, &*self.tag);
        let Some(mut row) = tables.mirrored_tag(repository, tag)? else { return Ok(false) };
        if row.digest != DigestKey::from(&self.digest).as_bytes() {
            return Ok(false);
        }
        tables.mirrored_age.remove((row.checked_unix_ms, repository, tag))?;
        // Two checks may come in out of order; the clock may have been set back.
        row.checked_unix_ms = self.checked_unix_ms;
        tables.mirrored_tags.insert((repository, tag), &*encode(&row))?;
        tables.mirrored_age.insert((row.checked_unix_ms, repository, tag), ())?;
        tables.touch(repository);
        Ok(true)
    }
}

pub(super) struct ForgetMirroredTag {
    pub(super) repository: RepositoryName,
    pub(super) tag: Tag,
}

impl Command for ForgetMirroredTag {
    type Outcome = bool;
    const KIND: &'static str = "forget-mirrored-tag";

    fn apply(&self, tables: &mut Tables<'_>) -> Result<bool, Fault> {
        tables.forget_mirrored(&self.repository, &self.tag)
    }
}

pub(super) struct DeleteTag {
    pub(super) repository: RepositoryName,
    pub(super) tag: Tag,
}

impl Command for DeleteTag {
    type Outcome = bool;
    const KIND: &'static str = "delete-tag";

    fn apply(&self, tables: &mut Tables<'_>) -> Result<bool, Fault> {
        let removed = tables.tags.remove((&*self.repository, &*self.tag))?.is_some();
        tables.touch(&self.repository);
        Ok(removed)
    }
}

pub(super) struct DeleteManifest {
    pub(super) repository: RepositoryName,
    pub(super) digest: Digest,
}

impl Command for DeleteManifest {
    type Outcome = Option<Removed>;
    const KIND: &'static str = "delete-manifest";

    fn apply(&self, tables: &mut Tables<'_>) -> Result<Option<Removed>, Fault> {
        let repository = &*self.repository;
        let key = DigestKey::from(&self.digest);
        let row = tables.manifests.get((repository, key.as_bytes()))?;
        let Some(row) = row.map(|row| decode::<ManifestRow>(row.value())) else {
            return Ok(None);
        };
        let row = row.map_err(|fault| fault.of("the manifest", self.digest))?;
        let tags = query::tags_of(&tables.tags, repository, |row| row.digest == key.as_bytes())?;
        // Read before the first write: it fails for a damaged row.
        tables.content(key, &self.digest)?;

        tables.manifests.remove((repository, key.as_bytes()))?;
        for tag in &tags {
            tables.tags.remove((repository, &**tag))?;
        }
        if let Some(subject) = row.subject {
            tables.referrers.remove((repository, &*subject, key.as_bytes()))?;
        }
        let unreferenced = tables.unlink(key, &self.digest)?;
        tables.touch(repository);
        Ok(Some(Removed { unreferenced, tags: tags.len() }))
    }
}

pub(super) struct DeleteBlob {
    pub(super) repository: RepositoryName,
    pub(super) digest: Digest,
}

impl Command for DeleteBlob {
    type Outcome = Option<Removed>;
    const KIND: &'static str = "delete-blob";

    fn apply(&self, tables: &mut Tables<'_>) -> Result<Option<Removed>, Fault> {
        let key = DigestKey::from(&self.digest);
        // Read before the first write: it fails for a damaged row.
        tables.content(key, &self.digest)?;
        if tables.blobs.remove((&*self.repository, key.as_bytes()))?.is_none() {
            return Ok(None);
        }
        let unreferenced = tables.unlink(key, &self.digest)?;
        tables.touch(&self.repository);
        Ok(Some(Removed { unreferenced, tags: 0 }))
    }
}

/// An event of its own, that nothing else waits for. Where the outbox is filled to a quarter with what nobody takes,
/// it is left out, so that it does not push out what was pushed.
pub(super) struct NoteEvent {
    pub(super) event: Vec<u8>,
}

impl Command for NoteEvent {
    type Outcome = bool;
    const KIND: &'static str = "note-event";

    fn apply(&self, tables: &mut Tables<'_>) -> Result<bool, Fault> {
        if tables.outbox.len()? >= tables.limits.outbox_records_max / 4 {
            tables.changes.events_left_out += 1;
            return Ok(false);
        }
        tables.write_event(Some(&self.event))?;
        Ok(true)
    }
}

pub(super) struct AcknowledgeOutbox {
    pub(super) through: u64,
}

impl Command for AcknowledgeOutbox {
    type Outcome = ();
    const KIND: &'static str = "acknowledge-outbox";

    fn apply(&self, tables: &mut Tables<'_>) -> Result<(), Fault> {
        tables.outbox.retain_in(..=self.through, |_, _| false)?;
        Ok(())
    }
}
