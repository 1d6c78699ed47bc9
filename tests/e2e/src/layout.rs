//! OCI image layouts on disk (image-layout of the OCI image specification), checked byte by byte.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::content::sha256;
use crate::scratch::Scratch;

/// A layout that a client pulled; removed with this value.
#[derive(Debug, Default)]
pub struct Pulled(Scratch);

impl std::ops::Deref for Pulled {
    type Target = Path;

    fn deref(&self) -> &Path {
        self.0.path()
    }
}

/// The digest of the only manifest that `layout/index.json` lists.
pub fn digest(layout: &Path) -> String {
    let index = read_json(&layout.join("index.json"));
    let manifests = index["manifests"].as_array().expect("an index lists manifests");
    assert_eq!(manifests.len(), 1, "one manifest in {}", layout.display());
    manifests[0]["digest"].as_str().expect("a descriptor has a digest").to_owned()
}

/// Every blob that the image of `layout` consists of (manifest, config, layers), by digest; fails if one is missing
/// or has other bytes than its digest says.
pub fn contents(layout: &Path) -> BTreeMap<String, Vec<u8>> {
    let top = digest(layout);
    let mut all = BTreeMap::new();
    let manifest = blob(layout, &top);
    let json: serde_json::Value = serde_json::from_slice(&manifest).expect("a manifest is JSON");
    all.insert(top, manifest);
    let layers = json["layers"].as_array().expect("an image manifest has layers");
    for descriptor in layers.iter().chain([&json["config"]]) {
        let digest = descriptor["digest"].as_str().expect("a descriptor has a digest");
        let bytes = blob(layout, digest);
        assert_eq!(Some(bytes.len() as u64), descriptor["size"].as_u64(), "the size of {digest}");
        all.insert(digest.to_owned(), bytes);
    }
    all
}

/// Fails unless both layouts hold the same image, byte for byte.
pub fn assert_same(one: &Path, other: &Path) {
    let (one, other) = (contents(one), contents(other));
    let digests = |all: &BTreeMap<String, Vec<u8>>| all.keys().cloned().collect::<Vec<_>>();
    assert_eq!(digests(&one), digests(&other), "the same blobs");
    // The digests were checked against the bytes; compare the bytes all the same.
    assert!(one == other, "the same bytes");
}

/// Digests of the layers of the image, in order.
pub fn layers(layout: &Path) -> Vec<String> {
    let manifest = blob(layout, &digest(layout));
    let json: serde_json::Value = serde_json::from_slice(&manifest).expect("a manifest is JSON");
    let layers = json["layers"].as_array().expect("an image manifest has layers");
    layers.iter().map(|l| l["digest"].as_str().expect("a digest").to_owned()).collect()
}

fn blob(layout: &Path, digest: &str) -> Vec<u8> {
    let path = layout.join("blobs").join(digest.replace(':', "/"));
    let bytes = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(sha256(&bytes), digest, "the bytes of {}", path.display());
    bytes
}

fn read_json(path: &Path) -> serde_json::Value {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&bytes).expect("JSON")
}
