//! The native protocol on a connection (`docs/NATIVE.md`): its requests, and what they may hold together.
//!
//! - `translate`: a want as a request to the handler, and the head of its answer as a record. Pure.
//! - `exchange`: one request on its stream. `sending`: one answer on its way out.

mod exchange;
mod sending;
mod translate;

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::HeaderValue;
use outrider_artifact::native::{NativeError, Refusal, RefusalCode, Request};
use quinn_proto::{Dir, StreamEvent, VarInt};

use self::exchange::{Exchange, Heard, Step};
use super::connection::{Held, Session};
use super::line::{End, Line, id_of, number, refusal};
use super::slots::Slots;
use crate::metrics::Reason;
use crate::peer::Protocol;
use crate::server::Handler;

/// Bytes of requests that are not whole, on all streams of a connection.
const PARTIAL_BYTES_MAX: usize = 256 << 10;

/// Wants of the requests that are being answered on one connection: four requests of the largest kind.
const WANTS_MAX: usize = 1024;

/// Wants of one connection that are being handled at a time. One for each stream is always allowed.
const HANDLERS_MAX: usize = 64;

/// What the requests of one connection hold.
#[derive(Debug, Default)]
pub(crate) struct Load {
    /// Requests that are not whole, and their bytes.
    untold: usize,
    partial_bytes: usize,
    /// Wants of requests that are being answered.
    wants: usize,
    /// Wants that are being handled.
    handlers: usize,
    /// Tokens of requests that are being answered.
    credential_bytes: usize,
}

/// What a connection that speaks the native protocol has beside its line.
pub(crate) struct Native<H: Handler> {
    exchanges: Slots<Exchange<H::Body>>,
    load: Load,
    /// The token of the last request that had one: the others have mostly the same.
    credential: Option<HeaderValue>,
    retired: bool,
    chunks: Vec<Bytes>,
}

impl<H: Handler> Session<H> for Native<H> {
    fn on_stream(&mut self, line: &mut Line<H>, now: Instant, event: StreamEvent) {
        match event {
            StreamEvent::Opened { dir } => {
                while let Some(id) = line.quic.streams().accept(dir) {
                    match dir {
                        Dir::Bi => {
                            let wakes = &line.shared.wakes;
                            self.exchanges.insert(number(id), Exchange::new(), wakes, line.place);
                            self.load.untold += 1;
                            self.read(line, now, number(id));
                        }
                        Dir::Uni => {
                            // Nothing comes that way; to go on with it is as bad as giving up requests.
                            let _ = line.quic.recv_stream(id).stop(refusal(RefusalCode::RECORD));
                            line.note_given_up(now);
                        }
                    }
                    if line.closed {
                        return;
                    }
                }
            }
            StreamEvent::Readable { id } if id.dir() == Dir::Bi => self.read(line, now, number(id)),
            StreamEvent::Writable { id } => self.advance(line, number(id)),
            StreamEvent::Finished { id } => self.arrived(number(id)),
            StreamEvent::Stopped { id, error_code } => {
                // What the client does not want any more is not sent again either.
                let _ = line.quic.send_stream(id).reset(error_code);
                self.give_up(line, now, number(id));
            }
            StreamEvent::Readable { .. } | StreamEvent::Available { .. } => {}
        }
    }

    fn on_wake(&mut self, line: &mut Line<H>, _now: Instant, slot: usize) {
        if let Some(stream) = self.exchanges.stream_in(slot) {
            self.advance(line, stream);
        }
    }

    fn retire(&mut self) {
        self.retired = true;
    }

    /// The client learns it from the end of the connection, or from the refusal of its next request.
    fn farewell(&self, _line: &Line<H>) -> Duration {
        Duration::ZERO
    }

    fn head_started(&self) -> bool {
        self.load.untold > 0
    }

    fn has_answered_all(&self) -> bool {
        self.exchanges.all(Exchange::has_arrived)
    }

    fn held(&self) -> Held {
        Held {
            requests: self.exchanges.len() + self.load.handlers,
            partial_bytes: self.load.partial_bytes,
            // As it is counted; the same token is there once.
            uploaded_bytes: self.load.credential_bytes,
            ..Held::default()
        }
    }

    fn let_go(&mut self, _line: &mut Line<H>) {
        drop(self.exchanges.clear());
        self.load = Load::default();
    }
}

impl<H: Handler> Native<H> {
    pub(crate) fn new() -> Self {
        Self {
            exchanges: Slots::default(),
            load: Load::default(),
            credential: None,
            retired: false,
            chunks: Vec::new(),
        }
    }

    /// Reads what the client has sent on a stream, and goes on with what comes of it.
    fn read(&mut self, line: &mut Line<H>, now: Instant, stream: u64) {
        let Some((exchange, _)) = self.exchanges.get(stream) else { return };
        if exchange.received {
            return;
        }
        let Some(end) = line.read(id_of(stream), usize::MAX, &mut self.chunks) else { return };
        exchange.received = !matches!(end, End::Open);
        let before = exchange.partial_bytes();
        let heard = exchange.hear(&mut self.chunks, matches!(end, End::Finished));
        self.load.partial_bytes = self.load.partial_bytes - before + exchange.partial_bytes();
        match (heard, end) {
            (_, End::Reset(_)) => {
                let done = VarInt::from_u32(0);
                let _ = line.quic.send_stream(id_of(stream)).reset(done);
                return self.give_up(line, now, stream);
            }
            (Heard::More, _)
                if !exchange.is_told() && self.load.partial_bytes > PARTIAL_BYTES_MAX =>
            {
                let text = "too many requests of this connection are not whole".to_owned();
                self.refuse(line, stream, &Refusal { code: RefusalCode::BUSY, text });
            }
            (Heard::More, _) => return,
            (Heard::End, _) => {
                if exchange.has_arrived() {
                    self.remove(line, stream);
                }
                return;
            }
            (Heard::Request(request), _) => self.begin(line, stream, request),
            (Heard::Wrong(error), _) => self.refuse(line, stream, &error.refusal()),
            (Heard::TooMuch, _) => {
                // The answer may be on its way, in which a refusal has no place.
                let wrong = refusal(RefusalCode::RECORD);
                let _ = line.quic.send_stream(id_of(stream)).reset(wrong);
                return self.give_up(line, now, stream);
            }
        }
        self.advance(line, stream);
    }

    /// A request is whole.
    fn begin(&mut self, line: &mut Line<H>, stream: u64, request: Request) {
        line.shared.metrics.requests_of(Protocol::Native).inc();
        if let Err(why) = self.admit(line, &request) {
            return self.refuse(line, stream, &why);
        }
        let Some((exchange, _)) = self.exchanges.get(stream) else { return };
        line.shared.metrics.quic.native_wants.inc_by(request.wants.len() as u64);
        self.load.untold -= 1;
        self.load.wants += request.wants.len();
        self.load.partial_bytes -= exchange.partial_bytes();
        exchange.share_credential(&mut self.credential);
        self.load.credential_bytes += exchange.credential_bytes();
        exchange.begin(request, &line.activity);
    }

    fn admit(&self, line: &Line<H>, request: &Request) -> Result<(), Refusal> {
        let refused = |code, text: &str| Err(Refusal { code, text: text.to_owned() });
        if self.retired {
            return refused(RefusalCode::GOING_AWAY, "this server goes away");
        }
        if line.shared.memory.is_full() {
            line.shared.metrics.quic.requests_refused.inc();
            return refused(RefusalCode::BUSY, "connections hold as much memory as they may");
        }
        if self.load.wants + request.wants.len() > WANTS_MAX {
            return refused(
                RefusalCode::BUSY,
                "this connection waits for too many answers; read some of them first",
            );
        }
        translate::check(request).map_err(|error: NativeError| error.refusal())?;
        let peer = line.peer(Protocol::Native);
        line.shared
            .handler
            .admit(&request.customer, &request.region, peer)
            .map_err(|text| Refusal { code: RefusalCode::FORBIDDEN, text })
    }

    fn refuse(&mut self, line: &mut Line<H>, stream: u64, why: &Refusal) {
        tracing::debug!(address = %line.address, "request refused: {}", why.text);
        line.shared.metrics.quic.native_refusals.inc();
        let Some((exchange, _)) = self.exchanges.get(stream) else { return };
        self.load.untold -= 1;
        self.load.partial_bytes -= exchange.partial_bytes();
        exchange.refuse(why, &line.activity, &line.pins);
        self.stop_receiving(line, stream);
    }

    /// Lets a request go on as far as it can.
    fn advance(&mut self, line: &mut Line<H>, stream: u64) {
        if line.closed {
            return;
        }
        let Some((exchange, waker)) = self.exchanges.get(stream) else { return };
        let (before, credential) = (exchange.handlers(), exchange.credential_bytes());
        let elsewhere = self.load.handlers - before;
        let room = HANDLERS_MAX.saturating_sub(elsewhere);
        let step = exchange.advance(id_of(stream), line, waker, room);
        self.load.handlers = elsewhere + exchange.handlers();
        self.load.credential_bytes -= credential - exchange.credential_bytes();
        match step {
            Step::Waits => {}
            Step::Written { wants } => self.load.wants -= wants,
            Step::Cut(code) => {
                line.shared.metrics.count_closed(Reason::Fault);
                let _ = line.quic.send_stream(id_of(stream)).reset(code);
                self.remove(line, stream);
            }
        }
    }

    /// The client has all of an answer. Where its own side is still open, it is waited for without holding
    /// anything; it has as many of these as streams at most.
    fn arrived(&mut self, stream: u64) {
        if let Some((exchange, _)) = self.exchanges.get(stream) {
            exchange.arrived();
            if exchange.received {
                self.exchanges.remove(stream);
            }
        }
    }

    /// The client does not want an answer any more, or is not to have it.
    fn give_up(&mut self, line: &mut Line<H>, now: Instant, stream: u64) {
        if self.exchanges.get(stream).is_none() {
            // Its other side was given up before, or all of it was over.
            return;
        }
        self.remove(line, stream);
        line.note_given_up(now);
    }

    fn stop_receiving(&mut self, line: &mut Line<H>, stream: u64) {
        if let Some((exchange, _)) = self.exchanges.get(stream)
            && !exchange.received
        {
            exchange.received = true;
            // It fails only for a side that is over.
            let _ = line.quic.recv_stream(id_of(stream)).stop(VarInt::from_u32(0));
        }
    }

    fn remove(&mut self, line: &mut Line<H>, stream: u64) {
        self.stop_receiving(line, stream);
        let Some(exchange) = self.exchanges.remove(stream) else { return };
        self.load.untold -= usize::from(!exchange.is_told());
        self.load.partial_bytes -= exchange.partial_bytes();
        if exchange.is_told() {
            self.load.credential_bytes -= exchange.credential_bytes();
        }
        self.load.wants -= exchange.wants();
        self.load.handlers -= exchange.handlers();
    }
}
