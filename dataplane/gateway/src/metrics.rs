//! What the gateway counts. Clones share the same counters.

use outrider_metrics::Counter;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::access::gate::DecisionLabels;
use crate::accesses::DropLabels;

/// What was asked, and how it ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    /// `ping`, `token`, `manifest`, `blob`, `upload`, `tags`, `referrers`, `catalog`, `layer`, `keep` or `other`.
    pub route: &'static str,
    /// The HTTP status.
    pub status: u16,
}

/// How something ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OutcomeLabels {
    /// What the metric's help says.
    pub outcome: &'static str,
}

/// Where the bytes of a body came from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TierLabels {
    /// `ram`, `ssd` or `origin`.
    pub tier: &'static str,
}

macro_rules! metrics {
    ($($(#[doc = $help:literal])+ $name:ident: $kind:ty = $published:literal,)+) => {
        /// The gateway's metrics; see `docs/OPERATING.md` for the published names.
        #[derive(Clone, Debug, Default)]
        #[allow(missing_docs)] // Each has its help text, which is what is published.
        pub struct GatewayMetrics {
            $(pub $name: $kind,)+
        }

        impl GatewayMetrics {
            /// Publishes all of them.
            pub fn register(&self, registry: &mut Registry) {
                $(registry.register($published, concat!($($help,)+), self.$name.clone());)+
            }
        }
    };
}

metrics! {
    /// Requests by route and status
    requests: Family<RequestLabels, Counter> = "outrider_requests",
    /// Bytes of blobs and manifests handed to clients, by the tier that they came from
    body_bytes: Family<TierLabels, Counter> = "outrider_body_bytes",
    /// Accesses to contents that were noted for the control plane
    accesses: Counter = "outrider_accesses",
    /// Accesses that were dropped before the control plane was told of them, by reason
    accesses_dropped: Family<DropLabels, Counter> = "outrider_accesses_dropped",
    /// Requests of who is asked who they are, by how it was decided and why
    access_decisions: Family<DecisionLabels, Counter> = "outrider_access_decisions",
    /// Tokens and secrets that were verified; what a shard knows is not verified again
    access_verified: Counter = "outrider_access_verified",
    /// Lines of the audit that were dropped, since nobody wrote them in time
    audit_dropped: Counter = "outrider_audit_dropped",
    /// Fetches of a digest that were started
    flights_started: Counter = "outrider_flights_started",
    /// Requests that found a fetch of their digest under way
    flights_joined: Counter = "outrider_flights_joined",
    /// Fetches of a digest that ended without the content
    flights_failed: Counter = "outrider_flights_failed",
    /// Requests to upstreams for blobs
    upstream_requests: Counter = "outrider_blob_requests_upstream",
    /// Bytes of blobs that came from upstreams and were kept
    upstream_bytes: Counter = "outrider_blob_bytes_upstream",
    /// Bytes of blobs that were hashed on their way in
    hashed_bytes: Counter = "outrider_blob_bytes_hashed",
    /// Times that a fetch was taken up again at the same upstream
    fill_retries: Counter = "outrider_fill_retries",
    /// Times that another source took a fetch over
    source_takeovers: Counter = "outrider_source_takeovers",
    /// Fetches that were given up since nobody read them
    fills_abandoned: Counter = "outrider_fills_abandoned",
    /// Contents that came in whole and had another digest
    mismatches: Counter = "outrider_digest_mismatches",
    /// Tags that were answered from the cache while the upstream could not be asked
    stale_tags: Counter = "outrider_stale_tags",
    /// Tags that were compared with their upstream
    tag_checks: Counter = "outrider_tag_checks",
    /// Responses that were cut off, since their content could not be brought in or was wrong
    bodies_cut: Counter = "outrider_bodies_cut",
    /// Upload sessions that are open
    upload_sessions: Gauge = "outrider_upload_sessions",
    /// Upload sessions that were dropped since nothing came for too long
    uploads_expired: Counter = "outrider_uploads_expired",
    /// Contents that were stored by an upload
    uploads_stored: Counter = "outrider_uploads_stored",
    /// Manifests that were pushed here and must be on other edges too: done, or short of edges
    replications: Family<OutcomeLabels, Counter> = "outrider_replications",
    /// Manifests that other edges wanted kept here: done or failed
    keeps: Family<OutcomeLabels, Counter> = "outrider_keeps",
    /// Requests that were refused, since their customer asks for more than its requests a second
    over_rate: Counter = "outrider_over_rate",
    /// Contents that were purged by the control plane
    purged: Counter = "outrider_purged",
    /// Contents of manifests that no tag stands for any more, which are the first victims
    demoted: Counter = "outrider_demoted",
    /// Replaced manifests whose contents were left alone: too many, or their successor is not known here
    replaced_left: Counter = "outrider_replaced_left",
    /// Questions that a shard asked another
    mesh_questions: Counter = "outrider_mesh_questions",
    /// Questions that were refused, since too many waited for the other shard
    mesh_refused: Counter = "outrider_mesh_refused",
    /// Messages between shards that may get lost, and were
    mesh_lost: Counter = "outrider_mesh_lost",
    /// Requests for small content of another shard that were answered without asking it
    table_hits: Counter = "outrider_table_hits",
    /// Bytes of small content that shards keep of each other
    table_bytes: Gauge = "outrider_table_bytes",
}
