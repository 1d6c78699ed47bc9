//! An edge's end: one connection, from its hello to its end. Who calls it does so again, with the replica as
//! it then is, at the same node or another one.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use outrider_push::ask::ASK_BYTES_MAX;
use outrider_push::message::TO_EDGE_BYTES_MAX;
use outrider_push::replica::Consequence;
use outrider_push::{
    Ask, Interest, Item, Receiver, ReceiverError, Replica, Reply, SoftToEdge, ToEdge,
};
use quinn::{Connection, Endpoint};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::events::Outgoing;
use crate::frames;
use crate::serve::ASKS_MAX;
use crate::soft;

/// A node that says nothing for so long is given up: it says something every second.
pub const SILENCE_MAX: Duration = Duration::from_secs(5);
/// For the handshake.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(3);
/// For a node's reason to end it, once its stream has ended.
const REASON_TIME_MAX: Duration = Duration::from_secs(1);
/// Messages of the node that wait.
const WAITING_MAX: usize = 16;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// It was not made.
    #[error("the node cannot be reached: {0}")]
    Connect(String),
    /// It broke.
    #[error("the connection: {0}")]
    Stream(#[from] io::Error),
    /// The node's messages contradict what this edge has.
    #[error(transparent)]
    Receiver(#[from] ReceiverError),
    /// The node's messages cannot be read.
    #[error("a message cannot be read: {0}")]
    Record(#[from] outrider_state::RecordError),
    /// The node says nothing.
    #[error("the node said nothing for {SILENCE_MAX:?}")]
    Silence,
    /// The node has ended it.
    #[error("the node ended it")]
    Ended,
    /// It said why.
    #[error("the node says: {0}")]
    Refused(String),
}

/// What a message of the node was.
#[derive(Debug)]
pub struct Taken {
    /// The items of an update, as they were taken in.
    pub items: Vec<Item>,
    /// The replica was replaced as a whole.
    pub whole: bool,
    /// What the caches have to do about it.
    pub consequences: Vec<Consequence>,
    /// The version of the node's state.
    pub latest: u64,
    /// The log's time in milliseconds, as the node said last; 0 while it has not.
    pub time_ms: u64,
}

/// A wish, and where its answer goes. Without an answer the sender is dropped: nobody knows what came of it.
#[derive(Debug)]
pub struct Asked {
    /// The wish.
    pub ask: Ask,
    /// Where its answer goes.
    pub reply: oneshot::Sender<Reply>,
}

/// What an edge says beside the push stream.
pub struct Beside<'a> {
    /// Wishes, which are passed on a few at a time.
    pub asks: &'a mut mpsc::Receiver<Asked>,
    /// Events, if any are to be sent.
    pub events: Option<&'a mut Outgoing>,
    /// Takes what need not arrive, without blocking, if anybody wants it.
    pub soft: Option<&'a mut (dyn FnMut(SoftToEdge) + Send)>,
}

/// Follows one node until the connection ends. `taken` is called after each message, but those within a
/// snapshot, and must not block for long: the node is not listened to meanwhile. What else there is to say goes
/// `beside` it.
///
/// # Errors
/// Always: why it ended. The replica is whole all the same.
pub async fn follow(
    endpoint: &Endpoint,
    (address, name): (SocketAddr, &str),
    interest: Interest,
    replica: &mut Replica,
    beside: Beside<'_>,
    mut taken: impl FnMut(&Replica, Taken),
) -> FollowError {
    match run(endpoint, (address, name), interest, replica, beside, &mut taken).await {
        Ok(()) => FollowError::Ended,
        Err(error) => error,
    }
}

async fn run(
    endpoint: &Endpoint,
    (address, name): (SocketAddr, &str),
    interest: Interest,
    replica: &mut Replica,
    Beside { asks, events, soft }: Beside<'_>,
    taken: &mut impl FnMut(&Replica, Taken),
) -> Result<(), FollowError> {
    let connecting = endpoint.connect(address, name).map_err(text)?;
    let connection = tokio::time::timeout(CONNECT_TIME_MAX, connecting).await.map_err(text)?;
    let connection = connection.map_err(text)?;
    let (mut send, mut receive) = connection.open_bi().await.map_err(text)?;
    let started = Instant::now();
    let (mut receiver, hello) = Receiver::new(replica, interest, 0);
    let hello = hello.to_record()?;
    let (messages, mut waiting) = mpsc::channel(WAITING_MAX);
    let reader = tokio::spawn(async move {
        loop {
            let record = frames::read(&mut receive, TO_EDGE_BYTES_MAX).await;
            let ended = !matches!(record, Ok(Some(_)));
            if messages.send(record).await.is_err() || ended {
                return;
            }
        }
    });
    // Dropped with this future.
    let mut under_way = tokio::task::JoinSet::new();
    // Nobody who could wish for anything is no reason not to follow.
    let mut may_ask = true;
    let updates = async {
        frames::write(&mut send, &hello).await?;
        loop {
            let now_ms = |at: Instant| {
                u64::try_from(at.duration_since(started).as_millis()).unwrap_or(u64::MAX)
            };
            if let Some(message) = receiver.poll(now_ms(Instant::now()), replica) {
                frames::write(&mut send, &message.to_record()?).await?;
            }
            let heard = started + Duration::from_millis(receiver.heard_at_ms());
            let acknowledge = receiver.deadline_ms(replica).map(Duration::from_millis);
            let wake = acknowledge.map_or(heard + SILENCE_MAX, |at| started + at);
            tokio::select! {
                record = waiting.recv() => {
                    let Some(record) = record else { return Ok(()) };
                    let Some(record) = record? else { return Ok(()) };
                    let message = ToEdge::from_record(&record)?;
                    let whole = matches!(message, ToEdge::SnapshotEnd { .. });
                    let within =
                        matches!(message, ToEdge::SnapshotBegin { .. } | ToEdge::SnapshotPart { .. });
                    let items = match &message {
                        ToEdge::Update { items, .. } => items.clone(),
                        _ => Vec::new(),
                    };
                    let at = now_ms(Instant::now());
                    let consequences = receiver.receive(message, at, replica)?;
                    if !within {
                        let (latest, time_ms) = (receiver.latest(), receiver.time_ms());
                        taken(replica, Taken { items, whole, consequences, latest, time_ms });
                    }
                }
                asked = asks.recv(), if may_ask && under_way.len() < ASKS_MAX as usize => {
                    match asked {
                        Some(asked) => drop(under_way.spawn(pass_on(connection.clone(), asked))),
                        None => may_ask = false,
                    }
                }
                Some(_) = under_way.join_next() => {}
                () = tokio::time::sleep_until(wake) => {
                    if heard.elapsed() >= SILENCE_MAX {
                        return Err(FollowError::Silence);
                    }
                }
            }
        }
    };
    let beside = async {
        match events {
            Some(events) => events.send_over(&connection).await,
            None => std::future::pending().await,
        }
    };
    let told = async {
        match soft {
            Some(taken) => soft::listen(&connection, taken).await,
            None => std::future::pending().await,
        }
    };
    let result = tokio::select! {
        result = updates => result,
        never = beside => match never {},
        never = told => match never {},
    };
    reader.abort();
    if result.is_ok() {
        // The end of the stream may overtake what the node says about it.
        let _ = tokio::time::timeout(REASON_TIME_MAX, connection.closed()).await;
    }
    match (result, connection.close_reason()) {
        (
            Ok(()) | Err(FollowError::Stream(_)),
            Some(quinn::ConnectionError::ApplicationClosed(close)),
        ) if !close.reason.is_empty() => {
            Err(FollowError::Refused(String::from_utf8_lossy(&close.reason).into_owned()))
        }
        (result, _) => result,
    }
}

fn text(error: impl std::fmt::Display) -> FollowError {
    FollowError::Connect(error.to_string())
}

/// Sends a wish, and gives its answer to who wants it. One that nobody waits for any more is not sent.
async fn pass_on(connection: Connection, asked: Asked) {
    let Asked { ask, mut reply } = asked;
    if reply.is_closed() {
        return;
    }
    let answer = async {
        let (mut send, mut receive) = connection.open_bi().await.map_err(io::Error::other)?;
        frames::write(&mut send, &ask.to_record().map_err(io::Error::other)?).await?;
        send.finish().map_err(io::Error::other)?;
        let record = frames::read(&mut receive, ASK_BYTES_MAX).await?;
        let record = record.ok_or(io::ErrorKind::UnexpectedEof)?;
        Reply::from_record(&record).map_err(io::Error::other)
    };
    tokio::select! {
        answer = answer => match answer {
            Ok(answer) => drop(reply.send(answer)),
            Err(error) => tracing::debug!(%error, "a wish was not answered"),
        },
        () = reply.closed() => {}
    }
}
