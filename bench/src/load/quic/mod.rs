//! The lean client of QUIC: quinn-proto and an own HTTP/3, all connections of a thread on one socket.
//!
//! It owns the socket and one turn: receive, timers, connections that have something to do, send.
//! Bodies are counted (and hashed, if asked for) where they were decrypted, and dropped. So that one
//! core of it can saturate one core of a server.
//!
//! - [`udp`]: the socket. [`connection`]: one connection and its requests. [`answer`]: one of those.
//! - [`native`]: the same requests and answers in Outrider's own protocol.

pub mod answer;
pub mod connection;
pub mod native;
pub mod udp;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn_proto::crypto::rustls::QuicClientConfig;
use quinn_proto::{
    ClientConfig, DatagramEvent, Endpoint, EndpointConfig, MtuDiscoveryConfig, TransportConfig,
};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fs::Timespec;
use rustix::io::Errno;

use super::source::Source;
use super::tally::{Failure, FailureKind, Tally};
use super::wait::wait;
use super::window::{Phase, Window};
use super::worker::Worker;
use crate::BenchError;
use crate::arguments::Protocol;
use connection::{Connection, Next, State};
use udp::Udp;

/// What a server may send on one stream before it hears back.
const STREAM_WINDOW_BYTES: u32 = 16 << 20;
/// What it may send on one connection: with a few of them, less than the socket's buffer holds.
const CONNECTION_WINDOW_BYTES: u64 = 3 << 19;
/// Batches received in one turn.
const RECEIVE_TURNS_MAX: u32 = 4;
/// How often time limits are looked at.
const HOUSEKEEPING: Duration = Duration::from_millis(100);
/// Open loop: closer to the next request than this, the client does not sleep.
const SPIN: Duration = Duration::from_micros(60);
/// Handshakes under way: more at once would overrun the server's socket and measure its Retry.
const HANDSHAKES_MAX: usize = 64;
/// How long a connection that failed waits for the next attempt, doubled each time.
const RETRY_FIRST: Duration = Duration::from_millis(10);
/// The longest such wait.
const RETRY_LAST: Duration = Duration::from_secs(1);
/// The largest UDP payload of loopback.
const UDP_PAYLOAD_MAX: u16 = 65_527;
/// The largest UDP payload that is received unless jumbo frames are asked for.
const UDP_PAYLOAD_DEFAULT: u16 = 1472;

/// How QUIC is spoken.
#[derive(Clone, Copy, Debug, Default)]
pub struct QuicOptions {
    /// The largest UDP payload that may come; 1,472 unless given.
    pub mtu: Option<u16>,
    /// What a server may send on one connection before it hears back; 1.5 MiB unless given.
    pub window_bytes: Option<u64>,
    /// A connection is closed after so many answers, and another opened.
    pub requests_per_connection: Option<u64>,
    /// It is not closed then, but kept and not used any more.
    pub hold: bool,
}

/// What the connections of a thread share.
#[derive(Debug)]
pub struct Load {
    /// What the thread is to do.
    pub worker: Worker,
    /// The request of each target.
    pub requests: Vec<Bytes>,
    /// What of it counts.
    pub window: Window,
    /// What was counted.
    pub tally: Tally,
    /// Open loop: a connection for each stream that is free.
    pub idle: Vec<usize>,
}

/// The socket and what finds a connection for a datagram.
#[derive(Debug)]
pub struct Net {
    udp: Udp,
    endpoint: Endpoint,
    config: ClientConfig,
    /// The connection of each of quinn-proto's handles.
    by_handle: Vec<Option<usize>>,
    /// Where datagrams are made.
    scratch: Vec<u8>,
}

struct Engine {
    load: Load,
    net: Net,
    connections: Vec<Connection>,
    dirty: VecDeque<usize>,
    timers: BinaryHeap<Reverse<(Instant, usize)>>,
    /// Connections that are not there, by when they are to be opened.
    closed: BinaryHeap<Reverse<(Instant, usize)>>,
    handshaking: usize,
    epoll: OwnedFd,
    next_housekeeping: Instant,
}

/// Runs one thread's part of a load to its end.
///
/// # Errors
/// When there is no socket or no epoll. What happens to requests is counted and not an error.
pub fn run(worker: Worker) -> Result<Tally, BenchError> {
    let Source::RoundRobin(source) = &worker.source else {
        return Err(BenchError::Argument("ranges at random are for HTTP/1.1 only".to_owned()));
    };
    let requests = source
        .paths()
        .iter()
        .map(|path| match worker.protocol {
            Protocol::Native => native::request(path),
            _ => Ok(answer::request(&worker.server, path, &worker.headers)),
        })
        .collect::<Result<_, _>>()?;
    let net = Net::new(&worker)?;
    let epoll = epoll::create(CreateFlags::CLOEXEC)
        .and_then(|epoll| {
            epoll::add(&epoll, &net.udp, EventData::new_u64(0), EventFlags::IN)?;
            Ok(epoll)
        })
        .map_err(|errno| BenchError::io("creating an epoll")(errno.into()))?;
    // Without this the kernel adds up to 50 µs to each sleep, which an open loop would measure.
    let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
    let now = Instant::now();
    let count = worker.connections as usize;
    let window = Window::new(worker.clock, worker.requests, worker.connections);
    let load = Load { worker, requests, window, tally: Tally::default(), idle: Vec::new() };
    let mut engine = Engine {
        load,
        net,
        connections: (0..count).map(|_| Connection::new(now)).collect(),
        dirty: VecDeque::new(),
        timers: BinaryHeap::new(),
        closed: (0..count).map(|index| Reverse((now, index))).collect(),
        handshaking: 0,
        epoll,
        next_housekeeping: now,
    };
    engine.run();
    Ok(engine.load.tally)
}

impl Net {
    fn new(worker: &Worker) -> Result<Self, BenchError> {
        let tls = worker.tls.as_ref().ok_or_else(|| {
            BenchError::Argument(
                "QUIC is always encrypted: the URL starts with https://".to_owned(),
            )
        })?;
        let crypto = QuicClientConfig::try_from(rustls::ClientConfig::clone(tls))
            .map_err(|error| BenchError::Tls(error.to_string()))?;
        let options = worker.quic;
        let mut transport = TransportConfig::default();
        transport.stream_receive_window(STREAM_WINDOW_BYTES.into());
        let window = options.window_bytes.unwrap_or(CONNECTION_WINDOW_BYTES);
        let window = window.try_into().map_err(|_| {
            BenchError::Argument(format!("a connection's window is less than 2^62, not {window}"))
        })?;
        transport.receive_window(window);
        if options.hold {
            transport.max_idle_timeout(None);
        }
        // What comes is bounded by the endpoint; requests are short, so nothing larger is tried.
        transport.mtu_discovery_config(Some(MtuDiscoveryConfig::default()));
        let mut config = ClientConfig::new(Arc::new(crypto));
        config.transport_config(Arc::new(transport));
        let mut endpoint = EndpointConfig::default();
        let payload = if options.mtu.is_some() { UDP_PAYLOAD_MAX } else { UDP_PAYLOAD_DEFAULT };
        endpoint
            .max_udp_payload_size(payload)
            .map_err(|error| BenchError::Argument(error.to_string()))?;
        let buffer = worker.reading.receive_buffer_bytes.unwrap_or(udp::RECEIVE_BUFFER_BYTES);
        Ok(Self {
            udp: Udp::new(worker.server.address, buffer)?,
            endpoint: Endpoint::new(Arc::new(endpoint), None, true, None),
            config,
            by_handle: Vec::new(),
            scratch: Vec::new(),
        })
    }
}

impl Engine {
    fn run(&mut self) {
        loop {
            let now = Instant::now();
            if self.load.window.turn(now, &mut self.load.tally) == Phase::Over {
                break;
            }
            if self.load.window.draining() && !self.drains(now) {
                break;
            }
            self.housekeeping(now);
            self.net.udp.flush();
            let received = self.receive();
            self.wake_timers(Instant::now());
            self.send_due();
            let moved = self.drive();
            if received || moved {
                continue;
            }
            if let Err(errno) = self.sleep() {
                let text = format!("epoll: {errno}");
                self.load.tally.fail(Failure::new(FailureKind::Connect, text));
                break;
            }
        }
        self.leave();
    }

    /// Open loop, after the end: whether there is still something to wait for.
    fn drains(&self, now: Instant) -> bool {
        let Load { worker, window, .. } = &self.load;
        let Some(schedule) = &worker.schedule else { return false };
        let waiting = self.connections.iter().any(Connection::waits);
        (waiting || schedule.next_due_ns().is_some()) && now < window.ended_at() + worker.timeout
    }

    /// Counts what an open loop leaves behind, and tells the server that nobody is there any more.
    fn leave(&mut self) {
        let now = Instant::now();
        let Load { worker, window, tally, .. } = &mut self.load;
        if let Some(schedule) = &mut worker.schedule {
            let (now_ns, begin_ns) = (window.ns(now), window.begin_ns());
            let waiting = self.connections.iter().flat_map(Connection::due_ns);
            let unsent = std::iter::from_fn(|| schedule.take(now_ns));
            for due_ns in waiting.chain(unsent).filter(|due_ns| *due_ns >= begin_ns) {
                tally.unanswered += 1;
                tally.latency.record_ns(now_ns - due_ns);
            }
        }
        for connection in &mut self.connections {
            connection.close(&mut self.net);
        }
    }

    fn housekeeping(&mut self, now: Instant) {
        while let Some(&Reverse((retry_at, index))) = self.closed.peek()
            && retry_at <= now
            && self.handshaking < HANDSHAKES_MAX
        {
            self.closed.pop();
            self.open(index, now);
        }
        if now < self.next_housekeeping {
            return;
        }
        self.next_housekeeping = now + HOUSEKEEPING;
        let timeout = self.load.worker.timeout;
        for index in 0..self.connections.len() {
            if let Some(waits) = self.connections[index].overdue(now, timeout) {
                let text = format!("waited {timeout:?} {waits}");
                self.fail(index, Failure::new(FailureKind::Timeout, text));
            }
        }
    }

    fn open(&mut self, index: usize, now: Instant) {
        self.handshaking += 1;
        match self.connections[index].open(index, now, &mut self.net, &mut self.load) {
            Ok(()) => self.mark(index),
            Err(failure) => self.fail(index, failure),
        }
    }

    fn mark(&mut self, index: usize) {
        if self.connections[index].mark() {
            self.dirty.push_back(index);
        }
    }

    fn receive(&mut self) -> bool {
        let mut any = false;
        for _ in 0..RECEIVE_TURNS_MAX {
            let now = Instant::now();
            let Self { net, connections, dirty, .. } = self;
            let Net { udp, endpoint, by_handle, scratch, .. } = net;
            let mut response = None;
            let count = udp.receive(|from, to, ecn, datagram| {
                scratch.clear();
                match endpoint.handle(now, from, to, ecn, datagram, scratch) {
                    Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                        let Some(Some(index)) = by_handle.get(handle.0).copied() else { return };
                        if connections[index].handle_event(event) {
                            dirty.push_back(index);
                        }
                    }
                    Some(DatagramEvent::Response(transmit)) => {
                        response = Some((transmit, scratch.clone()));
                    }
                    Some(DatagramEvent::NewConnection(incoming)) => endpoint.ignore(incoming),
                    None => {}
                }
            });
            if let Some((transmit, contents)) = response.filter(|_| !udp.blocked()) {
                udp.send(transmit, &contents);
            }
            any |= count > 0;
            if count == 0 {
                break;
            }
        }
        any
    }

    fn wake_timers(&mut self, now: Instant) {
        while let Some(&Reverse((at, index))) = self.timers.peek() {
            if at > now {
                return;
            }
            self.timers.pop();
            if self.connections[index].timer_fired(at) {
                self.mark(index);
            }
        }
    }

    /// Open loop: sends what is due, as long as a stream is free.
    fn send_due(&mut self) {
        while let Some(index) = self.load.idle.last().copied() {
            let now = Instant::now();
            let Load { worker, window, tally, idle, .. } = &mut self.load;
            let now_ns = window.ns(now);
            let Some(schedule) = &mut worker.schedule else { return };
            let Some(due_ns) = schedule.take(now_ns) else { return };
            idle.pop();
            if due_ns >= window.begin_ns() {
                tally.send_lag.record_ns(now_ns - due_ns);
            }
            if let Err(failure) = self.connections[index].ask(now, due_ns, &mut self.load) {
                self.fail(index, failure);
            }
            self.mark(index);
        }
    }

    /// Lets every connection that has something to do do it. False when nothing was sent.
    fn drive(&mut self) -> bool {
        let mut sent = false;
        for _ in 0..self.dirty.len() {
            if self.net.udp.blocked() {
                break;
            }
            let Some(index) = self.dirty.pop_front() else { break };
            let now = Instant::now();
            let connection = &mut self.connections[index];
            let handshaking = connection.state() == State::Handshaking;
            let next = connection.drive(index, now, &mut self.net, &mut self.load);
            if handshaking && connection.state() == State::Open {
                self.handshaking -= 1;
            }
            match next {
                Next::Wait { sent: any, timer } => {
                    sent |= any;
                    if let Some(at) = timer {
                        self.timers.push(Reverse((at, index)));
                    }
                }
                Next::Again => {
                    sent = true;
                    self.mark(index);
                }
                Next::Close => self.close(index, now),
                Next::Fail(failure) => self.fail(index, failure),
            }
        }
        sent
    }

    fn fail(&mut self, index: usize, failure: Failure) {
        self.load.tally.fail(failure);
        self.load.window.completed(false);
        let failures = self.connections[index].count_failure();
        let pause = RETRY_FIRST.saturating_mul(1 << (failures.min(16) - 1)).min(RETRY_LAST);
        self.close(index, Instant::now() + pause);
    }

    fn close(&mut self, index: usize, retry_at: Instant) {
        let connection = &mut self.connections[index];
        match connection.state() {
            State::Closed => return,
            State::Handshaking => self.handshaking -= 1,
            State::Open => {}
        }
        connection.close(&mut self.net);
        self.closed.push(Reverse((retry_at, index)));
        self.load.idle.retain(|idle| *idle != index);
    }

    fn sleep(&mut self) -> Result<(), Errno> {
        let now = Instant::now();
        let flags =
            if self.net.udp.blocked() { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN };
        if self.net.udp.blocked() {
            epoll::modify(&self.epoll, &self.net.udp, EventData::new_u64(0), flags)?;
        }
        let timeout = self.sleep_for(now);
        let mut events = Vec::with_capacity(1);
        let waited = wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), &timeout);
        if self.net.udp.blocked() {
            epoll::modify(&self.epoll, &self.net.udp, EventData::new_u64(0), EventFlags::IN)?;
        }
        match waited {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
        if events.is_empty() && self.load.window.counts() {
            self.load.tally.client_idle += now.elapsed();
        }
        Ok(())
    }

    fn sleep_for(&self, now: Instant) -> Timespec {
        let Load { worker, window, idle, .. } = &self.load;
        if worker.reading.spin {
            return Timespec { tv_sec: 0, tv_nsec: 0 };
        }
        let mut wait = self.next_housekeeping.saturating_duration_since(now);
        if let Some(Reverse((retry_at, _))) =
            self.closed.peek().filter(|_| self.handshaking < HANDSHAKES_MAX)
        {
            wait = wait.min(retry_at.saturating_duration_since(now));
        }
        if let Some(Reverse((at, _))) = self.timers.peek() {
            wait = wait.min(at.saturating_duration_since(now));
        }
        if let Some(boundary) = window.next_boundary(now) {
            wait = wait.min(boundary.saturating_duration_since(now));
        }
        if let Some(schedule) = &worker.schedule
            && !idle.is_empty()
            && let Some(due_ns) = schedule.next_due_ns()
        {
            let due_in = Duration::from_nanos(due_ns.saturating_sub(window.ns(now)));
            wait = wait.min(if due_in < SPIN { Duration::ZERO } else { due_in - SPIN });
        }
        Timespec { tv_sec: wait.as_secs().min(3600) as i64, tv_nsec: wait.subsec_nanos().into() }
    }
}
