//! The other client: hyper on a tokio runtime of its own thread. What HTTP/2 is measured with, and a
//! check of the lean client by code that is not ours.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use outrider_artifact::ContentHasher;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::{LocalSet, spawn_local, yield_now};
use tokio_rustls::TlsConnector;

use super::source::{Expectation, Source};
use super::tally::{Failure, FailureKind, Tally};
use super::window::{Phase, Window};
use super::worker::Worker;
use crate::BenchError;
use crate::arguments::Protocol;

/// What one stream may have under way, so that the client does not hold the server back.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
/// What one connection may have under way.
const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;
/// tokio's timers are exact to a millisecond; closer than this a request that is due is waited for
/// by turning over.
const SPIN: Duration = Duration::from_millis(2);
/// How long a connection that failed waits for the next attempt.
pub(super) const RETRY: Duration = Duration::from_millis(50);

pub(super) struct State {
    pub(super) worker: Worker,
    pub(super) window: Window,
    pub(super) tally: Tally,
    /// For each stream, since when its request has been due.
    pub(super) waiting: Vec<Option<u64>>,
}

pub(super) struct Shared {
    pub(super) state: RefCell<State>,
    pub(super) changed: Notify,
}

enum Sender {
    H1(http1::SendRequest<Empty<Bytes>>),
    H2(http2::SendRequest<Empty<Bytes>>),
}

/// Runs one thread's part of a load to its end.
///
/// # Errors
/// When the runtime cannot be made, or ranges are asked for.
pub fn run(worker: Worker) -> Result<Tally, BenchError> {
    if !matches!(worker.source, Source::RoundRobin(_)) {
        return Err(BenchError::Argument("ranges are asked for by the lean client only".into()));
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(BenchError::io("making a runtime"))?;
    let slots = worker.connections as usize * worker.streams as usize;
    let window = Window::new(worker.clock, worker.requests, worker.connections);
    let (connections, streams) = (worker.connections as usize, worker.streams as usize);
    let state = State { worker, window, tally: Tally::default(), waiting: vec![None; slots] };
    let shared = Rc::new(Shared { state: RefCell::new(state), changed: Notify::new() });
    let local = LocalSet::new();
    local.block_on(&runtime, async {
        for index in 0..connections {
            spawn_local(connection(Rc::clone(&shared), index * streams, streams));
        }
        watch(&shared).await;
    });
    let tally = std::mem::take(&mut shared.state.borrow_mut().tally);
    Ok(tally)
}

/// Turns the window over, and returns at the end of the load.
pub(super) async fn watch(shared: &Shared) {
    loop {
        let now = Instant::now();
        let wake_at = {
            let mut state = shared.state.borrow_mut();
            let State { window, tally, .. } = &mut *state;
            let phase = window.turn(now, tally);
            if phase == Phase::Over || (phase == Phase::Draining && state.drained(now)) {
                break;
            }
            state.window.next_boundary(now).unwrap_or(now + Duration::from_millis(100))
        };
        tokio::select! {
            () = tokio::time::sleep_until(wake_at.into()) => {}
            () = shared.changed.notified() => {}
        }
    }
    shared.state.borrow_mut().leave();
}

impl State {
    /// Moves the window on, and says which nanosecond of it this is. Whoever is about to count does
    /// it, since the timer that watches the window is late by up to a millisecond.
    fn turn(&mut self) -> u64 {
        let now = Instant::now();
        self.window.turn(now, &mut self.tally);
        self.window.ns(now)
    }

    fn drained(&self, now: Instant) -> bool {
        let Some(schedule) = &self.worker.schedule else { return true };
        let waiting = self.waiting.iter().any(Option::is_some);
        (!waiting && schedule.next_due_ns().is_none())
            || now >= self.window.ended_at() + self.worker.timeout
    }

    /// As the lean client's: each request that was due has waited until now.
    fn leave(&mut self) {
        let Some(schedule) = &mut self.worker.schedule else { return };
        let now_ns = self.window.ns(Instant::now());
        let begin_ns = self.window.begin_ns();
        let unsent = std::iter::from_fn(|| schedule.take(now_ns));
        let waiting = self.waiting.iter().copied().flatten().filter(|due_ns| *due_ns <= now_ns);
        for due_ns in waiting.chain(unsent).filter(|due_ns| *due_ns >= begin_ns) {
            self.tally.unanswered += 1;
            self.tally.latency.record_ns(now_ns - due_ns);
        }
    }

    pub(super) fn fail(&mut self, failure: Failure) {
        // A closed loop leaves what is under way at its end uncounted, good or not.
        if self.worker.schedule.is_none() && self.window.draining() {
            return;
        }
        self.tally.fail(failure);
        self.window.completed(false);
    }
}

/// Keeps one connection open, and its streams busy.
async fn connection(shared: Rc<Shared>, first_slot: usize, streams: usize) {
    let mut opened = false;
    loop {
        if std::mem::replace(&mut opened, true) {
            shared.state.borrow_mut().tally.reconnects += 1;
            tokio::time::sleep(RETRY).await;
        }
        let timeout = shared.state.borrow().worker.timeout;
        let connected = match tokio::time::timeout(timeout, connect(&shared)).await {
            Ok(connected) => connected,
            Err(_) => Err(Failure::new(
                FailureKind::Timeout,
                format!("waited {timeout:?} for the connection"),
            )),
        };
        match connected {
            Ok(sender @ Sender::H1(_)) => requests(&shared, sender, first_slot).await,
            Ok(Sender::H2(sender)) => {
                let mut tasks = tokio::task::JoinSet::new();
                for slot in first_slot..first_slot + streams {
                    let (shared, sender) = (Rc::clone(&shared), Sender::H2(sender.clone()));
                    tasks.spawn_local(async move { requests(&shared, sender, slot).await });
                }
                while tasks.join_next().await.is_some() {}
            }
            Err(failure) => shared.state.borrow_mut().fail(failure),
        }
        shared.changed.notify_one();
    }
}

async fn requests(shared: &Shared, mut sender: Sender, slot: usize) {
    stream(shared, slot, async |status| request(shared, &mut sender, status).await).await;
}

async fn connect(shared: &Shared) -> Result<Sender, Failure> {
    let (address, name, tls, protocol) = {
        let worker = &shared.state.borrow().worker;
        let server = &worker.server;
        (server.address, server.name.clone(), worker.tls.clone(), worker.protocol)
    };
    let failed = |kind, error: &dyn std::fmt::Display| {
        Failure::new(kind, format!("connecting to {address}: {error}"))
    };
    let stream =
        TcpStream::connect(address).await.map_err(|error| failed(FailureKind::Connect, &error))?;
    stream.set_nodelay(true).map_err(|error| failed(FailureKind::Connect, &error))?;
    match tls {
        None => handshake(TokioIo::new(stream), protocol).await,
        Some(config) => {
            let stream = TlsConnector::from(Arc::clone(&config))
                .connect(name, stream)
                .await
                .map_err(|error| failed(FailureKind::Tls, &error))?;
            let session = stream.get_ref().1;
            if protocol == Protocol::H2 && session.alpn_protocol() != Some(b"h2") {
                return Err(Failure::new(FailureKind::Tls, "the server does not offer HTTP/2"));
            }
            let cipher = session.negotiated_cipher_suite().map(|suite| suite.suite());
            shared.state.borrow_mut().tally.cipher = cipher.map(|suite| format!("{suite:?}"));
            handshake(TokioIo::new(stream), protocol).await
        }
    }
}

async fn handshake<I>(io: I, protocol: Protocol) -> Result<Sender, Failure>
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let failed = |error: hyper::Error| Failure::new(FailureKind::Protocol, error.to_string());
    match protocol {
        Protocol::H1 => {
            let (sender, connection) = http1::handshake(io).await.map_err(failed)?;
            // Its errors reach whoever waits for an answer.
            spawn_local(async move {
                let _ = connection.await;
            });
            Ok(Sender::H1(sender))
        }
        // QUIC has a client of its own.
        _ => {
            let (sender, connection) = http2::Builder::new(TokioExecutor::new())
                .initial_stream_window_size(STREAM_WINDOW_BYTES)
                .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
                .handshake(io)
                .await
                .map_err(failed)?;
            spawn_local(async move {
                let _ = connection.await;
            });
            Ok(Sender::H2(sender))
        }
    }
}

/// Sends one request after the other until the connection is of no use.
pub(super) async fn stream(
    shared: &Shared,
    slot: usize,
    mut request: impl AsyncFnMut(&mut Option<u16>) -> Result<(), Failure>,
) {
    loop {
        let Some(due_ns) = next_due(shared, slot).await else {
            // Nothing more to send; the load ends when all streams are here.
            shared.changed.notify_one();
            return std::future::pending().await;
        };
        let timeout = shared.state.borrow().worker.timeout;
        let mut status = None;
        let result = match tokio::time::timeout(timeout, request(&mut status)).await {
            Ok(result) => result,
            Err(_) => Err(Failure::new(
                FailureKind::Timeout,
                format!("waited {timeout:?} for the answer"),
            )),
        };
        let mut state = shared.state.borrow_mut();
        state.waiting[slot] = None;
        let now_ns = state.turn();
        let counts = match state.worker.schedule {
            Some(_) => due_ns >= state.window.begin_ns(),
            None => state.window.counts(),
        };
        if let Some(status) = status.filter(|_| counts) {
            *state.tally.statuses.entry(status).or_default() += 1;
        }
        let usable = match result {
            Ok(()) => {
                state.window.completed(true);
                if counts {
                    state.tally.responses += 1;
                    state.tally.latency.record_ns(now_ns - due_ns);
                }
                true
            }
            Err(failure) => {
                let usable = matches!(failure.kind, FailureKind::Status | FailureKind::Digest);
                state.fail(failure);
                usable
            }
        };
        if state.window.over_for_closed_loop() {
            shared.changed.notify_one();
        }
        if !usable {
            return;
        }
    }
}

/// Waits until this stream's next request is due; `None` when there is none.
pub(super) async fn next_due(shared: &Shared, slot: usize) -> Option<u64> {
    let due_ns = {
        let mut state = shared.state.borrow_mut();
        let now_ns = state.turn();
        let over = state.window.over_for_closed_loop();
        let due_ns = match &mut state.worker.schedule {
            Some(schedule) => schedule.reserve()?,
            None if over => return None,
            None => now_ns,
        };
        state.waiting[slot] = Some(due_ns);
        due_ns
    };
    loop {
        let now_ns = shared.state.borrow().window.ns(Instant::now());
        let wait = Duration::from_nanos(due_ns.saturating_sub(now_ns));
        if wait.is_zero() {
            let mut state = shared.state.borrow_mut();
            state.turn();
            if state.worker.schedule.is_some() && due_ns >= state.window.begin_ns() {
                state.tally.send_lag.record_ns(now_ns - due_ns);
            }
            return Some(due_ns);
        }
        if wait > SPIN {
            tokio::time::sleep(wait - SPIN).await;
        } else {
            yield_now().await;
        }
    }
}

async fn request(
    shared: &Shared,
    sender: &mut Sender,
    status: &mut Option<u16>,
) -> Result<(), Failure> {
    let (request, expectation) = make_request(shared)?;
    let closed = |error: hyper::Error| Failure::new(FailureKind::Closed, error.to_string());
    let response = match sender {
        Sender::H1(sender) => {
            sender.ready().await.map_err(closed)?;
            sender.send_request(request).await.map_err(closed)?
        }
        Sender::H2(sender) => {
            sender.ready().await.map_err(closed)?;
            sender.send_request(request).await.map_err(closed)?
        }
    };
    let code = response.status().as_u16();
    *status = Some(code);
    let mut hasher = expectation.digest.map(|digest| ContentHasher::new(digest.algorithm()));
    let mut received = 0_u64;
    let mut body = response.into_body();
    while let Some(frame) = body.frame().await {
        let frame =
            frame.map_err(|error| Failure::new(FailureKind::ShortBody, error.to_string()))?;
        let Some(data) = frame.data_ref() else { continue };
        received += data.len() as u64;
        if let Some(hasher) = &mut hasher {
            hasher.update(data);
        }
        let mut state = shared.state.borrow_mut();
        if state.window.counts() {
            state.tally.body_bytes += data.len() as u64;
        }
    }
    expectation.check_head(code, received)?;
    if let Some(hasher) = hasher {
        expectation.check_digest(&hasher.finish())?;
    }
    shared.state.borrow_mut().worker.source.learn(expectation.target, received);
    Ok(())
}

fn make_request(shared: &Shared) -> Result<(http::Request<Empty<Bytes>>, Expectation), Failure> {
    let mut state = shared.state.borrow_mut();
    let worker = &mut state.worker;
    let wrong = |text: String| Failure::new(FailureKind::Protocol, text);
    let (path, expectation) =
        worker.source.next_path().ok_or_else(|| wrong("ranges are not asked for here".into()))?;
    let mut builder = match worker.protocol {
        Protocol::H1 => {
            http::Request::get(path).header(http::header::HOST, worker.server.authority.as_str())
        }
        _ => {
            let scheme = if worker.server.secure { "https" } else { "http" };
            http::Request::get(format!("{scheme}://{}{path}", worker.server.authority))
        }
    };
    for (name, value) in &worker.headers {
        builder = builder.header(name, value);
    }
    let request = builder.body(Empty::new()).map_err(|error| wrong(error.to_string()))?;
    Ok((request, expectation))
}
