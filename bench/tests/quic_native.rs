//! The lean client over the native protocol, against the small server that the client library is tested
//! with.

#![allow(clippy::unwrap_used)]

#[path = "../../tools/client/tests/native_server/mod.rs"]
mod native_server;

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use native_server::{NativeServer, Reply, start};
use outrider_artifact::Digest;
use outrider_bench::arguments::{Client, Protocol, TrustArguments};
use outrider_bench::load::source::Source;
use outrider_bench::load::tally::{FailureKind, Tally};
use outrider_bench::load::{self, Plan, Span, target, tls};

const BODY: &[u8] = &[b'x'; 300_000];

fn run(server: &NativeServer, named: &Digest, digest: Option<Digest>, count: u64) -> Tally {
    let url = format!("https://{}/v2/team/app/blobs/{named}", server.address);
    let (to, target) = target::parse(&url).unwrap();
    let source = Source::round_robin(&to, &[target], &[], None, |_| digest);
    let mut plan = Plan::closed(to, source, 3);
    plan.client = Client::Lean;
    plan.protocol = Protocol::Native;
    plan.streams = 2;
    plan.timeout = Duration::from_secs(5);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &server.certificate_pem).unwrap();
    let trust = TrustArguments { ca: Some(file.path().to_owned()), insecure: false };
    plan.tls = Some(tls::client_config(&trust, Protocol::Native).unwrap());
    let span = Span { warmup: Duration::ZERO, duration: None, requests: Some(count) };
    load::run(&[plan], &span, None).unwrap().tallies.remove(0)
}

#[test]
fn every_good_answer_is_counted_and_what_is_wrong_is_what_it_is() {
    let digest = Digest::sha256(BODY);
    let contents = [Bytes::from_static(BODY)];
    for reply in [(|_| Reply::Whole) as fn(u32) -> Reply, |_| Reply::InTwo] {
        let server = start(&contents, reply);
        let tally = run(&server, &digest, Some(digest), 40);
        assert_eq!((tally.responses, tally.failed()), (40, 0), "{:?}", tally.failures);
        assert!(server.requests.load(Ordering::Relaxed) >= 40);
    }
    let server = start(&contents, |_| Reply::Whole);
    let tally = run(&server, &digest, Some(Digest::sha256(b"another")), 20);
    assert_eq!(tally.failures[&FailureKind::Digest].count, tally.failed());
    let tally = run(&server, &Digest::sha256(b"nowhere"), None, 20);
    assert_eq!(tally.failures[&FailureKind::Status].count, tally.failed());
    assert_eq!(tally.responses, 0);
    for (reply, kind) in [
        ((|_| Reply::Cut) as fn(u32) -> Reply, FailureKind::ShortBody),
        (|_| Reply::Busy, FailureKind::Closed),
    ] {
        let tally = run(&start(&contents, reply), &digest, None, 5);
        assert_eq!(tally.responses, 0);
        assert!(tally.failures[&kind].count >= 5, "{:?}", tally.failures);
    }
}
