//! The body of a request on its way from the shard that reads it to the one that answers.
//!
//! It is read only once the other shard wants it, since the client may wait to be asked; a bounded
//! number of pieces wait between the two.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use outrider_shard::channel::{PipeReceiver, PipeSender, pipe};
use outrider_transport::{BodyError, RequestBody};

/// Pieces that wait at most; a piece is what was read from the socket at once, at most 64 KiB.
const PIECES_AHEAD: usize = 8;

/// A piece, or the end.
type Piece = Option<Result<Bytes, BodyError>>;

/// The end that reads the client.
pub(crate) struct Carrier {
    body: RequestBody,
    pieces: PipeSender<Piece>,
}

/// The end that is carried to the other shard.
pub(crate) struct Carried {
    pieces: PipeReceiver<Piece>,
    size: Option<u64>,
    ended: bool,
}

/// Takes a body apart into the end that stays and the end that goes.
pub(crate) fn carry(body: RequestBody) -> (Carrier, Carried) {
    let (sender, pieces) = pipe(PIECES_AHEAD);
    let size = body.size_hint();
    (Carrier { body, pieces: sender }, Carried { pieces, size, ended: false })
}

impl Carrier {
    /// Reads the client for the other shard, until the end or until the other shard has enough.
    pub(crate) async fn run(mut self) {
        self.pieces.asked().await;
        loop {
            std::future::poll_fn(|cx| self.pieces.poll_room(cx)).await;
            if self.pieces.is_closed() {
                return;
            }
            let next = std::future::poll_fn(|cx| {
                if self.pieces.poll_closed(cx).is_ready() {
                    return Poll::Ready(None);
                }
                self.body.poll_next(cx).map(Some)
            })
            .await;
            let Some(piece) = next else { return };
            let ended = !matches!(piece, Some(Ok(_)));
            if self.pieces.try_send(piece).is_err() || ended {
                return;
            }
        }
    }
}

impl Carried {
    /// The body, on the shard that it came to.
    pub(crate) fn into_body(self) -> RequestBody {
        RequestBody::from_body(self)
    }
}

impl Body for Carried {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let piece = ready!(self.pieces.poll_recv(cx)).unwrap_or_else(|| {
            Some(Err(BodyError::Cut("the connection, or the shard that has it, has ended".into())))
        });
        self.ended = !matches!(piece, Some(Ok(_)));
        if let (Some(Ok(bytes)), Some(size)) = (&piece, &mut self.size) {
            *size = size.saturating_sub(bytes.len() as u64);
        }
        Poll::Ready(piece.map(|piece| piece.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        // A client that says nothing about the length may still send something.
        self.ended || self.size == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        self.size.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
