//! Ending without cutting anyone off.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use outrider_shard::time;

/// The switch that ends every listener and connection that was served with a clone of it: listeners
/// stop accepting, HTTP/1 connections close after the response that they are at (with
/// `connection: close`), HTTP/2 connections send GOAWAY and finish their streams.
#[derive(Clone, Default)]
pub struct Drain {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    started: AtomicBool,
    connections: AtomicUsize,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    /// Who is to be woken when it starts, by place; and the free places.
    watchers: Vec<Option<Waker>>,
    free: Vec<usize>,
    /// Who waits for the last connection.
    last: Vec<Waker>,
}

impl Drain {
    /// A switch that is off.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts the end. May be called on any thread, and more than once.
    pub fn start(&self) {
        self.shared.started.store(true, Ordering::SeqCst);
        let wakers: Vec<Waker> = {
            let mut waiting = self.shared.lock();
            waiting.watchers.iter_mut().filter_map(Option::take).collect()
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Whether it was started.
    pub fn is_started(&self) -> bool {
        self.shared.started.load(Ordering::Acquire)
    }

    /// How many connections there are.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Acquire)
    }

    /// Waits for at most `time_max` until every connection has ended, and gives how many have not.
    /// To be awaited on a shard.
    pub async fn wait(&self, time_max: Duration) -> usize {
        let ended = std::future::poll_fn(|cx| {
            if self.connections() == 0 {
                return Poll::Ready(());
            }
            self.shared.lock().last.push(cx.waker().clone());
            if self.connections() == 0 { Poll::Ready(()) } else { Poll::Pending }
        });
        match time::timeout(time_max, ended).await {
            Ok(()) => 0,
            Err(time::Elapsed) => self.connections(),
        }
    }

    /// A future that is ready when the drain starts.
    pub(crate) fn watch(&self) -> Watcher {
        Watcher { shared: self.shared.clone(), place: None }
    }

    /// Counts a connection for as long as the guard lives.
    pub(crate) fn count_connection(&self) -> Connected {
        self.shared.connections.fetch_add(1, Ordering::AcqRel);
        Connected { shared: self.shared.clone() }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Drain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Drain")
            .field("started", &self.is_started())
            .field("connections", &self.connections())
            .finish()
    }
}

/// Ready when the drain starts. It is polled by one task, and costs an atomic load from the second
/// poll on.
pub(crate) struct Watcher {
    shared: Arc<Shared>,
    place: Option<usize>,
}

impl Future for Watcher {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        if this.place.is_none() {
            let mut waiting = this.shared.lock();
            let waker = Some(cx.waker().clone());
            this.place = Some(match waiting.free.pop() {
                Some(place) => {
                    waiting.watchers[place] = waker;
                    place
                }
                None => {
                    waiting.watchers.push(waker);
                    waiting.watchers.len() - 1
                }
            });
        }
        // After the place was taken: who starts it sets the flag first and then looks at the places.
        if this.shared.started.load(Ordering::SeqCst) { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            let mut waiting = self.shared.lock();
            let waker = waiting.watchers[place].take();
            waiting.free.push(place);
            drop(waiting);
            drop(waker);
        }
    }
}

/// A connection that counts.
pub(crate) struct Connected {
    shared: Arc<Shared>,
}

impl Drop for Connected {
    fn drop(&mut self) {
        if self.shared.connections.fetch_sub(1, Ordering::AcqRel) == 1 {
            let last = std::mem::take(&mut self.shared.lock().last);
            last.into_iter().for_each(Waker::wake);
        }
    }
}
