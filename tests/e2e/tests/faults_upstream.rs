//! Upstreams that lie, break off, fall silent or send elsewhere. Each gives the protocol's own error,
//! nothing wrong is stored, nothing stored is lost, and others are served on.

use std::net::TcpListener;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use outrider_e2e::http::Incoming;
use outrider_e2e::process::run;
use outrider_e2e::registry::*;
use outrider_e2e::*;

const MIB: usize = 1 << 20;

/// Short limits, so that what has to run out does so soon.
const IMPATIENT: &str = "connect_timeout = \"1s\"\nhead_timeout = \"1s\"\nidle_timeout = \"1s\"";

/// Two upstreams, the first of which misbehaves; the second is another way to the same content.
struct Scene {
    bad: FakeUpstream,
    /// Serves for as long as the scene lasts.
    _good: FakeUpstream,
    outrider: Outrider,
    client: Client,
    content: Vec<u8>,
    digest: String,
    cached: SmallImage,
}

impl Scene {
    fn new(seed: u64, size: usize) -> Self {
        let (bad, good) = (FakeUpstream::start(), FakeUpstream::start());
        let content = bytes(seed, size);
        let digest = bad.blob(&content);
        good.blob(&content);
        let cached = SmallImage::new(seed + 500, &[300_000]);
        bad.image("team/cached", "v1", &cached);
        let options =
            Options::default().and_named("bad", &bad.url()).and_named("good", &good.url());
        let outrider = Outrider::start(options.upstream_keys(IMPATIENT));
        let client = outrider.client();
        assert_served(&client, "bad/team/cached", "v1", &cached);
        Self { bad, _good: good, outrider, client, content, digest, cached }
    }

    fn path(&self, upstream: &str) -> String {
        blob_path(&format!("{upstream}/team/app"), &self.digest)
    }

    fn open(&self) -> std::io::Result<Incoming> {
        self.client.request("GET", &self.path("bad")).try_open()
    }

    /// The answer is an error of the protocol, or it is cut off before its end: never wrong content.
    fn assert_no_wrong_content(&self) {
        let mut incoming = self.open().expect("an answer");
        if incoming.status != 200 {
            let answer = incoming.finish().expect("a whole error");
            assert!(answer.status >= 400, "{}", answer.status);
            assert!(answer.json()["errors"][0]["code"].is_string(), "{}", answer.text());
            return;
        }
        let (_, end) = incoming.drain();
        assert!(end.is_err(), "content that is not right is cut off before its end");
    }

    /// Nothing wrong was kept, what was cached is still there, and the other upstream's way works.
    fn assert_unharmed(&mut self) {
        assert_served(&self.client, "bad/team/cached", "v1", &self.cached);
        assert!(self.client.get(&self.path("good")).expect(200).body == self.content);
        assert!(self.client.get(&self.path("good")).expect(200).body == self.content);
        self.outrider.restart();
        assert!(self.client.get(&self.path("good")).expect(200).body == self.content);
        assert_served(&self.client, "bad/team/cached", "v1", &self.cached);
    }
}

#[test]
fn wrong_bytes_are_cut_off_and_never_kept() {
    for (seed, at) in [(1, 0), (2, 3 * MIB - 1), (3, MIB)] {
        let mut scene = Scene::new(seed, 3 * MIB);
        scene.bad.always("GET", "/team/app/blobs/", &[Fault::Flip(at as u64)]);
        scene.assert_no_wrong_content();
        scene.assert_no_wrong_content();
        scene.assert_unharmed();
    }
}

#[test]
fn wrong_bytes_of_a_small_blob_are_an_error_and_not_an_answer() {
    // All of it is here before the first byte has to go out.
    let mut scene = Scene::new(4, 1000);
    scene.bad.always("GET", "/team/app/blobs/", &[Fault::Flip(5)]);
    scene.assert_no_wrong_content();
    scene.assert_unharmed();
}

#[test]
fn a_length_that_is_a_lie_is_noticed() {
    let size = 2 * MIB as u64;
    for (seed, said) in [(5, size + 1), (6, size - 1), (7, size / 2), (8, size * 100), (9, 0)] {
        let mut scene = Scene::new(seed, 2 * MIB);
        scene.bad.always("GET", "/team/app/blobs/", &[Fault::SayLength(said)]);
        scene.assert_no_wrong_content();
        scene.assert_unharmed();
    }
}

#[test]
fn an_enormous_length_reserves_nothing() {
    let mut scene = Scene::new(10, MIB);
    scene.bad.always("GET", "/team/app/blobs/", &[Fault::SayLength(u64::MAX)]);
    scene.assert_no_wrong_content();
    scene.bad.behave();
    scene.bad.always("GET", "/team/app/blobs/", &[Fault::SayLength(1 << 50)]);
    scene.assert_no_wrong_content();
    scene.assert_unharmed();
}

#[test]
fn a_body_that_is_cut_off_once_is_gone_on_with_by_range() {
    for (seed, cut) in [(11, Fault::Reset(MIB as u64)), (12, Fault::Close(5 * MIB as u64 / 2))] {
        let mut scene = Scene::new(seed, 6 * MIB);
        scene.bad.script(1, "GET", "/team/app/blobs/", &[cut]);
        let mut incoming = scene.open().expect("an answer");
        let (body, end) = incoming.drain();
        end.expect("the client does not notice");
        assert!(body == scene.content);
        let asked = scene.bad.seen_of("GET", "/team/app/blobs/");
        assert!(asked.len() >= 2 && asked[1..].iter().all(|seen| seen.header("range").is_some()));
        scene.assert_unharmed();
    }
}

#[test]
fn a_body_that_is_always_cut_off_is_cut_off_for_the_client_too() {
    let mut scene = Scene::new(13, 6 * MIB);
    scene.bad.always("GET", "/team/app/blobs/", &[Fault::Reset(100_000)]);
    scene.assert_no_wrong_content();
    scene.assert_unharmed();
}

#[test]
fn an_upstream_that_falls_silent_delays_nobody_else() {
    let mut scene = Scene::new(14, 6 * MIB);
    scene.bad.always("GET", "/team/app/blobs/", &[Fault::Stall(MIB as u64)]);
    let mut stalled = scene.open().expect("the head came");
    stalled.take(MIB / 2).expect("what came before the silence");
    // Served while the other one hangs.
    assert_served(&scene.client, "bad/team/cached", "v1", &scene.cached);
    let (rest, end) = stalled.drain();
    assert!(end.is_err(), "given up when the time limit of the upstream is over");
    assert!(scene.content[MIB / 2..].starts_with(&rest));
    scene.assert_unharmed();
}

#[test]
fn an_upstream_that_never_answers_is_an_error_in_bounded_time() {
    let mut scene = Scene::new(15, MIB);
    let gate = Gate::shut();
    scene.bad.always("", "/team/app/", &[Fault::HoldHead(gate.clone())]);
    let answer = scene.open().expect("an answer").finish().expect("an error");
    assert!(matches!(answer.status, 502..=504), "{}", answer.status);
    assert!(answer.header("retry-after").is_some() && !gate.is_open());
    assert_eq!(answer.json()["errors"][0]["code"], "UNAVAILABLE");
    scene.assert_unharmed();
    gate.open();
}

#[test]
fn an_upstream_that_is_not_there_is_an_error_and_then_left_alone() {
    let mut scene = Scene::new(16, MIB);
    scene.bad.stop();
    for _ in 0..20 {
        let answer = scene.open().expect("an answer").finish().expect("an error");
        assert!(matches!(answer.status, 502..=504), "{}", answer.status);
        assert!(answer.header("retry-after").is_some());
    }
    scene.assert_unharmed();
    scene.bad.resume();
    until("it is asked again", || scene.open().is_ok_and(|answer| answer.status == 200));
}

#[test]
fn statuses_and_pages_that_are_no_content_are_errors_of_the_protocol() {
    let html =
        Fault::Answer(503, vec![("Content-Type".into(), "text/html".into())], b"<p>".to_vec());
    let cases = [
        (17, Fault::status(500)),
        (18, Fault::status(502)),
        (19, Fault::too_many(1)),
        (20, Fault::status(403)),
        (21, Fault::status(401)),
        (22, Fault::login_page()),
        (23, html),
        (24, Fault::status(204)),
        (25, Fault::status(304)),
        (26, Fault::status(299)),
        (27, Fault::Header("Content-Encoding".into(), "gzip".into())),
    ];
    for (seed, fault) in cases {
        let mut scene = Scene::new(seed, MIB);
        scene.bad.always("GET", "/team/app/blobs/", std::slice::from_ref(&fault));
        let answer = scene.open().expect("an answer").finish().expect("a whole answer");
        assert!(answer.status >= 400, "{fault:?}: {}", answer.status);
        assert!(answer.json()["errors"][0]["code"].is_string(), "{fault:?}: {}", answer.text());
        scene.assert_unharmed();
    }
}

#[test]
fn manifests_that_are_lies_are_errors_and_not_kept() {
    let scene = Scene::new(28, MIB);
    let image = SmallImage::new(29, &[1000]);
    scene.bad.image("team/app", "v1", &image);
    let other = sha256(b"another manifest");
    let cases = [
        ("v1", vec![Fault::login_page()]),
        ("v1", vec![Fault::Header("Docker-Content-Digest".into(), other.clone())]),
        (
            "v1",
            vec![Fault::Answer(
                200,
                vec![("Content-Type".into(), image.media_type.clone())],
                vec![b'x'; 5 * MIB],
            )],
        ),
        ("v1", vec![Fault::SayLength(image.manifest.len() as u64 + 7)]),
        (&*image.digest(), vec![Fault::Flip(20)]),
        (&*image.digest(), vec![Fault::Close(10)]),
    ];
    for (reference, faults) in cases {
        scene.bad.behave();
        scene.bad.always("GET", "/team/app/manifests/", &faults);
        scene.bad.always("HEAD", "/team/app/manifests/", &[Fault::status(405)]);
        let request = manifest_request(&scene.client, "GET", "bad/team/app", reference);
        if let Ok(answer) = request.try_send() {
            assert!(answer.status >= 400, "{faults:?}: {}", answer.status);
            assert!(answer.json()["errors"][0]["code"].is_string(), "{faults:?}");
        }
        assert_served(&scene.client, "bad/team/cached", "v1", &scene.cached);
    }
    scene.bad.behave();
    until("the upstream is believed again", || {
        let request = manifest_request(&scene.client, "GET", "bad/team/app", "v1");
        request.try_send().is_ok_and(|answer| answer.status == 200 && answer.body == image.manifest)
    });
}

#[test]
fn a_redirect_to_itself_or_to_no_registry_is_an_error() {
    let targets = [
        "itself",
        "file:///etc/passwd",
        "gopher://127.0.0.1/",
        "http://",
        "http://user:password@127.0.0.1:1/",
        "\u{7f}",
    ];
    for (seed, target) in (30..).zip(targets) {
        let mut scene = Scene::new(seed, MIB);
        let itself = format!("{}/v2/team/app/blobs/{}", scene.bad.url(), scene.digest);
        let target = if target == "itself" { &itself } else { target };
        scene.bad.always("GET", "/team/app/blobs/", &[Fault::redirect(target)]);
        let answer = scene.open().expect("an answer").finish().expect("a whole answer");
        assert!(answer.status >= 500, "{target}: {}", answer.status);
        assert!(answer.json()["errors"][0]["code"].is_string());
        let asked = scene.bad.count("GET", "/team/app/blobs/");
        assert!(asked <= 20, "{target}: redirects are bounded, asked {asked} times");
        assert!(!scene.outrider.log().contains("user:password"));
        scene.assert_unharmed();
    }
}

/// Runs in a network namespace of its own, in which the upstream has a public address, so that loopback
/// is somewhere else for it.
const INNER: &str = "OUTRIDER_E2E_IN_NAMESPACE";
const PUBLIC: &str = "198.51.100.7";

#[test]
fn a_public_upstream_cannot_send_the_edge_to_a_private_or_loopback_address() {
    if std::env::var_os(INNER).is_none() {
        let me = std::env::current_exe().expect("a program knows where it is");
        let name = "a_public_upstream_cannot_send_the_edge_to_a_private_or_loopback_address";
        let script = format!(
            "ip link set lo up && ip addr add {PUBLIC}/32 dev lo && exec \"$0\" --exact {name} --nocapture"
        );
        let mut command = Command::new(tools::program("unshare"));
        command.args(["--net", "sh", "-c", &script]).arg(me).env(INNER, "1");
        run(command).ok();
        return;
    }
    // Whoever comes here was sent by the upstream.
    let trap = TcpListener::bind("127.0.0.1:0").expect("a port");
    let trap_port = trap.local_addr().expect("an address").port();
    let caught = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&caught);
    std::thread::spawn(move || {
        for _ in trap.incoming() {
            counter.fetch_add(1, Ordering::SeqCst);
        }
    });
    let upstream = FakeUpstream::start_on(PUBLIC);
    let content = bytes(36, 1000);
    let digest = upstream.blob(&content);
    let outrider =
        Outrider::start(Options::with_upstream(&upstream.url()).upstream_keys(IMPATIENT));
    let client = outrider.client();
    for host in ["127.0.0.1", "localhost", "[::1]", "2130706433", "0.0.0.0", "[::ffff:127.0.0.1]"] {
        upstream.behave();
        let target = format!("http://{host}:{trap_port}/v2/x/blobs/{digest}");
        upstream.always("GET", "/blobs/", &[Fault::redirect(&target)]);
        let answer = client.get(&blob_path("team/app", &digest));
        assert!(answer.status >= 400, "{target}: {}", answer.status);
    }
    // Nor may its token endpoint be there.
    upstream.behave();
    upstream.require_tokens(Some(&format!("http://127.0.0.1:{trap_port}/token")), None);
    let answer = client.get(&blob_path("team/token", &sha256(b"another blob")));
    assert!(answer.status >= 400, "{}", answer.status);
    assert_eq!(caught.load(Ordering::SeqCst), 0, "nobody was sent to the loopback address");
}

#[test]
fn a_token_endpoint_of_another_host_over_plain_http_is_not_asked() {
    let scene = Scene::new(37, MIB);
    let other = FakeUpstream::start();
    // localhost is another host than 127.0.0.1, by name.
    let realm = format!("http://localhost:{}/token", other.port());
    scene.bad.require_tokens(Some(&realm), None);
    let answer = scene.open().expect("an answer").finish().expect("an error");
    assert!(answer.status >= 400, "{}", answer.status);
    assert_eq!(other.seen().len(), 0);
}

#[test]
fn challenges_and_tokens_that_make_no_sense_are_errors() {
    let challenge = |text: &str| {
        Fault::Answer(401, vec![("WWW-Authenticate".into(), text.into())], b"{}".to_vec())
    };
    let long = format!("Bearer realm=\"{}\"", "x".repeat(20_000));
    for (seed, text) in [
        (38, "Bearer"),
        (39, "Bearer realm="),
        (40, "Bearer realm=\"\""),
        (41, "Bearer realm=\"not a url\",service=\"s\""),
        (42, "Negotiate abc"),
        (43, long.as_str()),
        (44, "Bearer realm=\"http://127.0.0.1:1/token"),
    ] {
        let mut scene = Scene::new(seed, 1000);
        scene.bad.always("GET", "/team/app/blobs/", &[challenge(text)]);
        let answer = scene.open().expect("an answer").finish().expect("an error");
        assert!(answer.status >= 400, "{text}: {}", answer.status);
        scene.assert_unharmed();
    }
    let answers: [&[u8]; 5] = [b"", b"no json", b"{}", b"{\"token\":7}", b"{\"token\":\"a\\nb\"}"];
    for (seed, body) in (45..).zip(answers) {
        let mut scene = Scene::new(seed, 1000);
        scene.bad.require_tokens(None, None);
        scene.bad.always("GET", "/token", &[Fault::Answer(200, Vec::new(), body.to_vec())]);
        let answer = scene.open().expect("an answer").finish().expect("an error");
        assert!(answer.status >= 400, "{}: {}", String::from_utf8_lossy(body), answer.status);
        scene.assert_unharmed();
    }
}

#[test]
fn a_wrong_content_range_is_not_believed() {
    let mut scene = Scene::new(50, 4 * MIB);
    for lie in
        ["bytes 0-99/4194304", "bytes 9-1/5", "bytes */4194304", "x", "bytes 1000000-1000099/7"]
    {
        scene.bad.behave();
        scene.bad.always("GET", "/team/app/blobs/", &[Fault::SayRange(lie.into())]);
        let ask = scene.client.request("GET", &scene.path("bad"));
        let mut incoming =
            ask.header("Range", "bytes=3000000-3000099").try_open().expect("an answer");
        let status = incoming.status;
        let (body, end) = incoming.drain();
        if status == 206 && end.is_ok() {
            assert!(body == scene.content[3_000_000..3_000_100], "{lie}");
        }
    }
    scene.assert_unharmed();
}
