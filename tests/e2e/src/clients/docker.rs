//! dockerd and the `docker` command: a daemon without any network of its own, on a Unix socket, that
//! mirrors Docker Hub's names to a URL.

use std::process::Command;

use crate::process::{Output, Process, run};
use crate::scratch::Scratch;
use crate::tools;

/// A running dockerd.
#[derive(Debug)]
pub struct Docker {
    // In this order: the daemon ends before its folder is removed.
    _daemon: Process,
    scratch: Scratch,
}

impl Docker {
    /// A daemon that pulls unqualified names through `mirror`.
    pub fn with_mirror(mirror: &str) -> Self {
        let scratch = Scratch::new();
        let home = scratch.path();
        std::fs::write(home.join("daemon.json"), "{}").expect("a small file");
        let mut command = tools::command("dockerd", home);
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command.arg("--config-file").arg(home.join("daemon.json"));
        command.arg("--data-root").arg(home.join("data"));
        command.arg("--exec-root").arg(home.join("exec"));
        command.arg("--pidfile").arg(home.join("pid"));
        command.arg("--host").arg(format!("unix://{}/d.sock", home.display()));
        command.args(["--iptables=false", "--ip6tables=false", "--ip-forward=false"]);
        command.args(["--ip-masq=false", "--bridge=none", "--storage-driver=overlay2"]);
        command.args(["--registry-mirror", mirror, "--insecure-registry", "127.0.0.0/8"]);
        let mut daemon = Process::start("dockerd", command, &home.join("log")).ended_gracefully();
        let version = || {
            let mut command = docker(&scratch);
            command.arg("version").output().is_ok_and(|output| output.status.success())
        };
        daemon.wait_until("it answers", version);
        Self { _daemon: daemon, scratch }
    }

    /// Logs in at `host`.
    pub fn login(&self, host: &str, name: &str, secret: &str) -> Output {
        let mut command = docker(&self.scratch);
        command.args(["login", "--username", name, "--password", secret, host]);
        run(command)
    }

    /// Pushes what was pulled as `image` as `other`.
    pub fn push_as(&self, image: &str, other: &str) -> Output {
        let mut command = docker(&self.scratch);
        command.args(["tag", image, other]);
        run(command).ok();
        let mut command = docker(&self.scratch);
        command.args(["push", "--quiet", other]);
        run(command)
    }

    /// Pulls `image`; gives the digest of its manifest.
    pub fn pull(&self, image: &str) -> String {
        self.try_pull(image).ok();
        let mut inspect = docker(&self.scratch);
        inspect.args(["image", "inspect", "--format", "{{index .RepoDigests 0}}", image]);
        let digest = run(inspect).ok();
        digest.trim().split_once('@').expect("a digest after the name").1.to_owned()
    }

    /// Pulls `image`, which may fail.
    pub fn try_pull(&self, image: &str) -> Output {
        let mut command = docker(&self.scratch);
        command.args(["pull", "--quiet", image]);
        run(command)
    }

    /// Removes `image` and its layers.
    pub fn remove(&self, image: &str) {
        let mut command = docker(&self.scratch);
        command.args(["rmi", "--force", image]);
        run(command).ok();
    }
}

fn docker(scratch: &Scratch) -> Command {
    // Debian's, which fits Debian's daemon, whatever else is called docker here.
    let mut command = tools::command("docker", scratch.path());
    command.arg("--host").arg(format!("unix://{}/d.sock", scratch.path().display()));
    command
}
