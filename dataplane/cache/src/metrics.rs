//! The numbers an operator asks the cache for.
//!
//! One set per process: every shard's cache holds a clone and adds to the same counters. Gauges are
//! moved by differences for the same reason.

use std::sync::atomic::AtomicU64;

use outrider_metrics::Counter;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TierLabel {
    tier: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EvictionLabels {
    tier: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OperationLabel {
    operation: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ClassLabel {
    class: &'static str,
}

/// Metrics of one process's caches; clones share the numbers.
#[derive(Clone, Debug)]
pub struct CacheMetrics {
    pub(crate) hits_ram: Counter,
    pub(crate) hits_ssd: Counter,
    pub(crate) misses: Counter,
    pub(crate) evicted_ram: Counter,
    pub(crate) evicted_ram_share: Counter,
    pub(crate) evicted_ram_demoted: Counter,
    pub(crate) evicted_ssd: Counter,
    pub(crate) evicted_ssd_share: Counter,
    pub(crate) evicted_ssd_demoted: Counter,
    pub(crate) evicted_guaranteed: Counter,
    pub(crate) expired: Counter,
    pub(crate) evicted_damaged: Counter,
    pub(crate) evicted_forgotten: Counter,
    pub(crate) evicted_stripe: Counter,
    pub(crate) refused_seen_once: Counter,
    pub(crate) refused_queue_full: Counter,
    pub(crate) refused_no_room: Counter,
    pub(crate) refused_unknown: Counter,
    pub(crate) refused_hosted: Counter,
    pub(crate) refused_busy: Counter,
    pub(crate) refused_store_full: Counter,
    pub(crate) bytes_ram: Counter,
    pub(crate) bytes_ssd: Counter,
    pub(crate) disk_read_bytes: Counter,
    pub(crate) disk_written_bytes: Counter,
    pub(crate) errors_read: Counter,
    pub(crate) errors_write: Counter,
    pub(crate) errors_sync: Counter,
    pub(crate) damaged_cached: Counter,
    pub(crate) damaged_hosted: Counter,
    pub(crate) reclaimed_segments: Counter,
    pub(crate) reclaim_rewritten_bytes: Counter,
    pub(crate) lost_tombstones: Counter,
    pub(crate) pinned_bytes: Gauge,
    pub(crate) upload_bytes: Gauge,
    pub(crate) ssd_live_bytes: Gauge,
    pub(crate) stripes_out: Gauge,
    pub(crate) scan_chunks: Counter,
    pub(crate) scan_uploads: Counter,
    pub(crate) scan_damaged: Counter,
    pub(crate) scan_stripes_recreated: Counter,
    pub(crate) scan_seconds: Gauge<f64, AtomicU64>,
    pub(crate) slots: [Gauge; CLASSES],
}

/// Names of the slot classes, smallest first; small geometries use fewer.
const CLASS_NAMES: [&str; CLASSES] = ["4KiB", "8KiB", "32KiB", "128KiB", "chunk"];
pub(crate) const CLASSES: usize = 5;

impl Default for CacheMetrics {
    /// Metrics that nobody reads.
    fn default() -> Self {
        Self::register(&mut Registry::default())
    }
}

fn family<L, const N: usize>(
    registry: &mut Registry,
    name: &str,
    help: &str,
    labels: [L; N],
) -> [Counter; N]
where
    L: Clone + std::fmt::Debug + Eq + std::hash::Hash + EncodeLabelSet + Send + Sync + 'static,
{
    let family = Family::<L, Counter>::default();
    registry.register(name, help, family.clone());
    labels.map(|label| family.get_or_create(&label).clone())
}

impl CacheMetrics {
    /// Makes the metrics and registers them; every name starts with `cache_`.
    pub fn register(registry: &mut Registry) -> Self {
        let registry = registry.sub_registry_with_prefix("cache");
        let counter = |registry: &mut Registry, name: &str, help: &str| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let gauge = |registry: &mut Registry, name: &str, help: &str| {
            let gauge: Gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let reason = |reason| ReasonLabel { reason };
        let tier = |tier| TierLabel { tier };
        let evicted = |tier, reason| EvictionLabels { tier, reason };

        let [hits_ram, hits_ssd] =
            family(registry, "hits", "Chunks found, by tier", [tier("ram"), tier("ssd")]);
        let misses = counter(registry, "misses", "Chunks asked for and not found");
        let [
            evicted_ram,
            evicted_ram_share,
            evicted_ram_demoted,
            evicted_ssd,
            evicted_ssd_share,
            evicted_ssd_demoted,
            evicted_guaranteed,
            evicted_damaged,
            evicted_forgotten,
            evicted_stripe,
        ] = family(
            registry,
            "evictions",
            "Chunks dropped, by tier and reason",
            [
                evicted("ram", "score"),
                evicted("ram", "above_share"),
                evicted("ram", "demoted"),
                evicted("ssd", "score"),
                evicted("ssd", "above_share"),
                evicted("ssd", "demoted"),
                evicted("ssd", "guaranteed"),
                evicted("ssd", "damaged"),
                evicted("all", "forgotten"),
                evicted("ssd", "stripe_out"),
            ],
        );
        let [
            refused_seen_once,
            refused_queue_full,
            refused_no_room,
            refused_unknown,
            refused_hosted,
            refused_busy,
            refused_store_full,
        ] = family(
            registry,
            "refusals",
            "What was not admitted or not done, by reason",
            [
                reason("seen_once"),
                reason("write_queue_full"),
                reason("no_room"),
                reason("unknown_object"),
                reason("hosted"),
                reason("busy"),
                reason("store_full"),
            ],
        );
        let [bytes_ram, bytes_ssd] =
            family(registry, "bytes", "Bytes handed out, by tier", [tier("ram"), tier("ssd")]);
        let operation = |operation| OperationLabel { operation };
        let [disk_read_bytes, disk_written_bytes] = family(
            registry,
            "disk_bytes",
            "Bytes moved from and to the stripes",
            [operation("read"), operation("write")],
        );
        let [errors_read, errors_write, errors_sync] = family(
            registry,
            "disk_errors",
            "Failed operations on the stripes",
            [operation("read"), operation("write"), operation("sync")],
        );
        let kind = |kind| KindLabel { kind };
        let [damaged_cached, damaged_hosted] = family(
            registry,
            "damaged_records",
            "Records that did not match their hash or identity when read",
            [kind("cached"), kind("hosted")],
        );
        let scan_seconds = Gauge::<f64, AtomicU64>::default();
        registry.register_with_unit(
            "scan_duration",
            "How long the last scan at start took",
            Unit::Seconds,
            scan_seconds.clone(),
        );
        let slots = Family::<ClassLabel, Gauge>::default();
        registry.register("arena_slots", "Slots of the arena in use, by class", slots.clone());
        Self {
            hits_ram,
            hits_ssd,
            misses,
            evicted_ram,
            evicted_ram_share,
            evicted_ram_demoted,
            evicted_ssd,
            evicted_ssd_share,
            evicted_ssd_demoted,
            evicted_guaranteed,
            expired: counter(
                registry,
                "expired",
                "Objects that were not used for longer than their time to live",
            ),
            evicted_damaged,
            evicted_forgotten,
            evicted_stripe,
            refused_seen_once,
            refused_queue_full,
            refused_no_room,
            refused_unknown,
            refused_hosted,
            refused_busy,
            refused_store_full,
            bytes_ram,
            bytes_ssd,
            disk_read_bytes,
            disk_written_bytes,
            errors_read,
            errors_write,
            errors_sync,
            damaged_cached,
            damaged_hosted,
            reclaimed_segments: counter(
                registry,
                "reclaimed_segments",
                "Segments that were emptied to be written again",
            ),
            reclaim_rewritten_bytes: counter(
                registry,
                "reclaim_rewritten_bytes",
                "Bytes of records that reclaim and compaction moved",
            ),
            lost_tombstones: counter(
                registry,
                "lost_tombstones",
                "Tombstones that could not be written: a purge may come back after a restart",
            ),
            pinned_bytes: gauge(
                registry,
                "pinned_bytes",
                "Bytes of slots that were evicted and are still held by readers",
            ),
            upload_bytes: gauge(registry, "upload_bytes", "Bytes of upload records on disk"),
            ssd_live_bytes: gauge(
                registry,
                "ssd_live_bytes",
                "Bytes of records on the stripes that are in use",
            ),
            stripes_out: gauge(registry, "stripes_out", "Stripes taken out after errors"),
            scan_chunks: counter(registry, "scan_chunks", "Cached chunks found by scans at start"),
            scan_uploads: counter(registry, "scan_uploads", "Uploads found by scans at start"),
            scan_damaged: counter(
                registry,
                "scan_damaged_blocks",
                "Places where a scan expected a record and found none",
            ),
            scan_stripes_recreated: counter(
                registry,
                "scan_stripes_recreated",
                "Stripe files that were missing at start",
            ),
            scan_seconds,
            slots: CLASS_NAMES.map(|class| slots.get_or_create(&ClassLabel { class }).clone()),
        }
    }
}
