//! A node in the process of an edge, the only one of its cluster: it makes the cluster at the first start, lets the
//! edge of this process in, and answers the API beside the edge's pages. It has one thread of its own, with
//! tokio; the edge's shards never wait for it.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use outrider_follower::EdgeFolder;
use outrider_raft::Unavailable;
use outrider_raft::rpc::tls::Role;
use outrider_settings::units::{Size, Span};
use outrider_state::{Operation, Outcome};
use tokio::runtime::Runtime;

use crate::admin::Beside;
use crate::config::{AdminSection, Config};
use crate::folder::{Folder, FolderError};
use crate::join::{JoinError, join_edge};
use crate::run::{Node, RunError, runtime};
use crate::token::Token;

/// For the token that lets the edge of this process in.
const TOKEN_TTL_MS: u64 = 60_000;
/// For the end.
const STOP_TIME_MAX: Duration = Duration::from_secs(1);

/// Why there is no node.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// The node.
    #[error("the node in {dir} does not start: {source}")]
    Node {
        /// Its folder.
        dir: String,
        /// Why.
        source: RunError,
    },
    /// It cannot let the edge in.
    #[error("the edge cannot join the node of its own process: {0}")]
    Join(#[from] JoinError),
    /// Likewise.
    #[error("the edge cannot join the node of its own process: {0}")]
    Token(String),
}

/// A running node.
pub struct Embedded {
    runtime: Runtime,
    node: Node,
}

/// The configuration of a node that has this folder and no other node. Small, since it stands beside an edge.
fn config(dir: &Path, admin: &AdminSection, admin_at: Option<SocketAddr>) -> Config {
    let mut config = Config::default();
    config.data.dir = dir.to_owned();
    config.admin = admin.clone();
    config.listen.admin = admin_at.unwrap_or(config.listen.admin);
    config.listen.peers = SocketAddr::from(([127, 0, 0, 1], 0));
    // Nobody listens to its signs of life.
    config.consensus.heartbeat = Span::s(1);
    config.consensus.election = Span::s(4);
    config.history.updates = 100_000;
    config.history.memory = Size::mib(32);
    config.graph.memory = Size::mib(16);
    config.limits.connections = 256;
    config.drain.time = Span::s(1);
    config
}

/// Whether there is a node in this folder.
///
/// # Errors
/// When nobody can say.
pub fn is_there(dir: &Path) -> std::io::Result<bool> {
    dir.join("node.json").try_exists()
}

impl Embedded {
    /// Starts the node of this folder, and makes it and its cluster when there is none. Lets the edge of `edge` in if
    /// it is in no cluster. `admin_at` is where its API will be,
    /// and `admin` who may use it.
    ///
    /// # Errors
    /// [`EmbeddedError`]
    pub fn start(
        dir: &Path,
        edge: &EdgeFolder,
        region: &str,
        (admin_at, admin): (Option<SocketAddr>, &AdminSection),
    ) -> Result<Self, EmbeddedError> {
        let failed = |source| EmbeddedError::Node { dir: dir.display().to_string(), source };
        let config = config(dir, admin, admin_at);
        let runtime = runtime(1).map_err(failed)?;
        let node = runtime.block_on(async {
            let folder = Folder::open(dir).map_err(RunError::from)?;
            if matches!(folder.node(), Err(FolderError::NoCluster(_))) {
                folder
                    .found((SystemTime::now(), config.certificates.lifetime.0))
                    .map_err(RunError::from)?;
            }
            Node::start(&config, folder, admin_at).await
        });
        let node = node.map_err(failed)?;
        if !edge.has_joined().map_err(JoinError::from)? {
            let number = runtime.block_on(let_in(&node, edge, region))?;
            tracing::info!(number, "the edge of this process joined its node");
        }
        Ok(Self { runtime, node })
    }

    /// Where the edge follows it.
    pub fn address(&self) -> String {
        self.node.peers_at.to_string()
    }

    /// Answers the API there, and the edge's pages.
    pub fn serve(&mut self, listener: TcpListener, beside: Arc<dyn Beside>) {
        let _inside = self.runtime.enter();
        self.node.admin.set_beside(beside);
        self.node.serve(listener);
    }

    /// Stops it. Everything that was acknowledged is on the disk already.
    pub fn stop(self) {
        let Self { runtime, mut node } = self;
        runtime.block_on(async {
            node.drain().await;
            node.end().await;
        });
        runtime.shutdown_timeout(STOP_TIME_MAX);
    }
}

/// As an operator would: a token, and joining with it.
async fn let_in(node: &Node, edge: &EdgeFolder, region: &str) -> Result<u64, EmbeddedError> {
    let failed = |error: Unavailable| EmbeddedError::Token(error.to_string());
    let addresses = vec![node.peers_at.to_string()];
    let token = Token::new(addresses, node.admin.authority_sha256, Role::Edge)
        .map_err(|error| EmbeddedError::Token(error.to_string()))?;
    let issue = Operation::IssueToken {
        secret_sha256: token.secret_sha256(),
        role: Role::Edge,
        region: region.to_owned(),
        ttl_ms: TOKEN_TTL_MS,
    };
    match node.admin.consensus.operate(issue).await.map_err(failed)? {
        Outcome::Done { .. } => {}
        other => return Err(EmbeddedError::Token(format!("an outcome {other:?}"))),
    }
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    Ok(join_edge(edge, &token, &name).await?.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_makes_a_cluster_once_and_lets_its_edge_in() {
        let dir = tempfile::tempdir().unwrap();
        let (path, edge) = (dir.path().join("node"), EdgeFolder::new(&dir.path().join("control")));
        assert!(!is_there(&path).unwrap());
        let node = Embedded::start(&path, &edge, "eu", (None, &AdminSection::default())).unwrap();
        let joined = edge.edge().unwrap();
        assert_eq!((joined.number, joined.region.as_str()), (2, "eu"));
        // Another process may not use the folder meanwhile.
        let second = Embedded::start(&path, &edge, "eu", (None, &AdminSection::default()));
        assert!(second.is_err_and(|error| error.to_string().contains("does not start")));
        node.stop();
        assert!(is_there(&path).unwrap());
        // The thread of the log lets go of it in the background.
        let node = loop {
            match Embedded::start(&path, &edge, "eu", (None, &AdminSection::default())) {
                Ok(node) => break node,
                Err(error) => assert!(format!("{error:?}").contains("already open"), "{error:?}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        assert_eq!(edge.edge().unwrap().number, 2);
        let admin = Arc::clone(&node.node.admin);
        let seen = node.runtime.block_on(async {
            admin.consensus.read_barrier().await.unwrap();
            admin.consensus.shared().look(|known| known.state.members().iter().count())
        });
        assert_eq!(seen, 2);
        node.stop();
    }
}
