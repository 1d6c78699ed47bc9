//! `compare`: another server and Outrider side by side, in one run, in interleaved rounds, so that
//! what the machine does meanwhile hits both.
//!
//! - [`https`]: downloads by server CPU, against nginx.
//! - [`h3`]: downloads over HTTP/3 by server CPU, against three servers and the [`limit`].
//! - [`mixed`]: what one kind of client does to another, on one server.
//! - [`shards`]: one shard against several of them.
//! - [`etcd`]: committed writes of the control plane, against etcd.
//! - [`pull`]: pulls of an image, against two pull-through registries.

pub mod etcd;
pub mod h3;
pub mod https;
pub mod limit;
pub mod mixed;
pub mod pull;
pub mod shards;

use std::path::Path;
use std::process::Command;

/// The first line that a program says about its version, on either output.
pub fn version(program: &Path, argument: &str) -> String {
    let output = Command::new(program).arg(argument).output();
    let text = output.map(|output| [output.stdout, output.stderr].concat()).unwrap_or_default();
    String::from_utf8_lossy(&text).lines().next().unwrap_or("version unknown").trim().to_owned()
}

/// The order of `count` contenders in a round: each round starts with the next one, so that none is
/// always the first after a pause or always behind the same one.
pub fn order(count: usize, round: u32) -> impl Iterator<Item = usize> {
    let first = round as usize % count.max(1);
    (0..count).map(move |index| (first + index) % count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_contender_is_first_equally_often() {
        let orders: Vec<Vec<usize>> = (0..3).map(|round| order(3, round).collect()).collect();
        assert_eq!(orders, [[0, 1, 2], [1, 2, 0], [2, 0, 1]]);
        assert_eq!(order(2, 1).collect::<Vec<_>>(), [1, 0]);
    }

    #[test]
    fn a_program_without_a_version_is_not_an_error() {
        assert_eq!(version(Path::new("/no/such/program"), "-v"), "version unknown");
    }
}
