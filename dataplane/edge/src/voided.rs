//! Up to where the stripes hold cached content that is not to be believed any more: one number, in a file of the data
//! directory, written when everything that is cached had to be forgotten, and read at each start.

use std::path::{Path, PathBuf};
use std::{fs, io};

use outrider_settings::files::write_whole;

/// The file. Clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Voided {
    path: PathBuf,
}

impl Voided {
    /// The file of this data directory, whether it is there or not.
    pub(crate) fn new(data_dir: &Path) -> Self {
        Self { path: data_dir.join("voided") }
    }

    /// The number; 0 where there is none.
    ///
    /// # Errors
    /// When it cannot be read: what is void would come back.
    pub(crate) fn read(&self) -> io::Result<u64> {
        let text = match fs::read_to_string(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            text => text?,
        };
        text.trim().parse().map_err(|_| {
            let why = format!("{} is no number", self.path.display());
            io::Error::new(io::ErrorKind::InvalidData, why)
        })
    }

    /// Keeps it, if it is higher. Blocks until it is on the disk.
    ///
    /// # Errors
    /// Those of the disk.
    pub(crate) fn keep(&self, through: u64) -> io::Result<()> {
        if through <= self.read()? {
            return Ok(());
        }
        write_whole(&self.path, format!("{through}\n").as_bytes(), 0o600)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_is_kept_and_what_is_none_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let voided = Voided::new(dir.path());
        assert_eq!(voided.read().unwrap(), 0);
        for (number, wanted) in [(0, 0), (7, 7), (5, 7), (9, 9)] {
            voided.keep(number).unwrap();
            assert_eq!(Voided::new(dir.path()).read().unwrap(), wanted);
        }
        fs::write(dir.path().join("voided"), "x").unwrap();
        assert!(voided.read().unwrap_err().to_string().contains("is no number"));
        voided.keep(10).unwrap_err();
    }
}
