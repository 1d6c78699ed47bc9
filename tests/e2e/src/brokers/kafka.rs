//! One Apache Kafka node (broker and controller) on 127.0.0.1, its data in a temporary folder.

use std::fs;
use std::process::Command;

use crate::process::{Process, run};
use crate::scratch::Scratch;
use crate::{ports, tools};

/// The broker.
#[derive(Debug)]
pub struct Kafka {
    // In this order: the process ends before its folder is removed.
    process: Option<Process>,
    port: u16,
    scratch: Scratch,
    starts: usize,
}

impl Kafka {
    /// A new one; waits until it serves.
    pub fn start() -> Self {
        let (port, controller) = (ports::free(), ports::free());
        let scratch = Scratch::new();
        let at = |port| format!("127.0.0.1:{port}");
        let listeners = format!("PLAINTEXT://{},CONTROLLER://{}", at(port), at(controller));
        let config = [
            "process.roles=broker,controller",
            "node.id=1",
            &format!("listeners={listeners}"),
            &format!("advertised.listeners={listeners}"),
            "controller.listener.names=CONTROLLER",
            &format!("controller.quorum.bootstrap.servers={}", at(controller)),
            "listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            &format!("log.dirs={}", scratch.path().join("data").display()),
            "auto.create.topics.enable=false",
            "offsets.topic.replication.factor=1",
        ]
        .join("\n");
        fs::write(scratch.path().join("server.properties"), config).expect("a small file");
        let logging = "Configuration: {status: warn, Appenders: {Console: {name: out, PatternLayout: {pattern: \
                       \"%d %p %m (%c)%n\"}}}, Loggers: {Root: {level: info, AppenderRef: {ref: out}}}}";
        fs::write(scratch.path().join("log4j2.yaml"), logging).expect("a small file");
        let mut kafka = Self { process: None, port, scratch, starts: 0 };
        let mut format = kafka.java();
        format.args(["kafka.tools.StorageTool", "format", "--standalone", "-t"]);
        format.args(["b3V0cmlkZXItdGVzdHMtMQ", "-c"]).arg(kafka.config());
        run(format).ok();
        kafka.resume();
        kafka
    }

    fn config(&self) -> std::path::PathBuf {
        self.scratch.path().join("server.properties")
    }

    fn java(&self) -> Command {
        let mut command = tools::command("java", self.scratch.path());
        let jars = tools::cache_dir().join("tools/kafka");
        assert!(jars.is_dir(), "Kafka is missing: run tests/setup.sh");
        command.args(["-Xms128m", "-Xmx384m", "-XX:+UseSerialGC", "-cp"]);
        command.arg(format!("{}/*", jars.display()));
        let logging = self.scratch.path().join("log4j2.yaml");
        command.arg(format!("-Dlog4j2.configurationFile={}", logging.display()));
        command
    }

    /// Its address.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Ends it at once.
    pub fn kill9(&mut self) {
        self.process.as_mut().expect("it runs").kill();
        self.process = None;
    }

    /// Starts it again with what it has; waits until it serves.
    pub fn resume(&mut self) {
        let mut command = self.java();
        command.arg("kafka.Kafka").arg(self.config());
        let log = self.scratch.path().join("kafka.log");
        let mut process = Process::start("kafka", command, &log);
        self.starts += 1;
        let starts = self.starts;
        process.wait_until("Kafka has started", || {
            let log = fs::read_to_string(&log).unwrap_or_default();
            log.matches("Kafka Server started").count() >= starts
        });
        self.process = Some(process);
    }
}
