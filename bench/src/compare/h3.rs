//! `compare h3`: Outrider, a minimal server of h3 and h3-quinn, Caddy, nginx and the limit serve the
//! same bytes over HTTP/3 from one core each in turn, to the same client on another core. What counts
//! is what a server delivers for a second of its own CPU time; one request at a time, how long it takes.
//!
//! - [`cases`]: what is downloaded, and what Outrider must reach. [`servers`]: who serves it.
//! - [`report`]: what is printed.

pub mod cases;
pub mod report;
pub mod servers;

use std::time::Duration;

use crate::arguments::{Client, CompareH3Arguments, Protocol, TrustArguments};
use crate::compare::order;
use crate::load::source::Source;
use crate::load::summary::Summary;
use crate::load::{self, Plan, Span, target, tls};
use crate::report::{Heading, progress, thousands};
use crate::{BenchError, machine};
use cases::{CASES, Case, Measure};
use report::{CaseReport, Report, ServerReport};
use servers::{Place, Servers};

const WARMUP: Duration = Duration::from_millis(500);

/// The verb.
///
/// # Errors
/// When a server that was asked for is missing or fails, or a request failed in a part that is measured.
pub fn verb(arguments: &CompareH3Arguments) -> Result<(), BenchError> {
    for cpu in [arguments.server_cpu, arguments.load_cpu] {
        if !machine::usable().contains(&cpu) {
            return Err(BenchError::Argument(format!(
                "CPU {cpu} is not one that may be used here"
            )));
        }
    }
    let heading = Heading::new(format!(
        "compare h3: HTTP/3 downloads, TLS 1.3 AES-128-GCM, servers on CPU {}, load on CPU {}, \
         {} interleaved rounds of {:.1} s each after {:.1} s of warm-up",
        arguments.server_cpu,
        arguments.load_cpu,
        arguments.pairs,
        arguments.duration.as_secs_f64(),
        WARMUP.as_secs_f64(),
    ));
    let mut servers = Servers::start(arguments)?;
    let mut reports = Vec::new();
    for case in
        CASES.iter().filter(|case| arguments.case.is_empty() || arguments.case.contains(&case.kind))
    {
        reports.push(measure(arguments, case, &mut servers)?);
    }
    let report = Report::new(reports, servers.versions(), servers.missing());
    heading.print(arguments.json, &report.text(), &report)
}

fn measure(
    arguments: &CompareH3Arguments,
    case: &Case,
    servers: &mut Servers,
) -> Result<CaseReport, BenchError> {
    let places = servers.places(case)?;
    let plans =
        places.iter().map(|place| plan(place, case, arguments)).collect::<Result<Vec<_>, _>>()?;
    for (place, plan) in places.iter().zip(&plans) {
        verify(place, plan)?;
    }
    let span = Span { warmup: WARMUP, duration: Some(arguments.duration), requests: None };
    let mut runs = vec![Vec::new(); places.len()];
    for round in 0..arguments.pairs {
        for index in order(places.len(), round) {
            let (place, plan) = (&places[index], &plans[index]);
            let measured = load::run(std::slice::from_ref(plan), &span, Some(&place.meter))?;
            let summary = Summary::new(plan, &measured.tallies[0], &measured);
            if summary.failed > 0 || summary.responses == 0 {
                return Err(BenchError::Void(format!(
                    "{} from {}: {} answers, failures: {:?}",
                    case.name, place.label, summary.responses, summary.failures
                )));
            }
            runs[index].push(summary);
        }
        let shown: Vec<String> = places
            .iter()
            .zip(&runs)
            .filter_map(|(place, runs)| Some((place, runs.last()?)))
            .map(|(place, run)| format!("{} {}", place.label, thousands(case.measure.value(run))))
            .collect();
        progress(&format!(
            "{}, round {} of {}: {} {}",
            case.name,
            round + 1,
            arguments.pairs,
            shown.join(", "),
            case.measure.unit(),
        ));
    }
    let servers = places
        .into_iter()
        .zip(runs)
        .map(|(place, runs)| ServerReport::new(place.server, place.label, case, runs))
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| BenchError::Void("a server used no CPU time".to_owned()))?;
    Ok(CaseReport::new(case, servers))
}

fn plan(place: &Place, case: &Case, arguments: &CompareH3Arguments) -> Result<Plan, BenchError> {
    let (server, target) = target::parse(&format!("https://{}{}", place.address, place.path))?;
    let length = Some(case.bytes as u64);
    let source = Source::round_robin(&server, &[target], &[], length, |_| None);
    // All are servers that this program started itself.
    let trust = TrustArguments { ca: None, insecure: true };
    let mut plan = Plan::closed(server, source, case.connections);
    plan.tls = Some(tls::client_config(&trust, Protocol::H3)?);
    plan.protocol = Protocol::H3;
    plan.streams = case.streams;
    plan.client = case.client;
    plan.pin = Some(arguments.load_cpu);
    // One that sleeps between its packets would measure its own waking more than the server.
    plan.reading.spin = case.measure == Measure::Latency;
    match case.client {
        Client::H3 => plan.quic.window_bytes = arguments.h3_window,
        _ => plan.quic.mtu = place.mtu,
    }
    Ok(plan)
}

/// A few downloads with their digests checked, before speed counts. They also are what a server that
/// has just been started needs to be ready.
fn verify(place: &Place, plan: &Plan) -> Result<(), BenchError> {
    let (server, target) = target::parse(&format!("https://{}{}", place.address, place.path))?;
    let digest = place.digest;
    let source = Source::round_robin(&server, &[target], &[], None, |_| Some(digest));
    let plan = Plan { source, connections: 1, streams: 1, ..plan.clone() };
    let span = Span { warmup: Duration::ZERO, duration: None, requests: Some(2) };
    let measured = load::run(std::slice::from_ref(&plan), &span, None)?;
    let tally = &measured.tallies[0];
    if tally.failed() > 0 || tally.responses == 0 {
        return Err(BenchError::Void(format!(
            "{} does not serve the right bytes at https://{}{} over HTTP/3: {:?}",
            place.label, place.address, place.path, tally.failures
        )));
    }
    Ok(())
}

impl Measure {
    /// What counts of a run.
    pub fn value(self, run: &Summary) -> f64 {
        match self {
            Self::Bytes => run.server.map_or(0.0, |server| server.body_bytes_per_cpu_s / 1e6),
            Self::Answers => run.server.map_or(0.0, |server| server.responses_per_cpu_s),
            Self::Latency => run.latency.map_or(0.0, |latency| latency.p50_us),
        }
    }

    /// Its unit.
    pub fn unit(self) -> &'static str {
        match self {
            Self::Bytes => "MB per server CPU second",
            Self::Answers => "answers per server CPU second",
            Self::Latency => "µs, median of the answers",
        }
    }
}
