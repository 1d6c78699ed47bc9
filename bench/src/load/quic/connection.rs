//! One QUIC connection of a load, and the requests that are under way on it. The socket is handed in.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hashbrown::HashMap;
use quinn_proto::{
    ConnectionError, ConnectionEvent, ConnectionHandle, Dir, EndpointEvent, Event, ReadError,
    StreamEvent, StreamId, VarInt,
};

use super::answer::{self, Answer};
use super::{Load, Net};
use crate::arguments::Protocol;
use crate::load::tally::{Failure, FailureKind};
use crate::load::tls;

/// Batches sent in one turn of a connection.
const SEND_TURNS_MAX: u32 = 8;
/// Datagrams in one batch. A client sends requests and acknowledgements, which are few.
const BATCH_DATAGRAMS_MAX: usize = 10;
/// H3_NO_ERROR (RFC 9114, section 8.1).
const H3_NO_ERROR: u32 = 0x100;

/// Where a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Not there.
    Closed,
    /// Being opened.
    Handshaking,
    /// Takes requests.
    Open,
}

/// What is to happen after a connection's turn.
#[derive(Debug)]
pub enum Next {
    /// Nothing until a datagram or the timer.
    Wait {
        /// Whether it sent anything.
        sent: bool,
        /// A timer to arm.
        timer: Option<Instant>,
    },
    /// Another turn, since it had more to send.
    Again,
    /// It has done its part: a new one takes its place.
    Close,
    /// It broke.
    Fail(Failure),
}

/// A request that waits for its answer.
#[derive(Debug)]
struct Exchange {
    answer: Answer,
    since: Instant,
    /// From when the latency counts, in nanoseconds of the window's clock.
    due_ns: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Connection {
    state: State,
    quic: Option<Box<quinn_proto::Connection>>,
    handle: ConnectionHandle,
    exchanges: HashMap<StreamId, Exchange>,
    /// Open loop: requests that are due, and for which the server has not allowed a stream yet.
    unsent_due_ns: VecDeque<u64>,
    dirty: bool,
    armed: Option<Instant>,
    since: Instant,
    failures_in_a_row: u32,
    answers: u64,
    opened: bool,
}

impl Connection {
    /// A connection that is not there yet.
    pub fn new(now: Instant) -> Self {
        Self {
            state: State::Closed,
            quic: None,
            handle: ConnectionHandle(0),
            exchanges: HashMap::new(),
            unsent_due_ns: VecDeque::new(),
            dirty: false,
            armed: None,
            since: now,
            failures_in_a_row: 0,
            answers: 0,
            opened: false,
        }
    }

    /// Where it is.
    pub fn state(&self) -> State {
        self.state
    }

    /// Whether an answer is awaited.
    pub fn waits(&self) -> bool {
        !self.exchanges.is_empty() || !self.unsent_due_ns.is_empty()
    }

    /// When the requests under way were due.
    pub fn due_ns(&self) -> impl Iterator<Item = u64> {
        let sent = self.exchanges.values().map(|exchange| exchange.due_ns);
        sent.chain(self.unsent_due_ns.iter().copied())
    }

    /// Marks it for a turn; true when it was not yet.
    pub fn mark(&mut self) -> bool {
        !std::mem::replace(&mut self.dirty, true)
    }

    /// One more failure without a good answer in between; returns how many.
    pub fn count_failure(&mut self) -> u32 {
        self.failures_in_a_row = self.failures_in_a_row.saturating_add(1);
        self.failures_in_a_row
    }

    /// What has taken longer than `timeout`, if anything has.
    pub fn overdue(&self, now: Instant, timeout: Duration) -> Option<&'static str> {
        let late = |since: Instant| now.saturating_duration_since(since) > timeout;
        match self.state {
            State::Handshaking if late(self.since) => Some("for the handshake"),
            State::Open if self.exchanges.values().any(|exchange| late(exchange.since)) => {
                Some("for the answer")
            }
            _ => None,
        }
    }

    /// Begins the handshake.
    ///
    /// # Errors
    /// When quinn-proto refuses.
    pub fn open(
        &mut self,
        index: usize,
        now: Instant,
        net: &mut Net,
        load: &mut Load,
    ) -> Result<(), Failure> {
        if std::mem::replace(&mut self.opened, true) {
            load.tally.reconnects += 1;
        }
        self.state = State::Handshaking;
        self.since = now;
        self.answers = 0;
        let server = &load.worker.server;
        let (handle, quic) = net
            .endpoint
            .connect(now, net.config.clone(), server.address, &server.name.to_str())
            .map_err(|error| Failure::new(FailureKind::Connect, error.to_string()))?;
        self.handle = handle;
        self.quic = Some(Box::new(quic));
        if net.by_handle.len() <= handle.0 {
            net.by_handle.resize(handle.0 + 1, None);
        }
        net.by_handle[handle.0] = Some(index);
        Ok(())
    }

    /// A datagram of this connection; true when it was not marked for a turn yet.
    pub fn handle_event(&mut self, event: ConnectionEvent) -> bool {
        match &mut self.quic {
            Some(quic) => {
                quic.handle_event(event);
                self.mark()
            }
            None => false,
        }
    }

    /// A timer of `at` has fired; whether it is still wanted.
    pub fn timer_fired(&mut self, at: Instant) -> bool {
        let wanted = self.armed == Some(at) && self.quic.is_some();
        if wanted {
            self.armed = None;
        }
        wanted
    }

    /// Ends it, and lets the server know.
    pub fn close(&mut self, net: &mut Net) {
        self.state = State::Closed;
        self.armed = None;
        self.exchanges.clear();
        self.unsent_due_ns.clear();
        let Some(mut quic) = self.quic.take() else { return };
        let now = Instant::now();
        quic.close(now, VarInt::from_u32(H3_NO_ERROR), Bytes::new());
        net.scratch.clear();
        if !net.udp.blocked()
            && let Some(transmit) = quic.poll_transmit(now, 1, &mut net.scratch)
        {
            net.udp.send(transmit, &net.scratch);
        }
        net.endpoint.handle_event(self.handle, EndpointEvent::drained());
        net.by_handle[self.handle.0] = None;
    }

    /// One turn: events, requests, datagrams.
    pub fn drive(&mut self, index: usize, now: Instant, net: &mut Net, load: &mut Load) -> Next {
        self.dirty = false;
        match self.turn(index, now, net, load) {
            Ok(Some(next)) => next,
            Ok(None) => self.transmit(now, net),
            Err(failure) => Next::Fail(failure),
        }
    }

    fn turn(
        &mut self,
        index: usize,
        now: Instant,
        net: &mut Net,
        load: &mut Load,
    ) -> Result<Option<Next>, Failure> {
        let Some(quic) = &mut self.quic else {
            return Ok(Some(Next::Wait { sent: false, timer: None }));
        };
        if quic.poll_timeout().is_some_and(|at| at <= now) {
            quic.handle_timeout(now);
        }
        while let Some(event) = quic.poll_endpoint_events() {
            if let Some(event) = net.endpoint.handle_event(self.handle, event) {
                quic.handle_event(event);
            }
        }
        while let Some(event) = self.quic.as_mut().and_then(|quic| quic.poll()) {
            match event {
                Event::Connected => self.connected(index, load)?,
                // Nothing was asked for, so nothing is missing: an idle connection may be closed.
                Event::ConnectionLost { .. } if self.state == State::Open && !self.waits() => {
                    return Ok(Some(Next::Close));
                }
                Event::ConnectionLost { reason } => return Err(self.lost(&reason)),
                Event::Stream(StreamEvent::Readable { id }) if id.dir() == Dir::Bi => {
                    self.read(id, index, now, load)?;
                }
                Event::Stream(StreamEvent::Readable { id }) => self.discard(id),
                Event::Stream(StreamEvent::Opened { dir }) => self.accept(dir),
                _ => {}
            }
        }
        if load.worker.schedule.is_none() && self.state == State::Open {
            self.fill(now, load)?;
        } else if self.state == State::Open {
            self.ask_unsent(now, load)?;
        }
        let limit = load.worker.quic.requests_per_connection;
        let used_up = limit.is_some_and(|limit| self.answers >= limit)
            && self.exchanges.is_empty()
            && !load.worker.quic.hold;
        Ok(used_up.then_some(Next::Close))
    }

    fn connected(&mut self, index: usize, load: &mut Load) -> Result<(), Failure> {
        let Some(quic) = &mut self.quic else { return Ok(()) };
        let broken = |text: &str| Failure::new(FailureKind::Protocol, text);
        load.tally.cipher.get_or_insert_with(|| tls::QUIC_CIPHER.to_owned());
        if load.worker.protocol == Protocol::H3 {
            let control = quic
                .streams()
                .open(Dir::Uni)
                .ok_or_else(|| broken("the server allows no control stream"))?;
            quic.send_stream(control)
                .write_chunks(&mut [answer::preface()])
                .map_err(|error| broken(&format!("the control stream: {error}")))?;
        }
        self.state = State::Open;
        if load.worker.schedule.is_some() {
            load.idle.extend(std::iter::repeat_n(index, load.worker.streams as usize));
        }
        Ok(())
    }

    /// Closed loop: asks on every stream that is free.
    fn fill(&mut self, now: Instant, load: &mut Load) -> Result<(), Failure> {
        while self.exchanges.len() < load.worker.streams as usize
            && !load.window.over_for_closed_loop()
            && self.may_ask(load)
        {
            let due_ns = load.window.ns(now);
            if !self.ask_if_allowed(now, due_ns, load)? {
                break;
            }
        }
        Ok(())
    }

    fn may_ask(&self, load: &Load) -> bool {
        let limit = load.worker.quic.requests_per_connection;
        limit.is_none_or(|limit| self.answers + (self.exchanges.len() as u64) < limit)
    }

    /// Open loop: sends a request, now or as soon as the server allows another stream.
    ///
    /// # Errors
    /// When the connection is of no use any more.
    pub fn ask(&mut self, now: Instant, due_ns: u64, load: &mut Load) -> Result<(), Failure> {
        self.unsent_due_ns.push_back(due_ns);
        self.ask_unsent(now, load)
    }

    fn ask_unsent(&mut self, now: Instant, load: &mut Load) -> Result<(), Failure> {
        while let Some(due_ns) = self.unsent_due_ns.front().copied() {
            if !self.ask_if_allowed(now, due_ns, load)? {
                break;
            }
            self.unsent_due_ns.pop_front();
        }
        Ok(())
    }

    fn ask_if_allowed(
        &mut self,
        now: Instant,
        due_ns: u64,
        load: &mut Load,
    ) -> Result<bool, Failure> {
        let Some(quic) = &mut self.quic else { return Ok(false) };
        let Some(id) = quic.streams().open(Dir::Bi) else { return Ok(false) };
        let failed = |text: String| Failure::new(FailureKind::Protocol, text);
        let expectation = load
            .worker
            .source
            .next_target()
            .ok_or_else(|| failed("ranges are not asked for here".to_owned()))?;
        let request = load.requests[expectation.target].clone();
        let mut stream = quic.send_stream(id);
        let length = request.len();
        let written = stream
            .write_chunks(&mut [request])
            .map_err(|error| failed(format!("sending the request: {error}")))?;
        if written.bytes < length {
            return Err(failed("the server allows no whole request on a stream".to_owned()));
        }
        stream.finish().map_err(|error| failed(format!("ending the request: {error}")))?;
        let answer = Answer::expect(expectation, load.worker.protocol);
        self.exchanges.insert(id, Exchange { answer, since: now, due_ns });
        Ok(true)
    }

    fn read(
        &mut self,
        id: StreamId,
        index: usize,
        now: Instant,
        load: &mut Load,
    ) -> Result<(), Failure> {
        let (Some(quic), Some(exchange)) = (&mut self.quic, self.exchanges.get_mut(&id)) else {
            return Ok(());
        };
        let mut stream = quic.recv_stream(id);
        let Ok(mut chunks) = stream.read(true) else { return Ok(()) };
        let mut body_bytes = 0;
        let ended = loop {
            match chunks.next(usize::MAX) {
                Ok(Some(chunk)) => body_bytes += exchange.answer.feed(chunk.bytes)?,
                Ok(None) => break Some(None),
                Err(ReadError::Blocked) => break None,
                Err(ReadError::Reset(code)) => break Some(Some(code)),
            }
        };
        // What it asks to be sent is sent at the end of this turn.
        let _ = chunks.finalize();
        if load.window.counts() {
            load.tally.body_bytes += body_bytes;
        }
        match ended {
            None => {}
            Some(None) => self.answered(id, index, now, load),
            Some(Some(code)) => {
                if let Some(exchange) = self.exchanges.remove(&id) {
                    load.tally.fail(exchange.answer.cut(&format!("reset with code {code}")));
                    load.window.completed(false);
                    self.free(index, load);
                }
            }
        }
        Ok(())
    }

    /// An answer is complete.
    fn answered(&mut self, id: StreamId, index: usize, now: Instant, load: &mut Load) {
        let Some(Exchange { answer, due_ns, .. }) = self.exchanges.remove(&id) else { return };
        // A closed loop stops where its window ends; what is under way then is not counted.
        if load.worker.schedule.is_none() && load.window.over_for_closed_loop() {
            return;
        }
        let verdict = answer.finish();
        self.failures_in_a_row = 0;
        self.answers += 1;
        let Load { worker, window, tally, .. } = &mut *load;
        window.completed(verdict.result.is_ok());
        // An open loop counts what was due within the window, a closed loop what ended within it.
        let counts = match worker.schedule {
            Some(_) => due_ns >= window.begin_ns(),
            None => window.counts(),
        };
        if counts {
            *tally.statuses.entry(verdict.status).or_default() += 1;
        }
        match verdict.result {
            Ok(()) => {
                worker.source.learn(verdict.target, verdict.length);
                if counts {
                    tally.responses += 1;
                    tally.latency.record_ns(window.ns(now).saturating_sub(due_ns));
                }
            }
            Err(failure) => tally.fail(failure),
        }
        self.free(index, load);
    }

    fn free(&self, index: usize, load: &mut Load) {
        if load.worker.schedule.is_some() {
            load.idle.push(index);
        }
    }

    /// Streams of the server: its control stream, and those of QPACK. Nothing on them matters here.
    fn accept(&mut self, dir: Dir) {
        while let Some(id) = self.quic.as_mut().and_then(|quic| quic.streams().accept(dir)) {
            self.discard(id);
        }
    }

    fn discard(&mut self, id: StreamId) {
        let Some(quic) = &mut self.quic else { return };
        let mut stream = quic.recv_stream(id);
        let Ok(mut chunks) = stream.read(true) else { return };
        while let Ok(Some(_)) = chunks.next(usize::MAX) {}
        let _ = chunks.finalize();
    }

    fn transmit(&mut self, now: Instant, net: &mut Net) -> Next {
        let Some(quic) = &mut self.quic else { return Next::Wait { sent: false, timer: None } };
        let mut sent = false;
        for _ in 0..SEND_TURNS_MAX {
            net.scratch.clear();
            let Some(transmit) = quic.poll_transmit(now, BATCH_DATAGRAMS_MAX, &mut net.scratch)
            else {
                let timer = quic.poll_timeout().filter(|at| self.armed.is_none_or(|is| *at < is));
                if timer.is_some() {
                    self.armed = timer;
                }
                return Next::Wait { sent, timer };
            };
            sent = true;
            if !net.udp.send(transmit, &net.scratch) {
                break;
            }
        }
        Next::Again
    }

    fn lost(&self, reason: &ConnectionError) -> Failure {
        match self.state {
            State::Open => match self.exchanges.values().next() {
                Some(exchange) => exchange.answer.cut(&reason.to_string()),
                None => Failure::new(FailureKind::Closed, reason.to_string()),
            },
            _ => {
                // A certificate that is not trusted is an error of TLS, which QUIC carries as
                // 0x100 and the alert (RFC 9001, section 4.8).
                let kind = match reason {
                    ConnectionError::TransportError(_) => FailureKind::Tls,
                    _ => FailureKind::Connect,
                };
                Failure::new(kind, reason.to_string())
            }
        }
    }
}
