//! The server's half of a connection.

use bytes::Bytes;
use http::StatusCode;

use crate::error::{ConnectionError, StreamError};

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
    /// Frames on the control stream after SETTINGS, over the connection's life.
    pub control_frames_max: u64,
    /// Frames of unknown type and empty DATA frames, over the connection's life, for each request that was
    /// begun and on the control stream.
    pub skipped_frames_max: u64,
    /// Payload of unknown frames and of unknown unidirectional streams, over the connection's life.
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
            control_frames_max: 1_000,
            skipped_frames_max: 16,
            skipped_bytes_max: 256 << 10,
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
        /// one, is a number and is checked against the body.
        head: http::request::Parts,
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
        code: crate::error::Code,
    },
    /// The client goes away: it will take no pushes, which never come from here anyway. Requests continue.
    GoAway {
        /// The push ID in the frame.
        id: u64,
    },
}

/// The server's half of one HTTP/3 connection.
///
/// Streams are known by their QUIC ids. Put in every chunk that a stream has received, in order, and the end of
/// the stream with the last of them where it is known by then (an empty chunk with `fin` does as well). Then take
/// all events before putting in more: that bounds the queue.
#[derive(Debug)]
pub struct Connection {
    limits: Limits,
}

impl Connection {
    /// A new connection.
    pub fn new(limits: Limits) -> Self {
        Self { limits }
    }

    /// What to write on our control stream (a unidirectional stream that is opened as soon as the client allows
    /// it, and stays open): its type and SETTINGS. No other unidirectional stream is needed.
    pub fn control_preface(&self) -> Bytes {
        let _ = &self.limits;
        unimplemented!()
    }

    /// A chunk of a unidirectional stream of the client.
    ///
    /// # Errors
    /// What ends the connection.
    pub fn on_uni_data(
        &mut self,
        _stream: u64,
        _data: Bytes,
        _fin: bool,
    ) -> Result<(), ConnectionError> {
        unimplemented!()
    }

    /// A chunk of a bidirectional stream of the client. Chunks for a stream that has failed, was refused or is
    /// whole are dropped.
    ///
    /// # Errors
    /// What ends the connection.
    pub fn on_request_data(
        &mut self,
        _stream: u64,
        _data: Bytes,
        _fin: bool,
    ) -> Result<(), ConnectionError> {
        unimplemented!()
    }

    /// The client has reset its side of a stream, of either kind, with this code.
    ///
    /// # Errors
    /// [`Code::H3_CLOSED_CRITICAL_STREAM`](crate::Code::H3_CLOSED_CRITICAL_STREAM) for its control or QPACK streams.
    pub fn on_reset(&mut self, _stream: u64, _code: u64) -> Result<(), ConnectionError> {
        unimplemented!()
    }

    /// The error to close with when the client has stopped our control stream.
    pub fn control_stopped() -> ConnectionError {
        unimplemented!()
    }

    /// Forgets a request that its owner has given up (answered early, or reset), with what is kept of it. Its
    /// chunks must not be put in any more. Events of it that were not taken yet are dropped.
    pub fn forget(&mut self, _stream: u64) {
        unimplemented!()
    }

    /// The next event, if there is one.
    pub fn poll_event(&mut self) -> Option<Event> {
        unimplemented!()
    }

    /// A GOAWAY frame for our control stream: requests on streams from `id` on are not answered any more. They
    /// come as [`Event::Failed`] with `H3_REQUEST_REJECTED`. May be called again with a smaller id; a larger one
    /// is made the smaller of the two. [`Self::next_request`] is the one that loses no request that is under way.
    pub fn goaway(&mut self, _id: u64) -> Bytes {
        unimplemented!()
    }

    /// The first request stream that was not seen yet.
    pub fn next_request(&self) -> u64 {
        unimplemented!()
    }

    /// Requests whose client side has not ended yet, and bytes that are kept of them.
    pub fn load(&self) -> (usize, usize) {
        unimplemented!()
    }
}
