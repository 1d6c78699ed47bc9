//! The connections of one shard: which one a datagram is for, and whose turn it is. Everything of an endpoint
//! but its socket.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Context;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use outrider_metrics::Counter;
use quinn_proto::{
    ConnectionEvent, ConnectionHandle, DatagramEvent, EcnCodepoint, Incoming, Transmit,
};

use super::cid::{self, CidKey, ForRetry};
use super::connection::{Connection, Shared};
use super::endpoint::{Forward, Misrouted};
use super::metrics::QuicMetrics;
use super::socket::Received;
use super::strangers::{self, Strangers};
use super::timeouts::Timeouts;
use crate::drain::{Drain, Watcher};
use crate::metrics::Reason;
use crate::server::Handler;

/// Batches sent in a row for one connection.
const SENDS_IN_A_ROW_MAX: usize = 4;

/// Answers to datagrams that belong to no connection, which wait for the socket; more are dropped.
const ANSWERS_MAX: usize = 256;

/// How long a turn is given to clients without a connection; one datagram of theirs in any case. The steps of a
/// handshake take up to 0.2 ms, all else some microseconds.
const STRANGERS_TIME: Duration = Duration::from_micros(150);

/// Timeouts that fire in a turn, and fewer while so many connections have something to do: a thousand that
/// began together are not to stand before one whose client asks for something.
const TIMEOUTS_PER_TURN: usize = 8;

/// Handshakes under way on a shard, of clients that have shown their addresses; more are refused.
const HANDSHAKES_MAX: usize = 1024;

/// Stands for the endpoint itself where a waker names a connection.
const NOBODY: usize = usize::MAX;

/// Which datagrams are this shard's, and what becomes of the others.
pub(crate) struct Route {
    pub(crate) shard: u8,
    pub(crate) key: CidKey,
    pub(crate) for_retry: ForRetry,
    /// They are dropped where there is none.
    pub(crate) forward: Option<Box<dyn Forward>>,
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
pub(crate) struct Core<H: Handler> {
    route: Route,
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
    drain: Drain,
    drained: Option<Watcher>,
    accepted: Counter,
    strangers: Strangers<Waiting>,
    /// Answers to datagrams that belong to no connection.
    answers: VecDeque<(Transmit, Vec<u8>)>,
    answer: Vec<u8>,
}

impl<H: Handler> Core<H> {
    pub(crate) fn new(
        route: Route,
        proto: quinn_proto::Endpoint,
        shared: Rc<Shared<H>>,
        drain: Drain,
        accepted: Counter,
    ) -> Self {
        let mut core = Self {
            route,
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
            strangers: Strangers::default(),
            answers: VecDeque::new(),
            answer: Vec::new(),
            shared,
        };
        core.look_at_drain(Instant::now());
        core
    }

    /// When it has something to do though nothing comes in.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.timeouts.next()
    }

    /// Ends all connections, and says so to their clients.
    pub(crate) fn stop(
        &mut self,
        now: Instant,
        contents: &mut Vec<u8>,
        mut send: impl FnMut(&Transmit, &[u8]),
    ) {
        for connection in self.connections.iter_mut().flatten() {
            connection.stop(now);
            contents.clear();
            if let Some(transmit) = connection.quic().poll_transmit(now, 1, contents) {
                send(&transmit, contents);
            }
        }
    }

    pub(crate) fn counters(&self) -> &QuicMetrics {
        &self.shared.metrics.quic
    }

    pub(crate) fn has_work(&self) -> bool {
        !self.queue.is_empty()
            || self.sending.is_some()
            || !self.answers.is_empty()
            || !self.shared.wakes.is_empty()
    }

    /// A datagram from the socket.
    pub(crate) fn take(&mut self, now: Instant, datagram: &Received<'_>) {
        self.counters().received_datagrams.inc();
        self.counters().received_bytes.inc_by(datagram.bytes.len() as u64);
        let Received { remote, local_ip, ecn, .. } = *datagram;
        // A copy: what is kept of a datagram must not keep the room for a whole batch.
        let bytes = BytesMut::from(datagram.bytes);
        if let Some(shard) = self.shard_of(&bytes) {
            self.counters().misrouted_datagrams.inc();
            if let Some(forward) = &self.route.forward {
                let ecn = ecn.map_or(0, |ecn| ecn as u8);
                forward.forward(shard, Misrouted { remote, local_ip, ecn, bytes });
            }
            return;
        }
        let ecn = ecn.map_or(0, |ecn| ecn as u8);
        self.deliver(now, Misrouted { remote, local_ip, ecn, bytes });
    }

    /// A datagram for this shard.
    pub(crate) fn deliver(&mut self, now: Instant, datagram: Misrouted) {
        if self.is_strange(&datagram.bytes) {
            return self.keep_stranger(datagram);
        }
        self.handle(now, datagram, false);
    }

    /// Whether a datagram goes to no connection: its destination is not an ID that this process has made, or
    /// one that it has made for a Retry.
    fn is_strange(&self, datagram: &[u8]) -> bool {
        strangers::has_long_header(datagram)
            && cid::destination(datagram)
                .is_none_or(|cid| cid::is_of_retry(cid) || self.route.key.shard_of(cid).is_none())
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
    pub(crate) fn meet_strangers(&mut self, now: Instant) -> bool {
        let mut met = false;
        while let Some(waiting) = self.strangers.pop() {
            met = true;
            match waiting {
                Waiting::Datagram(datagram) => self.handle(now, datagram, true),
                Waiting::Step { place, bytes, event } => {
                    let connection = self.connection(place.0);
                    if connection.is_some_and(|connection| connection.place() == place) {
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
        if destination.first() == Some(&self.route.shard) {
            return None;
        }
        let shard = self.route.key.shard_of(destination)?;
        Some(usize::from(shard))
    }

    /// Has a datagram handled. What is a part of a handshake, and has not `waited` for that, waits.
    fn handle(&mut self, now: Instant, datagram: Misrouted, waited: bool) {
        let Misrouted { remote, local_ip, ecn, bytes } = datagram;
        let (ecn, len) = (EcnCodepoint::from_bits(ecn), bytes.len());
        self.answer.clear();
        match self.proto.handle(now, remote, local_ip, ecn, bytes, &mut self.answer) {
            Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                let Some(connection) = self.connection(handle.0) else { return };
                if waited || !connection.is_handshaking() {
                    return self.pass_on(handle.0, len, event);
                }
                let place = connection.place();
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
            connection.quic().handle_event(event);
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
        }
        if refused.is_some() || self.drain.is_started() {
            let transmit = self.proto.refuse(incoming, &mut self.answer);
            return self.queue_answer(transmit);
        }
        let crowded =
            handshakes >= self.shared.settings.retry_above || self.shared.memory.is_crowded();
        if crowded && !incoming.remote_address_validated() {
            self.counters().retries.inc();
            self.route.for_retry.set(true);
            let retry = self.proto.retry(incoming, &mut self.answer);
            self.route.for_retry.set(false);
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

    pub(crate) fn fire_timeouts(&mut self, now: Instant) -> bool {
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
    pub(crate) fn take_wakes(&mut self, now: Instant) {
        while let Some(target) = self.shared.wakes.pop() {
            if target.connection == NOBODY {
                self.look_at_drain(now);
            } else if let Some(connection) = self.connection(target.connection)
                && connection.generation() == target.generation
            {
                connection.wake(target.slot);
                self.enqueue(target.connection);
            }
        }
    }

    /// Retires all connections when the end has begun.
    pub(crate) fn look_at_drain(&mut self, now: Instant) {
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
    pub(crate) fn next(
        &mut self,
        now: Instant,
        segments_max: impl Fn(u16) -> usize,
        contents: &mut Vec<u8>,
    ) -> Option<Transmit> {
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
            let segments = segments_max(connection.quic().current_mtu());
            if let Some(transmit) = connection.quic().poll_transmit(now, segments, contents) {
                self.sending = Some((index, sent + 1));
                return Some(transmit);
            }
            let (quic, own) = (connection.quic().poll_timeout(), connection.wants_turn_at);
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
        if connection.quic().poll_timeout().is_some_and(|timeout| timeout <= now) {
            connection.quic().handle_timeout(now);
        }
        let handle = ConnectionHandle(index);
        while let Some(event) = connection.quic().poll_endpoint_events() {
            if let Some(event) = proto.handle_event(handle, event) {
                connection.quic().handle_event(event);
            }
        }
        connection.work(now);
        if !connection.quic().is_drained() {
            return true;
        }
        // What it still has to say is that it is over.
        while let Some(event) = connection.quic().poll_endpoint_events() {
            let _ = proto.handle_event(handle, event);
        }
        self.timeouts.set(index, None);
        self.connections[index] = None;
        self.count -= 1;
        false
    }

    pub(crate) fn count_sent(&self, transmit: &Transmit) {
        let segment = transmit.segment_size.unwrap_or(transmit.size).max(1);
        self.counters().sends.inc();
        self.counters().sent_datagrams.inc_by(transmit.size.div_ceil(segment) as u64);
        self.counters().sent_bytes.inc_by(transmit.size as u64);
    }
}
