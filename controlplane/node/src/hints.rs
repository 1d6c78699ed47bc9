//! How much depends on contents, from the graph to the edges that follow this node: of what was added to manifests, to all
//! of them; of what an edge was asked for, to that edge. What is not told now is told when it is asked for again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use outrider_artifact::Digest;
use outrider_link::Boards;
use outrider_push::Hint;
use outrider_push::soft::depth_eighths;

use crate::consumer::Listener;
use crate::graph::GraphService;

pub(crate) struct Hints {
    graph: Arc<GraphService>,
    boards: Arc<Boards>,
}

impl Hints {
    pub(crate) fn new(graph: Arc<GraphService>, boards: Arc<Boards>) -> Self {
        Self { graph, boards }
    }

    /// Of those that something depends on. Nothing while the graph does not answer.
    async fn of(&self, contents: BTreeSet<Digest>) -> HashMap<Digest, Hint> {
        let contents: Vec<_> = contents.into_iter().collect();
        let dependants = match self.graph.dependants(contents.clone()).await {
            Ok(dependants) => dependants,
            Err(error) => {
                tracing::debug!(%error, "edges are not told what depends on contents");
                return HashMap::new();
            }
        };
        let known = contents.into_iter().zip(dependants).filter(|(_, dependants)| *dependants > 0);
        let hint = |(digest, dependants)| {
            (digest, Hint { digest, depth_eighths: depth_eighths(dependants) })
        };
        known.map(hint).collect()
    }
}

impl Listener for Hints {
    async fn applied(&self, contents: BTreeSet<Digest>) {
        let edges = self.boards.edges();
        if edges.is_empty() {
            return;
        }
        let hints = self.of(contents).await;
        for edge in edges {
            self.boards.hint(edge, hints.values().copied());
        }
    }

    async fn asked(&self, mut asked: BTreeMap<u64, BTreeSet<Digest>>) {
        let edges: BTreeSet<u64> = self.boards.edges().into_iter().collect();
        asked.retain(|edge, _| edges.contains(edge));
        if asked.is_empty() {
            return;
        }
        let hints = self.of(asked.values().flatten().copied().collect()).await;
        for (edge, contents) in asked {
            self.boards.hint(edge, contents.iter().filter_map(|digest| hints.get(digest)).copied());
        }
    }
}
