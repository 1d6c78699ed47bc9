//! Uploads: objects that clients stored here and that must survive everything.

use std::fmt;

use bytes::Bytes;

use crate::error::CacheError;

/// The identity of an upload, chosen by the caller; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UploadId(pub [u8; 16]);

impl fmt::Display for UploadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// An upload that is coming in. Dropping it gives its space back.
#[derive(Debug)]
pub struct Upload {}

impl Upload {
    /// Its identity.
    pub fn id(&self) -> UploadId {
        unimplemented!()
    }
    /// Bytes taken so far.
    pub fn len(&self) -> u64 {
        unimplemented!()
    }
    /// Whether nothing was taken yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Takes all of `data`; waits while the disks cannot keep up. After an error the upload is
    /// only good for dropping.
    ///
    /// # Errors
    /// `Busy`, `StoreFull`, `Write`.
    #[expect(clippy::unused_async)]
    pub async fn append(&mut self, _data: &[u8]) -> Result<(), CacheError> {
        unimplemented!()
    }
    /// Chunk `chunk` of what was taken so far (the last one may be short), to be hashed again.
    ///
    /// # Errors
    /// `Busy`, `UploadDamaged`.
    #[expect(clippy::unused_async)]
    pub async fn read_back(&self, _chunk: u32) -> Result<Bytes, CacheError> {
        unimplemented!()
    }
    /// Resolves when all of it is on the disks and flushed.
    ///
    /// # Errors
    /// As [`Upload::append`].
    #[expect(clippy::unused_async)]
    pub async fn finish(self) -> Result<StoredUpload, CacheError> {
        unimplemented!()
    }
}

/// An upload that is durable and has no name yet. Dropping it gives its space back.
#[derive(Debug)]
pub struct StoredUpload {}

impl StoredUpload {
    /// Its identity.
    pub fn id(&self) -> UploadId {
        unimplemented!()
    }
    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        unimplemented!()
    }
    /// Chunk `chunk`, to be hashed again.
    ///
    /// # Errors
    /// `Busy`, `UploadDamaged`.
    #[expect(clippy::unused_async)]
    pub async fn read_back(&self, _chunk: u32) -> Result<Bytes, CacheError> {
        unimplemented!()
    }
}
