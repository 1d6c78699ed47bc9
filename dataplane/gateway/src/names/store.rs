//! The database file: its tables, its transactions, and what is checked when it is opened.

use std::collections::HashMap;
use std::path::Path;

use redb::{
    Database, DatabaseError, ReadTransaction, ReadableDatabase, ReadableTable,
    ReadableTableMetadata, Table, TableDefinition, WriteTransaction,
};

use super::record::{
    ContentRow, ManifestRow, MirroredRepositoryRow, MirroredTagRow, ReferrerRow, TagRow, decode,
    digest_of, encode,
};
use super::stored::StoredChanges;
use super::{NamesError, NamesLimits};
use crate::gateway::unix_ms;

/// Version of the tables and keys. Records have versions of their own.
const FORMAT_VERSION: u64 = 1;

/// The file in the data directory.
pub(super) const FILE_NAME: &str = "meta.redb";

type Key = &'static [u8];

/// `format`, `opening`, `outbox-epoch`, `outbox-next`, `outbox-dropped`.
pub(super) const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// The repositories that something was pushed to.
pub(super) const REPOSITORIES: TableDefinition<'_, &str, ()> = TableDefinition::new("repositories");
/// Repository and tag: [`TagRow`].
pub(super) const TAGS: TableDefinition<'_, (&str, &str), Key> = TableDefinition::new("tags");
/// Repository and digest: the blobs that it holds.
pub(super) const BLOBS: TableDefinition<'_, (&str, Key), ()> = TableDefinition::new("blobs");
/// Repository and digest: [`ManifestRow`].
pub(super) const MANIFESTS: TableDefinition<'_, (&str, Key), Key> =
    TableDefinition::new("manifests");
/// Repository, subject and referrer: [`ReferrerRow`].
pub(super) const REFERRERS: TableDefinition<'_, (&str, Key, Key), Key> =
    TableDefinition::new("referrers");
/// Digest: [`ContentRow`].
pub(super) const CONTENT: TableDefinition<'_, Key, Key> = TableDefinition::new("content");
/// Repository: [`MirroredRepositoryRow`].
pub(super) const MIRRORED_REPOSITORIES: TableDefinition<'_, &str, Key> =
    TableDefinition::new("mirrored-repositories");
/// Repository and tag: [`MirroredTagRow`].
pub(super) const MIRRORED_TAGS: TableDefinition<'_, (&str, &str), Key> =
    TableDefinition::new("mirrored-tags");
/// Digest: the bytes that are charged for it, and to whom. What was pushed before this was kept is nobody's.
pub(super) const CHARGED: TableDefinition<'_, Key, (u64, &str)> = TableDefinition::new("charged");
/// When it was checked, repository and tag: the order in which mirrored tags are forgotten.
pub(super) const MIRRORED_AGE: TableDefinition<'_, (u64, &str, &str), ()> =
    TableDefinition::new("mirrored-age");
/// Sequence number: the archive of an event.
pub(super) const OUTBOX: TableDefinition<'_, u64, Key> = TableDefinition::new("outbox");

const META_FORMAT: &str = "format";
pub(super) const META_OPENING: &str = "opening";
pub(super) const META_OUTBOX_EPOCH: &str = "outbox-epoch";
pub(super) const META_OUTBOX_NEXT: &str = "outbox-next";
pub(super) const META_OUTBOX_DROPPED: &str = "outbox-dropped";

/// What stops a transaction. Errors of redb become this, so that `?` does the right thing.
#[derive(Debug)]
pub(super) enum Fault {
    /// The disk, or the database on it. The transaction is lost, and the database must be opened
    /// again.
    Disk(String),
    /// One request cannot be done. It changed nothing, and others in the transaction are not
    /// affected.
    Refused(NamesError),
}

impl From<NamesError> for Fault {
    fn from(error: NamesError) -> Self {
        Self::Refused(error)
    }
}

impl Fault {
    pub(super) fn into_error(self) -> NamesError {
        match self {
            Self::Disk(reason) => NamesError::Storage(reason),
            Self::Refused(error) => error,
        }
    }
}

macro_rules! fault_from {
    ($($error:ty),+) => {
        $(impl From<$error> for Fault {
            fn from(error: $error) -> Self {
                Self::Disk(error.to_string())
            }
        })+
    };
}
fault_from!(redb::StorageError, redb::TableError, redb::TransactionError, redb::CommitError);

/// All tables, open for writing.
pub(super) struct Tables<'t> {
    pub(super) meta: Table<'t, &'static str, u64>,
    pub(super) repositories: Table<'t, &'static str, ()>,
    pub(super) tags: Table<'t, (&'static str, &'static str), Key>,
    pub(super) blobs: Table<'t, (&'static str, Key), ()>,
    pub(super) manifests: Table<'t, (&'static str, Key), Key>,
    pub(super) referrers: Table<'t, (&'static str, Key, Key), Key>,
    pub(super) content: Table<'t, Key, Key>,
    pub(super) charged: Table<'t, Key, (u64, &'static str)>,
    pub(super) mirrored_repositories: Table<'t, &'static str, Key>,
    pub(super) mirrored_tags: Table<'t, (&'static str, &'static str), Key>,
    pub(super) mirrored_age: Table<'t, (u64, &'static str, &'static str), ()>,
    pub(super) outbox: Table<'t, u64, Key>,
    pub(super) limits: NamesLimits,
    pub(super) changes: Changes,
}

/// What a transaction did, for those who remember older answers and for the metrics.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// The repositories of which something may be answered differently now. May repeat.
    pub(super) repositories: Vec<String>,
    pub(super) mirrored_forgotten: u64,
    pub(super) events_dropped: u64,
    pub(super) events_left_out: u64,
    /// Who has more or less stored.
    pub(super) stored: StoredChanges,
}

impl<'t> Tables<'t> {
    pub(super) fn open(
        transaction: &'t WriteTransaction,
        limits: &NamesLimits,
    ) -> Result<Self, Fault> {
        Ok(Self {
            meta: transaction.open_table(META)?,
            repositories: transaction.open_table(REPOSITORIES)?,
            tags: transaction.open_table(TAGS)?,
            blobs: transaction.open_table(BLOBS)?,
            manifests: transaction.open_table(MANIFESTS)?,
            referrers: transaction.open_table(REFERRERS)?,
            content: transaction.open_table(CONTENT)?,
            charged: transaction.open_table(CHARGED)?,
            mirrored_repositories: transaction.open_table(MIRRORED_REPOSITORIES)?,
            mirrored_tags: transaction.open_table(MIRRORED_TAGS)?,
            mirrored_age: transaction.open_table(MIRRORED_AGE)?,
            outbox: transaction.open_table(OUTBOX)?,
            limits: limits.clone(),
            changes: Changes::default(),
        })
    }
}

/// How large the tables are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sizes {
    pub(super) repositories: u64,
    pub(super) tags: u64,
    pub(super) contents: u64,
    pub(super) mirrored_tags: u64,
    pub(super) outbox: u64,
}

impl Sizes {
    /// Cost: O(1).
    pub(super) fn of(snapshot: &ReadTransaction) -> Result<Self, Fault> {
        Ok(Self {
            repositories: snapshot.open_table(REPOSITORIES)?.len()?,
            tags: snapshot.open_table(TAGS)?.len()?,
            contents: snapshot.open_table(CONTENT)?.len()?,
            mirrored_tags: snapshot.open_table(MIRRORED_TAGS)?.len()?,
            outbox: snapshot.open_table(OUTBOX)?.len()?,
        })
    }
}

/// How the database is opened, again after a failure of the disk too.
pub(super) type Opener = Box<dyn Fn() -> Result<Database, DatabaseError> + Send>;

/// Opens the file in `directory`.
pub(super) fn opener(directory: &Path, page_cache_bytes: usize) -> Opener {
    let path = directory.join(FILE_NAME);
    Box::new(move || {
        let is_new = !path.exists();
        let database = Database::builder().set_cache_size(page_cache_bytes).create(&path)?;
        if is_new && let Some(directory) = path.parent() {
            // A file is there after a power cut only if its directory says so.
            std::fs::File::open(directory)?.sync_all()?;
        }
        Ok(database)
    })
}

/// The error of an opening that failed.
pub(super) fn open_error(path: &Path, error: &DatabaseError) -> NamesError {
    match error {
        DatabaseError::DatabaseAlreadyOpen => NamesError::InUse(path.to_owned()),
        error => NamesError::Open { path: path.to_owned(), reason: error.to_string() },
    }
}

/// Makes the tables of a new file; of an old one validates every record, so that nothing is found
/// out later. What was pushed must be right; what is remembered of upstreams is forgotten where it
/// is not. Cost: a pass over the file, about a second per million records.
pub(super) fn prepare(database: &Database, limits: &NamesLimits) -> Result<Sizes, Fault> {
    let transaction = database.begin_write()?;
    {
        let mut tables = Tables::open(&transaction, limits)?;
        check_format(&mut tables)?;
        check_pushed(&tables)?;
        if !mirrored_is_right(&tables)? {
            rebuild_mirrored(&mut tables)?;
        }
        tables.forget_oldest_mirrored()?;
        tables.drop_oldest_events()?;
        count_opening(&mut tables, unix_ms())?;
    }
    transaction.commit()?;
    let snapshot = database.begin_read()?;
    limits.stored.load(&charged(&snapshot)?);
    Sizes::of(&snapshot)
}

/// What each customer has stored. Cost: a pass over what is charged.
pub(super) fn charged(snapshot: &ReadTransaction) -> Result<HashMap<Box<str>, u64>, Fault> {
    let mut totals: HashMap<Box<str>, u64> = HashMap::new();
    for entry in snapshot.open_table(CHARGED)?.iter()? {
        let (_, charge) = entry?;
        let (bytes, customer) = charge.value();
        match totals.get_mut(customer) {
            Some(total) => *total = total.saturating_add(bytes),
            None => drop(totals.insert(customer.into(), bytes)),
        }
    }
    Ok(totals)
}

/// Openings and epochs are numbered by the clock, so that those of a file that was made anew are higher; one that
/// jumps back does no harm to a file that is there.
fn count_opening(tables: &mut Tables<'_>, now_unix_ms: u64) -> Result<(), Fault> {
    let last = tables.meta.get(META_OPENING)?.map_or(0, |opening| opening.value());
    tables.meta.insert(META_OPENING, now_unix_ms.max(last + 1))?;
    if tables.meta.get(META_OUTBOX_EPOCH)?.is_none() {
        tables.meta.insert(META_OUTBOX_EPOCH, now_unix_ms.max(1))?;
    }
    Ok(())
}

fn check_format(tables: &mut Tables<'_>) -> Result<(), Fault> {
    let found = tables.meta.get(META_FORMAT)?.map(|format| format.value());
    match found {
        Some(FORMAT_VERSION) => Ok(()),
        None => {
            tables.meta.insert(META_FORMAT, FORMAT_VERSION)?;
            Ok(())
        }
        Some(found) => Err(Fault::Refused(NamesError::Version {
            what: "the layout of the tables".into(),
            found: u16::try_from(found).unwrap_or(u16::MAX),
            known: FORMAT_VERSION as u16,
        })),
    }
}

fn check_pushed(tables: &Tables<'_>) -> Result<(), Fault> {
    for entry in tables.tags.iter()? {
        let (key, row) = entry?;
        let (repository, tag) = key.value();
        decode::<TagRow>(row.value())
            .and_then(|row| digest_of(&row.digest))
            .map_err(|fault| fault.of("the tag", format_args!("{repository}:{tag}")))?;
    }
    for entry in tables.manifests.iter()? {
        let (key, row) = entry?;
        let (repository, digest) = key.value();
        digest_of(digest)
            .and_then(|_| decode::<ManifestRow>(row.value()))
            .map_err(|fault| fault.of("a manifest of", repository))?;
    }
    for entry in tables.referrers.iter()? {
        let (key, row) = entry?;
        let (repository, subject, referrer) = key.value();
        digest_of(subject)
            .and_then(|_| digest_of(referrer))
            .and_then(|_| decode::<ReferrerRow>(row.value()))
            .map_err(|fault| fault.of("a referrer in", repository))?;
    }
    for entry in tables.content.iter()? {
        let (key, row) = entry?;
        digest_of(key.value())
            .and_then(|_| decode::<ContentRow>(row.value()))
            .map_err(|fault| fault.of("the content with the key", hex(key.value())))?;
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether all records of mirrored tags can be read and agree with each other.
fn mirrored_is_right(tables: &Tables<'_>) -> Result<bool, Fault> {
    let mut tags = 0;
    for entry in tables.mirrored_repositories.iter()? {
        let (_, row) = entry?;
        let Ok(row) = decode::<MirroredRepositoryRow>(row.value()) else { return Ok(false) };
        tags += row.tags;
    }
    for entry in tables.mirrored_tags.iter()? {
        let (key, row) = entry?;
        let (repository, tag) = key.value();
        let Ok(row) = decode::<MirroredTagRow>(row.value()) else { return Ok(false) };
        let has_age = tables.mirrored_age.get((row.checked_unix_ms, repository, tag))?.is_some();
        if digest_of(&row.digest).is_err() || !has_age {
            return Ok(false);
        }
    }
    Ok(tags == tables.mirrored_tags.len()? && tags == tables.mirrored_age.len()?)
}

/// Keeps what can be read, and makes the other two tables from it.
fn rebuild_mirrored(tables: &mut Tables<'_>) -> Result<(), Fault> {
    tables.mirrored_tags.retain(|_, row| {
        decode::<MirroredTagRow>(row).is_ok_and(|row| digest_of(&row.digest).is_ok())
    })?;
    tables.mirrored_age.retain(|_, ()| false)?;
    tables.mirrored_repositories.retain(|_, _| false)?;
    let Tables { mirrored_tags, mirrored_age, mirrored_repositories, .. } = tables;
    let mut current: Option<(String, MirroredRepositoryRow)> = None;
    for entry in mirrored_tags.iter()? {
        let (key, row) = entry?;
        let (repository, tag) = key.value();
        let Ok(row) = decode::<MirroredTagRow>(row.value()) else { continue };
        mirrored_age.insert((row.checked_unix_ms, repository, tag), ())?;
        match &mut current {
            Some((name, counted)) if name == repository => counted.tags += 1,
            _ => {
                if let Some((name, counted)) = current.take() {
                    mirrored_repositories.insert(&*name, &*encode(&counted))?;
                }
                let counted = MirroredRepositoryRow { upstream: row.upstream, tags: 1 };
                current = Some((repository.to_owned(), counted));
            }
        }
    }
    if let Some((name, counted)) = current {
        mirrored_repositories.insert(&*name, &*encode(&counted))?;
    }
    Ok(())
}
