//! Nodes as processes, and edges in this one: each with a certificate, a socket and a connection of its own.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use outrider_follower::EdgeFolder;
use outrider_link::tls::{self, NODE_NAME};
use outrider_link::{Beside, Taken, follow};
use outrider_push::{Interest, Item, Replica};
use quinn::Endpoint;
use tempfile::TempDir;
use tokio::sync::watch;

use crate::arguments::FollowArguments;
use crate::load::latency::Latency;
use crate::peers::control::{run, start_nodes, token};
use crate::peers::{find, outrider};
use crate::report::progress;
use crate::{BenchError, http};

/// Keys of what is written.
const PREFIX: &str = "bench/";
/// Clients that write at a time.
const WRITERS: u32 = 8;
/// Before the first write that counts.
const SETTLE: Duration = Duration::from_millis(500);
/// How long the last updates may take to come everywhere.
const LAST_MAX: Duration = Duration::from_secs(30);

/// What was measured.
#[derive(Debug, Default)]
pub(super) struct Times {
    pub(super) acknowledged: Latency,
    pub(super) since_sent: Latency,
    pub(super) since_acknowledged: Latency,
}

pub(super) fn measure(arguments: &FollowArguments) -> Result<Times, BenchError> {
    let program = find(&arguments.outrider, outrider::INSTALL)?;
    let scratch = TempDir::new().map_err(BenchError::io("making a folder"))?;
    let nodes = start_nodes(&program, scratch.path(), arguments.nodes)?;
    progress(&format!("{} edges join", arguments.edges));
    let folders = join_edges(&program, scratch.path(), nodes[0].admin, arguments.edges)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(BenchError::io("starting a runtime"))?;
    let (leave, left) = watch::channel(false);
    let (ready, readies) = mpsc::channel();
    let _inside = runtime.enter();
    let mut edges = Vec::new();
    for (index, folder) in folders.iter().enumerate() {
        let node = nodes[index % nodes.len()].peers;
        edges.push(runtime.spawn(edge(folder.clone(), node, ready.clone(), left.clone())));
    }
    drop(ready);
    for _ in &edges {
        readies.recv().map_err(|_| BenchError::Void("an edge does not follow".to_owned()))?;
    }
    thread::sleep(SETTLE);
    progress(&format!("{} updates", arguments.updates));
    let admins: Vec<SocketAddr> = nodes.iter().map(|node| node.admin).collect();
    let written = write(&admins, arguments.updates, arguments.rate)?;
    thread::sleep(SETTLE);
    leave.send_replace(true);
    let mut times = Times::default();
    for edge in edges {
        let seen = runtime
            .block_on(async { tokio::time::timeout(LAST_MAX, edge).await })
            .map_err(|_| BenchError::Void("an edge did not get everything in time".to_owned()))?
            .map_err(|error| BenchError::Void(format!("an edge panicked: {error}")))??;
        account(&written, &seen, &mut times)?;
    }
    for (sent, acknowledged) in &written {
        times.acknowledged.record_ns(ns(*acknowledged - *sent));
    }
    Ok(times)
}

/// Every update once, and no other.
fn account(
    written: &[(Instant, Instant)],
    seen: &[(u64, Instant)],
    times: &mut Times,
) -> Result<(), BenchError> {
    let mut known = vec![false; written.len()];
    for (index, at) in seen {
        let place = usize::try_from(*index).unwrap_or(usize::MAX);
        let (Some(known), Some((sent, acknowledged))) = (known.get_mut(place), written.get(place))
        else {
            return Err(BenchError::Void(format!("an edge has update {index}, which is none")));
        };
        if std::mem::replace(known, true) {
            return Err(BenchError::Void(format!("an edge was told twice of update {index}")));
        }
        times.since_sent.record_ns(ns(at.saturating_duration_since(*sent)));
        times.since_acknowledged.record_ns(ns(at.saturating_duration_since(*acknowledged)));
    }
    match known.iter().position(|known| !known) {
        Some(index) => Err(BenchError::Void(format!("an edge was not told of update {index}"))),
        None => Ok(()),
    }
}

fn ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn join_edges(
    program: &Path,
    folder: &Path,
    admin: SocketAddr,
    count: u32,
) -> Result<Vec<PathBuf>, BenchError> {
    let mut folders = Vec::new();
    for place in 0..count {
        let (data, config) =
            (folder.join(format!("edge-{place}")), folder.join(format!("edge-{place}.toml")));
        let text = format!("[data]\ndir = {:?}\n", data.display().to_string());
        fs::write(&config, text).map_err(BenchError::io("writing a configuration"))?;
        let token = token(program, admin, "edge")?;
        let config = config.display().to_string();
        run(program, &["cluster", "join", "--role", "edge", "--config", &config, &token])?;
        folders.push(data.join("control"));
    }
    Ok(folders)
}

/// Follows one node until it is told to leave; gives when it knew of which update.
async fn edge(
    folder: PathBuf,
    node: SocketAddr,
    ready: mpsc::Sender<()>,
    mut leave: watch::Receiver<bool>,
) -> Result<Vec<(u64, Instant)>, BenchError> {
    let failed = |error: &dyn std::fmt::Display| BenchError::Tls(error.to_string());
    let identity = EdgeFolder::new(&folder).identity().map_err(|error| failed(&error))?;
    let mut endpoint = Endpoint::client((std::net::Ipv4Addr::LOCALHOST, 0).into())
        .map_err(BenchError::io("binding a socket"))?;
    endpoint.set_default_client_config(tls::client(identity).map_err(|error| failed(&error))?);
    let (mut replica, mut seen) = (Replica::default(), Vec::new());
    let mut told = false;
    let taken = |_: &Replica, taken: Taken| {
        let now = Instant::now();
        if !std::mem::replace(&mut told, true) {
            // Whoever waits has gone when the measurement has failed.
            let _ = ready.send(());
        }
        for item in &taken.items {
            if let Item::Fragment { value: Some(value), .. } = item
                && let Ok(index) = <[u8; 8]>::try_from(&value[..])
            {
                seen.push((u64::from_le_bytes(index), now));
            }
        }
    };
    let interest = Interest { prefixes: vec![PREFIX.to_owned()] };
    let (_nobody, mut asks) = tokio::sync::mpsc::channel(1);
    let beside = Beside { asks: &mut asks, events: None, soft: None };
    let to = (node, NODE_NAME);
    tokio::select! {
        error = follow(&endpoint, to, interest, &mut replica, beside, taken) => {
            return Err(BenchError::Void(format!("an edge does not follow: {error}")));
        }
        _ = leave.wait_for(|leave| *leave) => {}
    }
    Ok(seen)
}

/// Writes so many values, at even intervals if the nodes keep up; gives when each was sent and acknowledged.
fn write(
    admins: &[SocketAddr],
    count: u64,
    rate: f64,
) -> Result<Vec<(Instant, Instant)>, BenchError> {
    let begin = Instant::now();
    let mut all = vec![None; usize::try_from(count).unwrap_or(0)];
    let written: Vec<Result<Vec<_>, BenchError>> = thread::scope(|scope| {
        let writers: Vec<_> = (0..u64::from(WRITERS))
            .map(|writer| {
                let admin = admins[writer as usize % admins.len()];
                scope.spawn(move || {
                    let mut client = http::HttpClient::new(admin);
                    let mut written = Vec::new();
                    for index in (writer..count).step_by(WRITERS as usize) {
                        let due = begin + Duration::from_secs_f64(index as f64 / rate);
                        thread::sleep(due.saturating_duration_since(Instant::now()));
                        let path = format!("/v1/state/{PREFIX}{}", index % 100);
                        let sent = Instant::now();
                        let value = index.to_le_bytes();
                        let (head, body) = client.request_all("PUT", &path, &[], &value)?;
                        if head.status != 204 {
                            let body = String::from_utf8_lossy(&body).into_owned();
                            return Err(BenchError::Void(format!("PUT: {} {body}", head.status)));
                        }
                        written.push((index, sent, Instant::now()));
                    }
                    Ok(written)
                })
            })
            .collect();
        let panicked = || Err(BenchError::Void("a writer panicked".to_owned()));
        writers.into_iter().map(|writer| writer.join().unwrap_or_else(|_| panicked())).collect()
    });
    for written in written {
        for (index, sent, acknowledged) in written? {
            all[index as usize] = Some((sent, acknowledged));
        }
    }
    all.into_iter()
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| BenchError::Void("not everything was written".to_owned()))
}
