//! The cache on real files through a real io_uring, driven without any runtime.

#![allow(clippy::unwrap_used)]

use std::future::Future;
use std::path::Path;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use outrider_artifact::Digest;
use outrider_cache::{
    CHUNK_BYTES, Cache, CacheConfig, CacheError, CacheMetrics, Class, Customer, Geometry, Origin,
    Placement, SsdConfig, Stripes, Tier, UploadId,
};

/// Drives a future and the cache by turns, as a shard's driver would.
fn drive<T>(cache: &Cache, future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
        if !cache.turn() {
            std::thread::yield_now();
        }
    }
}

fn settle(cache: &Cache) {
    while cache.in_flight() {
        if !cache.turn() {
            std::thread::yield_now();
        }
    }
}

fn content(seed: u64, len: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bytes = vec![0; len];
    random.fill(&mut bytes);
    bytes
}

fn config(dir: &Path) -> CacheConfig {
    CacheConfig::with_ssd(32 << 20, SsdConfig::new(dir, 512 << 20, 2))
}

fn open(config: CacheConfig) -> Result<Cache, CacheError> {
    Cache::open(config, None, CacheMetrics::default())
}

fn fill(cache: &Cache, bytes: &[u8]) -> Digest {
    let digest = Digest::sha256(bytes);
    cache.begin(&digest, bytes.len() as u64, "text/plain", Origin(7), Customer::NOBODY).unwrap();
    for (chunk, part) in bytes.chunks(CHUNK_BYTES as usize).enumerate() {
        let mut writer = drive(cache, cache.slot(part.len())).unwrap();
        assert_eq!(writer.append(part), part.len());
        let chunk = cache.insert(&digest, chunk as u32, writer);
        assert_eq!(&chunk.bytes[..], part);
    }
    digest
}

fn read_all(cache: &Cache, digest: &Digest) -> Option<Vec<u8>> {
    let size = cache.stat(digest)?.size;
    let mut bytes = Vec::new();
    for chunk in 0..size.div_ceil(CHUNK_BYTES) as u32 {
        bytes.extend_from_slice(&drive(cache, cache.read(digest, chunk)).unwrap()?.bytes);
    }
    Some(bytes)
}

fn upload(cache: &Cache, id: u8, bytes: &[u8]) -> Digest {
    let digest = Digest::sha256(bytes);
    let mut upload = cache.upload(UploadId([id; 16])).unwrap();
    for part in bytes.chunks(100_000) {
        drive(cache, upload.append(part)).unwrap();
    }
    let stored = drive(cache, upload.finish()).unwrap();
    assert_eq!(stored.size(), bytes.len() as u64);
    cache.host(stored, &digest, "application/x");
    digest
}

#[test]
fn a_memory_only_cache_answers_what_was_inserted_and_refuses_uploads() {
    let cache = open(CacheConfig::new(8 << 20)).unwrap();
    let bytes = content(1, 600_000);
    let digest = fill(&cache, &bytes);
    assert_eq!(read_all(&cache, &digest), Some(bytes));
    let stat = cache.stat(&digest).unwrap();
    assert!(stat.complete && !stat.verified && !stat.hosted);
    assert_eq!(stat.origin, Some(Origin(7)));
    cache.set_verified(&digest);
    assert!(cache.stat(&digest).unwrap().verified);
    assert!(matches!(cache.upload(UploadId([1; 16])), Err(CacheError::NoDisk)));
    cache.forget(&digest);
    assert!(cache.stat(&digest).is_none());
}

#[test]
fn what_was_cached_and_sealed_is_there_and_verified_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = content(2, 5_000_000);
    let unsealed = content(3, 300_000);
    let (sealed, open_end) = {
        let cache = open(config(dir.path())).unwrap();
        let sealed = fill(&cache, &bytes);
        cache.set_verified(&sealed);
        let open_end = fill(&cache, &unsealed);
        settle(&cache);
        (sealed, open_end)
    };
    let cache = open(config(dir.path())).unwrap();
    let stat = cache.stat(&sealed).unwrap();
    assert!(stat.complete && stat.verified, "{stat:?}");
    assert_eq!(&*stat.media_type, "text/plain");
    assert_eq!(stat.origin, Some(Origin(7)));
    let first = drive(&cache, cache.read(&sealed, 0)).unwrap().unwrap();
    assert_eq!(first.tier, Tier::Ssd);
    assert_eq!(drive(&cache, cache.read(&sealed, 0)).unwrap().unwrap().tier, Tier::Ram);
    assert_eq!(read_all(&cache, &sealed), Some(bytes));
    let stat = cache.stat(&open_end).unwrap();
    assert!(stat.complete && !stat.verified);
    assert_eq!(read_all(&cache, &open_end), Some(unsealed));
}

#[test]
fn what_was_forgotten_stays_forgotten_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = content(4, 700_000);
    let digest = {
        let cache = open(config(dir.path())).unwrap();
        let digest = fill(&cache, &bytes);
        cache.set_verified(&digest);
        settle(&cache);
        cache.forget(&digest);
        drive(&cache, cache.flush());
        digest
    };
    let cache = open(config(dir.path())).unwrap();
    assert!(cache.stat(&digest).is_none());
}

#[test]
fn uploads_are_adopted_after_a_restart_and_the_others_are_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let big = content(5, 20_000_000);
    let small = content(6, 1_000);
    let (first, second) = {
        let cache = open(config(dir.path())).unwrap();
        let first = upload(&cache, 1, &big);
        let second = upload(&cache, 2, &small);
        assert_eq!(read_all(&cache, &first), Some(big.clone()));
        assert!(cache.stat(&first).unwrap().verified);
        let _ = upload(&cache, 3, b"nobody will ask for this");
        let mut half = cache.upload(UploadId([4; 16])).unwrap();
        drive(&cache, half.append(&big[..1_000_000])).unwrap();
        settle(&cache);
        drop(half);
        (first, second)
    };
    let cache = open(config(dir.path())).unwrap();
    let ids: Vec<u8> = cache.recovered_uploads().iter().map(|(id, _)| id.0[0]).collect();
    assert_eq!(ids, [1, 2, 3]);
    cache.adopt(UploadId([1; 16]), &first, big.len() as u64, "application/x").unwrap();
    let wrong = cache.adopt(UploadId([2; 16]), &second, 999, "application/x");
    assert!(matches!(wrong, Err(CacheError::UploadDamaged { .. })), "{wrong:?}");
    cache.adopt(UploadId([2; 16]), &second, small.len() as u64, "application/x").unwrap();
    let unknown = cache.adopt(UploadId([9; 16]), &second, 5, "application/x");
    assert!(matches!(unknown, Err(CacheError::UploadMissing(_))));
    cache.drop_unadopted();
    assert!(cache.recovered_uploads().is_empty());
    assert_eq!(cache.usage().hosted, 2);
    assert_eq!(read_all(&cache, &first), Some(big));
    assert_eq!(read_all(&cache, &second), Some(small));
    let stat = cache.stat(&second).unwrap();
    assert!(stat.hosted && stat.verified && stat.complete && stat.origin.is_none());
    cache.forget(&second);
    assert!(cache.stat(&second).is_some(), "a hosted object is not forgotten");
    cache.unhost(&second, UploadId([7; 16]));
    assert!(cache.stat(&second).is_some(), "it lies under another upload");
    cache.unhost(&second, UploadId([2; 16]));
    assert!(cache.stat(&second).is_none());
}

#[test]
fn more_than_the_disk_holds_flows_through_and_hosted_objects_stay() {
    let dir = tempfile::tempdir().unwrap();
    let mut small = CacheConfig::with_ssd(4 << 20, SsdConfig::new(dir.path(), 40 << 20, 2));
    small.geometry = Geometry { segment_bytes: 2 << 20, ..Geometry::default() };
    let hosted = content(7, 3_000_000);
    let cache = open(small.clone()).unwrap();
    let digest = upload(&cache, 1, &hosted);
    for seed in 100..220 {
        let bytes = content(seed, 900_000);
        let cached = fill(&cache, &bytes);
        // Asked for twice: wanted on disk.
        for minute in 0..2 {
            let access = outrider_cache::Access {
                customer: Customer::new(&seed.to_string(), Class::NEUTRAL),
                time_s: minute * 60,
            };
            cache.touch(&cached, access);
        }
        cache.set_verified(&cached);
        settle(&cache);
    }
    assert_eq!(read_all(&cache, &digest), Some(hosted.clone()));
    let usage = cache.usage();
    assert!(usage.ssd_used_bytes > 10 << 20, "{usage:?}");
    drop(cache);
    let cache = open(small).unwrap();
    cache.adopt(UploadId([1; 16]), &digest, hosted.len() as u64, "application/x").unwrap();
    cache.drop_unadopted();
    assert_eq!(read_all(&cache, &digest), Some(hosted));
    let mut whole = 0;
    for seed in 100..220 {
        let bytes = content(seed, 900_000);
        if let Some(found) = read_all(&cache, &Digest::sha256(&bytes)) {
            assert_eq!(found, bytes);
            whole += 1;
        }
    }
    assert!(whole >= 10, "{whole} of 120 are still whole");
}

#[test]
fn without_registered_buffers_it_works_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    if let Some(ssd) = &mut config.ssd {
        ssd.register_buffers = false;
    }
    let bytes = content(8, 2_000_000);
    let cache = open(config.clone()).unwrap();
    assert!(!cache.usage().registered);
    let digest = fill(&cache, &bytes);
    settle(&cache);
    drop(cache);
    let cache = open(config).unwrap();
    assert_eq!(read_all(&cache, &digest), Some(bytes));
}

#[test]
fn a_store_of_another_size_or_a_foreign_file_is_refused_by_name_and_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = content(9, 500_000);
    let digest = {
        let cache = open(config(dir.path())).unwrap();
        let digest = fill(&cache, &bytes);
        settle(&cache);
        digest
    };
    assert_eq!(outrider_cache::stored_size(dir.path()).unwrap(), Some((512 << 20, 2)));

    let other = CacheConfig::with_ssd(32 << 20, SsdConfig::new(dir.path(), 600 << 20, 2));
    let error = open(other).err().unwrap().to_string();
    assert!(error.contains("stripe-000") && error.contains("536870912"), "{error}");
    let fewer = CacheConfig::with_ssd(32 << 20, SsdConfig::new(dir.path(), 512 << 20, 1));
    assert!(open(fewer).err().unwrap().to_string().contains("stripe-001"));
    let more = CacheConfig::with_ssd(32 << 20, SsdConfig::new(dir.path(), 512 << 20, 4));
    assert!(open(more).err().unwrap().to_string().contains("2 stripes"));

    let foreign = tempfile::tempdir().unwrap();
    let file = foreign.path().join("stripe-000");
    std::fs::write(&file, "the only copy of a thesis").unwrap();
    let error = open(config(foreign.path())).err().unwrap().to_string();
    assert!(error.contains("not a stripe") && error.contains("Nothing was changed"), "{error}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "the only copy of a thesis");

    let cache = open(config(dir.path())).unwrap();
    assert_eq!(read_all(&cache, &digest), Some(bytes));
}

#[test]
fn a_second_one_on_the_same_store_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let _first = open(config(dir.path())).unwrap();
    let error = open(config(dir.path())).err().unwrap();
    assert!(error.to_string().contains("in use by another process"), "{error}");
}

#[test]
fn a_stripe_that_is_gone_costs_misses_and_uploads_on_it_are_reported() {
    let dir = tempfile::tempdir().unwrap();
    let pushed = [content(10, 20_000_000), content(12, 20_000_000)];
    let cached = content(11, 40_000_000);
    let (hosted, cached_digest) = {
        let cache = open(config(dir.path())).unwrap();
        let hosted = [upload(&cache, 1, &pushed[0]), upload(&cache, 2, &pushed[1])];
        let cached_digest = fill(&cache, &cached[..20_000_000]);
        settle(&cache);
        (hosted, cached_digest)
    };
    std::fs::remove_file(dir.path().join("stripe-001")).unwrap();
    let cache = open(config(dir.path())).unwrap();
    // Each lay whole on one stripe, the second where there was more room.
    let adopt = |which: usize| {
        let size = pushed[which].len() as u64;
        cache.adopt(UploadId([which as u8 + 1; 16]), &hosted[which], size, "application/x")
    };
    let (kept, lost): (Vec<usize>, Vec<usize>) = (0..2).partition(|which| adopt(*which).is_ok());
    assert_eq!((kept.len(), lost.len()), (1, 1));
    let why = adopt(lost[0]);
    assert!(matches!(why, Err(CacheError::UploadMissing(_))), "{why:?}");
    cache.drop_unadopted();
    assert_eq!(read_all(&cache, &hosted[kept[0]]).as_ref(), Some(&pushed[kept[0]]));
    for chunk in 0..20_000_000u64.div_ceil(CHUNK_BYTES) as u32 {
        if let Some(found) = drive(&cache, cache.read(&cached_digest, chunk)).unwrap() {
            let start = chunk as usize * CHUNK_BYTES as usize;
            assert_eq!(found.bytes, cached[start..start + found.bytes.len()]);
        }
    }
    let again = fill(&cache, &cached[20_000_000..]);
    settle(&cache);
    assert!(cache.stat(&again).unwrap().complete);
}

/// The caches of `shards` shards on the same store, and where digests are at home.
fn open_shards(dir: &Path, shards: u16) -> (Vec<Cache>, Placement) {
    let all = CacheConfig::with_ssd(16 << 20, SsdConfig::new(dir, 1 << 30, 4));
    let stripes = Stripes::open(all.ssd.as_ref().unwrap(), all.geometry).unwrap();
    let open = |part| Cache::open_on(all.clone(), Some(part), None, CacheMetrics::default());
    let caches = stripes.split(shards).into_iter().map(|part| open(part).unwrap()).collect();
    (caches, Placement::new(4, shards))
}

#[test]
fn stripes_change_hands_and_what_lies_on_them_goes_with_them() {
    let dir = tempfile::tempdir().unwrap();
    let mut filled: Vec<(Digest, Vec<u8>)> = Vec::new();
    let mut uploaded: Vec<(u8, Digest, Vec<u8>)> = Vec::new();
    for (round, shards) in [1, 2, 3, 6, 4, 1].into_iter().enumerate() {
        let (caches, placement) = open_shards(dir.path(), shards);
        for (digest, bytes) in &filled {
            let home = usize::from(placement.home(digest));
            assert!(caches[home].stat(digest).is_some_and(|stat| stat.verified), "{shards}");
            assert_eq!(read_all(&caches[home], digest).as_ref(), Some(bytes), "{shards} shards");
            let others = caches.iter().enumerate().filter(|(shard, _)| *shard != home);
            assert!(others.into_iter().all(|(_, cache)| cache.stat(digest).is_none()));
        }
        for (id, digest, bytes) in &uploaded {
            let adopt = |cache: &&Cache| {
                cache
                    .adopt(UploadId([*id; 16]), digest, bytes.len() as u64, "application/x")
                    .is_ok()
            };
            let holders: Vec<&Cache> = caches.iter().filter(adopt).collect();
            assert_eq!(holders.len(), 1, "one shard of {shards} has all of it");
            assert_eq!(read_all(holders[0], digest).as_ref(), Some(bytes));
        }
        caches.iter().for_each(Cache::drop_unadopted);
        for n in 0..4 {
            let bytes = content(1000 + round as u64 * 10 + n, 700_000);
            let home = usize::from(placement.home(&Digest::sha256(&bytes)));
            let digest = fill(&caches[home], &bytes);
            caches[home].set_verified(&digest);
            filled.push((digest, bytes));
        }
        let takers = caches.iter().filter(|cache| cache.takes_uploads());
        assert_eq!(takers.clone().count(), usize::from(shards.min(4)));
        for (n, cache) in takers.enumerate() {
            let id = (1 + round * 10 + n) as u8;
            let bytes = content(2000 + u64::from(id), 3_000_000);
            uploaded.push((id, upload(cache, id, &bytes), bytes));
        }
        caches.iter().for_each(settle);
    }
}

#[test]
fn what_is_cached_away_from_home_is_garbage_and_a_purge_at_home_holds() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = content(77, 500_000);
    let digest = {
        let (caches, placement) = open_shards(dir.path(), 2);
        let away = usize::from(1 - placement.home(&Digest::sha256(&bytes)));
        // As when its own stripe took no writes, and another number of shards had it written there.
        let digest = fill(&caches[away], &bytes);
        caches[away].set_verified(&digest);
        caches.iter().for_each(settle);
        digest
    };
    {
        let (caches, placement) = open_shards(dir.path(), 2);
        assert!(caches.iter().all(|cache| cache.stat(&digest).is_none()));
        let home = &caches[usize::from(placement.home(&digest))];
        home.forget(&digest);
        drive(home, home.flush());
    }
    let (caches, _) = open_shards(dir.path(), 1);
    assert!(caches[0].stat(&digest).is_none(), "the tombstone is newer than what it voids");
}

#[test]
fn an_upload_that_is_longer_than_its_stripe_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (caches, _) = open_shards(dir.path(), 4);
    let mut upload = caches[0].upload(UploadId([9; 16])).unwrap();
    let limit = upload.len_max();
    assert!((64 << 20..256 << 20).contains(&limit), "{limit}");
    let part = content(5, 1 << 20);
    let refused = loop {
        match drive(&caches[0], upload.append(&part)) {
            Ok(()) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, CacheError::TooLarge { .. }), "{refused}");
    assert_eq!(upload.len(), limit / (1 << 20) * (1 << 20), "all that it said that it takes");
    drop(upload);
    assert!(caches[0].takes_uploads());
}

#[test]
fn when_all_slots_are_pinned_the_wait_ends_with_busy_and_with_a_slot_when_one_is_let_go() {
    let mut config = CacheConfig::new(4 * (260 << 10));
    config.slot_wait_max = std::time::Duration::from_millis(30);
    let cache = open(config).unwrap();
    let digest = Digest::sha256(b"pinned");
    cache.begin(&digest, 4 * CHUNK_BYTES, "x", Origin(1), Customer::NOBODY).unwrap();
    let mut pins = Vec::new();
    for chunk in 0..4 {
        let mut writer = drive(&cache, cache.slot(CHUNK_BYTES as usize)).unwrap();
        writer.append(&content(u64::from(chunk), CHUNK_BYTES as usize));
        pins.push(cache.insert(&digest, chunk, writer).bytes);
    }
    let busy = drive(&cache, cache.slot(CHUNK_BYTES as usize));
    assert!(matches!(busy, Err(CacheError::Busy)), "{busy:?}");
    // What was evicted is still found while someone holds it.
    for (chunk, pin) in pins.iter().enumerate() {
        assert_eq!(cache.resident(&digest, chunk as u32).unwrap().bytes, pin);
    }
    let pin = pins.pop().unwrap();
    let expected = pin.to_vec();
    let elsewhere = std::thread::spawn(move || {
        assert_eq!(pin, expected);
        drop(pin);
    });
    elsewhere.join().unwrap();
    assert!(drive(&cache, cache.slot(CHUNK_BYTES as usize)).is_ok());
    for (chunk, pin) in pins.iter().enumerate() {
        assert_eq!(pin, &content(chunk as u64, CHUNK_BYTES as usize));
    }
}

#[test]
fn a_full_store_refuses_an_upload_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = CacheConfig::with_ssd(8 << 20, SsdConfig::new(dir.path(), 40 << 20, 2));
    config.geometry = Geometry { segment_bytes: 2 << 20, ..Geometry::default() };
    let cache = open(config.clone()).unwrap();
    let mut stored = Vec::new();
    let refused = loop {
        let id = UploadId([stored.len() as u8 + 1; 16]);
        let bytes = content(stored.len() as u64, 1_500_000);
        let outcome = (|| {
            let mut upload = cache.upload(id)?;
            drive(&cache, upload.append(&bytes))?;
            drive(&cache, upload.finish())
        })();
        match outcome {
            Ok(upload) => {
                cache.host(upload, &Digest::sha256(&bytes), "x");
                stored.push((id, bytes));
            }
            Err(error) => break error,
        }
        assert!(stored.len() < 40, "more than fits was taken");
    };
    assert!(matches!(refused, CacheError::StoreFull), "{refused:?}");
    assert!(stored.len() >= 8, "{}", stored.len());
    settle(&cache);
    for (_, bytes) in &stored {
        assert_eq!(read_all(&cache, &Digest::sha256(bytes)).as_ref(), Some(bytes));
    }
    // What a delete gives back can be used again.
    for (id, bytes) in stored.drain(..4) {
        cache.unhost(&Digest::sha256(&bytes), id);
    }
    settle(&cache);
    let again = content(99, 1_500_000);
    upload(&cache, 200, &again);
    drop(cache);
    let cache = open(config).unwrap();
    for (id, bytes) in &stored {
        let digest = Digest::sha256(bytes);
        cache.adopt(*id, &digest, bytes.len() as u64, "x").unwrap();
        assert_eq!(read_all(&cache, &digest).as_ref(), Some(bytes));
    }
    cache.adopt(UploadId([200; 16]), &Digest::sha256(&again), 1_500_000, "x").unwrap();
}

#[test]
fn an_empty_object_can_be_cached_and_hosted_over_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let digest = Digest::sha256(b"");
    {
        let cache = open(config(dir.path())).unwrap();
        cache.begin(&digest, 0, "x", Origin(1), Customer::NOBODY).unwrap();
        assert!(!cache.stat(&digest).unwrap().verified);
        cache.set_verified(&digest);
        assert_eq!(drive(&cache, cache.read(&digest, 0)).unwrap().unwrap().bytes.len(), 0);
        settle(&cache);
    }
    {
        let cache = open(config(dir.path())).unwrap();
        assert!(cache.stat(&digest).unwrap().verified);
        upload(&cache, 1, b"");
        assert!(cache.stat(&digest).unwrap().hosted);
    }
    let cache = open(config(dir.path())).unwrap();
    cache.adopt(UploadId([1; 16]), &digest, 0, "x").unwrap();
    assert!(cache.stat(&digest).unwrap().hosted);
}

const CHILD: &str = "OUTRIDER_CACHE_TEST_CHILD";

/// Not a test of its own: what the next one starts and kills. It says on its output which uploads
/// are stored.
#[test]
fn child_that_uploads_until_it_is_killed() {
    let Ok(dir) = std::env::var(CHILD) else { return };
    let (dir, round) = dir.split_once(':').unwrap();
    let cache = open(config(Path::new(dir))).unwrap();
    for number in 0u8.. {
        let bytes = content(u64::from(number), 1_000 + usize::from(number) * 50_000);
        let id =
            UploadId([round.parse().unwrap(), number, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let mut upload = cache.upload(id).unwrap();
        drive(&cache, upload.append(&bytes)).unwrap();
        let stored = drive(&cache, upload.finish()).unwrap();
        println!("stored {number}");
        cache.host(stored, &Digest::sha256(&bytes), "x");
    }
}

#[test]
fn what_a_killed_process_had_stored_is_there() {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};
    let dir = tempfile::tempdir().unwrap();
    for round in 0..3u8 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture", "child_that_uploads_until_it_is_killed"])
            .env(CHILD, format!("{}:{round}", dir.path().display()))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stored = Vec::new();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        while stored.len() < 5 + usize::from(round) * 3 {
            let line = lines.next().unwrap().unwrap();
            if let Some((_, number)) = line.rsplit_once("stored ") {
                stored.push(number.parse::<u8>().unwrap());
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let cache = open(config(dir.path())).unwrap();
        for number in stored {
            let bytes = content(u64::from(number), 1_000 + usize::from(number) * 50_000);
            let mut id = [0; 16];
            id[..2].copy_from_slice(&[round, number]);
            let digest = Digest::sha256(&bytes);
            cache.adopt(UploadId(id), &digest, bytes.len() as u64, "x").unwrap();
            assert_eq!(read_all(&cache, &digest), Some(bytes));
        }
        cache.drop_unadopted();
    }
}
