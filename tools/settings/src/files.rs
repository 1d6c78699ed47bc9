//! Small files that are there whole or not at all.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// What could not be done, to what.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {path}: {source}")]
pub struct FileError {
    /// What was being done.
    pub what: &'static str,
    /// To what.
    pub path: String,
    /// What the system said.
    pub source: io::Error,
}

impl FileError {
    /// Of an error, what was being done when it came.
    pub fn of(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.display().to_string();
        move |source| Self { what, path, source }
    }
}

/// Bytes that are free for who is no superuser on the disk of this path, and bytes of that disk.
pub fn disk(path: &Path) -> Option<(u64, u64)> {
    let stat = rustix::fs::statvfs(path).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    Some((bytes(stat.f_bavail), bytes(stat.f_blocks)))
}

/// A folder for certificates and keys, which only its owner may look into. It is made when something is written.
#[derive(Clone, Debug)]
pub struct PrivateFolder(PathBuf);

impl PrivateFolder {
    /// The folder at this path, whether it is there or not.
    pub fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// The place of a file.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A file, whole.
    ///
    /// # Errors
    /// [`FileError`]
    pub fn read(&self, name: &str) -> Result<String, FileError> {
        let path = self.file(name);
        fs::read_to_string(&path).map_err(FileError::of("read", &path))
    }

    /// A file, or `None` where there is none.
    ///
    /// # Errors
    /// [`FileError`]
    pub fn read_if_there(&self, name: &str) -> Result<Option<String>, FileError> {
        match self.read(name) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes a file, all of it or nothing.
    ///
    /// # Errors
    /// [`FileError`]
    pub fn write(&self, name: &str, text: &str, mode: u32) -> Result<(), FileError> {
        let make = DirBuilder::new().recursive(true).mode(0o700).create(&self.0);
        make.map_err(FileError::of("make", &self.0))?;
        let path = self.file(name);
        write_whole(&path, text.as_bytes(), mode).map_err(FileError::of("write", &path))
    }
}

/// Writes all of it or nothing: a crash leaves the old file, or none.
///
/// # Errors
/// Those of the disk.
pub fn write_whole(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let new = path.with_extension("new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}
