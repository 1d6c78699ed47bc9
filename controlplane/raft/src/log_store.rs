//! The log and the vote on disk: one redb file and one thread that writes it.
//!
//! Whatever waits for the thread is written in one transaction, so with one fsync; nothing is acknowledged
//! before it. Recent entries are kept in memory, where replication and the state machine find them. A
//! failure of the disk is told to openraft, which then stops this node: it must not vote or acknowledge on
//! what may be lost.
//!
//! **A leader's own fsync runs beside those of the others** (`early`): openraft hands entries on only once they
//! are appended, so it is told so at once, and what the others answer is held back until they are on this disk
//! too ([`LogStore::durable`]).

use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use bytes::Bytes;
use openraft::storage::{LogFlushed, LogState, RaftLogStorage};
use openraft::{AnyError, ErrorSubject, ErrorVerb, OptionalSend, RaftLogReader, StorageIOError};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use tokio::sync::{mpsc, oneshot, watch};
use xxhash_rust::xxh3::xxh3_64;

use crate::codec::{Put, Take};
use crate::early::Early;
use crate::types::{Entry, LogId, Membership, NodeId, StorageError, Types, Vote};

/// Version of the tables.
const FORMAT_VERSION: u8 = 1;
/// Log index: checksum and entry.
const LOG: TableDefinition<'_, u64, &'static [u8]> = TableDefinition::new("log");
/// `format`, `vote`, `purged`.
const META: TableDefinition<'_, &str, &'static [u8]> = TableDefinition::new("meta");
/// Jobs that may wait for the thread. openraft has one or two at a time.
const JOBS_MAX: usize = 64;
/// Bytes of recent entries that are kept in memory.
const RECENT_BYTES_MAX: usize = 64 << 20;
/// Bytes of entries that are sent to another node at once; one entry is always sent.
const SEND_BYTES_MAX: usize = 4 << 20;
/// Memory for the database's pages.
const PAGE_CACHE_BYTES: usize = 16 << 20;

/// Why the log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The database.
    #[error("cannot open the log {path}: {reason}")]
    Database {
        /// The file.
        path: String,
        /// What the database said.
        reason: String,
    },
    /// Written by another version.
    #[error("the log {path} has format {found}, this software reads {FORMAT_VERSION}")]
    Format {
        /// The file.
        path: String,
        /// Its format.
        found: u8,
    },
    /// The thread cannot be started.
    #[error("cannot start the log's thread: {0}")]
    Thread(io::Error),
}

#[derive(Debug, Default)]
struct Recent {
    entries: VecDeque<Entry>,
    bytes: usize,
    purged: Option<LogId>,
    last: Option<LogId>,
}

enum Job {
    /// Rows, and whom to tell, if that was not done before.
    Append(Vec<(u64, Vec<u8>)>, Option<LogFlushed<Types>>),
    Vote(Vec<u8>, Done),
    /// All from this index on.
    Truncate(u64, Done),
    /// All up to this index; the log id, encoded.
    Purge(u64, Vec<u8>, Done),
}

impl Job {
    /// What is on the disk once it was written.
    fn moves(&self, durable: &mut u64) {
        match self {
            Self::Append(rows, _) => *durable = rows.last().map_or(*durable, |(index, _)| *index),
            Self::Vote(..) => {}
            Self::Truncate(from, _) => *durable = (*durable).min(from.saturating_sub(1)),
            Self::Purge(upto, ..) => *durable = (*durable).max(*upto),
        }
    }
}

type Done = oneshot::Sender<Result<(), String>>;

/// The log of one node. Clones are the same log.
#[derive(Clone)]
pub struct LogStore {
    node: NodeId,
    database: Arc<Database>,
    recent: Arc<RwLock<Recent>>,
    early: Arc<Mutex<Early>>,
    /// All up to this index is on the disk; or why nothing is written any more.
    durable: watch::Receiver<Result<u64, String>>,
    jobs: mpsc::Sender<Job>,
}

impl Debug for LogStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LogStore")
    }
}

impl LogStore {
    /// Opens the log of this node, or makes an empty one. Blocks.
    ///
    /// # Errors
    /// [`OpenError`]
    pub fn open(path: &Path, node: NodeId) -> Result<Self, OpenError> {
        let shown = path.display().to_string();
        let failed = |reason: redb::Error| OpenError::Database {
            path: shown.clone(),
            reason: reason.to_string(),
        };
        let (database, recent, format) = open(path).map_err(failed)?;
        if format != FORMAT_VERSION {
            return Err(OpenError::Format { path: shown, found: format });
        }
        let database = Arc::new(database);
        let (jobs, waiting) = mpsc::channel(JOBS_MAX);
        let owned = Arc::clone(&database);
        let last = recent.last.max(recent.purged).map_or(0, |id| id.index);
        let (written, durable) = watch::channel(Ok(last));
        std::thread::Builder::new()
            .name("raft-log".to_owned())
            .spawn(move || write_until_the_end(&owned, waiting, &written))
            .map_err(OpenError::Thread)?;
        let (recent, early) =
            (Arc::new(RwLock::new(recent)), Arc::new(Mutex::new(Early::new(node))));
        Ok(Self { node, database, recent, early, durable, jobs })
    }

    /// Waits until all up to this index is on this disk.
    ///
    /// # Errors
    /// It cannot be written.
    pub async fn durable(&self, index: u64) -> Result<(), String> {
        let mut durable = self.durable.clone();
        let enough = |now: &Result<u64, String>| now.as_ref().map_or(true, |now| *now >= index);
        match durable.wait_for(enough).await {
            Ok(now) => now.as_ref().map(drop).map_err(Clone::clone),
            Err(_) => Err("the log's thread has ended".to_owned()),
        }
    }

    /// Why nothing is written any more, if that is so.
    pub fn failure(&self) -> Option<String> {
        self.durable.borrow().as_ref().err().cloned()
    }

    /// Writes nothing as long as what this gives is there: a disk that takes its time, for tests.
    #[doc(hidden)]
    pub fn hold(&self) -> impl Sized + use<> {
        self.database.begin_write()
    }

    /// Ends when nothing can be written any more.
    pub fn failed(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut durable = self.durable.clone();
        async move { drop(durable.wait_for(Result::is_err).await) }
    }

    /// The membership in use, as of the entry of this index. See `early`.
    pub fn set_membership(&self, index: u64, membership: &Membership) {
        self.early().set_membership(index, membership);
    }

    fn early(&self) -> std::sync::MutexGuard<'_, Early> {
        self.early.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn recent(&self) -> std::sync::RwLockReadGuard<'_, Recent> {
        self.recent.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn recent_mut(&self) -> std::sync::RwLockWriteGuard<'_, Recent> {
        self.recent.write().unwrap_or_else(PoisonError::into_inner)
    }

    async fn done(&self, job: impl FnOnce(Done) -> Job) -> Result<(), StorageError> {
        let (sender, receiver) = oneshot::channel();
        if self.jobs.send(job(sender)).await.is_err() {
            return Err(write_error("the log's thread has ended"));
        }
        match receiver.await {
            Ok(result) => result.map_err(write_error),
            Err(_) => Err(write_error("the log's thread has ended")),
        }
    }

    /// Entries of `start..end`, at least one if there is one, and no more than `bytes_max` beyond that.
    async fn read(
        &self,
        start: u64,
        end: u64,
        bytes_max: usize,
    ) -> Result<Vec<Entry>, StorageError> {
        if start >= end {
            return Ok(Vec::new());
        }
        {
            let recent = self.recent();
            if let Some(first) = recent.entries.front().map(|entry| entry.log_id.index)
                && first <= start
            {
                // The range is within memory, so the difference is a position there.
                let skip = usize::try_from(start - first).unwrap_or(usize::MAX);
                let wanted = recent.entries.iter().skip(skip);
                let wanted = wanted.take_while(|entry| entry.log_id.index < end).cloned();
                return bounded(wanted.map(Ok::<_, String>), bytes_max).map_err(read_error);
            }
        }
        let database = Arc::clone(&self.database);
        let read = move || -> Result<Vec<Entry>, String> {
            let transaction = database.begin_read().map_err(|error| error.to_string())?;
            let log = transaction.open_table(LOG).map_err(|error| error.to_string())?;
            let range = log.range(start..end).map_err(|error| error.to_string())?;
            let entries = range.map(|row| {
                let (index, bytes) = row.map_err(|error| error.to_string())?;
                entry_from(index.value(), bytes.value())
            });
            bounded(entries, bytes_max)
        };
        match tokio::task::spawn_blocking(read).await {
            Ok(result) => result.map_err(read_error),
            Err(error) => Err(read_error(error.to_string())),
        }
    }
}

fn bounded<E>(
    entries: impl Iterator<Item = Result<Entry, E>>,
    bytes_max: usize,
) -> Result<Vec<Entry>, E> {
    let (mut taken, mut bytes) = (Vec::new(), 0_usize);
    for entry in entries {
        let entry = entry?;
        bytes = bytes.saturating_add(bytes_of(&entry));
        if bytes > bytes_max && !taken.is_empty() {
            break;
        }
        taken.push(entry);
    }
    Ok(taken)
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(start) => start + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(end) => end + 1,
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        self.read(start, end, usize::MAX).await
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, StorageError> {
        self.read(start, end, SEND_BYTES_MAX).await
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, StorageError> {
        let recent = self.recent();
        Ok(LogState {
            last_purged_log_id: recent.purged,
            last_log_id: recent.last.or(recent.purged),
        })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        let mut put = Put::default();
        put.vote(vote);
        self.early().vote(vote);
        self.done(|done| Job::Vote(put.0, done)).await
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        let node = self.node;
        let read = || -> Result<Option<Vote>, redb::Error> {
            let transaction = self.database.begin_read()?;
            let meta = transaction.open_table(META)?;
            let bytes = meta.get("vote")?.map(|vote| Bytes::copy_from_slice(vote.value()));
            Ok(match bytes {
                None => None,
                Some(bytes) => {
                    let mut vote = Take::new(bytes)
                        .vote()
                        .map_err(|error| redb::Error::Corrupted(error.to_string()))?;
                    // With a vote that a majority had granted to it, openraft would go on as leader of that
                    // term at once, and take the term's first entry for what reads have to wait for; but
                    // more was acknowledged since, which it has not applied again yet. As a vote of its own
                    // that is not granted yet it promises the same to others, and a new term is begun.
                    if vote.leader_id.node_id == node {
                        vote.committed = false;
                    }
                    Some(vote)
                }
            })
        };
        read().map_err(|error| {
            StorageIOError::new(ErrorSubject::Vote, ErrorVerb::Read, AnyError::new(&error)).into()
        })
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: LogFlushed<Types>,
    ) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let (rows, early) = {
            let (mut recent, mut early) = (self.recent_mut(), self.early());
            let mut rows = Vec::new();
            let mut all_early = true;
            for entry in entries {
                rows.push((entry.log_id.index, row_of(&entry)));
                all_early &= early.append(&entry);
                recent.push(entry);
            }
            // What is not on the disk yet stays, whatever it weighs.
            let durable = self.durable.borrow().as_ref().map_or(0, |durable| *durable);
            let first = rows.first().map_or(0, |(index, _)| *index);
            recent.shrink(first.min(durable + 1));
            (rows, all_early)
        };
        let (now, later) = if early { (Some(callback), None) } else { (None, Some(callback)) };
        if let Err(error) = self.jobs.send(Job::Append(rows, later)).await {
            let Job::Append(_, later) = error.0 else { return Ok(()) };
            let failed = io::Error::other("the log's thread has ended");
            if let Some(callback) = now.or(later) {
                callback.log_io_completed(Err(failed));
            }
            return Ok(());
        }
        if let Some(callback) = now {
            callback
                .log_io_completed(self.failure().map_or(Ok(()), |why| Err(io::Error::other(why))));
        }
        Ok(())
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError> {
        self.early().truncate(log_id.index);
        self.done(|done| Job::Truncate(log_id.index, done)).await?;
        let before = log_id.index.checked_sub(1);
        let previous = match before {
            Some(before) => self.read(before, log_id.index, usize::MAX).await?.pop(),
            None => None,
        };
        let mut recent = self.recent_mut();
        while recent.entries.back().is_some_and(|entry| entry.log_id.index >= log_id.index) {
            if let Some(entry) = recent.entries.pop_back() {
                recent.bytes -= bytes_of(&entry);
            }
        }
        recent.last = previous.map(|entry| entry.log_id).or(recent.purged);
        Ok(())
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StorageError> {
        let mut put = Put::default();
        put.log_id(&log_id);
        self.done(|done| Job::Purge(log_id.index, put.0, done)).await?;
        let mut recent = self.recent_mut();
        while recent.entries.front().is_some_and(|entry| entry.log_id.index <= log_id.index) {
            if let Some(entry) = recent.entries.pop_front() {
                recent.bytes -= bytes_of(&entry);
            }
        }
        recent.purged = Some(log_id);
        recent.last = recent.last.max(Some(log_id));
        Ok(())
    }
}

impl Recent {
    fn push(&mut self, entry: Entry) {
        // A gap means that what is here is of the past: only what is consecutive can be searched.
        if self.entries.back().is_some_and(|last| last.log_id.index + 1 != entry.log_id.index) {
            self.entries.clear();
            self.bytes = 0;
        }
        self.bytes += bytes_of(&entry);
        self.last = Some(entry.log_id);
        self.entries.push_back(entry);
    }

    fn shrink(&mut self, keep_from: u64) {
        while self.bytes > RECENT_BYTES_MAX
            && self.entries.front().is_some_and(|entry| entry.log_id.index < keep_from)
        {
            if let Some(entry) = self.entries.pop_front() {
                self.bytes -= bytes_of(&entry);
            }
        }
    }
}

fn bytes_of(entry: &Entry) -> usize {
    const OTHER_BYTES: usize = 64;
    match &entry.payload {
        openraft::EntryPayload::Normal(payload) => payload.0.len() + OTHER_BYTES,
        _ => OTHER_BYTES,
    }
}

fn row_of(entry: &Entry) -> Vec<u8> {
    let mut put = Put(Vec::with_capacity(8 + 32 + bytes_of(entry)));
    put.u64(0).entry(entry);
    let checksum = xxh3_64(&put.0[8..]);
    put.0[..8].copy_from_slice(&checksum.to_le_bytes());
    put.0
}

fn entry_from(index: u64, row: &[u8]) -> Result<Entry, String> {
    let (checksum, bytes) = row.split_first_chunk::<8>().ok_or("an entry is cut off")?;
    if xxh3_64(bytes) != u64::from_le_bytes(*checksum) {
        return Err(format!("the checksum of log entry {index} is wrong"));
    }
    let mut take = Take::new(Bytes::copy_from_slice(bytes));
    let entry = take.entry().map_err(|error| format!("log entry {index}: {error}"))?;
    take.end().map_err(|error| format!("log entry {index}: {error}"))?;
    if entry.log_id.index == index {
        Ok(entry)
    } else {
        Err(format!("log entry {index} is another one"))
    }
}

fn open(path: &Path) -> Result<(Database, Recent, u8), redb::Error> {
    let database = Database::builder().set_cache_size(PAGE_CACHE_BYTES).create(path)?;
    let transaction = database.begin_write()?;
    let mut recent = Recent::default();
    let format = {
        let mut meta = transaction.open_table(META)?;
        let found = meta.get("format")?.map(|row| row.value().first().copied().unwrap_or(0));
        let format = match found {
            Some(found) => found,
            None => {
                meta.insert("format", [FORMAT_VERSION].as_slice())?;
                FORMAT_VERSION
            }
        };
        let corrupted = |error: String| redb::Error::Corrupted(error);
        if let Some(purged) = meta.get("purged")? {
            let mut take = Take::new(Bytes::copy_from_slice(purged.value()));
            recent.purged = Some(take.log_id().map_err(|error| corrupted(error.to_string()))?);
        }
        let log = transaction.open_table(LOG)?;
        if let Some((index, row)) = log.last()? {
            recent.last = Some(entry_from(index.value(), row.value()).map_err(corrupted)?.log_id);
        }
        format
    };
    transaction.commit()?;
    Ok((database, recent, format))
}

/// The thread: takes all that waits, writes it in one transaction, and then says so.
fn write_until_the_end(
    database: &Database,
    mut waiting: mpsc::Receiver<Job>,
    durable: &watch::Sender<Result<u64, String>>,
) {
    while let Some(first) = waiting.blocking_recv() {
        let mut jobs = vec![first];
        while jobs.len() < JOBS_MAX
            && let Ok(job) = waiting.try_recv()
        {
            jobs.push(job);
        }
        // Once it failed, nobody knows what is on the disk.
        let before = durable.borrow().clone();
        let result = before.and_then(|_| write(database, &jobs).map_err(|error| error.to_string()));
        match &result {
            Ok(()) => durable.send_modify(|durable| {
                if let Ok(durable) = durable {
                    jobs.iter().for_each(|job| job.moves(durable));
                }
            }),
            Err(error) => {
                tracing::error!(error, "the log cannot be written");
                let _ = durable.send_replace(Err(error.clone()));
            }
        }
        for job in jobs {
            match job {
                Job::Append(_, None) => {}
                Job::Append(_, Some(callback)) => {
                    callback.log_io_completed(result.clone().map_err(io::Error::other));
                }
                Job::Vote(_, done) | Job::Truncate(_, done) | Job::Purge(_, _, done) => {
                    // Who asked may have gone.
                    let _ = done.send(result.clone());
                }
            }
        }
    }
}

fn write(database: &Database, jobs: &[Job]) -> Result<(), redb::Error> {
    // Durable when it is committed: redb's default.
    let transaction = database.begin_write()?;
    {
        let mut log = transaction.open_table(LOG)?;
        let mut meta = transaction.open_table(META)?;
        for job in jobs {
            match job {
                Job::Append(rows, _) => {
                    for (index, row) in rows {
                        log.insert(index, row.as_slice())?;
                    }
                }
                Job::Vote(vote, _) => drop(meta.insert("vote", vote.as_slice())?),
                Job::Truncate(from, _) => log.retain_in(*from.., |_, _| false)?,
                Job::Purge(upto, id, _) => {
                    log.retain_in(..=*upto, |_, _| false)?;
                    meta.insert("purged", id.as_slice())?;
                }
            }
        }
    }
    transaction.commit()?;
    Ok(())
}

fn write_error(reason: impl ToString) -> StorageError {
    StorageIOError::write_logs(AnyError::error(reason.to_string())).into()
}

fn read_error(reason: impl ToString) -> StorageError {
    StorageIOError::read_logs(AnyError::error(reason.to_string())).into()
}
