//! A client with a list of requests, that knows what their answers have to be.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::Method;
use outrider_http3::client::{self, RequestHead, Response, ServerEvent, ServerStreams};
use outrider_http3::{Code, response};
use quinn_proto::{Dir, Event as QuicEvent, ReadError, StreamEvent, StreamId, VarInt};

use crate::network::{Host, Network, code, raw};
use crate::{Tally, object};

const REQUESTS: usize = 40;

/// What an answer has to be.
#[derive(Clone, Debug)]
enum Expected {
    Content {
        status: u16,
        body: Vec<u8>,
    },
    /// The server breaks it off.
    Broken,
}

#[derive(Debug)]
struct Exchange {
    expected: Expected,
    is_upload: bool,
    response: Response,
    body: Vec<u8>,
    out: VecDeque<Bytes>,
    finished: bool,
    /// It is given up when so many bytes of the body are here, or when so much of the request was written.
    cancels_at: Option<usize>,
}

pub(crate) struct Client {
    host: Host,
    random: fastrand::Rng,
    control: Option<StreamId>,
    control_out: VecDeque<Bytes>,
    servers: ServerStreams,
    exchanges: BTreeMap<StreamId, Exchange>,
    left: usize,
    next_request: Instant,
    goaway: u64,
    pub(crate) tally: Tally,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "client {} left, {:?}", self.left, self.exchanges.keys())
    }
}

impl Client {
    pub(crate) fn new(seed: u64, now: Instant) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        Self {
            host: Host::client(random.u64(..), now, b"h3"),
            random,
            control: None,
            control_out: VecDeque::from([client::control_preface()]),
            servers: ServerStreams::default(),
            exchanges: BTreeMap::new(),
            left: REQUESTS,
            next_request: now,
            goaway: u64::MAX,
            tally: Tally::default(),
        }
    }

    /// Every request has come to its end.
    pub(crate) fn is_over(&self) -> bool {
        self.left == 0 && self.exchanges.is_empty()
    }

    pub(crate) fn is_drained(&self) -> bool {
        self.host.is_drained()
    }

    pub(crate) fn next(&mut self) -> Option<Instant> {
        let request = (self.left > 0).then_some(self.next_request);
        [self.host.next(), request].into_iter().flatten().min()
    }

    pub(crate) fn receive(&mut self, network: &Network, datagram: BytesMut) {
        self.host.receive(network, datagram);
    }

    pub(crate) fn close(&mut self, network: &Network) {
        let connection = self.host.connection().unwrap();
        connection.close(network.now(), code(Code::H3_NO_ERROR), Bytes::new());
    }

    pub(crate) fn check_nothing_is_left(&mut self, seed: u64) {
        assert!(self.servers.settings().is_some(), "seed {seed}: no SETTINGS came");
        let streams = self.host.connection().expect("it is open").streams();
        assert!(streams.send_streams() <= 1, "seed {seed}: {}", streams.send_streams());
        assert_eq!(self.left, 0);
    }

    /// Does what there is to do now; gives whether there was anything.
    pub(crate) fn drive(&mut self, network: &mut Network) -> bool {
        let now = network.now();
        self.host.turn(now);
        let mut busy = false;
        while let Some(event) = self.host.poll() {
            busy = true;
            self.on_event(event);
        }
        self.write_control();
        while self.left > 0 && self.next_request <= now {
            busy = true;
            self.next_request = now + Duration::from_micros(self.random.u64(100..30_000));
            self.begin();
        }
        busy | self.host.transmit(network)
    }

    fn on_event(&mut self, event: QuicEvent) {
        match event {
            QuicEvent::Stream(StreamEvent::Opened { dir }) => {
                assert_eq!(dir, Dir::Uni);
                while let Some(stream) = self.host.connection().unwrap().streams().accept(dir) {
                    self.read(stream);
                }
            }
            QuicEvent::Stream(StreamEvent::Readable { id }) => self.read(id),
            QuicEvent::Stream(StreamEvent::Writable { id }) => self.write(id),
            QuicEvent::Stream(StreamEvent::Stopped { id, error_code }) => {
                // The server has heard enough; what is not sent yet never will be.
                let _ = self.host.connection().unwrap().send_stream(id).reset(error_code);
            }
            QuicEvent::ConnectionLost { reason } => {
                assert!(matches!(reason, quinn_proto::ConnectionError::LocallyClosed), "{reason}");
            }
            _ => {}
        }
    }

    fn begin(&mut self) {
        let connection = self.host.connection().unwrap();
        if connection.is_handshaking() {
            return;
        }
        let Some(stream) = connection.streams().open(Dir::Bi) else { return };
        self.left -= 1;
        let number = self.random.u64(..1_000);
        let content = object(number);
        let mut path = format!("/object/{number}");
        let mut fields = Vec::new();
        let mut method = Method::GET;
        let mut expected = Expected::Content { status: 200, body: content.clone() };
        let mut upload = None;
        let range;
        match self.random.u32(..10) {
            0..3 if !content.is_empty() => {
                let first = self.random.usize(..content.len());
                let last = self.random.usize(first..content.len());
                range = format!("bytes={first}-{last}");
                fields.push(("range", &range[..]));
                expected = Expected::Content { status: 206, body: content[first..=last].to_vec() };
            }
            3 => {
                method = Method::HEAD;
                expected = Expected::Content { status: 200, body: Vec::new() };
            }
            4..6 => {
                method = Method::PUT;
                upload = Some(content);
            }
            6 => {
                // More than the server takes.
                path.extend(std::iter::repeat_n('x', self.random.usize(600..3_000)));
                expected = Expected::Content { status: 431, body: Vec::new() };
            }
            7 => {
                fields.push(("x-break", "1"));
                expected = Expected::Broken;
            }
            _ => {}
        }
        let request =
            RequestHead { method: &method, authority: "localhost", path: &path, fields: &fields };
        let mut out = VecDeque::from([client::encode_head(&request)]);
        let mut rest = Bytes::from(upload.clone().unwrap_or_default());
        while !rest.is_empty() {
            let piece = rest.split_to(self.random.usize(1..=rest.len().min(20_000)));
            out.push_back(response::data_head(piece.len() as u64));
            out.push_back(piece);
        }
        let cancels_at = (self.random.u32(..8) == 0).then(|| self.random.usize(..20_000));
        let exchange = Exchange {
            expected,
            is_upload: upload.is_some(),
            response: Response::new(method == Method::HEAD, 4 << 10),
            body: Vec::new(),
            out,
            finished: false,
            cancels_at,
        };
        self.exchanges.insert(stream, exchange);
        self.write(stream);
        if self
            .exchanges
            .get(&stream)
            .and_then(|exchange| exchange.cancels_at)
            .is_some_and(|at| at < 200)
        {
            self.cancel(stream);
        }
    }

    fn write(&mut self, stream: StreamId) {
        let Some(exchange) = self.exchanges.get_mut(&stream) else { return };
        if exchange.finished {
            return;
        }
        let mut send = self.host.connection.as_mut().unwrap().1.send_stream(stream);
        loop {
            exchange.out.retain(|chunk| !chunk.is_empty());
            if exchange.out.is_empty() {
                exchange.finished = true;
                let _ = send.finish();
                return;
            }
            // Stopped: the server has said enough.
            if send.write_chunks(exchange.out.make_contiguous()).is_err() {
                return;
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

    fn cancel(&mut self, stream: StreamId) {
        self.tally.cancelled += 1;
        self.exchanges.remove(&stream);
        let connection = self.host.connection().unwrap();
        let with: VarInt = code(Code::H3_REQUEST_CANCELLED);
        let _ = connection.send_stream(stream).reset(with);
        let _ = connection.recv_stream(stream).stop(with);
    }

    fn read(&mut self, stream: StreamId) {
        loop {
            let connection = self.host.connection().unwrap();
            let mut receive = connection.recv_stream(stream);
            let Ok(mut chunks) = receive.read(true) else { return };
            let next = chunks.next(self.random.usize(1..5_000));
            let _ = chunks.finalize();
            if stream.dir() == Dir::Uni {
                let Ok(Some(chunk)) = next else {
                    assert!(matches!(next, Err(ReadError::Blocked)), "{next:?}");
                    return;
                };
                let goaway = &mut self.goaway;
                let each = |event| match event {
                    ServerEvent::GoAway { id } => *goaway = id,
                    ServerEvent::Stop { .. } => panic!("{event:?}"),
                };
                self.servers.on_data(raw(stream), chunk.bytes, false, each).unwrap();
                continue;
            }
            let Some(exchange) = self.exchanges.get_mut(&stream) else { return };
            match next {
                Ok(Some(chunk)) => {
                    let body = &mut exchange.body;
                    let put_in = |data: Bytes| body.extend_from_slice(&data);
                    exchange.response.on_data(chunk.bytes, put_in).unwrap();
                    if exchange.cancels_at.is_some_and(|at| exchange.body.len() >= at) {
                        return self.cancel(stream);
                    }
                }
                Ok(None) => return self.whole(stream),
                Err(ReadError::Reset(with)) => return self.reset(stream, Code(with.into_inner())),
                Err(ReadError::Blocked) => return,
            }
        }
    }

    fn whole(&mut self, stream: StreamId) {
        let mut exchange = self.exchanges.remove(&stream).unwrap();
        exchange.response.on_end().unwrap();
        if !exchange.finished {
            // Answered before all of the request was sent.
            let with = code(Code::H3_NO_ERROR);
            let _ = self.host.connection().unwrap().send_stream(stream).reset(with);
        }
        let Expected::Content { status, body } = exchange.expected else {
            panic!("{stream}: what was broken off came to an end")
        };
        let head = exchange.response.head().unwrap();
        assert_eq!(head.status, status, "{stream}");
        assert!(exchange.body == body, "{stream}: {} of {} bytes", exchange.body.len(), body.len());
        self.tally.body_bytes += body.len() as u64;
        match status {
            206 => self.tally.partial += 1,
            431 => self.tally.refused += 1,
            _ if exchange.is_upload => self.tally.uploads += 1,
            _ => self.tally.whole += 1,
        }
    }

    fn reset(&mut self, stream: StreamId, with: Code) {
        let exchange = self.exchanges.remove(&stream).unwrap();
        if with == Code::H3_REQUEST_REJECTED {
            // Its frame may still be on the way, on another stream.
            assert!(self.goaway == u64::MAX || raw(stream) >= self.goaway);
            self.tally.rejected += 1;
        } else {
            assert!(matches!(exchange.expected, Expected::Broken), "{stream}: {with}");
            assert_eq!(with, Code::H3_INTERNAL_ERROR);
            self.tally.broken += 1;
        }
    }
}
