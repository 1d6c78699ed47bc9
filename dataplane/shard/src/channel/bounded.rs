//! A bounded queue with many senders and one receiver.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use crossbeam_queue::ArrayQueue;
use futures_util::task::AtomicWaker;

use crate::ShardHandle;

/// Why a message was not taken. It gives the message back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrySendError<T> {
    /// As many messages as fit are waiting.
    #[error("the channel is full")]
    Full(T),
    /// The receiver is gone.
    #[error("the channel is closed")]
    Closed(T),
}

impl<T> TrySendError<T> {
    /// The message that was not taken.
    pub fn into_inner(self) -> T {
        match self {
            Self::Full(message) | Self::Closed(message) => message,
        }
    }
}

/// A channel of at most `capacity` messages into `shard`. All its memory is allocated here.
///
/// # Panics
/// When `capacity` is zero.
pub fn bounded<T: Send>(capacity: usize, shard: &ShardHandle) -> (Sender<T>, Receiver<T>) {
    let channel = Arc::new(Channel {
        queue: ArrayQueue::new(capacity),
        shard: shard.clone(),
        waker: AtomicWaker::new(),
        senders: AtomicUsize::new(1),
        receiver_gone: AtomicBool::new(false),
    });
    (Sender { channel: channel.clone() }, Receiver { channel })
}

struct Channel<T> {
    queue: ArrayQueue<T>,
    shard: ShardHandle,
    /// The receiver's task, while it waits. Taking it out is what makes one wake serve many messages.
    waker: AtomicWaker,
    senders: AtomicUsize,
    receiver_gone: AtomicBool,
}

impl<T> Channel<T> {
    fn wake_receiver(&self) {
        if let Some(waker) = self.waker.take() {
            self.shard.wake(waker);
        }
    }
}

/// The sending end, for any thread. The receiver ends when the last clone is dropped.
pub struct Sender<T> {
    channel: Arc<Channel<T>>,
}

impl<T: Send> Sender<T> {
    /// Sends without waiting. Takes no lock and does not allocate.
    ///
    /// # Errors
    /// [`TrySendError::Full`] and [`TrySendError::Closed`] give the message back.
    pub fn try_send(&self, message: T) -> Result<(), TrySendError<T>> {
        if self.is_closed() {
            return Err(TrySendError::Closed(message));
        }
        self.channel.queue.push(message).map_err(TrySendError::Full)?;
        self.channel.wake_receiver();
        if self.is_closed() {
            // The receiver went at the same time, and may have missed this one: whatever it holds
            // alive must not stay until the last sender goes.
            while self.channel.queue.pop().is_some() {}
        }
        Ok(())
    }
}

impl<T> Sender<T> {
    /// Whether the receiver is gone.
    pub fn is_closed(&self) -> bool {
        self.channel.receiver_gone.load(Ordering::Acquire)
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.channel.senders.fetch_add(1, Ordering::Relaxed);
        Self { channel: self.channel.clone() }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        if self.channel.senders.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.channel.wake_receiver();
        }
    }
}

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").field("queued", &self.channel.queue.len()).finish_non_exhaustive()
    }
}

/// The receiving end.
pub struct Receiver<T> {
    channel: Arc<Channel<T>>,
}

impl<T: Send> Receiver<T> {
    /// The next message, if one waits.
    pub fn try_recv(&mut self) -> Option<T> {
        self.channel.queue.pop()
    }

    /// The next message; `None` when every sender is gone and all that they sent was taken.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<T>> {
        if let Some(message) = self.channel.queue.pop() {
            return Poll::Ready(Some(message));
        }
        self.channel.waker.register(cx.waker());
        // Once more: a message that came before the waker was there woke nobody.
        let senders = self.channel.senders.load(Ordering::Acquire);
        if let Some(message) = self.channel.queue.pop() {
            return Poll::Ready(Some(message));
        }
        if senders == 0 { Poll::Ready(None) } else { Poll::Pending }
    }

    /// The next message; `None` when every sender is gone and all that they sent was taken.
    pub async fn recv(&mut self) -> Option<T> {
        std::future::poll_fn(|cx| self.poll_recv(cx)).await
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.channel.receiver_gone.store(true, Ordering::Release);
        drop(self.channel.waker.take());
        while self.channel.queue.pop().is_some() {}
    }
}

impl<T> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver")
            .field("queued", &self.channel.queue.len())
            .finish_non_exhaustive()
    }
}
