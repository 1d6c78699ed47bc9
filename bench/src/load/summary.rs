//! What a load says about itself, as text and as JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use super::latency::LatencySummary;
use super::tally::{FailureCount, FailureKind, Tally};
use super::{Measured, Plan, Span};
use crate::arguments::{Client, Protocol};
use crate::report::{self, Table};

/// A client that used more of its CPU than this was not waiting for the server.
const CLIENT_SHARE_MAX: f64 = 0.95;
/// Others that used more of the machine than this disturbed the measurement.
const OTHERS_CORES_MAX: f64 = 0.1;

/// The result of one load.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Length of the window.
    pub seconds: f64,
    /// Good answers.
    pub responses: u64,
    /// Good answers a second.
    pub responses_per_s: f64,
    /// Bytes of bodies that came in.
    pub body_bytes: u64,
    /// The same a second.
    pub body_bytes_per_s: f64,
    /// Open loop: the rate that was asked for.
    pub offered_per_s: Option<f64>,
    /// Latency; in an open loop from when a request was due.
    pub latency: Option<LatencySummary>,
    /// Open loop: how much too late the client itself was.
    pub send_lag: Option<LatencySummary>,
    /// Open loop: requests that were due and never answered.
    pub unanswered: u64,
    /// Answers by status.
    pub statuses: BTreeMap<u16, u64>,
    /// Failures by kind.
    pub failures: BTreeMap<FailureKind, FailureCount>,
    /// All failures.
    pub failed: u64,
    /// Connections that were opened again.
    pub reconnects: u64,
    /// The TLS cipher suite.
    pub cipher: Option<String>,
    /// What it cost the server, when its process is known.
    pub server: Option<ServerCost>,
    /// Cores that the client used for work: not for waiting, when it spins.
    pub client_cores: f64,
    /// Whether it spins.
    pub client_spins: bool,
    /// Cores that neither the client nor the server used, when its process is known.
    pub others_cores: Option<f64>,
    /// What spoils this measurement.
    pub warnings: Vec<String>,
}

/// What a load cost the server.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ServerCost {
    /// CPU time in the window.
    pub cpu_s: f64,
    /// The same in cores.
    pub cores: f64,
    /// Bytes of bodies for each CPU second.
    pub body_bytes_per_cpu_s: f64,
    /// Good answers for each CPU second.
    pub responses_per_cpu_s: f64,
    /// CPU time of one answer.
    pub cpu_us_per_response: f64,
    /// Bytes that the server read from block devices, a second.
    pub device_read_bytes_per_s: f64,
}

impl Summary {
    /// Sums up what one plan's tally counted.
    pub fn new(plan: &Plan, tally: &Tally, measured: &Measured) -> Self {
        // A load that gave up in its warm-up has no window.
        let seconds = tally.window.as_secs_f64();
        let per_s = |count: u64| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
        let elapsed = measured.elapsed.as_secs_f64().max(1e-9);
        // The process is looked at for as long as `elapsed`, which differs from the window by some
        // microseconds, or ends with it; so costs are made of rates.
        let server = measured.server.map(|usage| {
            let cores = usage.cpu.as_secs_f64() / elapsed;
            let per_core = |rate: f64| if cores > 0.0 { rate / cores } else { 0.0 };
            let responses_per_cpu_s = per_core(per_s(tally.responses));
            ServerCost {
                cpu_s: usage.cpu.as_secs_f64(),
                cores,
                body_bytes_per_cpu_s: per_core(per_s(tally.body_bytes)),
                responses_per_cpu_s,
                cpu_us_per_response: if responses_per_cpu_s > 0.0 {
                    1e6 / responses_per_cpu_s
                } else {
                    0.0
                },
                device_read_bytes_per_s: usage.device_read_bytes as f64 / elapsed,
            }
        });
        let idle = if plan.reading.spin { tally.client_idle } else { Duration::ZERO };
        let client_s = tally.client_cpu.saturating_sub(idle).as_secs_f64();
        let client_cores = if seconds > 0.0 { client_s / seconds } else { 0.0 };
        let others_cores = measured.others.map(|others| others.as_secs_f64() / elapsed);
        let mut summary = Self {
            seconds,
            responses: tally.responses,
            responses_per_s: per_s(tally.responses),
            body_bytes: tally.body_bytes,
            body_bytes_per_s: per_s(tally.body_bytes),
            offered_per_s: plan.rate_per_s,
            latency: tally.latency.summary(),
            send_lag: tally.send_lag.summary(),
            unanswered: tally.unanswered,
            statuses: tally.statuses.clone(),
            failures: tally.failures.clone(),
            failed: tally.failed(),
            reconnects: tally.reconnects,
            cipher: tally.cipher.clone(),
            server,
            client_cores,
            client_spins: plan.reading.spin,
            others_cores,
            warnings: Vec::new(),
        };
        summary.warnings = summary.find_warnings(plan);
        summary
    }

    fn find_warnings(&self, plan: &Plan) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.client_cores > CLIENT_SHARE_MAX * f64::from(plan.threads) {
            warnings.push(
                "the client had no CPU left: rates are the client's limit; only what is given for \
                 each server CPU second says something about the server"
                    .to_owned(),
            );
        }
        if let Some(others) = self.others_cores.filter(|others| *others > OTHERS_CORES_MAX) {
            warnings.push(format!("other programs used {others:.2} cores meanwhile"));
        }
        if self.unanswered > 0 {
            warnings.push(format!(
                "{} requests were due and not answered; they stand in the latencies with the time \
                 that they had waited",
                self.unanswered
            ));
        }
        if cfg!(debug_assertions) {
            warnings.push("this program is a debug build: it measures itself".to_owned());
        }
        warnings
    }

    /// The result as text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let _ = writeln!(
            text,
            "answers   {} in {:.2} s: {}/s",
            report::thousands(self.responses as f64),
            self.seconds,
            report::thousands(self.responses_per_s),
        );
        if let Some(offered) = self.offered_per_s {
            let _ = writeln!(text, "offered   {}/s", report::thousands(offered));
        }
        let _ = writeln!(
            text,
            "bodies    {}: {:.1} MB/s, {:.2} Gbit/s",
            report::bytes(self.body_bytes),
            self.body_bytes_per_s / 1e6,
            self.body_bytes_per_s * 8.0 / 1e9,
        );
        for (status, count) in &self.statuses {
            let _ = writeln!(text, "status    {status}: {}", report::thousands(*count as f64));
        }
        if let Some(cipher) = &self.cipher {
            let _ = writeln!(text, "cipher    {cipher}");
        }
        if let Some(server) = &self.server {
            let _ = writeln!(
                text,
                "server    {:.2} CPU s, {:.2} cores; for each CPU second {:.1} MB and {} answers \
                 ({:.1} µs an answer)",
                server.cpu_s,
                server.cores,
                server.body_bytes_per_cpu_s / 1e6,
                report::thousands(server.responses_per_cpu_s),
                server.cpu_us_per_response,
            );
        }
        let _ = write!(text, "client    {:.2} cores", self.client_cores);
        if self.client_spins {
            text.push_str(" without its spinning");
        }
        let _ = match self.others_cores {
            Some(others) => writeln!(text, "; others {others:.2}"),
            None => writeln!(text),
        };
        if self.reconnects > 0 {
            let _ = writeln!(text, "reopened  {} connections", self.reconnects);
        }
        for (kind, failure) in &self.failures {
            let _ = writeln!(
                text,
                "FAILED    {} × {kind:?}, the first: {}",
                failure.count, failure.first
            );
        }
        if self.latency.is_some() {
            text.push('\n');
            text.push_str(&self.latency_table().render());
        }
        for warning in &self.warnings {
            let _ = writeln!(text, "\nNOTE      {warning}");
        }
        text
    }

    fn latency_table(&self) -> Table {
        let mut table =
            Table::new(["", "mean", "min", "p50", "p75", "p90", "p99", "p99.9", "p99.99", "max"]);
        let mut row = |name: &str, latency: &LatencySummary| {
            let values = [
                latency.mean_us,
                latency.min_us,
                latency.p50_us,
                latency.p75_us,
                latency.p90_us,
                latency.p99_us,
                latency.p999_us,
                latency.p9999_us,
                latency.max_us,
            ];
            table.row(
                std::iter::once(name.to_owned()).chain(values.iter().map(|us| report::micros(*us))),
            );
        };
        if let Some(latency) = &self.latency {
            let name = match self.offered_per_s {
                Some(_) => "latency from when it was due",
                None => "latency from when it was sent",
            };
            row(name, latency);
        }
        if let Some(lag) = &self.send_lag {
            row("of it the client's own delay", lag);
        }
        table
    }
}

/// What a load does, in one line.
pub fn describe(plan: &Plan, span: &Span) -> String {
    let scheme = match (plan.protocol.is_quic(), plan.server.secure) {
        (true, _) => "QUIC",
        (false, true) => "HTTPS",
        (false, false) => "HTTP",
    };
    let (version, streams) = match plan.protocol {
        Protocol::H1 => ("1.1", String::new()),
        Protocol::H2 => ("2", format!(" × {} streams", plan.streams)),
        Protocol::H3 => ("HTTP/3", format!(" × {} streams", plan.streams)),
        Protocol::Native => ("native", format!(" × {} streams", plan.streams)),
    };
    let client = match plan.client {
        Client::Lean => "lean",
        Client::Hyper => "hyper",
        Client::H3 => "h3",
    };
    let how = match plan.rate_per_s {
        Some(rate) => format!("open loop at {}/s", report::thousands(rate)),
        None => "closed loop".to_owned(),
    };
    let end = match (span.duration, span.requests) {
        (Some(duration), Some(requests)) => {
            format!("{:.1} s or {requests} answers", duration.as_secs_f64())
        }
        (Some(duration), None) => format!("{:.1} s", duration.as_secs_f64()),
        (None, requests) => format!("{} answers", requests.unwrap_or_default()),
    };
    let client = if plan.reading.spin { format!("{client} spinning") } else { client.to_owned() };
    format!(
        "load: {how}, {scheme} {version} to {}, {} connections{streams}, {client} client, {} \
         thread(s){}; {end} after {:.1} s of warm-up",
        plan.server.authority,
        plan.connections,
        plan.threads,
        plan.pin.map_or_else(String::new, |cpu| format!(" from CPU {cpu} on")),
        span.warmup.as_secs_f64(),
    )
}
