//! An edge that was away: the follower of the product, with its certificate and its disk, and a node in this
//! process whose history has everything that it missed.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use outrider_certificate::Shown;
use outrider_follower::asks::asks;
use outrider_follower::{EdgeFolder, Follower, Given, Settings, Sink};
use outrider_link::{Feed, Gate, Served, serve, tls};
use outrider_push::replica::Consequence;
use outrider_push::sender::Known;
use outrider_push::{Ask, FromEdge, Interest, Item, Replica, Reply, Sender, SenderError, ToEdge};
use outrider_state::change::HistoryLimits;
use outrider_state::request::TagRecord;
use outrider_state::{Batch, Expect, History, Operation, Request, RequestId, State, Write};
use quinn::Endpoint;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::Serialize;
use tempfile::TempDir;
use tokio::sync::watch;

use crate::BenchError;
use crate::report::progress;

const CLUSTER: [u8; 16] = [7; 16];
/// Keys and tags that are written over and over.
const NAMES: u64 = 10_000;
/// How often it is looked whether the edge is there.
const LOOK: Duration = Duration::from_millis(5);
/// How long it may take.
const TIME_MAX: Duration = Duration::from_secs(600);

/// How soon the edge had everything.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Missed {
    /// What it had missed.
    pub(super) updates: u64,
    /// From the start of the follower to its knowing everything.
    pub(super) known_s: f64,
    /// The same to its being on the disk.
    pub(super) stored_s: f64,
}

/// A node without consensus.
struct Node {
    known: RwLock<(State, History)>,
    changed: watch::Sender<u64>,
}

impl Node {
    fn apply(&self, operation: Operation) {
        let request = Request { id: RequestId::None, operation };
        let batch = Batch { time_ms: 0, requests: vec![request] };
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let mut updates = Vec::new();
        known.0.apply(batch, &mut updates);
        updates.into_iter().for_each(|update| known.1.push(update));
    }

    fn version(&self) -> u64 {
        self.known.read().unwrap_or_else(PoisonError::into_inner).0.version()
    }

    fn look<R>(&self, look: impl FnOnce(&Known<'_>) -> R) -> R {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        look(&Known { cluster: CLUSTER, state: &known.0, history: &known.1, time_ms: 0 })
    }
}

impl Feed for Node {
    fn sender(&self, hello: FromEdge, now_ms: u64) -> Result<Sender, SenderError> {
        self.look(|known| Sender::from_hello(hello, now_ms, known))
    }

    fn poll(&self, sender: &mut Sender, now_ms: u64) -> Result<Option<ToEdge>, SenderError> {
        self.look(|known| sender.poll(now_ms, known))
    }

    type New = u64;

    fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    async fn ask(&self, _edge: u64, _ask: Ask) -> Reply {
        Reply::Done { version: 0 }
    }
}

/// Lets everybody in who has a certificate.
struct Open;

impl Gate for Open {
    fn edge(&self, _: &CertificateDer<'_>) -> Option<u64> {
        Some(1)
    }
}

/// Counts what comes, and whether it comes in order.
struct Counter {
    updates: Arc<AtomicU64>,
    wrong: Arc<AtomicU64>,
    last: u64,
}

impl Sink for Counter {
    fn whole(
        &mut self,
        replica: &Replica,
        _: &[Consequence],
    ) -> Option<outrider_follower::Settling> {
        self.last = replica.position;
        None
    }

    fn update(
        &mut self,
        replica: &Replica,
        _: &[Item],
        _: &[Consequence],
    ) -> Option<outrider_follower::Settling> {
        if replica.position != self.last + 1 {
            self.wrong.fetch_add(1, Ordering::Relaxed);
        }
        self.last = replica.position;
        self.updates.fetch_add(1, Ordering::Relaxed);
        None
    }
}

pub(super) fn measure(count: u64) -> Result<Missed, BenchError> {
    let scratch = TempDir::new().map_err(BenchError::io("making a folder"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(BenchError::io("starting a runtime"))?;
    let limits = HistoryLimits {
        updates_max: usize::try_from(count).unwrap_or(usize::MAX).max(1 << 20),
        bytes_max: 1 << 30,
    };
    let node = Arc::new(Node {
        known: RwLock::new((State::new(), History::new(0, limits))),
        changed: watch::Sender::new(0),
    });
    let folder = EdgeFolder::new(&scratch.path().join("control"));
    let (endpoint, at) = certificates(&folder, &runtime)?;
    let (feed, served) = (Arc::clone(&node), Arc::<Served>::default());
    runtime.spawn(serve(
        endpoint,
        feed,
        Arc::new(Open),
        served,
        outrider_link::ServedBeside::default(),
    ));

    node.apply(update(0));
    let (follower, _, _) = start(&folder, at)?;
    wait("the edge follows", || follower.monitor().status().version == 1)?;
    follower.stop();
    progress(&format!("{count} updates while the edge is away"));
    (1..=count).for_each(|index| node.apply(update(index)));
    let wanted = node.version();

    let begin = Instant::now();
    let (follower, updates, wrong) = start(&folder, at)?;
    let monitor = follower.monitor();
    wait("the edge knows everything", || monitor.status().version >= wanted)?;
    let known_s = begin.elapsed().as_secs_f64();
    // What was taken in is on the disk then.
    follower.stop();
    let stored_s = begin.elapsed().as_secs_f64();
    let status = monitor.status();
    let (updates, wrong) = (updates.load(Ordering::Relaxed), wrong.load(Ordering::Relaxed));
    if (updates, wrong, status.snapshots) != (count, 0, 0) {
        return Err(BenchError::Void(format!(
            "the edge took in {updates} of {count} updates, {wrong} of them out of order, and {} snapshots",
            status.snapshots
        )));
    }
    Ok(Missed { updates, known_s, stored_s })
}

/// Fragments and tags in turn.
fn update(index: u64) -> Operation {
    let name = index % NAMES;
    if index.is_multiple_of(2) {
        let (key, value) = (format!("app/{name}"), index.to_le_bytes().to_vec());
        return Operation::Write(Write::Put { key, value, expect: Expect::Any });
    }
    Operation::Tag {
        repository: format!("team/app-{}", name / 10),
        tag: format!("v{}", name % 10),
        expect: Expect::Any,
        record: Some(TagRecord {
            digest: outrider_artifact::Digest::sha256(&index.to_le_bytes()).to_string(),
            size_bytes: 1_000,
            media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
            holders: vec![1],
            upstream: None,
        }),
    }
}

type Started = (Follower, Arc<AtomicU64>, Arc<AtomicU64>);

fn start(folder: &EdgeFolder, at: SocketAddr) -> Result<Started, BenchError> {
    let (updates, wrong) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
    let sink = Counter { updates: Arc::clone(&updates), wrong: Arc::clone(&wrong), last: 0 };
    let failed = |error: &dyn std::fmt::Display| BenchError::Tls(error.to_string());
    let follower = Follower::start(Settings {
        folder: folder.clone(),
        identity: folder.identity().map_err(|error| failed(&error))?,
        nodes: vec![at.to_string()],
        interest: Interest { prefixes: vec!["app/".to_owned()] },
        address: String::new(),
        token_key: None,
        sink: Box::new(sink),
        asks: asks(),
    });
    let follower = follower.map_err(|error| BenchError::Void(error.to_string()))?;
    Ok((follower, updates, wrong))
}

fn wait(what: &str, until: impl Fn() -> bool) -> Result<(), BenchError> {
    let begin = Instant::now();
    while !until() {
        if begin.elapsed() > TIME_MAX {
            return Err(BenchError::Void(format!("{what}: not within {TIME_MAX:?}")));
        }
        thread::sleep(LOOK);
    }
    Ok(())
}

/// An authority, a node's endpoint, and the edge's folder.
fn certificates(
    folder: &EdgeFolder,
    runtime: &tokio::runtime::Runtime,
) -> Result<(Endpoint, SocketAddr), BenchError> {
    let failed = |error: &dyn std::fmt::Display| BenchError::Tls(error.to_string());
    let key = KeyPair::generate().map_err(|error| failed(&error))?;
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));

    let authority = params.self_signed(&key).map_err(|error| failed(&error))?;
    let authority_pem = authority.pem();
    let authority = authority.der().clone();
    let issuer = Issuer::new(params, key);
    let sign = |name: &str, key: &KeyPair| {
        let params = CertificateParams::new(vec![name.to_owned()]);
        params.and_then(|params| params.signed_by(key, &issuer)).map_err(|error| failed(&error))
    };
    let node_key = KeyPair::generate().map_err(|error| failed(&error))?;
    let certificate = sign(tls::NODE_NAME, &node_key)?;
    let node_key =
        PrivateKeyDer::try_from(node_key.serialize_der()).map_err(|error| failed(&error))?;
    let chain = vec![certificate.der().clone(), authority.clone()];
    let shown = Shown::new(chain, node_key).map_err(|error| failed(&error))?;
    let identity = tls::Identity { shown, authority };
    let edge_key = KeyPair::generate().map_err(|error| failed(&error))?;
    let certificate = sign("edge-1.outrider.internal", &edge_key)?;
    let joined = folder.own_key(|| Ok(edge_key.serialize_pem())).and_then(|_| {
        folder.take_over(&Given {
            number: 1,
            region: String::new(),
            nodes: vec!["127.0.0.1:1".to_owned()],
            certificate_pem: &certificate.pem(),
            authority_pem: &authority_pem,
        })
    });
    joined.map_err(|error| failed(&error))?;
    let config = tls::server(identity).map_err(|error| failed(&error))?;
    let _inside = runtime.enter();
    let endpoint = Endpoint::server(config, (std::net::Ipv4Addr::LOCALHOST, 0).into())
        .map_err(BenchError::io("binding a socket"))?;
    let at = endpoint.local_addr().map_err(BenchError::io("binding a socket"))?;
    Ok((endpoint, at))
}
