//! The lean client: HTTP/1.1 over plain TCP or TLS, all connections of a thread on one epoll.
//!
//! It owns one buffer that every connection reads into; bodies are counted (and hashed, if asked
//! for) where they were read or decrypted, and never kept. So that it stays cheaper than a server.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fs::Timespec;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use super::answer::Answer;
use super::tally::{Failure, FailureKind, Tally};
use super::tls::Session;
use super::wait::wait;
use super::window::{Phase, Window};
use super::worker::Worker;
use crate::BenchError;

/// The most that is read at once from a TLS connection, and the least that can be: the largest record
/// (RFC 8446, section 5.2; RFC 5246, section 6.2.3). Container tools read about a record at a time.
const READ_BYTES_TLS: usize = 5 + (1 << 14) + 2048;
/// The most that is read at once from a plain connection: what Go's `io.Copy` reads.
const READ_BYTES_PLAIN: usize = 32 << 10;
/// Events taken at once.
const EVENTS_MAX: usize = 256;
/// How often time limits are looked at.
const HOUSEKEEPING: Duration = Duration::from_millis(100);
/// Open loop: closer to the next request than this, the client does not sleep.
const SPIN: Duration = Duration::from_micros(60);
/// How long a connection that could not be opened waits for the next attempt, doubled each time.
const RETRY_FIRST: Duration = Duration::from_millis(10);
/// The longest such wait.
const RETRY_LAST: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// No socket until then.
    Closed {
        retry_at: Instant,
    },
    Connecting,
    Handshaking,
    /// Free for a request.
    Idle,
    /// Waits for an answer.
    Waiting,
}

struct Connection {
    state: State,
    socket: Option<OwnedFd>,
    session: Option<Session>,
    answer: Answer,
    /// The start of a TLS record that is not all there yet.
    leftover: Vec<u8>,
    outgoing: Vec<u8>,
    sent: usize,
    waits_to_write: bool,
    /// When the state that can time out began.
    since: Instant,
    /// From when the latency counts, in nanoseconds of the window's clock.
    due_ns: u64,
    failures_in_a_row: u32,
    opened: bool,
}

/// Runs one thread's part of a load to its end.
///
/// # Errors
/// When the system gives no epoll. What happens to requests is counted and not an error.
pub fn run(worker: Worker) -> Result<Tally, BenchError> {
    let epoll = epoll::create(CreateFlags::CLOEXEC)
        .map_err(|errno| BenchError::io("creating an epoll")(errno.into()))?;
    // Without this the kernel adds up to 50 µs to each sleep, which an open loop would measure.
    let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
    let now = Instant::now();
    let connections = (0..worker.connections)
        .map(|_| Connection {
            state: State::Closed { retry_at: now },
            socket: None,
            session: None,
            answer: Answer::default(),
            leftover: Vec::new(),
            outgoing: Vec::new(),
            sent: 0,
            waits_to_write: false,
            since: now,
            due_ns: 0,
            failures_in_a_row: 0,
            opened: false,
        })
        .collect();
    let read_bytes = match (&worker.tls, worker.reading.read_bytes) {
        (Some(_), asked) => asked.unwrap_or(READ_BYTES_TLS).max(READ_BYTES_TLS),
        (None, asked) => asked.unwrap_or(READ_BYTES_PLAIN),
    };
    let window = Window::new(worker.clock, worker.requests, worker.connections);
    let mut engine = Engine {
        epoll,
        connections,
        closed: worker.connections as usize,
        idle: Vec::new(),
        tally: Tally::default(),
        scratch: vec![0; read_bytes].into_boxed_slice(),
        next_housekeeping: now,
        window,
        worker,
    };
    engine.run();
    Ok(engine.tally)
}

struct Engine {
    worker: Worker,
    window: Window,
    epoll: OwnedFd,
    connections: Vec<Connection>,
    /// How many connections have no socket.
    closed: usize,
    /// Open loop: connections that are free.
    idle: Vec<usize>,
    tally: Tally,
    scratch: Box<[u8]>,
    next_housekeeping: Instant,
}

impl Engine {
    fn run(&mut self) {
        let mut events = Vec::with_capacity(EVENTS_MAX);
        loop {
            let now = Instant::now();
            if self.window.turn(now, &mut self.tally) == Phase::Over {
                break;
            }
            if self.window.draining() && !self.drains(now) {
                break;
            }
            self.housekeeping(now);
            self.send_due();
            let asleep_from = Instant::now();
            let timeout = self.sleep_for(asleep_from);
            events.clear();
            match wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), &timeout) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => {
                    let text = format!("epoll: {errno}");
                    self.tally.fail(Failure::new(FailureKind::Connect, text));
                    break;
                }
            }
            if events.is_empty() && self.window.counts() {
                self.tally.client_idle += asleep_from.elapsed();
            }
            for event in &events {
                // A closed loop stops where its window ends; what is under way then is not counted.
                if self.worker.schedule.is_none() && self.window.over_for_closed_loop() {
                    break;
                }
                let epoll::Event { flags, data } = *event;
                self.ready(data.u64() as usize, flags);
            }
        }
        self.leave();
    }

    /// Open loop, after the end: whether there is still something to wait for.
    fn drains(&self, now: Instant) -> bool {
        let Some(schedule) = &self.worker.schedule else { return false };
        let waiting = self.connections.iter().any(|connection| connection.state == State::Waiting);
        (waiting || schedule.next_due_ns().is_some())
            && now < self.window.ended_at() + self.worker.timeout
    }

    /// Counts what an open loop leaves behind: each request that was due has waited until now.
    fn leave(&mut self) {
        let Some(schedule) = &mut self.worker.schedule else { return };
        let now_ns = self.window.ns(Instant::now());
        let begin_ns = self.window.begin_ns();
        let waiting = self
            .connections
            .iter()
            .filter(|connection| connection.state == State::Waiting)
            .map(|connection| connection.due_ns);
        let unsent = std::iter::from_fn(|| schedule.take(now_ns));
        for due_ns in waiting.chain(unsent).filter(|due_ns| *due_ns >= begin_ns) {
            self.tally.unanswered += 1;
            self.tally.latency.record_ns(now_ns - due_ns);
        }
    }

    fn housekeeping(&mut self, now: Instant) {
        if self.closed > 0 {
            for index in 0..self.connections.len() {
                if let State::Closed { retry_at } = self.connections[index].state
                    && retry_at <= now
                {
                    self.open(index, now);
                }
            }
        }
        if now < self.next_housekeeping {
            return;
        }
        self.next_housekeeping = now + HOUSEKEEPING;
        for index in 0..self.connections.len() {
            let connection = &self.connections[index];
            let waits = match connection.state {
                State::Connecting => "for the connection",
                State::Handshaking => "for the TLS handshake",
                State::Waiting => "for the answer",
                State::Closed { .. } | State::Idle => continue,
            };
            if now.duration_since(connection.since) > self.worker.timeout {
                let text = format!("waited {:?} {waits}", self.worker.timeout);
                self.fail(index, Failure::new(FailureKind::Timeout, text));
            }
        }
    }

    fn sleep_for(&self, now: Instant) -> Timespec {
        if self.worker.reading.spin {
            return Timespec { tv_sec: 0, tv_nsec: 0 };
        }
        let mut wait = self.next_housekeeping.saturating_duration_since(now);
        if self.closed > 0 {
            wait = wait.min(RETRY_FIRST);
        }
        if let Some(boundary) = self.window.next_boundary(now) {
            wait = wait.min(boundary.saturating_duration_since(now));
        }
        if let Some(schedule) = &self.worker.schedule
            && !self.idle.is_empty()
            && let Some(due_ns) = schedule.next_due_ns()
        {
            let due_in = Duration::from_nanos(due_ns.saturating_sub(self.window.ns(now)));
            wait = wait.min(if due_in < SPIN { Duration::ZERO } else { due_in - SPIN });
        }
        Timespec { tv_sec: wait.as_secs().min(3600) as i64, tv_nsec: wait.subsec_nanos().into() }
    }

    /// Open loop: sends what is due, as long as a connection is free.
    fn send_due(&mut self) {
        while let Some(index) = self.idle.last().copied() {
            let now_ns = self.window.ns(Instant::now());
            let Some(schedule) = &mut self.worker.schedule else { return };
            let Some(due_ns) = schedule.take(now_ns) else { return };
            self.idle.pop();
            if due_ns >= self.window.begin_ns() {
                self.tally.send_lag.record_ns(now_ns - due_ns);
            }
            self.send(index, due_ns);
        }
    }

    fn open(&mut self, index: usize, now: Instant) {
        self.closed -= 1;
        let connection = &mut self.connections[index];
        if connection.opened {
            self.tally.reconnects += 1;
        }
        connection.opened = true;
        connection.state = State::Connecting;
        connection.since = now;
        connection.leftover.clear();
        connection.outgoing.clear();
        connection.sent = 0;
        connection.waits_to_write = false;
        if let Err(errno) = self.begin_connect(index) {
            let text = format!("connecting to {}: {errno}", self.worker.server.address);
            self.fail(index, Failure::new(FailureKind::Connect, text));
        }
    }

    fn begin_connect(&mut self, index: usize) -> Result<(), Errno> {
        let address = self.worker.server.address;
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
        sockopt::set_tcp_nodelay(&socket, true)?;
        if let Some(bytes) = self.worker.reading.receive_buffer_bytes {
            sockopt::set_socket_recv_buffer_size(&socket, bytes)?;
        }
        match rustix::net::connect(&socket, &address) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(errno) => return Err(errno),
        }
        epoll::add(&self.epoll, &socket, EventData::new_u64(index as u64), EventFlags::OUT)?;
        self.connections[index].socket = Some(socket);
        Ok(())
    }

    fn ready(&mut self, index: usize, flags: EventFlags) {
        let result = match self.connections[index].state {
            // An event of a socket that was closed earlier in the same batch.
            State::Closed { .. } => return,
            State::Connecting => self.connected(index),
            State::Handshaking | State::Idle | State::Waiting => {
                self.write_if(index, flags.contains(EventFlags::OUT)).and_then(|()| {
                    let read = EventFlags::IN | EventFlags::HUP | EventFlags::ERR;
                    if flags.intersects(read) { self.read(index) } else { Ok(()) }
                })
            }
        };
        if let Err(failure) = result {
            self.fail(index, failure);
        }
    }

    fn connected(&mut self, index: usize) -> Result<(), Failure> {
        let refused = |text: String| Failure::new(FailureKind::Connect, text);
        let connection = &mut self.connections[index];
        let Some(socket) = &connection.socket else { return Ok(()) };
        match sockopt::socket_error(socket) {
            Ok(Ok(())) => {}
            Ok(Err(errno)) | Err(errno) => {
                let text = format!("connecting to {}: {errno}", self.worker.server.address);
                return Err(refused(text));
            }
        }
        epoll::modify(&self.epoll, socket, EventData::new_u64(index as u64), EventFlags::IN)
            .map_err(|errno| refused(format!("epoll: {errno}")))?;
        match &self.worker.tls {
            Some(config) => {
                let name = self.worker.server.name.clone();
                let mut session = Session::new(Arc::clone(config), name)?;
                session.receive(&mut [], &mut connection.outgoing, |_| Ok::<_, Failure>(()))?;
                connection.session = Some(session);
                connection.state = State::Handshaking;
                self.write_if(index, true)
            }
            None => {
                self.free(index);
                Ok(())
            }
        }
    }

    fn read(&mut self, index: usize) -> Result<(), Failure> {
        let connection = &mut self.connections[index];
        let Some(socket) = &connection.socket else { return Ok(()) };
        let before = connection.leftover.len();
        self.scratch[..before].copy_from_slice(&connection.leftover);
        let read = match rustix::io::read(socket, &mut self.scratch[before..]) {
            Ok(read) => read,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
            Err(errno) => {
                let mut failure = connection.end_of_input();
                failure.text = format!("{} ({errno})", failure.text);
                return Err(failure);
            }
        };
        if read == 0 {
            return match connection.state {
                State::Idle => {
                    self.close(index, Instant::now());
                    Ok(())
                }
                _ => Err(connection.end_of_input()),
            };
        }
        let input = &mut self.scratch[..before + read];
        let fed = match &mut connection.session {
            None => connection.answer.feed(input).map(|()| false),
            Some(session) => {
                let answer = &mut connection.answer;
                session.receive(input, &mut connection.outgoing, |bytes| answer.feed(bytes)).map(
                    |received| {
                        connection.leftover.clear();
                        connection.leftover.extend_from_slice(&input[received.used..]);
                        received.closed
                    },
                )
            }
        };
        let body_bytes = connection.answer.take_body_bytes();
        if self.window.counts() {
            self.tally.body_bytes += body_bytes;
        }
        let closed = fed?;
        self.write_if(index, true)?;

        let connection = &mut self.connections[index];
        let established = connection.session.as_ref().is_none_or(Session::established);
        match connection.state {
            State::Handshaking if established => {
                self.tally.cipher = connection.session.as_ref().and_then(Session::cipher);
                self.free(index);
            }
            State::Waiting if connection.answer.complete() => self.finish(index, closed),
            State::Idle if closed => self.close(index, Instant::now()),
            _ if closed => return Err(connection.end_of_input()),
            _ => {}
        }
        Ok(())
    }

    /// An answer is complete.
    fn finish(&mut self, index: usize, closed: bool) {
        let now = Instant::now();
        let connection = &mut self.connections[index];
        let due_ns = connection.due_ns;
        connection.state = State::Idle;
        connection.failures_in_a_row = 0;
        let (head, verdict) = connection.answer.finish();
        let (status, length, keep_alive) =
            head.map_or((0, 0, false), |head| (head.status, head.length, head.keep_alive));
        self.window.completed(verdict.is_ok());
        // An open loop counts what was due within the window, a closed loop what ended within it.
        let counts = match self.worker.schedule {
            Some(_) => due_ns >= self.window.begin_ns(),
            None => self.window.counts(),
        };
        if counts {
            *self.tally.statuses.entry(status).or_default() += 1;
        }
        match verdict {
            Ok(()) => {
                self.worker.source.learn(connection.target(), length);
                if counts {
                    self.tally.responses += 1;
                    self.tally.latency.record_ns(self.window.ns(now) - due_ns);
                }
            }
            Err(failure) => self.tally.fail(failure),
        }
        if keep_alive && !closed {
            self.free(index);
        } else {
            self.close(index, now);
        }
    }

    /// A connection is free: a closed loop asks at once, an open loop when something is due.
    fn free(&mut self, index: usize) {
        self.connections[index].state = State::Idle;
        if self.worker.schedule.is_some() {
            self.idle.push(index);
        } else if !self.window.over_for_closed_loop() {
            let now_ns = self.window.ns(Instant::now());
            self.send(index, now_ns);
        }
    }

    fn send(&mut self, index: usize, due_ns: u64) {
        let connection = &mut self.connections[index];
        connection.state = State::Waiting;
        connection.due_ns = due_ns;
        connection.since = Instant::now();
        let result = match &mut connection.session {
            None => {
                let expectation = self.worker.source.next(&mut connection.outgoing);
                connection.answer.expect(expectation);
                Ok(())
            }
            Some(session) => {
                let mut request = std::mem::take(&mut self.worker.request);
                request.clear();
                connection.answer.expect(self.worker.source.next(&mut request));
                let sent = session.send(&request, &mut connection.outgoing);
                self.worker.request = request;
                sent.map_err(Failure::from)
            }
        };
        if let Err(failure) = result.and_then(|()| self.write_if(index, true)) {
            self.fail(index, failure);
        }
    }

    fn write_if(&mut self, index: usize, writable: bool) -> Result<(), Failure> {
        let connection = &mut self.connections[index];
        let Some(socket) = connection.socket.as_ref().filter(|_| writable) else { return Ok(()) };
        while connection.sent < connection.outgoing.len() {
            match rustix::net::send(
                socket,
                &connection.outgoing[connection.sent..],
                rustix::net::SendFlags::NOSIGNAL,
            ) {
                Ok(written) => connection.sent += written,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(errno) => {
                    let text = format!("sending the request: {errno}");
                    return Err(Failure::new(FailureKind::Closed, text));
                }
            }
        }
        let blocked = connection.sent < connection.outgoing.len();
        if !blocked {
            connection.outgoing.clear();
            connection.sent = 0;
        }
        if blocked != connection.waits_to_write {
            let flags = if blocked { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN };
            epoll::modify(&self.epoll, socket, EventData::new_u64(index as u64), flags)
                .map_err(|errno| Failure::new(FailureKind::Closed, format!("epoll: {errno}")))?;
            connection.waits_to_write = blocked;
        }
        Ok(())
    }

    fn fail(&mut self, index: usize, failure: Failure) {
        self.tally.fail(failure);
        self.window.completed(false);
        let connection = &mut self.connections[index];
        connection.failures_in_a_row += 1;
        let doublings = connection.failures_in_a_row.min(16) - 1;
        let pause = RETRY_FIRST.saturating_mul(1 << doublings).min(RETRY_LAST);
        self.close(index, Instant::now() + pause);
    }

    fn close(&mut self, index: usize, retry_at: Instant) {
        let connection = &mut self.connections[index];
        connection.state = State::Closed { retry_at };
        // Closing the socket takes it out of the epoll.
        connection.socket = None;
        connection.session = None;
        self.closed += 1;
        self.idle.retain(|idle| *idle != index);
    }
}

impl Connection {
    fn end_of_input(&self) -> Failure {
        match self.state {
            State::Handshaking => {
                Failure::new(FailureKind::Tls, "the connection ended during the handshake")
            }
            _ => self.answer.cut(),
        }
    }

    fn target(&self) -> usize {
        self.answer.target()
    }
}
