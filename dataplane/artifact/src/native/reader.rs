//! Frames from the chunks of a stream.

use rkyv::util::AlignedVec;

use super::frame::{FRAME_HEAD_BYTES, FrameHead, FrameKind, Refusal, checked_credential};
use super::{Answer, NativeError, Request};

/// What was found in a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// The token of the request that follows.
    Credential(String),
    /// A request.
    Request(Request),
    /// An answer; `body_len` raw bytes of [`Item::Body`] follow.
    Answer(Answer),
    /// The other side does not go on with this.
    Refusal(Refusal),
    /// The bytes that this call took are content, all of them. At least one.
    Body,
}

/// Which side reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Server {
        /// It has had a token, and takes no other one.
        has_token: bool,
    },
    Client,
}

#[derive(Debug)]
enum Reading {
    Head {
        bytes: [u8; FRAME_HEAD_BYTES],
        len: usize,
    },
    Archive {
        head: FrameHead,
        bytes: AlignedVec<16>,
    },
    Body {
        left: u64,
    },
    /// A server has its request, a client its refusal.
    Over,
}

const START: Reading = Reading::Head { bytes: [0; FRAME_HEAD_BYTES], len: 0 };

/// Reads one stream. Keeps at most one header and one record, and no content.
#[derive(Debug)]
pub struct Reader {
    side: Side,
    reading: Reading,
}

impl Reader {
    /// The side that is asked: one request, perhaps a token before it, and nothing behind it.
    pub const fn server() -> Self {
        Self { side: Side::Server { has_token: false }, reading: START }
    }

    /// The side that asks: answers with their bytes, or a refusal.
    pub const fn client() -> Self {
        Self { side: Side::Client, reading: START }
    }

    /// Takes bytes off the front of `input`: gives how many, and what they end with. Call it with the rest until
    /// `input` is empty.
    ///
    /// # Errors
    /// [`NativeError`]; the stream is of no use then.
    pub fn read(&mut self, input: &[u8]) -> Result<(usize, Option<Item>), NativeError> {
        let mut taken = 0;
        while taken < input.len() {
            let rest = &input[taken..];
            match &mut self.reading {
                Reading::Head { bytes, len } => {
                    let count = rest.len().min(FRAME_HEAD_BYTES - *len);
                    bytes[*len..*len + count].copy_from_slice(&rest[..count]);
                    *len += count;
                    taken += count;
                    if *len < FRAME_HEAD_BYTES {
                        continue;
                    }
                    let head = FrameHead::parse(bytes)?;
                    let expected = match self.side {
                        Side::Server { has_token } => match head.kind {
                            FrameKind::Request => true,
                            FrameKind::Credential => !has_token,
                            FrameKind::Answer | FrameKind::Refusal => false,
                        },
                        Side::Client => {
                            matches!(head.kind, FrameKind::Answer | FrameKind::Refusal)
                        }
                    };
                    if !expected {
                        return Err(NativeError::Kind { found: head.kind as u8 });
                    }
                    // No more than what has come: the length is only what the other side says.
                    let here = head.archive_len.min(rest.len() - count);
                    let bytes = AlignedVec::with_capacity(here);
                    self.reading = Reading::Archive { head, bytes };
                }
                Reading::Archive { head, bytes } => {
                    let count = rest.len().min(head.archive_len - bytes.len());
                    let needed = bytes.len() + count;
                    if needed > bytes.capacity() {
                        let room = needed.max(2 * bytes.capacity()).min(head.archive_len);
                        bytes.reserve_exact(room - bytes.len());
                    }
                    bytes.extend_from_slice(&rest[..count]);
                    taken += count;
                }
                Reading::Body { left } => {
                    let count = rest.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    *left -= count as u64;
                    if *left == 0 {
                        self.reading = START;
                    }
                    return Ok((taken + count, Some(Item::Body)));
                }
                Reading::Over => {
                    return Err(NativeError::Record("there is something behind the last frame"));
                }
            }
            if let Reading::Archive { head, bytes } = &self.reading
                && bytes.len() == head.archive_len
            {
                head.check(bytes)?;
                let (item, next) = match head.kind {
                    FrameKind::Credential => {
                        self.side = Side::Server { has_token: true };
                        (Item::Credential(checked_credential(bytes.to_vec())?), START)
                    }
                    FrameKind::Request => (Item::Request(Request::decode(bytes)?), Reading::Over),
                    FrameKind::Refusal => {
                        (Item::Refusal(Refusal::decode(head, bytes)?), Reading::Over)
                    }
                    FrameKind::Answer => {
                        let answer = Answer::decode(head.body_len, bytes)?;
                        let left = answer.body_len;
                        let next = if left == 0 { START } else { Reading::Body { left } };
                        (Item::Answer(answer), next)
                    }
                };
                self.reading = next;
                return Ok((taken, Some(item)));
            }
        }
        Ok((taken, None))
    }

    /// Whether the stream may end here: between two frames, or behind the last.
    pub const fn is_at_boundary(&self) -> bool {
        matches!(self.reading, Reading::Head { len: 0, .. } | Reading::Over)
    }

    /// Bytes that are kept.
    pub fn kept_bytes(&self) -> usize {
        match &self.reading {
            Reading::Head { len, .. } => *len,
            Reading::Archive { bytes, .. } => FRAME_HEAD_BYTES + bytes.capacity(),
            Reading::Body { .. } | Reading::Over => 0,
        }
    }
}
