//! Rules: what is granted without a token that says it. `pull:library/**`, `pull,push:acme/**`, `*:**`, `catalog`.
//!
//! A pattern is a name whose components may be `*`, which stands for one of them; `**` as the last stands for one or
//! more. It is compared component by component, so that `acme/**` has nothing of `acme-2/x`.

use std::fmt;
use std::str::FromStr;

use crate::scope::{Actions, NAME_BYTES_MAX, Scope, Target, is_name};

/// The longest text of a rule, in bytes.
pub const RULE_BYTES_MAX: usize = 320;

/// Names of repositories.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(Box<str>);

impl Pattern {
    /// Whether the name is one of them. Does not allocate.
    pub fn matches(&self, name: &str) -> bool {
        let mut parts = name.split('/');
        let mut wanted = self.0.split('/');
        loop {
            match (wanted.next(), parts.next()) {
                (None, None) => return true,
                (Some("**"), Some(_)) => return true,
                (Some("*"), Some(part)) if !part.is_empty() => {}
                (Some(wanted), Some(part)) if wanted == part => {}
                _ => return false,
            }
        }
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Pattern {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        if text.is_empty() || text.len() > NAME_BYTES_MAX {
            return Err(RuleError::Pattern);
        }
        let mut parts = text.split('/').peekable();
        while let Some(part) = parts.next() {
            let fits = match part {
                "**" => parts.peek().is_none(),
                "*" => true,
                part => is_name(part),
            };
            if !fits {
                return Err(RuleError::Pattern);
            }
        }
        Ok(Self(text.into()))
    }
}

/// Why a text is no rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// It has not the form.
    #[error("a rule is ACTIONS:PATTERN such as \"pull:library/**\", or \"catalog\"")]
    Form,
    /// Its actions are not known.
    #[error("the actions are pull, push, delete and *, with commas between them")]
    Actions,
    /// Its pattern is none.
    #[error(
        "a pattern is a repository's name in which a component may be *, and the last one **, such as acme/**"
    )]
    Pattern,
}

/// What is granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rule {
    /// On repositories.
    Repositories {
        /// Which.
        pattern: Pattern,
        /// What.
        actions: Actions,
    },
    /// To list them all.
    Catalog,
}

impl Rule {
    /// Whether it allows this alone.
    pub fn allows(&self, target: Target<'_>, wanted: Actions) -> bool {
        match (self, target) {
            (Self::Repositories { pattern, actions }, Target::Repository(name)) => {
                actions.has(wanted) && pattern.matches(name)
            }
            (Self::Catalog, Target::Catalog) => true,
            _ => false,
        }
    }

    /// The actions that it allows on a repository.
    pub fn actions_on(&self, name: &str) -> Actions {
        match self {
            Self::Repositories { pattern, actions } if pattern.matches(name) => *actions,
            _ => Actions::NONE,
        }
    }
}

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        if text == "catalog" {
            return Ok(Self::Catalog);
        }
        let (actions, pattern) = text.split_once(':').ok_or(RuleError::Form)?;
        if text.len() > RULE_BYTES_MAX {
            return Err(RuleError::Form);
        }
        let actions = actions
            .split(',')
            .try_fold(Actions::NONE, |all, name| Some(all.and(Actions::of(name.trim())?)))
            .ok_or(RuleError::Actions)?;
        Ok(Self::Repositories { pattern: pattern.parse()?, actions })
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Repositories { pattern, actions } => write!(f, "{actions}:{}", pattern.0),
            Self::Catalog => f.write_str("catalog"),
        }
    }
}

/// The part of a scope that rules grant; nothing where they grant nothing of it.
pub fn granted(rules: &[Rule], asked: &Scope) -> Option<Scope> {
    match asked {
        Scope::Repository { name, actions } => {
            let all = rules.iter().fold(Actions::NONE, |all, rule| all.and(rule.actions_on(name)));
            let granted = all.common(*actions);
            (!granted.is_empty()).then(|| Scope::repository(name, granted))
        }
        Scope::Catalog => rules.contains(&Rule::Catalog).then_some(Scope::Catalog),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(text: &str) -> Rule {
        text.parse().unwrap()
    }

    #[test]
    fn patterns_are_compared_by_components() {
        for (pattern, yes, no) in [
            ("acme/**", vec!["acme/a", "acme/a/b"], vec!["acme", "acme-2/a", "acmes", "b/acme/a"]),
            ("acme/*", vec!["acme/a"], vec!["acme", "acme/a/b"]),
            ("**", vec!["a", "a/b", "a/b/c"], vec![]),
            ("*", vec!["a"], vec!["a/b"]),
            ("*/app", vec!["a/app"], vec!["app", "a/b/app", "a/apps"]),
            ("acme/app", vec!["acme/app"], vec!["acme/app/x", "acme", "acme/ap"]),
        ] {
            let pattern: Pattern = pattern.parse().unwrap();
            for name in yes {
                assert!(pattern.matches(name), "{pattern:?} {name}");
            }
            for name in no {
                assert!(!pattern.matches(name), "{pattern:?} {name}");
            }
        }
    }

    #[test]
    fn what_is_no_rule_is_refused() {
        for text in
            ["", "pull", "pull:", "pull:a//b", "pull:**/a", "pull:a*", "fly:a", ":a", "pull:A"]
        {
            assert!(text.parse::<Rule>().is_err(), "{text}");
        }
    }

    #[test]
    fn several_rules_grant_together() {
        let rules = [rule("pull:**"), rule("push:acme/**"), rule("catalog")];
        let ask =
            |text: &str| granted(&rules, &text.parse().unwrap()).map(|scope| scope.to_string());
        assert_eq!(
            ask("repository:acme/a:pull,push,delete").as_deref(),
            Some("repository:acme/a:pull,push")
        );
        assert_eq!(ask("repository:b:pull,push").as_deref(), Some("repository:b:pull"));
        assert_eq!(ask("repository:b:push"), None);
        assert_eq!(ask("registry:catalog:*").as_deref(), Some("registry:catalog:*"));
        assert_eq!(granted(&rules[..2], &Scope::Catalog), None);
        assert_eq!(rule("*:**").to_string(), "pull,push,delete:**");
    }
}
