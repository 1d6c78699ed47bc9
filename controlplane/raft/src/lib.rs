//! Consensus between the nodes of the control plane: openraft over a redb log, with the state machine of
//! `outrider-state`, and the connections between the nodes.
//!
//! - [`types`]: what openraft is told about our log.
//! - [`codec`]: openraft's own types as bytes, for the log and the network.
//! - [`log_store`]: the log and the vote on disk.
//! - `early`: when an entry counts as appended before it is there.
//! - [`machine`]: the state machine, its recent changes, and snapshots on disk.
//! - [`rpc`]: calls between nodes over mutual TLS: frames, a pool of connections, a server.
//! - [`network`]: openraft's messages as calls.
//! - [`consensus`]: [`Consensus`], what the rest of the control plane uses: writes, linearizable reads,
//!   membership. Any node takes them, whoever leads.

#![forbid(unsafe_code)]

pub mod codec;
pub mod consensus;
mod early;
pub mod log_store;
pub mod machine;
pub mod network;
pub mod rpc;
pub mod types;

pub use consensus::{Consensus, Settings, Status, Unavailable};
pub use machine::Shared;
pub use types::{NodeId, Peer};
