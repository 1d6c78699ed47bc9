//! The end at an edge. It trusts no order: a message that does not follow on what it has ends the connection,
//! and the next one begins where the replica stands.

use crate::interest::Interest;
use crate::message::{FromEdge, ToEdge};
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
    next: Option<Next>,
    acknowledged: u64,
    acknowledged_at_ms: u64,
    heard_at_ms: u64,
    latest: u64,
    time_ms: u64,
}

/// A snapshot under way.
#[derive(Debug)]
struct Next {
    replica: Replica,
    /// Items so far.
    items: u64,
    /// What was invalidated since this edge heard last.
    invalidated: Vec<Consequence>,
}

impl Receiver {
    /// Begins a connection for this replica; the hello is to be sent first.
    pub fn new(replica: &Replica, interest: Interest, now_ms: u64) -> (Self, FromEdge) {
        let Replica { cluster, position, invalidated, .. } = *replica;
        let hello = FromEdge::Hello { cluster, position, invalidated, interest };
        let receiver = Self {
            next: None,
            acknowledged: replica.position,
            acknowledged_at_ms: now_ms,
            heard_at_ms: now_ms,
            latest: replica.position,
            time_ms: 0,
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

    /// The log's time in milliseconds, as the node said last; 0 while it has not.
    pub fn time_ms(&self) -> u64 {
        self.time_ms
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
            (ToEdge::Update { after, version, latest, time_ms, items }, None) => {
                if after != position || version <= after || items.is_empty() {
                    return Err(ReceiverError::Gap { after, version, position });
                }
                items.into_iter().for_each(|item| replica.take(item, &mut consequences));
                self.reach(replica, (version, latest), time_ms);
            }
            (ToEdge::Through { version, latest, time_ms }, None) => {
                if version < position {
                    return Err(ReceiverError::Back { version, position });
                }
                self.reach(replica, (version, latest), time_ms);
            }
            (ToEdge::SnapshotBegin { cluster, version, forgotten }, None) => {
                let same = cluster == replica.cluster;
                if same && version < position {
                    return Err(ReceiverError::Back { version, position });
                }
                // What another cluster has invalidated is another matter.
                let invalidated = if same { replica.invalidated } else { 0 };
                let missed = invalidated < forgotten;
                let next =
                    Replica { cluster, position: version, invalidated, ..Replica::default() };
                self.next = Some(Next {
                    replica: next,
                    items: 0,
                    invalidated: missed.then_some(Consequence::Forgotten).into_iter().collect(),
                });
            }
            (ToEdge::SnapshotPart { items }, Some(next)) => {
                next.items += items.len() as u64;
                if next.items > SNAPSHOT_ITEMS_MAX {
                    let (announced, found) = (SNAPSHOT_ITEMS_MAX, next.items);
                    return Err(ReceiverError::Count { announced, found });
                }
                for item in items {
                    next.replica.take(item, &mut next.invalidated);
                }
            }
            (ToEdge::SnapshotEnd { items: announced }, Some(next)) => {
                if announced != next.items {
                    let found = next.items;
                    return Err(ReceiverError::Count { announced, found });
                }
                if let Some(Next { replica: mut next, invalidated, .. }) = self.next.take() {
                    next.invalidated = next.invalidated.max(next.position);
                    consequences = replica.consequences_of(&next);
                    consequences.extend(invalidated);
                    self.acknowledged = self.acknowledged.min(next.position);
                    self.latest = next.position;
                    *replica = next;
                }
            }
            _ => return Err(ReceiverError::Order),
        }
        Ok(consequences)
    }

    fn reach(&mut self, replica: &mut Replica, (version, latest): (u64, u64), time_ms: u64) {
        replica.position = version;
        replica.invalidated = replica.invalidated.max(version);
        self.latest = latest.max(version);
        self.time_ms = self.time_ms.max(time_ms);
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
