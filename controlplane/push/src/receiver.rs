//! The end at an edge. It trusts no order: a message that does not follow on what it has ends the connection,
//! and the next one begins where the replica stands.

use crate::interest::Interest;
use crate::message::{FromEdge, Item, ToEdge};
use crate::replica::{Consequence, Replica};

/// At most so long after an update was applied the node hears of it.
pub const ACKNOWLEDGE_INTERVAL_MS: u64 = 20;
/// Items of a snapshot that are taken in before it is refused.
pub const SNAPSHOT_ITEMS_MAX: u64 = 10_000_000;

/// Why the connection ends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReceiverError {
    /// An update that does not follow on what is there.
    #[error("an update from {after} to {version}, but this edge is at {position}")]
    Gap {
        /// What it follows on.
        after: u64,
        /// Its version.
        version: u64,
        /// Where this edge is.
        position: u64,
    },
    /// The node is behind this edge.
    #[error("the node is at version {version}, and this edge already at {position}")]
    Back {
        /// Where the node is.
        version: u64,
        /// Where this edge is.
        position: u64,
    },
    /// A message at the wrong time.
    #[error("a message that belongs into a snapshot came outside of one, or the other way round")]
    Order,
    /// A snapshot with another number of items.
    #[error("a snapshot of {announced} items has {found}")]
    Count {
        /// As was said.
        announced: u64,
        /// As was found.
        found: u64,
    },
}

/// The end at an edge, for one connection.
#[derive(Debug)]
pub struct Receiver {
    /// A snapshot under way: it, and its items so far.
    next: Option<(Replica, u64)>,
    acknowledged: u64,
    acknowledged_at_ms: u64,
    heard_at_ms: u64,
    latest: u64,
}

impl Receiver {
    /// Begins a connection for this replica; the hello is to be sent first.
    pub fn new(replica: &Replica, interest: Interest, now_ms: u64) -> (Self, FromEdge) {
        let hello =
            FromEdge::Hello { cluster: replica.cluster, position: replica.position, interest };
        let receiver = Self {
            next: None,
            acknowledged: replica.position,
            acknowledged_at_ms: now_ms,
            heard_at_ms: now_ms,
            latest: replica.position,
        };
        (receiver, hello)
    }

    /// When the node was heard of last.
    pub fn heard_at_ms(&self) -> u64 {
        self.heard_at_ms
    }

    /// The version of the node's state, as it said last.
    pub fn latest(&self) -> u64 {
        self.latest
    }

    /// Takes a message. The replica is changed as a whole or not at all; what the caches have to do about it
    /// is returned.
    ///
    /// # Errors
    /// [`ReceiverError`]: nothing was changed, and the connection ends.
    pub fn receive(
        &mut self,
        message: ToEdge,
        now_ms: u64,
        replica: &mut Replica,
    ) -> Result<Vec<Consequence>, ReceiverError> {
        self.heard_at_ms = now_ms;
        let position = replica.position;
        let mut consequences = Vec::new();
        match (message, &mut self.next) {
            (ToEdge::Update { after, version, latest, items }, None) => {
                if after != position || version <= after || items.is_empty() {
                    return Err(ReceiverError::Gap { after, version, position });
                }
                items.into_iter().for_each(|item| replica.take(item, &mut consequences));
                replica.position = version;
                self.latest = latest.max(version);
            }
            (ToEdge::Through { version, latest }, None) => {
                if version < position {
                    return Err(ReceiverError::Back { version, position });
                }
                replica.position = version;
                self.latest = latest.max(version);
            }
            (ToEdge::SnapshotBegin { cluster, version }, None) => {
                if cluster == replica.cluster && version < position {
                    return Err(ReceiverError::Back { version, position });
                }
                self.next = Some((Replica { cluster, position: version, ..Replica::default() }, 0));
            }
            (ToEdge::SnapshotPart { items }, Some((next, count))) => {
                *count += items.len() as u64;
                if *count > SNAPSHOT_ITEMS_MAX {
                    let (announced, found) = (SNAPSHOT_ITEMS_MAX, *count);
                    return Err(ReceiverError::Count { announced, found });
                }
                items.into_iter().for_each(|item: Item| next.take(item, &mut Vec::new()));
            }
            (ToEdge::SnapshotEnd { items: announced }, Some((_, found))) => {
                if announced != *found {
                    return Err(ReceiverError::Count { announced, found: *found });
                }
                if let Some((next, _)) = self.next.take() {
                    consequences = replica.consequences_of(&next);
                    self.acknowledged = self.acknowledged.min(next.position);
                    self.latest = next.position;
                    *replica = next;
                }
            }
            _ => return Err(ReceiverError::Order),
        }
        Ok(consequences)
    }

    /// When to ask again at the latest, if nothing else happens before; nothing when all is acknowledged.
    pub fn deadline_ms(&self, replica: &Replica) -> Option<u64> {
        (replica.position > self.acknowledged)
            .then_some(self.acknowledged_at_ms + ACKNOWLEDGE_INTERVAL_MS)
    }

    /// The next message, if there is one now.
    pub fn poll(&mut self, now_ms: u64, replica: &Replica) -> Option<FromEdge> {
        let deadline_ms = self.deadline_ms(replica)?;
        (now_ms >= deadline_ms && self.next.is_none()).then(|| {
            self.acknowledged = replica.position;
            self.acknowledged_at_ms = now_ms;
            FromEdge::Applied { through: replica.position }
        })
    }
}
