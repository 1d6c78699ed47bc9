//! A node's end. A connection holds a position and what QUIC has not sent yet, and no queue: an edge that is
//! slow is given what the history has when it comes to it.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use outrider_events::intake::Intake;
use outrider_events::message::TO_NODE_BYTES_MAX;
use outrider_push::message::FROM_EDGE_BYTES_MAX;
use outrider_push::{Ask, FromEdge, Reply, Sender, SenderError, ToEdge};
use outrider_state::record::{self, Kind};
use quinn::{Connection, Endpoint, RecvStream, SendStream, VarInt};
use rustls::pki_types::CertificateDer;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::events::Events;
use crate::frames;
use crate::soft::Boards;

/// Connections at a time; more are refused.
pub const CONNECTIONS_MAX: usize = 4_096;
/// Wishes of one edge that are under way.
pub const ASKS_MAX: u32 = 32;
/// For the handshake and the hello.
const HELLO_TIME_MAX: Duration = Duration::from_secs(10);
/// The first record of a stream beside the push stream: a wish is shorter, and checked when it is read.
const OTHER_BYTES_MAX: usize = TO_NODE_BYTES_MAX;
/// Messages of an edge that wait.
const WAITING_MAX: usize = 16;
/// Messages that are sent before the edge is listened to again.
const BURST: usize = 64;

/// What is served: the state of a node.
pub trait Feed: Send + Sync + 'static {
    /// Makes a sender for an edge's hello.
    fn sender(&self, hello: FromEdge, now_ms: u64) -> Result<Sender, SenderError>;
    /// Lets it say the next thing.
    fn poll(&self, sender: &mut Sender, now_ms: u64) -> Result<Option<ToEdge>, SenderError>;
    /// What is told when there is something new.
    type New: Send + Sync;
    /// Tells each time that there is something new.
    fn changed(&self) -> watch::Receiver<Self::New>;
    /// Grants an edge's wish, or says why not. Takes its time.
    fn ask(&self, edge: u64, ask: Ask) -> impl Future<Output = Reply> + Send;
}

/// Says which edge shows this certificate, and whether it is let in (now, and each time that it is asked).
pub trait Gate: Send + Sync + 'static {
    /// Its number; nothing when it is not let in.
    fn edge(&self, certificate: &CertificateDer<'_>) -> Option<u64>;
}

/// How edges stand: by number, its last connection, and up to which version it has applied.
#[derive(Debug, Default)]
pub struct Served(Mutex<BTreeMap<u64, (usize, u64)>>);

impl Served {
    /// Edges that are connected, and up to which version each has applied.
    pub fn edges(&self) -> BTreeMap<u64, u64> {
        let edges = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        edges.iter().map(|(edge, (_, applied))| (*edge, *applied)).collect()
    }

    fn begin(&self, edge: u64, connection: usize, applied: u64) {
        let mut edges = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        edges.insert(edge, (connection, applied));
    }

    /// What an older connection of the edge says is of no matter.
    fn set(&self, edge: u64, connection: usize, applied: u64) {
        let mut edges = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = edges.get_mut(&edge).filter(|entry| entry.0 == connection) {
            entry.1 = applied;
        }
    }

    fn end(&self, edge: u64, connection: usize) {
        let mut edges = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if edges.get(&edge).is_some_and(|entry| entry.0 == connection) {
            edges.remove(&edge);
        }
    }
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error("the connection: {0}")]
    Stream(#[from] io::Error),
    #[error("{0}")]
    Sender(#[from] SenderError),
    #[error("a message cannot be read: {0}")]
    Record(#[from] outrider_state::RecordError),
    #[error("no hello came in time")]
    Hello,
    #[error("its certificate is not that of an edge that is let in")]
    Certificate,
}

/// What is served beside the push stream.
#[derive(Clone, Debug, Default)]
pub struct Beside {
    /// Where events go; without it their stream is not answered.
    pub intake: Option<Intake>,
    /// What edges are told that need not arrive.
    pub boards: Arc<Boards>,
}

/// Serves until the endpoint is closed.
pub async fn serve<F: Feed, G: Gate>(
    endpoint: Endpoint,
    feed: Arc<F>,
    gate: Arc<G>,
    served: Arc<Served>,
    beside: Beside,
) {
    // Dropped with this future, and the connections with it.
    let mut connections = tokio::task::JoinSet::new();
    while let Some(incoming) = endpoint.accept().await {
        while connections.try_join_next().is_some() {}
        if connections.len() >= CONNECTIONS_MAX {
            incoming.refuse();
            continue;
        }
        let (feed, gate, served) = (Arc::clone(&feed), Arc::clone(&gate), Arc::clone(&served));
        let beside = beside.clone();
        connections.spawn(async move {
            let connection = match tokio::time::timeout(HELLO_TIME_MAX, incoming).await {
                Ok(Ok(connection)) => connection,
                Ok(Err(error)) => {
                    tracing::debug!(%error, "a handshake of an edge failed");
                    return;
                }
                Err(_) => return,
            };
            let from = connection.remote_address();
            if let Err(error) = connected(&connection, &feed, &*gate, &served, beside).await {
                tracing::info!(%from, %error, "the push stream to an edge ended");
                connection.close(VarInt::from_u32(1), error.to_string().as_bytes());
            }
        });
    }
}

async fn connected<F: Feed, G: Gate>(
    connection: &Connection,
    feed: &Arc<F>,
    gate: &G,
    served: &Served,
    beside: Beside,
) -> Result<(), ServeError> {
    let edge = edge_of(connection, gate).ok_or(ServeError::Certificate)?;
    let opening = async {
        let (send, mut receive) = connection.accept_bi().await.map_err(io::Error::other)?;
        let hello =
            frames::read(&mut receive, FROM_EDGE_BYTES_MAX).await?.ok_or(ServeError::Hello)?;
        Ok::<_, ServeError>((send, receive, FromEdge::from_record(&hello)?))
    };
    let (send, receive, hello) =
        tokio::time::timeout(HELLO_TIME_MAX, opening).await.map_err(|_| ServeError::Hello)??;
    let started = Instant::now();
    let sender = feed.sender(hello, 0)?;
    let id = connection.stable_id();
    served.begin(edge, id, sender.applied());
    tracing::info!(edge, from = %connection.remote_address(), "an edge follows");
    let Beside { intake, boards } = beside;
    let events = intake.map(Events::new);
    let stream = Stream { connection, edge, started, sender, send, events, boards };
    let result = stream.run(receive, feed, gate, served).await;
    served.end(edge, id);
    result
}

fn edge_of<G: Gate>(connection: &Connection, gate: &G) -> Option<u64> {
    let identity = connection.peer_identity()?;
    let certificates = identity.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    gate.edge(certificates.first()?)
}

struct Stream<'a> {
    connection: &'a Connection,
    edge: u64,
    started: Instant,
    sender: Sender,
    send: SendStream,
    events: Option<Events>,
    boards: Arc<Boards>,
}

impl Stream<'_> {
    async fn run<F: Feed, G: Gate>(
        mut self,
        mut receive: RecvStream,
        feed: &Arc<F>,
        gate: &G,
        served: &Served,
    ) -> Result<(), ServeError> {
        let (messages, mut waiting) = mpsc::channel(WAITING_MAX);
        let reader = tokio::spawn(async move {
            while let Ok(Some(record)) = frames::read(&mut receive, FROM_EDGE_BYTES_MAX).await {
                if messages.send(record).await.is_err() {
                    return;
                }
            }
        });
        let _reader = AbortOnDrop(reader.abort_handle());
        let mut changed = feed.changed();
        // Dropped with this future. QUIC bounds them.
        let mut others = tokio::task::JoinSet::new();
        loop {
            let more = self.say_all(&**feed).await?;
            let deadline = self.started + Duration::from_millis(self.sender.deadline_ms());
            tokio::select! {
                record = waiting.recv() => {
                    let Some(record) = record else { return Ok(()) };
                    self.sender.receive(&FromEdge::from_record(&record)?)?;
                    served.set(self.edge, self.connection.stable_id(), self.sender.applied());
                }
                result = changed.changed() => if result.is_err() { return Ok(()) },
                stream = self.connection.accept_bi() => {
                    let (send, receive) = stream.map_err(io::Error::other)?;
                    edge_of(self.connection, gate).ok_or(ServeError::Certificate)?;
                    let (feed, events) = (Arc::clone(feed), self.events.clone());
                    let boards = Arc::clone(&self.boards);
                    others.spawn(beside(feed, (events, boards), self.edge, send, receive));
                }
                Some(_) = others.join_next() => {}
                () = tokio::time::sleep_until(deadline) => {
                    // It may have been revoked since.
                    edge_of(self.connection, gate).ok_or(ServeError::Certificate)?;
                }
                () = std::future::ready(()), if more => {}
            }
        }
    }

    /// Sends what there is. True when there may be more.
    async fn say_all<F: Feed>(&mut self, feed: &F) -> Result<bool, ServeError> {
        for _ in 0..BURST {
            let now_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
            let Some(message) = feed.poll(&mut self.sender, now_ms)? else { return Ok(false) };
            frames::write(&mut self.send, &message.to_record()?).await?;
        }
        Ok(true)
    }
}

/// Another stream than the push stream: a wish, events, or what need not arrive. One that cannot be read ends the stream alone.
async fn beside<F: Feed>(
    feed: Arc<F>,
    (events, boards): (Option<Events>, Arc<Boards>),
    edge: u64,
    mut send: SendStream,
    mut receive: RecvStream,
) {
    let result = async {
        let first =
            tokio::time::timeout(HELLO_TIME_MAX, frames::read(&mut receive, OTHER_BYTES_MAX))
                .await
                .map_err(io::Error::other)?;
        let Some(first) = first? else { return Ok(()) };
        let kind = record::kind(&first);
        if kind == Some(Kind::SoftToNode as u8) {
            return boards.serve(first, &mut send, receive, edge).await.map_err(io::Error::other);
        }
        match events.filter(|_| kind == Some(Kind::EventsToNode as u8)) {
            Some(events) => {
                events.take(first, &mut send, receive, edge).await.map_err(io::Error::other)
            }
            None => answer(&*feed, edge, &first, &mut send).await,
        }
    };
    if let Err(error) = result.await {
        tracing::info!(edge, %error, "a stream of an edge ended");
    }
    let _ = send.finish();
}

/// A wish.
async fn answer<F: Feed>(feed: &F, edge: u64, ask: &[u8], send: &mut SendStream) -> io::Result<()> {
    let reply = match Ask::from_record(ask) {
        Ok(ask) => feed.ask(edge, ask).await,
        Err(error) => Reply::Refused(error.to_string()),
    };
    frames::write(send, &reply.to_record().map_err(io::Error::other)?).await
}

struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
