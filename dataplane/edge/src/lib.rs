//! The edge daemon: one process that serves from the shards of one box.
//!
//! - [`config`]: the configuration, every key with its default and bounds; [`units`] reads sizes and
//!   durations.
//! - [`defaults`]: what is decided by looking at the machine.
//! - [`data_dir`]: the data directory, its format, and the lock that keeps a second instance out.
//! - [`run`]: starts everything, serves until told to stop, and drains.
//! - `auth`: who may do what.
//! - [`admin`]: metrics, health and status over HTTP.

#![forbid(unsafe_code)]

pub mod admin;
mod auth;
pub mod config;
pub mod data_dir;
pub mod defaults;
mod events;
pub mod run;
pub mod shard_main;
pub mod sizes;
pub mod sockets;

mod crossing;
mod follow;
mod fragments;
mod hints;
mod metrics;
mod orders;
mod parts;
mod prefetch;
mod process;
mod state;
mod voided;

pub use outrider_settings::{logging, units};

pub use auth::AuthError;
pub use config::{Config, ConfigError};
pub use data_dir::{DataDir, DataDirError};
pub use run::{Companion, Ready, RunError, Stopped, run};
pub use state::Pages;
