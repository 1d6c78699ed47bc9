//! One core's executor: a glommio executor on a thread of its own, pinned to its CPU, with one
//! driver task that decides what runs next and when the thread sleeps.
//!
//! It owns the thread, its doorbell, its deadlines and the readiness of its file descriptors. It
//! knows nothing of networks or protocols, and nothing outside of this crate uses glommio, so that
//! the executor can be replaced behind it.
//!
//! - [`start`], [`ShardConfig`], [`ShardContext`], [`ShardThread`]: the life of a shard.
//! - [`ShardHandle`]: the way into a shard from any other thread.
//! - [`channel`]: messages and single values into a shard.
//! - [`task`]: tasks on this shard. Their wakers may be used and dropped on any thread.
//! - [`time`]: sleeping, on one heap of deadlines per shard.
//! - [`ready`]: waiting for a file descriptor.
//! - [`Source`]: what the driver turns over, such as a disk ring.
//! - [`testing`]: for the tests of the crates above.

#![forbid(unsafe_code)]

pub mod channel;
pub mod ready;
pub mod task;
pub mod testing;
pub mod time;

mod deadlines;
mod driver;
mod error;
mod handle;
mod local;
mod shard;
mod spin;
mod stats;

pub use driver::Source;
pub use error::ShardError;
pub use handle::ShardHandle;
pub use shard::{ShardConfig, ShardContext, ShardThread, start};
pub use stats::ShardStats;
