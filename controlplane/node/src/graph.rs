//! The dependency graph of a node: the configured store, how long it is waited for, and how it is. A store that
//! does not answer delays nobody but who asks it, and them for a bounded time.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use outrider_artifact::Digest;
use outrider_graph::neo4j::Options;
use outrider_graph::{
    Answer, Applied, Asked, Batch, Embedded, Graph, GraphError, Neo4j, Progress, Stats,
};
use prometheus_client::metrics::counter::Counter;
use tokio::sync::Semaphore;

use crate::config::{GraphSection, GraphStore};

/// Batches that are applied or wait for it.
const BATCHES_MAX: usize = 16;
/// Queries that are answered or wait for it.
const QUERIES_MAX: usize = 64;
/// The longest file with a password.
const PASSWORD_FILE_BYTES_MAX: u64 = 4096;
/// After a failure of the store nothing is asked of it for so long.
const PAUSE: Duration = Duration::from_secs(1);

/// Why the graph did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// The store, or what it was asked for.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// Too much waits for it already.
    #[error("too many wait for the graph")]
    Busy,
}

/// What is counted.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Manifests that were applied, repeated ones too.
    pub(crate) manifests: Counter,
    /// Batches that had been applied before.
    pub(crate) repeated: Counter,
    /// Accesses to what is not in the graph.
    pub(crate) unknown: Counter,
    /// Queries that were answered.
    pub(crate) queries: Counter,
    /// Failures of the store.
    pub(crate) failures: Counter,
}

/// How the store is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// Why it does not answer, and since when, in milliseconds since 1970.
    pub failure: Option<(String, u64)>,
}

struct Failure {
    reason: String,
    since_unix_ms: u64,
    last: Instant,
}

/// The graph of a node.
pub struct GraphService {
    store: Arc<dyn Graph>,
    name: &'static str,
    time_max: Duration,
    pause: Duration,
    batches: Semaphore,
    queries: Semaphore,
    failure: Mutex<Option<Failure>>,
    pub(crate) counts: Counts,
}

/// The password in a file.
fn first_line(file: &Path) -> std::io::Result<String> {
    let named = |why: &dyn std::fmt::Display| {
        std::io::Error::other(format!("graph.password_file {}: {why}", file.display()))
    };
    let length = std::fs::metadata(file).map_err(|error| named(&error))?.len();
    if length > PASSWORD_FILE_BYTES_MAX {
        return Err(named(&"it is too long for a password"));
    }
    let text = std::fs::read_to_string(file).map_err(|error| named(&error))?;
    let line = text.lines().next().unwrap_or("");
    if line.is_empty() { Err(named(&"its first line is empty")) } else { Ok(line.to_owned()) }
}

impl GraphService {
    /// The graph that a configuration asks for. Nothing is opened and nobody is called before it is used, so
    /// that a store that is away does not keep a node from starting.
    ///
    /// # Errors
    /// When the file with the password cannot be read, or the address is none.
    pub fn new(section: &GraphSection, dir: &Path) -> std::io::Result<Self> {
        let (name, store): (_, Arc<dyn Graph>) = match section.store {
            GraphStore::Embedded => {
                let cache_bytes = usize::try_from(section.memory.0).unwrap_or(usize::MAX);
                ("embedded", Arc::new(Embedded::new(&dir.join("graph.redb"), cache_bytes)))
            }
            GraphStore::Neo4j => {
                let login = match (&section.user, &section.password_file) {
                    (Some(user), Some(file)) => Some((user.clone(), first_line(file)?)),
                    _ => None,
                };
                let options = Options {
                    url: section.url.clone().unwrap_or_default(),
                    ca: section.ca.clone(),
                    login,
                    database: section.database.clone(),
                    time_max: section.request_time.0,
                };
                let store = Neo4j::new(options).map_err(std::io::Error::other)?;
                ("neo4j", Arc::new(store))
            }
        };
        Ok(Self::with_store(store, name, section.request_time.0))
    }

    /// One with this store.
    pub(crate) fn with_store(
        store: Arc<dyn Graph>,
        name: &'static str,
        time_max: Duration,
    ) -> Self {
        Self {
            store,
            name,
            time_max,
            pause: PAUSE,
            batches: Semaphore::new(BATCHES_MAX),
            queries: Semaphore::new(QUERIES_MAX),
            failure: Mutex::new(None),
            counts: Counts::default(),
        }
    }

    /// The same, which asks a store that failed again at once.
    #[cfg(test)]
    pub(crate) fn without_pause(self) -> Self {
        Self { pause: Duration::ZERO, ..self }
    }

    /// The store, as it is configured.
    pub fn store_name(&self) -> &'static str {
        self.name
    }

    /// Applies a batch. What gets an error that is not the batch's own may be applied again: with a position it
    /// is counted once.
    ///
    /// # Errors
    /// [`Trouble`]
    pub async fn apply(&self, batch: Batch) -> Result<Applied, Trouble> {
        let manifests = batch.found.len() as u64;
        let applied = self.run(&self.batches, || self.store.apply(batch)).await?;
        self.counts.manifests.inc_by(manifests);
        self.counts.repeated.inc_by(u64::from(applied.repeated));
        self.counts.unknown.inc_by(applied.unknown);
        Ok(applied)
    }

    /// Answers a named query.
    ///
    /// # Errors
    /// [`Trouble`]
    pub async fn ask(&self, asked: Asked) -> Result<Answer, Trouble> {
        let answer = self.run(&self.queries, || self.store.ask(asked)).await?;
        self.counts.queries.inc();
        Ok(answer)
    }

    /// How large the graph is.
    ///
    /// # Errors
    /// [`Trouble`]
    pub async fn stats(&self) -> Result<Stats, Trouble> {
        self.run(&self.queries, || self.store.stats()).await
    }

    /// How far a source is.
    ///
    /// # Errors
    /// [`Trouble`]
    pub async fn progress(&self, source: String) -> Result<Progress, Trouble> {
        self.run(&self.queries, || self.store.progress(source)).await
    }

    /// How many versions depend on each of these contents, in this order.
    ///
    /// # Errors
    /// [`Trouble`]
    pub async fn dependants(&self, contents: Vec<Digest>) -> Result<Vec<u64>, Trouble> {
        self.run(&self.queries, || self.store.dependants(contents)).await
    }

    /// How the store was when it was last used.
    pub fn health(&self) -> Health {
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        let failure = failure.as_ref().map(|one| (one.reason.clone(), one.since_unix_ms));
        Health { failure }
    }

    async fn run<'a, T>(
        &'a self,
        places: &Semaphore,
        work: impl FnOnce() -> outrider_graph::Pending<'a, T>,
    ) -> Result<T, Trouble> {
        let _place = places.try_acquire().map_err(|_| Trouble::Busy)?;
        self.failed_just_now()?;
        let result = match tokio::time::timeout(self.time_max, work()).await {
            Ok(result) => result,
            Err(_) => Err(GraphError::Unavailable(format!("no answer for {:?}", self.time_max))),
        };
        match &result {
            Err(error @ (GraphError::Unavailable(_) | GraphError::Damaged(_))) => {
                self.failed(error)
            }
            _ => self.works(),
        }
        Ok(result?)
    }

    fn failed_just_now(&self) -> Result<(), GraphError> {
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        match &*failure {
            Some(failure) if failure.last.elapsed() < self.pause => {
                Err(GraphError::Unavailable(failure.reason.clone()))
            }
            _ => Ok(()),
        }
    }

    fn failed(&self, error: &GraphError) {
        self.counts.failures.inc();
        let reason = match error {
            GraphError::Unavailable(reason) => reason.clone(),
            other => other.to_string(),
        };
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        if failure.is_none() {
            tracing::warn!(store = self.name, reason, "the graph's store failed");
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        let since_unix_ms = failure.as_ref().map_or(now, |failure| failure.since_unix_ms);
        *failure = Some(Failure { reason, since_unix_ms, last: Instant::now() });
    }

    fn works(&self) {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        if failure.take().is_some() {
            tracing::info!(store = self.name, "the graph's store answers again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use outrider_graph::Pending;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    /// A store that is silent until it is told otherwise.
    #[derive(Default)]
    struct Silent {
        answers: AtomicBool,
        asked: AtomicUsize,
    }

    impl Silent {
        fn answer<T: Default + Send + 'static>(&self) -> Pending<'_, T> {
            self.asked.fetch_add(1, Ordering::SeqCst);
            let answers = self.answers.load(Ordering::SeqCst);
            Box::pin(async move {
                if !answers {
                    std::future::pending::<()>().await;
                }
                Ok(T::default())
            })
        }
    }

    impl Graph for Silent {
        fn apply(&self, _: Batch) -> Pending<'_, Applied> {
            self.answer()
        }

        fn ask(&self, _: Asked) -> Pending<'_, Answer> {
            self.answer()
        }

        fn stats(&self) -> Pending<'_, Stats> {
            self.answer()
        }

        fn progress(&self, _: String) -> Pending<'_, Progress> {
            self.answer()
        }

        fn dependants(&self, _: Vec<Digest>) -> Pending<'_, Vec<u64>> {
            self.answer()
        }
    }

    #[tokio::test]
    async fn a_silent_store_is_waited_for_once_and_then_left_alone() {
        let store = Arc::new(Silent::default());
        let service = GraphService::with_store(store.clone(), "silent", Duration::from_millis(10));
        assert_eq!(service.health().failure, None);
        let error = service.stats().await.unwrap_err().to_string();
        assert!(error.contains("no answer for 10ms"), "{error}");
        assert!(service.health().failure.is_some());
        for _ in 0..100 {
            let error = service.apply(Batch::default()).await.unwrap_err();
            assert!(matches!(error, Trouble::Graph(GraphError::Unavailable(_))), "{error}");
        }
        // The hundred were refused without it, unless this thread slept through the pause.
        let asked = store.asked.load(Ordering::SeqCst);
        assert!(asked < 100, "{asked}");

        store.answers.store(true, Ordering::SeqCst);
        while service.apply(Batch::default()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(service.health().failure, None);
    }

    #[tokio::test]
    async fn no_more_wait_than_there_are_places_for() {
        let store = Arc::new(Silent::default());
        let service = GraphService::with_store(store, "silent", Duration::from_secs(3600));
        let service = Arc::new(service);
        let mut waiting = tokio::task::JoinSet::new();
        for _ in 0..QUERIES_MAX {
            let service = Arc::clone(&service);
            waiting.spawn(async move { service.stats().await.is_ok() });
        }
        while service.queries.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        assert!(matches!(service.stats().await, Err(Trouble::Busy)));
        waiting.abort_all();
        while waiting.join_next().await.is_some() {}
        assert_eq!(service.queries.available_permits(), QUERIES_MAX);
    }
}
