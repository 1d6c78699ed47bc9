//! The memory of the cache: one anonymous mapping, cut into slots that are handed out with the
//! exclusive right to write, then frozen and shared as `Bytes`.
//!
//! It owns the mapping and a reference count per slot. A slot goes back to its shard, through a
//! lock-free queue, when the last handle is dropped, on whatever thread that happens. What must
//! never happen: a byte that someone can see through a `Bytes` is written again.
//!
//! This module holds the raw pointers of the crate. Who may write what is in the types:
//!
//! | type            | may write                                  | may read                  |
//! |-----------------|--------------------------------------------|---------------------------|
//! | [`SlotMut`]     | the whole slot                             | the whole slot            |
//! | [`ChunkWriter`] | header room, payload beyond `len`          | payload up to `len`       |
//! | [`Frozen`]      | header room, padding behind the payload    | header room and payload   |
//! | `Bytes`         | nothing                                    | its part of the payload   |

mod slab;
mod writer;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

use bytes::Bytes;
use crossbeam_queue::ArrayQueue;
use memmap2::{Advice, MmapMut, MmapRaw};

pub(crate) use slab::{Shortage, Slab};
pub use writer::ChunkWriter;

/// Room for a record's header before each payload, so that both are written at once.
pub(crate) const HEADER_BYTES: usize = 512;
/// Disk blocks and memory pages: every slot starts and ends on one.
pub(crate) const BLOCK_BYTES: usize = 4096;
/// Parts that one big slot may be cut into.
pub(crate) const PARTS_MAX: u32 = 64;

/// The length of the record (and of the slot) that holds this many payload bytes.
pub(crate) const fn record_bytes(payload_bytes: usize) -> usize {
    (HEADER_BYTES + payload_bytes).next_multiple_of(BLOCK_BYTES)
}

/// Where a slot lies: given out by a [`Slab`], which never gives a place out twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// `big slot << 6 | part`.
    pub(crate) id: u32,
    pub(crate) offset: usize,
    pub(crate) bytes: u32,
}

/// The mapping. Dropped when the last slot and the last shard are gone.
struct Memory {
    map: MmapRaw,
    /// Per slot: generation in the upper half, references in the lower.
    counts: Box<[AtomicU64]>,
    returned: ArrayQueue<u32>,
    starving: AtomicBool,
    doorbell: Option<OwnedFd>,
}

/// The shard's end of the mapping.
#[derive(Clone)]
pub(crate) struct Arena {
    memory: Arc<Memory>,
}

impl Arena {
    /// Maps `bytes` bytes for slots of `big_bytes` and touches every page, since a page fault
    /// later would stop the shard. `slots_max` bounds how many slots can be out at once.
    pub(crate) fn map(
        bytes: usize,
        big_bytes: usize,
        slots_max: usize,
        doorbell: Option<OwnedFd>,
    ) -> io::Result<Self> {
        let mut map = MmapMut::map_anon(bytes)?;
        // Huge pages are an optimisation that the kernel may refuse.
        let _ = map.advise(Advice::HugePage);
        for page in map.chunks_mut(BLOCK_BYTES) {
            page[0] = 1;
            page[0] = 0;
        }
        std::hint::black_box(map.as_ptr());
        let counts = (0..bytes.div_ceil(big_bytes) * PARTS_MAX as usize)
            .map(|_| AtomicU64::new(0))
            .collect();
        Ok(Self {
            memory: Arc::new(Memory {
                map: map.into(),
                counts,
                returned: ArrayQueue::new(slots_max.max(1)),
                starving: AtomicBool::new(false),
                doorbell,
            }),
        })
    }

    /// Start and length of the mapping, to be registered with the kernel.
    pub(crate) fn extent(&self) -> (*mut u8, usize) {
        (self.memory.map.as_mut_ptr(), self.memory.map.len())
    }

    /// The exclusive handle of a place that a slab has just given out.
    ///
    /// # Panics
    /// When the place is still held or lies outside of the mapping: a slab gave it out twice.
    pub(crate) fn take(&self, place: Place) -> SlotMut {
        assert!(place.offset + place.bytes as usize <= self.memory.map.len(), "place outside");
        let count = &self.memory.counts[place.id as usize];
        let old = count.load(Ordering::Acquire);
        assert_eq!(old as u32, 0, "a slot that is held was given out again");
        let generation = (old >> 32).wrapping_add(1);
        count.store(generation << 32 | 1, Ordering::Release);
        SlotMut(Handle {
            memory: self.memory.clone(),
            id: place.id,
            bytes: place.bytes,
            offset: place.offset,
        })
    }

    /// The next slot that nobody holds any more.
    pub(crate) fn returned(&self) -> Option<u32> {
        self.memory.returned.pop()
    }

    /// Whether a slot that comes back should ring the doorbell.
    pub(crate) fn set_starving(&self, starving: bool) {
        self.memory.starving.store(starving, Ordering::SeqCst);
    }
}

/// One reference to a slot.
struct Handle {
    memory: Arc<Memory>,
    id: u32,
    bytes: u32,
    offset: usize,
}

impl Handle {
    fn pointer(&self) -> *mut u8 {
        // `take` checked that the slot lies inside of the mapping.
        self.memory.map.as_mut_ptr().wrapping_add(self.offset)
    }
}

impl Clone for Handle {
    fn clone(&self) -> Self {
        self.memory.counts[self.id as usize].fetch_add(1, Ordering::Relaxed);
        Self { memory: self.memory.clone(), ..*self }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let old = self.memory.counts[self.id as usize].fetch_sub(1, Ordering::Release);
        debug_assert_ne!(old as u32, 0, "a slot was dropped more often than it was held");
        if old as u32 != 1 {
            return;
        }
        fence(Ordering::Acquire);
        let pushed = self.memory.returned.push(self.id);
        debug_assert!(pushed.is_ok(), "the queue holds every slot that can be out");
        if self.memory.starving.load(Ordering::SeqCst)
            && let Some(doorbell) = &self.memory.doorbell
        {
            // An eventfd that is full is rung already.
            let _ = rustix::io::write(doorbell, &1u64.to_ne_bytes());
        }
    }
}

/// A slot that nobody else can see.
pub(crate) struct SlotMut(Handle);

#[allow(unsafe_code)]
impl SlotMut {
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: the range lies in the mapping (checked by `take`), which is initialised and lives
        // as long as the handle; this is the only handle, and it is borrowed.
        unsafe { std::slice::from_raw_parts(self.0.pointer(), self.0.bytes as usize) }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as `bytes`, and the only handle is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.0.pointer(), self.0.bytes as usize) }
    }

    /// Where the kernel reads to; valid while `self` lives.
    pub(crate) fn pointer(&self) -> *mut u8 {
        self.0.pointer()
    }

    /// Gives the right to write the payload up: `payload_bytes` of it are final.
    pub(crate) fn freeze(self, payload_bytes: usize) -> Frozen {
        assert!(HEADER_BYTES + payload_bytes <= self.0.bytes as usize, "payload beyond the slot");
        Frozen { handle: self.0, payload_bytes: payload_bytes as u32 }
    }
}

/// A slot whose payload is final. Not `Clone`: it carries the right to write the header room.
pub(crate) struct Frozen {
    handle: Handle,
    payload_bytes: u32,
}

#[allow(unsafe_code)]
impl Frozen {
    pub(crate) fn id(&self) -> u32 {
        self.handle.id
    }

    pub(crate) fn payload_len(&self) -> usize {
        self.payload_bytes as usize
    }

    pub(crate) fn record_len(&self) -> usize {
        record_bytes(self.payload_bytes as usize)
    }

    pub(crate) fn payload(&self) -> &[u8] {
        // SAFETY: inside of the slot (checked by `freeze`), initialised, and never written again
        // while a handle lives.
        unsafe {
            std::slice::from_raw_parts(
                self.handle.pointer().add(HEADER_BYTES),
                self.payload_bytes as usize,
            )
        }
    }

    pub(crate) fn header(&self) -> &[u8] {
        // SAFETY: the header room belongs to this value alone, and it is borrowed.
        unsafe { std::slice::from_raw_parts(self.handle.pointer(), HEADER_BYTES) }
    }

    pub(crate) fn header_mut(&mut self) -> &mut [u8] {
        // SAFETY: the header room belongs to this value alone, which is borrowed exclusively; no
        // `Bytes` covers it.
        unsafe { std::slice::from_raw_parts_mut(self.handle.pointer(), HEADER_BYTES) }
    }

    /// Clears what lies between the payload and the end of the record, so that nothing of the
    /// slot's former content reaches the disk.
    pub(crate) fn clear_padding(&mut self) {
        let used = HEADER_BYTES + self.payload_bytes as usize;
        let padding = self.record_len().min(self.handle.bytes as usize) - used;
        // SAFETY: inside of the slot; behind the payload, where no `Bytes` reaches; exclusive.
        unsafe { std::ptr::write_bytes(self.handle.pointer().add(used), 0, padding) }
    }

    /// Where the kernel writes from: `record_len` bytes, valid while `self` lives.
    pub(crate) fn pointer(&self) -> *const u8 {
        self.handle.pointer()
    }

    /// Header, payload and padding as they go to disk.
    #[cfg(test)]
    pub(crate) fn record(&self) -> &[u8] {
        // SAFETY: inside of the slot; header and padding are only written through `&mut self`, the
        // payload not at all.
        unsafe { std::slice::from_raw_parts(self.handle.pointer(), self.record_len()) }
    }

    /// A shared view of all of the payload. One small allocation; its clones need none.
    pub(crate) fn share(&self) -> Bytes {
        Bytes::from_owner(View { handle: self.handle.clone(), from: 0, to: self.payload_bytes })
    }

    /// Gives the slot up, but remembers it: while others still hold it, it can be revived.
    pub(crate) fn retire(self) -> Retired {
        let count = self.handle.memory.counts[self.handle.id as usize].load(Ordering::Relaxed);
        Retired {
            id: self.handle.id,
            generation: (count >> 32) as u32,
            payload_bytes: self.payload_bytes,
            bytes: self.handle.bytes,
            offset: self.handle.offset,
        }
    }
}

/// A frozen slot that the shard let go of while others hold it.
pub(crate) struct Retired {
    id: u32,
    generation: u32,
    payload_bytes: u32,
    bytes: u32,
    offset: usize,
}

impl Retired {
    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    pub(crate) fn record_len(&self) -> usize {
        record_bytes(self.payload_bytes as usize)
    }

    /// Takes the slot back if someone still holds it, that is, if its bytes cannot have changed.
    pub(crate) fn revive(self, arena: &Arena) -> Result<Frozen, Self> {
        let count = &arena.memory.counts[self.id as usize];
        let held = count.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |now| {
            let same_life = (now >> 32) as u32 == self.generation;
            (same_life && now as u32 > 0).then(|| now + 1)
        });
        match held {
            Ok(_) => Ok(Frozen {
                handle: Handle {
                    memory: arena.memory.clone(),
                    id: self.id,
                    bytes: self.bytes,
                    offset: self.offset,
                },
                payload_bytes: self.payload_bytes,
            }),
            Err(_) => Err(self),
        }
    }
}

/// A part of a payload that is final: what stands behind every `Bytes` that leaves this crate.
struct View {
    handle: Handle,
    from: u32,
    to: u32,
}

#[allow(unsafe_code)]
impl AsRef<[u8]> for View {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: made only over payload bytes that are final (`Frozen`, or before a writer's `len`),
        // inside of the slot, which cannot be reused while this handle lives.
        unsafe {
            std::slice::from_raw_parts(
                self.handle.pointer().add(HEADER_BYTES + self.from as usize),
                (self.to - self.from) as usize,
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arena() -> (Arena, Slab) {
        let big = record_bytes(64 << 10);
        let arena = Arena::map(big * 4, big, 4 * 64, None).unwrap();
        (arena, Slab::new(0, 4, 64 << 10, 1))
    }

    #[test]
    fn a_slot_comes_back_only_when_the_last_view_is_gone_on_any_thread() {
        let (arena, mut slab) = arena();
        let place = slab.take(64 << 10).unwrap();
        let mut slot = arena.take(place);
        slot.bytes_mut()[HEADER_BYTES..HEADER_BYTES + 5].copy_from_slice(b"bytes");
        let frozen = slot.freeze(5);
        let view = frozen.share();
        drop(frozen);
        assert_eq!(arena.returned(), None);
        let moved = view.clone();
        let thread = std::thread::spawn(move || {
            assert_eq!(&moved[..], b"bytes");
            drop(moved);
        });
        drop(view);
        thread.join().unwrap();
        assert_eq!(arena.returned(), Some(place.id));
    }

    #[test]
    fn a_retired_slot_is_revived_while_it_is_held_and_never_after_it_was_reused() {
        let (arena, mut slab) = arena();
        let place = slab.take(10).unwrap();
        let frozen = arena.take(place).freeze(10);
        let view = frozen.share();
        let frozen = frozen.retire().revive(&arena).ok().expect("a view holds it");
        let retired = frozen.retire();
        drop(view);
        assert_eq!(arena.returned(), Some(place.id));
        let _other = arena.take(place);
        assert!(retired.revive(&arena).is_err(), "the slot holds something else now");
    }
}
