//! HTTP/3 over real sockets, with a client that nobody here has written.

#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod answers;
mod client;
mod hostile;
mod lives;
mod server;

/// Runs a client on a runtime of its own, beside the shard.
fn run<F: Future>(client: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(client)
}
