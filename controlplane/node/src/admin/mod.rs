//! The HTTP API of a node: plain HTTP/1.1, for this machine only. Any node answers, whoever leads.
//!
//! - [`server`]: connections, their bounds, and how the server ends; `patience`: with whom it waits.
//! - [`auth`]: operators' tokens. [`route`]: which paths there are.
//! - [`openapi`]: their description.
//! - [`fragments`], [`batch`]: state fragments. [`watch`]: what changes, as it changes.
//! - [`tags`], [`customers`], [`placement`]: what else the edges go by.
//! - [`cluster`]: what is under `/v1/cluster`.
//! - [`graph`]: what is under `/v1/graph`.
//! - [`events`]: what is in the queue of events.
//! - [`prefetch`]: what edges are to fetch ahead.
//! - [`beside`]: the edge in the same process, if there is one.
//! - [`input`], [`answer`]: what requests bring, and how answers look.

pub mod answer;
mod auth;
pub mod batch;
pub mod beside;
pub mod cluster;
pub mod customers;
pub mod events;
pub mod fragments;
pub mod graph;
pub mod input;
pub mod openapi;
mod patience;
pub mod placement;
pub mod prefetch;
pub mod route;
pub mod server;
pub mod tags;
pub mod watch;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use outrider_link::Boards;
use outrider_raft::Consensus;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::consumer;
use crate::edges::Edges;
use crate::events::Events;
use crate::folder::Folder;
use crate::graph::GraphService;
use crate::metrics::Metrics;
use crate::run::Certificate;
pub use beside::{Beside, Pending};

use answer::{Answer, Refusal, failure, json_answer, method_not_allowed, refusal, text_answer};
use outrider_operators::{Needs, Operator, Operators, why_a_page};
use route::{Place, Route};

/// The most bodies with manifests at a time; each may have 16 MiB.
pub(crate) const GRAPH_BODIES_MAX: usize = 4;
/// The most bodies with batches of writes at a time; each may have 3 MiB.
pub(crate) const LARGE_BODIES_MAX: usize = 16;

/// What the API works on.
pub struct Admin {
    pub(crate) started: Instant,
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
    /// Batches of writes that are read or written.
    pub(crate) large_bodies: Semaphore,
    pub(crate) watchers: Arc<Semaphore>,
    pub(crate) metrics: Metrics,
    pub(crate) body_time_max: Duration,
    pub(crate) draining: AtomicBool,
    /// True once nobody should watch any more.
    pub(crate) stopping: tokio::sync::watch::Receiver<bool>,
    pub(crate) beside: OnceLock<Arc<dyn Beside>>,
    pub(crate) certificate: Certificate,
    /// None: everybody may do everything, who is on this machine.
    pub(crate) auth: Option<Arc<Operators>>,
}

impl Admin {
    /// Answers one request.
    pub(crate) async fn answer(&self, request: Request<Incoming>) -> Answer {
        let started = Instant::now();
        let path = request.uri().path().to_owned();
        let (label, answer) = match route::find(&path) {
            None => ("none", failure(StatusCode::NOT_FOUND, "there is nothing here")),
            Some((route, _)) if !route.allows(request.method()) => {
                (route.label, method_not_allowed(route.methods))
            }
            Some((route, name)) => match self.operator(route, &request) {
                Ok(operator) => {
                    let method = request.method().clone();
                    let answer = self.answer_at(route.place, name, request).await;
                    let answer = answer.unwrap_or_else(Answer::from);
                    if let Some(Operator(operator)) = operator.filter(|_| !is_read(&method)) {
                        let status = answer.status().as_u16();
                        tracing::info!(operator, %method, path, status, "an operator's request");
                    }
                    (route.label, answer)
                }
                Err(refused) => (route.label, *refused),
            },
        };
        self.metrics.answered(label, answer.status().as_u16(), started.elapsed());
        answer
    }

    /// Who asks, where somebody must say so.
    fn operator(
        &self,
        route: &Route,
        request: &Request<Incoming>,
    ) -> Result<Option<Operator>, Box<Answer>> {
        let needs = auth::needs(route.place, request.method());
        match &self.auth {
            Some(operators) if needs > Needs::Nothing => {
                let checked = operators.check(request.headers(), needs);
                checked.map(Some).map_err(|refused| auth::refused(&refused))
            }
            None if !route.place.is_page() => match why_a_page(request) {
                Some(why) => Err(Box::new(failure(StatusCode::FORBIDDEN, why))),
                None => Ok(None),
            },
            _ => Ok(None),
        }
    }

    async fn answer_at(
        &self,
        place: Place,
        name: &str,
        request: Request<Incoming>,
    ) -> Result<Answer, Refusal> {
        match place {
            Place::Fragments => fragments::list(self, &request).await,
            Place::Fragment => fragments::answer(self, name, request).await,
            Place::Batch => batch::answer(self, request).await,
            Place::Watch => watch::answer(self, &request).await,
            Place::Tags => tags::list(self, &request).await,
            Place::Tag => tags::answer(self, name, request).await,
            Place::Customers => customers::list(self, &request).await,
            Place::Customer => customers::answer(self, name, request).await,
            Place::Weights => customers::weights(self, request).await,
            Place::Placements => placement::list(self, &request).await,
            Place::Placement => placement::answer(self, name, request).await,
            Place::Invalidations => customers::invalidate(self, request).await,
            Place::Cluster => Ok(json_answer(StatusCode::OK, &cluster::status(self).await)),
            Place::ClusterToken => cluster::token(self, request).await,
            Place::ClusterLeave => Ok(cluster::leave(self).await),
            Place::ClusterRemove => cluster::removal(self, request).await,
            Place::Graph => Ok(graph::status(self).await),
            Place::GraphManifests => Ok(graph::post(self, request).await),
            Place::GraphQuery => Ok(graph::query(self, name, &request).await),
            Place::Prefetch => prefetch::answer(self, request).await,
            Place::Events => Ok(events::answer(self, &request).await),
            Place::OpenApi => {
                let document = Bytes::from_static(openapi::DOCUMENT.as_bytes());
                Ok(answer::bytes_answer(StatusCode::OK, "application/json", document))
            }
            Place::Metrics => Ok(self.metrics().await),
            Place::Health => Ok(verdict("healthy", &self.health().await, None)),
            Place::Ready => Ok(self.ready().await),
            Place::Status => Ok(json_answer(StatusCode::OK, &self.status().await)),
        }
    }

    /// For reading one large body.
    pub(crate) fn body_place(&self) -> Result<SemaphorePermit<'_>, Refusal> {
        let full = || refusal(StatusCode::SERVICE_UNAVAILABLE, "too many large bodies are read");
        self.large_bodies.try_acquire().map_err(|_| full())
    }

    /// The edge in the same process, once. Its pages are answered from then on.
    pub(crate) fn set_beside(&self, beside: Arc<dyn Beside>) {
        let first = self.beside.set(beside).is_ok();
        debug_assert!(first, "there is one edge in a process");
    }

    async fn metrics(&self) -> Answer {
        let (served, events) = (self.edges.served(), self.events.report());
        let left = self.certificate.shown.validity().left(SystemTime::now());
        self.metrics.set_certificate(left);
        let (graph, consumer) = (&self.graph, &self.consumer);
        let mut text = self.metrics.text(&self.consensus, served, graph, consumer, &events);
        if let Some(beside) = self.beside.get() {
            text = beside::joined(&beside.metrics().await, &text);
        }
        text_answer("application/openmetrics-text; version=1.0.0; charset=utf-8", text)
    }

    /// Why this process should be started again. An edge serves also without its node.
    async fn health(&self) -> Vec<String> {
        match self.beside.get() {
            Some(beside) => beside.health().await,
            None => self.failure(),
        }
    }

    fn failure(&self) -> Vec<String> {
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

    /// Why no request should be sent to this node now.
    fn readiness(&self) -> Vec<String> {
        let status = self.consensus.status();
        let mut reasons = self.failure();
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

    /// Of the edge, where there is one: what the node lacks is then a remark.
    async fn ready(&self) -> Answer {
        let Some(beside) = self.beside.get() else {
            return verdict("ready", &self.readiness(), Some(&self.remarks()));
        };
        let mut remarks = beside.remarks();
        let own = self.readiness().into_iter().chain(self.remarks());
        remarks.extend(own.map(|reason| format!("the node of this process: {reason}")));
        verdict("ready", &beside.readiness().await, Some(&remarks))
    }

    /// What an operator would ask first.
    async fn status(&self) -> Value {
        let node = cluster::status(self).await;
        let mut status = match self.beside.get() {
            Some(beside) => beside.status().await,
            None => {
                let reasons = self.readiness();
                json!({
                    "version": env!("CARGO_PKG_VERSION"),
                    "pid": std::process::id(),
                    "uptime_s": self.started.elapsed().as_secs(),
                    "clock_step_s": outrider_certificate::clock::stepped_s(),
                    "ready": reasons.is_empty(),
                    "not_ready_because": reasons,
                    "draining": self.draining.load(Ordering::Acquire),
                })
            }
        };
        status["node"] = node;
        status
    }
}

fn is_read(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

fn verdict(name: &str, reasons: &[String], remarks: Option<&[String]>) -> Answer {
    let status = if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut value = json!({ name: reasons.is_empty(), "reasons": reasons });
    if let Some(remarks) = remarks {
        value["remarks"] = json!(remarks);
    }
    json_answer(status, &value)
}
