//! A lane of an upstream: how many fetches of one kind may be under way and wait, and the breaker
//! that says whether any may. Manifests and blobs have a lane each, so that neither waits for the
//! other, and a limit on the rate of one does not stop the other.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::breaker::{Breaker, BreakerState, Pass};
use crate::config::BreakerConfig;
use crate::error::FetchError;

/// Locks what no panic can leave half-done: each change under these locks is a single step.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) struct Lane {
    upstream: String,
    kind: &'static str,
    places: Arc<Semaphore>,
    waiters_max: usize,
    wait_max: Duration,
    waiting: AtomicUsize,
    in_flight: AtomicUsize,
    breaker: Mutex<Breaker>,
    breaker_gauge: Gauge,
    in_flight_gauge: Gauge,
}

/// Bounds of a lane.
pub(crate) struct LaneSettings {
    pub(crate) upstream: String,
    pub(crate) kind: &'static str,
    pub(crate) places: usize,
    pub(crate) waiters_max: usize,
    pub(crate) wait_max: Duration,
    pub(crate) breaker: BreakerConfig,
}

impl Lane {
    pub(crate) fn new(
        settings: LaneSettings,
        breaker_gauge: Gauge,
        in_flight_gauge: Gauge,
    ) -> Self {
        breaker_gauge.set(0);
        in_flight_gauge.set(0);
        Self {
            upstream: settings.upstream,
            kind: settings.kind,
            places: Arc::new(Semaphore::new(settings.places)),
            waiters_max: settings.waiters_max,
            wait_max: settings.wait_max,
            waiting: AtomicUsize::new(0),
            in_flight: AtomicUsize::new(0),
            breaker: Mutex::new(Breaker::new(settings.breaker)),
            breaker_gauge,
            in_flight_gauge,
        }
    }

    /// Counts a fetch for as long as the guard lives.
    pub(crate) fn enter(&self) -> Entered<'_> {
        self.in_flight.fetch_add(1, Relaxed);
        self.in_flight_gauge.inc();
        Entered(self)
    }

    /// Waits for a place.
    ///
    /// # Errors
    /// `BreakerOpen` at once while the breaker is open; `Busy` when too many wait already, or when
    /// the wait is too long.
    pub(crate) async fn place(&self) -> Result<OwnedSemaphorePermit, FetchError> {
        if let BreakerState::Open { remaining } = lock(&self.breaker).state(Instant::now()) {
            return Err(FetchError::BreakerOpen { retry_after: remaining });
        }
        let places = Arc::clone(&self.places);
        if let Ok(place) = Arc::clone(&places).try_acquire_owned() {
            return Ok(place);
        }
        let before = self.waiting.fetch_add(1, Relaxed);
        let _waiter = Waiter(self);
        if before >= self.waiters_max {
            return Err(FetchError::Busy);
        }
        match tokio::time::timeout(self.wait_max, places.acquire_owned()).await {
            Ok(Ok(place)) => Ok(place),
            Ok(Err(_)) => Err(FetchError::Closed),
            Err(_) => Err(FetchError::Busy),
        }
    }

    /// Asks the breaker.
    ///
    /// # Errors
    /// `BreakerOpen`.
    pub(crate) fn admit(&self) -> Result<Admitted<'_>, FetchError> {
        let admitted = lock(&self.breaker).admit(Instant::now());
        self.show();
        match admitted {
            Ok(pass) => Ok(Admitted { lane: self, pass: Some(pass) }),
            Err(retry_after) => Err(FetchError::BreakerOpen { retry_after }),
        }
    }

    pub(crate) fn breaker_state(&self) -> BreakerState {
        lock(&self.breaker).state(Instant::now())
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Relaxed)
    }

    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Relaxed)
    }

    /// Shows the breaker's state to whoever watches, and says so when it has changed.
    fn show(&self) {
        let state = self.breaker_state();
        let number = match state {
            BreakerState::Closed => 0,
            BreakerState::HalfOpen => 1,
            BreakerState::Open { .. } => 2,
        };
        if self.breaker_gauge.set(number) == number {
            return;
        }
        let (upstream, kind) = (&self.upstream, self.kind);
        match state {
            BreakerState::Closed => tracing::info!(%upstream, kind, "the upstream is asked again"),
            BreakerState::HalfOpen => tracing::debug!(%upstream, kind, "the upstream is probed"),
            BreakerState::Open { remaining } => {
                tracing::warn!(%upstream, kind, ?remaining, "the upstream is not asked for a while");
            }
        }
    }
}

/// A fetch that is under way.
pub(crate) struct Entered<'a>(&'a Lane);

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Relaxed);
        self.0.in_flight_gauge.dec();
    }
}

struct Waiter<'a>(&'a Lane);

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Relaxed);
    }
}

/// The breaker's permission. Dropping it says that nothing was learned about the upstream.
pub(crate) struct Admitted<'a> {
    lane: &'a Lane,
    pass: Option<Pass>,
}

impl Admitted<'_> {
    /// The head of a good answer is in.
    pub(crate) fn answered(&self) {
        if let Some(pass) = self.pass {
            lock(&self.lane.breaker).answered(pass);
            self.lane.show();
        }
    }

    /// All of a good answer is in.
    pub(crate) fn succeeded(mut self) {
        if let Some(pass) = self.pass.take() {
            lock(&self.lane.breaker).succeeded(pass);
            self.lane.show();
        }
    }

    /// The fetch ended with this error; says whether it counts against the upstream.
    pub(crate) fn ended(mut self, error: &FetchError) -> bool {
        let Some(pass) = self.pass.take() else { return false };
        let now = Instant::now();
        let counts = {
            let mut breaker = lock(&self.lane.breaker);
            match verdict(error) {
                Verdict::Healthy => breaker.succeeded(pass),
                Verdict::Failed => breaker.failed(pass, now, error.retry_after()),
                Verdict::Unknown => breaker.abandoned(pass, now),
            }
            verdict(error) == Verdict::Failed
        };
        self.lane.show();
        counts
    }
}

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        if let Some(pass) = self.pass.take() {
            lock(&self.lane.breaker).abandoned(pass, Instant::now());
            self.lane.show();
        }
    }
}

/// What an error says about the upstream's health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Healthy,
    Failed,
    Unknown,
}

fn verdict(error: &FetchError) -> Verdict {
    match error {
        FetchError::NotFound
        | FetchError::Unauthorized
        | FetchError::Denied
        | FetchError::RangeNotSatisfiable { .. } => Verdict::Healthy,
        FetchError::RateLimited { .. }
        | FetchError::Unavailable { .. }
        | FetchError::Timeout { .. }
        | FetchError::Connect(_)
        | FetchError::Cut { .. } => Verdict::Failed,
        // A wrong answer may be about what was asked, which a client chose: no client may be able
        // to have the upstream shut off for the others.
        FetchError::Refused { .. }
        | FetchError::Protocol(_)
        | FetchError::Redirect(_)
        | FetchError::BreakerOpen { .. }
        | FetchError::Busy
        | FetchError::Closed => Verdict::Unknown,
    }
}
