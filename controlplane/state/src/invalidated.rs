//! The digests that were invalidated last, for edges that were away: what they missed is told to them with a snapshot.

use std::collections::BTreeMap;

use outrider_artifact::Digest;

/// The most digests that are kept. Beyond it the one that was invalidated first goes.
pub const INVALIDATED_MAX: usize = 100_000;

/// Digests by the version that invalidated them last.
#[derive(Clone, Debug)]
pub struct Invalidated {
    by_version: BTreeMap<u64, Digest>,
    versions: BTreeMap<Digest, u64>,
    /// The version of the newest that was forgotten; 0 for none.
    forgotten: u64,
    max: usize,
}

impl Default for Invalidated {
    fn default() -> Self {
        let (by_version, versions) = Default::default();
        Self { by_version, versions, forgotten: 0, max: INVALIDATED_MAX }
    }
}

impl Invalidated {
    /// Digests that are kept.
    pub fn len(&self) -> usize {
        self.by_version.len()
    }

    /// Whether none is kept.
    pub fn is_empty(&self) -> bool {
        self.by_version.is_empty()
    }

    /// Who has applied everything up to this version has missed none that is forgotten.
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// Those that were invalidated above this version, in order, each with the version that did so last.
    pub fn since(&self, version: u64) -> impl Iterator<Item = (u64, &Digest)> {
        let above = self.by_version.range(version.saturating_add(1)..);
        above.map(|(version, digest)| (*version, digest))
    }

    /// A digest is invalidated. O(log n).
    pub(crate) fn note(&mut self, version: u64, digest: Digest) {
        if let Some(before) = self.versions.insert(digest, version) {
            self.by_version.remove(&before);
        }
        self.by_version.insert(version, digest);
        while self.by_version.len() > self.max
            && let Some((version, digest)) = self.by_version.pop_first()
        {
            self.versions.remove(&digest);
            self.forgotten = version;
        }
    }

    pub(crate) fn set_max(&mut self, max: usize) {
        self.max = max;
    }

    pub(crate) fn restore(
        forgotten: u64,
        kept: impl IntoIterator<Item = (u64, Digest)>,
    ) -> Option<Self> {
        let mut all = Self { forgotten, ..Self::default() };
        for (version, digest) in kept {
            let last = all.by_version.last_key_value().map_or(forgotten, |(last, _)| *last);
            if version <= last || all.versions.insert(digest, version).is_some() {
                return None;
            }
            all.by_version.insert(version, digest);
        }
        (all.len() <= INVALIDATED_MAX).then_some(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_are_kept_each_once_and_it_is_known_what_is_forgotten() {
        let digest = |n: u8| Digest::sha256(&[n]);
        let mut all = Invalidated { max: 3, ..Invalidated::default() };
        for (version, n) in [(2, 1), (3, 2), (5, 1), (6, 3)] {
            all.note(version, digest(n));
        }
        let since = |all: &Invalidated, version| {
            all.since(version).map(|(version, digest)| (version, *digest)).collect::<Vec<_>>()
        };
        // One that came again has its new version, and nothing is forgotten by that.
        assert_eq!(since(&all, 0), [(3, digest(2)), (5, digest(1)), (6, digest(3))]);
        assert_eq!((since(&all, 5), all.forgotten()), (vec![(6, digest(3))], 0));
        all.note(7, digest(4));
        assert_eq!((since(&all, 0).len(), all.forgotten()), (3, 3));
        all.note(8, digest(2));
        assert_eq!(since(&all, 6), [(7, digest(4)), (8, digest(2))]);
        assert_eq!(all.forgotten(), 5);
        let kept = since(&all, 0);
        let again = Invalidated::restore(5, kept.clone()).unwrap();
        assert_eq!((since(&again, 0), again.forgotten()), (kept, 5));
        assert!(Invalidated::restore(6, [(6, digest(1))]).is_none());
        assert!(Invalidated::restore(0, [(6, digest(1)), (7, digest(1))]).is_none());
        assert!(Invalidated::restore(0, [(6, digest(1)), (6, digest(2))]).is_none());
    }
}
