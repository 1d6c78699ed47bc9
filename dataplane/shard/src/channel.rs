//! Channels into a shard.

use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll};

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

/// The sending end; any thread.
#[derive(Debug)]
pub struct Sender<T>(PhantomData<fn(T)>);

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        unimplemented!()
    }
}

impl<T: Send> Sender<T> {
    /// Sends without waiting.
    ///
    /// # Errors
    /// See [`TrySendError`].
    pub fn try_send(&self, message: T) -> Result<(), TrySendError<T>> {
        drop(message);
        unimplemented!()
    }

    /// Whether the receiver is gone.
    pub fn is_closed(&self) -> bool {
        unimplemented!()
    }
}

/// The receiving end, polled on the shard.
#[derive(Debug)]
pub struct Receiver<T>(PhantomData<fn() -> T>);

impl<T: Send> Receiver<T> {
    /// The next message, if one waits.
    pub fn try_recv(&mut self) -> Option<T> {
        unimplemented!()
    }

    /// The next message, or None when every sender is gone.
    pub fn poll_recv(&mut self, _cx: &mut Context<'_>) -> Poll<Option<T>> {
        unimplemented!()
    }

    /// The next message, or None when every sender is gone.
    pub async fn recv(&mut self) -> Option<T> {
        std::future::poll_fn(|cx| self.poll_recv(cx)).await
    }
}

/// A channel of at most `capacity` messages into a shard.
pub fn bounded<T: Send>(capacity: usize, shard: &ShardHandle) -> (Sender<T>, Receiver<T>) {
    let _ = (capacity, shard);
    unimplemented!()
}

/// The end of a oneshot that gives the value.
#[derive(Debug)]
pub struct Completer<T>(PhantomData<fn(T)>);

impl<T: Send> Completer<T> {
    /// Gives the value.
    pub fn complete(self, value: T) {
        drop(value);
        unimplemented!()
    }

    /// Whether nobody waits for the value any more.
    pub fn is_closed(&self) -> bool {
        unimplemented!()
    }
}

/// The end of a oneshot that waits: None when the [`Completer`] was dropped.
#[derive(Debug)]
pub struct Completion<T>(PhantomData<fn() -> T>);

impl<T: Send> Future for Completion<T> {
    type Output = Option<T>;

    fn poll(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Option<T>> {
        unimplemented!()
    }
}

/// A channel of one value into a shard.
pub fn oneshot<T: Send>(shard: &ShardHandle) -> (Completer<T>, Completion<T>) {
    let _ = shard;
    unimplemented!()
}
