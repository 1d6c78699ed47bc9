//! The fragments of the replica, for who reads them at the edge: what was applied, without asking anybody. Values are
//! shared with the replica.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;
use outrider_push::{Interest, Item, Replica};

/// A view of the fragments. Clones are the same.
#[derive(Clone, Debug)]
pub struct View {
    interest: Arc<Interest>,
    inner: Arc<RwLock<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    version: u64,
    fragments: BTreeMap<String, (u64, Bytes)>,
}

/// Some fragments, in order of their keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The version through which everything was applied.
    pub version: u64,
    /// Key, version, and bytes of the value.
    pub rows: Vec<(String, u64, usize)>,
    /// There are more.
    pub more: bool,
}

impl View {
    pub(crate) fn new(interest: Interest, replica: &Replica) -> Self {
        let view = Self { interest: Arc::new(interest), inner: Arc::default() };
        view.replace(replica);
        view
    }

    /// Whether the edge keeps fragments of this key.
    pub fn covers(&self, key: &str) -> bool {
        self.interest.prefixes.iter().any(|prefix| key.starts_with(prefix.as_str()))
    }

    /// Prefixes of the keys that the edge keeps.
    pub fn prefixes(&self) -> &[String] {
        &self.interest.prefixes
    }

    /// A fragment's version and value, and the version through which everything was applied.
    pub fn get(&self, key: &str) -> (u64, Option<(u64, Bytes)>) {
        let inner = self.read();
        (inner.version, inner.fragments.get(key).cloned())
    }

    /// At most `rows_max` fragments whose keys begin with `prefix`, behind the key `after`.
    pub fn list(&self, prefix: &str, after: &str, rows_max: usize) -> Listed {
        let from = match after >= prefix && !after.is_empty() {
            true => Bound::Excluded(after),
            false => Bound::Included(prefix),
        };
        let inner = self.read();
        let found = inner.fragments.range::<str, _>((from, Bound::Unbounded));
        let mut found = found.take_while(|(key, _)| key.starts_with(prefix));
        let rows = found.by_ref().take(rows_max);
        let rows = rows.map(|(key, (version, value))| (key.clone(), *version, value.len()));
        let rows = rows.collect();
        Listed { version: inner.version, rows, more: found.next().is_some() }
    }

    /// All of it is as the replica has it.
    pub(crate) fn replace(&self, replica: &Replica) {
        let fragments = replica.fragments.clone();
        let next = Inner { version: replica.position, fragments };
        // Dropped behind the lock.
        let before = std::mem::replace(&mut *self.write(), next);
        drop(before);
    }

    /// The replica has taken these in: all of them are seen together, with its position.
    pub(crate) fn update(&self, replica: &Replica, items: &[Item]) {
        let mut inner = self.write();
        for item in items {
            let Item::Fragment { key, .. } = item else { continue };
            match replica.fragments.get(key) {
                Some(fragment) => drop(inner.fragments.insert(key.clone(), fragment.clone())),
                None => drop(inner.fragments.remove(key)),
            }
        }
        inner.version = replica.position;
    }

    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fragment(key: &str, version: u64, value: Option<&[u8]>) -> Item {
        Item::Fragment { key: key.to_owned(), version, value: value.map(<[u8]>::to_vec) }
    }

    #[test]
    fn it_shows_what_the_replica_has_and_lists_it_in_pages() {
        let interest = Interest { prefixes: vec!["app/".to_owned()] };
        let items = ["app/a", "app/b", "app/b/c", "app/d"].map(|key| fragment(key, 2, Some(b"1")));
        let replica = Replica::of([1; 16], 5, items);
        let view = View::new(interest, &replica);
        assert!(view.covers("app/x") && !view.covers("ap"));
        assert_eq!(view.get("app/a"), (5, Some((2, Bytes::from_static(b"1")))));
        let page = view.list("app/b", "", 1);
        let wanted = Listed { version: 5, rows: vec![("app/b".to_owned(), 2, 1)], more: true };
        assert_eq!(page, wanted);
        let page = view.list("app/b", "app/b", 5);
        assert_eq!((page.rows.len(), page.more), (1, false));
        assert_eq!(view.list("", "app/b/c", 5).rows[0].0, "app/d");

        let items = [fragment("app/a", 6, None), fragment("app/e", 6, Some(b"22"))];
        let all = replica
            .items()
            .filter(|item| !matches!(item, Item::Fragment { key, .. } if key == "app/a"));
        let replica = Replica::of([1; 16], 6, all.chain([items[1].clone()]));
        view.update(&replica, &items);
        assert_eq!(view.get("app/a"), (6, None));
        assert_eq!(view.get("app/e").1, Some((6, Bytes::from_static(b"22"))));
        view.replace(&Replica { position: 7, ..Replica::default() });
        assert_eq!(view.list("", "", 9), Listed { version: 7, rows: Vec::new(), more: false });
    }
}
