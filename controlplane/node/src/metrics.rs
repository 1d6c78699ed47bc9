//! What is counted, and how the node stands when it is asked.

use std::time::Duration;

use outrider_events::Lane;
use outrider_link::Served;
use outrider_raft::{Consensus, Status};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::consumer;
use crate::events::Report;
use crate::graph::{Counts, GraphService};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    route: &'static str,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Route {
    route: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Node {
    node: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Edge {
    edge: u64,
}

/// All metrics of one node.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<Answered, Counter>,
    seconds: Family<Route, Histogram>,
    leader: Gauge,
    has_leader: Gauge,
    voter: Gauge,
    term: Gauge,
    last_log: Gauge,
    applied: Gauge,
    version: Gauge,
    lag: Family<Node, Gauge>,
    edge_applied: Family<Edge, Gauge>,
    edge_lag: Family<Edge, Gauge>,
    fragments: Gauge,
    fragment_bytes: Gauge,
    tags: Gauge,
    members: Gauge,
    keys: Gauge,
    sessions: Gauge,
    history: Gauge,
    events: EventMetrics,
    log_bytes: Gauge,
    snapshot_bytes: Gauge,
    graph_up: Gauge,
    certificate_left: Gauge,
    graph_failing: Gauge,
}

impl Metrics {
    pub(crate) fn new(graph: &Counts, consumer: &consumer::Counts) -> Self {
        // 0.1 ms to 13 s.
        let seconds = || Histogram::new(exponential_buckets(0.0001, 2.0, 18));
        let mut metrics = Self {
            registry: Registry::with_prefix("outrider_control"),
            requests: Family::default(),
            seconds: Family::new_with_constructor(seconds),
            leader: Gauge::default(),
            has_leader: Gauge::default(),
            voter: Gauge::default(),
            term: Gauge::default(),
            last_log: Gauge::default(),
            applied: Gauge::default(),
            version: Gauge::default(),
            lag: Family::default(),
            edge_applied: Family::default(),
            edge_lag: Family::default(),
            fragments: Gauge::default(),
            fragment_bytes: Gauge::default(),
            tags: Gauge::default(),
            members: Gauge::default(),
            keys: Gauge::default(),
            sessions: Gauge::default(),
            history: Gauge::default(),
            events: EventMetrics::default(),
            log_bytes: Gauge::default(),
            snapshot_bytes: Gauge::default(),
            graph_up: Gauge::default(),
            certificate_left: Gauge::default(),
            graph_failing: Gauge::default(),
        };
        metrics.register();
        metrics.register_graph(graph);
        metrics.register_consumer(consumer);
        metrics
    }

    fn register(&mut self) {
        let registry = &mut self.registry;
        registry.register("requests", "Requests of the admin API", self.requests.clone());
        registry.register_with_unit(
            "request",
            "How long requests of the admin API took",
            Unit::Seconds,
            self.seconds.clone(),
        );
        for (name, help, gauge) in [
            ("leader", "Whether this node leads", &self.leader),
            ("has_leader", "Whether this node knows a leader", &self.has_leader),
            ("voter", "Whether this node votes", &self.voter),
            ("term", "The term of the last vote", &self.term),
            ("log_index", "Index of the last entry of the log", &self.last_log),
            ("applied_index", "Index of the last entry that was applied", &self.applied),
            ("version", "Version of the state", &self.version),
            ("fragments", "State fragments", &self.fragments),
            ("fragment_bytes", "Bytes of keys and values of state fragments", &self.fragment_bytes),
            ("tags", "Tags", &self.tags),
            ("members", "Nodes and edges that were let in and not revoked", &self.members),
            ("idempotency_keys", "Idempotency keys that are kept", &self.keys),
            ("sessions", "Sessions of applied requests that are kept", &self.sessions),
            ("history_updates", "Updates that are kept for those who follow", &self.history),
            ("log_bytes_since_snapshot", "Bytes of log since the last snapshot", &self.log_bytes),
            ("snapshot_bytes", "Bytes of the last snapshot", &self.snapshot_bytes),
            (
                "graph_up",
                "Whether the graph's store answered when it was last used",
                &self.graph_up,
            ),
        ] {
            registry.register(name, help, gauge.clone());
        }
        self.events.register(registry);
        registry.register(
            "certificate_left_seconds",
            "Seconds until the certificate of this node ends",
            self.certificate_left.clone(),
        );
        registry.register(
            "replication_lag_entries",
            "Of the leader: entries that another node does not have yet",
            self.lag.clone(),
        );
        registry.register(
            "edge_applied_version",
            "Version up to which an edge that follows this node has applied the state",
            self.edge_applied.clone(),
        );
        registry.register(
            "edge_lag_updates",
            "Updates of the state that an edge which follows this node has not applied yet",
            self.edge_lag.clone(),
        );
    }

    fn register_graph(&mut self, counts: &Counts) {
        let Counts { manifests, repeated, unknown, queries, failures } = counts;
        for (name, help, counter) in [
            ("graph_manifests", "Manifests that were applied to the graph", manifests),
            ("graph_repeated_batches", "Batches that the graph had applied before", repeated),
            ("graph_unknown_accesses", "Accesses to what is not in the graph yet", unknown),
            ("graph_queries", "Queries that the graph answered", queries),
            ("graph_failures", "Failures of the graph's store", failures),
        ] {
            self.registry.register(name, help, counter.clone());
        }
    }

    fn register_consumer(&mut self, counts: &consumer::Counts) {
        let consumer::Counts { batches, events, repeated, refused, silent, unreadable, missed } =
            counts;
        for (name, help, counter) in [
            ("graph_event_batches", "Batches of events that went into the graph", batches),
            ("graph_events", "Events that were read for the graph, each once", events),
            ("graph_events_repeated", "Events that were in the queue again", repeated),
            (
                "graph_events_refused",
                "Manifests and other events that the graph does not take",
                refused,
            ),
            ("graph_events_silent", "Manifests of which it is not known what they say", silent),
            ("graph_events_unreadable", "Entries of the queue that cannot be read", unreadable),
            (
                "graph_events_missed",
                "Times that the queue had forgotten what was to be read",
                missed,
            ),
        ] {
            self.registry.register(name, help, counter.clone());
        }
        self.registry.register(
            "graph_events_failing",
            "Whether events do not get into the graph",
            self.graph_failing.clone(),
        );
    }

    pub(crate) fn answered(&self, route: &'static str, status: u16, took: Duration) {
        self.requests.get_or_create(&Answered { route, status }).inc();
        self.seconds.get_or_create(&Route { route }).observe(took.as_secs_f64());
    }

    pub(crate) fn set_certificate(&self, left: Duration) {
        set(&self.certificate_left, left.as_secs());
    }

    /// Everything in the OpenMetrics text format.
    pub(crate) fn text(
        &self,
        consensus: &Consensus,
        served: &Served,
        graph: &GraphService,
        consumer: &consumer::Monitor,
        events: &Report,
    ) -> String {
        let status = consensus.status();
        self.set_status(&status);
        self.events.set(events);
        self.edge_applied.clear();
        self.edge_lag.clear();
        for (edge, applied) in served.edges() {
            set(&self.edge_applied.get_or_create(&Edge { edge }), applied);
            let lag = status.progress.version.saturating_sub(applied);
            set(&self.edge_lag.get_or_create(&Edge { edge }), lag);
        }
        let shared = consensus.shared();
        shared.look(|known| {
            let (fragments, bytes) = known.state.fragment_totals();
            set(&self.fragments, fragments as u64);
            set(&self.fragment_bytes, bytes);
            set(&self.tags, known.state.tags().count() as u64);
            let members = known.state.members().iter().filter(|(_, member)| !member.revoked);
            set(&self.members, members.count() as u64);
            set(&self.keys, known.state.applied().keys() as u64);
            set(&self.sessions, known.state.applied().sessions() as u64);
            set(&self.history, known.history.len() as u64);
        });
        let (log, snapshot) = shared.log_and_snapshot_bytes();
        set(&self.log_bytes, log);
        set(&self.snapshot_bytes, snapshot);
        set(&self.graph_up, u64::from(graph.health().failure.is_none()));
        set(&self.graph_failing, u64::from(consumer.status().failure.is_some()));
        let mut text = String::new();
        // Writing into a String cannot fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }

    fn set_status(&self, status: &Status) {
        set(&self.leader, u64::from(status.leader == Some(status.id)));
        set(&self.has_leader, u64::from(status.leader.is_some()));
        let votes = status.nodes.get(&status.id).is_some_and(|(_, votes)| *votes);
        set(&self.voter, u64::from(votes));
        set(&self.term, status.term);
        set(&self.last_log, status.last_log);
        set(&self.applied, status.progress.applied);
        set(&self.version, status.progress.version);
        self.lag.clear();
        for (node, matched) in status.matched.iter().filter(|(node, _)| **node != status.id) {
            let lag = status.last_log.saturating_sub(*matched);
            set(&self.lag.get_or_create(&Node { node: *node }), lag);
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LaneLabel {
    lane: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ConsumerLabel {
    consumer: String,
}

/// Of the queue of events, as it stands when it is asked; the counts are of this start.
#[derive(Debug, Default)]
struct EventMetrics {
    appended: Family<LaneLabel, Gauge>,
    duplicates: Family<LaneLabel, Gauge>,
    failing: Gauge,
    failures: Gauge,
    waiting: Gauge,
    bytes: Gauge,
    entries: Gauge,
    missed: Gauge,
    lag: Family<ConsumerLabel, Gauge>,
}

impl EventMetrics {
    fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("events");
        let (appended, duplicates) = (self.appended.clone(), self.duplicates.clone());
        registry.register("appended", "Events that were put into the queue", appended);
        registry.register("duplicates", "Events that edges sent again", duplicates);
        for (name, help, gauge) in [
            ("failing", "Whether the queue fails", &self.failing),
            ("failures", "Appends to the queue that failed", &self.failures),
            ("waiting_entries", "Entries that wait for the queue", &self.waiting),
            ("queue_bytes", "Bytes of entries in the queue, where that is known", &self.bytes),
            (
                "missed_records",
                "Records of uploads that this node was away for too long to have",
                &self.missed,
            ),
            ("queue_entries", "Entries that the queue ever had", &self.entries),
        ] {
            registry.register(name, help, gauge.clone());
        }
        let lag = self.lag.clone();
        registry.register("consumer_lag_entries", "Entries that a consumer has not read yet", lag);
    }

    fn set(&self, report: &Report) {
        for lane in Lane::ALL {
            let (label, at) = (LaneLabel { lane: lane.name() }, lane as usize);
            set(&self.appended.get_or_create(&label), report.status.events[at]);
            set(&self.duplicates.get_or_create(&label), report.status.duplicates[at]);
        }
        set(&self.failing, u64::from(report.status.failure.is_some()));
        set(&self.failures, report.status.failures);
        set(&self.waiting, report.waiting as u64);
        set(&self.bytes, report.bytes.unwrap_or(0));
        set(&self.missed, report.missed);
        set(&self.entries, report.end.unwrap_or(0));
        self.lag.clear();
        for (consumer, lag) in &report.lags {
            let label = ConsumerLabel { consumer: consumer.clone() };
            set(&self.lag.get_or_create(&label), *lag);
        }
    }
}

fn set(gauge: &Gauge, value: u64) {
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
}
