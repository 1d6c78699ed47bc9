//! The way of all receivers of a node into its queue: bounded, in order, one append at a time. What waits while one
//! is under way is the next one. A queue that fails is tried again and again; meanwhile the bound is reached, no
//! edge is read any more, and edges keep what is precious and drop the rest.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::consumer::Marks;
use crate::event::{Entry, Lane, Mark};
use crate::queue::{ENTRIES_MAX, Queue};

/// Entries that wait for the queue, of all edges.
pub const WAITING_MAX: usize = 256;
/// Events in one append, about.
const APPEND_EVENTS_MAX: usize = 16_384;
/// After an append that failed, at first; doubles up to the other.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// An append that takes longer has failed.
const APPEND_TIME_MAX: Duration = Duration::from_secs(30);

/// How the queue stands.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// Why the last append failed, and since when none worked.
    pub failure: Option<(String, Instant)>,
    /// Appends that failed.
    pub failures: u64,
    /// Entries that were appended.
    pub entries: u64,
    /// Events that were appended, by lane.
    pub events: [u64; 2],
    /// Events that were there already, by lane.
    pub duplicates: [u64; 2],
}

struct Job {
    entry: Entry,
    durable: mpsc::Sender<()>,
}

/// The way into the queue. Clones are the same.
#[derive(Clone)]
pub struct Intake {
    queue: Arc<dyn Queue>,
    jobs: mpsc::Sender<Job>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    status: Mutex<Status>,
    marks: Mutex<Marks>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl std::fmt::Debug for Intake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Intake").field("queue", &self.queue.name()).finish_non_exhaustive()
    }
}

impl Intake {
    /// Starts the task that appends, on the present runtime. It ends with the last clone.
    pub fn start(queue: Arc<dyn Queue>) -> Self {
        let (jobs, waiting) = mpsc::channel(WAITING_MAX);
        let shared = Arc::new(Shared { marks: Mutex::new(queue.marks()), ..Shared::default() });
        tokio::spawn(run(Arc::clone(&queue), waiting, Arc::clone(&shared)));
        Self { queue, jobs, shared }
    }

    /// The queue.
    pub fn queue(&self) -> &Arc<dyn Queue> {
        &self.queue
    }

    /// How it stands.
    pub fn status(&self) -> Status {
        lock(&self.shared.status).clone()
    }

    /// Entries that wait.
    pub fn waiting(&self) -> usize {
        self.jobs.max_capacity() - self.jobs.capacity()
    }

    /// What of an edge's events is in the queue, by lane.
    pub fn known(&self, edge: u64) -> [Mark; 2] {
        let marks = lock(&self.shared.marks);
        Lane::ALL.map(|lane| marks.get(edge, lane))
    }

    /// Has the entry appended; waits while too many wait. `durable` is told when it is.
    pub async fn put(&self, entry: Entry, durable: mpsc::Sender<()>) {
        // Only fails when the runtime ends.
        let _ = self.jobs.send(Job { entry, durable }).await;
    }
}

async fn run(queue: Arc<dyn Queue>, mut waiting: mpsc::Receiver<Job>, shared: Arc<Shared>) {
    while let Some(first) = waiting.recv().await {
        let mut events = first.entry.batch.events.len();
        let mut jobs = vec![first];
        while jobs.len() < ENTRIES_MAX && events < APPEND_EVENTS_MAX {
            let Ok(job) = waiting.try_recv() else { break };
            events += job.entry.batch.events.len();
            jobs.push(job);
        }
        // What an edge sent on an earlier connection may have been appended since.
        let mut marks = lock(&shared.marks).clone();
        let mut duplicates = [0; 2];
        let mut entries = Vec::with_capacity(jobs.len());
        let mut waiting_for = Vec::with_capacity(jobs.len());
        for Job { mut entry, durable } in jobs {
            duplicates[entry.batch.lane as usize] += marks.take(&mut entry);
            if !entry.batch.events.is_empty() {
                entries.push(entry);
            }
            waiting_for.push(durable);
        }
        let entries = Arc::new(entries);
        if !entries.is_empty() {
            append(&*queue, &entries, &shared).await;
        }
        *lock(&shared.marks) = marks;
        {
            let mut status = lock(&shared.status);
            status.entries += entries.len() as u64;
            for entry in entries.iter() {
                status.events[entry.batch.lane as usize] += entry.batch.events.len() as u64;
            }
            status.duplicates.iter_mut().zip(duplicates).for_each(|(all, more)| *all += more);
        }
        for durable in waiting_for {
            // Its channel has room for all that one connection has waiting; it may be gone.
            let _ = durable.try_send(());
        }
    }
}

/// Until it worked.
async fn append(queue: &dyn Queue, entries: &Arc<Vec<Entry>>, shared: &Shared) {
    let mut pause = PAUSE_MIN;
    loop {
        let result = tokio::time::timeout(APPEND_TIME_MAX, queue.append(Arc::clone(entries))).await;
        let error = match result {
            Ok(Ok(())) => break,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {APPEND_TIME_MAX:?}"),
        };
        {
            let mut status = lock(&shared.status);
            if status.failure.is_none() {
                tracing::error!(queue = queue.name(), error, "the queue of events fails");
            }
            let since = status.failure.as_ref().map_or_else(Instant::now, |(_, since)| *since);
            status.failure = Some((error, since));
            status.failures += 1;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
    if let Some((_, since)) = lock(&shared.status).failure.take() {
        tracing::info!(queue = queue.name(), after = ?since.elapsed(), "the queue of events works again");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::event::Batch;
    use crate::event::tests::upload;
    use crate::queue::{Extent, Page, Pending, Position, QueueError};

    #[derive(Default)]
    struct Flaky {
        down: AtomicBool,
        appended: Mutex<Vec<Vec<Entry>>>,
    }

    impl Queue for Flaky {
        fn name(&self) -> &'static str {
            "flaky"
        }
        fn identity(&self) -> [u8; 16] {
            [1; 16]
        }
        fn marks(&self) -> Marks {
            Marks::default()
        }
        fn append(&self, entries: Arc<Vec<Entry>>) -> Pending<'_, ()> {
            Box::pin(async move {
                tokio::task::yield_now().await;
                if self.down.load(Ordering::SeqCst) {
                    return Err(QueueError::Unavailable("down".into()));
                }
                lock(&self.appended).push(entries.to_vec());
                Ok(())
            })
        }
        fn read(&self, _: Position, _: usize) -> Pending<'_, Page> {
            Box::pin(async { Ok(Page::default()) })
        }
        fn extent(&self) -> Pending<'_, Extent> {
            Box::pin(async { Ok(Extent::default()) })
        }
    }

    fn entry(from: u64, to: u64) -> Entry {
        let events = (from..=to).map(upload).collect();
        Entry { edge: 1, batch: Batch { lane: Lane::Uploads, epoch: 1, events } }
    }

    #[tokio::test(start_paused = true)]
    async fn a_queue_that_is_down_holds_everybody_up_and_loses_nothing() {
        let queue = Arc::new(Flaky { down: true.into(), ..Flaky::default() });
        let intake = Intake::start(Arc::clone(&queue) as Arc<dyn Queue>);
        let (durable, mut told) = mpsc::channel(1_024);
        let all = 2 * WAITING_MAX as u64;
        let putting = {
            let intake = intake.clone();
            tokio::spawn(async move {
                for number in 1..=all {
                    intake.put(entry(number, number), durable.clone()).await;
                }
            })
        };
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(!putting.is_finished() && told.try_recv().is_err());
        assert_eq!(intake.waiting(), WAITING_MAX);
        let status = intake.status();
        assert_eq!(status.failure.unwrap().0, "down");
        assert!(status.failures > 5);
        assert_eq!(intake.known(1)[0], Mark::default());
        queue.down.store(false, Ordering::SeqCst);
        putting.await.unwrap();
        for _ in 0..all {
            told.recv().await.unwrap();
        }
        assert_eq!(intake.known(1)[0], Mark { epoch: 1, through: all });
        let status = intake.status();
        assert!(status.failure.is_none());
        assert_eq!(status.events, [all, 0]);
        let appended = lock(&queue.appended).clone();
        assert!(appended.len() < WAITING_MAX, "what waited went together: {}", appended.len());
        assert_eq!(appended.concat(), (1..=all).map(|n| entry(n, n)).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn what_comes_again_is_not_appended_again_and_is_acknowledged() {
        let queue = Arc::new(Flaky::default());
        let intake = Intake::start(Arc::clone(&queue) as Arc<dyn Queue>);
        let (durable, mut told) = mpsc::channel(8);
        for (from, to) in [(1, 4), (3, 6), (1, 6)] {
            intake.put(entry(from, to), durable.clone()).await;
            told.recv().await.unwrap();
        }
        assert_eq!(lock(&queue.appended).concat(), [entry(1, 4), entry(5, 6)]);
        assert_eq!(intake.status().duplicates, [8, 0]);
    }
}
