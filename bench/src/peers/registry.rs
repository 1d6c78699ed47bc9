//! Registries of the distribution project: Debian's docker-registry 2.8 and distribution 3, each as
//! a plain registry or as a pull-through cache of another one, on the local file system.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::child::{Child, Start};
use super::free_address;
use crate::{BenchError, http};

/// How docker-registry 2.8 is installed.
pub const INSTALL_2: &str = "apt-get install -y --no-install-recommends docker-registry";
/// How distribution 3 is installed.
pub const INSTALL_3: &str =
    "go install github.com/distribution/distribution/v3/cmd/registry@v3.1.2";

/// A running registry.
#[derive(Debug)]
pub struct Registry {
    child: Child,
    /// Where it serves HTTP.
    pub http: SocketAddr,
}

impl Registry {
    /// Starts `program` with its data in `folder`; a cache of `upstream` if there is one.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(
        name: &str,
        program: &PathBuf,
        folder: &Path,
        upstream: Option<&str>,
    ) -> Result<Self, BenchError> {
        let writing = |error| BenchError::io(format!("writing to {}", folder.display()))(error);
        fs::create_dir_all(folder.join("data")).map_err(writing)?;
        let http = free_address()?;
        let mut configuration = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
             storage:\n  filesystem: {{rootdirectory: {}}}\n  delete: {{enabled: true}}\n\
             http:\n  addr: {http}\n  secret: benchmark\n",
            folder.join("data").display(),
        );
        if let Some(upstream) = upstream {
            configuration.push_str(&format!("proxy:\n  remoteurl: {upstream}\n"));
        }
        let file = folder.join("config.yml");
        fs::write(&file, configuration).map_err(writing)?;
        let mut child = Child::start(&Start {
            name,
            program,
            arguments: vec!["serve".into(), file.into()],
            environment: vec![("OTEL_TRACES_EXPORTER", "none")],
            log: folder.join("log"),
            cpu: None,
        })?;
        child.wait_until(|| http::answers(http, "/v2/"))?;
        Ok(Self { child, http })
    }

    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }
}
