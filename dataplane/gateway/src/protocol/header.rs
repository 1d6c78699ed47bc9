//! Names of headers and media types that the registry protocol adds to HTTP's own.

use http::HeaderName;

/// The digest of what is answered. containerd asks once more where it is missing.
pub const DOCKER_CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
/// Says `registry/2.0` on `/v2/`; older docker clients look for it.
pub const DOCKER_DISTRIBUTION_API_VERSION: HeaderName =
    HeaderName::from_static("docker-distribution-api-version");
/// The value of [`DOCKER_DISTRIBUTION_API_VERSION`].
pub const API_VERSION: &str = "registry/2.0";
/// The id of an upload session, beside its `Location`.
pub const DOCKER_UPLOAD_UUID: HeaderName = HeaderName::from_static("docker-upload-uuid");
/// Tells the pusher of a manifest that its `subject` was noted.
pub const OCI_SUBJECT: HeaderName = HeaderName::from_static("oci-subject");
/// Tells the pusher of a manifest which `?tag=` parameters were taken.
pub const OCI_TAG: HeaderName = HeaderName::from_static("oci-tag");
/// Tells who asked for referrers which filters were applied.
pub const OCI_FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");
/// RFC 9211.
pub const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

pub use outrider_artifact::media_type::{
    DOCKER_LIST, DOCKER_MANIFEST, DOCKER_SCHEMA1, DOCKER_SCHEMA1_SIGNED, JSON, OCI_INDEX,
    OCI_MANIFEST, OCTET_STREAM,
};

/// What is asked of an upstream for a manifest whose kind is not known: everything that clients ask
/// for, in containerd's order. Schema 1 is missing on purpose.
pub const MANIFEST_ACCEPT: [&str; 4] = [DOCKER_MANIFEST, DOCKER_LIST, OCI_MANIFEST, OCI_INDEX];
