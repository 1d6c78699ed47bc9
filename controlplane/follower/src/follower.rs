//! The thread that follows: one connection at a time, to any node, again and again.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use outrider_certificate::Validity;
use outrider_link::tls::{self, Identity, NODE_NAME, TlsError};
use outrider_link::{Asked, Beside, Collector, Outgoing, OutgoingStatus, Taken, follow};
use outrider_push::replica::Consequence;
use outrider_push::{Interest, Item, Replica, SoftToEdge, Wish};
use quinn::{ClientConfig, Endpoint};
use tokio::sync::{mpsc, watch};

use crate::asks::{self, AskCounts, AskError, Asker, Asks};
use crate::folder::{EdgeFolder, FolderError};
use crate::keeper::{Keeper, Settling};
use crate::nodes::Nodes;
use crate::renewal::Renewal;
use crate::store::{Batch, Store, StoreError};
use crate::view::View;

/// Before the next attempt, at first; doubles up to the other.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// For looking up a node's name.
const LOOKUP_TIME_MAX: Duration = Duration::from_secs(3);
/// For telling a node that the edge goes.
const CLOSE_TIME_MAX: Duration = Duration::from_millis(200);

/// Wishes between the task that holds them and the connection.
const WISHES_WAITING_MAX: usize = 64;
/// Before it is said again where the edge is, when nobody took note of it.
const ANNOUNCE_PAUSE: Duration = Duration::from_secs(5);

/// What is done with what the edge comes to know, in order, on the follower's thread. It must not block.
pub trait Sink: Send + 'static {
    /// All of it: at the start, and each time that it was replaced as a whole. What is returned has to be durable before
    /// the replica's position is.
    fn whole(&mut self, replica: &Replica, consequences: &[Consequence]) -> Option<Settling>;
    /// One update, which was taken in. What is returned as above.
    fn update(
        &mut self,
        replica: &Replica,
        items: &[Item],
        consequences: &[Consequence],
    ) -> Option<Settling>;
    /// The log's time, in milliseconds, as the node says it.
    fn time(&mut self, _log_ms: u64) {}
    /// What need not arrive.
    fn soft(&mut self, _message: SoftToEdge) {}
}

/// What to follow.
pub struct Settings {
    /// The edge's folder.
    pub folder: EdgeFolder,
    /// What it shows; changed when the certificate is renewed.
    pub identity: Identity,
    /// `HOST:PORT` of nodes; none for those of the membership, as it is known.
    pub nodes: Vec<String>,
    /// What the edge uses.
    pub interest: Interest,
    /// Where other edges reach this one, `HOST:PORT`; empty for nowhere.
    pub address: String,
    /// The public key (Ed25519) of the tokens that this one gives.
    pub token_key: Option<[u8; 32]>,
    /// Takes what it comes to know.
    pub sink: Box<dyn Sink>,
    /// The end of [`asks`](crate::asks::asks) that is listened to, and the other one.
    pub asks: (Asker, Asks),
}

/// Why an edge cannot follow.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The folder.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The replica.
    #[error("cannot open {path}: {source}")]
    Store {
        /// The file.
        path: String,
        /// What is wrong.
        source: StoreError,
    },
    /// Nobody to follow.
    #[error("no node of the control plane is known; name them in control.nodes")]
    NoNodes,
    /// Threads.
    #[error("cannot start: {0}")]
    System(#[from] io::Error),
}

/// How the edge stands to the control plane.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// Its number in the cluster.
    pub edge: u64,
    /// The node that it follows now.
    pub node: Option<String>,
    /// Up to which version it has the state.
    pub version: u64,
    /// The version of the node's state, as it said last.
    pub latest: u64,
    /// When a node said something last, since this start.
    pub heard: Option<Instant>,
    /// Up to which version the replica is on the disk.
    pub stored: u64,
    /// Why it is not stored any more.
    pub store_failure: Option<String>,
    /// Why the last connection ended.
    pub failure: Option<String>,
    /// Connections on which a node said something.
    pub connections: u64,
    /// Updates that were taken in.
    pub updates: u64,
    /// Times that the replica was replaced as a whole.
    pub snapshots: u64,
    /// Fragments in the replica.
    pub fragments: usize,
    /// Tags in the replica.
    pub tags: usize,
    /// What it wanted to have written.
    pub asks: AskCounts,
    /// How the events are sent.
    pub events: OutgoingStatus,
    /// From when until when its certificate is good.
    pub certificate: Option<Validity>,
    /// Why it was not renewed the last time that it was tried.
    pub renewal_failure: Option<String>,
    /// Hints that came.
    pub hints: u64,
    /// Predictions that came.
    pub predictions: u64,
}

impl Status {
    /// Updates that the edge lacks, as far as it knows.
    pub fn lag(&self) -> u64 {
        self.latest.saturating_sub(self.version)
    }
}

/// Tells how the edge stands. Clones are the same.
#[derive(Clone, Debug)]
pub struct Monitor {
    status: Arc<Mutex<Status>>,
    collector: Collector,
    view: View,
}

impl Monitor {
    /// How it stands now.
    pub fn status(&self) -> Status {
        let events = self.collector.status();
        Status { events, ..self.lock().clone() }
    }

    /// The fragments that it knows.
    pub fn view(&self) -> &View {
        &self.view
    }

    pub(crate) fn set_certificate(&self, validity: Validity, failure: Option<String>) {
        let mut status = self.lock();
        status.certificate = Some(validity);
        status.renewal_failure = failure;
    }

    fn lock(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An edge that follows.
#[derive(Debug)]
pub struct Follower {
    monitor: Monitor,
    stop: watch::Sender<bool>,
    thread: JoinHandle<()>,
}

impl Follower {
    /// Reads what is on the disk, and starts to follow. No node has to be there. The caller holds the lock of
    /// the folder.
    ///
    /// # Errors
    /// [`StartError`]
    pub fn start(settings: Settings) -> Result<Self, StartError> {
        let Settings { folder, identity, nodes, interest, address, token_key, mut sink, asks } =
            settings;
        let edge = folder.edge()?;
        let nodes = Nodes::new(nodes, edge.nodes, edge.number).ok_or(StartError::NoNodes)?;
        let shown = Arc::clone(&identity.shown);
        let config = tls::client(identity)?;
        let (store, replica) = open(&folder.replica(), &interest)?;
        // Not from the replica, which may be older than the folder: that is written at once.
        let (known, learnt) = watch::channel(None);
        // What was taken in before has its consequences already.
        sink.whole(&replica, &[]);
        let keeper = Keeper::start(store, replica.position)?;
        let (events, collector) = Outgoing::new();
        let view = View::new(interest.clone(), &replica);
        let monitor = Monitor { status: Arc::default(), collector, view };
        {
            let mut status = monitor.lock();
            status.edge = edge.number;
            (status.version, status.latest) = (replica.position, replica.position);
            status.stored = replica.position;
            (status.fragments, status.tags) = (replica.fragments.len(), replica.tags.len());
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = watch::channel(false);
        let (wishes, asked) = mpsc::channel(WISHES_WAITING_MAX);
        let own = folder.clone();
        let renewal = Renewal { folder, shown, link: wishes.clone(), monitor: monitor.clone() };
        renewal.note(None);
        let (position, positions) = watch::channel(replica.position);
        let following = Following {
            nodes,
            known,
            config,
            interest,
            replica,
            events,
            keeper,
            sink,
            position,
            asked,
            monitor: monitor.clone(),
        };
        let counts = monitor.clone();
        let count = move |change: &dyn Fn(&mut AskCounts)| change(&mut counts.lock().asks);
        let (asker, asks) = asks;
        let thread = thread::Builder::new().name("follower".to_owned()).spawn(move || {
            let keeper = runtime.block_on(async {
                tokio::spawn(asks::run(asks, wishes, positions, count));
                tokio::spawn(announce(asker, address, token_key));
                tokio::spawn(renewal.run());
                tokio::spawn(keep_nodes(own, learnt));
                following.run(stopped).await
            });
            keeper.stop();
        })?;
        Ok(Self { monitor, stop, thread })
    }

    /// Tells how it stands, also after this was dropped.
    pub fn monitor(&self) -> Monitor {
        self.monitor.clone()
    }

    /// Where to tell what happens at the edge.
    pub fn collector(&self) -> Collector {
        self.monitor.collector.clone()
    }

    /// Ends it; what was taken in is on the disk then.
    pub fn stop(self) {
        self.stop.send_replace(true);
        if self.thread.join().is_err() {
            tracing::error!("the thread that follows the control plane has panicked");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A replica that cannot be read is only a copy: it is thrown away.
fn open(path: &Path, interest: &Interest) -> Result<(Store, Replica), StartError> {
    // Each prefix stands behind its length, so that no two interests look alike.
    let mut bytes = Vec::new();
    for prefix in &interest.prefixes {
        bytes.extend_from_slice(&(prefix.len() as u64).to_le_bytes());
        bytes.extend_from_slice(prefix.as_bytes());
    }
    let failed = |source| StartError::Store { path: path.display().to_string(), source };
    match Store::open(path, &bytes) {
        Err(StoreError::Database(error @ redb::Error::Io(_))) => Err(failed(error.into())),
        Err(error) => {
            tracing::warn!(%error, path = %path.display(), "the replica is thrown away");
            fs::remove_file(path)?;
            Store::open(path, &bytes).map_err(failed)
        }
        Ok(opened) => Ok(opened),
    }
}

/// Says where the edge is, and what its tokens are known by, until somebody took note of it.
async fn announce(asker: Asker, address: String, token_key: Option<[u8; 32]>) {
    loop {
        let (sender, outcome) = tokio::sync::oneshot::channel();
        let wish = Wish::Announce { address: address.clone(), token_key };
        asker.ask(wish, |result| drop(sender.send(result)));
        match outcome.await {
            Ok(Ok(_)) | Err(_) => return,
            Ok(Err(AskError::Unavailable(why))) => {
                tracing::debug!(why, "nobody took note of where this edge is");
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, address, "others are not told where this edge is");
            }
        }
        tokio::time::sleep(ANNOUNCE_PAUSE).await;
    }
}

/// Keeps the nodes of the membership each time that they are others. A failure costs nothing while the replica is there.
async fn keep_nodes(folder: EdgeFolder, mut learnt: watch::Receiver<Option<Vec<String>>>) {
    loop {
        let nodes = learnt.borrow_and_update().clone();
        if let Some(nodes) = nodes {
            tracing::info!(?nodes, "the nodes of the control plane are known");
            let folder = folder.clone();
            let kept = tokio::task::spawn_blocking(move || folder.keep_nodes(nodes)).await;
            if let Ok(Err(error)) = kept {
                tracing::warn!(%error, "the nodes of the control plane cannot be kept");
            }
        }
        if learnt.changed().await.is_err() {
            return;
        }
    }
}

struct Following {
    nodes: Nodes,
    /// Those of the membership, when they are others.
    known: watch::Sender<Option<Vec<String>>>,
    config: ClientConfig,
    interest: Interest,
    replica: Replica,
    events: Outgoing,
    keeper: Keeper,
    sink: Box<dyn Sink>,
    /// Told after the sink.
    position: watch::Sender<u64>,
    asked: mpsc::Receiver<Asked>,
    monitor: Monitor,
}

impl Following {
    async fn run(mut self, mut stopped: watch::Receiver<bool>) -> Keeper {
        let mut pause = PAUSE_MIN;
        loop {
            let node = self.nodes.next();
            let before = self.monitor.lock().connections;
            let failure = tokio::select! {
                failure = self.follow(&node) => failure,
                _ = stopped.wait_for(|stop| *stop) => return self.keeper,
            };
            let heard = {
                let mut status = self.monitor.lock();
                status.node = None;
                let same = status.failure.as_ref() == Some(&failure);
                let heard = status.connections > before;
                if heard || !same {
                    tracing::warn!(node, reason = failure, "the control plane is not followed");
                }
                status.failure = Some(failure);
                heard
            };
            if heard {
                pause = PAUSE_MIN;
            }
            let ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
            let wait = Duration::from_millis(fastrand::u64(ms / 2..=ms));
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                _ = stopped.wait_for(|stop| *stop) => return self.keeper,
            }
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// One connection, to its end; says why.
    async fn follow(&mut self, node: &str) -> String {
        let lookup = tokio::time::timeout(LOOKUP_TIME_MAX, tokio::net::lookup_host(node)).await;
        let address = match lookup {
            Ok(Ok(mut addresses)) => addresses.next(),
            Ok(Err(error)) => return format!("{node} cannot be looked up: {error}"),
            Err(_) => return format!("{node} was not looked up within {LOOKUP_TIME_MAX:?}"),
        };
        let Some(address) = address else { return format!("{node} has no address") };
        let own: SocketAddr = match address {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let mut endpoint = match Endpoint::client(own) {
            Ok(endpoint) => endpoint,
            Err(error) => return format!("there is no socket: {error}"),
        };
        endpoint.set_default_client_config(self.config.clone());
        let (keeper, monitor) = (&self.keeper, &self.monitor);
        // Both streams tell it, in turns of one thread.
        let sink = &Mutex::new(&mut self.sink);
        let position_of = &self.position;
        let mut last = self.replica.position;
        let mut first = true;
        let (nodes, known) = (&mut self.nodes, &self.known);
        let taken = |replica: &Replica, taken: Taken| {
            let settling = if taken.whole {
                monitor.view.replace(replica);
                lock(sink).whole(replica, &taken.consequences)
            } else {
                monitor.view.update(replica, &taken.items);
                match taken.items.as_slice() {
                    [] => None,
                    items => lock(sink).update(replica, items, &taken.consequences),
                }
            };
            lock(sink).time(taken.time_ms);
            let members = |items: &[Item]| items.iter().any(|i| matches!(i, Item::Member { .. }));
            if (taken.whole || members(&taken.items))
                && let Some(nodes) = nodes.learn(replica)
            {
                known.send_replace(Some(nodes.to_vec()));
            }
            if replica.position != *position_of.borrow() {
                position_of.send_replace(replica.position);
            }
            let items = if taken.whole { replica.items().collect() } else { taken.items };
            {
                let mut status = monitor.lock();
                if first {
                    tracing::info!(
                        node,
                        version = replica.position,
                        "the control plane is followed"
                    );
                    status.connections += 1;
                    status.node = Some(node.to_owned());
                }
                (status.version, status.latest) = (replica.position, taken.latest);
                status.heard = Some(Instant::now());
                status.snapshots += u64::from(taken.whole);
                status.updates += u64::from(!taken.whole && !items.is_empty());
                (status.fragments, status.tags) = (replica.fragments.len(), replica.tags.len());
                (status.stored, status.store_failure) = keeper.stored();
            }
            first = false;
            if taken.whole || replica.position != last {
                last = replica.position;
                let Replica { cluster, position, invalidated, .. } = *replica;
                let batch = Batch { whole: taken.whole, cluster, position, invalidated, items };
                keeper.add(batch, settling);
            }
        };
        let interest = self.interest.clone();
        let to = (address, NODE_NAME);
        let monitor = &self.monitor;
        let mut soft = |message: SoftToEdge| {
            {
                let mut status = monitor.lock();
                status.hints += message.hints.len() as u64;
                status.predictions += message.predictions.len() as u64;
            }
            lock(sink).soft(message);
        };
        let (asks, events) = (&mut self.asked, Some(&mut self.events));
        let beside = Beside { asks, events, soft: Some(&mut soft) };
        let error = follow(&endpoint, to, interest, &mut self.replica, beside, taken).await;
        endpoint.close(0_u32.into(), b"");
        let _ = tokio::time::timeout(CLOSE_TIME_MAX, endpoint.wait_idle()).await;
        error.to_string()
    }
}
