//! Events: what was asked of an edge, and what was pushed to it, on their way into a queue and out of it.
//!
//! An edge numbers its events and sends them in batches until a node has acknowledged them. A node puts them
//! into its [queue](queue::Queue) and acknowledges what is durable there. Consumers read the queue, and count
//! nothing twice. Everything but the queues is without I/O.
//!
//! - [`event`]: events, batches and entries of a queue, as records.
//! - [`manifest`]: what an event says of a manifest.
//! - [`message`]: what both ends of the way say.
//! - [`sender`]: the end at an edge.
//! - [`receiver`]: the end at a node.
//! - [`consumer`]: reads a queue, and remembers how far it is together with what it made of it.
//! - [`queue`]: the trait, and what implements it: an embedded log, Kafka, RabbitMQ.
//! - [`intake`]: the bounded way from all receivers into the queue.

#![forbid(unsafe_code)]

pub mod consumer;
pub mod event;
#[cfg(feature = "queue")]
pub mod intake;
pub mod manifest;
pub mod message;
#[cfg(feature = "queue")]
pub mod queue;
pub mod receiver;
pub mod sender;

pub use consumer::{Marks, Progress};
pub use event::{Batch, Entry, Event, EventId, Lane, Mark, Numbered};
pub use manifest::{ManifestEvent, Said};
pub use message::{ToEdge, ToNode};
pub use receiver::{Receiver, ReceiverError};
pub use sender::{Sender, SenderError};
