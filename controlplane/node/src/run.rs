//! Starts everything, serves until told to stop, and ends in order.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use outrider_certificate::Shown;
use outrider_link::{Boards, ServedBeside, tls as link};
use outrider_operators::{AuthError, Operators};
use outrider_raft::consensus::StartError;
use outrider_raft::rpc::{Pool, Role, TlsContext, TlsError, serve};
use outrider_raft::{Consensus, Peer, Settings};
use outrider_settings::notify::{State, notify};
use outrider_state::change::HistoryLimits;
use outrider_state::{Operation, Outcome};
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, watch};
use tokio::task::{AbortHandle, JoinHandle};
use tokio_rustls::TlsAcceptor;

use crate::admin::watch::WATCHERS_MAX;
use crate::admin::{Admin, GRAPH_BODIES_MAX, LARGE_BODIES_MAX, server};
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
/// Ports that are tried where the system chooses one.
const ATTEMPTS_MAX: u32 = 16;
/// Before a newcomer asks again to be taken in.
const ENLIST_PAUSE: Duration = Duration::from_millis(500);
/// How often it is looked whether the state says where the nodes are.
const ADDRESSES_PAUSE: Duration = Duration::from_secs(1);
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
    /// Operators' tokens.
    #[error(transparent)]
    Auth(#[from] AuthError),
    /// TLS of the API.
    #[error(transparent)]
    AdminTls(#[from] outrider_operators::TlsError),
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
    let runtime = runtime(threads)?;
    let result = runtime.block_on(run_node(config, ready));
    // What is still going on is nothing that anybody waits for.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

/// So many threads for nodes.
pub(crate) fn runtime(threads: usize) -> Result<Runtime, RunError> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name("control")
        .enable_all()
        .build()
        .map_err(RunError::System)
}

async fn run_node(config: &Config, ready: impl FnOnce(&Ready)) -> Result<(), RunError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(RunError::System)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(RunError::System)?;
    let folder = Folder::open(&config.data.dir)?;
    let (listener, admin_at) = listen("listen.admin", config.listen.admin)?;
    let mut node = Node::start(config, folder, Some(admin_at)).await?;
    node.serve(listener);
    notify(State::Ready);
    let Node { number, peers_at, .. } = node;
    tracing::info!(node = number, peers = %peers_at, admin = %admin_at, "serving");
    ready(&Ready { node: number, peers: peers_at, admin: admin_at });
    let ended = tokio::select! {
        _ = terminate.recv() => Ok("SIGTERM"),
        _ = interrupt.recv() => Ok("SIGINT"),
        failure = node.failure() => Err(RunError::Stopped(failure)),
    };
    if let Ok(signal) = ended {
        tracing::info!(signal, "draining");
        notify(State::Stopping);
        node.drain().await;
    }
    node.end().await;
    tracing::info!("stopped");
    ended.map(drop)
}

/// A node that takes part, in a tokio runtime.
pub(crate) struct Node {
    pub(crate) number: u64,
    /// Where other nodes and edges reach it.
    pub(crate) peers_at: SocketAddr,
    pub(crate) admin: Arc<Admin>,
    /// TLS of the API.
    acceptor: Option<TlsAcceptor>,
    bounds: server::Bounds,
    drain_time: Duration,
    stop: watch::Sender<bool>,
    push: quinn::Endpoint,
    api: Option<JoinHandle<io::Result<()>>>,
    /// The rest of what runs.
    tasks: Vec<AbortHandle>,
}

impl Node {
    /// Opens what is on the disk and takes part. `admin_at` is what others are told of the API.
    pub(crate) async fn start(
        config: &Config,
        folder: Folder,
        admin_at: Option<SocketAddr>,
    ) -> Result<Self, RunError> {
        let folder = Arc::new(folder);
        let node = folder.node()?;
        let authority = Arc::new(folder.authority()?);
        let lifetime = config.certificates.lifetime.0;
        let identity = folder.identity(&node, (SystemTime::now(), lifetime))?;
        let tls = TlsContext::new(&identity)?;
        let shown = Arc::clone(tls.shown());
        let identity = link::Identity { shown: Arc::clone(&shown), authority: identity.authority };
        let graph = Arc::new(GraphService::new(&config.graph, &config.data.dir)?);
        let (peers, peers_at, push) = listen_for_members(&identity, config.listen.peers)?;
        let auth = config.admin.auth.as_ref().map(Operators::open).transpose()?.map(Arc::new);
        let is_loopback = config.listen.admin.ip().is_loopback();
        let own = Arc::<Shown>::clone(&shown);
        let acceptor = outrider_operators::acceptor(config.admin.tls.as_ref(), is_loopback, own)?;
        let queue = events::open(&config.events, &folder)?;
        let source = Some(peers_at.ip()).filter(|ip: &IpAddr| !ip.is_unspecified());
        let pool = Arc::new(Pool::new(tls.clone(), source));
        let settings = settings(config, &folder, &node);
        let consensus = Consensus::start(settings, Arc::clone(&pool)).await?;
        let events = Events::start(queue, &consensus);
        let own = Peer {
            name: config.name(),
            address: config.advertised(peers_at),
            admin: admin_at.map_or_else(String::new, |at| at.to_string()),
        };
        if node.number == FOUNDER && node.found.is_empty() {
            found(&consensus, &folder, &own).await?;
        }

        peers.set_nonblocking(true).map_err(RunError::System)?;
        let peers = tokio::net::TcpListener::from_std(peers).map_err(RunError::System)?;
        let edges = Edges::new(Arc::clone(&consensus), pool, Arc::clone(&authority), lifetime)?;
        let edges = Arc::new(edges);
        let members = Members {
            consensus: Arc::clone(&consensus),
            authority: Arc::clone(&authority),
            lifetime,
            edges: Arc::clone(&edges),
        };
        let members = tokio::spawn(serve(peers, tls, Arc::new(members))).abort_handle();
        let (stop, stopping) = watch::channel(false);
        let consumer = Arc::new(consumer::Monitor::default());
        let boards = Arc::<Boards>::default();
        outrider_certificate::clock::stepped_s();
        let admin = Arc::new(Admin {
            started: Instant::now(),
            consensus: Arc::clone(&consensus),
            edges: Arc::clone(&edges),
            events: Arc::clone(&events),
            folder: Arc::clone(&folder),
            authority_sha256: authority.key_sha256()?,
            boards: Arc::clone(&boards),
            metrics: Metrics::new(&graph.counts, &consumer.counts),
            graph: Arc::clone(&graph),
            consumer: Arc::clone(&consumer),
            graph_bodies: Semaphore::new(GRAPH_BODIES_MAX),
            large_bodies: Semaphore::new(LARGE_BODIES_MAX),
            watchers: Arc::new(Semaphore::new(WATCHERS_MAX)),
            body_time_max: config.limits.idle_time.0,
            draining: AtomicBool::new(false),
            stopping,
            beside: OnceLock::new(),
            certificate: Certificate::new(shown),
            auth: auth.clone(),
        });
        let served = Arc::clone(edges.served());
        let beside =
            ServedBeside { intake: Some(events.intake().clone()), boards: Arc::clone(&boards) };
        let push_stream =
            outrider_link::serve(push.clone(), Arc::clone(&edges), edges, served, beside);
        let push_stream = tokio::spawn(push_stream).abort_handle();
        let hints = Arc::new(Hints::new(Arc::clone(&graph), boards));
        let reading = consumer::start(events, graph, Arc::clone(&consensus), consumer, hints);
        let reading = reading.abort_handle();
        let renewing = renew(Arc::clone(&admin), node.clone(), lifetime);
        let renewing = tokio::spawn(renewing).abort_handle();
        let telling = tokio::spawn(tell_addresses(Arc::clone(&consensus))).abort_handle();
        let enlisting = tokio::spawn(enlist(consensus, node.clone(), own)).abort_handle();
        let watching = auth.map(|auth| tokio::spawn(auth.watch()).abort_handle());
        let tasks = [members, push_stream, reading, renewing, telling, enlisting]
            .into_iter()
            .chain(watching);
        Ok(Self {
            number: node.number,
            peers_at,
            admin,
            acceptor,
            bounds: server::Bounds {
                connections: config.limits.connections,
                idle_time: config.limits.idle_time.0,
            },
            drain_time: config.drain.time.0,
            stop,
            push,
            api: None,
            tasks: tasks.collect(),
        })
    }

    /// Answers the API there from now on. In a tokio runtime.
    pub(crate) fn serve(&mut self, listener: TcpListener) {
        let (admin, stopping) = (Arc::clone(&self.admin), self.stop.subscribe());
        let acceptor = self.acceptor.clone();
        let serving = server::serve(listener, acceptor, admin, self.bounds, stopping);
        self.api = Some(tokio::spawn(serving));
    }

    /// What stopped it, once something did.
    async fn failure(&mut self) -> String {
        let consensus = failure_of(&self.admin.consensus);
        match &mut self.api {
            None => consensus.await,
            Some(api) => tokio::select! {
                failure = consensus => failure,
                end = api => format!("the admin API ended: {end:?}"),
            },
        }
    }

    /// Lets the API finish what it has, for at most the configured time.
    pub(crate) async fn drain(&mut self) {
        self.admin.draining.store(true, Ordering::Release);
        self.stop.send_replace(true);
        if let Some(api) = self.api.take() {
            let _ = tokio::time::timeout(self.drain_time, api).await;
        }
    }

    /// Stops taking part.
    pub(crate) async fn end(self) {
        // Edges go to another node at once.
        self.push.close(0_u32.into(), b"the node stops");
        self.tasks.iter().for_each(AbortHandle::abort);
        let _ = tokio::time::timeout(CLOSE_TIME_MAX, self.push.wait_idle()).await;
        self.admin.consensus.stop().await;
    }
}

/// TCP for nodes and UDP for edges, on the same number also where the system chooses it.
fn listen_for_members(
    identity: &link::Identity,
    at: SocketAddr,
) -> Result<(TcpListener, SocketAddr, quinn::Endpoint), RunError> {
    let mut attempts = if at.port() == 0 { ATTEMPTS_MAX } else { 1 };
    loop {
        let (peers, peers_at) = listen("listen.peers", at)?;
        attempts -= 1;
        match edges::endpoint(identity.clone(), peers_at) {
            Ok(push) => return Ok((peers, peers_at, push)),
            Err(error) if attempts == 0 => return Err(error),
            Err(error) => tracing::debug!(%error, "another port is tried"),
        }
    }
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

/// While this node leads: keeps in the state where each node of the membership is reached, for edges that follow.
async fn tell_addresses(consensus: Arc<Consensus>) {
    loop {
        tokio::time::sleep(ADDRESSES_PAUSE).await;
        let status = consensus.status();
        if status.leader != Some(status.id) {
            continue;
        }
        let voter = |number: u64| status.nodes.get(&number).filter(|(_, votes)| *votes);
        let wrong = consensus.shared().look(|known| {
            let nodes =
                known.state.members().iter().filter(|(_, member)| member.role == Role::Node);
            let others = nodes.filter_map(|(number, member)| {
                let address = voter(number).map_or("", |(peer, _)| peer.address.as_str());
                (member.address != address).then(|| (number, address.to_owned()))
            });
            others.collect::<Vec<_>>()
        });
        for (member, address) in wrong {
            let told =
                consensus.operate(Operation::Announce { member, address, token_key: None }).await;
            if let Err(error) = told {
                tracing::debug!(%error, "it is not told yet where the nodes are");
                break;
            }
        }
    }
}

/// What the node shows, and why it was not renewed the last time that it was tried.
pub(crate) struct Certificate {
    pub(crate) shown: Arc<Shown>,
    failure: Mutex<Option<String>>,
}

impl Certificate {
    fn new(shown: Arc<Shown>) -> Self {
        Self { shown, failure: Mutex::default() }
    }

    pub(crate) fn failure(&self) -> Option<String> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, failure: Option<String>) {
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = failure;
    }
}

/// Makes the node's own certificate anew before it ends; every node has the authority's key.
async fn renew(admin: Arc<Admin>, node: NodeFile, lifetime: Duration) {
    loop {
        let Certificate { shown, .. } = &admin.certificate;
        tokio::time::sleep(shown.validity().look_interval()).await;
        let Some(now) = shown.due() else { continue };
        let (folder, node) = (Arc::clone(&admin.folder), node.clone());
        let signed = tokio::task::spawn_blocking(move || folder.identity(&node, (now, lifetime)));
        let renewed = async {
            let identity = signed.await.map_err(|error| error.to_string())?;
            let chain = identity.map_err(|error| error.to_string())?.chain;
            let leaf = chain.into_iter().next().ok_or("there is no certificate")?;
            shown.replace(leaf).map_err(|error| error.to_string())
        };
        let failure = renewed.await.err();
        match &failure {
            None => tracing::info!("the certificate of this node was renewed"),
            Some(why) => tracing::warn!(why, "the certificate of this node is not renewed"),
        }
        admin.certificate.note(failure);
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
    let time = (SystemTime::now(), config.certificates.lifetime.0);
    Folder::open(&config.data.dir)?.found(time)
}
