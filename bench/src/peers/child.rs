//! A server process of this run. It is pinned when it starts, logs to a file, and is ended when its
//! owner goes: asked first, then killed. If this program is killed, the kernel ends it.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::{BenchError, machine};

/// How long a process may take to become ready.
const READY_MAX: Duration = Duration::from_secs(60);
/// How long it may take to end when it is asked to.
const STOP_MAX: Duration = Duration::from_secs(10);
/// How often its state is looked at.
const POLL: Duration = Duration::from_millis(5);
/// So much of a log is shown when a process fails.
const TAIL_BYTES: usize = 2000;

/// A running server.
#[derive(Debug)]
pub struct Child {
    name: String,
    process: std::process::Child,
    log: PathBuf,
}

/// How a server is started.
#[derive(Clone, Debug)]
pub struct Start<'a> {
    /// Its name in messages.
    pub name: &'a str,
    /// Its program.
    pub program: &'a Path,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Its environment, beside ours.
    pub environment: Vec<(&'a str, &'a str)>,
    /// Where its output goes.
    pub log: PathBuf,
    /// The CPU that it may use; `None` for all of ours.
    pub cpu: Option<usize>,
}

impl Child {
    /// Starts the server. The calling thread must live as long as the server: the kernel ends the
    /// process with the thread that started it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(start: &Start<'_>) -> Result<Self, BenchError> {
        let doing = || format!("starting {} ({})", start.name, start.program.display());
        let log = File::create(&start.log).map_err(BenchError::io(doing()))?;
        let errors = log.try_clone().map_err(BenchError::io(doing()))?;
        let mut command = Command::new(start.program);
        command
            .args(&start.arguments)
            .envs(start.environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors);
        end_with_this_thread(&mut command);
        let process = with_cpu(start.cpu, || command.spawn().map_err(BenchError::io(doing())))?;
        Ok(Self { name: start.name.to_owned(), process, log: start.log.clone() })
    }

    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Waits until `ready` says so.
    ///
    /// # Errors
    /// When it ends, or is not ready in time; with the end of its log.
    pub fn wait_until(&mut self, mut ready: impl FnMut() -> bool) -> Result<(), BenchError> {
        let deadline = Instant::now() + READY_MAX;
        loop {
            if let Ok(Some(status)) = self.process.try_wait() {
                return Err(self.failed(format!("it ended: {status}")));
            }
            if ready() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(self.failed(format!("it was not ready after {READY_MAX:?}")));
            }
            thread::sleep(POLL);
        }
    }

    fn failed(&self, reason: String) -> BenchError {
        let log = std::fs::read(&self.log).unwrap_or_default();
        let tail = &log[log.len().saturating_sub(TAIL_BYTES)..];
        BenchError::PeerFailed {
            program: self.name.clone(),
            reason,
            log: self.log.clone(),
            tail: String::from_utf8_lossy(tail).into_owned(),
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let pid = i32::try_from(self.process.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid.filter(|_| matches!(self.process.try_wait(), Ok(None))) {
            let _ = kill_process(pid, Signal::TERM);
            let deadline = Instant::now() + STOP_MAX;
            while matches!(self.process.try_wait(), Ok(None)) && Instant::now() < deadline {
                thread::sleep(POLL);
            }
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Runs `start` with the calling thread on `cpu`, which what it starts inherits.
fn with_cpu<T>(
    cpu: Option<usize>,
    start: impl FnOnce() -> Result<T, BenchError>,
) -> Result<T, BenchError> {
    let Some(cpu) = cpu else { return start() };
    let before: CpuSet = sched_getaffinity(None)
        .map_err(|errno| BenchError::io("reading the CPU affinity")(errno.into()))?;
    machine::pin(cpu)?;
    let started = start();
    sched_setaffinity(None, &before)
        .map_err(|errno| BenchError::io("restoring the CPU affinity")(errno.into()))?;
    started
}

#[allow(unsafe_code)]
fn end_with_this_thread(command: &mut Command) {
    // SAFETY: between fork and exec only one system call is made (prctl), which takes no lock and
    // allocates nothing.
    unsafe {
        command
            .pre_exec(|| set_parent_process_death_signal(Some(Signal::KILL)).map_err(Into::into));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, folder: &Path, cpu: Option<usize>) -> Child {
        Child::start(&Start {
            name: "a shell",
            program: Path::new("/bin/sh"),
            arguments: vec!["-c".into(), script.into()],
            environment: vec![("GREETING", "hello")],
            log: folder.join("log"),
            cpu,
        })
        .unwrap()
    }

    #[test]
    fn a_child_is_gone_when_its_owner_is() {
        let folder = tempfile::tempdir().unwrap();
        let child = shell("exec sleep 60", folder.path(), None);
        let stat = format!("/proc/{}/stat", child.pid());
        assert!(Path::new(&stat).exists());
        drop(child);
        assert!(!Path::new(&stat).exists());
    }

    #[test]
    fn a_child_that_ends_shows_the_end_of_its_log() {
        let folder = tempfile::tempdir().unwrap();
        let mut child = shell("echo $GREETING; exit 3", folder.path(), None);
        let error = child.wait_until(|| false).unwrap_err().to_string();
        assert!(error.contains("hello") && error.contains("exit status: 3"), "{error}");
    }

    #[test]
    fn a_child_is_pinned_and_this_thread_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let usable = machine::usable();
        let cpu = *usable.last().unwrap();
        let mut child = shell("grep Cpus_allowed_list /proc/self/status", folder.path(), Some(cpu));
        let _ = child.wait_until(|| false);
        let log = std::fs::read_to_string(folder.path().join("log")).unwrap();
        assert_eq!(log.split_whitespace().last(), Some(cpu.to_string().as_str()), "{log}");
        assert_eq!(machine::usable(), usable);
    }
}
