//! What both ends say, as records of the control plane (header, checksum, rkyv archive, validated when read).

// rkyv's derive makes structs of the variants, whose fields have no documentation.
#![allow(missing_docs)]

use outrider_state::members::Role;
use outrider_state::record::{Kind, RecordError, decode, encode};
use outrider_state::request::{
    Customer, Invalidation, KEY_BYTES_MAX, Placement, TagRecord, Weights,
};
use outrider_state::{Change, RequestError};
use rkyv::{Archive, Deserialize, Serialize};

use crate::interest::Interest;

/// The largest message of a node, as a record: the largest request, and what stands around it.
pub const TO_EDGE_BYTES_MAX: usize = 4 << 20;
/// The largest message of an edge.
pub const FROM_EDGE_BYTES_MAX: usize = 256 << 10;
/// The most prefixes of an interest.
pub const PREFIXES_MAX: usize = 256;

/// What an edge says.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum FromEdge {
    /// First of all: how far it is.
    Hello {
        /// The cluster whose state it has; 0 for none.
        cluster: [u8; 16],
        /// It has everything up to this version.
        position: u64,
        /// Of that cluster, digests that were invalidated up to this version are forgotten. At least the position.
        invalidated: u64,
        /// What it uses.
        interest: Interest,
    },
    /// It has applied everything up to this version.
    Applied {
        /// The version.
        through: u64,
    },
}

/// What a node says.
#[derive(Clone, Debug, PartialEq, Archive, Serialize, Deserialize)]
pub enum ToEdge {
    /// What one request changed.
    Update {
        /// The version up to which everything was said before.
        after: u64,
        /// The version of this one. Between the two there is nothing that the edge uses.
        version: u64,
        /// The version of the node's state, so that the edge knows how far it lags.
        latest: u64,
        /// The log's time now, in milliseconds.
        time_ms: u64,
        /// All of it together, at least one.
        items: Vec<Item>,
    },
    /// There is nothing more up to this version.
    Through {
        /// The version.
        version: u64,
        /// The version of the node's state.
        latest: u64,
        /// The log's time now, in milliseconds.
        time_ms: u64,
    },
    /// The edge is too far behind, or of another cluster: all that it uses follows.
    SnapshotBegin {
        /// The cluster.
        cluster: [u8; 16],
        /// The version of which everything is.
        version: u64,
        /// Digests that were invalidated up to this version may be missing from it.
        forgotten: u64,
    },
    /// A part of it.
    SnapshotPart {
        /// In no order that matters.
        items: Vec<Item>,
    },
    /// That was all of it.
    SnapshotEnd {
        /// How many items there were.
        items: u64,
    },
}

/// One thing that an edge knows.
#[derive(Clone, Debug, PartialEq, Archive, Serialize, Deserialize)]
pub enum Item {
    /// A fragment, or that there is none.
    Fragment {
        /// Its key.
        key: String,
        /// Its version.
        version: u64,
        /// Its value.
        value: Option<Vec<u8>>,
    },
    /// A tag, or that there is none.
    Tag {
        /// The repository.
        repository: String,
        /// The tag.
        tag: String,
        /// Its version.
        version: u64,
        /// What it stands for.
        record: Option<TagRecord>,
        /// Log time at which that was written.
        confirmed_ms: u64,
        /// Digest of what it stood for, if that was something else.
        replaced: Option<String>,
    },
    /// Something is no longer true everywhere.
    Invalidated {
        /// The version that said so.
        version: u64,
        /// What.
        what: Invalidation,
    },
    /// A customer, or that there is none.
    Customer {
        /// Who.
        name: String,
        /// What it is.
        customer: Option<Customer>,
    },
    /// The weights of the importance score.
    Weights(Weights),
    /// A rule of the placement, or that there is none.
    Placement {
        /// The repositories that it is for.
        prefix: String,
        /// What holds for them.
        placement: Option<Placement>,
    },
    /// A member that was let in, or is not any more.
    Member {
        /// Its number.
        number: u64,
        /// What it is.
        role: MemberRole,
        /// Its region, or empty.
        region: String,
        /// It is not let in any more.
        revoked: bool,
        /// Where it is reached by edges, `HOST:PORT`, or empty.
        address: String,
        /// The public key (Ed25519) of the tokens that it gives.
        token_key: Option<[u8; 32]>,
    },
}

/// What a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum MemberRole {
    /// A node of the control plane.
    Node,
    /// An edge.
    Edge,
}

impl Item {
    /// What a change of the state is to an edge.
    pub fn of(change: &Change, version: u64) -> Self {
        match change {
            Change::Fragment { key, value } => Self::Fragment {
                key: key.clone(),
                version,
                value: value.as_ref().map(|value| value.to_vec()),
            },
            Change::Tag { repository, tag, record, confirmed_ms, replaced } => Self::Tag {
                repository: repository.clone(),
                tag: tag.clone(),
                version,
                record: record.clone(),
                confirmed_ms: *confirmed_ms,
                replaced: replaced.clone(),
            },
            Change::Invalidated(what) => Self::Invalidated { version, what: what.clone() },
            Change::Customer { name, customer } => {
                Self::Customer { name: name.clone(), customer: customer.clone() }
            }
            Change::Weights(weights) => Self::Weights(*weights),
            Change::Placement { prefix, placement } => {
                Self::Placement { prefix: prefix.clone(), placement: placement.clone() }
            }
            Change::Member { number, member } => Self::Member {
                number: *number,
                role: match member.role {
                    Role::Node => MemberRole::Node,
                    Role::Edge => MemberRole::Edge,
                },
                region: member.region.clone(),
                revoked: member.revoked,
                address: member.address.clone(),
                token_key: member.token_key,
            },
        }
    }

    /// About how many bytes of a message it takes.
    pub fn bytes(&self) -> usize {
        const OTHER_BYTES: usize = 128;
        match self {
            Self::Fragment { key, value, .. } => {
                key.len() + value.as_ref().map_or(0, Vec::len) + OTHER_BYTES
            }
            _ => 4 * OTHER_BYTES,
        }
    }
}

impl FromEdge {
    /// The message as a record. Allocates.
    ///
    /// # Errors
    /// As [`encode`].
    pub fn to_record(&self) -> Result<Vec<u8>, RecordError> {
        encode(Kind::FromEdge, self)
    }

    /// Reads a record of at most [`FROM_EDGE_BYTES_MAX`], and checks every bound.
    ///
    /// # Errors
    /// [`RecordError`]
    pub fn from_record(bytes: &[u8]) -> Result<Self, RecordError> {
        let message: Self = decode(Kind::FromEdge, bytes)?;
        if let Self::Hello { interest, .. } = &message {
            let bound = |what, found, max| match found <= max {
                true => Ok(()),
                false => Err(RequestError::Bound { what, found, min: 0, max }),
            };
            bound("the interest's prefixes", interest.prefixes.len(), PREFIXES_MAX)?;
            for prefix in &interest.prefixes {
                bound("a prefix", prefix.len(), KEY_BYTES_MAX)?;
            }
        }
        Ok(message)
    }
}

impl ToEdge {
    /// The message as a record. Allocates.
    ///
    /// # Errors
    /// As [`encode`].
    pub fn to_record(&self) -> Result<Vec<u8>, RecordError> {
        encode(Kind::ToEdge, self)
    }

    /// Reads a record of at most [`TO_EDGE_BYTES_MAX`].
    ///
    /// # Errors
    /// [`RecordError`]
    pub fn from_record(bytes: &[u8]) -> Result<Self, RecordError> {
        decode(Kind::ToEdge, bytes)
    }
}
