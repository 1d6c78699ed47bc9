//! What a comparison over HTTP/3 says, as text and as JSON.

use std::fmt::Write as _;

use serde::Serialize;

use super::cases::{Case, Measure};
use crate::arguments::QuicServer;
use crate::load::summary::Summary;
use crate::report::{self, Table};
use crate::statistics::{Ratio, Spread};

/// Others that used more than this in a part of a round disturbed it.
const OTHERS_CORES_MAX: f64 = 0.1;

/// All of it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Who was measured.
    pub versions: Vec<String>,
    /// Who was not.
    pub missing: Vec<String>,
    /// By case.
    pub cases: Vec<CaseReport>,
    /// What spoils it.
    pub notes: Vec<String>,
}

/// One case.
#[derive(Clone, Debug, Serialize)]
pub struct CaseReport {
    /// Its name.
    pub case: String,
    /// The unit of what was measured.
    pub unit: &'static str,
    /// Whether less of it is better.
    pub less_is_better: bool,
    /// By server.
    pub servers: Vec<ServerReport>,
    /// The first server over each other one.
    pub ratios: Vec<RatioReport>,
}

/// One server in one case.
#[derive(Clone, Debug, Serialize)]
pub struct ServerReport {
    /// The server.
    pub server: QuicServer,
    /// Its name in tables.
    pub label: String,
    /// What was measured.
    pub spread: Spread,
    /// Server CPU for a GB (10⁹ bytes) of bodies.
    pub cpu_s_per_gb: Spread,
    /// Server CPU for an answer.
    pub cpu_us_per_answer: Spread,
    /// By round.
    pub values: Vec<f64>,
    /// By round, all that was measured.
    pub runs: Vec<Summary>,
}

/// One server over another.
#[derive(Clone, Debug, Serialize)]
pub struct RatioReport {
    /// The one.
    pub subject: String,
    /// The other.
    pub reference: String,
    /// Their ratio.
    pub ratio: Ratio,
    /// What it must be, if anything.
    pub bar: Option<f64>,
    /// Whether it is.
    pub passed: Option<bool>,
}

impl ServerReport {
    /// Sums up the runs of a server; `None` when it used no CPU time.
    pub fn new(server: QuicServer, label: String, case: &Case, runs: Vec<Summary>) -> Option<Self> {
        let values: Vec<f64> = runs.iter().map(|run| case.measure.value(run)).collect();
        let spread = |of: &dyn Fn(&Summary) -> Option<f64>| {
            Spread::of(&runs.iter().map(of).collect::<Option<Vec<f64>>>()?)
        };
        Some(Self {
            server,
            label,
            spread: Spread::of(&values)?,
            cpu_s_per_gb: spread(&|run| Some(1e9 / run.server?.body_bytes_per_cpu_s))?,
            cpu_us_per_answer: spread(&|run| Some(1e6 / run.server?.responses_per_cpu_s))?,
            values,
            runs,
        })
    }
}

impl CaseReport {
    /// Compares the servers of a case.
    pub fn new(case: &Case, servers: Vec<ServerReport>) -> Self {
        let mut ratios = Vec::new();
        let mut compare = |subject: &ServerReport, reference: &ServerReport, bar: Option<f64>| {
            if let Some(ratio) = Ratio::of(&subject.values, &reference.values) {
                let passed = bar.map(|bar| match case.measure {
                    Measure::Latency => ratio.of_medians <= bar,
                    _ => ratio.of_medians >= bar,
                });
                let (subject, reference) = (subject.label.clone(), reference.label.clone());
                ratios.push(RatioReport { subject, reference, ratio, bar, passed });
            }
        };
        if case.jumbo.is_empty() {
            // Without Outrider the limit shows how far anybody could get.
            let first = [QuicServer::Outrider, QuicServer::Limit];
            let subject = first
                .iter()
                .find_map(|wanted| servers.iter().find(|server| server.server == *wanted));
            for reference in &servers {
                if let Some(subject) = subject.filter(|subject| subject.label != reference.label) {
                    let bar = (subject.server == QuicServer::Outrider
                        && reference.server == QuicServer::H3Quinn)
                        .then_some(case.bar);
                    compare(subject, reference, bar);
                }
            }
        } else {
            for kind in case.jumbo {
                let mut of = servers.iter().filter(|server| server.server == *kind);
                if let (Some(plain), Some(jumbo)) = (of.next(), of.next()) {
                    compare(jumbo, plain, (*kind == QuicServer::Outrider).then_some(case.bar));
                }
            }
        }
        Self {
            case: case.name.to_owned(),
            unit: case.measure.unit(),
            less_is_better: case.measure == Measure::Latency,
            servers,
            ratios,
        }
    }
}

impl Report {
    /// Puts it together.
    pub fn new(cases: Vec<CaseReport>, versions: Vec<String>, missing: Vec<String>) -> Self {
        let mut notes = Vec::new();
        for case in &cases {
            // What the limit does not count of itself looks like another program.
            let others = case
                .servers
                .iter()
                .filter(|server| server.server != QuicServer::Limit)
                .flat_map(|server| &server.runs)
                .filter_map(|run| run.others_cores)
                .fold(0.0, f64::max);
            if others > OTHERS_CORES_MAX {
                notes.push(format!(
                    "{}: other programs used up to {others:.2} cores in a part of a round",
                    case.case
                ));
            }
        }
        if cfg!(debug_assertions) {
            notes.push("the load is a debug build".to_owned());
        }
        Self { versions, missing, cases, notes }
    }

    /// The result as text.
    pub fn text(&self) -> String {
        let mut text = format!("{}\n", self.versions.join("; "));
        for missing in &self.missing {
            let _ = writeln!(text, "MISSING  {missing}");
        }
        text.push('\n');
        for case in &self.cases {
            let _ = writeln!(text, "{}: {}\n", case.case, case.unit);
            text.push_str(&servers(case).render());
            text.push('\n');
        }
        text.push_str(&self.ratios().render());
        for note in &self.notes {
            let _ = writeln!(text, "\nNOTE  {note}");
        }
        text
    }

    fn ratios(&self) -> Table {
        let columns =
            ["ratios", "", "of medians", "min pair", "median pair", "max pair", "must be", ""];
        let mut table = Table::new(columns);
        for case in &self.cases {
            for ratio in &case.ratios {
                let sign = if case.less_is_better { "≤" } else { "≥" };
                let passed = ratio.passed.map(|passed| if passed { "passed" } else { "MISSED" });
                table.row([
                    case.case.clone(),
                    format!("{} / {}", ratio.subject, ratio.reference),
                    format!("{:.3}", ratio.ratio.of_medians),
                    format!("{:.3}", ratio.ratio.of_pairs.min),
                    format!("{:.3}", ratio.ratio.of_pairs.median),
                    format!("{:.3}", ratio.ratio.of_pairs.max),
                    ratio.bar.map_or_else(String::new, |bar| format!("{sign} {bar}")),
                    passed.unwrap_or_default().to_owned(),
                ]);
            }
        }
        table
    }
}

fn servers(case: &CaseReport) -> Table {
    let mut table = Table::new([
        "server",
        "min",
        "median",
        "max",
        "CPU s/GB",
        "CPU µs/answer",
        "Gbit/s",
        "answers/s",
        "server cores",
        "load cores",
        "p50",
        "p99",
    ]);
    for server in &case.servers {
        let median = |of: &dyn Fn(&Summary) -> f64| {
            Spread::of(&server.runs.iter().map(of).collect::<Vec<f64>>())
                .map_or(f64::NAN, |spread| spread.median)
        };
        let latency = |of: &dyn Fn(&Summary) -> Option<f64>| {
            report::micros(median(&|run| of(run).unwrap_or_default()))
        };
        table.row([
            server.label.clone(),
            report::thousands(server.spread.min),
            report::thousands(server.spread.median),
            report::thousands(server.spread.max),
            format!("{:.3}", server.cpu_s_per_gb.median),
            format!("{:.2}", server.cpu_us_per_answer.median),
            format!("{:.2}", median(&|run| run.body_bytes_per_s * 8.0 / 1e9)),
            report::thousands(median(&|run| run.responses_per_s)),
            format!("{:.2}", median(&|run| run.server.map_or(0.0, |server| server.cores))),
            format!("{:.2}", median(&|run| run.client_cores)),
            latency(&|run| Some(run.latency?.p50_us)),
            latency(&|run| Some(run.latency?.p99_us)),
        ]);
    }
    table
}
