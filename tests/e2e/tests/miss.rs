//! Content that is not here yet: one fetch for everybody, passed on as it comes in, and nobody
//! waits for anybody else.

use std::sync::atomic::Ordering;
use std::thread;

use outrider_e2e::registry::*;
use outrider_e2e::*;

const MIB: usize = 1 << 20;

/// An upstream that has one blob of `size` bytes, and an Outrider in front of it.
fn with_blob(seed: u64, size: usize) -> (FakeUpstream, Outrider, Vec<u8>, String) {
    let upstream = FakeUpstream::start();
    let content = bytes(seed, size);
    let path = blob_path("team/app", &upstream.blob(&content));
    let outrider = Outrider::start(Options::with_upstream(&upstream.url()));
    (upstream, outrider, content, path)
}

#[test]
fn a_hundred_clients_of_a_cold_64_mib_blob_cause_one_upstream_fetch() {
    let (upstream, outrider, content, path) = with_blob(1, 64 * MIB);
    // All hundred are there before the upstream says a word.
    let gate = Gate::shut();
    upstream.always("GET", "/blobs/", &[Fault::HoldHead(gate.clone())]);
    let client = outrider.client();
    thread::scope(|scope| {
        let clients: Vec<_> = (0..100)
            .map(|_| {
                scope.spawn(|| {
                    let mut incoming = client.request("GET", &path).open();
                    assert_eq!(incoming.status, 200);
                    // Compared piece by piece: a hundred copies of it would not fit.
                    let mut at = 0;
                    let mut buffer = vec![0; 64 << 10];
                    loop {
                        let got = incoming.read(&mut buffer).expect("a whole answer");
                        if got == 0 {
                            return at;
                        }
                        assert!(buffer[..got] == content[at..at + got], "wrong bytes at {at}");
                        at += got;
                    }
                })
            })
            .collect();
        until("the upstream is asked", || upstream.count("GET", "/blobs/") > 0);
        gate.open();
        for client in clients {
            assert_eq!(client.join().expect("a client"), content.len());
        }
    });
    assert_eq!(upstream.count("GET", "/blobs/"), 1);
    let hashed = outrider.metrics().sum("outrider_blob_bytes_hashed_total", &[]);
    assert!((hashed - content.len() as f64).abs() < 1.0, "it is hashed once, not {hashed} bytes");
}

#[test]
fn the_first_byte_is_here_before_the_last_has_left_the_upstream() {
    let (upstream, outrider, content, path) = with_blob(2, 8 * MIB);
    let gate = Gate::shut();
    upstream.always("GET", "/blobs/", &[Fault::Hold(MIB as u64, gate.clone())]);
    let mut incoming = outrider.client().request("GET", &path).open();
    assert_eq!(incoming.header("content-length"), Some(content.len().to_string().as_str()));
    let first = incoming.take(MIB / 2).expect("bytes come while the upstream is held");
    assert!(!gate.is_open() && !upstream.seen()[0].whole.load(Ordering::SeqCst));
    assert!(first == content[..MIB / 2]);
    gate.open();
    assert!(incoming.finish().expect("the rest").body == content[MIB / 2..]);
}

#[test]
fn a_client_that_leaves_takes_nothing_from_the_others() {
    let (upstream, outrider, content, path) = with_blob(3, 16 * MIB);
    let gate = Gate::shut();
    upstream.always("GET", "/blobs/", &[Fault::Hold(2 * MIB as u64, gate.clone())]);
    let client = outrider.client();
    // The one that leaves is the one for whom the fetch was begun.
    let mut leaving = client.request("GET", &path).open();
    leaving.take(MIB / 2).expect("the first bytes");
    let mut staying = client.request("GET", &path).open();
    staying.take(MIB / 2).expect("the first bytes");
    drop(leaving);
    gate.open();
    assert!(staying.finish().expect("all of it").body == content[MIB / 2..]);
    assert_eq!(upstream.count("GET", "/blobs/"), 1);
}

#[test]
fn a_client_that_reads_nothing_slows_nobody() {
    let (upstream, outrider, content, path) = with_blob(4, 48 * MIB);
    let client = outrider.client();
    let mut slow: Vec<_> = (0..4)
        .map(|_| {
            let mut incoming = client.request("GET", &path).open();
            incoming.take(1).expect("the first byte");
            incoming
        })
        .collect();
    // Each of these ends while the slow ones still stand at their first byte.
    for _ in 0..3 {
        assert!(client.get(&path).expect(200).body == content);
    }
    assert_eq!(upstream.count("GET", "/blobs/"), 1);
    // And the slow ones get what is theirs when they want it, or are cut off, but nothing wrong.
    let mut one = slow.pop().expect("one of them");
    let (rest, _) = one.drain();
    assert!(content[1..].starts_with(&rest));
}

#[test]
fn content_that_everybody_left_is_right_for_the_next_one() {
    let (upstream, outrider, content, path) = with_blob(5, 8 * MIB);
    let gate = Gate::shut();
    upstream.script(1, "GET", "/blobs/", &[Fault::Hold(MIB as u64, gate.clone())]);
    let client = outrider.client();
    let mut leaving = client.request("GET", &path).open();
    leaving.take(MIB / 2).expect("the first bytes");
    drop(leaving);
    gate.open();
    assert!(client.get(&path).expect(200).body == content);
    assert!(client.get(&path).expect(200).body == content);
}

#[test]
fn many_clients_of_a_cold_tag_cause_one_upstream_fetch_of_the_manifest() {
    let upstream = FakeUpstream::start();
    let image = SmallImage::new(6, &[1000]);
    upstream.image("team/app", "v1", &image);
    let gate = Gate::shut();
    upstream.always("", "/manifests/", &[Fault::HoldHead(gate.clone())]);
    let outrider = Outrider::start(Options::with_upstream(&upstream.url()));
    let client = outrider.client();
    thread::scope(|scope| {
        let clients: Vec<_> = (0..32)
            .map(|_| scope.spawn(|| get_manifest(&client, "team/app", "v1").expect(200)))
            .collect();
        until("the upstream is asked", || upstream.count("", "/manifests/") > 0);
        gate.open();
        for client in clients {
            assert!(client.join().expect("a client").body == image.manifest);
        }
    });
    assert!(upstream.count("GET", "/manifests/") <= 1, "one GET");
    assert!(upstream.count("HEAD", "/manifests/") <= 1, "one HEAD");
}

#[test]
fn content_of_unknown_length_passes_through() {
    let upstream = FakeUpstream::start();
    let outrider = Outrider::start(Options::with_upstream(&upstream.url()));
    let client = outrider.client();
    for (seed, fault) in [(7, Fault::Chunked), (8, Fault::NoLength)] {
        let content = bytes(seed, 3 * MIB);
        let path = blob_path("team/app", &upstream.blob(&content));
        upstream.script(1, "GET", &path, &[fault]);
        assert!(client.get(&path).expect(200).body == content);
        upstream.behave();
        assert!(client.get(&path).expect(200).body == content);
    }
}

#[test]
fn another_waiters_upstream_takes_over_from_one_that_stalls() {
    let (good, stalling) = (FakeUpstream::start(), FakeUpstream::start());
    let content = bytes(9, 8 * MIB);
    let digest = good.blob(&content);
    stalling.blob(&content);
    stalling.always("GET", "/blobs/", &[Fault::Stall(MIB as u64)]);
    let options =
        Options::default().and_named("good", &good.url()).and_named("bad", &stalling.url());
    let outrider = Outrider::start(options);
    let client = outrider.client();
    let mut first = client.request("GET", &blob_path("bad/team/app", &digest)).open();
    let begun = first.take(MIB / 2).expect("what came before the stall");
    assert!(client.get(&blob_path("good/team/app", &digest)).expect(200).body == content);
    assert!(begun == content[..MIB / 2]);
    assert!(first.finish().expect("taken over").body == content[MIB / 2..]);
    let asked = good.seen_of("GET", "/blobs/");
    let sent: u64 = asked.iter().map(|seen| seen.sent.load(Ordering::SeqCst)).sum();
    assert!(sent <= content.len() as u64, "no byte left the good one twice: {sent}");
}

#[test]
fn unverified_bytes_are_served_only_where_they_came_from() {
    let (upstream, outrider, content, path) = with_blob(10, 8 * MIB);
    let elsewhere = path.replace("team/app", "other/app");
    upstream.always("", "/v2/other/", &[Fault::status(404)]);
    let gate = Gate::shut();
    upstream.always("GET", "/v2/team/", &[Fault::Hold(2 * MIB as u64, gate.clone())]);
    let client = outrider.client();
    let mut incoming = client.request("GET", &path).open();
    incoming.take(MIB).expect("the first bytes");
    assert_eq!(client.request("GET", &elsewhere).open().status, 404);
    assert_eq!(client.request("HEAD", &elsewhere).open().status, 404);
    gate.open();
    assert!(incoming.finish().expect("the rest").body == content[MIB..]);
}

#[test]
fn an_unknown_digest_is_404_and_asked_for_again_when_it_appears() {
    let upstream = FakeUpstream::start();
    let outrider = Outrider::start(Options::with_upstream(&upstream.url()));
    let client = outrider.client();
    let content = bytes(11, 1000);
    let path = blob_path("team/app", &sha256(&content));
    client.get(&path).expect_error(404, "BLOB_UNKNOWN");
    upstream.blob(&content);
    assert!(client.get(&path).expect(200).body == content);
}
