//! One connection: QUIC's state machine (quinn-proto's), HTTP/3's, its requests, and its watch.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Context;
use std::time::{Duration, Instant};

use bytes::Bytes;
use outrider_http3::{self as http3, Code, ConnectionError};
use prometheus_client::metrics::gauge::Gauge;
use quinn_proto::{Dir, Event, ReadError, StreamEvent, StreamId, VarInt};

use super::config::{self, QuicSettings, UNI_STREAMS_MAX, UPLOAD_WINDOW_BYTES};
use super::memory::{CONNECTION_BYTES, Charge, HANDSHAKE_BYTES, Memory, REQUEST_BYTES, Unread};
use super::rate::Rate;
use super::request::{Request, Step, code};
use super::slots::Slots;
use super::upload::Pipe;
use super::wake::Wakes;
use crate::activity::{Activity, InFlight};
use crate::body::{BodyError, RequestBody};
use crate::drain::Connected;
use crate::limits::Limits;
use crate::metrics::{Reason, TransportMetrics};
use crate::peer::{Peer, Protocol};
use crate::pins::{ConnectionPins, PinBudget};
use crate::server::Handler;
use crate::watch::{Observation, Verdict, Watch};

/// How long a GOAWAY may take to arrive before the connection is closed behind it; at most.
const GOAWAY_TIME_MAX: Duration = Duration::from_millis(500);

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
}

/// A connection of this shard.
pub(crate) struct Connection<H: Handler> {
    pub(crate) quic: quinn_proto::Connection,
    shared: Rc<Shared<H>>,
    /// Its index in the endpoint's table, and which connection with that index it is.
    pub(crate) place: (usize, u64),
    http: http3::Connection,
    /// Our control stream, and what it has not taken yet.
    control: Option<StreamId>,
    control_out: Vec<Bytes>,
    requests: Slots<Request<H::Body>>,
    /// Requests whose heads are not whole.
    untold: usize,
    uploads: usize,
    uploads_window: bool,
    activity: Rc<Activity>,
    pins: ConnectionPins,
    watch: Watch,
    resets: Rate,
    migrations: Rate,
    /// What it holds, as it is counted; of it what it has sent and nobody could read yet.
    charge: Charge,
    unreadable_bytes: usize,
    unread: Unread,
    /// What waits for handlers, of all its requests.
    uploaded_bytes: Rc<Cell<usize>>,
    accepted_at: Instant,
    address: SocketAddr,
    handshaking: bool,
    retired_at: Option<Instant>,
    /// It is closed, by either side: what is left is to tell the client so.
    closed: bool,
    woken: Vec<usize>,
    chunks: Vec<Bytes>,
    connected: Option<Connected>,
    /// It stands in the endpoint's queue.
    pub(crate) queued: bool,
    /// When its own clocks want it to have a turn though nothing happens.
    pub(crate) wants_turn_at: Option<Instant>,
}

/// What there was to read of a stream.
enum End {
    /// More is to come.
    Open,
    Finished,
    Reset(VarInt),
}

impl<H: Handler> Connection<H> {
    pub(crate) fn new(
        quic: quinn_proto::Connection,
        shared: Rc<Shared<H>>,
        place: (usize, u64),
        now: Instant,
        connected: Connected,
    ) -> Self {
        let limits = http3::Limits {
            field_section_bytes_max: shared.limits.header_bytes_max as u64,
            requests_max: shared.limits.streams_max as usize,
            ..http3::Limits::default()
        };
        let http = http3::Connection::new(limits);
        let activity = Activity::new(Protocol::Http3);
        // The handshake has a clock of its own.
        activity.head_started.set(false);
        shared.handshaking.set(shared.handshaking.get() + 1);
        shared.open.inc();
        let charge = Charge::new(&shared.memory, CONNECTION_BYTES + HANDSHAKE_BYTES);
        Self {
            address: quic.remote_address(),
            control_out: vec![http.control_preface()],
            http,
            pins: shared.pins.connection(),
            quic,
            shared,
            place,
            control: None,
            requests: Slots::default(),
            untold: 0,
            uploads: 0,
            uploads_window: false,
            activity,
            watch: Watch::new(now),
            resets: Rate::new(now),
            migrations: Rate::new(now),
            charge,
            unreadable_bytes: 0,
            unread: Unread::default(),
            uploaded_bytes: Rc::default(),
            accepted_at: now,
            handshaking: true,
            retired_at: None,
            closed: false,
            woken: Vec::new(),
            chunks: Vec::new(),
            connected: Some(connected),
            queued: false,
            wants_turn_at: None,
        }
    }

    /// Whether the handshake is under way.
    pub(crate) fn is_handshaking(&self) -> bool {
        self.handshaking
    }

    /// Notes that a datagram has come for it.
    pub(crate) fn note_datagram(&mut self, bytes: usize) {
        self.unread.note_datagram(bytes);
    }

    /// Notes that a slot was woken.
    pub(crate) fn wake(&mut self, slot: usize) {
        self.woken.push(slot);
    }

    /// Does what there is to do.
    pub(crate) fn work(&mut self, now: Instant) {
        while let Some(event) = self.quic.poll() {
            self.on_event(now, event);
        }
        while let Some(slot) = self.woken.pop() {
            if let Some(stream) = self.requests.stream_in(slot) {
                self.read_request(now, stream);
                self.advance(now, stream);
            }
        }
        self.wants_turn_at = None;
        if !self.closed {
            self.write_control();
            self.wants_turn_at = self.check(now);
        }
        self.count(now);
    }

    /// Counts what it holds, and ends it when it sends more of what cannot be read while there is no room.
    fn count(&mut self, now: Instant) {
        let before = self.unreadable_bytes;
        self.unreadable_bytes = if self.closed { 0 } else { self.unreadable_bytes() };
        if self.unreadable_bytes > before && self.shared.memory.is_full() {
            self.close(now, Code::H3_EXCESSIVE_LOAD, "memory", Reason::Memory);
            self.unreadable_bytes = 0;
        }
        let handshake = if self.handshaking { HANDSHAKE_BYTES } else { 0 };
        let window = if self.uploads_window { UPLOAD_WINDOW_BYTES as usize } else { 0 };
        self.charge.set(
            CONNECTION_BYTES
                + handshake
                + window
                + self.requests.len() * REQUEST_BYTES
                + self.uploaded_bytes.get()
                + self.pins.copied_bytes()
                + self.unreadable_bytes,
        );
    }

    /// Heads that are not whole, and what lies behind gaps.
    fn unreadable_bytes(&mut self) -> usize {
        let streams = self.requests.len() + UNI_STREAMS_MAX as usize;
        let window = config::window_bytes(self.uploads_window);
        let frames = || self.quic.stats().frame_rx.stream;
        self.http.load().1 + self.unread.bound(frames, streams, window)
    }

    fn on_event(&mut self, now: Instant, event: Event) {
        match event {
            Event::Connected => {
                self.end_handshake();
                self.shared.metrics.quic.handshakes.inc();
                if self.quic.has_0rtt() {
                    self.shared.metrics.quic.early_data_accepted.inc();
                }
            }
            Event::ConnectionLost { reason } => self.lost(&reason),
            Event::Stream(event) if !self.closed => self.on_stream(now, event),
            Event::Stream(_)
            | Event::HandshakeDataReady
            | Event::DatagramReceived
            | Event::DatagramsUnblocked => {}
        }
    }

    fn on_stream(&mut self, now: Instant, event: StreamEvent) {
        match event {
            StreamEvent::Opened { dir } => {
                while let Some(id) = self.quic.streams().accept(dir) {
                    match dir {
                        Dir::Bi => {
                            let stream = number(id);
                            let wakes = &self.shared.wakes;
                            self.requests.insert(stream, Request::new(), wakes, self.place);
                            self.untold += 1;
                            self.read_request(now, stream);
                            self.advance(now, stream);
                        }
                        Dir::Uni => self.read_uni(now, id),
                    }
                }
            }
            StreamEvent::Readable { id } if id.dir() == Dir::Bi => {
                self.read_request(now, number(id));
                self.advance(now, number(id));
            }
            StreamEvent::Readable { id } => self.read_uni(now, id),
            StreamEvent::Writable { id } if id.dir() == Dir::Bi => self.advance(now, number(id)),
            StreamEvent::Finished { id } => self.arrived(number(id)),
            StreamEvent::Stopped { id, .. } if Some(id) == self.control => {
                self.fail(now, http3::Connection::control_stopped());
            }
            StreamEvent::Stopped { id, error_code } => {
                // What the client does not want any more is not sent again either.
                let _ = self.quic.send_stream(id).reset(error_code);
                self.give_up(now, number(id));
            }
            StreamEvent::Writable { .. } | StreamEvent::Available { .. } => {}
        }
    }

    /// Reads what a stream has, up to `room` bytes, into `self.chunks`.
    fn read_stream(&mut self, id: StreamId, room: usize) -> Option<End> {
        self.chunks.clear();
        let mut receiving = self.quic.recv_stream(id);
        let mut chunks = receiving.read(true).ok()?;
        let mut left = room;
        let mut frames = 0;
        let end = loop {
            if left == 0 {
                break End::Open;
            }
            match chunks.next(left) {
                Ok(Some(chunk)) => {
                    // Where there is no room for all of a frame, its rest is read later.
                    frames += usize::from(chunk.bytes.len() < left);
                    left -= chunk.bytes.len();
                    self.chunks.push(chunk.bytes);
                }
                Ok(None) => break End::Finished,
                Err(ReadError::Blocked) => break End::Open,
                Err(ReadError::Reset(code)) => break End::Reset(code),
            }
        };
        // Whether a window is to be told is seen when the connection is asked what to send.
        let _ = chunks.finalize();
        // The end of a stream often comes in a frame of its own.
        frames += usize::from(frames == 0 && matches!(end, End::Finished));
        self.unread.note_read(frames, room - left);
        Some(end)
    }

    /// Hands `self.chunks` to HTTP/3, one after the other, with what comes of each.
    fn put_in(&mut self, now: Instant, stream: u64, uni: bool, finished: bool) {
        let mut chunks = std::mem::take(&mut self.chunks);
        if finished && chunks.is_empty() {
            chunks.push(Bytes::new());
        }
        let last = chunks.len();
        for (index, chunk) in chunks.drain(..).enumerate() {
            let end = finished && index + 1 == last;
            let taken = if uni {
                self.http.on_uni_data(stream, chunk, end)
            } else {
                self.http.on_request_data(stream, chunk, end)
            };
            match taken {
                Ok(()) => self.take_events(now),
                Err(error) => self.fail(now, error),
            }
            if self.closed {
                break;
            }
        }
        chunks.clear();
        self.chunks = chunks;
    }

    fn read_uni(&mut self, now: Instant, id: StreamId) {
        let Some(end) = self.read_stream(id, usize::MAX) else { return };
        self.put_in(now, number(id), true, matches!(end, End::Finished));
        if let End::Reset(code) = end
            && !self.closed
        {
            self.on_reset(now, number(id), code);
        }
    }

    fn read_request(&mut self, now: Instant, stream: u64) {
        let Some((request, _)) = self.requests.get(stream) else { return };
        if request.received {
            return;
        }
        if let Some(pipe) = &request.upload
            && pipe.is_left()
        {
            if request.is_written() {
                self.read_rest(now, stream);
            }
            return;
        }
        let short = self.shared.memory.is_full();
        let room = request.upload.as_ref().map_or(usize::MAX, |pipe| pipe.room(short));
        if room == 0 {
            return;
        }
        let Some(end) = self.read_stream(id_of(stream), room) else { return };
        let finished = matches!(end, End::Finished);
        if !matches!(end, End::Open)
            && let Some((request, _)) = self.requests.get(stream)
        {
            request.received = true;
        }
        if finished || !self.chunks.is_empty() {
            self.put_in(now, stream, false, finished);
        }
        if let End::Reset(code) = end
            && !self.closed
        {
            self.on_reset(now, stream, code);
        }
    }

    /// What a client sends beside an answer that is written: the end of its side, which is waited for, or
    /// what nobody reads, and which it is told to stop.
    fn read_rest(&mut self, now: Instant, stream: u64) {
        let Some((request, _)) = self.requests.get(stream) else { return };
        if !request.lingers() {
            self.stop_receiving(stream);
            return;
        }
        // One byte is enough to know.
        match (self.read_stream(id_of(stream), 1), self.chunks.is_empty()) {
            (Some(End::Open), true) => {
                self.end_upload(stream, Ok(()));
                return;
            }
            (Some(End::Finished), true) => {
                if let Some((request, _)) = self.requests.get(stream) {
                    request.received = true;
                }
                self.put_in(now, stream, false, true);
            }
            _ => {
                self.chunks.clear();
                self.stop_receiving(stream);
            }
        }
        // Both sides are over: nothing comes for it any more.
        if self.requests.get(stream).is_some_and(|(request, _)| request.has_arrived()) {
            self.remove(stream);
        }
    }

    /// The client has all of an answer. Where its own side is still open, it is waited for without holding
    /// anything; it has as many of these as streams at most.
    fn arrived(&mut self, stream: u64) {
        match self.requests.get(stream) {
            Some((request, _)) if request.lingers() => request.arrived(),
            _ => self.remove(stream),
        }
    }

    fn on_reset(&mut self, now: Instant, stream: u64, code: VarInt) {
        match self.http.on_reset(stream, code.into_inner()) {
            Ok(()) => self.take_events(now),
            Err(error) => self.fail(now, error),
        }
    }

    fn take_events(&mut self, now: Instant) {
        while !self.closed
            && let Some(event) = self.http.poll_event()
        {
            match event {
                http3::Event::Request { stream, head, body_follows } => {
                    self.begin(stream, head, body_follows);
                }
                http3::Event::Refused { stream, status } => {
                    let Some((request, _)) = self.requests.get(stream) else { continue };
                    request.refuse(http3::response::encode_status(status));
                    self.untold -= 1;
                }
                http3::Event::Body { stream, data } => {
                    if let Some(pipe) = self.upload(stream) {
                        pipe.push(data);
                    }
                }
                http3::Event::BodyEnd { stream } => self.end_upload(stream, Ok(())),
                http3::Event::Failed { stream, error } => {
                    tracing::debug!(%error, address = %self.address, "request refused");
                    let id = id_of(stream);
                    // Both fail only for a side that is over.
                    let _ = self.quic.send_stream(id).reset(code(error.code));
                    let _ = self.quic.recv_stream(id).stop(code(error.code));
                    self.end_upload(stream, Err(BodyError::Cut(error.reason.into())));
                    self.remove(stream);
                }
                http3::Event::Reset { stream, .. } => {
                    let _ = self
                        .quic
                        .send_stream(id_of(stream))
                        .reset(code(Code::H3_REQUEST_CANCELLED));
                    self.give_up(now, stream);
                }
                http3::Event::Stop { stream, code: reason } => {
                    let _ = self.quic.recv_stream(id_of(stream)).stop(code(reason));
                }
                http3::Event::GoAway { .. } => {}
            }
        }
    }

    /// A request is whole but for its body.
    fn begin(&mut self, stream: u64, head: http::request::Parts, body_follows: bool) {
        let shared = self.shared.clone();
        shared.metrics.requests_of(Protocol::Http3).inc();
        let peer = Peer {
            address: SocketAddr::new(self.address.ip().to_canonical(), self.address.port()),
            secure: true,
            protocol: Protocol::Http3,
            early: self.quic.is_handshaking(),
        };
        let in_flight = InFlight::new(&self.activity);
        let Some((request, waker)) = self.requests.get(stream) else { return };
        self.untold -= 1;
        if !body_follows
            && self.pins.may_hold()
            && let Some(immediate) = shared.handler.immediate(&head, peer)
        {
            shared.metrics.quic.immediate_answers.inc();
            let hold = self.pins.hold(immediate.held_bytes);
            request.answer(immediate, hold, in_flight, id_of(stream), &mut self.quic);
            return;
        }
        if shared.memory.is_full() {
            shared.metrics.quic.requests_refused.inc();
            request.refuse(overloaded());
            return;
        }
        let body = if body_follows {
            let announced = head.headers.get(http::header::CONTENT_LENGTH);
            let announced = announced.and_then(|value| value.to_str().ok()?.parse().ok());
            let pipe = Pipe::new(announced, waker.clone(), self.uploaded_bytes.clone());
            request.upload = Some(pipe.clone());
            RequestBody::quic(pipe, &shared.limits)
        } else {
            RequestBody::empty(&shared.limits)
        };
        let head_only = head.method == http::Method::HEAD;
        let http = http::Request::from_parts(head, body);
        request.handle(shared.handler.clone().handle(http, peer), in_flight, head_only);
        if body_follows {
            self.uploads += 1;
            self.widen();
        }
    }

    /// Lets a client that sends bodies send more of them ahead, while the shard has room for that.
    fn widen(&mut self) {
        let more = UPLOAD_WINDOW_BYTES as usize;
        let given = self.shared.upload_bytes.get();
        if !self.uploads_window
            && !self.shared.memory.is_crowded()
            && given + more <= self.shared.settings.upload_bytes_max
        {
            self.uploads_window = true;
            self.shared.upload_bytes.set(given + more);
            self.quic.set_receive_window(UPLOAD_WINDOW_BYTES.into());
        }
    }

    fn narrow(&mut self) {
        if self.uploads_window {
            self.uploads_window = false;
            let given = self.shared.upload_bytes.get();
            self.shared.upload_bytes.set(given - UPLOAD_WINDOW_BYTES as usize);
            self.quic.set_receive_window(config::usual_window());
        }
    }

    fn upload(&mut self, stream: u64) -> Option<&Pipe> {
        self.requests.get(stream)?.0.upload.as_ref()
    }

    fn end_upload(&mut self, stream: u64, end: Result<(), BodyError>) {
        if let Some(pipe) = self.upload(stream)
            && !pipe.has_ended()
        {
            pipe.end(end);
            self.uploads -= 1;
            if self.uploads == 0 {
                self.narrow();
            }
        }
    }

    /// Lets a request go on as far as it can.
    fn advance(&mut self, now: Instant, stream: u64) {
        if self.closed {
            return;
        }
        let Some((request, waker)) = self.requests.get(stream) else { return };
        let mut cx = Context::from_waker(waker);
        let (quic, activity) = (&mut self.quic, &self.activity);
        match request.advance(id_of(stream), quic, &mut cx, &self.pins, activity) {
            Step::Waits => {}
            Step::Written => {
                // A client that is still sending what nobody reads is told so.
                if !request.received && request.upload.as_ref().is_none_or(Pipe::is_left) {
                    self.read_rest(now, stream);
                }
            }
            Step::Cut => {
                self.shared.metrics.count_closed(Reason::Fault);
                self.stop_receiving(stream);
                self.remove(stream);
            }
        }
    }

    fn stop_receiving(&mut self, stream: u64) {
        let Some((request, _)) = self.requests.get(stream) else { return };
        if !request.received {
            request.received = true;
            let _ = self.quic.recv_stream(id_of(stream)).stop(code(Code::H3_NO_ERROR));
            self.http.forget(stream);
            self.end_upload(stream, Err(BodyError::Cut("it was not wanted".into())));
        }
    }

    /// The client does not want a request any more.
    fn give_up(&mut self, now: Instant, stream: u64) {
        if self.requests.get(stream).is_none() {
            // Its other side was given up before, or all of it was over.
            return;
        }
        self.shared.metrics.quic.requests_reset.inc();
        self.stop_receiving(stream);
        self.end_upload(stream, Err(BodyError::Cut("the client gave it up".into())));
        self.remove(stream);
        if self.resets.note(now, self.shared.settings.resets_per_second_max) {
            self.close(now, Code::H3_EXCESSIVE_LOAD, "too many resets", Reason::Resets);
        }
    }

    fn remove(&mut self, stream: u64) {
        if let Some((request, _)) = self.requests.get(stream) {
            if !request.received {
                self.stop_receiving(stream);
            }
            if let Some(request) = self.requests.remove(stream)
                && !request.is_told()
            {
                self.untold -= 1;
            }
        }
    }

    /// Opens our control stream as soon as that is allowed, and writes what waits for it.
    fn write_control(&mut self) {
        if self.control.is_none() {
            self.control = self.quic.streams().open(Dir::Uni);
        }
        let Some(control) = self.control else { return };
        if !self.control_out.is_empty() {
            let mut stream = self.quic.send_stream(control);
            // What is blocked is tried again in the next turn: windows move with events.
            if let Ok(written) = stream.write_chunks(&mut self.control_out) {
                self.control_out.drain(..written.chunks);
            }
        }
    }

    /// No more requests than those that have begun.
    pub(crate) fn retire(&mut self, now: Instant) {
        if self.retired_at.is_none() && !self.closed {
            self.retired_at = Some(now);
            let next = self.http.next_request();
            self.control_out.push(self.http.goaway(next));
        }
    }

    /// Looks at the clocks.
    fn check(&mut self, now: Instant) -> Option<Instant> {
        if self.handshaking {
            let until = self.accepted_at + self.shared.limits.handshake_time;
            if now >= until {
                self.close(now, Code::H3_NO_ERROR, "handshake", Reason::HandshakeTime);
                return None;
            }
            return Some(until);
        }
        if self.quic.remote_address() != self.address {
            self.address = self.quic.remote_address();
            self.shared.metrics.quic.migrations.inc();
            if self.migrations.note(now, MIGRATIONS_PER_SECOND_MAX) {
                let code = Code::H3_EXCESSIVE_LOAD;
                self.close(now, code, "too many migrations", Reason::Migrations);
                return None;
            }
        }
        if let Some(retired_at) = self.retired_at
            && self.requests.all(Request::has_arrived)
        {
            // Time for the GOAWAY to arrive before the end does.
            let until = retired_at + (self.quic.rtt() * 2).min(GOAWAY_TIME_MAX);
            if now >= until {
                self.end(now, Code::H3_NO_ERROR, "");
                return None;
            }
            return Some(until);
        }
        self.activity.head_started.set(self.untold > 0);
        let held = self.pins.any_held();
        let seen = Observation {
            requests: self.activity.requests.get(),
            in_flight: self.activity.in_flight.get() > 0,
            head_started: self.untold > 0,
            output_waits: held,
            sent_bytes: self.activity.sent_bytes.get(),
            closing: false,
            pressed: held && (self.pins.is_under_pressure() || self.shared.memory.is_full()),
        };
        match self.watch.check(now, &self.shared.limits, seen) {
            Verdict::Keep(until) => until,
            Verdict::Retire => {
                self.retire(now);
                self.write_control();
                Some(now)
            }
            Verdict::Close(reason) => {
                self.close(now, Code::H3_EXCESSIVE_LOAD, reason.label(), reason);
                None
            }
            Verdict::Leave => unreachable!("a connection over QUIC does not linger"),
        }
    }

    fn fail(&mut self, now: Instant, error: ConnectionError) {
        tracing::debug!(%error, address = %self.address, "connection closed");
        self.close(now, error.code, error.reason, Reason::Protocol);
    }

    /// Ends the connection for a reason that is counted.
    fn close(&mut self, now: Instant, why: Code, text: &'static str, reason: Reason) {
        if !self.closed {
            self.shared.metrics.count_closed(reason);
            self.end(now, why, text);
        }
    }

    /// Ends the connection.
    pub(crate) fn end(&mut self, now: Instant, why: Code, text: &'static str) {
        if !self.closed {
            self.quic.close(now, code(why), Bytes::from_static(text.as_bytes()));
            self.let_go();
        }
    }

    /// The other end has gone, or broken the protocol.
    fn lost(&mut self, reason: &quinn_proto::ConnectionError) {
        use quinn_proto::ConnectionError as Lost;
        if self.closed {
            return;
        }
        let counted = match reason {
            Lost::TimedOut if self.handshaking => Some(Reason::HandshakeTime),
            Lost::TimedOut => Some(Reason::Idle),
            Lost::ApplicationClosed(_) | Lost::ConnectionClosed(_) | Lost::LocallyClosed => None,
            _ if self.handshaking => Some(Reason::Handshake),
            _ => Some(Reason::Protocol),
        };
        if let Some(reason) = counted {
            self.shared.metrics.count_closed(reason);
        }
        tracing::debug!(%reason, address = %self.address, "connection lost");
        self.let_go();
    }

    fn end_handshake(&mut self) {
        if self.handshaking {
            self.handshaking = false;
            self.shared.handshaking.set(self.shared.handshaking.get() - 1);
        }
    }

    /// Drops all that it has of others: only the client is to be told.
    fn let_go(&mut self) {
        self.closed = true;
        self.end_handshake();
        for request in self.requests.clear() {
            if let Some(pipe) = &request.upload {
                pipe.end(Err(BodyError::Cut("the connection has ended".into())));
            }
            drop(request);
        }
        self.uploads = 0;
        self.narrow();
        self.connected = None;
    }
}

impl<H: Handler> Drop for Connection<H> {
    fn drop(&mut self) {
        self.let_go();
        self.shared.open.dec();
        let lost = self.quic.stats().path.lost_packets;
        self.shared.metrics.quic.lost_packets.inc_by(lost);
    }
}

/// The head of an answer for which there is no memory.
fn overloaded() -> Bytes {
    let mut response = http::Response::new(());
    *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
    let one = http::HeaderValue::from_static("1");
    response.headers_mut().insert(http::header::RETRY_AFTER, one);
    let zero = http::HeaderValue::from_static("0");
    response.headers_mut().insert(http::header::CONTENT_LENGTH, zero);
    http3::response::encode_head(&response.into_parts().0, Some(0))
}

fn number(id: StreamId) -> u64 {
    VarInt::from(id).into_inner()
}

/// The stream with this number, which came from quinn in the first place.
fn id_of(stream: u64) -> StreamId {
    StreamId::from(VarInt::from_u64(stream).expect("it was a variable-length integer"))
}
