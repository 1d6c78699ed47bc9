//! A bounded stream from one task to another, on the same shard or not: who writes waits for room, who
//! reads for values, and each learns that the other has gone.
//!
//! The wakers are those of tasks of shards, which may be called on any thread. The writer is woken once
//! half of the pipe is free, so that two shards that stream do not wake each other for every value.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use crossbeam_queue::ArrayQueue;
use futures_util::task::AtomicWaker;

/// A pipe that holds at most `capacity` values. All its memory is allocated here.
///
/// # Panics
/// When `capacity` is zero.
pub fn pipe<T: Send>(capacity: usize) -> (PipeSender<T>, PipeReceiver<T>) {
    let shared = Arc::new(Shared {
        queue: ArrayQueue::new(capacity),
        reader: AtomicWaker::new(),
        writer: AtomicWaker::new(),
        asked: AtomicBool::new(false),
        reader_gone: AtomicBool::new(false),
        writer_gone: AtomicBool::new(false),
    });
    (PipeSender { shared: shared.clone() }, PipeReceiver { shared })
}

struct Shared<T> {
    queue: ArrayQueue<T>,
    reader: AtomicWaker,
    writer: AtomicWaker,
    /// The reader has looked for a value.
    asked: AtomicBool,
    reader_gone: AtomicBool,
    writer_gone: AtomicBool,
}

/// The end that is written to.
pub struct PipeSender<T> {
    shared: Arc<Shared<T>>,
}

impl<T: Send> PipeSender<T> {
    /// Ready when there is room, or when the reader has gone, which the next write finds out.
    pub fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.has_room() {
            return Poll::Ready(());
        }
        self.shared.writer.register(cx.waker());
        if self.has_room() { Poll::Ready(()) } else { Poll::Pending }
    }

    fn has_room(&self) -> bool {
        !self.shared.queue.is_full() || self.is_closed()
    }

    /// Writes without waiting.
    ///
    /// # Errors
    /// The value, when there is no room or no reader.
    pub fn try_send(&mut self, value: T) -> Result<(), T> {
        if self.is_closed() {
            return Err(value);
        }
        self.shared.queue.push(value)?;
        self.shared.reader.wake();
        if self.is_closed() {
            // It went at the same time, and may have missed this one.
            while self.shared.queue.pop().is_some() {}
        }
        Ok(())
    }

    /// Writes, once there is room.
    ///
    /// # Errors
    /// The value, when there is no reader.
    pub async fn send(&mut self, value: T) -> Result<(), T> {
        std::future::poll_fn(|cx| self.poll_room(cx)).await;
        self.try_send(value)
    }

    /// Ready when the reader has gone.
    pub fn poll_closed(&self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.is_closed() {
            self.shared.writer.register(cx.waker());
        }
        if self.is_closed() { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Resolves when the reader wants a value for the first time, or has gone.
    pub async fn asked(&self) {
        std::future::poll_fn(|cx| {
            let asked = || self.shared.asked.load(Ordering::Acquire) || self.is_closed();
            if !asked() {
                self.shared.writer.register(cx.waker());
            }
            if asked() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Whether the reader has gone.
    pub fn is_closed(&self) -> bool {
        self.shared.reader_gone.load(Ordering::Acquire)
    }
}

impl<T> Drop for PipeSender<T> {
    fn drop(&mut self) {
        self.shared.writer_gone.store(true, Ordering::Release);
        self.shared.reader.wake();
    }
}

impl<T> fmt::Debug for PipeSender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PipeSender").field("waiting", &self.shared.queue.len()).finish()
    }
}

/// The end that is read. Dropping it drops what waits in the pipe.
pub struct PipeReceiver<T> {
    shared: Arc<Shared<T>>,
}

impl<T: Send> PipeReceiver<T> {
    /// The next value; `None` when the writer has gone and all that it wrote was taken.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<T>> {
        if let Some(value) = self.take() {
            return Poll::Ready(Some(value));
        }
        self.shared.reader.register(cx.waker());
        if !self.shared.asked.load(Ordering::Relaxed) {
            self.shared.asked.store(true, Ordering::Release);
            self.shared.writer.wake();
        }
        let gone = self.shared.writer_gone.load(Ordering::Acquire);
        if let Some(value) = self.take() {
            return Poll::Ready(Some(value));
        }
        if gone { Poll::Ready(None) } else { Poll::Pending }
    }

    fn take(&self) -> Option<T> {
        let value = self.shared.queue.pop()?;
        if self.shared.queue.len() <= self.shared.queue.capacity() / 2 {
            self.shared.writer.wake();
        }
        Some(value)
    }
}

impl<T> Drop for PipeReceiver<T> {
    fn drop(&mut self) {
        self.shared.reader_gone.store(true, Ordering::Release);
        self.shared.writer.wake();
        while self.shared.queue.pop().is_some() {}
    }
}

impl<T> fmt::Debug for PipeReceiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PipeReceiver").field("waiting", &self.shared.queue.len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::pin;
    use std::task::Waker;

    use super::*;

    fn poll<F: Future>(future: F) -> Poll<F::Output> {
        pin!(future).poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn it_takes_as_much_as_fits_and_gives_it_in_order() {
        let (mut sender, mut receiver) = pipe(2);
        assert_eq!(sender.try_send(1), Ok(()));
        assert_eq!(sender.try_send(2), Ok(()));
        assert_eq!(sender.try_send(3), Err(3));
        assert!(poll(sender.send(3)).is_pending());
        assert_eq!(poll(poll_fn(|cx| receiver.poll_recv(cx))), Poll::Ready(Some(1)));
        assert_eq!(poll(sender.send(3)), Poll::Ready(Ok(())));
        drop(sender);
        assert_eq!(poll(poll_fn(|cx| receiver.poll_recv(cx))), Poll::Ready(Some(2)));
        assert_eq!(poll(poll_fn(|cx| receiver.poll_recv(cx))), Poll::Ready(Some(3)));
        assert_eq!(poll(poll_fn(|cx| receiver.poll_recv(cx))), Poll::Ready(None));
    }

    #[test]
    fn each_end_learns_that_the_other_has_gone_and_nothing_is_kept() {
        let (mut sender, receiver) = pipe(1);
        let value = Arc::new(());
        sender.try_send(value.clone()).unwrap();
        assert!(poll(poll_fn(|cx| sender.poll_closed(cx))).is_pending());
        drop(receiver);
        assert_eq!(Arc::strong_count(&value), 1);
        assert!(poll(poll_fn(|cx| sender.poll_closed(cx))).is_ready());
        assert!(poll(sender.send(value)).ready_and(|result| result.is_err()));
    }

    #[test]
    fn the_writer_learns_when_something_is_wanted() {
        let (sender, mut receiver) = pipe::<u8>(1);
        assert!(poll(sender.asked()).is_pending());
        assert!(poll(poll_fn(|cx| receiver.poll_recv(cx))).is_pending());
        assert!(poll(sender.asked()).is_ready());
    }

    trait ReadyAnd<T> {
        fn ready_and(self, check: impl FnOnce(T) -> bool) -> bool;
    }

    impl<T> ReadyAnd<T> for Poll<T> {
        fn ready_and(self, check: impl FnOnce(T) -> bool) -> bool {
            match self {
                Poll::Ready(value) => check(value),
                Poll::Pending => false,
            }
        }
    }

    #[test]
    fn between_two_threads_nothing_is_lost() {
        const VALUES: u64 = 100_000;
        let (mut sender, mut receiver) = pipe(4);
        let writer = std::thread::spawn(move || {
            for value in 0..VALUES {
                futures_lite::future::block_on(sender.send(value)).unwrap();
            }
        });
        for value in 0..VALUES {
            let found = futures_lite::future::block_on(poll_fn(|cx| receiver.poll_recv(cx)));
            assert_eq!(found, Some(value));
        }
        writer.join().unwrap();
    }
}
