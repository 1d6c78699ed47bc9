//! What the control plane says about contents that need not arrive: passed on to every shard, which knows best what it
//! has. A shard that has no time for it is left out.

use std::sync::{Arc, OnceLock, Weak};

use outrider_cache::{Cache, Depth};
use outrider_push::{Hint, Prediction, SoftToEdge};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;

use crate::prefetch::PrefetchMetrics;
use crate::state::{Edge, Message};

/// What became of hints. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct HintMetrics {
    applied: Counter,
    dropped: Counter,
}

impl HintMetrics {
    pub(crate) fn register(&self, registry: &mut Registry) {
        for (name, help, counter) in [
            ("hints_applied", "Contents whose worth the control plane has set", &self.applied),
            ("hints_dropped", "Hints that a shard had no room for", &self.dropped),
        ] {
            registry.register(name, help, counter.clone());
        }
    }

    /// On a shard: sets what depends on what is here.
    pub(crate) fn apply(&self, cache: &Cache, hints: &[Hint]) {
        for Hint { digest, depth_eighths } in hints {
            if cache.set_depth(digest, Depth::from_eighths(*depth_eighths)) {
                self.applied.inc();
            }
        }
    }
}

/// The way to the shards, which are there later than who follows the control plane.
#[derive(Default)]
pub(crate) struct ToShards {
    edge: OnceLock<(Weak<Edge>, HintMetrics, PrefetchMetrics)>,
}

impl ToShards {
    /// From here on the shards are told.
    pub(crate) fn open(&self, edge: &Arc<Edge>, hints: HintMetrics, prefetch: PrefetchMetrics) {
        let _ = self.edge.set((Arc::downgrade(edge), hints, prefetch));
    }

    /// Tells all of them; waits for nobody.
    pub(crate) fn tell(&self, message: SoftToEdge) {
        let Some((edge, hint_metrics, prefetch_metrics)) = self.edge.get() else { return };
        let Some(edge) = edge.upgrade() else { return };
        let SoftToEdge { hints, predictions, .. } = message;
        let hints: Arc<[Hint]> = hints.into();
        let predictions: Arc<[Prediction]> = predictions.into();
        for seat in &edge.seats {
            if !hints.is_empty() && !seat.tell(Message::Hints(Arc::clone(&hints))) {
                hint_metrics.dropped.inc_by(hints.len() as u64);
            }
            let told = || seat.tell(Message::Predictions(Arc::clone(&predictions)));
            if !predictions.is_empty() && !told() {
                prefetch_metrics.count("dropped", predictions.len() as u64);
            }
        }
    }
}
