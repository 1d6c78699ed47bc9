//! Both clients of HTTP/3 against a server of h3 and h3-quinn: what is good is counted exactly, what is
//! not is counted as what it is, and every load ends.

#![allow(clippy::unwrap_used)]

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use outrider_artifact::Digest;
use outrider_bench::arguments::{Client, Protocol, TrustArguments};
use outrider_bench::compare::limit::Limit;
use outrider_bench::load::source::Source;
use outrider_bench::load::tally::{FailureKind, Tally};
use outrider_bench::load::{self, Meter, Plan, Span, target, tls};
use outrider_bench_h3_peer::{Blobs, endpoint, serve};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

const BODY: &[u8] = &[b'x'; 400_000];
const CLIENTS: [Client; 2] = [Client::Lean, Client::H3];

struct Server {
    address: SocketAddr,
    certificate_pem: String,
}

/// Runs `accept` on an endpoint of its own thread, until the test process ends.
fn start<F: Future<Output = ()>>(
    accept: impl FnOnce(quinn::Endpoint) -> F + Send + 'static,
) -> Server {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let certificate: CertificateDer<'static> = made.cert.der().clone();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let any = "127.0.0.1:0".parse().unwrap();
            let endpoint = endpoint(any, vec![certificate], key, None).unwrap();
            tell.send(endpoint.local_addr().unwrap()).unwrap();
            accept(endpoint).await;
        });
    });
    Server { address: told.recv().unwrap(), certificate_pem: made.cert.pem() }
}

fn peer() -> Server {
    let mut blobs = Blobs::default();
    blobs.insert("/a", Bytes::from_static(BODY));
    start(move |endpoint| serve(endpoint, Arc::new(blobs)))
}

/// A server that resets every answer in the middle of its body.
fn cutting_peer() -> Server {
    start(|endpoint| async move {
        while let Some(incoming) = endpoint.accept().await {
            tokio::spawn(async move {
                let quic = h3_quinn::Connection::new(incoming.await.unwrap());
                let mut connection = h3::server::Connection::<_, Bytes>::new(quic).await.unwrap();
                while let Ok(Some(resolver)) = connection.accept().await {
                    let Ok((_, mut stream)) = resolver.resolve_request().await else { continue };
                    let head = http::Response::builder().header("content-length", BODY.len());
                    stream.send_response(head.body(()).unwrap()).await.unwrap();
                    stream.send_data(Bytes::from_static(&BODY[..1000])).await.unwrap();
                    // Long enough that the head is there before the reset takes its place.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    stream.stop_stream(h3::error::Code::H3_INTERNAL_ERROR);
                }
            });
        }
    })
}

fn plan(server: &Server, path: &str, client: Client, digest: Option<Digest>) -> Plan {
    let (to, target) = target::parse(&format!("https://{}{path}", server.address)).unwrap();
    let source = Source::round_robin(&to, &[target], &[], None, |_| digest);
    let mut plan = Plan::closed(to, source, 3);
    plan.client = client;
    plan.protocol = Protocol::H3;
    plan.streams = 2;
    plan.timeout = Duration::from_secs(5);
    let trust = TrustArguments { ca: None, insecure: true };
    plan.tls = Some(tls::client_config(&trust, Protocol::H3).unwrap());
    plan
}

fn requests(count: u64) -> Span {
    Span { warmup: Duration::ZERO, duration: None, requests: Some(count) }
}

fn run(plan: Plan, span: Span) -> Tally {
    load::run(&[plan], &span, None).unwrap().tallies.remove(0)
}

#[test]
fn every_good_answer_is_counted_with_all_its_bytes() {
    let server = peer();
    for client in CLIENTS {
        let tally = run(plan(&server, "/a", client, Some(Digest::sha256(BODY))), requests(60));
        let shown = format!("{client:?}, {:?}", tally.failures);
        assert_eq!((tally.responses, tally.failed()), (60, 0), "{shown}");
        // What was under way when the last one came counts with the bytes that were there.
        let whole = 60 * BODY.len() as u64;
        assert!((whole..whole + 6 * BODY.len() as u64).contains(&tally.body_bytes), "{shown}");
        assert_eq!((tally.statuses[&200], tally.latency.count()), (60, 60), "{shown}");
        assert_eq!(tally.reconnects, 0, "{shown}");
        assert_eq!(tally.cipher.as_deref(), Some("TLS13_AES_128_GCM_SHA256"));
    }
}

#[test]
fn an_error_answer_and_a_wrong_body_are_told_apart() {
    let server = peer();
    for client in CLIENTS {
        let tally = run(plan(&server, "/missing", client, None), requests(20));
        assert_eq!(tally.responses, 0, "{client:?}");
        assert_eq!(tally.failures[&FailureKind::Status].count, tally.failed(), "{client:?}");
        let tally =
            run(plan(&server, "/a", client, Some(Digest::sha256(b"another"))), requests(20));
        assert_eq!(tally.responses, 0, "{client:?}");
        assert_eq!(tally.failures[&FailureKind::Digest].count, tally.failed(), "{client:?}");
    }
}

#[test]
fn a_body_that_is_cut_off_is_a_failure_and_the_load_ends() {
    let server = cutting_peer();
    for client in CLIENTS {
        let tally = run(plan(&server, "/a", client, None), requests(5));
        assert_eq!(tally.responses, 0, "{client:?}");
        let cut = tally.failures[&FailureKind::ShortBody].count;
        assert!(cut >= 5 && cut == tally.failed(), "{client:?}: {:?}", tally.failures);
    }
}

#[test]
fn a_server_that_is_not_there_ends_the_load_soon() {
    // A port that was free a moment ago.
    let address = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let gone = Server { address, certificate_pem: String::new() };
    for client in CLIENTS {
        let start = Instant::now();
        let span = Span { duration: Some(Duration::from_secs(600)), requests: None, ..requests(0) };
        let mut plan = plan(&gone, "/a", client, None);
        plan.timeout = Duration::from_millis(200);
        let tally = run(plan, span);
        assert!(tally.failures[&FailureKind::Timeout].count > 0, "{client:?}");
        assert_eq!(tally.responses, 0, "{client:?}");
        assert!(start.elapsed() < Duration::from_secs(60), "{client:?}");
    }
}

#[test]
fn a_certificate_is_trusted_when_somebody_vouches_for_it_and_only_then() {
    let server = peer();
    let folder = tempfile::tempdir().unwrap();
    let other = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    for (pem, good) in [(&server.certificate_pem, true), (&other.cert.pem(), false)] {
        let file = folder.path().join("ca.pem");
        std::fs::write(&file, pem).unwrap();
        let trust = TrustArguments { ca: Some(file), insecure: false };
        for client in CLIENTS {
            let mut plan = plan(&server, "/a", client, None);
            plan.tls = Some(tls::client_config(&trust, Protocol::H3).unwrap());
            let tally = run(plan, requests(5));
            let shown = format!("{client:?}, {good}, {:?}", tally.failures);
            assert_eq!(tally.responses, if good { 5 } else { 0 }, "{shown}");
            assert_eq!(tally.failures.contains_key(&FailureKind::Tls), !good, "{shown}");
        }
    }
}

#[test]
fn an_open_loop_sends_exactly_what_is_due_within_its_window() {
    let server = peer();
    for client in CLIENTS {
        let mut plan = plan(&server, "/a", client, None);
        plan.rate_per_s = Some(200.0);
        plan.threads = 2;
        plan.connections = 4;
        let span = Span {
            warmup: Duration::from_millis(300),
            duration: Some(Duration::from_millis(500)),
            requests: None,
        };
        let tally = run(plan, span);
        let shown = format!("{client:?}: {:?}", tally.failures);
        assert_eq!((tally.responses, tally.unanswered, tally.failed()), (100, 0, 0), "{shown}");
        assert_eq!(tally.latency.count(), 100, "{shown}");
    }
}

#[test]
fn connections_are_replaced_after_as_many_answers_as_was_asked_for() {
    let server = peer();
    let mut plan = plan(&server, "/a", Client::Lean, Some(Digest::sha256(BODY)));
    plan.quic.requests_per_connection = Some(2);
    let tally = run(plan, requests(60));
    assert_eq!((tally.responses, tally.failed()), (60, 0), "{:?}", tally.failures);
    // Thirty connections, of which three were opened at the start.
    assert!((25..=30).contains(&tally.reconnects), "{}", tally.reconnects);
}

#[test]
fn a_client_with_a_small_window_gets_it_all() {
    let server = peer();
    let mut plan = plan(&server, "/a", Client::Lean, Some(Digest::sha256(BODY)));
    plan.quic.window_bytes = Some(20_000);
    let tally = run(plan, requests(20));
    assert_eq!((tally.responses, tally.failed()), (20, 0), "{:?}", tally.failures);
}

#[test]
fn the_limit_serves_its_body_with_ordinary_and_with_jumbo_frames_and_counts_its_work() {
    for mtu in [None, Some(8952)] {
        let limit = Limit::start(None, mtu, Bytes::from_static(BODY)).unwrap();
        let server = Server { address: limit.quic, certificate_pem: String::new() };
        for client in CLIENTS {
            let mut plan = plan(&server, "/any", client, Some(Digest::sha256(BODY)));
            plan.quic.mtu = mtu;
            let measured = load::run(&[plan], &requests(60), Some(&limit.meter())).unwrap();
            let tally = &measured.tallies[0];
            assert_eq!((tally.responses, tally.failed()), (60, 0), "{:?}", tally.failures);
            let cpu = measured.server.unwrap().cpu;
            assert!(cpu > Duration::ZERO && cpu < measured.elapsed, "{cpu:?}");
        }
        assert!(matches!(limit.meter(), Meter::Counter(_)));
    }
}
