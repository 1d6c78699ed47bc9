//! `follow`: how soon edges know what the control plane has written, and how soon one that was away knows all of it.
//!
//! - [`fleet`]: three nodes as processes, and many edges in this one, over QUIC each: from a write to its
//!   being applied at each edge.
//! - [`missed`]: a node in this process that has written much, and an edge with its disk that was away meanwhile.

mod fleet;
mod missed;

use std::fmt::Write as _;

use serde::Serialize;

use crate::BenchError;
use crate::arguments::FollowArguments;
use crate::load::latency::LatencySummary;
use crate::report::{Heading, Table, thousands};

/// From the acknowledgement to its being applied at an edge, 99 of 100 must be faster.
const P99_US_MAX: f64 = 20_000.0;
/// An edge that missed 600,000 updates must have them after this.
const MISSED_SECONDS_MAX: f64 = 10.0;
/// That many.
const MISSED: u64 = 600_000;

#[derive(Clone, Debug, Serialize)]
struct Report {
    edges: u32,
    nodes: u32,
    updates: u64,
    rate: f64,
    /// From the request of a write to its answer.
    acknowledged: Option<LatencySummary>,
    /// From the request to its being applied at an edge, over all edges.
    since_sent: Option<LatencySummary>,
    /// From the answer; 0 where the edge was faster than that.
    since_acknowledged: Option<LatencySummary>,
    passed: Option<bool>,
    missed: Option<missed::Missed>,
    missed_passed: Option<bool>,
}

/// The verb.
///
/// # Errors
/// When a node does not start, or an edge does not get everything once and in order.
pub fn verb(arguments: &FollowArguments) -> Result<(), BenchError> {
    let FollowArguments { edges, nodes, updates, rate, .. } = *arguments;
    let heading = Heading::new(format!(
        "follow: {nodes} nodes, {edges} edges, {updates} updates at {rate} a second; then {} that were missed",
        thousands(arguments.missed as f64)
    ));
    let mut report = Report {
        edges,
        nodes,
        updates,
        rate,
        acknowledged: None,
        since_sent: None,
        since_acknowledged: None,
        passed: None,
        missed: None,
        missed_passed: None,
    };
    if updates > 0 {
        let times = fleet::measure(arguments)?;
        report.acknowledged = times.acknowledged.summary();
        report.since_sent = times.since_sent.summary();
        report.since_acknowledged = times.since_acknowledged.summary();
        report.passed = report.since_acknowledged.map(|times| times.p99_us < P99_US_MAX);
    }
    if arguments.missed > 0 {
        let missed = missed::measure(arguments.missed)?;
        let fair = missed.updates >= MISSED;
        report.missed_passed = fair.then_some(missed.known_s < MISSED_SECONDS_MAX);
        report.missed = Some(missed);
    }
    heading.print(arguments.json, &text(&report), &report)
}

fn text(report: &Report) -> String {
    let verdict = |passed: Option<bool>| match passed {
        Some(true) => "passed",
        Some(false) => "MISSED",
        None => "not judged",
    };
    let mut text = String::new();
    if report.updates > 0 {
        let mut table = Table::new(["ms", "count", "p50", "p90", "p99", "p99.9", "max"]);
        for (name, times) in [
            ("written: request to answer", report.acknowledged),
            ("known by an edge: since the request", report.since_sent),
            ("known by an edge: since the answer", report.since_acknowledged),
        ] {
            let Some(times) = times else { continue };
            let ms = |us: f64| format!("{:.2}", us / 1e3);
            let LatencySummary { p50_us, p90_us, p99_us, p999_us, max_us, .. } = times;
            let count = thousands(times.count as f64);
            table.row([
                name.to_owned(),
                count,
                ms(p50_us),
                ms(p90_us),
                ms(p99_us),
                ms(p999_us),
                ms(max_us),
            ]);
        }
        text.push_str(&table.render());
        let _ = writeln!(
            text,
            "p99 since the answer must be below {} ms: {}",
            P99_US_MAX / 1e3,
            verdict(report.passed)
        );
    }
    if let Some(missed) = &report.missed {
        let _ = writeln!(
            text,
            "missed    {} updates known after {:.2} s, on the disk after {:.2} s, each once and in order \
             (must be below {MISSED_SECONDS_MAX} s for {}): {}",
            thousands(missed.updates as f64),
            missed.known_s,
            missed.stored_s,
            thousands(MISSED as f64),
            verdict(report.missed_passed)
        );
    }
    text
}
