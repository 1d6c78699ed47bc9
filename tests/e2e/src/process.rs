//! Child processes: each in a process group of its own, its output in a file, ended with its owner.

use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use crate::wait::WAIT_MAX;

/// How many of the last lines of a log a failed test shows.
const LOG_LINES_SHOWN: usize = 60;

/// How long a process that was told to end may take before it is killed.
const END_WAIT_MAX: Duration = Duration::from_secs(15);

/// The longest that one command may run.
const COMMAND_MAX: Duration = Duration::from_secs(180);

/// A running child.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    ended: Option<ExitStatus>,
    graceful: bool,
}

impl Process {
    /// Starts `command`, its output appended to `log`.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Self {
        let out = File::options().create(true).append(true).open(log).expect("the log opens");
        command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(out.try_clone().expect("a file handle is cloned"))
            .stderr(out);
        let child =
            command.spawn().unwrap_or_else(|error| panic!("{name} does not start: {error}"));
        Self { name: name.to_owned(), child, log: log.to_owned(), ended: None, graceful: false }
    }

    /// Asks with SIGTERM before killing when dropped, for daemons that have to clean up after
    /// themselves.
    pub fn ended_gracefully(mut self) -> Self {
        self.graceful = true;
        self
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Everything it printed so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// The status it ended with, if it has ended.
    pub fn status(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("a child of ours can be waited for");
        }
        self.ended
    }

    /// Waits until `ready`; fails when the process ends first.
    pub fn wait_until(&mut self, what: &str, mut ready: impl FnMut() -> bool) {
        let started = Instant::now();
        while !ready() {
            if let Some(status) = self.status() {
                panic!("{} ended with {status} before {what}:\n{}", self.name, self.tail());
            }
            assert!(
                started.elapsed() < WAIT_MAX,
                "{}: waited {WAIT_MAX:?} in vain until {what}:\n{}",
                self.name,
                self.tail()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Sends `signal` to the process alone.
    pub fn signal(&self, signal: Signal) {
        // The child was not waited for yet, so its id cannot belong to anything else.
        if self.ended.is_none() {
            let _ = rustix::process::kill_process(pid_of(&self.child), signal);
        }
    }

    /// Ends the whole group at once, as a power cut would, and waits until it is gone.
    pub fn kill(&mut self) {
        if self.status().is_none() {
            let _ = rustix::process::kill_process_group(pid_of(&self.child), Signal::KILL);
            self.ended = Some(self.child.wait().expect("a child of ours can be waited for"));
        }
    }

    /// SIGTERM, then the status it ends with. Fails when it does not end.
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait_end(WAIT_MAX)
            .unwrap_or_else(|| panic!("{} does not end after SIGTERM:\n{}", self.name, self.tail()))
    }

    /// Waits for the end, at most `bound`.
    pub fn wait_end(&mut self, bound: Duration) -> Option<ExitStatus> {
        let started = Instant::now();
        while self.status().is_none() && started.elapsed() < bound {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.status()
    }

    /// The last lines of the log.
    pub fn tail(&self) -> String {
        tail(&self.log())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.graceful && self.status().is_none() {
            self.signal(Signal::TERM);
            let _ = self.wait_end(END_WAIT_MAX);
        }
        let group = pid_of(&self.child);
        self.kill();
        // What it started itself, if anything is left of that.
        let _ = rustix::process::kill_process_group(group, Signal::KILL);
        if std::thread::panicking() {
            eprintln!("---- the last lines of {}:\n{}----", self.name, self.tail());
        }
    }
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_child(child)
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(LOG_LINES_SHOWN);
    lines[from..].iter().map(|line| format!("    {line}\n")).collect()
}

/// What a command that ended has left.
#[derive(Debug)]
pub struct Output {
    /// The command line, for messages.
    pub line: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
}

impl Output {
    /// Fails unless the command succeeded; gives its standard output.
    pub fn ok(self) -> String {
        assert!(
            self.status.success(),
            "{} ended with {}\n{}{}",
            self.line,
            self.status,
            tail(&self.out),
            tail(&self.err)
        );
        self.out
    }

    /// Fails if the command succeeded; gives all it printed.
    pub fn refused(self) -> String {
        assert!(!self.status.success(), "{} was expected to fail:\n{}", self.line, self.out);
        format!("{}{}", self.out, self.err)
    }
}

/// Runs `command` to its end, at most [`COMMAND_MAX`].
pub fn run(mut command: Command) -> Output {
    let line = format!("{command:?}");
    let mut out = tempfile::tempfile().expect("a temporary file");
    let mut err = tempfile::tempfile().expect("a temporary file");
    command
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(out.try_clone().expect("a file handle is cloned"))
        .stderr(err.try_clone().expect("a file handle is cloned"));
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{line}: {error}"));
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("a child of ours can be waited for") {
            break status;
        }
        if started.elapsed() > COMMAND_MAX {
            let _ = rustix::process::kill_process_group(pid_of(&child), Signal::KILL);
            let _ = child.wait();
            panic!("{line} did not end in {COMMAND_MAX:?}:\n{}{}", read(&mut out), read(&mut err));
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    Output { line, status, out: read(&mut out), err: read(&mut err) }
}

fn read(file: &mut File) -> String {
    use std::io::{Read as _, Seek as _};
    let mut text = Vec::new();
    let _ = file.rewind();
    let _ = file.read_to_end(&mut text);
    String::from_utf8_lossy(&text).into_owned()
}
