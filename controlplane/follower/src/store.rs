//! The replica on disk, item by item, with its position in the same transaction: after a crash it is as it was at
//! some version, whole.

use std::path::Path;

use outrider_push::{Item, Replica, ToEdge};
use outrider_state::RecordError;
use redb::{Builder, Database, ReadableDatabase, ReadableTable, TableDefinition};

/// Version of the tables and keys. Items are records, which have a version of their own.
const FORMAT: u64 = 1;
/// Memory for the database's pages.
const PAGE_CACHE_BYTES: usize = 8 << 20;

/// `format`, `position`, `invalidated`; `cluster`, `interest` as bytes.
const NUMBERS: TableDefinition<'_, &str, u64> = TableDefinition::new("numbers");
const BYTES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("bytes");
/// What an item is about: a part of a snapshot with that item alone.
const ITEMS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("items");

/// Why the replica cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database or the disk.
    #[error(transparent)]
    Database(#[from] redb::Error),
    /// An item.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Written by another version, or something else than a replica.
    #[error("it is not a replica that this software reads")]
    Format,
}

/// What is to be written, in one transaction.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// Everything that was there before goes.
    pub whole: bool,
    /// The cluster.
    pub cluster: [u8; 16],
    /// The position after it.
    pub position: u64,
    /// See [`Replica::invalidated`].
    pub invalidated: u64,
    /// What changed, in order.
    pub items: Vec<Item>,
}

/// The database.
#[derive(Debug)]
pub struct Store {
    database: Database,
}

impl Store {
    /// Opens the file, or makes it; gives the replica in it. One that was made for another interest is of no
    /// use, but for what is known of invalidated digests: what was not of interest then is not in it. `interest` is
    /// compared byte by byte.
    ///
    /// # Errors
    /// [`StoreError`]
    pub fn open(path: &Path, interest: &[u8]) -> Result<(Self, Replica), StoreError> {
        let mut builder = Builder::new();
        builder.set_cache_size(PAGE_CACHE_BYTES);
        let store = Self { database: builder.create(path).map_err(redb::Error::from)? };
        let (replica, same) = store.read(interest)?.unwrap_or_default();
        if !same {
            store.begin(interest, &replica)?;
        }
        Ok((store, replica))
    }

    /// What is in it, and whether it was made for this interest.
    fn read(&self, interest: &[u8]) -> Result<Option<(Replica, bool)>, StoreError> {
        let read = self.database.begin_read().map_err(redb::Error::from)?;
        let numbers = match read.open_table(NUMBERS) {
            Ok(numbers) => numbers,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
            Err(error) => return Err(redb::Error::from(error).into()),
        };
        let number = |key| -> Result<Option<u64>, redb::Error> {
            Ok(numbers.get(key)?.map(|value| value.value()))
        };
        if number("format")? != Some(FORMAT) {
            return Err(StoreError::Format);
        }
        let bytes = read.open_table(BYTES).map_err(redb::Error::from)?;
        let same = bytes.get("interest").map_err(redb::Error::from)?;
        let same = same.is_some_and(|stored| stored.value() == interest);
        let cluster = bytes.get("cluster").map_err(redb::Error::from)?;
        let cluster = cluster.map_or(Ok([0; 16]), |value| value.value().try_into());
        let cluster = cluster.map_err(|_| StoreError::Format)?;
        let position = number("position")?.unwrap_or(0);
        let invalidated = number("invalidated")?.unwrap_or(position);
        if !same {
            return Ok(Some((Replica { cluster, invalidated, ..Replica::default() }, false)));
        }
        let table = read.open_table(ITEMS).map_err(redb::Error::from)?;
        let mut items = Vec::new();
        for row in table.iter().map_err(redb::Error::from)? {
            let (_, record) = row.map_err(redb::Error::from)?;
            match ToEdge::from_record(record.value())? {
                ToEdge::SnapshotPart { items: part } => items.extend(part),
                _ => return Err(StoreError::Format),
            }
        }
        let replica = Replica::of(cluster, position, items);
        Ok(Some((Replica { invalidated, ..replica }, true)))
    }

    fn begin(&self, interest: &[u8], replica: &Replica) -> Result<(), StoreError> {
        let Replica { cluster, position, invalidated, .. } = *replica;
        self.write(&Batch { whole: true, cluster, position, invalidated, items: Vec::new() })?;
        let begin = || -> Result<(), redb::Error> {
            let write = self.database.begin_write()?;
            write.open_table(NUMBERS)?.insert("format", FORMAT)?;
            write.open_table(BYTES)?.insert("interest", interest)?;
            write.commit()?;
            Ok(())
        };
        Ok(begin()?)
    }

    /// Writes, and returns when it is on the disk.
    ///
    /// # Errors
    /// [`StoreError`]: nothing of it was written, so that nothing that follows on it may be.
    pub fn write(&self, batch: &Batch) -> Result<(), StoreError> {
        let mut rows = Vec::with_capacity(batch.items.len());
        for item in &batch.items {
            let Some((key, stays)) = key_of(item) else { continue };
            let record = match stays {
                true => Some(ToEdge::SnapshotPart { items: vec![item.clone()] }.to_record()?),
                false => None,
            };
            rows.push((key, record));
        }
        let write = || -> Result<(), redb::Error> {
            let write = self.database.begin_write()?;
            if batch.whole {
                write.delete_table(ITEMS)?;
            }
            {
                let mut items = write.open_table(ITEMS)?;
                for (key, record) in &rows {
                    match record {
                        Some(record) => drop(items.insert(key.as_slice(), record.as_slice())?),
                        None => drop(items.remove(key.as_slice())?),
                    }
                }
                write.open_table(NUMBERS)?.insert("position", batch.position)?;
                write.open_table(NUMBERS)?.insert("invalidated", batch.invalidated)?;
                write.open_table(BYTES)?.insert("cluster", batch.cluster.as_slice())?;
            }
            write.commit()?;
            Ok(())
        };
        Ok(write()?)
    }
}

/// What an item is about, and whether it says that there is something; nothing for one that is not kept.
fn key_of(item: &Item) -> Option<(Vec<u8>, bool)> {
    let key = |kind: u8, parts: &[&str]| {
        let mut key = vec![kind];
        key.extend_from_slice(parts.join("\0").as_bytes());
        key
    };
    Some(match item {
        Item::Fragment { key: name, value, .. } => (key(b'f', &[name]), value.is_some()),
        Item::Tag { repository, tag, record, .. } => {
            (key(b't', &[repository, tag]), record.is_some())
        }
        Item::Customer { name, customer } => (key(b'c', &[name]), customer.is_some()),
        Item::Weights(_) => (key(b'w', &[]), true),
        Item::Placement { prefix, placement } => (key(b'p', &[prefix]), placement.is_some()),
        Item::Member { number, .. } => ([&b"m"[..], &number.to_be_bytes()].concat(), true),
        Item::Invalidated { .. } => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fragment(key: &str, version: u64, value: Option<&[u8]>) -> Item {
        Item::Fragment { key: key.to_owned(), version, value: value.map(<[u8]>::to_vec) }
    }

    #[test]
    fn what_was_written_is_there_again_with_its_position() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("replica.redb");
        let (store, replica) = Store::open(&path, b"a").unwrap();
        assert_eq!(replica, Replica::default());
        let cluster = [7; 16];
        let items = vec![fragment("a", 1, Some(b"1")), fragment("b", 2, Some(b"2"))];
        store.write(&Batch { whole: true, cluster, position: 2, invalidated: 2, items }).unwrap();
        let items = vec![fragment("a", 3, None), fragment("c", 4, Some(b"3"))];
        store.write(&Batch { whole: false, cluster, position: 5, invalidated: 5, items }).unwrap();
        drop(store);
        let (store, replica) = Store::open(&path, b"a").unwrap();
        let wanted = [fragment("b", 2, Some(b"2")), fragment("c", 4, Some(b"3"))];
        assert_eq!(replica, Replica::of(cluster, 5, wanted));
        let nothing =
            Batch { whole: true, cluster, position: 9, invalidated: 9, items: Vec::new() };
        store.write(&nothing).unwrap();
        drop(store);
        let (store, replica) = Store::open(&path, b"a").unwrap();
        assert_eq!(replica, Replica::of(cluster, 9, []));
        drop(store);

        // Of another interest nothing is kept but which digests were forgotten, not even the position.
        let wanted = Replica { cluster, invalidated: 9, ..Replica::default() };
        let (store, replica) = Store::open(&path, b"b").unwrap();
        assert_eq!(replica, wanted);
        drop(store);
        assert_eq!(Store::open(&path, b"b").unwrap().1, wanted);
    }

    #[test]
    fn every_item_of_a_replica_is_stored_and_read_back() {
        let mut state = outrider_state::State::new();
        let mut workload = outrider_state::workload::Workload::new(7);
        let mut updates = Vec::new();
        for _ in 0..200 {
            let batch = workload.batch();
            state.apply(batch, &mut updates);
        }
        let all = state.versioned_changes().map(|(version, change)| Item::of(&change, version));
        let replica = Replica::of([1; 16], state.version(), all);
        assert!(!replica.tags.is_empty() && !replica.fragments.is_empty());
        assert!(!replica.placements.is_empty());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("replica.redb");
        let (store, _) = Store::open(&path, b"").unwrap();
        let items = replica.items().collect();
        let (cluster, position) = (replica.cluster, replica.position);
        let invalidated = position;
        store.write(&Batch { whole: true, cluster, position, invalidated, items }).unwrap();
        drop(store);
        assert_eq!(Store::open(&path, b"").unwrap().1, replica);
    }
}
