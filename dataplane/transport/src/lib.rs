//! TCP, TLS and HTTP/1 and 2 on a shard.

pub mod tls;

mod body;
mod drain;
mod error;
mod limits;
mod listener;
mod metrics;
mod peer;
mod pins;
mod server;

pub use body::{BodyError, BodyFault, RequestBody};
pub use drain::Drain;
pub use error::TransportError;
pub use limits::Limits;
pub use listener::Listener;
pub use metrics::TransportMetrics;
pub use peer::{Peer, Protocol};
pub use pins::PinBudget;
pub use server::{Handler, serve};
