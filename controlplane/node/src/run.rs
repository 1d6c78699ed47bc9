//! Starts everything, serves until told to stop, and ends in order.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use outrider_link::{Boards, ServedBeside};
use outrider_raft::consensus::StartError;
use outrider_raft::rpc::{Pool, Role, TlsContext, TlsError, serve};
use outrider_raft::{Consensus, Peer, Settings};
use outrider_settings::notify::{State, notify};
use outrider_state::change::HistoryLimits;
use outrider_state::{Operation, Outcome};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, watch};

use crate::admin::{Admin, GRAPH_BODIES_MAX, server};
use crate::config::Config;
use crate::consumer;
use crate::edges::{self, Edges};
use crate::events::{self, Events, EventsError};
use crate::folder::{FOUNDER, Folder, FolderError, NodeFile};
use crate::graph::GraphService;
use crate::hints::Hints;
use crate::metrics::Metrics;
use crate::pki::{Authority, PkiError, SigningRequest, request_for};
use crate::service::Members;

/// Threads of the runtime, where there are as many CPUs.
const THREADS_MAX: usize = 4;
/// Before a newcomer asks again to be taken in.
const ENLIST_PAUSE: Duration = Duration::from_millis(500);
/// For telling edges that the node stops.
const CLOSE_TIME_MAX: Duration = Duration::from_millis(500);
/// How often it is looked whether consensus still runs.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);
/// How long the founder's own token is good.
const FOUNDER_TTL_MS: u64 = 60_000;

/// Why a node did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The folder.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// A key or a certificate.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// TLS for edges.
    #[error("the push stream cannot be set up: {0}")]
    Push(#[from] outrider_link::tls::TlsError),
    /// The queue of events.
    #[error(transparent)]
    Events(#[from] EventsError),
    /// Log, snapshot or consensus.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A listener.
    #[error("cannot listen on {key} = {address}: {source}")]
    Listen {
        /// The key.
        key: &'static str,
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// Threads or signals.
    #[error("cannot start: {0}")]
    System(io::Error),
    /// The graph's password.
    #[error("the graph cannot be set up: {0}")]
    Graph(#[from] io::Error),
    /// The first node could not write down that it is one.
    #[error("the new cluster cannot be set up: {0}")]
    Found(String),
    /// Consensus ended: most often the disk.
    #[error("consensus stopped: {0}")]
    Stopped(String),
}

/// What is said once the node serves.
#[derive(Clone, Debug)]
pub struct Ready {
    /// The node's number.
    pub node: u64,
    /// Where other nodes reach it.
    pub peers: SocketAddr,
    /// The admin API.
    pub admin: SocketAddr,
}

/// Runs a node until SIGTERM or SIGINT.
///
/// # Errors
/// [`RunError`]
pub fn run(config: &Config, ready: impl FnOnce(&Ready)) -> Result<(), RunError> {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(THREADS_MAX));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name("control")
        .enable_all()
        .build()
        .map_err(RunError::System)?;
    let result = runtime.block_on(run_node(config, ready));
    // What is still going on is nothing that anybody waits for.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

async fn run_node(config: &Config, ready: impl FnOnce(&Ready)) -> Result<(), RunError> {
    let folder = Arc::new(Folder::open(&config.data.dir)?);
    let node = folder.node()?;
    let authority = Arc::new(folder.authority()?);
    let identity = folder.identity(&node, SystemTime::now())?;
    let tls = TlsContext::new(&identity)?;
    let graph = Arc::new(GraphService::new(&config.graph, &config.data.dir)?);
    let mut terminate = signal(SignalKind::terminate()).map_err(RunError::System)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(RunError::System)?;
    let (peers, peers_at) = listen("listen.peers", config.listen.peers)?;
    let push = edges::endpoint(&identity, peers_at)?;
    let (admin_listener, admin_at) = listen("listen.admin", config.listen.admin)?;
    let queue = events::open(&config.events, &folder)?;
    let source = Some(peers_at.ip()).filter(|ip: &IpAddr| !ip.is_unspecified());
    let pool = Arc::new(Pool::new(tls.clone(), source));
    let consensus = Consensus::start(settings(config, &folder, &node), Arc::clone(&pool)).await?;
    let events = Events::start(queue, &consensus);
    let own =
        Peer { name: config.name(), address: config.advertised(), admin: admin_at.to_string() };
    if node.number == FOUNDER && node.found.is_empty() {
        found(&consensus, &folder, &own).await?;
    }

    peers.set_nonblocking(true).map_err(RunError::System)?;
    let peers = tokio::net::TcpListener::from_std(peers).map_err(RunError::System)?;
    let edges = Arc::new(Edges::new(Arc::clone(&consensus), pool, authority.key_sha256()?));
    let members = Members {
        consensus: Arc::clone(&consensus),
        authority: Arc::clone(&authority),
        edges: Arc::clone(&edges),
    };
    let members = tokio::spawn(serve(peers, tls, Arc::new(members)));
    let consumer = Arc::new(consumer::Monitor::default());
    let boards = Arc::<Boards>::default();
    let admin = Arc::new(Admin {
        consensus: Arc::clone(&consensus),
        edges: Arc::clone(&edges),
        boards: Arc::clone(&boards),
        events: Arc::clone(&events),
        folder: Arc::clone(&folder),
        authority_sha256: authority.key_sha256()?,
        metrics: Metrics::new(&graph.counts, &consumer.counts),
        graph: Arc::clone(&graph),
        consumer: Arc::clone(&consumer),
        graph_bodies: Semaphore::new(GRAPH_BODIES_MAX),
        body_time_max: config.limits.idle_time.0,
        draining: AtomicBool::new(false),
    });
    let served = Arc::clone(edges.served());
    let beside =
        ServedBeside { intake: Some(events.intake().clone()), boards: Arc::clone(&boards) };
    let push_stream = outrider_link::serve(push.clone(), Arc::clone(&edges), edges, served, beside);
    let push_stream = tokio::spawn(push_stream);
    let reading = consumer::start(
        Arc::clone(&events),
        Arc::clone(&graph),
        Arc::clone(&consensus),
        consumer,
        Arc::new(Hints::new(graph, boards)),
    );
    let (stop, stopping) = watch::channel(false);
    let bounds = server::Bounds {
        connections: config.limits.connections,
        idle_time: config.limits.idle_time.0,
    };
    let mut api = tokio::spawn(server::serve(admin_listener, Arc::clone(&admin), bounds, stopping));
    let enlisting = tokio::spawn(enlist(Arc::clone(&consensus), node.clone(), own));
    notify(State::Ready);
    tracing::info!(node = node.number, peers = %peers_at, admin = %admin_at, "serving");
    ready(&Ready { node: node.number, peers: peers_at, admin: admin_at });

    let ended = tokio::select! {
        _ = terminate.recv() => Ok("SIGTERM"),
        _ = interrupt.recv() => Ok("SIGINT"),
        failure = failure_of(&consensus) => Err(RunError::Stopped(failure)),
        end = &mut api => Err(RunError::Stopped(format!("the admin API ended: {end:?}"))),
    };
    enlisting.abort();
    if let Ok(signal) = ended {
        tracing::info!(signal, "draining");
        notify(State::Stopping);
        admin.draining.store(true, Ordering::Release);
        stop.send_replace(true);
        let _ = tokio::time::timeout(config.drain.time.0, api).await;
    }
    // Edges go to another node at once.
    push.close(0_u32.into(), b"the node stops");
    push_stream.abort();
    let _ = tokio::time::timeout(CLOSE_TIME_MAX, push.wait_idle()).await;
    reading.abort();
    members.abort();
    consensus.stop().await;
    tracing::info!("stopped");
    ended.map(drop)
}

fn listen(key: &'static str, address: SocketAddr) -> Result<(TcpListener, SocketAddr), RunError> {
    let listener = TcpListener::bind(address)
        .and_then(|listener| listener.local_addr().map(|address| (listener, address)));
    listener.map_err(|source| RunError::Listen { key, address, source })
}

fn settings(config: &Config, folder: &Folder, node: &NodeFile) -> Settings {
    Settings {
        id: node.number,
        dir: folder.raft(),
        heartbeat: config.consensus.heartbeat.0,
        election: config.consensus.election.0,
        request_time: config.consensus.request_time.0,
        history: HistoryLimits {
            updates_max: config.history.updates,
            bytes_max: usize::try_from(config.history.memory.0).unwrap_or(usize::MAX),
        },
    }
}

/// The first node votes for itself, and writes down that it is member 1, before anybody else can join.
async fn found(consensus: &Consensus, folder: &Folder, own: &Peer) -> Result<(), RunError> {
    let failed = |error: outrider_raft::Unavailable| RunError::Found(error.to_string());
    consensus.found(own.clone()).await.map_err(failed)?;
    let alone = consensus.status().nodes.len() <= 1;
    let known = || consensus.shared().look(|known| known.state.members().get(FOUNDER).is_some());
    if !alone || known() {
        return Ok(());
    }
    // What is in the log but not applied yet must be seen first.
    consensus.read_barrier().await.map_err(failed)?;
    if known() || consensus.status().nodes.len() > 1 {
        return Ok(());
    }
    let request = SigningRequest::from_pem(&request_for(&folder.own_key()?)?)?;
    let mut secret_sha256 = [0; 32];
    getrandom::fill(&mut secret_sha256).map_err(|error| RunError::Found(error.to_string()))?;
    let issue = Operation::IssueToken {
        secret_sha256,
        role: Role::Node,
        region: String::new(),
        ttl_ms: FOUNDER_TTL_MS,
    };
    consensus.operate(issue).await.map_err(failed)?;
    let spend = Operation::SpendToken {
        secret_sha256,
        key_sha256: request.key_sha256(),
        name: own.name.clone(),
    };
    match consensus.operate(spend).await.map_err(failed)? {
        Outcome::Joined { member: FOUNDER, .. } => Ok(()),
        other => Err(RunError::Found(format!("the first member was given {other:?}"))),
    }
}

/// Asks to be taken in, until this node votes where it says that it is reached.
async fn enlist(consensus: Arc<Consensus>, node: NodeFile, own: Peer) {
    loop {
        let status = consensus.status();
        let result = match status.nodes.get(&node.number) {
            Some((peer, true)) if *peer == own => return,
            Some(_) => {
                consensus.enlist(node.number, own.clone()).await.map_err(|error| error.to_string())
            }
            None => {
                let asked = consensus.ask_to_enlist(&node.found, &own).await;
                asked.map_err(|error| error.to_string())
            }
        };
        if let Err(reason) = result {
            tracing::info!(reason, "this node is not a voter yet");
        }
        tokio::time::sleep(ENLIST_PAUSE).await;
    }
}

async fn failure_of(consensus: &Consensus) -> String {
    loop {
        if let Some(failure) = consensus.status().failure {
            return failure;
        }
        tokio::time::sleep(WATCH_INTERVAL).await;
    }
}

/// Makes a new cluster in the configuration's folder.
///
/// # Errors
/// [`FolderError`]
pub fn init(config: &Config) -> Result<Authority, FolderError> {
    Folder::open(&config.data.dir)?.found(SystemTime::now())
}
