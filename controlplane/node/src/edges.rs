//! The push stream to edges, on the UDP port of `listen.peers`: what a node serves, whom it lets in, and how
//! far the edges are, here and at the other nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use outrider_certificate::clock;
use outrider_link::{Feed, Gate, Served, tls};
use outrider_push::sender::Known;
use outrider_push::{Ask, FromEdge, Reply, Sender, SenderError, ToEdge, Wish};
use outrider_raft::rpc::frame::Kind;
use outrider_raft::rpc::tls::{caller_of, public_key_sha256};
use outrider_raft::rpc::{Caller, Lane, Pool, Role};
use outrider_raft::{Consensus, Unavailable, machine};
use quinn::{Endpoint, EndpointConfig, TokioRuntime};
use rustls::pki_types::CertificateDer;
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

use crate::pki::{Authority, PkiError};
use crate::run::RunError;

/// For asking another node which edges follow it.
const ASK_TIME_MAX: Duration = Duration::from_millis(500);

/// The edges of this node.
pub(crate) struct Edges {
    consensus: Arc<Consensus>,
    pool: Arc<Pool>,
    authority: Arc<Authority>,
    /// How long the certificates of edges last.
    lifetime: Duration,
    cluster: [u8; 16],
    served: Arc<Served>,
}

/// An edge that follows some node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Following {
    /// The node.
    pub(crate) node: u64,
    /// Up to which version it has applied the state, as it said last.
    pub(crate) applied: u64,
}

/// Binds the port of the push stream.
pub(crate) fn endpoint(identity: tls::Identity, at: SocketAddr) -> Result<Endpoint, RunError> {
    let config = tls::server(identity)?;
    let bind = || {
        let socket = UdpSocket::bind(at)?;
        Endpoint::new(EndpointConfig::default(), Some(config), socket, Arc::new(TokioRuntime))
    };
    bind().map_err(|source| RunError::Listen {
        key: "listen.peers (UDP, for edges)",
        address: at,
        source,
    })
}

impl Edges {
    /// A cluster is known by its authority's key, the first half of whose hash is its number.
    pub(crate) fn new(
        consensus: Arc<Consensus>,
        pool: Arc<Pool>,
        authority: Arc<Authority>,
        lifetime: Duration,
    ) -> Result<Self, PkiError> {
        let mut cluster = [0; 16];
        cluster.copy_from_slice(&authority.key_sha256()?[..16]);
        Ok(Self { consensus, pool, authority, lifetime, cluster, served: Arc::default() })
    }

    /// Another certificate of the key that the edge joined with, and that it has just shown.
    fn renew(&self, edge: u64, public_key: &[u8]) -> Reply {
        let key_sha256: [u8; 32] = Sha256::digest(public_key).into();
        let is_its_own = self.look(|known| {
            known.state.members().get(edge).is_some_and(|member| {
                member.role == Role::Edge && !member.revoked && member.key_sha256 == key_sha256
            })
        });
        if !is_its_own {
            return Reply::Refused("it is not the key that this edge joined with".to_owned());
        }
        let time = (clock::later(), self.lifetime);
        match self.authority.sign_again(public_key, (Role::Edge, edge), time) {
            Ok(pem) => {
                tracing::info!(edge, "the certificate of an edge was renewed");
                Reply::Certificate(pem)
            }
            Err(error) => Reply::Refused(error.to_string()),
        }
    }

    /// Those that follow this node.
    pub(crate) fn served(&self) -> &Arc<Served> {
        &self.served
    }

    /// Answers another node that asks for them.
    pub(crate) fn answer(&self, caller: Caller) -> Result<Bytes, String> {
        let Caller::Member { role: Role::Node, .. } = caller else {
            return Err("only nodes of the control plane may ask this".to_owned());
        };
        serde_json::to_vec(&self.served.edges()).map(Bytes::from).map_err(|e| e.to_string())
    }

    /// All edges that follow this node, or another one that answers in time; and the nodes that do not.
    pub(crate) async fn everywhere(&self) -> (BTreeMap<u64, Following>, BTreeSet<u64>) {
        let status = self.consensus.status();
        let mut tasks = tokio::task::JoinSet::new();
        for (node, (peer, _)) in status.nodes {
            if node == status.id {
                continue;
            }
            let pool = Arc::clone(&self.pool);
            tasks.spawn(async move {
                let (to, lane) = ((node, peer.address.as_str()), Lane::Forward);
                let answer = pool.call(to, lane, Kind::EDGES, Bytes::new(), ASK_TIME_MAX).await;
                (node, answer.ok().and_then(|body| serde_json::from_slice(&body).ok()))
            });
        }
        let (mut all, mut silent) = (BTreeMap::new(), BTreeSet::new());
        let mut take = |node, edges: BTreeMap<u64, u64>| {
            for (edge, applied) in edges {
                // An edge that has just changed its node is known to both for a moment.
                let entry = all.entry(edge).or_insert(Following { node, applied });
                if entry.applied < applied {
                    *entry = Following { node, applied };
                }
            }
        };
        take(status.id, self.served.edges());
        while let Some(answer) = tasks.join_next().await {
            match answer {
                Ok((node, Some(edges))) => take(node, edges),
                Ok((node, None)) => drop(silent.insert(node)),
                Err(_) => {}
            }
        }
        (all, silent)
    }

    fn look<R>(&self, look: impl FnOnce(&Known<'_>) -> R) -> R {
        self.consensus.shared().look(|known| {
            look(&Known { cluster: self.cluster, state: &known.state, history: &known.history })
        })
    }
}

impl Feed for Edges {
    type New = machine::Progress;

    fn sender(&self, hello: FromEdge, now_ms: u64) -> Result<Sender, SenderError> {
        self.look(|known| Sender::from_hello(hello, now_ms, known))
    }

    fn poll(&self, sender: &mut Sender, now_ms: u64) -> Result<Option<ToEdge>, SenderError> {
        self.look(|known| sender.poll(now_ms, known))
    }

    fn changed(&self) -> watch::Receiver<machine::Progress> {
        self.consensus.shared().watch()
    }

    /// Whoever leads; the edge's own number of the wish makes it safe to ask again elsewhere.
    async fn ask(&self, edge: u64, ask: Ask) -> Reply {
        if let Wish::Renew { public_key } = &ask.wish {
            return self.renew(edge, public_key);
        }
        let request = match ask.into_request(edge) {
            Ok(request) => request,
            Err(why) => return Reply::Refused(why),
        };
        match self.consensus.write(request).await {
            Ok(outcome) => Reply::of(&outcome),
            Err(Unavailable::Request(error)) => Reply::Refused(error.to_string()),
            Err(error) => Reply::Unavailable(error.to_string()),
        }
    }
}

impl Gate for Edges {
    /// A member with the role of an edge, with the key that it joined with, that is not revoked.
    fn edge(&self, certificate: &CertificateDer<'_>) -> Option<u64> {
        let Ok(Caller::Member { role: Role::Edge, number }) = caller_of(certificate) else {
            return None;
        };
        let key_sha256 = public_key_sha256(certificate).ok()?;
        let let_in = self.look(|known| {
            known.state.members().get(number).is_some_and(|member| {
                member.role == Role::Edge && !member.revoked && member.key_sha256 == key_sha256
            })
        });
        let_in.then_some(number)
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_node_has_the_name_that_edges_expect() {
        let name = outrider_raft::rpc::tls::any_node_name();
        assert_eq!(name, outrider_link::tls::NODE_NAME);
    }
}
