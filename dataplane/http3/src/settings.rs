//! SETTINGS (RFC 9114 section 7.2.4), and what an end of a connection writes first.

use bytes::Bytes;

use crate::error::{Code, ConnectionError};
use crate::frame::{FrameHead, kind};
use crate::varint;

const QPACK_MAX_TABLE_CAPACITY: u64 = 0x01;
const MAX_FIELD_SECTION_SIZE: u64 = 0x06;
const QPACK_BLOCKED_STREAMS: u64 = 0x07;
const ENABLE_CONNECT_PROTOCOL: u64 = 0x08;
const H3_DATAGRAM: u64 = 0x33;

/// Settings in a frame, at most.
const SETTINGS_MAX: usize = 64;

/// The type of a control stream.
pub(crate) const CONTROL_STREAM: u64 = 0x00;

/// What the peer has set, as far as it matters here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Largest field section that the peer wants to get, counted as in [`Limits`](crate::Limits).
    pub field_section_bytes_max: Option<u64>,
}

impl Settings {
    /// Reads the payload of a SETTINGS frame.
    pub(crate) fn parse(mut payload: &[u8]) -> Result<Self, ConnectionError> {
        let mut settings = Self::default();
        let mut seen = [0; SETTINGS_MAX];
        let mut count = 0;
        while !payload.is_empty() {
            let (id, value) = pair(&mut payload).ok_or(ConnectionError::new(
                Code::H3_FRAME_ERROR,
                "SETTINGS ends inside of a setting",
            ))?;
            let Some(slot) = seen.get_mut(count) else {
                return Err(ConnectionError::new(Code::H3_EXCESSIVE_LOAD, "too many settings"));
            };
            *slot = id;
            let wrong = match id {
                0x00 | 0x02..=0x05 => Some("a setting of HTTP/2"),
                ENABLE_CONNECT_PROTOCOL | H3_DATAGRAM if value > 1 => {
                    Some("a setting that is yes or no has another value")
                }
                _ if seen[..count].contains(&id) => Some("a setting stands twice"),
                _ => None,
            };
            if let Some(reason) = wrong {
                return Err(ConnectionError::new(Code::H3_SETTINGS_ERROR, reason));
            }
            if id == MAX_FIELD_SECTION_SIZE {
                settings.field_section_bytes_max = Some(value);
            }
            count += 1;
        }
        Ok(settings)
    }
}

fn pair(bytes: &mut &[u8]) -> Option<(u64, u64)> {
    let (id, first) = varint::get(bytes)?;
    let (value, second) = varint::get(&bytes[first..])?;
    *bytes = &bytes[first + second..];
    Some((id, value))
}

/// The first bytes of a control stream: its type and SETTINGS.
pub(crate) fn preface(field_section_bytes_max: u64) -> Bytes {
    let mut payload = Vec::with_capacity(16);
    let settings = [
        (QPACK_MAX_TABLE_CAPACITY, 0),
        (QPACK_BLOCKED_STREAMS, 0),
        (MAX_FIELD_SECTION_SIZE, field_section_bytes_max),
    ];
    for (id, value) in settings {
        varint::put(&mut payload, id);
        varint::put(&mut payload, value);
    }
    let mut bytes = Vec::with_capacity(32);
    varint::put(&mut bytes, CONTROL_STREAM);
    FrameHead { kind: kind::SETTINGS, len: payload.len() as u64 }.put(&mut bytes);
    bytes.extend_from_slice(&payload);
    Bytes::from(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_are_read_again() {
        let bytes = preface(16 << 10);
        let (head, len) = FrameHead::get(&bytes[1..]).unwrap();
        assert_eq!((bytes[0], head.kind), (0, kind::SETTINGS));
        assert_eq!(bytes.len() as u64, 1 + len as u64 + head.len);
        let settings = Settings::parse(&bytes[1 + len..]).unwrap();
        assert_eq!(settings.field_section_bytes_max, Some(16 << 10));
    }

    #[test]
    fn wrong_ones_are_refused() {
        let code = |bytes: &[u8]| Settings::parse(bytes).unwrap_err().code;
        assert_eq!(code(&[6]), Code::H3_FRAME_ERROR);
        assert_eq!(code(&[6, 0x40]), Code::H3_FRAME_ERROR);
        assert_eq!(code(&[2, 0]), Code::H3_SETTINGS_ERROR);
        assert_eq!(code(&[6, 1, 7, 0, 6, 1]), Code::H3_SETTINGS_ERROR);
        assert_eq!(code(&[0x33, 2]), Code::H3_SETTINGS_ERROR);
        let many: Vec<u8> = (0..65_u8).flat_map(|id| [0x40 | id >> 6, id + 0x50, 0]).collect();
        assert_eq!(code(&many), Code::H3_EXCESSIVE_LOAD);
        // Grease is not.
        assert_eq!(Settings::parse(&[0x21, 5, 0x40, 0x40, 1]), Ok(Settings::default()));
    }
}
