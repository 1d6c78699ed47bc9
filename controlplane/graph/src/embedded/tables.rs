//! The tables of the embedded store. Keys are serials; who is asked for by name is found through a table of
//! names, and everything else is a range of serials, so that rows come in their order.

use redb::{
    ReadTransaction, ReadableDatabase as _, ReadableTable as _, ReadableTableMetadata as _,
    TableDefinition,
};

#[cfg(doc)]
use crate::plan::DEPENDANTS_OF_CUSTOMER_MAX;
use crate::store::GraphError;

/// Version of the tables' layout. Files of the two before it are brought up to date when they are opened.
pub(super) const FORMAT: u64 = 3;
pub(super) const META_FORMAT: &str = "format";
pub(super) const META_LAST: &str = "last-serial";
pub(super) const META_CONTAINS: &str = "contains";
pub(super) const META_EARLY: &str = "last-early";

/// `format`, `last-serial`, `last-early`, `contains`, and the number of nodes of each kind by its name.
pub(super) const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// Source: last position.
pub(super) const POSITIONS: TableDefinition<'_, &str, u64> = TableDefinition::new("positions");

/// Source, edge and lane: epoch and number.
pub(super) const MARKS: TableDefinition<'_, (&str, u64, u8), (u64, u64)> =
    TableDefinition::new("marks");

/// Image by name.
pub(super) const IMAGE_NAMES: TableDefinition<'_, &str, u64> = TableDefinition::new("image-names");
/// Customer by name.
pub(super) const CUSTOMER_NAMES: TableDefinition<'_, &str, u64> =
    TableDefinition::new("customer-names");
/// Content by digest (algorithm and value).
pub(super) const CONTENT_NAMES: TableDefinition<'_, &[u8], u64> =
    TableDefinition::new("content-names");
/// Version by image and digest.
pub(super) const VERSION_NAMES: TableDefinition<'_, (u64, &[u8]), u64> =
    TableDefinition::new("version-names");

/// Name, first seen, versions, depth.
pub(super) const IMAGES: TableDefinition<'_, u64, (&str, u64, u64, u64)> =
    TableDefinition::new("images");
/// Name, first seen.
pub(super) const CUSTOMERS: TableDefinition<'_, u64, (&str, u64)> =
    TableDefinition::new("customers");
/// Kind, digest, length.
pub(super) const CONTENTS: TableDefinition<'_, u64, (u8, &[u8], u64)> =
    TableDefinition::new("contents");
/// First seen, versions, below, above, dependants: what changes often, apart from what does not.
pub(super) const CONTENT_STATES: TableDefinition<'_, u64, (u64, u64, u64, u64, u64)> =
    TableDefinition::new("content-counts");
/// Image, digest.
pub(super) const VERSIONS: TableDefinition<'_, u64, (u64, &[u8])> =
    TableDefinition::new("versions");
/// Kind, known, length, first seen, the tag that it is called by (or empty) and since when.
pub(super) const VERSION_STATES: TableDefinition<'_, u64, (u8, bool, u64, u64, &str, u64)> =
    TableDefinition::new("version-states");
/// Version and number of the tag: tag, given when.
pub(super) const VERSION_TAGS: TableDefinition<'_, (u64, u64), (&str, u64)> =
    TableDefinition::new("version-tags");
/// Accesses, the last one.
pub(super) const ACCESSES: TableDefinition<'_, u64, (u64, u64)> = TableDefinition::new("accesses");
/// Digest and repository, or nothing, of what was asked for and is not there: accesses, the last one, number.
pub(super) const EARLY: TableDefinition<'_, (&[u8], &str), (u64, u64, u64)> =
    TableDefinition::new("early");
/// Number: digest and repository.
pub(super) const EARLY_ORDER: TableDefinition<'_, u64, (&[u8], &str)> =
    TableDefinition::new("early-order");

/// Version: what it contains, four bytes each.
pub(super) const CONTAINS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("contains");
/// Version of an index, and the index.
pub(super) const PARENTS: TableDefinition<'_, (u64, u64), ()> = TableDefinition::new("parents");
/// Content and version.
pub(super) const USES: TableDefinition<'_, (u64, u64), ()> = TableDefinition::new("uses");
/// Content and image: in how many of its versions.
pub(super) const SHARED_BY: TableDefinition<'_, (u64, u64), u64> =
    TableDefinition::new("shared-by");
/// Image and content.
pub(super) const IMAGE_CONTENTS: TableDefinition<'_, (u64, u64), ()> =
    TableDefinition::new("image-contents");
/// Version and customer.
pub(super) const OWNERS: TableDefinition<'_, (u64, u64), ()> = TableDefinition::new("owners");
/// Content and customer: how many of the versions that the customer has have it, counted up to
/// [`DEPENDANTS_OF_CUSTOMER_MAX`]; none where the customer has the content alone.
pub(super) const CONTENT_SHARES: TableDefinition<'_, (u64, u64), u64> =
    TableDefinition::new("content-shares");
/// Customer and content.
pub(super) const OWNED: TableDefinition<'_, (u64, u64), ()> = TableDefinition::new("owned");
/// Image, tag, given when, version.
pub(super) const TAGS: TableDefinition<'_, (u64, &str, u64, u64), ()> =
    TableDefinition::new("tags");
/// Image, called so since when, version.
pub(super) const HISTORY: TableDefinition<'_, (u64, u64, u64), ()> =
    TableDefinition::new("history");

/// What stops a transaction.
#[derive(Debug)]
pub(super) enum Fault {
    /// The disk, or the database on it: it must be opened again.
    Disk(String),
    /// The request.
    Refused(GraphError),
}

impl From<GraphError> for Fault {
    fn from(error: GraphError) -> Self {
        Self::Refused(error)
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
fault_from!(
    redb::StorageError,
    redb::TableError,
    redb::TransactionError,
    redb::CommitError,
    redb::DatabaseError
);

pub(super) fn damaged(what: &str, serial: u64) -> Fault {
    Fault::Refused(GraphError::Damaged(format!("{what} {serial} cannot be read")))
}

/// Makes all tables in a new file, and checks the version of an old one.
pub(super) fn prepare(database: &redb::Database) -> Result<(), Fault> {
    let found = {
        let snapshot = database.begin_read()?;
        match snapshot.open_table(META) {
            Ok(meta) => meta.get(META_FORMAT)?.map(|format| format.value()),
            Err(redb::TableError::TableDoesNotExist(_)) => None,
            Err(error) => return Err(error.into()),
        }
    };
    match found {
        Some(FORMAT) => return Ok(()),
        Some(1..FORMAT) => return super::upgrade::upgrade(database),
        Some(other) => {
            let why = format!("its layout has version {other}, this software reads {FORMAT}");
            return Err(GraphError::Damaged(why).into());
        }
        None => {}
    }
    let transaction = database.begin_write()?;
    transaction.open_table(META)?.insert(META_FORMAT, FORMAT)?;
    transaction.open_table(POSITIONS)?;
    transaction.open_table(MARKS)?;
    transaction.open_table(CONTENT_SHARES)?;
    transaction.open_table(EARLY)?;
    transaction.open_table(EARLY_ORDER)?;
    transaction.open_table(IMAGE_NAMES)?;
    transaction.open_table(CUSTOMER_NAMES)?;
    transaction.open_table(CONTENT_NAMES)?;
    transaction.open_table(VERSION_NAMES)?;
    transaction.open_table(IMAGES)?;
    transaction.open_table(CUSTOMERS)?;
    transaction.open_table(CONTENTS)?;
    transaction.open_table(CONTENT_STATES)?;
    transaction.open_table(VERSIONS)?;
    transaction.open_table(VERSION_STATES)?;
    transaction.open_table(VERSION_TAGS)?;
    transaction.open_table(ACCESSES)?;
    transaction.open_table(CONTAINS)?;
    transaction.open_table(PARENTS)?;
    transaction.open_table(USES)?;
    transaction.open_table(SHARED_BY)?;
    transaction.open_table(IMAGE_CONTENTS)?;
    transaction.open_table(OWNERS)?;
    transaction.open_table(OWNED)?;
    transaction.open_table(TAGS)?;
    transaction.open_table(HISTORY)?;
    transaction.commit()?;
    Ok(())
}

/// A digest as a key: its algorithm and its value.
pub(super) fn digest_key(digest: &outrider_artifact::Digest) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + digest.value().len());
    key.push(match digest.algorithm() {
        outrider_artifact::digest::Algorithm::Sha256 => 1,
        outrider_artifact::digest::Algorithm::Sha512 => 2,
    });
    key.extend_from_slice(digest.value());
    key
}

/// The digest of a key.
pub(super) fn digest_of(key: &[u8]) -> Option<outrider_artifact::Digest> {
    use outrider_artifact::digest::Algorithm;
    let (algorithm, value) = key.split_first()?;
    let algorithm = match algorithm {
        1 => Algorithm::Sha256,
        2 => Algorithm::Sha512,
        _ => return None,
    };
    outrider_artifact::Digest::from_value(algorithm, value).ok()
}

/// Serials, four bytes each. They fit: [`NODES_MAX`](crate::plan::NODES_MAX).
pub(super) fn pack(serials: &[u64]) -> Vec<u8> {
    serials.iter().flat_map(|serial| (*serial as u32).to_le_bytes()).collect()
}

/// The serials of [`pack`].
pub(super) fn unpack(bytes: &[u8]) -> impl Iterator<Item = u64> + '_ {
    let (chunks, _) = bytes.as_chunks::<4>();
    chunks.iter().map(|chunk| u64::from(u32::from_le_bytes(*chunk)))
}

/// What is stored about the graph as a whole.
pub(super) fn stats(snapshot: &ReadTransaction) -> Result<crate::Stats, Fault> {
    let mut stats = crate::Stats::default();
    let meta = snapshot.open_table(META)?;
    for kind in crate::Kind::ALL {
        let count = meta.get(kind.as_str())?.map_or(0, |count| count.value());
        stats.nodes.insert(kind.as_str().to_owned(), count);
    }
    stats.contains = meta.get(META_CONTAINS)?.map_or(0, |count| count.value());
    stats.early = snapshot.open_table(EARLY)?.len()?;
    for entry in snapshot.open_table(POSITIONS)?.iter()? {
        let (source, last) = entry?;
        stats.positions.insert(source.value().to_owned(), last.value());
    }
    Ok(stats)
}

/// How far a source is.
pub(super) fn progress(snapshot: &ReadTransaction, source: &str) -> Result<crate::Progress, Fault> {
    let last = snapshot.open_table(POSITIONS)?.get(source)?.map(|last| last.value());
    let mut progress = crate::Progress { last, marks: Vec::new() };
    let marks = snapshot.open_table(MARKS)?;
    for entry in marks.range((source, 0, 0)..=(source, u64::MAX, u8::MAX))? {
        let (key, mark) = entry?;
        let ((_, edge, lane), (epoch, through)) = (key.value(), mark.value());
        progress.marks.push(crate::Mark { edge, lane, epoch, through });
    }
    Ok(progress)
}

/// How many versions depend on each of these.
pub(super) fn dependants(
    snapshot: &ReadTransaction,
    contents: &[outrider_artifact::Digest],
) -> Result<Vec<u64>, Fault> {
    let names = snapshot.open_table(CONTENT_NAMES)?;
    let states = snapshot.open_table(CONTENT_STATES)?;
    let count = |digest: &outrider_artifact::Digest| {
        let Some(serial) = names.get(&*digest_key(digest))? else { return Ok(0) };
        Ok(states.get(serial.value())?.map_or(0, |state| state.value().4))
    };
    contents.iter().map(count).collect()
}
