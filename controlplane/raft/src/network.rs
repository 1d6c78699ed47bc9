//! openraft's messages as calls to other nodes, and the answers to theirs. What is said about entries, by others
//! to this node and by this node to others, waits until its own disk has them: see `early`.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::error::{
    InstallSnapshotError, NetworkError, RPCError, RaftError, RemoteError, SnapshotMismatch,
    Unreachable,
};
use openraft::network::{Backoff, RPCOption};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use openraft::{RaftNetwork, RaftNetworkFactory, SnapshotSegmentId};

use crate::codec::{CodecError, Put, Take};
use crate::log_store::LogStore;
use crate::rpc::frame::Kind;
use crate::rpc::{CallError, Lane, Pool};
use crate::types::{NodeId, Peer, Raft, Types, Vote};

/// How long a node that cannot be reached is left alone.
const BACKOFF: Duration = Duration::from_millis(100);

/// Makes the connections that openraft asks for.
#[derive(Clone, Debug)]
pub struct Network {
    /// The connections.
    pub pool: Arc<Pool>,
    /// This node's log.
    pub log: LogStore,
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Link;

    async fn new_client(&mut self, target: NodeId, node: &Peer) -> Link {
        Link { pool: Arc::clone(&self.pool), log: self.log.clone(), target, peer: node.clone() }
    }
}

/// The way to one node.
#[derive(Debug)]
pub struct Link {
    pool: Arc<Pool>,
    log: LogStore,
    target: NodeId,
    peer: Peer,
}

type Failed<E = openraft::error::Infallible> = RPCError<NodeId, Peer, RaftError<NodeId, E>>;

impl Link {
    async fn call<E: std::error::Error>(
        &self,
        lane: Lane,
        kind: Kind,
        put: Put,
        option: &RPCOption,
    ) -> Result<Take, RPCError<NodeId, Peer, RaftError<NodeId, E>>> {
        let to = (self.target, self.peer.address.as_str());
        let body = self.pool.call(to, lane, kind, put.0.into(), option.soft_ttl()).await;
        match body {
            Ok(body) => Ok(Take::new(body)),
            Err(error @ CallError::NoAnswer { .. }) => Err(NetworkError::new(&error).into()),
            Err(error) => Err(Unreachable::new(&error).into()),
        }
    }
}

fn unreadable<E: std::error::Error>(
    error: CodecError,
) -> RPCError<NodeId, Peer, RaftError<NodeId, E>> {
    Unreachable::new(&error).into()
}

impl RaftNetwork<Types> for Link {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<NodeId>, Failed> {
        let mut put = Put::default();
        put.append(&rpc);
        let upto = upto(&rpc);
        let mut take = self.call(Lane::Raft, Kind::APPEND, put, &option).await?;
        let response = take.appended().map_err(unreadable)?;
        if let Err(reason) = self.log.durable(upto).await {
            return Err(NetworkError::new(&std::io::Error::other(reason)).into());
        }
        Ok(response)
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<NodeId>,
        option: RPCOption,
    ) -> Result<VoteResponse<NodeId>, Failed> {
        let mut put = Put::default();
        put.vote_request(&rpc);
        let mut take = self.call(Lane::Raft, Kind::VOTE, put, &option).await?;
        take.vote_response().map_err(unreadable)
    }

    async fn install_snapshot(
        &mut self,
        rpc: InstallSnapshotRequest<Types>,
        option: RPCOption,
    ) -> Result<InstallSnapshotResponse<NodeId>, Failed<InstallSnapshotError>> {
        let mut put = Put::default();
        put.snapshot(&rpc);
        let mut take = self.call(Lane::Snapshot, Kind::SNAPSHOT, put, &option).await?;
        match take_installed(&mut take).map_err(unreadable)? {
            Ok(vote) => Ok(InstallSnapshotResponse { vote }),
            Err(mismatch) => {
                let source = RaftError::APIError(InstallSnapshotError::SnapshotMismatch(mismatch));
                Err(RemoteError::new_with_node(self.target, self.peer.clone(), source).into())
            }
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(BACKOFF))
    }
}

/// The last index that an answer to this is about.
fn upto(request: &AppendEntriesRequest<Types>) -> u64 {
    let last = request.entries.last().map(|entry| entry.log_id);
    last.or(request.prev_log_id).map_or(0, |id| id.index)
}

fn take_installed(take: &mut Take) -> Result<Result<Vote, SnapshotMismatch>, CodecError> {
    if take.bool()? {
        return Ok(Ok(take.vote()?));
    }
    let mut segment = || Ok(SnapshotSegmentId { id: take.text()?, offset: take.u64()? });
    Ok(Err(SnapshotMismatch { expect: segment()?, got: segment()? }))
}

/// Answers one message of another node. `from` is who sent it: nobody speaks for another.
///
/// # Errors
/// What is wrong with it, or why this node cannot.
pub async fn answer(
    (raft, log): (&Raft, &LogStore),
    from: NodeId,
    kind: Kind,
    body: Bytes,
) -> Result<Bytes, String> {
    let mut take = Take::new(body);
    let mut put = Put::default();
    let speaks_for = |vote: &Vote| {
        if vote.leader_id.node_id == from {
            Ok(())
        } else {
            Err(format!("node {from} speaks for node {}", vote.leader_id.node_id))
        }
    };
    match kind {
        Kind::APPEND => {
            let request = take.append().map_err(text)?;
            speaks_for(&request.vote)?;
            let upto = upto(&request);
            let response = raft.append_entries(request).await.map_err(text)?;
            if !matches!(
                response,
                AppendEntriesResponse::Conflict | AppendEntriesResponse::HigherVote(_)
            ) {
                // It may have had these before as a leader, and be writing them still.
                log.durable(upto).await?;
            }
            put.appended(&response);
        }
        Kind::VOTE => {
            let request = take.vote_request().map_err(text)?;
            speaks_for(&request.vote)?;
            put.vote_response(&raft.vote(request).await.map_err(text)?);
        }
        Kind::SNAPSHOT => {
            let request = take.snapshot().map_err(text)?;
            speaks_for(&request.vote)?;
            match raft.install_snapshot(request).await {
                Ok(response) => _ = put.bool(true).vote(&response.vote),
                Err(RaftError::APIError(InstallSnapshotError::SnapshotMismatch(wrong))) => {
                    put.bool(false);
                    for segment in [wrong.expect, wrong.got] {
                        put.bytes(segment.id.as_bytes()).u64(segment.offset);
                    }
                }
                Err(error) => return Err(error.to_string()),
            }
        }
        Kind(other) => return Err(format!("a call of kind {other} is unknown")),
    }
    Ok(put.0.into())
}

fn text(error: impl std::error::Error) -> String {
    error.to_string()
}
