//! The server's half of a connection.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::rc::Rc;

use bytes::Bytes;
use http::StatusCode;

use crate::budget::Budget;
use crate::error::{Code, ConnectionError, StreamError};
use crate::frame::{FrameHead, kind};
use crate::head::HeadDecoder;
use crate::memo::HeadMemo;
use crate::settings::{self, Settings};
use crate::stream::{RequestStream, Shared};
use crate::uni::{Role, UniEvent, UniStreams};
use crate::varint;

/// What a client may cost. The defaults are for an edge that serves files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest field section of a request, in bytes as RFC 9114 section 4.2.2 counts them: names, values and
    /// 32 for each field. Advertised to the client; a larger one is answered 431. A HEADERS frame that is
    /// itself longer than this is skipped without being kept, and answered 431 too.
    pub field_section_bytes_max: u64,
    /// Fields of a request, pseudo-header fields not counted. More are answered 431.
    pub fields_max: usize,
    /// Requests whose streams have not ended, by the client's side. QUIC's own limit of streams should be this.
    pub requests_max: usize,
    /// Bytes of incomplete HEADERS frames on all streams of the connection.
    pub partial_bytes_max: usize,
    /// Bytes of SETTINGS and of any other frame on the control stream that is kept.
    pub control_frame_bytes_max: usize,
    /// Frames that are of no use (unknown types, empty DATA, those for pushes), for the connection and once more for
    /// each request that was begun. More end the connection.
    pub skipped_frames_max: u64,
    /// Payload of unknown frames and bytes of unknown and of QPACK streams, counted alike.
    pub skipped_bytes_max: u64,
    /// Unidirectional streams, over the connection's life. A client needs three.
    pub uni_streams_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            field_section_bytes_max: 16 << 10,
            fields_max: 96,
            requests_max: 64,
            partial_bytes_max: 256 << 10,
            control_frame_bytes_max: 4 << 10,
            skipped_frames_max: 16,
            skipped_bytes_max: 64 << 10,
            uni_streams_max: 64,
        }
    }
}

/// What has happened. Events of one stream come in order.
#[derive(Debug)]
pub enum Event {
    /// A request.
    ///
    /// With `body_follows`, [`Event::Body`]s and then one [`Event::BodyEnd`] follow, unless the stream comes to
    /// [`Event::Failed`] or [`Event::Reset`]. Without it, nothing more comes for the stream.
    Request {
        /// The QUIC stream.
        stream: u64,
        /// Method, URI with scheme, authority and path, headers, version HTTP/3. `content-length`, where there is
        /// one, is a number and is checked against the body. It may be shared with a [`HeadMemo`].
        head: Rc<http::request::Parts>,
        /// Whether the client's side of the stream is still open.
        body_follows: bool,
    },
    /// A request that is answered with a status and no body at once, without asking anyone: 431 for fields that
    /// are too large, 501 for CONNECT, 400 for a target that this software cannot hold. Write
    /// [`response::encode_status`](crate::response::encode_status), finish, and stop the client's side with
    /// `H3_NO_ERROR` where it is still open. Nothing more comes for the stream.
    Refused {
        /// The QUIC stream.
        stream: u64,
        /// The status to answer.
        status: StatusCode,
    },
    /// A piece of a request's body, as it was received: a slice of what was put in. Never empty.
    Body {
        /// The QUIC stream.
        stream: u64,
        /// The bytes.
        data: Bytes,
    },
    /// The body is whole, and as long as `content-length` said.
    BodyEnd {
        /// The QUIC stream.
        stream: u64,
    },
    /// The request is malformed or may not be: reset our side of the stream and stop the other, both with the
    /// code. The request may have been told before. Nothing more comes for the stream.
    Failed {
        /// The QUIC stream.
        stream: u64,
        /// Code and reason.
        error: StreamError,
    },
    /// The client has reset its side before its request was whole. Nothing more comes for the stream. Where the
    /// request was told, it is to be given up, and our side to be reset with `H3_REQUEST_CANCELLED`.
    Reset {
        /// The QUIC stream.
        stream: u64,
        /// The client's code.
        code: u64,
    },
    /// A unidirectional stream of a type that is not known: stop it with this code, and read it no more.
    Stop {
        /// The QUIC stream.
        stream: u64,
        /// For STOP_SENDING.
        code: Code,
    },
    /// The client goes away: it will take no pushes, which never come from here anyway. Requests continue.
    GoAway {
        /// The push ID in the frame.
        id: u64,
    },
}

impl Event {
    /// The request stream that it is about.
    pub const fn request(&self) -> Option<u64> {
        match self {
            Self::Request { stream, .. }
            | Self::Refused { stream, .. }
            | Self::Body { stream, .. }
            | Self::BodyEnd { stream }
            | Self::Failed { stream, .. }
            | Self::Reset { stream, .. } => Some(*stream),
            Self::Stop { .. } | Self::GoAway { .. } => None,
        }
    }
}

/// The server's half of one HTTP/3 connection.
///
/// Streams are known by their QUIC ids. Put in every chunk that a stream has received, in order, and the end of
/// the stream with the last of them where it is known by then (an empty chunk with `fin` does as well). Then take
/// all events before putting in more: that bounds the queue.
///
/// A stream that has failed or was refused while its client's side is open is remembered, so that what still comes
/// of it is dropped, until its end, its reset, or [`Self::forget`]: call that when the stream was stopped.
#[derive(Debug)]
pub struct Connection {
    limits: Limits,
    uni: UniStreams,
    /// Requests whose client's side has not ended.
    requests: HashMap<u64, RequestStream, BuildHasherDefault<StreamHasher>>,
    events: VecDeque<Event>,
    decoder: HeadDecoder,
    budget: Budget,
    /// Bytes that are kept of field sections.
    partial_bytes: usize,
    next_request: u64,
    /// Requests from here on are rejected.
    goaway: u64,
}

impl Connection {
    /// A new connection.
    pub fn new(limits: Limits) -> Self {
        Self {
            uni: UniStreams::new(
                Role::Server,
                limits.uni_streams_max,
                limits.control_frame_bytes_max,
            ),
            requests: HashMap::default(),
            events: VecDeque::new(),
            decoder: HeadDecoder::default(),
            budget: Budget::new(limits.skipped_frames_max, limits.skipped_bytes_max),
            partial_bytes: 0,
            next_request: 0,
            goaway: u64::MAX,
            limits,
        }
    }

    /// A new connection that shares `memo` with others of its thread, all with the same limits.
    pub fn with_memo(limits: Limits, memo: HeadMemo) -> Self {
        Self { decoder: HeadDecoder::with_memo(memo), ..Self::new(limits) }
    }

    /// What to write on our control stream (a unidirectional stream that is opened as soon as the client allows
    /// it, and stays open): its type and SETTINGS. No other unidirectional stream is needed.
    pub fn control_preface(&self) -> Bytes {
        settings::preface(self.limits.field_section_bytes_max)
    }

    /// A chunk of a unidirectional stream of the client.
    ///
    /// # Errors
    /// What ends the connection.
    pub fn on_uni_data(
        &mut self,
        stream: u64,
        data: Bytes,
        fin: bool,
    ) -> Result<(), ConnectionError> {
        let events = &mut self.events;
        self.uni.on_data(stream, data, fin, &mut self.budget, |event| {
            events.push_back(match event {
                UniEvent::Stop { stream, code } => Event::Stop { stream, code },
                UniEvent::GoAway { id } => Event::GoAway { id },
            });
        })
    }

    /// A chunk of a bidirectional stream of the client. Chunks for a stream that has failed or was refused are
    /// dropped.
    ///
    /// # Errors
    /// What ends the connection.
    pub fn on_request_data(
        &mut self,
        stream: u64,
        data: Bytes,
        fin: bool,
    ) -> Result<(), ConnectionError> {
        let known = self.requests.remove(&stream);
        let is_new = known.is_none();
        if is_new && self.requests.len() >= self.limits.requests_max {
            let code = Code::H3_EXCESSIVE_LOAD;
            return Err(ConnectionError::new(code, "too many requests at once"));
        }
        let mut request = known.unwrap_or_else(RequestStream::new);
        self.partial_bytes -= request.partial_bytes();
        let mut shared = Shared {
            stream,
            limits: &self.limits,
            decoder: &mut self.decoder,
            budget: &mut self.budget,
            events: &mut self.events,
        };
        if is_new {
            shared.budget.replenish();
            self.next_request = self.next_request.max(stream.saturating_add(4));
            if stream >= self.goaway {
                let code = Code::H3_REQUEST_REJECTED;
                request.fail(&mut shared, StreamError::new(code, "behind GOAWAY"));
            }
        }
        request.on_data(&mut shared, data)?;
        if fin {
            return request.on_end(&mut shared);
        }
        self.partial_bytes += request.partial_bytes();
        if self.partial_bytes > self.limits.partial_bytes_max {
            let code = Code::H3_EXCESSIVE_LOAD;
            return Err(ConnectionError::new(code, "too many heads that are not whole"));
        }
        self.requests.insert(stream, request);
        Ok(())
    }

    /// The client has reset its side of a stream, of either kind, with this code.
    ///
    /// # Errors
    /// [`Code::H3_CLOSED_CRITICAL_STREAM`] for its control or QPACK streams.
    pub fn on_reset(&mut self, stream: u64, code: u64) -> Result<(), ConnectionError> {
        if stream & 2 != 0 {
            return self.uni.on_reset(stream);
        }
        self.next_request = self.next_request.max(stream.saturating_add(4));
        if self.take(stream).is_none_or(|request| !request.is_over()) {
            self.events.push_back(Event::Reset { stream, code });
        }
        Ok(())
    }

    /// The error to close with when the client has stopped our control stream.
    pub const fn control_stopped() -> ConnectionError {
        ConnectionError::new(Code::H3_CLOSED_CRITICAL_STREAM, "our control stream was stopped")
    }

    /// Forgets a request that its owner has given up (answered early, stopped or reset), with what is kept of it.
    /// Its chunks must not be put in any more. Events of it that were not taken yet are dropped.
    pub fn forget(&mut self, stream: u64) {
        self.take(stream);
        self.events.retain(|event| event.request() != Some(stream));
    }

    fn take(&mut self, stream: u64) -> Option<RequestStream> {
        let request = self.requests.remove(&stream)?;
        self.partial_bytes -= request.partial_bytes();
        Some(request)
    }

    /// The next event, if there is one.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// A GOAWAY frame for our control stream: requests on streams from `id` on are not answered any more. They
    /// come as [`Event::Failed`] with `H3_REQUEST_REJECTED`. May be called again with a smaller id; a larger one
    /// is made the smaller of the two. [`Self::next_request`] is the one that loses no request that is under way.
    pub fn goaway(&mut self, id: u64) -> Bytes {
        // A number of a request: a multiple of 4, that can be written.
        self.goaway = self.goaway.min(id & !3).min(varint::MAX & !3);
        let mut bytes = Vec::with_capacity(16);
        FrameHead { kind: kind::GOAWAY, len: varint::size(self.goaway) as u64 }.put(&mut bytes);
        varint::put(&mut bytes, self.goaway);
        Bytes::from(bytes)
    }

    /// The first request stream that was not seen yet.
    pub const fn next_request(&self) -> u64 {
        self.next_request
    }

    /// What the client has set, once its SETTINGS are there.
    pub const fn settings(&self) -> Option<&Settings> {
        self.uni.settings()
    }

    /// Requests whose client's side has not ended yet, and bytes that are kept of their heads.
    pub fn load(&self) -> (usize, usize) {
        (self.requests.len(), self.partial_bytes)
    }
}

/// Spreads the ids of streams, which count up by 4. A client chooses among those that QUIC allows it at the time,
/// a few in a row: it cannot make them collide.
#[derive(Default)]
struct StreamHasher(u64);

impl Hasher for StreamHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        // Not called for ids; right for anything.
        for byte in bytes {
            self.write_u64(u64::from(*byte) ^ self.0);
        }
    }

    fn write_u64(&mut self, id: u64) {
        // Fibonacci hashing; the table takes its bits from both ends.
        let mixed = id.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ mixed >> 32;
    }
}
