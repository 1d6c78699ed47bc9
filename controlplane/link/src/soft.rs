//! The stream of what need not arrive, beside the push stream of the same connection: the edge opens it, the node tells
//! what is newest, one message at a time. A node of before has no such stream: the edge asks again now and then.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use outrider_push::soft::{SOFT_TO_EDGE_BYTES_MAX, SOFT_TO_NODE_BYTES_MAX, SoftError};
use outrider_push::{Board, Hint, Prediction, SoftToEdge, SoftToNode, Taker};
use outrider_state::RecordError;
use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::Notify;

use crate::frames;

/// Before an edge opens the stream again that ended while the connection went on.
const PAUSE: Duration = Duration::from_secs(5);

/// Why the stream ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamError {
    #[error("the stream of hints: {0}")]
    Stream(#[from] io::Error),
    #[error("the node has ended the stream of hints")]
    Ended,
    #[error(transparent)]
    Soft(#[from] SoftError),
    #[error("a message of hints: {0}")]
    Record(#[from] RecordError),
}

/// What the edges that follow this node are to be told.
#[derive(Debug)]
pub struct Boards {
    started: Instant,
    boards: Mutex<HashMap<u64, Slot>>,
}

#[derive(Debug)]
struct Slot {
    board: Board,
    wake: Arc<Notify>,
}

/// How it stands with one edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BoardStatus {
    /// Messages that were sent on this connection.
    pub sent: u64,
    /// What is to be told.
    pub held: usize,
    /// What was dropped, since there was too much.
    pub dropped: u64,
}

impl Default for Boards {
    fn default() -> Self {
        Self { started: Instant::now(), boards: Mutex::default() }
    }
}

impl Boards {
    /// The edges that listen.
    pub fn edges(&self) -> Vec<u64> {
        self.lock().keys().copied().collect()
    }

    /// How it stands with each.
    pub fn status(&self) -> Vec<(u64, BoardStatus)> {
        let status = |(edge, slot): (&u64, &Slot)| {
            let (held, dropped) = slot.board.held_and_dropped();
            (*edge, BoardStatus { sent: slot.board.sent(), held, dropped })
        };
        self.lock().iter().map(status).collect()
    }

    /// Has these told to an edge, if it listens.
    pub fn hint(&self, edge: u64, hints: impl IntoIterator<Item = Hint>) {
        let now_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut boards = self.lock();
        let Some(slot) = boards.get_mut(&edge) else { return };
        hints.into_iter().for_each(|hint| slot.board.hint(hint, now_ms));
        slot.wake.notify_one();
    }

    /// The same with predictions.
    pub fn predict(&self, edge: u64, predictions: impl IntoIterator<Item = Prediction>) {
        let mut boards = self.lock();
        let Some(slot) = boards.get_mut(&edge) else { return };
        predictions.into_iter().for_each(|prediction| slot.board.predict(prediction));
        slot.wake.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Slot>> {
        self.boards.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves a stream, beginning with its `first` record, until it ends, or the edge opens another one.
    pub(crate) async fn serve(
        &self,
        first: Vec<u8>,
        send: &mut SendStream,
        mut receive: RecvStream,
        edge: u64,
    ) -> Result<(), StreamError> {
        let wake = Arc::new(Notify::new());
        let slot = Slot { board: Board::default(), wake: Arc::clone(&wake) };
        if let Some(before) = self.lock().insert(edge, slot) {
            before.wake.notify_one();
        }
        let _seat = Seat { boards: self, edge, wake: Arc::clone(&wake) };
        let mut record = Some(first);
        loop {
            let message = {
                let mut boards = self.lock();
                let slot = boards.get_mut(&edge).filter(|slot| Arc::ptr_eq(&slot.wake, &wake));
                let Some(slot) = slot else { return Ok(()) };
                if let Some(record) = record.take() {
                    slot.board.receive(SoftToNode::from_record(&record)?)?;
                }
                slot.board.poll(now_unix_ms())
            };
            if let Some(message) = message {
                frames::write(send, &message.to_record()?).await?;
                // Until it is taken there is nothing to say, so that a read is never given up half-way.
                record = frames::read(&mut receive, SOFT_TO_NODE_BYTES_MAX).await?;
                if record.is_none() {
                    return Ok(());
                }
                continue;
            }
            tokio::select! {
                () = wake.notified() => {}
                // The edge says nothing now; the stream may end.
                reset = send.stopped() => {
                    drop(reset);
                    return Ok(());
                }
            }
        }
    }
}

/// Leaves with the stream.
struct Seat<'a> {
    boards: &'a Boards,
    edge: u64,
    wake: Arc<Notify>,
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        let mut boards = self.boards.lock();
        if boards.get(&self.edge).is_some_and(|slot| Arc::ptr_eq(&slot.wake, &self.wake)) {
            boards.remove(&self.edge);
        }
    }
}

fn now_unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// Listens over this connection for as long as this is polled, on one stream after the other. `taken` must not block.
pub(crate) async fn listen(
    connection: &Connection,
    taken: &mut (dyn FnMut(SoftToEdge) + Send),
) -> Infallible {
    loop {
        let error = match stream(connection, taken).await {
            Ok(never) => match never {},
            Err(error) => error,
        };
        if connection.close_reason().is_some() {
            // The push stream says why.
            std::future::pending::<()>().await;
        }
        tracing::debug!(%error, "hints are not listened to");
        tokio::time::sleep(PAUSE).await;
    }
}

async fn stream(
    connection: &Connection,
    taken: &mut (dyn FnMut(SoftToEdge) + Send),
) -> Result<Infallible, StreamError> {
    let (mut send, mut receive) = connection.open_bi().await.map_err(io::Error::other)?;
    frames::write(&mut send, &SoftToNode::Hello.to_record()?).await?;
    let mut taker = Taker::default();
    loop {
        let record = frames::read(&mut receive, SOFT_TO_EDGE_BYTES_MAX).await?;
        let message = SoftToEdge::from_record(&record.ok_or(StreamError::Ended)?)?;
        let answer = taker.receive(&message)?;
        taken(message);
        frames::write(&mut send, &answer.to_record()?).await?;
    }
}
