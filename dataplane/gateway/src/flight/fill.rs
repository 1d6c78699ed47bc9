//! A filler: upstream requests that write a run of chunks, from one source after the other.
//!
//! It owns a [`Span`](super::plan::Span) of the flight and nothing else. It never waits for a
//! reader; it waits for the origin, and for a free slot of the arena.

use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use outrider_shard::time::{sleep, timeout};
use outrider_uplink::{
    Fetch, FetchBody, FetchError, FetchMethod, FetchRange, FetchRequest, Target,
};

use super::plan::{self, Advance, Span};
use super::{Fault, Flight, Partial, Source, Verdict, chunk_at, chunk_len, chunk_start};

/// A source that brings nothing for this long loses the fetch to another one, where there is one.
const STALL: Duration = Duration::from_secs(2);

/// How often one source is asked again from where it broke off, without a chunk in between.
const RETRIES_MAX: u32 = 2;

/// The pause before a source is asked again.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Readers are told of new bytes at least this often.
const NOTIFY_BYTES: usize = 64 * 1024;

/// When all readers have left, a fill of the whole content goes on if this much or less is missing:
/// who left often comes back, and the rest is cheaper now than later.
const FINISH_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// What one request of a range asks for at the most: 4 MiB. Clients such as containerd ask for a range
/// without an end and leave early; what was asked for and not read is lost in the sockets' buffers.
const RANGE_CHUNKS_MAX: u32 = 16;

/// Why a request ended without an error.
enum Ended {
    /// Nothing is left to write.
    Done,
    /// The next missing chunk is far ahead: ask from there.
    Skipped,
}

/// Runs the filler until its span is written, its readers are gone, or every source failed.
pub(super) async fn run(flight: Rc<Flight>, id: u64) {
    if let Err(fault) = fill(&flight, id).await {
        flight.with_filler(id, |filler| filler.partial = None);
        flight.end(Verdict::Failed(fault));
    }
    flight.end_filler(id);
}

async fn fill(flight: &Rc<Flight>, id: u64) -> Result<(), Fault> {
    let mut tried: Vec<Source> = Vec::new();
    let mut source = flight.sources.borrow()[0].clone();
    let mut retries = 0;
    loop {
        let Some(before) = flight.with_filler(id, |filler| filler.span) else { return Ok(()) };
        let fault = match request(flight, id, before, &source, &tried).await {
            Ok(Ended::Done) => return Ok(()),
            Ok(Ended::Skipped) => continue,
            Err(fault) => fault,
        };
        let after = flight
            .with_filler(id, |filler| {
                filler.partial = None;
                filler.span
            })
            .unwrap_or(before);
        if after.next > before.next {
            retries = 0;
            tried.clear();
        }
        if is_final_everywhere(&fault) || flight.verdict().is_some() {
            return Err(fault);
        }
        if let Fault::Upstream(FetchError::RangeNotSatisfiable { total: found }) = fault {
            let Some(known) = flight.total() else {
                // Whoever asked for that range is told so; the others only need the length.
                return learn_by_head(flight, &source).await;
            };
            // The length that was said first is not the content's. Who asks next begins anew.
            flight.home.cache.forget(&flight.digest);
            return Err(Fault::Length { known, found: found.unwrap_or(before_bytes(before)) });
        }
        if is_worth_a_retry(&fault) && retries < RETRIES_MAX && !matches!(fault, Fault::Stalled) {
            retries += 1;
            flight.home.metrics.fill_retries.inc();
            sleep(RETRY_PAUSE * retries).await;
            continue;
        }
        tried.push(source.clone());
        match untried(flight, &tried) {
            Some(next) => {
                flight.home.metrics.source_takeovers.inc();
                source = next;
                retries = 0;
            }
            None if matches!(fault, Fault::Stalled) => {
                // The others failed since: the one that was slow is what there is.
                tried.clear();
                retries = RETRIES_MAX;
            }
            None => return Err(fault),
        }
    }
}

fn untried(flight: &Flight, tried: &[Source]) -> Option<Source> {
    flight.sources.borrow().iter().find(|source| !tried.contains(source)).cloned()
}

/// Faults that no other source can mend.
fn is_final_everywhere(fault: &Fault) -> bool {
    matches!(fault, Fault::Busy | Fault::UnknownLength | Fault::Abandoned | Fault::Length { .. })
}

/// The content ends at or before the first byte of a span that is behind its end.
fn before_bytes(span: Span) -> u64 {
    chunk_start(span.next)
}

/// Learns the length without a body.
async fn learn_by_head(flight: &Flight, source: &Source) -> Result<(), Fault> {
    let wanted = wanted(flight, source, FetchMethod::Head, None);
    let head = flight.home.uplink.fetch(wanted).await?.head;
    flight.set_total(head.length.ok_or(Fault::UnknownLength)?)
}

fn wanted(
    flight: &Flight,
    source: &Source,
    method: FetchMethod,
    range: Option<FetchRange>,
) -> FetchRequest {
    flight.home.metrics.upstream_requests.inc();
    FetchRequest {
        from: source.from,
        repository: source.repository.to_string(),
        target: Target::Blob(flight.digest),
        method,
        range,
        accept: Vec::new(),
    }
}

/// Faults of a connection, after which the same source may go on.
fn is_worth_a_retry(fault: &Fault) -> bool {
    match fault {
        Fault::Upstream(error) => {
            matches!(
                error,
                FetchError::Cut { .. } | FetchError::Connect(_) | FetchError::Timeout { .. }
            )
        }
        _ => false,
    }
}

/// Awaits the origin; gives up after [`STALL`] once there is another source to turn to.
async fn unless_stalled<T>(
    flight: &Flight,
    source: &Source,
    tried: &[Source],
    work: impl Future<Output = T>,
) -> Result<T, Fault> {
    let mut work = pin!(work);
    loop {
        match timeout(STALL, work.as_mut()).await {
            Ok(value) => return Ok(value),
            Err(_) => {
                let others = flight.sources.borrow();
                if others.iter().any(|other| other != source && !tried.contains(other)) {
                    return Err(Fault::Stalled);
                }
            }
        }
    }
}

/// One upstream request: from the first chunk of the span on, as far as it goes.
async fn request(
    flight: &Rc<Flight>,
    id: u64,
    span: Span,
    source: &Source,
    tried: &[Source],
) -> Result<Ended, Fault> {
    let first = chunk_start(span.next);
    let end = if flight.whole.get() {
        span.end
    } else {
        span.end.min(span.next.saturating_add(RANGE_CHUNKS_MAX))
    };
    let last = if end == plan::UNKNOWN_END { None } else { Some(chunk_start(end) - 1) };
    let reaches_end = match flight.total() {
        Some(total) => last.is_none_or(|last| last + 1 >= total),
        None => last.is_none(),
    };
    let range = match (first, reaches_end) {
        (0, true) => None,
        (first, true) => Some(FetchRange { first, last: None }),
        (first, false) => Some(FetchRange { first, last }),
    };
    let wanted = wanted(flight, source, FetchMethod::Get, range);
    let fetch = unless_stalled(flight, source, tried, flight.home.uplink.fetch(wanted)).await??;
    let offset = learn(flight, id, source, &fetch, first)?;
    let stop = fetch.head.range.as_ref().map(|range| range.last.saturating_add(1));
    write_body(flight, id, source, tried, fetch.body, offset, stop).await
}

/// Takes the length from the first answer, holds later ones against it, and returns the offset of
/// the body's first byte.
fn learn(
    flight: &Rc<Flight>,
    id: u64,
    source: &Source,
    fetch: &Fetch,
    asked: u64,
) -> Result<u64, Fault> {
    let (offset, total) = match &fetch.head.range {
        Some(range) => (range.first, range.total),
        None => (0, fetch.head.length),
    };
    let total = total.or(flight.total()).ok_or(Fault::UnknownLength)?;
    if let Some(known) = flight.total()
        && known != total
    {
        // One of the two lies. Who asks next begins anew.
        flight.home.cache.forget(&flight.digest);
        return Err(Fault::Length { known, found: total });
    }
    if offset > asked {
        return Err(FetchError::Protocol(
            "the answer begins after the range that was asked".into(),
        )
        .into());
    }
    let cache = &flight.home.cache;
    cache.begin(&flight.digest, total, "", source.origin, flight.customer).map_err(|error| {
        tracing::warn!(digest = %flight.digest, "the cache refuses a fetch: {error}");
        Fault::Busy
    })?;
    cache.set_origin_ttl(source.origin, source.ttl_minutes);
    flight.total.set(Some(total));
    let chunks = flight.chunks();
    flight.with_filler(id, |filler| filler.span.end = filler.span.end.min(chunks));
    flight.progress.notify();
    Ok(offset)
}

/// Writes the answer's bytes into chunks, from `offset` on up to `stop`, or to the end.
async fn write_body(
    flight: &Rc<Flight>,
    id: u64,
    source: &Source,
    tried: &[Source],
    mut body: FetchBody,
    offset: u64,
    stop: Option<u64>,
) -> Result<Ended, Fault> {
    let total = flight.total().ok_or(Fault::UnknownLength)?;
    let stop = stop.unwrap_or(total).min(total);
    let mut run = Run { flight, id, total, stop, at: offset, mode: None, untold: 0 };
    loop {
        if let Some(ended) = run.enter_chunk().await? {
            return Ok(ended);
        }
        let mut frame = run.next_frame(source, tried, &mut body).await?;
        while !frame.is_empty() {
            run.take(&mut frame);
            if let Some(ended) = run.enter_chunk().await? {
                return Ok(ended);
            }
        }
        outrider_shard::task::yield_if_needed().await;
    }
}

/// What happens to the bytes of the chunk at hand.
#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Write,
    Discard,
}

/// One answer's way through its chunks.
struct Run<'a> {
    flight: &'a Rc<Flight>,
    id: u64,
    total: u64,
    /// Where the answer ends.
    stop: u64,
    /// Offset of the next byte of the answer in the content.
    at: u64,
    /// None between two chunks.
    mode: Option<Mode>,
    /// Bytes that were written since the readers were told.
    untold: usize,
}

impl Run<'_> {
    /// Between two chunks, decides what happens to the next one, or that this answer has ended.
    async fn enter_chunk(&mut self) -> Result<Option<Ended>, Fault> {
        if self.mode.is_some() {
            return Ok(None);
        }
        let Some(span) = self.flight.with_filler(self.id, |filler| filler.span) else {
            return Ok(Some(Ended::Done));
        };
        if self.flight.verdict().is_some() {
            return Err(Fault::Abandoned);
        }
        if self.at >= self.stop && span.next < span.end {
            return Ok(Some(Ended::Skipped));
        }
        let chunk = chunk_at(self.at);
        if chunk < span.next && self.at < self.total {
            // The origin ignored the range and began at the front.
            self.mode = Some(Mode::Discard);
            return Ok(None);
        }
        if self.is_abandoned(span) {
            self.flight.home.metrics.fills_abandoned.inc();
            return Err(Fault::Abandoned);
        }
        match plan::on_advance(span, &self.others(), |chunk| self.flight.is_present(chunk)) {
            Advance::Done => Ok(Some(Ended::Done)),
            Advance::SkipTo(chunk) => {
                self.flight.with_filler(self.id, |filler| filler.span.next = chunk);
                Ok(Some(Ended::Skipped))
            }
            Advance::Discard => {
                self.mode = Some(Mode::Discard);
                Ok(None)
            }
            Advance::Write => {
                let payload_bytes = chunk_len(chunk, self.total);
                let slot = self.flight.home.cache.slot(payload_bytes).await;
                let writer = slot.map_err(|_| Fault::Busy)?;
                self.flight.with_filler(self.id, |filler| {
                    filler.partial = Some(Partial { chunk, writer })
                });
                self.mode = Some(Mode::Write);
                Ok(None)
            }
        }
    }

    /// Takes as much of the frame as belongs to the chunk at hand.
    fn take(&mut self, frame: &mut Bytes) {
        let chunk = chunk_at(self.at);
        let chunk_end = chunk_start(chunk) + chunk_len(chunk, self.total) as u64;
        let piece = frame.split_to(frame.len().min((chunk_end - self.at) as usize));
        if self.mode == Some(Mode::Write) {
            let written = self.flight.with_filler(self.id, |filler| {
                filler.partial.as_mut().map_or(0, |partial| partial.writer.append(&piece))
            });
            debug_assert_eq!(written, Some(piece.len()), "a slot is as large as its chunk");
            self.untold += piece.len();
        }
        self.at += piece.len() as u64;
        if self.at == chunk_end {
            self.leave_chunk(chunk);
        } else if self.untold >= NOTIFY_BYTES {
            self.tell();
        }
    }

    fn leave_chunk(&mut self, chunk: u32) {
        let flight = self.flight;
        let written = flight.with_filler(self.id, |filler| {
            filler.span.next = filler.span.next.max(chunk + 1);
            filler.partial.take()
        });
        // A flight that has failed may have had its content forgotten.
        if let Some(Some(partial)) = written
            && self.flight.verdict().is_none()
        {
            flight.home.metrics.upstream_bytes.inc_by(partial.writer.len() as u64);
            flight.note_refill(chunk);
            flight.home.cache.insert(&flight.digest, chunk, partial.writer);
            self.tell();
        }
        self.mode = None;
    }

    fn tell(&mut self) {
        self.untold = 0;
        self.flight.progress.notify();
    }

    fn others(&self) -> Vec<Span> {
        let fillers = self.flight.fillers.borrow();
        fillers.iter().filter(|filler| filler.id != self.id).map(|filler| filler.span).collect()
    }

    /// Nobody reads, and what is missing is not worth fetching for who may come back.
    fn is_abandoned(&self, span: Span) -> bool {
        if self.flight.readers.get() > 0 {
            return false;
        }
        let missing = chunk_start(span.end).min(self.total).saturating_sub(self.at);
        !self.flight.whole.get() || missing > FINISH_BYTES_MAX
    }

    /// The next bytes of the answer. Tells the readers what there is before it waits.
    async fn next_frame(
        &mut self,
        source: &Source,
        tried: &[Source],
        body: &mut FetchBody,
    ) -> Result<Bytes, Fault> {
        let mut next = pin!(body.next());
        let ready = std::future::poll_fn(|context| Poll::Ready(next.as_mut().poll(context))).await;
        let frame = match ready {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                if self.untold > 0 {
                    self.tell();
                }
                unless_stalled(self.flight, source, tried, next).await?
            }
        };
        match frame {
            Some(Ok(bytes)) => {
                let room = self.total - self.at;
                if bytes.len() as u64 > room {
                    return Err(
                        FetchError::Protocol("more bytes than were announced".into()).into()
                    );
                }
                Ok(bytes)
            }
            Some(Err(error)) => Err(error.into()),
            None => {
                let reason = format!("{} bytes were announced", self.total);
                Err(FetchError::Cut { received_bytes: self.at, reason }.into())
            }
        }
    }
}
