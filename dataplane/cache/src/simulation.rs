//! The real engine on a simulated disk, driven by a seed: clients fill, read, upload, forget and pin
//! while writes tear, fail and reorder, and the power goes or the process is killed.
//!
//! What must hold whatever happens: a read gives the right bytes or a miss; bytes that are called
//! verified are the right ones; a `Bytes` never changes while it is held; an upload that was finished
//! and named is there after every restart.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Waker};
use std::time::Duration;

use bytes::Bytes;
use outrider_artifact::Digest;

use crate::arena::Arena;
use crate::cache::{Access, Cache, Depth, Origin, Parts};
use crate::config::{CacheConfig, Geometry, ImportanceWeights, SsdConfig};
use crate::customers::{Charged, Class, Customer, Terms};
use crate::disk::segment::DATA_OFFSET;
use crate::disk::sim::{Faults, Media, SimDisk};
use crate::engine::Time;
use crate::error::CacheError;
use crate::metrics::CacheMetrics;
use crate::ram::plan;
use crate::store::Store;
use crate::upload::UploadId;

const CHUNK: usize = 8 << 10;
const GEOMETRY: Geometry = Geometry { chunk_bytes: CHUNK as u64, segment_bytes: 96 << 10 };
const STRIPES: u16 = 2;
const SEGMENTS: u64 = 10;
const CONTENTS: usize = 24;
const CUSTOMERS: usize = 8;
const TASKS_MAX: usize = 12;
/// Turns after which something that has not come to rest never will.
const ROUNDS_MAX: usize = 20_000;

struct SimTime(Rc<RefCell<Duration>>);

impl Time for SimTime {
    fn now(&self) -> Duration {
        *self.0.borrow()
    }
}

struct Content {
    digest: Digest,
    good: Vec<u8>,
    /// What a lying origin sends for it.
    bad: Vec<u8>,
}

impl Content {
    fn chunks(&self) -> u32 {
        self.good.len().div_ceil(CHUNK) as u32
    }

    fn part(&self, chunk: u32, bad: bool) -> &[u8] {
        let from = if bad { &self.bad } else { &self.good };
        from.chunks(CHUNK).nth(chunk as usize).expect("a chunk of it")
    }
}

/// What the world outside of the cache knows.
#[derive(Default)]
struct Names {
    /// Digest to (upload, size), as a database would have it.
    hosted: BTreeMap<usize, (UploadId, u64)>,
    next_upload: u8,
    next_id: u64,
    /// Contents whose purge is durable and that were not begun since.
    purged: BTreeSet<usize>,
    /// How often each content was begun.
    begun: BTreeMap<usize, u64>,
    reads: u64,
    hits: u64,
    pins: Vec<(Bytes, Vec<u8>)>,
}

struct World {
    seed: u64,
    random: fastrand::Rng,
    contents: Rc<Vec<Content>>,
    names: Rc<RefCell<Names>>,
    media: Rc<RefCell<Media>>,
    time: Rc<RefCell<Duration>>,
    sequence: Arc<AtomicU64>,
    /// No operation of the disk fails and no bit rots: then nothing hosted may ever be missed.
    healthy: bool,
    /// One set over all lives, to see that what is to be tested does happen.
    metrics: CacheMetrics,
}

/// One of a few customers, each of another class.
fn customer(number: usize) -> Customer {
    Customer::new(&format!("customer {number}"), Class::of_weight(number as f64))
}

type Task = Pin<Box<dyn Future<Output = ()>>>;

fn contents(seed: u64) -> Vec<Content> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..CONTENTS)
        .map(|number| {
            let len = match number % 4 {
                0 => random.usize(1..3_000),
                1 => random.usize(3_000..CHUNK),
                2 => CHUNK * random.usize(1..4),
                _ => random.usize(CHUNK..60_000),
            };
            let mut good = vec![0; len];
            random.fill(&mut good);
            let mut bad = good.clone();
            for byte in bad.iter_mut().step_by(CHUNK / 2) {
                *byte ^= 0x55;
            }
            Content { digest: Digest::sha256(&good), good, bad }
        })
        .collect()
}

impl World {
    fn new(seed: u64, faults: Faults) -> Self {
        Self {
            seed,
            random: fastrand::Rng::with_seed(seed),
            contents: Rc::new(contents(seed)),
            names: Rc::default(),
            media: Media::new(seed ^ 0xd15c, faults),
            time: Rc::default(),
            sequence: Arc::new(AtomicU64::new(1)),
            healthy: faults.read_error + faults.write_error + faults.sync_error == 0,
            metrics: CacheMetrics::default(),
        }
    }

    fn open(&self, first: bool) -> Cache {
        let mut ssd = SsdConfig::new(PathBuf::from("simulated"), 0, STRIPES);
        // An upload takes the stripe with the most room: little enough that both are full at times.
        ssd.upload_share = 0.4;
        ssd.stripe_errors_max = 40;
        let mut config = CacheConfig::with_ssd(320 << 10, ssd.clone());
        config.geometry = GEOMETRY;
        config.seed = self.seed;
        let plan = plan(config.arena_bytes, CHUNK).unwrap();
        let arena = Arena::map(plan.map_bytes, plan.big_bytes, plan.slots_max, None).unwrap();
        let sizes = [DATA_OFFSET + SEGMENTS * GEOMETRY.segment_bytes; STRIPES as usize];
        let disk = Box::new(SimDisk(self.media.clone()));
        // A new process counts from the start; the scan raises it.
        self.sequence.store(1, Ordering::Relaxed);
        let parts = Parts {
            arena,
            store: Some(Store::new(
                disk,
                77,
                GEOMETRY,
                ((0..STRIPES).collect(), STRIPES),
                &sizes,
                &ssd,
            )),
            made: vec![first; STRIPES as usize],
            sequence: self.sequence.clone(),
            time: Box::new(SimTime(self.time.clone())),
        };
        Cache::assemble(config, parts, self.metrics.clone()).unwrap()
    }

    fn pick(&mut self) -> usize {
        self.random.usize(..CONTENTS)
    }

    fn task(&mut self, cache: &Cache) -> Task {
        let (cache, contents, names) = (cache.clone(), self.contents.clone(), self.names.clone());
        let which = self.pick();
        let (healthy, seed) = (self.healthy, self.seed);
        let customer = customer(self.random.usize(..CUSTOMERS));
        let time_s = self.time.borrow().as_secs();
        match self.random.u32(..100) {
            0..30 => {
                let lies = self.random.u32(..4) == 0;
                let stops = if self.random.u32(..4) == 0 { self.random.u32(..6) } else { u32::MAX };
                cache.touch(&contents[which].digest, Access { customer, time_s });
                Box::pin(fill(cache, contents, names, which, customer, lies, stops))
            }
            30..70 => {
                let pins = self.random.u32(..6) == 0;
                cache.touch(&contents[which].digest, Access { customer, time_s });
                Box::pin(read(cache, contents, names, which, pins, healthy, seed))
            }
            70..88 => {
                let gives_up = self.random.u32(..5) == 0;
                let piece = self.random.usize(500..20_000);
                Box::pin(upload(cache, contents, names, which, piece, gives_up))
            }
            88..90 => {
                let terms = Terms {
                    guaranteed_bytes: self.random.u64(..400 << 10) * self.random.u64(..2),
                    ttl_minutes: self.random.bool().then_some(1),
                };
                let weights = ImportanceWeights {
                    class: self.random.f64() * 10.0,
                    ..ImportanceWeights::default()
                };
                Box::pin(async move {
                    assert!(cache.set_terms(customer, terms));
                    cache.set_weights(weights);
                    cache.expire(time_s);
                    cache.demote(&contents[which].digest);
                })
            }
            90..94 => Box::pin(purge(cache, contents, names, which)),
            _ => Box::pin(async move {
                // A delete: committed first, then the space is given back.
                let removed = names.borrow_mut().hosted.remove(&which);
                if let Some((id, _)) = removed {
                    cache.unhost(&contents[which].digest, id);
                }
            }),
        }
    }

    fn run(&mut self, steps: usize, restarts: usize) {
        let mut cache = self.open(true);
        for life in 0..restarts {
            let mut tasks: Vec<Task> = Vec::new();
            let mut context = Context::from_waker(Waker::noop());
            for _ in 0..steps {
                if tasks.len() < TASKS_MAX && self.random.bool() {
                    let task = self.task(&cache);
                    tasks.push(task);
                }
                if !tasks.is_empty() {
                    let index = self.random.usize(..tasks.len());
                    if tasks[index].as_mut().poll(&mut context).is_ready() {
                        drop(tasks.swap_remove(index));
                    }
                }
                if self.random.u32(..3) > 0 {
                    cache.turn();
                }
                self.check_pins(false);
                *self.time.borrow_mut() += Duration::from_millis(self.random.u64(..40));
            }
            let settles = self.random.bool();
            if settles {
                // Everything comes to rest: no task may hang, no slot may leak.
                let mut rounds = 0;
                while !tasks.is_empty() || cache.in_flight() {
                    tasks.retain_mut(|task| task.as_mut().poll(&mut context).is_pending());
                    cache.turn();
                    *self.time.borrow_mut() += Duration::from_millis(10);
                    rounds += 1;
                    if rounds == ROUNDS_MAX {
                        let state = state(&cache);
                        panic!("seed {}: {} tasks hang\n{state}", self.seed, tasks.len());
                    }
                }
                self.check_pins(true);
                cache.turn();
                let (out, resident) = cache.engine().ram.slots_out();
                assert_eq!(out, resident, "seed {}: a slot leaked", self.seed);
                check_accounts(&cache, self.seed);
                self.check_all(&cache, self.healthy);
            }
            self.check_pins(true);
            tasks.clear();
            drop(tasks);
            drop(cache);
            if self.random.bool() {
                self.media.borrow_mut().power_cut();
            } else {
                self.media.borrow_mut().kill();
            }
            // Whether the scan can read is another question than whether the content is there.
            let faults = std::mem::take(&mut self.media.borrow_mut().faults);
            self.media.borrow_mut().faults.completes = faults.completes;
            cache = self.open(false);
            self.restarted(&cache, life);
            self.media.borrow_mut().faults = faults;
        }
    }

    /// Bytes that are held have not changed.
    fn check_pins(&mut self, all: bool) {
        let mut names = self.names.borrow_mut();
        while names.pins.len() > if all { 0 } else { 5 } {
            let (bytes, expected) = names.pins.remove(0);
            assert_eq!(bytes, expected, "seed {}: pinned bytes changed", self.seed);
        }
    }

    fn drive<T>(&self, cache: &Cache, future: impl Future<Output = T>) -> T {
        let mut future = std::pin::pin!(future);
        let mut context = Context::from_waker(Waker::noop());
        loop {
            if let std::task::Poll::Ready(value) = future.as_mut().poll(&mut context) {
                return value;
            }
            cache.turn();
            *self.time.borrow_mut() += Duration::from_millis(1);
        }
    }

    /// Every chunk that is said to be there is right or a miss.
    fn check_all(&self, cache: &Cache, healthy: bool) {
        for (which, content) in self.contents.iter().enumerate() {
            let hosted = self.names.borrow().hosted.contains_key(&which);
            let Some(stat) = cache.stat(&content.digest) else {
                assert!(!hosted, "seed {}: hosted {which} is unknown", self.seed);
                continue;
            };
            assert_eq!(stat.size, content.good.len() as u64);
            if hosted {
                assert!(stat.hosted, "seed {}: {which}", self.seed);
            }
            for chunk in 0..content.chunks() {
                let found = self.drive(cache, cache.read(&content.digest, chunk));
                check_read(content, which, chunk, found, stat.hosted, healthy, self.seed);
            }
        }
    }

    fn restarted(&self, cache: &Cache, life: usize) {
        for (which, (id, size)) in self.names.borrow().hosted.iter() {
            let digest = &self.contents[*which].digest;
            if let Err(error) = cache.adopt(*id, digest, *size, "x/y") {
                panic!("seed {}, life {life}: content {which} was lost: {error}", self.seed);
            }
        }
        cache.drop_unadopted();
        if self.healthy {
            for which in &self.names.borrow().purged {
                let known = cache.stat(&self.contents[*which].digest).is_some_and(|s| !s.hosted);
                assert!(!known, "seed {}, life {life}: purged {which} came back", self.seed);
            }
        }
        self.check_all(cache, true);
    }
}

/// What is charged to each customer is what of its objects is here, to the byte.
fn check_accounts(cache: &Cache, seed: u64) {
    let engine = cache.engine();
    let mut sums: BTreeMap<u16, [u64; 2]> = BTreeMap::new();
    for object in (0..engine.index.slots()).filter(|id| !engine.index.is_free(*id)) {
        let [ram, ssd] = sums.entry(engine.index.account(object)).or_default();
        *ram += engine.ram.bytes_of(object, &engine.index) as u64;
        if !engine.upload_ids.contains_key(&object) {
            *ssd += engine.ssd_bytes(object) as u64;
        }
    }
    for (account, [ram, ssd]) in sums {
        let charged = |tier| engine.index.accounts.bytes(account, tier);
        let found = [charged(Charged::Ram), charged(Charged::Ssd)];
        assert_eq!(found, [ram, ssd], "seed {seed}: account {account}");
    }
    let known = CUSTOMERS + 1;
    assert!(engine.index.accounts.len() <= known, "seed {seed}: accounts are not given back");
}

fn check_read(
    content: &Content,
    which: usize,
    chunk: u32,
    found: Result<Option<crate::cache::Chunk>, CacheError>,
    hosted: bool,
    healthy: bool,
    seed: u64,
) {
    match found {
        Ok(Some(found)) => {
            let good = content.part(chunk, false);
            if found.verified {
                assert!(found.bytes == good, "seed {seed}: {which}/{chunk} verified and wrong");
            } else {
                let bad = content.part(chunk, true);
                assert!(found.bytes == good || found.bytes == bad, "seed {seed}: {which}/{chunk}");
            }
        }
        Ok(None) => {
            assert!(!(hosted && healthy), "seed {seed}: hosted {which}/{chunk} is a miss");
        }
        Err(CacheError::Busy) => {}
        Err(error) => panic!("seed {seed}: {error}"),
    }
}

async fn fill(
    cache: Cache,
    contents: Rc<Vec<Content>>,
    names: Rc<RefCell<Names>>,
    which: usize,
    customer: Customer,
    lies: bool,
    stops: u32,
) {
    let content = &contents[which];
    let size = content.good.len() as u64;
    names.borrow_mut().purged.remove(&which);
    *names.borrow_mut().begun.entry(which).or_default() += 1;
    if cache.begin(&content.digest, size, "x/y", Origin(which as u64), customer).is_err() {
        return;
    }
    for chunk in 0..content.chunks() {
        if chunk >= stops {
            return;
        }
        let part = content.part(chunk, lies);
        let Ok(mut writer) = cache.slot(part.len()).await else { return };
        let half = part.len() / 2;
        writer.append(&part[..half]);
        let early = writer.prefix(0, half);
        writer.append(&part[half..]);
        assert_eq!(early, part[..half]);
        let inserted = cache.insert(&content.digest, chunk, writer);
        assert_eq!(inserted.bytes, part);
        // Another begin or purge may come between two chunks.
        std::future::poll_fn({
            let mut polled = false;
            move |_| {
                if std::mem::replace(&mut polled, true) {
                    std::task::Poll::Ready(())
                } else {
                    std::task::Poll::Pending
                }
            }
        })
        .await;
    }
    // What was just put in is checked in full, as a flight that hashes what is present would.
    let mut all_good = true;
    for chunk in 0..content.chunks() {
        match cache.read(&content.digest, chunk).await {
            Ok(Some(found)) => all_good &= found.bytes == content.part(chunk, false),
            _ => return,
        }
    }
    if all_good && is_all_good(&cache, content) {
        cache.set_verified(&content.digest);
    } else if lies {
        cache.forget(&content.digest);
    }
}

/// Two fills of one digest, one of them lying, may cross: the real caller has one flight per digest.
/// So the last look is at once, without waiting: only what is resident counts.
fn is_all_good(cache: &Cache, content: &Content) -> bool {
    (0..content.chunks()).all(|chunk| {
        cache
            .resident(&content.digest, chunk)
            .is_some_and(|found| found.bytes == content.part(chunk, false))
    })
}

async fn read(
    cache: Cache,
    contents: Rc<Vec<Content>>,
    names: Rc<RefCell<Names>>,
    which: usize,
    pins: bool,
    healthy: bool,
    seed: u64,
) {
    let content = &contents[which];
    for chunk in 0..content.chunks() {
        let before = names.borrow().hosted.get(&which).copied();
        let shown = cache.stat(&content.digest).is_some_and(|stat| stat.hosted);
        let found = cache.read(&content.digest, chunk).await;
        // Deleted or uploaded anew meanwhile: a miss is right then.
        let same = names.borrow().hosted.get(&which).copied() == before && before.is_some();
        let hosted = shown && same;
        if pins && let Ok(Some(found)) = &found {
            let expected = found.bytes.to_vec();
            names.borrow_mut().pins.push((found.bytes.clone(), expected));
        }
        names.borrow_mut().reads += 1;
        names.borrow_mut().hits += u64::from(matches!(found, Ok(Some(_))));
        check_read(content, which, chunk, found, hosted, healthy, seed);
    }
}

async fn upload(
    cache: Cache,
    contents: Rc<Vec<Content>>,
    names: Rc<RefCell<Names>>,
    which: usize,
    piece: usize,
    gives_up: bool,
) {
    let content = &contents[which];
    let id = {
        let mut names = names.borrow_mut();
        names.next_id += 1;
        let mut id = [0; 16];
        id[..8].copy_from_slice(&names.next_id.to_le_bytes());
        id[8] = names.next_upload;
        UploadId(id)
    };
    let Ok(mut upload) = cache.upload(id) else { return };
    for part in content.good.chunks(piece) {
        if upload.append(part).await.is_err() {
            return;
        }
        if gives_up && upload.len() > CHUNK as u64 {
            return;
        }
    }
    let back = upload.read_back(0).await;
    if let Ok(back) = back {
        assert_eq!(back, content.part(0, false));
    }
    let Ok(stored) = upload.finish().await else { return };
    assert_eq!(stored.size(), content.good.len() as u64);
    names.borrow_mut().hosted.insert(which, (id, stored.size()));
    cache.host(stored, &content.digest, "x/y");
}

async fn purge(cache: Cache, contents: Rc<Vec<Content>>, names: Rc<RefCell<Names>>, which: usize) {
    if cache.stat(&contents[which].digest).is_some_and(|stat| stat.hosted) {
        cache.forget(&contents[which].digest);
        assert!(cache.stat(&contents[which].digest).is_some());
        return;
    }
    cache.forget(&contents[which].digest);
    let before = names.borrow().begun.get(&which).copied();
    cache.flush().await;
    if names.borrow().begun.get(&which).copied() == before {
        names.borrow_mut().purged.insert(which);
    }
}

/// What the engine waits for, to understand a run that hangs.
fn state(cache: &Cache) -> String {
    let engine = cache.engine();
    let mut text = String::new();
    for stripe in &engine.store.as_ref().expect("the simulation has a disk").stripes {
        let queues =
            [stripe.moves.len(), stripe.marks.len(), stripe.uploads.len(), stripe.cache.len()];
        text += &format!(
            "out {} free {:?} open {:?} uploads {}/{} queues {queues:?} syncing {}\n  {:?}\n",
            stripe.out,
            stripe.free,
            stripe.open,
            stripe.upload_segments,
            stripe.upload_segments_max,
            stripe.syncing,
            stripe.reclaim,
        );
        for segment in &stripe.segments {
            text += &format!(
                "  {:?} {:?} seq {} cursor {} blocks {} live {} score {} guarded {} marks {} r {} w {} stuck {} stale {}\n",
                segment.state,
                segment.content,
                segment.sequence,
                segment.cursor,
                segment.written_blocks,
                segment.live_records,
                segment.score,
                segment.guarded_bytes,
                segment.marks,
                segment.readers,
                segment.writers,
                segment.stuck,
                segment.stale
            );
        }
    }
    text
}

const HEALTHY: Faults = Faults { read_error: 0, write_error: 0, sync_error: 0, completes: 30 };

/// More of them can be asked for: `SIMULATION_SEEDS=5000 cargo test simulation`.
fn seeds(first: u64, count: u64) -> std::ops::Range<u64> {
    let asked = std::env::var("SIMULATION_SEEDS").ok().and_then(|text| text.parse().ok());
    first..first + asked.unwrap_or(count)
}

#[test]
fn nothing_is_wrong_and_nothing_hosted_is_lost_over_power_cuts_and_kills() {
    let mut happened = [0; 8];
    for seed in seeds(0, 120) {
        let mut world = World::new(seed, HEALTHY);
        world.run(400, 4);
        let metrics = &world.metrics;
        let counters = [
            &metrics.hits_ram,
            &metrics.hits_ssd,
            &metrics.evicted_ram,
            &metrics.evicted_ssd,
            &metrics.reclaimed_segments,
            &metrics.reclaim_rewritten_bytes,
            &metrics.refused_store_full,
            &metrics.scan_uploads,
        ];
        for (sum, counter) in happened.iter_mut().zip(counters) {
            *sum += counter.get();
        }
        assert_eq!(metrics.lost_tombstones.get(), 0, "seed {seed}");
    }
    assert!(happened.iter().all(|sum| *sum > 100), "{happened:?}");
}

#[test]
fn a_disk_that_fails_costs_misses_and_never_wrong_bytes_or_a_hosted_object() {
    // The last one moved a part of a segment, failed, and erased it later without a flush.
    for seed in seeds(1_000_000, 100).chain([1_004_470]) {
        let faults = Faults { read_error: 10, write_error: 20, sync_error: 20, completes: 40 };
        let mut world = World::new(seed, faults);
        world.run(300, 4);
    }
}

#[test]
fn rotten_blocks_are_misses() {
    for seed in seeds(2_000_000, 60) {
        let mut world = World::new(seed, HEALTHY);
        world.run(300, 1);
        world.healthy = false;
        world.media.borrow_mut().rot(40);
        let cache = world.open(false);
        for (which, (id, size)) in world.names.borrow().hosted.iter() {
            // Damage to a header is reported; damage to a payload shows when it is read.
            let _ = cache.adopt(*id, &world.contents[*which].digest, *size, "x/y");
        }
        world.names.borrow_mut().hosted.clear();
        world.check_all(&cache, false);
    }
}

#[test]
fn the_same_seed_decides_alike() {
    let outcome = |seed| {
        let mut world = World::new(seed, HEALTHY);
        world.run(500, 2);
        let names = world.names.borrow();
        (names.reads, names.hits, names.hosted.clone(), world.random.u64(..))
    };
    assert_eq!(outcome(5), outcome(5));
}

/// Brings in a content that is asked for `uses` times, and lets everything come to rest.
fn bring(world: &World, cache: &Cache, bytes: &[u8], customer: Customer, uses: u64) -> Digest {
    let digest = Digest::sha256(bytes);
    let fill = async {
        cache.begin(&digest, bytes.len() as u64, "x/y", Origin(1), customer).unwrap();
        for (chunk, part) in bytes.chunks(CHUNK).enumerate() {
            let Ok(mut writer) = cache.slot(part.len()).await else { return };
            writer.append(part);
            cache.insert(&digest, chunk as u32, writer);
        }
        cache.set_verified(&digest);
    };
    world.drive(cache, fill);
    for _ in 0..uses {
        *world.time.borrow_mut() += Duration::from_secs(60);
        cache.touch(&digest, Access { customer, time_s: world.time.borrow().as_secs() });
    }
    for _ in 0..ROUNDS_MAX {
        cache.turn();
        if !cache.in_flight() {
            return digest;
        }
    }
    panic!("seed {}: it does not come to rest\n{}", world.seed, state(cache));
}

/// Contents of random lengths, together at least so many bytes.
fn some_contents(random: &mut fastrand::Rng, bytes: usize) -> Vec<Vec<u8>> {
    let mut contents = Vec::new();
    let mut sum = 0;
    while sum < bytes {
        let mut content = vec![0; random.usize(100..40_000)];
        random.fill(&mut content);
        sum += content.len();
        contents.push(content);
    }
    contents
}

#[test]
fn a_flood_of_an_unclassed_customer_never_takes_a_guaranteed_share() {
    let mut evictions = 0;
    let mut reclaims = 0;
    for seed in seeds(3_000_000, 40) {
        let world = World::new(seed, HEALTHY);
        let cache = world.open(true);
        let mut random = fastrand::Rng::with_seed(seed);
        let gold = customer(1);
        let guaranteed_bytes = random.u64(200_000..400_000);
        assert!(cache.set_terms(gold, Terms { guaranteed_bytes, ttl_minutes: None }));
        // Asked for once each: it is worth as little as anything can be.
        let mut own: Vec<(Digest, Vec<u8>)> = Vec::new();
        let filled = |cache: &Cache| cache.shares()[0].ssd_bytes * 4 > guaranteed_bytes * 3;
        while !filled(&cache) {
            let bytes = some_contents(&mut random, 1).remove(0);
            own.push((bring(&world, &cache, &bytes, gold, 1), bytes));
        }
        // A part of it is in memory, as much as memory promises.
        let before = cache.shares()[0];
        assert!(before.ssd_bytes > 0 && before.ram_bytes > 0, "seed {seed}: {before:?}");
        let slot = CHUNK as u64 + 4096;
        for round in 0..8 {
            let flood = Customer::new(&format!("flood {round}"), Class::NEUTRAL);
            for bytes in some_contents(&mut random, 300_000) {
                bring(&world, &cache, &bytes, flood, 3);
                let now = cache.shares()[0];
                let kept = |now: u64, before: u64, promised: u64| now + slot > before.min(promised);
                assert!(
                    kept(now.ram_bytes, before.ram_bytes, before.guaranteed_ram_bytes)
                        && kept(now.ssd_bytes, before.ssd_bytes, before.guaranteed_ssd_bytes),
                    "seed {seed}: {before:?} became {now:?}"
                );
            }
            check_accounts(&cache, seed);
        }
        // What is in memory alone may go; what is on the disk and within the guarantee is all there.
        assert!(before.ssd_bytes <= before.guaranteed_ssd_bytes, "seed {seed}: {before:?}");
        for (digest, bytes) in own {
            for (chunk, part) in bytes.chunks(CHUNK).enumerate() {
                let found = world.drive(&cache, cache.read(&digest, chunk as u32)).unwrap();
                assert_eq!(found.expect("it is within the guarantee").bytes, part, "seed {seed}");
            }
        }
        assert_eq!(world.metrics.evicted_guaranteed.get(), 0, "seed {seed}");
        evictions += world.metrics.evicted_ram.get() + world.metrics.evicted_ssd.get();
        reclaims += world.metrics.reclaimed_segments.get();
    }
    assert!(evictions > 1_000 && reclaims > 1_000, "{evictions} {reclaims}");
}

#[test]
fn who_has_more_than_its_share_loses_that_and_not_its_share() {
    for seed in seeds(4_000_000, 20) {
        let world = World::new(seed, HEALTHY);
        let cache = world.open(true);
        let mut random = fastrand::Rng::with_seed(seed);
        let gold = customer(1);
        assert!(cache.set_terms(gold, Terms { guaranteed_bytes: 150_000, ttl_minutes: None }));
        // It fills everything there is.
        for bytes in some_contents(&mut random, 3_000_000) {
            bring(&world, &cache, &bytes, gold, 2);
        }
        let before = cache.shares()[0];
        assert!(before.ssd_bytes > 2 * before.guaranteed_ssd_bytes, "seed {seed}: {before:?}");
        let flood = Customer::new("flood", Class::NEUTRAL);
        for bytes in some_contents(&mut random, 6_000_000) {
            bring(&world, &cache, &bytes, flood, 3);
        }
        let now = cache.shares()[0];
        let slot = CHUNK as u64 + 4096;
        assert!(now.ssd_bytes + slot > now.guaranteed_ssd_bytes, "seed {seed}: {now:?}");
        assert!(now.ssd_bytes < 2 * now.guaranteed_ssd_bytes, "seed {seed}: {now:?}");
        assert!(now.ram_bytes < 2 * now.guaranteed_ram_bytes + 2 * slot, "seed {seed}: {now:?}");
        check_accounts(&cache, seed);
    }
}

#[test]
fn who_is_charged_is_known_after_a_restart() {
    let world = World::new(5, HEALTHY);
    let mut random = fastrand::Rng::with_seed(5);
    let terms = Terms { guaranteed_bytes: 200_000, ttl_minutes: None };
    let before = {
        let cache = world.open(true);
        cache.set_terms(customer(1), terms);
        for bytes in some_contents(&mut random, 100_000) {
            bring(&world, &cache, &bytes, customer(1), 2);
            bring(&world, &cache, &bytes[..bytes.len() / 2], customer(2), 2);
        }
        cache.shares()[0]
    };
    world.media.borrow_mut().kill();
    let cache = world.open(false);
    assert_eq!(cache.shares(), [], "nothing is promised yet");
    cache.set_terms(customer(1), terms);
    assert!(before.ssd_bytes > 100_000, "{before:?}");
    assert_eq!(cache.shares()[0].ssd_bytes, before.ssd_bytes);
}

#[test]
fn what_is_demoted_goes_first_and_what_is_used_again_is_kept() {
    let mut sums = [0; 2];
    for seed in seeds(5_000_000, 20) {
        let world = World::new(seed, HEALTHY);
        let cache = world.open(true);
        let mut random = fastrand::Rng::with_seed(seed);
        let gold = customer(7);
        let some = |random: &mut fastrand::Rng| {
            let contents = some_contents(random, 300_000);
            contents.iter().map(|b| bring(&world, &cache, b, gold, 5)).collect::<Vec<_>>()
        };
        let (old, new) = (some(&mut random), some(&mut random));
        assert!(old.iter().all(|digest| cache.demote(digest)));
        let score = |digest| {
            let engine = cache.engine();
            engine.index.find(digest).map(|object| engine.index.get(object).score)
        };
        assert_eq!(score(&old[0]), Some(0.0));
        // What is told about it later is no use of it.
        cache.set_depth(&old[0], Depth::of_dependants(15));
        assert_eq!(score(&old[0]), Some(0.0));
        let revived = old[0];
        let time_s = world.time.borrow().as_secs() + 60;
        cache.touch(&revived, Access { customer: gold, time_s });
        assert!(score(&revived) > Some(0.0));
        for bytes in some_contents(&mut random, 400_000) {
            bring(&world, &cache, &bytes, Customer::NOBODY, 2);
        }
        let complete = |digest: &&Digest| cache.stat(digest).is_some_and(|stat| stat.complete);
        let (old, new) = (old.iter().filter(complete).count(), new.iter().filter(complete).count());
        // By whole segments, which they share with others in part.
        sums = [sums[0] + old, sums[1] + new];
        let metrics = &world.metrics;
        assert!(metrics.evicted_ssd_demoted.get() + metrics.evicted_ram_demoted.get() > 0);
    }
    assert!(sums[0] * 3 < sums[1], "{sums:?}");
}

#[test]
fn what_is_not_used_for_longer_than_its_time_is_demoted() {
    let world = World::new(6, HEALTHY);
    let cache = world.open(true);
    let ttl = |ttl_minutes| Terms { guaranteed_bytes: 0, ttl_minutes };
    cache.set_terms(customer(1), ttl(Some(10)));
    let of_customer = bring(&world, &cache, &[1; 5000], customer(1), 1);
    let of_origin = bring(&world, &cache, &[2; 5000], customer(2), 1);
    cache.set_origin_ttl(Origin(1), Some(20));
    let score = |digest| {
        let engine = cache.engine();
        engine.index.find(digest).map(|object| engine.index.get(object).score)
    };
    let at = |minutes: u64| {
        cache.expire(world.time.borrow().as_secs() + minutes * 60);
        while cache.turn() {}
    };
    at(8);
    assert!(score(&of_customer) > Some(0.0) && score(&of_origin) > Some(0.0));
    at(12);
    assert_eq!(score(&of_customer), Some(0.0));
    assert!(score(&of_origin) > Some(0.0));
    at(21);
    assert_eq!(score(&of_origin), Some(0.0));
    assert_eq!(world.metrics.expired.get(), 2);
}

#[test]
fn other_weights_count_for_what_is_here_already() {
    let world = World::new(7, HEALTHY);
    let cache = world.open(true);
    let gold = customer(6);
    let dear = bring(&world, &cache, &[1; 5000], gold, 1);
    let often = bring(&world, &cache, &[2; 5000], Customer::NOBODY, 3);
    let score = |digest| {
        let engine = cache.engine();
        let object = engine.index.find(digest).unwrap();
        engine.index.get(object).score
    };
    assert!(score(&dear) > score(&often));
    // A weight of the class scales all of it alike; so the exponent-free way to end its sway is the frequency.
    let before = score(&dear);
    cache.set_weights(ImportanceWeights { fetch: 0.5, ..ImportanceWeights::default() });
    while cache.turn() {}
    assert!((score(&dear) - before / 2.0).abs() < 1e-9 * before);
    // What is touched meanwhile is not weighed twice.
    cache.set_weights(ImportanceWeights { fetch: 0.25, ..ImportanceWeights::default() });
    cache.touch(&dear, Access { customer: gold, time_s: 60 });
    cache.set_weights(ImportanceWeights { fetch: 2.0, ..ImportanceWeights::default() });
    while cache.turn() {}
    assert!((score(&dear) - before * 2.0).abs() < 1e-9 * before);
}
