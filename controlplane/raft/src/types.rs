//! What openraft is told about our log.

use std::fmt;
use std::io::Cursor;

use bytes::Bytes;
use outrider_state::Outcome;

/// The number of a member, given by the state machine and never used again.
pub type NodeId = u64;
/// The identity of a log entry.
pub type LogId = openraft::LogId<NodeId>;
/// A node's vote.
pub type Vote = openraft::Vote<NodeId>;
/// A log entry.
pub type Entry = openraft::Entry<Types>;
/// Who votes, and who only listens.
pub type Membership = openraft::Membership<NodeId, Peer>;
/// The same, with the entry that it came by.
pub type StoredMembership = openraft::StoredMembership<NodeId, Peer>;
/// What a snapshot is of.
pub type SnapshotMeta = openraft::SnapshotMeta<NodeId, Peer>;
/// The running consensus.
pub type Raft = openraft::Raft<Types>;
/// What stops openraft for good.
pub type StorageError = openraft::StorageError<NodeId>;

openraft::declare_raft_types!(
    /// Our log.
    pub Types:
        D = Payload,
        R = Outcomes,
        NodeId = NodeId,
        Node = Peer,
        SnapshotData = Cursor<Vec<u8>>,
);

/// A [`outrider_state::Batch`] as a record. It is made once, where it is proposed; the disk and the network
/// carry the same bytes. Clones share them.
#[derive(Clone, PartialEq, Eq)]
pub struct Payload(pub Bytes);

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// An outcome for each request of a batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcomes(pub Vec<Outcome>);

/// Where a node is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// How it calls itself.
    pub name: String,
    /// `HOST:PORT` for other nodes.
    pub address: String,
    /// `HOST:PORT` of its admin API.
    pub admin: String,
}
