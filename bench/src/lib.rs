//! Measures what an Outrider box does, and what other servers do on the same box in the same run.
//!
//! It owns the load generator, the disk baseline, and the peers that it starts itself; it never
//! ends a process that it did not start, and every run is bounded by a count or by a time.
//!
//! - [`arguments`]: the command line.
//! - [`load`]: the load generator.
//! - [`disk`]: stripe reads against the device's own rate.
//! - [`compare`]: other servers and Outrider side by side. [`peers`]: how they are started.
//! - [`image`], [`http`]: images to push and pull, and the small client that does it.
//! - [`abuse`]: what hostile clients do to the others.
//! - [`follow`]: how soon edges know what the control plane has written.
//! - [`idle`]: what a server uses while nobody asks it for anything.
//! - [`machine`], [`process`]: what a measurement ran on, and what a server used.
//! - [`statistics`], [`report`]: medians and ratios, and how they are printed.
//! - [`error`]: the one error type.

#![deny(unsafe_code)]

pub mod abuse;
pub mod arguments;
pub mod compare;
pub mod disk;
pub mod error;
pub mod follow;
pub mod http;
pub mod idle;
pub mod image;
pub mod load;
pub mod machine;
pub mod peers;
pub mod process;
pub mod report;
pub mod statistics;

pub use arguments::Arguments;
pub use error::BenchError;

use arguments::{Compare, Verb};

/// Runs the verb that the command line names.
///
/// # Errors
/// Whatever kept the measurement from being made, with what to do about it.
pub fn run(arguments: &Arguments) -> Result<(), BenchError> {
    match &arguments.verb {
        Verb::Load(arguments) => load::verb(arguments),
        Verb::Compare(Compare::Https(arguments)) => compare::https::verb(arguments),
        Verb::Compare(Compare::H3(arguments)) => compare::h3::verb(arguments),
        Verb::Compare(Compare::Mixed(arguments)) => compare::mixed::verb(arguments),
        Verb::Compare(Compare::Shards(arguments)) => compare::shards::verb(arguments),
        Verb::Compare(Compare::Pull(arguments)) => compare::pull::verb(arguments),
        Verb::Compare(Compare::Etcd(arguments)) => compare::etcd::verb(arguments),
        Verb::Idle(arguments) => idle::verb(arguments),
        Verb::Disk(arguments) => disk::verb(arguments),
        Verb::Abuse(arguments) => abuse::verb(arguments),
        Verb::Follow(arguments) => follow::verb(arguments),
    }
}
