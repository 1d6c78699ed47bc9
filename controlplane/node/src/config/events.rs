//! `[events]`: the queue that events of edges are put into.

use std::path::PathBuf;

use outrider_settings::units::{Size, Span};
use outrider_settings::{Invalid, bounded, is_host_and_port};
use serde::{Deserialize, Serialize};

/// The longest name of a topic or a stream.
const NAME_BYTES_MAX: usize = 249;
const BROKERS_MAX: usize = 16;

/// The queue that events of edges are put into.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EventsSection {
    /// Which one. Default `embedded`, in the node's own folder.
    pub queue: QueueKind,
    /// Bytes that it keeps; the oldest events go first. Of a Kafka topic the broker's own setting holds. Default 1GiB.
    pub retention_size: Size,
    /// How long it keeps them, likewise. Default 7d.
    pub retention_age: Span,
    /// `[events.kafka]`
    pub kafka: KafkaSection,
    /// `[events.rabbitmq]`
    pub rabbitmq: RabbitmqSection,
}

/// A kind of queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum QueueKind {
    /// A log on the node's disk.
    #[default]
    Embedded,
    /// A topic.
    Kafka,
    /// A stream.
    Rabbitmq,
}

/// Apache Kafka.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KafkaSection {
    /// `HOST:PORT` of brokers, to begin with.
    pub brokers: Vec<String>,
    /// The topic; its partition 0 is used. It is made if it is not there. Default `outrider-events`.
    pub topic: String,
    /// Replicas of the topic when it is made. Default 1.
    pub replicas: i16,
    /// User for SASL PLAIN. Default: no SASL.
    pub username: Option<String>,
    /// File with the password.
    pub password_file: Option<PathBuf>,
}

impl Default for KafkaSection {
    fn default() -> Self {
        let topic = "outrider-events".to_owned();
        Self { brokers: Vec::new(), topic, replicas: 1, username: None, password_file: None }
    }
}

/// RabbitMQ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RabbitmqSection {
    /// `amqp://HOST:PORT/VHOST`, without user and password.
    pub url: String,
    /// The stream. It is made if it is not there. Default `outrider-events`.
    pub stream: String,
    /// User. Default `guest`.
    pub username: String,
    /// File with the password. Default: the password is `guest`.
    pub password_file: Option<PathBuf>,
}

impl Default for RabbitmqSection {
    fn default() -> Self {
        Self {
            url: String::new(),
            stream: "outrider-events".to_owned(),
            username: "guest".to_owned(),
            password_file: None,
        }
    }
}

impl Default for EventsSection {
    fn default() -> Self {
        Self {
            queue: QueueKind::Embedded,
            retention_size: Size::gib(1),
            retention_age: Span::s(7 * 24 * 3_600),
            kafka: KafkaSection::default(),
            rabbitmq: RabbitmqSection::default(),
        }
    }
}

impl EventsSection {
    pub(super) fn check(&self) -> Result<(), Invalid> {
        let week = 7 * 24 * 3_600;
        bounded("events.retention_size", self.retention_size, Size::mib(1), Size::gib(1_024))?;
        bounded("events.retention_age", self.retention_age, Span::s(60), Span::s(520 * week))?;
        check_name("events.kafka.topic", &self.kafka.topic)?;
        check_name("events.rabbitmq.stream", &self.rabbitmq.stream)?;
        match self.queue {
            QueueKind::Embedded => Ok(()),
            QueueKind::Kafka => self.kafka.check(),
            QueueKind::Rabbitmq => self.rabbitmq.check(),
        }
    }
}

impl KafkaSection {
    fn check(&self) -> Result<(), Invalid> {
        const EXAMPLE: &str = "write HOST:PORT, for example [\"kafka1.example.com:9092\"]";
        let key = "events.kafka.brokers";
        if !cfg!(feature = "kafka") {
            return Err(not_built("kafka"));
        }
        if self.brokers.is_empty() || self.brokers.len() > BROKERS_MAX {
            let found = format!("{} brokers", self.brokers.len());
            return Err(Invalid::new(key, found, format!("1 to {BROKERS_MAX} are named"), EXAMPLE));
        }
        if let Some(broker) = self.brokers.iter().find(|broker| !is_host_and_port(broker)) {
            return Err(Invalid::new(key, broker, "it is not a host and a port", EXAMPLE));
        }
        bounded("events.kafka.replicas", self.replicas, 1, 9)?;
        if self.username.is_some() != self.password_file.is_some() {
            return Err(Invalid::new(
                "events.kafka.username",
                self.username.clone().unwrap_or_default(),
                "user and password go together",
                "write both username and password_file, or none",
            ));
        }
        Ok(())
    }
}

impl RabbitmqSection {
    fn check(&self) -> Result<(), Invalid> {
        if !cfg!(feature = "rabbitmq") {
            return Err(not_built("rabbitmq"));
        }
        let why = match self.url.strip_prefix("amqp://") {
            None if self.url.starts_with("amqps://") => {
                "there is no TLS to RabbitMQ: put a tunnel before it"
            }
            None => "it does not begin with amqp://",
            Some(rest) if rest.contains('@') => "user and password do not belong into it",
            Some("") => "it names no host",
            Some(_) => return Ok(()),
        };
        let example = "write for example \"amqp://rabbit.example.com:5672/%2f\", and username and password_file";
        Err(Invalid::new("events.rabbitmq.url", &self.url, why, example))
    }
}

fn not_built(queue: &str) -> Invalid {
    let remedy = format!("build with `--features {queue}`, or take another queue");
    Invalid::new("events.queue", queue, "this binary was built without it", remedy)
}

fn check_name(key: &'static str, name: &str) -> Result<(), Invalid> {
    let good = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.chars().all(good) {
        let why = format!("a name has 1 to {NAME_BYTES_MAX} of A-Z a-z 0-9 . _ -");
        return Err(Invalid::new(key, name, why, "leave it out, for outrider-events"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    #[test]
    fn what_a_queue_needs_is_asked_for() {
        for (text, wanted) in [
            ("[events]\nqueue = \"sqs\"", "unknown variant `sqs`"),
            ("[events]\nretention_age = \"1s\"", "it must be 1m"),
            ("[events.kafka]\ntopic = \"a b\"", "a name has 1 to 249"),
            #[cfg(feature = "kafka")]
            ("[events]\nqueue = \"kafka\"", "1 to 16 are named"),
            #[cfg(feature = "kafka")]
            (
                "[events]\nqueue = \"kafka\"\n[events.kafka]\nbrokers = [\"k\"]",
                "not a host and a port",
            ),
            #[cfg(feature = "kafka")]
            (
                "[events]\nqueue = \"kafka\"\n[events.kafka]\nbrokers = [\"k:1\"]\nusername = \"u\"",
                "user and password go together",
            ),
            #[cfg(feature = "rabbitmq")]
            ("[events]\nqueue = \"rabbitmq\"", "does not begin with amqp://"),
            #[cfg(feature = "rabbitmq")]
            (
                "[events]\nqueue = \"rabbitmq\"\n[events.rabbitmq]\nurl = \"amqp://u:p@h/\"",
                "do not belong into it",
            ),
            #[cfg(not(feature = "kafka"))]
            ("[events]\nqueue = \"kafka\"", "built without it"),
        ] {
            let error = Config::parse(text, "f").unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        }
    }
}
