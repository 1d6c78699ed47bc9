//! An image of random bytes, and the OCI distribution protocol as far as pushing and pulling it
//! needs: what containerd does, without unpacking.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::thread;

use outrider_artifact::{ContentHasher, Digest};
use serde::{Deserialize, Serialize};

use crate::BenchError;
use crate::http::{HttpClient, path_of};

/// The media type of a manifest.
pub const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// The largest manifest that is read.
const MANIFEST_BYTES_MAX: u64 = 4 << 20;
/// The most blobs of one manifest.
const BLOBS_MAX: usize = 128;

/// A reference to a blob: digest, size, media type.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What it is.
    pub media_type: String,
    /// Its digest.
    pub digest: String,
    /// Its length.
    pub size: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    schema_version: u32,
    media_type: String,
    config: Descriptor,
    layers: Vec<Descriptor>,
}

/// An image in memory.
#[derive(Clone, Debug)]
pub struct Image {
    /// Its manifest.
    pub manifest: Vec<u8>,
    /// Config and layers.
    pub blobs: Vec<(Digest, Vec<u8>)>,
}

/// Random bytes: no file system, proxy or TLS makes them shorter.
pub fn random_bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

/// Sizes of `layers` layers of `total_bytes` together, as images have them: each half as large as
/// the one before, until the last two are equal.
fn layer_sizes(total_bytes: u64, layers: u32) -> Vec<u64> {
    let mut sizes = Vec::new();
    let mut left = total_bytes;
    for _ in 1..layers {
        let size = left.div_ceil(2);
        sizes.push(size);
        left -= size;
    }
    sizes.push(left);
    sizes
}

impl Image {
    /// An image of `layers` layers with `total_bytes` in all.
    pub fn generate(seed: u64, total_bytes: u64, layers: u32) -> Self {
        assert!(layers > 0 && layers as usize <= BLOBS_MAX, "an image has 1 to {BLOBS_MAX} layers");
        let layers: Vec<Vec<u8>> = layer_sizes(total_bytes, layers)
            .into_iter()
            .zip(seed..)
            .map(|(size, seed)| random_bytes(seed, usize::try_from(size).unwrap_or(usize::MAX)))
            .collect();
        let diff_ids: Vec<String> =
            layers.iter().map(|layer| Digest::sha256(layer).to_string()).collect();
        let config = serde_json::json!({
            "architecture": "amd64",
            "os": "linux",
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        })
        .to_string()
        .into_bytes();
        let descriptor = |media_type: &str, bytes: &[u8]| Descriptor {
            media_type: media_type.to_owned(),
            digest: Digest::sha256(bytes).to_string(),
            size: bytes.len() as u64,
        };
        let manifest = Manifest {
            schema_version: 2,
            media_type: MANIFEST_TYPE.to_owned(),
            config: descriptor(CONFIG_TYPE, &config),
            layers: layers.iter().map(|layer| descriptor(LAYER_TYPE, layer)).collect(),
        };
        let blobs = std::iter::once(config)
            .chain(layers)
            .map(|bytes| (Digest::sha256(&bytes), bytes))
            .collect();
        let manifest = serde_json::to_vec(&manifest).unwrap_or_default();
        Self { manifest, blobs }
    }

    /// Bytes of the manifest and all blobs.
    pub fn size_bytes(&self) -> u64 {
        let blobs: usize = self.blobs.iter().map(|(_, bytes)| bytes.len()).sum();
        (self.manifest.len() + blobs) as u64
    }

    /// Pushes it as `repository:tag`.
    ///
    /// # Errors
    /// When the registry refuses any of it.
    pub fn push(
        &self,
        registry: SocketAddr,
        repository: &str,
        tag: &str,
    ) -> Result<(), BenchError> {
        let mut client = HttpClient::new(registry);
        for (digest, bytes) in &self.blobs {
            push_blob(&mut client, repository, digest, bytes)?;
        }
        let path = format!("/v2/{repository}/manifests/{tag}");
        let headers = [("Content-Type", MANIFEST_TYPE)];
        let (head, answer) = client.request_all("PUT", &path, &headers, &self.manifest)?;
        expect(&head, &[201], "PUT", &path, &answer)
    }
}

fn expect(
    head: &crate::load::response::Head,
    statuses: &[u16],
    method: &str,
    path: &str,
    answer: &[u8],
) -> Result<(), BenchError> {
    if statuses.contains(&head.status) {
        return Ok(());
    }
    let answer: String = String::from_utf8_lossy(answer).chars().take(300).collect();
    Err(BenchError::Protocol(format!("{method} {path}: status {}: {answer}", head.status)))
}

/// Pushes one blob.
///
/// # Errors
/// When the registry refuses it.
pub fn push_blob(
    client: &mut HttpClient,
    repository: &str,
    digest: &Digest,
    bytes: &[u8],
) -> Result<(), BenchError> {
    let path = format!("/v2/{repository}/blobs/uploads/");
    let (head, answer) = client.request_all("POST", &path, &[], &[])?;
    expect(&head, &[202], "POST", &path, &answer)?;
    let location = head
        .location
        .ok_or_else(|| BenchError::Protocol(format!("POST {path}: there is no Location")))?;
    let mut path = path_of(&location)?;
    path.push(if path.contains('?') { '&' } else { '?' });
    path.push_str(&format!("digest={digest}"));
    let headers = [("Content-Type", "application/octet-stream")];
    let (head, answer) = client.request_all("PUT", &path, &headers, bytes)?;
    expect(&head, &[201], "PUT", &path, &answer)
}

/// Pulls `repository:tag` as containerd does: HEAD of the tag, GET of the manifest by its digest,
/// then config and layers, `parallel` at a time, each over a kept connection. Every digest is
/// verified. Returns how many bytes came.
///
/// # Errors
/// When anything is missing or has another digest.
pub fn pull(
    registry: SocketAddr,
    repository: &str,
    tag: &str,
    parallel: u32,
) -> Result<u64, BenchError> {
    let accept = [("Accept", MANIFEST_TYPE)];
    let mut client = HttpClient::new(registry);
    let path = format!("/v2/{repository}/manifests/{tag}");
    let (head, answer) = client.request_all("HEAD", &path, &accept, &[])?;
    expect(&head, &[200], "HEAD", &path, &answer)?;
    let digest = head
        .digest
        .and_then(|digest| digest.parse::<Digest>().ok())
        .ok_or_else(|| BenchError::Protocol(format!("HEAD {path}: no Docker-Content-Digest")))?;
    let path = format!("/v2/{repository}/manifests/{digest}");
    let (head, manifest) = client.request_all("GET", &path, &accept, &[])?;
    expect(&head, &[200], "GET", &path, &manifest)?;
    if Digest::sha256(&manifest) != digest {
        return Err(BenchError::Protocol(format!("GET {path}: the manifest has another digest")));
    }
    if head.length > MANIFEST_BYTES_MAX {
        return Err(BenchError::Protocol(format!(
            "GET {path}: a manifest of {} bytes",
            head.length
        )));
    }
    let parsed: Manifest = serde_json::from_slice(&manifest)
        .map_err(|error| BenchError::Protocol(format!("GET {path}: {error}")))?;
    let blobs: Vec<Descriptor> = std::iter::once(parsed.config).chain(parsed.layers).collect();
    if blobs.len() > BLOBS_MAX {
        return Err(BenchError::Protocol(format!("GET {path}: {} blobs", blobs.len())));
    }

    let left = Mutex::new(blobs.iter());
    let take = || left.lock().ok().and_then(|mut left| left.next());
    let mut clients = vec![client];
    clients.resize_with(parallel.max(1) as usize, || HttpClient::new(registry));
    let received = thread::scope(|scope| {
        let threads: Vec<_> = clients
            .into_iter()
            .map(|mut client| {
                scope.spawn(move || {
                    let mut received = 0;
                    while let Some(blob) = take() {
                        pull_blob(&mut client, repository, blob)?;
                        received += blob.size;
                    }
                    Ok::<u64, BenchError>(received)
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .map_err(|_| BenchError::Void("a thread of the pull panicked".to_owned()))?
            })
            .sum::<Result<u64, BenchError>>()
    })?;
    Ok(received + manifest.len() as u64)
}

fn pull_blob(
    client: &mut HttpClient,
    repository: &str,
    blob: &Descriptor,
) -> Result<(), BenchError> {
    let path = format!("/v2/{repository}/blobs/{}", blob.digest);
    let wrong = |what: String| BenchError::Protocol(format!("GET {path}: {what}"));
    let expected = blob.digest.parse::<Digest>().map_err(|error| wrong(error.to_string()))?;
    let mut hasher = ContentHasher::new(expected.algorithm());
    let mut length = 0;
    let head = client.request("GET", &path, &[], &[], |bytes| {
        hasher.update(bytes);
        length += bytes.len() as u64;
    })?;
    if head.status != 200 {
        return Err(wrong(format!("status {}", head.status)));
    }
    if length != blob.size || hasher.finish() != expected {
        return Err(wrong(format!("{length} bytes with another digest or size")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_the_same_for_the_same_seed_and_no_other() {
        let (a, b) = (Image::generate(1, 10_000, 3), Image::generate(1, 10_000, 3));
        assert_eq!(a.manifest, b.manifest);
        assert_ne!(a.manifest, Image::generate(9, 10_000, 3).manifest);
    }

    #[test]
    fn layers_add_up_to_what_was_asked_for() {
        for layers in [1, 2, 6, 20] {
            let sizes = layer_sizes(69_000_000, layers);
            assert_eq!(sizes.len(), layers as usize);
            assert_eq!(sizes.iter().sum::<u64>(), 69_000_000);
            assert!(sizes.windows(2).all(|pair| pair[0] >= pair[1]), "{sizes:?}");
        }
    }

    #[test]
    fn the_manifest_names_every_blob_by_its_digest() {
        let image = Image::generate(1, 10_000, 4);
        let manifest: Manifest = serde_json::from_slice(&image.manifest).unwrap();
        let named: Vec<String> = std::iter::once(&manifest.config)
            .chain(&manifest.layers)
            .map(|descriptor| descriptor.digest.clone())
            .collect();
        let held: Vec<String> = image.blobs.iter().map(|(digest, _)| digest.to_string()).collect();
        assert_eq!(named, held);
        for (digest, bytes) in &image.blobs {
            assert_eq!(Digest::sha256(bytes), *digest);
        }
    }

    #[test]
    fn random_bytes_do_not_repeat() {
        let bytes = random_bytes(1, 1 << 16);
        let distinct: std::collections::HashSet<&[u8]> = bytes.chunks(8).collect();
        assert_eq!(distinct.len(), bytes.len() / 8);
    }
}
