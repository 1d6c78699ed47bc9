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

/// The document form of an image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// A list of manifests.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Docker's image manifest, schema 2.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker's list of manifests.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Docker's image manifest, schema 1. Refused when pushed.
pub const DOCKER_SCHEMA1: &str = "application/vnd.docker.distribution.manifest.v1+json";
/// The same, signed.
pub const DOCKER_SCHEMA1_SIGNED: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";
/// What a blob is when nobody said.
pub const OCTET_STREAM: &str = "application/octet-stream";
/// Error bodies and lists.
pub const JSON: &str = "application/json";

/// What is asked of an upstream for a manifest whose kind is not known: everything that clients ask
/// for, in containerd's order. Schema 1 is missing on purpose.
pub const MANIFEST_ACCEPT: [&str; 4] = [DOCKER_MANIFEST, DOCKER_LIST, OCI_MANIFEST, OCI_INDEX];
