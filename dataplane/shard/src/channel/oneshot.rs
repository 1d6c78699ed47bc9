//! One value into a shard. It is made for answers, one per request to another thread, and takes an
//! uncontended lock on each side.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::ShardHandle;

/// A channel of one value into `shard`. One allocation.
pub fn oneshot<T: Send>(shard: &ShardHandle) -> (Completer<T>, Completion<T>) {
    let waiting = State::Waiting { taker: None, giver: None };
    let slot = Arc::new(Slot { state: Mutex::new(waiting), shard: shard.clone() });
    (Completer { slot: slot.clone() }, Completion { slot })
}

struct Slot<T> {
    state: Mutex<State<T>>,
    shard: ShardHandle,
}

enum State<T> {
    /// Nothing was given yet; who is to be woken when something is, and when nobody wants it any more.
    Waiting {
        taker: Option<Waker>,
        giver: Option<Waker>,
    },
    Given(T),
    /// The value was taken, or one of the ends is gone.
    Over,
}

impl<T> Slot<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was there is dropped by the caller, outside of the lock.
    fn replace(&self, state: State<T>) -> State<T> {
        std::mem::replace(&mut *self.lock(), state)
    }
}

/// The end that gives the value, on any thread.
pub struct Completer<T> {
    slot: Arc<Slot<T>>,
}

impl<T: Send> Completer<T> {
    /// Gives the value. It is dropped when nobody waits for it any more.
    pub fn complete(self, value: T) {
        let mut state = self.slot.lock();
        let waker = match &mut *state {
            State::Waiting { taker, .. } => taker.take(),
            State::Given(_) | State::Over => return,
        };
        *state = State::Given(value);
        drop(state);
        if let Some(waker) = waker {
            self.slot.shard.wake(waker);
        }
    }
}

impl<T> Completer<T> {
    /// Whether nobody waits for the value any more.
    pub fn is_closed(&self) -> bool {
        matches!(&*self.slot.lock(), State::Over)
    }

    /// Ready when nobody waits for the value any more.
    pub fn poll_closed(&self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut *self.slot.lock() {
            State::Waiting { giver: Some(known), .. } => known.clone_from(cx.waker()),
            State::Waiting { giver, .. } => *giver = Some(cx.waker().clone()),
            State::Given(_) | State::Over => return Poll::Ready(()),
        }
        Poll::Pending
    }
}

impl<T> Drop for Completer<T> {
    fn drop(&mut self) {
        let mut state = self.slot.lock();
        if let State::Waiting { taker, .. } = &mut *state {
            let waker = taker.take();
            *state = State::Over;
            drop(state);
            if let Some(waker) = waker {
                self.slot.shard.wake(waker);
            }
        }
    }
}

impl<T> fmt::Debug for Completer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Completer")
    }
}

/// The end that waits for the value: `None` when the [`Completer`] was dropped without giving one,
/// and from then on.
pub struct Completion<T> {
    slot: Arc<Slot<T>>,
}

impl<T: Send> Future for Completion<T> {
    type Output = Option<T>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let mut state = self.slot.lock();
        match &mut *state {
            State::Waiting { taker, .. } => {
                match taker {
                    Some(known) => known.clone_from(cx.waker()),
                    none => *none = Some(cx.waker().clone()),
                }
                Poll::Pending
            }
            State::Given(_) | State::Over => match std::mem::replace(&mut *state, State::Over) {
                State::Given(value) => Poll::Ready(Some(value)),
                State::Waiting { .. } | State::Over => Poll::Ready(None),
            },
        }
    }
}

impl<T> Drop for Completion<T> {
    fn drop(&mut self) {
        if let State::Waiting { giver: Some(giver), .. } = self.slot.replace(State::Over) {
            giver.wake();
        }
    }
}

impl<T> fmt::Debug for Completion<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Completion")
    }
}
