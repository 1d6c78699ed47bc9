//! One core's executor.

pub mod channel;
pub mod task;
pub mod time;

mod error;
mod handle;
mod shard;

pub use error::ShardError;
pub use handle::ShardHandle;
pub use shard::{ShardConfig, ShardContext, ShardThread, Source, start};
