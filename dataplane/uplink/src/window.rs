//! A body on its way from the uplink thread into a shard: a bounded channel whose bound is bytes.
//!
//! The uplink pays for each frame out of a window before it sends it; the reader pays back when it
//! takes the frame. While the window is spent nothing reads the origin's socket, so that TCP (or
//! HTTP/2 flow control) stops the origin. Never holds more than a window; never ends silently: the
//! last frame says whether the body was whole.

use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use outrider_shard::{ShardHandle, channel};
use tokio::sync::{Semaphore, oneshot};

use crate::error::FetchError;
use crate::fetch::Lease;

/// Into how many frames a window can be divided at most: a smaller frame costs as much as this part
/// of the window, so that an origin that sends single bytes cannot fill memory with bookkeeping.
const FRAMES_MAX: usize = 256;

/// Larger pieces are cut to this, so that a body moves on in steps and a window holds several.
const FRAME_BYTES_MAX: usize = 64 << 10;

enum Frame {
    Data(Bytes),
    End,
    Failed(FetchError),
}

/// What a frame of so many bytes costs.
fn price(window_bytes: usize, frame_bytes: usize) -> u32 {
    let price = frame_bytes.max(window_bytes.div_ceil(FRAMES_MAX));
    u32::try_from(price).expect("a frame is at most FRAME_BYTES_MAX and a window at most 16 MiB")
}

/// A window and its two ends.
pub(crate) fn open(window_bytes: usize, shard: &ShardHandle) -> (BodySender, FetchBody) {
    debug_assert!(window_bytes >= FRAME_BYTES_MAX, "a frame would never fit");
    let window = Arc::new(Semaphore::new(window_bytes));
    // One more, so that the last word never waits for the reader.
    let (sender, receiver) = channel::bounded(FRAMES_MAX + 1, shard);
    let sender = BodySender { frames: sender, window: Arc::clone(&window), window_bytes };
    let body =
        FetchBody { frames: Some(receiver), window: Some(window), window_bytes, lease: None };
    (sender, body)
}

/// The reader of a body has gone away.
#[derive(Debug)]
pub(crate) struct Gone;

/// The uplink's end of a body.
pub(crate) struct BodySender {
    frames: channel::Sender<Frame>,
    window: Arc<Semaphore>,
    window_bytes: usize,
}

impl BodySender {
    /// Sends data, waiting while the window is spent.
    pub(crate) async fn send(&self, mut data: Bytes) -> Result<(), Gone> {
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(FRAME_BYTES_MAX));
            let price = price(self.window_bytes, piece.len());
            self.window.acquire_many(price).await.map_err(|_| Gone)?.forget();
            self.frames.try_send(Frame::Data(piece)).map_err(|_| Gone)?;
        }
        Ok(())
    }

    /// Says how the body ended. Never waits.
    pub(crate) fn finish(self, end: Result<(), FetchError>) {
        let last = match end {
            Ok(()) => Frame::End,
            Err(error) => Frame::Failed(error),
        };
        // A reader that has gone away does not want to know.
        let _ = self.frames.try_send(last);
    }
}

/// The body of an answer. Dropping it ends the fetch and its connection.
pub struct FetchBody {
    /// `None` when the end was reached.
    frames: Option<channel::Receiver<Frame>>,
    window: Option<Arc<Semaphore>>,
    window_bytes: usize,
    lease: Option<oneshot::Sender<Lease>>,
}

impl FetchBody {
    /// The body of an answer to HEAD.
    pub(crate) fn empty() -> Self {
        Self { frames: None, window: None, window_bytes: 0, lease: None }
    }

    /// Keeps the interest in the fetch alive for as long as this body is.
    pub(crate) fn hold(&mut self, lease: oneshot::Sender<Lease>) {
        if self.frames.is_some() {
            self.lease = Some(lease);
        }
    }

    /// The next piece of at most 64 KiB, never empty. `None` after the last one, when exactly the
    /// announced length has come; `Some(Err(_))` once when the body ended otherwise, then `None`.
    pub async fn next(&mut self) -> Option<Result<Bytes, FetchError>> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// [`next`](Self::next) for those who poll.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, FetchError>>> {
        let Some(frames) = &mut self.frames else { return Poll::Ready(None) };
        let last = match std::task::ready!(frames.poll_recv(cx)) {
            Some(Frame::Data(data)) => {
                if let Some(window) = &self.window {
                    let paid = price(self.window_bytes, data.len());
                    window.add_permits(usize::try_from(paid).unwrap_or(usize::MAX));
                }
                return Poll::Ready(Some(Ok(data)));
            }
            Some(Frame::End) => None,
            Some(Frame::Failed(error)) => Some(Err(error)),
            None => Some(Err(FetchError::Closed)),
        };
        self.release();
        Poll::Ready(last)
    }

    fn release(&mut self) {
        self.frames = None;
        self.lease = None;
        if let Some(window) = self.window.take() {
            window.close();
        }
    }
}

impl Drop for FetchBody {
    fn drop(&mut self) {
        self.release();
    }
}

impl fmt::Debug for FetchBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FetchBody").field("ended", &self.frames.is_none()).finish_non_exhaustive()
    }
}
