//! The connections of an endpoint in memory, driven by a seed, with a client of the native protocol: packets are
//! lost, doubled and come out of order, handlers wait and fail, clients give up, the server goes away.
//!
//! What must hold whatever happens: what an answer says is right, byte by byte; nothing hangs; when all is over,
//! no body, no handler and no pin is kept.

mod client;
#[allow(dead_code)]
#[path = "../../../../http3/tests/simulation/network.rs"]
mod network;
mod store;

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use outrider_http3::HeadMemo;
use outrider_shard::testing::detached_handle;

use self::client::Client;
use self::network::{CLIENT, Conditions, Network};
use self::store::Store;
use super::cid::ForRetry;
use super::config::{QuicServer, QuicSettings};
use super::connection::Shared;
use super::core::{Core, Route};
use super::memory::Memory;
use super::socket::Received;
use super::wake::Wakes;
use crate::{Drain, Limits, PinBudget, TransportMetrics};

/// Simulated time after which a run hangs.
const OVER_S_MAX: u64 = 300;

/// What has happened in a run, to see that what is to be tested does happen.
#[derive(Clone, Debug, Default, PartialEq)]
struct Tally {
    whole: u64,
    partial: u64,
    metadata: u64,
    errors: u64,
    open: u64,
    immediate: u64,
    refused: u64,
    cancelled: u64,
    broken: u64,
    rejected: u64,
    lost: u64,
    body_bytes: u64,
    /// When all was over, in microseconds.
    over_us: u64,
}

struct Server {
    core: Core<Store>,
    store: Rc<Store>,
    pins: PinBudget,
    drain: Drain,
    metrics: TransportMetrics,
    /// Requests after which it goes away.
    goes_away_after: u64,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut registry = prometheus_client::registry::Registry::default();
        self.metrics.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry)?;
        let lines = text.lines().filter(|line| !line.starts_with('#') && !line.ends_with(" 0"));
        let lines: Vec<&str> = lines.collect();
        let (open, alive) = (self.drain.connections(), self.store.alive());
        write!(f, "server: {open} connections, {alive} alive, {lines:#?}")
    }
}

impl Server {
    fn new(seed: u64, now: Instant) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let limits = Limits { streams_max: 8, ..Limits::default() };
        let settings = QuicSettings { early_data: false, ..QuicSettings::default() };
        let server = QuicServer::new(&network::server_tls(), settings, limits).unwrap();
        let pins = PinBudget::new(8 << 20, PinBudget::CONNECTION_BYTES_MAX);
        let metrics = TransportMetrics::default();
        let (accepted, open) = metrics.of_quic();
        let store = Rc::new(Store::new(random.u64(..), now));
        let mut bytes = [0; 32];
        random.fill(&mut bytes);
        let for_retry = ForRetry::default();
        let (config, crypto) = (server.endpoint(0, &for_retry), server.server.clone());
        let proto = quinn_proto::Endpoint::new(config, Some(crypto), true, Some(bytes));
        let shared = Rc::new(Shared {
            handler: store.clone(),
            limits: server.limits.clone(),
            settings: server.settings.clone(),
            pins: pins.clone(),
            metrics: metrics.clone(),
            open,
            wakes: Wakes::new(detached_handle()),
            memory: Rc::new(Memory::new(1 << 30)),
            handshaking: Cell::new(0),
            upload_bytes: Cell::new(0),
            heads: HeadMemo::new(1),
            member_of: None,
        });
        let drain = Drain::new();
        let route = Route { shard: 0, key: server.cid_key().clone(), for_retry, forward: None };
        let core = Core::new(route, proto, shared, drain.clone(), accepted);
        let goes_away_after = if random.u32(..3) == 0 { random.u64(5..30) } else { u64::MAX };
        Self { core, store, pins, drain, metrics, goes_away_after }
    }

    fn receive(&mut self, now: Instant, datagram: &[u8]) {
        let received = Received { remote: CLIENT, local_ip: None, ecn: None, bytes: datagram };
        self.core.take(now, &received);
    }

    /// Does what there is to do now; gives whether there was anything.
    fn drive(&mut self, network: &mut Network) -> bool {
        let now = network.now();
        if !self.drain.is_started()
            && self.metrics.requests_of(crate::Protocol::Native).get() >= self.goes_away_after
        {
            self.drain.start();
        }
        let mut busy = self.store.turn(now) | self.core.fire_timeouts(now);
        busy |= self.core.meet_strangers(now);
        busy |= self.core.has_work();
        self.core.take_wakes(now);
        let mut contents = Vec::new();
        while let Some(transmit) = self.core.next(now, |_| 10, &mut contents) {
            busy = true;
            let size = transmit.segment_size.unwrap_or(transmit.size);
            for packet in contents[..transmit.size].chunks(size) {
                network.send(packet, false);
            }
            contents.clear();
        }
        busy
    }

    fn check_nothing_is_left(&self, seed: u64) {
        assert_eq!(self.pins.pinned_bytes(), 0, "seed {seed}: something is pinned");
        assert_eq!(self.store.alive(), 0, "seed {seed}: a handler or a body is kept");
    }
}

fn run(seed: u64, conditions: Conditions) -> Tally {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut network = Network::new(random.u64(..), conditions);
    let mut server = Server::new(random.u64(..), network.now());
    let mut client = Client::new(random.u64(..), network.now());
    let mut is_closing = false;
    loop {
        // Both sides until neither has anything to do at this time.
        while client.drive(&mut network) | server.drive(&mut network) {}
        assert!(
            network.elapsed() < Duration::from_secs(OVER_S_MAX),
            "seed {seed}: it hangs\n{client:?}\n{server:?}"
        );
        // Acknowledgements and what was resent have time to come in.
        let rests = network.rests_at(Duration::from_secs(5));
        let rests = (client.is_over() && !is_closing).then_some(rests);
        if rests.is_some_and(|time| network.now() >= time) {
            server.check_nothing_is_left(seed);
            client.close(network.now());
            is_closing = true;
            continue;
        }
        if is_closing && client.is_drained() && server.drain.connections() == 0 {
            break;
        }
        let next =
            [network.next(), client.next(), server.core.deadline(), server.store.next(), rests];
        let Some(next) = next.into_iter().flatten().min() else {
            panic!("seed {seed}: nobody waits for anything\n{client:?}\n{server:?}");
        };
        network.wait_until(next);
        for (datagram, to_server) in network.arrived() {
            if to_server {
                server.receive(network.now(), &datagram);
            } else {
                client.receive(&network, BytesMut::from(&datagram[..]));
            }
        }
    }
    server.check_nothing_is_left(seed);
    let mut tally = client.tally.clone();
    tally.immediate = server.metrics.quic.immediate_answers.get();
    tally.lost = network.lost;
    tally.over_us = network.elapsed().as_micros() as u64;
    tally
}

/// More of them can be asked for: `SIMULATION_SEEDS=5000 cargo test -p outrider-transport --lib simulation`.
fn all(first: u64, count: u64, conditions: Conditions) -> Tally {
    let asked = std::env::var("SIMULATION_SEEDS").ok().and_then(|text| text.parse().ok());
    let mut sum = Tally::default();
    for seed in first..first + asked.unwrap_or(count) {
        let one = run(seed, conditions);
        for (sum, one) in [
            (&mut sum.whole, one.whole),
            (&mut sum.partial, one.partial),
            (&mut sum.metadata, one.metadata),
            (&mut sum.errors, one.errors),
            (&mut sum.open, one.open),
            (&mut sum.immediate, one.immediate),
            (&mut sum.refused, one.refused),
            (&mut sum.cancelled, one.cancelled),
            (&mut sum.broken, one.broken),
            (&mut sum.rejected, one.rejected),
            (&mut sum.lost, one.lost),
            (&mut sum.body_bytes, one.body_bytes),
        ] {
            *sum += one;
        }
    }
    sum
}

fn happened(tally: &Tally) -> [u64; 9] {
    [
        tally.whole,
        tally.partial,
        tally.metadata,
        tally.errors,
        tally.open,
        tally.immediate,
        tally.refused,
        tally.cancelled,
        tally.broken,
    ]
}

#[test]
fn on_a_quiet_network_every_answer_is_right() {
    let tally = all(0, 30, Conditions { loss: 0, doubled: 0, delay_us: 200, jitter_us: 0 });
    assert_eq!(tally.lost, 0);
    assert!(happened(&tally).iter().all(|count| *count > 10), "{tally:?}");
}

#[test]
fn under_loss_and_reordering_every_answer_is_right_and_nothing_leaks() {
    let conditions = Conditions { loss: 50, doubled: 30, delay_us: 20_000, jitter_us: 15_000 };
    let tally = all(1_000_000, 50, conditions);
    assert!(happened(&tally).iter().all(|count| *count > 10), "{tally:?}");
    assert!(tally.lost > 100 && tally.rejected > 0, "{tally:?}");
}

#[test]
fn a_very_bad_network_only_takes_longer() {
    let conditions = Conditions { loss: 150, doubled: 100, delay_us: 80_000, jitter_us: 80_000 };
    let tally = all(2_000_000, 12, conditions);
    assert!(tally.whole > 10 && tally.lost > 100, "{tally:?}");
}

#[test]
fn the_same_seed_decides_alike() {
    let conditions = Conditions { loss: 50, doubled: 30, delay_us: 20_000, jitter_us: 15_000 };
    assert_eq!(run(5, conditions), run(5, conditions));
}
