//! Tells the waiting tasks of one shard that something moved. Local to the shard: no atomics.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use hashbrown::HashMap;

/// A counter that tasks wait for. Each waiting task holds one waker here, however often it is polled.
#[derive(Default)]
pub(crate) struct Progress {
    generation: Cell<u64>,
    tickets: Cell<u64>,
    waiting: RefCell<HashMap<u64, Waker>>,
}

impl Progress {
    /// What [`Progress::past`] compares with. Read it before looking at the state that may move.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.get()
    }

    /// Wakes all who wait.
    pub(crate) fn notify(&self) {
        self.generation.set(self.generation.get() + 1);
        for (_, waker) in self.waiting.borrow_mut().drain() {
            waker.wake();
        }
    }

    /// Resolves once there was a [`Progress::notify`] after `generation` was read.
    pub(crate) fn past(&self, generation: u64) -> Past<'_> {
        let ticket = self.tickets.get();
        self.tickets.set(ticket + 1);
        Past { progress: self, generation, ticket }
    }
}

/// See [`Progress::past`].
pub(crate) struct Past<'a> {
    progress: &'a Progress,
    generation: u64,
    ticket: u64,
}

impl Future for Past<'_> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.progress.generation.get() != self.generation {
            return Poll::Ready(());
        }
        self.progress.waiting.borrow_mut().insert(self.ticket, context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Past<'_> {
    fn drop(&mut self) {
        self.progress.waiting.borrow_mut().remove(&self.ticket);
    }
}
