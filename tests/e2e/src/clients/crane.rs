//! `crane`, of go-containerregistry.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::layout::Pulled;
use crate::process::run;
use crate::scratch::Scratch;
use crate::tools;

/// crane with a home of its own.
#[derive(Debug, Default)]
pub struct Crane {
    scratch: Scratch,
    ca_pem: Option<PathBuf>,
}

impl Crane {
    /// For plain HTTP.
    pub fn new() -> Self {
        Self::default()
    }

    /// For HTTPS with the authority in `ca_pem`.
    pub fn trusting(ca_pem: &Path) -> Self {
        Self { scratch: Scratch::new(), ca_pem: Some(ca_pem.to_owned()) }
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = tools::command("crane", self.scratch.path());
        command.arg(verb);
        match &self.ca_pem {
            Some(ca) => command.env("SSL_CERT_FILE", ca),
            None => command.arg("--insecure"),
        };
        command
    }

    /// Logs in at `host`.
    pub fn login(&self, host: &str, name: &str, secret: &str) {
        let mut command = self.command("auth");
        command.args(["login", host, "--username", name, "--password", secret]);
        run(command).ok();
    }

    /// Pulls `image` (host/repository:tag) into a new OCI layout.
    pub fn pull(&self, image: &str) -> Pulled {
        let layout = Pulled::default();
        let mut command = self.command("pull");
        command.arg("--format=oci").arg(image).arg(&*layout);
        run(command).ok();
        layout
    }

    /// Pushes the image of `layout` as `image`.
    pub fn push(&self, layout: &Path, image: &str) {
        let mut command = self.command("push");
        command.arg(layout).arg(image);
        run(command).ok();
    }

    /// The tags of `repository` (host/repository).
    pub fn tags(&self, repository: &str) -> Vec<String> {
        let mut command = self.command("ls");
        command.arg(repository);
        run(command).ok().lines().map(str::to_owned).collect()
    }
}
