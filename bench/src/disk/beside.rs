//! `disk --beside-serving`: one server process on one core serves hot downloads that saturate it, and
//! meanwhile reads cold chunks from its stripes.
//!
//! Hot and cold blobs have the same size, since the cache's score divides by it: what is hot is only
//! asked for more often. The cold reads are requests for the start of random chunks of many blobs that
//! together are several times the arena. A chunk is read whole to answer one byte of it, so with ranges of a byte the disk is at
//! work and little is added to what is served; whatever is served of them counts as serving. What came
//! from the disk is not taken from the requests but from the kernel's count of the server's device
//! reads.

use std::fmt::Write as _;
use std::thread;
use std::time::Duration;

use outrider_artifact::Digest;
use outrider_cache::CHUNK_BYTES;
use serde::Serialize;

use super::alone::raw_pinned;
use super::written::Places;
use super::{RECORD_BYTES, ReadsSummary, raw, store_bytes};
use crate::arguments::{DiskArguments, Protocol, TrustArguments};
use crate::http::HttpClient;
use crate::image::{push_blob, random_bytes};
use crate::load::source::{RangedBlob, Source};
use crate::load::summary::Summary;
use crate::load::{self, Measured, Meter, Plan, Span, target, tls};
use crate::peers::find;
use crate::peers::outrider::{INSTALL, Options, Outrider};
use crate::report::{self, Heading, Table};
use crate::statistics::{Ratio, Spread};
use crate::{BenchError, machine};

const WARMUP: Duration = Duration::from_millis(500);
const REPOSITORY: &str = "benchmark/disk";
/// The size of every blob.
const BLOB_BYTES: u64 = 1 << 20;
/// How many of them are hot.
const HOT_BLOBS: u64 = 64;
/// Uploads at a time.
const UPLOADS: u64 = 8;
/// Connections of the hot downloads.
const HOT_CONNECTIONS: u32 = 4;
/// Cold bytes must be this many times the arena, so that memory answers few of them.
const COLD_PER_ARENA_MIN: u64 = 4;
/// Ranges that are longer than this come over HTTPS, since they are part of what is served.
const PLAIN_RANGE_BYTES_MAX: u64 = 16 << 10;
/// The ratio to the device's own rate must be at least this.
const DISK_RATIO_MIN: f64 = 0.6;
/// Serving must keep at least this share of its rate.
const SERVING_RATIO_MIN: f64 = 0.8;
const SEED: u64 = 0x636f_6c64;

#[derive(Clone, Debug, Serialize)]
struct Round {
    raw: ReadsSummary,
    hot_alone: Summary,
    hot_beside: Summary,
    cold_beside: Summary,
    device_bytes_per_s: f64,
}

impl Round {
    /// Bytes a second that were served beside the disk's work: hot and cold.
    fn served_beside(&self) -> f64 {
        self.hot_beside.body_bytes_per_s + self.cold_beside.body_bytes_per_s
    }
}

#[derive(Clone, Debug, Serialize)]
struct Report {
    depth: u32,
    cold_bytes: u64,
    arena_bytes: u64,
    raw: Spread,
    beside: Spread,
    disk_ratio: Ratio,
    disk_ratio_min: f64,
    disk_passed: bool,
    hot_alone: Spread,
    hot_beside: Spread,
    served_beside: Spread,
    serving_ratio: Ratio,
    serving_ratio_min: f64,
    serving_passed: bool,
    rounds: Vec<Round>,
}

/// The verb.
///
/// # Errors
/// When the server is missing or fails, or requests fail.
pub fn verb(arguments: &DiskArguments) -> Result<(), BenchError> {
    if arguments.size < arguments.ram * COLD_PER_ARENA_MIN {
        return Err(BenchError::Argument(format!(
            "--size must be at least {COLD_PER_ARENA_MIN} times --ram, or memory would answer"
        )));
    }
    let server_cpu = arguments.pin.unwrap_or_default();
    let load_cpu = machine::usable().into_iter().rev().find(|cpu| *cpu != server_cpu);
    let program = find(&arguments.outrider, INSTALL)?;
    let heading = Heading::new(format!(
        "disk beside serving: one server on CPU {server_cpu}, load on {}; hot: HTTPS downloads of {HOT_BLOBS} blobs of {}, \
         {HOT_CONNECTIONS} connections; cold: {} of random chunks of {} in {}, arena {}, {} at a time; \
         {} rounds of {:.1} s for each part",
        load_cpu.map_or_else(|| "the same CPU".to_owned(), |cpu| format!("CPU {cpu}")),
        report::bytes(BLOB_BYTES),
        report::bytes(arguments.cold_range),
        report::bytes(arguments.size),
        arguments.data.display(),
        report::bytes(arguments.ram),
        arguments.depth,
        arguments.pairs,
        arguments.duration.as_secs_f64(),
    ));
    std::fs::create_dir_all(&arguments.data)
        .map_err(BenchError::io(format!("making {}", arguments.data.display())))?;
    let folder = tempfile::Builder::new()
        .prefix("outrider-")
        .tempdir_in(&arguments.data)
        .map_err(BenchError::io("making a folder"))?;
    let options = Options {
        ram_bytes: Some(arguments.ram),
        ssd_bytes: Some(store_bytes(arguments.size + HOT_BLOBS * BLOB_BYTES)),
        cpu: Some(server_cpu),
        ..Options::default()
    };
    let server = Outrider::start(&program, folder.path(), &options)?;
    let blobs = upload(&server, arguments.size)?;
    let (hot, cold) = plans(&server, &blobs, arguments, load_cpu)?;
    let files = raw::open_direct(&raw::files_of(&server.data.join("ssd"), "stripe-")?)?;
    let places = Places::find(&files, RECORD_BYTES)?;

    let arguments = &DiskArguments { pin: Some(server_cpu), ..arguments.clone() };
    let span = Span { warmup: WARMUP, duration: Some(arguments.duration), requests: None };
    let mut rounds = Vec::new();
    for number in 0..arguments.pairs {
        let run = |plans: &[Plan]| checked(plans, &span, server.pid());
        let raw = raw_pinned(arguments, &files, &places, SEED + u64::from(number))?.summary();
        // The parts change places from round to round.
        let both = [hot.clone(), cold.clone()];
        let (alone, beside) = if number % 2 == 0 {
            let alone = run(std::slice::from_ref(&hot))?;
            (alone, run(&both)?)
        } else {
            let beside = run(&both)?;
            (run(std::slice::from_ref(&hot))?, beside)
        };
        let device_bytes = beside.server.map_or(0, |usage| usage.device_read_bytes);
        let round = Round {
            raw,
            hot_alone: Summary::new(&hot, &alone.tallies[0], &alone),
            hot_beside: Summary::new(&hot, &beside.tallies[0], &beside),
            cold_beside: Summary::new(&cold, &beside.tallies[1], &beside),
            device_bytes_per_s: device_bytes as f64 / beside.elapsed.as_secs_f64(),
        };
        report::progress(&format!(
            "round {} of {}: device {}, server reads {:.2} GB/s; serving {:.0} MB/s alone, {:.0} beside \
             ({:.0} of it cold)",
            number + 1,
            arguments.pairs,
            round.raw.rate(),
            round.device_bytes_per_s / 1e9,
            round.hot_alone.body_bytes_per_s / 1e6,
            round.served_beside() / 1e6,
            round.cold_beside.body_bytes_per_s / 1e6,
        ));
        rounds.push(round);
    }
    let report = sum_up(arguments, rounds)?;
    heading.print(arguments.json, &text(&report), &report)
}

/// Uploads the hot blobs and the cold ones; the hot ones are the first.
fn upload(server: &Outrider, cold_bytes: u64) -> Result<Vec<RangedBlob>, BenchError> {
    let count = HOT_BLOBS + cold_bytes.div_ceil(BLOB_BYTES);
    report::progress(&format!("uploading {count} blobs of {}", report::bytes(BLOB_BYTES)));
    let upload = |client: &mut HttpClient, number: u64| {
        let bytes = random_bytes(SEED + number, BLOB_BYTES as usize);
        let digest = Digest::sha256(&bytes);
        push_blob(client, REPOSITORY, &digest, &bytes)?;
        let path = format!("/v2/{REPOSITORY}/blobs/{digest}");
        Ok((number, RangedBlob { path, size_bytes: BLOB_BYTES }))
    };
    let parts: Vec<Result<Vec<(u64, RangedBlob)>, BenchError>> = thread::scope(|scope| {
        let threads: Vec<_> = (0..UPLOADS)
            .map(|part| {
                scope.spawn(move || {
                    let mut client = HttpClient::new(server.http);
                    (part..count)
                        .step_by(UPLOADS as usize)
                        .map(|number| upload(&mut client, number))
                        .collect()
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| {
                let panicked = |_| Err(BenchError::Void("an upload panicked".to_owned()));
                thread.join().unwrap_or_else(panicked)
            })
            .collect()
    });
    let mut blobs = Vec::new();
    for part in parts {
        blobs.extend(part?);
    }
    blobs.sort_by_key(|(number, _)| *number);
    Ok(blobs.into_iter().map(|(_, blob)| blob).collect())
}

/// The hot downloads over HTTPS, and the cold reads.
fn plans(
    server: &Outrider,
    blobs: &[RangedBlob],
    arguments: &DiskArguments,
    load_cpu: Option<usize>,
) -> Result<(Plan, Plan), BenchError> {
    let (hot_blobs, cold_blobs) = blobs.split_at(HOT_BLOBS as usize);
    let urls: Vec<String> =
        hot_blobs.iter().map(|blob| format!("https://{}{}", server.https, blob.path)).collect();
    let (https, hot) = target::parse_all(&urls)?;
    let source = Source::round_robin(&https, &hot, &[], Some(BLOB_BYTES), |_| None);
    let mut hot = Plan::closed(https.clone(), source, HOT_CONNECTIONS);
    let trust = TrustArguments { ca: None, insecure: true };
    let tls = tls::client_config(&trust, Protocol::H1)?;
    hot.tls = Some(tls.clone());
    hot.pin = load_cpu;

    let range = arguments.cold_range;
    let (to, tls) = if range > PLAIN_RANGE_BYTES_MAX {
        (https, Some(tls))
    } else {
        (target::parse(&format!("http://{}/", server.http))?.0, None)
    };
    let source = Source::random_ranges(&to, cold_blobs.to_vec(), CHUNK_BYTES, range, SEED);
    let mut cold = Plan::closed(to, source, arguments.depth);
    cold.tls = tls;
    cold.pin = load_cpu;
    Ok((hot, cold))
}

fn checked(plans: &[Plan], span: &Span, pid: u32) -> Result<Measured, BenchError> {
    let measured = load::run(plans, span, Some(&Meter::Process(pid)))?;
    for tally in &measured.tallies {
        if tally.failed() > 0 || tally.responses == 0 {
            return Err(BenchError::Void(format!(
                "{} answers, failures: {:?}",
                tally.responses, tally.failures
            )));
        }
    }
    Ok(measured)
}

fn sum_up(arguments: &DiskArguments, rounds: Vec<Round>) -> Result<Report, BenchError> {
    let void = || BenchError::Void("nothing was read".to_owned());
    let values = |of: fn(&Round) -> f64| rounds.iter().map(of).collect::<Vec<f64>>();
    let raw = values(|round| round.raw.bytes_per_s);
    let beside = values(|round| round.device_bytes_per_s);
    let hot_alone = values(|round| round.hot_alone.body_bytes_per_s);
    let hot_beside = values(|round| round.hot_beside.body_bytes_per_s);
    let disk_ratio = Ratio::of(&beside, &raw).ok_or_else(void)?;
    let served_beside = values(Round::served_beside);
    let serving_ratio = Ratio::of(&served_beside, &hot_alone).ok_or_else(void)?;
    Ok(Report {
        depth: arguments.depth,
        cold_bytes: arguments.size,
        arena_bytes: arguments.ram,
        raw: Spread::of(&raw).ok_or_else(void)?,
        beside: Spread::of(&beside).ok_or_else(void)?,
        disk_ratio,
        disk_ratio_min: DISK_RATIO_MIN,
        disk_passed: disk_ratio.of_medians >= DISK_RATIO_MIN,
        hot_alone: Spread::of(&hot_alone).ok_or_else(void)?,
        hot_beside: Spread::of(&hot_beside).ok_or_else(void)?,
        served_beside: Spread::of(&served_beside).ok_or_else(void)?,
        serving_ratio,
        serving_ratio_min: SERVING_RATIO_MIN,
        serving_passed: serving_ratio.of_medians >= SERVING_RATIO_MIN,
        rounds,
    })
}

fn text(report: &Report) -> String {
    let mut table = Table::new(["GB/s", "min", "median", "max"]);
    for (name, spread) in [
        ("the device itself, server idle", &report.raw),
        ("device reads of the server beside serving", &report.beside),
        ("hot downloads alone", &report.hot_alone),
        ("hot downloads beside cold reads", &report.hot_beside),
        ("hot and cold bytes served then", &report.served_beside),
    ] {
        let shown = |value: f64| format!("{:.2}", value / 1e9);
        table.row([name.to_owned(), shown(spread.min), shown(spread.median), shown(spread.max)]);
    }
    let mut text = table.render();
    let mut ratios = Table::new(["", "of medians", "worst round", "best round", "must be", ""]);
    for (name, ratio, min, passed) in [
        (
            "disk beside serving / device",
            &report.disk_ratio,
            report.disk_ratio_min,
            report.disk_passed,
        ),
        (
            "serving beside disk / alone",
            &report.serving_ratio,
            report.serving_ratio_min,
            report.serving_passed,
        ),
    ] {
        ratios.row([
            name.to_owned(),
            format!("{:.3}", ratio.of_medians),
            format!("{:.3}", ratio.of_pairs.min),
            format!("{:.3}", ratio.of_pairs.max),
            format!("≥ {min}"),
            if passed { "passed" } else { "MISSED" }.to_owned(),
        ]);
    }
    text.push('\n');
    text.push_str(&ratios.render());
    if let Some(round) = report.rounds.last() {
        let latency = |summary: &Summary| {
            summary.latency.map_or_else(String::new, |latency| {
                format!("{} / {}", report::micros(latency.p50_us), report::micros(latency.p99_us))
            })
        };
        let server_cores = |summary: &Summary| summary.server.map_or(0.0, |server| server.cores);
        let per_answer = round.device_bytes_per_s / round.cold_beside.responses_per_s.max(1e-9);
        let _ = writeln!(
            text,
            "\nlast round: cold answers {}/s, p50 / p99 {}; {} from the device for each; device \
             alone {}; server {:.2} cores alone, {:.2} beside; clients {:.2} cores",
            report::thousands(round.cold_beside.responses_per_s),
            latency(&round.cold_beside),
            report::bytes(per_answer as u64),
            round.raw.quantiles(),
            server_cores(&round.hot_alone),
            server_cores(&round.hot_beside),
            round.hot_beside.client_cores + round.cold_beside.client_cores,
        );
    }
    text
}
