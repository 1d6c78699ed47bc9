//! What the edge and the control plane have in common before they serve.
//!
//! - [`units`]: sizes and durations as people write them.
//! - [`error`]: what is wrong with a configuration, said so that it can be mended.
//! - [`files`]: small files that are written whole or not at all.
//! - [`listen`]: addresses to listen on.
//! - [`logging`]: logs to stderr.
//! - [`notify`]: how far this service is, for systemd.

#![forbid(unsafe_code)]

pub mod error;
pub mod files;
pub mod listen;
pub mod logging;
pub mod notify;
pub mod units;

pub use error::{CONFIG_BYTES_MAX, ConfigError, Invalid, bounded, read};
pub use listen::{Listen, is_host_and_port};
pub use logging::{Log, LogFormat};
