//! One answer on its way out: its record, and the raw bytes behind it.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::Body;
use outrider_artifact::native::{Answer, CONTENT_WRONG, SOURCE_BROKE, TOTAL_UNKNOWN, Want};
use quinn_proto::{Connection, StreamId, VarInt, WriteError};

use super::translate;
use crate::activity::{Activity, InFlight};
use crate::body::BodyFault;
use crate::pins::{ConnectionPins, PinnedBody};
use crate::quic::request::COPY_BYTES_MAX;

/// An answer that is being written.
pub(super) struct Sending<B> {
    /// A record, and a piece of the body.
    chunks: [Bytes; 2],
    body: Option<Pin<Box<PinnedBody<B>>>>,
    length: Length,
    /// What is answered instead where nothing is written yet.
    fault: Answer,
    begun: bool,
    pins: ConnectionPins,
}

/// How much of the body is to come.
enum Length {
    Known {
        remaining: u64,
    },
    /// It is not known: each piece has a record of its own, this one.
    Open {
        record: Box<Answer>,
    },
}

/// How far it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// It waits for its body, or for the client.
    Waits,
    /// All of it is written.
    All,
    /// It is cut off, and the stream is to be reset with this code.
    Cut(VarInt),
}

/// What a body gave.
#[derive(Clone, Copy)]
enum Taken {
    Piece,
    /// Nothing now, or nothing more.
    Nothing,
    Fault(u32),
}

impl<B: Body<Data = Bytes, Error = BodyFault>> Sending<B> {
    /// The answer of a handler to this want.
    pub(super) fn new(
        index: u32,
        want: &Want,
        response: http::Response<B>,
        pins: &ConnectionPins,
        in_flight: InFlight,
    ) -> Self {
        let (head, body) = response.into_parts();
        let length = body.size_hint().exact();
        let mut record = translate::answer(index, want, &head, length);
        let has_content = matches!(record.status, 200 | 206) && !want.metadata_only;
        let mut sending = Self::of_record(&record, index, want, pins);
        if has_content && (record.body_len > 0 || length.is_none()) {
            let body = PinnedBody::new(body, pins.clone(), in_flight, None);
            sending.body = Some(Box::pin(body.copying_up_to(COPY_BYTES_MAX)));
        }
        if has_content && length.is_none() {
            (record.total, record.len, record.body_len) = (TOTAL_UNKNOWN, 0, 0);
            sending.chunks[0] = Bytes::new();
            sending.length = Length::Open { record: Box::new(record) };
        }
        sending
    }

    /// A record, and the body that lies ready behind it.
    pub(super) fn immediate(
        chunks: [Bytes; 2],
        index: u32,
        want: &Want,
        pins: &ConnectionPins,
    ) -> Self {
        let fault = translate::fault(index, want);
        let length = Length::Known { remaining: 0 };
        Self { chunks, body: None, length, fault, begun: false, pins: pins.clone() }
    }

    fn of_record(record: &Answer, index: u32, want: &Want, pins: &ConnectionPins) -> Self {
        let chunks = [pinned(record, pins), Bytes::new()];
        let mut sending = Self::immediate(chunks, index, want, pins);
        sending.length = Length::Known { remaining: record.body_len };
        sending
    }

    /// Goes on as far as it can.
    pub(super) fn send(
        &mut self,
        stream: StreamId,
        quic: &mut Connection,
        cx: &mut Context<'_>,
        activity: &Activity,
    ) -> Sent {
        loop {
            let taken = if self.chunks[1].is_empty() { self.take(cx) } else { Taken::Piece };
            if let Taken::Fault(code) = taken {
                if self.begun {
                    return Sent::Cut(VarInt::from_u32(code));
                }
                // Nothing of it is there yet: this want fails, and the others go on.
                self.body = None;
                self.chunks = [pinned(&self.fault, &self.pins), Bytes::new()];
            }
            // The first piece of a body that lies ready goes out with the record.
            while self.chunks.iter().any(|chunk| !chunk.is_empty()) {
                match quic.send_stream(stream).write_chunks(&mut self.chunks) {
                    Ok(written) => {
                        self.begun |= written.bytes > 0;
                        activity.note_sent(written.bytes);
                    }
                    // That a client has stopped the stream is an event of its own.
                    Err(
                        WriteError::Blocked | WriteError::Stopped(_) | WriteError::ClosedStream,
                    ) => return Sent::Waits,
                }
            }
            if self.body.is_none() {
                return Sent::All;
            }
            if matches!(taken, Taken::Nothing) {
                return Sent::Waits;
            }
        }
    }

    /// Takes a piece of the body where there is one now.
    fn take(&mut self, cx: &mut Context<'_>) -> Taken {
        let Some(body) = &mut self.body else { return Taken::Nothing };
        let bytes = match body.as_mut().poll_frame(cx) {
            Poll::Pending => return Taken::Nothing,
            Poll::Ready(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
            Poll::Ready(Some(Err(fault))) if fault.is_wrong_content() => {
                return Taken::Fault(CONTENT_WRONG);
            }
            Poll::Ready(Some(Err(_))) => return Taken::Fault(SOURCE_BROKE),
            Poll::Ready(None) => return self.end_body(),
        };
        match &mut self.length {
            Length::Known { remaining } => {
                let Some(less) = remaining.checked_sub(bytes.len() as u64) else {
                    return Taken::Fault(SOURCE_BROKE);
                };
                *remaining = less;
                if less == 0 {
                    self.body = None;
                }
            }
            Length::Open { .. } if bytes.is_empty() => {}
            Length::Open { record } => {
                record.start += record.len;
                (record.len, record.body_len) = (bytes.len() as u64, bytes.len() as u64);
                record.more = true;
                self.chunks[0] = pinned(record, &self.pins);
            }
        }
        self.chunks[1] = bytes;
        Taken::Piece
    }

    fn end_body(&mut self) -> Taken {
        self.body = None;
        match &mut self.length {
            Length::Known { remaining: 0 } => Taken::Nothing,
            Length::Known { .. } => Taken::Fault(SOURCE_BROKE),
            Length::Open { record } => {
                record.start += record.len;
                (record.total, record.len, record.body_len) = (record.start, 0, 0);
                record.more = false;
                self.chunks[0] = pinned(record, &self.pins);
                Taken::Nothing
            }
        }
    }
}

/// A record as it is sent. It counts as what the client holds: it waits to be acknowledged like a body.
pub(super) fn pinned(record: &Answer, pins: &ConnectionPins) -> Bytes {
    let bytes = Bytes::from(encode(record));
    let weight = bytes.len();
    pins.pin_as(bytes, weight)
}

/// The frame of a record, or of one that says that it cannot be made.
pub(super) fn encode(record: &Answer) -> Vec<u8> {
    record.encode().unwrap_or_else(|error| {
        tracing::error!(%error, "an answer is none of the native protocol");
        let text = "a fault of this server";
        let fault = Answer::error(record.want, record.digest, 500, text);
        fault.encode().expect("an error without content is always one")
    })
}
