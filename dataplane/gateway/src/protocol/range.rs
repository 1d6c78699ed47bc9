//! Ranges of bytes: `Range` of a download (RFC 9110, section 14), `Content-Range` of an upload (OCI
//! distribution specification 1.1, "Pushing a blob in chunks"), and the headers of their answers.

use http::HeaderValue;

use super::error::{ApiError, Code};

/// The longest range header that is read, in bytes. A single range needs 47; what is longer names
/// several, which are not served.
pub const RANGE_BYTES_MAX: usize = 128;

/// Bytes `first` to `last`, both within: never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRange {
    /// The first byte.
    pub first: u64,
    /// The last byte, not before `first`.
    pub last: u64,
}

impl ByteRange {
    /// How many bytes, at least one.
    #[expect(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> u64 {
        self.last - self.first + 1
    }
}

/// What a `Range` header asks for, before the length of the content is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestedRange {
    /// `bytes=FIRST-`, `bytes=FIRST-LAST` with `FIRST <= LAST`.
    From {
        /// The first byte.
        first: u64,
        /// The last one, or the end.
        last: Option<u64>,
    },
    /// `bytes=-LENGTH`: the end of it.
    Suffix {
        /// How many bytes from the end.
        length: u64,
    },
    /// `bytes=FIRST-LAST` with `LAST < FIRST`: refused rather than ignored, as RFC 9110 section 14.2
    /// allows, since the client would not expect the whole.
    Backwards,
}

/// What is to be answered once the length is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResolvedRange {
    /// 200 with everything.
    Whole,
    /// 206 with a part.
    Part(ByteRange),
    /// 416.
    Unsatisfiable,
}

/// Reads a `Range` header. `None` means that the whole is to be answered: another unit, several
/// ranges and malformed ones are ignored, as RFC 9110 section 14.2 allows.
pub fn parse_range(header: &HeaderValue) -> Option<RequestedRange> {
    if header.len() > RANGE_BYTES_MAX {
        return None;
    }
    let (unit, set) = header.to_str().ok()?.split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    // Empty elements of a list are to be ignored (RFC 9110, section 5.6.1.2).
    let mut specs =
        set.split(',').map(|spec| spec.trim_matches([' ', '\t'])).filter(|s| !s.is_empty());
    let spec = specs.next()?;
    if specs.next().is_some() {
        return None;
    }
    match spec.split_once('-')? {
        ("", length) => Some(RequestedRange::Suffix { length: number(length)? }),
        (first, "") => Some(RequestedRange::From { first: number(first)?, last: None }),
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            if last < first {
                return Some(RequestedRange::Backwards);
            }
            Some(RequestedRange::From { first, last: Some(last) })
        }
    }
}

/// Decimal digits. What is beyond 64 bits is well-formed, and beyond every content: the largest.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

impl RequestedRange {
    /// What to answer for content of this length. Ranges of empty content that begin at its start
    /// are answered with all of it, since a 206 cannot name an empty range.
    pub fn resolve(self, size: u64) -> ResolvedRange {
        match self {
            Self::Backwards | Self::Suffix { length: 0 } => ResolvedRange::Unsatisfiable,
            Self::Suffix { .. } | Self::From { first: 0, .. } if size == 0 => ResolvedRange::Whole,
            Self::Suffix { length } => ResolvedRange::Part(ByteRange {
                first: size.saturating_sub(length),
                last: size - 1,
            }),
            Self::From { first, .. } if first >= size => ResolvedRange::Unsatisfiable,
            Self::From { first, last } => ResolvedRange::Part(ByteRange {
                first,
                last: last.map_or(size - 1, |last| last.min(size - 1)),
            }),
        }
    }
}

/// `Content-Range` of a 206. `size` is none while the length is not known.
pub fn content_range(range: ByteRange, size: Option<u64>) -> HeaderValue {
    let ByteRange { first, last } = range;
    header(match size {
        Some(size) => format!("bytes {first}-{last}/{size}"),
        None => format!("bytes {first}-{last}/*"),
    })
}

/// The answer to a range that is outside of content of this length: 416 with the length.
pub fn unsatisfiable(size: u64) -> ApiError {
    let message = format!("the range is outside of the content, which has {size} bytes");
    ApiError::new(Code::RangeInvalid, message)
        .with_header(http::header::CONTENT_RANGE, header(format!("bytes */{size}")))
}

/// Reads the `Content-Range` of a chunk that is uploaded: `START-END`, both within, as the
/// specification has it, or HTTP's own `bytes START-END/…`. `None` where there is no header: the
/// chunk goes on where the last one ended.
///
/// # Errors
/// 400 `BLOB_UPLOAD_INVALID` for anything else.
pub fn parse_upload_range(header: Option<&HeaderValue>) -> Result<Option<ByteRange>, ApiError> {
    let Some(header) = header else { return Ok(None) };
    let range = (header.len() <= RANGE_BYTES_MAX)
        .then(|| header.to_str().ok())
        .flatten()
        .and_then(upload_range)
        .ok_or_else(|| {
            ApiError::new(
                Code::BlobUploadInvalid,
                "the Content-Range of a chunk is START-END in bytes, both within, START first",
            )
        })?;
    Ok(Some(range))
}

fn upload_range(text: &str) -> Option<ByteRange> {
    let text = text.trim();
    let range = match text.split_once(' ') {
        Some((unit, rest)) if unit.eq_ignore_ascii_case("bytes") => {
            let (range, total) = rest.trim_start().split_once('/')?;
            if total != "*" {
                exact(total)?;
            }
            range
        }
        Some(_) => return None,
        None => text,
    };
    let (first, last) = range.split_once('-')?;
    let (first, last) = (exact(first)?, exact(last)?);
    // The length of the chunk must be a number too.
    (first <= last && last - first < u64::MAX).then_some(ByteRange { first, last })
}

/// Decimal digits of a number of 64 bits.
fn exact(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

/// `Range` of the answer to a chunk: what is here, `0-END`. Nothing yet is `0-0`, as clients know it
/// from the reference implementation, though it would also be one byte.
pub fn upload_range_answer(received_bytes: u64) -> HeaderValue {
    header(format!("0-{}", received_bytes.saturating_sub(1)))
}

/// The answer to a chunk that does not begin where the last one ended: 416 with what is here, so
/// that the client can go on from there.
pub fn out_of_order(received_bytes: u64, range: ByteRange) -> ApiError {
    let message = format!(
        "the chunk begins at byte {}, and the upload goes on at byte {received_bytes}; ask for its \
         state with GET and go on from there",
        range.first
    );
    ApiError::new(Code::RangeInvalid, message)
        .with_header(http::header::RANGE, upload_range_answer(received_bytes))
}

fn header(text: String) -> HeaderValue {
    HeaderValue::try_from(text).expect("digits and a few signs are a header's value")
}

#[cfg(test)]
mod tests {
    use super::RequestedRange::{Backwards, From, Suffix};
    use super::*;
    use proptest::prelude::*;

    fn parsed(text: &str) -> Option<RequestedRange> {
        parse_range(&HeaderValue::from_str(text).unwrap())
    }

    #[test]
    fn a_single_range_of_bytes_is_read() {
        for (text, range) in [
            ("bytes=0-0", From { first: 0, last: Some(0) }),
            ("bytes=5-9", From { first: 5, last: Some(9) }),
            ("bytes=5-", From { first: 5, last: None }),
            ("bytes=-5", Suffix { length: 5 }),
            ("Bytes=5-9", From { first: 5, last: Some(9) }),
            ("bytes= 5-9 ", From { first: 5, last: Some(9) }),
            ("bytes=,5-9,", From { first: 5, last: Some(9) }),
            ("bytes=9-5", Backwards),
            ("bytes=007-9", From { first: 7, last: Some(9) }),
            ("bytes=0-99999999999999999999999", From { first: 0, last: Some(u64::MAX) }),
            ("bytes=99999999999999999999999-", From { first: u64::MAX, last: None }),
        ] {
            assert_eq!(parsed(text), Some(range), "{text}");
        }
    }

    #[test]
    fn other_ranges_are_ignored() {
        for text in [
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=a-b",
            "bytes=5",
            "bytes=0-1,3-4",
            "bytes=--5",
            "bytes=+5-9",
            "bytes=5-9-12",
            "bytes=5 - 9",
            "bytes=0x5-9",
            "items=0-5",
            "",
            "=0-5",
            "bytes:0-5",
        ] {
            assert_eq!(parsed(text), None, "{text}");
        }
        assert_eq!(parsed(&format!("bytes={}-", "0".repeat(RANGE_BYTES_MAX))), None);
        assert_eq!(parse_range(&HeaderValue::from_bytes(b"bytes=0-\xff").unwrap()), None);
    }

    #[test]
    fn a_range_is_resolved_against_the_length() {
        use ResolvedRange::{Part, Unsatisfiable, Whole};
        let part = |first, last| Part(ByteRange { first, last });
        for (range, size, answer) in [
            ("bytes=500-1499", 2048, part(500, 1499)),
            ("bytes=500-", 2048, part(500, 2047)),
            ("bytes=-500", 2048, part(1548, 2047)),
            ("bytes=-5000", 2048, part(0, 2047)),
            ("bytes=2000-5000", 2048, part(2000, 2047)),
            ("bytes=0-", 1, part(0, 0)),
            ("bytes=500-0", 2048, Unsatisfiable),
            ("bytes=5000-10000", 2048, Unsatisfiable),
            ("bytes=2048-", 2048, Unsatisfiable),
            ("bytes=-0", 2048, Unsatisfiable),
            ("bytes=0-", 0, Whole),
            ("bytes=-5", 0, Whole),
            ("bytes=1-", 0, Unsatisfiable),
            ("bytes=99999999999999999999999-", u64::MAX, Unsatisfiable),
        ] {
            assert_eq!(parsed(range).unwrap().resolve(size), answer, "{range} of {size}");
        }
    }

    #[test]
    fn answers_name_the_part_and_the_whole() {
        let range = ByteRange { first: 5, last: 9 };
        assert_eq!(range.len(), 5);
        assert_eq!(content_range(range, Some(10)), "bytes 5-9/10");
        assert_eq!(content_range(range, None), "bytes 5-9/*");
        let error = unsatisfiable(10);
        assert_eq!(error.status(), 416);
        assert_eq!(error.headers()["content-range"], "bytes */10");
    }

    #[test]
    fn a_chunk_says_where_it_belongs() {
        for text in ["0-21", "bytes 0-21/*", "bytes 0-21/42", "Bytes 0-21/*", " 0-21 "] {
            let header = HeaderValue::from_str(text).unwrap();
            let range = parse_upload_range(Some(&header)).unwrap();
            assert_eq!(range, Some(ByteRange { first: 0, last: 21 }), "{text}");
        }
        assert_eq!(parse_upload_range(None).unwrap(), None);
        for text in [
            "",
            "21-0",
            "0-",
            "-5",
            "a-b",
            "0-21/42",
            "bytes 0-21",
            "bytes=0-21",
            "items 0-21/*",
            "0-21,22-30",
            "0-99999999999999999999999",
            "0-18446744073709551615",
            "bytes */42",
        ] {
            let header = HeaderValue::from_str(text).unwrap();
            let error = parse_upload_range(Some(&header)).unwrap_err();
            assert_eq!(
                (error.status().as_u16(), error.code()),
                (400, Code::BlobUploadInvalid),
                "{text}"
            );
        }
    }

    #[test]
    fn the_state_of_an_upload_is_a_range_from_zero() {
        assert_eq!(upload_range_answer(0), "0-0");
        assert_eq!(upload_range_answer(22), "0-21");
        let error = out_of_order(22, ByteRange { first: 0, last: 21 });
        assert_eq!(error.status(), 416);
        assert_eq!(error.headers()["range"], "0-21");
    }

    proptest! {
        #[test]
        fn any_header_is_a_range_within_the_content_or_none(
            text in "(bytes=)?[0-9, -]{0,40}", size in 0u64..1000,
        ) {
            if let Some(ResolvedRange::Part(range)) = parsed(&text).map(|range| range.resolve(size)) {
                prop_assert!(range.first <= range.last && range.last < size);
            }
        }

        #[test]
        fn no_header_makes_a_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(header) = HeaderValue::from_bytes(&bytes) {
                let _ = parse_range(&header);
                if let Ok(Some(range)) = parse_upload_range(Some(&header)) {
                    let _ = range.len();
                }
            }
        }
    }
}
