//! What requests bring: bodies, parameters, conditions, and names in the path. All of it bounded, and read
//! strictly.

use bytes::Bytes;
use http::header::{HeaderMap, IF_MATCH, IF_NONE_MATCH};
use http::{HeaderName, Request, StatusCode};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::Incoming;
use outrider_state::{Expect, RequestId};
use percent_encoding::percent_decode_str;
use serde::de::DeserializeOwned;

use super::Admin;
use super::answer::{Refusal, refusal};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// The most rows of one list, and how many where nothing is said.
pub(crate) const LIST_MAX: usize = 10_000;
pub(crate) const LIST_DEFAULT: usize = 1_000;

/// All of a body.
pub(crate) async fn bytes(
    admin: &Admin,
    body: Incoming,
    what: &str,
    bytes_max: usize,
) -> Result<Bytes, Refusal> {
    let body = Limited::new(body, bytes_max).collect();
    match tokio::time::timeout(admin.body_time_max, body).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let why = format!("{what} has at most {bytes_max} bytes");
            Err(refusal(StatusCode::PAYLOAD_TOO_LARGE, why))
        }
        Ok(Err(error)) => Err(refusal(StatusCode::BAD_REQUEST, error)),
        Err(_) => Err(refusal(StatusCode::REQUEST_TIMEOUT, format!("{what} did not come in time"))),
    }
}

/// A body of JSON. What is nested deeper than 128 is refused by the reader.
pub(crate) async fn json<T: DeserializeOwned>(
    admin: &Admin,
    body: Incoming,
    bytes_max: usize,
) -> Result<T, Refusal> {
    let body = bytes(admin, body, "the body", bytes_max).await?;
    let bad = |error| refusal(StatusCode::BAD_REQUEST, format!("the body: {error}"));
    serde_json::from_slice(&body).map_err(bad)
}

/// Percent-decoded.
pub(crate) fn decoded(text: &str) -> Result<String, &'static str> {
    let mut rest = text.as_bytes();
    while let Some(at) = rest.iter().position(|byte| *byte == b'%') {
        rest = &rest[at + 1..];
        if rest.len() < 2 || !rest[..2].iter().all(u8::is_ascii_hexdigit) {
            return Err("a % without two hexadecimal digits");
        }
    }
    let decoded = percent_decode_str(text).decode_utf8().map_err(|_| "what is not UTF-8")?;
    Ok(decoded.into_owned())
}

/// The name in a path.
pub(crate) fn name(text: &str) -> Result<String, Refusal> {
    let bad = |why| refusal(StatusCode::BAD_REQUEST, format!("the path has {why}"));
    decoded(text).map_err(bad)
}

/// The parameters of a query, each of `allowed` once at the most.
pub(crate) fn parameters<const N: usize>(
    request: &Request<Incoming>,
    allowed: [&str; N],
) -> Result<[Option<String>; N], Refusal> {
    read_query(request.uri().query().unwrap_or(""), allowed)
        .map_err(|why| refusal(StatusCode::BAD_REQUEST, why))
}

fn read_query<const N: usize>(
    query: &str,
    allowed: [&str; N],
) -> Result<[Option<String>; N], String> {
    let mut found = [const { None }; N];
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = decoded(value).map_err(|why| format!("the query has {why}"))?;
        let Some(place) = allowed.iter().position(|allowed| *allowed == name) else {
            return Err(format!("{name:?} is none of {}", allowed.join(", ")));
        };
        if found[place].replace(value).is_some() {
            return Err(format!("{name} is there twice"));
        }
    }
    Ok(found)
}

/// How many rows are wanted.
pub(crate) fn limit(text: Option<String>) -> Result<usize, Refusal> {
    let Some(text) = text else { return Ok(LIST_DEFAULT) };
    match text.parse() {
        Ok(number @ 1..=LIST_MAX) => Ok(number),
        _ => Err(refusal(StatusCode::BAD_REQUEST, format!("limit is 1 to {LIST_MAX}"))),
    }
}

/// By what a write is known when it comes again.
pub(crate) fn request_id(headers: &HeaderMap) -> Result<RequestId, Refusal> {
    match headers.get(IDEMPOTENCY_KEY).map(|value| value.to_str()) {
        None => Ok(RequestId::None),
        Some(Ok(key)) => Ok(RequestId::Key { scope: String::new(), key: key.to_owned() }),
        Some(Err(_)) => Err(refusal(StatusCode::BAD_REQUEST, "the Idempotency-Key is not ASCII")),
    }
}

/// What must hold for a write.
pub(crate) fn condition(headers: &HeaderMap) -> Result<Expect, Refusal> {
    expectation(headers).map_err(|why| refusal(StatusCode::BAD_REQUEST, why))
}

/// Of what has no versions: a condition would be ignored, so it is refused.
pub(crate) fn no_condition(headers: &HeaderMap) -> Result<(), Refusal> {
    match condition(headers)? {
        Expect::Any => Ok(()),
        _ => Err(refusal(
            StatusCode::BAD_REQUEST,
            "there are no versions here: no If-Match, no If-None-Match",
        )),
    }
}

/// One condition at the most.
fn expectation(headers: &HeaderMap) -> Result<Expect, &'static str> {
    const FORM: &str = "If-Match is one version in double quotes, or *";
    let mut conditions = headers.get_all(IF_MATCH).iter();
    let absent = headers.get_all(IF_NONE_MATCH).iter().collect::<Vec<_>>();
    match (conditions.next(), absent.as_slice()) {
        (None, []) => Ok(Expect::Any),
        (None, [star]) if star.as_bytes() == b"*" => Ok(Expect::Absent),
        (None, _) => Err("the only If-None-Match of a write is *"),
        (Some(_), [_, ..]) => Err("either If-Match or If-None-Match, not both"),
        (Some(tag), []) if conditions.next().is_none() => match tag.to_str().map(str::trim) {
            Ok("*") => Ok(Expect::Present),
            Ok(tag) => version_of(tag).map(Expect::Version).ok_or(FORM),
            Err(_) => Err(FORM),
        },
        (Some(_), []) => Err(FORM),
    }
}

/// Whether a reader has this version already, as it says by `If-None-Match`.
pub(crate) fn has(headers: &HeaderMap, version: u64) -> bool {
    let known = headers.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    known.flat_map(|value| value.split(',')).any(|tag| {
        let tag = tag.trim();
        tag == "*" || version_of(tag.strip_prefix("W/").unwrap_or(tag)) == Some(version)
    })
}

/// Of a strong tag. 0 is the version of nothing, which no tag has, so it never matches.
fn version_of(tag: &str) -> Option<u64> {
    let digits = tag.strip_prefix('"')?.strip_suffix('"')?;
    if digits.bytes().all(|byte| byte.is_ascii_digit()) { digits.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(HeaderName::from_static(name), value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn conditions_are_read_strictly() {
        for (lines, wanted) in [
            (&[][..], Some(Expect::Any)),
            (&[("if-match", "\"7\"")][..], Some(Expect::Version(7))),
            (&[("if-match", "*")][..], Some(Expect::Present)),
            (&[("if-none-match", "*")][..], Some(Expect::Absent)),
            (&[("if-match", "7")][..], None),
            (&[("if-match", "W/\"7\"")][..], None),
            (&[("if-match", "\"7\", \"8\"")][..], None),
            (&[("if-match", "\"+7\"")][..], None),
            (&[("if-match", "\"7\""), ("if-match", "\"8\"")][..], None),
            (&[("if-match", "\"7\""), ("if-none-match", "*")][..], None),
            (&[("if-none-match", "\"7\"")][..], None),
            (&[("if-match", "\"99999999999999999999\"")][..], None),
        ] {
            assert_eq!(expectation(&headers(lines)).ok(), wanted, "{lines:?}");
        }
    }

    #[test]
    fn what_is_encoded_wrongly_is_no_name() {
        assert_eq!(decoded("a%2Fb%c3%bc").unwrap(), "a/bü");
        for bad in ["%", "a%2", "%zz", "%-1", "%ff", "a%%41"] {
            assert!(decoded(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn parameters_are_known_and_there_once() {
        let read = |query| read_query(query, ["a", "b"]);
        assert_eq!(read("b=x%20y&").unwrap(), [None, Some("x y".to_owned())]);
        for bad in ["c=1", "a=1&a=2", "a=%", "A=1"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
