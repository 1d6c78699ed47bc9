//! The node of the control plane in the process of an edge: where the two libraries meet.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use outrider_edge::admin::Panel as _;
use outrider_edge::{Companion, Config, Pages};
use outrider_follower::EdgeFolder;
use outrider_node::{Beside, Embedded, Pending, embedded};
use serde_json::Value;

/// A node beside an edge, once it is started.
#[derive(Default)]
pub(crate) struct Node {
    running: Option<Embedded>,
}

impl Companion for Node {
    fn start(&mut self, config: &Config, admin: Option<SocketAddr>) -> Result<Vec<String>, String> {
        let (dir, edge) = (config.node_dir(), EdgeFolder::new(&config.control_dir()));
        let there = embedded::is_there(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        if !config.control.embedded {
            return match there {
                false => Ok(Vec::new()),
                // Its tags would be nobody's.
                true => Err(format!(
                    "the tags of this edge belong to the node in {}, which does not run; start it with \
                     control.embedded = true (for `outrider up`: without --no-control)",
                    dir.display()
                )),
            };
        }
        if !there && edge.has_joined().map_err(|error| error.to_string())? {
            tracing::info!(
                "this edge has joined another cluster, so there is no node in this process"
            );
            return Ok(Vec::new());
        }
        let operators = (admin, &config.admin);
        let node = Embedded::start(&dir, &edge, &config.site.region, operators);
        let node = node.map_err(|error| error.to_string())?;
        Ok(vec![self.running.insert(node).address()])
    }

    fn serve(&mut self, listener: &TcpListener, pages: Pages) -> io::Result<bool> {
        let Some(node) = &mut self.running else { return Ok(false) };
        node.serve(listener.try_clone()?, Arc::new(OfEdge(pages)));
        Ok(true)
    }

    fn stop(&mut self) {
        if let Some(node) = self.running.take() {
            node.stop();
        }
    }
}

/// The edge's pages for the node.
struct OfEdge(Pages);

impl Beside for OfEdge {
    fn metrics(&self) -> Pending<'_, String> {
        Box::pin(self.0.metrics())
    }

    fn health(&self) -> Pending<'_, Vec<String>> {
        Box::pin(self.0.health())
    }

    fn readiness(&self) -> Pending<'_, Vec<String>> {
        Box::pin(self.0.readiness())
    }

    fn remarks(&self) -> Vec<String> {
        self.0.remarks()
    }

    fn status(&self) -> Pending<'_, Value> {
        Box::pin(self.0.status())
    }
}
