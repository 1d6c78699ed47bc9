//! Tasks on this shard.

/// Runs `future` on this shard, beside its caller.
pub fn spawn(future: impl Future<Output = ()> + 'static) {
    drop(future);
    unimplemented!()
}

/// Lets every other runnable task run once.
pub async fn yield_now() {
    unimplemented!()
}

/// Yields when this task has run for long.
pub async fn yield_if_needed() {
    unimplemented!()
}
