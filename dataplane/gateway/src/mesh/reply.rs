//! Answers on their way from the shard that made them to the one that sends them.
//!
//! The body of a content is a stream of views into the owner's arena. They count against the owner's
//! budget until the client has taken them, so that clients of other shards cannot hold more of an
//! arena than its own could; and at most [`FRAMES_AHEAD`] wait between the two shards.

use std::pin::pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::Response;
use http_body::{Body, SizeHint};
use outrider_shard::channel::{PipeReceiver, PipeSender, pipe};
use outrider_shard::task;
use outrider_transport::{BodyFault, PinBudget};

use crate::body::GatewayBody;
use crate::gateway::Answer;
use crate::protocol::ApiError;

/// Frames that wait for the other shard at most: 1 MiB. A stream of them costs two wakes for each half.
const FRAMES_AHEAD: usize = 4;

/// An answer that can go to another shard.
pub(crate) type Reply = Result<Response<ReplyBody>, ApiError>;

pub(crate) enum ReplyBody {
    /// All of it, or nothing.
    Whole(Bytes),
    Stream(Stream),
}

/// A body that another shard reads.
pub(crate) struct Stream {
    frames: PipeReceiver<Result<Bytes, BodyFault>>,
    /// `None`: not known, and it ends when there are no more frames.
    remaining: Option<u64>,
}

/// Makes an answer of this shard one that another shard can send.
pub(crate) fn pack(answer: Answer, pins: &PinBudget) -> Reply {
    let (head, body) = answer?.into_parts();
    Ok(Response::from_parts(head, pack_body(body, pins)))
}

fn pack_body(mut body: GatewayBody, pins: &PinBudget) -> ReplyBody {
    if let Some(bytes) = body.take_whole() {
        return ReplyBody::Whole(bytes);
    }
    let first = if pins.is_under_pressure() { None } else { body.try_next() };
    let first = first.map(|bytes| pins.try_hold(bytes).unwrap_or_else(copy));
    if body.is_end_stream() {
        return ReplyBody::Whole(first.unwrap_or_default());
    }
    let known = body.size_hint().exact();
    let ahead = first.as_ref().map_or(0, Bytes::len) as u64;
    let (mut sender, frames) = pipe(FRAMES_AHEAD);
    if let Some(first) = first {
        // It is empty, and both ends are here.
        let _ = sender.try_send(Ok(first));
    }
    task::spawn(stream(pins.clone(), body, sender));
    ReplyBody::Stream(Stream { frames, remaining: known.map(|known| known + ahead) })
}

/// Pressure began just now. A copy holds nothing of the arena.
#[expect(clippy::needless_pass_by_value)] // The slot is let go of here.
fn copy(bytes: Bytes) -> Bytes {
    Bytes::copy_from_slice(&bytes)
}

/// Reads a body for another shard, until its end or until nobody wants it.
async fn stream(
    pins: PinBudget,
    body: GatewayBody,
    mut sender: PipeSender<Result<Bytes, BodyFault>>,
) {
    let mut body = pin!(pins.hold(body));
    loop {
        let next = std::future::poll_fn(|cx| {
            if sender.poll_closed(cx).is_ready() {
                return Poll::Ready(None);
            }
            ready!(sender.poll_room(cx));
            body.as_mut().poll_frame(cx)
        })
        .await;
        let next = match next {
            None => return,
            Some(Ok(frame)) => match frame.into_data() {
                Ok(bytes) => Ok(bytes),
                Err(_) => continue,
            },
            Some(Err(fault)) => Err(fault),
        };
        let ended = next.is_err();
        if sender.try_send(next).is_err() || ended {
            return;
        }
        task::yield_if_needed().await;
    }
}

/// Makes another shard's answer one of this shard.
pub(crate) fn unpack(reply: Reply) -> Answer {
    Ok(reply?.map(|body| match body {
        ReplyBody::Whole(bytes) => GatewayBody::whole(bytes),
        ReplyBody::Stream(stream) => GatewayBody::of_shard(stream),
    }))
}

impl Stream {
    /// The next frame. It is an error when the other shard has ended before the body has.
    pub(crate) fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, BodyFault>>> {
        if self.remaining == Some(0) {
            return Poll::Ready(None);
        }
        let next = ready!(self.frames.poll_recv(cx));
        match (&next, &mut self.remaining) {
            (Some(Ok(bytes)), Some(remaining)) => {
                *remaining = remaining.saturating_sub(bytes.len() as u64);
            }
            (None, Some(_)) => {
                self.remaining = Some(0);
                let fault = BodyFault::new("the shard that has the content has ended");
                return Poll::Ready(Some(Err(fault)));
            }
            _ => {}
        }
        Poll::Ready(next)
    }

    pub(crate) fn remaining(&self) -> Option<u64> {
        self.remaining
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        self.remaining.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
