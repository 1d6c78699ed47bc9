//! What stands on a stripe: records of 4 KiB blocks, each a plain header, an rkyv archive of fixed
//! size and a payload.
//!
//! ```text
//! 0    8   magic "OUTRREC1"
//! 8    2   version
//! 10   1   kind
//! 11   1   flags
//! 12   4   payload length in bytes
//! 16   8   sequence: when this content was made, kept when reclaim moves the record
//! 24   8   segment sequence: binds the record to one life of the segment that it lies in
//! 32   8   xxh3 of the payload
//! 40   2   length of the archive
//! 42   6   the customer that it is charged to, 0 for nobody
//! 48   8   xxh3 of the bytes 0–48 and of the archive
//! 56   8   zero
//! 64   …   the archive (`RecordBody`)
//! 512  …   the payload, padded with zeros to a full block
//! ```
//!
//! Both hashes are seeded with a secret of the store, so that nobody who chooses a payload can make
//! it look like a record, or like another payload with the same hash.
//!
//! [`parse`] is pure, takes any bytes and never panics.

use outrider_artifact::{Algorithm, Digest};
use xxhash_rust::xxh3::Xxh3;

use crate::arena::{HEADER_BYTES, record_bytes};
use crate::upload::UploadId;

const MAGIC: [u8; 8] = *b"OUTRREC1";
const VERSION: u16 = 1;
const BODY_OFFSET: usize = 64;
/// The longest media type that a record carries.
pub const MEDIA_TYPE_BYTES_MAX: usize = 96;
/// A payload is never longer than this (bounds what a parser has to believe).
pub const PAYLOAD_BYTES_MAX: usize = 64 << 20;

/// The last record of an upload: `object_size` is the size of all of it.
pub(crate) const FLAG_LAST: u8 = 1;

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A chunk of a cached object.
    Chunk = 1,
    /// A chunk of an upload.
    UploadChunk = 2,
    /// All chunks of this life of the object with a lower sequence were hashed and are right.
    Seal = 3,
    /// Everything about this digest with a lower sequence is void.
    Tombstone = 4,
    /// Nothing follows in this segment.
    End = 5,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        [Self::Chunk, Self::UploadChunk, Self::Seal, Self::Tombstone, Self::End]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}

/// The archive of a record. Fixed size; fields that a kind does not use are zero.
#[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Clone, Debug)]
struct RecordBody {
    digest_algorithm: u8,
    digest: [u8; 64],
    upload: [u8; 16],
    chunk: u32,
    life: u64,
    object_size: u64,
    origin: u64,
    media_type_len: u8,
    media_type: [u8; MEDIA_TYPE_BYTES_MAX],
}

/// Whom a record belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// A cached object.
    Object(Digest),
    /// An upload.
    Upload(UploadId),
    /// The segment itself ([`Kind::End`]).
    Nobody,
}

/// A record's header and archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// What it is.
    pub kind: Kind,
    /// Bits; bit 0 marks the last chunk of an upload.
    pub flags: u8,
    /// Payload bytes that follow the header room.
    pub payload_bytes: u32,
    /// When the content was made: rises over the whole store.
    pub sequence: u64,
    /// Whom it belongs to.
    pub owner: Owner,
    /// Which chunk.
    pub chunk: u32,
    /// Which life of the object: a new one starts when it was unknown before.
    pub life: u64,
    /// Size of the whole object.
    pub object_size: u64,
    /// Where it came from.
    pub origin: u64,
    /// The key of the customer that it is charged to, below 2^48; 0 for nobody.
    pub customer: u64,
    /// The object's media type; at most [`MEDIA_TYPE_BYTES_MAX`] bytes.
    pub media_type: String,
    /// The hash of the payload that is expected.
    pub payload_hash: u64,
}

/// Why bytes are not a record of this segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Fewer bytes than a header.
    #[error("too short for a record's header")]
    Short,
    /// No magic: nothing was ever written here.
    #[error("no record starts here")]
    Absent,
    /// Another version of the format.
    #[error("a record of version {0}")]
    Version(u16),
    /// The header or archive does not match its hash, or carries what it cannot.
    #[error("the record's header is damaged")]
    Header,
    /// A record of another life of this segment.
    #[error("the record is from an earlier use of its segment")]
    Stale,
    /// The payload does not match its hash.
    #[error("the record's payload is damaged")]
    Payload,
}

#[repr(C, align(16))]
struct Aligned([u8; HEADER_BYTES - BODY_OFFSET]);

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(value)
}

fn header_hash(seed: u64, header: &[u8], archive: &[u8]) -> u64 {
    let mut hash = Xxh3::with_seed(seed);
    hash.update(&header[..48]);
    hash.update(archive);
    hash.digest()
}

/// The hash that a payload must have: xxh3 with the store's seed.
pub fn payload_hash(seed: u64, payload: &[u8]) -> u64 {
    super::hash::xxh3(payload, seed)
}

/// Reads the header of a record and its archive. `bytes` may be longer (the payload is not looked
/// at) and needs no alignment. `segment_sequence`: what the record must be bound to.
///
/// # Errors
/// Everything but [`RecordError::Payload`].
pub fn parse(bytes: &[u8], seed: u64, segment_sequence: u64) -> Result<Record, RecordError> {
    let header = bytes.get(..HEADER_BYTES).ok_or(RecordError::Short)?;
    if header[..8] != MAGIC {
        return Err(RecordError::Absent);
    }
    let version = u16::from_le_bytes([header[8], header[9]]);
    if version != VERSION {
        return Err(RecordError::Version(version));
    }
    let archive_len = usize::from(u16::from_le_bytes([header[40], header[41]]));
    let archive = header.get(BODY_OFFSET..BODY_OFFSET + archive_len).ok_or(RecordError::Header)?;
    if header_hash(seed, header, archive) != u64_at(header, 48) {
        return Err(RecordError::Header);
    }
    let mut aligned = Aligned([0; HEADER_BYTES - BODY_OFFSET]);
    aligned.0[..archive_len].copy_from_slice(archive);
    let body = rkyv::access::<ArchivedRecordBody, rkyv::rancor::Error>(&aligned.0[..archive_len])
        .map_err(|_| RecordError::Header)?;
    let record = from_parts(header, body).ok_or(RecordError::Header)?;
    if u64_at(header, 24) != segment_sequence {
        return Err(RecordError::Stale);
    }
    Ok(record)
}

fn from_parts(header: &[u8], body: &ArchivedRecordBody) -> Option<Record> {
    let kind = Kind::from_byte(header[10])?;
    let owner = match kind {
        Kind::Chunk | Kind::Seal | Kind::Tombstone => {
            let algorithm = match body.digest_algorithm {
                1 => Algorithm::Sha256,
                2 => Algorithm::Sha512,
                _ => return None,
            };
            Owner::Object(Digest::from_value(algorithm, &body.digest[..algorithm.bytes()]).ok()?)
        }
        Kind::UploadChunk => Owner::Upload(UploadId(body.upload)),
        Kind::End => Owner::Nobody,
    };
    let media_type = body.media_type.get(..usize::from(body.media_type_len))?;
    let payload_bytes = u32::from_le_bytes([header[12], header[13], header[14], header[15]]);
    if payload_bytes as usize > PAYLOAD_BYTES_MAX {
        return None;
    }
    Some(Record {
        kind,
        flags: header[11],
        payload_bytes,
        sequence: u64_at(header, 16),
        owner,
        chunk: body.chunk.to_native(),
        life: body.life.to_native(),
        object_size: body.object_size.to_native(),
        origin: body.origin.to_native(),
        // Its first two bytes are the length of the archive.
        customer: u64_at(header, 40) >> 16,
        media_type: std::str::from_utf8(media_type).ok()?.to_owned(),
        payload_hash: u64_at(header, 32),
    })
}

/// As [`parse`], and checks the payload, which must follow in `bytes`.
///
/// # Errors
/// Every [`RecordError`].
pub fn parse_whole(bytes: &[u8], seed: u64, segment_sequence: u64) -> Result<Record, RecordError> {
    let record = parse(bytes, seed, segment_sequence)?;
    let payload = bytes
        .get(HEADER_BYTES..HEADER_BYTES + record.payload_bytes as usize)
        .ok_or(RecordError::Short)?;
    if payload_hash(seed, payload) != record.payload_hash {
        return Err(RecordError::Payload);
    }
    Ok(record)
}

impl Record {
    /// A record without payload: a seal, a tombstone, the end of a segment.
    pub fn mark(kind: Kind, owner: Owner, sequence: u64, seed: u64) -> Self {
        Self {
            kind,
            flags: 0,
            payload_bytes: 0,
            sequence,
            owner,
            chunk: 0,
            life: 0,
            object_size: 0,
            origin: 0,
            customer: 0,
            media_type: String::new(),
            payload_hash: payload_hash(seed, &[]),
        }
    }

    /// The length of the whole record on disk, a multiple of 4 KiB.
    pub fn len_bytes(&self) -> usize {
        record_bytes(self.payload_bytes as usize)
    }

    /// Writes the header room (512 bytes). It becomes valid when [`bind`] was called too.
    ///
    /// # Panics
    /// When the media type is too long or `header` too short: the caller checks both.
    pub fn write(&self, header: &mut [u8]) {
        let header = &mut header[..HEADER_BYTES];
        header.fill(0);
        header[..8].copy_from_slice(&MAGIC);
        header[8..10].copy_from_slice(&VERSION.to_le_bytes());
        header[10] = self.kind as u8;
        header[11] = self.flags;
        header[12..16].copy_from_slice(&self.payload_bytes.to_le_bytes());
        header[16..24].copy_from_slice(&self.sequence.to_le_bytes());
        header[32..40].copy_from_slice(&self.payload_hash.to_le_bytes());
        let mut body = RecordBody {
            digest_algorithm: 0,
            digest: [0; 64],
            upload: [0; 16],
            chunk: self.chunk,
            life: self.life,
            object_size: self.object_size,
            origin: self.origin,
            media_type_len: self.media_type.len() as u8,
            media_type: [0; MEDIA_TYPE_BYTES_MAX],
        };
        body.media_type[..self.media_type.len()].copy_from_slice(self.media_type.as_bytes());
        match &self.owner {
            Owner::Object(digest) => {
                body.digest_algorithm = match digest.algorithm() {
                    Algorithm::Sha256 => 1,
                    Algorithm::Sha512 => 2,
                };
                body.digest[..digest.value().len()].copy_from_slice(digest.value());
            }
            Owner::Upload(id) => body.upload = id.0,
            Owner::Nobody => {}
        }
        let archive = rkyv::to_bytes::<rkyv::rancor::Error>(&body)
            .expect("a fixed-size archive has nothing that could fail");
        header[40..42].copy_from_slice(&(archive.len() as u16).to_le_bytes());
        header[42..48].copy_from_slice(&self.customer.to_le_bytes()[..6]);
        header[BODY_OFFSET..BODY_OFFSET + archive.len()].copy_from_slice(&archive);
    }
}

/// Makes a written header newer than it was. It has to be bound again.
pub fn renew(header: &mut [u8], sequence: u64) {
    header[16..24].copy_from_slice(&sequence.to_le_bytes());
}

/// Binds a written header to one life of a segment and completes its hash.
pub fn bind(header: &mut [u8], seed: u64, segment_sequence: u64) {
    header[24..32].copy_from_slice(&segment_sequence.to_le_bytes());
    let archive_len = usize::from(u16::from_le_bytes([header[40], header[41]]));
    let hash = header_hash(seed, header, &header[BODY_OFFSET..BODY_OFFSET + archive_len]);
    header[48..56].copy_from_slice(&hash.to_le_bytes());
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn sample() -> Record {
        let payload = b"some payload";
        Record {
            kind: Kind::Chunk,
            flags: 0,
            payload_bytes: payload.len() as u32,
            sequence: 42,
            owner: Owner::Object(Digest::sha256(payload)),
            chunk: 7,
            life: 40,
            object_size: 1 << 30,
            origin: 99,
            customer: 0x1234_5678_9abc,
            media_type: "application/vnd.oci.image.layer.v1.tar+gzip".to_owned(),
            payload_hash: payload_hash(5, payload),
        }
    }

    fn bytes_of(record: &Record) -> Vec<u8> {
        let mut bytes = vec![0; 4096];
        record.write(&mut bytes);
        bind(&mut bytes, 5, 3);
        bytes[HEADER_BYTES..HEADER_BYTES + 12].copy_from_slice(b"some payload");
        bytes
    }

    #[test]
    fn what_is_written_is_read_back() {
        let record = sample();
        assert_eq!(parse_whole(&bytes_of(&record), 5, 3), Ok(record.clone()));
        let upload = Record {
            kind: Kind::UploadChunk,
            owner: Owner::Upload(UploadId([9; 16])),
            flags: FLAG_LAST,
            ..record
        };
        assert_eq!(parse_whole(&bytes_of(&upload), 5, 3), Ok(upload));
    }

    #[test]
    fn every_flipped_bit_of_header_and_payload_is_noticed() {
        let record = sample();
        let good = bytes_of(&record);
        let archive_len = usize::from(u16::from_le_bytes([good[40], good[41]]));
        let header = 0..56;
        let archive = BODY_OFFSET..BODY_OFFSET + archive_len;
        let payload = HEADER_BYTES..HEADER_BYTES + 12;
        for at in header.chain(archive).chain(payload) {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                assert!(parse_whole(&bad, 5, 3).is_err(), "bit {bit} of byte {at}");
            }
        }
    }

    #[test]
    fn a_record_of_another_store_or_of_an_earlier_use_of_the_segment_is_not_taken() {
        let bytes = bytes_of(&sample());
        assert_eq!(parse(&bytes, 6, 3), Err(RecordError::Header));
        assert_eq!(parse(&bytes, 5, 4), Err(RecordError::Stale));
    }

    #[test]
    fn no_bytes_make_the_parser_panic() {
        let mut random = fastrand::Rng::with_seed(1);
        let good = bytes_of(&sample());
        for _ in 0..20_000 {
            let mut bytes = good.clone();
            for _ in 0..random.usize(1..8) {
                let at = random.usize(..HEADER_BYTES);
                bytes[at] = random.u8(..);
            }
            // With a right hash over wrong content, so that the checks behind it are reached.
            if random.bool() && usize::from(u16::from_le_bytes([bytes[40], bytes[41]])) < 448 {
                bind(&mut bytes, 5, 3);
            }
            bytes.truncate(random.usize(..=4096));
            let _ = parse_whole(&bytes, 5, 3);
        }
    }
}
