//! Scopes: what a token grants, and what a client asks a token for.
//!
//! `repository:NAME:pull,push` or `registry:catalog:*`, as the distribution's token specification has them.

use std::fmt;
use std::str::FromStr;

/// The longest text of one scope, in bytes: a name of 255 and its actions.
pub const SCOPE_BYTES_MAX: usize = 320;

/// The longest name, in bytes.
pub const NAME_BYTES_MAX: usize = 255;

/// What may be done, as a set.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Actions(u8);

impl Actions {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// To read.
    pub const PULL: Self = Self(1);
    /// To write.
    pub const PUSH: Self = Self(2);
    /// To delete.
    pub const DELETE: Self = Self(4);
    /// All of them, written `*`.
    pub const ALL: Self = Self(7);

    const NAMED: [(Self, &'static str); 3] =
        [(Self::PULL, "pull"), (Self::PUSH, "push"), (Self::DELETE, "delete")];

    /// Both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// What is in both.
    #[must_use]
    pub const fn common(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Whether all of `wanted` is in it.
    pub const fn has(self, wanted: Self) -> bool {
        self.0 & wanted.0 == wanted.0
    }

    /// Whether there is nothing in it.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// One action by its name; nothing for one that is not known.
    pub fn of(name: &str) -> Option<Self> {
        if name == "*" {
            return Some(Self::ALL);
        }
        Self::NAMED.into_iter().find(|(_, known)| *known == name).map(|(action, _)| action)
    }

    /// The names, in a fixed order.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Self::NAMED.into_iter().filter(move |(action, _)| self.has(*action)).map(|(_, name)| name)
    }
}

impl fmt::Display for Actions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, name) in self.names().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            f.write_str(name)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Actions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What something is done to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Target<'a> {
    /// A repository.
    Repository(&'a str),
    /// The list of all repositories.
    Catalog,
}

/// What may be done to one thing.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// To a repository.
    Repository {
        /// Its name, as it is asked for.
        name: Box<str>,
        /// What.
        actions: Actions,
    },
    /// To list all repositories.
    Catalog,
}

impl Scope {
    /// Of a repository.
    pub fn repository(name: &str, actions: Actions) -> Self {
        Self::Repository { name: name.into(), actions }
    }

    /// Whether it allows this.
    pub fn allows(&self, target: Target<'_>, wanted: Actions) -> bool {
        match (self, target) {
            (Self::Repository { name, actions }, Target::Repository(asked)) => {
                **name == *asked && actions.has(wanted)
            }
            (Self::Catalog, Target::Catalog) => true,
            _ => false,
        }
    }

    /// What it is about.
    pub fn target(&self) -> Target<'_> {
        match self {
            Self::Repository { name, .. } => Target::Repository(name),
            Self::Catalog => Target::Catalog,
        }
    }

    /// `type`, `name` and `actions` of the claim `access`.
    pub fn parts(&self) -> (&'static str, &str, Vec<&'static str>) {
        match self {
            Self::Repository { name, actions } => ("repository", name, actions.names().collect()),
            Self::Catalog => ("registry", "catalog", vec!["*"]),
        }
    }

    /// From `type`, `name` and `actions`. Nothing for a type or name that means nothing here; actions that are not
    /// known are left out, as the specification has it.
    pub fn from_parts<'a>(
        kind: &str,
        name: &str,
        actions: impl Iterator<Item = &'a str>,
    ) -> Option<Self> {
        // `repository(plugin)` is the class of the repository, which makes no difference.
        let kind = kind.split_once('(').map_or(kind, |(kind, _)| kind);
        match kind {
            "repository" if is_name(name) => {
                let actions = actions.filter_map(Actions::of).fold(Actions::NONE, Actions::and);
                Some(Self::repository(name, actions))
            }
            "registry" if name == "catalog" => {
                actions.into_iter().any(|action| action == "*").then_some(Self::Catalog)
            }
            _ => None,
        }
    }
}

/// Whether it could be the name of a repository. What is one in full, who parses paths says.
pub(crate) fn is_name(name: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-/:".contains(&b))
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Repository { name, actions } => write!(f, "repository:{name}:{actions}"),
            Self::Catalog => f.write_str("registry:catalog:*"),
        }
    }
}

/// Why a text is no scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScopeError {
    /// It has not the form.
    #[error(
        "a scope is repository:NAME:ACTIONS, with pull, push, delete or *, or registry:catalog:*"
    )]
    Form,
    /// It is longer than [`SCOPE_BYTES_MAX`].
    #[error("a scope has at most {SCOPE_BYTES_MAX} bytes")]
    TooLong,
}

impl FromStr for Scope {
    type Err = ScopeError;

    fn from_str(text: &str) -> Result<Self, ScopeError> {
        if text.len() > SCOPE_BYTES_MAX {
            return Err(ScopeError::TooLong);
        }
        // A name may have a port in it, so that the last colon is the one before the actions.
        let (kind, rest) = text.split_once(':').ok_or(ScopeError::Form)?;
        let (name, actions) = rest.rsplit_once(':').ok_or(ScopeError::Form)?;
        Self::from_parts(kind, name, actions.split(',')).ok_or(ScopeError::Form)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_is_read_and_written() {
        for text in [
            "repository:library/alpine:pull",
            "repository:a/b:pull,push",
            "repository:localhost:5000/a:pull,push,delete",
            "registry:catalog:*",
        ] {
            assert_eq!(text.parse::<Scope>().unwrap().to_string(), text);
        }
        assert_eq!(
            "repository:a:*".parse::<Scope>().unwrap().to_string(),
            "repository:a:pull,push,delete"
        );
        assert_eq!(
            "repository(plugin):a:pull".parse::<Scope>().unwrap(),
            Scope::repository("a", Actions::PULL)
        );
        // What is not known is not granted.
        let unknown: Scope = "repository:a:pull,fly".parse().unwrap();
        assert_eq!(unknown, Scope::repository("a", Actions::PULL));
    }

    #[test]
    fn what_is_no_scope_is_refused() {
        for text in [
            "",
            "repository",
            "repository:a",
            "repository::pull",
            "user:a:pull",
            "registry:x:*",
            "registry:catalog:pull",
            "repository:A:pull",
            "repository:a b:pull",
        ] {
            assert_eq!(text.parse::<Scope>(), Err(ScopeError::Form), "{text}");
        }
        let long = format!("repository:{}:pull", "a".repeat(400));
        assert_eq!(long.parse::<Scope>(), Err(ScopeError::TooLong));
    }

    #[test]
    fn a_scope_allows_what_it_says_and_no_more() {
        let scope: Scope = "repository:a/b:pull,push".parse().unwrap();
        let of = Target::Repository;
        assert!(scope.allows(of("a/b"), Actions::PULL));
        assert!(scope.allows(of("a/b"), Actions::PULL.and(Actions::PUSH)));
        assert!(!scope.allows(of("a/b"), Actions::DELETE));
        assert!(!scope.allows(of("a/b/c"), Actions::PULL));
        assert!(!scope.allows(of("a"), Actions::PULL));
        assert!(!scope.allows(Target::Catalog, Actions::NONE));
        assert!(!Scope::Catalog.allows(of("catalog"), Actions::PULL));
    }
}
