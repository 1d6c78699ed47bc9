//! Temporary folders, removed with everything in them, mounts included.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A folder that lives as long as this value. Kept when `OUTRIDER_KEEP` is set.
#[derive(Debug)]
pub struct Scratch(Option<tempfile::TempDir>);

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

impl Scratch {
    /// A new, empty folder on a real disk, with a path short enough for Unix sockets.
    pub fn new() -> Self {
        let base = std::env::var_os("OUTRIDER_SCRATCH").map_or("/var/tmp".into(), PathBuf::from);
        let dir = tempfile::Builder::new().prefix("or-").tempdir_in(base);
        Self(Some(dir.expect("a temporary folder can be made")))
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        self.0.as_ref().expect("present until dropped").path()
    }

    /// A new folder in it.
    pub fn dir(&self, name: &str) -> PathBuf {
        let dir = self.path().join(name);
        std::fs::create_dir_all(&dir).expect("a folder can be made");
        dir
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let Some(dir) = self.0.take() else { return };
        if std::env::var_os("OUTRIDER_KEEP").is_some() {
            eprintln!("kept: {}", dir.keep().display());
            return;
        }
        unmount_below(dir.path());
        // Whatever cannot be removed is only litter in a temporary folder.
        let _ = dir.close();
    }
}

/// Container engines leave mounts behind when they are killed.
fn unmount_below(dir: &Path) {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let prefix = format!("{}/", dir.display());
    let mut points: Vec<&str> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|p| p.starts_with(&prefix))
        .collect();
    points.sort_by_key(|point| std::cmp::Reverse(point.len()));
    for point in points {
        let _ = Command::new("umount").arg("-l").arg(point).status();
    }
}
