//! Manifests as a registry takes them: [`outrider_artifact::manifest`] reads them, and what is wrong with
//! one becomes the registry's error.

use http::{HeaderValue, StatusCode};

pub use outrider_artifact::manifest::{DESCRIPTORS_MAX, DescriptorKind, MANIFEST_BYTES_MAX};
pub use outrider_artifact::{Manifest, ManifestError};

use super::error::{ApiError, Code};

/// Reads a manifest; `content_type` is the header that came with it.
///
/// # Errors
/// `SIZE_INVALID` (413) beyond [`MANIFEST_BYTES_MAX`], `MANIFEST_INVALID` (400) for everything else that
/// [`Manifest::parse`] refuses.
pub fn parse(bytes: &[u8], content_type: Option<&HeaderValue>) -> Result<Manifest, ApiError> {
    let unreadable =
        |_| ApiError::new(Code::ManifestInvalid, "the Content-Type is not a media type");
    let content_type = content_type.map(HeaderValue::to_str).transpose().map_err(unreadable)?;
    Ok(Manifest::parse(bytes, content_type)?)
}

/// The error for a manifest of this many bytes, for callers that know the length before the bytes.
pub fn too_large(size_bytes: u64) -> ApiError {
    ManifestError::TooLarge(size_bytes).into()
}

impl From<ManifestError> for ApiError {
    fn from(error: ManifestError) -> Self {
        match error {
            ManifestError::TooLarge(_) => Self::new(Code::SizeInvalid, error.to_string())
                .with_status(StatusCode::PAYLOAD_TOO_LARGE),
            ManifestError::Invalid(message) => Self::new(Code::ManifestInvalid, message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_a_manifest_is_told_as_the_registry_does() {
        let error = parse(b"{}", None).unwrap_err();
        assert_eq!((error.status().as_u16(), error.code()), (400, Code::ManifestInvalid));
        let error = parse(&vec![b' '; MANIFEST_BYTES_MAX + 1], None).unwrap_err();
        assert_eq!((error.status().as_u16(), error.code()), (413, Code::SizeInvalid));
        let header = HeaderValue::from_bytes(b"\xff").unwrap();
        let error = parse(b"{}", Some(&header)).unwrap_err();
        assert_eq!(error.code(), Code::ManifestInvalid);
        assert!(error.message().contains("Content-Type"));
    }
}
