//! The local certificate authority, and the TLS configuration of the server.
//!
//! [`load_or_create`] and [`server_config`] are called at start, before the shards: they read and
//! write files.

mod authority;
mod config;

pub use authority::{TlsFiles, load_or_create};
pub use config::server_config;
