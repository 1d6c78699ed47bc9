//! One node of the control plane, as a process.
//!
//! - [`config`]: the configuration, every key with its default and bounds.
//! - [`folder`]: the data directory: who this node is.
//! - [`pki`]: the cluster's own authority and the certificates that it signs.
//! - [`token`]: what an operator carries from the cluster to a newcomer.
//! - [`join`]: how a newcomer gets its number and its certificate.
//! - [`graph`]: the dependency graph's store, and how it is.
//! - [`admin`]: the HTTP API.
//! - [`run`]: starts everything, serves until told to stop.
//! - [`embedded`]: a node in the process of an edge.
//! - [`command`]: what the command line does with a running node.

#![forbid(unsafe_code)]

pub mod admin;
pub mod command;
pub mod config;
pub mod embedded;
pub mod folder;
pub mod graph;
pub mod join;
pub mod pki;
pub mod run;
pub mod token;

mod consumer;
mod edges;
mod events;
mod hints;
mod metrics;
mod replicated;
mod service;

pub use admin::{Beside, Pending};
pub use config::Config;
pub use embedded::{Embedded, EmbeddedError};
pub use run::{Ready, RunError, run};
