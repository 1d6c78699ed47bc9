//! What a repository has: to know a digest is no right to read it. A content is read in a repository that was given it,
//! or whose upstream, or another edge that holds it, says that it is there.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use hashbrown::HashSet;
use outrider_artifact::{Digest, Reference, RepositoryName};
use outrider_cache::Origin;
use outrider_uplink::{FetchError, Target};

use crate::blobs::Whence;
use crate::faults;
use crate::gateway::Gateway;
use crate::names::{Link, Names};
use crate::protocol::{ApiError, Code, Manifest};
use crate::upstreams::Place;

/// Links that a shard remembers of others' saying so, twice; 16 bytes each.
const LINKS_MAX: usize = 65_536;

/// For how long at least, and at most twice as long.
const LINKS_TIME: Duration = Duration::from_secs(30 * 60);

/// Manifests of a repository that are looked through while its upstream is down.
const MANIFESTS_MAX: usize = 128;

/// What others said to be in their repositories. When the young half is full or old, the old half is forgotten.
pub(crate) struct Links {
    hashers: [RandomState; 2],
    young: HashSet<[u64; 2]>,
    old: HashSet<[u64; 2]>,
    since: Instant,
}

impl Default for Links {
    fn default() -> Self {
        Self {
            hashers: [RandomState::new(), RandomState::new()],
            young: HashSet::default(),
            old: HashSet::default(),
            since: Instant::now(),
        }
    }
}

impl Links {
    /// 128 bits that nobody can foresee stand for a repository and a digest.
    fn key(&self, repository: &str, digest: &Digest) -> [u64; 2] {
        [0, 1].map(|at| self.hashers[at].hash_one((repository, digest)))
    }

    pub(crate) fn has(&self, repository: &str, digest: &Digest, now: Instant) -> bool {
        if now.saturating_duration_since(self.since) > 2 * LINKS_TIME {
            return false;
        }
        let key = self.key(repository, digest);
        let is_fresh = now.saturating_duration_since(self.since) <= LINKS_TIME;
        self.young.contains(&key) || (is_fresh && self.old.contains(&key))
    }

    pub(crate) fn note(&mut self, repository: &str, digest: &Digest, now: Instant) {
        let age = now.saturating_duration_since(self.since);
        if age > LINKS_TIME || self.young.len() >= LINKS_MAX {
            self.old = std::mem::take(&mut self.young);
            if age > 2 * LINKS_TIME {
                self.old.clear();
            }
            self.since = now;
        }
        self.young.insert(self.key(repository, digest));
    }
}

impl<N: Names> Gateway<N> {
    /// Whether the repository has this content, for who is asked who they are. One look-up in the names for what is
    /// hosted, and in memory for what was said before; else somebody is asked, as far as `ask` says.
    ///
    /// # Errors
    /// What the names, or an upstream that cannot say it, answer.
    pub(crate) async fn has(
        &self,
        name: &RepositoryName,
        ns: Option<&str>,
        target: &Target,
        ask: Ask,
    ) -> Result<Has, ApiError> {
        let digest = match target {
            Target::Blob(digest) | Target::Manifest(Reference::Digest(digest)) => digest,
            Target::Manifest(Reference::Tag(_)) => return Ok(Has::Yes),
        };
        match self.whence(name, ns).await? {
            Whence::Nobody(_) => Ok(Has::No),
            Whence::Hosted(key) => {
                if self.names.link(&key, digest).await? != Link::default()
                    || self.said(&key, digest)
                {
                    return Ok(Has::Yes);
                }
                if ask == Ask::Nobody || self.held(&key, target).await?.is_none() {
                    return Ok(Has::No);
                }
                self.note_said(&key, digest);
                Ok(Has::Yes)
            }
            Whence::Mirrored(place) => self.mirror_has(&place, target, digest, ask).await,
        }
    }

    /// Whether somebody said so a while ago.
    pub(crate) fn said(&self, key: &str, digest: &Digest) -> bool {
        let gate = self.gate.as_ref();
        gate.is_some_and(|gate| gate.links.borrow().has(key, digest, Instant::now()))
    }

    fn note_said(&self, key: &str, digest: &Digest) {
        if let Some(gate) = &self.gate {
            gate.links.borrow_mut().note(key, digest, Instant::now());
        }
    }

    async fn mirror_has(
        &self,
        place: &Place,
        target: &Target,
        digest: &Digest,
        ask: Ask,
    ) -> Result<Has, ApiError> {
        if self.said(&place.key, digest) {
            return Ok(Has::Yes);
        }
        match self.fetched_from(digest).await? {
            Fetched::Never if ask == Ask::OfWhatIsHere => return Ok(Has::IfFetched),
            Fetched::From(origin) if origin == place.source.origin => {
                self.note_said(&place.key, digest);
                return Ok(Has::Yes);
            }
            _ if ask == Ask::Nobody => return Ok(Has::No),
            _ => {}
        }
        let has = match self.ask_whether(place, target).await {
            Ok(()) => true,
            Err(FetchError::NotFound) => false,
            Err(error) if error.is_upstream_down() => {
                self.is_named(&place.key, digest).await?
                    || return Err(faults::of_fetch(&error, Code::BlobUnknown))
            }
            Err(error) => return Err(faults::of_fetch(&error, Code::BlobUnknown)),
        };
        if has {
            self.note_said(&place.key, digest);
            return Ok(Has::Yes);
        }
        Ok(Has::No)
    }

    /// Where what is here of a digest came from.
    async fn fetched_from(&self, digest: &Digest) -> Result<Fetched, ApiError> {
        let owner = self.owner(digest);
        let wanted = *digest;
        let stat = match owner == self.shard {
            true => self.cache.stat(digest),
            false => self.on(owner, move |owner| async move { owner.cache.stat(&wanted) }).await?,
        };
        Ok(match stat {
            None => Fetched::Never,
            Some(stat) if stat.hosted => Fetched::Pushed,
            Some(stat) => stat.origin.map_or(Fetched::Pushed, Fetched::From),
        })
    }

    /// Whether a manifest names the content that a remembered tag of the mirrored repository points to: what is known
    /// while the upstream cannot be asked.
    async fn is_named(&self, key: &RepositoryName, digest: &Digest) -> Result<bool, ApiError> {
        let tags = self.names.tags(key, None, MANIFESTS_MAX).await?.tags;
        let mut manifests = Vec::new();
        for tag in tags {
            let Ok(tag) = tag.parse() else { continue };
            let Some(record) = self.names.tag(key, &tag).await? else { continue };
            if record.digest == *digest {
                return Ok(true);
            }
            manifests.push(record.digest);
        }
        let mut next = 0;
        while let Some(manifest) = manifests.get(next).copied() {
            next += 1;
            let Some(stored) = self.at_hand(&manifest).await? else { continue };
            let Ok(manifest) = Manifest::parse(&stored.bytes, None) else { continue };
            for descriptor in manifest.required() {
                if descriptor.digest == *digest {
                    return Ok(true);
                }
                let is_more = descriptor.kind
                    == crate::protocol::manifest::DescriptorKind::Manifest
                    && manifests.len() < MANIFESTS_MAX
                    && !manifests.contains(&descriptor.digest);
                if is_more {
                    manifests.push(descriptor.digest);
                }
            }
        }
        Ok(false)
    }
}

/// When an upstream, or another edge, is asked whether it has a content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    /// Never: only what is known counts.
    Nobody,
    /// When the content is here from elsewhere. What is not here shows where it comes from when it is fetched.
    OfWhatIsHere,
    /// Whether it is here or not.
    Always,
}

/// Whether a repository has a content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Has {
    Yes,
    No,
    /// It is not here, and is the repository's if it comes from the repository's own upstream.
    IfFetched,
}

/// Where something came from.
enum Fetched {
    Never,
    From(Origin),
    Pushed,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_holds_for_its_repository_and_for_a_while() {
        let mut links = Links::default();
        let start = links.since;
        let (one, two) = (Digest::sha256(b"1"), Digest::sha256(b"2"));
        links.note("a", &one, start);
        assert!(links.has("a", &one, start));
        assert!(!links.has("b", &one, start));
        assert!(!links.has("a", &two, start));
        let late = start + LINKS_TIME + Duration::from_secs(1);
        links.note("b", &two, late);
        assert!(links.has("a", &one, late), "it is in the old half");
        assert!(!links.has("a", &one, late + LINKS_TIME + Duration::from_secs(1)));
        assert!(!links.has("b", &two, late + 2 * LINKS_TIME + Duration::from_secs(1)));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut links = Links::default();
        let now = links.since;
        for number in 0..3 * LINKS_MAX {
            links.note("a", &Digest::sha256(&number.to_le_bytes()), now);
        }
        assert!(links.young.len() + links.old.len() <= 2 * LINKS_MAX);
        let last = Digest::sha256(&(3 * LINKS_MAX - 1).to_le_bytes());
        assert!(links.has("a", &last, now));
    }
}
