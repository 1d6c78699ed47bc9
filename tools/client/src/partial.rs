//! The file in which an artifact comes in: hashed, resumed, and named when it is whole.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use outrider_artifact::{ContentHasher, Digest};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use crate::error::ClientError;

/// What is read at once of a file that is hashed.
const READ_BYTES: usize = 1 << 20;

/// What has come in of an artifact.
#[derive(Debug)]
pub(crate) struct Partial {
    path: PathBuf,
    file: File,
    expected: Digest,
    hasher: ContentHasher,
    pub(crate) length: u64,
    /// How much of it came in by the last attempt.
    pub(crate) received: u64,
}

impl Partial {
    /// Opens what an earlier run left beside `file`, or an empty one.
    pub(crate) async fn open(file: &Path, expected: Digest) -> Result<Self, ClientError> {
        let path = beside(file, ".partial");
        let opened = path.clone();
        let (file, hasher, length) = blocking(move || {
            let mut options = OpenOptions::new();
            let mut file =
                options.read(true).write(true).create(true).truncate(false).open(opened)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    return Err(std::io::Error::other("another process is fetching it"));
                }
                Err(TryLockError::Error(error)) => return Err(error),
            }
            let mut hasher = ContentHasher::new(expected.algorithm());
            let length = hash(&mut file, &mut hasher)?;
            Ok((file, hasher, length))
        })
        .await
        .map_err(ClientError::file("opening", &path))?;
        Ok(Self { path, file, expected, hasher, length, received: 0 })
    }

    /// Adds what comes in to the file, until no more does.
    pub(crate) fn write(
        mut self,
        mut queued: mpsc::Receiver<Bytes>,
    ) -> (Self, Result<(), ClientError>) {
        while let Some(piece) = queued.blocking_recv() {
            if let Err(error) = self.file.write_all(&piece) {
                let error = ClientError::file("writing", &self.path)(error);
                return (self, Err(error));
            }
            self.hasher.update(&piece);
            self.length += piece.len() as u64;
            self.received += piece.len() as u64;
        }
        (self, Ok(()))
    }

    /// Forgets what has come in.
    pub(crate) async fn restart(&mut self) -> Result<(), ClientError> {
        let emptied = self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0)));
        emptied.map_err(ClientError::file("emptying", &self.path))?;
        self.hasher = ContentHasher::new(self.expected.algorithm());
        self.length = 0;
        Ok(())
    }

    pub(crate) fn digest(&mut self) -> Digest {
        let fresh = ContentHasher::new(self.expected.algorithm());
        std::mem::replace(&mut self.hasher, fresh).finish()
    }

    /// Gives it its name.
    pub(crate) async fn finish(self, file: &Path) -> Result<(), ClientError> {
        let (from, to) = (self.path, file.to_owned());
        let open = self.file;
        blocking(move || {
            open.sync_all()?;
            fs::rename(&from, &to)
        })
        .await
        .map_err(ClientError::file("naming", file))
    }

    /// Throws it away.
    pub(crate) fn discard(self) {
        let _ = fs::remove_file(&self.path);
    }
}

pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> std::io::Result<T> {
    match spawn_blocking(work).await {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

/// Reads a file to its end; returns how long it is.
pub(crate) fn hash(file: &mut File, hasher: &mut ContentHasher) -> std::io::Result<u64> {
    let mut buffer = vec![0; READ_BYTES];
    let mut length = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(length),
            count => {
                hasher.update(&buffer[..count]);
                length += count as u64;
            }
        }
    }
}

/// `file` with something behind its name.
pub(crate) fn beside(file: &Path, suffix: &str) -> PathBuf {
    let mut name: OsString = file.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partial_file_lies_beside_the_whole_one() {
        assert_eq!(beside(Path::new("/a/b.tar"), ".partial"), Path::new("/a/b.tar.partial"));
    }
}
