//! What can go wrong with a shard.

/// Why a shard did not start, or how it ended.
#[derive(Debug, thiserror::Error)]
pub enum ShardError {
    /// RLIMIT_MEMLOCK is too low for the executor's rings.
    #[error(
        "shard {id}: {limit_bytes} bytes of memory may be locked, and {needed_bytes} are needed: \
         raise RLIMIT_MEMLOCK (`ulimit -l {}`, or `LimitMEMLOCK={needed_bytes}` in the systemd unit)",
        .needed_bytes / 1024
    )]
    LockedMemory {
        /// The shard's number.
        id: usize,
        /// The soft limit of this process.
        limit_bytes: u64,
        /// The least that works.
        needed_bytes: u64,
    },
    /// The executor could not be made; often io_uring is switched off or filtered.
    #[error("shard {id}: the executor could not be made: {reason}")]
    Executor {
        /// The shard's number.
        id: usize,
        /// What the executor said.
        reason: String,
    },
    /// A system call failed.
    #[error("shard {id}: {what}: {source}")]
    System {
        /// The shard's number.
        id: usize,
        /// What was being done.
        what: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The shard's thread panicked.
    #[error("shard {id}: its thread panicked: {message}")]
    Panicked {
        /// The shard's number.
        id: usize,
        /// The panic's message.
        message: String,
    },
}
