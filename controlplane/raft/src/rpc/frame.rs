//! Frames as bytes.

use std::io;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// The largest body of a member's frame.
pub const BODY_BYTES_MAX: usize = 16 << 20;
/// The largest body of a frame of somebody who has no certificate yet.
pub const STRANGER_BODY_BYTES_MAX: usize = 64 << 10;
/// Number and kind.
const HEAD_BYTES: usize = 9;

/// What a call asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Kind(pub u8);

impl Kind {
    /// Log entries, or a heartbeat.
    pub const APPEND: Self = Self(1);
    /// A vote.
    pub const VOTE: Self = Self(2);
    /// A part of a snapshot.
    pub const SNAPSHOT: Self = Self(3);
    /// Requests to propose, sent to the leader.
    pub const WRITE: Self = Self(4);
    /// Up to which log index a read must wait, asked of the leader.
    pub const READ_INDEX: Self = Self(5);
    /// A node wants to vote.
    pub const ENLIST: Self = Self(6);
    /// A node shall be removed.
    pub const REMOVE: Self = Self(7);
    /// A newcomer with a token. The only call of somebody without a certificate.
    pub const JOIN: Self = Self(8);
    /// Which edges follow the node, and how far each is.
    pub const EDGES: Self = Self(9);
    /// An answer.
    pub(crate) const OK: Self = Self(128);
    /// An answer that is a reason why there is none.
    pub(crate) const ERROR: Self = Self(129);
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Number of the call, chosen by who calls.
    pub call: u64,
    /// What it is.
    pub kind: Kind,
    /// The body.
    pub body: Bytes,
}

/// Reads one frame; nothing at the end of the stream.
///
/// # Errors
/// Those of the stream, and of a frame that is too small or larger than `body_bytes_max`.
pub async fn read<R: AsyncRead + Unpin>(
    from: &mut R,
    body_bytes_max: usize,
) -> io::Result<Option<Frame>> {
    let mut length = [0; 4];
    match from.read_exact(&mut length).await {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let length = u32::from_le_bytes(length) as usize;
    let body = length
        .checked_sub(HEAD_BYTES)
        .filter(|body| *body <= body_bytes_max)
        .ok_or_else(|| io::Error::other(format!("a frame has {length} bytes")))?;
    let mut head = [0; HEAD_BYTES];
    from.read_exact(&mut head).await?;
    let mut call = [0; 8];
    call.copy_from_slice(&head[..8]);
    // Grows with what comes, so that a length alone allocates little.
    let mut bytes = BytesMut::with_capacity(body.min(64 << 10));
    while bytes.len() < body {
        let left = body - bytes.len();
        if bytes.capacity() == bytes.len() {
            bytes.reserve(left.min(bytes.len().max(64 << 10)));
        }
        let mut limited = (&mut *from).take(left as u64);
        if limited.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(Some(Frame { call: u64::from_le_bytes(call), kind: Kind(head[8]), body: bytes.freeze() }))
}

/// Writes one frame, without flushing.
///
/// # Errors
/// Those of the stream, and of a body that no reader would take.
pub async fn write<W: AsyncWrite + Unpin>(to: &mut W, frame: &Frame) -> io::Result<()> {
    let length = frame.body.len() + HEAD_BYTES;
    if frame.body.len() > BODY_BYTES_MAX {
        return Err(io::Error::other(format!("a frame has {length} bytes")));
    }
    let mut head = [0; 4 + HEAD_BYTES];
    // At most `BODY_BYTES_MAX` and a little.
    head[..4].copy_from_slice(&(length as u32).to_le_bytes());
    head[4..12].copy_from_slice(&frame.call.to_le_bytes());
    head[12] = frame.kind.0;
    to.write_all(&head).await?;
    to.write_all(&frame.body).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    #[test]
    fn frames_come_as_they_went_and_what_is_wrong_is_an_error() {
        run(async {
            let frame = |length: usize| Frame {
                call: 7,
                kind: Kind::WRITE,
                body: Bytes::from(vec![3; length]),
            };
            let mut bytes = Vec::new();
            for length in [0, 1, 200_000] {
                write(&mut bytes, &frame(length)).await.unwrap();
            }
            let mut from = bytes.as_slice();
            for length in [0, 1, 200_000] {
                assert_eq!(read(&mut from, BODY_BYTES_MAX).await.unwrap(), Some(frame(length)));
            }
            assert_eq!(read(&mut from, BODY_BYTES_MAX).await.unwrap(), None);
            read(&mut bytes[27..].as_ref(), 199_999).await.unwrap_err();
            read(&mut bytes[..bytes.len() - 1][27..].as_ref(), BODY_BYTES_MAX).await.unwrap_err();
            read(&mut [8, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8].as_slice(), 10).await.unwrap_err();
            write(&mut Vec::new(), &frame(BODY_BYTES_MAX + 1)).await.unwrap_err();
        });
    }
}
