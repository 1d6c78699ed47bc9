//! `compare mixed`: what one kind of client does to another on one server, with each alone in the same
//! run: HTTPS beside HTTP/3 that keeps the shard busy, and a download beside clients that come and go.

use std::fmt::Write as _;
use std::fs;
use std::time::Duration;

use outrider_artifact::Digest;
use serde::Serialize;

use crate::arguments::{CompareMixedArguments, Protocol, TrustArguments};
use crate::http::HttpClient;
use crate::image::{push_blob, random_bytes};
use crate::load::source::Source;
use crate::load::summary::Summary;
use crate::load::{self, Meter, Plan, Span, target, tls};
use crate::peers::find;
use crate::peers::outrider::{self, Options, Outrider};
use crate::report::{self, Heading, Table};
use crate::statistics::Spread;
use crate::{BenchError, machine};

const WARMUP: Duration = Duration::from_millis(500);
const REPOSITORY: &str = "benchmark/files";
const RAM_BYTES: u64 = 512 << 20;
const SEED: u64 = 0x6f75_7472_6964_6572;
const SMALL_BYTES: usize = 4 << 10;
const LARGE_BYTES: usize = 64 << 20;
/// HTTPS p99 beside HTTP/3 must be at most this, and at most so many times what it is alone.
const HTTPS_P99_US_MAX: f64 = 20_000.0;
/// See [`HTTPS_P99_US_MAX`].
const HTTPS_P99_RATIO_MAX: f64 = 3.0;
/// New connections may slow a download down so many times.
const SLOWER_MAX: f64 = 2.0;

#[derive(Clone, Debug, Serialize)]
struct Report {
    outrider_version: String,
    /// HTTP/3 answers for each second of the server's CPU, saturated.
    h3_answers_per_cpu_s: f64,
    /// HTTP/3 answers a second that were offered beside HTTPS.
    h3_offered_per_s: f64,
    /// Of the server's CPU, HTTP/3 and HTTPS together took so much.
    server_cores_beside: Spread,
    https_alone_p99_us: Spread,
    https_beside_p99_us: Spread,
    https_ratio: f64,
    https_passed: bool,
    /// HTTP/3 requests that were due and not answered.
    h3_unanswered: u64,
    download_alone_bytes_per_s: Spread,
    download_beside_bytes_per_s: Spread,
    /// New connections a second that there were.
    new_connections_per_s: Spread,
    slower: f64,
    download_passed: bool,
    notes: Vec<String>,
}

/// The verb.
///
/// # Errors
/// When the server is missing or fails, or requests failed.
pub fn verb(arguments: &CompareMixedArguments) -> Result<(), BenchError> {
    for cpu in [arguments.server_cpu, arguments.load_cpu] {
        if !machine::usable().contains(&cpu) {
            return Err(BenchError::Argument(format!(
                "CPU {cpu} is not one that may be used here"
            )));
        }
    }
    let program = find(&arguments.outrider, outrider::INSTALL)?;
    let heading = Heading::new(format!(
        "compare mixed: Outrider on CPU {}, all load on CPU {}, {} interleaved pairs of {:.1} s after \
         {:.1} s of warm-up",
        arguments.server_cpu,
        arguments.load_cpu,
        arguments.pairs,
        arguments.duration.as_secs_f64(),
        WARMUP.as_secs_f64(),
    ));
    let folder = tempfile::tempdir().map_err(BenchError::io("making a folder"))?;
    let data = folder.path().join("outrider");
    fs::create_dir(&data).map_err(BenchError::io("making a folder"))?;
    let cpu = Some(arguments.server_cpu);
    let options = Options { ram_bytes: Some(RAM_BYTES), cpu, ..Options::default() };
    let outrider = Outrider::start(&program, &data, &options)?;
    let mut bench = Bench::new(arguments, outrider)?;

    let saturated = bench.run(&[bench.h3_small(None)?])?.remove(0);
    let per_cpu_s = saturated.server.map_or(0.0, |server| server.responses_per_cpu_s);
    let offered = per_cpu_s * arguments.share;
    report::progress(&format!(
        "HTTP/3 saturated: {} answers for each server CPU second; {} of them are offered",
        report::thousands(per_cpu_s),
        report::thousands(offered)
    ));
    let mut report = bench.https(offered)?;
    report.h3_answers_per_cpu_s = per_cpu_s;
    bench.download(&mut report)?;
    report.outrider_version = super::version(&program, "--version");
    heading.print(arguments.json, &text(&report), &report)
}

struct Bench<'a> {
    arguments: &'a CompareMixedArguments,
    outrider: Outrider,
    small: String,
    large: String,
    others_cores: f64,
}

impl<'a> Bench<'a> {
    fn new(arguments: &'a CompareMixedArguments, outrider: Outrider) -> Result<Self, BenchError> {
        let mut paths = Vec::new();
        for bytes in [SMALL_BYTES, LARGE_BYTES] {
            let content = random_bytes(SEED ^ bytes as u64, bytes);
            let digest = Digest::sha256(&content);
            push_blob(&mut HttpClient::new(outrider.http), REPOSITORY, &digest, &content)?;
            paths.push(format!("/v2/{REPOSITORY}/blobs/{digest}"));
        }
        let [small, large] = <[String; 2]>::try_from(paths)
            .map_err(|_| BenchError::Void("two files were to be made".to_owned()))?;
        Ok(Self { arguments, outrider, small, large, others_cores: 0.0 })
    }

    fn plan(&self, path: &str, bytes: usize, protocol: Protocol) -> Result<Plan, BenchError> {
        let url = format!("https://{}{path}", self.outrider.https);
        let (server, target) = target::parse(&url)?;
        let source = Source::round_robin(&server, &[target], &[], Some(bytes as u64), |_| None);
        let mut plan = Plan::closed(server, source, 4);
        plan.protocol = protocol;
        let trust = TrustArguments { ca: None, insecure: true };
        plan.tls = Some(tls::client_config(&trust, protocol)?);
        plan.pin = Some(self.arguments.load_cpu);
        Ok(plan)
    }

    fn h3_small(&self, rate_per_s: Option<f64>) -> Result<Plan, BenchError> {
        let plan = self.plan(&self.small, SMALL_BYTES, Protocol::H3)?;
        Ok(Plan { streams: 16, rate_per_s, ..plan })
    }

    fn https_small(&self) -> Result<Plan, BenchError> {
        let plan = self.plan(&self.small, SMALL_BYTES, Protocol::H1)?;
        Ok(Plan { connections: 8, rate_per_s: Some(self.arguments.https_rate), ..plan })
    }

    fn run(&mut self, plans: &[Plan]) -> Result<Vec<Summary>, BenchError> {
        let duration = Some(self.arguments.duration);
        let span = Span { warmup: WARMUP, duration, requests: None };
        let meter = Meter::Process(self.outrider.pid());
        let measured = load::run(plans, &span, Some(&meter))?;
        let summaries: Vec<Summary> = plans
            .iter()
            .zip(&measured.tallies)
            .map(|(plan, tally)| Summary::new(plan, tally, &measured))
            .collect();
        for summary in &summaries {
            if summary.failed > 0 || summary.responses == 0 {
                return Err(BenchError::Void(format!(
                    "{} answers, failures: {:?}",
                    summary.responses, summary.failures
                )));
            }
            self.others_cores = self.others_cores.max(summary.others_cores.unwrap_or_default());
        }
        Ok(summaries)
    }

    fn https(&mut self, offered: f64) -> Result<Report, BenchError> {
        let (https, h3) = (self.https_small()?, self.h3_small(Some(offered))?);
        let p99 = |summary: &Summary| summary.latency.map_or(0.0, |latency| latency.p99_us);
        let (mut alone, mut beside, mut cores, mut unanswered) = (vec![], vec![], vec![], 0);
        for pair in 0..self.arguments.pairs {
            // The order changes from pair to pair.
            for both in if pair % 2 == 0 { [false, true] } else { [true, false] } {
                if both {
                    let runs = self.run(&[https.clone(), h3.clone()])?;
                    beside.push(p99(&runs[0]));
                    cores.push(runs[0].server.map_or(0.0, |server| server.cores));
                    unanswered += runs[1].unanswered;
                } else {
                    alone.push(p99(&self.run(std::slice::from_ref(&https))?[0]));
                }
            }
            report::progress(&format!(
                "HTTPS p99, pair {} of {}: alone {}, beside HTTP/3 {}",
                pair + 1,
                self.arguments.pairs,
                report::micros(alone[pair as usize]),
                report::micros(beside[pair as usize]),
            ));
        }
        let void = || BenchError::Void("there are no pairs".to_owned());
        let (alone, beside) =
            (Spread::of(&alone).ok_or_else(void)?, Spread::of(&beside).ok_or_else(void)?);
        let ratio = beside.median / alone.median;
        let nothing = Spread { min: 0.0, median: 0.0, max: 0.0 };
        Ok(Report {
            outrider_version: String::new(),
            h3_answers_per_cpu_s: 0.0,
            h3_offered_per_s: offered,
            server_cores_beside: Spread::of(&cores).ok_or_else(void)?,
            https_alone_p99_us: alone,
            https_beside_p99_us: beside,
            https_ratio: ratio,
            https_passed: ratio <= HTTPS_P99_RATIO_MAX && beside.median <= HTTPS_P99_US_MAX,
            h3_unanswered: unanswered,
            download_alone_bytes_per_s: nothing,
            download_beside_bytes_per_s: nothing,
            new_connections_per_s: nothing,
            slower: 0.0,
            download_passed: false,
            notes: Vec::new(),
        })
    }

    fn download(&mut self, report: &mut Report) -> Result<(), BenchError> {
        let bulk = Plan { connections: 1, ..self.plan(&self.large, LARGE_BYTES, Protocol::H3)? };
        let mut storm = self.plan(&self.small, SMALL_BYTES, Protocol::H3)?;
        storm.connections = 64;
        storm.rate_per_s = Some(self.arguments.new_connections / 60.0);
        storm.quic.requests_per_connection = Some(1);
        let (mut alone, mut beside, mut new) = (vec![], vec![], vec![]);
        for pair in 0..self.arguments.pairs {
            for both in if pair % 2 == 0 { [false, true] } else { [true, false] } {
                if both {
                    let runs = self.run(&[bulk.clone(), storm.clone()])?;
                    beside.push(runs[0].body_bytes_per_s);
                    // Each had one answer.
                    new.push(runs[1].responses_per_s);
                } else {
                    alone.push(self.run(std::slice::from_ref(&bulk))?[0].body_bytes_per_s);
                }
            }
            report::progress(&format!(
                "download, pair {} of {}: alone {} MB/s, beside new connections {} MB/s",
                pair + 1,
                self.arguments.pairs,
                report::thousands(alone[pair as usize] / 1e6),
                report::thousands(beside[pair as usize] / 1e6),
            ));
        }
        let void = || BenchError::Void("there are no pairs".to_owned());
        report.download_alone_bytes_per_s = Spread::of(&alone).ok_or_else(void)?;
        report.download_beside_bytes_per_s = Spread::of(&beside).ok_or_else(void)?;
        report.new_connections_per_s = Spread::of(&new).ok_or_else(void)?;
        report.slower =
            report.download_alone_bytes_per_s.median / report.download_beside_bytes_per_s.median;
        report.download_passed = report.slower <= SLOWER_MAX;
        if self.others_cores > 0.1 {
            let cores = self.others_cores;
            report.notes.push(format!("other programs used up to {cores:.2} cores meanwhile"));
        }
        let missing = self.arguments.new_connections / 60.0 - report.new_connections_per_s.median;
        if missing > self.arguments.new_connections / 60.0 * 0.05 {
            report.notes.push(format!("{missing:.0} new connections a second were not reached"));
        }
        Ok(())
    }
}

fn text(report: &Report) -> String {
    let verdict = |passed: bool| if passed { "passed" } else { "MISSED" }.to_owned();
    let mut text = format!(
        "{}\nHTTP/3 4 KiB: {} answers for each server CPU second; {}/s offered beside HTTPS ({} not \
         answered), {:.2} server cores then\n\n",
        report.outrider_version,
        report::thousands(report.h3_answers_per_cpu_s),
        report::thousands(report.h3_offered_per_s),
        report.h3_unanswered,
        report.server_cores_beside.median,
    );
    let mut table = Table::new(["", "min", "median", "max", "", "must be", ""]);
    let mut row =
        |name: &str, spread: &Spread, shown: &dyn Fn(f64) -> String, rest: [String; 3]| {
            let numbers = [spread.min, spread.median, spread.max].map(shown);
            table.row(std::iter::once(name.to_owned()).chain(numbers).chain(rest));
        };
    let mb = |bytes: f64| format!("{} MB/s", report::thousands(bytes / 1e6));
    let none = || [String::new(), String::new(), String::new()];
    row("HTTPS 4 KiB p99, alone", &report.https_alone_p99_us, &report::micros, none());
    let rest = [
        format!("{:.2} × alone", report.https_ratio),
        "≤ 3 ×, ≤ 20 ms".to_owned(),
        verdict(report.https_passed),
    ];
    row("HTTPS 4 KiB p99, beside HTTP/3", &report.https_beside_p99_us, &report::micros, rest);
    row("HTTP/3 64 MiB, alone", &report.download_alone_bytes_per_s, &mb, none());
    let rest = [
        format!("{:.2} × slower", report.slower),
        "≤ 2 ×".to_owned(),
        verdict(report.download_passed),
    ];
    let name = format!(
        "HTTP/3 64 MiB, beside {:.0} new connections/s",
        report.new_connections_per_s.median
    );
    row(&name, &report.download_beside_bytes_per_s, &mb, rest);
    text.push_str(&table.render());
    for note in &report.notes {
        let _ = writeln!(text, "\nNOTE  {note}");
    }
    text
}
