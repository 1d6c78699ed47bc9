//! The queue of events: opened as the configuration says, watched, and shown.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use outrider_events::Lane;
use outrider_events::intake::{Intake, Status};
use outrider_events::queue::embedded::{Embedded, Retention};
use outrider_events::queue::{Extent, Position, Queue, QueueError};
use outrider_raft::Consensus;
use serde_json::{Value, json};

use crate::config::{EventsSection, QueueKind};
use crate::folder::Folder;
use crate::replicated::Replicated;

/// How often it is looked what the queue has.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// For one look.
const LOOK_TIME_MAX: Duration = Duration::from_secs(5);
/// Consumers that are known by name; of more the lag is not shown.
const CONSUMERS_MAX: usize = 64;

/// Why the queue cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EventsError {
    /// It cannot be opened.
    #[error("the queue of events cannot be opened: {0}")]
    Queue(#[from] QueueError),
    /// A file of the configuration.
    #[error("events: {path}: {source}")]
    File {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
}

/// The queue of this node.
pub(crate) struct Events {
    intake: Intake,
    missed: Arc<AtomicU64>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    extent: Option<Extent>,
    consumers: BTreeMap<String, Position>,
}

/// What is shown of the queue.
pub(crate) struct Report {
    pub(crate) queue: &'static str,
    pub(crate) status: Status,
    pub(crate) waiting: usize,
    pub(crate) bytes: Option<u64>,
    pub(crate) end: Option<u64>,
    /// Records of uploads that this node was away for too long to have.
    pub(crate) missed: u64,
    /// Entries that each consumer has not read yet.
    pub(crate) lags: BTreeMap<String, u64>,
}

impl Events {
    /// Starts what appends to the queue. Nobody has to be there.
    pub(crate) fn start(opened: Opened, consensus: &Arc<Consensus>) -> Arc<Self> {
        let mut missed = Arc::default();
        let queue: Arc<dyn Queue> = match opened {
            Opened::Embedded(log) => {
                let queue = Replicated::start(Arc::clone(consensus), log);
                missed = queue.missed();
                Arc::new(queue)
            }
            #[cfg(any(feature = "kafka", feature = "rabbitmq"))]
            Opened::Server(queue) => queue,
        };
        let intake = Intake::start(queue);
        let events = Arc::new(Self { intake, missed, known: Mutex::default() });
        let weak = Arc::downgrade(&events);
        tokio::spawn(async move {
            while let Some(events) = weak.upgrade() {
                let looked = tokio::time::timeout(LOOK_TIME_MAX, events.queue().extent()).await;
                if let Ok(Ok(extent)) = looked {
                    events.lock().extent = Some(extent);
                }
                drop(events);
                tokio::time::sleep(LOOK_INTERVAL).await;
            }
        });
        events
    }

    /// The way into the queue.
    pub(crate) fn intake(&self) -> &Intake {
        &self.intake
    }

    pub(crate) fn queue(&self) -> &Arc<dyn Queue> {
        self.intake.queue()
    }

    /// A consumer has everything up to this position.
    pub(crate) fn consumed(&self, consumer: &str, position: Position) {
        let mut known = self.lock();
        if known.consumers.len() < CONSUMERS_MAX || known.consumers.contains_key(consumer) {
            known.consumers.insert(consumer.to_owned(), position);
        }
    }

    pub(crate) fn report(&self) -> Report {
        let known = self.lock();
        // The number of entries up to a position.
        let count = |position: &Position| position.number().map_or(0, |number| number + 1);
        let (begin, end) =
            known.extent.as_ref().map_or((0, 0), |e| (count(&e.begin), count(&e.end)));
        let lag = |position: &Position| end.saturating_sub(count(position).max(begin));
        Report {
            queue: self.queue().name(),
            status: self.intake.status(),
            waiting: self.intake.waiting(),
            bytes: known.extent.as_ref().and_then(|extent| extent.bytes),
            end: known.extent.as_ref().map(|_| end),
            missed: self.missed.load(Ordering::Relaxed),
            lags: known.consumers.iter().map(|(name, at)| (name.clone(), lag(at))).collect(),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Report {
    /// What the status of the cluster shows.
    pub(crate) fn json(&self) -> Value {
        let Status { failure, entries, events, duplicates, .. } = &self.status;
        let lanes = |counts: &[u64; 2]| {
            let named =
                Lane::ALL.map(|lane| (lane.name().to_owned(), json!(counts[lane as usize])));
            Value::Object(named.into_iter().collect())
        };
        json!({
            "queue": self.queue,
            "failure": failure.as_ref().map(|(reason, _)| reason),
            "failing_s": failure.as_ref().map(|(_, since)| since.elapsed().as_secs_f64()),
            "waiting": self.waiting,
            "appended": entries,
            "events": lanes(events),
            "duplicates": lanes(duplicates),
            "bytes": self.bytes,
            "end": self.end,
            "missed": self.missed,
            "lag": self.lags,
        })
    }
}

/// A queue before it is used.
pub(crate) enum Opened {
    /// The log of this node.
    Embedded(Embedded),
    /// A server of its own.
    #[cfg(any(feature = "kafka", feature = "rabbitmq"))]
    Server(Arc<dyn Queue>),
}

/// Opens the queue. Needs nothing but the disk.
///
/// # Errors
/// [`EventsError`]
pub(crate) fn open(config: &EventsSection, folder: &Folder) -> Result<Opened, EventsError> {
    let retention =
        Retention { bytes_max: config.retention_size.0, age_max: config.retention_age.0 };
    Ok(match config.queue {
        QueueKind::Embedded => Opened::Embedded(Embedded::open(&folder.events(), retention)?),
        #[cfg(feature = "kafka")]
        QueueKind::Kafka => {
            use outrider_events::queue::kafka::{Kafka, Settings};
            let kafka = &config.kafka;
            let password = kafka.password_file.as_deref().map(secret).transpose()?;
            Opened::Server(Arc::new(Kafka::new(Settings {
                brokers: kafka.brokers.clone(),
                topic: kafka.topic.clone(),
                replicas: kafka.replicas,
                credentials: kafka.username.clone().zip(password),
            })))
        }
        #[cfg(feature = "rabbitmq")]
        QueueKind::Rabbitmq => {
            use outrider_events::queue::rabbitmq::{Rabbitmq, Settings};
            let rabbitmq = &config.rabbitmq;
            let password = match &rabbitmq.password_file {
                Some(path) => secret(path)?,
                None => "guest".to_owned(),
            };
            Opened::Server(Arc::new(Rabbitmq::new(Settings {
                url: rabbitmq.url.clone(),
                stream: rabbitmq.stream.clone(),
                username: rabbitmq.username.clone(),
                password,
                retention,
            })))
        }
        // The configuration was refused.
        #[allow(unreachable_patterns)]
        other => {
            let why = format!("this binary was built without {other:?}");
            return Err(QueueError::Unavailable(why).into());
        }
    })
}

#[cfg(any(feature = "kafka", feature = "rabbitmq"))]
fn secret(path: &std::path::Path) -> Result<String, EventsError> {
    let text = std::fs::read_to_string(path).map_err(|source| {
        let path = path.display().to_string();
        EventsError::File { path, source }
    })?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}
