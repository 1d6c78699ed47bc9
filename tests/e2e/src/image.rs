//! Images. A [`SmallImage`] is made of known bytes in memory, for tests that count and compare. A
//! real image is a runnable OCI layout with several layers, whiteouts and a config, made by umoci
//! from Debian's static busybox, kept in the cache between runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use crate::content::{Random, bytes, sha256};
use crate::process::run;
use crate::tools;

/// The media type of an OCI image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// The media type of an OCI image index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// The media type of Docker's image manifest, version 2, schema 2.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// The media type of Docker's manifest list.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// The media type of an OCI image config.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// The media type of a layer. Random bytes are no tar archive, but no registry looks into a layer.
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// An image of known bytes.
#[derive(Clone, Debug)]
pub struct SmallImage {
    /// The manifest's media type.
    pub media_type: String,
    /// The manifest's bytes.
    pub manifest: Vec<u8>,
    /// The config's bytes.
    pub config: Vec<u8>,
    /// The layers' bytes.
    pub layers: Vec<Vec<u8>>,
}

impl SmallImage {
    /// An image with layers of these sizes; another one for another seed.
    pub fn new(seed: u64, layer_sizes: &[usize]) -> Self {
        let layers = layer_sizes.iter().zip(1..).map(|(size, n)| bytes(seed * 1000 + n, *size));
        Self::of(seed, layers.collect())
    }

    /// An image of these layers, with a config of its own for each seed.
    pub fn of(seed: u64, layers: Vec<Vec<u8>>) -> Self {
        let config = format!(
            "{{\"architecture\":\"amd64\",\"os\":\"linux\",\"created\":\"2026-01-01T00:00:00Z\",\
             \"config\":{{\"Labels\":{{\"seed\":\"{seed}\"}}}},\"rootfs\":{{\"type\":\"layers\",\"diff_ids\":[]}}}}"
        )
        .into_bytes();
        let descriptor = |media_type: &str, bytes: &[u8]| {
            format!(
                "{{\"mediaType\":\"{media_type}\",\"digest\":\"{}\",\"size\":{}}}",
                sha256(bytes),
                bytes.len()
            )
        };
        let listed: Vec<String> = layers.iter().map(|layer| descriptor(OCI_LAYER, layer)).collect();
        let manifest = format!(
            "{{\"schemaVersion\":2,\"mediaType\":\"{OCI_MANIFEST}\",\"config\":{},\"layers\":[{}]}}",
            descriptor(OCI_CONFIG, &config),
            listed.join(",")
        )
        .into_bytes();
        Self { media_type: OCI_MANIFEST.to_owned(), manifest, config, layers }
    }

    /// The config and the layers.
    pub fn blobs(&self) -> impl Iterator<Item = &Vec<u8>> {
        std::iter::once(&self.config).chain(&self.layers)
    }

    /// The digest of the manifest.
    pub fn digest(&self) -> String {
        sha256(&self.manifest)
    }
}

/// The tag of every real image in its layout.
pub const TAG: &str = "v1";

/// A real image of `layers` layers of `layer_mib` MiB each beside the first; its OCI layout. Half of each layer does
/// not compress. Made once, then found in the cache.
pub fn real(layers: u32, layer_mib: usize) -> PathBuf {
    static MAKING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = MAKING.lock();
    let images = tools::cache_dir().join("images");
    let layout = images.join(format!("busybox-1-{layers}x{layer_mib}"));
    if layout.join("index.json").is_file() {
        return layout;
    }
    fs::create_dir_all(&images).expect("the cache is writable");
    let work = tempfile::tempdir_in(&images).expect("the cache is writable");
    make(work.path(), layers, layer_mib);
    // Another process may have made it meanwhile; theirs is as good.
    let _ = fs::rename(work.path().join("image"), &layout);
    assert!(layout.join("index.json").is_file(), "the image is in the cache");
    layout
}

fn make(work: &Path, layers: u32, layer_mib: usize) {
    let umoci = |arguments: &[&str]| {
        let mut command = Command::new(tools::program("umoci"));
        command.current_dir(work).args(arguments);
        run(command).ok();
    };
    let image = format!("image:{TAG}");
    umoci(&["init", "--layout", "image"]);
    umoci(&["new", "--image", &image]);
    umoci(&["unpack", "--image", &image, "bundle"]);
    let root = work.join("bundle/rootfs");
    for dir in ["bin", "etc", "tmp", "proc", "dev", "sys"] {
        fs::create_dir_all(root.join(dir)).expect("the bundle is writable");
    }
    fs::copy(tools::program("busybox"), root.join("bin/busybox")).expect("busybox is copied");
    for applet in ["sh", "ls", "cat", "echo", "sha256sum"] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).expect("a new link");
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\n").expect("a small file");
    umoci(&["repack", "--refresh-bundle", "--image", &image, "bundle"]);
    for layer in 2..=u64::from(layers) {
        let dir = root.join(format!("data/{layer}"));
        fs::create_dir_all(&dir).expect("the bundle is writable");
        let half = layer_mib << 19;
        fs::write(dir.join("random"), bytes(layer, half)).expect("a file is written");
        fs::write(dir.join("text"), text(layer, half)).expect("a file is written");
        for small in 0..50 {
            fs::write(dir.join(format!("small-{small}")), format!("{layer} {small}\n"))
                .expect("a small file");
        }
        if layer > 2 {
            // Shows up in the layer as a whiteout.
            let _ = fs::remove_file(root.join(format!("data/{}/small-1", layer - 1)));
        }
        umoci(&["repack", "--refresh-bundle", "--image", &image, "bundle"]);
    }
    umoci(&["config", "--image", &image, "--config.cmd", "/bin/sh", "--config.env", "PATH=/bin"]);
    umoci(&["gc", "--layout", "image"]);
}

fn text(seed: u64, size: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut out = Vec::with_capacity(size + 64);
    while out.len() < size {
        out.extend_from_slice(
            format!("line {} of layer {seed}\n", random.below(100_000)).as_bytes(),
        );
    }
    out.truncate(size);
    out
}
