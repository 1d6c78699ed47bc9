//! What is wrong with a configuration, said so that it can be mended: where, what, why, what to do.

use std::fmt;
use std::path::Path;

/// The largest configuration file that is read.
pub const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// A value that is outside its bounds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    /// The key, as a path: `listen.http`, `upstream[0].url`.
    pub key: String,
    /// The value that it has.
    pub value: String,
    /// Why that cannot be.
    pub why: String,
    /// What to write instead.
    pub remedy: String,
}

impl Invalid {
    /// Puts the four parts together.
    pub fn new(
        key: impl Into<String>,
        value: impl fmt::Display,
        why: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Invalid {
        Invalid {
            key: key.into(),
            value: value.to_string(),
            why: why.into(),
            remedy: remedy.into(),
        }
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Invalid { key, value, why, remedy } = self;
        write!(f, "{key} = {value:?}: {why}; {remedy}")
    }
}

impl std::error::Error for Invalid {}

/// Why a configuration file is not taken.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("cannot read the configuration {file}: {source}; check the path and who may read it")]
    Read {
        /// The file.
        file: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is larger than any configuration is.
    #[error("the configuration {file} is larger than {bytes_max} bytes; is it the right file?")]
    TooLarge {
        /// The file.
        file: String,
        /// The bound.
        bytes_max: u64,
    },
    /// Not TOML, an unknown key, or a value of the wrong kind.
    #[error("{file}:{line}:{column}: {message}")]
    Syntax {
        /// The file.
        file: String,
        /// The line, from 1.
        line: usize,
        /// The column in characters, from 1.
        column: usize,
        /// What is wrong there.
        message: String,
    },
    /// A value outside its bounds. The line is absent for a key that the file does not have.
    #[error("{}: {invalid}", at(.file, *.line))]
    Invalid {
        /// The file.
        file: String,
        /// The line, from 1.
        line: Option<usize>,
        /// What is wrong.
        invalid: Box<Invalid>,
    },
}

fn at(file: &str, line: Option<usize>) -> String {
    match line {
        Some(line) => format!("{file}:{line}"),
        None => file.to_owned(),
    }
}

impl ConfigError {
    /// Takes over what the TOML reader found, in one line and in the words of this page.
    pub fn from_toml(error: &toml::de::Error, text: &str, file: &str) -> ConfigError {
        let offset = error.span().map_or(0, |span| span.start);
        let (line, column) = position(text, offset);
        let message = error.message().trim().replace('\n', ", ");
        let message = match message.strip_prefix("unknown field") {
            Some(rest) => format!("unknown key{rest}"),
            None => message,
        };
        ConfigError::Syntax { file: file.to_owned(), line, column, message }
    }

    /// Adds the place in the file to what a check found.
    pub fn from_invalid(invalid: Invalid, text: &str, file: &str) -> ConfigError {
        let line = line_of(text, &invalid.key);
        ConfigError::Invalid { file: file.to_owned(), line, invalid: Box::new(invalid) }
    }
}

/// Reads a configuration file.
///
/// # Errors
/// When it cannot be read or is too large.
pub fn read(path: &Path) -> Result<String, ConfigError> {
    use std::io::Read;
    let shown = path.display().to_string();
    let read = |source| ConfigError::Read { file: shown.clone(), source };
    let mut text = String::new();
    std::fs::File::open(path)
        .map_err(read)?
        .take(CONFIG_BYTES_MAX + 1)
        .read_to_string(&mut text)
        .map_err(read)?;
    if text.len() as u64 > CONFIG_BYTES_MAX {
        return Err(ConfigError::TooLarge { file: shown, bytes_max: CONFIG_BYTES_MAX });
    }
    Ok(text)
}

/// Checks that a value lies between two bounds, both allowed.
///
/// # Errors
/// With the bounds, when it does not.
pub fn bounded<T: PartialOrd + std::fmt::Display>(
    key: &str,
    value: T,
    min: T,
    max: T,
) -> Result<(), Invalid> {
    // Written so that NaN is refused too.
    if !(value >= min && value <= max) {
        let why = format!("it must be {min} to {max}");
        return Err(Invalid::new(key, value, why, "write a value between these"));
    }
    Ok(())
}

/// The line and column, both from 1, of a byte offset.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

/// The line on which the key `a.b` or `a[0].b` stands, or the nearest table around it that the file has.
fn line_of(text: &str, key: &str) -> Option<usize> {
    let document = toml::de::DeTable::parse(text).ok()?;
    let mut table = document.get_ref();
    let mut found = None;
    for part in key.split('.') {
        let (name, index) = match part.strip_suffix(']').and_then(|p| p.split_once('[')) {
            Some((name, index)) => (name, index.parse::<usize>().ok()),
            None => (part, None),
        };
        let Some((place, value)) = table.get_key_value(name) else { break };
        let mut span = place.span();
        let mut value = value;
        if let Some(index) = index
            && let Some(element) = value.get_ref().as_array().and_then(|a| a.get(index))
        {
            span = element.span();
            value = element;
        }
        found = Some(position(text, span.start).0);
        match value.get_ref().as_table() {
            Some(inner) => table = inner,
            None => break,
        }
    }
    found
}
