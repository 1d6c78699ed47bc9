//! A want as the request of HTTP that asks for the same, and the head of its answer as a record. Pure.

use http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderValue, RANGE,
};
use http::{HeaderMap, HeaderName, Method, StatusCode, Uri, request, response};
use outrider_artifact::RepositoryName;
use outrider_artifact::native::{
    Answer, MEDIA_TYPE_BYTES_MAX, NativeError, Request, TOTAL_UNKNOWN, Tier, Want, WantKind,
};

use crate::server::{ErrorText, Keep};

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
const ONLY_IF_CACHED: HeaderValue = HeaderValue::from_static("only-if-cached");

/// Whether the names of a request are names: they become parts of a path.
///
/// # Errors
/// [`NativeError::Record`].
pub(super) fn check(request: &Request) -> Result<(), NativeError> {
    let repository = &request.repository;
    if !repository.is_empty() && repository.parse::<RepositoryName>().is_err() {
        return Err(NativeError::Record("the repository is not a name"));
    }
    let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte);
    if !request.upstream.bytes().all(is_host) {
        return Err(NativeError::Record("the upstream is not the name of one"));
    }
    if repository.is_empty() && request.wants.iter().any(|want| want.keep) {
        return Err(NativeError::Record("what is to be kept has no repository"));
    }
    Ok(())
}

/// A token as HTTP has it. It has characters alone that are seen.
pub(super) fn bearer(token: &str) -> HeaderValue {
    let mut value = HeaderValue::try_from(format!("Bearer {token}"))
        .expect("what is seen in ASCII is a header's value");
    value.set_sensitive(true);
    value
}

/// The request of HTTP for one want of a request that was checked. Allocates.
pub(super) fn head(
    request: &Request,
    want: &Want,
    credential: Option<&HeaderValue>,
) -> request::Parts {
    let digest = &want.digest;
    let path = match (&*request.repository, want.kind) {
        ("", _) => format!("/layer/request?digest={digest}"),
        (name, WantKind::Blob) => format!("/v2/{name}/blobs/{digest}{}", ns(&request.upstream)),
        (name, WantKind::Manifest) => {
            format!("/v2/{name}/manifests/{digest}{}", ns(&request.upstream))
        }
    };
    let (mut parts, ()) = http::Request::new(()).into_parts();
    parts.uri = Uri::try_from(path).expect("names, digests and encoded hosts make a path");
    parts.version = http::Version::HTTP_3;
    if want.metadata_only {
        parts.method = Method::HEAD;
    }
    if want.keep {
        // No request of HTTP can bring this: it is told by the extension, not by the method.
        parts.method = Method::PUT;
        parts.extensions.insert(Keep);
    }
    if want.offset > 0 || want.len.is_some() {
        let first = want.offset;
        // The codec has seen that the end is a number, and the length not 0.
        let last = want.len.map_or_else(String::new, |len| (first + (len - 1)).to_string());
        let range = HeaderValue::try_from(format!("bytes={first}-{last}"));
        parts.headers.insert(RANGE, range.expect("digits are a header's value"));
    }
    if let Some(credential) = credential {
        parts.headers.insert(AUTHORIZATION, credential.clone());
    }
    if want.held_only {
        parts.headers.insert(CACHE_CONTROL, ONLY_IF_CACHED);
    }
    parts
}

fn ns(upstream: &str) -> String {
    if upstream.is_empty() {
        return String::new();
    }
    // Brackets stand around addresses, and nothing else here needs to be encoded.
    format!("?ns={}", upstream.replace('[', "%5B").replace(']', "%5D"))
}

/// The record of an answer with this head. `length`: of its body, if that is known. The record announces
/// all of it, or nothing if only metadata was asked for.
pub(super) fn answer(
    index: u32,
    want: &Want,
    head: &response::Parts,
    length: Option<u64>,
) -> Answer {
    let headers = &head.headers;
    let status = match head.status {
        StatusCode::GATEWAY_TIMEOUT if want.held_only => StatusCode::NOT_FOUND,
        status => status,
    };
    // Where only metadata was asked for, the body says nothing.
    let body = length.filter(|_| !want.metadata_only);
    let declared = number(headers, &CONTENT_LENGTH).or(body);
    let (total, start, len) = match status {
        StatusCode::OK => (declared.unwrap_or(TOTAL_UNKNOWN), 0, declared.unwrap_or(0)),
        StatusCode::PARTIAL_CONTENT => match content_range(headers) {
            Some((first, last, total)) => (total.unwrap_or(TOTAL_UNKNOWN), first, last - first + 1),
            None => return fault(index, want),
        },
        _ => {
            let text = head.extensions.get::<ErrorText>();
            let text = text.map_or_else(|| status.canonical_reason().unwrap_or(""), |text| &text.0);
            let mut answer = Answer::error(index, want.digest, status.as_u16(), text);
            if status == StatusCode::RANGE_NOT_SATISFIABLE {
                answer.total = total_behind(headers).unwrap_or(TOTAL_UNKNOWN);
            }
            return answer;
        }
    };
    let (tier, verified) = standing(headers);
    let answer = Answer {
        want: index,
        status: status.as_u16(),
        digest: want.digest,
        total,
        start,
        len,
        body_len: if want.metadata_only { 0 } else { len },
        more: false,
        verified,
        tier,
        media_type: media_type(headers),
        error: String::new(),
    };
    // What is sent behind the record is what it announces.
    let is_right = want.metadata_only || length.is_none_or(|length| length == len);
    if is_right { answer } else { fault(index, want) }
}

/// The record of an answer that cannot be given, though it should be.
pub(super) fn fault(index: u32, want: &Want) -> Answer {
    let text = "the content could not be brought in";
    Answer::error(index, want.digest, StatusCode::BAD_GATEWAY.as_u16(), text)
}

/// Where the content is, and whether it was verified, by `Cache-Status` (RFC 9211).
fn standing(headers: &HeaderMap) -> (Tier, bool) {
    let Some(Ok(text)) = headers.get(CACHE_STATUS).map(HeaderValue::to_str) else {
        return (Tier::None, false);
    };
    let (mut tier, mut verified) = (Tier::None, false);
    for parameter in text.split(';').map(str::trim) {
        match parameter {
            "detail=ram" => tier = Tier::Ram,
            "detail=ssd" => tier = Tier::Ssd,
            "detail=hdd" => tier = Tier::Hdd,
            "verified=?1" => verified = true,
            _ if parameter.starts_with("fwd=") => tier = Tier::Origin,
            _ => {}
        }
    }
    (tier, verified)
}

fn media_type(headers: &HeaderMap) -> String {
    let text = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    // A longer one says nothing that a client could use.
    if text.len() > MEDIA_TYPE_BYTES_MAX { String::new() } else { text.to_owned() }
}

fn number(headers: &HeaderMap, name: &HeaderName) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.parse().ok()
}

/// `bytes FIRST-LAST/TOTAL`, or `*` for the total.
fn content_range(headers: &HeaderMap) -> Option<(u64, u64, Option<u64>)> {
    let text = headers.get(CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")?;
    let (range, total) = text.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    let total = if total == "*" { None } else { Some(total.parse().ok()?) };
    let is_within = first <= last && total.is_none_or(|total| last < total);
    is_within.then_some((first, last, total))
}

/// `bytes */TOTAL`
fn total_behind(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes */")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use outrider_artifact::Digest;

    use super::*;

    fn request(repository: &str, upstream: &str) -> Request {
        let (repository, upstream) = (repository.to_owned(), upstream.to_owned());
        Request { repository, upstream, ..Request::default() }
    }

    fn response(status: u16, headers: &[(&'static str, &str)]) -> response::Parts {
        let mut response = http::Response::new(());
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        for (name, value) in headers {
            response.headers_mut().insert(*name, HeaderValue::from_str(value).unwrap());
        }
        response.into_parts().0
    }

    #[test]
    fn a_want_is_what_http_would_ask() {
        let digest = Digest::sha256(b"x");
        let blob = Want::whole(digest);
        let manifest =
            Want { kind: WantKind::Manifest, metadata_only: true, held_only: true, ..blob.clone() };
        let part = Want { offset: 5, len: Some(10), ..blob.clone() };
        let rest = Want { offset: 5, len: None, ..blob.clone() };
        let first = Want { offset: 0, len: Some(1), ..blob.clone() };
        let own = request("team/app", "");
        for (request, want, method, path, range, cached) in [
            (&own, &blob, "GET", format!("/v2/team/app/blobs/{digest}"), None, false),
            (&own, &manifest, "HEAD", format!("/v2/team/app/manifests/{digest}"), None, true),
            (&own, &part, "GET", format!("/v2/team/app/blobs/{digest}"), Some("bytes=5-14"), false),
            (&own, &rest, "GET", format!("/v2/team/app/blobs/{digest}"), Some("bytes=5-"), false),
            (&own, &first, "GET", format!("/v2/team/app/blobs/{digest}"), Some("bytes=0-0"), false),
            (
                &request("team/app", "[::1]:5000"),
                &blob,
                "GET",
                format!("/v2/team/app/blobs/{digest}?ns=%5B::1%5D:5000"),
                None,
                false,
            ),
            (
                &request("", "docker.io"),
                &blob,
                "GET",
                format!("/layer/request?digest={digest}"),
                None,
                false,
            ),
        ] {
            check(request).unwrap();
            let head = head(request, want, Some(&bearer("t.o.k")));
            assert_eq!(head.headers[AUTHORIZATION], "Bearer t.o.k");
            assert_eq!((head.method.as_str(), head.uri.to_string()), (method, path));
            let found = head.headers.get(RANGE).map(|value| value.to_str().unwrap().to_owned());
            assert_eq!(found.as_deref(), range);
            assert_eq!(head.headers.contains_key(CACHE_CONTROL), cached);
        }
    }

    #[test]
    fn what_is_to_be_kept_is_a_put_that_http_cannot_make() {
        let keep = Want {
            kind: WantKind::Manifest,
            metadata_only: true,
            keep: true,
            ..Want::whole(Digest::sha256(b"x"))
        };
        let own = Request { wants: vec![keep.clone()], ..request("team/app", "") };
        check(&own).unwrap();
        let head = head(&own, &keep, None);
        assert_eq!((head.method, head.extensions.get()), (Method::PUT, Some(&Keep)));
        assert!(check(&Request { wants: vec![keep.clone()], ..request("", "") }).is_err());
        // It is under way: no error, and no content.
        let found = answer(0, &keep, &response(202, &[]), Some(0));
        assert_eq!((found.status, found.body_len), (202, 0));
        found.encode().unwrap();
        let found = answer(0, &keep, &response(200, &[("content-length", "10")]), Some(0));
        assert_eq!((found.status, found.total, found.body_len), (200, 10, 0));
    }

    #[test]
    fn names_that_would_be_another_path_are_refused() {
        for (repository, upstream) in [
            ("a/../b", ""),
            ("a?x=y", ""),
            ("A", ""),
            ("a/", ""),
            ("a b", ""),
            ("a%2fb", ""),
            ("a", "b&c=d"),
            ("a", "b/c"),
            ("a", "b#c"),
            ("a", "ü"),
        ] {
            assert!(check(&request(repository, upstream)).is_err(), "{repository} {upstream}");
        }
        // The longest digest and names still make a path.
        let long = format!("a{}", "/b".repeat(127));
        let request = request(&long, &"[".repeat(255));
        check(&request).unwrap();
        let head = head(&request, &Want::whole(Digest::sha256(b"x")), None);
        assert!(!head.headers.contains_key(AUTHORIZATION));
    }

    #[test]
    fn a_head_becomes_the_record_that_says_the_same() {
        let digest = Digest::sha256(b"x");
        let want = Want::whole(digest);
        let hit = ("cache-status", "outrider; hit; detail=ssd; verified=?1");
        let head = response(200, &[("content-length", "10"), ("content-type", "a/b"), hit]);
        let found = answer(3, &want, &head, Some(10));
        assert_eq!((found.want, found.status, found.total), (3, 200, 10));
        assert_eq!((found.start, found.len, found.body_len, found.more), (0, 10, 10, false));
        assert_eq!((found.tier, found.verified, &*found.media_type), (Tier::Ssd, true, "a/b"));
        let metadata = Want { metadata_only: true, ..want.clone() };
        let found = answer(0, &metadata, &head, Some(0));
        assert_eq!((found.total, found.len, found.body_len), (10, 10, 0));

        let miss = ("cache-status", "outrider; fwd=uri-miss; fwd-status=200; verified=?0");
        let head = response(206, &[("content-range", "bytes 5-9/100"), miss]);
        let found = answer(0, &want, &head, Some(5));
        assert_eq!((found.status, found.total, found.start, found.len), (206, 100, 5, 5));
        assert_eq!((found.tier, found.verified), (Tier::Origin, false));

        let head = response(200, &[]);
        let found = answer(0, &want, &head, None);
        assert_eq!((found.total, found.len), (TOTAL_UNKNOWN, 0));
        let found = answer(0, &metadata, &head, Some(0));
        assert_eq!((found.total, found.len), (TOTAL_UNKNOWN, 0));
        // What was announced and what would be sent differ.
        for (headers, length) in [
            (vec![("content-range", "bytes 5-9/100")], 6),
            (vec![("content-range", "bytes 9-5/100")], 5),
            (vec![("content-range", "bytes 5-9/7")], 5),
            (vec![], 5),
        ] {
            assert_eq!(answer(0, &want, &response(206, &headers), Some(length)).status, 502);
        }
        for head in [response(200, &[("content-length", "10")]), response(206, &[])] {
            answer(0, &want, &head, Some(10)).encode().unwrap();
        }
    }

    #[test]
    fn an_error_keeps_its_status_and_its_text() {
        let want = Want::whole(Digest::sha256(b"x"));
        let mut head = response(404, &[]);
        assert_eq!(answer(0, &want, &head, Some(99)).error, "Not Found");
        head.extensions.insert(ErrorText("nobody has it".to_owned()));
        let found = answer(7, &want, &head, Some(99));
        assert_eq!((found.want, found.status, &*found.error), (7, 404, "nobody has it"));
        assert_eq!((found.len, found.body_len), (0, 0));
        let found = answer(0, &want, &response(416, &[("content-range", "bytes */77")]), None);
        assert_eq!((found.status, found.total), (416, 77));
        // That nobody else was asked is no error of time.
        let held = Want { held_only: true, ..want.clone() };
        assert_eq!(answer(0, &held, &response(504, &[]), None).status, 404);
        assert_eq!(answer(0, &want, &response(504, &[]), None).status, 504);
    }
}
