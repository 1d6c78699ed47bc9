//! The records of what happened at an edge, as the control plane will read them.
//!
//! They are rkyv archives behind a plain version number ([`EVENT_VERSION`]); an archive of another
//! version than those from [`EVENT_VERSION_MIN`] on is refused by [`UploadEvent::from_archive`].

use rkyv::rancor;

/// Version of the records in this file. It stands before every archive. Version 2 added
/// [`UploadKind::Mirrored`], and changed nothing else: what lies on disks in version 1 is read.
pub const EVENT_VERSION: u16 = 2;
/// The oldest version that is read.
pub const EVENT_VERSION_MIN: u16 = 1;

/// Bytes before the archive: the version and padding, so that the archive is aligned.
const PREFIX_BYTES: usize = 16;

/// Why bytes are not an event.
#[derive(Debug, thiserror::Error)]
pub enum EventError {
    /// Written by another version of this software.
    #[error("the event has version {found}, this software reads version {EVENT_VERSION}")]
    Version {
        /// The version that stood in the record.
        found: u16,
    },
    /// Too short, or the archive does not validate.
    #[error("the event is damaged: {0}")]
    Damaged(String),
}

/// What an upload was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum UploadKind {
    /// A blob by the registry's API.
    Blob,
    /// A manifest by the registry's API.
    Manifest,
    /// A layer by `/layer/upload`.
    Layer,
    /// A manifest of an upstream, which was fetched and verified here. New kinds stand at the end: the archive
    /// has the place as a number.
    Mirrored,
}

/// Something was stored here for good. Written in the transaction that acknowledges it, kept until
/// the control plane has taken it.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct UploadEvent {
    /// What it was.
    pub kind: UploadKind,
    /// Who uploaded it.
    pub customer: String,
    /// Where.
    pub region: String,
    /// Repository of a blob or a manifest, image name of a layer.
    pub repository: String,
    /// Tag, version or nothing.
    pub version: Option<String>,
    /// Digest, in its text form.
    pub digest: String,
    /// Length in bytes.
    pub size_bytes: u64,
    /// Media type as it was given, or empty.
    pub media_type: String,
    /// When, in milliseconds since 1970.
    pub unix_ms: u64,
}

/// Which tier an answer's bytes came from; of several the slowest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum AccessTier {
    /// Memory.
    Ram,
    /// The SSD stripes.
    Ssd,
    /// An upstream.
    Origin,
}

/// A blob, a manifest or a layer was asked for, and answered without an error.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct AccessEvent {
    /// Who asked.
    pub customer: String,
    /// Where.
    pub region: String,
    /// Repository, or empty for a layer that was asked for by its digest alone.
    pub image: String,
    /// Digest, in its text form.
    pub digest: String,
    /// When it was asked for, in milliseconds since 1970.
    pub unix_ms: u64,
    /// Where the bytes came from.
    pub tier: AccessTier,
    /// The HTTP status: 200, 206 or 304.
    pub status: u16,
    /// Bytes of the body that were handed to the client's connection.
    pub bytes: u64,
    /// From the request's head until the last of them was.
    pub latency_us: u64,
}

impl UploadEvent {
    /// The record as it is stored. Allocates.
    pub fn to_archive(&self) -> Vec<u8> {
        let archive = rkyv::to_bytes::<rancor::Error>(self)
            .expect("strings and numbers are serialized into memory, which cannot fail");
        let mut record = Vec::with_capacity(PREFIX_BYTES + archive.len());
        record.extend_from_slice(&EVENT_VERSION.to_le_bytes());
        record.resize(PREFIX_BYTES, 0);
        record.extend_from_slice(&archive);
        record
    }

    /// Reads a stored record, validating every part of it. Copies.
    ///
    /// # Errors
    /// [`EventError`] for another version, and for anything that does not validate.
    pub fn from_archive(record: &[u8]) -> Result<Self, EventError> {
        if record.len() < PREFIX_BYTES {
            return Err(EventError::Damaged(format!("it has {} bytes", record.len())));
        }
        let found = u16::from_le_bytes([record[0], record[1]]);
        if !(EVENT_VERSION_MIN..=EVENT_VERSION).contains(&found) {
            return Err(EventError::Version { found });
        }
        let mut aligned = rkyv::util::AlignedVec::<16>::with_capacity(record.len() - PREFIX_BYTES);
        aligned.extend_from_slice(&record[PREFIX_BYTES..]);
        rkyv::from_bytes::<Self, rancor::Error>(&aligned)
            .map_err(|error| EventError::Damaged(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn example() -> UploadEvent {
        UploadEvent {
            kind: UploadKind::Layer,
            customer: "anonymous".into(),
            region: "local".into(),
            repository: "library/alpine".into(),
            version: Some("3.20".into()),
            digest: "sha256:00".into(),
            size_bytes: 7,
            media_type: String::new(),
            unix_ms: 1,
        }
    }

    #[test]
    fn an_event_survives_being_stored() {
        assert_eq!(UploadEvent::from_archive(&example().to_archive()).unwrap(), example());
    }

    /// As the software before [`UploadKind::Mirrored`] wrote it.
    const FIRST: &str = include_str!("../testdata/upload_v1.hex");

    #[test]
    fn what_lies_in_outboxes_since_the_first_version_is_read() {
        let digits = FIRST.trim().as_bytes().chunks(2);
        let byte = |pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
        let record: Vec<u8> = digits.map(byte).collect();
        assert_eq!(record[..2], [1, 0]);
        assert_eq!(UploadEvent::from_archive(&record).unwrap(), example());
    }

    #[test]
    fn another_version_is_refused() {
        let mut record = example().to_archive();
        record[0] = 9;
        assert!(matches!(
            UploadEvent::from_archive(&record),
            Err(EventError::Version { found: 9 })
        ));
    }

    proptest! {
        #[test]
        fn damaged_events_are_errors_and_never_panics(at in 0usize..200, to in any::<u8>(), cut in 0usize..200) {
            let mut record = example().to_archive();
            let at = at % record.len();
            record[at] = to;
            let _ = UploadEvent::from_archive(&record);
            record.truncate(cut % (record.len() + 1));
            let _ = UploadEvent::from_archive(&record);
        }
    }
}
