//! What an access, a measured cost or the control plane does to an object's score.

use outrider_artifact::Digest;

use super::Engine;
use crate::cache::{Access, Depth};
use crate::config::ImportanceWeights;
use crate::index::{ObjectId, flag};
use crate::policy::Policy;

/// Chunks that one access may send to SSD, when it is the second one of its object.
const PROMOTIONS_PER_TOUCH_MAX: u32 = 64;

impl Engine {
    pub(crate) fn rescore(&mut self, object: ObjectId) {
        let worth = self.policy.worth(&self.index.inputs(object));
        self.index.get_mut(object).score = self.ram.clock + worth;
    }

    /// Gives an object another worth without counting that as a use: it keeps its age.
    fn reweigh(&mut self, object: ObjectId, change: impl FnOnce(&mut Self)) {
        let before = self.policy.worth(&self.index.inputs(object));
        change(self);
        let now = self.policy.worth(&self.index.inputs(object));
        let known = self.index.get_mut(object);
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
        let rose = self.index.touch(object, access.customer_hash, access.unix_s);
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
        self.reweigh(object, |engine| engine.index.set_depth(object, depth));
        true
    }

    pub(crate) fn set_weights(&mut self, weights: ImportanceWeights) {
        self.policy.weights = weights;
    }
}
