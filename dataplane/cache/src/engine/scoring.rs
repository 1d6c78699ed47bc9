//! What an access, a measured cost or the control plane does to an object's score.

use outrider_artifact::Digest;

use super::Engine;
use crate::arena::record_bytes;
use crate::cache::{Access, Depth};
use crate::config::ImportanceWeights;
use crate::customers::{AccountId, Charged, Customer, NOBODY, Terms};
use crate::index::{ObjectId, flag};
use crate::policy::{ImportancePolicy, Policy};

/// Chunks that one access may send to SSD, when it is the second one of its object.
const PROMOTIONS_PER_TOUCH_MAX: u32 = 64;
/// Objects that one turn of a walk looks at.
const WALK_OBJECTS_PER_TURN: u32 = 512;

/// A walk over the index.
#[derive(Clone, Copy)]
pub(super) struct Walk {
    next: ObjectId,
    kind: WalkKind,
}

#[derive(Clone, Copy)]
enum WalkKind {
    /// Scores that were made by other weights.
    Weigh { before: ImportanceWeights },
    /// What was not used for too long.
    Expire { time_s: u64 },
}

impl Engine {
    pub(crate) fn rescore(&mut self, object: ObjectId) {
        let worth = self.policy.worth(&self.index.inputs(object));
        self.index.get_mut(object).score = self.ram.clock + worth;
        self.index.set(object, flag::WEIGHED, self.weighed);
    }

    /// Charges what nobody is charged for to a customer that has an account. O(1); O(chunks) when it does.
    pub(super) fn charge(&mut self, object: ObjectId, customer: Customer) {
        if !self.index.accounts.is_vacant(self.index.account(object)) {
            return;
        }
        match self.index.accounts.find(customer.key) {
            NOBODY => {}
            account => self.recharge(object, account),
        }
    }

    /// Charges an object to somebody else, or to nobody.
    fn recharge(&mut self, object: ObjectId, account: AccountId) {
        let before = self.index.account(object);
        let ram = self.ram.bytes_of(object, &self.index);
        let ssd = if self.upload_ids.contains_key(&object) { 0 } else { self.ssd_bytes(object) };
        for (tier, bytes) in [(Charged::Ram, ram), (Charged::Ssd, ssd)] {
            self.index.accounts.credit(before, tier, bytes);
            self.index.accounts.charge(account, tier, bytes);
        }
        self.index.set_account(object, account);
        self.sink(object);
    }

    /// Bytes of records on the stripes that an object has. O(chunks).
    pub(crate) fn ssd_bytes(&self, object: ObjectId) -> usize {
        let on_disk = |chunk: &u32| self.index.entry(object, *chunk).location().is_some();
        let chunks = (0..self.index.chunks(object)).filter(on_disk);
        chunks.map(|chunk| record_bytes(self.index.chunk_len(object, chunk))).sum()
    }

    /// Makes an object one of the first victims: it is worth nothing, and in nobody's guarantee, until it is
    /// used again.
    pub(crate) fn demote(&mut self, digest: &Digest) -> bool {
        let Some(object) = self.index.find(digest) else { return false };
        self.demote_object(object);
        true
    }

    fn demote_object(&mut self, object: ObjectId) {
        let score = std::mem::replace(&mut self.index.get_mut(object).score, 0.0);
        if let Some(store) = &mut self.store {
            for chunk in 0..self.index.chunks(object) {
                if let Some(location) = self.index.entry(object, chunk).location() {
                    let segment = store.segment_mut(location);
                    segment.score = (segment.score - score).max(0.0);
                }
            }
        }
        if self.index.account(object) == NOBODY {
            self.sink(object);
        } else {
            self.recharge(object, NOBODY);
        }
    }

    /// Sets what is kept for a customer; `false` when there are too many of them.
    pub(crate) fn set_terms(&mut self, customer: Customer, terms: Terms) -> bool {
        self.set_capacities();
        let before = self.index.accounts.terms(self.index.accounts.find(customer.key));
        if before == terms {
            return true;
        }
        let Some(account) = self.index.accounts.set_terms(customer.key, terms) else {
            return false;
        };
        if terms.guaranteed_bytes == 0 {
            self.ram.unguard(account);
        }
        if before.guaranteed_bytes != terms.guaranteed_bytes {
            self.want_sweep();
        }
        true
    }

    /// Looks through the index for what was not used for longer than its time to live, a slice in each turn.
    pub(crate) fn expire(&mut self, time_s: u64) {
        if self.walk.is_none() && (self.index.accounts.any_ttl() || self.index.any_ttl()) {
            self.walk = Some(Walk { next: 0, kind: WalkKind::Expire { time_s } });
        }
    }

    /// One slice of a walk over the index.
    pub(super) fn walk(&mut self) -> bool {
        let Some(Walk { next, kind }) = self.walk else {
            return match self.weights_next.take() {
                None => false,
                Some(weights) => {
                    self.begin_weights(weights);
                    true
                }
            };
        };
        let end = (next + WALK_OBJECTS_PER_TURN).min(self.index.slots());
        for object in next..end {
            if self.index.is_free(object) {
                continue;
            }
            match kind {
                WalkKind::Weigh { before } => self.weigh_anew(object, before),
                WalkKind::Expire { time_s } => self.expire_object(object, time_s),
            }
        }
        let done = end == self.index.slots();
        self.walk = (!done).then_some(Walk { next: end, kind });
        true
    }

    fn weigh_anew(&mut self, object: ObjectId, before: ImportanceWeights) {
        if self.index.has(object, flag::WEIGHED) == self.weighed {
            return;
        }
        self.index.set(object, flag::WEIGHED, self.weighed);
        let inputs = self.index.inputs(object);
        let known = self.index.get_mut(object);
        // What was demoted stays so.
        if known.score == 0.0 {
            return;
        }
        let age = (known.score - ImportancePolicy { weights: before }.worth(&inputs)).max(0.0);
        let score = age + self.policy.worth(&inputs);
        let fell = score < known.score;
        known.score = score;
        if fell {
            self.sink(object);
        }
    }

    fn expire_object(&mut self, object: ObjectId, time_s: u64) {
        if self.index.has(object, flag::HOSTED | flag::UPLOAD)
            || self.index.get(object).score == 0.0
        {
            return;
        }
        let account = self.index.account(object);
        let of_customer = self.index.accounts.ttl_minutes(account);
        let Some(ttl) = of_customer.or_else(|| self.index.ttl_minutes(object)) else { return };
        if self.index.idle_minutes(object, time_s) >= ttl {
            self.metrics.expired.inc();
            self.demote_object(object);
        }
    }

    /// Gives an object another worth without counting that as a use: it keeps its age.
    fn reweigh(&mut self, object: ObjectId, change: impl FnOnce(&mut Self)) {
        let before = self.policy.worth(&self.index.inputs(object));
        change(self);
        let now = self.policy.worth(&self.index.inputs(object));
        let known = self.index.get_mut(object);
        // What was demoted stays so.
        if known.score == 0.0 {
            return;
        }
        known.score = (known.score - before).max(0.0) + now;
        if now < before {
            self.sink(object);
        }
    }

    /// Has the RAM tier see that a score has fallen: its heaps expect that they only rise. O(chunks).
    fn sink(&mut self, object: ObjectId) {
        for chunk in 0..self.index.chunks(object) {
            self.ram.sink(object, chunk, &self.index);
        }
    }

    pub(crate) fn touch(&mut self, digest: &Digest, access: Access) {
        let Some(object) = self.index.find(digest) else { return };
        let rose = self.index.touch(object, access.customer, access.time_s);
        self.charge(object, access.customer);
        self.rescore(object);
        if rose && self.index.get(object).frequency == 2 && !self.index.has(object, flag::HOSTED) {
            self.promote(object, digest);
        }
    }

    /// Sends the chunks that are only in RAM to SSD, since the object is asked for again.
    pub(super) fn promote(&mut self, object: ObjectId, digest: &Digest) {
        let mut promoted = 0;
        for chunk in 0..self.index.chunks(object) {
            if promoted >= PROMOTIONS_PER_TOUCH_MAX {
                break;
            }
            let entry = self.index.entry(object, chunk);
            if entry.location().is_none()
                && self.ram.clean(object, chunk, &self.index)
                && self.enqueue_chunk(object, digest, chunk)
            {
                promoted += 1;
            }
        }
    }

    pub(crate) fn set_costs(&mut self, digest: &Digest, fetch_ms: u32, execute_ms: u32) {
        if let Some(object) = self.index.find(digest) {
            self.index.set_costs(object, fetch_ms, execute_ms);
            self.rescore(object);
        }
    }

    pub(crate) fn set_depth(&mut self, digest: &Digest, depth: Depth) -> bool {
        let Some(object) = self.index.find(digest) else { return false };
        if let Some(Walk { kind: WalkKind::Weigh { before }, .. }) = self.walk {
            // The walk has not come to it yet: its score is by the weights of before.
            self.weigh_anew(object, before);
        }
        self.reweigh(object, |engine| engine.index.set_depth(object, depth));
        true
    }

    pub(crate) fn set_weights(&mut self, weights: ImportanceWeights) {
        if self.walk.is_some() {
            self.weights_next = Some(weights);
        } else {
            self.begin_weights(weights);
        }
    }

    fn begin_weights(&mut self, weights: ImportanceWeights) {
        let before = std::mem::replace(&mut self.policy.weights, weights);
        if before != weights {
            self.weighed = !self.weighed;
            self.walk = Some(Walk { next: 0, kind: WalkKind::Weigh { before } });
        }
    }
}
