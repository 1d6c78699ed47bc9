//! How far a consumer of a queue is. The queue has each event at least once: what came twice is known by the marks,
//! which are kept with the position, and both together with what the consumer made of the events, in one
//! transaction of its own store. So it counts each event once, whenever it or the queue is restarted.

// rkyv's derive makes structs of the variants, whose fields have no documentation.
#![allow(missing_docs)]

use std::collections::BTreeMap;
use std::fmt;

use outrider_state::record::{Kind, RecordError, decode, encode};
use rkyv::{Archive, Deserialize, Serialize};

use crate::event::{Entry, Event, EventId, Lane, Mark};

/// The longest position, in bytes.
pub const POSITION_BYTES_MAX: usize = 64;

/// Where in a queue something is: opaque bytes, which are ordered as the entries are. The empty one is before the
/// first.
#[derive(
    Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Archive, Serialize, Deserialize,
)]
pub struct Position(pub Vec<u8>);

impl Position {
    /// From a number.
    pub fn of(number: u64) -> Self {
        Self(number.to_be_bytes().to_vec())
    }

    /// The number, if it is from one; the empty position has none.
    pub fn number(&self) -> Option<u64> {
        Some(u64::from_be_bytes(self.0.as_slice().try_into().ok()?))
    }

    /// From its text form.
    pub fn from_text(text: &str) -> Option<Self> {
        let digits = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
        let fits = text.len().is_multiple_of(2) && text.len() <= 2 * POSITION_BYTES_MAX;
        let plain = text.bytes().all(|byte| byte.is_ascii_hexdigit());
        (fits && plain)
            .then(|| text.as_bytes().chunks(2).map(digits).collect::<Option<_>>())?
            .map(Self)
    }
}

/// Hexadecimal.
impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What was seen of each edge and lane.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marks(BTreeMap<(u64, Lane), Mark>);

impl Marks {
    /// Up to where this lane of this edge was seen.
    pub fn get(&self, edge: u64, lane: Lane) -> Mark {
        self.0.get(&(edge, lane)).copied().unwrap_or_default()
    }

    /// Notes that it was seen so far. Never goes back.
    pub fn set(&mut self, edge: u64, lane: Lane, mark: Mark) {
        let entry = self.0.entry((edge, lane)).or_default();
        *entry = mark.max(*entry);
    }

    /// Notes an entry, and takes out of it what was seen before; gives how many events that were.
    pub fn take(&mut self, entry: &mut Entry) -> u64 {
        let (edge, lane, mark) = (entry.edge, entry.batch.lane, entry.batch.mark());
        let events = entry.batch.events.len();
        entry.batch.forget(self.get(edge, lane));
        self.set(edge, lane, mark);
        (events - entry.batch.events.len()) as u64
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (u64, Lane, Mark)> {
        self.0.iter().map(|((edge, lane), mark)| (*edge, *lane, *mark))
    }
}

impl FromIterator<(u64, Lane, Mark)> for Marks {
    fn from_iter<T: IntoIterator<Item = (u64, Lane, Mark)>>(marks: T) -> Self {
        let mut all = Self::default();
        marks.into_iter().for_each(|(edge, lane, mark)| all.set(edge, lane, mark));
        all
    }
}

/// How far a consumer is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Everything up to this position was taken in.
    pub position: Position,
    /// What was seen.
    pub marks: Marks,
}

#[derive(Archive, Serialize, Deserialize)]
struct Stored {
    position: Position,
    marks: Vec<(u64, Lane, Mark)>,
}

impl Progress {
    /// Takes in an entry of the queue; gives the events that were not seen before. Store what is made of them and
    /// this progress together.
    pub fn take(&mut self, position: Position, mut entry: Entry) -> Vec<(EventId, Event)> {
        self.marks.take(&mut entry);
        self.position = position;
        let Entry { edge, batch } = entry;
        let (lane, epoch) = (batch.lane, batch.epoch);
        let id = |sequence| EventId { edge, lane, epoch, sequence };
        batch.events.into_iter().map(|numbered| (id(numbered.sequence), numbered.event)).collect()
    }

    /// As a record. Allocates.
    ///
    /// # Errors
    /// As [`encode`].
    pub fn to_record(&self) -> Result<Vec<u8>, RecordError> {
        let (position, marks) = (self.position.clone(), self.marks.iter().collect());
        encode(Kind::Progress, &Stored { position, marks })
    }

    /// Reads a record.
    ///
    /// # Errors
    /// [`RecordError`]
    pub fn from_record(bytes: &[u8]) -> Result<Self, RecordError> {
        let Stored { position, marks } = decode(Kind::Progress, bytes)?;
        Ok(Self { position, marks: marks.into_iter().collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Batch;
    use crate::event::tests::access;

    fn entry(epoch: u64, numbers: std::ops::RangeInclusive<u64>) -> Entry {
        let events = numbers.map(access).collect();
        Entry { edge: 7, batch: Batch { lane: Lane::Accesses, epoch, events } }
    }

    #[test]
    fn what_comes_twice_is_counted_once_also_over_a_restart() {
        let mut progress = Progress::default();
        let mut seen = Vec::new();
        for (number, entry) in
            [entry(1, 1..=4), entry(1, 3..=6), entry(1, 1..=6), entry(2, 1..=2), entry(1, 7..=9)]
                .into_iter()
                .enumerate()
        {
            progress = Progress::from_record(&progress.to_record().unwrap()).unwrap();
            let fresh = progress.take(Position::of(number as u64), entry);
            seen.extend(fresh.into_iter().map(|(id, _)| (id.epoch, id.sequence)));
        }
        assert_eq!(seen, [(1, 1), (1, 2), (1, 3), (1, 4), (1, 5), (1, 6), (2, 1), (2, 2)]);
        assert_eq!(progress.position.number(), Some(4));
    }

    #[test]
    fn positions_are_ordered_and_have_a_text_form() {
        assert!(Position::default() < Position::of(0) && Position::of(255) < Position::of(256));
        let position = Position::of(0xAB01);
        assert_eq!(Position::from_text(&position.to_string()), Some(position));
        assert_eq!(Position::from_text(""), Some(Position::default()));
        let long = "00".repeat(POSITION_BYTES_MAX + 1);
        for text in ["0", "0g", "+1", "é", long.as_str()] {
            assert_eq!(Position::from_text(text), None, "{text}");
        }
    }
}
