//! The end at a node: a position in the node's history and what the edge has not acknowledged. Who drives it
//! asks for the next message whenever its connection takes one ([`Sender::poll`]), and so decides how much is
//! under way.

use std::collections::VecDeque;
use std::sync::Arc;

use outrider_state::change::TooFarBehind;
use outrider_state::request::Invalidation;
use outrider_state::{History, State, Update};

use crate::interest::Interest;
use crate::message::{FromEdge, Item, ToEdge};

/// An edge hears within this time up to where there is nothing for it.
pub const MARK_INTERVAL_MS: u64 = 100;
/// It hears something at least so often, so that it knows that it is not forgotten.
pub const LIFE_INTERVAL_MS: u64 = 1_000;
/// Updates that are sent beyond what the edge has applied, in bytes; one is always sent.
pub const WINDOW_BYTES: usize = 4 << 20;
/// Updates that are sent beyond what the edge has applied.
pub const WINDOW_UPDATES: usize = 65_536;
/// Bytes of a part of a snapshot, where one item does not have more.
const PART_BYTES: usize = 256 << 10;
/// Updates that are looked through for one message.
const SCAN_MAX: usize = 10_000;
/// How long an edge that knows more than this node is kept waiting.
const AHEAD_TIME_MAX_MS: u64 = 10_000;

/// Why a sender ends. The edge calls again, perhaps another node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SenderError {
    /// It acknowledges what was not sent, or less than before.
    #[error("the edge says that it applied {through}, between {applied} and {sent} was possible")]
    Acknowledgement {
        /// What it says.
        through: u64,
        /// What it said before.
        applied: u64,
        /// What was sent.
        sent: u64,
    },
    /// A message at the wrong time.
    #[error("the edge says hello again")]
    HelloAgain,
    /// Another message than a hello at first.
    #[error("the edge does not say hello")]
    NoHello,
    /// It knows of versions that this node has not seen for a long time.
    #[error("the edge is at version {position}, and this node only at {version}")]
    Ahead {
        /// Where the edge is.
        position: u64,
        /// Where this node is.
        version: u64,
    },
}

/// Where a sender takes from.
pub trait Source {
    /// The cluster.
    fn cluster(&self) -> [u8; 16];
    /// The version of the state.
    fn version(&self) -> u64;
    /// The first update above this version that `takes` likes, among the next so many; and up to which version
    /// was looked.
    ///
    /// # Errors
    /// [`TooFarBehind`] when some updates above the version are forgotten.
    fn next(
        &self,
        version: u64,
        updates_max: usize,
        takes: impl Fn(&Update) -> bool,
    ) -> Result<(u64, Option<Arc<Update>>), TooFarBehind>;
    /// The log's time now, in milliseconds.
    fn time_ms(&self) -> u64;
    /// Everything that is of interest, with the digests that were invalidated above this version.
    fn snapshot(&self, interest: &Interest, invalidated: u64) -> Whole;
}

/// What a snapshot says.
#[derive(Clone, Debug, PartialEq)]
pub struct Whole {
    /// The version of which it is.
    pub version: u64,
    /// Digests that were invalidated up to this version may be missing.
    pub forgotten: u64,
    /// Everything.
    pub items: Vec<Item>,
}

/// A state with its history, as a node has them.
#[derive(Debug)]
pub struct Known<'a> {
    /// The cluster.
    pub cluster: [u8; 16],
    /// The state.
    pub state: &'a State,
    /// What changed recently.
    pub history: &'a History,
    /// The log's time now, in milliseconds: at least that of the state.
    pub time_ms: u64,
}

impl Source for Known<'_> {
    fn cluster(&self) -> [u8; 16] {
        self.cluster
    }

    fn version(&self) -> u64 {
        self.state.version()
    }

    fn next(
        &self,
        version: u64,
        updates_max: usize,
        takes: impl Fn(&Update) -> bool,
    ) -> Result<(u64, Option<Arc<Update>>), TooFarBehind> {
        let mut looked = version;
        for update in self.history.since(version)?.take(updates_max) {
            looked = update.version;
            if takes(update) {
                return Ok((looked, Some(Arc::clone(update))));
            }
        }
        Ok((looked, None))
    }

    fn time_ms(&self) -> u64 {
        self.time_ms
    }

    fn snapshot(&self, interest: &Interest, invalidated: u64) -> Whole {
        let all = self.state.versioned_changes();
        let items = all.filter(|(_, change)| interest.takes(change));
        let items = items.map(|(version, change)| Item::of(&change, version));
        let gone = self.state.invalidated().since(invalidated).map(|(version, digest)| {
            let what = Invalidation::Digest(digest.to_string());
            Item::Invalidated { version, what }
        });
        Whole {
            version: self.state.version(),
            forgotten: self.state.invalidated().forgotten(),
            items: items.chain(gone).collect(),
        }
    }
}

#[derive(Debug)]
enum Phase {
    /// The edge knows more than this node, since this time.
    Ahead(u64),
    /// Everything is to be sent, or being sent.
    Snapshot {
        begun: bool,
        version: u64,
        forgotten: u64,
        items: std::vec::IntoIter<Item>,
        sent: u64,
    },
    Updates,
}

/// The end at a node, for one connection of one edge.
#[derive(Debug)]
pub struct Sender {
    interest: Interest,
    /// Of this cluster, the edge has forgotten the digests that were invalidated up to this version, as it said at first.
    invalidated: u64,
    phase: Phase,
    /// Everything up to here was looked through.
    scanned: u64,
    /// The edge was told that it has everything up to here.
    sent: u64,
    /// It has said so itself.
    applied: u64,
    /// Updates that are not applied: version and bytes.
    open: VecDeque<(u64, usize)>,
    open_bytes: usize,
    said_at_ms: u64,
}

impl Sender {
    /// Begins with an edge's hello: its cluster, position, up to where it knows what was invalidated, and interest.
    pub fn new(
        (cluster, position, invalidated): ([u8; 16], u64, u64),
        interest: Interest,
        now_ms: u64,
        source: &impl Source,
    ) -> Self {
        let mut sender = Self {
            interest,
            invalidated,
            phase: Phase::Updates,
            scanned: position,
            sent: position,
            applied: position,
            open: VecDeque::new(),
            open_bytes: 0,
            said_at_ms: now_ms,
        };
        if cluster != source.cluster() {
            (sender.scanned, sender.sent, sender.applied) = (0, 0, 0);
            sender.invalidated = 0;
            sender.begin_snapshot(source);
        } else if position > source.version() {
            sender.phase = Phase::Ahead(now_ms);
        }
        sender
    }

    /// Begins with an edge's first message.
    ///
    /// # Errors
    /// [`SenderError::NoHello`]
    pub fn from_hello(
        hello: FromEdge,
        now_ms: u64,
        source: &impl Source,
    ) -> Result<Self, SenderError> {
        match hello {
            FromEdge::Hello { cluster, position, invalidated, interest } => {
                Ok(Self::new((cluster, position, invalidated), interest, now_ms, source))
            }
            FromEdge::Applied { .. } => Err(SenderError::NoHello),
        }
    }

    fn begin_snapshot(&mut self, source: &impl Source) {
        // What it has been told of since it was connected it knows too.
        let invalidated = self.invalidated.max(self.applied);
        let Whole { version, forgotten, items } = source.snapshot(&self.interest, invalidated);
        let items = items.into_iter();
        self.phase = Phase::Snapshot { begun: false, version, forgotten, items, sent: 0 };
    }

    /// The edge has applied everything up to here, as it says.
    pub fn applied(&self) -> u64 {
        self.applied
    }

    /// Takes a message of the edge.
    ///
    /// # Errors
    /// [`SenderError`]: the connection ends.
    pub fn receive(&mut self, message: &FromEdge) -> Result<(), SenderError> {
        let FromEdge::Applied { through } = *message else { return Err(SenderError::HelloAgain) };
        if through < self.applied || through > self.sent {
            let (applied, sent) = (self.applied, self.sent);
            return Err(SenderError::Acknowledgement { through, applied, sent });
        }
        self.applied = through;
        while let Some((version, bytes)) = self.open.front()
            && *version <= through
        {
            self.open_bytes -= bytes;
            self.open.pop_front();
        }
        Ok(())
    }

    /// When to ask again at the latest, if nothing else happens before.
    pub fn deadline_ms(&self) -> u64 {
        let interval = if self.scanned > self.sent { MARK_INTERVAL_MS } else { LIFE_INTERVAL_MS };
        self.said_at_ms + interval
    }

    /// The next message, if there is one now.
    ///
    /// # Errors
    /// [`SenderError`]: the connection ends.
    pub fn poll(
        &mut self,
        now_ms: u64,
        source: &impl Source,
    ) -> Result<Option<ToEdge>, SenderError> {
        if let Phase::Ahead(since_ms) = self.phase {
            let (position, version) = (self.sent, source.version());
            if version < position {
                return match now_ms.saturating_sub(since_ms) > AHEAD_TIME_MAX_MS {
                    true => Err(SenderError::Ahead { position, version }),
                    false => Ok(None),
                };
            }
            self.phase = Phase::Updates;
        }
        let message = match self.phase {
            Phase::Snapshot { .. } => Some(self.next_part(source)),
            _ => self.next_update(now_ms, source),
        };
        if message.is_some() {
            self.said_at_ms = now_ms;
        }
        Ok(message)
    }

    fn next_part(&mut self, source: &impl Source) -> ToEdge {
        let Phase::Snapshot { begun, version, forgotten, items, sent } = &mut self.phase else {
            unreachable!("it is asked for in that phase only")
        };
        if !*begun {
            *begun = true;
            let (cluster, version, forgotten) = (source.cluster(), *version, *forgotten);
            return ToEdge::SnapshotBegin { cluster, version, forgotten };
        }
        let (mut part, mut bytes) = (Vec::new(), 0);
        while bytes < PART_BYTES
            && let Some(item) = items.next()
        {
            bytes += item.bytes();
            part.push(item);
        }
        *sent += part.len() as u64;
        if !part.is_empty() {
            return ToEdge::SnapshotPart { items: part };
        }
        let end = ToEdge::SnapshotEnd { items: *sent };
        (self.scanned, self.sent) = (*version, *version);
        self.phase = Phase::Updates;
        end
    }

    fn next_update(&mut self, now_ms: u64, source: &impl Source) -> Option<ToEdge> {
        if self.open.len() < WINDOW_UPDATES && self.open_bytes < WINDOW_BYTES {
            let interest = &self.interest;
            let takes = |update: &Update| update.changes.iter().any(|c| interest.takes(c));
            let Ok((looked, update)) = source.next(self.scanned, SCAN_MAX, takes) else {
                self.begin_snapshot(source);
                return Some(self.next_part(source));
            };
            self.scanned = looked;
            if let Some(update) = update {
                let taken = update.changes.iter().filter(|change| self.interest.takes(change));
                let items: Vec<Item> = taken.map(|c| Item::of(c, update.version)).collect();
                let bytes = items.iter().map(Item::bytes).sum();
                self.open.push_back((update.version, bytes));
                self.open_bytes += bytes;
                let (after, version) = (self.sent, update.version);
                self.sent = version;
                let (latest, time_ms) = (source.version(), source.time_ms());
                return Some(ToEdge::Update { after, version, latest, time_ms, items });
            }
        }
        (now_ms >= self.deadline_ms()).then(|| {
            self.sent = self.scanned;
            let (latest, time_ms) = (source.version(), source.time_ms());
            ToEdge::Through { version: self.scanned, latest, time_ms }
        })
    }
}
