//! `compare shards`: one Outrider with one shard and one with several, on the same files and under the
//! same load, by server CPU. What each CPU delivers must not fall as there are more of them.
//!
//! The load runs on all CPUs that the larger server may use: two CPUs are enough, and what the load
//! costs the server (caches, wake-ups) is there in both halves.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Duration;

use outrider_artifact::Digest;
use serde::Serialize;

use crate::arguments::{CompareShardsArguments, Protocol, TrustArguments};
use crate::compare::order;
use crate::http::HttpClient;
use crate::image::{push_blob, random_bytes};
use crate::load::source::Source;
use crate::load::summary::Summary;
use crate::load::target::{self, Target};
use crate::load::{self, Meter, Plan, Span, tls};
use crate::peers::find;
use crate::peers::outrider::{self, Options, Outrider};
use crate::report::{self, Heading, Table, thousands};
use crate::statistics::{Ratio, Spread};
use crate::{BenchError, machine};

const WARMUP: Duration = Duration::from_millis(500);
const REPOSITORY: &str = "benchmark/files";
const RAM_BYTES: u64 = 512 << 20;
const SEED: u64 = 0x7368_6172_6473;
/// Files of each size: enough that each shard is home to its share of them.
const FILES: u64 = 32;
/// N shards must serve so much of N times what one does, for each CPU second.
const SHARE_MIN: f64 = 0.9;

struct Case {
    name: &'static str,
    protocol: Protocol,
    bytes: usize,
    /// For each CPU of the load.
    connections: u32,
    streams: u32,
}

const CASES: [Case; 4] = [
    Case { name: "h3 4 KiB", protocol: Protocol::H3, bytes: 4 << 10, connections: 16, streams: 4 },
    Case { name: "h3 4 MiB", protocol: Protocol::H3, bytes: 4 << 20, connections: 4, streams: 1 },
    Case {
        name: "HTTPS 4 KiB",
        protocol: Protocol::H1,
        bytes: 4 << 10,
        connections: 64,
        streams: 1,
    },
    Case {
        name: "HTTPS 4 MiB",
        protocol: Protocol::H1,
        bytes: 4 << 20,
        connections: 4,
        streams: 1,
    },
];

#[derive(Clone, Debug, Serialize)]
struct Report {
    outrider_version: String,
    shards: u32,
    cases: Vec<CaseReport>,
    passed: bool,
    notes: Vec<String>,
}

#[derive(Clone, Debug, Serialize)]
struct CaseReport {
    name: &'static str,
    /// MB of bodies for each server CPU second.
    one: Spread,
    several: Spread,
    /// Cores that the servers used.
    one_cores: f64,
    several_cores: f64,
    /// The share of answers that came to a shard which is not the home of what was asked for.
    elsewhere: f64,
    ratio: Ratio,
    /// As many times what one shard serves, if all of its CPUs are used up as that one's is.
    times: f64,
    passed: bool,
}

/// The verb.
///
/// # Errors
/// When the server is missing or fails, or requests failed.
pub fn verb(arguments: &CompareShardsArguments) -> Result<(), BenchError> {
    let usable = machine::usable();
    if !(0..arguments.shards as usize).all(|cpu| usable.contains(&cpu)) {
        return Err(BenchError::Argument(format!(
            "{} shards need as many CPUs, from CPU 0 on, of which {} may be used here",
            arguments.shards,
            usable.len()
        )));
    }
    let program = find(&arguments.outrider, outrider::INSTALL)?;
    let heading = Heading::new(format!(
        "compare shards: Outrider with 1 shard on CPU 0 and with {} on as many CPUs, load on all of \
         these, {FILES} files, {} interleaved pairs of {:.1} s after {:.1} s of warm-up",
        arguments.shards,
        arguments.pairs,
        arguments.duration.as_secs_f64(),
        WARMUP.as_secs_f64(),
    ));
    let folder = tempfile::tempdir().map_err(BenchError::io("making a folder"))?;
    let servers = [1, arguments.shards]
        .map(|shards| start(&program, &folder.path().join(format!("shards-{shards}")), shards));
    let [one, several] = servers;
    let (one, several) = (one?, several?);
    let mut bench = Bench { arguments, servers: [&one, &several], others_cores: 0.0 };
    let cases = CASES.iter().map(|case| bench.measure(case)).collect::<Result<Vec<_>, _>>()?;
    let mut notes = Vec::new();
    if bench.others_cores > 0.1 {
        notes.push(format!("other programs used up to {:.2} cores meanwhile", bench.others_cores));
    }
    let report = Report {
        outrider_version: super::version(&program, "--version"),
        shards: arguments.shards,
        passed: cases.iter().all(|case| case.passed),
        cases,
        notes,
    };
    heading.print(arguments.json, &text(&report), &report)
}

fn start(program: &Path, folder: &Path, shards: u32) -> Result<Outrider, BenchError> {
    fs::create_dir(folder).map_err(BenchError::io("making a folder"))?;
    // Several pin themselves to a CPU each, from the first on.
    let cpu = (shards == 1).then_some(0);
    let ram_bytes = Some(RAM_BYTES);
    let options = Options { ram_bytes, cpu, shards: Some(shards), ..Options::default() };
    Outrider::start(program, folder, &options)
}

struct Bench<'a> {
    arguments: &'a CompareShardsArguments,
    servers: [&'a Outrider; 2],
    others_cores: f64,
}

impl Bench<'_> {
    fn measure(&mut self, case: &Case) -> Result<CaseReport, BenchError> {
        let plans = [self.plan(case, self.servers[0])?, self.plan(case, self.servers[1])?];
        let span = Span { warmup: WARMUP, duration: Some(self.arguments.duration), requests: None };
        let (mut rates, mut cores) = ([vec![], vec![]], [vec![], vec![]]);
        let asked_before = self.asked_elsewhere()?;
        let mut answers = 0;
        for pair in 0..self.arguments.pairs {
            for index in order(2, pair) {
                let meter = Meter::Process(self.servers[index].pid());
                let plan = &plans[index];
                let measured = load::run(std::slice::from_ref(plan), &span, Some(&meter))?;
                let summary = Summary::new(plan, &measured.tallies[0], &measured);
                if summary.failed > 0 || summary.responses == 0 {
                    return Err(BenchError::Void(format!(
                        "{}: {} answers, failures: {:?}",
                        case.name, summary.responses, summary.failures
                    )));
                }
                let server = summary
                    .server
                    .ok_or_else(|| BenchError::Void("the server has no CPU time".to_owned()))?;
                self.others_cores = self.others_cores.max(summary.others_cores.unwrap_or_default());
                rates[index].push(server.body_bytes_per_cpu_s / 1e6);
                cores[index].push(server.cores);
                answers += if index == 1 { summary.responses } else { 0 };
            }
            report::progress(&format!(
                "{}, pair {} of {}: 1 shard {}, {} shards {} MB per server CPU second",
                case.name,
                pair + 1,
                self.arguments.pairs,
                thousands(rates[0][pair as usize]),
                self.arguments.shards,
                thousands(rates[1][pair as usize]),
            ));
        }
        let elsewhere = self.asked_elsewhere()?.saturating_sub(asked_before);
        let void = || BenchError::Void("a server used no CPU time".to_owned());
        let spread = |values: &[f64]| Spread::of(values).ok_or_else(void);
        let ratio = Ratio::of(&rates[1], &rates[0]).ok_or_else(void)?;
        Ok(CaseReport {
            name: case.name,
            one: spread(&rates[0])?,
            several: spread(&rates[1])?,
            one_cores: spread(&cores[0])?.median,
            several_cores: spread(&cores[1])?.median,
            // Those of the warm-up are among what was asked, and not among the answers.
            elsewhere: (elsewhere as f64 / answers.max(1) as f64).min(1.0),
            times: ratio.of_medians * f64::from(self.arguments.shards),
            passed: ratio.of_medians >= SHARE_MIN,
            ratio,
        })
    }

    fn plan(&self, case: &Case, server: &Outrider) -> Result<Plan, BenchError> {
        let mut targets: Vec<Target> = Vec::new();
        let mut address = None;
        for file in 0..FILES {
            let content = random_bytes(SEED ^ file ^ case.bytes as u64, case.bytes);
            let digest = Digest::sha256(&content);
            push_blob(&mut HttpClient::new(server.http), REPOSITORY, &digest, &content)?;
            let url = format!("https://{}/v2/{REPOSITORY}/blobs/{digest}", server.https);
            let (parsed, target) = target::parse(&url)?;
            address = Some(parsed);
            targets.push(target);
        }
        let address = address.ok_or_else(|| BenchError::Void("there are no files".to_owned()))?;
        let source =
            Source::round_robin(&address, &targets, &[], Some(case.bytes as u64), |_| None);
        let mut plan = Plan::closed(address, source, case.connections * self.arguments.shards);
        plan.protocol = case.protocol;
        plan.streams = case.streams;
        // One is started by this program itself.
        let trust = TrustArguments { ca: None, insecure: true };
        plan.tls = Some(tls::client_config(&trust, case.protocol)?);
        plan.threads = self.arguments.shards;
        plan.pin = Some(0);
        Ok(plan)
    }

    /// Requests whose content another shard has, by the larger server's own account.
    fn asked_elsewhere(&self) -> Result<u64, BenchError> {
        let mut client = HttpClient::new(self.servers[1].admin);
        let (head, body) = client.request_all("GET", "/metrics", &[], &[])?;
        if head.status != 200 {
            return Err(BenchError::Protocol(format!("/metrics is answered {}", head.status)));
        }
        let body = String::from_utf8_lossy(&body).into_owned();
        let of = |name: &str| {
            let line = body.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.and_then(|number| number.trim().parse::<u64>().ok()).unwrap_or_default()
        };
        Ok(of("outrider_table_hits_total") + of("outrider_mesh_questions_total"))
    }
}

fn text(report: &Report) -> String {
    let mut text = format!("{}, MB per server CPU second\n\n", report.outrider_version);
    let several = format!("{} shards", report.shards);
    let wanted = format!("≥ {:.1}", SHARE_MIN * f64::from(report.shards));
    let mut table = Table::new([
        "",
        "1 shard",
        "cores",
        &several,
        "cores",
        "elsewhere",
        "times",
        "worst pair",
        "must be",
        "",
    ]);
    for case in &report.cases {
        table.row([
            case.name.to_owned(),
            thousands(case.one.median),
            format!("{:.2}", case.one_cores),
            thousands(case.several.median),
            format!("{:.2}", case.several_cores),
            format!("{:.0} %", case.elsewhere * 100.0),
            format!("{:.2} ×", case.times),
            format!("{:.2} ×", case.ratio.of_pairs.min * f64::from(report.shards)),
            wanted.clone(),
            if case.passed { "passed" } else { "MISSED" }.to_owned(),
        ]);
    }
    text.push_str(&table.render());
    for note in &report.notes {
        let _ = writeln!(text, "\nNOTE  {note}");
    }
    text
}
