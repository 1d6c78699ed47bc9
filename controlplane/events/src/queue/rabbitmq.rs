//! A RabbitMQ stream, over AMQP 0.9.1: all nodes append to it, and positions are its offsets. An append is done when
//! the broker has confirmed every message of it.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
    ConfirmSelectOptions, QueueDeclareOptions,
};
use lapin::tcp::OwnedTLSConfig;
use lapin::types::{AMQPValue, FieldTable};
use lapin::uri::AMQPUri;
use lapin::{
    BasicProperties, Channel, Confirmation, Connect as _, Connection, ConnectionProperties,
};

use super::embedded::Retention;
use super::{ENTRIES_MAX, Extent, PAGE_BYTES_MAX, Page, Pending, Position, Queue, QueueError};
use crate::consumer::Marks;
use crate::event::Entry;

/// Messages that the broker sends ahead.
const PREFETCH: u16 = 256;
/// AMQP does not say that nothing more is there: for so long the first message is waited for, and the others.
const FIRST_TIME_MAX: Duration = Duration::from_millis(500);
const NEXT_TIME_MAX: Duration = Duration::from_millis(100);
/// Where messages come all the time, a read ends after so long.
const READ_TIME_MAX: Duration = Duration::from_secs(1);
/// For connecting.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);
const OFFSET: &str = "x-stream-offset";
/// The broker keeps and deletes files of so many bytes.
const SEGMENT_BYTES_MAX: i64 = 64 << 20;

/// Where the stream is.
#[derive(Clone)]
pub struct Settings {
    /// `amqp://HOST:PORT/VHOST`.
    pub url: String,
    /// The stream. It is made if it is not there.
    pub stream: String,
    /// User.
    pub username: String,
    /// Password.
    pub password: String,
    /// How much is kept, when it is made.
    pub retention: Retention,
}

/// Without the password.
impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { url, stream, username, .. } = self;
        f.debug_struct("Settings")
            .field("url", url)
            .field("stream", stream)
            .field("username", username)
            .finish_non_exhaustive()
    }
}

/// The stream. It is connected when it is used first, and again after every error.
#[derive(Debug)]
pub struct Rabbitmq {
    settings: Settings,
    appending: std::sync::Mutex<Option<Arc<Connected>>>,
    reading: std::sync::Mutex<Option<Arc<Connected>>>,
}

struct Connected {
    connection: Connection,
    channel: Channel,
}

impl std::fmt::Debug for Connected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connected").finish_non_exhaustive()
    }
}

type Place = std::sync::Mutex<Option<Arc<Connected>>>;

fn lock(place: &Place) -> std::sync::MutexGuard<'_, Option<Arc<Connected>>> {
    place.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Rabbitmq {
    /// Does not connect yet.
    pub fn new(settings: Settings) -> Self {
        Self { settings, appending: Place::default(), reading: Place::default() }
    }

    async fn connected(&self, place: &Place) -> Result<Arc<Connected>, QueueError> {
        let known = lock(place).clone();
        if let Some(connected) = known
            && connected.channel.status().connected()
        {
            return Ok(connected);
        }
        let connecting = tokio::time::timeout(CONNECT_TIME_MAX, self.connect()).await;
        let connected = match connecting {
            Ok(Ok(connected)) => Arc::new(connected),
            Ok(Err(error)) => return Err(error),
            Err(_) => return Err(self.failed("it does not answer")),
        };
        *lock(place) = Some(Arc::clone(&connected));
        Ok(connected)
    }

    async fn connect(&self) -> Result<Connected, QueueError> {
        let failed = |error: lapin::Error| self.failed(error);
        let Settings { url, stream, username, password, retention } = &self.settings;
        let mut uri: AMQPUri = url.parse().map_err(|error: String| self.failed(error))?;
        uri.authority.userinfo.username.clone_from(username);
        uri.authority.userinfo.password.clone_from(password);
        let tls = OwnedTLSConfig::default();
        let properties =
            ConnectionProperties::default().with_connection_name("outrider events".into());
        let runtime = lapin::runtime::default_runtime().map_err(failed)?;
        let connection = uri.connect_with_config(properties, tls, runtime).await.map_err(failed)?;
        let channel = connection.create_channel().await.map_err(failed)?;
        let mut arguments = FieldTable::default();
        let bytes = i64::try_from(retention.bytes_max).unwrap_or(i64::MAX);
        let age = format!("{}s", retention.age_max.as_secs());
        let segment = SEGMENT_BYTES_MAX.min(bytes);
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("stream".into()));
        arguments.insert("x-max-length-bytes".into(), AMQPValue::LongLongInt(bytes));
        arguments.insert("x-max-age".into(), AMQPValue::LongString(age.into()));
        arguments.insert("x-stream-max-segment-size-bytes".into(), AMQPValue::LongLongInt(segment));
        let options = QueueDeclareOptions::durable();
        let declared = channel.queue_declare(stream.as_str().into(), options, arguments).await;
        let channel = match declared {
            Ok(_) => channel,
            // It is there, with another retention, which an operator may have changed: then that holds.
            Err(error) if is_precondition(&error) => {
                let channel = connection.create_channel().await.map_err(failed)?;
                let options = QueueDeclareOptions::durable().passive();
                let arguments = FieldTable::default();
                let known = channel.queue_declare(stream.as_str().into(), options, arguments);
                known.await.map_err(failed)?;
                channel
            }
            Err(error) => return Err(failed(error)),
        };
        channel.confirm_select(ConfirmSelectOptions::default()).await.map_err(failed)?;
        channel.basic_qos(PREFETCH, BasicQosOptions::default()).await.map_err(failed)?;
        Ok(Connected { connection, channel })
    }

    fn failed(&self, error: impl std::fmt::Display) -> QueueError {
        let Settings { url, stream, .. } = &self.settings;
        QueueError::Unavailable(format!("RabbitMQ at {url}, stream {stream}: {error}"))
    }

    async fn publish(&self, entries: &[Entry]) -> Result<(), QueueError> {
        let connected = self.connected(&self.appending).await?;
        let mut confirms = Vec::with_capacity(entries.len());
        for entry in entries {
            let record = entry.to_record().map_err(QueueError::unavailable)?;
            // What nobody would keep comes back, and is an error.
            let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
            let stream = self.settings.stream.as_str();
            let confirm = connected.channel.basic_publish(
                "".into(),
                stream.into(),
                options,
                &record,
                BasicProperties::default(),
            );
            confirms.push(confirm.await.map_err(|error| self.failed(error))?);
        }
        for confirm in confirms {
            match confirm.await.map_err(|error| self.failed(error))? {
                Confirmation::Ack(None) => {}
                other => return Err(self.failed(format!("a message was not taken: {other:?}"))),
            }
        }
        Ok(())
    }

    /// What the stream has from this offset on (`first`, `last` or a number), until nothing more comes for a moment
    /// or `enough` says so.
    async fn deliveries(
        &self,
        from: AMQPValue,
        mut enough: impl FnMut(&Delivery) -> bool + Send,
    ) -> Result<(), QueueError> {
        let connected = self.connected(&self.reading).await?;
        let failed = |error: lapin::Error| self.failed(error);
        // A channel of its own, since that is how a consumer ends for sure.
        let channel = connected.connection.create_channel().await.map_err(failed)?;
        channel.basic_qos(PREFETCH, BasicQosOptions::default()).await.map_err(failed)?;
        let mut arguments = FieldTable::default();
        arguments.insert(OFFSET.into(), from);
        let (stream, options) = (self.settings.stream.as_str(), BasicConsumeOptions::default());
        let consuming = channel.basic_consume(stream.into(), "".into(), options, arguments);
        let mut consumer = consuming.await.map_err(failed)?;
        let mut wait = FIRST_TIME_MAX;
        let started = Instant::now();
        let result = loop {
            match tokio::time::timeout(wait, consumer.next()).await {
                Err(_) => break Ok(()),
                Ok(None) => break Err(self.failed("the consumer was ended")),
                Ok(Some(Err(error))) => break Err(failed(error)),
                Ok(Some(Ok(delivery))) => {
                    wait = NEXT_TIME_MAX;
                    if let Err(error) = delivery.ack(BasicAckOptions::default()).await {
                        break Err(failed(error));
                    }
                    if enough(&delivery) || started.elapsed() > READ_TIME_MAX {
                        break Ok(());
                    }
                }
            }
        };
        let _ = channel.close(200, "".into()).await;
        result
    }
}

fn is_precondition(error: &lapin::Error) -> bool {
    const PRECONDITION_FAILED: u16 = 406;
    matches!(error.kind(), lapin::ErrorKind::ProtocolError(error) if error.get_id() == PRECONDITION_FAILED)
}

fn offset_of(delivery: &Delivery) -> Option<u64> {
    let headers = delivery.properties.headers().as_ref()?;
    match headers.inner().get(OFFSET)? {
        AMQPValue::LongLongInt(offset) => u64::try_from(*offset).ok(),
        AMQPValue::LongInt(offset) => u64::try_from(*offset).ok(),
        AMQPValue::LongUInt(offset) => Some(u64::from(*offset)),
        _ => None,
    }
}

impl Queue for Rabbitmq {
    fn name(&self) -> &'static str {
        "rabbitmq"
    }

    fn identity(&self) -> [u8; 16] {
        super::identity_of("rabbitmq", &self.settings.stream)
    }

    fn marks(&self) -> Marks {
        Marks::default()
    }

    fn append(&self, entries: Arc<Vec<Entry>>) -> Pending<'_, ()> {
        Box::pin(async move {
            let result = self.publish(&entries).await;
            if result.is_err() {
                *lock(&self.appending) = None;
            }
            result
        })
    }

    fn read(&self, wanted: Position, entries_max: usize) -> Pending<'_, Page> {
        Box::pin(async move {
            let from = match (wanted.0.is_empty(), wanted.number().and_then(|n| n.checked_add(1))) {
                (true, _) => 0,
                (false, Some(from)) => from,
                (false, None) => return Err(QueueError::Position(wanted)),
            };
            let offset = i64::try_from(from).map_err(|_| QueueError::Position(wanted.clone()))?;
            let entries_max = entries_max.min(ENTRIES_MAX);
            let (mut page, mut bytes, mut bad) = (Page::default(), 0, None);
            let result = self
                .deliveries(AMQPValue::LongLongInt(offset), |delivery| {
                    // The broker may begin somewhat earlier.
                    let Some(at) = offset_of(delivery).filter(|at| *at >= from) else {
                        return false;
                    };
                    bytes += delivery.data.len();
                    if bytes > PAGE_BYTES_MAX && !page.entries.is_empty() {
                        return true;
                    }
                    page.missed |= page.entries.is_empty() && at > from;
                    let position = Position::of(at);
                    match Entry::from_record(&delivery.data) {
                        Ok(entry) => page.entries.push((position, entry)),
                        Err(error) => {
                            bad = Some(QueueError::Entry { position, reason: error.to_string() });
                            return true;
                        }
                    }
                    page.entries.len() >= entries_max
                })
                .await;
            if result.is_err() {
                *lock(&self.reading) = None;
            }
            result?;
            match bad {
                Some(error) if page.entries.is_empty() => Err(error),
                _ => Ok(page),
            }
        })
    }

    fn extent(&self) -> Pending<'_, Extent> {
        Box::pin(async move {
            let mut end = None;
            let last = AMQPValue::LongString("last".into());
            let result = self
                .deliveries(last, |delivery| {
                    end = offset_of(delivery).max(end);
                    false
                })
                .await;
            if result.is_err() {
                *lock(&self.reading) = None;
            }
            result?;
            let end = end.map_or_else(Position::default, Position::of);
            Ok(Extent { begin: Position::default(), end, bytes: None })
        })
    }
}
