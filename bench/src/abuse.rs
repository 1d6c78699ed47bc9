//! `abuse`: what hostile clients do to the others. Open loops of HTTP/3 and of HTTPS with and without each
//! attack, interleaved in one run; and what the server's memory does meanwhile.

mod assailant;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use outrider_artifact::Digest;
use outrider_hostile::{Attack, Target};
use serde::Serialize;

use crate::arguments::{AbuseArguments, Protocol, TrustArguments};
use crate::http::HttpClient;
use crate::image::{push_blob, random_bytes};
use crate::load::source::Source;
use crate::load::summary::Summary;
use crate::load::{self, Meter, Plan, Span, target, tls};
use crate::peers::find;
use crate::peers::outrider::{self, Options, Outrider};
use crate::report::{self, Heading, Table};
use crate::statistics::Spread;
use crate::{BenchError, compare, machine, process};
use assailant::{Assailant, Done};

const WARMUP: Duration = Duration::from_millis(500);
const REPOSITORY: &str = "benchmark/files";
const RAM_BYTES: u64 = 512 << 20;
const SEED: u64 = 0x6f75_7472_6964_6572;
const SMALL_BYTES: usize = 4 << 10;
const LARGE_BYTES: usize = 64 << 20;
/// The p99 of others beside an attack must be at most so many times what it is without.
const RATIO_MAX: f64 = 2.0;
/// How often the server's memory is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// How long the server is left alone after an attack: what it holds of it has to go.
const REST: Duration = Duration::from_millis(1500);

/// Strikes a second that are asked for where nothing else is: enough to be seen in the server's CPU time,
/// and few enough that the load, which shares its CPU with the attack, stays on time.
fn rate_per_s(attack: Attack) -> f64 {
    match attack {
        Attack::Garbage => 20_000.0,
        Attack::Resets
        | Attack::Migrations
        | Attack::Gaps
        | Attack::EndlessHeads
        | Attack::UnknownFrames => 5_000.0,
        _ => 2_000.0,
    }
}

#[derive(Clone, Debug, Serialize)]
struct Report {
    outrider_version: String,
    h3_rate_per_s: f64,
    https_rate_per_s: f64,
    ratio_max: f64,
    attacks: Vec<Row>,
}

#[derive(Clone, Debug, Serialize)]
struct Row {
    attack: &'static str,
    strikes_per_s: f64,
    connections_per_s: f64,
    attacker_cores: f64,
    server_cores_alone: f64,
    server_cores_beside: f64,
    h3: Pair,
    https: Pair,
    resident_bytes_before: u64,
    resident_bytes_max: u64,
    resident_bytes_after: u64,
    /// The most that was seen of what is counted, and the bounds.
    counted_bytes_max: u64,
    counted_bytes_bound: u64,
    pinned_bytes_max: u64,
    pinned_bytes_bound: u64,
    /// How the server ended the attacker's connections.
    closed: BTreeMap<String, u64>,
    /// Requests of others that failed, in any run.
    failed: u64,
    p99_passed: bool,
    memory_passed: bool,
}

/// p99 of one kind of client.
#[derive(Clone, Debug, Serialize)]
struct Pair {
    alone_us: Spread,
    beside_us: Spread,
    ratio: f64,
    /// Of it what the client itself was late with, medians.
    lag_alone_us: f64,
    lag_beside_us: f64,
}

#[derive(Debug, Default)]
struct Samples {
    p99_us: [Vec<f64>; 2],
    lag_us: [Vec<f64>; 2],
    cores: Vec<f64>,
}

impl Samples {
    fn note(&mut self, beside: bool, summary: &Summary) {
        let p99 =
            |latency: Option<load::latency::LatencySummary>| latency.map_or(0.0, |l| l.p99_us);
        self.p99_us[usize::from(beside)].push(p99(summary.latency));
        self.lag_us[usize::from(beside)].push(p99(summary.send_lag));
    }

    fn pair(&self) -> Option<Pair> {
        let [alone_us, beside_us] = [Spread::of(&self.p99_us[0])?, Spread::of(&self.p99_us[1])?];
        Some(Pair {
            alone_us,
            beside_us,
            ratio: beside_us.median / alone_us.median,
            lag_alone_us: Spread::of(&self.lag_us[0])?.median,
            lag_beside_us: Spread::of(&self.lag_us[1])?.median,
        })
    }
}

/// The verb.
///
/// # Errors
/// When the server is missing or ends, or nothing could be measured.
pub fn verb(arguments: &AbuseArguments) -> Result<(), BenchError> {
    for cpu in [arguments.server_cpu, arguments.load_cpu] {
        if !machine::usable().contains(&cpu) {
            return Err(BenchError::Argument(format!(
                "CPU {cpu} is not one that may be used here"
            )));
        }
    }
    let program = find(&arguments.outrider, outrider::INSTALL)?;
    let heading = Heading::new(format!(
        "abuse: Outrider on CPU {}; load and attacks on CPU {}, the attacks with what that leaves; HTTP/3 at {}/s and \
         HTTPS at {}/s of 4 KiB, {} interleaved pairs of {:.1} s after {:.1} s of warm-up",
        arguments.server_cpu,
        arguments.load_cpu,
        arguments.h3_rate,
        arguments.https_rate,
        arguments.pairs,
        arguments.duration.as_secs_f64(),
        WARMUP.as_secs_f64(),
    ));
    let mut attacks = arguments.only.clone();
    if attacks.is_empty() {
        attacks.extend(Attack::ALL);
    }
    let mut rows = Vec::new();
    for attack in attacks {
        // A server of its own for each: what one leaves behind is not the next one's.
        let row = Bench::new(arguments, attack)?.row(attack)?;
        report::progress(&format!(
            "{}: HTTP/3 p99 {:.2} ×, HTTPS p99 {:.2} × of without",
            row.attack, row.h3.ratio, row.https.ratio
        ));
        rows.push(row);
    }
    let report = Report {
        outrider_version: compare::version(&program, "--version"),
        h3_rate_per_s: arguments.h3_rate,
        https_rate_per_s: arguments.https_rate,
        ratio_max: RATIO_MAX,
        attacks: rows,
    };
    heading.print(arguments.json, &text(&report), &report)
}

struct Bench<'a> {
    arguments: &'a AbuseArguments,
    // In this order: the server ends before its folder goes.
    outrider: Outrider,
    _folder: tempfile::TempDir,
    plans: [Plan; 2],
    target: Target,
}

impl<'a> Bench<'a> {
    fn new(arguments: &'a AbuseArguments, attack: Attack) -> Result<Self, BenchError> {
        let program = find(&arguments.outrider, outrider::INSTALL)?;
        let folder = tempfile::tempdir().map_err(BenchError::io("making a folder"))?;
        let data = folder.path().join("outrider");
        fs::create_dir(&data).map_err(BenchError::io("making a folder"))?;
        let cpu = Some(arguments.server_cpu);
        let options = Options { ram_bytes: Some(RAM_BYTES), cpu, ..Options::default() };
        let outrider = Outrider::start(&program, &data, &options)?;
        let mut paths = Vec::new();
        for bytes in [SMALL_BYTES, LARGE_BYTES] {
            let content = random_bytes(SEED ^ bytes as u64, bytes);
            let digest = Digest::sha256(&content);
            push_blob(&mut HttpClient::new(outrider.http), REPOSITORY, &digest, &content)?;
            paths.push(format!("/v2/{REPOSITORY}/blobs/{digest}"));
        }
        let trust = TrustArguments { ca: None, insecure: true };
        let tls = tls::client_config(&trust, Protocol::H3)?;
        // Whoever reads slowly asks for what is large.
        let path = paths[usize::from(attack == Attack::SlowReaders)].clone();
        let target = Target { server: outrider.https, tls, path, readers: arguments.readers };
        let plan = |protocol, connections, streams, rate| {
            let url = format!("https://{}{}", outrider.https, paths[0]);
            let (server, target) = target::parse(&url)?;
            let length = Some(SMALL_BYTES as u64);
            let source = Source::round_robin(&server, &[target], &[], length, |_| None);
            let mut plan = Plan::closed(server, source, connections);
            plan.protocol = protocol;
            plan.tls = Some(tls::client_config(&trust, protocol)?);
            plan.pin = Some(arguments.load_cpu);
            plan.streams = streams;
            plan.rate_per_s = Some(rate);
            Ok::<Plan, BenchError>(plan)
        };
        let plans = [
            plan(Protocol::H3, 4, 16, arguments.h3_rate)?,
            plan(Protocol::H1, 8, 1, arguments.https_rate)?,
        ];
        Ok(Self { arguments, outrider, _folder: folder, plans, target })
    }

    fn run(&self, samples: &mut [Samples; 2], beside: bool) -> Result<u64, BenchError> {
        let span = Span { warmup: WARMUP, duration: Some(self.arguments.duration), requests: None };
        let meter = Meter::Process(self.outrider.pid());
        let measured = load::run(&self.plans, &span, Some(&meter))?;
        let mut failed = 0;
        for ((plan, tally), samples) in self.plans.iter().zip(&measured.tallies).zip(samples) {
            let summary = Summary::new(plan, tally, &measured);
            if summary.responses == 0 {
                return Err(BenchError::Void(format!("no answers: {:?}", summary.failures)));
            }
            failed += summary.failed + summary.unanswered;
            samples.note(beside, &summary);
            samples.cores.extend(summary.server.map(|server| server.cores));
        }
        Ok(failed)
    }

    fn row(&self, attack: Attack) -> Result<Row, BenchError> {
        let pid = self.outrider.pid();
        let rate = self.arguments.attack_rate.unwrap_or_else(|| rate_per_s(attack));
        let mut samples: [Samples; 2] = Default::default();
        let (mut done, mut failed) = (Vec::new(), 0);
        let (mut cores_alone, mut cores_beside) = (Vec::new(), Vec::new());
        // Once before anything is measured, so that memory that is only then touched does not count.
        self.run(&mut Default::default(), false)?;
        let before = process::memory(pid)?.resident_bytes;
        let mut seen = Seen::default();
        for _ in 0..self.arguments.pairs {
            // In both halves, since looking costs something, too.
            let watch = Watch::start(pid);
            failed += self.run(&mut samples, false)?;
            cores_alone.append(&mut samples[0].cores);
            let assailant =
                Assailant::start(attack, self.target.clone(), rate, self.arguments.load_cpu)?;
            seen.look(&self.outrider);
            failed += self.run(&mut samples, true)?;
            cores_beside.append(&mut samples[0].cores);
            seen.look(&self.outrider);
            done.push(assailant.stop()?);
            seen.resident_bytes = seen.resident_bytes.max(watch.stop());
            thread::sleep(REST);
        }
        let after = process::memory(pid)?.resident_bytes;
        seen.look(&self.outrider);
        let void = || BenchError::Void("there are no pairs".to_owned());
        let (h3, https) =
            (samples[0].pair().ok_or_else(void)?, samples[1].pair().ok_or_else(void)?);
        let mean =
            |of: &dyn Fn(&Done) -> f64| done.iter().map(of).sum::<f64>() / done.len().max(1) as f64;
        let median = |values: &[f64]| Spread::of(values).map_or(0.0, |spread| spread.median);
        let mut closed = BTreeMap::new();
        for (why, count) in done.iter().flat_map(|done| &done.closed) {
            *closed.entry(why.clone()).or_default() += *count;
        }
        let p99_passed = h3.ratio <= RATIO_MAX && https.ratio <= RATIO_MAX && failed == 0;
        let grown = seen.resident_bytes.saturating_sub(before);
        let memory_passed = grown <= seen.counted_bound
            && seen.counted_bytes <= seen.counted_bound
            && seen.pinned_bytes <= seen.pinned_bound;
        Ok(Row {
            attack: attack.name(),
            strikes_per_s: mean(&|done| done.strikes_per_s),
            connections_per_s: mean(&|done| done.connections_per_s),
            attacker_cores: mean(&|done| done.cores),
            server_cores_alone: median(&cores_alone),
            server_cores_beside: median(&cores_beside),
            h3,
            https,
            resident_bytes_before: before,
            resident_bytes_max: seen.resident_bytes,
            resident_bytes_after: after,
            counted_bytes_max: seen.counted_bytes,
            counted_bytes_bound: seen.counted_bound,
            pinned_bytes_max: seen.pinned_bytes,
            pinned_bytes_bound: seen.pinned_bound,
            closed,
            failed,
            p99_passed,
            memory_passed,
        })
    }
}

/// The most that the server said of itself.
#[derive(Debug, Default)]
struct Seen {
    resident_bytes: u64,
    counted_bytes: u64,
    counted_bound: u64,
    pinned_bytes: u64,
    pinned_bound: u64,
}

impl Seen {
    fn look(&mut self, outrider: &Outrider) {
        let mut text = Vec::new();
        let sink = |bytes: &[u8]| text.extend_from_slice(bytes);
        let asked = HttpClient::new(outrider.admin).request("GET", "/metrics", &[], b"", sink);
        if asked.is_err() {
            return;
        }
        let text = String::from_utf8_lossy(&text);
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.and_then(|value| value.parse::<u64>().ok()).unwrap_or_default()
        };
        self.counted_bytes = self.counted_bytes.max(value("outrider_transport_quic_memory_bytes"));
        self.counted_bound = value("outrider_transport_quic_memory_bytes_max");
        self.pinned_bytes = self.pinned_bytes.max(value("outrider_transport_pinned_bytes"));
        self.pinned_bound = value("outrider_transport_pinned_bytes_max");
    }
}

/// Looks at a process's memory until it is told to stop.
struct Watch {
    over: Arc<AtomicBool>,
    most: Arc<AtomicU64>,
    thread: thread::JoinHandle<()>,
}

impl Watch {
    fn start(pid: u32) -> Self {
        let (over, most) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let thread = {
            let (over, most) = (Arc::clone(&over), Arc::clone(&most));
            thread::spawn(move || {
                let begun = Instant::now();
                while !over.load(Ordering::Relaxed) && begun.elapsed() < Duration::from_secs(3600) {
                    if let Ok(memory) = process::memory(pid) {
                        most.fetch_max(memory.resident_bytes, Ordering::Relaxed);
                    }
                    thread::sleep(LOOK);
                }
            })
        };
        Self { over, most, thread }
    }

    fn stop(self) -> u64 {
        self.over.store(true, Ordering::Relaxed);
        let _ = self.thread.join();
        self.most.load(Ordering::Relaxed)
    }
}

fn text(report: &Report) -> String {
    let mut table = Table::new([
        "attack",
        "strikes/s",
        "conn./s",
        "server cores",
        "HTTP/3 p99",
        "beside",
        "",
        "HTTPS p99",
        "beside",
        "",
        "memory",
        "at most",
        "after",
        "counted",
        "pinned",
        "",
    ]);
    let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
    for row in &report.attacks {
        let verdict = match (row.p99_passed, row.memory_passed) {
            (true, true) => "passed",
            (false, true) => "MISSED p99",
            (true, false) => "MISSED memory",
            (false, false) => "MISSED both",
        };
        table.row([
            row.attack.to_owned(),
            report::thousands(row.strikes_per_s),
            report::thousands(row.connections_per_s),
            format!("{:.2} → {:.2}", row.server_cores_alone, row.server_cores_beside),
            report::micros(row.h3.alone_us.median),
            report::micros(row.h3.beside_us.median),
            format!("{:.2} ×", row.h3.ratio),
            report::micros(row.https.alone_us.median),
            report::micros(row.https.beside_us.median),
            format!("{:.2} ×", row.https.ratio),
            mib(row.resident_bytes_before),
            mib(row.resident_bytes_max),
            mib(row.resident_bytes_after),
            mib(row.counted_bytes_max),
            mib(row.pinned_bytes_max),
            verdict.to_owned(),
        ]);
    }
    let mut text = format!("{}\n\n{}\n", report.outrider_version, table.render());
    for row in &report.attacks {
        let _ = writeln!(
            text,
            "{}: the client itself was late by {} (HTTP/3) and {} (HTTPS) of p99, without the attack by {} and \
             {}; {:.2} cores attacked; {} requests of others failed",
            row.attack,
            report::micros(row.h3.lag_beside_us),
            report::micros(row.https.lag_beside_us),
            report::micros(row.h3.lag_alone_us),
            report::micros(row.https.lag_alone_us),
            row.attacker_cores,
            row.failed,
        );
        for (why, count) in &row.closed {
            let _ = writeln!(text, "    {count} connections were ended: {why}");
        }
    }
    text
}
