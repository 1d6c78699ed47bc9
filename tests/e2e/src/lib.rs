//! The harness of the end-to-end tests: real processes in temporary folders on free ports of
//! 127.0.0.1, ended with the test that started them, and real clients that nobody here wrote.
//!
//! The tests are in `tests/`. They decide by the order of events (requests counted at the upstream,
//! gates that the test opens), never by a time that something may take; the bounded waits only turn a
//! hang into a failure that says what was waited for. Everything is blocking code on threads: the
//! harness has to send what no HTTP library would send.

#![forbid(unsafe_code)]

/// Message brokers, a file for each.
pub mod brokers {
    /// Apache Kafka.
    pub mod kafka;
    /// RabbitMQ.
    pub mod rabbitmq;
}
/// Wrappers of third-party container clients, a file for each.
pub mod clients {
    /// containerd and its `ctr`.
    pub mod containerd;
    /// `crane`, of go-containerregistry.
    pub mod crane;
    /// dockerd and the `docker` command.
    pub mod docker;
    /// Clients of HTTP/3.
    pub mod http3;
    /// `oras`.
    pub mod oras;
    /// `podman`.
    pub mod podman;
    /// QUIC by quinn.
    pub mod quic;
    /// `skopeo`.
    pub mod skopeo;
}
/// Clocks that can be set.
pub mod clock;
/// Reproducible bytes and their digests.
pub mod content;
/// Nodes of the control plane.
pub mod control;
/// Wires between them that can be cut.
pub mod cut;
/// Debian's `docker-registry` as an upstream.
pub mod docker_registry;
/// An upstream that does what a test tells it, right or wrong.
pub mod fake_upstream;
/// A door that a test opens, for deciding by the order of events.
pub mod gate;
/// A blocking HTTP/1.1 client that may be slow, rude or wrong.
pub mod http;
/// Real images, and small ones made of known bytes.
pub mod image;
/// OCI image layouts on disk, checked byte by byte.
pub mod layout;
/// Whether what clients saw could have happened in one order.
pub mod linear;
/// The Prometheus text format, as far as the tests read it.
pub mod metrics;
/// A Neo4j.
pub mod neo4j;
/// Machines in network namespaces.
pub mod netns;
/// The product under test.
pub mod outrider;
/// Ports that no other test gets.
pub mod ports;
/// Child processes with captured logs, ended with their owner.
pub mod process;
/// What a registry client does by hand: uploads, manifests.
pub mod registry;
/// Temporary folders.
pub mod scratch;
/// Where the third-party tools are.
pub mod tools;
/// Bounded waits on a condition.
pub mod wait;

pub use content::{bytes, sha256};
pub use docker_registry::DockerRegistry;
pub use fake_upstream::{FakeUpstream, Fault};
pub use gate::Gate;
pub use http::{Answer, Client};
pub use image::SmallImage;
pub use outrider::{Options, Outrider};
pub use scratch::Scratch;
pub use wait::until;
