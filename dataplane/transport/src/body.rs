//! Bodies: what comes in with a request, and why an answer is cut off.

use std::cell::RefCell;
use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::Body as _;
use hyper::body::Incoming;
use outrider_shard::{task, time};

use crate::activity::Activity;
use crate::limits::Limits;
use crate::quic::Pipe;

/// What is still read, of a body that its handler did not care for, so that the connection can go on.
const REST_BYTES_MAX: usize = 1024 * 1024;

/// For how long.
const REST_TIME: Duration = Duration::from_secs(5);

/// Over how much waiting the speed of a body is averaged.
const SPEED_WINDOW: Duration = Duration::from_secs(30);

/// Why a request body ended early.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// The client went away, or broke the protocol.
    #[error("the request body was cut off: {0}")]
    Cut(String),
    /// The client sent nothing for too long, or too little.
    #[error("the request body came in too slowly")]
    Slow,
}

/// Why a response body cannot be finished. The transport then cuts the response off, so that the
/// client does not take it for whole.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the response body cannot be finished: {reason}")]
pub struct BodyFault {
    reason: String,
    wrong_content: bool,
}

impl BodyFault {
    /// A fault with its reason, which is for the log; the client does not get to see it.
    pub fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), wrong_content: false }
    }

    /// The content is not what its digest says.
    pub fn wrong_content(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), wrong_content: true }
    }

    /// Whether it is that the content is not what its digest says.
    pub fn is_wrong_content(&self) -> bool {
        self.wrong_content
    }
}

/// The body of a request. It is read from the socket as fast as it is read from here. When it is
/// dropped with little of it left, the rest is read and thrown away behind the handler's back, so
/// that the connection can go on.
pub struct RequestBody {
    source: Source,
    pace: Pace,
    /// Made at the first wait.
    sleep: Option<time::Sleep>,
    rest: Rest,
    ended: bool,
}

enum Source {
    Incoming(Incoming),
    /// Over QUIC.
    Pipe(Pipe),
    Whole(Bytes),
    /// From somewhere that sees to its pace itself.
    Other(Pin<Box<dyn http_body::Body<Data = Bytes, Error = BodyError>>>),
}

/// What becomes of what the handler leaves.
#[derive(Debug)]
enum Rest {
    /// It is read, if it is short: over HTTP/1 it stands between this request and the next.
    Read(Rc<Activity>),
    /// So it is, but only once the handler has begun to: the client waits to be asked for it, and is
    /// not to be asked for something that nobody wants.
    ReadOnceAsked(Rc<Activity>),
    /// It is read when the answer is sent: over HTTP/2 letting go of it resets the stream, and with
    /// that the answer; and while it is not read, the client's window stops it.
    ReadAfterAnswer(Leftover),
    /// That answer is sent.
    ReadLate,
    /// Nothing.
    Drop,
}

/// Where the body of an HTTP/2 request waits for its answer to be sent, after its handler has left it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Leftover(Rc<RefCell<Option<RequestBody>>>);

impl Leftover {
    /// The answer is sent. What is left is read, or reset when it is long.
    pub(crate) fn let_go(&self) {
        let body = self.0.borrow_mut().take();
        drop(body);
    }
}

impl RequestBody {
    /// Over HTTP/1. `expects`: the client waits for a "100 Continue".
    pub(crate) fn http1(
        incoming: Incoming,
        limits: &Limits,
        activity: Rc<Activity>,
        expects: bool,
    ) -> Self {
        let rest = if expects { Rest::ReadOnceAsked(activity) } else { Rest::Read(activity) };
        Self::new(incoming, limits, rest)
    }

    /// Over HTTP/2. What is left of it goes to `leftover`.
    pub(crate) fn http2(incoming: Incoming, limits: &Limits, leftover: Leftover) -> Self {
        Self::new(incoming, limits, Rest::ReadAfterAnswer(leftover))
    }

    /// Over QUIC. What is left of it is the connection's concern.
    pub(crate) fn quic(pipe: Pipe, limits: &Limits) -> Self {
        Self {
            ended: false,
            source: Source::Pipe(pipe),
            pace: Pace::new(limits),
            sleep: None,
            rest: Rest::Drop,
        }
    }

    /// No body.
    pub(crate) fn empty(limits: &Limits) -> Self {
        Self {
            ended: true,
            source: Source::Whole(Bytes::new()),
            pace: Pace::new(limits),
            sleep: None,
            rest: Rest::Drop,
        }
    }

    fn new(incoming: Incoming, limits: &Limits, rest: Rest) -> Self {
        Self {
            ended: incoming.is_end_stream(),
            source: Source::Incoming(incoming),
            pace: Pace::new(limits),
            sleep: None,
            rest,
        }
    }

    /// A body that is whole, for tests of handlers.
    pub fn from_bytes(bytes: Bytes) -> Self {
        Self {
            ended: bytes.is_empty(),
            source: Source::Whole(bytes),
            pace: Pace::new(&Limits::default()),
            sleep: None,
            rest: Rest::Drop,
        }
    }

    /// A body that another shard reads from its socket, at its own pace.
    pub fn from_body(
        body: impl http_body::Body<Data = Bytes, Error = BodyError> + 'static,
    ) -> Self {
        Self {
            ended: body.is_end_stream(),
            source: Source::Other(Box::pin(body)),
            pace: Pace::new(&Limits::default()),
            sleep: None,
            rest: Rest::Drop,
        }
    }

    /// The next bytes; `None` at the end of the body. After an error it has ended.
    pub async fn next(&mut self) -> Option<Result<Bytes, BodyError>> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    /// [`Self::next`] for those who poll.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if let Rest::ReadOnceAsked(activity) = &self.rest {
            self.rest = Rest::Read(activity.clone());
        }
        let polled = match &mut self.source {
            Source::Incoming(incoming) => poll_data(incoming, cx),
            Source::Pipe(pipe) => pipe.poll_next(cx),
            Source::Whole(bytes) => {
                self.ended = true;
                return Poll::Ready(Some(Ok(std::mem::take(bytes))));
            }
            Source::Other(body) => {
                let item = loop {
                    match std::task::ready!(body.as_mut().poll_frame(cx)) {
                        None => break None,
                        Some(Err(error)) => break Some(Err(error)),
                        Some(Ok(frame)) => match frame.into_data() {
                            Ok(bytes) if !bytes.is_empty() => break Some(Ok(bytes)),
                            _ => continue,
                        },
                    }
                };
                self.ended = !matches!(item, Some(Ok(_)));
                return Poll::Ready(item);
            }
        };
        let item = match polled {
            Poll::Pending => {
                let now = time::turn_time();
                let deadline = self.pace.begin_wait(now);
                let sleep = self.sleep.get_or_insert_with(|| time::sleep_until(deadline));
                if sleep.deadline() != deadline {
                    sleep.reset(deadline);
                }
                std::task::ready!(Pin::new(sleep).poll(cx));
                Some(Err(BodyError::Slow))
            }
            Poll::Ready(Some(Ok(bytes))) if !self.pace.note(bytes.len(), time::turn_time()) => {
                Some(Err(BodyError::Slow))
            }
            Poll::Ready(item) => item,
        };
        self.ended = !matches!(item, Some(Ok(_)));
        Poll::Ready(item)
    }

    /// How many bytes are still to come, if the client has said so.
    pub fn size_hint(&self) -> Option<u64> {
        match &self.source {
            Source::Incoming(incoming) => incoming.size_hint().exact(),
            Source::Pipe(pipe) => pipe.size_hint(),
            Source::Whole(bytes) => Some(bytes.len() as u64),
            Source::Other(body) => body.size_hint().exact(),
        }
    }

    fn is_rest_short(&self) -> bool {
        self.size_hint().is_none_or(|rest| rest <= REST_BYTES_MAX as u64)
    }

    fn take(&mut self, rest: Rest) -> Self {
        Self {
            source: std::mem::replace(&mut self.source, Source::Whole(Bytes::new())),
            pace: self.pace,
            sleep: self.sleep.take(),
            rest,
            ended: false,
        }
    }

    async fn read_rest(mut self) {
        let mut left = REST_BYTES_MAX;
        let reading = async {
            while let Some(Ok(bytes)) = self.next().await {
                match left.checked_sub(bytes.len()) {
                    Some(less) => left = less,
                    None => break,
                }
            }
        };
        // Whatever is left after that ends the connection.
        let _ = time::timeout(REST_TIME, reading).await;
    }
}

/// The next data of a body that hyper receives.
fn poll_data(
    incoming: &mut Incoming,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Bytes, BodyError>>> {
    loop {
        return Poll::Ready(match std::task::ready!(Pin::new(&mut *incoming).poll_frame(cx)) {
            None => None,
            Some(Err(error)) => Some(Err(BodyError::Cut(error.to_string()))),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(bytes) if bytes.is_empty() => continue,
                Ok(bytes) => Some(Ok(bytes)),
                // Trailers: nothing here asks for them.
                Err(_) => continue,
            },
        });
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if let Source::Pipe(pipe) = &self.source
            && !pipe.has_ended()
        {
            pipe.leave();
        }
        if self.ended {
            return;
        }
        match std::mem::replace(&mut self.rest, Rest::Drop) {
            Rest::Read(_) | Rest::ReadLate if self.is_rest_short() => {
                task::spawn(self.take(Rest::Drop).read_rest());
            }
            Rest::Read(activity) | Rest::ReadOnceAsked(activity) => activity.body_left.set(true),
            Rest::ReadAfterAnswer(leftover) => {
                *leftover.0.borrow_mut() = Some(self.take(Rest::ReadLate));
            }
            Rest::ReadLate | Rest::Drop => {}
        }
    }
}

impl fmt::Debug for RequestBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestBody")
            .field("size_hint", &self.size_hint())
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

/// Whether a body comes in fast enough. Only the time spent waiting for it counts: a handler may
/// take its own.
#[derive(Clone, Copy, Debug)]
struct Pace {
    idle_time: Duration,
    bytes_per_second_min: u64,
    waiting_since: Option<Instant>,
    waited: Duration,
    bytes: u64,
}

impl Pace {
    fn new(limits: &Limits) -> Self {
        Self {
            idle_time: limits.body_idle_time,
            bytes_per_second_min: limits.body_bytes_per_second_min,
            waiting_since: None,
            waited: Duration::ZERO,
            bytes: 0,
        }
    }

    /// Waits, or goes on waiting; gives until when.
    fn begin_wait(&mut self, now: Instant) -> Instant {
        *self.waiting_since.get_or_insert(now) + self.idle_time
    }

    /// Some bytes came in; false when they are too few for the time.
    fn note(&mut self, bytes: usize, now: Instant) -> bool {
        if let Some(since) = self.waiting_since.take() {
            self.waited += now.saturating_duration_since(since);
        }
        self.bytes += bytes as u64;
        if self.waited < SPEED_WINDOW {
            return true;
        }
        let owed = u128::from(self.bytes_per_second_min) * self.waited.as_millis() / 1000;
        let fast_enough = u128::from(self.bytes) >= owed;
        self.waited = Duration::ZERO;
        self.bytes = 0;
        fast_enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_a_second_is_too_slow_after_half_a_minute_of_waiting() {
        let mut pace = Pace::new(&Limits::default());
        let start = Instant::now();
        let mut seconds = 0;
        let ended = loop {
            pace.begin_wait(start + Duration::from_secs(seconds));
            seconds += 1;
            if !pace.note(1, start + Duration::from_secs(seconds)) {
                break seconds;
            }
            assert!(seconds < 100);
        };
        assert_eq!(ended, 30);
    }

    #[test]
    fn the_time_that_the_handler_takes_does_not_count_against_the_client() {
        let mut pace = Pace::new(&Limits::default());
        let start = Instant::now();
        for minute in 0..100 {
            let at = start + Duration::from_secs(60 * minute);
            pace.begin_wait(at);
            assert!(pace.note(1, at + Duration::from_millis(1)));
        }
    }

    #[test]
    fn waiting_has_an_end_that_does_not_move_while_nothing_comes() {
        let mut pace = Pace::new(&Limits::default());
        let start = Instant::now();
        let end = start + Duration::from_secs(60);
        assert_eq!(pace.begin_wait(start), end);
        assert_eq!(pace.begin_wait(start + Duration::from_secs(59)), end);
    }
}
