//! Every metric of the process in one registry. Each part counts for itself and is shared by all shards;
//! the names all begin with `outrider_`, except those of the process, which have their usual ones.

use outrider_cache::CacheMetrics;
use outrider_gateway::GatewayMetrics;
use outrider_gateway::names::NamesMetrics;
use outrider_transport::TransportMetrics;
use outrider_uplink::UplinkMetrics;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::process::ProcessMetrics;

/// What the parts count in. Clones share it.
#[derive(Clone)]
pub(crate) struct Metrics {
    pub(crate) cache: CacheMetrics,
    pub(crate) gateway: GatewayMetrics,
    pub(crate) names: NamesMetrics,
    pub(crate) transport: TransportMetrics,
    pub(crate) uplink: UplinkMetrics,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Build {
    version: &'static str,
}

impl Metrics {
    /// Makes the registry with everything in it.
    pub(crate) fn new() -> (Metrics, Registry) {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(ProcessMetrics::new()));
        let ours = registry.sub_registry_with_prefix("outrider");
        let build = Family::<Build, Gauge>::default();
        build.get_or_create(&Build { version: env!("CARGO_PKG_VERSION") }).set(1);
        ours.register("build_info", "The version that runs", build);
        let metrics = Metrics {
            cache: CacheMetrics::register(ours),
            gateway: GatewayMetrics::default(),
            names: NamesMetrics::default(),
            transport: TransportMetrics::default(),
            uplink: UplinkMetrics::default(),
        };
        metrics.names.register(ours);
        metrics.transport.register(ours);
        metrics.uplink.register(ours);
        metrics.gateway.register(&mut registry);
        (metrics, registry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    /// The names of all families, as a scrape shows them.
    pub(crate) fn families() -> Vec<String> {
        let (_, registry) = Metrics::new();
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text.lines()
            .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next().map(str::to_owned))
            .collect()
    }

    #[test]
    fn every_metric_has_one_name_with_the_right_beginning() {
        let mut seen = HashSet::new();
        for name in families() {
            assert!(
                name.starts_with("process_")
                    || name.starts_with("outrider_") && !name.starts_with("outrider_outrider"),
                "{name}"
            );
            assert!(seen.insert(name.clone()), "{name} is there twice");
        }
        assert!(seen.contains("outrider_build_info"));
    }

    #[test]
    fn the_manual_names_every_metric() {
        let manual = include_str!("../../../docs/OPERATING.md");
        for name in families() {
            assert!(manual.contains(&format!("`{name}")), "docs/OPERATING.md does not name {name}");
        }
    }
}
