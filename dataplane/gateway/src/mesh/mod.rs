//! Several shards as one gateway: where a content is, and how another shard is asked.
//!
//! Each digest has a home shard, which fetches and caches it; what was pushed lies on the shard that
//! took the push, and a directory says where that is another one. A request for what another shard
//! has is answered by that shard, over a bounded queue, and its body is streamed from there without a
//! copy. What is small and asked for again is kept by the asking shard for a while.
//!
//! - [`Hub`]: what all gateways of a process share.
//! - [`call`]: work on another shard. [`reply`], [`carried`]: the bodies of its answers and questions.
//! - [`directory`]: what was pushed and is not at home. [`table`]: what a shard keeps of the others'.

pub(crate) mod call;
pub(crate) mod carried;
mod directory;
pub(crate) mod reply;
pub(crate) mod table;
#[cfg(test)]
mod tests;

use std::fmt;
use std::rc::Rc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use outrider_cache::Placement;
use outrider_shard::ShardHandle;
use outrider_shard::channel::{Receiver, Sender, TrySendError, bounded};

use crate::gateway::Gateway;
use directory::Directory;

/// Questions that may wait for one shard; one more is refused. A shard takes all of them in one turn,
/// so that this is some milliseconds of work.
const QUESTIONS_MAX: usize = 1024;

/// Work that another shard wants done with this shard's gateway.
type Work<N> = Box<dyn FnOnce(&Rc<Gateway<N>>) + Send>;

/// Why another shard did not do it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unanswered {
    /// As many questions as it takes are waiting.
    #[error("the shard that has it is busy")]
    Busy,
    /// It has ended, or has not begun.
    #[error("the shard that has it has ended")]
    Ended,
}

/// What the gateways of all shards share. On every thread.
pub struct Hub<N> {
    placement: Placement,
    seats: Box<[OnceLock<Sender<Work<N>>>]>,
    pub(crate) directory: Directory,
    /// Counts what was taken away from readers, so that nobody answers with what was there before.
    epoch: AtomicU64,
}

/// The receiving end of a shard's questions.
pub struct Inbox<N>(pub(crate) Receiver<Work<N>>);

impl<N: 'static> Hub<N> {
    /// For the shards of this placement.
    pub fn new(placement: Placement) -> Self {
        Self {
            placement,
            seats: (0..placement.shards()).map(|_| OnceLock::new()).collect(),
            directory: Directory::default(),
            epoch: AtomicU64::new(0),
        }
    }

    /// Takes the seat of a shard; from then on it can be asked. Give the inbox to [`Gateway::attend`].
    ///
    /// # Panics
    /// When it is taken, or there is no such shard.
    pub fn sit(&self, shard: u16, handle: &ShardHandle) -> Inbox<N> {
        let (sender, receiver) = bounded(QUESTIONS_MAX, handle);
        let taken = self.seats[usize::from(shard)].set(sender).is_err();
        assert!(!taken, "a shard sits down once");
        Inbox(receiver)
    }

    /// Where digests are at home.
    pub fn placement(&self) -> Placement {
        self.placement
    }

    pub(crate) fn shards(&self) -> u16 {
        self.placement.shards()
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// What was taken away before this is answered by nobody after it.
    pub(crate) fn next_epoch(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
    }

    fn send(&self, shard: u16, work: Work<N>) -> Result<(), Unanswered> {
        let seat = self.seats.get(usize::from(shard)).and_then(OnceLock::get);
        match seat.ok_or(Unanswered::Ended)?.try_send(work) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(_)) => Err(Unanswered::Busy),
            Err(TrySendError::Closed(_)) => Err(Unanswered::Ended),
        }
    }
}

impl<N> fmt::Debug for Hub<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub").field("placement", &self.placement).finish_non_exhaustive()
    }
}

impl<N> fmt::Debug for Inbox<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Inbox")
    }
}
