//! Flights: one fetch per digest, however many ask for it.
//!
//! A [`Flight`] owns what is known of a digest that is coming in: its sources, its length, the
//! fillers that write its chunks, and the hash over all of it. Readers take what is there and wait
//! for what is not; a filler never waits for a reader, so one that leaves or reads a byte a second
//! slows nobody. What was written stays in the cache when the flight is over.
//!
//! - [`plan`]: which chunks to ask for, and when to wait. Pure.
//! - [`fill`]: one upstream request that writes a run of chunks, and the change of sources.
//! - [`reader`]: a body's way through what is here and what is coming.
//! - [`verify`]: the reader that hashes, and ends the flight with a verdict.
//!
//! Failure belongs to (upstream, repository, digest), never to the digest: a source that failed is
//! remembered in [`Flights`] for a while, and another one may still bring the content.

pub(crate) mod fill;
pub(crate) mod plan;
pub(crate) mod progress;
pub(crate) mod reader;
pub(crate) mod verify;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use outrider_artifact::Digest;
use outrider_cache::{CHUNK_BYTES, Cache, ChunkWriter, Customer, Origin};
use outrider_uplink::{FetchError, UplinkClient, Whom};

use self::plan::{Span, Step, UNKNOWN_END};
use self::progress::Progress;
use crate::metrics::GatewayMetrics;

/// How long a source that sent wrong content for a digest is not asked for it again.
const MISMATCH_MEMORY: Duration = Duration::from_secs(60);

/// How many such failures are remembered. Beyond it the oldest are forgotten.
const MISMATCHES_MAX: usize = 4096;

/// Where a digest can be fetched: one upstream, or another edge, and the repository there.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    pub(crate) from: Whom,
    /// The repository's name at the upstream.
    pub(crate) repository: Rc<str>,
    /// Marks the chunks that come from here until they are verified.
    pub(crate) origin: Origin,
    /// After how many minutes without use content from here is a first victim.
    pub(crate) ttl_minutes: Option<u16>,
}

impl PartialEq for Source {
    fn eq(&self, other: &Self) -> bool {
        self.origin == other.origin
    }
}

/// Why a flight ended without the content, or a reader without its bytes.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Fault {
    /// The upstream said no, or could not be asked.
    #[error("{0}")]
    Upstream(FetchError),
    /// All of it came in, and it is something else: what was wanted, and what was found.
    #[error("the upstream sent content with the digest {} for {}", .0.1, .0.0)]
    Mismatch(Box<(Digest, Digest)>),
    /// Two answers disagree about the length.
    #[error("the upstream says {found} bytes, and said {known} bytes before")]
    Length { known: u64, found: u64 },
    /// The upstream does not say how long the content is.
    #[error("the upstream does not say how long the content is")]
    UnknownLength,
    /// A chunk of a hosted content cannot be read.
    #[error("a part of the content cannot be read from its disk")]
    Lost,
    /// Nothing came for a while, and another source is at hand.
    #[error("the upstream brings nothing")]
    Stalled,
    /// Everybody who wanted it has left.
    #[error("nobody wants it any more")]
    Abandoned,
    /// Every slot of the arena is pinned by slow clients.
    #[error("the memory for content in transit is in use")]
    Busy,
    /// The source sent wrong content for this digest a short while ago.
    #[error("the upstream sent wrong content for this digest a short while ago")]
    Distrusted,
}

impl From<FetchError> for Fault {
    fn from(error: FetchError) -> Self {
        Self::Upstream(error)
    }
}

/// How a flight ended.
#[derive(Clone, Debug)]
pub(crate) enum Verdict {
    Verified,
    Failed(Fault),
}

/// The flights of one shard.
pub(crate) struct Flights {
    pub(crate) cache: Cache,
    pub(crate) uplink: UplinkClient,
    pub(crate) metrics: GatewayMetrics,
    behalf: Rc<Cell<Customer>>,
    flights: RefCell<HashMap<Digest, Rc<Flight>>>,
    distrusted: RefCell<HashMap<(u64, Digest), Instant>>,
}

impl Flights {
    /// `behalf`: on whose behalf is done what is done just now.
    pub(crate) fn new(
        cache: Cache,
        uplink: UplinkClient,
        metrics: GatewayMetrics,
        behalf: Rc<Cell<Customer>>,
    ) -> Rc<Self> {
        Rc::new(Self {
            behalf,
            cache,
            uplink,
            metrics,
            flights: RefCell::default(),
            distrusted: RefCell::default(),
        })
    }

    /// The flight of a digest: the one under way, which learns of another source, or a new one.
    ///
    /// # Errors
    /// [`Fault::Distrusted`] while the source is known to send something else for this digest.
    pub(crate) fn join(
        self: &Rc<Self>,
        digest: &Digest,
        source: Source,
    ) -> Result<Rc<Flight>, Fault> {
        if self.is_distrusted(digest, &source) {
            return Err(Fault::Distrusted);
        }
        if let Some(flight) = self.flights.borrow().get(digest) {
            flight.add_source(source);
            self.metrics.flights_joined.inc();
            return Ok(flight.clone());
        }
        let total = self.cache.stat(digest).map(|stat| stat.size);
        let flight = Rc::new(Flight {
            digest: *digest,
            home: self.clone(),
            customer: self.behalf.get(),
            sources: RefCell::new(vec![source]),
            total: Cell::new(total),
            fillers: RefCell::default(),
            filler_ids: Cell::new(0),
            readers: Cell::new(0),
            whole: Cell::new(false),
            verifying: Cell::new(false),
            hashed_to: Cell::new(0),
            refilled: Cell::new(false),
            verdict: RefCell::new(None),
            progress: Progress::default(),
        });
        self.flights.borrow_mut().insert(*digest, flight.clone());
        self.metrics.flights_started.inc();
        Ok(flight)
    }

    /// The fetch of the digest that is under way.
    pub(crate) fn running(&self, digest: &Digest) -> Option<Rc<Flight>> {
        self.flights.borrow().get(digest).cloned()
    }

    /// Whether a fetch of the digest is under way.
    pub(crate) fn is_running(&self, digest: &Digest) -> bool {
        self.flights.borrow().contains_key(digest)
    }

    /// How many flights there are. For metrics and tests.
    pub(crate) fn len(&self) -> usize {
        self.flights.borrow().len()
    }

    fn remove(&self, flight: &Flight) {
        let mut flights = self.flights.borrow_mut();
        if flights.get(&flight.digest).is_some_and(|known| std::ptr::eq(&**known, flight)) {
            flights.remove(&flight.digest);
        }
    }

    fn is_distrusted(&self, digest: &Digest, source: &Source) -> bool {
        let mut distrusted = self.distrusted.borrow_mut();
        let key = (source.origin.0, *digest);
        match distrusted.get(&key) {
            Some(since) if since.elapsed() < MISMATCH_MEMORY => true,
            Some(_) => {
                distrusted.remove(&key);
                false
            }
            None => false,
        }
    }

    fn distrust(&self, digest: &Digest, source: &Source) {
        let mut distrusted = self.distrusted.borrow_mut();
        if distrusted.len() >= MISMATCHES_MAX {
            distrusted.retain(|_, since| since.elapsed() < MISMATCH_MEMORY / 2);
        }
        if distrusted.len() < MISMATCHES_MAX {
            distrusted.insert((source.origin.0, *digest), Instant::now());
        }
    }
}

/// The chunk that a filler is writing.
pub(crate) struct Partial {
    pub(crate) chunk: u32,
    pub(crate) writer: ChunkWriter,
}

/// One upstream request and what it still has to write.
pub(crate) struct Filler {
    pub(crate) id: u64,
    pub(crate) span: Span,
    pub(crate) partial: Option<Partial>,
}

/// A digest that is coming in.
pub(crate) struct Flight {
    pub(crate) digest: Digest,
    pub(crate) home: Rc<Flights>,
    /// Who began it, and is charged for it.
    pub(crate) customer: Customer,
    pub(crate) sources: RefCell<Vec<Source>>,
    total: Cell<Option<u64>>,
    fillers: RefCell<Vec<Filler>>,
    filler_ids: Cell<u64>,
    readers: Cell<usize>,
    /// Somebody wants all of it: the hash can be made, and the fill goes on when readers leave.
    whole: Cell<bool>,
    verifying: Cell<bool>,
    /// The chunks before this one have been hashed.
    hashed_to: Cell<u32>,
    /// One of those was evicted and has come in anew: the hash says nothing about it.
    refilled: Cell<bool>,
    verdict: RefCell<Option<Verdict>>,
    pub(crate) progress: Progress,
}

impl Flight {
    pub(crate) fn total(&self) -> Option<u64> {
        self.total.get()
    }

    pub(crate) fn verdict(&self) -> Option<Verdict> {
        self.verdict.borrow().clone()
    }

    /// Whether an upstream is being asked.
    pub(crate) fn is_filling(&self) -> bool {
        !self.fillers.borrow().is_empty()
    }

    /// The first source: what is unverified belongs to it.
    pub(crate) fn origin(&self) -> Origin {
        self.sources.borrow()[0].origin
    }

    pub(crate) fn add_source(&self, source: Source) {
        let mut sources = self.sources.borrow_mut();
        if !sources.contains(&source) {
            sources.push(source);
        }
    }

    /// Number of chunks, or all there could be while the length is unknown.
    fn chunks(&self) -> u32 {
        self.total.get().map_or(UNKNOWN_END, chunks_of)
    }

    /// Takes the length from an answer without a body.
    ///
    /// # Errors
    /// [`Fault::Length`] when another was known.
    pub(crate) fn set_total(&self, total: u64) -> Result<(), Fault> {
        match self.total.get() {
            Some(known) if known != total => Err(Fault::Length { known, found: total }),
            _ => {
                self.total.set(Some(total));
                self.progress.notify();
                Ok(())
            }
        }
    }

    /// Says that somebody reads, or is about to. Fillers stop when the last claim is dropped.
    pub(crate) fn claim(self: &Rc<Self>) -> Claim {
        self.readers.set(self.readers.get() + 1);
        Claim(self.clone())
    }

    /// Waits until the length is known.
    ///
    /// # Errors
    /// The fault that ended the flight.
    pub(crate) async fn learn_total(&self) -> Result<u64, Fault> {
        loop {
            let generation = self.progress.generation();
            if let Some(Verdict::Failed(fault)) = self.verdict() {
                return Err(fault);
            }
            if let Some(total) = self.total.get() {
                return Ok(total);
            }
            self.progress.past(generation).await;
        }
    }

    /// Waits until the content is known to be right.
    ///
    /// # Errors
    /// The fault that ended the flight.
    pub(crate) async fn verified(&self) -> Result<(), Fault> {
        loop {
            let generation = self.progress.generation();
            match self.verdict() {
                Some(Verdict::Verified) => return Ok(()),
                Some(Verdict::Failed(fault)) => return Err(fault),
                None => self.progress.past(generation).await,
            }
        }
    }

    /// All of the content is wanted: fetch what is missing of it, and hash it.
    pub(crate) fn want_whole(self: &Rc<Self>) {
        self.whole.set(true);
        if self.total.get().is_none() {
            self.want(0, UNKNOWN_END);
        }
        self.verify();
    }

    /// Makes sure that `chunk` comes in, for a reader that goes on to `end` (a chunk number, not
    /// wanted itself).
    pub(crate) fn want(self: &Rc<Self>, chunk: u32, end: u32) {
        if self.verdict.borrow().is_some() {
            return;
        }
        let end = end.min(self.chunks());
        if chunk >= end {
            return;
        }
        let spans: Vec<Span> = self.fillers.borrow().iter().map(|filler| filler.span).collect();
        let step = plan::on_miss(&spans, chunk, end, |chunk| self.is_present(chunk));
        if let Step::Start(run) = step {
            let id = self.filler_ids.get();
            self.filler_ids.set(id + 1);
            let span = Span { next: run.start, end: run.end };
            self.fillers.borrow_mut().push(Filler { id, span, partial: None });
            outrider_shard::task::spawn(fill::run(self.clone(), id));
        }
    }

    fn is_present(&self, chunk: u32) -> bool {
        has(&self.home.cache, &self.digest, chunk)
    }

    /// Looks at the chunk that is being written, where `chunk` is.
    pub(crate) fn with_partial<T>(
        &self,
        chunk: u32,
        look: impl FnOnce(&ChunkWriter) -> T,
    ) -> Option<T> {
        let fillers = self.fillers.borrow();
        let partials = fillers.iter().filter_map(|filler| filler.partial.as_ref());
        partials
            .filter(|partial| partial.chunk == chunk)
            .map(|partial| &partial.writer)
            .next()
            .map(look)
    }

    fn with_filler<T>(&self, id: u64, change: impl FnOnce(&mut Filler) -> T) -> Option<T> {
        self.fillers.borrow_mut().iter_mut().find(|filler| filler.id == id).map(change)
    }

    fn end_filler(self: &Rc<Self>, id: u64) {
        self.fillers.borrow_mut().retain(|filler| filler.id != id);
        self.progress.notify();
        self.after_change();
    }

    /// Starts the hash once nothing is missing, and leaves the table when nothing goes on.
    fn after_change(self: &Rc<Self>) {
        if self.verdict.borrow().is_some() {
            return;
        }
        if let Some(total) = self.total.get()
            && !self.verifying.get()
            && self.home.cache.missing(&self.digest, 0, chunks_of(total)).next().is_none()
        {
            self.verify();
        }
        let idle = self.fillers.borrow().is_empty() && self.readers.get() == 0;
        if idle && !self.verifying.get() {
            self.home.remove(self);
        }
    }

    /// A chunk has come in.
    fn note_refill(&self, chunk: u32) {
        if chunk < self.hashed_to.get() {
            self.refilled.set(true);
        }
    }

    fn verify(self: &Rc<Self>) {
        if !self.verifying.replace(true) {
            outrider_shard::task::spawn(verify::run(self.clone()));
        }
    }

    /// Ends the flight. Those who come later begin a new one.
    fn end(&self, verdict: Verdict) {
        if let Verdict::Failed(fault) = &verdict
            && !matches!(fault, Fault::Abandoned)
        {
            tracing::info!(digest = %self.digest, "a fetch failed: {fault}");
            self.home.metrics.flights_failed.inc();
        }
        self.verdict.borrow_mut().get_or_insert(verdict);
        self.home.remove(self);
        self.progress.notify();
    }
}

/// Keeps a flight's fillers at work.
pub(crate) struct Claim(Rc<Flight>);

impl Drop for Claim {
    fn drop(&mut self) {
        self.0.readers.set(self.0.readers.get() - 1);
        self.0.after_change();
    }
}

/// Number of chunks of a content of this length.
pub(crate) fn chunks_of(total: u64) -> u32 {
    u32::try_from(total.div_ceil(CHUNK_BYTES)).unwrap_or(u32::MAX)
}

/// Number of the chunk that holds this byte.
pub(crate) fn chunk_at(offset: u64) -> u32 {
    u32::try_from(offset / CHUNK_BYTES).unwrap_or(u32::MAX)
}

/// The first byte of a chunk.
pub(crate) fn chunk_start(chunk: u32) -> u64 {
    u64::from(chunk) * CHUNK_BYTES
}

/// Length of a chunk in a content of this length.
pub(crate) fn chunk_len(chunk: u32, total: u64) -> usize {
    (total.saturating_sub(chunk_start(chunk))).min(CHUNK_BYTES) as usize
}

/// Whether a chunk is in memory or on disk.
pub(crate) fn has(cache: &Cache, digest: &Digest, chunk: u32) -> bool {
    cache.missing(digest, chunk, chunk + 1).next().is_none()
}
