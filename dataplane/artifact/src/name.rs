//! Names of the registry protocol, in the grammar of the OCI distribution specification 1.1
//! ("Pulling manifests").

use std::fmt;
use std::ops::Deref;
use std::str::FromStr;

use crate::digest::{Digest, DigestError};

/// The longest repository name, in bytes. The specification leaves it open and names 255 for host
/// and name together as what many clients allow.
pub const REPOSITORY_BYTES_MAX: usize = 255;

/// The longest tag, in bytes, by the specification.
pub const TAG_BYTES_MAX: usize = 128;

/// Why a text is not a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not a repository name.
    #[error(
        "a repository name has parts of a-z and 0-9, joined within by one '.', one or two '_' or any \
         '-', and separated by '/'; 255 bytes at the most"
    )]
    Repository,
    /// Not a tag.
    #[error("a tag has 1 to 128 of A-Z a-z 0-9 _ . - and begins with none of . and -")]
    Tag,
    /// A reference with a colon that is not a digest.
    #[error(transparent)]
    Digest(#[from] DigestError),
}

/// A repository name: `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/…)*`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RepositoryName(Box<str>);

impl FromStr for RepositoryName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let right = text.len() <= REPOSITORY_BYTES_MAX && text.split('/').all(is_path_component);
        if right { Ok(Self(text.into())) } else { Err(NameError::Repository) }
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_path_component(part: &str) -> bool {
    let bytes = part.as_bytes();
    let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let ends_right =
        bytes.first().is_some_and(alphanumeric) && bytes.last().is_some_and(alphanumeric);
    ends_right
        && bytes.split(alphanumeric).all(|separator| {
            matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|b| *b == b'-')
        })
}

/// A tag: `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(Box<str>);

impl FromStr for Tag {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let bytes = text.as_bytes();
        let right = bytes.first().is_some_and(|first| word(*first))
            && bytes.len() <= TAG_BYTES_MAX
            && bytes.iter().all(|byte| word(*byte) || matches!(byte, b'.' | b'-'));
        if right { Ok(Self(text.into())) } else { Err(NameError::Tag) }
    }
}

macro_rules! text {
    ($name:ident) => {
        impl Deref for $name {
            type Target = str;
            fn deref(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }
    };
}
text!(RepositoryName);
text!(Tag);

/// What stands after `/manifests/`: a tag or a digest.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reference {
    /// A name that may point elsewhere tomorrow.
    Tag(Tag),
    /// One content for good.
    Digest(Digest),
}

impl FromStr for Reference {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.contains(':') {
            Ok(Self::Digest(text.parse()?))
        } else {
            Ok(Self::Tag(text.parse()?))
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => tag.fmt(f),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repository_names_follow_the_specification() {
        for right in ["a", "library/alpine", "a.b/c_d/e__f/g---h", "0/1", "my-org/app.v2"] {
            assert!(right.parse::<RepositoryName>().is_ok(), "{right}");
        }
        let long = "a".repeat(256);
        for wrong in [
            "", "/", "a/", "/a", "a//b", "A", "a..b", "a___b", "-a", "a-", "a._b", "a/../b", ".",
            "é", &long,
        ] {
            assert!(wrong.parse::<RepositoryName>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn tags_follow_the_specification() {
        for right in ["latest", "v1.0-rc_1", "_x", "A"] {
            assert!(right.parse::<Tag>().is_ok(), "{right}");
        }
        let long = "a".repeat(129);
        for wrong in ["", ".a", "-a", "a/b", "a b", "é", &long] {
            assert!(wrong.parse::<Tag>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_reference_with_a_colon_is_a_digest_or_an_error() {
        assert!(matches!("v1".parse(), Ok(Reference::Tag(_))));
        assert!(matches!("sha256:xyz".parse::<Reference>(), Err(NameError::Digest(_))));
    }
}
