//! What is known about the running edge as a whole: its stage, its shards' stages, and how to ask a
//! shard what only that shard knows.
//!
//! Shared by the main thread, the shards and the admin server. A shard is asked by a message into its
//! bounded inbox, and answers when its driver comes round to it; an idle shard does nothing for this.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use outrider_follower::Monitor;
use outrider_push::{Hint, Prediction};
use outrider_shard::channel::Sender;
use outrider_uplink::UplinkMonitor;
use prometheus_client::registry::Registry;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::admin::Panel;
use crate::follow;
use crate::metrics::ShardGauges;

/// How long a shard may take to answer before it counts as stuck. A driver's turn is far below a
/// millisecond, so that this is generous.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(2);
/// Questions that may wait for one shard: one for each connection of the admin server, and to spare.
pub(crate) const INBOX_MAX: usize = 2 * crate::admin::CONNECTIONS_MAX;

/// How far a shard is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Stage {
    /// It reads its stripes and the names of what was pushed.
    Starting = 0,
    /// It answers requests.
    Serving = 1,
    /// It finishes the requests that it has.
    Draining = 2,
    /// It has ended.
    Ended = 3,
}

impl Stage {
    fn from_number(number: u8) -> Stage {
        match number {
            0 => Stage::Starting,
            1 => Stage::Serving,
            2 => Stage::Draining,
            _ => Stage::Ended,
        }
    }

    fn text(self) -> &'static str {
        match self {
            Stage::Starting => "starting",
            Stage::Serving => "serving",
            Stage::Draining => "draining",
            Stage::Ended => "ended",
        }
    }
}

/// What a shard is told.
#[derive(Debug)]
pub(crate) enum Message {
    /// Answer with what you have.
    Report(oneshot::Sender<ShardReport>),
    /// So much depends on these contents.
    Hints(Arc<[Hint]>),
    /// These will be asked for.
    Predictions(Arc<[Prediction]>),
    /// Finish what you have, and end.
    Drain,
}

/// What only the shard itself knows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct ShardReport {
    pub(crate) cache: CacheReport,
    /// Fetches of a digest that are under way.
    pub(crate) flights: usize,
    /// How customers with a guarantee stand.
    pub(crate) shares: Vec<ShareReport>,
    /// Bytes that clients have not taken yet, and that therefore cannot be reused.
    pub(crate) pinned_bytes: usize,
    pub(crate) recovered: RecoveredReport,
    /// None when the names database did not answer.
    pub(crate) outbox: Option<OutboxReport>,
}

/// How full the tiers are.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct CacheReport {
    pub(crate) ram_used_bytes: u64,
    pub(crate) ram_total_bytes: u64,
    pub(crate) ssd_used_bytes: u64,
    pub(crate) ssd_total_bytes: u64,
    pub(crate) uploads_bytes: u64,
    pub(crate) uploads_total_bytes: u64,
    pub(crate) objects: u64,
    pub(crate) hosted: u64,
    pub(crate) stripes: u16,
    pub(crate) stripes_out: u16,
    pub(crate) registered_buffers: bool,
}

impl From<outrider_cache::Usage> for CacheReport {
    fn from(usage: outrider_cache::Usage) -> CacheReport {
        CacheReport {
            ram_used_bytes: usage.ram_used_bytes,
            ram_total_bytes: usage.ram_total_bytes,
            ssd_used_bytes: usage.ssd_used_bytes,
            ssd_total_bytes: usage.ssd_total_bytes,
            uploads_bytes: usage.uploads_bytes,
            uploads_total_bytes: usage.uploads_total_bytes,
            objects: usage.objects,
            hosted: usage.hosted,
            stripes: usage.stripes,
            stripes_out: usage.stripes_out,
            registered_buffers: usage.registered,
        }
    }
}

/// How a customer with a guarantee stands.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct ShareReport {
    pub(crate) customer: Box<str>,
    pub(crate) guaranteed_ram_bytes: u64,
    pub(crate) guaranteed_ssd_bytes: u64,
    pub(crate) ram_bytes: u64,
    pub(crate) ssd_bytes: u64,
}

impl ShareReport {
    /// The same customer's on all shards.
    fn add(&mut self, other: &Self) {
        self.guaranteed_ram_bytes += other.guaranteed_ram_bytes;
        self.guaranteed_ssd_bytes += other.guaranteed_ssd_bytes;
        self.ram_bytes += other.ram_bytes;
        self.ssd_bytes += other.ssd_bytes;
    }
}

/// What was pushed before, and found (or not) at this start.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct RecoveredReport {
    pub(crate) hosted: u64,
    pub(crate) lost: u64,
}

/// The outbox of events.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct OutboxReport {
    pub(crate) pending: u64,
    pub(crate) dropped: u64,
}

/// A shard, as seen from outside.
#[derive(Debug)]
pub(crate) struct Seat {
    pub(crate) id: usize,
    pub(crate) cpu: Option<usize>,
    stage: AtomicU8,
    /// Set by the shard itself, since only it can make a channel into itself.
    inbox: OnceLock<Sender<Message>>,
}

impl Seat {
    pub(crate) fn new(id: usize, cpu: Option<usize>) -> Seat {
        Seat { id, cpu, stage: AtomicU8::new(Stage::Starting as u8), inbox: OnceLock::new() }
    }

    pub(crate) fn stage(&self) -> Stage {
        Stage::from_number(self.stage.load(Ordering::Acquire))
    }

    pub(crate) fn set_stage(&self, stage: Stage) {
        self.stage.store(stage as u8, Ordering::Release);
    }

    /// Takes the way in. Only the first is kept.
    pub(crate) fn open(&self, inbox: Sender<Message>) {
        let first = self.inbox.set(inbox).is_ok();
        debug_assert!(first, "a shard opened its inbox twice");
    }

    /// Tells the shard; false when it is not there (yet, or any more) or its inbox is full.
    pub(crate) fn tell(&self, message: Message) -> bool {
        self.inbox.get().is_some_and(|inbox| inbox.try_send(message).is_ok())
    }

    /// The shard's report, or why there is none.
    async fn report(&self) -> Result<ShardReport, String> {
        let (answer, answered) = oneshot::channel();
        // While it starts it reads its stripes and would answer only after that.
        let stage = self.stage();
        if stage == Stage::Starting || !self.tell(Message::Report(answer)) {
            return Err(format!("shard {} is {} and takes no question", self.id, stage.text()));
        }
        match tokio::time::timeout(ANSWER_TIME_MAX, answered).await {
            Ok(Ok(report)) => Ok(report),
            Ok(Err(_)) => Err(format!("shard {} ended before it answered", self.id)),
            Err(_) => Err(format!("shard {} has not answered for {ANSWER_TIME_MAX:?}", self.id)),
        }
    }
}

/// The addresses that are listened on.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Addresses {
    pub(crate) https: Option<SocketAddr>,
    pub(crate) http: Option<SocketAddr>,
    pub(crate) admin: Option<SocketAddr>,
}

/// The running edge.
pub(crate) struct Edge {
    pub(crate) started: Instant,
    pub(crate) region: String,
    pub(crate) data_dir: PathBuf,
    pub(crate) addresses: Addresses,
    /// Set when the start is over and its user has been told.
    pub(crate) announced: AtomicBool,
    pub(crate) draining: AtomicBool,
    pub(crate) seats: Vec<Seat>,
    pub(crate) uplink: UplinkMonitor,
    /// None: there is no control plane.
    pub(crate) control: Option<Monitor>,
    pub(crate) registry: Registry,
    pub(crate) shard_gauges: ShardGauges,
}

/// The admin pages of a running edge, for who answers them beside others of its own.
#[derive(Clone)]
pub struct Pages(pub(crate) Arc<Edge>);

impl Panel for Pages {
    async fn metrics(&self) -> String {
        self.0.metrics().await
    }

    async fn health(&self) -> Vec<String> {
        self.0.health().await
    }

    async fn readiness(&self) -> Vec<String> {
        self.0.readiness().await
    }

    fn remarks(&self) -> Vec<String> {
        self.0.remarks()
    }

    async fn status(&self) -> Value {
        self.0.status().await
    }
}

impl Panel for Edge {
    async fn metrics(&self) -> String {
        for seat in &self.seats {
            self.shard_gauges.set(seat.id, seat.report().await.as_ref().ok());
        }
        let mut text = String::new();
        // Writing into a String cannot fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }

    /// A shard that does not answer is stuck; one that starts or ends does so for as long as it takes.
    async fn health(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        for seat in &self.seats {
            if seat.stage() == Stage::Serving
                && let Err(why) = seat.report().await
            {
                reasons.push(why);
            }
        }
        reasons
    }

    async fn readiness(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        if self.draining.load(Ordering::Acquire) {
            reasons.push("draining".to_owned());
        }
        for seat in &self.seats {
            match seat.stage() {
                Stage::Serving if self.announced.load(Ordering::Acquire) => {}
                Stage::Serving => reasons.push("the start is not over yet".to_owned()),
                Stage::Starting => {
                    reasons.push(format!("shard {} is reading its stripes", seat.id));
                }
                stage => reasons.push(format!("shard {} is {}", seat.id, stage.text())),
            }
        }
        reasons
    }

    fn remarks(&self) -> Vec<String> {
        self.control.iter().flat_map(|control| follow::remarks(&control.status())).collect()
    }

    async fn status(&self) -> Value {
        let mut shards = Vec::with_capacity(self.seats.len());
        let mut outbox = None;
        let mut shares: BTreeMap<Box<str>, ShareReport> = BTreeMap::new();
        for seat in &self.seats {
            let mut shard = json!({ "id": seat.id, "cpu": seat.cpu, "stage": seat.stage().text() });
            match seat.report().await {
                Ok(report) => {
                    shard["cache"] = json!(report.cache);
                    shard["recovered"] = json!(report.recovered);
                    shard["flights"] = json!(report.flights);
                    shard["pinned_bytes"] = json!(report.pinned_bytes);
                    outbox = outbox.or(report.outbox);
                    for share in report.shares {
                        match shares.get_mut(&share.customer) {
                            Some(sum) => sum.add(&share),
                            None => drop(shares.insert(share.customer.clone(), share)),
                        }
                    }
                }
                Err(why) => shard["no_answer"] = json!(why),
            }
            shards.push(shard);
        }
        let reasons = self.readiness().await;
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "uptime_s": self.started.elapsed().as_secs(),
            "clock_step_s": outrider_certificate::clock::stepped_s(),
            "region": self.region,
            "data_dir": self.data_dir,
            "disk": outrider_settings::files::disk(&self.data_dir).map(|(free, total)| {
                json!({ "free_bytes": free, "total_bytes": total })
            }),
            "ready": reasons.is_empty(),
            "not_ready_because": reasons,
            "draining": self.draining.load(Ordering::Acquire),
            "listeners": self.addresses,
            "shards": shards,
            "upstreams": self.uplink.status(),
            "outbox": outbox,
            "customers": shares.values().collect::<Vec<_>>(),
            "control": self.control.as_ref().map(|control| follow::json(&control.status())),
        })
    }
}
