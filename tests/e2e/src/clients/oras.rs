//! `oras`: artifacts that are no container images, and copies of images.

use std::path::Path;
use std::process::Command;

use crate::image::TAG;
use crate::layout::Pulled;
use crate::process::run;
use crate::scratch::Scratch;
use crate::tools;

/// oras with a home of its own, for plain HTTP.
#[derive(Debug, Default)]
pub struct Oras {
    scratch: Scratch,
}

impl Oras {
    /// For plain HTTP.
    pub fn new() -> Self {
        Self::default()
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = tools::command("oras", self.scratch.path());
        command.arg(verb);
        command
    }

    /// Logs in at `host`.
    pub fn login(&self, host: &str, name: &str, secret: &str) {
        let mut command = self.command("login");
        command.args(["--plain-http", "--username", name, "--password", secret, host]);
        run(command).ok();
    }

    /// Copies `image` (host/repository:tag) into a new OCI layout.
    pub fn pull_image(&self, image: &str) -> Pulled {
        let layout = Pulled::default();
        let mut command = self.command("copy");
        command.arg("--from-plain-http").arg(image).arg("--to-oci-layout");
        command.arg(format!("{}:{TAG}", layout.display()));
        run(command).ok();
        layout
    }

    /// Copies the image of `layout` to `image`.
    pub fn push_image(&self, layout: &Path, image: &str) {
        let mut command = self.command("copy");
        command.arg("--to-plain-http").arg("--from-oci-layout");
        command.arg(format!("{}:{TAG}", layout.display())).arg(image);
        run(command).ok();
    }

    /// Pushes one file as an artifact named `artifact` (host/repository:tag).
    pub fn push_file(&self, bytes: &[u8], artifact: &str) {
        std::fs::write(self.scratch.path().join("file.bin"), bytes).expect("a file is written");
        let mut command = self.command("push");
        command.args(["--plain-http", "--artifact-type", "application/vnd.outrider.test"]);
        command.arg(artifact).arg("file.bin:application/octet-stream");
        run(command).ok();
    }

    /// Pulls the only file of `artifact`.
    pub fn pull_file(&self, artifact: &str) -> Vec<u8> {
        let into = tempfile::tempdir_in(self.scratch.path()).expect("a folder can be made").keep();
        let mut command = self.command("pull");
        command.args(["--plain-http", "--output"]).arg(&into).arg(artifact);
        run(command).ok();
        std::fs::read(into.join("file.bin")).expect("the file was pulled")
    }
}
