//! What is stored: rkyv archives behind a version number, validated whenever they are read.
//!
//! A record of another version is never guessed at. What was pushed makes the start fail with the
//! version's number; what was only remembered from an upstream is forgotten.

use outrider_artifact::{Algorithm, Digest};
use rkyv::api::high::{HighDeserializer, HighSerializer, HighValidator};
use rkyv::bytecheck::CheckBytes;
use rkyv::rancor::Error;
use rkyv::ser::allocator::ArenaHandle;
use rkyv::util::AlignedVec;
use rkyv::{Archive, Deserialize, Serialize};

use super::NamesError;

/// Version of the records in this file. It stands before every archive.
pub(super) const RECORD_VERSION: u16 = 1;

/// Bytes of the version.
const PREFIX_BYTES: usize = 2;

/// What a tag that was pushed points to.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub(super) struct TagRow {
    pub(super) digest: Vec<u8>,
    pub(super) size_bytes: u64,
    pub(super) media_type: String,
}

/// What a tag of an upstream pointed to when it was asked last.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub(super) struct MirroredTagRow {
    pub(super) digest: Vec<u8>,
    pub(super) size_bytes: u64,
    pub(super) media_type: String,
    pub(super) upstream: String,
    pub(super) checked_unix_ms: u64,
    pub(super) etag: Option<String>,
}

/// A repository with mirrored tags.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub(super) struct MirroredRepositoryRow {
    /// The upstream that was asked last.
    pub(super) upstream: String,
    /// How many of its tags are remembered, never zero.
    pub(super) tags: u64,
}

/// A content that was pushed.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub(super) struct ContentRow {
    pub(super) upload_id: [u8; 16],
    pub(super) size_bytes: u64,
    pub(super) media_type: String,
    /// How many repositories hold it as a blob, and how many as a manifest, together. Never zero.
    pub(super) links: u64,
}

/// A content that a repository holds as a manifest.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub(super) struct ManifestRow {
    pub(super) size_bytes: u64,
    pub(super) media_type: String,
    pub(super) references: Vec<Vec<u8>>,
    pub(super) subject: Option<Vec<u8>>,
}

/// A manifest in the list of its subject.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub(super) struct ReferrerRow {
    pub(super) artifact_type: Option<String>,
    pub(super) descriptor: Vec<u8>,
}

/// Why bytes are not a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RecordFault {
    /// Written by another version.
    Version(u16),
    /// Cut off, or it does not validate.
    Damaged,
}

impl RecordFault {
    /// The error of something that was pushed.
    pub(super) fn of(self, kind: &str, key: impl std::fmt::Display) -> NamesError {
        let what = format!("{kind} {key}");
        match self {
            Self::Version(found) => NamesError::Version { what, found, known: RECORD_VERSION },
            Self::Damaged => NamesError::Damaged { what },
        }
    }
}

/// The record as it is stored. Allocates.
pub(super) fn encode<T>(record: &T) -> Vec<u8>
where
    T: for<'a> Serialize<HighSerializer<AlignedVec, ArenaHandle<'a>, Error>>,
{
    let archive = rkyv::to_bytes::<Error>(record)
        .expect("strings and numbers are serialized into memory, which cannot fail");
    let mut bytes = Vec::with_capacity(PREFIX_BYTES + archive.len());
    bytes.extend_from_slice(&RECORD_VERSION.to_le_bytes());
    bytes.extend_from_slice(&archive);
    bytes
}

/// Reads a stored record. Copies it twice: once to align it, once out of the archive.
pub(super) fn decode<T>(bytes: &[u8]) -> Result<T, RecordFault>
where
    T: Archive,
    T::Archived:
        for<'a> CheckBytes<HighValidator<'a, Error>> + Deserialize<T, HighDeserializer<Error>>,
{
    let (version, archive) =
        bytes.split_first_chunk::<PREFIX_BYTES>().ok_or(RecordFault::Damaged)?;
    let version = u16::from_le_bytes(*version);
    if version != RECORD_VERSION {
        return Err(RecordFault::Version(version));
    }
    let mut aligned = AlignedVec::<16>::with_capacity(archive.len());
    aligned.extend_from_slice(archive);
    rkyv::from_bytes::<T, Error>(&aligned).map_err(|_| RecordFault::Damaged)
}

/// A digest as a key: one byte for the algorithm, then the value. Keys sort by algorithm, then value.
#[derive(Clone, Copy)]
pub(super) struct DigestKey {
    bytes: [u8; 65],
    len: usize,
}

impl DigestKey {
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    pub(super) fn to_vec(self) -> Vec<u8> {
        self.as_bytes().to_vec()
    }
}

impl From<&Digest> for DigestKey {
    fn from(digest: &Digest) -> Self {
        let mut bytes = [0; 65];
        bytes[0] = match digest.algorithm() {
            Algorithm::Sha256 => 1,
            Algorithm::Sha512 => 2,
        };
        let value = digest.value();
        bytes[1..=value.len()].copy_from_slice(value);
        Self { bytes, len: 1 + value.len() }
    }
}

/// The digest of a key.
pub(super) fn digest_of(key: &[u8]) -> Result<Digest, RecordFault> {
    let (algorithm, value) = key.split_first().ok_or(RecordFault::Damaged)?;
    let algorithm = match algorithm {
        1 => Algorithm::Sha256,
        2 => Algorithm::Sha512,
        _ => return Err(RecordFault::Damaged),
    };
    Digest::from_value(algorithm, value).map_err(|_| RecordFault::Damaged)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn example() -> MirroredTagRow {
        MirroredTagRow {
            digest: DigestKey::from(&Digest::sha256(b"")).to_vec(),
            size_bytes: 7,
            media_type: "application/vnd.oci.image.manifest.v1+json".into(),
            upstream: "docker.io".into(),
            checked_unix_ms: 1,
            etag: Some("\"a\"".into()),
        }
    }

    #[test]
    fn a_record_survives_being_stored() {
        assert_eq!(decode::<MirroredTagRow>(&encode(&example())).unwrap(), example());
    }

    #[test]
    fn another_version_is_refused_by_its_number() {
        let mut bytes = encode(&example());
        bytes[0] = 7;
        assert_eq!(decode::<MirroredTagRow>(&bytes), Err(RecordFault::Version(7)));
    }

    #[test]
    fn a_digest_survives_being_a_key() {
        let sha256 = Digest::sha256(b"");
        let sha512 = Digest::from_value(Algorithm::Sha512, &[7; 64]).unwrap();
        for digest in [sha256, sha512] {
            assert_eq!(digest_of(DigestKey::from(&digest).as_bytes()), Ok(digest));
        }
        for wrong in [&b""[..], b"\x01", b"\x03aaaa", &[1; 34]] {
            assert_eq!(digest_of(wrong), Err(RecordFault::Damaged));
        }
    }

    proptest! {
        #[test]
        fn damaged_records_are_faults_and_never_panics(at in 0usize..400, to in any::<u8>(), cut in 0usize..400) {
            let mut bytes = encode(&example());
            let at = at % bytes.len();
            bytes[at] = to;
            let _ = decode::<MirroredTagRow>(&bytes);
            bytes.truncate(cut % (bytes.len() + 1));
            let _ = decode::<MirroredTagRow>(&bytes);
            let _ = decode::<ContentRow>(&bytes);
            let _ = decode::<ManifestRow>(&bytes);
        }
    }
}
