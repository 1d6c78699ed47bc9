//! The folder of an edge that joined: who it is, its certificate, and where the nodes are.
//!
//! ```text
//! DIR/                0700
//!   edge.json         number and region in the cluster, and the nodes that it was told of
//!   tls/ca.pem        the cluster's authority
//!   tls/edge.pem      this edge's certificate, edge-key.pem its key
//!   replica.redb      what it knows of the state
//! ```
//!
//! `edge.json` is written last: a folder without it belongs to no cluster.

use std::path::{Path, PathBuf};
use std::{fs, io};

use outrider_certificate::Shown;
use outrider_link::tls::Identity;
use outrider_settings::files::{FileError, PrivateFolder, write_whole};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};

/// The layout that this program reads and writes.
const FORMAT: u32 = 1;
const EDGE: &str = "edge.json";
const CA: &str = "ca.pem";
const CERTIFICATE: &str = "edge.pem";
const KEY: &str = "edge-key.pem";

/// What is wrong with the folder.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// A file or the folder.
    #[error(transparent)]
    File(#[from] FileError),
    /// It belongs to no cluster yet.
    #[error(
        "{0} belongs to no cluster: run `outrider cluster join --role edge --config FILE TOKEN`"
    )]
    NoCluster(String),
    /// It belongs to one already.
    #[error("{0} belongs to a cluster already; remove it first to join another one")]
    Taken(String),
    /// Written by another version, or damaged.
    #[error("{path} cannot be read: {reason}")]
    Unreadable {
        /// The file.
        path: String,
        /// Why.
        reason: String,
    },
}

/// Who this edge is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EdgeFile {
    format: u32,
    /// Its number.
    pub number: u64,
    /// The region that its token named, or empty.
    pub region: String,
    /// `HOST:PORT` of nodes.
    pub nodes: Vec<String>,
}

/// What a newcomer was given.
#[derive(Debug)]
pub struct Given<'a> {
    /// Its number.
    pub number: u64,
    /// Its region.
    pub region: String,
    /// `HOST:PORT` of nodes.
    pub nodes: Vec<String>,
    /// Its certificate.
    pub certificate_pem: &'a str,
    /// The authority.
    pub authority_pem: &'a str,
}

/// The folder. Who uses it holds the lock of the edge's data directory.
#[derive(Clone, Debug)]
pub struct EdgeFolder {
    path: PathBuf,
}

impl EdgeFolder {
    /// The folder at this path, whether it is there or not.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The place of the replica.
    pub fn replica(&self) -> PathBuf {
        self.path.join("replica.redb")
    }

    /// Whether the edge has joined.
    ///
    /// # Errors
    /// [`FolderError::File`]
    pub fn has_joined(&self) -> Result<bool, FolderError> {
        let path = self.path.join(EDGE);
        Ok(path.try_exists().map_err(FileError::of("look for", &path))?)
    }

    /// Refuses a folder that belongs to a cluster.
    ///
    /// # Errors
    /// [`FolderError::Taken`]
    pub fn check_free(&self) -> Result<(), FolderError> {
        match self.has_joined()? {
            false => Ok(()),
            true => Err(FolderError::Taken(self.path.display().to_string())),
        }
    }

    /// The edge's key. It is kept, so that asking again with the same token asks for the same key.
    ///
    /// # Errors
    /// [`FolderError`], and that of `new`, as text.
    pub fn own_key(
        &self,
        new: impl FnOnce() -> Result<String, String>,
    ) -> Result<String, FolderError> {
        let tls = self.tls();
        if let Some(pem) = tls.read_if_there(KEY)? {
            return Ok(pem);
        }
        let pem = new().map_err(|reason| unreadable(&tls.file(KEY), reason))?;
        tls.write(KEY, &pem, 0o600)?;
        Ok(pem)
    }

    /// Writes what a newcomer was given.
    ///
    /// # Errors
    /// [`FolderError`]
    pub fn take_over(&self, given: &Given<'_>) -> Result<(), FolderError> {
        self.check_free()?;
        let tls = self.tls();
        tls.write(CA, given.authority_pem, 0o644)?;
        tls.write(CERTIFICATE, given.certificate_pem, 0o644)?;
        let edge = EdgeFile {
            format: FORMAT,
            number: given.number,
            region: given.region.clone(),
            nodes: given.nodes.clone(),
        };
        let path = self.path.join(EDGE);
        let text = serde_json::to_string_pretty(&edge).map_err(|e| unreadable(&path, e))?;
        Ok(write_whole(&path, text.as_bytes(), 0o600).map_err(FileError::of("write", &path))?)
    }

    /// Who this edge is.
    ///
    /// # Errors
    /// [`FolderError`]
    pub fn edge(&self) -> Result<EdgeFile, FolderError> {
        let path = self.path.join(EDGE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(FolderError::NoCluster(self.path.display().to_string()));
            }
            Err(source) => return Err(FileError::of("read", &path)(source).into()),
        };
        let edge: EdgeFile = serde_json::from_str(&text).map_err(|e| unreadable(&path, e))?;
        match edge.format {
            FORMAT => Ok(edge),
            other => {
                let reason = format!("it has format {other}, this software reads {FORMAT}");
                Err(unreadable(&path, reason))
            }
        }
    }

    /// Takes a new certificate of its key, which has to last longer than the present one: keeps it, and shows it from then
    /// on.
    ///
    /// # Errors
    /// [`FolderError`]; the old one stays then.
    pub fn renew(&self, shown: &Shown, certificate_pem: &str) -> Result<(), FolderError> {
        let tls = self.tls();
        let wrong = |error: &dyn std::fmt::Display| unreadable(&tls.file(CERTIFICATE), error);
        let leaf = CertificateDer::from_pem_slice(certificate_pem.as_bytes());
        let leaf = leaf.map_err(|error| wrong(&error))?;
        let until = shown.check(&leaf).map_err(|error| wrong(&error))?.until;
        if until < shown.validity().until {
            return Err(wrong(&"the node gives one that ends sooner: its clock is behind"));
        }
        tls.write(CERTIFICATE, certificate_pem, 0o644)?;
        shown.replace(leaf).map_err(|error| wrong(&error))
    }

    /// The certificate as TLS wants it.
    ///
    /// # Errors
    /// [`FolderError`]
    pub fn identity(&self) -> Result<Identity, FolderError> {
        let tls = self.tls();
        let certificate = |name| {
            CertificateDer::from_pem_slice(tls.read(name)?.as_bytes())
                .map_err(|error| unreadable(&tls.file(name), error))
        };
        let key = PrivateKeyDer::from_pem_slice(tls.read(KEY)?.as_bytes())
            .map_err(|error| unreadable(&tls.file(KEY), error))?;
        let authority = certificate(CA)?;
        let shown = Shown::new(vec![certificate(CERTIFICATE)?, authority.clone()], key);
        let shown = shown.map_err(|error| unreadable(&tls.file(CERTIFICATE), error))?;
        Ok(Identity { shown, authority })
    }

    fn tls(&self) -> PrivateFolder {
        PrivateFolder::new(self.path.join("tls"))
    }
}

fn unreadable(path: &Path, reason: impl std::fmt::Display) -> FolderError {
    FolderError::Unreadable { path: path.display().to_string(), reason: reason.to_string() }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_folder_belongs_to_one_cluster_and_keeps_its_key() {
        let dir = tempfile::tempdir().unwrap();
        let folder = EdgeFolder::new(&dir.path().join("control"));
        assert!(matches!(folder.edge(), Err(FolderError::NoCluster(_))));
        assert_eq!(folder.own_key(|| Ok("one".to_owned())).unwrap(), "one");
        assert_eq!(folder.own_key(|| Ok("two".to_owned())).unwrap(), "one");
        let nodes = vec!["c1:9191".to_owned()];
        let given = Given {
            number: 7,
            region: "eu".to_owned(),
            nodes: nodes.clone(),
            certificate_pem: "no certificate",
            authority_pem: "none",
        };
        folder.take_over(&given).unwrap();
        let edge = folder.edge().unwrap();
        assert_eq!((edge.number, edge.region.as_str(), edge.nodes), (7, "eu", nodes));
        assert!(matches!(folder.take_over(&given), Err(FolderError::Taken(_))));
        let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(folder.path().to_owned()), 0o700);
        assert_eq!(mode(folder.tls().file(KEY)), 0o600);
        let error = folder.identity().unwrap_err().to_string();
        assert!(error.contains("edge-key.pem cannot be read"), "{error}");
        fs::write(folder.path().join(EDGE), "{\"format\":2}").unwrap();
        assert!(matches!(folder.edge(), Err(FolderError::Unreadable { .. })));
    }
}
