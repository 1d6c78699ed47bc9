//! The requests of one connection, by slot and by stream.

use std::sync::Arc;
use std::task::Waker;

use hashbrown::HashMap;

use super::wake::Wakes;

/// Slots of requests. There are never more than the streams that a client may have open.
pub(crate) struct Slots<T> {
    slots: Vec<Slot<T>>,
    free: Vec<usize>,
    by_stream: HashMap<u64, usize>,
}

struct Slot<T> {
    stream: u64,
    value: Option<T>,
    /// Made at the first use of the slot, and kept.
    waker: Waker,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self { slots: Vec::new(), free: Vec::new(), by_stream: HashMap::new() }
    }
}

impl<T> Slots<T> {
    /// Puts a value in for a stream that has none.
    pub(crate) fn insert(&mut self, stream: u64, value: T, wakes: &Arc<Wakes>, of: (usize, u64)) {
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot].stream = stream;
                self.slots[slot].value = Some(value);
                slot
            }
            None => {
                let slot = self.slots.len();
                let waker = wakes.waker(of.0, of.1, slot);
                self.slots.push(Slot { stream, value: Some(value), waker });
                slot
            }
        };
        let before = self.by_stream.insert(stream, slot);
        assert!(before.is_none(), "a stream is opened once");
    }

    /// A stream's value, and its waker.
    pub(crate) fn get(&mut self, stream: u64) -> Option<(&mut T, &Waker)> {
        let slot = &mut self.slots[*self.by_stream.get(&stream)?];
        slot.value.as_mut().map(|value| (value, &slot.waker))
    }

    /// The stream in this slot, if there is one.
    pub(crate) fn stream_in(&self, slot: usize) -> Option<u64> {
        let slot = self.slots.get(slot)?;
        slot.value.is_some().then_some(slot.stream)
    }

    pub(crate) fn remove(&mut self, stream: u64) -> Option<T> {
        let slot = self.by_stream.remove(&stream)?;
        self.free.push(slot);
        self.slots[slot].value.take()
    }

    pub(crate) fn len(&self) -> usize {
        self.by_stream.len()
    }

    /// Whether there is none for which `condition` does not hold. `O(n)`.
    pub(crate) fn all(&self, condition: impl Fn(&T) -> bool) -> bool {
        self.slots.iter().filter_map(|slot| slot.value.as_ref()).all(condition)
    }

    /// Takes all out.
    pub(crate) fn clear(&mut self) -> Vec<T> {
        self.by_stream.clear();
        self.free.clear();
        self.slots.drain(..).filter_map(|slot| slot.value).collect()
    }
}

#[cfg(test)]
mod tests {
    use outrider_shard::testing::detached_handle;

    use super::*;

    #[test]
    fn a_slot_is_used_again_and_a_late_wake_finds_another_stream_or_none() {
        let wakes = Wakes::new(detached_handle());
        let mut slots = Slots::default();
        slots.insert(0, "a", &wakes, (5, 1));
        let waker = slots.get(0).unwrap().1.clone();
        waker.wake_by_ref();
        let target = wakes.pop().unwrap();
        assert_eq!((target.connection, target.generation), (5, 1));
        assert_eq!(slots.stream_in(target.slot), Some(0));
        assert_eq!(slots.remove(0), Some("a"));
        assert_eq!(slots.stream_in(target.slot), None);
        slots.insert(4, "b", &wakes, (5, 1));
        assert_eq!(slots.stream_in(target.slot), Some(4));
        assert!(slots.get(0).is_none());
        assert_eq!(slots.slots.len(), 1);
        assert!(slots.all(|value| *value == "b") && !slots.all(|value| *value == "a"));
        assert_eq!(slots.clear(), ["b"]);
        assert!(slots.all(|_| false) && slots.get(4).is_none());
    }
}
