//! The audit on its way to a file, which is begun anew at a size, or to the log. A thread of its own: a disk may be slow.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Receiver;

use outrider_metrics::Counter;
use outrider_settings::files::FileError;

use super::AuthError;
use crate::config::AuthSection;

/// Begins to write what comes, until there is nobody any more who sends it.
pub(super) fn start(
    section: &AuthSection,
    lines: Receiver<String>,
    dropped: Counter,
) -> Result<(), AuthError> {
    let mut log = match &section.audit_file {
        None => None,
        Some(path) => {
            let kept = section.audit_files_kept;
            let log = Log::open(path.clone(), section.audit_file_max.0, kept);
            Some(log.map_err(FileError::of("write", path))?)
        }
    };
    let write = move || {
        let mut is_told = false;
        for line in lines {
            let Some(log) = &mut log else {
                tracing::info!(target: "audit", "{line}");
                continue;
            };
            match log.write(&line) {
                Ok(()) => is_told = false,
                Err(error) => {
                    dropped.inc();
                    if !is_told {
                        is_told = true;
                        tracing::error!(%error, path = %log.path.display(), "the audit cannot be written");
                    }
                }
            }
        }
    };
    let started = std::thread::Builder::new().name("audit".into()).spawn(write);
    started.map(drop).map_err(|source| {
        AuthError::File(FileError { what: "start", path: "the thread of the audit".into(), source })
    })
}

/// A file, and those before it: `PATH.1` is the youngest of them.
#[derive(Debug)]
pub(super) struct Log {
    path: PathBuf,
    bytes_max: u64,
    kept: u32,
    file: File,
    bytes: u64,
}

impl Log {
    pub(super) fn open(path: PathBuf, bytes_max: u64, kept: u32) -> io::Result<Self> {
        let file = append(&path)?;
        let bytes = file.metadata()?.len();
        Ok(Self { path, bytes_max, kept, file, bytes })
    }

    /// A line, in one write, so that none is cut by another one.
    pub(super) fn write(&mut self, line: &str) -> io::Result<()> {
        let length = line.len() as u64 + 1;
        if self.bytes > 0 && self.bytes + length > self.bytes_max {
            self.begin_anew()?;
        }
        let mut whole = String::with_capacity(line.len() + 1);
        whole.push_str(line);
        whole.push('\n');
        self.file.write_all(whole.as_bytes())?;
        self.bytes += length;
        Ok(())
    }

    /// Where the file is gone, since another one could not be opened the last time, or since somebody took it away, the
    /// older ones stay where they are: each step would cost one of them.
    fn begin_anew(&mut self) -> io::Result<()> {
        if self.path.try_exists()? {
            if self.kept == 0 {
                unless_gone(fs::remove_file(&self.path))?;
            }
            for number in (1..=self.kept).rev() {
                let before = if number == 1 { self.path.clone() } else { self.old(number - 1) };
                unless_gone(fs::rename(before, self.old(number)))?;
            }
        }
        self.file = append(&self.path)?;
        self.bytes = 0;
        Ok(())
    }

    fn old(&self, number: u32) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{number}"));
        name.into()
    }
}

fn unless_gone(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}
