//! How far a fetch is, for whoever shows it. Called from several threads; must not block.

use outrider_artifact::Digest;

/// Is told what happens.
pub trait Progress: Send + Sync {
    /// An artifact is to be fetched; so many bytes of it are there already.
    fn begin(&self, _digest: &Digest, _size_bytes: Option<u64>, _present_bytes: u64) {}

    /// So many more bytes have come in.
    fn add(&self, _bytes: u64) {}

    /// So many bytes that had come in are of no use, and come in again.
    fn lose(&self, _bytes: u64) {}

    /// Something went wrong and is tried again, or by other means.
    fn note(&self, _text: &str) {}
}

/// Tells nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {}
