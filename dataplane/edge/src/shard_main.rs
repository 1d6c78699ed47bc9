//! What runs on a shard's thread: opens the shard's cache, takes over what was pushed before, serves its
//! listeners, and answers the few questions that come from outside.
//!
//! Owns everything that must not leave the thread: the cache, the gateway. It must never block once it
//! serves; what blocks (the scan of the stripes) is done before.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use outrider_cache::{Cache, CacheConfig, CacheError, Share, Stripes};
use outrider_gateway::names::{Fleet, FleetNames, HandedOver, Names, NamesClient, NamesError};
use outrider_gateway::{
    AccessShared, Gateway, GatewayParts, GatewaySettings, Hub, Orders, Recovered, Upstream,
};
use outrider_link::Collector;
use outrider_shard::channel::{self, Completer, Member, Receiver};
use outrider_shard::{ShardContext, Source, task, time};
use outrider_transport::quic::{self, QuicParts, QuicServer, QuicSocket};
use outrider_transport::{self as transport, Drain, Limits, Listener, PinBudget};
use outrider_uplink::Uplink;

use crate::crossing::{Crossing, Out};
use crate::events;
use crate::hints::HintMetrics;
use crate::metrics::{Metrics, RecoveredLabels};
use crate::prefetch::Prefetch;
use crate::run::Event;
use crate::state::{
    Edge, INBOX_MAX, Message, OutboxReport, RecoveredReport, Seat, ShardReport, ShareReport, Stage,
};

/// How long the disk may take at the end to write what is still queued for it. Only cached content is:
/// uploads are on the disk before they are acknowledged.
const FLUSH_TIME_MAX: Duration = Duration::from_secs(5);
/// Before it is tried again to hand tags over to the fleet.
const HAND_OVER_PAUSE: Duration = Duration::from_secs(2);
/// How often it is looked at meanwhile.
const FLUSH_LOOK: Duration = Duration::from_millis(10);

/// Why a shard cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its cache.
    #[error("the cache cannot be opened: {0}")]
    Cache(#[from] CacheError),
    /// What was pushed before cannot be taken over.
    #[error("what was pushed before cannot be taken over: {0}")]
    Recover(#[from] NamesError),
    /// Its UDP socket.
    #[error("HTTP/3 cannot be served: {0}")]
    Quic(io::Error),
}

/// What a shard tells the main thread.
#[derive(Debug)]
pub(crate) enum ShardEvent {
    /// It serves.
    Serving,
    /// It cannot.
    Failed(StartError),
    /// Its main function is over, whatever the reason.
    Ended {
        /// Connections that were still busy when the time for the drain was over.
        cut_off: usize,
    },
}

/// A listener and how it is served.
pub(crate) struct Serve {
    pub(crate) listener: Listener,
    pub(crate) tls: Option<Arc<rustls::ServerConfig>>,
}

/// What a shard's cache is opened with.
pub(crate) struct ShardCache {
    pub(crate) config: CacheConfig,
    /// None: there is no disk. There may be none for this shard, too.
    pub(crate) stripes: Option<Stripes>,
    /// How much it may keep of what other shards have.
    pub(crate) table_bytes_max: usize,
}

/// Everything that a shard is given.
pub(crate) struct ShardParts {
    pub(crate) edge: Arc<Edge>,
    pub(crate) id: usize,
    pub(crate) cache: ShardCache,
    pub(crate) hub: Arc<Hub<FleetNames>>,
    /// Where the shards wait for each other: when the caches are open, when what was pushed is found,
    /// and when all have drained.
    pub(crate) member: Member,
    pub(crate) names: NamesClient,
    /// What is known of the fleet's tags, if this edge is in one.
    pub(crate) fleet: Option<Arc<Fleet>>,
    /// What the control plane orders, if there is one.
    pub(crate) orders: Arc<Orders>,
    pub(crate) uplink: Arc<Uplink>,
    pub(crate) upstreams: Vec<Upstream>,
    pub(crate) settings: GatewaySettings,
    pub(crate) access: Option<Arc<AccessShared>>,
    pub(crate) serve: Vec<Serve>,
    pub(crate) quic: Option<(QuicSocket, QuicServer)>,
    /// Where to tell what happens, if anybody is told.
    pub(crate) collector: Option<Collector>,
    pub(crate) crossing: Arc<Crossing>,
    pub(crate) limits: Limits,
    pub(crate) pins: PinBudget,
    pub(crate) metrics: Metrics,
    pub(crate) drain_time_max: Duration,
    pub(crate) events: Events,
}

/// The way from the shards to the main thread. It has room for every event of every shard.
#[derive(Clone)]
pub(crate) struct Events(pub(crate) SyncSender<Event>);

impl Events {
    fn tell(&self, shard: usize, event: ShardEvent) {
        // Only fails when the main thread has stopped to listen, since it is ending everything.
        let _ = self.0.try_send(Event::Shard(shard, event));
    }
}

/// The main function of a shard. Call it on the shard's thread.
pub(crate) fn main(context: ShardContext, parts: ShardParts) -> impl Future<Output = ()> {
    tell_the_end(parts.id, parts.events.clone());
    async move {
        let edge = Arc::clone(&parts.edge);
        let (id, events) = (parts.id, parts.events.clone());
        let seat = &edge.seats[id];
        match serve(&context, seat, parts).await {
            Ok(cut_off) => ENDING.with_borrow_mut(|ending| {
                if let Some(ending) = ending {
                    ending.cut_off = cut_off;
                }
            }),
            Err(error) => events.tell(id, ShardEvent::Failed(error)),
        }
        seat.set_stage(Stage::Ended);
    }
}

/// Has the main thread told when this thread ends, whatever ends it. A task that panics takes the thread
/// down and leaves the others, and what they own, where they are: their destructors cannot tell it.
fn tell_the_end(id: usize, events: Events) {
    ENDING.set(Some(Ending { id, events, cut_off: 0 }));
}

thread_local! {
    /// Dropped with the thread.
    static ENDING: RefCell<Option<Ending>> = const { RefCell::new(None) };
}

struct Ending {
    id: usize,
    events: Events,
    cut_off: usize,
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.events.tell(self.id, ShardEvent::Ended { cut_off: self.cut_off });
    }
}

/// The cache's disk ring and waiting readers, in the driver's turn.
struct CacheSource(Cache);

impl Source for CacheSource {
    fn turn(&mut self) -> bool {
        self.0.turn()
    }

    fn in_flight(&self) -> bool {
        self.0.in_flight()
    }
}

/// Starts, serves, drains; gives how many connections were cut off at the end.
async fn serve(
    context: &ShardContext,
    seat: &Seat,
    parts: ShardParts,
) -> Result<usize, StartError> {
    let handle = context.handle();
    let (tell, inbox) = channel::bounded(INBOX_MAX, &handle);
    seat.open(tell);

    let shard = u16::try_from(parts.id).expect("SHARDS_MAX is far below 2^16");
    let inbox_of_mesh = parts.hub.sit(shard, &handle);
    let ShardCache { config, stripes, table_bytes_max } = parts.cache;
    let cache = Cache::open_on(config, stripes, Some(handle.doorbell()), parts.metrics.cache)?;
    // What is written from here on must be newer than all that lies on any shard's stripes.
    parts.member.meet().await;
    context.add_source(Box::new(CacheSource(cache.clone())));
    let fleet = parts.fleet;
    let in_fleet = fleet.is_some();
    let names = FleetNames::new(parts.names.on(&handle), fleet.clone());
    let gateway = Gateway::new(GatewayParts {
        shard,
        handle: handle.clone(),
        hub: parts.hub,
        table_bytes_max,
        cache: cache.clone(),
        names: names.clone(),
        uplink: parts.uplink.client(&handle),
        pins: parts.pins.clone(),
        upstreams: parts.upstreams,
        settings: parts.settings,
        metrics: parts.metrics.gateway,
        access: parts.access,
    });
    // The main thread takes the uplink down when no shard holds it any more.
    drop(parts.uplink);
    let adopted = gateway.adopt().await?;
    parts.member.meet().await;
    let recovered = gateway.settle(adopted);
    gateway.attend(inbox_of_mesh);
    gateway.expire();
    if let Some(fleet) = fleet {
        gateway.obey(&parts.orders, fleet);
    }
    if in_fleet && shard == 0 {
        task::spawn(hand_over(names.clone()));
    }
    for (outcome, contents) in [("hosted", recovered.hosted), ("lost", recovered.lost)] {
        let gauge = parts.metrics.recovered.get_or_create(&RecoveredLabels { outcome }).clone();
        // Shards add up.
        gauge.inc_by(i64::try_from(contents).unwrap_or(i64::MAX));
    }
    tracing::info!(shard = parts.id, hosted = recovered.hosted, lost = recovered.lost, "recovered");

    let drain = Drain::new();
    for Serve { listener, tls } in parts.serve {
        let (limits, pins) = (parts.limits.clone(), parts.pins.clone());
        let metrics = parts.metrics.transport.clone();
        task::spawn(transport::serve(
            listener,
            tls,
            Rc::clone(&gateway),
            limits,
            pins,
            drain.clone(),
            metrics,
        ));
    }
    if let Some((socket, server)) = parts.quic {
        let quic = QuicParts {
            socket,
            server,
            handler: Rc::clone(&gateway),
            pins: parts.pins.clone(),
            drain: drain.clone(),
            metrics: parts.metrics.transport.clone(),
            forward: Some(Box::new(Out(Arc::clone(&parts.crossing)))),
        };
        let endpoint = quic::serve(context, quic).map_err(StartError::Quic)?;
        parts.crossing.attend(parts.id, &handle, endpoint);
    }
    if let Some(collector) = parts.collector {
        if let Some(accesses) = gateway.accesses() {
            let region = parts.edge.region.as_str().into();
            task::spawn(events::collect(Rc::clone(accesses), collector.clone(), region));
        }
        if parts.id == 0 {
            let names = parts.names.on(&handle);
            task::spawn(events::spool(names, collector, Rc::clone(&gateway)));
        }
    }
    let (asked, told_to_drain) = channel::oneshot(&handle);
    let prefetch = Prefetch::new(parts.metrics.prefetch);
    if in_fleet {
        task::spawn(Rc::clone(&prefetch).run(Rc::clone(&gateway)));
    }
    let reporter = Rc::new(Reporter {
        cache: cache.clone(),
        gateway,
        pins: parts.pins,
        names,
        recovered,
        hints: parts.metrics.hints,
        prefetch,
    });
    task::spawn(answer_questions(inbox, reporter, asked));
    seat.set_stage(Stage::Serving);
    parts.events.tell(parts.id, ShardEvent::Serving);

    told_to_drain.await;
    seat.set_stage(Stage::Draining);
    drain.start();
    let cut_off = drain.wait(parts.drain_time_max).await;
    flush(&cache).await;
    // The others may still need what is here.
    parts.member.meet().await;
    Ok(cut_off)
}

/// Gives the fleet the tags that were pushed before this edge was in it, as soon as it takes them.
async fn hand_over(names: FleetNames) {
    loop {
        match names.hand_over().await {
            Ok(HandedOver { tags: 0, hidden: 0 }) => return,
            Ok(HandedOver { tags, hidden }) => {
                tracing::info!(tags, hidden, "tags of the time before were handed over");
                return;
            }
            Err(error) => tracing::debug!(%error, "tags are not handed over yet"),
        }
        time::sleep(HAND_OVER_PAUSE).await;
    }
}

/// Answers for as long as the shard lives, while it drains too.
async fn answer_questions(
    mut inbox: Receiver<Message>,
    reporter: Rc<Reporter>,
    asked_to_drain: Completer<()>,
) {
    let mut asked_to_drain = Some(asked_to_drain);
    while let Some(message) = inbox.recv().await {
        match message {
            Message::Report(answer) => {
                let reporter = Rc::clone(&reporter);
                // A task of its own, since the names database may take its time.
                task::spawn(async move {
                    // Who asked may have stopped waiting.
                    let _ = answer.send(reporter.report().await);
                });
            }
            Message::Predictions(predictions) => {
                reporter.prefetch.take(&reporter.gateway, &predictions);
            }
            Message::Hints(hints) => reporter.hints.apply(&reporter.cache, &hints),
            Message::Drain => {
                if let Some(asked) = asked_to_drain.take() {
                    asked.complete(());
                }
            }
        }
    }
}

/// What the shard's report is made from.
struct Reporter {
    cache: Cache,
    gateway: Rc<Gateway<FleetNames>>,
    pins: PinBudget,
    names: FleetNames,
    recovered: Recovered,
    hints: HintMetrics,
    prefetch: Rc<Prefetch>,
}

impl Reporter {
    async fn report(&self) -> ShardReport {
        let outbox = self.names.outbox_status().await.ok();
        ShardReport {
            cache: self.cache.usage().into(),
            flights: self.gateway.flights(),
            shares: shares(&self.gateway),
            pinned_bytes: self.pins.pinned_bytes(),
            recovered: RecoveredReport { hosted: self.recovered.hosted, lost: self.recovered.lost },
            outbox: outbox.map(|o| OutboxReport { pending: o.pending, dropped: o.dropped }),
        }
    }
}

/// How customers with a guarantee stand on this shard.
fn shares(gateway: &Gateway<FleetNames>) -> Vec<ShareReport> {
    let share = |(customer, share): (Box<str>, Share)| ShareReport {
        customer,
        guaranteed_ram_bytes: share.guaranteed_ram_bytes,
        guaranteed_ssd_bytes: share.guaranteed_ssd_bytes,
        ram_bytes: share.ram_bytes,
        ssd_bytes: share.ssd_bytes,
    };
    gateway.shares().into_iter().map(share).collect()
}

/// Gives the disk a moment to take what was admitted to it, so that a restart finds it.
async fn flush(cache: &Cache) {
    let until = Instant::now() + FLUSH_TIME_MAX;
    while cache.in_flight() && Instant::now() < until {
        time::sleep(FLUSH_LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use outrider_shard::ShardConfig;

    use super::*;

    #[test]
    fn a_task_that_panics_is_told_as_the_end_of_its_shard() {
        let (events, inbox) = mpsc::sync_channel(4);
        let thread = outrider_shard::start(ShardConfig::new(3), move |_| {
            tell_the_end(3, Events(events));
            async {
                task::spawn(async { panic!("as a defect would") });
                std::future::pending::<()>().await;
            }
        })
        .unwrap();
        let event = inbox.recv().unwrap();
        assert!(matches!(event, Event::Shard(3, ShardEvent::Ended { .. })), "{event:?}");
        assert!(thread.join().is_err());
    }
}
