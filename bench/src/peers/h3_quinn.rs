//! The HTTP/3 server of h3 and h3-quinn that is kept beside this program (`bench/peers/h3-quinn`).

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::child::{Child, Start};
use super::{certificate, find, free_udp_address};
use crate::BenchError;

/// How the peer is built.
pub const INSTALL: &str = "cargo build --release -p outrider-bench-h3-peer";
/// Its program.
pub const PROGRAM: &str = "outrider-bench-h3-peer";

/// A running peer.
#[derive(Debug)]
pub struct H3Quinn {
    child: Child,
    /// Where it serves HTTP/3.
    pub quic: SocketAddr,
}

impl H3Quinn {
    /// Starts the peer in `folder` on `cpu`, serving the files that are in `root` now. It tries UDP
    /// payloads up to `mtu`, or up to quinn's default.
    ///
    /// # Errors
    /// When it is missing or does not start.
    pub fn start(
        folder: &Path,
        root: &Path,
        cpu: Option<usize>,
        mtu: Option<u16>,
    ) -> Result<Self, BenchError> {
        let program: PathBuf = find(Path::new(PROGRAM), INSTALL)?;
        let files = certificate::make(folder)?;
        let quic = free_udp_address()?;
        let mut arguments = vec![
            "--listen".into(),
            quic.to_string().into(),
            "--root".into(),
            root.into(),
            "--cert".into(),
            files.certificate.into(),
            "--key".into(),
            files.key.into(),
        ];
        if let Some(mtu) = mtu {
            arguments.extend(["--mtu".into(), mtu.to_string().into()]);
        }
        let log = folder.join("log");
        let mut child = Child::start(&Start {
            name: "h3-quinn",
            program: &program,
            arguments,
            environment: Vec::new(),
            log: log.clone(),
            cpu,
        })?;
        child.wait_until(|| {
            fs::read_to_string(&log).is_ok_and(|text| text.contains("listening on"))
        })?;
        Ok(Self { child, quic })
    }

    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }
}
