//! The plain header before every record, and the frame that refuses.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::{
    ARCHIVE_BYTES_MAX, CREDENTIAL_BYTES_MAX, ERROR_BYTES_MAX, NATIVE_VERSION, NativeError,
    REQUEST_ARCHIVE_BYTES_MAX, shortened,
};

/// The first bytes of every frame.
pub const MAGIC: [u8; 4] = *b"OUTR";
/// Bytes of the header.
pub const FRAME_HEAD_BYTES: usize = 32;
/// Of these the checksum is the last.
const CHECKSUM_AT: usize = 24;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// A [`super::Request`].
    Request = 1,
    /// A [`super::Answer`].
    Answer = 2,
    /// A [`Refusal`]: its archive is text, in every version.
    Refusal = 3,
    /// A token, before the request that it is for: its archive is text.
    Credential = 4,
}

/// The header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrameHead {
    pub(super) kind: FrameKind,
    pub(super) archive_len: usize,
    /// Of a refusal, else 0.
    pub(super) code: u32,
    /// Raw bytes behind an answer's archive, else 0.
    pub(super) body_len: u64,
    pub(super) checksum: u64,
    /// The hash of all before the checksum.
    seed: u64,
}

impl FrameHead {
    pub(super) fn parse(bytes: &[u8; FRAME_HEAD_BYTES]) -> Result<Self, NativeError> {
        let u32_at = |at| u32::from_le_bytes(array(bytes, at));
        let u64_at = |at| u64::from_le_bytes(array(bytes, at));
        if array::<4>(bytes, 0) != MAGIC {
            return Err(NativeError::Magic);
        }
        let found = u16::from_le_bytes(array(bytes, 4));
        let kind = match bytes[6] {
            // The same in every version, so that other versions can be told so.
            3 => FrameKind::Refusal,
            _ if found != NATIVE_VERSION => return Err(NativeError::Version { found }),
            1 => FrameKind::Request,
            2 => FrameKind::Answer,
            4 => FrameKind::Credential,
            found => return Err(NativeError::Kind { found }),
        };
        let head = Self {
            kind,
            archive_len: u32_at(8) as usize,
            code: u32_at(12),
            body_len: u64_at(16),
            checksum: u64_at(CHECKSUM_AT),
            seed: xxh3_64(&bytes[..CHECKSUM_AT]),
        };
        let (what, max) = match kind {
            FrameKind::Refusal => ("the text of a refusal", ERROR_BYTES_MAX),
            FrameKind::Request => ("the record of a request", REQUEST_ARCHIVE_BYTES_MAX),
            FrameKind::Answer => ("the record of a frame", ARCHIVE_BYTES_MAX),
            FrameKind::Credential => ("the token", CREDENTIAL_BYTES_MAX),
        };
        if head.archive_len > max {
            return Err(NativeError::Limit { what, max });
        }
        if bytes[7] != 0
            || (kind == FrameKind::Refusal) != (head.code != 0)
            || (kind != FrameKind::Answer && head.body_len != 0)
        {
            return Err(NativeError::Record("a field of the header is not 0"));
        }
        Ok(head)
    }

    pub(super) fn check(&self, archive: &[u8]) -> Result<(), NativeError> {
        if xxh3_64_with_seed(archive, self.seed) == self.checksum {
            Ok(())
        } else {
            Err(NativeError::Checksum)
        }
    }
}

/// A header and what stands behind it.
pub(super) fn encode(kind: FrameKind, code: u32, body_len: u64, archive: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(FRAME_HEAD_BYTES + archive.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&NATIVE_VERSION.to_le_bytes());
    bytes.extend_from_slice(&[kind as u8, 0]);
    // At most `ARCHIVE_BYTES_MAX`.
    bytes.extend_from_slice(&(archive.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&code.to_le_bytes());
    bytes.extend_from_slice(&body_len.to_le_bytes());
    let checksum = xxh3_64_with_seed(archive, xxh3_64(&bytes));
    bytes.extend_from_slice(&checksum.to_le_bytes());
    bytes.extend_from_slice(archive);
    bytes
}

fn array<const N: usize>(bytes: &[u8; FRAME_HEAD_BYTES], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}

/// The frame of a token, which goes before the request that it is for. Allocates.
///
/// # Errors
/// [`NativeError::Limit`] and [`NativeError::Record`] for what is no token.
pub fn encode_credential(token: &str) -> Result<Vec<u8>, NativeError> {
    let token = checked_credential(super::bounded(token, "the token", CREDENTIAL_BYTES_MAX)?)?;
    Ok(encode(FrameKind::Credential, 0, 0, token.as_bytes()))
}

/// A token is of characters that are seen.
pub(super) fn checked_credential(bytes: Vec<u8>) -> Result<String, NativeError> {
    let token = super::text(bytes, "the token", CREDENTIAL_BYTES_MAX)?;
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(NativeError::Record("the token is empty, or has spaces in it"));
    }
    Ok(token)
}

/// The code with which a stream is reset whose content turned out to be wrong.
pub const CONTENT_WRONG: u32 = 16;
/// The code with which a stream is reset whose content could not be brought in to its end.
pub const SOURCE_BROKE: u32 = 17;

/// Why a request is not answered at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RefusalCode(pub u32);

impl RefusalCode {
    /// Another version of the protocol: the frame's own version says which one is spoken here.
    pub const VERSION: Self = Self(1);
    /// Not a frame, or of another kind.
    pub const FRAME: Self = Self(2);
    /// The checksum is wrong.
    pub const CHECKSUM: Self = Self(3);
    /// The record does not validate.
    pub const RECORD: Self = Self(4);
    /// Something is larger or more than is allowed.
    pub const LIMIT: Self = Self(5);
    /// Too much is going on here. Ask again later.
    pub const BUSY: Self = Self(6);
    /// This server goes away. Ask another.
    pub const GOING_AWAY: Self = Self(7);
    /// A fault of this server.
    pub const INTERNAL: Self = Self(8);
    /// The customer, or the region, is not what the connection is for.
    pub const FORBIDDEN: Self = Self(9);
}

/// The frame that is sent in place of all answers. Nothing follows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Never 0.
    pub code: RefusalCode,
    /// For people, at most [`ERROR_BYTES_MAX`]. The rest is cut off.
    pub text: String,
}

impl Refusal {
    /// The frame. Allocates.
    pub fn encode(&self) -> Vec<u8> {
        // 0 is not a code; what has none is a fault of our own.
        let code = if self.code.0 == 0 { RefusalCode::INTERNAL } else { self.code };
        encode(FrameKind::Refusal, code.0, 0, shortened(&self.text).as_bytes())
    }

    pub(super) fn decode(head: &FrameHead, archive: &[u8]) -> Result<Self, NativeError> {
        let text = super::text(archive.into(), "the text of a refusal", ERROR_BYTES_MAX)?;
        Ok(Self { code: RefusalCode(head.code), text })
    }
}
