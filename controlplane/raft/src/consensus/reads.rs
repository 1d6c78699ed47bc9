//! Linearizable reads: the leader says how far the log was committed when it was asked, after a majority
//! confirmed that it still leads; then the read waits until this node has applied so much (Ongaro, "Consensus:
//! Bridging Theory and Practice", section 6.4). Reads that wait meanwhile share the next confirmation.

use std::sync::{Arc, Weak};
use std::time::Duration;

use openraft::error::RaftError;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::Instant;

use super::{Consensus, Unavailable};
use crate::codec::Take;
use crate::rpc::Lane;
use crate::rpc::frame::Kind;
use bytes::Bytes;

/// Reads that wait; more are refused.
pub(super) const WAITING_READS_MAX: usize = 8_192;
/// Confirmations under way at a time.
const ROUNDS_MAX: usize = 2;
/// Before a confirmation is tried again.
const PAUSE: Duration = Duration::from_millis(20);
/// For one question to another node.
const CALL_TIME_MAX: Duration = Duration::from_secs(1);

type Waiting = oneshot::Sender<Result<(), Unavailable>>;

/// Takes reads until the node is gone.
pub(super) async fn run(node: Weak<Consensus>, mut waiting: mpsc::Receiver<Waiting>) {
    let places = Arc::new(Semaphore::new(ROUNDS_MAX));
    while let Some(first) = waiting.recv().await {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let Some(node) = node.upgrade() else { return };
        let mut round = vec![first];
        // Only those that came before the round begins may share it.
        while let Ok(read) = waiting.try_recv() {
            round.push(read);
        }
        tokio::spawn(async move {
            let until = Instant::now() + node.settings.request_time;
            let result = tokio::time::timeout_at(until, node.barrier()).await;
            let result = result.unwrap_or(Err(Unavailable::NoMajority));
            drop(place);
            for read in round {
                // Who asked may have gone.
                let _ = read.send(result.clone());
            }
        });
    }
}

impl Consensus {
    async fn barrier(&self) -> Result<(), Unavailable> {
        loop {
            let index = match self.leader() {
                Some((leader, _)) if leader == self.settings.id => {
                    match self.raft.get_read_log_id().await {
                        Ok((index, _)) => Some(index.map_or(0, |id| id.index)),
                        Err(RaftError::Fatal(_)) => return Err(Unavailable::Stopped),
                        Err(RaftError::APIError(_)) => None,
                    }
                }
                Some((leader, peer)) => {
                    let to = (leader, peer.address.as_str());
                    let (lane, kind) = (Lane::Forward, Kind::READ_INDEX);
                    let answer = self.pool.call(to, lane, kind, Bytes::new(), CALL_TIME_MAX).await;
                    answer.ok().and_then(|body| Take::new(body).u64().ok())
                }
                None => None,
            };
            if let Some(index) = index {
                self.shared.applied(index).await;
                return Ok(());
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}
