//! The device's own rate: random direct reads into registered memory over a bare io_uring, always
//! `depth` of them in flight, on one thread that does nothing else.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use io_uring::{IoUring, cqueue, opcode, types};
use memmap2::MmapMut;

use super::written::Places;
use super::{BLOCK_BYTES, Reads};
use crate::BenchError;
use crate::load::latency::Latency;
use crate::load::window::thread_cpu;

/// Opens files for direct reads, in the order of their names.
///
/// # Errors
/// When one cannot be opened without the page cache.
pub fn open_direct(paths: &[PathBuf]) -> Result<Vec<File>, BenchError> {
    paths
        .iter()
        .map(|path| {
            OpenOptions::new()
                .read(true)
                .custom_flags(libc::O_DIRECT)
                .open(path)
                .map_err(BenchError::io(format!("opening {} with O_DIRECT", path.display())))
        })
        .collect()
}

/// The files of a folder whose names start with `prefix`, sorted.
///
/// # Errors
/// When there are none.
pub fn files_of(folder: &Path, prefix: &str) -> Result<Vec<PathBuf>, BenchError> {
    let doing = || BenchError::io(format!("reading {}", folder.display()));
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(doing())? {
        let entry = entry.map_err(doing())?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            paths.push(entry.path());
        }
    }
    paths.sort();
    if paths.is_empty() {
        return Err(BenchError::Void(format!("there is no {prefix}* in {}", folder.display())));
    }
    Ok(paths)
}

/// Reads `read_bytes` at random `places` of `files` for `duration`.
///
/// # Errors
/// When the kernel gives no ring, or a read fails or is short.
pub fn run(
    files: &[File],
    places: &Places,
    read_bytes: u64,
    depth: u32,
    duration: Duration,
    seed: u64,
) -> Result<Reads, BenchError> {
    assert!(read_bytes > 0 && read_bytes.is_multiple_of(BLOCK_BYTES), "direct reads are of blocks");
    let failed = |doing: &str| BenchError::io(format!("raw reads: {doing}"));
    let read = u32::try_from(read_bytes)
        .map_err(|_| BenchError::Argument(format!("a read of {read_bytes} bytes")))?;
    // The memory is declared before the ring, so that it is freed after it; `run_ring` returns only
    // when no read is in flight any more.
    let memory = MmapMut::map_anon(read as usize * depth as usize).map_err(failed("memory"))?;
    let mut ring = make_ring(depth).map_err(failed("making a ring"))?;
    run_ring(&mut ring, memory, files, places, read, depth, duration, seed)
}

fn make_ring(depth: u32) -> std::io::Result<IoUring> {
    // These two need Linux 6.1, and make completions cheaper.
    IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .build(depth)
        .or_else(|_| IoUring::new(depth))
}

#[allow(unsafe_code)]
#[allow(clippy::too_many_arguments)]
fn run_ring(
    ring: &mut IoUring,
    mut memory: MmapMut,
    files: &[File],
    places: &Places,
    read: u32,
    depth: u32,
    duration: Duration,
    seed: u64,
) -> Result<Reads, BenchError> {
    let failed = |doing: &str| BenchError::io(format!("raw reads: {doing}"));
    // As the cache's arena: in pages of 4 KiB each read would be of dozens of pieces. Without huge
    // pages it works as well, only slower.
    let _ = memory.advise(memmap2::Advice::HugePage);
    memory.fill(1);
    let base = memory.as_mut_ptr();
    let fds: Vec<i32> = files.iter().map(AsRawFd::as_raw_fd).collect();
    ring.submitter().register_files(&fds).map_err(failed("registering files"))?;
    let whole = libc::iovec { iov_base: base.cast(), iov_len: memory.len() };
    // SAFETY: the mapping lives until the end of this function, and every read of it has completed
    // by then: the loop below waits for all.
    let fixed = unsafe { ring.submitter().register_buffers(&[whole]) }.is_ok();

    let mut random = fastrand::Rng::with_seed(seed);
    let mut submitted_at = vec![Instant::now(); depth as usize];
    let mut push = |ring: &mut IoUring, slot: u32, submitted_at: &mut [Instant]| {
        let (file, offset) = places.at(random.u64(..places.count()));
        let file = types::Fixed(u32::try_from(file).unwrap_or(u32::MAX));
        let target = base.wrapping_add(slot as usize * read as usize);
        let entry = if fixed {
            opcode::ReadFixed::new(file, target, read, 0).offset(offset).build()
        } else {
            opcode::Read::new(file, target, read).offset(offset).build()
        };
        submitted_at[slot as usize] = Instant::now();
        // SAFETY: the target is slot `slot` of the mapping, which no other read in flight has: a
        // slot is used again only when its read has completed.
        unsafe { ring.submission().push(&entry.user_data(u64::from(slot))) }.is_ok()
    };

    let mut reads = Reads { count: 0, bytes: 0, seconds: 0.0, cpu_s: 0.0, latency: Latency::new() };
    let (start, cpu) = (Instant::now(), thread_cpu());
    let mut in_flight = 0;
    for slot in 0..depth {
        in_flight += u32::from(push(ring, slot, &mut submitted_at));
    }
    let mut error = None;
    while in_flight > 0 {
        if let Err(wait) = ring.submit_and_wait(1)
            && wait.kind() != std::io::ErrorKind::Interrupted
        {
            // Reads may still be in flight into the memory: it must not be freed.
            std::mem::forget(memory);
            return Err(failed("waiting")(wait));
        }
        let now = Instant::now();
        let done: Vec<cqueue::Entry> = ring.completion().collect();
        for completion in done {
            in_flight -= 1;
            let slot = completion.user_data() as u32;
            match u32::try_from(completion.result()) {
                Ok(bytes) if bytes == read => {
                    reads.count += 1;
                    reads.bytes += u64::from(bytes);
                    let latency = now.duration_since(submitted_at[slot as usize]);
                    reads.latency.record_ns(latency.as_nanos() as u64);
                }
                Ok(bytes) => error = Some(std::io::Error::other(format!("{bytes} bytes came"))),
                Err(_) => {
                    error = Some(std::io::Error::from_raw_os_error(-completion.result()));
                }
            }
            if error.is_none() && now.duration_since(start) < duration {
                in_flight += u32::from(push(ring, slot, &mut submitted_at));
            }
        }
    }
    reads.seconds = start.elapsed().as_secs_f64();
    reads.cpu_s = thread_cpu().saturating_sub(cpu).as_secs_f64();
    match error {
        Some(error) => Err(failed("a read")(error)),
        None => Ok(reads),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn reads_are_counted_and_end_on_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data-0");
        let mut file = File::create(&path).unwrap();
        file.write_all(&vec![7; 1 << 20]).unwrap();
        file.sync_all().unwrap();
        let paths = files_of(folder.path(), "data-").unwrap();
        let files = open_direct(&paths).unwrap();
        let places = Places::find(&files, 65_536).unwrap();
        let reads = run(&files, &places, 65_536, 4, Duration::from_millis(20), 1).unwrap();
        assert!(reads.count > 0);
        assert_eq!(reads.bytes, reads.count * 65_536);
        assert_eq!(reads.latency.count(), reads.count);
    }

    #[test]
    fn a_folder_without_stripes_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        assert!(files_of(folder.path(), "stripe-").is_err());
    }
}
