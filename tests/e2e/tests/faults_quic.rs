//! Clients of QUIC that attack: others go on being answered, the attacker is shown the door with the code
//! that its doing has, and nothing of it stays behind.

#![allow(clippy::unwrap_used)]

use outrider_e2e::registry::*;
use outrider_e2e::*;
use outrider_hostile::{
    Attack, Attacker, Client as Quic, Closed, Settings, Target, packets, trusting,
};

const MIB: usize = 1 << 20;
const H3_STREAM_CREATION_ERROR: u64 = 0x103;
const H3_FRAME_UNEXPECTED: u64 = 0x105;
const H3_EXCESSIVE_LOAD: u64 = 0x107;
/// CONNECTION_REFUSED of QUIC.
const REFUSED: u64 = 0x2;

/// How long a connection lasts whose client is gone without a word.
const IDLE_TIME: &str = "25s";

/// A server that is attacked, and somebody who means well.
struct Scene {
    outrider: Outrider,
    content: Vec<u8>,
    path: String,
    _upstream: FakeUpstream,
}

impl Scene {
    /// With more keys for `[limits]` and for `[quic]`.
    fn new(limits: &str, quic: &str) -> Self {
        let upstream = FakeUpstream::start();
        let content = bytes(7, 3 * MIB);
        let path = blob_path("team/app", &upstream.blob(&content));
        // The last word of a client can be lost, since the packets of an attack crowd it out of the server's
        // socket: then its connection is there for the idle time, which is to end within what is waited for.
        let config = format!("[limits]\nidle_time = \"{IDLE_TIME}\"\n{limits}\n[quic]\n{quic}\n");
        let options = Options::with_upstream(&upstream.url()).shards(2).config(&config);
        let scene = Self { outrider: Outrider::start(options), content, path, _upstream: upstream };
        scene.is_served("before");
        scene
    }

    fn target(&self) -> Target {
        Target {
            server: ([127, 0, 0, 1], self.outrider.https_port()).into(),
            tls: trusting(&self.outrider.ca_pem()),
            path: self.path.clone(),
            readers: 100,
        }
    }

    fn attacker(&self, attack: Attack) -> Attacker {
        Attacker::new(attack, self.target()).unwrap()
    }

    fn connect(&self, settings: Settings) -> std::io::Result<Quic> {
        Quic::connect(self.target().server, &self.target().tls, settings)
    }

    /// A whole download over HTTP/3 on a connection of its own, and one over HTTP.
    fn is_served(&self, when: &str) {
        let got = http3_get(&self.outrider, &self.path);
        assert_eq!(got.as_ref().map(Vec::len), Ok(self.content.len()), "{when}");
        assert!(got.unwrap() == self.content, "{when}");
        assert!(self.outrider.client().get(&self.path).expect(200).body == self.content, "{when}");
    }

    fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        self.outrider.metrics().sum(&format!("outrider_transport_{name}"), labels)
    }

    fn closed(&self, reason: &str) -> f64 {
        let label = format!("reason=\"{reason}\"");
        if self.outrider.metrics().names().contains(&"outrider_transport_connections_closed_total")
        {
            self.metric("connections_closed_total", &[&label])
        } else {
            0.0
        }
    }

    /// No connection over QUIC is left, nor what any held, and every shard lives.
    fn nothing_is_left(mut self) {
        self.is_served("after");
        until("the connections over QUIC are gone", || {
            self.metric("connections_open", &["scheme=\"quic\""]) == 0.0
        });
        until("nothing is counted for them", || self.metric("quic_memory_bytes", &[]) == 0.0);
        until("nothing is pinned", || self.metric("pinned_bytes", &[]) == 0.0);
        let metrics = self.outrider.metrics();
        let shards = metrics.sum("outrider_shard_answers", &[]);
        assert_eq!(shards, 2.0, "every shard answers");
        self.outrider.admin().get("/healthz").expect(200);
        assert!(self.outrider.terminate().success(), "{}", self.outrider.log());
    }
}

/// Strikes until the server has ended `wanted` connections of the attacker and could tell it why, and somebody
/// is served between them; what it was told. A word that comes while the attacker's socket is full, or to an
/// address that it has left, is lost: all that it hears then is that nobody knows its connection.
fn until_closed(scene: &Scene, attack: Attack, wanted: u64) -> Vec<Closed> {
    let mut attacker = scene.attacker(attack);
    let mut served = 0;
    until("the attacker is shown the door", || {
        for _ in 0..500 {
            attacker.strike().unwrap();
        }
        attacker.closed.remove(&Closed::Lost("reset by peer".to_owned()));
        let told: u64 = attacker.closed.values().sum();
        if told > served {
            served = told;
            scene.is_served(attack.name());
        }
        told >= wanted
    });
    attacker.leave();
    attacker.closed.into_keys().collect()
}

fn code(closed: &[Closed]) -> Vec<u64> {
    let mut codes: Vec<u64> = closed
        .iter()
        .map(|closed| match closed {
            Closed::Http(code, _) => *code,
            other => panic!("{other}"),
        })
        .collect();
    codes.dedup();
    codes
}

#[test]
fn first_packets_without_end_leave_nothing_behind() {
    let scene = Scene::new("handshake_time = \"1s\"", "retry_above = 16");
    let mut garbage = scene.attacker(Attack::Garbage);
    let mut hellos = scene.attacker(Attack::Hellos);
    for _ in 0..20 {
        for _ in 0..500 {
            garbage.strike().unwrap();
            hellos.strike().unwrap();
        }
        scene.is_served("beside first packets");
    }
    assert!(scene.metric("quic_retries_total", &[]) > 0.0, "clients were asked for their address");
    let handshakes = scene.metric("connections_open", &["scheme=\"quic\""]);
    assert!(handshakes <= 3.0 * 2.0 * 16.0, "{handshakes} handshakes are kept");
    scene.nothing_is_left();
}

#[test]
fn handshakes_that_never_finish_are_bounded_and_given_up() {
    let scene = Scene::new("handshake_time = \"1s\"", "retry_above = 8");
    let mut attacker = scene.attacker(Attack::Handshakes);
    while attacker.connections < 2000 {
        for _ in 0..500 {
            attacker.strike().unwrap();
        }
        scene.is_served("beside half handshakes");
    }
    attacker.leave();
    drop(attacker);
    until("they are given up", || scene.closed("handshake_time") > 0.0);
    scene.nothing_is_left();
}

#[test]
fn rapid_resets_end_the_connection() {
    let scene = Scene::new("", "resets_per_second_max = 20");
    let closed = until_closed(&scene, Attack::Resets, 3);
    assert_eq!(code(&closed), [H3_EXCESSIVE_LOAD], "{closed:?}");
    assert!(scene.closed("resets") >= 3.0);
    scene.nothing_is_left();
}

#[test]
fn frames_that_are_of_no_use_end_the_connection() {
    let scene = Scene::new("", "");
    for attack in [Attack::UnknownFrames, Attack::ControlFrames, Attack::GoAways] {
        let closed = until_closed(&scene, attack, 3);
        assert_eq!(code(&closed), [H3_EXCESSIVE_LOAD], "{}: {closed:?}", attack.name());
    }
    scene.nothing_is_left();
}

#[test]
fn a_second_control_stream_and_second_settings_end_the_connection() {
    let scene = Scene::new("", "");
    let closed = until_closed(&scene, Attack::ControlTwice, 3);
    assert_eq!(code(&closed), [H3_STREAM_CREATION_ERROR], "{closed:?}");
    let closed = until_closed(&scene, Attack::SettingsTwice, 3);
    assert_eq!(code(&closed), [H3_FRAME_UNEXPECTED], "{closed:?}");
    scene.nothing_is_left();
}

#[test]
fn heads_without_end_are_refused_and_heads_never_whole_end_the_connection() {
    let scene = Scene::new("", "");
    let mut attacker = scene.attacker(Attack::EndlessHeads);
    let mut rounds = 0;
    until("kilobytes of heads were sent", || {
        (0..500).for_each(|_| attacker.strike().unwrap());
        rounds += 1;
        if rounds % 4 == 0 {
            scene.is_served("beside endless heads");
        }
        attacker.strikes > 5000
    });
    let held = scene.metric("quic_memory_bytes", &[]);
    assert!(held < MIB as f64, "{held} bytes are kept of heads that are refused");
    attacker.leave();
    let closed = until_closed(&scene, Attack::OpenHeads, 3);
    assert_eq!(code(&closed), [H3_EXCESSIVE_LOAD], "{closed:?}");
    scene.nothing_is_left();
}

#[test]
fn a_client_with_another_address_each_time_is_closed_and_one_that_moves_once_is_not() {
    let scene = Scene::new("", "");
    let mut mover = scene.connect(Settings::default()).unwrap();
    for closed in until_closed(&scene, Attack::Migrations, 3) {
        match closed {
            Closed::Http(code, reason) => {
                assert_eq!((code, reason.as_str()), (H3_EXCESSIVE_LOAD, "too many migrations"));
            }
            other => panic!("{other}"),
        }
    }
    assert!(scene.closed("migrations") >= 3.0);
    let before = scene.metric("quic_migrations_total", &[]);
    mover.rebind().unwrap();
    until("its new address is known", || {
        mover.ping();
        mover.turn();
        scene.metric("quic_migrations_total", &[]) > before
    });
    assert_eq!(mover.closed(), None);
    mover.close();
    scene.nothing_is_left();
}

#[test]
fn what_lies_behind_gaps_is_counted_and_bounded_for_all_connections_together() {
    // Eight connections for each shard, or four with what they may have sent.
    let scene = Scene::new("header_time = \"10m\"", "memory = \"4MiB\"");
    let bound = scene.metric("quic_memory_bytes_max", &[]);
    assert_eq!(bound, (4 * MIB) as f64);
    let mut attackers: Vec<_> = (0..16).map(|_| scene.attacker(Attack::Gaps)).collect();
    let mut most: f64 = 0.0;
    until("connections are closed for what they hold", || {
        for attacker in &mut attackers {
            (0..200).for_each(|_| attacker.strike().unwrap());
        }
        most = most.max(scene.metric("quic_memory_bytes", &[]));
        scene.closed("memory") >= 10.0
    });
    assert!(most > bound / 4.0, "what lies there is counted: {most}");
    assert!(most <= 2.0 * bound, "{most} bytes of {bound}");
    for closed in attackers.iter().flat_map(|attacker| attacker.closed.keys()) {
        match closed {
            Closed::Http(H3_EXCESSIVE_LOAD, reason) => assert_eq!(reason, "memory"),
            Closed::Quic(REFUSED) => {}
            // The word was lost on the way to a full socket.
            Closed::Lost(why) => assert_eq!(why, "reset by peer"),
            other => panic!("{other}"),
        }
    }
    attackers.iter_mut().for_each(Attacker::leave);
    until("there is room again", || http3_get(&scene.outrider, &scene.path).is_ok());
    scene.nothing_is_left();
}

#[test]
fn where_there_is_no_memory_connections_are_refused_and_requests_are_answered_503() {
    // Room for some twenty connections of each shard.
    let scene = Scene::new("", "memory = \"2MiB\"");
    let mut held = Vec::new();
    let mut refused = 0;
    while refused < 20 {
        match scene.connect(Settings::default()) {
            Ok(client) => held.push(client),
            Err(error) => {
                assert_eq!(error.to_string(), "QUIC 0x2");
                refused += 1;
            }
        }
        assert!(held.len() < 100, "nobody is refused");
    }
    assert!(held.len() >= 30, "{} connections have room", held.len());
    assert!(scene.closed("memory") >= 20.0);
    // Those that are there are told to come back, and go on when there is room.
    for client in &mut held {
        assert_eq!(client.get(&scene.path), Ok((503, Vec::new())));
    }
    let refused = scene.metric("quic_requests_refused_total", &[]);
    assert_eq!(refused, held.len() as f64);
    // Others go on over HTTPS and HTTP.
    assert!(scene.outrider.client().get(&scene.path).expect(200).body == scene.content);
    let mut last = held.pop().unwrap();
    held.iter_mut().for_each(Quic::close);
    until("there is room again", || http3_get(&scene.outrider, &scene.path).is_ok());
    until("the one that stayed is answered", || {
        last.get(&scene.path).unwrap() == (200, scene.content.clone())
    });
    last.close();
    scene.nothing_is_left();
}

#[test]
fn slow_readers_over_quic_stay_within_the_pins_and_a_fast_one_goes_on() {
    let upstream = FakeUpstream::start();
    let content = bytes(8, 32 * MIB);
    let path = blob_path("team/app", &upstream.blob(&content));
    let outrider = Outrider::start(Options::with_upstream(&upstream.url()).ram("128MiB"));
    assert!(outrider.client().get(&path).expect(200).body == content);
    let target = Target {
        server: ([127, 0, 0, 1], outrider.https_port()).into(),
        tls: trusting(&outrider.ca_pem()),
        path: path.clone(),
        readers: 1000,
    };
    let mut slow = Attacker::new(Attack::SlowReaders, target).unwrap();
    let mut pinned: f64 = 0.0;
    for _ in 0..5 {
        until("each has read a byte", || {
            (0..1000).for_each(|_| slow.strike().unwrap());
            let now = outrider.metrics().sum("outrider_transport_pinned_bytes", &[]);
            pinned = pinned.max(now);
            assert!(now <= (64 * MIB) as f64, "half of the arena at most, not {now}");
            slow.open() >= 900
        });
        assert!(http3_get(&outrider, &path).unwrap() == content);
        assert!(outrider.client().get(&path).expect(200).body == content);
    }
    assert!(pinned > (16 * MIB) as f64, "slow readers hold something: {pinned}");
    // They are closed, which is allowed, and come back, which is refused nowhere.
    for closed in slow.closed.keys() {
        let Closed::Http(code, reason) = closed else { panic!("{closed}") };
        assert_eq!((*code, reason.as_str()), (H3_EXCESSIVE_LOAD, "slow_reader"));
    }
    slow.leave();
    drop(slow);
    until("what they pinned is free again", || {
        outrider.metrics().sum("outrider_transport_pinned_bytes", &[]) < MIB as f64
    });
}

#[test]
fn first_packets_that_say_they_are_of_another_version_are_bounded_too() {
    let scene = Scene::new("", "");
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(scene.target().server).unwrap();
    let mut random = fastrand::Rng::with_seed(11);
    for _ in 0..20 {
        for _ in 0..500 {
            let mut datagram = packets::garbage(&mut random);
            datagram[1..5].copy_from_slice(&[0x1a, 0x2a, 0x3a, 0x4a]);
            let _ = socket.send(&datagram);
        }
        scene.is_served("beside other versions");
    }
    scene.nothing_is_left();
}

/// A GET over HTTP/3 by a client that nobody here has written.
fn http3_get(outrider: &Outrider, path: &str) -> Result<Vec<u8>, String> {
    use bytes::Buf as _;
    let tls = trusting(&outrider.ca_pem());
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
    let config = quinn::ClientConfig::new(std::sync::Arc::new(crypto));
    let address = ([127, 0, 0, 1], outrider.https_port()).into();
    let uri = format!("https://{}{path}", outrider.https_host());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    runtime.block_on(local.run_until(async {
        let wrong = |error: &dyn std::fmt::Display| error.to_string();
        let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        let connecting = endpoint.connect_with(config, address, "localhost");
        let quic = connecting.map_err(|e| wrong(&e))?.await.map_err(|e| wrong(&e))?;
        let ask = async {
            let connection = h3_quinn::Connection::new(quic.clone());
            let (mut driver, mut send) =
                h3::client::new(connection).await.map_err(|e| wrong(&e))?;
            tokio::task::spawn_local(async move {
                let _ = std::future::poll_fn(|cx| driver.poll_close(cx)).await;
            });
            let request = ::http::Request::get(uri).body(()).unwrap();
            let mut stream = send.send_request(request).await.map_err(|e| wrong(&e))?;
            stream.finish().await.map_err(|e| wrong(&e))?;
            let head = stream.recv_response().await.map_err(|e| wrong(&e))?;
            if head.status() != 200 {
                return Err(head.status().to_string());
            }
            let mut body = Vec::new();
            while let Some(mut data) = stream.recv_data().await.map_err(|e| wrong(&e))? {
                body.extend_from_slice(&data.copy_to_bytes(data.remaining()));
            }
            Ok(body)
        };
        let answer = ask.await;
        quic.close(0x100u32.into(), b"");
        endpoint.wait_idle().await;
        answer
    }))
}
