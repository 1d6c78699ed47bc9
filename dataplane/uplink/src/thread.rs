//! The uplink's thread: it takes fetches from the shards and serves each in a task of its own, on
//! one tokio runtime of one thread. Whatever else cannot run on a shard may be spawned there too.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use outrider_shard::ShardHandle;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

use crate::address::{self, Classifier};
use crate::breaker::BreakerState;
use crate::config::{UPSTREAMS_MAX, UpstreamConfig};
use crate::error::{FetchError, UplinkError};
use crate::fetch::{Command, UplinkClient, Whom};
use crate::lane::{Lane, lock};
use crate::metrics::UplinkMetrics;
use crate::peers::{PeerOptions, Peers};
use crate::redirect::place;
use crate::serve::serve;
use crate::upstream::{Upstream, system_roots};

/// How many fetches may be on their way from the shards to the thread.
const COMMANDS_MAX: usize = 1024;

/// Threads for what blocks: name lookups and password files. A lookup that hangs holds one until
/// the resolver gives up, so there are a few.
const BLOCKING_THREADS_MAX: usize = 8;

/// How long the end waits for such a thread.
const SHUTDOWN_WAIT: Duration = Duration::from_millis(200);

/// What [`start`] needs besides the upstreams.
#[derive(Clone, Debug)]
pub struct UplinkOptions {
    /// Where the uplink counts; register it where the process's metrics are served.
    pub metrics: UplinkMetrics,
    /// Tells which network an address belongs to. A test may have its own idea of it.
    pub classifier: Classifier,
    /// How other edges are reached; without it none is.
    pub peers: Option<PeerOptions>,
}

impl Default for UplinkOptions {
    fn default() -> Self {
        Self { metrics: UplinkMetrics::default(), classifier: address::classify, peers: None }
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
    /// When that was, in seconds since 1970.
    pub last_error_unix_s: Option<u64>,
}

impl LaneStatus {
    fn of(lane: &Lane) -> Self {
        let (breaker, retry_after) = match lane.breaker_state() {
            BreakerState::Closed => ("closed", Duration::ZERO),
            BreakerState::HalfOpen => ("half-open", Duration::ZERO),
            BreakerState::Open { remaining } => ("open", remaining),
        };
        Self {
            breaker,
            retry_after_ms: u64::try_from(retry_after.as_millis()).unwrap_or(u64::MAX),
            in_flight: lane.in_flight(),
            waiting: lane.waiting(),
        }
    }
}

/// Tells how the upstreams are doing. Cheap to clone; any thread.
#[derive(Clone)]
pub struct UplinkMonitor {
    upstreams: Arc<[Arc<Upstream>]>,
}

impl UplinkMonitor {
    /// How the upstreams are doing, in the order of the configuration.
    pub fn status(&self) -> Vec<UpstreamStatus> {
        let status = |upstream: &Arc<Upstream>| {
            let [manifests, blobs] = upstream.lanes().map(LaneStatus::of);
            let url = &upstream.config.url;
            let (last_error, when) = lock(&upstream.last_error).clone().unzip();
            let unix_s = |when: SystemTime| when.duration_since(SystemTime::UNIX_EPOCH).ok();
            UpstreamStatus {
                name: upstream.label.clone(),
                url: format!("{}{}", place(url), url.path().trim_end_matches('/')),
                manifests,
                blobs,
                last_error,
                last_error_unix_s: when.and_then(unix_s).map(|since| since.as_secs()),
            }
        };
        self.upstreams.iter().map(status).collect()
    }
}

/// The running uplink. Dropping it ends the thread without waiting for it.
pub struct Uplink {
    commands: mpsc::Sender<Command>,
    monitor: UplinkMonitor,
    labels: Arc<[String]>,
    metrics: UplinkMetrics,
    runtime: tokio::runtime::Handle,
    /// Dropped to end the thread.
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
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

    /// The uplink's runtime, for what else is not on a shard: the admin server. Blocking there
    /// stops every fetch.
    pub fn runtime(&self) -> tokio::runtime::Handle {
        self.runtime.clone()
    }

    /// How the upstreams are doing, in the order of the configuration.
    pub fn status(&self) -> Vec<UpstreamStatus> {
        self.monitor.status()
    }

    /// A handle that only tells the status, for whoever must not end the uplink.
    pub fn monitor(&self) -> UplinkMonitor {
        self.monitor.clone()
    }

    /// Ends every fetch (`Closed`) and waits for the thread.
    pub fn shutdown(self) {
        drop(self.stop);
        if self.thread.join().is_err() {
            tracing::error!("the uplink thread had panicked");
        }
    }
}

/// Starts the uplink on a thread of its own. Reads the upstreams' files, and connects to nothing.
///
/// # Errors
/// [`UplinkError`], naming what is wrong with which upstream.
pub fn start(
    upstreams: Vec<UpstreamConfig>,
    options: UplinkOptions,
) -> Result<Uplink, UplinkError> {
    if upstreams.len() > UPSTREAMS_MAX {
        return Err(UplinkError::TooMany { found: upstreams.len() });
    }
    let mut names: Vec<_> = upstreams.iter().map(|upstream| upstream.name.as_deref()).collect();
    names.sort_unstable();
    if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        let name = pair[0].unwrap_or("(the bare one, without a name)");
        return Err(UplinkError::Duplicate(name.to_owned()));
    }
    let roots = system_roots();
    let upstreams: Arc<[Arc<Upstream>]> = upstreams
        .into_iter()
        .map(|config| {
            Upstream::new(config, &roots, options.classifier, options.metrics.clone()).map(Arc::new)
        })
        .collect::<Result<_, _>>()?;

    let peers = options.peers.map(|peers| Peers::new(peers, options.metrics.clone()));
    let peers = peers.transpose()?.map(Arc::new);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_name("outrider-lookup")
        .build()
        .map_err(UplinkError::Thread)?;
    let handle = runtime.handle().clone();
    let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
    let (stop, stopped) = oneshot::channel();
    let served = Arc::clone(&upstreams);
    let thread = std::thread::Builder::new()
        .name("outrider-uplink".to_owned())
        .spawn(move || {
            runtime.block_on(run(served, peers, inbox, stopped));
            runtime.shutdown_timeout(SHUTDOWN_WAIT);
        })
        .map_err(UplinkError::Thread)?;
    Ok(Uplink {
        commands,
        labels: upstreams.iter().map(|upstream| upstream.label.clone()).collect(),
        monitor: UplinkMonitor { upstreams },
        metrics: options.metrics,
        runtime: handle,
        stop,
        thread,
    })
}

/// Serves until it is stopped. The number of tasks is bounded by the lanes: what finds no place and
/// no room to wait ends in its first turn.
async fn run(
    upstreams: Arc<[Arc<Upstream>]>,
    peers: Option<Arc<Peers>>,
    mut inbox: mpsc::Receiver<Command>,
    mut stopped: oneshot::Receiver<()>,
) {
    loop {
        let command = tokio::select! {
            biased;
            _ = &mut stopped => return,
            Some(command) = inbox.recv() => command,
        };
        match command.request.from {
            Whom::Upstream(id) => match upstreams.get(usize::from(id.0)) {
                Some(upstream) => {
                    tokio::spawn(serve(Arc::clone(upstream), command));
                }
                None => command.answer.complete(Err(FetchError::NotFound)),
            },
            Whom::Peer(member) => match &peers {
                Some(peers) => {
                    tokio::spawn(Arc::clone(peers).serve(member, command));
                }
                None => command.answer.complete(Err(FetchError::NotFound)),
            },
        }
    }
}
