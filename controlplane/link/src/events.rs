//! The stream of events, beside the push stream of the same connection: an edge sends batches, a node acknowledges
//! what is durable in its queue.
//!
//! At the edge everything that happens comes in through a [`Collector`], from any thread and without waiting: what
//! there is no room for stays where it was.

use std::convert::Infallible;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use outrider_artifact::event::AccessEvent;
use outrider_events::intake::Intake;
use outrider_events::message::{TO_EDGE_BYTES_MAX, TO_NODE_BYTES_MAX};
use outrider_events::receiver::WAITING_MAX as ENTRIES_WAITING_MAX;
use outrider_events::{
    Event, Lane, Mark, Numbered, Receiver, ReceiverError, Sender, SenderError, ToEdge, ToNode,
};
use outrider_state::RecordError;
use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::mpsc;

use crate::frames;

/// Before an edge opens the stream again that ended while the connection went on.
const PAUSE: Duration = Duration::from_secs(1);
/// Messages of the other side that wait.
const WAITING_MAX: usize = 4;
/// Collections of accesses that wait, of all shards.
const ACCESSES_WAITING_MAX: usize = 16;

/// Accesses of a shard. They are made when they are sent.
pub type Accesses = Box<dyn Iterator<Item = AccessEvent> + Send>;

/// What the edge's outbox gives.
#[derive(Debug)]
pub enum Uploads {
    /// First of all: the epoch and the last number of the outbox, and an epoch for the accesses.
    Begin {
        /// Of the outbox.
        outbox: Mark,
        /// Never used before.
        accesses_epoch: u64,
    },
    /// Those that were asked for.
    More(Vec<Numbered>),
}

/// How the sending stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OutgoingStatus {
    /// Events that were sent; those that were sent again are counted again.
    pub sent: u64,
    /// Events that are held here until they are acknowledged.
    pub held: u64,
    /// Accesses that were dropped, since it is not known whether they arrived.
    pub unsettled: u64,
    /// Accesses that were dropped, since they are too large for a record.
    pub too_large: u64,
    /// Why the stream ended last while the connection went on, until the node says something again.
    pub failure: Option<String>,
}

#[derive(Debug, Default)]
struct Shared {
    /// The number of the upload that is wanted next; 0 for none.
    wanted: AtomicU64,
    durable: AtomicU64,
    status: Mutex<OutgoingStatus>,
}

/// The way in. Clones are the same.
#[derive(Clone, Debug)]
pub struct Collector {
    accesses: mpsc::Sender<Accesses>,
    uploads: mpsc::Sender<Uploads>,
    shared: Arc<Shared>,
}

impl Collector {
    /// A place for accesses, if there is one. Never waits.
    pub fn accesses(&self) -> Option<mpsc::Permit<'_, Accesses>> {
        self.accesses.try_reserve().ok()
    }

    /// Takes uploads, if there is room. Never waits.
    pub fn uploads(&self, uploads: Uploads) -> bool {
        self.uploads.try_send(uploads).is_ok()
    }

    /// From which number on uploads are wanted.
    pub fn uploads_wanted(&self) -> Option<u64> {
        Some(self.shared.wanted.load(Ordering::Acquire)).filter(|wanted| *wanted > 0)
    }

    /// Up to which number uploads are durable in a queue.
    pub fn uploads_durable(&self) -> u64 {
        self.shared.durable.load(Ordering::Acquire)
    }

    /// How the sending stands.
    pub fn status(&self) -> OutgoingStatus {
        self.shared.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Why the stream ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EventsError {
    #[error("the stream of events: {0}")]
    Stream(#[from] io::Error),
    #[error("the node has ended the stream of events")]
    Ended,
    #[error(transparent)]
    Sender(#[from] SenderError),
    #[error(transparent)]
    Receiver(#[from] ReceiverError),
    #[error("a message about events: {0}")]
    Record(#[from] RecordError),
}

/// An edge's end, for its life: what it holds outlasts connections.
#[derive(Debug)]
pub struct Outgoing {
    sender: Option<Sender>,
    accesses: mpsc::Receiver<Accesses>,
    uploads: mpsc::Receiver<Uploads>,
    shared: Arc<Shared>,
    too_large: u64,
}

impl Outgoing {
    /// An end, and the way into it.
    pub fn new() -> (Self, Collector) {
        let (accesses, accesses_in) = mpsc::channel(ACCESSES_WAITING_MAX);
        let (uploads, uploads_in) = mpsc::channel(1);
        let shared = Arc::new(Shared::default());
        let outgoing = Self {
            sender: None,
            accesses: accesses_in,
            uploads: uploads_in,
            shared: Arc::clone(&shared),
            too_large: 0,
        };
        (outgoing, Collector { accesses, uploads, shared })
    }

    /// Sends over this connection for as long as this is polled, on one stream after the other.
    pub async fn send_over(&mut self, connection: &Connection) -> Infallible {
        loop {
            let error = match self.stream(connection).await {
                Ok(never) => match never {},
                Err(error) => error.to_string(),
            };
            if let Some(sender) = &mut self.sender {
                sender.disconnected();
            }
            if connection.close_reason().is_some() {
                // The push stream says why.
                std::future::pending::<()>().await;
            }
            tracing::warn!(error, "events are not taken");
            self.show(Some(error));
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn stream(&mut self, connection: &Connection) -> Result<Infallible, EventsError> {
        while self.sender.is_none() {
            let Some(first) = self.uploads.recv().await else { std::future::pending().await };
            self.take_uploads(first)?;
        }
        let (mut send, receive) = connection.open_bi().await.map_err(io::Error::other)?;
        let mut messages = Messages::of(receive, TO_EDGE_BYTES_MAX);
        if let Some(sender) = &mut self.sender {
            sender.connected();
        }
        loop {
            self.show(None);
            while let Some(record) = self.next()? {
                frames::write(&mut send, &record).await?;
            }
            let has_room = |lane| self.sender.as_ref().is_some_and(|sender| sender.has_room(lane));
            let (uploads, accesses) = (has_room(Lane::Uploads), has_room(Lane::Accesses));
            tokio::select! {
                record = messages.0.recv() => {
                    let record = record.ok_or(EventsError::Ended)??.ok_or(EventsError::Ended)?;
                    let message = ToEdge::from_record(&record)?;
                    if let Some(sender) = &mut self.sender {
                        sender.receive(&message)?;
                    }
                    self.lock().failure = None;
                }
                Some(uploads) = self.uploads.recv(), if uploads => self.take_uploads(uploads)?,
                Some(accesses) = self.accesses.recv(), if accesses => {
                    if let Some(sender) = &mut self.sender {
                        self.too_large += sender.add_accesses(accesses.map(Event::Access))?;
                    }
                }
            }
        }
    }

    fn next(&mut self) -> Result<Option<Vec<u8>>, RecordError> {
        self.sender.as_mut().map_or(Ok(None), Sender::poll)
    }

    fn take_uploads(&mut self, uploads: Uploads) -> Result<(), RecordError> {
        match (uploads, &mut self.sender) {
            (Uploads::Begin { outbox, accesses_epoch }, None) => {
                self.sender = Some(Sender::new(outbox, accesses_epoch));
                Ok(())
            }
            (Uploads::More(events), Some(sender)) => sender.add_uploads(events),
            _ => Ok(()),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, OutgoingStatus> {
        self.shared.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says to the collectors what is wanted, and how it stands.
    fn show(&self, failure: Option<String>) {
        let Some(sender) = &self.sender else { return };
        let wanted = if sender.has_room(Lane::Uploads) { sender.uploads_next() } else { 0 };
        self.shared.durable.store(sender.uploads_durable(), Ordering::Release);
        self.shared.wanted.store(wanted, Ordering::Release);
        let mut status = self.lock();
        status.sent = sender.sent_events();
        status.held = Lane::ALL.map(|lane| sender.held(lane)).iter().sum();
        status.unsettled = sender.unsettled();
        status.too_large = self.too_large;
        status.failure = failure.or(status.failure.take());
    }
}

/// Records that a task reads from a stream. It ends with this.
struct Messages(mpsc::Receiver<io::Result<Option<Vec<u8>>>>, tokio::task::AbortHandle);

impl Messages {
    fn of(mut receive: RecvStream, bytes_max: usize) -> Self {
        let (messages, waiting) = mpsc::channel(WAITING_MAX);
        let task = tokio::spawn(async move {
            loop {
                let record = frames::read(&mut receive, bytes_max).await;
                let ended = !matches!(record, Ok(Some(_)));
                if messages.send(record).await.is_err() || ended {
                    return;
                }
            }
        });
        Self(waiting, task.abort_handle())
    }
}

impl Drop for Messages {
    fn drop(&mut self) {
        self.1.abort();
    }
}

/// A node's end of the streams of events of one connection: the next one begins when the last one has ended.
#[derive(Clone, Debug)]
pub(crate) struct Events {
    intake: Intake,
    one: Arc<tokio::sync::Mutex<()>>,
}

impl Events {
    pub(crate) fn new(intake: Intake) -> Self {
        Self { intake, one: Arc::default() }
    }

    /// Takes what a stream brings, beginning with its `first` record, until it ends.
    pub(crate) async fn take(
        &self,
        first: Vec<u8>,
        send: &mut SendStream,
        receive: RecvStream,
        edge: u64,
    ) -> Result<(), EventsError> {
        let _only = self.one.lock().await;
        let intake = &self.intake;
        let mut messages = Messages::of(receive, TO_NODE_BYTES_MAX);
        let mut receiver = Receiver::new(edge, intake.queue().identity(), intake.known(edge));
        // Room for all that the receiver has waiting.
        let (durable, mut told) = mpsc::channel(ENTRIES_WAITING_MAX);
        let mut next = Some(first);
        loop {
            while let Some(message) = receiver.poll() {
                frames::write(send, &message.to_record()?).await?;
            }
            if let Some(record) = next.take() {
                if let Some(entry) = receiver.receive(ToNode::from_record(&record)?)? {
                    intake.put(entry, durable.clone()).await;
                }
                continue;
            }
            tokio::select! {
                Some(()) = told.recv() => receiver.durable(),
                record = messages.0.recv(), if receiver.has_room() => {
                    next = record.ok_or(EventsError::Ended)??;
                    if next.is_none() {
                        return Ok(());
                    }
                }
            }
        }
    }
}
