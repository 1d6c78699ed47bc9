//! How much of the cache's memory clients may hold.
//!
//! A data frame on its way to a client is a view into a slot of the cache, and keeps that slot from
//! being used for anything else until the client's socket has taken it. Fast clients hold a slot for
//! microseconds; a thousand that read a byte a second could hold all there is. So every frame is
//! wrapped in an owner that counts until it is dropped, against a bound per connection and one in
//! total:
//!
//! - **free** (below ¾ of the total): frames pass as they are, without a copy.
//! - **pressed**: a connection gets its next frame when what it got before is gone but for 32 KiB, as a copy
//!   of what is left of 64 KiB: short answers do not wait for each other. The copy holds no slot; what is left
//!   of a longer frame does, until it is copied as well. So a body should give short frames then, see
//!   [`PinBudget::is_under_pressure`]. A connection that takes too little is closed (see
//!   [`Limits::pressed_bytes_per_second_min`](crate::Limits)).
//! - **full**: bodies that gave long frames nevertheless have filled the rest: nobody gets a frame
//!   until some of them are gone.
//!
//! Owners may be dropped on any thread.

use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use crate::activity::InFlight;
use crate::body::{BodyFault, Leftover};

/// What a frame counts at least: however short it is, it may keep a whole slot from being used.
const FRAME_BYTES_MIN: usize = 256 * 1024;

/// Frames up to this are copied under pressure.
const COPY_BYTES_MAX: usize = 64 * 1024;

/// How much of the cache's memory clients may hold. Clones share it; one belongs to one cache.
#[derive(Clone)]
pub struct PinBudget {
    total: Arc<Total>,
}

struct Total {
    bytes_max: usize,
    connection_bytes_max: usize,
    bytes: AtomicUsize,
    /// Set when the next frame might not fit; cleared when a good deal has been given back, so that
    /// those who wait are not all woken for every single frame.
    full: AtomicBool,
    waiters: Waiters,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    Free,
    Pressed,
    Full,
}

impl PinBudget {
    /// The bound of one connection, where nothing else is asked for: 4 MiB.
    pub const CONNECTION_BYTES_MAX: usize = 4 * 1024 * 1024;

    /// At most `total_bytes_max` for all connections together (half of the arena, say; at least
    /// 1 MiB), and `connection_bytes_max` for each of them. A frame counts as at least 256 KiB, which
    /// is what a slot holds.
    pub fn new(total_bytes_max: usize, connection_bytes_max: usize) -> Self {
        Self {
            total: Arc::new(Total {
                // With less than a few frames nobody would get on.
                bytes_max: total_bytes_max.max(4 * FRAME_BYTES_MIN),
                connection_bytes_max: connection_bytes_max.max(FRAME_BYTES_MIN),
                bytes: AtomicUsize::new(0),
                full: AtomicBool::new(false),
                waiters: Waiters::default(),
            }),
        }
    }

    /// How many bytes are held now: at most [`Self::total_bytes_max`], as long as no frame is larger
    /// than 256 KiB and the budget is used on one shard.
    pub fn pinned_bytes(&self) -> usize {
        self.total.bytes.load(Ordering::Relaxed)
    }

    /// The bound.
    pub fn total_bytes_max(&self) -> usize {
        self.total.bytes_max
    }

    /// Whether so much is held that slow clients are closed. A body should then give frames of at
    /// most 64 KiB, and let go of its slot after each of them, to look it up again for the next: such
    /// frames are copied, hold nothing, and are never made to wait for other connections. Costs two
    /// atomic loads.
    pub fn is_under_pressure(&self) -> bool {
        self.total.level() != Level::Free
    }

    /// A body whose frames count here until they are dropped, as those of a connection of its own, for
    /// content that goes to a connection that counts elsewhere: what one shard's cache holds and another
    /// shard sends.
    pub fn hold<B>(&self, body: B) -> HeldBody<B> {
        HeldBody::new(body, self.connection())
    }

    /// One frame that counts here until it is dropped.
    ///
    /// # Errors
    /// The bytes, when there is pressure: [`Self::hold`] a body then, which can wait.
    pub fn try_hold(&self, bytes: Bytes) -> Result<Bytes, Bytes> {
        if self.is_under_pressure() { Err(bytes) } else { Ok(self.connection().pin(bytes)) }
    }

    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.total, &other.total)
    }

    pub(crate) fn connection(&self) -> ConnectionPins {
        ConnectionPins {
            held: Arc::new(Held {
                total: self.total.clone(),
                bytes: AtomicUsize::new(0),
                copied_bytes: AtomicUsize::new(0),
                waiters: Waiters::default(),
            }),
        }
    }
}

impl fmt::Debug for PinBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PinBudget")
            .field("pinned_bytes", &self.pinned_bytes())
            .field("total_bytes_max", &self.total_bytes_max())
            .finish_non_exhaustive()
    }
}

impl Total {
    fn level(&self) -> Level {
        if self.full.load(Ordering::SeqCst) {
            return Level::Full;
        }
        let bytes = self.bytes.load(Ordering::SeqCst);
        if bytes + FRAME_BYTES_MIN > self.bytes_max {
            self.full.store(true, Ordering::SeqCst);
            // It may have been given back just before: then nobody else would look.
            self.end_full(self.bytes.load(Ordering::SeqCst));
            Level::Full
        } else if bytes >= self.bytes_max - self.bytes_max / 4 {
            Level::Pressed
        } else {
            Level::Free
        }
    }

    fn give_back(&self, bytes: usize) {
        let before = self.bytes.fetch_sub(bytes, Ordering::SeqCst);
        assert!(before >= bytes, "what is given back was taken");
        self.end_full(before - bytes);
    }

    fn end_full(&self, bytes: usize) {
        if bytes + FRAME_BYTES_MIN + self.bytes_max / 16 <= self.bytes_max
            && self.full.load(Ordering::SeqCst)
            && self.full.swap(false, Ordering::SeqCst)
        {
            self.waiters.wake();
        }
    }
}

/// Tasks that wait for something to be given back.
#[derive(Default)]
struct Waiters {
    /// Counts the wakes, so that a task which looks again meanwhile is not listed twice.
    wakes: AtomicUsize,
    list: Mutex<Vec<Waker>>,
    any: AtomicBool,
}

impl Waiters {
    /// Who waits has to look again afterwards: what was given back before woke nobody. `ticket` is
    /// the task's own, and only for these waiters.
    fn register(&self, cx: &Context<'_>, ticket: &mut Option<usize>) {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        let wakes = self.wakes.load(Ordering::Relaxed);
        if *ticket != Some(wakes) {
            *ticket = Some(wakes);
            list.push(cx.waker().clone());
            self.any.store(true, Ordering::SeqCst);
        }
    }

    /// Wakes all: each looks for itself, and those that get nothing wait again.
    fn wake(&self) {
        if !self.any.load(Ordering::SeqCst) {
            return;
        }
        let wakers = {
            let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
            self.wakes.fetch_add(1, Ordering::Relaxed);
            self.any.store(false, Ordering::SeqCst);
            std::mem::take(&mut *list)
        };
        wakers.into_iter().for_each(Waker::wake);
    }
}

/// What one connection holds.
#[derive(Clone)]
pub(crate) struct ConnectionPins {
    held: Arc<Held>,
}

struct Held {
    total: Arc<Total>,
    /// Frames that were handed out and are not dropped yet, copies included.
    bytes: AtomicUsize,
    /// Of them copies, which hold no slot.
    copied_bytes: AtomicUsize,
    waiters: Waiters,
}

/// What a waiting body remembers.
#[derive(Debug, Default)]
pub(crate) struct Tickets {
    connection: Option<usize>,
    total: Option<usize>,
}

impl ConnectionPins {
    /// Whether any frame waits for the client to take it.
    pub(crate) fn any_held(&self) -> bool {
        self.held_bytes() > 0
    }

    fn held_bytes(&self) -> usize {
        self.held.bytes.load(Ordering::SeqCst)
    }

    /// Bytes of copies that wait for the client to take them.
    pub(crate) fn copied_bytes(&self) -> usize {
        self.held.copied_bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn is_under_pressure(&self) -> bool {
        self.held.total.level() != Level::Free
    }

    /// Whether the connection may hold more, without a copy.
    pub(crate) fn may_hold(&self) -> bool {
        self.held.turn() == Some(false)
    }

    /// Counts `bytes` that the client is about to hold, until what this gives is dropped.
    pub(crate) fn hold(&self, bytes: usize) -> Hold {
        Hold { _count: Count::new(&self.held, bytes, true, false) }
    }

    /// These bytes, which count as `weight` until the last of them is dropped.
    pub(crate) fn pin_as(&self, bytes: Bytes, weight: usize) -> Bytes {
        let count = Count::new(&self.held, weight, true, false);
        Bytes::from_owner(Counted { bytes, _count: count })
    }

    /// Ready, with whether there is pressure, when the connection may have another frame.
    pub(crate) fn poll_turn(&self, cx: &Context<'_>, tickets: &mut Tickets) -> Poll<bool> {
        if let Some(pressed) = self.held.turn() {
            return Poll::Ready(pressed);
        }
        self.held.waiters.register(cx, &mut tickets.connection);
        self.held.total.waiters.register(cx, &mut tickets.total);
        self.held.turn().map_or(Poll::Pending, Poll::Ready)
    }

    /// Ready when all that the connection got is gone.
    fn poll_none_held(&self, cx: &Context<'_>, tickets: &mut Tickets) -> Poll<()> {
        if self.any_held() {
            self.held.waiters.register(cx, &mut tickets.connection);
            if self.any_held() {
                return Poll::Pending;
            }
        }
        Poll::Ready(())
    }

    /// Wraps a frame that holds a slot.
    fn pin(&self, bytes: Bytes) -> Bytes {
        let weight = bytes.len().max(FRAME_BYTES_MIN);
        self.pin_as(bytes, weight)
    }

    /// Copies a frame, so that it holds no slot. `in_total`: the copy counts in its place.
    fn copy(&self, bytes: &[u8], in_total: bool) -> Bytes {
        let count = Count::new(&self.held, bytes.len(), in_total, true);
        Bytes::from_owner(Counted { bytes: Bytes::copy_from_slice(bytes), _count: count })
    }

    /// Counts a frame that stays here until it is copied.
    fn keep(&self, bytes: Bytes) -> Kept {
        // Not against the connection: it would wait for itself.
        let weight = bytes.len().max(FRAME_BYTES_MIN);
        self.held.total.bytes.fetch_add(weight, Ordering::SeqCst);
        Kept { bytes, weight, total: self.held.total.clone() }
    }
}

impl Held {
    fn turn(&self) -> Option<bool> {
        let bytes = self.bytes.load(Ordering::SeqCst);
        match self.total.level() {
            Level::Free => (bytes < self.total.connection_bytes_max).then_some(false),
            Level::Pressed => (bytes <= COPY_BYTES_MAX / 2).then_some(true),
            Level::Full => None,
        }
    }
}

/// A frame and its share of the budget.
struct Counted {
    bytes: Bytes,
    _count: Count,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

struct Count {
    held: Arc<Held>,
    weight: usize,
    in_total: bool,
    copied: bool,
}

impl Count {
    fn new(held: &Arc<Held>, weight: usize, in_total: bool, copied: bool) -> Self {
        held.bytes.fetch_add(weight, Ordering::SeqCst);
        if copied {
            held.copied_bytes.fetch_add(weight, Ordering::Relaxed);
        }
        if in_total {
            held.total.bytes.fetch_add(weight, Ordering::SeqCst);
        }
        Self { held: held.clone(), weight, in_total, copied }
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        self.held.bytes.fetch_sub(self.weight, Ordering::SeqCst);
        if self.copied {
            self.held.copied_bytes.fetch_sub(self.weight, Ordering::Relaxed);
        }
        if self.in_total {
            self.held.total.give_back(self.weight);
        }
        self.held.waiters.wake();
    }
}

/// What a client holds that is in no frame of a body.
pub(crate) struct Hold {
    _count: Count,
}

/// What is left of a frame that is being copied.
struct Kept {
    bytes: Bytes,
    weight: usize,
    total: Arc<Total>,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.bytes = Bytes::new();
        self.total.give_back(self.weight);
    }
}

pin_project! {
    /// A body with its frames counted.
    pub struct HeldBody<B> {
        #[pin]
        body: B,
        pins: ConnectionPins,
        kept: Option<Kept>,
        tickets: Tickets,
        copy_bytes_max: usize,
    }
}

impl<B> HeldBody<B> {
    fn new(body: B, pins: ConnectionPins) -> Self {
        Self { body, pins, kept: None, tickets: Tickets::default(), copy_bytes_max: 0 }
    }
}

pin_project! {
    /// A handler's body, with its frames counted.
    pub(crate) struct PinnedBody<B> {
        #[pin]
        body: HeldBody<B>,
        in_flight: InFlight,
        leftover: Option<Leftover>,
    }

    impl<B> PinnedDrop for PinnedBody<B> {
        fn drop(this: Pin<&mut Self>) {
            if let Some(leftover) = this.project().leftover {
                leftover.let_go();
            }
        }
    }
}

impl<B> PinnedBody<B> {
    pub(crate) fn new(
        body: B,
        pins: ConnectionPins,
        in_flight: InFlight,
        leftover: Option<Leftover>,
    ) -> Self {
        Self { body: HeldBody::new(body, pins), in_flight, leftover }
    }

    /// Frames of up to this many bytes are copied also where there is room. What waits to be
    /// acknowledged may wait for a while, and a short frame counts as much as a long one.
    pub(crate) fn copying_up_to(mut self, bytes: usize) -> Self {
        self.body.copy_bytes_max = bytes;
        self
    }
}

impl<B: Body<Data = Bytes, Error = BodyFault>> Body for PinnedBody<B> {
    type Data = Bytes;
    type Error = BodyFault;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyFault>>> {
        let this = self.project();
        let frame = ready!(this.body.poll_frame(cx));
        if let Some(Err(_)) = &frame {
            this.in_flight.activity().note_fault();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<B: Body<Data = Bytes, Error = BodyFault>> Body for HeldBody<B> {
    type Data = Bytes;
    type Error = BodyFault;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyFault>>> {
        let this = self.project();
        if let Some(kept) = this.kept {
            ready!(this.pins.poll_none_held(cx, this.tickets));
            let part = kept.bytes.split_to(COPY_BYTES_MAX.min(kept.bytes.len()));
            let copied = this.pins.copy(&part, false);
            if kept.bytes.is_empty() {
                *this.kept = None;
            }
            return Poll::Ready(Some(Ok(Frame::data(copied))));
        }
        let pressed = ready!(this.pins.poll_turn(cx, this.tickets));
        let frame = match ready!(this.body.poll_frame(cx)) {
            None => return Poll::Ready(None),
            Some(Err(fault)) => return Poll::Ready(Some(Err(fault))),
            Some(Ok(frame)) => frame,
        };
        let frame = frame.map_data(|mut bytes| {
            if !pressed {
                let short = bytes.len() <= *this.copy_bytes_max;
                return if short { this.pins.copy(&bytes, true) } else { this.pins.pin(bytes) };
            }
            let room = COPY_BYTES_MAX - this.pins.held_bytes().min(COPY_BYTES_MAX / 2);
            let part = bytes.split_to(room.min(bytes.len()));
            let copied = this.pins.copy(&part, false);
            if !bytes.is_empty() {
                *this.kept = Some(this.pins.keep(bytes));
            }
            copied
        });
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.kept.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = self.body.size_hint();
        if let Some(kept) = &self.kept {
            let kept = kept.bytes.len() as u64;
            if let Some(upper) = hint.upper() {
                hint.set_upper(upper + kept);
            }
            hint.set_lower(hint.lower() + kept);
        }
        hint
    }
}
