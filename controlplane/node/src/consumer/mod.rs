//! Reads the queue of events into the graph. The position is stored with what was made of the events, in one transaction
//! of the graph's store, and a batch is applied only right behind the position that is stored: whoever dies in
//! between, and whoever else reads the same queue into the same store, nothing is counted twice and nothing is left out.
//!
//! Every node reads its own queue. Only where both the queue and the store are servers that all nodes share, there is
//! nothing of its own to read, and the leader does it alone.

mod collect;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use outrider_artifact::Digest;
use outrider_events::queue::{Position, Queue, QueueError};
use outrider_events::{Entry, Lane, Mark, Progress};
use outrider_graph::{Batch, GraphError};
use outrider_raft::Consensus;
use prometheus_client::metrics::counter::Counter;
use serde_json::{Value, json};

use crate::events::Events;
use crate::graph::{GraphService, Trouble};
use collect::{Collected, collect};

/// What it is called where the queue's readers are shown.
pub(crate) const NAME: &str = "graph";
/// Events in one batch, about: an entry is never taken apart. A Neo4j wants small ones.
const EVENTS_MAX: usize = 1_024;
const EVENTS_MAX_NEO4J: usize = 256;
/// Entries that are read at once.
const ENTRIES_MAX: usize = 64;
/// Before the queue is read again that had nothing, at first; doubles up to the other.
const IDLE_MIN: Duration = Duration::from_millis(50);
const IDLE_MAX: Duration = Duration::from_millis(400);
/// After something failed, or while another node reads.
const PAUSE: Duration = Duration::from_secs(1);
/// For one read.
const READ_TIME_MAX: Duration = Duration::from_secs(10);
/// How often it is looked whether a queue with nothing new still has what was read.
const LOOK_INTERVAL: Duration = Duration::from_secs(30);

/// Why a step was not made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConsumeError {
    /// The queue.
    #[error("the queue is not read: {0}")]
    Queue(String),
    /// The graph.
    #[error("the graph does not take events: {0}")]
    Graph(String),
}

/// What is counted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) batches: Counter,
    pub(crate) events: Counter,
    pub(crate) repeated: Counter,
    pub(crate) refused: Counter,
    pub(crate) silent: Counter,
    pub(crate) unreadable: Counter,
    pub(crate) missed: Counter,
}

/// How it stands.
#[derive(Clone, Debug, Default)]
pub(crate) struct Status {
    /// Why nothing is read now, and since when.
    pub(crate) failure: Option<(String, Instant)>,
    /// Another node reads for all.
    pub(crate) stands_by: bool,
}

/// What is told of what was applied, after it was.
pub(crate) trait Listener: Send + Sync + 'static {
    /// These contents have new dependants.
    fn applied(&self, contents: BTreeSet<Digest>) -> impl Future<Output = ()> + Send;
    /// These edges were asked for these contents.
    fn asked(&self, asked: BTreeMap<u64, BTreeSet<Digest>>) -> impl Future<Output = ()> + Send;
}

/// The reader, as it is seen from outside.
#[derive(Debug, Default)]
pub(crate) struct Monitor {
    status: Mutex<Status>,
    pub(crate) counts: Counts,
}

impl Monitor {
    pub(crate) fn status(&self) -> Status {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, error: &ConsumeError) {
        let mut status = self.lock();
        if status.failure.is_none() {
            tracing::warn!(%error, "events do not get into the graph");
        }
        let since = status.failure.as_ref().map_or_else(Instant::now, |(_, since)| *since);
        status.failure = Some((error.to_string(), since));
    }

    fn works(&self) {
        if let Some((_, since)) = self.lock().failure.take() {
            tracing::info!(after = ?since.elapsed(), "events get into the graph again");
        }
    }

    /// What the status of the cluster shows.
    pub(crate) fn json(&self) -> Value {
        let Status { failure, stands_by } = self.status();
        json!({
            "stands_by": stands_by,
            "failure": failure.as_ref().map(|(reason, _)| reason),
            "failing_s": failure.as_ref().map(|(_, since)| since.elapsed().as_secs_f64()),
            "batches": self.counts.batches.get(),
            "events": self.counts.events.get(),
            "repeated": self.counts.repeated.get(),
            "refused": self.counts.refused.get(),
            "silent": self.counts.silent.get(),
            "unreadable": self.counts.unreadable.get(),
            "missed": self.counts.missed.get(),
        })
    }
}

/// Starts to read, on the present runtime, for as long as it runs.
pub(crate) fn start<L: Listener>(
    events: Arc<Events>,
    graph: Arc<GraphService>,
    consensus: Arc<Consensus>,
    monitor: Arc<Monitor>,
    listener: Arc<L>,
) -> tokio::task::JoinHandle<()> {
    let queue = Arc::clone(events.queue());
    let shared = queue.name() != "embedded" && graph.store_name() == "neo4j";
    let may_read = move || {
        let status = consensus.status();
        !shared || status.leader == Some(status.id)
    };
    let reader = Reader::new(queue, graph, monitor, listener);
    tokio::spawn(reader.run(may_read, move |position| events.consumed(NAME, position.clone())))
}

fn made_anew(read_to: &Position) -> ConsumeError {
    ConsumeError::Queue(format!(
        "it was read to {read_to}, and ends before that: it was made anew, or is another one; give it another name"
    ))
}

pub(crate) struct Reader<L> {
    queue: Arc<dyn Queue>,
    graph: Arc<GraphService>,
    monitor: Arc<Monitor>,
    listener: Arc<L>,
    source: String,
    /// Of one batch: at most so many, and how many now, which are fewer after one that the store did not take.
    events_limit: usize,
    events_max: usize,
    /// When it was looked last whether the queue still has what was read of it.
    looked: Option<Instant>,
    /// As it is stored; nothing when that has to be asked for.
    progress: Option<Progress>,
    /// What was read behind it.
    entries: VecDeque<(Position, Entry)>,
}

impl<L: Listener> Reader<L> {
    pub(crate) fn new(
        queue: Arc<dyn Queue>,
        graph: Arc<GraphService>,
        monitor: Arc<Monitor>,
        listener: Arc<L>,
    ) -> Self {
        let identity = queue.identity().into_iter().map(|byte| format!("{byte:02x}"));
        let source = format!("events:{}", identity.collect::<String>());
        let events_limit = match graph.store_name() {
            "neo4j" => EVENTS_MAX_NEO4J,
            _ => EVENTS_MAX,
        };
        let (progress, entries) = (None, VecDeque::new());
        Self {
            queue,
            graph,
            monitor,
            listener,
            source,
            events_limit,
            events_max: events_limit,
            looked: None,
            progress,
            entries,
        }
    }

    async fn run(mut self, may_read: impl Fn() -> bool, told: impl Fn(&Position)) {
        let mut idle = IDLE_MIN;
        loop {
            let may = may_read();
            self.monitor.lock().stands_by = !may;
            if !may {
                self.forget();
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            match self.step().await {
                Ok(true) => idle = IDLE_MIN,
                Ok(false) => {
                    tokio::time::sleep(idle).await;
                    idle = (idle * 2).min(IDLE_MAX);
                }
                Err(error) => {
                    self.monitor.failed(&error);
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            }
            self.monitor.works();
            if let Some(progress) = &self.progress {
                told(&progress.position);
            }
        }
    }

    /// What is stored has to be asked for.
    fn forget(&mut self) {
        self.progress = None;
        self.entries.clear();
    }

    /// Takes in what there is, one batch at the most. False when there was nothing.
    pub(crate) async fn step(&mut self) -> Result<bool, ConsumeError> {
        let mut progress = match &self.progress {
            Some(progress) => progress.clone(),
            None => {
                self.entries.clear();
                let progress = self.stored().await?;
                self.progress.insert(progress).clone()
            }
        };
        if self.entries.is_empty() && !self.read(&mut progress).await? {
            return Ok(false);
        }
        let (mut entries, source) = (std::mem::take(&mut self.entries), self.source.clone());
        let events_max = self.events_max;
        // Hashing and parsing take milliseconds.
        let work = move || {
            let collected = collect(&source, &mut progress, &mut entries, events_max);
            (collected, progress, entries)
        };
        let done = tokio::task::spawn_blocking(work).await;
        let (collected, progress, entries) =
            done.map_err(|error| ConsumeError::Graph(error.to_string()))?;
        let collected = collected.map_err(ConsumeError::Queue)?;
        let counts = &self.monitor.counts;
        let Collected { batch, asked, events, repeated, refused, silent } = collected;
        let contents = batch.found.iter().flat_map(|found| &found.contents);
        let contents = contents.filter(|content| content.kind.is_content());
        let contents: BTreeSet<_> = contents.map(|content| content.digest).collect();
        match self.apply(batch).await {
            Ok(true) => {}
            Ok(false) => {
                // Somebody else was faster, or an answer was lost: what is stored is what counts.
                self.forget();
                return Ok(true);
            }
            Err(trouble) => {
                // It may have been applied. If it was too much for the time that the store has for one, the next is less.
                self.events_max = (self.events_max / 2).max(1);
                self.forget();
                return Err(ConsumeError::Graph(trouble.to_string()));
            }
        }
        self.events_max = (self.events_max * 2).min(self.events_limit);
        counts.batches.inc();
        counts.events.inc_by(events);
        counts.repeated.inc_by(repeated);
        counts.refused.inc_by(refused);
        counts.silent.inc_by(silent);
        (self.progress, self.entries) = (Some(progress), entries);
        if !contents.is_empty() {
            self.listener.applied(contents).await;
        }
        if !asked.is_empty() {
            self.listener.asked(asked).await;
        }
        Ok(true)
    }

    async fn apply(&self, batch: Batch) -> Result<bool, Trouble> {
        let (position, marks) = (batch.position.clone(), batch.marks.clone());
        match self.graph.apply(batch).await {
            Err(Trouble::Graph(GraphError::Batch(error))) => {
                // It was checked when it was made; what is wrong with it must not be in the way for good.
                tracing::error!(%error, "a batch of events is left out of the graph");
                self.monitor.counts.refused.inc();
                let empty = Batch { position, marks, ..Batch::default() };
                Ok(!self.graph.apply(empty).await?.repeated)
            }
            other => Ok(!other?.repeated),
        }
    }

    async fn stored(&self) -> Result<Progress, ConsumeError> {
        let stored = self.graph.progress(self.source.clone()).await;
        let stored = stored.map_err(|trouble| ConsumeError::Graph(trouble.to_string()))?;
        let marks = stored.marks.iter().filter_map(|mark| {
            let lane = Lane::ALL.into_iter().find(|lane| *lane as u8 == mark.lane)?;
            Some((mark.edge, lane, Mark { epoch: mark.epoch, through: mark.through }))
        });
        let position = stored.last.map_or_else(Position::default, Position::of);
        Ok(Progress { position, marks: marks.collect() })
    }

    /// Reads entries. False when there are none.
    async fn read(&mut self, progress: &mut Progress) -> Result<bool, ConsumeError> {
        let mut entries_max = ENTRIES_MAX;
        loop {
            let read = self.queue.read(progress.position.clone(), entries_max);
            let page = match tokio::time::timeout(READ_TIME_MAX, read).await {
                Ok(Ok(page)) => page,
                Ok(Err(QueueError::Entry { .. })) if entries_max > 1 => {
                    // What stands before it is readable.
                    entries_max = 1;
                    continue;
                }
                Ok(Err(QueueError::Entry { position, reason })) => {
                    tracing::error!(%position, reason, "an entry of the queue is left out of the graph");
                    self.monitor.counts.unreadable.inc();
                    self.skip(progress, position).await?;
                    continue;
                }
                Ok(Err(QueueError::Position(_))) => return Err(made_anew(&progress.position)),
                Ok(Err(error)) => return Err(ConsumeError::Queue(error.to_string())),
                Err(_) => {
                    let why = format!("no answer within {READ_TIME_MAX:?}");
                    return Err(ConsumeError::Queue(why));
                }
            };
            if page.missed {
                tracing::error!(after = %progress.position, "the queue has forgotten events that the graph lacks");
                self.monitor.counts.missed.inc();
            }
            if page.entries.is_empty() {
                self.look_at_end(&progress.position).await?;
            }
            self.entries.extend(page.entries);
            return Ok(!self.entries.is_empty());
        }
    }

    /// Where there is nothing to read, now and then: whether the queue still ends where it was read to. One that was made
    /// anew has nothing for long, and then what was never read of it looks as if it had been.
    async fn look_at_end(&mut self, read_to: &Position) -> Result<(), ConsumeError> {
        if self.looked.is_some_and(|looked| looked.elapsed() < LOOK_INTERVAL) {
            return Ok(());
        }
        let extent = tokio::time::timeout(READ_TIME_MAX, self.queue.extent()).await;
        let extent = extent
            .map_err(|_| ConsumeError::Queue(format!("no answer within {READ_TIME_MAX:?}")))?;
        let end = extent.map_err(|error| ConsumeError::Queue(error.to_string()))?.end;
        if end.number() < read_to.number() {
            return Err(made_anew(read_to));
        }
        self.looked = Some(Instant::now());
        Ok(())
    }

    /// Stores that it is behind an entry that cannot be read.
    async fn skip(&mut self, progress: &mut Progress, to: Position) -> Result<(), ConsumeError> {
        let (Some(last), after) = (to.number(), progress.position.number()) else {
            return Err(ConsumeError::Queue(format!("{to} is no position")));
        };
        let begin = outrider_graph::Begin::After(after);
        let position = outrider_graph::Position { source: self.source.clone(), begin, last };
        let batch = Batch { position: Some(position), ..Batch::default() };
        match self.apply(batch).await {
            Ok(true) => {
                progress.position = to;
                self.progress = Some(progress.clone());
                Ok(())
            }
            Ok(false) => {
                self.forget();
                Err(ConsumeError::Graph("somebody else reads the queue too".to_owned()))
            }
            Err(trouble) => {
                self.forget();
                Err(ConsumeError::Graph(trouble.to_string()))
            }
        }
    }
}
