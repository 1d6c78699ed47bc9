//! Who may use an admin API, of a node or of an edge: one configuration, one check, one TLS.
//!
//! - [`config`]: `[admin.auth]` and `[admin.tls]`.
//! - [`auth`]: operators' tokens.
//! - [`page`]: requests of pages in a browser, where no token is asked for.
//! - [`tls`]: what the API shows.

#![forbid(unsafe_code)]

pub mod auth;
pub mod config;
pub mod page;
pub mod tls;

pub use auth::{AuthError, Needs, Operator, Operators, Refused};
pub use config::{AdminSection, AuthSection, TlsSection};
pub use page::why_a_page;
pub use tls::{TlsError, acceptor};
