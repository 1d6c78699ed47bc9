//! Filling a slot while others already read what is there.

use bytes::Bytes;

use super::{Frozen, HEADER_BYTES, Handle, SlotMut, View};

/// A slot that is being filled, with the exclusive right to write. Dropping it frees the slot (as
/// soon as the views that were taken are gone too).
pub struct ChunkWriter {
    handle: Handle,
    len: usize,
    capacity: usize,
}

#[allow(unsafe_code)]
impl ChunkWriter {
    pub(crate) fn new(slot: SlotMut, capacity: usize) -> Self {
        assert!(HEADER_BYTES + capacity <= slot.0.bytes as usize, "capacity beyond the slot");
        Self { handle: slot.0, len: 0, capacity }
    }

    /// Takes as many of `data` as fit, and returns how many. Copies.
    pub fn append(&mut self, data: &[u8]) -> usize {
        let taken = data.len().min(self.capacity - self.len);
        // SAFETY: the destination lies in the slot (checked by `new`), behind `len`, where no view
        // reaches; this value alone may write there. `data` cannot overlap it for the same reason.
        unsafe {
            std::ptr::copy_nonoverlapping(
                data.as_ptr(),
                self.handle.pointer().add(HEADER_BYTES + self.len),
                taken,
            );
        }
        self.len += taken;
        taken
    }

    /// How many bytes were written.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing was written yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many bytes fit in all: what was asked for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// A shared view of the bytes `from..to` of what was written; writing may go on. Costs one
    /// small allocation, copies nothing.
    ///
    /// # Panics
    /// When `from > to` or `to > len()`.
    pub fn prefix(&self, from: usize, to: usize) -> Bytes {
        assert!(from <= to && to <= self.len, "a view of bytes that are not written yet");
        Bytes::from_owner(View { handle: self.handle.clone(), from: from as u32, to: to as u32 })
    }

    /// Ends the writing.
    pub(crate) fn freeze(self) -> Frozen {
        Frozen { handle: self.handle, payload_bytes: self.len as u32 }
    }

    /// Bytes of the slot, to see whether a smaller one would do.
    pub(crate) fn slot_bytes(&self) -> usize {
        self.handle.bytes as usize
    }
}

impl std::fmt::Debug for ChunkWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ChunkWriter({} of {} bytes)", self.len, self.capacity)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Arena, Slab, record_bytes};
    use super::*;

    #[test]
    fn views_taken_while_writing_keep_their_bytes_and_only_written_bytes_are_seen() {
        let big = record_bytes(64 << 10);
        let arena = Arena::map(big, big, 64, None).unwrap();
        let mut slab = Slab::new(0, 1, 64 << 10, 1);
        let mut writer = ChunkWriter::new(arena.take(slab.take(10).unwrap()), 10);
        assert_eq!(writer.append(b"abcd"), 4);
        let early = writer.prefix(1, 4);
        assert_eq!(writer.append(b"efghijkl"), 6, "only what fits is taken");
        assert_eq!(&early[..], b"bcd");
        assert_eq!(&writer.prefix(0, 10)[..], b"abcdefghij");
        assert_eq!(writer.append(b"x"), 0);
        drop(writer);
        assert_eq!(arena.returned(), None, "the view still holds the slot");
        drop(early);
        assert!(arena.returned().is_some());
    }
}
