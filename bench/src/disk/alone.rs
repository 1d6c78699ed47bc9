//! `disk` without a server: pairs of the device's own rate and the cache's.

use std::fmt::Write as _;
use std::thread;

use serde::Serialize;

use super::stripes::{StoreConfig, StripeReader};
use super::written::Places;
use super::{RECORD_BYTES, ReadsSummary, raw};
use crate::arguments::DiskArguments;
use crate::compare::order;
use crate::report::{self, Heading, Table};
use crate::statistics::{Ratio, Spread};
use crate::{BenchError, machine, process};

/// The ratio to the device's own rate must be at least this.
const RATIO_MIN: f64 = 0.8;
const SEED: u64 = 0x6469_736b;

#[derive(Clone, Debug, Serialize)]
struct Report {
    read_bytes: u64,
    depth: u32,
    written_bytes: u64,
    raw: Spread,
    stripes: Spread,
    ratio: Ratio,
    ratio_min: f64,
    passed: bool,
    /// Reads that memory answered, of all of the cache's.
    from_memory_share: f64,
    /// Bytes that the kernel says came from the device for one counted read of the cache.
    device_bytes_per_read: f64,
    raw_runs: Vec<ReadsSummary>,
    stripe_runs: Vec<ReadsSummary>,
}

/// The verb.
///
/// # Errors
/// When nothing could be measured.
pub fn verb(arguments: &DiskArguments) -> Result<(), BenchError> {
    let heading = Heading::new(format!(
        "disk: random reads of {} (a chunk with its record's header) from {} of stripes in {}, {} at \
         a time, {} interleaved pairs of {:.1} s{}",
        report::bytes(RECORD_BYTES),
        report::bytes(arguments.size),
        arguments.data.display(),
        arguments.depth,
        arguments.pairs,
        arguments.duration.as_secs_f64(),
        arguments.pin.map_or_else(String::new, |cpu| format!(", on CPU {cpu}")),
    ));
    std::fs::create_dir_all(&arguments.data)
        .map_err(BenchError::io(format!("making {}", arguments.data.display())))?;
    let folder = tempfile::Builder::new()
        .prefix("stripes-")
        .tempdir_in(&arguments.data)
        .map_err(BenchError::io("making a folder"))?;
    report::progress(&format!("filling {}", report::bytes(arguments.size)));
    let reader = StripeReader::start(StoreConfig {
        folder: folder.path().to_owned(),
        size_bytes: arguments.size,
        cpu: arguments.pin,
    })?;
    let files = raw::open_direct(&raw::files_of(folder.path(), "stripe-")?)?;
    let places = Places::find(&files, RECORD_BYTES)?;

    let (mut raw_runs, mut stripe_runs) = (Vec::new(), Vec::new());
    let (mut from_memory, mut from_stripes, mut device_bytes) = (0, 0, 0);
    for pair in 0..arguments.pairs {
        let seed = SEED + u64::from(pair);
        for half in order(2, pair) {
            if half == 0 {
                let reads = raw_pinned(arguments, &files, &places, seed)?;
                raw_runs.push(reads.summary());
            } else {
                let before = process::usage(std::process::id())?;
                let result = reader.read(arguments.depth, arguments.duration, seed)?;
                let used = process::usage(std::process::id())?.since(&before);
                from_memory += result.from_memory;
                from_stripes += result.reads.count;
                device_bytes += used.device_read_bytes;
                stripe_runs.push(result.reads.summary());
            }
        }
        report::progress(&format!(
            "pair {} of {}: device {}, stripes {}",
            pair + 1,
            arguments.pairs,
            raw_runs[pair as usize].rate(),
            stripe_runs[pair as usize].rate(),
        ));
    }
    reader.end()?;

    let rates =
        |runs: &[ReadsSummary]| -> Vec<f64> { runs.iter().map(|run| run.bytes_per_s).collect() };
    let (raw_rates, stripe_rates) = (rates(&raw_runs), rates(&stripe_runs));
    let void = || BenchError::Void("nothing was read".to_owned());
    let ratio = Ratio::of(&stripe_rates, &raw_rates).ok_or_else(void)?;
    let report = Report {
        read_bytes: RECORD_BYTES,
        depth: arguments.depth,
        written_bytes: places.bytes(),
        raw: Spread::of(&raw_rates).ok_or_else(void)?,
        stripes: Spread::of(&stripe_rates).ok_or_else(void)?,
        ratio,
        ratio_min: RATIO_MIN,
        passed: ratio.of_medians >= RATIO_MIN,
        from_memory_share: from_memory as f64 / ((from_memory + from_stripes) as f64).max(1.0),
        device_bytes_per_read: device_bytes as f64 / (from_stripes as f64).max(1.0),
        raw_runs,
        stripe_runs,
    };
    heading.print(arguments.json, &text(&report), &report)
}

/// Raw reads on a thread of their own, which is pinned like the shard.
pub(super) fn raw_pinned(
    arguments: &DiskArguments,
    files: &[std::fs::File],
    places: &Places,
    seed: u64,
) -> Result<super::Reads, BenchError> {
    thread::scope(|scope| {
        scope
            .spawn(|| {
                if let Some(cpu) = arguments.pin {
                    machine::pin(cpu)?;
                }
                raw::run(files, places, RECORD_BYTES, arguments.depth, arguments.duration, seed)
            })
            .join()
            .map_err(|_| BenchError::Void("a thread panicked".to_owned()))?
    })
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    let mut table =
        Table::new(["GB/s", "min", "median", "max", "reads/s", "CPU s a GB", "p50 / p99"]);
    for (name, spread, runs) in [
        ("the device itself", &report.raw, &report.raw_runs),
        ("stripes through the cache", &report.stripes, &report.stripe_runs),
    ] {
        let median = |of: fn(&ReadsSummary) -> f64| {
            Spread::of(&runs.iter().map(of).collect::<Vec<f64>>())
                .map_or(f64::NAN, |spread| spread.median)
        };
        table.row([
            name.to_owned(),
            format!("{:.2}", spread.min / 1e9),
            format!("{:.2}", spread.median / 1e9),
            format!("{:.2}", spread.max / 1e9),
            report::thousands(median(|run| run.reads_per_s)),
            format!("{:.3}", median(|run| run.cpu_s_per_gb)),
            runs.last().map(ReadsSummary::quantiles).unwrap_or_default(),
        ]);
    }
    text.push_str(&table.render());
    let _ = writeln!(
        text,
        "\nratio     {:.3} of the medians; pairs {:.3} to {:.3}; must be at least {}: {}",
        report.ratio.of_medians,
        report.ratio.of_pairs.min,
        report.ratio.of_pairs.max,
        report.ratio_min,
        if report.passed { "passed" } else { "MISSED" },
    );
    let _ = writeln!(
        text,
        "check     {:.0} bytes came from the device for each read that is counted as {}; memory \
         answered {:.1} % of the cache's reads, which are not counted",
        report.device_bytes_per_read,
        report.read_bytes,
        report.from_memory_share * 100.0,
    );
    text
}
