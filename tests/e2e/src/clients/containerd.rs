//! containerd and `ctr`: a daemon with all its state in a temporary folder, without its CRI plugin,
//! on a Unix socket; registries are mirrored by a `hosts.toml`, which adds `?ns=` to every request.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::process::{Output, Process, run};
use crate::scratch::Scratch;
use crate::tools;

/// A running containerd, with an empty content store.
#[derive(Debug)]
pub struct Containerd {
    _daemon: Process,
    scratch: Scratch,
}

impl Containerd {
    /// Starts one.
    pub fn start() -> Self {
        let scratch = Scratch::new();
        let home = scratch.path().display();
        let unused =
            ["grpc.v1.cri", "internal.v1.opt", "snapshotter.v1.btrfs", "snapshotter.v1.zfs"];
        let unused: Vec<String> =
            unused.iter().map(|name| format!("\"io.containerd.{name}\"")).collect();
        let config = format!(
            "version = 2\nroot = \"{home}/root\"\nstate = \"{home}/state\"\n\
             disabled_plugins = [{}, \"io.containerd.snapshotter.v1.aufs\", \"io.containerd.snapshotter.v1.devmapper\"]\n\
             [grpc]\n  address = \"{home}/c.sock\"\n[ttrpc]\n  address = \"{home}/c.sock.ttrpc\"\n",
            unused.join(", ")
        );
        fs::write(scratch.path().join("config.toml"), config).expect("a small file");
        let mut command = tools::command("containerd", scratch.path());
        command.arg("--config").arg(scratch.path().join("config.toml"));
        let log = scratch.path().join("log");
        let mut daemon = Process::start("containerd", command, &log).ended_gracefully();
        let answers = || {
            let output = ctr(&scratch).arg("version").output();
            output.is_ok_and(|output| output.status.success())
        };
        daemon.wait_until("it answers", answers);
        Self { _daemon: daemon, scratch }
    }

    /// Pulls `image` (registry/repository:tag) with `mirror` standing in for `registry`; gives the digest of its manifest.
    pub fn pull(&self, registry: &str, mirror: &str, image: &str) -> String {
        self.try_pull(registry, mirror, None, image).ok();
        let mut list = ctr(&self.scratch);
        list.args(["images", "list"]).arg(format!("name=={image}"));
        let listed = run(list).ok();
        let digest = listed.split_whitespace().find(|word| word.starts_with("sha256:"));
        digest.unwrap_or_else(|| panic!("no digest in {listed}")).to_owned()
    }

    /// Pulls `image` (host/repository:tag) over plain HTTP as this user; the pull may fail.
    pub fn pull_as(&self, image: &str, user: Option<(&str, &str)>) -> Output {
        let mut command = ctr(&self.scratch);
        command.args(["images", "pull", "--plain-http", "--snapshotter", "native"]);
        if let Some((name, secret)) = user {
            command.arg("--user").arg(format!("{name}:{secret}"));
        }
        command.arg(image);
        run(command)
    }

    /// Pulls `image`, over HTTPS when there is an authority to trust; the pull may fail.
    pub fn try_pull(
        &self,
        registry: &str,
        mirror: &str,
        ca_pem: Option<&Path>,
        image: &str,
    ) -> Output {
        let hosts = self.scratch.dir("hosts");
        fs::create_dir_all(hosts.join(registry)).expect("a folder can be made");
        let ca = ca_pem.map_or(String::new(), |ca| format!("  ca = \"{}\"\n", ca.display()));
        let toml = format!(
            "server = \"https://{registry}\"\n[host.\"{mirror}\"]\n  capabilities = [\"pull\", \"resolve\"]\n{ca}"
        );
        fs::write(hosts.join(registry).join("hosts.toml"), toml).expect("a small file");
        let mut command = ctr(&self.scratch);
        command.args(["images", "pull", "--hosts-dir"]).arg(hosts);
        command.args(["--snapshotter", "native", image]);
        run(command)
    }
}

fn ctr(scratch: &Scratch) -> Command {
    let mut command = tools::command("ctr", scratch.path());
    command.arg("--address").arg(scratch.path().join("c.sock")).args(["--namespace", "tests"]);
    command
}
