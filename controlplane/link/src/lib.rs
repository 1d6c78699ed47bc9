//! The streams between edges and nodes over QUIC. An edge opens one connection. Its first stream is the push stream,
//! both ends of which speak the records of `outrider-push` behind their length (4 bytes). Each other one carries what
//! its first record says: a wish and its answer, or events, as records of `outrider-events`; of those there is one at a
//! time.
//!
//! - [`serve`]: a node's end.
//! - [`follow`]: an edge's end.
//! - [`events`]: both ends of the stream of events.
//! - [`soft`]: both ends of the stream of what need not arrive.
//! - [`frames`]: records on a stream.
//! - [`tls`]: who may open it, and who answers.

#![forbid(unsafe_code)]

pub mod events;
pub mod follow;
pub mod frames;
pub mod serve;
pub mod soft;
pub mod tls;

pub use events::{Collector, Outgoing, OutgoingStatus};
pub use follow::{Asked, Beside, FollowError, Taken, follow};
pub use serve::{Beside as ServedBeside, Feed, Gate, Served, serve};
pub use soft::{BoardStatus, Boards};

/// The protocol of the stream.
pub const ALPN: &[u8] = b"outrider-push/1";
