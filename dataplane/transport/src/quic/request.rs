//! One request of HTTP/3 on its stream: its handler's future, and its answer on the way out.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::Body;
use outrider_http3::{Code, response};
use quinn_proto::{Connection, StreamId, WriteError};

use super::line::code;
use super::upload::Pipe;
use crate::activity::{Activity, InFlight};
use crate::body::BodyFault;
use crate::pins::{ConnectionPins, Hold, PinnedBody};
use crate::server::Immediate;

/// Pieces of a body up to this are copied: see [`PinnedBody::copying_up_to`].
pub(super) const COPY_BYTES_MAX: usize = 16 * 1024;

/// A request. Its stream's number is its owner's to know.
pub(crate) struct Request<B> {
    answer: Answer<B>,
    /// Its body, while that comes in.
    pub(crate) upload: Option<Pipe>,
    /// The client's side of the stream has come to its end, or was stopped.
    pub(crate) received: bool,
    /// It was asked by HEAD.
    head_only: bool,
}

pub(super) type Handling<B> = Pin<Box<dyn Future<Output = http::Response<B>>>>;

enum Answer<B> {
    /// The head of the request is not whole.
    None,
    Handling(Handling<B>, InFlight),
    Sending(Box<Sending<B>>),
    /// All of it is written, and waits to be acknowledged.
    Sent {
        _hold: Option<Hold>,
    },
    /// The client has all of it.
    Arrived,
}

/// What is being written.
struct Sending<B> {
    /// The head of the answer, the head of a DATA frame, and a piece of the body.
    chunks: [Bytes; 3],
    body: Option<Pin<Box<PinnedBody<B>>>>,
    /// How much of the body is still to be taken, where its length was announced.
    remaining: Option<u64>,
    hold: Option<Hold>,
    _in_flight: Option<InFlight>,
}

/// What has become of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// It waits for its handler, for its body, or for the client.
    Waits,
    /// All of the answer is written.
    Written,
    /// The answer is cut off, and the stream reset.
    Cut,
}

impl<B: Body<Data = Bytes, Error = BodyFault>> Request<B> {
    /// A stream whose head is not whole.
    pub(crate) fn new() -> Self {
        Self { answer: Answer::None, upload: None, received: false, head_only: false }
    }

    /// Whether its head has come.
    pub(crate) fn is_told(&self) -> bool {
        !matches!(self.answer, Answer::None)
    }

    /// Whether all of the answer is written.
    pub(crate) fn is_written(&self) -> bool {
        matches!(self.answer, Answer::Sent { .. } | Answer::Arrived)
    }

    /// Whether the client has all of the answer.
    pub(crate) fn has_arrived(&self) -> bool {
        matches!(self.answer, Answer::Arrived)
    }

    /// The client has all of the answer; what was held for it is let go.
    pub(crate) fn arrived(&mut self) {
        self.answer = Answer::Arrived;
    }

    /// Whether nothing but the end of the client's side is still to come: nobody reads more, and nothing
    /// was announced. Many clients say only after the request that it has no body, and take it for a
    /// failure when they are told not to.
    pub(crate) fn lingers(&self) -> bool {
        let empty = |pipe: &Pipe| pipe.is_left() && !pipe.is_expected();
        !self.received && self.is_written() && self.upload.as_ref().is_some_and(empty)
    }

    /// Has the handler's future answer it.
    pub(crate) fn handle(
        &mut self,
        future: impl Future<Output = http::Response<B>> + 'static,
        in_flight: InFlight,
        head_only: bool,
    ) {
        self.head_only = head_only;
        self.answer = Answer::Handling(Box::pin(future), in_flight);
    }

    /// Answers with what lies ready, at once where the windows allow it.
    pub(crate) fn answer(
        &mut self,
        immediate: Immediate,
        hold: Hold,
        in_flight: InFlight,
        stream: StreamId,
        quic: &mut Connection,
    ) {
        let mut chunks = [immediate.head.http3(), immediate.body];
        let mut sending = quic.send_stream(stream);
        while chunks.iter().any(|chunk| !chunk.is_empty()) {
            match sending.write_chunks(&mut chunks) {
                Ok(written) => in_flight.activity().note_sent(written.bytes),
                Err(_) => {
                    let [head, body] = chunks;
                    self.answer = Answer::Sending(Box::new(Sending {
                        chunks: [head, Bytes::new(), body],
                        body: None,
                        remaining: Some(0),
                        hold: Some(hold),
                        _in_flight: Some(in_flight),
                    }));
                    return;
                }
            }
        }
        // It fails only for a stream that the client has stopped.
        let _ = sending.finish();
        self.answer = Answer::Sent { _hold: Some(hold) };
    }

    /// Answers with a head and nothing else.
    pub(crate) fn refuse(&mut self, head: Bytes) {
        self.answer = Answer::Sending(Box::new(Sending {
            chunks: [head, Bytes::new(), Bytes::new()],
            body: None,
            remaining: Some(0),
            hold: None,
            _in_flight: None,
        }));
    }

    /// Goes on as far as it can.
    pub(crate) fn advance(
        &mut self,
        stream: StreamId,
        quic: &mut Connection,
        cx: &mut Context<'_>,
        pins: &ConnectionPins,
        activity: &Activity,
    ) -> Step {
        if let Answer::Handling(future, _) = &mut self.answer {
            let Poll::Ready(response) = future.as_mut().poll(cx) else { return Step::Waits };
            let Answer::Handling(_, in_flight) = std::mem::replace(&mut self.answer, Answer::None)
            else {
                unreachable!("it was that a line before");
            };
            let sending = Sending::new(response, self.head_only, pins, in_flight);
            self.answer = Answer::Sending(Box::new(sending));
        }
        let Answer::Sending(sending) = &mut self.answer else { return Step::Waits };
        let step = sending.send(stream, quic, cx, activity);
        if step == Step::Written {
            let hold = sending.hold.take();
            self.answer = Answer::Sent { _hold: hold };
        }
        step
    }
}

impl<B: Body<Data = Bytes, Error = BodyFault>> Sending<B> {
    fn new(
        response: http::Response<B>,
        head_only: bool,
        pins: &ConnectionPins,
        in_flight: InFlight,
    ) -> Self {
        let (parts, body) = response.into_parts();
        let bodiless = head_only || matches!(parts.status.as_u16(), 204 | 304);
        let remaining = if bodiless { Some(0) } else { body.size_hint().exact() };
        let head = response::encode_head(&parts, remaining);
        let (body, in_flight) = if remaining == Some(0) {
            (None, Some(in_flight))
        } else {
            let body = PinnedBody::new(body, pins.clone(), in_flight, None);
            (Some(Box::pin(body.copying_up_to(COPY_BYTES_MAX))), None)
        };
        let chunks = [head, Bytes::new(), Bytes::new()];
        Self { chunks, body, remaining, hold: None, _in_flight: in_flight }
    }

    fn send(
        &mut self,
        stream: StreamId,
        quic: &mut Connection,
        cx: &mut Context<'_>,
        activity: &Activity,
    ) -> Step {
        loop {
            let taken = if self.chunks[2].is_empty() { self.take_frame(cx) } else { Taken::Frame };
            if taken == Taken::Fault {
                return cut(stream, quic);
            }
            // The first piece of a body that lies ready goes out with the head.
            while self.chunks.iter().any(|chunk| !chunk.is_empty()) {
                match quic.send_stream(stream).write_chunks(&mut self.chunks) {
                    Ok(written) => activity.note_sent(written.bytes),
                    // That a client has stopped the stream is an event of its own.
                    Err(
                        WriteError::Blocked | WriteError::Stopped(_) | WriteError::ClosedStream,
                    ) => {
                        return Step::Waits;
                    }
                }
            }
            if self.body.is_none() {
                // It fails only for a stream that the client has stopped.
                let _ = quic.send_stream(stream).finish();
                return Step::Written;
            }
            if taken == Taken::Nothing {
                return Step::Waits;
            }
        }
    }

    /// Takes a frame of the body where there is one now.
    fn take_frame(&mut self, cx: &mut Context<'_>) -> Taken {
        let Some(body) = &mut self.body else { return Taken::Nothing };
        let bytes = match body.as_mut().poll_frame(cx) {
            Poll::Pending => return Taken::Nothing,
            Poll::Ready(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
            Poll::Ready(Some(Err(_))) => return Taken::Fault,
            Poll::Ready(None) => {
                self.body = None;
                let whole = self.remaining.is_none_or(|remaining| remaining == 0);
                return if whole { Taken::Nothing } else { Taken::Fault };
            }
        };
        match &mut self.remaining {
            Some(remaining) => match remaining.checked_sub(bytes.len() as u64) {
                Some(less) => *remaining = less,
                None => return Taken::Fault,
            },
            None if bytes.is_empty() => {}
            None => self.chunks[1] = response::data_head(bytes.len() as u64),
        }
        self.chunks[2] = bytes;
        if self.remaining == Some(0) {
            self.body = None;
        }
        Taken::Frame
    }
}

/// What a body gave.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Taken {
    Frame,
    /// Nothing now, or nothing more.
    Nothing,
    Fault,
}

/// Resets the stream, so that the client does not take what it got for whole.
fn cut(stream: StreamId, quic: &mut Connection) -> Step {
    // It fails only for a stream that is over.
    let _ = quic.send_stream(stream).reset(code(Code::H3_INTERNAL_ERROR));
    Step::Cut
}
