//! Which registry a `?ns=` names. containerd adds it when it asks a mirror: the host of the registry
//! that the image's name begins with. It is a key into the configuration, never an address to dial.

use std::borrow::Cow;

/// The longest `ns`, in bytes: a host name of 253 bytes, a colon and a port.
pub const NS_BYTES_MAX: usize = 259;

/// The name by which Docker Hub is known.
pub const DOCKER_HUB: &str = "docker.io";

/// Hosts that all are Docker Hub: the one in image names, the one of old clients, the one that serves.
const DOCKER_HUB_HOSTS: [&str; 3] = [DOCKER_HUB, "index.docker.io", "registry-1.docker.io"];

/// The one name of a registry that may be written in several ways: lower case, and `docker.io` for
/// each host of Docker Hub. Allocates only where it changes something.
pub fn canonical(ns: &str) -> Cow<'_, str> {
    if DOCKER_HUB_HOSTS.iter().any(|host| host.eq_ignore_ascii_case(ns)) {
        Cow::Borrowed(DOCKER_HUB)
    } else if ns.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(ns.to_ascii_lowercase())
    } else {
        Cow::Borrowed(ns)
    }
}

/// Whether both name one registry.
pub fn same_registry(one: &str, other: &str) -> bool {
    canonical(one) == canonical(other)
}

/// Whether this can be a host and a port, or a configured name: letters, digits and `. - _ : [ ]`.
pub(crate) fn is_well_formed(ns: &str) -> bool {
    (1..=NS_BYTES_MAX).contains(&ns.len())
        && ns.bytes().all(|byte| {
            byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':' | b'[' | b']')
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_of_docker_hub_are_one_registry() {
        for host in ["docker.io", "index.docker.io", "registry-1.docker.io", "Docker.IO"] {
            assert!(same_registry(host, "docker.io"), "{host}");
            assert_eq!(canonical(host), "docker.io");
        }
        assert!(!same_registry("docker.io", "quay.io"));
        assert!(!same_registry("docker.io.evil.example", "docker.io"));
    }

    #[test]
    fn other_hosts_differ_in_case_only() {
        assert!(same_registry("Quay.io", "quay.IO"));
        assert!(!same_registry("localhost:5000", "localhost:5001"));
    }

    #[test]
    fn what_is_no_host_is_not_well_formed() {
        for right in ["docker.io", "localhost:5000", "[::1]:5000", "my_mirror"] {
            assert!(is_well_formed(right), "{right}");
        }
        for wrong in ["", "a/b", "http://a", "a b", "a@b", "é", &"a".repeat(260)] {
            assert!(!is_well_formed(wrong), "{wrong}");
        }
    }
}
