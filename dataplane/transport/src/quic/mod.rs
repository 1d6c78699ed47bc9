//! QUIC on a shard: datagrams in, requests to the same [`Handler`](crate::Handler) as over TCP,
//! datagrams out. On it runs HTTP/3 or the native protocol (`docs/NATIVE.md`), as the client asks in TLS.
//!
//! quinn-proto is the state machine, without I/O. What is here drives it from the shard's driver, as
//! two sources: one receives and looks after timeouts, the other answers and sends. There is no task
//! and no timer for a connection, a request or a packet.
//!
//! - [`QuicSocket`]: the sockets of all shards, steered by connection ID.
//! - [`QuicServer`], [`QuicSettings`]: what the shards share: identity, keys, sessions, bounds.
//! - [`serve`], [`QuicParts`], [`QuicEndpoint`]: the endpoint of one shard.
//! - [`Forward`], [`Misrouted`]: datagrams that come to the wrong shard.
//!
//! It never copies a body (but short ones, see [`PinBudget`](crate::PinBudget)), and bounds what a
//! client can have it keep: connections, handshakes, streams, windows, what waits to be acknowledged, and
//! the memory of all of them.

mod cid;
mod config;
mod connection;
mod core;
mod endpoint;
mod http3;
mod line;
mod memory;
mod metrics;
mod native;
mod rate;
mod request;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod simulation;
mod slots;
mod socket;
mod steer;
mod strangers;
mod timeouts;
mod upload;
mod wake;

pub use config::{QuicServer, QuicSettings};
pub use endpoint::{Forward, Misrouted, QuicEndpoint, QuicParts, serve};
pub(crate) use memory::Watched as WatchedMemory;
pub(crate) use metrics::QuicMetrics;
pub use socket::QuicSocket;
pub(crate) use upload::Pipe;
