//! What a shard's cache can be told. Every value has a documented default.

use std::path::PathBuf;
use std::time::Duration;

/// A chunk is the unit of caching: 256 KiB.
pub const CHUNK_BYTES: u64 = 256 << 10;
/// A segment is the unit of writing in order and of reclaim.
pub const SEGMENT_BYTES: u64 = 16 << 20;
/// The largest object that the index takes, by default: 64 GiB.
pub const OBJECT_BYTES_MAX: u64 = 64 << 30;

/// Configuration of one shard's cache.
#[derive(Clone, Debug)]
pub struct CacheConfig {
    /// Memory for chunks, in bytes; all of it is resident from the start.
    pub arena_bytes: usize,
    /// The SSD tier; `None`: memory only, no uploads.
    pub ssd: Option<SsdConfig>,
    /// Weights of the importance score.
    pub weights: ImportanceWeights,
    /// Seeds every decision that has a random part: the same seed and the same calls decide alike.
    pub seed: u64,
    /// How long `slot` and `read` may wait for a free slot before they answer `Busy`. Default 2 s.
    pub slot_wait_max: Duration,
    /// The largest object, in bytes. Default [`OBJECT_BYTES_MAX`].
    pub object_bytes_max: u64,
    /// Sizes that are written into the stripes. Leave the default outside of tests.
    pub geometry: Geometry,
}

impl CacheConfig {
    /// A cache in memory alone.
    pub fn new(arena_bytes: usize) -> Self {
        Self {
            arena_bytes,
            ssd: None,
            weights: ImportanceWeights::default(),
            seed: 0,
            slot_wait_max: Duration::from_secs(2),
            object_bytes_max: OBJECT_BYTES_MAX,
            geometry: Geometry::default(),
        }
    }

    /// The same with an SSD tier.
    pub fn with_ssd(arena_bytes: usize, ssd: SsdConfig) -> Self {
        Self { ssd: Some(ssd), ..Self::new(arena_bytes) }
    }
}

/// Configuration of the SSD tier of one shard.
#[derive(Clone, Debug)]
pub struct SsdConfig {
    /// The folder of the stripe files (`stripe-NNN`); made when it is missing.
    pub dir: PathBuf,
    /// Bytes for all stripes together. Fixed at the first start: see [`crate::stored_size`].
    pub bytes: u64,
    /// How many stripes. Fixed at the first start.
    pub stripes: u16,
    /// The share of each stripe that uploads may take. Default 0.8.
    pub upload_share: f64,
    /// Reads in flight at most. Default 64.
    pub queue_depth: u32,
    /// Errors of one stripe after which it is taken out of service. Default 16.
    pub stripe_errors_max: u32,
    /// Register the arena with the kernel (falls back when that is refused). Default true.
    pub register_buffers: bool,
    /// Cached content on the stripes up to this is not believed: what [`crate::Cache::forget_all`] gave. Default 0.
    pub void_through: u64,
}

impl SsdConfig {
    /// `stripes` stripes of together `bytes` bytes in `dir`, everything else by default.
    pub fn new(dir: impl Into<PathBuf>, bytes: u64, stripes: u16) -> Self {
        Self {
            dir: dir.into(),
            bytes,
            stripes,
            upload_share: 0.8,
            queue_depth: 64,
            stripe_errors_max: 16,
            register_buffers: true,
            void_through: 0,
        }
    }
}

/// Sizes that every stripe carries in its superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Payload bytes of a full chunk.
    pub chunk_bytes: u64,
    /// Bytes of a segment.
    pub segment_bytes: u64,
}

impl Default for Geometry {
    fn default() -> Self {
        Self { chunk_bytes: CHUNK_BYTES, segment_bytes: SEGMENT_BYTES }
    }
}

/// Weights of `H = clock + class × frequency × (fetch + execute) × depth / size`: each is an
/// exponent-free factor of its term. All 1.0 by default.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ImportanceWeights {
    /// Multiplies the customer class.
    pub class: f64,
    /// Multiplies the count of distinct customer-minutes.
    pub frequency: f64,
    /// Multiplies the measured fetch time.
    pub fetch: f64,
    /// Multiplies the measured execution (compile, run) time.
    pub execute: f64,
    /// Multiplies `log2(1 + dependants)` before 1 is added.
    pub depth: f64,
}

impl Default for ImportanceWeights {
    fn default() -> Self {
        Self { class: 1.0, frequency: 1.0, fetch: 1.0, execute: 1.0, depth: 1.0 }
    }
}
