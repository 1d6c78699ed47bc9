//! Origins: the only tokio in the data plane.

#![forbid(unsafe_code)]

pub mod address;
mod config;
pub mod content_range;
mod error;
mod fetch;
mod metrics;
pub mod retry_after;
mod thread;
mod window;

pub use config::{
    BreakerConfig, CONNECT_TIMEOUT, FETCHES_MAX, HEAD_TIMEOUT, IDLE_TIMEOUT, UPSTREAMS_MAX,
    UpstreamConfig, UpstreamId, WAITERS_MAX, WINDOW_BYTES, WINDOW_BYTES_RANGE, parse_url,
};
pub use content_range::ContentRange;
pub use error::{FetchError, TimeoutStage, UplinkError};
pub use fetch::{
    ACCEPT_MAX, Fetch, FetchHead, FetchMethod, FetchRange, FetchRequest, Target, UplinkClient,
};
pub use metrics::UplinkMetrics;
pub use thread::{LaneStatus, Uplink, UplinkMonitor, UplinkOptions, UpstreamStatus, start};
pub use window::FetchBody;
