//! What a future of the cache waits on: a place for one value and one waker. No runtime.

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// The engine's end and the future's end share one of these.
pub(crate) struct Waiter<T> {
    state: RefCell<(Option<T>, Option<Waker>)>,
}

impl<T> Waiter<T> {
    pub(crate) fn new() -> Rc<Self> {
        Rc::new(Self { state: RefCell::new((None, None)) })
    }

    /// Leaves the value; the waker (if someone polls already) is to be woken after all borrows of
    /// the engine have ended.
    pub(crate) fn complete(&self, value: T, wakers: &mut Vec<Waker>) {
        let mut state = self.state.borrow_mut();
        state.0 = Some(value);
        wakers.extend(state.1.take());
    }

    /// Waits for the value.
    pub(crate) async fn wait(&self) -> T {
        poll_fn(|context| {
            let mut state = self.state.borrow_mut();
            match state.0.take() {
                Some(value) => Poll::Ready(value),
                None => {
                    state.1 = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }
}

/// Whether nobody waits any more.
pub(crate) fn abandoned<T>(waiter: &Rc<Waiter<T>>) -> bool {
    Rc::strong_count(waiter) == 1
}
