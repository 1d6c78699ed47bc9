//! What a peer may send that is of no use to anyone, and still has to be read.

use crate::error::{Code, ConnectionError};

/// Counts frames and bytes that were skipped, against what is allowed for each request that was begun. So a client
/// with many requests may send its share of grease and priorities with each, and one without requests cannot keep
/// us busy.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    frames_left: u64,
    bytes_left: u64,
    frames_each: u64,
    bytes_each: u64,
}

impl Budget {
    pub(crate) const fn new(frames_each: u64, bytes_each: u64) -> Self {
        Self { frames_left: frames_each, bytes_left: bytes_each, frames_each, bytes_each }
    }

    /// A request was begun.
    pub(crate) const fn replenish(&mut self) {
        self.frames_left = self.frames_left.saturating_add(self.frames_each);
        self.bytes_left = self.bytes_left.saturating_add(self.bytes_each);
    }

    pub(crate) fn frame(&mut self) -> Result<(), ConnectionError> {
        self.frames_left = self.frames_left.checked_sub(1).ok_or(ConnectionError::new(
            Code::H3_EXCESSIVE_LOAD,
            "too many frames that are of no use",
        ))?;
        Ok(())
    }

    pub(crate) fn bytes(&mut self, bytes: usize) -> Result<(), ConnectionError> {
        self.bytes_left = self.bytes_left.checked_sub(bytes as u64).ok_or(ConnectionError::new(
            Code::H3_EXCESSIVE_LOAD,
            "too many bytes that are of no use",
        ))?;
        Ok(())
    }
}
