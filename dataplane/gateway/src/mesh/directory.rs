//! Which shard holds what was pushed and is not at home: the digest of a push is known only when all of
//! it is on some shard's stripe. Shared by all shards; who finds a content at hand never looks here.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock, RwLockWriteGuard};

use hashbrown::{HashMap, HashSet};
use outrider_artifact::Digest;

/// Bounded by the number of contents that are hosted, at some 40 bytes each.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    state: RwLock<State>,
    /// Entries of either kind, so that an empty directory costs one load.
    entries: AtomicUsize,
}

#[derive(Debug, Default)]
struct State {
    holders: HashMap<Digest, u16>,
    /// What the names say is hosted, and no stripe had at the start.
    lost: HashSet<Digest>,
}

impl Directory {
    /// The shard that holds the digest; `None` when that is its home, or nobody.
    pub(crate) fn holder(&self, digest: &Digest) -> Option<u16> {
        if self.entries.load(Ordering::Acquire) == 0 {
            return None;
        }
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        state.holders.get(digest).copied()
    }

    /// Notes the holder, `None` for the home, and gives who it was.
    pub(crate) fn set(&self, digest: &Digest, holder: Option<u16>) -> Option<u16> {
        let mut state = self.write();
        state.lost.remove(digest);
        let before = match holder {
            Some(holder) => state.holders.insert(*digest, holder),
            None => state.holders.remove(digest),
        };
        self.count(&state);
        before
    }

    /// Forgets the digest, if `holder` is still the one that is noted.
    pub(crate) fn remove(&self, digest: &Digest, holder: u16) {
        let mut state = self.write();
        if state.holders.get(digest) == Some(&holder) {
            state.holders.remove(digest);
        }
        self.count(&state);
    }

    /// Notes that no stripe has what the names say is hosted.
    pub(crate) fn set_lost(&self, digest: &Digest) {
        let mut state = self.write();
        state.lost.insert(*digest);
        self.count(&state);
    }

    /// Whether that was noted, and nothing was put in its place since.
    pub(crate) fn is_lost(&self, digest: &Digest) -> bool {
        self.entries.load(Ordering::Acquire) > 0
            && self.state.read().unwrap_or_else(PoisonError::into_inner).lost.contains(digest)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, state: &State) {
        self.entries.store(state.holders.len() + state.lost.len(), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_holder_counts_and_only_it_can_be_removed() {
        let directory = Directory::default();
        let digest = Digest::sha256(b"pushed");
        assert_eq!(directory.holder(&digest), None);
        assert_eq!(directory.set(&digest, Some(1)), None);
        assert_eq!(directory.set(&digest, Some(2)), Some(1));
        directory.remove(&digest, 1);
        assert_eq!(directory.holder(&digest), Some(2));
        directory.remove(&digest, 2);
        assert_eq!(directory.holder(&digest), None);
    }

    #[test]
    fn what_was_lost_is_there_again_once_somebody_holds_it() {
        let directory = Directory::default();
        let digest = Digest::sha256(b"lost");
        directory.set_lost(&digest);
        assert!(directory.is_lost(&digest));
        assert_eq!(directory.holder(&digest), None);
        directory.set(&digest, None);
        assert!(!directory.is_lost(&digest));
        assert_eq!(directory.entries.load(Ordering::Relaxed), 0);
    }
}
