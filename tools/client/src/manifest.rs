//! Manifests and indexes of images (OCI image specification 1.1; Docker's schema 2 is read the same
//! way): what an image consists of. Pure.

use std::str::FromStr;

use outrider_artifact::{Digest, DigestError};
use serde::{Deserialize, Serialize};

/// The longest manifest that is read: what registries take.
pub const MANIFEST_BYTES_MAX: usize = 4 << 20;
/// The most layers of an image, and the most images of an index.
pub const ENTRIES_MAX: usize = 1024;

/// What a client accepts as a manifest.
pub const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.docker.distribution.manifest.v2+json";

/// A piece of content, as a manifest names it.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What it is.
    pub media_type: String,
    /// Which one it is.
    pub digest: String,
    /// How long it is.
    pub size: u64,
    /// What it runs on, in an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
}

impl Descriptor {
    /// Its digest.
    ///
    /// # Errors
    /// When it is none.
    pub fn digest(&self) -> Result<Digest, DigestError> {
        self.digest.parse()
    }
}

/// What an image runs on.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Platform {
    /// As Go names it: `linux`.
    pub os: String,
    /// As Go names it: `amd64`, `arm64`.
    pub architecture: String,
    /// Its variant: `v8`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// Linux on this machine's processor: what an edge's images are for.
    pub fn of_this_machine() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Self { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: None }
    }

    /// Whether an image for `other` is for this one; a variant that is not asked for is any.
    pub fn takes(&self, other: &Self) -> bool {
        self.os == other.os
            && self.architecture == other.architecture
            && (self.variant.is_none() || self.variant == other.variant)
    }
}

impl FromStr for Platform {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let mut parts = text.split('/').map(str::to_owned);
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(os), Some(architecture), variant, None)
                if !os.is_empty() && !architecture.is_empty() =>
            {
                Ok(Self { os, architecture, variant })
            }
            _ => Err("a platform is OS/ARCHITECTURE[/VARIANT], for example linux/arm64"),
        }
    }
}

/// What a manifest is.
#[derive(Clone, Debug)]
pub enum Manifest {
    /// One image: its configuration and its layers.
    Image(Vec<Descriptor>),
    /// Several images.
    Index(Vec<Descriptor>),
}

#[derive(Deserialize)]
struct Raw {
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Option<Vec<Descriptor>>,
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
}

/// Reads a manifest.
///
/// # Errors
/// Says what is wrong with it.
pub fn parse(bytes: &[u8]) -> Result<Manifest, String> {
    let raw: Raw = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let manifest = match (raw.config, raw.layers, raw.manifests) {
        (None, None, Some(manifests)) => Manifest::Index(manifests),
        (Some(config), layers, None) => {
            let mut content = vec![config];
            content.extend(layers.unwrap_or_default());
            Manifest::Image(content)
        }
        // Both in one would mean one thing to us and another to the next tool.
        (_, _, Some(_)) => return Err("it is an index and an image at once".to_owned()),
        (None, _, None) => return Err("it is neither an image nor an index".to_owned()),
    };
    let (Manifest::Image(content) | Manifest::Index(content)) = &manifest;
    if content.len() > ENTRIES_MAX {
        return Err(format!("it has {} entries, and {ENTRIES_MAX} is the most", content.len()));
    }
    for descriptor in content {
        descriptor.digest().map_err(|error| format!("{:?}: {error}", descriptor.digest))?;
    }
    Ok(manifest)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn descriptor(digest: &str) -> String {
        format!(r#"{{"mediaType":"m","digest":"{digest}","size":0,"urls":["https://x"]}}"#)
    }

    #[test]
    fn an_image_is_its_configuration_and_its_layers_in_order() {
        let d = descriptor(DIGEST);
        let text = format!(r#"{{"schemaVersion":2,"config":{d},"layers":[{d},{d}]}}"#);
        let Ok(Manifest::Image(content)) = parse(text.as_bytes()) else { panic!() };
        assert_eq!(content.len(), 3);
        let text = format!(r#"{{"manifests":[{d}]}}"#);
        assert!(matches!(parse(text.as_bytes()), Ok(Manifest::Index(found)) if found.len() == 1));
    }

    #[test]
    fn what_could_mean_two_things_or_names_no_digest_is_refused() {
        let (d, bad) = (descriptor(DIGEST), descriptor("sha256:../../etc/passwd"));
        for text in [
            "{}".to_owned(),
            "[]".to_owned(),
            format!(r#"{{"config":{d},"manifests":[{d}]}}"#),
            format!(r#"{{"config":{d},"layers":[{bad}]}}"#),
            format!(r#"{{"manifests":[{}]}}"#, vec![d.as_str(); ENTRIES_MAX + 1].join(",")),
        ] {
            assert!(parse(text.as_bytes()).is_err(), "{}", &text[..text.len().min(80)]);
        }
    }

    #[test]
    fn a_platform_takes_any_variant_unless_one_is_asked_for() {
        let arm: Platform = "linux/arm64".parse().unwrap();
        let arm_v8: Platform = "linux/arm64/v8".parse().unwrap();
        assert!(arm.takes(&arm_v8) && arm_v8.takes(&arm_v8) && !arm_v8.takes(&arm));
        for text in ["", "linux", "linux/", "a/b/c/d"] {
            assert!(text.parse::<Platform>().is_err(), "{text}");
        }
    }
}
