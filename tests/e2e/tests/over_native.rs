//! The native protocol of the real program, asked frame by frame: what HTTP gives, many digests at once, and
//! one that fails among others that do not.

#![allow(clippy::unwrap_used)]

use std::process::{Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use outrider_artifact::Digest;
use outrider_artifact::native::{
    self, ALPN, Answer, Item, Reader, Refusal, RefusalCode, TOTAL_UNKNOWN, Tier, Want, WantKind,
};
use outrider_e2e::clients::quic;
use outrider_e2e::registry::*;
use outrider_e2e::*;

/// A connection by the native protocol.
struct Native {
    runtime: tokio::runtime::Runtime,
    quic: quinn::Connection,
}

/// What came of a request: each record with its content, or a refusal.
type Answers = Result<Vec<(Answer, Vec<u8>)>, Refusal>;

impl Native {
    fn connect(outrider: &Outrider) -> Self {
        let config = quic::config(outrider, ALPN);
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.unwrap();
        let address = ([127, 0, 0, 1], outrider.https_port()).into();
        let quic = runtime.block_on(async {
            let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
            endpoint.connect_with(config, address, "localhost").unwrap().await.unwrap()
        });
        Self { runtime, quic }
    }

    /// Sends these bytes on a stream and reads all that comes back.
    fn send(&self, bytes: &[u8]) -> Result<Vec<u8>, quinn::ReadToEndError> {
        self.send_and_open(bytes, 0, &Gate::shut())
    }

    /// As [`Self::send`], and opens the gate when more than `before` bytes have come back.
    fn send_and_open(
        &self,
        bytes: &[u8],
        before: usize,
        gate: &Gate,
    ) -> Result<Vec<u8>, quinn::ReadToEndError> {
        self.runtime.block_on(async {
            let (mut send, mut receive) = self.quic.open_bi().await.unwrap();
            // The server may refuse before it has all.
            let _ = send.write_all(bytes).await;
            let _ = send.finish();
            let mut read = Vec::new();
            while read.len() <= before {
                match receive.read_chunk(usize::MAX, true).await? {
                    Some(chunk) => read.extend_from_slice(&chunk.bytes),
                    None => return Ok(read),
                }
            }
            gate.open();
            read.extend(receive.read_to_end(1 << 28).await?);
            Ok(read)
        })
    }

    fn ask(&self, request: &native::Request) -> Answers {
        read(self.send(&request.encode().unwrap()).unwrap())
    }

    /// Asks for these of one repository; each answer has one record.
    fn wants(&self, repository: &str, wants: Vec<Want>) -> Vec<(Answer, Vec<u8>)> {
        let count = wants.len();
        let repository = repository.to_owned();
        let request = native::Request { repository, wants, ..native::Request::default() };
        let answers = self.ask(&request).unwrap();
        assert_eq!(answers.len(), count);
        for (index, (answer, body)) in (0_u32..).zip(&answers) {
            assert_eq!((answer.want, answer.more), (index, false));
            assert_eq!(answer.body_len, body.len() as u64);
        }
        answers
    }

    fn want(&self, repository: &str, want: Want) -> (Answer, Vec<u8>) {
        self.wants(repository, vec![want]).remove(0)
    }
}

fn read(all: Vec<u8>) -> Answers {
    let (mut reader, mut rest, mut answers) = (Reader::client(), &all[..], Vec::new());
    while !rest.is_empty() {
        let (taken, item) = reader.read(rest).unwrap();
        match item {
            Some(Item::Answer(answer)) => answers.push((answer, Vec::new())),
            Some(Item::Body) => answers.last_mut().unwrap().1.extend_from_slice(&rest[..taken]),
            Some(Item::Refusal(refusal)) => return Err(refusal),
            Some(Item::Request(_) | Item::Credential(_)) => panic!("a server does not ask"),
            None => {}
        }
        rest = &rest[taken..];
    }
    assert!(reader.is_at_boundary());
    Ok(answers)
}

fn digest_of(bytes: &[u8]) -> Digest {
    Digest::sha256(bytes)
}

fn whole(bytes: &[u8]) -> Want {
    Want::whole(digest_of(bytes))
}

#[test]
fn blobs_come_whole_in_part_and_as_metadata_cold_and_warm() {
    for shards in [1, 2] {
        blobs_come(shards);
    }
}

fn blobs_come(shards: usize) {
    let upstream = FakeUpstream::start();
    let image = SmallImage::new(41, &[4_000, 3_000_000, 0]);
    upstream.image("team/app", "v1", &image);
    let outrider = Outrider::start(Options::with_upstream(&upstream.url()).shards(shards));
    let client = Native::connect(&outrider);
    for layer in &image.layers {
        let total = layer.len() as u64;
        for time in ["cold", "warm", "again", "and again"] {
            let (answer, body) = client.want("team/app", whole(layer));
            assert!(body == *layer, "{time}: {} bytes", body.len());
            assert_eq!((answer.status, answer.total, answer.start), (200, total, 0), "{time}");
            assert_eq!((answer.digest, &*answer.error), (digest_of(layer), ""));
            assert_eq!(answer.media_type, "application/octet-stream");
            let cold = time == "cold";
            assert_eq!(answer.verified, !cold, "{time}");
            assert_eq!(answer.tier == Tier::Origin, cold, "{time}: {:?}", answer.tier);
            assert_ne!(answer.tier, Tier::None);
        }
        let metadata = Want { metadata_only: true, ..whole(layer) };
        let (answer, body) = client.want("team/app", metadata);
        assert_eq!((answer.status, answer.total, answer.len), (200, total, total));
        assert!(body.is_empty() && answer.verified);
        let behind = Want { offset: total + 1, ..whole(layer) };
        let (answer, _) = client.want("team/app", behind);
        assert_eq!((answer.status, answer.total), (416, total));
    }
    let layer = &image.layers[1];
    for (offset, len, range) in [
        (0, Some(1), 0..1),
        (1_000, Some(2_000), 1_000..3_000),
        (262_143, Some(2), 262_143..262_145),
        (2_999_999, None, 2_999_999..3_000_000),
        (2_999_999, Some(50), 2_999_999..3_000_000),
    ] {
        let (answer, body) = client.want("team/app", Want { offset, len, ..whole(layer) });
        assert_eq!((answer.status, answer.total), (206, 3_000_000));
        assert_eq!((answer.start, answer.len), (offset, (range.end - range.start) as u64));
        assert!(body == layer[range]);
    }
    let manifest = Want { kind: WantKind::Manifest, ..whole(&image.manifest) };
    for _ in 0..2 {
        let (answer, body) = client.want("team/app", manifest.clone());
        assert!(body == image.manifest);
        assert_eq!((answer.status, &answer.media_type), (200, &image.media_type));
    }
    let metrics = outrider.metrics();
    let asked = metrics.sum("outrider_transport_requests_total", &["protocol=\"native\""]);
    assert!(asked > 20.0, "{asked}");
    assert_eq!(metrics.sum("outrider_transport_quic_native_wants_total", &[]), asked);
    assert!(metrics.sum("outrider_requests_total", &["route=\"blob\""]) >= asked - 3.0);
    client.quic.close(0_u32.into(), b"");
}

#[test]
fn many_digests_come_in_one_round_trip_and_one_that_fails_stops_no_other() {
    let upstream = FakeUpstream::start();
    let sizes: Vec<usize> = (0..40).map(|n| if n % 7 == 3 { 600_000 } else { 100 * n }).collect();
    let image = SmallImage::new(42, &sizes);
    upstream.image("team/app", "v1", &image);
    let broken = bytes(7, 50_000);
    upstream.blob(&broken);
    upstream.always("GET", &sha256(&broken), &[Fault::status(500)]);
    let wrong = bytes(8, 300_000);
    upstream.blob(&wrong);
    // The end of it is not there before its beginning was answered.
    let gate = Gate::shut();
    let faults = [Fault::Flip(7), Fault::Hold(270_000, gate.clone())];
    upstream.always("GET", &sha256(&wrong), &faults);
    let outrider = Outrider::start(Options::with_upstream(&upstream.url()));
    let client = Native::connect(&outrider);
    let mut wants: Vec<Want> = image.layers.iter().map(|layer| whole(layer)).collect();
    wants.insert(5, whole(b"nobody has this"));
    wants.insert(9, whole(&broken));
    wants.push(Want { offset: 10, len: Some(5), ..whole(&image.layers[3]) });
    for time in ["cold", "warm"] {
        let mut answers = client.wants("team/app", wants.clone());
        let (part, body) = answers.pop().unwrap();
        assert_eq!((part.status, &body[..]), (206, &image.layers[3][10..15]), "{time}");
        let (failed, _) = answers.remove(9);
        assert!(matches!(failed.status, 502 | 503), "{time}: {failed:?}");
        let (missing, _) = answers.remove(5);
        assert_eq!(missing.status, 404, "{time}");
        assert!(missing.error.contains("upstream has it"), "{time}: {}", missing.error);
        for ((answer, body), layer) in answers.iter().zip(&image.layers) {
            assert_eq!(answer.status, 200, "{time}: {}", answer.error);
            assert!(body == layer, "{time}");
        }
    }
    for layer in &image.layers {
        assert_eq!(upstream.count("GET", &sha256(layer)), 1);
    }
    // Content that turns out to be wrong on its way is cut off, and with that what would come behind it.
    let request = native::Request {
        repository: "team/app".to_owned(),
        wants: vec![whole(&image.layers[1]), whole(&wrong)],
        ..native::Request::default()
    };
    let cut = client.send_and_open(&request.encode().unwrap(), 100_000, &gate).unwrap_err();
    let quinn::ReadToEndError::Read(quinn::ReadError::Reset(code)) = &cut else { panic!("{cut}") };
    assert_eq!(code.into_inner(), u64::from(native::CONTENT_WRONG));
    assert!(client.want("team/app", whole(&image.layers[1])).1 == image.layers[1]);
}

#[test]
fn only_what_is_held_is_answered_to_who_asks_for_that() {
    let upstream = FakeUpstream::start();
    let image = SmallImage::new(43, &[300_000, 9_000]);
    upstream.image("team/app", "v1", &image);
    let outrider = Outrider::start(Options::with_upstream(&upstream.url()));
    let client = Native::connect(&outrider);
    let held = |bytes: &[u8], kind| Want { held_only: true, kind, ..whole(bytes) };
    let all = || {
        let blobs = image.layers.iter().map(|layer| held(layer, WantKind::Blob));
        blobs.chain([held(&image.manifest, WantKind::Manifest)]).collect::<Vec<_>>()
    };
    for (answer, _) in client.wants("team/app", all()) {
        assert_eq!(answer.status, 404);
    }
    // Without a repository nobody is asked either.
    assert_eq!(client.want("", whole(&image.layers[0])).0.status, 404);
    assert_eq!(upstream.count("", ""), 0);
    assert_served(&outrider.client(), "team/app", "v1", &image);
    let asked = upstream.count("", "");
    for (answer, _) in client.wants("team/app", all()) {
        assert_eq!(answer.status, 200);
    }
    assert!(client.want("", whole(&image.layers[0])).1 == image.layers[0]);
    assert_eq!(upstream.count("", ""), asked);
    // HTTP says the same.
    let path = blob_path("team/app", &sha256(b"nowhere"));
    let request = outrider.client();
    let request = request.request("GET", &path).header("cache-control", "only-if-cached");
    request.send().expect(504);
}

#[test]
fn what_was_pushed_is_read_where_it_was_and_content_without_a_length_comes_in_pieces() {
    let upstream = FakeUpstream::start();
    let outrider = Outrider::start(Options::default().and_named("mirror", &upstream.url()));
    let image = SmallImage::new(44, &[5_000, 1_500_000]);
    push(&outrider.client(), "own/app", "v1", &image);
    let client = Native::connect(&outrider);
    for layer in &image.layers {
        assert!(client.want("own/app", whole(layer)).1 == *layer);
        assert_eq!(client.want("other/app", whole(layer)).0.status, 404);
    }
    let open = bytes(9, 700_000);
    upstream.blob(&open);
    upstream.always("", &sha256(&open), &[Fault::NoLength]);
    let request = native::Request {
        repository: "team/app".to_owned(),
        upstream: "mirror".to_owned(),
        wants: vec![whole(&open), whole(b"nobody has this")],
        ..native::Request::default()
    };
    let answers = client.ask(&request).unwrap();
    let (missing, pieces) = answers.split_last().unwrap();
    assert_eq!((missing.0.want, missing.0.status), (1, 404));
    let (last, before) = pieces.split_last().unwrap();
    let mut body = Vec::new();
    for (answer, piece) in before {
        assert_eq!((answer.total, answer.start), (TOTAL_UNKNOWN, body.len() as u64));
        assert!(answer.more && answer.status == 200 && answer.want == 0);
        body.extend_from_slice(piece);
    }
    assert!(body == open);
    assert_eq!((last.0.more, last.0.total, last.0.body_len), (false, 700_000, 0));
}

#[test]
fn what_is_no_request_is_refused_and_the_connection_goes_on() {
    let outrider = Outrider::start(Options::default());
    let content = bytes(10, 10_000);
    try_push_blob(&outrider.client(), "own/app", &content).expect("a push");
    let client = Native::connect(&outrider);
    let request = native::Request {
        repository: "own/app".to_owned(),
        wants: vec![whole(&content)],
        ..native::Request::default()
    };
    let good = request.encode().unwrap();
    let refused = |bytes: &[u8]| read(client.send(bytes).unwrap()).unwrap_err().code;
    let changed = |at: usize, to: u8| {
        let mut bytes = good.clone();
        bytes[at] = to;
        bytes
    };
    assert_eq!(refused(&changed(4, 2)), RefusalCode::VERSION);
    assert_eq!(refused(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"), RefusalCode::FRAME);
    assert_eq!(refused(&changed(good.len() - 1, 1)), RefusalCode::CHECKSUM);
    assert_eq!(refused(&changed(11, 1)), RefusalCode::LIMIT);
    assert_eq!(refused(&good[..good.len() - 1]), RefusalCode::RECORD);
    assert_eq!(refused(b""), RefusalCode::RECORD);
    let named = |repository: &str, region: &str| {
        let (repository, region) = (repository.to_owned(), region.to_owned());
        native::Request { repository, region, ..request.clone() }.encode().unwrap()
    };
    assert_eq!(refused(&named("own/../app", "")), RefusalCode::RECORD);
    assert_eq!(refused(&named("own/app", "nowhere-1")), RefusalCode::FORBIDDEN);
    assert!(client.want("own/app", whole(&content)).1 == content);
    // A stream of the other kind is not read.
    let code = client.runtime.block_on(async {
        let mut stream = client.quic.open_uni().await.unwrap();
        stream.write_all(b"anything").await.unwrap();
        stream.stopped().await.unwrap()
    });
    assert_eq!(code.map(quinn::VarInt::into_inner), Some(4));
    assert!(client.want("own/app", whole(&content)).1 == content);
    let refusals = outrider.metrics().sum("outrider_transport_quic_native_refusals_total", &[]);
    assert_eq!(refusals, 8.0);
}

#[test]
fn a_client_that_is_killed_in_the_middle_leaves_nothing_behind() {
    let upstream = FakeUpstream::start();
    let content = bytes(11, 20_000_000);
    upstream.blob(&content);
    let gate = Gate::default();
    upstream.script(1, "GET", &sha256(&content), &[Fault::Hold(8_000_000, gate.clone())]);
    let options = Options::with_upstream(&upstream.url()).config("[limits]\nidle_time = \"2s\"\n");
    let outrider = Outrider::start(options);
    let scratch = Scratch::new();
    let mut victim = Command::new(Outrider::program())
        .current_dir(scratch.path())
        .args(["get", &sha256(&content), "--repository", "team/app", "--protocol", "native"])
        .args(["--from", &format!("https://{}", outrider.https_host()), "--output", "out"])
        .arg("--ca")
        .arg(outrider.ca_pem())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let partial = scratch.path().join("out.partial");
    until("half of it has come", || {
        std::fs::metadata(&partial).is_ok_and(|file| file.len() > 4_000_000)
    });
    victim.kill().unwrap();
    victim.wait().unwrap();
    gate.open();
    let sum = |name: &str, labels: &[&str]| outrider.metrics().sum(name, labels);
    until("the connection is gone, and all that it held", || {
        sum("outrider_transport_connections_open", &["scheme=\"quic\""]) == 0.0
            && sum("outrider_transport_pinned_bytes", &[]) == 0.0
    });
    // The next one gets all of it, and what the first one has left is gone on with.
    let client = Native::connect(&outrider);
    assert!(client.want("team/app", whole(&content)).1 == content);
}

#[test]
fn a_client_that_reads_nothing_holds_no_more_than_it_may() {
    let upstream = FakeUpstream::start();
    let image = SmallImage::new(45, &[3_000_000; 12]);
    upstream.image("team/app", "v1", &image);
    let outrider = Outrider::start(Options::with_upstream(&upstream.url()).shards(1));
    assert_served(&outrider.client(), "team/app", "v1", &image);
    let clients: Vec<Native> = (0..4).map(|_| Native::connect(&outrider)).collect();
    let wants: Vec<Want> = image.layers.iter().map(|layer| whole(layer)).collect();
    let repository = "team/app".to_owned();
    let request = native::Request { repository, wants, ..native::Request::default() };
    let bytes = Bytes::from(request.encode().unwrap());
    let mut streams = Vec::new();
    for client in &clients {
        for _ in 0..16 {
            streams.push(client.runtime.block_on(async {
                let (mut send, receive) = client.quic.open_bi().await.unwrap();
                send.write_all(&bytes).await.unwrap();
                send.finish().unwrap();
                receive
            }));
        }
    }
    let pinned = || outrider.metrics().sum("outrider_transport_pinned_bytes", &[]);
    until("they hold something", || pinned() > 0.0);
    // Of each connection 4 MiB, and what the last frames go over that.
    for _ in 0..10 {
        assert!(pinned() <= f64::from(4 * (4 << 20) + 4 * (1 << 20)), "{}", pinned());
        std::thread::sleep(Duration::from_millis(50));
    }
    // Others are served meanwhile, and the slow ones all get what they asked for when they read.
    let other = Native::connect(&outrider);
    assert!(other.want("team/app", whole(&image.layers[0])).1 == image.layers[0]);
    let client = &clients[0];
    for mut stream in streams.drain(..16) {
        let all = client.runtime.block_on(stream.read_to_end(1 << 28)).unwrap();
        let answers = read(all).unwrap();
        assert!(answers.iter().zip(&image.layers).all(|((_, body), layer)| body == layer));
    }
    drop((streams, clients));
    until("nobody holds anything", || {
        outrider.metrics().sum("outrider_transport_pinned_bytes", &[]) == 0.0
    });
}

#[test]
fn a_client_that_was_here_before_is_answered_in_its_first_flight() {
    let upstream = FakeUpstream::start();
    let image = SmallImage::new(46, &[4_000]);
    upstream.image("team/app", "v1", &image);
    let outrider = Outrider::start(Options::with_upstream(&upstream.url()));
    assert_served(&outrider.client(), "team/app", "v1", &image);
    let wants =
        vec![whole(&image.layers[0]), Want { kind: WantKind::Manifest, ..whole(&image.manifest) }];
    let repository = "team/app".to_owned();
    let request = native::Request { repository, wants, ..native::Request::default() };
    let request = request.encode().unwrap();
    let config = quic::config(&outrider, ALPN);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = ([127, 0, 0, 1], outrider.https_port()).into();
        let connect = || endpoint.connect_with(config.clone(), address, "localhost").unwrap();
        let ask = async |quic: &quinn::Connection| {
            let (mut send, mut receive) = quic.open_bi().await.unwrap();
            send.write_all(&request).await.unwrap();
            send.finish().unwrap();
            let answers = read(receive.read_to_end(1 << 20).await.unwrap()).unwrap();
            assert!(answers[0].1 == image.layers[0] && answers[1].1 == image.manifest);
        };
        let first = connect().await.unwrap();
        ask(&first).await;
        // The ticket comes after the handshake, and at the latest with what is asked next.
        ask(&first).await;
        first.close(0_u32.into(), b"");
        let (second, accepted) = connect().into_0rtt().unwrap_or_else(|_| panic!("no ticket"));
        ask(&second).await;
        assert!(accepted.await);
        second.close(0_u32.into(), b"");
        endpoint.wait_idle().await;
    });
    let early = outrider.metrics().sum("outrider_transport_quic_early_data_accepted_total", &[]);
    assert_eq!(early, 1.0);
}

#[test]
fn a_drain_ends_the_connection_and_the_process() {
    let mut outrider = Outrider::start(Options::default());
    let content = bytes(12, 10_000);
    try_push_blob(&outrider.client(), "own/app", &content).expect("a push");
    let client = Native::connect(&outrider);
    assert!(client.want("own/app", whole(&content)).1 == content);
    outrider.begin_termination();
    let reason = client.runtime.block_on(client.quic.closed());
    let quinn::ConnectionError::ApplicationClosed(close) = &reason else { panic!("{reason}") };
    assert_eq!(close.error_code.into_inner(), u64::from(RefusalCode::GOING_AWAY.0));
    assert!(outrider.wait_end().success());
}
