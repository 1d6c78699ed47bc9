//! Gateways on real shards ask each other.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use bytes::Bytes;
use outrider_artifact::Digest;
use outrider_cache::{Cache, CacheConfig, CacheMetrics, Origin, Placement};
use outrider_shard::channel::Member;
use outrider_shard::channel::Rendezvous;
use outrider_shard::{ShardConfig, ShardContext, task, time};
use outrider_transport::PinBudget;
use outrider_uplink::{Uplink, UplinkOptions};

use super::{Hub, Inbox, QUESTIONS_MAX, Unanswered};
use crate::gateway::{Gateway, GatewayParts, GatewaySettings};
use crate::metrics::GatewayMetrics;
use crate::names::{LocalNames, NamesClient, NamesLimits, NamesMetrics, open};
use crate::protocol::ApiError;

type Ours = Rc<Gateway<LocalNames>>;

/// What every shard of a test is given.
#[derive(Clone)]
struct Site {
    hub: Arc<Hub<LocalNames>>,
    names: NamesClient,
    uplink: Arc<Uplink>,
}

impl Site {
    fn gateway(&self, shard: u16, context: &ShardContext) -> (Ours, Inbox<LocalNames>) {
        let handle = context.handle();
        let inbox = self.hub.sit(shard, &handle);
        let gateway = Gateway::new(GatewayParts {
            shard,
            hub: self.hub.clone(),
            table_bytes_max: 1 << 20,
            cache: Cache::open(CacheConfig::new(4 << 20), None, CacheMetrics::default()).unwrap(),
            names: self.names.on(&handle),
            uplink: self.uplink.client(&handle),
            pins: PinBudget::new(1 << 20, 1 << 20),
            upstreams: Vec::new(),
            settings: GatewaySettings::default(),
            metrics: GatewayMetrics::default(),
            access: None,
            handle,
        });
        (gateway, inbox)
    }
}

/// Runs `first` on shard 0 and `second` on shard 1. They have met when both have their gateways; shard 1
/// ends when shard 0 has.
fn on_two_shards<A, B, F, G>(first: F, second: G)
where
    A: Future<Output = ()> + 'static,
    B: Future<Output = ()> + 'static,
    F: FnOnce(Ours, Arc<Member>) -> A + Send + 'static,
    G: FnOnce(Ours, Inbox<LocalNames>, Arc<Member>) -> B + Send + 'static,
{
    let dir = tempfile::tempdir().unwrap();
    let (thread, names) =
        open(dir.path(), NamesLimits::default(), NamesMetrics::default()).unwrap();
    let uplink = Arc::new(outrider_uplink::start(Vec::new(), UplinkOptions::default()).unwrap());
    let hub = Arc::new(Hub::new(Placement::new(2, 2)));
    let site = Site { hub, names, uplink };
    let together = Rendezvous::default();
    let (one, two) = (Arc::new(together.join()), Arc::new(together.join()));
    let other = site.clone();
    let shards = [
        outrider_shard::start(ShardConfig::new(0), move |context| async move {
            let (gateway, inbox) = site.gateway(0, &context);
            gateway.attend(inbox);
            one.meet().await;
            first(gateway, one.clone()).await;
            one.meet().await;
        })
        .unwrap(),
        outrider_shard::start(ShardConfig::new(1), move |context| async move {
            let (gateway, inbox) = other.gateway(1, &context);
            two.meet().await;
            second(gateway, inbox, two.clone()).await;
            two.meet().await;
        })
        .unwrap(),
    ];
    shards.into_iter().for_each(|shard| shard.join().unwrap());
    thread.stop().unwrap();
}

fn thread_name() -> String {
    std::thread::current().name().unwrap_or_default().to_owned()
}

/// Digests that are at home on this shard.
fn at_home(hub: &Hub<LocalNames>, shard: u16) -> impl Iterator<Item = (Digest, Bytes)> {
    let placement = hub.placement();
    (0..u32::MAX).filter_map(move |n| {
        let bytes = Bytes::from(format!("content {n}"));
        let digest = Digest::sha256(&bytes);
        (placement.home(&digest) == shard).then_some((digest, bytes))
    })
}

#[test]
fn work_is_done_on_the_other_shard_and_its_own_work_here() {
    on_two_shards(
        |gateway, _| async move {
            let name = gateway.on(1, |_| async { thread_name() }).await;
            assert_eq!(name, Ok("shard-1".to_owned()));
            assert_eq!(gateway.on(0, |_| async { thread_name() }).await, Ok("shard-0".to_owned()));
        },
        |gateway, inbox, _| async move { gateway.attend(inbox) },
    );
}

#[test]
fn a_shard_with_too_many_questions_refuses_more_and_one_that_has_ended_says_so() {
    on_two_shards(
        |gateway, shards| async move {
            for _ in 0..QUESTIONS_MAX {
                gateway.tell(1, |_| ());
            }
            assert_eq!(gateway.metrics.mesh_lost.get(), 0);
            gateway.tell(1, |_| ());
            assert_eq!(gateway.metrics.mesh_lost.get(), 1);
            let refused = gateway.on(1, |_| async {}).await.unwrap_err();
            assert_eq!(refused, Unanswered::Busy);
            let error = ApiError::from(refused);
            assert_eq!(error.status(), 503);
            assert!(error.headers().contains_key("retry-after"));
            shards.meet().await;
            // Its inbox is gone now.
            shards.meet().await;
            assert_eq!(gateway.on(1, |_| async {}).await, Err(Unanswered::Ended));
        },
        |_, inbox, shards| async move {
            shards.meet().await;
            drop(inbox);
            shards.meet().await;
        },
    );
}

#[test]
fn work_that_nobody_waits_for_any_more_is_dropped_where_it_runs() {
    struct Dropped(mpsc::Sender<String>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            let _ = self.0.send(thread_name());
        }
    }
    on_two_shards(
        |gateway, _| async move {
            let (tell, told) = mpsc::channel();
            let waits = gateway.on(1, move |_| async move {
                let _dropped = Dropped(tell);
                std::future::pending::<()>().await;
            });
            let left = time::timeout(Duration::from_millis(20), waits).await;
            assert!(left.is_err(), "it never ends by itself");
            loop {
                match told.try_recv() {
                    Ok(thread) => break assert_eq!(thread, "shard-1"),
                    Err(_) => task::yield_now().await,
                }
            }
        },
        |gateway, inbox, _| async move { gateway.attend(inbox) },
    );
}

#[test]
fn a_content_is_put_and_read_at_its_home_and_kept_here_when_it_is_asked_for_again() {
    on_two_shards(
        |gateway, _| async move {
            let (digest, bytes) = at_home(&gateway.hub, 1).next().unwrap();
            assert_eq!(gateway.owner(&digest), 1);
            assert!(gateway.at_hand(&digest).await.unwrap().is_none());
            gateway.put_whole(&digest, "text/plain", &bytes, Origin(1)).await;
            assert!(gateway.cache.stat(&digest).is_none(), "it is not here");
            for _ in 0..3 {
                let stored = gateway.at_hand(&digest).await.unwrap().unwrap();
                assert_eq!(stored.bytes, bytes);
                assert_eq!(&*stored.stat.media_type, "text/plain");
                assert!(!stored.stat.hosted);
            }
            assert!(gateway.metrics.table_hits.get() > 0, "kept since the second time");
            // What is taken away there is not answered here.
            gateway
                .surely_on(1, move |other| async move {
                    other.cache.forget(&digest);
                    other.hub.next_epoch();
                })
                .await
                .unwrap();
            assert!(gateway.at_hand(&digest).await.unwrap().is_none());
        },
        |gateway, inbox, _| async move { gateway.attend(inbox) },
    );
}
