//! `disk`: how fast chunks come off the stripes through the cache, against what the device itself
//! gives for the same bytes: the same files, read size, depth, CPU, at random, without page cache.
//!
//! - [`written`]: where the files really hold data. [`raw`]: the device's own rate, by a bare ring.
//! - [`stripes`]: the same through the cache's public interface, on a shard with its driver.
//! - [`alone`]: pairs of the two. [`beside`]: the same through a running server that is saturated
//!   with downloads meanwhile.

pub mod alone;
pub mod beside;
pub mod raw;
pub mod stripes;
pub mod written;

use serde::Serialize;

use crate::BenchError;
use crate::arguments::DiskArguments;
use crate::load::latency::{Latency, LatencySummary};
use crate::report;

/// Bytes of a stripe record in front of its payload, with which a chunk is read.
pub const RECORD_HEADER_BYTES: u64 = 512;
/// Unit of direct reads.
pub const BLOCK_BYTES: u64 = 4096;
/// What is read from a stripe for a whole chunk: header and payload, in whole blocks.
pub const RECORD_BYTES: u64 =
    (RECORD_HEADER_BYTES + outrider_cache::CHUNK_BYTES).next_multiple_of(BLOCK_BYTES);
/// The share of a store that is filled, so that nothing is reclaimed meanwhile.
const FILL_SHARE: f64 = 0.7;

/// What one run of reads gave.
#[derive(Clone, Debug)]
pub struct Reads {
    /// Reads that came from the device.
    pub count: u64,
    /// Bytes of them, headers included.
    pub bytes: u64,
    /// How long it took.
    pub seconds: f64,
    /// CPU time of the thread.
    pub cpu_s: f64,
    /// Time from submission to completion.
    pub latency: Latency,
}

/// The same, for reports.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ReadsSummary {
    /// Reads a second.
    pub reads_per_s: f64,
    /// Bytes a second.
    pub bytes_per_s: f64,
    /// CPU seconds for each 10⁹ bytes.
    pub cpu_s_per_gb: f64,
    /// From submission to completion.
    pub latency: Option<LatencySummary>,
}

impl Reads {
    /// Rates of this run.
    pub fn summary(&self) -> ReadsSummary {
        let seconds = self.seconds.max(1e-9);
        ReadsSummary {
            reads_per_s: self.count as f64 / seconds,
            bytes_per_s: self.bytes as f64 / seconds,
            cpu_s_per_gb: self.cpu_s / (self.bytes as f64 / 1e9).max(1e-9),
            latency: self.latency.summary(),
        }
    }
}

impl ReadsSummary {
    /// For progress lines: `2.31 GB/s`.
    pub fn rate(&self) -> String {
        format!("{:.2} GB/s", self.bytes_per_s / 1e9)
    }

    /// Median and 99 % of the latency.
    pub fn quantiles(&self) -> String {
        self.latency.map_or_else(String::new, |latency| {
            format!("{} / {}", report::micros(latency.p50_us), report::micros(latency.p99_us))
        })
    }
}

/// Bytes of a store that `size` bytes fill as far as they should.
fn store_bytes(size: u64) -> u64 {
    (size as f64 / FILL_SHARE) as u64
}

/// The verb.
///
/// # Errors
/// When nothing could be measured.
pub fn verb(arguments: &DiskArguments) -> Result<(), BenchError> {
    if arguments.beside_serving { beside::verb(arguments) } else { alone::verb(arguments) }
}
