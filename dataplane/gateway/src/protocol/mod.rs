//! What the bytes of a request mean, and how an answer is written: the OCI distribution
//! specification 1.1, the `/layer/*` routes, and the parts of HTTP that they stand on.
//!
//! Pure: no I/O, no clock, no task. Every parser bounds what it reads, refuses rather than guesses,
//! and never panics; the fuzz targets drive each of them.
//!
//! - [`route`]: method and URI to a [`Request`]; the paths of answers.
//! - [`range`]: `Range` of a download, `Content-Range` of an upload, and their answers.
//! - [`conditional`]: entity tags made of digests, `If-None-Match`, `If-Range`.
//! - [`manifest`]: what a manifest refers to.
//! - [`error`]: [`ApiError`], the registry's error body.
//! - [`cache_status`]: the `Cache-Status` header of RFC 9211.
//! - [`ns`]: which registry a `?ns=` names.
//! - [`header`]: names of headers and media types.

pub mod cache_status;
pub mod conditional;
pub mod error;
pub mod header;
pub mod manifest;
pub mod ns;
mod query;
pub mod range;
pub mod route;

pub use cache_status::CacheStatus;
pub use error::{ApiError, Code};
pub use manifest::Manifest;
pub use route::{Operation, Request, UploadSession};
