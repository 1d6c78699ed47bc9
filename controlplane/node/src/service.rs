//! What other members' calls are answered by.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use outrider_raft::Consensus;
use outrider_raft::rpc::frame::Kind;
use outrider_raft::rpc::{Caller, Service};

use crate::edges::Edges;
use crate::join;
use crate::pki::Authority;

/// Answers newcomers itself, and leaves everything else to the consensus.
pub(crate) struct Members {
    pub(crate) consensus: Arc<Consensus>,
    pub(crate) authority: Arc<Authority>,
    /// How long the certificates of newcomers last.
    pub(crate) lifetime: Duration,
    pub(crate) edges: Arc<Edges>,
}

impl Service for Members {
    async fn call(
        self: Arc<Self>,
        caller: Caller,
        kind: Kind,
        body: Bytes,
    ) -> Result<Bytes, String> {
        match kind {
            Kind::JOIN => join::answer(&self.consensus, &self.authority, self.lifetime, body).await,
            Kind::EDGES => self.edges.answer(caller),
            _ => self.consensus.answer(caller, kind, body).await,
        }
    }
}
