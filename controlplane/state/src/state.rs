//! The state, and how requests change it. Every node applies the same batches in the same order, so nothing
//! here may depend on anything else: no clock, no randomness, no order of a hash table.
//!
//! **Versions** count the requests that changed something, in log order. They are not the log's own indices:
//! an entry carries many requests, and two writes of one key must never have the same version.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;

use crate::applied::{Applied, fingerprint};
use crate::change::{Change, Update};
use crate::events::Events;
use crate::invalidated::Invalidated;
use crate::members::Members;
use crate::outcome::Outcome;
use crate::request::{
    Batch, Customer, Expect, Invalidation, Operation, Placement, Request, TagRecord, Weights, Write,
};

/// The most that keys and values of all fragments may have together, in bytes.
pub const FRAGMENT_BYTES_MAX: u64 = 512 << 20;
/// The most fragments.
pub const FRAGMENTS_MAX: usize = 4_000_000;
/// The most tags.
pub const TAGS_MAX: usize = 1_000_000;
/// The most customers.
pub const CUSTOMERS_MAX: usize = 100_000;
/// How long a tag of an upstream is kept that no edge confirms, in milliseconds of log time: thirty days. What nobody asked
/// for in a month is asked of the upstream again when somebody does, which costs one request.
pub const TAG_TIME_MS: u64 = 30 * 24 * 3_600 * 1_000;
/// An edge confirms a tag of an upstream when nobody has for so long, in milliseconds of log time: a day. So a tag that
/// is in use is written once a day, and has thirty days for that.
pub const TAG_CONFIRM_MS: u64 = 24 * 3_600 * 1_000;
/// The most tags that one log entry takes out because of their time.
pub const TAGS_EXPIRED_MAX: usize = 64;
/// The most rules of the placement.
pub const PLACEMENTS_MAX: usize = 1_000;

/// The value of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Version of the request that wrote it. Never 0.
    pub version: u64,
    /// The value. Clones share it.
    pub value: Bytes,
}

/// What a tag stands for.
#[derive(Clone, Debug, PartialEq)]
pub struct TagState {
    /// Version of the request that wrote it. Never 0.
    pub version: u64,
    /// What it stands for.
    pub record: TagRecord,
    /// Log time at which it was written: of a tag of an upstream, when an edge said so last.
    pub confirmed_ms: u64,
}

/// A repository and a tag in it.
pub type TagKey = (String, String);

/// All that the control plane knows.
#[derive(Clone, Debug, Default)]
pub struct State {
    pub(crate) version: u64,
    pub(crate) time_ms: u64,
    pub(crate) fragments: BTreeMap<String, Fragment>,
    pub(crate) fragment_bytes: u64,
    pub(crate) tags: BTreeMap<Arc<TagKey>, TagState>,
    /// Tags of upstreams by the time at which they were confirmed.
    pub(crate) mirrored: BTreeSet<(u64, Arc<TagKey>)>,
    pub(crate) invalidated: Invalidated,
    pub(crate) customers: BTreeMap<String, Customer>,
    pub(crate) weights: Weights,
    pub(crate) placements: BTreeMap<String, Placement>,
    pub(crate) members: Members,
    pub(crate) applied: Applied,
    pub(crate) events: Events,
}

impl State {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// The version of the last request that changed something.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The log's time, in milliseconds. Grows only.
    pub fn time_ms(&self) -> u64 {
        self.time_ms
    }

    /// The fragment of this key. O(log n).
    pub fn fragment(&self, key: &str) -> Option<&Fragment> {
        self.fragments.get(key)
    }

    /// The fragments whose keys begin so, in order of their keys.
    pub fn fragments<'a>(
        &'a self,
        prefix: &'a str,
    ) -> impl Iterator<Item = (&'a str, &'a Fragment)> + 'a {
        self.fragments_after(prefix, "")
    }

    /// The same, beginning behind the key `after`.
    pub fn fragments_after<'a>(
        &'a self,
        prefix: &'a str,
        after: &'a str,
    ) -> impl Iterator<Item = (&'a str, &'a Fragment)> + 'a {
        let from = match after >= prefix && !after.is_empty() {
            true => Bound::Excluded(after),
            false => Bound::Included(prefix),
        };
        self.fragments
            .range::<str, _>((from, Bound::Unbounded))
            .take_while(move |(key, _)| key.starts_with(prefix))
            .map(|(key, fragment)| (key.as_str(), fragment))
    }

    /// How many fragments there are, and the bytes of their keys and values.
    pub fn fragment_totals(&self) -> (usize, u64) {
        (self.fragments.len(), self.fragment_bytes)
    }

    /// What a tag stands for. O(log n), allocates.
    pub fn tag(&self, repository: &str, tag: &str) -> Option<&TagState> {
        self.tags.get(&(repository.to_owned(), tag.to_owned()))
    }

    /// All tags, in order.
    pub fn tags(&self) -> impl Iterator<Item = (&TagKey, &TagState)> {
        self.tags.iter().map(|(key, tag)| (&**key, tag))
    }

    /// Tags of this and all later repositories, in order, beginning behind `after` where that is later.
    pub fn tags_after<'a>(
        &'a self,
        repository: &str,
        after: Option<&TagKey>,
    ) -> impl Iterator<Item = (&'a TagKey, &'a TagState)> + use<'a> {
        let first = (repository.to_owned(), String::new());
        let from = match after {
            Some(after) if *after >= first => Bound::Excluded(after.clone()),
            _ => Bound::Included(first),
        };
        self.tags.range::<TagKey, _>((from, Bound::Unbounded)).map(|(key, tag)| (&**key, tag))
    }

    /// The digests that were invalidated last.
    pub fn invalidated(&self) -> &Invalidated {
        &self.invalidated
    }

    /// Keeps fewer invalidated digests than [`crate::invalidated::INVALIDATED_MAX`]. For simulations: every node must do so.
    #[doc(hidden)]
    pub fn keep_invalidated(&mut self, max: usize) {
        self.invalidated.set_max(max);
    }

    /// A customer.
    pub fn customer(&self, name: &str) -> Option<&Customer> {
        self.customers.get(name)
    }

    /// All customers, by name.
    pub fn customers(&self) -> impl Iterator<Item = (&str, &Customer)> {
        self.customers.iter().map(|(name, customer)| (name.as_str(), customer))
    }

    /// The same, beginning behind the name `after`; no name is empty.
    pub fn customers_after(&self, after: &str) -> impl Iterator<Item = (&str, &Customer)> {
        let from = (Bound::Excluded(after), Bound::Unbounded);
        self.customers.range::<str, _>(from).map(|(name, customer)| (name.as_str(), customer))
    }

    /// The weights of the importance score.
    pub fn weights(&self) -> Weights {
        self.weights
    }

    /// The rule of the placement for exactly this prefix.
    pub fn placement(&self, prefix: &str) -> Option<&Placement> {
        self.placements.get(prefix)
    }

    /// All of them, by prefix.
    pub fn placements(&self) -> impl Iterator<Item = (&str, &Placement)> {
        self.placements.iter().map(|(prefix, placement)| (prefix.as_str(), placement))
    }

    /// Who was let in.
    pub fn members(&self) -> &Members {
        &self.members
    }

    /// Events of edges on their way to the queues.
    pub fn events(&self) -> &Events {
        &self.events
    }

    /// What was applied already.
    pub fn applied(&self) -> &Applied {
        &self.applied
    }

    /// Applies one log entry. Gives an outcome for each request, and adds an update for each that changed
    /// something. Before the first one, tags of upstreams whose time is over go, at most [`TAGS_EXPIRED_MAX`]: an update
    /// of its own.
    pub fn apply(&mut self, batch: Batch, updates: &mut Vec<Arc<Update>>) -> Vec<Outcome> {
        self.time_ms = self.time_ms.max(batch.time_ms);
        self.applied.expire(self.time_ms);
        self.expire_tags(updates);
        batch.requests.into_iter().map(|request| self.apply_one(request, updates)).collect()
    }

    fn expire_tags(&mut self, updates: &mut Vec<Arc<Update>>) {
        let mut changes = Vec::new();
        while changes.len() < TAGS_EXPIRED_MAX
            && let Some((confirmed_ms, _)) = self.mirrored.first()
            && confirmed_ms.saturating_add(TAG_TIME_MS) <= self.time_ms
            && let Some((_, key)) = self.mirrored.pop_first()
        {
            let Some(old) = self.tags.remove(&*key) else { continue };
            let (repository, tag) = (*key).clone();
            let replaced = Some(old.record.digest);
            changes.push(Change::Tag { repository, tag, record: None, confirmed_ms: 0, replaced });
        }
        if !changes.is_empty() {
            self.version += 1;
            updates.push(Arc::new(Update { version: self.version, changes }));
        }
    }

    fn apply_one(&mut self, request: Request, updates: &mut Vec<Arc<Update>>) -> Outcome {
        if let Some(outcome) = self.applied.find(&request) {
            return outcome;
        }
        let print = fingerprint(&request);
        let Request { id, operation } = request;
        let mut changes = Vec::new();
        let mut outcome = self.operate(operation, &mut changes);
        if !changes.is_empty() {
            self.version += 1;
            if let Outcome::Done { version } = &mut outcome {
                *version = self.version;
            }
            updates.push(Arc::new(Update { version: self.version, changes }));
        }
        self.applied.keep(&id, print, &outcome, self.time_ms);
        self.applied.expire(self.time_ms);
        outcome
    }

    /// Does it. The version of what is written is one above the present one; that of the outcome is filled in
    /// by the caller, and stays 0 when nothing changed.
    fn operate(&mut self, operation: Operation, changes: &mut Vec<Change>) -> Outcome {
        const DONE: Outcome = Outcome::Done { version: 0 };
        match operation {
            Operation::Write(write) => self.write(vec![write], changes),
            Operation::Batch(writes) => self.write(writes, changes),
            Operation::Tag { repository, tag, expect, record } => {
                self.set_tag((repository, tag), expect, record, changes)
            }
            Operation::Invalidate(what) => {
                // Every digest was checked when its request was read.
                if let Invalidation::Digest(digest) = &what
                    && let Ok(digest) = digest.parse()
                {
                    self.invalidated.note(self.version + 1, digest);
                }
                changes.push(Change::Invalidated(what));
                DONE
            }
            Operation::Customer { name, customer } => self.set_customer(name, customer, changes),
            Operation::Weights(weights) => {
                self.weights = weights;
                changes.push(Change::Weights(weights));
                DONE
            }
            Operation::Placement { prefix, placement } => {
                self.set_placement(prefix, placement, changes)
            }
            Operation::IssueToken { secret_sha256, role, region, ttl_ms } => {
                let (now, until) = (self.time_ms, self.time_ms.saturating_add(ttl_ms));
                let issued = self.members.issue(secret_sha256, role, region, until, now);
                if issued { DONE } else { Outcome::Full }
            }
            Operation::SpendToken { secret_sha256, key_sha256, name } => {
                let last = self.members.last;
                let outcome = self.members.spend(&secret_sha256, key_sha256, name, self.time_ms);
                if self.members.last != last {
                    self.tell_member(self.members.last, changes);
                }
                outcome
            }
            Operation::Events(events) => {
                events.into_iter().for_each(|event| self.events.take(event));
                DONE
            }
            Operation::Revoke { member } => {
                if !self.members.revoke(member) {
                    return Outcome::NoMember;
                }
                self.tell_member(member, changes);
                DONE
            }
            Operation::Announce { member, address, token_key } => {
                match self.members.announce(member, address, token_key) {
                    None => Outcome::NoMember,
                    Some(false) => DONE,
                    Some(true) => {
                        self.tell_member(member, changes);
                        DONE
                    }
                }
            }
        }
    }

    fn tell_member(&self, number: u64, changes: &mut Vec<Change>) {
        if let Some(member) = self.members.get(number) {
            changes.push(Change::Member { number, member: member.clone() });
        }
    }

    fn write(&mut self, writes: Vec<Write>, changes: &mut Vec<Change>) -> Outcome {
        for (write, index) in writes.iter().zip(0..) {
            let (key, expect) = write.condition();
            let current = self.fragments.get(key).map_or(0, |fragment| fragment.version);
            if !expect.holds(current) {
                return Outcome::Mismatch { current, index };
            }
        }
        if !self.has_room_for(&writes) {
            return Outcome::Full;
        }
        let version = self.version + 1;
        for write in writes {
            match write {
                Write::Put { key, value, .. } => {
                    let value = Bytes::from(value);
                    self.fragment_bytes += bytes_of(&key, &value);
                    let fragment = Fragment { version, value: value.clone() };
                    if let Some(old) = self.fragments.insert(key.clone(), fragment) {
                        self.fragment_bytes -= bytes_of(&key, &old.value);
                    }
                    changes.push(Change::Fragment { key, value: Some(value) });
                }
                Write::Delete { key, .. } => {
                    if let Some(old) = self.fragments.remove(&key) {
                        self.fragment_bytes -= bytes_of(&key, &old.value);
                        changes.push(Change::Fragment { key, value: None });
                    }
                }
                Write::Check { .. } => {}
            }
        }
        Outcome::Done { version: 0 }
    }

    fn has_room_for(&self, writes: &[Write]) -> bool {
        let (mut bytes, mut count) = (self.fragment_bytes, self.fragments.len());
        for write in writes {
            if let Write::Put { key, value, .. } = write {
                match self.fragments.get(key) {
                    Some(old) => bytes -= bytes_of(key, &old.value),
                    None => count += 1,
                }
                bytes += bytes_of(key, value);
            }
        }
        // What makes things smaller is always let through.
        (bytes <= FRAGMENT_BYTES_MAX || bytes <= self.fragment_bytes)
            && (count <= FRAGMENTS_MAX || count == self.fragments.len())
    }

    fn set_tag(
        &mut self,
        key: TagKey,
        expect: Expect,
        record: Option<TagRecord>,
        changes: &mut Vec<Change>,
    ) -> Outcome {
        let current = self.tags.get(&key).map_or(0, |tag| tag.version);
        if !expect.holds(current) {
            return Outcome::Mismatch { current, index: 0 };
        }
        if current == 0 && record.is_some() && self.tags.len() >= TAGS_MAX {
            return Outcome::Full;
        }
        let (repository, tag) = key.clone();
        let (version, confirmed_ms) = (self.version + 1, self.time_ms);
        // The key is shared with the order of their times.
        let key =
            self.tags.get_key_value(&key).map_or_else(|| Arc::new(key), |(key, _)| key.clone());
        let old = match &record {
            Some(record) => {
                if record.upstream.is_some() {
                    self.mirrored.insert((confirmed_ms, Arc::clone(&key)));
                }
                let state = TagState { version, record: record.clone(), confirmed_ms };
                self.tags.insert(Arc::clone(&key), state)
            }
            None => match self.tags.remove(&*key) {
                None => return Outcome::Done { version: 0 },
                old => old,
            },
        };
        if let Some(old) = &old
            && old.record.upstream.is_some()
            && (old.confirmed_ms != confirmed_ms
                || record.as_ref().is_none_or(|record| record.upstream.is_none()))
        {
            self.mirrored.remove(&(old.confirmed_ms, key));
        }
        let digest = record.as_ref().map(|record| &record.digest);
        let replaced = old.map(|old| old.record.digest).filter(|old| Some(old) != digest);
        changes.push(Change::Tag { repository, tag, record, confirmed_ms, replaced });
        Outcome::Done { version: 0 }
    }

    fn set_customer(
        &mut self,
        name: String,
        customer: Option<Customer>,
        changes: &mut Vec<Change>,
    ) -> Outcome {
        match &customer {
            Some(new) => {
                if self.customers.len() >= CUSTOMERS_MAX && !self.customers.contains_key(&name) {
                    return Outcome::Full;
                }
                self.customers.insert(name.clone(), new.clone());
            }
            None if self.customers.remove(&name).is_none() => {
                return Outcome::Done { version: 0 };
            }
            None => {}
        }
        changes.push(Change::Customer { name, customer });
        Outcome::Done { version: 0 }
    }

    fn set_placement(
        &mut self,
        prefix: String,
        placement: Option<Placement>,
        changes: &mut Vec<Change>,
    ) -> Outcome {
        match &placement {
            Some(new) => {
                let is_new = !self.placements.contains_key(&prefix);
                if is_new && self.placements.len() >= PLACEMENTS_MAX {
                    return Outcome::Full;
                }
                self.placements.insert(prefix.clone(), new.clone());
            }
            None if self.placements.remove(&prefix).is_none() => {
                return Outcome::Done { version: 0 };
            }
            None => {}
        }
        changes.push(Change::Placement { prefix, placement });
        Outcome::Done { version: 0 }
    }

    /// Every change that makes this state out of an empty one, with the version of what it is about (0 where it
    /// has none), in a fixed order. What was invalidated in the past is not among them:
    /// see [`State::invalidated`].
    pub fn versioned_changes(&self) -> impl Iterator<Item = (u64, Change)> + '_ {
        let fragments = self.fragments.iter().map(|(key, fragment)| {
            let value = Some(fragment.value.clone());
            (fragment.version, Change::Fragment { key: key.clone(), value })
        });
        let tags = self.tags().map(|((repository, tag), state)| {
            let change = Change::Tag {
                repository: repository.clone(),
                tag: tag.clone(),
                record: Some(state.record.clone()),
                confirmed_ms: state.confirmed_ms,
                replaced: None,
            };
            (state.version, change)
        });
        let customers = self.customers.iter().map(|(name, customer)| {
            (0, Change::Customer { name: name.clone(), customer: Some(customer.clone()) })
        });
        let members = self.members.iter();
        let members =
            members.map(|(number, member)| (0, Change::Member { number, member: member.clone() }));
        let weights = std::iter::once((0, Change::Weights(self.weights)));
        let placements = self.placements.iter().map(|(prefix, placement)| {
            let (prefix, placement) = (prefix.clone(), Some(placement.clone()));
            (0, Change::Placement { prefix, placement })
        });
        fragments.chain(tags).chain(customers).chain(members).chain(weights).chain(placements)
    }
}

/// What an invalidation is about, for logs.
impl std::fmt::Display for Invalidation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tag { repository, tag } => write!(f, "{repository}:{tag}"),
            Self::Digest(digest) => f.write_str(digest),
            Self::Repository(repository) => f.write_str(repository),
        }
    }
}

fn bytes_of(key: &str, value: &[u8]) -> u64 {
    (key.len() + value.len()) as u64
}

#[cfg(test)]
mod tests;
