//! What requests changed, in their order, and the recent past of it for those who follow: watchers and the
//! push streams.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use crate::members::Member;
use crate::request::{Customer, Invalidation, Placement, TagRecord, Weights};

/// One thing that is different now.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// A fragment has another value, or none.
    Fragment {
        /// Its key.
        key: String,
        /// Its value.
        value: Option<Bytes>,
    },
    /// A tag stands for something else, or for nothing.
    Tag {
        /// The repository.
        repository: String,
        /// The tag.
        tag: String,
        /// What it stands for.
        record: Option<TagRecord>,
        /// Log time at which that was written.
        confirmed_ms: u64,
        /// Digest of what it stood for, if that was something else.
        replaced: Option<String>,
    },
    /// Something is no longer true everywhere.
    Invalidated(Invalidation),
    /// A customer is another one, or gone.
    Customer {
        /// Who.
        name: String,
        /// What it is.
        customer: Option<Customer>,
    },
    /// The weights of the importance score.
    Weights(Weights),
    /// Another rule of the placement, or none.
    Placement {
        /// The repositories that it is for.
        prefix: String,
        /// What holds for them.
        placement: Option<Placement>,
    },
    /// A member came, or is not let in any more.
    Member {
        /// Its number.
        number: u64,
        /// What it is.
        member: Member,
    },
}

impl Change {
    /// About how much memory it holds.
    pub fn bytes(&self) -> usize {
        const OTHER_BYTES: usize = 256;
        match self {
            Self::Fragment { key, value } => {
                key.len() + value.as_ref().map_or(0, Bytes::len) + OTHER_BYTES
            }
            _ => 2 * OTHER_BYTES,
        }
    }
}

/// What one request changed, all of it or nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct Update {
    /// The version of what it wrote. Grows from one update to the next, by 1.
    pub version: u64,
    /// At least one.
    pub changes: Vec<Change>,
}

/// The bounds of a [`History`].
#[derive(Clone, Copy, Debug)]
pub struct HistoryLimits {
    /// Updates that are kept.
    pub updates_max: usize,
    /// Bytes that they may hold.
    pub bytes_max: usize,
}

impl Default for HistoryLimits {
    fn default() -> Self {
        Self { updates_max: 1 << 20, bytes_max: 256 << 20 }
    }
}

/// The most recent updates without a gap, the oldest of which go first.
#[derive(Clone, Debug)]
pub struct History {
    limits: HistoryLimits,
    updates: VecDeque<Arc<Update>>,
    bytes: usize,
    /// Everything up to here is forgotten or was never here.
    floor: u64,
}

/// Who asks has missed more than is kept, and needs a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("changes up to version {floor} are not kept any more")]
pub struct TooFarBehind {
    /// Everything above this version is there.
    pub floor: u64,
}

impl History {
    /// An empty one, for updates above `version`.
    pub fn new(version: u64, limits: HistoryLimits) -> Self {
        Self { limits, updates: VecDeque::new(), bytes: 0, floor: version }
    }

    /// Its bounds.
    pub fn limits(&self) -> HistoryLimits {
        self.limits
    }

    /// The version of the last update.
    pub fn version(&self) -> u64 {
        self.floor + self.updates.len() as u64
    }

    /// Updates that are kept.
    pub fn len(&self) -> usize {
        self.updates.len()
    }

    /// Whether none is kept.
    pub fn is_empty(&self) -> bool {
        self.updates.is_empty()
    }

    /// Adds the next update. Amortized O(1).
    ///
    /// # Panics
    /// When its version is not the next one: the log was applied with a gap, and nothing can be trusted.
    pub fn push(&mut self, update: Arc<Update>) {
        assert_eq!(update.version, self.version() + 1, "updates come without a gap");
        self.bytes += bytes_of(&update);
        self.updates.push_back(update);
        while self.updates.len() > self.limits.updates_max || self.bytes > self.limits.bytes_max {
            let Some(oldest) = self.updates.pop_front() else { break };
            self.bytes -= bytes_of(&oldest);
            self.floor += 1;
        }
    }

    /// The updates above `version`, in order.
    ///
    /// # Errors
    /// [`TooFarBehind`] when some of them are forgotten. Nobody can be ahead: a version that was not
    /// reached yet has no updates above it.
    pub fn since(&self, version: u64) -> Result<impl Iterator<Item = &Arc<Update>>, TooFarBehind> {
        let known = version.checked_sub(self.floor).ok_or(TooFarBehind { floor: self.floor })?;
        let known = usize::try_from(known).unwrap_or(usize::MAX).min(self.updates.len());
        Ok(self.updates.range(known..))
    }
}

fn bytes_of(update: &Update) -> usize {
    update.changes.iter().map(Change::bytes).sum()
}
