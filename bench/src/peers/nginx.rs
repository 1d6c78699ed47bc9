//! nginx as a server of files: one worker, TLS 1.3 with AES-128-GCM, nothing logged, files kept open
//! (and in the page cache).

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::child::{Child, Start};
use super::{certificate, find, free_address};
use crate::{BenchError, http};

/// How nginx is installed.
pub const INSTALL: &str = "apt-get install -y --no-install-recommends nginx-light";

/// How an nginx with HTTP/3 is had: Debian has it from 13 on.
pub const INSTALL_QUIC: &str = "apt-get install -y --no-install-recommends nginx  (Debian 13 or later; 1.25 or later, built with \
     --with-http_v3_module), or name one with --nginx FILE";

/// A running nginx.
#[derive(Debug)]
pub struct Nginx {
    child: Child,
    /// Where it serves HTTPS, and HTTP/3 if it was asked to.
    pub https: SocketAddr,
    /// Where it serves HTTP.
    pub http: SocketAddr,
    /// The folder that it serves.
    pub root: PathBuf,
}

impl Nginx {
    /// Starts nginx in `folder` on `cpu`, serving `folder/www`.
    ///
    /// # Errors
    /// When it is missing or does not start.
    pub fn start(folder: &Path, cpu: Option<usize>) -> Result<Self, BenchError> {
        let program = find(Path::new("nginx"), INSTALL)?;
        Self::start_with(&program, folder, cpu, false)
    }

    /// Starts `program` in the same way, for HTTP/3 too.
    ///
    /// # Errors
    /// When it is missing, cannot speak HTTP/3, or does not start.
    pub fn start_quic(
        program: &Path,
        folder: &Path,
        cpu: Option<usize>,
    ) -> Result<Self, BenchError> {
        let program = find(program, INSTALL_QUIC)?;
        let built = Command::new(&program).arg("-V").output().map(|output| output.stderr);
        if !String::from_utf8_lossy(&built.unwrap_or_default()).contains("http_v3_module") {
            return Err(BenchError::PeerMissing {
                program: format!("nginx with HTTP/3 ({} has none)", program.display()),
                install: INSTALL_QUIC.to_owned(),
            });
        }
        Self::start_with(&program, folder, cpu, true)
    }

    fn start_with(
        program: &Path,
        folder: &Path,
        cpu: Option<usize>,
        quic: bool,
    ) -> Result<Self, BenchError> {
        let root = folder.join("www");
        let writing = |error| BenchError::io(format!("writing to {}", folder.display()))(error);
        fs::create_dir_all(&root).map_err(writing)?;
        let files = certificate::make(folder)?;
        let (https, http) = (free_address()?, free_address()?);
        let shown = folder.display();
        let quic = if quic { format!("listen {https} quic; quic_gso on;") } else { String::new() };
        let configuration = format!(
            "user root; daemon off; worker_processes 1; pid {shown}/pid;\n\
             error_log stderr warn;\n\
             events {{ worker_connections 4096; }}\n\
             http {{\n\
               access_log off; sendfile on; tcp_nodelay on;\n\
               keepalive_requests 1000000000; keepalive_timeout 75s;\n\
               open_file_cache max=100 inactive=1h; open_file_cache_valid 1h;\n\
               client_body_temp_path {shown}/t1; proxy_temp_path {shown}/t2;\n\
               fastcgi_temp_path {shown}/t3; uwsgi_temp_path {shown}/t4; scgi_temp_path {shown}/t5;\n\
               ssl_protocols TLSv1.3; ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;\n\
               ssl_certificate {certificate}; ssl_certificate_key {key};\n\
               server {{ listen {https} ssl; {quic} listen {http}; root {root}; }}\n\
             }}\n",
            certificate = files.certificate.display(),
            key = files.key.display(),
            root = root.display(),
        );
        let file = folder.join("nginx.conf");
        fs::write(&file, configuration).map_err(writing)?;
        let mut child = Child::start(&Start {
            name: "nginx",
            program,
            arguments: vec![
                "-e".into(),
                "stderr".into(),
                "-p".into(),
                folder.into(),
                "-c".into(),
                file.into(),
            ],
            environment: Vec::new(),
            log: folder.join("log"),
            cpu,
        })?;
        child.wait_until(|| http::answers(http, "/"))?;
        Ok(Self { child, https, http, root })
    }

    /// The process number of its master; the worker is its child.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }
}
