//! A log in a database file of the node: entries by number, and up to which event each edge's are in it, written in
//! one transaction. The oldest entries are taken away when there are too many bytes, or when they are too old.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use redb::{
    Database, ReadableDatabase, ReadableTable, TableDefinition, TableError, WriteTransaction,
};

use super::{ENTRIES_MAX, Extent, PAGE_BYTES_MAX, Page, Pending, Position, Queue, QueueError};
use crate::consumer::Marks;
use crate::event::{Entry, Lane, Mark};

/// Number: when it was appended, in milliseconds of the log's own time, and the record. That time goes on evenly while the
/// log is open, from the last entry on: a clock that is set, or a node that was away, makes nothing older.
const ENTRIES: TableDefinition<'_, u64, (u64, &[u8])> = TableDefinition::new("entries");
/// Edge and lane: epoch and number.
const MARKS: TableDefinition<'_, (u64, u8), (u64, u64)> = TableDefinition::new("marks");
/// `format`, `next`, `bytes`, `copied`.
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const IDENTITY: TableDefinition<'_, (), [u8; 16]> = TableDefinition::new("identity");
const FORMAT: u64 = 1;
const CACHE_BYTES: usize = 16 << 20;
/// Entries that one append takes away, so that it does not take long after the retention was lowered.
const TRIM_MAX: usize = 4 * ENTRIES_MAX;

/// How long entries are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Bytes of records.
    pub bytes_max: u64,
    /// Since it was appended.
    pub age_max: Duration,
}

/// The log. Clones are the same.
#[derive(Clone, Debug)]
pub struct Embedded(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    retention: Retention,
    identity: [u8; 16],
    marks: Marks,
    copied: u64,
    /// The log's time when it was opened.
    opened: (u64, Instant),
    /// None after the disk failed, until it is opened again.
    database: Mutex<Option<Arc<Database>>>,
    bytes: AtomicU64,
}

impl Embedded {
    /// Opens or makes the file. Blocks.
    ///
    /// # Errors
    /// When it cannot be opened, or is not of this version.
    pub fn open(path: &Path, retention: Retention) -> Result<Self, QueueError> {
        let database = open(path).map_err(|error| failed(path, error))?;
        let Prepared { identity, marks, bytes, copied, last_ms } =
            prepare(&database).map_err(|error| failed(path, error))?;
        Ok(Self(Arc::new(Inner {
            path: path.to_owned(),
            retention,
            identity,
            marks,
            copied,
            opened: (last_ms, Instant::now()),
            database: Mutex::new(Some(Arc::new(database))),
            bytes: AtomicU64::new(bytes),
        })))
    }

    /// The number that was said last with copies, when the file was opened.
    pub fn copied(&self) -> u64 {
        self.0.copied
    }

    /// Appends what another log has, and notes up to which of its numbers that is, in one transaction.
    ///
    /// # Errors
    /// [`QueueError`]: nothing was appended.
    pub async fn append_copies(&self, entries: Vec<Entry>, through: u64) -> Result<(), QueueError> {
        self.blocking(move |inner, database| {
            inner.append(database, &entries, inner.now_ms(), Some(through))
        })
        .await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner, &Database) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, QueueError> {
        let inner = Arc::clone(&self.0);
        let work = move || {
            let database = inner.database()?;
            match work(&inner, &database) {
                Ok(done) => Ok(done),
                Err(Failure::Queue(error)) => Err(error),
                Err(Failure::Disk(error)) => {
                    // After an error redb gives nothing but errors, until the file is opened again.
                    *inner.lock() = None;
                    Err(failed(&inner.path, error))
                }
            }
        };
        tokio::task::spawn_blocking(work).await.map_err(QueueError::unavailable)?
    }
}

enum Failure {
    Queue(QueueError),
    Disk(redb::Error),
}

impl<E: Into<redb::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Disk(error.into())
    }
}

impl Inner {
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Arc<Database>>> {
        self.database.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn database(&self) -> Result<Arc<Database>, QueueError> {
        let mut database = self.lock();
        match &*database {
            Some(database) => Ok(Arc::clone(database)),
            None => {
                let opened = open(&self.path).map_err(|error| failed(&self.path, error))?;
                Ok(Arc::clone(database.insert(Arc::new(opened))))
            }
        }
    }

    /// The log's time.
    fn now_ms(&self) -> u64 {
        let (ms, at) = self.opened;
        ms.saturating_add(u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    fn append(
        &self,
        database: &Database,
        entries: &[Entry],
        now_ms: u64,
        copied: Option<u64>,
    ) -> Result<(), Failure> {
        let transaction = database.begin_write()?;
        let bytes = {
            let mut table = transaction.open_table(ENTRIES)?;
            let mut marks = transaction.open_table(MARKS)?;
            let mut meta = transaction.open_table(META)?;
            let number =
                |key| Ok::<_, redb::Error>(meta.get(key)?.map_or(0, |value| value.value()));
            let (mut next, mut bytes) = (number("next")?, number("bytes")?);
            for entry in entries {
                let record =
                    entry.to_record().map_err(|e| Failure::Queue(QueueError::unavailable(e)))?;
                table.insert(next, (now_ms, record.as_slice()))?;
                let Mark { epoch, through } = entry.batch.mark();
                marks.insert((entry.edge, entry.batch.lane as u8), (epoch, through))?;
                next += 1;
                bytes += record.len() as u64;
            }
            let age_ms = u64::try_from(self.retention.age_max.as_millis()).unwrap_or(u64::MAX);
            let oldest_ms = now_ms.saturating_sub(age_ms);
            for _ in 0..TRIM_MAX {
                let Some((number, at_ms, length)) = table.first()?.map(|(number, value)| {
                    let (at_ms, record) = value.value();
                    (number.value(), at_ms, record.len() as u64)
                }) else {
                    break;
                };
                let fits = bytes <= self.retention.bytes_max && at_ms >= oldest_ms;
                if fits || number + 1 == next {
                    break;
                }
                bytes -= length;
                table.remove(number)?;
            }
            if let Some(copied) = copied {
                meta.insert("copied", copied)?;
            }
            meta.insert("next", next)?;
            meta.insert("bytes", bytes)?;
            bytes
        };
        transaction.commit()?;
        self.bytes.store(bytes, Ordering::Relaxed);
        Ok(())
    }
}

fn open(path: &Path) -> Result<Database, redb::Error> {
    Ok(Database::builder().set_cache_size(CACHE_BYTES).create(path)?)
}

fn failed(path: &Path, error: impl std::fmt::Display) -> QueueError {
    QueueError::Unavailable(format!("{}: {error}", path.display()))
}

/// What is in the file when it is opened.
struct Prepared {
    identity: [u8; 16],
    marks: Marks,
    bytes: u64,
    copied: u64,
    /// When the last entry was appended.
    last_ms: u64,
}

fn prepare(database: &Database) -> Result<Prepared, String> {
    fn text(error: impl Into<redb::Error>) -> String {
        error.into().to_string()
    }
    let transaction: WriteTransaction = database.begin_write().map_err(text)?;
    let prepared = {
        let mut meta = transaction.open_table(META).map_err(text)?;
        let format = meta.get("format").map_err(text)?.map(|format| format.value());
        match format {
            Some(FORMAT) => {}
            Some(found) => {
                return Err(format!("it has format {found}, this software reads format {FORMAT}"));
            }
            None => {
                meta.insert("format", FORMAT).map_err(text)?;
            }
        }
        let bytes = meta.get("bytes").map_err(text)?.map_or(0, |bytes| bytes.value());
        let copied = meta.get("copied").map_err(text)?.map_or(0, |copied| copied.value());
        let mut identities = transaction.open_table(IDENTITY).map_err(text)?;
        let known = identities.get(()).map_err(text)?.map(|identity| identity.value());
        let identity = match known {
            Some(identity) => identity,
            None => {
                let mut identity = [0; 16];
                getrandom::fill(&mut identity).map_err(|error| error.to_string())?;
                identities.insert((), identity).map_err(text)?;
                identity
            }
        };
        let table = transaction.open_table(MARKS).map_err(text)?;
        let mut marks = Marks::default();
        for mark in table.iter().map_err(text)? {
            let (key, value) = mark.map_err(text)?;
            let ((edge, lane), (epoch, through)) = (key.value(), value.value());
            if let Some(lane) = Lane::ALL.into_iter().find(|known| *known as u8 == lane) {
                marks.set(edge, lane, Mark { epoch, through });
            }
        }
        let entries = transaction.open_table(ENTRIES).map_err(text)?;
        let last = entries.last().map_err(text)?;
        let last_ms = last.map_or(0, |(_, value)| value.value().0);
        Prepared { identity, marks, bytes, copied, last_ms }
    };
    transaction.commit().map_err(text)?;
    Ok(prepared)
}

/// The first number that is wanted.
fn after(position: &Position) -> Result<u64, QueueError> {
    if position.0.is_empty() {
        return Ok(0);
    }
    let number = position.number().and_then(|number| number.checked_add(1));
    number.ok_or_else(|| QueueError::Position(position.clone()))
}

fn before(number: u64) -> Position {
    number.checked_sub(1).map_or_else(Position::default, Position::of)
}

impl Queue for Embedded {
    fn name(&self) -> &'static str {
        "embedded"
    }

    fn identity(&self) -> [u8; 16] {
        self.0.identity
    }

    fn marks(&self) -> Marks {
        self.0.marks.clone()
    }

    fn append(&self, entries: Arc<Vec<Entry>>) -> Pending<'_, ()> {
        Box::pin(async move {
            self.blocking(move |inner, database| {
                inner.append(database, &entries, inner.now_ms(), None)
            })
            .await
        })
    }

    fn read(&self, position: Position, entries_max: usize) -> Pending<'_, Page> {
        Box::pin(async move {
            let from = after(&position)?;
            self.blocking(move |_, database| {
                let transaction = database.begin_read()?;
                let table = match transaction.open_table(ENTRIES) {
                    Err(TableError::TableDoesNotExist(_)) => return Ok(Page::default()),
                    table => table?,
                };
                let mut page = Page::default();
                let mut bytes = 0;
                for item in table.range(from..)?.take(entries_max.min(ENTRIES_MAX)) {
                    let (number, value) = item?;
                    let (number, (_, record)) = (number.value(), value.value());
                    bytes += record.len();
                    if bytes > PAGE_BYTES_MAX && !page.entries.is_empty() {
                        break;
                    }
                    page.missed |= page.entries.is_empty() && number > from;
                    let position = Position::of(number);
                    let entry = Entry::from_record(record).map_err(|error| {
                        let (position, reason) = (position.clone(), error.to_string());
                        Failure::Queue(QueueError::Entry { position, reason })
                    })?;
                    page.entries.push((position, entry));
                }
                Ok(page)
            })
            .await
        })
    }

    fn extent(&self) -> Pending<'_, Extent> {
        Box::pin(async move {
            self.blocking(|inner, database| {
                let transaction = database.begin_read()?;
                let table = transaction.open_table(ENTRIES)?;
                let first = table.first()?.map(|(number, _)| number.value());
                let meta = transaction.open_table(META)?;
                let next = meta.get("next")?.map_or(0, |next| next.value());
                let (begin, end) = (before(first.unwrap_or(next)), before(next));
                Ok(Extent { begin, end, bytes: Some(inner.bytes.load(Ordering::Relaxed)) })
            })
            .await
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Batch;
    use crate::event::tests::upload;

    const KEEP: Retention = Retention { bytes_max: 1 << 30, age_max: Duration::from_secs(3_600) };

    fn entry(edge: u64, numbers: std::ops::RangeInclusive<u64>) -> Entry {
        let events = numbers.map(upload).collect();
        Entry { edge, batch: Batch { lane: Lane::Uploads, epoch: 1, events } }
    }

    async fn append(queue: &Embedded, entries: Vec<Entry>) {
        queue.append(Arc::new(entries)).await.unwrap();
    }

    #[tokio::test]
    async fn what_was_appended_is_read_in_order_and_from_any_position_also_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.redb");
        let queue = Embedded::open(&path, KEEP).unwrap();
        assert_eq!(queue.read(Position::default(), 10).await.unwrap(), Page::default());
        let extent = queue.extent().await.unwrap();
        assert_eq!((extent.begin, extent.end), (Position::default(), Position::default()));
        append(&queue, vec![entry(1, 1..=2), entry(2, 1..=1)]).await;
        append(&queue, vec![entry(1, 3..=3)]).await;
        let identity = queue.identity();
        drop(queue);
        let queue = Embedded::open(&path, KEEP).unwrap();
        assert_eq!(queue.identity(), identity);
        assert_eq!(queue.marks().get(1, Lane::Uploads), Mark { epoch: 1, through: 3 });
        assert_eq!(queue.marks().get(2, Lane::Uploads), Mark { epoch: 1, through: 1 });
        let mut position = Position::default();
        let mut seen = Vec::new();
        loop {
            let page = queue.read(position.clone(), 2).await.unwrap();
            assert!(!page.missed);
            let Some((last, _)) = page.entries.last() else { break };
            assert!(*last > position);
            position = last.clone();
            seen.extend(page.entries.into_iter().map(|(_, entry)| entry));
        }
        assert_eq!(seen, [entry(1, 1..=2), entry(2, 1..=1), entry(1, 3..=3)]);
        assert_eq!(queue.extent().await.unwrap().end, position);
        let strange = Position(vec![1]);
        assert_eq!(queue.read(strange.clone(), 1).await, Err(QueueError::Position(strange)));
    }

    #[tokio::test]
    async fn the_oldest_go_when_there_is_too_much_and_who_was_slow_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let one = entry(1, 1..=1).to_record().unwrap().len() as u64;
        let retention = Retention { bytes_max: 5 * one + 100, ..KEEP };
        let queue = Embedded::open(&dir.path().join("e"), retention).unwrap();
        for number in 1..=20 {
            append(&queue, vec![entry(1, number..=number)]).await;
        }
        let page = queue.read(Position::default(), 100).await.unwrap();
        assert!(page.missed);
        assert_eq!(page.entries.len(), 5);
        assert_eq!(page.entries[0].0, Position::of(15));
        assert!(!queue.read(Position::of(14), 100).await.unwrap().missed);
        let extent = queue.extent().await.unwrap();
        assert_eq!((extent.begin, extent.end), (Position::of(14), Position::of(19)));
        assert!(extent.bytes.unwrap() <= retention.bytes_max);
    }

    #[test]
    fn the_oldest_go_when_they_are_too_old_by_the_logs_own_time() {
        let dir = tempfile::tempdir().unwrap();
        let queue = Embedded::open(&dir.path().join("e"), KEEP).unwrap();
        let database = queue.0.database().unwrap();
        let append = |number, at_ms| {
            assert!(queue.0.append(&database, &[entry(1, number..=number)], at_ms, None).is_ok());
            let transaction = database.begin_read().unwrap();
            let table = transaction.open_table(ENTRIES).unwrap();
            table.iter().unwrap().map(|item| item.unwrap().0.value()).collect::<Vec<_>>()
        };
        assert_eq!(append(1, 10_000_000), [0]);
        assert_eq!(append(2, 11_000_000), [0, 1]);
        assert_eq!(append(3, 0), [0, 1, 2]);
        assert_eq!(append(4, 13_700_000), [1, 2, 3]);
        assert_eq!(append(5, 14_700_000), [3, 4]);
        drop((database, queue));
        // It goes on from there, whatever the clock says.
        let queue = Embedded::open(&dir.path().join("e"), KEEP).unwrap();
        assert!((14_700_000..18_000_000).contains(&queue.0.now_ms()));
    }

    #[tokio::test]
    async fn another_format_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("e");
        drop(Embedded::open(&path, KEEP).unwrap());
        let database = Database::create(&path).unwrap();
        let transaction = database.begin_write().unwrap();
        transaction.open_table(META).unwrap().insert("format", 9).unwrap();
        transaction.commit().unwrap();
        drop(database);
        let error = Embedded::open(&path, KEEP).unwrap_err().to_string();
        assert!(error.contains("format 9"), "{error}");
    }
}
