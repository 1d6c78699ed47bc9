//! Events that edges must not lose, on their way through the log to the queue of every node: opaque records, kept
//! until newer ones need the room. Each node copies them to its queue soon after they were applied; one that was away
//! for longer than they are kept lacks what was forgotten, and knows it by the numbers.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use rkyv::{Archive, Deserialize, Serialize};

/// The longest record of one.
pub const EVENT_RECORD_BYTES_MAX: usize = 512 << 10;
/// The most records of one request.
pub const EVENT_RECORDS_MAX: usize = 64;
/// The most bytes of records of one request.
pub const EVENT_REQUEST_BYTES_MAX: usize = 1 << 20;
/// Bytes of records that are kept; the newest is always.
pub const EVENTS_BYTES_MAX: usize = 16 << 20;

/// Events of one edge.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct EventRecord {
    /// The edge's number.
    pub edge: u64,
    /// The epoch of their numbers.
    pub epoch: u64,
    /// The number of the last.
    pub through: u64,
    /// All of them. Not looked into.
    pub record: Vec<u8>,
}

/// Those that are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Events {
    /// How many there ever were.
    pub(crate) count: u64,
    pub(crate) kept: VecDeque<Bytes>,
    pub(crate) bytes: usize,
    /// Epoch and number of the last of each edge.
    pub(crate) marks: BTreeMap<u64, (u64, u64)>,
}

impl Events {
    /// Takes a record, unless its edge has sent all of it before.
    pub(crate) fn take(&mut self, record: EventRecord) {
        let EventRecord { edge, epoch, through, record } = record;
        let mark = self.marks.entry(edge).or_default();
        if (epoch, through) <= *mark {
            return;
        }
        *mark = (epoch, through);
        self.push(record.into());
        self.count += 1;
    }

    pub(crate) fn push(&mut self, record: Bytes) {
        self.bytes += record.len();
        self.kept.push_back(record);
        while self.bytes > EVENTS_BYTES_MAX && self.kept.len() > 1 {
            self.bytes -= self.kept.pop_front().map_or(0, |record| record.len());
        }
    }

    /// How many there ever were: the number of the last.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The records behind this number with their numbers, as far as they are kept.
    pub fn after(&self, number: u64) -> impl Iterator<Item = (u64, &Bytes)> {
        let first = self.count - self.kept.len() as u64 + 1;
        let skip = usize::try_from((number + 1).saturating_sub(first)).unwrap_or(usize::MAX);
        (first..).zip(&self.kept).skip(skip)
    }

    /// Each edge, with epoch and number of its last event.
    pub fn marks(&self) -> impl Iterator<Item = (u64, (u64, u64))> {
        self.marks.iter().map(|(edge, mark)| (*edge, *mark))
    }

    /// Epoch and number of the last event of this edge; zeros for none.
    pub fn mark(&self, edge: u64) -> (u64, u64) {
        self.marks.get(&edge).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(edge: u64, epoch: u64, through: u64, length: usize) -> EventRecord {
        EventRecord { edge, epoch, through, record: vec![edge as u8; length] }
    }

    #[test]
    fn what_an_edge_sends_again_is_not_taken_again() {
        let mut events = Events::default();
        for (edge, epoch, through) in
            [(1, 1, 5), (1, 1, 5), (2, 1, 3), (1, 1, 9), (1, 1, 4), (1, 2, 1)]
        {
            events.take(record(edge, epoch, through, 10));
        }
        assert_eq!((events.count(), events.mark(1), events.mark(2)), (4, (2, 1), (1, 3)));
        let numbers = |after| events.after(after).map(|(number, _)| number).collect::<Vec<_>>();
        assert_eq!(numbers(0), [1, 2, 3, 4]);
        assert_eq!(numbers(3), [4]);
        assert_eq!(numbers(4), [0; 0]);
        assert_eq!(numbers(9), [0; 0]);
    }

    #[test]
    fn the_oldest_are_forgotten_and_the_numbers_show_it() {
        let mut events = Events::default();
        let length = EVENTS_BYTES_MAX / 4;
        for through in 1..=10 {
            events.take(record(1, 1, through, length));
        }
        assert_eq!(events.bytes, EVENTS_BYTES_MAX);
        let numbers: Vec<_> = events.after(0).map(|(number, _)| number).collect();
        assert_eq!(numbers, [7, 8, 9, 10]);
        events.take(record(1, 1, 11, 2 * EVENTS_BYTES_MAX));
        assert_eq!(events.after(0).map(|(number, _)| number).collect::<Vec<_>>(), [11]);
    }
}
