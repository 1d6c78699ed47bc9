//! Frames: type, length, payload (RFC 9114 section 7).

use bytes::{Buf, Bytes};

use crate::varint;

/// Frame types of RFC 9114.
pub mod kind {
    /// A piece of a body.
    pub const DATA: u64 = 0x00;
    /// A field section: a head or trailers.
    pub const HEADERS: u64 = 0x01;
    /// A push is not wanted.
    pub const CANCEL_PUSH: u64 = 0x03;
    /// Settings.
    pub const SETTINGS: u64 = 0x04;
    /// A push is announced.
    pub const PUSH_PROMISE: u64 = 0x05;
    /// The sender goes away.
    pub const GOAWAY: u64 = 0x07;
    /// How many pushes are allowed.
    pub const MAX_PUSH_ID: u64 = 0x0d;

    /// Types of HTTP/2 that must not be sent (section 7.2.8).
    pub const fn is_reserved(kind: u64) -> bool {
        matches!(kind, 0x02 | 0x06 | 0x08 | 0x09)
    }
}

/// Type and length of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHead {
    /// See [`kind`].
    pub kind: u64,
    /// Bytes of the payload.
    pub len: u64,
}

impl FrameHead {
    /// The head at the front, and its length in bytes: nothing if it is not all there.
    pub fn get(bytes: &[u8]) -> Option<(Self, usize)> {
        let (kind, first) = varint::get(bytes)?;
        let (len, second) = varint::get(&bytes[first..])?;
        Some((Self { kind, len }, first + second))
    }

    /// Appends it.
    pub fn put(self, bytes: &mut Vec<u8>) {
        varint::put(bytes, self.kind);
        varint::put(bytes, self.len);
    }
}

/// Puts the head of a frame together from the chunks of a stream. Keeps at most 16 bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeadReader {
    bytes: [u8; 16],
    len: u8,
}

impl HeadReader {
    /// Takes a head off the front of `data`; nothing if more is needed, and `data` is empty then.
    pub fn read(&mut self, data: &mut Bytes) -> Option<FrameHead> {
        if self.len == 0
            && let Some((head, len)) = FrameHead::get(data)
        {
            data.advance(len);
            return Some(head);
        }
        self.read_by(data, FrameHead::get)
    }

    /// The same for one integer.
    pub(crate) fn read_varint(&mut self, data: &mut Bytes) -> Option<u64> {
        self.read_by(data, varint::get)
    }

    fn read_by<T>(&mut self, data: &mut Bytes, get: fn(&[u8]) -> Option<(T, usize)>) -> Option<T> {
        while let Some(byte) = data.first().copied() {
            data.advance(1);
            // Two integers of 8 bytes at most: `get` has found them when the 16th is in.
            self.bytes[usize::from(self.len)] = byte;
            self.len += 1;
            if let Some((value, _)) = get(&self.bytes[..usize::from(self.len)]) {
                self.len = 0;
                return Some(value);
            }
        }
        None
    }

    /// Whether nothing of a head is kept: the stream may end here.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_read_from_any_chunks() {
        let heads = [(0, 0), (1, 63), (0x21, 64), (1 << 40, varint::MAX), (varint::MAX, 1 << 20)];
        for (kind, len) in heads {
            let mut bytes = Vec::new();
            FrameHead { kind, len }.put(&mut bytes);
            bytes.push(7);
            for split in 0..=bytes.len() {
                let mut reader = HeadReader::default();
                let mut first = Bytes::copy_from_slice(&bytes[..split]);
                let mut second = Bytes::copy_from_slice(&bytes[split..]);
                let found = reader.read(&mut first).or_else(|| {
                    assert!(first.is_empty());
                    assert_eq!(reader.is_empty(), split == 0);
                    reader.read(&mut second)
                });
                assert_eq!(found, Some(FrameHead { kind, len }));
                assert!(reader.is_empty());
                assert_eq!(
                    first.len() + second.len(),
                    if split == bytes.len() { 1 } else { first.len() + 1 }
                );
            }
        }
    }
}
