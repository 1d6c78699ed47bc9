//! `GET|HEAD|PUT|DELETE /v1/state/KEY`: raw bytes, the version as `ETag`, compare-and-swap by `If-Match` and
//! `If-None-Match: *`, retries made safe by `Idempotency-Key`. Reads are linearizable.
//!
//! `GET /v1/state?prefix=P&after=KEY&limit=N`: keys, versions and sizes, in order.

use http::header::{HeaderMap, IF_MATCH, IF_NONE_MATCH};
use http::{HeaderName, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use outrider_state::request::{KEY_BYTES_MAX, VALUE_BYTES_MAX};
use outrider_state::{Expect, Operation, Outcome, Request as StateRequest, RequestId, Write};
use percent_encoding::percent_decode_str;
use serde_json::json;

use super::answer::{
    Answer, bytes_answer, empty, failure, json_answer, method_not_allowed, tagged, unavailable,
};
use super::{Admin, is_read};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// The most keys of one list.
const LIST_MAX: usize = 10_000;
const LIST_DEFAULT: usize = 1_000;
const OCTETS: &str = "application/octet-stream";

pub(crate) async fn answer(admin: &Admin, key: &str, request: Request<Incoming>) -> Answer {
    let Ok(key) = percent_decode_str(key).decode_utf8() else {
        return failure(StatusCode::BAD_REQUEST, "the key is not UTF-8");
    };
    let key = key.into_owned();
    if key.is_empty() || key.len() > KEY_BYTES_MAX {
        let why = format!("a key has 1 to {KEY_BYTES_MAX} bytes");
        return failure(StatusCode::BAD_REQUEST, why);
    }
    match *request.method() {
        Method::GET | Method::HEAD => get(admin, &key, request.headers()).await,
        Method::PUT | Method::DELETE => write(admin, key, request).await,
        _ => method_not_allowed("GET, HEAD, PUT, DELETE"),
    }
}

async fn get(admin: &Admin, key: &str, headers: &HeaderMap) -> Answer {
    if let Err(error) = admin.consensus.read_barrier().await {
        return unavailable(&error);
    }
    let found = admin.consensus.shared().look(|known| known.state.fragment(key).cloned());
    let Some(fragment) = found else {
        return failure(StatusCode::NOT_FOUND, "there is no such key");
    };
    let known = headers.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let known = known.flat_map(|value| value.split(',')).any(|tag| {
        let tag = tag.trim();
        tag == "*" || version_of(tag.strip_prefix("W/").unwrap_or(tag)) == Some(fragment.version)
    });
    let answer = match known {
        true => empty(StatusCode::NOT_MODIFIED),
        false => bytes_answer(StatusCode::OK, OCTETS, fragment.value),
    };
    tagged(answer, fragment.version)
}

async fn write(admin: &Admin, key: String, request: Request<Incoming>) -> Answer {
    let (head, body) = request.into_parts();
    let expect = match expectation(&head.headers) {
        Ok(expect) => expect,
        Err(why) => return failure(StatusCode::BAD_REQUEST, why),
    };
    let id = match head.headers.get(IDEMPOTENCY_KEY).map(|value| value.to_str()) {
        None => RequestId::None,
        Some(Ok(key)) => RequestId::Key { scope: String::new(), key: key.to_owned() },
        Some(Err(_)) => {
            return failure(StatusCode::BAD_REQUEST, "the Idempotency-Key is not ASCII");
        }
    };
    let write = if head.method == Method::PUT {
        let body = Limited::new(body, VALUE_BYTES_MAX).collect();
        let value = match tokio::time::timeout(admin.body_time_max, body).await {
            Ok(Ok(body)) => body.to_bytes().to_vec(),
            Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
                let why = format!("a value has at most {VALUE_BYTES_MAX} bytes");
                return failure(StatusCode::PAYLOAD_TOO_LARGE, why);
            }
            Ok(Err(error)) => return failure(StatusCode::BAD_REQUEST, error),
            Err(_) => {
                return failure(StatusCode::REQUEST_TIMEOUT, "the value did not come in time");
            }
        };
        Write::Put { key, value, expect }
    } else {
        Write::Delete { key, expect }
    };
    let request = StateRequest { id, operation: Operation::Write(write) };
    match admin.consensus.write(request).await {
        Ok(outcome) => outcome_answer(&outcome),
        Err(error) => unavailable(&error),
    }
}

fn outcome_answer(outcome: &Outcome) -> Answer {
    match outcome {
        // The removal of what was absent has no version.
        Outcome::Done { version: 0 } => empty(StatusCode::NO_CONTENT),
        Outcome::Done { version } => tagged(empty(StatusCode::NO_CONTENT), *version),
        Outcome::Mismatch { current, .. } => {
            let value = json!({ "error": "the version is another one", "current": current });
            let answer = json_answer(StatusCode::PRECONDITION_FAILED, &value);
            if *current == 0 { answer } else { tagged(answer, *current) }
        }
        Outcome::Full => failure(StatusCode::INSUFFICIENT_STORAGE, "there is no room for it"),
        Outcome::Reused => failure(
            StatusCode::UNPROCESSABLE_ENTITY,
            "this Idempotency-Key was used for another request",
        ),
        other => failure(StatusCode::INTERNAL_SERVER_ERROR, format!("an outcome {other:?}")),
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

/// Of a strong tag. 0 is the version of nothing, which no tag has, so it never matches.
fn version_of(tag: &str) -> Option<u64> {
    let digits = tag.strip_prefix('"')?.strip_suffix('"')?;
    if digits.bytes().all(|byte| byte.is_ascii_digit()) { digits.parse().ok() } else { None }
}

pub(crate) async fn list(admin: &Admin, request: &Request<Incoming>) -> Answer {
    if !is_read(request.method()) {
        return method_not_allowed("GET, HEAD");
    }
    let (mut prefix, mut after, mut limit) = (String::new(), String::new(), LIST_DEFAULT);
    for pair in request.uri().query().unwrap_or("").split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let Ok(value) = percent_decode_str(value).decode_utf8() else {
            return failure(StatusCode::BAD_REQUEST, "the query is not UTF-8");
        };
        match name {
            "prefix" => prefix = value.into_owned(),
            "after" => after = value.into_owned(),
            "limit" => match value.parse() {
                Ok(number @ 1..=LIST_MAX) => limit = number,
                _ => return failure(StatusCode::BAD_REQUEST, format!("limit is 1 to {LIST_MAX}")),
            },
            other => {
                let why = format!("{other:?} is none of prefix, after, limit");
                return failure(StatusCode::BAD_REQUEST, why);
            }
        }
    }
    if let Err(error) = admin.consensus.read_barrier().await {
        return unavailable(&error);
    }
    let (version, mut found) = admin.consensus.shared().look(|known| {
        let all = known.state.fragments_after(&prefix, &after);
        let found = all.take(limit + 1).map(|(key, fragment)| {
            json!({ "key": key, "version": fragment.version, "size": fragment.value.len() })
        });
        (known.state.version(), found.collect::<Vec<_>>())
    });
    let more = found.len() > limit;
    found.truncate(limit);
    json_answer(StatusCode::OK, &json!({ "version": version, "fragments": found, "more": more }))
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
}
