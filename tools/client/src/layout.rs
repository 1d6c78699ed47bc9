//! An OCI image layout on disk (image specification 1.1, "Image Layout"): `oci-layout`, `index.json`,
//! `blobs/ALGORITHM/HEX`. Several images may share one.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use outrider_artifact::Digest;
use serde_json::{Map, Value, json};

use crate::error::ClientError;
use crate::manifest::Descriptor;

/// The annotation that gives an image its name in a layout.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// A layout that is being written.
#[derive(Clone, Debug)]
pub struct Layout {
    folder: PathBuf,
}

impl Layout {
    /// Makes the layout in `folder`, or opens the one that is there.
    ///
    /// # Errors
    /// When it cannot be made, or something else is there.
    pub fn open(folder: &Path) -> Result<Self, ClientError> {
        let layout = Self { folder: folder.to_owned() };
        let blobs = folder.join("blobs").join("sha256");
        fs::create_dir_all(&blobs).map_err(ClientError::file("making", &blobs))?;
        let marker = folder.join("oci-layout");
        if !marker.exists() {
            write(&marker, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        }
        Ok(layout)
    }

    /// Where a piece of content is. Makes the folder of its algorithm.
    ///
    /// # Errors
    /// When that cannot be made.
    pub fn blob(&self, digest: &Digest) -> Result<PathBuf, ClientError> {
        let folder = self.folder.join("blobs").join(digest.algorithm().as_str());
        fs::create_dir_all(&folder).map_err(ClientError::file("making", &folder))?;
        Ok(folder.join(digest.hex()))
    }

    /// Writes a piece of content that is in memory.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn put(&self, digest: &Digest, bytes: &[u8]) -> Result<(), ClientError> {
        write(&self.blob(digest)?, bytes)
    }

    /// Adds an image to `index.json` by the name `reference`, in place of the one that had it.
    ///
    /// # Errors
    /// When it cannot be written, or what is there is not an index.
    pub fn name(&self, descriptor: &Descriptor, reference: &str) -> Result<(), ClientError> {
        let file = self.folder.join("index.json");
        let invalid = |text: String| {
            let error = std::io::Error::new(std::io::ErrorKind::InvalidData, text);
            ClientError::file("reading", &file)(error)
        };
        let mut index = match fs::read(&file) {
            Ok(bytes) => serde_json::from_slice::<Map<String, Value>>(&bytes)
                .map_err(|error| invalid(error.to_string()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Map::new(),
            Err(error) => return Err(ClientError::file("reading", &file)(error)),
        };
        index.entry("schemaVersion").or_insert(json!(2));
        index.entry("mediaType").or_insert(json!("application/vnd.oci.image.index.v1+json"));
        let manifests = index
            .entry("manifests")
            .or_insert_with(|| json!([]))
            .as_array_mut()
            .ok_or_else(|| invalid("its manifests are not a list".to_owned()))?;
        manifests.retain(|entry| entry["annotations"][REF_NAME] != reference);
        let mut entry = json!(descriptor);
        entry["annotations"] = json!({ REF_NAME: reference });
        manifests.push(entry);
        let bytes = serde_json::to_vec(&index).map_err(|error| invalid(error.to_string()))?;
        write(&file, &bytes)
    }
}

/// Writes a file under another name first, so that nobody finds half of it.
fn write(file: &Path, bytes: &[u8]) -> Result<(), ClientError> {
    let mut temporary = file.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    fs::File::create(&temporary)
        .and_then(|mut out| {
            out.write_all(bytes)?;
            out.sync_all()
        })
        .and_then(|()| fs::rename(&temporary, file))
        .map_err(ClientError::file("writing", file))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(digest: &str) -> Descriptor {
        let media_type = "application/vnd.oci.image.manifest.v1+json".to_owned();
        Descriptor { media_type, digest: digest.to_owned(), size: 3, platform: None }
    }

    #[test]
    fn images_share_a_layout_and_a_name_is_given_once() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::open(folder.path()).unwrap();
        layout.name(&descriptor("sha256:a"), "one").unwrap();
        let layout = Layout::open(folder.path()).unwrap();
        layout.name(&descriptor("sha256:b"), "two").unwrap();
        layout.name(&descriptor("sha256:c"), "one").unwrap();
        let index: Value =
            serde_json::from_slice(&fs::read(folder.path().join("index.json")).unwrap()).unwrap();
        let found: Vec<_> = index["manifests"]
            .as_array()
            .unwrap()
            .iter()
            .map(|entry| (entry["digest"].as_str(), entry["annotations"][REF_NAME].as_str()))
            .collect();
        let expected = [(Some("sha256:b"), Some("two")), (Some("sha256:c"), Some("one"))];
        assert_eq!(found, expected);
        assert_eq!(
            fs::read(folder.path().join("oci-layout")).unwrap(),
            br#"{"imageLayoutVersion":"1.0.0"}"#
        );
    }

    #[test]
    fn a_blob_is_found_by_its_digest() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::open(folder.path()).unwrap();
        let digest = Digest::sha256(b"abc");
        layout.put(&digest, b"abc").unwrap();
        let file = folder.path().join("blobs/sha256").join(digest.hex());
        assert_eq!(fs::read(file).unwrap(), b"abc");
    }
}
