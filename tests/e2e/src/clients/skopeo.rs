//! `skopeo`: copies images between registries and OCI layouts.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::image::TAG;
use crate::layout::Pulled;
use crate::netns::Machine;
use crate::process::{Output, run};
use crate::scratch::Scratch;
use crate::tools;

/// skopeo with a home of its own.
#[derive(Debug, Default)]
pub struct Skopeo<'a> {
    scratch: Scratch,
    ca_dir: Option<PathBuf>,
    machine: Option<&'a Machine>,
}

impl<'a> Skopeo<'a> {
    /// For plain HTTP.
    pub fn new() -> Self {
        Self::default()
    }

    /// For HTTPS with the authority in `ca_pem`.
    pub fn trusting(ca_pem: &Path) -> Self {
        let scratch = Scratch::new();
        let dir = scratch.dir("certs");
        std::fs::copy(ca_pem, dir.join("ca.crt")).expect("the CA's certificate is there");
        Self { scratch, ca_dir: Some(dir), machine: None }
    }

    /// Run on this machine.
    pub fn on(mut self, machine: &'a Machine) -> Self {
        self.machine = Some(machine);
        self
    }

    fn copy(&self, side: &str) -> Command {
        let mut command = tools::command("skopeo", self.scratch.path());
        command.args(["--insecure-policy", "copy"]);
        match &self.ca_dir {
            Some(dir) => command.arg(format!("--{side}-cert-dir")).arg(dir),
            None => command.arg(format!("--{side}-tls-verify=false")),
        };
        command
    }

    /// Logs in at `host`; what it pulls and pushes from then on is this user's.
    pub fn login(&self, host: &str, name: &str, secret: &str) -> Output {
        let mut command = tools::command("skopeo", self.scratch.path());
        command.args(["login", "--username", name, "--password", secret]);
        match &self.ca_dir {
            Some(dir) => command.arg("--cert-dir").arg(dir),
            None => command.arg("--tls-verify=false"),
        };
        command.arg(host);
        run(command)
    }

    /// Pulls `image` (host/repository:tag) into a new OCI layout.
    pub fn pull(&self, image: &str) -> Pulled {
        let (layout, output) = self.try_pull(image);
        output.ok();
        layout
    }

    /// Like [`Skopeo::pull`], for a pull that may fail.
    pub fn try_pull(&self, image: &str) -> (Pulled, Output) {
        let layout = Pulled::default();
        let mut command = self.copy("src");
        command.arg(format!("docker://{image}")).arg(format!("oci:{}:{TAG}", layout.display()));
        (layout, self.run(command))
    }

    /// Pushes the image of `layout` as `image`, its digests kept.
    pub fn push(&self, layout: &Path, image: &str) {
        self.try_push(layout, image).ok();
    }

    /// Like [`Skopeo::push`], for a push that may fail.
    pub fn try_push(&self, layout: &Path, image: &str) -> Output {
        let mut command = self.copy("dest");
        command.arg("--preserve-digests");
        command.arg(format!("oci:{}:{TAG}", layout.display())).arg(format!("docker://{image}"));
        self.run(command)
    }

    fn run(&self, command: Command) -> Output {
        match self.machine {
            Some(machine) => run(machine.within(&command)),
            None => run(command),
        }
    }
}
