//! The bodies of responses.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use outrider_artifact::{ContentHasher, Digest};
use outrider_cache::Tier;
use outrider_transport::{BodyFault, PinBudget};
use outrider_uplink::FetchBody;

use crate::accesses::Answered;
use crate::flight::Fault;
use crate::flight::reader::{Piece, Reader};
use crate::mesh::reply::Stream;
use crate::metrics::{GatewayMetrics, TierLabels};

/// The most that is passed through of a content whose length the upstream does not say.
const PASS_THROUGH_BYTES_MAX: u64 = 16 << 30;

/// The most that a frame holds while clients hold too much of the cache's memory: as much as the
/// transport copies, so that nothing is kept back for the next one.
const PRESSED_FRAME_BYTES: usize = 64 * 1024;

type Reading = Pin<Box<dyn Future<Output = (Reader, Option<Result<Piece, Fault>>)>>>;

/// What a response sends.
pub struct GatewayBody {
    kind: Kind,
    /// Told of the bytes that are sent.
    answered: Option<Box<Answered>>,
}

enum Kind {
    Empty,
    Whole(Option<Bytes>),
    /// Boxed: a reader is large, and most responses have none.
    Content(Box<Content>),
    Through(Box<Through>),
    /// What another shard reads.
    OfShard(Stream),
}

struct Content {
    state: Option<State>,
    remaining: u64,
    pins: PinBudget,
    metrics: GatewayMetrics,
    tiers: TierCounts,
}

enum State {
    Idle(Reader),
    Reading(Reading),
}

/// Bytes sent by tier, added to the metrics once, at the end.
#[derive(Default)]
struct TierCounts {
    ram: u64,
    ssd: u64,
    origin: u64,
}

/// A content of unknown length, on its way from the upstream to one client.
struct Through {
    body: FetchBody,
    /// One piece is held back, so that the last one goes out only when the digest is right.
    held: Option<Bytes>,
    hasher: Option<ContentHasher>,
    wanted: Digest,
    passed: u64,
    metrics: GatewayMetrics,
}

impl From<Kind> for GatewayBody {
    fn from(kind: Kind) -> Self {
        Self { kind, answered: None }
    }
}

impl GatewayBody {
    /// Has what is sent noted, when this is dropped.
    pub(crate) fn noted(&mut self, answered: Option<Box<Answered>>) {
        self.answered = answered;
    }

    /// No body.
    pub(crate) fn empty() -> Self {
        Kind::Empty.into()
    }

    /// These bytes.
    pub(crate) fn whole(bytes: Bytes) -> Self {
        if bytes.is_empty() { Self::empty() } else { Kind::Whole(Some(bytes)).into() }
    }

    /// What the reader reads.
    pub(crate) fn content(reader: Reader, pins: PinBudget, metrics: GatewayMetrics) -> Self {
        let remaining = reader.remaining();
        let state = Some(State::Idle(reader));
        let tiers = TierCounts::default();
        Kind::Content(Box::new(Content { state, remaining, pins, metrics, tiers })).into()
    }

    /// What another shard reads.
    pub(crate) fn of_shard(stream: Stream) -> Self {
        Kind::OfShard(stream).into()
    }

    /// All of it, when that is at hand. For another shard, which notes what it sends.
    pub(crate) fn take_whole(&mut self) -> Option<Bytes> {
        match &mut self.kind {
            Kind::Empty => Some(Bytes::new()),
            Kind::Whole(bytes) => Some(bytes.take().unwrap_or_default()),
            Kind::Content(_) | Kind::Through(_) | Kind::OfShard(_) => None,
        }
    }

    /// The next bytes of a content, if they are in memory. For another shard.
    pub(crate) fn try_next(&mut self) -> Option<Bytes> {
        let Kind::Content(content) = &mut self.kind else { return None };
        let Some(State::Idle(reader)) = &mut content.state else { return None };
        let piece = reader.try_next(usize::MAX)?;
        Some(content.count(piece))
    }

    /// What the upstream sends, checked against the digest before its last piece goes out.
    pub(crate) fn through(body: FetchBody, wanted: Digest, metrics: GatewayMetrics) -> Self {
        let hasher = Some(ContentHasher::new(wanted.algorithm()));
        let (held, passed) = (None, 0);
        Kind::Through(Box::new(Through { body, held, hasher, wanted, passed, metrics })).into()
    }
}

impl Body for GatewayBody {
    type Data = Bytes;
    type Error = BodyFault;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyFault>>> {
        let next = match &mut self.kind {
            Kind::Empty => return Poll::Ready(None),
            Kind::Whole(bytes) => Poll::Ready(bytes.take().map(Ok)),
            Kind::Content(content) => content.poll_next(context),
            Kind::Through(through) => through.poll_next(context),
            Kind::OfShard(stream) => stream.poll_next(context),
        };
        if let (Poll::Ready(Some(Ok(piece))), Some(answered)) = (&next, &mut self.answered) {
            answered.bytes += piece.len() as u64;
        }
        next.map(|piece| piece.map(|piece| piece.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Empty => true,
            Kind::Whole(bytes) => bytes.is_none(),
            Kind::Content(content) => content.remaining == 0,
            Kind::Through(_) => false,
            Kind::OfShard(stream) => stream.remaining() == Some(0),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            Kind::Content(content) => SizeHint::with_exact(content.remaining),
            Kind::Through(_) => SizeHint::default(),
            Kind::OfShard(stream) => stream.size_hint(),
        }
    }
}

impl Content {
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyFault>>> {
        if self.remaining == 0 {
            return Poll::Ready(None);
        }
        let Some(state) = self.state.take() else { return Poll::Ready(None) };
        let mut reading = match state {
            State::Idle(mut reader) => {
                let pressed = self.pins.is_under_pressure();
                let bytes_max = if pressed { PRESSED_FRAME_BYTES } else { usize::MAX };
                if let Some(piece) = reader.try_next(bytes_max) {
                    self.state = Some(State::Idle(reader));
                    return Poll::Ready(Some(Ok(self.count(piece))));
                }
                Box::pin(async move {
                    let next = reader.next(bytes_max).await;
                    (reader, next)
                })
            }
            State::Reading(reading) => reading,
        };
        let Poll::Ready((reader, next)) = reading.as_mut().poll(context) else {
            self.state = Some(State::Reading(reading));
            return Poll::Pending;
        };
        match next {
            Some(Ok(piece)) => {
                self.state = Some(State::Idle(reader));
                Poll::Ready(Some(Ok(self.count(piece))))
            }
            Some(Err(fault)) => {
                self.metrics.bodies_cut.inc();
                let reason = fault.to_string();
                Poll::Ready(Some(Err(match fault {
                    Fault::Mismatch(_) => BodyFault::wrong_content(reason),
                    _ => BodyFault::new(reason),
                })))
            }
            None => Poll::Ready(None),
        }
    }

    fn count(&mut self, piece: Piece) -> Bytes {
        let bytes = piece.bytes.len() as u64;
        self.remaining -= bytes;
        match piece.tier {
            Some(Tier::Ram) => self.tiers.ram += bytes,
            Some(Tier::Ssd) => self.tiers.ssd += bytes,
            None => self.tiers.origin += bytes,
        }
        piece.bytes
    }
}

impl Drop for Content {
    fn drop(&mut self) {
        let tiers =
            [("ram", self.tiers.ram), ("ssd", self.tiers.ssd), ("origin", self.tiers.origin)];
        for (tier, bytes) in tiers.into_iter().filter(|(_, bytes)| *bytes > 0) {
            self.metrics.body_bytes.get_or_create(&TierLabels { tier }).inc_by(bytes);
        }
    }
}

impl Through {
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyFault>>> {
        loop {
            let next = match self.body.poll_next(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(next) => next,
            };
            match next {
                Some(Ok(bytes)) => {
                    self.passed += bytes.len() as u64;
                    if self.passed > PASS_THROUGH_BYTES_MAX {
                        return self.cut(BodyFault::new(format!(
                            "more than {PASS_THROUGH_BYTES_MAX} bytes of unknown length"
                        )));
                    }
                    if let Some(hasher) = &mut self.hasher {
                        hasher.update(&bytes);
                    }
                    if let Some(held) = self.held.replace(bytes) {
                        return Poll::Ready(Some(Ok(held)));
                    }
                }
                Some(Err(error)) => return self.cut(BodyFault::new(error.to_string())),
                None => {
                    let Some(hasher) = self.hasher.take() else { return Poll::Ready(None) };
                    let found = hasher.finish();
                    if found != self.wanted {
                        self.metrics.mismatches.inc();
                        let fault = Fault::Mismatch(Box::new((self.wanted, found)));
                        return self.cut(BodyFault::wrong_content(fault.to_string()));
                    }
                    return Poll::Ready(self.held.take().map(Ok));
                }
            }
        }
    }

    fn cut(&mut self, why: BodyFault) -> Poll<Option<Result<Bytes, BodyFault>>> {
        self.metrics.bodies_cut.inc();
        self.hasher = None;
        self.held = None;
        Poll::Ready(Some(Err(why)))
    }
}
