//! The control plane, as far as the edge follows it: started once, and shown. Serving never waits for it, but for the
//! push of a tag.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use outrider_follower::{
    AskError, Asker, EdgeFolder, FolderError, Follower, Monitor, Settings, Sink, StartError,
    Status, asks,
};
use outrider_gateway::Orders;
use outrider_gateway::names::{
    Fleet, FleetRecord, PlacementRule, Proposal, ProposalError, Proposed, Proposer,
};
use outrider_push::message::MemberRole;
use outrider_push::replica::Consequence;
use outrider_push::{Interest, Item, Replica, SoftToEdge, Wish};
use outrider_state::Expect;
use outrider_state::request::{Placement, TagRecord};
use outrider_transport::tls::MemberCertificate;
use outrider_uplink::{PeerBook, PeerOptions};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use serde_json::{Value, json};

use crate::config::Config;
use crate::hints::ToShards;
use crate::orders::ToCaches;

/// What there is once the edge follows.
pub(crate) struct Followed {
    pub(crate) follower: Follower,
    /// Takes what the shards are told.
    pub(crate) to_shards: Arc<ToShards>,
    /// What it knows of the fleet's tags.
    pub(crate) fleet: Arc<Fleet>,
    /// How it reaches other edges.
    pub(crate) peers: PeerOptions,
    /// What it shows to them.
    pub(crate) certificate: MemberCertificate,
}

/// Follows, if this edge has joined a cluster: these nodes, or else those of the configuration. `https` is where
/// it listens; `orders` go to its shards.
///
/// # Errors
/// [`StartError`], also when the configuration wants it and the edge has not joined.
pub(crate) fn start(
    config: &Config,
    nodes: Vec<String>,
    https: Option<SocketAddr>,
    orders: &Arc<Orders>,
) -> Result<Option<Followed>, StartError> {
    let folder = EdgeFolder::new(&config.control_dir());
    if !folder.has_joined()? && !config.control.is_wanted() {
        return Ok(None);
    }
    let own = folder.edge()?.number;
    let identity = folder.identity()?;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(identity.authority.clone()).map_err(|error| FolderError::Unreadable {
        path: folder.path().display().to_string(),
        reason: error.to_string(),
    })?;
    let (asker, wanted) = asks::asks();
    let fleet = Fleet::new(own, Box::new(ToNodes(asker.clone())));
    let address = address(config, https);
    if address.is_empty() {
        tracing::warn!("other edges cannot fetch from this one: control.advertise is not set");
    }
    let shown = Arc::<outrider_certificate::Shown>::clone(&identity.shown);
    let certificate = MemberCertificate {
        name: member_name(own),
        shown: Arc::<outrider_certificate::Shown>::clone(&shown),
    };
    let to_shards = Arc::<ToShards>::default();
    let follower = Follower::start(Settings {
        folder,
        identity,
        nodes: if nodes.is_empty() { config.control.nodes.clone() } else { nodes },
        interest: Interest { prefixes: config.control.fragments.clone() },
        address,
        sink: Box::new(ToFleet {
            caches: ToCaches {
                fleet: Arc::clone(&fleet),
                orders: Arc::clone(orders),
                configured: config.cache.importance.weights(),
            },
            shards: Arc::clone(&to_shards),
        }),
        asks: (asker, wanted),
    })?;
    let book: Arc<dyn PeerBook> = Arc::<Fleet>::clone(&fleet);
    Ok(Some(Followed {
        follower,
        to_shards,
        fleet,
        peers: PeerOptions { book, roots, name: member_name, identity: Some(shown) },
        certificate,
    }))
}

/// Where other edges reach this one, or empty.
fn address(config: &Config, https: Option<SocketAddr>) -> String {
    let listened = || https.filter(|https| !https.ip().is_unspecified());
    let advertised = config.control.advertise.clone();
    advertised.or_else(|| listened().map(|at| at.to_string())).unwrap_or_default()
}

/// The edge whose certificate has this name.
pub(crate) fn member_of(name: &str) -> Option<u64> {
    name.strip_prefix("edge-")?.strip_suffix(".outrider.internal")?.parse().ok()
}

/// The name in an edge's certificate.
fn member_name(edge: u64) -> String {
    format!("edge-{edge}.outrider.internal")
}

/// Proposals to the nodes.
struct ToNodes(Asker);

impl Proposer for ToNodes {
    fn propose(&self, proposal: Proposal, done: Proposed) {
        let Proposal { repository, tag, expected, record } = proposal;
        let expect = if expected == 0 { Expect::Absent } else { Expect::Version(expected) };
        let record = record.map(|record| TagRecord {
            digest: record.digest,
            size_bytes: record.size_bytes,
            media_type: record.media_type,
            holders: record.holders,
            upstream: record.upstream,
        });
        self.0.ask(Wish::Tag { repository, tag, expect, record }, |result| {
            done(result.map(drop).map_err(|error| match error {
                AskError::Mismatch { current } => ProposalError::Mismatch(current),
                AskError::Refused(why) => ProposalError::Refused(why),
                AskError::Unavailable(why) => ProposalError::Unavailable(why),
            }));
        });
    }
}

/// What the nodes say, to the shards.
struct ToFleet {
    caches: ToCaches,
    shards: Arc<ToShards>,
}

fn fleet_record(record: &TagRecord) -> FleetRecord {
    FleetRecord {
        digest: record.digest.clone(),
        size_bytes: record.size_bytes,
        media_type: record.media_type.clone(),
        holders: record.holders.clone(),
        upstream: record.upstream.clone(),
    }
}

fn placement_rule(placement: &Placement) -> PlacementRule {
    PlacementRule { replicas: placement.replicas, regions: placement.regions.clone() }
}

/// An edge that is let in is reached where it says.
fn reached(role: MemberRole, revoked: bool, address: &str) -> Option<String> {
    let there = role == MemberRole::Edge && !revoked && !address.is_empty();
    there.then(|| address.to_owned())
}

impl Sink for ToFleet {
    fn whole(&mut self, replica: &Replica, consequences: &[Consequence]) {
        let tags = replica.tags.iter().map(|((repository, tag), (version, record))| {
            (repository.clone(), tag.clone(), *version, fleet_record(record))
        });
        let addresses = replica.members.iter().filter_map(|(number, member)| {
            Some((*number, reached(member.role, member.revoked, &member.address)?))
        });
        self.caches.fleet.replace(tags, addresses);
        let rules = replica.placements.iter();
        let rules = rules.map(|(prefix, placement)| (prefix.clone(), placement_rule(placement)));
        let regions = replica.members.iter();
        let regions = regions.map(|(number, member)| (*number, member.region.clone()));
        self.caches.fleet.replace_placements(rules, regions);
        self.caches.whole(replica, consequences);
    }

    fn soft(&mut self, message: SoftToEdge) {
        self.shards.tell(message);
    }

    fn update(&mut self, replica: &Replica, items: &[Item], consequences: &[Consequence]) {
        let fleet = &self.caches.fleet;
        for item in items {
            match item {
                Item::Tag { repository, tag, version, record, .. } => {
                    let record = record.as_ref().map(fleet_record);
                    fleet.set_tag(repository, tag, *version, record);
                }
                Item::Placement { prefix, placement } => {
                    fleet.set_placement(prefix, placement.as_ref().map(placement_rule));
                }
                Item::Member { number, role, region, revoked, address } => {
                    fleet.set_region(*number, region);
                    fleet.set_address(*number, reached(*role, *revoked, address));
                }
                _ => {}
            }
        }
        self.caches.update(replica, items, consequences);
    }
}

/// What `/status` shows.
pub(crate) fn json(status: &Status) -> Value {
    json!({
        "edge": status.edge,
        "connected": status.node.is_some(),
        "node": status.node,
        "version": status.version,
        "latest": status.latest,
        "lag": status.lag(),
        "heard_s": status.heard.map(|heard| heard.elapsed().as_secs_f64()),
        "stored": status.stored,
        "store_failure": status.store_failure,
        "last_failure": status.failure,
        "connections": status.connections,
        "updates": status.updates,
        "snapshots": status.snapshots,
        "fragments": status.fragments,
        "tags": status.tags,
        "certificate": status.certificate.map(|validity| {
            const DAY: f64 = 86_400.0;
            let until = validity.until.duration_since(UNIX_EPOCH).unwrap_or_default();
            json!({
                "until_unix_s": until.as_secs(),
                "days_left": validity.left(SystemTime::now()).as_secs_f64() / DAY,
                "lifetime_days": validity.lifetime().as_secs_f64() / DAY,
                "failure": status.renewal_failure,
            })
        }),
        "asks": {
            "granted": status.asks.granted,
            "refused": status.asks.refused,
            "unavailable": status.asks.unavailable,
        },
        "events": {
            "sent": status.events.sent,
            "held": status.events.held,
            "unsettled": status.events.unsettled,
            "too_large": status.events.too_large,
            "failure": status.events.failure,
        },
    })
}

/// A connection is given up when nothing is heard for a third of this: after that it is this edge that is stuck.
const SILENT_MAX: Duration = Duration::from_secs(15);

/// What `/readyz` says beside its verdict: the edge serves all the same.
pub(crate) fn remarks(status: &Status) -> Vec<String> {
    let mut remarks = Vec::new();
    let silent = status.heard.map(|heard| heard.elapsed()).filter(|silent| *silent > SILENT_MAX);
    match (&status.node, &status.failure) {
        (Some(node), _) if let Some(silent) = silent => {
            remarks.push(format!(
                "nothing of {node} was taken in for {silent:.0?}: is the disk stuck?"
            ));
        }
        (Some(_), _) if status.lag() == 0 => {}
        (Some(node), _) => {
            remarks.push(format!("it lags {} updates behind {node}", status.lag()));
        }
        (None, failure) => {
            let why = failure.as_deref().unwrap_or("not connected yet");
            let version = status.version;
            remarks.push(format!("the control plane is not followed, at version {version}: {why}"));
        }
    }
    if let Some(failure) = &status.store_failure {
        remarks.push(format!("what the control plane says is not stored any more: {failure}"));
    }
    if let Some(failure) = &status.events.failure {
        remarks.push(format!("events are not taken: {failure}"));
    }
    remarks
}

/// How the edge stands to the control plane, as metrics; without one everything is 0.
#[derive(Debug)]
pub(crate) struct ControlMetrics(pub(crate) Option<Monitor>);

/// A number: its name behind the prefix, its help, and how it is read.
type Number = (&'static str, &'static str, fn(&Status) -> u64);

const GAUGES: [Number; 7] = [
    ("certificate_left_seconds", "Seconds until the certificate of this edge ends", |s| {
        let left = s.certificate.map(|validity| validity.left(SystemTime::now()));
        left.unwrap_or_default().as_secs()
    }),
    ("events_held", "Events that were handed on and are not acknowledged yet", |s| s.events.held),
    ("connected", "Whether a node of the control plane is followed", |s| {
        u64::from(s.node.is_some())
    }),
    ("version", "Version up to which the state is known", |s| s.version),
    ("lag_updates", "Updates of the state that are not known yet", Status::lag),
    ("stored_version", "Version up to which the state is on the disk", |s| s.stored),
    ("store_failed", "Whether the disk of the replica failed", |s| {
        u64::from(s.store_failure.is_some())
    }),
];

const COUNTERS: [Number; 11] = [
    ("hints", "Hints that came from the control plane", |s| s.hints),
    ("predictions", "Predictions that came from the control plane", |s| s.predictions),
    ("events_sent", "Events that were sent, each as often as it was", |s| s.events.sent),
    (
        "accesses_unsettled",
        "Accesses that were dropped, since it is not known whether they arrived",
        |s| s.events.unsettled,
    ),
    ("accesses_too_large", "Accesses that were dropped, since they are too large", |s| {
        s.events.too_large
    }),
    ("connections", "Connections to nodes of the control plane", |s| s.connections),
    ("updates", "Updates of the state that were taken in", |s| s.updates),
    ("snapshots", "Times that the state was taken as a whole", |s| s.snapshots),
    ("asks_granted", "Tags and addresses that were written for this edge", |s| s.asks.granted),
    ("asks_refused", "The same that were refused, or where another edge was faster", |s| {
        s.asks.refused
    }),
    ("asks_unavailable", "The same whose outcome was not known in time", |s| s.asks.unavailable),
];

impl Collector for ControlMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let status = self.0.as_ref().map(Monitor::status).unwrap_or_default();
        for (name, help, read) in GAUGES {
            let name = format!("outrider_follow_{name}");
            let value = i64::try_from(read(&status)).unwrap_or(i64::MAX);
            let metric = encoder.encode_descriptor(&name, help, None, MetricType::Gauge)?;
            ConstGauge::new(value).encode(metric)?;
        }
        for (name, help, read) in COUNTERS {
            let name = format!("outrider_follow_{name}");
            let metric = encoder.encode_descriptor(&name, help, None, MetricType::Counter)?;
            ConstCounter::new(read(&status)).encode(metric)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn it_is_remarked_on_when_it_lags_or_is_not_connected() {
        let mut status =
            Status { node: Some("c1:9191".to_owned()), version: 7, ..Status::default() };
        status.latest = 7;
        assert!(remarks(&status).is_empty());
        status.latest = 9;
        assert_eq!(remarks(&status), ["it lags 2 updates behind c1:9191"]);
        status.heard = Instant::now().checked_sub(Duration::from_secs(20));
        assert!(remarks(&status)[0].starts_with("nothing of c1:9191 was taken in for 20s"));
        status.node = None;
        status.failure = Some("why".to_owned());
        status.store_failure = Some("disk".to_owned());
        let remarks = remarks(&status);
        assert_eq!(remarks[0], "the control plane is not followed, at version 7: why");
        assert!(remarks[1].ends_with("disk"));
    }
}
