//! Outrider, as `outrider up` on a folder of this run.

use std::ffi::OsString;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::child::{Child, Start};
use super::{find, free_address};
use crate::{BenchError, http};

/// How Outrider is built.
pub const INSTALL: &str = "cargo build --release -p outrider";

/// A running Outrider.
#[derive(Debug)]
pub struct Outrider {
    child: Child,
    /// Where it serves HTTPS.
    pub https: SocketAddr,
    /// Where it serves HTTP.
    pub http: SocketAddr,
    /// Where its operator looks.
    pub admin: SocketAddr,
    /// Its data.
    pub data: PathBuf,
}

/// How it is started.
#[derive(Clone, Debug, Default)]
pub struct Options<'a> {
    /// The URL that it mirrors at the root.
    pub upstream: Option<&'a str>,
    /// Bytes of its arena.
    pub ram_bytes: Option<u64>,
    /// Bytes of its stripes.
    pub ssd_bytes: Option<u64>,
    /// More of its configuration (TOML): tables other than data, listen, cache, shards and log.
    pub configuration: Option<&'a str>,
    /// How many shards it has; one for each CPU that it may use if nothing is said.
    pub shards: Option<u32>,
    /// The CPU that it may use.
    pub cpu: Option<usize>,
}

impl Outrider {
    /// Starts `program` with its data in `folder/data`.
    ///
    /// # Errors
    /// When it is missing or does not start.
    pub fn start(program: &Path, folder: &Path, options: &Options<'_>) -> Result<Self, BenchError> {
        let program = find(program, INSTALL)?;
        let data = folder.join("data");
        fs::create_dir_all(folder)
            .map_err(BenchError::io(format!("making {}", folder.display())))?;
        let (https, http, admin) = (free_address()?, free_address()?, free_address()?);
        let mut arguments: Vec<OsString> = vec!["up".into(), "--data".into(), data.clone().into()];
        let mut option = |name: &str, value: String| {
            arguments.push(name.into());
            arguments.push(value.into());
        };
        option("--https", https.to_string());
        option("--http", http.to_string());
        option("--admin", admin.to_string());
        if let Some(upstream) = options.upstream {
            option("--upstream", upstream.to_owned());
        }
        if let Some(bytes) = options.ram_bytes {
            option("--ram", bytes.to_string());
        }
        if let Some(bytes) = options.ssd_bytes {
            option("--ssd", bytes.to_string());
        }
        if let Some(shards) = options.shards {
            option("--shards", shards.to_string());
        }
        if let Some(keys) = options.configuration {
            // What `up` would take, and more: as a file, by the daemon's command.
            let ram = options.ram_bytes.map_or_else(String::new, |size| format!("ram = {size}\n"));
            let ssd = options.ssd_bytes.map_or_else(String::new, |size| format!("ssd = {size}\n"));
            let text = format!(
                "{keys}\n[data]\ndir = {:?}\n[listen]\nhttps = \"{https}\"\nhttp = \"{http}\"\n\
                 admin = \"{admin}\"\n[cache]\n{ram}{ssd}[shards]\npin = false\n\
                 [log]\nlevel = \"warn\"\n",
                data.display().to_string(),
            );
            let file = folder.join("edge.toml");
            fs::write(&file, text)
                .map_err(BenchError::io(format!("writing {}", file.display())))?;
            arguments = vec!["edge".into(), "--config".into(), file.into()];
        }
        let mut child = Child::start(&Start {
            name: "outrider",
            program: &program,
            arguments,
            environment: Vec::new(),
            log: folder.join("log"),
            cpu: options.cpu,
        })?;
        child.wait_until(|| http::answers(admin, "/readyz"))?;
        Ok(Self { child, https, http, admin, data })
    }

    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }
}
