//! The cache of one shard: chunks of content-addressed objects in a memory arena and on SSD
//! stripes, and the uploads that must never be lost.
//!
//! It has no networking and no async runtime: its futures use standard wakers only, and everything
//! moves when the shard's driver calls [`Cache::turn`]. A cache may forget, and must never lie.

pub mod config;
pub mod error;
pub mod metrics;

mod arena;
mod cache;
mod upload;

pub use arena::ChunkWriter;
pub use cache::{
    Access, Cache, Chunk, Costs, Importance, MediaType, ObjectStat, Origin, Tier, Usage,
    stored_size,
};
pub use config::{
    CHUNK_BYTES, CacheConfig, EXTENT_BYTES, Geometry, ImportanceWeights, SEGMENT_BYTES, SsdConfig,
};
pub use error::CacheError;
pub use metrics::CacheMetrics;
pub use upload::{StoredUpload, Upload, UploadId};
