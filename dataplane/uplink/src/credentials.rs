//! The user and password of an upstream. The password lives in a file, is read when it is needed
//! (so it may be rotated), and never appears in `Debug` or in an error.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::{fmt, fs, io};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;

/// The largest password file that is read. Some clouds hand out tokens of 2 KiB as passwords.
const PASSWORD_FILE_BYTES_MAX: u64 = 16 << 10;

/// Where user and password come from.
#[derive(Clone)]
pub(crate) struct Credentials {
    username: String,
    password_file: PathBuf,
}

impl Credentials {
    pub(crate) fn new(username: &str, password_file: &Path) -> Self {
        Self { username: username.to_owned(), password_file: password_file.to_owned() }
    }

    /// The value of `Authorization` for Basic authentication. Reads the file: blocking.
    pub(crate) fn basic(&self) -> io::Result<HeaderValue> {
        let invalid = |reason| io::Error::new(io::ErrorKind::InvalidData, reason);
        let mut text = String::new();
        fs::File::open(&self.password_file)?
            .take(PASSWORD_FILE_BYTES_MAX + 1)
            .read_to_string(&mut text)?;
        if text.len() as u64 > PASSWORD_FILE_BYTES_MAX {
            return Err(invalid("the password file is too long"));
        }
        let password = text.lines().next().unwrap_or_default();
        if password.is_empty() {
            return Err(invalid("the first line of the password file is empty"));
        }
        let pair = STANDARD.encode(format!("{}:{password}", self.username));
        let mut value = HeaderValue::try_from(format!("Basic {pair}"))
            .map_err(|_| invalid("the password cannot be sent"))?;
        value.set_sensitive(true);
        Ok(value)
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_of_the_file_is_the_password_of_now() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("password");
        let credentials = Credentials::new("me", &file);
        assert!(credentials.basic().is_err());
        fs::write(&file, "one\nnot this").unwrap();
        assert_eq!(credentials.basic().unwrap(), "Basic bWU6b25l");
        fs::write(&file, "two\r\n").unwrap();
        let value = credentials.basic().unwrap();
        assert_eq!(value, "Basic bWU6dHdv");
        assert!(value.is_sensitive() && !format!("{value:?}").contains("bWU6dHdv"));
        fs::write(&file, "\n").unwrap();
        assert!(credentials.basic().is_err());
        fs::write(&file, "x".repeat(20 << 10)).unwrap();
        assert!(credentials.basic().unwrap_err().to_string().contains("too long"));
    }
}
