//! The way into a shard from any thread.

use std::os::fd::BorrowedFd;
use std::task::Waker;

/// The way into a shard from any thread.
#[derive(Clone, Debug)]
pub struct ShardHandle {}

impl ShardHandle {
    /// The shard's number.
    pub fn id(&self) -> usize {
        unimplemented!()
    }

    /// Wakes `waker` on the shard's own thread.
    pub fn wake(&self, waker: Waker) {
        drop(waker);
        unimplemented!()
    }

    /// The eventfd that ends the shard's sleep.
    pub fn doorbell(&self) -> BorrowedFd<'_> {
        unimplemented!()
    }

    /// Ends the shard's sleep, if it sleeps.
    pub fn ring(&self) {
        unimplemented!()
    }
}
