//! What an edge knows of the fleet's tags: told in order by whoever follows the control plane, looked up by all
//! shards. A change is known to every shard before [`Fleet::set_tag`] returns.
//!
//! Nothing of the control plane is named here: [`Proposer`] is the way there.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use outrider_uplink::PeerBook;

use super::model::{Repository, TagOrigin, TagRecord};
use super::placement::Placements;
use super::recent::Generations;

/// What a tag stands for in the fleet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FleetRecord {
    /// Digest of the manifest, in its text form.
    pub digest: String,
    /// Its length in bytes.
    pub size_bytes: u64,
    /// Its media type.
    pub media_type: String,
    /// The edges that hold it, by their numbers.
    pub holders: Vec<u64>,
    /// The name of the upstream that says so; nothing for a tag that was pushed.
    pub upstream: Option<String>,
}

/// What is proposed: that a tag stands for something else, if nobody was faster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// The repository.
    pub repository: String,
    /// The tag.
    pub tag: String,
    /// The version that it has, 0 for none.
    pub expected: u64,
    /// What it stands for from then on, or nothing.
    pub record: Option<FleetRecord>,
}

/// Why a proposal was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProposalError {
    /// Somebody was faster: the tag has this version, 0 for none.
    Mismatch(u64),
    /// It will not be taken, however often it is proposed.
    Refused(String),
    /// There is no majority of the control plane, or no way to it. It was perhaps taken.
    Unavailable(String),
}

/// Where the outcome of a proposal goes. It comes when the [`Fleet`] knows of the change.
pub type Proposed = Box<dyn FnOnce(Result<(), ProposalError>) + Send>;

/// The way to the control plane.
pub trait Proposer: Send + Sync {
    /// Proposes; never blocks.
    fn propose(&self, proposal: Proposal, done: Proposed);
}

/// A tag, as it is known.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) version: u64,
    pub(super) record: Arc<TagRecord>,
    pub(super) holders: Arc<[u64]>,
    /// The upstream was asked here since the fleet knows this version.
    checked: Arc<AtomicBool>,
}

impl Entry {
    fn of(version: u64, record: FleetRecord) -> Option<Self> {
        let origin = match record.upstream {
            None => TagOrigin::Hosted,
            Some(upstream) => TagOrigin::Mirrored {
                upstream: upstream.into(),
                checked_unix_ms: 0,
                etag: None,
                overtaken: false,
            },
        };
        let tag = TagRecord {
            digest: record.digest.parse().ok()?,
            size_bytes: record.size_bytes,
            media_type: record.media_type.into(),
            origin,
        };
        Some(Self {
            version,
            record: Arc::new(tag),
            holders: record.holders.into(),
            checked: Arc::default(),
        })
    }

    pub(super) fn is_hosted(&self) -> bool {
        self.record.origin == TagOrigin::Hosted
    }

    /// Whether the upstream was asked here since the fleet knows this.
    pub(super) fn is_checked(&self) -> bool {
        self.checked.load(Ordering::Relaxed)
    }

    pub(super) fn set_checked(&self) {
        self.checked.store(true, Ordering::Relaxed);
    }
}

#[derive(Debug, Default)]
struct View {
    repositories: BTreeMap<String, BTreeMap<String, Entry>>,
    addresses: HashMap<u64, String>,
}

/// Tags of which an upstream was asked since that was wanted last, by repository. No clock is in it, so that it is right
/// however the machine's is set.
#[derive(Debug, Default)]
struct Checked {
    repositories: HashMap<String, HashSet<String>>,
    tags: usize,
}

impl Checked {
    fn has(&self, repository: &str, tag: &str) -> bool {
        self.repositories.get(repository).is_some_and(|tags| tags.contains(tag))
    }

    fn add(&mut self, repository: &str, tag: &str) {
        if self.has(repository, tag) {
            return;
        }
        if self.tags >= CHECKED_MAX {
            *self = Self::default();
        }
        self.repositories.entry(repository.to_owned()).or_default().insert(tag.to_owned());
        self.tags += 1;
    }

    fn remove(&mut self, what: AskAgain<'_>) {
        match what {
            AskAgain::All => *self = Self::default(),
            AskAgain::Repository(repository) => {
                let gone = self.repositories.remove(repository);
                self.tags -= gone.map_or(0, |tags| tags.len());
            }
            AskAgain::Tag(repository, tag) => {
                let tags = self.repositories.get_mut(repository);
                if tags.is_some_and(|tags| tags.remove(tag)) {
                    self.tags -= 1;
                }
            }
        }
    }
}

/// Of which tags an upstream has to be asked again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AskAgain<'a> {
    /// Of all.
    All,
    /// Of all of a repository.
    Repository(&'a str),
    /// Of one tag of a repository.
    Tag(&'a str, &'a str),
}

/// Tags of which that is remembered; beyond it upstreams are asked for all once more.
const CHECKED_MAX: usize = 65_536;

/// What the fleet knows, as far as this edge was told.
pub struct Fleet {
    own: u64,
    proposer: Box<dyn Proposer>,
    view: RwLock<View>,
    pub(super) placements: RwLock<Placements>,
    checked: RwLock<Checked>,
    pub(super) generations: Generations,
}

impl fmt::Debug for Fleet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fleet").field("own", &self.own).finish_non_exhaustive()
    }
}

impl Fleet {
    /// Nothing is known yet. `own` is this edge's number.
    pub fn new(own: u64, proposer: Box<dyn Proposer>) -> Arc<Self> {
        let generations = Generations::new();
        Arc::new(Self {
            own,
            proposer,
            view: RwLock::default(),
            placements: RwLock::default(),
            checked: RwLock::default(),
            generations,
        })
    }

    /// This edge's number.
    pub fn own(&self) -> u64 {
        self.own
    }

    /// A tag stands for something else, or for nothing any more.
    pub fn set_tag(&self, repository: &str, tag: &str, version: u64, record: Option<FleetRecord>) {
        {
            let mut view = self.write();
            take(&mut view.repositories, repository, tag, version, record);
        }
        self.generations.bump([repository].into_iter());
    }

    /// An edge is reached at this address, or not any more.
    pub fn set_address(&self, edge: u64, address: Option<String>) {
        let mut view = self.write();
        let before = match address.clone() {
            Some(address) => view.addresses.insert(edge, address),
            None => view.addresses.remove(&edge),
        };
        drop(view);
        if before.is_some() != address.is_some() {
            // Who holds what of a repository, and can be reached, is remembered.
            self.generations.bump_all();
        }
    }

    /// Everything is as it is said here: repository, tag, version and record of each tag, and the addresses.
    pub fn replace(
        &self,
        tags: impl Iterator<Item = (String, String, u64, FleetRecord)>,
        addresses: impl Iterator<Item = (u64, String)>,
    ) {
        let mut next = View { addresses: addresses.collect(), ..View::default() };
        for (repository, tag, version, record) in tags {
            take(&mut next.repositories, &repository, &tag, version, Some(record));
        }
        // Dropped behind the lock: there may be a million of them.
        let before = std::mem::replace(&mut *self.write(), next);
        drop(before);
        self.generations.bump_all();
    }

    /// What upstreams said of these tags until now does not count any more: they are asked again when somebody wants
    /// one of them. So it is with all tags when this is new.
    pub fn ask_again(&self, what: AskAgain<'_>) {
        self.checked.write().unwrap_or_else(PoisonError::into_inner).remove(what);
        match what {
            AskAgain::All => self.generations.bump_all(),
            AskAgain::Repository(name) | AskAgain::Tag(name, _) => {
                self.generations.bump([name].into_iter());
            }
        }
    }

    /// Whether an upstream has to be asked again of a tag, however short ago it was.
    pub(super) fn is_void(&self, repository: &str, tag: &str) -> bool {
        !self.checked.read().unwrap_or_else(PoisonError::into_inner).has(repository, tag)
    }

    /// An upstream was asked of a tag.
    pub(super) fn set_checked(&self, repository: &str, tag: &str) {
        self.checked.write().unwrap_or_else(PoisonError::into_inner).add(repository, tag);
    }

    /// What tags stand for, in order behind `last`, and behind which to go on.
    pub fn digests_after(
        &self,
        last: Option<&(String, String)>,
        entries_max: usize,
    ) -> (Vec<outrider_artifact::Digest>, Option<(String, String)>) {
        let view = self.read();
        let (repository, tag) = match last {
            Some((repository, tag)) => (repository.as_str(), Some(tag.as_str())),
            None => ("", None),
        };
        let mut digests = Vec::new();
        for (name, tags) in
            view.repositories.range::<str, _>((Bound::Included(repository), Bound::Unbounded))
        {
            let from = match tag {
                Some(tag) if name == repository => Bound::Excluded(tag),
                _ => Bound::Unbounded,
            };
            for (tag, entry) in tags.range::<str, _>((from, Bound::Unbounded)) {
                digests.push(entry.record.digest);
                if digests.len() >= entries_max {
                    return (digests, Some((name.clone(), tag.clone())));
                }
            }
        }
        (digests, None)
    }

    pub(super) fn propose(&self, proposal: Proposal, done: Proposed) {
        self.proposer.propose(proposal, done);
    }

    /// The tag. O(log n), and a lock.
    pub(super) fn tag(&self, repository: &str, tag: &str) -> Option<Entry> {
        self.read().repositories.get(repository)?.get(tag).cloned()
    }

    /// What the repository is to the fleet, by any of its tags.
    pub(super) fn repository(&self, repository: &str) -> Option<Repository> {
        let view = self.read();
        let (_, entry) = view.repositories.get(repository)?.first_key_value()?;
        Some(match &entry.record.origin {
            TagOrigin::Hosted => Repository::Hosted,
            TagOrigin::Mirrored { upstream, .. } => {
                Repository::Mirrored { upstream: upstream.clone() }
            }
        })
    }

    /// Hosted tags of the repository in order, behind `last`.
    pub(super) fn tags(
        &self,
        repository: &str,
        last: Option<&str>,
        entries_max: usize,
    ) -> Vec<String> {
        let view = self.read();
        let Some(tags) = view.repositories.get(repository) else { return Vec::new() };
        let from = last.map_or(Bound::Unbounded, Bound::Excluded);
        let tags = tags.range::<str, _>((from, Bound::Unbounded));
        let hosted = tags.filter(|(_, entry)| entry.is_hosted());
        hosted.take(entries_max).map(|(tag, _)| tag.clone()).collect()
    }

    /// The hosted tags of the repository that stand for this digest.
    pub(super) fn tags_of(
        &self,
        repository: &str,
        digest: &outrider_artifact::Digest,
    ) -> Vec<(String, Entry)> {
        let view = self.read();
        let Some(tags) = view.repositories.get(repository) else { return Vec::new() };
        let same = tags.iter().filter(|(_, e)| e.is_hosted() && e.record.digest == *digest);
        same.map(|(tag, entry)| (tag.clone(), entry.clone())).collect()
    }

    /// Repositories in order, behind `last`.
    pub(super) fn repositories(&self, last: Option<&str>, entries_max: usize) -> Vec<String> {
        let view = self.read();
        let from = last.map_or(Bound::Unbounded, Bound::Excluded);
        let found = view.repositories.range::<str, _>((from, Bound::Unbounded));
        found.take(entries_max).map(|(name, _)| name.clone()).collect()
    }

    /// The other edges that hold what was pushed to the repository, those of its latest tags first, and only
    /// such as can be reached.
    pub(super) fn holders(&self, repository: &str) -> Arc<[u64]> {
        let view = self.read();
        let Some(tags) = view.repositories.get(repository) else { return Arc::default() };
        let mut hosted: Vec<&Entry> = tags.values().filter(|entry| entry.is_hosted()).collect();
        hosted.sort_unstable_by_key(|entry| std::cmp::Reverse(entry.version));
        let mut holders = Vec::new();
        for holder in hosted.iter().flat_map(|entry| entry.holders.iter()) {
            if *holder != self.own
                && view.addresses.contains_key(holder)
                && !holders.contains(holder)
            {
                holders.push(*holder);
            }
        }
        holders.into()
    }

    /// All edges that can be reached, this one too where it says how.
    pub(super) fn reached(&self) -> Vec<u64> {
        self.read().addresses.keys().copied().collect()
    }

    /// Whether it is another edge, which is let in and says where it is.
    pub(super) fn is_edge(&self, number: u64) -> bool {
        number != self.own && self.read().addresses.contains_key(&number)
    }

    fn read(&self) -> RwLockReadGuard<'_, View> {
        self.view.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, View> {
        self.view.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn take(
    repositories: &mut BTreeMap<String, BTreeMap<String, Entry>>,
    repository: &str,
    tag: &str,
    version: u64,
    record: Option<FleetRecord>,
) {
    // The state machine has validated the digest; one that cannot be read is as good as none.
    match record.and_then(|record| Entry::of(version, record)) {
        Some(entry) => {
            let tags = match repositories.get_mut(repository) {
                Some(tags) => tags,
                None => repositories.entry(repository.to_owned()).or_default(),
            };
            tags.insert(tag.to_owned(), entry);
        }
        None => {
            let Some(tags) = repositories.get_mut(repository) else { return };
            tags.remove(tag);
            if tags.is_empty() {
                repositories.remove(repository);
            }
        }
    }
}

impl PeerBook for Fleet {
    fn address(&self, member: u64) -> Option<String> {
        self.read().addresses.get(&member).cloned()
    }
}
