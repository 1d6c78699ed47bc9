//! Calls between nodes: a request and its answer, many at a time on one connection, over TLS where both
//! sides show a certificate of the cluster's own authority.
//!
//! A frame is its length (4 bytes, without itself), the number of the call (8), what it is (1) and its body.
//! Everything is bounded: bodies, calls in flight, frames that wait to be written.
//!
//! - [`frame`]: frames as bytes.
//! - [`tls`]: who is who: certificates and the configurations made of them.
//! - [`pool`]: the calling side.
//! - [`server`]: the answering side.

pub mod frame;
pub mod pool;
pub mod server;
pub mod tls;

pub use pool::{CallError, Lane, Pool};
pub use server::{Service, serve};
pub use tls::{Caller, Identity, Role, TlsContext, TlsError};
