//! The endpoint of one shard: routes datagrams to connections, and turns them over.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::task::Context;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use outrider_http3::Code;
use outrider_shard::{ShardContext, Source};
use prometheus_client::metrics::counter::Counter;
use quinn_proto::{
    ConnectionEvent, ConnectionHandle, DatagramEvent, EcnCodepoint, Incoming, Transmit,
};

use super::cid::{self, ForRetry};
use super::config::QuicServer;
use super::connection::{Connection, Shared};
use super::memory::Memory;
use super::metrics::QuicMetrics;
use super::socket::{QuicSocket, Received, Udp};
use super::strangers::{self, Strangers};
use super::timeouts::Timeouts;
use super::wake::Wakes;
use crate::drain::{Drain, Watcher};
use crate::metrics::{Reason, TransportMetrics};
use crate::pins::PinBudget;
use crate::server::Handler;

/// Batches received in a turn, and sent in one, and sent in a row for one connection.
const RECEIVES_MAX: usize = 4;
const SENDS_MAX: usize = 8;
const SENDS_IN_A_ROW_MAX: usize = 4;

/// Answers to datagrams that belong to no connection, which wait for the socket; more are dropped.
const ANSWERS_MAX: usize = 256;

/// How long a turn is given to clients without a connection; one datagram of theirs in any case. The steps of a
/// handshake take up to 0.2 ms, all else some microseconds.
const STRANGERS_TIME: Duration = Duration::from_micros(150);

/// Timeouts that fire in a turn, and fewer while so many connections have something to do: a thousand that
/// began together are not to stand before one whose client asks for something.
const TIMEOUTS_PER_TURN: usize = 8;

/// Datagrams that are received in a turn, up to the end of a batch.
const DATAGRAMS_PER_TURN: usize = 1024;

/// Handshakes under way on a shard, of clients that have shown their addresses; more are refused.
const HANDSHAKES_MAX: usize = 1024;

/// Stands for the endpoint itself where a waker names a connection.
const NOBODY: usize = usize::MAX;

/// A datagram for another shard.
#[derive(Debug)]
pub struct Misrouted {
    /// Who sent it.
    pub remote: SocketAddr,
    /// The address that it was sent to.
    pub local_ip: Option<IpAddr>,
    /// Its two ECN bits.
    pub ecn: u8,
    /// What it says.
    pub bytes: BytesMut,
}

/// Takes datagrams to the shards that they belong to. It must not wait, and may drop them.
pub trait Forward {
    /// A datagram for that shard.
    fn forward(&self, shard: usize, datagram: Misrouted);
}

/// What an endpoint is made of.
pub struct QuicParts<H> {
    /// The shard's own socket.
    pub socket: QuicSocket,
    /// What all shards share.
    pub server: QuicServer,
    /// Answers the requests.
    pub handler: Rc<H>,
    /// What clients may hold.
    pub pins: PinBudget,
    /// Ends it.
    pub drain: Drain,
    /// What is counted.
    pub metrics: TransportMetrics,
    /// For datagrams of other shards; they are dropped where there is none.
    pub forward: Option<Box<dyn Forward>>,
}

/// The endpoint of one shard, which stays on its thread. Clones are the same.
pub struct QuicEndpoint<H: Handler>(Rc<RefCell<Endpoint<H>>>);

impl<H: Handler> QuicEndpoint<H> {
    /// Takes a datagram that came to another shard.
    pub fn deliver(&self, datagram: Misrouted) {
        let mut endpoint = self.0.borrow_mut();
        if endpoint.core.is_strange(&datagram.bytes) {
            return endpoint.core.keep_stranger(datagram);
        }
        let Misrouted { remote, local_ip, ecn, bytes } = datagram;
        let ecn = EcnCodepoint::from_bits(ecn);
        endpoint.core.handle(Instant::now(), remote, local_ip, ecn, bytes);
    }
}

impl<H: Handler> std::fmt::Debug for QuicEndpoint<H> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QuicEndpoint").finish_non_exhaustive()
    }
}

/// Serves QUIC on this shard, in the driver's turn, until the shard ends. Once `drain` has started new
/// connections are refused, and those that there are come to their end.
///
/// # Errors
/// The socket's.
///
/// # Panics
/// On a thread that is not a shard's.
pub fn serve<H: Handler>(
    context: &ShardContext,
    parts: QuicParts<H>,
) -> io::Result<QuicEndpoint<H>> {
    let endpoint = Rc::new(RefCell::new(Endpoint::new(context, parts)?));
    context.add_source(Box::new(Receive(endpoint.clone())));
    context.add_source(Box::new(Send(endpoint.clone())));
    Ok(QuicEndpoint(endpoint))
}

/// Receives, and looks after timeouts.
struct Receive<H: Handler>(Rc<RefCell<Endpoint<H>>>);

impl<H: Handler> Source for Receive<H> {
    fn turn(&mut self) -> bool {
        self.0.borrow_mut().receive()
    }

    fn in_flight(&self) -> bool {
        false
    }

    fn deadline(&self) -> Option<Instant> {
        self.0.borrow().core.timeouts.next()
    }
}

/// Answers and sends.
struct Send<H: Handler>(Rc<RefCell<Endpoint<H>>>);

impl<H: Handler> Source for Send<H> {
    fn turn(&mut self) -> bool {
        self.0.borrow_mut().send()
    }

    fn in_flight(&self) -> bool {
        false
    }
}

/// The socket, and all that is behind it.
struct Endpoint<H: Handler> {
    udp: Udp,
    core: Core<H>,
    /// What is being sent; and how, when the socket did not take it.
    contents: Vec<u8>,
    blocked: Option<Transmit>,
}

impl<H: Handler> Endpoint<H> {
    fn new(context: &ShardContext, parts: QuicParts<H>) -> io::Result<Self> {
        let QuicParts { socket, server, handler, pins, drain, metrics, forward } = parts;
        metrics.watch_pins(&pins);
        let (accepted, open) = metrics.of_quic();
        let udp = Udp::new(socket)?;
        let handle = context.handle();
        let shard = u8::try_from(handle.id()).expect("a shard's number fits into a byte");
        let for_retry = ForRetry::default();
        let (config, crypto) = (server.endpoint(shard, &for_retry), server.server.clone());
        let proto = quinn_proto::Endpoint::new(config, Some(crypto), !udp.may_fragment(), None);
        let memory = Rc::new(Memory::new(server.settings.memory_bytes_max));
        metrics.watch_memory(memory.watched());
        let shared = Rc::new(Shared {
            handler,
            limits: server.limits.clone(),
            settings: server.settings.clone(),
            pins,
            metrics,
            open,
            wakes: Wakes::new(handle),
            memory,
            handshaking: Cell::new(0),
            upload_bytes: Cell::new(0),
        });
        let mut core = Core {
            shard,
            server,
            proto,
            connections: Vec::new(),
            count: 0,
            generation: 0,
            queue: VecDeque::new(),
            sending: None,
            timeouts: Timeouts::default(),
            drained: Some(drain.watch()),
            drain,
            accepted,
            forward,
            strangers: Strangers::default(),
            for_retry,
            answers: VecDeque::new(),
            answer: Vec::new(),
            shared,
        };
        core.look_at_drain(Instant::now());
        Ok(Self { udp, core, contents: Vec::with_capacity(1 << 17), blocked: None })
    }

    /// The first half of a turn; true when there was something.
    fn receive(&mut self) -> bool {
        let now = Instant::now();
        let Self { udp, core, .. } = self;
        let mut received = 0;
        for _ in 0..RECEIVES_MAX {
            let datagrams = udp.receive(|datagram| core.take(now, &datagram));
            received += datagrams;
            if datagrams == 0 || received >= DATAGRAMS_PER_TURN {
                break;
            }
        }
        let met = core.meet_strangers(now);
        core.fire_timeouts(now) || met || received > 0
    }

    /// The second half.
    fn send(&mut self) -> bool {
        if !self.core.has_work() && self.blocked.is_none() {
            return false;
        }
        let now = Instant::now();
        self.core.take_wakes(now);
        let was_blocked = self.blocked.is_some();
        let mut progress = false;
        for _ in 0..SENDS_MAX {
            let transmit = match self.blocked.take() {
                Some(transmit) => transmit,
                None => {
                    self.contents.clear();
                    let Some(transmit) = self.core.next(now, &self.udp, &mut self.contents) else {
                        return true;
                    };
                    transmit
                }
            };
            if !self.udp.send(&transmit, &self.contents) {
                self.core.counters().sends_blocked.inc_by(u64::from(progress || !was_blocked));
                self.blocked = Some(transmit);
                return progress;
            }
            self.core.count_sent(&transmit);
            progress = true;
        }
        true
    }
}

impl<H: Handler> Drop for Endpoint<H> {
    /// Says good-bye to those that are still there.
    fn drop(&mut self) {
        let now = Instant::now();
        for connection in self.core.connections.iter_mut().flatten() {
            connection.end(now, Code::H3_NO_ERROR, "the server stops");
            self.contents.clear();
            if let Some(transmit) = connection.quic.poll_transmit(now, 1, &mut self.contents) {
                self.udp.send(&transmit, &self.contents);
            }
        }
    }
}

/// What a client has sent that has no connection yet.
enum Waiting {
    Datagram(Misrouted),
    /// For the handshake of the connection in this place.
    Step {
        place: (usize, u64),
        bytes: usize,
        event: ConnectionEvent,
    },
}

/// Connections, and what comes of datagrams: everything but the socket.
struct Core<H: Handler> {
    shard: u8,
    server: QuicServer,
    proto: quinn_proto::Endpoint,
    /// By the index of their handles.
    connections: Vec<Option<Box<Connection<H>>>>,
    count: usize,
    /// How many there have been.
    generation: u64,
    /// Connections that have something to do.
    queue: VecDeque<usize>,
    /// The one that is sending, and how many batches it has sent in a row.
    sending: Option<(usize, usize)>,
    timeouts: Timeouts,
    shared: Rc<Shared<H>>,
    forward: Option<Box<dyn Forward>>,
    drain: Drain,
    drained: Option<Watcher>,
    accepted: Counter,
    strangers: Strangers<Waiting>,
    for_retry: ForRetry,
    /// Answers to datagrams that belong to no connection.
    answers: VecDeque<(Transmit, Vec<u8>)>,
    answer: Vec<u8>,
}

impl<H: Handler> Core<H> {
    fn counters(&self) -> &QuicMetrics {
        &self.shared.metrics.quic
    }

    fn has_work(&self) -> bool {
        !self.queue.is_empty()
            || self.sending.is_some()
            || !self.answers.is_empty()
            || !self.shared.wakes.is_empty()
    }

    /// A datagram from the socket.
    fn take(&mut self, now: Instant, datagram: &Received<'_>) {
        self.counters().received_datagrams.inc();
        self.counters().received_bytes.inc_by(datagram.bytes.len() as u64);
        let Received { remote, local_ip, ecn, .. } = *datagram;
        // A copy: what is kept of a datagram must not keep the room for a whole batch.
        let bytes = BytesMut::from(datagram.bytes);
        if let Some(shard) = self.shard_of(&bytes) {
            self.counters().misrouted_datagrams.inc();
            if let Some(forward) = &self.forward {
                let ecn = ecn.map_or(0, |ecn| ecn as u8);
                forward.forward(shard, Misrouted { remote, local_ip, ecn, bytes });
            }
            return;
        }
        if self.is_strange(&bytes) {
            let ecn = ecn.map_or(0, |ecn| ecn as u8);
            return self.keep_stranger(Misrouted { remote, local_ip, ecn, bytes });
        }
        self.handle(now, remote, local_ip, ecn, bytes);
    }

    /// Whether a datagram goes to no connection: its destination is not an ID that this process has made, or
    /// one that it has made for a Retry.
    fn is_strange(&self, datagram: &[u8]) -> bool {
        strangers::has_long_header(datagram)
            && cid::destination(datagram).is_none_or(|cid| {
                cid::is_of_retry(cid) || self.server.cid_key().shard_of(cid).is_none()
            })
    }

    fn keep_stranger(&mut self, datagram: Misrouted) {
        let bytes = datagram.bytes.len();
        if strangers::may_begin(&datagram.bytes)
            && !self.strangers.push(bytes, Waiting::Datagram(datagram))
        {
            self.counters().strangers_dropped.inc();
        }
    }

    /// Goes on with those that have no connection yet; true when there were any.
    fn meet_strangers(&mut self, now: Instant) -> bool {
        let mut met = false;
        while let Some(waiting) = self.strangers.pop() {
            met = true;
            match waiting {
                Waiting::Datagram(Misrouted { remote, local_ip, ecn, bytes }) => {
                    let ecn = EcnCodepoint::from_bits(ecn);
                    self.route(now, remote, local_ip, ecn, bytes, true);
                }
                Waiting::Step { place, bytes, event } => {
                    let connection = self.connection(place.0);
                    if connection.is_some_and(|connection| connection.place == place) {
                        self.pass_on(place.0, bytes, event);
                    }
                }
            }
            if now.elapsed() >= STRANGERS_TIME {
                break;
            }
        }
        met
    }

    /// The shard that a datagram belongs to, if it is another one.
    fn shard_of(&self, datagram: &[u8]) -> Option<usize> {
        let destination = cid::destination(datagram)?;
        if destination.first() == Some(&self.shard) {
            return None;
        }
        let shard = self.server.cid_key().shard_of(destination)?;
        Some(usize::from(shard))
    }

    fn handle(
        &mut self,
        now: Instant,
        remote: SocketAddr,
        local_ip: Option<IpAddr>,
        ecn: Option<EcnCodepoint>,
        bytes: BytesMut,
    ) {
        self.route(now, remote, local_ip, ecn, bytes, false);
    }

    /// Has a datagram handled. What is a part of a handshake, and has not `waited` for that, waits.
    fn route(
        &mut self,
        now: Instant,
        remote: SocketAddr,
        local_ip: Option<IpAddr>,
        ecn: Option<EcnCodepoint>,
        bytes: BytesMut,
        waited: bool,
    ) {
        self.answer.clear();
        let len = bytes.len();
        match self.proto.handle(now, remote, local_ip, ecn, bytes, &mut self.answer) {
            Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                let Some(connection) = self.connection(handle.0) else { return };
                if waited || !connection.is_handshaking() {
                    return self.pass_on(handle.0, len, event);
                }
                let place = connection.place;
                if !self.strangers.push(len, Waiting::Step { place, bytes: len, event }) {
                    self.counters().strangers_dropped.inc();
                }
            }
            Some(DatagramEvent::NewConnection(incoming)) => self.decide(now, incoming),
            Some(DatagramEvent::Response(transmit)) => self.queue_answer(transmit),
            None => {}
        }
    }

    fn pass_on(&mut self, index: usize, bytes: usize, event: ConnectionEvent) {
        if let Some(connection) = self.connection(index) {
            connection.note_datagram(bytes);
            connection.quic.handle_event(event);
            self.enqueue(index);
        }
    }

    /// Takes a connection, has it show its address, or refuses it.
    fn decide(&mut self, now: Instant, incoming: Incoming) {
        self.answer.clear();
        let handshakes = self.shared.handshaking.get();
        let handshakes_max = HANDSHAKES_MAX.max(self.shared.settings.retry_above);
        let refused =
            if self.count >= self.shared.limits.connections_max || handshakes >= handshakes_max {
                Some(Reason::TooMany)
            } else {
                self.shared.memory.is_full().then_some(Reason::Memory)
            };
        if let Some(reason) = refused {
            self.shared.metrics.count_closed(reason);
            let transmit = self.proto.refuse(incoming, &mut self.answer);
            return self.queue_answer(transmit);
        }
        if self.drain.is_started() {
            let transmit = self.proto.refuse(incoming, &mut self.answer);
            return self.queue_answer(transmit);
        }
        let crowded =
            handshakes >= self.shared.settings.retry_above || self.shared.memory.is_crowded();
        if crowded && !incoming.remote_address_validated() {
            self.counters().retries.inc();
            self.for_retry.set(true);
            let retry = self.proto.retry(incoming, &mut self.answer);
            self.for_retry.set(false);
            // It fails only for one that has been asked already, which is validated.
            if let Ok(transmit) = retry {
                self.queue_answer(transmit);
            }
            return;
        }
        match self.proto.accept(incoming, now, &mut self.answer, None) {
            Ok((handle, quic)) => self.add(now, handle, quic),
            Err(error) => {
                tracing::debug!(error = %error.cause, "connection not accepted");
                self.shared.metrics.count_closed(Reason::Handshake);
                if let Some(transmit) = error.response {
                    self.queue_answer(transmit);
                }
            }
        }
    }

    fn add(&mut self, now: Instant, handle: ConnectionHandle, quic: quinn_proto::Connection) {
        let index = handle.0;
        if self.connections.len() <= index {
            self.connections.resize_with(index + 1, || None);
        }
        assert!(self.connections[index].is_none(), "a handle is given once");
        self.generation += 1;
        self.count += 1;
        self.accepted.inc();
        let connected = self.drain.count_connection();
        let place = (index, self.generation);
        let connection = Connection::new(quic, self.shared.clone(), place, now, connected);
        self.connections[index] = Some(Box::new(connection));
        self.enqueue(index);
    }

    fn queue_answer(&mut self, transmit: Transmit) {
        if self.answers.len() < ANSWERS_MAX {
            self.answers.push_back((transmit, self.answer.clone()));
        }
    }

    fn connection(&mut self, index: usize) -> Option<&mut Connection<H>> {
        self.connections.get_mut(index)?.as_deref_mut()
    }

    /// Gives a connection its turn.
    fn enqueue(&mut self, index: usize) {
        if let Some(connection) = self.connections.get_mut(index).and_then(Option::as_mut)
            && !connection.queued
        {
            connection.queued = true;
            self.queue.push_back(index);
        }
    }

    fn fire_timeouts(&mut self, now: Instant) -> bool {
        for fired in 0..TIMEOUTS_PER_TURN {
            // One in any case: losses are found by timeouts.
            if fired > 0 && self.queue.len() >= TIMEOUTS_PER_TURN {
                break;
            }
            let Some(index) = self.timeouts.pop_due(now) else { return fired > 0 };
            self.enqueue(index);
        }
        true
    }

    /// Passes on what was woken.
    fn take_wakes(&mut self, now: Instant) {
        while let Some(target) = self.shared.wakes.pop() {
            if target.connection == NOBODY {
                self.look_at_drain(now);
            } else if let Some(connection) = self.connection(target.connection)
                && connection.place.1 == target.generation
            {
                connection.wake(target.slot);
                self.enqueue(target.connection);
            }
        }
    }

    /// Retires all connections when the end has begun.
    fn look_at_drain(&mut self, now: Instant) {
        let Some(watcher) = &mut self.drained else { return };
        let waker = self.shared.wakes.waker(NOBODY, 0, 0);
        if Pin::new(watcher).poll(&mut Context::from_waker(&waker)).is_pending() {
            return;
        }
        self.drained = None;
        for index in 0..self.connections.len() {
            if let Some(connection) = self.connection(index) {
                connection.retire(now);
                self.enqueue(index);
            }
        }
    }

    /// What to send next, of whichever connection has its turn.
    fn next(&mut self, now: Instant, udp: &Udp, contents: &mut Vec<u8>) -> Option<Transmit> {
        if let Some((transmit, answer)) = self.answers.pop_front() {
            contents.extend_from_slice(&answer);
            return Some(transmit);
        }
        loop {
            let (index, sent) = match self.sending.take() {
                Some(sending) => sending,
                None => {
                    let index = self.queue.pop_front()?;
                    if !self.drive(now, index) {
                        continue;
                    }
                    (index, 0)
                }
            };
            if sent >= SENDS_IN_A_ROW_MAX {
                self.enqueue(index);
                continue;
            }
            let Some(connection) = self.connection(index) else { continue };
            let segments = udp.segments_max(connection.quic.current_mtu());
            if let Some(transmit) = connection.quic.poll_transmit(now, segments, contents) {
                self.sending = Some((index, sent + 1));
                return Some(transmit);
            }
            let (quic, own) = (connection.quic.poll_timeout(), connection.wants_turn_at);
            let due = quic.into_iter().chain(own).min();
            self.timeouts.set(index, due);
        }
    }

    /// Lets a connection do what there is to do; false when it is over.
    fn drive(&mut self, now: Instant, index: usize) -> bool {
        let Self { connections, proto, .. } = self;
        let Some(connection) = connections.get_mut(index).and_then(Option::as_deref_mut) else {
            return false;
        };
        connection.queued = false;
        if connection.quic.poll_timeout().is_some_and(|timeout| timeout <= now) {
            connection.quic.handle_timeout(now);
        }
        let handle = ConnectionHandle(index);
        while let Some(event) = connection.quic.poll_endpoint_events() {
            if let Some(event) = proto.handle_event(handle, event) {
                connection.quic.handle_event(event);
            }
        }
        connection.work(now);
        if !connection.quic.is_drained() {
            return true;
        }
        // What it still has to say is that it is over.
        while let Some(event) = connection.quic.poll_endpoint_events() {
            let _ = proto.handle_event(handle, event);
        }
        self.timeouts.set(index, None);
        self.connections[index] = None;
        self.count -= 1;
        false
    }

    fn count_sent(&self, transmit: &Transmit) {
        let segment = transmit.segment_size.unwrap_or(transmit.size).max(1);
        self.counters().sends.inc();
        self.counters().sent_datagrams.inc_by(transmit.size.div_ceil(segment) as u64);
        self.counters().sent_bytes.inc_by(transmit.size as u64);
    }
}
