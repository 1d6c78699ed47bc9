//! The data directory: who may use it, in which format it is, and where in it things are.
//!
//! Owns `format.toml` and `lock`; the other entries belong to the parts that write them:
//!
//! ```text
//! DIR/                0700
//!   format.toml       version of the layout, number of stripes, size of the SSD tier
//!   lock              held by flock while an instance runs; its pid inside
//!   tls/              the local CA and the server's certificate
//!   meta.redb         names: tags, manifests' sizes, upload sessions, the outbox of events
//!   ssd/              stripe files
//! ```
//!
//! It must never let two processes into the same directory, and never take over a directory that holds
//! somebody else's files.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::Deserialize;

/// The version of the layout that this program reads and writes. In the one before, which was never
/// released, contents lay across the stripes.
pub const FORMAT_VERSION: u32 = 2;
/// The least number of stripes.
pub const STRIPES_MIN: u32 = 1;
/// The largest number of stripes.
pub const STRIPES_MAX: u32 = 64;
/// `format.toml` and `lock` are never larger than this.
const SMALL_FILE_BYTES_MAX: u64 = 64 << 10;
/// What may be in a directory that is not yet Outrider's: what a mount point has, what a first start that
/// was interrupted leaves, and the place of the stripes, which may be a mount point or a link of its own.
const ALLOWED_BEFORE_FORMAT: [&str; 6] = ["lost+found", LOCK, FORMAT_NEW, SSD, CONTROL, NODE];
/// What an edge that joined a cluster has of it; made by `outrider cluster join`.
pub const CONTROL: &str = "control";
/// The node of the control plane that runs in this process, if one does.
pub const NODE: &str = "node";

const FORMAT: &str = "format.toml";
const FORMAT_NEW: &str = "format.toml.new";
const LOCK: &str = "lock";
const SSD: &str = "ssd";

/// What went wrong with the data directory.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// Another instance runs on it.
    #[error(
        "the data directory {} is in use by another instance{}; stop that one, or give this one a directory \
         of its own", .dir.display(), pid_text(*.pid)
    )]
    Locked {
        /// The directory.
        dir: PathBuf,
        /// The other's pid, if the lock file tells.
        pid: Option<u32>,
    },
    /// It has files in it, and none of them says that it is Outrider's.
    #[error(
        "{} is not empty and is not a data directory of Outrider ({entry:?} is in it); name an empty or new one",
        .dir.display()
    )]
    Foreign {
        /// The directory.
        dir: PathBuf,
        /// One of the files in it.
        entry: String,
    },
    /// `format.toml` cannot be understood.
    #[error("{}: {why}; restore this file from a backup, or start with a new directory", .file.display())]
    Damaged {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// It was written by another version.
    #[error(
        "the data directory {} has format {found}, and this program reads format {FORMAT_VERSION}; use the \
         version of outrider that wrote it, or start with a new directory", .dir.display()
    )]
    Version {
        /// The directory.
        dir: PathBuf,
        /// Its format.
        found: u32,
    },
    /// The configured number of stripes is not that of the first start.
    #[error(
        "cache.stripes = {configured}, but the data directory {} was made with {kept} at its first start, and \
         that cannot be changed; leave cache.stripes out, or start with a new directory", .dir.display()
    )]
    Stripes {
        /// The directory.
        dir: PathBuf,
        /// What the configuration says.
        configured: u32,
        /// What `format.toml` says.
        kept: u32,
    },
    /// The system refused something.
    #[error("cannot {doing} {}: {source}", .path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

fn pid_text(pid: Option<u32>) -> String {
    pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
}

fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DataDirError {
    let path = path.to_owned();
    move |source| DataDirError::Io { doing, path, source }
}

/// What is decided at the first start and kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Format {
    /// [`FORMAT_VERSION`] of the program that made it.
    pub version: u32,
    /// The number of stripe files, on which the place of every chunk depends.
    pub stripes: u32,
    /// The size of the SSD tier in bytes; 0: none.
    pub ssd_bytes: u64,
}

/// A data directory that this process alone uses, until this is dropped.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    /// Closing it gives the lock back; the file stays, since removing it would race with the next
    /// instance, which may hold it open already.
    _lock: File,
}

impl DataDir {
    /// Makes the directory if need be, and locks it.
    ///
    /// # Errors
    /// [`DataDirError::Locked`] when another instance has it; [`DataDirError::Foreign`]; `Io`.
    pub fn open(path: &Path) -> Result<DataDir, DataDirError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(io_error("make the data directory", path))?;
        // Messages, and the paths that are printed for other programs, should not depend on the folder
        // that this one was started in.
        let path = &fs::canonicalize(path).map_err(io_error("find the data directory", path))?;
        refuse_foreign(path)?;
        let lock = lock(path)?;
        fs::set_permissions(path, Permissions::from_mode(0o700))
            .map_err(io_error("set the permissions (0700) of", path))?;
        Ok(DataDir { path: path.clone(), _lock: lock })
    }

    /// The format; `first` decides it at the first start, which is told by the second value.
    ///
    /// # Errors
    /// `Damaged`, `Version`, `Io`; whatever `first` says.
    pub fn format<E: From<DataDirError>>(
        &self,
        first: impl FnOnce() -> Result<Format, E>,
    ) -> Result<(Format, bool), E> {
        if let Some(format) = read_format(&self.path)? {
            return Ok((format, false));
        }
        let format = first()?;
        self.write_format(format)?;
        Ok((format, true))
    }

    /// What `format.toml` says, if there is one.
    ///
    /// # Errors
    /// `Io`, `Version`, `Damaged`.
    pub fn known_format(&self) -> Result<Option<Format>, DataDirError> {
        read_format(&self.path)
    }

    /// Replaces `format.toml`, so that a crash leaves the old one or the new one.
    ///
    /// # Errors
    /// `Io`.
    pub fn write_format(&self, format: Format) -> Result<(), DataDirError> {
        assert!((STRIPES_MIN..=STRIPES_MAX).contains(&format.stripes));
        assert_eq!(format.version, FORMAT_VERSION);
        let Format { version, stripes, ssd_bytes } = format;
        let text = format!(
            "# Written by outrider. The place of everything under ssd/ depends on it: do not edit.\n\
             version = {version}\nstripes = {stripes}\nssd_bytes = {ssd_bytes}\n"
        );
        let new = self.path.join(FORMAT_NEW);
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)
            .map_err(io_error("make", &new))?;
        file.write_all(text.as_bytes())
            .and_then(|()| file.sync_all())
            .map_err(io_error("write", &new))?;
        let kept = self.path.join(FORMAT);
        fs::rename(&new, &kept).map_err(io_error("put into place", &kept))?;
        File::open(&self.path).and_then(|dir| dir.sync_all()).map_err(io_error("sync", &self.path))
    }

    /// The directory itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The local CA and the server's certificate.
    #[must_use]
    pub fn tls(&self) -> PathBuf {
        self.path.join("tls")
    }

    /// The names database.
    #[must_use]
    pub fn names(&self) -> PathBuf {
        self.path.join("meta.redb")
    }

    /// The stripe files.
    #[must_use]
    pub fn ssd(&self) -> PathBuf {
        self.path.join(SSD)
    }
}

/// Checks what the configuration says about the format against what is kept.
///
/// # Errors
/// [`DataDirError::Stripes`].
pub fn check_stripes(
    dir: &Path,
    configured: Option<u32>,
    kept: Format,
) -> Result<(), DataDirError> {
    match configured {
        Some(configured) if configured != kept.stripes => {
            Err(DataDirError::Stripes { dir: dir.to_owned(), configured, kept: kept.stripes })
        }
        _ => Ok(()),
    }
}

fn refuse_foreign(dir: &Path) -> Result<(), DataDirError> {
    let reading = "read the data directory";
    let mut foreign = None;
    for entry in fs::read_dir(dir).map_err(io_error(reading, dir))? {
        let name = entry.map_err(io_error(reading, dir))?.file_name();
        let name = name.to_string_lossy();
        if name == FORMAT {
            return Ok(());
        }
        if !ALLOWED_BEFORE_FORMAT.contains(&name.as_ref()) {
            foreign.get_or_insert(name.into_owned());
        }
    }
    match foreign {
        Some(entry) => Err(DataDirError::Foreign { dir: dir.to_owned(), entry }),
        None => Ok(()),
    }
}

/// Takes the lock without waiting, and writes the own pid into it.
fn lock(dir: &Path) -> Result<File, DataDirError> {
    let path = dir.join(LOCK);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(io_error("open", &path))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let pid = read_small(&mut file).ok().and_then(|text| text.trim().parse().ok());
            return Err(DataDirError::Locked { dir: dir.to_owned(), pid });
        }
        Err(errno) => return Err(io_error("lock", &path)(errno.into())),
    }
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(io_error("write", &path))?;
    Ok(file)
}

fn read_small(file: &mut File) -> io::Result<String> {
    let mut text = String::new();
    file.take(SMALL_FILE_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

fn read_format(dir: &Path) -> Result<Option<Format>, DataDirError> {
    let path = dir.join(FORMAT);
    let mut file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error("read", &path)(error)),
    };
    let text = read_small(&mut file).map_err(io_error("read", &path))?;
    let damaged = |why: String| DataDirError::Damaged { file: path.clone(), why };
    // The version first: a later format may have other keys.
    let table: toml::Table = text.parse().map_err(|e: toml::de::Error| damaged(one_line(&e)))?;
    let version = table
        .get("version")
        .and_then(toml::Value::as_integer)
        .and_then(|v| u32::try_from(v).ok())
        .ok_or_else(|| damaged("it has no version".to_owned()))?;
    if version != FORMAT_VERSION {
        return Err(DataDirError::Version { dir: dir.to_owned(), found: version });
    }
    let format: Format = toml::from_str(&text).map_err(|e| damaged(one_line(&e)))?;
    if !(STRIPES_MIN..=STRIPES_MAX).contains(&format.stripes) {
        return Err(damaged(format!("stripes = {} is not possible", format.stripes)));
    }
    Ok(Some(format))
}

fn one_line(error: &toml::de::Error) -> String {
    error.message().replace('\n', ", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Format = Format { version: FORMAT_VERSION, stripes: 8, ssd_bytes: 1 << 30 };

    fn unused() -> Result<Format, DataDirError> {
        panic!("the format was decided a second time")
    }

    #[test]
    fn the_first_start_makes_a_private_directory_and_keeps_its_format() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("a/b");
        let dir = DataDir::open(&path).unwrap();
        assert_eq!(dir.format(|| Ok::<_, DataDirError>(FIRST)).unwrap(), (FIRST, true));
        drop(dir);
        let dir = DataDir::open(&path).unwrap();
        assert_eq!(dir.format(unused).unwrap(), (FIRST, false));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_second_instance_is_refused_by_directory_and_pid() {
        let parent = tempfile::tempdir().unwrap();
        let dir = DataDir::open(parent.path()).unwrap();
        let error = DataDir::open(parent.path()).unwrap_err().to_string();
        assert!(error.contains(&dir.path().display().to_string()), "{error}");
        assert!(error.contains(&format!("(pid {})", std::process::id())), "{error}");
        drop(dir);
        DataDir::open(parent.path()).unwrap();
    }

    #[test]
    fn somebody_elses_directory_is_left_alone() {
        let parent = tempfile::tempdir().unwrap();
        fs::set_permissions(parent.path(), Permissions::from_mode(0o755)).unwrap();
        fs::write(parent.path().join("thesis.tex"), "x").unwrap();
        let error = DataDir::open(parent.path()).unwrap_err();
        assert!(matches!(&error, DataDirError::Foreign { entry, .. } if entry == "thesis.tex"));
        assert_eq!(fs::metadata(parent.path()).unwrap().permissions().mode() & 0o777, 0o755);
        assert!(!parent.path().join(LOCK).exists());
    }

    #[test]
    fn an_interrupted_first_start_can_be_repeated() {
        let parent = tempfile::tempdir().unwrap();
        fs::write(parent.path().join(LOCK), "123\n").unwrap();
        fs::write(parent.path().join(FORMAT_NEW), "versi").unwrap();
        fs::create_dir(parent.path().join("lost+found")).unwrap();
        let dir = DataDir::open(parent.path()).unwrap();
        assert!(dir.format(|| Ok::<_, DataDirError>(FIRST)).unwrap().1);
    }

    #[test]
    fn a_format_that_is_not_ours_is_refused_and_never_rewritten() {
        for (text, wanted) in [
            ("version = 3\nshards = \"what\"\n", "has format 3"),
            ("version = 2\nstripes = 0\nssd_bytes = 5\n", "stripes = 0 is not possible"),
            ("version = 2\nstripes = 4\n", "missing field `ssd_bytes`"),
            ("version = 2\nstripes = 4\nssd_bytes = 5\nmore = 1\n", "unknown field `more`"),
            ("stripes = 4\n", "it has no version"),
            ("", "it has no version"),
            ("\0\0\0", "format.toml"),
        ] {
            let parent = tempfile::tempdir().unwrap();
            fs::write(parent.path().join(FORMAT), text).unwrap();
            let dir = DataDir::open(parent.path()).unwrap();
            let error = dir.format(unused).unwrap_err().to_string();
            assert!(error.contains(wanted), "{text:?}: {error}");
            assert_eq!(fs::read_to_string(parent.path().join(FORMAT)).unwrap(), text);
        }
    }

    #[test]
    fn another_number_of_stripes_is_refused() {
        assert!(check_stripes(Path::new("/d"), None, FIRST).is_ok());
        assert!(check_stripes(Path::new("/d"), Some(8), FIRST).is_ok());
        let error = check_stripes(Path::new("/d"), Some(4), FIRST).unwrap_err().to_string();
        assert!(error.contains("cache.stripes = 4") && error.contains("made with 8"), "{error}");
    }
}
