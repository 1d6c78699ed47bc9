//! Writes on their way into the log. What waits while a batch is being written becomes the next one, so that
//! many requests share an entry, an fsync and a round trip; and a batch is sent again, by the same ids, until
//! its outcomes are known or its time is over.

use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use openraft::error::{ClientWriteError, RaftError};
use outrider_state::record::{Kind as RecordKind, decode};
use outrider_state::request::REQUESTS_MAX;
use outrider_state::{Batch, Outcome, Request};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::Instant;

use super::{Consensus, Unavailable};
use crate::rpc::frame::Kind;
use crate::rpc::{CallError, Lane};
use crate::types::Payload;

/// Proposals that wait; more are refused.
pub(super) const WAITING_PROPOSALS_MAX: usize = 4_096;
/// Batches under way at a time.
const BATCHES_MAX: usize = 4;
/// Bytes of requests in a batch, where one alone does not have more.
const BATCH_BYTES_MAX: usize = 2 << 20;
/// Before a batch is sent again.
const PAUSE: Duration = Duration::from_millis(20);

/// Requests that are answered together.
pub(super) struct Proposal {
    pub(super) requests: Vec<Request>,
    /// Sent by another node, which will ask elsewhere if this one does not lead.
    pub(super) forwarded: bool,
    pub(super) reply: oneshot::Sender<Result<Vec<Outcome>, Unavailable>>,
}

/// Takes proposals until the node is gone.
pub(super) async fn run(node: Weak<Consensus>, mut waiting: mpsc::Receiver<Proposal>) {
    let places = Arc::new(Semaphore::new(BATCHES_MAX));
    let mut next: Option<Proposal> = None;
    loop {
        let first = match next.take() {
            Some(first) => first,
            None => match waiting.recv().await {
                Some(first) => first,
                None => return,
            },
        };
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let Some(node) = node.upgrade() else { return };
        let (mut count, mut bytes) = (first.requests.len(), bytes_of(&first));
        let mut batch = vec![first];
        while let Ok(proposal) = waiting.try_recv() {
            count += proposal.requests.len();
            bytes += bytes_of(&proposal);
            if count > REQUESTS_MAX || bytes > BATCH_BYTES_MAX {
                next = Some(proposal);
                break;
            }
            batch.push(proposal);
        }
        tokio::spawn(async move {
            node.carry_out(batch).await;
            drop(place);
        });
    }
}

fn bytes_of(proposal: &Proposal) -> usize {
    proposal.requests.iter().map(|request| request.operation.bytes()).sum()
}

/// What to do after one attempt.
enum Step {
    Done(Vec<Outcome>),
    Again,
    Failed(Unavailable),
}

impl Consensus {
    async fn carry_out(&self, batch: Vec<Proposal>) {
        let (mut requests, mut ways) = (Vec::new(), Vec::with_capacity(batch.len()));
        for Proposal { requests: own, forwarded, reply } in batch {
            ways.push((own.len(), forwarded, reply));
            requests.extend(own);
        }
        let mut requests = Batch { time_ms: self.shared.log_time_ms(), requests };
        let mut record = match requests.to_record() {
            Ok(record) => Bytes::from(record),
            Err(error) => {
                tracing::error!(%error, "requests cannot be written as a record");
                return;
            }
        };
        let until = Instant::now() + self.settings.request_time;
        let result = loop {
            let leader = self.leader();
            let own = leader.as_ref().is_some_and(|(leader, _)| *leader == self.settings.id);
            if !own && ways.iter().any(|(_, forwarded, _)| *forwarded) {
                // Whoever sent these looks for the leader itself.
                let mut rest = Vec::new();
                let mut all = std::mem::take(&mut requests.requests).into_iter();
                for (count, forwarded, reply) in std::mem::take(&mut ways) {
                    let these = all.by_ref().take(count);
                    if forwarded {
                        these.for_each(drop);
                        let _ = reply.send(Err(Unavailable::NotLeader));
                    } else {
                        requests.requests.extend(these);
                        rest.push((count, forwarded, reply));
                    }
                }
                ways = rest;
                if ways.is_empty() {
                    return;
                }
                record = match requests.to_record() {
                    Ok(record) => Bytes::from(record),
                    Err(_) => return,
                };
            }
            let step = match leader {
                None => self.wait_for_another_leader(None).await,
                Some(_) if own => self.propose(&record, until).await,
                Some((leader, peer)) => {
                    self.forward(leader, &peer.address, &record, requests.requests.len(), until)
                        .await
                }
            };
            match step {
                Step::Done(outcomes) => break Ok(outcomes),
                Step::Failed(error) => break Err(error),
                Step::Again if Instant::now() >= until => break Err(Unavailable::NoMajority),
                Step::Again => {}
            }
        };
        match result {
            Ok(outcomes) => {
                let mut outcomes = outcomes.into_iter();
                for (count, _, reply) in ways {
                    // Who asked may have gone.
                    let _ = reply.send(Ok(outcomes.by_ref().take(count).collect()));
                }
            }
            Err(error) => {
                for (_, _, reply) in ways {
                    let _ = reply.send(Err(error.clone()));
                }
            }
        }
    }

    async fn propose(&self, record: &Bytes, until: Instant) -> Step {
        let payload = Payload(record.clone());
        tokio::select! {
            biased;
            result = self.raft.client_write(payload) => match result {
                Ok(response) => Step::Done(response.data.0),
                Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => {
                    tokio::time::sleep(PAUSE).await;
                    Step::Again
                }
                Err(error) => {
                    tracing::error!(%error, "a batch cannot be proposed");
                    Step::Failed(Unavailable::Stopped)
                }
            },
            // Deposed: the entry may be lost or not, which the ids make good.
            step = self.another_leader(self.settings.id) => step,
            () = tokio::time::sleep_until(until) => Step::Failed(Unavailable::NoMajority),
        }
    }

    async fn forward(
        &self,
        leader: u64,
        address: &str,
        record: &Bytes,
        count: usize,
        until: Instant,
    ) -> Step {
        let left = until.saturating_duration_since(Instant::now());
        let call =
            self.pool.call((leader, address), Lane::Forward, Kind::WRITE, record.clone(), left);
        tokio::select! {
            biased;
            answer = call => match answer {
                Ok(body) => match decode::<Vec<Outcome>>(RecordKind::Outcomes, &body) {
                    Ok(outcomes) if outcomes.len() == count => Step::Done(outcomes),
                    _ => Step::Failed(Unavailable::NoMajority),
                },
                Err(error) => {
                    if let CallError::Unreachable { .. } = error {
                        tracing::debug!(%error, "the leader cannot be reached");
                    }
                    self.wait_for_another_leader(Some(leader)).await
                }
            },
            step = self.another_leader(leader) => step,
        }
    }

    async fn another_leader(&self, than: u64) -> Step {
        let mut metrics = self.raft.server_metrics();
        let changed = |m: &openraft::metrics::RaftServerMetrics<u64, crate::types::Peer>| {
            m.current_leader.is_some_and(|leader| leader != than)
        };
        // The sender lives as long as the node.
        drop(metrics.wait_for(changed).await);
        Step::Again
    }

    /// A short pause, or until somebody else leads.
    async fn wait_for_another_leader(&self, than: Option<u64>) -> Step {
        let _ = tokio::time::timeout(PAUSE, self.another_leader(than.unwrap_or(u64::MAX))).await;
        Step::Again
    }
}
