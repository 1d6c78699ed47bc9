//! One RabbitMQ node on 127.0.0.1, its data in a temporary folder, with the port mapper of its own that it needs.

use std::fs;
use std::net::TcpStream;
use std::process::Command;

use crate::process::Process;
use crate::scratch::Scratch;
use crate::wait::until;
use crate::{ports, tools};

const SERVER: &str = "/usr/lib/rabbitmq/bin/rabbitmq-server";

/// The broker.
#[derive(Debug)]
pub struct Rabbitmq {
    // In this order: the processes end before their folder is removed.
    process: Option<Process>,
    _epmd: Process,
    port: u16,
    distribution: u16,
    epmd_port: u16,
    scratch: Scratch,
    starts: usize,
}

impl Rabbitmq {
    /// A new one; waits until it serves.
    pub fn start() -> Self {
        let (port, distribution, epmd_port) = (ports::free(), ports::free(), ports::free());
        let scratch = Scratch::new();
        let mut command = tools::command("epmd", scratch.path());
        command.args(["-address", "127.0.0.1", "-port", &epmd_port.to_string()]);
        let epmd = Process::start("epmd", command, &scratch.path().join("epmd.log"));
        until("epmd listens", || TcpStream::connect(("127.0.0.1", epmd_port)).is_ok());
        for dir in ["mnesia", "log"] {
            scratch.dir(dir);
        }
        fs::write(scratch.path().join("plugins"), "[].").expect("a small file");
        let config = "loopback_users.guest = true\nlog.console.level = info\n\
                      vm_memory_high_watermark.absolute = 512MB\ndisk_free_limit.absolute = 50MB\n";
        fs::write(scratch.path().join("rabbitmq.conf"), config).expect("a small file");
        let mut rabbitmq =
            Self { process: None, _epmd: epmd, port, distribution, epmd_port, scratch, starts: 0 };
        rabbitmq.resume();
        rabbitmq
    }

    /// Its address as a URL.
    pub fn url(&self) -> String {
        format!("amqp://127.0.0.1:{}/%2f", self.port)
    }

    /// Ends it at once.
    pub fn kill9(&mut self) {
        self.process.as_mut().expect("it runs").kill();
        self.process = None;
    }

    /// Starts it again with what it has; waits until it serves.
    pub fn resume(&mut self) {
        assert!(std::path::Path::new(SERVER).is_file(), "RabbitMQ is missing: run tests/setup.sh");
        let at = |name: &str| self.scratch.path().join(name);
        let mut command = Command::new(SERVER);
        command
            .current_dir(self.scratch.path())
            .env("HOME", self.scratch.path())
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("ERL_EPMD_PORT", self.epmd_port.to_string())
            .env("RABBITMQ_NODENAME", format!("rabbit{}@localhost", self.port))
            .env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_NODE_PORT", self.port.to_string())
            .env("RABBITMQ_DIST_PORT", self.distribution.to_string())
            .env("RABBITMQ_MNESIA_BASE", at("mnesia"))
            .env("RABBITMQ_LOG_BASE", at("log"))
            .env("RABBITMQ_LOGS", "-")
            .env("RABBITMQ_PID_FILE", at("rabbit.pid"))
            .env("RABBITMQ_CONFIG_FILE", at("rabbitmq"))
            .env("RABBITMQ_CONF_ENV_FILE", at("none"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", at("plugins"))
            .env("RABBITMQ_FEATURE_FLAGS_FILE", at("feature_flags"))
            .env(
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
                "-kernel inet_dist_use_interface {127,0,0,1} +S 1:1 +sbwt none",
            );
        let log = at("rabbitmq.log");
        let mut process = Process::start("rabbitmq", command, &log);
        self.starts += 1;
        let starts = self.starts;
        process.wait_until("RabbitMQ has started", || {
            let log = fs::read_to_string(&log).unwrap_or_default();
            log.matches("Server startup complete").count() >= starts
        });
        self.process = Some(process);
    }
}
