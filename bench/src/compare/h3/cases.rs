//! What is downloaded, and what Outrider must reach (issue "QUIC: HTTP/3 and native").

use crate::arguments::{Client, QuicCase, QuicServer};

/// What counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// Bytes of bodies for each second of server CPU; more is better.
    Bytes,
    /// Answers for each second of server CPU; more is better.
    Answers,
    /// The median latency; less is better.
    Latency,
}

/// One case.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Which one.
    pub kind: QuicCase,
    /// Its name in tables.
    pub name: &'static str,
    /// Length of the body.
    pub bytes: usize,
    /// Connections.
    pub connections: u32,
    /// Requests at a time on each.
    pub streams: u32,
    /// What sends them.
    pub client: Client,
    /// What counts.
    pub measure: Measure,
    /// Who serves it, with ordinary frames.
    pub servers: &'static [QuicServer],
    /// Who serves it with jumbo frames too.
    pub jumbo: &'static [QuicServer],
    /// What Outrider over h3-quinn must be: at least, or with [`Measure::Latency`] at most; with jumbo
    /// frames Outrider over itself without.
    pub bar: f64,
}

const FRAMES: [QuicServer; 3] = [QuicServer::Outrider, QuicServer::H3Quinn, QuicServer::Limit];

/// All of them.
pub const CASES: [Case; 6] = [
    Case {
        kind: QuicCase::Small,
        name: "4 KiB, 64 at a time",
        bytes: 4 << 10,
        connections: 4,
        streams: 16,
        client: Client::Lean,
        measure: Measure::Answers,
        servers: &QuicServer::ALL,
        jumbo: &[],
        bar: 1.9,
    },
    Case {
        kind: QuicCase::Medium,
        name: "1 MiB, 16 at a time",
        bytes: 1 << 20,
        connections: 4,
        streams: 4,
        client: Client::Lean,
        measure: Measure::Bytes,
        servers: &QuicServer::ALL,
        jumbo: &[],
        bar: 1.5,
    },
    Case {
        kind: QuicCase::Large,
        name: "64 MiB, 4 at a time",
        bytes: 64 << 20,
        connections: 4,
        streams: 1,
        client: Client::Lean,
        measure: Measure::Bytes,
        servers: &QuicServer::ALL,
        jumbo: &[],
        bar: 1.3,
    },
    Case {
        kind: QuicCase::LargeH3,
        name: "64 MiB, h3 client",
        bytes: 64 << 20,
        connections: 4,
        streams: 1,
        client: Client::H3,
        measure: Measure::Bytes,
        servers: &QuicServer::ALL,
        jumbo: &[],
        bar: 1.6,
    },
    Case {
        kind: QuicCase::Jumbo,
        name: "64 MiB, jumbo frames",
        bytes: 64 << 20,
        connections: 4,
        streams: 1,
        client: Client::Lean,
        measure: Measure::Bytes,
        servers: &FRAMES,
        jumbo: &FRAMES,
        bar: 1.5,
    },
    Case {
        kind: QuicCase::Single,
        name: "4 KiB, one at a time",
        bytes: 4 << 10,
        connections: 1,
        streams: 1,
        client: Client::Lean,
        measure: Measure::Latency,
        servers: &QuicServer::ALL,
        jumbo: &[],
        bar: 0.55,
    },
];
