//! What an operator asks of the names database.

/// Counters and gauges of the names thread. `Clone` shares them.
#[derive(Clone, Debug, Default)]
pub struct NamesMetrics {}

impl NamesMetrics {
    /// Registers all of them, under the prefix `names`.
    pub fn register(&self, _registry: &mut prometheus_client::registry::Registry) {}
}
