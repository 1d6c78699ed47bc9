//! Starts an edge, serves until it is told to stop, and drains.
//!
//! Owns the order of things: the lock before everything, the sockets before anything that takes time (so
//! that a port in use is an error of the first second), the names before the shards, the readiness last.
//! The main thread only waits for events; it has no timer and no loop of its own.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::time::{Duration, Instant};

use outrider_cache::CacheError;
use outrider_follower::Follower;
use outrider_gateway::names::{self, NamesError, NamesLimits, NamesThread, StoredBytes};
use outrider_gateway::{Hub, Orders};
use outrider_operators::Operators;
use outrider_settings::notify::{State, notify};
use outrider_shard::channel::Rendezvous;
use outrider_shard::{ShardConfig, ShardError, ShardThread};
use outrider_transport::quic::QuicServer;
use outrider_transport::{Limits, TransportError, tls};
use outrider_uplink::{Uplink, UplinkError, UplinkOptions};
use tokio::signal::unix::{SignalKind, signal};

use crate::admin::{self, Door};
use crate::auth::{Auth, AuthError};
use crate::config::Config;
use crate::crossing::Crossing;
use crate::data_dir::{DataDir, DataDirError};
use crate::follow::{self, Followed};
use crate::metrics::Metrics;
use crate::parts::{
    cache_configs, certificate_names, gateway_settings, gateway_upstreams, limits, names_limits,
    pin_budget, placement, seats,
};
use crate::process;
use crate::shard_main::{self, Events, ShardEvent, ShardParts, StartError};
use crate::sizes::{self, Sizes, SizesError};
use crate::sockets::{BindError, Sockets};
use crate::state::{Edge, Message, Pages, Seat, Stage};
use crate::units::Size;
use crate::voided::Voided;

/// How much longer than `drain.time` the shards may take to end: to flush, and to notice.
const DRAIN_GRACE: Duration = Duration::from_secs(10);
/// Before a shard that has much to answer is told again.
const TELL_PAUSE: Duration = Duration::from_millis(10);
/// A signal that comes sooner after the first is taken for the same one: `timeout` and some supervisors
/// signal the process and then its whole group.
const SIGNAL_AGAIN_MIN: Duration = Duration::from_secs(1);
/// Events that may wait for the main thread: the three of each shard, and some signals.
const EVENTS_PER_SHARD: usize = 4;
const SIGNALS_WAITING_MAX: usize = 8;

/// What the main thread waits for.
#[derive(Debug)]
pub(crate) enum Event {
    /// A signal to stop.
    Stop(&'static str),
    /// Something about a shard.
    Shard(usize, ShardEvent),
}

/// Why the edge did not start, or did not go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The data directory.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// No size that works.
    #[error(transparent)]
    Sizes(#[from] SizesError),
    /// An address cannot be listened on.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The TLS files.
    #[error(
        "{source}; restore {} from a backup, or remove that folder to make a new CA, which clients then have \
         to trust", .dir.display()
    )]
    Tls {
        /// Where they are.
        dir: PathBuf,
        /// What is wrong.
        source: TransportError,
    },
    /// The names database.
    #[error("{source}{}", names_remedy(.source))]
    Names {
        /// What is wrong.
        #[from]
        source: NamesError,
    },
    /// The stripes.
    #[error("the cache cannot be opened: {0}")]
    Cache(#[from] CacheError),
    /// The uplink.
    #[error(transparent)]
    Uplink(#[from] UplinkError),
    /// A shard's executor.
    #[error(transparent)]
    Shard(#[from] ShardError),
    /// A shard could not start to serve.
    #[error("shard {id}: {source}")]
    Start {
        /// The shard.
        id: usize,
        /// Why.
        source: StartError,
    },
    /// A shard ended by itself.
    #[error("shard {id} ended by itself; this is a defect, and the log has more")]
    Ended {
        /// The shard.
        id: usize,
    },
    /// Nobody can be asked who they are.
    #[error("auth: {0}")]
    Auth(#[from] AuthError),
    /// Operators' tokens.
    #[error(transparent)]
    Operators(#[from] outrider_operators::AuthError),
    /// TLS of the admin pages.
    #[error(transparent)]
    AdminTls(#[from] outrider_operators::TlsError),
    /// The control plane cannot be followed.
    #[error("the control plane cannot be followed: {0}")]
    Control(#[from] outrider_follower::StartError),
    /// What is on the stripes may be void, and nobody can say.
    #[error("it cannot be read what of the cache is void: {0}")]
    Voided(io::Error),
    /// What else runs in this process.
    #[error("{0}")]
    Companion(String),
    /// Signals cannot be waited for.
    #[error("cannot wait for signals: {0}")]
    Signals(io::Error),
    /// The admin pages cannot be served.
    #[error("cannot serve the admin pages: {0}")]
    Admin(io::Error),
}

fn names_remedy(error: &NamesError) -> &'static str {
    match error {
        NamesError::Open { .. } => {
            "; check the disk and who may write there, or restore the file from a backup"
        }
        _ => "",
    }
}

/// What serves now, for whoever tells the user.
#[derive(Debug, Clone)]
pub struct Ready {
    /// Whether the data directory was made by this start.
    pub first_start: bool,
    /// The data directory.
    pub data_dir: PathBuf,
    /// Where HTTPS is answered.
    pub https: Option<SocketAddr>,
    /// Where plain HTTP is answered.
    pub http: Option<SocketAddr>,
    /// Where the admin pages are.
    pub admin: Option<SocketAddr>,
    /// The certificate that clients have to trust.
    pub ca_pem: PathBuf,
    /// The size of the RAM arena.
    pub ram: Size,
    /// The size of the SSD tier; 0: none.
    pub ssd: Size,
    /// The upstreams: name, if any, and URL.
    pub upstreams: Vec<(Option<String>, String)>,
}

/// How the edge ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stopped {
    /// Connections that were still busy when the time for the drain was over.
    pub cut_off: usize,
}

/// What else runs in the process of an edge: a node of the control plane.
pub trait Companion {
    /// Starts it, once the data directory is this process's alone. `admin` is where the admin pages will be. The
    /// edge has joined a cluster afterwards, if it should follow one; gives the nodes that it follows, or none
    /// for those of the configuration.
    ///
    /// # Errors
    /// In words.
    fn start(&mut self, config: &Config, admin: Option<SocketAddr>) -> Result<Vec<String>, String>;

    /// Answers the admin pages from now on. False: the edge does that itself.
    fn serve(&mut self, listener: &TcpListener, pages: Pages) -> io::Result<bool>;

    /// Ends it.
    fn stop(&mut self);
}

/// Runs an edge until SIGTERM or SIGINT. `ready` is called once, when requests are answered. A second
/// signal ends the drain at once.
///
/// # Errors
/// See [`RunError`]; each says what to do. Threads that were started before the error end with the
/// process, so the process should.
pub fn run(
    config: &Config,
    companion: Option<Box<dyn Companion>>,
    ready: impl FnOnce(&Ready),
) -> Result<Stopped, RunError> {
    let mut running = Running::start(config, companion)?;
    if running.wait_until_serving()? == Begun::ToldToStop {
        // Nobody has been answered yet, so there is nothing to finish.
        return Ok(Stopped { cut_off: 0 });
    }
    ready(&running.ready);
    running.edge.announced.store(true, Ordering::Release);
    notify(State::Ready);
    match running.wait_until_told() {
        Reason::Signal(signal) => {
            running.drain(signal);
            running.end()
        }
        Reason::Failed(error) => {
            // Nothing is drained: a shard that is gone keeps its sockets open and answers nobody, and the
            // others need it for their answers. What was acknowledged is on the disk.
            tracing::error!(%error, "ending at once");
            notify(State::Stopping);
            Err(error)
        }
    }
}

/// Why an edge stops.
enum Reason {
    /// It was told to.
    Signal(&'static str),
    /// A shard failed.
    Failed(RunError),
}

/// How the start went.
#[derive(PartialEq, Eq)]
enum Begun {
    Serving,
    ToldToStop,
}

/// Everything that is up, in the order in which it goes down.
struct Running {
    edge: Arc<Edge>,
    ready: Ready,
    inbox: Receiver<Event>,
    drain_time: Duration,
    shards_ended: usize,
    cut_off: usize,
    shards: Vec<ShardThread>,
    uplink: Arc<Uplink>,
    names: NamesThread,
    follower: Option<Follower>,
    companion: Option<Box<dyn Companion>>,
    /// The lock on the directory is given back last.
    _dir: DataDir,
}

impl Running {
    fn start(
        config: &Config,
        mut companion: Option<Box<dyn Companion>>,
    ) -> Result<Running, RunError> {
        let started = Instant::now();
        outrider_certificate::clock::stepped_s();
        let dir = DataDir::open(&config.data.dir)?;
        let cpus = process::cpus();
        let count = sizes::shards(config, cpus.len())?;
        let mut sockets = Sockets::bind(config, count)?;
        let connections_max =
            process::raise_descriptors(config.limits.connections, sockets.serving());
        process::raise_locked_memory();
        let sizes = sizes::decide(&config.cache, &dir, cpus.len())?;
        let unusable = |source| RunError::Tls { dir: dir.tls(), source };
        let tls_files =
            tls::load_or_create(&dir.tls(), &certificate_names(config)).map_err(unusable)?;
        let tls = tls::server_config(&dir.tls()).map_err(unusable)?;
        let mut auth = Auth::load(&config.auth, &dir.tls())?;

        let limits = Limits { connections_max: connections_max.div_ceil(count), ..limits(config) };
        // A connection over QUIC needs no descriptor.
        let connections_max = config.limits.connections.div_ceil(count);
        let quic_limits = Limits { connections_max, ..limits.clone() };
        let nodes = match &mut companion {
            Some(companion) => {
                companion.start(config, sockets.addresses.admin).map_err(RunError::Companion)?
            }
            None => Vec::new(),
        };
        // The cluster of a node within has this edge alone.
        let may_have_others = nodes.is_empty();
        let orders = Orders::new(count);
        let voided = Voided::new(dir.path());
        let void_through = voided.read().map_err(RunError::Voided)?;
        let stored = Arc::<StoredBytes>::default();
        let followed = follow::start(
            config,
            nodes,
            sockets.addresses.https,
            (&orders, &stored),
            auth.as_ref(),
            voided,
        )?;
        let (follower, to_shards, fleet, peers, certificate) = match followed {
            Some(Followed { follower, to_shards, fleet, peers, certificate }) => {
                (Some(follower), Some(to_shards), Some(fleet), Some(peers), Some(certificate))
            }
            None => (None, None, None, None, None),
        };
        let tls = match certificate {
            Some(certificate) => tls::with_member(&tls, certificate),
            None => tls,
        };
        // In a fleet who asks over QUIC is asked for a certificate, which other edges have.
        let quic_tls = match &peers {
            Some(peers) if may_have_others => {
                tls::asking_members(&tls, peers.roots.clone()).map_err(unusable)?
            }
            _ => Arc::clone(&tls),
        };
        let quic = QuicServer::new(&quic_tls, config.quic.settings(count), quic_limits)
            .map_err(unusable)?
            .with_members(follow::member_of);
        let crossing = Arc::new(Crossing::new(count));

        let control = follower.as_ref().map(Follower::monitor);
        let collector = follower.as_ref().map(Follower::collector);
        let (metrics, registry) = Metrics::new(control.clone(), &stored);
        let access = match &mut auth {
            Some(auth) => Some(auth.share(metrics.gateway.audit_dropped.clone())?),
            None => None,
        };
        let names_limits = NamesLimits { stored: Arc::clone(&stored), ..names_limits(config) };
        let (names, names_client) = names::open(dir.path(), names_limits, metrics.names.clone())?;
        let upstreams = config.upstream.iter().map(crate::config::Upstream::to_uplink).collect();
        let options =
            UplinkOptions { metrics: metrics.uplink.clone(), peers, ..UplinkOptions::default() };
        let uplink = Arc::new(outrider_uplink::start(upstreams, options)?);
        let edge = Arc::new(Edge {
            started,
            region: config.site.region.clone(),
            data_dir: dir.path().to_owned(),
            addresses: sockets.addresses,
            announced: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            seats: seats(config, count, &cpus),
            uplink: uplink.monitor(),
            control,
            stored,
            registry,
            shard_gauges: metrics.shard_gauges.clone(),
        });

        if let Some(to_shards) = to_shards {
            to_shards.open(&edge, metrics.hints.clone(), metrics.prefetch.clone());
        }
        let (events, inbox) = mpsc::sync_channel(events_max(count));
        let mut admin = sockets.admin.take();
        if let (Some(listener), Some(companion)) = (&admin, &mut companion)
            && companion.serve(listener, Pages(Arc::clone(&edge))).map_err(RunError::Admin)?
        {
            admin = None;
        }
        let admin = match admin {
            Some(listener) => Some((listener, door(config, edge.addresses.admin, &tls, &uplink)?)),
            None => None,
        };
        start_on_runtime(&uplink, &edge, admin, &events)?;
        if let Some(auth) = auth {
            uplink.runtime().spawn(auth.watch());
        }
        let caches = cache_configs(config, sizes, (&dir, void_through), count)?;
        let hub = Arc::new(Hub::new(placement(sizes, count)));
        let together = Rendezvous::default();
        let members: Vec<_> = edge.seats.iter().map(|_| together.join()).collect();
        let mut shards = Vec::with_capacity(count);
        for ((seat, cache), member) in edge.seats.iter().zip(caches).zip(members) {
            let parts = ShardParts {
                edge: Arc::clone(&edge),
                id: seat.id,
                pins: pin_budget(config, cache.config.arena_bytes),
                cache,
                hub: Arc::clone(&hub),
                member,
                names: names_client.clone(),
                fleet: fleet.clone(),
                orders: Arc::clone(&orders),
                uplink: Arc::clone(&uplink),
                upstreams: gateway_upstreams(config),
                settings: gateway_settings(config, count, collector.is_some()),
                access: access.clone(),
                collector: collector.clone(),
                serve: sockets.of_shard(seat.id, &tls),
                quic: sockets.quic_of_shard(seat.id).map(|socket| (socket, quic.clone())),
                crossing: Arc::clone(&crossing),
                limits: limits.clone(),
                metrics: metrics.clone(),
                drain_time_max: config.drain.time.0,
                events: Events(events.clone()),
            };
            let shard = ShardConfig { id: seat.id, cpu: seat.cpu, spin: config.shards.spin.0 };
            let thread = outrider_shard::start(shard, |context| shard_main::main(context, parts))?;
            metrics.shards.add(thread.handle());
            shards.push(thread);
        }
        Ok(Running {
            ready: ready(config, &dir, &edge, sizes, tls_files.ca_pem),
            edge,
            inbox,
            drain_time: config.drain.time.0,
            shards_ended: 0,
            cut_off: 0,
            shards,
            uplink,
            names,
            follower,
            companion,
            _dir: dir,
        })
    }

    fn wait_until_serving(&mut self) -> Result<Begun, RunError> {
        for _ in 0..self.edge.seats.len() {
            match self.next_event(None) {
                Some(Event::Shard(_, ShardEvent::Serving)) => {}
                Some(Event::Shard(id, ShardEvent::Failed(source))) => {
                    return Err(RunError::Start { id, source });
                }
                Some(Event::Shard(id, ShardEvent::Ended { .. })) => {
                    return Err(RunError::Ended { id });
                }
                Some(Event::Stop(_)) | None => return Ok(Begun::ToldToStop),
            }
        }
        let Ready { https, http, admin, ram, ssd, ca_pem, .. } = &self.ready;
        let shown = |address: &Option<SocketAddr>| {
            address.map_or_else(|| "off".to_owned(), |address| address.to_string())
        };
        tracing::info!(
            https = shown(https),
            http = shown(http),
            admin = shown(admin),
            %ram,
            %ssd,
            ca = %ca_pem.display(),
            after_ms = self.edge.started.elapsed().as_millis(),
            "serving"
        );
        Ok(Begun::Serving)
    }

    fn wait_until_told(&mut self) -> Reason {
        match self.next_event(None) {
            Some(Event::Stop(signal)) => Reason::Signal(signal),
            Some(Event::Shard(id, ShardEvent::Failed(source))) => {
                Reason::Failed(RunError::Start { id, source })
            }
            Some(Event::Shard(id, ShardEvent::Ended { .. } | ShardEvent::Serving)) => {
                Reason::Failed(RunError::Ended { id })
            }
            None => Reason::Signal("the end of everything that could tell"),
        }
    }

    /// Lets the shards finish what they have, for at most the configured time or until a second signal.
    fn drain(&mut self, signal: &'static str) {
        tracing::info!(signal, "draining");
        notify(State::Stopping);
        self.edge.draining.store(true, Ordering::Release);
        for seat in self.edge.seats.iter().filter(|seat| seat.stage() != Stage::Ended) {
            if !told_to_drain(seat) {
                tracing::warn!(shard = seat.id, "the shard cannot be told to drain");
            }
        }
        let begun = Instant::now();
        let until = begun + self.drain_time + DRAIN_GRACE;
        while self.shards_ended < self.edge.seats.len() {
            match self.next_event(Some(until)) {
                Some(Event::Shard(..)) => {}
                Some(Event::Stop(_)) if begun.elapsed() < SIGNAL_AGAIN_MIN => {}
                Some(Event::Stop(signal)) => {
                    tracing::warn!(signal, "told again: not waiting for the rest of the drain");
                    return;
                }
                None => {
                    tracing::error!("a shard has not ended in time and is left behind");
                    return;
                }
            }
        }
    }

    /// The next event; None when there is none until then.
    fn next_event(&mut self, until: Option<Instant>) -> Option<Event> {
        let event = match until {
            None => self.inbox.recv().ok()?,
            Some(until) => {
                self.inbox.recv_timeout(until.saturating_duration_since(Instant::now())).ok()?
            }
        };
        if let Event::Shard(_, ShardEvent::Ended { cut_off }) = &event {
            self.shards_ended += 1;
            self.cut_off += cut_off;
        }
        Some(event)
    }

    /// Takes down what the shards stood on. Shards that have not ended are left to the end of the
    /// process: everything that was acknowledged is on the disk already.
    fn end(self) -> Result<Stopped, RunError> {
        let stopped = Stopped { cut_off: self.cut_off };
        if self.shards_ended == self.edge.seats.len() {
            for shard in self.shards {
                shard.join()?;
            }
            if let Ok(uplink) = Arc::try_unwrap(self.uplink) {
                uplink.shutdown();
            }
            self.names.stop()?;
        }
        if let Some(follower) = self.follower {
            follower.stop();
        }
        if let Some(mut companion) = self.companion {
            companion.stop();
        }
        tracing::info!(cut_off = stopped.cut_off, "stopped");
        Ok(stopped)
    }
}

const fn events_max(shards: usize) -> usize {
    shards * EVENTS_PER_SHARD + SIGNALS_WAITING_MAX
}

/// Starts what runs on the uplink's runtime: the signals and the admin pages.
fn start_on_runtime(
    uplink: &Uplink,
    edge: &Arc<Edge>,
    admin: Option<(TcpListener, Door)>,
    events: &SyncSender<Event>,
) -> Result<(), RunError> {
    let runtime = uplink.runtime();
    let _inside = runtime.enter();
    let mut terminate = signal(SignalKind::terminate()).map_err(RunError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(RunError::Signals)?;
    let events = events.clone();
    runtime.spawn(async move {
        loop {
            let name = tokio::select! {
                Some(()) = terminate.recv() => "SIGTERM",
                Some(()) = interrupt.recv() => "SIGINT",
                else => return,
            };
            // When it is full, the main thread has been told often enough.
            let _ = events.try_send(Event::Stop(name));
        }
    });
    if let Some((listener, door)) = admin {
        let server = admin::serve(listener, Arc::clone(edge), door).map_err(RunError::Admin)?;
        runtime.spawn(server);
    }
    Ok(())
}

/// Who is let in to the admin pages of an edge without a node.
fn door(
    config: &Config,
    at: Option<SocketAddr>,
    tls: &rustls::ServerConfig,
    uplink: &Uplink,
) -> Result<Door, RunError> {
    let operators = config.admin.auth.as_ref().map(Operators::open).transpose()?.map(Arc::new);
    if let Some(operators) = &operators {
        uplink.runtime().spawn(Arc::clone(operators).watch());
    }
    let is_loopback = at.is_none_or(|at| at.ip().is_loopback());
    let own = Arc::clone(&tls.cert_resolver);
    let acceptor = outrider_operators::acceptor(config.admin.tls.as_ref(), is_loopback, own)?;
    Ok(Door { operators, acceptor })
}

fn ready(config: &Config, dir: &DataDir, edge: &Edge, sizes: Sizes, ca_pem: PathBuf) -> Ready {
    Ready {
        first_start: sizes.first_start,
        data_dir: dir.path().to_owned(),
        https: edge.addresses.https,
        http: edge.addresses.http,
        admin: edge.addresses.admin,
        ca_pem,
        ram: sizes.ram,
        ssd: sizes.ssd,
        upstreams: config.upstream.iter().map(|u| (u.name.clone(), u.url.to_string())).collect(),
    }
}

/// Tells a shard to drain; it may have much to answer before.
fn told_to_drain(seat: &Seat) -> bool {
    let until = Instant::now() + DRAIN_GRACE;
    loop {
        if seat.tell(Message::Drain) {
            return true;
        }
        if seat.stage() == Stage::Ended || Instant::now() >= until {
            return false;
        }
        std::thread::sleep(TELL_PAUSE);
    }
}
