//! `load`: downloads over HTTP and HTTPS, closed loop or open loop, and what they cost the server.
//!
//! - [`target`], [`source`]: what is asked for. [`schedule`]: when, in an open loop.
//! - [`window`]: what of it counts. [`tally`], [`latency`]: what was counted.
//! - [`lean`]: the own HTTP/1.1 client, of [`response`], [`answer`] and [`tls`];
//!   [`hyper_client`]: the other one. [`quic`], [`h3_client`]: the same for HTTP/3. Each thread runs
//!   one of them over its [`worker`].
//! - [`summary`]: what is printed.

pub mod answer;
pub mod h3_client;
pub mod hyper_client;
pub mod latency;
pub mod lean;
pub mod quic;
pub mod response;
pub mod schedule;
pub mod source;
pub mod summary;
pub mod tally;
pub mod target;
pub mod tls;
mod wait;
pub mod window;
pub mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustls::ClientConfig;

use crate::arguments::{Client, LoadArguments, Protocol, QuicArguments};
use crate::process::{self, Usage};
use crate::report::Heading;
use crate::{BenchError, machine};
use quic::QuicOptions;
use schedule::Schedule;
use source::Source;
use summary::Summary;
use tally::Tally;
use target::Server;
use window::Clock;
use worker::{Reading, Worker};

/// How long a load runs when nothing says so.
const DURATION_DEFAULT: Duration = Duration::from_secs(10);
/// Threads need this long to start.
const START_UP: Duration = Duration::from_millis(5);

/// One load: a server, requests, and how they are sent.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Whom to ask.
    pub server: Server,
    /// What for.
    pub source: Source,
    /// How TLS is spoken; `None` for plain HTTP.
    pub tls: Option<Arc<ClientConfig>>,
    /// By which protocol.
    pub protocol: Protocol,
    /// By which client.
    pub client: Client,
    /// Headers of every request.
    pub headers: Vec<(String, String)>,
    /// Connections of all threads.
    pub connections: u32,
    /// Requests at a time on each.
    pub streams: u32,
    /// Requests a second of all threads; `None` for a closed loop.
    pub rate_per_s: Option<f64>,
    /// The longest wait for anything.
    pub timeout: Duration,
    /// The CPU of the first thread; further ones take the next CPUs.
    pub pin: Option<usize>,
    /// How many threads.
    pub threads: u32,
    /// How the lean client reads and waits.
    pub reading: Reading,
    /// How QUIC is spoken.
    pub quic: QuicOptions,
}

impl Plan {
    /// A closed loop of the lean client on one thread.
    pub fn closed(server: Server, source: Source, connections: u32) -> Self {
        Self {
            server,
            source,
            tls: None,
            protocol: Protocol::H1,
            client: Client::Lean,
            headers: Vec::new(),
            connections,
            streams: 1,
            rate_per_s: None,
            timeout: Duration::from_secs(30),
            pin: None,
            threads: 1,
            reading: Reading::default(),
            quic: QuicOptions::default(),
        }
    }
}

/// How long loads run.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// What does not count.
    pub warmup: Duration,
    /// What counts; `None` when a number of requests ends it.
    pub duration: Option<Duration>,
    /// Ends it after so many answers.
    pub requests: Option<u64>,
}

/// Whose CPU time is measured.
#[derive(Clone, Debug)]
pub enum Meter {
    /// A process and its children.
    Process(u32),
    /// Nanoseconds that a thread of this program counts itself.
    Counter(Arc<AtomicU64>),
}

impl Meter {
    fn look(&self) -> Result<Usage, BenchError> {
        match self {
            Self::Process(pid) => process::usage(*pid),
            Self::Counter(ns) => {
                Ok(Usage::of_cpu(Duration::from_nanos(ns.load(Ordering::Relaxed))))
            }
        }
    }
}

/// What loads and the server did within the window.
#[derive(Clone, Debug)]
pub struct Measured {
    /// One tally for each plan.
    pub tallies: Vec<Tally>,
    /// What the server used.
    pub server: Option<Usage>,
    /// How long that was looked at.
    pub elapsed: Duration,
    /// Busy time of all CPUs that neither the server nor the clients used: other programs, and
    /// the benchmark's own bookkeeping. Only known when the server's process is.
    pub others: Option<Duration>,
}

/// Runs loads side by side, in one window, and looks at the server's process around it.
///
/// # Errors
/// When a thread cannot do its part, or the server's process cannot be looked at.
pub fn run(plans: &[Plan], span: &Span, server: Option<&Meter>) -> Result<Measured, BenchError> {
    if let Some(meter) = server {
        meter.look()?;
    }
    let start = Instant::now() + START_UP;
    let begin = start + span.warmup;
    let clock = Clock { start, begin, end: span.duration.map(|duration| begin + duration) };
    let mut threads = Vec::new();
    for (index, plan) in plans.iter().enumerate() {
        for part in 0..plan.threads {
            let worker = worker(plan, span, clock, part);
            let (client, pin) = (plan.client, plan.pin.map(|cpu| cpu + part as usize));
            let run = move || {
                if let Some(cpu) = pin {
                    machine::pin(cpu)?;
                }
                // Before that nothing is to be sent: without a warm-up it would not be counted.
                sleep_until(start);
                match client {
                    Client::Lean if worker.protocol.is_quic() => quic::run(worker),
                    Client::Lean => lean::run(worker),
                    Client::Hyper => hyper_client::run(worker),
                    Client::H3 => h3_client::run(worker),
                }
            };
            let thread = thread::Builder::new()
                .name(format!("load-{index}-{part}"))
                .spawn(run)
                .map_err(BenchError::io("starting a thread"))?;
            threads.push((index, thread));
        }
    }

    let look = || server.map(Meter::look).transpose();
    let busy = || machine::busy().values().sum::<Duration>();
    sleep_until(begin);
    let (before, busy_before, looked_at) = (look(), busy(), Instant::now());
    let mut after = None;
    if let Some(end) = clock.end {
        // A number of requests, or a server that fails, may end the threads earlier.
        while Instant::now() < end && threads.iter().any(|(_, thread)| !thread.is_finished()) {
            let left = end.saturating_duration_since(Instant::now());
            thread::sleep(left.min(Duration::from_millis(20)));
        }
        after = Some((look(), busy(), looked_at.elapsed()));
    }
    let mut tallies = vec![Tally::default(); plans.len()];
    for (index, thread) in threads {
        let tally = thread
            .join()
            .map_err(|_| BenchError::Void("a thread of the load panicked".to_owned()))??;
        tallies[index].add(&tally);
    }
    let (after, busy_after, elapsed) =
        after.unwrap_or_else(|| (look(), busy(), looked_at.elapsed()));

    let server = match (before?, after?) {
        (Some(before), Some(after)) => Some(after.since(&before)),
        _ => None,
    };
    let clients: Duration = tallies.iter().map(|tally| tally.client_cpu).sum();
    let others = server
        .map(|server| busy_after.saturating_sub(busy_before).saturating_sub(server.cpu + clients));
    Ok(Measured { tallies, server, elapsed, others })
}

/// The part of `plan` that its thread `part` does.
fn worker(plan: &Plan, span: &Span, clock: Clock, part: u32) -> Worker {
    let share = |total: u64| {
        let (parts, part) = (u64::from(plan.threads), u64::from(part));
        total / parts + u64::from(part < total % parts)
    };
    let end_ns = clock.end.map_or(u64::MAX, |end| {
        u64::try_from(end.duration_since(clock.start).as_nanos()).unwrap_or(u64::MAX)
    });
    let schedule = plan.rate_per_s.map(|rate_per_s| {
        Schedule::new(rate_per_s / f64::from(plan.threads), end_ns, part, plan.threads)
    });
    let mut source = plan.source.clone();
    source.offset(part as usize);
    Worker {
        server: plan.server.clone(),
        source,
        tls: plan.tls.clone(),
        protocol: plan.protocol,
        headers: plan.headers.clone(),
        connections: u32::try_from(share(u64::from(plan.connections))).unwrap_or(u32::MAX),
        streams: plan.streams,
        schedule,
        clock,
        requests: span.requests.map(share),
        timeout: plan.timeout,
        reading: plan.reading,
        quic: plan.quic,
        request: Vec::new(),
    }
}

fn sleep_until(time: Instant) {
    thread::sleep(time.saturating_duration_since(Instant::now()));
}

/// The client that is asked for, or the one that suits the protocol.
fn client(arguments: &LoadArguments) -> Result<Client, BenchError> {
    let refused = |text: &str| Err(BenchError::Argument(text.to_owned()));
    match (arguments.client, arguments.protocol) {
        (None, Protocol::H2) => Ok(Client::Hyper),
        (None, _) => Ok(Client::Lean),
        (Some(Client::Lean), Protocol::H2) => refused("the lean client does not speak HTTP/2"),
        (Some(Client::Hyper), protocol) if protocol.is_quic() => {
            refused("hyper does not speak QUIC")
        }
        (Some(Client::H3), protocol) if protocol != Protocol::H3 => {
            refused("the h3 crate speaks HTTP/3 only")
        }
        (Some(client), _) => Ok(client),
    }
}

/// The verb.
///
/// # Errors
/// When nothing could be measured, and when requests failed (after the report is printed).
pub fn verb(arguments: &LoadArguments) -> Result<(), BenchError> {
    let (server, targets) = target::parse_all(&arguments.urls)?;
    let headers =
        arguments.headers.iter().map(|text| target::header(text)).collect::<Result<Vec<_>, _>>()?;
    let client = client(arguments)?;
    if arguments.protocol == Protocol::H1 && arguments.streams > 1 {
        return Err(BenchError::Argument(
            "HTTP/1.1 has one request at a time on a connection: use --connections".to_owned(),
        ));
    }
    if arguments.reading.given() && client != Client::Lean {
        return Err(BenchError::Argument(
            "--read-size, --receive-buffer and --spin are for the lean client".to_owned(),
        ));
    }
    let QuicArguments { mtu, window, requests_per_connection } = &arguments.quic;
    let lean = arguments.protocol.is_quic() && client == Client::Lean;
    if (mtu.is_some() || requests_per_connection.is_some()) && !lean {
        return Err(BenchError::Argument(
            "--mtu and --requests-per-connection are for the lean client of QUIC".to_owned(),
        ));
    }
    if window.is_some() && !arguments.protocol.is_quic() {
        return Err(BenchError::Argument("--window is for QUIC".to_owned()));
    }
    if arguments.protocol.is_quic() && !server.secure {
        return Err(BenchError::Argument(
            "QUIC is always encrypted: the URL starts with https://".to_owned(),
        ));
    }
    if arguments.threads > arguments.connections {
        return Err(BenchError::Argument("every thread needs a connection".to_owned()));
    }
    if let Some(None) = arguments.verify
        && let Some(target) = targets.iter().find(|target| target.digest.is_none())
    {
        return Err(BenchError::Argument(format!(
            "{}: there is no digest in it; use --verify=DIGEST",
            target.url
        )));
    }
    let source = Source::round_robin(&server, &targets, &headers, arguments.length, |target| {
        arguments.verify.and_then(|given| given.or(target.digest))
    });
    let tls = server
        .secure
        .then(|| tls::client_config(&arguments.trust, arguments.protocol))
        .transpose()?;
    let plan = Plan {
        server,
        source,
        tls,
        protocol: arguments.protocol,
        client,
        headers,
        connections: arguments.connections,
        streams: arguments.streams,
        rate_per_s: arguments.rate,
        timeout: arguments.timeout,
        pin: arguments.pin,
        threads: arguments.threads,
        reading: arguments.reading.reading(),
        quic: arguments.quic.options(),
    };
    let duration =
        arguments.duration.or_else(|| arguments.requests.is_none().then_some(DURATION_DEFAULT));
    let span = Span { warmup: arguments.warmup, duration, requests: arguments.requests };

    let heading = Heading::new(summary::describe(&plan, &span));
    let meter = arguments.server_pid.map(Meter::Process);
    let measured = run(std::slice::from_ref(&plan), &span, meter.as_ref())?;
    let summary = Summary::new(&plan, &measured.tallies[0], &measured);
    heading.print(arguments.json, &summary.text(), &summary)?;
    if summary.responses == 0 {
        return Err(BenchError::Void("there was no good answer".to_owned()));
    }
    match summary.failed {
        0 => Ok(()),
        failed => Err(BenchError::Void(format!("{failed} requests or connections failed"))),
    }
}
