//! The servers that are compared with, and Outrider itself: found, configured, started on loopback
//! for one run, and ended with it.
//!
//! - [`child`]: a process that ends with its owner. [`nginx`], [`caddy`], [`h3_quinn`], [`registry`], [`etcd`],
//!   [`outrider`], [`control`]: how each is started. [`certificate`]: what they show.

pub mod caddy;
pub mod certificate;
pub mod child;
pub mod control;
pub mod etcd;
pub mod h3_quinn;
pub mod nginx;
pub mod outrider;
pub mod registry;

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};

use crate::BenchError;

/// A loopback address with a port that was free a moment ago.
///
/// # Errors
/// When there is none.
pub fn free_address() -> Result<SocketAddr, BenchError> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map_err(BenchError::io("looking for a free port"))
}

/// The same for UDP.
///
/// # Errors
/// When there is none.
pub fn free_udp_address() -> Result<SocketAddr, BenchError> {
    UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|socket| socket.local_addr())
        .map_err(BenchError::io("looking for a free port"))
}

/// Finds a program: a path as it is; a bare name beside this program, then in `PATH`.
///
/// # Errors
/// [`BenchError::PeerMissing`], with the command that installs it.
pub fn find(program: &Path, install: &str) -> Result<PathBuf, BenchError> {
    let missing = || BenchError::PeerMissing {
        program: program.display().to_string(),
        install: install.to_owned(),
    };
    if program.components().count() > 1 {
        return if program.is_file() { Ok(program.to_owned()) } else { Err(missing()) };
    }
    let beside = std::env::current_exe().ok().and_then(|this| Some(this.parent()?.to_owned()));
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Debian keeps daemons in /usr/sbin, which is not in everyone's PATH; Go installs to ~/go/bin.
    let others = ["/usr/sbin".into(), "/usr/local/bin".into()];
    let go = std::env::var_os("HOME").map(|home| PathBuf::from(home).join("go/bin"));
    beside
        .into_iter()
        .chain(std::env::split_paths(&path))
        .chain(others)
        .chain(go)
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
        .ok_or_else(missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_missing_says_how_it_is_installed() {
        for name in ["no-such-program-anywhere", "/no/such/program"] {
            let error = find(Path::new(name), "apt-get install it").unwrap_err().to_string();
            assert!(error.contains("apt-get install it") && error.contains(name), "{error}");
        }
    }

    #[test]
    fn a_program_is_found_in_the_path() {
        assert!(find(Path::new("sh"), "").unwrap().is_absolute());
    }

    #[test]
    fn a_free_address_can_be_bound() {
        assert!(TcpListener::bind(free_address().unwrap()).is_ok());
    }
}
