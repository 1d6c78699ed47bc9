//! Caddy as a server of files over HTTP/3 (quic-go): nothing logged, compressed or looked up.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use super::child::{Child, Start};
use super::{certificate, find, free_address};
use crate::{BenchError, http};

/// How Caddy is installed.
pub const INSTALL: &str = "apt-get install -y --no-install-recommends caddy";

/// A running Caddy.
#[derive(Debug)]
pub struct Caddy {
    child: Child,
    /// Where it serves HTTPS and HTTP/3.
    pub quic: SocketAddr,
}

impl Caddy {
    /// Starts Caddy in `folder` on `cpu`, serving the files in `root`.
    ///
    /// # Errors
    /// When it is missing or does not start.
    pub fn start(folder: &Path, root: &Path, cpu: Option<usize>) -> Result<Self, BenchError> {
        let program = find(Path::new("caddy"), INSTALL)?;
        let files = certificate::make(folder)?;
        let (quic, http) = (free_address()?, free_address()?);
        let configuration = format!(
            "{{\n\tadmin off\n\tauto_https off\n\tdefault_bind 127.0.0.1\n\
             \tlog {{\n\t\toutput discard\n\t}}\n}}\n\
             http://{http} {{\n\tbind 127.0.0.1\n\trespond /ready 200\n}}\n\
             https://{quic} {{\n\tbind 127.0.0.1\n\ttls {certificate} {key}\n\troot * {root}\n\
             \tfile_server\n}}\n",
            certificate = files.certificate.display(),
            key = files.key.display(),
            root = root.display(),
        );
        let file = folder.join("Caddyfile");
        fs::write(&file, configuration)
            .map_err(BenchError::io(format!("writing {}", file.display())))?;
        let home = folder.to_string_lossy();
        let mut child = Child::start(&Start {
            name: "caddy",
            program: &program,
            arguments: vec![
                "run".into(),
                "--config".into(),
                file.into(),
                "--adapter".into(),
                "caddyfile".into(),
            ],
            environment: vec![
                ("HOME", &*home),
                ("XDG_DATA_HOME", &*home),
                ("XDG_CONFIG_HOME", &*home),
            ],
            log: folder.join("log"),
            cpu,
        })?;
        child.wait_until(|| http::answers(http, "/ready"))?;
        Ok(Self { child, quic })
    }

    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }
}
