//! A server of objects: GET and HEAD with ranges, PUT that says what it got.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::request::Parts;
use http::{Method, Response, StatusCode};
use outrider_http3::{Code, Connection, Event, Limits, response};
use quinn_proto::{Dir, Event as QuicEvent, ReadError, StreamEvent, StreamId, WriteError};

use crate::network::{Host, Network, code, raw};
use crate::object;

/// A body that says when nobody has it any more.
struct Owned(Vec<u8>, #[expect(dead_code, reason = "it is counted")] Arc<()>);

impl AsRef<[u8]> for Owned {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

#[derive(Debug, Default)]
struct Exchange {
    /// What was asked, until its body is whole.
    upload: Option<Vec<u8>>,
    out: VecDeque<Bytes>,
    is_answered: bool,
    /// Our side is reset when so few bytes are left to write.
    breaks_off_at: Option<usize>,
}

pub(crate) struct Server {
    host: Host,
    http: Connection,
    random: fastrand::Rng,
    control: Option<StreamId>,
    /// Bytes for the control stream.
    control_out: VecDeque<Bytes>,
    exchanges: BTreeMap<StreamId, Exchange>,
    answered: u64,
    goes_away_after: u64,
    alive: Arc<()>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "server {:?} {:?} {}", self.http.load(), self.exchanges, self.answered)
    }
}

impl Server {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let limits = Limits { requests_max: 8, field_section_bytes_max: 600, ..Limits::default() };
        let http = Connection::new(limits);
        Self {
            host: Host::server(random.u64(..)),
            control: None,
            control_out: VecDeque::from([http.control_preface()]),
            http,
            exchanges: BTreeMap::new(),
            answered: 0,
            goes_away_after: if random.u32(..3) == 0 { random.u64(10..40) } else { u64::MAX },
            alive: Arc::new(()),
            random,
        }
    }

    pub(crate) fn next(&mut self) -> Option<std::time::Instant> {
        self.host.next()
    }

    pub(crate) fn receive(&mut self, network: &Network, datagram: BytesMut) {
        self.host.receive(network, datagram);
    }

    pub(crate) fn is_drained(&self) -> bool {
        self.host.is_drained()
    }

    pub(crate) fn bodies_alive(&self) -> usize {
        Arc::strong_count(&self.alive) - 1
    }

    pub(crate) fn check_nothing_is_left(&mut self, seed: u64) {
        assert_eq!(self.http.load(), (0, 0), "seed {seed}");
        assert!(self.http.poll_event().is_none(), "seed {seed}");
        assert!(self.exchanges.is_empty(), "seed {seed}: {:?}", self.exchanges);
        let connection = self.host.connection().expect("it is open");
        let streams = connection.streams();
        assert_eq!(streams.remote_open_streams(Dir::Bi), 0, "seed {seed}");
        // Our control stream stays.
        assert!(streams.send_streams() <= 1, "seed {seed}: {}", streams.send_streams());
        assert_eq!(self.bodies_alive(), 0, "seed {seed}: a body is kept after it was sent");
    }

    /// Does what there is to do now; gives whether there was anything.
    pub(crate) fn drive(&mut self, network: &mut Network) -> bool {
        self.host.turn(network.now());
        let mut busy = false;
        while let Some(event) = self.host.poll() {
            busy = true;
            self.on_event(event);
        }
        self.write_control();
        busy | self.host.transmit(network)
    }

    fn on_event(&mut self, event: QuicEvent) {
        match event {
            QuicEvent::Stream(StreamEvent::Opened { dir }) => {
                while let Some(stream) = self.host.connection().unwrap().streams().accept(dir) {
                    if dir == Dir::Bi {
                        self.exchanges.insert(stream, Exchange::default());
                    }
                    self.read(stream);
                }
            }
            QuicEvent::Stream(StreamEvent::Readable { id }) => self.read(id),
            QuicEvent::Stream(StreamEvent::Writable { id }) => self.write(id),
            QuicEvent::Stream(StreamEvent::Stopped { id, .. }) => {
                assert_ne!(Some(id), self.control);
                self.break_off(id, Code::H3_REQUEST_CANCELLED);
            }
            QuicEvent::ConnectionLost { reason } => {
                assert!(
                    matches!(&reason, quinn_proto::ConnectionError::ApplicationClosed(_)),
                    "{reason}"
                );
                self.exchanges.clear();
            }
            _ => {}
        }
    }

    fn read(&mut self, stream: StreamId) {
        loop {
            let connection = self.host.connection().unwrap();
            let mut receive = connection.recv_stream(stream);
            let Ok(mut chunks) = receive.read(true) else { return };
            let max = self.random.usize(1..3_000);
            let next = chunks.next(max);
            let goes_on = matches!(next, Ok(Some(_)));
            let _ = chunks.finalize();
            let result = match next {
                Ok(Some(chunk)) => self.put_in(stream, chunk.bytes, false),
                Ok(None) => self.put_in(stream, Bytes::new(), true),
                Err(ReadError::Reset(code)) => self.http.on_reset(raw(stream), code.into_inner()),
                Err(ReadError::Blocked) => return,
            };
            result.expect("our client does nothing wrong");
            self.take_events();
            if !goes_on {
                return;
            }
        }
    }

    fn put_in(
        &mut self,
        stream: StreamId,
        data: Bytes,
        fin: bool,
    ) -> Result<(), outrider_http3::ConnectionError> {
        match stream.dir() {
            Dir::Uni => self.http.on_uni_data(raw(stream), data, fin),
            Dir::Bi => self.http.on_request_data(raw(stream), data, fin),
        }
    }

    fn take_events(&mut self) {
        let id = |stream: u64| StreamId::from(quinn_proto::VarInt::from_u64(stream).unwrap());
        while let Some(event) = self.http.poll_event() {
            match event {
                Event::Request { stream, head, body_follows } => {
                    self.request(id(stream), &head, body_follows);
                }
                Event::Body { stream, data } => {
                    let exchange = self.exchanges.get_mut(&id(stream));
                    if let Some(upload) = exchange.and_then(|exchange| exchange.upload.as_mut()) {
                        upload.extend_from_slice(&data);
                    }
                }
                Event::BodyEnd { stream } => self.upload_ended(id(stream)),
                Event::Refused { stream, status } => {
                    self.answer(id(stream), VecDeque::from([response::encode_status(status)]));
                    self.stop(id(stream), Code::H3_NO_ERROR);
                }
                Event::Failed { stream, error } => {
                    assert_eq!(error.code, Code::H3_REQUEST_REJECTED, "{error}");
                    self.break_off(id(stream), error.code);
                }
                Event::Reset { stream, .. } => {
                    self.break_off(id(stream), Code::H3_REQUEST_CANCELLED);
                }
                Event::Stop { .. } | Event::GoAway { .. } => panic!("{event:?}"),
            }
        }
    }

    /// Stops the client's side, where it is open.
    fn stop(&mut self, stream: StreamId, with: Code) {
        let connection = self.host.connection().unwrap();
        if connection.recv_stream(stream).stop(code(with)).is_ok() {
            self.http.forget(raw(stream));
        }
    }

    fn break_off(&mut self, stream: StreamId, with: Code) {
        self.exchanges.remove(&stream);
        // Also where all was written and finished: what the client's window does not let out would stay for good.
        let _ = self.host.connection().unwrap().send_stream(stream).reset(code(with));
        self.stop(stream, with);
    }

    fn request(&mut self, stream: StreamId, head: &Parts, body_follows: bool) {
        self.answered += 1;
        if self.answered == self.goes_away_after {
            let next = self.http.next_request();
            self.control_out.push_back(self.http.goaway(next));
        }
        if head.method == Method::PUT {
            self.exchanges.get_mut(&stream).unwrap().upload = Some(Vec::new());
            if !body_follows {
                self.upload_ended(stream);
            }
            return;
        }
        let number = head.uri.path().strip_prefix("/object/").unwrap().parse().unwrap();
        let whole = object(number);
        let (mut parts, ()) = Response::new(()).into_parts();
        let mut range = 0..whole.len();
        if let Some(asked) = head.headers.get("range") {
            let (first, last) =
                asked.to_str().unwrap().strip_prefix("bytes=").unwrap().split_once('-').unwrap();
            range = first.parse().unwrap()..last.parse::<usize>().unwrap() + 1;
            parts.status = StatusCode::PARTIAL_CONTENT;
        }
        parts.headers.insert("content-length", range.len().into());
        parts.headers.insert("x-number", number.into());
        let body = Bytes::from_owner(Owned(whole, self.alive.clone())).slice(range);
        let mut out = VecDeque::new();
        if head.method == Method::HEAD || body.is_empty() {
            out.push_back(response::encode_head(&parts, Some(0)));
        } else if self.random.bool() {
            out.push_back(response::encode_head(&parts, Some(body.len() as u64)));
            out.push_back(body);
        } else {
            // As if its length were not known.
            parts.headers.remove("content-length");
            out.push_back(response::encode_head(&parts, None));
            let mut rest = body;
            while !rest.is_empty() {
                let piece = rest.split_to(self.random.usize(1..=rest.len().min(50_000)));
                out.push_back(response::data_head(piece.len() as u64));
                out.push_back(piece);
            }
        }
        let len: usize = out.iter().map(Bytes::len).sum();
        if head.headers.contains_key("x-break") {
            // The last byte is never written.
            let left = self.random.usize(1..=len);
            self.exchanges.get_mut(&stream).unwrap().breaks_off_at = Some(left);
        }
        self.answer(stream, out);
    }

    fn upload_ended(&mut self, stream: StreamId) {
        let Some(exchange) = self.exchanges.get_mut(&stream) else { return };
        let Some(upload) = exchange.upload.take() else { return };
        // All of it goes back.
        let (parts, ()) = Response::new(()).into_parts();
        let head = response::encode_head(&parts, Some(upload.len() as u64));
        let body = Bytes::from_owner(Owned(upload, self.alive.clone()));
        self.answer(stream, VecDeque::from([head, body]));
    }

    fn answer(&mut self, stream: StreamId, out: VecDeque<Bytes>) {
        let Some(exchange) = self.exchanges.get_mut(&stream) else { return };
        exchange.out = out;
        exchange.is_answered = true;
        self.write(stream);
    }

    fn write(&mut self, stream: StreamId) {
        let Some(exchange) = self.exchanges.get_mut(&stream) else { return };
        if !exchange.is_answered {
            return;
        }
        let mut send = self.host.connection.as_mut().unwrap().1.send_stream(stream);
        loop {
            let left: usize = exchange.out.iter().map(Bytes::len).sum();
            if exchange.breaks_off_at.is_some_and(|at| left <= at) {
                return self.break_off(stream, Code::H3_INTERNAL_ERROR);
            }
            exchange.out.retain(|chunk| !chunk.is_empty());
            if exchange.out.is_empty() {
                send.finish().expect("it was not finished before");
                self.exchanges.remove(&stream);
                return;
            }
            if let Some(at) = exchange.breaks_off_at {
                // Not over the place.
                let first = exchange.out.front_mut().unwrap();
                let mut piece = first.slice(..first.len().min(left - at));
                match send.write_chunks(std::slice::from_mut(&mut piece)) {
                    Ok(written) => bytes::Buf::advance(first, written.bytes),
                    Err(WriteError::Blocked) => return,
                    Err(WriteError::Stopped(_) | WriteError::ClosedStream) => {
                        return self.break_off(stream, Code::H3_REQUEST_CANCELLED);
                    }
                }
                continue;
            }
            match send.write_chunks(exchange.out.make_contiguous()) {
                Ok(_) => {}
                Err(WriteError::Blocked) => return,
                Err(WriteError::Stopped(_) | WriteError::ClosedStream) => {
                    return self.break_off(stream, Code::H3_REQUEST_CANCELLED);
                }
            }
        }
    }

    fn write_control(&mut self) {
        let Some(connection) = self.host.connection() else { return };
        if self.control.is_none() && !connection.is_handshaking() {
            self.control = connection.streams().open(Dir::Uni);
        }
        let Some(control) = self.control else { return };
        while !self.control_out.is_empty() {
            let chunks = self.control_out.make_contiguous();
            match self.host.connection.as_mut().unwrap().1.send_stream(control).write_chunks(chunks)
            {
                Ok(_) => self.control_out.retain(|chunk| !chunk.is_empty()),
                Err(_) => return,
            }
        }
    }
}
