//! `compare https`: nginx and Outrider serve the same bytes over TLS 1.3 with AES-128-GCM from one
//! core each in turn, to the same client on another core. What counts is what a server delivers for
//! a second of its own CPU time, since that does not depend on how fast the client is.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use outrider_artifact::Digest;
use serde::Serialize;

use super::{order, version};
use crate::arguments::{CompareHttpsArguments, Protocol, TrustArguments};
use crate::http::HttpClient;
use crate::image::{push_blob, random_bytes};
use crate::load::source::Source;
use crate::load::summary::Summary;
use crate::load::{self, Meter, Plan, Span, target, tls};
use crate::peers::nginx::Nginx;
use crate::peers::outrider::{Options, Outrider};
use crate::peers::{find, nginx, outrider};
use crate::report::{self, Heading, Table};
use crate::statistics::{Ratio, Spread};
use crate::{BenchError, machine};

const WARMUP: Duration = Duration::from_millis(500);
/// Where the files are in Outrider.
const REPOSITORY: &str = "benchmark/files";
/// Outrider's arena: everything that is downloaded stays in memory.
const RAM_BYTES: u64 = 512 << 20;
/// Others that used more than this in a half of a pair disturbed it.
const OTHERS_CORES_MAX: f64 = 0.1;
/// The seed of the files' bytes.
const SEED: u64 = 0x6f75_7472_6964_6572;

/// What is downloaded.
#[derive(Clone, Copy, Debug)]
struct Workload {
    name: &'static str,
    file: &'static str,
    bytes: usize,
    connections: u32,
    /// Measured in bytes, or in answers.
    by_bytes: bool,
    /// What the ratio to nginx must be at least.
    ratio_min: f64,
}

const WORKLOADS: [Workload; 2] = [
    Workload {
        name: "64 MiB",
        file: "large",
        bytes: 64 << 20,
        connections: 4,
        by_bytes: true,
        ratio_min: 1.3,
    },
    Workload {
        name: "4 KiB keep-alive",
        file: "small",
        bytes: 4 << 10,
        connections: 8,
        by_bytes: false,
        ratio_min: 0.75,
    },
];

/// The result of one workload.
#[derive(Clone, Debug, Serialize)]
struct Comparison {
    workload: String,
    unit: &'static str,
    connections: u32,
    nginx: Spread,
    outrider: Spread,
    ratio: Ratio,
    ratio_min: f64,
    passed: bool,
    /// By pair: what was measured.
    nginx_runs: Vec<Summary>,
    outrider_runs: Vec<Summary>,
}

#[derive(Clone, Debug, Serialize)]
struct Report {
    nginx_version: String,
    outrider_version: String,
    comparisons: Vec<Comparison>,
    notes: Vec<String>,
}

/// The verb.
///
/// # Errors
/// When a server is missing or fails, or a request failed in a half that is measured.
pub fn verb(arguments: &CompareHttpsArguments) -> Result<(), BenchError> {
    for cpu in [arguments.server_cpu, arguments.load_cpu] {
        if !machine::usable().contains(&cpu) {
            return Err(BenchError::Argument(format!(
                "CPU {cpu} is not one that may be used here"
            )));
        }
    }
    let nginx_program = find("nginx".as_ref(), nginx::INSTALL)?;
    let outrider_program = find(&arguments.outrider, outrider::INSTALL)?;
    let heading = Heading::new(format!(
        "compare https: HTTPS/1.1 downloads, TLS 1.3 AES-128-GCM, servers on CPU {}, load ({:?}) on CPU {}, \
         {} interleaved pairs of {:.1} s after {:.1} s of warm-up",
        arguments.server_cpu,
        arguments.client,
        arguments.load_cpu,
        arguments.pairs,
        arguments.duration.as_secs_f64(),
        WARMUP.as_secs_f64(),
    ));
    let folder = tempfile::tempdir().map_err(BenchError::io("making a folder"))?;
    let cpu = Some(arguments.server_cpu);
    let nginx = Nginx::start(&subfolder(folder.path(), "nginx")?, cpu)?;
    let options = Options { ram_bytes: Some(RAM_BYTES), cpu, ..Options::default() };
    let outrider =
        Outrider::start(&outrider_program, &subfolder(folder.path(), "outrider")?, &options)?;

    let mut comparisons = Vec::new();
    for workload in &WORKLOADS {
        comparisons.push(compare(arguments, workload, &nginx, &outrider)?);
    }
    let notes = notes(&comparisons);
    let report = Report {
        nginx_version: version(&nginx_program, "-v"),
        outrider_version: version(&outrider_program, "--version"),
        comparisons,
        notes,
    };
    heading.print(arguments.json, &text(&report), &report)
}

fn subfolder(folder: &std::path::Path, name: &str) -> Result<std::path::PathBuf, BenchError> {
    let path = folder.join(name);
    fs::create_dir(&path).map_err(BenchError::io(format!("making {}", path.display())))?;
    Ok(path)
}

fn compare(
    arguments: &CompareHttpsArguments,
    workload: &Workload,
    nginx: &Nginx,
    outrider: &Outrider,
) -> Result<Comparison, BenchError> {
    let bytes = random_bytes(SEED ^ workload.bytes as u64, workload.bytes);
    let digest = Digest::sha256(&bytes);
    let file = nginx.root.join(workload.file);
    fs::write(&file, &bytes).map_err(BenchError::io(format!("writing {}", file.display())))?;
    push_blob(&mut HttpClient::new(outrider.http), REPOSITORY, &digest, &bytes)?;

    let blob_path = format!("v2/{REPOSITORY}/blobs/{digest}");
    let contenders = [
        (nginx.pid(), plan(nginx.https, workload.file, workload, arguments)?),
        (outrider.pid(), plan(outrider.https, &blob_path, workload, arguments)?),
    ];
    for (_, plan) in &contenders {
        verify(plan, digest)?;
    }

    let span = Span { warmup: WARMUP, duration: Some(arguments.duration), requests: None };
    let mut runs = [Vec::new(), Vec::new()];
    for pair in 0..arguments.pairs {
        for index in order(contenders.len(), pair) {
            let (pid, plan) = &contenders[index];
            let measured =
                load::run(std::slice::from_ref(plan), &span, Some(&Meter::Process(*pid)))?;
            let summary = Summary::new(plan, &measured.tallies[0], &measured);
            if summary.failed > 0 || summary.responses == 0 {
                return Err(BenchError::Void(format!(
                    "{} from {}: {} answers, failures: {:?}",
                    workload.name, plan.server.authority, summary.responses, summary.failures
                )));
            }
            runs[index].push(summary);
        }
        report::progress(&format!(
            "{}, pair {} of {}: nginx {}, outrider {} {}",
            workload.name,
            pair + 1,
            arguments.pairs,
            shown(value(workload, &runs[0][pair as usize])),
            shown(value(workload, &runs[1][pair as usize])),
            unit(workload),
        ));
    }
    let [nginx_runs, outrider_runs] = runs;
    let values =
        |runs: &[Summary]| runs.iter().map(|run| value(workload, run)).collect::<Vec<f64>>();
    let (of_nginx, of_outrider) = (values(&nginx_runs), values(&outrider_runs));
    let void = || BenchError::Void("a server used no CPU time".to_owned());
    let ratio = Ratio::of(&of_outrider, &of_nginx).ok_or_else(void)?;
    Ok(Comparison {
        workload: workload.name.to_owned(),
        unit: unit(workload),
        connections: workload.connections,
        nginx: Spread::of(&of_nginx).ok_or_else(void)?,
        outrider: Spread::of(&of_outrider).ok_or_else(void)?,
        ratio,
        ratio_min: workload.ratio_min,
        passed: ratio.of_medians >= workload.ratio_min,
        nginx_runs,
        outrider_runs,
    })
}

fn plan(
    address: SocketAddr,
    path: &str,
    workload: &Workload,
    arguments: &CompareHttpsArguments,
) -> Result<Plan, BenchError> {
    let (server, target) = target::parse(&format!("https://{address}/{path}"))?;
    let length = Some(workload.bytes as u64);
    let source = Source::round_robin(&server, &[target], &[], length, |_| None);
    // Both are servers that this program started itself.
    let trust = TrustArguments { ca: None, insecure: true };
    let tls = tls::client_config(&trust, Protocol::H1)?;
    let mut plan = Plan::closed(server, source, workload.connections);
    plan.tls = Some(tls);
    plan.pin = Some(arguments.load_cpu);
    plan.client = arguments.client;
    plan.reading = arguments.reading.reading();
    Ok(plan)
}

/// A few downloads with their digests checked, before speed counts.
fn verify(plan: &Plan, digest: Digest) -> Result<(), BenchError> {
    let (server, target) =
        target::parse(&format!("https://{}{}", plan.server.authority, path(plan)))?;
    let source = Source::round_robin(&server, &[target], &[], None, |_| Some(digest));
    let plan = Plan { source, connections: 1, ..plan.clone() };
    let span = Span { warmup: Duration::ZERO, duration: None, requests: Some(2) };
    let measured = load::run(std::slice::from_ref(&plan), &span, None)?;
    let tally = &measured.tallies[0];
    if tally.failed() > 0 {
        return Err(BenchError::Void(format!(
            "{} does not serve the right bytes: {:?}",
            plan.server.authority, tally.failures
        )));
    }
    Ok(())
}

fn path(plan: &Plan) -> String {
    plan.source.clone().next_path().map(|(path, _)| path).unwrap_or_default()
}

fn value(workload: &Workload, run: &Summary) -> f64 {
    run.server.map_or(0.0, |server| match workload.by_bytes {
        true => server.body_bytes_per_cpu_s / 1e6,
        false => server.responses_per_cpu_s,
    })
}

fn unit(workload: &Workload) -> &'static str {
    if workload.by_bytes { "MB per server CPU second" } else { "answers per server CPU second" }
}

fn shown(value: f64) -> String {
    report::thousands(value)
}

fn notes(comparisons: &[Comparison]) -> Vec<String> {
    let mut notes = Vec::new();
    for comparison in comparisons {
        let runs = comparison.nginx_runs.iter().chain(&comparison.outrider_runs);
        let others: Vec<f64> = runs.clone().filter_map(|run| run.others_cores).collect();
        let most = others.iter().copied().fold(0.0, f64::max);
        if most > OTHERS_CORES_MAX {
            notes.push(format!(
                "{}: other programs used up to {most:.2} cores in a half of a pair",
                comparison.workload
            ));
        }
        let mut ciphers: Vec<&str> = runs.filter_map(|run| run.cipher.as_deref()).collect();
        ciphers.dedup();
        if ciphers != ["TLS13_AES_128_GCM_SHA256"] {
            notes.push(format!("{}: not the same cipher: {ciphers:?}", comparison.workload));
        }
    }
    if cfg!(debug_assertions) {
        notes.push("the load is a debug build".to_owned());
    }
    notes
}

fn text(report: &Report) -> String {
    let mut text = format!("{}; {}\n\n", report.nginx_version, report.outrider_version);
    let mut table = Table::new([
        "",
        "server",
        "min",
        "median",
        "max",
        "Gbit/s",
        "answers/s",
        "server cores",
        "load cores",
        "p50",
        "p99",
        "unit",
    ]);
    for comparison in &report.comparisons {
        for (name, spread, runs) in [
            ("nginx", &comparison.nginx, &comparison.nginx_runs),
            ("outrider", &comparison.outrider, &comparison.outrider_runs),
        ] {
            let median = |of: &dyn Fn(&Summary) -> f64| {
                Spread::of(&runs.iter().map(of).collect::<Vec<f64>>())
                    .map_or(f64::NAN, |spread| spread.median)
            };
            let latency = |of: &dyn Fn(&Summary) -> Option<f64>| {
                report::micros(median(&|run| of(run).unwrap_or_default()))
            };
            table.row([
                comparison.workload.clone(),
                name.to_owned(),
                shown(spread.min),
                shown(spread.median),
                shown(spread.max),
                format!("{:.2}", median(&|run| run.body_bytes_per_s * 8.0 / 1e9)),
                report::thousands(median(&|run| run.responses_per_s)),
                format!("{:.2}", median(&|run| run.server.map_or(0.0, |server| server.cores))),
                format!("{:.2}", median(&|run| run.client_cores)),
                latency(&|run| Some(run.latency?.p50_us)),
                latency(&|run| Some(run.latency?.p99_us)),
                comparison.unit.to_owned(),
            ]);
        }
    }
    text.push_str(&table.render());
    text.push('\n');
    let mut ratios = Table::new([
        "outrider / nginx",
        "of medians",
        "worst pair",
        "median pair",
        "best pair",
        "must be",
        "",
    ]);
    for comparison in &report.comparisons {
        let ratio = &comparison.ratio;
        ratios.row([
            comparison.workload.clone(),
            format!("{:.3}", ratio.of_medians),
            format!("{:.3}", ratio.of_pairs.min),
            format!("{:.3}", ratio.of_pairs.median),
            format!("{:.3}", ratio.of_pairs.max),
            format!("≥ {}", comparison.ratio_min),
            if comparison.passed { "passed" } else { "MISSED" }.to_owned(),
        ]);
    }
    text.push_str(&ratios.render());
    for note in &report.notes {
        let _ = writeln!(text, "\nNOTE  {note}");
    }
    text
}
