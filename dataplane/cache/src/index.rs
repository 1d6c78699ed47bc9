//! What is where: objects by digest, and for each of their chunks the slot in RAM and the block on
//! a stripe.
//!
//! 64 bytes an object (the first chunk's entry among them), 8 more per chunk of an object that has
//! several. Owns no memory of chunks and does no I/O.

use hashbrown::{HashMap, HashTable};
use outrider_artifact::Digest;
use xxhash_rust::xxh3::xxh3_64;

use crate::cache::{Depth, MediaType, Origin};
use crate::customers::{AccountId, Accounts, Class, Customer, NOBODY};
use crate::policy::Inputs;

/// Where an object stands in the index. Reused after the object is gone: compare lives.
pub(crate) type ObjectId = u32;

/// Where a record starts: a block of a stripe. Never block 0, which is a superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Location {
    pub(crate) stripe: u16,
    pub(crate) block: u32,
}

const NO_SLOT: u64 = (1 << 24) - 1;
/// Residents that an entry can name.
pub(crate) const RESIDENTS_MAX: u32 = NO_SLOT as u32 - 1;

/// One chunk: bits 0–31 block (0: not on disk), 32–37 stripe, 38–61 resident (all ones: not in
/// RAM), 62 verified. Bit 63 is the object's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry(u64);

impl Entry {
    pub(crate) const ABSENT: Self = Self(NO_SLOT << 38);

    pub(crate) fn location(self) -> Option<Location> {
        let block = self.0 as u32;
        (block != 0).then_some(Location { stripe: (self.0 >> 32) as u16 & 63, block })
    }

    pub(crate) fn resident(self) -> Option<u32> {
        let resident = self.0 >> 38 & NO_SLOT;
        (resident != NO_SLOT).then_some(resident as u32)
    }

    pub(crate) fn verified(self) -> bool {
        self.0 >> 62 & 1 == 1
    }

    pub(crate) fn present(self) -> bool {
        self.location().is_some() || self.resident().is_some()
    }

    pub(crate) fn with_location(self, location: Option<Location>) -> Self {
        let bits = location
            .map_or(0, |location| u64::from(location.block) | u64::from(location.stripe) << 32);
        Self(self.0 & !((1 << 38) - 1) | bits)
    }

    pub(crate) fn with_resident(self, resident: Option<u32>) -> Self {
        let bits = resident.map_or(NO_SLOT, u64::from);
        Self(self.0 & !(NO_SLOT << 38) | bits << 38)
    }

    pub(crate) fn with_verified(self, verified: bool) -> Self {
        Self(self.0 & !(1 << 62) | u64::from(verified) << 62)
    }
}

const MANY: u64 = 1 << 63;

/// An object: 64 bytes.
#[derive(Debug)]
pub(crate) struct Object {
    key: [u8; 16],
    check: u32,
    /// Lower half of the sequence at which this life began.
    pub(crate) life: u32,
    /// Size in bytes, below 2^48.
    size: [u8; 6],
    /// Whom it is charged to.
    account: AccountId,
    /// The only chunk's entry, or (with bit 63) an index into `many`.
    chunks: u64,
    /// The score at the last access.
    pub(crate) score: f64,
    origin: u32,
    media_type: u16,
    /// The minute of the last access, and who asked in it: one bit per hash of a customer.
    minute: u16,
    customers: u16,
    pub(crate) frequency: u8,
    /// The highest class that asked for it, which ages: [`Class`].
    class: u8,
    /// Costs as `16 × log2(ms)`, depth as `8 × log2(1 + dependants)`.
    fetch: u8,
    execute: u8,
    depth: u8,
    flags: u8,
}

const _: () = assert!(size_of::<Object>() == 64);

/// Bits of an object.
pub(crate) mod flag {
    /// Uploaded here and visible: never evicted from disk, always verified.
    pub(crate) const HOSTED: u8 = 1;
    /// An upload without a name: not in the table of digests.
    pub(crate) const UPLOAD: u8 = 2;
    /// An object without bytes that was hashed (or is hosted).
    pub(crate) const EMPTY_VERIFIED: u8 = 4;
    /// Unverified records of this life lie on disk that the index has let go of: never seal it.
    pub(crate) const TAINTED: u8 = 8;
    /// A seal of this life is on disk or on its way there.
    pub(crate) const SEALED: u8 = 16;
    /// It was asked for before it was begun: may be written to a full SSD.
    pub(crate) const ADMITTED: u8 = 32;
    /// By which weights its score was made: one bit of how often they have changed.
    pub(crate) const WEIGHED: u8 = 64;
    /// The slot of the index is free.
    pub(crate) const FREE: u8 = 128;
}

/// The entries of an object with several chunks, and what they add up to.
#[derive(Debug, Default)]
struct Many {
    entries: Vec<Entry>,
    present: u32,
    verified: u32,
}

/// Values that many objects share, with a count of them.
#[derive(Debug)]
struct Shared<T> {
    values: Vec<(Option<T>, u32)>,
    free: Vec<u32>,
    ids: HashMap<T, u32>,
    max: u32,
}

impl<T: Clone + Eq + std::hash::Hash> Shared<T> {
    fn new(max: u32) -> Self {
        Self { values: Vec::new(), free: Vec::new(), ids: HashMap::new(), max }
    }

    fn acquire<Q>(&mut self, value: &Q) -> Option<u32>
    where
        Q: std::hash::Hash + hashbrown::Equivalent<T> + ?Sized,
        T: for<'a> From<&'a Q>,
    {
        if let Some(id) = self.ids.get(value) {
            self.values[*id as usize].1 += 1;
            return Some(*id);
        }
        let owned = T::from(value);
        let id = match self.free.pop() {
            Some(id) => {
                self.values[id as usize] = (Some(owned.clone()), 1);
                id
            }
            None if self.values.len() as u32 <= self.max => {
                self.values.push((Some(owned.clone()), 1));
                self.values.len() as u32 - 1
            }
            None => return None,
        };
        self.ids.insert(owned, id);
        Some(id)
    }

    /// `true` when nobody has it any more.
    fn release(&mut self, id: u32) -> bool {
        let (value, count) = &mut self.values[id as usize];
        *count -= 1;
        if *count == 0 {
            if let Some(value) = value.take() {
                self.ids.remove(&value);
            }
            self.free.push(id);
        }
        *count == 0
    }

    fn get(&self, id: u32) -> &T {
        self.values[id as usize].0.as_ref().expect("an object holds a count of its values")
    }
}

/// The largest object that the index can name.
pub(crate) const SIZE_BYTES_MAX: u64 = (1 << 48) - 1;

/// What a new object starts with.
pub(crate) struct NewObject<'a> {
    pub(crate) size: u64,
    pub(crate) media_type: &'a str,
    pub(crate) origin: Origin,
    pub(crate) life: u32,
    /// Who brings it in.
    pub(crate) class: Class,
}

/// The index of one shard.
pub(crate) struct Index {
    seed: u64,
    chunk_bytes: u64,
    table: HashTable<ObjectId>,
    objects: Vec<Object>,
    free: Vec<ObjectId>,
    many: Vec<Many>,
    many_free: Vec<u32>,
    media_types: Shared<MediaType>,
    origins: Shared<u64>,
    /// Times to live of origins, by their places.
    origin_ttls: HashMap<u32, u16>,
    /// Who is charged for what is here.
    pub(crate) accounts: Accounts,
}

fn identity(digest: &Digest) -> ([u8; 16], u32) {
    (digest.key(), xxh3_64(digest.value()) as u32 ^ digest.algorithm() as u32)
}

/// `u64` seen as made from a reference, for `Shared`.
#[derive(PartialEq, Eq, Hash)]
struct OriginKey(u64);

impl hashbrown::Equivalent<u64> for OriginKey {
    fn equivalent(&self, key: &u64) -> bool {
        self.0 == *key
    }
}

impl From<&OriginKey> for u64 {
    fn from(key: &OriginKey) -> Self {
        key.0
    }
}

impl Index {
    pub(crate) fn new(seed: u64, chunk_bytes: u64) -> Self {
        Self {
            seed,
            chunk_bytes,
            table: HashTable::new(),
            objects: Vec::new(),
            free: Vec::new(),
            many: Vec::new(),
            many_free: Vec::new(),
            media_types: Shared::new(u32::from(u16::MAX) - 1),
            origins: Shared::new(u32::MAX - 1),
            origin_ttls: HashMap::new(),
            accounts: Accounts::new(),
        }
    }

    fn hash(seed: u64, key: &[u8; 16]) -> u64 {
        let mut half = [0; 8];
        half.copy_from_slice(&key[..8]);
        // The key is a part of a cryptographic hash; the seed keeps clusters from being chosen.
        (u64::from_le_bytes(half) ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    /// Finds an object. O(1).
    pub(crate) fn find(&self, digest: &Digest) -> Option<ObjectId> {
        let (key, check) = identity(digest);
        self.table
            .find(Self::hash(self.seed, &key), |id| {
                let object = &self.objects[*id as usize];
                object.key == key && object.check == check
            })
            .copied()
    }

    /// A hash of the digest that the admission filter may use.
    pub(crate) fn filter_key(&self, digest: &Digest) -> u64 {
        Self::hash(self.seed, &digest.key())
    }

    pub(crate) fn get(&self, id: ObjectId) -> &Object {
        &self.objects[id as usize]
    }

    pub(crate) fn get_mut(&mut self, id: ObjectId) -> &mut Object {
        &mut self.objects[id as usize]
    }

    /// The object, if it is still in the life that the caller knew.
    pub(crate) fn alive(&self, id: ObjectId, life: u32) -> bool {
        let object = &self.objects[id as usize];
        object.life == life && object.flags & flag::FREE == 0
    }

    pub(crate) fn len(&self) -> usize {
        self.objects.len() - self.free.len()
    }

    /// Slots of the index, free ones among them: for walks over everything.
    pub(crate) fn slots(&self) -> u32 {
        self.objects.len() as u32
    }

    pub(crate) fn is_free(&self, id: ObjectId) -> bool {
        self.objects[id as usize].flags & flag::FREE != 0
    }

    pub(crate) fn has(&self, id: ObjectId, flag: u8) -> bool {
        self.objects[id as usize].flags & flag != 0
    }

    pub(crate) fn set(&mut self, id: ObjectId, flag: u8, on: bool) {
        let flags = &mut self.objects[id as usize].flags;
        *flags = if on { *flags | flag } else { *flags & !flag };
    }

    pub(crate) fn media_type(&self, id: ObjectId) -> &MediaType {
        self.media_types.get(u32::from(self.objects[id as usize].media_type))
    }

    pub(crate) fn origin(&self, id: ObjectId) -> Origin {
        Origin(*self.origins.get(self.objects[id as usize].origin))
    }

    /// Adds an object under a digest that is not in the index. `Err` names what there are too many of.
    pub(crate) fn add(
        &mut self,
        digest: &Digest,
        new: &NewObject<'_>,
    ) -> Result<ObjectId, &'static str> {
        debug_assert!(self.find(digest).is_none());
        let id = self.create(new)?;
        self.name(id, digest);
        Ok(id)
    }

    /// Adds an object that no digest leads to: an upload.
    pub(crate) fn add_upload(&mut self, life: u32) -> Result<ObjectId, &'static str> {
        let id = self.create(&NewObject {
            size: 0,
            media_type: "",
            origin: Origin(0),
            life,
            class: Class::NEUTRAL,
        })?;
        self.objects[id as usize].flags = flag::UPLOAD;
        self.make_many(id);
        Ok(id)
    }

    fn create(&mut self, new: &NewObject<'_>) -> Result<ObjectId, &'static str> {
        let media_type = self.media_types.acquire(new.media_type).ok_or("media types")?;
        let Some(origin) = self.origins.acquire(&OriginKey(new.origin.0)) else {
            self.media_types.release(media_type);
            return Err("origins");
        };
        let count = new.size.div_ceil(self.chunk_bytes) as usize;
        let chunks =
            if count > 1 { MANY | u64::from(self.new_many(count)) } else { Entry::ABSENT.0 };
        let object = Object {
            key: [0; 16],
            check: 0,
            life: new.life,
            size: size_bytes(new.size),
            account: NOBODY,
            chunks,
            score: 0.0,
            origin,
            media_type: media_type as u16,
            minute: 0,
            customers: 0,
            frequency: 0,
            class: new.class.code(),
            fetch: 0,
            execute: 0,
            depth: 0,
            flags: 0,
        };
        Ok(match self.free.pop() {
            Some(id) => {
                self.objects[id as usize] = object;
                id
            }
            None => {
                self.objects.push(object);
                self.objects.len() as u32 - 1
            }
        })
    }

    fn new_many(&mut self, count: usize) -> u32 {
        let many = Many { entries: vec![Entry::ABSENT; count], present: 0, verified: 0 };
        match self.many_free.pop() {
            Some(index) => {
                self.many[index as usize] = many;
                index
            }
            None => {
                self.many.push(many);
                self.many.len() as u32 - 1
            }
        }
    }

    fn make_many(&mut self, id: ObjectId) {
        let index = self.new_many(0);
        self.objects[id as usize].chunks = MANY | u64::from(index);
    }

    /// Leads a digest to an object.
    fn name(&mut self, id: ObjectId, digest: &Digest) {
        let (key, check) = identity(digest);
        let object = &mut self.objects[id as usize];
        object.key = key;
        object.check = check;
        let (objects, seed) = (&self.objects, self.seed);
        self.table.insert_unique(Self::hash(seed, &key), id, |other| {
            Self::hash(seed, &objects[*other as usize].key)
        });
    }

    /// Makes an upload the object of a digest that is not in the index.
    pub(crate) fn host(
        &mut self,
        id: ObjectId,
        digest: &Digest,
        size: u64,
        media_type: &str,
    ) -> Result<(), &'static str> {
        debug_assert!(self.find(digest).is_none());
        let media_type = self.media_types.acquire(media_type).ok_or("media types")?;
        let object = &mut self.objects[id as usize];
        self.media_types.release(u32::from(object.media_type));
        object.media_type = media_type as u16;
        object.size = size_bytes(size);
        object.flags = flag::HOSTED | if size == 0 { flag::EMPTY_VERIFIED } else { 0 };
        let count = size.div_ceil(self.chunk_bytes) as usize;
        let entries = match self.many_of(id) {
            Some(many) => std::mem::take(&mut self.many[many as usize].entries),
            None => Vec::new(),
        };
        self.drop_many(id);
        self.objects[id as usize].chunks =
            if count > 1 { MANY | u64::from(self.new_many(count)) } else { Entry::ABSENT.0 };
        for (chunk, entry) in entries.into_iter().take(count).enumerate() {
            self.set_entry(id, chunk as u32, entry.with_verified(true));
        }
        self.name(id, digest);
        Ok(())
    }

    fn many_of(&self, id: ObjectId) -> Option<u32> {
        let chunks = self.objects[id as usize].chunks;
        (chunks & MANY != 0).then_some(chunks as u32)
    }

    fn drop_many(&mut self, id: ObjectId) {
        if let Some(index) = self.many_of(id) {
            self.many[index as usize] = Many::default();
            self.many_free.push(index);
        }
        self.objects[id as usize].chunks = Entry::ABSENT.0;
    }

    /// Removes an object whose chunks were all let go of.
    pub(crate) fn remove(&mut self, id: ObjectId) {
        debug_assert!((0..self.chunks(id)).all(|chunk| !self.entry(id, chunk).present()));
        self.drop_many(id);
        let object = &self.objects[id as usize];
        let (media_type, origin) = (u32::from(object.media_type), object.origin);
        if object.flags & flag::UPLOAD == 0 {
            let hash = Self::hash(self.seed, &object.key);
            if let Ok(found) = self.table.find_entry(hash, |other| *other == id) {
                found.remove();
            }
        }
        self.media_types.release(media_type);
        if self.origins.release(origin) {
            self.origin_ttls.remove(&origin);
        }
        self.set_account(id, NOBODY);
        self.objects[id as usize].flags = flag::FREE;
        self.free.push(id);
    }

    /// How many chunks the object has; of an upload, so far.
    pub(crate) fn chunks(&self, id: ObjectId) -> u32 {
        match self.many_of(id) {
            Some(index) => self.many[index as usize].entries.len() as u32,
            None => u32::from(self.size(id) > 0),
        }
    }

    /// Payload bytes of a chunk of an object with a known size.
    pub(crate) fn chunk_len(&self, id: ObjectId, chunk: u32) -> usize {
        let size = self.size(id);
        let start = u64::from(chunk) * self.chunk_bytes;
        size.saturating_sub(start).min(self.chunk_bytes) as usize
    }

    /// Adds a chunk to an upload.
    pub(crate) fn grow_upload(&mut self, id: ObjectId, chunks: u32) {
        if let Some(index) = self.many_of(id) {
            let entries = &mut self.many[index as usize].entries;
            let count = entries.len().max(chunks as usize);
            entries.resize(count, Entry::ABSENT);
        }
    }

    pub(crate) fn entry(&self, id: ObjectId, chunk: u32) -> Entry {
        match self.many_of(id) {
            Some(index) => {
                let entries = &self.many[index as usize].entries;
                entries.get(chunk as usize).copied().unwrap_or(Entry::ABSENT)
            }
            None if chunk == 0 => Entry(self.objects[id as usize].chunks),
            None => Entry::ABSENT,
        }
    }

    /// Sets an entry of a chunk that exists. An absent chunk loses its mark of verification.
    pub(crate) fn set_entry(&mut self, id: ObjectId, chunk: u32, entry: Entry) {
        let entry = if entry.present() { entry } else { Entry::ABSENT };
        match self.many_of(id) {
            Some(index) => {
                let many = &mut self.many[index as usize];
                let old = std::mem::replace(&mut many.entries[chunk as usize], entry);
                many.present = many.present + u32::from(entry.present()) - u32::from(old.present());
                many.verified =
                    many.verified + u32::from(entry.verified()) - u32::from(old.verified());
            }
            None => {
                assert_eq!(chunk, 0, "a chunk beyond the end of its object");
                self.objects[id as usize].chunks = entry.0;
            }
        }
    }

    fn counts(&self, id: ObjectId) -> (u32, u32) {
        match self.many_of(id) {
            Some(index) => {
                let many = &self.many[index as usize];
                (many.present, many.verified)
            }
            None => {
                let entry = Entry(self.objects[id as usize].chunks);
                (u32::from(entry.present()), u32::from(entry.verified()))
            }
        }
    }

    /// All chunks are present. O(1).
    pub(crate) fn complete(&self, id: ObjectId) -> bool {
        self.counts(id).0 == self.chunks(id)
    }

    /// No chunk is present. O(1).
    pub(crate) fn empty(&self, id: ObjectId) -> bool {
        self.counts(id).0 == 0
    }

    /// All chunks are present and verified. O(1).
    pub(crate) fn verified(&self, id: ObjectId) -> bool {
        if self.size(id) == 0 {
            return self.has(id, flag::EMPTY_VERIFIED);
        }
        self.counts(id).1 == self.chunks(id)
    }

    /// Every chunk that is present is verified, and there is one. O(1).
    pub(crate) fn present_verified(&self, id: ObjectId) -> bool {
        let (present, verified) = self.counts(id);
        present == verified && (present > 0 || self.verified(id))
    }

    /// Sets the time to live of an origin, if anything of it is here.
    pub(crate) fn set_origin_ttl(&mut self, origin: Origin, minutes: Option<u16>) {
        let Some(id) = self.origins.ids.get(&origin.0) else { return };
        match minutes {
            Some(minutes) => drop(self.origin_ttls.insert(*id, minutes)),
            None => drop(self.origin_ttls.remove(id)),
        }
    }

    /// Whether any origin has a time to live.
    pub(crate) fn any_ttl(&self) -> bool {
        !self.origin_ttls.is_empty()
    }

    /// The time to live of an object's origin.
    pub(crate) fn ttl_minutes(&self, id: ObjectId) -> Option<u16> {
        self.origin_ttls.get(&self.objects[id as usize].origin).copied()
    }

    /// The size of an object in bytes; of an upload, so far.
    pub(crate) fn size(&self, id: ObjectId) -> u64 {
        let [a, b, c, d, e, f] = self.objects[id as usize].size;
        u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
    }

    pub(crate) fn set_size(&mut self, id: ObjectId, size: u64) {
        self.objects[id as usize].size = size_bytes(size);
    }

    /// Whom an object is charged to.
    pub(crate) fn account(&self, id: ObjectId) -> AccountId {
        self.objects[id as usize].account
    }

    /// Charges an object to somebody else; what bytes it has is the caller's to move.
    pub(crate) fn set_account(&mut self, id: ObjectId, account: AccountId) {
        let before = std::mem::replace(&mut self.objects[id as usize].account, account);
        if account != NOBODY {
            self.accounts.add_object(account);
        }
        if before != NOBODY {
            self.accounts.drop_object(before);
        }
    }

    /// For how many minutes an object was not asked for. One that was not since the scan begins to count.
    pub(crate) fn idle_minutes(&mut self, id: ObjectId, time_s: u64) -> u16 {
        let object = &mut self.objects[id as usize];
        let minute = (time_s / 60) as u16;
        if object.frequency == 0 && object.minute == 0 {
            object.minute = minute;
        }
        minute.wrapping_sub(object.minute)
    }

    /// Counts an access of a customer; `true` when it raised the frequency. The class becomes the asker's, or
    /// stays above it: what an earlier one had halves in twelve minutes without it.
    pub(crate) fn touch(&mut self, id: ObjectId, customer: Customer, time_s: u64) -> bool {
        let object = &mut self.objects[id as usize];
        let minute = (time_s / 60) as u16;
        if object.class != customer.class.code() {
            let idle = minute.wrapping_sub(object.minute).min(255) as u8;
            object.class = object.class.saturating_sub(idle).max(customer.class.code());
        }
        let customer = 1 << (customer.key % 16);
        if object.minute != minute || object.frequency == 0 {
            object.minute = minute;
            object.customers = 0;
        }
        if object.customers & customer != 0 {
            return false;
        }
        object.customers |= customer;
        object.frequency = object.frequency.saturating_add(1);
        true
    }

    pub(crate) fn set_costs(&mut self, id: ObjectId, fetch_ms: u32, execute_ms: u32) {
        let encode = |ms: u32| (f64::from(ms.max(1)).log2() * 16.0).round().min(255.0) as u8;
        let object = &mut self.objects[id as usize];
        object.fetch = encode(fetch_ms);
        object.execute = encode(execute_ms);
    }

    pub(crate) fn set_depth(&mut self, id: ObjectId, depth: Depth) {
        self.objects[id as usize].depth = depth.eighths();
    }

    /// What the policy may look at.
    pub(crate) fn inputs(&self, id: ObjectId) -> Inputs {
        let object = &self.objects[id as usize];
        let decode = |value: u8| (f64::from(value) / 16.0).exp2();
        Inputs {
            class: Class::from_code(object.class).weight(),
            frequency: object.frequency.max(1),
            fetch_ms: decode(object.fetch),
            execute_ms: if object.execute == 0 { 0.0 } else { decode(object.execute) },
            depth_log2: f64::from(object.depth) / 8.0,
            size_bytes: self.size(id),
        }
    }
}

/// Sizes are below 2^48, which the engine sees to.
fn size_bytes(size: u64) -> [u8; 6] {
    let [a, b, c, d, e, f, ..] = size.to_le_bytes();
    [a, b, c, d, e, f]
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: u64 = 100;

    fn index() -> Index {
        Index::new(1, CHUNK)
    }

    fn new(size: u64) -> NewObject<'static> {
        NewObject { size, media_type: "a/b", origin: Origin(9), life: 5, class: Class::NEUTRAL }
    }

    #[test]
    fn an_entry_keeps_its_parts_apart() {
        let location = Location { stripe: 63, block: u32::MAX };
        let entry = Entry::ABSENT
            .with_resident(Some(RESIDENTS_MAX))
            .with_location(Some(location))
            .with_verified(true);
        assert_eq!(entry.resident(), Some(RESIDENTS_MAX));
        assert_eq!(entry.location(), Some(location));
        assert!(entry.verified());
        let entry = entry.with_location(None).with_verified(false);
        assert_eq!((entry.location(), entry.resident()), (None, Some(RESIDENTS_MAX)));
        assert!(!entry.with_resident(None).present());
    }

    #[test]
    fn digests_that_share_their_first_16_bytes_are_different_objects() {
        let mut index = index();
        let mut value = [1; 32];
        let one = Digest::from_value(outrider_artifact::Algorithm::Sha256, &value).unwrap();
        value[31] = 2;
        let two = Digest::from_value(outrider_artifact::Algorithm::Sha256, &value).unwrap();
        let id = index.add(&one, &new(10)).unwrap();
        assert_eq!(index.find(&one), Some(id));
        assert_eq!(index.find(&two), None);
    }

    #[test]
    fn completeness_follows_the_entries() {
        let mut index = index();
        let digest = Digest::sha256(b"x");
        let id = index.add(&digest, &new(250)).unwrap();
        assert_eq!(index.chunks(id), 3);
        assert_eq!(index.chunk_len(id, 2), 50);
        let here = Entry::ABSENT.with_location(Some(Location { stripe: 0, block: 300 }));
        for chunk in 0..3 {
            assert!(!index.complete(id));
            index.set_entry(id, chunk, here.with_verified(chunk != 1));
        }
        assert!(index.complete(id) && !index.verified(id));
        index.set_entry(id, 1, here.with_verified(true));
        assert!(index.verified(id));
        for chunk in 0..3 {
            index.set_entry(id, chunk, Entry::ABSENT.with_verified(true));
        }
        assert!(index.empty(id) && !index.verified(id));
        index.remove(id);
        assert_eq!(index.find(&digest), None);
        assert_eq!(index.len(), 0);
    }

    #[test]
    fn the_frequency_counts_customers_once_a_minute() {
        let mut index = index();
        let id = index.add(&Digest::sha256(b"x"), &new(10)).unwrap();
        let customer = |key| Customer { key, class: Class::NEUTRAL };
        for _ in 0..100 {
            index.touch(id, customer(1), 60);
        }
        assert_eq!(index.get(id).frequency, 1);
        index.touch(id, customer(2), 61);
        index.touch(id, customer(1), 120);
        assert_eq!(index.get(id).frequency, 3);
    }

    #[test]
    fn the_class_is_the_highest_that_asked_lately() {
        let mut index = index();
        let id = index.add(&Digest::sha256(b"x"), &new(10)).unwrap();
        let customer = |weight| Customer { key: 1, class: Class::of_weight(weight) };
        let class = |index: &Index| index.inputs(id).class;
        index.touch(id, customer(8.0), 60);
        assert_eq!(class(&index), 8.0);
        index.touch(id, customer(1.0), 90);
        assert_eq!(class(&index), 8.0);
        for minute in 2..14 {
            index.touch(id, customer(1.0), minute * 60);
        }
        assert!((3.9..4.3).contains(&class(&index)), "{}", class(&index));
        index.touch(id, customer(1.0), 1_000 * 60);
        assert_eq!(class(&index), 1.0);
        index.touch(id, customer(0.5), 2_000 * 60);
        assert_eq!(class(&index), 0.5);
    }

    #[test]
    fn media_types_are_kept_once_and_only_while_they_are_used() {
        let mut index = index();
        let ids: Vec<_> = (0..200_000u32)
            .map(|n| {
                let digest = Digest::sha256(&n.to_le_bytes());
                let media_type = format!("type/{}", n % 3);
                index.add(&digest, &NewObject { media_type: &media_type, ..new(1) }).unwrap()
            })
            .take(1000)
            .collect();
        assert_eq!(index.media_types.ids.len(), 3);
        for id in ids {
            index.remove(id);
        }
        assert_eq!(index.media_types.ids.len(), 0);
    }
}
