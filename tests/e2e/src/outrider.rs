//! The product under test: `outrider up` on free ports, with its data in a temporary folder.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::Arc;

use rustix::process::Signal;

use crate::clock::Clock;
use crate::control::Control;
use crate::http::Client;
use crate::metrics::Metrics;
use crate::ports;
use crate::process::{Process, run};
use crate::scratch::Scratch;

/// How one is started. The sizes are small, so that many can run beside each other.
#[derive(Clone, Debug)]
pub struct Options {
    /// `--upstream`, as often as there are entries: `URL` or `NAME=URL`.
    pub upstreams: Vec<String>,
    /// `--ram`.
    pub ram: String,
    /// `--ssd`.
    pub ssd: String,
    /// More of the configuration (TOML tables). When there is any, the daemon's command is used:
    /// `outrider edge --config FILE`, else `outrider up`.
    pub config: Option<String>,
    /// Keys (TOML) for each upstream of the configuration.
    pub upstream_keys: String,
    /// Not `--no-control`.
    pub control: bool,
    /// The clock that it goes by, if not the machine's.
    pub clock: Option<Arc<Clock>>,
    /// `--shards`. By default what `OUTRIDER_TEST_SHARDS` says, or 2.
    pub shards: usize,
}

/// The number of shards where a test does not care: `OUTRIDER_TEST_SHARDS`, or 2.
fn shards_default() -> usize {
    match std::env::var("OUTRIDER_TEST_SHARDS") {
        Ok(text) => text.parse().expect("OUTRIDER_TEST_SHARDS is a number"),
        Err(_) => 2,
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            upstreams: Vec::new(),
            ram: "96MiB".to_owned(),
            ssd: "512MiB".to_owned(),
            config: None,
            upstream_keys: String::new(),
            control: true,
            clock: None,
            shards: shards_default(),
        }
    }
}

impl Options {
    /// With one bare upstream, mirrored at the root.
    pub fn with_upstream(url: &str) -> Self {
        Self { upstreams: vec![url.to_owned()], ..Self::default() }
    }

    /// Adds `NAME=URL`.
    pub fn and_named(mut self, name: &str, url: &str) -> Self {
        self.upstreams.push(format!("{name}={url}"));
        self
    }

    /// With more configuration: TOML tables other than data, listen, cache and upstream.
    pub fn config(mut self, toml: &str) -> Self {
        self.config = Some(toml.to_owned());
        self
    }

    /// With these keys (TOML) for each upstream.
    pub fn upstream_keys(mut self, toml: &str) -> Self {
        self.upstream_keys = toml.to_owned();
        self.config.get_or_insert_default();
        self
    }

    /// With this much RAM for the cache.
    pub fn ram(mut self, size: &str) -> Self {
        self.ram = size.to_owned();
        self
    }

    /// With this many shards.
    pub fn shards(mut self, count: usize) -> Self {
        self.shards = count;
        self
    }

    /// With this much disk for the cache.
    pub fn ssd(mut self, size: &str) -> Self {
        self.ssd = size.to_owned();
        self
    }
}

/// A running (or stopped) Outrider.
#[derive(Debug)]
pub struct Outrider {
    // In this order: the process ends before its folder is removed.
    process: Option<Process>,
    scratch: Scratch,
    options: Options,
    http: u16,
    https: u16,
    admin: u16,
}

impl Outrider {
    /// Starts one with an empty data directory and waits until it is ready.
    pub fn start(options: Options) -> Self {
        let mut outrider = Self::stopped(options);
        outrider.resume();
        outrider
    }

    /// One that was never started.
    pub fn stopped(options: Options) -> Self {
        let (http, https, admin) = (ports::free(), ports::free(), ports::free());
        Self { process: None, scratch: Scratch::new(), options, http, https, admin }
    }

    /// An edge that joined this cluster, and runs. It has more configuration.
    pub fn joined(control: &Control, options: Options) -> Self {
        let mut edge = Self::stopped(options);
        let token = control.cluster(0, &["token", "--role", "edge", "--region", "local"]).ok();
        let joined = edge.join(&token).ok();
        assert!(joined.contains("joined as edge"), "{joined}");
        edge.resume();
        edge
    }

    /// Runs `outrider cluster join --role edge` for it. It has more configuration, and is stopped.
    pub fn join(&self, token: &str) -> crate::process::Output {
        let more = self.options.config.as_ref().expect("it is started with a configuration");
        let file = self.scratch.path().join("edge.toml");
        std::fs::write(&file, self.config_file(more)).expect("a small file");
        let mut command = Command::new(Self::program());
        command.args(["cluster", "join", "--role", "edge", "--config"]).arg(file).arg(token.trim());
        run(command)
    }

    /// The program.
    pub fn program() -> PathBuf {
        if let Some(path) = std::env::var_os("OUTRIDER_BIN") {
            return path.into();
        }
        // Cargo puts tests into target/PROFILE/deps and programs into target/PROFILE.
        let test = std::env::current_exe().expect("a program knows where it is");
        let profile = test.parent().and_then(Path::parent).expect("target/PROFILE/deps/TEST");
        let path = profile.join("outrider");
        assert!(path.is_file(), "{} is missing: cargo build -p outrider", path.display());
        path
    }

    /// The command line of one that is started on this data directory and these ports.
    pub fn command(&self) -> Command {
        let mut command = Command::new(Self::program());
        command.current_dir(self.scratch.path()).env("HOME", self.scratch.path());
        if let Some(clock) = &self.options.clock {
            clock.before(&mut command);
        }
        if let Some(more) = &self.options.config {
            let file = self.scratch.path().join("edge.toml");
            std::fs::write(&file, self.config_file(more)).expect("a small file");
            command.arg("edge").arg("--config").arg(file);
            return command;
        }
        command.arg("up").arg("--data").arg(self.data_dir());
        command.args(["--http", &self.host(), "--https", &format!("127.0.0.1:{}", self.https)]);
        command.args(["--admin", &format!("127.0.0.1:{}", self.admin)]);
        command.args(["--ram", &self.options.ram, "--ssd", &self.options.ssd]);
        command.args(["--shards", &self.options.shards.to_string()]);
        if !self.options.control {
            command.arg("--no-control");
        }
        for upstream in &self.options.upstreams {
            command.args(["--upstream", upstream]);
        }
        command
    }

    fn config_file(&self, more: &str) -> String {
        let Options { upstreams, ram, ssd, upstream_keys, shards, .. } = &self.options;
        let mut toml = format!(
            "[data]\ndir = {:?}\n\
             [listen]\nhttp = {:?}\nhttps = \"127.0.0.1:{}\"\nadmin = \"127.0.0.1:{}\"\n\
             [shards]\ncount = {shards}\npin = false\n\
             [cache]\nram = {ram:?}\nssd = {ssd:?}\n{more}\n",
            self.data_dir(),
            self.host(),
            self.https,
            self.admin
        );
        for upstream in upstreams {
            let (name, url) = match upstream.split_once('=') {
                Some((name, url)) => (format!("name = {name:?}\n"), url),
                None => (String::new(), upstream.as_str()),
            };
            toml += &format!("[[upstream]]\n{name}url = {url:?}\n{upstream_keys}\n");
        }
        toml
    }

    /// Starts it again on the same data directory and ports, and waits until it is ready.
    pub fn resume(&mut self) {
        assert!(self.process.is_none(), "it is stopped");
        let mut process = Process::start("outrider", self.command(), &self.log_file());
        let admin = self.admin();
        process.wait_until("/readyz answers 200", || {
            admin.request("GET", "/readyz").try_send().is_ok_and(|answer| answer.status == 200)
        });
        self.process = Some(process);
    }

    /// Whether it has a node of the control plane at its next start.
    pub fn set_control(&mut self, control: bool) {
        assert!(self.process.is_none(), "it is stopped");
        self.options.control = control;
    }

    /// The number of shards of the next start.
    pub fn set_shards(&mut self, count: usize) {
        assert!(self.process.is_none(), "it is stopped");
        self.options.shards = count;
    }

    /// Ends it at once, as a power cut would; what the kernel holds of its files stays.
    pub fn kill9(&mut self) {
        self.process.as_mut().expect("it runs").kill();
        self.process = None;
    }

    /// Sends SIGTERM and goes on.
    pub fn begin_termination(&self) {
        self.process.as_ref().expect("it runs").signal(Signal::TERM);
    }

    /// Waits until it has ended.
    pub fn wait_end(&mut self) -> ExitStatus {
        let mut process = self.process.take().expect("it runs");
        process.wait_end(crate::wait::WAIT_MAX).expect("it ends")
    }

    /// SIGTERM, to the end.
    pub fn terminate(&mut self) -> ExitStatus {
        self.process.take().expect("it runs").terminate()
    }

    /// Stops it in order and starts it again.
    pub fn restart(&mut self) {
        let status = self.terminate();
        assert!(status.success(), "SIGTERM ends it with success, not {status}:\n{}", self.log());
        self.resume();
    }

    /// Kills it and starts it again.
    pub fn crash_and_restart(&mut self) {
        self.kill9();
        self.resume();
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(|process| process.status().is_none())
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.process.as_ref().expect("it runs").id()
    }

    /// `127.0.0.1:PORT` of plain HTTP.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.http)
    }

    /// The URL of plain HTTP.
    pub fn url(&self) -> String {
        format!("http://{}", self.host())
    }

    /// `localhost:PORT` of HTTPS.
    pub fn https_host(&self) -> String {
        format!("localhost:{}", self.https)
    }

    /// The port of HTTPS.
    pub fn https_port(&self) -> u16 {
        self.https
    }

    /// The port of the admin pages.
    pub fn admin_port(&self) -> u16 {
        self.admin
    }

    /// The port of plain HTTP.
    pub fn http_port(&self) -> u16 {
        self.http
    }

    /// The certificate of its authority.
    pub fn ca_pem(&self) -> PathBuf {
        self.data_dir().join("tls/ca.pem")
    }

    /// A client of plain HTTP.
    pub fn client(&self) -> Client {
        Client::new(self.http)
    }

    /// A client of the admin port.
    pub fn admin(&self) -> Client {
        Client::new(self.admin)
    }

    /// A reading of all metrics.
    pub fn metrics(&self) -> Metrics {
        Metrics::parse(&self.admin().get("/metrics").expect(200).text())
    }

    /// Its data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.scratch.path().join("data")
    }

    /// Everything it printed, over all its starts.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.log_file()).unwrap_or_default()).into_owned()
    }

    fn log_file(&self) -> PathBuf {
        self.scratch.path().join("outrider.log")
    }

    /// Runs a command line of the program to its end.
    pub fn run(arguments: &[&str]) -> crate::process::Output {
        let mut command = Command::new(Self::program());
        command.args(arguments);
        run(command)
    }
}
