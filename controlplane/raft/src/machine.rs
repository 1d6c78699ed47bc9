//! The state machine as openraft drives it, what changed recently, and snapshots on disk.
//!
//! The state lives in memory. On disk there is one snapshot, replaced as a whole, and the log behind it. A
//! node that starts has the state of its snapshot until the log is committed again; so reads must be
//! linearizable or be content with the past.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Cursor, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use bytes::Bytes;
use openraft::storage::RaftStateMachine;
use openraft::{
    AnyError, EntryPayload, ErrorSubject, ErrorVerb, OptionalSend, RaftSnapshotBuilder, Snapshot,
    StorageIOError,
};
use outrider_state::change::HistoryLimits;
use outrider_state::{Batch, History, State};
use tokio::sync::watch;
use xxhash_rust::xxh3::xxh3_64;

use crate::codec::{Put, Take};
use crate::types::{Entry, LogId, Outcomes, SnapshotMeta, StorageError, StoredMembership, Types};

/// The first bytes of a snapshot file.
const MAGIC: [u8; 8] = *b"ORSNAP01";
/// Magic, checksum of what stands before the state, its length.
const HEAD_BYTES: usize = 20;
/// The largest snapshot file that is read.
const SNAPSHOT_BYTES_MAX: u64 = 2 << 30;

/// How far a node is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Index of the last log entry that was applied.
    pub applied: u64,
    /// Version of the state.
    pub version: u64,
}

/// The state and its recent past.
#[derive(Debug)]
pub struct Known {
    /// The state.
    pub state: State,
    /// What changed recently.
    pub history: History,
    applied: Option<LogId>,
    membership: StoredMembership,
}

/// The state machine as the rest of the process sees it.
#[derive(Debug)]
pub struct Shared {
    known: RwLock<Known>,
    progress: watch::Sender<Progress>,
    /// Bytes of log that were applied since the last snapshot, and the bytes of that.
    log_bytes: AtomicU64,
    snapshot_bytes: AtomicU64,
    /// Log time at an instant: log time goes on from there by this machine's monotonic clock.
    clock: RwLock<(u64, Instant)>,
}

impl Shared {
    /// Looks at the state. Applying waits meanwhile, so keep it short and never block within.
    pub fn look<R>(&self, look: impl FnOnce(&Known) -> R) -> R {
        look(&self.known.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// How far this node is.
    pub fn progress(&self) -> Progress {
        *self.progress.borrow()
    }

    /// Tells each time that it gets further.
    pub fn watch(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// Waits until the entry of this index was applied.
    pub async fn applied(&self, index: u64) {
        let mut progress = self.watch();
        // The sender lives as long as `self`.
        let _ = progress.wait_for(|progress| progress.applied >= index).await;
    }

    /// The log's time now, as this node would write it, in milliseconds.
    pub fn log_time_ms(&self) -> u64 {
        let (time_ms, at) = *self.clock.read().unwrap_or_else(PoisonError::into_inner);
        let since = u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX);
        time_ms.saturating_add(since)
    }

    /// Bytes of log since the last snapshot, and bytes of that.
    pub fn log_and_snapshot_bytes(&self) -> (u64, u64) {
        (self.log_bytes.load(Ordering::Relaxed), self.snapshot_bytes.load(Ordering::Relaxed))
    }

    fn replace(&self, known: Known) {
        let progress = progress_of(&known);
        let time_ms = known.state.time_ms();
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = known;
        self.set_clock(time_ms);
        self.log_bytes.store(0, Ordering::Relaxed);
        self.progress.send_replace(progress);
    }

    fn set_clock(&self, time_ms: u64) {
        if time_ms > self.log_time_ms() {
            *self.clock.write().unwrap_or_else(PoisonError::into_inner) = (time_ms, Instant::now());
        }
    }
}

fn progress_of(known: &Known) -> Progress {
    Progress { applied: known.applied.map_or(0, |id| id.index), version: known.state.version() }
}

/// The state machine for openraft. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Machine {
    shared: Arc<Shared>,
    file: PathBuf,
}

impl Machine {
    /// Reads the snapshot in this folder, or begins with an empty state. Blocks.
    ///
    /// # Errors
    /// When the snapshot cannot be read or is damaged: the log behind it may be gone, so that nothing else
    /// can be done than to join anew.
    pub fn open(dir: &Path, limits: HistoryLimits) -> io::Result<Self> {
        let file = dir.join("snapshot");
        let (meta, state, bytes) = match read_file(&file) {
            Ok((meta, bytes)) => {
                let state = State::from_snapshot(&bytes).map_err(io::Error::other)?;
                (meta, state, bytes.len() as u64)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                (SnapshotMeta::default(), State::new(), 0)
            }
            Err(error) => return Err(error),
        };
        let known = Known {
            history: History::new(state.version(), limits),
            state,
            applied: meta.last_log_id,
            membership: meta.last_membership,
        };
        let shared = Shared {
            progress: watch::Sender::new(progress_of(&known)),
            clock: RwLock::new((known.state.time_ms(), Instant::now())),
            known: RwLock::new(known),
            log_bytes: AtomicU64::new(0),
            snapshot_bytes: AtomicU64::new(bytes),
        };
        Ok(Self { shared: Arc::new(shared), file })
    }

    /// What the rest of the process looks at.
    pub fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        Ok(self.shared.look(|known| (known.applied, known.membership.clone())))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Outcomes>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let (mut answers, mut updates, mut bytes) = (Vec::new(), Vec::new(), 0);
        let mut known = self.shared.known.write().unwrap_or_else(PoisonError::into_inner);
        for entry in entries {
            let id = entry.log_id;
            let outcomes = match entry.payload {
                EntryPayload::Blank => Vec::new(),
                EntryPayload::Membership(membership) => {
                    known.membership = StoredMembership::new(Some(id), membership);
                    Vec::new()
                }
                EntryPayload::Normal(payload) => {
                    bytes += payload.0.len() as u64;
                    // It was checked where it was proposed: what is wrong now was written by software that
                    // this node cannot follow, or is damaged.
                    let batch = Batch::from_record(&payload.0)
                        .map_err(|error| StorageIOError::apply(id, AnyError::new(&error)))?;
                    let outcomes = known.state.apply(batch, &mut updates);
                    updates.drain(..).for_each(|update| known.history.push(update));
                    outcomes
                }
            };
            known.applied = Some(id);
            answers.push(Outcomes(outcomes));
        }
        let (progress, time_ms) = (progress_of(&known), known.state.time_ms());
        drop(known);
        self.shared.log_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.shared.set_clock(time_ms);
        self.shared.progress.send_replace(progress);
        Ok(answers)
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let shared = Arc::clone(&self.shared);
        self.shared.log_bytes.store(0, Ordering::Relaxed);
        // A copy: O(state), values are shared. Applying waits for it.
        let (state, last_log_id, last_membership) = self
            .shared
            .look(|known| (known.state.clone(), known.applied, known.membership.clone()));
        let snapshot_id = match &last_log_id {
            Some(id) => format!("{}-{}-{}", id.leader_id.term, id.leader_id.node_id, id.index),
            None => "empty".to_owned(),
        };
        let meta = SnapshotMeta { last_log_id, last_membership, snapshot_id };
        Builder { state: Some(state), meta, file: self.file.clone(), shared }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, StorageError> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError> {
        let (meta, file) = (meta.clone(), self.file.clone());
        let signature = meta.signature();
        let shared = Arc::clone(&self.shared);
        let limits = shared.look(|known| known.history.limits());
        let work = move || -> io::Result<Known> {
            let bytes = snapshot.into_inner();
            let state = State::from_snapshot(&bytes).map_err(io::Error::other)?;
            write_file(&file, &meta, &bytes)?;
            shared.snapshot_bytes.store(bytes.len() as u64, Ordering::Relaxed);
            let history = History::new(state.version(), limits);
            let (applied, membership) = (meta.last_log_id, meta.last_membership);
            Ok(Known { state, history, applied, membership })
        };
        let known = blocking(work).await.map_err(|error| {
            StorageIOError::write_snapshot(Some(signature), AnyError::new(&error))
        })?;
        self.shared.replace(known);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<Types>>, StorageError> {
        let file = self.file.clone();
        match blocking(move || read_file(&file)).await {
            Ok((meta, bytes)) => {
                Ok(Some(Snapshot { meta, snapshot: Box::new(Cursor::new(bytes.to_vec())) }))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StorageIOError::read_snapshot(None, AnyError::new(&error)).into()),
        }
    }
}

/// Makes one snapshot.
#[derive(Debug)]
pub struct Builder {
    state: Option<State>,
    meta: SnapshotMeta,
    file: PathBuf,
    shared: Arc<Shared>,
}

impl RaftSnapshotBuilder<Types> for Builder {
    async fn build_snapshot(&mut self) -> Result<Snapshot<Types>, StorageError> {
        let (state, meta, file) = (self.state.take(), self.meta.clone(), self.file.clone());
        let work = move || -> io::Result<Vec<u8>> {
            let state = state.ok_or_else(|| io::Error::other("a builder makes one snapshot"))?;
            let bytes = state.to_snapshot().map_err(io::Error::other)?;
            write_file(&file, &meta, &bytes)?;
            Ok(bytes)
        };
        let bytes = blocking(work).await.map_err(|error| {
            let subject = ErrorSubject::Snapshot(Some(self.meta.signature()));
            StorageIOError::new(subject, ErrorVerb::Write, AnyError::new(&error))
        })?;
        self.shared.snapshot_bytes.store(bytes.len() as u64, Ordering::Relaxed);
        Ok(Snapshot { meta: self.meta.clone(), snapshot: Box::new(Cursor::new(bytes)) })
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// Replaces the file as a whole: a crash leaves the old one or the new one.
fn write_file(file: &Path, meta: &SnapshotMeta, state: &[u8]) -> io::Result<()> {
    let mut put = Put::default();
    put.meta(meta);
    let meta = put.0;
    let mut head = Vec::with_capacity(HEAD_BYTES + meta.len());
    head.extend_from_slice(&MAGIC);
    head.extend_from_slice(&xxh3_64(&meta).to_le_bytes());
    let length = u32::try_from(meta.len()).map_err(io::Error::other)?;
    head.extend_from_slice(&length.to_le_bytes());
    head.extend_from_slice(&meta);
    let new = file.with_extension("new");
    let mut out = OpenOptions::new().write(true).create(true).truncate(true).open(&new)?;
    out.write_all(&head)?;
    out.write_all(state)?;
    out.sync_all()?;
    fs::rename(&new, file)?;
    file.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

/// What the snapshot is of, and the state's record, which has a checksum of its own.
fn read_file(file: &Path) -> io::Result<(SnapshotMeta, Bytes)> {
    let damaged = |what: &str| io::Error::other(format!("{}: {what}", file.display()));
    let mut bytes = Vec::new();
    File::open(file)?.take(SNAPSHOT_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > SNAPSHOT_BYTES_MAX {
        return Err(damaged("the snapshot is too large"));
    }
    let mut bytes = Bytes::from(bytes);
    if bytes.len() < HEAD_BYTES || bytes[..8] != MAGIC {
        return Err(damaged("it is not a snapshot that this software reads"));
    }
    let mut head = Take::new(bytes.split_to(HEAD_BYTES).slice(8..));
    let (checksum, length) = head
        .u64()
        .and_then(|checksum| Ok((checksum, head.u32()? as usize)))
        .map_err(|_| damaged("it is cut off"))?;
    if bytes.len() < length {
        return Err(damaged("it is cut off"));
    }
    let meta = bytes.split_to(length);
    if xxh3_64(&meta) != checksum {
        return Err(damaged("its checksum is wrong"));
    }
    let mut take = Take::new(meta);
    let meta = take.meta().map_err(|error| damaged(&error.to_string()))?;
    take.end().map_err(|error| damaged(&error.to_string()))?;
    Ok((meta, bytes))
}
