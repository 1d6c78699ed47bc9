//! One connection: QUIC's state machine (quinn-proto's), the protocol that runs on it, and its watch.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrider_http3::HeadMemo;
use prometheus_client::metrics::gauge::Gauge;
use quinn_proto::crypto::rustls::HandshakeData;
use quinn_proto::{Event, StreamEvent};

use super::config::{self, ALPN_NATIVE, QuicSettings, UNI_STREAMS_MAX, UPLOAD_WINDOW_BYTES};
use super::http3::Http3;
use super::line::{Ending, Line};
use super::memory::{CONNECTION_BYTES, HANDSHAKE_BYTES, Memory, REQUEST_BYTES};
use super::native::Native;
use super::rate::Rate;
use super::wake::Wakes;
use crate::drain::Connected;
use crate::limits::Limits;
use crate::metrics::{Reason, TransportMetrics};
use crate::peer::Protocol;
use crate::pins::PinBudget;
use crate::server::Handler;
use crate::watch::{Observation, Verdict, Watch};

/// Addresses that a client may come from a second, averaged over five. Each is validated, and gets the whole
/// state of a path.
const MIGRATIONS_PER_SECOND_MAX: u32 = 4;

/// What all connections of one endpoint share.
pub(crate) struct Shared<H> {
    pub(crate) handler: Rc<H>,
    pub(crate) limits: Limits,
    pub(crate) settings: QuicSettings,
    pub(crate) pins: PinBudget,
    pub(crate) metrics: TransportMetrics,
    pub(crate) open: Gauge,
    pub(crate) wakes: Arc<Wakes>,
    pub(crate) memory: Rc<Memory>,
    /// Handshakes under way.
    pub(crate) handshaking: Cell<usize>,
    /// Windows that are given to uploads, in bytes.
    pub(crate) upload_bytes: Cell<usize>,
    /// Which member of the fleet a name in a certificate is, where certificates are asked for.
    pub(crate) member_of: Option<fn(&str) -> Option<u64>>,
    /// Requests of HTTP/3 that come again in the same words.
    pub(crate) heads: HeadMemo,
}

/// What the requests of a connection hold.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Held {
    pub(crate) requests: usize,
    /// Bytes of requests that are not whole.
    pub(crate) partial_bytes: usize,
    /// What waits for handlers.
    pub(crate) uploaded_bytes: usize,
    /// The window for uploads was given.
    pub(crate) uploads_window: bool,
}

/// The protocol on a connection: what its streams mean. Once the line is closed, nothing but
/// [`Session::let_go`] is called.
pub(crate) trait Session<H: Handler> {
    /// Something has happened to a stream.
    fn on_stream(&mut self, line: &mut Line<H>, now: Instant, event: StreamEvent);

    /// A slot was woken.
    fn on_wake(&mut self, line: &mut Line<H>, now: Instant, slot: usize);

    /// Writes what belongs to no request.
    fn write_control(&mut self, _line: &mut Line<H>) {}

    /// No more requests than those that have begun.
    fn retire(&mut self);

    /// How long the client needs to learn that it is retired, once it has all of its answers.
    fn farewell(&self, line: &Line<H>) -> Duration;

    /// Whether there are requests whose heads are not whole.
    fn head_started(&self) -> bool;

    /// Whether the client has all of the answers. `O(n)`.
    fn has_answered_all(&self) -> bool;

    /// What its requests hold.
    fn held(&self) -> Held;

    /// Drops all that it has of others.
    fn let_go(&mut self, line: &mut Line<H>);
}

/// A connection of this shard.
pub(crate) struct Connection<H: Handler> {
    line: Line<H>,
    /// `None` until the client has said what it speaks, and when all is over.
    session: Option<Box<dyn Session<H>>>,
    watch: Watch,
    migrations: Rate,
    /// What it has sent and nobody could read yet.
    unreadable_bytes: usize,
    accepted_at: Instant,
    retired: Option<(Instant, Ending)>,
    woken: Vec<usize>,
    /// It stands in the endpoint's queue.
    pub(crate) queued: bool,
    /// When its own clocks want it to have a turn though nothing happens.
    pub(crate) wants_turn_at: Option<Instant>,
}

impl<H: Handler> Connection<H> {
    /// `place`: its index in the endpoint's table, and which connection with that index it is.
    pub(crate) fn new(
        quic: quinn_proto::Connection,
        shared: Rc<Shared<H>>,
        place: (usize, u64),
        now: Instant,
        connected: Connected,
    ) -> Self {
        Self {
            line: Line::new(quic, shared, place, now, connected),
            session: None,
            watch: Watch::new(now),
            migrations: Rate::new(now),
            unreadable_bytes: 0,
            accepted_at: now,
            retired: None,
            woken: Vec::new(),
            queued: false,
            wants_turn_at: None,
        }
    }

    pub(crate) fn quic(&mut self) -> &mut quinn_proto::Connection {
        &mut self.line.quic
    }

    /// Which of the connections with its index it is.
    pub(crate) fn generation(&self) -> u64 {
        self.line.place.1
    }

    /// Whether the handshake is under way.
    pub(crate) fn is_handshaking(&self) -> bool {
        self.line.handshaking
    }

    pub(crate) fn place(&self) -> (usize, u64) {
        self.line.place
    }

    /// Notes that a datagram has come for it.
    pub(crate) fn note_datagram(&mut self, bytes: usize) {
        self.line.unread.note_datagram(bytes);
    }

    /// Notes that a slot was woken.
    pub(crate) fn wake(&mut self, slot: usize) {
        self.woken.push(slot);
    }

    /// Does what there is to do.
    pub(crate) fn work(&mut self, now: Instant) {
        while let Some(event) = self.line.quic.poll() {
            self.on_event(now, event);
        }
        while let Some(slot) = self.woken.pop() {
            if let Some(session) = &mut self.session
                && !self.line.closed
            {
                session.on_wake(&mut self.line, now, slot);
            }
        }
        self.wants_turn_at = None;
        if !self.line.closed {
            if let Some(session) = &mut self.session {
                session.write_control(&mut self.line);
            }
            self.wants_turn_at = self.check(now);
        }
        self.count(now);
        if self.line.closed {
            self.let_go();
        }
    }

    /// Counts what it holds, and ends it when it sends more of what cannot be read while there is no room.
    fn count(&mut self, now: Instant) {
        let held = match &self.session {
            Some(session) if !self.line.closed => session.held(),
            _ => Held::default(),
        };
        let before = self.unreadable_bytes;
        self.unreadable_bytes = if self.line.closed { 0 } else { self.unreadable_bytes(&held) };
        if self.unreadable_bytes > before && self.line.shared.memory.is_full() {
            self.line.close(now, Ending::Overload, "memory", Reason::Memory);
            self.unreadable_bytes = 0;
        }
        let handshake = if self.line.handshaking { HANDSHAKE_BYTES } else { 0 };
        let window = if held.uploads_window { UPLOAD_WINDOW_BYTES as usize } else { 0 };
        self.line.charge.set(
            CONNECTION_BYTES
                + handshake
                + window
                + held.requests * REQUEST_BYTES
                + held.uploaded_bytes
                + self.line.pins.copied_bytes()
                + self.unreadable_bytes,
        );
    }

    /// Requests that are not whole, and what lies behind gaps.
    fn unreadable_bytes(&mut self, held: &Held) -> usize {
        let streams = held.requests + UNI_STREAMS_MAX as usize;
        let window = config::window_bytes(held.uploads_window);
        let Line { quic, unread, .. } = &mut self.line;
        held.partial_bytes + unread.bound(|| quic.stats().frame_rx.stream, streams, window)
    }

    fn on_event(&mut self, now: Instant, event: Event) {
        match event {
            // It comes before anything else, early data included.
            Event::HandshakeDataReady => self.begin_session(),
            Event::Connected => {
                self.line.end_handshake();
                self.line.learn_member();
                let metrics = &self.line.shared.metrics.quic;
                metrics.handshakes.inc();
                if self.line.quic.has_0rtt() {
                    metrics.early_data_accepted.inc();
                }
            }
            Event::ConnectionLost { reason } => self.lost(&reason),
            Event::Stream(event) => {
                if let Some(session) = &mut self.session
                    && !self.line.closed
                {
                    session.on_stream(&mut self.line, now, event);
                }
            }
            Event::DatagramReceived | Event::DatagramsUnblocked => {}
        }
    }

    /// Speaks what the client has asked for with TLS.
    fn begin_session(&mut self) {
        if self.session.is_some() || self.line.closed {
            return;
        }
        let data = self.line.quic.crypto_session().handshake_data();
        let data = data.and_then(|data| data.downcast::<HandshakeData>().ok());
        let alpn = data.and_then(|data| data.protocol);
        let mut session: Box<dyn Session<H>> = if alpn.as_deref() == Some(ALPN_NATIVE) {
            self.line.protocol = Some(Protocol::Native);
            Box::new(Native::new())
        } else {
            self.line.protocol = Some(Protocol::Http3);
            Box::new(Http3::new(&self.line.shared))
        };
        if self.retired.is_some() {
            session.retire();
        }
        self.session = Some(session);
    }

    /// The server goes away: no more requests than those that have begun.
    pub(crate) fn retire(&mut self, now: Instant) {
        self.retire_for(now, Ending::Leaving);
    }

    fn retire_for(&mut self, now: Instant, why: Ending) {
        if self.retired.is_none() && !self.line.closed {
            self.retired = Some((now, why));
            if let Some(session) = &mut self.session {
                session.retire();
            }
        }
    }

    /// Looks at the clocks.
    fn check(&mut self, now: Instant) -> Option<Instant> {
        let Self { line, session, .. } = self;
        let Some(session) = session.as_mut().filter(|_| !line.handshaking) else {
            let until = self.accepted_at + line.shared.limits.handshake_time;
            if now >= until {
                line.close(now, Ending::Done, "handshake", Reason::HandshakeTime);
                return None;
            }
            return Some(until);
        };
        if line.quic.remote_address() != line.address {
            line.address = line.quic.remote_address();
            line.shared.metrics.quic.migrations.inc();
            if self.migrations.note(now, MIGRATIONS_PER_SECOND_MAX) {
                line.close(now, Ending::Overload, "too many migrations", Reason::Migrations);
                return None;
            }
        }
        if let Some((retired_at, why)) = self.retired
            && session.has_answered_all()
        {
            let until = retired_at + session.farewell(line);
            if now >= until {
                line.end(now, why, "");
                return None;
            }
            return Some(until);
        }
        let head_started = session.head_started();
        line.activity.head_started.set(head_started);
        let held = line.pins.any_held();
        let seen = Observation {
            requests: line.activity.requests.get(),
            in_flight: line.activity.in_flight.get() > 0,
            head_started,
            output_waits: held,
            sent_bytes: line.activity.sent_bytes.get(),
            closing: false,
            pressed: held && (line.pins.is_under_pressure() || line.shared.memory.is_full()),
        };
        match self.watch.check(now, &line.shared.limits, seen) {
            Verdict::Keep(until) => until,
            Verdict::Retire => {
                self.retire_for(now, Ending::Done);
                if let Some(session) = &mut self.session {
                    session.write_control(&mut self.line);
                }
                Some(now)
            }
            Verdict::Close(reason) => {
                line.close(now, Ending::Overload, reason.label(), reason);
                None
            }
            Verdict::Leave => unreachable!("a connection over QUIC does not linger"),
        }
    }

    /// Ends the connection, since the server stops.
    pub(crate) fn stop(&mut self, now: Instant) {
        self.line.end(now, Ending::Leaving, "the server stops");
        self.let_go();
    }

    /// The other end has gone, or broken the protocol.
    fn lost(&mut self, reason: &quinn_proto::ConnectionError) {
        use quinn_proto::ConnectionError as Lost;
        if self.line.closed {
            return;
        }
        let counted = match reason {
            Lost::TimedOut if self.line.handshaking => Some(Reason::HandshakeTime),
            Lost::TimedOut => Some(Reason::Idle),
            Lost::ApplicationClosed(_) | Lost::ConnectionClosed(_) | Lost::LocallyClosed => None,
            _ if self.line.handshaking => Some(Reason::Handshake),
            _ => Some(Reason::Protocol),
        };
        if let Some(reason) = counted {
            self.line.shared.metrics.count_closed(reason);
        }
        tracing::debug!(%reason, address = %self.line.address, "connection lost");
        self.let_go();
    }

    /// Drops all that it has of others: only the client is to be told.
    fn let_go(&mut self) {
        self.line.let_go();
        if let Some(mut session) = self.session.take() {
            session.let_go(&mut self.line);
        }
    }
}

impl<H: Handler> Drop for Connection<H> {
    fn drop(&mut self) {
        self.let_go();
        let shared = &self.line.shared;
        shared.open.dec();
        let lost = self.line.quic.stats().path.lost_packets;
        shared.metrics.quic.lost_packets.inc_by(lost);
    }
}
