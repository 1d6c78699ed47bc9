//! A client of the native protocol that asks for much, some of it wrongly, and gives some of it up.

use std::collections::BTreeMap;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use outrider_artifact::Digest;
use outrider_artifact::native::{
    ALPN, Answer, CONTENT_WRONG, Item, Reader, Refusal, RefusalCode, Request, SOURCE_BROKE,
    TOTAL_UNKNOWN, Want,
};
use quinn_proto::{
    ConnectionError, Dir, Event, FinishError, ReadError, StreamEvent, StreamId, VarInt, WriteError,
};

use super::Tally;
use super::network::{Host, Network};
use super::store::{Manner, OBJECTS, manner, object};

/// One request.
struct Exchange {
    out: Bytes,
    finished: bool,
    wants: Vec<(u64, Want)>,
    is_spoilt: bool,
    reader: Reader,
    answers: Vec<(Answer, Vec<u8>)>,
    refusal: Option<Refusal>,
    /// It is given up when so much has come.
    cancels_at: Option<usize>,
    received: usize,
}

pub(super) struct Client {
    host: Host,
    random: fastrand::Rng,
    exchanges: BTreeMap<StreamId, Exchange>,
    left: u64,
    connected: bool,
    /// The server has gone.
    gone: bool,
    pub(super) tally: Tally,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "client: {} to ask, {:?}, {:?}", self.left, self.exchanges, self.tally)
    }
}

impl std::fmt::Debug for Exchange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exchange")
            .field("finished", &self.finished)
            .field("is_spoilt", &self.is_spoilt)
            .field("wants", &self.wants.len())
            .field("answers", &self.answers.len())
            .field("received", &self.received)
            .field("reader", &self.reader)
            .finish_non_exhaustive()
    }
}

impl Client {
    pub(super) fn new(seed: u64, now: Instant) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        Self {
            host: Host::client(random.u64(..), now, ALPN),
            exchanges: BTreeMap::new(),
            left: random.u64(10..40),
            connected: false,
            gone: false,
            tally: Tally::default(),
            random,
        }
    }

    pub(super) fn next(&mut self) -> Option<Instant> {
        self.host.next()
    }

    pub(super) fn receive(&mut self, network: &Network, datagram: BytesMut) {
        self.host.receive(network, datagram);
    }

    pub(super) fn is_drained(&self) -> bool {
        self.host.is_drained()
    }

    pub(super) fn is_over(&self) -> bool {
        self.gone || self.left == 0 && self.exchanges.is_empty()
    }

    pub(super) fn close(&mut self, now: Instant) {
        if let Some(connection) = self.host.connection() {
            connection.close(now, VarInt::from_u32(0), Bytes::new());
        }
    }

    /// Does what there is to do now; gives whether there was anything.
    pub(super) fn drive(&mut self, network: &mut Network) -> bool {
        self.host.turn(network.now());
        let mut busy = false;
        while let Some(event) = self.host.poll() {
            busy = true;
            self.on_event(event);
        }
        if self.host.is_drained() {
            // By a reset, if what the server said at its end was lost.
            self.lost();
        }
        while self.connected && !self.gone && self.left > 0 && self.ask() {
            busy = true;
        }
        busy | self.host.transmit(network)
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Connected => self.connected = true,
            Event::Stream(StreamEvent::Readable { id }) => self.read(id),
            Event::Stream(StreamEvent::Writable { id }) => self.write(id),
            Event::Stream(StreamEvent::Stopped { id, .. }) => {
                // It was refused before it was whole.
                if let Some(exchange) = self.exchanges.get_mut(&id) {
                    assert!(exchange.is_spoilt || exchange.finished, "{exchange:?}");
                    exchange.finished = true;
                }
            }
            Event::ConnectionLost { reason } => {
                if let ConnectionError::ApplicationClosed(close) = &reason {
                    assert_eq!(close.error_code, code(RefusalCode::GOING_AWAY.0), "{reason}");
                } else {
                    // A handshake may take longer than the server waits for it.
                    let late =
                        !self.connected && matches!(reason, ConnectionError::ConnectionClosed(_));
                    assert!(late || matches!(reason, ConnectionError::LocallyClosed), "{reason}");
                }
                self.lost();
            }
            _ => {}
        }
    }

    fn lost(&mut self) {
        self.gone = true;
        self.tally.rejected += self.exchanges.len() as u64;
        self.exchanges.clear();
    }

    /// Sends one more request, if a stream is allowed.
    fn ask(&mut self) -> bool {
        let Some(connection) = self.host.connection() else { return false };
        let Some(stream) = connection.streams().open(Dir::Bi) else { return false };
        self.left -= 1;
        let random = &mut self.random;
        let count = if random.u32(..10) == 0 { random.usize(20..100) } else { random.usize(1..8) };
        // Of many wants each is for little.
        let objects = if count < 8 { OBJECTS } else { OBJECTS / 2 };
        let wants: Vec<(u64, Want)> = (0..count).map(|_| want(random, objects)).collect();
        let request = Request {
            repository: "team/app".to_owned(),
            wants: wants.iter().map(|(_, want)| want.clone()).collect(),
            ..Request::default()
        };
        let mut out = request.encode().unwrap();
        let is_spoilt = random.u32(..12) == 0;
        if is_spoilt {
            let at = random.usize(..out.len());
            match random.u32(..3) {
                0 => out.truncate(at),
                1 => out[at] ^= 1 << random.u32(..8),
                _ => out.push(0),
            }
        }
        self.exchanges.insert(
            stream,
            Exchange {
                out: out.into(),
                finished: false,
                wants,
                is_spoilt,
                reader: Reader::client(),
                answers: Vec::new(),
                refusal: None,
                cancels_at: (random.u32(..12) == 0).then(|| random.usize(..100_000)),
                received: 0,
            },
        );
        self.write(stream);
        true
    }

    fn write(&mut self, stream: StreamId) {
        let Some(exchange) = self.exchanges.get_mut(&stream) else { return };
        let connection = self.host.connection().unwrap();
        while !exchange.finished {
            let mut sending = connection.send_stream(stream);
            if exchange.out.is_empty() {
                let finished = sending.finish();
                assert!(matches!(finished, Ok(()) | Err(FinishError::Stopped(_))), "{finished:?}");
                exchange.finished = true;
                return;
            }
            let count = self.random.usize(1..=exchange.out.len());
            match sending.write(&exchange.out[..count]) {
                Ok(written) => {
                    let _ = exchange.out.split_to(written);
                }
                Err(WriteError::Blocked | WriteError::Stopped(_)) => return,
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn read(&mut self, stream: StreamId) {
        loop {
            let Some(exchange) = self.exchanges.get_mut(&stream) else { return };
            let connection = self.host.connection().unwrap();
            let mut receive = connection.recv_stream(stream);
            let Ok(mut chunks) = receive.read(true) else { return };
            let next = chunks.next(self.random.usize(1..5_000));
            let _ = chunks.finalize();
            match next {
                Ok(Some(chunk)) => {
                    exchange.take(chunk.bytes);
                    if exchange.cancels_at.is_some_and(|at| exchange.received >= at) {
                        let _ = connection.recv_stream(stream).stop(code(0));
                        let _ = connection.send_stream(stream).reset(code(0));
                        self.exchanges.remove(&stream);
                        self.tally.cancelled += 1;
                        return;
                    }
                }
                Ok(None) => {
                    let exchange = self.exchanges.remove(&stream).unwrap();
                    return exchange.whole(&mut self.tally);
                }
                Err(ReadError::Reset(with)) => {
                    let exchange = self.exchanges.remove(&stream).unwrap();
                    return exchange.reset(with, &mut self.tally);
                }
                Err(ReadError::Blocked) => return,
            }
        }
    }
}

/// A want for one of so many objects, and its number.
fn want(random: &mut fastrand::Rng, objects: u64) -> (u64, Want) {
    // Those that break off cut off what comes behind them; so they are few.
    let number = loop {
        let number = random.u64(..objects);
        let is_rare = matches!(manner(number), Manner::Breaks | Manner::Wrong);
        if !is_rare || random.u32(..8) == 0 {
            break number;
        }
    };
    let mut want = Want::whole(Digest::sha256(&object(number)));
    match random.u32(..8) {
        0 => (want.offset, want.len) = (random.u64(..3_000), Some(random.u64(1..3_000))),
        1 => want.offset = random.u64(..3_000),
        2 => want.metadata_only = true,
        3 => want.digest = Digest::sha256(&number.to_le_bytes()),
        _ => {}
    }
    (number, want)
}

impl Exchange {
    fn take(&mut self, mut bytes: Bytes) {
        self.received += bytes.len();
        while !bytes.is_empty() {
            let (taken, item) = self.reader.read(&bytes).unwrap();
            let piece = bytes.split_to(taken);
            match item {
                Some(Item::Answer(answer)) => self.answers.push((answer, Vec::new())),
                Some(Item::Body) => self.answers.last_mut().unwrap().1.extend_from_slice(&piece),
                Some(Item::Refusal(refusal)) => self.refusal = Some(refusal),
                Some(Item::Request(_) | Item::Credential(_)) => panic!("a server does not ask"),
                None => {}
            }
        }
    }

    /// The stream has ended.
    fn whole(self, tally: &mut Tally) {
        assert!(self.reader.is_at_boundary(), "{self:?}");
        if let Some(refusal) = &self.refusal {
            assert!(self.answers.is_empty());
            if refusal.code == RefusalCode::GOING_AWAY {
                tally.rejected += 1;
            } else {
                assert!(self.is_spoilt, "{refusal:?}");
                tally.refused += 1;
            }
            return;
        }
        assert!(!self.is_spoilt, "what is no request was answered");
        let mut answers = self.answers.into_iter().peekable();
        for (index, (number, want)) in (0_u32..).zip(&self.wants) {
            let (first, mut body) = answers.next().expect("an answer for each want");
            let mut last = first.clone();
            while last.more {
                let (next, piece) = answers.next().expect("there is more");
                assert_eq!((next.want, next.start), (index, body.len() as u64));
                body.extend_from_slice(&piece);
                last = next;
            }
            assert_eq!((first.want, first.digest), (index, want.digest));
            tally.body_bytes += body.len() as u64;
            check(*number, want, &first, &last, &body, tally);
        }
        assert!(answers.next().is_none(), "there is an answer too many");
    }

    /// The stream was cut off.
    fn reset(self, with: VarInt, tally: &mut Tally) {
        if self.is_spoilt && with == code(RefusalCode::RECORD.0) {
            // What stands behind the request came when the answer was on its way.
            tally.refused += 1;
            return;
        }
        let is = |number: u64, manners: &[Manner]| manners.contains(&manner(number));
        let may = |manners: &[Manner]| self.wants.iter().any(|(number, _)| is(*number, manners));
        if with == code(CONTENT_WRONG) {
            assert!(may(&[Manner::Wrong]), "{:?}", self.wants);
        } else {
            assert_eq!(with, code(SOURCE_BROKE));
            assert!(may(&[Manner::Breaks, Manner::Fails]), "{:?}", self.wants);
        }
        tally.broken += 1;
    }
}

fn check(number: u64, want: &Want, first: &Answer, last: &Answer, body: &[u8], tally: &mut Tally) {
    let object = object(number);
    let total = object.len() as u64;
    if want.digest != Digest::sha256(&object) {
        assert_eq!((first.status, body.len()), (404, 0));
        tally.errors += 1;
        return;
    }
    if want.offset >= total {
        assert_eq!((first.status, first.total), (416, total));
        tally.errors += 1;
        return;
    }
    let is_open = manner(number) == Manner::Open;
    if want.metadata_only {
        assert_eq!((first.status, body.len(), last.more), (200, 0, false));
        assert!(first.total == if is_open { TOTAL_UNKNOWN } else { total });
        tally.metadata += 1;
        return;
    }
    if is_open {
        assert_eq!((last.status, last.total), (200, total));
        assert!(body == object);
        tally.open += 1;
        return;
    }
    if first.status == 502 {
        assert!(manner(number) == Manner::Fails && body.is_empty());
        tally.errors += 1;
        return;
    }
    // Of one byte there is no middle to break off in.
    let breaks = matches!(manner(number), Manner::Fails | Manner::Breaks | Manner::Wrong);
    assert!(!breaks || first.len == 1 && manner(number) != Manner::Fails);
    let end = want.len.map_or(total, |len| total.min(want.offset + len));
    let is_part = want.offset > 0 || want.len.is_some();
    assert_eq!(first.status, if is_part { 206 } else { 200 });
    assert_eq!((first.total, first.start, first.len), (total, want.offset, end - want.offset));
    assert!(body == &object[want.offset as usize..end as usize], "{number}: {want:?}");
    if is_part {
        tally.partial += 1;
    } else {
        tally.whole += 1;
    }
}

fn code(number: u32) -> VarInt {
    VarInt::from_u32(number)
}
