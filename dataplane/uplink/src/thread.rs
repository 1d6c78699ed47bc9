//! The uplink's thread.

use std::sync::Arc;

use outrider_shard::ShardHandle;
use serde::Serialize;
use tokio::sync::mpsc;

use crate::address::{self, Classifier};
use crate::config::UpstreamConfig;
use crate::error::UplinkError;
use crate::fetch::{Command, UplinkClient};
use crate::metrics::UplinkMetrics;

/// What [`start`] needs besides the upstreams.
#[derive(Clone, Debug)]
pub struct UplinkOptions {
    /// Where the uplink counts; register it where the process's metrics are served.
    pub metrics: UplinkMetrics,
    /// Tells which network an address belongs to. A test may have its own idea of it.
    pub classifier: Classifier,
}

impl Default for UplinkOptions {
    fn default() -> Self {
        Self { metrics: UplinkMetrics::default(), classifier: address::classify }
    }
}

/// How one lane of an upstream is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LaneStatus {
    /// `closed`, `half-open` or `open`.
    pub breaker: &'static str,
    /// For how much longer nothing is asked, in milliseconds; 0 unless it is open.
    pub retry_after_ms: u64,
    /// Fetches under way.
    pub in_flight: usize,
    /// Fetches that wait for a place.
    pub waiting: usize,
}

/// How an upstream is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UpstreamStatus {
    /// Its name, or its host.
    pub name: String,
    /// Its URL.
    pub url: String,
    /// The lane of manifests.
    pub manifests: LaneStatus,
    /// The lane of blobs.
    pub blobs: LaneStatus,
    /// The last error that counted against it.
    pub last_error: Option<String>,
}

/// Tells how the upstreams are doing. Cheap to clone; any thread.
#[derive(Clone)]
pub struct UplinkMonitor {}

impl UplinkMonitor {
    /// How the upstreams are doing, in the order of the configuration.
    pub fn status(&self) -> Vec<UpstreamStatus> {
        unimplemented!()
    }
}

/// The running uplink.
pub struct Uplink {
    commands: mpsc::Sender<Command>,
    labels: Arc<[String]>,
    metrics: UplinkMetrics,
    runtime: tokio::runtime::Handle,
}

impl Uplink {
    /// The way to the uplink for one shard.
    pub fn client(&self, shard: &ShardHandle) -> UplinkClient {
        UplinkClient {
            commands: self.commands.clone(),
            shard: shard.clone(),
            labels: Arc::clone(&self.labels),
            metrics: self.metrics.clone(),
        }
    }

    /// The uplink's runtime, for what else is not on a shard: the admin server.
    pub fn runtime(&self) -> tokio::runtime::Handle {
        self.runtime.clone()
    }

    /// How the upstreams are doing, in the order of the configuration.
    pub fn status(&self) -> Vec<UpstreamStatus> {
        self.monitor().status()
    }

    /// A handle that only tells the status, for whoever must not end the uplink.
    pub fn monitor(&self) -> UplinkMonitor {
        UplinkMonitor {}
    }

    /// Ends every fetch (`Closed`) and waits for the thread.
    pub fn shutdown(self) {
        unimplemented!()
    }
}

/// Starts the uplink on a thread of its own.
///
/// # Errors
/// [`UplinkError`], naming what is wrong with which upstream.
pub fn start(
    upstreams: Vec<UpstreamConfig>,
    options: UplinkOptions,
) -> Result<Uplink, UplinkError> {
    let _ = (upstreams, options);
    unimplemented!()
}
