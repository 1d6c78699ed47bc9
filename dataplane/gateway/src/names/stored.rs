//! How many bytes of what was pushed to this edge each customer has stored, and how many it may have.
//!
//! A content is charged once: to the customer whose push brought it here first, with its length, until no repository
//! holds it any more. The thread of the names counts it within the transaction that names it, so that what is stored
//! is never more than the limit. Before that, what comes in is reserved, on whatever shard, so that a body is
//! refused before it is read to its end. Copies from other edges come with no customer, and are nobody's.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A push beyond what a customer may have stored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{customer} may have {limit_bytes} bytes stored here, and has {used_bytes}: {wanted_bytes} more do not fit; \
     nothing of it was stored"
)]
pub struct OverLimit {
    /// Who.
    pub customer: Box<str>,
    /// What it may have.
    pub limit_bytes: u64,
    /// What it has, with what is coming in.
    pub used_bytes: u64,
    /// What would be added.
    pub wanted_bytes: u64,
}

/// One customer's, of all shards.
#[derive(Debug)]
pub struct Account {
    customer: Box<str>,
    /// 0: no limit.
    limit: AtomicU64,
    /// As of the last commit. Only the thread of the names writes it.
    stored: AtomicU64,
    /// Reserved for what is coming in.
    incoming: AtomicU64,
}

impl Account {
    /// What is stored, in bytes.
    pub fn stored(&self) -> u64 {
        self.stored.load(Ordering::Acquire)
    }

    fn over(&self, used_bytes: u64, wanted_bytes: u64, limit_bytes: u64) -> OverLimit {
        OverLimit { customer: self.customer.clone(), limit_bytes, used_bytes, wanted_bytes }
    }

    /// Whether so much more may be named, when `stored` is what the transaction has so far.
    fn may_store(&self, stored: u64, more: u64) -> Result<(), OverLimit> {
        let limit = self.limit.load(Ordering::Acquire);
        if limit > 0 && more > 0 && stored.saturating_add(more) > limit {
            return Err(self.over(stored, more, limit));
        }
        Ok(())
    }

    fn reserve(&self, more: u64) -> Result<(), OverLimit> {
        let reserved =
            self.incoming.fetch_update(Ordering::AcqRel, Ordering::Acquire, |incoming| {
                let limit = self.limit.load(Ordering::Acquire);
                let after = self.stored().saturating_add(incoming).saturating_add(more);
                (limit == 0 || after <= limit).then_some(incoming.saturating_add(more))
            });
        reserved.map(drop).map_err(|incoming| {
            let limit = self.limit.load(Ordering::Acquire);
            self.over(self.stored().saturating_add(incoming), more, limit)
        })
    }
}

/// Room for one content that comes in, given back when it is dropped. Costs nothing for who has no limit.
#[derive(Debug, Default)]
pub struct Room {
    account: Option<Arc<Account>>,
    bytes: u64,
}

impl Room {
    /// In this account, empty at first.
    pub fn of(account: Option<Arc<Account>>) -> Self {
        Self { account, bytes: 0 }
    }

    /// Makes it at least so large.
    ///
    /// # Errors
    /// [`OverLimit`]; it stays as it was.
    pub fn grow_to(&mut self, bytes: u64) -> Result<(), OverLimit> {
        let Some(account) = &self.account else { return Ok(()) };
        let Some(more) = bytes.checked_sub(self.bytes).filter(|more| *more > 0) else {
            return Ok(());
        };
        account.reserve(more)?;
        self.bytes = bytes;
        Ok(())
    }

    /// Makes it at most so large.
    pub fn shrink_to(&mut self, bytes: u64) {
        let Some(account) = &self.account else { return };
        if let Some(less) = self.bytes.checked_sub(bytes) {
            account.incoming.fetch_sub(less, Ordering::AcqRel);
            self.bytes = bytes;
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

/// How one customer stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredShare {
    /// Who.
    pub customer: Box<str>,
    /// What it has stored, in bytes.
    pub used_bytes: u64,
    /// What it may have; 0 for no limit.
    pub limit_bytes: u64,
}

/// All accounts of an edge. There is one for who has something stored, or a limit.
#[derive(Default)]
pub struct StoredBytes(Mutex<HashMap<Box<str>, Arc<Account>>>);

impl fmt::Debug for StoredBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredBytes").field("accounts", &self.lock().len()).finish()
    }
}

impl StoredBytes {
    fn lock(&self) -> MutexGuard<'_, HashMap<Box<str>, Arc<Account>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn account(&self, customer: &str) -> Arc<Account> {
        let mut accounts = self.lock();
        if let Some(account) = accounts.get(customer) {
            return Arc::clone(account);
        }
        let account = Arc::new(Account {
            customer: customer.into(),
            limit: AtomicU64::new(0),
            stored: AtomicU64::new(0),
            incoming: AtomicU64::new(0),
        });
        accounts.insert(customer.into(), Arc::clone(&account));
        account
    }

    /// Sets what a customer may have; 0 takes the limit away. What it has beyond it stays. The account, where
    /// there is a limit.
    pub fn limit(&self, customer: &str, limit_bytes: u64) -> Option<Arc<Account>> {
        if limit_bytes == 0 && !self.lock().contains_key(customer) {
            return None;
        }
        let account = self.account(customer);
        account.limit.store(limit_bytes, Ordering::Release);
        (limit_bytes > 0).then_some(account)
    }

    /// Only these have limits.
    pub fn keep_limits(&self, has_limit: impl Fn(&str) -> bool) {
        for (customer, account) in &*self.lock() {
            if !has_limit(customer) {
                account.limit.store(0, Ordering::Release);
            }
        }
    }

    /// How those with a limit stand, by their names, the first so many.
    pub fn limited(&self, customers_max: usize) -> Vec<StoredShare> {
        let share = |account: &Arc<Account>| StoredShare {
            customer: account.customer.clone(),
            used_bytes: account.stored(),
            limit_bytes: account.limit.load(Ordering::Acquire),
        };
        let mut shares: Vec<_> = self.lock().values().map(share).collect();
        shares.retain(|share| share.limit_bytes > 0);
        shares.sort_unstable_by(|one, two| one.customer.cmp(&two.customer));
        shares.truncate(customers_max);
        shares
    }

    /// What a customer has stored, as of the last commit.
    pub fn used(&self, customer: &str) -> u64 {
        self.lock().get(customer).map_or(0, |account| account.stored())
    }

    /// All that is stored, and nothing else: at the start, and when it is not known how a commit ended.
    pub(super) fn load(&self, totals: &HashMap<Box<str>, u64>) {
        for (customer, account) in &*self.lock() {
            account.stored.store(totals.get(customer).copied().unwrap_or(0), Ordering::Release);
        }
        for (customer, total) in totals {
            self.account(customer).stored.store(*total, Ordering::Release);
        }
    }
}

/// What a transaction changes of it.
#[derive(Debug, Default)]
pub(super) struct StoredChanges(HashMap<Box<str>, i128>);

impl StoredChanges {
    /// Charges a content to somebody.
    ///
    /// # Errors
    /// [`OverLimit`]; nothing is changed.
    pub(super) fn charge(
        &mut self,
        all: &StoredBytes,
        customer: &str,
        bytes: u64,
    ) -> Result<(), OverLimit> {
        let account = all.account(customer);
        let before = self.0.get(customer).copied().unwrap_or(0);
        let stored = (i128::from(account.stored()) + before).max(0);
        account.may_store(u64::try_from(stored).unwrap_or(u64::MAX), bytes)?;
        *self.0.entry(customer.into()).or_default() += i128::from(bytes);
        Ok(())
    }

    pub(super) fn give_back(&mut self, customer: &str, bytes: u64) {
        *self.0.entry(customer.into()).or_default() -= i128::from(bytes);
    }

    /// It is on the disk.
    pub(super) fn publish(self, all: &StoredBytes) {
        for (customer, change) in self.0 {
            let account = all.account(&customer);
            let stored = (i128::from(account.stored()) + change).max(0);
            account.stored.store(u64::try_from(stored).unwrap_or(u64::MAX), Ordering::Release);
            let is_empty = |account: &Account| {
                account.stored() == 0 && account.limit.load(Ordering::Acquire) == 0
            };
            // So that there are not more of them than of what is stored and limited.
            let mut accounts = all.lock();
            drop(account);
            if accounts
                .get(&customer)
                .is_some_and(|one| Arc::strong_count(one) == 1 && is_empty(one))
            {
                accounts.remove(&customer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_within_the_limit_and_given_back() {
        let all = StoredBytes::default();
        assert!(all.limit("acme", 0).is_none());
        let account = all.limit("acme", 10).unwrap();
        let (mut one, mut two) = (Room::of(Some(account.clone())), Room::of(Some(account)));
        one.grow_to(6).unwrap();
        one.grow_to(2).unwrap();
        let over = two.grow_to(5).unwrap_err();
        assert_eq!((over.used_bytes, over.wanted_bytes, over.limit_bytes), (6, 5, 10));
        two.grow_to(4).unwrap();
        one.shrink_to(5);
        two.grow_to(5).unwrap();
        drop(one);
        two.grow_to(10).unwrap();
        // What is there counts too, and a limit that is taken away does no longer.
        all.load(&HashMap::from([("acme".into(), 3)]));
        two.grow_to(11).unwrap_err();
        two.shrink_to(7);
        two.grow_to(8).unwrap_err();
        all.keep_limits(|_| false);
        two.grow_to(1000).unwrap();
        Room::of(None).grow_to(u64::MAX).unwrap();
    }

    #[test]
    fn room_of_many_threads_is_never_more_than_the_limit() {
        let all = StoredBytes::default();
        let account = all.limit("acme", 1000).unwrap();
        let take = || {
            let mut rooms = Vec::new();
            for number in 0..1000_u64 {
                let mut room = Room::of(Some(account.clone()));
                if room.grow_to(number % 7 + 1).is_ok() {
                    rooms.push(room);
                }
                assert!(account.incoming.load(Ordering::Acquire) <= 1000);
                if number % 3 == 0 {
                    rooms.pop();
                }
            }
        };
        std::thread::scope(|scope| {
            (0..4).for_each(|_| {
                scope.spawn(take);
            })
        });
        assert_eq!(account.incoming.load(Ordering::Acquire), 0);
    }

    #[test]
    fn accounts_without_anything_are_forgotten() {
        let all = StoredBytes::default();
        for number in 0..100 {
            let name = format!("customer-{number}");
            let mut changes = StoredChanges::default();
            changes.charge(&all, &name, 5).unwrap();
            changes.publish(&all);
            assert_eq!(all.used(&name), 5);
            let mut changes = StoredChanges::default();
            changes.give_back(&name, 5);
            changes.publish(&all);
        }
        assert!(all.lock().is_empty());
    }
}
