//! The control plane, as far as the edge follows it: started once, and shown. Serving never waits for it.

use outrider_follower::{EdgeFolder, Follower, Monitor, Settings, StartError, Status};
use outrider_push::Interest;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use serde_json::{Value, json};

use crate::config::Config;

/// Follows, if this edge has joined a cluster.
///
/// # Errors
/// [`StartError`], also when the configuration wants it and the edge has not joined.
pub(crate) fn start(config: &Config) -> Result<Option<Follower>, StartError> {
    let folder = EdgeFolder::new(&config.control_dir());
    if !folder.has_joined()? && !config.control.is_wanted() {
        return Ok(None);
    }
    let nodes = config.control.nodes.clone();
    let interest = Interest { prefixes: config.control.fragments.clone() };
    Follower::start(Settings { folder, nodes, interest }).map(Some)
}

/// What `/status` shows.
pub(crate) fn json(status: &Status) -> Value {
    json!({
        "edge": status.edge,
        "connected": status.node.is_some(),
        "node": status.node,
        "version": status.version,
        "latest": status.latest,
        "lag": status.lag(),
        "heard_s": status.heard.map(|heard| heard.elapsed().as_secs_f64()),
        "stored": status.stored,
        "store_failure": status.store_failure,
        "last_failure": status.failure,
        "connections": status.connections,
        "updates": status.updates,
        "snapshots": status.snapshots,
        "fragments": status.fragments,
        "tags": status.tags,
        "events": {
            "sent": status.events.sent,
            "held": status.events.held,
            "unsettled": status.events.unsettled,
            "too_large": status.events.too_large,
            "failure": status.events.failure,
        },
    })
}

/// What `/readyz` says beside its verdict: the edge serves all the same.
pub(crate) fn remarks(status: &Status) -> Vec<String> {
    let mut remarks = Vec::new();
    match (&status.node, &status.failure) {
        (Some(_), _) if status.lag() == 0 => {}
        (Some(node), _) => {
            remarks.push(format!("it lags {} updates behind {node}", status.lag()));
        }
        (None, failure) => {
            let why = failure.as_deref().unwrap_or("not connected yet");
            let version = status.version;
            remarks.push(format!("the control plane is not followed, at version {version}: {why}"));
        }
    }
    if let Some(failure) = &status.store_failure {
        remarks.push(format!("what the control plane says is not stored any more: {failure}"));
    }
    if let Some(failure) = &status.events.failure {
        remarks.push(format!("events are not taken: {failure}"));
    }
    remarks
}

/// How the edge stands to the control plane, as metrics; without one everything is 0.
#[derive(Debug)]
pub(crate) struct ControlMetrics(pub(crate) Option<Monitor>);

/// A number: its name behind the prefix, its help, and how it is read.
type Number = (&'static str, &'static str, fn(&Status) -> u64);

const GAUGES: [Number; 6] = [
    ("events_held", "Events that were handed on and are not acknowledged yet", |s| s.events.held),
    ("connected", "Whether a node of the control plane is followed", |s| {
        u64::from(s.node.is_some())
    }),
    ("version", "Version up to which the state is known", |s| s.version),
    ("lag_updates", "Updates of the state that are not known yet", Status::lag),
    ("stored_version", "Version up to which the state is on the disk", |s| s.stored),
    ("store_failed", "Whether the disk of the replica failed", |s| {
        u64::from(s.store_failure.is_some())
    }),
];

const COUNTERS: [Number; 6] = [
    ("events_sent", "Events that were sent, each as often as it was", |s| s.events.sent),
    (
        "accesses_unsettled",
        "Accesses that were dropped, since it is not known whether they arrived",
        |s| s.events.unsettled,
    ),
    ("accesses_too_large", "Accesses that were dropped, since they are too large", |s| {
        s.events.too_large
    }),
    ("connections", "Connections to nodes of the control plane", |s| s.connections),
    ("updates", "Updates of the state that were taken in", |s| s.updates),
    ("snapshots", "Times that the state was taken as a whole", |s| s.snapshots),
];

impl Collector for ControlMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let status = self.0.as_ref().map(Monitor::status).unwrap_or_default();
        for (name, help, read) in GAUGES {
            let name = format!("outrider_follow_{name}");
            let value = i64::try_from(read(&status)).unwrap_or(i64::MAX);
            let metric = encoder.encode_descriptor(&name, help, None, MetricType::Gauge)?;
            ConstGauge::new(value).encode(metric)?;
        }
        for (name, help, read) in COUNTERS {
            let name = format!("outrider_follow_{name}");
            let metric = encoder.encode_descriptor(&name, help, None, MetricType::Counter)?;
            ConstCounter::new(read(&status)).encode(metric)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_remarked_on_when_it_lags_or_is_not_connected() {
        let mut status =
            Status { node: Some("c1:9191".to_owned()), version: 7, ..Status::default() };
        status.latest = 7;
        assert!(remarks(&status).is_empty());
        status.latest = 9;
        assert_eq!(remarks(&status), ["it lags 2 updates behind c1:9191"]);
        status.node = None;
        status.failure = Some("why".to_owned());
        status.store_failure = Some("disk".to_owned());
        let remarks = remarks(&status);
        assert_eq!(remarks[0], "the control plane is not followed, at version 7: why");
        assert!(remarks[1].ends_with("disk"));
    }
}
