//! Both clients against a small server that misbehaves on demand: what is good is counted exactly,
//! what is not is counted as what it is, and every load ends.

#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use outrider_artifact::Digest;
use outrider_bench::arguments::{Client, Protocol, TrustArguments};
use outrider_bench::load::source::{RangedBlob, Source};
use outrider_bench::load::tally::{FailureKind, Tally};
use outrider_bench::load::{self, Plan, Span, target, tls};
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

const BODY: &[u8] = &[b'x'; 40_000];
const CLIENTS: [Client; 2] = [Client::Lean, Client::Hyper];

#[derive(Clone, Copy, PartialEq)]
enum Reply {
    /// 200 and the body.
    Good,
    /// Half of the body, and the end of the connection.
    Cut,
    /// 200, the body, and the end of the connection, announced.
    Close,
    /// 503 with a body.
    Unavailable,
    /// Nothing.
    Silence,
}

/// A server that answers its `n`th request with `reply(n)`.
struct Server {
    address: SocketAddr,
    secure: bool,
    requests: Arc<AtomicU64>,
}

fn server(secure: bool, reply: fn(u64) -> Reply) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let requests = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&requests);
    let config = secure.then(tls_config);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, counter) = (stream.unwrap(), Arc::clone(&counter));
            let config = config.clone();
            thread::spawn(move || match config {
                None => serve(stream, &counter, reply),
                Some(config) => {
                    let session = ServerConnection::new(config).unwrap();
                    serve(StreamOwned::new(session, stream), &counter, reply);
                }
            });
        }
    });
    Server { address, secure, requests }
}

fn tls_config() -> Arc<ServerConfig> {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    Arc::new(config)
}

fn serve(mut stream: impl Read + Write, requests: &AtomicU64, reply: fn(u64) -> Reply) {
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        while !request.ends_with(b"\r\n\r\n") {
            match stream.read(&mut buffer) {
                Ok(read) if read > 0 => request.extend_from_slice(&buffer[..read]),
                _ => return,
            }
        }
        request.clear();
        let reply = reply(requests.fetch_add(1, Ordering::Relaxed));
        let status = if reply == Reply::Unavailable { "503 No" } else { "200 OK" };
        let close = if reply == Reply::Close { "Connection: close\r\n" } else { "" };
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n{close}\r\n", BODY.len());
        let body = if reply == Reply::Cut { &BODY[..BODY.len() / 2] } else { BODY };
        if reply == Reply::Silence {
            continue;
        }
        if stream.write_all(&[head.as_bytes(), body].concat()).is_err() || stream.flush().is_err() {
            return;
        }
        if matches!(reply, Reply::Cut | Reply::Close) {
            return;
        }
    }
}

fn plan(server: &Server, client: Client, digest: Option<Digest>) -> Plan {
    let scheme = if server.secure { "https" } else { "http" };
    let (to, target) = target::parse(&format!("{scheme}://{}/a", server.address)).unwrap();
    let source = Source::round_robin(&to, &[target], &[], None, |_| digest);
    let mut plan = Plan::closed(to, source, 3);
    plan.client = client;
    plan.timeout = Duration::from_millis(400);
    if server.secure {
        let trust = TrustArguments { ca: None, insecure: true };
        plan.tls = Some(tls::client_config(&trust, Protocol::H1).unwrap());
    }
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
    for secure in [false, true] {
        let server = server(secure, |_| Reply::Good);
        for client in CLIENTS {
            let tally = run(plan(&server, client, Some(Digest::sha256(BODY))), requests(60));
            let shown = format!("{client:?}, secure: {secure}, {:?}", tally.failures);
            assert_eq!((tally.responses, tally.failed()), (60, 0), "{shown}");
            // What was under way when the last one came counts with the bytes that were there.
            let whole = 60 * BODY.len() as u64;
            assert!((whole..whole + 3 * BODY.len() as u64).contains(&tally.body_bytes), "{shown}");
            assert_eq!((tally.statuses[&200], tally.latency.count()), (60, 60), "{shown}");
            assert_eq!(tally.reconnects, 0, "{shown}");
            assert_eq!(tally.cipher.as_deref(), secure.then_some("TLS13_AES_128_GCM_SHA256"));
        }
    }
}

#[test]
fn a_body_that_is_cut_off_is_a_failure_and_the_load_goes_on() {
    for secure in [false, true] {
        let server = server(secure, |n| if n % 4 == 0 { Reply::Cut } else { Reply::Good });
        for client in CLIENTS {
            let tally = run(plan(&server, client, None), requests(40));
            let cut = tally.failures[&FailureKind::ShortBody].count;
            assert!((8..=12).contains(&cut), "{client:?}: {cut}");
            assert_eq!(tally.failed(), cut, "{client:?}: {:?}", tally.failures);
            assert_eq!(tally.responses + cut, 40, "{client:?}");
        }
    }
}

#[test]
fn an_announced_end_of_the_connection_is_no_failure() {
    for secure in [false, true] {
        let server = server(secure, |_| Reply::Close);
        let tally = run(plan(&server, Client::Lean, None), requests(20));
        assert_eq!((tally.responses, tally.failed()), (20, 0), "{:?}", tally.failures);
        assert!(tally.reconnects >= 17, "{}", tally.reconnects);
    }
}

#[test]
fn an_error_answer_and_a_wrong_body_are_told_apart() {
    for client in CLIENTS {
        let refusing = server(false, |n| if n == 5 { Reply::Unavailable } else { Reply::Good });
        let tally = run(plan(&refusing, client, None), requests(20));
        assert_eq!(tally.failures[&FailureKind::Status].count, 1, "{client:?}");
        assert_eq!((tally.statuses[&503], tally.responses), (1, 19), "{client:?}");
        let good = server(false, |_| Reply::Good);
        let tally = run(plan(&good, client, Some(Digest::sha256(b"another"))), requests(20));
        assert_eq!(tally.failures[&FailureKind::Digest].count, tally.failed(), "{client:?}");
        assert_eq!(tally.responses, 0, "{client:?}");
    }
}

#[test]
fn a_server_that_is_not_there_ends_the_load_soon() {
    // A port that was free a moment ago.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let gone = Server { address, secure: false, requests: Arc::default() };
    for client in CLIENTS {
        let start = Instant::now();
        let span = Span { duration: Some(Duration::from_secs(600)), requests: None, ..requests(0) };
        let tally = run(plan(&gone, client, None), span);
        assert!(tally.failures[&FailureKind::Connect].count > 0, "{client:?}");
        assert_eq!(tally.responses, 0, "{client:?}");
        assert!(start.elapsed() < Duration::from_secs(60), "{client:?}");
    }
}

#[test]
fn a_certificate_that_nobody_vouches_for_is_refused() {
    let server = server(true, |_| Reply::Good);
    let folder = tempfile::tempdir().unwrap();
    let other = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let file = folder.path().join("ca.pem");
    std::fs::write(&file, other.cert.pem()).unwrap();
    let trust = TrustArguments { ca: Some(file), insecure: false };
    for client in CLIENTS {
        let mut plan = plan(&server, client, None);
        plan.tls = Some(tls::client_config(&trust, Protocol::H1).unwrap());
        let tally = run(plan, requests(5));
        assert_eq!(tally.responses, 0, "{client:?}");
        assert!(tally.failures[&FailureKind::Tls].count > 0, "{client:?}: {:?}", tally.failures);
    }
}

#[test]
fn an_open_loop_sends_exactly_what_is_due_within_its_window() {
    let server = server(false, |_| Reply::Good);
    for client in CLIENTS {
        let mut plan = plan(&server, client, None);
        plan.rate_per_s = Some(200.0);
        plan.threads = 2;
        plan.connections = 4;
        let span = Span {
            warmup: Duration::from_millis(100),
            duration: Some(Duration::from_millis(500)),
            requests: None,
        };
        let tally = run(plan, span);
        assert_eq!((tally.responses, tally.unanswered, tally.failed()), (100, 0, 0), "{client:?}");
        assert_eq!((tally.latency.count(), tally.send_lag.count() >= 90), (100, true));
    }
}

#[test]
fn what_an_open_loop_never_got_answered_stands_in_its_latencies() {
    let server = server(false, |n| if n < 10 { Reply::Good } else { Reply::Silence });
    for client in CLIENTS {
        server.requests.store(0, Ordering::Relaxed);
        let mut plan = plan(&server, client, None);
        plan.rate_per_s = Some(100.0);
        plan.timeout = Duration::from_millis(300);
        let span = Span {
            warmup: Duration::ZERO,
            duration: Some(Duration::from_millis(200)),
            requests: None,
        };
        let tally = run(plan, span);
        assert_eq!(tally.responses, 10, "{client:?}");
        // Three connections waited in vain; what was due behind them was never sent.
        assert!(tally.unanswered + tally.failed() >= 10, "{client:?}: {:?}", tally.failures);
        assert!(tally.latency.summary().unwrap().max_us > 200_000.0, "{client:?}");
    }
}

#[test]
fn a_load_of_ranges_takes_whole_bodies_for_failures() {
    let server = server(false, |_| Reply::Good);
    let (to, _) = target::parse(&format!("http://{}/", server.address)).unwrap();
    let blob = RangedBlob { path: "/a".to_owned(), size_bytes: 100_000 };
    let source = Source::random_ranges(&to, vec![blob], 4096, 1, 7);
    let tally = run(Plan::closed(to, source, 2), requests(20));
    assert_eq!(tally.responses, 0);
    assert_eq!(tally.failures[&FailureKind::Status].count, tally.failed());
}
