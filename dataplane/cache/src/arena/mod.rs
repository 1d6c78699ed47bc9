//! The memory of the cache.

use bytes::Bytes;

/// A slot that is being filled, with the exclusive right to write.
#[derive(Debug)]
pub struct ChunkWriter {}

impl ChunkWriter {
    /// Takes as many of `data` as fit; returns how many. Copies.
    pub fn append(&mut self, _data: &[u8]) -> usize {
        unimplemented!()
    }
    /// How many bytes were written.
    pub fn len(&self) -> usize {
        unimplemented!()
    }
    /// Whether nothing was written yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// How many bytes fit in all.
    pub fn capacity(&self) -> usize {
        unimplemented!()
    }
    /// A shared view of bytes `from..to` of what was written; writing may go on. One small allocation.
    ///
    /// # Panics
    /// When `from > to` or `to > len()`.
    pub fn prefix(&self, _from: usize, _to: usize) -> Bytes {
        unimplemented!()
    }
}
