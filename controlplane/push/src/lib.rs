//! The stream of state updates to an edge: in log order, filtered to what the edge uses, resumed where it
//! stopped, nothing missing and nothing applied twice. Both ends are state machines without I/O: messages and
//! the time come in as arguments, messages go out.
//!
//! - [`message`]: what both say, as records.
//! - [`ask`]: what an edge wants to have written, on streams beside it.
//! - [`interest`]: what an edge uses.
//! - [`sender`]: the end at a node. It holds a position, never a queue: what an edge has not taken yet lies in
//!   the node's history, or is made up for by a snapshot.
//! - [`receiver`]: the end at an edge.
//! - [`replica`]: what an edge knows.
//! - [`soft`]: what need not arrive, both ends.

#![forbid(unsafe_code)]

pub mod ask;
pub mod interest;
pub mod message;
pub mod receiver;
pub mod replica;
pub mod sender;
pub mod soft;

pub use ask::{Ask, Reply, Wish};
pub use interest::Interest;
pub use message::{FromEdge, Item, ToEdge};
pub use receiver::{Receiver, ReceiverError};
pub use replica::Replica;
pub use sender::{Sender, SenderError, Source};
pub use soft::{Board, Hint, Prediction, SoftToEdge, SoftToNode, Taker};
