//! The way into a shard from any thread: a doorbell that ends its sleep, and a queue of wakers.
//!
//! The doorbell is an eventfd that the driver watches edge-triggered and never reads: each write is
//! an edge of its own, so no ring can be lost between two waits, and there is no counter to drain.
//! Other threads write to it only while the sleeping flag is set. The driver sets that flag, then
//! looks at the queue a last time, then sleeps; who pushes looks at the flag after having pushed. With
//! a full fence on both sides, one of the two always sees the other.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;

use crossbeam_queue::ArrayQueue;
use rustix::event::EventfdFlags;

use crate::local;
use crate::stats::ShardStats;

/// Wakers that fit into the lock-free queue; more go to a list behind a mutex. A task is queued at
/// most once, so this many tasks can be woken from outside within one turn before anyone locks.
const WAKES_QUEUED_MAX: usize = 1024;

/// The way into a shard from any thread. Cheap to clone.
#[derive(Clone)]
pub struct ShardHandle {
    shared: Arc<Shared>,
}

/// What the shard's thread and all others see.
pub(crate) struct Shared {
    id: usize,
    doorbell: OwnedFd,
    sleeping: AtomicBool,
    /// Nobody runs the tasks any more (or nobody ever did): wakers are woken where they are.
    detached: AtomicBool,
    wakes: ArrayQueue<Waker>,
    overflow: Mutex<Vec<Waker>>,
    overflowed: AtomicBool,
    stats: ShardStats,
}

impl ShardHandle {
    pub(crate) fn new(id: usize) -> rustix::io::Result<Self> {
        let doorbell =
            rustix::event::eventfd(0, EventfdFlags::CLOEXEC.union(EventfdFlags::NONBLOCK))?;
        Ok(Self {
            shared: Arc::new(Shared {
                id,
                doorbell,
                sleeping: AtomicBool::new(false),
                detached: AtomicBool::new(false),
                wakes: ArrayQueue::new(WAKES_QUEUED_MAX),
                overflow: Mutex::new(Vec::new()),
                overflowed: AtomicBool::new(false),
                stats: ShardStats::default(),
            }),
        })
    }

    /// The shard's number.
    pub fn id(&self) -> usize {
        self.shared.id
    }

    /// Wakes `waker` on the shard's own thread: at once when called there, else in the driver's
    /// next turn. Does not allocate (as long as fewer than 1,024 wakes are queued).
    pub fn wake(&self, waker: Waker) {
        if self.shared.is_detached() || local::is_current(&self.shared) {
            waker.wake();
        } else {
            self.shared.queue_wake(waker);
        }
    }

    /// The eventfd that ends the shard's sleep, for who signals it from the kernel, such as an
    /// io_uring. Each signal ends one sleep. Never read it.
    pub fn doorbell(&self) -> BorrowedFd<'_> {
        self.shared.doorbell.as_fd()
    }

    /// Ends the shard's sleep, if it sleeps: every [`Source`](crate::Source) gets its turn. Costs a
    /// fence and a load while it is awake.
    pub fn ring(&self) {
        self.shared.ring();
    }

    /// What the shard's driver counts.
    pub fn stats(&self) -> &ShardStats {
        &self.shared.stats
    }

    /// Whether this is called on the shard's own thread.
    pub fn is_current(&self) -> bool {
        local::is_current(&self.shared)
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }
}

impl Shared {
    pub(crate) fn queue_wake(&self, waker: Waker) {
        if let Err(waker) = self.wakes.push(waker) {
            let mut overflow = self.overflow.lock().unwrap_or_else(PoisonError::into_inner);
            overflow.push(waker);
            self.overflowed.store(true, Ordering::Release);
        }
        self.ring();
        if self.is_detached() {
            // The shard ended meanwhile: nobody will take it out, and it may hold the queue alive.
            self.run_wakes();
        }
    }

    pub(crate) fn ring(&self) {
        fence(Ordering::SeqCst);
        if self.sleeping.load(Ordering::Relaxed) && self.sleeping.swap(false, Ordering::AcqRel) {
            // It can only fail when the counter is full, and then the doorbell has long been rung.
            let _ = rustix::io::write(&self.doorbell, &1u64.to_ne_bytes());
        }
    }

    /// Wakes what is queued; gives whether there was something.
    pub(crate) fn run_wakes(&self) -> bool {
        let mut woke = false;
        // Not more than what was there at the start: a waker that queues itself again must not keep
        // the driver here.
        for _ in 0..self.wakes.len() {
            let Some(waker) = self.wakes.pop() else { break };
            waker.wake();
            woke = true;
        }
        if self.overflowed.swap(false, Ordering::AcqRel) {
            let overflow = {
                let mut list = self.overflow.lock().unwrap_or_else(PoisonError::into_inner);
                std::mem::take(&mut *list)
            };
            for waker in overflow {
                waker.wake();
            }
            woke = true;
        }
        woke
    }

    /// From now on whoever pushes rings the doorbell; gives whether something was pushed before.
    pub(crate) fn prepare_to_sleep(&self) -> bool {
        self.sleeping.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        !self.wakes.is_empty() || self.overflowed.load(Ordering::Acquire)
    }

    pub(crate) fn wake_up(&self) {
        self.sleeping.store(false, Ordering::Relaxed);
    }

    /// Nobody runs the queue from here on.
    pub(crate) fn detach(&self) {
        self.detached.store(true, Ordering::Release);
        fence(Ordering::SeqCst);
        self.run_wakes();
    }

    pub(crate) fn is_detached(&self) -> bool {
        self.detached.load(Ordering::Acquire)
    }

    pub(crate) fn stats(&self) -> &ShardStats {
        &self.stats
    }

    pub(crate) fn doorbell(&self) -> &OwnedFd {
        &self.doorbell
    }
}

impl fmt::Debug for ShardHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShardHandle").field("id", &self.shared.id).finish_non_exhaustive()
    }
}
