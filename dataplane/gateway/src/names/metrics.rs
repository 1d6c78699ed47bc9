//! What the names database counts. Clones share the same counters.

use outrider_metrics::Counter;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::store::Sizes;

/// What was asked, and how it ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct NamesLabels {
    /// The kind of question or change.
    pub kind: &'static str,
    /// `done`, `refused` (by a rule) or `failed` (by the disk).
    pub outcome: &'static str,
}

macro_rules! metrics {
    ($($(#[doc = $help:literal])+ $name:ident: $kind:ty = $published:literal,)+) => {
        /// The metrics of the names database; see `docs/OPERATING.md` for the published names.
        #[derive(Clone, Debug)]
        #[allow(missing_docs)] // Each has its help text, which is what is published.
        pub struct NamesMetrics {
            $(pub $name: $kind,)+
            /// Seconds from the begin of a transaction until it is on the disk
            pub commit_seconds: Histogram,
        }

        impl NamesMetrics {
            /// Publishes all of them.
            pub fn register(&self, registry: &mut Registry) {
                $(registry.register($published, concat!($($help,)+), self.$name.clone());)+
                registry.register(
                    "outrider_names_commit_seconds",
                    " Seconds from the begin of a transaction until it is on the disk",
                    self.commit_seconds.clone(),
                );
            }
        }

        impl Default for NamesMetrics {
            fn default() -> Self {
                Self {
                    $($name: Default::default(),)+
                    // 50 µs to 1.6 s.
                    commit_seconds: Histogram::new(exponential_buckets(50e-6, 2.0, 16)),
                }
            }
        }
    };
}

metrics! {
    /// Questions and changes that reached the names database
    requests: Family<NamesLabels, Counter> = "outrider_names_requests",
    /// Questions that a shard answered from what it had asked before
    recent_hits: Counter = "outrider_names_recent_hits",
    /// Requests that were refused since too many waited
    busy: Counter = "outrider_names_busy",
    /// Transactions that were committed; one holds all changes that waited
    commits: Counter = "outrider_names_commits",
    /// Times that the file was opened again after the disk had failed
    reopened: Counter = "outrider_names_reopened",
    /// Mirrored tags that were forgotten to make room
    mirrored_forgotten: Counter = "outrider_names_mirrored_forgotten",
    /// Events that were dropped from the outbox, since nobody took them
    events_dropped: Counter = "outrider_outbox_dropped",
    /// Manifests of upstreams that are not told of, since too many events wait in the outbox
    events_left_out: Counter = "outrider_outbox_left_out",
    /// Events that wait in the outbox
    outbox_pending: Gauge = "outrider_outbox_pending",
    /// Repositories that something was pushed to
    repositories: Gauge = "outrider_names_repositories",
    /// Tags that were pushed
    tags: Gauge = "outrider_names_tags",
    /// Contents that were pushed
    contents: Gauge = "outrider_names_contents",
    /// Tags of upstreams that are remembered
    mirrored_tags: Gauge = "outrider_names_mirrored_tags",
}

impl NamesMetrics {
    pub(super) fn show_sizes(&self, sizes: Sizes) {
        let show = |gauge: &Gauge, count: u64| {
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        };
        show(&self.repositories, sizes.repositories);
        show(&self.tags, sizes.tags);
        show(&self.contents, sizes.contents);
        show(&self.mirrored_tags, sizes.mirrored_tags);
        show(&self.outbox_pending, sizes.outbox);
    }

    pub(super) fn count(&self, kind: &'static str, outcome: &'static str) {
        self.requests.get_or_create(&NamesLabels { kind, outcome }).inc();
    }
}
