//! Answers: what there is of a digest that was asked for.

use rkyv::rancor;

use super::frame::{self, FrameKind};
use super::request::{digest_fields, digest_of};
use super::{
    ARCHIVE_BYTES_MAX, ERROR_BYTES_MAX, MEDIA_TYPE_BYTES_MAX, NativeError, WANTS_MAX, bounded,
    shortened, text,
};
use crate::digest::{DIGEST_BYTES_MAX, Digest};

/// The total size of what is not known to its end yet.
pub const TOTAL_UNKNOWN: u64 = u64::MAX;

const VERIFIED: u8 = 1;
const MORE: u8 = 2;

/// Where an answer comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tier {
    /// Nowhere: there is nothing to answer, or it is not known.
    #[default]
    None = 0,
    /// The memory of the server.
    Ram = 1,
    /// Its fast disks.
    Ssd = 2,
    /// Its large disks.
    Hdd = 3,
    /// Another edge.
    Peer = 4,
    /// Object storage.
    Object = 5,
    /// The origin.
    Origin = 6,
}

impl Tier {
    fn from_number(number: u8) -> Option<Self> {
        let tiers =
            [Self::None, Self::Ram, Self::Ssd, Self::Hdd, Self::Peer, Self::Object, Self::Origin];
        tiers.into_iter().find(|tier| *tier as u8 == number)
    }
}

/// The answer to one want. Its raw bytes follow the frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Index of the want.
    pub want: u32,
    /// As HTTP has them: 200 all of it, 206 a part of it, 404, 416, 429, 502, 503, 504.
    pub status: u16,
    /// The digest that was asked for.
    pub digest: Digest,
    /// Bytes of all of it, or [`TOTAL_UNKNOWN`].
    pub total: u64,
    /// Offset of the first byte of the range that is answered.
    pub start: u64,
    /// Bytes of the range that is answered, also where only metadata was asked for.
    pub len: u64,
    /// Raw bytes that follow this frame: `len` or, for metadata and errors, 0; less with `more`.
    pub body_len: u64,
    /// Another frame with the same index follows the bytes, with the next ones.
    pub more: bool,
    /// All of the digest has been hashed here, and is right.
    pub verified: bool,
    /// Where it comes from.
    pub tier: Tier,
    /// The media type, or empty.
    pub media_type: String,
    /// What is wrong, for people; empty with 200 and 206. What is longer than [`ERROR_BYTES_MAX`] is cut off.
    pub error: String,
}

#[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
struct AnswerRecord {
    total: u64,
    start: u64,
    len: u64,
    want: u32,
    status: u16,
    tier: u8,
    flags: u8,
    algorithm: u8,
    reserved: [u8; 7],
    value: [u8; DIGEST_BYTES_MAX],
    media_type: Vec<u8>,
    error: Vec<u8>,
}

impl Answer {
    /// An answer without content.
    pub fn error(want: u32, digest: Digest, status: u16, error: &str) -> Self {
        Self {
            want,
            status,
            digest,
            total: TOTAL_UNKNOWN,
            start: 0,
            len: 0,
            body_len: 0,
            more: false,
            verified: false,
            tier: Tier::None,
            media_type: String::new(),
            error: shortened(error).to_owned(),
        }
    }

    /// The frame; `body_len` raw bytes are to follow it. Allocates.
    ///
    /// # Errors
    /// [`NativeError::Limit`] and [`NativeError::Record`] for what [`Answer`] says that cannot be.
    pub fn encode(&self) -> Result<Vec<u8>, NativeError> {
        self.check()?;
        let (algorithm, value) = digest_fields(&self.digest);
        let flag = |is_set, flag| if is_set { flag } else { 0 };
        let record = AnswerRecord {
            total: self.total,
            start: self.start,
            len: self.len,
            want: self.want,
            status: self.status,
            tier: self.tier as u8,
            flags: flag(self.verified, VERIFIED) | flag(self.more, MORE),
            algorithm,
            reserved: [0; 7],
            value,
            media_type: bounded(&self.media_type, "the media type", MEDIA_TYPE_BYTES_MAX)?,
            error: shortened(&self.error).into(),
        };
        let archive = rkyv::to_bytes::<rancor::Error>(&record)
            .expect("bytes and numbers are serialized into memory, which cannot fail");
        debug_assert!(archive.len() <= ARCHIVE_BYTES_MAX);
        Ok(frame::encode(FrameKind::Answer, 0, self.body_len, &archive))
    }

    /// Reads an archive, which is aligned, validating every part of it.
    pub(super) fn decode(body_len: u64, archive: &[u8]) -> Result<Self, NativeError> {
        let record = rkyv::from_bytes::<AnswerRecord, rancor::Failure>(archive)
            .map_err(|_| NativeError::Record("the answer does not validate"))?;
        if record.reserved != [0; 7] || record.flags & !(VERIFIED | MORE) != 0 {
            return Err(NativeError::Record("a flag of an answer is not known"));
        }
        let answer = Self {
            want: record.want,
            status: record.status,
            digest: digest_of(record.algorithm, &record.value)?,
            total: record.total,
            start: record.start,
            len: record.len,
            body_len,
            more: record.flags & MORE != 0,
            verified: record.flags & VERIFIED != 0,
            tier: Tier::from_number(record.tier)
                .ok_or(NativeError::Record("the tier of an answer is not known"))?,
            media_type: text(record.media_type, "the media type", MEDIA_TYPE_BYTES_MAX)?,
            error: text(record.error, "the text of an error", ERROR_BYTES_MAX)?,
        };
        answer.check()?;
        Ok(answer)
    }

    fn check(&self) -> Result<(), NativeError> {
        let wrong = |what| Err(NativeError::Record(what));
        if self.want as usize >= WANTS_MAX {
            return wrong("an answer to a want that cannot be");
        }
        if !(200..=599).contains(&self.status) {
            return wrong("a status is not one of HTTP");
        }
        let end = self.start.checked_add(self.len);
        if end.is_none_or(|end| self.total != TOTAL_UNKNOWN && end > self.total) {
            return wrong("a range goes over the end of the content");
        }
        let has_content = matches!(self.status, 200 | 206);
        if self.body_len > self.len || !has_content && (self.body_len > 0 || self.more) {
            return wrong("more bytes follow than were said");
        }
        Ok(())
    }
}
