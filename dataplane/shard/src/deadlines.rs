//! A heap of deadlines with wakers. Pure: the time comes in as an argument.
//!
//! Most deadlines never come: they guard something that ends sooner, and are moved further away over
//! and over. So moving one later only notes the new time, and the heap finds out when the old one
//! comes; removing one frees its slot and leaves a stale entry behind. When more entries are stale
//! than alive the heap is built anew, which keeps it within `2 × live + 64` entries.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::task::Waker;
use std::time::Instant;

/// Stale entries that are tolerated whatever the number of live ones.
const STALE_MIN: usize = 64;

/// Names a deadline. It is outlived by its deadline when that has fired or was removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    slot: u32,
    generation: u32,
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    alive: bool,
    /// When it is to fire.
    deadline: Instant,
    /// The time of its one valid entry in the heap, never later than `deadline`.
    queued: Instant,
    waker: Option<Waker>,
}

#[derive(Debug, Default)]
pub(crate) struct Deadlines {
    heap: BinaryHeap<Reverse<(Instant, u32, u32)>>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    live: usize,
}

impl Deadlines {
    /// O(log n).
    pub(crate) fn insert(&mut self, deadline: Instant, waker: Waker) -> Key {
        let slot = if let Some(slot) = self.free.pop() {
            let entry = &mut self.slots[slot as usize];
            entry.alive = true;
            entry.deadline = deadline;
            entry.queued = deadline;
            entry.waker = Some(waker);
            slot
        } else {
            let slot = u32::try_from(self.slots.len()).expect("memory ends before 2^32 deadlines");
            self.slots.push(Slot {
                generation: 0,
                alive: true,
                deadline,
                queued: deadline,
                waker: Some(waker),
            });
            slot
        };
        self.live += 1;
        let generation = self.slots[slot as usize].generation;
        self.push(deadline, slot, generation);
        Key { slot, generation }
    }

    fn get(&mut self, key: Key) -> Option<&mut Slot> {
        self.slots
            .get_mut(key.slot as usize)
            .filter(|slot| slot.alive && slot.generation == key.generation)
    }

    /// Whether it has neither fired nor been removed.
    #[cfg(test)]
    fn is_pending(&mut self, key: Key) -> bool {
        self.get(key).is_some()
    }

    /// O(1), unless the deadline comes nearer; false when it has fired.
    pub(crate) fn reset(&mut self, key: Key, deadline: Instant) -> bool {
        let Some(slot) = self.get(key) else { return false };
        slot.deadline = deadline;
        if deadline < slot.queued {
            slot.queued = deadline;
            self.push(deadline, key.slot, key.generation);
        }
        true
    }

    /// Sets who is woken; false when it has fired.
    pub(crate) fn set_waker(&mut self, key: Key, waker: &Waker) -> bool {
        let Some(slot) = self.get(key) else { return false };
        match &mut slot.waker {
            Some(known) => known.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
        true
    }

    /// O(1), amortised. The waker is given back so that it is dropped outside of any borrow.
    pub(crate) fn remove(&mut self, key: Key) -> Option<Waker> {
        self.get(key)?;
        self.release(key.slot)
    }

    fn release(&mut self, slot: u32) -> Option<Waker> {
        let entry = &mut self.slots[slot as usize];
        entry.alive = false;
        entry.generation = entry.generation.wrapping_add(1);
        self.free.push(slot);
        self.live -= 1;
        entry.waker.take()
    }

    fn push(&mut self, at: Instant, slot: u32, generation: u32) {
        if self.heap.len() >= 2 * self.live + STALE_MIN {
            self.rebuild();
        }
        self.heap.push(Reverse((at, slot, generation)));
    }

    /// Drops every stale entry. O(n), at most once for n pushes.
    fn rebuild(&mut self) {
        let slots = &self.slots;
        self.heap.retain(|Reverse((at, slot, generation))| {
            let slot = &slots[*slot as usize];
            slot.alive && slot.generation == *generation && slot.queued == *at
        });
    }

    /// The earliest time at which something may have to be done.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse((at, _, _))| *at)
    }

    /// Moves the wakers of what is due at `now` to `woken`, in the order of their deadlines.
    pub(crate) fn fire(&mut self, now: Instant, woken: &mut Vec<Waker>) {
        while let Some(Reverse((at, index, generation))) = self.heap.peek().copied() {
            if at > now {
                break;
            }
            self.heap.pop();
            let slot = &mut self.slots[index as usize];
            if !slot.alive || slot.generation != generation || slot.queued != at {
                continue;
            }
            if slot.deadline > now {
                slot.queued = slot.deadline;
                let deadline = slot.deadline;
                self.push(deadline, index, generation);
            } else {
                woken.extend(self.release(index));
            }
        }
    }

    /// How many entries the heap has, stale ones included.
    #[cfg(test)]
    fn entries(&self) -> usize {
        self.heap.len()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::task::Wake;
    use std::time::Duration;

    use super::*;

    struct Note(AtomicU64);

    impl Wake for Note {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn note() -> (Arc<Note>, Waker) {
        let note = Arc::new(Note(AtomicU64::new(0)));
        (note.clone(), Waker::from(note))
    }

    fn fire(deadlines: &mut Deadlines, now: Instant) -> usize {
        let mut woken = Vec::new();
        deadlines.fire(now, &mut woken);
        let count = woken.len();
        woken.into_iter().for_each(Waker::wake);
        count
    }

    #[test]
    fn what_is_due_fires_once_and_what_is_not_stays() {
        let start = Instant::now();
        let mut deadlines = Deadlines::default();
        let (early, waker) = note();
        let early_key = deadlines.insert(start + Duration::from_secs(1), waker);
        let (late, waker) = note();
        let late_key = deadlines.insert(start + Duration::from_secs(3), waker);
        assert_eq!(fire(&mut deadlines, start), 0);
        assert_eq!(fire(&mut deadlines, start + Duration::from_secs(2)), 1);
        assert_eq!(early.0.load(Ordering::Relaxed), 1);
        assert_eq!(late.0.load(Ordering::Relaxed), 0);
        assert!(!deadlines.is_pending(early_key));
        assert!(deadlines.is_pending(late_key));
        assert_eq!(deadlines.next(), Some(start + Duration::from_secs(3)));
    }

    #[test]
    fn a_million_resets_to_a_later_time_leave_one_entry() {
        let start = Instant::now();
        let mut deadlines = Deadlines::default();
        let (_, waker) = note();
        let key = deadlines.insert(start, waker);
        for step in 1..=1_000_000 {
            assert!(deadlines.reset(key, start + Duration::from_nanos(step)));
        }
        assert_eq!(deadlines.entries(), 1);
        assert_eq!(fire(&mut deadlines, start + Duration::from_nanos(999_999)), 0);
        assert_eq!(fire(&mut deadlines, start + Duration::from_millis(1)), 1);
    }

    #[test]
    fn removed_and_shortened_deadlines_do_not_pile_up() {
        let start = Instant::now();
        let mut deadlines = Deadlines::default();
        let (_, waker) = note();
        let key = deadlines.insert(start + Duration::from_secs(10_000), waker.clone());
        for step in 0..100_000 {
            let gone =
                deadlines.insert(start + Duration::from_secs(20_000 - step / 10), waker.clone());
            assert!(
                deadlines
                    .reset(key, start + Duration::from_secs(10_000) - Duration::from_millis(step))
            );
            assert!(deadlines.remove(gone).is_some());
            assert!(deadlines.entries() <= 2 * 2 + STALE_MIN + 1);
        }
        assert!(deadlines.slots.len() <= 2);
    }

    #[test]
    fn against_a_plain_list_it_fires_the_same_whatever_is_done() {
        // A small generator, so that each seed is one history.
        for seed in 1..200u64 {
            let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mut random = move |below: u64| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state % below
            };
            let start = Instant::now();
            let at = |tick: u64| start + Duration::from_millis(tick);
            let mut now = 0;
            let mut deadlines = Deadlines::default();
            let mut model: Vec<(Key, u64, Arc<Note>)> = Vec::new();
            for _ in 0..300 {
                match random(4) {
                    0 => {
                        let (count, waker) = note();
                        let tick = now + random(50);
                        model.push((deadlines.insert(at(tick), waker), tick, count));
                    }
                    1 if !model.is_empty() => {
                        let index = random(model.len() as u64) as usize;
                        let tick = now + random(50);
                        assert!(deadlines.reset(model[index].0, at(tick)));
                        model[index].1 = tick;
                    }
                    2 if !model.is_empty() => {
                        let (key, _, count) =
                            model.swap_remove(random(model.len() as u64) as usize);
                        assert!(deadlines.remove(key).is_some());
                        assert!(deadlines.remove(key).is_none());
                        assert_eq!(count.0.load(Ordering::Relaxed), 0);
                    }
                    _ => {
                        now += random(20);
                        let due = model.iter().filter(|(_, tick, _)| *tick <= now).count();
                        assert_eq!(fire(&mut deadlines, at(now)), due, "seed {seed}");
                        model.retain(|(key, tick, count)| {
                            let fired = *tick <= now;
                            assert_eq!(count.0.load(Ordering::Relaxed), u64::from(fired));
                            assert_eq!(deadlines.is_pending(*key), !fired);
                            !fired
                        });
                    }
                }
                assert!(deadlines.entries() <= 2 * model.len() + STALE_MIN + 2);
                if let Some(earliest) = model.iter().map(|(_, tick, _)| *tick).min() {
                    assert!(deadlines.next().is_some_and(|next| next <= at(earliest)));
                }
            }
        }
    }
}
