//! What the rest of the control plane uses: writes that are applied once, reads that are never of the past,
//! membership. Any node takes them; what only the leader can do is sent there.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::metrics::RaftServerMetrics;
use openraft::{ChangeMembers, Config, ServerState, SnapshotPolicy};
use outrider_state::change::HistoryLimits;
use outrider_state::record::{Kind as RecordKind, encode};
use outrider_state::{Batch, Operation, Outcome, Request, RequestError, RequestId};
use tokio::sync::{mpsc, oneshot, watch};

mod propose;
mod reads;
mod session;

use crate::codec::{Put, Take};
use crate::log_store::{LogStore, OpenError};
use crate::machine::{Machine, Progress, Shared};
use crate::network::{self, Network};
use crate::rpc::frame::Kind;
use crate::rpc::{CallError, Caller, Lane, Pool, Role};
use crate::types::{NodeId, Peer, Raft};
use propose::{Proposal, WAITING_PROPOSALS_MAX};
use reads::WAITING_READS_MAX;
use session::Session;

/// Log entries between two snapshots.
const SNAPSHOT_ENTRIES: u64 = 20_000;
/// Log entries that are kept behind a snapshot, for nodes that were away for a short time.
const KEEP_ENTRIES: u64 = 10_000;
/// Bytes of log after which a snapshot is made, where that is more than the snapshot has.
const SNAPSHOT_LOG_BYTES: u64 = 128 << 20;
/// Bytes of a snapshot that are sent at a time.
const SNAPSHOT_CHUNK_BYTES: u64 = 1 << 20;
/// For one part of a snapshot, and its installation.
const SNAPSHOT_TIME_MAX: Duration = Duration::from_secs(30);
/// How often the size of the log is looked at.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(1);
/// Before a change of the membership is tried again.
const MEMBERSHIP_PAUSE: Duration = Duration::from_millis(100);
/// For a change of the membership, with the newcomer's catching up.
const MEMBERSHIP_TIME_MAX: Duration = Duration::from_secs(60);

/// What a node needs to know to take part.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Its number.
    pub id: NodeId,
    /// The folder of log and snapshot.
    pub dir: PathBuf,
    /// Between two signs of life of the leader; also the longest that one append may take.
    pub heartbeat: Duration,
    /// Without a sign of life for three to four times this, a node wants to lead. At least four times the
    /// heartbeat.
    pub election: Duration,
    /// For one write or read, however often it must be tried.
    pub request_time: Duration,
    /// How much of the recent past is kept for those who follow.
    pub history: HistoryLimits,
}

/// Why a node cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The log.
    #[error(transparent)]
    Log(#[from] OpenError),
    /// The snapshot.
    #[error("cannot read the snapshot: {0}")]
    Snapshot(io::Error),
    /// openraft.
    #[error("consensus cannot start: {0}")]
    Raft(String),
}

/// Why a write or a read was not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// Too many wait already. Nothing was done.
    #[error("too many requests wait")]
    Busy,
    /// There is no leader that a majority follows, or it cannot be reached. A write was perhaps done, and is
    /// done once when it is repeated with the same id.
    #[error("no majority answered in time")]
    NoMajority,
    /// This node does not lead (any more).
    #[error("this node does not lead")]
    NotLeader,
    /// This node has stopped: its disk failed, or it is shut down.
    #[error("this node has stopped")]
    Stopped,
    /// The request itself is wrong. Nothing was done.
    #[error(transparent)]
    Request(#[from] RequestError),
}

/// One node of the cluster.
pub struct Consensus {
    settings: Settings,
    raft: Raft,
    log: LogStore,
    shared: Arc<Shared>,
    pool: Arc<Pool>,
    session: Session,
    proposals: mpsc::Sender<Proposal>,
    reads: mpsc::Sender<oneshot::Sender<Result<(), Unavailable>>>,
}

impl std::fmt::Debug for Consensus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Consensus of node {}", self.settings.id)
    }
}

/// How a node stands.
#[derive(Clone, Debug)]
pub struct Status {
    /// Its number.
    pub id: NodeId,
    /// `leader`, `follower`, `candidate`, `learner` or `stopped`.
    pub state: &'static str,
    /// Who leads, as far as this node knows.
    pub leader: Option<NodeId>,
    /// The term.
    pub term: u64,
    /// Index of the last entry of its log.
    pub last_log: u64,
    /// How far it has applied it.
    pub progress: Progress,
    /// Everybody in the membership, and whether they vote.
    pub nodes: BTreeMap<NodeId, (Peer, bool)>,
    /// Of the leader: up to which index the others have the log.
    pub matched: BTreeMap<NodeId, u64>,
    /// What stopped it, if something did.
    pub failure: Option<String>,
}

impl Consensus {
    /// Opens what is on the disk and takes part. To be called in a tokio runtime.
    ///
    /// # Errors
    /// [`StartError`]
    pub async fn start(settings: Settings, pool: Arc<Pool>) -> Result<Arc<Self>, StartError> {
        let dir = settings.dir.clone();
        let (limits, id) = (settings.history, settings.id);
        let open = move || -> Result<(LogStore, Machine), StartError> {
            std::fs::create_dir_all(&dir).map_err(StartError::Snapshot)?;
            let machine = Machine::open(&dir, limits).map_err(StartError::Snapshot)?;
            Ok((LogStore::open(&dir.join("log.redb"), id)?, machine))
        };
        let opened = tokio::task::spawn_blocking(open).await;
        let (log, machine) = opened.map_err(|error| StartError::Raft(error.to_string()))??;
        let shared = machine.shared();
        let config = config(&settings).validate().map_err(|e| StartError::Raft(e.to_string()))?;
        let network = Network { pool: Arc::clone(&pool), log: log.clone() };
        let raft = Raft::new(settings.id, Arc::new(config), network, log.clone(), machine)
            .await
            .map_err(|error| StartError::Raft(error.to_string()))?;
        let (proposals, waiting_proposals) = mpsc::channel(WAITING_PROPOSALS_MAX);
        let (reads, waiting_reads) = mpsc::channel(WAITING_READS_MAX);
        let session = Session::new();
        let this = Arc::new(Self { settings, raft, log, shared, pool, session, proposals, reads });
        tokio::spawn(propose::run(Arc::downgrade(&this), waiting_proposals));
        tokio::spawn(reads::run(Arc::downgrade(&this), waiting_reads));
        tokio::spawn(upkeep(Arc::downgrade(&this)));
        tokio::spawn(tell_the_log(this.raft.server_metrics(), this.log.clone()));
        tokio::spawn(stop_with_the_log(Arc::downgrade(&this), this.log.failed()));
        Ok(this)
    }

    /// See [`LogStore::hold`].
    #[doc(hidden)]
    pub fn hold_disk(&self) -> impl Sized + use<> {
        self.log.hold()
    }

    /// The state machine.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Its number.
    pub fn id(&self) -> NodeId {
        self.settings.id
    }

    /// Makes this node the first and only one of a new cluster. When it is in one, does nothing but to lead at
    /// once where it is the only one: nobody else could, and an election would be waited for otherwise.
    ///
    /// # Errors
    /// [`Unavailable::Stopped`]
    pub async fn found(&self, peer: Peer) -> Result<(), Unavailable> {
        if self.raft.is_initialized().await.map_err(|_| Unavailable::Stopped)? {
            let status = self.status();
            if status.leader.is_none() && status.nodes.keys().eq([&self.settings.id]) {
                self.raft.trigger().elect().await.map_err(|_| Unavailable::Stopped)?;
            }
            return Ok(());
        }
        let nodes = BTreeMap::from([(self.settings.id, peer)]);
        self.raft.initialize(nodes).await.map_err(|_| Unavailable::Stopped)
    }

    /// Writes, whoever leads. A request without an id gets one, so that it is applied once however often it
    /// has to be sent; with an id of its own it may also be repeated by its client.
    ///
    /// # Errors
    /// [`Unavailable`]
    pub async fn write(&self, mut request: Request) -> Result<Outcome, Unavailable> {
        request.check()?;
        let _under_way = (request.id == RequestId::None).then(|| {
            let (id, under_way) = self.session.begin();
            request.id = id;
            under_way
        });
        let (reply, outcome) = oneshot::channel();
        let proposal = Proposal { requests: vec![request], forwarded: false, reply };
        self.proposals.try_send(proposal).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Unavailable::Busy,
            mpsc::error::TrySendError::Closed(_) => Unavailable::Stopped,
        })?;
        let outcomes = outcome.await.map_err(|_| Unavailable::Stopped)??;
        outcomes.into_iter().next().ok_or(Unavailable::Stopped)
    }

    /// [`Consensus::write`] of a request without an id of its own.
    ///
    /// # Errors
    /// [`Unavailable`]
    pub async fn operate(&self, operation: Operation) -> Result<Outcome, Unavailable> {
        self.write(Request { id: RequestId::None, operation }).await
    }

    /// Waits until this node has applied everything that was acknowledged anywhere before this call. What is
    /// then looked at is linearizable. Asks a majority each time; clocks play no part.
    ///
    /// # Errors
    /// [`Unavailable`]
    pub async fn read_barrier(&self) -> Result<(), Unavailable> {
        let (reply, done) = oneshot::channel();
        self.reads.try_send(reply).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Unavailable::Busy,
            mpsc::error::TrySendError::Closed(_) => Unavailable::Stopped,
        })?;
        done.await.map_err(|_| Unavailable::Stopped)?
    }

    /// Makes a node a voter, once it has caught up; or changes where it is reached.
    ///
    /// # Errors
    /// [`Unavailable`]
    pub async fn enlist(&self, node: NodeId, peer: Peer) -> Result<(), Unavailable> {
        let mut put = Put::default();
        put.u64(node).peer(&peer);
        self.change_membership(Kind::ENLIST, put.0.into()).await
    }

    /// Removes a node from the membership.
    ///
    /// # Errors
    /// [`Unavailable`]
    pub async fn remove(&self, node: NodeId) -> Result<(), Unavailable> {
        let mut put = Put::default();
        put.u64(node);
        self.change_membership(Kind::REMOVE, put.0.into()).await
    }

    /// Asks nodes at these addresses to take this one in, for a node that is in no membership yet.
    ///
    /// # Errors
    /// What the last one said.
    pub async fn ask_to_enlist(
        &self,
        at: &[(NodeId, String)],
        own: &Peer,
    ) -> Result<(), CallError> {
        let mut put = Put::default();
        put.u64(self.settings.id).peer(own);
        let body = Bytes::from(put.0);
        let mut last = None;
        for (node, address) in at {
            let (lane, time) = (Lane::Forward, MEMBERSHIP_TIME_MAX);
            let to = (*node, address.as_str());
            match self.pool.call(to, lane, Kind::ENLIST, body.clone(), time).await {
                Ok(_) => return Ok(()),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| CallError::Refused("no address is known".to_owned())))
    }

    async fn change_membership(&self, kind: Kind, body: Bytes) -> Result<(), Unavailable> {
        let work = async {
            loop {
                let result = match self.leader() {
                    Some((leader, _)) if leader == self.settings.id => {
                        self.change_as_leader(kind, body.clone()).await
                    }
                    Some((leader, peer)) => {
                        let (to, lane) = ((leader, peer.address.as_str()), Lane::Forward);
                        let time = MEMBERSHIP_TIME_MAX;
                        let answer = self.pool.call(to, lane, kind, body.clone(), time).await;
                        answer.map(drop).map_err(|error| error.to_string())
                    }
                    None => Err("nobody leads".to_owned()),
                };
                match result {
                    Ok(()) => return,
                    Err(reason) => tracing::debug!(reason, "the membership cannot be changed yet"),
                }
                tokio::time::sleep(MEMBERSHIP_PAUSE).await;
            }
        };
        tokio::time::timeout(MEMBERSHIP_TIME_MAX, work).await.map_err(|_| Unavailable::NoMajority)
    }

    async fn change_as_leader(&self, kind: Kind, body: Bytes) -> Result<(), String> {
        let mut take = Take::new(body);
        let node = take.u64().map_err(|error| error.to_string())?;
        let nodes = self.status().nodes;
        let known = nodes.get(&node);
        if kind == Kind::REMOVE {
            let Some((_, votes)) = known else { return Ok(()) };
            let gone = BTreeSet::from([node]);
            let change = match votes {
                true => ChangeMembers::RemoveVoters(gone),
                false => ChangeMembers::RemoveNodes(gone),
            };
            return self.raft.change_membership(change, false).await.map(drop).map_err(text);
        }
        let peer = take.peer().map_err(|error| error.to_string())?;
        match known {
            Some((old, _)) if *old != peer => {
                let change = ChangeMembers::SetNodes(BTreeMap::from([(node, peer)]));
                self.raft.change_membership(change, false).await.map_err(text)?;
            }
            Some(_) => {}
            None => drop(self.raft.add_learner(node, peer, true).await.map_err(text)?),
        }
        if !known.is_some_and(|(_, votes)| *votes) {
            let change = ChangeMembers::AddVoterIds(BTreeSet::from([node]));
            self.raft.change_membership(change, false).await.map_err(text)?;
        }
        Ok(())
    }

    /// Answers a call of another node.
    ///
    /// # Errors
    /// What is said to it.
    pub async fn answer(&self, caller: Caller, kind: Kind, body: Bytes) -> Result<Bytes, String> {
        let Caller::Member { role: Role::Node, number } = caller else {
            return Err("only nodes of the control plane may ask this".to_owned());
        };
        let revoked = |known: &crate::machine::Known| {
            known.state.members().get(number).is_some_and(|member| member.revoked)
        };
        if self.shared.look(revoked) {
            return Err(format!("node {number} is revoked"));
        }
        match kind {
            Kind::WRITE => self.answer_write(body).await,
            Kind::READ_INDEX => {
                let (index, _) = self.raft.get_read_log_id().await.map_err(text)?;
                let mut put = Put::default();
                put.u64(index.map_or(0, |id| id.index));
                Ok(put.0.into())
            }
            Kind::ENLIST | Kind::REMOVE => {
                self.change_membership(kind, body).await.map_err(text)?;
                Ok(Bytes::new())
            }
            _ => network::answer((&self.raft, &self.log), number, kind, body).await,
        }
    }

    async fn answer_write(&self, body: Bytes) -> Result<Bytes, String> {
        let requests = Batch::from_record(&body).map_err(text)?.requests;
        let (reply, outcomes) = oneshot::channel();
        let proposal = Proposal { requests, forwarded: true, reply };
        self.proposals.try_send(proposal).map_err(text)?;
        let outcomes = outcomes.await.map_err(text)?.map_err(text)?;
        encode(RecordKind::Outcomes, &outcomes).map(Bytes::from).map_err(text)
    }

    fn leader(&self) -> Option<(NodeId, Peer)> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow();
        let leader = metrics.current_leader?;
        let peer = metrics.membership_config.membership().get_node(&leader).cloned();
        Some((leader, peer.unwrap_or_default()))
    }

    /// How this node stands.
    pub fn status(&self) -> Status {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let membership = metrics.membership_config.membership();
        let voters: BTreeSet<NodeId> = membership.voter_ids().collect();
        let nodes = membership.nodes().map(|(id, peer)| (*id, (peer.clone(), voters.contains(id))));
        let matched = metrics.replication.iter().flatten();
        let stopped = metrics.running_state.as_ref().err().map(ToString::to_string);
        let failure = self.log.failure().or(stopped);
        Status {
            id: self.settings.id,
            state: match metrics.state {
                _ if failure.is_some() => "stopped",
                ServerState::Leader => "leader",
                ServerState::Follower => "follower",
                ServerState::Candidate => "candidate",
                ServerState::Learner => "learner",
                ServerState::Shutdown => "stopped",
            },
            leader: metrics.current_leader,
            term: metrics.current_term,
            last_log: metrics.last_log_index.unwrap_or(0),
            progress: self.shared.progress(),
            nodes: nodes.collect(),
            matched: matched.map(|(id, log)| (*id, log.map_or(0, |log| log.index))).collect(),
            failure,
        }
    }

    /// Stops taking part.
    pub async fn stop(&self) {
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(%error, "consensus did not stop in order");
        }
    }
}

fn text(error: impl std::error::Error) -> String {
    error.to_string()
}

fn config(settings: &Settings) -> Config {
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    Config {
        cluster_name: "outrider".to_owned(),
        heartbeat_interval: ms(settings.heartbeat),
        election_timeout_min: ms(settings.election),
        election_timeout_max: ms(settings.election) * 2,
        install_snapshot_timeout: ms(SNAPSHOT_TIME_MAX),
        max_payload_entries: 1_024,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(SNAPSHOT_ENTRIES),
        replication_lag_threshold: 2 * SNAPSHOT_ENTRIES,
        snapshot_max_chunk_size: SNAPSHOT_CHUNK_BYTES,
        max_in_snapshot_log_to_keep: KEEP_ENTRIES,
        purge_batch_size: 1_000,
        ..Config::default()
    }
}

/// Stops a node whose log cannot be written. A leader that was told early has not learned of it otherwise.
async fn stop_with_the_log(node: std::sync::Weak<Consensus>, failed: impl Future<Output = ()>) {
    failed.await;
    if let Some(node) = node.upgrade() {
        node.stop().await;
    }
}

/// Tells the log which membership is in use.
async fn tell_the_log(
    mut metrics: watch::Receiver<RaftServerMetrics<NodeId, Peer>>,
    log: LogStore,
) {
    loop {
        {
            let metrics = metrics.borrow_and_update();
            let membership = &metrics.membership_config;
            let index = membership.log_id().map_or(0, |id| id.index);
            log.set_membership(index, membership.membership());
        }
        if metrics.changed().await.is_err() {
            return;
        }
    }
}

/// Makes a snapshot when the log has grown by so many bytes that reading it would take longer.
async fn upkeep(node: std::sync::Weak<Consensus>) {
    loop {
        tokio::time::sleep(UPKEEP_INTERVAL).await;
        let Some(node) = node.upgrade() else { return };
        let (log, snapshot) = node.shared.log_and_snapshot_bytes();
        if log > snapshot.max(SNAPSHOT_LOG_BYTES) {
            // An error means that the node has stopped.
            let _ = node.raft.trigger().snapshot().await;
        }
    }
}
