//! `idle`: what a running server uses while nobody asks it for anything.

use std::fmt::Write as _;
use std::thread;
use std::time::Instant;

use serde::Serialize;

use crate::arguments::{IdleArguments, Protocol};
use crate::load::source::Source;
use crate::load::{self, Meter, Plan, Span, target, tls};
use crate::process::{self, Memory, Usage};
use crate::report::{self, Heading};
use crate::{BenchError, http};

/// Idle CPU must stay below this share of a core.
const CORES_MAX: f64 = 0.01;
/// Idle CPU with connections must stay below this share of a core.
const CORES_WITH_CONNECTIONS_MAX: f64 = 0.02;
/// Memory of one idle connection must stay below this.
const CONNECTION_BYTES_MAX: f64 = 48.0 * 1024.0;
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
    connections: Option<Connections>,
}

/// What idle connections cost.
#[derive(Clone, Copy, Debug, Serialize)]
struct Connections {
    count: u64,
    resident_bytes_before: u64,
    bytes_each: f64,
    bytes_each_max: f64,
    passed: bool,
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
    let without = process::memory(arguments.server_pid)?;
    let (seconds, used, held) = match (arguments.connections, &arguments.url) {
        (Some(count), Some(url)) => with_connections(arguments, count, url)?,
        _ => {
            let (start, before) = (Instant::now(), process::usage(arguments.server_pid)?);
            thread::sleep(arguments.duration);
            let after = process::usage(arguments.server_pid)?;
            (start.elapsed().as_secs_f64(), after.since(&before), None)
        }
    };
    let (memory, held) = match held {
        Some((count, memory)) => (memory, Some(count)),
        None => (process::memory(arguments.server_pid)?, None),
    };
    let connections = held.map(|count| {
        let more = memory.resident_bytes.saturating_sub(without.resident_bytes);
        let bytes_each = more as f64 / count.max(1) as f64;
        Connections {
            count,
            resident_bytes_before: without.resident_bytes,
            bytes_each,
            bytes_each_max: CONNECTION_BYTES_MAX,
            passed: bytes_each <= CONNECTION_BYTES_MAX,
        }
    });
    let cores_max = if held.is_some() { CORES_WITH_CONNECTIONS_MAX } else { CORES_MAX };
    let cores = used.cpu.as_secs_f64() / seconds;
    let beside_arena_bytes =
        arguments.arena.map(|arena| memory.resident_bytes.saturating_sub(arena));
    let report = Report {
        seconds,
        cores,
        cores_max,
        cpu_passed: cores < cores_max,
        wakeups_per_s: used.wakeups as f64 / seconds,
        memory,
        arena_bytes: arguments.arena,
        beside_arena_bytes,
        beside_arena_bytes_max: BESIDE_ARENA_BYTES_MAX,
        memory_passed: beside_arena_bytes.map(|bytes| bytes <= BESIDE_ARENA_BYTES_MAX),
        connections,
    };
    heading.print(arguments.json, &text(&report), &report)
}

/// Opens connections, leaves them alone, and looks at the server meanwhile: seconds, usage, and how many
/// connections there were with the memory that the server had then.
#[allow(clippy::type_complexity)]
fn with_connections(
    arguments: &IdleArguments,
    count: u32,
    url: &str,
) -> Result<(f64, Usage, Option<(u64, Memory)>), BenchError> {
    let (server, target) = target::parse(url)?;
    if !server.secure {
        return Err(BenchError::Argument(format!("{url}: QUIC is always encrypted")));
    }
    let source = Source::round_robin(&server, &[target], &[], None, |_| None);
    let mut plan = Plan::closed(server, source, count);
    plan.tls = Some(tls::client_config(&arguments.trust, Protocol::H3)?);
    plan.protocol = Protocol::H3;
    plan.quic.requests_per_connection = Some(1);
    plan.quic.hold = true;
    let span =
        Span { warmup: arguments.opening, duration: Some(arguments.duration), requests: None };
    let pid = arguments.server_pid;
    // Just before the end, while all connections are there.
    let look = arguments.opening + arguments.duration.mul_f64(0.9);
    let looking = thread::spawn(move || {
        thread::sleep(look);
        process::memory(pid)
    });
    let measured = load::run(&[plan], &span, Some(&Meter::Process(pid)))?;
    let memory = looking
        .join()
        .map_err(|_| BenchError::Void("a thread of the measurement panicked".to_owned()))??;
    let tally = &measured.tallies[0];
    if tally.failed() > 0 || tally.reconnects > 0 {
        return Err(BenchError::Void(format!(
            "not all connections stayed: {} reopened, failures: {:?}",
            tally.reconnects, tally.failures
        )));
    }
    if tally.responses > 0 {
        return Err(BenchError::Void(format!(
            "{} connections were opened after the time for it: use a longer --opening",
            tally.responses
        )));
    }
    let usage = measured.server.unwrap_or_default();
    Ok((measured.elapsed.as_secs_f64(), usage, Some((u64::from(count), memory))))
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
    if let Some(connections) = &report.connections {
        let _ = writeln!(
            text,
            "QUIC      {} idle connections of {} each (must be at most {}): {}",
            report::thousands(connections.count as f64),
            report::bytes(connections.bytes_each as u64),
            report::bytes(connections.bytes_each_max as u64),
            verdict(connections.passed),
        );
    }
    text
}
