//! `podman`: pulls into, and pushes from, a store of its own.

use std::path::Path;
use std::process::Command;

use crate::image::TAG;
use crate::process::run;
use crate::scratch::Scratch;
use crate::tools;

/// podman with a store of its own, empty at first.
#[derive(Debug, Default)]
pub struct Podman {
    scratch: Scratch,
}

impl Podman {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = tools::command("podman", self.scratch.path());
        command.arg("--root").arg(self.scratch.path().join("root"));
        command.arg("--runroot").arg(self.scratch.path().join("run"));
        command.args(["--storage-driver", "overlay", "--cgroup-manager", "cgroupfs"]);
        command.args(["--events-backend", "none"]);
        command.args(arguments);
        command
    }

    /// Logs in at `host`, over plain HTTP.
    pub fn login(&self, host: &str, name: &str, secret: &str) {
        let login = ["login", "--tls-verify=false", "--username", name, "--password", secret, host];
        run(self.command(&login)).ok();
    }

    /// Pulls `image` (host/repository:tag) over plain HTTP; gives the digest of its manifest.
    pub fn pull(&self, image: &str) -> String {
        run(self.command(&["pull", "--quiet", "--tls-verify=false", image])).ok();
        self.digest(image)
    }

    /// Pulls `image` over HTTPS with the authority in `ca_pem`.
    pub fn pull_trusting(&self, image: &str, ca_pem: &Path) -> String {
        let certs = self.scratch.dir("certs");
        std::fs::copy(ca_pem, certs.join("ca.crt")).expect("the CA's certificate is there");
        let mut command = self.command(&["pull", "--quiet", "--cert-dir"]);
        command.arg(certs).arg(image);
        run(command).ok();
        self.digest(image)
    }

    fn digest(&self, image: &str) -> String {
        let inspect = self.command(&["image", "inspect", "--format", "{{.Digest}}", image]);
        run(inspect).ok().trim().to_owned()
    }

    /// Removes every image of the store.
    pub fn remove_all(&self) {
        run(self.command(&["rmi", "--all", "--force"])).ok();
    }

    /// Pushes the image of `layout` as `image` over plain HTTP; gives the digest of the manifest that podman wrote for it.
    pub fn push(&self, layout: &Path, image: &str) -> String {
        // podman makes a name of the path, so the path has to be a name.
        let link = self.scratch.path().join("image");
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(layout, &link).expect("a new link");
        let source = format!("oci:image:{TAG}");
        let id = run(self.command(&["pull", "--quiet", &source])).ok().trim().to_owned();
        let digest_file = self.scratch.path().join("digest");
        let mut command = self.command(&["push", "--quiet", "--tls-verify=false", "--digestfile"]);
        command.arg(&digest_file).arg(&id).arg(image);
        run(command).ok();
        std::fs::read_to_string(digest_file).expect("podman wrote the digest").trim().to_owned()
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        // Unmounts what the overlay driver mounted.
        if self.scratch.path().join("root").exists() {
            let _ = self.command(&["rmi", "--all", "--force"]).output();
        }
    }
}
