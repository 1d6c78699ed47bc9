//! A manifest on its way into the graph: the event of its upload, or of the first time that it came from an
//! upstream, and what it says. It is carried whole where it fits into an event; of a longer one its contents are,
//! as the edge has read them: they fit for every manifest that a graph takes (with SHA-512, for 600 layers).

// rkyv's derive makes structs of the variants, whose fields have no documentation.
#![allow(missing_docs)]

use outrider_artifact::event::UploadEvent;
use outrider_artifact::manifest::{DescriptorKind, Kind};
use outrider_artifact::{Digest, Manifest};
use rkyv::{Archive, Deserialize, Serialize};

/// The longest manifest that is carried as it is. More than 99 of 100 have less than a tenth of it.
pub const WHOLE_BYTES_MAX: usize = 96 << 10;
/// The most contents of a longer one: what a graph takes at the most.
pub const CONTENTS_MAX: usize = 1_024;

/// One thing that a manifest refers to.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Content {
    /// A manifest, of an index; else a layer or another blob.
    pub is_manifest: bool,
    /// WebAssembly.
    pub is_component: bool,
    /// Its digest, in its text form.
    pub digest: String,
    /// Its length in bytes, as the manifest says.
    pub bytes: u64,
}

/// What is known of what a manifest says.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum Said {
    /// It itself.
    Whole(Vec<u8>),
    /// What it refers to, without the config, in its order, each once.
    Contents(Vec<Content>),
    /// Nothing: the edge does not have it any more.
    Gone,
    /// Nothing: it refers to more than [`CONTENTS_MAX`] contents, or cannot be read.
    TooMuch,
}

/// A manifest that was pushed or pulled.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct ManifestEvent {
    /// Which one, whose and when.
    pub upload: UploadEvent,
    /// What it says.
    pub said: Said,
}

impl Said {
    /// Of these bytes; of none when the edge does not have them any more. Parses what is too long.
    pub fn of(bytes: Option<&[u8]>, media_type: &str) -> Self {
        let Some(bytes) = bytes else { return Self::Gone };
        if bytes.len() <= WHOLE_BYTES_MAX {
            return Self::Whole(bytes.to_vec());
        }
        let content_type = Some(media_type).filter(|text| !text.is_empty());
        let Ok(manifest) = Manifest::parse(bytes, content_type) else { return Self::TooMuch };
        let mut known = std::collections::HashSet::new();
        let contents = manifest
            .descriptors
            .iter()
            .filter(|one| one.kind != DescriptorKind::Config && known.insert(one.digest));
        let is_index = manifest.kind == Kind::Index;
        let contents = contents.map(|one| Content {
            is_manifest: is_index || one.kind == DescriptorKind::Manifest,
            is_component: one.media_type == "application/wasm",
            digest: one.digest.to_string(),
            bytes: one.size_bytes,
        });
        let contents: Vec<_> = contents.take(CONTENTS_MAX + 1).collect();
        let bytes: usize = contents.iter().map(Content::bytes).sum();
        match contents.len() > CONTENTS_MAX || bytes > WHOLE_BYTES_MAX {
            true => Self::TooMuch,
            false => Self::Contents(contents),
        }
    }

    /// About its size in a record.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Whole(bytes) => bytes.len(),
            Self::Contents(contents) => contents.iter().map(Content::bytes).sum(),
            Self::Gone | Self::TooMuch => 0,
        }
    }
}

impl Content {
    fn bytes(&self) -> usize {
        size_of::<ArchivedContent>() + self.digest.len()
    }

    /// The digest.
    pub fn digest(&self) -> Option<Digest> {
        self.digest.parse().ok()
    }
}

impl ManifestEvent {
    /// About its size in a record, but for what its place in a batch takes.
    pub(crate) fn bytes(&self) -> usize {
        size_of::<ArchivedManifestEvent>()
            + crate::event::strings_of(&self.upload)
            + self.said.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(layers: usize, padding: usize) -> Vec<u8> {
        let one = |at: usize| {
            let digest = Digest::sha256(&at.to_le_bytes());
            format!(
                "{{\"mediaType\":\"application/vnd.oci.image.layer.v1.tar\",\"digest\":\"{digest}\",\"size\":{at}}}"
            )
        };
        let all: Vec<_> = (0..layers).map(one).collect();
        format!(
            "{{\"schemaVersion\":2,\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",\
             \"config\":{},\"layers\":[{}],\"annotations\":{{\"a\":\"{}\"}}}}",
            one(usize::MAX >> 1),
            all.join(","),
            "x".repeat(padding)
        )
        .into_bytes()
    }

    #[test]
    fn a_manifest_is_carried_whole_or_by_what_it_refers_to() {
        let small = manifest(100, 0);
        assert_eq!(Said::of(Some(&small), ""), Said::Whole(small));
        let long = manifest(CONTENTS_MAX, 4 << 10);
        assert!(long.len() > WHOLE_BYTES_MAX);
        let Said::Contents(contents) = Said::of(Some(&long), "") else { panic!("its contents") };
        assert_eq!(contents.len(), CONTENTS_MAX);
        assert_eq!(contents[7].digest(), Some(Digest::sha256(&7_usize.to_le_bytes())));
        assert!(!contents[7].is_manifest && contents[7].bytes == 7);
        assert_eq!(Said::of(Some(&manifest(CONTENTS_MAX + 1, 0)), ""), Said::TooMuch);
        assert_eq!(Said::of(Some(&vec![b'['; 1 << 20]), ""), Said::TooMuch);
        assert_eq!(Said::of(None, ""), Said::Gone);
        // The largest of them, with the longest digests, are within the bound of an event.
        let digest = format!("sha512:{}", "0".repeat(128));
        let content = Content { is_manifest: false, is_component: false, digest, bytes: 1 };
        assert!(Said::Contents(vec![content.clone(); 600]).bytes() <= WHOLE_BYTES_MAX);
        assert!(Said::Contents(vec![content; 1_024]).bytes() > WHOLE_BYTES_MAX);
    }
}
