//! The trait that every store implements.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;

use serde::{Deserialize, Serialize};

use outrider_artifact::Digest;

use crate::batch::{Batch, BatchError, Mark};
use crate::query::{Answer, Asked};

/// An answer that takes its time.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = Result<T, GraphError>> + Send + 'a>>;

/// A dependency graph. One writer at a time: batches that are applied at once wait for each other.
///
/// Dropping a future gives up on its answer. A batch that was given up was applied wholly or not at all.
pub trait Graph: Send + Sync {
    /// Applies a batch and stores its position, in one transaction.
    fn apply(&self, batch: Batch) -> Pending<'_, Applied>;

    /// Answers a named query from one state of the graph.
    fn ask(&self, asked: Asked) -> Pending<'_, Answer>;

    /// How large it is, and how far each source is.
    fn stats(&self) -> Pending<'_, Stats>;

    /// How far a source is.
    fn progress(&self, source: String) -> Pending<'_, Progress>;

    /// How many versions depend on each of these contents, at most
    /// [`DEPENDANTS_OF_CUSTOMER_MAX`](crate::plan::DEPENDANTS_OF_CUSTOMER_MAX) of one customer counted; in this order, 0 for
    /// what is not in the graph. At most [`DEPENDANTS_ASKED_MAX`](crate::query::DEPENDANTS_ASKED_MAX); more are not looked at.
    fn dependants(&self, contents: Vec<Digest>) -> Pending<'_, Vec<u64>>;
}

/// How far a source is, as the last batch that was applied said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Its position; nothing for the beginning.
    pub last: Option<u64>,
    /// Its marks, in order.
    pub marks: Vec<Mark>,
}

/// What a batch did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// The position was reached before, or is not the next one: nothing was done.
    pub repeated: bool,
    /// Nodes that were not there before.
    pub nodes: u64,
    /// Versions of which the contents were not known before.
    pub versions: u64,
    /// Accesses to what is not in the graph: counted when it comes, if that is not too late
    /// ([`EARLY_MAX`](crate::plan::EARLY_MAX)).
    pub unknown: u64,
}

/// How large a graph is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Nodes by [`Kind`](crate::Kind), as it is written. A version that is only known as an index's is a version.
    pub nodes: BTreeMap<String, u64>,
    /// Edges from versions to what they contain.
    pub contains: u64,
    /// Contents and versions that were asked for and are not there yet, by repository.
    pub early: u64,
    /// The last position of each source.
    pub positions: BTreeMap<String, u64>,
}

/// Why a store did not do what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GraphError {
    /// The batch is beyond a bound.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// It is not in the graph.
    #[error("the graph has no {what} {name}")]
    Unknown {
        /// A kind of node.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// The first version of an image has nothing that it could be compared with.
    #[error("{image} has no version before {version}")]
    NoPredecessor {
        /// The image.
        image: String,
        /// Its version.
        version: String,
    },
    /// Indexes lead to too many versions, or too deep.
    #[error("the indexes of {0} lead to too many versions to follow")]
    TooWide(String),
    /// There is no room for more nodes.
    #[error("the graph is full: it has {0} nodes")]
    Full(u64),
    /// The store cannot be reached, or its disk fails. It may be back later.
    #[error("the graph's store does not answer: {0}")]
    Unavailable(String),
    /// What is stored is not what this software writes. It stays so.
    #[error("the graph's store is damaged: {0}")]
    Damaged(String),
}
