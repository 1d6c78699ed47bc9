//! Records as bytes: a plain header of 32 bytes (magic, version, kind, length, checksum), then an rkyv
//! archive that is validated once, when it is read.
//!
//! ```text
//!  0..4    "ORST"      6      kind            8..16   length of the archive
//!  4..6    version     7      0              16..24   xxh3 of the archive, seeded with that of 0..16
//!                                            24..32   0
//! ```

use rkyv::api::high::{HighDeserializer, HighSerializer, HighValidator};
use rkyv::bytecheck::CheckBytes;
use rkyv::rancor;
use rkyv::ser::allocator::ArenaHandle;
use rkyv::util::AlignedVec;
use rkyv::{Archive, Deserialize, Serialize};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::request::{Batch, RequestError};

/// The first bytes of every record.
pub const MAGIC: [u8; 4] = *b"ORST";
/// Bytes of the header.
pub const HEAD_BYTES: usize = 32;

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A [`Batch`].
    Batch = 1,
    /// A whole state.
    Snapshot = 2,
    /// Requests that another node is asked to propose.
    Requests = 3,
    /// Their outcomes.
    Outcomes = 4,
    /// What an edge says to a node that it follows.
    FromEdge = 5,
    /// What that node says.
    ToEdge = 6,
    /// What an edge wants to have written.
    Ask = 7,
    /// What came of it.
    Reply = 8,
    /// Events of an edge, as a queue keeps them.
    Events = 16,
    /// What an edge says about its events.
    EventsToNode = 17,
    /// What a node says about them.
    EventsToEdge = 18,
    /// How far a consumer of events is.
    Progress = 19,
    /// What an edge says about what it need not be told.
    SoftToNode = 20,
    /// What a node tells it.
    SoftToEdge = 21,
}

impl Kind {
    /// The version of its layout. What lies in queues outlives many versions of what has customers in it.
    pub const fn version(self) -> u16 {
        match self {
            Self::Batch | Self::Snapshot | Self::Requests | Self::ToEdge => 4,
            Self::FromEdge | Self::Ask => 3,
            _ => 2,
        }
    }
}

/// Why bytes are not a record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Too short, or not a record at all.
    #[error("these bytes are not a record of the control plane")]
    Magic,
    /// Written by another version of this software.
    #[error("the record has version {found}, this software reads version {wanted}")]
    Version {
        /// The version that stands in it.
        found: u16,
        /// The one that is read.
        wanted: u16,
    },
    /// A record, but of another kind.
    #[error("the record is of kind {found}, {wanted} was expected")]
    Kind {
        /// What it is.
        found: u8,
        /// What it should be.
        wanted: u8,
    },
    /// Cut off, or with something behind it.
    #[error("the record should have {wanted} bytes and has {found}")]
    Length {
        /// How many it has.
        found: u64,
        /// How many its header says.
        wanted: u64,
    },
    /// A bit is wrong.
    #[error("the record's checksum is wrong")]
    Checksum,
    /// The archive does not validate.
    #[error("the record is damaged: {0}")]
    Damaged(String),
    /// It says what no request may.
    #[error("the record breaks a bound: {0}")]
    Bound(#[from] RequestError),
    /// It was put together of parts that do not fit.
    #[error("the record contradicts itself: {0}")]
    Contradiction(&'static str),
}

/// A record. Allocates.
///
/// # Errors
/// [`RecordError::Damaged`] when the archive would pass 2 GiB.
pub fn encode<T>(kind: Kind, value: &T) -> Result<Vec<u8>, RecordError>
where
    T: for<'a> Serialize<HighSerializer<AlignedVec, ArenaHandle<'a>, rancor::Error>>,
{
    let archive = rkyv::to_bytes::<rancor::Error>(value)
        .map_err(|error| RecordError::Damaged(error.to_string()))?;
    Ok(framed(kind, &archive))
}

/// An archive behind its header, whatever it is. Allocates.
pub fn framed(kind: Kind, archive: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEAD_BYTES + archive.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&kind.version().to_le_bytes());
    bytes.extend_from_slice(&[kind as u8, 0]);
    bytes.extend_from_slice(&(archive.len() as u64).to_le_bytes());
    let checksum = xxh3_64_with_seed(archive, xxh3_64(&bytes));
    bytes.extend_from_slice(&checksum.to_le_bytes());
    bytes.resize(HEAD_BYTES, 0);
    bytes.extend_from_slice(archive);
    bytes
}

/// The number of the kind that a record says it is; nothing where it is none.
pub fn kind(bytes: &[u8]) -> Option<u8> {
    let head = bytes.first_chunk::<HEAD_BYTES>()?;
    (head[..4] == MAGIC).then_some(head[6])
}

/// Reads a record, validating all of it. Copies.
///
/// # Errors
/// [`RecordError`] for anything that [`encode`] has not written.
pub fn decode<T>(kind: Kind, bytes: &[u8]) -> Result<T, RecordError>
where
    T: Archive,
    T::Archived: for<'a> CheckBytes<HighValidator<'a, rancor::Error>>
        + Deserialize<T, HighDeserializer<rancor::Error>>,
{
    let (head, archive) = bytes.split_first_chunk::<HEAD_BYTES>().ok_or(RecordError::Magic)?;
    if head[..4] != MAGIC {
        return Err(RecordError::Magic);
    }
    let (found, wanted) = (u16::from_le_bytes([head[4], head[5]]), kind.version());
    if found != wanted {
        return Err(RecordError::Version { found, wanted });
    }
    if head[6] != kind as u8 {
        return Err(RecordError::Kind { found: head[6], wanted: kind as u8 });
    }
    let (wanted, found) = (u64_at(head, 8), archive.len() as u64);
    if wanted != found {
        return Err(RecordError::Length { found, wanted });
    }
    if xxh3_64_with_seed(archive, xxh3_64(&head[..16])) != u64_at(head, 16) || head[24..] != [0; 8]
    {
        return Err(RecordError::Checksum);
    }
    let mut aligned = AlignedVec::<16>::with_capacity(archive.len());
    aligned.extend_from_slice(archive);
    rkyv::from_bytes::<T, rancor::Error>(&aligned)
        .map_err(|error| RecordError::Damaged(error.to_string()))
}

fn u64_at(head: &[u8; HEAD_BYTES], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&head[at..at + 8]);
    u64::from_le_bytes(bytes)
}

impl Batch {
    /// The batch as a log entry carries it. Allocates.
    ///
    /// # Errors
    /// As [`encode`].
    pub fn to_record(&self) -> Result<Vec<u8>, RecordError> {
        encode(Kind::Batch, self)
    }

    /// Reads a log entry, and checks every bound.
    ///
    /// # Errors
    /// [`RecordError`] for anything that is not a batch within its bounds.
    pub fn from_record(bytes: &[u8]) -> Result<Self, RecordError> {
        let batch: Self = decode(Kind::Batch, bytes)?;
        batch.check()?;
        Ok(batch)
    }
}
