//! TCP, TLS, QUIC, and HTTP/1, 2 and 3 on a shard: from accepted socket to request, and from response to
//! bytes on the wire.
//!
//! It owns sockets, certificates and everything that a client can do wrong below HTTP: too many
//! connections, half-open handshakes, heads that dribble in, bodies that stop, readers that do not
//! read. It never looks into a request beyond its framing, and never copies a body (but where a
//! client holds back so much that a copy is the lesser evil, see [`PinBudget`]).
//!
//! - [`serve`], [`Handler`], [`Listener`], [`Limits`]: the server of one shard.
//! - [`quic`]: the same over QUIC, as HTTP/3 and by the native protocol.
//! - [`Peer`], [`RequestBody`], [`BodyFault`]: what a handler gets, and how it cuts an answer off.
//! - [`PinBudget`]: how much of the cache's memory clients may hold.
//! - [`Drain`]: ending without cutting anyone off.
//! - [`tls`]: the local certificate authority, and the server's configuration.
//! - [`TransportMetrics`]: what is counted.

#![deny(unsafe_code)]

pub mod quic;
pub mod tls;

mod activity;
mod body;
mod connection;
mod drain;
mod error;
mod limits;
mod link;
mod listener;
mod metrics;
mod peer;
mod pins;
mod server;
mod socket;
mod stream;
mod watch;

pub use body::{BodyError, BodyFault, RequestBody};
pub use drain::Drain;
pub use error::TransportError;
pub use limits::Limits;
pub use listener::Listener;
pub use metrics::TransportMetrics;
pub use peer::{Peer, Protocol};
pub use pins::{HeldBody, PinBudget};
pub use server::{ErrorText, Handler, Immediate, Keep, PreparedHead, serve};
