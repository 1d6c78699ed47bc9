//! What the control plane says will be asked for: each shard keeps what it would fetch itself, the likeliest first, and
//! fetches one after the other while it fetches nothing for anybody else.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use outrider_gateway::names::Names;
use outrider_gateway::{Gateway, Prefetched};
use outrider_push::Prediction;
use outrider_shard::time;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

/// Predictions that a shard keeps; of more the least likely go.
const KEPT_MAX: usize = 1_024;
/// Between two looks at whether there is something to fetch, and time for it.
const PAUSE: Duration = Duration::from_millis(100);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    /// `fetched`, `here`, `failed`, `expired`, `dropped`.
    outcome: &'static str,
}

/// What became of predictions. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct PrefetchMetrics {
    outcomes: Family<Outcome, Counter>,
    bytes: Counter,
}

impl PrefetchMetrics {
    pub(crate) fn register(&self, registry: &mut Registry) {
        let outcomes = self.outcomes.clone();
        registry.register("prefetches", "Predictions, by what came of them", outcomes);
        registry.register("prefetch_bytes", "Bytes that were fetched ahead", self.bytes.clone());
    }

    pub(crate) fn count(&self, outcome: &'static str, predictions: u64) {
        self.outcomes.get_or_create(&Outcome { outcome }).inc_by(predictions);
    }
}

/// What a shard is to fetch.
#[derive(Debug)]
pub(crate) struct Prefetch {
    /// The likeliest last.
    kept: RefCell<Vec<Prediction>>,
    metrics: PrefetchMetrics,
}

impl Prefetch {
    pub(crate) fn new(metrics: PrefetchMetrics) -> Rc<Self> {
        Rc::new(Self { kept: RefCell::default(), metrics })
    }

    /// Keeps those of which this shard is the home. The newest of a digest wins.
    pub(crate) fn take<N: Names>(&self, gateway: &Gateway<N>, predictions: &[Prediction]) {
        let mut kept = self.kept.borrow_mut();
        for new in predictions.iter().filter(|new| gateway.is_home_of(&new.digest)) {
            kept.retain(|one| one.digest != new.digest);
            let place = kept.partition_point(|one| one.probability <= new.probability);
            kept.insert(place, new.clone());
            if kept.len() > KEPT_MAX {
                kept.remove(0);
                self.metrics.count("dropped", 1);
            }
        }
    }

    /// Fetches for as long as the shard lives.
    pub(crate) async fn run<N: Names>(self: Rc<Self>, gateway: Rc<Gateway<N>>) {
        loop {
            time::sleep(PAUSE).await;
            while gateway.flights() == 0
                && let Some(next) = self.next()
            {
                let Prediction { digest, repository, is_manifest, .. } = &next;
                match gateway.prefetch(repository, digest, *is_manifest).await {
                    Prefetched::Here => self.metrics.count("here", 1),
                    Prefetched::Failed => self.metrics.count("failed", 1),
                    Prefetched::Fetched(bytes) => {
                        self.metrics.count("fetched", 1);
                        self.metrics.bytes.inc_by(bytes);
                    }
                }
            }
        }
    }

    fn next(&self) -> Option<Prediction> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        let mut kept = self.kept.borrow_mut();
        while let Some(next) = kept.pop() {
            if next.expires_unix_ms > now_ms {
                return Some(next);
            }
            self.metrics.count("expired", 1);
        }
        None
    }
}
