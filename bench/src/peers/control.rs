//! Nodes of the control plane, joined by tokens as an operator would.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use super::child::{Child, Start};
use super::free_address;
use crate::{BenchError, http};

/// A node, where its API is, and where edges follow it.
#[derive(Debug)]
pub struct Node {
    _child: Child,
    /// Its API.
    pub admin: SocketAddr,
    /// What other nodes and edges call.
    pub peers: SocketAddr,
}

/// So many nodes of one new cluster, with their data in `folder`; all of them vote.
///
/// # Errors
/// When one does not start.
pub fn start_nodes(program: &Path, folder: &Path, count: u32) -> Result<Vec<Node>, BenchError> {
    let mut nodes: Vec<Node> = Vec::new();
    for place in 0..count {
        let (admin, peers) = (free_address()?, free_address()?);
        let config = folder.join(format!("node-{place}.toml"));
        let data = folder.join(format!("node-{place}"));
        let text = format!(
            "[data]\ndir = {:?}\n[listen]\npeers = \"{peers}\"\nadmin = \"{admin}\"\n\
             [log]\nlevel = \"warn\"\n",
            data.display().to_string()
        );
        fs::write(&config, text).map_err(BenchError::io("writing a configuration"))?;
        let config_text = config.display().to_string();
        match nodes.first() {
            None => drop(run(program, &["cluster", "init", "--config", &config_text])?),
            Some(first) => {
                let token = token(program, first.admin, "node")?;
                run(program, &["cluster", "join", "--config", &config_text, &token])?;
            }
        }
        let name = format!("node {place}");
        let start = Start {
            name: &name,
            program,
            arguments: vec!["control".into(), "--config".into(), config.into()],
            environment: Vec::new(),
            log: folder.join(format!("node-{place}.log")),
            cpu: None,
        };
        let mut child = Child::start(&start)?;
        child.wait_until(|| http::answers(admin, "/readyz"))?;
        nodes.push(Node { _child: child, admin, peers });
    }
    Ok(nodes)
}

/// The node that leads.
///
/// # Errors
/// When none says that it does.
pub fn leader(nodes: &[Node]) -> Result<&Node, BenchError> {
    for node in nodes {
        let (_, body) =
            http::HttpClient::new(node.admin).request_all("GET", "/v1/cluster", &[], &[])?;
        let status: serde_json::Value = serde_json::from_slice(&body)
            .map_err(|error| BenchError::Protocol(format!("/v1/cluster: {error}")))?;
        if status["leader"].is_u64() && status["leader"] == status["node"] {
            return Ok(node);
        }
    }
    Err(BenchError::Void("no node leads".to_owned()))
}

/// A token of the node at `admin`, which lets one newcomer in.
///
/// # Errors
/// When the node gives none.
pub fn token(program: &Path, admin: SocketAddr, role: &str) -> Result<String, BenchError> {
    let admin = format!("http://{admin}");
    run(program, &["cluster", "token", "--role", role, "--admin", &admin])
}

/// Runs a command of `outrider` to its end; gives what it says.
///
/// # Errors
/// When it cannot be started, or fails.
pub fn run(program: &Path, arguments: &[&str]) -> Result<String, BenchError> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .map_err(BenchError::io(format!("starting {}", program.display())))?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(BenchError::Void(format!("outrider {}: {why}", arguments[..2].join(" "))));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
