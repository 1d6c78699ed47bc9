//! For the tests of the crates above: a handle without a shard, and a future on a real one.

use std::future::Future;
use std::sync::mpsc;

use crate::{ShardConfig, ShardContext, ShardError, ShardHandle, start};

/// A handle to no shard: its wakers are woken where they are. With it channels can be tested in any
/// runtime, or by polling their futures by hand.
///
/// # Panics
/// When the process has no descriptor left.
pub fn detached_handle() -> ShardHandle {
    let handle = ShardHandle::new(0).expect("a test has descriptors left");
    handle.shared().detach();
    handle
}

/// Runs a future on a shard of its own, and gives what it gives.
///
/// # Errors
/// When the shard does not start, or panics.
pub fn on_shard<F, Fut, T>(make: F) -> Result<T, ShardError>
where
    F: FnOnce(ShardContext) -> Fut + Send + 'static,
    Fut: Future<Output = T> + 'static,
    T: Send + 'static,
{
    let (give, taken) = mpsc::channel();
    let thread = start(ShardConfig::new(0), move |context| {
        let future = make(context);
        async move {
            // Who takes it waits below.
            let _ = give.send(future.await);
        }
    })?;
    thread.join()?;
    Ok(taken.recv().expect("a shard that ended without a panic has run its main to the end"))
}
