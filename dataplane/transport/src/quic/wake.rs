//! Waking a request of a connection, from any thread, without a task for each.
//!
//! A waker names a connection and one of its slots. Woken, it stands in a queue that the endpoint
//! empties in its turn: at most once until then, so that the queue is bounded by the slots. A slot
//! keeps its waker for all the requests that it has; a wake that comes too late, for a request or a
//! connection before, costs a look and nothing else.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Wake, Waker};

use crossbeam_queue::SegQueue;
use outrider_shard::ShardHandle;

/// What has been woken on one endpoint.
pub(crate) struct Wakes {
    shard: ShardHandle,
    queue: SegQueue<Arc<Target>>,
}

/// What a waker wakes.
pub(crate) struct Target {
    wakes: Arc<Wakes>,
    /// The connection's index, and which of the connections that had it.
    pub(crate) connection: usize,
    pub(crate) generation: u64,
    pub(crate) slot: usize,
    queued: AtomicBool,
}

impl Wakes {
    pub(crate) fn new(shard: ShardHandle) -> Arc<Self> {
        Arc::new(Self { shard, queue: SegQueue::new() })
    }

    /// A waker for this slot of this connection.
    pub(crate) fn waker(
        self: &Arc<Self>,
        connection: usize,
        generation: u64,
        slot: usize,
    ) -> Waker {
        let queued = AtomicBool::new(false);
        Waker::from(Arc::new(Target { wakes: self.clone(), connection, generation, slot, queued }))
    }

    /// The next that was woken. What was done before its waker was called is seen from here on.
    pub(crate) fn pop(&self) -> Option<Arc<Target>> {
        let target = self.queue.pop()?;
        // Read and written at once: what was done before a wake that found it set is seen, too.
        target.queued.swap(false, Ordering::AcqRel);
        Some(target)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}

impl Wake for Target {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            self.wakes.queue.push(self.clone());
            self.wakes.shard.ring();
        }
    }
}

#[cfg(test)]
mod tests {
    use outrider_shard::testing::detached_handle;

    use super::*;

    #[test]
    fn a_waker_is_queued_once_until_it_is_taken() {
        let wakes = Wakes::new(detached_handle());
        let waker = wakes.waker(3, 1, 7);
        waker.wake_by_ref();
        let twin = waker.clone();
        twin.wake_by_ref();
        let target = wakes.pop().unwrap();
        assert_eq!((target.connection, target.generation, target.slot), (3, 1, 7));
        assert!(wakes.pop().is_none());
        std::thread::spawn(move || waker.wake()).join().unwrap();
        assert!(!wakes.is_empty());
        assert!(wakes.pop().is_some());
    }
}
