//! `compare etcd`: values that three nodes have committed, a second, and how long each took, beside etcd's.
//!
//! Both have three nodes on this machine and clients that wait for each answer before they ask again, at the
//! leader. Outrider's compare and swap: each client a key of its own, with the version that the last write gave.
//! etcd's put, by its own load generator.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::{order, version};
use crate::arguments::CompareEtcdArguments;
use crate::load::latency::Latency;
use crate::peers::control::{leader, start_nodes};
use crate::peers::etcd::{self, Etcd, Load};
use crate::peers::{find, outrider};
use crate::report::{self, Heading, Table, progress, thousands};
use crate::statistics::{Ratio, Spread};
use crate::{BenchError, machine};

const NODES: u32 = 3;
const VALUE_BYTES: usize = 256;
/// etcd is asked for as many puts as its last run did in this time; the first one for a second's worth of these.
const FIRST_RATE: f64 = 1000.0;
/// Connections are open before the time begins.
const SETTLE: Duration = Duration::from_millis(200);

#[derive(Clone, Debug, Serialize)]
struct Report {
    outrider_version: String,
    etcd_version: String,
    value_bytes: usize,
    cases: Vec<Case>,
    notes: Vec<String>,
}

#[derive(Clone, Debug, Serialize)]
struct Case {
    clients: u32,
    /// Writes a second.
    outrider: Spread,
    etcd: Spread,
    /// Outrider's over etcd's; above 1 is faster.
    times: Ratio,
    outrider_p99_ms: Spread,
    etcd_p99_ms: Spread,
    passed: bool,
}

/// The verb.
///
/// # Errors
/// When a server is missing or fails, or a write is not committed.
pub fn verb(arguments: &CompareEtcdArguments) -> Result<(), BenchError> {
    let program = find(&arguments.outrider, outrider::INSTALL)?;
    let etcd_program = find(&arguments.etcd, etcd::INSTALL)?;
    let benchmark = find(&arguments.etcd_benchmark, etcd::INSTALL_BENCHMARK)?;
    let heading = Heading::new(format!(
        "compare etcd: {NODES} nodes each, writes of {VALUE_BYTES} bytes to the leader; {} interleaved pairs of {:.1} s; \
         not pinned, the load on the same CPUs",
        arguments.pairs,
        arguments.duration.as_secs_f64(),
    ));
    let folder = tempfile::tempdir().map_err(BenchError::io("making a folder"))?;
    let place = |name: &str| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(&path).map_err(BenchError::io("making a folder"))?;
        Ok::<_, BenchError>(path)
    };
    let nodes = start_nodes(&program, &place("outrider")?, NODES)?;
    let peer = Etcd::start(&etcd_program, &place("etcd")?, NODES)?;
    let mut cases = Vec::new();
    for clients in &arguments.clients {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        let mut rate = FIRST_RATE;
        for pair in 0..arguments.pairs {
            for half in order(2, pair) {
                if half == 0 {
                    let leader = leader(&nodes)?.admin;
                    ours.push(write(leader, *clients, arguments.duration)?);
                } else {
                    let total = (rate * arguments.duration.as_secs_f64()).max(f64::from(*clients));
                    let load = peer.put(&benchmark, *clients, VALUE_BYTES, total as u64)?;
                    rate = load.rate;
                    theirs.push(load);
                }
            }
            if let (Some(ours), Some(theirs)) = (ours.last(), theirs.last()) {
                progress(&format!(
                    "{clients} clients, pair {} of {}: {} a second, etcd {}",
                    pair + 1,
                    arguments.pairs,
                    thousands(ours.rate),
                    thousands(theirs.rate)
                ));
            }
        }
        cases.push(case(*clients, &ours, &theirs)?);
    }
    let mut notes = Vec::new();
    if heading.machine.load_average > 0.1 * machine::usable().len() as f64 {
        notes.push(format!(
            "the load average was {:.2} before this run",
            heading.machine.load_average
        ));
    }
    let report = Report {
        outrider_version: version(&program, "--version"),
        etcd_version: version(&etcd_program, "--version"),
        value_bytes: VALUE_BYTES,
        cases,
        notes,
    };
    heading.print(arguments.json, &text(&report), &report)
}

fn case(clients: u32, ours: &[Load], theirs: &[Load]) -> Result<Case, BenchError> {
    let rates = |loads: &[Load]| loads.iter().map(|load| load.rate).collect::<Vec<_>>();
    let p99s = |loads: &[Load]| loads.iter().map(|load| load.p99_s * 1e3).collect::<Vec<_>>();
    let spread = |values: &[f64]| {
        Spread::of(values).ok_or_else(|| BenchError::Void("there were no pairs".to_owned()))
    };
    let times = Ratio::of(&rates(ours), &rates(theirs))
        .ok_or_else(|| BenchError::Void("there were no pairs".to_owned()))?;
    let (outrider_p99_ms, etcd_p99_ms) = (spread(&p99s(ours))?, spread(&p99s(theirs))?);
    let passed = times.of_medians >= 1.0 && outrider_p99_ms.median <= etcd_p99_ms.median;
    Ok(Case {
        clients,
        outrider: spread(&rates(ours))?,
        etcd: spread(&rates(theirs))?,
        times,
        outrider_p99_ms,
        etcd_p99_ms,
        passed,
    })
}

/// Compare and swap, over and over, by so many clients for so long.
fn write(leader: SocketAddr, clients: u32, duration: Duration) -> Result<Load, BenchError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(BenchError::io("starting a runtime"))?;
    runtime.block_on(async {
        let begin = Instant::now() + SETTLE;
        let end = begin + duration;
        let mut writers = JoinSet::new();
        for client in 0..clients {
            writers.spawn(writer(leader, client, begin, end));
        }
        let mut latency = Latency::new();
        while let Some(written) = writers.join_next().await {
            let written = written.map_err(|error| BenchError::Void(error.to_string()))??;
            written.into_iter().for_each(|ns| latency.record_ns(ns));
        }
        let summary =
            latency.summary().ok_or_else(|| BenchError::Void("nothing was written".to_owned()))?;
        Ok(Load {
            rate: summary.count as f64 / begin.elapsed().as_secs_f64(),
            p99_s: summary.p99_us / 1e6,
        })
    })
}

/// One client: how long each of its writes took, in nanoseconds.
async fn writer(
    leader: SocketAddr,
    client: u32,
    begin: Instant,
    end: Instant,
) -> Result<Vec<u64>, BenchError> {
    let wrong = |what: String| BenchError::Protocol(format!("PUT at {leader}: {what}"));
    let stream = TcpStream::connect(leader).await.map_err(BenchError::io("connecting"))?;
    stream.set_nodelay(true).map_err(BenchError::io("connecting"))?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| wrong(error.to_string()))?;
    tokio::spawn(connection);
    let uri = format!("/v1/state/bench/{client:010}");
    let value = Bytes::from(vec![b'x'; VALUE_BYTES]);
    // Whatever an earlier run has left, over that.
    let mut condition = None;
    let mut times = Vec::new();
    tokio::time::sleep_until(begin.into()).await;
    while Instant::now() < end {
        let mut request =
            Request::builder().method(Method::PUT).uri(&uri).header(header::HOST, "localhost");
        if let Some(etag) = condition.take() {
            request = request.header(header::IF_MATCH, etag);
        }
        let request =
            request.body(Full::new(value.clone())).map_err(|error| wrong(error.to_string()))?;
        let sent = Instant::now();
        let answer =
            sender.send_request(request).await.map_err(|error| wrong(error.to_string()))?;
        let status = answer.status();
        let etag = answer.headers().get(header::ETAG).cloned();
        let body = answer.into_body().collect().await.map_err(|error| wrong(error.to_string()))?;
        if status != StatusCode::NO_CONTENT {
            let text = String::from_utf8_lossy(&body.to_bytes()).into_owned();
            return Err(wrong(format!("{status} {text}")));
        }
        condition = Some(etag.ok_or_else(|| wrong("an answer without a version".to_owned()))?);
        times.push(u64::try_from(sent.elapsed().as_nanos()).unwrap_or(u64::MAX));
    }
    Ok(times)
}

fn text(report: &Report) -> String {
    let mut text =
        format!("outrider: {}\netcd: {}\n\n", report.outrider_version, report.etcd_version);
    let mut table = Table::new([
        "clients",
        "outrider /s",
        "etcd /s",
        "times",
        "worst pair",
        "outrider p99",
        "etcd p99",
        "",
    ]);
    for case in &report.cases {
        table.row([
            case.clients.to_string(),
            thousands(case.outrider.median),
            thousands(case.etcd.median),
            format!("{:.2} ×", case.times.of_medians),
            format!("{:.2} ×", case.times.of_pairs.min),
            report::micros(case.outrider_p99_ms.median * 1e3),
            report::micros(case.etcd_p99_ms.median * 1e3),
            if case.passed { "passed" } else { "MISSED" }.to_owned(),
        ]);
    }
    text.push_str(&table.render());
    for note in &report.notes {
        let _ = writeln!(text, "\nNOTE  {note}");
    }
    text
}
