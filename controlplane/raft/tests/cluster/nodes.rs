//! Starting and stopping nodes.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use outrider_raft::rpc::frame::Kind;
use outrider_raft::rpc::tls::{Role, any_node_name, member_name, public_key_sha256};
use outrider_raft::rpc::{Caller, Identity, Pool, Service, TlsContext, serve};
use outrider_raft::{Consensus, NodeId, Peer, Settings};
use outrider_state::change::HistoryLimits;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

pub(crate) fn run<T>(future: impl Future<Output = T>) -> T {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).enable_all().build().unwrap().block_on(future)
}

struct Answers(Arc<Consensus>);

impl Service for Answers {
    async fn call(
        self: Arc<Self>,
        caller: Caller,
        kind: Kind,
        body: Bytes,
    ) -> Result<Bytes, String> {
        self.0.answer(caller, kind, body).await
    }
}

struct Running {
    node: Arc<Consensus>,
    server: JoinHandle<()>,
}

/// A few nodes, their authority and their folders.
pub(crate) struct Cluster {
    authority: Issuer<'static, KeyPair>,
    authority_der: CertificateDer<'static>,
    dir: TempDir,
    addresses: BTreeMap<NodeId, String>,
    running: BTreeMap<NodeId, Running>,
    request_time: Duration,
}

impl Cluster {
    /// So many nodes, numbered from 1, all of them voters. Requests have longer than any election takes on a busy
    /// machine.
    pub(crate) async fn of(count: u64) -> Self {
        Self::with_request_time(count, Duration::from_secs(60)).await
    }

    /// The same; requests have this long.
    pub(crate) async fn with_request_time(count: u64, request_time: Duration) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let authority_der = params.self_signed(&key).unwrap().der().clone();
        let mut cluster = Self {
            authority: Issuer::new(params, key),
            authority_der,
            dir: tempfile::tempdir().unwrap(),
            addresses: BTreeMap::new(),
            running: BTreeMap::new(),
            request_time,
        };
        for id in 1..=count {
            cluster.start(id).await;
            let peer = cluster.peer(id);
            if id == 1 {
                cluster.node(1).found(peer).await.unwrap();
            } else {
                cluster.node(1).enlist(id, peer).await.unwrap();
            }
        }
        cluster
    }

    fn peer(&self, id: NodeId) -> Peer {
        Peer { name: format!("n{id}"), address: self.address(id), admin: String::new() }
    }

    pub(crate) fn address(&self, id: NodeId) -> String {
        self.addresses[&id].clone()
    }

    pub(crate) fn node(&self, id: NodeId) -> &Arc<Consensus> {
        &self.running[&id].node
    }

    pub(crate) fn nodes(&self) -> impl Iterator<Item = &Arc<Consensus>> {
        self.running.values().map(|running| &running.node)
    }

    pub(crate) fn authority_sha256(&self) -> [u8; 32] {
        public_key_sha256(&self.authority_der).unwrap()
    }

    pub(crate) async fn leader(&self) -> NodeId {
        loop {
            if let Some(leader) = self.nodes().find_map(|node| node.status().leader) {
                return leader;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn tls(&self, id: NodeId) -> TlsContext {
        let key = KeyPair::generate().unwrap();
        let names = vec![member_name(Role::Node, id), any_node_name()];
        let certificate =
            CertificateParams::new(names).unwrap().signed_by(&key, &self.authority).unwrap();
        TlsContext::new(&Identity {
            chain: vec![certificate.der().clone(), self.authority_der.clone()],
            key: PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            authority: self.authority_der.clone(),
        })
        .unwrap()
    }

    /// The calling side of a node of this number.
    pub(crate) fn pool(&self, id: NodeId) -> Arc<Pool> {
        Arc::new(Pool::new(self.tls(id), None))
    }

    /// Starts a node on its folder and its address.
    pub(crate) async fn start(&mut self, id: NodeId) {
        let tls = self.tls(id);
        let wanted = self.addresses.get(&id).map_or("127.0.0.1:0", String::as_str);
        let listener = TcpListener::bind(wanted).await.unwrap();
        self.addresses.insert(id, listener.local_addr().unwrap().to_string());
        let settings = Settings {
            id,
            dir: self.dir.path().join(id.to_string()),
            heartbeat: Duration::from_millis(100),
            election: Duration::from_millis(500),
            request_time: self.request_time,
            history: HistoryLimits::default(),
        };
        let pool = Arc::new(Pool::new(tls.clone(), None));
        // The log of the node before it is let go of in the background.
        let node = loop {
            match Consensus::start(settings.clone(), Arc::clone(&pool)).await {
                Ok(node) => break node,
                Err(error) => eprintln!("node {id}: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let service = Arc::new(Answers(Arc::clone(&node)));
        let server = tokio::spawn(async move {
            serve(listener, tls, service).await;
        });
        self.running.insert(id, Running { node, server });
    }

    /// Ends a node.
    pub(crate) async fn stop(&mut self, id: NodeId) {
        let Running { node, server } = self.running.remove(&id).unwrap();
        server.abort();
        let _ = server.await;
        node.stop().await;
    }
}
