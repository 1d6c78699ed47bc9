//! Errors of the registry protocol: a status, a code, and a message that says what was wrong, where,
//! and what to do. The body is `{"errors":[{"code","message","detail"}]}` (OCI distribution
//! specification 1.1, "Error codes").

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::header::JSON;

/// The longest message, in bytes. Messages may quote what was sent, so they are cut.
pub const MESSAGE_BYTES_MAX: usize = 1024;

/// The registry's error codes: those of the specification, and those that clients know from the
/// reference implementation ([`RangeInvalid`](Code::RangeInvalid) and below).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// The blob is not known in this repository.
    BlobUnknown,
    /// The upload cannot be gone on with.
    BlobUploadInvalid,
    /// There is no such upload session.
    BlobUploadUnknown,
    /// The digest is malformed, or is not that of the content.
    DigestInvalid,
    /// The manifest refers to a blob or manifest that is not here.
    ManifestBlobUnknown,
    /// The manifest cannot be understood.
    ManifestInvalid,
    /// The manifest is not known in this repository.
    ManifestUnknown,
    /// The repository name is malformed.
    NameInvalid,
    /// The repository is not known.
    NameUnknown,
    /// The length given is not that of the content, or is too large.
    SizeInvalid,
    /// Who asks must say who they are.
    Unauthorized,
    /// Who asks may not do this.
    Denied,
    /// The operation is not one that is served here.
    Unsupported,
    /// Too much was asked for.
    TooManyRequests,
    /// The tag is malformed.
    TagInvalid,
    /// The range is outside the content, or out of order.
    RangeInvalid,
    /// `n` of a list is not a number.
    PaginationNumberInvalid,
    /// It cannot be done now, and can be later.
    Unavailable,
    /// Anything else.
    Unknown,
}

impl Code {
    /// The code as it stands in the body.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BlobUnknown => "BLOB_UNKNOWN",
            Self::BlobUploadInvalid => "BLOB_UPLOAD_INVALID",
            Self::BlobUploadUnknown => "BLOB_UPLOAD_UNKNOWN",
            Self::DigestInvalid => "DIGEST_INVALID",
            Self::ManifestBlobUnknown => "MANIFEST_BLOB_UNKNOWN",
            Self::ManifestInvalid => "MANIFEST_INVALID",
            Self::ManifestUnknown => "MANIFEST_UNKNOWN",
            Self::NameInvalid => "NAME_INVALID",
            Self::NameUnknown => "NAME_UNKNOWN",
            Self::SizeInvalid => "SIZE_INVALID",
            Self::Unauthorized => "UNAUTHORIZED",
            Self::Denied => "DENIED",
            Self::Unsupported => "UNSUPPORTED",
            Self::TooManyRequests => "TOOMANYREQUESTS",
            Self::TagInvalid => "TAG_INVALID",
            Self::RangeInvalid => "RANGE_INVALID",
            Self::PaginationNumberInvalid => "PAGINATION_NUMBER_INVALID",
            Self::Unavailable => "UNAVAILABLE",
            Self::Unknown => "UNKNOWN",
        }
    }

    /// The status that goes with the code unless [`ApiError::with_status`] says otherwise.
    pub const fn status(self) -> StatusCode {
        match self {
            Self::BlobUnknown
            | Self::BlobUploadUnknown
            | Self::ManifestUnknown
            | Self::NameUnknown => StatusCode::NOT_FOUND,
            Self::BlobUploadInvalid
            | Self::DigestInvalid
            | Self::ManifestBlobUnknown
            | Self::ManifestInvalid
            | Self::NameInvalid
            | Self::SizeInvalid
            | Self::TagInvalid
            | Self::PaginationNumberInvalid => StatusCode::BAD_REQUEST,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Denied => StatusCode::FORBIDDEN,
            Self::Unsupported => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooManyRequests => StatusCode::TOO_MANY_REQUESTS,
            Self::RangeInvalid => StatusCode::RANGE_NOT_SATISFIABLE,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::Unknown => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// An answer that says why not. One pointer wide, since it is the error of most results here.
#[derive(Clone, Debug)]
pub struct ApiError(Box<Parts>);

#[derive(Clone, Debug)]
struct Parts {
    status: StatusCode,
    code: Code,
    message: Cow<'static, str>,
    detail: Option<serde_json::Value>,
    headers: HeaderMap,
}

impl ApiError {
    /// An error with the code's own status.
    pub fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Self {
        let mut message = message.into();
        if message.len() > MESSAGE_BYTES_MAX {
            let end = message.floor_char_boundary(MESSAGE_BYTES_MAX);
            message.to_mut().truncate(end);
        }
        let status = code.status();
        Self(Box::new(Parts { status, code, message, detail: None, headers: HeaderMap::new() }))
    }

    /// Another status than the code's own.
    #[must_use]
    pub fn with_status(mut self, status: StatusCode) -> Self {
        self.0.status = status;
        self
    }

    /// What a program can read about it. Must be small and must not quote without bound.
    #[must_use]
    pub fn with_detail(mut self, detail: serde_json::Value) -> Self {
        self.0.detail = Some(detail);
        self
    }

    /// A header of the answer.
    #[must_use]
    pub fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.0.headers.insert(name, value);
        self
    }

    /// `Retry-After` in whole seconds, rounded up, at least one.
    #[must_use]
    pub fn with_retry_after(self, after: Duration) -> Self {
        let seconds = after.as_secs().saturating_add(u64::from(after.subsec_nanos() > 0)).max(1);
        self.with_header(RETRY_AFTER, HeaderValue::from(seconds))
    }

    /// `Allow`: the methods of a path that was asked with another.
    #[must_use]
    pub fn with_allow(self, methods: &'static str) -> Self {
        self.with_header(ALLOW, HeaderValue::from_static(methods))
    }

    /// The status of the answer.
    pub fn status(&self) -> StatusCode {
        self.0.status
    }

    /// The code.
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// The message.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The headers that were added.
    pub fn headers(&self) -> &HeaderMap {
        &self.0.headers
    }

    /// The body. Allocates.
    pub fn body(&self) -> Bytes {
        #[derive(serde::Serialize)]
        struct Body<'a> {
            errors: [Error<'a>; 1],
        }
        #[derive(serde::Serialize)]
        struct Error<'a> {
            code: &'static str,
            message: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            detail: Option<&'a serde_json::Value>,
        }
        let error = Error {
            code: self.0.code.as_str(),
            message: &self.0.message,
            detail: self.0.detail.as_ref(),
        };
        serde_json::to_vec(&Body { errors: [error] })
            .expect("strings are written into memory, which cannot fail")
            .into()
    }

    /// Head and body of the answer, with `Content-Type` and `Content-Length`. The body of an answer
    /// to HEAD is left away by whoever sends it. Allocates.
    pub fn into_parts(self) -> (http::response::Parts, Bytes) {
        let body = self.body();
        let (mut parts, ()) = http::Response::new(()).into_parts();
        parts.status = self.0.status;
        parts.headers = self.0.headers;
        parts.headers.insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
        parts.headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        (parts, body)
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.0.status.as_u16(), self.0.code.as_str(), self.0.message)
    }
}

impl std::error::Error for ApiError {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_body_has_the_form_of_the_specification() {
        let error = ApiError::new(Code::BlobUnknown, "no such blob in library/alpine")
            .with_detail(serde_json::json!({ "digest": "sha256:00" }));
        let (parts, body) = error.into_parts();
        assert_eq!(parts.status, 404);
        assert_eq!(parts.headers["content-type"], "application/json");
        assert_eq!(parts.headers["content-length"], body.len().to_string());
        assert_eq!(
            body,
            r#"{"errors":[{"code":"BLOB_UNKNOWN","message":"no such blob in library/alpine","detail":{"digest":"sha256:00"}}]}"#
        );
    }

    #[test]
    fn retry_after_is_whole_seconds_and_never_zero() {
        for (after, text) in [(0, "1"), (1, "1"), (1000, "1"), (1001, "2"), (60_000, "60")] {
            let error = ApiError::new(Code::TooManyRequests, "")
                .with_retry_after(Duration::from_millis(after));
            assert_eq!(error.headers()["retry-after"], text, "{after} ms");
        }
    }

    #[test]
    fn a_status_can_be_other_than_the_codes_own() {
        let error = ApiError::new(Code::Unsupported, "").with_status(StatusCode::NOT_FOUND);
        assert_eq!(error.status(), 404);
        assert_eq!(ApiError::new(Code::Unsupported, "").status(), 405);
    }

    proptest! {
        #[test]
        fn any_message_gives_valid_and_bounded_json(message in ".{0,2000}") {
            let body = ApiError::new(Code::Unknown, message).body();
            prop_assert!(serde_json::from_slice::<serde_json::Value>(&body).is_ok());
            // A control character is six bytes in JSON.
            prop_assert!(body.len() < 6 * MESSAGE_BYTES_MAX + 100);
        }
    }
}
