//! What the head of an answer means for what was asked: the parts that a flight needs, or why the
//! answer is of no use. Pure.

use std::time::SystemTime;

use http::header::{
    CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderName,
    RETRY_AFTER,
};

use crate::content_range::{self, ContentRange};
use crate::error::FetchError;
use crate::fetch::{FetchHead, FetchMethod, FetchRange};
use crate::retry_after;

const DOCKER_CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// The longest media type that is passed on (RFC 6838 allows 127 characters on each side).
const MEDIA_TYPE_BYTES_MAX: usize = 255;

/// Checks the head of an answer to `method`, with `range` when a part was asked for.
///
/// # Errors
/// What the status says, and [`FetchError::Protocol`] for an answer that is not one to this
/// question.
pub fn check(
    method: FetchMethod,
    range: Option<FetchRange>,
    status: u16,
    headers: &HeaderMap,
    now: SystemTime,
) -> Result<FetchHead, FetchError> {
    let retry_after = || text(headers, &RETRY_AFTER).and_then(|v| retry_after::parse(v, now));
    match status {
        200 | 206 => {}
        401 => return Err(FetchError::Unauthorized),
        403 => return Err(FetchError::Denied),
        404 | 410 => return Err(FetchError::NotFound),
        416 if range.is_some() => {
            let total = text(headers, &CONTENT_RANGE).and_then(content_range::parse_unsatisfied);
            return Err(FetchError::RangeNotSatisfiable { total });
        }
        429 => return Err(FetchError::RateLimited { retry_after: retry_after() }),
        408 | 500..=599 => {
            return Err(FetchError::Unavailable { status, retry_after: retry_after() });
        }
        other => return Err(protocol(format!("its status is {other}"))),
    }

    let media_type = media_type(headers);
    if matches!(media_type.as_deref(), Some("text/html" | "application/xhtml+xml")) {
        return Err(protocol(
            "a web page came instead; perhaps there is a login page or a proxy in between",
        ));
    }
    check_encoding(headers)?;
    let declared = content_length(headers)?;
    let (length, range) = if status == 206 {
        let asked = range.ok_or_else(|| protocol("a part came, and the whole was asked for"))?;
        let range = check_range(asked, headers)?;
        if method == FetchMethod::Get && declared.is_some_and(|declared| declared != range.bytes())
        {
            return Err(protocol("Content-Length and Content-Range contradict each other"));
        }
        (Some(range.bytes()), Some(range))
    } else {
        (declared, None)
    };
    let digest = text(headers, &DOCKER_CONTENT_DIGEST).and_then(|value| value.parse().ok());
    Ok(FetchHead { length, range, media_type, digest })
}

fn check_range(asked: FetchRange, headers: &HeaderMap) -> Result<ContentRange, FetchError> {
    let range = text(headers, &CONTENT_RANGE)
        .and_then(ContentRange::parse)
        .ok_or_else(|| protocol("a part came without a readable Content-Range"))?;
    if range.first != asked.first {
        return Err(protocol(format!(
            "a part from byte {} came, and one from byte {} was asked for",
            range.first, asked.first
        )));
    }
    if asked.last.is_some_and(|last| range.last > last) {
        return Err(protocol("a part came that is longer than what was asked for"));
    }
    Ok(range)
}

/// A coding would make the bytes others than those of the digest; we asked for `identity`.
fn check_encoding(headers: &HeaderMap) -> Result<(), FetchError> {
    for value in headers.get_all(CONTENT_ENCODING) {
        let codings = value.to_str().unwrap_or("unreadable").split(',').map(str::trim);
        for coding in codings.filter(|coding| !coding.is_empty()) {
            if !coding.eq_ignore_ascii_case("identity") {
                return Err(protocol("the content came with a Content-Encoding"));
            }
        }
    }
    Ok(())
}

/// The declared length. Several values are only fine when they say the same (RFC 9112, 6.3).
fn content_length(headers: &HeaderMap) -> Result<Option<u64>, FetchError> {
    let mut length = None;
    for value in headers.get_all(CONTENT_LENGTH) {
        let digits = value.as_bytes();
        let number = (!digits.is_empty() && digits.iter().all(u8::is_ascii_digit))
            .then(|| value.to_str().ok()?.parse::<u64>().ok())
            .flatten()
            .ok_or_else(|| protocol("its Content-Length is no number"))?;
        if length.is_some_and(|length| length != number) {
            return Err(protocol("it has two lengths"));
        }
        length = Some(number);
    }
    Ok(length)
}

fn media_type(headers: &HeaderMap) -> Option<String> {
    let value = text(headers, &CONTENT_TYPE)?;
    let essence = value.split(';').next()?.trim().to_ascii_lowercase();
    let right = !essence.is_empty()
        && essence.len() <= MEDIA_TYPE_BYTES_MAX
        && essence.bytes().all(|byte| byte.is_ascii_graphic());
    right.then_some(essence)
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn protocol(reason: impl Into<String>) -> FetchError {
    FetchError::Protocol(reason.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use outrider_artifact::Digest;
    use proptest::prelude::*;
    use std::time::Duration;

    const GET: FetchMethod = FetchMethod::Get;

    fn headers(list: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in list {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    fn look(
        range: Option<FetchRange>,
        status: u16,
        list: &[(&'static str, &str)],
    ) -> Result<FetchHead, FetchError> {
        check(GET, range, status, &headers(list), SystemTime::UNIX_EPOCH)
    }

    fn from(first: u64) -> Option<FetchRange> {
        Some(FetchRange { first, last: None })
    }

    #[test]
    fn a_good_head_is_taken_apart() {
        let digest = Digest::sha256(b"x");
        let head = look(
            None,
            200,
            &[
                ("content-length", "7"),
                ("content-type", "Application/Vnd.OCI.image.manifest.v1+json; charset=utf-8"),
                ("docker-content-digest", &digest.to_string()),
                ("content-encoding", "identity"),
            ],
        )
        .unwrap();
        assert_eq!(head.length, Some(7));
        assert_eq!(head.range, None);
        assert_eq!(head.media_type.as_deref(), Some("application/vnd.oci.image.manifest.v1+json"));
        assert_eq!(head.digest, Some(digest));
    }

    #[test]
    fn a_malformed_digest_is_as_good_as_none() {
        let head = look(None, 200, &[("docker-content-digest", "sha256:xyz")]).unwrap();
        assert_eq!((head.digest, head.length), (None, None));
    }

    #[test]
    fn each_status_has_its_meaning() {
        let error = |status| look(None, status, &[("retry-after", "7")]).unwrap_err();
        let retry_after = Some(Duration::from_secs(7));
        assert_eq!(error(401), FetchError::Unauthorized);
        assert_eq!(error(403), FetchError::Denied);
        assert_eq!(error(404), FetchError::NotFound);
        assert_eq!(error(410), FetchError::NotFound);
        assert_eq!(error(429), FetchError::RateLimited { retry_after });
        for status in [408, 500, 502, 503, 504, 599] {
            assert_eq!(error(status), FetchError::Unavailable { status, retry_after });
        }
        for status in [201, 204, 304, 400, 405, 416, 418, 451, 999] {
            assert!(matches!(error(status), FetchError::Protocol(_)), "{status}");
        }
    }

    #[test]
    fn a_login_page_is_not_content() {
        for page in ["text/html", "Text/HTML; charset=utf-8", "application/xhtml+xml"] {
            let error = look(None, 200, &[("content-type", page)]).unwrap_err();
            assert!(error.to_string().contains("login page"), "{error}");
        }
    }

    #[test]
    fn encoded_content_would_have_another_digest() {
        for coding in ["gzip", "identity, gzip", "br", "zstd"] {
            let error = look(None, 200, &[("content-encoding", coding)]).unwrap_err();
            assert!(matches!(error, FetchError::Protocol(_)), "{coding}");
        }
        assert!(look(None, 200, &[("content-encoding", "")]).is_ok());
    }

    #[test]
    fn a_part_begins_where_it_was_asked_to() {
        let part = |range: &str| look(from(5), 206, &[("content-range", range)]);
        let head = part("bytes 5-9/10").unwrap();
        assert_eq!(head.length, Some(5));
        assert_eq!(head.range, Some(ContentRange { first: 5, last: 9, total: Some(10) }));
        assert!(part("bytes 5-7/10").is_ok(), "less is allowed");
        for wrong in ["bytes 0-9/10", "bytes 4-9/10", "bytes 6-9/10", "5-9", "bytes 9-5/10"] {
            assert!(matches!(part(wrong), Err(FetchError::Protocol(_))), "{wrong}");
        }
        assert!(look(from(5), 206, &[]).is_err());
        assert!(look(from(5), 206, &[("content-type", "multipart/byteranges")]).is_err());
        let bounded = Some(FetchRange { first: 5, last: Some(6) });
        assert!(look(bounded, 206, &[("content-range", "bytes 5-7/10")]).is_err());
        assert!(look(None, 206, &[("content-range", "bytes 0-9/10")]).is_err(), "nobody asked");
    }

    #[test]
    fn a_part_has_the_length_that_its_range_says() {
        let both = |length| {
            look(from(5), 206, &[("content-range", "bytes 5-9/10"), ("content-length", length)])
        };
        assert!(both("5").is_ok());
        assert!(both("6").is_err());
        assert!(both("10").is_err());
    }

    #[test]
    fn the_whole_in_answer_to_a_range_is_reported_as_the_whole() {
        let head = look(from(5), 200, &[("content-length", "10")]).unwrap();
        assert_eq!((head.length, head.range), (Some(10), None));
    }

    #[test]
    fn a_range_behind_the_end_is_an_error_of_its_own() {
        assert_eq!(
            look(from(5), 416, &[("content-range", "bytes */4")]),
            Err(FetchError::RangeNotSatisfiable { total: Some(4) })
        );
        assert_eq!(look(from(5), 416, &[]), Err(FetchError::RangeNotSatisfiable { total: None }));
    }

    #[test]
    fn lengths_that_contradict_each_other_are_refused() {
        assert!(look(None, 200, &[("content-length", "5"), ("content-length", "5")]).is_ok());
        assert!(look(None, 200, &[("content-length", "5"), ("content-length", "6")]).is_err());
        for wrong in ["-1", "+1", "1,1", "x", "99999999999999999999999"] {
            assert!(look(None, 200, &[("content-length", wrong)]).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn no_head_makes_the_check_panic(
            status in 0u16..1000,
            first in any::<u64>(),
            last in proptest::option::of(any::<u64>()),
            values in proptest::collection::vec(
                (0usize..6, proptest::collection::vec(0x20u8..0x7f, 0..40)), 0..8),
        ) {
            let names = ["content-length", "content-range", "content-type", "content-encoding",
                "retry-after", "docker-content-digest"];
            let mut headers = HeaderMap::new();
            for (name, value) in values {
                headers.append(names[name], HeaderValue::from_bytes(&value).unwrap());
            }
            for range in [None, Some(FetchRange { first, last })] {
                let _ = check(GET, range, status, &headers, SystemTime::UNIX_EPOCH);
            }
        }
    }
}
