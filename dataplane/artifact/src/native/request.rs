//! Requests: what is asked for.

use rkyv::rancor;

use super::frame::{self, FrameKind};
use super::{
    ARCHIVE_BYTES_MAX, CUSTOMER_BYTES_MAX, NAME_BYTES_MAX, NativeError, REGION_BYTES_MAX,
    WANTS_MAX, bounded, text,
};
use crate::digest::{Algorithm, DIGEST_BYTES_MAX, Digest};

/// The length of a range that goes to the end.
const TO_THE_END: u64 = u64::MAX;

const METADATA_ONLY: u8 = 1;
const MANIFEST: u8 = 2;
const HELD_ONLY: u8 = 4;
const KEEP: u8 = 8;

/// What a digest is asked for as: an origin keeps the two apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WantKind {
    /// A blob.
    #[default]
    Blob,
    /// A manifest or an index.
    Manifest,
}

/// One digest that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Want {
    /// Of what.
    pub digest: Digest,
    /// A blob or a manifest.
    pub kind: WantKind,
    /// Offset of the first byte.
    pub offset: u64,
    /// Bytes from there, at least 1. Nothing means to the end; what goes over the end is cut off.
    pub len: Option<u64>,
    /// Only the record and no bytes.
    pub metadata_only: bool,
    /// Only what this server has: it asks no one else. For edges, so that none asks in a circle.
    pub held_only: bool,
    /// The server is to have this manifest on its disk for good, with all that it names, and gets what it lacks from
    /// who asks. Between edges alone; of a whole manifest, and without its bytes.
    pub keep: bool,
}

impl Want {
    /// All of a blob.
    pub const fn whole(digest: Digest) -> Self {
        Self {
            digest,
            kind: WantKind::Blob,
            offset: 0,
            len: None,
            metadata_only: false,
            held_only: false,
            keep: false,
        }
    }
}

/// A request: digests of one repository. The answers come in the order of `wants`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// The customer, or empty: who the connection belongs to.
    pub customer: String,
    /// The region, or empty: where the server is.
    pub region: String,
    /// The repository, or empty: only what is held and verified is answered then.
    pub repository: String,
    /// The upstream that the name is of, as `ns` has it for mirrors, or empty.
    pub upstream: String,
    /// At least 1, at most [`WANTS_MAX`].
    pub wants: Vec<Want>,
}

#[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
struct WantRecord {
    offset: u64,
    len: u64,
    algorithm: u8,
    flags: u8,
    reserved: [u8; 6],
    value: [u8; DIGEST_BYTES_MAX],
}

#[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
struct RequestRecord {
    customer: Vec<u8>,
    region: Vec<u8>,
    repository: Vec<u8>,
    upstream: Vec<u8>,
    wants: Vec<WantRecord>,
}

/// Number and padded value of a digest.
pub(super) fn digest_fields(digest: &Digest) -> (u8, [u8; DIGEST_BYTES_MAX]) {
    let algorithm = match digest.algorithm() {
        Algorithm::Sha256 => 1,
        Algorithm::Sha512 => 2,
    };
    let mut value = [0; DIGEST_BYTES_MAX];
    value[..digest.value().len()].copy_from_slice(digest.value());
    (algorithm, value)
}

/// The digest of these fields.
pub(super) fn digest_of(
    algorithm: u8,
    value: &[u8; DIGEST_BYTES_MAX],
) -> Result<Digest, NativeError> {
    let algorithm = match algorithm {
        1 => Algorithm::Sha256,
        2 => Algorithm::Sha512,
        _ => return Err(NativeError::Record("the algorithm of a digest is not known")),
    };
    let (used, padding) = value.split_at(algorithm.bytes());
    if padding.iter().any(|byte| *byte != 0) {
        return Err(NativeError::Record("a digest is longer than its algorithm makes it"));
    }
    Digest::from_value(algorithm, used)
        .map_err(|_| NativeError::Record("a digest is not as long as its algorithm makes it"))
}

impl WantRecord {
    fn new(want: &Want) -> Result<Self, NativeError> {
        let (algorithm, value) = digest_fields(&want.digest);
        let flag = |is_set, flag| if is_set { flag } else { 0 };
        let record = Self {
            offset: want.offset,
            len: want.len.unwrap_or(TO_THE_END),
            algorithm,
            flags: flag(want.metadata_only, METADATA_ONLY)
                | flag(want.kind == WantKind::Manifest, MANIFEST)
                | flag(want.held_only, HELD_ONLY)
                | flag(want.keep, KEEP),
            reserved: [0; 6],
            value,
        };
        // What is written is what can be read.
        record.want()?;
        Ok(record)
    }

    fn want(&self) -> Result<Want, NativeError> {
        const KNOWN: u8 = METADATA_ONLY | MANIFEST | HELD_ONLY | KEEP;
        if self.reserved != [0; 6] || self.flags & !KNOWN != 0 {
            return Err(NativeError::Record("a flag of a want is not known"));
        }
        let len = (self.len != TO_THE_END).then_some(self.len);
        if len.is_some_and(|len| len == 0 || self.offset.checked_add(len).is_none()) {
            return Err(NativeError::Record("a range is empty or too far out"));
        }
        if self.flags & KEEP != 0
            && (self.flags != METADATA_ONLY | MANIFEST | KEEP || self.offset != 0 || len.is_some())
        {
            return Err(NativeError::Record("what is to be kept is not a whole manifest"));
        }
        Ok(Want {
            digest: digest_of(self.algorithm, &self.value)?,
            kind: if self.flags & MANIFEST == 0 { WantKind::Blob } else { WantKind::Manifest },
            offset: self.offset,
            len,
            metadata_only: self.flags & METADATA_ONLY != 0,
            held_only: self.flags & HELD_ONLY != 0,
            keep: self.flags & KEEP != 0,
        })
    }
}

impl Request {
    /// The frame. Allocates.
    ///
    /// # Errors
    /// [`NativeError::Limit`] and [`NativeError::Record`] for what [`Request`] says that cannot be.
    pub fn encode(&self) -> Result<Vec<u8>, NativeError> {
        check_wants(self.wants.len())?;
        let record = RequestRecord {
            customer: bounded(&self.customer, "the customer", CUSTOMER_BYTES_MAX)?,
            region: bounded(&self.region, "the region", REGION_BYTES_MAX)?,
            repository: bounded(&self.repository, "the repository", NAME_BYTES_MAX)?,
            upstream: bounded(&self.upstream, "the upstream", NAME_BYTES_MAX)?,
            wants: self.wants.iter().map(WantRecord::new).collect::<Result<_, _>>()?,
        };
        let archive = rkyv::to_bytes::<rancor::Error>(&record)
            .expect("bytes and numbers are serialized into memory, which cannot fail");
        debug_assert!(archive.len() <= ARCHIVE_BYTES_MAX);
        Ok(frame::encode(FrameKind::Request, 0, 0, &archive))
    }

    /// Reads an archive, which is aligned, validating every part of it.
    pub(super) fn decode(archive: &[u8]) -> Result<Self, NativeError> {
        let record = rkyv::from_bytes::<RequestRecord, rancor::Failure>(archive)
            .map_err(|_| NativeError::Record("the request does not validate"))?;
        check_wants(record.wants.len())?;
        Ok(Self {
            customer: text(record.customer, "the customer", CUSTOMER_BYTES_MAX)?,
            region: text(record.region, "the region", REGION_BYTES_MAX)?,
            repository: text(record.repository, "the repository", NAME_BYTES_MAX)?,
            upstream: text(record.upstream, "the upstream", NAME_BYTES_MAX)?,
            wants: record.wants.iter().map(WantRecord::want).collect::<Result<_, _>>()?,
        })
    }
}

fn check_wants(count: usize) -> Result<(), NativeError> {
    match count {
        0 => Err(NativeError::Record("a request asks for nothing")),
        1..=WANTS_MAX => Ok(()),
        _ => Err(NativeError::Limit { what: "the list of wants", max: WANTS_MAX }),
    }
}
