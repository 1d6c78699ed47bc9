//! A disk that is full, or fails: nothing that was acknowledged is lost, nothing that was refused
//! is there.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use redb::{Database, StorageBackend};

use super::super::local::open_with;
use super::*;

/// Shorter than what an operator would want.
const RETRY_AFTER: Duration = Duration::from_millis(20);

/// What the disk under the file does.
#[derive(Debug, Default)]
pub(super) struct Disk {
    /// Writes behind this offset fail. Zero is no bound.
    capacity_bytes: AtomicU64,
    /// So many of the next flushes fail, though all of it was written.
    pub(super) flushes_fail: AtomicU64,
    /// It cannot even be opened.
    is_gone: AtomicBool,
}

#[derive(Debug)]
struct DiskFile {
    file: std::fs::File,
    disk: Arc<Disk>,
}

impl DiskFile {
    fn check(&self, end: u64) -> io::Result<()> {
        let capacity_bytes = self.disk.capacity_bytes.load(Ordering::SeqCst);
        if capacity_bytes > 0 && end > capacity_bytes {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }
}

impl StorageBackend for DiskFile {
    fn len(&self) -> Result<u64, io::Error> {
        Ok(self.file.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        std::os::unix::fs::FileExt::read_exact_at(&self.file, out, offset)
    }

    fn set_len(&self, length: u64) -> Result<(), io::Error> {
        self.check(length)?;
        self.file.set_len(length)
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        self.file.sync_data()?;
        let one_less = |left: u64| left.checked_sub(1);
        match self.disk.flushes_fail.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less) {
            Ok(_) => Err(io::Error::other("the disk does not answer")),
            Err(_) => Ok(()),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        self.check(offset + data.len() as u64)?;
        std::os::unix::fs::FileExt::write_all_at(&self.file, data, offset)
    }
}

pub(super) fn on(disk: &Arc<Disk>) -> NamesBox {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("meta.redb");
    let (limits, metrics) = (NamesLimits::default(), NamesMetrics::default());
    let (opener_path, disk) = (path.clone(), disk.clone());
    let opener = Box::new(move || {
        if disk.is_gone.load(Ordering::SeqCst) {
            return Err(io::Error::other("the disk is gone").into());
        }
        let file = std::fs::File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&opener_path)?;
        Database::builder().create_with_backend(DiskFile { file, disk: disk.clone() })
    });
    let (thread, client) =
        open_with(opener, &path, limits.clone(), metrics.clone(), RETRY_AFTER).unwrap();
    let names = client.blocking();
    NamesBox { thread: Some(thread), client, names, metrics, limits, directory }
}

/// Asks until the time is over for which changes are refused after a failure.
fn retried<T>(change: impl Fn() -> Result<T, NamesError>) -> T {
    loop {
        match change() {
            Ok(done) => return done,
            Err(NamesError::Storage(_) | NamesError::Unsettled(_)) => {
                std::thread::sleep(RETRY_AFTER);
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_full_disk_refuses_new_puts_and_loses_nothing() {
    let disk = Arc::new(Disk::default());
    let one = on(&disk);
    one.put_blob(blob("a", "before", 1)).unwrap();
    let length = std::fs::metadata(one.path().join("meta.redb")).unwrap().len();
    disk.capacity_bytes.store(length, Ordering::SeqCst);

    // Large records, until one does not fit.
    let put = |number: u64| {
        let referrer = Referrer {
            subject: digest("subject"),
            artifact_type: None,
            descriptor: vec![b'x'; 1 << 18],
        };
        let content = format!("manifest {number}");
        let put =
            PutManifest { referrer: Some(referrer), ..manifest("a", &["v1"], &content, number) };
        (content, one.put(put))
    };
    let mut acknowledged = Vec::new();
    let refused = loop {
        match put(acknowledged.len() as u64) {
            (content, Ok(_)) => acknowledged.push(content),
            (content, Err(NamesError::Storage(_))) => break content,
            (_, Err(error)) => panic!("{error}"),
        }
        assert!(acknowledged.len() < 10_000, "the disk is never full");
    };
    // Questions are answered all the while, and from what was acknowledged.
    assert_eq!(one.hosted(&digest("before")).unwrap().upload_id, upload(1));
    assert_eq!(one.hosted(&digest(&refused)), None);
    for content in &acknowledged {
        assert!(one.link("a", &digest(content)).manifest.is_some(), "{content}");
    }
    match acknowledged.last() {
        Some(last) => assert_eq!(one.tag("a", "v1").unwrap().digest, digest(last)),
        None => assert_eq!(one.tag("a", "v1"), None),
    }
    assert!(one.metrics.reopened.get() >= 1);

    disk.capacity_bytes.store(0, Ordering::SeqCst);
    retried(|| put(999).1);
    assert!(one.hosted(&digest("manifest 999")).is_some());
}

#[test]
fn a_put_is_acknowledged_exactly_if_it_is_found_after_the_disk_failed() {
    let mut seen = [0; 3];
    for failures in 1..12 {
        let disk = Arc::new(Disk::default());
        let one = on(&disk);
        one.put_blob(blob("a", "before", 1)).unwrap();
        disk.flushes_fail.store(failures, Ordering::SeqCst);
        let answer = one.put_blob(blob("a", "during", 2));
        disk.flushes_fail.store(0, Ordering::SeqCst);
        let found = retried(|| block_on(one.names.hosted(&digest("during"))));
        let kind = match answer {
            Ok(_) => {
                assert!(found.is_some(), "{failures}");
                0
            }
            Err(NamesError::Storage(_)) => {
                assert_eq!(found, None, "{failures}");
                1
            }
            // It could not be opened at once, and either may be.
            Err(NamesError::Unsettled(_)) => 2,
            Err(error) => panic!("{error}"),
        };
        seen[kind] += 1;
        assert!(retried(|| block_on(one.names.hosted(&digest("before")))).is_some());
        retried(|| one.put_blob(blob("a", "during", 3)));
        assert!(one.hosted(&digest("during")).is_some());
    }
    assert!(seen[0] > 0 && seen[2] > 0, "{seen:?}");
}

#[test]
fn a_disk_that_is_gone_and_comes_back_is_used_again() {
    let disk = Arc::new(Disk::default());
    let one = on(&disk);
    one.put_blob(blob("a", "before", 1)).unwrap();
    disk.is_gone.store(true, Ordering::SeqCst);
    disk.flushes_fail.store(u64::MAX, Ordering::SeqCst);
    let put = one.put_blob(blob("a", "during", 2));
    assert!(matches!(put, Err(NamesError::Unsettled(_))), "{put:?}");
    let asked = block_on(one.names.hosted(&digest("before")));
    assert!(matches!(asked, Err(NamesError::Storage(_))), "{asked:?}");
    disk.flushes_fail.store(0, Ordering::SeqCst);
    disk.is_gone.store(false, Ordering::SeqCst);
    assert!(retried(|| block_on(one.names.hosted(&digest("before")))).is_some());
    retried(|| one.put_blob(blob("a", "after", 3)));
}
