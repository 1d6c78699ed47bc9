//! How answers look. Errors are JSON with one `error`, in words.

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use http_body_util::Full;
use outrider_raft::Unavailable;
use serde_json::{Value, json};

/// An answer.
pub(crate) type Answer = Response<Full<Bytes>>;

pub(crate) fn bytes_answer(status: StatusCode, content_type: &'static str, body: Bytes) -> Answer {
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

pub(crate) fn text_answer(content_type: &'static str, text: String) -> Answer {
    bytes_answer(StatusCode::OK, content_type, text.into())
}

pub(crate) fn json_answer(status: StatusCode, value: &Value) -> Answer {
    bytes_answer(status, "application/json", format!("{value:#}\n").into())
}

pub(crate) fn empty(status: StatusCode) -> Answer {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = status;
    answer
}

pub(crate) fn failure(status: StatusCode, error: impl std::fmt::Display) -> Answer {
    json_answer(status, &json!({ "error": error.to_string() }))
}

pub(crate) fn method_not_allowed(allowed: &'static str) -> Answer {
    let mut answer = failure(StatusCode::METHOD_NOT_ALLOWED, format!("only {allowed}"));
    answer.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    answer
}

/// With the version as its `ETag`.
pub(crate) fn tagged(mut answer: Answer, version: u64) -> Answer {
    if let Ok(tag) = HeaderValue::from_str(&format!("\"{version}\"")) {
        answer.headers_mut().insert(ETAG, tag);
    }
    answer
}

pub(crate) fn unavailable(error: &Unavailable) -> Answer {
    let status = match error {
        Unavailable::Request(_) => return failure(StatusCode::BAD_REQUEST, error),
        Unavailable::Busy
        | Unavailable::NoMajority
        | Unavailable::NotLeader
        | Unavailable::Stopped => StatusCode::SERVICE_UNAVAILABLE,
    };
    let mut answer = failure(status, error);
    answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    answer
}
