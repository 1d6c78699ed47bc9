//! The servers of a comparison: started once, each with all files; who is not installed is left out and
//! named.

use std::collections::HashMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use outrider_artifact::Digest;
use tempfile::TempDir;

use super::cases::{CASES, Case};
use crate::BenchError;
use crate::arguments::{CompareH3Arguments, QuicServer};
use crate::compare::limit::Limit;
use crate::compare::version;
use crate::http::HttpClient;
use crate::image::{push_blob, random_bytes};
use crate::load::Meter;
use crate::peers::caddy::Caddy;
use crate::peers::h3_quinn::{self, H3Quinn};
use crate::peers::nginx::Nginx;
use crate::peers::outrider::{Options, Outrider};
use crate::peers::{find, outrider};
use crate::report;

/// Where the files are in Outrider.
const REPOSITORY: &str = "benchmark/files";
/// Outrider's arena: everything that is downloaded stays in memory.
const RAM_BYTES: u64 = 512 << 20;
/// The seed of the files' bytes.
const SEED: u64 = 0x6f75_7472_6964_6572;

/// A file on a server.
#[derive(Debug)]
pub struct Place {
    /// The server.
    pub server: QuicServer,
    /// Its name in tables: with jumbo frames it says so.
    pub label: String,
    /// Where it serves.
    pub address: SocketAddr,
    /// The path of the file.
    pub path: String,
    /// The file's digest.
    pub digest: Digest,
    /// Whose CPU time counts.
    pub meter: Meter,
    /// The largest UDP payload, with jumbo frames.
    pub mtu: Option<u16>,
}

/// See the module.
#[derive(Debug)]
pub struct Servers {
    folder: TempDir,
    root: PathBuf,
    cpu: usize,
    jumbo_bytes: u16,
    outrider_program: PathBuf,
    wanted: Vec<QuicServer>,
    missing: Vec<String>,
    versions: Vec<String>,
    files: HashMap<usize, (Bytes, Digest)>,
    outrider: HashMap<Option<u16>, Outrider>,
    h3_quinn: HashMap<Option<u16>, H3Quinn>,
    caddy: Option<Caddy>,
    nginx: Option<Nginx>,
    /// It has one file at a time.
    limits: Vec<Limit>,
}

impl Servers {
    /// Makes the files and starts who is installed. Who is asked for by name must be.
    ///
    /// # Errors
    /// When a server does not start, or is missing although it was named.
    pub fn start(arguments: &CompareH3Arguments) -> Result<Self, BenchError> {
        let folder = tempfile::tempdir().map_err(BenchError::io("making a folder"))?;
        let root = folder.path().join("files");
        fs::create_dir(&root).map_err(BenchError::io("making a folder"))?;
        let named = !arguments.only.is_empty();
        let wanted = if named { arguments.only.clone() } else { QuicServer::ALL.to_vec() };
        let mut servers = Self {
            root,
            cpu: arguments.server_cpu,
            jumbo_bytes: arguments.jumbo,
            outrider_program: arguments.outrider.clone(),
            wanted: Vec::new(),
            missing: Vec::new(),
            versions: Vec::new(),
            files: HashMap::new(),
            outrider: HashMap::new(),
            h3_quinn: HashMap::new(),
            caddy: None,
            nginx: None,
            limits: Vec::new(),
            folder,
        };
        servers.make_files()?;
        for server in wanted {
            match servers.start_one(server, &arguments.nginx) {
                Ok(()) => servers.wanted.push(server),
                Err(error @ BenchError::PeerMissing { .. }) if !named => {
                    let text = format!("{} was NOT measured: {error}", server.name());
                    report::progress(&text);
                    servers.missing.push(text);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(servers)
    }

    fn make_files(&mut self) -> Result<(), BenchError> {
        for bytes in CASES.iter().map(|case| case.bytes) {
            if self.files.contains_key(&bytes) {
                continue;
            }
            let content = random_bytes(SEED ^ bytes as u64, bytes);
            let file = self.root.join(name(bytes));
            fs::write(&file, &content)
                .map_err(BenchError::io(format!("writing {}", file.display())))?;
            let digest = Digest::sha256(&content);
            self.files.insert(bytes, (Bytes::from(content), digest));
        }
        Ok(())
    }

    fn start_one(&mut self, server: QuicServer, nginx: &Path) -> Result<(), BenchError> {
        let cpu = Some(self.cpu);
        match server {
            QuicServer::Outrider => {
                let program = find(&self.outrider_program, outrider::INSTALL)?;
                self.versions.push(version(&program, "--version"));
                self.outrider(None).map(|_| ())
            }
            QuicServer::H3Quinn => {
                let program = find(Path::new(h3_quinn::PROGRAM), h3_quinn::INSTALL)?;
                self.versions.push(version(&program, "--version"));
                self.h3_quinn(None).map(|_| ())
            }
            QuicServer::Caddy => {
                self.caddy = Some(Caddy::start(&self.subfolder("caddy")?, &self.root, cpu)?);
                self.versions.push(format!("caddy {}", version(Path::new("caddy"), "version")));
                Ok(())
            }
            QuicServer::Nginx => {
                let started = Nginx::start_quic(nginx, &self.subfolder("nginx")?, cpu)?;
                for bytes in self.files.keys() {
                    let (from, to) =
                        (self.root.join(name(*bytes)), started.root.join(name(*bytes)));
                    fs::copy(&from, &to)
                        .map_err(BenchError::io(format!("writing {}", to.display())))?;
                }
                self.nginx = Some(started);
                self.versions.push(version(nginx, "-v"));
                Ok(())
            }
            QuicServer::Limit => Ok(()),
        }
    }

    fn subfolder(&self, name: &str) -> Result<PathBuf, BenchError> {
        let path = self.folder.path().join(name);
        fs::create_dir(&path).map_err(BenchError::io(format!("making {}", path.display())))?;
        Ok(path)
    }

    fn outrider(&mut self, mtu: Option<u16>) -> Result<&Outrider, BenchError> {
        if !self.outrider.contains_key(&mtu) {
            let folder = self.subfolder(&labelled("outrider", mtu))?;
            let keys = mtu.map(|mtu| format!("[quic]\nmtu_max = {mtu}\n"));
            let options = Options {
                ram_bytes: Some(RAM_BYTES),
                cpu: Some(self.cpu),
                configuration: keys.as_deref(),
                ..Options::default()
            };
            let outrider = Outrider::start(&self.outrider_program, &folder, &options)?;
            for (bytes, digest) in self.files.values() {
                push_blob(&mut HttpClient::new(outrider.http), REPOSITORY, digest, bytes)?;
            }
            self.outrider.insert(mtu, outrider);
        }
        Ok(&self.outrider[&mtu])
    }

    fn h3_quinn(&mut self, mtu: Option<u16>) -> Result<&H3Quinn, BenchError> {
        if !self.h3_quinn.contains_key(&mtu) {
            let folder = self.subfolder(&labelled("h3-quinn", mtu))?;
            let peer = H3Quinn::start(&folder, &self.root, Some(self.cpu), mtu)?;
            self.h3_quinn.insert(mtu, peer);
        }
        Ok(&self.h3_quinn[&mtu])
    }

    /// The file of a case on each server that is to serve it.
    ///
    /// # Errors
    /// When a server does not start.
    pub fn places(&mut self, case: &Case) -> Result<Vec<Place>, BenchError> {
        self.limits.clear();
        let mut places = Vec::new();
        let jumbo = Some(self.jumbo_bytes);
        let plain = case.servers.iter().map(|server| (*server, None));
        for (server, mtu) in plain.chain(case.jumbo.iter().map(|server| (*server, jumbo))) {
            if self.wanted.contains(&server) {
                places.push(self.place(server, case, mtu)?);
            }
        }
        Ok(places)
    }

    fn place(
        &mut self,
        server: QuicServer,
        case: &Case,
        mtu: Option<u16>,
    ) -> Result<Place, BenchError> {
        let (body, digest) = self.files[&case.bytes].clone();
        let file = format!("/{}", name(case.bytes));
        let missing = || BenchError::Void(format!("{} is not there", server.name()));
        let (address, path, meter) = match server {
            QuicServer::Outrider => {
                let outrider = self.outrider(mtu)?;
                let path = format!("/v2/{REPOSITORY}/blobs/{digest}");
                (outrider.https, path, Meter::Process(outrider.pid()))
            }
            QuicServer::H3Quinn => {
                let peer = self.h3_quinn(mtu)?;
                (peer.quic, file, Meter::Process(peer.pid()))
            }
            QuicServer::Caddy => {
                let caddy = self.caddy.as_ref().ok_or_else(missing)?;
                (caddy.quic, file, Meter::Process(caddy.pid()))
            }
            QuicServer::Nginx => {
                let nginx = self.nginx.as_ref().ok_or_else(missing)?;
                (nginx.https, file, Meter::Process(nginx.pid()))
            }
            QuicServer::Limit => {
                let limit = Limit::start(Some(self.cpu), mtu, body)?;
                let place = (limit.quic, file, limit.meter());
                self.limits.push(limit);
                place
            }
        };
        Ok(Place { server, label: labelled(server.name(), mtu), address, path, digest, meter, mtu })
    }

    /// Who was measured.
    pub fn versions(&self) -> Vec<String> {
        self.versions.clone()
    }

    /// Who was not, and why.
    pub fn missing(&self) -> Vec<String> {
        self.missing.clone()
    }
}

fn name(bytes: usize) -> String {
    format!("file-{bytes}")
}

fn labelled(name: &str, mtu: Option<u16>) -> String {
    match mtu {
        Some(mtu) => format!("{name} at {mtu}"),
        None => name.to_owned(),
    }
}
