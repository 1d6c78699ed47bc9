//! An ordinary HTTP/3 client: the crates `h3` and `quinn` on a tokio runtime of its own thread, with
//! their defaults, the kernel's default socket buffers included. What a server sees of most clients
//! that are written in Rust, and a check of the lean client by code that is not ours.

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use h3::client::SendRequest;
use outrider_artifact::ContentHasher;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Endpoint, TransportConfig};
use tokio::sync::Notify;
use tokio::task::{LocalSet, spawn_local};

use super::hyper_client::{RETRY, Shared, State, stream, watch};
use super::source::{Expectation, Source};
use super::tally::{Failure, FailureKind, Tally};
use super::tls;
use super::window::Window;
use super::worker::Worker;
use crate::BenchError;

type Sender = SendRequest<h3_quinn::OpenStreams, Bytes>;

/// Runs one thread's part of a load to its end.
///
/// # Errors
/// When the runtime or the socket cannot be made, or ranges are asked for.
pub fn run(worker: Worker) -> Result<Tally, BenchError> {
    if !matches!(worker.source, Source::RoundRobin(_)) {
        return Err(BenchError::Argument("ranges at random are for HTTP/1.1 only".into()));
    }
    let config = client_config(&worker)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(BenchError::io("making a runtime"))?;
    let (connections, streams) = (worker.connections as usize, worker.streams as usize);
    let any = if worker.server.address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let window = Window::new(worker.clock, worker.requests, worker.connections);
    let waiting = vec![None; connections * streams];
    let state = State { worker, window, tally: Tally::default(), waiting };
    let shared = Rc::new(Shared { state: RefCell::new(state), changed: Notify::new() });
    let local = LocalSet::new();
    local.block_on(&runtime, async {
        let address = any.parse().unwrap_or_else(|_| unreachable!("the addresses are constants"));
        let mut endpoint =
            Endpoint::client(address).map_err(BenchError::io("binding a UDP socket"))?;
        endpoint.set_default_client_config(config);
        for index in 0..connections {
            let (shared, endpoint) = (Rc::clone(&shared), endpoint.clone());
            spawn_local(
                async move { connection(shared, endpoint, index * streams, streams).await },
            );
        }
        watch(&shared).await;
        endpoint.close(0_u32.into(), b"");
        Ok(())
    })?;
    let tally = std::mem::take(&mut shared.state.borrow_mut().tally);
    Ok(tally)
}

fn client_config(worker: &Worker) -> Result<ClientConfig, BenchError> {
    let tls = worker.tls.as_ref().ok_or_else(|| {
        BenchError::Argument("QUIC is always encrypted: the URL starts with https://".to_owned())
    })?;
    let crypto = QuicClientConfig::try_from(rustls::ClientConfig::clone(tls))
        .map_err(|error| BenchError::Tls(error.to_string()))?;
    let mut config = ClientConfig::new(Arc::new(crypto));
    if let Some(window) = worker.quic.window_bytes {
        let window = window.try_into().map_err(|_| {
            BenchError::Argument(format!("a connection's window is less than 2^62, not {window}"))
        })?;
        let mut transport = TransportConfig::default();
        transport.stream_receive_window(window);
        transport.receive_window(window);
        config.transport_config(Arc::new(transport));
    }
    Ok(config)
}

/// Keeps one connection open, and its streams busy.
async fn connection(shared: Rc<Shared>, endpoint: Endpoint, first_slot: usize, streams: usize) {
    let mut opened = false;
    loop {
        if std::mem::replace(&mut opened, true) {
            shared.state.borrow_mut().tally.reconnects += 1;
            tokio::time::sleep(RETRY).await;
        }
        let timeout = shared.state.borrow().worker.timeout;
        let connected = match tokio::time::timeout(timeout, connect(&shared, &endpoint)).await {
            Ok(connected) => connected,
            Err(_) => Err(Failure::new(
                FailureKind::Timeout,
                format!("waited {timeout:?} for the connection"),
            )),
        };
        match connected {
            Ok(sender) => {
                let mut tasks = tokio::task::JoinSet::new();
                for slot in first_slot..first_slot + streams {
                    let (shared, mut sender) = (Rc::clone(&shared), sender.clone());
                    tasks.spawn_local(async move {
                        let ask = async |status: &mut Option<u16>| {
                            request(&shared, &mut sender, status).await
                        };
                        stream(&shared, slot, ask).await;
                    });
                }
                while tasks.join_next().await.is_some() {}
            }
            Err(failure) => shared.state.borrow_mut().fail(failure),
        }
        shared.changed.notify_one();
    }
}

async fn connect(shared: &Shared, endpoint: &Endpoint) -> Result<Sender, Failure> {
    let (address, name) = {
        let server = &shared.state.borrow().worker.server;
        (server.address, server.name.to_str().into_owned())
    };
    let failed = |kind, error: &dyn std::fmt::Display| {
        Failure::new(kind, format!("connecting to {address}: {error}"))
    };
    let connection = endpoint
        .connect(address, &name)
        .map_err(|error| failed(FailureKind::Connect, &error))?
        .await
        .map_err(|error| match error {
            quinn::ConnectionError::TransportError(_) => failed(FailureKind::Tls, &error),
            _ => failed(FailureKind::Connect, &error),
        })?;
    let (mut driver, sender) = h3::client::new(h3_quinn::Connection::new(connection))
        .await
        .map_err(|error| failed(FailureKind::Protocol, &error))?;
    shared.state.borrow_mut().tally.cipher.get_or_insert_with(|| tls::QUIC_CIPHER.to_owned());
    // Its errors reach whoever waits for an answer.
    spawn_local(async move {
        let _ = poll_fn(|context| driver.poll_close(context)).await;
    });
    Ok(sender)
}

async fn request(
    shared: &Shared,
    sender: &mut Sender,
    status: &mut Option<u16>,
) -> Result<(), Failure> {
    let (request, expectation) = make_request(shared)?;
    let closed =
        |error: h3::error::StreamError| Failure::new(FailureKind::Closed, error.to_string());
    let mut stream = sender.send_request(request).await.map_err(closed)?;
    stream.finish().await.map_err(closed)?;
    let response = stream.recv_response().await.map_err(closed)?;
    let code = response.status().as_u16();
    *status = Some(code);
    let mut hasher = expectation.digest.map(|digest| ContentHasher::new(digest.algorithm()));
    let mut received = 0_u64;
    let cut =
        |error: h3::error::StreamError| Failure::new(FailureKind::ShortBody, error.to_string());
    while let Some(mut data) = stream.recv_data().await.map_err(cut)? {
        let length = data.remaining() as u64;
        received += length;
        if let Some(hasher) = &mut hasher {
            while data.has_remaining() {
                let chunk = data.chunk();
                hasher.update(chunk);
                let count = chunk.len();
                data.advance(count);
            }
        }
        let mut state = shared.state.borrow_mut();
        if state.window.counts() {
            state.tally.body_bytes += length;
        }
    }
    expectation.check_head(code, received)?;
    if let Some(hasher) = hasher {
        expectation.check_digest(&hasher.finish())?;
    }
    shared.state.borrow_mut().worker.source.learn(expectation.target, received);
    Ok(())
}

fn make_request(shared: &Shared) -> Result<(http::Request<()>, Expectation), Failure> {
    let mut state = shared.state.borrow_mut();
    let worker = &mut state.worker;
    let wrong = |text: String| Failure::new(FailureKind::Protocol, text);
    let (path, expectation) =
        worker.source.next_path().ok_or_else(|| wrong("ranges are not asked for here".into()))?;
    let uri = format!("https://{}{path}", worker.server.authority);
    let mut builder = http::Request::get(uri);
    for (name, value) in &worker.headers {
        builder = builder.header(name, value);
    }
    let request = builder.body(()).map_err(|error| wrong(error.to_string()))?;
    Ok((request, expectation))
}
