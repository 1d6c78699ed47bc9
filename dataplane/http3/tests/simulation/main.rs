//! Both halves of HTTP/3 on a QUIC connection in memory, driven by a seed: packets are lost, doubled and come out of
//! order, clients give up, servers break off and go away, and time is simulated.
//!
//! What must hold whatever happens: an answer that ends is the right one, byte by byte; nothing hangs; when
//! all is over, no stream, no part of a head and no body is kept by anyone.

#![allow(clippy::unwrap_used)]

mod client;
mod network;
mod server;

use std::time::Duration;

use client::Client;
use network::{Conditions, Network};
use server::Server;

/// What has happened in a run, to see that what is to be tested does happen.
#[derive(Clone, Debug, Default, PartialEq)]
struct Tally {
    whole: u64,
    partial: u64,
    uploads: u64,
    refused: u64,
    cancelled: u64,
    broken: u64,
    rejected: u64,
    lost: u64,
    doubled: u64,
    body_bytes: u64,
    /// When all was over, in microseconds.
    over_us: u64,
}

/// Objects are what their number says: length and bytes.
fn object(number: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(number);
    let len = match number % 4 {
        0 => random.usize(0..200),
        1 => random.usize(200..5_000),
        2 => random.usize(5_000..60_000),
        _ => random.usize(60_000..400_000),
    };
    let mut bytes = vec![0; len];
    random.fill(&mut bytes);
    bytes
}

/// Simulated time after which a run hangs.
const OVER_S_MAX: u64 = 300;

fn run(seed: u64, conditions: Conditions) -> Tally {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut network = Network::new(random.u64(..), conditions);
    let mut server = Server::new(random.u64(..));
    let mut client = Client::new(random.u64(..), network.now());
    let mut is_closing = false;
    loop {
        // Both sides until neither has anything to do at this time.
        loop {
            let mut busy = client.drive(&mut network);
            busy |= server.drive(&mut network);
            if !busy {
                break;
            }
        }
        let elapsed = network.elapsed();
        assert!(
            elapsed < Duration::from_secs(OVER_S_MAX),
            "seed {seed}: it hangs\n{client:?}\n{server:?}"
        );
        // Acknowledgements and what was resent have time to come in.
        let rest = Duration::from_secs(5);
        let rests = (client.is_over() && !is_closing).then(|| network.rests_at(rest));
        if let Some(time) = rests {
            if network.now() >= time {
                server.check_nothing_is_left(seed);
                client.check_nothing_is_left(seed);
                client.close(&network);
                is_closing = true;
                continue;
            }
        } else if is_closing && client.is_drained() && server.is_drained() {
            break;
        }
        let next = [network.next(), client.next(), server.next(), rests];
        let next = next.into_iter().flatten().min();
        let Some(next) = next else {
            assert!(
                client.is_over(),
                "seed {seed}: nobody waits for anything\n{client:?}\n{server:?}"
            );
            network.wait_until(network.now() + Duration::from_secs(1));
            continue;
        };
        network.wait_until(next);
        for (datagram, to_server) in network.arrived() {
            if to_server {
                server.receive(&network, datagram);
            } else {
                client.receive(&network, datagram);
            }
        }
    }
    assert_eq!(server.bodies_alive(), 0, "seed {seed}: a body is still kept");
    let mut tally = client.tally.clone();
    (tally.lost, tally.doubled) = (network.lost, network.doubled);
    tally.over_us = network.elapsed().as_micros() as u64;
    tally
}

/// More of them can be asked for: `SIMULATION_SEEDS=5000 cargo test -p outrider-http3 --test simulation`.
fn seeds(first: u64, count: u64) -> std::ops::Range<u64> {
    let asked = std::env::var("SIMULATION_SEEDS").ok().and_then(|text| text.parse().ok());
    first..first + asked.unwrap_or(count)
}

fn all(first: u64, count: u64, conditions: Conditions) -> Tally {
    let mut sum = Tally::default();
    for seed in seeds(first, count) {
        let one = run(seed, conditions);
        for (sum, one) in [
            (&mut sum.whole, one.whole),
            (&mut sum.partial, one.partial),
            (&mut sum.uploads, one.uploads),
            (&mut sum.refused, one.refused),
            (&mut sum.cancelled, one.cancelled),
            (&mut sum.broken, one.broken),
            (&mut sum.rejected, one.rejected),
            (&mut sum.lost, one.lost),
            (&mut sum.doubled, one.doubled),
            (&mut sum.body_bytes, one.body_bytes),
        ] {
            *sum += one;
        }
    }
    sum
}

#[test]
fn on_a_quiet_network_every_answer_is_right() {
    let tally = all(0, 40, Conditions { loss: 0, doubled: 0, delay_us: 200, jitter_us: 0 });
    assert_eq!((tally.lost, tally.doubled), (0, 0));
    let happened = [tally.whole, tally.partial, tally.uploads, tally.refused, tally.cancelled];
    assert!(happened.iter().all(|count| *count > 10), "{tally:?}");
}

#[test]
fn under_loss_and_reordering_every_answer_is_right_and_nothing_leaks() {
    let conditions = Conditions { loss: 50, doubled: 30, delay_us: 20_000, jitter_us: 15_000 };
    let tally = all(1_000_000, 60, conditions);
    let happened = [
        tally.whole,
        tally.partial,
        tally.uploads,
        tally.refused,
        tally.cancelled,
        tally.broken,
        tally.rejected,
        tally.lost,
        tally.doubled,
    ];
    assert!(happened.iter().all(|count| *count > 10), "{tally:?}");
}

#[test]
fn a_very_bad_network_only_takes_longer() {
    let conditions = Conditions { loss: 150, doubled: 100, delay_us: 80_000, jitter_us: 80_000 };
    let tally = all(2_000_000, 15, conditions);
    assert!(tally.whole > 10 && tally.lost > 100, "{tally:?}");
}

#[test]
fn the_same_seed_decides_alike() {
    let conditions = Conditions { loss: 50, doubled: 30, delay_us: 20_000, jitter_us: 15_000 };
    assert_eq!(run(5, conditions), run(5, conditions));
}
