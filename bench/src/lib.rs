//! Measures what an Outrider box does, and what other servers do on the same box in the same run.
//!
//! It owns the load generator, the disk baseline, and the peers that it starts itself; it never
//! ends a process that it did not start, and every run is bounded by a count or by a time.
//!
//! - [`arguments`]: the command line.
//! - [`error`]: the one error type.

#![deny(unsafe_code)]

pub mod arguments;
pub mod error;

pub use arguments::Arguments;
pub use error::BenchError;

/// Runs the verb that the command line names.
///
/// # Errors
/// Whatever kept the measurement from being made, with what to do about it.
pub fn run(_arguments: Arguments) -> Result<(), BenchError> {
    Ok(())
}
