//! What a request means: the OCI distribution API and `/layer/*`, answered from the cache, from an
//! upstream while it comes in, or with the registry's own errors.
//!
//! It has no sockets: requests come from the transport, bytes from the cache and the uplink, names
//! from their database. Everything here runs on one shard, which asks the others for what is theirs.
//!
//! - [`gateway`]: a request taken apart and handed to what answers it.
//! - [`blobs`], [`manifests`], [`uploads`], [`lists`], [`layers`]: the answers.
//! - [`contents`]: whole contents and what becomes of them, wherever they lie. [`mesh`]: the other shards.
//! - [`flight`]: one fetch per digest, however many ask.
//! - [`upstreams`]: which upstream a name means. [`held`]: what other edges of a fleet hold.
//! - [`replicas`]: what is pushed here and must be on other edges too. [`keep`]: what other edges want kept here.
//! - [`prefetch`]: what is fetched before anybody asks for it.
//! - [`accesses`]: what was asked for, until somebody takes it.
//! - [`customers`]: what the control plane says of who asks. [`orders`]: what it orders of the caches.
//! - [`access`]: who asks, and whether they may.
//! - [`names`]: what is hosted, what tags point to, the outbox of events.
//! - [`protocol`]: parsing and writing what goes over the wire. Pure.
//! - [`body`]: what a response sends. [`faults`]: what a failure is called.
//! - [`recover`]: what was pushed is there again after a start.

#![forbid(unsafe_code)]

pub mod access;
pub mod accesses;
mod blobs;
pub mod body;
mod contents;
pub mod customers;
mod faults;
mod flight;
pub mod gateway;
mod held;
mod keep;
mod layers;
mod lists;
mod manifests;
mod mesh;
pub mod metrics;
pub mod names;
pub mod orders;
mod prefetch;
pub mod protocol;
mod ready;
pub mod recover;
mod replicas;
mod single;
mod uploads;
pub mod upstreams;

pub use access::{AccessShared, AccessTables};
pub use accesses::Accesses;
pub use body::GatewayBody;
pub use customers::{Rate, Standing};
pub use gateway::{Gateway, GatewayParts, GatewaySettings};
pub use mesh::{Hub, Inbox, Unanswered};
pub use metrics::GatewayMetrics;
pub use orders::{Order, Orders, Purge, Replaced};
pub use prefetch::Prefetched;
pub use recover::Recovered;
pub use upstreams::Upstream;
