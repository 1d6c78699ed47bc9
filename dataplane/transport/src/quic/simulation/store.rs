//! A handler of objects that takes its time, and breaks off.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, RANGE};
use http::{HeaderValue, Method, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use outrider_artifact::Digest;

use crate::{BodyFault, Handler, Immediate, Peer, PreparedHead, RequestBody};

/// How many objects there are.
pub(super) const OBJECTS: u64 = 64;

/// What becomes of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manner {
    /// It comes as it is.
    Right,
    /// It lies ready.
    Immediate,
    /// Its length is not known.
    Open,
    /// It fails before its first byte.
    Fails,
    /// It breaks off in the middle, since its source does.
    Breaks,
    /// It turns out to be wrong.
    Wrong,
}

/// Objects are what their number says.
pub(super) fn manner(number: u64) -> Manner {
    match number % 16 {
        10 | 11 => Manner::Immediate,
        12 => Manner::Open,
        13 => Manner::Fails,
        14 => Manner::Breaks,
        15 => Manner::Wrong,
        _ => Manner::Right,
    }
}

/// Length and bytes.
pub(super) fn object(number: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(number);
    let len = match number / 16 % 4 {
        0 => random.usize(1..200),
        1 => random.usize(200..5_000),
        2 => random.usize(5_000..20_000),
        _ => random.usize(20_000..80_000),
    };
    let mut bytes = vec![0; len];
    random.fill(&mut bytes);
    bytes
}

pub(super) struct Store {
    objects: HashMap<String, (u64, Bytes)>,
    random: RefCell<fastrand::Rng>,
    clock: Rc<Clock>,
    alive: Rc<()>,
}

/// Who waits until when, in simulated time.
struct Clock {
    now: Cell<Instant>,
    count: Cell<u64>,
    waiting: RefCell<BTreeMap<(Instant, u64), Waker>>,
}

impl Clock {
    async fn pause(&self, time: Duration) {
        let until = self.now.get() + time;
        poll_fn(|cx| self.poll(until, cx)).await;
    }

    fn poll(&self, until: Instant, cx: &Context<'_>) -> Poll<()> {
        if self.now.get() >= until {
            return Poll::Ready(());
        }
        self.count.set(self.count.get() + 1);
        self.waiting.borrow_mut().insert((until, self.count.get()), cx.waker().clone());
        Poll::Pending
    }
}

impl Store {
    pub(super) fn new(seed: u64, now: Instant) -> Self {
        let objects = (0..OBJECTS).map(|number| {
            let bytes = object(number);
            (Digest::sha256(&bytes).to_string(), (number, bytes.into()))
        });
        Self {
            objects: objects.collect(),
            random: RefCell::new(fastrand::Rng::with_seed(seed)),
            clock: Rc::new(Clock {
                now: Cell::new(now),
                count: Cell::new(0),
                waiting: RefCell::default(),
            }),
            alive: Rc::new(()),
        }
    }

    /// Wakes those whose time has come; gives whether there were any.
    pub(super) fn turn(&self, now: Instant) -> bool {
        self.clock.now.set(now);
        let mut waiting = self.clock.waiting.borrow_mut();
        let later = waiting.split_off(&(now, u64::MAX));
        let due = std::mem::replace(&mut *waiting, later);
        due.values().for_each(Waker::wake_by_ref);
        !due.is_empty()
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.clock.waiting.borrow().keys().next().map(|(time, _)| *time)
    }

    /// Handlers and bodies that are kept.
    pub(super) fn alive(&self) -> usize {
        Rc::strong_count(&self.alive) - 1
    }

    fn find(&self, path: &str) -> Option<(u64, Bytes)> {
        let (_, digest) = path.rsplit_once('/')?;
        self.objects.get(digest).cloned()
    }

    fn delay(&self) -> Option<Duration> {
        let mut random = self.random.borrow_mut();
        random.bool().then(|| Duration::from_micros(random.u64(..30_000)))
    }
}

impl Handler for Store {
    type Body = Pieces;

    async fn handle(
        self: Rc<Self>,
        request: http::Request<RequestBody>,
        _peer: Peer,
    ) -> Response<Pieces> {
        let alive = self.alive.clone();
        if let Some(delay) = self.delay() {
            self.clock.pause(delay).await;
        }
        let none = Pieces {
            bytes: Bytes::new(),
            manner: Manner::Right,
            begun: false,
            random: self.random.borrow_mut().fork(),
            pause: None,
            clock: self.clock.clone(),
            _alive: alive,
        };
        let Some((number, bytes)) = self.find(request.uri().path()) else {
            let mut response = Response::new(none);
            *response.status_mut() = StatusCode::NOT_FOUND;
            return response;
        };
        let total = bytes.len();
        let range = request.headers().get(RANGE).map(|value| {
            let (first, last) = value.to_str().unwrap()[6..].split_once('-').unwrap();
            let last = last.parse().unwrap_or(usize::MAX);
            (first.parse::<usize>().unwrap(), last.min(total - 1))
        });
        let manner = manner(number);
        let mut response = Response::new(none);
        let (first, last) = match range {
            Some((first, _)) if first >= total => {
                *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
                let value = HeaderValue::try_from(format!("bytes */{total}")).unwrap();
                response.headers_mut().insert(CONTENT_RANGE, value);
                return response;
            }
            // Of what has no length all is given.
            Some((first, last)) if manner != Manner::Open => {
                *response.status_mut() = StatusCode::PARTIAL_CONTENT;
                let value = HeaderValue::try_from(format!("bytes {first}-{last}/{total}"));
                response.headers_mut().insert(CONTENT_RANGE, value.unwrap());
                (first, last)
            }
            _ => (0, total - 1),
        };
        if manner != Manner::Open {
            response.headers_mut().insert(CONTENT_LENGTH, (last - first + 1).into());
        }
        if request.method() != Method::HEAD {
            let body = response.body_mut();
            (body.bytes, body.manner) = (bytes.slice(first..=last), manner);
        }
        response
    }

    fn immediate(&self, request: &http::request::Parts, _peer: Peer) -> Option<Immediate> {
        let (number, bytes) = self.find(request.uri.path())?;
        if manner(number) != Manner::Immediate || request.headers.contains_key(RANGE) {
            return None;
        }
        let (mut parts, ()) = Response::new(()).into_parts();
        parts.headers.insert(CONTENT_LENGTH, bytes.len().into());
        let head = Rc::new(PreparedHead::new(parts, bytes.len() as u64));
        Some(Immediate { head, held_bytes: bytes.len(), body: bytes })
    }
}

/// A body in pieces, some of which take their time.
pub(super) struct Pieces {
    bytes: Bytes,
    manner: Manner,
    begun: bool,
    random: fastrand::Rng,
    pause: Option<Instant>,
    clock: Rc<Clock>,
    _alive: Rc<()>,
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = BodyFault;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyFault>>> {
        let this = &mut *self;
        if let Some(until) = this.pause {
            std::task::ready!(this.clock.poll(until, cx));
            this.pause = None;
        } else if this.begun && this.random.u32(..3) == 0 {
            let until = this.clock.now.get() + Duration::from_micros(this.random.u64(1..20_000));
            this.pause = Some(until);
            return this.clock.poll(until, cx).map(|()| None);
        }
        let fault = match this.manner {
            Manner::Fails => Some(BodyFault::new("it fails")),
            Manner::Breaks if this.begun => Some(BodyFault::new("it breaks off")),
            Manner::Wrong if this.begun => Some(BodyFault::wrong_content("it is another")),
            _ => None,
        };
        if let Some(fault) = fault {
            return Poll::Ready(Some(Err(fault)));
        }
        if this.bytes.is_empty() {
            return Poll::Ready(None);
        }
        // Of what is to break off, something is left.
        let most = if matches!(this.manner, Manner::Breaks | Manner::Wrong) {
            this.bytes.len().div_ceil(2)
        } else {
            this.bytes.len()
        };
        let count = this.random.usize(1..=most.min(60_000));
        this.begun = true;
        Poll::Ready(Some(Ok(Frame::data(this.bytes.split_to(count)))))
    }

    fn size_hint(&self) -> SizeHint {
        match self.manner {
            Manner::Open => SizeHint::default(),
            _ => SizeHint::with_exact(self.bytes.len() as u64),
        }
    }
}
