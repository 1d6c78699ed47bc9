//! A manifest becomes what is to be applied: its own digest, its kind, and what it consists of. Pure.

use outrider_artifact::digest::Algorithm;
use outrider_artifact::manifest::{DescriptorKind, Kind as ManifestKind};
use outrider_artifact::{ContentHasher, Digest, Manifest, ManifestError, RepositoryName, Tag};

use crate::batch::{BatchError, Content, Found};
use crate::node::Kind;

/// What is known of a manifest beside its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The repository.
    pub image: RepositoryName,
    /// The tag by which it was pushed or pulled, if any.
    pub tag: Option<Tag>,
    /// Whose it is.
    pub customer: String,
    /// When, in milliseconds since 1970.
    pub unix_ms: u64,
    /// The digest that it is said to have, which must be right.
    pub digest: Option<Digest>,
}

/// Why a manifest cannot be taken into a graph.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnalyseError {
    /// It cannot be read.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// It is not the one that it is said to be.
    #[error("the manifest has the digest {found}, and is said to have {stated}")]
    Digest {
        /// What it is said to have.
        stated: Box<Digest>,
        /// What it has.
        found: Box<Digest>,
    },
    /// It is beyond a bound, or refers to itself.
    #[error(transparent)]
    Bound(#[from] BatchError),
}

/// Analyses a manifest or an index. `content_type` is the media type that came with it. Allocates in proportion
/// to `bytes`, of which at most 4 MiB are taken.
///
/// What stands twice counts once, at its first place. The config of an image is no layer, and so is not in the
/// graph.
///
/// # Errors
/// [`AnalyseError`]
pub fn analyse(
    bytes: &[u8],
    content_type: Option<&str>,
    seen: Seen,
) -> Result<Found, AnalyseError> {
    // First: it bounds the length.
    let manifest = Manifest::parse(bytes, content_type)?;
    let algorithm = seen.digest.map_or(Algorithm::Sha256, |digest| digest.algorithm());
    let mut hasher = ContentHasher::new(algorithm);
    hasher.update(bytes);
    let digest = hasher.finish();
    if let Some(stated) = seen.digest
        && stated != digest
    {
        return Err(AnalyseError::Digest { stated: Box::new(stated), found: Box::new(digest) });
    }
    let is_index = manifest.kind == ManifestKind::Index
        || manifest.descriptors.iter().any(|one| one.kind == DescriptorKind::Manifest);
    let mut known = std::collections::HashSet::new();
    let contents = manifest.descriptors.iter().filter_map(|one| {
        let kind = match one.kind {
            DescriptorKind::Config => return None,
            DescriptorKind::Layer => Kind::of_content(&one.media_type),
            DescriptorKind::Manifest => Kind::Version,
        };
        known.insert(one.digest).then_some(Content {
            kind,
            digest: one.digest,
            bytes: one.size_bytes,
        })
    });
    let found = Found {
        contents: contents.collect(),
        image: seen.image,
        digest,
        tag: seen.tag,
        customer: seen.customer,
        unix_ms: seen.unix_ms,
        bytes: bytes.len() as u64,
        kind: if is_index { Kind::Index } else { Kind::Version },
    };
    found.check()?;
    Ok(found)
}

/// What somebody who is trusted has read in a manifest that is not at hand: its digest, which `seen` must have, its
/// length, and what it consists of, without the config of an image and each once.
///
/// # Errors
/// [`AnalyseError::Bound`], also for one without a digest.
pub fn stated(bytes: u64, contents: Vec<Content>, seen: Seen) -> Result<Found, AnalyseError> {
    let Seen { image, tag, customer, unix_ms, digest } = seen;
    let digest = digest.ok_or(BatchError::Nameless)?;
    let is_index = contents.iter().any(|content| content.kind == Kind::Version);
    let kind = if is_index { Kind::Index } else { Kind::Version };
    let found = Found { image, digest, tag, customer, unix_ms, bytes, kind, contents };
    found.check()?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{INDEX_ENTRIES_MAX, LAYERS_MAX, SIZE_BYTES_MAX};
    use serde_json::{Value, json};

    fn digest(text: &str) -> Digest {
        Digest::sha256(text.as_bytes())
    }

    fn descriptor(media_type: &str, text: &str, size: u64) -> Value {
        json!({ "mediaType": media_type, "digest": digest(text).to_string(), "size": size })
    }

    fn image(layers: Value) -> Value {
        let config = descriptor("application/vnd.oci.image.config.v1+json", "config", 6);
        json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config,
            "layers": layers,
        })
    }

    fn index(manifests: Value) -> Value {
        let media_type = "application/vnd.oci.image.index.v1+json";
        json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": manifests })
    }

    fn seen() -> Seen {
        Seen {
            image: "library/app".parse().unwrap(),
            tag: Some("v1".parse().unwrap()),
            customer: "acme".into(),
            unix_ms: 7,
            digest: None,
        }
    }

    fn analysed(value: &Value) -> Result<Found, AnalyseError> {
        analyse(value.to_string().as_bytes(), None, seen())
    }

    #[test]
    fn an_image_is_its_layers_from_the_base_on_each_once() {
        let layer = |text, size| descriptor("application/vnd.oci.image.layer.v1.tar", text, size);
        let wasm = descriptor("application/wasm", "component", 9);
        let value = image(json!([layer("a", 1), layer("b", 2), layer("a", 3), wasm]));
        let found = analysed(&value).unwrap();
        let contents: Vec<_> =
            found.contents.iter().map(|one| (one.kind, one.digest, one.bytes)).collect();
        assert_eq!(
            contents,
            [
                (Kind::Layer, digest("a"), 1),
                (Kind::Layer, digest("b"), 2),
                (Kind::Component, digest("component"), 9),
            ]
        );
        let text = value.to_string();
        assert_eq!((found.kind, found.digest), (Kind::Version, digest(&text)));
        assert_eq!(found.bytes, text.len() as u64);
    }

    #[test]
    fn an_index_is_its_manifests() {
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let found = analysed(&index(json!([descriptor(media_type, "a", 5)]))).unwrap();
        assert_eq!((found.kind, found.contents[0].kind), (Kind::Index, Kind::Version));
    }

    #[test]
    fn a_manifest_is_only_taken_for_what_it_is() {
        let text = index(json!([])).to_string();
        let own = digest(&text);
        for (stated, right) in [(own, true), (digest("other"), false)] {
            let seen = Seen { digest: Some(stated), ..seen() };
            let result = analyse(text.as_bytes(), None, seen);
            match right {
                true => assert_eq!(result.unwrap().digest, own),
                false => {
                    let (stated, found) = (Box::new(stated), Box::new(own));
                    assert_eq!(result.unwrap_err(), AnalyseError::Digest { stated, found });
                }
            }
        }
        // One that names itself would need a hash that is broken; said to have its own child's digest it is
        // refused for that.
        let text = index(json!([descriptor("", "self", 1)])).to_string();
        let seen = Seen { digest: Some(digest("self")), ..seen() };
        assert!(matches!(analyse(text.as_bytes(), None, seen), Err(AnalyseError::Digest { .. })));
        let mut sha512 = ContentHasher::new(Algorithm::Sha512);
        sha512.update(text.as_bytes());
        let long = sha512.finish();
        let found = analyse(text.as_bytes(), None, Seen { digest: Some(long), ..self::seen() });
        assert_eq!(found.unwrap().digest, long);
    }

    #[test]
    fn hostile_manifests_are_refused_by_what_is_wrong_with_them() {
        let layers = |count: usize| {
            let all = (0..count).map(|at| descriptor("", &at.to_string(), 1));
            image(all.collect())
        };
        let manifests = |count: usize| {
            let all = (0..count).map(|at| descriptor("", &at.to_string(), 1));
            index(all.collect())
        };
        assert!(analysed(&layers(LAYERS_MAX)).is_ok());
        assert!(analysed(&manifests(INDEX_ENTRIES_MAX)).is_ok());
        let size = |size| image(json!([descriptor("", "a", size)]));
        assert!(analysed(&size(SIZE_BYTES_MAX)).is_ok());
        for (value, wanted) in [
            (layers(LAYERS_MAX + 1), "layers of an image: 1025, and 1024 is the most"),
            (layers(5000), "more than 4096 descriptors"),
            (manifests(INDEX_ENTRIES_MAX + 1), "manifests of an index: 257, and 256 is the most"),
            (size(SIZE_BYTES_MAX + 1), "bytes of a content"),
            (size(u64::MAX), "bytes of a content"),
            (json!({ "schemaVersion": 1, "fsLayers": [] }), "schema 1"),
            (json!([]), "cannot be read"),
        ] {
            let error = analysed(&value).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        }
        let nested = format!("{{\"schemaVersion\":2,\"x\":{}", "[".repeat(4 << 20));
        for bytes in [nested.as_bytes(), &nested.as_bytes()[..4 << 20], b"", b"\xff"] {
            assert!(matches!(analyse(bytes, None, seen()), Err(AnalyseError::Manifest(_))));
        }
        let many = Seen { customer: "x".repeat(129), ..seen() };
        let error = analyse(index(json!([])).to_string().as_bytes(), None, many).unwrap_err();
        assert!(error.to_string().contains("is no name"), "{error}");
    }
}
