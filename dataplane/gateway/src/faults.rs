//! What a fetch's failure is to the client: the registry's own errors.

use std::time::Duration;

use http::StatusCode;
use outrider_cache::CacheError;
use outrider_uplink::FetchError;

use crate::flight::Fault;
use crate::protocol::{ApiError, Code, range};

/// When a client may come back where nothing better is known.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// The error of a fetch that brought nothing. `unknown` is the code for what the upstream has not.
pub(crate) fn of_fetch(error: &FetchError, unknown: Code) -> ApiError {
    let retry_after = error.retry_after().unwrap_or(RETRY_AFTER);
    match error {
        FetchError::NotFound => {
            ApiError::new(unknown, "neither this cache nor its upstream has it")
        }
        FetchError::Unauthorized => ApiError::new(
            Code::Denied,
            "the upstream wants credentials: the operator of this edge sets them with the upstream's \
             username and password_file",
        ),
        FetchError::Denied => ApiError::new(Code::Denied, "the upstream denies it to this edge"),
        FetchError::RateLimited { .. } => ApiError::new(
            Code::TooManyRequests,
            "the upstream limits our rate, and it is not cached yet",
        )
        .with_retry_after(retry_after),
        FetchError::RangeNotSatisfiable { total: Some(total) } => range::unsatisfiable(*total),
        FetchError::RangeNotSatisfiable { total: None } => {
            ApiError::new(Code::RangeInvalid, "the range begins behind the end of the content")
        }
        FetchError::Busy | FetchError::BreakerOpen { .. } | FetchError::Closed => {
            ApiError::new(Code::Unavailable, format!("it is not cached, and {error}"))
                .with_retry_after(retry_after)
        }
        FetchError::Timeout { .. } => {
            ApiError::new(Code::Unavailable, format!("it is not cached, and {error}"))
                .with_status(StatusCode::GATEWAY_TIMEOUT)
                .with_retry_after(retry_after)
        }
        FetchError::Unavailable { .. }
        | FetchError::Refused { .. }
        | FetchError::Connect(_)
        | FetchError::Protocol(_)
        | FetchError::Redirect(_)
        | FetchError::Cut { .. } => {
            ApiError::new(Code::Unavailable, format!("it is not cached, and {error}"))
                .with_status(StatusCode::BAD_GATEWAY)
                .with_retry_after(retry_after)
        }
    }
}

/// The error of a flight that brought nothing.
pub(crate) fn of_flight(fault: &Fault) -> ApiError {
    match fault {
        Fault::Upstream(error) => of_fetch(error, Code::BlobUnknown),
        Fault::Busy | Fault::Abandoned => ApiError::new(Code::Unavailable, fault.to_string())
            .with_retry_after(Duration::from_secs(1)),
        Fault::Mismatch(_)
        | Fault::Length { .. }
        | Fault::UnknownLength
        | Fault::Stalled
        | Fault::Distrusted => {
            ApiError::new(Code::Unavailable, fault.to_string()).with_status(StatusCode::BAD_GATEWAY)
        }
        Fault::Lost => ApiError::new(Code::Unknown, fault.to_string()),
    }
}

/// The answer to who wants only what is here (RFC 9111, section 5.2.1.7).
pub(crate) fn not_held() -> ApiError {
    ApiError::new(Code::Unavailable, "it is not here, and nobody else was to be asked")
        .with_status(StatusCode::GATEWAY_TIMEOUT)
}

/// The error of a store that cannot take what is uploaded.
pub(crate) fn of_store(error: &CacheError) -> ApiError {
    match error {
        CacheError::StoreFull => ApiError::new(
            Code::Denied,
            "the disk space for what is pushed here is full; nothing was stored, and nothing that is \
             stored was touched: the operator gives more with [cache] ssd",
        )
        .with_status(StatusCode::INSUFFICIENT_STORAGE),
        CacheError::NoDisk => ApiError::new(
            Code::Denied,
            "this edge has no disk in service for what is pushed; it serves what it has",
        )
        .with_status(StatusCode::INSUFFICIENT_STORAGE),
        CacheError::TooLarge { limit, .. } => ApiError::new(
            Code::SizeInvalid,
            format!(
                "one content of more than {limit} bytes does not fit on this edge: it lies whole on one \
                 stripe of its disk; nothing was stored: the operator makes them larger with [cache] ssd, \
                 or with fewer [cache] stripes"
            ),
        )
        .with_status(StatusCode::PAYLOAD_TOO_LARGE),
        CacheError::Busy => {
            ApiError::new(Code::Unavailable, "the memory for content in transit is in use")
                .with_retry_after(Duration::from_secs(1))
        }
        other => ApiError::new(Code::Unknown, format!("the upload could not be stored: {other}")),
    }
}
