//! The local certificate authority, and the TLS configuration of the server.
//!
//! [`load_or_create`], [`server_config`], [`with_member`] and [`asking_members`] are called at start, before the shards: they read and
//! write files.

mod authority;
mod config;
mod member;

pub use authority::{TlsFiles, load_or_create};
pub use config::server_config;
pub(crate) use member::names_in;
pub use member::{MemberCertificate, asking_members, with_member};
