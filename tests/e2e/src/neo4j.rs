//! A Neo4j on 127.0.0.1, as `tests/setup.sh` installed it.

use std::process::Command;

use rustix::process::Signal;

use crate::process::Process;
use crate::scratch::Scratch;
use crate::{ports, tools};

/// A running server with its database in a temporary folder.
#[derive(Debug)]
pub struct Neo4j {
    // In this order: the process ends before its folder is removed.
    process: Option<Process>,
    port: u16,
    scratch: Scratch,
}

impl Neo4j {
    /// An empty one.
    pub fn start() -> Self {
        let mut neo4j = Self { process: None, port: ports::free(), scratch: Scratch::new() };
        neo4j.resume();
        neo4j
    }

    /// Starts it again on the same port, with what it holds.
    pub fn resume(&mut self) {
        let folder = tools::cache_dir().join("tools/neo4j");
        let java = folder.join("java/bin/java");
        assert!(java.is_file(), "Neo4j is missing: run tests/setup.sh");
        let mut command = Command::new(java);
        command.args(["-Xms128m", "-Xmx512m", "-XX:+UseSerialGC", "-cp"]);
        command.arg(format!("{0}/classes:{0}/lib/*", folder.display()));
        for package in ["java.nio", "java.io", "sun.nio.ch", "java.util.concurrent", "java.lang"] {
            command.arg(format!("--add-opens=java.base/{package}=ALL-UNNAMED"));
        }
        command.arg("Server").arg(self.scratch.path()).arg(self.port.to_string());
        let log = self.scratch.path().join("server.log");
        let mut process = Process::start("neo4j", command, &log);
        let said = || std::fs::read_to_string(&log).is_ok_and(|log| log.contains("ready"));
        process.wait_until("it says that it is ready", said);
        self.process = Some(process);
    }

    /// Ends it at once.
    pub fn kill9(&mut self) {
        self.process.as_mut().expect("it runs").kill();
        self.process = None;
        // What is said next is said by the next process.
        drop(std::fs::remove_file(self.scratch.path().join("server.log")));
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        self.process.as_ref().expect("it runs").signal(signal);
    }

    /// Where it speaks Bolt.
    pub fn url(&self) -> String {
        format!("bolt://127.0.0.1:{}", self.port)
    }
}
