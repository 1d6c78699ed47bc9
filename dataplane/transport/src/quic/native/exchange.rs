//! One request on its stream: it is read, its wants are handled, some ahead of the one whose turn it is, and
//! their answers are written in order.

use std::collections::VecDeque;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::HeaderValue;
use http_body::Body;
use outrider_artifact::native::{Item, NativeError, Reader, Refusal, Request, Want};
use quinn_proto::{StreamId, VarInt};

use super::sending::{Sending, Sent, encode, pinned};
use super::translate;
use crate::activity::{Activity, InFlight};
use crate::body::{BodyFault, RequestBody};
use crate::peer::Protocol;
use crate::pins::{ConnectionPins, Tickets};
use crate::quic::line::Line;
use crate::quic::request::Handling;
use crate::server::{Handler, Immediate};

/// Wants of one request that are handled at a time, the one whose answer is being written not counted.
const AHEAD_MAX: usize = 8;

/// A request. Its stream's number is its owner's to know.
pub(super) struct Exchange<B> {
    state: State<B>,
    /// The client's side of the stream has come to its end, or was stopped.
    pub(super) received: bool,
    /// The token that came before the request, as HTTP has it.
    credential: Option<HeaderValue>,
}

enum State<B> {
    /// It is not whole.
    Reading(Reader),
    Answering(Box<Answering<B>>),
    Refusing(Box<Refusing>),
    /// All of it is written, and waits to be acknowledged.
    Sent,
    /// The client has all of it.
    Arrived,
}

struct Refusing {
    bytes: Bytes,
    _in_flight: InFlight,
}

struct Answering<B> {
    request: Request,
    credential: Option<HeaderValue>,
    /// Wants that are being handled, or are, in order. The last of them is the one before `next`.
    running: VecDeque<Running<B>>,
    next: usize,
    current: Option<Sending<B>>,
    tickets: Tickets,
    in_flight: InFlight,
}

enum Running<B> {
    Handling(Handling<B>),
    Ready(http::Response<B>),
}

/// What the client has said.
pub(super) enum Heard {
    /// Nothing that is whole.
    More,
    /// Nothing more.
    End,
    Request(Request),
    /// That is no request.
    Wrong(NativeError),
    /// Something behind its request.
    TooMuch,
}

/// What has become of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It waits for a handler, for a body, or for the client.
    Waits,
    /// All of the answers to so many wants are written, or a refusal.
    Written { wants: usize },
    /// The answer is cut off, and the stream is to be reset with this code.
    Cut(VarInt),
}

impl<B: Body<Data = Bytes, Error = BodyFault>> Exchange<B> {
    /// A stream of which nothing has come.
    pub(super) fn new() -> Self {
        Self { state: State::Reading(Reader::server()), received: false, credential: None }
    }

    /// Bytes that are kept of a request that is not whole.
    pub(super) fn partial_bytes(&self) -> usize {
        match &self.state {
            State::Reading(reader) => reader.kept_bytes() + self.credential_bytes(),
            _ => 0,
        }
    }

    /// Bytes of its token.
    pub(super) fn credential_bytes(&self) -> usize {
        let credential = match &self.state {
            State::Answering(answering) => &answering.credential,
            _ => &self.credential,
        };
        credential.as_ref().map_or(0, HeaderValue::len)
    }

    /// Its token becomes the one that another request came with, if it is the same.
    pub(super) fn share_credential(&mut self, last: &mut Option<HeaderValue>) {
        if self.credential.is_none() {
            return;
        }
        if *last == self.credential {
            self.credential.clone_from(last);
        } else {
            last.clone_from(&self.credential);
        }
    }

    /// Whether its request is whole, or refused.
    pub(super) fn is_told(&self) -> bool {
        !matches!(self.state, State::Reading(_))
    }

    /// Wants that are not all answered.
    pub(super) fn wants(&self) -> usize {
        match &self.state {
            State::Answering(answering) => answering.request.wants.len(),
            _ => 0,
        }
    }

    /// Wants that are being handled.
    pub(super) fn handlers(&self) -> usize {
        match &self.state {
            State::Answering(answering) => answering.running.len(),
            _ => 0,
        }
    }

    /// Whether the client has all of the answer.
    pub(super) fn has_arrived(&self) -> bool {
        matches!(self.state, State::Arrived)
    }

    /// The client has all of the answer.
    pub(super) fn arrived(&mut self) {
        self.state = State::Arrived;
    }

    /// Takes what has come, and whether that was all.
    pub(super) fn hear(&mut self, chunks: &mut Vec<Bytes>, finished: bool) -> Heard {
        let State::Reading(reader) = &mut self.state else {
            let is_more = chunks.iter().any(|chunk| !chunk.is_empty());
            chunks.clear();
            return match (is_more, finished) {
                (true, _) => Heard::TooMuch,
                (false, true) => Heard::End,
                (false, false) => Heard::More,
            };
        };
        let (mut request, mut token) = (None, None);
        for mut chunk in chunks.drain(..) {
            while !chunk.is_empty() {
                match reader.read(&chunk) {
                    Ok((taken, item)) => {
                        let _ = chunk.split_to(taken);
                        match item {
                            Some(Item::Request(whole)) => request = Some(whole),
                            Some(Item::Credential(text)) => token = Some(text),
                            _ => {}
                        }
                    }
                    Err(error) => return Heard::Wrong(error),
                }
            }
        }
        if let Some(token) = token {
            self.credential = Some(translate::bearer(&token));
        }
        match request {
            Some(request) => Heard::Request(request),
            None if finished => Heard::Wrong(NativeError::Record("the request is not whole")),
            None => Heard::More,
        }
    }

    /// Begins to answer.
    pub(super) fn begin(&mut self, request: Request, activity: &Rc<Activity>) {
        self.state = State::Answering(Box::new(Answering {
            request,
            credential: self.credential.take(),
            running: VecDeque::new(),
            next: 0,
            current: None,
            tickets: Tickets::default(),
            in_flight: InFlight::new(activity),
        }));
    }

    /// Answers with a refusal.
    pub(super) fn refuse(&mut self, why: &Refusal, activity: &Rc<Activity>, pins: &ConnectionPins) {
        self.credential = None;
        let bytes = Bytes::from(why.encode());
        let weight = bytes.len();
        self.state = State::Refusing(Box::new(Refusing {
            bytes: pins.pin_as(bytes, weight),
            _in_flight: InFlight::new(activity),
        }));
    }

    /// Goes on as far as it can. `room`: how many wants of it may be handled at a time; one always may.
    pub(super) fn advance<H: Handler<Body = B>>(
        &mut self,
        stream: StreamId,
        line: &mut Line<H>,
        waker: &Waker,
        room: usize,
    ) -> Step {
        let wants = match &mut self.state {
            State::Answering(answering) => {
                let mut cx = Context::from_waker(waker);
                match answering.advance(stream, line, &mut cx, room.min(AHEAD_MAX)) {
                    Sent::Waits => return Step::Waits,
                    Sent::Cut(code) => return Step::Cut(code),
                    Sent::All => answering.request.wants.len(),
                }
            }
            State::Refusing(refusing) => {
                while !refusing.bytes.is_empty() {
                    let mut sending = line.quic.send_stream(stream);
                    match sending.write_chunks(std::slice::from_mut(&mut refusing.bytes)) {
                        Ok(written) => line.activity.note_sent(written.bytes),
                        Err(_) => return Step::Waits,
                    }
                }
                0
            }
            State::Reading(_) | State::Sent | State::Arrived => return Step::Waits,
        };
        // It fails only for a stream that the client has stopped.
        let _ = line.quic.send_stream(stream).finish();
        self.state = State::Sent;
        Step::Written { wants }
    }
}

impl<B: Body<Data = Bytes, Error = BodyFault>> Answering<B> {
    fn advance<H: Handler<Body = B>>(
        &mut self,
        stream: StreamId,
        line: &mut Line<H>,
        cx: &mut Context<'_>,
        ahead_max: usize,
    ) -> Sent {
        self.running.iter_mut().for_each(|running| running.poll(cx));
        loop {
            if self.current.is_none() {
                self.begin_next(line, cx);
            }
            let sent = match &mut self.current {
                Some(current) => current.send(stream, &mut line.quic, cx, &line.activity),
                None if self.running.is_empty() => return Sent::All,
                None => Sent::Waits,
            };
            match sent {
                Sent::All => self.current = None,
                Sent::Cut(_) => return sent,
                Sent::Waits => {
                    while self.running.len() < ahead_max && self.start(line, cx) {}
                    return sent;
                }
            }
        }
    }

    /// Begins to write the next answer, if it is there.
    fn begin_next<H: Handler<Body = B>>(&mut self, line: &Line<H>, cx: &mut Context<'_>) {
        if self.running.is_empty() {
            self.current = self.immediate(line);
            if self.current.is_some() || !self.start(line, cx) {
                return;
            }
        }
        if !matches!(self.running.front(), Some(Running::Ready(_))) {
            return;
        }
        let index = self.next - self.running.len();
        // What the client has not taken of the answers before bounds how far it goes.
        if index > 0 && line.pins.poll_turn(cx, &mut self.tickets).is_pending() {
            return;
        }
        if let Some(Running::Ready(response)) = self.running.pop_front() {
            let want = &self.request.wants[index];
            let in_flight = InFlight::new(self.in_flight.activity());
            let sending = Sending::new(index as u32, want, response, &line.pins, in_flight);
            self.current = Some(sending);
        }
    }

    /// The answer to the next want, if it lies ready.
    fn immediate<H: Handler<Body = B>>(&mut self, line: &Line<H>) -> Option<Sending<B>> {
        let want = self.request.wants.get(self.next)?;
        if want.metadata_only || !line.pins.may_hold() {
            return None;
        }
        let head = translate::head(&self.request, want, self.credential.as_ref());
        let found = line.shared.handler.immediate(&head, line.peer(Protocol::Native))?;
        line.shared.metrics.quic.immediate_answers.inc();
        let index = self.next as u32;
        self.next += 1;
        let chunks = chunks(found, index, want, &line.pins);
        Some(Sending::immediate(chunks, index, want, &line.pins))
    }

    /// Has the next want handled; false when there is none.
    fn start<H: Handler<Body = B>>(&mut self, line: &Line<H>, cx: &mut Context<'_>) -> bool {
        let Some(want) = self.request.wants.get(self.next) else { return false };
        let head = translate::head(&self.request, want, self.credential.as_ref());
        let http = http::Request::from_parts(head, RequestBody::empty(&line.shared.limits));
        let future = line.shared.handler.clone().handle(http, line.peer(Protocol::Native));
        let mut running = Running::Handling(Box::pin(future));
        running.poll(cx);
        self.running.push_back(running);
        self.next += 1;
        true
    }
}

impl<B> Running<B> {
    fn poll(&mut self, cx: &mut Context<'_>) {
        if let Self::Handling(future) = self
            && let Poll::Ready(response) = future.as_mut().poll(cx)
        {
            *self = Self::Ready(response);
        }
    }
}

/// The record of an answer that lies ready, and its content.
fn chunks(immediate: Immediate, index: u32, want: &Want, pins: &ConnectionPins) -> [Bytes; 2] {
    let Immediate { head, body, held_bytes } = immediate;
    let record = |index| translate::answer(index, want, head.parts(), Some(head.body_bytes()));
    let record = match index {
        0 => head.native(|_| encode(&record(0)).into()),
        index => pinned(&record(index), pins),
    };
    [record, pins.pin_as(body, held_bytes)]
}
