//! How answers look. Errors are JSON with one `error`, in words.

use std::convert::Infallible;
use std::pin::Pin;

use bytes::Bytes;
use futures_util::Stream;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use http_body_util::{Either, Full, StreamBody};
use hyper::body::Frame;
use outrider_raft::Unavailable;
use outrider_state::Outcome;
use serde_json::{Value, json};

/// Parts of a body that is made while it is read.
pub(crate) type Parts = Pin<Box<dyn Stream<Item = Result<Frame<Bytes>, Infallible>> + Send>>;
/// An answer.
pub(crate) type Answer = Response<Either<Full<Bytes>, StreamBody<Parts>>>;

pub(crate) fn bytes_answer(status: StatusCode, content_type: &'static str, body: Bytes) -> Answer {
    with_head(status, content_type, Either::Left(Full::new(body)))
}

/// A body of which nobody knows yet how long it is.
pub(crate) fn parts_answer(content_type: &'static str, parts: Parts) -> Answer {
    with_head(StatusCode::OK, content_type, Either::Right(StreamBody::new(parts)))
}

fn with_head(
    status: StatusCode,
    content_type: &'static str,
    body: Either<Full<Bytes>, StreamBody<Parts>>,
) -> Answer {
    let mut answer = Response::new(body);
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
    let mut answer = Response::new(Either::Left(Full::default()));
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

/// What came of a write: 204 with the new version, or why not.
pub(crate) fn written(outcome: Result<Outcome, Unavailable>) -> Answer {
    match outcome {
        // The removal of what was absent has no version.
        Ok(Outcome::Done { version: 0 }) => empty(StatusCode::NO_CONTENT),
        Ok(Outcome::Done { version }) => tagged(empty(StatusCode::NO_CONTENT), version),
        Ok(Outcome::Mismatch { current, index }) => {
            let error = "the version is another one";
            let value = json!({ "error": error, "current": current, "index": index });
            let answer = json_answer(StatusCode::PRECONDITION_FAILED, &value);
            if current == 0 { answer } else { tagged(answer, current) }
        }
        Ok(Outcome::Full) => failure(StatusCode::INSUFFICIENT_STORAGE, "there is no room for it"),
        Ok(Outcome::Reused) => failure(
            StatusCode::UNPROCESSABLE_ENTITY,
            "this Idempotency-Key was used for another request",
        ),
        Ok(other) => failure(StatusCode::INTERNAL_SERVER_ERROR, format!("an outcome {other:?}")),
        Err(error) => unavailable(&error),
    }
}

pub(crate) fn unavailable(error: &Unavailable) -> Answer {
    Refusal::from(error).into()
}

/// Why a request is not answered as it was meant.
#[derive(Debug)]
pub(crate) struct Refusal {
    status: StatusCode,
    error: String,
}

pub(crate) fn refusal(status: StatusCode, error: impl std::fmt::Display) -> Refusal {
    Refusal { status, error: error.to_string() }
}

impl From<Refusal> for Answer {
    fn from(Refusal { status, error }: Refusal) -> Self {
        let mut answer = failure(status, error);
        if status == StatusCode::SERVICE_UNAVAILABLE {
            answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        answer
    }
}

impl From<&Unavailable> for Refusal {
    fn from(error: &Unavailable) -> Self {
        let status = match error {
            Unavailable::Request(_) => StatusCode::BAD_REQUEST,
            Unavailable::Busy
            | Unavailable::NoMajority
            | Unavailable::NotLeader
            | Unavailable::Stopped => StatusCode::SERVICE_UNAVAILABLE,
        };
        refusal(status, error)
    }
}

impl From<Unavailable> for Refusal {
    fn from(error: Unavailable) -> Self {
        Self::from(&error)
    }
}
