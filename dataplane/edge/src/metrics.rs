//! Every metric of the process in one registry. Each part counts for itself and is shared by all shards;
//! the names all begin with `outrider_`, except those of the process, which have their usual ones.

use std::sync::{Arc, Mutex, PoisonError};

use outrider_cache::CacheMetrics;
use outrider_follower::Monitor;
use outrider_gateway::GatewayMetrics;
use outrider_gateway::names::{NamesMetrics, StoredBytes, StoredShare};
use outrider_shard::{ShardHandle, ShardStats};
use outrider_transport::TransportMetrics;
use outrider_uplink::UplinkMetrics;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::Registry;

use crate::follow::ControlMetrics;
use crate::hints::HintMetrics;
use crate::prefetch::PrefetchMetrics;
use crate::process::ProcessMetrics;
use crate::state::ShardReport;

/// What every name begins with.
const PREFIX: &str = "outrider";

/// What the parts count in. Clones share it.
#[derive(Clone)]
pub(crate) struct Metrics {
    pub(crate) cache: CacheMetrics,
    pub(crate) gateway: GatewayMetrics,
    pub(crate) names: NamesMetrics,
    pub(crate) transport: TransportMetrics,
    pub(crate) uplink: UplinkMetrics,
    pub(crate) shards: ShardMetrics,
    pub(crate) shard_gauges: ShardGauges,
    pub(crate) recovered: Family<RecoveredLabels, Gauge>,
    pub(crate) hints: HintMetrics,
    pub(crate) prefetch: PrefetchMetrics,
}

/// How a content that was pushed before fared at the start.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct RecoveredLabels {
    /// `hosted` or `lost`.
    pub(crate) outcome: &'static str,
}

/// What the shards' drivers count. Clones share the list of shards.
#[derive(Debug, Clone, Default)]
pub(crate) struct ShardMetrics(Arc<Mutex<Vec<ShardHandle>>>);

/// A counter of a driver: its name, its help, and how it is read.
type DriverCounter = (&'static str, &'static str, fn(&ShardStats) -> u64);

const DRIVER_COUNTERS: [DriverCounter; 5] = [
    ("turns", "Turns of the driver", ShardStats::turns),
    ("parks", "Times that the thread slept", ShardStats::parks),
    ("spins_won", "Times that spinning found work before the thread slept", ShardStats::spins_won),
    ("spins_lost", "Times that spinning found nothing", ShardStats::spins_lost),
    ("stalls", "Times that the driver's turn came much too late", ShardStats::stalls),
];

impl ShardMetrics {
    /// Shows this shard too.
    pub(crate) fn add(&self, handle: ShardHandle) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(handle);
    }
}

impl Collector for ShardMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let shards = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (name, help, read) in DRIVER_COUNTERS {
            let name = format!("{PREFIX}_shard_{name}");
            let mut family = encoder.encode_descriptor(&name, help, None, MetricType::Counter)?;
            for shard in &shards {
                let label = [("shard", shard.id().to_string())];
                ConstCounter::new(read(shard.stats())).encode(family.encode_family(&label)?)?;
            }
        }
        Ok(())
    }
}

/// Customers of whom it is shown what they have stored: those with a limit, the first so many by name.
const STORED_SHOWN_MAX: usize = 200;

/// What customers have stored.
#[derive(Debug)]
struct StoredMetrics(Arc<StoredBytes>);

/// A gauge of a customer: its name, its help, and how it is read.
type StoredGauge = (&'static str, &'static str, fn(&StoredShare) -> u64);

const STORED_GAUGES: [StoredGauge; 2] = [
    ("used_bytes", "Bytes that the customer has pushed and that are here", |s| s.used_bytes),
    ("limit_bytes", "Bytes that the customer may have here", |s| s.limit_bytes),
];

impl Collector for StoredMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let shares = self.0.limited(STORED_SHOWN_MAX);
        for (name, help, read) in STORED_GAUGES {
            let name = format!("{PREFIX}_customer_stored_{name}");
            let mut family = encoder.encode_descriptor(&name, help, None, MetricType::Gauge)?;
            for share in &shares {
                let label = [("customer", &*share.customer)];
                let value = i64::try_from(read(share)).unwrap_or(i64::MAX);
                ConstGauge::new(value).encode(family.encode_family(&label)?)?;
            }
        }
        Ok(())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Build {
    version: &'static str,
}

/// A shard.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ShardLabel {
    shard: String,
}

/// A gauge of a shard: its name, its help, and how it is read.
type ShardGauge = (&'static str, &'static str, fn(&ShardReport) -> u64);

const SHARD_GAUGES: [ShardGauge; 13] = [
    ("ram_used_bytes", "Bytes of the RAM arena in use", |r| r.cache.ram_used_bytes),
    ("ram_bytes", "Bytes of the RAM arena", |r| r.cache.ram_total_bytes),
    ("ssd_used_bytes", "Bytes of live records of the SSD tier", |r| r.cache.ssd_used_bytes),
    ("ssd_bytes", "Bytes of the SSD tier", |r| r.cache.ssd_total_bytes),
    ("uploads_used_bytes", "Bytes of the SSD tier that pushes take", |r| r.cache.uploads_bytes),
    ("uploads_bytes", "Bytes of the SSD tier that pushes may take", |r| {
        r.cache.uploads_total_bytes
    }),
    ("objects", "Objects in the index", |r| r.cache.objects),
    ("hosted_objects", "Objects that were pushed", |r| r.cache.hosted),
    ("guaranteed_ram_bytes", "Bytes of the RAM arena that are guaranteed to customers", |r| {
        r.shares.iter().map(|share| share.guaranteed_ram_bytes).sum()
    }),
    ("guaranteed_ram_used_bytes", "Bytes of the RAM arena that are theirs, within that", |r| {
        let used = r.shares.iter().map(|share| share.ram_bytes.min(share.guaranteed_ram_bytes));
        used.sum()
    }),
    ("guaranteed_ssd_bytes", "Bytes of the SSD tier that are guaranteed to customers", |r| {
        r.shares.iter().map(|share| share.guaranteed_ssd_bytes).sum()
    }),
    ("guaranteed_ssd_used_bytes", "Bytes of the SSD tier that are theirs, within that", |r| {
        let used = r.shares.iter().map(|share| share.ssd_bytes.min(share.guaranteed_ssd_bytes));
        used.sum()
    }),
    ("flights", "Fetches of a digest that are under way", |r| r.flights as u64),
];

/// What the shards say when the metrics are read. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct ShardGauges {
    answers: Family<ShardLabel, Gauge>,
    gauges: [Family<ShardLabel, Gauge>; SHARD_GAUGES.len()],
}

impl ShardGauges {
    fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("shard");
        registry.register(
            "answers",
            "Whether the shard answered when the metrics were read",
            self.answers.clone(),
        );
        for ((name, help, _), gauge) in SHARD_GAUGES.iter().zip(&self.gauges) {
            registry.register(*name, *help, gauge.clone());
        }
    }

    /// Takes what a shard said; None when it did not answer, so that only that changes.
    pub(crate) fn set(&self, shard: usize, report: Option<&ShardReport>) {
        let label = ShardLabel { shard: shard.to_string() };
        self.answers.get_or_create(&label).set(i64::from(report.is_some()));
        let Some(report) = report else { return };
        for ((_, _, read), gauge) in SHARD_GAUGES.iter().zip(&self.gauges) {
            gauge.get_or_create(&label).set(i64::try_from(read(report)).unwrap_or(i64::MAX));
        }
    }
}

impl Metrics {
    /// Makes the registry with everything in it.
    pub(crate) fn new(control: Option<Monitor>, stored: &Arc<StoredBytes>) -> (Metrics, Registry) {
        let mut registry = Registry::default();
        let metrics = Metrics {
            cache: CacheMetrics::register(registry.sub_registry_with_prefix(PREFIX)),
            gateway: GatewayMetrics::default(),
            names: NamesMetrics::default(),
            transport: TransportMetrics::default(),
            uplink: UplinkMetrics::default(),
            shards: ShardMetrics::default(),
            shard_gauges: ShardGauges::default(),
            recovered: Family::default(),
            hints: HintMetrics::default(),
            prefetch: PrefetchMetrics::default(),
        };
        // Some parts write their whole names, and others only what stands behind the prefix.
        metrics.gateway.register(&mut registry);
        metrics.names.register(&mut registry);
        registry.register_collector(Box::new(metrics.shards.clone()));
        registry.register_collector(Box::new(ProcessMetrics::new()));
        registry.register_collector(Box::new(ControlMetrics(control)));
        registry.register_collector(Box::new(StoredMetrics(Arc::clone(stored))));
        let ours = registry.sub_registry_with_prefix(PREFIX);
        metrics.transport.register(ours);
        metrics.uplink.register(ours);
        metrics.shard_gauges.register(ours);
        metrics.hints.register(ours);
        metrics.prefetch.register(ours);
        ours.register(
            "recovered_contents",
            "Contents that were pushed before, by how they fared at this start",
            metrics.recovered.clone(),
        );
        let build = Family::<Build, Gauge>::default();
        build.get_or_create(&Build { version: env!("CARGO_PKG_VERSION") }).set(1);
        ours.register("build_info", "The version that runs", build);
        (metrics, registry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    /// What a shard says that was just started.
    fn report() -> ShardReport {
        ShardReport {
            cache: outrider_cache::Usage::default().into(),
            flights: 0,
            shares: Vec::new(),
            pinned_bytes: 0,
            recovered: crate::state::RecoveredReport { hosted: 0, lost: 0 },
            outbox: None,
        }
    }

    /// The names of all families that are shown before the first request, as their series have them.
    fn families() -> Vec<String> {
        let (metrics, registry) = Metrics::new(None, &Arc::default());
        metrics.shard_gauges.set(0, Some(&report()));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text.lines()
            .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
            .map(|(name, kind)| match kind {
                "counter" => format!("{name}_total"),
                _ => name.to_owned(),
            })
            .collect()
    }

    #[test]
    fn every_metric_has_one_name_with_the_right_beginning() {
        let mut seen = HashSet::new();
        for name in families() {
            let ours = name.starts_with("outrider_") && !name.starts_with("outrider_outrider");
            assert!(ours || name.starts_with("process_"), "{name}");
            assert!(seen.insert(name.clone()), "{name} is there twice");
        }
        assert!(seen.contains("outrider_build_info"));
        assert!(seen.contains("outrider_shard_ram_used_bytes"));
    }

    #[test]
    fn the_manual_names_every_metric() {
        let manual = include_str!("../../../docs/OPERATING.md");
        for name in families() {
            let row = format!("| `{name}` |");
            assert!(manual.contains(&row), "docs/OPERATING.md has no row for {name}");
        }
    }

    #[test]
    fn a_shard_that_does_not_answer_shows_that_and_keeps_its_last_numbers() {
        let (metrics, registry) = Metrics::new(None, &Arc::default());
        let mut report = report();
        report.flights = 7;
        metrics.shard_gauges.set(0, Some(&report));
        metrics.shard_gauges.set(0, None);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in
            ["outrider_shard_answers{shard=\"0\"} 0", "outrider_shard_flights{shard=\"0\"} 7"]
        {
            assert!(text.lines().any(|l| l == line), "no {line} in {text}");
        }
    }
}
