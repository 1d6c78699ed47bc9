//! A body's way through a content: what is in memory, what is on disk, what is coming in.
//!
//! A reader owns its position and a claim on the flight, if there is one. It never holds more than
//! the piece that it hands out, so a slow one pins little and delays nobody.

use std::cell::Cell;
use std::ops::Range;
use std::rc::Rc;

use bytes::Bytes;
use outrider_artifact::Digest;
use outrider_cache::{Cache, Chunk, Tier};

use super::{
    Claim, Fault, Flight, Flights, Source, Verdict, chunk_at, chunk_len, chunk_start, chunks_of,
    has,
};

/// How many chunks are read from disk ahead of the one that is being sent: 1 MiB.
const READ_AHEAD_CHUNKS: u32 = 4;

/// A run of bytes of the content, and where it was found.
#[derive(Debug)]
pub(crate) struct Piece {
    pub(crate) bytes: Bytes,
    pub(crate) tier: Option<Tier>,
}

/// Reads a range of one content, from the front to the end.
pub(crate) struct Reader {
    cache: Cache,
    digest: Digest,
    feed: Feed,
    total: u64,
    at: u64,
    end: u64,
    /// The last chunk is handed out only when all of the content is known to be right.
    hold_last: bool,
    read_ahead_to: Cell<u32>,
}

/// Where a chunk comes from that is not in the cache.
enum Feed {
    /// From nowhere: the content is hosted here, and a missing chunk is lost.
    Nowhere,
    /// From a flight that is started when a chunk was evicted or damaged meanwhile.
    Later(Rc<Flights>, Source),
    /// From a flight. The hash has no claim: a content that nobody reads need not be hashed.
    Flight { flight: Rc<Flight>, claim: Option<Claim> },
}

impl Reader {
    /// Reads verified content. `refetch` says where a chunk is had from that is lost meanwhile.
    pub(crate) fn of_cache(
        cache: Cache,
        digest: Digest,
        total: u64,
        range: Range<u64>,
        refetch: Option<(Rc<Flights>, Source)>,
    ) -> Self {
        let feed = refetch.map_or(Feed::Nowhere, |(flights, source)| Feed::Later(flights, source));
        Self::new(cache, digest, feed, total, range, false)
    }

    /// Reads what is coming in, and has it come in. The length must be known.
    pub(crate) fn of_flight(flight: Rc<Flight>, range: Range<u64>, hold_last: bool) -> Self {
        let claim = flight.claim();
        let total = flight.total().unwrap_or(range.end);
        let (cache, digest) = (flight.home.cache.clone(), flight.digest);
        Self::new(
            cache,
            digest,
            Feed::Flight { flight, claim: Some(claim) },
            total,
            range,
            hold_last,
        )
    }

    /// Reads all of it for the hash.
    pub(super) fn of_hash(flight: Rc<Flight>, total: u64) -> Self {
        let (cache, digest) = (flight.home.cache.clone(), flight.digest);
        Self::new(cache, digest, Feed::Flight { flight, claim: None }, total, 0..total, false)
    }

    fn new(
        cache: Cache,
        digest: Digest,
        feed: Feed,
        total: u64,
        range: Range<u64>,
        hold_last: bool,
    ) -> Self {
        assert!(range.start <= range.end && range.end <= total, "a range lies within its content");
        let read_ahead_to = Cell::new(0);
        Self {
            cache,
            digest,
            feed,
            total,
            at: range.start,
            end: range.end,
            hold_last,
            read_ahead_to,
        }
    }

    /// Bytes that are still to come.
    pub(crate) fn remaining(&self) -> u64 {
        self.end - self.at
    }

    /// The next piece, of at most `bytes_max`, if it is in memory and may go out. Allocates nothing.
    pub(crate) fn try_next(&mut self, bytes_max: usize) -> Option<Piece> {
        if self.at == self.end || self.must_hold() {
            return None;
        }
        let chunk = self.cache.resident(&self.digest, chunk_at(self.at))?;
        Some(self.take(chunk, bytes_max))
    }

    /// The next piece, of at most `bytes_max`; `None` at the end of the range.
    pub(crate) async fn next(&mut self, bytes_max: usize) -> Option<Result<Piece, Fault>> {
        if self.at == self.end {
            return None;
        }
        Some(self.wait_for_piece(bytes_max).await)
    }

    async fn wait_for_piece(&mut self, bytes_max: usize) -> Result<Piece, Fault> {
        let number = chunk_at(self.at);
        loop {
            let flight = self.flight();
            // Read before looking, so that nothing that happens between is missed.
            let generation = flight.as_ref().map_or(0, |flight| flight.progress.generation());
            if self.must_hold() && has(&self.cache, &self.digest, number) {
                if let Some(flight) = &flight {
                    flight.verified().await?;
                }
                self.hold_last = false;
                continue;
            }
            if !self.must_hold() {
                self.read_ahead(number);
                match self.cache.read(&self.digest, number).await {
                    Ok(Some(chunk)) => return Ok(self.take(chunk, bytes_max)),
                    Ok(None) => {}
                    Err(_) => return Err(Fault::Busy),
                }
                if let Some(piece) = self.take_partial(number, bytes_max) {
                    return Ok(piece);
                }
            }
            let flight = match flight {
                Some(flight) => flight,
                None => self.refetch()?,
            };
            if let Some(Verdict::Failed(fault)) = flight.verdict() {
                return Err(fault);
            }
            flight.want(number, chunks_of(self.end));
            flight.progress.past(generation).await;
        }
    }

    fn flight(&self) -> Option<Rc<Flight>> {
        match &self.feed {
            Feed::Flight { flight, .. } => Some(flight.clone()),
            _ => None,
        }
    }

    /// A chunk of what was whole is gone: has it fetched again, and the whole hashed again.
    fn refetch(&mut self) -> Result<Rc<Flight>, Fault> {
        let Feed::Later(flights, source) = std::mem::replace(&mut self.feed, Feed::Nowhere) else {
            return Err(Fault::Lost);
        };
        let flight = flights.join(&self.digest, source)?;
        let claim = flight.claim();
        if self.end == self.total {
            self.hold_last = true;
            flight.want_whole();
        }
        self.feed = Feed::Flight { flight: flight.clone(), claim: Some(claim) };
        Ok(flight)
    }

    /// Whether the piece at hand is of the last chunk and the content is not known to be right.
    fn must_hold(&self) -> bool {
        self.hold_last && chunk_at(self.at) + 1 == chunks_of(self.total)
    }

    fn take(&mut self, chunk: Chunk, bytes_max: usize) -> Piece {
        let start = chunk_start(chunk_at(self.at));
        let from = (self.at - start) as usize;
        let to = (self.end - start).min(chunk.bytes.len() as u64) as usize;
        let to = to.min(from.saturating_add(bytes_max));
        let whole = from == 0 && to == chunk.bytes.len();
        let bytes = if whole { chunk.bytes } else { chunk.bytes.slice(from..to) };
        self.at += bytes.len() as u64;
        Piece { bytes, tier: Some(chunk.tier) }
    }

    /// What is there of the chunk that is being written. Not for the hash: what it takes has to be what
    /// is kept, and a chunk that is not whole may be given up and begun anew.
    fn take_partial(&mut self, number: u32, bytes_max: usize) -> Option<Piece> {
        let from = (self.at - chunk_start(number)) as usize;
        let to =
            (self.end - chunk_start(number)).min(chunk_len(number, self.total) as u64) as usize;
        let to = to.min(from.saturating_add(bytes_max));
        let Feed::Flight { flight, claim: Some(_) } = &self.feed else { return None };
        let bytes = flight.with_partial(number, |writer| {
            let to = to.min(writer.len());
            (to > from).then(|| writer.prefix(from, to))
        })??;
        self.at += bytes.len() as u64;
        Some(Piece { bytes, tier: None })
    }

    /// Has the chunks behind this one read from disk while it is being sent.
    fn read_ahead(&self, number: u32) {
        let end = (number + 1 + READ_AHEAD_CHUNKS).min(chunk_at(self.end - 1) + 1);
        for next in self.read_ahead_to.get().max(number + 1)..end {
            if self.cache.resident(&self.digest, next).is_none()
                && has(&self.cache, &self.digest, next)
            {
                let (cache, digest) = (self.cache.clone(), self.digest);
                outrider_shard::task::spawn(async move {
                    // Who needs the chunk reads it again, and gets the error then.
                    let _ = cache.read(&digest, next).await;
                });
            }
        }
        self.read_ahead_to.set(end.max(self.read_ahead_to.get()));
    }
}
