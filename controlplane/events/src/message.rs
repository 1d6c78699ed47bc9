//! What both ends of the way from an edge to a node say, as records of the control plane.
//!
//! The edge opens a stream and says hello; the node answers with what its queue has of this edge already, and
//! acknowledges from then on what became durable there.

// rkyv's derive makes structs of the variants, whose fields have no documentation.
#![allow(missing_docs)]

use outrider_state::record::{Kind, RecordError, decode, encode};
use rkyv::{Archive, Deserialize, Serialize};

use crate::event::{Batch, Lane, Mark, RECORD_BYTES_MAX};

/// The longest message of an edge, as a record.
pub const TO_NODE_BYTES_MAX: usize = RECORD_BYTES_MAX;
/// The longest message of a node.
pub const TO_EDGE_BYTES_MAX: usize = 4 << 10;

/// What an edge says.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum ToNode {
    /// First of all.
    Hello,
    /// What happened.
    Batch(Batch),
}

/// What a node says.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum ToEdge {
    /// The answer to a hello.
    Welcome {
        /// Which queue it is. Nodes that share one say the same.
        queue: [u8; 16],
        /// What is known of the edge's uploads.
        uploads: Mark,
        /// And of its accesses.
        accesses: Mark,
    },
    /// Durable in the queue is everything up to this mark, itself too.
    Durable {
        /// The lane.
        lane: Lane,
        /// The mark.
        mark: Mark,
    },
}

impl ToNode {
    /// The message as a record. Allocates.
    ///
    /// # Errors
    /// As [`encode`].
    pub fn to_record(&self) -> Result<Vec<u8>, RecordError> {
        encode(Kind::EventsToNode, self)
    }

    /// Reads a message, and checks every bound.
    ///
    /// # Errors
    /// [`RecordError`]
    pub fn from_record(bytes: &[u8]) -> Result<Self, RecordError> {
        let message: Self = decode(Kind::EventsToNode, bytes)?;
        if let Self::Batch(batch) = &message {
            batch.check()?;
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
        encode(Kind::EventsToEdge, self)
    }

    /// Reads a message.
    ///
    /// # Errors
    /// [`RecordError`]
    pub fn from_record(bytes: &[u8]) -> Result<Self, RecordError> {
        decode(Kind::EventsToEdge, bytes)
    }
}
