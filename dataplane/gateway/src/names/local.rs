//! The client that shards use, and the start and stop of the thread.

use std::cell::RefCell;
use std::fmt;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::thread::JoinHandle;
use std::time::Duration;

use outrider_artifact::event::UploadEvent;
use outrider_artifact::{Digest, RepositoryName, Tag};
use outrider_shard::ShardHandle;
use outrider_shard::channel::{Completion, oneshot};

use super::command::{
    AcknowledgeOutbox, Command, DeleteBlob, DeleteManifest, DeleteTag, ForgetMirroredTag, Mount,
    NoteEvent, PutBlobCommand, PutManifestCommand, TouchMirroredTag,
};
use super::model::{
    Hosted, Link, MirroredTag, Mounted, OutboxRecord, OutboxStatus, Put, PutBlob, PutManifest,
    ReferrersPage, Removed, Repository, TagRecord, TagsPage,
};
use super::query::{
    HostedAfterQuery, HostedQuery, LinkQuery, OutboxQuery, OutboxStatusQuery, Query,
    ReferrersQuery, RepositoriesQuery, RepositoryQuery, TagQuery, TagsQuery,
};
use super::recent::{Generations, Recent};
use super::store::{self, FILE_NAME, Opener};
use super::stored::StoredBytes;
use super::thread::{Asked, DISK_RETRY_AFTER, Job, Reply, Wanted, Worker};
use super::{Names, NamesError, NamesMetrics};

/// Bounds of the names database. The defaults are what is documented.
#[derive(Clone, Debug)]
pub struct NamesLimits {
    /// Requests that wait at the most; one more is refused.
    pub queue_max: usize,
    /// Mirrored tags that are remembered; the one that was checked longest ago is forgotten.
    pub mirrored_tags_max: usize,
    /// Events that wait; the oldest is dropped and counted.
    pub outbox_records_max: u64,
    /// Memory for pages of the database.
    pub page_cache_bytes: usize,
    /// What customers have stored, and may.
    pub stored: Arc<StoredBytes>,
}

impl Default for NamesLimits {
    fn default() -> Self {
        Self {
            queue_max: 1024,
            mirrored_tags_max: 100_000,
            outbox_records_max: 100_000,
            page_cache_bytes: 16 << 20,
            stored: Arc::default(),
        }
    }
}

/// The thread that owns the file. Dropped without [`NamesThread::stop`], it goes on until the last
/// client is gone.
#[derive(Debug)]
pub struct NamesThread {
    thread: JoinHandle<()>,
    jobs: SyncSender<Job>,
}

impl NamesThread {
    /// Ends the thread when it has answered what waits, and closes the file. Blocks.
    ///
    /// # Errors
    /// [`NamesError::Closed`] if the thread ended by itself before.
    pub fn stop(self) -> Result<(), NamesError> {
        let told = self.jobs.send(Job::Stop);
        let ended = self.thread.join();
        if told.is_err() || ended.is_err() { Err(NamesError::Closed) } else { Ok(()) }
    }
}

/// The way to the thread, from any thread.
#[derive(Clone)]
pub struct NamesClient {
    jobs: SyncSender<Job>,
    generations: Arc<Generations>,
    metrics: NamesMetrics,
}

impl NamesClient {
    /// The client of a shard. To be used on that shard only.
    pub fn on(&self, shard: &ShardHandle) -> LocalNames {
        self.local(Some(shard.clone()))
    }

    /// A client whose futures block the thread that polls them and are ready at once: for the start
    /// and for tools, never for a shard.
    pub fn blocking(&self) -> LocalNames {
        self.local(None)
    }

    #[cfg(test)]
    pub(super) fn send_for_test(&self, job: Job) {
        self.jobs.send(job).expect("the thread runs");
    }

    fn local(&self, shard: Option<ShardHandle>) -> LocalNames {
        LocalNames(Rc::new(Inner { client: self.clone(), shard, recent: RefCell::default() }))
    }
}

impl fmt::Debug for NamesClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NamesClient").finish_non_exhaustive()
    }
}

/// Opens or makes `DIR/meta.redb` and starts the thread. Blocks while the file is checked, about a
/// second per million records, and longer after a crash.
///
/// # Errors
/// [`NamesError::InUse`], [`NamesError::Open`], [`NamesError::Version`], [`NamesError::Damaged`].
pub fn open(
    directory: &Path,
    limits: NamesLimits,
    metrics: NamesMetrics,
) -> Result<(NamesThread, NamesClient), NamesError> {
    let opener = store::opener(directory, limits.page_cache_bytes);
    open_with(opener, &directory.join(FILE_NAME), limits, metrics, DISK_RETRY_AFTER)
}

pub(super) fn open_with(
    opener: Opener,
    path: &Path,
    limits: NamesLimits,
    metrics: NamesMetrics,
    disk_retry_after: Duration,
) -> Result<(NamesThread, NamesClient), NamesError> {
    let database = opener().map_err(|error| store::open_error(path, &error))?;
    let failed = |reason: String| NamesError::Open { path: path.to_owned(), reason };
    let sizes = store::prepare(&database, &limits).map_err(|fault| match fault {
        store::Fault::Disk(reason) => failed(reason),
        store::Fault::Refused(error) => error,
    })?;
    metrics.show_sizes(sizes);

    let (jobs, queue) = mpsc::sync_channel(limits.queue_max.max(1));
    let generations = Arc::new(Generations::new());
    let worker = Worker {
        database: Some(database),
        opener,
        path: path.to_owned(),
        limits,
        metrics: metrics.clone(),
        generations: generations.clone(),
        disk_retry_after,
        failed: None,
    };
    let thread = std::thread::Builder::new()
        .name("names".into())
        .spawn(move || worker.run(&queue))
        .map_err(|error| failed(format!("its thread cannot be started: {error}")))?;
    let client = NamesClient { jobs: jobs.clone(), generations, metrics };
    Ok((NamesThread { thread, jobs }, client))
}

/// The names of this box, for one shard. Clones share what was answered a short while ago. Not
/// `Send`.
///
/// A change that was sent is made whether or not its future is still polled: who stores content
/// must not drop it when the future is dropped.
#[derive(Clone)]
pub struct LocalNames(Rc<Inner>);

struct Inner {
    client: NamesClient,
    /// None blocks the thread instead.
    shard: Option<ShardHandle>,
    recent: RefCell<Recent>,
}

impl fmt::Debug for LocalNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalNames").field("shard", &self.0.shard).finish_non_exhaustive()
    }
}

/// Where an answer comes from.
pub(super) enum Answer<T: Send> {
    Shard(Completion<T>),
    Thread(Receiver<T>),
}

impl<T: Send> Answer<T> {
    /// Nothing when who should answer is gone.
    pub(super) async fn take(self) -> Option<T> {
        match self {
            Self::Shard(completion) => completion.await,
            Self::Thread(receiver) => receiver.recv().ok(),
        }
    }
}

impl<T: Send> Answer<Result<T, NamesError>> {
    async fn wait(self) -> Result<T, NamesError> {
        self.take().await.unwrap_or(Err(NamesError::Closed))
    }
}

impl LocalNames {
    pub(super) fn channel<T: Send>(&self) -> (Reply<T>, Answer<T>) {
        match &self.0.shard {
            Some(shard) => {
                let (completer, completion) = oneshot(shard);
                (Reply::Shard(completer), Answer::Shard(completion))
            }
            None => {
                let (sender, receiver) = mpsc::sync_channel(1);
                (Reply::Thread(sender), Answer::Thread(receiver))
            }
        }
    }

    fn send(&self, job: Job) -> Result<(), NamesError> {
        self.0.client.jobs.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) => {
                self.0.client.metrics.busy.inc();
                NamesError::Busy
            }
            TrySendError::Disconnected(_) => NamesError::Closed,
        })
    }

    async fn ask<Q: Query>(&self, query: Q) -> Result<Q::Answer, NamesError> {
        let (reply, answer) = self.channel();
        self.send(Job::Ask(Box::new(Asked { query, reply })))?;
        answer.wait().await
    }

    async fn change<C: Command>(&self, command: C) -> Result<C::Outcome, NamesError> {
        let (reply, answer) = self.channel();
        self.send(Job::Change(Box::new(Wanted { command, outcome: None, reply })))?;
        answer.wait().await
    }

    fn generation(&self, repository: &RepositoryName) -> u64 {
        self.0.client.generations.of(repository)
    }

    /// An answer that was given before, if it still holds.
    fn recent<T: Clone>(&self, pick: impl FnOnce(&Recent) -> Option<&T>) -> Option<T> {
        let found = pick(&self.0.recent.borrow()).cloned()?;
        self.0.client.metrics.recent_hits.inc();
        Some(found)
    }
}

impl Names for LocalNames {
    async fn repository(&self, repository: &RepositoryName) -> Result<Repository, NamesError> {
        let generation = self.generation(repository);
        if let Some(state) = self.recent(|recent| recent.state(repository, generation)) {
            return Ok(state);
        }
        let state = self.ask(RepositoryQuery(repository.clone())).await?;
        self.0.recent.borrow_mut().keep_state(repository, generation, &state);
        Ok(state)
    }

    async fn tag(
        &self,
        repository: &RepositoryName,
        tag: &Tag,
    ) -> Result<Option<Arc<TagRecord>>, NamesError> {
        let generation = self.generation(repository);
        if let Some(record) = self.recent(|recent| recent.tag(repository, generation, tag)) {
            return Ok(record);
        }
        let query = TagQuery { repository: repository.clone(), tag: tag.clone() };
        let record = self.ask(query).await?;
        self.0.recent.borrow_mut().keep_tag(repository, generation, tag, &record);
        Ok(record)
    }

    async fn link(&self, repository: &RepositoryName, digest: &Digest) -> Result<Link, NamesError> {
        let generation = self.generation(repository);
        if let Some(link) = self.recent(|recent| recent.link(repository, generation, digest)) {
            return Ok(link);
        }
        let query = LinkQuery { repository: repository.clone(), digest: *digest };
        let link = self.ask(query).await?;
        self.0.recent.borrow_mut().keep_link(repository, generation, digest, &link);
        Ok(link)
    }

    fn link_known(&self, repository: &RepositoryName, digest: &Digest) -> Option<Link> {
        let generation = self.generation(repository);
        self.recent(|recent| recent.link(repository, generation, digest))
    }

    async fn hosted(&self, digest: &Digest) -> Result<Option<Hosted>, NamesError> {
        self.ask(HostedQuery(*digest)).await
    }

    async fn hosted_after(
        &self,
        last: Option<Digest>,
        entries_max: usize,
    ) -> Result<Vec<Hosted>, NamesError> {
        self.ask(HostedAfterQuery { last, entries_max }).await
    }

    async fn tags(
        &self,
        repository: &RepositoryName,
        last: Option<&str>,
        entries_max: usize,
    ) -> Result<TagsPage, NamesError> {
        let (repository, last) = (repository.clone(), last.map(str::to_owned));
        self.ask(TagsQuery { repository, last, entries_max }).await
    }

    async fn repositories(
        &self,
        last: Option<&str>,
        entries_max: usize,
    ) -> Result<Vec<String>, NamesError> {
        self.ask(RepositoriesQuery { last: last.map(str::to_owned), entries_max }).await
    }

    async fn referrers(
        &self,
        repository: &RepositoryName,
        subject: &Digest,
        artifact_type: Option<&str>,
        last: Option<Digest>,
        entries_max: usize,
    ) -> Result<ReferrersPage, NamesError> {
        self.ask(ReferrersQuery {
            repository: repository.clone(),
            subject: *subject,
            artifact_type: artifact_type.map(str::to_owned),
            last,
            entries_max,
        })
        .await
    }

    async fn put_manifest(&self, put: PutManifest) -> Result<Put, NamesError> {
        self.change(PutManifestCommand::new(put)).await
    }

    async fn put_blob(&self, put: PutBlob) -> Result<Put, NamesError> {
        self.change(PutBlobCommand::new(put)).await
    }

    async fn mount(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        from: Option<&RepositoryName>,
    ) -> Result<Option<Mounted>, NamesError> {
        let (repository, from) = (repository.clone(), from.cloned());
        self.change(Mount { repository, digest: *digest, from }).await
    }

    async fn remember_mirrored_tag(&self, tag: MirroredTag) -> Result<(), NamesError> {
        self.change(tag).await
    }

    async fn touch_mirrored_tag(
        &self,
        repository: &RepositoryName,
        tag: &Tag,
        digest: &Digest,
        checked_unix_ms: u64,
    ) -> Result<bool, NamesError> {
        let (repository, tag) = (repository.clone(), tag.clone());
        self.change(TouchMirroredTag { repository, tag, digest: *digest, checked_unix_ms }).await
    }

    async fn forget_mirrored_tag(
        &self,
        repository: &RepositoryName,
        tag: &Tag,
    ) -> Result<bool, NamesError> {
        self.change(ForgetMirroredTag { repository: repository.clone(), tag: tag.clone() }).await
    }

    async fn delete_tag(&self, repository: &RepositoryName, tag: &Tag) -> Result<bool, NamesError> {
        self.change(DeleteTag { repository: repository.clone(), tag: tag.clone() }).await
    }

    async fn delete_manifest(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<Option<Removed>, NamesError> {
        self.change(DeleteManifest { repository: repository.clone(), digest: *digest }).await
    }

    async fn delete_blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<Option<Removed>, NamesError> {
        self.change(DeleteBlob { repository: repository.clone(), digest: *digest }).await
    }

    async fn outbox_status(&self) -> Result<OutboxStatus, NamesError> {
        self.ask(OutboxStatusQuery).await
    }

    async fn outbox_read(
        &self,
        from: u64,
        entries_max: usize,
    ) -> Result<Vec<OutboxRecord>, NamesError> {
        self.ask(OutboxQuery { from, entries_max }).await
    }

    async fn note_event(&self, event: UploadEvent) -> Result<bool, NamesError> {
        self.change(NoteEvent { event: event.to_archive() }).await
    }

    async fn outbox_acknowledge(&self, through: u64) -> Result<(), NamesError> {
        self.change(AcknowledgeOutbox { through }).await
    }
}
