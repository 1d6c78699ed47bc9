//! The one error type of the benchmark: what was being done, to what, and how to go on.

use std::path::PathBuf;

/// Why a measurement could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// An argument cannot be used.
    #[error("{0}")]
    Argument(String),
    /// Something of the system failed.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done, to what.
        doing: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// TLS could not be set up.
    #[error("TLS: {0}")]
    Tls(String),
    /// A program that is compared with is not installed.
    #[error("{program} is not installed. Install it with:  {install}")]
    PeerMissing {
        /// The program that was looked for.
        program: String,
        /// The command that installs it.
        install: String,
    },
    /// A program that was started did not become ready, or ended.
    #[error("{program} did not start: {reason}\n--- its log ({}) ends with\n{tail}", .log.display())]
    PeerFailed {
        /// The program.
        program: String,
        /// What happened.
        reason: String,
        /// Its log file.
        log: PathBuf,
        /// The last lines of that file.
        tail: String,
    },
    /// A server answered something else than the protocol allows or the benchmark asked for.
    #[error("{0}")]
    Protocol(String),
    /// The cache library refused.
    #[error("cache: {0}")]
    Cache(String),
    /// What was measured is not a measurement: nothing arrived, or errors spoil it.
    #[error("no measurement: {0}")]
    Void(String),
}

impl BenchError {
    /// An [`BenchError::Io`] from what was being done.
    pub fn io(doing: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }
}
