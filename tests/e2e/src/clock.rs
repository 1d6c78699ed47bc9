//! A machine's clock that can be set: libfaketime before a process. What goes evenly (`CLOCK_MONOTONIC`) does so still.

use std::path::PathBuf;
use std::process::Command;

use crate::scratch::Scratch;

/// The clock of one process, or of several.
#[derive(Debug)]
pub struct Clock(Scratch);

impl Clock {
    /// One that is right.
    pub fn new() -> Self {
        let clock = Self(Scratch::new());
        clock.set(0);
        clock
    }

    /// Sets it to so many seconds ahead of the time, or behind it. Processes see it within a second.
    pub fn set(&self, seconds: i64) {
        // Replaced as a whole, so that nobody reads half of it.
        let next = self.0.path().join("next");
        std::fs::write(&next, format!("{seconds:+}\n")).expect("a small file");
        std::fs::rename(next, self.file()).expect("a small file");
    }

    fn file(&self) -> PathBuf {
        self.0.path().join("clock")
    }

    /// Has a command go by it.
    pub fn before(&self, command: &mut Command) {
        command
            .env("LD_PRELOAD", library())
            .env("FAKETIME_TIMESTAMP_FILE", self.file())
            .env("FAKETIME_CACHE_DURATION", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .env("NO_FAKE_STAT", "1");
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

fn library() -> PathBuf {
    let folders = std::fs::read_dir("/usr/lib").expect("a folder").flatten();
    folders
        .map(|entry| entry.path().join("faketime/libfaketimeMT.so.1"))
        .find(|file| file.is_file())
        .expect("libfaketime is missing: run tests/setup.sh")
}
