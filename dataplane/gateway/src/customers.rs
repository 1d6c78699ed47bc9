//! Customers, as one shard knows them: what the control plane says of each, and on whose behalf is done what is done
//! just now. Without a control plane there are none, and everybody is in the class of all.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use outrider_cache::{Cache, Class, Customer, Share, Terms};

use crate::names::{Account, Room};
use crate::uploads::ANONYMOUS;

/// Requests that a customer may make at once after a pause: what it may make in this time.
const BURST: Duration = Duration::from_secs(1);

/// What a customer is to an edge.
#[derive(Clone, Debug)]
pub struct Standing {
    /// The weight of its class; 1 is neutral.
    pub class: f64,
    /// Bytes of the edge's cache that are guaranteed to it; 0 for none.
    pub guaranteed_bytes: u64,
    /// How long content that is charged to it stays without being used, where that has an end.
    pub content_ttl: Option<Duration>,
    /// How fast it may ask, at all shards together.
    pub rate: Option<Arc<Rate>>,
    /// What it has stored, where that has a limit.
    pub stored: Option<Arc<Account>>,
}

/// How fast a customer may ask: a virtual clock (GCRA, ITU-T I.371) that each request moves on by its period. One for
/// all shards; a request costs one atomic change.
#[derive(Debug)]
pub struct Rate {
    started: Instant,
    period_ns: u64,
    /// When the next request is due, in nanoseconds since the start.
    due_ns: AtomicU64,
}

impl PartialEq for Rate {
    fn eq(&self, other: &Self) -> bool {
        self.period_ns == other.period_ns
    }
}

impl Rate {
    /// So many requests a second; `None` for 0, which has no bound.
    pub fn new(requests_per_second: u32) -> Option<Self> {
        let period_ns = 1_000_000_000_u64.checked_div(u64::from(requests_per_second))?;
        Some(Self { started: Instant::now(), period_ns, due_ns: AtomicU64::new(0) })
    }

    /// Takes one request in.
    ///
    /// # Errors
    /// How long to wait, when it is too early.
    fn take(&self, now: Instant) -> Result<(), Duration> {
        let now = now.saturating_duration_since(self.started).as_nanos() as u64;
        let burst = BURST.as_nanos() as u64;
        self.due_ns
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |due| {
                (due <= now + burst).then_some(due.max(now) + self.period_ns)
            })
            .map(drop)
            .map_err(|due| Duration::from_nanos(due.saturating_sub(now + burst)))
    }
}

#[derive(Clone)]
struct Known {
    customer: Customer,
    rate: Option<Arc<Rate>>,
    stored: Option<Arc<Account>>,
}

/// The customers of one shard.
pub(crate) struct Customers {
    known: RefCell<HashMap<Box<str>, Known>>,
    /// Who everybody without a name is.
    anonymous: RefCell<Known>,
    /// How many of them have a rate.
    limited: Cell<usize>,
    behalf: Rc<Cell<Customer>>,
}

impl Default for Customers {
    fn default() -> Self {
        Self {
            known: RefCell::default(),
            anonymous: RefCell::new(unknown(ANONYMOUS)),
            limited: Cell::new(0),
            behalf: Rc::new(Cell::new(Customer::NOBODY)),
        }
    }
}

fn unknown(name: &str) -> Known {
    Known { customer: Customer::new(name, Class::NEUTRAL), rate: None, stored: None }
}

impl Customers {
    /// Who somebody is to the cache. O(1), no allocation.
    pub(crate) fn of(&self, name: &str) -> Customer {
        if name == ANONYMOUS {
            return self.anonymous.borrow().customer;
        }
        let known = self.known.borrow();
        known.get(name).map_or_else(|| unknown(name).customer, |known| known.customer)
    }

    /// Whether somebody may ask now.
    ///
    /// # Errors
    /// How long to wait.
    pub(crate) fn admit(&self, name: &str) -> Result<(), Duration> {
        if self.limited.get() == 0 {
            return Ok(());
        }
        let rate = if name == ANONYMOUS {
            self.anonymous.borrow().rate.clone()
        } else {
            self.known.borrow().get(name).and_then(|known| known.rate.clone())
        };
        rate.map_or(Ok(()), |rate| rate.take(Instant::now()))
    }

    /// Room for one content that somebody pushes, empty at first.
    pub(crate) fn room(&self, name: &str) -> Room {
        if name == ANONYMOUS {
            return Room::of(self.anonymous.borrow().stored.clone());
        }
        Room::of(self.known.borrow().get(name).and_then(|known| known.stored.clone()))
    }

    /// Sets what a customer is, or that it is nothing any more. `shards`: how many share what is guaranteed.
    pub(crate) fn set(&self, cache: &Cache, shards: u16, name: &str, standing: Option<&Standing>) {
        let class = standing.map_or(Class::NEUTRAL, |standing| Class::of_weight(standing.class));
        let customer = Customer::new(name, class);
        let terms = standing.map_or_else(Terms::default, |standing| Terms {
            guaranteed_bytes: standing.guaranteed_bytes / u64::from(shards.max(1)),
            ttl_minutes: standing.content_ttl.map(minutes),
        });
        if !cache.set_terms(customer, terms) {
            tracing::warn!(
                customer = name,
                "it has no guarantee and no time to live here: too many customers have one"
            );
        }
        let now = standing.map(|standing| Known {
            customer,
            rate: standing.rate.clone(),
            stored: standing.stored.clone(),
        });
        if name == ANONYMOUS {
            *self.anonymous.borrow_mut() = now.clone().unwrap_or_else(|| unknown(name));
        }
        let is_limited = |known: &Option<Known>| {
            usize::from(known.as_ref().is_some_and(|known| known.rate.is_some()))
        };
        let after = is_limited(&now);
        let mut known = self.known.borrow_mut();
        let before = match now {
            Some(now) => known.insert(name.into(), now),
            None => known.remove(name),
        };
        self.limited.set(self.limited.get() + after - is_limited(&before));
    }

    /// All names that are known.
    pub(crate) fn names(&self) -> Vec<Box<str>> {
        self.known.borrow().keys().cloned().collect()
    }

    /// How those with a guarantee stand, by their names.
    pub(crate) fn shares(&self, cache: &Cache) -> Vec<(Box<str>, Share)> {
        let shares: HashMap<u64, Share> =
            cache.shares().into_iter().map(|share| (share.key, share)).collect();
        let known = self.known.borrow();
        let named = known
            .iter()
            .filter_map(|(name, known)| Some((name.clone(), *shares.get(&known.customer.key())?)));
        named.collect()
    }

    /// On whose behalf is done what is done just now.
    pub(crate) fn behalf(&self) -> Customer {
        self.behalf.get()
    }

    /// The same, for whoever cannot see the gateway.
    pub(crate) fn behalf_cell(&self) -> Rc<Cell<Customer>> {
        self.behalf.clone()
    }

    /// Does something on somebody's behalf: one poll of what answers a request.
    pub(crate) fn during<R>(&self, customer: Customer, act: impl FnOnce() -> R) -> R {
        let before = self.behalf.replace(customer);
        let result = act();
        self.behalf.set(before);
        result
    }
}

/// Whole minutes, at least one and at most thirty days.
pub(crate) fn minutes(ttl: Duration) -> u16 {
    const MINUTES_MAX: u64 = 30 * 24 * 60;
    (ttl.as_secs().div_ceil(60)).clamp(1, MINUTES_MAX) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_lets_a_burst_through_and_then_as_many_as_it_says() {
        let rate = Rate::new(10).unwrap();
        let at = |ms: u64| rate.started + Duration::from_millis(ms);
        let passed = (0..100).filter(|_| rate.take(at(0)).is_ok()).count();
        assert_eq!(passed, 11);
        let wait = rate.take(at(0)).unwrap_err();
        assert!(wait > Duration::ZERO && wait <= Duration::from_millis(100), "{wait:?}");
        let passed = (0..1000_u64).filter(|n| rate.take(at(n * 10)).is_ok()).count();
        assert!((99..=101).contains(&passed), "{passed}");
        assert!(Rate::new(0).is_none());
    }

    #[test]
    fn times_to_live_are_whole_minutes_within_bounds() {
        assert_eq!(minutes(Duration::ZERO), 1);
        assert_eq!(minutes(Duration::from_secs(61)), 2);
        assert_eq!(minutes(Duration::from_secs(u64::MAX)), 43_200);
    }
}
