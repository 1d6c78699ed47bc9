//! A small file that is read again when it has changed.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use outrider_settings::files::FileError;

/// The file, and what it was like when it was read.
#[derive(Debug)]
pub(super) struct Watched {
    path: PathBuf,
    bytes_max: usize,
    /// Which file, its length and when it was written.
    seen: Option<(u64, u64, i64, i64)>,
    /// That it cannot be read was said.
    is_told: bool,
}

impl Watched {
    pub(super) fn new(path: PathBuf, bytes_max: usize) -> Self {
        Self { path, bytes_max, seen: None, is_told: false }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// All of it; one byte more than it may have where it is longer, which no reader of it takes.
    pub(super) fn read(&mut self) -> Result<Vec<u8>, FileError> {
        // Looked at before it is read: what is written meanwhile is read again.
        let seen = self.look()?;
        let failed = FileError::of("read", &self.path);
        let mut bytes = Vec::new();
        let read = File::open(&self.path)
            .and_then(|file| file.take(self.bytes_max as u64 + 1).read_to_end(&mut bytes));
        read.map_err(failed)?;
        self.seen = Some(seen);
        self.is_told = false;
        Ok(bytes)
    }

    /// All of it, if it is another one than at the last time. What cannot be read has not changed.
    pub(super) fn read_if_changed(&mut self) -> Option<Vec<u8>> {
        match self.look() {
            Ok(seen) if self.seen == Some(seen) => return None,
            Ok(_) => {}
            Err(error) => {
                self.tell(&error);
                return None;
            }
        }
        match self.read() {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                self.tell(&error);
                None
            }
        }
    }

    fn tell(&mut self, error: &FileError) {
        if !self.is_told {
            self.is_told = true;
            tracing::warn!(%error, "what was in it before stays in use");
        }
    }

    fn look(&self) -> Result<(u64, u64, i64, i64), FileError> {
        let about = fs::metadata(&self.path).map_err(FileError::of("read", &self.path))?;
        Ok((about.ino(), about.len(), about.mtime(), about.mtime_nsec()))
    }
}
