//! The cache on real files through a real io_uring, driven without any runtime.

use std::future::Future;
use std::path::Path;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use outrider_artifact::Digest;
use outrider_cache::{
    CHUNK_BYTES, Cache, CacheConfig, CacheError, CacheMetrics, Geometry, Origin, SsdConfig, Tier,
    UploadId,
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
    cache.begin(&digest, bytes.len() as u64, "text/plain", Origin(7)).unwrap();
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
    cache.unhost(&second);
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
            let access = outrider_cache::Access { customer_hash: seed, unix_s: minute * 60 };
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
