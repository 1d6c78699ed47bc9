//! The local certificate authority, and the TLS configuration of the server.
//!
//! [`load_or_create`], [`server_config`] and [`with_member`] are called at start, before the shards: they read and
//! write files.

mod authority;
mod config;
mod member;

pub use authority::{TlsFiles, load_or_create};
pub use config::server_config;
pub use member::{MemberCertificate, with_member};
