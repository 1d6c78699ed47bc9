//! The thread that owns the file: takes what waits, answers questions from one snapshot, makes all
//! changes in one transaction, and answers those after its commit is on the disk.
//!
//! A failure of the disk is met thus: the file is opened again and the transaction made once more.
//! If that fails too, what was to be written is refused, except what is found in the file all the
//! same; then changes are refused for a second, so that a full disk does not stop questions.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::{Duration, Instant};

use outrider_shard::channel::Completer;
use redb::{Database, ReadTransaction, ReadableDatabase};

use super::command::{Command, Found};
use super::query::Query;
use super::recent::Generations;
use super::store::{Fault, Opener, Sizes, Tables, charged, open_error};
use super::{NamesError, NamesLimits, NamesMetrics};

/// The most requests that are taken at once. It bounds the length of a transaction.
pub(super) const BATCH_MAX: usize = 256;

/// How long after a failure of the disk it is not tried again.
pub(super) const DISK_RETRY_AFTER: Duration = Duration::from_secs(1);

/// Where an answer goes.
pub(super) enum Reply<T: Send> {
    /// To a task of a shard.
    Shard(Completer<T>),
    /// To a thread that is blocked.
    Thread(SyncSender<T>),
}

impl<T: Send> Reply<T> {
    pub(super) fn complete(self, answer: T) {
        match self {
            Self::Shard(completer) => completer.complete(answer),
            // Who asked may have gone.
            Self::Thread(sender) => drop(sender.try_send(answer)),
        }
    }
}

/// What waits in the queue.
pub(super) enum Job {
    Ask(Box<dyn Ask>),
    Change(Box<dyn Change>),
    /// Answer what came before, and end.
    Stop,
}

/// A question with the way to who asked.
pub(super) trait Ask: Send {
    /// Answers it. The reason, if the disk failed.
    fn answer(
        self: Box<Self>,
        snapshot: Result<&ReadTransaction, NamesError>,
        metrics: &NamesMetrics,
    ) -> Option<String>;
}

pub(super) struct Asked<Q: Query> {
    pub(super) query: Q,
    pub(super) reply: Reply<Result<Q::Answer, NamesError>>,
}

impl<Q: Query> Ask for Asked<Q> {
    fn answer(
        self: Box<Self>,
        snapshot: Result<&ReadTransaction, NamesError>,
        metrics: &NamesMetrics,
    ) -> Option<String> {
        let answer = snapshot
            .map_err(|error| Fault::Disk(error.to_string()))
            .and_then(|snapshot| self.query.answer(snapshot));
        let reason = match &answer {
            Err(Fault::Disk(reason)) => Some(reason.clone()),
            _ => None,
        };
        metrics.count(Q::KIND, outcome_of(&answer));
        self.reply.complete(answer.map_err(Fault::into_error));
        reason
    }
}

/// A change with the way to who wants it.
pub(super) trait Change: Send {
    /// Makes it within a transaction, and keeps what is to be answered.
    ///
    /// # Errors
    /// The reason, if the disk failed.
    fn apply(&mut self, tables: &mut Tables<'_>) -> Result<(), String>;

    /// After the commit failed: keeps the answer of what is in the file all the same.
    fn find(&mut self, snapshot: Option<&ReadTransaction>, reason: &str);

    /// It was not even tried: keeps that answer.
    fn give_up(&mut self, reason: &str);

    /// Answers.
    fn finish(self: Box<Self>, metrics: &NamesMetrics);
}

pub(super) struct Wanted<C: Command> {
    pub(super) command: C,
    pub(super) outcome: Option<Result<C::Outcome, Fault>>,
    pub(super) reply: Reply<Result<C::Outcome, NamesError>>,
}

impl<C: Command> Change for Wanted<C> {
    fn apply(&mut self, tables: &mut Tables<'_>) -> Result<(), String> {
        match self.command.apply(tables) {
            Err(Fault::Disk(reason)) => Err(reason),
            outcome => {
                self.outcome = Some(outcome);
                Ok(())
            }
        }
    }

    fn find(&mut self, snapshot: Option<&ReadTransaction>, reason: &str) {
        let found = snapshot.and_then(|snapshot| self.command.found(snapshot).ok());
        self.outcome = Some(match found {
            Some(Found::There(outcome)) => Ok(outcome),
            Some(Found::NotThere) => Err(Fault::Disk(reason.to_owned())),
            Some(Found::Unknown) | None => {
                Err(Fault::Refused(NamesError::Unsettled(reason.to_owned())))
            }
        });
    }

    fn give_up(&mut self, reason: &str) {
        self.outcome = Some(Err(Fault::Disk(reason.to_owned())));
    }

    fn finish(self: Box<Self>, metrics: &NamesMetrics) {
        let outcome = self.outcome.unwrap_or_else(|| Err(Fault::Disk("it was not reached".into())));
        metrics.count(C::KIND, outcome_of(&outcome));
        self.reply.complete(outcome.map_err(Fault::into_error));
    }
}

fn outcome_of<T>(outcome: &Result<T, Fault>) -> &'static str {
    match outcome {
        Ok(_) => "done",
        Err(Fault::Disk(_) | Fault::Refused(NamesError::Unsettled(_))) => "failed",
        Err(Fault::Refused(_)) => "refused",
    }
}

/// What the thread owns.
pub(super) struct Worker {
    /// None after a failure of the disk, until it could be opened again.
    pub(super) database: Option<Database>,
    pub(super) opener: Opener,
    pub(super) path: PathBuf,
    pub(super) limits: NamesLimits,
    pub(super) metrics: NamesMetrics,
    pub(super) generations: Arc<Generations>,
    /// [`DISK_RETRY_AFTER`], or less in tests.
    pub(super) disk_retry_after: Duration,
    /// Why the disk failed last, and until when changes are refused for it.
    pub(super) failed: Option<(String, Instant)>,
}

impl Worker {
    /// Serves until it is told to stop, or nobody is left who could ask.
    pub(super) fn run(mut self, jobs: &Receiver<Job>) {
        let (mut asks, mut changes) = (Vec::new(), Vec::new());
        let mut stopped = false;
        while !stopped && let Ok(first) = jobs.recv() {
            let waiting = std::iter::once(first).chain(jobs.try_iter()).take(BATCH_MAX);
            for job in waiting {
                match job {
                    Job::Ask(ask) => asks.push(ask),
                    Job::Change(change) => changes.push(change),
                    Job::Stop => {
                        stopped = true;
                        break;
                    }
                }
            }
            // Questions first: what was acknowledged before they came is committed, and those that
            // came together may be answered in any order.
            self.answer(&mut asks);
            self.make(&mut changes);
        }
        if let Some(database) = self.database.take()
            && let Err(error) = database.close()
        {
            tracing::warn!("{} was not closed cleanly: {error}", self.path.display());
        }
    }

    fn answer(&mut self, asks: &mut Vec<Box<dyn Ask>>) {
        if asks.is_empty() {
            return;
        }
        let mut reason = None;
        match self.database().and_then(|database| {
            database.begin_read().map_err(|error| NamesError::Storage(error.to_string()))
        }) {
            Ok(snapshot) => {
                for ask in asks.drain(..) {
                    reason = reason.or(ask.answer(Ok(&snapshot), &self.metrics));
                }
            }
            Err(error) => {
                for ask in asks.drain(..) {
                    ask.answer(Err(error.clone()), &self.metrics);
                }
                reason = self.database.is_some().then(|| error.to_string());
            }
        }
        if let Some(reason) = reason {
            self.reopen(&reason);
        }
    }

    fn make(&mut self, changes: &mut Vec<Box<dyn Change>>) {
        if changes.is_empty() {
            return;
        }
        let recently = match &self.failed {
            Some((reason, until)) if Instant::now() < *until => Some(reason.clone()),
            _ => None,
        };
        if let Some(reason) = recently {
            changes.iter_mut().for_each(|change| change.give_up(&reason));
        } else if let Err(reason) = self.commit_at_second_try(changes) {
            let snapshot = self.database.as_ref().and_then(|database| database.begin_read().ok());
            changes.iter_mut().for_each(|change| change.find(snapshot.as_ref(), &reason));
            // What was answered from the file before may not be what it says now.
            self.generations.bump_all();
        }
        for change in changes.drain(..) {
            change.finish(&self.metrics);
        }
    }

    /// Commits, after a failure once more. The reason, if both fail.
    fn commit_at_second_try(&mut self, changes: &mut [Box<dyn Change>]) -> Result<(), String> {
        self.failed = None;
        let Err(reason) = self.commit(changes) else { return Ok(()) };
        self.reopen(&reason);
        let Err(reason) = self.commit(changes) else { return Ok(()) };
        if self.database.is_some() {
            self.reopen(&reason);
        }
        self.failed = Some((reason.clone(), Instant::now() + self.disk_retry_after));
        Err(reason)
    }

    fn commit(&mut self, changes: &mut [Box<dyn Change>]) -> Result<(), String> {
        let start = Instant::now();
        let limits = self.limits.clone();
        let database = self.database().map_err(|error| error.to_string())?;
        let transaction = database.begin_write().map_err(|error| error.to_string())?;
        let done = {
            let mut tables = Tables::open(&transaction, &limits)
                .map_err(|fault| fault.into_error().to_string())?;
            for change in changes {
                change.apply(&mut tables)?;
            }
            tables.changes
        };
        transaction.commit().map_err(|error| error.to_string())?;
        // Before anybody is answered: who is, and asks again, must not get an older answer.
        self.generations.bump(done.repositories.iter().map(String::as_str));
        done.stored.publish(&self.limits.stored);
        self.metrics.commits.inc();
        self.metrics.commit_seconds.observe(start.elapsed().as_secs_f64());
        self.metrics.mirrored_forgotten.inc_by(done.mirrored_forgotten);
        self.metrics.events_dropped.inc_by(done.events_dropped);
        self.metrics.events_left_out.inc_by(done.events_left_out);
        if let Some(database) = &self.database
            && let Ok(snapshot) = database.begin_read()
            && let Ok(sizes) = Sizes::of(&snapshot)
        {
            self.metrics.show_sizes(sizes);
        }
        Ok(())
    }

    /// The database, opened again if it was lost and it is time.
    fn database(&mut self) -> Result<&Database, NamesError> {
        if self.database.is_none() {
            let reason = match &self.failed {
                Some((reason, until)) if Instant::now() < *until => Some(reason.clone()),
                _ => None,
            };
            match reason {
                Some(reason) => return Err(NamesError::Storage(reason)),
                None => self.reopen("it was not open"),
            }
        }
        self.database.as_ref().ok_or_else(|| {
            let reason = self.failed.as_ref().map(|(reason, _)| reason.clone());
            NamesError::Storage(reason.unwrap_or_default())
        })
    }

    /// Closes the file and opens it again, which goes back to its last commit.
    fn reopen(&mut self, reason: &str) {
        tracing::error!("{} failed and is opened again: {reason}", self.path.display());
        self.metrics.reopened.inc();
        self.database = None;
        match (self.opener)() {
            Ok(database) => {
                // A commit that failed may be there all the same.
                let snapshot = database.begin_read().ok();
                if let Some(totals) = snapshot.and_then(|snapshot| charged(&snapshot).ok()) {
                    self.limits.stored.load(&totals);
                }
                self.database = Some(database);
            }
            Err(error) => {
                let reason = open_error(&self.path, &error).to_string();
                tracing::error!("{reason}");
                self.failed = Some((reason, Instant::now() + self.disk_retry_after));
            }
        }
    }
}
