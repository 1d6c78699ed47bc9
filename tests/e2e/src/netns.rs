//! Machines of a test: network namespaces, each with an address of its own, on a switch that is a bridge in one
//! more namespace. Nothing of it is seen from outside, and all of it ends with the last process in it. Needs root.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;

use crate::process::{Output, Process, run};
use crate::scratch::Scratch;
use crate::tools;
use crate::wait::until;

/// A namespace, kept by a process that sleeps in it.
#[derive(Debug)]
struct Namespace {
    keeper: Process,
}

impl Namespace {
    fn new(scratch: &Scratch) -> Self {
        let own = namespace_of("self");
        let mut command = Command::new(tools::program("unshare"));
        command.args(["--net", "sleep", "infinity"]);
        let keeper = Process::start("unshare", command, &scratch.path().join("unshare.log"));
        let id = keeper.id().to_string();
        let made = || namespace_of(&id).is_some_and(|its| Some(its) != own);
        until("a network namespace is made (as root)", made);
        Self { keeper }
    }

    /// The command, run in it.
    fn within(&self, command: &Command) -> Command {
        let mut within = Command::new(tools::program("nsenter"));
        within.arg(format!("--net=/proc/{}/ns/net", self.keeper.id())).arg("--");
        within.arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => within.env(name, value),
                None => within.env_remove(name),
            };
        }
        if let Some(dir) = command.get_current_dir() {
            within.current_dir(dir);
        }
        within
    }

    fn ip(&self, line: &str) {
        let mut command = Command::new(tools::program("ip"));
        command.args(line.split_whitespace());
        run(self.within(&command)).ok();
    }
}

fn namespace_of(process: &str) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/{process}/ns/net")).ok()
}

/// The switch between machines.
#[derive(Debug)]
pub struct Switch {
    namespace: Namespace,
    scratch: Scratch,
}

impl Default for Switch {
    fn default() -> Self {
        let scratch = Scratch::new();
        let namespace = Namespace::new(&scratch);
        namespace.ip("link add switch type bridge");
        namespace.ip("link set switch up");
        Self { namespace, scratch }
    }
}

impl Switch {
    /// A machine with the address 10.77.0.`number`.
    pub fn machine(&self, number: u8) -> Machine {
        let namespace = Namespace::new(&self.scratch);
        let keeper = namespace.keeper.id();
        let port = format!("port{number}");
        self.namespace.ip(&format!("link add {port} type veth peer name eth0 netns {keeper}"));
        self.namespace.ip(&format!("link set {port} master switch up"));
        let address = Ipv4Addr::new(10, 77, 0, number);
        namespace.ip("link set lo up");
        namespace.ip(&format!("address add {address}/24 dev eth0"));
        namespace.ip("link set eth0 up");
        Machine { address, port, namespace, scratch: Scratch::new(), process: None }
    }

    /// Pulls a machine's cable.
    pub fn unplug(&self, machine: &Machine) {
        self.namespace.ip(&format!("link set {} down", machine.port));
    }

    /// Puts it back.
    pub fn plug(&self, machine: &Machine) {
        self.namespace.ip(&format!("link set {} up", machine.port));
    }
}

/// A machine on the switch, with a folder of its own, and at most one Outrider.
#[derive(Debug)]
pub struct Machine {
    // In this order: what runs on it ends before its network does.
    process: Option<Process>,
    namespace: Namespace,
    scratch: Scratch,
    address: Ipv4Addr,
    port: String,
}

impl Machine {
    /// Its address.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Its folder.
    pub fn folder(&self) -> &std::path::Path {
        self.scratch.path()
    }

    /// A command as this machine would run it.
    pub fn within(&self, command: &Command) -> Command {
        let mut within = self.namespace.within(command);
        within.env("NO_PROXY", "127.0.0.1,localhost,10.77.0.0/24");
        within
    }

    /// Runs `outrider ARGUMENTS` to its end.
    pub fn outrider(&self, arguments: &[&str]) -> Output {
        run(self.within(&self.command(arguments)))
    }

    /// Starts `outrider ARGUMENTS`; what ran before has ended.
    pub fn start(&mut self, arguments: &[&str]) {
        let log = self.folder().join("outrider.log");
        let command = self.within(&self.command(arguments));
        let name = format!("outrider on {}", self.address);
        self.process = Some(Process::start(&name, command, &log));
        let process = self.process.as_mut().expect("it was just started");
        process.wait_until("it logs", || log.is_file());
    }

    /// Ends it as a power cut would.
    pub fn kill9(&mut self) {
        self.process.take().expect("it runs").kill();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(crate::Outrider::program());
        command.args(arguments).current_dir(self.folder()).env("HOME", self.folder());
        command
    }

    /// What a loopback URL of this machine answers: status and body. Status 0 for no answer at all.
    pub fn curl(&self, arguments: &[&str]) -> (u16, String) {
        let mut command = Command::new(tools::program("curl"));
        command.args(["--silent", "--max-time", "20", "--write-out", "\n%{http_code}"]);
        let output = run(self.within(command.args(arguments)));
        let (body, status) = output.out.rsplit_once('\n').unwrap_or_default();
        (status.parse().unwrap_or(0), body.to_owned())
    }

    /// Waits until a loopback URL of this machine answers 200; gives the body.
    pub fn until_ok(&self, url: &str) -> String {
        let mut answered = String::new();
        until(&format!("{} answers 200 at {url}", self.address), || {
            let (status, body) = self.curl(&[url]);
            answered = body;
            status == 200
        });
        answered
    }
}
