//! Clients that are slow, silent, many, or gone: none of them slows another, and what they may hold is
//! bounded.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use outrider_e2e::http::Incoming;
use outrider_e2e::registry::*;
use outrider_e2e::*;

const MIB: usize = 1 << 20;

#[test]
fn a_thousand_slow_readers_stay_within_the_pins_and_a_fast_one_goes_on() {
    let upstream = FakeUpstream::start();
    let content = bytes(1, 32 * MIB);
    let path = blob_path("team/app", &upstream.blob(&content));
    let outrider = Outrider::start(Options::with_upstream(&upstream.url()).ram("128MiB"));
    let client = outrider.client();
    assert!(client.get(&path).expect(200).body == content);

    let mut slow: Vec<Incoming> = Vec::new();
    for n in 0..1000 {
        match client.request("GET", &path).try_open() {
            Ok(incoming) => slow.push(incoming),
            Err(error) => panic!("reader {n} is not served at all: {error}"),
        }
    }
    // Each takes a byte now and then; between those the fast one is served, again and again.
    for round in 0..3 {
        for incoming in &mut slow {
            // Cutting off who takes next to nothing is allowed.
            let _ = incoming.read(&mut [0]);
        }
        assert!(client.get(&path).expect(200).body == content, "round {round}");
        let other = bytes(10 + round, 5 * MIB);
        let cold = blob_path("team/app", &upstream.blob(&other));
        assert!(client.get(&cold).expect(200).body == other, "round {round}, cold");
        let pinned = outrider.metrics().sum("outrider_transport_pinned_bytes", &[]);
        assert!(pinned > 0.0, "the slow ones hold something");
        assert!(pinned <= (64 * MIB) as f64, "half of the arena at most, not {pinned}");
    }
    drop(slow);
    until("what they pinned is free again", || {
        outrider.metrics().sum("outrider_transport_pinned_bytes", &[]) < MIB as f64
    });
}

#[test]
fn slow_readers_of_cold_content_do_not_stop_other_cold_content() {
    let upstream = FakeUpstream::start();
    let outrider = Outrider::start(Options::with_upstream(&upstream.url()).ram("64MiB"));
    let client = outrider.client();
    let big: Vec<_> =
        (0..8).map(|n| blob_path("team/app", &upstream.blob(&bytes(20 + n, 24 * MIB)))).collect();
    let slow: Vec<_> = big.iter().map(|path| client.request("GET", path).open()).collect();
    for n in 0..6 {
        let content = bytes(40 + n, 9 * MIB);
        let path = blob_path("team/app", &upstream.blob(&content));
        assert!(client.get(&path).expect(200).body == content, "{n}");
    }
    drop(slow);
}

#[test]
fn connections_that_never_finish_a_request_or_a_handshake_are_closed() {
    let options = Options::default().config("[limits]\nheader_time = \"1s\"\nidle_time = \"1s\"\n");
    let outrider = Outrider::start(options);
    let client = outrider.client();
    let mut half = client.connect().expect("accepted");
    half.write_all(b"GET /v2/ HTTP/1.1\r\nHost: x\r\nX-Slow: ").expect("sent");
    let silent = client.connect().expect("accepted");
    let mut handshake = Client::new(outrider.https_port()).connect().expect("accepted");
    handshake.write_all(&[22, 3, 1, 2, 0, 1]).expect("sent");
    client.get("/v2/").expect(200);
    for (what, stream) in
        [("half a head", half), ("nothing", silent), ("half a handshake", handshake)]
    {
        assert!(is_closed(stream), "{what}");
    }
    // One byte at a time does not keep it open either.
    let mut trickle = client.connect().expect("accepted");
    until("the trickling one is closed", || trickle.write_all(b"G").is_err());
    client.get("/v2/").expect(200);
}

/// Reads until the other side closes. A timeout is false.
fn is_closed(mut stream: TcpStream) -> bool {
    let mut buffer = [0; 1024];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}

#[test]
fn an_upload_of_a_byte_at_a_time_slows_nobody() {
    let outrider = Outrider::start(Options::default());
    let client = outrider.client();
    let mut slow: Vec<_> = (0..50)
        .map(|_| {
            let at = begin_upload(&client, "own/slow").expect("a session");
            client.request("PATCH", &at).begin(Some(1_000_000)).expect("begun")
        })
        .collect();
    for round in 0..5 {
        for upload in &mut slow {
            upload.write(b"x").expect("taken");
        }
        push(&client, "own/fast", "v1", &SmallImage::new(60 + round, &[2 * MIB]));
    }
    for upload in slow {
        upload.abandon();
    }
    push(&client, "own/fast", "v1", &SmallImage::new(70, &[MIB]));
}

#[test]
fn a_storm_of_clients_that_leave_at_random_leaves_nothing_behind() {
    let upstream = FakeUpstream::start();
    let content = bytes(80, 16 * MIB);
    let path = blob_path("team/app", &upstream.blob(&content));
    upstream.always("GET", "/blobs/", &[Fault::Slow(Duration::from_millis(1))]);
    let outrider = Outrider::start(Options::with_upstream(&upstream.url()));
    let client = outrider.client();
    std::thread::scope(|scope| {
        for n in 0..8 {
            let (path, content) = (&path, &content);
            scope.spawn(move || {
                for round in 0..10 {
                    let take = (n * 131 + round * 977) * 1371 % (2 * MIB);
                    let mut incoming = client.request("GET", path).open();
                    let got = incoming.take(take).expect("the first bytes");
                    assert!(got == content[..take]);
                }
            });
        }
    });
    assert!(client.get(&path).expect(200).body == content);
    until("no flight is left and nothing is pinned", || {
        outrider.metrics().sum("outrider_transport_pinned_bytes", &[]) == 0.0
    });
}

#[test]
fn more_connections_than_allowed_are_refused_and_the_rest_is_served() {
    let outrider = Outrider::start(Options::default().config("[limits]\nconnections = 50\n"));
    let client = outrider.client();
    let held: Vec<_> = (0..200).map(|_| client.connect()).collect();
    drop(held);
    until("it serves again", || {
        client.request("GET", "/v2/").try_send().is_ok_and(|answer| answer.status == 200)
    });
}
