//! What can go wrong: when the uplink is started ([`UplinkError`]), and in a fetch
//! ([`FetchError`]). No text of these ever holds a password or a token.

use std::path::PathBuf;
use std::time::Duration;

/// Why the uplink cannot start.
#[derive(Debug, thiserror::Error)]
pub enum UplinkError {
    /// An upstream's URL is not one that can be used.
    #[error("the upstream's URL cannot be used: {0}")]
    Url(String),
    /// A setting of an upstream is wrong.
    #[error("upstream {upstream}: {key}: {reason}")]
    Setting {
        /// The upstream's label.
        upstream: String,
        /// The key, as in the configuration.
        key: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// Two upstreams have the same name, or two have none.
    #[error("there are two upstreams named {0}")]
    Duplicate(String),
    /// More upstreams than can be numbered.
    #[error("there are {found} upstreams, at most {} are possible", crate::config::UPSTREAMS_MAX)]
    TooMany {
        /// How many there are.
        found: usize,
    },
    /// A file of an upstream cannot be read or used.
    #[error("upstream {upstream}: {}: {reason}", .path.display())]
    File {
        /// The upstream's label.
        upstream: String,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// TLS cannot be set up.
    #[error("TLS cannot be set up: {0}")]
    Tls(String),
    /// The thread or its runtime cannot be made.
    #[error("the uplink thread cannot be started: {0}")]
    Thread(#[source] std::io::Error),
}

/// What a fetch was waiting for when its time was up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TimeoutStage {
    /// Name lookup, TCP and TLS.
    Connect,
    /// The head of the response, or all of the requests before it together.
    Head,
    /// The next byte of the body.
    Body,
    /// The answer of the token service.
    Token,
}

impl TimeoutStage {
    /// The stage in words.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connecting",
            Self::Head => "waiting for the response",
            Self::Body => "waiting for more of the body",
            Self::Token => "waiting for the token service",
        }
    }
}

/// Why a fetch, or the rest of its body, is not to be had. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// The upstream does not have it.
    #[error("the upstream does not have it")]
    NotFound,
    /// The upstream wants credentials that we have not, or that it does not accept.
    #[error("the upstream wants other credentials")]
    Unauthorized,
    /// The upstream refuses it (403).
    #[error("the upstream denies it")]
    Denied,
    /// The upstream answered 429.
    #[error("the upstream limits our rate")]
    RateLimited {
        /// Its `Retry-After`.
        retry_after: Option<Duration>,
    },
    /// The upstream answered 5xx or 408.
    #[error("the upstream answers {status}")]
    Unavailable {
        /// The status code.
        status: u16,
        /// Its `Retry-After`.
        retry_after: Option<Duration>,
    },
    /// Another edge does not keep what it was asked to keep.
    #[error("it answers {status}: {text}")]
    Refused {
        /// The status code.
        status: u16,
        /// Why.
        text: String,
    },
    /// The range begins behind the end of the content (416).
    #[error("the range begins behind the end of the content")]
    RangeNotSatisfiable {
        /// The content's length, if the upstream told.
        total: Option<u64>,
    },
    /// Nothing came in time.
    #[error("the upstream took too long: {}", .stage.as_str())]
    Timeout {
        /// What was being waited for.
        stage: TimeoutStage,
    },
    /// The upstream failed too often, or asked to be left alone, and is not asked for a while.
    #[error("the upstream is not asked for another {retry_after:?}")]
    BreakerOpen {
        /// For how long.
        retry_after: Duration,
    },
    /// No connection: name lookup, TCP or TLS failed, or it was lost before the head was in.
    #[error("no connection to the upstream: {0}")]
    Connect(String),
    /// The answer makes no sense for what was asked.
    #[error("the upstream's answer is wrong: {0}")]
    Protocol(String),
    /// A redirect, or a token realm, that is not followed.
    #[error("not following the upstream: {0}")]
    Redirect(String),
    /// The body ended early, or it is longer than announced.
    #[error("the body was cut off after {received_bytes} bytes: {reason}")]
    Cut {
        /// What came in.
        received_bytes: u64,
        /// What happened.
        reason: String,
    },
    /// Too many fetches of this upstream are under way and waiting.
    #[error("too many fetches from this upstream are under way")]
    Busy,
    /// The uplink is shutting down.
    #[error("the uplink is shut down")]
    Closed,
}

impl FetchError {
    /// True when the upstream gave no usable answer, so that a stale copy is better than this
    /// error; false when it said with authority that there is nothing for us.
    pub fn is_upstream_down(&self) -> bool {
        !matches!(
            self,
            Self::NotFound | Self::Unauthorized | Self::Denied | Self::RangeNotSatisfiable { .. }
        )
    }

    /// After how long it makes sense to try again, where that is known.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after } | Self::Unavailable { retry_after, .. } => {
                *retry_after
            }
            Self::BreakerOpen { retry_after } => Some(*retry_after),
            _ => None,
        }
    }

    /// A short constant name, for metrics and logs.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::Unauthorized => "unauthorized",
            Self::Denied => "denied",
            Self::RateLimited { .. } => "rate_limited",
            Self::Unavailable { .. } => "unavailable",
            Self::Refused { .. } => "refused",
            Self::RangeNotSatisfiable { .. } => "range_not_satisfiable",
            Self::Timeout { .. } => "timeout",
            Self::BreakerOpen { .. } => "breaker_open",
            Self::Connect(_) => "connect",
            Self::Protocol(_) => "protocol",
            Self::Redirect(_) => "redirect",
            Self::Cut { .. } => "cut",
            Self::Busy => "busy",
            Self::Closed => "closed",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_with_authority_is_not_a_reason_to_serve_what_is_stale() {
        for authority in [FetchError::NotFound, FetchError::Unauthorized, FetchError::Denied] {
            assert!(!authority.is_upstream_down(), "{authority}");
        }
        for down in [
            FetchError::RateLimited { retry_after: None },
            FetchError::Unavailable { status: 503, retry_after: None },
            FetchError::Timeout { stage: TimeoutStage::Head },
            FetchError::BreakerOpen { retry_after: Duration::from_secs(1) },
            FetchError::Connect("refused".into()),
            FetchError::Protocol("a login page".into()),
            FetchError::Busy,
            FetchError::Closed,
        ] {
            assert!(down.is_upstream_down(), "{down}");
        }
    }
}
