//! What a node tells an edge that need not arrive: how much depends on contents, and what will be asked for. The newest
//! wins: a node holds one value for each digest, within a bound, and sends a message when the edge has taken the one
//! before. Nothing waits in between, so an edge that is slow is told less, and never what is old.
//!
//! It goes over a stream of its own beside the push stream. Both ends are without I/O.

// rkyv's derive makes structs of the variants, whose fields have no documentation.
#![allow(missing_docs)]

use std::collections::{BTreeMap, HashMap};

use outrider_artifact::{Digest, RepositoryName};
use outrider_state::record::{Kind, RecordError, decode, encode};
use rkyv::{Archive, Deserialize, Serialize};

/// The most of each kind in one message.
pub const MESSAGE_ENTRIES_MAX: usize = 256;
/// The longest message of a node, as a record.
pub const SOFT_TO_EDGE_BYTES_MAX: usize = 512 << 10;
/// The longest message of an edge, as a record.
pub const SOFT_TO_NODE_BYTES_MAX: usize = 1 << 10;
/// Hints that are held for one edge; of more the oldest go.
pub const HINTS_MAX: usize = 4_096;
/// Predictions that are held for one edge.
pub const PREDICTIONS_MAX: usize = 4_096;
/// What an edge was told is remembered for so many digests; then all of it is forgotten, and told again.
pub const TOLD_MAX: usize = 16_384;
/// The same is told again after so long: an edge forgets what its cache forgets.
pub const TOLD_MS: u64 = 60_000;

/// How much depends on a content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hint {
    /// The content.
    pub digest: Digest,
    /// Eighths of `log2(1 + dependants)`.
    pub depth_eighths: u8,
}

/// What will be asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prediction {
    /// The content.
    pub digest: Digest,
    /// How likely, in 65,535ths.
    pub probability: u16,
    /// The repository by which it is fetched, as a client would name it.
    pub repository: RepositoryName,
    /// It is a manifest, and not a blob.
    pub is_manifest: bool,
    /// After this it is not fetched any more, in milliseconds since 1970.
    pub expires_unix_ms: u64,
}

/// Eighths of `log2(1 + dependants)`.
pub fn depth_eighths(dependants: u64) -> u8 {
    // A cast saturates. 2^53 dependants and more are all the same.
    ((1.0 + dependants as f64).log2() * 8.0).round() as u8
}

/// What an edge says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum SoftToNode {
    /// First of all.
    Hello,
    /// It has taken this message.
    Taken {
        /// Its number.
        number: u64,
    },
}

/// What a node says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SoftToEdge {
    /// The number of the message, from 1.
    pub number: u64,
    /// The newest first.
    pub hints: Vec<Hint>,
    /// The newest first.
    pub predictions: Vec<Prediction>,
}

#[derive(Archive, Serialize, Deserialize)]
struct StoredHint {
    digest: String,
    depth_eighths: u8,
}

#[derive(Archive, Serialize, Deserialize)]
struct StoredPrediction {
    digest: String,
    probability: u16,
    repository: String,
    is_manifest: bool,
    expires_unix_ms: u64,
}

#[derive(Archive, Serialize, Deserialize)]
struct Stored {
    number: u64,
    hints: Vec<StoredHint>,
    predictions: Vec<StoredPrediction>,
}

impl SoftToNode {
    /// The message as a record. Allocates.
    ///
    /// # Errors
    /// As [`encode`].
    pub fn to_record(self) -> Result<Vec<u8>, RecordError> {
        encode(Kind::SoftToNode, &self)
    }

    /// Reads a message.
    ///
    /// # Errors
    /// [`RecordError`]
    pub fn from_record(bytes: &[u8]) -> Result<Self, RecordError> {
        decode(Kind::SoftToNode, bytes)
    }
}

impl SoftToEdge {
    /// The message as a record. Allocates.
    ///
    /// # Errors
    /// As [`encode`].
    pub fn to_record(&self) -> Result<Vec<u8>, RecordError> {
        let hint = |hint: &Hint| StoredHint {
            digest: hint.digest.to_string(),
            depth_eighths: hint.depth_eighths,
        };
        let prediction = |one: &Prediction| StoredPrediction {
            digest: one.digest.to_string(),
            probability: one.probability,
            repository: one.repository.to_string(),
            is_manifest: one.is_manifest,
            expires_unix_ms: one.expires_unix_ms,
        };
        let stored = Stored {
            number: self.number,
            hints: self.hints.iter().map(hint).collect(),
            predictions: self.predictions.iter().map(prediction).collect(),
        };
        encode(Kind::SoftToEdge, &stored)
    }

    /// Reads a message, and checks every bound and name.
    ///
    /// # Errors
    /// [`RecordError`]
    pub fn from_record(bytes: &[u8]) -> Result<Self, RecordError> {
        let Stored { number, hints, predictions } = decode(Kind::SoftToEdge, bytes)?;
        if hints.len().max(predictions.len()) > MESSAGE_ENTRIES_MAX {
            return Err(RecordError::Contradiction("a message has more than 256 of a kind"));
        }
        let digest =
            |text: &str| text.parse().map_err(|_| RecordError::Contradiction("a digest is none"));
        let hint = |hint: StoredHint| {
            Ok::<_, RecordError>(Hint {
                digest: digest(&hint.digest)?,
                depth_eighths: hint.depth_eighths,
            })
        };
        let prediction = |one: StoredPrediction| {
            let repository = one.repository.parse();
            Ok::<_, RecordError>(Prediction {
                digest: digest(&one.digest)?,
                probability: one.probability,
                repository: repository
                    .map_err(|_| RecordError::Contradiction("a repository is none"))?,
                is_manifest: one.is_manifest,
                expires_unix_ms: one.expires_unix_ms,
            })
        };
        Ok(Self {
            number,
            hints: hints.into_iter().map(hint).collect::<Result<_, _>>()?,
            predictions: predictions.into_iter().map(prediction).collect::<Result<_, _>>()?,
        })
    }
}

/// The newest value for each digest, the newest digests first, within a bound.
#[derive(Debug)]
struct Latest<T> {
    values: HashMap<Digest, (u64, T)>,
    order: BTreeMap<u64, Digest>,
    next: u64,
    entries_max: usize,
    dropped: u64,
}

impl<T> Latest<T> {
    fn new(entries_max: usize) -> Self {
        let (values, order) = (HashMap::new(), BTreeMap::new());
        Self { values, order, next: 0, entries_max, dropped: 0 }
    }

    /// Gives what had to go for it.
    fn put(&mut self, digest: Digest, value: T) -> Option<Digest> {
        if let Some((place, _)) = self.values.insert(digest, (self.next, value)) {
            self.order.remove(&place);
        }
        self.order.insert(self.next, digest);
        self.next += 1;
        if self.values.len() <= self.entries_max {
            return None;
        }
        let (_, oldest) = self.order.pop_first()?;
        self.values.remove(&oldest);
        self.dropped += 1;
        Some(oldest)
    }

    fn take(&mut self) -> Option<(Digest, T)> {
        let (_, digest) = self.order.pop_last()?;
        self.values.remove(&digest).map(|(_, value)| (digest, value))
    }
}

/// Why the stream ends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SoftError {
    /// A message at the wrong time.
    #[error("the edge says hello twice, or something else before")]
    Order,
    /// It has taken what was not sent.
    #[error("the edge has taken message {number}, and {sent} was sent")]
    Taken {
        /// What it says.
        number: u64,
        /// The last that was sent.
        sent: u64,
    },
    /// The number of a message does not follow on the last.
    #[error("the node sends message {number} after {last}")]
    Number {
        /// What came.
        number: u64,
        /// What came before.
        last: u64,
    },
}

/// The end at a node, for one connection of one edge.
#[derive(Debug)]
pub struct Board {
    hints: Latest<u8>,
    predictions: Latest<Prediction>,
    /// What the edge was told, and when.
    told: HashMap<Digest, (u8, u64)>,
    greeted: bool,
    sent: u64,
    taken: u64,
}

impl Default for Board {
    fn default() -> Self {
        Self {
            hints: Latest::new(HINTS_MAX),
            predictions: Latest::new(PREDICTIONS_MAX),
            told: HashMap::new(),
            greeted: false,
            sent: 0,
            taken: 0,
        }
    }
}

impl Board {
    /// Notes a hint, unless the edge was told the same lately. Cost: O(log of what is held).
    pub fn hint(&mut self, hint: Hint, now_ms: u64) {
        let Hint { digest, depth_eighths } = hint;
        let told = self.told.get(&digest);
        if told.is_some_and(|(told, at)| *told == depth_eighths && now_ms < at + TOLD_MS) {
            return;
        }
        if self.told.len() >= TOLD_MAX {
            self.told.clear();
        }
        self.told.insert(digest, (depth_eighths, now_ms));
        if let Some(dropped) = self.hints.put(digest, depth_eighths) {
            self.told.remove(&dropped);
        }
    }

    /// Notes a prediction.
    pub fn predict(&mut self, prediction: Prediction) {
        self.predictions.put(prediction.digest, prediction);
    }

    /// Takes a message of the edge.
    ///
    /// # Errors
    /// [`SoftError`]
    pub fn receive(&mut self, message: SoftToNode) -> Result<(), SoftError> {
        match message {
            SoftToNode::Hello if !self.greeted => self.greeted = true,
            SoftToNode::Taken { number } if self.greeted => {
                if number != self.taken + 1 || number > self.sent {
                    return Err(SoftError::Taken { number, sent: self.sent });
                }
                self.taken = number;
            }
            _ => return Err(SoftError::Order),
        }
        Ok(())
    }

    /// The next message, if there is one now: the edge has taken the one before.
    pub fn poll(&mut self, now_unix_ms: u64) -> Option<SoftToEdge> {
        if !self.greeted || self.taken < self.sent {
            return None;
        }
        let mut message = SoftToEdge { number: self.sent + 1, ..SoftToEdge::default() };
        while message.hints.len() < MESSAGE_ENTRIES_MAX
            && let Some((digest, depth_eighths)) = self.hints.take()
        {
            message.hints.push(Hint { digest, depth_eighths });
        }
        while message.predictions.len() < MESSAGE_ENTRIES_MAX
            && let Some((_, prediction)) = self.predictions.take()
        {
            if prediction.expires_unix_ms > now_unix_ms {
                message.predictions.push(prediction);
            }
        }
        if message.hints.is_empty() && message.predictions.is_empty() {
            return None;
        }
        self.sent += 1;
        Some(message)
    }

    /// Messages that were sent.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// What is held, and what was dropped since newer came.
    pub fn held_and_dropped(&self) -> (usize, u64) {
        let (hints, predictions) = (&self.hints, &self.predictions);
        (hints.values.len() + predictions.values.len(), hints.dropped + predictions.dropped)
    }
}

/// The end at an edge, for one connection.
#[derive(Debug, Default)]
pub struct Taker {
    last: u64,
}

impl Taker {
    /// Takes a message; gives what is answered.
    ///
    /// # Errors
    /// [`SoftError`]
    pub fn receive(&mut self, message: &SoftToEdge) -> Result<SoftToNode, SoftError> {
        let (number, last) = (message.number, self.last);
        if number != last + 1 {
            return Err(SoftError::Number { number, last });
        }
        self.last = number;
        Ok(SoftToNode::Taken { number })
    }
}
