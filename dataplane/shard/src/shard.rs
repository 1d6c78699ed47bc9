//! Starting a shard.

use std::time::Duration;

use crate::{ShardError, ShardHandle};

/// Something that the driver turns over: a ring, a socket, a queue.
pub trait Source {
    /// Takes what is ready; true when there was something.
    fn turn(&mut self) -> bool;

    /// Whether something is under way that could be ready soon.
    fn in_flight(&self) -> bool;
}

/// How a shard runs.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    /// Its number, from 0 on.
    pub id: usize,
    /// The CPU that it is pinned to.
    pub cpu: Option<usize>,
    /// For how long at most it spins before it sleeps.
    pub spin: Duration,
}

/// What `main` of a shard gets.
#[derive(Debug)]
pub struct ShardContext {}

impl ShardContext {
    /// The way into this shard from other threads.
    pub fn handle(&self) -> ShardHandle {
        unimplemented!()
    }

    /// Adds a source to the driver's turn.
    pub fn add_source(&self, source: Box<dyn Source>) {
        drop(source);
        unimplemented!()
    }
}

/// A running shard.
#[derive(Debug)]
pub struct ShardThread {}

impl ShardThread {
    /// The way into the shard.
    pub fn handle(&self) -> ShardHandle {
        unimplemented!()
    }

    /// Waits until its `main` has returned.
    ///
    /// # Errors
    /// [`ShardError::Panicked`].
    pub fn join(self) -> Result<(), ShardError> {
        unimplemented!()
    }
}

/// Starts a shard on a thread of its own.
///
/// # Errors
/// See [`ShardError`].
pub fn start<F, Fut>(config: ShardConfig, main: F) -> Result<ShardThread, ShardError>
where
    F: FnOnce(ShardContext) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + 'static,
{
    let _ = (config, main);
    unimplemented!()
}
