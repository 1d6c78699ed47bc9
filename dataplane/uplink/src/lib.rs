//! Origins and other edges: the only tokio in the data plane.
//!
//! A shard asks with [`UplinkClient::fetch`], which resolves when the head of the answer is in and
//! was checked, and reads the body from a bounded window. Everything between, on a thread of its
//! own, is here: connections, TLS, HTTP/1.1 and HTTP/2, tokens, redirects, time limits, circuit
//! breakers.
//!
//! Whatever comes from an upstream is untrusted: each part of it is bounded, nothing of it decides
//! where else we connect without [`address`] and [`redirect`] agreeing, and no content is believed
//! here: hashing is the caller's business.
//!
//! Interface:
//! - `config`: [`UpstreamConfig`] and its defaults.
//! - `thread`: [`start`], [`Uplink`], the status.
//! - `fetch`, `window`: [`UplinkClient`], [`Fetch`], [`FetchBody`].
//! - `error`: [`UplinkError`], [`FetchError`]. `metrics`: [`UplinkMetrics`].
//!
//! Pure parts, without I/O or clock:
//! - [`challenge`], [`token`]: what registries and token services say about authentication.
//! - [`redirect`], [`address`]: where an upstream may send us.
//! - [`head`], [`content_range`], [`retry_after`]: what the head of an answer means.
//! - [`breaker`]: when not to ask.
//!
//! On the thread:
//! - `serve`: the life of one fetch. `exchange`: from a request to the head of its answer.
//! - `upstream`, `lane`, `credentials`: what lives as long as the configuration.
//! - `connect`: names, addresses, TCP and TLS.
//! - `document`: the keys of an issuer of tokens.
//! - `peers`: other edges, over the native protocol.

#![forbid(unsafe_code)]

pub mod address;
pub mod breaker;
pub mod challenge;
mod config;
mod connect;
pub mod content_range;
mod credentials;
mod document;
mod error;
mod exchange;
mod fetch;
pub mod head;
mod lane;
mod metrics;
mod peers;
pub mod redirect;
pub mod retry_after;
mod serve;
mod thread;
pub mod token;
mod upstream;
mod window;

pub use config::{
    BreakerConfig, CONNECT_TIMEOUT, FETCHES_MAX, HEAD_TIMEOUT, IDLE_TIMEOUT, UPSTREAMS_MAX,
    UpstreamConfig, UpstreamId, WAITERS_MAX, WINDOW_BYTES, WINDOW_BYTES_RANGE, parse_url,
};
pub use content_range::ContentRange;
pub use document::fetch_document;
pub use error::{FetchError, TimeoutStage, UplinkError};
pub use fetch::{
    ACCEPT_MAX, Fetch, FetchHead, FetchMethod, FetchRange, FetchRequest, Kept, Target,
    UplinkClient, Whom,
};
pub use metrics::UplinkMetrics;
pub use peers::{PeerBook, PeerOptions};
pub use thread::{LaneStatus, Uplink, UplinkMonitor, UplinkOptions, UpstreamStatus, start};
pub use window::FetchBody;
