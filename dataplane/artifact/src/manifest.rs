//! What a manifest refers to: Docker's schema 2 manifest and list, the OCI manifest and index (OCI
//! image specification 1.1), and whatever else is JSON with a media type of its own.
//!
//! Manifests are stored and served byte for byte; this only reads them. A manifest that two readers
//! could take for two things (both `manifests` and `layers`, a `Content-Type` that is not its
//! `mediaType`, a member that stands twice) is refused. A manifest of an unknown media type is taken,
//! since the specification leaves the kinds of manifests open; what it refers to is read from the
//! members that it shares with the known ones. `urls` of a descriptor are never dialled.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{self, DeserializeOwned, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::digest::{Digest, DigestError};
use crate::media_type::{
    DOCKER_LIST, DOCKER_MANIFEST, DOCKER_SCHEMA1, DOCKER_SCHEMA1_SIGNED, JSON, OCI_INDEX,
    OCI_MANIFEST, OCTET_STREAM,
};

/// The largest manifest, in bytes: what the specification asks a registry to take.
pub const MANIFEST_BYTES_MAX: usize = 4 << 20;

/// The most descriptors of one list in a manifest.
pub const DESCRIPTORS_MAX: usize = 4096;

/// The most annotations of one manifest.
pub const ANNOTATIONS_MAX: usize = 4096;

/// The longest media type of a manifest, in bytes: what a record of the cache holds.
pub const MEDIA_TYPE_BYTES_MAX: usize = 96;

/// Why bytes are not a manifest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Longer than [`MANIFEST_BYTES_MAX`].
    #[error("the manifest has {0} bytes; {MANIFEST_BYTES_MAX} are taken at the most")]
    TooLarge(u64),
    /// It cannot be understood, or could be understood in two ways.
    #[error("{0}")]
    Invalid(Cow<'static, str>),
}

/// What a manifest is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A config and layers.
    Image,
    /// Manifests.
    Index,
    /// Something that is not known here.
    Other,
}

/// What a manifest refers to as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DescriptorKind {
    /// The config of an image.
    Config,
    /// A layer, or another blob.
    Layer,
    /// A manifest of an index.
    Manifest,
}

/// One thing that a manifest refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// As what.
    pub kind: DescriptorKind,
    /// The content.
    pub digest: Digest,
    /// Its length in bytes, as the manifest says.
    pub size_bytes: u64,
    /// Its media type, or empty.
    pub media_type: String,
    /// The content is had elsewhere (`urls`, or a type that may not be distributed), and need not be
    /// pushed.
    pub foreign: bool,
}

/// A manifest, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// What it is made of.
    pub kind: Kind,
    /// Its media type: what `Content-Type` is when it is served.
    pub media_type: String,
    /// What it refers to, in order: the config first.
    pub descriptors: Vec<Descriptor>,
    /// The manifest that this one is about.
    pub subject: Option<Digest>,
    /// Its `artifactType`, or for an image without one the media type of its config.
    pub artifact_type: Option<String>,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
}

impl Manifest {
    /// Reads a manifest. `content_type` is what came with it (the header's value); parameters are ignored,
    /// and so are the types that say nothing (`application/json`, `application/octet-stream`).
    /// Allocates in proportion to `bytes`.
    ///
    /// # Errors
    /// [`ManifestError`]. Docker's schema 1 is refused.
    pub fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<Self, ManifestError> {
        if bytes.len() > MANIFEST_BYTES_MAX {
            return Err(ManifestError::TooLarge(bytes.len() as u64));
        }
        let stated = content_type.map(essence).transpose()?.flatten();
        let Object(document): Object<Document> =
            serde_json::from_slice(bytes).map_err(|error| {
                // serde_json says the line and column.
                invalid(format!("the manifest cannot be read: {error}"))
            })?;
        document.into_manifest(stated)
    }

    /// The descriptor of this manifest as a referrer of its subject, in JSON. `digest` and
    /// `size_bytes` are those of the manifest itself.
    pub fn referrer_descriptor(&self, digest: &Digest, size_bytes: u64) -> Vec<u8> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Referrer<'a> {
            media_type: &'a str,
            digest: String,
            size: u64,
            #[serde(skip_serializing_if = "Option::is_none")]
            artifact_type: Option<&'a str>,
            #[serde(skip_serializing_if = "BTreeMap::is_empty")]
            annotations: &'a BTreeMap<String, String>,
        }
        serde_json::to_vec(&Referrer {
            media_type: &self.media_type,
            digest: digest.to_string(),
            size: size_bytes,
            artifact_type: self.artifact_type.as_deref(),
            annotations: &self.annotations,
        })
        .expect("strings and numbers are written into memory, which cannot fail")
    }

    /// What must be here for the manifest to be whole: everything that is not foreign.
    pub fn required(&self) -> impl Iterator<Item = &Descriptor> {
        self.descriptors.iter().filter(|descriptor| !descriptor.foreign)
    }
}

fn invalid(message: impl Into<Cow<'static, str>>) -> ManifestError {
    ManifestError::Invalid(message.into())
}

/// The media type of a header, without parameters and in lower case. `None` for those that say
/// nothing about a manifest.
fn essence(text: &str) -> Result<Option<String>, ManifestError> {
    let media_type = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match &*media_type {
        "" | JSON | OCTET_STREAM | "text/plain" | "application/x-www-form-urlencoded" => Ok(None),
        _ if is_media_type(&media_type) => Ok(Some(media_type)),
        _ => Err(invalid("the Content-Type is not a media type")),
    }
}

/// `type/subtype` (RFC 6838, section 4.2), not longer than a record of the cache holds.
fn is_media_type(text: &str) -> bool {
    let is_name = |name: &str| {
        name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric())
            && name.bytes().all(|byte| {
                byte.is_ascii_alphanumeric()
                    || matches!(byte, b'!' | b'#' | b'$' | b'&' | b'-' | b'^' | b'_' | b'.' | b'+')
            })
    };
    text.len() <= MEDIA_TYPE_BYTES_MAX
        && text.split_once('/').is_some_and(|(main, sub)| is_name(main) && is_name(sub))
}

/// A JSON object and nothing else: what is derived for structs would take an array as well.
struct Object<T>(T);

impl<'de, T: DeserializeOwned> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectVisitor<T>(PhantomData<T>);
        impl<'de, T: DeserializeOwned> Visitor<'de> for ObjectVisitor<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }
        deserializer.deserialize_map(ObjectVisitor(PhantomData))
    }
}

/// The members of all kinds of manifests that are read. Others are passed over.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    #[serde(default)]
    schema_version: Option<u64>,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    artifact_type: Option<String>,
    #[serde(default)]
    config: Option<Object<Written>>,
    #[serde(default, deserialize_with = "descriptors")]
    layers: Option<Vec<Written>>,
    #[serde(default, deserialize_with = "descriptors")]
    blobs: Option<Vec<Written>>,
    #[serde(default, deserialize_with = "descriptors")]
    manifests: Option<Vec<Written>>,
    #[serde(default)]
    subject: Option<Object<Written>>,
    #[serde(default, deserialize_with = "annotations")]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    fs_layers: Option<IgnoredAny>,
}

/// A descriptor as it is written.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    #[serde(default)]
    media_type: Option<String>,
    #[serde(deserialize_with = "digest")]
    digest: Digest,
    size: u64,
    #[serde(default)]
    urls: Option<Vec<IgnoredAny>>,
}

fn digest<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
    struct DigestVisitor;
    impl Visitor<'_> for DigestVisitor {
        type Value = Digest;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a digest")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Digest, E> {
            text.parse().map_err(|error: DigestError| E::custom(error))
        }
    }
    deserializer.deserialize_str(DigestVisitor)
}

/// A list of descriptors, which some writers leave `null`. The bound holds while it is read.
fn descriptors<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Vec<Written>>, D::Error> {
    struct ListVisitor;
    impl<'de> Visitor<'de> for ListVisitor {
        type Value = Vec<Written>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of descriptors")
        }

        fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
            Ok(Vec::new())
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut all = Vec::new();
            while let Some(Object(one)) = list.next_element()? {
                if all.len() == DESCRIPTORS_MAX {
                    return Err(de::Error::custom(format_args!(
                        "a list has more than {DESCRIPTORS_MAX} descriptors"
                    )));
                }
                all.push(one);
            }
            Ok(all)
        }
    }
    deserializer.deserialize_any(ListVisitor).map(Some)
}

/// Annotations, which some writers leave `null`. The bound holds while they are read.
fn annotations<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, String>, D::Error> {
    struct AnnotationsVisitor;
    impl<'de> Visitor<'de> for AnnotationsVisitor {
        type Value = BTreeMap<String, String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("annotations: an object of strings")
        }

        fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
            Ok(BTreeMap::new())
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut all = BTreeMap::new();
            while let Some((key, value)) = map.next_entry::<String, String>()? {
                if all.len() == ANNOTATIONS_MAX {
                    return Err(de::Error::custom(format_args!(
                        "there are more than {ANNOTATIONS_MAX} annotations"
                    )));
                }
                if all.insert(key, value).is_some() {
                    return Err(de::Error::custom("an annotation stands twice"));
                }
            }
            Ok(all)
        }
    }
    deserializer.deserialize_any(AnnotationsVisitor)
}

impl Document {
    fn into_manifest(self, stated: Option<String>) -> Result<Manifest, ManifestError> {
        let media_type = self.media_type(stated)?;
        let kind = match &*media_type {
            OCI_MANIFEST | DOCKER_MANIFEST => Kind::Image,
            OCI_INDEX | DOCKER_LIST => Kind::Index,
            _ => Kind::Other,
        };
        self.check_members(kind, &media_type)?;
        let artifact_type = self.artifact_type.filter(|text| !text.is_empty()).or_else(|| {
            let config = self.config.as_ref().filter(|_| kind == Kind::Image)?;
            config.0.media_type.clone()
        });
        let config = self.config.map(|Object(written)| written);
        let descriptors = config
            .into_iter()
            .map(|written| written.into_descriptor(DescriptorKind::Config))
            .chain(all(self.layers, DescriptorKind::Layer))
            .chain(all(self.blobs, DescriptorKind::Layer))
            .chain(all(self.manifests, DescriptorKind::Manifest))
            .collect();
        Ok(Manifest {
            kind,
            media_type,
            descriptors,
            subject: self.subject.map(|Object(subject)| subject.digest),
            artifact_type,
            annotations: self.annotations,
        })
    }

    /// The media type: as stated, as written, or as the members have it.
    fn media_type(&self, stated: Option<String>) -> Result<String, ManifestError> {
        if self.fs_layers.is_some()
            || self.schema_version == Some(1)
            || [stated.as_deref(), self.media_type.as_deref()]
                .iter()
                .any(|given| matches!(given, Some(DOCKER_SCHEMA1 | DOCKER_SCHEMA1_SIGNED)))
        {
            return Err(invalid(
                "the manifest is of Docker's schema 1, which is not taken; push it again with a \
                 client that writes schema 2 or OCI manifests",
            ));
        }
        let written = self.media_type.as_deref().filter(|text| !text.is_empty());
        if let Some(written) = written
            && !is_media_type(written)
        {
            return Err(invalid(format!(
                "the manifest's mediaType is not a media type of at most {MEDIA_TYPE_BYTES_MAX} bytes"
            )));
        }
        match (stated, written) {
            (Some(stated), Some(written)) if stated != written => Err(invalid(format!(
                "the Content-Type is {stated}, and the manifest's mediaType is {written}; send the \
                 one that it is"
            ))),
            (Some(stated), _) => Ok(stated),
            (None, Some(written)) => Ok(written.to_owned()),
            (None, None) if self.manifests.is_some() => Ok(OCI_INDEX.to_owned()),
            (None, None) if self.config.is_some() => Ok(OCI_MANIFEST.to_owned()),
            (None, None) => Err(invalid(
                "the manifest has no mediaType and came without Content-Type, and has neither \
                 config nor manifests; send its media type as Content-Type",
            )),
        }
    }

    /// Whether it has what its media type asks for, and nothing that belongs to another kind.
    fn check_members(&self, kind: Kind, media_type: &str) -> Result<(), ManifestError> {
        let is_image = self.config.is_some() || self.layers.is_some();
        if is_image && self.manifests.is_some() {
            return Err(invalid(
                "the manifest has both manifests and config or layers, so that it could be taken \
                 for an image or for an index",
            ));
        }
        let lacks = |what| Err(invalid(format!("a manifest of type {media_type} has {what}")));
        match kind {
            Kind::Other => Ok(()),
            _ if self.schema_version != Some(2) => {
                lacks("a schemaVersion of 2, and this one has not")
            }
            Kind::Image if self.config.is_none() => lacks("a config, and this one has none"),
            Kind::Index if self.manifests.is_none() => {
                lacks("a list of manifests, and this one has none")
            }
            Kind::Image | Kind::Index => Ok(()),
        }
    }
}

fn all(list: Option<Vec<Written>>, kind: DescriptorKind) -> impl Iterator<Item = Descriptor> {
    list.unwrap_or_default().into_iter().map(move |written| written.into_descriptor(kind))
}

impl Written {
    fn into_descriptor(self, kind: DescriptorKind) -> Descriptor {
        let media_type = self.media_type.unwrap_or_default();
        let foreign = kind == DescriptorKind::Layer
            && (self.urls.is_some_and(|urls| !urls.is_empty()) || is_not_distributed(&media_type));
        Descriptor { kind, digest: self.digest, size_bytes: self.size, media_type, foreign }
    }
}

/// Layers that a registry need not have: OCI's non-distributable ones, and Docker's foreign ones.
fn is_not_distributed(media_type: &str) -> bool {
    media_type.starts_with("application/vnd.oci.image.layer.nondistributable.v1.")
        || media_type.starts_with("application/vnd.docker.image.rootfs.foreign.")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn digest(text: &str) -> Digest {
        Digest::sha256(text.as_bytes())
    }

    fn descriptor(text: &str) -> Value {
        json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
            "digest": digest(text).to_string(),
            "size": text.len(),
        })
    }

    fn image() -> Value {
        json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": digest("config").to_string(),
                "size": 6,
            },
            "layers": [descriptor("one"), descriptor("two")],
        })
    }

    fn index() -> Value {
        json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [descriptor("one")] })
    }

    fn with(mut value: Value, member: &str, to: Value) -> Value {
        value[member] = to;
        value
    }

    fn without(mut value: Value, member: &str) -> Value {
        value.as_object_mut().unwrap().remove(member);
        value
    }

    fn parsed(value: &Value, content_type: Option<&str>) -> Result<Manifest, ManifestError> {
        Manifest::parse(value.to_string().as_bytes(), content_type)
    }

    #[test]
    fn an_image_refers_to_its_config_and_layers() {
        let manifest = parsed(&image(), Some(OCI_MANIFEST)).unwrap();
        assert_eq!(manifest.kind, Kind::Image);
        let all: Vec<_> =
            manifest.descriptors.iter().map(|one| (one.kind, one.digest, one.size_bytes)).collect();
        assert_eq!(
            all,
            [
                (DescriptorKind::Config, digest("config"), 6),
                (DescriptorKind::Layer, digest("one"), 3),
                (DescriptorKind::Layer, digest("two"), 3),
            ]
        );
        assert_eq!(manifest.required().count(), 3);
    }

    #[test]
    fn an_index_refers_to_manifests() {
        let manifest = parsed(&index(), None).unwrap();
        assert_eq!((manifest.kind, &*manifest.media_type), (Kind::Index, OCI_INDEX));
        assert_eq!(manifest.descriptors[0].kind, DescriptorKind::Manifest);
        let empty = with(index(), "manifests", json!([]));
        assert_eq!(parsed(&empty, None).unwrap().descriptors, []);
    }

    #[test]
    fn the_media_type_is_as_stated_or_as_written_or_as_the_members_have_it() {
        let bare = without(image(), "mediaType");
        for (value, content_type, media_type) in [
            (image(), None, OCI_MANIFEST),
            (image(), Some("application/json"), OCI_MANIFEST),
            (
                image(),
                Some("application/vnd.oci.image.manifest.v1+json; charset=utf-8"),
                OCI_MANIFEST,
            ),
            (image(), Some("Application/Vnd.OCI.Image.Manifest.v1+JSON"), OCI_MANIFEST),
            (bare.clone(), Some(DOCKER_MANIFEST), DOCKER_MANIFEST),
            (bare.clone(), Some("application/octet-stream"), OCI_MANIFEST),
            (bare, None, OCI_MANIFEST),
            (without(index(), "mediaType"), None, OCI_INDEX),
            (with(index(), "mediaType", json!(DOCKER_LIST)), None, DOCKER_LIST),
        ] {
            assert_eq!(
                parsed(&value, content_type).unwrap().media_type,
                media_type,
                "{content_type:?}"
            );
        }
    }

    #[test]
    fn a_manifest_that_could_be_two_things_is_refused() {
        for (value, content_type) in [
            (image(), Some(OCI_INDEX)),
            (image(), Some(DOCKER_MANIFEST)),
            (with(image(), "manifests", json!([])), None),
            (with(index(), "layers", json!([])), None),
            (with(index(), "mediaType", json!(OCI_MANIFEST)), None),
            (without(image(), "config"), None),
            (without(index(), "manifests"), None),
            (without(image(), "schemaVersion"), None),
            (with(image(), "schemaVersion", json!(3)), None),
            (with(image(), "mediaType", json!("nonsense")), None),
            (with(image(), "mediaType", json!(format!("a/{}", "b".repeat(95)))), None),
            (image(), Some("nonsense")),
            (json!({}), None),
            (json!([]), None),
            (json!([2, OCI_MANIFEST]), None),
            (json!("text"), None),
            (json!(null), None),
        ] {
            let error = parsed(&value, content_type).expect_err(&value.to_string());
            assert!(matches!(error, ManifestError::Invalid(_)), "{error}");
        }
        let twice = image().to_string().replacen('{', "{\"schemaVersion\":2,", 1);
        assert!(Manifest::parse(twice.as_bytes(), None).is_err());
        let twice = with(image(), "annotations", json!({ "a": "b" })).to_string();
        let twice = twice.replace("{\"a\":\"b\"}", "{\"a\":\"b\",\"a\":\"c\"}");
        assert!(Manifest::parse(twice.as_bytes(), None).is_err());
    }

    #[test]
    fn malformed_descriptors_are_refused_with_their_place() {
        for (member, to) in [
            ("config", json!(null)),
            ("config", json!([])),
            ("config", json!(["a", digest("a").to_string(), 5])),
            ("layers", json!({})),
            ("layers", json!([{}])),
            ("layers", json!([null])),
            ("layers", json!([{ "digest": "sha256:abc", "size": 1 }])),
            ("layers", json!([{ "digest": digest("a").to_string(), "size": -1 }])),
            ("layers", json!([{ "digest": digest("a").to_string(), "size": "1" }])),
            ("layers", json!([{ "digest": digest("a").to_string() }])),
            ("subject", json!({ "digest": "x", "size": 1 })),
            ("annotations", json!({ "a": 1 })),
            ("annotations", json!([])),
            ("artifactType", json!(5)),
        ] {
            let value = with(image(), member, to);
            let error = parsed(&value, None).expect_err(&value.to_string());
            assert!(member == "config" || error.to_string().contains("column"), "{value}: {error}");
        }
    }

    #[test]
    fn lists_that_were_left_null_are_empty() {
        let value = with(with(image(), "layers", json!(null)), "annotations", json!(null));
        assert_eq!(parsed(&value, None).unwrap().descriptors.len(), 1);
        assert_eq!(parsed(&with(index(), "manifests", json!(null)), None).unwrap().descriptors, []);
    }

    #[test]
    fn schema_1_is_refused_by_its_name() {
        for (value, content_type) in [
            (json!({ "schemaVersion": 1, "fsLayers": [], "name": "a" }), None),
            (json!({ "schemaVersion": 1 }), Some(DOCKER_SCHEMA1_SIGNED)),
            (json!({ "schemaVersion": 2 }), Some(DOCKER_SCHEMA1)),
        ] {
            let error = parsed(&value, content_type).unwrap_err();
            assert!(error.to_string().contains("schema 1"), "{error}");
        }
    }

    #[test]
    fn an_unknown_kind_is_taken_with_what_it_refers_to() {
        let media_type = "application/vnd.example.thing.v1+json";
        let manifest = parsed(&json!({ "blobs": [descriptor("one")] }), Some(media_type)).unwrap();
        assert_eq!((manifest.kind, &*manifest.media_type), (Kind::Other, media_type));
        assert_eq!(manifest.descriptors[0].digest, digest("one"));
        let nothing = parsed(&json!({ "mediaType": media_type }), None).unwrap();
        assert_eq!(nothing.descriptors, []);
    }

    #[test]
    fn layers_that_are_had_elsewhere_are_not_required() {
        let mut urls = descriptor("urls");
        urls["urls"] = json!(["https://example.com/a"]);
        let mut kind = descriptor("kind");
        kind["mediaType"] = json!("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip");
        let mut docker = descriptor("docker");
        docker["mediaType"] = json!("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip");
        let mut none = descriptor("none");
        none["urls"] = json!([]);
        let manifest =
            parsed(&with(image(), "layers", json!([urls, kind, docker, none])), None).unwrap();
        let required: Vec<_> = manifest.required().map(|one| one.digest).collect();
        assert_eq!(required, [digest("config"), digest("none")]);
    }

    #[test]
    fn a_referrer_is_described_as_the_specification_has_it() {
        let subject = descriptor("subject");
        let image =
            with(with(image(), "subject", subject.clone()), "annotations", json!({ "a": "b" }));
        let manifest = parsed(&image, None).unwrap();
        assert_eq!(manifest.subject, Some(digest("subject")));
        let described: Value =
            serde_json::from_slice(&manifest.referrer_descriptor(&digest("self"), 7)).unwrap();
        assert_eq!(
            described,
            json!({
                "mediaType": OCI_MANIFEST,
                "digest": digest("self").to_string(),
                "size": 7,
                "artifactType": "application/vnd.oci.image.config.v1+json",
                "annotations": { "a": "b" },
            })
        );
        let own = parsed(&with(image, "artifactType", json!("application/vnd.x")), None).unwrap();
        assert_eq!(own.artifact_type.as_deref(), Some("application/vnd.x"));
        let index = parsed(&with(index(), "subject", subject), None).unwrap();
        let described: Value =
            serde_json::from_slice(&index.referrer_descriptor(&digest("self"), 7)).unwrap();
        assert_eq!(described.get("artifactType"), None);
        assert_eq!(described.get("annotations"), None);
    }

    #[test]
    fn members_that_are_not_known_are_passed_over() {
        let value = with(image(), "newField", json!({ "deep": [1, 2, { "deeper": null }] }));
        assert_eq!(parsed(&value, None).unwrap().descriptors.len(), 3);
    }

    #[test]
    fn every_bound_holds() {
        let error = Manifest::parse(&vec![b' '; MANIFEST_BYTES_MAX + 1], None).unwrap_err();
        assert_eq!(error, ManifestError::TooLarge(MANIFEST_BYTES_MAX as u64 + 1));

        let list = |count| with(index(), "manifests", json!(vec![descriptor("one"); count]));
        assert!(parsed(&list(DESCRIPTORS_MAX), None).is_ok());
        assert!(parsed(&list(DESCRIPTORS_MAX + 1), None).is_err());

        let annotations = |count| {
            let all: BTreeMap<_, _> = (0..count).map(|i| (i.to_string(), "")).collect();
            with(image(), "annotations", json!(all))
        };
        assert!(parsed(&annotations(ANNOTATIONS_MAX), None).is_ok());
        assert!(parsed(&annotations(ANNOTATIONS_MAX + 1), None).is_err());

        let large = with(image(), "annotations", json!({ "large": "A".repeat(3_900_000) }));
        assert!(parsed(&large, None).is_ok());

        let mut deep = "[".repeat(1_000_000);
        deep.insert_str(0, "{\"schemaVersion\":2,\"deep\":");
        assert!(Manifest::parse(deep.as_bytes(), None).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Manifest::parse(&bytes, None);
        }

        #[test]
        fn no_change_to_a_manifest_makes_the_parser_panic(
            at in 0usize..600, to in any::<u8>(), cut in 0usize..600, is_index in any::<bool>(),
        ) {
            let mut bytes = if is_index { index() } else { image() }.to_string().into_bytes();
            let at = at % bytes.len();
            bytes[at] = to;
            let _ = Manifest::parse(&bytes, None);
            bytes.truncate(cut % (bytes.len() + 1));
            let _ = Manifest::parse(&bytes, None);
        }

        #[test]
        fn no_content_type_makes_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..150)) {
            let text = String::from_utf8_lossy(&bytes);
            let _ = Manifest::parse(image().to_string().as_bytes(), Some(&text));
        }
    }
}
