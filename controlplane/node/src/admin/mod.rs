//! The HTTP API of a node: plain HTTP/1.1, for this machine only. Any node answers, whoever leads.
//!
//! - [`server`]: connections, their bounds, and how the server ends.
//! - [`fragments`]: what is under `/v1/state`.
//! - [`cluster`]: what is under `/v1/cluster`.
//! - [`graph`]: what is under `/v1/graph`.
//! - [`events`]: what is in the queue of events.
//! - [`prefetch`]: what edges are to fetch ahead.
//! - [`answer`]: how answers look.

pub mod answer;
pub mod cluster;
pub mod events;
pub mod fragments;
pub mod graph;
pub mod prefetch;
pub mod server;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use outrider_link::Boards;
use outrider_raft::Consensus;
use serde_json::json;
use tokio::sync::Semaphore;

use crate::consumer;
use crate::edges::Edges;
use crate::events::Events;
use crate::folder::Folder;
use crate::graph::GraphService;
use crate::metrics::Metrics;
use answer::{Answer, failure, json_answer, method_not_allowed, text_answer};

/// The most bodies with manifests at a time; each may have 16 MiB.
pub(crate) const GRAPH_BODIES_MAX: usize = 4;

/// What the API works on.
pub struct Admin {
    pub(crate) consensus: Arc<Consensus>,
    pub(crate) edges: Arc<Edges>,
    pub(crate) boards: Arc<Boards>,
    pub(crate) events: Arc<Events>,
    pub(crate) folder: Arc<Folder>,
    pub(crate) authority_sha256: [u8; 32],
    pub(crate) graph: Arc<GraphService>,
    pub(crate) consumer: Arc<consumer::Monitor>,
    /// Bodies with manifests that are read or applied.
    pub(crate) graph_bodies: Semaphore,
    pub(crate) metrics: Metrics,
    pub(crate) body_time_max: Duration,
    pub(crate) draining: AtomicBool,
}

impl Admin {
    /// Answers one request.
    pub(crate) async fn answer(&self, request: Request<Incoming>) -> Answer {
        let started = Instant::now();
        let path = request.uri().path().to_owned();
        let (route, answer) = if let Some(key) = path.strip_prefix("/v1/state/") {
            ("state", fragments::answer(self, key, request).await)
        } else if let Some(rest) = path.strip_prefix("/v1/graph") {
            ("graph", graph::answer(self, rest, request).await)
        } else {
            match path.as_str() {
                "/v1/state" => ("states", fragments::list(self, &request).await),
                "/v1/prefetch" => ("prefetch", prefetch::answer(self, request).await),
                "/v1/events" => ("events", events::answer(self, &request).await),
                "/metrics" => ("metrics", self.metrics(&request)),
                "/healthz" => ("health", verdict(&request, "healthy", self.health(), &[])),
                "/readyz" => {
                    ("ready", verdict(&request, "ready", self.readiness(), &self.remarks()))
                }
                _ => match path.strip_prefix("/v1/cluster") {
                    Some(rest) => ("cluster", cluster::answer(self, rest, request).await),
                    None => ("none", failure(StatusCode::NOT_FOUND, "there is nothing here")),
                },
            }
        };
        self.metrics.answered(route, answer.status().as_u16(), started.elapsed());
        answer
    }

    fn metrics(&self, request: &Request<Incoming>) -> Answer {
        if !is_read(request.method()) {
            return method_not_allowed("GET, HEAD");
        }
        let (served, events) = (self.edges.served(), self.events.report());
        let text = self.metrics.text(&self.consensus, served, &self.graph, &self.consumer, &events);
        text_answer("application/openmetrics-text; version=1.0.0; charset=utf-8", text)
    }

    /// Why this process should be started again.
    fn health(&self) -> Vec<String> {
        self.consensus.status().failure.into_iter().collect()
    }

    /// What is wrong though requests are answered.
    fn remarks(&self) -> Vec<String> {
        let queue = self.events.intake().status().failure;
        let queue = queue.map(|(why, _)| format!("the queue of events fails: {why}"));
        let graph = self.graph.health().failure;
        let graph = graph.map(|(why, _)| format!("the graph's store is down: {why}"));
        let consumer = self.consumer.status().failure.map(|(why, _)| why);
        queue.into_iter().chain(graph).chain(consumer).collect()
    }

    /// Why no request should be sent here now.
    fn readiness(&self) -> Vec<String> {
        let status = self.consensus.status();
        let mut reasons = self.health();
        if self.draining.load(Ordering::Acquire) {
            reasons.push("draining".to_owned());
        }
        if !status.nodes.get(&status.id).is_some_and(|(_, votes)| *votes) {
            reasons.push("not a voter of the cluster (yet, or any more)".to_owned());
        }
        if status.leader.is_none() {
            reasons.push("no leader is known".to_owned());
        }
        reasons
    }
}

fn is_read(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

fn verdict(
    request: &Request<Incoming>,
    name: &str,
    reasons: Vec<String>,
    remarks: &[String],
) -> Answer {
    if !is_read(request.method()) {
        return method_not_allowed("GET, HEAD");
    }
    let status = if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut value = json!({ name: reasons.is_empty(), "reasons": reasons });
    if !remarks.is_empty() {
        value["remarks"] = json!(remarks);
    }
    json_answer(status, &value)
}
