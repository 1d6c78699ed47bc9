//! The RAM tier: which slot holds which chunk, and which one goes when room is needed.
//!
//! Owns the arena's free lists and one ready `Bytes` per resident chunk, so that a hit is a clone.
//! Victims come from one lazy min-heap per slot class: an entry holds the score that its chunk had
//! when it was pushed; scores only rise with use, so an entry that is too low is pushed again. What is charged to a
//! customer with a guarantee is in heaps of that customer's, which are looked at only while it has more than that.
//!
//! A chunk whose slot is still held by readers when it is evicted stays findable ("limbo"): a hit
//! revives it, and it is gone when the last reader is. What is being written to disk is not evicted.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use bytes::Bytes;
use hashbrown::HashMap;

use crate::arena::{Arena, ChunkWriter, Frozen, Retired, Shortage, Slab, SlotMut};
use crate::customers::{AccountId, Charged, NOBODY};
use crate::index::{Index, ObjectId, RESIDENTS_MAX};
use crate::metrics::{CLASSES, CacheMetrics};

/// Victims that one slot may cost; more, and the asker waits for pins to go.
const EVICTIONS_PER_SLOT_MAX: usize = 64;
/// Heap entries that may be stale before a heap is swept.
const STALE_ENTRIES_MAX: usize = 1024;
/// The same, of a heap of one customer's.
const STALE_GUARDED_MAX: usize = 64;
/// Big slots in each hundred that may be cut for small objects.
const CUT_PERCENT_MAX: u32 = 25;
/// Slots for the engine's own records (seals, headers) and for moving records, beside the arena.
const SYSTEM_BIG_SLOTS: u32 = 9;
/// A smaller arena cannot fill one chunk while it writes another.
const BIG_SLOTS_MIN: u32 = 4;

/// What keeps a resident chunk in memory.
enum Hold {
    /// Ready to be evicted.
    Clean { bytes: Bytes, frozen: Frozen },
    /// A write to disk has the frozen slot.
    Writing { bytes: Bytes },
    /// Evicted, but readers still hold it.
    Limbo(Retired),
}

struct Resident {
    object: ObjectId,
    chunk: u32,
    /// Names this residency: the same place may be used by another one later.
    birth: u64,
    /// The heap entry that counts; older ones are stale.
    tick: u64,
    class: usize,
    /// Used since it was last looked at as a victim.
    hit: bool,
    hold: Hold,
}

/// A score that orders; never NaN.
#[derive(Clone, Copy)]
struct Score(f64);

impl PartialEq for Score {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Score {}

impl PartialOrd for Score {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Score {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

type Heap = BinaryHeap<Reverse<(Score, u64, u32)>>;

/// Chunks in memory.
pub(crate) struct Ram {
    arena: Arena,
    user: Slab,
    system: Slab,
    chunk_bytes: usize,
    residents: Vec<Option<Resident>>,
    free: Vec<u32>,
    heaps: Vec<Heap>,
    /// By account: of those who have a guarantee.
    guarded: HashMap<AccountId, Vec<Heap>>,
    limbo: HashMap<u32, u32>,
    tick: u64,
    /// Objects (with their lives) whose last chunk has gone; the engine decides about them.
    pub(crate) emptied: Vec<(ObjectId, u32)>,
    /// The score of what was evicted last: ages what is not used any more.
    pub(crate) clock: f64,
    metrics: CacheMetrics,
}

/// The memory that a cache of this size maps: what the user asked for, and the engine's own.
pub(crate) struct Plan {
    pub(crate) big_slots: u32,
    pub(crate) map_bytes: usize,
    pub(crate) big_bytes: usize,
    pub(crate) slots_max: usize,
}

/// Sizes of the mapping; `None` when the arena is too small.
pub(crate) fn plan(arena_bytes: usize, chunk_bytes: usize) -> Option<Plan> {
    let big_bytes = crate::arena::record_bytes(chunk_bytes);
    let big_slots = u32::try_from(arena_bytes / big_bytes).ok()?;
    if big_slots < BIG_SLOTS_MIN {
        return None;
    }
    let all = big_slots + SYSTEM_BIG_SLOTS;
    let parts = crate::arena::PARTS_MAX as usize;
    Some(Plan {
        big_slots,
        map_bytes: all as usize * big_bytes,
        big_bytes,
        slots_max: all as usize + (cut_max(big_slots) as usize + 1) * parts,
    })
}

fn cut_max(big_slots: u32) -> u32 {
    (big_slots * CUT_PERCENT_MAX / 100).max(1)
}

impl Ram {
    pub(crate) fn new(
        arena: Arena,
        plan: &Plan,
        chunk_bytes: usize,
        metrics: CacheMetrics,
    ) -> Self {
        let user =
            Slab::new(SYSTEM_BIG_SLOTS, plan.big_slots, chunk_bytes, cut_max(plan.big_slots));
        Self {
            arena,
            chunk_bytes,
            heaps: (0..user.classes()).map(|_| BinaryHeap::new()).collect(),
            guarded: HashMap::new(),
            system: Slab::new(0, SYSTEM_BIG_SLOTS, chunk_bytes, 1),
            user,
            residents: Vec::new(),
            free: Vec::new(),
            limbo: HashMap::new(),
            tick: 0,
            emptied: Vec::new(),
            clock: 0.0,
            metrics,
        }
    }

    pub(crate) fn used_bytes(&self) -> u64 {
        self.user.used_bytes()
    }

    pub(crate) fn total_bytes(&self) -> u64 {
        self.user.total_bytes()
    }

    /// Slots of the arena that are out, and how many of them hold a resident chunk.
    #[cfg(test)]
    pub(crate) fn slots_out(&self) -> (u32, u32) {
        let out = (0..self.user.classes()).map(|class| self.user.used(class)).sum();
        (out, self.residents.iter().flatten().count() as u32)
    }

    pub(crate) fn set_starving(&self, starving: bool) {
        self.arena.set_starving(starving);
    }

    fn gauge(&self, class: usize) -> &prometheus_client::metrics::gauge::Gauge {
        let last = self.user.classes() - 1;
        &self.metrics.slots[if class == last { CLASSES - 1 } else { class }]
    }

    /// Takes back slots that nobody holds any more; `true` when there was one.
    pub(crate) fn collect(&mut self, index: &mut Index) -> bool {
        let mut any = false;
        while let Some(id) = self.arena.returned() {
            any = true;
            if let Some(place) = self.limbo.remove(&id) {
                self.forget_limbo(place, index);
            }
            if self.user.owns(id) {
                self.gauge(self.user.class_of_slot(id)).dec();
                self.user.release(id);
            } else {
                self.system.release(id);
            }
        }
        any
    }

    fn forget_limbo(&mut self, place: u32, index: &mut Index) {
        let resident =
            self.residents[place as usize].take().expect("limbo lists residents that exist");
        if let Hold::Limbo(retired) = &resident.hold {
            self.metrics.pinned_bytes.dec_by(retired.record_len() as i64);
        }
        self.free.push(place);
        self.unlink(resident.object, resident.chunk, index);
    }

    /// Takes RAM out of a chunk's entry, and notes an object that has nothing left.
    fn unlink(&mut self, object: ObjectId, chunk: u32, index: &mut Index) {
        let entry = index.entry(object, chunk);
        index.set_entry(object, chunk, entry.with_resident(None));
        if index.empty(object) {
            self.emptied.push((object, index.get(object).life));
        }
    }

    /// A slot of the engine's own, `None` while all are in use. Never evicts.
    pub(crate) fn system_slot(&mut self, payload_bytes: usize) -> Option<SlotMut> {
        // One big slot is cut in the smallest class; everything else takes a whole one.
        let payload_bytes = if self.system.class_of(payload_bytes)? == 0 {
            payload_bytes
        } else {
            self.chunk_bytes
        };
        self.system.take(payload_bytes).map(|place| self.arena.take(place))
    }

    /// A slot for this payload, by evicting what is worth least. `None`: all of it is in use.
    pub(crate) fn slot(&mut self, payload_bytes: usize, index: &mut Index) -> Option<SlotMut> {
        let class = self.user.class_of(payload_bytes)?;
        self.collect(index);
        // Where all small slots are within guarantees, a big one has to do.
        let sizes = [payload_bytes, self.chunk_bytes];
        let sizes = if class + 1 < self.user.classes() { &sizes[..] } else { &sizes[..1] };
        let mut evictions = 0;
        for bytes in sizes {
            let class = self.user.class_of(*bytes)?;
            loop {
                if let Some(place) = self.user.take(*bytes) {
                    self.gauge(class).inc();
                    return Some(self.arena.take(place));
                }
                if evictions >= EVICTIONS_PER_SLOT_MAX {
                    return None;
                }
                let evicted = match self.user.shortage(class) {
                    Shortage::Class(class) => usize::from(self.evict_one(class, index)),
                    Shortage::Drain(big) => self.drain(big, index),
                };
                if evicted == 0 {
                    break;
                }
                evictions += evicted;
                self.collect(index);
            }
        }
        None
    }

    /// A small slot for a short payload, only if one is free.
    fn smaller_slot(&mut self, payload_bytes: usize, than: usize) -> Option<SlotMut> {
        let class = self.user.class_of(payload_bytes)?;
        if self.user.class_bytes(class) * 2 > than {
            return None;
        }
        let place = self.user.take(payload_bytes)?;
        self.gauge(class).inc();
        Some(self.arena.take(place))
    }

    /// Ends a writer; moves a short payload out of a slot that is much too large for it.
    pub(crate) fn freeze(&mut self, writer: ChunkWriter) -> Frozen {
        let (len, slot_bytes) = (writer.len(), writer.slot_bytes());
        let frozen = writer.freeze();
        match self.smaller_slot(len, slot_bytes) {
            Some(mut slot) => {
                let start = crate::arena::HEADER_BYTES;
                slot.bytes_mut()[start..start + len].copy_from_slice(frozen.payload());
                slot.freeze(len)
            }
            None => frozen,
        }
    }

    /// Makes a frozen slot the resident of a chunk; returns its `Bytes` and its birth.
    pub(crate) fn install(
        &mut self,
        object: ObjectId,
        chunk: u32,
        frozen: Frozen,
        index: &mut Index,
    ) -> Bytes {
        self.remove(object, chunk, index);
        let bytes = frozen.share();
        let class = self.user.class_of_slot(frozen.id());
        self.tick += 1;
        let resident = Resident {
            object,
            chunk,
            birth: self.tick,
            tick: 0,
            class,
            hit: false,
            hold: Hold::Clean { bytes: bytes.clone(), frozen },
        };
        let place = match self.free.pop() {
            Some(place) => {
                self.residents[place as usize] = Some(resident);
                place
            }
            None => {
                self.residents.push(Some(resident));
                self.residents.len() as u32 - 1
            }
        };
        assert!(place <= RESIDENTS_MAX, "the arena has fewer slots than entries can name");
        let entry = index.entry(object, chunk);
        index.set_entry(object, chunk, entry.with_resident(Some(place)));
        index.accounts.charge(index.account(object), Charged::Ram, self.user.class_bytes(class));
        self.push(place, index);
        bytes
    }

    /// Bytes of slots that chunks of an object are charged for. O(chunks).
    pub(crate) fn bytes_of(&self, object: ObjectId, index: &Index) -> usize {
        let places = (0..index.chunks(object)).filter_map(|n| index.entry(object, n).resident());
        let residents = places.filter_map(|place| self.residents[place as usize].as_ref());
        residents
            .filter(|resident| !matches!(resident.hold, Hold::Limbo(_)))
            .map(|resident| self.user.class_bytes(resident.class))
            .sum()
    }

    /// A customer has no guarantee any more: what it has are victims like all others.
    pub(crate) fn unguard(&mut self, account: AccountId) {
        for (class, heap) in self.guarded.remove(&account).into_iter().flatten().enumerate() {
            self.heaps[class].extend(heap);
        }
    }

    fn push(&mut self, place: u32, index: &Index) {
        self.tick += 1;
        let resident = self.residents[place as usize].as_mut().expect("it was just looked at");
        resident.tick = self.tick;
        let score = index.get(resident.object).score;
        let class = resident.class;
        let account = index.account(resident.object);
        let guarded = account != NOBODY && index.accounts.is_guaranteed(account);
        let (heap, live) = if guarded {
            let charged = index.accounts.bytes(account, Charged::Ram);
            let heaps = self.guarded.entry(account);
            let heaps = heaps.or_insert_with(|| self.heaps.iter().map(|_| Heap::new()).collect());
            (&mut heaps[class], (charged / self.user.class_bytes(class) as u64) as usize)
        } else {
            (&mut self.heaps[class], self.user.used(class) as usize)
        };
        heap.push(Reverse((Score(score), self.tick, place)));
        // Entries that do not count any more must not pile up.
        let stale_max = if guarded { STALE_GUARDED_MAX } else { STALE_ENTRIES_MAX };
        if heap.len() > 2 * live + stale_max {
            let residents = &self.residents;
            heap.retain(|Reverse((_, tick, place))| {
                residents[*place as usize].as_ref().is_some_and(|resident| resident.tick == *tick)
            });
        }
    }

    /// The score of a chunk's object has fallen.
    pub(crate) fn sink(&mut self, object: ObjectId, chunk: u32, index: &Index) {
        if let Some(place) = index.entry(object, chunk).resident()
            && let Some(resident) = &mut self.residents[place as usize]
        {
            resident.hit = false;
            self.push(place, index);
        }
    }

    /// The bytes of a resident chunk. O(1), no allocation (but for a chunk that is in limbo).
    pub(crate) fn hit(&mut self, object: ObjectId, chunk: u32, index: &mut Index) -> Option<Bytes> {
        let place = index.entry(object, chunk).resident()?;
        let resident = self.residents[place as usize].as_mut()?;
        resident.hit = true;
        match &mut resident.hold {
            Hold::Clean { bytes, .. } | Hold::Writing { bytes } => Some(bytes.clone()),
            Hold::Limbo(_) => self.revive(place, index),
        }
    }

    fn revive(&mut self, place: u32, index: &mut Index) -> Option<Bytes> {
        let resident = self.residents[place as usize].take()?;
        let Hold::Limbo(retired) = resident.hold else {
            unreachable!("only what is in limbo is revived")
        };
        self.limbo.remove(&retired.id());
        self.metrics.pinned_bytes.dec_by(retired.record_len() as i64);
        match retired.revive(&self.arena) {
            Ok(frozen) => {
                let bytes = frozen.share();
                let hold = Hold::Clean { bytes: bytes.clone(), frozen };
                let (owner, class) = (resident.object, resident.class);
                self.residents[place as usize] = Some(Resident { hold, ..resident });
                let bytes_charged = self.user.class_bytes(class);
                index.accounts.charge(index.account(owner), Charged::Ram, bytes_charged);
                self.push(place, index);
                Some(bytes)
            }
            // The last reader has just left; its slot is on its way back.
            Err(_) => {
                self.free.push(place);
                self.unlink(resident.object, resident.chunk, index);
                None
            }
        }
    }

    /// Lets go of a chunk, whatever its state. Its slot is free when the last reader is gone.
    pub(crate) fn remove(&mut self, object: ObjectId, chunk: u32, index: &mut Index) {
        let entry = index.entry(object, chunk);
        let Some(place) = entry.resident() else { return };
        if let Some(resident) = self.residents[place as usize].take() {
            if let Hold::Limbo(retired) = &resident.hold {
                self.limbo.remove(&retired.id());
                self.metrics.pinned_bytes.dec_by(retired.record_len() as i64);
            } else {
                let bytes = self.user.class_bytes(resident.class);
                index.accounts.credit(index.account(object), Charged::Ram, bytes);
            }
            self.free.push(place);
        }
        index.set_entry(object, chunk, entry.with_resident(None));
    }

    /// Takes the frozen slot of a clean resident for a write; `give_back` returns it.
    pub(crate) fn borrow(
        &mut self,
        object: ObjectId,
        chunk: u32,
        index: &Index,
    ) -> Option<(Frozen, u64)> {
        let place = index.entry(object, chunk).resident()?;
        let mut resident = self.residents[place as usize].take()?;
        let mut lent = None;
        resident.hold = match resident.hold {
            Hold::Clean { bytes, frozen } => {
                lent = Some((frozen, resident.birth));
                Hold::Writing { bytes }
            }
            other => other,
        };
        self.residents[place as usize] = Some(resident);
        lent
    }

    /// Returns a slot after a write. `true` when its chunk is still the same resident.
    pub(crate) fn give_back(
        &mut self,
        object: ObjectId,
        chunk: u32,
        birth: u64,
        frozen: Frozen,
        index: &Index,
    ) -> bool {
        let Some(place) = index.entry(object, chunk).resident() else { return false };
        let Some(mut resident) = self.residents[place as usize].take() else { return false };
        let mut same = false;
        resident.hold = match resident.hold {
            Hold::Writing { bytes } if resident.birth == birth => {
                same = true;
                Hold::Clean { bytes, frozen }
            }
            other => other,
        };
        self.residents[place as usize] = Some(resident);
        if same {
            self.push(place, index);
        }
        same
    }

    /// Whether a chunk is resident and only in RAM's care (neither being written nor in limbo).
    pub(crate) fn clean(&self, object: ObjectId, chunk: u32, index: &Index) -> bool {
        index
            .entry(object, chunk)
            .resident()
            .and_then(|place| self.residents[place as usize].as_ref())
            .is_some_and(|resident| matches!(resident.hold, Hold::Clean { .. }))
    }

    /// Evicts the chunk of the lowest score that is in nobody's guarantee; `false` when nothing can go.
    fn evict_one(&mut self, class: usize, index: &mut Index) -> bool {
        while let Some(Reverse((score, tick, place))) = self.pop_lowest(class, index) {
            let Some(resident) = self.residents[place as usize].as_mut() else { continue };
            if resident.tick != tick || !matches!(resident.hold, Hold::Clean { .. }) {
                continue;
            }
            let account = index.account(resident.object);
            // A chunk that was used since goes behind those of the same score, once. One whose customer got a
            // guarantee since goes into a heap of its own.
            if index.get(resident.object).score > score.0
                || std::mem::take(&mut resident.hit)
                || index.accounts.within(account, Charged::Ram)
            {
                self.push(place, index);
                continue;
            }
            self.clock = self.clock.max(score.0);
            let reason = match (score.0 == 0.0, index.accounts.is_guaranteed(account)) {
                (true, _) => &self.metrics.evicted_ram_demoted,
                (false, true) => &self.metrics.evicted_ram_share,
                (false, false) => &self.metrics.evicted_ram,
            };
            reason.inc();
            self.retire(place, index);
            return true;
        }
        false
    }

    /// Takes the lowest entry of what is in no guarantee.
    fn pop_lowest(
        &mut self,
        class: usize,
        index: &mut Index,
    ) -> Option<Reverse<(Score, u64, u32)>> {
        let score = |heap: &Heap| heap.peek().map(|Reverse((score, ..))| *score);
        let mut lowest = (score(&self.heaps[class]), NOBODY);
        for account in index.accounts.over_ram() {
            let Some(heaps) = self.guarded.get(account) else { continue };
            if let Some(found) = score(&heaps[class])
                && lowest.0.is_none_or(|lowest| found < lowest)
            {
                lowest = (Some(found), *account);
            }
        }
        match lowest.1 {
            NOBODY => self.heaps[class].pop(),
            account => self.guarded.get_mut(&account)?[class].pop(),
        }
    }

    fn retire(&mut self, place: u32, index: &mut Index) {
        let Some(mut resident) = self.residents[place as usize].take() else { return };
        resident.hold = match resident.hold {
            Hold::Clean { bytes, frozen } => {
                drop(bytes);
                let charged = self.user.class_bytes(resident.class);
                index.accounts.credit(index.account(resident.object), Charged::Ram, charged);
                let retired = frozen.retire();
                // If nobody holds it, it comes back at the next `collect`.
                self.metrics.pinned_bytes.inc_by(retired.record_len() as i64);
                self.limbo.insert(retired.id(), place);
                Hold::Limbo(retired)
            }
            other => other,
        };
        self.residents[place as usize] = Some(resident);
    }

    /// Evicts all that lies in one cut slot, whosever it is: there is no whole one. Returns how many.
    fn drain(&mut self, big: u32, index: &mut Index) -> usize {
        let user = &self.user;
        let inside = |resident: &Resident| match &resident.hold {
            Hold::Clean { frozen, .. } => user.is_part_of(frozen.id(), big),
            Hold::Writing { .. } | Hold::Limbo(_) => false,
        };
        let victims: Vec<u32> = (0..self.residents.len() as u32)
            .filter(|place| self.residents[*place as usize].as_ref().is_some_and(inside))
            .collect();
        for place in &victims {
            self.metrics.evicted_ram.inc();
            self.retire(*place, index);
        }
        victims.len()
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        for class in 0..self.user.classes() {
            self.gauge(class).dec_by(i64::from(self.user.used(class)));
        }
    }
}
