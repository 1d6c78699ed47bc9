//! The public keys that the fleet's edges sign their tokens with, as the control plane says: those of members that are
//! let in, so that the tokens of one that is taken out end.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use outrider_tokens::KeySet;
use tokio::sync::Notify;

/// Edges whose tokens are taken; of more those with the lowest numbers.
const KEYS_MAX: usize = 4096;

/// Keys by the numbers of edges.
#[derive(Debug)]
pub(crate) struct FleetKeys {
    known: Mutex<Known>,
    /// Told when they are other ones.
    changed: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Known {
    keys: BTreeMap<u64, [u8; 32]>,
    is_new: bool,
}

impl FleetKeys {
    pub(super) fn new(changed: Arc<Notify>) -> Arc<Self> {
        Arc::new(Self { known: Mutex::default(), changed })
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All that there are.
    pub(crate) fn replace(&self, keys: impl Iterator<Item = (u64, [u8; 32])>) {
        let keys = keys.collect();
        let mut known = self.lock();
        if known.keys != keys {
            (known.keys, known.is_new) = (keys, true);
            self.changed.notify_one();
        }
    }

    /// That of one edge, or that it has none.
    pub(crate) fn set(&self, edge: u64, key: Option<[u8; 32]>) {
        let mut known = self.lock();
        let before = match key {
            Some(key) => known.keys.insert(edge, key),
            None => known.keys.remove(&edge),
        };
        if before != key {
            known.is_new = true;
            self.changed.notify_one();
        }
    }

    /// Whether they are other ones than when this was asked before.
    pub(super) fn have_changed(&self) -> bool {
        std::mem::take(&mut self.lock().is_new)
    }

    pub(super) fn key_set(&self) -> KeySet {
        KeySet::of_signers(self.lock().keys.values().take(KEYS_MAX))
    }
}
