//! HTTP/3 on a connection: its state machine, its requests, its uploads.

use std::cell::Cell;
use std::rc::Rc;
use std::task::Context;
use std::time::{Duration, Instant};

use bytes::Bytes;
use outrider_http3::{self as http3, Code, ConnectionError};
use quinn_proto::{Dir, StreamEvent, StreamId, VarInt};

use super::config::{self, UPLOAD_WINDOW_BYTES};
use super::connection::{Held, Session, Shared};
use super::line::{End, Line, code, id_of, number};
use super::request::{Request, Step};
use super::slots::Slots;
use super::upload::Pipe;
use crate::activity::InFlight;
use crate::body::{BodyError, RequestBody};
use crate::metrics::Reason;
use crate::peer::Protocol;
use crate::server::Handler;

/// How long a GOAWAY may take to arrive before the connection is closed behind it; at most.
const GOAWAY_TIME_MAX: Duration = Duration::from_millis(500);

/// What a connection that speaks HTTP/3 has beside its line.
pub(crate) struct Http3<H: Handler> {
    http: http3::Connection,
    /// Our control stream, and what it has not taken yet.
    control: Option<StreamId>,
    control_out: Vec<Bytes>,
    requests: Slots<Request<H::Body>>,
    /// Requests whose heads are not whole.
    untold: usize,
    uploads: usize,
    uploads_window: bool,
    /// What waits for handlers, of all requests.
    uploaded_bytes: Rc<Cell<usize>>,
    chunks: Vec<Bytes>,
}

impl<H: Handler> Session<H> for Http3<H> {
    fn on_stream(&mut self, line: &mut Line<H>, now: Instant, event: StreamEvent) {
        match event {
            StreamEvent::Opened { dir } => {
                while let Some(id) = line.quic.streams().accept(dir) {
                    match dir {
                        Dir::Bi => {
                            let stream = number(id);
                            let wakes = &line.shared.wakes;
                            self.requests.insert(stream, Request::new(), wakes, line.place);
                            self.untold += 1;
                            self.read_request(line, now, stream);
                            self.advance(line, now, stream);
                        }
                        Dir::Uni => self.read_uni(line, now, id),
                    }
                }
            }
            StreamEvent::Readable { id } if id.dir() == Dir::Bi => {
                self.read_request(line, now, number(id));
                self.advance(line, now, number(id));
            }
            StreamEvent::Readable { id } => self.read_uni(line, now, id),
            StreamEvent::Writable { id } if id.dir() == Dir::Bi => {
                self.advance(line, now, number(id))
            }
            StreamEvent::Finished { id } => self.arrived(line, number(id)),
            StreamEvent::Stopped { id, .. } if Some(id) == self.control => {
                self.fail(line, now, http3::Connection::control_stopped());
            }
            StreamEvent::Stopped { id, error_code } => {
                // What the client does not want any more is not sent again either.
                let _ = line.quic.send_stream(id).reset(error_code);
                self.give_up(line, now, number(id));
            }
            StreamEvent::Writable { .. } | StreamEvent::Available { .. } => {}
        }
    }

    fn on_wake(&mut self, line: &mut Line<H>, now: Instant, slot: usize) {
        if let Some(stream) = self.requests.stream_in(slot) {
            self.read_request(line, now, stream);
            self.advance(line, now, stream);
        }
    }

    /// Opens our control stream as soon as that is allowed, and writes what waits for it.
    fn write_control(&mut self, line: &mut Line<H>) {
        if self.control.is_none() {
            self.control = line.quic.streams().open(Dir::Uni);
        }
        let Some(control) = self.control else { return };
        if !self.control_out.is_empty() {
            let mut stream = line.quic.send_stream(control);
            // What is blocked is tried again in the next turn: windows move with events.
            if let Ok(written) = stream.write_chunks(&mut self.control_out) {
                self.control_out.drain(..written.chunks);
            }
        }
    }

    fn retire(&mut self) {
        let next = self.http.next_request();
        self.control_out.push(self.http.goaway(next));
    }

    /// Time for the GOAWAY to arrive before the end does.
    fn farewell(&self, line: &Line<H>) -> Duration {
        (line.quic.rtt() * 2).min(GOAWAY_TIME_MAX)
    }

    fn head_started(&self) -> bool {
        self.untold > 0
    }

    fn has_answered_all(&self) -> bool {
        self.requests.all(Request::has_arrived)
    }

    fn held(&self) -> Held {
        Held {
            requests: self.requests.len(),
            partial_bytes: self.http.load().1,
            uploaded_bytes: self.uploaded_bytes.get(),
            uploads_window: self.uploads_window,
        }
    }

    fn let_go(&mut self, line: &mut Line<H>) {
        for request in self.requests.clear() {
            if let Some(pipe) = &request.upload {
                pipe.end(Err(BodyError::Cut("the connection has ended".into())));
            }
            drop(request);
        }
        self.uploads = 0;
        self.narrow(line);
    }
}

impl<H: Handler> Http3<H> {
    pub(crate) fn new(shared: &Shared<H>) -> Self {
        let limits = http3::Limits {
            field_section_bytes_max: shared.limits.header_bytes_max as u64,
            requests_max: shared.limits.streams_max as usize,
            ..http3::Limits::default()
        };
        let http = http3::Connection::with_memo(limits, shared.heads.clone());
        Self {
            control: None,
            control_out: vec![http.control_preface()],
            http,
            requests: Slots::default(),
            untold: 0,
            uploads: 0,
            uploads_window: false,
            uploaded_bytes: Rc::default(),
            chunks: Vec::new(),
        }
    }

    /// Hands `self.chunks` to HTTP/3, one after the other, with what comes of each.
    fn put_in(&mut self, line: &mut Line<H>, now: Instant, stream: u64, uni: bool, finished: bool) {
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
                Ok(()) => self.take_events(line, now),
                Err(error) => self.fail(line, now, error),
            }
            if line.closed {
                break;
            }
        }
        chunks.clear();
        self.chunks = chunks;
    }

    fn read_uni(&mut self, line: &mut Line<H>, now: Instant, id: StreamId) {
        let Some(end) = line.read(id, usize::MAX, &mut self.chunks) else { return };
        self.put_in(line, now, number(id), true, matches!(end, End::Finished));
        if let End::Reset(code) = end
            && !line.closed
        {
            self.on_reset(line, now, number(id), code);
        }
    }

    fn read_request(&mut self, line: &mut Line<H>, now: Instant, stream: u64) {
        let Some((request, _)) = self.requests.get(stream) else { return };
        if request.received {
            return;
        }
        if let Some(pipe) = &request.upload
            && pipe.is_left()
        {
            if request.is_written() {
                self.read_rest(line, now, stream);
            }
            return;
        }
        let short = line.shared.memory.is_full();
        let room = request.upload.as_ref().map_or(usize::MAX, |pipe| pipe.room(short));
        if room == 0 {
            return;
        }
        let Some(end) = line.read(id_of(stream), room, &mut self.chunks) else { return };
        let finished = matches!(end, End::Finished);
        if !matches!(end, End::Open)
            && let Some((request, _)) = self.requests.get(stream)
        {
            request.received = true;
        }
        if finished || !self.chunks.is_empty() {
            self.put_in(line, now, stream, false, finished);
        }
        if let End::Reset(code) = end
            && !line.closed
        {
            self.on_reset(line, now, stream, code);
        }
    }

    /// What a client sends beside an answer that is written: the end of its side, which is waited for, or
    /// what nobody reads, and which it is told to stop.
    fn read_rest(&mut self, line: &mut Line<H>, now: Instant, stream: u64) {
        let Some((request, _)) = self.requests.get(stream) else { return };
        if !request.lingers() {
            self.stop_receiving(line, stream);
            return;
        }
        // One byte is enough to know.
        match (line.read(id_of(stream), 1, &mut self.chunks), self.chunks.is_empty()) {
            (Some(End::Open), true) => {
                self.end_upload(line, stream, Ok(()));
                return;
            }
            (Some(End::Finished), true) => {
                if let Some((request, _)) = self.requests.get(stream) {
                    request.received = true;
                }
                self.put_in(line, now, stream, false, true);
            }
            _ => {
                self.chunks.clear();
                self.stop_receiving(line, stream);
            }
        }
        // Both sides are over: nothing comes for it any more.
        if self.requests.get(stream).is_some_and(|(request, _)| request.has_arrived()) {
            self.remove(line, stream);
        }
    }

    /// The client has all of an answer. Where its own side is still open, it is waited for without holding
    /// anything; it has as many of these as streams at most.
    fn arrived(&mut self, line: &mut Line<H>, stream: u64) {
        match self.requests.get(stream) {
            Some((request, _)) if request.lingers() => request.arrived(),
            _ => self.remove(line, stream),
        }
    }

    fn on_reset(&mut self, line: &mut Line<H>, now: Instant, stream: u64, code: VarInt) {
        match self.http.on_reset(stream, code.into_inner()) {
            Ok(()) => self.take_events(line, now),
            Err(error) => self.fail(line, now, error),
        }
    }

    fn take_events(&mut self, line: &mut Line<H>, now: Instant) {
        while !line.closed
            && let Some(event) = self.http.poll_event()
        {
            match event {
                http3::Event::Request { stream, head, body_follows } => {
                    self.begin(line, stream, head, body_follows);
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
                http3::Event::BodyEnd { stream } => self.end_upload(line, stream, Ok(())),
                http3::Event::Failed { stream, error } => {
                    tracing::debug!(%error, address = %line.address, "request refused");
                    let id = id_of(stream);
                    // Both fail only for a side that is over.
                    let _ = line.quic.send_stream(id).reset(code(error.code));
                    let _ = line.quic.recv_stream(id).stop(code(error.code));
                    self.end_upload(line, stream, Err(BodyError::Cut(error.reason.into())));
                    self.remove(line, stream);
                }
                http3::Event::Reset { stream, .. } => {
                    let cancelled = code(Code::H3_REQUEST_CANCELLED);
                    let _ = line.quic.send_stream(id_of(stream)).reset(cancelled);
                    self.give_up(line, now, stream);
                }
                http3::Event::Stop { stream, code: reason } => {
                    let _ = line.quic.recv_stream(id_of(stream)).stop(code(reason));
                }
                http3::Event::GoAway { .. } => {}
            }
        }
    }

    /// A request is whole but for its body.
    fn begin(
        &mut self,
        line: &mut Line<H>,
        stream: u64,
        head: Rc<http::request::Parts>,
        body_follows: bool,
    ) {
        let shared = line.shared.clone();
        shared.metrics.requests_of(Protocol::Http3).inc();
        let peer = line.peer(Protocol::Http3);
        let in_flight = InFlight::new(&line.activity);
        let Some((request, waker)) = self.requests.get(stream) else { return };
        self.untold -= 1;
        if !body_follows
            && line.pins.may_hold()
            && let Some(immediate) = shared.handler.immediate(&head, peer)
        {
            shared.metrics.quic.immediate_answers.inc();
            let hold = line.pins.hold(immediate.held_bytes);
            request.answer(immediate, hold, in_flight, id_of(stream), &mut line.quic);
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
        let http = http::Request::from_parts(Rc::unwrap_or_clone(head), body);
        request.handle(shared.handler.clone().handle(http, peer), in_flight, head_only);
        if body_follows {
            self.uploads += 1;
            self.widen(line);
        }
    }

    /// Lets a client that sends bodies send more of them ahead, while the shard has room for that.
    fn widen(&mut self, line: &mut Line<H>) {
        let more = UPLOAD_WINDOW_BYTES as usize;
        let given = line.shared.upload_bytes.get();
        if !self.uploads_window
            && !line.shared.memory.is_crowded()
            && given + more <= line.shared.settings.upload_bytes_max
        {
            self.uploads_window = true;
            line.shared.upload_bytes.set(given + more);
            line.quic.set_receive_window(UPLOAD_WINDOW_BYTES.into());
        }
    }

    fn narrow(&mut self, line: &mut Line<H>) {
        if self.uploads_window {
            self.uploads_window = false;
            let given = line.shared.upload_bytes.get();
            line.shared.upload_bytes.set(given - UPLOAD_WINDOW_BYTES as usize);
            line.quic.set_receive_window(config::usual_window());
        }
    }

    fn upload(&mut self, stream: u64) -> Option<&Pipe> {
        self.requests.get(stream)?.0.upload.as_ref()
    }

    fn end_upload(&mut self, line: &mut Line<H>, stream: u64, end: Result<(), BodyError>) {
        if let Some(pipe) = self.upload(stream)
            && !pipe.has_ended()
        {
            pipe.end(end);
            self.uploads -= 1;
            if self.uploads == 0 {
                self.narrow(line);
            }
        }
    }

    /// Lets a request go on as far as it can.
    fn advance(&mut self, line: &mut Line<H>, now: Instant, stream: u64) {
        if line.closed {
            return;
        }
        let Some((request, waker)) = self.requests.get(stream) else { return };
        let mut cx = Context::from_waker(waker);
        let (quic, activity) = (&mut line.quic, &line.activity);
        match request.advance(id_of(stream), quic, &mut cx, &line.pins, activity) {
            Step::Waits => {}
            Step::Written => {
                // A client that is still sending what nobody reads is told so.
                if !request.received && request.upload.as_ref().is_none_or(Pipe::is_left) {
                    self.read_rest(line, now, stream);
                }
            }
            Step::Cut => {
                line.shared.metrics.count_closed(Reason::Fault);
                self.stop_receiving(line, stream);
                self.remove(line, stream);
            }
        }
    }

    fn stop_receiving(&mut self, line: &mut Line<H>, stream: u64) {
        let Some((request, _)) = self.requests.get(stream) else { return };
        if !request.received {
            request.received = true;
            let _ = line.quic.recv_stream(id_of(stream)).stop(code(Code::H3_NO_ERROR));
            self.http.forget(stream);
            self.end_upload(line, stream, Err(BodyError::Cut("it was not wanted".into())));
        }
    }

    /// The client does not want a request any more.
    fn give_up(&mut self, line: &mut Line<H>, now: Instant, stream: u64) {
        if self.requests.get(stream).is_none() {
            // Its other side was given up before, or all of it was over.
            return;
        }
        self.stop_receiving(line, stream);
        self.end_upload(line, stream, Err(BodyError::Cut("the client gave it up".into())));
        self.remove(line, stream);
        line.note_given_up(now);
    }

    fn fail(&mut self, line: &mut Line<H>, now: Instant, error: ConnectionError) {
        tracing::debug!(%error, address = %line.address, "connection closed");
        line.fail(now, code(error.code), error.reason);
    }

    fn remove(&mut self, line: &mut Line<H>, stream: u64) {
        if let Some((request, _)) = self.requests.get(stream) {
            if !request.received {
                self.stop_receiving(line, stream);
            }
            if let Some(request) = self.requests.remove(stream)
                && !request.is_told()
            {
                self.untold -= 1;
            }
        }
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
