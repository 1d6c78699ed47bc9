//! Each question, as a function of a snapshot of the tables.

use std::sync::Arc;

use outrider_artifact::{Digest, RepositoryName, Tag};
use redb::{ReadTransaction, ReadableTable, ReadableTableMetadata};

use super::REFERRERS_BYTES_MAX;
use super::model::{
    Hosted, Link, ManifestLink, OutboxRecord, OutboxStatus, ReferrersPage, Repository, TagOrigin,
    TagRecord, TagsPage,
};
use super::record::{
    ContentRow, DigestKey, ManifestRow, MirroredRepositoryRow, MirroredTagRow, RecordFault,
    ReferrerRow, TagRow, decode, digest_of,
};
use super::store::{
    BLOBS, CONTENT, Fault, MANIFESTS, META, META_OPENING, META_OUTBOX_DROPPED, META_OUTBOX_EPOCH,
    META_OUTBOX_NEXT, MIRRORED_REPOSITORIES, MIRRORED_TAGS, OUTBOX, REFERRERS, REPOSITORIES, TAGS,
};

/// How many entries one answer has at the most, whatever was asked for.
const ENTRIES_MAX: usize = 65_536;

/// One question.
pub(super) trait Query: Send + 'static {
    /// What is answered.
    type Answer: Send + 'static;

    /// What it is called in the metrics.
    const KIND: &'static str;

    /// Looks it up.
    fn answer(&self, snapshot: &ReadTransaction) -> Result<Self::Answer, Fault>;
}

fn damaged(fault: RecordFault, kind: &str, key: impl std::fmt::Display) -> Fault {
    Fault::Refused(fault.of(kind, key))
}

/// What a repository is.
fn state_of(snapshot: &ReadTransaction, repository: &str) -> Result<Repository, Fault> {
    if snapshot.open_table(REPOSITORIES)?.get(repository)?.is_some() {
        return Ok(Repository::Hosted);
    }
    let table = snapshot.open_table(MIRRORED_REPOSITORIES)?;
    let Some(row) = table.get(repository)? else { return Ok(Repository::Unknown) };
    // Damaged since the file was opened: it is only remembered.
    Ok(decode::<MirroredRepositoryRow>(row.value())
        .map_or(Repository::Unknown, |row| Repository::Mirrored { upstream: row.upstream.into() }))
}

pub(super) struct RepositoryQuery(pub(super) RepositoryName);

impl Query for RepositoryQuery {
    type Answer = Repository;
    const KIND: &'static str = "repository";

    fn answer(&self, snapshot: &ReadTransaction) -> Result<Repository, Fault> {
        state_of(snapshot, &self.0)
    }
}

pub(super) struct TagQuery {
    pub(super) repository: RepositoryName,
    pub(super) tag: Tag,
}

impl Query for TagQuery {
    type Answer = Option<Arc<TagRecord>>;
    const KIND: &'static str = "tag";

    fn answer(&self, snapshot: &ReadTransaction) -> Result<Self::Answer, Fault> {
        let key = (&*self.repository, &*self.tag);
        if let Some(row) = snapshot.open_table(TAGS)?.get(key)? {
            let record = decode::<TagRow>(row.value())
                .and_then(|row| {
                    Ok(TagRecord {
                        digest: digest_of(&row.digest)?,
                        size_bytes: row.size_bytes,
                        media_type: row.media_type.into(),
                        origin: TagOrigin::Hosted,
                    })
                })
                .map_err(|fault| damaged(fault, "the tag", format_args!("{}:{}", key.0, key.1)))?;
            return Ok(Some(Arc::new(record)));
        }
        let table = snapshot.open_table(MIRRORED_TAGS)?;
        let Some(row) = table.get(key)? else { return Ok(None) };
        let record = decode::<MirroredTagRow>(row.value()).and_then(|row| {
            Ok(TagRecord {
                digest: digest_of(&row.digest)?,
                size_bytes: row.size_bytes,
                media_type: row.media_type.into(),
                origin: TagOrigin::Mirrored {
                    overtaken: false,
                    upstream: row.upstream.into(),
                    checked_unix_ms: row.checked_unix_ms,
                    etag: row.etag.map(Into::into),
                },
            })
        });
        Ok(record.ok().map(Arc::new))
    }
}

/// The content that was pushed with this digest.
pub(super) fn hosted(snapshot: &ReadTransaction, digest: &Digest) -> Result<Option<Hosted>, Fault> {
    let table = snapshot.open_table(CONTENT)?;
    let Some(row) = table.get(DigestKey::from(digest).as_bytes())? else { return Ok(None) };
    let row: ContentRow =
        decode(row.value()).map_err(|fault| damaged(fault, "the content", digest))?;
    Ok(Some(hosted_from(*digest, row)))
}

fn hosted_from(digest: Digest, row: ContentRow) -> Hosted {
    let ContentRow { upload_id, size_bytes, media_type, links: _ } = row;
    Hosted { digest, upload_id, size_bytes, media_type }
}

pub(super) struct LinkQuery {
    pub(super) repository: RepositoryName,
    pub(super) digest: Digest,
}

impl Query for LinkQuery {
    type Answer = Link;
    const KIND: &'static str = "link";

    fn answer(&self, snapshot: &ReadTransaction) -> Result<Link, Fault> {
        let key = DigestKey::from(&self.digest);
        let key = (&*self.repository, key.as_bytes());
        let mut link = Link::default();
        if snapshot.open_table(BLOBS)?.get(key)?.is_some() {
            link.blob = hosted(snapshot, &self.digest)?.map(|hosted| hosted.size_bytes);
        }
        if let Some(row) = snapshot.open_table(MANIFESTS)?.get(key)? {
            let row: ManifestRow =
                decode(row.value()).map_err(|fault| damaged(fault, "the manifest", self.digest))?;
            link.manifest = Some(ManifestLink {
                size_bytes: row.size_bytes,
                media_type: row.media_type.into(),
            });
        }
        Ok(link)
    }
}

pub(super) struct HostedQuery(pub(super) Digest);

impl Query for HostedQuery {
    type Answer = Option<Hosted>;
    const KIND: &'static str = "hosted";

    fn answer(&self, snapshot: &ReadTransaction) -> Result<Self::Answer, Fault> {
        hosted(snapshot, &self.0)
    }
}

pub(super) struct HostedAfterQuery {
    pub(super) last: Option<Digest>,
    pub(super) entries_max: usize,
}

impl Query for HostedAfterQuery {
    type Answer = Vec<Hosted>;
    const KIND: &'static str = "hosted-after";

    fn answer(&self, snapshot: &ReadTransaction) -> Result<Self::Answer, Fault> {
        let table = snapshot.open_table(CONTENT)?;
        let last = self.last.as_ref().map(DigestKey::from);
        let start = match &last {
            Some(last) => std::ops::Bound::Excluded(last.as_bytes()),
            None => std::ops::Bound::Unbounded,
        };
        let mut all = Vec::new();
        let range = table.range::<&[u8]>((start, std::ops::Bound::Unbounded))?;
        for entry in range.take(self.entries_max.min(ENTRIES_MAX)) {
            let (key, row) = entry?;
            let digest = digest_of(key.value()).map_err(|fault| {
                damaged(fault, "a content behind", format_args!("{:?}", self.last))
            })?;
            let row = decode(row.value()).map_err(|fault| damaged(fault, "the content", digest))?;
            all.push(hosted_from(digest, row));
        }
        Ok(all)
    }
}

/// The tags of a repository that `wanted` picks. Cost: O(tags of the repository).
pub(super) fn tags_of(
    table: &impl ReadableTable<(&'static str, &'static str), &'static [u8]>,
    repository: &str,
    wanted: impl Fn(&TagRow) -> bool,
) -> Result<Vec<String>, Fault> {
    let mut tags = Vec::new();
    for entry in table.range((repository, "")..)? {
        let (key, row) = entry?;
        let (name, tag) = key.value();
        if name != repository {
            break;
        }
        let row = decode(row.value())
            .map_err(|fault| damaged(fault, "the tag", format_args!("{name}:{tag}")))?;
        if wanted(&row) {
            tags.push(tag.to_owned());
        }
    }
    Ok(tags)
}

pub(super) struct TagsQuery {
    pub(super) repository: RepositoryName,
    pub(super) last: Option<String>,
    pub(super) entries_max: usize,
}

impl Query for TagsQuery {
    type Answer = TagsPage;
    const KIND: &'static str = "tags";

    fn answer(&self, snapshot: &ReadTransaction) -> Result<TagsPage, Fault> {
        let repository = state_of(snapshot, &self.repository)?;
        let table = match repository {
            Repository::Unknown => {
                return Ok(TagsPage { repository, tags: Vec::new(), more: false });
            }
            Repository::Hosted => snapshot.open_table(TAGS)?,
            Repository::Mirrored { .. } => snapshot.open_table(MIRRORED_TAGS)?,
        };
        let start = match self.last.as_deref() {
            Some(last) => std::ops::Bound::Excluded((&*self.repository, last)),
            None => std::ops::Bound::Included((&*self.repository, "")),
        };
        let (mut tags, mut more) = (Vec::new(), false);
        for entry in table.range::<(&str, &str)>((start, std::ops::Bound::Unbounded))? {
            let (key, _) = entry?;
            let (name, tag) = key.value();
            if name != &*self.repository {
                break;
            }
            if tags.len() >= self.entries_max.min(ENTRIES_MAX) {
                more = true;
                break;
            }
            tags.push(tag.to_owned());
        }
        Ok(TagsPage { repository, tags, more })
    }
}

pub(super) struct RepositoriesQuery {
    pub(super) last: Option<String>,
    pub(super) entries_max: usize,
}

impl Query for RepositoriesQuery {
    type Answer = Vec<String>;
    const KIND: &'static str = "repositories";

    fn answer(&self, snapshot: &ReadTransaction) -> Result<Self::Answer, Fault> {
        let start = match self.last.as_deref() {
            Some(last) => std::ops::Bound::Excluded(last),
            None => std::ops::Bound::Unbounded,
        };
        let range = (start, std::ops::Bound::Unbounded);
        let entries_max = self.entries_max.min(ENTRIES_MAX);
        let mut names = Vec::new();
        for entry in snapshot.open_table(REPOSITORIES)?.range::<&str>(range)?.take(entries_max) {
            names.push(entry?.0.value().to_owned());
        }
        let mirrored = snapshot.open_table(MIRRORED_REPOSITORIES)?;
        for entry in mirrored.range::<&str>(range)?.take(entries_max) {
            names.push(entry?.0.value().to_owned());
        }
        // No name is in both.
        names.sort_unstable();
        names.truncate(entries_max);
        Ok(names)
    }
}

pub(super) struct ReferrersQuery {
    pub(super) repository: RepositoryName,
    pub(super) subject: Digest,
    pub(super) artifact_type: Option<String>,
    pub(super) last: Option<Digest>,
    pub(super) entries_max: usize,
}

impl Query for ReferrersQuery {
    type Answer = ReferrersPage;
    const KIND: &'static str = "referrers";

    fn answer(&self, snapshot: &ReadTransaction) -> Result<ReferrersPage, Fault> {
        let table = snapshot.open_table(REFERRERS)?;
        let (repository, subject) = (&*self.repository, DigestKey::from(&self.subject));
        let last = self.last.as_ref().map(DigestKey::from);
        let start = match &last {
            Some(last) => {
                std::ops::Bound::Excluded((repository, subject.as_bytes(), last.as_bytes()))
            }
            None => std::ops::Bound::Included((repository, subject.as_bytes(), &[][..])),
        };
        let (mut page, mut bytes, mut end) = (ReferrersPage::default(), 0, None);
        let range = table.range::<(&str, &[u8], &[u8])>((start, std::ops::Bound::Unbounded))?;
        for entry in range {
            let (key, row) = entry?;
            let (name, about, referrer) = key.value();
            if name != repository || about != subject.as_bytes() {
                return Ok(page);
            }
            let referrer = digest_of(referrer)
                .map_err(|fault| damaged(fault, "a referrer of", self.subject))?;
            let row: ReferrerRow =
                decode(row.value()).map_err(|fault| damaged(fault, "the referrer", referrer))?;
            if self.artifact_type.is_some() && self.artifact_type != row.artifact_type {
                continue;
            }
            bytes += row.descriptor.len();
            let full = page.descriptors.len() >= self.entries_max.min(ENTRIES_MAX)
                || (bytes > REFERRERS_BYTES_MAX && !page.descriptors.is_empty());
            if full {
                page.more_after = end;
                return Ok(page);
            }
            page.descriptors.push(row.descriptor);
            end = Some(referrer);
        }
        Ok(page)
    }
}

pub(super) struct OutboxStatusQuery;

impl Query for OutboxStatusQuery {
    type Answer = OutboxStatus;
    const KIND: &'static str = "outbox-status";

    fn answer(&self, snapshot: &ReadTransaction) -> Result<OutboxStatus, Fault> {
        let meta = snapshot.open_table(META)?;
        Ok(OutboxStatus {
            pending: snapshot.open_table(OUTBOX)?.len()?,
            dropped: meta.get(META_OUTBOX_DROPPED)?.map_or(0, |count| count.value()),
            given: meta.get(META_OUTBOX_NEXT)?.map_or(0, |next| next.value().saturating_sub(1)),
            epoch: meta.get(META_OUTBOX_EPOCH)?.map_or(0, |epoch| epoch.value()),
            opening: meta.get(META_OPENING)?.map_or(0, |opening| opening.value()),
        })
    }
}

pub(super) struct OutboxQuery {
    pub(super) from: u64,
    pub(super) entries_max: usize,
}

impl Query for OutboxQuery {
    type Answer = Vec<OutboxRecord>;
    const KIND: &'static str = "outbox-read";

    fn answer(&self, snapshot: &ReadTransaction) -> Result<Self::Answer, Fault> {
        let mut records = Vec::new();
        let table = snapshot.open_table(OUTBOX)?;
        for entry in table.range(self.from..)?.take(self.entries_max.min(ENTRIES_MAX)) {
            let (sequence, archive) = entry?;
            let record =
                OutboxRecord { sequence: sequence.value(), archive: archive.value().to_vec() };
            records.push(record);
        }
        Ok(records)
    }
}
