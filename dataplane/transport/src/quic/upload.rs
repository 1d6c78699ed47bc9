//! The body of a request, between the connection that receives it and the handler that reads it.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use crate::body::BodyError;

/// What may wait for the handler; beyond it the stream is not read, and the client's window closes.
const WAITING_BYTES_MAX: usize = 256 * 1024;

/// The same while connections hold as much memory as they may.
const WAITING_BYTES_FULL_MAX: usize = 16 * 1024;

/// Both ends of it.
#[derive(Clone)]
pub(crate) struct Pipe(Rc<RefCell<State>>);

struct State {
    waiting: VecDeque<Bytes>,
    waiting_bytes: usize,
    /// What the client has said is still to come, waiting pieces included.
    announced: Option<u64>,
    end: Option<Result<(), BodyError>>,
    handler: Option<Waker>,
    /// Wakes the request on its connection.
    connection: Waker,
    /// The connection has stopped reading, for want of room.
    full: bool,
    left: bool,
    /// Bytes were announced, or came.
    expected: bool,
    /// What waits in all pipes of the connection.
    held_bytes: Rc<Cell<usize>>,
}

impl Pipe {
    /// `announced`: the content-length, if there is one. `held_bytes`: where all pipes of a connection
    /// count what waits in them.
    pub(crate) fn new(
        announced: Option<u64>,
        connection: Waker,
        held_bytes: Rc<Cell<usize>>,
    ) -> Self {
        Self(Rc::new(RefCell::new(State {
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            announced,
            end: None,
            handler: None,
            connection,
            full: false,
            left: false,
            expected: announced.is_some_and(|bytes| bytes > 0),
            held_bytes,
        })))
    }

    /// For the connection: how much it may read now; less where memory is short.
    pub(crate) fn room(&self, short: bool) -> usize {
        let mut state = self.0.borrow_mut();
        let most = if short { WAITING_BYTES_FULL_MAX } else { WAITING_BYTES_MAX };
        let room = most.saturating_sub(state.waiting_bytes);
        state.full = room == 0;
        room
    }

    /// For the connection: a piece came in.
    pub(crate) fn push(&self, bytes: Bytes) {
        let mut state = self.0.borrow_mut();
        state.expected |= !bytes.is_empty();
        if state.left || state.end.is_some() {
            return;
        }
        let waiting_bytes = state.waiting_bytes + bytes.len();
        state.count(waiting_bytes);
        state.waiting.push_back(bytes);
        state.wake_handler();
    }

    /// For the connection: nothing more comes. The first end counts.
    pub(crate) fn end(&self, end: Result<(), BodyError>) {
        let mut state = self.0.borrow_mut();
        if state.end.is_none() {
            state.end = Some(end);
            state.wake_handler();
        }
    }

    /// For the connection: whether all has come, or will not.
    pub(crate) fn has_ended(&self) -> bool {
        self.0.borrow().end.is_some()
    }

    /// For the connection: whether the handler has let go of it.
    pub(crate) fn is_left(&self) -> bool {
        self.0.borrow().left
    }

    /// For the connection: whether there is a body, as far as that is known: bytes were announced, or came.
    pub(crate) fn is_expected(&self) -> bool {
        self.0.borrow().expected
    }

    /// For the handler: the next piece.
    pub(crate) fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        let mut state = self.0.borrow_mut();
        if let Some(bytes) = state.waiting.pop_front() {
            let waiting_bytes = state.waiting_bytes - bytes.len();
            state.count(waiting_bytes);
            if let Some(announced) = &mut state.announced {
                *announced = announced.saturating_sub(bytes.len() as u64);
            }
            if state.full && state.waiting_bytes <= WAITING_BYTES_MAX / 2 {
                state.full = false;
                state.connection.wake_by_ref();
            }
            return Poll::Ready(Some(Ok(bytes)));
        }
        match &state.end {
            Some(Ok(())) => Poll::Ready(None),
            Some(Err(error)) => Poll::Ready(Some(Err(error.clone()))),
            None => {
                state.handler = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// For the handler: how much is still to come, if that is known.
    pub(crate) fn size_hint(&self) -> Option<u64> {
        let state = self.0.borrow();
        match state.end {
            Some(Ok(())) => Some(state.waiting_bytes as u64),
            _ => state.announced,
        }
    }

    /// For the handler: it reads no more.
    pub(crate) fn leave(&self) {
        let mut state = self.0.borrow_mut();
        state.left = true;
        state.waiting.clear();
        state.count(0);
        state.connection.wake_by_ref();
    }
}

impl State {
    fn count(&mut self, waiting_bytes: usize) {
        let held = self.held_bytes.get() - self.waiting_bytes + waiting_bytes;
        self.held_bytes.set(held);
        self.waiting_bytes = waiting_bytes;
    }

    fn wake_handler(&mut self) {
        if let Some(waker) = self.handler.take() {
            waker.wake();
        }
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.count(0);
    }
}
