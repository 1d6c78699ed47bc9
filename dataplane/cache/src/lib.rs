//! The cache of one shard: chunks of content-addressed objects in a memory arena and on SSD
//! stripes, and the uploads that must never be lost.
//!
//! It has no networking and no async runtime: its futures use standard wakers only, and everything
//! moves when the shard's driver calls [`Cache::turn`]. A cache may forget, and must never lie.
//!
//! From the outside in:
//! - [`cache`](Cache): the handle; [`upload`](Upload): objects that clients store here.
//! - `engine`: ties the tiers together; `wait`: what its futures wait on.
//! - [`customers`]: who asks, and what is kept for whom.
//! - `index`: what is where; `policy`, `admission`: what is worth keeping, and where.
//! - `ram`: the RAM tier over `arena`, the memory (unsafe lives there, and in `disk::ring`).
//! - `store`, `reclaim`: the SSD tier's segments over [`disk`], its format, files and queue.

pub mod config;
pub mod customers;
pub mod disk;
pub mod error;
pub mod metrics;

mod admission;
mod arena;
mod cache;
mod engine;
mod index;
mod placement;
mod policy;
mod ram;
mod reclaim;
#[cfg(test)]
mod simulation;
mod store;
mod upload;
mod wait;

pub use arena::ChunkWriter;
pub use cache::{Access, Cache, Chunk, Costs, Depth, MediaType, ObjectStat, Origin, Tier, Usage};
pub use config::{CHUNK_BYTES, CacheConfig, Geometry, ImportanceWeights, SEGMENT_BYTES, SsdConfig};
pub use customers::{Class, Customer, Share, Terms};
pub use disk::stripe::{Stripes, stored_size};
pub use error::CacheError;
pub use metrics::CacheMetrics;
pub use placement::Placement;
pub use upload::{StoredUpload, Upload, UploadId};
