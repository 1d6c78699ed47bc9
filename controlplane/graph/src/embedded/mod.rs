//! The store that needs nothing else: a redb file. Reads see one committed state and never wait for the writer.
//!
//! - [`tables`]: what is stored under which key.
//! - [`upgrade`]: files of earlier layouts.
//! - [`write`]: applying a batch.
//! - [`read`]: the queries.

mod read;
mod tables;
mod upgrade;
mod write;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use outrider_artifact::Digest;
use redb::{Database, ReadableDatabase as _};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::batch::Batch;
use crate::query::{Answer, Asked, DEPENDANTS_ASKED_MAX};
use crate::store::{Applied, Graph, GraphError, Pending, Progress, Stats};
use tables::Fault;

/// Queries that are answered at a time; more wait.
const READS_MAX: usize = 8;

/// A graph in a file of its own.
pub struct Embedded {
    file: Arc<File>,
    writer: Arc<Semaphore>,
    readers: Arc<Semaphore>,
}

struct File {
    path: PathBuf,
    cache_bytes: usize,
    /// None after a failure of the disk, until it is opened again.
    database: Mutex<Option<Arc<Database>>>,
}

impl Embedded {
    /// A graph in this file, which is opened or made when it is first used. `cache_bytes` of its pages are kept
    /// in memory.
    pub fn new(path: &Path, cache_bytes: usize) -> Self {
        let file = File { path: path.to_owned(), cache_bytes, database: Mutex::new(None) };
        Self {
            file: Arc::new(file),
            writer: Arc::new(Semaphore::new(1)),
            readers: Arc::new(Semaphore::new(READS_MAX)),
        }
    }

    /// Opens or makes the file now. Blocks.
    ///
    /// # Errors
    /// [`GraphError::Unavailable`], [`GraphError::Damaged`]
    pub fn open(path: &Path, cache_bytes: usize) -> Result<Self, GraphError> {
        let embedded = Self::new(path, cache_bytes);
        embedded.file.database()?;
        Ok(embedded)
    }

    fn work<T: Send + 'static>(
        &self,
        places: &Arc<Semaphore>,
        work: impl FnOnce(&Database) -> Result<T, Fault> + Send + 'static,
    ) -> Pending<'_, T> {
        let (file, places) = (Arc::clone(&self.file), Arc::clone(places));
        Box::pin(async move {
            let stopped = |_| GraphError::Unavailable("the process ends".to_owned());
            let place: OwnedSemaphorePermit = places.acquire_owned().await.map_err(stopped)?;
            let done = tokio::task::spawn_blocking(move || {
                let _place = place;
                file.with(work)
            });
            done.await.map_err(|error| GraphError::Unavailable(error.to_string()))?
        })
    }
}

impl File {
    fn database(&self) -> Result<Arc<Database>, GraphError> {
        let mut slot = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(database) = &*slot {
            return Ok(Arc::clone(database));
        }
        let unavailable = |error: &dyn std::fmt::Display| {
            GraphError::Unavailable(format!("{}: {error}", self.path.display()))
        };
        let database = Database::builder()
            .set_cache_size(self.cache_bytes)
            .create(&self.path)
            .map_err(|error| unavailable(&error))?;
        tables::prepare(&database).map_err(|fault| match fault {
            Fault::Disk(reason) => unavailable(&reason),
            Fault::Refused(error) => error,
        })?;
        let database = Arc::new(database);
        *slot = Some(Arc::clone(&database));
        Ok(database)
    }

    fn with<T>(&self, work: impl FnOnce(&Database) -> Result<T, Fault>) -> Result<T, GraphError> {
        let database = self.database()?;
        work(&database).map_err(|fault| match fault {
            Fault::Refused(error) => error,
            Fault::Disk(reason) => {
                // Opened again by the next one; a query that runs keeps its own until then.
                *self.database.lock().unwrap_or_else(PoisonError::into_inner) = None;
                GraphError::Unavailable(format!("{}: {reason}", self.path.display()))
            }
        })
    }
}

impl Graph for Embedded {
    fn apply(&self, batch: Batch) -> Pending<'_, Applied> {
        if let Err(error) = batch.check() {
            return Box::pin(async move { Err(error.into()) });
        }
        self.work(&self.writer, move |database| write::apply(database, &batch))
    }

    fn ask(&self, asked: Asked) -> Pending<'_, Answer> {
        self.work(&self.readers, move |database| {
            read::Reader::new(&database.begin_read()?)?.answer(&asked)
        })
    }

    fn stats(&self) -> Pending<'_, Stats> {
        self.work(&self.readers, |database| tables::stats(&database.begin_read()?))
    }

    fn progress(&self, source: String) -> Pending<'_, Progress> {
        self.work(&self.readers, move |database| tables::progress(&database.begin_read()?, &source))
    }

    fn dependants(&self, mut contents: Vec<Digest>) -> Pending<'_, Vec<u64>> {
        contents.truncate(DEPENDANTS_ASKED_MAX);
        self.work(&self.readers, move |database| {
            tables::dependants(&database.begin_read()?, &contents)
        })
    }
}
