//! Who asks.

use std::rc::Rc;
use std::sync::Arc;

use outrider_tokens::{Actions, Rule, Scope, Target};

use crate::uploads::ANONYMOUS;

/// Who asks, as far as it is proven.
#[derive(Clone, Debug)]
pub(crate) struct Asker {
    /// Whose request it is; nothing for nobody's.
    pub(crate) customer: Option<Rc<str>>,
    pub(crate) rights: Rights,
}

/// What they may do.
#[derive(Clone, Debug)]
pub(crate) enum Rights {
    /// Everything, and under any customer's name: nobody is asked who they are.
    Open,
    /// To read what this edge has: it is another edge of the fleet.
    Member,
    /// What is proven, and what everybody may.
    Proven { proven: Rc<Rightful>, anonymous: Arc<[Rule]> },
    /// What everybody may.
    Anonymous(Arc<[Rule]>),
}

/// What somebody has proven who they are with.
#[derive(Debug)]
pub(crate) struct Rightful {
    pub(crate) customer: Option<Rc<str>>,
    /// The scopes of the token.
    pub(crate) scopes: Option<Vec<Scope>>,
    /// What the customer may, where the token does not say it.
    pub(crate) rules: Arc<[Rule]>,
    /// Until when, in seconds since 1970.
    pub(crate) until_unix_s: u64,
}

impl Rightful {
    pub(crate) fn allows(&self, target: Target<'_>, wanted: Actions) -> bool {
        match &self.scopes {
            Some(scopes) => scopes.iter().any(|scope| scope.allows(target, wanted)),
            None => allowed(&self.rules, target, wanted),
        }
    }
}

fn allowed(rules: &[Rule], target: Target<'_>, wanted: Actions) -> bool {
    rules.iter().any(|rule| rule.allows(target, wanted))
}

impl Asker {
    /// Of an edge that asks nobody who they are.
    pub(crate) const fn open() -> Self {
        Self { customer: None, rights: Rights::Open }
    }

    /// Whether they may do this. Does not allocate.
    pub(crate) fn may(&self, target: Target<'_>, wanted: Actions) -> bool {
        match &self.rights {
            Rights::Open => true,
            Rights::Member => matches!(target, Target::Repository(_)) && wanted == Actions::PULL,
            Rights::Proven { proven, anonymous } => {
                proven.allows(target, wanted) || allowed(anonymous, target, wanted)
            }
            Rights::Anonymous(anonymous) => allowed(anonymous, target, wanted),
        }
    }

    /// Whether they are asked who they are, so that a digest alone gives them nothing.
    pub(crate) fn is_asked(&self) -> bool {
        !matches!(self.rights, Rights::Open)
    }

    /// Whether they have shown something that is believed.
    pub(crate) fn is_proven(&self) -> bool {
        !matches!(self.rights, Rights::Anonymous(_))
    }

    /// Whose rate their requests are of: what is nobody's by name spends the rate of nobody, whosever repository it is
    /// about; another edge has none.
    pub(crate) fn rated(&self) -> Option<&str> {
        match &self.rights {
            Rights::Member => None,
            Rights::Open | Rights::Anonymous(_) => Some(ANONYMOUS),
            Rights::Proven { proven, .. } => Some(proven.customer.as_deref().unwrap_or(ANONYMOUS)),
        }
    }

    /// What their requests are counted and told under.
    pub(crate) fn name(&self) -> &str {
        self.customer.as_deref().unwrap_or(ANONYMOUS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_has_proven_it_spends_a_customers_rate() {
        let nobody: Arc<[Rule]> = Arc::from([]);
        let asker =
            |rights, customer: Option<&str>| Asker { customer: customer.map(Rc::from), rights };
        let proven = |customer: Option<&str>| Rights::Proven {
            proven: Rc::new(Rightful {
                customer: customer.map(Rc::from),
                scopes: None,
                rules: nobody.clone(),
                until_unix_s: 1,
            }),
            anonymous: nobody.clone(),
        };
        // In a repository that is counted as acme's.
        for (rights, rated) in [
            (Rights::Anonymous(nobody.clone()), Some(ANONYMOUS)),
            (proven(None), Some(ANONYMOUS)),
            (Rights::Member, None),
        ] {
            let asker = asker(rights, Some("acme"));
            assert_eq!((asker.name(), asker.rated()), ("acme", rated));
        }
        assert_eq!(asker(proven(Some("acme")), Some("acme")).rated(), Some("acme"));
        assert_eq!(Asker::open().rated(), Some(ANONYMOUS));
    }
}
