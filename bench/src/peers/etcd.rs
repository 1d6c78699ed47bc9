//! etcd: nodes of one cluster, and etcd's own load generator, which speaks its gRPC.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use super::child::{Child, Start};
use super::free_address;
use crate::{BenchError, http};

/// How etcd is installed.
pub const INSTALL: &str = "apt-get install -y --no-install-recommends etcd-server";
/// How its load generator is installed. It builds only with these versions of etcd's other modules.
pub const INSTALL_BENCHMARK: &str = "in a Go module of its own: V=v3.6.8; \
    go get go.etcd.io/etcd/v3/tools/benchmark@$V go.etcd.io/etcd/{pkg,client,api,client/pkg}/v3@$V; \
    go build -o ~/go/bin/etcd-benchmark go.etcd.io/etcd/v3/tools/benchmark";

/// Connections of the load generator, at most.
const CONNECTIONS_MAX: u32 = 16;

/// A running cluster.
#[derive(Debug)]
pub struct Etcd {
    _children: Vec<Child>,
    clients: Vec<SocketAddr>,
}

/// What the load generator says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    /// Puts a second.
    pub rate: f64,
    /// 99 of 100 were answered within so many seconds.
    pub p99_s: f64,
}

impl Etcd {
    /// Starts so many nodes with their data in `folder`.
    ///
    /// # Errors
    /// When one does not start.
    pub fn start(program: &Path, folder: &Path, count: u32) -> Result<Self, BenchError> {
        let clients = (0..count).map(|_| free_address()).collect::<Result<Vec<_>, _>>()?;
        let peers = (0..count).map(|_| free_address()).collect::<Result<Vec<_>, _>>()?;
        let cluster =
            peers.iter().enumerate().map(|(place, peer)| format!("n{place}=http://{peer}"));
        let cluster = cluster.collect::<Vec<_>>().join(",");
        let mut children = Vec::new();
        for (place, (client, peer)) in clients.iter().zip(&peers).enumerate() {
            let (client, peer) = (format!("http://{client}"), format!("http://{peer}"));
            let data = folder.join(format!("n{place}"));
            let arguments = [
                ("--name", format!("n{place}")),
                ("--data-dir", data.display().to_string()),
                ("--listen-client-urls", client.clone()),
                ("--advertise-client-urls", client),
                ("--listen-peer-urls", peer.clone()),
                ("--initial-advertise-peer-urls", peer),
                ("--initial-cluster", cluster.clone()),
            ];
            children.push(Child::start(&Start {
                name: "etcd",
                program,
                arguments: arguments
                    .into_iter()
                    .flat_map(|(key, value)| [key.into(), value.into()])
                    .collect(),
                environment: Vec::new(),
                log: folder.join(format!("n{place}.log")),
                cpu: None,
            })?);
        }
        for (child, client) in children.iter_mut().zip(&clients) {
            child.wait_until(|| http::answers(*client, "/health"))?;
        }
        Ok(Self { _children: children, clients })
    }

    /// So many puts by so many clients, to the leader.
    ///
    /// # Errors
    /// When the load generator fails.
    pub fn put(
        &self,
        benchmark: &Path,
        clients: u32,
        value_bytes: usize,
        total: u64,
    ) -> Result<Load, BenchError> {
        let endpoints = self.clients.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let output = Command::new(benchmark)
            .args(["--endpoints", &endpoints, "--target-leader"])
            .args(["--conns", &clients.min(CONNECTIONS_MAX).to_string()])
            .args(["--clients", &clients.to_string(), "put", "--key-size", "16"])
            .args(["--val-size", &value_bytes.to_string(), "--sequential-keys"])
            .args(["--key-space-size", "100000", "--total", &total.to_string()])
            .output()
            .map_err(BenchError::io(format!("starting {}", benchmark.display())))?;
        let text = String::from_utf8_lossy(&output.stdout);
        read(&text).ok_or_else(|| {
            let errors = String::from_utf8_lossy(&output.stderr);
            BenchError::Void(format!("etcd's load generator says: {text}{errors}"))
        })
    }
}

/// The two figures that count.
fn read(text: &str) -> Option<Load> {
    let number = |text: &str| text.split_whitespace().next()?.parse().ok();
    let rate = text.lines().find_map(|line| number(line.trim().strip_prefix("Requests/sec:")?))?;
    let p99_s = text.lines().find_map(|line| number(line.trim().strip_prefix("99% in")?))?;
    // One that failed has no latency, and is counted by itself.
    (!text.contains("Error distribution")).then_some(Load { rate, p99_s })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_of_the_load_generator_is_read() {
        let text = "Summary:\n  Total:\t1.7110 secs.\n  Requests/sec:\t8766.8\n\nLatency distribution:\n  \
                    95% in 0.0101 secs.\n  99% in 0.0153 secs.\n  99.9% in 0.0288 secs.\n";
        assert_eq!(read(text), Some(Load { rate: 8766.8, p99_s: 0.0153 }));
        assert_eq!(read(&format!("{text}Error distribution:\n  [1]\tlost\n")), None);
        assert_eq!(read("Usage: benchmark"), None);
    }
}
