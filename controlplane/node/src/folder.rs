//! The node's folder: who it is, its certificate, and the lock that keeps a second process out.
//!
//! ```text
//! DIR/                0700
//!   node.json         number and name in the cluster, and where it found the others
//!   lock              held while a process uses the folder
//!   tls/ca.pem        the cluster's authority, ca-key.pem its key
//!   tls/node.pem      this node's certificate, node-key.pem its key
//!   raft/             the log and the snapshot
//! ```
//!
//! `node.json` is written last: a folder without it belongs to no cluster.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use outrider_certificate::Validity;
use outrider_raft::rpc::Identity;
use outrider_raft::rpc::tls::{Role, TlsError};
use outrider_settings::files::{FileError, PrivateFolder, write_whole};
use rustix::fs::{FlockOperation, flock};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};

use crate::pki::{self, Authority, PkiError, SigningRequest};

/// The layout that this program reads and writes.
const FORMAT: u32 = 1;
/// The number of the node that made the cluster.
pub const FOUNDER: u64 = 1;

/// What is wrong with the folder.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// A file or the folder.
    #[error(transparent)]
    File(#[from] FileError),
    /// Another process uses it.
    #[error(
        "{0} is in use by another process; stop that one, or give this node a folder of its own"
    )]
    Locked(String),
    /// It belongs to no cluster yet.
    #[error(
        "{0} belongs to no cluster: run `outrider cluster init --config FILE` for the first node of a new \
         one, or `outrider cluster join --config FILE TOKEN`"
    )]
    NoCluster(String),
    /// It belongs to one already.
    #[error("{0} belongs to a cluster already; name another folder, or remove this one")]
    Taken(String),
    /// It has left its cluster.
    #[error("this node has left its cluster; remove {0} before it joins one again")]
    Left(String),
    /// Written by another version, or damaged.
    #[error("{path} cannot be read: {reason}")]
    Unreadable {
        /// The file.
        path: String,
        /// Why.
        reason: String,
    },
    /// Certificates.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The same, as TLS sees them.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Who this node is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeFile {
    format: u32,
    /// Its number.
    pub number: u64,
    /// It is no part of its cluster any more.
    pub left: bool,
    /// Nodes that it found when it joined: number and address.
    pub found: Vec<(u64, String)>,
}

/// The folder, locked.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    _lock: File,
}

/// What a newcomer was given.
#[derive(Debug)]
pub struct Given<'a> {
    /// Its number.
    pub number: u64,
    /// Other nodes.
    pub found: Vec<(u64, String)>,
    /// Its key and certificate.
    pub key_pem: &'a str,
    /// The certificate.
    pub certificate_pem: &'a str,
    /// The authority.
    pub authority_pem: &'a str,
    /// Its key.
    pub authority_key_pem: &'a str,
}

impl Folder {
    /// Makes the folder where it is missing, and locks it.
    ///
    /// # Errors
    /// [`FolderError`]
    pub fn open(path: &Path) -> Result<Self, FolderError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(FileError::of("make", path))?;
        let lock = path.join("lock");
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock)
            .map_err(FileError::of("open", &lock))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: file }),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                Err(FolderError::Locked(path.display().to_string()))
            }
            Err(errno) => Err(FileError::of("lock", &lock)(errno.into()).into()),
        }
    }

    /// Bytes that are free on its disk for who is no superuser, and bytes of that disk.
    pub fn disk(&self) -> Option<(u64, u64)> {
        outrider_settings::files::disk(&self.path)
    }

    /// The queue of events, where it is embedded.
    pub fn events(&self) -> PathBuf {
        self.path.join("events.redb")
    }

    /// The place of log and snapshot.
    pub fn raft(&self) -> PathBuf {
        self.path.join("raft")
    }

    fn shown(&self) -> String {
        self.path.display().to_string()
    }

    fn tls(&self) -> PrivateFolder {
        PrivateFolder::new(self.path.join("tls"))
    }

    fn node_file(&self) -> PathBuf {
        self.path.join("node.json")
    }

    /// Refuses a folder that belongs to a cluster.
    ///
    /// # Errors
    /// [`FolderError::Taken`]
    pub fn check_free(&self) -> Result<(), FolderError> {
        match self.node_file().try_exists() {
            Ok(false) => Ok(()),
            Ok(true) => Err(FolderError::Taken(self.shown())),
            Err(source) => Err(FileError::of("look for", &self.node_file())(source).into()),
        }
    }

    /// A newcomer's key. It is kept, so that asking again with the same token asks for the same key.
    ///
    /// # Errors
    /// [`FolderError`]
    pub fn own_key(&self) -> Result<String, FolderError> {
        let tls = self.tls();
        if let Some(pem) = tls.read_if_there("node-key.pem")? {
            return Ok(pem);
        }
        let (pem, _) = pki::new_key()?;
        tls.write("node-key.pem", &pem, 0o600)?;
        Ok(pem)
    }

    /// Makes a new cluster with this node as its first.
    ///
    /// # Errors
    /// [`FolderError`]
    pub fn found(&self, (now, lifetime): (SystemTime, Duration)) -> Result<Authority, FolderError> {
        self.check_free()?;
        let authority = Authority::create(now)?;
        let key_pem = self.own_key()?;
        let request = SigningRequest::from_pem(&pki::request_for(&key_pem)?)?;
        let certificate_pem = authority.sign(&request, (Role::Node, FOUNDER), (now, lifetime))?;
        self.take_over(&Given {
            number: FOUNDER,
            found: Vec::new(),
            key_pem: &key_pem,
            certificate_pem: &certificate_pem,
            authority_pem: authority.pem(),
            authority_key_pem: &authority.key_pem(),
        })?;
        Ok(authority)
    }

    /// Writes what a newcomer was given.
    ///
    /// # Errors
    /// [`FolderError`]
    pub fn take_over(&self, given: &Given<'_>) -> Result<(), FolderError> {
        self.check_free()?;
        let tls = self.tls();
        tls.write("ca-key.pem", given.authority_key_pem, 0o600)?;
        tls.write("ca.pem", given.authority_pem, 0o644)?;
        tls.write("node-key.pem", given.key_pem, 0o600)?;
        tls.write("node.pem", given.certificate_pem, 0o644)?;
        let found = given.found.clone();
        self.write_node(&NodeFile { format: FORMAT, number: given.number, left: false, found })
    }

    /// Notes that this node is no part of its cluster any more.
    ///
    /// # Errors
    /// [`FolderError`]
    pub fn leave(&self) -> Result<(), FolderError> {
        let node = self.node()?;
        self.write_node(&NodeFile { left: true, ..node })
    }

    fn write_node(&self, node: &NodeFile) -> Result<(), FolderError> {
        let text = serde_json::to_string_pretty(node).map_err(|error| FolderError::Unreadable {
            path: self.node_file().display().to_string(),
            reason: error.to_string(),
        })?;
        let path = self.node_file();
        Ok(write_whole(&path, text.as_bytes(), 0o600).map_err(FileError::of("write", &path))?)
    }

    /// Who this node is.
    ///
    /// # Errors
    /// [`FolderError`]
    pub fn node(&self) -> Result<NodeFile, FolderError> {
        let path = self.node_file();
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(FolderError::NoCluster(self.shown()));
            }
            Err(source) => return Err(FileError::of("read", &path)(source).into()),
        };
        let unreadable =
            |reason: String| FolderError::Unreadable { path: path.display().to_string(), reason };
        let node: NodeFile =
            serde_json::from_str(&text).map_err(|error| unreadable(error.to_string()))?;
        match node.format {
            FORMAT if node.left => Err(FolderError::Left(self.shown())),
            FORMAT => Ok(node),
            other => {
                Err(unreadable(format!("it has format {other}, this software reads {FORMAT}")))
            }
        }
    }

    /// The authority.
    ///
    /// # Errors
    /// [`FolderError`]
    pub fn authority(&self) -> Result<Authority, FolderError> {
        let tls = self.tls();
        Ok(Authority::load(&tls.read("ca.pem")?, &tls.read("ca-key.pem")?)?)
    }

    /// The node's certificate as TLS wants it; renewed before if it is due.
    ///
    /// # Errors
    /// [`FolderError`]
    pub fn identity(
        &self,
        node: &NodeFile,
        (now, lifetime): (SystemTime, Duration),
    ) -> Result<Identity, FolderError> {
        let authority = self.authority()?;
        let tls = self.tls();
        let key_pem = tls.read("node-key.pem")?;
        let mut pem = tls.read("node.pem")?;
        let der = |pem: &str| {
            CertificateDer::from_pem_slice(pem.as_bytes())
                .map_err(|error| TlsError::Certificate(error.to_string()))
        };
        let validity = Validity::of(&der(&pem)?);
        if validity.map_err(|error| TlsError::Certificate(error.to_string()))?.is_due(now) {
            let request = SigningRequest::from_pem(&pki::request_for(&key_pem)?)?;
            pem = authority.sign(&request, (Role::Node, node.number), (now, lifetime))?;
            tls.write("node.pem", &pem, 0o644)?;
        }
        let authority = der(authority.pem())?;
        let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes())
            .map_err(|error| TlsError::Certificate(error.to_string()))?;
        let chain = vec![der(&pem)?, authority.clone()];
        Ok(Identity { chain, key, authority })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_folder_belongs_to_one_cluster_and_one_process_and_keeps_its_keys_to_itself() {
        let now = || (SystemTime::now(), pki::MEMBER_TIME);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control");
        let folder = Folder::open(&path).unwrap();
        assert!(matches!(Folder::open(&path), Err(FolderError::Locked(_))));
        assert!(matches!(folder.node(), Err(FolderError::NoCluster(_))));
        folder.found(now()).unwrap();
        assert!(matches!(folder.found(now()), Err(FolderError::Taken(_))));
        let node = folder.node().unwrap();
        assert_eq!(node.number, FOUNDER);
        folder.identity(&node, now()).unwrap();
        let mode = |name: &str| fs::metadata(path.join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(""), 0o700);
        assert_eq!(mode("tls"), 0o700);
        assert_eq!(mode("tls/ca-key.pem"), 0o600);
        assert_eq!(mode("tls/node-key.pem"), 0o600);
        folder.leave().unwrap();
        assert!(matches!(folder.node(), Err(FolderError::Left(_))));
    }
}
