//! Debian's `docker-registry` (distribution 2.8) on 127.0.0.1, as an upstream that nobody here wrote.

use std::fs;
use std::path::Path;

use crate::http::Client;
use crate::process::Process;
use crate::scratch::Scratch;
use crate::{ports, tools};

/// A running registry with its storage in a temporary folder.
#[derive(Debug)]
pub struct DockerRegistry {
    scratch: Scratch,
    port: u16,
    process: Option<Process>,
}

impl DockerRegistry {
    /// An empty registry.
    pub fn start() -> Self {
        Self::with_config("")
    }

    /// A pull-through cache of `upstream`.
    pub fn mirror_of(upstream: &str) -> Self {
        Self::with_config(&format!("proxy:\n  remoteurl: {upstream}\n"))
    }

    /// A registry that holds the image of `layout` as `name` (repository:tag).
    pub fn with_image(layout: &Path, name: &str) -> Self {
        let registry = Self::start();
        let skopeo = crate::clients::skopeo::Skopeo::new();
        skopeo.push(layout, &format!("{}/{name}", registry.host()));
        registry
    }

    fn with_config(more: &str) -> Self {
        let scratch = Scratch::new();
        let port = ports::free();
        let data = scratch.dir("data").display().to_string();
        let config = [
            "version: 0.1",
            "log: {level: info, accesslog: {disabled: false}}",
            "storage:",
            &format!("  filesystem: {{rootdirectory: {data}}}"),
            "  delete: {enabled: true}",
            "http:",
            &format!("  addr: 127.0.0.1:{port}"),
            more,
        ]
        .join("\n");
        fs::write(scratch.path().join("config.yml"), config).expect("a small file");
        let mut registry = Self { scratch, port, process: None };
        registry.resume();
        registry
    }

    /// Starts again on the same port, with what it holds.
    pub fn resume(&mut self) {
        let mut command = tools::command("docker-registry", self.scratch.path());
        // It takes every variable that begins with REGISTRY_ for a part of its configuration.
        command.env("OTEL_TRACES_EXPORTER", "none").env_remove("REGISTRY_AUTH_FILE");
        command.arg("serve").arg(self.scratch.path().join("config.yml"));
        let log = self.scratch.path().join("log");
        let mut process = Process::start("docker-registry", command, &log);
        let client = self.client();
        process.wait_until("/v2/ is answered", || client.request("GET", "/v2/").try_send().is_ok());
        self.process = Some(process);
    }

    /// Stops it.
    pub fn stop(&mut self) {
        self.process = None;
    }

    /// `127.0.0.1:PORT`.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Its address as a URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.host())
    }

    /// A client of it.
    pub fn client(&self) -> Client {
        Client::new(self.port)
    }

    /// How many requests of `method` for a path that contains `path_part` it has answered, by its access log.
    pub fn count(&self, method: &str, path_part: &str) -> usize {
        let log = fs::read_to_string(self.scratch.path().join("log")).unwrap_or_default();
        let asked = |line: &str| {
            let (_, rest) = line.split_once(&format!("\"{method} /"))?;
            rest.split_once(' ').map(|(path, _)| path.contains(path_part))
        };
        log.lines().filter(|line| asked(line) == Some(true)).count()
    }
}
