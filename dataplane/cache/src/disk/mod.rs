//! The SSD tier's ground: the stripes' format, their files, and the queue of operations on them.
//!
//! `Disk` is the seam: the engine moves slots in and out of it and never sees a file. The real one
//! is an io_uring (`ring`); the tests drive the same engine with a simulated one that tears,
//! loses and refuses writes.

pub mod record;
pub mod segment;
pub mod superblock;

mod hash;
pub(crate) mod ring;
pub(crate) mod scan;
#[cfg(test)]
pub(crate) mod sim;
pub(crate) mod stripe;

use std::collections::VecDeque;
use std::io;

use crate::arena::{Frozen, SlotMut};

/// One operation. It owns the slot that it reads or writes, so that nobody can touch it meanwhile.
pub(crate) enum Operation {
    /// Fills the first `len` bytes of the slot from `offset`.
    Read { slot: SlotMut, offset: u64, len: u32 },
    /// Writes the record (header, payload, padding) at `offset`.
    Write { frozen: Frozen, offset: u64 },
    /// Makes all writes that have completed durable (fdatasync).
    Sync,
}

/// An operation on a stripe, with the caller's name for it.
pub(crate) struct Request {
    pub(crate) token: u64,
    pub(crate) stripe: u16,
    pub(crate) operation: Operation,
}

/// A request that is done. A short transfer is an error.
pub(crate) struct Completion {
    pub(crate) request: Request,
    pub(crate) result: io::Result<()>,
}

/// A queue of operations on the stripes. Operations may complete in any order.
pub(crate) trait Disk {
    /// Queues an operation. The caller keeps the number in flight bounded (`IN_FLIGHT_MAX`).
    fn submit(&mut self, request: Request);
    /// Hands queued operations over and collects what is done. Cheap when nothing is in flight.
    fn turn(&mut self, done: &mut VecDeque<Completion>);
    /// Blocks until something is done (at start only).
    fn wait(&mut self);
    /// Operations that were submitted and not collected.
    fn in_flight(&self) -> usize;
}

/// Operations in flight at most, over all kinds: what a ring has room for.
pub(crate) const IN_FLIGHT_MAX: usize = 256;
