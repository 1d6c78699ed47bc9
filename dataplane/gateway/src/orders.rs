//! What the control plane orders of the caches, in the order of its log: who the customers are, by which weights is
//! weighed, what is no longer true. Told by the thread that follows, done by every shard.
//!
//! A shard's queue is bounded. Whoever tells waits while it is full, so that nothing is lost and nothing is overtaken;
//! serving waits for nothing here.

use std::cell::{Cell, RefCell};
use std::collections::{HashSet, VecDeque};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use outrider_artifact::manifest::{DescriptorKind, Manifest};
use outrider_artifact::{Digest, Reference};
use outrider_cache::ImportanceWeights;
use outrider_shard::channel::{Receiver, Sender, TrySendError, bounded};
use outrider_shard::{ShardHandle, task, time};

use crate::customers::Standing;
use crate::gateway::{Gateway, up_s};
use crate::names::{Fleet, Names};
use crate::protocol::ApiError;
use crate::protocol::route::Read;

/// Orders that wait for a shard.
const ORDERS_MAX: usize = 1024;
/// Orders that wait for a shard that has not begun.
const ORDERS_EARLY_MAX: usize = 65_536;
/// Before a full queue is tried again.
const FULL_PAUSE: Duration = Duration::from_millis(1);
/// Manifests that one was replaced by, which wait to be compared; of more the oldest are left as they are.
const REPLACED_MAX: usize = 1024;
/// Tags that are looked at in one go for manifests that are still known.
const TAGS_PAGE: usize = 1024;
/// The deepest index of indexes that is followed.
const INDEX_DEPTH_MAX: usize = 4;
/// Between two passes over the tags.
const COMPARE_PAUSE: Duration = Duration::from_secs(1);
/// How often content is looked through for what was not used for too long.
const EXPIRE_PAUSE: Duration = Duration::from_secs(60);

/// One order.
#[derive(Clone, Debug)]
pub enum Order {
    /// What a customer is, or that there is none of the name any more.
    Customer(Arc<str>, Option<Standing>),
    /// All the customers there are.
    Customers(Arc<Vec<(Arc<str>, Standing)>>),
    /// What is weighed by.
    Weights(ImportanceWeights),
    /// A tag stands for something else.
    Replaced(Replaced),
    /// Cached copies of this are forgotten. What was pushed here stays.
    Purge(Digest),
}

/// What a tag stood for, and what it stands for now.
#[derive(Clone, Debug)]
pub struct Replaced {
    /// The repository.
    pub repository: Arc<str>,
    /// What the tag stood for.
    pub before: Digest,
    /// What it stands for, if anything.
    pub now: Option<Digest>,
    /// It was pushed: what it stands for may be fetched from who holds it.
    pub hosted: bool,
}

/// What waits to be compared, on the first shard.
#[derive(Default)]
struct Waiting {
    replaced: RefCell<VecDeque<Replaced>>,
    running: Cell<bool>,
}

enum Seat {
    Early(VecDeque<Order>),
    Open(Sender<Order>),
    Gone,
}

/// The way of orders to all shards.
pub struct Orders {
    seats: Box<[Mutex<Seat>]>,
}

impl Orders {
    /// For so many shards.
    pub fn new(shards: usize) -> Arc<Self> {
        let seat = |_| Mutex::new(Seat::Early(VecDeque::new()));
        Arc::new(Self { seats: (0..shards).map(seat).collect() })
    }

    /// Tells every shard. Blocks while the queue of one is full.
    pub fn tell(&self, order: &Order) {
        for (shard, seat) in self.seats.iter().enumerate() {
            // What is found out by looking at tags is found out once.
            if matches!(order, Order::Replaced(_)) && shard > 0 {
                break;
            }
            while !offer(seat, order) {
                std::thread::sleep(FULL_PAUSE);
            }
        }
    }

    /// The orders of a shard from now on, and those that came before.
    pub fn open(&self, shard: usize, handle: &ShardHandle) -> (Vec<Order>, Receiver<Order>) {
        let (sender, receiver) = bounded(ORDERS_MAX, handle);
        let mut seat = self.seats[shard].lock().unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *seat, Seat::Open(sender)) {
            Seat::Early(early) => (early.into(), receiver),
            Seat::Open(_) | Seat::Gone => (Vec::new(), receiver),
        }
    }
}

fn offer(seat: &Mutex<Seat>, order: &Order) -> bool {
    let mut seat = seat.lock().unwrap_or_else(PoisonError::into_inner);
    match &mut *seat {
        Seat::Early(early) if early.len() >= ORDERS_EARLY_MAX => return false,
        Seat::Early(early) => early.push_back(order.clone()),
        Seat::Open(sender) => match sender.try_send(order.clone()) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => return false,
            Err(TrySendError::Closed(_)) => *seat = Seat::Gone,
        },
        Seat::Gone => {}
    }
    true
}

impl std::fmt::Debug for Orders {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Orders").field("shards", &self.seats.len()).finish_non_exhaustive()
    }
}

impl<N: Names> Gateway<N> {
    /// Does what is ordered, for as long as the shard lives. `fleet` knows the tags. Call it once.
    pub fn obey(self: &Rc<Self>, orders: &Orders, fleet: Arc<Fleet>) {
        let (early, mut inbox) = orders.open(usize::from(self.shard), &self.handle);
        let (gateway, waiting) = (self.clone(), Rc::new(Waiting::default()));
        task::spawn(async move {
            for order in early {
                gateway.do_as_ordered(order, &waiting, &fleet);
                task::yield_if_needed().await;
            }
            while let Some(order) = inbox.recv().await {
                gateway.do_as_ordered(order, &waiting, &fleet);
                task::yield_if_needed().await;
            }
        });
    }

    fn do_as_ordered(self: &Rc<Self>, order: Order, waiting: &Rc<Waiting>, fleet: &Arc<Fleet>) {
        let shards = self.hub.shards();
        match order {
            Order::Customer(name, standing) => {
                self.customers.set(&self.cache, shards, &name, standing.as_ref());
            }
            Order::Customers(all) => {
                let kept: HashSet<&str> = all.iter().map(|(name, _)| &**name).collect();
                for name in self.customers.names() {
                    if !kept.contains(&*name) {
                        self.customers.set(&self.cache, shards, &name, None);
                    }
                }
                for (name, standing) in &*all {
                    self.customers.set(&self.cache, shards, name, Some(standing));
                }
            }
            Order::Weights(weights) => self.cache.set_weights(weights),
            Order::Replaced(one) => {
                let mut replaced = waiting.replaced.borrow_mut();
                if replaced.len() >= REPLACED_MAX {
                    replaced.pop_front();
                    self.metrics.replaced_left.inc();
                }
                replaced.push_back(one);
                drop(replaced);
                if !waiting.running.replace(true) {
                    task::spawn(compare(self.clone(), fleet.clone(), waiting.clone()));
                }
            }
            Order::Purge(digest) => {
                let stat = self.cache.stat(&digest);
                // Also where it is unknown, on the shard that would have it: a stripe that is out of use may.
                if stat.is_none() && self.hub.placement().home(&digest) != self.shard {
                    return;
                }
                if stat.as_ref().is_some_and(|stat| stat.hosted) {
                    tracing::warn!(%digest, "it was pushed here, and is not purged: delete it");
                    return;
                }
                self.cache.forget(&digest);
                self.metrics.purged.inc_by(u64::from(stat.is_some()));
                // What other shards keep of it is not answered any more either.
                self.hub.next_epoch();
            }
        }
    }

    /// Demotes what was not used for too long, for as long as the shard lives.
    pub fn expire(self: &Rc<Self>) {
        let cache = self.cache.clone();
        task::spawn(async move {
            loop {
                time::sleep(EXPIRE_PAUSE).await;
                cache.expire(up_s());
            }
        });
    }

    /// Whether it can be said what the successor of a manifest shares with it. One that was pushed elsewhere is
    /// fetched from there.
    async fn knows_successor(&self, replaced: &Replaced) -> bool {
        let Some(now) = replaced.now else { return true };
        if let Ok(Some(_)) = self.at_hand(&now).await {
            return true;
        }
        let Ok(name) = replaced.repository.parse() else { return false };
        if !replaced.hosted {
            return false;
        }
        let reference = Reference::Digest(now);
        let headers = http::HeaderMap::new();
        let read = self.read_manifest(&name, None, &reference, Read::Get, &headers).await;
        drop(read);
        matches!(self.at_hand(&now).await, Ok(Some(_)))
    }

    /// Takes out what manifests refer to that a tag stands for and that are here.
    ///
    /// # Errors
    /// Of one of them it is not known: what is left in is perhaps not exclusive.
    async fn leave_known(
        &self,
        fleet: &Fleet,
        exclusive: &mut HashSet<Digest>,
    ) -> Result<(), ApiError> {
        let mut seen = HashSet::new();
        let mut last = None;
        while !exclusive.is_empty() {
            let (digests, next) = fleet.digests_after(last.as_ref(), TAGS_PAGE);
            for digest in digests {
                if seen.insert(digest) {
                    let mut known = HashSet::from([digest]);
                    self.contents_of(&digest, &mut known).await?;
                    for digest in &known {
                        exclusive.remove(digest);
                    }
                }
            }
            let Some(next) = next else { break };
            last = Some(next);
        }
        Ok(())
    }

    async fn demote_everywhere(&self, contents: HashSet<Digest>) {
        if contents.is_empty() {
            return;
        }
        let digests = Arc::new(contents);
        for shard in 0..self.hub.shards() {
            let digests = digests.clone();
            let told = self.surely_on(shard, move |gateway| async move {
                let demoted = digests.iter().filter(|digest| gateway.cache.demote(digest)).count();
                gateway.metrics.demoted.inc_by(demoted as u64);
            });
            if let Err(why) = told.await {
                tracing::debug!(shard, "its content is not demoted: {why}");
            }
        }
    }

    /// What a manifest that is here refers to, and what its parts do; whether it is here. A part that is not here says
    /// nothing.
    ///
    /// # Errors
    /// It is not known whether it is here: its shard or its disk is busy.
    async fn contents_of(
        &self,
        digest: &Digest,
        found: &mut HashSet<Digest>,
    ) -> Result<bool, ApiError> {
        let mut next = vec![(*digest, 0)];
        let mut here = false;
        while let Some((digest, depth)) = next.pop() {
            let Some(stored) = self.at_hand(&digest).await? else { continue };
            let media_type = &*stored.stat.media_type;
            let Ok(manifest) = Manifest::parse(&stored.bytes, Some(media_type)) else { continue };
            here = true;
            found.insert(digest);
            for descriptor in manifest.required() {
                let is_manifest = descriptor.kind == DescriptorKind::Manifest;
                if found.insert(descriptor.digest) && is_manifest && depth < INDEX_DEPTH_MAX {
                    next.push((descriptor.digest, depth + 1));
                }
            }
            task::yield_if_needed().await;
        }
        Ok(here)
    }
}

/// Has what is only in manifests that no tag stands for any more demoted everywhere. One pass over the tags for all that
/// were replaced until then; only manifests that are here are looked at.
async fn compare<N: Names>(gateway: Rc<Gateway<N>>, fleet: Arc<Fleet>, waiting: Rc<Waiting>) {
    loop {
        let some = std::mem::take(&mut *waiting.replaced.borrow_mut());
        if some.is_empty() {
            waiting.running.set(false);
            return;
        }
        let mut exclusive = HashSet::new();
        for one in some {
            let mut before = HashSet::new();
            match gateway.contents_of(&one.before, &mut before).await {
                Ok(false) => {}
                Ok(true) if gateway.knows_successor(&one).await => exclusive.extend(before),
                Ok(true) | Err(_) => drop(gateway.metrics.replaced_left.inc()),
            }
        }
        let replaced = exclusive.len();
        match gateway.leave_known(&fleet, &mut exclusive).await {
            Ok(()) => gateway.demote_everywhere(exclusive).await,
            Err(error) => {
                gateway.metrics.replaced_left.inc();
                tracing::debug!(replaced, ?error, "what was replaced stays");
            }
        }
        // More that is replaced meanwhile is looked at in one pass.
        time::sleep(COMPARE_PAUSE).await;
    }
}
