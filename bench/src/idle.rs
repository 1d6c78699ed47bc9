//! `idle`: what a running server uses while nobody asks it for anything.

use std::fmt::Write as _;
use std::thread;
use std::time::Instant;

use serde::Serialize;

use crate::arguments::IdleArguments;
use crate::process::{self, Memory};
use crate::report::{self, Heading};
use crate::{BenchError, http};

/// Idle CPU must stay below this share of a core.
const CORES_MAX: f64 = 0.01;
/// Memory beside the arena must stay below this.
const BESIDE_ARENA_BYTES_MAX: u64 = 64 << 20;

#[derive(Clone, Debug, Serialize)]
struct Report {
    seconds: f64,
    cores: f64,
    cores_max: f64,
    cpu_passed: bool,
    wakeups_per_s: f64,
    memory: Memory,
    arena_bytes: Option<u64>,
    beside_arena_bytes: Option<u64>,
    beside_arena_bytes_max: u64,
    memory_passed: Option<bool>,
}

/// The verb.
///
/// # Errors
/// When the process is gone, or the admin address does not answer.
pub fn verb(arguments: &IdleArguments) -> Result<(), BenchError> {
    if let Some(admin) = arguments.admin
        && !http::answers(admin, "/readyz")
    {
        return Err(BenchError::Void(format!("http://{admin}/readyz does not say it is ready")));
    }
    let heading = Heading::new(format!(
        "idle: process {} for {:.1} s",
        arguments.server_pid,
        arguments.duration.as_secs_f64()
    ));
    let (start, before) = (Instant::now(), process::usage(arguments.server_pid)?);
    thread::sleep(arguments.duration);
    let (seconds, after) = (start.elapsed().as_secs_f64(), process::usage(arguments.server_pid)?);
    let used = after.since(&before);
    let memory = process::memory(arguments.server_pid)?;
    let cores = used.cpu.as_secs_f64() / seconds;
    let beside_arena_bytes =
        arguments.arena.map(|arena| memory.resident_bytes.saturating_sub(arena));
    let report = Report {
        seconds,
        cores,
        cores_max: CORES_MAX,
        cpu_passed: cores < CORES_MAX,
        wakeups_per_s: used.wakeups as f64 / seconds,
        memory,
        arena_bytes: arguments.arena,
        beside_arena_bytes,
        beside_arena_bytes_max: BESIDE_ARENA_BYTES_MAX,
        memory_passed: beside_arena_bytes.map(|bytes| bytes <= BESIDE_ARENA_BYTES_MAX),
    };
    heading.print(arguments.json, &text(&report), &report)
}

fn text(report: &Report) -> String {
    let verdict = |passed: bool| if passed { "passed" } else { "MISSED" };
    let mut text = format!(
        "CPU       {:.2} % of a core (must be below {:.0} %): {}\n\
         wake-ups  {:.0}/s\n\
         memory    {} resident ({} anonymous, {} of files), {} at most so far\n",
        report.cores * 100.0,
        report.cores_max * 100.0,
        verdict(report.cpu_passed),
        report.wakeups_per_s,
        report::bytes(report.memory.resident_bytes),
        report::bytes(report.memory.anonymous_bytes),
        report::bytes(report.memory.file_bytes),
        report::bytes(report.memory.resident_bytes_max),
    );
    if let (Some(arena), Some(beside)) = (report.arena_bytes, report.beside_arena_bytes) {
        let _ = writeln!(
            text,
            "          {} beside an arena of {} (must be at most {}): {}",
            report::bytes(beside),
            report::bytes(arena),
            report::bytes(report.beside_arena_bytes_max),
            verdict(report.memory_passed.unwrap_or_default()),
        );
    }
    text
}
