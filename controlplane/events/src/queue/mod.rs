//! Queues of events. What is appended is durable when the append is done, and is read in order, by position, by
//! any number of consumers, until the retention takes it away.
//!
//! An append that failed may have happened: it is repeated, so the queue has every entry at least once.
//!
//! - [`embedded`]: a log in a database file of the node: the default.
//! - [`kafka`]: a topic of one partition.
//! - [`rabbitmq`]: a stream.

pub mod embedded;
#[cfg(feature = "kafka")]
pub mod kafka;
#[cfg(feature = "rabbitmq")]
pub mod rabbitmq;

use std::pin::Pin;
use std::sync::Arc;

use crate::consumer::Marks;
pub use crate::consumer::Position;
use crate::event::Entry;

/// The most entries of one append, and of one page.
pub const ENTRIES_MAX: usize = 1_024;
/// The most bytes of one page, by the records of its entries, where it has more than one.
pub const PAGE_BYTES_MAX: usize = 4 << 20;

/// Why a queue does not do what it should.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// It cannot be reached, or its disk fails. Later it may work.
    #[error("{0}")]
    Unavailable(String),
    /// The position is not one of this queue.
    #[error("{0} is not a position of this queue")]
    Position(Position),
    /// What is in it is not from here.
    #[error("the entry at {position} cannot be read: {reason}")]
    Entry {
        /// Where.
        position: Position,
        /// Why.
        reason: String,
    },
}

impl QueueError {
    pub(crate) fn unavailable(error: impl std::fmt::Display) -> Self {
        Self::Unavailable(error.to_string())
    }
}

/// The identity of a queue that is a server of its own: what nodes call it. Cost: O(name).
#[cfg(any(feature = "kafka", feature = "rabbitmq"))]
pub(crate) fn identity_of(kind: &str, name: &str) -> [u8; 16] {
    let digest = outrider_artifact::Digest::sha256(format!("{kind}:{name}").as_bytes());
    digest.key()
}

/// What a read gives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// In order. Empty when there is nothing yet.
    pub entries: Vec<(Position, Entry)>,
    /// The retention has taken away entries between the position that was asked for and the first.
    pub missed: bool,
}

/// What a queue has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// Before the first entry that it still has.
    pub begin: Position,
    /// The last entry, or the same when there is none.
    pub end: Position,
    /// Bytes of records, where that is known.
    pub bytes: Option<u64>,
}

/// What a method of a queue gives.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = Result<T, QueueError>> + Send + 'a>>;

/// A queue. Appends come one after the other; reads at any time.
pub trait Queue: Send + Sync + 'static {
    /// `embedded`, `kafka` or `rabbitmq`.
    fn name(&self) -> &'static str;

    /// Which queue it is: another number for another one.
    fn identity(&self) -> [u8; 16];

    /// What is known of the edges' events that are in it, from before this start.
    fn marks(&self) -> Marks;

    /// Appends these entries, [`ENTRIES_MAX`] at the most, in order. Done when they are durable.
    fn append(&self, entries: Arc<Vec<Entry>>) -> Pending<'_, ()>;

    /// Up to so many entries after this position, and no more than [`PAGE_BYTES_MAX`]. Does not wait for new ones.
    fn read(&self, after: Position, entries_max: usize) -> Pending<'_, Page>;

    /// What it has now.
    fn extent(&self) -> Pending<'_, Extent>;
}
