//! The push stream over QUIC. An edge opens one stream of one connection, both ends of which speak the records
//! of `outrider-push` behind their length (4 bytes).
//!
//! - [`serve`]: a node's end.
//! - [`follow`]: an edge's end.
//! - [`frames`]: records on a stream.
//! - [`tls`]: who may open it, and who answers.

#![forbid(unsafe_code)]

pub mod follow;
pub mod frames;
pub mod serve;
pub mod tls;

pub use follow::{FollowError, Taken, follow};
pub use serve::{Feed, Gate, Served, serve};

/// The protocol of the stream.
pub const ALPN: &[u8] = b"outrider-push/1";
