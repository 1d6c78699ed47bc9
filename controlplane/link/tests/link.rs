//! A node and edges over real QUIC.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use outrider_link::{
    ALPN, Asked, Beside, Feed, FollowError, Gate, Served, ServedBeside, follow, serve,
};
use outrider_push::sender::Known;
use outrider_push::{Ask, FromEdge, Interest, Replica, Reply, Sender, SenderError, ToEdge, Wish};
use outrider_state::change::HistoryLimits;
use outrider_state::request::TagRecord;
use outrider_state::{Batch, Expect, History, Operation, Request, RequestId, State, Write};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, Endpoint, ServerConfig};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio::sync::{mpsc, oneshot, watch};

const CLUSTER: [u8; 16] = [9; 16];

struct State1 {
    known: RwLock<(State, History)>,
    changed: watch::Sender<u64>,
}

impl State1 {
    fn new(limits: HistoryLimits) -> Self {
        let known = RwLock::new((State::new(), History::new(0, limits)));
        Self { known, changed: watch::Sender::new(0) }
    }

    fn put(&self, key: &str, value: &[u8]) {
        let write = Write::Put { key: key.into(), value: value.into(), expect: Expect::Any };
        let request = Request { id: RequestId::None, operation: Operation::Write(write) };
        let mut known = self.known.write().unwrap();
        let mut updates = Vec::new();
        known.0.apply(Batch { time_ms: 0, requests: vec![request] }, &mut updates);
        updates.into_iter().for_each(|update| known.1.push(update));
        self.changed.send_replace(known.0.version());
    }
}

impl Feed for State1 {
    fn sender(&self, hello: FromEdge, now_ms: u64) -> Result<Sender, SenderError> {
        let known = self.known.read().unwrap();
        let source = Known { cluster: CLUSTER, state: &known.0, history: &known.1, time_ms: 0 };
        Sender::from_hello(hello, now_ms, &source)
    }

    fn poll(&self, sender: &mut Sender, now_ms: u64) -> Result<Option<ToEdge>, SenderError> {
        let known = self.known.read().unwrap();
        sender.poll(
            now_ms,
            &Known { cluster: CLUSTER, state: &known.0, history: &known.1, time_ms: 0 },
        )
    }

    type New = u64;

    async fn ask(&self, edge: u64, ask: Ask) -> Reply {
        let request = match ask.into_request(edge) {
            Ok(request) => request,
            Err(error) => return Reply::Refused(error),
        };
        let mut known = self.known.write().unwrap();
        let mut updates = Vec::new();
        let batch = Batch { time_ms: 0, requests: vec![request] };
        let outcome = known.0.apply(batch, &mut updates).remove(0);
        updates.into_iter().for_each(|update| known.1.push(update));
        self.changed.send_replace(known.0.version());
        Reply::of(&outcome)
    }

    fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

#[derive(Default)]
struct Open {
    shut: AtomicBool,
}

impl Gate for Open {
    fn edge(&self, _: &CertificateDer<'_>) -> Option<u64> {
        (!self.shut.load(Ordering::Relaxed)).then_some(5)
    }
}

struct Place {
    feed: Arc<State1>,
    gate: Arc<Open>,
    served: Arc<Served>,
    address: SocketAddr,
    edge: Endpoint,
}

fn place(limits: HistoryLimits) -> Place {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let authority_der = params.self_signed(&key).unwrap().der().clone();
    let authority = Issuer::new(params, key);
    let member = |name: &str| {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &authority).unwrap();
        (vec![certificate.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
    };
    let mut roots = RootCertStore::empty();
    roots.add(authority_der).unwrap();
    let roots = Arc::new(roots);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone());
    let (chain, key) = member("node");
    let mut tls = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(chain, key)
        .unwrap();
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let tls = Arc::new(QuicServerConfig::try_from(tls).unwrap());
    let server = ServerConfig::with_crypto(tls);
    let node = Endpoint::server(server, "127.0.0.1:0".parse().unwrap()).unwrap();
    let address = node.local_addr().unwrap();
    let (chain, key) = member("edge");
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .unwrap();
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let tls = Arc::new(QuicClientConfig::try_from(tls).unwrap());
    let mut edge = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    edge.set_default_client_config(ClientConfig::new(tls));
    let (feed, gate) = (Arc::new(State1::new(limits)), Arc::new(Open::default()));
    let served = Arc::new(Served::default());
    tokio::spawn(serve(
        node,
        Arc::clone(&feed),
        Arc::clone(&gate),
        Arc::clone(&served),
        ServedBeside::default(),
    ));
    Place { feed, gate, served, address, edge }
}

fn run<T>(future: impl Future<Output = T>) -> T {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).enable_all().build().unwrap().block_on(future)
}

/// Wishes, and no events.
fn beside(asks: &mut mpsc::Receiver<Asked>) -> Beside<'_> {
    Beside { asks, events: None, soft: None }
}

/// Follows until it is told to leave; gives the replica back.
fn edge(
    place: &Place,
    mut replica: Replica,
) -> (tokio::task::JoinHandle<Replica>, mpsc::UnboundedReceiver<(u64, Instant)>, watch::Sender<bool>)
{
    let (positions, seen) = mpsc::unbounded_channel();
    let (leave, mut left) = watch::channel(false);
    let (endpoint, address) = (place.edge.clone(), place.address);
    let task = tokio::spawn(async move {
        let interest = Interest { prefixes: vec!["k".to_owned()] };
        let taken = |replica: &Replica, _| {
            let _ = positions.send((replica.position, Instant::now()));
        };
        let to = (address, "node");
        let (nobody, mut asks) = mpsc::channel(1);
        drop(nobody);
        tokio::select! {
            error = follow(&endpoint, to, interest, &mut replica, beside(&mut asks), taken) => {
                panic!("{error}")
            }
            _ = left.wait_for(|left| *left) => {}
        }
        replica
    });
    (task, seen, leave)
}

async fn until_position(seen: &mut mpsc::UnboundedReceiver<(u64, Instant)>, position: u64) {
    while seen.recv().await.expect("the edge follows").0 < position {}
}

#[test]
fn an_edge_gets_what_it_uses_goes_on_where_it_stopped_and_says_how_far_it_is() {
    run(async {
        let place = place(HistoryLimits::default());
        for n in 0..100 {
            place.feed.put(&format!("k{n}"), b"1");
            place.feed.put(&format!("other{n}"), b"1");
        }
        let (task, mut seen, leave) = edge(&place, Replica::default());
        until_position(&mut seen, 200).await;
        while place.served.edges().get(&5) != Some(&200) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        leave.send_replace(true);
        let replica = task.await.unwrap();
        assert_eq!(replica.fragments.len(), 100);
        while !place.served.edges().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        place.feed.put("k0", b"2");
        place.feed.put("other", b"2");
        let (task, mut seen, leave) = edge(&place, replica);
        assert_eq!(seen.recv().await.unwrap().0, 201, "nothing is sent twice");
        until_position(&mut seen, 202).await;
        leave.send_replace(true);
        let replica = task.await.unwrap();
        assert_eq!(replica.fragments["k0"], (201, b"2".to_vec().into()));
    });
}

#[test]
fn a_large_snapshot_comes_whole_while_the_state_goes_on_changing() {
    run(async {
        let place = place(HistoryLimits { updates_max: 10, bytes_max: 1 << 30 });
        let large = vec![7; 1 << 20];
        for n in 0..24 {
            place.feed.put(&format!("k{n}"), &large);
        }
        let (task, mut seen, leave) = edge(&place, Replica::default());
        for n in 0..8 {
            place.feed.put(&format!("k{n}"), b"small");
            tokio::task::yield_now().await;
        }
        until_position(&mut seen, 32).await;
        leave.send_replace(true);
        let replica = task.await.unwrap();
        assert_eq!(replica.fragments.len(), 24);
        assert_eq!(replica.fragments["k7"], (32, b"small".to_vec().into()));
        assert_eq!(replica.fragments["k8"].1, large);
    });
}

#[test]
fn an_edge_that_is_not_let_in_any_more_is_told_so() {
    run(async {
        let place = place(HistoryLimits::default());
        let mut replica = Replica::default();
        let interest = Interest::default();
        let to = (place.address, "node");
        let gate = Arc::clone(&place.gate);
        let (_nobody, mut asks) = mpsc::channel(1);
        let asks = &mut asks;
        // Once it has the (empty) snapshot it is shut out.
        let taken = |_: &Replica, _| gate.shut.store(true, Ordering::Relaxed);
        let error =
            follow(&place.edge, to, interest.clone(), &mut replica, beside(asks), taken).await;
        assert!(error.to_string().contains("not that of an edge that is let in"), "{error}");
        let again =
            follow(&place.edge, to, interest.clone(), &mut replica, beside(asks), |_, _| ()).await;
        assert!(again.to_string().contains("not that of an edge that is let in"), "{again}");
        let other = (place.address, "another");
        let error =
            follow(&place.edge, other, interest, &mut replica, beside(asks), |_, _| ()).await;
        assert!(matches!(error, FollowError::Connect(_)), "{error}");
    });
}

#[test]
fn wishes_are_granted_once_beside_the_stream_and_a_bad_one_costs_nothing_else() {
    run(async {
        let place = place(HistoryLimits::default());
        let (wish, mut asks) = mpsc::channel::<Asked>(100);
        let (endpoint, address) = (place.edge.clone(), place.address);
        let (positions, mut seen) = mpsc::unbounded_channel();
        let following = tokio::spawn(async move {
            let mut replica = Replica::default();
            let taken = |replica: &Replica, _| positions.send(replica.position).unwrap_or(());
            let interest = Interest::default();
            follow(&endpoint, (address, "node"), interest, &mut replica, beside(&mut asks), taken)
                .await
        });
        let ask = |sequence, holders: Vec<u64>| {
            let record = TagRecord {
                digest: outrider_artifact::Digest::sha256(b"m").to_string(),
                size_bytes: 1,
                media_type: String::new(),
                holders,
                upstream: None,
            };
            let (repository, tag) = ("app".to_owned(), format!("v{}", sequence % 40));
            let wish = Wish::Tag { repository, tag, expect: Expect::Absent, record: Some(record) };
            let (reply, answer) = oneshot::channel();
            let ask = Ask { client: [1; 8], sequence, settled: 0, wish };
            (Asked { ask, reply }, answer)
        };
        // More than may be under way at a time.
        let mut answers = Vec::new();
        for sequence in 0..80 {
            let (asked, answer) = ask(sequence, vec![5]);
            wish.send(asked).await.unwrap();
            answers.push(answer);
        }
        let (mut done, mut lost) = (0, 0);
        for answer in answers {
            match answer.await.unwrap() {
                Reply::Done { .. } => done += 1,
                Reply::Mismatch { current } => {
                    assert!((1..=40).contains(&current));
                    lost += 1;
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((done, lost), (40, 40));
        let (again, answer) = ask(0, vec![5]);
        wish.send(again).await.unwrap();
        let again = answer.await.unwrap();
        assert!(matches!(again, Reply::Done { .. } | Reply::Mismatch { .. }), "{again:?}");
        let (bad, answer) = ask(80, vec![4]);
        wish.send(bad).await.unwrap();
        assert!(matches!(answer.await.unwrap(), Reply::Refused(_)));
        while seen.recv().await.unwrap() < 40 {}
        // Whoever is revoked is not granted anything.
        place.gate.shut.store(true, Ordering::Relaxed);
        let (late, answer) = ask(81, vec![5]);
        wish.send(late).await.unwrap();
        answer.await.unwrap_err();
        let error = following.await.unwrap();
        assert!(error.to_string().contains("is let in"), "{error}");
        assert_eq!(place.feed.known.read().unwrap().0.version(), 40);
    });
}
