//! What an edge uses. Tags, customers, weights, members and invalidations are for all; of the fragments it
//! names prefixes.

use outrider_state::Change;
use rkyv::{Archive, Deserialize, Serialize};

/// What an edge uses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Interest {
    /// Fragments whose keys begin with one of these; `""` for all of them.
    pub prefixes: Vec<String>,
}

impl Interest {
    /// Whether this is for it. O(prefixes).
    pub fn takes(&self, change: &Change) -> bool {
        match change {
            Change::Fragment { key, .. } => {
                self.prefixes.iter().any(|prefix| key.starts_with(prefix.as_str()))
            }
            _ => true,
        }
    }
}
