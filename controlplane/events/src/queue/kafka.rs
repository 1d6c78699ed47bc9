//! A Kafka topic, of which partition 0 is used: all nodes append to it, and positions are its offsets. An append is
//! acknowledged by all replicas that are in sync; how many that must be, and how long the broker keeps what was
//! appended, the topic's own settings say.
//!
//! Without TLS: the client would bring a second implementation of it. Where brokers are not reached over a network
//! that is trusted, use SASL beside a tunnel.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rskafka::BackoffConfig;
use rskafka::client::error::{Error, ProtocolError};
use rskafka::client::partition::{Compression, OffsetAt, PartitionClient, UnknownTopicHandling};
use rskafka::client::{ClientBuilder, Credentials, SaslConfig};
use rskafka::record::Record;

use super::{ENTRIES_MAX, Extent, PAGE_BYTES_MAX, Page, Pending, Position, Queue, QueueError};
use crate::consumer::Marks;
use crate::event::Entry;

const PARTITION: i32 = 0;
/// For making the topic.
const CREATE_TIME_MAX_MS: i32 = 5_000;
/// The client tries for so long by itself.
const RETRY_TIME_MAX: Duration = Duration::from_secs(5);
/// The broker waits for so long for records that are not there yet.
const FETCH_WAIT_MS: i32 = 100;

/// Where the topic is.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `HOST:PORT` of brokers.
    pub brokers: Vec<String>,
    /// The topic. It is made if it is not there.
    pub topic: String,
    /// Its replicas, when it is made.
    pub replicas: i16,
    /// User and password for SASL PLAIN.
    pub credentials: Option<(String, String)>,
}

/// The topic. It is connected when it is used first, and again after every error.
#[derive(Debug)]
pub struct Kafka {
    settings: Settings,
    client: Mutex<Option<Arc<PartitionClient>>>,
}

impl Kafka {
    /// Does not connect yet.
    pub fn new(settings: Settings) -> Self {
        Self { settings, client: Mutex::new(None) }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Arc<PartitionClient>>> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn client(&self) -> Result<Arc<PartitionClient>, QueueError> {
        if let Some(client) = &*self.lock() {
            return Ok(Arc::clone(client));
        }
        let client = Arc::new(self.connect().await.map_err(|error| self.failed(&error))?);
        *self.lock() = Some(Arc::clone(&client));
        Ok(client)
    }

    async fn connect(&self) -> Result<PartitionClient, Error> {
        let Settings { brokers, topic, replicas, credentials } = &self.settings;
        let backoff = BackoffConfig { deadline: Some(RETRY_TIME_MAX), ..BackoffConfig::default() };
        let mut builder =
            ClientBuilder::new(brokers.clone()).client_id("outrider").backoff_config(backoff);
        if let Some((user, password)) = credentials {
            let credentials = Credentials::new(user.clone(), password.clone());
            builder = builder.sasl_config(SaslConfig::Plain(credentials));
        }
        let client = builder.build().await?;
        if !client.list_topics().await?.iter().any(|known| known.name == *topic) {
            let controller = client.controller_client()?;
            match controller.create_topic(topic, 1, *replicas, CREATE_TIME_MAX_MS).await {
                Err(Error::ServerError {
                    protocol_error: ProtocolError::TopicAlreadyExists,
                    ..
                })
                | Ok(()) => {}
                Err(error) => return Err(error),
            }
        }
        client.partition_client(topic, PARTITION, UnknownTopicHandling::Retry).await
    }

    fn failed(&self, error: &Error) -> QueueError {
        *self.lock() = None;
        let Settings { brokers, topic, .. } = &self.settings;
        QueueError::Unavailable(format!("Kafka at {}, topic {topic}: {error}", brokers.join(", ")))
    }
}

/// The offset behind a position.
fn after(position: &Position) -> Result<i64, QueueError> {
    if position.0.is_empty() {
        return Ok(0);
    }
    let number = position.number().and_then(|number| i64::try_from(number).ok()?.checked_add(1));
    number.ok_or_else(|| QueueError::Position(position.clone()))
}

fn position(offset: i64) -> Position {
    u64::try_from(offset).map_or_else(|_| Position::default(), Position::of)
}

impl Queue for Kafka {
    fn name(&self) -> &'static str {
        "kafka"
    }

    fn identity(&self) -> [u8; 16] {
        super::identity_of("kafka", &self.settings.topic)
    }

    fn marks(&self) -> Marks {
        Marks::default()
    }

    fn append(&self, entries: Arc<Vec<Entry>>) -> Pending<'_, ()> {
        Box::pin(async move {
            let timestamp = SystemTime::now().into();
            let mut records = Vec::with_capacity(entries.len());
            for entry in entries.iter() {
                let value = entry.to_record().map_err(QueueError::unavailable)?;
                let key = Some(entry.edge.to_string().into_bytes());
                let headers = std::collections::BTreeMap::new();
                records.push(Record { key, value: Some(value), headers, timestamp });
            }
            let client = self.client().await?;
            // The broker takes a batch of 1 MB at once if it is not told otherwise.
            while !records.is_empty() {
                let mut bytes = 0;
                let mut fits = |record: &Record| {
                    bytes += record.approximate_size();
                    bytes <= BATCH_BYTES_MAX
                };
                let count = records.iter().take_while(|record| fits(record)).count().max(1);
                let rest = records.split_off(count);
                let produced = client.produce(records, Compression::NoCompression).await;
                produced.map_err(|error| self.failed(&error))?;
                records = rest;
            }
            Ok(())
        })
    }

    fn read(&self, wanted: Position, entries_max: usize) -> Pending<'_, Page> {
        Box::pin(async move {
            let mut from = after(&wanted)?;
            let client = self.client().await?;
            let failed = |error: Error| self.failed(&error);
            let mut page = Page::default();
            let first = client.get_offset(OffsetAt::Earliest).await.map_err(failed)?;
            let end = client.get_offset(OffsetAt::Latest).await.map_err(failed)?;
            if from > end {
                return Err(QueueError::Position(wanted));
            }
            (page.missed, from) = (from < first, from.max(first));
            let entries_max = entries_max.min(ENTRIES_MAX);
            if from >= end {
                return Ok(page);
            }
            let bytes = 1..i32::try_from(PAGE_BYTES_MAX).unwrap_or(i32::MAX);
            let (records, _) =
                client.fetch_records(from, bytes, FETCH_WAIT_MS).await.map_err(failed)?;
            for record in records.into_iter().take(entries_max) {
                let position = position(record.offset);
                let value = record.record.value.unwrap_or_default();
                let entry = Entry::from_record(&value).map_err(|error| {
                    let reason = error.to_string();
                    QueueError::Entry { position: position.clone(), reason }
                })?;
                page.entries.push((position, entry));
            }
            Ok(page)
        })
    }

    fn extent(&self) -> Pending<'_, Extent> {
        Box::pin(async move {
            let client = self.client().await?;
            let failed = |error: Error| self.failed(&error);
            let begin = client.get_offset(OffsetAt::Earliest).await.map_err(failed)?;
            let end = client.get_offset(OffsetAt::Latest).await.map_err(failed)?;
            Ok(Extent { begin: position(begin - 1), end: position(end - 1), bytes: None })
        })
    }
}

/// Bytes of one batch of records.
const BATCH_BYTES_MAX: usize = 512 << 10;
